"""`trimode policy replay`, on a short trace. Run: pytest tests/replay/test_command.py"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli import app
from policies.step_time import read_profile, shipped_profiles
from policies.vocabulary import AR, Plan
from replay import make_profiles
from replay.contenders import every, parse


@pytest.fixture
def short(tmp_path: Path) -> Path:
    path = tmp_path / "short.csv"
    rows = "".join(f"{i * 0.2:.1f},{100 + 37 * i % 900},{1 + 53 * i % 150}\n" for i in range(100))
    path.write_text("t,in,out\n" + rows, encoding="utf-8")
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["policy", "replay", *map(str, arguments)])


@pytest.mark.parametrize("loop", [[], ["--closed"]])
def test_table_and_json_hold_every_contender(short: Path, tmp_path: Path, loop: list[str]) -> None:
    out = tmp_path / "out.json"
    policies = "predictive,threshold,self_speculation/8"
    result = invoke("--trace", short, "--policy", policies, "--replicas", 2, "--json", out, *loop)
    assert result.exit_code == 0, result.output
    assert "short on h100" in result.output
    figures = json.loads(out.read_text())
    (comparison,) = figures["figures"]
    assert [o["policy"] for o in comparison["outcomes"]] == ["oracle", *policies.split(",")]
    assert comparison["outcomes"][0]["regret"] == 0.0
    assert {"machine", "commit", "bars"} <= set(figures)
    assert bool(figures["bars"]) == bool(loop)


def test_a_policy_of_ones_own_is_found_where_one_works(short: Path, tmp_path: Path) -> None:
    """An installed command's path does not hold the working directory, so nor does this one's."""
    (tmp_path / "mine.py").write_text("from policies.static import Static as Mine\n")
    command = [sys.executable, "-P", "-m", "orchestrator.cli", "policy", "replay"]
    options = ["--trace", short, "--policy", "mine:Mine", "--closed", "--quick"]
    done = subprocess.run(
        [*command, *map(str, options)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "mine:Mine" in done.stdout
    assert "must be" not in done.stdout  # a bar is for `predictive` alone


def test_a_scenario_has_a_bar(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    options = ["--scenario", "wrong-profile", "--quick", "--policy", "predictive", "--json", out]
    result = invoke(*options)
    assert result.exit_code == 0, result.output
    (bar,) = json.loads(out.read_text())["bars"]
    assert bar["bar"] == 60.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "nonsense"], "nonsense"),
        (["--policy", "predictive@x"], "no control period"),
        (["--policy", "predictive:local"], "needs a value"),
        (["--trace", "nowhere"], "neither a file nor one of"),
        (["--profile", "nothing"], "neither a file nor one of"),
        (["--replicas", "0"], "0 replicas cannot serve"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(arguments: list[str], message: str) -> None:
    result = invoke(*arguments)
    assert isinstance(result.exception, ValueError)
    assert message in str(result.exception)


def test_contenders_are_read_as_they_are_written() -> None:
    assert parse("oracle").is_oracle
    assert parse("diffusion/8@0.7").is_fixed
    central = parse("predictive:local=false@5")
    assert (central.interval_s, central.is_fixed) == (5.0, False)
    names = every(frozenset({AR, Plan.parse("self_speculation/8")}))
    assert {"predictive", "threshold", "ar", "self_speculation/8"} <= set(names)


def test_shipped_profiles_are_what_the_script_writes() -> None:
    for made in (make_profiles.h100(), make_profiles.b200(), make_profiles.gb200()):
        assert made.name in shipped_profiles()
        shipped = read_profile(made.name)
        assert (shipped.curve, shipped.note) == (made.curve, made.note)
        plan = Plan.parse("self_speculation/16")
        assert shipped.step_s(plan, 8, 5120) == pytest.approx(made.step_s(plan, 8, 5120), rel=1e-3)


def test_the_b200_profile_meets_the_published_forward_times() -> None:
    profile = read_profile("b200")
    for plan, sequences, seconds in (
        ("self_speculation/8", 1, 9.96e-3),
        ("self_speculation/32", 128, 132.45e-3),
        ("ar", 32, 32 / 5317),
    ):
        found = profile.step_s(Plan.parse(plan), sequences, sequences * make_profiles.B200_CONTEXT)
        assert found == pytest.approx(seconds, rel=1e-3)


def test_the_h100_profile_meets_published_throughput_at_one_sequence() -> None:
    # 158 tokens/s in SGLang's documentation; the roofline says 153.
    assert 1 / read_profile("h100").step_s(AR, 1, 1024) == pytest.approx(158, rel=0.05)


def test_several_traces_on_several_profiles_have_a_summary_for_each_profile(short: Path) -> None:
    sources = f"{short},{short}"
    result = invoke("--trace", sources, "--profile", "h100,gb200", "--policy", "ar", "--closed")
    assert result.exit_code == 0, result.output
    assert "regret to the oracle on h100" in result.output
    assert "regret to the oracle on gb200" in result.output

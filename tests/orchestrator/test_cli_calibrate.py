"""`trimode calibrate` as an operator sees it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from orchestrator.cli_calibrate import calibrate
from policies.step_time import Profile, read_profile, shipped_profile

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(calibrate, arguments)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    path = tmp_path_factory.mktemp("calibrate") / "profile.json"
    done = run("--budget-s", "1", "--max-num-seqs", "4", "--output", str(path))
    return done, path


def written(folder: Path, profile: Profile) -> str:
    path = folder / f"{profile.name}.json"
    path.write_text(json.dumps(profile.to_dict()))
    return str(path)


def test_it_measures_the_demo_model_and_writes_a_profile(measured: tuple[Result, Path]) -> None:
    done, path = measured
    assert done.exit_code == 0, done.output
    profile = read_profile(str(path))
    assert profile.source == "measured"
    assert profile.fingerprint.model.startswith("tiny ")
    assert profile.max_sequences == 4
    assert "Acceptance assumed from here on: the prior, 6.2 tokens a round of 32." in done.output
    assert "sequences up to which a plan is worth more than another" in done.output


def test_a_profile_is_compared_with_an_earlier_one_of_its_kind(
    measured: tuple[Result, Path], tmp_path: Path
) -> None:
    path = str(measured[1])
    figures = tmp_path / "figures.json"
    done = run("--show", path, "--against", path, "--json", str(figures))
    assert done.exit_code == 0, done.output
    told = json.loads(figures.read_text())
    assert told["bars"][0]["ok"] is True
    assert all(pair["within_noise"] for pair in told["moved"])
    assert Profile.from_dict(told["profile"]) == read_profile(path)


def test_a_crossover_that_moved_is_shown_and_misses_the_bar(tmp_path: Path) -> None:
    h100 = replace(shipped_profile("h100"), noise=0.02)
    curve = replace(h100.curve, position_s=2 * h100.curve.position_s)
    now = written(tmp_path, replace(h100, name="now", curve=curve))
    figures = tmp_path / "figures.json"
    done = run("--show", now, "--against", written(tmp_path, h100), "--json", str(figures))
    assert done.exit_code == 0, done.output
    told = json.loads(figures.read_text())
    assert told["bars"][0]["ok"] is False
    assert "missed" in done.output


def test_the_acceptance_that_the_tables_assume_can_be_chosen() -> None:
    hard = run("--show", "h100", "--acceptance", "0.3").output
    easy = run("--show", "h100", "--acceptance", "0.95").output
    assert "chance 0.3 for each drafted token, 1.4 tokens a round of 32" in hard
    assert "chance 0.95 for each drafted token, 16.1 tokens a round of 32" in easy


def test_diffusion_is_among_the_best_only_where_it_may_be_used() -> None:
    def best(*more: str) -> str:
        page = run("--show", "h100", "--acceptance", "0.3", *more).output
        return page[page.index("best plan and") : page.index("sequences up to which")]

    assert "diffusion" not in best()
    assert "diffusion" in best("--quality", "any")


def test_a_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    assert run("--show", "h100", "--plot", str(path)).exit_code == 0
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--show", "nothing"], "profile 'nothing' is neither a file nor one of"),
        (["--against", "nothing"], "profile 'nothing' is neither a file nor one of"),
        (["--show", "h100", "--against", "b200"], "is of another set-up: hardware is"),
        (["--device", "tpu"], "device 'tpu' is not supported"),
        (["--budget-s", "0"], "0.1<=x<=3600"),
        (["--model", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "orchestrator.cli", "calibrate", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1

"""`pytest tests/benchmarks/test_modes.py`: the modes benchmark at reduced levels."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import modes
from benchmarks.common import Bar, Spread
from benchmarks.step_share import StepShare
from policies.vocabulary import AR


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, Path]:
    folder = tmp_path_factory.mktemp("modes")
    modes.main(
        [
            *("--quick", "--levels", "1,2", "--plans", "ar,self_speculation/8"),
            *("--requests", "2", "--threads", "1"),
            *("--json", str(folder / "modes.json"), "--plot", str(folder / "modes.png")),
        ]
    )
    return json.loads((folder / "modes.json").read_text()), folder / "modes.png"


def test_every_plan_is_measured_at_every_level(run: tuple[dict, Path]) -> None:
    figures, _ = run
    cells = {(f["plan"], f["sequences"]) for f in figures["plans"]}
    assert cells == {(p, n) for p in ("ar", "self_speculation/8") for n in (1, 2)}
    assert all(f["output"]["median"] > 0 for f in figures["plans"])
    assert [f["sequences"] for f in figures["hugging_face"]] == [1]


def test_figures_say_where_they_come_from(run: tuple[dict, Path]) -> None:
    figures, _ = run
    assert {"machine", "commit", "date", "versions", "settings"} <= figures.keys()
    assert figures["winners"].keys() == {"1", "2"}


def test_bars_are_all_there(run: tuple[dict, Path]) -> None:
    figures, _ = run
    assert [bar["bar"] for bar in figures["bars"]] == [2.0, 1.5, 2.5, 2.5, 0.02]
    unmeasured = figures["bars"][1]  # 16 sequences were not asked for
    assert unmeasured["value"] is None
    assert unmeasured["ok"] is None


def test_plan_changes_and_shares_are_measured(run: tuple[dict, Path]) -> None:
    figures, _ = run
    assert [c["sequences"] for c in figures["plan_changes"]] == [1, 1]
    assert figures["step_shares"]
    for share in figures["step_shares"]:  # how large they are is the machine's matter
        parts = share["products_s"], share["attention_s"]
        assert min(parts) > 0
        assert share["neither"] == pytest.approx(1 - sum(parts) / share["step_s"])


def test_a_share_is_what_is_left_of_the_step() -> None:
    share = StepShare(AR, 1, step=10.0, products=4.0, attention=3.0)
    assert share.other_than_products == pytest.approx(0.6)
    assert share.neither == pytest.approx(0.3)


def test_plot_is_drawn(run: tuple[dict, Path]) -> None:
    _, plot = run
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bar_is_met_from_its_own_side() -> None:
    assert Bar("speed", 2.0, 2.0).ok is True
    assert Bar("cost", 0.03, 0.02, at_least=False).ok is False
    assert Bar("cost", None, 0.02).ok is None


def test_spread_is_a_median_with_its_range() -> None:
    assert Spread.of([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0, 3)

"""`pytest tests/benchmarks/test_ragged.py`: the benchmark of plans by request, at one level."""

from __future__ import annotations

import json

import pytest

from benchmarks import ragged
from benchmarks.ragged import Level, Window


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("ragged") / "ragged.json"
    ragged.main(["--quick", "--levels", "2", "--json", str(path)])
    return json.loads(path.read_text())


def test_every_uniform_plan_and_every_pair_may_be_chosen(figures: dict) -> None:
    (level,) = figures["levels"]
    uniform = {name for name in level["chosen_from"] if " + " not in name}
    assert uniform == {str(plan) for plan in ragged.PLANS}
    assert len(level["chosen_from"]) == 5 + 10
    assert len(level["finalists"]) == 4
    assert level["best_uniform"] in uniform
    assert " + " in level["best_pair"]


def test_easy_requests_accept_more_than_hard_ones(figures: dict) -> None:
    # With a pair of plans the easy ones draft more as well, so this holds whichever won.
    for finalist in figures["levels"][0]["finalists"].values():
        easy, hard = (finalist[f"{kind}_tokens_per_step"]["median"] for kind in ("easy", "hard"))
        assert easy > 1.2 * hard


def test_figures_say_where_they_come_from(figures: dict) -> None:
    assert {"machine", "commit", "date", "versions", "settings", "bars"} <= figures.keys()


def test_the_gain_compares_rounds_that_ran_side_by_side() -> None:
    level = Level(4, windows={"ar": [Window(100, 1.0), Window(50, 1.0)],
                              "pair": [Window(110, 1.0), Window(55, 1.0)]},
                  uniform="ar", pair="pair")  # fmt: skip
    assert level.gains == pytest.approx([0.1, 0.1])
    assert ragged.bars([level])[0].ok

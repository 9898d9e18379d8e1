"""`pytest tests/benchmarks/test_adaptive.py`: the parts that need no cluster."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import pytest

from benchmarks.adaptive_analysis import (
    ADAPTIVE,
    MIXED_LOAD,
    Measured,
    Window,
    arms_in_turn,
    bars,
    changes,
    compare,
)
from benchmarks.adaptive_choice import choices
from benchmarks.adaptive_load import KINDS, Answer, Ask, Load, Received, pools
from benchmarks.adaptive_plot import draw
from benchmarks.adaptive_reaction import Reaction, percentile
from benchmarks.adaptive_report import show, to_dict
from benchmarks.adaptive_scenarios import (
    EASY,
    HARD,
    LEVELS,
    MIXED,
    MOST,
    OSCILLATION,
    Phase,
    Scenario,
    crossover,
    fixed,
    fixed_name,
    moving,
    usual_crossover,
)
from benchmarks.adaptive_stack import Page
from benchmarks.common import make_console
from policies.vocabulary import AR, Band, Mode, Plan

SS8, SS16 = Plan(Mode.SELF_SPECULATION, 8), Plan(Mode.SELF_SPECULATION, 16)

PAGE = """\
# HELP trimode_steps_total Steps.
# TYPE trimode_steps_total counter
trimode_steps_total{replica="a"} 12.0
trimode_generated_tokens_total{replica="a"} 40.0
trimode_schedule_age_seconds{replica="a"} 2.5
trimode_plan_active{mode="ar",plan="ar",replica="a"} 0.0
trimode_plan_active{mode="self_speculation",plan="self_speculation/8",replica="a"} 1.0
trimode_plan_seconds_total{mode="ar",plan="ar",replica="a"} 3.0
trimode_plan_switched_timestamp_seconds{from_plan="ar",reason="worth",replica="a",\
to_plan="self_speculation/8"} 90.0
trimode_plan_switched_timestamp_seconds{from_plan="self_speculation/8",reason="worth",\
replica="a",to_plan="ar"} 80.0
trimode_request_seconds_sum{mode="ar",replica="a"} 7.0
"""


# -- scenarios ------------------------------------------------------------------------------------


def test_a_ramp_goes_evenly_from_begin_to_end() -> None:
    ramp = Phase(10.0, 1, 31)
    assert [ramp.concurrency(at) for at in (0.0, 5.0, 10.0, 99.0)] == [1, 16, 31, 31]


def test_a_scenario_plays_its_phases_and_stays_in_the_last() -> None:
    scenario = Scenario("two", (Phase(1.0, 2, 2), Phase(1.0, 8, 8, HARD)))
    assert [scenario.at(s) for s in (0.0, 0.99, 1.0, 5.0)] == [
        (2, MIXED),
        (2, MIXED),
        (8, HARD),
        (8, HARD),
    ]


def test_moving_scenarios_are_as_long_as_asked_and_within_the_clients() -> None:
    *short, last = moving(6.0, (8, 12))
    assert last.seconds == pytest.approx(36.0)
    for scenario in short:
        assert scenario.seconds == pytest.approx(6.0)
        seen = [scenario.at(i / 50)[0] for i in range(301)]
        assert 1 <= min(seen) < max(seen) <= MOST or scenario.name == "shift"


def test_the_oscillating_load_crosses_the_crossover_every_half_second() -> None:
    scenario = next(s for s in moving(6.0, (4, 6)) if s.name == OSCILLATION)
    assert [scenario.at(s)[0] for s in (0.1, 0.6, 1.1, 1.6)] == [4, 6, 4, 6]


def test_everything_has_every_number_of_clients_with_every_kind_of_prompts_once() -> None:
    everything = moving(6.0, (4, 6))[-1]
    pairs = [(phase.begin, phase.traffic) for phase in everything.phases]
    assert sorted(pairs) == sorted(product(LEVELS, (EASY, MIXED, HARD)))
    assert len({phase.seconds for phase in everything.phases}) == 1
    assert pairs == [(phase.begin, phase.traffic) for phase in moving(9.0, (8, 12))[-1].phases]


def test_the_crossover_taken_is_the_one_nearest_to_the_middle() -> None:
    bands = [Band(1, SS16), Band(6, SS8), Band(24, SS16), Band(None, AR)]
    assert crossover(bands) == (6, 9)


@pytest.mark.parametrize(
    "bands", [[Band(None, AR)], [Band(MOST, SS8), Band(None, AR)]], ids=["one plan", "out of reach"]
)
def test_bands_without_a_crossover_in_reach_say_so(bands: list[Band]) -> None:
    assert crossover(bands) is None
    low, high = usual_crossover()
    assert low < high


# -- comparing ------------------------------------------------------------------------------------


def _windows(rates: dict[str, list[float]], name: str = "fixed 1", **more: object) -> list[Window]:
    return [
        Window(name, arm, number, 2.0, 2.0 * rate, **more)  # type: ignore[arg-type]
        for arm, of in rates.items()
        for number, rate in enumerate(of)
    ]


@pytest.mark.parametrize(("count", "rounds"), [(2, 2), (4, 4), (6, 6), (5, 10)])
def test_each_arm_is_as_often_in_every_place_and_after_every_other(count: int, rounds: int) -> None:
    arms = [str(n) for n in range(count)]
    orders = [arms_in_turn(arms, turn) for turn in range(rounds)]
    places = Counter((place, arm) for order in orders for place, arm in enumerate(order))
    after = Counter(pair for order in orders for pair in pairwise(order))
    assert set(places.values()) == {rounds // count}
    assert len(after) == count * (count - 1)
    assert len(set(after.values())) == 1


def test_ratios_are_paired_by_round() -> None:
    # A machine that halves its speed in round 1 changes no ratio.
    windows = _windows({"ar": [100, 50, 100], ADAPTIVE: [120, 60, 120]}, moves=False)
    row = compare(windows)["fixed 1"]
    assert (row.to_best.low, row.to_best.median, row.to_best.high) == pytest.approx((1.2,) * 3)


def test_best_fixed_is_the_highest_median_and_never_adaptive() -> None:
    windows = _windows({"ar": [1, 900, 1], str(SS8): [5, 5, 5], ADAPTIVE: [9, 9, 9]})
    row = compare(windows)["fixed 1"]
    assert row.best == str(SS8)
    assert row.to_baseline is not None
    assert row.to_baseline.median == pytest.approx(1.8)


def test_the_best_of_the_other_rounds_is_not_the_luckiest_of_this_one() -> None:
    """Three arms alike, each lucky once."""
    lucky = {"ar": [120.0, 100.0, 100.0], str(SS8): [100.0, 120.0, 100.0]}
    row = compare(_windows({**lucky, ADAPTIVE: [100.0, 100.0, 120.0]}))["fixed 1"]
    assert row.to_best_elsewhere is not None
    assert row.to_best_elsewhere.median == pytest.approx(1.0)
    alone = compare(_windows({"ar": [100.0], ADAPTIVE: [90.0]}))["fixed 1"]
    assert alone.to_best_elsewhere is None


def test_arms_stand_in_one_order_in_whichever_they_ran():
    ran = [ADAPTIVE, "self_speculation/16", "self_speculation/8", "ar"]
    row = compare(_windows({arm: [100.0] for arm in ran}))["fixed 1"]
    assert list(row.rates) == ["ar", "self_speculation/8", "self_speculation/16", ADAPTIVE]


def test_the_mixed_load_adds_tokens_and_time_of_moving_scenarios_only() -> None:
    windows = [
        *_windows({"ar": [100], ADAPTIVE: [100]}, "fixed 1", moves=False),
        *_windows({"ar": [100], ADAPTIVE: [200]}, "step"),
        *_windows({"ar": [300], ADAPTIVE: [300]}, "ramp"),
    ]
    row = compare(windows)[MIXED_LOAD]
    assert row.rates["ar"].median == 200
    assert row.to_best.median == pytest.approx(1.25)


def test_a_pinned_window_must_keep_to_its_plan() -> None:
    assert Window("s", "ar", 0, 1.0, 1.0, plan_seconds={"ar": 9.95, str(SS8): 0.05}).kept
    assert not Window("s", "ar", 0, 1.0, 1.0, plan_seconds={"ar": 9.0, str(SS8): 1.0}).kept
    assert Window("s", ADAPTIVE, 0, 1.0, 1.0, plan_seconds={"ar": 1.0, str(SS8): 1.0}).kept


def test_changes_count_adaptive_alone() -> None:
    spent = {"ar": 0.5, str(SS8): 1.5}
    windows = _windows({"ar": [1, 1], ADAPTIVE: [1, 1]}, switches=3.0, plan_seconds=spent)
    row = changes(windows)["fixed 1"]
    assert row.switches == 6
    assert row.per_minute == pytest.approx(90)
    assert row.share_in_plan == {str(SS8): 0.75, "ar": 0.25}


# -- bars and reports -----------------------------------------------------------------------------


def _measured(ratio: float) -> Measured:
    measured = Measured(dwell_s=0.1, received=Received(requests=9, tokens=90))
    rates: dict[str, list[float]] = {"ar": [100.0], str(SS8): [200.0], ADAPTIVE: [200.0 * ratio]}
    names = [(fixed_name(level), False) for level in LEVELS]
    names += [(scenario.name, True) for scenario in moving(6.0, (4, 6))]
    for name, moves in names:
        measured.windows += _windows(rates, name, moves=moves, switches=4.0)
    measured.engine, measured.controller = Reaction("steps", [0.0, 1.0]), Reaction("s", [2.0, 4.5])
    measured.local = Reaction("s", unchanged=2)
    return measured


def test_bars_are_met_by_a_good_run_and_missed_by_a_bad_one() -> None:
    assert all(bar.ok for bar in bars(_measured(1.2)))
    missed = {bar.name for bar in bars(_measured(0.97)) if not bar.ok}
    assert missed == {
        *(f"adaptive / best fixed plan, {fixed_name(level)}" for level in LEVELS),
        "adaptive / best single fixed plan, mixed load",
    }


def test_a_bar_without_its_figure_is_not_measured_rather_than_met() -> None:
    assert {bar.ok for bar in bars(Measured())} == {None}


def test_texts_that_were_not_compared_meet_no_bar() -> None:
    measured = _measured(1.2)
    measured.texts_compared = False
    assert [bar.name for bar in bars(measured) if bar.ok is None] == ["texts that differ from AR's"]


def test_losses_miss_their_bars() -> None:
    measured = _measured(1.2)
    measured.received.wrong, measured.lost_tokens = 1, -3.0
    missed = {bar.name for bar in bars(measured) if not bar.ok}
    assert missed == {"texts that differ from AR's", "tokens generated that no client got"}


def test_a_run_can_be_printed_written_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = _measured(1.2)
    sample = {"at_s": 0.3, "clients": 4, "traffic": MIXED, "plan": "ar", "tokens_per_s": 10.0}
    measured.timelines["step"] = [sample, sample | {"at_s": 0.6, "plan": str(SS8)}]
    show(make_console(), measured)
    printed = capsys.readouterr().out
    assert "mixed load" in printed
    assert "never changed in 2 changes of load" in printed
    written = to_dict(measured)
    assert written["scenarios"]["step"]["adaptive_to_best_fixed"]["median"] == 1.2
    told = {row["arm"] for row in written["windows"] if "predicted_tokens_per_s" in row}
    assert told == {ADAPTIVE}
    draw(tmp_path / "plot.png", measured, {"machine": {"cpu": "x", "cores": 2}, **_FACTS})
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_a_loss_is_printed_with_what_the_governor_thought(
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = Measured()
    measured.windows = _windows({"ar": [50], str(SS8): [100], ADAPTIVE: [60]}, "fixed 8")
    measured.windows[-1] = replace(
        measured.windows[-1], plan_seconds={"ar": 2.0}, predicted={"ar": 120.0, str(SS8): 90.0}
    )
    show(make_console(), measured)
    printed = capsys.readouterr().out
    assert "0.600 of ss/8; ar 120 predicted, 50 seen, ss/8 90 predicted, 100 seen" in printed


def test_what_was_chosen_is_told_apart_from_what_was_made_of_it() -> None:
    """Half of the time in the best plan, half in one that makes 0.8 of it; and a machine that is a
    tenth slower in adaptive's windows than in the others of the same round."""
    windows = _windows({"ar": [80, 40], str(SS8): [100, 50], ADAPTIVE: [81, 40.5]}, "fixed 8")
    halves = {"ar": 1.0, str(SS8): 1.0}
    still = [replace(w, moves=False) for w in windows]
    told = [replace(w, plan_seconds=halves) if w.arm == ADAPTIVE else w for w in still]
    found = choices(told)["fixed 8"]
    assert found.plans_to_best == pytest.approx(0.9)
    assert found.to_its_plans == pytest.approx(0.9)
    assert found.error == pytest.approx(0.0, abs=1e-9)
    assert choices(still) == choices(windows) == {}


_FACTS = {"commit": "abc", "date": "2026-01-01T00:00:00"}


@pytest.mark.parametrize(("share", "wanted"), [(0.5, 2), (0.95, 4), (0.75, 3), (0.0, 1)])
def test_percentile_is_a_value_that_was_seen(share: float, wanted: float) -> None:
    assert percentile([4, 1, 3, 2], share) == wanted


# -- load and pages -------------------------------------------------------------------------------


def test_every_kind_of_prompts_has_the_same_requests_each_time() -> None:
    found = pools()
    assert set(found) == set(KINDS)
    assert found == pools()
    assert all(len(set(pool)) == len(pool) >= 2 * len(KINDS[k][0]) for k, pool in found.items())


def test_an_answer_that_is_not_ars_is_wrong() -> None:
    ask = Ask("Hello", 0.0, 1)
    load = Load(1, "/", {MIXED: [ask]}, {ask: Answer("Hi", 2, "stop")})
    load._take(ask, Answer("Hi", 2, "stop"))
    load._take(ask, Answer("Ho", 2, "stop"))
    assert (load.received.requests, load.received.tokens, load.received.wrong) == (2, 4, 1)


def test_a_page_gives_totals_plans_and_the_latest_change() -> None:
    page = Page.parse(PAGE, at=100.0)
    assert (page.steps, page.tokens, page.plan) == (12, 40, "self_speculation/8")
    assert page.received_at == 97.5
    assert page.latest_switch() == (90.0, "self_speculation/8")
    assert page.growth(Page(0.0, {}, {}), "plan_seconds_total") == {"ar": 3.0}


def test_fixed_loads_do_not_move() -> None:
    scenario = fixed(4, 2.0)
    assert not scenario.moves
    assert {scenario.at(s)[0] for s in (0.0, 1.0, 3.0)} == {4}

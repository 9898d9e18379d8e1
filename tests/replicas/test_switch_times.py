"""When plans changed, as a metrics page says it: pytest tests/replicas/test_switch_times.py"""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from policies.vocabulary import AR, Plan
from replicas.governor import Change, PickReason
from replicas.in_memory_engine import InMemoryEngine
from replicas.metrics import ReplicaMetrics
from replicas.switch_times import SwitchTimes

SPEC_8 = Plan.parse("self_speculation/8")
UP: Change = (AR, SPEC_8, PickReason.BAND)
DOWN: Change = (SPEC_8, AR, PickReason.BAND)
NAME = "trimode_plan_switched_timestamp_seconds"


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clocks() -> tuple[Clock, Clock]:
    """A monotonic one that began 50 s ago, and the wall's."""
    return Clock(50.0), Clock(1_000_000.0)


def test_a_moment_is_told_in_unix_seconds(clocks: tuple[Clock, Clock]) -> None:
    assert SwitchTimes(*clocks).of({UP: 48.5}) == {UP: 999_998.5}


def test_a_moment_stays_where_it_was_when_the_wall_clock_is_set(
    clocks: tuple[Clock, Clock],
) -> None:
    times, (monotonic, wall) = SwitchTimes(*clocks), clocks
    first = times.of({UP: 48.5})
    monotonic.now, wall.now = 60.0, 1_003_610.0  # ten seconds later, and set an hour ahead
    assert times.of({UP: 48.5}) == first
    assert times.of({UP: 48.5, DOWN: 59.0}) == {**first, DOWN: 1_003_609.0}


def test_a_later_change_in_the_same_direction_takes_its_place(clocks: tuple[Clock, Clock]) -> None:
    times = SwitchTimes(*clocks)
    times.of({UP: 48.5})
    assert times.of({UP: 49.5}) == {UP: 999_999.5}


def _page(times: dict[Change, float]) -> CollectorRegistry:
    engine = InMemoryEngine(str)
    asyncio.run(engine.start())
    return ReplicaMetrics("r1", "tiny", engine, switched_at=lambda: times).registry


def test_the_page_has_a_series_for_each_direction_that_was_taken_and_no_other() -> None:
    labels = {"replica": "r1", "from_plan": "ar", "to_plan": "self_speculation/8"}
    page = _page({UP: 999_998.5})
    assert page.get_sample_value(NAME, {**labels, "reason": "band"}) == 999_998.5
    assert page.get_sample_value(NAME, {**labels, "reason": "expired"}) is None


def test_plans_that_differ_by_threshold_alone_are_one_series_with_the_latest_time() -> None:
    low, high = Plan.parse("diffusion/8@0.5"), Plan.parse("diffusion/8@0.7")
    page = _page({(AR, low, PickReason.BAND): 7.0, (AR, high, PickReason.BAND): 5.0})
    labels = {"replica": "r1", "from_plan": "ar", "to_plan": "diffusion/8", "reason": "band"}
    assert page.get_sample_value(NAME, labels) == 7.0

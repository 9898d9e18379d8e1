"""The replica-local rule. Run with: pytest tests/replicas/test_governor.py"""

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.cost_model import REFRESH_S
from policies.observation import Drafted
from policies.vocabulary import AR, SAFE_PLAN, Band, Plan, Schedule, all_plans
from replicas.governor import Governor, PickReason
from tests.policies.synthetic import governor_of

SPEC_4, SPEC_8, SPEC_16 = (Plan.parse(f"self_speculation/{n}") for n in (4, 8, 16))
BANDS = (Band(4, SPEC_16), Band(16, SPEC_8), Band(None, AR))


@st.composite
def schedules(draw, version=1, **fields):
    """A valid schedule whose plans differ from band to band."""
    plans = draw(st.lists(st.sampled_from(all_plans()), min_size=1, max_size=5, unique=True))
    count = len(plans) - 1
    bounds = draw(st.lists(st.integers(1, 40), min_size=count, max_size=count, unique=True))
    bands = [Band(b, plan) for b, plan in zip([*sorted(bounds), None], plans, strict=True)]
    values = {
        "hysteresis": draw(st.integers(0, 6)),
        "dwell_s": draw(st.floats(0, 5)),
        "ttl_s": draw(st.floats(1, 50)),
        **fields,
    }
    return Schedule(tuple(bands), epoch=1, version=version, **values)


STEPS = st.lists(st.tuples(st.integers(0, 60), st.floats(0.001, 4)), min_size=1, max_size=40)


@settings(deadline=None)
@given(st.data())
def test_never_a_plan_outside_the_schedule_and_the_safe_plan(data):
    governor, now = Governor(data.draw(schedules())), 0.0
    for version in range(2, data.draw(st.integers(3, 8))):
        for decoding, wait_s in data.draw(STEPS):
            now += wait_s
            assert governor.pick(decoding, now) in {*governor.schedule.plans, SAFE_PLAN}
        governor.receive(data.draw(schedules(version=version)), now)


@settings(deadline=None)
@given(schedules(ttl_s=float("inf")), STEPS)
def test_at_most_one_change_per_dwell_within_a_schedule(schedule, steps):
    governor, now, changes = Governor(schedule), 0.0, []
    for decoding, wait_s in steps:
        now += wait_s
        before, plan = governor.plan, governor.pick(decoding, now)
        if plan != before:
            changes.append(now)
    assert governor.switches == len(changes)
    assert all(b - a >= schedule.dwell_s for a, b in pairwise(changes))


@settings(deadline=None)
@given(schedules(ttl_s=float("inf"), dwell_s=0.0), STEPS)
def test_a_band_is_entered_from_above_only_with_the_full_hysteresis(schedule, steps):
    governor, bounds = Governor(schedule), {b.plan: b.up_to for b in schedule.bands}
    for step, (decoding, _) in enumerate(steps):
        before = schedule.plans.index(governor.plan)
        after = schedule.plans.index(governor.pick(decoding, float(step)))
        bound = bounds[governor.plan]
        if after < before:
            assert decoding <= bound - schedule.hysteresis
        elif after > before:
            assert decoding > schedule.bands[after - 1].up_to
        else:
            assert bound is None or decoding <= bound  # a load above the band always leaves it


@settings(deadline=None)
@given(schedules(), st.integers(0, 60))
def test_expiry_falls_back_to_the_safe_plan_whatever_the_dwell(schedule, decoding):
    governor = Governor(replace(schedule, dwell_s=1e9))
    governor.pick(decoding, 0.0)
    assert governor.pick(decoding, schedule.ttl_s + 0.01) == SAFE_PLAN
    assert governor.reason is PickReason.EXPIRED


@given(schedules(), st.floats(0, 1))
def test_a_refresh_restarts_the_time_to_live(schedule, share):
    governor = Governor(schedule)
    at = share * schedule.ttl_s
    assert governor.receive(schedule, at)
    governor.pick(1, at + schedule.ttl_s * 0.999)
    assert governor.reason is not PickReason.EXPIRED
    governor.pick(1, at + schedule.ttl_s * 1.001)
    assert governor.reason is PickReason.EXPIRED


def test_a_refresh_after_expiry_returns_to_the_schedule():
    schedule = Schedule(BANDS, ttl_s=5.0, version=1)
    governor = Governor(schedule)
    assert governor.pick(1, 6.0) == AR
    governor.receive(schedule, 7.0)
    assert governor.pick(1, 7.0) == SPEC_16


@given(
    st.tuples(st.integers(0, 3), st.integers(0, 3)), st.tuples(st.integers(0, 3), st.integers(0, 3))
)
def test_an_older_schedule_is_ignored(first, second):
    held = Schedule.pinned(SPEC_4, epoch=first[0], version=first[1])
    offered = Schedule.pinned(SPEC_8, epoch=second[0], version=second[1])
    governor = Governor(held)
    assert governor.receive(offered, 1.0) is (second >= first)
    assert governor.schedule is (offered if second >= first else held)


def test_who_decodes_is_asked_for_now_and_then_and_when_their_number_jumps():
    """It takes the engine longer than all the rest of a pick."""
    asked = []

    def drafted():
        asked.append(now)
        return Drafted([8.0] * decoding, [6.0] * decoding)

    governor = governor_of()
    for index in range(4000):
        now, decoding = index / 2000, 40 if index > 2500 else 4
        governor.pick(decoding, now, decoding * 512, drafted=drafted)
    assert len(asked) == pytest.approx(2.0 / REFRESH_S, abs=2)
    assert 2501 / 2000 in asked


def test_a_withdrawn_plan_is_left_at_once():
    governor = Governor(Schedule(BANDS, dwell_s=60.0))
    governor.pick(40, 0.0)
    governor.receive(Schedule.pinned(SPEC_4, dwell_s=60.0, version=1), 0.1)
    assert governor.pick(40, 0.1) == SPEC_4


def test_load_on_the_edge_of_a_band_does_not_flap():
    governor = Governor(Schedule(BANDS, hysteresis=2))
    plans = [governor.pick(decoding, now) for now, decoding in enumerate([4, 5, 4, 5, 3, 4, 2, 3])]
    assert plans == [SPEC_16, SPEC_8, SPEC_8, SPEC_8, SPEC_8, SPEC_8, SPEC_16, SPEC_16]
    assert governor.switches == 2


def test_a_fall_through_several_bands_stops_where_the_hysteresis_says():
    governor = Governor(Schedule(BANDS, hysteresis=2))
    assert governor.pick(40, 0.0) == AR
    assert governor.pick(4, 1.0) == SPEC_8
    assert governor.reason is PickReason.HYSTERESIS
    assert governor.pick(2, 2.0) == SPEC_16


def test_a_plan_in_two_bands_has_hysteresis_in_both():
    # The plan alone does not tell which of its bands is the current one.
    bands = (Band(4, AR), Band(8, SPEC_4), Band(None, AR))
    governor = Governor(Schedule(bands, hysteresis=2))
    assert [governor.pick(n, 0.0) for n in (9, 8, 7, 6)] == [AR, AR, AR, SPEC_4]


def test_changes_are_counted_by_direction_and_reason():
    governor = Governor(Schedule(BANDS, ttl_s=10.0))
    for now, decoding in enumerate([1, 10, 1, 10]):
        governor.pick(decoding, float(now))
    governor.pick(10, 20.0)
    assert governor.switched == {
        (SPEC_16, SPEC_8, PickReason.BAND): 2,
        (SPEC_8, SPEC_16, PickReason.BAND): 1,
        (SPEC_8, AR, PickReason.EXPIRED): 1,
    }

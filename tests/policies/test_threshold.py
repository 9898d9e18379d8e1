"""Run with: pytest tests/policies/test_threshold.py"""

import pytest

from policies.decisions import Reading, Reason, Signals
from policies.threshold import DEFAULT_BANDS, Threshold
from policies.vocabulary import AR, Band, Plan


def at(decoding):
    return Signals(decoding=Reading(decoding, 0.0))


def run(policy, loads):
    """The plan and reason after each load."""
    state, seen = None, []
    for load in loads:
        decision, state = policy.decide(at(load), state, 0.0)
        seen.append((str(decision.schedule.plans[0]), decision.reason))
    return seen


def test_bands_go_to_the_replica_whole():
    decision, _ = Threshold().decide(at(20), None, 0.0)
    assert decision.schedule.bands == DEFAULT_BANDS
    assert [str(decision.schedule.plan_at(n)) for n in (1, 4, 5, 16, 17, 32, 33)] == [
        "self_speculation/16",
        "self_speculation/16",
        "self_speculation/8",
        "self_speculation/8",
        "self_speculation/4",
        "self_speculation/4",
        "ar",
    ]


def test_reasons_follow_the_load_while_the_schedule_stays():
    policy = Threshold(hysteresis=1)
    reasons = [reason for _, reason in run(policy, [1, 5, 5, 40, 16, 0, 0])]
    assert reasons == [
        Reason.INITIAL,
        Reason.LOAD_ROSE,
        Reason.HOLD_STEADY,
        Reason.LOAD_ROSE,
        Reason.LOAD_FELL,
        Reason.LOAD_FELL,
        Reason.HOLD_IDLE,
    ]


def test_applied_here_it_issues_one_plan_at_a_time():
    seen = run(Threshold(local=False, hysteresis=2), [40, 32, 31, 30, 3, 2])
    assert seen == [
        ("ar", Reason.INITIAL),
        ("ar", Reason.HOLD_HYSTERESIS),
        ("ar", Reason.HOLD_HYSTERESIS),
        ("self_speculation/4", Reason.LOAD_FELL),
        ("self_speculation/8", Reason.LOAD_FELL),
        ("self_speculation/16", Reason.LOAD_FELL),
    ]


def test_missing_load_is_not_zero():
    policy = Threshold(local=False)
    _, state = policy.decide(at(40), None, 0.0)
    decision, state = policy.decide(Signals(), state, 1.0)
    assert decision.reason is Reason.HOLD_MISSING
    assert decision.schedule.plans == (AR,)


def test_hysteresis_that_closes_the_lowest_band_is_refused():
    with pytest.raises(ValueError, match="hysteresis 4 must be below the first band's bound 4"):
        Threshold(hysteresis=4)


def test_bands_that_do_not_ascend_are_refused():
    with pytest.raises(ValueError, match="ascending"):
        Threshold([Band(8, AR), Band(4, Plan.parse("self_speculation/4")), Band(None, AR)])
    with pytest.raises(ValueError, match="last band"):
        Threshold([Band(8, AR)])

"""Run with: pytest tests/policies/test_guard.py"""

import pytest

from policies.decisions import Decision, PlanSignals, Reading, Reason, Signals
from policies.guard import Guard, GuardState, Pin, Rules
from policies.slo import RELAX_S, TIGHTEN_S
from policies.static import Static
from policies.threshold import Threshold
from policies.vocabulary import AR, Plan, Quality, Schedule

DIFFUSION = Plan.parse("diffusion/16")
SPEC_8 = Plan.parse("self_speculation/8")


def at(decoding, age_s=0.0, **fields):
    readings = {name: Reading(value, age_s) for name, value in fields.items()}
    return Signals("r1", decoding=Reading(decoding, age_s), **readings)


def central(**rules):
    return Guard(Threshold(local=False), Rules(**{"dwell_s": 0.0, **rules}))


class Scripted:
    """Answers with the given plans, one after another, and always says that it holds."""

    needs = ()

    def __init__(self, *plans):
        self.plans = plans

    def decide(self, signals, state, now):
        index = state or 0
        plan = self.plans[min(index, len(self.plans) - 1)]
        if isinstance(plan, Exception):
            raise plan
        return Decision(Schedule.pinned(plan), Reason.HOLD_STEADY), index + 1


def test_decisions_carry_who_when_and_the_plan_at_this_load():
    decision, _ = Guard(Threshold(), name="mine").decide(at(20), None, 7.0)
    assert (decision.replica, decision.policy, decision.time_s) == ("r1", "mine", 7.0)
    assert str(decision.plan) == "self_speculation/4"
    assert decision.reason is Reason.INITIAL


def test_pin_wins_until_it_expires():
    guard = central()
    state = GuardState(pin=Pin(SPEC_8, expires_at=10.0))
    pinned, state = guard.decide(at(40), state, 0.0)
    assert (pinned.plan, pinned.reason) == (SPEC_8, Reason.PINNED)
    still, state = guard.decide(at(40), state, 9.99)
    assert still.reason is Reason.PINNED
    after, state = guard.decide(at(40), state, 10.0)
    assert (after.plan, after.reason) == (AR, Reason.PIN_EXPIRED)
    steady, state = guard.decide(at(40), state, 11.0)
    assert steady.reason is Reason.HOLD_STEADY


def test_pin_holds_without_signals_and_ends_without_them():
    guard = central()
    state = GuardState(pin=Pin(SPEC_8, expires_at=10.0))
    pinned, state = guard.decide(Signals("r1"), state, 0.0)
    assert pinned.reason is Reason.PINNED
    after, state = guard.decide(Signals("r1"), state, 10.0)
    assert after.reason is Reason.PIN_EXPIRED
    assert after.plan != SPEC_8


def test_pin_outside_the_allowed_plans_becomes_an_exact_plan():
    decision, _ = central().decide(at(1), GuardState(pin=Pin(DIFFUSION, 10.0)), 0.0)
    assert str(decision.plan) == "self_speculation/16"


def test_stale_signals_hold_the_last_schedule_then_the_safe_one():
    guard = central(hold_s=30.0, stale_after_s=5.0)
    first, state = guard.decide(at(2), None, 0.0)
    held, state = guard.decide(at(2, age_s=6.0), state, 6.0)
    assert held.reason is Reason.HOLD_STALE
    assert held.schedule == first.schedule
    safe, state = guard.decide(at(2, age_s=31.0), state, 31.0)
    assert (safe.plan, safe.reason) == (AR, Reason.SAFE_STALE)
    back, state = guard.decide(at(2), state, 32.0)
    assert (back.plan, back.reason) == (first.plan, Reason.SIGNALS_BACK)


def test_missing_is_told_from_stale():
    guard = central()
    _, state = guard.decide(at(2), None, 0.0)
    assert guard.decide(Signals("r1"), state, 1.0)[0].reason is Reason.HOLD_MISSING
    lost = Signals("r1", decoding=Reading(None, 60.0))
    assert guard.decide(lost, state, 1.0)[0].reason is Reason.HOLD_STALE


def test_without_signals_from_the_start_the_policy_still_gives_a_first_schedule():
    decision, _ = Guard(Threshold()).decide(Signals("r1"), None, 0.0)
    assert decision.reason is Reason.INITIAL
    assert len(decision.schedule.bands) == 4


def test_a_policy_that_needs_no_signals_never_goes_stale():
    guard = Guard(Static("self_speculation/8"))
    state = None
    for now in (0.0, 100.0, 1000.0):
        decision, state = guard.decide(Signals("r1"), state, now)
        assert (decision.plan, decision.reason) == (SPEC_8, Reason.STATIC)


def test_diffusion_is_used_only_where_allowed():
    exact, _ = Guard(Static(DIFFUSION)).decide(at(1), None, 0.0)
    assert str(exact.plan) == "self_speculation/16"
    assert exact.reason is Reason.QUALITY
    rules = Rules.for_quality(Quality.ANY)
    assert Guard(Static(DIFFUSION), rules).decide(at(1), None, 0.0)[0].plan == DIFFUSION


def test_allowed_plans_are_cut_to_the_next_shorter_then_the_safe_one():
    only_4 = Rules(allowed=frozenset({Plan.parse("self_speculation/4")}))
    cut, _ = Guard(Static("self_speculation/16"), only_4).decide(at(1), None, 0.0)
    assert str(cut.plan) == "self_speculation/4"
    nothing = Rules(allowed=frozenset())
    assert Guard(Static("self_speculation/16"), nothing).decide(at(1), None, 0.0)[0].plan == AR


def test_dwell_keeps_a_schedule_and_then_says_why_it_changed():
    guard = central(dwell_s=5.0)
    _, state = guard.decide(at(2), None, 0.0)
    early, state = guard.decide(at(40), state, 1.0)
    assert (str(early.plan), early.reason) == ("self_speculation/16", Reason.HOLD_DWELL)
    late, state = guard.decide(at(40), state, 5.0)
    assert (late.plan, late.reason) == (AR, Reason.LOAD_ROSE)


def test_no_change_hides_behind_a_hold():
    guard = Guard(Scripted(AR, SPEC_8), Rules(dwell_s=0.0))
    first, state = guard.decide(at(1), None, 0.0)
    second, state = guard.decide(at(1), state, 1.0)
    assert (first.reason, second.reason) == (Reason.INITIAL, Reason.POLICY)


def test_a_policy_that_raises_holds():
    guard = Guard(Scripted(SPEC_8, RuntimeError("bug")), Rules(dwell_s=0.0))
    first, state = guard.decide(at(1), None, 0.0)
    held, state = guard.decide(at(1), state, 1.0)
    assert held.reason is Reason.HOLD_ERROR
    assert held.schedule == first.schedule
    assert "RuntimeError: bug" in held.detail


def test_a_policy_that_raises_at_once_gets_the_safe_plan():
    decision, _ = Guard(Scripted(RuntimeError("bug"))).decide(at(1), None, 0.0)
    assert (decision.plan, decision.reason) == (AR, Reason.INITIAL)


def test_a_policy_that_raises_does_not_keep_an_expired_pin():
    guard = Guard(Scripted(RuntimeError("bug")))
    _, state = guard.decide(at(1), GuardState(pin=Pin(SPEC_8, 5.0)), 0.0)
    after, state = guard.decide(at(1), state, 5.0)
    assert (after.plan, after.reason) == (AR, Reason.PIN_EXPIRED)


def test_an_adopted_schedule_is_cut_to_what_is_allowed():
    guard = central()
    state = guard.adopt(Schedule.pinned(DIFFUSION, epoch=3, version=9))
    held, _ = guard.decide(Signals("r1"), state, 0.0)
    assert held.reason is Reason.HOLD_MISSING
    assert str(held.plan) == "self_speculation/16"


def test_queue_with_missed_ttft_shortens_the_block_one_rung_at_a_time():
    guard = central(ttft_target_s=1.0)
    slow = at(2, ttft_p95_s=2.0, waiting=3.0)
    plans, reasons, state = [], [], None
    for now in (0.0, 1.0, TIGHTEN_S, 2 * TIGHTEN_S, 3 * TIGHTEN_S, 5 * TIGHTEN_S):
        decision, state = guard.decide(slow, state, now)
        plans.append(str(decision.plan))
        reasons.append(decision.reason)
    assert plans == [
        "self_speculation/16",
        "self_speculation/8",
        "self_speculation/8",
        "self_speculation/4",
        "ar",
        "ar",
    ]
    assert reasons.count(Reason.SLO_TTFT) == 3
    assert reasons[-1] is Reason.HOLD_STEADY


def test_slack_gives_the_block_back_slowly():
    guard = central(ttft_target_s=1.0)
    _, state = guard.decide(at(2, ttft_p95_s=2.0, waiting=3.0), None, 0.0)
    _, state = guard.decide(at(2, ttft_p95_s=2.0, waiting=3.0), state, 1.0)
    fine = at(2, ttft_p95_s=0.1, waiting=0.0)
    soon, state = guard.decide(fine, state, RELAX_S)
    assert str(soon.plan) == "self_speculation/8"
    later, state = guard.decide(fine, state, RELAX_S + 1.0)
    assert (str(later.plan), later.reason) == ("self_speculation/16", Reason.SLO_RELAXED)


def test_missed_tpot_without_queue_counts_only_where_speculation_does_not_pay():
    guard = central(tpot_target_s=0.01)
    plan = Plan.parse("self_speculation/16")

    def slow(gain):
        used = {plan: PlanSignals(tokens_per_forward=Reading(gain, 0.0))}
        base = at(2, tpot_p95_s=0.05, waiting=0.0)
        return Signals(
            "r1", base.decoding, waiting=base.waiting, tpot_p95_s=base.tpot_p95_s, plans=used
        )

    for gain, expected in ((3.0, plan), (0.8, SPEC_8)):
        _, state = guard.decide(slow(gain), None, 0.0)
        decision, _ = guard.decide(slow(gain), state, 20.0)
        assert decision.plan == expected


def test_long_prompts_that_miss_ttft_without_a_queue_change_nothing():
    guard = central(ttft_target_s=1.0)
    _, state = guard.decide(at(2, ttft_p95_s=9.0, waiting=0.0), None, 0.0)
    decision, _ = guard.decide(at(2, ttft_p95_s=9.0, waiting=0.0), state, 20.0)
    assert decision.reason is Reason.HOLD_STEADY


def test_decide_leaves_the_state_it_was_given_alone():
    guard = central()
    _, state = guard.decide(at(2), None, 0.0)
    before = (state.schedule, state.policy_state, state.known_at)
    guard.decide(at(40), state, 9.0)
    assert (state.schedule, state.policy_state, state.known_at) == before


@pytest.mark.parametrize("field", ["ttft_target_s", "stale_after_s", "hold_s", "ttl_s"])
def test_times_that_make_no_sense_are_refused_by_name(field):
    with pytest.raises(ValueError, match=f"{field} 0 must be above 0"):
        Rules(**{field: 0})

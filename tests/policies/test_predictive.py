"""The default policy, alone and inside the guard.

Run with: pytest tests/policies/test_predictive.py
"""

from dataclasses import replace
from itertools import pairwise

import pytest

from policies.decisions import PlanSignals, Reading, Reason, Signals
from policies.estimates import REVISE_S
from policies.guard import Guard, Rules
from policies.predictive import EXPLORE_LIGHTER_S, EXPLORE_S, Predictive
from policies.threshold import DEFAULT_BANDS
from policies.vocabulary import AR, Mode, Quality, Schedule, all_plans
from tests.policies.synthetic import EXACT, H100, SPEC_8, SPEC_16


def reading(value):
    return Reading(value, 0.1)


def signals(decoding=8, length=512, replica="r1", plans=None, profile=H100):
    return Signals(
        replica,
        decoding=reading(decoding),
        context_tokens=reading(None if decoding is None else decoding * length),
        plans=plans or {},
        profile=profile,
    )


def drafted(chance, plan=SPEC_8, slowdown=1.0, decoding=8, length=512):
    """What metrics say of a plan whose drafts are accepted with one chance."""
    block = plan.block_length
    shares = tuple(chance**i for i in range(1, block))
    return {
        plan: PlanSignals(
            tokens_per_forward=reading((1.0 + sum(shares)) / 2.0),
            accepted_length=reading(sum(shares)),
            step_s=reading(slowdown * H100.step_s(plan, decoding, decoding * length)),
            sequences=reading(decoding),
            acceptance=shares,
        )
    }


class Replica:
    """Asks a policy once a second and keeps its state."""

    def __init__(self, policy):
        self.policy, self.state, self.now, self.decisions = policy, None, 0.0, []

    def ask(self, told, seconds=1):
        for _ in range(seconds):
            decision, self.state = self.policy.decide(told, self.state, self.now)
            self.decisions.append(decision)
            self.now += 1.0
        return self.decisions[-1]

    @property
    def schedules(self):
        """Without repetitions."""
        found = []
        for decision in self.decisions:
            if not found or found[-1] is not decision.schedule:
                found.append(decision.schedule)
        return found


# -- what is issued ---------------------------------------------------------------------------


def test_without_a_profile_the_usual_bands_hold():
    decision, _ = Predictive().decide(signals(profile=None), None, 0.0)
    assert decision.schedule.bands == DEFAULT_BANDS
    assert decision.schedule.worth is None
    assert decision.reason is Reason.HOLD_MISSING


def test_with_a_profile_a_worth_is_issued():
    decision = Replica(Predictive()).ask(signals())
    worth = decision.schedule.worth
    assert worth is not None
    assert worth.profile is H100
    assert decision.reason is Reason.INITIAL


def test_a_profile_that_comes_later_replaces_the_bands():
    replica = Replica(Predictive())
    replica.ask(signals(profile=None))
    assert replica.ask(signals()).schedule.worth is not None


def test_the_bands_say_what_the_governor_would_choose():
    decision = Replica(Predictive()).ask(signals(length=128))
    plans = [band.plan for band in decision.schedule.bands]
    assert len(plans) >= 4
    assert [p.block_length for p in plans if p.mode is Mode.SELF_SPECULATION] == sorted(
        (p.block_length for p in plans if p.mode is Mode.SELF_SPECULATION), reverse=True
    )


@pytest.mark.parametrize(
    ("quality", "allowed"), [(Quality.EXACT, EXACT), (Quality.ANY, all_plans())]
)
@pytest.mark.parametrize("local", [True, False])
def test_predicted_holds_every_allowed_plan_and_no_other(local, quality, allowed):
    guard = Guard(Predictive(local=local), Rules.for_quality(quality))
    replica = Replica(guard)
    replica.ask(signals())
    assert set(replica.ask(signals()).predicted) == set(allowed)


@pytest.mark.parametrize("local", [True, False])
def test_a_plan_that_is_not_allowed_is_not_the_best(local):
    """What diffusion would be worth once decided where exact plans only are allowed: the guard then
    cut its choice down to self-speculation of equal length, which may be the worst."""
    told = signals(decoding=200, length=128)
    fast = replace(H100, ratios={p: ((1.0, 0.1),) for p in all_plans() if not p.is_exact})
    guard = Guard(Predictive(local=local), Rules(dwell_s=0.0))
    decision = Replica(guard).ask(replace(told, profile=fast), seconds=3)
    assert decision.plan == AR
    assert decision.reason is not Reason.QUALITY


def test_options_that_make_no_sense_are_refused():
    for options in ({"dwell_s": -1.0}, {"hysteresis": 2.0}, {"tpot_target_s": 0.0}):
        with pytest.raises(ValueError, match=r"dwell_s|hysteresis|tpot"):
            Predictive(**options)


# -- when it changes --------------------------------------------------------------------------


def test_load_alone_changes_no_schedule():
    replica = Replica(Predictive())
    for decoding in (1, 40, 200, 3, 90, 0):
        replica.ask(signals(decoding), seconds=10)
    assert len(replica.schedules) == 1
    reasons = {decision.reason for decision in replica.decisions}
    assert {Reason.LOAD_ROSE, Reason.LOAD_FELL, Reason.HOLD_STEADY, Reason.HOLD_IDLE} <= reasons


def test_a_yield_that_moved_makes_a_new_worth_at_the_next_revision():
    replica = Replica(Predictive())
    replica.ask(signals())
    replica.ask(signals(plans=drafted(0.3)), seconds=int(REVISE_S) + 1)
    assert len(replica.schedules) == 2
    assert replica.schedules[1].worth.chances[0] < replica.schedules[0].worth.chances[0]
    changed = next(d for d in replica.decisions if d.schedule is replica.schedules[1])
    assert not changed.reason.is_hold


def test_a_schedule_is_not_revised_for_what_does_not_matter():
    replica = Replica(Predictive())
    replica.ask(signals(plans=drafted(0.7)), seconds=600)
    settled = len(replica.schedules)
    for index in range(300):
        replica.ask(signals(plans=drafted(0.7 + 0.002 * (index % 2), slowdown=1.01)))
    assert len(replica.schedules) == settled


def test_a_step_time_that_moved_becomes_a_correction():
    replica = Replica(Predictive())
    replica.ask(signals(plans=drafted(0.7, SPEC_16, slowdown=2.0)), seconds=120)
    corrections = replica.schedules[-1].worth.corrections
    assert corrections[SPEC_16] == pytest.approx(2.0, rel=0.05)


def test_longer_contexts_redraw_the_bands():
    replica = Replica(Predictive().among(EXACT))
    short = replica.ask(signals(length=128)).schedule.bands
    long = replica.ask(signals(length=8192), seconds=20).schedule.bands
    assert short[-1].plan == AR
    assert long[-1].plan.mode is Mode.SELF_SPECULATION


def test_nothing_is_learned_where_it_is_told_not_to():
    replica = Replica(Predictive(learns=False))
    replica.ask(signals(plans=drafted(0.2, slowdown=3.0)), seconds=120)
    assert len(replica.schedules) == 1
    assert not replica.schedules[0].worth.learns


def test_a_replica_that_comes_back_with_another_profile_starts_anew():
    replica = Replica(Predictive())
    replica.ask(signals(plans=drafted(0.7, SPEC_16, slowdown=3.0)), seconds=60)
    other = replace(H100, name="other", fingerprint=replace(H100.fingerprint, hardware="other"))
    decision = replica.ask(signals(profile=other))
    assert decision.schedule.worth.profile is other
    assert not decision.schedule.worth.corrections


# -- the fleet --------------------------------------------------------------------------------


def test_a_new_replica_starts_with_the_fleets_acceptance():
    guard, states = Guard(Predictive(), Rules(dwell_s=0.0)), {}
    for now in range(120):
        for name in ("r1", "r2"):
            told = signals(replica=name, plans=drafted(0.3))
            _, states[name] = guard.decide(told, states.get(name), float(now))
    _, states["new"] = guard.decide(signals(replica="new"), None, 120.0)
    states = guard.merge(states, 120.0)
    for now in range(121, 121 + int(REVISE_S) + 1):
        decision, states["new"] = guard.decide(signals(replica="new"), states["new"], float(now))
    known = states["r1"].schedule.worth.chances[0]
    assert decision.schedule.worth.chances[0] == pytest.approx(known, abs=0.1)


def test_machines_of_another_kind_do_not_share_what_they_learned():
    policy = Predictive()
    other = replace(H100, fingerprint=replace(H100.fingerprint, hardware="other"))
    states = {}
    for name, profile, chance in (("a", H100, 0.2), ("b", other, 0.9)):
        replica = Replica(policy)
        replica.ask(signals(plans=drafted(chance), profile=profile), seconds=60)
        states[name] = replica.state
    merged = policy.merge(states, 60.0)
    assert merged["a"].known.fleet[0] < 0.4
    assert merged["b"].known.fleet[0] > 0.7
    assert states["a"].known.fleet is None  # states are values


# -- deciding here ----------------------------------------------------------------------------


def test_deciding_here_issues_one_plan_at_a_time():
    replica = Replica(Predictive(local=False))
    low = replica.ask(signals(2), seconds=3).schedule
    high = replica.ask(signals(250, length=128), seconds=3).schedule
    assert len(low.bands) == len(high.bands) == 1
    assert low.worth is None
    assert low.plans[0].mode is Mode.SELF_SPECULATION
    assert high.plans == (AR,)


def test_deciding_here_a_small_gain_is_no_reason():
    replica = Replica(Predictive(local=False, hysteresis=0.9))
    held = replica.ask(signals(2), seconds=3).schedule
    assert replica.ask(signals(20), seconds=3).schedule is held
    assert replica.decisions[-1].reason is Reason.HOLD_HYSTERESIS


def test_deciding_here_ar_is_left_for_one_tick_a_minute():
    """Otherwise nothing tells what self-speculation would yield, and it never comes back."""
    replica = Replica(Predictive(local=False))
    replica.ask(signals(250, length=128), seconds=240)
    tried = [i for i, d in enumerate(replica.decisions) if d.schedule.plans != (AR,)]
    assert 3 <= len(tried) <= 240 / EXPLORE_S
    assert all(b - a > EXPLORE_S for a, b in pairwise(tried))
    for index in tried:
        assert replica.decisions[index].schedule.plans[0].mode is Mode.SELF_SPECULATION
        # Going there and coming back are one probe, and both say so.
        assert {d.reason for d in replica.decisions[index : index + 2]} == {Reason.PROBE}


def test_deciding_here_a_load_that_has_become_light_is_explored_soon_and_once():
    """Drafts that did not pay for 250 sequences may pay for 40, and here they do not."""
    replica = Replica(Predictive(local=False))
    replica.ask(signals(250, plans=drafted(0.05), length=128), seconds=20)
    assert Reason.PROBE not in {decision.reason for decision in replica.decisions}
    first = len(replica.decisions)
    replica.ask(signals(40, length=128), seconds=20)
    tried = [d.reason is Reason.PROBE for d in replica.decisions[first:]]
    assert any(tried[: round(EXPLORE_LIGHTER_S)])
    assert sum(tried) == 2  # there and back
    assert replica.decisions[-1].schedule.plans == (AR,)


def test_deciding_here_a_load_that_wavers_is_not_explored_more_often():
    replica = Replica(Predictive(local=False))
    replica.ask(signals(4, plans=drafted(0.05), length=128), seconds=20)
    for _ in range(60):
        for decoding in (4, 2, 2, 4):
            replica.ask(signals(decoding, plans={}, length=128))
    tried = sum(decision.reason is Reason.PROBE for decision in replica.decisions)
    assert tried <= 2 * 240 / EXPLORE_S


def test_deciding_here_a_try_is_asked_for_until_it_runs():
    """The guard may keep it back."""
    replica = Replica(Predictive(local=False))
    in_ar = replace(signals(250, length=128), plan=AR)
    replica.ask(in_ar, seconds=round(EXPLORE_S) + 10)
    assert [d.reason for d in replica.decisions[-5:]] == [Reason.PROBE] * 5
    replica.ask(replace(in_ar, plan=SPEC_8))
    replica.ask(in_ar, seconds=3)
    assert replica.decisions[-1].reason.is_hold


@pytest.mark.parametrize("before", [0.05, 0.95])
def test_deciding_here_other_acceptance_is_followed_within_a_few_rounds(before):
    after = 1.0 - before
    replica, settled = Replica(Predictive(local=False)), Replica(Predictive(local=False))
    old = replica.ask(signals(plans=drafted(before)), seconds=120).predicted[SPEC_16]
    new = replica.ask(signals(plans=drafted(after)), seconds=4).predicted[SPEC_16]
    goal = settled.ask(signals(plans=drafted(after)), seconds=120).predicted[SPEC_16]
    assert abs(new - goal) < 0.2 * abs(old - goal)


def test_deciding_here_what_was_learned_stays_while_nothing_new_is_read():
    """A fleet with easy traffic must not lead a replica with hard traffic back into drafts."""
    policy = Predictive(local=False)
    easy, hard = Replica(policy), Replica(policy)
    easy.ask(signals(plans=drafted(0.95)), seconds=60)
    hard.ask(signals(replica="r2", plans=drafted(0.05)), seconds=60)
    merged = policy.merge({"r1": easy.state, "r2": hard.state}, 60.0)
    hard.state = merged["r2"]
    before = hard.ask(signals(replica="r2", plans=drafted(0.05)), seconds=5).predicted[SPEC_16]
    after = hard.ask(signals(replica="r2"), seconds=10).predicted[SPEC_16]
    elsewhere = easy.decisions[-1].predicted[SPEC_16]
    assert after - before < 0.2 * (elsewhere - before)


def test_deciding_here_a_few_rounds_are_not_taken_for_many():
    """One sequence of two rounds, both accepted to the end."""
    replica = Replica(Predictive(local=False))
    usual = replica.ask(signals(1, plans=drafted(0.5, decoding=1)), seconds=30)
    slow = 0.5 / H100.step_s(SPEC_8, 1, 512)
    lucky = drafted(1.0, decoding=1, slowdown=slow)
    model = replica.state.known.model
    replica.ask(signals(1, plans=lucky))
    tokens = replica.state.known.model.tokens(SPEC_8)
    assert tokens < model.tokens(SPEC_8) + 0.5
    assert usual.reason is not Reason.PROBE


def test_deciding_here_a_step_time_over_different_loads_is_not_taken_for_that_of_a_plan():
    """The window holds steps of 40 sequences and of one; their mean is no step of either."""
    replica = Replica(Predictive(local=False))
    replica.ask(signals(40, plans=drafted(0.8, decoding=40)), seconds=60)
    expected = replica.state.known.model.correction(SPEC_8, 1)
    replica.ask(signals(1, plans=drafted(0.8, decoding=20, slowdown=6.0)), seconds=60)
    assert replica.state.known.model.correction(SPEC_8, 1) == pytest.approx(expected)


def test_an_idle_replica_is_not_explored_on():
    replica = Replica(Predictive(local=False))
    for _ in range(180):
        replica.ask(signals(0))
    assert Reason.PROBE not in {decision.reason for decision in replica.decisions}


def test_deciding_here_a_plan_too_slow_for_the_tpot_target_is_left_though_it_yields_more():
    replica = Replica(Predictive(local=False, tpot_target_s=0.012).among(EXACT))
    few, many = (replica.ask(signals(n), seconds=3).schedule.plans[0] for n in (1, 48))
    values = replica.state.known.values(signals(48), 48.0)
    assert few not in values.within_limit
    assert many in values.within_limit


def test_a_tpot_target_leaves_room_for_prefill_and_queueing():
    worth = Replica(Predictive(tpot_target_s=0.05)).ask(signals()).schedule.worth
    assert worth.tpot_limit_s == pytest.approx(0.03)


def test_signals_that_are_missing_hold_what_there_is():
    replica = Replica(Predictive())
    held = replica.ask(signals()).schedule
    decision = replica.ask(signals(None))
    assert decision.schedule is held
    assert decision.reason is Reason.HOLD_MISSING
    assert isinstance(held, Schedule)

"""The default policy, alone and inside the guard.

Run with: pytest tests/policies/test_predictive.py
"""

from dataclasses import replace

import pytest

from policies.decisions import Reason
from policies.estimates import REVISE_S
from policies.guard import Guard, Rules
from policies.predictive import Predictive
from policies.threshold import DEFAULT_BANDS
from policies.vocabulary import AR, Mode, Quality, Schedule, all_plans
from tests.policies.asked import Replica, drafted, signals
from tests.policies.synthetic import EXACT, H100, SPEC_16

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

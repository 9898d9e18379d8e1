"""The default policy where it chooses every plan itself, in the controller (`local=False`).

Run with: pytest tests/policies/test_deciding_here.py
"""

from dataclasses import replace
from itertools import pairwise

import pytest

from policies.decisions import Reason
from policies.predictive import EXPLORE_LIGHTER_S, EXPLORE_S, Predictive
from policies.vocabulary import AR, Mode
from tests.policies.asked import Replica, drafted, signals
from tests.policies.synthetic import EXACT, H100, SPEC_8, SPEC_16


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

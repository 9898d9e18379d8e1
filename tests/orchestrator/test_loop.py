"""One round of the control loop. Run with: pytest tests/orchestrator/test_loop.py"""

import json
import pickle

import pytest

from orchestrator import loop
from orchestrator.errors import ApiError, PlanNotAllowed, UnknownReplica
from orchestrator.loop import HISTORY_LENGTH, LoopState, explain, forget, heartbeat, tick
from policies.decisions import Reading, Reason, Signals
from policies.guard import Guard, Pin, Rules
from policies.threshold import Threshold
from policies.vocabulary import AR, SAFE_PLAN, Plan, Schedule
from replicas.governor import Governor

SPEC_8 = Plan.parse("self_speculation/8")
SPEC_16 = Plan.parse("self_speculation/16")
START = Schedule.pinned(SAFE_PLAN)


def guard(**rules):
    return Guard(Threshold(local=False), Rules(**{"dwell_s": 0.0, **rules}), name="threshold")


def at(name, decoding):
    return Signals(name, decoding=Reading(decoding, 0.0))


class Controller:
    """Threads the state through, as the real controller does."""

    def __init__(self, epoch=1, advisory=False, **rules):
        self.policy = guard(**rules)
        self.state = LoopState(epoch, advisory=advisory)

    def call(self, name, now=0.0, schedule=START, pin=None):
        url = f"http://{name}/metrics"
        self.state = heartbeat(self.state, self.policy, name, url, schedule, now, pin)

    def tick(self, now=0.0, **loads):
        signals = {name: at(name, load) for name, load in loads.items()}
        decisions, self.state = tick(signals, self.policy, self.state, now)
        return decisions

    def pin(self, name, plan, now, ttl_s):
        self.state = loop.pin(self.state, self.policy, name, plan, now, ttl_s)


def test_each_replica_is_decided_on_by_its_own_load():
    controller = Controller()
    controller.call("a")
    controller.call("b")
    decisions = controller.tick(a=2, b=50)
    assert (decisions["a"].plan, decisions["b"].plan) == (SPEC_16, AR)
    assert {n: s.plans for n, s in controller.state.schedules.items()} == {
        "a": (SPEC_16,),
        "b": (AR,),
    }


def test_version_changes_only_when_the_schedule_does():
    controller = Controller()
    controller.call("a")
    orders = []
    for now, load in enumerate([2, 2, 3, 50, 50, 2]):
        controller.tick(float(now), a=load)
        orders.append(controller.state.schedules["a"].order)
    assert orders == [(1, 1), (1, 1), (1, 1), (1, 2), (1, 2), (1, 3)]


def test_a_governor_follows_what_the_loop_issues_and_a_repeat_refreshes_it():
    controller, governor = Controller(ttl_s=10.0), Governor(START)
    controller.call("a")
    for now, load, plan in (
        (0.0, 2, SPEC_16),
        (8.0, 2, SPEC_16),
        (16.0, 50, AR),
        (24.0, 2, SPEC_16),
    ):
        controller.call("a", now, governor.schedule)
        controller.tick(now, a=load)
        assert governor.receive(controller.state.schedules["a"], now)
        assert governor.pick(load, now) == plan
    assert controller.state.replicas["a"].acknowledged == (1, 2)


def test_a_new_controller_adopts_what_replicas_follow_and_outranks_it():
    issued = Schedule.pinned(SPEC_8, ttl_s=60.0, epoch=5, version=70)
    controller = Controller(epoch=1)
    controller.call("a", schedule=issued)
    decision = controller.tick()["a"]  # no signals yet
    assert (decision.plan, decision.reason) == (SPEC_8, Reason.HOLD_MISSING)
    assert controller.state.schedules["a"].order > issued.order


def test_a_new_controller_learns_of_a_pin_from_the_replica():
    controller = Controller()
    issued = Schedule.pinned(SPEC_8, epoch=5, version=70)
    controller.call("a", now=0.0, schedule=issued, pin=Pin(SPEC_8, 10.0))
    assert controller.tick(1.0, a=50)["a"].reason is Reason.PINNED
    after = controller.tick(10.0, a=50)["a"]
    assert (after.plan, after.reason) == (AR, Reason.PIN_EXPIRED)


def test_pin_and_unpin_take_effect_at_the_next_tick():
    controller = Controller()
    controller.call("a")
    controller.tick(0.0, a=50)
    controller.pin("a", SPEC_8, 0.0, ttl_s=100.0)
    assert controller.tick(1.0, a=50)["a"].plan == SPEC_8
    controller.state = loop.unpin(controller.state, "a")
    after = controller.tick(2.0, a=50)["a"]
    assert (after.plan, after.reason) == (AR, Reason.UNPINNED)


def test_a_pin_to_a_plan_that_is_not_allowed_names_those_that_are():
    controller = Controller()
    controller.call("a")
    with pytest.raises(PlanNotAllowed, match=r"diffusion/8 is not allowed.*self_speculation/16"):
        controller.pin("a", Plan.parse("diffusion/8"), 0.0, 1.0)


def test_an_unknown_replica_is_a_404_that_lists_the_known_ones():
    controller = Controller()
    controller.call("a")
    with pytest.raises(UnknownReplica, match="'b' is not known; registered: a") as caught:
        explain(controller.state, "b")
    assert caught.value.status == 404


def test_errors_survive_the_way_between_processes():
    for error in (UnknownReplica.named("x", []), PlanNotAllowed.of(AR, [AR])):
        copy = pickle.loads(pickle.dumps(error))
        assert type(copy) is type(error)
        assert isinstance(copy, ApiError)
        assert (copy.status, copy.code, copy.message) == (error.status, error.code, error.message)


def test_advisory_mode_decides_and_changes_nothing():
    controller = Controller(advisory=True)
    controller.call("a")
    decision = controller.tick(a=2)["a"]
    assert decision.advisory
    assert decision.plan == SPEC_16
    assert controller.state.schedules == {}


def test_advisory_mode_keeps_what_a_controller_issued_before():
    issued = Schedule.pinned(SPEC_8, ttl_s=60.0, epoch=2, version=1)
    controller = Controller(advisory=True)
    controller.call("a", schedule=issued)
    controller.tick(a=50)
    assert controller.state.schedules["a"].plans == (SPEC_8,)


def test_advisory_mode_carries_out_a_pin_and_takes_it_back():
    controller = Controller(advisory=True)
    controller.call("a")
    controller.pin("a", SPEC_8, 0.0, ttl_s=5.0)
    assert not controller.tick(1.0, a=2)["a"].advisory
    assert controller.state.schedules["a"].plans == (SPEC_8,)
    assert controller.tick(5.0, a=2)["a"].advisory
    assert controller.state.schedules["a"].plans == START.plans


def test_without_signals_a_replica_holds_and_says_so():
    controller = Controller(hold_s=20.0)
    controller.call("a")
    controller.tick(0.0, a=2)
    controller.call("a", 50.0)
    assert controller.tick(10.0)["a"].reason is Reason.HOLD_MISSING
    assert controller.tick(21.0)["a"].reason is Reason.SAFE_STALE


def test_a_silent_replica_is_forgotten_and_may_come_back():
    controller = Controller()
    controller.call("a", 0.0)
    controller.call("b", 0.0)
    controller.call("b", 100.0)
    assert set(controller.tick(100.0, a=1, b=1)) == {"b"}
    controller.call("a", 101.0)
    assert set(controller.tick(101.0, a=1, b=1)) == {"a", "b"}
    assert set(forget(controller.state, "a").replicas) == {"b"}


def test_signals_of_replicas_that_never_called_are_ignored():
    controller = Controller()
    controller.call("a")
    assert set(controller.tick(a=1, ghost=1)) == {"a"}


def test_history_merges_repeated_holds_and_is_bounded():
    controller = Controller()
    controller.call("a")
    for now in range(50):
        controller.call("a", float(now))
        controller.tick(float(now), a=2)
    newest, oldest = explain(controller.state, "a")
    assert (oldest.decision.reason, oldest.count) == (Reason.INITIAL, 1)
    assert (newest.decision.reason, newest.count, newest.until_s) == (Reason.HOLD_STEADY, 49, 49.0)
    for now in range(50, 50 + 2 * HISTORY_LENGTH):
        controller.call("a", float(now))
        controller.tick(float(now), a=50 if now % 2 else 2)
    history = explain(controller.state, "a")
    assert len(history) == HISTORY_LENGTH
    assert history[0].decision.time_s > history[-1].decision.time_s
    json.dumps([entry.decision.to_dict() for entry in history], allow_nan=False)


def test_a_tick_leaves_the_state_it_was_given_alone():
    controller = Controller()
    controller.call("a")
    before = controller.state
    controller.tick(a=2)
    assert before.schedules == {}
    assert before.replicas["a"].history == ()

"""Run with: pytest tests/policies/test_base.py"""

import math
import pickle

import pytest

from policies.base import PolicyNotFound, load_policy
from policies.decisions import Decision, Reading, Reason, Signals
from policies.static import Static
from policies.threshold import Threshold
from policies.vocabulary import AR, Band, Mode, Plan, Schedule


class Wish:
    """Somebody's own policy."""

    needs = ()

    def decide(self, signals, state, now):
        return Decision(Schedule.pinned(AR), Reason.POLICY), state


def test_built_in_policies_load_by_name():
    assert isinstance(load_policy("threshold"), Threshold)
    static = load_policy("static", {"plan": "self_speculation/4"})
    decision, _ = static.decide(Signals(), None, 0.0)
    assert decision.reason is Reason.STATIC
    assert decision.schedule.plans == (Plan.parse("self_speculation/4"),)


def test_own_policy_loads_by_module_and_class():
    assert isinstance(load_policy("policies.static:Static"), Static)


@pytest.mark.parametrize("name", ["thresold", "no.such.module:Class", "policies.static:Nope", ":X"])
def test_unknown_policy_error_lists_the_names(name):
    with pytest.raises(PolicyNotFound, match=r"static, threshold"):
        load_policy(name)


def test_wrong_option_is_named():
    with pytest.raises(ValueError, match="blocks"):
        load_policy("static", {"blocks": 3})


def test_a_class_that_is_no_policy_is_refused():
    with pytest.raises(ValueError, match="decide"):
        load_policy("fractions:Fraction")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0])
def test_what_is_no_measurement_reads_as_missing(value):
    assert Reading(value, 0.0).within(10.0) is None


def test_a_reading_is_known_only_while_it_is_young():
    assert Reading(3.0, 2.0).within(2.0) == 3.0
    assert Reading(3.0, 2.1).within(2.0) is None
    assert Reading(3.0, None).within(2.0) is None
    assert Reading(0.0, 0.0).within(1.0) == 0.0


def test_a_plan_is_the_same_key_however_it_was_made():
    plan = Plan(Mode.DIFFUSION, 8, 0.7)
    made = [
        Plan("diffusion", 8, 0.7),
        Plan.parse("diffusion/8@0.7"),
        pickle.loads(pickle.dumps(plan)),
    ]
    assert {plan, *made} == {plan}
    assert all(other.mode is Mode.DIFFUSION for other in made)
    assert str(plan) == f"{plan}" == "diffusion/8@0.7"


@pytest.mark.parametrize(
    "fields", [("ar", 8), ("diffusion", 5), ("diffusion", 8, 0.0), ("ar", 1, 0.5)]
)
def test_a_plan_that_no_mode_has_is_refused(fields):
    with pytest.raises(ValueError, match=r"block length|threshold"):
        Plan(*fields)


def test_map_plans_merges_neighbours_that_become_equal():
    schedule = Schedule((Band(2, Plan.parse("diffusion/8")), Band(4, AR), Band(None, AR)))
    assert schedule.map_plans(lambda _: AR).bands == (Band(None, AR),)


def test_map_plans_keeps_a_schedule_it_does_not_change():
    schedule = Schedule.pinned(AR)
    assert schedule.map_plans(lambda plan: plan) is schedule


def test_decision_is_json_safe():
    import json

    decision = Decision(
        Schedule.pinned(AR), Reason.POLICY, predicted={AR: 3.0, Plan.parse("diffusion/4"): math.nan}
    )
    fields = json.loads(json.dumps(decision.to_dict(), allow_nan=False))
    assert fields["predicted"] == {"ar": 3.0}
    assert Schedule.from_dict(fields["schedule"]) == decision.schedule

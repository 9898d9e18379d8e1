"""Run with: pytest tests/policies/test_base.py"""

import gc
import math
import pickle
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

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


def test_equal_plans_are_one_object_however_they_are_made():
    plan = Plan(Mode.DIFFUSION, 8, 0.7)
    assert Plan.parse("diffusion/8@0.7") is plan
    assert pickle.loads(pickle.dumps(plan)) is plan
    assert replace(plan, threshold=0.6) is not plan
    assert replace(plan, threshold=0.6) is Plan("diffusion", 8, 0.6)


def test_threads_that_make_a_plan_at_once_get_the_same():
    thresholds = [0.5 + i / 10_000 for i in range(400)]

    def made(_: int) -> list[Plan]:
        return [Plan(Mode.DIFFUSION, 8, threshold) for threshold in thresholds]

    with ThreadPoolExecutor(8) as pool:
        by_thread = list(pool.map(made, range(8)))
    assert all(len(set(plans)) == 1 for plans in zip(*by_thread, strict=True))


def test_a_plan_that_nobody_uses_is_not_kept():
    kept = weakref.ref(Plan(Mode.DIFFUSION, 8, 0.123))
    gc.collect()
    assert kept() is None


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

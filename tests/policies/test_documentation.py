"""docs/policies.md says what is so. Run with: pytest tests/policies/test_documentation.py"""

import inspect
import re
from pathlib import Path

import pytest

from policies.base import BUILT_IN, load_policy
from policies.decisions import Reading, Reason, Signals
from policies.guard import Guard, Rules
from policies.predictive import Predictive
from policies.vocabulary import AR, Plan
from replicas import worth_rule

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
EXAMPLE = "docs.examples.calm:Calm"


def test_the_page_shows_the_example_as_it_is():
    assert (ROOT / "docs" / "examples" / "calm.py").read_text(encoding="utf-8") in PAGE
    assert f"policy: {EXAMPLE}" in PAGE


def test_the_example_runs_inside_the_guard():
    guard = Guard(load_policy(EXAMPLE, {"block_length": 8}), Rules(dwell_s=0.0))
    waiting = [0, 0, 3, 0, 0, None, 0, 0]
    state, plans, reasons = None, [], []
    for tick, count in enumerate(waiting):
        signals = Signals("r1", decoding=Reading(4.0, 0.1), waiting=Reading(count, 0.1))
        decision, state = guard.decide(signals, state, 4.0 * tick)
        plans.append(decision.plan)
        reasons.append(decision.reason)
    long = Plan.parse("self_speculation/8")
    assert plans == [long, long, AR, AR, AR, AR, long, long]
    assert reasons[2:6] == [
        Reason.LOAD_ROSE,
        Reason.HOLD_DWELL,
        Reason.HOLD_DWELL,
        Reason.HOLD_MISSING,
    ]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_policy_is_on_the_page(name):
    assert f"`{name}`" in PAGE


def test_the_options_of_predictive_are_on_the_page_with_their_defaults():
    rows = dict(re.findall(r"^\| `(\w+)` \| `([\w.]+)` \|", PAGE, re.MULTILINE))
    parameters = inspect.signature(Predictive).parameters.values()
    assert rows == {p.name: str(p.default).lower() for p in parameters if p.name != "tpot_target_s"}


def test_the_figures_of_the_safety_rule_are_those_of_the_code():
    text = " ".join(PAGE.split())
    assert f"{worth_rule.DISTRUST_STEPS} steps in a row" in text
    assert f"less than {worth_rule.DISTRUST_BELOW} of what was predicted" in text
    assert f"{worth_rule.DISTRUST_BELOW_AR} of what AR would" in text
    assert f"AR for {worth_rule.DISTRUST_S:g} s" in text

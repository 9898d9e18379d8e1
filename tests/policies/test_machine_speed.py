"""A machine that becomes slower is told from a plan that is slow."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from policies.cost_model import CostModel
from policies.machine_speed import MachineSpeed
from policies.observation import StepObservation
from policies.step_time import shipped_profile
from policies.vocabulary import AR, Mode, Plan
from policies.worth import Worth

SPEC_8, SPEC_16 = (Plan(Mode.SELF_SPECULATION, n) for n in (8, 16))
PLANS = (AR, SPEC_8, SPEC_16)
WORTH = Worth(plans=PLANS, profile=shipped_profile("h100"))


def run(model: CostModel, plan: Plan, steps: int, slower: float, at: float, noise: float = 0.05):
    """Steps of 8 sequences on a machine `slower` times slower than its profile."""
    scatter = random.Random(int(at))
    for _ in range(steps):
        seconds = model.worth.profile.step_s(plan, 8, 4096) * slower
        seconds *= 1.0 + scatter.uniform(-noise, noise)
        at += seconds
        yields = [1] * 8 if plan == AR else [3] * 8
        model.observe(StepObservation(plan, 8, 4096, seconds, yields), at)
    return at


def ratio(model: CostModel, plan: Plan, other: Plan) -> float:
    return model.correction(plan, 8) / model.correction(other, 8)


@pytest.mark.parametrize("slower", [3.0, 1 / 3, 20.0])
def test_a_slower_machine_does_not_speak_against_the_plan_in_use(slower):
    model = CostModel(WORTH)
    at = 0.0
    for plan in PLANS:
        at = run(model, plan, 40, 1.0, at)
    run(model, SPEC_8, 200, slower, at)
    assert model.correction(SPEC_8, 8) == pytest.approx(slower, rel=0.15)
    assert ratio(model, SPEC_8, SPEC_16) == pytest.approx(1.0, rel=0.15)


def test_a_plan_that_is_slow_by_itself_is_charged_with_it():
    model = CostModel(WORTH)
    at = 0.0
    for _ in range(3):
        at = run(model, SPEC_8, 40, 2.0, at)
        at = run(model, SPEC_16, 40, 1.0, at)
    assert ratio(model, SPEC_8, SPEC_16) == pytest.approx(2.0, rel=0.15)


def test_noise_is_no_change_of_speed():
    speed, scatter = MachineSpeed(), random.Random(1)
    for _ in range(2000):
        speed.relative((SPEC_8, 6), scatter.uniform(0.85, 1.15), 0.0)
        assert speed.factor == pytest.approx(1.0, abs=0.1)


def test_without_learning_the_profile_is_used_as_it_is():
    model = CostModel(replace(WORTH, learns=False))
    run(model, SPEC_8, 100, 3.0, 0.0)
    assert model.correction(SPEC_8, 8) == 1.0

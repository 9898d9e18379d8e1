"""A machine and traffic whose truth is known, for tests of what learns them. Time is simulated."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from policies.acceptance import POSITIONS
from policies.observation import StepObservation
from policies.step_time import Profile, shipped_profile
from policies.vocabulary import AR, Mode, Plan, Schedule, all_plans
from policies.worth import Worth
from replicas.governor import Governor

H100 = shipped_profile("h100")
EXACT = tuple(plan for plan in all_plans() if plan.is_exact)
WORTH = Worth(EXACT, replace(H100, switch_s=0.0), chances=(0.8,) * POSITIONS)
"""Of traffic whose requests are all alike, on a machine where changes are free."""
QUIET = replace(WORTH, probe_share=0.0)
SPEC_4, SPEC_8, SPEC_16, SPEC_32 = (Plan.parse(f"self_speculation/{n}") for n in (4, 8, 16, 32))
DIFFUSION_8 = Plan.parse("diffusion/8")


def governor_of(worth: Worth = WORTH, now: float = 0.0, **fields: Any) -> Governor:
    """A replica that has just taken this worth and begins in AR."""
    return Governor(Schedule.pinned(AR, worth=worth, **fields), now)


@dataclass
class Machine:
    """Answers what a step does. `chance`: of each drafted position to be accepted, at a time.
    `factors`: true over profiled step time, by plan."""

    profile: Profile = H100
    chance: Callable[[float], float] = lambda now: 0.8
    factors: dict[Plan, float] = field(default_factory=dict)
    switch_s: float = 0.0
    """What a change of plan costs."""
    seed: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def step(self, plan: Plan, sequences: int, context: int, now: float) -> StepObservation:
        seconds = self.profile.step_s(plan, sequences, context) * self.factors.get(plan, 1.0)
        yields = [self._kept(plan, self.chance(now)) for _ in range(sequences)]
        return StepObservation(plan, sequences, context, seconds, yields)

    def throughput(self, plan: Plan, sequences: int, context: int, chance: float) -> float:
        """True tokens/s."""
        length = plan.block_length
        tokens = sum(chance**i for i in range(length)) if plan.mode is not Mode.AR else 1.0
        seconds = self.profile.step_s(plan, sequences, context) * self.factors.get(plan, 1.0)
        return sequences * tokens / seconds

    def best(self, sequences: int, context: int, chance: float) -> Plan:
        return max(EXACT, key=lambda plan: self.throughput(plan, sequences, context, chance))

    def _kept(self, plan: Plan, chance: float) -> int:
        if plan.mode is not Mode.SELF_SPECULATION:
            return 1
        kept = 1
        while kept < plan.block_length and self._random.random() < chance:
            kept += 1
        return kept


@dataclass
class Step:
    at: float
    picked: Plan
    stayed: Plan
    """The governor's plan; `picked` differs from it in a probe."""
    seconds: float
    tokens: int


def simulate(
    governor: Governor,
    machine: Machine,
    seconds: float,
    decoding: Callable[[float], int] | int = 16,
    length: int = 512,
    waiting: int = 0,
    now: float = 0.0,
) -> list[Step]:
    """Steps of one replica from `now` on; `length` is the context of each sequence."""
    steps, until = [], now + seconds
    while now < until:
        batch = decoding if isinstance(decoding, int) else decoding(now)
        before = governor.plan
        plan = governor.pick(batch, now, batch * length, waiting)
        step = machine.step(plan, batch, batch * length, now)
        if governor.plan != before:
            step = step._replace(seconds=step.seconds + machine.switch_s)
        steps.append(Step(now, plan, governor.plan, step.seconds, step.tokens))
        now += step.seconds
        governor.observe(step, now)
    return steps


def share(steps: list[Step], plan: Plan) -> float:
    """Of the time, in which this was the plan to be in."""
    total = sum(step.seconds for step in steps)
    return sum(step.seconds for step in steps if step.stayed == plan) / total

"""A machine and traffic whose truth is known, for tests of what learns them. Time is simulated."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from policies.cost_model import StepObservation
from policies.step_time import Profile, shipped_profile
from policies.vocabulary import Mode, Plan, all_plans
from replicas.governor import Governor

H100 = shipped_profile("h100")
EXACT = tuple(plan for plan in all_plans() if plan.is_exact)
SPEC_4, SPEC_8, SPEC_16, SPEC_32 = (Plan.parse(f"self_speculation/{n}") for n in (4, 8, 16, 32))
DIFFUSION_8 = Plan.parse("diffusion/8")


def tiny_profile(**fields: object) -> Profile:
    """The H100's, changed."""
    return replace(H100, **fields)


@dataclass
class Machine:
    """Answers what a step does. `chance`: of each drafted position to be accepted, at a time.
    `factors`: true over profiled step time, by plan."""

    profile: Profile = H100
    chance: Callable[[float], float] = lambda now: 0.8
    factors: dict[Plan, float] = field(default_factory=dict)
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
        plan = governor.pick(batch, now, batch * length, waiting)
        step = machine.step(plan, batch, batch * length, now)
        steps.append(Step(now, plan, governor.plan, step.seconds, step.tokens))
        now += step.seconds
        governor.observe(step, now)
    return steps

"""What changing the plan costs, apart from what the plans themselves cost.

Three closed loops over the same requests: plan A always, plan B always, and A and B in turn, with a
new schedule issued before every step (inside its time). They advance a few steps at a time, in
turn, so that drift of the machine hits all three alike. Only steps without prefill count, and
requests run on past their end of sequence, so that there are enough of those at any concurrency:
what a step accepts does not change its work. A step of plan A does the same work whichever plan the
step before it had, so

    cost = (median A step while alternating + median B step while alternating)
           / (median A step when fixed + median B step when fixed) - 1

holds nothing but the change: issuing and reading the schedule, the governor, and caches that the
other plan's shapes have displaced. In the fixed loops the schedule is never touched.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field, replace

from benchmarks.closed_loop import ClosedLoop, limits_for, pin
from benchmarks.workload import Workload
from policies.vocabulary import Plan
from replicas.torch_engine.engine import TorchEngine
from replicas.torch_engine.model import Model

_MAX_TOKENS = 448
_SLICE = 8
"""Steps a loop advances before the next one does; even, so that A and B alternate fully."""


@dataclass(frozen=True, slots=True)
class SwitchCost:
    """Median step times in seconds; `context` is the mean length of the sequences in tokens; `cost`
    is a share (0.02 is 2 %)."""

    first: Plan
    second: Plan
    concurrency: int
    fixed: tuple[float, float]
    alternating: tuple[float, float]
    context: int
    steps: int

    @property
    def cost(self) -> float:
        return sum(self.alternating) / sum(self.fixed) - 1


@dataclass(slots=True)
class _Alternation:
    """Issues a new schedule before every step: the two plans in turn."""

    engine: TorchEngine
    plans: tuple[Plan, Plan]
    count: int = 0

    def __call__(self) -> None:
        pin(self.engine, self.plans[self.count % 2])
        self.count += 1


@dataclass(slots=True)
class _Samples:
    fixed: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    alternating: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))


def switch_cost(
    model: Model, workload: Workload, plans: tuple[Plan, Plan], concurrency: int, seconds: float
) -> SwitchCost:
    """Over `seconds` of the three loops, after one slice each that is not counted."""
    endless = replace(workload, max_tokens=_MAX_TOKENS, ignore_eos=True)
    engines = [TorchEngine(model, None, limits_for([concurrency])) for _ in range(3)]
    pin(engines[0], plans[0])
    pin(engines[1], plans[1])
    alternation = _Alternation(engines[2], plans)
    hooks = (None, None, alternation)
    loops = [ClosedLoop(e, endless, concurrency, h) for e, h in zip(engines, hooks, strict=True)]
    samples = _Samples()
    for which in range(3):
        _advance(loops[which], which, alternation, _Samples())
    contexts: list[float] = []
    turn, started = 0, time.perf_counter()
    while turn == 0 or time.perf_counter() - started < seconds:
        for which in range(3):
            loop = (which + turn) % 3
            _advance(loops[loop], loop, alternation, samples)
            contexts.append(engines[loop].report().context_tokens / concurrency)
        turn += 1
    return SwitchCost(
        first=plans[0],
        second=plans[1],
        concurrency=concurrency,
        fixed=_medians(samples.fixed),
        alternating=_medians(samples.alternating),
        context=round(statistics.mean(contexts)),
        steps=sum(map(len, samples.alternating)),
    )


def _advance(loop: ClosedLoop, which: int, alternation: _Alternation, samples: _Samples) -> None:
    for _ in range(_SLICE):
        plan = alternation.count % 2
        taken = loop.steps(1).decode_steps
        if which == 2:
            samples.alternating[plan].extend(taken)
        else:
            samples.fixed[which].extend(taken)


def _medians(samples: tuple[list[float], list[float]]) -> tuple[float, float]:
    return (statistics.median(samples[0]), statistics.median(samples[1]))

"""Measures how long steps take on this machine: every plan, at many loads, within a budget.

Plans take turns at one load, so that drift of a busy machine hits all alike; the median of a plan's
turns counts. A turn is two steps: the first one after a change of plan tells what the change costs,
the second what the plan costs. Diffusion finishes the block it began before another plan may run,
so its plans run one after the other at the end of a visit, on sequences of their own.

Loads come coarse first: where the budget ends, the fitted curve carries on. What a step accepts
does not change its work, so prompts are random and sequences run past their end.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from policies.fit import Sample, fit_curve
from policies.step_time import forwards_per_step
from policies.vocabulary import AR, Plan, Schedule, all_plans
from replicas.engine import Delta, EngineReport, Request, SamplingParams

FEWEST_TURNS, MOST_TURNS = 3, 6
TURN_SHARE = 0.01  # of the budget, after which a plan at one load has had turns enough
VISIT_SHARE = 0.12  # of the budget, above which a plan is left out at one load
CONTEXTS = (64, 512, 4096, 32768)
ROOM = 256  # tokens that sequences may grow by during a visit
FILL_STEPS_SPARE = 64
MAD_TO_DEVIATION = 1.48
MEDIAN_ERROR = 1.25  # standard error of a median over that of a mean

Progress = Callable[[float, str], None]


class Core(Protocol):
    """What is measured: `TorchEngine`, or something that behaves like it."""

    def submit(self, request: Request) -> None: ...
    def cancel(self, request_id: str) -> Delta | None: ...
    def set_schedule(self, schedule: Schedule) -> None: ...
    def step(self) -> list[Delta]: ...
    def report(self) -> EngineReport: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a core takes: sequences, context and step length in tokens, and usable token ids."""

    max_sequences: int
    max_context_tokens: int
    max_step_tokens: int
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Load:
    """Sequences that decode together, and the prompt tokens of each."""

    sequences: int
    length: int

    @property
    def context_tokens(self) -> int:
        return self.sequences * self.length


@dataclass(frozen=True, slots=True)
class Measured:
    """`switch_s` is the median excess of a step after a change of plan. `largest_positions` bounds
    the shapes that were run: sequences times block length."""

    samples: tuple[Sample, ...]
    switch_s: float
    largest_positions: int


def measure(
    core: Core,
    bounds: Bounds,
    budget_s: float,
    *,
    plans: Sequence[Plan] = all_plans(),
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Measured:
    """Measures for about `budget_s` seconds; leaves the core without requests.

    Raises:
        ValueError: the core holds not even one short sequence.
    """
    return _Survey(core, bounds, budget_s, tuple(plans), progress, clock).run()


def loads(bounds: Bounds) -> Iterator[Load]:
    """Coarse first: batches in steps of four at ever longer contexts, then those between."""
    longest = bounds.max_context_tokens - ROOM
    lengths = [length for length in CONTEXTS if length <= longest] or [max(1, longest // 2)]
    if longest >= 2 * lengths[-1]:
        lengths.append(longest)
    powers = [2**i for i in range(1 + int(math.log2(bounds.max_sequences)))]
    between = sorted({*powers[1::2], bounds.max_sequences} - set(powers[::2]))
    for batch in (powers[::2], between):
        yield from (Load(n, length) for length in lengths for n in batch)


class _Meter:
    """A core at one load: which plan it runs, and what a step of that took."""

    def __init__(self, core: Core, bounds: Bounds) -> None:
        self._core, self._bounds = core, bounds
        self._random = random.Random(0)
        self._names = (f"calibration-{i}" for i in itertools.count())
        self._requests: list[str] = []
        self._version = core.report().schedule.version
        self.plan = AR

    def fill(self, load: Load) -> bool:
        """Replaces what decodes; False if the core cannot hold so much."""
        self.empty()
        self.pin(AR)
        sampling = SamplingParams(
            max_tokens=self._bounds.max_context_tokens - load.length, ignore_eos=True
        )
        for _ in range(load.sequences):
            name = next(self._names)
            prompt = tuple(self._random.choices(self._bounds.token_ids, k=load.length))
            self._core.submit(Request(name, prompt, sampling))
            self._requests.append(name)
        steps = load.context_tokens // self._bounds.max_step_tokens + FILL_STEPS_SPARE
        for _ in range(steps):
            self._core.step()
            report = self._core.report()
            if report.decoding == load.sequences:
                return True
            if report.waiting:
                break  # what has not been admitted by now does not fit
        self.empty()
        return False

    def empty(self) -> None:
        for name in self._requests:
            self._core.cancel(name)
        self._requests.clear()

    def pin(self, plan: Plan) -> None:
        self._version += 1
        self._core.set_schedule(Schedule.pinned(plan, version=self._version))
        self.plan = plan

    def step(self) -> tuple[float, int] | None:
        """Seconds of a step and tokens cached before it; None unless all sequences ran the plan."""
        before = self._core.report()
        self._core.step()
        old, new = before.plans[self.plan], self._core.report().plans[self.plan]
        if new.sequence_steps - old.sequence_steps != len(self._requests):
            return None
        return new.seconds - old.seconds, before.context_tokens


class _Survey:
    def __init__(
        self,
        core: Core,
        bounds: Bounds,
        budget_s: float,
        plans: tuple[Plan, ...],
        progress: Progress | None,
        clock: Callable[[], float],
    ) -> None:
        self._meter, self._bounds, self._plans = _Meter(core, bounds), bounds, plans
        self._progress, self._clock = progress or (lambda share, text: None), clock
        self._budget_s, self._began = budget_s, clock()
        self._samples: list[Sample] = []
        self._excess: list[float] = []
        self._refused: set[Load] = set()

    def run(self) -> Measured:
        try:
            while self._pass():
                pass
        finally:
            self._meter.empty()
        if len(self._samples) < 2:
            raise ValueError(
                f"the engine did not keep {len(self._plans)} plans decoding at any load within "
                f"{self._budget_s:g} s; allow more time or a larger KV cache"
            )
        switch_s = statistics.median(self._excess) if self._excess else 0.0
        largest = max(s.sequences * s.plan.block_length for s in self._samples)
        return Measured(tuple(self._samples), max(0.0, switch_s), largest)

    @property
    def _left_s(self) -> float:
        return self._budget_s - (self._clock() - self._began)

    def _pass(self) -> bool:
        """Every load that still fits into the budget, once; False when none does."""
        visits = 0
        for load in loads(self._bounds):
            plans = self._affordable(load)
            if load in self._refused or not plans:
                continue
            self._progress(1 - self._left_s / self._budget_s, f"{load.sequences} x {load.length}")
            visits += self._visit(load, plans)
        self._progress(min(1.0, 1 - self._left_s / self._budget_s), "")
        return visits > 0

    def _affordable(self, load: Load) -> list[Plan]:
        """Plans that fit into what is left at this load, and are not too slow for one."""
        if not self._samples:
            return list(self._plans)
        if self._left_s <= 0:
            return []
        curve = fit_curve(self._samples, exponents=(1.0,))  # near enough, and quick
        steps = 1 + 2 * FEWEST_TURNS
        costs = {
            plan: forwards_per_step(plan)
            * steps
            * curve.forward_s(load.sequences, plan.block_length, load.context_tokens)
            for plan in self._plans
        }
        costs = {p: cost for p, cost in costs.items() if cost <= VISIT_SHARE * self._budget_s}
        fills = 1 + sum(not plan.is_exact for plan in costs)
        total_s = sum(costs.values()) + fills * load.sequences * curve.prefill_s(load.length)
        return list(costs) if total_s <= self._left_s else []

    def _visit(self, load: Load, plans: Sequence[Plan]) -> bool:
        """Whether anything was measured."""
        turns = _Turns(self._meter, load, self._clock, TURN_SHARE * self._budget_s)
        exact = [plan for plan in plans if plan.is_exact]
        if not turns.alternate(exact):
            self._refused.add(load)
            return False
        for plan in plans:
            if not plan.is_exact and self._left_s > 0:
                turns.stay(plan)
        self._samples.extend(turns.samples())
        self._excess.extend(turns.excess)
        return True


class _Turns:
    """What the plans' turns at one load came to."""

    def __init__(
        self, meter: _Meter, load: Load, clock: Callable[[], float], enough_s: float
    ) -> None:
        self._meter, self._load, self._clock, self._enough_s = meter, load, clock, enough_s
        self._seen: dict[Plan, list[tuple[float, int]]] = defaultdict(list)
        self._spent_s: dict[Plan, float] = defaultdict(float)
        self.excess: list[float] = []

    def alternate(self, plans: Sequence[Plan]) -> bool:
        """Turns of all plans, round after round; False if the load cannot be held."""
        if not self._meter.fill(self._load):
            return False
        for plan in plans:  # memory and graphs that a shape needs are taken at its first step
            self._meter.pin(plan)
            self._meter.step()
        for _ in range(MOST_TURNS):
            waiting = [plan for plan in plans if not self._has_enough(plan)]
            for plan in waiting:
                if not self._turn(plan) and not self._meter.fill(self._load):
                    return False
        return all(self._seen[plan] for plan in plans)

    def stay(self, plan: Plan) -> None:
        """Steps of one plan, one after the other, on new sequences."""
        if not self._meter.fill(self._load):
            return
        self._meter.pin(plan)
        self._meter.step()
        for _ in range(MOST_TURNS):
            if self._has_enough(plan) or not self._take(plan):
                return

    def samples(self) -> Iterator[Sample]:
        for plan, seen in self._seen.items():
            times = [seconds for seconds, _ in seen]
            median = statistics.median(times)
            deviation = MAD_TO_DEVIATION * statistics.median(abs(t - median) for t in times)
            error = MEDIAN_ERROR * deviation / median / math.sqrt(len(times))
            context = statistics.mean(context for _, context in seen)
            yield Sample(plan, self._load.sequences, context, median, error)

    def _has_enough(self, plan: Plan) -> bool:
        is_long = self._spent_s[plan] >= self._enough_s
        return is_long and len(self._seen[plan]) >= FEWEST_TURNS

    def _turn(self, plan: Plan) -> bool:
        """A step right after the change, and one more; False if sequences had ended."""
        self._meter.pin(plan)
        changed = self._timed(plan)
        if changed is None or not self._take(plan):
            return False
        self.excess.append(changed[0] - self._seen[plan][-1][0])
        return True

    def _take(self, plan: Plan) -> bool:
        step = self._timed(plan)
        if step is not None:
            self._seen[plan].append(step)
        return step is not None

    def _timed(self, plan: Plan) -> tuple[float, int] | None:
        began = self._clock()
        step = self._meter.step()
        self._spent_s[plan] += self._clock() - began
        return step

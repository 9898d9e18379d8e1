"""Measures how long steps take on this machine: every plan, at many loads, within a budget.

Plans take turns at one load, so that drift of a busy machine hits all alike; the median of a plan's
turns counts. A turn is two steps: the first one after a change of plan tells what the change costs,
the second what the plan costs. Diffusion finishes the block it began before another plan may run,
so its plans run one after the other at the end of a visit, on sequences of their own.

Loads come coarse first: where the budget ends, the fitted curve carries on. What a step accepts
does not change its work, so prompts are random and sequences run past their end.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from policies.fit import Sample, fit_curve
from policies.step_time import Curve, forwards_per_step
from policies.vocabulary import Plan, all_plans
from replicas.meter import Bounds, Core, Load, Meter, loads

FEWEST_TURNS, MOST_TURNS = 3, 6
MOST_PASSES = 4  # over all loads: drift between them is part of what the fit averages out
TURN_SHARE = 0.01  # of the budget, after which a plan at one load has had turns enough
STEPS_A_PLAN = 1 + 2 * FEWEST_TURNS  # at one load: one to warm up, and two in each turn
PLAN_SHARE = 0.12  # of the budget, above which a plan is left out at one load
LOAD_SHARE = 0.3  # of the budget, which one load may take
MAD_TO_DEVIATION = 1.48
MEDIAN_ERROR = 1.25  # standard error of a median over that of a mean

Progress = Callable[[float, str], None]


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
    timer: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Measures for about `budget_s` seconds of `clock`; leaves the core without requests. `timer`
    is what steps are timed with.

    Raises:
        ValueError: the core holds not even one short sequence.
    """
    meter = Meter(core, bounds, timer)
    return _Survey(meter, bounds, budget_s, tuple(plans), progress, clock).run()


class _Survey:
    def __init__(
        self,
        meter: Meter,
        bounds: Bounds,
        budget_s: float,
        plans: tuple[Plan, ...],
        progress: Progress | None,
        clock: Callable[[], float],
    ) -> None:
        self._meter, self._bounds, self._plans = meter, bounds, plans
        self._progress, self._clock = progress or (lambda share, text: None), clock
        self._budget_s, self._began = budget_s, clock()
        self._samples: list[Sample] = []
        self._excess: list[float] = []
        self._refused: set[Load] = set()
        self._curve: Curve | None = None
        self._samples_in_curve = 0

    def run(self) -> Measured:
        try:
            for _ in range(MOST_PASSES):
                if not self._pass():
                    break
        finally:
            self._meter.empty()
        self._progress(1.0, "")
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
            done = min(1.0, 1.0 - self._left_s / self._budget_s)
            self._progress(done, f"{load.sequences} x {load.length} tokens")
            visits += self._visit(load, plans)
        return visits > 0

    def _affordable(self, load: Load) -> list[Plan]:
        """Plans that fit into this load's part of what is left, the cheapest first."""
        if not self._samples:
            return list(self._plans)
        left_s = min(self._left_s, LOAD_SHARE * self._budget_s)
        curve = self._rough_curve()
        fill_s = load.sequences * curve.prefill_s(load.length)
        left_s -= fill_s
        plans = []
        for plan in sorted(self._plans, key=lambda plan: (not plan.is_exact, plan.block_length)):
            forward_s = curve.forward_s(load.sequences, plan.block_length, load.context_tokens)
            cost_s = STEPS_A_PLAN * forwards_per_step(plan) * forward_s
            if cost_s > PLAN_SHARE * self._budget_s:
                continue
            left_s -= cost_s + (0.0 if plan.is_exact else fill_s)
            if left_s < 0:
                break
            plans.append(plan)
        return plans

    def _rough_curve(self) -> Curve:
        """Near enough to plan with. Fitting takes time as well, so old curves serve for a while."""
        if self._curve is None or len(self._samples) > 1.5 * self._samples_in_curve:
            self._curve = fit_curve(self._samples, exponents=(1.0,))
            self._samples_in_curve = len(self._samples)
        return self._curve

    def _visit(self, load: Load, plans: Sequence[Plan]) -> bool:
        """Whether anything was measured."""
        ends_at = self._began + self._budget_s
        turns = _Turns(self._meter, load, self._clock, TURN_SHARE * self._budget_s, ends_at)
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
        self,
        meter: Meter,
        load: Load,
        clock: Callable[[], float],
        enough_s: float,
        ends_at: float,
    ) -> None:
        self._meter, self._load, self._clock = meter, load, clock
        self._enough_s, self._ends_at = enough_s, ends_at
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
            context = statistics.median(context for _, context in seen)
            yield Sample(plan, self._load.sequences, context, median, error)

    def _has_enough(self, plan: Plan) -> bool:
        is_long = self._spent_s[plan] >= self._enough_s or self._clock() >= self._ends_at
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

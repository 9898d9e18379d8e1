"""Tells a machine that has become slower from a plan that is slow.

A neighbour on the same cores, a lower clock: every plan takes longer, and if the plan in use were
charged with it alone, all others would look better than they are. What a plan's step takes against
its profile changes for the plan's own reasons when the plan or the batch changes, and for the
machine's while both stay the same. So a drift under the same plan and batch is the machine's, and
what is left is the plan's. Small drifts are left where they are: they are noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from policies.vocabulary import Plan

DRIFT = 0.18  # logarithm of the factor that counts: a fifth slower or faster
BLEND = 0.2  # share of a new step in the level
LARGEST_MOVE = 0.5  # of a step's logarithm that counts: more is a hiccup until it is repeated
FIRST_STEPS = 5  # that tell what is usual, where nothing is known
MOST = 64.0  # slower or faster than this is no machine that still serves

Case = tuple[Plan, int]
"""A plan, and a bucket of batch sizes."""


@dataclass(slots=True)
class MachineSpeed:
    """`factor` on every profiled step time."""

    factor: float = 1.0
    case: Case | None = None
    _usual: float | None = None
    _level: float = 0.0
    _first: list[float] = field(default_factory=list)

    def enter(self, case: Case, usual: float | None) -> None:
        """Another plan or batch runs from now on. `usual`: measured over profiled step time as this
        case has shown it so far, None where that is not known."""
        self.case, self._first = case, []
        self._usual = None if usual is None else math.log(usual)
        self._level = self._usual or 0.0

    def relative(self, ratio: float, steps: int) -> float:
        """What of `ratio`, measured over profiled step time, is the plan's own."""
        seen = math.log(ratio / self.factor)
        if self._usual is None:
            self._first += [seen] * min(steps, FIRST_STEPS)
            if len(self._first) >= FIRST_STEPS:  # the median: the first one may be a hiccup
                self._usual = self._level = sorted(self._first)[len(self._first) // 2]
            return ratio / self.factor
        step = max(-LARGEST_MOVE, min(LARGEST_MOVE, seen - self._level))
        self._level += (1.0 - (1.0 - BLEND) ** steps) * step
        if abs(drift := self._level - self._usual) > DRIFT:
            self.factor = min(MOST, max(1.0 / MOST, self.factor * math.exp(drift)))
            self._level = self._usual
        return ratio / self.factor

"""Tells a machine that has become slower from a plan that is slow.

A neighbour on the same cores, a lower clock, more requests to talk to: every plan takes longer, and
if the plan in use were charged with it alone, all others would look better than they are. What a
plan's step takes against its profile changes for the plan's own reasons when the plan or the load
changes, and for the machine's while both stay the same. So right after a change a step speaks for
its plan, and later on it mostly speaks for the machine.

What is common to all plans never decides between them, so the factor may follow noise; but what it
takes for the machine's is missing from the plan in use, so it follows slowly, and at once only what
noise does not explain.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from policies.vocabulary import Plan

DRIFT = 0.18  # logarithm of a change that is followed at once: a fifth slower or faster
DEVIATIONS = 8.0  # of what noise alone does, which it has to exceed as well
FAST, SLOW = 0.2, 0.05  # share of a new step, to notice such a change, and in the factor
LARGEST_MOVE = 0.5  # of a step's logarithm that counts: more is a hiccup until it is repeated
RECENT = 3  # steps that tell how far it has moved at once
FIRST_STEPS = 5  # after a change of plan or batch, which speak for the plan
MOST = 64.0  # slower or faster than this is no machine that still serves

Case = tuple[Plan, int]
"""A plan, and a bucket of loads."""


@dataclass(slots=True)
class MachineSpeed:
    """`factor` on every profiled step time; `jumps` counts changes that were followed at once."""

    factor: float = 1.0
    jumps: int = 0
    _case: Case | None = None
    _steps: int = 0
    _drift: float = 0.0
    _last: float | None = None
    _variance: float = 0.0
    """Of a step's logarithm, from neighbours in time: a drift is no part of it."""
    _recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    @property
    def is_calm(self) -> bool:
        """Nothing speaks for a change under way."""
        return abs(self._drift) < DRIFT / 2.0

    def relative(self, case: Case, ratio: float, usual: float | None, steps: int = 1) -> float:
        """What of `ratio`, measured over profiled step time, is the plan's own.

        `usual`: the logarithm of what was the plan's own in this case so far, None where nothing
        is known of it.
        """
        if case != self._case:
            self._case, self._steps, self._drift, self._last = case, 0, 0.0, None
            self._recent.clear()
        self._steps += steps
        self._watch_noise(math.log(ratio), steps)
        if usual is not None and self._steps > FIRST_STEPS:
            self._follow(math.log(ratio / self.factor) - usual, steps)
        return ratio / self.factor

    def _follow(self, seen: float, steps: int) -> None:
        self._recent.append(seen)
        self._drift += _share(FAST, steps) * (clipped(seen) - self._drift)
        moved = _share(SLOW, steps) * clipped(seen)
        noise = math.sqrt(self._variance * FAST / (2.0 - FAST))
        if abs(self._drift) > max(DRIFT, DEVIATIONS * noise):
            moved = sorted(self._recent)[len(self._recent) // 2]
            self._drift, self.jumps = 0.0, self.jumps + 1
            self._recent.clear()
        self.factor = max(1.0 / MOST, min(MOST, self.factor * math.exp(moved)))

    def _watch_noise(self, seen: float, steps: int) -> None:
        if self._last is not None:
            square = clipped(seen - self._last) ** 2 / 2.0
            self._variance += _share(FAST, steps) * (square - self._variance)
        self._last = seen


def _share(of_one: float, steps: int) -> float:
    return 1.0 - (1.0 - of_one) ** steps


def clipped(move: float) -> float:
    """Of a logarithm. Whoever averages steps here has to clip alike, or their means drift apart."""
    return max(-LARGEST_MOVE, min(LARGEST_MOVE, move))

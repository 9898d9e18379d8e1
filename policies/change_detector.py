"""Notices that the traffic has changed: acceptance that keeps deviating from what was expected.

A two-sided Page-Hinkley test (Page, 1954) on how far the mean yield of a revision lies from the
expected one, in standard deviations of what rounds scatter: those of the revision. With few clients
these are of a request or two, and resemble each other more than they do the next request's. So what
they prove is often no more than who is there, which is worth to know while requests last. Where
these are over before it could be of use, it is what rounds of all requests are expected to scatter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import mul

from policies.acceptance import Yields

DRIFT = 0.75  # deviations that are let pass at each revision
ALARM = 5.0  # deviations, accumulated above the drift
SPREAD = 1.2
"""Standard deviation of a revision's mean yield over what independent rounds would have: rounds of
one request resemble each other."""
LEAST_VARIANCE = 0.25  # of a round's tokens, where nearly all drafts are accepted, or none


@dataclass(slots=True)
class ChangeDetector:
    """Invariant: both sums are at least 0, and 0 right after an alarm."""

    rose: float = 0.0
    fell: float = 0.0

    @property
    def is_suspicious(self) -> bool:
        """Whether it is half way to an alarm."""
        return max(self.rose, self.fell) >= ALARM / 2

    def update(
        self,
        rounds: Mapping[int, Sequence[float]],
        expected: Yields,
        *,
        are_short: bool = False,
    ) -> bool:
        """Whether `rounds` (by block length, counts by tokens kept) end the old regime.
        `are_short`: requests are over before what is learned of them could be of use."""
        deviation = _deviation(rounds, expected, are_short)
        if deviation is None:
            return False
        self.rose = max(0.0, self.rose + deviation - DRIFT)
        self.fell = max(0.0, self.fell - deviation - DRIFT)
        if max(self.rose, self.fell) < ALARM:
            return False
        self.rose = self.fell = 0.0
        return True


def _deviation(
    rounds: Mapping[int, Sequence[float]], expected: Yields, are_short: bool
) -> float | None:
    """Standard deviations between the mean yield of these rounds and the expected one."""
    count = total = square = mean = variance = 0.0
    for length, counts in rounds.items():
        tokens = list(map(mul, range(length + 1), counts))
        seen = sum(counts)
        count += seen
        total += sum(tokens)
        mean += seen * expected.blocks[length]
        if are_short:
            variance += seen * expected.variance(length)
        else:
            square += sum(map(mul, range(length + 1), tokens))
    if count < 2:
        return None
    if not are_short:
        variance = square - total * total / count
    return (total - mean) / (SPREAD * math.sqrt(max(LEAST_VARIANCE * count, variance)))

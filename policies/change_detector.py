"""Notices that the traffic has changed: acceptance that keeps deviating from what was expected.

A two-sided Page-Hinkley test (Page, 1954) on how far the mean yield of a revision lies from the
expected one, in standard deviations of what rounds scatter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DRIFT = 0.75  # deviations that are let pass at each revision
ALARM = 5.0  # deviations, accumulated above the drift
SPREAD = 1.2
"""Standard deviation of a revision's mean yield over what independent rounds would have: rounds of
one request resemble each other."""


@dataclass(slots=True)
class ChangeDetector:
    """Invariant: both sums are at least 0, and 0 right after an alarm."""

    rose: float = 0.0
    fell: float = 0.0

    @property
    def is_suspicious(self) -> bool:
        """Whether it is half way to an alarm."""
        return max(self.rose, self.fell) >= ALARM / 2

    def update(self, rounds: Mapping[int, Sequence[float]], expected: Mapping[int, float]) -> bool:
        """Whether `rounds` (by block length, counts by tokens kept) end the old regime."""
        deviation = _deviation(rounds, expected)
        if deviation is None:
            return False
        self.rose = max(0.0, self.rose + deviation - DRIFT)
        self.fell = max(0.0, self.fell - deviation - DRIFT)
        if max(self.rose, self.fell) < ALARM:
            return False
        self.rose = self.fell = 0.0
        return True


def _deviation(
    rounds: Mapping[int, Sequence[float]], expected: Mapping[int, float]
) -> float | None:
    """Standard deviations between the mean yield of these rounds and the expected one."""
    count = total = square = mean = 0.0
    for length, counts in rounds.items():
        for tokens, seen in enumerate(counts):
            if seen:  # few are
                count += seen
                total += seen * tokens
                square += seen * tokens * tokens
                mean += seen * expected[length]
    if count < 2:
        return None
    variance = max(0.25, square / count - (total / count) ** 2)
    return (total - mean) / (SPREAD * math.sqrt(variance * count))

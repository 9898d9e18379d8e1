"""Where one plan overtakes another: what a profile means for an operator, and whether two agree.

A crossover is no sharper than the step times it comes from, so each has bounds: where it would lie
if the two plans' step times were off by twice the profile's noise, either way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from policies.acceptance import Yields
from policies.step_time import Profile
from policies.vocabulary import AR, BLOCK_LENGTHS, Mode, Plan

NEVER, ALWAYS = 0.0, math.inf
POINTS_A_DOUBLING = 16
NOISES = 2.0  # covers 95 of 100 where errors are normal


@dataclass(frozen=True, slots=True)
class Crossover:
    """Up to `at` sequences of `length` cached tokens each, `first` is worth more than `second`;
    `NEVER` if nowhere, `ALWAYS` if up to the replica's limit. `low` and `high` bound it."""

    first: Plan
    second: Plan
    length: int
    at: float
    low: float
    high: float

    def agrees(self, other: Crossover) -> bool:
        """Whether the bounds of both overlap."""
        return self.low <= other.high and other.low <= self.high


def worth(profile: Profile, yields: Yields, plan: Plan, sequences: float, length: int) -> float:
    """Tokens/s of a plan."""
    step_s = profile.step_s(plan, sequences, sequences * length)
    return sequences * yields.tokens(plan) / step_s


def best_plan(
    profile: Profile, yields: Yields, plans: Sequence[Plan], sequences: int, length: int
) -> Plan:
    return max(plans, key=lambda plan: worth(profile, yields, plan, sequences, length))


def crossovers(profile: Profile, yields: Yields, lengths: Sequence[int]) -> list[Crossover]:
    """Every plan against AR, and every block length of self-speculation against the next shorter
    one, at every context length."""
    longer_first = [Plan(Mode.SELF_SPECULATION, length) for length in reversed(BLOCK_LENGTHS)]
    diffusion = [Plan(Mode.DIFFUSION, length) for length in reversed(BLOCK_LENGTHS)]
    pairs = [
        *((plan, AR) for plan in longer_first),
        *itertools.pairwise(longer_first),
        *((plan, AR) for plan in diffusion),
    ]
    return [
        crossover(profile, yields, first, second, length)
        for length in lengths
        for first, second in pairs
    ]


def crossover(
    profile: Profile, yields: Yields, first: Plan, second: Plan, length: int
) -> Crossover:
    doublings = math.log2(max(2, profile.max_sequences))
    count = math.ceil(doublings * POINTS_A_DOUBLING)
    at = [2.0 ** (doublings * i / count) for i in range(count + 1)]
    gains = [
        math.log(
            worth(profile, yields, first, n, length) / worth(profile, yields, second, n, length)
        )
        for n in at
    ]
    doubt = NOISES * math.sqrt(2.0) * profile.noise  # of a quotient of two step times
    low, middle, high = (_last_above(at, gains, level) for level in (doubt, 0.0, -doubt))
    return Crossover(first, second, length, middle, low, high)


def _last_above(at: Sequence[float], gains: Sequence[float], level: float) -> float:
    """Where the gain falls below the level for the last time."""
    last = next((i for i in reversed(range(len(at))) if gains[i] >= level), None)
    if last is None:
        return NEVER
    if last == len(at) - 1:
        return ALWAYS
    share = (gains[last] - level) / (gains[last] - gains[last + 1])
    return float(at[last] * (at[last + 1] / at[last]) ** share)

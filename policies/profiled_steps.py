"""Step times of a profile, each worked out once.

A fleet has one profile, and asks the same of it at every step and tick.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from policies.step_time import Profile
from policies.vocabulary import Plan

CONTEXT_STEP = 4  # buckets of context length per doubling
CENTRE_CONTEXT = 512.0  # tokens per sequence in the centre of a bucket of batches
MAX_PROFILES = 64

Table = npt.NDArray[np.float64]


class ProfiledSteps:
    """Uncorrected seconds of a step by the profile, on a grid and of the step last asked about."""

    def __init__(self, profile: Profile, plans: tuple[Plan, ...]) -> None:
        self.profile, self.plans = profile, plans
        self._on_grid: dict[tuple[int, int], tuple[float, ...]] = {}
        self._tables: dict[tuple[tuple[int, ...], int], Table] = {}
        self._at_centre: dict[tuple[Plan, int], float] = {}
        self._last: tuple[tuple[Plan, float, float] | None, float] = None, 0.0

    @classmethod
    def of(cls, profile: Profile, plans: tuple[Plan, ...]) -> ProfiledSteps:
        """The same object for the same profile; told by identity, comparing takes longer."""
        key = id(profile), plans
        known = _SHARED.get(key)
        if known is None or known.profile is not profile:
            if len(_SHARED) >= MAX_PROFILES:
                _SHARED.clear()
            known = _SHARED[key] = cls(profile, plans)
        return known

    def on_grid(self, sequences: int, context: int) -> tuple[float, ...]:
        """Of every plan, in order, in a bucket of context lengths."""
        steps = self._on_grid.get((sequences, context))
        if steps is None:
            tokens = sequences * max(0.0, 2.0 ** ((context + 0.5) / CONTEXT_STEP) - 64.0)
            steps = tuple(self.profile.step_s(plan, sequences, tokens) for plan in self.plans)
            self._on_grid[sequences, context] = steps
        return steps

    def table(self, batches: tuple[int, ...], context: int) -> Table:
        """As `on_grid`, a row for every number of sequences."""
        table = self._tables.get((batches, context))
        if table is None:
            table = np.array([self.on_grid(n, context) for n in batches])
            self._tables[batches, context] = table
        return table

    def at_centre(self, plan: Plan, batch: int) -> float:
        """In the middle of a bucket of batches."""
        step_s = self._at_centre.get((plan, batch))
        if step_s is None:
            centre = 2.0 ** (batch / 2.0)
            step_s = self.profile.step_s(plan, centre, CENTRE_CONTEXT * centre)
            self._at_centre[plan, batch] = step_s
        return step_s

    def step_s(self, plan: Plan, sequences: float, context_tokens: float) -> float:
        """Of any step. Whoever judges a step asks more than once about it."""
        asked = plan, sequences, context_tokens
        known, step_s = self._last
        if known != asked:
            step_s = self.profile.step_s(*asked)
            self._last = asked, step_s  # at once: threads may share a profile
        return step_s


_SHARED: dict[tuple[int, tuple[Plan, ...]], ProfiledSteps] = {}


def context_bucket(length: float) -> int:
    """Of tokens per sequence."""
    return int(CONTEXT_STEP * math.log2(length + 64.0))


@lru_cache(4096)
def batch_bucket(sequences: float) -> int:
    """Two buckets per doubling of the batch."""
    return round(2.0 * math.log2(max(1.0, sequences)))

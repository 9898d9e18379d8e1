"""Random numbers in bulk: a call to a generator per chunk would cost as much as the chunk."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SIZE = 1 << 14

Floats = npt.NDArray[np.float64]


class Pool:
    """Slices of numbers drawn ahead. The same seed gives the same numbers in the same order."""

    def __init__(self, seed: tuple[int, ...]) -> None:
        self._rng = np.random.default_rng(seed)
        self._exponentials = self._uniforms = np.zeros(0)
        self._exponentials_at = self._uniforms_at = 0

    def exponentials(self, count: int) -> Floats:
        """`count` numbers of mean 1, exponentially distributed; not to be changed."""
        end = self._exponentials_at + count
        if end > len(self._exponentials):
            self._exponentials = self._rng.standard_exponential(max(SIZE, count))
            end = count
        self._exponentials_at = end
        return self._exponentials[end - count : end]

    def uniforms(self, count: int) -> Floats:
        """`count` numbers between 0 and 1; not to be changed."""
        end = self._uniforms_at + count
        if end > len(self._uniforms):
            self._uniforms = self._rng.random(max(SIZE, count))
            end = count
        self._uniforms_at = end
        return self._uniforms[end - count : end]

"""Pool adjacent violators: the closest sequence that never falls."""

from __future__ import annotations

from collections.abc import Sequence


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Weighted least-squares fit to `values` among sequences that do not fall."""
    if list(values) == sorted(values):  # most do not fall, and many are one
        return list(values)
    blocks: list[list[float]] = []  # mean, weight, members
    for value, weight in zip(values, weights, strict=True):
        blocks.append([value, weight, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, weight, members = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + value * weight) / (before[1] + weight)
            before[1] += weight
            before[2] += members
    return [mean for mean, _, members in blocks for _ in range(int(members))]

"""Published acceptance of Nemotron-Labs-Diffusion, and survival curves fitted to it.

No accepted length is measured here: random weights accept nothing, so tokens/s of a model-shaped
benchmark must borrow acceptance from those who measured it. Every curve says where from.

A round of self-speculation at block length L commits 1 to L tokens. Survival S(i) is the share of
rounds that commit more than i tokens, were the block long enough: S(0) = 1, and the mean at block
length L is S(0) + ... + S(L - 1). A shorter block only loses the tail (published agreement of
prefixes between block lengths 32 and 8: 0.943), so one curve serves all lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

_LONGEST = 32

TEST_SETS_SGLANG = {8: 5.777, 16: 8.533, 32: 11.359}
"""Mean committed tokens per round by block length: 8B with adapter, nine mathematics- and
code-heavy test sets, SGLang on B200, from identical states (linyewei's independent study)."""

SIX_SETS_PYTORCH = {4: 3.67, 8: 6.36, 16: 10.22, 32: 15.50}
"""The same study's PyTorch run on six of the sets."""

SIX_SETS_FULL_ROUNDS = {4: 0.82, 8: 0.60, 16: 0.41, 32: 0.27}
"""Its share of rounds that commit the whole block: not fitted, used to check the fit."""

SPEED_BENCH_8B = 6.82
"""Mean at block length 32, 8B with adapter, all eleven SPEED-Bench categories (arXiv 2607.05722,
Table 10); mixed traffic, so much lower than the test sets."""

TOKENS_PER_FORWARD_3B = 4.36
"""Self-speculation, 3B with adapter, block length 32, ten test sets (arXiv 2607.05722, Table 6).
A round is two forwards, so its mean is twice this."""

DIFFUSION_TOKENS_PER_FORWARD = {"3b": 1.91, "8b": 2.57, "14b": 2.74}
"""Diffusion, ten test sets, commit passes counted (arXiv 2607.05722, Tables 5 and 7). The text
calls these block-32 results; its harness defaults to block length 8. No other length is known."""


@dataclass(frozen=True, slots=True)
class SurvivalCurve:
    """`survival[i]` is S(i)."""

    name: str
    source: str
    survival: tuple[float, ...]

    def mean(self, block_length: int) -> float:
        """Tokens a round commits on average."""
        return sum(self.survival[:block_length])

    def draw(self, block_length: int, rounds: int, seed: int = 0) -> list[int]:
        """Committed tokens of `rounds` rounds, drawn independently."""
        rng = Random(seed)
        reach = self.survival[:block_length]
        lengths = []
        for _ in range(rounds):
            u = rng.random()
            lengths.append(sum(s > u for s in reach))
        return lengths

    def tilted(self, name: str, source: str, mean: float) -> SurvivalCurve:
        """The same shape with one factor on every hazard, so that the mean at 32 is `mean`."""

        def scaled(factor: float) -> tuple[float, ...]:
            return tuple(s * factor**i for i, s in enumerate(self.survival))

        factor = _solve(lambda r: sum(scaled(r)), mean, 1.5)
        return SurvivalCurve(name, source, scaled(factor))


def fit(name: str, source: str, means: Mapping[int, float]) -> SurvivalCurve:
    """A curve with these means: between two given lengths survival falls by a constant factor."""
    survival = [1.0]
    for length, mean in sorted(means.items()):
        missing, count, last = mean - sum(survival), length - len(survival), survival[-1]

        def gained(q: float, last: float = last, count: int = count) -> float:
            return sum(last * q**i for i in range(1, count + 1))

        q = _solve(gained, missing, 1.0)
        survival += [last * q**i for i in range(1, count + 1)]
    return SurvivalCurve(name, source, tuple(survival))


def _solve(rising: Callable[[float], float], target: float, high: float) -> float:
    low = 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < target else (low, middle)
    return (low + high) / 2


TEST_SETS_8B = fit(
    "test sets, 8B",
    "fitted to 5.777 / 8.533 / 11.359 tokens per round at block lengths 8 / 16 / 32",
    TEST_SETS_SGLANG,
)
SPEED_BENCH = TEST_SETS_8B.tilted(
    "SPEED-Bench, 8B",
    "shape of the 8B test sets, tilted to 6.82 tokens per round at 32",
    SPEED_BENCH_8B,
)
TEST_SETS_3B = TEST_SETS_8B.tilted(
    "test sets, 3B",
    "shape of the 8B test sets, tilted to 8.72 tokens per round at 32",
    2 * TOKENS_PER_FORWARD_3B,
)

CURVES: Mapping[str, tuple[SurvivalCurve, ...]] = {
    "3b": (TEST_SETS_3B,),
    "8b": (SPEED_BENCH, TEST_SETS_8B),
    "14b": (SPEED_BENCH,),
    "tiny": (SPEED_BENCH,),
}
"""By model shape, the most conservative first; `tiny` only rehearses the report."""

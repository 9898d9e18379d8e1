"""How many tokens a step yields: what the traffic decides, whatever the machine.

One survival curve serves every block length: position i of a draft is tried only if all before it
were accepted, so a round that drafted 31 tokens also says what a draft of 7 would have done, and a
round accepted to its end is censored there (Kaplan and Meier, 1958). Old rounds count less, by
half-life, so the curve follows the traffic. Diffusion has ratios of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import accumulate
from operator import add, mul
from typing import NamedTuple

from policies.vocabulary import BLOCK_LENGTHS, Mode, Plan

POSITIONS = BLOCK_LENGTHS[-1] - 1
"""Draft positions of the longest block."""
HALF_LIFE_S = 8.0  # simulated on traces: shorter is noise, longer lags behind changes of traffic
PRIOR_ROUNDS = 60.0  # what the prior counts for, in rounds
DIFFUSION_RATIOS = {4: 0.40, 8: 0.41, 16: 0.37, 32: 0.34}
"""Diffusion's tokens per forward above 1, over self-speculation's accepted drafts, by block length:
2.75 tokens a forward at 6.16 accepted (Nemotron-Labs-Diffusion, arXiv 2607.05722, table 5)."""
MIXTURE = ((0.66, 0.70), (0.34, 0.92))
"""Share of rounds and chance per position: 6.16 tokens a round at block 32, near the released
model's 6.8 on SPEED-Bench (arXiv 2607.05722, table 10)."""


@cache
def default_hazards() -> tuple[float, ...]:
    """Chance that draft position i is accepted once those before it were, with nothing known."""
    survival = [sum(w * q**i for w, q in MIXTURE) for i in range(POSITIONS + 1)]
    return tuple(survival[i + 1] / survival[i] for i in range(POSITIONS))


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Estimated yields. A value: `after` gives the next one.

    `prior` are the chances to start from, `prior_rounds` what they still count for. `tried[i]` and
    `accepted[i]` are discounted numbers of rounds in which position i was tried and accepted.
    `diffusion` maps block lengths to tokens per forward above 1 over accepted drafts.
    """

    prior: tuple[float, ...] = field(default_factory=default_hazards)
    prior_rounds: float = PRIOR_ROUNDS
    tried: tuple[float, ...] = (0.0,) * POSITIONS
    accepted: tuple[float, ...] = (0.0,) * POSITIONS
    diffusion: Mapping[int, float] = field(default_factory=lambda: dict(DIFFUSION_RATIOS))

    def chances(self) -> list[float]:
        """Chance of each position once those before it were accepted."""
        weight, chances = self.prior_rounds, []
        for prior, tried, accepted in zip(self.prior, self.tried, self.accepted, strict=True):
            rounds, hits = tried + weight, weight * prior
            chances.append((accepted + hits) / rounds if rounds else prior)
            weight = hits  # the prior's rounds thin out as real ones do
        return chances

    def survival(self) -> list[float]:
        """Chance that the first i drafted tokens are accepted, i = 0 .. POSITIONS."""
        return list(accumulate(self.chances(), mul, initial=1.0))

    def yields(self) -> Yields:
        survival = self.survival()
        tokens = list(accumulate(survival))
        blocks = {length: tokens[length - 1] for length in BLOCK_LENGTHS}
        mean, square = survival[1], survival[2]
        hard = max(0.0, mean - HARD_DEVIATIONS * math.sqrt(max(0.0, square - mean * mean)))
        return Yields(blocks, hard, self.diffusion, survival)

    def after(
        self,
        rounds: Mapping[int, Sequence[float]],
        elapsed_s: float,
        half_life_s: float = HALF_LIFE_S,
    ) -> Acceptance:
        """With more rounds: `rounds[block_length][g]` counts those that yielded g tokens."""
        keep = 0.5 ** (elapsed_s / half_life_s)
        tried = [count * keep for count in self.tried]
        accepted = [count * keep for count in self.accepted]
        for length, counts in rounds.items():
            # Rounds that yielded at least i + 1 tokens, which is what trying position i takes, for
            # i from the last down to 0; accepting it takes one token more.
            reached = [*accumulate(counts[length:0:-1])][::-1]
            positions = min(len(reached), length - 1)
            tried[:positions] = map(add, tried[:positions], reached)
            del reached[:1]
            accepted[: len(reached)] = map(add, accepted, reached)
        # The prior fades four times slower: it is all there is where nothing is measured.
        prior_rounds = self.prior_rounds * keep**0.25
        return self._with(tried, accepted, prior_rounds)

    def after_shares(self, shares: Sequence[float], rounds: float) -> Acceptance:
        """With `rounds` more rounds, of which `shares[i]` accepted position i."""
        tried, accepted = list(self.tried), list(self.accepted)
        reached = 1.0
        for i, share in enumerate(shares[:POSITIONS]):
            tried[i] += rounds * reached
            if share < reached:
                reached = share
            accepted[i] += rounds * reached
        return self._with(tried, accepted, self.prior_rounds)

    def _with(
        self, tried: Sequence[float], accepted: Sequence[float], prior_rounds: float
    ) -> Acceptance:
        # `replace` takes as long as all the counting.
        return Acceptance(self.prior, prior_rounds, tuple(tried), tuple(accepted), self.diffusion)

    def forgetting(self, share: float) -> Acceptance:
        """With `share` of the evidence dropped, the prior's too: the traffic has changed."""
        keep = 1.0 - share
        return replace(
            self,
            prior_rounds=self.prior_rounds * keep,
            tried=tuple(count * keep for count in self.tried),
            accepted=tuple(count * keep for count in self.accepted),
        )

    def with_prior(self, prior: Sequence[float], rounds: float = PRIOR_ROUNDS) -> Acceptance:
        return Acceptance(tuple(prior), rounds, self.tried, self.accepted, self.diffusion)

    def with_diffusion(self, block_length: int, ratio: float) -> Acceptance:
        return replace(self, diffusion={**self.diffusion, block_length: ratio})


def pooled(estimates: Sequence[Acceptance]) -> tuple[float, ...]:
    """Chances over the evidence of all, each estimate's own prior where there is none."""
    tried = [sum(at) for at in zip(*(e.tried for e in estimates), strict=True)]
    accepted = [sum(at) for at in zip(*(e.accepted for e in estimates), strict=True)]
    base = replace(estimates[0], tried=tuple(tried), accepted=tuple(accepted))
    return tuple(base.chances())


HARD_DEVIATIONS = 0.84
"""Standard deviations below the mean of a request in the 20th percentile. The first two positions
give mean and spread of acceptance between requests: E[q] and E[q^2]."""


class Yields(NamedTuple):
    """Tokens per sequence and step. `blocks`: of self-speculation, by block length. `hard`: chance
    of any draft position in a request of low acceptance. `diffusion`: its ratios. `survival`:
    chances that the first i drafted tokens are accepted."""

    blocks: Mapping[int, float]
    hard: float
    diffusion: Mapping[int, float]
    survival: Sequence[float]

    def variance(self, length: int) -> float:
        """Of the tokens of one round of self-speculation, over all requests."""
        odd = range(1, 2 * length, 2)  # E[g^2] = sum of (2 i + 1) P(g > i)
        square: float = sum(map(mul, odd, self.survival))
        return square - self.blocks[length] ** 2

    def tokens(self, plan: Plan, *, hard: bool = False) -> float:
        """`hard`: of a request of low acceptance."""
        if plan.mode is Mode.AR:
            return 1.0
        length = plan.block_length
        drafted = self.blocks[length]
        if hard:
            drafted = min(drafted, _geometric(self.hard, length))
        if plan.mode is Mode.SELF_SPECULATION:
            return drafted
        return max(DIFFUSION_FLOOR, 1.0 + self.diffusion[length] * (drafted - 1.0))


DIFFUSION_FLOOR = 0.5
"""A block of L takes at most L - 1 denoising passes and a commit: about one token a forward; less
where sequences end inside their blocks."""


def _geometric(chance: float, length: int) -> float:
    """Expected tokens of a round whose every draft is accepted with one chance."""
    return float(length) if chance >= 1.0 else (1.0 - chance**length) / (1.0 - chance)

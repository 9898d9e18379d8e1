"""What a policy cannot see: how well each request's drafts are accepted, and when that changes.

Every request belongs to a class with one chance per draft position. The mix of classes is a regime,
and regimes follow each other. A request keeps the class it had when it was admitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from policies.acceptance import DIFFUSION_FLOOR
from policies.vocabulary import BLOCK_LENGTHS, Mode, Plan

CHANCES = (0.92, 0.70, 0.50)
"""Chance per position of easy, usual and hard requests."""
REGIMES = {
    "mid": (0.644, 0.356, 0.0),
    "low": (0.322, 0.458, 0.22),
    "high": (0.891, 0.109, 0.0),
}
"""Shares of the classes among requests. Counted in rounds, where hard requests stay longer, they
give 6.2, 3.6 and 9.2 tokens a round at block 32: Nemotron-Labs-Diffusion's 6.8 on SPEED-Bench
(arXiv 2607.05722, table 10), and its worst and best categories."""
DEFAULT_ORDER = ("mid", "low", "high")
DRAWN = 1 << 17  # requests after which the draws of classes repeat

DIFFUSION_TOKENS = {32: 2.75, 16: 2.6, 8: 2.3, 4: 1.75}
"""Tokens a forward in the mid regime. 32: between 2.57 and 3 published; shorter ones assumed."""
MID_ACCEPTED = 5.16  # drafted tokens accepted a round in the mid regime, block 32

LONGEST = BLOCK_LENGTHS[-1]


class Kinds:
    """How well classes of requests are accepted: `chances[block_length][class]` a draft position.

    Arrays by block length: `spread[class]` times an exponential variable, rounded down, is a number
    of accepted drafts; `tokens[class, n]` is what a round over n positions yields on average;
    `diffused[class]` what a forward of diffusion does.
    """

    def __init__(self, chances: Mapping[int, Sequence[float]]) -> None:
        self.spread = {length: -1.0 / np.log(np.array(qs)) for length, qs in chances.items()}
        self.tokens = {length: _round_tokens(qs) for length, qs in chances.items()}
        accepted = self.tokens[LONGEST][:, LONGEST] - 1.0
        self.diffused = {length: _diffused(length, accepted) for length in chances}

    def expected_tokens(
        self, plan: Plan, classes: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]
    ) -> float:
        """Of one step of the plan over these sequences, none more than it has left."""
        if plan.mode is Mode.AR:
            return float(len(classes))
        length = plan.block_length
        if plan.mode is Mode.SELF_SPECULATION:
            return float(self.tokens[length][classes, np.minimum(remaining, length)].sum())
        return float(np.minimum(self.diffused[length][classes], remaining).sum())


def _round_tokens(chances: Sequence[float]) -> npt.NDArray[np.float64]:
    return np.array([[sum(q**i for i in range(n)) for n in range(LONGEST + 1)] for q in chances])


def _diffused(block_length: int, accepted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    tokens = 1.0 + (DIFFUSION_TOKENS[block_length] - 1.0) * accepted / MID_ACCEPTED
    return np.clip(tokens, DIFFUSION_FLOOR, block_length / 2.0)


KINDS = Kinds(dict.fromkeys(BLOCK_LENGTHS, CHANCES))


class Requests(Protocol):
    """What replicas must know of requests that policies do not."""

    @property
    def kinds(self) -> Kinds: ...

    def class_of(self, number: int, now: float) -> int:
        """The class of the request with this number, admitted at `now`."""
        ...


@dataclass(frozen=True, slots=True)
class Traffic:
    """Classes of requests by number and time of admission."""

    seed: int
    order: tuple[str, ...] = DEFAULT_ORDER
    period_s: float = 300.0
    kinds: Kinds = KINDS
    _draws: list[float] = field(init=False, repr=False)
    _bounds: tuple[tuple[float, float], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        unknown = set(self.order) - set(REGIMES)
        if unknown or not self.order:
            raise ValueError(f"regimes {sorted(unknown)} are unknown; use {', '.join(REGIMES)}")
        draws = np.random.default_rng((self.seed, 5)).random(DRAWN)
        object.__setattr__(self, "_draws", draws.tolist())
        bounds = tuple((REGIMES[n][0], REGIMES[n][0] + REGIMES[n][1]) for n in self.order)
        object.__setattr__(self, "_bounds", bounds)

    def class_of(self, number: int, now: float) -> int:
        easy, usual = self._bounds[int(now / self.period_s) % len(self.order)]
        draw = self._draws[number % DRAWN]
        return 0 if draw < easy else 1 if draw < usual else 2

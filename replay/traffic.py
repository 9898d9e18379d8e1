"""What a policy cannot see: how well each request's drafts are accepted, and when that changes.

Every request belongs to a class with one chance per draft position. The mix of classes is a regime,
and regimes follow each other. A request keeps the class it had when it was admitted.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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

BLOCK_TOKENS = np.array(
    [[sum(q**i for i in range(n)) for n in range(BLOCK_LENGTHS[-1] + 1)] for q in CHANCES]
)
"""[class, positions]: tokens a round yields on average."""
SPREAD = np.array([-1.0 / np.log(q) for q in CHANCES])
"""[class]: an exponential variable times this, rounded down, is a number of accepted drafts."""


def diffusion_tokens(block_length: int) -> npt.NDArray[np.float64]:
    """Tokens a forward by class."""
    accepted = BLOCK_TOKENS[:, -1] - 1.0
    tokens = 1.0 + (DIFFUSION_TOKENS[block_length] - 1.0) * accepted / MID_ACCEPTED
    return np.maximum(DIFFUSION_FLOOR, np.minimum(tokens, block_length / 2.0))


DIFFUSED = {length: diffusion_tokens(length) for length in BLOCK_LENGTHS}


def expected_tokens(
    plan: Plan, classes: npt.NDArray[np.int64], remaining: npt.NDArray[np.int64]
) -> float:
    """Tokens that one step of the plan yields over these sequences, none more than it has left."""
    if plan.mode is Mode.AR:
        return float(len(classes))
    if plan.mode is Mode.SELF_SPECULATION:
        return float(BLOCK_TOKENS[classes, np.minimum(remaining, plan.block_length)].sum())
    return float(np.minimum(DIFFUSED[plan.block_length][classes], remaining).sum())


@dataclass(frozen=True, slots=True)
class Traffic:
    """Classes of requests by number and time of admission."""

    seed: int
    order: tuple[str, ...] = DEFAULT_ORDER
    period_s: float = 300.0
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
        """Index into `CHANCES` of the request with this number, admitted at `now`."""
        easy, usual = self._bounds[int(now / self.period_s) % len(self.order)]
        draw = self._draws[number % DRAWN]
        return 0 if draw < easy else 1 if draw < usual else 2

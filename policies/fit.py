"""Fits the step-time curve to measurements, and what is left over as ratios.

The curve is a sum of terms that are linear in its parameters, two of them under a soft maximum.
That is homogeneous, so the curve is exactly parameters times gradient: with the gradient held, the
fit is a non-negative least-squares problem, solved again and again until the gradient stands still
(Gauss-Newton, with shorter steps where a full one makes it worse). Residuals are relative, and a
measurement far off the rest counts less. The exponent of the soft maximum comes from a small grid.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from policies.step_time import Curve, Profile, forwards_per_step
from policies.vocabulary import Plan

SHARPNESS = (1.0, 1.4, 1.9, 3.0, 6.0)
TERMS = (
    "weights_s",
    "position_s",
    "kv_token_s",
    "score_s",
    "activation_s",
    "overhead_s",
    "block_overhead_s",
)
ROUNDS = 40
RIDGE = 1e-3
"""Pull towards the start, in shares of the step time: what the data leave open stays where it is
plausible, and does not run off to take another term's part."""
OUTLIER = 0.1  # relative residual from which a measurement counts less
LARGEST_RATIO = 2.0  # measured over fitted; further off is an error of the measurement

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """Median seconds of a step with `sequences` rows that have `context_tokens` cached between
    them. `error` is its relative standard error."""

    plan: Plan
    sequences: int
    context_tokens: float
    seconds: float
    error: float = 0.0


def fit_curve(samples: Sequence[Sample], exponents: Sequence[float] = SHARPNESS) -> Curve:
    """The curve nearest to the samples in relative error, with one of these as its sharpness.

    Raises:
        ValueError: fewer than two samples, or one that is not positive.
    """
    if len(samples) < 2 or any(not 0 < s.seconds < math.inf for s in samples):
        raise ValueError(
            f"{len(samples)} samples do not make a curve; measure two or more positive step times"
        )
    data = _Data(samples)
    fits = [_descend(data, start, sharpness) for sharpness in SHARPNESS for start in data.starts()]
    terms, sharpness, _ = min(fits, key=lambda fit: fit[2])
    return Curve(**dict(zip(TERMS, map(float, terms), strict=True)), sharpness=sharpness)


def fit_ratios(
    samples: Sequence[Sample], curve: Curve
) -> dict[Plan, tuple[tuple[float, float], ...]]:
    """Measured over fitted step time by plan at ascending sequences, contexts averaged.

    Each is drawn towards 1 by the share of its scatter that the samples' errors explain.
    """
    logs: dict[tuple[Plan, int], list[float]] = defaultdict(list)
    noise: dict[tuple[Plan, int], float] = defaultdict(float)
    for sample in samples:
        at = (sample.plan, sample.sequences)
        logs[at].append(math.log(sample.seconds / _fitted_s(curve, sample)))
        noise[at] += sample.error**2
    means = {at: sum(seen) / len(seen) for at, seen in logs.items()}
    variances = {at: noise[at] / len(seen) ** 2 for at, seen in logs.items()}
    excess = [means[at] ** 2 - variances[at] for at in means]
    systematic = max(0.0, sum(excess) / len(excess)) if excess else 0.0
    ratios: dict[Plan, list[tuple[float, float]]] = defaultdict(list)
    for at in sorted(means, key=lambda at: at[1]):
        believed = systematic / ((systematic + variances[at]) or 1.0)
        ratios[at[0]].append((float(at[1]), math.exp(_within_limit(means[at] * believed))))
    return {plan: tuple(points) for plan, points in ratios.items()}


def scatter(samples: Sequence[Sample], profile: Profile) -> float:
    """Root mean square of the relative differences between samples and the profile."""
    logs = [
        math.log(s.seconds / profile.step_s(s.plan, s.sequences, s.context_tokens)) for s in samples
    ]
    return math.sqrt(sum(x * x for x in logs) / len(logs)) if logs else 0.0


def _fitted_s(curve: Curve, sample: Sample) -> float:
    forward_s = curve.forward_s(sample.sequences, sample.plan.block_length, sample.context_tokens)
    return forwards_per_step(sample.plan) * forward_s


def _within_limit(log_ratio: float) -> float:
    limit = math.log(LARGEST_RATIO)
    return max(-limit, min(limit, log_ratio))


class _Data:
    """The samples as arrays: what each term is multiplied with, for one forward."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        sequences = np.array([s.sequences for s in samples], dtype=float)
        width = np.array([s.plan.block_length for s in samples], dtype=float)
        context = np.array([s.context_tokens for s in samples], dtype=float)
        forwards = np.array([forwards_per_step(s.plan) for s in samples], dtype=float)
        positions = sequences * width
        ones = np.ones_like(positions)
        self.seconds: Floats = np.array([s.seconds for s in samples]) / forwards
        self.factors: Floats = np.stack(
            [
                ones,
                positions,
                context + positions,
                width * (context + positions / 2),
                positions,
                ones,
                (width > 1).astype(float),
            ],
            axis=1,
        )

    def starts(self) -> list[Floats]:
        """Two machines: one bound by what a forward costs at all, one by its products."""
        largest = self.factors.max(axis=0)
        largest[largest == 0] = 1.0
        fastest, slowest = self.seconds.min(), self.seconds.max()
        per_forward = np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.8, 0.2])
        per_product = np.array([0.8, 0.8, 0.2, 0.2, 0.05, 0.1, 0.05])
        scale = np.array([fastest, slowest, slowest, slowest, slowest, fastest, fastest]) / largest
        return [per_forward * scale, per_product * scale]

    def gradient(self, terms: Floats, sharpness: float) -> Floats:
        """Of the forward time by each term; times the terms it is the forward time."""
        gradient = self.factors.copy()
        parts = self.factors * terms
        for a, b in ((0, 1), (2, 3)):
            share_a, share_b = _soft_max_shares(parts[:, a], parts[:, b], sharpness)
            gradient[:, a] *= share_a
            gradient[:, b] *= share_b
        return gradient


def _soft_max_shares(a: Floats, b: Floats, sharpness: float) -> tuple[Floats, Floats]:
    """Derivatives of (a^p + b^p)^(1/p); beside a term of zero the other one counts in full."""
    high = np.maximum(a, b)
    is_nothing = high <= 0.0
    high[is_nothing] = 1.0
    a, b = np.where(is_nothing, 1.0, a / high), np.where(is_nothing, 1.0, b / high)
    total = (a**sharpness + b**sharpness) ** (1.0 / sharpness - 1.0)
    return a ** (sharpness - 1.0) * total, b ** (sharpness - 1.0) * total


def _descend(data: _Data, start: Floats, sharpness: float) -> tuple[Floats, float, float]:
    """Terms, sharpness and loss at the end."""
    terms, loss = start, _loss(data, start, sharpness)
    for _ in range(ROUNDS):
        target = _solve(data, terms, start, sharpness)
        for share in (1.0, 0.5, 0.2, 0.05):
            trial = terms + share * (target - terms)
            trial_loss = _loss(data, trial, sharpness)
            if trial_loss < loss:
                break
        else:
            break
        is_settled = loss - trial_loss < 1e-6 * loss
        terms, loss = trial, trial_loss
        if is_settled:
            break
    return terms, sharpness, loss


def _residuals(data: _Data, terms: Floats, sharpness: float) -> Floats:
    predicted = (data.gradient(terms, sharpness) * terms).sum(axis=1)
    residuals: Floats = predicted / data.seconds - 1.0
    return residuals


def _loss(data: _Data, terms: Floats, sharpness: float) -> float:
    """Huber's: quadratic near zero, linear beyond `OUTLIER`."""
    size = np.abs(_residuals(data, terms, sharpness))
    near = size <= OUTLIER
    return float(np.where(near, size * size, OUTLIER * (2 * size - OUTLIER)).sum())


def _solve(data: _Data, terms: Floats, start: Floats, sharpness: float) -> Floats:
    size = np.abs(_residuals(data, terms, sharpness))
    weight = np.sqrt(OUTLIER / np.maximum(size, OUTLIER))
    rows = data.gradient(terms, sharpness) / data.seconds[:, None] * weight[:, None]
    # In units of the start, so that no term is small because of its unit.
    scaled = rows * start
    ridge = RIDGE * np.sqrt(len(weight)) * np.eye(len(TERMS))
    matrix = np.concatenate([scaled, ridge])
    goal = np.concatenate([weight, ridge.sum(axis=1)])
    return start * non_negative_least_squares(matrix, goal)


def non_negative_least_squares(matrix: Floats, goal: Floats) -> Floats:
    """x >= 0 that brings matrix @ x nearest to the goal (Lawson and Hanson, 1974)."""
    count = matrix.shape[1]
    x = np.zeros(count)
    free = np.zeros(count, dtype=bool)
    for _ in range(3 * count):
        slope = matrix.T @ (goal - matrix @ x)
        slope[free] = -np.inf
        enters = int(np.argmax(slope))
        if slope[enters] <= 1e-12 * (1.0 + float(np.abs(goal).max())):
            break
        free[enters] = True
        x = _inside(matrix, goal, x, free)
    return x


def _inside(matrix: Floats, goal: Floats, x: Floats, free: npt.NDArray[np.bool_]) -> Floats:
    """The best x on the free columns, giving up columns that would turn negative."""
    while True:
        best = np.zeros_like(x)
        best[free] = np.linalg.lstsq(matrix[:, free], goal, rcond=None)[0]
        negative = np.flatnonzero(free & (best <= 0.0))
        if not negative.size:
            return best
        shares = x[negative] / (x[negative] - best[negative] + 1e-300)
        first = negative[int(np.argmin(shares))]
        x = x + float(shares.min()) * (best - x)
        x[first], free[first] = 0.0, False

"""What steps really take: the profile, wrong in ways that nothing under test is told.

The policy has the profile as it is shipped. Steps take the time of a perturbed curve (the figures
the reference simulation used: 15 % less compute, 8 % less bandwidth, more overhead), times a factor
of the plan's own, of a batch padded to a captured size, with noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from policies.step_time import Curve, Profile
from policies.vocabulary import Plan, all_plans

COMPUTE, BANDWIDTH = 0.85, 0.92  # of what the profile says
MORE_OVERHEAD = 0.13  # of the time to read the weights: 0.8 ms on an H100
NOISE = 0.05  # a step takes up to so much more or less
PADDED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""Batch sizes of captured graphs, in the manner of serving engines."""


@dataclass(frozen=True, slots=True)
class World:
    """True times of one set of machines, all alike."""

    truth: Profile
    factors: Mapping[Plan, float] = field(default_factory=dict)
    is_padded: bool = False
    noise: float = NOISE

    def step_s(self, plan: Plan, sequences: int, context_tokens: float) -> float:
        """Mean seconds of a step."""
        if self.is_padded:
            padded = next((n for n in PADDED if n >= sequences), sequences)
            seconds = self.truth.step_s(plan, padded, context_tokens)
        else:
            seconds = self.truth.step_s(plan, sequences, context_tokens)
        return seconds * self.factors.get(plan, 1.0)

    def prefill_s(self, tokens: int, context_tokens: float) -> float:
        return self.truth.curve.prefill_s(tokens, context_tokens)


def make_world(
    profile: Profile, seed: int, wrong_by: float = 1.0, *, as_profiled: bool = False
) -> World:
    """The world behind a profile. `wrong_by` 2: every plan is up to twice as slow or as fast, and
    batches are padded. `as_profiled`: the profile is right, which a measured one comes close to."""
    if not 1.0 <= wrong_by <= 8.0:
        raise ValueError(f"wrong_by {wrong_by:g} must lie between 1 (the profile holds) and 8")
    truth = profile if as_profiled else replace(profile, curve=perturbed(profile.curve))
    rng = np.random.default_rng((seed, 77))
    spread = math.log(wrong_by)
    factors = {plan: math.exp(rng.uniform(-spread, spread)) for plan in all_plans()}
    return World(truth, factors if wrong_by > 1.0 else {}, is_padded=wrong_by > 1.0)


def perturbed(curve: Curve) -> Curve:
    """A machine that computes and reads slower than its profile says."""
    return replace(
        curve,
        weights_s=curve.weights_s / BANDWIDTH,
        kv_token_s=curve.kv_token_s / BANDWIDTH,
        activation_s=curve.activation_s / BANDWIDTH,
        position_s=curve.position_s / COMPUTE,
        score_s=curve.score_s / COMPUTE,
        overhead_s=curve.overhead_s + MORE_OVERHEAD * curve.weights_s,
    )

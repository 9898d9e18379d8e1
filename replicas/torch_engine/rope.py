"""Rotary position tables: YaRN (arXiv 2309.00071 §3) and Llama-4 query scaling, precomputed."""

from __future__ import annotations

import math

import torch

from replicas.torch_engine.model_config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> torch.Tensor:
    """[head_dim / 2] float32: rotation per position of each dimension pair."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    extrapolated = 1.0 / rope.theta**exponents
    if rope.rope_type == "default":
        return extrapolated
    # Fast-rotating pairs keep their frequency, slow ones are stretched by `factor`, with a ramp
    # between the dimensions that make beta_fast and beta_slow turns in the original context.
    low = max(math.floor(_dimension_of(rope.beta_fast, rope, head_dim)), 0)
    high = min(math.ceil(_dimension_of(rope.beta_slow, rope, head_dim)), head_dim - 1)
    span = (high - low) or 0.001
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / span).clamp(0, 1)
    interpolated = extrapolated / rope.factor
    return interpolated * ramp + extrapolated * (1 - ramp)


def _dimension_of(turns: float, rope: RopeConfig, head_dim: int) -> float:
    """The dimension whose pair makes `turns` full turns over the original context."""
    positions = rope.original_max_positions
    return head_dim * math.log(positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def attention_factor(rope: RopeConfig) -> float:
    """Scale of cos and sin; 1.0 where mscale equals mscale_all_dim, as in the released models."""
    if rope.rope_type == "default":
        return 1.0

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


class RopeTables:
    """cos, sin and query scale for every position, in the model's dtype on its device.

    `cos` and `sin` are [positions, 1, head_dim]; the first half of `sin` carries the minus sign of
    rotate-half, so that rotation is `x * cos + swap_halves(x) * sin`.
    """

    def __init__(
        self,
        rope: RopeConfig,
        head_dim: int,
        positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        place = torch.arange(positions, dtype=torch.float32)
        angles = torch.outer(place, inverse_frequencies(rope, head_dim))
        scale = attention_factor(rope)
        cos, sin = angles.cos() * scale, angles.sin() * scale
        self.cos = torch.cat([cos, cos], dim=1)[:, None].to(device, dtype)
        self.sin = torch.cat([-sin, sin], dim=1)[:, None].to(device, dtype)
        self.scaling_starts_at = positions + 1
        self.query_scale: torch.Tensor | None = None
        if rope.query_scaling_beta and 0 < rope.original_max_positions < positions:
            self.scaling_starts_at = rope.original_max_positions
            steps = torch.floor(place / rope.original_max_positions)
            query_scale = 1 + rope.query_scaling_beta * torch.log1p(steps)
            self.query_scale = query_scale[:, None, None].to(device, dtype)

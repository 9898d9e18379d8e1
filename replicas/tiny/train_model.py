"""The network as it is trained: one pass over clean text and its noisy copy, no KV cache.

Same function as the released architecture, with q/k/v and gate/up fused and the embedding tied.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """Sizes of the network and of its YaRN rotary embedding."""

    vocab: int
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    mlp: int = 768
    norm_eps: float = 1e-5
    max_positions: int = 2048
    rope_theta: float = 10000.0
    rope_factor: float = 4.0
    rope_original: int = 512
    beta_fast: float = 32.0
    beta_slow: float = 1.0


def yarn_inverse_frequencies(shape: Shape) -> Tensor:
    """YaRN's inverse frequencies [head_dim / 2], as transformers computes them.

    Slow dimensions are interpolated by `rope_factor`, fast ones are kept, with a linear ramp
    between the dimensions that turn `beta_fast` and `beta_slow` times in the original context.
    """
    half = shape.head_dim // 2

    def dimension(turns: float) -> float:
        wavelength = shape.rope_original / (turns * 2 * math.pi)
        return half * math.log(wavelength) / math.log(shape.rope_theta)

    low = max(math.floor(dimension(shape.beta_fast)), 0)
    high = min(math.ceil(dimension(shape.beta_slow)), shape.head_dim - 1)
    plain = shape.rope_theta ** -(torch.arange(half, dtype=torch.float32) / half)
    ramp = ((torch.arange(half, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / shape.rope_factor * ramp + plain * (1 - ramp)


def rotary_table(shape: Shape, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, head_dim]; the attention factor is 1 for our parameters."""
    angles = torch.outer(torch.arange(positions).float(), yarn_inverse_frequencies(shape))
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding, rotate-half layout; x [..., head_dim], cos and sin broadcast to it."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Grouped attention; q [B, H, S, D], k and v [B, KV, L, D], bias [B, 1, S, L] additive.

    Explicit products: at these sizes the CPU flash kernel's backward pass is four times slower.
    """
    batch, heads, length, dim = q.shape
    kv_heads = k.shape[1]
    grouped = q.reshape(batch, kv_heads, heads // kv_heads * length, dim)
    scores = (grouped @ k.transpose(-1, -2)).view(batch, heads, length, -1) * dim**-0.5 + bias
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype)
    mixed = weights.view(batch, kv_heads, heads // kv_heads * length, -1) @ v
    return mixed.view(batch, heads, length, dim)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        inner = shape.heads * shape.head_dim
        self.attention_norm = nn.Parameter(torch.ones(shape.hidden))
        self.mlp_norm = nn.Parameter(torch.ones(shape.hidden))
        self.qkv = nn.Linear(shape.hidden, inner + 2 * shape.kv_heads * shape.head_dim, bias=False)
        self.o = nn.Linear(inner, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.mlp, bias=False)
        self.down = nn.Linear(shape.mlp, shape.hidden, bias=False)

    def forward(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        clean: int,
        clean_bias: Tensor,
        noisy_bias: Tensor,
    ) -> Tensor:
        """x [B, T + N, hidden]: `clean` = T causal positions, then N noisy ones."""
        s = self.shape
        batch, total, _ = x.shape
        h = self.qkv(F.rms_norm(x, (s.hidden,), self.attention_norm.to(x.dtype), s.norm_eps))
        h = h.view(batch, total, s.heads + 2 * s.kv_heads, s.head_dim).transpose(1, 2)
        qk, v = h[:, : s.heads + s.kv_heads], h[:, s.heads + s.kv_heads :]
        qk = rotate(qk, cos, sin)
        q, k = qk[:, : s.heads], qk[:, s.heads :]
        causal = attend(q[:, :, :clean], k[:, :, :clean], v[:, :, :clean], clean_bias)
        block = attend(q[:, :, clean:], k, v, noisy_bias)
        mixed = torch.cat([causal, block], 2).transpose(1, 2).reshape(batch, total, -1)
        x = x + self.o(mixed)
        h = F.rms_norm(x, (s.hidden,), self.mlp_norm.to(x.dtype), s.norm_eps)
        gate, up = self.gate_up(h).chunk(2, -1)
        down: Tensor = self.down(F.silu(gate) * up)
        return x + down


class Layers(nn.ModuleList):
    """A ModuleList that says what it holds."""

    def __iter__(self) -> Iterator[Layer]:
        return cast(Iterator[Layer], super().__iter__())


class TrainModel(nn.Module):
    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = Layers(Layer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        nn.init.normal_(self.embedding.weight, std=0.02)
        for layer in self.layers:
            for linear in (layer.qkv, layer.o, layer.gate_up, layer.down):
                nn.init.normal_(linear.weight, std=linear.in_features**-0.5)
            # Quiet residual branches at the start make the first steps stable at a high rate.
            layer.o.weight.data *= 0.1
            layer.down.weight.data *= 0.1
        cos, sin = rotary_table(shape, shape.rope_original)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self, tokens: Tensor, positions: Tensor, clean: int, clean_bias: Tensor, noisy_bias: Tensor
    ) -> Tensor:
        """Normed hidden states [B, T + N, hidden] of tokens [B, T + N] (clean T, noisy N).

        clean_bias [B, 1, T, T]; noisy_bias [B, 1, N, T + N], keys in the same order as tokens.
        """
        dtype = torch.bfloat16
        x = self.embedding(tokens).to(dtype)
        cos, sin = self.cos[positions].to(dtype)[:, None], self.sin[positions].to(dtype)[:, None]
        for layer in self.layers:
            x = layer(x, cos, sin, clean, clean_bias, noisy_bias)
        return F.rms_norm(x, (self.shape.hidden,), self.norm.to(x.dtype), self.shape.norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] in float32; one head serves AR and diffusion."""
        logits: Tensor = F.linear(hidden, self.embedding.weight)
        return logits.float()

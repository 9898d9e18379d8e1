"""The Nemotron-Labs-Diffusion decoder: one forward pass over a ragged batch.

What it knows: weights, rotary tables, attention over the KV pool. What it does not know: plans,
requests, sampling. A `Batch` packs the tokens of all rows into one [N] sequence, so that every
matrix product runs once whatever the mix of plans; only attention runs per `Segment` (rows of equal
width). Every forward writes its K/V into the pool behind the committed length; those of a draft or
denoising pass are overwritten by the causal pass that follows, so what is committed is always
causal.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from replicas.torch_engine.linear import Linear
from replicas.torch_engine.model_config import ModelConfig
from replicas.torch_engine.rope import RopeTables


@dataclass(slots=True)
class Segment:
    """Rows of one width in a batch.

    `offset` is where their B * width tokens start in the packed batch. `rows` selects their KV rows
    (a slice reads in place, an index tensor gathers). `mask` is [B, 1, 1 or groups * width, length]
    in the model's dtype, or None where every query sees all `length` keys.
    """

    offset: int
    num_rows: int
    width: int
    rows: slice | torch.Tensor
    length: int
    mask: torch.Tensor | None


@dataclass(slots=True)
class Batch:
    """Packed inputs of one forward: all tensors [N] int64; `slots` index the flat KV pool.

    `logit_index` picks the positions whose logits are wanted (None: all N).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    segments: list[Segment]
    max_position: int
    row_length: int
    draft: bool = False
    logit_index: torch.Tensor | None = None


@dataclass(slots=True)
class LayerWeights:
    """One decoder layer: projections of one input are fused, and hold the norm before them."""

    qkv: Linear  # D -> (H + 2 KV) * hd
    o: Linear  # H * hd -> D
    gate_up: Linear  # D -> 2 F
    down: Linear  # F -> D
    lora_a: Linear | None = None  # H * hd -> r, draft passes only
    lora_b: Linear | None = None  # r -> D, scale folded in


class Model:
    """Weights and the forward pass. One head serves causal and bidirectional logits."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, torch.Tensor],
        *,
        max_positions: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, device

        def take(name: str) -> torch.Tensor:
            return weights[name].to(device, dtype)

        self._norm_by_length = dtype is torch.float32 and device.type == "cpu"
        gain = config.hidden_size**0.5 if self._norm_by_length else 1.0

        def matrix(*names: str, norm: str | None = None) -> Linear:
            # RMSNorm's weight scales the columns of what follows, so it costs nothing at run time.
            scale = 1.0 if norm is None else weights[norm].to(device, torch.float32) * gain
            parts = [weights[name].to(device) * scale if norm else take(name) for name in names]
            return Linear(torch.cat([part.to(dtype) for part in parts]))

        self.embedding = take("encoder.embed_tokens.weight")
        self.head = matrix("diffusion_head.weight", norm="encoder.norm.weight")
        self.layers = [_layer(matrix, weights, i) for i in range(config.num_layers)]
        self.rope = RopeTables(config.rope, config.head_dim, max_positions, dtype, device)
        root_eps = (config.hidden_size * config.rms_norm_eps) ** 0.5
        self._root_eps = torch.tensor(root_eps, dtype=dtype, device=device)

    @torch.inference_mode()
    def forward(self, batch: Batch, kv: list[torch.Tensor]) -> torch.Tensor:
        """Logits [len(logit_index) or N, vocab]; writes K/V of all N tokens at `batch.slots`.

        `kv` holds one [pool tokens, 2 * KV * hd] tensor per layer. The mask token's logit is -inf:
        it can be fed, never emitted.
        """
        x = F.embedding(batch.tokens, self.embedding)
        cos, sin = self.rope.cos[batch.positions], self.rope.sin[batch.positions]
        scale = self._query_scale(batch)
        for weights, pool in zip(self.layers, kv, strict=True):
            attended = self._attention(weights, pool, self._norm(x), cos, sin, scale, batch)
            x = weights.o(attended).add_(x)
            if batch.draft and weights.lora_a is not None and weights.lora_b is not None:
                x = weights.lora_b(weights.lora_a(attended)).add_(x)
            gate, up = weights.gate_up(self._norm(x)).chunk(2, dim=-1)
            x = weights.down(F.silu(gate).mul_(up)).add_(x)
        if batch.logit_index is not None:
            x = x[batch.logit_index]
        logits = self.head(self._norm(x))
        logits[:, self.config.mask_token_id] = float("-inf")
        return logits

    def _norm(self, x: torch.Tensor) -> torch.Tensor:
        """RMSNorm without the scale that the projection behind it holds."""
        if self._norm_by_length:
            # x / sqrt(|x|^2 + D eps) is RMSNorm but for a factor: three small kernels instead of
            # the eleven that F.rms_norm runs on a CPU.
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
            normed: torch.Tensor = x / length.hypot_(self._root_eps)
            return normed
        return F.rms_norm(x, (x.shape[-1],), None, self.config.rms_norm_eps)

    def _query_scale(self, batch: Batch) -> torch.Tensor | None:
        if self.rope.query_scale is None or batch.max_position < self.rope.scaling_starts_at:
            return None
        return self.rope.query_scale[batch.positions]

    def _attention(
        self,
        weights: LayerWeights,
        pool: torch.Tensor,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        scale: torch.Tensor | None,
        batch: Batch,
    ) -> torch.Tensor:
        """[N, D] normed input -> [N, H * hd] before the output projection."""
        heads, kv_heads, dim = (
            self.config.num_heads,
            self.config.num_kv_heads,
            self.config.head_dim,
        )
        qkv = weights.qkv(x).view(-1, heads + 2 * kv_heads, dim)
        qk = qkv[:, : heads + kv_heads]
        half = dim // 2
        swapped = torch.cat([qk[..., half:], qk[..., :half]], dim=-1)
        qk.mul_(cos).addcmul_(swapped, sin)
        pool.view(-1, 2 * kv_heads, dim).index_copy_(0, batch.slots, qkv[:, heads:])
        q = qkv[:, :heads] if scale is None else qkv[:, :heads] * scale
        keys_values = pool.view(-1, batch.row_length, 2, kv_heads, dim)
        if len(batch.segments) == 1:
            return self._attend(q, keys_values, batch.segments[0])
        return torch.cat(
            [
                self._attend(q[s.offset : s.offset + s.num_rows * s.width], keys_values, s)
                for s in batch.segments
            ]
        )

    def _attend(self, q: torch.Tensor, keys_values: torch.Tensor, seg: Segment) -> torch.Tensor:
        """[B * S, H, hd] queries of one segment -> [B * S, H * hd].

        Query heads that share a KV head are folded into the query length, so K/V are read once and
        never repeated: [B, KV, groups * S, hd] against [B, KV, length, hd].
        """
        heads, kv_heads, dim = (
            self.config.num_heads,
            self.config.num_kv_heads,
            self.config.head_dim,
        )
        groups, rows, width = heads // kv_heads, seg.num_rows, seg.width
        if width == 1:
            folded = q.reshape(rows, kv_heads, groups, dim)
        else:
            folded = (
                q.reshape(rows, width, kv_heads, groups, dim)
                .permute(0, 2, 3, 1, 4)
                .reshape(rows, kv_heads, groups * width, dim)
            )
        kv = keys_values[seg.rows, : seg.length]
        k, v = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
        out = F.scaled_dot_product_attention(folded, k, v, attn_mask=seg.mask)
        if width == 1:
            return out.reshape(rows, heads * dim)
        unfolded = out.view(rows, kv_heads, groups, width, dim).permute(0, 3, 1, 2, 4)
        return unfolded.reshape(rows * width, heads * dim)


def _layer(
    matrix: Callable[..., Linear],
    names: Container[str],
    index: int,
) -> LayerWeights:
    prefix = f"encoder.layers.{index}"

    def lora(side: str) -> Linear | None:
        name = f"{prefix}.self_attn.o_proj.lora_{side}.weight"
        return matrix(name) if name in names else None

    return LayerWeights(
        qkv=matrix(
            *(f"{prefix}.self_attn.{p}_proj.weight" for p in "qkv"),
            norm=f"{prefix}.input_layernorm.weight",
        ),
        o=matrix(f"{prefix}.self_attn.o_proj.weight"),
        gate_up=matrix(
            *(f"{prefix}.mlp.{p}_proj.weight" for p in ("gate", "up")),
            norm=f"{prefix}.post_attention_layernorm.weight",
        ),
        down=matrix(f"{prefix}.mlp.down_proj.weight"),
        lora_a=lora("A"),
        lora_b=lora("B"),
    )

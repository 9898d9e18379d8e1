"""A compact batched decoder for the three modes, enough to measure a checkpoint.

It holds the decoding rules and nothing else: greedy, no streaming, no admission. The serving engine
is `replicas.torch_engine`.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from replicas.tiny.train_model import Shape, rotary_table, rotate

Mode = Literal["ar", "diffusion", "self_speculation"]


@dataclass(frozen=True)
class Plan:
    """How to decode: `mode/block`, and for diffusion the confidence a token needs."""

    mode: Mode
    block: int = 1
    threshold: float = 0.0

    def __str__(self) -> str:
        return f"{self.mode}/{self.block}" + (f"@{self.threshold}" if self.threshold else "")


@dataclass
class Output:
    """Generated tokens, <|eos|> included if reached; `iterations` excludes the prefill.

    An iteration is one forward in AR and diffusion (commits count), one draft and verify in
    self-speculation. The first token comes with the prefill.
    """

    tokens: list[int] = field(default_factory=list)
    iterations: int = 0


class Network:
    """The released architecture over a KV cache, from a checkpoint folder."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        config = json.loads((folder / "config.json").read_text())
        rope = config["rope_parameters"]
        self.shape = Shape(
            vocab=config["vocab_size"],
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            mlp=config["intermediate_size"],
            norm_eps=config["rms_norm_eps"],
            rope_theta=rope["rope_theta"],
            rope_factor=rope["factor"],
            rope_original=rope["original_max_position_embeddings"],
            beta_fast=rope["beta_fast"],
            beta_slow=rope["beta_slow"],
        )
        self.mask_id: int = config["mask_token_id"]
        self.eos_id: int = config["eos_token_id"]
        self.dtype = dtype
        self.weights = {
            name: tensor.to(dtype)
            for name, tensor in load_file(folder / "model.safetensors").items()
        }
        # Query scaling is 1 below `rope_original`, the longest context this decoder takes.
        cos, sin = rotary_table(self.shape, self.shape.rope_original)
        self.cos, self.sin = cos.to(dtype), sin.to(dtype)
        self.cache: list[Tensor] = []

    def allocate(self, rows: int, length: int) -> None:
        """Per layer a cache [2, rows, length, kv_heads, head_dim] of keys and values."""
        size = (2, rows, length, self.shape.kv_heads, self.shape.head_dim)
        self.cache = [torch.zeros(size, dtype=self.dtype) for _ in range(self.shape.layers)]

    def keep(self, rows: Tensor) -> None:
        self.cache = [layer[:, rows] for layer in self.cache]

    def forward(self, tokens: Tensor, start: Tensor, causal: Tensor) -> Tensor:
        """Logits [B, S, V] of tokens [B, S] at positions start [B] onward.

        A row of `causal` [B] says whether it sees its block causally or both ways. Keys and values
        are always written; those of a bidirectional pass are overwritten by the causal pass over
        the same positions before anything reads them.
        """
        s, batch, length = self.shape, tokens.shape[0], tokens.shape[1]
        position = start[:, None] + torch.arange(length)
        end = int(start.max()) + length
        horizon = torch.where(causal[:, None], position, start[:, None] + length - 1)
        visible = torch.arange(end) <= horizon[:, :, None]
        row = torch.arange(batch)[:, None]
        cos, sin = self.cos[position][:, :, None], self.sin[position][:, :, None]
        x = F.embedding(tokens, self.weights["encoder.embed_tokens.weight"])
        for i, cache in enumerate(self.cache):
            h = self._norm(x, f"encoder.layers.{i}.input_layernorm")
            attention = f"encoder.layers.{i}.self_attn."
            q, k, v = (
                self._linear(h, f"{attention}{name}_proj").view(batch, length, -1, s.head_dim)
                for name in "qkv"
            )
            cache[0][row, position] = rotate(k, cos, sin)
            cache[1][row, position] = v
            mixed = F.scaled_dot_product_attention(
                rotate(q, cos, sin).transpose(1, 2),
                cache[0][:, :end].transpose(1, 2),
                cache[1][:, :end].transpose(1, 2),
                attn_mask=visible[:, None],
                enable_gqa=True,
            )
            x = x + self._linear(mixed.transpose(1, 2).flatten(2), f"{attention}o_proj")
            h = self._norm(x, f"encoder.layers.{i}.post_attention_layernorm")
            mlp = f"encoder.layers.{i}.mlp."
            gated = F.silu(self._linear(h, f"{mlp}gate_proj")) * self._linear(h, f"{mlp}up_proj")
            x = x + self._linear(gated, f"{mlp}down_proj")
        logits = self._linear(self._norm(x, "encoder.norm"), "diffusion_head").float()
        logits[..., self.mask_id] = -math.inf
        return logits

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.rms_norm(x, (self.shape.hidden,), weight, self.shape.norm_eps)


@dataclass
class _Rows:
    """The rows still decoding: committed length [B], seed token [B], block so far [B, block]."""

    length: Tensor
    seed: Tensor
    block: Tensor
    output: list[Output]


class Decoder:
    def __init__(self, network: Network) -> None:
        self.network = network

    @torch.inference_mode()
    def decode(self, prompts: list[list[int]], plan: Plan, max_new: int = 112) -> list[Output]:
        """Greedy outputs for tokenized prompts, each at most `max_new` tokens."""
        net = self.network
        lengths = torch.tensor([len(p) for p in prompts])
        width = int(lengths.max())
        net.allocate(len(prompts), width + max_new + plan.block)
        padded = torch.tensor([p + [0] * (width - len(p)) for p in prompts])
        causal = torch.ones(len(prompts), dtype=torch.bool)
        logits = net.forward(padded, torch.zeros_like(lengths), causal)
        seed = logits[torch.arange(len(prompts)), lengths - 1].argmax(-1)
        outputs = [Output([token]) for token in seed.tolist()]
        rows = _Rows(lengths, seed, self._fresh_blocks(seed, plan.block), list(outputs))
        step = {"ar": self._ar, "diffusion": self._diffusion, "self_speculation": self._speculate}
        self._drop_finished(rows, max_new)
        while rows.output:
            step[plan.mode](rows, plan)
            self._drop_finished(rows, max_new)
        return outputs

    def _fresh_blocks(self, seed: Tensor, block: int) -> Tensor:
        masks = torch.full((len(seed), block), self.network.mask_id)
        masks[:, 0] = seed
        return masks

    def _emit(self, output: Output, tokens: list[int]) -> None:
        """Append tokens up to and including the first <|eos|>."""
        eos = self.network.eos_id
        output.tokens += tokens[: tokens.index(eos) + 1] if eos in tokens else tokens

    def _drop_finished(self, rows: _Rows, max_new: int) -> None:
        for output in rows.output:
            del output.tokens[max_new:]
        live = [
            i
            for i, output in enumerate(rows.output)
            if output.tokens[-1] != self.network.eos_id and len(output.tokens) < max_new
        ]
        if len(live) < len(rows.output):
            index = torch.tensor(live, dtype=torch.long)
            rows.length, rows.seed = rows.length[index], rows.seed[index]
            rows.block, rows.output = rows.block[index], [rows.output[i] for i in live]
            self.network.keep(index)

    def _ar(self, rows: _Rows, plan: Plan) -> None:
        causal = torch.ones(len(rows.seed), dtype=torch.bool)
        logits = self.network.forward(rows.seed[:, None], rows.length, causal)
        rows.seed = logits[:, 0].argmax(-1)
        rows.length = rows.length + 1
        for output, token in zip(rows.output, rows.seed.tolist(), strict=True):
            output.iterations += 1
            self._emit(output, [token])

    def _speculate(self, rows: _Rows, plan: Plan) -> None:
        """Draft in one bidirectional pass; keep what one causal pass confirms, plus one token."""
        causal = torch.ones(len(rows.seed), dtype=torch.bool)
        blocks = self._fresh_blocks(rows.seed, plan.block)
        draft = self.network.forward(blocks, rows.length, ~causal).argmax(-1)
        draft[:, 0] = rows.seed
        verified = self.network.forward(draft, rows.length, causal).argmax(-1)
        agree = (verified[:, :-1] == draft[:, 1:]).int().cumprod(1).sum(1)
        rows.seed = verified.gather(1, agree[:, None])[:, 0]
        rows.length = rows.length + agree + 1
        for output, tokens, count in zip(
            rows.output, verified.tolist(), agree.tolist(), strict=True
        ):
            output.iterations += 1
            self._emit(output, tokens[: count + 1])

    def _diffusion(self, rows: _Rows, plan: Plan) -> None:
        """Rows with masks left denoise; the others commit their block and get the next seed."""
        net, masked = self.network, rows.block == self.network.mask_id
        commit = ~masked.any(1)
        logits = net.forward(rows.block, rows.length, commit)
        confidence, best = logits.softmax(-1).max(-1)
        confidence = torch.where(masked, confidence, -1.0)
        reveal = confidence >= plan.threshold
        reveal[torch.arange(len(reveal)), confidence.argmax(1)] = True
        rows.block = torch.where(reveal & masked, best, rows.block)
        # An <|eos|> with no mask before it ends the answer: nothing left to commit.
        open_before = (rows.block == net.mask_id).int().cumsum(1) > 0
        ended = ((rows.block == net.eos_id) & ~open_before)[:, 1:].any(1) & ~commit
        seed = logits[:, -1].argmax(-1)
        for i, output in enumerate(rows.output):
            output.iterations += 1
            if commit[i]:
                self._emit(output, [*rows.block[i, 1:].tolist(), int(seed[i])])
            elif ended[i]:
                self._emit(output, rows.block[i, 1:].tolist())
        rows.length = torch.where(commit, rows.length + plan.block, rows.length)
        rows.seed = torch.where(commit, seed, rows.seed)
        fresh = self._fresh_blocks(rows.seed, plan.block)
        rows.block = torch.where(commit[:, None], fresh, rows.block)

"""Hugging Face `generate` on the same weights, used as its users would: the AR reference.

`Ministral3ForCausalLM` is transformers' own class for this backbone. Prompts of a batch are padded
on the left, decoding is greedy with a KV cache, and a batch runs until its last row has ended.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Ministral3Config, Ministral3ForCausalLM, StoppingCriteria
from transformers.generation import StoppingCriteriaList

from benchmarks.workload import Workload
from replicas.torch_engine.checkpoint import Checkpoint

_CONFIG_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "rms_norm_eps",
    "max_position_embeddings",
    "rope_parameters",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


@dataclass(frozen=True, slots=True)
class HfRun:
    """One pass over the prompts. `computed` counts every row of every step, ended rows too."""

    outputs: tuple[tuple[int, ...], ...]
    computed: int
    seconds: float
    decode_seconds: float

    @property
    def tokens(self) -> int:
        return sum(map(len, self.outputs))

    @property
    def decode_rate(self) -> float:
        """Tokens after each row's first, per second spent after the first step."""
        return (self.tokens - len(self.outputs)) / self.decode_seconds

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def computed_rate(self) -> float:
        return self.computed / self.seconds


class _FirstStep(StoppingCriteria):  # type: ignore[misc]
    """Stops nothing; notes when the first step (the prefill) was over."""

    def __init__(self) -> None:
        self.at: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        if self.at is None:
            self.at = time.perf_counter()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


class HfModel:
    """The checkpoint's weights in transformers' class."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        raw = json.loads((checkpoint.path / "config.json").read_text(encoding="utf-8"))
        config = Ministral3Config(**{key: raw[key] for key in _CONFIG_KEYS if key in raw})
        self.pad = int(raw.get("pad_token_id") or 0)
        self.eos = frozenset(checkpoint.config.eos_token_ids)
        self.model = Ministral3ForCausalLM(config).to(dtype).eval()
        renamed = {_hf_name(n): w for n, w in checkpoint.weights.items() if ".lora_" not in n}
        self.model.load_state_dict(renamed, strict=True)

    def run(self, workload: Workload, batch: int) -> HfRun:
        """`batch` prompts at a time, in order; those that do not fill a batch are left out."""
        outputs: list[tuple[int, ...]] = []
        computed, seconds, decode = 0, 0.0, 0.0
        whole = len(workload.prompts) // batch * batch or len(workload.prompts)
        for start in range(0, whole, batch):
            prompts = workload.prompts[start : start + batch]
            rows, steps, took, after_first = self._generate(prompts, workload.max_tokens)
            outputs += rows
            computed += steps * len(prompts)
            seconds, decode = seconds + took, decode + after_first
        return HfRun(tuple(outputs), computed, seconds, decode)

    @torch.inference_mode()
    def _generate(
        self, prompts: tuple[tuple[int, ...], ...], max_tokens: int
    ) -> tuple[list[tuple[int, ...]], int, float, float]:
        width = max(map(len, prompts))
        padded = [[self.pad] * (width - len(p)) + list(p) for p in prompts]
        seen = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
        first = _FirstStep()
        started = time.perf_counter()
        output = self.model.generate(
            torch.tensor(padded),
            attention_mask=torch.tensor(seen),
            max_new_tokens=max_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=self.pad,
            stopping_criteria=StoppingCriteriaList([first]),
        )
        ended = time.perf_counter()
        new = output[:, width:].tolist()
        assert first.at is not None
        return [self._cut(row) for row in new], len(new[0]), ended - started, ended - first.at

    def _cut(self, row: list[int]) -> tuple[int, ...]:
        """The row up to its end-of-sequence token, that included, as the engine counts it."""
        end = next((i for i, token in enumerate(row) if token in self.eos), len(row) - 1)
        return tuple(row[: end + 1])


def _hf_name(name: str) -> str:
    if name == "diffusion_head.weight":
        return "lm_head.weight"
    return "model." + name.removeprefix("encoder.")

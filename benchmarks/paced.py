"""The embedded engine on an emulated device: a forward takes a fixed time and computes nothing.

Scheduler, sampling, text and threads are the engine's own. Only the matrix products are gone, which
would run on a GPU and not, as here, on the cores that serve HTTP. So what is left of a figure is
the serving path. Every token is the same, and every draft is right.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from replicas.deployment import ReplicaOptions
from replicas.torch_engine.checkpoint import load_checkpoint, resolve
from replicas.torch_engine.engine import EngineLimits, TorchEngine
from replicas.torch_engine.kv_cache import SCRATCH_TOKENS
from replicas.torch_engine.model import Batch, Model
from replicas.torch_engine.threaded import ThreadedEngine

FORWARD_S = 0.010
TOKEN = 20


class PacedForward:
    """Takes `FORWARD_S` and always predicts `TOKEN`. Sleeping leaves the core free, as waiting for
    a GPU does."""

    def __init__(self, vocab_size: int) -> None:
        self._logits = torch.zeros(1, vocab_size)
        self._logits[0, TOKEN] = 30.0

    def __call__(self, batch: Batch, kv: list[torch.Tensor]) -> torch.Tensor:
        time.sleep(FORWARD_S)
        wanted = batch.tokens if batch.logit_index is None else batch.logit_index
        return self._logits.expand(len(wanted), -1)


def open_engine(options: ReplicaOptions) -> tuple[ThreadedEngine, Any]:
    """What a replica opens where `ReplicaOptions.engine` is `benchmarks.paced:open_engine`."""
    checkpoint = load_checkpoint(resolve(options.model))
    limits = EngineLimits(
        max_context_tokens=options.max_model_len,
        max_sequences=options.max_num_seqs,
        kv_tokens=options.max_num_seqs * (options.max_model_len + SCRATCH_TOKENS),
        max_step_tokens=options.max_num_batched_tokens,
        max_waiting=options.max_waiting,
    )

    def build() -> TorchEngine:
        torch.set_num_threads(1)
        positions = limits.max_context_tokens + SCRATCH_TOKENS
        weights, config = checkpoint.weights, checkpoint.config
        cpu = torch.device("cpu")
        model = Model(config, weights, max_positions=positions, dtype=torch.float32, device=cpu)
        backend: Any = checkpoint.tokenizer.backend_tokenizer
        return TorchEngine(model, backend, limits, forward=PacedForward(config.vocab_size))

    return ThreadedEngine(build, {"engine": "paced", "forward_s": FORWARD_S}), checkpoint.tokenizer

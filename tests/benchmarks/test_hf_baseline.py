"""`pytest tests/benchmarks/test_hf_baseline.py`: the reference decodes the same model."""

from __future__ import annotations

import torch

from benchmarks.closed_loop import measure
from benchmarks.hf_baseline import HfModel
from benchmarks.workload import DEMO_CHECKPOINT, held_out_mix
from policies.vocabulary import AR
from replicas.torch_engine.checkpoint import load_checkpoint
from replicas.torch_engine.engine import EngineLimits, TorchEngine, positions_needed
from replicas.torch_engine.model import Model


def test_padded_batch_yields_the_engines_tokens_and_counts_only_them() -> None:
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)
    workload = held_out_mix(checkpoint, 3, max_tokens=24)
    limits = EngineLimits()
    model = Model(
        checkpoint.config,
        checkpoint.weights,
        max_positions=positions_needed(limits),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    ours = measure(TorchEngine(model, None, limits), workload, AR, 2, 6).outputs
    run = HfModel(checkpoint, torch.float32).run(workload, 3)
    assert len(ours) == 3
    assert [ours[i] for i in range(3)] == list(run.outputs)
    assert run.tokens == sum(len(ours[i]) for i in range(3))
    assert run.computed == 3 * max(map(len, run.outputs))
    assert run.decode_seconds < run.seconds

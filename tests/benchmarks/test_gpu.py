"""`pytest tests/benchmarks/test_gpu.py`: the GPU command, rehearsed on a CPU with tiny shapes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_cards import sheet_peak
from benchmarks.gpu_shapes import SHAPES, RandomWeights, forward_bytes, kv_bytes
from benchmarks.gpu_steps import Effort, StepTimer
from benchmarks.gpu_sweep import Budget, Sweep, SweepPlan
from policies.vocabulary import AR, Plan, all_plans
from replicas.torch_engine.model import Model

_CPU = torch.device("cpu")
_TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    arguments = ["--device", "cpu", "--quick", "--model-shape", "tiny", "--json", str(path)]
    assert gpu.main(arguments) == 0
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def model() -> Model:
    weights = RandomWeights(_TINY, torch.float32, _CPU)
    return Model(_TINY, weights, max_positions=512, dtype=torch.float32, device=_CPU)


def test_rehearsal_says_that_it_is_one(rehearsal: dict) -> None:
    assert rehearsal["rehearsal"] is True
    assert {"machine", "commit", "date", "versions"} <= rehearsal.keys()


def test_rehearsal_is_exact(rehearsal: dict) -> None:
    checks = rehearsal["exactness"]
    assert {(c["sampled"], c["graphs"]) for c in checks} == {
        (sampled, graphs) for sampled in (False, True) for graphs in (False, True)
    }
    assert all(c["ok"] for c in checks)


def test_rehearsal_measures_every_cell(rehearsal: dict) -> None:
    cells = {(s["context"], s["plan"], s["sequences"], s["graphs"]) for s in rehearsal["steps"]}
    assert cells == {
        (context, str(plan), sequences, graphs)
        for context in (64, 128)
        for plan in all_plans()
        for sequences in (1, 2)
        for graphs in (False, True)
    }
    assert all(s["wall_ms"] >= s["forward_ms"] > 0 for s in rehearsal["steps"])
    assert rehearsal["skipped"] == rehearsal["failed"] == []


def test_rehearsal_names_the_longest_kernels(rehearsal: dict) -> None:
    assert {(k["plan"], k["sequences"]) for k in rehearsal["kernels"]} == {
        ("ar", 1),
        ("ar", 2),
        ("self_speculation/8", 2),
    }
    assert all(0 < k["share"] <= 1 for k in rehearsal["kernels"])


def test_throughput_names_where_acceptance_comes_from(rehearsal: dict) -> None:
    for found in rehearsal["throughput"]:
        assert "6.82" in found["acceptance"]["source"]
        assert {"ar", "self_speculation/8"} <= found["tokens_per_s"].keys()
        assert "self_speculation/32" in found["ar_crossover"]


def test_bars_have_a_verdict_each(rehearsal: dict) -> None:
    assert len(rehearsal["bars"]) == 3
    for bar in rehearsal["bars"]:
        assert bar.keys() >= {"name", "value", "bar", "ok"}
        assert bar["ok"] is True


def test_steps_do_not_advance_the_sequences(model: Model) -> None:
    timer = StepTimer("tiny", model, 64, 2)
    rows = timer._sequences(2)
    before = [(list(s.tokens), s.cached) for s in rows]
    for plan in all_plans():
        timer._step(plan, rows, model.forward)
    assert [(s.tokens, s.cached) for s in rows] == before
    assert all(s.block is None for s in rows)


def _sweep(budget: float, free: float, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    monkeypatch.setattr(Sweep, "_free", lambda _: free)
    monkeypatch.setattr(Sweep, "_weights_fit", lambda _: True)
    what = SweepPlan((AR, Plan.parse("self_speculation/8")), (1, 2), (64,), Effort(0, 1, 1))
    sweep = Sweep("tiny", _TINY, torch.float32, _CPU, Budget(budget), what, lambda _: None)
    sweep.run()
    return sweep


def test_sweep_without_time_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = _sweep(0.0, 1e9, monkeypatch)
    assert sweep.steps == []
    assert sweep.skipped == ["tiny, context 64: out of time"]


def test_sweep_without_memory_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    row = 128 * kv_bytes(_TINY, 4)
    logits = 6 * 8 * _TINY.vocab_size * 4
    sweep = _sweep(60.0, (2.5 * row + logits) / 0.95, monkeypatch)
    assert {s.sequences for s in sweep.steps} == {1}
    assert sweep.skipped[0].startswith("tiny, context 64: 2 sequences: KV cache and logits need")


def test_shapes_have_the_released_sizes() -> None:
    assert SHAPES["3b"].num_parameters == 3_831_659_520
    assert SHAPES["8b"].num_parameters == 8_489_553_920
    assert SHAPES["14b"].num_parameters == 13_506_073_600
    assert kv_bytes(SHAPES["8b"], 2) == 139_264
    assert forward_bytes(SHAPES["8b"], 2) == pytest.approx(15.91e9, rel=1e-3)


def test_random_weights_are_made_anew_and_alike() -> None:
    weights = RandomWeights(_TINY, torch.float32, _CPU)
    name = "diffusion_head.weight"
    assert weights[name] is not weights[name]
    assert torch.equal(weights[name], weights[name])


def test_cards_are_told_apart() -> None:
    hbm3, pcie = sheet_peak("NVIDIA H100 80GB HBM3"), sheet_peak("NVIDIA H100 PCIe")
    assert hbm3 is not None
    assert pcie is not None
    assert hbm3.bandwidth > pcie.bandwidth
    assert sheet_peak("NVIDIA GB200") != sheet_peak("NVIDIA B200")
    assert sheet_peak("Some Other Card") is None


def test_imports_neither_ray_nor_plotting() -> None:
    """The GPU machine has torch, numpy, transformers, tokenizers, safetensors and rich."""
    code = (
        "import sys, benchmarks.gpu; "
        "print({'ray', 'matplotlib', 'fastapi', 'pydantic'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"

"""Reading checkpoints in NVIDIA's layout, and what the draft adapter does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from policies.vocabulary import Quality, all_plans
from replicas.torch_engine.checkpoint import load_checkpoint, resolve
from replicas.torch_engine.loader import LoadOptions, build_engine
from replicas.torch_engine.model_config import CheckpointError
from tests.replicas.torch_engine.builders import (
    COPYING,
    Fed,
    copying_weights,
    greedy_reference,
    transformers_model,
)
from tests.replicas.torch_engine.checkpoints import lora_tensors, write_checkpoint
from tests.replicas.torch_engine.runs import EXACT, SPECULATION, pin, request, run_all


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint")


PROMPTS = [tuple(3 + (i * i + n) % 40 for i in range(n)) for n in (13, 20, 33)]


def decode(folder: Path, plan, quality=Quality.EXACT):
    engine = build_engine(load_checkpoint(folder), LoadOptions())
    pin(engine, plan)
    requests = [request(str(i), p, 32, quality=quality) for i, p in enumerate(PROMPTS)]
    outcomes = run_all(engine, requests)
    return [outcomes[str(i)].tokens for i in range(len(PROMPTS))], engine.report().plans[plan]


def test_a_checkpoint_in_the_released_layout_decodes_in_every_mode(folder):
    checkpoint = load_checkpoint(folder)
    reference = transformers_model(checkpoint.config, copying_weights())
    expected = [greedy_reference(reference, checkpoint.config, p, 32)[0] for p in PROMPTS]
    for plan in all_plans():
        tokens, counters = decode(folder, plan, Quality.ANY)
        assert counters.committed == 31 * len(PROMPTS)
        if plan.is_exact:
            assert tokens == expected
    assert not (folder / "executed").exists()


def test_one_file_holds_the_same_as_its_shards(folder):
    expected = decode(folder, EXACT[0])[0]
    shards = sorted(folder.glob("model-*.safetensors"))
    save_file(load_file(shards[0]) | load_file(shards[1]), folder / "model.safetensors")
    for file in (*shards, folder / "model.safetensors.index.json"):
        file.unlink()
    assert decode(folder, EXACT[0])[0] == expected


def test_the_adapter_changes_drafts_only(folder):
    with_adapter = {p: decode(folder, p) for p in EXACT}
    for file in (folder / "linear_spec_lora").iterdir():
        file.unlink()
    (folder / "linear_spec_lora").rmdir()
    without = {p: decode(folder, p) for p in EXACT}
    tokens = [tokens for tokens, _ in (*with_adapter.values(), *without.values())]
    assert all(t == tokens[0] for t in tokens)
    for plan in SPECULATION:
        assert with_adapter[plan][1].accepted != without[plan][1].accepted


def test_a_draft_pass_is_that_of_a_merged_adapter(folder):
    """o_proj + alpha / r * B @ A in draft passes; o_proj alone in all others."""
    checkpoint, tensors = load_checkpoint(folder), lora_tensors()
    merged, plain = dict(copying_weights()), copying_weights()
    for i in range(COPYING.num_layers):
        name = f"encoder.layers.{i}.self_attn.o_proj"
        a, b = (tensors[f"base_model.model.{name}.lora_{side}.weight"] for side in "AB")
        merged[f"{name}.weight"] = plain[f"{name}.weight"] + 16 / 4 * b @ a
    block = torch.tensor([7] + [COPYING.mask_token_id] * 15)

    def logits(weights, draft):
        return Fed(checkpoint.config, weights).feed(block, causal=False, draft=draft)

    with_adapter = logits(checkpoint.weights, True)
    torch.testing.assert_close(with_adapter, logits(merged, False), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(checkpoint.weights, False), logits(plain, False))
    assert (with_adapter - logits(plain, True)).nan_to_num(0).abs().max() > 0.1


def test_a_context_beyond_the_model_is_refused(folder):
    limits = replace(LoadOptions().limits, max_context_tokens=5000)
    with pytest.raises(CheckpointError, match=r"max_context_tokens 5000 .* 4096"):
        build_engine(load_checkpoint(folder), LoadOptions(limits=limits))


@pytest.mark.parametrize("name", ["/no/such/folder", "./relative", "a/b/c", "plain"])
def test_what_is_neither_folder_nor_hub_id_is_refused_without_asking_the_hub(name):
    with pytest.raises(CheckpointError, match="no such folder"):
        resolve(name)

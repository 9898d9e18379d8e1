"""Each way in which a checkpoint can be broken gives one error that names it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from replicas.torch_engine.checkpoint import load_checkpoint
from replicas.torch_engine.model_config import CheckpointError
from tests.replicas.torch_engine.builders import copying_weights
from tests.replicas.torch_engine.checkpoints import CONFIG, write_checkpoint, write_json


@pytest.fixture
def folder(tmp_path):
    return write_checkpoint(tmp_path / "checkpoint")


def edit_json(file: str, **changes):
    def apply(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        value.update(changes)
        write_json(folder / file, {k: v for k, v in value.items() if v is not ...})

    return apply


def edit_rope(**changes):
    return edit_json("config.json", rope_parameters=CONFIG["rope_parameters"] | changes)


def edit_tensors(change, file="model-00001-of-00002.safetensors"):
    def apply(folder: Path) -> None:
        tensors = load_file(folder / file)
        change(tensors)
        save_file(tensors, folder / file)

    return apply


def truncate(folder: Path) -> None:
    file = folder / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickle_only(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    torch.save(copying_weights(), folder / "pytorch_model.bin")


EMBEDDING = "encoder.embed_tokens.weight"
HEAD = "diffusion_head.weight"
LORA_FILE = "linear_spec_lora/adapter_model.safetensors"
LORA_CONFIG = "linear_spec_lora/adapter_config.json"
LORA_A = "base_model.model.encoder.layers.0.self_attn.o_proj.lora_A.weight"
BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: not valid"),
    "config is a list": (lambda f: write_json(f / "config.json", []), "config.json.*object"),
    "no hidden_size": (edit_json("config.json", hidden_size=...), "hidden_size .* None"),
    "hidden_size is text": (edit_json("config.json", hidden_size="48"), "hidden_size .* '48'"),
    "no mask token": (edit_json("config.json", mask_token_id=...), "mask_token_id .* None"),
    "mask token -1": (edit_json("config.json", mask_token_id=-1), "mask_token_id .* -1"),
    "mask token too high": (edit_json("config.json", mask_token_id=48), "mask_token_id 48"),
    "other architecture": (edit_json("config.json", model_type="llama"), "model_type is 'llama'"),
    "attention bias": (edit_json("config.json", attention_bias=True), "attention_bias is True"),
    "mlp bias": (edit_json("config.json", mlp_bias=True), "mlp_bias is True"),
    "sliding window": (edit_json("config.json", sliding_window=512), "sliding_window is 512"),
    "activation": (edit_json("config.json", hidden_act="gelu"), "hidden_act is 'gelu'"),
    "heads do not divide": (edit_json("config.json", num_key_value_heads=3), "multiple of"),
    "rope llama3": (edit_rope(rope_type="llama3"), "rope_type 'llama3'"),
    "rope without theta": (edit_rope(rope_theta=None), "rope_theta is missing"),
    "rope factor is text": (edit_rope(factor="16"), "factor must be a number, found '16'"),
    "rope attention factor": (edit_rope(attention_factor=2.0), "attention_factor"),
    "rope without truncation": (edit_rope(truncate=False), "truncate is False"),
    "partial rope": (edit_rope(partial_rotary_factor=0.5), "partial_rotary_factor"),
    "yarn without original": (
        edit_rope(original_max_position_embeddings=None),
        "original_max_position_embeddings",
    ),
    "eos is text": (edit_json("config.json", eos_token_id="2"), "eos_token_id '2'"),
    "missing tensor": (edit_tensors(lambda t: t.pop(HEAD)), f"tensor {HEAD} .* is missing"),
    "extra tensor": (
        edit_tensors(lambda t: t.update({"encoder.extra": torch.ones(1)})),
        "unexpected tensor encoder.extra",
    ),
    "misshapen tensor": (
        edit_tensors(lambda t: t.update({HEAD: torch.ones(48, 40)})),
        rf"{HEAD} has shape \[48, 40\], .* \[48, 48\]",
    ),
    "quantised tensor": (
        edit_tensors(lambda t: t.update({HEAD: torch.ones(48, 48, dtype=torch.int8)})),
        f"{HEAD} is int8; quantised",
    ),
    "tensor twice": (
        edit_tensors(
            lambda t: t.update({HEAD: torch.ones(48, 48)}), "model-00002-of-00002.safetensors"
        ),
        f"tensor {HEAD} is also in",
    ),
    "missing shard": (
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        "model-00002-of-00002.safetensors: shard is missing",
    ),
    "truncated shard": (truncate, "model-00002-of-00002.safetensors: not a readable"),
    "index without map": (
        edit_json("model.safetensors.index.json", weight_map=...),
        "index.json: has no weight_map",
    ),
    "shard outside": (
        edit_json("model.safetensors.index.json", weight_map={HEAD: "../model.safetensors"}),
        "outside the folder",
    ),
    "pickle only": (pickle_only, "holds neither model.safetensors nor"),
    "adapter elsewhere": (
        edit_json(LORA_CONFIG, target_modules=["q_proj"]),
        r"target_modules \['q_proj'\]",
    ),
    "adapter without rank": (edit_json(LORA_CONFIG, r=...), "needs r and lora_alpha"),
    "adapter rank differs": (edit_json(LORA_CONFIG, r=8), r"lora_A.weight has shape \[4, 64\]"),
    "adapter misses a tensor": (
        edit_tensors(lambda t: t.pop(LORA_A), LORA_FILE),
        "layers.0.self_attn.o_proj.lora_A.weight .* is missing",
    ),
    "adapter of another kind": (edit_json(LORA_CONFIG, use_dora=True), "use_dora is True"),
    "adapter with other scales": (edit_json(LORA_CONFIG, alpha_pattern={"x": 2}), "alpha_pattern"),
    "adapter without weights": (
        lambda f: (f / LORA_FILE).unlink(),
        "adapter_model.safetensors: .*missing",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json: no such file"),
    "bad tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json: not"),
}


@pytest.mark.parametrize(("break_it", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_checkpoint_gives_one_clear_error(folder, break_it, message):
    break_it(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_checkpoint(folder)
    assert str(folder) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1

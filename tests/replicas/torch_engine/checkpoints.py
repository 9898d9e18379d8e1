"""Writing a tiny checkpoint in NVIDIA's released layout, the 8B's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.replicas.torch_engine.builders import COPYING, copying_weights

CONFIG = {
    "architectures": ["NemotronLabsDiffusionModel"],
    "auto_map": {
        "AutoConfig": "configuration_nemotron_labs_diffusion.NemotronLabsDiffusionConfig",
        "AutoModel": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
    },
    "model_type": "nemotron_labs_diffusion",
    "vocab_size": COPYING.vocab_size,
    "hidden_size": COPYING.hidden_size,
    "intermediate_size": COPYING.intermediate_size,
    "num_hidden_layers": COPYING.num_layers,
    "num_attention_heads": COPYING.num_heads,
    "num_key_value_heads": COPYING.num_kv_heads,
    "head_dim": COPYING.head_dim,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 256,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    },
    "bos_token_id": 0,
    "eos_token_id": 2,
    "mask_token_id": 1,
    "block_size": 32,
    "dlm_paradigm": "bidirectional",
    "torch_dtype": "float32",
    "use_cache": False,
}
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 16, "target_modules": ["o_proj"]}
TRAP = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\n"


def lora_tensors(rank: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    width, tensors = COPYING.num_heads * COPYING.head_dim, {}
    for i in range(COPYING.num_layers):
        name = f"base_model.model.encoder.layers.{i}.self_attn.o_proj.lora"
        tensors[f"{name}_A.weight"] = torch.randn(rank, width, generator=generator)
        tensors[f"{name}_B.weight"] = 0.2 * torch.randn(
            COPYING.hidden_size, rank, generator=generator
        )
    return tensors


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def write_checkpoint(folder: Path) -> Path:
    """The layout of the 8B: shards with an index, draft adapter, tokenizer, remote code beside."""
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    weights = copying_weights()
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[::2]}
    shards["model-00002-of-00002.safetensors"] = names[1::2]
    for file, inside in shards.items():
        save_file({n: weights[n].clone() for n in inside}, folder / file, {"format": "pt"})
    index = {n: f for f, inside in shards.items() for n in inside}
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": 1}, "weight_map": index},
    )
    adapter = folder / "linear_spec_lora"
    adapter.mkdir()
    write_json(adapter / "adapter_config.json", LORA)
    save_file(lora_tensors(), adapter / "adapter_model.safetensors")
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(COPYING.vocab_size)}, unk_token="w0"))
    words.save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": "{{ messages }}"},
    )
    for name in ("configuration", "modeling"):
        (folder / f"{name}_nemotron_labs_diffusion.py").write_text(TRAP)
    return folder

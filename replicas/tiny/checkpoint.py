"""Write a trained model as a checkpoint folder in the layout of the released models."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from replicas.tiny.tokenizer import EOS, MASK, PAD, save_tokenizer, token_id
from replicas.tiny.train_model import Shape, TrainModel


def config_of(shape: Shape, tokenizer: Tokenizer) -> dict[str, object]:
    """The contents of `config.json`."""
    eos = token_id(tokenizer, EOS)
    return {
        "architectures": ["NemotronLabsDiffusionModel"],
        "model_type": "nemotron_labs_diffusion",
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "max_position_embeddings": shape.max_positions,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": shape.rope_theta,
            "factor": shape.rope_factor,
            "original_max_position_embeddings": shape.rope_original,
            "beta_fast": shape.beta_fast,
            "beta_slow": shape.beta_slow,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
        "bos_token_id": eos,
        "eos_token_id": eos,
        "pad_token_id": token_id(tokenizer, PAD),
        "mask_token_id": token_id(tokenizer, MASK),
        "block_size": 32,
        "dlm_paradigm": "bidirectional",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def tensors_of(model: TrainModel) -> dict[str, Tensor]:
    """The weights in bfloat16 under the released names; fused matrices are split."""
    s = model.shape
    kv = s.kv_heads * s.head_dim
    tensors = {
        "encoder.embed_tokens.weight": model.embedding.weight,
        "encoder.norm.weight": model.norm,
        "diffusion_head.weight": model.embedding.weight,
    }
    for i, layer in enumerate(model.layers):
        prefix = f"encoder.layers.{i}."
        q, k, v = torch.split(layer.qkv.weight, [s.heads * s.head_dim, kv, kv])
        gate, up = layer.gate_up.weight.chunk(2)
        parts = {
            "input_layernorm": layer.attention_norm,
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.o.weight,
            "post_attention_layernorm": layer.mlp_norm,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down.weight,
        }
        tensors |= {f"{prefix}{name}.weight": tensor for name, tensor in parts.items()}
    # clone: safetensors refuses tensors that share memory.
    return {k: v.detach().cpu().to(torch.bfloat16).clone() for k, v in tensors.items()}


def save_checkpoint(model: TrainModel, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, generation config, weights and tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(model.shape, tokenizer)
    generation = {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
        "pad_token_id": config["pad_token_id"],
        "do_sample": False,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    save_file(tensors_of(model), folder / "model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)


@torch.no_grad()
def load_weights(model: TrainModel, folder: Path) -> None:
    """The inverse of `tensors_of`: fill the fused training network from a checkpoint folder."""
    tensors = {name: t.float() for name, t in load_file(folder / "model.safetensors").items()}
    model.embedding.weight.copy_(tensors["encoder.embed_tokens.weight"])
    model.norm.copy_(tensors["encoder.norm.weight"])
    for i, layer in enumerate(model.layers):

        def part(name: str, prefix: str = f"encoder.layers.{i}.") -> Tensor:
            return tensors[f"{prefix}{name}.weight"]

        layer.attention_norm.copy_(part("input_layernorm"))
        layer.mlp_norm.copy_(part("post_attention_layernorm"))
        layer.qkv.weight.copy_(torch.cat([part(f"self_attn.{n}_proj") for n in "qkv"]))
        layer.o.weight.copy_(part("self_attn.o_proj"))
        layer.gate_up.weight.copy_(torch.cat([part("mlp.gate_proj"), part("mlp.up_proj")]))
        layer.down.weight.copy_(part("mlp.down_proj"))

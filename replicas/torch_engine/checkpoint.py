"""Reading a checkpoint in NVIDIA's released layout, strictly.

A folder (or a Hugging Face id, fetched once) holds `config.json`, `model.safetensors` or its shards
with `model.safetensors.index.json`, optionally the draft adapter in `linear_spec_lora/`, and the
tokenizer with its chat template. Only safetensors and JSON are read: no pickle, no remote code.
Every tensor that the configuration calls for must be there, with its shape, and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedTokenizerFast

from replicas.torch_engine.model_config import CheckpointError, ModelConfig, read_model_config

ADAPTER_FOLDER = "linear_spec_lora"
_ADAPTER_PREFIX = "base_model.model."
_DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", f"{ADAPTER_FOLDER}/*"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checked checkpoint: configuration, tensors by released name, tokenizer.

    Adapter tensors are named `encoder.layers.{i}.self_attn.o_proj.lora_{A,B}.weight`; their scale
    (alpha / r) is already multiplied into B.
    """

    path: Path
    config: ModelConfig
    weights: Mapping[str, torch.Tensor]
    tokenizer: PreTrainedTokenizerFast


def resolve(model: str, *, revision: str | None = None) -> Path:
    """A local folder as it is, or a Hugging Face id's snapshot, downloaded if it is not cached.

    Raises:
        CheckpointError: neither a folder nor an id that the hub will give.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_absolute() or model.count("/") != 1 or model.startswith("."):
        raise CheckpointError(
            f"{model}: no such folder; give a checkpoint folder or a Hugging Face id (owner/name)"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_DOWNLOADED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{model}: no such folder, and the Hugging Face hub did not give it: {reason}"
        ) from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads and checks everything.

    Raises:
        CheckpointError: names the file and the first missing, extra or misshapen tensor.
    """
    config = read_model_config(path / "config.json")
    weights = dict(_read_tensors(_weight_files(path)))
    _check(weights, expected_shapes(config), path)
    weights.update(read_adapter(path / ADAPTER_FOLDER, config))
    return Checkpoint(path, config, weights, load_tokenizer(path))


def load_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer in `path`, with its chat template."""
    if not (path / "tokenizer.json").is_file():
        raise CheckpointError(
            f"{path / 'tokenizer.json'}: no such file; a fast tokenizer is needed"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # the library raises many kinds, bare Exception among them
        raise CheckpointError(
            f"{path / 'tokenizer.json'}: not a fast tokenizer: {error}"
        ) from error


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of the released layout for this configuration."""
    hidden, inner = config.hidden_size, config.intermediate_size
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embed_tokens.weight": (config.vocab_size, hidden),
        "encoder.norm.weight": (hidden,),
        "diffusion_head.weight": (config.vocab_size, hidden),
    }
    for i in range(config.num_layers):
        layer = f"encoder.layers.{i}"
        shapes |= {
            f"{layer}.input_layernorm.weight": (hidden,),
            f"{layer}.self_attn.q_proj.weight": (q_width, hidden),
            f"{layer}.self_attn.k_proj.weight": (kv_width, hidden),
            f"{layer}.self_attn.v_proj.weight": (kv_width, hidden),
            f"{layer}.self_attn.o_proj.weight": (hidden, q_width),
            f"{layer}.post_attention_layernorm.weight": (hidden,),
            f"{layer}.mlp.gate_proj.weight": (inner, hidden),
            f"{layer}.mlp.up_proj.weight": (inner, hidden),
            f"{layer}.mlp.down_proj.weight": (hidden, inner),
        }
    return shapes


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    single = path / "model.safetensors"
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: has no weight_map")
        files = [path / name for name in sorted(set(map(str, weight_map.values())))]
        if outside := [f for f in files if f.parent.resolve() != path.resolve()]:
            raise CheckpointError(f"{index}: shard {outside[0]} lies outside the folder")
        return files
    if single.is_file():
        return [single]
    raise CheckpointError(f"{path}: holds neither {single.name} nor {index.name}")


def _read_tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    seen: dict[str, Path] = {}
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file}: shard is missing, though the index names it")
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - not a mapping, has no __iter__
                    if name in seen:
                        raise CheckpointError(f"{file}: tensor {name} is also in {seen[name].name}")
                    seen[name] = file
                    yield name, tensors.get_tensor(name)
        except SafetensorError as error:
            raise CheckpointError(f"{file}: not a readable safetensors file: {error}") from error


def _check(
    tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], path: Path
) -> None:
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(f"{path}: tensor {name} {list(shape)} is missing")
        tensor = tensors[name]
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, config.json asks for "
                f"{list(shape)}"
            )
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{path}: tensor {name} is {str(tensor.dtype).removeprefix('torch.')}; quantised "
                "weights are not supported, use a bfloat16 or float32 checkpoint"
            )
    if extra := sorted(tensors.keys() - shapes.keys()):
        more = f" (and {len(extra) - 1} more)" if len(extra) > 1 else ""
        raise CheckpointError(
            f"{path}: unexpected tensor {extra[0]}{more}; is config.json its own?"
        )


def read_adapter(folder: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    """The draft adapter's tensors, or nothing if the checkpoint has none."""
    if not folder.is_dir():
        return {}
    settings = _read_json(folder / "adapter_config.json")
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, (int, float)) or rank < 1:
        raise CheckpointError(f"{folder / 'adapter_config.json'}: needs r and lora_alpha")
    if settings.get("target_modules") not in (["o_proj"], "o_proj"):
        raise CheckpointError(
            f"{folder / 'adapter_config.json'}: target_modules "
            f"{settings.get('target_modules')!r}; supported: ['o_proj']"
        )
    for key in ("use_dora", "alpha_pattern", "rank_pattern"):
        if settings.get(key):
            raise CheckpointError(
                f"{folder / 'adapter_config.json'}: {key} is {settings[key]!r}; not supported"
            )
    width = config.num_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(config.num_layers):
        layer = f"encoder.layers.{i}.self_attn.o_proj"
        shapes[f"{layer}.lora_A.weight"] = (rank, width)
        shapes[f"{layer}.lora_B.weight"] = (config.hidden_size, rank)
    file = folder / "adapter_model.safetensors"
    tensors = {n.removeprefix(_ADAPTER_PREFIX): t for n, t in _read_tensors([file])}
    _check(tensors, shapes, folder)
    scale = alpha / (rank**0.5 if settings.get("use_rslora") else rank)
    return {n: t * scale if ".lora_B." in n else t for n, t in tensors.items()}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return value

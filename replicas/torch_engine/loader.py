"""From a model name and a few operator choices to a ready engine."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from policies.vocabulary import Schedule
from replicas.torch_engine.checkpoint import Checkpoint, load_checkpoint, resolve
from replicas.torch_engine.cuda_graphs import capture_cuda_graph
from replicas.torch_engine.engine import EngineLimits, TorchEngine, positions_needed
from replicas.torch_engine.kv_cache import SCRATCH_TOKENS
from replicas.torch_engine.model import Model
from replicas.torch_engine.model_config import CheckpointError
from replicas.torch_engine.threaded import ThreadedEngine

_log = logging.getLogger(__name__)

_KV_SHARE_OF_FREE_MEMORY = 0.85  # the rest is for activations, logits and graph captures
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """Where and how to run a model.

    `device` is `auto`, `cpu` or `cuda[:n]`. `dtype` is `auto`, `float32` or `bfloat16`; auto takes
    bfloat16 on CUDA and float32 on a CPU, where it keeps exact-class output identical token for
    token under every plan. `threads` 0 leaves the CPU thread count to torch. `cuda_graphs` captures
    decode steps; it has no effect on a CPU.
    """

    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    cuda_graphs: bool = True
    limits: EngineLimits = field(default_factory=EngineLimits)


def resolve_device(name: str) -> torch.device:
    """Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise ValueError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but torch finds no CUDA device")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """Raises ValueError for a dtype this engine does not compute in."""
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if name not in _DTYPES:
        raise ValueError(f"dtype {name!r} is not one of auto, {', '.join(_DTYPES)}")
    return _DTYPES[name]


def _fitting_kv_tokens(model: Model, limits: EngineLimits) -> int:
    """On CUDA most of the memory that the weights left; elsewhere all sequences at full context.

    The CUDA side has not been run.
    """
    wanted = limits.max_sequences * (limits.max_context_tokens + SCRATCH_TOKENS)
    if model.device.type != "cuda":
        return wanted
    free_bytes, _ = torch.cuda.mem_get_info(model.device)
    config = model.config
    token_bytes = config.num_layers * config.kv_width * model.dtype.itemsize
    return min(wanted, int(free_bytes * _KV_SHARE_OF_FREE_MEMORY) // token_bytes)


def build_engine(
    checkpoint: Checkpoint, options: LoadOptions, schedule: Schedule | None = None
) -> TorchEngine:
    """Weights onto the device, a pool beside them, an engine around both.

    Raises:
        CheckpointError: the context limit exceeds what the model was made for.
        ValueError: a device or dtype that cannot be used.
    """
    limits, config = options.limits, checkpoint.config
    if limits.max_context_tokens > config.max_positions:
        raise CheckpointError(
            f"max_context_tokens {limits.max_context_tokens} exceeds the model's "
            f"max_position_embeddings {config.max_positions}; lower it"
        )
    device = resolve_device(options.device)
    dtype = resolve_dtype(options.dtype, device)
    if options.threads:
        torch.set_num_threads(options.threads)
    model = Model(
        config,
        checkpoint.weights,
        max_positions=positions_needed(limits),
        dtype=dtype,
        device=device,
    )
    backend = checkpoint.tokenizer.backend_tokenizer
    assert isinstance(backend, Tokenizer)
    if limits.kv_tokens == 0:
        limits = replace(limits, kv_tokens=_fitting_kv_tokens(model, limits))
    capture = capture_cuda_graph if device.type == "cuda" and options.cuda_graphs else None
    engine = TorchEngine(model, backend, limits, schedule=schedule, capture=capture)
    _log.info("model %s ready on %s in %s", checkpoint.path.name, device, dtype)
    return engine


def open_engine(
    model: str | Path,
    options: LoadOptions,
    schedule: Schedule | None = None,
    prepare: Callable[[TorchEngine], None] | None = None,
) -> tuple[ThreadedEngine, Checkpoint]:
    """Reads the checkpoint now, so that a broken one fails here; `start()` moves it to the device,
    and has `prepare` do what is left to do before the first request, on the engine's thread.

    The second value gives the caller tokenizer and configuration. Its weights are dropped from the
    engine's side once they are on the device.
    """
    checkpoint = load_checkpoint(resolve(str(model)))
    description: dict[str, Any] = {
        "engine": "torch",
        "model": checkpoint.path.name,
        "parameters": checkpoint.config.num_parameters,
        "device": str(resolve_device(options.device)),
        "dtype": str(resolve_dtype(options.dtype, resolve_device(options.device))).split(".")[-1],
        "max_context_tokens": options.limits.max_context_tokens,
        "max_sequences": options.limits.max_sequences,
        "kv_tokens": options.limits.kv_tokens,
    }

    def build() -> TorchEngine:
        engine = build_engine(checkpoint, options, schedule)
        if prepare is not None:
            prepare(engine)
        return engine

    return ThreadedEngine(build, description), checkpoint


def prompt_token_ids(
    tokenizer: PreTrainedTokenizerFast, prompt: str, *, raw: bool = False
) -> tuple[int, ...]:
    """A user's prompt as the model expects it: in the chat template, or `raw` as plain text."""
    if raw or not tokenizer.chat_template:
        return tuple(tokenizer.encode(prompt))
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tuple(tokenizer.encode(text, add_special_tokens=False))

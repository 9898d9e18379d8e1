"""From a model name and a few operator choices to an engine over SGLang."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from policies.vocabulary import BLOCK_LENGTHS, Schedule
from replicas.sglang_engine.engine import Limits, ModelFacts, SGLangEngine
from replicas.sglang_engine.installation import check_installation
from replicas.sglang_engine.protocol import (
    CPU_ENVIRONMENT,
    GRAPHS_VARIABLE,
    cpu_flags,
    gpu_flags,
    launch_flags,
)
from replicas.sglang_engine.server import Command
from replicas.torch_engine.checkpoint import load_tokenizer, resolve
from replicas.torch_engine.loader import resolve_device
from replicas.torch_engine.model_config import CheckpointError, ModelConfig, read_model_config

SPARE_TOKENS = 16
"""SGLang cuts max_new_tokens so that a few positions stay free below its limit; ours is exact."""
ROW_TOKENS = SPARE_TOKENS + max(BLOCK_LENGTHS)
"""What a sequence takes of the KV cache beyond its context: the block being decoded lies behind."""
OURS = frozenset(
    {
        *("--model-path", "--host", "--port", "--device", "--dtype"),
        *("--skip-tokenizer-init", "--incremental-streaming-output"),
        *("--context-length", "--max-running-requests", "--chunked-prefill-size"),
        *(flag for flag in launch_flags() if flag.startswith("--")),
    }
)
"""Arguments that an operator may not give: an option says the same, or the engine rests on it."""


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What to serve with, as the embedded engine's options where they mean the same.

    `python` runs SGLang, empty for this one; `arguments` go to `sglang.launch_server` as they are,
    after everything else, so that they win.
    """

    model: str
    limits: Limits
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    max_step_tokens: int = 512
    kv_tokens: int = 0
    cuda_graphs: bool = False
    python: str = ""
    arguments: tuple[str, ...] = ()


def open_engine(
    options: LaunchOptions, schedule: Schedule | None = None
) -> tuple[SGLangEngine, PreTrainedTokenizerFast]:
    """Reads configuration and tokenizer and looks SGLang up now, so that what is missing fails
    here; `start()` loads the weights.

    Raises:
        CheckpointError, ServerFailed, ValueError: what cannot be served, and why.
    """
    path = resolve(options.model)
    config, tokenizer = read_model_config(path / "config.json"), load_tokenizer(path)
    backend = tokenizer.backend_tokenizer
    assert isinstance(backend, Tokenizer)
    command = command_for(options, path, config)
    check_installation(command.python, {**os.environ, **command.environment})
    facts = ModelFacts(backend, config.vocab_size, frozenset(config.eos_token_ids))
    description = {
        "engine": "sglang",
        "model": path.name,
        "parameters": config.num_parameters,
        "device": str(resolve_device(options.device)),
        "dtype": options.dtype,
        "max_context_tokens": options.limits.max_context_tokens,
        "max_sequences": options.limits.max_sequences,
        "kv_tokens": options.kv_tokens,
    }
    engine = SGLangEngine(command, facts, options.limits, schedule=schedule, describe=description)
    return engine, tokenizer


def command_for(options: LaunchOptions, path: Path, config: ModelConfig) -> Command:
    """The server's command line.

    Raises:
        CheckpointError: the context limit exceeds what the model was made for.
        ValueError: an argument that is this engine's to give.
    """
    limits = options.limits
    if limits.max_context_tokens > config.max_positions:
        raise CheckpointError(
            f"max_context_tokens {limits.max_context_tokens} exceeds the model's "
            f"max_position_embeddings {config.max_positions}; lower it"
        )
    if refused := OURS & {argument.partition("=")[0] for argument in options.arguments}:
        raise ValueError(
            f"sglang_args {', '.join(sorted(refused))} cannot be given: the engine sets it, from "
            "an option of its own where there is one; remove it"
        )
    is_cpu = resolve_device(options.device).type == "cpu"
    arguments = [
        *("--model-path", str(path), "--host", "127.0.0.1", "--port", "{port}"),
        *("--skip-tokenizer-init", "--incremental-streaming-output"),
        *("--log-level", "warning"),  # a line for every batch would fill the disk
        *("--context-length", str(limits.max_context_tokens + SPARE_TOKENS)),
        *("--max-running-requests", str(limits.max_sequences)),
        *("--chunked-prefill-size", str(options.max_step_tokens)),
        *launch_flags(),
        *(_cpu_arguments(options) if is_cpu else _gpu_arguments(options)),
        *options.arguments,
    ]
    environment = {"SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN": "1"}  # by SPARE_TOKENS
    if is_cpu:
        environment |= CPU_ENVIRONMENT
    elif options.cuda_graphs:
        environment[GRAPHS_VARIABLE] = "1"
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    return Command(options.python or sys.executable, arguments, environment)


def _cpu_arguments(options: LaunchOptions) -> list[str]:
    """All sequences at full context unless told: SGLang's share of the memory would be most of it.

    Raises:
        ValueError: a precision that is not kept exact on a CPU.
    """
    if options.dtype not in ("auto", "float32"):
        raise ValueError(f"dtype {options.dtype!r}: on a CPU SGLang runs in float32; use auto")
    limits = options.limits
    tokens = options.kv_tokens or limits.max_sequences * (limits.max_context_tokens + ROW_TOKENS)
    return [*cpu_flags(), "--max-total-tokens", str(tokens)]


def _gpu_arguments(options: LaunchOptions) -> list[str]:
    """Not run on a GPU."""
    arguments = [*gpu_flags(), "--dtype", options.dtype]
    if options.kv_tokens:
        arguments += ["--max-total-tokens", str(options.kv_tokens)]
    return arguments

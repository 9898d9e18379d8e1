"""Is this the SGLang whose seams the plugin uses? Asked once, before anything is registered."""

from __future__ import annotations

import importlib
from dataclasses import fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from replicas.sglang_engine.protocol import SGLANG_VERSION

# Where the plugin touches SGLang. Module, then a dotted name in it; a name behind a dataclass may
# be one of its fields.
SEAMS = (
    ("sglang.srt.models.ministral3", "Ministral3ForCausalLM.load_weights"),
    ("sglang.srt.plugins.hook_registry", "HookRegistry.register"),
    ("sglang.srt.speculative.spec_info", "SpeculativeAlgorithm.register"),
    ("sglang.srt.speculative.spec_info", "SpecInputType.UNO_VERIFY"),
    ("sglang.srt.speculative.spec_registry", "CustomSpecAlgo.has_draft_kv"),
    ("sglang.srt.speculative.base_spec_worker", "BaseSpecWorker.target_worker"),
    ("sglang.srt.managers.scheduler", "Scheduler.validate_dllm_request"),
    ("sglang.srt.managers.scheduler", "Scheduler.update_running_batch"),
    ("sglang.srt.managers.schedule_batch", "Req.update_finish_state"),
    ("sglang.srt.managers.schedule_batch", "ScheduleBatch.spec_algorithm"),
    (
        "sglang.srt.managers.scheduler_components.metrics_reporter",
        "SchedulerMetricsReporter.update_spec_metrics",
    ),
    ("sglang.srt.mem_cache.base_prefix_cache", "BasePrefixCache.free_kv_row"),
    (
        "sglang.srt.managers.scheduler_components.output_streamer",
        "_GenerationStreamAccumulator.accept",
    ),
    ("sglang.srt.mem_cache.allocation_sizing", "get_alloc_reserve_per_decode"),
    ("sglang.srt.managers.overlap_utils", "FutureMap"),
    ("sglang.srt.managers.utils", "GenerationBatchResult.accept_lens"),
    ("sglang.srt.managers.utils", "GenerationBatchResult.new_seq_lens"),
    ("sglang.srt.managers.utils", "GenerationBatchResult.num_non_draft_tokens_per_req"),
    ("sglang.srt.managers.utils", "GenerationBatchResult.speculative_output_stride"),
    ("sglang.srt.model_executor.forward_batch_info", "ForwardBatch.extend_prefix_lens"),
    ("sglang.srt.model_executor.forward_batch_info", "ForwardMode.TARGET_VERIFY"),
    ("sglang.srt.layers.radix_attention", "AttentionType.ENCODER_ONLY"),
    ("sglang.srt.arg_groups.overrides", "attention_backends_of"),
    (
        "sglang.srt.layers.attention.base_attn_backend",
        "AttentionBackend.init_forward_metadata_out_graph",
    ),
    ("sglang.srt.layers.attention.triton_backend", "ForwardMetadata.custom_mask"),
    ("sglang.srt.mem_cache.kv_index_translator", "KVIndexTranslator.bind_runner_slots"),
    ("sglang.srt.model_executor.forward_context", "ForwardContext.attn_backend"),
    ("sglang.srt.model_executor.runner_utils.capture_mode", "model_capture_mode"),
)


class IncompatibleSGLang(RuntimeError):
    """The installed SGLang cannot carry the plugin; the message says what was found and wanted."""


def check_version() -> None:
    """Raises `IncompatibleSGLang` unless it is the one release the plugin was written for."""
    try:
        found = version("sglang")
    except PackageNotFoundError:
        raise IncompatibleSGLang(
            f"sglang is not installed; install sglang=={SGLANG_VERSION}"
        ) from None
    if found != SGLANG_VERSION:
        raise IncompatibleSGLang(
            f"sglang {found} is installed, and this plugin supports {SGLANG_VERSION} only; install "
            f"sglang=={SGLANG_VERSION}, or see replicas/sglang_engine/plugin/README.md for moving"
        )


def check_seams() -> None:
    """Raises `IncompatibleSGLang` if this release is not what it was, naming what is missing."""
    if missing := missing_seams():
        raise IncompatibleSGLang(
            f"sglang {SGLANG_VERSION} lacks {', '.join(missing)}, which the plugin needs; install "
            f"an unmodified sglang=={SGLANG_VERSION}"
        )


def missing_seams(seams: tuple[tuple[str, str], ...] = SEAMS) -> list[str]:
    """The seams that this SGLang does not have, by dotted name."""
    return [f"{module}.{name}" for module, name in seams if not _exists(module, name)]


def _exists(module: str, name: str) -> bool:
    try:
        value: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and module.startswith(error.name):
            return False
        raise
    for part in name.split("."):
        if is_dataclass(value) and part in {field.name for field in fields(value)}:
            return True
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True

"""Places where SGLang is told what its registries have no word for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from sglang.srt.runtime_context import get_spec

from replicas.sglang_engine.plugin.requests import refusal
from replicas.sglang_engine.protocol import ALGORITHM

_MANAGERS = "sglang.srt.managers"


def register() -> None:
    HookRegistry.register(
        f"{_MANAGERS}.scheduler.Scheduler.validate_dllm_request", _admit, HookType.AFTER
    )
    HookRegistry.register(
        f"{_MANAGERS}.scheduler.Scheduler.update_running_batch", _plan, HookType.BEFORE
    )
    HookRegistry.register(
        f"{_MANAGERS}.schedule_batch.Req.update_finish_state", _finish, HookType.AROUND
    )
    HookRegistry.register(
        f"{_MANAGERS}.scheduler_components.output_streamer._GenerationStreamAccumulator.accept",
        _stream,
        HookType.AROUND,
    )
    HookRegistry.register(
        "sglang.srt.mem_cache.allocation_sizing.get_alloc_reserve_per_decode",
        _reserve,
        HookType.AFTER,
    )


def _reserve(slots: int) -> int:
    """SGLang reserves two steps' slots per request, for overlap, but room at the end of a context
    for little more than one step's. Without overlap one is enough."""
    return slots // 2 if get_spec().speculative_algorithm == ALGORITHM else slots


def _plan(scheduler: Any, batch: Any) -> None:
    """The last moment before SGLang asks whether there is room for the step, and makes it."""
    if _is_ours(scheduler):
        scheduler.draft_worker.plan_step(batch)
        if batch.spec_algorithm.is_none():
            # Its reports divide by the rounds of speculation since the last one.
            rows = len(batch.reqs)
            scheduler.metrics_reporter.update_spec_metrics(rows, 0, num_accept_tokens=rows)


def _admit(error: str | None, scheduler: Any, req: Any) -> str | None:
    """Refuses a request that the worker cannot honour, as SGLang refuses one for a dLLM."""
    if error is not None or not _is_ours(scheduler):
        return error
    worker = scheduler.draft_worker
    worker.meet(scheduler)
    return refusal(req, worker.max_block_length)


def _is_ours(scheduler: Any) -> bool:
    return getattr(scheduler.spec_algorithm, "name", None) == ALGORITHM


def _finish(original: Callable[..., None], req: Any, new_accepted_len: int = 1) -> None:
    """A denoising step adds no token. SGLang would take 0 for `all of them` and look at each."""
    if new_accepted_len == 0 and not req.to_finish:
        return
    original(req, new_accepted_len)


def _stream(original: Callable[..., None], accumulator: Any, *, req: Any) -> None:
    """What has nothing new to say sends nothing: a denoising row would send an empty event."""
    if not req.finished() and 0 < len(req.output_ids) == req.send_token_offset:
        return
    original(accumulator, req=req)

"""What SGLang's scheduler holds at this moment, for reports and for the governor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


class SchedulerView(Protocol):
    """Read from two threads; each number is right at some moment during the call."""

    @property
    def decoding(self) -> int: ...
    @property
    def prefilling(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def context_tokens(self) -> int: ...
    @property
    def kv_tokens_used(self) -> int: ...
    @property
    def kv_tokens_total(self) -> int: ...


@dataclass(frozen=True, slots=True)
class NothingYet:
    """Before the first request the plugin has not met the scheduler, which then holds nothing."""

    kv_tokens_total: int = 0
    decoding: int = 0
    prefilling: int = 0
    waiting: int = 0
    context_tokens: int = 0
    kv_tokens_used: int = 0


class LiveScheduler:
    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    @property
    def decoding(self) -> int:
        return len(self._running())

    @property
    def prefilling(self) -> int:
        """The one prompt that SGLang has begun and cut into chunks; a whole one takes one step."""
        return int(self._scheduler.chunked_req is not None)

    @property
    def waiting(self) -> int:
        return len(self._scheduler.waiting_queue)

    @property
    def context_tokens(self) -> int:
        return sum(req.kv.kv_committed_len for req in self._running())

    @property
    def kv_tokens_used(self) -> int:
        """By running requests; what the prefix cache keeps of finished ones can be had at once."""
        free = self._scheduler.token_to_kv_pool_allocator.available_size()
        return int(self.kv_tokens_total - free - self._scheduler.tree_cache.evictable_size())

    @property
    def kv_tokens_total(self) -> int:
        return int(self._scheduler.max_total_num_tokens)

    def _running(self) -> list[Any]:
        batch = self._scheduler.running_batch
        return [] if batch is None else [req for req in batch.reqs if not req.finished()]

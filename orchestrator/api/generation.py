"""One sequence being read from the engine, and several read at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.api.observer import RequestObserver
from replicas.engine import (
    Delta,
    Engine,
    EngineError,
    EngineOverloaded,
    EngineStopped,
    FinishReason,
    Request,
    RequestRejected,
)

_OUTCOMES: tuple[tuple[type[BaseException], str], ...] = (
    (RequestRejected, "rejected"),
    (EngineOverloaded, "overloaded"),
    (EngineStopped, "stopped"),
    (Exception, "error"),
)


@dataclass(slots=True)
class Tally:
    """What the deltas add up to."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prefill_tokens: int = 0
    commits: int = 0
    modes: dict[str, int] = field(default_factory=dict)

    def add(self, delta: Delta) -> None:
        count = len(delta.token_ids)
        self.completion_tokens += count
        self.commits += 1
        if delta.plan is None:
            self.prefill_tokens += count
        elif count:
            mode = delta.plan.mode.value
            self.modes[mode] = self.modes.get(mode, 0) + count

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "trimode": {
                "modes": self.modes,
                "prefill_tokens": self.prefill_tokens,
                "commits": self.commits,
            },
        }


def total(tallies: Sequence[Tally]) -> Tally:
    """The sum; modes in order of first use."""
    modes: dict[str, int] = {}
    for tally in tallies:
        for mode, count in tally.modes.items():
            modes[mode] = modes.get(mode, 0) + count
    return Tally(
        sum(t.prompt_tokens for t in tallies),
        sum(t.completion_tokens for t in tallies),
        sum(t.prefill_tokens for t in tallies),
        sum(t.commits for t in tallies),
        modes,
    )


class Generation:
    """An asynchronous iterator over one request's deltas. `open` first, `close` always.

    Invariant: the observer hears `finished` exactly once, however the request ends.
    """

    def __init__(
        self,
        engine: Engine,
        request: Request,
        observer: RequestObserver,
        clock: Callable[[], float],
    ) -> None:
        self.request = request
        self.tally = Tally(prompt_tokens=len(request.prompt_token_ids))
        self.finish_reason: FinishReason | None = None
        self._observer = observer
        self._clock = clock
        self._outcome = "cancelled"
        self._closed = False
        self._peeked: Delta | None = None
        self._deltas = engine.generate(request)
        self._started = self._last = clock()
        observer.queued(request)

    async def open(self) -> None:
        """Waits for the first delta, so that an early error is raised here."""
        self._peeked = await self._read()

    @property
    def mode(self) -> str:
        """The mode as far as it is known: pinned, or the last commit's; else `auto`."""
        if self.request.plan is not None:
            return self.request.plan.mode.value
        return next(reversed(self.tally.modes), "auto")

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Delta:
        if self._peeked is not None:
            delta, self._peeked = self._peeked, None
            return delta
        if self.finish_reason is not None:
            raise StopAsyncIteration
        return await self._read()

    async def _read(self) -> Delta:
        try:
            delta = await anext(self._deltas, None)
            if delta is None:
                raise EngineError("the engine ended the sequence without a finish reason")
            self._record(delta)
        except Exception as error:
            self._outcome = next(name for kind, name in _OUTCOMES if isinstance(error, kind))
            raise
        return delta

    def _record(self, delta: Delta) -> None:
        now = self._clock()
        if self.tally.commits == 0:
            self._observer.first_token(self.request, now - self._started)
        self._observer.commit(self.request, delta, now - self._last)
        self._last = now
        self.tally.add(delta)
        if delta.finish_reason in (FinishReason.CANCELLED, FinishReason.ERROR):
            raise EngineError(f"the engine ended the sequence: {delta.finish_reason.value}")
        self.finish_reason = delta.finish_reason
        if delta.finish_reason is not None:
            self._outcome = delta.finish_reason.value

    async def close(self) -> None:
        """Cancels what is not finished. May be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            aclose = getattr(self._deltas, "aclose", None)
            if aclose is not None:
                await aclose()
        finally:
            seconds = self._clock() - self._started
            tokens = self.tally.completion_tokens
            self._observer.finished(self.request, self._outcome, seconds, tokens)


async def open_all(generations: Sequence[Generation]) -> None:
    """Opens all at once; the first error is raised when every other has opened or been ended."""
    if len(generations) == 1:
        return await generations[0].open()
    tasks = [asyncio.ensure_future(generation.open()) for generation in generations]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _end(tasks)


async def close_all(generations: Sequence[Generation]) -> None:
    for generation in generations:
        await generation.close()


async def merged(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Deltas of all as they come, each with its generation's index."""
    if len(generations) == 1:
        async for delta in generations[0]:
            yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta] | Exception | None] = asyncio.Queue()
    tasks = [asyncio.ensure_future(_pump(i, g, queue)) for i, g in enumerate(generations)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
    finally:
        await _end(tasks)


async def _pump(index: int, generation: Generation, queue: asyncio.Queue[Any]) -> None:
    try:
        async for delta in generation:
            queue.put_nowait((index, delta))
        queue.put_nowait(None)
    except Exception as error:  # raised again by the reader
        queue.put_nowait(error)


async def _end(tasks: Sequence[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)

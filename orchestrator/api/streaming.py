"""Server-sent events: one per commit, errors included, and an end that is always said.

What a client may rely on: every event is one `data: ` line, there are no comments, `[DONE]` comes
last, and after an error event nothing but `[DONE]`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from orchestrator.api.disconnect import ClientDisconnectedError, until_disconnected
from orchestrator.api.error_responses import as_api_error, error_body
from orchestrator.api.generation import Generation, close_all, merged, total
from policies.vocabulary import Plan
from replicas.engine import Delta

DONE = b"data: [DONE]\n\n"


class ChunkWriter(Protocol):
    """How an endpoint spells a chunk's choice."""

    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice of an event sent before the first delta, if there is one."""

    def chunk(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class StreamHead:
    """What all chunks of a stream have in common."""

    id: str
    object: str
    created: int
    model: str
    include_usage: bool
    continuous_usage: bool


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class _Events:
    """Writes a stream's events; remembers which plan each choice was last told of."""

    def __init__(self, head: StreamHead) -> None:
        self._head = head
        # Written once: these fields are the same in every event.
        common = {"id": head.id, "object": head.object, "created": head.created}
        self._prefix = _json({**common, "model": head.model})[:-1]
        self._plans: dict[int, Plan] = {}

    def event(self, choice: dict[str, Any] | None, usage: Any, plan: Plan | None = None) -> bytes:
        extras = "" if plan is None else f',"trimode":{{"plan":"{plan}"}}'
        if self._head.include_usage or usage is not None:
            extras += f',"usage":{_json(usage)}'
        choices = "" if choice is None else _json(choice)
        return f'data: {self._prefix},"choices":[{choices}]{extras}}}\n\n'.encode()

    def opening(self, choice: dict[str, Any], generation: Generation) -> bytes:
        return self.event(choice, self._running_usage(generation))

    def delta(self, index: int, choice: dict[str, Any], delta: Delta, of: Generation) -> bytes:
        changed = delta.plan is not None and self._plans.get(index) != delta.plan
        if delta.plan is not None:
            self._plans[index] = delta.plan
        return self.event(choice, self._running_usage(of), delta.plan if changed else None)

    def _running_usage(self, generation: Generation) -> dict[str, Any] | None:
        return generation.tally.usage() if self._head.continuous_usage else None


async def event_stream(
    generations: Sequence[Generation], head: StreamHead, writer: ChunkWriter
) -> AsyncGenerator[bytes, None]:
    """The bytes of the whole stream; the generations are open."""
    events = _Events(head)
    try:
        for index, generation in enumerate(generations):
            choice = writer.opening(index)
            if choice is not None:
                yield events.opening(choice, generation)
        async with aclosing(merged(generations)) as deltas:
            async for index, delta in deltas:
                finish = delta.finish_reason.value if delta.finish_reason else None
                choice = writer.chunk(index, delta.text, finish)
                yield events.delta(index, choice, delta, generations[index])
        if head.include_usage:
            yield events.event(None, total([g.tally for g in generations]).usage())
    except Exception as error:
        # The status line has gone out as 200, so this event is all that tells the client.
        yield f"data: {_json(error_body(as_api_error(error)))}\n\n".encode()
    yield DONE


class EventStream(Response):
    """Sends the events and closes the generations, at once when the client goes."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        generations: Sequence[Generation],
        headers: dict[str, str],
    ) -> None:
        no_buffers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(headers={**no_buffers, **headers})
        # Response counts its (empty) body; the length of a stream is not known.
        del self.headers["content-length"]
        self._events = events
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await until_disconnected(receive, self._send(send))
        except (
            ClientDisconnectedError,
            OSError,
        ):  # OSError: the server's word for a closed connection
            pass
        finally:
            await self._events.aclose()
            await close_all(self._generations)

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

"""SGLang's native HTTP, as far as a replica uses it: generate, abort, ready, and the control calls.

It knows the wire and nothing of text, plans or restarts: token ids in, `Chunk`s out. What goes
wrong leaves as one of the engine's errors.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from replicas.engine import (
    EngineError,
    EngineOverloaded,
    EngineStopped,
    FinishReason,
    RequestRejected,
)

CONNECT_S = 5.0
CALL_S = 10.0
"""For everything but generation: what the scheduler answers, it answers between two steps."""
_BROKEN = (aiohttp.ClientError, ConnectionError, TimeoutError, RuntimeError)
"""What aiohttp raises for a connection that ended; RuntimeError for one that was closed here."""
_SEPARATOR = b"\n\n"
_PREFIX = b"data:"
_DONE = b"[DONE]"
_FINISHES = {
    "stop": FinishReason.STOP,
    "length": FinishReason.LENGTH,
    "abort": FinishReason.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one event of a stream adds. `details` is SGLang's meta information about it."""

    token_ids: tuple[int, ...]
    details: Mapping[str, Any]
    finish_reason: FinishReason | None = None


class Client:
    """The connections to one server. Belongs to the event loop that it is made on."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            # As many streams as the engine admits, each on a connection of its own: one kept open
            # may be closed by the server just as the next request is written to it.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            trust_env=False,  # loopback is nobody's proxy's business
        )

    async def close(self) -> None:
        await self._session.close()

    async def generate(
        self, rid: str, token_ids: tuple[int, ...], sampling: Mapping[str, Any]
    ) -> AsyncGenerator[Chunk, None]:
        """One request's chunks; closing the generator closes the connection.

        Raises:
            RequestRejected, EngineOverloaded: SGLang refused it.
            EngineStopped: the connection broke, so the server has ended or will.
        """
        body = {
            "rid": rid,
            "input_ids": list(token_ids),
            "sampling_params": dict(sampling),
            "stream": True,
        }
        try:
            async with self._session.post(f"{self._url}/generate", json=body) as response:
                if response.status != HTTPStatus.OK:
                    raise _refusal(response.status, await response.text())
                async for event in _events(response.content):
                    yield _chunk(event)
        except _BROKEN as error:
            raise EngineStopped(f"the connection to the SGLang server broke: {error!r}") from error

    async def abort(self, rid: str) -> None:
        """Ends the request if it is still there. SGLang takes the id for a prefix."""
        await self._call("POST", "/abort_request", {"rid": rid})

    async def is_ready(self) -> bool:
        """False as well while nothing listens yet."""
        try:
            async with self._session.get(f"{self._url}/ready", timeout=_CALL) as response:
                return response.status == HTTPStatus.OK
        except _BROKEN:
            return False

    async def _call(self, method: str, path: str, body: Any = None) -> Any:
        """The answer's JSON; None where there is none.

        Raises:
            EngineStopped: no answer.
            EngineError: an answer other than 200.
        """
        try:
            async with self._session.request(
                method, self._url + path, json=body, timeout=_CALL
            ) as response:
                text = await response.text()
        except _BROKEN as error:
            raise EngineStopped(f"the SGLang server did not answer {path}: {error!r}") from error
        if response.status != HTTPStatus.OK:
            raise EngineError(f"SGLang answered {path} with {response.status}: {text[:500]}")
        return json.loads(text) if text else None


_CALL = aiohttp.ClientTimeout(total=CALL_S, sock_connect=CONNECT_S)


async def _events(content: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream. Not read by lines: a line may be longer than a reader's buffer."""
    rest = b""
    async for piece in content.iter_any():
        *events, rest = (rest + piece).split(_SEPARATOR)
        for event in events:
            data = event.removeprefix(_PREFIX).strip()
            if data == _DONE:
                return
            yield json.loads(data)
    raise EngineStopped("the SGLang server ended a stream in the middle; it has stopped or failed")


def _chunk(event: Mapping[str, Any]) -> Chunk:
    if "error" in event:
        error = event["error"]
        raise _refusal(int(error.get("code") or 500), str(error.get("message")))
    details = event["meta_info"]
    finish = details.get("finish_reason")
    if finish is None:
        return Chunk(tuple(event["output_ids"]), details)
    if finish["type"] == "abort" and (status := finish.get("status_code")) is not None:
        raise _refusal(int(status), str(finish.get("message")))
    return Chunk(tuple(event["output_ids"]), details, _FINISHES[finish["type"]])


def _refusal(status: int, message: str) -> EngineError:
    """SGLang's status as the engine's error."""
    said = f"SGLang refused the request with {status}: {message[:500]}"
    if status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS):
        return EngineOverloaded(f"{said}; retry later")
    return RequestRejected(said) if 400 <= status < 500 else EngineError(said)

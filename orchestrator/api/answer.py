"""From encoded prompts to a response, streamed or whole: what chat and completions share."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, Protocol
from uuid import uuid4

from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, Response

from orchestrator.api.context import ApiContext
from orchestrator.api.disconnect import ClientDisconnectedError, until_disconnected
from orchestrator.api.generation import Generation, Tally, close_all, merged, open_all, total
from orchestrator.api.request_options import choose_plan, sampling_params
from orchestrator.api.schemas import GenerationBody
from orchestrator.api.streaming import ChunkWriter, EventStream, StreamHead, event_stream
from orchestrator.errors import ApiError
from replicas.engine import Request

MODE_HEADER = "x-trimode-mode"


class AnswerWriter(ChunkWriter, Protocol):
    """How an endpoint spells its answers."""

    id_prefix: str
    object: str
    chunk_object: str

    def choice(self, index: int, text: str, finish_reason: str) -> dict[str, Any]: ...


async def answer(
    http: HttpRequest,
    api: ApiContext,
    body: GenerationBody,
    prompts: Sequence[tuple[int, ...]],
    writer: AnswerWriter,
) -> Response:
    """Generates for every prompt; an error before the first delta is raised, not streamed."""
    _check_stream_options(body)
    model = api.model_name(body.model)
    response_id = f"{writer.id_prefix}{uuid4().hex}"
    requests = _engine_requests(api, body, prompts, response_id)
    generations = [Generation(api.engine, r, api.observer, api.clock) for r in requests]
    try:
        await until_disconnected(http.receive, open_all(generations))
        if body.stream:
            return _stream(generations, body, writer, response_id, model)
        choices = await until_disconnected(http.receive, _choices(generations, writer))
    except ClientDisconnectedError:
        await close_all(generations)
        return Response(status_code=499)  # nobody reads it; access logs know the number
    except BaseException:
        await close_all(generations)
        raise
    await close_all(generations)
    tally = total([generation.tally for generation in generations])
    content = _whole(writer.object, response_id, model) | {
        "choices": choices,
        "usage": tally.usage(),
    }
    return JSONResponse(content, headers={MODE_HEADER: _modes(tally, generations)})


def _check_stream_options(body: GenerationBody) -> None:
    if body.stream_options is not None and not body.stream:
        message = "stream_options needs stream: true; leave it out otherwise"
        raise ApiError(message, param="stream_options", code="invalid_value")


def _engine_requests(
    api: ApiContext, body: GenerationBody, prompts: Sequence[tuple[int, ...]], response_id: str
) -> list[Request]:
    plan, quality = choose_plan(body.trimode, api.settings)
    return [
        Request(
            request_id=f"{response_id}-{index}",
            prompt_token_ids=ids,
            sampling=sampling_params(body, len(ids), api.settings),
            quality=quality,
            plan=plan,
        )
        for index, ids in enumerate(prompts)
    ]


def _stream(
    generations: Sequence[Generation],
    body: GenerationBody,
    writer: AnswerWriter,
    response_id: str,
    model: str,
) -> Response:
    options = body.stream_options
    head = StreamHead(
        id=response_id,
        object=writer.chunk_object,
        created=int(time.time()),
        model=model,
        include_usage=bool(options and options.include_usage),
        continuous_usage=bool(options and options.continuous_usage_stats),
    )
    events = event_stream(generations, head, writer)
    return EventStream(events, generations, {MODE_HEADER: generations[0].mode})


async def _choices(generations: Sequence[Generation], writer: AnswerWriter) -> list[dict[str, Any]]:
    texts: list[list[str]] = [[] for _ in generations]
    async with aclosing(merged(generations)) as deltas:
        async for index, delta in deltas:
            texts[index].append(delta.text)
    return [
        writer.choice(index, "".join(texts[index]), str(generation.finish_reason))
        for index, generation in enumerate(generations)
    ]


def _whole(kind: str, response_id: str, model: str) -> dict[str, Any]:
    return {"id": response_id, "object": kind, "created": int(time.time()), "model": model}


def _modes(tally: Tally, generations: Sequence[Generation]) -> str:
    return ", ".join(tally.modes) or generations[0].mode

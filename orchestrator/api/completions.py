"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from fastapi import APIRouter, Request
from fastapi.responses import Response

from orchestrator.api.answer import answer
from orchestrator.api.chat import GENERATION_ERRORS, STREAM_CONTENT
from orchestrator.api.context import ApiContext
from orchestrator.api.responses import TextCompletion
from orchestrator.api.schemas import CompletionBody
from orchestrator.api.strict_json import JsonRoute
from orchestrator.errors import ApiError


class CompletionWriter:
    """`echoes` are the prompts' texts, to be sent before what is generated; or empty."""

    id_prefix = "cmpl-"
    object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, echoes: Sequence[str] = ()) -> None:
        self._echoes = echoes

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._choice(index, self._echoes[index], None) if self._echoes else None

    def chunk(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return self._choice(index, text, finish_reason)

    def choice(self, index: int, text: str, finish_reason: str) -> dict[str, Any]:
        echo = self._echoes[index] if self._echoes else ""
        return self._choice(index, echo + text, finish_reason)

    @staticmethod
    def _choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}


def completions_router(api: ApiContext) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, tags=["generation"])
    ok = {"model": TextCompletion, "content": STREAM_CONTENT, "description": "The answer."}

    @router.post("/v1/completions", response_model=None, responses={200: ok, **GENERATION_ERRORS})
    async def create_completion(body: CompletionBody, request: Request) -> Response:
        """Continues one prompt or several; several are several choices."""
        api.model_name(body.model)
        given = _as_list(body, api.settings.max_prompts)
        prompts = [await _encode(api, body, prompt, i) for i, prompt in enumerate(given)]
        echoes = [_text(api, prompt) for prompt in given] if body.echo else []
        return await answer(request, api, body, prompts, CompletionWriter(echoes))

    return router


def _as_list(body: CompletionBody, limit: int) -> list[str | list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if prompt and isinstance(prompt[0], int):
        return [prompt]
    if not prompt:
        message = "prompt has no tokens; send at least one"
        raise ApiError(message, param="prompt", code="invalid_value")
    if len(prompt) > limit:
        message = f"prompt holds {len(prompt)} prompts, the limit is {limit}; send fewer at once"
        raise ApiError(message, param="prompt", code="invalid_value")
    return cast(list[str | list[int]], prompt)


async def _encode(
    api: ApiContext, body: CompletionBody, prompt: str | list[int], index: int
) -> tuple[int, ...]:
    several = isinstance(body.prompt, list) and not isinstance(body.prompt[0], int)
    param = f"prompt[{index}]" if several else "prompt"
    if isinstance(prompt, str):
        return await api.prompts.text(prompt, param, body.add_special_tokens is not False)
    return api.prompts.token_ids(prompt, param)


def _text(api: ApiContext, prompt: str | list[int]) -> str:
    return prompt if isinstance(prompt, str) else api.prompts.decode(prompt)

"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from orchestrator.api.answer import answer
from orchestrator.api.context import ApiContext
from orchestrator.api.responses import ChatCompletion, error_responses
from orchestrator.api.schemas import ChatBody
from orchestrator.api.strict_json import JsonRoute

STREAM_CONTENT = {"text/event-stream": {"schema": {"type": "string"}}}
GENERATION_ERRORS = error_responses(400, 401, 404, 413, 415, 429, 500, 503)


class ChatWriter:
    id_prefix = "chatcmpl-"
    object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        return self._chunk(index, {"role": "assistant", "content": ""}, None)

    def chunk(self, index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        return self._chunk(index, {"content": text}, finish_reason)

    def choice(self, index: int, text: str, finish_reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason,
        }

    @staticmethod
    def _chunk(index: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


def chat_router(api: ApiContext) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, tags=["generation"])
    ok = {"model": ChatCompletion, "content": STREAM_CONTENT, "description": "The answer."}

    @router.post(
        "/v1/chat/completions", response_model=None, responses={200: ok, **GENERATION_ERRORS}
    )
    async def create_chat_completion(body: ChatBody, request: Request) -> Response:
        """Answers a conversation; with `stream: true` as server-sent events."""
        api.model_name(body.model)
        prompt = await api.prompts.chat(body.messages)
        return await answer(request, api, body, [prompt], ChatWriter())

    return router

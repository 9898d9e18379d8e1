"""POST /tokenize and /detokenize, in vLLM's shape."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from orchestrator.api.context import ApiContext
from orchestrator.api.responses import Detokenized, Tokenized, error_responses
from orchestrator.api.schemas import DetokenizeBody, TokenizeBody
from orchestrator.api.strict_json import JsonRoute
from orchestrator.errors import ApiError

_ERRORS = error_responses(400, 401, 404, 413, 415)


def tokens_router(api: ApiContext) -> APIRouter:
    router = APIRouter(route_class=JsonRoute, tags=["tokens"], responses=_ERRORS)

    @router.post("/tokenize", response_model=Tokenized)
    async def tokenize(body: TokenizeBody) -> dict[str, Any]:
        """The token ids of a text, or of a conversation under the chat template."""
        api.model_name(body.model)
        ids = await _encode(api, body)
        strings = api.prompts.tokenizer.convert_ids_to_tokens(list(ids))
        return {
            "count": len(ids),
            "max_model_len": api.settings.max_model_len,
            "tokens": list(ids),
            "token_strs": strings if body.return_token_strs else None,
        }

    @router.post("/detokenize", response_model=Detokenized)
    async def detokenize(body: DetokenizeBody) -> dict[str, str]:
        """The text of token ids, special tokens left out."""
        api.model_name(body.model)
        return {"prompt": api.prompts.decode(api.prompts.token_ids(body.tokens, "tokens"))}

    return router


async def _encode(api: ApiContext, body: TokenizeBody) -> tuple[int, ...]:
    if (body.prompt is None) == (body.messages is None):
        message = "send exactly one of prompt and messages"
        raise ApiError(message, param="prompt", code="invalid_value")
    if body.messages is None:
        return await api.prompts.text(
            body.prompt or "", "prompt", body.add_special_tokens is not False
        )
    if body.add_special_tokens:
        message = "add_special_tokens applies to prompt; a chat template writes its own"
        raise ApiError(message, param="add_special_tokens", code="invalid_value")
    return await api.prompts.chat(body.messages)

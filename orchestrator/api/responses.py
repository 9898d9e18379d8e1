"""Response bodies as published in OpenAPI. The routes build plain dictionaries of these shapes."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class _Published(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorObject(_Published):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(_Published):
    """Every error, before a stream and inside one."""

    error: ErrorObject


class TrimodeUsage(_Published):
    """Tokens committed by each mode, tokens that prefill yielded, and the number of commits."""

    modes: dict[str, int]
    prefill_tokens: int
    commits: int


class Usage(_Published):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    trimode: TrimodeUsage


class AnswerMessage(_Published):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Published):
    index: int
    message: AnswerMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(_Published):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class TextChoice(_Published):
    index: int
    text: str
    logprobs: None
    finish_reason: Literal["stop", "length"]


class TextCompletion(_Published):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ModelCard(_Published):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int


class ModelList(_Published):
    object: Literal["list"]
    data: list[ModelCard]


class Tokenized(_Published):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Detokenized(_Published):
    prompt: str


class Status(_Published):
    status: str


class Version(_Published):
    version: str
    engine: dict[str, Any]


_STATUSES = {
    400: "The request cannot be served as it stands; `param` names the parameter.",
    401: "The API key is missing or wrong.",
    404: "No such model or path.",
    413: "The body is larger than the limit.",
    415: "The body is not declared as JSON.",
    429: "The waiting queue is full; retry after `Retry-After` seconds.",
    500: "The engine failed.",
    503: "The engine has stopped.",
}


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for these statuses; `default` covers the rest, in the same shape."""
    entries: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorBody, "description": _STATUSES[status]} for status in statuses
    }
    entries["default"] = {"model": ErrorBody, "description": "Any other error, in OpenAI's shape."}
    return entries

"""Every error becomes OpenAI's error object, before a stream and inside one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from reprlib import Repr
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from orchestrator.api.parameters import UNSUPPORTED
from orchestrator.errors import ApiError
from replicas.engine import EngineError, EngineOverloaded, EngineStopped, RequestRejected

logger = logging.getLogger(__name__)

_short = Repr()
_short.maxstring = _short.maxother = 60
_short.maxlevel = 2


def error_body(error: ApiError) -> dict[str, Any]:
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }


def error_response(error: ApiError) -> Response:
    # ASCII, because a message may quote a lone surrogate, which UTF-8 cannot carry.
    content = json.dumps(error_body(error)).encode()
    return Response(content, error.status, error.headers, media_type="application/json")


def as_api_error(error: BaseException, retry_after_s: int = 1) -> ApiError:
    """What a client is told about any exception; the unexpected ones are logged, not shown."""
    retry = {"retry-after": str(retry_after_s)}
    match error:
        case ApiError():
            return error
        case RequestRejected():
            return ApiError(str(error), code="request_rejected")
        case EngineOverloaded():
            kind, code = "rate_limit_error", "engine_overloaded"
            return ApiError(str(error), status=429, type=kind, code=code, headers=retry)
        case EngineStopped():
            kind, code = "service_unavailable_error", "engine_stopped"
            return ApiError(str(error), status=503, type=kind, code=code, headers=retry)
        case EngineError():
            return ApiError(str(error), status=500, type="server_error", code="engine_error")
    logger.error("unexpected error", exc_info=error)
    message = "Internal error; the server's log has the details."
    return ApiError(message, status=500, type="server_error", code="internal_error")


def _parameter(location: Sequence[int | str], keep_last: bool) -> str | None:
    """`("body", "messages", 0, "content", "list[TextPart]", 1)` as `messages[0].content[1]`."""
    name = ""
    last = len(location) - 1
    for position, part in enumerate(location):
        if isinstance(part, int):
            name += f"[{part}]"
        elif position and ((keep_last and position == last) or not _is_union_branch(part)):
            name += f".{part}" if name else part
    return name or None


def _is_union_branch(part: str) -> bool:
    return part in {"str", "int", "float", "bool"} or "[" in part


def _validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    # Of a union's errors the deepest is about the branch the client meant.
    field = errors[0]["loc"][:2]
    error = max((e for e in errors if e["loc"][:2] == field), key=lambda e: len(e["loc"]))
    unknown = error["type"] == "extra_forbidden"
    param = _parameter(error["loc"], keep_last=unknown)
    if unknown:
        message = f"Unknown parameter: {param!r}. docs/http.md lists the parameters."
        return ApiError(message, param=param, code="unknown_parameter")
    if error["type"] == "missing":
        message = f"Missing required parameter: {param!r}." if param else "The body is empty."
        return ApiError(message, param=param, code="missing_required_parameter")
    message = f"{param or 'body'}: got {_short.repr(error.get('input'))}; {error['msg']}."
    code = UNSUPPORTED if error["type"] == UNSUPPORTED else "invalid_value"
    return ApiError(message, param=param, code=code)


def _http_error(request: Request, error: HTTPException) -> ApiError:
    headers = error.headers or {}
    if error.status_code == 404:
        message = f"Unknown path {request.method} {request.url.path}; /openapi.json lists them."
        return ApiError(message, status=404, code="unknown_url")
    if error.status_code == 405:
        message = f"{request.url.path} does not take {request.method}."
        return ApiError(message, status=405, code="method_not_allowed", headers=headers)
    return ApiError(str(error.detail), status=error.status_code, headers=headers)


def install_error_handlers(app: FastAPI, retry_after_s: int = 1) -> None:
    async def any_error(request: Request, error: Exception) -> Response:
        return error_response(as_api_error(error, retry_after_s))

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(_validation_error(error.errors()))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(_http_error(request, error))

    for kind in (ApiError, EngineError):
        app.add_exception_handler(kind, any_error)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)

"""Reads JSON bodies as the standard defines them: UTF-8, no NaN, declared as JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from orchestrator.errors import ApiError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _no_constant(name: str) -> NoReturn:
    raise ApiError(f"The body holds {name}, which is not JSON.", code="invalid_json")


def parse_json(body: bytes) -> Any:
    """Raises ApiError 400 with the position of the fault."""
    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=_no_constant)
        if _SURROGATE.search(text):
            # Whole pairs have become characters; a half would fail wherever text becomes bytes.
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        message = "The body holds half of a surrogate pair, which is no character."
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8: byte {error.start} ({error.reason})."
    except json.JSONDecodeError as error:
        message = f"The body is not JSON: {error.msg} at line {error.lineno} column {error.colno}."
    except RecursionError:
        message = "The body's JSON is nested too deeply."
    except ValueError as error:  # a number of more digits than Python converts
        message = f"The body is not JSON that can be read: {error}."
    raise ApiError(message, code="invalid_json")


class _ParsedRequest(Request):
    """A request whose JSON has been read."""

    parsed: Any = None

    async def json(self) -> Any:
        return self.parsed


class JsonRoute(APIRoute):
    """A route that reads its body strictly; FastAPI's own parser accepts NaN and hides causes."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            if request.method != "POST":
                return await handle(request)
            body = await request.body()
            content_type = request.headers.get("content-type", "")
            if content_type.partition(";")[0].strip().lower() != "application/json":
                message = f"Content-Type {content_type!r} must be application/json."
                raise ApiError(message, status=415, code="unsupported_media_type")
            parsed = _ParsedRequest(request.scope, request.receive)
            parsed.parsed = parse_json(body)
            # FastAPI asks for the bytes, too; the channel that brought them is empty by now.
            parsed._body = body
            return await handle(parsed)

        return strict

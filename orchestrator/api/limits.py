"""Refuses bodies that are too large, whether or not they say how large they are."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrator.api.error_responses import error_response
from orchestrator.errors import ApiError


class BodyLimit:
    """ASGI middleware: 413 by Content-Length, or as soon as a chunked body exceeds the limit."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length")
        if declared is not None:
            # More than 18 digits could not be bytes on this planet, and int() would be slow.
            if not declared.isascii() or not declared.isdigit():
                message = f"Content-Length {declared[:20]!r} is not a number of bytes."
                error = ApiError(message, code="invalid_content_length")
                return await error_response(error)(scope, receive, send)
            if len(declared) > 18 or int(declared) > self.max_bytes:
                return await error_response(self._too_large())(scope, receive, send)
        await self.app(scope, self._counting(receive), send)

    def _counting(self, receive: Receive) -> Receive:
        received = 0

        async def count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:
                raise self._too_large()
            return message

        return count

    def _too_large(self) -> ApiError:
        message = f"The body is larger than {self.max_bytes} bytes; send less in one request."
        return ApiError(message, status=413, code="body_too_large")

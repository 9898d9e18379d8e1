"""What can go wrong between a client and an engine.

ApiError    an answer to a client: HTTP status and OpenAI's error object

What an engine raises is in `replicas.engine`; `orchestrator.api.error_responses` maps it to these.
"""

from __future__ import annotations

from collections.abc import Mapping


class ApiError(Exception):
    """Ends a request with `status` and `{"error": {"message", "type", "param", "code"}}`."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

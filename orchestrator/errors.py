"""What can go wrong between a client and an engine.

ApiError    an answer to a client: HTTP status and OpenAI's error object

What an engine raises is in `replicas.engine`; `orchestrator.api.error_responses` maps it to these.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self


class TrimodeError(Exception):
    """Base of what Trimode raises itself."""


class ConfigError(TrimodeError):
    """The configuration cannot be used; the message has one line for every fault."""


class ApiError(TrimodeError):
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


class UnknownReplica(ApiError):
    """No replica of that name is registered with the controller."""

    @classmethod
    def named(cls, name: str, known: Iterable[str]) -> Self:
        names = ", ".join(sorted(known)) or "none yet"
        message = f"replica {name[:80]!r} is not known; registered: {names}"
        return cls(message, status=404, param="replica", code="replica_not_found")


class PlanNotAllowed(ApiError):
    """The configuration does not allow this plan."""

    @classmethod
    def of(cls, plan: object, allowed: Iterable[object]) -> Self:
        names = ", ".join(sorted(map(str, allowed)))
        remedy = "to use diffusion, start with quality=any"
        message = f"plan {plan} is not allowed here; allowed: {names}; {remedy}"
        return cls(message, status=400, param="plan", code="plan_not_allowed")

"""`Control` as a replica's HTTP surface sees it: the controller behind a handle.

The handle is used by its shape alone (`handle.method.remote(...)` can be awaited), so this needs no
Ray. A controller that is being restarted is 503 here, never a hanging request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.errors import ApiError
from policies.vocabulary import Plan

_log = logging.getLogger(__name__)

TIMEOUT_S = 5.0


class ControlProxy:
    """Implements `orchestrator.api.Control` over a handle to the controller."""

    def __init__(self, handle: Any, timeout_s: float = TIMEOUT_S) -> None:
        self._handle = handle
        self._timeout_s = timeout_s

    async def replicas(self) -> Sequence[Mapping[str, Any]]:
        return await self._ask("replicas")  # type: ignore[no-any-return]

    async def decisions(self, replica: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
        return await self._ask("decisions", replica, limit)  # type: ignore[no-any-return]

    async def policy(self) -> Mapping[str, Any]:
        return await self._ask("policy")  # type: ignore[no-any-return]

    async def pin(self, replica: str | None, plan: Plan, ttl_s: float) -> Mapping[str, Any]:
        return await self._ask("pin", replica, plan, ttl_s)  # type: ignore[no-any-return]

    async def unpin(self, replica: str | None) -> Mapping[str, Any]:
        return await self._ask("unpin", replica)  # type: ignore[no-any-return]

    async def targets(self) -> Sequence[Mapping[str, Any]]:
        return await self._ask("targets")  # type: ignore[no-any-return]

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await getattr(self._handle, method).remote(*arguments)
        except Exception as error:
            # Ray wraps what the controller raised, and keeps it as the cause.
            cause = getattr(error, "cause", None)
            if isinstance(cause, ApiError):
                raise cause from None
            _log.warning("the controller did not answer %s: %r", method, error)
            raise _unavailable() from None


def _unavailable() -> ApiError:
    message = "The controller does not answer; replicas keep their schedules. Try again soon."
    kind, retry = "service_unavailable_error", {"retry-after": "1"}
    return ApiError(message, status=503, type=kind, code="controller_unavailable", headers=retry)

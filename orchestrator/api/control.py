"""The admin routes under /control/v1/: what the controller knows, and pins.

Closed (403) unless an admin key is set, and then open to that key alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, FastAPI, Query
from pydantic import BaseModel, Field, SecretStr

from orchestrator.api.auth import Authentication
from orchestrator.api.error_responses import install_error_handlers
from orchestrator.api.limits import BodyLimit
from orchestrator.api.parameters import StrictModel
from orchestrator.api.request_id import RequestId
from orchestrator.api.responses import error_responses
from orchestrator.api.strict_json import JsonRoute
from orchestrator.errors import ApiError
from policies.vocabulary import Plan

MAX_PIN_S = 7 * 24 * 3600.0
MAX_CONTROL_BODY = 64 << 10


class Control(Protocol):
    """What the controller answers. Rows are JSON-safe mappings; `replica` None means all."""

    async def replicas(self) -> Sequence[Mapping[str, Any]]: ...

    async def decisions(self, replica: str | None, limit: int) -> Sequence[Mapping[str, Any]]:
        """The latest decisions, newest first."""

    async def policy(self) -> Mapping[str, Any]: ...

    async def pin(self, replica: str | None, plan: Plan, ttl_s: float) -> Mapping[str, Any]:
        """Pins a plan for `ttl_s` seconds; raises errors.UnknownReplica."""

    async def unpin(self, replica: str | None) -> Mapping[str, Any]:
        """Ends a pin early; raises errors.UnknownReplica."""

    async def targets(self) -> Sequence[Mapping[str, Any]]:
        """Prometheus' HTTP service discovery: `{"targets": ["host:port"], "labels": {...}}`."""


class PinBody(StrictModel):
    """`replica` null pins every replica. The pin ends by itself after `ttl_s` seconds."""

    plan: str
    ttl_s: Annotated[float, Field(gt=0, le=MAX_PIN_S)] = 900.0
    replica: str | None = None


class UnpinBody(StrictModel):
    replica: str | None = None


class TargetGroup(BaseModel):
    targets: list[str]
    labels: dict[str, str]


def _plan(text: str) -> Plan:
    try:
        return Plan.parse(text)
    except ValueError as error:
        raise ApiError(str(error)[:400], param="plan", code="invalid_value") from None


def control_router(control: Control) -> APIRouter:
    """The routes alone; whoever includes them must authenticate `/control/`."""
    errors = error_responses(400, 401, 404, 413, 415)
    router = APIRouter(
        prefix="/control/v1", route_class=JsonRoute, tags=["control"], responses=errors
    )

    @router.get("/replicas")
    async def replicas() -> list[dict[str, Any]]:
        """Every replica: plan, load, tokens per second, pin, last decision."""
        return [dict(row) for row in await control.replicas()]

    @router.get("/decisions")
    async def decisions(
        replica: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
    ) -> list[dict[str, Any]]:
        """The latest decisions with their reasons and predictions, newest first."""
        return [dict(row) for row in await control.decisions(replica, limit)]

    @router.get("/policy")
    async def policy() -> dict[str, Any]:
        """The policy in force and its settings."""
        return dict(await control.policy())

    @router.post("/pin")
    async def pin(body: PinBody) -> dict[str, Any]:
        """Pins a plan, written `ar`, `self_speculation/16` or `diffusion/8@0.9`."""
        plan = _plan(body.plan)
        return dict(await control.pin(body.replica, plan, body.ttl_s))

    @router.post("/unpin")
    async def unpin(body: UnpinBody) -> dict[str, Any]:
        """Gives the replica back to the policy."""
        return dict(await control.unpin(body.replica))

    @router.get("/targets", response_model=list[TargetGroup])
    async def targets() -> list[dict[str, Any]]:
        """Prometheus HTTP service discovery of the replicas' /metrics."""
        return [dict(row) for row in await control.targets()]

    return router


def build_control_api(control: Control, admin_keys: Sequence[str | SecretStr]) -> FastAPI:
    """The control API as an application of its own, for a port of its own."""
    app = FastAPI(title="Trimode control", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.include_router(control_router(control))
    install_error_handlers(app)
    # The last one added sees a request first.
    app.add_middleware(BodyLimit, max_bytes=MAX_CONTROL_BODY)
    keys = [SecretStr(key) if isinstance(key, str) else key for key in admin_keys]
    app.add_middleware(Authentication, api_keys=keys, admin_keys=keys)
    app.add_middleware(RequestId)
    return app

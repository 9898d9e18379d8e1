"""What is served and how it is: models, health, version, metrics."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client.exposition import choose_encoder

from orchestrator.api.context import ApiContext
from orchestrator.api.responses import ModelCard, ModelList, Status, Version, error_responses
from orchestrator.errors import ApiError


def trimode_version() -> str:
    try:
        return version("trimode")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0+source"


def models_router(api: ApiContext) -> APIRouter:
    router = APIRouter(tags=["models"])

    def card(name: str) -> dict[str, Any]:
        length = api.settings.max_model_len
        fixed = {"object": "model", "created": api.created, "owned_by": "trimode"}
        return {"id": name, **fixed, "max_model_len": length}

    @router.get("/v1/models", response_model=ModelList, responses=error_responses(401))
    async def list_models() -> dict[str, Any]:
        """The served model under each of its names."""
        return {"object": "list", "data": [card(name) for name in api.settings.model_names]}

    # A path, because the names of models on the Hub have a slash.
    @router.get(
        "/v1/models/{model_id:path}",
        response_model=ModelCard,
        responses=error_responses(401, 404),
    )
    async def retrieve_model(model_id: str) -> dict[str, Any]:
        """One model."""
        return card(api.model_name(model_id))

    @router.get("/version", response_model=Version, responses=error_responses(401))
    async def get_version() -> dict[str, Any]:
        """Trimode's version and the engine's static facts."""
        return {"version": trimode_version(), "engine": dict(api.engine.describe())}

    return router


def health_router(api: ApiContext) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/live", response_model=Status, responses=error_responses())
    async def live() -> dict[str, str]:
        """200 while the process answers."""
        return {"status": "ok"}

    @router.get("/health", response_model=Status, responses=error_responses(503))
    async def health() -> dict[str, str]:
        """200 while the engine can serve, 503 once it has stopped or failed."""
        api.engine.check_health()
        return {"status": "ok"}

    @router.get("/ready", response_model=Status, responses=error_responses(503))
    async def ready() -> dict[str, str]:
        """200 when new requests should come here, 503 before start-up ends and while draining."""
        api.engine.check_health()
        if not api.is_ready():
            message = "Not ready: starting or draining; send requests to another replica."
            kind, retry = "service_unavailable_error", {"retry-after": "1"}
            raise ApiError(message, status=503, type=kind, code="not_ready", headers=retry)
        return {"status": "ok"}

    return router


def metrics_router(api: ApiContext) -> APIRouter:
    router = APIRouter(tags=["metrics"])
    registry = api.registry
    if registry is None:
        return router
    content = {"text/plain": {"schema": {"type": "string"}}}
    ok = {"description": "Prometheus text or OpenMetrics, as Accept asks.", "content": content}

    @router.get(
        "/metrics",
        response_model=None,
        response_class=Response,
        responses={200: ok, **error_responses(401)},
    )
    async def metrics(request: Request) -> Response:
        """The replica's metrics."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"content-type": content_type})

    return router

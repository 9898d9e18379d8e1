"""Builds the HTTP application over an engine: all routes and middleware on one page."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from orchestrator.api.auth import HEALTH_PATHS, Authentication
from orchestrator.api.chat import chat_router
from orchestrator.api.completions import completions_router
from orchestrator.api.context import ApiContext
from orchestrator.api.control import Control, control_router
from orchestrator.api.dashboard import dashboard_router
from orchestrator.api.error_responses import install_error_handlers
from orchestrator.api.limits import BodyLimit
from orchestrator.api.meta import health_router, metrics_router, models_router, trimode_version
from orchestrator.api.observer import NullObserver, RequestObserver
from orchestrator.api.prompts import PromptEncoder, Tokenizer
from orchestrator.api.request_id import RequestId
from orchestrator.api.settings import ApiSettings
from orchestrator.api.tokens import tokens_router
from replicas.engine import Engine


def build_api(
    engine: Engine,
    tokenizer: Tokenizer,
    settings: ApiSettings,
    *,
    observer: RequestObserver | None = None,
    registry: CollectorRegistry | None = None,
    control: Control | None = None,
    is_ready: Callable[[], bool] = lambda: True,
    clock: Callable[[], float] = time.perf_counter,
) -> FastAPI:
    """The OpenAI-compatible application. Starting and stopping the engine is the caller's.

    Args:
        observer: told of every request; metrics are written there.
        registry: what `/metrics` renders; without one the route does not exist.
        control: serves `/control/v1/` here, too, to the settings' admin keys.
        is_ready: what `/ready` asks besides the engine's health; false while draining.
        clock: seconds, monotonic; what the observer's durations are measured with.
    """
    api = ApiContext(
        engine=engine,
        prompts=PromptEncoder(tokenizer),
        settings=settings,
        observer=observer or NullObserver(),
        registry=registry,
        is_ready=is_ready,
        clock=clock,
        created=int(time.time()),
    )
    app = FastAPI(
        title="Trimode",
        version=trimode_version(),
        # A page that loads scripts from elsewhere has no place on an inference server.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for router in (chat_router, completions_router, tokens_router):
        app.include_router(router(api))
    for router in (models_router, health_router, metrics_router):
        app.include_router(router(api))
    if control is not None:
        app.include_router(control_router(control))
        app.include_router(dashboard_router())
    install_error_handlers(app, settings.retry_after_s)
    _add_middleware(app, settings)
    _publish_security(app, settings)
    return app


def _add_middleware(app: FastAPI, settings: ApiSettings) -> None:
    # The last one added sees a request first.
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(
        Authentication,
        api_keys=settings.api_keys,
        admin_keys=settings.admin_keys,
        protect_metrics=settings.protect_metrics,
    )
    app.add_middleware(RequestId)


def _publish_security(app: FastAPI, settings: ApiSettings) -> None:
    """Says in OpenAPI which paths need a key; the middleware is what demands it."""
    if not settings.api_keys:
        return
    generate = app.openapi
    open_paths = HEALTH_PATHS if settings.protect_metrics else HEALTH_PATHS | {"/metrics"}

    def openapi() -> dict[str, Any]:
        document = generate()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["bearer"] = {"type": "http", "scheme": "bearer"}
        for path, operations in document["paths"].items():
            if path not in open_paths:
                for operation in operations.values():
                    operation["security"] = [{"bearer": []}]
        return document

    app.openapi = openapi  # type: ignore[method-assign]

"""What every route shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from orchestrator.api.observer import RequestObserver
from orchestrator.api.prompts import PromptEncoder
from orchestrator.api.settings import ApiSettings
from orchestrator.errors import ApiError
from replicas.engine import Engine


@dataclass(frozen=True)
class ApiContext:
    engine: Engine
    prompts: PromptEncoder
    settings: ApiSettings
    observer: RequestObserver
    registry: CollectorRegistry | None
    is_ready: Callable[[], bool]
    clock: Callable[[], float]
    created: int

    def model_name(self, asked: str | None) -> str:
        """The name to answer under; raises ApiError 404 for a model that is not served."""
        names = self.settings.model_names
        if asked is None:
            return names[0]
        if asked not in names:
            message = f"The model {asked[:200]!r} does not exist; served here: {', '.join(names)}."
            raise ApiError(message, status=404, param="model", code="model_not_found")
        return asked

"""The HTTP surface over an `Engine`: OpenAI's routes, admin routes, auth, limits. No Ray."""

from orchestrator.api.app import build_api
from orchestrator.api.control import Control, build_control_api
from orchestrator.api.observer import NullObserver, RequestObserver
from orchestrator.api.settings import ApiSettings

__all__ = [
    "ApiSettings",
    "Control",
    "NullObserver",
    "RequestObserver",
    "build_api",
    "build_control_api",
]

"""API keys: who may use which path. Constant-time comparison, before the body is read."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.api.error_responses import error_response
from orchestrator.errors import ApiError

HEALTH_PATHS = frozenset({"/health", "/ready", "/live"})
CONTROL_PREFIX = "/control/"
DASHBOARD_PATH = "/dashboard"


def _digest(secret: bytes) -> bytes:
    # Digests have one length, so the comparison does not tell the key's.
    return hashlib.sha256(secret).digest()


class KeyRing:
    """Accepted keys, kept as digests."""

    def __init__(self, keys: Sequence[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def accepts(self, key: bytes) -> bool:
        digest = _digest(key)
        # All are compared, so that time does not tell which one matched.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        return any(matches)


def route_path(scope: Scope) -> str:
    """The path as the router sees it: without the prefix under which the app is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if root and path.startswith(root + "/") else path


def bearer_key(scope: Scope) -> bytes | None:
    """The key of the one Authorization header, or None."""
    values = Headers(scope=scope).getlist("authorization")
    if len(values) != 1:
        return None
    scheme, _, key = values[0].partition(" ")
    return key.strip().encode("latin-1") if scheme.lower() == "bearer" and key.strip() else None


class Authentication:
    """ASGI middleware. Health paths are open; `/control/` has its own keys, or is closed."""

    def __init__(
        self,
        app: ASGIApp,
        api_keys: Sequence[SecretStr] = (),
        admin_keys: Sequence[SecretStr] = (),
        protect_metrics: bool = False,
    ) -> None:
        self.app = app
        self.api_keys = KeyRing(api_keys)
        self.admin_keys = KeyRing(admin_keys)
        self.open_paths = HEALTH_PATHS if protect_metrics else HEALTH_PATHS | {"/metrics"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope) if scope["type"] == "http" else None
        if error is not None:
            return await error_response(error)(scope, receive, send)
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        path = route_path(scope)
        if path in self.open_paths:
            return None
        if path == DASHBOARD_PATH:
            # A browser cannot send a key with an address: the page is empty and asks for it.
            return None if self.admin_keys else _closed()
        if path.startswith(CONTROL_PREFIX):
            return self._check(scope, self.admin_keys) if self.admin_keys else _closed()
        return self._check(scope, self.api_keys) if self.api_keys else None

    def _check(self, scope: Scope, keys: KeyRing) -> ApiError | None:
        key = bearer_key(scope)
        if key is not None and keys.accepts(key):
            return None
        missing = "The API key is missing; send `Authorization: Bearer <key>`."
        return ApiError(
            missing if key is None else "The API key is not valid.",
            status=401,
            type="authentication_error",
            code="invalid_api_key",
            headers={"www-authenticate": "Bearer"},
        )


def _closed() -> ApiError:
    message = "The control API is closed, because no admin key is set; set admin_keys to open it."
    return ApiError(message, status=403, type="permission_error", code="control_closed")

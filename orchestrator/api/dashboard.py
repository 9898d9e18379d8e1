"""The live view: `GET /dashboard`, one page that needs no network, no build and no Grafana.

The page holds nothing by itself. It asks for the admin key, keeps it in the tab, and reads
`/control/v1/` with it; so what it shows is as closed as that is. The key may come in the address'
fragment (`/dashboard#key=...`), which browsers never send.
"""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

from orchestrator.api.auth import DASHBOARD_PATH

PAGE = Path(__file__).with_name("dashboard.html")


def dashboard_router() -> APIRouter:
    """The route. Browsers cannot send a key with an address, so authentication must leave this
    path open."""
    router = APIRouter(tags=["control"])

    @router.get(DASHBOARD_PATH, response_class=HTMLResponse)
    async def dashboard() -> HTMLResponse:
        """The live view: plans, load, predictions and decisions of every replica."""
        html, policy = _page()
        headers = {
            "content-security-policy": policy,
            "cache-control": "no-cache",
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        return HTMLResponse(html, headers=headers)

    return router


@cache
def _page() -> tuple[str, str]:
    """The page, and the policy under which nothing but its own script and style runs."""
    html = PAGE.read_text(encoding="utf-8")
    script, style = (_hash(html, tag) for tag in ("script", "style"))
    return html, (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(html: str, tag: str) -> str:
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

"""The live view, drawn by a real headless Chromium. Run: pytest tests/dashboards"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from orchestrator.api.dashboard import PAGE
from policies.vocabulary import all_plans
from tests.dashboards.live_application import KEY, PIN_AFTER, running

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on PATH; Debian: apt-get install chromium"
)


def browse(folder: Path, address: str, seconds: int, *options: str) -> str:
    """The page's document after `seconds` of its own, fast clock."""
    command = [
        str(CHROMIUM),
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *(f"--user-data-dir={folder}", f"--virtual-time-budget={seconds * 1000}"),
        *options,
        *("--dump-dom", address),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


def timeline(document: str, replica: str) -> list[str]:
    pattern = rf'data-replica="{replica}".*?aria-label="Plans in use, oldest first: ([^"]*)"'
    match = re.search(pattern, document, re.DOTALL)
    return match[1].split(", ") if match else []


def test_the_page_needs_nothing_from_elsewhere_and_runs_nothing_else() -> None:
    html = PAGE.read_text("utf-8")
    assert not re.findall(r"https?://|innerHTML|\bsrc=|@import|eval\(", html)
    with running() as address:
        answer = httpx.get(f"{address}/dashboard")
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy


def test_the_page_holds_no_data_and_the_data_needs_the_key() -> None:
    with running() as address:
        assert "replica-0" not in httpx.get(f"{address}/dashboard").text
        assert httpx.get(f"{address}/control/v1/replicas").status_code == 401


def test_every_plan_has_a_colour_on_the_page() -> None:
    html = PAGE.read_text("utf-8")
    for plan in all_plans():
        assert f'"{plan}": "#' in html


@needs_chromium
def test_without_the_right_key_it_asks_for_one(tmp_path: Path) -> None:
    with running() as address:
        document = browse(tmp_path, f"{address}/dashboard#key=wrong", 3)
    assert "The admin key is not right." in document
    assert '<form id="login">' in document
    assert "data-replica" not in document


@needs_chromium
def test_a_pin_is_seen_in_the_timeline_under_load(tmp_path: Path) -> None:
    with running(PIN_AFTER - 20) as address:
        document = browse(tmp_path, f"{address}/dashboard#key={KEY}", 40)
    plans = timeline(document, "replica-0")
    assert plans[-1] == "diffusion/8", document[-2000:]
    assert any(plan.startswith("self_speculation") or plan == "ar" for plan in plans[:-1])
    assert 'data-plan="diffusion/8"' in document
    assert "pinned to diffusion/8" in document
    assert "Last decisions" in document
    assert "replica-1" in document

"""`trimode status`, `pin`, `unpin`, `policy` against a real control API on a loopback port.

Run with: pytest tests/orchestrator/test_cli_control.py
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn
from click.testing import CliRunner, Result

from orchestrator.api import build_control_api
from orchestrator.cli import app
from orchestrator.cli_control import parse_duration
from orchestrator.control_service import ControlService
from orchestrator.signals import DirectScrape
from policies.guard import Guard, Rules
from policies.threshold import Threshold
from policies.vocabulary import AR, Schedule
from replicas.control_link import Call
from replicas.in_memory_engine import InMemoryEngine


class _WithReplica(ControlService):
    """One replica, registered on the first question."""

    async def replicas(self):
        if not self.state.replicas:
            report = InMemoryEngine(lambda ids: "").report()
            url = "http://127.0.0.1:1/metrics"
            await self.poll(Call("r1", url, Schedule.pinned(AR), None, report))
        return await super().replicas()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    control = _WithReplica(Guard(Threshold(), Rules(), name="threshold"), DirectScrape())
    config = uvicorn.Config(build_control_api(control, ["secret"]), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(5)


def trimode(url: str, *arguments: str, key: str = "secret") -> Result:
    environment = {"TRIMODE_URL": url, "TRIMODE_ADMIN_KEY": key, "COLUMNS": "200"}
    return CliRunner().invoke(app, arguments, env=environment)


def test_status_shows_plan_load_and_reason(url: str) -> None:
    output = trimode(url, "status").output
    assert "r1" in output
    assert " ar " in output  # what it follows until it has called again
    assert "initial" in output


def test_a_pin_shows_and_is_explained_until_it_is_taken_back(url: str) -> None:
    trimode(url, "status")
    assert trimode(url, "pin", "all", "ar", "--for", "10m").output == "ar for 10 m on r1\n"
    assert "pinned, 10 m left" in trimode(url, "status").output
    assert trimode(url, "unpin", "r1").output == "unpinned r1\n"
    explained = trimode(url, "policy", "explain", "r1").output
    assert [w for w in ("unpinned", "pinned", "initial") if w in explained] == [
        "unpinned",
        "pinned",
        "initial",
    ]
    assert "threshold" in trimode(url, "policy", "show").output


@pytest.mark.parametrize(
    ("arguments", "key", "message"),
    [
        (("pin", "nobody", "ar"), "secret", "registered: r1"),
        (("pin", "all", "diffusion/8"), "secret", "not allowed"),
        (("pin", "all", "warp/9"), "secret", "write ar"),
        (("pin", "all", "ar", "--for", "soon"), "secret", "write 90s, 10m or 2h"),
        (("status",), "wrong", "TRIMODE_ADMIN_KEY"),
        (("status",), "", "TRIMODE_ADMIN_KEY"),
    ],
)
def test_a_refused_order_says_why(url: str, arguments: tuple[str, ...], key: str, message) -> None:
    trimode(url, "status")
    result = trimode(url, *arguments, key=key)
    assert result.exit_code != 0
    assert message in result.output


def test_a_server_that_is_not_there_is_one_line() -> None:
    result = trimode("http://127.0.0.1:9", "status")
    assert result.exit_code == 1
    assert "does not answer" in result.output


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds

"""The application on one SGLang replica: plans follow the load, and whatever is killed comes back.

Run with: make test-sglang. Starting SGLang takes a minute on two cores; most of the time is that.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.serve.cluster import PROMPTS, App, Outcome, kill, processes, until

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(find_spec("sglang") is None, reason="sglang is not installed"),
]
STARTS_S = 400.0
FEW, SOME, MANY = "self_speculation/16", "self_speculation/4", "ar"


@pytest.fixture(scope="module")
def sglang_app(deploy: Callable[..., App]) -> App:
    return deploy(
        "sglang",
        engine="sglang",
        device="cpu",
        num_replicas=1,
        max_sequences=8,
        max_context_tokens=512,
        policy="threshold",
        bands=f"2={FEW},4={SOME},{MANY}",
    )


def row(app: App) -> dict[str, Any]:
    """KeyError, which waiting goes on at, while the replica is late to call: a server that starts
    takes all cores."""
    rows = app.replicas()
    if len(rows) != 1:
        raise KeyError(f"{len(rows)} replicas have called lately, not 1")
    return next(iter(rows.values()))


def total(app: App, name: str) -> float:
    """A counter's sum over its labels, on the replica's own page."""
    page = app.metrics(next(iter(app.replicas())))
    return sum(value for series, value in page.items() if series.startswith(f"trimode_{name}{{"))


def server() -> int:
    """SGLang's server process, below the one that stands between it and the replica."""
    for pid in processes(""):
        line = Path(f"/proc/{pid}/cmdline").read_text()
        if "\0-m\0sglang.launch_server\0" in line:
            return pid
    raise AssertionError("no SGLang server runs")


async def answered(app: App) -> Outcome | None:
    outcome = await app.ask(PROMPTS[0])
    return None if outcome.error else outcome


async def until_answered(app: App) -> float:
    """Seconds until a request succeeds."""
    began = time.monotonic()
    while time.monotonic() - began < STARTS_S:
        if await answered(app):
            return time.monotonic() - began
        await asyncio.sleep(1)
    raise AssertionError(f"no request succeeded within {STARTS_S} s")


def test_the_plan_follows_the_load_up_and_down(sglang_app: App) -> None:
    app = sglang_app

    async def plans_under(streams: int, wanted: str) -> list[Outcome]:
        async with app.load(streams, max_tokens=200) as outcomes:
            await until(lambda: row(app)["plan"] == wanted, 120)
            active = f'trimode_plan_active{{mode="{wanted.partition("/")[0]}",plan="{wanted}"'
            await until(lambda: _shows(app, active), 60)
        return outcomes

    async def scenario() -> None:
        outcomes: list[Outcome] = []
        for streams, wanted in ((1, FEW), (8, MANY), (3, SOME), (1, FEW)):
            outcomes += await plans_under(streams, wanted)
        assert [o.error for o in outcomes if o.error] == []
        used = {plan for o in outcomes for plan in o.plans}
        assert {FEW, SOME, MANY} <= used
        print(f"\n{len(outcomes)} requests, 0 failed, plans {used}")

    asyncio.run(scenario())


def _shows(app: App, prefix: str) -> bool:
    page = app.metrics(next(iter(app.replicas())))
    return any(value == 1 for series, value in page.items() if series.startswith(prefix))


def test_killing_the_controller_fails_no_request(sglang_app: App) -> None:
    app = sglang_app

    async def scenario() -> None:
        epoch = app.get("/control/v1/policy")["epoch"]
        async with app.load(3) as outcomes:
            await asyncio.sleep(1)
            (pid,) = processes("ray::ServeReplica:sglang:controller")
            killed = kill(pid)
            await until(lambda: app.get("/control/v1/policy")["epoch"] > epoch, 120)
            await until(lambda: len(app.replicas()) == 1, 120)
            took_s = time.monotonic() - killed
        assert [o.error for o in outcomes if o.error] == []
        print(f"\ncontroller killed: adopted after {took_s:.1f} s, {len(outcomes)} requests")

    asyncio.run(scenario())


def test_a_killed_server_is_started_again_and_its_counters_grow_on(sglang_app: App) -> None:
    app = sglang_app

    async def scenario() -> None:
        assert await answered(app)
        replica, first = row(app)["replica"], server()
        before = {name: total(app, name) for name in ("steps_total", "generated_tokens_total")}
        asked = [asyncio.create_task(app.ask(p, max_tokens=400)) for p in PROMPTS[3:5]]
        await asyncio.sleep(0.5)
        kill(first)
        failed = [outcome.error for outcome in await asyncio.gather(*asked)]
        took_s = await until_answered(app)
        assert server() != first
        await until(lambda: row(app)["replica"] == replica, 60)  # the same replica
        for name, value in before.items():
            assert total(app, name) > value, name
        print(f"\nserver killed: {failed} failed, answered again after {took_s:.1f} s")

    asyncio.run(scenario())


def test_a_killed_replica_takes_its_server_with_it_and_is_replaced(sglang_app: App) -> None:
    app = sglang_app

    async def scenario() -> None:
        replica, first = row(app)["replica"], server()
        (pid,) = processes("ray::ServeReplica:sglang:replica")
        kill(pid)
        await until(lambda: first not in processes(""), 30)
        took_s = await until_answered(app)
        await until(lambda: row(app)["replica"] != replica, 60)
        assert server() != first
        print(f"\nreplica killed: answered again after {took_s:.1f} s")

    asyncio.run(scenario())

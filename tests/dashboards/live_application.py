"""The live view over the real controller, with simulated engines behind it, on a real port.

Every look at the replicas is one second for them, so that a browser with a fast clock sees as much
as one that waits. After `PIN_AFTER` looks an operator pins replica-0 to diffusion/8.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry, start_http_server

from dashboards.simulation import Hardware, SimulatedEngine
from orchestrator.api.control import build_control_api
from orchestrator.api.dashboard import dashboard_router
from orchestrator.control_service import ControlService
from policies.decisions import Decision, Reading, Signals
from policies.guard import Guard, Rules
from policies.threshold import Threshold
from policies.vocabulary import Plan, Schedule, all_plans
from replicas.control_link import Call
from replicas.governor import Governor
from replicas.metrics import ReplicaMetrics

KEY = "live-view-key"
PIN_AFTER = 90
PIN = Plan.parse("diffusion/8")


class Predicting(Threshold):
    """The threshold policy, with a prediction for every plan."""

    def decide(
        self, signals: Signals, state: int | None, now: float
    ) -> tuple[Decision, int | None]:
        decision, state = super().decide(signals, state, now)
        load = signals.decoding.value
        if not load:
            return decision, state
        predicted = {plan: Hardware().tokens_per_s(plan, load) for plan in all_plans()}
        return decision._replace(predicted=predicted), state


class Source:
    """Reads the engines directly."""

    errors: Mapping[str, int] = {}

    def __init__(self, engines: Mapping[str, SimulatedEngine]) -> None:
        self.engines = engines

    async def collect(self, replicas: Mapping[str, str], now: float) -> dict[str, Signals]:
        return {name: _signals(name, self.engines[name]) for name in replicas}

    async def close(self) -> None: ...


class Live(ControlService):
    """A controller whose clock and replicas go on when somebody looks."""

    def __init__(self) -> None:
        self.now = time.time() - PIN_AFTER
        names = ("replica-0", "replica-1")
        first = Schedule.pinned(Plan.parse("ar"))
        self.engines = {name: SimulatedEngine(name, Governor(first, self.now)) for name in names}
        guard = Guard(Predicting(), Rules(allowed=frozenset(all_plans())), name="predicting")
        super().__init__(guard, Source(self.engines), clock=lambda: self.now)
        self.looks = 0
        self.pages = {name: _serve(_exporter(e).registry) for name, e in self.engines.items()}
        self.extra_targets = (_serve(self.metrics.registry),)

    async def replicas(self) -> Sequence[Mapping[str, Any]]:
        await self.second()
        return await super().replicas()

    async def second(self) -> None:
        self.looks += 1
        self.now += 1
        for index, (name, engine) in enumerate(self.engines.items()):
            load = 20 + 19 * math.sin(self.looks / 17 + 2 * index)
            engine.step(self.now, max(0, round(load)))
            schedule = engine.governor.schedule
            call = Call(name, self.pages[name], schedule, None, engine.report())
            with suppress(TimeoutError):  # nothing new: a poll would be held
                await asyncio.wait_for(self.poll(call), 0.005)
            issued = self.state.schedules.get(name)
            if issued is not None:
                engine.governor.receive(issued, self.now)
        if self.looks == PIN_AFTER:
            await self.pin("replica-0", PIN, 300.0)
        self.signals = await self._source.collect(dict.fromkeys(self.engines, ""), self.now)
        self._decide()


def _exporter(engine: SimulatedEngine) -> ReplicaMetrics:
    switched = engine.governor
    return ReplicaMetrics(
        engine.name,
        "demo",
        engine,  # type: ignore[arg-type]  # only what the exporter asks for
        switched=lambda: switched.switched,
    )


def _serve(registry: CollectorRegistry) -> str:
    server, _ = start_http_server(0, "127.0.0.1", registry)
    return f"http://127.0.0.1:{server.server_port}/metrics"


def _signals(name: str, engine: SimulatedEngine) -> Signals:
    plan, load = engine.governor.plan, engine.decoding
    speed = engine.hardware.tokens_per_s(plan, load)
    known = {
        "decoding": float(load),
        "waiting": 0.0,
        "tokens_per_s": speed * 0.97,
        "ttft_p95_s": 0.08 + 0.004 * load,
        "tpot_p95_s": load / speed if load else None,
        "kv_use": load / 60,
    }
    readings = {key: Reading(value, 0.3) for key, value in known.items()}
    return Signals(name, plan=plan, **readings)  # type: ignore[arg-type]


@contextmanager
def running(seconds_before: int = 0) -> Iterator[str]:
    """The address of the application; `seconds_before` have passed when it opens."""
    live = Live()

    async def age() -> None:
        for _ in range(seconds_before):
            await live.second()

    asyncio.run(age())
    app = FastAPI()
    app.include_router(dashboard_router())
    app.mount("/", build_control_api(live, [KEY]))
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


if __name__ == "__main__":
    with running(80) as address:
        print(f"{address}/dashboard#key={KEY}", flush=True)
        time.sleep(600)

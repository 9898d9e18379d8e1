"""What Serve costs: the same load on the engine alone and over HTTP, and how fast a pin arrives.

    python -m benchmarks.overhead [--engine paced|torch] [--quick] [--json FILE]

`paced` emulates the device (`benchmarks/paced.py`): the matrix products would run on a GPU, so they
must not compete with the server for the cores. `torch` computes on the CPU: what a machine without
a GPU sees. Engine and Serve are measured in turns, round by round, so that a noisy neighbour hits
both. A token is one event, since everything decodes in AR.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.table import Table

from benchmarks.common import (
    Bar,
    Spread,
    add_output_arguments,
    make_console,
    print_bars,
    print_provenance,
    provenance,
    write_json,
)
from benchmarks.sse_client import Connection
from policies.vocabulary import AR
from replicas.engine import Engine, Request, SamplingParams

LEVELS = (1, 8, 32)
PROMPT = tuple(range(20, 52))
MAX_TOKENS = 128
WARM_S = 2.0
THINK_S = 0.040  # a few steps
ADMIN = "benchmark"
SWITCH_STREAMS, SWITCH_SEQUENCES = 16, 8  # both replicas full
ENGINES = {"paced": "benchmarks.paced:open_engine", "torch": "torch"}


@dataclass(slots=True)
class Window:
    """What a closed loop saw after it had warmed up."""

    opens_at: float
    closes_at: float
    tokens: int = 0
    first_token_s: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / (self.closes_at - self.opens_at)

    @property
    def ttft_s(self) -> float:
        return statistics.median(self.first_token_s)


async def closed_loop(streams: int, seconds: float, ask: Callable[[int], Any]) -> Window:
    """`streams` clients, each asking again soon; `ask` yields once for every token.

    They think a little, or all would ask in the same instant, and always just before a step.
    """
    opens_at = time.perf_counter() + WARM_S
    window = Window(opens_at, opens_at + seconds)

    async def client(index: int) -> None:
        noise = Random(index)
        while time.perf_counter() < window.closes_at:
            await asyncio.sleep(noise.uniform(0.0, THINK_S))
            began, is_first = time.perf_counter(), True
            async for _ in ask(index):
                now = time.perf_counter()
                if window.opens_at <= now < window.closes_at:
                    window.tokens += 1
                    if is_first:
                        window.first_token_s.append(now - began)
                is_first = False

    await asyncio.gather(*(client(index) for index in range(streams)))
    return window


async def on_engine(engine: Engine, streams: int, seconds: float) -> Window:
    asked = 0

    async def ask(index: int) -> AsyncIterator[None]:
        nonlocal asked
        asked += 1
        sampling = SamplingParams(max_tokens=MAX_TOKENS, ignore_eos=True)
        request = Request(f"{index}-{asked}", PROMPT, sampling, plan=AR)
        async for _ in engine.generate(request):
            yield

    return await closed_loop(streams, seconds, ask)


async def on_serve(port: int, streams: int, seconds: float) -> Window:
    connections = [Connection("127.0.0.1", port) for _ in range(streams)]
    for connection in connections:
        await connection.__aenter__()
    body = _body(MAX_TOKENS, mode="ar")

    async def ask(index: int) -> AsyncIterator[None]:
        async for _ in connections[index].events("/overhead/v1/completions", body):
            yield

    try:
        return await closed_loop(streams, seconds, ask)
    finally:
        for connection in connections:
            await connection.__aexit__()


def _body(max_tokens: int, **trimode: str) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": list(PROMPT), "max_tokens": max_tokens, "temperature": 0}
    return body | {"stream": True, "ignore_eos": True, "trimode": trimode or None}


async def on_pins(port: int, pins: int) -> list[float]:
    """Seconds from sending each pin to the first token decoded under it, at any client."""
    seen: list[tuple[float, bytes]] = []
    plans = ("ar", "self_speculation/16")

    async def watch() -> None:
        async with Connection("127.0.0.1", port) as connection:
            while True:
                events = connection.events("/switch/v1/completions", _body(1500, mode="auto"))
                async for event in events:
                    if b'"trimode":{"plan"' in event:
                        seen.append((time.perf_counter(), event))

    async def pin(connection: Connection, plan: str) -> float:
        sent = time.perf_counter()
        await connection.post("/switch/control/v1/pin", {"plan": plan, "ttl_s": 600})
        mark = f'"plan":"{plan}"'.encode()
        while True:
            for at, event in seen:
                if at > sent and mark in event:
                    seen.clear()
                    return at - sent
            await asyncio.sleep(0.001)

    watchers = [asyncio.create_task(watch()) for _ in range(SWITCH_STREAMS)]
    headers = {"authorization": f"Bearer {ADMIN}"}
    try:
        await asyncio.sleep(WARM_S)
        async with Connection("127.0.0.1", port, headers) as connection:
            delays = []
            for number in range(pins + 1):
                delays.append(await pin(connection, plans[number % 2]))
                await asyncio.sleep(0.25)
            return delays[1:]
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)


@contextmanager
def serving(engine: str, haproxy: bool) -> Iterator[tuple[int, Callable[..., None]]]:
    """A cluster of this process's own; gives Serve's port and what deploys an application."""
    folder = tempfile.mkdtemp(prefix="tm")
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "HOME": folder}
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 yields to everything else
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    if haproxy:
        os.environ["RAY_SERVE_ENABLE_HA_PROXY"] = "1"
    import ray
    from ray import serve

    from orchestrator.app import bind, replica_options
    from orchestrator.app_config import AppConfig

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])

    def deploy(name: str, **options: Any) -> None:
        config = AppConfig.model_validate({"admin_key": ADMIN, **options})
        app = bind(config, replace(replica_options(config), engine=ENGINES[engine]))
        serve.run(app, name=name, route_prefix=f"/{name}")
        time.sleep(2)

    quiet: dict[str, Any] = {
        "include_dashboard": False,
        "log_to_driver": False,
        "logging_level": "error",
    }
    ray.init(address="local", num_cpus=4, _temp_dir=f"{folder}/r", **quiet)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        yield port, deploy
    finally:
        serve.shutdown()
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


async def compare(engine_name: str, port: int, rounds: int, seconds: float) -> dict[int, Any]:
    """Engine and Serve in turns, at every level."""
    from orchestrator.app import replica_options
    from orchestrator.app_config import AppConfig
    from replicas.deployment import open_engine

    options = replace(replica_options(AppConfig.model_validate({})), engine=ENGINES[engine_name])
    figures: dict[int, Any] = {}
    for level in LEVELS:
        alone, served = [], []
        for _ in range(rounds):
            engine, _ = open_engine(options)
            await engine.start()
            alone.append(await on_engine(engine, level, seconds))
            await engine.stop()
            served.append(await on_serve(port, level, seconds))
        figures[level] = {
            "engine_ttft_s": Spread.of(w.ttft_s for w in alone),
            "serve_ttft_s": Spread.of(w.ttft_s for w in served),
            "engine_tokens_per_s": Spread.of(w.rate for w in alone),
            "serve_tokens_per_s": Spread.of(w.rate for w in served),
        }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add_output_arguments(parser)
    parser.add_argument("--engine", choices=ENGINES, default="paced")
    parser.add_argument("--haproxy", action="store_true", help="HAProxy in place of Serve's proxy")
    options = parser.parse_args()
    rounds, seconds, pins = (1, 5.0, 12) if options.quick else (3, 6.0, 60)
    console = make_console()
    facts = provenance(torch.device("cpu"))
    print_provenance(console, facts)
    with serving(options.engine, options.haproxy) as (port, deploy):
        deploy("overhead", num_replicas=1)
        figures = asyncio.run(compare(options.engine, port, rounds, seconds))
        deploy("switch", num_replicas=2, max_sequences=SWITCH_SEQUENCES)
        delays = sorted(asyncio.run(on_pins(port, pins)))
    bars = [bar for level, row in figures.items() for bar in _bars(level, row)]
    p50, p95 = statistics.median(delays), delays[int(0.95 * (len(delays) - 1))]
    bars.append(Bar("pin to first token in the new mode, p95, ms", p95 * 1e3, 100, at_least=False))
    console.print(_table(figures))
    console.print(f"{len(delays)} pins: p50 {p50 * 1e3:.0f} ms, p95 {p95 * 1e3:.0f} ms")
    print_bars(console, bars)
    rows = {str(level): {k: s.to_dict() for k, s in row.items()} for level, row in figures.items()}
    result = {"engine": options.engine, "haproxy": options.haproxy, "levels": rows}
    write_json(
        options.json,
        facts | result | {"pin_s": delays, "bars": [bar.to_dict() for bar in bars]},
    )


def _bars(level: int, row: dict[str, Spread]) -> list[Bar]:
    added_ms = (row["serve_ttft_s"].median - row["engine_ttft_s"].median) * 1e3
    kept = row["serve_tokens_per_s"].median / row["engine_tokens_per_s"].median
    return [
        Bar(f"added TTFT p50 at {level} streams, ms", added_ms, 5.0, at_least=False),
        Bar(f"throughput kept at {level} streams", kept, 0.98),
    ]


def _table(figures: dict[int, Any]) -> Table:
    table = Table("streams", "engine TTFT", "Serve TTFT", "engine tokens/s", "Serve tokens/s")
    for level, row in figures.items():
        cells = [
            f"{row[name].median * scale:{form}} ({row[name].low * scale:{form}} to "
            f"{row[name].high * scale:{form}})"
            for name, scale, form in (
                ("engine_ttft_s", 1e3, ".1f"),
                ("serve_ttft_s", 1e3, ".1f"),
                ("engine_tokens_per_s", 1, ".0f"),
                ("serve_tokens_per_s", 1, ".0f"),
            )
        ]
        table.add_row(str(level), *cells)
    return table


if __name__ == "__main__":
    main()

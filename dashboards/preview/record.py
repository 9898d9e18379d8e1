"""Runs the demo application under a changing load with Prometheus beside it, and draws both boards.

`python -m dashboards.preview.record --out FOLDER`; README.md in this folder says what it needs.
Everything is real: two replicas under Ray Serve, the shipped Prometheus configuration and rules.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from dashboards.build import GENERATED, ROOT
from dashboards.throwaway import Server, free_port, serving

HERE = Path(__file__).resolve().parent
CONFIG = ROOT.parent / "deploy/prometheus/prometheus.yml"
PROMPTS = (
    "Count from 10 in steps of 5, 8 numbers.",
    "Reverse: Oslo, Rome, Lima, Paris.",
    "JSON: name: Maria, city: Rome, age: 42.",
    "Write a story.",
    "Count from 100 in steps of 7, 16 numbers.",
    "Sort: pear, apple, plum, fig, kiwi.",
)
LOADS = (2, 2, 8, 20, 40, 24, 12, 4, 1, 0, 3, 16, 48, 30, 10, 2)
"""Clients at a time; each stands for an equal part of the run."""
PINNED = (0.62, 0.70)
"""When an operator pins one replica to diffusion/8, as shares of the run."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dashboards.preview.record")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--minutes", type=float, default=16.0, help="how long the load lasts")
    parser.add_argument(
        "options",
        nargs="*",
        type=_option,
        metavar="NAME=VALUE",
        help="of the configuration, as for serve run",
    )
    parser.add_argument("--keep", type=float, default=0, metavar="SECONDS", help="serve on after")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    key = secrets.token_urlsafe(16)
    with application(key, dict(options.options)) as url, prometheus(url, key) as server:
        began = time.time()
        asyncio.run(Load(url, key, options.minutes * 60).run())
        time.sleep(6)  # a scrape and a round of rules more
        end = time.time()
        draw(server.url, options.out, began, end)
        print(f"Prometheus serves at {server.url} for {options.keep:g} s; the run ended at {end}")
        time.sleep(options.keep)
    return 0


def _option(text: str) -> tuple[str, str]:
    name, is_given, value = text.partition("=")
    if not is_given:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


@contextmanager
def application(key: str, given: Mapping[str, str]) -> Iterator[str]:
    """The demo model on two replicas, in a Ray cluster of this process's own; gives its address.
    `given`: options over the usual ones."""
    folder = tempfile.mkdtemp(prefix="tm")  # short: it becomes part of socket paths
    os.environ |= {
        "HOME": folder,
        "RAY_TMPDIR": folder,
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "PYTHONPATH": str(ROOT.parent),
    }
    import ray

    from orchestrator.app import launch, progress, shut_down
    from orchestrator.app_config import AppConfig

    options: dict[str, Any] = {
        "admin_key": key,
        "quality": "any",
        "max_sequences": 32,
        "ttft_target_s": 0.5,
        "tpot_target_s": 0.05,
    }
    config = AppConfig.model_validate(options | dict(given))
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    port = free_port()
    try:
        launch(config, "127.0.0.1", port)
        while not progress(config).is_running:
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        shut_down(is_own=True)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def prometheus(url: str, key: str) -> Iterator[Server]:
    """The configuration as shipped, with this application's address and key."""
    with tempfile.TemporaryDirectory(prefix="trimode-prometheus-") as name:
        folder = Path(name)
        (folder / "admin-key").write_text(key)
        config = CONFIG.read_text("utf-8").replace("http://127.0.0.1:8000", url)
        config = config.replace("../../dashboards", str(ROOT))
        with serving(folder, config) as server:
            yield server


class Load:
    """Clients that come and go, and one operator."""

    def __init__(self, url: str, key: str, seconds: float) -> None:
        self._seconds = seconds
        self._wanted = 0
        headers = {"authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=100)
        self._http = httpx.AsyncClient(
            base_url=url, headers=headers, limits=limits, timeout=60, trust_env=False
        )

    async def run(self) -> None:
        clients = [asyncio.create_task(self._client(i)) for i in range(max(LOADS))]
        operator = asyncio.create_task(self._operator())
        for wanted in LOADS:
            self._wanted = wanted
            print(f"{wanted} clients", flush=True)
            await asyncio.sleep(self._seconds / len(LOADS))
        self._wanted = -1
        await asyncio.gather(operator, *clients)
        await self._http.aclose()

    async def _client(self, index: int) -> None:
        """Asks one thing after another while it is wanted."""
        turn = index
        while self._wanted >= 0:
            if index >= self._wanted:
                await asyncio.sleep(0.2)
                continue
            message = {"role": "user", "content": PROMPTS[turn % len(PROMPTS)]}
            body = {"model": "tiny", "messages": [message], "max_tokens": 160, "stream": True}
            turn += 1
            with suppress(httpx.HTTPError):
                async with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    async for _ in answer.aiter_bytes():
                        pass

    async def _operator(self) -> None:
        await asyncio.sleep(PINNED[0] * self._seconds)
        ends, is_pinned = time.monotonic() + 30, False
        while not is_pinned and time.monotonic() < ends:  # a busy machine may refuse at first
            with suppress(httpx.HTTPError):
                await self._pin()
                is_pinned = True

    async def _pin(self) -> None:
        replicas = (await self._http.get("/control/v1/replicas")).raise_for_status().json()
        ttl_s = (PINNED[1] - PINNED[0]) * self._seconds
        name = min(row["replica"] for row in replicas)
        order = {"plan": "diffusion/8", "replica": name, "ttl_s": ttl_s}
        (await self._http.post("/control/v1/pin", json=order)).raise_for_status()


def draw(prometheus_url: str, out: Path, began: float, end: float) -> None:
    """One picture of each board over the run."""
    for board in sorted(GENERATED.glob("*.json")):
        picture = out / f"{board.stem}.png"
        arguments = [str(board), str(picture), prometheus_url, f"{end:.0f}", f"{end - began:.0f}"]
        subprocess.run(["node", "shot.mjs", *arguments], cwd=HERE, check=True)
        print(picture)


if __name__ == "__main__":
    sys.exit(main())

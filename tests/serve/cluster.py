"""A real Ray cluster of this process's own, the load on it, and the processes in it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai

ROOT = Path(__file__).resolve().parents[2]
ADMIN = "test-admin-key"
PROMPTS = (
    "Count from 10 in steps of 5, 8 numbers.",
    "Reverse: Oslo, Rome, Lima, Paris.",
    "JSON: name: Maria, city: Rome, age: 42.",
    "Count from 3 in steps of 4, 20 numbers.",
    "Count from 100 in steps of 7, 16 numbers.",
    "Sort: pear, apple, plum, fig, kiwi.",
)


def free_port() -> int:
    # Serve's proxies share a port without complaint, so each cluster must have its own.
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def ray_cluster() -> Iterator[int]:
    """Ray and Serve, started in a folder of their own; gives Serve's HTTP port."""
    folder = Path(tempfile.mkdtemp(prefix="tm"))  # short: it becomes part of socket paths
    own = {
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),  # step times are measured once for all tests
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_niceness": "0",  # else whatever runs beside the tests goes first
        "PYTHONPATH": str(ROOT),
    }
    with environment(own):
        import ray
        from ray import serve

        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=str(folder / "r"),
        )
        port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            yield port
        finally:
            serve.shutdown()
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Outcome:
    """What one request came to."""

    prompt: str
    text: str = ""
    error: str | None = None
    plans: list[str] = field(default_factory=list)
    first_token_s: float = 0.0
    total_s: float = 0.0
    at: float = 0.0


class App:
    """One application on the cluster, as its users see it."""

    def __init__(self, port: int, prefix: str = "") -> None:
        self.root = f"http://127.0.0.1:{port}{prefix}"
        self.client = openai.OpenAI(base_url=f"{self.root}/v1", api_key="none", max_retries=0)
        self._async_clients: dict[asyncio.AbstractEventLoop, openai.AsyncOpenAI] = {}
        self._http = httpx.Client(timeout=10, trust_env=False)

    @property
    def async_client(self) -> openai.AsyncOpenAI:
        """The running event loop's own: connections do not outlive a loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._async_clients:
            self._async_clients[loop] = openai.AsyncOpenAI(
                base_url=f"{self.root}/v1",
                api_key="none",
                max_retries=0,
                http_client=httpx.AsyncClient(limits=httpx.Limits(max_connections=200)),
            )
        return self._async_clients[loop]

    def get(self, path: str, **params: Any) -> Any:
        response = self._http.get(
            self.root + path, params=params, headers={"authorization": f"Bearer {ADMIN}"}
        )
        response.raise_for_status()
        return response.json()

    def post(self, path: str, body: Any) -> Any:
        response = self._http.post(
            self.root + path, json=body, headers={"authorization": f"Bearer {ADMIN}"}
        )
        response.raise_for_status()
        return response.json()

    def replicas(self) -> dict[str, Any]:
        """Those that have called lately; one that was killed stays listed for a while."""
        rows = self.get("/control/v1/replicas")
        return {row["replica"]: row for row in rows if row["seen_s_ago"] < 5}

    def pin(self, plan: str, replica: str | None = None, ttl_s: float = 60.0) -> Any:
        return self.post("/control/v1/pin", {"plan": plan, "replica": replica, "ttl_s": ttl_s})

    def unpin(self, replica: str | None = None) -> Any:
        return self.post("/control/v1/unpin", {"replica": replica})

    def metrics(self, replica: str) -> dict[str, float]:
        """The series on a replica's own page, by name and labels as they are written."""
        page = self._http.get(self.replicas()[replica]["metrics_url"]).text
        rows = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, _, value in rows}

    def wait_for_replicas(self, count: int, timeout_s: float = 60.0) -> dict[str, Any]:
        def known() -> Any:
            rows = self.replicas()
            is_current = all(row["is_current"] for row in rows.values())
            return rows if is_current and len(rows) == count else None

        return wait_for(known, timeout_s)

    async def ask(self, prompt: str, max_tokens: int = 96, **extra: Any) -> Outcome:
        """One streamed chat request; an error is part of the outcome, never raised."""
        outcome, began = Outcome(prompt, at=time.monotonic()), time.monotonic()
        try:
            stream = await self.async_client.chat.completions.create(
                model="tiny",
                messages=[{"role": "user", "content": prompt}],
                max_tokens=max_tokens,
                temperature=0,
                stream=True,
                extra_body={"trimode": extra} if extra else None,
            )
            finished = None
            async for chunk in stream:
                plan = (chunk.model_extra or {}).get("trimode", {}).get("plan")
                if plan is not None:
                    outcome.plans.append(plan)
                for choice in chunk.choices:
                    if choice.delta.content and not outcome.first_token_s:
                        outcome.first_token_s = time.monotonic() - began
                    outcome.text += choice.delta.content or ""
                    finished = choice.finish_reason or finished
            if finished is None:
                outcome.error = "the stream ended without a finish reason"
        except (openai.APIError, httpx.HTTPError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.total_s = time.monotonic() - began
        return outcome

    @asynccontextmanager
    async def load(self, streams: int, **extra: Any) -> AsyncIterator[list[Outcome]]:
        """`streams` clients that ask one prompt after another until the block is left."""
        outcomes: list[Outcome] = []
        stopping = asyncio.Event()

        async def client(index: int) -> None:
            while not stopping.is_set():
                prompt = PROMPTS[index % len(PROMPTS)]
                outcomes.append(await self.ask(prompt, **extra))
                index += streams

        tasks = [asyncio.create_task(client(i)) for i in range(streams)]
        try:
            yield outcomes
        finally:
            stopping.set()
            await asyncio.gather(*tasks)


def wait_for(condition: Callable[[], Any], timeout_s: float = 30.0, every_s: float = 0.1) -> Any:
    """The condition's value once it is true; what goes wrong on the way counts as false."""
    deadline, last = time.monotonic() + timeout_s, None
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except (httpx.HTTPError, KeyError, json.JSONDecodeError) as error:
            last = error
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s} s: {condition.__qualname__}, last error {last!r}")


async def until(condition: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """`wait_for` beside a load."""
    return await asyncio.to_thread(wait_for, condition, timeout_s)


def processes(title: str) -> list[int]:
    """Processes under this one whose command line starts with `title`."""
    parents, titles = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
            titles[int(folder.name)] = line

    def is_mine(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return sorted(pid for pid, line in titles.items() if line.startswith(title) and is_mine(pid))


def kill(pid: int) -> float:
    """`kill -9`; the time of it."""
    os.kill(pid, signal.SIGKILL)
    return time.monotonic()

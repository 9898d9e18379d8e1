"""A real SGLang server on this CPU, with the plugin or without, and a blocking client for it.

Benchmarks and tests of the plugin use it; a replica has `replicas.sglang_engine` instead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policies.vocabulary import Plan, Quality, Schedule
from replicas.sglang_engine.protocol import (
    CONTROL_DIR_VARIABLE,
    CPU_ENVIRONMENT,
    PLAN_KEY,
    PluginReport,
    RequestOptions,
    cpu_flags,
    launch_flags,
    read_report,
    write_schedule,
)
from replicas.sglang_engine.server import Command, Server
from replicas.tiny import CHECKPOINT

START_S = 600.0
ANSWER_S = 600.0
REPORT_S = 20.0
SLOTS = 8
"""Requests that decode together."""
POOL_TOKENS = 16384


@dataclass(frozen=True)
class Ask:
    """One request. `sampling` goes to SGLang as it is; greedy without it."""

    prompt: Sequence[int]
    plan: Plan | None = None
    quality: Quality = Quality.ANY
    seed: int | None = None
    max_tokens: int = 48
    sampling: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Answer:
    """What came back. `plans` names what yielded each token, None: prefill."""

    tokens: list[int]
    plans: list[Plan | None]
    finish: str
    cached: int


class Refused(Exception):
    """The server answered with an error, whose body this is."""


class Served:
    """A server that is ready. `control` is its control directory."""

    def __init__(self, server: Server, control: Path) -> None:
        self.server, self.control = server, control
        self._version = 0

    def ask(self, ask: Ask) -> Answer:
        options = RequestOptions(ask.plan, ask.quality, ask.seed).to_custom_params()
        sampling = {"temperature": 0, "max_new_tokens": ask.max_tokens, **(ask.sampling or {})}
        body = {
            "input_ids": list(ask.prompt),
            "sampling_params": {**sampling, "custom_params": options},
        }
        reply = self.post("/generate", body)
        facts = reply["meta_info"]
        plans = [None if p is None else Plan.parse(p) for p in facts.get(PLAN_KEY) or []]
        finish = facts["finish_reason"]["type"]
        return Answer(reply["output_ids"], plans, finish, facts["cached_tokens"])

    def ask_all(self, asks: Sequence[Ask], together: int = 0) -> list[Answer]:
        """At most `together` in flight, all of them if 0."""
        with ThreadPoolExecutor(together or len(asks)) as pool:
            return list(pool.map(self.ask, asks))

    def post(self, path: str, body: Any) -> Any:
        """The reply as JSON, or as text if it is none."""
        headers = {"content-type": "application/json"}
        url, data = self.server.url + path, json.dumps(body).encode()
        try:
            request = urllib.request.Request(url, data, headers)
            with urllib.request.urlopen(request, timeout=ANSWER_S) as reply:
                text = reply.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None
        try:
            return json.loads(text)
        except ValueError:
            return text.decode()

    def scheduler_cpu_s(self) -> float:
        """CPU time of the process that decodes, which others on the machine do not stretch."""
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                title = (folder / "cmdline").read_bytes()
                is_ours = os.getsid(int(folder.name)) == self.server.pid
                if is_ours and title.startswith(b"sglang::scheduler"):
                    threads = (folder / "task").glob("*/schedstat")
                    return sum(int(t.read_text().split()[0]) for t in threads) / 1e9
        raise LookupError(f"server {self.server.pid} has no scheduler process")

    def flush_cache(self) -> None:
        """Empties the prefix cache, which SGLang does only once it has seen that it is idle."""
        deadline = time.monotonic() + REPORT_S
        while True:
            try:
                self.post("/flush_cache", {})
                return
            except Refused:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def use(self, plan: Plan, **fields: Any) -> None:
        """Puts one plan in force for every load, without waiting for it."""
        self._version += 1
        write_schedule(self.control, Schedule.pinned(plan, version=self._version, **fields))

    def settle(self, plan: Plan) -> None:
        """Puts a plan in force and waits until the plugin has taken it."""
        self.use(plan)
        self.until(lambda report: report.version == self._version)

    def fresh_report(self) -> PluginReport:
        """One written after this call."""
        now = time.time()
        return self.until(lambda report: report.written_at > now)

    def until(self, is_so: Callable[[PluginReport], bool]) -> PluginReport:
        """The first report of which this is so."""
        deadline = time.monotonic() + REPORT_S
        while (report := read_report(self.control)) is None or not is_so(report):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no such report within {REPORT_S:g} s; the last: {report}")
            time.sleep(0.01)
        return report


@contextmanager
def serving(
    folder: Path,
    *flags: str,
    stock: bool = False,
    model: Path = CHECKPOINT,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """A server that is ready; `stock` decodes with the same model class as SGLang alone does."""
    server = launch(folder, *flags, stock=stock, model=model, environment=environment)
    try:
        _wait_until_ready(server)
        yield Served(server, folder)
    finally:
        asyncio.run(server.kill())


def launch(
    folder: Path,
    *flags: str,
    stock: bool = False,
    model: Path = CHECKPOINT,
    environment: Mapping[str, str] | None = None,
) -> Server:
    """Starts a server and returns at once; log and control directory lie in `folder`.

    `flags` come last, so they win.
    """
    arguments = [
        *("--model-path", str(model), "--host", "127.0.0.1", "--port", "{port}"),
        *("--skip-tokenizer-init", "--skip-server-warmup", "--log-level", "warning"),
        *("--max-total-tokens", str(POOL_TOKENS), "--max-running-requests", str(SLOTS)),
        *cpu_flags(),
        *(["--disable-overlap-schedule"] if stock else launch_flags()),
        *flags,
    ]
    control = {} if stock else {CONTROL_DIR_VARIABLE: str(folder)}
    variables = {**CPU_ENVIRONMENT, "OMP_NUM_THREADS": "1", **control, **(environment or {})}
    server = Server(Command(sys.executable, arguments, variables), folder / "server.log")
    server.start()
    return server


def _wait_until_ready(server: Server) -> None:
    deadline = time.monotonic() + START_S
    while True:
        if server.exit_status is not None:
            raise server.failure("the server ended")
        if time.monotonic() > deadline:
            raise server.failure(f"the server was not ready within {START_S:g} s")
        try:
            with urllib.request.urlopen(f"{server.url}/ready", timeout=REPORT_S):
                return
        except OSError:
            time.sleep(0.2)

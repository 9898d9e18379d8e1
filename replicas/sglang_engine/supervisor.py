"""Keeps one SGLang server running: starts it, checks what it is, restarts it when it has crashed.

It knows processes and readiness, nothing of requests. A server is handed out only after it answers
and the plugin inside it has reported: SGLang goes on without a plugin that failed to load.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from replicas.engine import EngineStopped
from replicas.sglang_engine.client import Client
from replicas.sglang_engine.protocol import (
    REPORT_FILE,
    SGLANG_VERSION,
    PluginReport,
    ProtocolError,
    read_report,
)
from replicas.sglang_engine.server import Command, Server, ServerFailed, ended

_log = logging.getLogger(__name__)

LOG_FILE = "server.log"
LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Patience:
    """How long what may take. `start_s` covers reading the largest weights from a slow disk, and
    `stale_s` is 25 times the interval between two reports of the plugin.

    A server that ends more than `restarts` times within `window_s` is given up: the cause is not
    going to leave by itself, and another machine may not have it.
    """

    start_s: float = 1800.0
    plugin_s: float = 15.0
    stale_s: float = 5.0
    restart_wait_s: float = 10.0
    drain_s: float = 30.0
    restarts: int = 3
    window_s: float = 900.0
    first_retry_s: float = 1.0
    longest_retry_s: float = 30.0


class Supervisor:
    """See the module. `on_end` is called after a run has ended, before the next one starts."""

    def __init__(
        self, command: Command, directory: Path, on_end: Callable[[], None], patience: Patience
    ) -> None:
        self._command, self._directory = command, directory
        self._on_end, self._patience = on_end, patience
        self._server: Server | None = None
        self._client: Client | None = None
        self._changed = asyncio.Event()
        self._failure: str | None = None
        self._crashes: deque[float] = deque(maxlen=patience.restarts + 1)
        self._task: asyncio.Task[None] | None = None
        self.restarts = 0

    async def start(self) -> None:
        """Returns when the server can serve.

        Raises:
            ServerFailed: it did not come up, or the plugin is not live in it.
        """
        await self._open()
        self._task = asyncio.create_task(self._keep_running())

    async def stop(self) -> None:
        """Every stream ends with EngineStopped; the server is drained, so that it frees its
        device, and killed if that takes too long."""
        self._failure = "the engine was stopped"
        self._changed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self._close(self._patience.drain_s)

    @property
    def is_up(self) -> bool:
        is_alive = self._server is not None and self._server.exit_status is None
        return is_alive and self._client is not None and self._failure is None

    @property
    def pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    def check(self) -> None:
        """Raises EngineStopped when there is no server and none will come."""
        if self._failure is not None:
            raise EngineStopped(self._failure)
        if self._task is None:
            raise EngineStopped("the engine is not running")
        if self._task.done():
            raise EngineStopped("nobody watches the SGLang server any more; restart the replica")

    async def client(self) -> Client:
        """The way to the server. Requests wait a while for one that is restarting: answered with
        an error at once, this replica would look like the least loaded and draw all of them."""
        self.check()
        if not self.is_up:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), self._patience.restart_wait_s)
            except TimeoutError:
                raise EngineStopped(
                    "the SGLang server has crashed and is being restarted; retry, or ask another "
                    "replica"
                ) from None
            self.check()
        assert self._client is not None
        return self._client

    async def _keep_running(self) -> None:
        try:
            while True:
                assert self._server is not None
                what = ended(await self._server.wait())
                _log.error("%s", self._server.failure(f"the SGLang server {what}"))
                await self._close(drain_s=0)
                self._on_end()
                await self._restart(what)
        except ServerFailed as failure:
            self._fail(str(failure))
        except Exception as error:
            _log.exception("the SGLang server is not watched any more")
            self._fail(f"the SGLang server could not be restarted: {error!r}")

    async def _restart(self, what: str) -> None:
        retry_s = self._patience.first_retry_s
        while True:
            self._count_crash(what)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, self._patience.longest_retry_s)
            try:
                await self._open()
            except ServerFailed as failure:
                _log.error("%s", failure)
                what = "did not start again"
            else:
                self.restarts += 1
                _log.warning("the SGLang server runs again, as process %d", self.pid)
                return

    def _count_crash(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        self._crashes.append(now)
        limit, window_s = self._patience.restarts, self._patience.window_s
        if len(self._crashes) > limit and now - self._crashes[0] <= window_s:
            assert self._server is not None
            raise self._server.failure(
                f"the SGLang server {what}; it crashed {limit + 1} times within {window_s:g} s "
                "and is not restarted again"
            )

    def _fail(self, why: str) -> None:
        self._failure = f"{why}\nRestart the replica."
        self._changed.set()

    async def _open(self) -> None:
        (self._directory / REPORT_FILE).unlink(missing_ok=True)
        server = self._server = Server(self._command, self._directory / LOG_FILE)
        server.start()
        client = Client(server.url)
        try:
            await self._until_ready(server, client)
            await self._until_reported(server)
        except BaseException:
            await client.close()
            await server.kill()
            raise
        self._client = client
        self._changed.set()

    async def _close(self, drain_s: float) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        if self._server is not None:
            await self._server.stop(drain_s)

    async def _until_ready(self, server: Server, client: Client) -> None:
        deadline = asyncio.get_running_loop().time() + self._patience.start_s
        while not await client.is_ready():
            if server.exit_status is not None:
                raise server.failure(
                    f"the SGLang server {ended(server.exit_status)} before it was ready"
                )
            if asyncio.get_running_loop().time() > deadline:
                raise server.failure(
                    f"the SGLang server was not ready within {self._patience.start_s:g} s"
                )
            await asyncio.sleep(LOOK_EVERY_S)

    async def _until_reported(self, server: Server) -> None:
        """The plugin reports from inside the scheduler, so a report proves that it is live."""
        deadline = asyncio.get_running_loop().time() + self._patience.plugin_s
        while (report := self._report(server)) is None:
            if asyncio.get_running_loop().time() > deadline:
                raise server.failure(
                    "SGLang serves, but the plugin inside it has not reported within "
                    f"{self._patience.plugin_s:g} s: it is not installed in SGLang's environment, "
                    "is shut out by SGLANG_PLUGINS, or failed to load"
                )
            await asyncio.sleep(LOOK_EVERY_S)
        if report.sglang_version != SGLANG_VERSION:
            raise server.failure(
                f"SGLang {report.sglang_version} runs, and this plugin is for {SGLANG_VERSION}; "
                f"install sglang=={SGLANG_VERSION}"
            )

    def _report(self, server: Server) -> PluginReport | None:
        try:
            return read_report(self._directory)
        except ProtocolError as error:
            raise server.failure(f"the plugin's report cannot be understood: {error}") from error

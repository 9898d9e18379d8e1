"""SGLang's server as a child process: starting it, watching it, ending it.

It knows processes and nothing of HTTP or plans. Between this process and the server stands
`child.py`, first of a session of its own: a signal to the replica's group does not reach the
server, and when the replica dies the session is ended. The kernel takes the thread that started the
child for the replica, so `start` must be called on one that lives as long: the event loop's.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from replicas.engine import EngineError

CHILD = Path(__file__).with_name("child.py")
TAIL_LINES = 40
LOOK_EVERY_S = 0.1
KILL_PATIENCE_S = 10.0  # a killed process that holds a GPU needs a moment to be gone


class ServerFailed(EngineError):
    """The SGLang server did not start, or is not what it must be; carries the end of its log."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: `python -m module arguments`, with `environment` over the replica's own.

    `{port}` in an argument becomes the port chosen for this start.
    """

    python: str
    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = "sglang.launch_server"


class Server:
    """One run of the server. `log` is written to, and quoted when something goes wrong."""

    def __init__(self, command: Command, log: Path) -> None:
        self._command = command
        self.log = log
        self.port = free_port()
        self.arguments = [word.replace("{port}", str(self.port)) for word in command.arguments]
        self._process: subprocess.Popen[bytes] | None = None
        self._is_gone = False

    def start(self) -> None:
        """Starts the process; that it serves is for the caller to find out.

        Raises:
            ServerFailed: there is no such Python.
        """
        command = self._command
        with self.log.open("ab") as log:
            try:
                self._process = subprocess.Popen(
                    [command.python, str(CHILD), str(os.getpid()), command.module, *self.arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **command.environment},
                    start_new_session=True,
                )
            except OSError as error:
                raise ServerFailed(
                    f"SGLang's Python {command.python!r} cannot be run: {error.strerror}; set "
                    "sglang_python to the interpreter of the environment that SGLang is in"
                ) from error

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return None if self._process is None else self._process.poll()

    async def wait(self) -> int:
        """Until it ends; its exit status."""
        assert self._process is not None, "the server has not been started"
        while (status := self._process.poll()) is None:
            await asyncio.sleep(LOOK_EVERY_S)
        return status

    async def stop(self, drain_s: float) -> None:
        """Asks it to finish what it has, and kills it if that takes longer than `drain_s`.

        SIGTERM goes to the server alone: sent to its group it would end the scheduler first, and
        the server would take that for a crash.
        """
        if self._process is None:
            return
        if drain_s > 0 and self.exit_status is None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.wait(), drain_s)
        await self.kill()

    async def kill(self) -> None:
        """Ends the server and what it may have left behind: the session is its own."""
        if self._process is None or self._is_gone:
            return
        self._is_gone = True  # its number may be another's from now on
        self._signal(signal.SIGKILL)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.wait(), KILL_PATIENCE_S)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def failure(self, what: str) -> ServerFailed:
        """An error about this server that shows the end of its log."""
        return ServerFailed(f"{what}\n--- the end of {self.log} ---\n{self.tail()}")

    def tail(self, lines: int = TAIL_LINES) -> str:
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"(no log: {error})"
        return "\n".join(text.splitlines()[-lines:])

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)  # to a process that has ended it does nothing


def free_port() -> int:
    """A port that nothing listens on now; a start that loses the race for it is tried again."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def ended(status: int) -> str:
    """An exit status in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"

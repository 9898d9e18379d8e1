"""A Prometheus server for one run: a port of its own, a folder of its own, and it always ends."""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

READY_S = 30.0
_DIE_WITH_PARENT = 1  # prctl's PR_SET_PDEATHSIG


class PrometheusError(Exception):
    """Prometheus or promtool did not do what was asked; the message is theirs."""


def is_installed() -> bool:
    return all(map(shutil.which, ("prometheus", "promtool")))


class Server:
    """Answers queries. `stop` and `start` it to make it see blocks that were written meanwhile; it
    comes back at the same address unless somebody else has taken that."""

    def __init__(self, folder: Path, config: str) -> None:
        self.data = folder / "data"
        self._log = folder / "prometheus.log"
        self._config = folder / "prometheus.yml"
        self.configure(config)
        self._process: subprocess.Popen[bytes] | None = None
        self._client = httpx.Client(timeout=60, trust_env=False)
        self._port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        for _ in range(3):  # somebody else may take the port between looking and listening
            if self._try_start():
                return
            self._port = free_port()
        raise PrometheusError(self._log.read_text()[-2000:])

    def configure(self, config: str) -> None:
        """Takes effect when it starts."""
        self._config.write_text(config, encoding="utf-8")

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def close(self) -> None:
        self.stop()
        self._client.close()

    def restart(self) -> None:
        self.stop()
        self.start()

    def api(self, path: str, **params: Any) -> Any:
        """`data` of an answer.

        Raises:
            ValueError: Prometheus' own words on what is wrong with the query.
        """
        url = f"{self.url}/api/v1/{path}"
        answer = self._client.get(url, params=params).json()
        if answer["status"] != "success":
            raise ValueError(answer["error"])
        return answer["data"]

    def _try_start(self) -> bool:
        arguments = [
            "prometheus",
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self.data}",
            "--storage.tsdb.retention.time=100y",  # the trace lies at a fixed date
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=warn",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                arguments, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(httpx.TransportError):
                if self._client.get(f"{self.url}/-/ready").status_code == 200:
                    # Whoever answered must be our own child, not another one on its port.
                    return self._process.poll() is None
            time.sleep(0.1)
        self.stop()
        return False


@contextmanager
def serving(folder: Path, config: str = "{}") -> Iterator[Server]:
    """A server with this configuration, which is YAML and lies in `folder`."""
    server = Server(folder, config)
    try:
        server.start()
        yield server
    finally:
        server.close()


def promtool(*arguments: str | Path) -> str:
    """What promtool prints.

    Raises:
        PrometheusError: it failed.
    """
    command = ["promtool", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise PrometheusError(f"{' '.join(command[:3])}: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def _die_with_parent() -> None:
    # So that not even a killed parent leaves a server behind, which a later run would ask.
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port

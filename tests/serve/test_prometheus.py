"""A real Prometheus server between replicas and controller. Run with: pytest tests/serve -s"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.serve.cluster import ADMIN, PROMPTS, App, free_port, until, wait_for

BINARY = shutil.which("prometheus")
CONFIG = """
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: trimode
    http_sd_configs:
      - url: {url}/control/v1/targets
        refresh_interval: 2s
        authorization: {{type: Bearer, credentials: {key}}}
"""
# `type` is Bearer by default, but not in http_sd_configs of Prometheus 2.42.

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no prometheus binary on PATH; Debian: apt-get install prometheus"
)


class Prometheus:
    """A server on a loopback port of its own, which can be stopped and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._folder, self._port = folder, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, application: str) -> None:
        config = self._folder / "prometheus.yml"
        config.write_text(CONFIG.format(url=application, key=ADMIN))
        arguments = [
            str(BINARY),
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def query(self, promql: str) -> list[dict[str, object]]:
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": promql}).json()
        return list(answer["data"]["result"])


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Prometheus]:
    server = Prometheus(tmp_path, free_port())
    yield server
    server.stop()


def test_promql_drives_the_plan_and_its_loss_holds_it(
    prometheus: Prometheus, deploy: Callable[..., App]
) -> None:
    app = deploy(
        "prom",
        num_replicas=1,
        prometheus_url=prometheus.url,
        # The policy applies the bands itself, so that only PromQL can move the plan.
        policy="threshold",
        policy_options={"local": False},
        bands="3=self_speculation/16,ar",
        schedule_dwell_s=0.5,
        hold_s=60,
    )
    (name,) = app.replicas()

    def decision() -> tuple[str, str]:
        last = app.replicas()[name]["decision"]
        return last["plan"], last["reason"]

    assert decision()[1] == "hold_missing"  # no server yet, and missing is not zero
    prometheus.start(app.root)
    wait_for(lambda: decision()[1] == "hold_idle")
    assert len(wait_for(lambda: prometheus.query("trimode_controller_epoch"))) == 1

    async def scenario() -> None:
        alone = await app.ask(PROMPTS[0])
        assert set(alone.plans) == {"self_speculation/16"}
        async with app.load(8) as outcomes:
            began = time.monotonic()
            await until(lambda: app.metrics(name)[_ar(name)] == 1)
            to_ar_s = time.monotonic() - began
            await until(lambda: decision() == ("ar", "hold_steady"))
            prometheus.stop()
            stopped = time.monotonic()
            await until(lambda: decision() == ("ar", "hold_stale"))
            to_hold_s = time.monotonic() - stopped
            assert app.metrics(name)[_ar(name)] == 1
            prometheus.start(app.root)
            restarted = time.monotonic()
            await until(lambda: decision() == ("ar", "hold_steady"))
            back_s = time.monotonic() - restarted
        assert [o.error for o in outcomes if o.error] == []
        began = time.monotonic()
        await until(lambda: decision()[0] == "self_speculation/16")
        print(
            f"\nload to plan by PromQL {to_ar_s:.1f} s, Prometheus stopped to hold_stale "
            f"{to_hold_s:.1f} s, restarted to fresh signals {back_s:.1f} s, load gone to plan "
            f"{time.monotonic() - began:.1f} s; {len(outcomes)} requests, 0 failed"
        )

    asyncio.run(scenario())


def _ar(replica: str) -> str:
    return f'trimode_plan_active{{mode="ar",plan="ar",replica="{replica}"}}'

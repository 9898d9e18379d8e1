"""A bad morning of an application, watched by a real Prometheus with the real rules, ten times as
fast: everything that goes wrong is made to go wrong, and is mended again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dashboards.build import RULES
from dashboards.scaled import scaled
from dashboards.throwaway import Server, serving
from policies.vocabulary import all_plans
from tests.serve.cluster import ADMIN, App, kill, processes, until, wait_for

NAME = "boards"
FACTOR = 10
TTFT_TARGET_S = 0.2
"""Kept by an idle replica, missed by one that has three times as many requests as places."""
OPTIONS: dict[str, Any] = {
    "num_replicas": 2,
    "max_sequences": 4,
    "quality": "any",
    "policy": "tests.serve.mistaken:Mistaken",
    "profile": "none",
    "ttft_target_s": TTFT_TARGET_S,
    "tpot_target_s": 5.0,
}
CALM, BUSY = 3, 28
"""Clients."""
SCRAPE = """
global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: trimode
    http_sd_configs:
      - url: {application}/control/v1/targets
        refresh_interval: 1s
        authorization: {{type: Bearer, credentials: {key}}}
"""


def config(folder: Path, application: str, *, rules: bool) -> str:
    """A Prometheus configuration that scrapes an application every second."""
    files = []
    for path in RULES if rules else ():
        files.append(folder / path.name)
        files[-1].write_text(scaled(path.read_text("utf-8"), FACTOR), "utf-8")
    names = ", ".join(map(str, files))
    return SCRAPE.format(rules=names, application=application, key=ADMIN)


@dataclass
class Incident:
    """What was done, when (Unix seconds), and the server that watched."""

    watcher: Server
    since: float
    pins: list[tuple[float, float]] = field(default_factory=list)
    """When each was sent, and when the plan was seen in use."""
    switches: float = 0.0
    """How many the engines counted meanwhile."""
    trouble_at: float = 0.0
    calm_again_at: float = 0.0
    """All is mended, and there is load."""

    def firing(self) -> set[str]:
        alerts = self.watcher.api("alerts")["alerts"]
        return {a["labels"]["alertname"] for a in alerts if a["state"] == "firing"}

    def fired(self, start: float, end: float) -> dict[str, tuple[float, float]]:
        """Alerts that fired, by name: when first and when last."""
        window = {"start": start, "end": end, "step": 1}
        query = 'ALERTS{alertstate="firing"}'
        spans: dict[str, tuple[float, float]] = {}
        for row in self.watcher.api("query_range", query=query, **window)["result"]:
            first, last = row["values"][0][0], row["values"][-1][0]
            known = spans.get(row["metric"]["alertname"], (first, last))
            spans[row["metric"]["alertname"]] = min(first, known[0]), max(last, known[1])
        return spans


class Troublemaker:
    """Takes an application through the morning.

    Args:
        app: two replicas under `Mistaken`.
        factor: the file that says how wrong its predictions are.
        feed: the server that the controller reads signals from.
        incident: where what was done is written.
    """

    def __init__(self, app: App, factor: Path, feed: Server, incident: Incident) -> None:
        self._app, self._factor, self._feed, self._seen = app, factor, feed, incident
        self._replica = min(app.replicas())

    async def run(self) -> None:
        seen = self._seen
        async with self._app.load(CALM):
            await asyncio.sleep(4)
            await self._pin_every_plan()
        seen.trouble_at = time.time()
        self._factor.write_text("3")
        async with self._app.load(BUSY):
            await self._flap()
            await self._fires("TrimodeSLOFastBurn", "TrimodePredictionDrift")
        self._factor.write_text("1")
        async with self._app.load(CALM):
            await self._clears(
                "TrimodeSLOFastBurn", "TrimodePredictionDrift", "TrimodeModeFlapping"
            )
            seen.calm_again_at = time.time()
            await asyncio.to_thread(self._feed.stop)
            await self._fires("TrimodeSignalsStale")
            await asyncio.to_thread(self._feed.start)
            await self._clears("TrimodeSignalsStale")
            await self._keep_killing_the_controller()
            await self._clears("TrimodeControllerGone")

    async def _pin_every_plan(self) -> None:
        """Every plan once, so that no direction is taken twice and every panel has something."""
        before = self._switches()
        for plan in map(str, all_plans()):
            if plan == self._plan_in_use():
                continue
            sent = time.time()
            await asyncio.to_thread(self._app.pin, plan, self._replica)
            await until(lambda plan=plan: self._plan_in_use() == plan)
            self._seen.pins.append((sent, time.time()))
            await asyncio.sleep(1.2)  # a scrape
        self._seen.switches = self._switches() - before
        await asyncio.to_thread(self._app.unpin, self._replica)

    async def _flap(self) -> None:
        plans = ("ar", "self_speculation/8")
        flips = 0
        ends = time.monotonic() + 60
        while "TrimodeModeFlapping" not in self._seen.firing():
            assert time.monotonic() < ends, f"{flips} flips, and no alert"
            await asyncio.to_thread(self._app.pin, plans[flips % 2], self._replica)
            flips += 1
            await asyncio.sleep(0.2)
        await asyncio.to_thread(self._app.unpin, self._replica)

    async def _keep_killing_the_controller(self) -> None:
        """Serve starts it again within seconds, sooner than anybody needs to be woken."""
        ends = time.monotonic() + 60
        while "TrimodeControllerGone" not in self._seen.firing():
            assert time.monotonic() < ends, "the controller was killed, and no alert"
            for pid in processes(f"ray::ServeReplica:{NAME}:controller"):
                kill(pid)
            await asyncio.sleep(0.5)

    async def _fires(self, *alerts: str) -> None:
        await until(lambda: self._seen.firing() >= set(alerts), 120)

    async def _clears(self, *alerts: str) -> None:
        await until(lambda: not self._seen.firing() & set(alerts), 90)

    def _switches(self) -> float:
        return sum(
            self._app.metrics(name)[f'trimode_switches_total{{replica="{name}"}}']
            for name in self._app.replicas()
        )

    def _plan_in_use(self) -> str:
        page = self._app.metrics(self._replica)
        active = [name for name, value in page.items() if "trimode_plan_active" in name and value]
        return active[0].partition('plan="')[2].partition('"')[0]


@contextmanager
def lived_through(deploy: Callable[..., App], folder: Path) -> Iterator[Incident]:
    """The morning, over; the server that watched still answers."""
    from ray import serve

    factor, since = folder / "factor", time.time()
    factor.write_text("1")
    feeding, watching = folder / "feed", folder / "watch"
    feeding.mkdir()
    watching.mkdir()
    feed = Server(feeding, "{}")  # its address is needed before it has anything to scrape
    try:
        app = deploy(
            NAME, policy_options={"factor_file": str(factor)}, prometheus_url=feed.url, **OPTIONS
        )
        feed.configure(config(feeding, app.root, rules=False))
        feed.start()
        with serving(watching, config(watching, app.root, rules=True)) as watcher:
            wait_for(lambda: watcher.api("query", query="trimode_plan_active == 1")["result"])
            incident = Incident(watcher, since)
            asyncio.run(Troublemaker(app, factor, feed, incident).run())
            yield incident
    finally:
        feed.close()
        serve.delete(NAME)

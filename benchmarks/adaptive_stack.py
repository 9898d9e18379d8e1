"""The served application as its operator sees it: pins, decisions, and the replica's metrics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from policies.vocabulary import Band, Plan

READ = (
    "trimode_decoding_sequences",
    "trimode_generated_tokens_total",
    "trimode_steps_total",
    "trimode_switches_total",
    "trimode_plan_active",
    "trimode_plan_steps_total",
    "trimode_plan_seconds_total",
    "trimode_plan_switched_timestamp_seconds",
    "trimode_probes_total",
    "trimode_governor_predicted_tokens_per_second",
    "trimode_governor_distrusts_total",
    "trimode_schedule_version",
    "trimode_schedule_age_seconds",
)
"""A page has some 700 lines, and parsing costs time that the replica's clients need."""
POLL_S = 0.05
PIN_S = 3600.0


@dataclass(frozen=True, slots=True)
class Page:
    """A replica's metrics at one moment (Unix time, half way through the request)."""

    at: float
    single: Mapping[str, float]
    by_plan: Mapping[str, Mapping[str, float]]
    switched_at: Mapping[tuple[str, str, str], float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, at: float) -> Self:
        lines = [line for line in text.splitlines() if line.partition("{")[0] in READ]
        single: dict[str, float] = {}
        by_plan: dict[str, dict[str, float]] = {}
        switched_at: dict[tuple[str, str, str], float] = {}
        for family in text_string_to_metric_families("\n".join([*lines, ""])):
            for sample in family.samples:
                name, labels = sample.name.removeprefix("trimode_"), sample.labels
                if "from_plan" in labels:
                    change = labels["from_plan"], labels["to_plan"], labels["reason"]
                    switched_at[change] = sample.value
                elif "plan" in labels:
                    by_plan.setdefault(name, {})[labels["plan"]] = sample.value
                else:
                    single[name] = sample.value
        return cls(at, single, by_plan, switched_at)

    @property
    def tokens(self) -> float:
        return self.single["generated_tokens_total"]

    @property
    def switches(self) -> float:
        return self.single["switches_total"]

    @property
    def steps(self) -> float:
        return self.single["steps_total"]

    @property
    def plan(self) -> str:
        active = self.by_plan["plan_active"]
        return max(active, key=active.__getitem__)

    @property
    def received_at(self) -> float:
        """When the schedule was last received, in Unix time."""
        return self.at - self.single["schedule_age_seconds"]

    def latest_switch(self) -> tuple[float, str]:
        """When the plan last changed, and to what; (0, "") if it never did."""
        if not self.switched_at:
            return 0.0, ""
        change = max(self.switched_at, key=self.switched_at.__getitem__)
        return self.switched_at[change], change[1]

    def growth(self, before: Page, name: str) -> dict[str, float]:
        """By plan; those that did not grow are left out."""
        now, then = self.by_plan.get(name, {}), before.by_plan.get(name, {})
        grown = {plan: value - then.get(plan, 0.0) for plan, value in now.items()}
        return {plan: value for plan, value in grown.items() if value > 0}


@dataclass(frozen=True, slots=True)
class Following:
    """A replica's schedule as its operator is shown it. `profile` is empty without a worth."""

    bands: tuple[Band, ...]
    dwell_s: float
    profile: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        bands = tuple(Band(band["up_to"], Plan.parse(band["plan"])) for band in row["bands"])
        worth = row["worth"]
        return cls(bands, row["dwell_s"], "" if worth is None else worth["profile"])

    def __str__(self) -> str:
        bands = ", ".join(
            f"{'above' if band.up_to is None else f'to {band.up_to}'} {band.plan}"
            for band in self.bands
        )
        return f"{bands} ({self.profile or 'no profile: bands decide, not the worth of plans'})"


class Stack:
    """One application with one replica. Use as an asynchronous context manager."""

    def __init__(self, port: int, name: str, admin_key: str) -> None:
        self.port, self.prefix = port, f"/{name}"
        headers = {"authorization": f"Bearer {admin_key}"}
        root = f"http://127.0.0.1:{port}{self.prefix}/control/v1"
        self._http = httpx.AsyncClient(
            base_url=root, headers=headers, timeout=30.0, trust_env=False
        )
        self._metrics_url = ""

    async def __aenter__(self) -> Self:
        self._metrics_url = (await self._ready())["metrics_url"]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def page(self) -> Page:
        sent = time.time()
        response = await self._http.get(self._metrics_url)
        return Page.parse(response.raise_for_status().text, (sent + time.time()) / 2)

    async def replica(self) -> dict[str, Any]:
        rows: list[dict[str, Any]] = await self._get("/replicas")
        return rows[0]

    async def following(self) -> Following:
        """What the replica follows."""
        return Following.of((await self.replica())["schedule"])

    async def allowed(self) -> list[Plan]:
        """Plans that the configuration allows: AR first, then by block length."""
        plans = [Plan.parse(text) for text in (await self._get("/policy"))["allowed"]]
        return sorted(plans, key=lambda plan: (plan.mode.value, plan.block_length))

    async def decisions(self) -> list[dict[str, Any]]:
        """Newest first."""
        found: list[dict[str, Any]] = await self._get("/decisions")
        return found

    async def follow(self, plan: Plan | None) -> None:
        """Pins the plan, or gives the replica back to its policy; returns once it has arrived."""
        if plan is None:
            await self._post("/unpin", {})
        else:
            await self._post("/pin", {"plan": str(plan), "ttl_s": PIN_S})
        while not (await self.replica())["is_current"]:
            await asyncio.sleep(POLL_S)

    async def tick_totals(self) -> tuple[float, float]:
        """Seconds spent in rounds of the control loop, and how many there were."""
        groups = await self._get("/targets")
        url = next(
            f"http://{group['targets'][0]}/metrics"
            for group in groups
            if group["labels"]["component"] == "controller"
        )
        text = (await self._http.get(url)).raise_for_status().text
        values = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if family.name == "trimode_tick_seconds" and "le" not in sample.labels
        }
        return values["trimode_tick_seconds_sum"], values["trimode_tick_seconds_count"]

    async def _ready(self) -> dict[str, Any]:
        while True:
            rows = await self._get("/replicas")
            if rows and rows[0]["is_current"]:
                return dict(rows[0])
            await asyncio.sleep(POLL_S)

    async def _get(self, path: str) -> Any:
        return (await self._http.get(path)).raise_for_status().json()

    async def _post(self, path: str, body: Any) -> None:
        (await self._http.post(path, json=body)).raise_for_status()

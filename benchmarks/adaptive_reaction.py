"""How soon another load brings another plan.

Three measurements. *Engine*: steps between the pick that first sees the whole new batch and the
pick of the new plan, when 1 sequence becomes 64 or 64 become 1, on an engine of its own with the
same profile and policy; at 32 mixed requests the best plan of 1 is within a few percent of the best
one on a CPU, so there would be nothing to react to. *Local*: clients
appear or leave at once, and with them hard prompts: on a machine where one block length is best at
any number of clients, nothing else asks for another plan. Unix time from then to the replica's
first change of plan; HTTP, queueing, prefill, requests that still run and learning are in it.
*Controller*: the same where the controller chooses (`local=False`, metrics read over two seconds),
split into

    scrape    load changed -> the decision's time (waiting for the round, and reading the metrics)
    decide    a whole round of the control loop, mean; part of it lies before the decision's time
    deliver   decision -> the replica has the schedule
    apply     the replica has it -> its plan has changed
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from benchmarks.adaptive_load import MAX_TOKENS, Load
from benchmarks.adaptive_scenarios import EASY, HARD, MOST
from benchmarks.adaptive_stack import Page, Stack
from benchmarks.demo_engine import adaptive_schedule, demo_engine
from benchmarks.workload import held_out_mix
from orchestrator.app_config import AppConfig
from policies.vocabulary import Plan
from replicas.torch_engine.engine import TorchEngine

WATCH_S = 0.05
LOCAL_WAIT_S, CONTROLLER_WAIT_S = 3.0, 9.0
CALM_S = (
    1.5,
    2.5,
)  # a load stays so long before it changes; drawn, or it would beat with the round
SCHEDULE_DWELL_S = 2.0  # of the guard, which must be over before the next change
ENGINE_MOST = 64  # sequences on an engine of its own
WARM_STEPS, WATCHED_STEPS = 40, 60


@dataclass(slots=True)
class Reaction:
    """Seconds (engine: steps) of every trial that changed the plan, and how many did not."""

    unit: str
    total: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    unchanged: int = 0
    why_not: str = ""
    facts: dict[str, float] = field(default_factory=dict)

    def add(self, total: float, **parts: float) -> None:
        self.total.append(total)
        for name, value in parts.items():
            self.parts.setdefault(name, []).append(value)

    def to_dict(self) -> dict[str, Any]:
        return {
            "unit": self.unit,
            "total": summary(self.total),
            "parts": {name: summary(values) for name, values in self.parts.items()},
            "unchanged": self.unchanged,
            "why_not": self.why_not,
            "facts": self.facts,
        }


def summary(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "p50": statistics.median(values),
        "p95": percentile(values, 0.95),
        "low": min(values),
        "high": max(values),
        "n": len(values),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


# -- on an engine of its own ----------------------------------------------------------------------


def on_engine(config: AppConfig, trials: int) -> Reaction:
    """Steps to react when 1 sequence becomes 64, and when 64 become 1, prefill not counted."""
    reaction = Reaction("steps")
    engine, checkpoint = demo_engine(ENGINE_MOST)
    schedule = adaptive_schedule(engine, config)
    if schedule is None:
        reaction.why_not = "there is no step-time profile"
        return reaction
    engine.set_schedule(replace(schedule, version=1))
    workload = held_out_mix(checkpoint, 2 * ENGINE_MOST, max_tokens=MAX_TOKENS)
    refilled = _Refilled(engine, workload.request)
    for _ in range(trials):
        for level in (1, ENGINE_MOST):
            refilled.reach(level)
            for _ in range(WARM_STEPS):
                refilled.step()
            steps = refilled.steps_to_change(ENGINE_MOST + 1 - level)
            if steps is None:
                reaction.unchanged += 1
            else:
                reaction.add(steps)
    return reaction


class _Refilled:
    """Keeps a number of requests in an engine."""

    def __init__(self, engine: TorchEngine, request: Any) -> None:
        self._engine, self._request = engine, request
        self._running: list[str] = []
        self._next = 0

    def reach(self, level: int) -> None:
        while len(self._running) > level:
            self._engine.cancel(self._running.pop())
        while len(self._running) < level:
            request = self._request(self._next)
            self._next += 1
            self._engine.submit(request)
            self._running.append(request.request_id)

    def step(self) -> None:
        level = len(self._running)
        ended = [d.request_id for d in self._engine.step() if d.finish_reason is not None]
        self._running = [name for name in self._running if name not in ended]
        self.reach(level)

    def steps_to_change(self, level: int) -> int | None:
        """Picks at about `level` sequences before one takes another plan than there is now: 0 if
        the first does. None if none does."""
        before, seen = self._engine.governor.plan, 0
        self.reach(level)
        for _ in range(WATCHED_STEPS):
            report = self._engine.report()
            is_there = report.decoding >= 0.75 * level if level > 1 else report.decoding <= 1
            self.step()
            if self._engine.governor.plan != before:
                return seen
            seen += is_there
        return None


# -- on the stack ---------------------------------------------------------------------------------


async def local(stack: Stack, load: Load, trials: int) -> Reaction:
    """The replica's governor follows the load."""
    reaction, noise = Reaction("s"), Random(1)
    await stack.follow(None)  # the last window may have been a pinned one
    for level in [1, MOST] * trials:
        before = await _calm(stack, load, MOST + 1 - level, noise)
        changed_at = time.time()
        load.set(level, _traffic(level))
        page = await _switched(stack, changed_at, LOCAL_WAIT_S)
        if page is None:
            reaction.unchanged += 1
            continue
        reaction.add(
            page.latest_switch()[0] - changed_at,
            steps_until_seen=page.steps - before.steps,
            step_s=_step_s(before, page),
        )
    await load.idle()
    return reaction


async def through_controller(stack: Stack, load: Load, trials: int) -> Reaction:
    """The controller scrapes, decides and delivers."""
    reaction, noise = Reaction("s"), Random(2)
    load.set(MOST, _traffic(MOST))
    await asyncio.sleep(CONTROLLER_WAIT_S)  # from idle: not to be taken for a reaction
    began = await stack.tick_totals()
    for level in [1, MOST] * trials:
        before = await _calm(stack, load, MOST + 1 - level, noise)
        await asyncio.sleep(SCHEDULE_DWELL_S)
        changed_at = time.time()
        load.set(level, _traffic(level))
        page = await _switched(stack, changed_at, CONTROLLER_WAIT_S, before)
        decided_at = await _decided_at(stack, page, changed_at)
        if page is None or decided_at is None:
            reaction.unchanged += 1
            continue
        switched_at = page.latest_switch()[0]
        reaction.add(
            switched_at - changed_at,
            scrape=decided_at - changed_at,
            deliver=page.received_at - decided_at,
            apply=switched_at - page.received_at,
        )
    await load.idle()
    ended = await stack.tick_totals()
    rounds = max(1.0, ended[1] - began[1])
    reaction.facts["decide_mean_s"] = (ended[0] - began[0]) / rounds
    return reaction


def _traffic(level: int) -> str:
    return HARD if level == MOST else EASY


async def _calm(stack: Stack, load: Load, level: int, noise: Random) -> Page:
    load.set(level, _traffic(level))
    await asyncio.sleep(noise.uniform(*CALM_S))
    return await stack.page()


async def _switched(
    stack: Stack, since: float, wait_s: float, before: Page | None = None
) -> Page | None:
    """The first page that tells of a change of plan; with `before`, by a newer schedule."""
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        page = await stack.page()
        is_newer = before is None or _version(page) > _version(before)
        if is_newer and page.latest_switch()[0] > since:
            return page
        await asyncio.sleep(WATCH_S)
    return None


def _version(page: Page) -> float:
    return page.single["schedule_version"]


def _step_s(before: Page, after: Page) -> float:
    """Mean time of a decoding step in between."""
    steps = sum(after.growth(before, "plan_steps_total").values())
    return sum(after.growth(before, "plan_seconds_total").values()) / max(1.0, steps)


async def _decided_at(stack: Stack, page: Page | None, since: float) -> float | None:
    """When the controller first decided on the plan that the replica has changed to."""
    if page is None:
        return None
    plan = page.latest_switch()[1]
    rows = await stack.decisions()
    times = [row["time_s"] for row in rows if row["time_s"] > since and _sole_plan(row) == plan]
    return min(times, default=None)


def _sole_plan(decision: Mapping[str, Any]) -> str | None:
    """What the controller chose, where it left the replica no choice."""
    schedule = decision["schedule"]
    plans = {str(Plan.parse(band["plan"])) for band in schedule["bands"]}
    return plans.pop() if len(plans) == 1 and schedule["worth"] is None else None

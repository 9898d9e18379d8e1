"""Takes the windows of `benchmarks.adaptive`: who is pinned when, under which load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.adaptive_analysis import ADAPTIVE, Measured, Window, arms_in_turn
from benchmarks.adaptive_load import Load
from benchmarks.adaptive_scenarios import (
    LEVELS,
    MIXED,
    MOST,
    Scenario,
    crossover,
    fixed,
    moving,
    usual_crossover,
)
from benchmarks.adaptive_stack import Page, Stack
from policies.vocabulary import Plan

SETTLE_S = 0.5
WARM_S = 3.0
SHOWN_S, SAMPLE_S = 6.0, 0.2  # of a timeline


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds of a window at a fixed and at a moving load, rounds of moving loads, rounds of fixed
    ones to each (their windows are short, and they are held to the narrower bar), and trials of
    each reaction."""

    fixed_s: float
    moving_s: float
    rounds: int
    fixed_to_moving: int
    trials: int
    levels: tuple[int, ...] = LEVELS

    @classmethod
    def of(cls, is_quick: bool) -> Settings:
        if is_quick:
            return cls(0.8, 1.8, 1, 1, 1, levels=(1, 8, 32))
        return cls(2.0, 4.5, 4, 3, 6)


@dataclass(slots=True)
class Bench:
    """A replica that is pinned, the one that is not (by default the same), and load on each."""

    stacks: dict[bool, Stack]
    loads: dict[bool, Load]
    measured: Measured
    log: Callable[[str], None]

    async def scenario(self, scenario: Scenario, arms: Sequence[str], number: int) -> None:
        """One round of all arms."""
        for arm in arms_in_turn(arms, number):
            self.measured.windows.append(await self._window(scenario, arm, number))
        await self.loads[False].idle()
        await self.loads[True].idle()

    async def _window(self, scenario: Scenario, arm: str, number: int) -> Window:
        is_adaptive = arm == ADAPTIVE
        stack, load = self.stacks[is_adaptive], self.loads[is_adaptive]
        if load is not self.loads[not is_adaptive]:
            await self.loads[not is_adaptive].idle()
        load.set(*scenario.at(0.0))
        await stack.follow(None if is_adaptive else Plan.parse(arm))
        await asyncio.sleep(SETTLE_S)
        load.restart()
        before = await stack.page()
        await load.follow(scenario)
        return _window_of(scenario, arm, number, before, await stack.page())


def _window_of(scenario: Scenario, arm: str, number: int, before: Page, after: Page) -> Window:
    def grown(name: str) -> float:
        return after.single[name] - before.single[name]

    return Window(
        scenario=scenario.name,
        arm=arm,
        round=number,
        seconds=after.at - before.at,
        tokens=after.tokens - before.tokens,
        switches=after.switches - before.switches,
        probes=sum(after.growth(before, "probes_total").values()),
        distrusts=grown("governor_distrusts_total"),
        plan_seconds=after.growth(before, "plan_seconds_total"),
        predicted=after.by_plan.get("governor_predicted_tokens_per_second", {}),
        moves=scenario.moves,
    )


async def warm_up(bench: Bench) -> None:
    """A little of everything for whoever adapts, so that no round is the first."""
    stack, load = bench.stacks[True], bench.loads[True]
    await stack.follow(None)
    for level in (1, MOST):
        load.set(level, MIXED)
        await asyncio.sleep(WARM_S)
    await load.idle()
    following = await stack.following()
    found = crossover(following.bands)
    bench.measured.schedule = str(following)
    bench.measured.dwell_s = following.dwell_s
    bench.measured.crossover_is_known = found is not None
    bench.measured.crossover = found or usual_crossover()
    bench.log(f"schedule: {bench.measured.schedule}")


async def run(bench: Bench, settings: Settings) -> None:
    arms = [*(str(plan) for plan in await bench.stacks[False].allowed()), ADAPTIVE]
    moved = moving(settings.moving_s, bench.measured.crossover)
    still = [fixed(level, settings.fixed_s) for level in settings.levels]
    more = settings.fixed_to_moving
    for number in range(settings.rounds):
        began = time.monotonic()
        for fixed_number in range(number * more, (number + 1) * more):
            for scenario in still:
                await bench.scenario(scenario, arms, fixed_number)
        for scenario in moved:
            await bench.scenario(scenario, arms, number)
        bench.log(f"round {number + 1} done in {time.monotonic() - began:.0f} s")


async def timelines(bench: Bench, settings: Settings) -> None:
    """Every moving scenario once more under adaptive, sampled, and so not counted."""
    stack, load = bench.stacks[True], bench.loads[True]
    await stack.follow(None)
    for scenario in moving(max(SHOWN_S, settings.moving_s), bench.measured.crossover):
        load.set(*scenario.at(0.0))
        await asyncio.sleep(SETTLE_S)
        load.restart()
        following = asyncio.create_task(load.follow(scenario))
        first = before = await stack.page()
        rows = []
        while not following.done():
            await asyncio.sleep(SAMPLE_S)
            after = await stack.page()
            rows.append(_sample(first, before, after, load))
            before = after
        await following
        bench.measured.timelines[scenario.name] = rows
        await load.idle()


def _sample(first: Page, before: Page, after: Page, load: Load) -> dict[str, Any]:
    return {
        "at_s": after.at - first.at,
        "clients": load.concurrency,
        "traffic": load.traffic,
        "decoding": after.single["decoding_sequences"],
        "plan": after.plan,
        "tokens_per_s": (after.tokens - before.tokens) / (after.at - before.at),
    }

"""Adaptive against every fixed plan on the engine alone, and what a clairvoyant would gain.

    python -m benchmarks.loads [--quick] [--json FILE]

Without Serve, HTTP and clients on the same cores there is less noise than in `benchmarks.adaptive`,
and what is left is the governor's. Two parts, in both of which all arms take turns, in another
order each round, over the same requests:

    steady   every number of clients with every kind of prompts, a window each
    moving   the same loads one after the other, 1.5 s each, in an order that was drawn

The governor sees the steps of pinned arms, too, as on any replica that somebody pins: in the steady
part it has mostly met a load before its turn comes, in the moving one it meets each anew.

A clairvoyant would be in the best fixed plan of every load: no policy can gain more on these loads
but by luck.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import torch
from rich.table import Table

from benchmarks.adaptive_analysis import ADAPTIVE, arms_in_turn
from benchmarks.adaptive_load import MAX_TOKENS, pools
from benchmarks.adaptive_scenarios import LEVELS, MOST, Phase, everything
from benchmarks.common import (
    Bar,
    add_output_arguments,
    make_console,
    print_bars,
    print_provenance,
    provenance,
    write_json,
)
from benchmarks.demo_engine import adaptive_schedule, demo_engine
from benchmarks.workload import chat_tokens
from orchestrator.app_config import AppConfig
from policies.vocabulary import Plan, Schedule
from replicas.engine import Request, SamplingParams
from replicas.torch_engine.checkpoint import Checkpoint
from replicas.torch_engine.engine import TorchEngine

KINDS = ("mixed", "easy", "hard")
STEADY_BAR, MIXED_BAR = 0.98, 1.10

LoadKey = tuple[int, str]
"""Number of clients and kind of prompts."""
Rates = dict[LoadKey, dict[str, list[float]]]
"""Tokens/s of every window, by load and arm."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds of a window, of a phase of the moving loads, and of settling before a window."""

    window_s: float = 1.5
    phase_s: float = 1.5
    settle_s: float = 0.4
    rounds: int = 3
    levels: tuple[int, ...] = LEVELS


@dataclass(slots=True)
class Clients:
    """As many as `level` requests in an engine, each replaced when it ends. Those that run when the
    level falls are left to end."""

    engine: TorchEngine
    pools: Mapping[str, Sequence[tuple[tuple[int, ...], SamplingParams]]]
    level: int = 0
    kind: str = KINDS[0]
    _running: int = 0
    _next: int = 0
    _named: int = 0

    def set(self, level: int, kind: str) -> None:
        self.level, self.kind = level, kind

    def restart(self) -> None:
        """The next requests are the first ones of their pools, so that arms are asked alike."""
        self._next = 0

    def run(self, seconds: float) -> float:
        """Tokens/s over so long."""
        began, tokens = time.perf_counter(), 0
        while (took := time.perf_counter() - began) < seconds:
            tokens += self._step()
        return tokens / took

    def drain(self) -> None:
        self.level = 0
        while self._running:
            self._step()

    def _step(self) -> int:
        while self._running < self.level:
            pool = self.pools[self.kind]
            prompt, sampling = pool[self._next % len(pool)]
            self.engine.submit(Request(str(self._named), prompt, sampling))
            self._next, self._named, self._running = (
                self._next + 1,
                self._named + 1,
                self._running + 1,
            )
        deltas = self.engine.step()
        self._running -= sum(delta.finish_reason is not None for delta in deltas)
        return sum(len(delta.token_ids) for delta in deltas)


@dataclass(slots=True)
class Bench:
    """An engine that is pinned for fixed arms and left to its governor for the adaptive one."""

    engine: TorchEngine
    clients: Clients
    adaptive: Schedule
    settings: Settings
    log: Callable[[str], None]
    steady: Rates = field(default_factory=dict)
    moving: Rates = field(default_factory=dict)
    _version: int = 1

    @property
    def arms(self) -> list[str]:
        assert self.adaptive.worth is not None
        return [*map(str, self.adaptive.worth.plans), ADAPTIVE]

    def run(self) -> None:
        self._follow(ADAPTIVE)
        for level in (1, MOST):
            self.clients.set(level, KINDS[0])
            self.clients.run(self.settings.window_s)
        self.clients.drain()
        for number in range(self.settings.rounds):
            for level, kind in product(self.settings.levels, KINDS):
                self._steady(level, kind, number)
            self.clients.drain()
            self._moving(number)
            self.log(f"round {number + 1} of {self.settings.rounds} done")

    def _steady(self, level: int, kind: str, number: int) -> None:
        for arm in arms_in_turn(self.arms, number):
            self._follow(arm)
            self.clients.set(level, kind)
            self.clients.run(self.settings.settle_s)
            self.clients.restart()
            rate = self.clients.run(self.settings.window_s)
            self.steady.setdefault((level, kind), {}).setdefault(arm, []).append(rate)

    def _moving(self, number: int) -> None:
        phases = [p for p in self._phases() if p.begin in self.settings.levels]
        for arm in arms_in_turn(self.arms, number):
            self._follow(arm)
            self.clients.restart()
            for phase in phases:
                self.clients.set(phase.begin, phase.traffic)
                rate = self.clients.run(phase.seconds)
                load = self.moving.setdefault((phase.begin, phase.traffic), {})
                load.setdefault(arm, []).append(rate)
            self.clients.drain()

    def _phases(self) -> tuple[Phase, ...]:
        return everything(self.settings.phase_s * len(LEVELS) * len(KINDS))

    def _follow(self, arm: str) -> None:
        self._version += 1
        pinned = Schedule.pinned(Plan.parse(arm)) if arm != ADAPTIVE else self.adaptive
        self.engine.set_schedule(replace(pinned, ttl_s=self.adaptive.ttl_s, version=self._version))


@dataclass(frozen=True, slots=True)
class Summary:
    """Of equal times in every load. `to_best`: adaptive over the best fixed plan, by load."""

    to_best: Mapping[LoadKey, float]
    adaptive: float
    clairvoyant: float
    """These two over the best single fixed plan."""
    best: str

    @classmethod
    def of(cls, rates: Rates) -> Summary:
        medians = {
            load: {arm: statistics.median(seen) for arm, seen in by_arm.items()}
            for load, by_arm in rates.items()
        }
        fixed = [arm for arm in next(iter(medians.values())) if arm != ADAPTIVE]
        most = {load: max(found[arm] for arm in fixed) for load, found in medians.items()}
        totals = {arm: sum(found[arm] for found in medians.values()) for arm in (*fixed, ADAPTIVE)}
        best = max(fixed, key=totals.__getitem__)
        return cls(
            {load: found[ADAPTIVE] / most[load] for load, found in medians.items()},
            totals[ADAPTIVE] / totals[best],
            sum(most.values()) / totals[best],
            best,
        )


def pooled(checkpoint: Checkpoint) -> dict[str, list[tuple[tuple[int, ...], SamplingParams]]]:
    """The requests of `benchmarks.adaptive`, as tokens."""
    return {
        kind: [
            (
                tuple(chat_tokens(checkpoint, ask.prompt)),
                SamplingParams(max_tokens=MAX_TOKENS, temperature=ask.temperature, seed=ask.seed),
            )
            for ask in asks
        ]
        for kind, asks in pools().items()
    }


def bars_of(steady: Summary, moving: Summary) -> list[Bar]:
    found = [
        Bar(f"adaptive / best fixed plan, {level} {kind}", ratio, STEADY_BAR)
        for (level, kind), ratio in steady.to_best.items()
    ]
    for name, summary in (("steady", steady), ("moving", moving)):
        label = f"adaptive / best single fixed plan, {name}"
        found.append(Bar(label, summary.adaptive, MIXED_BAR))
    return found


def table_of(title: str, rates: Rates, summary: Summary) -> Table:
    arms = list(next(iter(rates.values())))
    table = Table("load", *arms, "to the best fixed", title=title, title_justify="left")
    for (level, kind), by_arm in rates.items():
        cells = (f"{statistics.median(by_arm[arm]):.0f}" for arm in arms)
        table.add_row(f"{level} {kind}", *cells, f"{summary.to_best[level, kind]:.2f}")
    return table


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.loads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_output_arguments(parser)
    args = parser.parse_args(arguments)
    settings = Settings(0.5, 0.5, rounds=1, levels=(1, 8, MOST)) if args.quick else Settings()
    torch.set_num_threads(1)
    console, facts = make_console(), provenance(torch.device("cpu"))
    print_provenance(console, facts)
    engine, checkpoint = demo_engine(MOST)
    schedule = adaptive_schedule(engine, AppConfig.model_validate({}))
    if schedule is None:
        raise SystemExit("there is no step-time profile of this machine; run trimode calibrate")
    bench = Bench(engine, Clients(engine, pooled(checkpoint)), schedule, settings, console.log)
    bench.run()
    parts = {"steady": bench.steady, "moving": bench.moving}
    summaries = {name: Summary.of(rates) for name, rates in parts.items()}
    for name, rates in parts.items():
        console.print(table_of(f"{name}, tokens/s", rates, summaries[name]))
        found = summaries[name]
        console.print(
            f"{name}: adaptive {found.adaptive:.3f} of {found.best} in every load, "
            f"a clairvoyant {found.clairvoyant:.3f}"
        )
    bars = bars_of(**summaries)
    print_bars(console, bars)
    write_json(
        args.json,
        {"benchmark": "loads", **facts, "rounds": settings.rounds}
        | {name: _figures(rates, summaries[name]) for name, rates in parts.items()}
        | {"bars": [bar.to_dict() for bar in bars]},
    )


def _figures(rates: Rates, summary: Summary) -> dict[str, Any]:
    return {
        "tokens_per_s": {f"{level} {kind}": seen for (level, kind), seen in rates.items()},
        "adaptive_to_best_fixed": {f"{n} {kind}": r for (n, kind), r in summary.to_best.items()},
        "best_single_fixed": summary.best,
        "adaptive_to_best_single": summary.adaptive,
        "clairvoyant_to_best_single": summary.clairvoyant,
    }


if __name__ == "__main__":
    main()

"""Adaptive against every fixed plan on the engine alone, and what a clairvoyant would gain.

    python -m benchmarks.loads [--quick] [--json FILE]

Without Serve, HTTP and clients on the same cores there is less noise than in `benchmarks.adaptive`,
and what is left is the governor's. Every arm is an engine of its own over the same weights, whose
clock stands still while others run. So arms take turns within every load, a second or two each, and
a machine that is faster or slower for a while is so for all of them. Two parts, over the same
requests:

    steady   every number of clients with every kind of prompts: a window, after settling
    moving   the same loads one after the other, 1.5 s each, in an order that was drawn

The adaptive engine is never pinned and meets each load anew.

A clairvoyant would be in the best fixed plan of every load: no policy can gain more on these loads
but by luck.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from rich.table import Table

from benchmarks.adaptive_analysis import ADAPTIVE, arms_in_turn
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
from benchmarks.demo_engine import adaptive_schedule, demo_model
from benchmarks.loads_arms import Arm, arms_of
from orchestrator.app_config import AppConfig
from replicas.torch_engine.engine import EngineLimits, TorchEngine

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
class Bench:
    """Takes the windows of all arms."""

    arms: list[Arm]
    settings: Settings
    log: Callable[[str], None]
    steady: Rates = field(default_factory=dict)
    moving: Rates = field(default_factory=dict)

    def run(self) -> None:
        for arm in self.arms:
            for level in (1, MOST):
                arm.set(level, KINDS[0])
                arm.run(self.settings.window_s)
            arm.drain()
        for number in range(self.settings.rounds):
            self._steady(number)
            self._moving(number)
            self.log(f"round {number + 1} of {self.settings.rounds} done")

    def _steady(self, number: int) -> None:
        for turn, load in enumerate(product(self.settings.levels, KINDS), number):
            for arm in self._in_turn(turn):
                arm.set(*load)
                arm.run(self.settings.settle_s)
                arm.restart()
                rate = arm.run(self.settings.window_s)
                self.steady.setdefault(load, {}).setdefault(arm.name, []).append(rate)
        self._drain()

    def _moving(self, number: int) -> None:
        for arm in self.arms:
            arm.restart()
        for turn, phase in enumerate(self._phases(), number):
            load = phase.begin, phase.traffic
            for arm in self._in_turn(turn):
                arm.set(*load)
                rate = arm.run(phase.seconds)
                self.moving.setdefault(load, {}).setdefault(arm.name, []).append(rate)
        self._drain()

    def _in_turn(self, turn: int) -> list[Arm]:
        by_name = {arm.name: arm for arm in self.arms}
        return [by_name[name] for name in arms_in_turn(list(by_name), turn)]

    def _phases(self) -> list[Phase]:
        phases = everything(self.settings.phase_s * len(LEVELS) * len(KINDS))
        return [phase for phase in phases if phase.begin in self.settings.levels]

    def _drain(self) -> None:
        for arm in self.arms:
            arm.drain()


@dataclass(frozen=True, slots=True)
class Summary:
    """Of equal times in every load. `to_best`: adaptive over the best fixed plan, by load."""

    to_best: Mapping[LoadKey, float]
    adaptive: float
    clairvoyant: float
    """These two over the best single fixed plan."""
    best: str
    by_round: Sequence[float] = ()
    """Adaptive over that plan, both summed over the loads of a round."""

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
        sums = {arm: _sums([found[arm] for found in rates.values()]) for arm in (best, ADAPTIVE)}
        return cls(
            {load: found[ADAPTIVE] / most[load] for load, found in medians.items()},
            totals[ADAPTIVE] / totals[best],
            sum(most.values()) / totals[best],
            best,
            [found / base for found, base in zip(sums[ADAPTIVE], sums[best], strict=True)],
        )


def _sums(by_load: Sequence[Sequence[float]]) -> list[float]:
    """Over all loads, by round."""
    rounds = min(len(seen) for seen in by_load)
    return [sum(seen[number] for seen in by_load) for number in range(rounds)]


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
    model, checkpoint = demo_model(EngineLimits(max_sequences=MOST))
    idle = TorchEngine(model, None, EngineLimits(max_sequences=MOST))
    schedule = adaptive_schedule(idle, AppConfig.model_validate({}))
    if schedule is None:
        raise SystemExit("there is no step-time profile of this machine; run trimode calibrate")
    bench = Bench(arms_of(model, checkpoint, schedule), settings, console.log)
    bench.run()
    parts = {"steady": bench.steady, "moving": bench.moving}
    summaries = {name: Summary.of(rates) for name, rates in parts.items()}
    for name, rates in parts.items():
        console.print(table_of(f"{name}, tokens/s", rates, summaries[name]))
        found = summaries[name]
        console.print(
            f"{name}: adaptive {found.adaptive:.3f} of {found.best} in every load "
            f"({min(found.by_round):.3f} to {max(found.by_round):.3f} by round), "
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
        "adaptive_to_best_single_by_round": list(summary.by_round),
        "clairvoyant_to_best_single": summary.clairvoyant,
    }


if __name__ == "__main__":
    main()

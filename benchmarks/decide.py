"""How long a controller takes to decide for a fleet.

64 replicas whose load wanders and whose traffic drifts, as a controller would read it once a
second; each follows what was decided for it, and metrics tell of the plan it is in. Time is that of
the decisions of one round, guard included. Collecting signals and sending schedules is not in it
(`benchmarks.overhead`).

    python -m benchmarks.decide --quick --json decide.json
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from benchmarks.common import (
    Bar,
    add_output_arguments,
    make_console,
    print_bars,
    print_provenance,
    provenance,
    write_json,
)
from policies.base import load_policy
from policies.decisions import PlanSignals, Reading, Signals
from policies.guard import Guard, GuardState
from policies.step_time import forwards_per_step, shipped_profile
from policies.vocabulary import AR, Mode, Plan

REPLICAS = 64
PROFILE = "h100"
CONTENDERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("static", {}),
    ("threshold", {}),
    ("predictive", {}),
    ("predictive", {"local": False}),
    ("bandit", {}),
)
MOST_MS = 1.0  # for a round, by the default policy
WARM_UP = 30  # rounds; before that every replica's first estimates are made
MERGE_EVERY = 15  # rounds


@dataclass(slots=True)
class Load:
    """One replica's, wandering. `chance`: of a draft position to be accepted."""

    name: str
    draw: random.Random
    decoding: int = 20
    length: float = 800.0
    chance: float = 0.8

    def move(self) -> None:
        self.decoding = min(200, max(0, self.decoding + self.draw.randint(-3, 3)))
        self.length = min(8000.0, max(100.0, self.length * self.draw.uniform(0.99, 1.01)))
        self.chance = min(0.95, max(0.3, self.chance + self.draw.uniform(-0.005, 0.005)))

    def signals(self, plan: Plan) -> Signals:
        used = {plan: self._used(plan)} if self.decoding else {}
        return Signals(
            self.name,
            decoding=_read(self.decoding),
            prefilling=_read(1),
            waiting=_read(0),
            tokens_per_s=_read(1000.0),
            ttft_p95_s=_read(0.3),
            tpot_p95_s=_read(0.01),
            context_tokens=_read(self.decoding * self.length),
            kv_use=_read(0.4),
            plan=plan,
            plans=used,
            profile=shipped_profile(PROFILE),
        )

    def _used(self, plan: Plan) -> PlanSignals:
        noise = self.draw.uniform(0.97, 1.03)
        shares = tuple(noise * self.chance**i for i in range(1, plan.block_length))
        step_s = shipped_profile(PROFILE).step_s(plan, self.decoding, self.decoding * self.length)
        return PlanSignals(
            tokens_per_forward=_read((1.0 + sum(shares)) / forwards_per_step(plan)),
            accepted_length=_read(sum(shares)),
            step_s=_read(step_s * noise),
            sequences=_read(self.decoding),
            acceptance=shares if plan.mode is Mode.SELF_SPECULATION else (),
        )


def _read(value: float) -> Reading:
    return Reading(value, 0.5)


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of every timed round, of the clock and of this thread's use of a core: on a busy
    machine they differ by the time that others had it."""

    name: str
    wall: tuple[float, ...]
    cpu: tuple[float, ...]
    merges: tuple[float, ...]

    def to_dict(self) -> dict[str, float | str | int]:
        return {
            "policy": self.name,
            "rounds": len(self.wall),
            "median_ms": quantile(self.wall, 0.5),
            "p95_ms": quantile(self.wall, 0.95),
            "least_ms": min(self.wall),
            "cpu_median_ms": quantile(self.cpu, 0.5),
            "cpu_p95_ms": quantile(self.cpu, 0.95),
            "merge_ms": quantile(self.merges, 0.5),
        }


def quantile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def decide(name: str, options: dict[str, Any], rounds: int) -> Timing:
    """Plays the load to one policy."""
    label = " ".join([name, *(f"{key}={value}" for key, value in options.items())])
    guard = Guard(load_policy(name, options))
    loads = [Load(f"replica-{n}", random.Random(n)) for n in range(REPLICAS)]
    states: dict[str, GuardState] = {}
    wall, cpu, merges = [], [], []
    for now, told in enumerate(_rounds(loads, states, WARM_UP + rounds)):
        began, used = time.perf_counter(), time.thread_time()
        for signals in told:
            _, states[signals.replica] = guard.decide(
                signals, states.get(signals.replica), float(now)
            )
        cpu.append(1e3 * (time.thread_time() - used))
        wall.append(1e3 * (time.perf_counter() - began))
        if now % MERGE_EVERY == 0:
            began = time.perf_counter()
            states.update(guard.merge(states, float(now)))
            merges.append(1e3 * (time.perf_counter() - began))
    return Timing(label, tuple(wall[WARM_UP:]), tuple(cpu[WARM_UP:]), tuple(merges))


def _rounds(
    loads: list[Load], states: dict[str, GuardState], rounds: int
) -> Iterator[list[Signals]]:
    for _ in range(rounds):
        told = []
        for load in loads:
            load.move()
            state = states.get(load.name)
            told.append(load.signals(AR if state is None else state.plan or AR))
        yield told


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decide", description=__doc__)
    add_output_arguments(parser)
    arguments = parser.parse_args(argv)
    console, facts = make_console(), provenance(torch.device("cpu"))
    print_provenance(console, facts)
    rounds = 60 if arguments.quick else 600
    timings = [decide(name, options, rounds) for name, options in CONTENDERS]
    columns = ("median_ms", "p95_ms", "least_ms", "cpu_median_ms", "cpu_p95_ms", "merge_ms")
    table = Table("policy", *(column.replace("_", " ") for column in columns))
    for timing in timings:
        figures = timing.to_dict()
        cells = (figures[column] for column in columns)
        table.add_row(timing.name, *(f"{cell:.2f}" for cell in cells))
    console.print(table)
    default = next(timing for timing in timings if timing.name == "predictive")
    name = f"ms to decide for {REPLICAS} replicas, predictive, median of {rounds} rounds"
    bars = [Bar(name, quantile(default.wall, 0.5), MOST_MS, at_least=False)]
    print_bars(console, bars)
    found = {"replicas": REPLICAS, "policies": [timing.to_dict() for timing in timings]}
    write_json(arguments.json, {**facts, **found, "bars": [bar.to_dict() for bar in bars]})


if __name__ == "__main__":
    main()

"""Whether replay tells the truth: the same short load on the real engine and in simulation.

    python -m benchmarks.replay [--quick] [--json FILE]

The demo model decodes held-out prompts in a closed loop, in this process, on one thread, under
fixed plans and under the predictive policy's worth. Replay gets a profile calibrated just before,
the prompts' lengths, and how well each prompt's drafts are accepted, measured one at a time; what
batching, admission, step times at other loads and the governor's choices make of that, it has to
find out. Seconds are CPU time of the thread, so that others on the machine do not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
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
from benchmarks.demo_engine import demo_model
from benchmarks.workload import DEMO_CHECKPOINT, Workload, held_out_mix
from policies.static import Static
from policies.step_time import Profile
from policies.vocabulary import AR, BLOCK_LENGTHS, Mode, Plan, Schedule
from policies.worth import Worth
from replay.contenders import REFRESH_S, Contender
from replay.load import steps_of_load
from replay.simulator import Setting, run
from replay.trace import Trace
from replay.traffic import Kinds
from replay.world import World
from replicas.profiles import calibrate
from replicas.torch_engine.engine import EngineLimits, TorchEngine

DRAFTING = tuple(Plan(Mode.SELF_SPECULATION, length) for length in BLOCK_LENGTHS)
PLANS = (AR, *DRAFTING)
GOVERNED = "predictive"
MAX_TOKENS = 160
MEAN_ERROR, LARGEST_ERROR = 0.10, 0.20
SURE, NEVER = 0.999, 0.001  # a chance of 1 or 0 that was seen in few rounds


@dataclass(frozen=True, slots=True)
class Prompts:
    """What replay is told: lengths, and by block length the chance of each prompt's drafts."""

    trace: Trace
    kinds: Kinds

    def class_of(self, number: int, now: float) -> int:
        return number % len(self.trace)


@dataclass(frozen=True, slots=True)
class Seen:
    """Over one window: tokens per second, and of one plan the mean step and what it yields a
    sequence."""

    rate: float
    step_s: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Point:
    """One plan, or the policy, at one number in flight. For the policy, step and tokens are those
    of the plan that it was in for longest."""

    name: str
    level: int
    real: Seen
    replayed: Seen

    @property
    def error(self) -> float:
        return self.replayed.rate / self.real.rate - 1.0

    @property
    def step_error(self) -> float:
        return self.replayed.step_s / self.real.step_s - 1.0

    @property
    def tokens_error(self) -> float:
        return self.replayed.tokens / self.real.tokens - 1.0


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add_output_arguments(parser)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)  # CPU time of one thread is a step's time
    console = make_console()
    facts = provenance(torch.device("cpu"))
    print_provenance(console, facts)
    levels, prompts, seconds, budget_s = (
        ((1, 8), 24, 3.0, 20.0) if args.quick else ((1, 4, 16), 48, 12.0, 90.0)
    )
    limits = EngineLimits()
    model, checkpoint = demo_model(limits)
    workload = held_out_mix(checkpoint, prompts, max_tokens=MAX_TOKENS)

    def engine() -> TorchEngine:
        return TorchEngine(model, None, limits, clock=time.thread_time)

    profile = calibrate(engine(), str(DEMO_CHECKPOINT), budget_s)
    console.log(f"profile measured, noise {profile.noise:.1%}")
    known = measure_prompts(engine(), workload)
    console.log("lengths and acceptance measured")
    points = []
    for level in levels:
        for name, schedule in _schedules(profile).items():
            real = on_engine(engine(), workload, schedule, level, seconds)
            points.append(Point(name, level, real, in_replay(known, profile, schedule, level)))
        console.log(f"{level} in flight done")
    bars = _bars(points)
    console.print(_table(points))
    print_bars(console, bars)
    write_json(args.json, {"benchmark": "replay", **facts, **_figures(points, bars, profile)})


def _schedules(profile: Profile) -> dict[str, Schedule]:
    fixed = {str(plan): Schedule.pinned(plan) for plan in PLANS}
    return {**fixed, GOVERNED: Schedule.pinned(AR, worth=Worth(PLANS, profile))}


def measure_prompts(engine: TorchEngine, workload: Workload) -> Prompts:
    """Every prompt alone, once under each block length."""
    count = len(workload.prompts)
    outputs = np.ones(count, dtype=np.int64)
    chances: dict[int, list[float]] = {}
    for number, plan in enumerate(DRAFTING, start=1):
        engine.set_schedule(Schedule.pinned(plan, version=number))
        rounds = [_rounds_of(engine, workload, index) for index in range(count)]
        outputs = np.array([1 + sum(kept) for kept in rounds])
        chances[plan.block_length] = [_chance(kept, plan.block_length) for kept in rounds]
    lengths = np.array([len(prompt) for prompt in workload.prompts])
    trace = Trace("held-out", np.arange(count, dtype=np.float64), lengths, outputs, lengths * 0)
    return Prompts(trace, Kinds(chances))


def _rounds_of(engine: TorchEngine, workload: Workload, index: int) -> list[int]:
    """Tokens that each round of one request kept, the first token left out."""
    engine.submit(workload.request(index))
    kept: list[int] = []
    while True:
        for delta in engine.step():
            if delta.plan is not None:
                kept.append(len(delta.token_ids))
            if delta.finish_reason is not None:
                return kept


def _chance(kept: Sequence[int], block_length: int) -> float:
    """Per draft position: accepted over tried. The last round was cut by the end and rejected
    nothing."""
    accepted = sum(tokens - 1 for tokens in kept)
    rejected = sum(tokens < block_length for tokens in kept[:-1])
    return min(SURE, max(NEVER, accepted / max(1, accepted + rejected)))


def on_engine(
    engine: TorchEngine, workload: Workload, schedule: Schedule, level: int, seconds: float
) -> Seen:
    """Seconds are CPU time, from when twice `level` requests have finished."""
    engine.set_schedule(schedule)
    submitted, finished = 0, 0
    for _ in range(level):
        engine.submit(workload.request(submitted))
        submitted += 1
    tokens, started = 0, time.thread_time()
    warm_up = 2 * level
    while finished < warm_up or time.thread_time() - started < seconds:
        for delta in engine.step():
            tokens += len(delta.token_ids)
            if delta.finish_reason is not None:
                engine.submit(workload.request(submitted))
                submitted, finished = submitted + 1, finished + 1
                if finished == warm_up:
                    tokens, started = 0, time.thread_time()
    rate = tokens / (time.thread_time() - started)
    most = max(engine.tallies.freeze().values(), key=lambda tally: tally.seconds)
    return Seen(rate, most.seconds / most.steps, most.committed / most.sequence_steps)


def in_replay(known: Prompts, profile: Profile, schedule: Schedule, level: int) -> Seen:
    """The same in simulation, for ten minutes, so that its own scatter is small."""
    policy = Static(schedule.bands[0].plan) if schedule.worth is None else _Given(schedule)
    setting = Setting(
        steps_of_load(known.trace, [level], 600.0, replicas=1),
        profile,
        World(profile),
        known,
    )
    outcome = run(setting, Contender(GOVERNED, policy, REFRESH_S))
    most = max(outcome.time_in_plan, key=outcome.time_in_plan.__getitem__)
    return Seen(outcome.tokens_per_s, outcome.step_s[most], outcome.tokens_per_step[most])


class _Given(Static):
    """One schedule for ever."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule.bands[0].plan)
        self._decision = self._decision._replace(schedule=schedule)


def _bars(points: Sequence[Point]) -> list[Bar]:
    errors = [abs(point.error) for point in points]
    governed = [abs(point.error) for point in points if point.name == GOVERNED]
    return [
        Bar("mean error of replay", sum(errors) / len(errors), MEAN_ERROR, at_least=False),
        Bar("largest error of replay", max(errors), LARGEST_ERROR, at_least=False),
        Bar("largest error under the policy", max(governed), LARGEST_ERROR, at_least=False),
    ]


def _table(points: Sequence[Point]) -> Table:
    table = Table("plan", "in flight", "engine, tokens/s", "replay, tokens/s", "error")
    table.add_column("of step time")  # the engine's steps hold prefill, too; replay's do not
    table.add_column("of tokens a step")
    for point in points:
        rates = (f"{point.real.rate:.0f}", f"{point.replayed.rate:.0f}")
        errors = (f"{e:+.1%}" for e in (point.error, point.step_error, point.tokens_error))
        table.add_row(point.name, str(point.level), *rates, *errors)
    return table


def _figures(points: Sequence[Point], bars: Sequence[Bar], profile: Profile) -> dict[str, Any]:
    rows = [
        {
            "plan": p.name,
            "in_flight": p.level,
            "engine": asdict(p.real),
            "replay": asdict(p.replayed),
            "error": p.error,
        }
        for p in points
    ]
    return {
        "profile": profile.to_dict(),
        "figures": rows,
        "bars": [bar.to_dict() for bar in bars],
    }


if __name__ == "__main__":
    main()

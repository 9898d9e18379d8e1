"""Is a block length for each sequence worth it? Easy and hard requests in one batch.

    python -m benchmarks.ragged [--quick] [--json FILE]

Half of the requests are easy (the demo model accepts nearly all it drafts), half are hard (stories,
of which it accepts a third), in a closed loop. One plan for all is compared with one plan for each
class, by request, which is what an engine that knew every request's acceptance could do at best:
a step then holds rows of two widths, in one packed forward for the drafts and one for the rest.

All contenders advance a slice at a time, in turn. A first part chooses the best two uniform plans
and the best two pairs; only what follows counts, so that the winner's luck does not. Time is the
CPU time of the one thread that steps: neighbours on the machine slow it down, but count for less
than on the wall clock.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.closed_loop import limits_for
from benchmarks.common import (
    Bar,
    Spread,
    add_output_arguments,
    make_console,
    print_bars,
    print_provenance,
    provenance,
    write_json,
)
from benchmarks.workload import DEMO_CHECKPOINT, held_out_mix
from policies.vocabulary import AR, BLOCK_LENGTHS, Mode, Plan
from replicas.engine import Delta, Request, SamplingParams
from replicas.torch_engine.checkpoint import Checkpoint, load_checkpoint
from replicas.torch_engine.engine import TorchEngine, positions_needed
from replicas.torch_engine.model import Model

LEVELS = (4, 8, 16, 32)
PLANS = (AR, *(Plan(Mode.SELF_SPECULATION, length) for length in BLOCK_LENGTHS))
PAYS = 0.03
"""Gain below which one plan for all is kept: learned acceptance gives less than known."""
EASY_TASKS, HARD_TASKS = ("tests", "getters"), ("story",)
FINALISTS = 2
MAX_TOKENS = 160


Prompts = tuple[tuple[int, ...], ...]


@dataclass(slots=True)
class Window:
    """What a contender did for some time; `kinds` are tokens and rows of easy and hard requests."""

    tokens: int = 0
    seconds: float = 0.0
    kinds: list[list[int]] = field(default_factory=lambda: [[0, 0], [0, 0]])

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    def per_step(self, kind: int) -> float:
        """Tokens per sequence and step of the easy (0) or the hard (1) ones."""
        tokens, rows = self.kinds[kind]
        return tokens / rows if rows else 0.0


class Contender:
    """A closed loop whose easy and hard requests each have a plan."""

    def __init__(
        self, model: Model, kinds: Sequence[Prompts], level: int, plans: tuple[Plan, Plan]
    ):
        self.plans = plans
        self._kinds = kinds
        self._engine = TorchEngine(model, None, limits_for([level]))
        self._next = self._finished = 0
        for _ in range(level):
            self._submit()
        while self._finished < level:
            self._step(Window())

    @property
    def is_uniform(self) -> bool:
        return self.plans[0] == self.plans[1]

    @property
    def name(self) -> str:
        return str(self.plans[0]) if self.is_uniform else f"{self.plans[0]} + {self.plans[1]}"

    def advance(self, seconds: float) -> Window:
        """Steps for that much CPU time."""
        window = Window()
        while window.seconds < seconds:
            self._step(window)
        return window

    def _step(self, window: Window) -> None:
        began = time.thread_time()
        deltas = self._engine.step()
        window.seconds += time.thread_time() - began
        for delta in deltas:
            self._take(delta, window)

    def _take(self, delta: Delta, window: Window) -> None:
        count = len(delta.token_ids)
        window.tokens += count
        if delta.plan is not None:
            seen = window.kinds[int(delta.request_id) % 2]
            seen[0] += count
            seen[1] += 1
        if delta.finish_reason is not None:
            self._finished += 1
            self._submit()

    def _submit(self) -> None:
        round_, kind = divmod(self._next, 2)
        prompts, plan = self._kinds[kind], self.plans[kind]
        prompt = prompts[round_ % len(prompts)]
        self._engine.submit(Request(str(self._next), prompt, SamplingParams(MAX_TOKENS), plan=plan))
        self._next += 1


@dataclass(slots=True)
class Level:
    """What was measured at one number of sequences."""

    sequences: int
    chosen: dict[str, float] = field(default_factory=dict)
    """Tokens/s of every contender in the part that chooses."""
    windows: dict[str, list[Window]] = field(default_factory=dict)
    uniform: str = ""
    pair: str = ""

    @property
    def gains(self) -> list[float]:
        """Of the best pair over the best uniform plan, by round."""
        both = zip(self.windows[self.pair], self.windows[self.uniform], strict=True)
        return [split.rate / same.rate - 1 for split, same in both]

    def to_dict(self) -> dict[str, Any]:
        finalists = {
            name: {
                "tokens_per_s": Spread.of(w.rate for w in windows).to_dict(),
                "easy_tokens_per_step": Spread.of(w.per_step(0) for w in windows).to_dict(),
                "hard_tokens_per_step": Spread.of(w.per_step(1) for w in windows).to_dict(),
            }
            for name, windows in self.windows.items()
        }
        return {
            "sequences": self.sequences,
            "chosen_from": self.chosen,
            "finalists": finalists,
            "best_uniform": self.uniform,
            "best_pair": self.pair,
            "gain": Spread.of(self.gains).to_dict(),
        }


@dataclass(frozen=True, slots=True)
class Settings:
    levels: tuple[int, ...]
    choosing_s: float
    round_s: float
    rounds: int
    slice_s: float


def measure_level(model: Model, kinds: Sequence[Prompts], sequences: int, how: Settings) -> Level:
    level = Level(sequences)
    both = product(PLANS, PLANS)
    pairs = [(easy, hard) for easy, hard in both if hard.block_length < easy.block_length]
    plans = [*((plan, plan) for plan in PLANS), *pairs]
    contenders = [Contender(model, kinds, sequences, pair) for pair in plans]
    totals = _in_turn(contenders, how.choosing_s, how.slice_s, 0)
    level.chosen = {c.name: window.rate for c, window in zip(contenders, totals, strict=True)}
    finalists = [*_best(contenders, level, uniform=True), *_best(contenders, level, uniform=False)]
    level.windows = {contender.name: [] for contender in finalists}
    for turn in range(how.rounds):
        for contender, window in zip(
            finalists, _in_turn(finalists, how.round_s, how.slice_s, turn), strict=True
        ):
            level.windows[contender.name].append(window)
    medians = {name: Spread.of(w.rate for w in seen).median for name, seen in level.windows.items()}
    uniform = {c.name for c in finalists if c.is_uniform}
    level.uniform = max(uniform, key=medians.__getitem__)
    level.pair = max(medians.keys() - uniform, key=medians.__getitem__)
    return level


def _in_turn(
    contenders: Sequence[Contender], seconds: float, slice_s: float, first: int
) -> list[Window]:
    """Each contender for that long, a slice at a time."""
    totals = [Window() for _ in contenders]
    while any(total.seconds < seconds for total in totals):
        for i in range(len(contenders)):
            which = (i + first) % len(contenders)
            window = contenders[which].advance(slice_s)
            _add(totals[which], window)
        first += 1
    return totals


def _add(total: Window, window: Window) -> None:
    total.tokens += window.tokens
    total.seconds += window.seconds
    for kind, more in zip(total.kinds, window.kinds, strict=True):
        kind[0] += more[0]
        kind[1] += more[1]


def _best(contenders: Sequence[Contender], level: Level, *, uniform: bool) -> list[Contender]:
    same = [contender for contender in contenders if contender.is_uniform is uniform]
    return sorted(same, key=lambda c: level.chosen[c.name], reverse=True)[:FINALISTS]


def bars(levels: Sequence[Level]) -> list[Bar]:
    return [
        Bar(
            f"gain of a plan for each class, {level.sequences} sequences",
            Spread.of(level.gains).median,
            PAYS,
        )
        for level in levels
    ]


def _show(console: Console, levels: Sequence[Level]) -> None:
    table = Table("sequences", "easy + hard", "tokens/s", "lowest", "highest", "easy", "hard")
    for level in levels:
        for name, windows in level.windows.items():
            rate = Spread.of(window.rate for window in windows)
            steps = [Spread.of(window.per_step(kind) for window in windows) for kind in (0, 1)]
            table.add_row(
                str(level.sequences),
                name,
                *(f"{value:.0f}" for value in (rate.median, rate.low, rate.high)),
                *(f"{step.median:.1f}" for step in steps),
            )
        gain = Spread.of(level.gains)
        words = f"{100 * gain.median:+.1f} % ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
        table.add_row(str(level.sequences), "gain of the best pair", words, end_section=True)
    console.print(table)
    console.print("easy, hard: tokens per sequence and step")


def _figures(how: Settings, levels: Sequence[Level]) -> dict[str, Any]:
    return {
        "settings": asdict(how),
        "levels": [level.to_dict() for level in levels],
        "bars": [bar.to_dict() for bar in bars(levels)],
    }


def _kinds(checkpoint: Checkpoint) -> tuple[Prompts, Prompts]:
    easy, hard = (held_out_mix(checkpoint, 40, tasks=tasks) for tasks in (EASY_TASKS, HARD_TASKS))
    return easy.prompts, hard.prompts


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    torch.set_num_threads(1)  # the stepping thread's CPU time is all there is
    levels = tuple(args.levels or ((4, 16) if args.quick else LEVELS))
    round_s = args.round_s or (0.5 if args.quick else 6.0)
    rounds = 3 if args.quick else 7
    how = Settings(levels, choosing_s=round_s, round_s=round_s, rounds=rounds, slice_s=0.1)
    console = make_console()
    checkpoint = load_checkpoint(args.checkpoint)
    device = torch.device("cpu")
    model = Model(
        checkpoint.config,
        checkpoint.weights,
        max_positions=positions_needed(limits_for(list(levels))),
        dtype=torch.float32,
        device=device,
    )
    facts = provenance(device)
    print_provenance(console, facts)
    measured = []
    for sequences in how.levels:
        measured.append(measure_level(model, _kinds(checkpoint), sequences, how))
        write_json(args.json, {"benchmark": "ragged", **facts, **_figures(how, measured)})
        console.log(f"{sequences} sequences done")
    _show(console, measured)
    print_bars(console, bars(measured))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ragged",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_output_arguments(parser)
    parser.add_argument("--checkpoint", type=Path, default=DEMO_CHECKPOINT)
    parser.add_argument("--round-s", type=float, help="CPU seconds of a contender and round")
    parser.add_argument("--levels", type=lambda text: list(map(int, text.split(","))))
    return parser


if __name__ == "__main__":
    main()

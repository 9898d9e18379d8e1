"""AR through the plugin beside SGLang's own AR, and what each mode gains, on this CPU.

    .venv-sglang/bin/python -m benchmarks.sglang [--quick] [--json FILE]

Two servers over the demo model, one without the plugin's worker, stay up and are measured in turn.

What modes gain: the same held-out requests, N at a time in a closed loop, prompts from the prefix
cache after one round that is not counted. Every repeat measures every subject at every level, in an
order that rotates; a ratio is taken within its repeat, and figures are medians.

What AR costs: N equally long answers from the one server and at once from the other, over and over.
The two halves of such a pair have the machine's mood in common; the ratio is the median over pairs.

Tokens/s are by the clock and by the CPU time of the process that decodes; beside other work only
the second says much.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

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
from benchmarks.sglang_server import Ask, Served, serving
from benchmarks.workload import DEMO_CHECKPOINT, held_out_mix
from policies.vocabulary import AR, Mode, Plan
from replicas.sglang_engine.protocol import SGLANG_VERSION
from replicas.torch_engine.checkpoint import load_checkpoint

STOCK = "SGLang"
LEVELS = (1, 2, 4, 8)
PLANS = (
    AR,
    *(Plan(Mode.SELF_SPECULATION, n) for n in (4, 8, 16)),
    *(Plan(Mode.DIFFUSION, n) for n in (8, 16)),
)
AR_BAR = 0.97


@dataclass(frozen=True, slots=True)
class Settings:
    plans: tuple[Plan, ...]
    requests_per_client: int
    repeats: int
    pairs: int


QUICK = Settings((PLANS[2], PLANS[3], PLANS[4]), requests_per_client=2, repeats=3, pairs=12)
FULL = Settings(PLANS, requests_per_client=4, repeats=5, pairs=120)
PAIR_TOKENS = 60

CLOCK, CPU = "clock", "CPU"
Rates = dict[tuple[str, str, int], list[float]]
"""Output tokens/s by the time counted, subject and level, one entry a repeat."""
Ratios = dict[tuple[str, int], list[float]]
"""AR's tokens/s over SGLang's by the time counted and level, one entry a pair."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_output_arguments(parser)
    arguments = parser.parse_args()
    settings = QUICK if arguments.quick else FULL
    console = make_console()
    facts = provenance(torch.device("cpu")) | {"sglang": SGLANG_VERSION}
    print_provenance(console, facts)
    asks = workload(settings)
    with TemporaryDirectory() as folder, serving_both(Path(folder)) as servers:
        rates = measure_gains(*servers, asks, settings, console)
        ratios = compare_ar(*servers, asks, settings.pairs)
    bars = [
        Bar(f"AR / SGLang at {n} by {timing}", statistics.median(ratios[timing, n]), AR_BAR)
        for timing in (CLOCK, CPU)
        for n in LEVELS
    ]
    print_rates(console, rates, CLOCK)
    print_rates(console, rates, CPU)
    print_ratios(console, ratios)
    print_bars(console, bars)
    write_json(arguments.json, figures(facts, rates, ratios, bars))


@contextmanager
def serving_both(folder: Path) -> Iterator[tuple[Served, Served]]:
    """SGLang's own AR, and the plugin."""
    homes = [folder / "stock", folder / "trimode"]
    for home in homes:
        home.mkdir()
    with serving(homes[0], stock=True) as stock, serving(homes[1]) as trimode:
        yield stock, trimode


def measure_gains(
    stock: Served, trimode: Served, asks: Sequence[Ask], settings: Settings, console: Console
) -> Rates:
    subjects = [STOCK, *(str(plan) for plan in settings.plans)]
    rates: Rates = defaultdict(list)
    for repeat in range(-1, settings.repeats):
        for subject in subjects[repeat:] + subjects[:repeat]:
            if subject != STOCK:
                trimode.settle(Plan.parse(subject))
            for level in LEVELS:
                # Fewer requests where fewer run together.
                chosen = asks[: len(asks) * level // max(LEVELS)]
                server = stock if subject == STOCK else trimode
                for timing, rate in measure(server, level, chosen).items():
                    if repeat >= 0:
                        rates[timing, subject, level].append(rate)
        console.log(f"repeat {repeat + 1} of {settings.repeats}")
    return rates


def compare_ar(stock: Served, trimode: Served, asks: Sequence[Ask], pairs: int) -> Ratios:
    trimode.settle(AR)
    ratios: Ratios = defaultdict(list)
    for pair in range(pairs):
        for level in LEVELS:
            chosen = [
                Ask(ask.prompt, max_tokens=PAIR_TOKENS, sampling={"ignore_eos": True})
                for ask in asks[:level]
            ]
            order = (stock, trimode) if pair % 2 else (trimode, stock)
            found = {id(server): measure(server, level, chosen) for server in order}
            for timing, rate in found[id(trimode)].items():
                ratios[timing, level].append(rate / found[id(stock)][timing])
    return ratios


def workload(settings: Settings) -> list[Ask]:
    checkpoint = load_checkpoint(DEMO_CHECKPOINT)
    mixed = held_out_mix(checkpoint, settings.requests_per_client * max(LEVELS))
    return [Ask(prompt, max_tokens=mixed.max_tokens) for prompt in mixed.prompts]


def measure(server: Served, level: int, asks: Sequence[Ask]) -> dict[str, float]:
    """Output tokens/s with `level` requests in flight."""
    started, cpu_before_s = time.perf_counter(), server.scheduler_cpu_s()
    answers = server.ask_all(asks, together=level)
    elapsed_s, cpu_s = time.perf_counter() - started, server.scheduler_cpu_s() - cpu_before_s
    tokens = sum(len(a.tokens) for a in answers)
    return {CLOCK: tokens / elapsed_s, CPU: tokens / cpu_s}


def gain(rates: Rates, timing: str, level: int, subject: str) -> Spread:
    pairs = zip(rates[timing, subject, level], rates[timing, STOCK, level], strict=True)
    return Spread.of(ours / theirs for ours, theirs in pairs)


def print_rates(console: Console, rates: Rates, timing: str) -> None:
    table = Table(f"output tokens/s by {timing}", *(f"{n} at once" for n in LEVELS))
    for subject in dict.fromkeys(subject for _, subject, _ in rates):
        cells = []
        for level in LEVELS:
            spread = Spread.of(rates[timing, subject, level])
            times = gain(rates, timing, level, subject).median
            cells.append(f"{spread.median:.0f} ({spread.low:.0f}-{spread.high:.0f}) ×{times:.2f}")
        table.add_row(subject, *cells)
    console.print(table)


def print_ratios(console: Console, ratios: Ratios) -> None:
    table = Table("AR / SGLang by", *(f"{n} at once" for n in LEVELS))
    for timing in (CLOCK, CPU):
        cells = []
        for level in LEVELS:
            low, median, high = statistics.quantiles(ratios[timing, level], n=4)
            cells.append(f"{median:.3f} ({low:.3f}-{high:.3f})")
        table.add_row(timing, *cells)
    console.print(table, "in brackets: the middle half of the pairs")


def figures(
    facts: dict[str, Any], rates: Rates, ratios: Ratios, bars: Sequence[Bar]
) -> dict[str, Any]:
    rows = [
        {
            "by": timing,
            "subject": subject,
            "level": level,
            "tokens_per_s": Spread.of(values).to_dict(),
            "against_sglang": gain(rates, timing, level, subject).to_dict(),
        }
        for (timing, subject, level), values in rates.items()
    ]
    pairs = [
        {
            "by": timing,
            "level": level,
            **Spread.of(values).to_dict(),
            "quartiles": statistics.quantiles(values, n=4),
        }
        for (timing, level), values in ratios.items()
    ]
    return {**facts, "rates": rows, "ar": pairs, "bars": [bar.to_dict() for bar in bars]}


if __name__ == "__main__":
    main()

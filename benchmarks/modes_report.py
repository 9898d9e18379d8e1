"""What `benchmarks.modes` makes of its measurements: tables, bars, JSON."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.closed_loop import LoopRun
from benchmarks.common import Bar, Spread, print_bars
from benchmarks.hf_baseline import HfRun
from benchmarks.step_share import StepShare
from benchmarks.switch_cost import SwitchCost
from policies.vocabulary import AR, Plan

Loops = Mapping[tuple[Plan, int], Sequence[LoopRun]]
HfRuns = Mapping[int, Sequence[HfRun]]
Runs = Sequence[LoopRun] | Sequence[HfRun]

_HF_BARS = {1: 2.0, 16: 1.5}
_BEST_BAR = 2.5
_SWITCH_BAR = 0.02


def output(runs: Runs) -> Spread:
    return Spread.of(run.rate for run in runs)


def decode(runs: Runs) -> Spread | None:
    """None where a repeat had too few steps without prefill."""
    rates = [run.decode_rate for run in runs]
    return None if None in rates else Spread.of(r for r in rates if r is not None)


def winner(loops: Loops, level: int) -> Plan:
    """The plan with the most output tokens/s at this level."""
    return max(
        (plan for plan, at in loops if at == level),
        key=lambda plan: output(loops[plan, level]).median,
    )


def bars(loops: Loops, hf: HfRuns, switches: Sequence[SwitchCost]) -> list[Bar]:
    """The ratio to Hugging Face is the lower of output and decode tokens/s."""
    found = [
        Bar(f"AR / Hugging Face, {level} sequences", _over_hf(loops, hf, level), least)
        for level, least in _HF_BARS.items()
    ]
    for kind, rate in (("decode", "decode_rate"), ("output, prefill included", "rate")):
        best = None
        if (AR, 1) in loops:
            best = _ratio(loops[winner(loops, 1), 1], loops[AR, 1], rate)
        found.append(Bar(f"best plan / AR, 1 sequence ({kind})", best, _BEST_BAR))
    cost = sum(s.cost for s in switches) / len(switches) if switches else None
    name = "cost of changing the plan every step (mean of the rows above)"
    found.append(Bar(name, cost, _SWITCH_BAR, at_least=False))
    return found


def _over_hf(loops: Loops, hf: HfRuns, level: int) -> float | None:
    if level not in hf or (AR, level) not in loops:
        return None
    ratios = [_ratio(loops[AR, level], hf[level], rate) for rate in ("rate", "decode_rate")]
    return min((r for r in ratios if r is not None), default=None)


def _ratio(ours: Runs, theirs: Runs, rate: str) -> float | None:
    """Median of the ratios within each repeat: what slows the machine for a while cancels."""
    pairs = [(getattr(a, rate), getattr(b, rate)) for a, b in zip(ours, theirs, strict=True)]
    if any(a is None or b is None for a, b in pairs):
        return None
    return float(statistics.median(a / b for a, b in pairs))


def show(
    console: Console,
    loops: Loops,
    hf: HfRuns,
    switches: Sequence[SwitchCost],
    shares: Sequence[StepShare],
    found: Sequence[Bar],
) -> None:
    _print(console, *_rates_table(loops, hf))
    for line in (*_winners(loops), *_sameness(loops, hf), *_padding(hf)):
        console.print(line)
    _print(console, *_switch_table(switches))
    _print(console, *_share_table(shares))
    print_bars(console, found)


def _print(console: Console, title: str, table: Table) -> None:
    # A title of the table's own would be wrapped to its width.
    console.print(f"\n{title}")
    console.print(table)


def _rates_table(loops: Loops, hf: HfRuns) -> tuple[str, Table]:
    levels = sorted({level for _, level in loops})
    runs = max(map(len, loops.values()))
    title = (
        f"Output tokens/s (lowest-highest of {runs} repeats) | decode tokens/s, by concurrent "
        "sequences; * most output at its level"
    )
    table = Table("plan", *map(str, levels))
    best = {level: winner(loops, level) for level in levels}
    for plan in dict.fromkeys(plan for plan, _ in loops):
        cells = [_cell(loops[plan, level], best[level] == plan) for level in levels]
        table.add_row(str(plan), *cells)
    table.add_section()
    table.add_row("Hugging Face", *(_cell(hf[level]) if level in hf else "" for level in levels))
    return title, table


def _cell(runs: Runs, best: bool = False) -> str:
    rate, decoding = output(runs), decode(runs)
    text = f"{rate.median:.0f} ({rate.low:.0f}-{rate.high:.0f}) | "
    text += "-" if decoding is None else f"{decoding.median:.0f}"
    return f"[bold]{text} *[/]" if best else text


def _winners(loops: Loops) -> list[str]:
    lines = []
    for level in sorted({level for _, level in loops}):
        plan = winner(loops, level)
        gain = _ratio(loops[plan, level], loops[AR, level], "rate")
        lines.append(f"{level:>3} sequences: {plan} wins, {gain:.2f} x AR")
    return lines


def _sameness(loops: Loops, hf: HfRuns) -> list[str]:
    """How many answers equal AR's token for token: all of an exact plan's must, in float32."""
    reference: dict[int, tuple[int, ...]] = {}
    for (plan, _), runs in loops.items():
        if plan == AR:
            reference |= {i: tokens for run in runs for i, tokens in run.outputs.items()}
    lines = []
    for plan in dict.fromkeys(plan for plan, _ in loops if plan != AR):
        pairs = [
            (reference[i], tokens)
            for (other, _), runs in loops.items()
            if other == plan
            for run in runs
            for i, tokens in run.outputs.items()
            if i in reference
        ]
        same = sum(a == b for a, b in pairs)
        lines.append(f"{plan}: {same} of {len(pairs)} answers equal AR's")
    answers = [(i, t) for runs in hf.values() for run in runs for i, t in enumerate(run.outputs)]
    compared = [(reference[i], tokens) for i, tokens in answers if i in reference]
    same = sum(a == b for a, b in compared)
    return [*lines, f"Hugging Face: {same} of {len(compared)} answers equal AR's"]


def _padding(hf: HfRuns) -> list[str]:
    """The kinder reading of a padded batch: rows that have ended count as if they were output."""
    return [
        f"Hugging Face at {level}, counting rows that have ended too: "
        f"{Spread.of(run.computed_rate for run in runs).median:.0f} tokens/s"
        for level, runs in sorted(hf.items())
    ]


def _switch_table(switches: Sequence[SwitchCost]) -> tuple[str, Table]:
    title = "Changing the plan every step (median ms of decode steps)"
    columns = ("plans", "sequences", "fixed", "alternating", "steps", "cost")
    table = Table(*columns)
    for s in switches:
        fixed = " + ".join(f"{1e3 * t:.3f}" for t in s.fixed)
        turns = " + ".join(f"{1e3 * t:.3f}" for t in s.alternating)
        names = f"{s.first} <> {s.second}"
        table.add_row(names, str(s.concurrency), fixed, turns, str(s.steps), f"{s.cost:+.1%}")
    return title, table


def _share_table(shares: Sequence[StepShare]) -> tuple[str, Table]:
    title = "Where a decode step's time goes (products and attention timed alone, same shapes)"
    columns = ("plan", "sequences", "step ms", "products ms", "attention ms")
    table = Table(*columns, "not products", "neither")
    for s in shares:
        table.add_row(
            str(s.plan),
            str(s.concurrency),
            *(f"{1e3 * t:.3f}" for t in (s.step, s.products, s.attention)),
            f"{s.other_than_products:.0%}",
            f"{s.neither:.0%}",
        )
    return title, table


def plot(path: Path, loops: Loops, hf: HfRuns, facts: Mapping[str, Any], dtype: str) -> None:
    from benchmarks.modes_plot import draw

    where = facts["machine"]
    draw(
        path,
        {key: output(runs) for key, runs in loops.items()},
        {level: output(runs) for level, runs in hf.items()},
        title=f"Demo model, {dtype}, {where['cpu']}, {where['threads']} threads; "
        f"commit {facts['commit']}, {facts['date'][:10]}",
    )


def to_dict(
    loops: Loops,
    hf: HfRuns,
    switches: Sequence[SwitchCost],
    shares: Sequence[StepShare],
    found: Sequence[Bar],
) -> dict[str, Any]:
    levels = sorted({level for _, level in loops})
    return {
        "plans": [
            {"plan": str(plan), "sequences": level, **_rates(runs)}
            for (plan, level), runs in loops.items()
        ],
        "hugging_face": [{"sequences": level, **_rates(runs)} for level, runs in hf.items()],
        "winners": {str(level): str(winner(loops, level)) for level in levels},
        "plan_changes": [
            {"plans": [str(s.first), str(s.second)], "sequences": s.concurrency, "cost": s.cost}
            | {
                "context": s.context,
                "fixed_s": s.fixed,
                "alternating_s": s.alternating,
                "steps": s.steps,
            }
            for s in switches
        ],
        "step_shares": [
            {"plan": str(s.plan), "sequences": s.concurrency, "step_s": s.step}
            | {"products_s": s.products, "attention_s": s.attention, "neither": s.neither}
            for s in shares
        ],
        "bars": [bar.to_dict() for bar in found],
    }


def _rates(runs: Runs) -> dict[str, Any]:
    decoding = decode(runs)
    return {"output": output(runs).to_dict(), "decode": decoding and decoding.to_dict()}

"""The tables of `benchmarks.gpu`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.gpu_analysis import (
    Breakdown,
    Throughput,
    Utilisation,
    public_best_lengths,
    public_crossing,
)
from benchmarks.gpu_cards import Peak
from benchmarks.gpu_exact import Check
from benchmarks.gpu_kernels import KernelShare
from benchmarks.gpu_steps import StepTime
from benchmarks.public_sweeps import (
    AR_TOKENS_PER_S,
    CONCURRENCY,
    ROUND_SOURCE,
    SELF_SPECULATION_32_TOKENS_PER_S,
    SWEEP_SOURCE,
)
from policies.vocabulary import Mode, Plan


def show_exactness(console: Console, checks: Sequence[Check], device: str) -> None:
    console.print(f"\nExactness on {device}, float32, against AR without graphs")
    table = Table("plan", "choice", "graphs", "captures", "requests", "tokens", "different", "")
    for c in checks:
        table.add_row(
            c.name,
            "sampled" if c.sampled else "greedy",
            "on" if c.graphs else "off",
            *(str(n) for n in (c.captures, c.requests, c.tokens, c.different)),
            "[green]equal[/]" if c.ok else "[red]FAILED[/]",
        )
    console.print(table)


def show_steps(console: Console, steps: Sequence[StepTime]) -> None:
    console.print("\nStep time in ms (wall), graphs on / off, by sequences")
    levels = sorted({s.sequences for s in steps})
    table = Table("model", "context", "plan", *map(str, levels))
    cells = {(s.model, s.context, s.plan, s.sequences, s.graphs): s.wall_ms for s in steps}
    for model, context in dict.fromkeys((s.model, s.context) for s in steps):
        for plan in dict.fromkeys(s.plan for s in steps):
            keys = [(model, context, plan, rows) for rows in levels]
            row = [_pair(cells.get((*k, True)), cells.get((*k, False))) for k in keys]
            if any(row):
                table.add_row(model, str(context), plan, *row)
        table.add_section()
    console.print(table)


def _pair(on: float | None, off: float | None) -> str:
    if on is None and off is None:
        return ""
    return " / ".join("-" if t is None else f"{t:.2f}" for t in (on, off))


def show_throughput(console: Console, found: Sequence[Throughput]) -> None:
    console.print(
        "\nTokens/s by sequences. Step times are measured here, accepted lengths are NOT: they are "
        "drawn from published figures (column acceptance). * best at its level"
    )
    levels = sorted({n for t in found for by_rows in t.rates.values() for n in by_rows})
    table = Table("model", "context", "acceptance", "plan", *map(str, levels))
    for t in found:
        winners = t.winners
        for plan, by_rows in t.rates.items():
            cells = [
                f"{by_rows[n]:.0f}{' *' if winners[n] == plan else ''}" if n in by_rows else ""
                for n in levels
            ]
            table.add_row(t.model, str(t.context), t.curve.name, str(plan), *cells)
        table.add_section()
    console.print(table)
    for curve in dict.fromkeys(t.curve for t in found):
        console.print(f"  {curve.name}: {curve.source}")
    console.print("  diffusion/32: published tokens per forward; none is published for 4, 8 and 16")


def show_crossover(console: Console, found: Sequence[Throughput]) -> None:
    console.print("\nSequences up to which self-speculation beats AR, and the best plan by level")
    lengths = (4, 8, 16, 32)
    columns = ("model", "context", "acceptance", *(f"L {n}" for n in lengths), "best L")
    table = Table(*columns, "best plan by sequences")
    for t in found:
        crossings = [t.crossing(Plan(Mode.SELF_SPECULATION, n)) for n in lengths]
        cells = [_level(c) for c in (*crossings, t.best_crossing)]
        winners = ", ".join(f"{n}: {_short(plan)}" for n, plan in t.winners.items())
        table.add_row(t.model, str(t.context), t.curve.name, *cells, winners)
    table.add_section()
    best = ", ".join(f"{rows}: L {length}" for rows, length in public_best_lengths().items())
    public = ("8b, B200", "", "as published", "", "", "", _level(public_crossing()), "", best)
    table.add_row(*public)
    console.print(table)
    pairs = zip(CONCURRENCY, SELF_SPECULATION_32_TOKENS_PER_S, AR_TOKENS_PER_S, strict=True)
    ratios = ", ".join(f"{rows}: {ours / ar:.2f}" for rows, ours, ar in pairs)
    console.print(f"  public self_speculation/32 over AR by concurrency: {ratios} ({SWEEP_SOURCE})")
    console.print(f"  public best L: {ROUND_SOURCE}")


def _level(crossing: float | None) -> str:
    if crossing is None:
        return "never"
    return "always" if math.isinf(crossing) else f"{crossing:.0f}"


def _short(plan: Plan) -> str:
    names = {Mode.AR: "ar", Mode.SELF_SPECULATION: "ss", Mode.DIFFUSION: "diff"}
    return names[plan.mode] + ("" if plan.mode is Mode.AR else f"/{plan.block_length}")


def show_utilisation(
    console: Console, cells: Sequence[Utilisation], sheet: Peak | None, measured: Peak
) -> None:
    console.print("\nAchieved bandwidth and bf16 FLOP rate of the forwards, graphs on")
    for peak in (sheet, measured):
        if peak is not None:
            console.print(f"  {peak.bandwidth:.0f} GB/s, {peak.flops:.0f} TFLOP/s: {peak.source}")
    if sheet is None:
        console.print("  this device is in no data sheet known here; shares are of measured rates")
    peak = sheet or measured
    columns = ("model", "context", "plan", "sequences", "GB/s", "share", "TFLOP/s", "share")
    table = Table(*columns)
    for cell in cells:
        s, (bandwidth, flops) = cell.step, cell.share_of(peak)
        table.add_row(
            *(s.model, str(s.context), s.plan, str(s.sequences)),
            *(f"{cell.bandwidth:.0f}", f"{bandwidth:.0%}", f"{cell.flops:.1f}", f"{flops:.0%}"),
        )
    console.print(table)


def show_breakdown(console: Console, found: Sequence[Breakdown]) -> None:
    console.print("\nWhere a step goes, ms: wall, and the forwards by the device's clock")
    table = Table(
        *("model", "plan", "sequences", "wall off", "forwards off", "wall on", "forwards on"),
        *("launching", "outside forwards", "outside share"),
    )
    for b in found:
        on, off = b.graphed, b.eager
        times = (off.wall_ms, off.forward_ms, on.wall_ms, on.forward_ms, b.launching, b.outside)
        row = (on.model, on.plan, str(on.sequences), *(f"{t:.2f}" for t in times))
        table.add_row(*row, f"{b.outside / on.wall_ms:.0%}")
    console.print(table)


def show_kernels(console: Console, shares: Sequence[KernelShare]) -> None:
    console.print("\nLongest kernels of a step without graphs")
    table = Table("model", "plan", "sequences", "kernel", "ms/step", "calls/step", "share")
    for model, plan, sequences in dict.fromkeys((k.model, k.plan, k.sequences) for k in shares):
        for k in shares:
            if (k.model, k.plan, k.sequences) == (model, plan, sequences):
                figures = (f"{k.ms_per_step:.3f}", f"{k.calls_per_step:.0f}", f"{k.share:.0%}")
                table.add_row(model, plan, str(sequences), k.kernel[:90], *figures)
        table.add_section()
    console.print(table)

"""How `benchmarks.adaptive` is printed and written."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.adaptive_analysis import (
    ADAPTIVE,
    BASELINE,
    Comparison,
    Measured,
    Window,
    bars,
    changes,
    compare,
)
from benchmarks.adaptive_choice import choices
from benchmarks.adaptive_reaction import Reaction
from benchmarks.common import Spread, print_bars

NAMES = {"self_speculation": "ss", "diffusion": "diff"}


def show(console: Console, measured: Measured) -> None:
    compared = compare(measured.windows)
    console.print(_rates(compared))
    console.print(_ratios(compared))
    console.print(_changes(measured))
    console.print(_choices(measured))
    for line in _losses(measured, compared):
        console.print(line)
    console.print(f"schedule of the replica: {measured.schedule}")
    low, high = measured.crossover
    known = "a crossover of its bands" if measured.crossover_is_known else "no crossover in bands"
    console.print(f"oscillating load: {low} and {high} clients ({known})")
    for name in ("engine", "local", "controller"):
        console.print(_reaction(name, getattr(measured, name)))
    seen = measured.received
    wrong = f"{seen.wrong}" if measured.texts_compared else "uncounted"
    console.print(
        f"{seen.requests} requests, {seen.tokens} tokens received, {seen.failed} failed, "
        f"{wrong} texts not AR's, {measured.lost_tokens:g} tokens generated and not received"
    )
    for broken in (w for w in measured.windows if not w.kept):
        console.print(f"[red]{broken.scenario}, {broken.arm}: not in its plan all the time[/]")
    print_bars(console, bars(measured))


def to_dict(measured: Measured) -> dict[str, Any]:
    compared = compare(measured.windows)
    return {
        "scenarios": {name: row.to_dict() for name, row in compared.items()},
        "adaptive": {name: row.to_dict() for name, row in changes(measured.windows).items()},
        "choices": {name: row.to_dict() for name, row in choices(measured.windows).items()},
        "windows": [_window(window) for window in measured.windows],
        "clients": measured.received.to_dict() | {"lost_tokens": measured.lost_tokens},
        "dwell_s": measured.dwell_s,
        "crossover": {"clients": measured.crossover, "in_bands": measured.crossover_is_known},
        "schedule": measured.schedule,
        "reaction": {
            name: reaction and reaction.to_dict()
            for name in ("engine", "local", "controller")
            for reaction in (getattr(measured, name),)
        },
        "timelines": measured.timelines,
        "bars": [bar.to_dict() for bar in bars(measured)],
    }


def _window(window: Window) -> dict[str, Any]:
    row = {
        "scenario": window.scenario,
        "arm": window.arm,
        "round": window.round,
        "seconds": window.seconds,
        "tokens": window.tokens,
        "switches": window.switches,
        "in_its_plan": window.kept,
    }
    if window.arm == ADAPTIVE:  # what it did, and what it thought as the window ended
        row["plan_seconds"] = dict(window.plan_seconds)
        row["predicted_tokens_per_s"] = dict(window.predicted)
    return row


def short(plan: str) -> str:
    mode, slash, length = plan.partition("/")
    return NAMES.get(mode, mode) + slash + length


def _rates(compared: dict[str, Comparison]) -> Table:
    arms = list(next(iter(compared.values())).rates)
    table = Table("tokens/s", *map(short, arms), title="median (lowest to highest)")
    for name, row in compared.items():
        table.add_row(name, *(_rate(row, arm) for arm in arms))
    return table


def _rate(row: Comparison, arm: str) -> str:
    spread = row.rates[arm]
    text = f"{spread.median:.0f} ({spread.low:.0f}-{spread.high:.0f})"
    return f"[bold]{text}[/]" if arm == row.best else text


def _ratios(compared: dict[str, Comparison]) -> Table:
    others = "to the best of the other rounds"
    table = Table("adaptive against", "best fixed plan", "ratio", others, f"ratio to {BASELINE}")
    for name, row in compared.items():
        ratios = (row.to_best, row.to_best_elsewhere, row.to_baseline)
        table.add_row(name, row.best, *map(_ratio, ratios))
    return table


def _ratio(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.median:.3f} ({spread.low:.3f}-{spread.high:.3f})"


def _losses(measured: Measured, compared: dict[str, Comparison]) -> Iterator[str]:
    """Where adaptive is behind: what it used, what was better, and what it thought of both."""
    for name, used in changes(measured.windows).items():
        row = compared[name]
        if row.to_best.median >= 1.0 or not used.share_in_plan:
            continue
        plans = dict.fromkeys([*list(used.share_in_plan)[:2], row.best])
        thought = ", ".join(
            f"{short(plan)} {used.predicted.get(plan, float('nan')):.0f} predicted, "
            f"{row.rates[plan].median:.0f} seen"
            for plan in plans
            if plan in row.rates
        )
        yield f"{name}: {row.to_best.median:.3f} of {short(row.best)}; {thought}"


def _changes(measured: Measured) -> Table:
    table = Table(ADAPTIVE, "switches", "a minute", "probes", "distrusts", "time in plan")
    for name, row in changes(measured.windows).items():
        shares = (f"{short(p)} {share:.0%}" for p, share in row.share_in_plan.items())
        counts = (f"{row.switches:.0f}", f"{row.per_minute:.1f}", f"{row.probes:.0f}")
        table.add_row(name, *counts, f"{row.distrusts:.0f}", ", ".join(shares))
    return table


def _choices(measured: Measured) -> Table:
    table = Table("adaptive's plans", "over the best plan", "adaptive over them, same rounds")
    for name, row in choices(measured.windows).items():
        error = "" if row.error is None else f" ± {row.error:.3f}"
        table.add_row(name, f"{row.plans_to_best:.3f}", f"{row.to_its_plans:.3f}{error}")
    return table


def _reaction(name: str, reaction: Reaction | None) -> str:
    if reaction is None:
        return f"reaction, {name}: not measured"
    shown = reaction.to_dict()
    if shown["total"] is None:
        why = reaction.why_not or f"the plan never changed in {reaction.unchanged} changes of load"
        return f"reaction, {name}: not measured, {why}"
    unit = reaction.unit
    parts = "; ".join(f"{part} {_summary(row, '')}" for part, row in shown["parts"].items())
    facts = ", ".join(f"{fact} {value:.4f}" for fact, value in reaction.facts.items())
    lines = [f"reaction, {name}: {_summary(shown['total'], unit)}", parts, facts]
    if reaction.unchanged:
        lines.append(f"{reaction.unchanged} changes of load left the plan as it was")
    return "; ".join(line for line in lines if line)


def _summary(row: dict[str, float], unit: str) -> str:
    return f"p50 {row['p50']:.3g} p95 {row['p95']:.3g} {unit}".strip() + f" (n={row['n']})"

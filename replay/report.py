"""Comparisons as tables and bars."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from rich.table import Table

from policies.vocabulary import Mode, Plan
from replay.contenders import BASELINE, parse
from replay.figures import Bar
from replay.outcome import Outcome
from replay.runner import Comparison, mean_regret

JUDGED = "predictive"
MEAN_REGRET, WORST_REGRET, SWITCHES = 0.02, 0.03, 3.0
_SHORT = {Mode.AR: "ar", Mode.SELF_SPECULATION: "ss", Mode.DIFFUSION: "d"}


def table(comparison: Comparison, ttft_s: float, tpot_s: float) -> Table:
    """One trace: a row for each contender."""
    loop = "closed loop" if comparison.is_closed else "open loop"
    cut = f", {comparison.cut} requests cut to the cache" if comparison.cut else ""
    found = Table(
        title=f"{comparison.trace} on {comparison.profile}, {loop}, "
        f"{comparison.duration_s:.0f} s, batch {comparison.oracle.mean_batch:.0f}{cut}",
        title_justify="left",
    )
    found.add_column("policy")
    gain = f"over {short(BASELINE)}"
    for name in ("tokens/s", "regret", gain, "mean s", "TTFT p50", "p95", "TPOT p50", "p95"):
        found.add_column(name, justify="right")
    for name in ("SLO", "switches/min", "probes"):
        found.add_column(name, justify="right")
    found.add_column("time in plan")
    baseline = comparison.find(BASELINE)
    for outcome in (comparison.oracle, *comparison.outcomes):
        over = None if baseline is None else comparison.gain(outcome, baseline)
        found.add_row(
            short(outcome.label),
            f"{outcome.tokens_per_s:.0f}",
            _percent(comparison.regret(outcome)),
            _percent(over, "+"),
            _seconds(outcome.mean_s()),
            *(_seconds(outcome.ttft_s(q)) for q in (0.5, 0.95)),
            *(_milliseconds(outcome.tpot_s(q)) for q in (0.5, 0.95)),
            _percent(outcome.attainment(ttft_s, tpot_s)),
            f"{outcome.switches_per_minute:.1f}",
            _percent(outcome.probe_share),
            _plans(outcome),
        )
    return found


def summaries(comparisons: Sequence[Comparison]) -> Iterator[Table]:
    """Regret by contender and trace, a table for each profile that ran several."""
    for profile in dict.fromkeys(c.profile for c in comparisons):
        found = [c for c in comparisons if c.profile == profile]
        if len(found) > 1:
            yield _summary(profile, found)


def _summary(profile: str, comparisons: Sequence[Comparison]) -> Table:
    found = Table("policy", title=f"regret to the oracle on {profile}", title_justify="left")
    for c in comparisons:
        found.add_column(c.trace.replace("_", "\n", 1), justify="right")
    for name in ("mean", "worst", "switches/min"):
        found.add_column(name, justify="right")
    for outcome in comparisons[0].outcomes:
        rows = [o for c in comparisons if (o := c.find(outcome.label)) is not None]
        mean, worst = mean_regret(comparisons, outcome.label)
        found.add_row(
            short(outcome.label),
            *(_percent(c.regret(o)) for c, o in zip(comparisons, rows, strict=True)),
            _percent(mean),
            _percent(worst),
            f"{sum(o.switches_per_minute for o in rows) / len(rows):.1f}",
        )
    return found


def remarks(comparisons: Sequence[Comparison]) -> list[str]:
    """Where a mode is of no use, in so many words."""
    found = []
    for c in comparisons:
        fixed = [o for o in c.outcomes if parse(o.label).is_fixed]
        if not fixed:
            continue
        best = max(fixed, key=lambda o: -c.regret(o))
        found.append(
            f"{c.trace} on {c.profile}: best fixed plan {best.label}, regret "
            f"{c.regret(best):.1%}; the oracle is in AR {_share(c.oracle, Mode.AR):.1%} of its time"
            f" and in diffusion {_share(c.oracle, Mode.DIFFUSION):.1%}"
        )
    return found


def bars(comparisons: Sequence[Comparison]) -> list[Bar]:
    """What the replay is judged by; closed loop only."""
    judged = [c for c in comparisons if c.is_closed and c.find(JUDGED) is not None]
    if not judged:
        return []
    mean, worst = mean_regret(judged, JUDGED)
    outcomes = [o for c in judged if (o := c.find(JUDGED)) is not None]
    switches = sum(o.switches_per_minute for o in outcomes) / len(outcomes)
    found = [
        Bar("mean regret to the oracle", mean, MEAN_REGRET, at_least=False),
        Bar("worst regret to the oracle", worst, WORST_REGRET, at_least=False),
        Bar("switches a minute, mean", switches, SWITCHES, at_least=False),
    ]
    gains = [
        c.gain(o, b)
        for c in judged
        if (o := c.find(JUDGED)) is not None and (b := c.find(BASELINE)) is not None
    ]
    if gains:
        found.append(Bar(f"mean gain over fixed {BASELINE}", sum(gains) / len(gains), 0.0))
    return found


def figures(comparisons: Sequence[Comparison], ttft_s: float, tpot_s: float) -> dict[str, Any]:
    """Every figure, JSON-safe."""
    return {
        "figures": [c.to_dict(ttft_s, tpot_s) for c in comparisons],
        "bars": [bar.to_dict() for bar in bars(comparisons)],
    }


def short(label: str) -> str:
    """A plan's name in a table."""
    return label.replace("self_speculation", "ss").replace("local=false", "central")


def _share(outcome: Outcome, mode: Mode) -> float:
    return sum(share for plan, share in outcome.time_in_plan.items() if plan.mode is mode)


def _plans(outcome: Outcome) -> str:
    ranked = sorted(outcome.time_in_plan.items(), key=lambda item: -item[1])
    return " ".join(f"{_name(plan)} {share:.0%}" for plan, share in ranked if share >= 0.005)


def _name(plan: Plan) -> str:
    return "ar" if plan.mode is Mode.AR else f"{_SHORT[plan.mode]}{plan.block_length}"


def _percent(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.1%}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e3:.1f} ms"

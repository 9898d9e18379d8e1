"""A picture of comparisons: regret by contender, and the plans they were in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policies.vocabulary import Mode, Plan
from replay.counters import PLANS
from replay.report import short
from replay.runner import Comparison

_COLOURS = {Mode.AR: "Blues", Mode.SELF_SPECULATION: "Greens", Mode.DIFFUSION: "Purples"}
_SHOWN = 0.6  # regret at which bars end


def write(comparisons: Sequence[Comparison], path: Path) -> None:
    """One row of two pictures for each comparison.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot needs matplotlib; install trimode[bench]") from None
    rows = len(comparisons)
    height = 0.3 * max(len(c.outcomes) for c in comparisons) + 1.2
    figure = Figure(figsize=(13, height * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    for (left, right), comparison in zip(axes, comparisons, strict=True):
        _regret(left, comparison)
        _plans(right, comparison)
    handles, labels = axes[0][1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8)
    figure.savefig(path, dpi=130)


def _regret(axes: Any, comparison: Comparison) -> None:
    labels = [short(outcome.label) for outcome in comparison.outcomes]
    regrets = [comparison.regret(outcome) for outcome in comparison.outcomes]
    drawn = axes.barh(labels, [min(r, _SHOWN) * 100 for r in regrets], color="#888888")
    axes.bar_label(drawn, [f"{r:.1%}" for r in regrets], fontsize=7, padding=2)
    axes.invert_yaxis()
    axes.set_xlabel("regret to the oracle, %")
    axes.set_title(f"{comparison.trace} on {comparison.profile}", fontsize=10)


def _plans(axes: Any, comparison: Comparison) -> None:
    outcomes = (comparison.oracle, *comparison.outcomes)
    labels = [short(outcome.label) for outcome in outcomes]
    left = [0.0] * len(outcomes)
    for plan in PLANS:
        shares = [outcome.time_in_plan.get(plan, 0.0) * 100 for outcome in outcomes]
        axes.barh(labels, shares, left=left, color=_colour(plan), label=str(plan))
        left = [before + share for before, share in zip(left, shares, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("decoding time by plan, %")


def _colour(plan: Plan) -> tuple[float, ...]:
    from matplotlib import colormaps

    depth = {1: 0.7, 4: 0.35, 8: 0.5, 16: 0.7, 32: 0.9}[plan.block_length]
    return tuple(colormaps[_COLOURS[plan.mode]](depth))

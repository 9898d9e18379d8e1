"""The plot of `benchmarks.modes`: tokens/s over concurrency, a line per plan, a colour per mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.common import Spread
from policies.vocabulary import Mode, Plan

_COLOURS = {Mode.AR: "#222222", Mode.SELF_SPECULATION: "#2a7fb8", Mode.DIFFUSION: "#d9822b"}
_LINES = {1: "-", 4: ":", 8: "-.", 16: "--", 32: "-"}
_MARKERS = {1: "o", 4: "v", 8: "s", 16: "D", 32: "^"}


def draw(
    path: Path,
    rates: Mapping[tuple[Plan, int], Spread],
    reference: Mapping[int, Spread],
    *,
    title: str,
) -> None:
    """Lines through the medians, a band from the lowest repeat to the highest."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    for plan in dict.fromkeys(plan for plan, _ in rates):
        levels = sorted(level for other, level in rates if other == plan)
        spreads = [rates[plan, level] for level in levels]
        colour = _COLOURS[plan.mode]
        axes.plot(
            levels,
            [s.median for s in spreads],
            linestyle=_LINES[plan.block_length],
            marker=_MARKERS[plan.block_length],
            markersize=4,
            color=colour,
            label=str(plan),
        )
        lows, highs = [s.low for s in spreads], [s.high for s in spreads]
        axes.fill_between(levels, lows, highs, color=colour, alpha=0.08, linewidth=0)
    if reference:
        levels = sorted(reference)
        medians = [reference[level].median for level in levels]
        axes.plot(levels, medians, "x--", color="#b03060", label="Hugging Face generate")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xticks(sorted({level for _, level in rates}))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("concurrent sequences")
    axes.set_ylabel("output tokens/s")
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)

"""The plot of `benchmarks.adaptive`: tokens/s of every arm, and what adaptive did over time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.adaptive_analysis import ADAPTIVE, Measured, compare
from benchmarks.adaptive_report import short

_COLOURS = {"ar": "#222222", "self_speculation": "#2a7fb8", "diffusion": "#d9822b"}
_SHADES = {"": 1.0, "4": 0.35, "8": 0.55, "16": 0.75, "32": 1.0}
_ADAPTIVE = "#b03060"


def draw(path: Path, measured: Measured, facts: Mapping[str, Any]) -> None:
    """Bars by scenario above, a timeline of each moving load below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(measured.timelines)
    figure = pyplot.figure(figsize=(12, 4.5 + 2.2 * rows), layout="constrained")
    grid = figure.add_gridspec(1 + rows, 1, height_ratios=[2.2, *([1.1] * rows)])
    _bars(figure.add_subplot(grid[0]), measured)
    for row, (name, samples) in enumerate(measured.timelines.items(), 1):
        _timeline(figure.add_subplot(grid[row]), name, samples)
    machine = facts["machine"]
    figure.suptitle(
        f"Demo model on {machine['cpu']}, {machine['cores']} cores, commit {facts['commit']}, "
        f"{facts['date'][:10]}",
        fontsize=10,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def _colour(arm: str) -> tuple[str, float]:
    mode, _, length = arm.partition("/")
    return (_ADAPTIVE, 1.0) if arm == ADAPTIVE else (_COLOURS[mode], _SHADES[length])


def _bars(axes: Any, measured: Measured) -> None:
    compared = compare(measured.windows)
    arms = list(next(iter(compared.values())).rates)
    width = 0.85 / len(arms)
    for number, arm in enumerate(arms):
        spreads = [row.rates[arm] for row in compared.values()]
        medians = [s.median for s in spreads]
        colour, alpha = _colour(arm)
        axes.bar(
            [place + (number - (len(arms) - 1) / 2) * width for place in range(len(spreads))],
            medians,
            width,
            yerr=[
                [s.median - s.low for s in spreads],
                [s.high - s.median for s in spreads],
            ],
            error_kw={"linewidth": 0.7},
            color=colour,
            alpha=alpha,
            label=short(arm),
        )
    axes.set_xticks(range(len(compared)), list(compared))
    axes.set_ylabel("tokens/s")
    axes.grid(alpha=0.25, axis="y")
    axes.legend(fontsize=8, ncols=len(arms))
    axes.set_title("median of the rounds, lowest to highest", fontsize=9)


def _timeline(axes: Any, name: str, samples: list[dict[str, Any]]) -> None:
    times = [sample["at_s"] for sample in samples]
    axes.plot(times, [s["tokens_per_s"] for s in samples], color="#555555", linewidth=1.2)
    axes.set_ylabel("tokens/s", fontsize=8)
    axes.set_ylim(bottom=0)
    clients = axes.twinx()
    clients.step(times, [s["clients"] for s in samples], where="post", color=_ADAPTIVE)
    clients.set_ylabel("clients", fontsize=8, color=_ADAPTIVE)
    clients.set_ylim(bottom=0)
    axes.set_title(f"adaptive, {name}", fontsize=9, loc="left")
    since, last = 0.0, ""
    for time_s, sample in zip(times, samples, strict=True):
        colour, alpha = _colour(sample["plan"])
        axes.axvspan(since, time_s, color=colour, alpha=0.25 * alpha, linewidth=0)
        label = f"{short(sample['plan'])} {sample['traffic']}"
        if label != last:
            axes.text(since, 0.02, label, fontsize=6, transform=axes.get_xaxis_transform())
        since, last = time_s, label

"""What a profile means, as tables, a plot and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from policies.acceptance import POSITIONS, Acceptance, Yields
from policies.crossovers import ALWAYS, NEVER, Crossover, best_plan, crossovers, worth
from policies.step_time import Profile
from policies.vocabulary import AR, Mode, Plan, all_plans
from replay.figures import Bar

LENGTHS = (128, 512, 1536)
LONGEST_BLOCK = 32
ALL_AGREE = 1.0


@dataclass(frozen=True, slots=True)
class Assumed:
    """How many tokens steps are taken to yield; no calibration knows."""

    yields: Yields
    words: str

    @classmethod
    def of(cls, chance: float | None) -> Assumed:
        """From the chance that a drafted token is accepted; None is the prior."""
        known = Acceptance() if chance is None else Acceptance(prior=(chance,) * POSITIONS)
        yields = known.yields()
        which = "the prior" if chance is None else f"chance {chance:g} for each drafted token"
        return cls(yields, f"{which}, {yields.blocks[LONGEST_BLOCK]:.1f} tokens a round of 32")


def show(console: Console, profile: Profile, assumed: Assumed, *, diffusion: bool) -> None:
    """The tables of one profile."""
    where = profile.fingerprint
    console.print(
        f"[bold]{profile.name}[/] ({profile.source}, {profile.created or 'no date'}): "
        f"{where.model}, {where.dtype}, {where.engine}. A change of plan costs "
        f"{1e3 * profile.switch_s:.2f} ms; noise {100 * profile.noise:.1f} %. {profile.note}"
    )
    console.print(_step_times(profile))
    console.print(f"Acceptance assumed from here on: {assumed.words}.", soft_wrap=True)
    console.print(_best(profile, assumed, diffusion))
    console.print(_overtaking(profile, assumed))


def compare(console: Console, pairs: Sequence[tuple[Crossover, Crossover]]) -> Bar:
    """What has moved since an earlier calibration."""
    table = Table("up to", "instead of", "tokens each", "was", "is", "moved", "within the noise")
    for was, now in pairs:
        words = "yes" if was.agrees(now) else "[red]no[/]"
        table.add_row(
            str(now.first),
            str(now.second),
            str(now.length),
            _bounded(was),
            _bounded(now),
            _moved(was.at, now.at),
            words,
        )
    console.print(table)
    agreeing = sum(was.agrees(now) for was, now in pairs)
    return Bar("crossovers found again within the noise", agreeing / len(pairs), ALL_AGREE)


def paired(
    earlier: Profile, profile: Profile, assumed: Assumed
) -> list[tuple[Crossover, Crossover]]:
    before = crossovers(earlier, assumed.yields, LENGTHS)
    now = crossovers(profile, assumed.yields, LENGTHS)
    return list(zip(before, now, strict=True))


def to_dict(profile: Profile, assumed: Assumed) -> dict[str, Any]:
    """JSON-safe: the profile and what follows from it."""
    found = crossovers(profile, assumed.yields, LENGTHS)
    return {
        "profile": profile.to_dict(),
        "assumed_acceptance": assumed.words,
        "crossovers": [crossover_dict(crossover) for crossover in found],
    }


def crossover_dict(crossover: Crossover) -> dict[str, Any]:
    fields = asdict(crossover) | {"first": str(crossover.first), "second": str(crossover.second)}
    names = {NEVER: "never", ALWAYS: "always"}
    return {name: names.get(value, value) for name, value in fields.items()}


def plot(path: Path, profile: Profile, assumed: Assumed) -> None:
    """Tokens/s of every plan against sequences, one picture for each context length.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("--plot needs matplotlib; install trimode[bench]") from None
    figure = Figure(figsize=(5 * len(LENGTHS), 4.5), layout="constrained")
    axes = figure.subplots(1, len(LENGTHS), sharey=True)
    at = _levels(profile.max_sequences)
    styles = {Mode.AR: "-", Mode.SELF_SPECULATION: "-", Mode.DIFFUSION: ":"}
    for axis, length in zip(axes, LENGTHS, strict=True):
        for plan in all_plans():
            values = [worth(profile, assumed.yields, plan, n, length) for n in at]
            colour = "black" if plan == AR else f"C{int(math.log2(plan.block_length)) - 2}"
            axis.plot(at, values, styles[plan.mode], color=colour, label=str(plan))
        axis.set(xscale="log", yscale="log", xlabel="sequences", title=f"{length} tokens each")
        axis.set_xticks(at, [str(n) for n in at])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("tokens/s")
    axes[-1].legend(fontsize=8)
    figure.suptitle(f"{profile.name}; acceptance assumed: {assumed.words}", fontsize=10)
    figure.savefig(path, dpi=130)


def _step_times(profile: Profile) -> Table:
    levels = _levels(profile.max_sequences)
    title = f"milliseconds of a step, {LENGTHS[1]} tokens each"
    table = Table("plan", *(f"{n} seq." for n in levels), title=title, title_justify="left")
    for plan in all_plans():
        times = (profile.step_s(plan, n, n * LENGTHS[1]) for n in levels)
        table.add_row(str(plan), *(f"{1e3 * s:.3g}" for s in times))
    return table


def _best(profile: Profile, assumed: Assumed, diffusion: bool) -> Table:
    plans = [plan for plan in all_plans() if diffusion or plan.is_exact]
    title = "best plan and its tokens/s"
    heads = (f"{length} tokens each" for length in LENGTHS)
    table = Table("sequences", *heads, title=title, title_justify="left")
    for n in _levels(profile.max_sequences):
        cells = []
        for length in LENGTHS:
            plan = best_plan(profile, assumed.yields, plans, n, length)
            rate = worth(profile, assumed.yields, plan, n, length)
            cells.append(f"{plan} {rate:.0f}")
        table.add_row(str(n), *cells)
    return table


def _overtaking(profile: Profile, assumed: Assumed) -> Table:
    title = "sequences up to which a plan is worth more than another (bounds: the noise)"
    heads = (f"{length} tokens each" for length in LENGTHS)
    table = Table("plan", "than", *heads, title=title, title_justify="left")
    rows: dict[tuple[Plan, Plan], list[str]] = {}
    for crossover in crossovers(profile, assumed.yields, LENGTHS):
        pair = crossover.first, crossover.second
        rows.setdefault(pair, []).append(_bounded(crossover))
    for (first, second), cells in rows.items():
        table.add_row(str(first), str(second), *cells)
    return table


def _levels(most: int) -> list[int]:
    return sorted({*(2**i for i in range(int(math.log2(most)) + 1)), most})


def _bounded(crossover: Crossover) -> str:
    at, low, high = map(_words, (crossover.at, crossover.low, crossover.high))
    return at if low == at == high else f"{at} ({low} to {high})"


def _words(at: float) -> str:
    return {NEVER: "never", ALWAYS: "always"}.get(at, f"{at:.1f}")


def _moved(was: float, now: float) -> str:
    if was == now:
        return "-"
    if math.isinf(was) or math.isinf(now) or not was or not now:
        return f"{_words(was)} to {_words(now)}"
    return f"{100 * (now / was - 1):+.0f} %"

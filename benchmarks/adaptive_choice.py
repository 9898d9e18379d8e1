"""What a fixed load says of the policy, and what of the machine. Pure.

Adaptive's tokens/s over the best plan's are made of two things, which its time in each plan tells
apart: whether the plans that it was in are good ones, and whether it made of them what they make by
themselves. The latter is 1 but for what changing, probing and choosing cost, and for noise; windows
of two seconds scatter more on a shared machine than bars allow for.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from benchmarks.adaptive_analysis import ADAPTIVE, Window

Rounds = dict[str, dict[int, Window]]
"""Windows of one load, by arm and round."""


@dataclass(frozen=True, slots=True)
class Choice:
    """At one load. `plans_to_best`: what the plans that adaptive was in make, by the time in each,
    over the best plan, all rounds together. `to_its_plans`: its tokens/s over theirs in the same
    round, geometric mean; `error` is that mean's standard error, None of a single round."""

    plans_to_best: float
    to_its_plans: float
    error: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choices(windows: Iterable[Window]) -> dict[str, Choice]:
    """By load, of those that stay the same."""
    loads: dict[str, Rounds] = {}
    for window in windows:
        if not window.moves:
            arms = loads.setdefault(window.scenario, {})
            arms.setdefault(window.arm, {})[window.round] = window
    found = {name: _choice(arms) for name, arms in loads.items()}
    return {name: choice for name, choice in found.items() if choice is not None}


def _choice(arms: Rounds) -> Choice | None:
    """None where time in plans is not known, or no fixed plan ran beside it."""
    fixed = {arm: rounds for arm, rounds in arms.items() if arm != ADAPTIVE}
    rates = {arm: mean(window.rate for window in rounds.values()) for arm, rounds in fixed.items()}
    ratios: list[float] = []
    mixed = total_s = 0.0
    for number, window in arms.get(ADAPTIVE, {}).items():
        spent = {p: s for p, s in window.plan_seconds.items() if number in fixed.get(p, {})}
        seconds = sum(spent.values())
        if not seconds:
            continue
        beside = sum(s * fixed[plan][number].rate for plan, s in spent.items()) / seconds
        ratios.append(math.log(window.rate / beside))
        mixed += sum(s * rates[plan] for plan, s in spent.items())
        total_s += seconds
    if not ratios:
        return None
    return Choice(mixed / total_s / max(rates.values()), math.exp(mean(ratios)), _error(ratios))


def _error(ratios: Sequence[float]) -> float | None:
    return stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else None

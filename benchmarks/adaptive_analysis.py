"""What the windows of `benchmarks.adaptive` come to: rates, paired ratios, bars. Pure.

Arms are compared round by round: the ratio of a round is adaptive's tokens/s over that of another
arm in the same round, minutes apart at most, and the median over rounds is what counts. *Best
fixed* is the fixed plan with the highest median in that scenario, chosen after the fact: of several
plans that are alike the luckiest, so the ratio leans against adaptive by about the noise. *The best
of the other rounds* is chosen without the round that is compared, which has no such lean; bars are
held to the former.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.adaptive_load import Received
from benchmarks.adaptive_reaction import Reaction
from benchmarks.adaptive_scenarios import LEVELS, OSCILLATION, fixed_name
from benchmarks.common import Bar, Spread
from policies.vocabulary import Mode, Plan

ADAPTIVE = "adaptive"
BASELINE = str(Plan(Mode.SELF_SPECULATION, 8))
MIXED_LOAD = "mixed load"
KEPT = 0.99  # of the decoding time that a pinned window must spend in its plan; the rest is probes


@dataclass(frozen=True, slots=True)
class Window:
    """One arm in one scenario in one round, after it had settled. Figures are the replica's own."""

    scenario: str
    arm: str
    round: int
    seconds: float
    tokens: float
    switches: float = 0.0
    probes: float = 0.0
    distrusts: float = 0.0
    plan_seconds: Mapping[str, float] = field(default_factory=dict)
    """Time decoding, by plan."""
    predicted: Mapping[str, float] = field(default_factory=dict)
    """The governor's own estimate of every plan's tokens/s, at the load of the last step."""
    moves: bool = True

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def kept(self) -> bool:
        """Whether a fixed arm was what it says."""
        total = sum(self.plan_seconds.values())
        return self.arm == ADAPTIVE or self.plan_seconds.get(self.arm, 0.0) >= KEPT * total


def arms_in_turn(arms: Sequence[str], turn: int) -> list[str]:
    """The order of one round. Over as many rounds as there are arms each stands once in every place
    and, of an even number, once after every other; of an odd one over twice as many, twice: what an
    arm leaves behind, warm or busy, meets all alike (Williams, 1949)."""
    count = len(arms)
    places = [(i + 1) // 2 if i % 2 else -(i // 2) for i in range(count)]
    order = [arms[(turn + place) % count] for place in places]
    return order if turn // count % 2 == 0 else order[::-1]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One scenario: tokens/s of every arm, and adaptive against the others, paired by round."""

    scenario: str
    rates: Mapping[str, Spread]
    best: str
    to_best: Spread
    to_best_elsewhere: Spread | None
    to_baseline: Spread | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "tokens_per_s": {arm: spread.to_dict() for arm, spread in self.rates.items()},
            "best_fixed": self.best,
            "adaptive_to_best_fixed": self.to_best.to_dict(),
            "adaptive_to_best_of_other_rounds": self.to_best_elsewhere
            and self.to_best_elsewhere.to_dict(),
            "adaptive_to_baseline": self.to_baseline and self.to_baseline.to_dict(),
        }


def compare(windows: Iterable[Window]) -> dict[str, Comparison]:
    """By scenario, the mixed load last."""
    rates: dict[str, dict[str, dict[int, float]]] = {}
    moving: dict[str, dict[int, list[Window]]] = {}
    for window in windows:
        by_arm = rates.setdefault(window.scenario, {})
        by_arm.setdefault(window.arm, {})[window.round] = window.rate
        if window.moves:
            moving.setdefault(window.arm, {}).setdefault(window.round, []).append(window)
    if moving:
        rates[MIXED_LOAD] = {
            arm: {number: together(of) for number, of in rounds.items()}
            for arm, rounds in moving.items()
        }
    return {name: _compared(name, by_arm) for name, by_arm in rates.items()}


def together(windows: Sequence[Window]) -> float:
    """Tokens/s of several windows: their tokens over their time."""
    return sum(w.tokens for w in windows) / sum(w.seconds for w in windows)


def _compared(scenario: str, by_arm: Mapping[str, Mapping[int, float]]) -> Comparison:
    # In tables and plots by block length, in whichever order they ran.
    fixed = sorted((arm for arm in by_arm if arm != ADAPTIVE), key=Plan.parse)
    rates = {arm: Spread.of(by_arm[arm].values()) for arm in (*fixed, ADAPTIVE)}
    best = max(fixed, key=lambda arm: rates[arm].median)
    to_baseline = None
    if BASELINE in by_arm:
        to_baseline = paired(by_arm[ADAPTIVE], by_arm[BASELINE])
    to_best = paired(by_arm[ADAPTIVE], by_arm[best])
    return Comparison(scenario, rates, best, to_best, _to_best_elsewhere(by_arm), to_baseline)


def _to_best_elsewhere(by_arm: Mapping[str, Mapping[int, float]]) -> Spread | None:
    """None with a single round, which has no others."""
    ratios = []
    for number, rate in by_arm[ADAPTIVE].items():
        elsewhere = {
            arm: [other for n, other in rates.items() if n != number]
            for arm, rates in by_arm.items()
            if arm != ADAPTIVE and number in rates
        }
        known = {arm: median(rates) for arm, rates in elsewhere.items() if rates}
        if known:
            ratios.append(rate / by_arm[max(known, key=known.__getitem__)][number])
    return Spread.of(ratios) if ratios else None


def paired(rates: Mapping[int, float], others: Mapping[int, float]) -> Spread:
    """Ratios by round, of the rounds that both have."""
    return Spread.of(rates[number] / others[number] for number in rates if number in others)


@dataclass(frozen=True, slots=True)
class Changes:
    """What adaptive did in one scenario, over all rounds."""

    seconds: float
    switches: float
    probes: float
    distrusts: float
    share_in_plan: Mapping[str, float]
    predicted: Mapping[str, float]
    """Median over rounds of the governor's estimates, as the windows ended."""

    @property
    def per_minute(self) -> float:
        return 60.0 * self.switches / self.seconds

    def to_dict(self) -> dict[str, Any]:
        return {
            "switches": self.switches,
            "switches_per_minute": self.per_minute,
            "probes": self.probes,
            "distrusts": self.distrusts,
            "share_in_plan": dict(self.share_in_plan),
            "predicted_tokens_per_s": dict(self.predicted),
        }


def changes(windows: Iterable[Window]) -> dict[str, Changes]:
    """By scenario."""
    found: dict[str, list[Window]] = {}
    for window in windows:
        if window.arm == ADAPTIVE:
            found.setdefault(window.scenario, []).append(window)
    return {name: _changes(of) for name, of in found.items()}


def _changes(windows: Sequence[Window]) -> Changes:
    by_plan: dict[str, float] = {}
    for window in windows:
        for plan, seconds in window.plan_seconds.items():
            by_plan[plan] = by_plan.get(plan, 0.0) + seconds
    total = sum(by_plan.values()) or 1.0
    ordered = sorted(by_plan, key=by_plan.__getitem__, reverse=True)
    return Changes(
        seconds=sum(w.seconds for w in windows),
        switches=sum(w.switches for w in windows),
        probes=sum(w.probes for w in windows),
        distrusts=sum(w.distrusts for w in windows),
        share_in_plan={plan: by_plan[plan] / total for plan in ordered},
        predicted=_medians([window.predicted for window in windows]),
    )


def _medians(estimates: Sequence[Mapping[str, float]]) -> dict[str, float]:
    plans = dict.fromkeys(plan for by_plan in estimates for plan in by_plan)
    return {plan: median(of[plan] for of in estimates if plan in of) for plan in plans}


@dataclass(slots=True)
class Measured:
    """Everything that one run saw.

    `lost_tokens` is what the replica generated and no client got, `dwell_s` the shortest stay in a
    plan that the schedule asks of the governor. `texts_compared`: diffusion's are not AR's.
    """

    windows: list[Window] = field(default_factory=list)
    received: Received = field(default_factory=Received)
    lost_tokens: float = 0.0
    texts_compared: bool = True
    dwell_s: float = 0.0
    crossover: tuple[int, int] = (0, 0)
    crossover_is_known: bool = False
    schedule: str = ""
    engine: Reaction | None = None
    local: Reaction | None = None
    controller: Reaction | None = None
    timelines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)


def bars(measured: Measured) -> list[Bar]:
    """What must be seen; a bar whose figure this run lacks says so."""
    return [
        *_throughput_bars(compare(measured.windows)),
        Bar("switches per dwell, oscillating load", _per_dwell(measured), 1.0, at_least=False),
        *_loss_bars(measured),
        Bar("engine: blocks to react, p95", _p95(measured.engine), 1.0, at_least=False),
        Bar("controller: seconds to react, p95", _p95(measured.controller), 5.0, at_least=False),
    ]


def _loss_bars(measured: Measured) -> list[Bar]:
    seen, values = measured.received, dict[str, float | None]()
    values["failed requests"] = seen.failed
    values["texts that differ from AR's"] = seen.wrong if measured.texts_compared else None
    values["tokens generated that no client got"] = abs(measured.lost_tokens)
    return [
        Bar(name, value if seen.requests else None, 0, at_least=False)
        for name, value in values.items()
    ]


def _throughput_bars(compared: Mapping[str, Comparison]) -> list[Bar]:
    def ratio(name: str) -> float | None:
        return compared[name].to_best.median if name in compared else None

    levels = [fixed_name(level) for level in LEVELS]
    moving = [name for name in compared if name not in levels and name != MIXED_LOAD]
    return [
        *(Bar(f"adaptive / best fixed plan, {name}", ratio(name), 0.98) for name in levels),
        *(Bar(f"adaptive / best fixed plan, {name}", ratio(name), 0.97) for name in moving),
        Bar("adaptive / best single fixed plan, mixed load", ratio(MIXED_LOAD), 1.10),
    ]


def _per_dwell(measured: Measured) -> float | None:
    seen = changes(measured.windows).get(OSCILLATION)
    if seen is None or not measured.dwell_s:
        return None
    return seen.switches / (seen.seconds / measured.dwell_s)


def _p95(reaction: Reaction | None) -> float | None:
    shown = None if reaction is None else reaction.to_dict()["total"]
    return None if shown is None else float(shown["p95"])

"""Traces, a profile and contenders in; outcomes against the oracle's out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from policies.step_time import Profile
from policies.vocabulary import SAFE_PLAN, Plan, Quality, all_plans
from replay import load, trace
from replay.contenders import ORACLE, Contender, parse
from replay.outcome import Outcome
from replay.simulator import Setting, run
from replay.trace import Trace
from replay.traffic import Traffic
from replay.world import make_world

LONGEST_CLOSED_S = 2400.0  # a longer trace is compressed to this in closed loop
QUICK_S = 300.0
KV_PER_REQUEST = 0.25  # of a replica's cache, at most; longer requests are cut


@dataclass(frozen=True, slots=True)
class Options:
    """How to replay. `speed` None: as recorded, in closed loop compressed to 40 minutes."""

    replicas: int = 1
    is_closed: bool = False
    speed: float | None = None
    is_quick: bool = False
    prefills: bool = True
    quality: Quality = Quality.EXACT
    wrong_by: float = 1.0
    as_profiled: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"{self.replicas} replicas cannot serve; give 1 or more")

    @property
    def allowed(self) -> frozenset[Plan]:
        return frozenset(p for p in all_plans() if p.serves(self.quality) or p == SAFE_PLAN)


@dataclass(frozen=True, slots=True)
class Comparison:
    """One trace on one profile. `outcomes` are in the order asked for, `oracle` besides."""

    trace: str
    profile: str
    is_closed: bool
    duration_s: float
    cut: int
    """Requests that were longer than a replica's cache allows."""
    oracle: Outcome
    outcomes: tuple[Outcome, ...]

    def regret(self, outcome: Outcome) -> float:
        """Share of the oracle's throughput that is missing; in open loop, where the throughput is
        given, share by which a request takes longer."""
        if self.is_closed:
            return 1.0 - outcome.tokens_per_s / self.oracle.tokens_per_s
        mean_s, best_s = outcome.mean_s(), self.oracle.mean_s()
        return float("inf") if not mean_s or not best_s else mean_s / best_s - 1.0

    def gain(self, outcome: Outcome, over: Outcome) -> float:
        """Share by which an outcome is better than another."""
        if self.is_closed:
            return outcome.tokens_per_s / over.tokens_per_s - 1.0
        return (1.0 + self.regret(over)) / (1.0 + self.regret(outcome)) - 1.0

    def find(self, label: str) -> Outcome | None:
        return next((outcome for outcome in self.outcomes if outcome.label == label), None)

    def to_dict(self, ttft_s: float, tpot_s: float) -> dict[str, Any]:
        rows = []
        for outcome in (self.oracle, *self.outcomes):
            row = outcome.to_dict()
            row["regret"] = self.regret(outcome)
            row["slo_attainment"] = outcome.attainment(ttft_s, tpot_s)
            row["gain_over"] = {other.label: self.gain(outcome, other) for other in self.outcomes}
            rows.append(row)
        return {
            "trace": self.trace,
            "profile": self.profile,
            "loop": "closed" if self.is_closed else "open",
            "duration_s": self.duration_s,
            "requests_cut": self.cut,
            "outcomes": rows,
        }


def compare(
    source: str,
    profile: Profile,
    contenders: Sequence[str],
    options: Options,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Comparison:
    """Every contender, and the oracle, through one trace."""
    setting, cut = make_setting(trace.read(source, options.seed), profile, options)

    def outcome_of(contender: Contender) -> Outcome:
        outcome = run(setting, contender)
        on_outcome(outcome)
        return outcome

    oracle = outcome_of(parse(ORACLE))
    named = [text for text in contenders if text != ORACLE]
    return Comparison(
        setting.load.trace.name,
        profile.name,
        options.is_closed,
        setting.load.duration_s,
        cut,
        oracle,
        tuple(outcome_of(parse(text)) for text in named),
    )


def make_setting(source: Trace, profile: Profile, options: Options) -> tuple[Setting, int]:
    """The setting, and how many requests had to be cut."""
    speed = options.speed or 1.0
    if options.is_closed and options.speed is None:
        speed = max(1.0, source.duration_s / LONGEST_CLOSED_S)
    timed, cut = source.faster(speed).fitting(int(KV_PER_REQUEST * profile.kv_tokens))
    plans = tuple(p for p in all_plans() if p in options.allowed)
    traffic: load.OpenLoop | load.ClosedLoop
    if options.is_closed:
        traffic = load.closed(timed, profile, plans, options.replicas)
        if options.is_quick:
            traffic = traffic.middle(QUICK_S)
    else:
        if options.is_quick and timed.duration_s > QUICK_S:
            start_s = (timed.duration_s - QUICK_S) / 2
            timed = timed.between(start_s, start_s + QUICK_S)
        traffic = load.OpenLoop(timed)
    setting = Setting(
        load=traffic,
        profile=profile,
        world=make_world(profile, options.seed, options.wrong_by, as_profiled=options.as_profiled),
        traffic=Traffic(options.seed),
        replicas=options.replicas,
        prefills=options.prefills,
        allowed=options.allowed,
        seed=options.seed,
    )
    return setting, cut


def over_traces(
    sources: Sequence[str],
    profiles: Sequence[Profile],
    contenders: Sequence[str],
    options: Options,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Iterator[Comparison]:
    """Every trace on every profile."""
    for profile in profiles:
        for source in sources:
            yield compare(source, profile, contenders, options, on_outcome)


def mean_regret(comparisons: Sequence[Comparison], label: str) -> tuple[float, float]:
    """Mean and worst over comparisons, of the contender with this label."""
    regrets = [c.regret(o) for c in comparisons if (o := c.find(label)) is not None]
    return float(np.mean(regrets)), max(regrets)

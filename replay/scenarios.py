"""Tests of adaptation: what a policy does when the load, the traffic or the profile is suddenly not
what it was, judged by the regret of each choice at the moment it was made.

    load-steps        requests in flight jump; requests stay alike
    acceptance-steps  hard requests follow easy ones; as many stay in flight
    wrong-profile     every plan is up to `--wrong-by` (2) times as slow or fast as profiled
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from policies.step_time import Profile
from replay import load, trace
from replay.audit import Audited
from replay.contenders import parse
from replay.counters import quantile
from replay.figures import Bar
from replay.report import JUDGED, short
from replay.runner import KV_PER_REQUEST, Options, make_setting
from replay.simulator import Setting, run
from replay.traffic import Traffic

SOURCE = "azure23_conv"
LEVELS = (4, 128, 4, 48, 160, 12, 96)  # of 256 sequences
STEADY_LEVELS = (24, 64)
REGIMES = ("mid", "low", "high", "mid", "low", "mid", "high")
SEGMENT_S = 60.0
SEEDS, QUICK_SEEDS = 4, 1
ADAPTED, RECOVERED = 0.07, 0.05  # regret
SHORT_S, LONG_S = 0.5, 3.0  # regret must be low over both to count as adapted
GRID_S = 0.05
WINDOW_S = 10.0
WRONG_S = 120.0


@dataclass(frozen=True, slots=True)
class Reaction:
    """Of one contender on one profile: seconds to adapt, once for each step."""

    label: str
    profile: str
    seconds: Sequence[float]
    regret: float
    """Over the whole run."""
    switches_per_minute: float
    course: Sequence[float] = ()
    """Mean regret in every 10 s from the start."""

    @property
    def median_s(self) -> float:
        return quantile(self.seconds, 0.5) or 0.0

    @property
    def p95_s(self) -> float:
        return quantile(self.seconds, 0.95) or 0.0


@dataclass(frozen=True, slots=True)
class Found:
    """What a scenario came to. `limit_s` bounds the 95th percentile of the seconds to adapt."""

    name: str
    limit_s: float
    reactions: Sequence[Reaction]

    def table(self) -> Table:
        found = Table("policy", "profile", title=self.name, title_justify="left")
        for column in ("median s", "p95 s", "worst s", "regret", "switches/min"):
            found.add_column(column, justify="right")
        if any(r.course for r in self.reactions):
            found.add_column("regret in each 10 s, %")
        for r in self.reactions:
            course = [" ".join(f"{100 * regret:.0f}" for regret in r.course)] if r.course else []
            found.add_row(
                short(r.label),
                r.profile,
                f"{r.median_s:.2f}",
                f"{r.p95_s:.2f}",
                f"{max(r.seconds):.2f}",
                f"{r.regret:.1%}",
                f"{r.switches_per_minute:.1f}",
                *course,
            )
        return found

    def bars(self) -> list[Bar]:
        return [
            Bar(f"{self.name}, {r.profile}: p95 s to adapt", r.p95_s, self.limit_s, at_least=False)
            for r in self.reactions
            if r.label == JUDGED
        ]

    def to_dict(self) -> dict[str, Any]:
        figures = [
            {
                "policy": r.label,
                "profile": r.profile,
                "seconds": list(r.seconds),
                "median_s": r.median_s,
                "p95_s": r.p95_s,
                "regret": r.regret,
                "switches_per_minute": r.switches_per_minute,
                "course": list(r.course),
            }
            for r in self.reactions
        ]
        return {
            "scenario": self.name,
            "figures": figures,
            "bars": [bar.to_dict() for bar in self.bars()],
        }


def load_steps(profiles: Sequence[Profile], labels: Sequence[str], options: Options) -> Found:
    def settings(profile: Profile, seed: int) -> Iterator[Setting]:
        base = _base(profile, options, seed)
        levels = [_scaled(level, profile) for level in LEVELS]
        steps = load.steps_of_load(base.load.trace, levels, SEGMENT_S, options.replicas)
        yield replace(base, load=steps, traffic=Traffic(seed, ("mid",)))

    reactions = _reactions(profiles, labels, options, settings, _adapted)
    return Found("load-steps", 0.5, reactions)


def acceptance_steps(profiles: Sequence[Profile], labels: Sequence[str], options: Options) -> Found:
    def settings(profile: Profile, seed: int) -> Iterator[Setting]:
        base = _base(profile, options, seed)
        for level in STEADY_LEVELS:
            levels = [_scaled(level, profile)] * len(REGIMES)
            steps = load.steps_of_load(base.load.trace, levels, SEGMENT_S, options.replicas)
            yield replace(base, load=steps, traffic=Traffic(seed, REGIMES, SEGMENT_S))

    reactions = _reactions(profiles, labels, options, settings, _adapted)
    return Found("acceptance-steps", 10.0, reactions)


def wrong_profile(profiles: Sequence[Profile], labels: Sequence[str], options: Options) -> Found:
    wrong = replace(options, wrong_by=max(2.0, options.wrong_by))

    def settings(profile: Profile, seed: int) -> Iterator[Setting]:
        base = _base(profile, wrong, seed)
        assert isinstance(base.load, load.ClosedLoop)
        yield replace(base, load=base.load.middle(WRONG_S))

    reactions = _reactions(profiles, labels, options, settings, _recovered)
    return Found("wrong-profile", 60.0, reactions)


SCENARIOS: Mapping[str, Callable[[Sequence[Profile], Sequence[str], Options], Found]] = {
    "load-steps": load_steps,
    "acceptance-steps": acceptance_steps,
    "wrong-profile": wrong_profile,
}


def _base(profile: Profile, options: Options, seed: int) -> Setting:
    lengths, _ = trace.read(SOURCE).fitting(int(KV_PER_REQUEST * profile.kv_tokens))
    closed = replace(options, is_closed=True, prefills=False, is_quick=False, seed=seed)
    setting, _ = make_setting(lengths, profile, closed)
    return replace(setting, is_audited=True)


def _scaled(level: int, profile: Profile) -> int:
    return max(1, round(level * profile.max_sequences / 256))


def _reactions(
    profiles: Sequence[Profile],
    labels: Sequence[str],
    options: Options,
    settings: Callable[[Profile, int], Iterator[Setting]],
    seconds_of: Callable[[Audited, float], Sequence[float]],
) -> list[Reaction]:
    seeds = range(options.seed, options.seed + (QUICK_SEEDS if options.is_quick else SEEDS))
    found = []
    for profile in profiles:
        cases = [setting for seed in seeds for setting in settings(profile, seed)]
        for label in labels:
            outcomes = [(run(case, parse(label)), case.load.duration_s) for case in cases]
            audits = [(a, s) for o, s in outcomes for a in o.audits if a.times]
            found.append(
                Reaction(
                    label,
                    profile.name,
                    [s for audit, end_s in audits for s in seconds_of(audit, end_s)],
                    sum(audit.mean(0.0, end_s) for audit, end_s in audits) / len(audits),
                    sum(o.switches_per_minute for o, _ in outcomes) / len(outcomes),
                    _course(audits) if seconds_of is _recovered else (),
                )
            )
    return found


def _adapted(audit: Audited, end_s: float) -> list[float]:
    """Seconds after each step until choices are good and stay so; the whole segment if never."""
    return [
        _until(audit, start, ADAPTED)
        for start in (SEGMENT_S * i for i in range(1, round(end_s / SEGMENT_S)))
    ]


def _until(audit: Audited, start_s: float, limit: float) -> float:
    for i in range(int((SEGMENT_S - LONG_S) / GRID_S)):
        at = start_s + i * GRID_S
        if audit.mean(at, at + SHORT_S) <= limit and audit.mean(at, at + LONG_S) <= limit:
            return i * GRID_S
    return SEGMENT_S


def _recovered(audit: Audited, end_s: float) -> list[float]:
    """Seconds after the start until ten seconds have little regret."""
    for i in range(int(end_s - WINDOW_S)):
        if audit.mean(float(i), i + WINDOW_S) <= RECOVERED:
            return [float(i)]
    return [end_s]


def _course(audits: Sequence[tuple[Audited, float]]) -> list[float]:
    windows = int(min(end_s for _, end_s in audits) / WINDOW_S)
    return [
        sum(audit.mean(i * WINDOW_S, (i + 1) * WINDOW_S) for audit, _ in audits) / len(audits)
        for i in range(windows)
    ]

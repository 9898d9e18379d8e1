"""How each signal is read off the exported metrics, said once for both sources.

A measure has two faces: `promql`, for a Prometheus server, and `value`, for pages that the
controller scraped itself. Both compute the same thing over the same window, so it does not matter
to a policy where its signals come from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from replicas.catalogue import BY_NAME


class Scraped(Protocol):
    """What a window of scraped pages answers about one replica."""

    def latest(self, name: str) -> Mapping[tuple[str, ...], float]:
        """Newest value of every series of a metric."""

    def increase(self, name: str) -> Mapping[tuple[str, ...], float]:
        """Growth of every series of a counter over the window; empty without two pages."""

    @property
    def seconds(self) -> float:
        """Length of the window."""


@dataclass(frozen=True, slots=True)
class Gauge:
    """The value as it is."""

    metric: str

    def promql(self, window_s: float) -> str:
        return f"max by (replica) ({_full(self.metric)})"

    def value(self, scraped: Scraped) -> float | None:
        values = scraped.latest(self.metric).values()
        return max(values, default=None)


@dataclass(frozen=True, slots=True)
class Rate:
    """Growth of a counter per second."""

    metric: str

    def promql(self, window_s: float) -> str:
        return f"sum by (replica) ({_rate(self.metric, window_s)})"

    def value(self, scraped: Scraped) -> float | None:
        grown = scraped.increase(self.metric)
        return sum(grown.values()) / scraped.seconds if grown and scraped.seconds > 0 else None


@dataclass(frozen=True, slots=True)
class Quantile:
    """A quantile of a histogram over the window, interpolated as `histogram_quantile` does."""

    q: float
    metric: str

    def promql(self, window_s: float) -> str:
        buckets = _rate(f"{self.metric}_bucket", window_s)
        return f"histogram_quantile({self.q:g}, sum by (replica, le) ({buckets}))"

    def value(self, scraped: Scraped) -> float | None:
        buckets: dict[float, float] = {}
        for labels, grown in scraped.increase(f"{self.metric}_bucket").items():
            bound = float(labels[-1])
            buckets[bound] = buckets.get(bound, 0.0) + grown
        return histogram_quantile(self.q, buckets)


@dataclass(frozen=True, slots=True)
class PlanRatio:
    """Growth of counters over growth of others, by plan: products of both."""

    over: tuple[str, ...]
    under: tuple[str, ...]

    def promql(self, window_s: float) -> str:
        def product(names: tuple[str, ...]) -> str:
            return " * ".join(f"sum by (replica, plan) ({_rate(name, window_s)})" for name in names)

        return f"({product(self.over)}) / ({product(self.under)})"

    def values(self, scraped: Scraped) -> dict[str, float]:
        """By plan; a plan without growth below the line is absent."""
        over = [_by_plan(scraped.increase(name)) for name in self.over]
        under = [_by_plan(scraped.increase(name)) for name in self.under]
        values = {}
        for plan in set.intersection(*map(set, (*over, *under))):
            below = math.prod(grown[plan] for grown in under)
            if below > 0:
                values[plan] = math.prod(grown[plan] for grown in over) / below
        return values


SIGNALS: Mapping[str, Gauge | Rate | Quantile] = {
    "decoding": Gauge("decoding_sequences"),
    "prefilling": Gauge("prefilling_sequences"),
    "waiting": Gauge("waiting_sequences"),
    "context_tokens": Gauge("context_tokens"),
    "kv_use": Gauge("kv_use_ratio"),
    "tokens_per_s": Rate("generated_tokens_total"),
    "ttft_p50_s": Quantile(0.5, "time_to_first_token_seconds"),
    "ttft_p95_s": Quantile(0.95, "time_to_first_token_seconds"),
    "tpot_p50_s": Quantile(0.5, "time_per_output_token_seconds"),
    "tpot_p95_s": Quantile(0.95, "time_per_output_token_seconds"),
}
"""By the name of the field of `Signals`."""

PLAN_SIGNALS: Mapping[str, PlanRatio] = {
    # Tokens per step and sequence, over forwards per step.
    "tokens_per_forward": PlanRatio(
        ("plan_committed_tokens_total", "plan_steps_total"),
        ("plan_sequence_steps_total", "plan_forwards_total"),
    ),
    "accepted_length": PlanRatio(("plan_accepted_tokens_total",), ("plan_rounds_total",)),
    "step_s": PlanRatio(("plan_seconds_total",), ("plan_steps_total",)),
    "sequences": PlanRatio(("plan_sequence_steps_total",), ("plan_steps_total",)),
}
"""By the name of the field of `PlanSignals`."""

POSITIONS = "plan_accepted_at_position_total"
ROUNDS = "plan_rounds_total"
PLAN_IN_USE = "plan_active"
HEARTBEAT = "engine_up"
"""Its age is the age of everything read from the same page."""


def acceptance_promql(window_s: float) -> str:
    """Share of rounds in which each draft position was accepted, by plan and position."""
    accepted = f"sum by (replica, plan, position) ({_rate(POSITIONS, window_s)})"
    rounds = f"sum by (replica, plan) ({_rate(ROUNDS, window_s)})"
    return f"{accepted} / on (replica, plan) group_left () {rounds}"


def acceptance(scraped: Scraped) -> dict[str, dict[int, float]]:
    """What `acceptance_promql` computes, by plan and position."""
    rounds = _by_plan(scraped.increase(ROUNDS))
    shares: dict[str, dict[int, float]] = {}
    for (_, plan, position), grown in scraped.increase(POSITIONS).items():
        if rounds.get(plan, 0.0) > 0:
            shares.setdefault(plan, {})[int(position)] = grown / rounds[plan]
    return shares


def plan_in_use_promql() -> str:
    return f"max by (replica, plan) ({_full(PLAN_IN_USE)}) == 1"


def age_promql() -> str:
    return f"time() - max by (replica) (timestamp({_full(HEARTBEAT)}))"


def metrics_read() -> frozenset[str]:
    """Short names of every series that the signals need, histogram buckets included."""
    names = {POSITIONS, ROUNDS, PLAN_IN_USE, HEARTBEAT}
    for measure in SIGNALS.values():
        names.add(measure.metric + ("_bucket" if isinstance(measure, Quantile) else ""))
    for ratio in PLAN_SIGNALS.values():
        names.update(ratio.over, ratio.under)
    return frozenset(names)


def histogram_quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """The quantile of cumulative bucket counts by upper bound, as PromQL has it; None if empty."""
    bounds = sorted(buckets)
    if len(bounds) < 2 or not math.isinf(bounds[-1]):
        return None
    counts: list[float] = []
    for bound in bounds:  # scraped in two halves, a bucket may lag behind a smaller one
        counts.append(max(buckets[bound], counts[-1] if counts else 0.0))
    rank = q * counts[-1]
    if not counts[-1] > 0:
        return None
    index = next(i for i, count in enumerate(counts) if count >= rank)
    if index == len(bounds) - 1:
        return bounds[-2]
    below, start = (counts[index - 1], bounds[index - 1]) if index else (0.0, 0.0)
    if counts[index] == below or bounds[index] <= 0:
        return bounds[index]
    return start + (bounds[index] - start) * (rank - below) / (counts[index] - below)


def _by_plan(grown: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    return {labels[1]: value for labels, value in grown.items()}  # labels: mode, plan


def _full(name: str) -> str:
    base = name.removesuffix("_bucket")
    return BY_NAME[base].full_name + name.removeprefix(base)


def _rate(name: str, window_s: float) -> str:
    return f"rate({_full(name)}[{max(1, round(window_s))}s])"

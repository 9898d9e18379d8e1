"""What was last known of one replica, and since when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator import measures
from policies.decisions import MISSING, PlanSignals, Reading, Signals
from policies.vocabulary import Plan

Row = tuple[Mapping[str, str], float]
ACCEPTANCE = "acceptance"
PLAN = "plan"
_NO_PLAN = ""


class SignalLedger:
    """Values by signal and plan, each with the time it was measured.

    A signal that was read and is absent is missing at once; one that could not be read keeps its
    last value until it is stale. Both keep the time of the last value, for the age.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Any] = {}
        self._known_at: dict[tuple[str, str], float] = {}

    def record(self, name: str, by_plan: Mapping[str, Any], at: float) -> None:
        """Takes what was read of one signal at `at`; `by_plan` has one key, "", for a scalar."""
        for key in [key for key in self._values if key[0] == name]:
            del self._values[key]
        for plan, value in by_plan.items():
            self._values[name, plan] = value
            self._known_at[name, plan] = at

    def record_window(self, window: measures.Scraped, at: float) -> None:
        """Takes every signal from scraped pages."""
        for name, measure in measures.SIGNALS.items():
            value = measure.value(window)
            self.record(name, {} if value is None else {_NO_PLAN: value}, at)
        for name, ratio in measures.PLAN_SIGNALS.items():
            self.record(name, ratio.values(window), at)
        self.record(ACCEPTANCE, _in_order(measures.acceptance(window)), at)
        active = [labels[1] for labels, on in window.latest(measures.PLAN_IN_USE).items() if on]
        self.record(PLAN, {_NO_PLAN: active[0]} if len(active) == 1 else {}, at)

    def record_rows(self, name: str, rows: Iterable[Row], at: float) -> None:
        """Takes one signal from the rows of a query."""
        if name == ACCEPTANCE:
            shares: dict[str, dict[int, float]] = {}
            for labels, value in rows:
                shares.setdefault(labels["plan"], {})[int(labels["position"])] = value
            self.record(name, _in_order(shares), at)
        elif name == PLAN:
            active = [labels["plan"] for labels, _ in rows]
            self.record(name, {_NO_PLAN: active[0]} if len(active) == 1 else {}, at)
        else:
            self.record(name, {labels.get("plan", _NO_PLAN): value for labels, value in rows}, at)

    def signals(self, replica: str, now: float, stale_after_s: float) -> Signals:
        """Everything as of `now`; what is older than `stale_after_s` is missing."""
        scalars: dict[str, Any] = {
            name: self._reading(name, _NO_PLAN, now, stale_after_s) for name in measures.SIGNALS
        }
        plans = {}
        for text in {plan for name, plan in self._known_at if name in measures.PLAN_SIGNALS}:
            plan = _parsed(text)
            if plan is not None:
                plans[plan] = self._plan_signals(text, now, stale_after_s)
        in_use = self._fresh(PLAN, _NO_PLAN, now, stale_after_s)
        return replace(Signals(replica, plan=_parsed(in_use), plans=plans), **scalars)

    def _plan_signals(self, plan: str, now: float, stale_after_s: float) -> PlanSignals:
        readings = {
            name: self._reading(name, plan, now, stale_after_s) for name in measures.PLAN_SIGNALS
        }
        acceptance = self._fresh(ACCEPTANCE, plan, now, stale_after_s) or ()
        return PlanSignals(acceptance=acceptance, **readings)

    def _reading(self, name: str, plan: str, now: float, stale_after_s: float) -> Reading:
        known_at = self._known_at.get((name, plan))
        if known_at is None:
            return MISSING
        return Reading(self._fresh(name, plan, now, stale_after_s), now - known_at)

    def _fresh(self, name: str, plan: str, now: float, stale_after_s: float) -> Any:
        key = (name, plan)
        is_fresh = key in self._values and now - self._known_at[key] <= stale_after_s
        return self._values[key] if is_fresh else None


def _in_order(shares: Mapping[str, Mapping[int, float]]) -> dict[str, tuple[float, ...]]:
    """Shares by position, from the first on, up to the first gap."""
    ordered = {}
    for plan, by_position in shares.items():
        count = next(i for i in range(len(by_position) + 1) if i not in by_position)
        ordered[plan] = tuple(by_position[i] for i in range(count))
    return ordered


def _parsed(text: str | None) -> Plan | None:
    try:
        return Plan.parse(text) if text else None
    except ValueError:
        return None  # a plan that this version does not know

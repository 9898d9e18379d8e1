"""What the controller exports: the catalogue's series, read from its state at scrape time."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric as Family

from orchestrator.loop import LoopState, ReplicaState
from orchestrator.signals import SignalSource
from policies.decisions import Decision, Reason, Signals
from policies.vocabulary import all_plans
from replicas.catalogue import BY_NAME, CONTROLLER_METRICS
from replicas.metrics import Page, empty_family


class ControllerMetrics:
    """The registry of one controller. State and signals are values, so any thread may scrape."""

    def __init__(
        self,
        policy: str,
        source: SignalSource,
        state: Callable[[], LoopState],
        signals: Callable[[], Mapping[str, Signals]],
    ) -> None:
        self.registry = CollectorRegistry()
        self.decided: Tally[Reason] = Tally(dict.fromkeys(Reason, 0))
        self.last_tick_s = 0.0
        self._policy, self._source, self._state, self._signals = policy, source, state, signals
        tick = BY_NAME["tick_seconds"]
        self._ticks = Histogram(tick.full_name, tick.help, buckets=tick.buckets, registry=None)
        self.registry.register(self)

    def ticked(self, now: float, seconds: float) -> None:
        """A round ended at `now` and took `seconds`."""
        self.last_tick_s = now
        self._ticks.observe(seconds)

    def count(self, decisions: Mapping[str, Decision]) -> None:
        self.decided.update(decision.reason for decision in decisions.values())

    def describe(self) -> Iterator[Family]:
        return map(empty_family, CONTROLLER_METRICS)

    def collect(self) -> Iterator[Family]:
        page, state, signals = Page(), self._state(), self._signals()
        page.put("replicas_known", len(state.replicas))
        page.put("controller_epoch", state.epoch)
        page.put("controller_advisory", state.advisory)
        page.put("schedules_issued_total", state.version)
        page.put("last_tick_timestamp_seconds", self.last_tick_s)
        page.take("tick_seconds", self._ticks)
        for reason, count in self.decided.items():
            page.put("decisions_total", count, self._policy, reason.value)
        for kind, count in self._source.errors.items():
            page.put("scrape_errors_total", count, kind)
        for name, replica in state.replicas.items():
            _put_replica(page, name, replica)
            _put_signals(page, name, signals.get(name, Signals(name)))
        yield from page.families.values()


def _put_replica(page: Page, name: str, replica: ReplicaState) -> None:
    page.put("pinned", replica.pin is not None, name)
    decision = replica.last
    if decision is None:
        return
    for plan in all_plans():
        page.put("decided_plan", plan == decision.plan, name, plan.mode.value, str(plan))
    for plan, tokens_per_s in decision.predicted.items():
        labels = (name, plan.mode.value, str(plan))
        page.put("predicted_tokens_per_second", tokens_per_s, *labels)


def _put_signals(page: Page, name: str, signals: Signals) -> None:
    for signal, reading in signals.readings().items():
        page.put("signal_known", reading.value is not None, name, signal)
        if reading.age_s is not None:
            page.put("signal_age_seconds", reading.age_s, name, signal)

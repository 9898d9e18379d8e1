"""What the controller exports: decisions and why, pins, how old its signals are, its own health."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import Metric as Family

from orchestrator.loop import LoopState
from orchestrator.signals import ERROR_KINDS
from policies.decisions import Decision, Reason, Signals
from policies.vocabulary import Plan, all_plans
from replicas.catalogue import BY_NAME, CONTROLLER_METRICS
from replicas.metrics import Page, empty_family


class ControllerMetrics:
    """The registry of the controller.

    Args:
        policy: the name decisions carry, so that its reasons have series from the start.
        errors: failures to read signals so far, by kind.
    """

    def __init__(self, policy: str, errors: Callable[[], Mapping[str, int]]) -> None:
        self.registry = CollectorRegistry()
        self._errors = errors
        self._decided = Tally[tuple[str, str]]({(policy, reason.value): 0 for reason in Reason})
        self._decisions: Mapping[str, Decision] = {}
        self._signals: Mapping[str, Signals] = {}
        self._state = LoopState(epoch=0)
        self._ticked_at: float | None = None
        tick = BY_NAME["tick_seconds"]
        self._tick_seconds = Histogram(
            tick.full_name, tick.help, buckets=tick.buckets, registry=None
        )
        self.registry.register(self)

    def observe_tick(
        self,
        decisions: Mapping[str, Decision],
        signals: Mapping[str, Signals],
        state: LoopState,
        now: float,
        seconds: float,
    ) -> None:
        """Takes one round: what was decided on what, at Unix time `now`, within `seconds`."""
        for decision in decisions.values():
            self._decided[decision.policy, decision.reason.value] += 1
        self._decisions, self._signals, self._state = decisions, signals, state
        self._ticked_at = now
        self._tick_seconds.observe(seconds)

    def describe(self) -> Iterator[Family]:
        for metric in CONTROLLER_METRICS:
            yield empty_family(metric)

    def collect(self) -> Iterator[Family]:
        page = Page()
        for (policy, reason), count in list(self._decided.items()):
            page.put("decisions_total", count, policy, reason)
        errors = self._errors()
        for kind in dict.fromkeys((*ERROR_KINDS, *errors)):
            page.put("scrape_errors_total", errors.get(kind, 0), kind)
        page.take("tick_seconds", self._tick_seconds)
        if self._ticked_at is not None:
            page.put("last_tick_timestamp_seconds", self._ticked_at)
        self._put_state(page, self._state)
        for replica, decision in self._decisions.items():
            self._put_decision(page, replica, decision)
        for replica in self._decisions:
            self._put_signals(page, replica, self._signals.get(replica, Signals(replica)))
        yield from page.families.values()

    def _put_state(self, page: Page, state: LoopState) -> None:
        page.put("replicas_known", len(state.replicas))
        page.put("controller_epoch", state.epoch)
        page.put("controller_advisory", 1 if state.advisory else 0)
        page.put("schedules_issued_total", state.version)

    def _put_decision(self, page: Page, replica: str, decision: Decision) -> None:
        page.put("pinned", 1 if decision.reason is Reason.PINNED else 0, replica)
        for plan in dict.fromkeys((*all_plans(), *([decision.plan] if decision.plan else []))):
            active = 1 if plan == decision.plan else 0
            page.put("decided_plan", active, *_labels(replica, plan))
        for plan, predicted in decision.predicted.items():
            page.put("predicted_tokens_per_second", predicted, *_labels(replica, plan))

    def _put_signals(self, page: Page, replica: str, signals: Signals) -> None:
        for name, reading in signals.readings().items():
            known = 0 if reading.value is None else 1
            page.put("signal_known", known, replica, name)
            if reading.age_s is not None:
                page.put("signal_age_seconds", reading.age_s, replica, name)


def _labels(replica: str, plan: Plan) -> tuple[str, str, str]:
    return replica, plan.mode.value, str(plan)

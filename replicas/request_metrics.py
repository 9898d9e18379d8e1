"""Latencies, which the engine cannot see: from the request's arrival to each delivery.

`RequestMetrics` is what the HTTP surface tells about every request (its observer). A request may be
decoded in several modes: it counts under the one that committed most of its tokens; a first token
counts under the mode that the replica was in.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from prometheus_client import Counter, Histogram

from policies.vocabulary import Mode
from replicas.catalogue import BY_NAME, REPLICA_METRICS
from replicas.engine import Delta, Request

REFUSALS = ("rejected", "overloaded", "stopped")
"""Outcomes of requests that the engine never finished, so that it does not count them."""


@dataclass(slots=True)
class _Life:
    first_token_s: float | None = None
    tokens: Tally[Mode] = field(default_factory=Tally)


class RequestMetrics:
    """Histograms of one replica, and its SLO. For one thread: the event loop's.

    Args:
        replica: the `replica` label.
        mode: the mode the replica is in now.
        targets: seconds by SLO (`ttft`, `tpot`); None judges nothing.
    """

    def __init__(
        self, replica: str, mode: Callable[[], Mode], targets: Mapping[str, float | None]
    ) -> None:
        self.replica = replica
        self.targets = dict(targets)
        self.histograms = {m.name: _histogram(m.name) for m in REPLICA_METRICS if m.buckets}
        self.refused = _counter("requests_refused_total")
        self.slo_requests = _counter("slo_requests_total")
        self.slo_violations = _counter("slo_violations_total")
        self._mode = mode
        self._lives: dict[str, _Life] = {}
        # Looked up once: one is observed for every delta.
        self._by_mode = {
            (name, mode): histogram.labels(replica, mode.value)
            for name, histogram in self.histograms.items()
            for mode in Mode
        }
        self._prime()

    def queued(self, request: Request) -> None:
        """The request goes to the engine."""
        self._lives[request.request_id] = _Life()

    def first_token(self, request: Request, seconds: float) -> None:
        """The first delivery came `seconds` after `queued`."""
        self._life(request).first_token_s = seconds
        self._observe("time_to_first_token_seconds", seconds, self._mode())
        self._judge("ttft", seconds)

    def commit(self, request: Request, delta: Delta, seconds: float) -> None:
        """A delivery came `seconds` after the one before; the first has no plan and no gap, and
        says how long the request was queued."""
        if delta.queued_s is not None:
            self._observe("queue_seconds", delta.queued_s, self._mode())
        if delta.plan is not None:
            self._life(request).tokens[delta.plan.mode] += len(delta.token_ids)
            self._observe("inter_commit_seconds", seconds, delta.plan.mode)

    def finished(self, request: Request, outcome: str, seconds: float, tokens: int) -> None:
        """The end, `seconds` after `queued`, with `tokens` committed; `outcome` says how."""
        life = self._lives.pop(request.request_id, _Life())
        if outcome in REFUSALS:
            self.refused.labels(self.replica, outcome).inc()
        if outcome not in ("stop", "length"):
            return  # a request cut short says nothing about how long requests take
        mode = life.tokens.most_common(1)[0][0] if life.tokens else self._mode()
        self._observe("request_seconds", seconds, mode)
        if life.first_token_s is not None and tokens > 1:
            tpot_s = (seconds - life.first_token_s) / (tokens - 1)
            self._observe("time_per_output_token_seconds", tpot_s, mode)
            self._judge("tpot", tpot_s)

    def _prime(self) -> None:
        for outcome in REFUSALS:
            self.refused.labels(self.replica, outcome)
        for slo in self.targets:
            self.slo_requests.labels(self.replica, slo)
            self.slo_violations.labels(self.replica, slo)

    def _life(self, request: Request) -> _Life:
        return self._lives.setdefault(request.request_id, _Life())

    def _observe(self, name: str, seconds: float, mode: Mode) -> None:
        self._by_mode[name, mode].observe(seconds)

    def _judge(self, slo: str, seconds: float) -> None:
        target = self.targets[slo]
        if target is not None:
            self.slo_requests.labels(self.replica, slo).inc()
            self.slo_violations.labels(self.replica, slo).inc(1 if seconds > target else 0)


def _counter(name: str) -> Counter:
    # In no registry: the replica's collector hands out the series.
    metric = BY_NAME[name]
    return Counter(metric.full_name, metric.help, metric.labels, registry=None)


def _histogram(name: str) -> Histogram:
    metric = BY_NAME[name]
    return Histogram(
        metric.full_name, metric.help, metric.labels, buckets=metric.buckets, registry=None
    )

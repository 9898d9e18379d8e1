"""The control loop of a simulated fleet: signals, the real guard around the policy, delivery.

Signals are built from what replicas have counted, over the window that the product uses, at every
tick; a changed schedule reaches its replica `DELAY_S` later. A replica that is idle at a tick is
left alone until it works again: a real controller would hold its schedule, or refine it unused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from policies.decisions import Reading, Signals
from policies.guard import Guard, GuardState
from policies.step_time import Profile
from policies.vocabulary import SAFE_PLAN, Schedule
from replay.counters import TOKENS, Table, plan_signals, quantile
from replay.governed import Governed
from replay.replica import Replica

DELAY_S = 0.3  # from scrape to replica: scrape, decide, deliver
WINDOW_S = 10.0  # of rates and quantiles: the product's default
WINDOW_TICKS = 2.0  # at least so many ticks long
MERGE_S = 5.0  # between two exchanges of what replicas have learned


@dataclass(slots=True)
class Managed:
    """A replica, and what the controller knows of it."""

    replica: Replica
    governed: Governed
    state: GuardState | None = None
    issued: Schedule = field(default_factory=lambda: Schedule.pinned(SAFE_PLAN))
    wanted: Schedule | None = None
    snapshots: deque[tuple[float, Table]] = field(default_factory=deque)


class Controller:
    """Decides for replicas that follow schedules. `tick` yields what is to be delivered."""

    def __init__(
        self, guard: Guard, profile: Profile, interval_s: float, fleet: Sequence[Managed]
    ) -> None:
        self.guard, self.profile, self.fleet = guard, profile, fleet
        self.interval_s = interval_s
        self._awake = dict(enumerate(fleet))
        self.window_s = max(WINDOW_S, WINDOW_TICKS * interval_s)
        self.decisions = 0
        self._version = 0
        self._merged_at = 0.0

    def tick(self, now: float) -> Iterator[tuple[Managed, Schedule]]:
        """One round; yields replicas with the schedules that are new to them."""
        if now > 0.0:
            self._awake = {i: m for i, m in self._awake.items() if m.replica.in_flight}
        busy = list(self._awake.values())
        if now - self._merged_at >= MERGE_S and len(busy) > 1:
            self._merge(busy, now)
        for managed in busy:
            signals = self._signals(managed, now)
            decision, managed.state = self.guard.decide(signals, managed.state, now)
            self.decisions += 1
            if decision.schedule is managed.wanted or decision.schedule == managed.wanted:
                managed.governed.governor.receive(managed.issued, now)
                continue
            self._version += 1
            managed.wanted = decision.schedule
            managed.issued = replace(decision.schedule, epoch=1, version=self._version)
            yield managed, managed.issued

    def wake(self, index: int, now: float) -> None:
        """A replica works again: its schedule is refreshed, as it would have been all along."""
        if index not in self._awake:
            self._awake[index] = managed = self.fleet[index]
            managed.governed.governor.receive(managed.issued, now)

    def _merge(self, busy: list[Managed], now: float) -> None:
        self._merged_at = now
        known = {m.replica.name: m.state for m in busy if m.state is not None}
        merged = self.guard.merge(known, now)
        for managed in busy:
            managed.state = merged.get(managed.replica.name, managed.state)

    def _signals(self, managed: Managed, now: float) -> Signals:
        replica = managed.replica
        grown, seconds = _grown(managed, now, self.window_s)
        requests = replica.counters.requests
        while requests and requests[0][0] < now - self.window_s:
            requests.popleft()
        ttft = [request[1] for request in requests]
        tpot = [request[2] for request in requests]
        decoding = len(replica.batch)
        return Signals(
            replica=replica.name,
            decoding=Reading(decoding, 0.0),
            prefilling=Reading(replica.prefilling, 0.0),
            waiting=Reading(len(replica.waiting), 0.0),
            tokens_per_s=Reading(float(grown[:, TOKENS].sum()) / seconds if seconds else None, 0.0),
            ttft_p50_s=Reading(median(ttft) if ttft else None, 0.0),
            ttft_p95_s=Reading(quantile(ttft, 0.95), 0.0),
            tpot_p50_s=Reading(median(tpot) if tpot else None, 0.0),
            tpot_p95_s=Reading(quantile(tpot, 0.95), 0.0),
            context_tokens=Reading(replica.batch.context, 0.0),
            kv_use=Reading(replica.kv_reserved / replica.world.truth.kv_tokens, 0.0),
            plan=managed.governed.plan,
            plans=plan_signals(grown, 0.0),
            profile=self.profile,
        )


def _grown(managed: Managed, now: float, window_s: float) -> tuple[Table, float]:
    """How far the counters grew over the window, and its length."""
    table, snapshots = managed.replica.counters.table.copy(), managed.snapshots
    snapshots.append((now, table))
    while len(snapshots) > 1 and snapshots[1][0] <= now - window_s:
        snapshots.popleft()
    since, before = snapshots[0]
    return table - before, min(window_s, now - since)

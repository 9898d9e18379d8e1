"""How good each choice was, at the moment it was made: worth of the plan over that of the best.

Free of the noise of drawn tokens, and of what earlier choices made of the batch; so it can say when
a policy has adapted to a change.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import pairwise

from policies.observation import StepObservation
from policies.vocabulary import Plan
from replay.oracle import values
from replay.replica import Chooser, Replica


@dataclass(slots=True)
class Audited:
    """A chooser that writes down the regret of what another picks."""

    chooser: Chooser
    plans: tuple[Plan, ...]
    times: list[float] = field(default_factory=list)
    regrets: list[float] = field(default_factory=list)
    picked: list[Plan] = field(default_factory=list)

    pays: bool = field(init=False)

    def __post_init__(self) -> None:
        self.pays = self.chooser.pays

    @property
    def plan(self) -> Plan:
        return self.chooser.plan

    def pick(self, replica: Replica, now: float) -> Plan:
        plan = self.chooser.pick(replica, now)
        worth = values(replica, self.plans)
        self.times.append(now)
        self.regrets.append(1.0 - worth[plan] / max(worth.values()))
        self.picked.append(plan)
        return plan

    def observe(self, step: StepObservation, now: float) -> None:
        self.chooser.observe(step, now)

    def mean(self, start_s: float, end_s: float) -> float:
        """Mean regret over a span of time, in which each pick lasts until the next."""
        first, last = bisect_left(self.times, start_s), bisect_left(self.times, end_s)
        if first == last:
            return self.regrets[first - 1] if first else 0.0
        times = [*self.times[first:last], end_s]
        spans = [after - before for before, after in pairwise(times)]
        weighted = sum(s * r for s, r in zip(spans, self.regrets[first:last], strict=True))
        return weighted / max(1e-9, sum(spans))

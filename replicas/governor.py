"""The replica-local rule: schedule and decoding count in, plan out. Pure; called at every step.

The controller is slow and sees the fleet; the governor is fast and sees one batch. It owns no
clock: time is an argument. Seconds may come from any monotonic source, as long as it is always the
same one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from policies.vocabulary import SAFE_PLAN, Plan, Schedule


class PickReason(StrEnum):
    """Why the governor uses the plan it uses."""

    BAND = "band"
    HYSTERESIS = "hysteresis"
    DWELL = "dwell"
    EXPIRED = "expired"


@dataclass(slots=True)
class Governor:
    """Picks the plan of the next step from a schedule and the number of decoding sequences.

    Invariant: the plan in use changes only in `pick`, by at most one change per call.
    """

    schedule: Schedule
    received_at: float = 0.0
    plan: Plan = field(init=False)
    reason: PickReason = field(init=False, default=PickReason.BAND)
    switched: dict[tuple[Plan, Plan, PickReason], int] = field(init=False, default_factory=dict)
    """Changes so far, by plan before, plan after and reason."""
    _changed_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.plan = self.schedule.bands[0].plan

    @property
    def switches(self) -> int:
        return sum(self.switched.values())

    def receive(self, schedule: Schedule, now: float) -> bool:
        """Takes a schedule unless it is older than the one in force; says whether it was taken.

        The same (epoch, version) again is a refresh: it restarts the time to live.
        """
        if schedule.order < self.schedule.order:
            return False
        self.schedule = schedule
        self.received_at = now
        return True

    def pick(self, decoding: int, now: float) -> Plan:
        """The plan for the next step with `decoding` sequences, at `now` seconds."""
        target, self.reason = self._target(decoding, now)
        if target != self.plan:
            if self.reason is not PickReason.EXPIRED and self._dwelling(now):
                self.reason = PickReason.DWELL
            else:
                self._change(target, now)
        return self.plan

    def _target(self, decoding: int, now: float) -> tuple[Plan, PickReason]:
        if now - self.received_at > self.schedule.ttl_s:
            return SAFE_PLAN, PickReason.EXPIRED
        # Going up needs only the load; going down stops at the band that would still hold with
        # `hysteresis` more sequences. A plan may stand in several bands, so positions are not kept.
        plans = self.schedule.plans
        wanted = self._band_at(decoding)
        clear = self._band_at(decoding + self.schedule.hysteresis)
        if self.plan in plans[wanted : clear + 1]:
            target = self.plan
        else:
            target = plans[clear] if self.plan in plans[clear + 1 :] else plans[wanted]
        return target, PickReason.BAND if target == plans[wanted] else PickReason.HYSTERESIS

    def _band_at(self, decoding: int) -> int:
        bands = self.schedule.bands
        return next(i for i, b in enumerate(bands) if b.up_to is None or decoding <= b.up_to)

    def _dwelling(self, now: float) -> bool:
        # A plan that the schedule no longer names is left at once: dwell protects against flapping
        # inside one schedule, it must not keep a plan that the controller has withdrawn.
        return self.plan in self.schedule.plans and now - self._changed_at < self.schedule.dwell_s

    def _change(self, plan: Plan, now: float) -> None:
        change = (self.plan, plan, self.reason)
        # A new mapping, so that a report taken on another thread never sees one that changes.
        self.switched = {**self.switched, change: self.switched.get(change, 0) + 1}
        self.plan = plan
        self._changed_at = now

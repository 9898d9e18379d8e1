"""The replica-local rule: schedule and decoding count in, plan out. Pure; called at every step.

The controller is slow and sees the fleet; the governor is fast and sees one batch. It owns no clock:
time is an argument. Seconds may come from any monotonic source, as long as it is always the same one.
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
    switches: int = field(init=False, default=0)
    _changed_at: float = field(init=False, default=float("-inf"))

    def __post_init__(self) -> None:
        self.plan = self.schedule.bands[0].plan

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
        bands = self.schedule.bands
        wanted = next(b for b in bands if b.up_to is None or decoding <= b.up_to)
        current = next((b for b in bands if b.plan == self.plan), None)
        going_down = current is not None and bands.index(wanted) < bands.index(current)
        if going_down and wanted.up_to is not None:
            if decoding > wanted.up_to - self.schedule.hysteresis:
                return self._lowest_clear_band(decoding), PickReason.HYSTERESIS
        return wanted.plan, PickReason.BAND

    def _lowest_clear_band(self, decoding: int) -> Plan:
        """The lowest band whose bound is undercut by the full hysteresis, never above the current."""
        for band in self.schedule.bands:
            if band.up_to is None or decoding <= band.up_to - self.schedule.hysteresis:
                return band.plan
            if band.plan == self.plan:
                return self.plan
        return self.plan

    def _dwelling(self, now: float) -> bool:
        # A plan that the schedule no longer names is left at once: dwell protects against flapping
        # inside one schedule, it must not keep a plan that the controller has withdrawn.
        return self.plan in self.schedule.plans and now - self._changed_at < self.schedule.dwell_s

    def _change(self, plan: Plan, now: float) -> None:
        self.plan = plan
        self.switches += 1
        self._changed_at = now

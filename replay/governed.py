"""The real governor in front of a simulated replica."""

from __future__ import annotations

from policies.observation import StepObservation
from policies.vocabulary import Plan, Schedule
from replay.replica import Replica
from replicas.governor import Governor


class Governed:
    """Picks as the engine does: by what decodes and waits."""

    pays = True

    def __init__(self, schedule: Schedule) -> None:
        self.governor = Governor(schedule)

    @property
    def plan(self) -> Plan:
        return self.governor.plan

    def pick(self, replica: Replica, now: float) -> Plan:
        batch = replica.batch
        return self.governor.pick(
            len(batch), now, batch.context, len(replica.waiting), drafted=batch.drafted
        )

    def observe(self, step: StepObservation, now: float) -> None:
        self.governor.observe(step, now)

"""The clairvoyant: it knows every sequence's acceptance, its length, and what a step takes.

Greedy: at every step the plan that yields most tokens per second from this batch. That is all that
can be known, and near all that can be done, but no bound of it: the easy requests that it serves
quickly leave it with the hard ones, so a plan that stays can make more. Changing costs it nothing.
Part of the gap to it nobody can close, since nobody knows lengths.
"""

from __future__ import annotations

from policies.observation import StepObservation
from policies.vocabulary import AR, Plan
from replay.replica import Replica


def values(replica: Replica, plans: tuple[Plan, ...]) -> dict[Plan, float]:
    """True tokens/s of the next step under each plan."""
    batch, world = replica.batch, replica.world
    rows, context = len(batch), batch.context
    return {p: batch.expected_tokens(p) / world.step_s(p, rows, context) for p in plans}


class Oracle:
    """A chooser among `plans`."""

    pays = False

    def __init__(self, plans: tuple[Plan, ...]) -> None:
        self.plans = plans
        self.plan = AR
        self.changes = 0

    def pick(self, replica: Replica, now: float) -> Plan:
        worth = values(replica, self.plans)
        best = max(worth, key=worth.__getitem__)
        self.changes += best != self.plan
        self.plan = best
        return best

    def observe(self, step: StepObservation, now: float) -> None:
        """It has nothing to learn."""

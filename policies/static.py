"""One plan for ever: the baseline, and what an operator uses to compare."""

from __future__ import annotations

from policies.decisions import Decision, Reason, Signals
from policies.vocabulary import Plan, Schedule


class Static:
    """Always the same plan, whatever the load. Needs no signals."""

    needs: tuple[str, ...] = ()

    def __init__(self, plan: Plan | str = "self_speculation/8") -> None:
        self.plan = Plan.parse(plan) if isinstance(plan, str) else plan
        self._decision = Decision(Schedule.pinned(self.plan), Reason.STATIC)

    def decide(self, signals: Signals, state: None, now: float) -> tuple[Decision, None]:
        return self._decision, None

"""Per-plan tallies of the engine; monotone, read by `report()`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from policies.vocabulary import Mode, Plan, all_plans
from replicas.engine import PlanCounters
from replicas.torch_engine.modes.base import RoundResult


@dataclass(slots=True)
class PlanTally:
    """Mutable twin of `PlanCounters`; field meanings are documented there.

    `kept[g]` counts the rows that kept g tokens, where the plan drafts.
    """

    plan: Plan
    kept: list[int]
    steps: int = 0
    forwards: int = 0
    sequence_steps: int = 0
    rounds: int = 0
    drafted: int = 0
    committed: int = 0
    denoising_steps: int = 0
    seconds: float = 0.0
    mixed_seconds: float = 0.0
    mixed_committed: int = 0

    def add_round(self, result: RoundResult) -> None:
        self.steps += 1
        self.forwards += 2 if result.drafted else 1
        self.sequence_steps += len(result.tokens)
        self.drafted += result.drafted
        self.denoising_steps += result.denoising_steps
        self.rounds += result.rounds

    def add_yields(self, kept: Sequence[int], seconds: float, *, is_pure: bool) -> None:
        """The tokens that were kept of each row, and what they took."""
        committed = sum(kept)
        self.committed += committed
        self.seconds += seconds
        if not is_pure:
            self.mixed_seconds += seconds
            self.mixed_committed += committed
        if self.plan.mode is Mode.SELF_SPECULATION:
            for tokens in kept:
                self.kept[tokens] += 1

    def accepted(self) -> tuple[int, ...]:
        """Rows that kept the first token and at least one, two ... drafted ones."""
        return tuple(accumulate(self.kept[:1:-1]))[::-1]

    def freeze(self) -> PlanCounters:
        return PlanCounters(
            steps=self.steps,
            forwards=self.forwards,
            sequence_steps=self.sequence_steps,
            rounds=self.rounds,
            drafted=self.drafted,
            accepted=self.accepted(),
            committed=self.committed,
            denoising_steps=self.denoising_steps,
            seconds=self.seconds,
            mixed_seconds=self.mixed_seconds,
            mixed_committed=self.mixed_committed,
        )


class Tallies:
    """One tally per mode and block length, all there from the start.

    Thresholds are folded together: requests choose them freely, and tallies become metric labels.
    """

    def __init__(self) -> None:
        self._plans = {
            plan: PlanTally(plan, kept=[0] * (plan.block_length + 1)) for plan in all_plans()
        }

    def __getitem__(self, plan: Plan) -> PlanTally:
        known = self._plans.get(plan)
        return known or self._plans[Plan(plan.mode, plan.block_length)]

    def freeze(self) -> dict[Plan, PlanCounters]:
        return {plan: tally.freeze() for plan, tally in self._plans.items()}

"""A policy whose predictions are wrong, until somebody mends them."""

from __future__ import annotations

from pathlib import Path

from policies.decisions import Decision, PlanSignals, Signals
from policies.step_time import forwards_per_step
from policies.threshold import Threshold
from policies.vocabulary import Plan


class Mistaken(Threshold):
    """Bands, and for each plan in use the throughput that was measured, times the number in a file:
    what a cost model of another machine does, and calibrating it anew."""

    def __init__(self, factor_file: str) -> None:
        super().__init__()
        self._factor_file = Path(factor_file)

    def decide(
        self, signals: Signals, state: int | None, now: float
    ) -> tuple[Decision, int | None]:
        decision, state = super().decide(signals, state, now)
        factor = float(self._factor_file.read_text("utf-8"))
        measured = {plan: _tokens_per_s(plan, used) for plan, used in signals.plans.items()}
        predicted = {plan: factor * value for plan, value in measured.items() if value}
        return decision._replace(predicted=predicted), state


def _tokens_per_s(plan: Plan, used: PlanSignals) -> float | None:
    per_forward, sequences = used.tokens_per_forward.value, used.sequences.value
    if not per_forward or not sequences or not used.step_s.value:
        return None
    return per_forward * sequences * forwards_per_step(plan) / used.step_s.value

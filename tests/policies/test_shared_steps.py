"""Loads counted in clients, where prefill and decoding share steps.

Run with: pytest tests/policies/test_shared_steps.py
"""

from random import Random

import pytest

from policies.cost_model import CostModel
from policies.observation import StepObservation
from policies.vocabulary import AR, Plan
from tests.policies.synthetic import H100, SPEC_16, WORTH

KEPT = {AR: 1, SPEC_16: 6}
"""Tokens of a row and step."""
CONTEXT = 512
HANDLING_S = 0.01
"""What a step takes longer for every answer that ended with the one before: as long as one of AR.
"""


class Loop:
    """Clients that send the next request, one step later, on getting an answer; a request takes one
    step of prefill, and its answer has 12 to 60 tokens."""

    def __init__(self, clients: int) -> None:
        self.model, self.now = CostModel(WORTH), 0.0
        self.random = Random(clients)
        self.left = [self.random.randint(-1, 60) for _ in range(clients)]
        """Tokens of the answer; 0: about to be in prefill, below: between two requests."""
        self.ended = 0

    def step(self, plan: Plan) -> tuple[int, float]:
        """Tokens and seconds, of a step in which some decode."""
        kept = [min(KEPT[plan], left) for left in self.left if left > 0]
        self.model.begin_step(len(kept), sum(left >= 0 for left in self.left))
        rows = len(kept)
        seconds = H100.step_s(plan, rows, CONTEXT * rows) + HANDLING_S * self.ended if rows else 0.0
        self.now += seconds
        self.left = [self._after(left, KEPT[plan]) for left in self.left]
        self.ended = self.left.count(-1)
        if rows:
            step = StepObservation(plan, rows, CONTEXT * rows, seconds, kept, answers=self.ended)
            self.model.observe(step, self.now)
        return sum(kept), seconds

    def _after(self, left: int, kept: int) -> int:
        if left < 0:
            return 0
        if left == 0:
            return self.random.randint(12, 60)
        return left - kept if left > kept else -1


@pytest.mark.parametrize("clients", [2, 3, 4, 8])
def test_what_an_answer_costs_besides_is_charged_to_the_plan_and_not_to_small_batches(clients):
    """By rows, steps of few would seem slow, which is where long blocks have theirs."""
    loop = Loop(clients)
    steps: dict[Plan, list[tuple[int, float]]] = {AR: [], SPEC_16: []}
    for _ in range(40):
        for plan, seen in steps.items():
            seen += [loop.step(plan) for _ in range(100)]
    rates = {p: sum(k for k, _ in seen) / sum(s for _, s in seen) for p, seen in steps.items()}
    loop.model.revise(loop.now + 1.0)
    predicted = loop.model.values(clients, CONTEXT * clients, clients=clients).by_plan
    ratio = rates[SPEC_16] / rates[AR]
    assert predicted[SPEC_16] / predicted[AR] == pytest.approx(ratio, rel=0.04)


def test_step_times_at_other_numbers_of_clients_are_kept_apart():
    loop = Loop(4)
    for _ in range(400):
        loop.step(AR)
    known, _ = loop.model.timed(AR, 4)
    assert known > 100
    loop.model.begin_step(30, 32)
    assert loop.model.timed(AR, 4) == loop.model.timed(AR, 30) == (0.0, float("-inf"))

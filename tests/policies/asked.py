"""A policy asked as a controller asks it: once a second, with signals that a replica could have."""

from policies.decisions import PlanSignals, Reading, Signals
from tests.policies.synthetic import H100, SPEC_8


def reading(value):
    return Reading(value, 0.1)


def signals(decoding=8, length=512, replica="r1", plans=None, profile=H100):
    return Signals(
        replica,
        decoding=reading(decoding),
        context_tokens=reading(None if decoding is None else decoding * length),
        plans=plans or {},
        profile=profile,
    )


def drafted(chance, plan=SPEC_8, slowdown=1.0, decoding=8, length=512):
    """What metrics say of a plan whose drafts are accepted with one chance."""
    block = plan.block_length
    shares = tuple(chance**i for i in range(1, block))
    return {
        plan: PlanSignals(
            tokens_per_forward=reading((1.0 + sum(shares)) / 2.0),
            accepted_length=reading(sum(shares)),
            step_s=reading(slowdown * H100.step_s(plan, decoding, decoding * length)),
            sequences=reading(decoding),
            acceptance=shares,
        )
    }


class Replica:
    """Asks a policy once a second and keeps its state."""

    def __init__(self, policy):
        self.policy, self.state, self.now, self.decisions = policy, None, 0.0, []

    def ask(self, told, seconds=1):
        for _ in range(seconds):
            decision, self.state = self.policy.decide(told, self.state, self.now)
            self.decisions.append(decision)
            self.now += 1.0
        return self.decisions[-1]

    @property
    def schedules(self):
        """Without repetitions."""
        found = []
        for decision in self.decisions:
            if not found or found[-1] is not decision.schedule:
                found.append(decision.schedule)
        return found

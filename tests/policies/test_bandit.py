"""Opt-in exploration, bounded. Run with: pytest tests/policies/test_bandit.py"""

from collections import Counter
from dataclasses import replace

import pytest

from policies.bandit import Bandit
from policies.decisions import PlanSignals, Reading, Reason, Signals
from policies.guard import Guard, Rules
from policies.step_time import forwards_per_step
from policies.vocabulary import AR, Mode, Quality
from tests.policies.synthetic import EXACT, SPEC_4, SPEC_8, SPEC_16, SPEC_32, Machine


def reading(value):
    return Reading(value, 0.1)


class Fleet:
    """One replica on a machine whose truth is known, asked once a second."""

    def __init__(self, policy, machine, chance=0.8, length=512):
        self.policy, self.machine, self.chance, self.length = policy, machine, chance, length
        self.state, self.now, self.told, self.decisions = None, 0.0, {}, []

    def run(self, seconds, decoding=16):
        for _ in range(seconds):
            context = decoding * self.length
            signals = Signals(
                "r1",
                decoding=reading(decoding),
                context_tokens=reading(context),
                plans=self.told,
                profile=self.machine.profile,
            )
            decision, self.state = self.policy.decide(signals, self.state, self.now)
            self.decisions.append(decision)
            self.now += 1.0
            plan = decision.schedule.plans[0]
            self.told = {plan: self.seen(plan, decoding, context)} if decoding else {}
        return [d.schedule.plans[0] for d in self.decisions[-seconds:]]

    def seen(self, plan, decoding, context):
        shares = tuple(self.chance**i for i in range(1, plan.block_length))
        tokens = 1.0 + sum(shares)
        per_s = self.machine.throughput(plan, decoding, context, self.chance) / decoding
        return PlanSignals(
            tokens_per_forward=reading(tokens / forwards_per_step(plan)),
            accepted_length=reading(sum(shares)),
            step_s=reading(tokens / per_s),
            sequences=reading(decoding),
            acceptance=shares if plan.mode is Mode.SELF_SPECULATION else (),
        )

    def got(self, plans, decoding=16):
        """Tokens/s over those ticks, against the best plan's."""
        context = decoding * self.length
        speed = [self.machine.throughput(p, decoding, context, self.chance) for p in plans]
        best = self.machine.best(decoding, context, self.chance)
        most = self.machine.throughput(best, decoding, context, self.chance)
        return sum(speed) / len(speed) / most


def fleet(machine=None, **options):
    return Fleet(Bandit(**options).among(EXACT), machine or Machine())


def test_on_hardware_that_fits_it_settles_where_physics_says():
    told = fleet()
    assert told.got(told.run(120)[60:]) > 0.95


@pytest.mark.parametrize(
    ("decoding", "factors"),
    [
        (4, {SPEC_32: 1.6, SPEC_16: 0.9}),
        (16, {SPEC_16: 1.7, SPEC_8: 1.5}),
        (16, {SPEC_4: 0.55, SPEC_8: 1.3, SPEC_16: 1.3}),
        (64, {SPEC_4: 0.55, SPEC_8: 1.3, SPEC_16: 1.3}),
        (64, {AR: 0.5, SPEC_8: 2.0}),
    ],
)
def test_on_hardware_that_the_model_fits_badly_it_finds_a_good_plan(decoding, factors):
    told = fleet(Machine(factors=factors))
    assert told.got(told.run(400, decoding)[200:], decoding) > 0.93


def test_a_machine_slow_in_every_plan_drives_nobody_to_the_untried():
    told = fleet(Machine(factors=dict.fromkeys(EXACT, 2.5)), explore_every=1000)
    assert len(set(told.run(100))) <= 2


def test_at_most_one_tick_in_so_many_explores():
    told = fleet(Machine(factors={SPEC_16: 1.5}), explore_every=5)
    told.run(300)
    held = Counter(d.schedule.plans[0] for d in told.decisions[-100:]).most_common(1)[0][1]
    assert held >= 100 * (1 - 1 / 5) - 1
    assert Reason.PROBE in {d.reason for d in told.decisions}


def test_what_is_predicted_to_lose_more_than_allowed_is_never_tried():
    for most_loss in (0.1, 0.3):
        told = fleet(most_loss=most_loss)
        told.run(300)
        for decision in told.decisions[1:]:
            plan, predicted = decision.schedule.plans[0], decision.predicted
            assert predicted[plan] >= (1.0 - most_loss) * max(predicted.values()) - 1e-9


def test_every_plan_that_may_be_nearly_as_good_is_tried_in_time():
    told = fleet()
    tried = set(told.run(600, decoding=24))
    predicted = told.decisions[0].predicted
    near = {plan for plan, value in predicted.items() if value > 0.75 * max(predicted.values())}
    assert len(near) >= 2
    assert near <= tried


def test_the_same_signals_make_the_same_decisions():
    first, second = (fleet(Machine(factors={SPEC_8: 1.6})) for _ in range(2))
    assert first.run(150) == second.run(150)


def test_an_idle_replica_is_left_alone():
    told = fleet()
    told.run(5)
    assert len(set(told.run(60, decoding=0))) == 1
    assert told.decisions[-1].reason is Reason.HOLD_IDLE


def test_harder_traffic_is_followed():
    told = fleet()
    told.run(60, decoding=32)
    told.chance = 0.1
    plans = told.run(120, decoding=32)
    assert told.got(plans[60:], 32) > 0.93


def test_speculation_is_found_again_after_hard_traffic():
    told = fleet()
    told.chance = 0.1
    assert told.run(120, decoding=32)[-1] == AR
    told.chance = 0.9
    plans = told.run(180, decoding=32)
    assert told.got(plans[120:], 32) > 0.93


def test_a_step_time_over_different_loads_is_not_taken_for_that_of_a_plan():
    """40 sequences have left, and the window's mean is neither of 40 nor of one."""
    told = fleet()
    told.run(60, decoding=40)
    before = told.state.arms
    mixed = told.seen(SPEC_8, 20, 20 * told.length)
    told.told = {SPEC_8: replace(mixed, step_s=reading(6.0 * mixed.step_s.value))}
    told.run(1, decoding=1)
    assert told.state.arms == before


def test_a_tpot_target_leaves_out_what_is_too_slow():
    told = fleet(tpot_target_s=0.012)
    worth = told.run(3, decoding=48) and told.state.known.model.worth
    assert worth.tpot_limit_s == pytest.approx(0.0072)
    values = told.state.known.model.values(48, 48 * 512)
    assert told.decisions[-1].schedule.plans[0] in values.within_limit


def test_states_are_values():
    policy, machine = Bandit().among(EXACT), Machine()
    told = Fleet(policy, machine)
    told.run(20)
    before, arms = told.state, dict(told.state.arms)
    told.run(20)
    assert dict(before.arms) == arms


def test_without_a_profile_the_usual_bands_hold():
    decision, state = Bandit().decide(Signals("r1", decoding=reading(4)), None, 0.0)
    assert (decision.reason, state) == (Reason.HOLD_MISSING, None)
    assert len(decision.schedule.bands) > 1


@pytest.mark.parametrize(
    ("name", "value"), [("explore_every", 1), ("most_loss", 1.0), ("hysteresis", 1.0)]
)
def test_an_option_outside_its_range_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        Bandit(**{name: value})


@pytest.mark.parametrize("quality", Quality)
def test_predicted_holds_every_allowed_plan_and_no_other(quality):
    rules = Rules.for_quality(quality)
    told = Fleet(Guard(Bandit(), rules), Machine())
    told.run(3)
    assert set(told.decisions[-1].predicted) == rules.allowed

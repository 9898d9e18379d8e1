"""What the governor learns under a worth, and the rule that keeps it safe.

Run with: pytest tests/replicas/test_worth_rule_learning.py
"""

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.observation import Drafted, StepObservation
from policies.vocabulary import AR, Mode, all_plans
from replicas.governor import PickReason
from tests.policies.synthetic import (
    EXACT,
    H100,
    QUIET,
    WORTH,
    Machine,
    governor_of,
    share,
    simulate,
)

# -- learning ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_step_of_acceptance_is_followed_within_ten_seconds(seed):
    machine = Machine(chance=lambda now: 0.95 if now < 20.0 else 0.45, seed=seed)
    governor = governor_of()
    simulate(governor, machine, 20.0, decoding=16)
    after = simulate(governor, machine, 12.0, decoding=16, now=20.0)
    most = machine.throughput(machine.best(16, 8192, 0.45), 16, 8192, 0.45)
    good = [s for s in after if machine.throughput(s.stayed, 16, 8192, 0.45) >= 0.93 * most]
    assert good[0].at - 20.0 < 3.0
    assert share([s for s in after if s.at > 30.0], good[0].stayed) > 0.5


@pytest.mark.parametrize("decoding", [4, 24, 64])
@pytest.mark.parametrize("seed", range(3))
def test_a_profile_that_is_wrong_by_up_to_two_is_recovered_from_within_forty_seconds(
    decoding, seed
):
    draw = random.Random(seed)
    factors = {plan: 2.0 ** draw.uniform(-1.0, 1.0) for plan in EXACT}
    machine = Machine(factors=factors, seed=seed)
    governor = governor_of()
    simulate(governor, machine, 40.0, decoding)
    steps = simulate(governor, machine, 10.0, decoding, now=40.0)
    got = sum(s.tokens for s in steps) / sum(s.seconds for s in steps)
    context = decoding * 512
    most = machine.throughput(machine.best(decoding, context, 0.8), decoding, context, 0.8)
    assert got >= 0.95 * most


# -- safety -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dwell_s", [0.0, 1000.0])
@pytest.mark.parametrize("decoding", [8, 64, 200])
@pytest.mark.parametrize("chance", [0.0, 0.2])
def test_acceptance_collapses_under_a_queue_and_ar_follows_within_twenty_steps(
    decoding, chance, dwell_s
):
    """Speculation left on in overload is metastable: the queue grows faster than it is served."""
    governor, length = governor_of(dwell_s=dwell_s), 2048
    easy, hard = Machine(chance=lambda now: 0.97), Machine(chance=lambda now: chance)
    before = simulate(governor, easy, 10.0, decoding, length, waiting=50)
    assert before[-1].stayed.mode is Mode.SELF_SPECULATION
    after = simulate(governor, hard, 6.0, decoding, length, waiting=50, now=10.0)
    until_ar = next(index for index, step in enumerate(after) if step.stayed == AR)
    assert until_ar <= 20


def test_steps_with_prefill_in_them_count_for_the_safety_rule():
    governor, context = governor_of(dwell_s=1000.0), 64 * 2048
    simulate(governor, Machine(chance=lambda now: 0.97), 10.0, 64, 2048, waiting=50)
    for index in range(21):
        plan = governor.pick(64, 10.0 + 0.1 * index, context, 50)
        step = StepObservation(plan, 64, context, 0.3, [1] * 64, is_alone=False)
        governor.observe(step, 10.1 + 0.1 * index)
    assert governor.plan == AR
    assert governor.reason is PickReason.DISTRUST


def test_that_those_who_decode_are_hard_is_no_reason_for_distrust():
    """The plan pays in the long run, and of those who are there nothing better was expected."""
    governor, draw, now = governor_of(QUIET), random.Random(0), 0.0
    tried, accepted, chances = [0.0] * 32, [0.0] * 32, [0.95, 0.4] * 16
    for index in range(6000):
        if index == 4000:  # none but hard ones are left, with long answers
            tried, accepted, chances = [200.0] * 32, [80.0] * 32, [0.4] * 32
        waiting, here = 9 if index > 4050 else 0, Drafted([*tried], [*accepted])
        plan = governor.pick(32, now, 32 * 512, waiting, drafted=lambda found=here: found)
        yields, ended = [], Drafted([], [])
        for row, chance in enumerate(chances):
            kept = 1
            while kept < plan.block_length and draw.random() < chance:
                kept += 1
            yields.append(kept)
            accepted[row] += kept - 1
            tried[row] += min(kept, plan.block_length - 1)
        if index % 10 == 0 and index < 4000:  # answers end, and the next are of the same kinds
            ended = Drafted([*tried], [*accepted])
            tried, accepted = [0.0] * 32, [0.0] * 32
        now += 0.01
        step = StepObservation(plan, 32, 32 * 512, 0.01, yields, answers=len(ended.tried))
        governor.observe(step._replace(ended=ended), now)
    assert governor.plan.mode is Mode.SELF_SPECULATION
    assert governor.distrusts == 0


def test_without_a_queue_a_collapse_is_left_to_the_estimates():
    governor = governor_of()
    simulate(governor, Machine(chance=lambda now: 0.95), 20.0, decoding=64)
    simulate(governor, Machine(chance=lambda now: 0.0), 10.0, decoding=64, now=20.0)
    assert governor.plan == AR
    assert governor.distrusts == 0


def test_while_it_distrusts_nothing_else_is_tried():
    governor = governor_of(dwell_s=1000.0)
    simulate(governor, Machine(chance=lambda now: 0.97), 20.0, decoding=64, waiting=9)
    after = simulate(governor, Machine(chance=lambda now: 0.0), 4.0, 64, waiting=9, now=20.0)
    assert governor.distrusts == 1
    first = next(s.at for s in after if s.stayed == AR)
    assert {s.picked for s in after if s.at >= first} == {AR}


SECONDS = st.one_of(
    st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, 1e300]), st.floats(1e-4, 10.0)
)
TURNS = st.lists(
    st.tuples(
        st.integers(0, 300),  # decoding
        st.integers(0, 10**7),  # context
        st.integers(0, 5),  # waiting
        st.floats(0, 5),  # time passes
        SECONDS,
        st.lists(st.integers(0, 33), max_size=6),
        st.booleans(),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(all_plans()), unique=True),
    st.none() | st.floats(0.001, 1.0),
    st.none() | st.integers(1, 2000),
    TURNS,
)
def test_whatever_happens_only_plans_of_the_worth_are_picked(plans, limit_s, positions, turns):
    worth = replace(
        WORTH,
        plans=(AR, *(p for p in plans if p != AR)),
        profile=replace(H100, max_positions=positions),
        tpot_limit_s=limit_s,
    )
    governor, now = governor_of(worth), 0.0
    for decoding, context, waiting, wait_s, seconds, yields, is_alone in turns:
        now += wait_s
        plan = governor.pick(decoding, now, context, waiting)
        assert plan in worth.plans
        assert governor.plan in worth.plans
        governor.observe(StepObservation(plan, decoding, context, seconds, yields, is_alone), now)


@pytest.mark.parametrize("seconds", [math.inf, math.nan, 1e300, 30.0])
def test_a_stall_is_no_price_of_a_change(seconds):
    governor = governor_of(QUIET)
    governor.pick(4, 0.0, 2048)
    governor.observe(StepObservation(governor.plan, 4, 2048, seconds, [1] * 4), 1.0)
    assert governor.switches == 1
    assert governor.rule.switch_s <= 0.1


def test_noise_is_no_price_of_a_change():
    """Right after a change a step is as often too short as too long where changes are free."""
    governor = governor_of(QUIET)
    expected_s = governor.rule.model.step_s(AR, 4, 2048)
    for number in range(200):
        governor.rule.changed()
        seconds = expected_s * (1.5 if number % 2 else 0.5)
        governor.rule.observe(StepObservation(AR, 4, 2048, seconds, [1] * 4), AR, 0.1 * number)
    assert governor.rule.switch_s < 0.06 * expected_s


def changes(costs_s: list[float]) -> float:
    """What a change is thought to cost after changes whose first steps took so much longer."""
    governor = governor_of(QUIET)
    expected_s = governor.rule.model.step_s(AR, 4, 2048)
    for number, cost_s in enumerate(costs_s):
        governor.rule.changed()
        step = StepObservation(AR, 4, 2048, expected_s + cost_s, [1] * 4)
        governor.rule.observe(step, AR, 0.1 * number)
    return governor.rule.switch_s


def test_what_every_change_costs_is_learned():
    assert changes([0.05] * 16) == pytest.approx(0.05)


def test_a_first_step_that_waited_is_no_price_of_a_change():
    """For a neighbour on the same cores, or for requests that were taken in."""
    assert changes([0.001, 0.001, 0.001, 0.001, 0.04] * 10) == pytest.approx(0.001)

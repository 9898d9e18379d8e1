"""Probes: what the governor tries besides the plan in use, and what that costs.

Run with: pytest tests/replicas/test_probing.py
"""

from copy import deepcopy
from dataclasses import fields, replace
from itertools import pairwise

import pytest

from policies.acceptance import POSITIONS
from policies.observation import StepObservation
from policies.vocabulary import AR, Mode, Schedule
from policies.worth import Worth
from replicas.probing import MOST_PROMISE, PAID_ROUNDS, PROBED_ROUNDS, SPLIT_ROWS
from tests.policies.synthetic import (
    EXACT,
    H100,
    QUIET,
    SPEC_4,
    SPEC_8,
    SPEC_16,
    WORTH,
    Machine,
    governor_of,
    share,
    simulate,
)


def probes(steps):
    return [step for step in steps if step.picked != step.stayed]


def test_in_ar_acceptance_is_probed_and_costs_at_most_the_probe_share():
    governor = governor_of()
    steps = simulate(governor, Machine(), 60.0, decoding=250, length=128)
    assert share(steps, AR) > 0.95
    drafts = [s for s in probes(steps) if s.picked.mode is Mode.SELF_SPECULATION]
    assert len(drafts) >= 4  # 250 rounds each: it goes on learning
    machine, lost_s = Machine(), 0.0
    for step in drafts:
        ar = machine.throughput(AR, 250, 250 * 128, 0.8)
        lost_s += step.seconds - step.tokens / ar
    assert lost_s <= 1.3 * WORTH.probe_share * 60.0  # what rounds scatter is not in the estimate


def test_a_probe_in_a_large_batch_is_one_step_and_no_switch():
    governor = governor_of()
    steps = simulate(governor, Machine(), 30.0, decoding=250, length=128)
    assert len(probes(steps)) == sum(governor.probes.values()) > 0
    for before, after in pairwise(steps):
        assert before.picked == before.stayed or after.picked == after.stayed
    changes = sum(before.stayed != after.stayed for before, after in pairwise(steps))
    assert governor.switches == changes + (steps[0].stayed != AR)


def test_a_machine_whose_steps_take_a_second_is_probed_too():
    curve = replace(H100.curve, weights_s=1.0, position_s=0.004)
    slow = replace(WORTH, profile=replace(H100, curve=curve), chances=(0.1,) * POSITIONS)
    machine = Machine(slow.profile, chance=lambda now: 0.1)
    steps = simulate(governor_of(slow), machine, 1800.0, decoding=64, length=64)
    lost_s = sum(
        s.seconds - s.tokens / machine.throughput(AR, 64, 4096, 0.1) for s in probes(steps)
    )
    assert len(probes(steps)) >= 2
    assert lost_s <= 1.3 * WORTH.probe_share * 1800.0


def test_without_a_probe_share_nothing_is_probed():
    governor = governor_of(QUIET)
    assert not probes(simulate(governor, Machine(), 30.0, decoding=250, length=128))
    assert governor.probes == {}


def test_speculation_is_found_again_after_hard_traffic_has_driven_it_out():
    """Without probes a learner is absorbed in AR: there nothing says what drafts would yield."""
    machine = Machine(chance=lambda now: 0.15 if now < 30.0 else 0.9)
    governor = governor_of()
    hard = simulate(governor, machine, 30.0, decoding=32)
    assert hard[-1].stayed == AR
    easy = simulate(governor, machine, 20.0, decoding=32, now=30.0)
    back = next(step.at for step in easy if step.stayed.mode is Mode.SELF_SPECULATION)
    assert back - 30.0 < 10.0


def first_probe(governor, decoding, now, **fields):
    """When it next probes, at picks of a millisecond, and the plan."""
    for _ in range(10_000):
        now += 0.001
        plan = governor.pick(decoding, now, decoding * 128, **fields)
        if plan != governor.plan:
            return now, plan
        step = StepObservation(plan, decoding, decoding * 128, 0.001, [1] * decoding)
        governor.observe(step, now)
    raise AssertionError("it never probed")


def in_ar():
    """A governor that AR is best for, whatever the load."""
    return governor_of(replace(WORTH, chances=(0.1,) * POSITIONS), ttl_s=1e6)


def sampled(governor, chance):
    """Steps that a probe of acceptance takes in a batch of one."""
    now, plan = first_probe(governor, 1, 10.0)
    machine, steps = Machine(chance=lambda now: chance), 0
    while plan != governor.plan:
        step = machine.step(plan, 1, 128, now)
        steps, now = steps + 1, now + step.seconds
        governor.observe(step, now)
        plan = governor.pick(1, now, 128)
    return steps


def test_in_a_batch_of_one_a_probe_goes_on_only_while_it_pays():
    assert sampled(in_ar(), chance=0.0) == PAID_ROUNDS
    assert sampled(in_ar(), chance=1.0) == PROBED_ROUNDS


def test_a_probe_of_which_no_step_is_seen_ends():
    governor = in_ar()
    now, _ = first_probe(governor, 1, 10.0)
    picked = [governor.pick(1, now + 0.001 * n, 128) for n in range(1, 20)]
    assert picked[PROBED_ROUNDS:] == [AR] * len(picked[PROBED_ROUNDS:])


@pytest.mark.parametrize("change", ["withdrawn", "more", "pinned"])
def test_a_probe_does_not_go_on_once_its_plan_or_its_batch_is_another(change):
    governor = in_ar()
    now, plan = first_probe(governor, 1, 10.0)
    governor.observe(Machine(chance=lambda now: 1.0).step(plan, 1, 128, now), now)
    decoding, worth = 40 if change == "more" else 1, governor.schedule.worth
    if change == "withdrawn":
        worth = replace(worth, plans=tuple(p for p in EXACT if p != plan))
    if change == "pinned":
        governor.receive(Schedule.pinned(AR, version=1, ttl_s=1e6), now)
        governor.pick(1, now, 128)
    governor.receive(Schedule.pinned(AR, worth=worth, version=2, ttl_s=1e6), now)
    assert governor.pick(decoding, now + 0.001, decoding * 128) == governor.plan != plan


def test_where_steps_can_be_shared_a_few_of_many_sequences_probe_acceptance():
    governor = in_ar()
    now, plan = first_probe(governor, 64, 10.0, splits=True)
    assert (plan, governor.probed_rows) == (SPEC_8, SPLIT_ROWS)
    governor.observe(Machine(chance=lambda now: 0.1).step(plan, 4, 512, now), now)
    governor.pick(64, 20.0, 64 * 128, splits=True)
    assert governor.probed_rows is None


def test_where_they_cannot_all_probe():
    governor = in_ar()
    first_probe(governor, 64, 10.0)
    assert governor.probed_rows is None


def test_a_load_that_has_changed_is_probed_at_once():
    governor = in_ar()
    now, plan = first_probe(governor, 64, 10.0)
    governor.observe(Machine(chance=lambda now: 0.1).step(plan, 64, 64 * 128, now), now)
    same, _ = first_probe(deepcopy(governor), 64, now)
    other, _ = first_probe(governor, 8, now)
    assert other - now < 0.2 < 0.9 < same - now


def test_acceptance_is_probed_in_the_block_that_promises_most():
    """It costs least."""
    for slow, plan in (((), SPEC_8), ((SPEC_8,), SPEC_16)):
        corrections = {known: 3.0 if known in slow else 1.0 for known in EXACT}
        worth = replace(WORTH, chances=(0.1,) * POSITIONS, corrections=corrections)
        assert first_probe(governor_of(worth, ttl_s=1e6), 64, 10.0)[1] == plan


def drafts_without_savings(chance):
    """Late probes of a governor that hysteresis keeps in AR, on a machine so slow that its first
    ones have cost more than is ever saved; and what it predicts."""
    curve = H100.curve
    slow = {f.name: 100.0 * getattr(curve, f.name) for f in fields(curve) if f.name.endswith("_s")}
    profile = replace(H100, curve=replace(curve, **slow), switch_s=0.0)
    worth = Worth(EXACT, profile, (chance,) * POSITIONS, hysteresis=0.9, probe_share=1e-6)
    machine = Machine(profile, chance=lambda now: chance)
    governor = governor_of(worth, ttl_s=1e6)
    steps = simulate(governor, machine, 600.0, decoding=64, length=128)
    assert {step.stayed for step in steps} == {AR}
    return sum(step.at > 400.0 for step in probes(steps)), governor.predicted


def test_a_probe_that_promises_a_gain_needs_no_savings():
    """Where only hysteresis keeps it in AR, to wait for savings is to wait for longer."""
    gaining, predicted = drafts_without_savings(0.8)
    assert predicted[SPEC_8] > predicted[AR]
    losing, predicted = drafts_without_savings(0.3)
    assert predicted[SPEC_8] < predicted[AR]
    assert gaining > 10
    assert losing == 0


def test_a_plan_that_was_timed_and_is_far_behind_is_not_timed_again_after_a_while():
    """At low load a replica serves a request in a minute: what it knows of its machine must last
    longer than that."""
    governor, machine = governor_of(), Machine()
    for minute in range(8):
        simulate(governor, machine, 2.0, decoding=2, now=64.0 * minute)
    assert governor.predicted[SPEC_4] < 0.7 * max(governor.predicted.values())
    assert governor.probes[SPEC_4] == 1


def spent(decoding):
    """Share of the time that probes cost, of a governor that hard prompts keep in AR, once it has
    spent what it had saved."""
    worth = replace(WORTH, chances=(0.1,) * POSITIONS, probe_share=0.0005)
    machine, governor = Machine(chance=lambda now: 0.1), governor_of(worth, ttl_s=1e6)
    simulate(governor, machine, 120.0, decoding=decoding, length=128)
    steps = simulate(governor, machine, 240.0, decoding=decoding, length=128, now=120.0)
    assert {step.stayed for step in steps} == {AR}
    in_ar = machine.throughput(AR, decoding, decoding * 128, 0.1)
    lost_s = sum(step.seconds - step.tokens / in_ar for step in probes(steps))
    return lost_s / 240.0 / worth.probe_share


def test_where_a_sample_of_acceptance_could_gain_much_more_is_spent_on_it():
    """With one client speculation may make three times as many tokens, with many hardly more."""
    assert 1.5 < spent(decoding=1) < 1.3 * MOST_PROMISE
    assert spent(decoding=200) < 1.3


def waited_after_a_pin(picks):
    """Until the first probe after a minute of a pin, of a governor that had spent its savings."""
    governor, machine, now = in_ar(), Machine(chance=lambda now: 0.1), 10.0
    while now < 14.0:
        now, plan = first_probe(governor, 1, now)
        while plan != governor.plan:
            governor.observe(machine.step(plan, 1, 128, now), now)
            plan = governor.pick(1, now, 128)
    worth, later = governor.schedule.worth, now + 60.0
    governor.receive(Schedule.pinned(AR, version=1, ttl_s=1e6), now)
    for pick in range(picks):
        governor.pick(1, now + pick, 128)
    governor.receive(Schedule.pinned(AR, worth=worth, version=2, ttl_s=1e6), later)
    return first_probe(governor, 1, later)[0] - later


def test_time_under_a_pin_is_saved_for_probes_too():
    assert waited_after_a_pin(picks=60) < 0.5 * waited_after_a_pin(picks=1)

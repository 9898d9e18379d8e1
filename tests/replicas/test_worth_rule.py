"""The governor where plans have a worth, on a simulated machine whose truth is known.

Run with: pytest tests/replicas/test_worth_rule.py
"""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest

from policies.acceptance import POSITIONS
from policies.observation import StepObservation
from policies.vocabulary import AR, SAFE_PLAN, Mode, Schedule
from replicas.governor import Governor, PickReason
from replicas.worth_rule import NEGLIGIBLE, RENT, STEADY_LOSS_S
from tests.policies.synthetic import (
    EXACT,
    H100,
    QUIET,
    SPEC_4,
    SPEC_8,
    SPEC_16,
    SPEC_32,
    WORTH,
    Machine,
    governor_of,
    simulate,
)

# -- choosing ---------------------------------------------------------------------------------


@pytest.mark.parametrize("decoding", [1, 4, 16, 40, 100, 250])
def test_it_settles_in_a_plan_about_as_good_as_the_best(decoding):
    machine, length = Machine(), 256
    steps = simulate(governor_of(), machine, 20.0, decoding, length)[-100:]
    most = machine.throughput(
        machine.best(decoding, decoding * length, 0.8), decoding, decoding * length, 0.8
    )
    stayed = Counter(step.stayed for step in steps).most_common(1)[0][0]
    # Within the hysteresis there is nothing to gain that a change would be sure to get.
    assert machine.throughput(stayed, decoding, decoding * length, 0.8) >= 0.93 * most


def test_context_length_shifts_the_choice():
    short, long = governor_of(QUIET), governor_of(QUIET)
    simulate(short, Machine(), 5.0, decoding=200, length=128)
    simulate(long, Machine(), 5.0, decoding=200, length=8192)
    assert short.plan == AR
    assert long.plan.mode is Mode.SELF_SPECULATION


def in_spec_16(hysteresis):
    """A governor in a plan that is not the best one for 24 sequences, and what a change gains."""
    worth = replace(QUIET, hysteresis=hysteresis, learns=False)
    governor = Governor(Schedule.pinned(SPEC_16, worth=worth), 0.0)
    values = governor.rule.model.values(24, 24 * 512)
    return governor, values.by_plan[values.best] / values.by_plan[SPEC_16] - 1.0


def test_a_negligible_gain_changes_nothing():
    gain = in_spec_16(0.0)[1]
    governor, _ = in_spec_16(1.1 * gain / NEGLIGIBLE)
    steps = simulate(governor, Machine(), 30.0, decoding=24)
    assert governor.predicted[SPEC_16] < max(governor.predicted.values())
    assert {step.stayed for step in steps} == {SPEC_16}
    assert governor.reason is PickReason.HYSTERESIS


def test_a_gain_within_the_hysteresis_is_taken_once_it_has_stayed():
    gain = in_spec_16(0.0)[1]
    governor, _ = in_spec_16(1.1 * gain)
    steps = simulate(governor, Machine(), 30.0, decoding=24)
    waited_s = next(step.at for step in steps if step.stayed != SPEC_16)
    assert waited_s == pytest.approx(STEADY_LOSS_S / (gain * (1.0 - 1.1 * NEGLIGIBLE)), rel=0.2)


def test_after_a_pin_it_takes_the_best_plan_whatever_the_hysteresis():
    """The plan in use was the operator's choice: nothing speaks for staying with it."""
    worth = replace(QUIET, hysteresis=0.9)
    governor = governor_of(worth)
    governor.receive(Schedule.pinned(SPEC_4, version=1), 1.0)
    governor.pick(8, 1.0, 8 * 512)
    assert governor.plan == SPEC_4
    governor.receive(Schedule.pinned(AR, worth=worth, version=2), 20.0)
    governor.pick(8, 20.0, 8 * 512)
    assert governor.plan == governor.rule.model.values(8, 8 * 512).best != SPEC_4


def settles(governor, decoding, length):
    """Too soon for a gain that only stays."""
    for index in range(100):
        governor.pick(decoding, 1e-4 * index, decoding * length)
    return governor.plan


def test_leaving_a_plan_takes_the_hysteresis():
    governor = governor_of(QUIET)
    held = settles(governor, 30, 600)
    values = governor.rule.model.values(8, 8 * 600)
    gain = values.by_plan[values.best] / values.by_plan[held] - 1.0
    for hysteresis, leaves in ((gain * 1.1, False), (gain / 1.1, True)):
        rule = governor_of(replace(QUIET, hysteresis=hysteresis)).rule
        assert (rule.choose(held, values, 0, 1.0) == values.best) is leaves


def test_no_change_before_the_dwell_and_one_that_grows_with_what_a_change_costs():
    waits = []
    for switch_s in (0.0, 0.1, 0.2):
        governor = governor_of(replace(QUIET, profile=replace(H100, switch_s=switch_s)))
        machine = Machine(switch_s=switch_s)
        simulate(governor, machine, 10.0, decoding=2)
        changed = max(governor.switched_at.values())
        # The load asks for another plan from now on; when does it come?
        steps = simulate(governor, machine, 8.0, decoding=200, length=128, now=changed + 1e-6)
        waits.append(next(s.at for s in steps if s.stayed == AR) - changed)
    assert waits == sorted(waits)
    assert waits[1] == pytest.approx(20 * 0.1, rel=0.15)
    assert waits[2] == pytest.approx(20 * 0.2, rel=0.15)


def test_a_change_waits_until_what_staying_lost_has_paid_for_it():
    waited = []
    for switch_s in (0.0, 0.1, 0.4):
        governor = governor_of(replace(QUIET, profile=replace(H100, switch_s=switch_s)))
        machine = Machine(switch_s=switch_s)
        simulate(governor, machine, 30.0, decoding=8)
        held = governor.plan
        steps = simulate(governor, machine, 20.0, decoding=24, now=30.0)
        waited.append(next(s.at for s in steps if s.stayed != held) - 30.0)
    gain = max(governor.predicted.values()) / governor.predicted[held] - 1.0
    assert waited == sorted(waited)
    assert waited[1] == pytest.approx(RENT * 0.1 / gain, rel=0.3)
    assert waited[2] == pytest.approx(RENT * 0.4 / gain, rel=0.3)


def test_load_that_swings_across_a_crossover_changes_the_plan_at_most_once_a_dwell():
    governor = governor_of(QUIET, dwell_s=2.0)
    simulate(governor, Machine(), 60.0, decoding=lambda now: 4 if int(now * 4) % 2 else 200)
    assert governor.switches <= 60.0 / 2.0 + 1


# -- limits -----------------------------------------------------------------------------------


def test_plans_in_which_hard_requests_wait_too_long_are_left_out():
    # Half of the requests accept nearly all, half nearly nothing.
    survival = [(0.2**i + 0.98**i) / 2 for i in range(POSITIONS + 1)]
    chances = tuple(b / a for a, b in pairwise(survival))
    limit_s, tpot_s = 0.012, []
    for limit in (None, limit_s):
        governor = governor_of(replace(QUIET, chances=chances, tpot_limit_s=limit))
        for index in range(50):
            governor.pick(32, 0.1 * index, 32 * 512)
        model = governor.rule.model
        hard = model.tokens(governor.plan, hard=True)
        tpot_s.append(model.step_s(governor.plan, 32, 32 * 512) / hard)
    assert tpot_s[0] > limit_s >= tpot_s[1]


def test_shapes_beyond_max_positions_are_never_run_and_left_at_once():
    captured = replace(WORTH, profile=replace(H100, switch_s=0.0, max_positions=256))
    governor, machine = governor_of(captured, dwell_s=60.0), Machine()

    def load(now):
        return 8 if now % 2.0 < 1.0 else 64

    for step in simulate(governor, machine, 30.0, decoding=load):
        assert step.picked == AR or load(step.at) * step.picked.block_length <= 256


def test_a_withdrawn_plan_is_left_at_once():
    governor = governor_of(dwell_s=60.0)
    simulate(governor, Machine(), 70.0, decoding=4)
    held = governor.plan
    kept = tuple(plan for plan in EXACT if plan != held)
    governor.receive(Schedule.pinned(AR, worth=replace(WORTH, plans=kept), version=1), 70.0)
    assert governor.pick(4, 70.0, 2048) in kept
    assert governor.plan in kept


def test_an_expired_schedule_means_the_safe_plan_without_probes():
    governor = governor_of(ttl_s=5.0)
    steps = simulate(governor, Machine(), 10.0, decoding=4)
    late = [step for step in steps if step.at > 5.0]
    assert late
    assert {step.picked for step in late} == {SAFE_PLAN}
    assert governor.reason is PickReason.EXPIRED


def test_a_pin_hides_what_was_learned_and_gives_it_back():
    governor = governor_of()
    simulate(governor, Machine(chance=lambda now: 0.3), 10.0, decoding=4)
    known = governor.rule.model.tokens(SPEC_8)
    governor.receive(Schedule.pinned(SPEC_32, version=1), 10.0)
    assert governor.pick(4, 10.0, 2048) == SPEC_32
    governor.receive(Schedule.pinned(AR, worth=WORTH, version=2), 11.0)
    assert governor.rule.model.tokens(SPEC_8) == pytest.approx(known, rel=0.1)


def test_diffusion_is_used_only_where_the_worth_names_it():
    steps = simulate(governor_of(), Machine(), 10.0, decoding=8)
    assert all(step.picked.mode is not Mode.DIFFUSION for step in steps)


# -- what is counted -------------------------------------------------------------------------


def test_prefill_counts_under_a_pin_too():
    """Tokens and answers do, and without it a pin would leave the impression that there is none."""

    def rows(pinned):
        governor = governor_of(QUIET, ttl_s=1e6)
        if pinned:
            governor.receive(Schedule.pinned(AR, version=1, ttl_s=1e6), 0.0)
        for step in range(2000):
            now = 0.01 * step
            governor.pick(8, now, 4096, running=10)
            observed = StepObservation(AR, 8, 4096, 0.01, [1] * 8, answers=2)
            governor.observe(observed, now + 0.01)
        values = governor.rule.model.values(8, 4096, clients=10).by_plan
        return values[SPEC_32] / values[SPEC_4]

    assert rows(pinned=True) == pytest.approx(rows(pinned=False), rel=1e-3)


@pytest.mark.parametrize("plan", [AR, SPEC_32])
def test_plans_are_judged_at_the_clients_there_are(plan):
    """Four of ten have just got an answer, at every other step, and their next requests come one
    step later; six or ten run, and what the plans are worth is the same at either."""
    governor = governor_of(replace(QUIET, learns=False), ttl_s=1e6)
    governor.receive(Schedule.pinned(plan, version=1, ttl_s=1e6), 0.0)
    for step in range(2001):
        now, running = 0.01 * step, (10, 6)[step % 2]
        if step == 1990:
            governor.receive(Schedule.pinned(plan, worth=governor.rule.worth, version=2), now)
        governor.pick(running, now, 512 * running, running=running)
        answers = 4 * (running == 10)
        observed = StepObservation(plan, running, 512 * running, 0.01, [1] * running, True)
        governor.observe(observed._replace(answers=answers), now + 0.01)
        if step >= 1999:
            expected = governor.rule.model.values(10, 5120, clients=10).by_plan
            assert governor.predicted == pytest.approx(expected, rel=1e-3)


def test_speculation_for_the_first_few_of_a_burst_is_not_distrusted():
    """Many are in prefill and requests queue: what they will make under AR is no measure of now."""
    governor = governor_of(QUIET)
    machine, now = Machine(), 0.0
    for _ in range(200):
        plan = governor.pick(4, now, 4 * 512, waiting=50, running=64)
        step = machine.step(SPEC_8 if plan == AR else plan, 4, 4 * 512, now)
        now += step.seconds
        governor.observe(step, now)
    assert governor.distrusts == 0


# -- dwell ------------------------------------------------------------------------------------


def test_a_plan_of_slow_steps_is_left_after_a_few_steps_of_the_better_one():
    governor = Governor(Schedule.pinned(AR, worth=replace(QUIET, learns=False), ttl_s=1e6), 0.0)
    assert governor.pick(1, 100.0, 128) == SPEC_32  # no dwell before the first change
    ar_s, slow_s = (H100.step_s(plan, 250, 250 * 128) for plan in (AR, SPEC_32))
    assert slow_s > 5 * ar_s
    governor.pick(250, 100.0 + 5 * ar_s, 250 * 128)
    assert governor.plan == SPEC_32
    governor.pick(250, 100.0 + 11 * ar_s, 250 * 128)
    assert governor.plan == AR


def test_the_dwell_does_not_hold_it_in_a_plan_that_an_operator_has_pinned():
    governor = governor_of(QUIET, dwell_s=60.0, ttl_s=1e6)
    governor.receive(Schedule.pinned(SPEC_32, version=1, ttl_s=1e6), 10.0)
    assert governor.pick(250, 10.0, 250 * 128) == SPEC_32
    unpinned = Schedule.pinned(AR, worth=QUIET, dwell_s=60.0, version=2, ttl_s=1e6)
    governor.receive(unpinned, 10.1)
    assert governor.pick(250, 10.1, 250 * 128) == AR

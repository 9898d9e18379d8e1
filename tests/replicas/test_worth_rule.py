"""The governor where plans have a worth, on a simulated machine whose truth is known.

Run with: pytest tests/replicas/test_worth_rule.py
"""

from collections import Counter
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise

import pytest

from policies.acceptance import POSITIONS
from policies.cost_model import StepObservation
from policies.vocabulary import AR, SAFE_PLAN, Mode, Schedule
from replicas.governor import Governor, PickReason
from replicas.probing import PAID_ROUNDS, PROBED_ROUNDS, SPLIT_ROWS
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
    share,
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


def test_leaving_ar_takes_more_than_the_plain_hysteresis():
    """What a probe in AR promises is too much: right after AR the batch holds more easy requests
    than it will in steady self-speculation (residence bias)."""
    values = governor_of(QUIET).rule.model.values(80, 80 * 600)
    gain = values.by_plan[values.best] / values.by_plan[AR] - 1.0
    assert settles(governor_of(replace(QUIET, hysteresis=gain / 1.4)), 80, 600) == AR
    assert settles(governor_of(replace(QUIET, hysteresis=gain / 1.6)), 80, 600) == values.best


def test_leaving_another_plan_takes_the_plain_hysteresis():
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


# -- probing ----------------------------------------------------------------------------------


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
        values = governor.rule.model.values(8, 4096, running=10).by_plan
        return values[SPEC_32] / values[SPEC_4]

    assert rows(pinned=True) == pytest.approx(rows(pinned=False), rel=1e-3)


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


def test_a_load_that_has_changed_is_probed_at_once():
    governor = in_ar()
    now, plan = first_probe(governor, 64, 10.0)
    governor.observe(Machine(chance=lambda now: 0.1).step(plan, 64, 64 * 128, now), now)
    same, _ = first_probe(deepcopy(governor), 64, now)
    other, _ = first_probe(governor, 8, now)
    assert other - now < 0.2 < 0.9 < same - now


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

"""What plans are worth, and what corrects it. Run with: pytest tests/policies/test_cost_model.py"""

import math
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.acceptance import POSITIONS, PRIOR_ROUNDS
from policies.cost_model import REFRESH_S, CostModel
from policies.observation import Drafted, StepObservation
from policies.vocabulary import AR, all_plans
from policies.worth import Worth
from tests.policies.synthetic import (
    DIFFUSION_8,
    EXACT,
    H100,
    SPEC_4,
    SPEC_8,
    SPEC_16,
    SPEC_32,
    Machine,
)

WORTH = Worth(EXACT, H100)


def learned(machine, plans, sequences=16, seconds=2.0, worth=WORTH, length=512):
    """A model that has seen these plans take turns on the machine."""
    model, now, turn = CostModel(worth), 0.0, 0
    while now < seconds:
        step = machine.step(plans[turn % len(plans)], sequences, sequences * length, now)
        now, turn = now + step.seconds, turn + 1
        model.observe(step, now)
    model.revise(now + REFRESH_S)
    return model


def test_worth_is_tokens_over_step_time():
    model = CostModel(WORTH)
    expected = 4 * model.tokens(SPEC_8) / H100.step_s(SPEC_8, 4, 2048)
    assert model.throughput(SPEC_8, 4, 2048) == pytest.approx(expected)
    # `values` knows the context to an eighth of a doubling.
    assert model.values(4, 2048).by_plan[SPEC_8] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("fields", [{}, {"tpot_limit_s": 0.012}])
def test_the_best_plan_by_batch_is_that_of_the_values(fields):
    batches = (1, 4, 16, 64, 256)
    worth = replace(WORTH, **fields)
    model = learned(Machine(factors={SPEC_8: 3.0}), [SPEC_8, SPEC_4], sequences=4, worth=worth)
    best = model.best_by_batch(batches, 512.0)
    assert best == [model.values(n, n * 512.0).best for n in batches]
    assert len(set(best)) > 1


def test_more_sequences_shorten_the_best_block():
    model = CostModel(WORTH)
    lengths = [model.values(n, n * 128).best.block_length for n in (1, 8, 32, 60, 200)]
    assert lengths == [32, 16, 8, 4, 1]


def test_longer_contexts_lengthen_the_best_block():
    model = CostModel(WORTH)
    assert model.values(200, 200 * 128).best == AR
    assert model.values(200, 200 * 8192).best == SPEC_8


def test_lower_acceptance_shortens_the_best_block():
    easy, hard = (CostModel(replace(WORTH, chances=(q,) * POSITIONS)) for q in (0.95, 0.3))
    assert easy.values(8, 4096).best.block_length > hard.values(8, 4096).best.block_length


def test_a_wrong_step_time_is_corrected_by_its_median():
    factors = {SPEC_16: 2.0, AR: 0.7}
    model = learned(Machine(factors=factors), [AR, SPEC_4, SPEC_8, SPEC_16])
    for plan in (AR, SPEC_4, SPEC_8, SPEC_16):
        assert model.correction(plan, 16) == pytest.approx(factors.get(plan, 1.0), rel=0.2)


def test_corrections_learn_a_wrong_profile_well_enough_to_choose():
    machine = Machine(factors={SPEC_32: 0.5, SPEC_16: 1.9, SPEC_8: 1.6, SPEC_4: 1.2, AR: 0.8})
    model = learned(machine, EXACT, sequences=24, seconds=4.0)
    chosen, best = model.values(24, 24 * 512).best, machine.best(24, 512 * 24, 0.8)
    got = machine.throughput(chosen, 24, 512 * 24, 0.8)
    assert got >= 0.97 * machine.throughput(best, 24, 512 * 24, 0.8)


def test_what_was_learned_of_one_plan_is_assumed_of_those_never_run():
    # A machine that is twice as slow is so in every plan: the choice must not run to the untried.
    model = learned(Machine(factors=dict.fromkeys(EXACT, 2.0)), [SPEC_8])
    assert model.correction(SPEC_32, 16) == pytest.approx(2.0, rel=0.1)
    assert model.values(16, 8192).best == CostModel(WORTH).values(16, 8192).best


def test_step_times_do_not_fall_as_the_batch_grows_even_if_a_sample_says_so():
    model = CostModel(WORTH)
    for sequences, factor in ((8, 1.8), (16, 0.5), (32, 1.0)):
        step = Machine(factors={SPEC_8: factor}).step(SPEC_8, sequences, 512 * sequences, 0.0)
        for _ in range(40):
            model.observe(step, 0.0)
    model.revise(1.0)
    times = [model.step_s(SPEC_8, n, 512 * n) for n in (8, 16, 32)]
    assert times == sorted(times)


def test_a_step_of_two_plans_says_nothing_of_step_times():
    model = CostModel(WORTH)
    step = Machine(factors={SPEC_8: 3.0}).step(SPEC_8, 16, 8192, 0.0)._replace(is_alone=False)
    for _ in range(50):
        model.observe(step, 0.0)
    model.revise(1.0)
    assert model.correction(SPEC_8, 16) == 1.0


@pytest.mark.parametrize("prompt_tokens", [40, 2000])
def test_steps_that_all_hold_prefill_tell_what_their_plan_takes(prompt_tokens):
    """Under load of short answers no step is without."""
    model = CostModel(WORTH)
    step = Machine(factors={SPEC_8: 3.0}).step(SPEC_8, 16, 8192, 0.0)
    prefill_s = H100.curve.added_s(16 * 8, prompt_tokens)
    mixed = step._replace(seconds=step.seconds + prefill_s, prompt_tokens=prompt_tokens)
    for _ in range(50):
        model.observe(mixed, 0.0)
    model.revise(1.0)
    assert model.correction(SPEC_8, 16) == pytest.approx(3.0, rel=0.05)


def test_a_plan_whose_steps_are_often_held_up_is_charged_with_their_mean():
    """A median would hide it: three steps in ten that take four times as long."""
    model, step = CostModel(WORTH), Machine().step(AR, 16, 8192, 0.0)
    for number in range(300):
        slower = 4.0 if number % 10 in (2, 5, 8) else 1.0
        model.observe(step._replace(seconds=step.seconds * slower), 0.02 * number)
    model.revise(10.0)
    assert model.correction(AR, 16) == pytest.approx(1.9, rel=0.15)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, 1e300, 1e-300])
def test_a_step_time_that_cannot_be_is_ignored(seconds):
    model = CostModel(WORTH)
    model.observe(StepObservation(SPEC_8, 4, 2048, seconds, [8] * 4), 0.0)
    model.revise(1.0)
    assert model.correction(SPEC_8, 4) == 1.0


def test_acceptance_is_learned_from_one_plan_for_all():
    model = learned(Machine(chance=lambda now: 0.5), [SPEC_16], seconds=20.0)
    assert model.tokens(SPEC_8) == pytest.approx(sum(0.5**i for i in range(8)), rel=0.05)
    assert model.tokens(SPEC_4) == pytest.approx(sum(0.5**i for i in range(4)), rel=0.05)


def test_a_change_of_traffic_is_learned_within_seconds():
    machine = Machine(chance=lambda now: 0.9 if now < 20.0 else 0.4)
    model = learned(machine, [SPEC_8], seconds=22.0)
    assert model.tokens(SPEC_8) == pytest.approx(sum(0.4**i for i in range(8)), rel=0.15)


def with_a_lone_client(answer_tokens, seconds=120.0):
    """The highest over the lowest yield of block 32 that a model believed in, after a minute with a
    client whose requests are easy and hard by turns of the coin."""
    coin, machine, model = Random(1), Machine(chance=lambda now: 0.0), CostModel(WORTH)
    now, seen = 0.0, []
    while now < seconds:
        chance, left = coin.choice((0.95, 0.7)), answer_tokens
        machine.chance = lambda now, chance=chance: chance
        while left > 0:
            step = machine.step(SPEC_32, 1, 512, now)
            left -= sum(step.yields)
            now += step.seconds
            model.observe(step._replace(answers=int(left <= 0)), now)
            if now > seconds / 2:
                seen.append(model.tokens(SPEC_32))
    return max(seen) / min(seen)


def test_short_requests_of_all_kinds_are_one_traffic_and_long_ones_are_followed():
    assert with_a_lone_client(answer_tokens=20) < 1.5
    assert with_a_lone_client(answer_tokens=2000) > 2.0


def test_diffusion_learns_its_own_yield():
    model = CostModel(Worth(all_plans(), H100))
    for index in range(40):
        step = StepObservation(DIFFUSION_8, 8, 4096, H100.step_s(DIFFUSION_8, 8, 4096), [4] * 8)
        model.observe(step, index * 0.1)
    model.revise(10.0)
    assert model.tokens(DIFFUSION_8) == pytest.approx(4.0, rel=0.1)


def test_nothing_is_learned_where_the_worth_says_so():
    machine = Machine(chance=lambda now: 0.2, factors=dict.fromkeys(EXACT, 2.0))
    fixed = replace(WORTH, learns=False)
    model = learned(machine, [AR, SPEC_8], worth=fixed)
    assert model.values(16, 8192) == CostModel(fixed).values(16, 8192)


def test_many_equal_steps_told_at_once_count_like_as_many_told_singly():
    one = StepObservation(SPEC_4, 4, 2048, 0.02, [1, 2, 4, 4])
    many = one._replace(seconds=0.2, yields=(), steps=10, counts=(0, 10, 10, 0, 20))
    singly, at_once = CostModel(WORTH), CostModel(WORTH)
    for _ in range(10):
        singly.observe(one, 0.0)
    at_once.observe(many, 0.0)
    for model in (singly, at_once):
        model.revise(1.0)
    assert at_once.values(4, 2048).by_plan == pytest.approx(singly.values(4, 2048).by_plan)


def test_a_new_worth_keeps_what_was_learned():
    model = learned(Machine(chance=lambda now: 0.4, factors={SPEC_8: 2.0}), [SPEC_8], seconds=20.0)
    before = model.values(16, 8192).by_plan[SPEC_8]
    model.adopt(replace(WORTH, plans=(AR, SPEC_8)))
    assert set(model.values(16, 8192).by_plan) == {AR, SPEC_8}
    assert model.values(16, 8192).by_plan[SPEC_8] == pytest.approx(before, rel=0.1)


def of_short_answers(tokens):
    """A model that has seen answers of so many tokens, each with one step of prefill."""
    model, now = CostModel(WORTH), 0.0
    for _ in range(2000):
        now += 0.01
        model.begin_step(tokens, tokens + 1)
        model.observe(StepObservation(AR, tokens, 512 * tokens, 0.01, [1] * tokens, answers=1), now)
    model.revise(now + REFRESH_S)
    return model


def test_where_prefill_shares_steps_short_answers_make_long_blocks_worth_less():
    def long_over_short(tokens):
        values = of_short_answers(tokens).values(4, 2048, clients=4).by_plan
        return values[SPEC_32] / values[SPEC_4]

    assert long_over_short(24) < 0.95 * long_over_short(2000)


def test_where_prefill_has_steps_of_its_own_the_length_of_answers_is_no_matter():
    short, long = (of_short_answers(tokens).values(8, 4096).by_plan for tokens in (24, 2000))
    assert short[SPEC_32] / short[SPEC_4] == pytest.approx(long[SPEC_32] / long[SPEC_4], rel=1e-3)


def test_one_sequence_alone_shares_its_steps_with_nobody():
    model = of_short_answers(24)
    alone, shared = model.values(1, 512).by_plan, model.values(1, 512, clients=1).by_plan
    assert shared == pytest.approx(alone)


def in_closed_loop(plan, clients, delay, steps=3000):
    """What plans are worth, to one who has been in `plan` under so many clients, each of which
    sends its next request, of 24 tokens to answer, `delay` steps after its last answer."""
    model = CostModel(replace(WORTH, learns=False))
    prefill, decoding = 1, 24 if plan == AR else 4
    cycle = prefill + decoding + delay
    for step in range(steps):
        at = [(step + cycle * n // clients) % cycle for n in range(clients)]
        rows = sum(prefill <= place < prefill + decoding for place in at)
        running = sum(place < prefill + decoding for place in at)
        seen = model.begin_step(rows, running)
        ended = sum(place == prefill + decoding - 1 for place in at)
        tokens = [24 // decoding] * rows
        observed = StepObservation(plan, rows, 512 * rows, 0.01, tokens, answers=ended)
        model.observe(observed, 0.01 * step)
    return model.values(rows, 512 * rows, clients=seen).by_plan


@pytest.mark.parametrize("delay", [0, 1])
@pytest.mark.parametrize("clients", [16, 32])
def test_plans_are_compared_at_the_clients_there_are_whichever_is_in_use(clients, delay):
    """Fewer sequences run the fewer steps an answer takes, where a client's slot stays empty for a
    step; judged at those, the other plans would look worse than they are."""
    short, long = (in_closed_loop(plan, clients, delay) for plan in (AR, SPEC_16))
    assert short[SPEC_16] / short[AR] == pytest.approx(long[SPEC_16] / long[AR], rel=0.02)


def test_a_slot_that_stays_empty_for_a_step_makes_long_blocks_worth_less():
    at_once, later = (in_closed_loop(SPEC_16, 16, delay) for delay in (0, 1))
    assert later[SPEC_16] / later[AR] < 0.97 * at_once[SPEC_16] / at_once[AR]


def changed(now=10.0):
    """A model of hard traffic that has just noticed easy one, the worth it had, and when."""
    hard = replace(WORTH, chances=(0.1,) * POSITIONS)
    model = learned(Machine(chance=lambda now: 0.1), [SPEC_8], worth=hard)
    machine = Machine(chance=lambda now: 0.9)
    while not model.learned.is_relearning:
        step = machine.step(SPEC_8, 2, 1024, now)
        now += step.seconds
        model.observe(step, now)
    return model, hard, now


def test_a_change_of_traffic_drops_the_prior_with_the_evidence():
    model, _, _ = changed()
    assert model.learned.acceptance.prior_rounds < 0.2 * PRIOR_ROUNDS


@pytest.mark.parametrize("later_s", [0.0, 10.0])
def test_a_controller_that_has_not_seen_the_traffic_change_brings_nothing_back(later_s):
    model, hard, now = changed()
    model.observe(Machine(chance=lambda now: 0.9).step(SPEC_8, 1, 512, now), now + later_s)
    before = model.tokens(SPEC_8)
    model.adopt(replace(hard, hysteresis=0.06))
    assert model.tokens(SPEC_8) == pytest.approx(before, rel=0.02)


def test_the_tpot_limit_leaves_out_plans_that_make_hard_requests_wait():
    free = CostModel(WORTH).values(32, 32 * 512)
    assert free.within_limit == set(EXACT)
    limit_s = 0.012  # AR takes 9 ms a token at this load
    tight = CostModel(replace(WORTH, tpot_limit_s=limit_s))
    values = tight.values(32, 32 * 512)
    assert values.best in values.within_limit < set(EXACT)
    for plan in EXACT:
        hard_s = tight.step_s(plan, 32, 32 * 512) / tight.tokens(plan, hard=True)
        assert (plan in values.within_limit) is (hard_s <= limit_s)


def test_a_limit_that_no_plan_keeps_leaves_the_plan_that_misses_least():
    model = CostModel(replace(WORTH, tpot_limit_s=1e-6))
    values = model.values(32, 32 * 512)
    assert len(values.within_limit) == 1
    hard = {p: model.step_s(p, 32, 32 * 512) / model.tokens(p, hard=True) for p in EXACT}
    assert values.best == min(hard, key=hard.__getitem__)


def test_shapes_beyond_max_positions_have_no_worth():
    model = CostModel(replace(WORTH, profile=replace(H100, max_positions=256)))
    assert set(model.values(8, 4096).by_plan) == set(EXACT)
    assert set(model.values(40, 20480).by_plan) == {AR, SPEC_4}
    assert set(model.values(500, 256000).by_plan) == {AR}  # AR has no other shape to fall back to


REQUESTS = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)), max_size=5).map(
    lambda found: Drafted([tried for tried, _ in found], [accepted for _, accepted in found])
)
STEPS = st.builds(
    StepObservation,
    plan=st.sampled_from(all_plans()),
    sequences=st.integers(0, 300),
    context_tokens=st.integers(0, 10**9),
    seconds=st.floats(allow_nan=True, allow_infinity=True),
    yields=st.lists(st.integers(0, 40), max_size=8),
    is_alone=st.booleans(),
    prompt_tokens=st.integers(0, 100_000),
    steps=st.just(1),
    counts=st.just(()),
    ended=REQUESTS,
)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(STEPS, REQUESTS, st.floats(0, 5)), max_size=25),
    st.integers(0, 500),
    st.floats(0, 1e8),
)
def test_whatever_is_observed_every_prediction_is_positive_and_finite(steps, sequences, context):
    model, now = CostModel(Worth(all_plans(), H100)), 0.0
    for step, decoding, wait_s in steps:
        now += wait_s
        model.meet(len(decoding.tried), lambda found=decoding: found, now)
        model.observe(step, now)
    model.revise(now + 1.0)
    values = model.values(sequences, context)
    assert all(0.0 < value < math.inf for value in values.by_plan.values())
    assert values.best in values.within_limit

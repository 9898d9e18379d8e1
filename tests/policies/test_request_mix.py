"""Whose drafts are accepted. Run with: pytest tests/policies/test_request_mix.py"""

import random
from dataclasses import replace

import numpy as np
import pytest

from policies.acceptance import POSITIONS
from policies.learned_yields import LearnedYields
from policies.observation import Drafted, StepObservation
from policies.request_mix import MOST_REQUESTS, RequestMix
from policies.vocabulary import BLOCK_LENGTHS
from policies.worth import Worth
from tests.policies.synthetic import DIFFUSION_8, EXACT, H100, SPEC_8, SPEC_32

EASY, HARD = 0.9, 0.5
LONG, SHORT = 1e6, 13.0  # tokens of an answer
SOON, LATE = 1e-6, 1e6  # seconds until those that decode have gone


def drafted(*chances, tried=200):
    """Requests of these chances, each with so many positions tried."""
    return Drafted([tried] * len(chances), [round(tried * chance) for chance in chances])


def tokens(chance, length):
    return sum(chance**i for i in range(length))


def half_and_half(answer=LONG):
    """A replica that has served easy and hard requests alike."""
    mix = RequestMix()
    mix.expect_answers(answer)
    for _ in range(100):
        mix.ended(drafted(EASY, HARD))
    return mix


def steady(length):
    """A plan's yield where half of the requests are easy: of the same answers easy ones take fewer
    rounds."""
    return 2.0 / (1.0 / tokens(EASY, length) + 1.0 / tokens(HARD, length))


def test_nothing_is_carried_over_before_anybody_was_met():
    assert RequestMix().ratios(60.0, 1.0) is None


@pytest.mark.parametrize("length", BLOCK_LENGTHS)
def test_what_hard_requests_yielded_is_not_what_requests_will(length):
    mix = half_and_half()
    mix.meet(drafted(HARD, HARD, HARD, HARD))
    mix.count(1000)
    mix.after(1.0)
    expected = steady(length) / tokens(HARD, length)
    assert mix.ratios(0.0, SOON).expected[length] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("length", BLOCK_LENGTHS)
def test_a_plan_that_stays_yields_less_than_the_requests_that_ar_has_left_it(length):
    """Residence bias: in AR all stay alike, in self-speculation the hard ones longer."""
    mix = half_and_half()
    mix.meet(drafted(EASY, HARD))
    mix.count(1000)
    mix.after(1.0)
    in_ar = (tokens(EASY, length) + tokens(HARD, length)) / 2
    assert mix.ratios(0.0, SOON).expected[length] == pytest.approx(steady(length) / in_ar, rel=0.05)


def test_who_is_there_counts_while_answers_last():
    mix = half_and_half()
    mix.meet(drafted(HARD))
    mix.count(1000)
    mix.after(1.0)
    mix.meet(drafted(EASY))
    here = mix.ratios(0.0, LATE).expected[16]
    assert here == pytest.approx(tokens(EASY, 16) / tokens(HARD, 16), rel=0.05)
    assert mix.ratios(0.0, SOON).expected[16] < mix.ratios(0.0, 2.0).expected[16] < here


def test_where_those_that_ran_go_on_nothing_is_carried_over():
    mix = half_and_half()
    mix.meet(drafted(EASY, HARD, HARD))
    mix.count(1000)
    mix.after(1.0)
    assert mix.ratios(0.0, LATE).expected[8] == pytest.approx(1.0, abs=1e-3)


def test_a_request_without_drafts_is_thought_to_be_as_requests_are():
    mix = half_and_half()
    mix.meet(Drafted([0], [0]))
    mix.count(1000)
    mix.after(1.0)
    mix.meet(drafted(EASY, HARD))
    assert mix.ratios(0.0, LATE).expected[8] == pytest.approx(1.0, rel=0.05)


def test_requests_that_ended_without_drafts_say_nothing_of_requests():
    mix, before = half_and_half(), half_and_half()
    for _ in range(100):
        mix.ended(Drafted([0, 0], [0, 0]))
    for either in (mix, before):
        either.meet(drafted(HARD))
        either.count(10)
        either.after(1.0)
    assert mix.ratios(0.0, SOON) == before.ratios(0.0, SOON)


def test_what_requests_are_like_follows_those_of_late():
    mix = half_and_half()
    for _ in range(round(3 * MOST_REQUESTS)):
        mix.ended(drafted(HARD))
    mix.meet(drafted(HARD))
    mix.count(1000)
    mix.after(1.0)
    assert mix.ratios(0.0, SOON).expected[16] == pytest.approx(1.0, abs=0.05)


def test_after_a_million_requests_alike_another_kind_is_still_known_when_it_comes():
    mix = half_and_half()
    with np.errstate(divide="raise", invalid="raise"):
        for _ in range(5000):
            mix.ended(drafted(*[EASY] * 200))
        mix.meet(drafted(EASY))
        mix.count(1000)
        mix.after(1.0)
        mix.meet(drafted(HARD))
    expected = tokens(HARD, 16) / tokens(EASY, 16)
    assert mix.ratios(0.0, LATE).expected[16] == pytest.approx(expected, rel=0.2)


def test_how_far_requests_differ_is_not_believed_before_some_have_ended():
    """Or a replica that never drafted would leave AR for a spread that is but assumed."""
    mix = RequestMix()
    mix.meet(Drafted([0] * 8, [0] * 8))
    assert set(mix.ratios(60.0, LATE).expected.values()) == {1.0}
    mix.ended(drafted(EASY, HARD))
    assert 1.0 < mix.ratios(60.0, LATE).expected[32] < 1.15


def test_alarms_leave_what_requests_are_like():
    mix = half_and_half()
    mix.meet(drafted(HARD))
    mix.count(1000)
    mix.after(1.0)
    before = mix.ratios(0.0, SOON).expected[16]
    for _ in range(3):
        mix.forget(0.9)
    assert mix.ratios(0.0, SOON).expected[16] == pytest.approx(before, rel=0.1)


def test_answers_that_become_short_change_nothing_of_what_was_measured():
    """The length counts for what was measured as for what is expected."""
    mix = half_and_half(LONG)
    mix.meet(drafted(EASY, HARD))
    mix.count(1000)
    mix.after(1.0)
    mix.expect_answers(SHORT)
    assert mix.ratios(0.0, LATE).expected[32] == pytest.approx(1.0, abs=1e-3)


def test_when_traffic_has_changed_what_was_counted_since_is_kept():
    mix = half_and_half()
    mix.meet(drafted(EASY))
    mix.count(1000)
    mix.after(1.0)
    mix.meet(drafted(HARD))
    mix.count(1000)
    mix.forget(0.99)
    mix.after(1.0)
    assert mix.ratios(0.0, LATE).expected[16] == pytest.approx(1.0, abs=0.05)


def test_after_a_night_without_requests_nothing_is_carried_over_from_nowhere():
    mix = half_and_half()
    mix.meet(drafted(HARD))
    mix.count(1000)
    mix.after(1.0)
    with np.errstate(divide="raise", invalid="raise"):
        mix.after(0.0)
        assert mix.ratios(0.0, SOON).expected[16] == pytest.approx(1.0, abs=1e-3)


def test_requests_of_short_answers_differ_less():
    ratios = {}
    for answer in (LONG, SHORT):
        mix = half_and_half(answer)
        mix.meet(drafted(HARD))
        mix.count(1000)
        mix.after(1.0)
        mix.meet(drafted(EASY))
        ratios[answer] = mix.ratios(0.0, LATE).expected[32]
    assert 2.0 < ratios[SHORT] < 0.8 * ratios[LONG]


@pytest.mark.parametrize("length", BLOCK_LENGTHS)
@pytest.mark.parametrize("answer", [13, 60, 400])
def test_rounds_of_an_answer_are_those_of_a_simulated_one(length, answer):
    draw, rounds, answers = random.Random(0), 0, 600
    for _ in range(answers):
        left = answer
        while left > 0:
            kept = 1
            while kept < length and draw.random() < EASY:
                kept += 1
            left, rounds = left - kept, rounds + 1
    mix = half_and_half(float(answer))
    mix.meet(drafted(HARD, tried=5000))
    mix.count(1000)
    mix.after(1.0)
    mix.meet(drafted(EASY, tried=5000))
    by_round = {}
    for chance in (EASY, HARD):
        after = sum((2 * i + 1) * chance**i for i in range(length)) / tokens(chance, length)
        beyond = (after - 1.0) / 2.0
        by_round[chance] = answer * tokens(chance, length) / (answer + beyond)
    assert by_round[EASY] == pytest.approx(answers * answer / rounds, rel=0.06)
    expected = by_round[EASY] / by_round[HARD]
    assert mix.ratios(0.0, LATE).expected[length] == pytest.approx(expected, rel=0.02)


WORTH = Worth(EXACT, H100, chances=(0.8,) * POSITIONS)

# -- in what is expected of plans -------------------------------------------------------------


def rounds_of(plan, *chances, count=4000):
    """A step in which requests of these chances drafted, in turns."""
    draw = random.Random(1)
    yields = []
    for number in range(count):
        kept = 1
        while kept < plan.block_length and draw.random() < chances[number % len(chances)]:
            kept += 1
        yields.append(kept)
    return StepObservation(plan, count, 512 * count, SOON, yields)


def learned_in_ar(worth=None):
    """As a governor learns from a probe of a batch in AR, half of it easy."""
    worth = worth or WORTH
    learned = LearnedYields(worth, 0.0)
    for _ in range(100):
        step = StepObservation(SPEC_8, 2, 1024, SOON, (), answers=2, ended=drafted(EASY, HARD))
        learned.observe(step)
    learned.meet(drafted(EASY, HARD))
    learned.observe(rounds_of(SPEC_32, EASY, HARD))
    learned.revise(1.0, tokens_per_answer=1000.0)
    return learned


@pytest.mark.parametrize("length", BLOCK_LENGTHS)
def test_after_ar_a_plan_is_expected_to_yield_what_it_will_once_it_stays(length):
    expected = learned_in_ar().expected.blocks[length]
    in_ar = (tokens(EASY, length) + tokens(HARD, length)) / 2
    assert expected == pytest.approx(steady(length), rel=0.1)
    assert expected < 0.96 * in_ar


def test_diffusion_is_expected_to_yield_those_that_decode_what_it_does():
    """Its ratio is to drafts of the same requests, however others would fare."""
    learned = learned_in_ar()
    learned.meet(drafted(HARD, HARD))
    for index in range(40):
        step = StepObservation(DIFFUSION_8, 2, 1024, 0.25, (2, 1), answers=0)
        learned.observe(step)
        learned.revise(2.0 + 0.25 * index, tokens_per_answer=1e5)
    assert learned.present.tokens(DIFFUSION_8) == pytest.approx(1.5, rel=0.1)
    assert learned.expected.tokens(DIFFUSION_8) == pytest.approx(1.5, rel=0.1)


def test_a_hard_request_is_not_expected_to_fare_better_than_requests_do():
    learned = learned_in_ar()
    learned.meet(drafted(EASY))
    for index in range(40):
        learned.observe(rounds_of(SPEC_32, EASY))
        learned.revise(2.0 + 0.25 * index, tokens_per_answer=1000.0)
    for plan in (SPEC_8, SPEC_32):
        assert learned.expected.tokens(plan, hard=True) <= learned.expected.tokens(plan)


def test_what_ran_while_nothing_was_learned_does_not_count_later():
    resting, fresh = learned_in_ar(), learned_in_ar()
    resting.adopt(replace(WORTH, learns=False))
    resting.meet(drafted(HARD))
    for _ in range(50):
        resting.observe(rounds_of(SPEC_32, HARD))
        resting.revise(1.0, tokens_per_answer=1000.0)
    for either in (resting, fresh):
        either.adopt(WORTH)
        either.meet(drafted(EASY, HARD))
        either.revise(1.0, tokens_per_answer=1000.0)
    assert resting.expected.blocks == pytest.approx(fresh.expected.blocks, rel=1e-6)


def test_a_worth_that_does_not_learn_expects_what_it_was_told():
    worth = replace(WORTH, learns=False)
    blocks = learned_in_ar(worth).expected.blocks
    assert blocks == LearnedYields(worth, 0.0).expected.blocks

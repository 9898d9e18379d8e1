"""Whose drafts are accepted. Run with: pytest tests/policies/test_request_mix.py"""

import random

import pytest

from policies.acceptance import POSITIONS
from policies.learned_yields import LearnedYields
from policies.observation import Drafted, StepObservation
from policies.request_mix import MOST_REQUESTS, RequestMix
from policies.vocabulary import BLOCK_LENGTHS
from policies.worth import Worth
from tests.policies.synthetic import EXACT, H100, SPEC_8, SPEC_32

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
    assert RequestMix().ratios(60.0, 1.0) == {}


@pytest.mark.parametrize("length", BLOCK_LENGTHS)
def test_what_hard_requests_yielded_is_not_what_requests_will(length):
    mix = half_and_half()
    mix.meet(drafted(HARD, HARD, HARD, HARD))
    mix.count(1000)
    expected = steady(length) / tokens(HARD, length)
    assert mix.ratios(0.0, SOON)[length] == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("length", BLOCK_LENGTHS)
def test_a_plan_that_stays_yields_less_than_the_requests_that_ar_has_left_it(length):
    """Residence bias: in AR all stay alike, in self-speculation the hard ones longer."""
    mix = half_and_half()
    mix.meet(drafted(EASY, HARD))
    mix.count(1000)
    in_ar = (tokens(EASY, length) + tokens(HARD, length)) / 2
    assert mix.ratios(0.0, SOON)[length] == pytest.approx(steady(length) / in_ar, rel=0.05)


def test_who_is_there_counts_while_answers_last():
    mix = half_and_half()
    mix.meet(drafted(HARD))
    mix.count(1000)
    mix.meet(drafted(EASY))
    here = mix.ratios(0.0, LATE)[16]
    assert here == pytest.approx(tokens(EASY, 16) / tokens(HARD, 16), rel=0.05)
    assert mix.ratios(0.0, SOON)[16] < mix.ratios(0.0, 2.0)[16] < here


def test_where_those_that_ran_go_on_nothing_is_carried_over():
    mix = half_and_half()
    mix.meet(drafted(EASY, HARD, HARD))
    mix.count(1000)
    assert mix.ratios(0.0, LATE)[8] == pytest.approx(1.0, abs=1e-3)


def test_a_request_without_drafts_is_thought_to_be_as_requests_are():
    mix = half_and_half()
    mix.meet(Drafted([0], [0]))
    mix.count(1000)
    mix.meet(drafted(EASY, HARD))
    assert mix.ratios(0.0, LATE)[8] == pytest.approx(1.0, rel=0.05)


def test_requests_that_ended_without_drafts_say_nothing_of_requests():
    mix, before = half_and_half(), half_and_half()
    for _ in range(100):
        mix.ended(Drafted([0, 0], [0, 0]))
    for either in (mix, before):
        either.meet(drafted(HARD))
        either.count(10)
    assert mix.ratios(0.0, SOON) == before.ratios(0.0, SOON)


def test_what_requests_are_like_follows_those_of_late():
    mix = half_and_half()
    for _ in range(round(3 * MOST_REQUESTS)):
        mix.ended(drafted(HARD))
    mix.meet(drafted(HARD))
    mix.count(1000)
    assert mix.ratios(0.0, SOON)[16] == pytest.approx(1.0, abs=0.05)


def test_requests_of_short_answers_differ_less():
    ratios = {}
    for answer in (LONG, SHORT):
        mix = half_and_half(answer)
        mix.meet(drafted(HARD))
        mix.count(1000)
        mix.meet(drafted(EASY))
        ratios[answer] = mix.ratios(0.0, LATE)[32]
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
    mix.meet(drafted(EASY, tried=5000))
    by_round = {}
    for chance in (EASY, HARD):
        after = sum((2 * i + 1) * chance**i for i in range(length)) / tokens(chance, length)
        beyond = (after - 1.0) / 2.0
        by_round[chance] = answer * tokens(chance, length) / (answer + beyond)
    assert by_round[EASY] == pytest.approx(answers * answer / rounds, rel=0.06)
    expected = by_round[EASY] / by_round[HARD]
    assert mix.ratios(0.0, LATE)[length] == pytest.approx(expected, rel=0.02)


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
    worth = worth or Worth(EXACT, H100, chances=(0.7,) * POSITIONS)
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


def test_a_worth_that_does_not_learn_expects_what_it_was_told():
    worth = Worth(EXACT, H100, chances=(0.7,) * POSITIONS, learns=False)
    blocks = learned_in_ar(worth).expected.blocks
    assert blocks == LearnedYields(worth, 0.0).expected.blocks

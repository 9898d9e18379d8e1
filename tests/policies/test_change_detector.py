"""Run with: pytest tests/policies/test_change_detector.py"""

import random

import pytest

from policies.acceptance import POSITIONS, Acceptance
from policies.change_detector import ChangeDetector


def drawn(mean_chance, count, seed):
    draw, found = random.Random(seed), [0.0] * 9
    for _ in range(count):
        kept = 1
        while kept < 8 and draw.random() < mean_chance:
            kept += 1
        found[kept] += 1.0
    return {8: found}


def expected(chance):
    return Acceptance(prior=(chance,) * POSITIONS).yields()


def updates_until_alarm(detector, chance, known, limit=400, are_short=False):
    """None: no alarm within the limit."""
    for index in range(limit):
        if detector.update(drawn(chance, 40, index), expected(known), are_short=are_short):
            return index + 1
    return None


@pytest.mark.parametrize("are_short", [False, True])
def test_steady_traffic_raises_no_alarm(are_short):
    # Rounds scatter by less than the test allows for and the drift is 0.75 deviations: at 400
    # revisions (100 s) the chance of a false alarm is below 1 %; the seed is fixed besides.
    assert updates_until_alarm(ChangeDetector(), 0.7, known=0.7, are_short=are_short) is None


@pytest.mark.parametrize("are_short", [False, True])
@pytest.mark.parametrize("chance", [0.4, 0.95])
def test_harder_and_easier_traffic_is_noticed_within_a_second(chance, are_short):
    found = updates_until_alarm(ChangeDetector(), chance, known=0.7, are_short=are_short)
    assert found is not None
    assert found <= 4  # revisions, a quarter of a second each


def alarms_of_a_lone_client(are_short, revisions=400, per_revision=10):
    """Its requests have 30 tokens, and are easy or hard by the toss of a coin."""
    coin, yields = random.Random(1), []
    while len(yields) < revisions * per_revision:
        chance, left = coin.choice((0.95, 0.5)), 30
        while left > 0:
            (kept,) = (n for n, seen in enumerate(drawn(chance, 1, len(yields))[8]) if seen)
            yields.append(kept)
            left -= kept
    known = Acceptance(prior_rounds=0.0).after({8: counted(yields)}, 0.0).yields()
    detector, alarms = ChangeDetector(), 0
    for first in range(0, revisions * per_revision, per_revision):
        rounds = {8: counted(yields[first : first + per_revision])}
        alarms += detector.update(rounds, known, are_short=are_short)
    return alarms


def counted(yields):
    return [float(yields.count(tokens)) for tokens in range(9)]


def test_the_next_request_of_a_lone_client_is_no_change_of_traffic_if_it_is_soon_over():
    assert alarms_of_a_lone_client(are_short=True) < 0.2 * alarms_of_a_lone_client(are_short=False)


def test_an_alarm_starts_the_test_anew():
    detector = ChangeDetector()
    assert updates_until_alarm(detector, 0.3, known=0.7)
    assert (detector.rose, detector.fell) == (0.0, 0.0)


def test_no_rounds_or_a_single_one_prove_nothing():
    detector = ChangeDetector()
    assert not any(detector.update({}, expected(0.7)) for _ in range(50))
    lone = {8: [0.0] * 8 + [1.0]}
    assert not any(detector.update(lone, expected(0.1)) for _ in range(50))

"""Run with: pytest tests/policies/test_change_detector.py"""

import random

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
    return {8: sum(chance**i for i in range(8))}


def updates_until_alarm(detector, chance, known, limit=400):
    """None: no alarm within the limit."""
    for index in range(limit):
        if detector.update(drawn(chance, 40, index), expected(known)):
            return index + 1
    return None


def test_steady_traffic_raises_no_alarm():
    # Rounds scatter by less than the test allows for and the drift is 0.75 deviations: at 400
    # revisions (100 s) the chance of a false alarm is below 1 %; the seed is fixed besides.
    assert updates_until_alarm(ChangeDetector(), 0.7, known=0.7) is None


def test_harder_and_easier_traffic_is_noticed_within_a_second():
    for chance in (0.4, 0.95):
        found = updates_until_alarm(ChangeDetector(), chance, known=0.7)
        assert found is not None
        assert found <= 4  # revisions, a quarter of a second each


def test_an_alarm_starts_the_test_anew():
    detector = ChangeDetector()
    assert updates_until_alarm(detector, 0.3, known=0.7)
    assert (detector.rose, detector.fell) == (0.0, 0.0)


def test_no_rounds_or_a_single_one_prove_nothing():
    detector = ChangeDetector()
    assert not any(detector.update({}, expected(0.7)) for _ in range(50))
    lone = {8: [0.0] * 8 + [1.0]}
    assert not any(detector.update(lone, expected(0.1)) for _ in range(50))

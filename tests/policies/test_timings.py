"""Step times as they are learned. Run with: pytest tests/policies/test_timings.py"""

from dataclasses import replace

import pytest

from policies.profiled_steps import ProfiledSteps, batch_bucket
from policies.timings import Timings
from policies.vocabulary import AR
from tests.policies.synthetic import H100

PROFILED = ProfiledSteps.of(H100, (AR,))
HALF_A_DAY_S = 12 * 3600.0


def correction(
    timings: Timings, load: int, now: float, profiled: ProfiledSteps = PROFILED
) -> float:
    """At this load, the machine's own speed taken out."""
    timings.learn(profiled, now)
    found = timings.corrections((AR,), {})[AR]
    return found.at(batch_bucket(load)) / found.machine


def took(timings: Timings, load: int, ratio: float, now: float, count: int = 1) -> None:
    for _ in range(count):
        timings.add(AR, load, 0.01 * ratio, 0.01, 1, now)


def test_loads_last_met_half_a_day_ago_divide_nothing_by_zero():
    """What is halved often enough is zero; a profile that falls between two such loads is made not
    to, by weights."""
    falling = replace(H100, ratios={AR: ((8.0, 3.0), (12.0, 1.0))})
    timings = Timings()
    took(timings, 8, 1.0, 0.0, count=40)
    took(timings, 12, 1.0, 0.0, count=40)
    took(timings, 32, 1.0, HALF_A_DAY_S)
    found = correction(timings, 8, HALF_A_DAY_S, ProfiledSteps.of(falling, (AR,)))
    assert 0.0 < found < 1.0


def test_a_lone_sample_is_not_believed_against_other_loads():
    timings = Timings()
    took(timings, 8, 2.0, 0.0, count=256)
    took(timings, 16, 1.0, 0.0, count=256)
    took(timings, 12, 8.0, 0.0)
    assert 1.0 < correction(timings, 12, 0.0) < 4.0


def test_steps_of_one_load_count_by_what_they_should_have_taken():
    """Of a long and a short one of which the short waited, by their sum."""
    timings = Timings()
    for _ in range(50):
        timings.add(AR, 8, 0.010, 0.010, 1, 0.0)
        timings.add(AR, 8, 0.004, 0.002, 1, 0.0)
    assert correction(timings, 8, 0.0) == pytest.approx(14 / 12, rel=0.05)

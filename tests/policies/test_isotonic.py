"""Run with: pytest tests/policies/test_isotonic.py"""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.isotonic import isotonic

PAIRS = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(0.1, 100)), min_size=1, max_size=20)


def test_a_sequence_that_does_not_fall_stays():
    assert isotonic([1.0, 1.0, 2.0], [1, 1, 1]) == [1.0, 1.0, 2.0]


def test_a_fall_becomes_the_weighted_mean_of_its_neighbours():
    assert isotonic([1.0, 5.0, 2.0], [1, 1, 2]) == [1.0, 3.0, 3.0]


@settings(deadline=None)
@given(PAIRS)
def test_the_fit_never_falls_and_keeps_the_weighted_sum(pairs):
    values, weights = zip(*pairs, strict=True)
    fitted = isotonic(values, weights)
    assert len(fitted) == len(values)
    assert all(a <= b + 1e-9 for a, b in pairwise(fitted))
    total = sum(v * w for v, w in pairs)
    assert sum(f * w for f, w in zip(fitted, weights, strict=True)) == pytest.approx(
        total, abs=1e-6
    )

"""`pytest tests/benchmarks/test_survival.py`"""

from __future__ import annotations

import math

import pytest

from benchmarks.gpu_analysis import crossing, public_best_lengths, public_crossing
from benchmarks.survival import (
    CURVES,
    SIX_SETS_FULL_ROUNDS,
    SIX_SETS_PYTORCH,
    SPEED_BENCH,
    SPEED_BENCH_8B,
    TEST_SETS_8B,
    TEST_SETS_SGLANG,
    fit,
)

_ALL_CURVES = {curve.name: curve for curves in CURVES.values() for curve in curves}.values()


@pytest.mark.parametrize(("length", "mean"), TEST_SETS_SGLANG.items())
def test_curve_has_the_published_means(length: int, mean: float) -> None:
    assert TEST_SETS_8B.mean(length) == pytest.approx(mean, abs=1e-6)


def test_tilted_curve_has_the_published_mean() -> None:
    assert SPEED_BENCH.mean(32) == pytest.approx(SPEED_BENCH_8B, abs=1e-6)


def test_fit_predicts_the_published_share_of_full_rounds() -> None:
    """These shares are not fitted: the shape between the means is the only assumption."""
    curve = fit("six sets", "", SIX_SETS_PYTORCH)
    for length, share in SIX_SETS_FULL_ROUNDS.items():
        assert curve.survival[length - 1] == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("curve", _ALL_CURVES, ids=lambda curve: curve.name)
def test_survival_starts_at_one_and_falls(curve) -> None:
    assert len(curve.survival) == 32
    assert curve.survival[0] == 1.0
    assert all(a >= b > 0 for a, b in zip(curve.survival, curve.survival[1:], strict=False))


def test_draws_have_the_curves_mean_and_range() -> None:
    drawn = TEST_SETS_8B.draw(16, 20000, seed=1)
    assert min(drawn) >= 1
    assert max(drawn) == 16
    # The standard error is about 0.045: six of them.
    assert sum(drawn) / len(drawn) == pytest.approx(TEST_SETS_8B.mean(16), abs=0.27)
    assert drawn == TEST_SETS_8B.draw(16, 20000, seed=1)


def test_crossing_interpolates_between_levels() -> None:
    ar = {1: 10.0, 4: 10.0, 16: 10.0}
    assert crossing({1: 20.0, 4: 20.0, 16: 5.0}, ar) == pytest.approx(8.0)
    assert crossing({1: 9.0, 4: 20.0}, ar) is None
    assert crossing({1: 20.0, 4: 20.0}, ar) == math.inf
    assert crossing({}, ar) is None


def test_public_sweeps_say_what_their_authors_say() -> None:
    measured = public_crossing()
    assert measured is not None
    assert 16 <= measured <= 18
    best = public_best_lengths()
    assert [best[n] for n in (1, 16, 32, 64, 128)] == [32, 32, 16, 16, 8]

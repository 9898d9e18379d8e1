"""The fit finds the machine again, also through noise, and says what the curve cannot."""

from __future__ import annotations

import math
import random
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.fit import Sample, fit_curve, fit_ratios, non_negative_least_squares, scatter
from policies.step_time import Curve, Fingerprint, Profile, forwards_per_step
from policies.vocabulary import AR, Mode, Plan, all_plans

GPU = Curve(6e-3, 2e-5, 6e-8, 1.4e-9, 3e-6, 6e-4, 2e-4, 1.9)
FAST_GPU = Curve(3e-3, 7.5e-6, 2.5e-8, 5e-10, 1e-6, 1.4e-3, 2e-4, 4.0)
CPU = Curve(2e-4, 4e-5, 1e-7, 2e-8, 1e-5, 1.6e-3, 1e-3, 1.2)
MACHINES = {"gpu": GPU, "fast gpu": FAST_GPU, "cpu": CPU}
MEASURED = [(n, n * length) for n in (1, 4, 16, 64) for length in (64, 512, 1536)]
HELD_OUT = [(n, n * length) for n in (2, 3, 8, 24, 48) for length in (128, 300, 1000)]


def seconds(curve: Curve, plan: Plan, sequences: int, context: float) -> float:
    return forwards_per_step(plan) * curve.forward_s(sequences, plan.block_length, context)


def measured(
    curve: Curve, noise: float = 0.0, seed: int = 0, plans: tuple[Plan, ...] = all_plans()
) -> list[Sample]:
    rng = random.Random(seed)
    return [
        Sample(p, n, c, seconds(curve, p, n, c) * math.exp(rng.gauss(0, noise)), noise)
        for n, c in MEASURED
        for p in plans
    ]


def profile_of(samples: list[Sample]) -> Profile:
    curve = fit_curve(samples)
    where = Fingerprint("here", "model", "float32", "engine")
    return Profile("test", where, "measured", curve, fit_ratios(samples, curve))


def errors(profile: Profile, truth: Curve) -> list[float]:
    return [
        profile.step_s(plan, n, context) / seconds(truth, plan, n, context) - 1
        for n, context in HELD_OUT
        for plan in all_plans()
    ]


def rms(values: list[float]) -> float:
    return math.sqrt(sum(v * v for v in values) / len(values))


@pytest.mark.parametrize("truth", MACHINES.values(), ids=MACHINES)
def test_without_noise_held_out_loads_are_predicted_to_two_percent(truth: Curve) -> None:
    assert max(map(abs, errors(profile_of(measured(truth)), truth))) < 0.02


@pytest.mark.parametrize("truth", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("seed", range(5))
def test_noise_of_ten_percent_is_averaged_out(truth: Curve, seed: int) -> None:
    # 108 samples and 8 parameters: about 0.1 * sqrt(8 / 108) = 2.7 % is left.
    seen = errors(profile_of(measured(truth, noise=0.1, seed=seed)), truth)
    assert rms(seen) < 0.05
    assert max(map(abs, seen)) < 0.15


@given(
    scales=st.lists(st.floats(-1.5, 1.5), min_size=7, max_size=7),
    sharpness=st.floats(1.0, 6.0),
    base=st.sampled_from(sorted(MACHINES)),
)
@settings(max_examples=40, deadline=None)
def test_any_machine_is_found_again(scales: list[float], sharpness: float, base: str) -> None:
    *terms, _ = asdict(MACHINES[base]).values()
    scaled = [t * 4.0**s for t, s in zip(terms, scales, strict=True)]
    truth = Curve(*scaled, sharpness=sharpness)
    found = fit_curve(measured(truth))
    assert all(value >= 0 for value in asdict(found).values())
    profile = Profile("t", Fingerprint("", "", "", ""), "measured", found)
    assert rms(errors(profile, truth)) < 0.03


def test_one_wild_measurement_does_not_bend_the_curve() -> None:
    samples = measured(CPU, noise=0.02)
    hit = samples[40]
    samples[40] = Sample(hit.plan, hit.sequences, hit.context_tokens, hit.seconds * 6)
    curve = fit_curve(samples)
    profile = Profile("t", Fingerprint("", "", "", ""), "measured", curve)
    assert rms(errors(profile, CPU)) < 0.04


def test_one_load_and_one_plan_are_enough_for_a_curve_through_them() -> None:
    samples = [Sample(AR, 1, 64, 0.002), Sample(AR, 4, 256, 0.003)]
    curve = fit_curve(samples)
    assert curve.forward_s(1, 1, 64) == pytest.approx(0.002, rel=0.02)
    assert curve.forward_s(4, 1, 256) == pytest.approx(0.003, rel=0.02)


def test_what_cannot_make_a_curve_is_refused() -> None:
    with pytest.raises(ValueError, match="1 samples do not make a curve"):
        fit_curve([Sample(AR, 1, 64, 0.002)])
    with pytest.raises(ValueError, match="positive"):
        fit_curve([Sample(AR, 1, 64, 0.002), Sample(AR, 2, 64, 0.0)])


def test_ratios_hold_what_a_plan_costs_beyond_the_curve() -> None:
    slow = Plan(Mode.SELF_SPECULATION, 8)
    samples = [
        Sample(s.plan, s.sequences, s.context_tokens, s.seconds * (1.3 if s.plan == slow else 1.0))
        for s in measured(GPU)
    ]
    ratios = fit_ratios(samples, GPU)
    assert [n for n, _ in ratios[slow]] == [1, 4, 16, 64]
    assert all(ratio == pytest.approx(1.3) for _, ratio in ratios[slow])
    assert all(ratio == pytest.approx(1.0) for _, ratio in ratios[AR])


def test_ratios_are_only_where_something_was_measured_and_never_absurd() -> None:
    ar = (AR,)
    samples = [*measured(GPU, plans=ar), Sample(AR, 2, 100, seconds(GPU, AR, 2, 100) * 50)]
    ratios = fit_ratios(samples, GPU)
    assert set(ratios) == {AR}
    assert dict(ratios[AR])[2] == pytest.approx(2.0)


def test_ratios_of_pure_noise_stay_near_one() -> None:
    samples = measured(GPU, noise=0.1, seed=3)
    ratios = [ratio for points in fit_ratios(samples, GPU).values() for _, ratio in points]
    assert rms([math.log(r) for r in ratios]) < 0.04  # unshrunk: 0.1 / sqrt(3 contexts) = 0.058


def test_scatter_is_the_noise_that_was_put_in() -> None:
    samples = measured(GPU, noise=0.1, seed=1)
    profile = Profile("t", Fingerprint("", "", "", ""), "measured", GPU)
    assert scatter(samples, profile) == pytest.approx(0.1, rel=0.2)
    assert scatter([], profile) == 0.0


def test_least_squares_that_would_turn_negative_stops_at_zero() -> None:
    import numpy as np

    matrix = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    found = non_negative_least_squares(matrix, np.array([3.0, 2.0, 1.0]))
    assert found[1] == 0.0
    assert found[0] == pytest.approx(2.0)
    exact = non_negative_least_squares(matrix, matrix @ np.array([0.5, 2.0]))
    assert exact == pytest.approx([0.5, 2.0])

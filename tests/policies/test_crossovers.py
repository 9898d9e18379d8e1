"""Where plans overtake each other, and when two calibrations agree about it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.acceptance import Acceptance
from policies.crossovers import ALWAYS, NEVER, best_plan, crossover, crossovers, worth
from policies.step_time import shipped_profile
from policies.vocabulary import AR, Mode, Plan, all_plans

H100 = shipped_profile("h100")
YIELDS = Acceptance().yields()
SS8, SS32 = Plan(Mode.SELF_SPECULATION, 8), Plan(Mode.SELF_SPECULATION, 32)
EXACT = [plan for plan in all_plans() if plan.is_exact]


@pytest.mark.parametrize("first", [SS8, SS32])
def test_both_plans_are_worth_the_same_at_their_crossover(first: Plan) -> None:
    found = crossover(H100, YIELDS, first, AR, 512)
    here, there = (worth(H100, YIELDS, plan, found.at, 512) for plan in (first, AR))
    assert here == pytest.approx(there, rel=0.005)
    assert worth(H100, YIELDS, first, found.at / 2, 512) > worth(
        H100, YIELDS, AR, found.at / 2, 512
    )


def test_the_best_plan_changes_where_the_crossover_says() -> None:
    at = crossover(H100, YIELDS, SS8, AR, 512).at
    assert best_plan(H100, YIELDS, [SS8, AR], int(at), 512) == SS8
    assert best_plan(H100, YIELDS, [SS8, AR], int(at) + 1, 512) == AR


def test_a_plan_that_never_pays_and_one_that_always_does_are_told_apart() -> None:
    nothing = Acceptance(prior=(0.0,) * 31).yields()
    everything = Acceptance(prior=(1.0,) * 31).yields()
    assert crossover(H100, nothing, SS8, AR, 512).at == NEVER
    assert crossover(replace(H100, max_sequences=16), everything, SS8, AR, 512).at == ALWAYS


def test_bounds_widen_with_the_noise_and_hold_the_crossover() -> None:
    sharp = crossover(H100, YIELDS, SS8, AR, 512)
    noisy = crossover(replace(H100, noise=0.05), YIELDS, SS8, AR, 512)
    assert sharp.low == sharp.at == sharp.high
    assert noisy.low < noisy.at < noisy.high
    assert noisy.at == sharp.at


def test_calibrations_agree_if_they_differ_by_less_than_their_noise() -> None:
    def with_slower_blocks(factor: float) -> float | bool:
        ratios = {SS8: ((1.0, factor),)}
        other = replace(H100, ratios=ratios, noise=0.03)
        return crossover(replace(H100, noise=0.03), YIELDS, SS8, AR, 512).agrees(
            crossover(other, YIELDS, SS8, AR, 512)
        )

    assert with_slower_blocks(1.05)
    assert not with_slower_blocks(1.4)


def test_every_plan_meets_ar_at_every_context() -> None:
    found = crossovers(H100, YIELDS, (128, 1536))
    against_ar = {(c.first, c.length) for c in found if c.second == AR}
    assert against_ar == {(p, n) for p in all_plans() if p != AR for n in (128, 1536)}


def test_a_longer_context_favours_blocks() -> None:
    short, long = (crossover(H100, YIELDS, SS32, AR, n).at for n in (256, 4096))
    assert long > short

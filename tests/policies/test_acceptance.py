"""Tokens per step, learned from rounds. Run with: pytest tests/policies/test_acceptance.py"""

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.acceptance import POSITIONS, Acceptance, pooled
from policies.vocabulary import AR, BLOCK_LENGTHS, Plan, all_plans

BLANK = Acceptance(prior_rounds=0.0)
SPEC = {length: Plan.parse(f"self_speculation/{length}") for length in BLOCK_LENGTHS}


def rounds(length, chance, count, seed=0):
    """How many of `count` rounds yielded 0, 1, ... tokens."""
    draw, found = random.Random(seed), [0.0] * (length + 1)
    for _ in range(count):
        kept = 1
        while kept < length and draw.random() < chance:
            kept += 1
        found[kept] += 1.0
    return {length: found}


def geometric(chance, length):
    return sum(chance**i for i in range(length))


@pytest.mark.parametrize("length", BLOCK_LENGTHS)
def test_one_block_lengths_rounds_score_every_shorter_block(length):
    learned = BLANK.after(rounds(length, 0.7, 20_000), 0.0)
    blocks = learned.yields().blocks
    for shorter in (n for n in BLOCK_LENGTHS if n <= length):
        # 20,000 rounds: 0.05 is more than four standard errors of any of these means.
        assert blocks[shorter] == pytest.approx(geometric(0.7, shorter), abs=0.05)


def test_a_round_accepted_to_its_end_says_nothing_of_the_next_position():
    certain = BLANK.after({4: [0, 0, 0, 0, 1000.0]}, 0.0)
    assert certain.survival()[3] == 1.0
    assert certain.tried[3:] == (0.0,) * (POSITIONS - 3)
    assert certain.chances()[3:] == list(certain.prior[3:])


def test_rounds_of_several_lengths_give_one_curve():
    learned = BLANK.after(rounds(4, 0.6, 20_000) | rounds(16, 0.6, 20_000, seed=1), 0.0)
    assert learned.yields().blocks[16] == pytest.approx(geometric(0.6, 16), abs=0.05)


def test_old_evidence_fades_by_half_life():
    learned = BLANK.after(rounds(8, 0.7, 100), 0.0)
    assert learned.after({}, 8.0, half_life_s=8.0).tried[0] == pytest.approx(learned.tried[0] / 2)


def test_new_traffic_replaces_old_within_eight_half_lives():
    learned = Acceptance().after(rounds(8, 0.9, 900), 0.0)
    for second in range(64):
        learned = learned.after(rounds(8, 0.3, 80, seed=second), 1.0)
    assert learned.yields().blocks[8] == pytest.approx(geometric(0.3, 8), rel=0.1)


def test_nothing_measured_leaves_the_prior():
    assert Acceptance().after({}, 3600.0).chances() == pytest.approx(list(Acceptance().prior))


def test_the_prior_weighs_less_where_it_says_fewer_rounds_get_to():
    learned = Acceptance().after_shares([0.9**i for i in range(1, 32)], 60)
    pairs = list(zip(learned.chances(), learned.prior, strict=True))[:4]
    shifts = [(chance - prior) / (0.9 - prior) for chance, prior in pairs]
    assert shifts == sorted(shifts)


def test_a_request_of_low_acceptance_yields_less_than_the_mean():
    yields = Acceptance().yields()
    assert yields.tokens(AR) == yields.tokens(AR, hard=True) == 1.0
    assert all(1.0 <= yields.tokens(p, hard=True) < yields.tokens(p) for p in SPEC.values())


def test_requests_that_are_all_alike_leave_no_low_acceptance():
    alike = Acceptance(prior=(0.8,) * POSITIONS).yields()
    for plan in SPEC.values():
        assert alike.tokens(plan, hard=True) == pytest.approx(alike.tokens(plan))


@pytest.mark.parametrize("length", BLOCK_LENGTHS)
def test_rounds_scatter_as_they_are_expected_to(length):
    found = rounds(length, 0.7, 20_000)
    tokens = [kept for kept, count in enumerate(found[length]) for _ in range(int(count))]
    expected = Acceptance(prior=(0.7,) * POSITIONS).yields().variance(length)
    # The error of a variance of 20,000 rounds is about 1 % of it.
    assert expected == pytest.approx(statistics.pvariance(tokens), rel=0.05)


def test_diffusion_follows_its_own_ratio():
    faster = Acceptance().with_diffusion(8, 0.8).yields()
    before = Acceptance().yields()
    diffusion = Plan.parse("diffusion/8")
    assert faster.tokens(diffusion) - 1.0 == pytest.approx(
        2 * (before.tokens(diffusion) - 1.0), rel=0.05
    )
    assert all(faster.tokens(plan) == before.tokens(plan) for plan in SPEC.values())


def test_shares_from_metrics_say_what_rounds_say():
    counted = BLANK.after(rounds(8, 0.7, 20_000), 0.0)
    told = BLANK.after_shares([0.7**i for i in range(1, 8)], 20_000)
    assert told.yields().blocks[8] == pytest.approx(counted.yields().blocks[8], abs=0.05)


def test_forgetting_drops_evidence_but_not_what_it_said():
    learned = BLANK.after(rounds(8, 0.7, 1000), 0.0)
    forgot = learned.forgetting(0.9)
    assert forgot.tried[0] == pytest.approx(0.1 * learned.tried[0])
    assert forgot.chances() == pytest.approx(learned.chances())


def test_pooled_estimates_weigh_by_evidence():
    much, little = (BLANK.after(rounds(8, c, n), 0.0) for c, n in ((0.8, 9000), (0.2, 1000)))
    assert pooled([much, little])[0] == pytest.approx(0.74, abs=0.02)


COUNTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=33)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(BLOCK_LENGTHS), COUNTS), st.floats(0, 1e4))
def test_whatever_is_counted_chances_are_chances_and_longer_blocks_yield_no_less(found, elapsed_s):
    learned = Acceptance().after(found, elapsed_s)
    assert all(0.0 <= chance <= 1.0 + 1e-9 for chance in learned.chances())
    yields = learned.yields()
    ordered = [yields.blocks[length] for length in BLOCK_LENGTHS]
    assert ordered == sorted(ordered)
    assert ordered[0] >= 1.0
    assert all(yields.tokens(plan) > 0.0 for plan in all_plans())

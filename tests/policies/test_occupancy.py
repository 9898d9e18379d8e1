"""How many sequences decode under a plan. Run with: pytest tests/policies/test_occupancy.py"""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.occupancy import Occupancy


def learned(tokens, prefills, answers):
    """Of answers so often seen that the first guess no longer counts."""
    occupancy, many = Occupancy(), 10**6
    occupancy.count(many * tokens, many * prefills, many * answers)
    return occupancy


def seen(running, decoding_steps, prefill_steps, steps=50_000):
    """Mean decoding rows of the steps with any, of sequences that begin when they like."""
    random, cycle = Random(1), decoding_steps + prefill_steps
    rows = []
    for _ in range(steps):
        rows.append(sum(random.randrange(cycle) >= prefill_steps for _ in range(running)))
    return sum(rows) / sum(count > 0 for count in rows)


@pytest.mark.parametrize("running", [1, 2, 8, 32])
@pytest.mark.parametrize(("decoding_steps", "prefill_steps"), [(2, 1), (5, 1), (3, 4)])
def test_it_is_what_sequences_that_begin_when_they_like_come_to(
    running, decoding_steps, prefill_steps
):
    occupancy = learned(tokens=10 * decoding_steps, prefills=prefill_steps, answers=1)
    found = occupancy.decoding(running, tokens_per_step=10.0)
    assert found == pytest.approx(seen(running, decoding_steps, prefill_steps), rel=0.02)


def test_a_longer_block_leaves_fewer_sequences_decoding():
    occupancy = learned(tokens=30, prefills=1, answers=1)
    rows = [occupancy.decoding(8, tokens) for tokens in (1.0, 3.0, 6.0, 10.0, 15.0)]
    assert rows == sorted(rows, reverse=True)
    assert rows[0] > 7.5 > 5.5 > rows[-1]


def test_with_nothing_known_about_all_that_run_decode():
    assert Occupancy().decoding(64, 6.0) == pytest.approx(64, rel=0.01)


def test_long_answers_leave_about_all_decoding():
    assert learned(2000, 2, 1).decoding(8, 6.0) == pytest.approx(8, rel=0.01)


def test_old_answers_fade():
    occupancy = learned(tokens=2000, prefills=1, answers=1)
    occupancy.fade(1e-5)
    occupancy.count(100 * 20, 100, 100)
    assert occupancy.tokens_per_answer < 220


def test_however_much_has_faded_something_is_known():
    occupancy = learned(tokens=20, prefills=1, answers=1)
    for _ in range(1000):
        occupancy.fade(0.1)
    assert occupancy.tokens_per_answer == pytest.approx(20, rel=0.2)


counts = st.integers(0, 10_000)


@given(
    st.lists(st.tuples(counts, counts, counts, st.floats(0.0, 1.0)), max_size=20),
    st.integers(1, 512),
    st.floats(0.5, 32.0),
)
def test_whatever_was_counted_it_is_at_least_one_and_at_most_all(counted, running, tokens):
    occupancy = Occupancy()
    for kept, prefills, answers, share in counted:
        occupancy.count(kept, prefills, answers)
        occupancy.fade(share)
    assert 1.0 - 1e-9 <= occupancy.decoding(running, tokens) <= running * (1.0 + 1e-9)

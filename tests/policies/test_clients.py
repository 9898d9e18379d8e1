"""Clients that answer an answer at once. Run with: pytest tests/policies/test_clients.py"""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.clients import Clients


def closed_loop(clients, delays=(1,), *, steps=800, chance=0.2, counted=None, most=None):
    """So many clients, whose next request is there some of these steps after the one that ended
    their answer. What is counted at each step, and what runs, at most `most`."""
    random, counted = Random(1), counted or Clients()
    running, waiting, coming, found = clients, 0, [], []
    for _ in range(steps):
        waiting += sum(at <= 0 for at in coming)
        coming = [at - 1 for at in coming if at > 0]
        room = waiting if most is None else min(waiting, most - running)
        running, waiting = running + room, waiting - room
        if not running:  # the engine waits until one is there
            continue
        found.append((counted.begin_step(running, waiting), running))
        ended = sum(random.random() < chance for _ in range(running))
        counted.end_step(ended)
        running -= ended
        coming += random.choices(delays, k=ended)
    return counted, found


@pytest.mark.parametrize("clients", [1, 2, 3, 4, 8, 32])
def test_a_client_whose_next_request_is_on_its_way_counts(clients):
    counted, _ = closed_loop(8)
    assert counted.share == 1.0
    counted, found = closed_loop(clients, counted=counted)
    assert counted.share == 1.0
    assert sum(n != clients for n, _ in found[1:]) <= 0.02 * len(found)
    assert min(running for _, running in found) < clients or clients == 1


@pytest.mark.parametrize("clients", [1, 4, 32])
def test_where_the_next_request_is_there_at_once_nobody_is_on_the_way(clients):
    counted, found = closed_loop(clients, delays=(0,))
    assert counted.share == 0.0
    assert {n for n, _ in found} == {clients}


@pytest.mark.parametrize("clients", [8, 32, 64])
def test_a_few_that_come_later_do_not_hide_the_rest(clients):
    counted, found = closed_loop(clients, delays=(1,) * 19 + (2,))
    assert counted.share > 0.7
    late = [n for n, _ in found[-300:]]
    assert sum(late) / len(late) == pytest.approx(clients, rel=0.05)


@pytest.mark.parametrize("clients", [8, 32])
def test_clients_that_are_away_for_longer_are_not_counted(clients):
    _, found = closed_loop(clients, delays=(4, 5, 6, 7))
    assert sum(n == running for n, running in found) > 0.9 * len(found)


@pytest.mark.parametrize("clients", [8, 32])
def test_of_some_of_this_kind_and_others_some_count(clients):
    _, found = closed_loop(clients, delays=(1, 1, 1, 4), steps=2000)
    assert sum(n - running for n, running in found[-500:]) > 0
    assert max(n for n, _ in found) <= clients


def test_nobody_is_on_the_way_while_requests_wait_for_room_nor_is_it_forgotten():
    counted, _ = closed_loop(8)
    _, found = closed_loop(32, counted=counted, most=8)
    assert counted.share == 1.0
    assert max(n for n, _ in found[40:]) <= 8


@pytest.mark.parametrize("rate", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_requests_that_come_when_they_like_are_nobodys_next(rate, seed):
    random, counted, running = Random(seed), Clients(), 20
    found = []
    for _ in range(4000):
        running += sum(random.random() < rate / 50 for _ in range(50))
        found.append(counted.begin_step(running) == running)
        ended = sum(random.random() < rate / 20 for _ in range(running))
        counted.end_step(ended)
        running -= ended
    assert sum(found) >= 0.99 * len(found)


def test_a_load_that_jumps_does_not_hide_it():
    counted, _ = closed_loop(8)
    for clients in (4, 32, 2, 16):
        _, found = closed_loop(clients, steps=100, counted=counted)
        assert sum(n == clients for n, _ in found[-75:]) > 65


@given(
    st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64), st.integers(0, 3)), max_size=200),
    st.floats(-1.0, 1.0),
)
def test_whatever_comes_and_ends_nobody_who_runs_is_left_out(steps, vote):
    counted, before = Clients(_vote=vote), 0
    for running, answers, waiting in steps:
        assert running <= counted.begin_step(running, waiting) <= running + before
        assert 0.0 <= counted.share <= 1.0
        before = min(answers, running)
        counted.end_step(before)

"""Clients that answer an answer at once. Run with: pytest tests/policies/test_clients.py"""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.clients import Clients


def closed_loop(clients, delay, *, steps=400, chance=0.2, seed=1, counted=None):
    """So many clients, whose next request is there `delay` steps after the one that ended their
    answer; returns what is counted at each step, and what runs."""
    random, counted = Random(seed), counted or Clients()
    running, coming, found = clients, [], []
    for _ in range(steps):
        due = sum(at <= 0 for at in coming)
        coming = [at - 1 for at in coming if at > 0]
        running += due
        if not running:  # the engine waits until one is there
            continue
        found.append((counted.begin(running), running))
        ended = sum(random.random() < chance for _ in range(running))
        counted.end(ended)
        running -= ended
        coming += [delay] * ended
    return counted, found


@pytest.mark.parametrize("clients", [2, 4, 8, 32])
def test_a_client_whose_next_request_is_on_its_way_counts(clients):
    counted, found = closed_loop(clients, delay=1)
    assert counted.is_followed
    late = found[-100:]
    assert sum(n == clients for n, _ in late) > 90
    assert min(running for _, running in late) < clients


@pytest.mark.parametrize("clients", [1, 4, 32])
def test_where_the_next_request_is_there_at_once_nobody_is_on_the_way(clients):
    counted, found = closed_loop(clients, delay=0)
    assert not counted.is_followed
    assert {n for n, _ in found} == {clients}


def test_of_a_lone_client_nothing_is_learned_and_it_is_not_counted_twice():
    """The engine waits for its next request, so no slot is empty while a step runs."""
    counted, _ = closed_loop(8, delay=1)
    assert counted.is_followed
    _, found = closed_loop(1, delay=1, counted=counted)
    assert counted.is_followed
    assert {n for n, _ in found[1:]} == {1}


@pytest.mark.parametrize("rate", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_requests_that_come_when_they_like_are_nobodys_next(rate, seed):
    random, counted, running = Random(seed), Clients(), 20
    found = []
    for _ in range(2000):
        running += sum(random.random() < rate / 50 for _ in range(50))
        found.append(counted.begin(running) == running)
        ended = sum(random.random() < rate / 20 for _ in range(running))
        counted.end(ended)
        running -= ended
    assert all(found)


def test_a_load_that_jumps_does_not_hide_it():
    counted, found = Clients(), []
    for clients in (4, 32, 2, 16):
        _, more = closed_loop(clients, delay=1, steps=150, counted=counted)
        found.append(sum(n == clients for n, _ in more[-75:]))
    assert min(found) > 65


@given(st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), max_size=200))
def test_whatever_comes_and_ends_nobody_who_runs_is_left_out(steps):
    counted, before = Clients(), 0
    for running, answers in steps:
        assert running <= counted.begin(running) <= running + before
        before = min(answers, running)
        counted.end(before)

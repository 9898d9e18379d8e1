"""Who runs, who waits, who gives way."""

from __future__ import annotations

from dataclasses import replace

import torch

from policies.vocabulary import AR, Mode, Plan, Quality
from replicas.torch_engine.kv_cache import KVPool
from replicas.torch_engine.scheduler import MIN_PREFILL_TOKENS, Scheduler, effective_plan
from replicas.torch_engine.sequence import Sequence
from tests.replicas.torch_engine.builders import CPU
from tests.replicas.torch_engine.runs import request

SPECULATION = Plan.parse("self_speculation/32")


def scheduler(rows: int = 4, **options) -> Scheduler:
    """A pool of `rows` rows of 192 tokens, or twice as many of 96."""
    pool = KVPool(
        num_layers=1,
        kv_width=2,
        tokens=192 * rows,
        max_context=160,
        dtype=torch.float32,
        device=CPU,
    )
    return Scheduler(pool, **{"max_sequences": 16, "max_step_tokens": 128, **options})


def arrive(into: Scheduler, *prompt_lengths: int) -> list[Sequence]:
    arrived = []
    for length in prompt_lengths:
        number = len(into.waiting) + len(into.running)
        sequence = Sequence(request(str(number), [3] * length), number, 0, frozenset())
        into.waiting.append(sequence)
        arrived.append(sequence)
    return arrived


def step(of: Scheduler, plan: Plan = AR) -> list[int]:
    """One step in which every decoding sequence gains a token; returns who ran or prefilled."""
    of.admit(0.0)
    work = of.next_work(plan)
    touched = set()
    for group in work.groups:
        for sequence in group.sequences:
            sequence.cached += 1
            sequence.tokens.append(3)
            touched.add(sequence.arrival)
    for chunk in work.chunks:
        chunk.sequence.cached = chunk.end
        if chunk.yields_token:
            chunk.sequence.tokens.append(3)
        touched.add(chunk.sequence.arrival)
    assert [s.row for s in of.running] == list(range(len(of.running)))
    assert len(of.running) <= of.pool.rows_at(of.pool.row_length)
    return sorted(touched)


def test_rows_go_to_the_first_to_come():
    s = scheduler(rows=2, max_sequences=3)
    sequences = arrive(s, 10, 10, 10, 10, 10)
    step(s)
    assert s.running == sequences[:3]
    s.remove(sequences[1])
    step(s)
    assert set(s.running) == {sequences[0], sequences[2], sequences[3]}


def test_a_long_prompt_at_the_head_of_the_queue_is_not_overtaken():
    s = scheduler(rows=2)
    arrive(s, 10, 10, 10)
    step(s)
    long, short = arrive(s, 150, 10)
    step(s)
    assert list(s.waiting) == [long, short]


def test_the_youngest_gives_way_when_rows_must_grow():
    s = scheduler(rows=2)
    sequences = arrive(s, 60, 20, 20, 20)
    while s.preemptions == 0:
        step(s)
    assert s.running == sequences[:2]
    assert list(s.waiting) == sequences[2:]
    assert s.preemptions == 2
    for preempted in sequences[2:]:
        assert (preempted.row, preempted.cached) == (-1, 0)
        assert preempted.generated > 0


def test_the_preempted_come_back_first_and_cache_their_tokens_again():
    s = scheduler(rows=2)
    sequences = arrive(s, 60, 20, 20, 20, 20)
    while s.preemptions == 0:
        step(s)
    s.remove(sequences[0])
    tokens = len(sequences[2].tokens)
    step(s)
    assert sequences[2] in s.running
    assert sequences[4] not in s.running[:2]
    assert sequences[2].cached == tokens - 1
    assert not sequences[2].is_prefilling


def test_the_oldest_advances_in_every_step_and_everything_finishes():
    s = scheduler(rows=1, max_step_tokens=64)
    todo = arrive(s, 100, 90, 20, 20, 60, 5)
    for _ in range(2000):
        if not todo:
            break
        assert todo[0].arrival in step(s)
        for sequence in [t for t in todo if t.generated >= 50]:
            s.remove(sequence)
            todo.remove(sequence)
    assert not todo
    assert not s.running
    assert s.preemptions > 0


def test_prefill_is_cut_to_the_budget_that_decoding_leaves():
    s = scheduler(max_step_tokens=128)
    arrive(s, 150, 150)
    s.admit(0.0)
    chunks = s.next_work(AR).chunks
    assert [(c.start, c.end) for c in chunks] == [(0, 128)]
    chunks[0].sequence.cached = 128
    chunks = s.next_work(AR).chunks
    assert [(c.start, c.end, c.yields_token) for c in chunks] == [(128, 150, True), (0, 106, False)]


def test_prefill_is_not_starved_by_decoding_that_fills_the_budget():
    s = scheduler(rows=8, max_step_tokens=32)
    arrive(s, 10, 10, 10, 10)
    while any(q.is_prefilling for q in s.running) or s.waiting:
        step(s)
    arrive(s, 100)
    s.admit(0.0)
    work = s.next_work(SPECULATION)
    assert sum(len(g.sequences) for g in work.groups) == 4
    assert [c.end - c.start for c in work.chunks] == [MIN_PREFILL_TOKENS]


def test_decoding_is_not_starved_by_prefill():
    s = scheduler(rows=8, max_step_tokens=64)
    arrive(s, 10, 10)
    step(s)
    arrive(s, 150, 150, 150)
    for _ in range(5):
        assert {0, 1} <= set(step(s))


def test_a_removed_row_is_filled_by_the_last():
    s = scheduler()
    first, second, third = arrive(s, 10, 11, 12)
    step(s)
    s.pool.layers[0][third.row * s.pool.row_length] = 7.0
    s.remove(first)
    assert s.running == [third, second]
    assert (third.row, first.row) == (0, -1)
    assert (s.pool.layers[0][0] == 7.0).all()
    s.remove(second)
    assert s.running == [third]


def test_a_waiting_sequence_can_leave():
    s = scheduler(rows=1, max_sequences=1)
    first, second = arrive(s, 10, 10)
    step(s)
    s.remove(second)
    assert not s.waiting
    assert s.running == [first]


def test_rows_shrink_again_when_that_lets_more_in():
    s = scheduler(rows=1)
    long, *_ = arrive(s, 150, 10, 10)
    step(s)
    assert s.pool.row_length == 192
    assert len(s.running) == 1
    s.remove(long)
    step(s)
    assert s.pool.row_length == 96
    assert len(s.running) == 2


def test_a_plan_is_followed_within_pin_quality_and_begun_block():
    diffusion = Plan(Mode.DIFFUSION, 16)

    def plan_of(*, block=None, **options) -> Plan:
        sequence = Sequence(request("r", [3], **options), 0, 0, frozenset())
        sequence.block_plan = block
        return effective_plan(sequence, diffusion)

    assert plan_of(quality=Quality.ANY) == diffusion
    assert plan_of(quality=Quality.EXACT) == Plan(Mode.SELF_SPECULATION, 16)
    assert plan_of(plan=AR) == AR
    assert plan_of(plan=AR, block=Plan(Mode.DIFFUSION, 4)) == Plan(Mode.DIFFUSION, 4)


def test_some_of_the_sequences_follow_another_plan_and_each_has_its_turn():
    s = scheduler()
    pinned = Plan.parse("self_speculation/4")
    sequences = arrive(s, 10, 10, 10, 10, 10)
    sequences[2].request = replace(sequences[2].request, plan=pinned)
    step(s)  # prefill
    turns = []
    for _ in range(5):
        groups = {g.plan: g.sequences for g in s.next_work(SPECULATION, AR, rows=2).groups}
        assert [q.arrival for q in groups.pop(pinned)] == [2]
        turns += [q.arrival for q in groups.pop(SPECULATION, [])]
        assert set(groups) == {AR}
    assert sorted(set(turns)) == [0, 1, 3, 4]

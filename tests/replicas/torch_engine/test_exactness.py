"""Exact-class output is AR's, token for token. Run with: pytest tests/replicas/torch_engine"""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.vocabulary import AR, Plan
from tests.replicas.torch_engine.builders import TINY, build_engine, build_model, random_weights
from tests.replicas.torch_engine.ledger import LedgerForward
from tests.replicas.torch_engine.runs import (
    EXACT,
    SPECULATION,
    assert_empty,
    drain,
    pin,
    request,
    run_all,
)

TIGHT = {"kv_tokens": 192 * 2, "max_sequences": 6, "max_step_tokens": 64}
"""Two rows of the longest sequence or four of half of it: requests preempt one another."""


@pytest.mark.parametrize("plan", EXACT, ids=str)
def test_one_sequence_decodes_as_transformers_does(copying, references, plan):
    for prompt, expected in references.items():
        engine = build_engine(copying)
        pin(engine, plan)
        outcome = run_all(engine, [request("only", prompt, 48)])["only"]
        assert outcome.tokens == expected
        assert outcome.plans == {plan}


@pytest.mark.parametrize("plan", EXACT, ids=str)
def test_a_batch_of_different_lengths_decodes_as_transformers_does(copying, references, plan):
    engine = build_engine(copying)
    pin(engine, plan)
    outcomes = run_all(engine, [request(str(p), p, 48) for p in references])
    assert {p: outcomes[str(p)].tokens for p in references} == references


@pytest.mark.parametrize("plan", SPECULATION, ids=str)
def test_the_copying_model_accepts_drafts_of_many_lengths(copying, references, plan):
    """The tests of this file would say little about speculation if drafts were never right."""
    engine = build_engine(copying)
    pin(engine, plan)
    run_all(engine, [request(str(p), p, 48) for p in references])
    counters = engine.report().plans[plan]
    survivors = (counters.rounds, *counters.accepted)
    ended_at = [a - b for a, b in pairwise(survivors)]
    assert sum(n > 0 for n in ended_at) >= min(plan.block_length - 1, 6)
    assert counters.committed > 1.5 * counters.rounds


@pytest.mark.parametrize("seed", range(4))
def test_a_random_plan_change_at_every_step_changes_no_token(copying, references, seed):
    generator, plans = random.Random(seed), set()

    def change(step: int) -> None:
        pin(engine, generator.choice(EXACT), step)

    engine = build_engine(copying)
    for prompt in references:
        engine.submit(request(str(prompt), prompt, 48))
    outcomes = drain(engine, change)
    assert {p: outcomes[str(p)].tokens for p in references} == references
    for outcome in outcomes.values():
        plans |= outcome.plans
    assert plans == set(EXACT)
    assert engine.report().switches > 5


def test_preemption_and_chunked_prefill_in_the_middle_change_no_token(copying, references):
    chunked = False

    def change(step: int) -> None:
        nonlocal chunked
        pin(engine, EXACT[step % len(EXACT)], step)
        report = engine.report()
        chunked |= report.prefilling > 0 and report.preemptions == 0

    engine = build_engine(copying, **TIGHT)
    for prompt in reversed(references):  # the longest first
        engine.submit(request(str(prompt), prompt, 48))
    outcomes = drain(engine, change)
    assert {p: outcomes[str(p)].tokens for p in references} == references
    assert chunked
    assert engine.report().preemptions > 0
    assert_empty(engine)


class Happenings:
    """A random life of an engine: arrivals, plan changes and departures, drawn by Hypothesis."""

    def __init__(self, engine, references, data, wanted):
        self.engine, self.references, self.data = engine, list(references.items()), data
        self.to_submit, self.expected, self.cancelled = wanted, {}, set()
        self.plans = st.sampled_from(EXACT)

    def __call__(self, step: int) -> None:
        pin(self.engine, self.data.draw(self.plans), step)
        while self.to_submit and (not self.engine.has_work or self.data.draw(st.booleans())):
            index, max_tokens, pinned = self.to_submit.pop()
            prompt, output = self.references[index % len(self.references)]
            name = f"{len(self.expected)}"
            self.expected[name] = output[:max_tokens]
            plan = self.data.draw(self.plans) if pinned else None
            self.engine.submit(request(name, prompt, max_tokens, plan=plan))
        if self.expected and self.data.draw(st.integers(0, 9)) == 0:
            name = self.data.draw(st.sampled_from(sorted(self.expected)))
            if self.engine.cancel(name) is not None:
                self.cancelled.add(name)

    def check(self, outcomes) -> None:
        for name, expected in self.expected.items():
            tokens = outcomes[name].tokens
            if name in self.cancelled:
                assert tokens == expected[: len(tokens)]
            else:
                assert tokens == expected
        assert_empty(self.engine)


LIVES = {
    "data": st.data(),
    "wanted": st.lists(
        st.tuples(st.integers(0, 11), st.integers(1, 48), st.booleans()), min_size=1, max_size=10
    ),
    "rows": st.integers(1, 4),
    "max_sequences": st.integers(1, 6),
    "max_step_tokens": st.sampled_from([1, 64, 100, 400]),
}


@settings(max_examples=40, deadline=None, derandomize=True)
@given(**LIVES)
def test_no_life_of_an_engine_changes_a_token(
    copying, references, data, wanted, rows, max_sequences, max_step_tokens
):
    engine = build_engine(
        copying,
        kv_tokens=192 * rows,
        max_sequences=max_sequences,
        max_step_tokens=max_step_tokens,
    )
    happenings = Happenings(engine, references, data, wanted)
    happenings.check(drain(engine, happenings))


LEDGER = LedgerForward(TINY.vocab_size, TINY.mask_token_id)
LEDGER_PROMPTS = [tuple(3 + (7 * i + n) % 40 for i in range(n)) for n in range(2, 112, 9)]
LEDGER_REFERENCES = {p: LEDGER.reference(p, 48) for p in LEDGER_PROMPTS}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(**LIVES)
def test_no_life_of_an_engine_misplaces_a_cache_entry(
    tiny_model, data, wanted, rows, max_sequences, max_step_tokens
):
    """The ledger checks every slot, position and mask besides the tokens."""
    engine = build_engine(
        tiny_model,
        kv_tokens=192 * rows,
        max_sequences=max_sequences,
        max_step_tokens=max_step_tokens,
        forward=LEDGER,
    )
    happenings = Happenings(engine, LEDGER_REFERENCES, data, wanted)
    happenings.check(drain(engine, happenings))


@pytest.fixture(scope="module")
def tiny_model():
    return build_model(TINY, random_weights(TINY))


def test_a_ledger_entry_in_the_wrong_place_is_noticed(tiny_model):
    """The auditor itself: corrupt one cached entry, and the next step must object or err."""
    prompt, expected = next(iter(LEDGER_REFERENCES.items()))
    engine = build_engine(tiny_model, forward=LEDGER)
    engine.submit(request("r", prompt, 20))

    def corrupt(step: int) -> None:
        if step == 5:
            engine.pool.layers[0][0, 0] += 1

    assert drain(engine, corrupt)["r"].tokens != expected


def test_a_plan_is_a_matter_of_speed_for_many_sequences_at_once(tiny_model):
    """128 sequences in one batch, all plans pinned side by side."""
    engine = build_engine(
        tiny_model, kv_tokens=192 * 128, max_sequences=128, max_step_tokens=512, forward=LEDGER
    )
    plans: list[Plan | None] = [None, *EXACT]
    requests = {
        str(i): (LEDGER_PROMPTS[i % len(LEDGER_PROMPTS)], plans[i % len(plans)]) for i in range(128)
    }
    pin(engine, AR)
    outcomes = run_all(engine, [request(n, p, 40, plan=plan) for n, (p, plan) in requests.items()])
    for name, (prompt, plan) in requests.items():
        assert outcomes[name].tokens == LEDGER_REFERENCES[prompt][:40]
        assert outcomes[name].plans == {plan or AR}

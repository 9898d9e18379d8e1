"""Ten thousand random requests through one small engine. `TRIMODE_SOAK` sets another number."""

from __future__ import annotations

import os
import random

import pytest

from policies.vocabulary import Quality, all_plans
from replicas.engine import FinishReason
from tests.replicas.torch_engine.builders import (
    COPYING,
    build_engine,
    clear_prompts,
    copying_weights,
    word_tokenizer,
)
from tests.replicas.torch_engine.runs import EXACT, Outcome, assert_empty, pin, request

REQUESTS = int(os.environ.get("TRIMODE_SOAK", "10000"))
LONGEST = 30
TOKENIZER = word_tokenizer(COPYING.vocab_size)
SAMPLED = {"temperature": 1.0, "top_p": 0.9}


@pytest.fixture(scope="module")
def greedy():
    """Prompt -> what transformers continues it with."""
    generator = random.Random(1)
    lengths = [generator.randint(1, 40) for _ in range(60)]
    lengths += [generator.randint(40, 64) for _ in range(20)]  # outgrow a half row
    lengths += [70, 80, 95, 110, 120, 130]
    return list(clear_prompts(COPYING, copying_weights(), lengths, LONGEST, seed=1).items())


def text_of(tokens) -> str:
    return TOKENIZER.decode(list(tokens))


def cut(tokens, max_tokens, stop=()):
    """The tokens AR keeps of its continuation, and their text, straight from the definition."""
    for count in range(1, max_tokens + 1):
        text = text_of(tokens[:count])
        if found := [at for s in stop if (at := text.find(s)) >= 0]:
            return tokens[:count], text[: min(found)], FinishReason.STOP
    return tokens[:max_tokens], text_of(tokens[:max_tokens]), FinishReason.LENGTH


class Soak:
    def __init__(self, engine, greedy, seed: int) -> None:
        self.engine, self.greedy, self.random = engine, greedy, random.Random(seed)
        self.submitted = self.checked = self.cancelled = self.stopped = 0
        self.running: dict[str, tuple[Outcome, object]] = {}

    def arrive(self) -> None:
        pick = self.random
        name, self.submitted = str(self.submitted), self.submitted + 1
        prompt, output = pick.choice(self.greedy)
        max_tokens = pick.randint(1, LONGEST)
        plan = pick.choice(all_plans()) if pick.random() < 0.3 else None
        exact = (plan is None and pick.random() < 0.8) or plan in EXACT
        sampled = pick.random() < 0.15
        # Two letters and the next token's first: the end falls between two tokens.
        stop = (text_of([pick.randrange(3, 48)]) + "a",) if pick.random() < 0.4 else ()
        expected = cut(output, max_tokens, stop) if exact and not sampled else None
        self.running[name] = (Outcome(), expected)
        self.engine.submit(
            request(
                name,
                prompt,
                max_tokens,
                plan=plan,
                quality=Quality.EXACT if exact else Quality.ANY,
                stop=stop,
                # Seeded: when a sampled answer ends decides what comes next.
                **({**SAMPLED, "seed": pick.getrandbits(32)} if sampled else {}),
            )
        )

    def step(self) -> None:
        if self.random.random() < 0.5:
            plan = self.random.choice(all_plans() if self.random.random() < 0.3 else EXACT)
            pin(self.engine, plan)
        for delta in self.engine.step():
            outcome, expected = self.running[delta.request_id]  # KeyError: a cancelled one spoke
            outcome.deltas.append(delta)
            if delta.finish_reason is not None:
                del self.running[delta.request_id]
                self.finish(outcome, expected)
        report = self.engine.report()
        assert report.decoding + report.prefilling + report.waiting == len(self.running)
        assert report.kv_tokens_used <= report.kv_tokens_total

    def finish(self, outcome: Outcome, expected) -> None:
        assert COPYING.mask_token_id not in outcome.tokens
        self.stopped += outcome.reason is FinishReason.STOP
        if expected is not None:
            self.checked += 1
            assert (outcome.tokens, outcome.text, outcome.reason) == expected

    def cancel(self) -> None:
        name = self.random.choice(list(self.running))
        outcome, expected = self.running.pop(name)
        assert self.engine.cancel(name) is not None
        self.cancelled += 1
        if expected is not None:
            assert outcome.tokens == expected[0][: len(outcome.tokens)]

    def run(self, requests: int) -> None:
        while self.submitted < requests or self.running:
            arrivals = self.random.choice([0, 0, 3, 12]) if len(self.running) < 90 else 0
            for _ in range(min(arrivals, requests - self.submitted)):
                self.arrive()
            if self.running and self.random.random() < 0.25:
                self.cancel()
            self.step()


def test_ten_thousand_random_requests_leak_nothing_and_stay_exact(copying, greedy):
    engine = build_engine(
        copying, TOKENIZER, kv_tokens=192 * 12, max_sequences=48, max_step_tokens=256
    )
    soak = Soak(engine, greedy, seed=7)
    soak.run(REQUESTS)
    assert_empty(engine)
    report = engine.report()
    assert sum(report.finished.values()) == soak.submitted == REQUESTS
    assert report.finished["cancelled"] == soak.cancelled > REQUESTS // 50
    assert report.finished["stop"] == soak.stopped > REQUESTS // 50
    assert report.finished["error"] == 0
    assert soak.checked > REQUESTS // 2
    assert report.preemptions > REQUESTS // 100
    assert report.switches > REQUESTS // 50
    for plan in all_plans():
        assert report.plans[plan].committed > REQUESTS // 10

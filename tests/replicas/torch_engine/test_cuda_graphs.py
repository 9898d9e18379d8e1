"""Graph capture's bucketing and padding, around a plain forward: the same on a CPU as on a GPU."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from policies.vocabulary import Plan
from replicas.torch_engine.cuda_graphs import replay_eagerly
from replicas.torch_engine.model_config import RopeConfig
from tests.replicas.torch_engine.builders import (
    COPYING,
    build_engine,
    build_model,
    clear_prompts,
    copying_weights,
)
from tests.replicas.torch_engine.runs import EXACT, assert_empty, drain, pin, request, run_all


class Counting:
    """Captures nothing, and counts."""

    def __init__(self) -> None:
        self.captures = self.replays = 0

    def __call__(self, run):
        self.captures += 1

        def replay():
            self.replays += 1
            return replay_eagerly(run)()

        return replay


@pytest.mark.parametrize("plan", EXACT, ids=str)
def test_padded_batches_decode_as_transformers_does(copying, references, plan):
    capture = Counting()
    engine = build_engine(copying, capture=capture)
    pin(engine, plan)
    outcomes = run_all(engine, [request(str(p), p, 48) for p in references])
    assert {p: outcomes[str(p)].tokens for p in references} == references
    assert capture.replays > 2 * capture.captures


def test_plan_changes_preemption_and_departures_change_no_token(copying, references):
    generator = random.Random(3)
    capture = Counting()
    engine = build_engine(
        copying, capture=capture, kv_tokens=192 * 2, max_step_tokens=64, max_sequences=7
    )
    for i, prompt in enumerate(references):
        engine.submit(request(str(prompt), prompt, 10 + 3 * i))
    outcomes = drain(engine, lambda step: pin(engine, generator.choice(EXACT), step))
    for i, (prompt, expected) in enumerate(references.items()):
        assert outcomes[str(prompt)].tokens == expected[: 10 + 3 * i]
    assert engine.report().preemptions > 0
    assert capture.replays > 50
    assert_empty(engine)


def test_steps_past_the_query_scaling_step_run_eagerly_and_exactly():
    rope = RopeConfig(
        theta=10000.0, rope_type="yarn", factor=2.0, original_max_positions=64,
        query_scaling_beta=0.1,
    )  # fmt: skip
    config, weights = replace(COPYING, rope=rope), copying_weights()
    references = clear_prompts(config, weights, [20, 50, 55], 48)
    capture = Counting()
    engine = build_engine(build_model(config, weights), capture=capture)
    pin(engine, Plan.parse("self_speculation/8"))
    outcomes = run_all(engine, [request(str(p), p, 48) for p in references])
    assert {p: outcomes[str(p)].tokens for p in references} == references
    report = engine.report().plans[Plan.parse("self_speculation/8")]
    assert 0 < capture.replays < report.forwards

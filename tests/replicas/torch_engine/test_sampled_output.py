"""Sampled output under every plan: the same with a seed, the same distribution without."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from policies.vocabulary import Plan, Quality, all_plans
from tests.replicas.torch_engine.builders import (
    COPYING,
    build_engine,
    copying_weights,
    transformers_model,
)
from tests.replicas.torch_engine.runs import EXACT, drain, pin, request, run_all
from tests.replicas.torch_engine.test_sampling import total_variation_bound

SAMPLED = [
    {"temperature": 0.7, "seed": 5},
    {"temperature": 1.0, "top_k": 4, "seed": 6},
    {"temperature": 1.3, "top_p": 0.8, "seed": -7},
    {"temperature": 2.0, "top_p": 0.9, "top_k": 10, "seed": 2**70},
    {},
]


def sampled_requests(references):
    return [
        request(f"{i}", prompt, 40, **SAMPLED[i % len(SAMPLED)])
        for i, prompt in enumerate(references)
    ]


@pytest.fixture(scope="module")
def sampled_alone(copying, references):
    """Output of every sampled request, decoded in AR on its own."""
    output = {}
    for each in sampled_requests(references):
        output |= {n: o.tokens for n, o in run_all(build_engine(copying), [each]).items()}
    return output


@pytest.mark.parametrize("plan", EXACT, ids=str)
def test_seeded_output_does_not_depend_on_plan_or_batch(copying, references, sampled_alone, plan):
    engine = build_engine(copying)
    pin(engine, plan)
    outcomes = run_all(engine, sampled_requests(references))
    assert {n: o.tokens for n, o in outcomes.items()} == sampled_alone


def same_everywhere(batch, kv):
    """A forward whose logits depend on nothing: then only the noise of a position decides."""
    count = len(batch.tokens) if batch.logit_index is None else len(batch.logit_index)
    logits = torch.randn(COPYING.vocab_size, generator=torch.Generator().manual_seed(2))
    logits[COPYING.mask_token_id] = -math.inf
    return logits.expand(count, -1).clone()


@pytest.mark.parametrize("plan", all_plans(), ids=str)
def test_every_plan_uses_the_noise_of_the_position_it_decides(copying, plan):
    """Drafts share it with their verification, so here every one is accepted; diffusion's tokens
    and seeds use it too, so here even diffusion gives AR's tokens."""
    sampling = {"temperature": 1.0, "seed": 9}
    expected = run_all(
        build_engine(copying, forward=same_everywhere), [request("r", (3, 4, 5), 65, **sampling)]
    )["r"].tokens
    engine = build_engine(copying, forward=same_everywhere)
    asked = request("r", (3, 4, 5), 65, plan=plan, quality=Quality.ANY, **sampling)
    assert run_all(engine, [asked])["r"].tokens == expected
    assert len(set(expected)) > 10
    counters = engine.report().plans[plan]
    assert counters.committed == 64
    assert counters.rounds == 64 // plan.block_length


@pytest.mark.parametrize("seed", range(3))
def test_seeded_output_survives_plan_changes_and_preemption(
    copying, references, sampled_alone, seed
):
    generator = random.Random(seed)
    engine = build_engine(copying, kv_tokens=192 * 2, max_sequences=6, max_step_tokens=64)
    requests = sampled_requests(references)
    generator.shuffle(requests)
    for each in requests:
        engine.submit(each)
    outcomes = drain(engine, lambda step: pin(engine, generator.choice(EXACT), step))
    assert engine.report().preemptions > 0
    assert {n: o.tokens for n, o in outcomes.items()} == sampled_alone


def test_requests_without_a_seed_differ(copying, references):
    prompt = next(iter(references))
    requests = [request(str(i), prompt, 30, temperature=2.0) for i in range(8)]
    outcomes = run_all(build_engine(copying), requests)
    assert len({o.tokens for o in outcomes.values()}) == 8


def enumerated_paths(prompt: tuple[int, ...], tokens: int, temperature: float) -> dict:
    """Probability of every continuation under top_k 2, from transformers' logits."""
    model, paths = transformers_model(COPYING, copying_weights()), {(): 1.0}
    for _ in range(tokens):
        longer = {}
        for path, probability in paths.items():
            with torch.no_grad():
                logits = model(torch.tensor([prompt + path])).logits[0, -1]
            logits[COPYING.mask_token_id] = -math.inf
            values, best = logits.topk(2)
            shares = torch.softmax(values / temperature, dim=0).tolist()
            longer |= {
                (*path, t): probability * share
                for t, share in zip(best.tolist(), shares, strict=True)
            }
        paths = longer
    return paths


@pytest.mark.parametrize("plan", EXACT, ids=str)
def test_unseeded_output_is_distributed_as_ar(copying, plan):
    """Every continuation of 4 tokens under top_k 2 against its enumerated probability."""
    samples, temperature = 4000, 3.0
    prompt = tuple(3 + i % 9 for i in range(20))
    expected = enumerated_paths(prompt, 4, temperature)
    engine = build_engine(
        copying, kv_tokens=96 * 256, max_sequences=256, max_step_tokens=4096, max_waiting=samples
    )
    pin(engine, plan)
    outcomes = run_all(
        engine,
        [request(str(i), prompt, 4, temperature=temperature, top_k=2) for i in range(samples)],
    )
    counts = Counter(outcome.tokens for outcome in outcomes.values())
    assert counts.keys() <= expected.keys()
    distance = sum(abs(counts[k] / samples - p) for k, p in expected.items())
    assert distance < total_variation_bound(len(expected), samples)


def test_a_copying_model_is_what_the_sampled_tests_assume(copying, references):
    """Sampled speculation accepts drafts too, else the tests above would only test AR."""
    plan = Plan.parse("self_speculation/8")
    engine = build_engine(copying)
    pin(engine, plan)
    run_all(engine, [replace(r, plan=plan) for r in sampled_requests(references)])
    counters = engine.report().plans[plan]
    assert counters.committed > 1.2 * counters.rounds

"""Exactness on the trained demo model: real prompts, real acceptance, real ends."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch

from policies.vocabulary import Plan, Quality
from replicas.engine import FinishReason
from replicas.tiny import CHECKPOINT
from replicas.tiny.tasks import TASKS, held_out_set
from replicas.torch_engine.checkpoint import load_checkpoint
from replicas.torch_engine.loader import prompt_token_ids
from tests.replicas.torch_engine.builders import (
    build_engine,
    build_model,
    greedy_reference,
    transformers_model,
)
from tests.replicas.torch_engine.runs import (
    DIFFUSION,
    EXACT,
    assert_empty,
    drain,
    pin,
    request,
    run_all,
)

LIMIT = 48
CLEAR_GAP = 1e-3
"""Logits of this model reach 20, so kernels differ by some 1e-5."""


@pytest.fixture(scope="module")
def checkpoint():
    return load_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def model(checkpoint):
    return build_model(checkpoint.config, checkpoint.weights)


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return checkpoint.tokenizer.backend_tokenizer


@pytest.fixture(scope="module")
def answers(checkpoint):
    """Prompt -> transformers' greedy answer, up to the end of sequence, where every choice is
    clear."""
    weights = {n: w.float() for n, w in checkpoint.weights.items()}
    reference, found = transformers_model(checkpoint.config, weights), {}
    for task in TASKS:
        for sample in held_out_set(task, 2):
            prompt = prompt_token_ids(checkpoint.tokenizer, sample.prompt)
            tokens, gap = greedy_reference(
                reference, checkpoint.config, prompt, LIMIT, checkpoint.config.eos_token_ids
            )
            if gap > CLEAR_GAP:
                found[prompt] = tokens
    assert len(found) >= len(TASKS)
    assert len({len(tokens) for tokens in found.values()}) > 5
    return found


def ask(prompts, **options):
    return [request(str(p), p, LIMIT, ignore_eos=False, **options) for p in prompts]


def roomy(model, tokenizer=None):
    return build_engine(
        model, tokenizer, max_context_tokens=480, kv_tokens=512 * 32, max_sequences=32
    )


@pytest.mark.parametrize("plan", EXACT, ids=str)
def test_every_exact_plan_answers_as_transformers_does(model, tokenizer, answers, plan):
    engine = roomy(model, tokenizer)
    pin(engine, plan)
    outcomes = run_all(engine, ask(answers))
    for prompt, tokens in answers.items():
        outcome = outcomes[str(prompt)]
        assert outcome.tokens == tokens
        assert outcome.text == tokenizer.decode(list(tokens), skip_special_tokens=True)
        ended = tokens[-1] == engine.model.config.eos_token_ids[0]
        assert outcome.reason is (FinishReason.STOP if ended else FinishReason.LENGTH)


@pytest.mark.parametrize("seed", range(2))
def test_plan_changes_preemption_and_chunks_change_no_answer(model, answers, seed):
    generator = random.Random(seed)
    engine = build_engine(
        model, max_context_tokens=224, kv_tokens=256, max_sequences=12, max_step_tokens=64
    )
    waiting = [r for r in ask(answers) if len(r.prompt_token_ids) + LIMIT <= 224]
    generator.shuffle(waiting)
    asked = list(waiting)

    def change(step: int) -> None:
        pin(engine, generator.choice(EXACT), step)
        while waiting and (not engine.has_work or generator.random() < 0.7):
            engine.submit(waiting.pop())

    outcomes = drain(engine, change)
    for each in asked:
        assert outcomes[each.request_id].tokens == answers[each.prompt_token_ids]
    assert engine.report().preemptions > 0
    assert_empty(engine)


def test_drafts_are_accepted_in_many_lengths(model, answers):
    plan = Plan.parse("self_speculation/16")
    engine = roomy(model)
    pin(engine, plan)
    run_all(engine, ask(answers))
    counters = engine.report().plans[plan]
    survivors = (counters.rounds, *counters.accepted)
    assert sum(a > b for a, b in pairwise(survivors)) >= 6
    assert counters.committed > 2 * counters.rounds


@pytest.mark.parametrize("plan", EXACT[1:], ids=str)
def test_seeded_answers_do_not_depend_on_the_plan(model, answers, plan):
    sampled = {"temperature": 1.0, "top_p": 0.95, "seed": 11}
    expected = run_all(roomy(model), ask(answers, **sampled))
    engine = roomy(model)
    pin(engine, plan)
    outcomes = run_all(engine, ask(answers, **sampled))
    assert {n: o.tokens for n, o in outcomes.items()} == {n: o.tokens for n, o in expected.items()}


@pytest.mark.parametrize("plan", DIFFUSION, ids=str)
def test_diffusion_ends_its_answers_and_never_shows_the_mask(model, tokenizer, answers, plan):
    engine = roomy(model, tokenizer)
    pin(engine, plan)
    outcomes = run_all(engine, ask(answers, quality=Quality.ANY))
    eos, mask = engine.model.config.eos_token_ids[0], engine.model.config.mask_token_id
    for outcome in outcomes.values():
        assert mask not in outcome.tokens
        assert eos not in outcome.tokens[:-1]
        assert outcome.text == tokenizer.decode(list(outcome.tokens), skip_special_tokens=True)
    assert engine.report().plans[plan].committed > 1.2 * engine.report().plans[plan].forwards


def test_bfloat16_decodes_in_every_plan(checkpoint, answers):
    """No exactness is promised there: only that every plan runs and ends as asked."""
    model = type(build_model(checkpoint.config, checkpoint.weights))(
        checkpoint.config,
        checkpoint.weights,
        max_positions=512,
        dtype=torch.bfloat16,
        device=torch.device("cpu"),
    )
    for plan in (*EXACT, *DIFFUSION):
        engine = roomy(model)
        outcomes = run_all(engine, ask(list(answers)[:4], plan=plan, quality=Quality.ANY))
        assert all(o.reason is not None and o.tokens for o in outcomes.values())

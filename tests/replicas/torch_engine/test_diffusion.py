"""Block diffusion: what one pass fixes, when a block ends, and what never leaves it."""

from __future__ import annotations

import math

import pytest
import torch

from policies.vocabulary import AR, Plan, Quality
from replicas.engine import FinishReason
from tests.replicas.torch_engine.builders import (
    COPYING,
    TINY,
    build_engine,
    build_model,
    copying_weights,
    random_prompt,
    random_weights,
    word_tokenizer,
)
from tests.replicas.torch_engine.runs import DIFFUSION, Outcome, drain, pin, request, run_all

BLOCK_4 = Plan.parse("diffusion/4")
MASK, EOS = TINY.mask_token_id, 2


def diffusing(name, prompt, max_tokens, **options):
    return request(name, prompt, max_tokens, quality=Quality.ANY, **{"plan": BLOCK_4, **options})


class Script:
    """A forward that answers from a table and notes what it was fed.

    `denoise` lists, pass by pass, {place in block: (token, probability)}; the last entry repeats.
    `causal` maps the last fed token to the next one. Places not named get (40, 0.01).
    """

    def __init__(self, denoise, causal):
        self.denoise, self.causal = denoise, causal
        self.fed: list[list[int]] = []
        self.passes = 0

    def __call__(self, batch, kv):
        logits = torch.zeros(len(batch.tokens), TINY.vocab_size)
        segment = batch.segments[0]
        start = segment.length - segment.width
        self.fed.append([start, *batch.tokens.tolist()])
        bidirectional = segment.width > 1 and segment.mask is None
        if bidirectional:
            table = self.denoise[min(self.passes, len(self.denoise) - 1)]
            self.passes += 1
        for i, token in enumerate(batch.tokens.tolist()):
            if bidirectional:
                target, probability = table.get(i, (40, 0.01))
                # softmax over 46 zeros (not the mask, not the target) gives that probability
                logits[i, target] = math.log(probability / (1 - probability) * 46)
            else:
                logits[i, self.causal.get(token, 41)] = 20.0
        logits[:, MASK] = -math.inf
        return logits if batch.logit_index is None else logits[batch.logit_index]


@pytest.fixture(scope="module")
def tiny():
    return build_model(TINY, random_weights(TINY))


def test_a_hand_computed_case(tiny):
    """Prompt 3 4, seed 5 by prefill. Block of 4: three masks behind the seed.

    Pass 1: only place 2 is above 0.9 (9 at 0.95).               [5 _ 9 _]
    Pass 2: none above; place 3 is the surest (10 at 0.6).       [5 _ 9 10]
    Pass 3: place 1 (8 at 0.3); place 2 says 30 now, but is fixed. [5 8 9 10]
    One causal pass over the block at the same positions; the logit of its last token, 10, gives 11,
    the next seed. Position i's bidirectional logit is token i itself: no shift.
    """
    script = Script(
        denoise=[
            {0: (33, 0.99), 1: (8, 0.3), 2: (9, 0.95), 3: (10, 0.6)},
            {0: (33, 0.99), 1: (8, 0.3), 2: (30, 0.99), 3: (10, 0.6)},
        ],
        causal={4: 5, 10: 11},
    )
    engine = build_engine(tiny, forward=script)
    engine.submit(diffusing("r", (3, 4), 5))
    steps = [engine.step() for _ in range(5)]
    assert script.fed == [
        [0, 3, 4],
        [2, 5, MASK, MASK, MASK],
        [2, 5, MASK, 9, MASK],
        [2, 5, MASK, 9, 10],
        [2, 5, 8, 9, 10],
    ]
    assert [[d.token_ids for d in deltas] for deltas in steps] == [
        [(5,)],
        [],
        [],
        [],
        [(8, 9, 10, 11)],
    ]
    counters = engine.report().plans[BLOCK_4]
    assert (counters.forwards, counters.denoising_steps, counters.rounds) == (4, 3, 1)
    assert counters.committed == 4


def test_every_place_above_the_threshold_is_fixed_in_one_pass(tiny):
    sure = {1: (8, 0.95), 2: (9, 0.91), 3: (10, 0.99)}
    script = Script([sure], {4: 5, 10: 11, 11: 12})
    engine = build_engine(tiny, forward=script)
    outcome = run_all(engine, [diffusing("r", (3, 4), 9)])["r"]
    assert [d.token_ids for d in outcome.deltas] == [(5,), (8, 9, 10, 11), (8, 9, 10, 11)]
    assert [f[0] for f in script.fed] == [0, 2, 2, 6, 6]


@pytest.mark.parametrize(("threshold", "passes"), [(0.5, 1), (0.7, 2), (0.9, 3), (1.0, 3)])
def test_the_threshold_decides_the_number_of_passes(tiny, threshold, passes):
    script = Script([{1: (8, 0.6), 2: (9, 0.85), 3: (10, 0.8)}], {4: 5})
    engine = build_engine(tiny, forward=script)
    plan = Plan(BLOCK_4.mode, BLOCK_4.block_length, threshold)
    run_all(engine, [diffusing("r", (3, 4), 5, plan=plan)])
    # The last pass leaves nothing to choose, and max_tokens asks for the seed behind the block.
    assert engine.report().plans[BLOCK_4].denoising_steps == passes


@pytest.mark.parametrize(
    ("sampling", "expected", "reason", "text"),
    [
        ({"max_tokens": 3}, (5, 8, 9), FinishReason.LENGTH, "af.ai.aj."),
        ({"max_tokens": 4}, (5, 8, 9, EOS), FinishReason.LENGTH, "af.ai.aj.ac."),
        ({"ignore_eos": False}, (5, 8, 9, EOS), FinishReason.STOP, "af.ai.aj."),
        ({"stop_token_ids": (9,)}, (5, 8, 9), FinishReason.STOP, "af.ai."),
        ({"stop": ("ai.aj",)}, (5, 8, 9), FinishReason.STOP, "af."),
        ({"stop": ("i.",)}, (5, 8), FinishReason.STOP, "af.a"),
        ({"stop": ("af.",)}, (5,), FinishReason.STOP, ""),
    ],
    ids=str,
)
def test_an_end_inside_a_block_is_exact(tiny, sampling, expected, reason, text):
    script = Script([{1: (8, 0.99), 2: (9, 0.99), 3: (EOS, 0.99)}], {4: 5})
    engine = build_engine(tiny, word_tokenizer(TINY.vocab_size), forward=script)
    options = {"max_tokens": 20, **sampling}
    outcome = run_all(engine, [diffusing("r", (3, 4), options.pop("max_tokens"), **options)])["r"]
    assert (outcome.tokens, outcome.reason, outcome.text) == (expected, reason, text)
    assert engine.report().generated_tokens == len(expected)
    assert engine.report().plans[BLOCK_4].committed == len(expected) - 1


def test_a_block_that_ends_early_is_not_committed(tiny):
    """The end is known once everything up to it is fixed: no commit pass, no later places."""
    script = Script([{1: (8, 0.99), 2: (EOS, 0.99)}], {4: 5})
    engine = build_engine(tiny, forward=script)
    outcome = run_all(engine, [diffusing("r", (3, 4), 20, ignore_eos=False)])["r"]
    assert outcome.tokens == (5, 8, EOS)
    assert len(script.fed) == 2
    outcome = run_all(engine, [diffusing("r", (3, 4), 3)])["r"]
    assert outcome.tokens == (5, 8, EOS)
    assert len(script.fed) == 4


def test_rows_finish_on_their_own():
    """A row that is sure pays two forwards a block, whatever its neighbour needs."""
    model = build_model(COPYING, copying_weights())
    generator = torch.Generator().manual_seed(0)
    prompts = [random_prompt(generator, COPYING.vocab_size, n) for n in (20, 31, 44)]

    def steps_of(requests) -> dict[str, int]:
        engine, last = build_engine(model), {}
        for each in requests:
            engine.submit(each)
        for step in range(500):
            for delta in engine.step() if engine.has_work else []:
                last[delta.request_id] = step
        return last

    requests = [
        diffusing(str(i), p, 41, plan=Plan.parse(f"diffusion/8@{t}"))
        for i, (p, t) in enumerate(zip(prompts, ("0.05", "0.5", "1"), strict=True))
    ]
    alone = {}
    for each in requests:
        alone |= steps_of([each])
    assert steps_of(requests) == alone
    assert len(set(alone.values())) == 3


@pytest.mark.parametrize("plan", DIFFUSION, ids=str)
@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_the_mask_token_is_never_emitted(plan, temperature):
    """Also where the model would love to, and where prompts hold it, seed included."""
    weights = copying_weights() | {}
    head = weights["diffusion_head.weight"].clone()
    head[MASK] = 10 * head[3]
    model = build_model(COPYING, weights | {"diffusion_head.weight": head})
    prompts = [(5, MASK, 7, MASK), (MASK,), (MASK,) * 30, tuple(range(3, 30))]
    for low in (plan, Plan(plan.mode, plan.block_length, 0.05)):
        engine = build_engine(model)
        outcomes = run_all(
            engine,
            [
                diffusing(f"{i}/{seed}", p, 40, plan=low, temperature=temperature, seed=seed)
                for i, p in enumerate(prompts)
                for seed in range(3)
            ],
        )
        for outcome in outcomes.values():
            assert len(outcome.tokens) == 40
            assert MASK not in outcome.tokens


@pytest.mark.parametrize("plan", DIFFUSION, ids=str)
def test_what_diffusion_wrote_continues_in_ar_as_from_a_cold_cache(copying, plan):
    prompt = random_prompt(torch.Generator().manual_seed(3), COPYING.vocab_size, 25)
    engine = build_engine(copying)
    engine.submit(diffusing("warm", prompt, 100, plan=None))
    pin(engine, plan)
    outcome = Outcome()
    while len(outcome.tokens) < 40:
        outcome.deltas.extend(engine.step())
    written = prompt + outcome.tokens
    pin(engine, AR, 1)
    warm_cache = [layer[: len(written) - 1].clone() for layer in engine.pool.layers]
    drain(engine, outcomes={"warm": outcome})

    cold = build_engine(copying)
    cold.submit(request("cold", written, prompt_rest := len(prompt) + 100 - len(written)))
    cold.step()
    cold_cache = [layer[: len(written) - 1] for layer in cold.pool.layers]
    for ours, theirs in zip(warm_cache, cold_cache, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    fresh = run_all(build_engine(copying), [request("cold", written, prompt_rest)])["cold"]
    assert (prompt + outcome.tokens)[len(written) :] == fresh.tokens
    assert outcome.plans == {plan, AR}


def test_a_begun_block_is_finished_in_its_own_plan(tiny):
    """A plan change in mid-block waits for the block: its places were promised by one plan."""
    script = Script([{1: (8, 0.3), 2: (9, 0.4), 3: (10, 0.5)}], {4: 5, 10: 11, 11: 12, 12: 13})
    engine = build_engine(tiny, forward=script)
    engine.submit(diffusing("r", (3, 4), 7, plan=None))
    pin(engine, BLOCK_4)
    outcomes = {"r": Outcome()}

    def change(step: int) -> None:
        if step == 3:
            pin(engine, AR, 1)

    drain(engine, change, outcomes)
    plans = [(d.token_ids, d.plan) for d in outcomes["r"].deltas]
    assert plans == [((5,), None), ((8, 9, 10, 11), BLOCK_4), ((12,), AR), ((13,), AR)]


def test_preemption_in_mid_block_changes_no_token(copying):
    """A dropped block is denoised again from the same context, so it comes out the same."""
    generator = torch.Generator().manual_seed(9)
    prompts = [random_prompt(generator, COPYING.vocab_size, n) for n in (30, 41, 52, 60, 22, 18)]
    plan = Plan.parse("diffusion/16@0.6")
    requests = [diffusing(str(i), p, 60, plan=plan) for i, p in enumerate(prompts)]
    roomy, tight = build_engine(copying), build_engine(copying, kv_tokens=384)
    expected = {n: o.tokens for n, o in run_all(roomy, requests).items()}
    assert {n: o.tokens for n, o in run_all(tight, requests).items()} == expected
    assert tight.report().preemptions > 0
    assert roomy.report().preemptions == 0


def test_exact_requests_get_self_speculation_in_place_of_diffusion(copying, references):
    engine = build_engine(copying)
    pin(engine, Plan.parse("diffusion/8"))
    prompt, expected = next(iter(references.items()))
    outcomes = run_all(
        engine,
        [request("exact", prompt, 30), diffusing("any", prompt, 30, plan=None)],
    )
    assert outcomes["exact"].tokens == expected[:30]
    assert outcomes["exact"].plans == {Plan.parse("self_speculation/8")}
    assert outcomes["any"].plans == {Plan.parse("diffusion/8")}

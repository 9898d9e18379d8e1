"""SGLang's answers are the embedded engine's: tokens, text and how they end.

Run: make test-sglang
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from importlib.util import find_spec
from typing import Any

import pytest

from policies.vocabulary import AR, BLOCK_LENGTHS, Mode, Plan, Quality, Schedule
from replicas.engine import Delta, Engine, Request, SamplingParams
from replicas.sglang_engine.engine import Limits
from replicas.sglang_engine.loader import LaunchOptions
from replicas.sglang_engine.loader import open_engine as open_sglang
from replicas.tiny import CHECKPOINT
from replicas.tiny.tasks import TASKS, held_out_set
from replicas.torch_engine.checkpoint import load_tokenizer
from replicas.torch_engine.engine import EngineLimits
from replicas.torch_engine.loader import LoadOptions, prompt_token_ids
from replicas.torch_engine.loader import open_engine as open_torch

pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(find_spec("sglang") is None, reason="sglang is not installed"),
]
CONTEXT = 512
EXACT = (AR, *(Plan(Mode.SELF_SPECULATION, length) for length in BLOCK_LENGTHS))
Both = Callable[[Callable[[Engine, Engine], Coroutine[Any, Any, None]]], None]


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    """Runs a scenario on an SGLang and an embedded engine, the same two for all tests."""
    options = LaunchOptions(str(CHECKPOINT), Limits(CONTEXT, 8, 8), device="cpu", threads=1)
    limits = EngineLimits(max_context_tokens=CONTEXT, max_sequences=8, max_waiting=8)
    with asyncio.Runner() as runner:
        sglang, _ = open_sglang(options)
        torch, _ = open_torch(CHECKPOINT, LoadOptions(device="cpu", threads=1, limits=limits))
        runner.run(torch.start())
        try:
            runner.run(sglang.start())
            yield lambda scenario: runner.run(scenario(sglang, torch))
        finally:
            runner.run(sglang.stop())
            runner.run(torch.stop())


def prompts() -> list[tuple[int, ...]]:
    tokenizer = load_tokenizer(CHECKPOINT)
    return [prompt_token_ids(tokenizer, held_out_set(task, 1)[0].prompt) for task in TASKS]


async def answer(engine: Engine, request: Request) -> tuple[list[int], str, object]:
    deltas: list[Delta] = [delta async for delta in engine.generate(request)]
    tokens = [token for delta in deltas for token in delta.token_ids]
    return tokens, "".join(delta.text for delta in deltas), deltas[-1].finish_reason


def requests(sampling: SamplingParams, plan: Plan | None = None) -> list[Request]:
    return [Request(f"{i}", ids, sampling, plan=plan) for i, ids in enumerate(prompts())]


async def assert_same(sglang: Engine, torch: Engine, one: Request) -> None:
    assert await answer(sglang, one) == await answer(torch, one), one


@pytest.mark.parametrize("plan", EXACT, ids=str)
def test_greedy_answers_are_the_same(both: Both, plan: Plan) -> None:
    async def scenario(sglang: Engine, torch: Engine) -> None:
        for one in requests(SamplingParams(max_tokens=80), plan):
            await assert_same(sglang, torch, one)

    both(scenario)


@pytest.mark.parametrize("plan", EXACT[:3], ids=str)
def test_seeded_samples_are_the_same(both: Both, plan: Plan) -> None:
    async def scenario(sglang: Engine, torch: Engine) -> None:
        for one in requests(SamplingParams(60, 0.8, top_p=0.95, top_k=40, seed=7), plan):
            await assert_same(sglang, torch, one)

    both(scenario)


def test_stop_strings_and_stop_tokens_cut_at_the_same_place(both: Both) -> None:
    async def scenario(sglang: Engine, torch: Engine) -> None:
        speculation = Plan(Mode.SELF_SPECULATION, 16)
        for ids in prompts():
            tokens, text, _ = await answer(torch, Request("whole", ids, SamplingParams(60)))
            middle = len(text) // 2
            for sampling in (
                SamplingParams(60, stop=(text[middle : middle + 2],)),
                SamplingParams(60, stop_token_ids=(tokens[len(tokens) // 2],)),
                SamplingParams(60, stop_token_ids=(tokens[1],), ignore_eos=True),
            ):
                await assert_same(sglang, torch, Request("cut", ids, sampling, plan=speculation))

    both(scenario)


@pytest.mark.parametrize("plan", [AR, Plan(Mode.SELF_SPECULATION, 32)], ids=str)
def test_a_request_may_fill_the_context_to_the_last_token(both: Both, plan: Plan) -> None:
    async def scenario(sglang: Engine, torch: Engine) -> None:
        ids = prompts()[0]
        sampling = SamplingParams(max_tokens=CONTEXT - len(ids), ignore_eos=True)
        one = Request("full", ids, sampling, plan=plan)
        assert len((await answer(sglang, one))[0]) == CONTEXT - len(ids)
        await assert_same(sglang, torch, one)

    both(scenario)


def test_switching_at_random_among_exact_plans_changes_no_token(both: Both) -> None:
    async def scenario(sglang: Engine, torch: Engine) -> None:
        sampling = SamplingParams(max_tokens=300, ignore_eos=True)
        eight = (prompts() * 8)[:8]
        running = [
            asyncio.create_task(answer(sglang, Request(f"{i}", ids, sampling, Quality.EXACT)))
            for i, ids in enumerate(eight)
        ]
        chance, version = random.Random(5), 0
        while not all(task.done() for task in running):
            version += 1
            sglang.set_schedule(Schedule.pinned(chance.choice(EXACT), epoch=1, version=version))
            await asyncio.sleep(0.02)
        for ids, task in zip(eight, running, strict=True):
            assert task.result() == await answer(torch, Request("alone", ids, sampling, plan=AR))
        assert sglang.report().switches >= 10
        print(f"\n{version} schedules, {sglang.report().switches} switches, 8 requests")

    both(scenario)

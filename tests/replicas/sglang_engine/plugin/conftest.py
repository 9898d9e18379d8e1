"""Servers and references of the plugin's tests. The server takes 20 to 60 s to start."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from threading import Event, Thread

import pytest
import torch

from benchmarks.sglang_server import Ask, Served, serving
from policies.vocabulary import Plan
from replicas.engine import Request, SamplingParams
from replicas.tiny import CHECKPOINT
from replicas.tiny.tasks import TASKS, held_out_set
from replicas.torch_engine.checkpoint import load_checkpoint, load_tokenizer
from replicas.torch_engine.loader import LoadOptions, build_engine, prompt_token_ids

LIMIT = 64
Tokens = tuple[int, ...]


@pytest.fixture(scope="session")
def _sglang() -> None:
    if find_spec("sglang") is None:
        pytest.skip("SGLang is not installed here: make test-sglang")


@pytest.fixture(scope="session")
def prompts() -> list[Tokens]:
    """One held-out prompt of each task: many lengths, many acceptances."""
    tokenizer = load_tokenizer(CHECKPOINT)
    return [prompt_token_ids(tokenizer, held_out_set(task, 1)[0].prompt) for task in TASKS]


@pytest.fixture(scope="session")
def ours(prompts: list[Tokens]) -> dict[Tokens, list[int]]:
    """The embedded engine's greedy answers."""
    return embedded(prompts, [SamplingParams(max_tokens=LIMIT)] * len(prompts))


@pytest.fixture(scope="session")
def stock(
    _sglang: None, prompts: list[Tokens], tmp_path_factory: pytest.TempPathFactory
) -> dict[Tokens, list[int]]:
    """The greedy answers of SGLang's own AR decoding, which knows nothing of three modes."""
    with serving(tmp_path_factory.mktemp("stock"), stock=True) as server:
        answers = server.ask_all([Ask(p, max_tokens=LIMIT) for p in prompts])
    return {p: a.tokens for p, a in zip(prompts, answers, strict=True)}


@pytest.fixture(scope="session")
def served(
    _sglang: None, stock: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One server for all tests; `stock` only so that the two do not run at once."""
    with serving(tmp_path_factory.mktemp("trimode")) as server:
        yield server


def embedded(prompts: list[Tokens], sampling: list[SamplingParams]) -> dict[Tokens, list[int]]:
    """What the embedded engine, in AR, answers to each prompt alone."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    core = build_engine(load_checkpoint(CHECKPOINT), LoadOptions(device="cpu", threads=1))
    answers: dict[Tokens, list[int]] = {}
    for prompt, params in zip(prompts, sampling, strict=True):
        core.submit(Request("only", prompt, params))
        answers[prompt] = []
        while core.has_work:
            answers[prompt] += [t for delta in core.step() for t in delta.token_ids]
    torch.set_num_threads(threads)
    return answers


def while_switching(served: Served, plans: Sequence[Plan], seed: int, work: Callable[[], object]):
    """Runs `work` under a new random plan every few milliseconds."""
    stopped, generator = Event(), random.Random(seed)

    def switch() -> None:
        plan = plans[0]
        while not stopped.wait(0.01):
            plan = generator.choice([p for p in plans if p != plan])
            served.use(plan)

    thread = Thread(target=switch)
    thread.start()
    try:
        return work()
    finally:
        stopped.set()
        thread.join()

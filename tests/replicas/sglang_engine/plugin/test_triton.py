"""A server with SGLang's Triton attention, its kernels in Triton's interpreter.

Run with: make test-sglang
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.sglang_server import Ask, Served, serving
from policies.vocabulary import AR, Mode, Plan
from replicas.engine import SamplingParams
from replicas.sglang_engine.protocol import GRAPHS_VARIABLE
from tests.replicas.sglang_engine.plugin.checkpoints import Decoded, decoded_alone, prompts
from tests.replicas.torch_engine.checkpoints import write_checkpoint

pytestmark = pytest.mark.sglang

LIMIT = SamplingParams(max_tokens=16, ignore_eos=True)
FLAGS = ("--attention-backend", "triton", "--triton-attention-num-kv-splits", "2")
EAGER = [Plan(Mode.SELF_SPECULATION, 16), Plan(Mode.DIFFUSION, 4)]
REPLAYED = [
    AR,
    *(Plan(Mode.SELF_SPECULATION, length) for length in (4, 32)),
    Plan(Mode.DIFFUSION, 16),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("release") / "model")


@contextmanager
def triton_server(folder: Path, checkpoint: Path, **environment: str) -> Iterator[Served]:
    variables = {"TRITON_INTERPRET": "1", **environment}
    with serving(folder, *FLAGS, model=checkpoint, environment=variables) as server:
        yield server


@pytest.fixture(scope="module")
def eager(
    _sglang: None, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    with triton_server(tmp_path_factory.mktemp("eager"), checkpoint) as server:
        yield server


@pytest.fixture(scope="module")
def replayed(
    _sglang: None, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Through the static inputs of CUDA graphs; on a CPU a replay is the pass again."""
    folder = tmp_path_factory.mktemp("replayed")
    with triton_server(folder, checkpoint, **{GRAPHS_VARIABLE: "1"}) as server:
        yield server


def together(served: Served, plan: Plan, count: int) -> Decoded:
    """Several prompts of different lengths in one batch, and what was accepted of their drafts."""
    before = served.fresh_report().plans[plan]
    asks = [
        Ask(p, plan, max_tokens=LIMIT.max_tokens, sampling={"ignore_eos": True})
        for p in prompts(count)
    ]
    answers = served.ask_all(asks)
    after = served.fresh_report().plans[plan]
    accepted = tuple(a - b for a, b in zip(after.accepted, before.accepted, strict=True))
    return Decoded([a.tokens for a in answers], after.rounds - before.rounds, accepted)


@pytest.mark.parametrize("plan", EAGER, ids=str)
def test_a_batch_decodes_as_the_embedded_engine_does(
    eager: Served, checkpoint: Path, plan: Plan
) -> None:
    """Tokens and, round for round, accepted drafts: with a wrong mask they would be others."""
    assert together(eager, plan, 3) == decoded_alone(checkpoint, plan, prompts(3), LIMIT)


@pytest.mark.parametrize("plan", REPLAYED, ids=str)
def test_a_batch_of_replayed_passes_does_too(
    replayed: Served, checkpoint: Path, plan: Plan
) -> None:
    assert together(replayed, plan, 3) == decoded_alone(checkpoint, plan, prompts(3), LIMIT)

"""SGLang's Triton attention with the plugin's masks, its kernels in Triton's interpreter.

Every kernel is SGLang's own and nothing is stood in for; only the compiler and the GPU are missing.
Run with: make test-sglang
"""

from __future__ import annotations

from collections.abc import Iterator
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
INTERPRETED = {"TRITON_INTERPRET": "1"}
FLAGS = ("--attention-backend", "triton", "--triton-attention-num-kv-splits", "2")
SPECULATION = [Plan(Mode.SELF_SPECULATION, length) for length in (4, 16, 32)]
DIFFUSION = [Plan(Mode.DIFFUSION, length) for length in (4, 16)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("release") / "model")


@pytest.fixture(scope="module", params=["eager", "replayed"])
def served(
    _sglang: None,
    checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Served]:
    """`replayed`: through the static inputs of CUDA graphs, which on a CPU are the passes again."""
    folder = tmp_path_factory.mktemp("triton")
    environment = {**INTERPRETED, GRAPHS_VARIABLE: str(int(request.param == "replayed"))}
    with serving(folder, *FLAGS, model=checkpoint, environment=environment) as server:
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


@pytest.mark.parametrize("plan", [AR, *SPECULATION, *DIFFUSION], ids=str)
def test_a_batch_decodes_as_the_embedded_engine_does(
    served: Served, checkpoint: Path, plan: Plan
) -> None:
    """Tokens and, round for round, accepted drafts: with a wrong mask they would be others."""
    assert together(served, plan, 3) == decoded_alone(checkpoint, plan, prompts(3), LIMIT)

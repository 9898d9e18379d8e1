"""Servers of other kinds: the 8B's layout with its adapter, slots taken away, no plugin.

Run with: make test-sglang
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.sglang_server import START_S, Ask, Served, launch, serving
from policies.vocabulary import AR, Mode, Plan
from replicas.engine import PlanCounters, SamplingParams
from replicas.sglang_engine.protocol import read_report
from tests.replicas.sglang_engine.plugin.checkpoints import decoded_alone, prompts
from tests.replicas.sglang_engine.plugin.conftest import while_switching
from tests.replicas.torch_engine.checkpoints import write_checkpoint

pytestmark = pytest.mark.sglang

SPECULATION = Plan(Mode.SELF_SPECULATION, 8)
DIFFUSION = Plan(Mode.DIFFUSION, 8)
RETRACTING = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "5"}
"""SGLang takes the slots of half the running requests away at every fifth step."""
CROWDED = ("--max-total-tokens", "400", "--schedule-conservativeness", "0.1")
"""KV slots for most of eight requests in AR, and not for a block of 32 each besides."""
LONGEST = SamplingParams(max_tokens=80, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model in shards, with a draft adapter and remote code that must not run."""
    return write_checkpoint(tmp_path_factory.mktemp("release") / "model")


@pytest.fixture(scope="module")
def served(
    _sglang: None, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("retracting")
    with serving(folder, model=checkpoint, environment=RETRACTING) as server:
        yield server


def difference(after: PlanCounters, before: PlanCounters) -> tuple[int, tuple[int, ...]]:
    pairs = zip(after.accepted, before.accepted, strict=True)
    return after.rounds - before.rounds, tuple(a - b for a, b in pairs)


def test_drafts_with_the_adapter_are_those_of_the_embedded_engine(
    served: Served, checkpoint: Path
) -> None:
    """Acceptance at every position is the same, round for round; remote code has not run."""
    prompt = prompts(1)[0]
    expected = decoded_alone(checkpoint, SPECULATION, [prompt], LONGEST)
    before = served.fresh_report().plans[SPECULATION]
    ask = Ask(prompt, SPECULATION, max_tokens=80, sampling={"ignore_eos": True})
    assert [served.ask(ask).tokens] == expected.tokens
    after = served.fresh_report().plans[SPECULATION]
    assert difference(after, before) == (expected.rounds, expected.accepted)
    assert not (checkpoint / "executed").exists()


@pytest.mark.parametrize("plan", [AR, SPECULATION, DIFFUSION], ids=str)
def test_requests_that_lose_their_slots_are_not_changed_by_it(served: Served, plan: Plan) -> None:
    served.settle(plan)
    hot = {"ignore_eos": True, "temperature": 0.8}
    asks = [Ask(p, seed=i, max_tokens=80, sampling=hot) for i, p in enumerate(prompts(8))]
    alone = [served.ask(ask).tokens for ask in asks]
    before = served.fresh_report().preemptions
    together = served.ask_all(asks)
    assert served.fresh_report().preemptions > before
    assert [len(a.tokens) for a in together] == [80] * 8
    if plan.is_exact:  # a diffusion block begins elsewhere after a retraction
        assert [a.tokens for a in together] == alone


@pytest.mark.usefixtures("_sglang")
def test_a_change_to_blocks_that_there_is_no_room_for_loses_no_request(
    checkpoint: Path, tmp_path: Path
) -> None:
    """The plan is known before SGLang asks whether the step fits."""
    asks = [Ask(p, max_tokens=80, sampling={"ignore_eos": True}) for p in prompts(8)]
    with serving(tmp_path, *CROWDED, model=checkpoint) as crowded:
        alone = [crowded.ask(ask).tokens for ask in asks]
        plans = [AR, Plan(Mode.SELF_SPECULATION, 32)]
        switched = while_switching(crowded, plans, 1, lambda: crowded.ask_all(asks * 2, 8))
        assert crowded.fresh_report().preemptions > 0
    assert [a.tokens for a in switched] == alone * 2


@pytest.mark.usefixtures("_sglang")
def test_a_server_whose_plugin_is_not_loaded_ends_and_leaves_no_report(tmp_path: Path) -> None:
    server = launch(tmp_path, environment={"SGLANG_PLUGINS": "another"})
    try:
        status = asyncio.run(asyncio.wait_for(server.wait(), START_S))
    finally:
        asyncio.run(server.kill())
    assert status != 0, server.tail()
    assert read_report(tmp_path) is None

"""What every engine promises its caller. Run: pytest tests/replicas/test_engine_contract.py

SGLang takes part where it is installed (make test-sglang); over a fake server its adapter always
does.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from policies.vocabulary import AR, Mode, Plan, Quality, Schedule
from replicas.engine import (
    Delta,
    Engine,
    EngineOverloaded,
    EngineReport,
    EngineStopped,
    FinishReason,
    Request,
    RequestRejected,
    SamplingParams,
)
from replicas.sglang_engine.engine import SGLangEngine
from replicas.sglang_engine.loader import LaunchOptions
from replicas.sglang_engine.loader import open_engine as open_sglang
from replicas.tiny import CHECKPOINT
from replicas.torch_engine.checkpoint import load_checkpoint, load_tokenizer
from replicas.torch_engine.engine import EngineLimits, TorchEngine
from replicas.torch_engine.loader import (
    LoadOptions,
    build_engine,
    open_engine,
    prompt_token_ids,
)
from replicas.torch_engine.model import Batch
from replicas.torch_engine.threaded import ThreadedEngine
from tests.replicas.sglang_engine.helpers import LIMITS as SGLANG_LIMITS
from tests.replicas.sglang_engine.helpers import MODEL, PATIENCE, fake_command

Scenario = Callable[[Engine], Coroutine[Any, Any, None]]
Run = Callable[[Scenario], None]
LIMITS = EngineLimits(max_context_tokens=512, max_sequences=4, kv_tokens=2048, max_waiting=2)
SPECULATION = Plan(Mode.SELF_SPECULATION, 8)


SGLANG = pytest.param(
    "sglang",
    marks=[
        pytest.mark.sglang,
        pytest.mark.skipif(find_spec("sglang") is None, reason="sglang is not installed"),
    ],
)


def torch_engine() -> Engine:
    engine, _ = open_engine(CHECKPOINT, LoadOptions(device="cpu", threads=1, limits=LIMITS))
    return engine


def sglang_engine() -> Engine:
    options = LaunchOptions(str(CHECKPOINT), SGLANG_LIMITS, device="cpu", threads=1)
    engine, _ = open_sglang(options)
    return engine


def fake_sglang_engine(folder: Path) -> Engine:
    return SGLangEngine(fake_command(folder / "events"), MODEL, SGLANG_LIMITS, patience=PATIENCE)


async def alone(engine: Engine, scenario: Scenario) -> None:
    await engine.start()
    try:
        await scenario(engine)
    finally:
        await engine.stop()


@pytest.fixture(scope="module")
def run_on_sglang() -> Iterator[Run]:
    """One server for all tests, since it takes a minute to start."""
    with asyncio.Runner() as runner:
        engine = sglang_engine()
        runner.run(engine.start())
        try:
            yield lambda scenario: runner.run(scenario(engine))
        finally:
            runner.run(engine.stop())


@pytest.fixture(params=["torch", "sglang over a fake server", SGLANG])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """Runs a scenario on an engine of each kind, which others may have used before."""
    if request.param == "sglang":
        return request.getfixturevalue("run_on_sglang")  # type: ignore[no-any-return]
    engine = torch_engine() if request.param == "torch" else fake_sglang_engine(tmp_path)
    return lambda scenario: asyncio.run(alone(engine, scenario))


epochs = itertools.count(1)


async def settled(engine: Engine, condition: Callable[[EngineReport], bool]) -> EngineReport:
    """The first report that is so; a report may be a tenth of a second old."""
    async with asyncio.timeout(10):
        while not condition(report := engine.report()):
            await asyncio.sleep(0.01)
    return report


def prompt(text: str = "Add 27 and 45.") -> tuple[int, ...]:
    return prompt_token_ids(load_tokenizer(CHECKPOINT), text)


def request(request_id: str, max_tokens: int = 64, **fields: object) -> Request:
    sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=bool(fields.pop("endless", False)))
    return Request(request_id, prompt(), sampling, **fields)  # type: ignore[arg-type]


async def collect(engine: Engine, one: Request) -> list[Delta]:
    return [delta async for delta in engine.generate(one)]


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def test_deltas_join_to_the_answer_and_the_last_one_says_why_it_ended(run: Run) -> None:
    async def scenario(engine: Engine) -> None:
        deltas = await collect(engine, request("a"))
        assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason is FinishReason.STOP
        assert "".join(d.text for d in deltas).strip()
        assert deltas[0].plan is None

    run(scenario)


def test_a_schedule_changes_the_plan_at_the_next_step_and_no_exact_token(run: Run) -> None:
    async def scenario(engine: Engine) -> None:
        epoch = next(epochs)
        engine.set_schedule(Schedule.pinned(AR, epoch=epoch))
        # Long enough that the switch surely falls into it, however slow this event loop is.
        plain = await collect(engine, request("a", max_tokens=400, endless=True, plan=AR))
        stream = engine.generate(request("b", max_tokens=400, endless=True))
        switched = [await anext(stream), await anext(stream)]
        engine.set_schedule(Schedule.pinned(SPECULATION, epoch=epoch, version=1))
        switched += [delta async for delta in stream]
        assert tokens(switched) == tokens(plain)
        assert {d.plan for d in switched} == {None, AR, SPECULATION}
        await settled(engine, lambda report: report.plan == SPECULATION)

    run(scenario)


def test_an_older_schedule_is_ignored(run: Run) -> None:
    async def scenario(engine: Engine) -> None:
        older, newer = next(epochs), next(epochs)
        engine.set_schedule(Schedule.pinned(SPECULATION, epoch=newer, version=1))
        engine.set_schedule(Schedule.pinned(AR, epoch=older, version=9))
        deltas = await collect(engine, request("a"))
        assert {d.plan for d in deltas[1:]} == {SPECULATION}

    run(scenario)


def test_closing_the_stream_frees_the_sequence(run: Run) -> None:
    async def scenario(engine: Engine) -> None:
        cancelled = engine.report().finished.get("cancelled", 0)
        stream = engine.generate(request("a", max_tokens=400, endless=True))
        await anext(stream)
        await settled(engine, lambda report: report.decoding == 1)
        await stream.aclose()  # type: ignore[attr-defined]
        await collect(engine, request("b"))  # at least one step later
        report = await settled(engine, lambda r: (r.decoding, r.kv_tokens_used) == (0, 0))
        assert report.finished["cancelled"] == cancelled + 1

    run(scenario)


def test_what_cannot_be_served_is_rejected_before_the_first_delta(run: Run) -> None:
    async def scenario(engine: Engine) -> None:
        with pytest.raises(RequestRejected, match="512"):
            await collect(engine, request("a", max_tokens=600))
        assert tokens(await collect(engine, request("b")))

    run(scenario)


def test_a_full_queue_refuses_and_serves_the_rest(run: Run) -> None:
    async def scenario(engine: Engine) -> None:
        many = [collect(engine, request(str(i), endless=True)) for i in range(40)]
        outcomes = await asyncio.gather(*many, return_exceptions=True)
        refused = [o for o in outcomes if isinstance(o, EngineOverloaded)]
        served = [o for o in outcomes if isinstance(o, list)]
        assert len(refused) + len(served) == 40
        assert refused
        assert all(len(tokens(deltas)) == 64 for deltas in served)

    run(scenario)


def test_concurrent_streams_equal_each_alone(run: Run) -> None:
    async def scenario(engine: Engine) -> None:
        alone = tokens(await collect(engine, request("a", plan=AR)))
        together = await asyncio.gather(
            *(collect(engine, request(str(i), plan=p)) for i, p in enumerate((AR, SPECULATION)))
        )
        assert [tokens(deltas) for deltas in together] == [alone, alone]

    run(scenario)


def test_a_pinned_plan_that_breaks_the_asked_quality_is_rejected(run: Run) -> None:
    async def scenario(engine: Engine) -> None:
        pinned = request("a", plan=Plan(Mode.DIFFUSION, 8), quality=Quality.EXACT)
        with pytest.raises(RequestRejected, match="diffusion/8"):
            await collect(engine, pinned)

    run(scenario)


def test_stopping_ends_running_streams_with_an_error(run: Run) -> None:
    # The last of them: an engine that others share has to end here.
    async def scenario(engine: Engine) -> None:
        stream = engine.generate(request("a", max_tokens=400, endless=True))
        await anext(stream)
        await engine.stop()
        with pytest.raises(EngineStopped):
            async for _ in stream:
                pass
        with pytest.raises(EngineStopped):
            engine.check_health()

    run(scenario)


def test_an_engine_that_failed_answers_and_refuses_instead_of_hanging() -> None:
    async def scenario() -> None:
        engine = ThreadedEngine(failing_core, {})
        await engine.start()
        streams = [collect(engine, request(str(i), plan=AR)) for i in range(2)]
        outcomes = await asyncio.gather(*streams, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineStopped] * 2
        assert "device lost" in str(outcomes[0])
        with pytest.raises(EngineStopped):
            await collect(engine, request("late"))
        await engine.stop()

    asyncio.run(scenario())


def failing_core() -> TorchEngine:
    """A real engine whose device is lost at the first forward pass."""

    def forward(batch: Batch, kv: object) -> NoReturn:
        raise RuntimeError("device lost")

    core = build_engine(
        load_checkpoint(CHECKPOINT), LoadOptions(device="cpu", threads=1, limits=LIMITS)
    )
    return TorchEngine(core.model, core.tokenizer, LIMITS, forward=forward)

"""The adapter over a fake SGLang server: a real process, real HTTP, no model.

Run: pytest tests/replicas/sglang_engine/test_engine.py
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from policies.vocabulary import AR, Mode, Plan, Schedule
from replicas.engine import (
    Delta,
    EngineError,
    EngineOverloaded,
    EngineReport,
    EngineStopped,
    FinishReason,
    PlanCounters,
    Request,
    RequestRejected,
    SamplingParams,
)
from replicas.sglang_engine.engine import SGLangEngine
from replicas.sglang_engine.server import Command, ServerFailed
from tests.replicas.sglang_engine.conftest import (
    LIMITS,
    MODEL,
    PATIENCE,
    ROOT,
    Serve,
    Served,
    fake_command,
    until,
)
from tests.replicas.sglang_engine.fake_sglang import LENGTH, tokens_after

SPECULATION = Plan(Mode.SELF_SPECULATION, 8)
PROMPT = (40, 41, 42)


def request(request_id: str = "a", max_tokens: int = 100, **sampling: object) -> Request:
    return Request(request_id, PROMPT, SamplingParams(max_tokens, **sampling))  # type: ignore[arg-type]


async def collect(engine: SGLangEngine, one: Request) -> list[Delta]:
    return [delta async for delta in engine.generate(one)]


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def expected(count: int) -> list[int]:
    return [token for token, _ in zip(tokens_after(request()), range(count), strict=False)]


class TestStarting:
    def test_a_server_that_ends_shows_the_end_of_its_log(self, tmp_path: Path) -> None:
        engine = SGLangEngine(
            fake_command(tmp_path / "e", "--fail-start", "no such attention backend"),
            MODEL,
            LIMITS,
            patience=PATIENCE,
        )
        with pytest.raises(ServerFailed, match=r"(?s)before it was ready.*no such attention"):
            asyncio.run(engine.start())

    def test_a_server_without_the_plugin_is_refused(self, tmp_path: Path) -> None:
        command = fake_command(tmp_path / "e", "--no-plugin")
        engine = SGLangEngine(command, MODEL, LIMITS, patience=PATIENCE)
        with pytest.raises(ServerFailed, match="plugin inside it has not reported within 1 s"):
            asyncio.run(engine.start())
        with pytest.raises(EngineStopped):
            engine.check_health()

    def test_another_version_of_sglang_is_refused_by_name(self, tmp_path: Path) -> None:
        command = fake_command(tmp_path / "e", "--sglang-version", "0.9.9")
        engine = SGLangEngine(command, MODEL, LIMITS, patience=PATIENCE)
        with pytest.raises(ServerFailed, match=r"SGLang 0\.9\.9 runs.*install sglang=="):
            asyncio.run(engine.start())

    def test_a_python_that_is_not_there_is_named(self) -> None:
        engine = SGLangEngine(Command("/no/python", ()), MODEL, LIMITS, patience=PATIENCE)
        with pytest.raises(ServerFailed, match=r"'/no/python'.*set sglang_python"):
            asyncio.run(engine.start())

    def test_a_server_that_does_not_get_ready_in_time_is_killed(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            command = fake_command(tmp_path / "e")
            patience = replace(PATIENCE, start_s=0)
            engine = SGLangEngine(command, MODEL, LIMITS, patience=patience)
            with pytest.raises(ServerFailed, match="was not ready within 0 s"):
                await engine.start()
            with pytest.raises(ProcessLookupError):
                os.kill(engine.server_pid, 0)

        asyncio.run(scenario())


class TestGenerating:
    def test_deltas_join_to_tokens_and_text_and_the_first_has_no_plan(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                deltas = await collect(served.engine, request())
                assert tokens(deltas) == expected(LENGTH)
                assert len(text(deltas)) == LENGTH - 1  # all but the end of the sequence
                assert deltas[-1].finish_reason is FinishReason.STOP
                assert {d.finish_reason for d in deltas[:-1]} == {None}
                assert deltas[0].plan is None
                assert {d.plan for d in deltas[1:]} == {AR}
                report = served.engine.report()
                assert (report.prompt_tokens, report.generated_tokens) == (len(PROMPT), LENGTH)
                assert report.finished == {"stop": 1}

        asyncio.run(scenario())

    def test_max_tokens_ends_with_length(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve(schedule=Schedule.pinned(SPECULATION)) as served:
                deltas = await collect(served.engine, request(max_tokens=30))
                assert tokens(deltas) == expected(30)
                assert deltas[-1].finish_reason is FinishReason.LENGTH

        asyncio.run(scenario())

    def test_a_stop_string_cuts_inside_a_block_and_aborts_upstream(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve(schedule=Schedule.pinned(SPECULATION)) as served:
                whole = text(await collect(served.engine, request()))
                stop = whole[20:22]
                at = whole.index(stop)
                deltas = await collect(served.engine, request("b", stop=(stop,)))
                assert text(deltas) == whole[:at]
                assert tokens(deltas) == expected(at + 2)
                assert deltas[-1].finish_reason is FinishReason.STOP
                await until(lambda: served.events("abort"))
                assert served.events("abort")[0]["rid"].endswith(".b")

        asyncio.run(scenario())

    def test_a_stop_token_ends_the_sequence_and_is_no_text(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                stop = expected(9)[-1]
                count = expected(9).index(stop) + 1
                deltas = await collect(served.engine, request(stop_token_ids=(stop,)))
                assert tokens(deltas) == expected(count)
                assert len(text(deltas)) == count - 1

        asyncio.run(scenario())

    def test_what_a_request_asks_for_reaches_sglang(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                sampling = SamplingParams(5, 0.7, 0.9, 20, seed=3, ignore_eos=True)
                one = Request("a", PROMPT, sampling, plan=Plan(Mode.DIFFUSION, 4))
                deltas = await collect(served.engine, one)
                assert {d.plan for d in deltas[1:]} == {Plan(Mode.DIFFUSION, 4)}
                body = served.events("generate")[0]["body"]
                assert body["input_ids"] == list(PROMPT)
                assert body["sampling_params"] == {
                    "max_new_tokens": 5,
                    "temperature": 0.7,
                    "top_p": 0.9,
                    "top_k": 20,
                    "stop_token_ids": [],
                    "ignore_eos": True,
                    "custom_params": {
                        "trimode": {"plan": "diffusion/4", "quality": "any", "seed": 3}
                    },
                }

        asyncio.run(scenario())

    def test_closing_the_stream_aborts_upstream_and_frees_it(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                endless = request(max_tokens=400, ignore_eos=True)
                async with aclosing(served.engine.generate(endless)) as stream:  # type: ignore[type-var]
                    await anext(stream)
                    await until(lambda: served.engine.report().decoding == 1)
                await until(lambda: served.engine.report().decoding == 0)
                assert served.engine.report().finished == {"cancelled": 1}
                await until(lambda: served.events("abort"))

        asyncio.run(scenario())


class TestRefusing:
    @pytest.mark.parametrize(
        ("one", "what"),
        [
            (Request("a", ()), "prompt is empty"),
            (Request("a", (848,)), "token id 848"),
            (Request("a", PROMPT, SamplingParams(510)), "context limit of 512"),
        ],
    )
    def test_what_can_never_be_served_does_not_reach_sglang(
        self, serve: Serve, one: Request, what: str
    ) -> None:
        async def scenario() -> None:
            async with serve() as served:
                with pytest.raises(RequestRejected, match=what):
                    await collect(served.engine, one)
                assert not served.events("generate")

        asyncio.run(scenario())

    def test_more_than_may_run_and_wait_are_refused_and_the_rest_served(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                many = [collect(served.engine, request(str(i))) for i in range(20)]
                outcomes = await asyncio.gather(*many, return_exceptions=True)
                served_ones = [o for o in outcomes if isinstance(o, list)]
                assert len(served_ones) == LIMITS.max_sequences + LIMITS.max_waiting
                assert all(tokens(o) == expected(LENGTH) for o in served_ones)
                refused = [o for o in outcomes if isinstance(o, EngineOverloaded)]
                assert len(refused) == 20 - len(served_ones)

        asyncio.run(scenario())

    def test_an_id_in_use_is_refused_and_can_be_used_afterwards(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                async with aclosing(served.engine.generate(request())) as stream:  # type: ignore[type-var]
                    await anext(stream)
                    with pytest.raises(RequestRejected, match="already in use"):
                        await collect(served.engine, request())
                assert tokens(await collect(served.engine, request())) == expected(LENGTH)

        asyncio.run(scenario())

    @pytest.mark.parametrize(
        ("status", "kind"),
        [(400, RequestRejected), (503, EngineOverloaded), (500, EngineError)],
    )
    def test_sglangs_refusals_become_ours(
        self, serve: Serve, status: int, kind: type[EngineError]
    ) -> None:
        async def scenario() -> None:
            async with serve("--refuse", str(status)) as served:
                with pytest.raises(kind, match=str(status)):
                    await collect(served.engine, request())

        asyncio.run(scenario())


class TestFollowingSchedules:
    def test_a_new_schedule_changes_the_plan_of_a_running_stream(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                stream = served.engine.generate(request(max_tokens=400, ignore_eos=True))
                deltas = [await anext(stream), await anext(stream)]
                schedule = Schedule.pinned(SPECULATION, version=1)
                served.engine.set_schedule(schedule)
                deltas += [delta async for delta in stream]
                assert {d.plan for d in deltas} == {None, AR, SPECULATION}
                assert tokens(deltas) == expected(400)
                report = await until(lambda: _report_under(served, schedule))
                assert report.plan == SPECULATION

        asyncio.run(scenario())

    def test_the_newest_of_many_schedules_wins_whatever_their_order(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                newest = Schedule.pinned(SPECULATION, epoch=2, version=3)
                for schedule in (
                    Schedule.pinned(AR, epoch=1, version=9),
                    newest,
                    Schedule.pinned(AR, epoch=2, version=2),
                ):
                    served.engine.set_schedule(schedule)
                await until(lambda: _report_under(served, newest))
                assert served.events("schedule")[-1]["version"] == 3

        asyncio.run(scenario())


def _report_under(served: Served, schedule: Schedule) -> EngineReport | None:
    report = served.engine.report()
    return report if report.schedule == schedule else None


class TestCrashing:
    def test_running_streams_end_with_an_error_and_the_next_are_served(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                stream = served.engine.generate(request(max_tokens=400, ignore_eos=True))
                await anext(stream)
                await crash(served)
                with pytest.raises(EngineStopped):
                    [delta async for delta in stream]
                served.engine.check_health()  # a restart is no failure
                assert tokens(await collect(served.engine, request("b"))) == expected(LENGTH)

        asyncio.run(scenario())

    def test_counters_grow_and_the_schedule_holds_across_a_restart(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                engine = served.engine
                schedule = Schedule.pinned(SPECULATION, epoch=1, version=1)
                engine.set_schedule(schedule)
                await until(lambda: _report_under(served, schedule))
                await collect(engine, request("a"))
                await until(lambda: _committed(engine) == LENGTH - 1)
                before = engine.report()
                await crash(served)
                deltas = await collect(engine, request("b"))
                assert {d.plan for d in deltas[1:]} == {SPECULATION}
                await until(lambda: _committed(engine) == 2 * (LENGTH - 1))
                after = engine.report()
                assert after.steps == 2 * before.steps
                assert after.generated_tokens == 2 * before.generated_tokens
                assert after.schedule == schedule

        asyncio.run(scenario())

    def test_a_server_that_keeps_crashing_is_given_up(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                engine = served.engine
                for _ in range(PATIENCE.restarts):
                    await crash(served)
                    await collect(engine, request())
                os.kill(served.server, signal.SIGKILL)
                await until(lambda: _failure(engine))
                assert "was ended by SIGKILL; it crashed 3 times" in _failure(engine)
                with pytest.raises(EngineStopped, match="crashed 3 times"):
                    await collect(engine, request())

        asyncio.run(scenario())

    def test_a_server_that_hangs_is_unhealthy(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                pid = served.server
                os.kill(pid, signal.SIGSTOP)
                await until(lambda: "report is" in _failure(served.engine))
                with pytest.raises(EngineStopped, match="the limit is 1 s"):
                    served.engine.report()
                os.kill(pid, signal.SIGCONT)
                await until(lambda: not _failure(served.engine))

        asyncio.run(scenario())


def _committed(engine: SGLangEngine) -> int:
    """Under speculation; what prefill yields is not among it."""
    return engine.report().plans.get(SPECULATION, PlanCounters()).committed


async def crash(served: Served) -> None:
    """Kills the server; returns when the next one has been started."""
    before = served.engine.server_pid
    os.kill(served.server, signal.SIGKILL)
    await until(lambda: served.engine.server_pid != before)


def _failure(engine: SGLangEngine) -> str:
    try:
        engine.check_health()
    except EngineStopped as error:
        return str(error)
    return ""


class TestStopping:
    def test_streams_end_and_the_server_drains_by_itself(self, serve: Serve) -> None:
        async def scenario() -> None:
            async with serve() as served:
                stream = served.engine.generate(request(max_tokens=400, ignore_eos=True))
                await anext(stream)
                await served.engine.stop()
                with pytest.raises(EngineStopped):
                    [delta async for delta in stream]
                assert served.events("drained")
                for refused in (served.engine.check_health, served.engine.report):
                    with pytest.raises(EngineStopped, match="stopped"):
                        refused()

        asyncio.run(scenario())

    def test_a_server_that_does_not_drain_is_killed(self, serve: Serve) -> None:
        async def scenario() -> None:
            patience = replace(PATIENCE, drain_s=0.2)
            async with serve("--ignore-sigterm", patience=patience) as served:
                pid = served.server
                await served.engine.stop()
                assert served.events("sigterm")
                assert not served.events("drained")
                await until(lambda: not Path(f"/proc/{pid}").exists())

        asyncio.run(scenario())

    def test_the_server_dies_with_the_replica(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            replica = await asyncio.create_subprocess_exec(
                *(sys.executable, __file__, str(tmp_path / "e")),
                stdout=asyncio.subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            assert replica.stdout is not None
            guard, server = map(int, (await replica.stdout.readline()).split())
            replica.kill()
            await replica.wait()
            for pid in (guard, server):
                await until(lambda pid=pid: not Path(f"/proc/{pid}").exists())

        asyncio.run(scenario())


async def _replica(events: Path) -> None:
    """A process that runs an engine and says which server it has, for the test above to kill."""
    engine = SGLangEngine(fake_command(events), MODEL, LIMITS, patience=PATIENCE)
    await engine.start()
    print(engine.server_pid, Served(engine, events).server, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_replica(Path(sys.argv[1])))

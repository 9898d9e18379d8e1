"""How the adapter starts, watches, restarts and ends its server, which is a fake here.

Run: pytest tests/replicas/sglang_engine/test_server_life.py
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from policies.vocabulary import Schedule
from replicas.engine import (
    EngineStopped,
    PlanCounters,
)
from replicas.sglang_engine.engine import SGLangEngine
from replicas.sglang_engine.server import Command, ServerFailed
from tests.replicas.sglang_engine.fake_sglang import LENGTH
from tests.replicas.sglang_engine.helpers import (
    LIMITS,
    MODEL,
    PATIENCE,
    ROOT,
    SPECULATION,
    Serve,
    Served,
    collect,
    expected,
    fake_command,
    report_under,
    request,
    tokens,
    until,
)


async def start_and_stop(engine: SGLangEngine) -> None:
    try:
        await engine.start()
    finally:
        await engine.stop()


class TestStarting:
    def test_a_server_that_ends_shows_the_end_of_its_log(self, tmp_path: Path) -> None:
        engine = SGLangEngine(
            fake_command(tmp_path / "e", "--fail-start", "no such attention backend"),
            MODEL,
            LIMITS,
            patience=PATIENCE,
        )
        with pytest.raises(ServerFailed, match=r"(?s)before it was ready.*no such attention"):
            asyncio.run(start_and_stop(engine))

    def test_a_server_without_the_plugin_is_refused(self, tmp_path: Path) -> None:
        command = fake_command(tmp_path / "e", "--no-plugin")
        patience = replace(PATIENCE, plugin_s=1)
        engine = SGLangEngine(command, MODEL, LIMITS, patience=patience)
        with pytest.raises(ServerFailed, match="plugin inside it has not reported within 1 s"):
            asyncio.run(start_and_stop(engine))
        with pytest.raises(EngineStopped):
            engine.check_health()

    def test_another_version_of_sglang_is_refused_by_name(self, tmp_path: Path) -> None:
        command = fake_command(tmp_path / "e", "--sglang-version", "0.9.9")
        engine = SGLangEngine(command, MODEL, LIMITS, patience=PATIENCE)
        with pytest.raises(ServerFailed, match=r"SGLang 0\.9\.9 runs.*install sglang=="):
            asyncio.run(start_and_stop(engine))

    def test_a_python_that_is_not_there_is_named(self) -> None:
        engine = SGLangEngine(Command("/no/python", ()), MODEL, LIMITS, patience=PATIENCE)
        with pytest.raises(ServerFailed, match=r"'/no/python'.*set sglang_python"):
            asyncio.run(start_and_stop(engine))

    def test_a_server_that_does_not_get_ready_in_time_is_killed(self, tmp_path: Path) -> None:
        async def scenario() -> None:
            command = fake_command(tmp_path / "e")
            patience = replace(PATIENCE, start_s=0)
            engine = SGLangEngine(command, MODEL, LIMITS, patience=patience)
            with pytest.raises(ServerFailed, match="was not ready within 0 s"):
                await start_and_stop(engine)
            with pytest.raises(ProcessLookupError):
                os.kill(engine.server_pid, 0)

        asyncio.run(scenario())


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
                await until(lambda: report_under(served, schedule))
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
            async with serve(patience=replace(PATIENCE, stale_s=1)) as served:
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
                env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
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

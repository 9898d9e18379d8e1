"""Requests and schedules through the adapter, over a fake SGLang server: a real process, real HTTP,
no model.

Run: pytest tests/replicas/sglang_engine/test_requests.py
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from policies.vocabulary import AR, Mode, Plan, Schedule
from replicas.engine import (
    EngineError,
    EngineOverloaded,
    FinishReason,
    Request,
    RequestRejected,
    SamplingParams,
)
from tests.replicas.sglang_engine.fake_sglang import LENGTH
from tests.replicas.sglang_engine.helpers import (
    LIMITS,
    PROMPT,
    SPECULATION,
    Serve,
    collect,
    expected,
    report_under,
    request,
    text,
    tokens,
    until,
)


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
                report = await until(lambda: report_under(served, schedule))
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
                await until(lambda: report_under(served, newest))
                assert served.events("schedule")[-1]["version"] == 3

        asyncio.run(scenario())

"""A stand-in for `sglang.launch_server` with the plugin in it: real process, real HTTP, no model.

    python -m tests.replicas.sglang_engine.fake_sglang --port 30000 --events /tmp/events.jsonl

It speaks the subset of SGLang's HTTP that the adapter uses (`/ready`, `/generate`,
`/abort_request`), drains on SIGTERM as SGLang does, and follows and fills the control directory as
the plugin does. What decodes is an `InMemoryEngine` over a script: `tokens_after` gives tokens that
depend on the prompt alone and end with the end-of-sequence token after a while, so that every plan
says the same.

`--events` gets one JSON object a line: what was asked, aborted and signalled, for tests to read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from replicas.engine import Delta, EngineReport, Request, SamplingParams
from replicas.in_memory_engine import InMemoryEngine
from replicas.sglang_engine.protocol import (
    CONTROL_DIR_VARIABLE,
    PLAN_KEY,
    SGLANG_VERSION,
    PluginReport,
    RequestOptions,
    read_schedule,
    write_report,
)

EOS = 2
LETTER_A = 38
LENGTH = 60
"""Tokens of a sequence, its last included."""
STEP_S = 0.002
LOOK_EVERY_S = 0.005


def tokens_after(request: Request) -> Iterator[int]:
    """Capital letters in the demo model's vocabulary, EOS at every `LENGTH`th place."""
    value = sum(request.prompt_token_ids)
    position = 0
    while True:
        position += 1
        value = (value * 31 + position) % 7919
        yield EOS if position % LENGTH == 0 else LETTER_A + value % 26


class FakeSGLang:
    """One server. `options` are the command line's."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._engine = InMemoryEngine(
            lambda ids: "",
            script=tokens_after,
            pace=lambda: asyncio.sleep(options.step_s),
            eos_token_id=EOS,
            max_model_len=1 << 20,
            max_running=options.max_running_requests,
            max_waiting=1 << 20,
        )
        self._streams: dict[str, asyncio.Task[Any]] = {}
        self._aborted: set[str] = set()
        self._draining = asyncio.Event()

    async def serve(self) -> None:
        app = web.Application()
        app.router.add_get("/ready", self._ready)
        app.router.add_post("/generate", self._generate)
        app.router.add_post("/abort_request", self._abort)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self._options.port).start()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._draining.set)
        async with self._plugin():
            await self._draining.wait()
            self._note("sigterm", open=len(self._streams))
            if self._options.ignore_sigterm:
                await asyncio.Event().wait()
            while self._streams:
                await asyncio.sleep(LOOK_EVERY_S)
        self._note("drained")

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=503 if self._draining.is_set() else 200)

    async def _abort(self, request: web.Request) -> web.Response:
        rid = (await request.json())["rid"]
        self._note("abort", rid=rid)
        for name in [name for name in self._streams if name.startswith(rid)]:  # as SGLang does
            self._aborted.add(name)
            self._streams[name].cancel()
        return web.Response()

    async def _generate(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        self._note("generate", body=body)
        if self._options.refuse:
            return web.json_response(
                {"error": {"message": "refused by request"}}, status=self._options.refuse
            )
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(http)
        rid = body["rid"]
        task = self._streams[rid] = asyncio.ensure_future(self._stream(response, body))
        try:
            await task
        except asyncio.CancelledError:
            task.cancel()
            if rid not in self._aborted:  # the client went away
                self._note("disconnect", rid=rid)
                raise
            with suppress(ConnectionError):
                await _send(response, _event([], {"type": "abort", "message": "aborted"}))
        finally:
            del self._streams[rid]
        return response

    async def _stream(self, response: web.StreamResponse, body: dict[str, Any]) -> None:
        async with aclosing(self._engine.generate(_request(body))) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                await _send(response, _delta_event(delta))
        await response.write(b"data: [DONE]\n\n")

    @asynccontextmanager
    async def _plugin(self) -> AsyncIterator[None]:
        if self._options.no_plugin:
            yield
            return
        task = asyncio.create_task(self._follow(Path(os.environ[CONTROL_DIR_VARIABLE])))
        try:
            yield
        finally:
            task.cancel()

    async def _follow(self, directory: Path) -> None:
        received, order = 0.0, None
        while True:
            schedule = read_schedule(directory)
            if schedule is not None and schedule.order != order:
                self._engine.set_schedule(schedule)
                received, order = time.monotonic(), schedule.order
                self._note("schedule", epoch=schedule.epoch, version=schedule.version)
            report = self._engine.report()
            write_report(directory, self._report(report, time.monotonic() - received))
            await asyncio.sleep(LOOK_EVERY_S)

    def _report(self, report: EngineReport, schedule_age_s: float) -> PluginReport:
        return PluginReport(
            plugin_version="0",
            sglang_version=self._options.sglang_version,
            pid=os.getpid(),
            written_at=time.time(),
            max_block_length=32,
            plan=report.plan,
            epoch=report.schedule.epoch,
            version=report.schedule.version,
            schedule_age_s=schedule_age_s,
            decoding=report.decoding,
            waiting=report.waiting,
            context_tokens=report.context_tokens,
            kv_tokens_used=report.kv_tokens_used,
            kv_tokens_total=report.kv_tokens_total,
            steps=report.steps,
            prompt_tokens=report.prompt_tokens,
            generated_tokens=report.generated_tokens,
            plans=report.plans,
        )

    def _note(self, event: str, **details: Any) -> None:
        with Path(self._options.events).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "pid": os.getpid(), **details}) + "\n")


def _request(body: dict[str, Any]) -> Request:
    given = body["sampling_params"]
    options = RequestOptions.from_custom_params(given["custom_params"])
    sampling = SamplingParams(
        max_tokens=given["max_new_tokens"],
        temperature=given["temperature"],
        stop_token_ids=tuple(given["stop_token_ids"]),
        ignore_eos=given["ignore_eos"],
    )
    return Request(
        body["rid"], tuple(body["input_ids"]), sampling, options.quality, plan=options.plan
    )


def _delta_event(delta: Delta) -> dict[str, Any]:
    plan = None if delta.plan is None else str(delta.plan)
    finish = None if delta.finish_reason is None else {"type": delta.finish_reason.value}
    return _event(list(delta.token_ids), finish, [plan] * len(delta.token_ids))


def _event(
    token_ids: list[int], finish: dict[str, Any] | None, plans: list[str | None] | None = None
) -> dict[str, Any]:
    return {"output_ids": token_ids, "meta_info": {"finish_reason": finish, PLAN_KEY: plans or []}}


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--events", required=True, help="file that gets one JSON object a line")
    parser.add_argument("--max-running-requests", type=int, default=4)
    parser.add_argument("--step-s", type=float, default=STEP_S, help="time of one step")
    parser.add_argument("--fail-start", metavar="MESSAGE", help="write this and exit at once")
    parser.add_argument("--no-plugin", action="store_true", help="serve, but never report")
    parser.add_argument("--ignore-sigterm", action="store_true", help="never finish to drain")
    parser.add_argument("--refuse", type=int, metavar="STATUS", help="answer requests with this")
    parser.add_argument("--sglang-version", default=SGLANG_VERSION)
    options = parser.parse_args(arguments)
    if options.fail_start:
        sys.exit(options.fail_start)
    asyncio.run(FakeSGLang(options).serve())


if __name__ == "__main__":
    main(sys.argv[1:])

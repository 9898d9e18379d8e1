"""A client that goes frees its sequence at once, whatever it was waiting for."""

from __future__ import annotations

import asyncio
import json

import pytest

pytestmark = pytest.mark.anyio


class Recorder:
    def __init__(self):
        self.calls = []

    def queued(self, request):
        self.calls.append("queued")

    def first_token(self, request, seconds):
        self.calls.append(("first_token", seconds))

    def commit(self, request, delta, seconds):
        self.calls.append(("commit", len(delta.token_ids), seconds))

    def finished(self, request, outcome, seconds, tokens):
        self.calls.append(("finished", outcome, seconds, tokens))


class Gate:
    """Lets a number of commits pass, then holds the engine."""

    def __init__(self, passes):
        self.passes = passes

    async def wait(self):
        self.passes -= 1
        if self.passes < 0:
            await asyncio.Event().wait()


class Visitor:
    """A client at the ASGI level: sends one body, reads, and leaves when told."""

    def __init__(self, app, body):
        self.left = asyncio.Event()
        self.events = []
        self._body = json.dumps(body).encode()
        self._sent = False
        scope = {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "method": "POST",
            "http_version": "1.1", "scheme": "http", "path": "/v1/completions",
            "raw_path": b"/v1/completions", "query_string": b"", "root_path": "",
            "headers": [(b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1), "server": ("trimode", 80), "state": {},
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self):
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message):
        self.events.append(message)


async def until(condition):
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("the condition never came true")


@pytest.mark.parametrize("passes", [0, 3], ids=["before the first token", "after three"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("prompt", ["ab", ["ab", "cd"]], ids=["one prompt", "two prompts"])
async def test_a_client_that_goes_frees_its_sequences(
    make_app, make_engine, prompt, stream, passes
):
    observer = Recorder()
    engine = make_engine(pace=Gate(passes).wait)
    app = make_app(engine, observer=observer)
    visitor = Visitor(app, {"prompt": prompt, "stream": stream, "max_tokens": 50})
    await until(lambda: engine.report().decoding and engine.report().steps == passes)
    visitor.left.set()
    await asyncio.wait_for(visitor.task, timeout=5)
    sequences = 2 if isinstance(prompt, list) else 1
    assert engine.report().decoding == 0
    assert engine.report().finished == {"cancelled": sequences}
    ends = [call[1] for call in observer.calls if call[0] == "finished"]
    assert ends == ["cancelled"] * sequences


async def test_a_task_cancelled_by_its_server_frees_its_sequence(make_app, make_engine):
    engine = make_engine(pace=Gate(3).wait)
    visitor = Visitor(make_app(engine), {"prompt": "ab", "stream": True, "max_tokens": 50})
    await until(lambda: engine.report().steps == 3)
    visitor.task.cancel()
    await asyncio.wait([visitor.task], timeout=5)
    assert engine.report().decoding == 0


async def test_a_client_that_goes_while_queued_leaves_the_queue(make_app, make_engine):
    engine = make_engine(pace=Gate(0).wait, max_running=1)
    app = make_app(engine)
    first = Visitor(app, {"prompt": "ab"})
    await until(lambda: engine.report().decoding)
    second = Visitor(app, {"prompt": "ab"})
    await until(lambda: engine.report().waiting)
    second.left.set()
    await asyncio.wait_for(second.task, timeout=5)
    assert (engine.report().decoding, engine.report().waiting) == (1, 0)
    first.left.set()
    await asyncio.wait_for(first.task, timeout=5)


async def test_the_observer_hears_of_each_commit_with_times_of_the_given_clock(
    make_app, make_engine, client_of
):
    now = 0.0

    async def tick():
        nonlocal now
        now += 0.5

    observer = Recorder()
    app = make_app(make_engine(pace=tick), observer=observer, clock=lambda: now)
    async with client_of(app) as client:
        body = {
            "prompt": "ab",
            "max_tokens": 9,
            "trimode": {"mode": "diffusion", "block_length": 4},
        }
        await client.post("/v1/completions", json=body)
    assert observer.calls == [
        "queued", ("first_token", 0.5), ("commit", 1, 0.5), ("commit", 4, 0.5), ("commit", 4, 0.5),
        ("finished", "length", 1.5, 9),
    ]  # fmt: skip

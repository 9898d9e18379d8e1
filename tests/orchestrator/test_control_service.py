"""The controller without Ray. Run with: pytest tests/orchestrator/test_control_service.py"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping

import pytest

from orchestrator.control_service import ControlService, decision_log
from orchestrator.errors import ApiError
from orchestrator.loop import FORGET_AFTER_S
from policies.decisions import Reading, Signals
from policies.guard import Guard, Rules
from policies.threshold import Threshold
from policies.vocabulary import AR, Plan, Schedule
from replicas.control_link import Answer, Call
from replicas.in_memory_engine import InMemoryEngine

SPEC_8 = Plan.parse("self_speculation/8")


class Source:
    """Signals as the test says."""

    def __init__(self) -> None:
        self.errors: Mapping[str, int] = {}
        self.decoding: float | None = 3.0
        self.asked: list[dict[str, str]] = []

    async def collect(self, replicas: Mapping[str, str], now: float) -> dict[str, Signals]:
        self.asked.append(dict(replicas))
        reading = Reading(self.decoding, 0.0 if self.decoding is not None else None)
        return {name: Signals(name, decoding=reading) for name in replicas}

    async def close(self) -> None: ...


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def service(source: Source, clock: Clock, **options) -> ControlService:
    guard = Guard(Threshold(), Rules(), name="threshold")
    return ControlService(guard, source, interval_s=0.01, clock=clock, **options)


def call(name: str = "r1", answer: Answer | None = None) -> Call:
    report = InMemoryEngine(lambda ids: "").report()
    schedule = answer.schedule if answer is not None and answer.schedule else Schedule.pinned(AR)
    pin = answer.pin if answer is not None else None
    return Call(name, f"http://127.0.0.1:90/{name}", schedule, pin, report)


def run(scenario) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(10):
            await scenario

    asyncio.run(bounded())


def test_a_replica_that_registers_gets_a_schedule_at_once(source, clock) -> None:
    async def scenario() -> None:
        control = service(source, clock)
        answer = await control.poll(call())
        assert answer.schedule is not None
        assert answer.schedule.order == (control.state.epoch, 1)
        (row,) = await control.replicas()
        assert (row["replica"], row["decision"]["reason"]) == ("r1", "initial")
        json.dumps(row)

    run(scenario())


def test_a_pin_ends_the_wait_of_a_poll(source, clock) -> None:
    async def scenario() -> None:
        control = service(source, clock)
        first = await control.poll(call())
        waiting = asyncio.create_task(control.poll(call(answer=first)))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await control.pin("r1", SPEC_8, 60.0)
        answer = await waiting
        assert answer.schedule is not None
        assert answer.schedule.plans == (SPEC_8,)
        assert answer.pin is not None
        (row,) = await control.replicas()
        assert row["pin"] == {
            "plan": "self_speculation/8",
            "expires_at": 1060.0,
            "expires_in_s": 60,
        }
        await control.unpin(None)
        assert len((await control.poll(call(answer=answer))).schedule.plans) > 1

    run(scenario())


def test_a_new_controller_adopts_schedule_and_pin(source, clock) -> None:
    async def scenario() -> None:
        old = service(source, clock)
        await old.poll(call())
        await old.pin("r1", SPEC_8, 60.0)
        answer = await old.poll(call())
        new = service(source, clock)
        again = await new.poll(call(answer=answer))
        assert again.schedule is not None
        assert again.schedule.plans == (SPEC_8,)
        assert again.schedule.order > answer.schedule.order
        assert again.pin == answer.pin

    run(scenario())


def test_rounds_read_the_pages_of_the_replicas_that_call(source, clock) -> None:
    async def scenario() -> None:
        control = service(source, clock)
        await control.poll(call("r1"))
        await control.poll(call("r2"))
        rounds = asyncio.create_task(control.run())
        await _until(
            lambda: source.asked[-1:] == [{n: f"http://127.0.0.1:90/{n}" for n in ("r1", "r2")}]
        )
        clock.now += FORGET_AFTER_S + 1
        await control.poll(call("r2"))
        await _until(lambda: list(source.asked[-1]) == ["r2"])
        rounds.cancel()
        assert [row["replica"] for row in await control.replicas()] == ["r2"]

    run(scenario())


def test_a_replica_that_leaves_is_forgotten(source, clock) -> None:
    async def scenario() -> None:
        control = service(source, clock)
        await control.poll(call())
        await control.leave("r1")
        assert await control.replicas() == []
        with pytest.raises(ApiError, match="r1"):
            await control.pin("r1", AR, 1.0)

    run(scenario())


def test_every_new_decision_is_one_line_of_json(source, clock) -> None:
    lines: list[str] = []

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    async def scenario() -> None:
        control = service(source, clock)
        await control.poll(call())
        rounds = asyncio.create_task(control.run())
        await _until(lambda: len(source.asked) > 5)
        rounds.cancel()
        await control.pin(None, SPEC_8, 60.0)

    handler, level = Lines(), decision_log.level
    decision_log.addHandler(handler)
    decision_log.setLevel(logging.INFO)
    try:
        run(scenario())
    finally:
        decision_log.removeHandler(handler)
        decision_log.setLevel(level)
    rows = [json.loads(line) for line in lines]
    assert [row["reason"] for row in rows] == ["initial", "hold_steady", "pinned"]
    assert [row["issued"][1] for row in rows] == [1, 1, 2]


def test_service_discovery_names_every_page_and_no_replica_label(source, clock) -> None:
    async def scenario() -> None:
        control = service(source, clock, extra_targets=("http://127.0.0.1:91/metrics",))
        await control.poll(call())
        assert await control.targets() == [
            {"targets": ["127.0.0.1:90"], "labels": {"component": "replica"}},
            {"targets": ["127.0.0.1:91"], "labels": {"component": "controller"}},
        ]

    run(scenario())


async def _until(condition) -> None:
    while not condition():
        await asyncio.sleep(0.005)

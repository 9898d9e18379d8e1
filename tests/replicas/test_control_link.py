"""The replica's end of the control path. Run with: pytest tests/replicas/test_control_link.py"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from policies.guard import Pin
from policies.vocabulary import AR, Plan, Schedule
from replicas.control_link import Answer, Call, ControlLink
from replicas.in_memory_engine import InMemoryEngine

SPEC_8 = Plan.parse("self_speculation/8")


class Controller:
    """Answers each call with what the test puts in; an exception is raised."""

    def __init__(self) -> None:
        self.calls: queue.Queue[Call] = queue.Queue()
        self.answers: queue.Queue[Answer | Exception] = queue.Queue()

    def poll(self, call: Call) -> Answer:
        self.calls.put(call)
        answer = self.answers.get(timeout=5)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Engine(InMemoryEngine):
    """Remembers the schedules it was given."""

    def __init__(self) -> None:
        super().__init__(lambda ids: "")
        self.given: queue.Queue[Schedule] = queue.Queue()

    def set_schedule(self, schedule: Schedule) -> None:
        super().set_schedule(schedule)
        self.given.put(schedule)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def controller() -> Controller:
    return Controller()


@pytest.fixture
def link(engine: Engine, controller: Controller):
    link = ControlLink("r1", "http://127.0.0.1:1/metrics", engine, controller.poll)
    link.start()
    yield link
    link.stop()
    controller.answers.put(Answer(None, None))


def issued(version: int, epoch: int = 1, plan: Plan = SPEC_8) -> Answer:
    return Answer(Schedule.pinned(plan, epoch=epoch, version=version), None)


def test_the_first_call_registers_and_later_ones_acknowledge(link, engine, controller) -> None:
    first = controller.calls.get(timeout=5)
    assert (first.replica, first.metrics_url) == ("r1", "http://127.0.0.1:1/metrics")
    assert first.schedule == engine.report().schedule
    controller.answers.put(issued(1))
    assert controller.calls.get(timeout=5).schedule.order == (1, 1)
    assert engine.given.get(timeout=5).order == (1, 1)


def test_the_same_schedule_again_refreshes_its_time_to_live(link, engine, controller) -> None:
    for _ in range(2):
        controller.answers.put(issued(1))
        assert engine.given.get(timeout=5).order == (1, 1)


def test_an_older_schedule_is_not_taken(link, engine, controller) -> None:
    controller.answers.put(issued(5, epoch=2))
    controller.answers.put(issued(9, epoch=1, plan=AR))
    controller.answers.put(issued(6, epoch=2))
    assert [engine.given.get(timeout=5).order for _ in range(2)] == [(2, 5), (2, 6)]


def test_a_controller_that_is_gone_costs_nothing_but_news(link, engine, controller) -> None:
    controller.answers.put(issued(1))
    for _ in range(3):
        controller.answers.put(ConnectionError("gone"))
    controller.answers.put(issued(2))
    assert [engine.given.get(timeout=5).version for _ in range(2)] == [1, 2]
    assert link.is_alive()


def test_a_pin_is_told_to_the_next_controller(link, controller) -> None:
    pin = Pin(SPEC_8, 1e12)
    controller.calls.get(timeout=5)
    controller.answers.put(replace(issued(1), pin=pin))
    assert controller.calls.get(timeout=5).pin == pin


def test_nothing_is_applied_after_stop(link, engine, controller) -> None:
    controller.calls.get(timeout=5)
    link.stop()
    controller.answers.put(issued(1))
    _joined(lambda: not link.is_alive())
    assert engine.given.empty()


def _joined(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("the thread did not end")

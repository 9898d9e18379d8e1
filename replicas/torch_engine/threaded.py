"""The Engine protocol over `TorchEngine`: one thread steps, asyncio callers submit and listen.

The core is touched by its thread alone. Callers put commands into an inbox that is emptied before
every step, so a cancel or a schedule takes effect at the next step boundary. A step's deltas reach
each event loop in one wake-up.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from policies.step_time import Profile
from policies.vocabulary import Schedule
from replicas.engine import Delta, EngineError, EngineReport, EngineStopped, Request
from replicas.governor import Change
from replicas.switch_times import SwitchTimes
from replicas.torch_engine.engine import TorchEngine

_log = logging.getLogger(__name__)

_Event = Delta | EngineError
_IDLE_WAIT_S = 0.1


class _Listener:
    """Where one request's deltas go: a queue that belongs to the caller's event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[_Event] = asyncio.Queue()


class ThreadedEngine:
    """Implements `replicas.engine.Engine`. `build` makes the core; it runs on the engine's thread,
    so that weights load while the caller's loop stays free."""

    def __init__(self, build: Callable[[], TorchEngine], describe: Mapping[str, Any]) -> None:
        self._build = build
        self._describe = dict(describe)
        self._core: TorchEngine | None = None
        self._switch_times = SwitchTimes()
        self._inbox: deque[Callable[[TorchEngine], None]] = deque()
        self._wake = threading.Event()
        self._closing = threading.Lock()
        self._stopping = False
        self._has_ended = False
        self._failure: BaseException | None = None
        self._listeners: dict[str, _Listener] = {}
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(
            target=self._run, args=(loop, ready), name="trimode-engine", daemon=True
        )
        self._thread.start()
        await ready

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        self.check_health()
        listener = _Listener()
        self._post(lambda core: self._submit(core, request, listener), is_vital=True)
        try:
            while True:
                event = await listener.queue.get()
                if isinstance(event, EngineError):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self._post(lambda core: self._cancel(core, request.request_id, listener))

    def set_schedule(self, schedule: Schedule) -> None:
        self._post(lambda core: core.set_schedule(schedule))

    def report(self) -> EngineReport:
        if self._core is None:
            raise EngineStopped("the engine has not started")
        return self._core.report()

    def plan_changes(self) -> Mapping[Change, int]:
        """Changes of plan so far."""
        return {} if self._core is None else self._core.governor.switched

    def plan_change_times(self) -> Mapping[Change, float]:
        """When each change last happened, in Unix seconds."""
        return {} if self._core is None else self._switch_times.of(self._core.governor.switched_at)

    def profile(self) -> Profile | None:
        """Step times of this engine, where they are known."""
        return None if self._core is None else self._core.profile

    def check_health(self) -> None:
        if self._failure is not None:
            raise EngineStopped(f"the engine failed: {self._failure!r}; restart the replica")
        if self._thread is None or self._core is None or self._stopping:
            raise EngineStopped("the engine is not running")
        if not self._thread.is_alive():
            raise EngineStopped("the engine's thread has ended; restart the replica")

    async def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._core = None

    def describe(self) -> Mapping[str, Any]:
        return self._describe

    # -- the engine's thread --------------------------------------------------------------------

    def _run(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Future[None]) -> None:
        try:
            core = self._core = self._build()
        except BaseException as error:
            self._failure = error
            loop.call_soon_threadsafe(ready.set_exception, error)
            return
        loop.call_soon_threadsafe(ready.set_result, None)
        try:
            while not self._stopping:
                self._step(core)
            self._end_all(core, EngineStopped("the engine was stopped"))
        except BaseException as error:
            _log.exception("the engine failed")
            self._failure = error
            self._end_all(core, EngineStopped(f"the engine failed: {error!r}"))

    def _step(self, core: TorchEngine) -> None:
        self._wake.clear()
        while self._inbox:
            self._inbox.popleft()(core)
        if core.has_work:
            self._deliver(core.step())
        else:
            self._wake.wait(_IDLE_WAIT_S)

    def _submit(self, core: TorchEngine, request: Request, listener: _Listener) -> None:
        try:
            core.submit(request)
        except EngineError as error:
            _wake_loop(listener.loop, [(listener, error)])
        except Exception as error:  # one request must not end the engine for all
            _log.exception("request %s could not be submitted", request.request_id)
            _wake_loop(listener.loop, [(listener, EngineError(repr(error)))])
        else:
            self._listeners[request.request_id] = listener

    def _cancel(self, core: TorchEngine, request_id: str, listener: _Listener) -> None:
        # A listener that was refused, or has ended, must not cancel a later request of its id.
        if self._listeners.get(request_id) is listener:
            del self._listeners[request_id]
            core.cancel(request_id)

    def _deliver(self, deltas: list[Delta]) -> None:
        by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Listener, _Event]]] = defaultdict(list)
        for delta in deltas:
            listener = self._listeners.get(delta.request_id)
            if listener is not None:
                by_loop[listener.loop].append((listener, delta))
            if delta.finish_reason is not None:
                self._listeners.pop(delta.request_id, None)
        for loop, events in by_loop.items():
            _wake_loop(loop, events)

    def _end_all(self, core: TorchEngine, error: EngineError) -> None:
        with self._closing:
            self._has_ended = True
        while self._inbox:  # a request posted last still has to be answered
            self._inbox.popleft()(core)
        for listener in self._listeners.values():
            _wake_loop(listener.loop, [(listener, error)])
        self._listeners.clear()

    def _post(self, command: Callable[[TorchEngine], None], *, is_vital: bool = False) -> None:
        """Hands a command to the engine's thread. Once that has ended nobody would ever answer, so
        then it is dropped, or if it is vital refused by EngineStopped."""
        with self._closing:
            if self._has_ended and is_vital:
                raise EngineStopped("the engine has ended; restart the replica")
            self._inbox.append(command)
        self._wake.set()


def _wake_loop(loop: asyncio.AbstractEventLoop, events: list[tuple[_Listener, _Event]]) -> None:
    def put() -> None:
        for listener, event in events:
            listener.queue.put_nowait(event)

    try:
        loop.call_soon_threadsafe(put)
    except RuntimeError:  # the caller's loop has closed, and its requests with it
        _log.debug("an event loop closed with %d deltas undelivered", len(events))

"""The replica's end of the control path: one long poll after another, on a thread of its own.

One call is registration, sign of life, acknowledgement and push at once. The thread shares nothing
with requests, so a full replica or a busy event loop does not delay a schedule. When the controller
does not answer, the replica keeps the schedule it has and tries again within a second.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from policies.guard import Pin
from policies.step_time import Profile
from policies.vocabulary import Schedule
from replicas.engine import Engine, EngineReport

_log = logging.getLogger(__name__)

FIRST_RETRY_S, LONGEST_RETRY_S = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class Call:
    """What a replica says: who it is, where its metrics are, what it follows and does.

    `pin` is the pin it was last told of: a controller that has just started learns of it here.
    `profile` are the step times of its machine and model, if they are known.
    """

    replica: str
    metrics_url: str
    schedule: Schedule
    pin: Pin | None
    report: EngineReport
    profile: Profile | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What to follow; None changes nothing."""

    schedule: Schedule | None
    pin: Pin | None


class ControlLink:
    """Keeps an engine on the controller's schedule until `stop`.

    Args:
        replica: the name under which the controller knows it.
        metrics_url: where its metrics page is.
        engine: is given every new schedule, and the same one again as a refresh.
        poll: asks the controller; blocks until there is something new, or a few seconds.
        profile: the engine's step times, which every call carries.
    """

    def __init__(
        self,
        replica: str,
        metrics_url: str,
        engine: Engine,
        poll: Callable[[Call], Answer],
        profile: Profile | None = None,
    ) -> None:
        self._profile = profile
        self._replica, self._metrics_url = replica, metrics_url
        self._engine, self._poll = engine, poll
        self._schedule = engine.report().schedule
        self._pin: Pin | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trimode-control", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is applied any more; a call that waits is left to end by itself."""
        self._stopping.set()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        retry_s = FIRST_RETRY_S
        while not self._stopping.is_set():
            try:
                self._exchange()
            except Exception as error:  # whatever a restarting cluster raises, try again
                if retry_s == FIRST_RETRY_S:
                    _log.warning("no answer from the controller, keeping the schedule: %r", error)
                self._stopping.wait(retry_s)
                retry_s = min(retry_s * 2, LONGEST_RETRY_S)
            else:
                if retry_s > FIRST_RETRY_S:
                    _log.info("the controller answers again")
                retry_s = FIRST_RETRY_S

    def _exchange(self) -> None:
        report = self._engine.report()
        call = Call(
            self._replica, self._metrics_url, self._schedule, self._pin, report, self._profile
        )
        answer = self._poll(call)
        if self._stopping.is_set() or answer.schedule is None:
            return
        self._pin = answer.pin
        if answer.schedule.order >= self._schedule.order:
            self._schedule = answer.schedule
            self._engine.set_schedule(answer.schedule)

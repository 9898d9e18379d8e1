"""What the worker knows between steps: governor, counters, and the report made of them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version

from policies.observation import StepObservation
from policies.vocabulary import SAFE_PLAN, Plan, Schedule
from replicas.governor import Governor
from replicas.sglang_engine.plugin.control import ScheduleFile
from replicas.sglang_engine.plugin.view import NothingYet, SchedulerView
from replicas.sglang_engine.protocol import PluginReport, Switches
from replicas.torch_engine.counters import Tallies
from replicas.torch_engine.sequence import Sequence, drafted

# Read from the disk at every call, and reports are frequent.
_version = cache(version)


@dataclass(slots=True)
class Totals:
    """Counts since the process started."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0


@dataclass(slots=True)
class DecoderState:
    """Owned by the scheduler's thread; `report` alone may be called from another."""

    max_block_length: int
    schedules: ScheduleFile | None = None
    clock: Callable[[], float] = time.monotonic
    governor: Governor = field(init=False)
    tallies: Tallies = field(init=False, default_factory=Tallies)
    totals: Totals = field(init=False, default_factory=Totals)
    scheduler: SchedulerView = field(default_factory=NothingYet)
    _decoding: Collection[Sequence] = ()
    _gone: list[Sequence] = field(default_factory=list)
    """Since the last step was observed."""
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.governor = Governor(Schedule.pinned(SAFE_PLAN), received_at=self.clock())
        self._follow()

    def pick(self, sequences: Collection[Sequence]) -> Plan:
        """The plan of the next step of these, no longer than the server was started for.

        Who was there and is not has ended, however it was: an end that SGLang makes, a stop string
        that the replica has seen, a client that has left.
        """
        here = {id(s) for s in sequences}
        self._gone += [s for s in self._decoding if id(s) not in here]
        self._decoding = sequences
        with self._lock:
            self._follow()
            waiting = self.scheduler.waiting
            plan = self.governor.pick(
                len(sequences),
                self.clock(),
                sum(s.cached for s in sequences),
                waiting,
                drafted=lambda: drafted(sequences),
            )
        return self._fitting(plan)

    def observe(self, step: StepObservation, share: float = 1.0) -> None:
        """Counts one plan's part of a step, and `share` of the step's seconds for it. Who has ended
        since the step before is told with it."""
        tally = self.tallies[step.plan]
        tally.add_yields(step.yields, step.seconds * share, is_pure=step.is_alone)
        self.totals.generated_tokens += step.tokens
        gone, self._gone = self._gone, []
        with self._lock:
            step = step._replace(answers=len(gone), ended=drafted(gone))
            self.governor.observe(step, self.clock())

    def _follow(self) -> None:
        """Takes a schedule that has come in."""
        if self.schedules is not None and (schedule := self.schedules.news()) is not None:
            self.governor.receive(schedule, self.clock())

    def _fitting(self, plan: Plan) -> Plan:
        if plan.block_length <= self.max_block_length:
            return plan
        return Plan(plan.mode, self.max_block_length, plan.threshold)

    def report(self) -> PluginReport:
        with self._lock:
            self._follow()  # an idle server takes no step, and acknowledges here
        governor, load, totals = self.governor, self.scheduler, self.totals
        schedule = governor.schedule
        return PluginReport(
            plugin_version=_version("trimode"),
            sglang_version=_version("sglang"),
            pid=os.getpid(),
            written_at=time.time(),
            max_block_length=self.max_block_length,
            plan=self._fitting(governor.plan),
            epoch=schedule.epoch,
            version=schedule.version,
            schedule_age_s=self.clock() - governor.received_at,
            refusal=self.schedules.refusal if self.schedules is not None else None,
            decoding=load.decoding,
            prefilling=load.prefilling,
            waiting=load.waiting,
            context_tokens=load.context_tokens,
            kv_tokens_used=load.kv_tokens_used,
            kv_tokens_total=load.kv_tokens_total,
            steps=totals.steps,
            prompt_tokens=totals.prompt_tokens,
            generated_tokens=totals.generated_tokens,
            preemptions=totals.preemptions,
            switches=tuple(
                Switches(before, after, reason.value, count)
                for (before, after, reason), count in governor.switched.items()
            ),
            plans=self.tallies.freeze(),
            probes=dict(governor.probes),
            predicted=dict(governor.predicted),
            distrusts=governor.distrusts,
        )

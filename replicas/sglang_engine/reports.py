"""The control directory from the replica's side: schedules go in, the plugin's reports come out.

Reading a report takes microseconds and no step of SGLang, so it is read when it is asked for.
Totals outlive the server: what one run had counted when it ended is added to what the next reports.
Callable from any thread.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from itertools import zip_longest
from pathlib import Path

from policies.vocabulary import Plan, Schedule
from replicas.engine import EngineReport, EngineStopped, PlanCounters
from replicas.governor import Change, PickReason
from replicas.sglang_engine.protocol import (
    REPORT_FILE,
    PluginReport,
    ProtocolError,
    read_report,
    write_schedule,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Requests:
    """What the replica itself knows of its requests; it has seen every token that was handed out.

    `open` are submitted and not ended, wherever they are.
    """

    open: int
    prompt_tokens: int
    generated_tokens: int
    finished: Mapping[str, int]


@dataclass(slots=True)
class Totals:
    """What the runs of the server that have ended had counted."""

    steps: int = 0
    preemptions: int = 0
    switches: Counter[Change] = field(default_factory=Counter)
    plans: dict[Plan, PlanCounters] = field(default_factory=dict)
    probes: Counter[Plan] = field(default_factory=Counter)
    distrusts: int = 0

    def plus(self, report: PluginReport) -> Totals:
        switches = self.switches.copy()
        for one in report.switches:
            switches[one.before, one.after, PickReason(one.reason)] += one.count
        plans = dict(self.plans)
        for plan, counters in report.plans.items():
            plans[plan] = add(plans.get(plan, PlanCounters()), counters)
        return Totals(
            steps=self.steps + report.steps,
            preemptions=self.preemptions + report.preemptions,
            switches=switches,
            plans=plans,
            probes=self.probes + Counter(report.probes),
            distrusts=self.distrusts + report.distrusts,
        )


class Reports:
    """See the module. `schedule` is written at once, so that a starting server finds it. A report
    older than `stale_s` is none: the plugin, or its process, does not run."""

    def __init__(self, directory: Path, schedule: Schedule, stale_s: float) -> None:
        self.directory, self._stale_s = directory, stale_s
        self._lock = threading.Lock()
        self._sent = self._in_force = schedule
        self._ended = Totals()
        self._changed_at: dict[Change, float] = {}
        self._read: tuple[int, PluginReport] | None = None
        write_schedule(directory, schedule)

    def send(self, schedule: Schedule) -> None:
        """The plugin takes it before its next step; an older one than the last is ignored."""
        with self._lock:
            if schedule.order >= self._sent.order:
                self._sent = schedule
                write_schedule(self.directory, schedule)

    def latest(self) -> PluginReport:
        """The plugin's last report, fresh.

        Raises:
            EngineStopped: there is none, it is old, or it cannot be understood.
        """
        with self._lock:
            report = self._load()
        if report is None:
            raise EngineStopped("the SGLang server has not reported yet; is the plugin loaded?")
        if report.age_s > self._stale_s:
            raise EngineStopped(
                f"the plugin's last report is {report.age_s:.1f} s old, the limit is "
                f"{self._stale_s:g} s: SGLang's scheduler hangs or has ended; restart the replica"
            )
        return report

    def end_of_run(self) -> None:
        """The server has ended: its totals are kept, and its report is no longer anyone's."""
        with self._lock:
            try:
                report = self._load()
            except EngineStopped:
                report = self._read[1] if self._read else None
            if report is not None:
                self._ended = self._ended.plus(report)
            (self.directory / REPORT_FILE).unlink(missing_ok=True)
            self._read = None

    def changes(self) -> Mapping[Change, int]:
        """Changes of plan over all runs."""
        return dict(self._totals().switches)

    def change_times(self) -> Mapping[Change, float]:
        """When each was last seen to have happened, in Unix seconds: as exact as reports are
        read often."""
        with self._lock:
            self._load()
            return dict(self._changed_at)

    def engine_report(self, requests: Requests) -> EngineReport:
        """The plugin's report as every engine reports.

        Raises:
            EngineStopped: as `latest`.
        """
        report, totals = self.latest(), self._totals()
        running = report.decoding + report.prefilling
        return EngineReport(
            decoding=report.decoding,
            prefilling=report.prefilling,
            # Those on their way to SGLang's queue wait too.
            waiting=max(report.waiting, requests.open - running),
            kv_tokens_used=report.kv_tokens_used,
            kv_tokens_total=report.kv_tokens_total,
            context_tokens=report.context_tokens,
            plan=report.plan,
            schedule=self._schedule_of(report),
            schedule_age_s=report.schedule_age_s,
            switches=totals.switches.total(),
            preemptions=totals.preemptions,
            steps=totals.steps,
            prompt_tokens=requests.prompt_tokens,
            generated_tokens=requests.generated_tokens,
            finished=requests.finished,
            plans=totals.plans,
            probes=dict(totals.probes),
            predicted=report.predicted,
            distrusts=totals.distrusts,
        )

    def _totals(self) -> Totals:
        with self._lock:
            report = self._load()
            return self._ended if report is None else self._ended.plus(report)

    def _schedule_of(self, report: PluginReport) -> Schedule:
        """The report names the schedule in force; it is the last that was sent, or the one before
        as long as the plugin has not looked, or has refused the last."""
        with self._lock:
            if (report.epoch, report.version) == self._sent.order:
                self._in_force = self._sent
            return self._in_force

    def _load(self) -> PluginReport | None:
        """Parsed once for each time the file is replaced."""
        try:
            written = (self.directory / REPORT_FILE).stat().st_mtime_ns
            if self._read is None or self._read[0] != written:
                report = read_report(self.directory)
                self._note(self._read and self._read[1], report)
                self._read = None if report is None else (written, report)
        except FileNotFoundError:
            self._read = None
        except ProtocolError as error:
            raise EngineStopped(f"the plugin's report cannot be understood: {error}") from error
        return None if self._read is None else self._read[1]

    def _note(self, before: PluginReport | None, after: PluginReport | None) -> None:
        """What is new in a report: changes of plan, and a schedule that was not taken."""
        if after is None:
            return
        known = Totals() if before is None else Totals().plus(before)
        for change in Totals().plus(after).switches - known.switches:
            self._changed_at[change] = after.written_at
        if after.refusal is not None and (before is None or before.refusal != after.refusal):
            _log.error("the plugin did not take the last schedule: %s", after.refusal)


def add(left: PlanCounters, right: PlanCounters) -> PlanCounters:
    sums = {
        each.name: getattr(left, each.name) + getattr(right, each.name)
        for each in fields(PlanCounters)
        if each.name != "accepted"
    }
    accepted = (a + b for a, b in zip_longest(left.accepted, right.accepted, fillvalue=0))
    return PlanCounters(**sums, accepted=tuple(accepted))

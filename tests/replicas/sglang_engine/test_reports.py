"""The control directory from the replica's side, with a report written by hand.

Run: pytest tests/replicas/sglang_engine/test_reports.py
"""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest

from policies.vocabulary import AR, Mode, Plan, Schedule
from replicas.engine import EngineStopped, PlanCounters
from replicas.governor import PickReason
from replicas.sglang_engine.protocol import (
    REPORT_FILE,
    SGLANG_VERSION,
    PluginReport,
    Switches,
    read_schedule,
    write_report,
)
from replicas.sglang_engine.reports import Reports, Requests, add

SPECULATION = Plan(Mode.SELF_SPECULATION, 8)
FIRST, SECOND = Schedule.pinned(AR), Schedule.pinned(SPECULATION, epoch=1)
NONE_OPEN = Requests(0, 0, 0, {})


def report(**fields: object) -> PluginReport:
    whole = PluginReport(
        plugin_version="0",
        sglang_version=SGLANG_VERSION,
        pid=1,
        written_at=time.time(),
        max_block_length=32,
        plan=AR,
        epoch=0,
        version=0,
        schedule_age_s=0.0,
    )
    return replace(whole, **fields)  # type: ignore[arg-type]


@pytest.fixture
def reports(tmp_path: Path) -> Reports:
    return Reports(tmp_path, FIRST, stale_s=60)


def test_a_starting_server_finds_the_first_schedule(reports: Reports) -> None:
    assert read_schedule(reports.directory) == FIRST


def test_an_older_schedule_is_not_written(reports: Reports) -> None:
    reports.send(SECOND)
    reports.send(FIRST)
    assert read_schedule(reports.directory) == SECOND


def test_the_schedule_in_force_is_the_one_that_the_plugin_names(reports: Reports) -> None:
    write_report(reports.directory, report())
    reports.send(SECOND)
    assert reports.engine_report(NONE_OPEN).schedule == FIRST
    write_report(reports.directory, report(epoch=1))
    assert reports.engine_report(NONE_OPEN).schedule == SECOND


def test_an_old_report_is_none(reports: Reports) -> None:
    write_report(reports.directory, report(written_at=time.time() - 61))
    with pytest.raises(EngineStopped, match=r"61\.\d s old, the limit is 60 s"):
        reports.latest()


def test_a_report_that_cannot_be_understood_is_an_error_that_names_the_file(
    reports: Reports,
) -> None:
    (reports.directory / REPORT_FILE).write_text('{"format": 1, "steps": 3}')
    with pytest.raises(EngineStopped, match=r"cannot be understood: .*report\.json"):
        reports.latest()


def test_requests_on_their_way_to_sglang_wait(reports: Reports) -> None:
    write_report(reports.directory, report(decoding=3, prefilling=1, waiting=0))
    assert reports.engine_report(Requests(6, 0, 0, {})).waiting == 2


def test_totals_of_ended_servers_are_added(reports: Reports) -> None:
    one = report(
        steps=10,
        preemptions=1,
        switches=(Switches(AR, SPECULATION, "band", 2),),
        plans={SPECULATION: PlanCounters(steps=10, accepted=(4, 2), committed=30, seconds=0.5)},
        probes={SPECULATION: 3},
        distrusts=1,
    )
    write_report(reports.directory, one)
    reports.end_of_run()
    with pytest.raises(EngineStopped, match="has not reported yet"):
        reports.latest()
    change = (AR, SPECULATION, PickReason.BAND)
    assert reports.changes() == {change: 2}
    write_report(reports.directory, one)
    after = reports.engine_report(NONE_OPEN)
    assert (after.steps, after.preemptions, after.switches, after.distrusts) == (20, 2, 4, 2)
    assert after.plans[SPECULATION] == PlanCounters(
        steps=20, accepted=(8, 4), committed=60, seconds=1.0
    )
    assert after.probes == {SPECULATION: 6}


def test_a_change_of_plan_keeps_the_time_at_which_it_was_first_seen(reports: Reports) -> None:
    change = (AR, SPECULATION, PickReason.BAND)
    first = time.time() - 5
    for written_at, count in ((first - 1, 0), (first, 1), (first + 1, 1), (first + 2, 1)):
        switches = (Switches(AR, SPECULATION, "band", count),) if count else ()
        write_report(reports.directory, report(written_at=written_at, switches=switches))
        reports.latest()
    assert reports.change_times() == {change: first}


def test_a_schedule_that_the_plugin_refused_is_logged_once(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    for step in range(2):
        write_report(reports.directory, report(steps=step, refusal="not a schedule"))
        with caplog.at_level(logging.ERROR):
            reports.latest()
    assert [record.message for record in caplog.records] == [
        "the plugin did not take the last schedule: not a schedule"
    ]


def test_counters_of_unequal_length_add_up() -> None:
    left, right = PlanCounters(accepted=(1, 2)), PlanCounters(accepted=(1, 1, 1))
    assert add(left, right).accepted == (2, 3, 1)

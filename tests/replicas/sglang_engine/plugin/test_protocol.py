"""What crosses, without SGLang. Run with: pytest tests/replicas/sglang_engine/plugin"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from policies.vocabulary import AR, Band, Mode, Plan, Quality, Schedule
from replicas.engine import PlanCounters
from replicas.sglang_engine.protocol import (
    REPORT_FILE,
    SCHEDULE_FILE,
    PluginReport,
    ProtocolError,
    RequestOptions,
    Switches,
    launch_flags,
    read_report,
    read_schedule,
    write_report,
    write_schedule,
)

SPECULATION = Plan(Mode.SELF_SPECULATION, 8)
DIFFUSION = Plan(Mode.DIFFUSION, 16, 0.7)
REPORT = PluginReport(
    plugin_version="1",
    sglang_version="2",
    pid=3,
    written_at=4.0,
    max_block_length=32,
    plan=DIFFUSION,
    epoch=5,
    version=6,
    schedule_age_s=7.5,
    switches=(Switches(AR, SPECULATION, "band", 2),),
    plans={SPECULATION: PlanCounters(steps=1, accepted=(3, 2, 1), seconds=0.5)},
    probes={AR: 1},
    predicted={AR: 100.5},
)


def test_a_schedule_arrives_as_it_was_written(tmp_path: Path) -> None:
    schedule = Schedule(
        (Band(4, SPECULATION), Band(None, DIFFUSION)), hysteresis=2, epoch=3, version=9
    )
    assert read_schedule(tmp_path) is None
    write_schedule(tmp_path, schedule)
    write_schedule(tmp_path, replace(schedule, version=10))
    assert read_schedule(tmp_path) == replace(schedule, version=10)
    assert [path.name for path in tmp_path.iterdir()] == [SCHEDULE_FILE]


def test_a_report_arrives_as_it_was_written(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    write_report(tmp_path, REPORT)
    assert read_report(tmp_path) == REPORT
    assert REPORT.age_s > 1e9


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"bands": 3}', '{"bands": [{"up_to": 1}]}'])
def test_a_file_that_is_no_schedule_names_itself(tmp_path: Path, text: str) -> None:
    (tmp_path / SCHEDULE_FILE).write_text(text)
    with pytest.raises(ProtocolError, match=SCHEDULE_FILE):
        read_schedule(tmp_path)


def test_a_report_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / REPORT_FILE).write_text(json.dumps({**REPORT.to_dict(), "format": 0}))
    with pytest.raises(ProtocolError, match="format 0"):
        read_report(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        RequestOptions(),
        RequestOptions(DIFFUSION, Quality.ANY, 2**63),
        RequestOptions(SPECULATION, Quality.EXACT, None),
    ],
)
def test_options_of_a_request_arrive_as_they_were_sent(options: RequestOptions) -> None:
    sent = json.loads(json.dumps(options.to_custom_params()))
    assert RequestOptions.from_custom_params({**sent, "another": 1}) == options


def test_a_request_that_says_nothing_follows_the_schedule() -> None:
    assert RequestOptions.from_custom_params(None) == RequestOptions()
    assert RequestOptions.from_custom_params({"another": 1}) == RequestOptions()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ("ar", "plan, quality and seed"),
        ({"plan": "ar", "typo": 1}, "typo"),
        ({"plan": "diffusion/5"}, "block length 5"),
        ({"plan": 8}, "8"),
        ({"quality": "best"}, "best"),
        ({"seed": "x"}, "seed 'x'"),
        ({"plan": "diffusion/8", "quality": "exact"}, "does not keep to quality exact"),
    ],
)
def test_options_that_make_no_sense_are_refused_by_name(fields: object, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        RequestOptions.from_custom_params({"trimode": fields})


def test_launch_flags_name_the_longest_block() -> None:
    flags = launch_flags(16)
    assert flags[flags.index("--speculative-num-draft-tokens") + 1] == "16"
    with pytest.raises(ProtocolError, match="12"):
        launch_flags(12)

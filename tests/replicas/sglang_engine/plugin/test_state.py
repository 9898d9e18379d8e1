"""Schedules in, requests read, reports out: the plugin's parts that need no SGLang."""

from __future__ import annotations

import time
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from policies.observation import Drafted, StepObservation
from policies.vocabulary import AR, Mode, Plan, Quality, Schedule
from replicas.governor import Governor
from replicas.sglang_engine.plugin.compatibility import (
    IncompatibleSGLang,
    check_version,
    missing_seams,
)
from replicas.sglang_engine.plugin.control import Reporter, ScheduleFile, control_directory
from replicas.sglang_engine.plugin.requests import record_plans, refusal, sequence_of
from replicas.sglang_engine.plugin.state import DecoderState
from replicas.sglang_engine.protocol import (
    CONTROL_DIR_VARIABLE,
    PLAN_KEY,
    SCHEDULE_FILE,
    PluginReport,
    RequestOptions,
    read_report,
    write_schedule,
)

LONG = Plan(Mode.SELF_SPECULATION, 32)
SHORT = Plan(Mode.SELF_SPECULATION, 8)
BLOCK = Plan(Mode.DIFFUSION, 16)


def state_at(folder: Path, max_block_length: int = 32) -> DecoderState:
    return DecoderState(max_block_length, ScheduleFile(folder), clock=lambda: 0.0)


def sgl_request(output: tuple[int, ...] = (), **sampling: Any) -> Any:
    """As much of SGLang's `Req` as the plugin looks at."""
    neutral = {
        "custom_params": None,
        "min_p": 0.0,
        "frequency_penalty": 0.0,
        "presence_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_new_tokens": 0,
        "logit_bias": None,
        "json_schema": None,
        "regex": None,
        "ebnf": None,
        "structural_tag": None,
        "sampling_seed": None,
        "ignore_eos": False,
        "stop_token_ids": None,
        "max_new_tokens": 9,
        "top_k": 1,
        "top_p": 1.0,
        "temperature": 1.0,
    }
    return SimpleNamespace(
        rid="r",
        origin_input_ids=array("q", [5, 6, 7]),
        output_ids=array("q", output),
        sampling_params=SimpleNamespace(**{**neutral, **sampling}),
        eos_token_ids={2},
        tokenizer=None,
        kv=SimpleNamespace(req_pool_idx=4),
        customized_info=None,
        return_logprob=False,
        return_hidden_states=False,
        custom_logit_processor=None,
    )


def test_a_schedule_is_followed_at_the_next_step(tmp_path: Path) -> None:
    state = state_at(tmp_path)
    assert state.pick([sequence_of(sgl_request())]) == AR
    write_schedule(tmp_path, Schedule.pinned(SHORT, version=1))
    assert state.pick([sequence_of(sgl_request())]) == SHORT
    write_schedule(tmp_path, Schedule.pinned(BLOCK, version=0))  # older
    assert state.pick([sequence_of(sgl_request())]) == SHORT


def test_a_broken_schedule_is_reported_and_the_last_one_goes_on(tmp_path: Path) -> None:
    write_schedule(tmp_path, Schedule.pinned(SHORT, version=1))
    schedules = ScheduleFile(tmp_path)
    assert schedules.news() == Schedule.pinned(SHORT, version=1)
    assert schedules.news() is None
    (tmp_path / SCHEDULE_FILE).write_text("{")
    assert schedules.news() is None
    assert SCHEDULE_FILE in (schedules.refusal or "")
    write_schedule(tmp_path, Schedule.pinned(AR, version=2))
    assert schedules.news() == Schedule.pinned(AR, version=2)
    assert schedules.refusal is None


def test_a_plan_is_cut_to_the_longest_block_the_server_was_started_for(tmp_path: Path) -> None:
    write_schedule(tmp_path, Schedule.pinned(LONG, version=1))
    assert state_at(tmp_path, max_block_length=8).pick([sequence_of(sgl_request())]) == SHORT


def test_who_is_no_longer_there_has_ended_and_the_governor_learns_how_its_drafts_fared(
    tmp_path: Path,
) -> None:
    """However it ended: what SGLang ends, and what the replica aborts at a stop string."""
    told: list[StepObservation] = []

    class Listener(Governor):
        def observe(self, step: StepObservation, now: float) -> None:
            told.append(step)

    state = state_at(tmp_path)
    state.governor = Listener(Schedule.pinned(SHORT))
    leaving, staying = (sequence_of(sgl_request()) for _ in range(2))
    leaving.count_round(3, 8)
    state.pick([leaving, staying])
    state.observe(StepObservation(SHORT, 2, 100, 0.5, [3, 1]))
    state.pick([staying])
    for _ in range(2):
        state.observe(StepObservation(SHORT, 1, 100, 0.5, [3]))
    assert [step.answers for step in told] == [0, 1, 0]
    assert told[1].ended == Drafted([3], [2])


def test_what_steps_yield_is_counted_by_plan(tmp_path: Path) -> None:
    state = state_at(tmp_path)
    step = StepObservation(SHORT, 2, 100, 0.5, [3, 1])
    state.observe(step)
    state.observe(step, share=0.5)
    counters = state.tallies.freeze()[SHORT]
    assert (counters.committed, counters.seconds) == (8, 0.75)
    assert counters.accepted == (2, 2, 0, 0, 0, 0, 0)
    assert state.totals.generated_tokens == 8


def test_reports_come_while_nothing_else_happens(tmp_path: Path) -> None:
    def report() -> PluginReport:
        return PluginReport("1", "2", 3, time.time(), 32, AR, 0, 0, 0.0)

    reporter = Reporter(tmp_path, report)
    reporter.start()
    while (first := read_report(tmp_path)) is None:
        pass
    while read_report(tmp_path) == first:
        pass
    reporter.stop()
    reporter.join()


def test_a_control_directory_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONTROL_DIR_VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(FileNotFoundError, match="gone"):
        control_directory()
    monkeypatch.delenv(CONTROL_DIR_VARIABLE)
    assert control_directory() is None


def test_a_request_becomes_a_sequence_that_ends_where_sglang_ends_it() -> None:
    options = RequestOptions(BLOCK, Quality.ANY, 11)
    req = sgl_request(
        (8,), custom_params=options.to_custom_params(), stop_token_ids={9}, temperature=0.7, top_k=5
    )
    sequence = sequence_of(req)
    assert (sequence.tokens, sequence.cached, sequence.row) == ([5, 6, 7, 8], 3, 4)
    assert (sequence.seed, sequence.request.plan, sequence.remaining) == (11, BLOCK, 8)
    assert (sequence.request.sampling.temperature, sequence.request.sampling.top_k) == (0.7, 5)
    assert [t for t in range(12) if sequence.ends_with(t)] == [2, 9]


def test_ignore_eos_means_stop_tokens_too_as_it_does_in_sglang() -> None:
    sequence = sequence_of(sgl_request(ignore_eos=True, stop_token_ids={9}))
    assert not any(sequence.ends_with(t) for t in range(12))


def test_a_retracted_request_loses_its_block_and_keeps_its_seed() -> None:
    req = sgl_request((8,))
    sequence = sequence_of(req)
    sequence.block, sequence.block_plan = [8, 1, 1, 1], BLOCK
    assert sequence_of(req).block is not None
    req.output_ids.append(9)
    assert sequence_of(req) is sequence
    assert (sequence.block, sequence.block_plan, sequence.tokens[-1]) == (None, None, 9)


def test_tokens_that_sglang_added_by_itself_are_taken_over() -> None:
    req = sgl_request((8,))
    sequence = sequence_of(req)
    req.output_ids.extend([9, 10])
    assert sequence_of(req).tokens == [5, 6, 7, 8, 9, 10]
    assert (sequence.cached, sequence.remaining) == (5, 6)


def test_plans_of_tokens_are_noted_for_those_who_asked() -> None:
    silent, asking = sgl_request(), sgl_request(custom_params=RequestOptions().to_custom_params())
    for req in (silent, asking):
        record_plans(req, None, 1)
        record_plans(req, "ar", 2)
    assert silent.customized_info is None
    assert asking.customized_info == {PLAN_KEY: [None, "ar", "ar"]}


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty 0.5"),
        ({"regex": "a+"}, "regex"),
        ({"custom_params": {"trimode": {"plan": "diffusion/32"}}}, "at most 16"),
        ({"custom_params": {"trimode": {"plan": "x"}}}, "x"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(sampling: dict[str, Any], said: str) -> None:
    assert said in (refusal(sgl_request(**sampling), 16) or "")


def test_an_ordinary_request_is_admitted() -> None:
    assert refusal(sgl_request(temperature=0.7, top_p=0.9, top_k=50), 16) is None


def test_another_version_of_sglang_is_refused_with_both_versions_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "replicas.sglang_engine.plugin.compatibility.version", lambda package: "0.4.2"
    )
    with pytest.raises(IncompatibleSGLang, match=r"0\.4\.2.*0\.5\.23"):
        check_version()


def test_missing_seams_are_named() -> None:
    seams = (
        ("policies.vocabulary", "Plan.block_length"),
        ("policies.vocabulary", "Plan.colour"),
        ("policies.nowhere", "Plan"),
    )
    assert missing_seams(seams) == ["policies.vocabulary.Plan.colour", "policies.nowhere.Plan"]

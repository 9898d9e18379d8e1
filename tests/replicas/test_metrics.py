"""What a replica exports. Run with: pytest tests/replicas/test_metrics.py"""

from dataclasses import replace

import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from policies.step_time import shipped_profile
from policies.vocabulary import AR, Mode, Plan, Schedule, all_plans
from policies.worth import Worth
from replicas.catalogue import BY_NAME, CATALOGUE, REPLICA_METRICS
from replicas.engine import Delta, EngineReport, EngineStopped, PlanCounters, Request
from replicas.governor import PickReason
from replicas.metrics import ReplicaMetrics, main

SPEC_8 = Plan.parse("self_speculation/8")
DIFFUSION = Plan.parse("diffusion/16")
REPORT = EngineReport(
    decoding=3,
    prefilling=1,
    waiting=2,
    kv_tokens_used=50,
    kv_tokens_total=200,
    context_tokens=40,
    plan=SPEC_8,
    schedule=Schedule.pinned(SPEC_8, ttl_s=10.0, epoch=7, version=4),
    schedule_age_s=1.5,
    switches=2,
    preemptions=1,
    steps=90,
    prompt_tokens=1000,
    generated_tokens=500,
    finished={"stop": 5, "length": 3, "cancelled": 2},
    plans={
        SPEC_8: PlanCounters(
            steps=10,
            forwards=20,
            sequence_steps=30,
            rounds=30,
            drafted=210,
            accepted=(20, 10, 5),
            committed=65,
            seconds=1.25,
        ),
        DIFFUSION: PlanCounters(steps=4, forwards=4, rounds=2, committed=30, denoising_steps=12),
        AR: PlanCounters(steps=7, forwards=7, sequence_steps=14, rounds=14, committed=14),
    },
)


class Engine:
    """Reports what it is given."""

    def __init__(self, report=REPORT):
        self.current = report
        self.failed = False

    def report(self):
        return self.current

    def check_health(self):
        if self.failed:
            raise EngineStopped("device lost")


@pytest.fixture
def engine():
    return Engine()


@pytest.fixture
def metrics(engine):
    return ReplicaMetrics("r1", "tiny", engine, ttft_target_s=0.5, tpot_target_s=0.05)


@pytest.fixture
def sample(metrics):
    def value(name, **labels):
        if name.startswith("trimode_"):
            labels = {"replica": "r1", **labels}
        return metrics.registry.get_sample_value(name, labels)

    return value


def request(name="q1"):
    return Request(name, (1, 2, 3))


def test_load_and_schedule_come_from_the_report(sample):
    assert sample("trimode_decoding_sequences") == 3
    assert sample("trimode_waiting_sequences") == 2
    assert sample("trimode_kv_use_ratio") == 0.25
    assert sample("trimode_schedule_epoch") == 7
    assert sample("trimode_schedule_version") == 4
    assert sample("trimode_schedule_expired") == 0
    assert sample("trimode_engine_up") == 1


def test_exactly_one_plan_is_active(metrics, sample):
    assert sample("trimode_plan_active", mode="self_speculation", plan="self_speculation/8") == 1
    assert sum(sample("trimode_plan_active", mode=p.mode, plan=str(p)) for p in all_plans()) == 1


def test_a_plan_with_its_own_threshold_counts_with_its_block_length(engine, sample):
    engine.current = replace(REPORT, plan=Plan.parse("diffusion/16@0.5"))
    assert sample("trimode_plan_active", mode="diffusion", plan="diffusion/16") == 1


def test_plan_counters_are_the_engines_own(sample):
    labels = {"mode": "self_speculation", "plan": "self_speculation/8"}
    assert sample("trimode_plan_committed_tokens_total", **labels) == 65
    assert sample("trimode_plan_seconds_total", **labels) == 1.25
    assert sample("trimode_plan_accepted_tokens_total", **labels) == 35
    positions = [
        sample("trimode_plan_accepted_at_position_total", position=str(i), **labels)
        for i in range(7)
    ]
    assert positions == [20, 10, 5, 0, 0, 0, 0]


def test_a_scrape_shows_the_totals_of_its_own_moment(engine, sample):
    engine.current = replace(REPORT, generated_tokens=777)
    assert sample("trimode_generated_tokens_total") == 777


def test_an_engine_that_stopped_is_down_and_reports_nothing_else(engine, sample):
    engine.failed = True
    assert sample("trimode_engine_up") == 0
    assert sample("trimode_decoding_sequences") is None


def test_switches_by_direction_start_at_zero():
    count = {(AR, SPEC_8, PickReason.BAND): 3}
    registry = ReplicaMetrics("r1", "tiny", Engine(), switched=lambda: count).registry
    labels = {"replica": "r1", "from_plan": "ar", "to_plan": "self_speculation/8"}
    name = "trimode_plan_switches_total"
    assert registry.get_sample_value(name, {**labels, "reason": "band"}) == 3
    assert registry.get_sample_value(name, {**labels, "reason": "expired"}) == 0
    assert registry.get_sample_value("trimode_switches_total", {"replica": "r1"}) == 2


def test_the_governors_estimates_are_shown_only_while_it_follows_them(engine, sample):
    name, labels = "trimode_governor_predicted_tokens_per_second", {"mode": "ar", "plan": "ar"}
    worth = Worth(all_plans(), shipped_profile("h100"))
    follows = Schedule.pinned(AR)
    engine.current = replace(
        REPORT, predicted={AR: 99.0}, schedule=replace(follows, worth=worth), decoding=3
    )
    assert sample(name, **labels) == 99.0
    engine.current = replace(engine.current, schedule=follows)  # a pin: the estimate gets old
    assert sample(name, **labels) is None


OPTIONAL = {
    "governor_predicted_tokens_per_second",  # a schedule of bands predicts nothing
    "plan_switched_timestamp_seconds",  # not before the first switch
}
ALWAYS_THERE = [metric for metric in REPLICA_METRICS if metric.name not in OPTIONAL]


def test_every_series_exists_before_the_first_request(metrics):
    idle = replace(REPORT, plans={}, finished={})
    exported = {
        s.name
        for family in ReplicaMetrics("r1", "tiny", Engine(idle), ttft_target_s=1.0).collect()
        for s in family.samples
    }
    for metric in ALWAYS_THERE:
        assert set(metric.samples) <= exported, metric.name
        if metric.vllm:
            assert f"vllm:{metric.vllm}" in {n.removesuffix("_bucket") for n in exported}


def test_a_request_is_timed_from_its_arrival(metrics, sample):
    observer, q = metrics.requests, request()
    observer.queued(q)
    observer.first_token(q, 0.4)
    observer.commit(q, Delta("q1", (5,), "a", None, queued_s=0.25), 0.4)
    observer.commit(q, Delta("q1", (6, 7, 8), "bcd", DIFFUSION), 0.1)
    observer.commit(q, Delta("q1", (9,), "e", AR), 0.1)
    observer.finished(q, "stop", 0.8, 5)
    assert sample("trimode_time_to_first_token_seconds_count", mode="self_speculation") == 1
    assert sample("trimode_time_to_first_token_seconds_sum", mode="self_speculation") == 0.4
    assert sample("trimode_queue_seconds_count", mode="self_speculation") == 1
    assert sample("trimode_queue_seconds_sum", mode="self_speculation") == 0.25
    assert sample("trimode_inter_commit_seconds_count", mode="diffusion") == 1
    assert sample("trimode_inter_commit_seconds_count", mode="ar") == 1
    assert sample("trimode_request_seconds_count", mode="diffusion") == 1
    tpot = sample("trimode_time_per_output_token_seconds_sum", mode="diffusion")
    assert tpot == pytest.approx(0.1)


def test_slo_violations_are_counted_not_read_off_buckets(metrics, sample):
    observer = metrics.requests
    for name, ttft in (("a", 0.4), ("b", 0.6)):
        observer.queued(request(name))
        observer.first_token(request(name), ttft)
        observer.finished(request(name), "length", ttft + 0.03, 2)
    assert sample("trimode_slo_requests_total", slo="ttft") == 2
    assert sample("trimode_slo_violations_total", slo="ttft") == 1
    assert sample("trimode_slo_violations_total", slo="tpot") == 0
    assert sample("trimode_slo_target_seconds", slo="ttft") == 0.5


def test_a_request_cut_short_does_not_count_as_a_latency(metrics, sample):
    metrics.requests.queued(request())
    metrics.requests.finished(request(), "cancelled", 9.0, 0)
    metrics.requests.finished(request("q2"), "overloaded", 0.0, 0)
    assert all(sample("trimode_request_seconds_count", mode=mode) == 0 for mode in Mode)
    assert sample("trimode_requests_refused_total", outcome="overloaded") == 1


def test_a_single_token_has_no_time_per_token(metrics, sample):
    metrics.requests.queued(request())
    metrics.requests.first_token(request(), 0.1)
    metrics.requests.finished(request(), "length", 0.1, 1)
    name = "trimode_time_per_output_token_seconds_count"
    assert all(sample(name, mode=mode) == 0 for mode in Mode)


def test_vllm_names_read_the_same_numbers(metrics, sample):
    metrics.requests.queued(request())
    metrics.requests.first_token(request(), 0.3)
    vllm = {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:prompt_tokens_total": 1000,
        "vllm:generation_tokens_total": 500,
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:time_to_first_token_seconds_sum": 0.3,
        "vllm:spec_decode_num_drafts_total": 30,
        "vllm:spec_decode_num_draft_tokens_total": 210,
        "vllm:spec_decode_num_accepted_tokens_total": 35,
        "vllm:diffusion_num_denoising_steps_total": 12,
        "vllm:diffusion_num_canvas_positions_total": 192,
        "vllm:diffusion_num_committed_tokens_total": 30,
    }
    assert {name: sample(name, model_name="tiny") for name in vllm} == vllm
    finished = {
        why: sample("vllm:request_success_total", model_name="tiny", finished_reason=why)
        for why in ("stop", "length", "abort", "error")
    }
    assert finished == {"stop": 5, "length": 3, "abort": 2, "error": 0}
    name = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert sample(name, model_name="tiny", position="1") == 10
    name, labels = "vllm:inter_token_latency_seconds_bucket", {"model_name": "tiny", "le": "+Inf"}
    assert sample(name, **labels) == 0


def test_the_page_parses_and_its_types_are_the_catalogues(metrics):
    page = generate_latest(metrics.registry).decode()
    types = {f.name: f.type for f in text_string_to_metric_families(page)}
    for metric in ALWAYS_THERE:
        assert types[metric.full_name.removesuffix("_total")] == metric.type
        if metric.vllm:
            assert types[f"vllm:{metric.vllm}".removesuffix("_total")] == metric.type
    assert not [name for name in types if name.endswith("_created")]


def test_labels_are_few(metrics):
    assert len(generate_latest(metrics.registry).decode().splitlines()) < 1200


def test_two_replicas_in_one_process_do_not_meet(metrics):
    ReplicaMetrics("r2", "tiny", Engine())
    ReplicaMetrics("r1", "tiny", Engine())
    assert not [f for f in REGISTRY.collect() if f.name.startswith(("trimode", "vllm"))]


def test_catalogue_names_follow_the_conventions():
    assert len(BY_NAME) == len(CATALOGUE)
    for metric in CATALOGUE:
        assert metric.name.endswith("_total") == (metric.type == "counter"), metric.name
        assert bool(metric.buckets) == (metric.type == "histogram"), metric.name
        assert metric.help.endswith("."), metric.name
        assert list(metric.buckets) == sorted(set(metric.buckets)), metric.name


def test_the_reference_page_is_checked_against_the_catalogue(tmp_path, capsys):
    page = tmp_path / "metrics.md"
    assert main(["--check", str(page)]) == 1
    assert "--write" in capsys.readouterr().out
    assert main(["--write", str(page)]) == 0
    assert main(["--check", str(page)]) == 0
    page.write_text(page.read_text() + "stale")
    assert main(["--check", str(page)]) == 1


def test_the_committed_reference_page_is_current():
    assert main(["--check"]) == 0

"""Signals: scraped pages and PromQL. Run with: pytest tests/orchestrator/test_signals.py"""

import asyncio
import base64
import math
import re
from dataclasses import replace

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest

from orchestrator.measures import histogram_quantile, metrics_read
from orchestrator.signals import ERROR_KINDS, DirectScrape, PrometheusServer
from policies.decisions import SIGNAL_NAMES, Reading
from policies.vocabulary import AR, Plan, Schedule
from replicas.catalogue import BY_NAME
from replicas.engine import EngineReport, PlanCounters, Request
from replicas.metrics import ReplicaMetrics

SPEC_4 = Plan.parse("self_speculation/4")
URLS = {"r1": "http://r1/metrics"}
EMPTY = EngineReport(
    decoding=0, prefilling=0, waiting=0, kv_tokens_used=0, kv_tokens_total=100, context_tokens=0,
    plan=AR, schedule=Schedule.pinned(AR), schedule_age_s=0.0, switches=0, preemptions=0, steps=0,
    prompt_tokens=0, generated_tokens=0, finished={}, plans={},
)  # fmt: skip


class Replica:
    """A replica's page, from a report that the test changes."""

    def __init__(self, name="r1"):
        self.now = EMPTY
        self.metrics = ReplicaMetrics(name, "tiny", self)
        self.answer = None

    def report(self):
        return self.now

    def check_health(self):
        pass

    def set(self, **fields):
        self.now = replace(self.now, **fields)

    def restart(self):
        self.now = EMPTY
        self.metrics = ReplicaMetrics(self.metrics.replica, "tiny", self)

    def handle(self, request):
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        return httpx.Response(200, content=generate_latest(self.metrics.registry))


@pytest.fixture
def replica():
    return Replica()


@pytest.fixture
def source(replica):
    transport = httpx.MockTransport(replica.handle)
    return DirectScrape(window_s=10.0, stale_after_s=5.0, transport=transport)


def read(source, now, urls=URLS):
    return asyncio.run(source.collect(urls, now))["r1"]


def test_gauges_are_read_as_they_are(replica, source):
    replica.set(decoding=3, waiting=2, prefilling=1, context_tokens=90, kv_tokens_used=25)
    signals = read(source, 0.0)
    assert signals.decoding == Reading(3.0, 0.0)
    assert signals.waiting.value == 2.0
    assert signals.context_tokens.value == 90.0
    assert signals.kv_use.value == 0.25
    assert signals.plan == AR


def test_an_idle_replica_is_zero_and_a_quantile_of_nothing_is_missing(replica, source):
    read(source, 0.0)
    signals = read(source, 1.0)
    assert signals.decoding.value == 0.0
    assert signals.tokens_per_s.value == 0.0
    assert signals.ttft_p95_s.value is None
    assert signals.plans == {}


def test_a_rate_needs_two_pages(replica, source):
    replica.set(generated_tokens=500)
    assert read(source, 0.0).tokens_per_s.value is None
    replica.set(generated_tokens=600)
    assert read(source, 2.0).tokens_per_s.value == 50.0


def test_rates_cover_the_window_and_no_more(replica, source):
    for now in range(31):
        tokens = 1000 * now if now <= 10 else 10_000 + 10 * (now - 10)
        replica.set(generated_tokens=tokens)
        signals = read(source, float(now))
    assert signals.tokens_per_s.value == pytest.approx(10.0)


def test_a_restarted_replica_never_gives_a_negative_rate(replica, source):
    replica.set(generated_tokens=1000)
    read(source, 0.0)
    replica.set(generated_tokens=1040)
    read(source, 2.0)
    replica.restart()
    replica.set(generated_tokens=20)
    assert read(source, 4.0).tokens_per_s.value == pytest.approx((40 + 20) / 4.0)


def test_plan_ratios(replica, source):
    read(source, 0.0)
    counters = PlanCounters(
        steps=10, forwards=20, sequence_steps=40, rounds=40, drafted=120, accepted=(30, 20, 10),
        committed=100, seconds=0.5,
    )  # fmt: skip
    replica.set(plan=SPEC_4, plans={SPEC_4: counters})
    signals = read(source, 2.0)
    used = signals.plans[SPEC_4]
    assert signals.plan == SPEC_4
    assert used.tokens_per_forward.value == pytest.approx(100 * 10 / (40 * 20))
    assert used.accepted_length.value == pytest.approx(1.5)
    assert used.step_s.value == pytest.approx(0.05)
    assert used.sequences.value == pytest.approx(4.0)
    assert used.acceptance == pytest.approx((0.75, 0.5, 0.25))
    assert set(signals.plans) == {SPEC_4}


def test_quantiles_are_interpolated_over_the_window_only(replica, source):
    def first_tokens(count, seconds):
        for i in range(count):
            replica.metrics.requests.first_token(Request(f"{i}", (1,)), seconds)

    first_tokens(100, 60.0)
    read(source, 0.0)
    first_tokens(10, 0.2)
    signals = read(source, 2.0)
    assert signals.ttft_p50_s.value == pytest.approx(0.2)  # the middle of 0.15 to 0.25
    assert 0.2 < signals.ttft_p95_s.value < 0.25


def test_a_page_that_cannot_be_read_leaves_the_last_values_until_they_are_stale(replica, source):
    replica.set(decoding=3)
    read(source, 0.0)
    replica.answer = httpx.ConnectError("refused")
    assert read(source, 4.0).decoding == Reading(3.0, 4.0)
    assert read(source, 6.0).decoding == Reading(None, 6.0)
    replica.answer = None
    assert read(source, 7.0).decoding == Reading(3.0, 0.0)
    assert source.errors["connect"] == 2


def test_a_series_that_disappears_is_missing_at_once(replica, source):
    replica.set(decoding=3)
    read(source, 0.0)
    page = b'trimode_engine_up{replica="r1"} 0\n'
    replica.answer = httpx.Response(200, content=page)
    assert read(source, 1.0).decoding == Reading(None, 1.0)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.ReadTimeout("slow"), "timeout"),
        (httpx.ConnectError("refused"), "connect"),
        (httpx.RemoteProtocolError("cut off"), "connect"),
        (httpx.Response(503), "status"),
        (httpx.Response(302, headers={"location": "http://elsewhere/"}), "status"),
        (httpx.Response(200, content=b"\xff\xfe"), "malformed"),
        (httpx.Response(200, content=b"trimode_engine_up{replica= 1\n"), "malformed"),
        (httpx.Response(200, content=b'trimode_engine_up{replica="r1"} one\n'), "malformed"),
        (httpx.Response(200, content=b""), "missing"),
        (httpx.Response(200, content=b'trimode_engine_up{replica="r2"} 1\n'), "missing"),
        (httpx.Response(200, content=b"x" * (9 << 20)), "too_large"),
        (RuntimeError("surprise"), "malformed"),
    ],
)
def test_whatever_a_replica_answers_is_counted_and_nothing_is_raised(replica, source, answer, kind):
    replica.answer = answer
    signals = read(source, 0.0)
    assert signals.decoding == Reading(None, None)
    assert {k: n for k, n in source.errors.items() if n} == {kind: 1}


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-3"])
def test_what_is_no_number_is_missing(replica, source, value):
    page = (
        f'trimode_engine_up{{replica="r1"}} 1\ntrimode_decoding_sequences{{replica="r1"}} {value}\n'
    )
    replica.answer = httpx.Response(200, content=page.encode())
    assert read(source, 0.0).decoding.value is None
    assert source.errors["not_finite"] == 1


def test_a_page_that_never_ends_is_given_up_on():
    async def drip():
        while True:
            yield b"# \n"
            await asyncio.sleep(0.005)

    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=drip()))
    source = DirectScrape(timeout_s=0.05, transport=transport)
    assert read(source, 0.0).decoding.value is None
    assert source.errors["timeout"] == 1


def test_one_dead_replica_does_not_hide_another():
    replicas = {"r1": Replica("r1"), "r2": Replica("r2")}
    replicas["r2"].answer = httpx.ConnectError("refused")
    transport = httpx.MockTransport(lambda request: replicas[request.url.host].handle(request))
    source = DirectScrape(transport=transport)
    urls = {name: f"http://{name}/metrics" for name in replicas}
    both = asyncio.run(source.collect(urls, 0.0))
    assert both["r1"].decoding.value == 0.0
    assert both["r2"].decoding.value is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=60) | st.text(max_size=60).map(str.encode), max_size=4))
def test_no_page_makes_it_raise(pages):
    replica = Replica()
    source = DirectScrape(transport=httpx.MockTransport(replica.handle))
    for now, page in enumerate(pages):
        body = b'trimode_engine_up{replica="r1"} 1\ntrimode_decoding_sequences' + page
        replica.answer = httpx.Response(200, content=body)
        assert read(source, float(now)).replica == "r1"


@pytest.mark.parametrize(
    ("q", "buckets", "expected"),
    [
        (0.5, {0.1: 0, 0.2: 10, math.inf: 10}, 0.15),
        (0.5, {0.1: 10, math.inf: 10}, 0.05),
        (0.95, {0.1: 5, math.inf: 10}, 0.1),
        (0.5, {0.1: 0, math.inf: 0}, None),
        (0.5, {}, None),
        (0.5, {0.1: 5}, None),
        (1.0, {1.0: 4, 2.0: 4, math.inf: 4}, 1.0),
    ],
)
def test_histogram_quantile_is_promqls(q, buckets, expected):
    assert histogram_quantile(q, buckets) == (None if expected is None else pytest.approx(expected))


# -- a Prometheus server ---------------------------------------------------------------------------


class Prometheus:
    """Answers each query with the rows of the first pattern that its text contains."""

    def __init__(self, rows):
        self.rows = rows
        self.requests = []
        self.answer = None

    def handle(self, request):
        self.requests.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is not None:
            return self.answer
        query = dict(httpx.QueryParams(request.content.decode()))["query"]
        rows = next((rows for part, rows in self.rows.items() if part in query), [])
        result = [{"metric": labels, "value": [1000.0, value]} for labels, value in rows]
        return httpx.Response(
            200, json={"status": "success", "data": {"resultType": "vector", "result": result}}
        )


R1 = {"replica": "r1"}
ROWS = {
    "timestamp(": [(R1, "1.5")],
    "trimode_plan_active": [({**R1, "plan": "self_speculation/4"}, "1")],
    "trimode_plan_accepted_at_position_total": [
        ({**R1, "plan": "self_speculation/4", "position": "1"}, "0.5"),
        ({**R1, "plan": "self_speculation/4", "position": "0"}, "0.75"),
    ],
    "trimode_decoding_sequences": [(R1, "7"), ({"replica": "other"}, "9")],
    "histogram_quantile(0.95, sum by (replica, le) (rate(trimode_time_to": [(R1, "0.25")],
    "histogram_quantile(0.5, sum by (replica, le) (rate(trimode_time_to": [(R1, "NaN")],
    "trimode_generated_tokens_total": [(R1, "120.5")],
    "trimode_plan_committed_tokens_total": [
        ({**R1, "plan": "self_speculation/4"}, "1.25"),
        ({**R1, "plan": "ar"}, "NaN"),
        ({**R1, "plan": "unheard_of/7"}, "2"),
    ],
}


@pytest.fixture
def prometheus():
    return Prometheus(dict(ROWS))


def server(prometheus, **options):
    transport = httpx.MockTransport(prometheus.handle)
    return PrometheusServer("http://prom:9090/base/", transport=transport, **options)


def test_promql_gives_the_same_signals_with_the_age_of_the_scrape(prometheus):
    signals = read(server(prometheus), 100.0)
    assert signals.decoding == Reading(7.0, 1.5)
    assert signals.tokens_per_s.value == 120.5
    assert signals.ttft_p95_s.value == 0.25
    assert signals.ttft_p50_s.value is None
    assert signals.waiting.value is None
    assert signals.plan == SPEC_4
    assert set(signals.plans) == {SPEC_4}
    assert signals.plans[SPEC_4].tokens_per_forward.value == 1.25
    assert signals.plans[SPEC_4].acceptance == (0.75, 0.5)
    assert {str(r.url) for r in prometheus.requests} == {"http://prom:9090/base/api/v1/query"}


def test_a_replica_that_prometheus_no_longer_sees_ages(prometheus):
    source = server(prometheus, stale_after_s=5.0)
    read(source, 100.0)
    prometheus.rows["timestamp("] = []
    assert read(source, 103.0).decoding == Reading(7.0, 4.5)
    assert read(source, 104.0).decoding == Reading(None, 5.5)


def test_old_scrapes_are_stale_even_if_prometheus_answers(prometheus):
    prometheus.rows["timestamp("] = [(R1, "30")]
    assert read(server(prometheus, stale_after_s=5.0), 100.0).decoding == Reading(None, 30.0)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (httpx.ConnectError("refused"), "connect"),
        (httpx.ReadTimeout("slow"), "timeout"),
        (httpx.Response(401), "status"),
        (httpx.Response(200, text="<html>login</html>"), "malformed"),
        (httpx.Response(200, json={"status": "success", "data": None}), "malformed"),
        (httpx.Response(200, json={"data": {"result": [{"metric": {}}]}}), "malformed"),
        (httpx.Response(200, json=[]), "malformed"),
    ],
)
def test_a_prometheus_that_fails_is_counted_and_the_last_values_hold(prometheus, answer, kind):
    source = server(prometheus)
    read(source, 100.0)
    queries = len(prometheus.requests)
    prometheus.answer = answer
    assert read(source, 101.0).decoding == Reading(7.0, 2.5)
    assert {k: n for k, n in source.errors.items() if n} == {kind: queries}
    prometheus.answer = None
    assert read(source, 102.0).decoding == Reading(7.0, 1.5)


def test_labels_that_are_not_ours_are_counted(prometheus):
    prometheus.rows["trimode_plan_active"] = [(R1, "1")]
    source = server(prometheus)
    assert read(source, 100.0).plan is None
    assert source.errors["malformed"] == 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"bearer_token": "t0k"}, "Bearer t0k"),
        ({"basic_auth": ("u", "p")}, "Basic " + base64.b64encode(b"u:p").decode()),
    ],
)
def test_every_query_carries_the_credentials(prometheus, options, expected):
    read(server(prometheus, **options), 0.0)
    assert {r.headers.get("authorization") for r in prometheus.requests} == {expected}


def test_two_kinds_of_credentials_are_refused():
    with pytest.raises(ValueError, match="not both"):
        PrometheusServer("http://p", bearer_token="t", basic_auth=("u", "p"))


def test_every_query_names_catalogued_metrics_and_groups_by_replica(prometheus):
    read(server(prometheus), 0.0)
    names = {m.full_name for m in BY_NAME.values()}
    asked = set()
    for request in prometheus.requests:
        query = dict(httpx.QueryParams(request.content.decode()))["query"]
        asked |= {n.removesuffix("_bucket") for n in re.findall(r"trimode_\w+", query)}
        assert "by (replica" in query
    assert asked <= names
    assert {n.removeprefix("trimode_") for n in asked} == {
        n.removesuffix("_bucket") for n in metrics_read()
    }


def test_error_kinds_and_signal_names_are_complete(source):
    assert set(source.errors) == set(ERROR_KINDS)
    assert set(read(source, 0.0).readings()) == set(SIGNAL_NAMES)

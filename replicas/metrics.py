"""What a replica exports: the catalogue's series, read from the engine's report at scrape time.

Counters are the engine's own monotone totals, so nothing is counted twice; what the engine cannot
see is in `request_metrics`. Every label set exists from the start. The registry is explicit, never
the global one.

`python -m replicas.metrics --write docs/metrics.md` writes the reference page, `--check` compares
it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as Family

from policies.vocabulary import SAFE_PLAN, Mode, Plan, all_plans
from replicas.catalogue import BY_NAME, REPLICA_METRICS, Metric, to_markdown
from replicas.engine import Engine, EngineReport, FinishReason, PlanCounters
from replicas.governor import CHANGE_REASONS, Change
from replicas.request_metrics import RequestMetrics
from replicas.vllm_names import alias_families

PAGE = Path("docs/metrics.md")


class Page:
    """The families of one scrape, by the catalogue's short names."""

    def __init__(self) -> None:
        self.families: dict[str, Family] = {}

    def put(self, name: str, value: float, *labels: str) -> None:
        metric = BY_NAME[name]
        if name not in self.families:
            self.families[name] = empty_family(metric)
        self.families[name].add_metric(labels, value)  # type: ignore[attr-defined]

    def take(self, name: str, instrument: Counter | Histogram) -> None:
        """Copies an instrument's series, less the creation times that nobody reads."""
        for family in instrument.collect():
            family.samples = [s for s in family.samples if not s.name.endswith("_created")]
            self.families[name] = family


def empty_family(metric: Metric) -> Family:
    name, labels = metric.full_name, metric.labels
    if metric.type == "counter":
        return CounterMetricFamily(name, metric.help, labels=labels)
    if metric.type == "gauge":
        return GaugeMetricFamily(name, metric.help, labels=labels)
    return HistogramMetricFamily(name, metric.help, labels=labels)


class ReplicaMetrics:
    """The registry of one replica.

    Args:
        replica: its name, the `replica` label of every series.
        model_name: the served name, the `model_name` label of vLLM's series.
        engine: asked for its report and its health at every scrape.
        switched: changes of plan so far by (from, to, reason), where the engine can tell.
        switched_at: when each last happened, in Unix seconds, likewise.
        plans: plans that have series; a threshold other than the default counts with its plan.
        ttft_target_s, tpot_target_s: targets that requests are judged against.

    `registry` is what `/metrics` renders; `requests` is what the HTTP surface tells of requests.
    """

    def __init__(
        self,
        replica: str,
        model_name: str,
        engine: Engine,
        *,
        switched: Callable[[], Mapping[Change, int]] | None = None,
        switched_at: Callable[[], Mapping[Change, float]] | None = None,
        plans: Iterable[Plan] = all_plans(),
        ttft_target_s: float | None = None,
        tpot_target_s: float | None = None,
    ) -> None:
        self.replica = replica
        self.model_name = model_name
        self.registry = CollectorRegistry()
        self._engine = engine
        self._switched = switched or dict
        self._switched_at = switched_at or dict
        self._plans = tuple(dict.fromkeys(map(_folded, plans)))
        targets = {"ttft": ttft_target_s, "tpot": tpot_target_s}
        self.requests = RequestMetrics(replica, self._mode, targets)
        self.registry.register(self)

    def describe(self) -> Iterator[Family]:
        for metric in REPLICA_METRICS:
            yield empty_family(metric)
        yield from alias_families({}, self.model_name)

    def collect(self) -> Iterator[Family]:
        page, report = Page(), self._report()
        page.put("engine_up", 0 if report is None else 1, self.replica)
        page.put("model_info", 1, self.replica, self.model_name)
        if report is not None:
            self._put_load(page, report)
            self._put_schedule(page, report)
            self._put_totals(page, report)
            for plan in self._plans:
                self._put_plan(page, plan, report)
        self._put_requests(page)
        yield from page.families.values()
        yield from alias_families(page.families, self.model_name)

    def _report(self) -> EngineReport | None:
        try:
            self._engine.check_health()
            return self._engine.report()
        except Exception:  # whatever stopped the engine, the scrape must still say that it is down
            return None

    def _mode(self) -> Mode:
        report = self._report()
        return SAFE_PLAN.mode if report is None else report.plan.mode

    def _put_load(self, page: Page, report: EngineReport) -> None:
        page.put("decoding_sequences", report.decoding, self.replica)
        page.put("prefilling_sequences", report.prefilling, self.replica)
        page.put("waiting_sequences", report.waiting, self.replica)
        page.put("context_tokens", report.context_tokens, self.replica)
        page.put("kv_used_tokens", report.kv_tokens_used, self.replica)
        page.put("kv_capacity_tokens", report.kv_tokens_total, self.replica)
        if report.kv_tokens_total > 0:
            page.put("kv_use_ratio", report.kv_tokens_used / report.kv_tokens_total, self.replica)

    def _put_schedule(self, page: Page, report: EngineReport) -> None:
        schedule, age_s = report.schedule, report.schedule_age_s
        page.put("schedule_epoch", schedule.epoch, self.replica)
        page.put("schedule_version", schedule.version, self.replica)
        page.put("schedule_age_seconds", age_s, self.replica)
        page.put("schedule_expired", 1 if age_s > schedule.ttl_s else 0, self.replica)
        for plan in self._plans:
            active = 1 if plan == _folded(report.plan) else 0
            page.put("plan_active", active, self.replica, plan.mode.value, str(plan))

    def _put_totals(self, page: Page, report: EngineReport) -> None:
        page.put("steps_total", report.steps, self.replica)
        page.put("prompt_tokens_total", report.prompt_tokens, self.replica)
        page.put("generated_tokens_total", report.generated_tokens, self.replica)
        page.put("preemptions_total", report.preemptions, self.replica)
        for reason in FinishReason:
            finished = report.finished.get(reason.value, 0)
            page.put("requests_total", finished, self.replica, reason.value)
        page.put("switches_total", report.switches, self.replica)
        page.put("governor_distrusts_total", report.distrusts, self.replica)
        for (before, after, why), count in self._all_switches().items():
            page.put("plan_switches_total", count, self.replica, before, after, why)
        for (before, after, why), at in self._latest_switches().items():
            page.put("plan_switched_timestamp_seconds", at, self.replica, before, after, why)

    def _all_switches(self) -> dict[tuple[str, str, str], int]:
        plans = [str(plan) for plan in self._plans]
        counts = {
            (before, after, why.value): 0
            for before in plans
            for after in plans
            for why in CHANGE_REASONS
            if before != after
        }
        for change, count in self._switched().items():
            key = _named(change)
            counts[key] = counts.get(key, 0) + count
        return counts

    def _latest_switches(self) -> dict[tuple[str, str, str], float]:
        latest: dict[tuple[str, str, str], float] = {}
        for change, at in self._switched_at().items():
            key = _named(change)
            latest[key] = max(at, latest.get(key, at))
        return latest

    def _put_plan(self, page: Page, plan: Plan, report: EngineReport) -> None:
        counters = report.plans.get(plan, PlanCounters())
        labels = (self.replica, plan.mode.value, str(plan))
        page.put("plan_steps_total", counters.steps, *labels)
        page.put("plan_forwards_total", counters.forwards, *labels)
        page.put("plan_sequence_steps_total", counters.sequence_steps, *labels)
        page.put("plan_rounds_total", counters.rounds, *labels)
        page.put("plan_committed_tokens_total", counters.committed, *labels)
        page.put("plan_seconds_total", counters.seconds, *labels)
        page.put("plan_mixed_seconds_total", counters.mixed_seconds, *labels)
        page.put("plan_mixed_committed_tokens_total", counters.mixed_committed, *labels)
        page.put("probes_total", report.probes.get(plan, 0), *labels)
        # Under bands, a pin's too, the governor's last estimate would be of an older batch.
        is_predicting = report.decoding and report.schedule.worth is not None
        if is_predicting and (predicted := report.predicted.get(plan)) is not None:
            page.put("governor_predicted_tokens_per_second", predicted, *labels)
        if plan.mode is Mode.SELF_SPECULATION:
            page.put("plan_drafted_tokens_total", counters.drafted, *labels)
            page.put("plan_accepted_tokens_total", sum(counters.accepted), *labels)
            positions = max(plan.block_length - 1, len(counters.accepted))
            for position, count in enumerate(_padded(counters.accepted, positions)):
                page.put("plan_accepted_at_position_total", count, *labels, str(position))
        if plan.mode is Mode.DIFFUSION:
            denoising = counters.denoising_steps
            page.put("plan_denoising_steps_total", denoising, *labels)
            page.put("plan_canvas_positions_total", denoising * plan.block_length, *labels)

    def _put_requests(self, page: Page) -> None:
        requests = self.requests
        for name, instrument in requests.histograms.items():
            page.take(name, instrument)
        page.take("requests_refused_total", requests.refused)
        page.take("slo_requests_total", requests.slo_requests)
        page.take("slo_violations_total", requests.slo_violations)
        for slo, target in requests.targets.items():
            if target is not None:
                page.put("slo_target_seconds", target, self.replica, slo)


def _folded(plan: Plan) -> Plan:
    """The plan without its threshold, which requests choose freely and labels must not follow."""
    return Plan(plan.mode, plan.block_length)


def _named(change: Change) -> tuple[str, str, str]:
    before, after, why = change
    return str(_folded(before)), str(_folded(after)), why.value


def _padded(counts: tuple[int, ...], length: int) -> tuple[int, ...]:
    return counts + (0,) * (length - len(counts))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m replicas.metrics", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    for name, help in (("--write", "write the page"), ("--check", "fail if it is out of date")):
        action.add_argument(name, metavar="PAGE", type=Path, nargs="?", const=PAGE, help=help)
    options = parser.parse_args(arguments)
    if options.write is not None:
        options.write.write_text(to_markdown(), encoding="utf-8")
        return 0
    written = options.check.read_text(encoding="utf-8") if options.check.is_file() else ""
    if written == to_markdown():
        return 0
    print(f"{options.check} is out of date: run python -m replicas.metrics --write {options.check}")
    return 1


if __name__ == "__main__":
    sys.exit(main())

"""The metric catalogue: every series that Trimode exports, declared once.

Code, documentation, dashboards, rules and their lint read it. Names are what Prometheus sees
(counters with their `_total`), units are base units. Labels are few and bounded: a replica's name,
its modes, plans and reasons; never a request, a user or a prompt. `vllm` is the name
under which other routers and benchmark clients read the same thing; those series carry `model_name`
instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "trimode_"

LATENCY_BUCKETS = (
    *(0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
"""Seconds; first tokens and queues, from an idle GPU to an overloaded CPU."""
TOKEN_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5),
)
"""Seconds between tokens, or per token."""
REQUEST_BUCKETS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds; whole requests."""
TICK_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
"""Seconds; one round of the control loop."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: what it is called, what it counts, in which unit, by which labels."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    unit: str
    help: str
    labels: tuple[str, ...] = ("replica",)
    buckets: tuple[float, ...] = ()
    vllm: str = ""

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def samples(self) -> tuple[str, ...]:
        """Names of the exported series."""
        if self.type != "histogram":
            return (self.full_name,)
        return tuple(f"{self.full_name}_{part}" for part in ("bucket", "sum", "count"))


REPLICA = ("replica",)
BY_MODE = ("replica", "mode")
PLAN = ("replica", "mode", "plan")
SWITCH = ("replica", "from_plan", "to_plan", "reason")
SLO = ("replica", "slo")
OUTCOME = ("replica", "outcome")
SIGNAL = ("replica", "signal")
Labels = tuple[str, ...]


def counter(name: str, unit: str, help: str, labels: Labels = REPLICA, vllm: str = "") -> Metric:
    return Metric(name, "counter", unit, help, labels, vllm=vllm)


def gauge(name: str, unit: str, help: str, labels: Labels = REPLICA, vllm: str = "") -> Metric:
    return Metric(name, "gauge", unit, help, labels, vllm=vllm)


def histogram(
    name: str, help: str, buckets: tuple[float, ...], labels: Labels, vllm: str = ""
) -> Metric:
    return Metric(name, "histogram", "seconds", help, labels, buckets, vllm)


REPLICA_METRICS: tuple[Metric, ...] = (
    # Now.
    gauge("engine_up", "", "1 while the engine serves, 0 when it has stopped or failed."),
    gauge("model_info", "", "Always 1; names the model.", ("replica", "model_name")),
    gauge(
        "decoding_sequences", "sequences", "Sequences being decoded.", vllm="num_requests_running"
    ),
    gauge("prefilling_sequences", "sequences", "Sequences whose prompt is being read."),
    gauge(
        "waiting_sequences",
        "sequences",
        "Requests waiting to be admitted.",
        vllm="num_requests_waiting",
    ),
    gauge("context_tokens", "tokens", "Context length, summed over running sequences."),
    gauge("kv_used_tokens", "tokens", "KV cache in use."),
    gauge("kv_capacity_tokens", "tokens", "KV cache there is."),
    gauge(
        "kv_use_ratio", "ratio", "Share of the KV cache in use, 0 to 1.", vllm="kv_cache_usage_perc"
    ),
    # Plan and schedule.
    gauge("plan_active", "", "1 for the plan in use, 0 for the others.", PLAN),
    counter("switches_total", "switches", "Changes of plan at a step boundary."),
    counter("plan_switches_total", "switches", "Changes of plan by direction and reason.", SWITCH),
    gauge(
        "plan_switched_timestamp_seconds",
        "seconds",
        "Unix time of the latest change in this direction; absent until there was one.",
        SWITCH,
    ),
    counter("probes_total", "steps", "Steps of another plan, taken to learn its worth.", PLAN),
    gauge(
        "governor_predicted_tokens_per_second",
        "tokens/s",
        "What the governor expects of a plan that stays, at its present load; absent under bands.",
        PLAN,
    ),
    counter(
        "governor_distrusts_total",
        "times",
        "Fallbacks to AR because steps yielded far less than predicted while requests queued.",
    ),
    gauge("schedule_epoch", "", "Incarnation of the controller that issued the schedule."),
    gauge("schedule_version", "", "Version of the schedule within its epoch."),
    gauge("schedule_age_seconds", "seconds", "Time since the schedule was last received."),
    gauge("schedule_expired", "", "1 when the schedule has outlived its time to live."),
    # Work, by plan.
    counter("steps_total", "steps", "Steps of all plans, prefill included."),
    counter("plan_steps_total", "steps", "Decoding steps.", PLAN),
    counter("plan_forwards_total", "forwards", "Forward passes of decoding steps.", PLAN),
    counter("plan_sequence_steps_total", "sequence-steps", "Rows of decoding steps, summed.", PLAN),
    counter(
        "plan_rounds_total",
        "rounds",
        "Draft-and-verify rounds; for diffusion, blocks.",
        PLAN,
        vllm="spec_decode_num_drafts_total",
    ),
    counter(
        "plan_drafted_tokens_total",
        "tokens",
        "Drafted tokens.",
        PLAN,
        vllm="spec_decode_num_draft_tokens_total",
    ),
    counter(
        "plan_accepted_tokens_total",
        "tokens",
        "Drafted tokens that were accepted; what lies behind the end of an answer does not count.",
        PLAN,
        vllm="spec_decode_num_accepted_tokens_total",
    ),
    counter(
        "plan_accepted_at_position_total",
        "rounds",
        "Rounds in which this draft position was accepted, up to the end of the answer; 0 is the "
        "first.",
        (*PLAN, "position"),
        vllm="spec_decode_num_accepted_tokens_per_pos_total",
    ),
    counter(
        "plan_committed_tokens_total",
        "tokens",
        "Tokens committed by decoding.",
        PLAN,
        vllm="diffusion_num_committed_tokens_total",
    ),
    counter(
        "plan_denoising_steps_total",
        "sequence-steps",
        "Denoising passes over a sequence's block.",
        PLAN,
        vllm="diffusion_num_denoising_steps_total",
    ),
    counter(
        "plan_canvas_positions_total",
        "positions",
        "Block positions evaluated by denoising.",
        PLAN,
        vllm="diffusion_num_canvas_positions_total",
    ),
    counter("plan_seconds_total", "seconds", "Time spent in decoding steps.", PLAN),
    counter(
        "plan_mixed_seconds_total",
        "seconds",
        "Part of that in steps that also read prompts or ran another plan.",
        PLAN,
    ),
    counter(
        "plan_mixed_committed_tokens_total",
        "tokens",
        "Tokens committed in those steps; the rest is from decoding alone.",
        PLAN,
    ),
    # Requests.
    counter("prompt_tokens_total", "tokens", "Prompt tokens read.", vllm="prompt_tokens_total"),
    counter(
        "generated_tokens_total", "tokens", "Tokens generated.", vllm="generation_tokens_total"
    ),
    counter(
        "requests_total",
        "requests",
        "Finished requests.",
        ("replica", "finish_reason"),
        vllm="request_success_total",
    ),
    counter(
        "preemptions_total",
        "preemptions",
        "Sequences set back for want of KV cache.",
        vllm="num_preemptions_total",
    ),
    counter("requests_refused_total", "requests", "Requests the engine never finished.", OUTCOME),
    histogram(
        "time_to_first_token_seconds",
        "Arrival to first token.",
        LATENCY_BUCKETS,
        BY_MODE,
        vllm="time_to_first_token_seconds",
    ),
    histogram(
        "time_per_output_token_seconds",
        "A request's mean time per token after the first.",
        TOKEN_BUCKETS,
        BY_MODE,
        vllm="request_time_per_output_token_seconds",
    ),
    histogram(
        "inter_commit_seconds",
        "Gap between two deliveries, of one token or several.",
        TOKEN_BUCKETS,
        BY_MODE,
        vllm="inter_token_latency_seconds",
    ),
    histogram(
        "request_seconds",
        "Arrival to last token.",
        REQUEST_BUCKETS,
        BY_MODE,
        vllm="e2e_request_latency_seconds",
    ),
    histogram(
        "queue_seconds",
        "Arrival to admission.",
        LATENCY_BUCKETS,
        BY_MODE,
        vllm="request_queue_time_seconds",
    ),
    counter("slo_requests_total", "requests", "Requests judged against a target.", SLO),
    counter("slo_violations_total", "requests", "Requests that missed the target.", SLO),
    gauge("slo_target_seconds", "seconds", "The target; absent where none is set.", SLO),
)

CONTROLLER_METRICS: tuple[Metric, ...] = (
    gauge("replicas_known", "replicas", "Replicas registered with the controller.", ()),
    gauge("controller_epoch", "", "Incarnation of this controller.", ()),
    gauge("controller_advisory", "", "1 while decisions are shown and not applied.", ()),
    counter("decisions_total", "decisions", "Decisions, holds too.", ("policy", "reason")),
    counter("schedules_issued_total", "schedules", "New schedules; refreshes not counted.", ()),
    gauge("pinned", "", "1 while an operator's pin holds this replica."),
    gauge(
        "decided_plan",
        "",
        "1 for the plan decided on at the load last known, 0 for the others.",
        PLAN,
    ),
    gauge(
        "predicted_tokens_per_second",
        "tokens/s",
        "Throughput that the policy predicts; absent where it predicts none.",
        PLAN,
    ),
    gauge(
        "signal_age_seconds",
        "seconds",
        "Age of the last known value; absent if there never was one.",
        SIGNAL,
    ),
    gauge("signal_known", "", "1 while the signal has a value, 0 while it is missing.", SIGNAL),
    counter("scrape_errors_total", "errors", "Failures to read signals.", ("kind",)),
    histogram(
        "tick_seconds", "A round of the control loop, collecting included.", TICK_BUCKETS, ()
    ),
    gauge("last_tick_timestamp_seconds", "seconds", "Unix time of the last round.", ()),
)

CATALOGUE = (*REPLICA_METRICS, *CONTROLLER_METRICS)
BY_NAME = {metric.name: metric for metric in CATALOGUE}
"""By short name, without the prefix."""

_INTRODUCTION = """# Metrics

Generated from `replicas/catalogue.py`; change it there and run
`python -m replicas.metrics --write docs/metrics.md`.

Every replica and the controller serve their own `/metrics`. Series begin at 0 when the process
starts, so `increase()` sees the first event. Where vLLM has a name for a metric, it is exported
under that name too, with the label `model_name` in place of `replica`, `mode` and `plan`;
`spec_decode` names count self-speculation only, `diffusion` names diffusion only.
"""


def to_markdown() -> str:
    """The reference page `docs/metrics.md`."""
    lines = _INTRODUCTION.splitlines()
    for title, metrics in (("Replica", REPLICA_METRICS), ("Controller", CONTROLLER_METRICS)):
        lines += ["", f"## {title}", "", "| name | type | unit | labels | also as | meaning |"]
        lines += ["|---|---|---|---|---|---|", *map(_row, metrics)]
    lines += ["", "## Histogram buckets", "", "| name | upper bounds, seconds |", "|---|---|"]
    for metric in CATALOGUE:
        if metric.buckets:
            bounds = ", ".join(f"{bound:g}" for bound in metric.buckets)
            lines.append(f"| `{metric.full_name}` | {bounds} |")
    return "\n".join(lines) + "\n"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    alias = f"`vllm:{metric.vllm}`" if metric.vllm else ""
    cells = (f"`{metric.full_name}`", metric.type, metric.unit, labels, alias, metric.help)
    return "| " + " | ".join(cells) + " |"

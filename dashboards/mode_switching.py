"""The board "Mode switching": now, what happened, why, and was it right."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import common
from grafana_foundation_sdk.models import dashboard as model

from dashboards import panels as p
from dashboards.internals import engine_work, loop_health
from dashboards.panels import APP, RATE, SELECT, Panel, Steps, query
from dashboards.plans import SWITCH_COLOUR
from dashboards.shell import board

UID = "trimode-mode-switching"
_WARN: Steps = [(None, "text"), (1, "yellow")]
_FAIL: Steps = [(None, "green"), (1, "red")]


def mode_switching() -> dashboard.Dashboard:
    made = board(
        "Trimode / Mode switching",
        UID,
        "Which plan each replica follows, why it changed, and whether the change was right.",
    )
    rows = {
        "Now": _now(),
        "What happened": _what_happened(),
        "Why": _why(),
        "Was it right": _was_it_right(),
        "Engine": engine_work(),
        "Control loop": loop_health(),
    }
    for title, row in rows.items():
        made = made.with_row(dashboard.Row(title))
        for panel in row:
            made = made.with_panel(panel)
    return made


def _now() -> Iterator[Panel]:
    plans = f"sum by (plan) (trimode_plan_active{{{SELECT}}}) > 0"
    why = "How many replicas are in each plan now."
    yield p.by_plan(p.bars("Replicas by plan", why, plans, "{{plan}}", unit="short", w=6))

    def number(title: str, why: str, expr: str, unit: str, steps: Steps | None = None) -> Panel:
        return p.stat_panel(title, why, expr, unit=unit, steps=steps, w=3)

    yield number(
        "Engines up",
        "Replicas whose engine serves.",
        f"sum(trimode_engine_up{{{SELECT}}})",
        "short",
    )
    yield number(
        "Decoding",
        "Sequences being decoded on all selected replicas.",
        f"sum(trimode_decoding_sequences{{{SELECT}}})",
        "short",
    )
    yield number(
        "Throughput",
        "Tokens generated a second, first tokens included.",
        f"sum(rate(trimode_generated_tokens_total{{{SELECT}}}[{RATE}]))",
        p.TOKENS_PER_S,
    )
    yield number(
        "Switches",
        "Changes of plan over the selected time.",
        f"round(sum(increase(trimode_switches_total{{{SELECT}}}[$__range])))",
        "short",
    )
    yield number(
        "Worst error",
        "Largest error of predicted against measured throughput over 5 minutes, of any replica.",
        f"max(abs(replica:trimode_prediction:error_ratio5m{{{SELECT}}}))",
        "percentunit",
        [(None, "green"), (0.15, "yellow"), (0.25, "red")],
    )
    yield number(
        "Worst forgone",
        "Largest share of throughput that a plan in use gives away, by the policy's predictions.",
        f"max(replica:trimode_plan:forgone_ratio{{{SELECT}}})",
        "percentunit",
        [(None, "green"), (0.05, "yellow"), (0.10, "red")],
    )
    yield number(
        "Registered",
        "Replicas that the controller knows. Fewer than engines up: one cannot reach it.",
        f"sum(trimode_replicas_known{{{APP}}})",
        "short",
    )
    yield number(
        "Waiting",
        "Requests waiting to be admitted.",
        f"sum(trimode_waiting_sequences{{{SELECT}}})",
        "short",
    )
    yield number(
        "Pinned",
        "Replicas that an operator's pin holds in one plan.",
        f"sum(trimode_pinned{{{SELECT}}})",
        "short",
        _WARN,
    )
    yield number(
        "Advisory",
        "1 while decisions are shown and not applied.",
        f"max(trimode_controller_advisory{{{APP}}})",
        "short",
        _WARN,
    )
    yield number(
        "Expired schedules",
        "Replicas that outlived their schedule and use the safe plan.",
        f"sum(trimode_schedule_expired{{{SELECT}}})",
        "short",
        _FAIL,
    )
    yield number(
        "Last round",
        "Time since the control loop last ended a round.",
        f"max(time() - trimode_last_tick_timestamp_seconds{{{APP}}})",
        "s",
        [(None, "green"), (10, "yellow"), (30, "red")],
    )


def _what_happened() -> Iterator[Panel]:
    timeline = p.plan_timeline(
        "Plan in use",
        "One row a replica: blue is AR, green self-speculation, purple diffusion, darker the "
        "longer the block. An orange mark is a switch, with its reason.",
        f"replica:trimode_plan:code{{{SELECT}}}",
    )
    link = dashboard.DashboardLink("Latency of this replica").type(model.DashboardLinkType.LINK)
    there = "/d/trimode-latency?var-replica=${__field.labels.replica}&${__url_time_range}"
    yield timeline.data_links([link.url(there)])
    yield p.lines(
        "Concurrency",
        "Sequences being decoded and requests waiting: the load that plans are chosen by.",
        query(f"sum by (replica) (trimode_decoding_sequences{{{SELECT}}})", "{{replica}} decoding"),
        query(
            f"sum by (replica) (trimode_waiting_sequences{{{SELECT}}})",
            "{{replica}} waiting",
            ref="B",
        ),
        unit="short",
    )
    committed = f"rate(trimode_plan_committed_tokens_total{{{SELECT}}}[{RATE}])"
    yield p.by_plan(
        p.stacked(
            p.lines(
                "Throughput by plan",
                "Tokens committed a second, stacked by the plan that committed them.",
                query(f"sum by (plan) ({committed}) > 0", "{{plan}}"),
                unit=p.TOKENS_PER_S,
            )
        )
    )


def _why() -> Iterator[Panel]:
    yield p.stacked(
        p.lines(
            "Decisions by reason",
            "Every decision of the controller on every replica, holds too.",
            query(
                f"sum by (reason) (increase(trimode_decisions_total{{{APP}}}[{RATE}])) > 0",
                "{{reason}}",
            ),
            unit="short",
            w=9,
        ),
        bars=True,
    )
    changes = f"increase(trimode_plan_switches_total{{{SELECT}}}[$__range])"
    yield p.coloured(
        p.bars(
            "Switches by direction",
            "From, to and reason over the selected time, the six most frequent: worth is a better "
            "prediction, band the load, hysteresis the way back, distrust steps that yield far "
            "less than predicted, expired a schedule that nobody refreshed.",
            f"topk(6, round(sum by (from_plan, to_plan, reason) ({changes}))) > 0",
            "{{from_plan}} → {{to_plan}}, {{reason}}",
            unit="short",
            w=9,
        ).name_placement(common.BarGaugeNamePlacement.TOP),
        SWITCH_COLOUR,
    )
    yield p.lines(
        "Pins",
        "1 while an operator's pin holds the replica.",
        query(f"max by (replica) (trimode_pinned{{{SELECT}}})", "{{replica}}"),
        unit="short",
        w=6,
    ).max(1)
    yield p.plan_timeline(
        "Plan decided",
        "What the controller's schedule gives at the load it last knew. The replica's governor "
        "follows the load itself, so the timeline above may be ahead of this one.",
        f"replica:trimode_decided_plan:code{{{SELECT}}}",
        h=6,
    )


def _was_it_right() -> Iterator[Panel]:
    yield p.lines(
        "Predicted and measured throughput",
        "Predictions for the plans in use, and tokens a second in steps that only decode, over 5 "
        "minutes.",
        query(
            f"sum(replica:trimode_predicted_tokens_per_second:mean5m{{{SELECT}}})",
            "predicted",
        ),
        query(
            f"sum(replica:trimode_decoding_tokens_per_second:ratio_rate5m{{{SELECT}}})",
            "measured",
            ref="B",
        ),
        unit=p.TOKENS_PER_S,
    )
    yield p.shaded(
        p.lines(
            "Prediction error",
            "Predicted over measured, minus one. Beyond 25 % for 10 minutes raises "
            "TrimodePredictionDrift.",
            query(f"replica:trimode_prediction:error_ratio5m{{{SELECT}}}", "{{replica}}"),
            unit="percentunit",
        ),
        [(None, "red"), (-0.25, "transparent"), (0.25, "red")],
    )
    yield p.by_plan(
        p.lines(
            "Predicted throughput of every plan",
            "Mean over the selected replicas at their present load, by their governors; by the "
            "policy where those follow bands. Where two lines cross, the plan should change.",
            query(
                f"avg by (plan) (trimode_governor_predicted_tokens_per_second{{{SELECT}}}) or "
                f"avg by (plan) (trimode_predicted_tokens_per_second{{{SELECT}}})",
                "{{plan}}",
            ),
            unit=p.TOKENS_PER_S,
        )
    )
    yield p.shaded(
        p.lines(
            "Throughput forgone",
            "Share that the plan in use gives away against the best one, by prediction. Above 10 % "
            "for 10 minutes raises TrimodeThroughputForgone.",
            query(f"replica:trimode_plan:forgone_ratio{{{SELECT}}}", "{{replica}}"),
            unit="percentunit",
        ).min(0),
        [(None, "transparent"), (0.10, "red")],
    )
    yield p.by_plan(
        p.lines(
            "Tokens per forward pass",
            "Committed per sequence and forward pass, over 5 minutes: 1 for AR. Below 1, "
            "self-speculation does not pay.",
            query(
                f"avg by (plan) (replica_plan:trimode_tokens_per_forward:ratio_rate5m{{{SELECT}}})",
                "{{plan}}",
            ),
            unit="short",
            w=7,
        )
    )
    yield p.by_plan(
        p.pie(
            "Time in plan",
            "Share of replica time over the selected time.",
            f"avg by (plan) (avg_over_time(trimode_plan_active{{{SELECT}}}[$__range])) > 0",
            "{{plan}}",
            unit="percentunit",
            w=5,
        )
    )
    probes = f"sum by (plan) (rate(trimode_probes_total{{{SELECT}}}[{RATE}])) > 0"
    yield p.by_plan(
        p.lines(
            "Probes",
            "Single steps of another plan a second, which governors take to learn its worth.",
            query(probes, "{{plan}}"),
            unit="ops",
            w=7,
        )
    )
    distrusts = f"sum by (replica) (rate(trimode_governor_distrusts_total{{{SELECT}}}[{RATE}]))"
    yield p.lines(
        "Fallbacks to AR",
        "A minute: steps yielded far less than predicted while requests queued.",
        query(f"60 * {distrusts}", "{{replica}}"),
        unit="short",
        w=5,
    )

"""The board "Latency and SLO": what clients feel, by mode, and how fast the budget burns."""

from __future__ import annotations

from collections.abc import Iterator

from grafana_foundation_sdk.builders import dashboard

from dashboards import panels as p
from dashboards.panels import APP, RATE, SELECT, Panel, query
from dashboards.shell import board

UID = "trimode-latency"
SLO_BUDGET = 0.05
"""Targets are p95 (`ttft_target_s`, `tpot_target_s`), so 5 % of requests may miss them."""
HISTOGRAMS = (
    ("Time to first token", "TTFT", "Arrival to first token.", "time_to_first_token"),
    (
        "Time per output token",
        "TPOT",
        "A request's mean time per token after the first.",
        "time_per_output_token",
    ),
    (
        "Gap between deliveries",
        "Gap",
        "Between two deliveries; block modes deliver several tokens at once.",
        "inter_commit",
    ),
    ("Whole request", "Request", "Arrival to last token.", "request"),
    ("Queue", "Queue", "Arrival to admission.", "queue"),
)


def latency() -> dashboard.Dashboard:
    made = board("Trimode / Latency and SLO", UID, "What clients feel, and how the SLO fares.")
    rows = {
        "SLO": _slo(),
        "Quantiles by mode": _quantiles(),
        "Distributions": _distributions(),
        "Traffic": _traffic(),
    }
    for title, row in rows.items():
        made = made.with_row(dashboard.Row(title))
        for panel in row:
            made = made.with_panel(panel)
    return made


def _slo() -> Iterator[Panel]:
    for slo in ("ttft", "tpot"):
        of = f'{SELECT}, slo="{slo}"'
        missed, judged = (
            f"sum(increase(trimode_slo_{what}_total{{{of}}}[$__range]))"
            for what in ("violations", "requests")
        )
        yield p.stat_panel(
            f"{slo.upper()} kept",
            f"Share of requests within the {slo.upper()} target over the selected time; 95 % are "
            "meant to be.",
            f"1 - {missed} / {judged}",
            unit="percentunit",
            w=3,
            h=8,
            steps=[(None, "red"), (0.95, "yellow"), (0.97, "green")],
        )
        yield p.stat_panel(
            f"{slo.upper()} target",
            "As configured; no data where none is set.",
            f"max(trimode_slo_target_seconds{{{of}}})",
            unit="s",
            w=3,
            h=8,
        )
    burn = [
        query(
            f"slo:trimode_slo_errors:ratio_rate{window}{{{APP}}} / {SLO_BUDGET}",
            f"{{{{slo}}}} {window}",
            ref=ref,
        )
        for ref, window in zip("ABCD", ("5m", "30m", "1h", "6h"), strict=True)
    ]
    yield p.shaded(
        p.lines(
            "Burn rate",
            "1 spends exactly the budget of 5 %. 14.4 over 5 minutes and 1 hour pages; 6 over 30 "
            "minutes and 6 hours is a ticket.",
            *burn,
            unit="short",
        ),
        [(None, "transparent"), (6, "yellow"), (14.4, "red")],
    )


def _quantiles() -> Iterator[Panel]:
    for _, name, why, metric in HISTOGRAMS[:3]:
        yield p.quantiles(f"{name} p50 and p95", why, f"trimode_{metric}_seconds")
    for _, name, why, metric in HISTOGRAMS[3:]:
        yield p.quantiles(f"{name} p50 and p95", why, f"trimode_{metric}_seconds", w=12)


def _distributions() -> Iterator[Panel]:
    for title, _, why, metric in HISTOGRAMS[:3]:
        yield p.heat(title, why, f"trimode_{metric}_seconds")
    for title, _, why, metric in HISTOGRAMS[3:]:
        yield p.heat(title, why, f"trimode_{metric}_seconds", w=12)


def _traffic() -> Iterator[Panel]:
    finished = f"sum by (finish_reason) (rate(trimode_requests_total{{{SELECT}}}[{RATE}]))"
    yield p.stacked(
        p.lines(
            "Requests finished",
            "By finish reason, a second.",
            query(finished, "{{finish_reason}}"),
            unit="reqps",
            w=8,
        )
    )
    refused = f"sum by (outcome) (rate(trimode_requests_refused_total{{{SELECT}}}[{RATE}]))"
    yield p.stacked(
        p.lines(
            "Requests refused",
            "Rejected as wrong, turned away as too many, or cut off as the engine stopped.",
            query(refused, "{{outcome}}"),
            unit="reqps",
            w=8,
        )
    )
    yield p.lines(
        "Requests waiting",
        "For admission, by replica.",
        query(f"sum by (replica) (trimode_waiting_sequences{{{SELECT}}})", "{{replica}}"),
        unit="short",
        w=8,
    )

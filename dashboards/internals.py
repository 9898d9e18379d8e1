"""Rows that explain a surprise: what the engines do, and how the control loop fares."""

from __future__ import annotations

from collections.abc import Iterator

from dashboards import panels as p
from dashboards.panels import APP, RATE, SELECT, Panel, query
from dashboards.plans import MODE_COLOURS
from policies.vocabulary import Mode


def _rate(metric: str) -> str:
    return f"rate({metric}{{{SELECT}}}[{RATE}])"


def _by_plan(metric: str) -> str:
    return f"sum by (plan) ({_rate(metric)})"


def engine_work() -> Iterator[Panel]:
    steps = f"({_by_plan('trimode_plan_steps_total')} > 0)"
    yield p.by_plan(
        p.lines(
            "Step time",
            "Mean duration of a decoding step, by plan.",
            query(f"{_by_plan('trimode_plan_seconds_total')} / {steps}", "{{plan}}"),
            unit="s",
            w=8,
        )
    )
    yield p.by_plan(
        p.lines(
            "Sequences per step",
            "Mean batch of a decoding step, by plan.",
            query(f"{_by_plan('trimode_plan_sequence_steps_total')} / {steps}", "{{plan}}"),
            unit="short",
            w=8,
        )
    )
    yield p.by_plan(
        p.lines(
            "Forward passes",
            "Forward passes of decoding a second, by plan; self-speculation needs two a step.",
            query(f"{_by_plan('trimode_plan_forwards_total')} > 0", "{{plan}}"),
            unit="ops",
            w=8,
        )
    )
    rounds = f"(sum by (plan) ({_rate('trimode_plan_rounds_total')}) > 0)"
    yield p.by_plan(
        p.lines(
            "Accepted length",
            "Drafted tokens accepted a round, the bonus token not counted.",
            query(f"{_by_plan('trimode_plan_accepted_tokens_total')} / {rounds}", "{{plan}}"),
            unit="short",
            w=8,
        )
    )
    drafted = f"({_by_plan('trimode_plan_drafted_tokens_total')} > 0)"
    yield p.by_plan(
        p.lines(
            "Acceptance",
            "Share of drafted tokens that were accepted. A long block lowers it by itself; "
            "accepted length and tokens per forward pass say whether it pays.",
            query(f"{_by_plan('trimode_plan_accepted_tokens_total')} / {drafted}", "{{plan}}"),
            unit="percentunit",
            w=8,
        )
    )
    positions = f"increase(trimode_plan_accepted_at_position_total{{{SELECT}}}[$__range])"
    whole = f'increase(trimode_plan_rounds_total{{{SELECT}, mode="self_speculation"}}[$__range])'
    accepted = p.bars(
        "Acceptance by draft position",
        "Share of rounds over the selected time in which a position was accepted, of all rounds "
        "whose block is long enough; 0 is the first drafted token. The ten most often accepted.",
        f"topk(10, sum by (position) ({positions}) / sum by (position) "
        f"((0 * {positions} + 1) * on (job, replica, plan) group_left () "
        f"sum by (job, replica, plan) ({whole})))",
        "{{position}}",
        unit="percentunit",
        w=8,
    )
    yield p.coloured(accepted, MODE_COLOURS[Mode.SELF_SPECULATION])
    canvas = f"(sum by (plan) ({_rate('trimode_plan_canvas_positions_total')}) > 0)"
    diffusion = f'{SELECT}, mode="diffusion"'
    committed = f"sum by (plan) (rate(trimode_plan_committed_tokens_total{{{diffusion}}}[{RATE}]))"
    yield p.by_plan(
        p.lines(
            "Diffusion: tokens per evaluated position",
            "Committed tokens over block positions evaluated: what denoising gets out of its work.",
            query(f"{committed} / {canvas}", "{{plan}}"),
            unit="percentunit",
            w=8,
        )
    )
    blocks = f"(sum by (plan) (rate(trimode_plan_rounds_total{{{diffusion}}}[{RATE}])) > 0)"
    yield p.by_plan(
        p.lines(
            "Diffusion: denoising passes per block",
            "Passes until a block is done; the block length is the worst there can be.",
            query(f"{_by_plan('trimode_plan_denoising_steps_total')} / {blocks}", "{{plan}}"),
            unit="short",
            w=8,
        )
    )
    yield p.lines(
        "Steps",
        "Steps of all plans a second, prefill included.",
        query(f"sum by (replica) ({_rate('trimode_steps_total')})", "{{replica}}"),
        unit="ops",
        w=8,
    )
    yield p.shaded(
        p.lines(
            "KV cache",
            "Share in use. Above 95 % for 5 minutes raises TrimodeKVPressure.",
            query(f"max by (replica) (trimode_kv_use_ratio{{{SELECT}}})", "{{replica}}"),
            unit="percentunit",
            w=8,
        ).max(1),
        [(None, "transparent"), (0.95, "red")],
    )
    yield p.lines(
        "KV cache in tokens",
        "In use, there is, and context length: the difference of use and context is reserved.",
        query(f"sum(trimode_kv_used_tokens{{{SELECT}}})", "used"),
        query(f"sum(trimode_kv_capacity_tokens{{{SELECT}}})", "capacity", ref="B"),
        query(f"sum(trimode_context_tokens{{{SELECT}}})", "context", ref="C"),
        unit="short",
        w=8,
    )
    yield p.lines(
        "Preemptions",
        "Sequences set back for want of KV cache, a minute.",
        query(f"60 * sum by (replica) ({_rate('trimode_preemptions_total')})", "{{replica}}"),
        unit="short",
        w=8,
    )
    yield p.lines(
        "Prefill",
        "Prompt tokens read a second.",
        query(f"sum by (replica) ({_rate('trimode_prompt_tokens_total')})", "{{replica}}"),
        unit=p.TOKENS_PER_S,
        w=8,
    )
    yield p.lines(
        "Prompts being read",
        "Sequences in prefill.",
        query(f"sum by (replica) (trimode_prefilling_sequences{{{SELECT}}})", "{{replica}}"),
        unit="short",
        w=8,
    )
    yield p.bars(
        "Models served",
        "Replicas by the model they serve.",
        f"count by (model_name) (trimode_model_info{{{SELECT}}})",
        "{{model_name}}",
        unit="short",
        w=8,
    )


def loop_health() -> Iterator[Panel]:
    yield p.lines(
        "Age of signals",
        "Oldest scalar signal of each replica; one that is too old is missing, never zero.",
        query(
            f"max by (replica) (trimode_signal_age_seconds{{{SELECT}}})",
            "{{replica}}",
        ),
        unit="s",
        w=8,
    )
    yield p.names_only(
        p.lines(
            "Missing signals",
            "Signals without a value, by name. Latencies are missing while nobody asks anything.",
            query(f"sum by (signal) (1 - trimode_signal_known{{{SELECT}}})", "{{signal}}"),
            unit="short",
            w=8,
        )
    )
    yield p.stacked(
        p.lines(
            "Failures to read signals",
            "By kind, per round of the loop or scrape.",
            query(
                f"sum by (kind) (rate(trimode_scrape_errors_total{{{APP}}}[{RATE}]))", "{{kind}}"
            ),
            unit="ops",
            w=8,
        )
    )
    ticks = f"sum by (le) (rate(trimode_tick_seconds_bucket{{{APP}}}[{RATE}]))"
    yield p.lines(
        "Round of the control loop",
        "Collecting signals and deciding. Above 1 s at p95 raises TrimodeControlLoopSlow.",
        query(f"histogram_quantile(0.5, {ticks})", "p50"),
        query(f"histogram_quantile(0.95, {ticks})", "p95", ref="B"),
        unit="s",
        w=8,
    )
    yield p.lines(
        "Age of schedules",
        "Time since each replica last heard from the controller; a refresh counts.",
        query(f"max by (replica) (trimode_schedule_age_seconds{{{SELECT}}})", "{{replica}}"),
        unit="s",
        w=8,
    )
    yield p.lines(
        "Schedules issued",
        "New schedules a minute, and the version that each replica follows.",
        query(
            f"60 * sum(rate(trimode_schedules_issued_total{{{APP}}}[{RATE}]))",
            "issued a minute",
        ),
        query(f"max by (replica) (trimode_schedule_version{{{SELECT}}})", "{{replica}}", ref="B"),
        unit="short",
        w=8,
    )
    yield p.bars(
        "Replicas on an older controller's schedule",
        "By how much the schedule's controller is older than the one that runs; 0 is up to date. "
        "A replica that never got a schedule is left out.",
        f"(max by (job) (trimode_controller_epoch{{{APP}}}) - on (job) group_right () "
        f"max by (job, replica) (trimode_schedule_epoch{{{SELECT}}} > 0)) / 1e9",
        "{{replica}}",
        unit="s",
        w=8,
    )

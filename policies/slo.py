"""What a missed latency target does: it caps the block length, one rung at a time.

Only where a shorter block can help. A queue says that the device is saturated, and there every
rejected draft takes work from somebody else: speculation without this rule lets queues explode. A
plan that commits no more than a token a forward is dearer than AR at any load. A target missed
without either (long prompts, a slow device) would not be met with shorter blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from policies.decisions import Reason, Signals
from policies.vocabulary import BLOCK_LENGTHS, Plan

LADDER = (1, *BLOCK_LENGTHS)
"""Block lengths from AR up; a cap of 1 leaves AR only."""
NO_CAP = LADDER[-1]
TIGHTEN_S = 10.0  # the signals' window must have seen the last cap before the next
RELAX_S = 60.0  # much slower than tightening, or a load at the limit would oscillate
RELAX_BELOW = 0.8  # of the target
QUEUE = 1.0  # waiting sequences that count as a queue


@dataclass(frozen=True, slots=True)
class Targets:
    """p95 targets in seconds; None is no target."""

    ttft_s: float | None = None
    tpot_s: float | None = None


@dataclass(frozen=True, slots=True)
class Cap:
    """The longest block a plan may have, and when that last changed."""

    block_length: int = NO_CAP
    changed_at: float = -math.inf


def move(
    cap: Cap,
    signals: Signals,
    plan: Plan | None,
    targets: Targets,
    stale_after_s: float,
    now: float,
) -> tuple[Cap, Reason | None]:
    """The cap at `now` with `plan` in use (None: none yet); the reason is None where it stays."""
    if plan is None or (targets.ttft_s is None and targets.tpot_s is None):
        return cap, None
    waited_s = now - cap.changed_at
    missed = _missed(signals, plan, targets, stale_after_s)
    if missed is not None:
        rung = _rung_below(min(cap.block_length, plan.block_length))
        if waited_s >= TIGHTEN_S and rung < cap.block_length:
            return Cap(rung, now), missed
        return cap, None
    is_due = cap.block_length < NO_CAP and waited_s >= RELAX_S
    if is_due and _has_slack(signals, targets, stale_after_s):
        return Cap(LADDER[LADDER.index(cap.block_length) + 1], now), Reason.SLO_RELAXED
    return cap, None


def _missed(signals: Signals, plan: Plan, targets: Targets, stale_after_s: float) -> Reason | None:
    is_queueing = (signals.waiting.within(stale_after_s) or 0.0) >= QUEUE
    if is_queueing and _exceeds(signals.ttft_p95_s.within(stale_after_s), targets.ttft_s):
        return Reason.SLO_TTFT
    if not _exceeds(signals.tpot_p95_s.within(stale_after_s), targets.tpot_s):
        return None
    used = signals.plans.get(plan)
    gain = used.tokens_per_forward.within(stale_after_s) if used is not None else None
    return Reason.SLO_TPOT if is_queueing or (gain is not None and gain <= 1.0) else None


def _has_slack(signals: Signals, targets: Targets, stale_after_s: float) -> bool:
    ttft, tpot = signals.ttft_p95_s.within(stale_after_s), signals.tpot_p95_s.within(stale_after_s)
    return (
        signals.waiting.within(stale_after_s) == 0.0
        and not _exceeds(ttft, targets.ttft_s, RELAX_BELOW)
        and not _exceeds(tpot, targets.tpot_s, RELAX_BELOW)
    )


def _exceeds(value: float | None, target: float | None, share: float = 1.0) -> bool:
    return value is not None and target is not None and value > target * share


def _rung_below(block_length: int) -> int:
    return LADDER[max(0, LADDER.index(block_length) - 1)]

"""What a run came to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from policies.vocabulary import Plan
from replay.audit import Audited
from replay.batch import Request
from replay.counters import PLANS, SECONDS, SEQUENCE_STEPS, STEPS, TOKENS, Table, quantile
from replay.governed import Governed
from replay.replica import Chooser, Replica


@dataclass(frozen=True, slots=True)
class Outcome:
    """Times in seconds; shares from 0 to 1. `requests` are those that finished."""

    label: str
    tokens_per_s: float
    submitted: int
    requests: Sequence[Request] = field(repr=False)
    tokens: int
    switches_per_minute: float
    """Of one replica, while it works or not."""
    time_in_plan: dict[Plan, float]
    step_s: dict[Plan, float]
    """Mean duration of a step."""
    tokens_per_step: dict[Plan, float]
    """Of one sequence."""
    probe_share: float
    """Steps of probes over all steps."""
    distrusts: int
    mean_batch: float
    prefill_share: float
    audits: Sequence[Audited] = field(repr=False, default=())

    def ttft_s(self, q: float) -> float | None:
        return quantile([r.first_at - r.arrived_at for r in self.requests], q)

    def tpot_s(self, q: float) -> float | None:
        return quantile([_tpot_s(r) for r in self.requests if r.output > 1], q)

    def mean_s(self) -> float | None:
        """From arrival to the last token."""
        if not self.requests:
            return None
        return sum(r.finished_at - r.arrived_at for r in self.requests) / len(self.requests)

    def attainment(self, ttft_s: float, tpot_s: float) -> float:
        """Share of the submitted requests that kept to both targets."""
        kept = sum(
            r.first_at - r.arrived_at <= ttft_s and _tpot_s(r) <= tpot_s for r in self.requests
        )
        return kept / max(1, self.submitted)

    def to_dict(self) -> dict[str, Any]:
        """Figures without the requests."""
        return {
            "policy": self.label,
            "tokens_per_s": self.tokens_per_s,
            "submitted": self.submitted,
            "finished": len(self.requests),
            "mean_s": self.mean_s(),
            "ttft_p50_s": self.ttft_s(0.5),
            "ttft_p95_s": self.ttft_s(0.95),
            "tpot_p50_s": self.tpot_s(0.5),
            "tpot_p95_s": self.tpot_s(0.95),
            "switches_per_minute": self.switches_per_minute,
            "time_in_plan": {str(plan): share for plan, share in self.time_in_plan.items()},
            "probe_share": self.probe_share,
            "distrusts": self.distrusts,
            "mean_batch": self.mean_batch,
            "prefill_share": self.prefill_share,
        }


def _tpot_s(request: Request) -> float:
    return (request.finished_at - request.first_at) / max(1, request.output - 1)


def _ratios(total: Table, over: int, under: int) -> dict[Plan, float]:
    return {
        plan: float(row[over] / row[under])
        for plan, row in zip(PLANS, total, strict=True)
        if row[under] > 0
    }


def summarise(
    label: str,
    replicas: Sequence[Replica],
    choosers: Sequence[Chooser],
    finished: Sequence[Request],
    submitted: int,
    seconds: float,
) -> Outcome:
    """Of the counters of all replicas together."""
    total = np.sum([replica.counters.table for replica in replicas], axis=0)
    by_plan = dict(zip(PLANS, total[:, SECONDS].tolist(), strict=True))
    decoding_s = max(1e-9, sum(by_plan.values()))
    steps = max(1.0, float(total[:, STEPS].sum()))
    # Those that are still being decoded have their first token, too.
    started = len(finished) + sum(len(replica.batch) for replica in replicas)
    tokens = int(total[:, TOKENS].sum()) + started
    inner = [c.chooser if isinstance(c, Audited) else c for c in choosers]
    governors = [c.governor for c in inner if isinstance(c, Governed)]
    changes = sum(g.switches for g in governors) or sum(getattr(c, "changes", 0) for c in inner)
    prefill_s = sum(replica.prefill_s for replica in replicas)
    return Outcome(
        label=label,
        tokens_per_s=tokens / max(1e-9, seconds),
        submitted=submitted,
        requests=finished,
        tokens=tokens,
        switches_per_minute=changes / len(replicas) / max(1e-9, seconds / 60.0),
        time_in_plan={plan: s / decoding_s for plan, s in by_plan.items() if s > 0},
        step_s=_ratios(total, SECONDS, STEPS),
        tokens_per_step=_ratios(total, TOKENS, SEQUENCE_STEPS),
        probe_share=sum(sum(g.probes.values()) for g in governors) / steps,
        distrusts=sum(g.distrusts for g in governors),
        mean_batch=float(total[:, SEQUENCE_STEPS].sum()) / steps,
        prefill_share=prefill_s / max(1e-9, prefill_s + decoding_s),
        audits=[c for c in choosers if isinstance(c, Audited)],
    )

"""A core on a fake clock, whose steps take what a curve says and whose rows behave as the engine's:
a diffusion block is finished before another plan, and a sequence ends at its last token."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from policies.step_time import Curve, forwards_per_step
from policies.vocabulary import AR, Plan, Schedule, all_plans
from replicas.engine import Delta, EngineReport, FinishReason, PlanCounters, Request
from replicas.meter import Bounds

MACHINE = Curve(2e-4, 4e-5, 1e-7, 2e-8, 1e-5, 1.6e-3, 1e-3, 1.2)


@dataclass
class Row:
    request: Request
    cached: int = 0
    generated: int = 0
    block: Plan | None = None
    left: int = 0


@dataclass
class FakeCore:
    curve: Curve = MACHINE
    kv_tokens: int = 1 << 20
    noise: float = 0.0
    switch_s: float = 0.0
    accepted: float = 0.5
    """Share of a block that a step yields."""
    extra: Callable[[Plan], float] = lambda plan: 1.0
    now: float = 0.0
    rows: dict[str, Row] = field(default_factory=dict)
    queue: list[Row] = field(default_factory=list)
    bounds: Bounds = field(default_factory=lambda: Bounds(64, 2048, 512, range(3, 50)))

    def __post_init__(self) -> None:
        self.schedule = Schedule.pinned(AR)
        self.random = random.Random(7)
        self.counters = {plan: PlanCounters() for plan in all_plans()}
        self.last: Plan | None = None
        self.ended = self.most_decoding = self.steps = 0

    def clock(self) -> float:
        return self.now

    def submit(self, request: Request) -> None:
        self.queue.append(Row(request))

    def cancel(self, request_id: str) -> Delta | None:
        self.queue = [row for row in self.queue if row.request.request_id != request_id]
        if self.rows.pop(request_id, None) is None:
            return None
        return Delta(request_id, (), "", None, FinishReason.CANCELLED)

    def set_schedule(self, schedule: Schedule) -> None:
        assert schedule.order > self.schedule.order
        self.schedule = schedule

    def step(self) -> list[Delta]:
        self.steps += 1
        self._admit()
        decoding = [row for row in self.rows.values() if row.cached]
        by_plan: dict[Plan, list[Row]] = {}
        for row in decoding:
            by_plan.setdefault(row.block or self.schedule.bands[0].plan, []).append(row)
        for plan, rows in by_plan.items():
            self._decode(plan, rows, len(decoding))
        self._prefill()
        self.most_decoding = max(self.most_decoding, len(decoding))
        return []

    def report(self) -> EngineReport:
        decoding = [row for row in self.rows.values() if row.cached]
        return EngineReport(
            decoding=len(decoding),
            prefilling=len(self.rows) - len(decoding),
            waiting=len(self.queue),
            kv_tokens_used=0,
            kv_tokens_total=self.kv_tokens,
            context_tokens=sum(row.cached for row in decoding),
            plan=self.schedule.bands[0].plan,
            schedule=self.schedule,
            schedule_age_s=0.0,
            switches=0,
            preemptions=0,
            steps=self.steps,
            prompt_tokens=0,
            generated_tokens=0,
            finished={},
            plans=dict(self.counters),
        )

    def _admit(self) -> None:
        while self.queue:
            needed = sum(len(r.request.prompt_token_ids) for r in [*self.rows.values()])
            if needed + len(self.queue[0].request.prompt_token_ids) > self.kv_tokens:
                return
            row = self.queue.pop(0)
            self.rows[row.request.request_id] = row

    def _prefill(self) -> None:
        budget = self.bounds.max_step_tokens
        for row in self.rows.values():
            length = len(row.request.prompt_token_ids)
            if not row.cached and budget > 0:
                budget -= length  # a fake prompt is prefilled in one piece
                row.cached = length
                self.now += self.curve.prefill_s(length)

    def _decode(self, plan: Plan, rows: list[Row], decoding: int) -> None:
        context = sum(row.cached for row in rows)
        forward_s = self.curve.forward_s(len(rows), plan.block_length, context)
        took = forwards_per_step(plan) * forward_s * self.extra(plan)
        took *= 1 + self.noise * abs(self.random.gauss(0, 1))
        if self.last not in (None, plan):
            took += self.switch_s
        self.last = plan
        self.now += took
        old = self.counters[plan]
        self.counters[plan] = PlanCounters(
            steps=old.steps + 1,
            sequence_steps=old.sequence_steps + len(rows),
            seconds=old.seconds + took * len(rows) / decoding,
        )
        for row in rows:
            self._advance(row, plan)

    def _advance(self, row: Row, plan: Plan) -> None:
        if not plan.is_exact:
            row.left = row.left or plan.block_length
            row.left -= 1
            row.block = plan if row.left else None
        tokens = 1 if not plan.is_exact else max(1, int(self.accepted * plan.block_length))
        row.cached += tokens
        row.generated += tokens
        if row.generated >= row.request.sampling.max_tokens:
            self.ended += 1
            del self.rows[row.request.request_id]

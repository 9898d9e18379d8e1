"""Engines that decode nothing: made-up speeds, the product's own governor, an honest report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from policies.step_time import Curve, Fingerprint, Profile
from policies.vocabulary import BLOCK_LENGTHS, Mode, Plan, all_plans
from policies.worth import Worth
from replicas.engine import EngineReport, PlanCounters
from replicas.governor import Governor

STEP_S = 3
MIXED_S = 0.2
"""Of those, in steps that also read prompts, at half the speed."""
OVERHEAD_S, POSITION_S = 0.012, 3e-5
ACCEPTANCE = 0.8
KV_TOKENS = 65536
MAX_SEQUENCES = 58


@dataclass(slots=True)
class Hardware:
    """How fast a plan is and how much it commits; the truth that predictions aim at."""

    acceptance: float = ACCEPTANCE

    def step_s(self, plan: Plan, sequences: float) -> float:
        forwards = 2 if plan.mode is Mode.SELF_SPECULATION else 1
        return forwards * (OVERHEAD_S + POSITION_S * sequences * plan.block_length)

    def tokens_per_step(self, plan: Plan) -> float:
        if plan.mode is Mode.AR:
            return 1.0
        if plan.mode is Mode.SELF_SPECULATION:
            return 1.0 + sum(self.accepted(plan))
        return 0.9 * math.sqrt(plan.block_length)

    def accepted(self, plan: Plan) -> tuple[float, ...]:
        """Probability that each drafted position is accepted."""
        return tuple(self.acceptance ** (i + 1) for i in range(plan.block_length - 1))

    def tokens_per_s(self, plan: Plan, sequences: float) -> float:
        return sequences * self.tokens_per_step(plan) / self.step_s(plan, sequences)


def calibrated() -> Worth:
    """What calibrating this hardware gives, and its usual acceptance; nothing is learned after."""
    curve = Curve(0.0, POSITION_S, 0.0, 0.0, 0.0, OVERHEAD_S)
    profile = Profile("simulated", Fingerprint("none", "demo", "none", "none"), "measured", curve)
    chances = (ACCEPTANCE,) * (BLOCK_LENGTHS[-1] - 1)
    plans = tuple(plan for plan in all_plans() if plan.is_exact)
    return Worth(plans, profile, chances, learns=False)


@dataclass(slots=True)
class SimulatedEngine:
    """What the exporter asks of an engine: a report and its health."""

    name: str
    governor: Governor
    hardware: Hardware = field(default_factory=Hardware)
    now: float = 0.0
    decoding: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    preemptions: int = 0
    plans: dict[Plan, PlanCounters] = field(default_factory=dict)

    def check_health(self) -> None:
        pass

    def report(self) -> EngineReport:
        kv_used = min(KV_TOKENS, self.decoding * 1100)
        return EngineReport(
            decoding=self.decoding,
            prefilling=min(2, self.waiting),
            waiting=self.waiting,
            kv_tokens_used=kv_used,
            kv_tokens_total=KV_TOKENS,
            context_tokens=self.decoding * 900,
            plan=self.governor.plan,
            schedule=self.governor.schedule,
            schedule_age_s=self.now - self.governor.received_at,
            switches=self.governor.switches,
            preemptions=self.preemptions,
            steps=round(1.05 * sum(counters.steps for counters in self.plans.values())),
            prompt_tokens=self.prompt_tokens,
            generated_tokens=sum(counters.committed for counters in self.plans.values()),
            finished=self.finished,
            plans=self.plans,
            probes=self.governor.probes,
            predicted=self.governor.predicted,
            distrusts=self.governor.distrusts,
        )

    def step(self, now: float, load: int) -> None:
        """`STEP_S` seconds of work at a load."""
        self.now, self.decoding = now, min(load, MAX_SEQUENCES)
        self.waiting = load - self.decoding
        self.governor.pick(self.decoding, now, self.decoding * 900, self.waiting)
        plan = self.governor.plan  # probes are few steps of very many
        if not self.decoding:
            return
        if self.waiting:
            self.preemptions += 1
        was = self.plans.get(plan, PlanCounters())
        steps = round(STEP_S / self.hardware.step_s(plan, self.decoding))
        rows = steps * self.decoding
        committed = round(rows * self.hardware.tokens_per_step(plan))
        is_drafting = plan.mode is Mode.SELF_SPECULATION
        is_denoising = plan.mode is Mode.DIFFUSION
        rounds = rows if is_drafting else committed // plan.block_length if is_denoising else 0
        accepted = tuple(round(rows * share) for share in self.hardware.accepted(plan))
        before = was.accepted or (0,) * len(accepted)
        self.plans[plan] = replace(
            was,
            steps=was.steps + steps,
            forwards=was.forwards + steps * (2 if is_drafting else 1),
            sequence_steps=was.sequence_steps + rows,
            rounds=was.rounds + rounds,
            drafted=was.drafted + (rows * (plan.block_length - 1) if is_drafting else 0),
            accepted=tuple(map(sum, zip(before, accepted, strict=True))) if is_drafting else (),
            committed=was.committed + committed,
            denoising_steps=was.denoising_steps + (rows - rounds if is_denoising else 0),
            seconds=was.seconds + STEP_S,
            mixed_seconds=was.mixed_seconds + MIXED_S,
            mixed_committed=was.mixed_committed + round(committed * MIXED_S / STEP_S / 2),
        )

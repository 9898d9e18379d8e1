"""The exactness rules of the engine, tried on the device: exact plans must all yield AR's tokens.

The demo model in float32, TF32 off, several requests of different lengths at once, without graphs
and with them. Every row of the report is one run compared with AR without graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

import torch

from benchmarks.workload import Workload
from policies.vocabulary import AR, BLOCK_LENGTHS, Mode, Plan, Schedule
from replicas.engine import Request, SamplingParams
from replicas.torch_engine.checkpoint import Checkpoint
from replicas.torch_engine.cuda_graphs import Capture, Run
from replicas.torch_engine.engine import EngineLimits, TorchEngine, positions_needed
from replicas.torch_engine.model import Model

_LIMITS = EngineLimits(max_context_tokens=512, kv_tokens=16384)
_EXACT = (AR, *(Plan(Mode.SELF_SPECULATION, length) for length in BLOCK_LENGTHS))

PlanAt = Callable[[int], Plan]


@dataclass(frozen=True, slots=True)
class Check:
    """One run: how many of its requests differ from AR's, and how many shapes were captured."""

    name: str
    sampled: bool
    graphs: bool
    requests: int
    tokens: int
    different: int
    captures: int

    @property
    def ok(self) -> bool:
        return self.different == 0 and (self.captures > 0) == self.graphs

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ok": self.ok}


def check_exactness(
    checkpoint: Checkpoint,
    workload: Workload,
    device: torch.device,
    capture: Capture,
    *,
    plans: tuple[Plan, ...] = _EXACT,
) -> list[Check]:
    """Greedy and sampled; each plan, and a random plan at every step; graphs off and on."""
    torch.set_float32_matmul_precision("highest")  # no TF32
    model = Model(
        checkpoint.config,
        checkpoint.weights,
        max_positions=positions_needed(_LIMITS),
        dtype=torch.float32,
        device=device,
    )
    checks = []
    for temperature in (0.0, 0.8):
        requests = _requests(workload, temperature)
        reference, _ = _decode(model, requests, lambda _: AR, None)
        for graphs in (False, True):
            for name, plan_at in _schedules(plans):
                outputs, captures = _decode(model, requests, plan_at, capture if graphs else None)
                different = sum(outputs[key] != reference[key] for key in reference)
                tokens = sum(map(len, outputs.values()))
                checks.append(
                    Check(name, temperature > 0, graphs, len(requests), tokens, different, captures)
                )
    return checks


def _schedules(plans: tuple[Plan, ...]) -> list[tuple[str, PlanAt]]:
    """The plan of each step, by step number."""

    def always(plan: Plan) -> PlanAt:
        return lambda _: plan

    def random(step: int) -> Plan:
        return Random(step).choice(plans)

    return [*((str(plan), always(plan)) for plan in plans), ("a random plan every step", random)]


def _requests(workload: Workload, temperature: float) -> list[Request]:
    return [
        Request(
            str(i),
            prompt,
            SamplingParams(workload.max_tokens, temperature, top_p=0.95, top_k=40, seed=i),
        )
        for i, prompt in enumerate(workload.prompts)
    ]


def _decode(
    model: Model, requests: list[Request], plan_at: PlanAt, capture: Capture | None
) -> tuple[dict[str, list[int]], int]:
    """Tokens by request, and the number of captures."""
    captured = 0

    def counting(run: Run) -> Run:
        nonlocal captured
        assert capture is not None
        captured += 1
        return capture(run)

    engine = TorchEngine(model, None, _LIMITS, capture=counting if capture is not None else None)
    outputs: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for request in requests:
        engine.submit(request)
    step = 0
    while engine.has_work:
        step += 1
        engine.set_schedule(Schedule.pinned(plan_at(step), version=step))
        for delta in engine.step():
            outputs[delta.request_id].extend(delta.token_ids)
    return outputs, captured

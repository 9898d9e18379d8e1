"""Driving an engine to the end of its requests, and what came out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from policies.vocabulary import Plan, Quality, Schedule
from replicas.engine import Delta, FinishReason, Request, SamplingParams
from replicas.torch_engine.engine import TorchEngine

SPECULATION = tuple(Plan.parse(f"self_speculation/{n}") for n in (4, 8, 16, 32))
DIFFUSION = tuple(Plan.parse(f"diffusion/{n}") for n in (4, 8, 16, 32))
EXACT = (Plan.parse("ar"), *SPECULATION)


@dataclass
class Outcome:
    """Everything one request's deltas said."""

    deltas: list[Delta] = field(default_factory=list)

    @property
    def tokens(self) -> tuple[int, ...]:
        return tuple(t for d in self.deltas for t in d.token_ids)

    @property
    def text(self) -> str:
        return "".join(d.text for d in self.deltas)

    @property
    def reason(self) -> FinishReason | None:
        return self.deltas[-1].finish_reason if self.deltas else None

    @property
    def plans(self) -> set[Plan]:
        return {d.plan for d in self.deltas if d.plan is not None}


def request(
    name: str,
    prompt: Iterable[int],
    max_tokens: int = 32,
    *,
    plan: Plan | None = None,
    quality: Quality = Quality.EXACT,
    **sampling,
) -> Request:
    """A request that ignores end-of-sequence unless told otherwise."""
    params = SamplingParams(max_tokens=max_tokens, **{"ignore_eos": True, **sampling})
    return Request(name, tuple(prompt), params, quality=quality, plan=plan)


def drain(
    engine: TorchEngine,
    before_step: Callable[[int], None] = lambda step: None,
    outcomes: dict[str, Outcome] | None = None,
    max_steps: int = 5000,
) -> dict[str, Outcome]:
    """Steps until nothing is left; `before_step(i)` may submit, cancel and change the schedule."""
    outcomes = defaultdict(Outcome) if outcomes is None else outcomes
    for step in range(max_steps):
        before_step(step)
        if not engine.has_work:
            return outcomes
        for delta in engine.step():
            outcomes[delta.request_id].deltas.append(delta)
    raise AssertionError(f"still {engine.report()} after {max_steps} steps")


def run_all(engine: TorchEngine, requests: Iterable[Request]) -> dict[str, Outcome]:
    for each in requests:
        engine.submit(each)
    return drain(engine)


def pin(engine: TorchEngine, plan: Plan, version: int = 0) -> None:
    engine.set_schedule(Schedule.pinned(plan, version=version))


def assert_empty(engine: TorchEngine) -> None:
    """Nothing is left behind in rows, queue or pool."""
    report = engine.report()
    assert (report.decoding, report.prefilling, report.waiting) == (0, 0, 0)
    assert (report.kv_tokens_used, report.context_tokens) == (0, 0)

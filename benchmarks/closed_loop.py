"""One plan at one concurrency, closed loop: a finished request is replaced at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.workload import Workload
from policies.vocabulary import Plan, Schedule
from replicas.engine import Delta
from replicas.torch_engine.engine import EngineLimits, TorchEngine

_FEWEST_DECODE_STEPS = 10


@dataclass(slots=True)
class LoopRun:
    """What a measured window saw. A decode step is one with nothing to prefill."""

    tokens: int = 0
    seconds: float = 0.0
    decode_tokens: int = 0
    decode_steps: list[float] = field(default_factory=list)
    outputs: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """Tokens by prompt number, of the requests that started and finished in the window."""

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds

    @property
    def decode_rate(self) -> float | None:
        """None where hardly a step went by without a prompt to prefill."""
        enough = len(self.decode_steps) >= _FEWEST_DECODE_STEPS
        return self.decode_tokens / sum(self.decode_steps) if enough else None


class ClosedLoop:
    """Keeps `concurrency` requests of a workload in the engine.

    `before_step` runs inside the timed part of every step (for schedules that change).
    """

    def __init__(
        self,
        engine: TorchEngine,
        workload: Workload,
        concurrency: int,
        before_step: Callable[[], None] | None = None,
    ) -> None:
        self.engine, self.workload, self.concurrency = engine, workload, concurrency
        self.before_step = before_step
        self._next = 0
        self._partial: dict[str, list[int]] = {}
        for _ in range(concurrency):
            self._submit()

    def run(self, requests: int) -> LoopRun:
        """Until `concurrency` requests have finished (not measured), then until `requests` more."""
        self._advance(None, self.concurrency)
        for tokens in self._partial.values():
            tokens.insert(0, -1)  # began before the window: its tokens are counted, not compared
        window = LoopRun()
        started = time.perf_counter()
        self._advance(window, requests)
        window.seconds = time.perf_counter() - started
        return window

    def steps(self, count: int) -> LoopRun:
        """`count` steps, whatever finishes."""
        window = LoopRun()
        for _ in range(count):
            self._step(window)
        return window

    def close(self) -> None:
        for request_id in self._partial:
            self.engine.cancel(request_id)
        self._partial.clear()

    def _advance(self, window: LoopRun | None, requests: int) -> None:
        while requests > 0:
            requests -= self._step(window)

    def _step(self, window: LoopRun | None) -> int:
        """One step; returns how many requests it finished."""
        scheduler = self.engine.scheduler
        decoding_only = not scheduler.waiting and scheduler.num_decoding == len(scheduler.running)
        started = time.perf_counter()
        if self.before_step is not None:
            self.before_step()
        deltas = self.engine.step()
        took = time.perf_counter() - started
        count = sum(len(delta.token_ids) for delta in deltas)
        if window is not None:
            window.tokens += count
            if decoding_only:
                window.decode_tokens += count
                window.decode_steps.append(took)
        return sum(self._take(delta, window) for delta in deltas)

    def _take(self, delta: Delta, window: LoopRun | None) -> bool:
        tokens = self._partial[delta.request_id]
        tokens.extend(delta.token_ids)
        if delta.finish_reason is None:
            return False
        del self._partial[delta.request_id]
        if window is not None and tokens[0] >= 0:
            prompt = int(delta.request_id) % len(self.workload.prompts)
            window.outputs[prompt] = tuple(tokens)
        self._submit()
        return True

    def _submit(self) -> None:
        request = self.workload.request(self._next)
        self._next += 1
        self._partial[request.request_id] = []
        self.engine.submit(request)


def measure(
    engine: TorchEngine, workload: Workload, plan: Plan, concurrency: int, requests: int
) -> LoopRun:
    """Pins the plan, runs one closed loop and leaves the engine empty."""
    pin(engine, plan)
    loop = ClosedLoop(engine, workload, concurrency)
    try:
        return loop.run(requests)
    finally:
        loop.close()


def pin(engine: TorchEngine, plan: Plan) -> None:
    version = engine.governor.schedule.version + 1
    engine.set_schedule(Schedule.pinned(plan, version=version))


def limits_for(levels: list[int]) -> EngineLimits:
    """The engine's defaults, with room for the highest level."""
    default = EngineLimits()
    return EngineLimits(max_sequences=max(*levels, default.max_sequences))


def set_threads(threads: int) -> None:
    if threads:
        torch.set_num_threads(threads)

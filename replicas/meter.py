"""An engine's core held at one load: which plan it runs, and what one step of that takes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from policies.vocabulary import AR, Plan, Schedule
from replicas.engine import Delta, EngineReport, Request, SamplingParams

CONTEXTS = (64, 512, 4096, 32768)
ROOM = 256  # tokens that sequences may grow by during a visit
FILL_STEPS_SPARE = 64  # above those that prefill needs


class Core(Protocol):
    """What is measured: `TorchEngine`, or something that behaves like it."""

    def submit(self, request: Request) -> None: ...
    def cancel(self, request_id: str) -> Delta | None: ...
    def set_schedule(self, schedule: Schedule) -> None: ...
    def step(self) -> list[Delta]: ...
    def report(self) -> EngineReport: ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a core takes: sequences, context and step length in tokens, and usable token ids."""

    max_sequences: int
    max_context_tokens: int
    max_step_tokens: int
    token_ids: Sequence[int]


@dataclass(frozen=True, slots=True)
class Load:
    """Sequences that decode together, and the prompt tokens of each."""

    sequences: int
    length: int

    @property
    def context_tokens(self) -> int:
        return self.sequences * self.length


def loads(bounds: Bounds) -> list[Load]:
    """Small and coarse first: batches in steps of four and contexts in steps of eight, so that a
    short survey sees both grow; then the batches between."""
    longest = bounds.max_context_tokens - ROOM
    lengths = [length for length in CONTEXTS if length <= longest] or [max(1, longest // 2)]
    if longest >= 2 * lengths[-1]:
        lengths.append(longest)
    powers = [2**i for i in range(1 + int(math.log2(bounds.max_sequences)))]
    between = sorted({*powers[1::2], bounds.max_sequences} - {*powers[::2]})
    ranked = [
        (i + j, n, length) for i, n in enumerate(powers[::2]) for j, length in enumerate(lengths)
    ]
    ranked += [
        (i + j + 2, n, length) for i, n in enumerate(between) for j, length in enumerate(lengths)
    ]
    return [Load(n, length) for _, n, length in sorted(ranked)]


class Meter:
    """A core at one load: which plan it runs, and what a step of that took."""

    def __init__(self, core: Core, bounds: Bounds, timer: Callable[[], float]) -> None:
        self._core, self._bounds, self._timer = core, bounds, timer
        self._random = random.Random(0)
        self._names = (f"calibration-{i}" for i in itertools.count())
        self._requests: list[str] = []
        self._version = core.report().schedule.version
        self.plan = AR

    def fill(self, load: Load) -> bool:
        """Replaces what decodes; False if the core cannot hold so much."""
        self.empty()
        self.pin(AR)
        sampling = SamplingParams(
            max_tokens=self._bounds.max_context_tokens - load.length, ignore_eos=True
        )
        for _ in range(load.sequences):
            name = next(self._names)
            prompt = tuple(self._random.choices(self._bounds.token_ids, k=load.length))
            self._core.submit(Request(name, prompt, sampling))
            self._requests.append(name)
        steps = load.context_tokens // self._bounds.max_step_tokens + FILL_STEPS_SPARE
        for _ in range(steps):
            self._core.step()
            report = self._core.report()
            if report.decoding == load.sequences:
                return True
            if report.waiting:
                break  # what has not been admitted by now does not fit
        self.empty()
        return False

    def empty(self) -> None:
        for name in self._requests:
            self._core.cancel(name)
        self._requests.clear()

    def pin(self, plan: Plan) -> None:
        self._version += 1
        self._core.set_schedule(Schedule.pinned(plan, version=self._version))
        self.plan = plan

    def step(self) -> tuple[float, int] | None:
        """Seconds of a step and tokens cached before it; None unless all sequences ran the plan."""
        before = self._core.report()
        began = self._timer()
        self._core.step()
        took_s = self._timer() - began
        old, new = before.plans[self.plan], self._core.report().plans[self.plan]
        if new.sequence_steps - old.sequence_steps != len(self._requests):
            return None
        return took_s, before.context_tokens

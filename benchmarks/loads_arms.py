"""The arms of `benchmarks.loads`: engines whose clocks stand still while others run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from benchmarks.adaptive_analysis import ADAPTIVE
from benchmarks.adaptive_load import MAX_TOKENS, pools
from benchmarks.adaptive_scenarios import MIXED, MOST
from benchmarks.workload import chat_tokens
from policies.vocabulary import Plan, Schedule
from replicas.engine import Request, SamplingParams
from replicas.torch_engine.checkpoint import Checkpoint
from replicas.torch_engine.engine import EngineLimits, TorchEngine
from replicas.torch_engine.model import Model


@dataclass(slots=True)
class Stopwatch:
    """The seconds that one engine has run."""

    clock: Callable[[], float] = time.perf_counter
    _run_s: float = 0.0
    _since: float | None = None

    def __call__(self) -> float:
        return self._run_s + (0.0 if self._since is None else self.clock() - self._since)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._since = self.clock()
        yield
        self._run_s, self._since = self(), None


@dataclass(slots=True)
class Arm:
    """An engine in one plan, or left to its governor, and its clients: as many as `level` requests,
    each replaced when it ends. Those that run when the level falls are left to end."""

    name: str
    engine: TorchEngine
    clock: Stopwatch
    pools: Mapping[str, Sequence[tuple[tuple[int, ...], SamplingParams]]]
    level: int = 0
    kind: str = MIXED
    _running: int = 0
    _next: int = 0
    _named: int = 0

    def set(self, level: int, kind: str) -> None:
        self.level, self.kind = level, kind

    def restart(self) -> None:
        """The next requests are the first ones of their pools, so that arms are asked alike."""
        self._next = 0

    def run(self, seconds: float) -> float:
        """Tokens/s over so long."""
        with self.clock.running():
            began, tokens = self.clock(), 0
            while (took := self.clock() - began) < seconds:
                tokens += self._step()
        return tokens / took

    def drain(self) -> None:
        self.level = 0
        with self.clock.running():
            while self._running:
                self._step()

    def _step(self) -> int:
        while self._running < self.level:
            pool = self.pools[self.kind]
            prompt, sampling = pool[self._next % len(pool)]
            self.engine.submit(Request(str(self._named), prompt, sampling))
            self._next, self._named, self._running = (
                self._next + 1,
                self._named + 1,
                self._running + 1,
            )
        deltas = self.engine.step()
        self._running -= sum(delta.finish_reason is not None for delta in deltas)
        return sum(len(delta.token_ids) for delta in deltas)


def arms_of(model: Model, checkpoint: Checkpoint, adaptive: Schedule) -> list[Arm]:
    """One for every plan of the schedule's worth, and one that follows it."""
    assert adaptive.worth is not None
    requests, limits = pooled(checkpoint), EngineLimits(max_sequences=MOST)
    arms = []
    for name in (*map(str, adaptive.worth.plans), ADAPTIVE):
        pinned = adaptive if name == ADAPTIVE else Schedule.pinned(Plan.parse(name))
        schedule = replace(pinned, ttl_s=math.inf)
        clock = Stopwatch()
        engine = TorchEngine(model, None, limits, schedule=schedule, clock=clock)
        arms.append(Arm(name, engine, clock, requests))
    return arms


def pooled(checkpoint: Checkpoint) -> dict[str, list[tuple[tuple[int, ...], SamplingParams]]]:
    """The requests of `benchmarks.adaptive`, as tokens."""
    return {
        kind: [
            (
                tuple(chat_tokens(checkpoint, ask.prompt)),
                SamplingParams(max_tokens=MAX_TOKENS, temperature=ask.temperature, seed=ask.seed),
            )
            for ask in asks
        ]
        for kind, asks in pools().items()
    }

"""One simulated replica: admission, continuous batching, prefill, decoding under its governor.

Steps are advanced many at once. A chunk is some steps of one plan over one batch: their yields are
drawn row by row and step by step, exactly, and the chunk ends with the first step in which a
sequence finishes, or after `CHUNK_S`. An arrival cuts it short at the end of the step in progress.
So the governor picks at every event that a real one would react to, and every `CHUNK_S` besides.

Simplified: K/V room for the whole answer is reserved at admission, and prefill runs in steps of its
own, before decoding. Nothing is ever preempted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import numpy as np

from policies.observation import Drafted, StepObservation
from policies.vocabulary import Mode, Plan
from replay.batch import Batch, Draw, Request
from replay.counters import Counters
from replay.random_pool import Pool
from replay.traffic import Requests
from replay.world import World

CHUNK_S = 0.2  # longest time for which a plan runs unasked
MAX_DRAWN = 2048  # rows times steps of one chunk
PREFILL_TOKENS = 8192  # of one prefill step; a longer prompt is one step
PROBED_BLOCK_TOKENS = 2.0  # a forward: what a diffusion probe takes to finish its block


class Chooser(Protocol):
    """Picks the plan of every step: a governor, or an oracle. `pays`: whether a change of plan
    takes time."""

    pays: bool

    @property
    def plan(self) -> Plan:
        """The plan in use; a probe is steps of another and does not change it."""
        ...

    def pick(self, replica: Replica, now: float) -> Plan: ...

    def observe(self, step: StepObservation, now: float) -> None: ...


@dataclass(slots=True)
class Chunk:
    """Steps under way; the first `steps` of the draw will count. `ends` are when each step ends."""

    plan: Plan
    draw: Draw
    started: float
    ends: list[float]
    steps: int


class Replica:
    """`traffic` says how well a request's drafts are accepted, at the time of its admission."""

    def __init__(
        self,
        name: str,
        world: World,
        chooser: Chooser,
        traffic: Requests,
        seed: tuple[int, ...],
        *,
        prefills: bool,
    ) -> None:
        self.name, self.world, self.chooser, self.prefills = name, world, chooser, prefills
        self.counters = Counters()
        self.batch = Batch(world.truth.max_sequences, traffic.kinds)
        self.waiting: deque[Request] = deque()
        self.finished: list[Request] = []
        """Since somebody last took them."""
        self.kv_reserved = 0
        self.version = 0
        """Of the event that is due next; an older one is void."""
        self.prefill_s = 0.0
        self._class_of = traffic.class_of
        self._pool = Pool(seed)
        self._chunk: Chunk | None = None
        self._prefilling: list[Request] = []
        self._plan = chooser.plan

    @property
    def in_flight(self) -> int:
        return len(self.batch) + len(self.waiting) + len(self._prefilling)

    @property
    def prefilling(self) -> int:
        return len(self._prefilling)

    def submit(self, request: Request, now: float) -> float | None:
        """Takes a request; returns when this replica is next due, if that has changed."""
        is_idle = self._chunk is None and not self._prefilling
        self.waiting.append(request)
        if is_idle:
            return self.advance(now)
        if self._chunk is not None and len(self.waiting) == 1 and self._has_room(request):
            return self._cut(self._chunk, now)
        return None

    def advance(self, now: float) -> float | None:
        """Does what is due; returns when the next thing is, None while there is nothing to do."""
        self.version += 1
        if self._chunk is not None:
            self._settle(self._chunk, now)
        for request in self._prefilling:
            self._begin_decoding(request, now)
        self._prefilling = []
        self._admit(now)
        if self._prefilling:
            duration_s = self._prefill_s()
            self.prefill_s += duration_s
            return now + duration_s
        return self._decode(now) if len(self.batch) else None

    # -- admission ------------------------------------------------------------------------------

    def _has_room(self, request: Request) -> bool:
        truth = self.world.truth
        rows = len(self.batch) + len(self._prefilling)
        needed = request.prompt + request.output
        return rows < truth.max_sequences and self.kv_reserved + needed <= truth.kv_tokens

    def _admit(self, now: float) -> None:
        tokens = 0
        while self.waiting and tokens < PREFILL_TOKENS and self._has_room(self.waiting[0]):
            request = self.waiting.popleft()
            self.kv_reserved += request.prompt + request.output
            if self.prefills:
                tokens += request.prompt - request.cached
                self._prefilling.append(request)
            else:
                self._begin_decoding(request, now)

    def _prefill_s(self) -> float:
        new = sum(r.prompt - r.cached for r in self._prefilling)
        # One sequence that attends to as much as these do together.
        scores = sum((r.prompt - r.cached) * (r.prompt + r.cached) / 2 for r in self._prefilling)
        return self.world.prefill_s(new, max(0.0, scores / new - new / 2))

    def _begin_decoding(self, request: Request, now: float) -> None:
        request.first_at = now
        if request.output == 1:
            self._finish(request, now)
        else:
            self.batch.add(request, self._class_of(request.number, now))

    def _finish(self, request: Request, now: float) -> None:
        request.finished_at = now
        self.kv_reserved -= request.prompt + request.output
        self.finished.append(request)
        per_token = (now - request.first_at) / max(1, request.output - 1)
        self.counters.requests.append((now, request.first_at - request.arrived_at, per_token))

    # -- decoding -------------------------------------------------------------------------------

    def _decode(self, now: float) -> float:
        plan = self.chooser.pick(self, now)
        rows = len(self.batch)
        step_s = self.world.step_s(plan, rows, self.batch.context)
        started = now
        if self.chooser.pays and plan == self.chooser.plan != self._plan:
            now += self.world.truth.switch_s
        draw = self.batch.draw(plan, self._steps(plan, step_s), self._pool)
        self._plan = self.chooser.plan
        noise = self.world.noise
        low, width = step_s * (1.0 - noise), step_s * 2.0 * noise
        durations = [low + width * u for u in self._pool.uniforms(draw.steps).tolist()]
        ends: list[float] = list(accumulate(durations, initial=now))[1:]
        self._chunk = Chunk(plan, draw, started, ends, draw.steps)
        return ends[-1]

    def _steps(self, plan: Plan, step_s: float) -> int:
        """How many steps may go by before the next pick, if nothing happens."""
        if plan != self.chooser.plan:  # a probe is picked step by step, in diffusion by the block
            is_block = plan.mode is Mode.DIFFUSION
            return round(plan.block_length / PROBED_BLOCK_TOKENS) if is_block else 1
        if self.chooser.pays and plan != self._plan:
            return 1  # what the change costs must not be told as the cost of many steps
        fitting = min(int(CHUNK_S / step_s), MAX_DRAWN // len(self.batch))
        return max(1, min(fitting, self.batch.shortest()))

    def _cut(self, chunk: Chunk, now: float) -> float | None:
        """Ends the chunk with the step in progress."""
        steps = min(bisect_left(chunk.ends, now) + 1, chunk.steps)
        if steps == chunk.steps:
            return None
        chunk.steps = steps
        self.version += 1
        return chunk.ends[steps - 1]

    def _settle(self, chunk: Chunk, now: float) -> None:
        self._chunk = None
        steps, rows, context = chunk.steps, len(self.batch), self.batch.context
        tokens, finished = self.batch.take(chunk.draw, steps)
        seconds = chunk.ends[steps - 1] - chunk.started
        drawn = chunk.draw.kept
        kept = [0, steps * rows] if drawn is None else np.bincount(drawn[:steps].ravel()).tolist()
        self.counters.count(chunk.plan, steps, rows, seconds, tokens, kept)
        step = StepObservation(
            chunk.plan,
            rows,
            context,
            seconds,
            (),
            steps=steps,
            counts=kept,
            answers=len(finished),
            ended=Drafted([r.tried for r in finished], [r.accepted for r in finished]),
        )
        self.chooser.observe(step, now)
        for request in finished:
            self._finish(request, now)

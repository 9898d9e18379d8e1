"""Which sequences run in the next step, and where their K/V live.

First come, first served. A sequence waits until the pool has a row for it. When a running sequence
outgrows the row length and the longer rows are too few, the youngest sequences give theirs up and
wait again with all their tokens: the oldest always advances, so everything finishes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from policies.observation import Drafted
from policies.vocabulary import SAFE_PLAN, Mode, Plan
from replicas.torch_engine.kv_cache import KVPool
from replicas.torch_engine.modes.base import Group
from replicas.torch_engine.sequence import Sequence, drafted

MIN_PREFILL_TOKENS = 64
"""Prefill tokens a step takes even when decoding fills its budget, so that no prompt starves."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next part of a prompt to cache: tokens [start, end) of `sequence`."""

    sequence: Sequence
    start: int
    end: int

    @property
    def yields_token(self) -> bool:
        """Whether its last position decides the sequence's first token."""
        return self.end == len(self.sequence.tokens)


@dataclass(slots=True)
class Work:
    """One step's content."""

    groups: list[Group] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)


class Scheduler:
    """Waiting queue, running rows and the step's token budget.

    Invariant: `running[i].row == i`.
    """

    def __init__(self, pool: KVPool, *, max_sequences: int, max_step_tokens: int) -> None:
        self.pool = pool
        self.max_sequences = max_sequences
        self.max_step_tokens = max_step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self._turn = 0
        """Of the sequences that follow another plan than the rest."""

    @property
    def num_decoding(self) -> int:
        return sum(not s.is_prefilling for s in self.running)

    def drafted(self) -> Drafted:
        """How the drafts of each decoding sequence have fared."""
        return drafted(s for s in self.running if not s.is_prefilling)

    @property
    def decoding_context(self) -> int:
        """Tokens that the decoding sequences have cached between them."""
        return sum(s.cached for s in self.running if not s.is_prefilling)

    def admit(self, now: float) -> None:
        """Moves waiting sequences into free rows, in order of arrival."""
        while self.waiting and len(self.running) < self.max_sequences:
            candidates = [*self.running, self.waiting[0]]
            needed = self._row_length_for(candidates)
            if self.pool.rows_at(needed) < len(candidates):
                return
            current = self.pool.row_length
            if needed > current or self.pool.rows_at(current) < len(candidates):
                self._recut(needed)
            sequence = self.waiting.popleft()
            sequence.row = len(self.running)
            if sequence.queued_s is None:  # not one that was set back
                sequence.queued_s = now - sequence.submitted_at
            self.running.append(sequence)

    def next_work(self, plan: Plan, others_plan: Plan = SAFE_PLAN, rows: int | None = None) -> Work:
        """Groups the decoding sequences by plan and fills the token budget with prefill.

        `rows`: so many of them are to follow `plan` and the others `others_plan`; None: all.
        """
        self._make_room()
        work = Work()
        by_plan: dict[Plan, list[Sequence]] = {}
        sequences = [s for s in self.running if not s.is_prefilling]
        if rows is not None and sequences:  # other ones each time: those that stay long differ
            self._turn = (self._turn + rows) % len(sequences)
        for number, sequence in enumerate(sequences, -self._turn):
            follows = rows is None or number % len(sequences) < rows
            wanted = effective_plan(sequence, plan if follows else others_plan)
            by_plan.setdefault(wanted, []).append(sequence)
        work.groups = [Group(plan, sequences) for plan, sequences in by_plan.items()]
        decoding = sum(g.plan.block_length * len(g.sequences) for g in work.groups)
        budget = max(self.max_step_tokens - decoding, MIN_PREFILL_TOKENS)
        prefilling = [s for s in self.running if s.is_prefilling]
        for sequence in sorted(prefilling, key=lambda s: s.arrival):
            end = min(sequence.cached + budget, sequence.prefill_target)
            if end > sequence.cached:
                work.chunks.append(Chunk(sequence, sequence.cached, end))
                budget -= end - sequence.cached
        return work

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is; the last row moves into the hole."""
        if sequence.row < 0:
            self.waiting.remove(sequence)
            return
        last = self.running.pop()
        if last is not sequence:
            self.pool.move(last.row, sequence.row, last.cached)
            self.running[sequence.row] = last
            last.row = sequence.row
        sequence.row = -1

    def _make_room(self) -> None:
        """Lengthens rows for what this step may write, preempting the youngest if it must."""
        while self.running:
            needed = self._row_length_for(self.running)
            if needed <= self.pool.row_length:
                return
            if self.pool.rows_at(needed) >= len(self.running):
                self._recut(needed)
                return
            self._preempt(max(self.running, key=lambda s: s.arrival))

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        sequence.preempt()
        self.waiting.appendleft(sequence)
        self.preemptions += 1

    def _row_length_for(self, sequences: list[Sequence]) -> int:
        return self.pool.row_length_for(max(len(s.tokens) for s in sequences))

    def _recut(self, row_length: int) -> None:
        self.pool.recut(row_length, [s.cached for s in self.running])


def effective_plan(sequence: Sequence, plan: Plan) -> Plan:
    """What this sequence decodes with when the replica's plan is `plan`.

    A begun diffusion block is finished first; a pinned request keeps its plan; a request that wants
    exact tokens gets self-speculation in place of diffusion: the same forwards, at the same width.
    """
    if sequence.block_plan is not None:
        return sequence.block_plan
    if sequence.request.plan is not None:
        return sequence.request.plan
    if plan.serves(sequence.request.quality):
        return plan
    return Plan(Mode.SELF_SPECULATION, plan.block_length)

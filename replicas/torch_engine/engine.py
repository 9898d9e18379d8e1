"""The embedded engine's core: synchronous, single-threaded, one `step()` at a time.

    1. admit        waiting sequences take free KV rows
    2. pick         the governor chooses the plan for this many decoding sequences
    3. forward      drafts first, then everything else in one packed pass
    4. commit       logits become tokens; K/V lengths advance
    5. emit         tokens become deltas; finished sequences leave

It knows nothing of asyncio or HTTP; `threaded.py` puts it on a thread behind the Engine protocol.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from policies.observation import StepObservation
from policies.step_time import Profile
from policies.vocabulary import SAFE_PLAN, Plan, Schedule
from replicas.admission import check_request
from replicas.engine import (
    Delta,
    EngineOverloaded,
    EngineReport,
    FinishReason,
    Request,
    RequestRejected,
)
from replicas.governor import Governor
from replicas.torch_engine.batch import Packer, Rows
from replicas.torch_engine.counters import Tallies
from replicas.torch_engine.cuda_graphs import Capture, GraphedForward
from replicas.torch_engine.detokenizer import TextStream
from replicas.torch_engine.kv_cache import SCRATCH_TOKENS, KVPool
from replicas.torch_engine.model import Batch, Model
from replicas.torch_engine.modes import MODES, DecodeMode
from replicas.torch_engine.sampling import choice_for, choose
from replicas.torch_engine.scheduler import Chunk, Scheduler, Work
from replicas.torch_engine.sequence import Sequence, drafted


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine takes on.

    `max_context_tokens` bounds prompt plus output of one request, `max_sequences` how many decode
    together, `kv_tokens` the KV pool (the loader resolves 0: what fits), `max_step_tokens` the
    positions of one step (prefill is cut into chunks to fit), `max_waiting` the queue.
    """

    max_context_tokens: int = 2048
    max_sequences: int = 64
    kv_tokens: int = 32768
    max_step_tokens: int = 512
    max_waiting: int = 1024


@dataclass(frozen=True, slots=True)
class _Commit:
    """Tokens a step decided for a sequence; `plan` is None for the token that prefill yields."""

    sequence: Sequence
    tokens: list[int]
    plan: Plan | None


Forward = Callable[[Batch, list[torch.Tensor]], torch.Tensor]


class TorchEngine:
    """Continuous batching over one model; see the module text for what a step does.

    `tokenizer` may be None: then deltas carry no text and stop strings are refused. `capture` turns
    on graph capture of decode steps; `forward` replaces `model.forward` altogether.
    """

    def __init__(
        self,
        model: Model,
        tokenizer: Tokenizer | None,
        limits: EngineLimits,
        *,
        schedule: Schedule | None = None,
        forward: Forward | None = None,
        capture: Capture | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        config = model.config
        self.model, self.tokenizer, self.limits = model, tokenizer, limits
        self.pool = KVPool(
            num_layers=config.num_layers,
            kv_width=config.kv_width,
            tokens=limits.kv_tokens,
            max_context=limits.max_context_tokens,
            dtype=model.dtype,
            device=model.device,
            spare_row=capture is not None,
        )
        self.scheduler = Scheduler(
            self.pool,
            max_sequences=limits.max_sequences,
            max_step_tokens=limits.max_step_tokens,
        )
        groups = config.num_heads // config.num_kv_heads
        self._packer = Packer(self.pool, groups, model.dtype, model.device)
        graphed = GraphedForward(model, self.pool, capture=capture) if capture else None
        self._forward = forward or graphed or model.forward
        self.captures_graphs = capture is not None
        self.profile: Profile | None = None
        """Step times of this engine, where they are known."""
        self._clock = clock
        self._first_schedule = schedule or Schedule.pinned(SAFE_PLAN)
        self._sequences: dict[str, Sequence] = {}
        self._arrivals = 0
        self._context_tokens = 0
        self.start_over()

    def start_over(self) -> None:
        """Counters and schedule as they were at first; what was captured stays. Only between
        requests."""
        assert not self.has_work
        self.governor = Governor(self._first_schedule, received_at=self._clock())
        self.tallies = Tallies()
        self.scheduler.preemptions = 0
        self._steps = 0
        self._ended_at: float | None = None
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._finished: Counter[str] = Counter({reason.value: 0 for reason in FinishReason})

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    def submit(self, request: Request) -> None:
        """Queues a request.

        Raises:
            RequestRejected: it can never be served; the message says why.
            EngineOverloaded: the waiting queue is full.
        """
        self._check(request)
        sampling = request.sampling
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        text = TextStream(self.tokenizer, sampling.stop) if self.tokenizer is not None else None
        sequence = Sequence(
            request=request,
            arrival=self._arrivals,
            seed=seed,
            eos_token_ids=frozenset(self.model.config.eos_token_ids),
            submitted_at=self._clock(),
            text=text,
        )
        self._arrivals += 1
        self._sequences[request.request_id] = sequence
        self.scheduler.waiting.append(sequence)

    def cancel(self, request_id: str) -> Delta | None:
        """Frees a sequence at once; None if there is no such sequence (any more)."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        sequence.finish_reason = FinishReason.CANCELLED
        self._leave(sequence)
        return Delta(request_id, (), "", None, FinishReason.CANCELLED)

    def set_schedule(self, schedule: Schedule) -> None:
        """Takes effect at the next step; one older than the schedule in force is ignored."""
        self.governor.receive(schedule, self._clock())

    def step(self) -> list[Delta]:
        """One step for every running sequence; returns what it added, by sequence."""
        started = self._clock()
        self.scheduler.admit(started)
        plan, governor = self._pick(started), self.governor
        work = self.scheduler.next_work(plan, governor.plan, governor.probed_rows)
        modes = self._modes(work)
        self._draft(modes)
        logits = self._forward_all(modes, work.chunks)
        commits = self._commit(modes, work.chunks, logits)
        deltas = [self._emit(commit) for commit in commits]
        self._account(work, deltas, started)
        return deltas

    def report(self) -> EngineReport:
        scheduler, governor = self.scheduler, self.governor
        decoding = scheduler.num_decoding
        return EngineReport(
            decoding=decoding,
            prefilling=len(scheduler.running) - decoding,
            waiting=len(scheduler.waiting),
            kv_tokens_used=len(scheduler.running) * self.pool.row_length,
            kv_tokens_total=self.pool.tokens,
            context_tokens=sum(s.cached for s in scheduler.running),
            plan=governor.plan,
            schedule=governor.schedule,
            schedule_age_s=self._clock() - governor.received_at,
            switches=governor.switches,
            preemptions=scheduler.preemptions,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            finished=dict(self._finished),
            plans=self.tallies.freeze(),
            probes=governor.probes,
            predicted=governor.predicted,
            distrusts=governor.distrusts,
        )

    # -- the parts of a step ------------------------------------------------------------------

    def _pick(self, now: float) -> Plan:
        scheduler = self.scheduler
        self._context_tokens = scheduler.decoding_context
        return self.governor.pick(
            scheduler.num_decoding,
            now,
            self._context_tokens,
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            splits=not self.captures_graphs,  # of one plan, a step is captured
            drafted=scheduler.drafted,
        )

    def _modes(self, work: Work) -> list[DecodeMode]:
        mask = self.model.config.mask_token_id
        return [MODES[g.plan.mode](g, mask, self.model.device) for g in work.groups]

    def _draft(self, modes: list[DecodeMode]) -> None:
        drafting = [(mode, rows) for mode in modes if (rows := mode.draft_rows()) is not None]
        if not drafting:
            return
        batch = self._packer.pack([rows for _, rows in drafting], draft=True)
        logits = self._forward(batch, self.pool.layers)
        at = 0
        for mode, rows in drafting:
            mode.take_draft(logits[at : at + rows.tokens.numel()])
            at += rows.tokens.numel()

    def _forward_all(self, modes: list[DecodeMode], chunks: list[Chunk]) -> torch.Tensor | None:
        rows = [mode.rows() for mode in modes] + [self._chunk_rows(c) for c in chunks]
        if not rows:
            return None
        return self._forward(self._packer.pack(rows), self.pool.layers)

    def _chunk_rows(self, chunk: Chunk) -> Rows:
        tokens = chunk.sequence.tokens[chunk.start : chunk.end]
        return Rows(
            [chunk.sequence],
            torch.tensor([tokens], device=self.model.device),
            causal=True,
            logits="last" if chunk.yields_token else "none",
        )

    def _commit(
        self, modes: list[DecodeMode], chunks: list[Chunk], logits: torch.Tensor | None
    ) -> list[_Commit]:
        """All K/V lengths advance here, before any emission frees a row and moves another's K/V."""
        if logits is None:
            return []
        commits: list[_Commit] = []
        at = 0
        for mode in modes:
            plan, sequences = mode.group.plan, mode.group.sequences
            end = at + len(sequences) * plan.block_length
            result = mode.commit(logits[at:end])
            at = end
            for sequence, tokens, cached in zip(
                sequences, result.tokens, result.cached, strict=True
            ):
                sequence.cached += cached
                if tokens:
                    commits.append(_Commit(sequence, tokens, plan))
            self.tallies[plan].add_round(result)
        return commits + self._commit_chunks(chunks, logits[at:])

    def _commit_chunks(self, chunks: list[Chunk], logits: torch.Tensor) -> list[_Commit]:
        for chunk in chunks:
            chunk.sequence.cached = chunk.end
        first = [chunk.sequence for chunk in chunks if chunk.yields_token]
        if not first:
            return []
        self._prompt_tokens += sum(s.prompt_length for s in first)
        choice = choice_for(first, [len(s.tokens) for s in first], 1, self.model.device)
        tokens = choose(logits, choice).tolist()
        return [_Commit(s, [t], None) for s, t in zip(first, tokens, strict=True)]

    def _emit(self, commit: _Commit) -> Delta:
        sequence = commit.sequence
        kept, text = sequence.commit(commit.tokens)
        self._generated_tokens += len(kept)
        if sequence.finish_reason is not None:
            self._leave(sequence)
        request_id, is_first = sequence.request.request_id, commit.plan is None
        queued_s = sequence.queued_s if is_first else None
        return Delta(request_id, kept, text, commit.plan, sequence.finish_reason, queued_s)

    def _leave(self, sequence: Sequence) -> None:
        assert sequence.finish_reason is not None
        self.scheduler.remove(sequence)
        del self._sequences[sequence.request.request_id]
        self._finished[sequence.finish_reason.value] += 1

    def _account(self, work: Work, deltas: list[Delta], started: float) -> None:
        # Under load a step lasts from the end of the one before: tokens are handed out, requests
        # and orders taken in between, and a plan of many short steps has more of that.
        now, began = self._clock(), started if self._ended_at is None else self._ended_at
        seconds, self._ended_at = now - began, now if self.has_work else None
        self._steps += 1
        rows = sum(len(g.sequences) for g in work.groups)
        kept = {delta.request_id: len(delta.token_ids) for delta in deltas}
        is_alone = len(work.groups) == 1
        prompt_tokens = sum(chunk.end - chunk.start for chunk in work.chunks)
        for group in work.groups:
            sequences = group.sequences
            yields = [kept.get(s.request.request_id, 0) for s in sequences]
            group.count_rounds(yields)
            ended = [s for s in sequences if s.finish_reason is not None]
            share_s = seconds * len(sequences) / rows
            is_pure = is_alone and not prompt_tokens
            self.tallies[group.plan].add_yields(yields, share_s, is_pure=is_pure)
            self.governor.observe(
                StepObservation(
                    plan=group.plan,
                    sequences=len(sequences),
                    context_tokens=self._context_tokens,
                    seconds=seconds,
                    yields=yields,
                    is_alone=is_alone,
                    prompt_tokens=prompt_tokens,
                    answers=len(ended),
                    ended=drafted(ended),
                ),
                now,
            )

    def _check(self, request: Request) -> None:
        if request.request_id in self._sequences:
            raise RequestRejected(f"request id {request.request_id!r} is already in use")
        check_request(request, self.model.config.vocab_size, self.limits.max_context_tokens)
        if request.sampling.stop and self.tokenizer is None:
            raise RequestRejected("stop strings need a tokenizer, and this engine has none")
        if len(self.scheduler.waiting) >= self.limits.max_waiting:
            raise EngineOverloaded(
                f"{len(self.scheduler.waiting)} requests are waiting (limit "
                f"{self.limits.max_waiting}); retry later"
            )


def positions_needed(limits: EngineLimits) -> int:
    """Positions the model's rotary tables must cover: the context and a block behind it."""
    return limits.max_context_tokens + SCRATCH_TOKENS

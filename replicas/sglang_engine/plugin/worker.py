"""The worker: one prefill or one decoding step for SGLang's scheduler, in the plan of the moment.

A decoding step is that of our own engine: pick a plan, group the rows, let the modes of
`replicas.torch_engine.modes` draft and commit. What differs is around it: SGLang holds tokens, KV
slots and batches, and is told per row how many tokens a step yielded. A denoising row yields none.
A step in which every row decodes in AR is a plain one: to SGLang it is ordinary decoding.
"""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.runtime_context import get_spec
from sglang.srt.speculative.base_spec_worker import BaseSpecWorker
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from policies.observation import StepObservation
from policies.vocabulary import AR, SAFE_PLAN, Mode, Plan
from replicas.sglang_engine.plugin import graphs
from replicas.sglang_engine.plugin.control import Reporter, ScheduleFile, control_directory
from replicas.sglang_engine.plugin.forwards import Forwards
from replicas.sglang_engine.plugin.requests import record_plans, sequence_of
from replicas.sglang_engine.plugin.state import DecoderState
from replicas.sglang_engine.plugin.view import LiveScheduler, NothingYet
from replicas.torch_engine.batch import Rows
from replicas.torch_engine.modes import MODES, DecodeMode, Group
from replicas.torch_engine.modes.base import RoundResult
from replicas.torch_engine.sampling import choice_for, choose
from replicas.torch_engine.scheduler import effective_plan
from replicas.torch_engine.sequence import Sequence

logger = logging.getLogger(__name__)


class TriModeWorker(BaseSpecWorker):  # type: ignore[misc]
    """Drives the target worker's model; there is no other, it drafts for itself."""

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        super().__init__()
        self._target_worker = target_worker
        self.device = torch.device(target_worker.device)
        self.speculative_num_steps = self.topk = 1
        self.max_block_length = self.speculative_num_draft_tokens = int(
            get_spec().speculative_num_draft_tokens
        )
        self._mask_token_id = int(target_worker.model_runner.model_config.hf_config.mask_token_id)
        self._algorithm = target_worker.model_runner.spec_algorithm
        directory = control_directory()
        self.state = DecoderState(
            self.max_block_length, None if directory is None else ScheduleFile(directory)
        )
        if directory is None:
            logger.warning("trimode: no control directory; AR for every request without a plan")
        else:
            Reporter(directory, self.state.report).start()
        self._plan = SAFE_PLAN
        self._ended_at = 0.0

    @property
    def draft_worker(self) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        # The scheduler asks a speculative worker for what its target worker knows.
        if name == "_target_worker":
            raise AttributeError(name)
        return getattr(self._target_worker, name)

    def alloc_memory_pool(
        self,
        memory_pool_config: Any = None,
        req_to_token_pool: Any = None,
        token_to_kv_pool_allocator: Any = None,
    ) -> None:
        super().alloc_memory_pool(memory_pool_config, req_to_token_pool, token_to_kv_pool_allocator)
        self.state.scheduler = NothingYet(token_to_kv_pool_allocator.size)

    def init_attention_backends(self) -> None:
        super().init_attention_backends()
        self._forwards = Forwards(self._target_worker, self._algorithm, self.max_block_length)

    def init_cuda_graphs(self) -> None:
        super().init_cuda_graphs()
        if graphs.are_wanted():
            self._forwards.record(graphs.capture_for(self.device))

    def meet(self, scheduler: Any) -> None:
        """Shows the worker its scheduler, which is made after it."""
        if not isinstance(self.state.scheduler, LiveScheduler):
            self.state.scheduler = LiveScheduler(scheduler)

    def forward_batch_generation(
        self, batch: Any, on_publish: Any = None, **unused: Any
    ) -> GenerationBatchResult:
        if batch.forward_mode.is_extend():
            result = self._prefill(batch)
            self._ended_at = 0.0
            return result
        started = time.monotonic()
        decode = self._decode_plainly if batch.spec_algorithm.is_none() else self._decode
        result = decode(batch, started)
        self._ended_at = time.monotonic()
        return result

    # -- prefill ------------------------------------------------------------------------------

    def _prefill(self, batch: Any) -> GenerationBatchResult:
        result = self._target_worker.forward_batch_generation(batch, is_verify=True)
        logits = result.logits_output.next_token_logits
        sequences = [sequence_of(req) for req in batch.reqs]
        choice = choice_for(sequences, [len(s.tokens) for s in sequences], 1, self.device)
        result.next_token_ids = choose(logits, choice)
        # SGLang takes this very tensor for "unchanged".
        result.new_seq_lens = batch.seq_lens
        totals = self.state.totals
        for req in batch.reqs:
            if req.inflight_middle_chunks <= 0:
                record_plans(req, None, 1)
                totals.generated_tokens += 1
                if req.output_ids:
                    totals.preemptions += 1
                else:
                    totals.prompt_tokens += len(req.origin_input_ids)
        return result

    # -- decoding -----------------------------------------------------------------------------

    def plan_step(self, batch: Any) -> None:
        """Picks the plan of the step that SGLang is about to make room for.

        A plain step needs one slot a row, and SGLang spends on it what it spends on ordinary
        decoding, which for a small model is several percent less.
        """
        # SGLang takes those that have ended out of the batch a moment later.
        sequences = [sequence_of(req) for req in batch.reqs if not req.finished()]
        if not sequences:
            return
        self._plan = self.state.pick(sequences)
        is_plain = all(effective_plan(s, self._plan).mode is Mode.AR for s in sequences)
        batch.spec_algorithm = SpeculativeAlgorithm.NONE if is_plain else self._algorithm
        if is_plain:
            _return_spare_slots(batch)

    def _decode_plainly(self, batch: Any, started: float) -> GenerationBatchResult:
        """Only the choice of tokens is ours."""
        group = Group(AR, [sequence_of(req) for req in batch.reqs])
        mode = MODES[Mode.AR](group, self._mask_token_id, self.device)
        batch.input_ids = mode.rows().tokens.reshape(-1)
        forward = self._target_worker.forward_batch_generation(batch, is_verify=True)
        result = mode.commit(forward.logits_output.next_token_logits)
        for req in batch.reqs:
            record_plans(req, str(AR), 1)
        self.state.tallies[AR].add_round(result)
        self.state.totals.steps += 1
        self._observe(batch, [(group, result.tokens)], started)
        # A tensor would be put aside for the next step, whose input `rows` makes from the requests.
        batch.input_ids = None
        return GenerationBatchResult(next_token_ids=[token for [token] in result.tokens])

    def _decode(self, batch: Any, started: float) -> GenerationBatchResult:
        sequences = [sequence_of(req) for req in batch.reqs]
        groups = _grouped(sequences, self._plan)
        yielded: dict[int, list[int]] = {}
        rounds: list[tuple[Group, RoundResult]] = []
        for group in groups:
            result = self._round(MODES[group.plan.mode](group, self._mask_token_id, self.device))
            rounds.append((group, result))
        requests = {id(s): req for s, req in zip(sequences, batch.reqs, strict=True)}
        for group, result in rounds:
            self.state.tallies[group.plan].add_round(result)
            for sequence, tokens, cached in zip(
                group.sequences, result.tokens, result.cached, strict=True
            ):
                yielded[id(sequence)] = _commit(
                    requests[id(sequence)], sequence, tokens, cached, group.plan
                )
        self.state.totals.steps += 1
        parts = [(group, [yielded[id(s)] for s in group.sequences]) for group in groups]
        self._observe(batch, parts, started)
        return self._result(batch, [yielded[id(s)] for s in sequences])

    def _round(self, mode: DecodeMode) -> RoundResult:
        draft = mode.draft_rows()
        if draft is not None:
            mode.take_draft(self._forwards.run(draft, draft=True))
        rows = mode.rows()
        if isinstance(rows.causal, bool) or self._forwards.mixes_rows:
            return mode.commit(self._forwards.run(rows))
        # Blocks that denoise and blocks that commit, and one mask a pass: two forwards.
        self.state.tallies[mode.group.plan].forwards += 1
        return mode.commit(self._both(rows, rows.causal))

    def _both(self, rows: Rows, causal: torch.Tensor) -> torch.Tensor:
        """Logits of causal and bidirectional rows, in the order of all."""
        parts = [causal.nonzero()[:, 0], (~causal).nonzero()[:, 0]]
        logits = [
            self._forwards.run(
                Rows([rows.sequences[i] for i in part.tolist()], rows.tokens[part], is_causal)
            ).view(len(part), rows.width, -1)
            for part, is_causal in zip(parts, (True, False), strict=True)
        ]
        back = torch.cat(parts).argsort()
        return torch.cat(logits)[back].flatten(0, 1)

    def _observe(
        self, batch: Any, parts: list[tuple[Group, list[list[int]]]], started: float
    ) -> None:
        """Shares the step's wall time by rows; SGLang's own part of it lies between two calls."""
        begun = self._ended_at if self._ended_at and not batch.after_idle_gap else started
        seconds = time.monotonic() - begun
        context_tokens = sum(s.cached for group, _ in parts for s in group.sequences)
        for group, yielded in parts:
            yields = [len(tokens) for tokens in yielded]
            group.count_rounds(yields)
            self.state.observe(
                StepObservation(
                    plan=group.plan,
                    sequences=len(group.sequences),
                    context_tokens=context_tokens,
                    seconds=seconds,
                    yields=yields,
                    is_alone=len(parts) == 1,
                ),
                share=len(group.sequences) / len(batch.reqs),
            )

    def _result(self, batch: Any, yielded: list[list[int]]) -> GenerationBatchResult:
        counts = [len(tokens) for tokens in yielded]
        width = max(1, *counts)
        padded = [tokens + [0] * (width - len(tokens)) for tokens in yielded]
        accepted = torch.tensor(counts, device=self.device)
        return GenerationBatchResult(
            next_token_ids=torch.tensor(padded, device=self.device).flatten(),
            accept_lens=accepted.to(torch.int32),
            speculative_num_draft_tokens=self.max_block_length,
            speculative_output_stride=width,
            # SGLang counts accepted drafts as tokens less this, and cannot count below none.
            num_non_draft_tokens_per_req=1 if min(counts) else 0,
            new_seq_lens=batch.seq_lens + accepted,
        )


def _return_spare_slots(batch: Any) -> None:
    """What steps with blocks reserved ahead. Ordinary decoding adds each row's next slot behind the
    last, wherever that is."""
    for req in batch.reqs:
        kv = req.kv
        if kv.kv_allocated_len > kv.kv_committed_len:
            batch.tree_cache.free_kv_row(kv, [(kv.kv_committed_len, kv.kv_allocated_len)])
            kv.kv_allocated_len = kv.kv_committed_len


def _grouped(sequences: list[Sequence], plan: Plan) -> list[Group]:
    by_plan: dict[Plan, list[Sequence]] = {}
    for sequence in sequences:
        by_plan.setdefault(effective_plan(sequence, plan), []).append(sequence)
    return [Group(p, members) for p, members in by_plan.items()]


def _commit(req: Any, sequence: Sequence, tokens: list[int], cached: int, plan: Plan) -> list[int]:
    """What SGLang is told this row yielded: cut where the sequence ends, as SGLang would cut it."""
    if not tokens:
        return []
    kept = list(sequence.commit(tokens)[0])
    record_plans(req, str(plan), len(kept))
    # SGLang will count the K/V of every kept token's predecessor as committed. A diffusion block
    # that ends its sequence early was never committed causally: its K/V must not be reused.
    req.kv.kv_committed_len -= max(0, len(kept) - cached)
    return kept

"""Runs rows of one width through SGLang's model: causal, bidirectional, with the draft adapter.

Every forward writes its K/V into the slots behind the committed length, which SGLang allocates
ahead of each step; a draft's or a denoising pass's are overwritten by the causal pass that follows,
so what is committed is always causal.
"""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)

from replicas.sglang_engine.plugin.attention import BlockInput, MaskAttention, attention_for
from replicas.sglang_engine.plugin.graphs import PassGraphs
from replicas.sglang_engine.protocol import GRAPHS_VARIABLE
from replicas.torch_engine.batch import Rows
from replicas.torch_engine.cuda_graphs import Capture


class Forwards:
    """The target worker's model, as a function from rows to logits. Made once it has attention."""

    def __init__(self, target_worker: Any, spec_algorithm: Any, max_width: int) -> None:
        self._target, self._algorithm = target_worker, spec_algorithm
        self._runner = target_worker.model_runner
        self._model = self._runner.model
        self.device = torch.device(target_worker.device)
        self._steps = torch.arange(max_width, device=self.device)
        self._attention = attention_for(self._runner, max_width)
        self._graphs: PassGraphs | None = None

    @property
    def mixes_rows(self) -> bool:
        """Whether causal and bidirectional rows may share a pass."""
        return self._attention.mixes_rows

    def record(self, capture: Capture) -> None:
        """From now on passes are replayed where a recorded one fits, SGLang's plain steps too.

        Raises:
            ValueError: this attention backend's masks are no data.
        """
        if not isinstance(self._attention, MaskAttention):
            raise ValueError(
                f"{GRAPHS_VARIABLE}=1 needs --attention-backend triton, found "
                f"{self._runner.decode_attention_backend_str}; change one of them"
            )
        self._graphs = self._runner.decode_cuda_graph_runner = PassGraphs(
            self._runner, self._attention, len(self._steps), capture
        )

    def run(self, rows: Rows, *, draft: bool = False) -> torch.Tensor:
        """[B * width, vocab] logits, good until the next call."""
        is_plain = rows.causal is True and rows.width == 1
        batch = self._decode_batch(rows) if is_plain else self._block_batch(rows, draft)
        if self._graphs is not None and self._graphs.can_run_graph(batch):
            logits: torch.Tensor = self._graphs.execute(batch).next_token_logits
            return logits
        if is_plain:
            return self._eagerly(batch)
        with self._attention.showing(batch), self._model.drafting(draft):
            return self._eagerly(batch)

    def _eagerly(self, batch: ForwardBatch) -> torch.Tensor:
        self._runner.kv_index_translator.bind_own_plan(batch)
        # `is_verify`: SGLang leaves the choice of tokens to us.
        result = self._target.forward_batch_generation(
            batch=None, forward_batch=batch, is_verify=True
        )
        logits: torch.Tensor = result.logits_output.next_token_logits
        return logits

    def _decode_batch(self, rows: Rows) -> ForwardBatch:
        """One token a row, by the kernels of SGLang's own AR decoding."""
        pool, starts, places = self._places(rows)
        ends = [s.cached + 1 for s in rows.sequences]
        return ForwardBatch(
            forward_mode=ForwardMode.DECODE,
            batch_size=len(ends),
            input_ids=rows.tokens.reshape(-1),
            req_pool_indices=pool,
            seq_lens=starts + 1,
            seq_lens_cpu=torch.tensor(ends),
            seq_lens_sum=sum(ends),
            out_cache_loc=self._slots(pool, places),
            positions=starts,
            spec_algorithm=self._algorithm,
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )

    def _block_batch(self, rows: Rows, draft: bool) -> ForwardBatch:
        pool, starts, places = self._places(rows)
        counted = self._attention.keys_counted(rows.width)
        lengths = [s.cached + counted for s in rows.sequences]
        positions = places.reshape(-1)
        batch = ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY,
            batch_size=len(lengths),
            input_ids=rows.tokens.reshape(-1),
            req_pool_indices=pool,
            seq_lens=starts + counted,
            seq_lens_cpu=torch.tensor(lengths),
            seq_lens_sum=sum(lengths),
            out_cache_loc=self._slots(pool, places),
            positions=positions,
            spec_algorithm=self._algorithm,
            spec_info=BlockInput(positions, rows.width, rows.causal, draft),
            capture_hidden_mode=CaptureHiddenMode.NULL,
        )
        batch.extend_prefix_lens = starts.to(torch.int32)
        batch.extend_seq_lens = torch.full_like(batch.extend_prefix_lens, rows.width)
        return batch

    def _places(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pool rows [B], committed lengths [B] and positions [B, width]."""
        pool = torch.tensor([s.row for s in rows.sequences], device=self.device)
        starts = torch.tensor([s.cached for s in rows.sequences], device=self.device)
        return pool, starts, starts[:, None] + self._steps[: rows.width]

    def _slots(self, pool: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        table = self._runner.req_to_token_pool.req_to_token
        slots: torch.Tensor = table[pool[:, None], places].to(torch.int64).reshape(-1)
        return slots

"""Passes recorded once for each shape and replayed: as CUDA graphs, or for a CPU as themselves.

Not run on a GPU. All but the recording is the same without one: with `replay_eagerly` for `capture`
a replay calls the recorded pass again, on the same static inputs, so an input that does not live in
them shows as a wrong token.

A shape is a number of rows, a width, and whether the draft adapter is on, which is a branch in
Python. Draft and verification share a shape otherwise: the mask is data. Width 1 is an ordinary
decode batch to SGLang and has graphs of its own: a plain step never meets one recorded for blocks.
A pass is padded to the next number of rows. Padding rows have one key and write to slot 0, which
SGLang keeps for that. What fits no shape runs eagerly.

All graphs share inputs, logits and memory, so a pass's logits are good until the next one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from sglang.srt.layers.logits_processor import LogitsProcessorOutput
from sglang.srt.model_executor.forward_batch_info import (
    CaptureHiddenMode,
    ForwardBatch,
    ForwardMode,
)
from sglang.srt.model_executor.forward_context import ForwardContext, forward_context
from sglang.srt.model_executor.runner_utils.capture_mode import model_capture_mode

from policies.vocabulary import BLOCK_LENGTHS
from replicas.sglang_engine.plugin.attention import BlockInput, MaskAttention
from replicas.sglang_engine.protocol import GRAPHS_VARIABLE
from replicas.torch_engine.cuda_graphs import (
    ROW_BUCKETS,
    Capture,
    Run,
    capture_cuda_graph,
    replay_eagerly,
)

MAX_TOKENS = 2048
"""A pass of more tokens keeps a GPU busy enough without a graph."""


def are_wanted() -> bool:
    """Whether the environment asks for graphs.

    Raises:
        ValueError: it says something else than 0 or 1.
    """
    if (value := os.environ.get(GRAPHS_VARIABLE) or "0") not in ("0", "1"):
        raise ValueError(f"{GRAPHS_VARIABLE}={value} must be 0 or 1; set 1 for graphs")
    return value == "1"


def capture_for(device: torch.device) -> Capture:
    """CUDA graphs that share their memory; where there is no CUDA, the passes themselves."""
    if device.type != "cuda":
        return replay_eagerly
    return partial(capture_cuda_graph, pool=torch.cuda.graph_pool_handle())


@dataclass(frozen=True, slots=True)
class Shape:
    rows: int
    width: int
    draft: bool


@dataclass(slots=True)
class _Recorded:
    batch: ForwardBatch
    run: Run


class PassGraphs:
    """Takes the place of SGLang's runner of decode graphs, whose two methods it has."""

    def __init__(
        self, runner: Any, attention: MaskAttention, max_width: int, capture: Capture
    ) -> None:
        self._runner, self._attention = runner, attention
        self._backend, self._model = runner.attn_backend, runner.model
        most = min(runner.max_running_requests, ROW_BUCKETS[-1])
        self._row_counts = [*(rows for rows in ROW_BUCKETS if rows < most), most]
        self._widths = [1, *(length for length in BLOCK_LENGTHS if length <= max_width)]
        # The second number counts queries of decode batches; blocks need no more of anything.
        self._backend.init_cuda_graph_state(most, most)
        self._padding_length = self._backend.get_cuda_graph_seq_len_fill_value()
        self._inputs = self._static_inputs(torch.device(runner.device))
        self._mask = self._mask_memory()
        self._recorded = {shape: self._record(shape, capture) for shape in self._shapes()}

    def can_run_graph(self, batch: ForwardBatch) -> bool:
        return self._shape(batch) is not None

    def execute(self, batch: ForwardBatch, pp_proxy_tensors: None = None) -> LogitsProcessorOutput:
        shape = self._shape(batch)
        assert shape is not None
        recorded = self._recorded[shape]
        self._copy_in(recorded.batch, batch)
        self._plan(recorded.batch)
        logits = recorded.run()
        return LogitsProcessorOutput(next_token_logits=logits[: batch.input_ids.shape[0]])

    def _shape(self, batch: ForwardBatch) -> Shape | None:
        """The shape that serves this batch, None if it must run eagerly."""
        block, width, draft = batch.spec_info, 1, False
        if isinstance(block, BlockInput):
            width, draft = block.draft_token_num, block.draft and self._model.has_adapter
        elif block is not None or not batch.forward_mode.is_decode():
            return None
        rows = next((r for r in self._row_counts if r >= batch.batch_size), None)
        if rows is None or (shape := Shape(rows, width, draft)) not in self._recorded:
            return None
        return shape

    def _shapes(self) -> Iterator[Shape]:
        """Large ones first, so that the others find their memory."""
        for rows in reversed(self._row_counts):
            for width in reversed(self._widths):
                if rows * width <= MAX_TOKENS:
                    yield Shape(rows, width, False)
                    if width > 1 and self._model.has_adapter:
                        yield Shape(rows, width, True)

    def _static_inputs(self, device: torch.device) -> dict[str, torch.Tensor]:
        rows, tokens = self._row_counts[-1], max(s.rows * s.width for s in self._shapes())
        vocabulary = self._runner.model_config.vocab_size
        sizes = {
            "input_ids": tokens,
            "positions": tokens,
            "out_cache_loc": tokens,
            "req_pool_indices": rows,
            "seq_lens": rows,
        }
        inputs = {n: torch.zeros(s, dtype=torch.int64, device=device) for n, s in sizes.items()}
        inputs["next_token_logits_buffer"] = torch.zeros(
            (tokens, vocabulary), dtype=torch.float32, device=device
        )
        return inputs

    def _mask_memory(self) -> torch.Tensor:
        """The backend's own if it is large enough; on a CPU SGLang sizes it for another backend."""
        context = self._runner.model_config.context_len
        needed = max(s.rows * s.width * (context + s.width) for s in self._shapes())
        memory: torch.Tensor = self._backend.verify_mask.buffer
        return memory if memory.numel() >= needed else memory.new_empty(needed)

    def _record(self, shape: Shape, capture: Capture) -> _Recorded:
        batch = self._static_batch(shape)
        batch.seq_lens.fill_(self._padding_length)
        self._plan(batch, in_capture=True)
        metadata = self._backend.forward_metadata
        if shape.width > 1:
            metadata.custom_mask = self._mask

        def run() -> torch.Tensor:
            # Other passes have put theirs in its place when this one is called again.
            self._backend.forward_metadata = metadata
            context = ForwardContext(attn_backend=self._backend)
            with (
                model_capture_mode(),
                forward_context(context, forward_batch=batch),
                self._model.drafting(shape.draft),
            ):
                self._backend.init_forward_metadata_in_graph(batch)
                output = self._model.forward(batch.input_ids, batch.positions, batch)
            logits: torch.Tensor = output.next_token_logits
            return logits

        return _Recorded(batch, capture(run))

    def _static_batch(self, shape: Shape) -> ForwardBatch:
        """Views of the static inputs."""
        tokens, is_block = shape.rows * shape.width, shape.width > 1
        per_row = ("req_pool_indices", "seq_lens")
        views = {n: t[: shape.rows if n in per_row else tokens] for n, t in self._inputs.items()}
        return ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY if is_block else ForwardMode.DECODE,
            batch_size=shape.rows,
            seq_lens_sum=shape.rows * self._padding_length,
            spec_algorithm=self._runner.spec_algorithm,
            spec_info=BlockInput(views["positions"], shape.width, True) if is_block else None,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            **views,
        )

    def _copy_in(self, static: ForwardBatch, batch: ForwardBatch) -> None:
        """Padding rows keep stale tokens, and have one key."""
        padding = static.batch_size - batch.batch_size
        for name in ("input_ids", "positions", "out_cache_loc", "req_pool_indices", "seq_lens"):
            given, into = getattr(batch, name), getattr(static, name)
            into[: given.shape[0]].copy_(given)
            if name in ("out_cache_loc", "req_pool_indices"):
                into[given.shape[0] :].zero_()
        static.seq_lens[batch.batch_size :].fill_(self._padding_length)
        if isinstance(block := batch.spec_info, BlockInput):
            causal = block.causal
            if isinstance(causal, torch.Tensor):
                causal = F.pad(causal, (0, padding), value=True)
            static.spec_info.causal = causal
            static.seq_lens_sum = batch.seq_lens_sum + padding * self._padding_length

    def _plan(self, static: ForwardBatch, in_capture: bool = False) -> None:
        """What an eager pass does before its first kernel: mask, slots to read, lengths."""
        if (block := static.spec_info) is not None:
            keys = static.seq_lens_sum + static.input_ids.shape[0]
            mask = self._mask[: keys * block.draft_token_num]
            self._attention.write(mask, block.causal, static.seq_lens, block.draft_token_num)
        self._runner.kv_index_translator.bind_runner_slots(static)
        self._backend.init_forward_metadata_out_graph(static, in_capture=in_capture)

"""What SGLang's attention backends must be told of a block pass. They differ in two things.

What `seq_lens` counts: `torch_native` wants the block's keys in it, Triton adds them itself. And
how rows become bidirectional: `torch_native` reads each layer's `attn_type` at every call, Triton
takes the mask as data, which may differ from row to row and from replay to replay of a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch
from sglang.srt.speculative.spec_info import SpecInput, SpecInputType


@dataclass
class BlockInput(SpecInput):  # type: ignore[misc]
    """SGLang's name for a pass of equal width is UNO's verification."""

    positions: torch.Tensor
    draft_token_num: int
    causal: bool | torch.Tensor
    """For all rows, or [B] bool; read by this plugin."""
    draft: bool = False
    """With the draft adapter; read by this plugin."""
    custom_mask: torch.Tensor | None = None
    capture_hidden_mode: CaptureHiddenMode = CaptureHiddenMode.NULL
    hidden_states: torch.Tensor | None = None

    def __post_init__(self) -> None:
        super().__init__(SpecInputType.UNO_VERIFY)
        self.num_tokens_per_req = self.num_tokens_for_logprob_per_req = self.draft_token_num


class BlockAttention(Protocol):
    """How one backend is told."""

    mixes_rows: bool
    """Whether causal and bidirectional rows may share a pass."""

    def keys_counted(self, width: int) -> int:
        """How many of a block's keys `seq_lens` counts."""
        ...

    def showing(self, batch: ForwardBatch) -> AbstractContextManager[None]:
        """A context in which the batch runs, eagerly, and its rows see what they should."""
        ...


class LayerAttention:
    """`torch_native`: the layers say whether they are causal, all rows of a pass alike."""

    mixes_rows = False

    def __init__(self, model: torch.nn.Module) -> None:
        self._layers = [m for m in model.modules() if isinstance(m, RadixAttention)]

    def keys_counted(self, width: int) -> int:
        return width

    @contextmanager
    def showing(self, batch: ForwardBatch) -> Iterator[None]:
        if batch.spec_info.causal:
            yield
            return
        self._set(AttentionType.ENCODER_ONLY)
        try:
            yield
        finally:
            self._set(AttentionType.DECODER)

    def _set(self, kind: AttentionType) -> None:
        for layer in self._layers:
            layer.attn_type = kind


class MaskAttention:
    """`triton`: the mask is data, and the layers stay as they are."""

    mixes_rows = True

    def __init__(self, max_width: int, device: torch.device) -> None:
        self._steps = torch.arange(max_width, device=device)

    def keys_counted(self, width: int) -> int:
        return 0

    @contextmanager
    def showing(self, batch: ForwardBatch) -> Iterator[None]:
        block = batch.spec_info
        keys = batch.seq_lens_sum + batch.input_ids.shape[0]
        mask = torch.empty(
            keys * block.draft_token_num, dtype=torch.bool, device=batch.seq_lens.device
        )
        self.write(mask, block.causal, batch.seq_lens, block.draft_token_num)
        block.custom_mask = mask
        yield

    def write(
        self, mask: torch.Tensor, causal: bool | torch.Tensor, starts: torch.Tensor, width: int
    ) -> None:
        """Fills `mask`: row after row, query after query, a cell for each key of the prefix, which
        is `starts` long, and of the block. All see the prefix; within the block a causal query sees
        no later key."""
        mask.fill_(True)
        if causal is False:
            return
        steps = self._steps[:width]
        lengths = starts + width
        ends = (lengths * width).cumsum(0)
        firsts = ends - lengths * width + starts  # of the block's keys, for the first query
        cells = firsts[:, None, None] + steps[:, None] * lengths[:, None, None] + steps
        visible = steps <= steps[:, None]
        if isinstance(causal, torch.Tensor):
            visible = visible | ~causal[:, None, None]
        mask[cells] = visible.to(mask.dtype).expand(cells.shape)


def attention_for(runner: Any, max_width: int) -> BlockAttention:
    """For the attention backend that SGLang's model runner has, and blocks up to `max_width`.

    Raises:
        ValueError: its kernel cannot show a query all keys of such a block.
    """
    if runner.decode_attention_backend_str == "torch_native":
        return LayerAttention(runner.model)
    # With a mask the kernel still stops at the last key of each tile of queries.
    tile = runner.attn_backend.extend_attention_block_m
    if tile < max_width:
        raise ValueError(
            f"Triton's attention takes {tile} queries at a time for this model on this GPU, and a "
            f"block of {max_width} would not be bidirectional; start with "
            f"--speculative-num-draft-tokens {tile}"
        )
    return MaskAttention(max_width, torch.device(runner.device))

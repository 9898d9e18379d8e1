"""What SGLang's attention backends must be told of a block pass. They differ in two things.

What `seq_lens` counts: `torch_native` wants the block's keys in it, Triton adds them itself. And
how rows become bidirectional: `torch_native` reads each layer's `attn_type` at every call, Triton
takes the mask as data, which may differ from row to row and from replay to replay of a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from replicas.torch_engine.batch import Rows


class BlockAttention(Protocol):
    """How one backend is told."""

    mixes_rows: bool
    """Whether causal and bidirectional rows may share a pass."""

    def keys_counted(self, width: int) -> int:
        """How many of a block's keys `seq_lens` counts."""
        ...

    def mask(self, rows: Rows, starts: torch.Tensor) -> torch.Tensor | None:
        """The pass's mask for `spec_info`; `starts` are the rows' committed lengths."""
        ...

    def during(self, rows: Rows) -> Any:
        """A context in which the pass runs."""
        ...


class LayerAttention:
    """`torch_native`: the layers say whether they are causal, all rows of a pass alike."""

    mixes_rows = False

    def __init__(self, model: torch.nn.Module) -> None:
        self._layers = [m for m in model.modules() if isinstance(m, RadixAttention)]

    def keys_counted(self, width: int) -> int:
        return width

    def mask(self, rows: Rows, starts: torch.Tensor) -> None:
        return None

    @contextmanager
    def during(self, rows: Rows) -> Iterator[None]:
        if rows.causal:
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

    def mask(self, rows: Rows, starts: torch.Tensor) -> torch.Tensor:
        size = sum(mask_size(s.cached, rows.width) for s in rows.sequences)
        mask = torch.empty(size, dtype=torch.bool, device=starts.device)
        return self.write(mask, rows.causal, starts, rows.width)

    def write(
        self, mask: torch.Tensor, causal: bool | torch.Tensor, starts: torch.Tensor, width: int
    ) -> torch.Tensor:
        """Fills `mask`: row after row, query after query, a cell for each key of the prefix and of
        the block. All see the prefix; within the block a causal query sees no later key."""
        mask.fill_(True)
        if causal is False:
            return mask
        steps = self._steps[:width]
        lengths = starts + width
        ends = (lengths * width).cumsum(0)
        firsts = ends - lengths * width + starts  # of the block's keys, for the first query
        cells = firsts[:, None, None] + steps[:, None] * lengths[:, None, None] + steps
        visible = steps <= steps[:, None]
        if isinstance(causal, torch.Tensor):
            visible = visible | ~causal[:, None, None]
        mask[cells] = visible.to(mask.dtype).expand(cells.shape)
        return mask

    @contextmanager
    def during(self, rows: Rows) -> Iterator[None]:
        yield


def mask_size(cached: int, width: int) -> int:
    """Cells of one row's mask."""
    return width * (cached + width)


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

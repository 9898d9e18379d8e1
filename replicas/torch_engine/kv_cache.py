"""The KV pool: a fixed number of tokens, cut into equal rows, one row per running sequence.

Attention reads the pool in place: with sequences in rows 0 .. n-1 the keys of a batch are one
strided view, so no step copies them. The price of equal rows is that the longest sequence sets
their length; the pool answers by changing its cut: rows double when a sequence outgrows them
(fewer, longer rows) and halve when shorter ones let more sequences in. Memory is bounded by
`tokens` at every cut.

Invariant: positions [0, length) of a row hold causal K/V; whatever lies behind is scratch.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch

SCRATCH_TOKENS = 32
"""Room behind the last committed token for the widest block."""


class KVPool:
    """One [tokens, kv_width] tensor per layer and the current row length.

    `max_context` is the longest sequence in tokens; the pool holds at least one row of it. With
    `spare_row`, slots from `tokens` on belong to no sequence: padding may write there.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        kv_width: int,
        tokens: int,
        max_context: int,
        dtype: torch.dtype,
        device: torch.device,
        spare_row: bool = False,
    ) -> None:
        longest = -(-(max_context + SCRATCH_TOKENS) // 64) * 64
        self.tokens = max(tokens // longest, 1) * longest
        self.row_lengths = _halvings(longest)
        self.row_length = self.row_lengths[0]
        stored = self.tokens + (longest if spare_row else 0)
        self.layers = [
            torch.zeros(stored, kv_width, dtype=dtype, device=device) for _ in range(num_layers)
        ]

    def rows_at(self, row_length: int) -> int:
        return self.tokens // row_length

    def row_length_for(self, tokens: int) -> int:
        """The shortest row that holds `tokens` and the scratch behind them."""
        return next(n for n in self.row_lengths if n >= tokens + SCRATCH_TOKENS)

    def recut(self, row_length: int, lengths: Seq[int]) -> None:
        """Changes the row length, keeping the first `lengths[i]` tokens of row i, for all i."""
        kept, longest = len(lengths), max(lengths, default=0)
        for layer in self.layers if longest else ():
            old = layer.view(-1, self.row_length, layer.shape[1])[:kept, :longest].clone()
            layer.view(-1, row_length, layer.shape[1])[:kept, :longest] = old
        self.row_length = row_length

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of row `source` over row `target`."""
        start, end = source * self.row_length, target * self.row_length
        for layer in self.layers:
            layer[end : end + length] = layer[start : start + length]


def _halvings(longest: int) -> tuple[int, ...]:
    """Row lengths, ascending, that divide `longest`; the shortest still holds a widest block."""
    lengths = [longest]
    while lengths[0] % 2 == 0 and lengths[0] // 2 >= 2 * SCRATCH_TOKENS:
        lengths.insert(0, lengths[0] // 2)
    return tuple(lengths)

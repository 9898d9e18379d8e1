"""Packing: rows of several plans and prefill chunks into one ragged `Batch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from replicas.torch_engine.kv_cache import KVPool
from replicas.torch_engine.model import Batch, Segment
from replicas.torch_engine.sequence import Sequence

Wanted = Literal["all", "last", "none"]


@dataclass(slots=True)
class Rows:
    """Sequences that go through a forward at one width.

    `tokens` is [B, width]. `causal` is one flag for all rows, or one per row ([B] bool): a causal
    row sees the prefix and itself up to each position, a bidirectional one the whole block.
    `logits` says which positions' logits are wanted. Sequences are in ascending row order.
    """

    sequences: list[Sequence]
    tokens: torch.Tensor
    causal: bool | torch.Tensor
    logits: Wanted = "all"

    @property
    def width(self) -> int:
        return self.tokens.shape[1]


class Packer:
    """Builds batches for one model and pool; holds the constant tensors that takes."""

    def __init__(self, pool: KVPool, groups: int, dtype: torch.dtype, device: torch.device) -> None:
        self.pool, self.groups, self.dtype, self.device = pool, groups, dtype, device
        most_rows = pool.rows_at(pool.row_lengths[0])
        self._arange = torch.arange(max(pool.row_lengths[-1], most_rows), device=device)
        # _windows[e] reads: visible for e + 1 keys, hidden behind. A row of any mask is one window.
        longest = pool.row_lengths[-1]
        steps = torch.zeros(2 * longest, dtype=dtype, device=device)
        steps[longest:] = float("-inf")
        self._steps, self._longest = steps, longest

    def pack(self, groups: list[Rows], *, draft: bool = False) -> Batch:
        """One batch of all groups, in order; `draft` switches the draft adapter on."""
        tokens, positions, slots, segments, wanted = [], [], [], [], []
        offset = max_position = 0
        for rows in groups:
            count, width = rows.tokens.shape
            starts = [s.cached for s in rows.sequences]
            length = max(starts) + width
            start = torch.tensor(starts, device=self.device)
            place = start[:, None] + self._arange[:width] if width > 1 else start[:, None]
            selected, base = self._select(rows.sequences)
            tokens.append(rows.tokens.reshape(-1))
            positions.append(place.reshape(-1))
            slots.append((place + base).reshape(-1))
            mask = self._mask(rows, start, min(starts), length)
            segments.append(Segment(offset, count, width, selected, length, mask))
            wanted.append((offset, count * width, rows.logits))
            offset += count * width
            max_position = max(max_position, length - 1)
        return Batch(
            tokens=_join(tokens),
            positions=_join(positions),
            slots=_join(slots),
            segments=segments,
            max_position=max_position,
            row_length=self.pool.row_length,
            draft=draft,
            logit_index=self._logit_index(wanted),
        )

    def _select(self, sequences: list[Sequence]) -> tuple[slice | torch.Tensor, torch.Tensor]:
        """Row selector for attention, and each row's first pool slot, [B, 1]."""
        rows = [s.row for s in sequences]
        if rows[-1] - rows[0] == len(rows) - 1:
            adjacent = slice(rows[0], rows[-1] + 1)
            return adjacent, (self._arange[adjacent] * self.pool.row_length)[:, None]
        index = torch.tensor(rows, device=self.device)
        return index, (index * self.pool.row_length)[:, None]

    def _mask(
        self, rows: Rows, start: torch.Tensor, shortest: int, length: int
    ) -> torch.Tensor | None:
        """Additive mask [B, 1, 1 or groups * width, length], None where all see everything."""
        width = rows.width
        if width == 1 or rows.causal is False:
            if shortest + width == length:
                return None
            return self._windows(length)[self._longest - start - width][:, None, None]
        last = (start + (width - 1))[:, None]
        limit = start[:, None] + self._arange[:width]
        if isinstance(rows.causal, torch.Tensor):
            limit = torch.where(rows.causal[:, None], limit, last)
        index = (self._longest - 1 - limit).repeat(1, self.groups)
        return self._windows(length)[index][:, None]

    def _windows(self, length: int) -> torch.Tensor:
        """[positions, length] view: row (longest - 1 - e) shows keys 0 .. e and hides the rest."""
        return self._steps.unfold(0, length, 1)

    def _logit_index(self, wanted: list[tuple[int, int, Wanted]]) -> torch.Tensor | None:
        if all(which == "all" for _, _, which in wanted):
            return None
        picks: list[int] = []
        for offset, count, which in wanted:
            if which != "none":
                first = offset if which == "all" else offset + count - 1
                picks.extend(range(first, offset + count))
        return torch.tensor(picks, dtype=torch.int64, device=self.device)


def _join(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)

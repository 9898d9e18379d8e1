"""Self-speculation: draft a block by diffusion in one forward, verify it causally in the next.

The causal forward over [seed, drafts] yields at position i the token that AR would put after it.
The longest prefix of drafts that agrees is accepted, and the first disagreeing verification is a
token too (the bonus): 1 to L tokens for two forwards, every one of them AR's. The bonus is the next
seed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from replicas.torch_engine.batch import Rows
from replicas.torch_engine.modes.base import DecodeMode, RoundResult
from replicas.torch_engine.sampling import choose


class SelfSpeculation(DecodeMode):
    _block: torch.Tensor  # [B, L]: seed, then masks, then (after the draft) drafted tokens

    @property
    def length(self) -> int:
        return self.group.plan.block_length

    def draft_rows(self) -> Rows:
        self._block = F.pad(self._seeds(), (0, self.length - 1), value=self.mask_token_id)
        return Rows(self.group.sequences, self._block, causal=False)

    def take_draft(self, logits: torch.Tensor) -> None:
        # Bidirectional position i predicts token i itself; the seed's own prediction is not used.
        drafts = choose(logits, self._choice(shift=0, width=self.length)).view(-1, self.length)
        self._block = torch.cat([self._block[:, :1], drafts[:, 1:]], dim=1)

    def rows(self) -> Rows:
        return Rows(self.group.sequences, self._block, causal=True)

    def commit(self, logits: torch.Tensor) -> RoundResult:
        verified = choose(logits, self._choice(shift=1, width=self.length)).view(-1, self.length)
        agrees = verified[:, :-1] == self._block[:, 1:]
        matched = agrees.cumprod(dim=1).sum(dim=1, keepdim=True)
        table = torch.cat([matched, verified], dim=1).tolist()
        return RoundResult(
            tokens=[row[1 : row[0] + 2] for row in table],
            cached=[row[0] + 1 for row in table],
            rounds=len(table),
            drafted=len(table) * (self.length - 1),
        )

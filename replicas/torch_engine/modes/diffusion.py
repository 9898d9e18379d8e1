"""Block diffusion: unmask a block by confidence over several forwards, then commit it causally.

Each row is on its own: in one forward some rows denoise (bidirectional) and others, whose blocks
have no mask left, commit (causal). A denoising pass fixes the most confident masked position and
every one above the threshold, so a block takes at most L - 1 passes; fixed tokens never change.
"""

from __future__ import annotations

import torch

from replicas.torch_engine.batch import Rows
from replicas.torch_engine.modes.base import DecodeMode, RoundResult
from replicas.torch_engine.sampling import choose, confidence
from replicas.torch_engine.sequence import Sequence


class Diffusion(DecodeMode):
    _blocks: torch.Tensor  # [B, L]
    _masked: torch.Tensor  # [B, L] bool
    _committing: list[bool]

    @property
    def length(self) -> int:
        return self.group.plan.block_length

    def rows(self) -> Rows:
        for sequence in self.group.sequences:
            if sequence.block is None:
                masks = [self.mask_token_id] * (self.length - 1)
                sequence.block, sequence.block_plan = [sequence.tokens[-1], *masks], self.group.plan
        blocks = [s.block for s in self.group.sequences]
        self._committing = [self.mask_token_id not in block[1:] for block in blocks if block]
        self._blocks = torch.tensor(blocks, device=self.device)
        self._masked = self._blocks == self.mask_token_id
        causal = torch.tensor(self._committing, device=self.device)
        if all(self._committing):
            return Rows(self.group.sequences, self._blocks, causal=True)
        if not any(self._committing):
            return Rows(self.group.sequences, self._blocks, causal=False)
        return Rows(self.group.sequences, self._blocks, causal=causal)

    def commit(self, logits: torch.Tensor) -> RoundResult:
        logits = logits.view(len(self.group.sequences), self.length, -1)
        denoised = None if all(self._committing) else self._denoise(logits).tolist()
        seeds = self._next_seeds(logits) if any(self._committing) else None
        result = RoundResult(tokens=[], cached=[])
        for i, sequence in enumerate(self.group.sequences):
            if self._committing[i]:
                assert sequence.block is not None
                assert seeds is not None
                self._close(result, sequence, [*sequence.block[1:], seeds[i]], self.length)
            else:
                assert denoised is not None
                self._advance(result, sequence, denoised[i])
        return result

    def _denoise(self, logits: torch.Tensor) -> torch.Tensor:
        """[B, L, vocab] -> [B, L] blocks with the surest positions filled in."""
        choice = self._choice(shift=0, width=self.length)
        proposed = choose(logits.flatten(0, 1), choice).view_as(self._blocks)
        sure = torch.where(self._masked, confidence(logits, proposed), -1.0)
        fixed = sure >= self.group.plan.threshold
        fixed.scatter_(1, sure.argmax(dim=1, keepdim=True), True)
        return torch.where(fixed & self._masked, proposed, self._blocks)

    def _next_seeds(self, logits: torch.Tensor) -> list[int]:
        """Causal choice of the token after each block; meaningful for committing rows only."""
        choice = self._choice(shift=self.length, width=1)
        return choose(logits[:, -1], choice).tolist()

    def _advance(self, result: RoundResult, sequence: Sequence, block: list[int]) -> None:
        result.denoising_steps += 1
        known = block[1:]
        if self.mask_token_id in known:
            known = known[: known.index(self.mask_token_id)]
        enough = known[: sequence.remaining]
        ended = any(sequence.ends_with(t) for t in enough) or len(known) >= sequence.remaining
        if ended:
            # Everything up to the end is fixed, so the rest of the block and its commit are moot.
            self._close(result, sequence, enough, 0)
        else:
            sequence.block = block
            result.tokens.append([])
            result.cached.append(0)

    def _close(
        self, result: RoundResult, sequence: Sequence, tokens: list[int], cached: int
    ) -> None:
        sequence.block, sequence.block_plan = None, None
        result.tokens.append(tokens)
        result.cached.append(cached)
        result.rounds += 1

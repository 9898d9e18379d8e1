"""What a decoding mode is: what to feed, and what to make of the logits.

A step runs at most two forwards. In the first, groups that draft do so. In the second, all groups
(and prefill chunks) go through together. A mode object lives for one step and one group; what must
survive the step is in the sequences.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from policies.vocabulary import Mode, Plan
from replicas.torch_engine.batch import Rows
from replicas.torch_engine.sampling import Choice, choice_for
from replicas.torch_engine.sequence import Sequence


@dataclass(slots=True)
class Group:
    """Decoding sequences that share a plan in this step, in ascending row order."""

    plan: Plan
    sequences: list[Sequence]

    def count_rounds(self, kept: Iterable[int]) -> None:
        """So many tokens were kept of each; who drafted remembers how that went."""
        if self.plan.mode is Mode.SELF_SPECULATION:
            for sequence, count in zip(self.sequences, kept, strict=True):
                sequence.count_round(count, self.plan.block_length)


@dataclass(slots=True)
class RoundResult:
    """What one group's step yielded; lists are per sequence, in the group's order.

    `tokens[i]` are the newly committed tokens (possibly none) and `cached[i]` how many more of the
    sequence's tokens have causal K/V now. `rounds` counts finished rounds.
    """

    tokens: list[list[int]]
    cached: list[int]
    rounds: int = 0
    drafted: int = 0
    denoising_steps: int = 0


class DecodeMode(ABC):
    """One group's step in one mode."""

    def __init__(self, group: Group, mask_token_id: int, device: torch.device) -> None:
        self.group = group
        self.mask_token_id = mask_token_id
        self.device = device

    def draft_rows(self) -> Rows | None:
        """Input of the drafting forward; None if the mode has none."""
        return None

    def take_draft(self, logits: torch.Tensor) -> None:
        """[B * L, vocab] logits of the drafting forward."""
        raise NotImplementedError(f"{type(self).__name__} does not draft")

    @abstractmethod
    def rows(self) -> Rows:
        """Input of the main forward."""

    @abstractmethod
    def commit(self, logits: torch.Tensor) -> RoundResult:
        """[B * L, vocab] logits of the main forward to committed tokens."""

    def _seeds(self) -> torch.Tensor:
        """[B, 1]: each sequence's last token, whose K/V are not written yet."""
        return torch.tensor([[s.tokens[-1]] for s in self.group.sequences], device=self.device)

    def _choice(self, *, shift: int, width: int) -> Choice | None:
        """How to choose the tokens `shift` places after the seed and on, `width` per sequence."""
        sequences = self.group.sequences
        return choice_for(sequences, [s.cached + shift for s in sequences], width, self.device)

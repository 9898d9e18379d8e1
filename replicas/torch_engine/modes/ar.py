"""Autoregressive: one causal forward, one token."""

from __future__ import annotations

import torch

from replicas.torch_engine.batch import Rows
from replicas.torch_engine.modes.base import DecodeMode, RoundResult
from replicas.torch_engine.sampling import choose


class AutoRegressive(DecodeMode):
    def rows(self) -> Rows:
        return Rows(self.group.sequences, self._seeds(), causal=True)

    def commit(self, logits: torch.Tensor) -> RoundResult:
        tokens = choose(logits, self._choice(shift=1, width=1)).tolist()
        return RoundResult([[t] for t in tokens], cached=[1] * len(tokens), rounds=len(tokens))

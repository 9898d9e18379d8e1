"""From logits to tokens: greedy, or by inverse transform with noise that belongs to the position.

The uniform number that chooses token t of a sequence depends on the sequence's seed and on t alone.
So a sampled sequence comes out the same in any batch, after preemption, and under any exact plan:
self-speculation verifies with the very number AR would have used, and drafts with it too, so that
draft and verification agree wherever their distributions are alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from replicas.torch_engine.sequence import Sequence

_MASK64 = (1 << 64) - 1
_COLDEST = 1e-5  # below this, float32 division overflows where the result is greedy anyway
_NO_LIMIT = 1 << 31  # a top_k beyond any vocabulary


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that is a function of its arguments (SplitMix64 finaliser)."""
    z = (seed + (position + 1) * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return ((z ^ (z >> 31)) >> 11) / (1 << 53)


@dataclass(slots=True)
class Choice:
    """How to choose one token per row of logits; tensors are [N], None where no row needs it."""

    temperature: torch.Tensor
    noise: torch.Tensor
    top_p: torch.Tensor | None
    top_k: torch.Tensor | None


def choice_for(
    sequences: list[Sequence], first_positions: list[int], width: int, device: torch.device
) -> Choice | None:
    """For rows [sequence, j] choosing token `first_positions[i] + j`; None if all are greedy."""
    if all(s.request.sampling.temperature == 0 for s in sequences):
        return None
    params = [s.request.sampling for s in sequences]

    def spread(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, device=device).repeat_interleave(width)

    noise = [
        uniform(s.seed, first + j)
        for s, first in zip(sequences, first_positions, strict=True)
        for j in range(width)
    ]
    return Choice(
        temperature=spread([p.temperature for p in params]),
        noise=torch.tensor(noise, dtype=torch.float64, device=device),
        top_p=spread([p.top_p for p in params]) if any(p.top_p < 1 for p in params) else None,
        top_k=(
            spread([min(p.top_k, _NO_LIMIT) for p in params])
            if any(p.top_k for p in params)
            else None
        ),
    )


def choose(logits: torch.Tensor, choice: Choice | None) -> torch.Tensor:
    """[N, vocab] -> [N] token ids. Rows of temperature 0 are greedy also among sampled ones."""
    greedy = logits.argmax(dim=-1)
    if choice is None:
        return greedy
    hot = choice.temperature > 0
    temperature = torch.where(hot, choice.temperature, 1.0).clamp(min=_COLDEST)
    probs = torch.softmax(logits.float() / temperature[:, None], dim=-1)
    if choice.top_p is not None or choice.top_k is not None:
        descending, order = probs.sort(dim=-1, descending=True, stable=True)
        # Back in vocabulary order: what one row's noise chooses must not depend on whether some
        # other row of the batch is restricted.
        kept = _nucleus(descending, choice)
        probs = probs * torch.empty_like(kept).scatter_(1, order, kept)
    return torch.where(hot, _invert(probs, choice.noise), greedy)


def _nucleus(probs: torch.Tensor, choice: Choice) -> torch.Tensor:
    """[N, vocab] bool over descending probabilities: top-k, then the top-p of what is left."""
    kept = torch.ones_like(probs, dtype=torch.bool)
    if choice.top_k is not None:
        rank = torch.arange(probs.shape[1], device=probs.device)
        kept = (rank < choice.top_k[:, None]) | (choice.top_k[:, None] == 0)
    if choice.top_p is not None:
        left = probs * kept
        mass_before = left.cumsum(dim=-1) - left
        kept = kept & (mass_before < choice.top_p[:, None] * left.sum(dim=-1, keepdim=True))
    kept[:, 0] = True  # however small top_p is in float32
    return kept


def _invert(weights: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """First index whose cumulative weight exceeds noise * total; never an index of weight zero."""
    cumulative = weights.double().cumsum(dim=-1)
    target = noise[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def confidence(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """[..., vocab], [...] -> [...]: softmax probability of each token, at temperature 1."""
    chosen = logits.gather(-1, tokens[..., None])[..., 0].float()
    return (chosen - logits.float().logsumexp(dim=-1)).exp()

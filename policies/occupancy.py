"""How many of a replica's clients have a sequence that decodes: a matter of the plan.

An engine that packs prefill and decoding into one step gives a new sequence its prefill while the
others decode. A long block takes fewer steps to an answer, so of the same sequences a larger share
is in prefill, and fewer share what a step costs. With answers of thirty tokens that is a third.
Where clients answer an answer at once, their slot is empty for a step besides (`clients.py`).

    steps of an answer     R = tokens of an answer / tokens of a step
    share not decoding     q = (P + E) / (R + P + E),  P steps of prefill and E empty ones an answer

Tokens and steps of prefill are learned; old ones fade by half-life.
"""

from __future__ import annotations

from dataclasses import dataclass

PRIOR_ANSWERS = 2.0  # what the first guess counts for
LONG_ANSWER = 1024.0
"""Tokens of an answer, at first: so many that prefill hardly counts."""


@dataclass(slots=True)
class Occupancy:
    """Counts of one replica. Invariant: none is negative."""

    _tokens: float = LONG_ANSWER * PRIOR_ANSWERS
    _prefills: float = PRIOR_ANSWERS
    _answers: float = PRIOR_ANSWERS

    def count(self, tokens: int, prefills: int, answers: int) -> None:
        """`tokens` were decoded, `answers` ended, `prefills` sequences were in prefill."""
        self._tokens += tokens
        self._prefills += prefills
        self._answers += answers

    def fade(self, share: float) -> None:
        """Keeps this share of what was counted, and no less than it began with."""
        share = max(share, min(1.0, PRIOR_ANSWERS / max(self._answers, self._prefills)))
        self._tokens *= share
        self._prefills *= share
        self._answers *= share

    @property
    def tokens_per_answer(self) -> float:
        """But the one that prefill yields."""
        return self._tokens / self._answers

    def decoding(self, clients: int, tokens_per_step: float, empty_steps: float = 0.0) -> float:
        """How many sequences of so many clients decode in a step, of the steps in which any does,
        under a plan of this yield. `empty_steps`: between two requests of a client."""
        decoding_steps = max(1.0, self.tokens_per_answer / tokens_per_step)
        other_steps = self._prefills / self._answers + empty_steps
        others = other_steps / (decoding_steps + other_steps)
        return clients * (1.0 - others) / (1.0 - others**clients)

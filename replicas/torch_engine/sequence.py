"""One request's tokens and state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from policies.observation import Drafted
from policies.vocabulary import Plan
from replicas.engine import FinishReason, Request
from replicas.torch_engine.detokenizer import TextStream


@dataclass(slots=True, eq=False)
class Sequence:
    """A request being decoded.

    `tokens` are the prompt and everything committed. `cached` of them have causal K/V in `row`.
    While decoding, cached == len(tokens) - 1: the last token is the seed, whose K/V are not written
    yet. That is all that is carried from step to step, so any two steps may differ in plan. The one
    exception is `block`: tokens that a diffusion block has fixed so far (mask elsewhere); it ends
    with its block and may be dropped at any time without loss. `queued_s` is how long it waited
    until it first got a row. Of its drafts `tried` positions were verified, those before them being
    right, and `accepted` of them were.
    """

    request: Request
    arrival: int
    seed: int
    eos_token_ids: frozenset[int]
    submitted_at: float = 0.0
    text: TextStream | None = None
    tokens: list[int] = field(default_factory=list)
    cached: int = 0
    row: int = -1
    block: list[int] | None = None
    block_plan: Plan | None = None
    finish_reason: FinishReason | None = None
    queued_s: float | None = None
    tried: int = 0
    accepted: int = 0

    def __post_init__(self) -> None:
        self.tokens.extend(self.request.prompt_token_ids)

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def remaining(self) -> int:
        """Tokens that may still be committed."""
        return self.request.sampling.max_tokens - self.generated

    @property
    def prefill_target(self) -> int:
        """Tokens to cache before decoding; after preemption the seed is known, and stays out."""
        return len(self.tokens) - (1 if self.generated else 0)

    @property
    def is_prefilling(self) -> bool:
        return self.cached < self.prefill_target

    def ends_with(self, token: int) -> bool:
        """Whether this token is the last of its sequence, whatever follows it."""
        sampling = self.request.sampling
        if token in sampling.stop_token_ids:
            return True
        return token in self.eos_token_ids and not sampling.ignore_eos

    def commit(self, tokens: list[int]) -> tuple[tuple[int, ...], str]:
        """Appends tokens up to the first that ends the sequence; returns what was kept, and text.

        Sets `finish_reason` at an end-of-sequence token, a complete stop string or `max_tokens`.
        Later tokens of the same block are dropped: they never leak and never count.
        """
        kept: list[int] = []
        text = ""
        for token in tokens:
            kept.append(token)
            self.tokens.append(token)
            if self.ends_with(token):
                self.finish_reason = FinishReason.STOP
            elif self.text is not None:
                text += self.text.push(token)
                if self.text.stopped:
                    self.finish_reason = FinishReason.STOP
            if self.finish_reason is None and self.remaining <= 0:
                self.finish_reason = FinishReason.LENGTH
            if self.finish_reason is not None:
                text += self.text.flush() if self.text is not None else ""
                break
        return tuple(kept), text

    def count_round(self, kept: int, block_length: int) -> None:
        """A round of self-speculation kept so many tokens, what followed the end not counted."""
        if not kept:
            return
        self.accepted += kept - 1
        # The last one failed, unless the draft was right to its end or the sequence has ended.
        is_cut = kept == block_length or self.finish_reason is not None
        self.tried += kept - 1 if is_cut else kept

    def preempt(self) -> None:
        """Gives up its row; its tokens are kept, so nothing but work is lost."""
        self.row, self.cached = -1, 0
        self.block, self.block_plan = None, None


def drafted(sequences: Iterable[Sequence]) -> Drafted:
    """How the drafts of each have fared."""
    found = list(sequences)
    return Drafted([s.tried for s in found], [s.accepted for s in found])

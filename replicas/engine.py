"""The Engine protocol: what a replica asks of whatever decodes, and the values that cross it.

Both engines (`torch_engine`, `sglang_engine`) implement `Engine` and pass the same contract tests.
Token ids go in; token ids and text come out, one `Delta` per commit.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from policies.vocabulary import Plan, Quality, Schedule


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class EngineError(Exception):
    """Base of what an engine raises to its caller."""


class RequestRejected(EngineError):
    """The request can never be served as it stands; the message names value, limit and remedy."""


class EngineOverloaded(EngineError):
    """The waiting queue is full; the same request may succeed later."""


class EngineStopped(EngineError):
    """The engine has stopped or failed; no request can be served."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when a sequence ends.

    `temperature` 0 is greedy. `top_k` 0 and `top_p` 1.0 mean no restriction. With a `seed`, output
    depends on the request alone: not on the batch, the plan (in `exact` quality) or preemption.
    `stop` strings end the sequence and are not part of its text; `stop_token_ids` likewise.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestRejected(f"max_tokens {self.max_tokens} must be at least 1")
        if not 0.0 <= self.temperature <= 100.0:
            raise RequestRejected(f"temperature {self.temperature} must lie in [0, 100]")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestRejected(f"top_p {self.top_p} must lie in (0, 1]")
        if self.top_k < 0:
            raise RequestRejected(f"top_k {self.top_k} must be 0 (off) or positive")
        if any(not text for text in self.stop):
            raise RequestRejected("a stop string must not be empty")


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to decode. `plan` pins it; None follows the schedule within its `quality`."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    quality: Quality = Quality.ANY
    plan: Plan | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """What one commit added to a sequence.

    `text` may lag behind `token_ids` (half a UTF-8 character, or a possible stop string, is held
    back); joined over all deltas it is the exact text. `plan` is what committed the tokens, None
    for the first token, which prefill yields. The last delta carries `finish_reason`, and the first
    `queued_s`, the time from submission to admission, where the engine can tell.
    """

    request_id: str
    token_ids: tuple[int, ...]
    text: str
    plan: Plan | None
    finish_reason: FinishReason | None = None
    queued_s: float | None = None


@dataclass(frozen=True, slots=True)
class PlanCounters:
    """Monotone totals of one plan since the engine started.

    `accepted[i]` counts the rounds in which draft position i (0 is the first drafted token) was
    accepted, out of `rounds`; only self-speculation drafts. What was verified behind the end of a
    sequence is of no use, and not counted: `committed` is `rounds` and all of `accepted`. For
    diffusion a round is one block.
    `sequence_steps` sums the rows of every step, so `committed / sequence_steps` is tokens per step
    and sequence. `seconds` is wall time of steps, shared among the plans of a step by rows;
    while there is work a step lasts from the end of the one before.
    `mixed_seconds` and `mixed_committed` are the parts of `seconds` and `committed` from steps that
    also read prompts or ran another plan; what is left is decoding alone.
    """

    steps: int = 0
    forwards: int = 0
    sequence_steps: int = 0
    rounds: int = 0
    drafted: int = 0
    accepted: tuple[int, ...] = ()
    committed: int = 0
    denoising_steps: int = 0
    seconds: float = 0.0
    mixed_seconds: float = 0.0
    mixed_committed: int = 0


@dataclass(frozen=True, slots=True)
class EngineReport:
    """A replica's own view of itself at one moment; counters are monotone totals.

    `probes` counts steps of another plan that the governor took to learn, `predicted` is its
    estimate of every plan's tokens/s at the load of its last pick, `distrusts` counts how often it
    fell back to AR because steps yielded far less than that under a queue; all empty or 0 under a
    schedule of bands.
    """

    decoding: int
    prefilling: int
    waiting: int
    kv_tokens_used: int
    kv_tokens_total: int
    context_tokens: int
    plan: Plan
    schedule: Schedule
    schedule_age_s: float
    switches: int
    preemptions: int
    steps: int
    prompt_tokens: int
    generated_tokens: int
    finished: Mapping[str, int]
    plans: Mapping[Plan, PlanCounters]
    probes: Mapping[Plan, int] = field(default_factory=dict)
    predicted: Mapping[Plan, float] = field(default_factory=dict)
    distrusts: int = 0


class Engine(Protocol):
    """One model behind an asynchronous, cancellable, schedulable decoder."""

    async def start(self) -> None:
        """Loads weights and begins to step. Returns when requests can be served."""

    def generate(self, request: Request) -> AsyncIterator[Delta]:
        """Submits a request and yields its deltas; closing the iterator cancels it within one step.

        Raises `RequestRejected` or `EngineOverloaded` before the first delta, `EngineStopped` at
        any point.
        """

    def set_schedule(self, schedule: Schedule) -> None:
        """Takes effect at the next step boundary; an older (epoch, version) is ignored."""

    def report(self) -> EngineReport:
        """May be a tenth of a second old. Raises `EngineStopped` when nobody can tell."""

    def check_health(self) -> None:
        """Raises `EngineStopped` when the engine can no longer serve."""

    async def stop(self) -> None:
        """Ends all sequences with `EngineStopped` and frees the device."""

    def describe(self) -> Mapping[str, Any]:
        """Static facts: model, device, dtype, limits."""

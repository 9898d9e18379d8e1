"""The Engine protocol over an SGLang server with the plugin in it.

Tokens come from SGLang; text, stop strings and exact truncation are this side's, the same code as
the embedded engine's. SGLang is given no tokenizer and no stop strings, so that a sequence ends at
the same token whichever engine decodes it. Plans are chosen inside SGLang's scheduler by the plugin
(`plugin/`), which follows the schedule that is sent here.

Belongs to the event loop that `start` runs on; `set_schedule`, `report` and `check_health` may be
called from any thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from policies.vocabulary import SAFE_PLAN, Plan, Schedule
from replicas.admission import check_request
from replicas.engine import (
    Delta,
    EngineError,
    EngineOverloaded,
    EngineReport,
    EngineStopped,
    FinishReason,
    Request,
    RequestRejected,
)
from replicas.governor import Change
from replicas.sglang_engine.client import Chunk, Client
from replicas.sglang_engine.control_folder import ControlFolder
from replicas.sglang_engine.protocol import CONTROL_DIR_VARIABLE, PLAN_KEY, RequestOptions
from replicas.sglang_engine.reports import Reports, Requests
from replicas.sglang_engine.server import Command
from replicas.sglang_engine.supervisor import Patience, Supervisor
from replicas.torch_engine.detokenizer import TextStream
from replicas.torch_engine.sequence import Sequence

UNLIMITED_TOP_K = -1  # SGLang's word for no restriction


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What this side must know of the model."""

    tokenizer: Tokenizer
    vocab_size: int
    eos_token_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Limits:
    max_context_tokens: int
    max_sequences: int
    max_waiting: int


class SGLangEngine:
    """See the module. `command` runs the server; the control directory is added to it here."""

    def __init__(
        self,
        command: Command,
        model: ModelFacts,
        limits: Limits,
        *,
        schedule: Schedule | None = None,
        describe: Mapping[str, Any] | None = None,
        patience: Patience = Patience(),  # noqa: B008  # frozen
    ) -> None:
        self._model, self._limits = model, limits
        self._describe = dict(describe or {})
        self._folder = ControlFolder()
        directory = self._folder.path
        self._reports = Reports(directory, schedule or Schedule.pinned(SAFE_PLAN), patience.stale_s)
        environment = {**command.environment, CONTROL_DIR_VARIABLE: str(directory)}
        self._supervisor = Supervisor(
            Command(command.python, command.arguments, environment, command.module),
            directory,
            self._reports.end_of_run,
            patience,
        )
        self._numbers = itertools.count()
        self._open: set[str] = set()
        self._finished: Counter[str] = Counter()
        self._prompt_tokens = self._generated_tokens = 0
        self._aborts: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await self._supervisor.start()

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        self._supervisor.check()
        self._admit(request)
        self._open.add(request.request_id)
        outcome = FinishReason.CANCELLED
        try:
            async with aclosing(self._decode(request)) as deltas:
                async for delta in deltas:
                    outcome = delta.finish_reason or outcome
                    yield delta
        except EngineError:
            outcome = FinishReason.ERROR
            raise
        finally:
            self._open.discard(request.request_id)
            self._finished[outcome.value] += 1

    def set_schedule(self, schedule: Schedule) -> None:
        self._reports.send(schedule)

    def report(self) -> EngineReport:
        if not self._supervisor.is_up:
            self._supervisor.check()
            raise EngineStopped("the SGLang server has crashed and is being restarted")
        return self._reports.engine_report(
            Requests(
                len(self._open), self._prompt_tokens, self._generated_tokens, dict(self._finished)
            )
        )

    def plan_changes(self) -> Mapping[Change, int]:
        """Changes of plan so far, by plan before, plan after and reason."""
        return self._reports.changes()

    def plan_change_times(self) -> Mapping[Change, float]:
        """When each change of plan was last seen, in Unix seconds."""
        return self._reports.change_times()

    def check_health(self) -> None:
        """A server that is being restarted is not a failure yet; one that hangs is."""
        self._supervisor.check()
        if self._supervisor.is_up:
            self._reports.latest()

    async def stop(self) -> None:
        await self._supervisor.stop()
        for task in self._aborts:
            task.cancel()
        self._folder.remove()

    def describe(self) -> Mapping[str, Any]:
        return self._describe

    @property
    def server_pid(self) -> int:
        """The process that the server runs under (`child.py`)."""
        return self._supervisor.pid

    # -- one request ----------------------------------------------------------------------------

    def _admit(self, request: Request) -> None:
        limits = self._limits
        if request.request_id in self._open:
            raise RequestRejected(f"request id {request.request_id!r} is already in use")
        check_request(request, self._model.vocab_size, limits.max_context_tokens)
        if len(self._open) >= limits.max_sequences + limits.max_waiting:
            raise EngineOverloaded(
                f"{len(self._open)} requests are running or waiting (limits "
                f"{limits.max_sequences} and {limits.max_waiting}); retry later"
            )

    async def _decode(self, request: Request) -> AsyncGenerator[Delta, None]:
        client = await self._supervisor.client()
        # SGLang takes the id in an abort for a prefix: the number first keeps them apart.
        rid = f"{next(self._numbers)}.{request.request_id}"
        sequence = self._sequence(request)
        is_over = False  # on SGLang's side
        try:
            async with aclosing(
                client.generate(rid, request.prompt_token_ids, sampling_params(request))
            ) as chunks:
                async for chunk in chunks:
                    is_over = chunk.finish_reason is not None
                    for delta in self._deltas(sequence, chunk):
                        yield delta
                    if sequence.finish_reason is not None:
                        return
        except EngineError:
            is_over = True
            raise
        finally:
            if not is_over:
                self._abort(client, rid)

    def _sequence(self, request: Request) -> Sequence:
        return Sequence(
            request=request,
            arrival=0,
            seed=0,
            eos_token_ids=self._model.eos_token_ids,
            text=TextStream(self._model.tokenizer, request.sampling.stop),
        )

    def _deltas(self, sequence: Sequence, chunk: Chunk) -> Iterator[Delta]:
        """A chunk's commits: SGLang joins several when the connection is slower than it is."""
        self._supervisor.check()  # what was still buffered when the engine stopped is not served
        if sequence.generated == 0 and chunk.token_ids:
            self._prompt_tokens += sequence.prompt_length
        for plan, tokens in commits(chunk):
            kept, text = sequence.commit(tokens)
            self._generated_tokens += len(kept)
            yield self._delta(sequence, kept, text, plan)
            if sequence.finish_reason is not None:
                return
        if chunk.finish_reason is not None:  # for a reason that this side cannot see
            yield self._last_delta(sequence, chunk.finish_reason)

    def _last_delta(self, sequence: Sequence, reason: FinishReason) -> Delta:
        if reason is FinishReason.CANCELLED:
            raise EngineStopped("SGLang gave up the request; its server is stopping")
        sequence.finish_reason = reason
        text = "" if sequence.text is None else sequence.text.flush()
        return self._delta(sequence, (), text, None)

    def _delta(
        self, sequence: Sequence, token_ids: tuple[int, ...], text: str, plan: Plan | None
    ) -> Delta:
        request_id = sequence.request.request_id
        return Delta(request_id, token_ids, text, plan, sequence.finish_reason)

    def _abort(self, client: Client, rid: str) -> None:
        """Closing the connection ends the request too, but only when SGLang next looks. In the
        background, since whoever cancels does not wait."""

        async def abort() -> None:
            with contextlib.suppress(EngineError):  # a server that has ended has ended it as well
                await client.abort(rid)

        task = asyncio.get_running_loop().create_task(abort())
        self._aborts.add(task)
        task.add_done_callback(self._aborts.discard)


def sampling_params(request: Request) -> dict[str, Any]:
    """As SGLang's `/generate` takes them."""
    sampling = request.sampling
    options = RequestOptions(request.plan, request.quality, sampling.seed)
    return {
        "max_new_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or UNLIMITED_TOP_K,
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": sampling.ignore_eos,
        "custom_params": options.to_custom_params(),
    }


def commits(chunk: Chunk) -> Iterator[tuple[Plan | None, list[int]]]:
    """Runs of tokens that one plan committed. A token without a plan is its own: prefill's."""
    plans = chunk.details.get(PLAN_KEY) or [None] * len(chunk.token_ids)
    pairs = zip(plans, chunk.token_ids, strict=True)
    for plan, group in itertools.groupby(pairs, key=lambda pair: pair[0]):
        yield None if plan is None else _plan(plan), [token for _, token in group]


_plan = lru_cache(maxsize=256)(Plan.parse)  # requests may bring thresholds of their own

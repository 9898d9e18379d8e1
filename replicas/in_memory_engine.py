"""An engine without a model: scripted tokens, real protocol. For tests and for trying clients.

    engine = InMemoryEngine(tokenizer.decode, script=counting_from(7), max_running=2)

It keeps every promise of `replicas.engine.Engine` (cancellation, overload, stop strings, plans per
commit, schedules), so that whatever serves an engine can be tested without patching anything. What
a test steers it gives as an argument:

    script     the tokens of a request, as an iterable; raising from it is failing mid-stream
    pace       awaited before every commit; an `asyncio.Event`'s `wait` stops the engine at will
    schedule   which plan commits, and so how many tokens a commit has

It knows nothing of probabilities: temperature, top_p, top_k and seed change nothing.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from itertools import count, cycle, islice
from typing import Any

from policies.vocabulary import AR, Plan, Schedule
from replicas.engine import (
    Delta,
    EngineError,
    EngineOverloaded,
    EngineReport,
    EngineStopped,
    FinishReason,
    PlanCounters,
    Request,
    RequestRejected,
    SamplingParams,
)
from replicas.governor import Governor

Script = Callable[[Request], Iterable[int]]


def echo(request: Request) -> Iterator[int]:
    """The prompt, over and over."""
    return cycle(request.prompt_token_ids)


def counting_from(first: int) -> Script:
    """Token ids `first`, `first + 1`, ... for every request."""
    return lambda request: count(first)


def saying(token_ids: Sequence[int]) -> Script:
    """These tokens, then the end of the sequence."""
    return lambda request: token_ids


def failing_after(tokens: int, script: Script = echo, error: str = "device lost") -> Script:
    """The script's first tokens, then an `EngineError`."""

    def fail(request: Request) -> Iterator[int]:
        yield from islice(script(request), tokens)
        raise EngineError(error)

    return fail


async def _at_once() -> None:
    await asyncio.sleep(0)


class _Text:
    """The text of a growing sequence: what may be shown now, and where a stop string cuts it."""

    def __init__(self, decode: Callable[[Sequence[int]], str], sampling: SamplingParams) -> None:
        self._decode = decode
        self._stop = sampling.stop
        self._ids: list[int] = []
        self._shown = 0

    def add(self, token_id: int) -> tuple[str, bool]:
        """The text that this token allows to be shown, and whether a stop string was met."""
        self._ids.append(token_id)
        text = self._decode(self._ids)
        cuts = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if cuts:
            return self._show(text, min(cuts)), True
        return self._show(text, len(text) - self._held_back(text)), False

    def rest(self) -> str:
        text = self._decode(self._ids)
        return self._show(text, len(text))

    def _show(self, text: str, end: int) -> str:
        shown = text[self._shown : end]
        self._shown = max(self._shown, end)
        return shown

    def _held_back(self, text: str) -> int:
        """Characters at the end that a later token may change or turn into a stop string."""
        if text.endswith("\ufffd"):
            return len(text) - len(text.rstrip("\ufffd"))
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-size:]) for stop in self._stop):
                return size
        return 0


class InMemoryEngine:
    """See the module. `decode` turns token ids into text, as a tokenizer's does."""

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        *,
        script: Script = echo,
        pace: Callable[[], Awaitable[Any]] = _at_once,
        schedule: Schedule | None = None,
        eos_token_id: int | None = None,
        max_model_len: int = 2048,
        max_running: int = 64,
        max_waiting: int = 64,
    ) -> None:
        self.requests: list[Request] = []
        """Every request that was accepted, in order."""
        self._decode = decode
        self._script = script
        self._pace = pace
        self._governor = Governor(schedule or Schedule.pinned(AR))
        self._eos = eos_token_id
        self._max_model_len = max_model_len
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._slots = asyncio.Semaphore(max_running)
        self._stopped = asyncio.Event()
        self._running: dict[str, int] = {}
        self._waiting = 0
        self._totals: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._plans: dict[Plan, PlanCounters] = {}

    async def start(self) -> None:
        """Nothing to load."""

    async def generate(self, request: Request) -> AsyncIterator[Delta]:
        self.check_health()
        self._admit(request)
        outcome = FinishReason.CANCELLED
        try:
            async with self._slot(request), aclosing(self._decode_request(request)) as deltas:
                async for delta in deltas:
                    outcome = delta.finish_reason or outcome
                    yield delta
        except EngineError:
            outcome = FinishReason.ERROR
            raise
        finally:
            self._finished[outcome.value] += 1

    def set_schedule(self, schedule: Schedule) -> None:
        self._governor.receive(schedule, now=0.0)

    def report(self) -> EngineReport:
        used = sum(self._running.values())
        return EngineReport(
            decoding=len(self._running),
            prefilling=0,
            waiting=self._waiting,
            kv_tokens_used=used,
            kv_tokens_total=self._max_running * self._max_model_len,
            context_tokens=used,
            plan=self._governor.plan,
            schedule=self._governor.schedule,
            schedule_age_s=0.0,
            switches=self._governor.switches,
            preemptions=0,
            steps=self._totals["steps"],
            prompt_tokens=self._totals["prompt_tokens"],
            generated_tokens=self._totals["generated_tokens"],
            finished=dict(self._finished),
            plans=dict(self._plans),
        )

    def check_health(self) -> None:
        if self._stopped.is_set():
            raise EngineStopped("the engine has stopped; send requests to another replica")

    async def stop(self) -> None:
        self._stopped.set()
        for _ in range(self._waiting):  # wakes those that wait, to be told
            self._slots.release()

    def describe(self) -> Mapping[str, Any]:
        limits = {"max_model_len": self._max_model_len, "max_running": self._max_running}
        return {"engine": "in_memory", **limits}

    def _admit(self, request: Request) -> None:
        length = len(request.prompt_token_ids) + request.sampling.max_tokens
        if not request.prompt_token_ids:
            raise RequestRejected("the prompt has no tokens; send at least one")
        if length > self._max_model_len:
            raise RequestRejected(
                f"prompt and max_tokens make {length} tokens, the limit is {self._max_model_len}; "
                "shorten either"
            )
        if self._slots.locked() and self._waiting >= self._max_waiting:
            raise EngineOverloaded(
                f"{len(self._running)} sequences run and {self._waiting} wait, the limits are "
                f"{self._max_running} and {self._max_waiting}; retry later"
            )
        self.requests.append(request)

    @asynccontextmanager
    async def _slot(self, request: Request) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        prompt_tokens = len(request.prompt_token_ids)
        self._running[request.request_id] = prompt_tokens
        self._totals["prompt_tokens"] += prompt_tokens
        try:
            self.check_health()
            yield
        finally:
            del self._running[request.request_id]
            self._slots.release()

    async def _decode_request(self, request: Request) -> AsyncGenerator[Delta, None]:
        tokens = iter(self._script(request))
        text = _Text(self._decode, request.sampling)
        left = request.sampling.max_tokens
        plan: Plan | None = None  # prefill yields the first token
        finish: FinishReason | None = None
        while finish is None:
            await self._or_stopped(self._pace())
            size = min(left, plan.block_length if plan else 1)
            ids, shown, finish = self._commit(tokens, size, text, request.sampling)
            left -= len(ids)
            if finish is None and left == 0:
                shown, finish = shown + text.rest(), FinishReason.LENGTH
            self._count(request, plan, len(ids))
            yield Delta(request.request_id, tuple(ids), shown, plan, finish)
            plan = self._next_plan(request)

    def _commit(
        self, tokens: Iterator[int], size: int, text: _Text, sampling: SamplingParams
    ) -> tuple[list[int], str, FinishReason | None]:
        """Up to `size` tokens, truncated exactly where the sequence ends."""
        ids: list[int] = []
        shown = ""
        for _ in range(size):
            token = next(tokens, None)
            if token is None:
                return ids, shown + text.rest(), FinishReason.STOP
            ids.append(token)
            is_eos = token == self._eos and not sampling.ignore_eos
            if is_eos or token in sampling.stop_token_ids:
                return ids, shown + text.rest(), FinishReason.STOP
            more, stopped = text.add(token)
            shown += more
            if stopped:
                return ids, shown, FinishReason.STOP
        return ids, shown, None

    def _next_plan(self, request: Request) -> Plan:
        plan = request.plan or self._governor.pick(len(self._running), now=0.0)
        return plan if plan.serves(request.quality) else AR

    def _count(self, request: Request, plan: Plan | None, tokens: int) -> None:
        self._running[request.request_id] += tokens
        self._totals["steps"] += 1
        self._totals["generated_tokens"] += tokens
        if plan is not None:
            old = self._plans.get(plan, PlanCounters())
            one = {name: getattr(old, name) + 1 for name in ("steps", "forwards", "sequence_steps")}
            self._plans[plan] = replace(old, committed=old.committed + tokens, **one)

    async def _or_stopped(self, work: Awaitable[Any]) -> None:
        """Waits for the work; raises EngineStopped when the engine stops first."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
            self.check_health()
        finally:
            task.cancel()
            stopped.cancel()
            await asyncio.gather(task, stopped, return_exceptions=True)

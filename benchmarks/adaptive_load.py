"""Closed-loop clients over HTTP, whose number and kind of prompts change while they run.

Answers are not streamed: one event per step would measure the proxy. Each is compared with the text
of the same request under AR, which under an exact plan must be the same character for character,
sampled requests (with a seed) too.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from benchmarks.adaptive_scenarios import EASY, HARD, MIXED, MOST, Scenario
from benchmarks.sse_client import Connection
from policies.vocabulary import Plan
from replicas.tiny.tasks import TASKS, held_out_set

MAX_TOKENS = 160
TICK_S = 0.02  # between two looks at the scenario
PER_TASK = {MIXED: 4, EASY: 13, HARD: 26}
KINDS: Mapping[str, tuple[Sequence[str], float]] = {
    MIXED: (TASKS, 0.0),
    EASY: (("add", "tests", "getters", "dataclass"), 0.0),
    HARD: (("story", "mail"), 2.0),
}
"""Tasks and temperature. At temperature 2 a story or a mail is so random that less than two drafted
tokens in a row are accepted; the easy tasks accept most of a block of 16."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request; `seed` makes a sampled one repeatable."""

    prompt: str
    temperature: float
    seed: int

    def body(self, plan: Plan | None = None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": self.prompt}],
            "max_tokens": MAX_TOKENS,
            "temperature": self.temperature,
            "seed": self.seed,
        }
        if plan is not None:
            body["trimode"] = {"mode": plan.mode.value, "block_length": plan.block_length}
        return body


def pools() -> dict[str, list[Ask]]:
    """Requests by kind, the tasks of a kind in turn."""
    found: dict[str, list[Ask]] = {}
    for kind, (tasks, temperature) in KINDS.items():
        per_task = [held_out_set(task, PER_TASK[kind]) for task in tasks]
        prompts = [sample.prompt for group in zip(*per_task, strict=False) for sample in group]
        found[kind] = [Ask(text, temperature, seed) for seed, text in enumerate(prompts)]
    return found


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    tokens: int
    finish_reason: str


@dataclass(slots=True)
class Received:
    """What clients have seen so far. A wrong text is one that differs from AR's."""

    requests: int = 0
    tokens: int = 0
    failed: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "requests": self.requests,
            "tokens": self.tokens,
            "failed": self.failed,
            "wrong": self.wrong,
            "errors": self.errors[:5],
        }


async def ask(connection: Connection, path: str, body: Any) -> Answer:
    """Raises ConnectionError or ValueError where there is no whole answer."""
    row = json.loads(await connection.post(path, body))
    choice = row["choices"][0]
    if choice["finish_reason"] not in ("stop", "length"):
        raise ValueError(f"finish_reason {choice['finish_reason']}")
    tokens = row["usage"]["completion_tokens"]
    return Answer(choice["message"]["content"], tokens, choice["finish_reason"])


async def answers(
    port: int, path: str, asks: Iterable[Ask], plan: Plan | None, clients: int = 16
) -> dict[Ask, Answer]:
    """The answer to every request, each pinned to `plan`."""
    waiting, found = list(asks), {}

    async def client() -> None:
        async with Connection("127.0.0.1", port) as connection:
            while waiting:
                wanted = waiting.pop()
                found[wanted] = await ask(connection, path, wanted.body(plan))

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


class Load:
    """Up to `MOST` clients, of which as many ask as `set` says.

    Args:
        port: Serve's.
        path: of the application's chat completions.
        pools: requests by kind; they are asked in order, again and again.
        references: what the answers must be; None does not compare.
    """

    def __init__(
        self,
        port: int,
        path: str,
        pools: Mapping[str, Sequence[Ask]],
        references: Mapping[Ask, Answer] | None,
    ) -> None:
        self.received = Received()
        self.concurrency, self.traffic = 0, MIXED
        self._port, self._path = port, path
        self._pools, self._references = pools, references
        self._next = 0
        self._in_flight = 0
        self._changed = asyncio.Event()
        self._clients: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._clients = [asyncio.create_task(self._client(index)) for index in range(MOST)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.set(0)
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    def set(self, concurrency: int, traffic: str = MIXED) -> None:
        """From now on; requests that run are left to end."""
        self.traffic = traffic
        if concurrency != self.concurrency:
            self.concurrency = concurrency
            self._changed.set()
            self._changed = asyncio.Event()

    def restart(self) -> None:
        """The next requests are the first ones of their pools, so that arms are asked alike."""
        self._next = 0

    async def idle(self) -> None:
        """Ends the load and waits for what still runs."""
        self.set(0)
        while self._in_flight:
            await asyncio.sleep(TICK_S)

    async def follow(
        self, scenario: Scenario, on_change: Callable[[int, str], None] | None = None
    ) -> None:
        """The whole scenario once."""
        began, last = time.monotonic(), None
        while (at_s := time.monotonic() - began) < scenario.seconds:
            now = scenario.at(at_s)
            if now != last:
                self.set(*now)
                if on_change is not None:
                    on_change(*now)
                last = now
            await asyncio.sleep(min(TICK_S, max(0.0, scenario.seconds - at_s)))

    async def _client(self, index: int) -> None:
        while True:
            while index >= self.concurrency:
                await self._changed.wait()
            try:
                # A new one after every rest: the server closes connections that are idle, and may
                # be doing so just as the next request is written.
                async with Connection("127.0.0.1", self._port) as connection:
                    await self._ask_on(connection, index)
            except OSError as error:  # a lost connection too; its request has been counted
                self.received.errors.append(repr(error))
                await asyncio.sleep(TICK_S)

    async def _ask_on(self, connection: Connection, index: int) -> None:
        while index < self.concurrency:
            pool = self._pools[self.traffic]
            wanted = pool[self._next % len(pool)]
            self._next += 1
            self._in_flight += 1
            try:
                self._take(wanted, await ask(connection, self._path, wanted.body()))
            except (OSError, EOFError, ValueError, KeyError) as error:
                self.received.failed += 1
                raise ConnectionError(f"{wanted.prompt!r}: {error!r}") from error
            finally:
                self._in_flight -= 1

    def _take(self, wanted: Ask, answer: Answer) -> None:
        self.received.requests += 1
        self.received.tokens += answer.tokens
        if self._references is not None and answer != self._references[wanted]:
            self.received.wrong += 1

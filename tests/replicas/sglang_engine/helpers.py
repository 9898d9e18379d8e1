"""What the adapter's tests share: engines over the fake server, requests, and waiting."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from policies.vocabulary import Mode, Plan, Schedule
from replicas.engine import Delta, EngineReport, Request, SamplingParams
from replicas.sglang_engine.engine import Limits, ModelFacts, SGLangEngine
from replicas.sglang_engine.server import Command
from replicas.sglang_engine.supervisor import Patience
from replicas.tiny import CHECKPOINT
from tests.replicas.sglang_engine.fake_sglang import EOS, tokens_after

ROOT = Path(__file__).resolve().parents[3]
MODEL = ModelFacts(
    Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")),
    vocab_size=848,
    eos_token_ids=frozenset({EOS}),
)
PROMPT = (40, 41, 42)
SPECULATION = Plan(Mode.SELF_SPECULATION, 8)
LIMITS = Limits(max_context_tokens=512, max_sequences=4, max_waiting=2)
PATIENCE = Patience(
    start_s=60, plugin_s=20, stale_s=20, restart_wait_s=60, drain_s=20, restarts=2, first_retry_s=0
)
"""Long where a test waits for something good, since machines may be busy."""


@dataclass(frozen=True)
class Served:
    """An engine that runs, and the events of the server behind it."""

    engine: SGLangEngine
    events_file: Path

    def events(self, kind: str) -> list[dict[str, Any]]:
        lines = self.events_file.read_text().splitlines() if self.events_file.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == kind]

    @property
    def server(self) -> int:
        """The process of the server that runs now, below the one that guards it."""
        return int(self.events("schedule")[-1]["pid"])


Serve = Callable[..., AbstractAsyncContextManager[Served]]


def fake_command(events: Path, *flags: str) -> Command:
    return Command(
        sys.executable,
        ("--port", "{port}", "--events", str(events), *flags),
        {"PYTHONPATH": str(ROOT)},
        module="tests.replicas.sglang_engine.fake_sglang",
    )


async def until(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """The condition's value once it is true."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value


def request(request_id: str = "a", max_tokens: int = 100, **sampling: object) -> Request:
    return Request(request_id, PROMPT, SamplingParams(max_tokens, **sampling))  # type: ignore[arg-type]


async def collect(engine: SGLangEngine, one: Request) -> list[Delta]:
    return [delta async for delta in engine.generate(one)]


def tokens(deltas: list[Delta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


def expected(count: int) -> list[int]:
    return [token for token, _ in zip(tokens_after(request()), range(count), strict=False)]


def report_under(served: Served, schedule: Schedule) -> EngineReport | None:
    report = served.engine.report()
    return report if report.schedule == schedule else None

"""Engines over the fake server, and what that server has seen."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from policies.vocabulary import Schedule
from replicas.sglang_engine.engine import Limits, ModelFacts, SGLangEngine
from replicas.sglang_engine.server import Command
from replicas.sglang_engine.supervisor import Patience
from replicas.tiny import CHECKPOINT
from tests.replicas.sglang_engine.fake_sglang import EOS

ROOT = Path(__file__).resolve().parents[3]
MODEL = ModelFacts(
    Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")),
    vocab_size=848,
    eos_token_ids=frozenset({EOS}),
)
LIMITS = Limits(max_context_tokens=512, max_sequences=4, max_waiting=2)
PATIENCE = Patience(
    start_s=20, plugin_s=1, stale_s=1, restart_wait_s=20, drain_s=5, restarts=2, first_retry_s=0.01
)


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


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Runs an engine over the fake server with these flags."""

    @asynccontextmanager
    async def run(
        *flags: str,
        limits: Limits = LIMITS,
        patience: Patience = PATIENCE,
        schedule: Schedule | None = None,
    ) -> AsyncIterator[Served]:
        events = tmp_path / "events.jsonl"
        command = fake_command(events, *flags)
        engine = SGLangEngine(command, MODEL, limits, schedule=schedule, patience=patience)
        await engine.start()
        try:
            yield Served(engine, events)
        finally:
            await engine.stop()

    return run


async def until(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """The condition's value once it is true."""
    async with asyncio.timeout(timeout_s):
        while not (value := condition()):
            await asyncio.sleep(0.01)
    return value

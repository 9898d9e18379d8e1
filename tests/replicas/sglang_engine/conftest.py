"""Engines over the fake server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from policies.vocabulary import Schedule
from replicas.sglang_engine.engine import Limits, SGLangEngine
from replicas.sglang_engine.supervisor import Patience
from tests.replicas.sglang_engine.helpers import (
    LIMITS,
    MODEL,
    PATIENCE,
    Serve,
    Served,
    fake_command,
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

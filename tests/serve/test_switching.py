"""Plans change while requests are in flight, by an operator or by load, and nobody notices.

Run with: pytest tests/serve -s (which prints the measured times)
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator

import pytest

from tests.serve.cluster import PROMPTS, App, until, wait_for

MODES = ("ar", "self_speculation/16", "diffusion/8")
FLIPS_S = 20.0


@pytest.fixture(autouse=True)
def _unpinned(app: App) -> Iterator[None]:
    yield
    app.unpin()


def test_flipping_a_pin_every_second_fails_nothing_and_changes_no_exact_text(app: App) -> None:
    async def scenario() -> None:
        expected = {p: (await app.ask(p, quality="exact")).text for p in PROMPTS}
        flipped, still = app.wait_for_replicas(2)
        app.pin("self_speculation/8", still, ttl_s=300)
        flips = 0
        async with app.load(4, quality="exact") as exact, app.load(4) as free:
            await until(lambda: app.metrics(still)[_active("self_speculation/8", still)] == 1)
            await asyncio.sleep(2.5)  # its next call tells of that switch
            switches = app.replicas()[still]["switches"]
            ends = time.monotonic() + FLIPS_S
            while time.monotonic() < ends:
                await asyncio.to_thread(app.pin, MODES[flips % 3], flipped)
                flips += 1
                await asyncio.sleep(1.0)
            rows = app.replicas()
        assert rows[still]["switches"] == switches
        assert rows[still]["plan"] == "self_speculation/8"
        assert rows[flipped]["switches"] >= flips - 2
        assert [o.error for o in (*exact, *free) if o.error] == []
        assert [(o.prompt, o.text) for o in exact if o.text != expected[o.prompt]] == []
        used = {plan for o in (*exact, *free) for plan in o.plans}
        assert used >= {"ar", "self_speculation/16", "self_speculation/8", "diffusion/8"}
        assert not {p for o in exact for p in o.plans if p.startswith("diffusion")}
        mixed = sum(len(o.plans) > 1 for o in (*exact, *free))
        print(f"\n{flips} flips, {len(exact) + len(free)} requests, {mixed} of them in two plans")

    asyncio.run(scenario())


def test_a_pin_reaches_the_client_within_a_block(app: App) -> None:
    """Both replicas saturated; from sending the pin to the first token decoded under it."""

    async def scenario() -> list[float]:
        seen: list[tuple[float, str]] = []

        async def watch() -> None:
            while True:
                stream = await app.async_client.completions.create(
                    model="tiny",
                    prompt=PROMPTS[0],
                    max_tokens=1500,
                    stream=True,
                    temperature=0,
                    extra_body={"ignore_eos": True},
                )
                async for chunk in stream:
                    plan = (chunk.model_extra or {}).get("trimode", {}).get("plan")
                    if plan is not None:
                        seen.append((time.monotonic(), plan))

        watchers = [asyncio.create_task(watch()) for _ in range(6)]
        delays = []
        try:
            await asyncio.sleep(2)
            for number in range(24):
                plan = ("ar", "self_speculation/16")[number % 2]
                sent = time.monotonic()
                await asyncio.to_thread(app.pin, plan)
                while not any(at > sent and p == plan for at, p in seen):
                    await asyncio.sleep(0.002)
                delays.append(next(at - sent for at, p in seen if at > sent and p == plan))
                await asyncio.sleep(0.4)
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)
        return delays

    delays = sorted(asyncio.run(scenario()))
    p50, p95 = statistics.median(delays), delays[int(0.95 * (len(delays) - 1))]
    print(f"\npin to first token in the new mode: p50 {p50 * 1e3:.0f} ms, p95 {p95 * 1e3:.0f} ms")
    assert p95 < 1.0  # the bar of 100 ms is the benchmark's; a loaded machine is no regression


def test_a_pin_expires_by_itself(app: App) -> None:
    app.pin("ar", ttl_s=1.5)
    assert {row["pin"]["plan"] for row in app.replicas().values()} == {"ar"}
    wait_for(lambda: not any(row["pin"] for row in app.replicas().values()), 5)
    wait_for(lambda: all(len(r["schedule"]["bands"]) > 1 for r in app.replicas().values()), 5)
    reasons = {row["reason"] for row in app.get("/control/v1/decisions")}
    assert {"pinned", "pin_expired"} <= reasons


def test_rising_load_moves_the_plan_along_the_bands(app: App) -> None:
    async def scenario() -> None:
        def use(plan: str) -> bool:
            rows = app.replicas()
            return {row["plan"] for row in rows.values()} == {plan} and all(
                app.metrics(name)[_active(plan, name)] == 1 and row["signals"]["decoding"]["value"]
                for name, row in rows.items()
            )

        app.wait_for_replicas(2)
        async with app.load(4) as calm:
            began = time.monotonic()
            await until(lambda: use("self_speculation/16"))
            calm_s = time.monotonic() - began
        async with app.load(20) as busy:
            began = time.monotonic()
            await until(lambda: use("self_speculation/8"))
            busy_s = time.monotonic() - began
        print(
            f"\nplan of the band shown {calm_s:.1f} s after 4 and {busy_s:.1f} s after 20 streams"
        )
        assert [o.error for o in (*calm, *busy) if o.error] == []

    asyncio.run(scenario())


def _active(plan: str, replica: str) -> str:
    labels = f'mode="self_speculation",plan="{plan}",replica="{replica}"'
    return f"trimode_plan_active{{{labels}}}"

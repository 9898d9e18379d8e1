"""Processes are killed under load: other streams go on, plans stay, the rest recovers by itself.

Run with: pytest tests/serve -s (which prints the measured times)
"""

from __future__ import annotations

import asyncio
import time

from tests.serve.cluster import App, Outcome, kill, processes, until


def _errors(outcomes: list[Outcome]) -> list[str]:
    return [o.error for o in outcomes if o.error]


def test_killing_the_controller_fails_no_request_and_keeps_plans_and_pins(app: App) -> None:
    async def scenario() -> None:
        before = app.wait_for_replicas(2)
        pinned = next(iter(before))
        app.pin("self_speculation/32", pinned, ttl_s=120)
        epoch = app.get("/control/v1/policy")["epoch"]
        async with app.load(6) as outcomes:
            await asyncio.sleep(1)
            bands = {name: row["schedule"]["bands"] for name, row in app.replicas().items()}
            (pid,) = processes("ray::ServeReplica:main:controller")
            killed = kill(pid)

            def recovered() -> bool:
                return app.get("/control/v1/policy")["epoch"] > epoch and len(app.replicas()) == 2

            await until(recovered)
            took_s = time.monotonic() - killed
            rows = app.wait_for_replicas(2)
            await asyncio.sleep(1)
        assert _errors(outcomes) == []
        assert {name: row["schedule"]["bands"] for name, row in rows.items()} == bands
        assert rows[pinned]["pin"]["plan"] == "self_speculation/32"
        print(
            f"\ncontroller killed: both replicas adopted by a new one after {took_s:.2f} s, "
            f"{len(outcomes)} requests, 0 failed"
        )

    asyncio.run(scenario())
    app.unpin()


def test_killing_a_replica_leaves_other_streams_alone_and_it_is_replaced(app: App) -> None:
    async def scenario() -> None:
        before = set(app.wait_for_replicas(2))
        async with app.load(6) as outcomes:
            await asyncio.sleep(1)
            victim, _ = processes("ray::ServeReplica:main:replica")
            killed = kill(victim)

            def replaced() -> bool:
                return len(app.replicas().keys() - before) == 1

            await until(replaced)
            took_s = time.monotonic() - killed
            await asyncio.sleep(2)
        failed = [o for o in outcomes if o.error]
        # At most what the victim was decoding, and what was sent there before Serve noticed.
        assert len(failed) <= 12, _errors(outcomes)
        assert all(o.at - killed < 3 for o in failed)
        assert sum(o.at > killed and not o.error for o in outcomes) > 5
        print(
            f"\nreplica killed: replaced and registered after {took_s:.2f} s, "
            f"{len(outcomes)} requests, {len(failed)} failed: {set(_errors(outcomes))}"
        )

    asyncio.run(scenario())


def test_killing_serves_own_controller_fails_no_request_and_pins_still_work(app: App) -> None:
    async def scenario() -> None:
        app.wait_for_replicas(2)
        async with app.load(6) as outcomes:
            await asyncio.sleep(1)
            (pid,) = processes("ray::ServeController")
            killed = kill(pid)
            await until(lambda: app.pin("ar", ttl_s=30))
            await until(lambda: {row["plan"] for row in app.replicas().values()} == {"ar"})
            took_s = time.monotonic() - killed
            await until(lambda: processes("ray::ServeController"))
            back_s = time.monotonic() - killed
            await asyncio.sleep(3)
        assert _errors(outcomes) == []
        print(
            f"\nServe's controller killed: a pin held on both replicas after {took_s:.2f} s, "
            f"it was back after {back_s:.2f} s, {len(outcomes)} requests, 0 failed"
        )

    asyncio.run(scenario())
    app.unpin()

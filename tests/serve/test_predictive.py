"""The default policy as it is served: step times measured at the start, worth, governor, learning.

Which plan is best is this machine's business, so none is expected by name: what the policy promises
is that the plan in use is near the best one it knows of.

Run with: pytest tests/serve/test_predictive.py
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from tests.serve.cluster import PROMPTS, App, until

EXACT = ("ar", *(f"self_speculation/{length}" for length in (4, 8, 16, 32)))
NEAR = 0.8  # of the best prediction: hysteresis, twice that after a change, and a step's noise


@pytest.fixture(scope="module")
def default_app(deploy: Callable[..., App]) -> Iterator[App]:
    from ray import serve

    yield deploy("default", num_replicas=1)
    serve.delete("default")


def _predicted(app: App, name: str) -> dict[str, float]:
    """The governor's own tokens/s by plan, and under "active" that of the plan in use."""
    page, found = app.metrics(name), {}
    for plan in EXACT:
        labels = f'{{mode="{plan.partition("/")[0]}",plan="{plan}",replica="{name}"}}'
        value = page.get(f"trimode_governor_predicted_tokens_per_second{labels}")
        if value is None:
            return {}
        found[plan] = value
        if page[f"trimode_plan_active{labels}"] == 1:
            found["active"] = value
    return found


def _is_near_the_best(app: App, name: str) -> bool:
    found = _predicted(app, name)
    return bool(found) and found["active"] >= NEAR * max(found.values())


def test_a_new_replica_measures_itself_and_serves_in_a_plan_near_its_best(
    default_app: App,
) -> None:
    (name,) = default_app.wait_for_replicas(1)
    worth = default_app.replicas()[name]["schedule"]["worth"]
    assert worth["profile"].startswith("tiny on ")
    assert set(worth["tokens_per_step"]) == set(EXACT)

    async def scenario() -> None:
        for streams in (1, 8):
            async with default_app.load(streams) as outcomes:
                await until(lambda: len(outcomes) > 40)
                await until(lambda: _is_near_the_best(default_app, name))
            assert [o.error for o in outcomes if o.error] == []

    asyncio.run(scenario())


def test_learning_and_probing_change_no_exact_text_and_a_pin_ends_in_the_best_plan(
    default_app: App,
) -> None:
    (name,) = default_app.wait_for_replicas(1)

    async def scenario() -> None:
        expected = {p: (await default_app.ask(p, mode="ar")).text for p in PROMPTS}
        async with default_app.load(6) as outcomes:
            await until(lambda: len(outcomes) > 60)
            default_app.pin("ar")
            await until(lambda: default_app.replicas()[name]["schedule"]["worth"] is None)
            await asyncio.to_thread(default_app.unpin)
            await until(lambda: _is_near_the_best(default_app, name))
        assert [o.error for o in outcomes if o.error] == []
        assert [o.prompt for o in outcomes if o.text != expected[o.prompt]] == []

    asyncio.run(scenario())

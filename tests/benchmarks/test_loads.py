"""`pytest tests/benchmarks/test_loads.py`: adaptive on the engine alone, at reduced loads."""

from __future__ import annotations

import pytest

from benchmarks import loads
from benchmarks.adaptive_analysis import ADAPTIVE
from benchmarks.demo_engine import adaptive_schedule, demo_engine
from orchestrator.app_config import AppConfig
from policies.step_time import shipped_profile
from policies.vocabulary import Schedule
from policies.worth import Worth
from replicas.engine import FinishReason
from tests.replicas.torch_engine.runs import EXACT


@pytest.fixture(scope="module")
def bench() -> loads.Bench:
    engine, checkpoint = demo_engine(loads.MOST)
    worth = Worth(EXACT, shipped_profile("cpu"))
    clients = loads.Clients(engine, loads.pooled(checkpoint))
    settings = loads.Settings(0.02, 0.02, 0.02, rounds=2, levels=(1, 2))
    bench = loads.Bench(
        engine, clients, Schedule.pinned(EXACT[0], worth=worth), settings, lambda line: None
    )
    bench.run()
    return bench


def test_every_arm_is_measured_at_every_load_in_every_round(bench: loads.Bench) -> None:
    expected = {(level, kind) for level in (1, 2) for kind in loads.KINDS}
    for rates in (bench.steady, bench.moving):
        assert set(rates) == expected
        for by_arm in rates.values():
            assert set(by_arm) == {*map(str, EXACT), ADAPTIVE}
            assert all(len(seen) == 2 for seen in by_arm.values())


def test_every_request_has_ended_afterwards_and_none_was_cancelled(bench: loads.Bench) -> None:
    report = bench.engine.report()
    assert report.decoding == report.prefilling == report.waiting == 0
    assert report.finished[FinishReason.CANCELLED] == 0 < sum(report.finished.values())


def test_every_plan_has_run(bench: loads.Bench) -> None:
    assert all(bench.engine.report().plans[plan].steps for plan in EXACT)


def test_a_clairvoyant_has_the_best_fixed_plan_of_every_load() -> None:
    rates = {
        (1, "easy"): {"ar": [10.0], "self_speculation/8": [30.0, 10.0], ADAPTIVE: [18.0]},
        (8, "hard"): {"ar": [40.0], "self_speculation/8": [10.0], ADAPTIVE: [38.0]},
    }
    found = loads.Summary.of(rates)
    assert found.to_best == {(1, "easy"): 0.9, (8, "hard"): 0.95}
    assert (found.best, found.adaptive, found.clairvoyant) == ("ar", 56 / 50, 60 / 50)


def test_bars_are_of_every_load_and_of_all_together() -> None:
    found = loads.Summary({(1, "easy"): 0.99}, 1.05, 1.2, "ar")
    bars = {bar.name: bar.ok for bar in loads.bars_of(found, found)}
    assert bars == {
        "adaptive / best fixed plan, 1 easy": True,
        "adaptive / best single fixed plan, steady": False,
        "adaptive / best single fixed plan, moving": False,
    }


def test_without_a_profile_there_is_nothing_to_adapt_by() -> None:
    engine, _ = demo_engine(1)
    config = AppConfig.model_validate({"profile": "none"})
    assert adaptive_schedule(engine, config) is None

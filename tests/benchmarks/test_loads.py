"""`pytest tests/benchmarks/test_loads.py`: adaptive on the engine alone, at reduced loads."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from benchmarks import loads
from benchmarks.adaptive_analysis import ADAPTIVE
from benchmarks.demo_engine import adaptive_schedule, demo_engine, demo_model
from benchmarks.loads_arms import Stopwatch, arms_of
from orchestrator.app_config import AppConfig
from policies.step_time import shipped_profile
from policies.vocabulary import Schedule
from policies.worth import Worth
from replicas.engine import FinishReason
from replicas.torch_engine.engine import EngineLimits
from tests.replicas.torch_engine.runs import EXACT


@pytest.fixture(scope="module")
def bench() -> loads.Bench:
    model, checkpoint = demo_model(EngineLimits(max_sequences=loads.MOST))
    worth = Worth(EXACT, shipped_profile("cpu"))
    arms = arms_of(model, checkpoint, Schedule.pinned(EXACT[0], worth=worth))
    settings = loads.Settings(0.02, 0.02, 0.02, rounds=2, levels=(1, 2))
    bench = loads.Bench(arms, settings, lambda line: None)
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
    for arm in bench.arms:
        report = arm.engine.report()
        assert report.decoding == report.prefilling == report.waiting == 0
        assert report.finished[FinishReason.CANCELLED] == 0 < sum(report.finished.values())


def test_a_fixed_arm_runs_its_plan_and_no_other(bench: loads.Bench) -> None:
    for arm in bench.arms:
        used = {str(plan) for plan, tally in arm.engine.report().plans.items() if tally.steps}
        assert used == {arm.name} or arm.name == ADAPTIVE
    assert [arm.name for arm in bench.arms] == [*map(str, EXACT), ADAPTIVE]


def test_an_engine_does_not_notice_that_others_run() -> None:
    now = [100.0]
    watch = Stopwatch(lambda: now[0])
    seen = []
    for is_running, seconds in ((True, 2.0), (False, 5.0), (True, 3.0)):
        with watch.running() if is_running else nullcontext():
            now[0] += seconds
            seen.append(watch())
    assert seen == [2.0, 2.0, 5.0]


def test_a_clairvoyant_has_the_best_fixed_plan_of_every_load() -> None:
    rates = {
        (1, "easy"): {"ar": [10.0], "self_speculation/8": [30.0, 10.0], ADAPTIVE: [18.0]},
        (8, "hard"): {"ar": [40.0], "self_speculation/8": [10.0], ADAPTIVE: [38.0]},
    }
    found = loads.Summary.of(rates)
    assert found.to_best == {(1, "easy"): 0.9, (8, "hard"): 0.95}
    assert (found.best, found.adaptive, found.clairvoyant) == ("ar", 56 / 50, 60 / 50)
    assert found.by_round == [56 / 50]


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

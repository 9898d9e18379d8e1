"""What a calibration measures, and that it keeps to its time, on a core with a fake clock."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from policies.fit import fit_curve
from policies.step_time import forwards_per_step
from policies.vocabulary import AR, Mode, Plan, all_plans
from replicas.calibration import Measured, measure
from replicas.meter import Bounds, Load, loads
from tests.replicas.fake_core import MACHINE, FakeCore

SS8, DIFFUSION8 = Plan(Mode.SELF_SPECULATION, 8), Plan(Mode.DIFFUSION, 8)


def run(core: FakeCore, budget_s: float = 6.0) -> Measured:
    return measure(core, core.bounds, budget_s, clock=core.clock, timer=core.clock)


def errors(measured: Measured) -> list[float]:
    return [
        s.seconds
        / forwards_per_step(s.plan)
        / MACHINE.forward_s(s.sequences, s.plan.block_length, s.context_tokens)
        - 1
        for s in measured.samples
    ]


def test_step_times_are_the_machines_own() -> None:
    assert max(map(abs, errors(run(FakeCore())))) < 0.02


def test_diffusion_is_timed_while_every_row_runs_it() -> None:
    # Rows that still finish another plan's block would make a step cheaper or dearer.
    core = FakeCore(extra=lambda plan: 2.0 if plan == DIFFUSION8 else 1.0)
    measured = run(core, 30.0)
    for sample in measured.samples:
        expected = forwards_per_step(sample.plan) * MACHINE.forward_s(
            sample.sequences, sample.plan.block_length, sample.context_tokens
        )
        factor = 2.0 if sample.plan == DIFFUSION8 else 1.0
        assert sample.seconds == pytest.approx(factor * expected, rel=0.02)
    assert {s.plan for s in measured.samples} == set(all_plans())


@pytest.mark.parametrize("budget_s", [2.0, 6.0, 60.0])
def test_it_keeps_to_its_budget_and_uses_it(budget_s: float) -> None:
    core = FakeCore()
    run(core, budget_s)
    assert 0.7 * budget_s < core.now < 1.3 * budget_s


def test_more_time_gives_more_loads() -> None:
    few, many = run(FakeCore(), 3.0), run(FakeCore(), 60.0)

    def seen(measured: Measured) -> set[tuple[int, int]]:
        return {(s.sequences, round(s.context_tokens / s.sequences, -2)) for s in measured.samples}

    assert len(seen(many)) > 2 * len(seen(few))
    assert {s.sequences for s in many.samples} == {1, 2, 4, 8, 16, 32, 64}


def test_the_cost_of_a_change_is_kept_apart_from_the_steps() -> None:
    measured = run(FakeCore(switch_s=0.004))
    assert measured.switch_s == pytest.approx(0.004, rel=0.05)
    assert max(map(abs, errors(measured))) < 0.02


def test_a_change_that_costs_nothing_is_not_negative() -> None:
    assert run(FakeCore(noise=0.2)).switch_s >= 0.0


def test_uncertain_medians_say_so() -> None:
    calm, noisy = run(FakeCore()), run(FakeCore(noise=0.3))
    assert max(s.error for s in calm.samples) < 0.04  # contexts grow
    assert sum(s.error for s in noisy.samples) / len(noisy.samples) > 0.05


def test_sequences_that_end_are_replaced() -> None:
    core = FakeCore(accepted=1.0, bounds=Bounds(8, 512, 512, range(3, 50)))
    measured = run(core, 20.0)
    assert core.ended > 0
    assert max(map(abs, errors(measured))) < 0.02
    assert core.rows == {}


def test_loads_that_do_not_fit_the_cache_are_left_out() -> None:
    core = FakeCore(kv_tokens=600)
    measured = run(core)
    assert max(s.sequences for s in measured.samples) <= 8
    assert not core.rows
    assert not core.queue


def test_an_engine_that_holds_nothing_is_refused_with_a_remedy() -> None:
    with pytest.raises(ValueError, match="larger KV cache"):
        run(FakeCore(kv_tokens=10))


def test_the_largest_shape_that_ran_is_known() -> None:
    measured = run(FakeCore(), 4.0)
    positions = [s.sequences * s.plan.block_length for s in measured.samples]
    assert measured.largest_positions == max(positions)


def test_too_slow_plans_are_left_to_the_curve() -> None:
    slow = FakeCore(curve=replace(MACHINE, position_s=4e-3))
    measured = run(slow, 20.0)
    assert slow.now < 30.0
    sizes = {
        s.plan: max(x.sequences for x in measured.samples if x.plan == s.plan)
        for s in measured.samples
    }
    assert sizes[AR] > sizes[Plan(Mode.SELF_SPECULATION, 32)]
    curve = fit_curve(measured.samples)
    truth = slow.curve.forward_s(32, 8, 32 * 300)
    assert curve.forward_s(32, 8, 32 * 300) == pytest.approx(truth, rel=0.1)


def test_loads_are_coarse_first_and_within_the_bounds() -> None:
    order = loads(Bounds(24, 2048, 512, range(3, 50)))
    assert order[:4] == [Load(1, 64), Load(1, 512), Load(4, 64), Load(1, 1792)]
    assert len(order) == len(set(order))
    assert {load.sequences for load in order} == {1, 2, 4, 8, 16, 24}
    assert max(load.length for load in order) < 2048
    assert loads(Bounds(1, 100, 512, range(3, 50))) == [Load(1, 1)]


def test_progress_rises_to_the_end() -> None:
    core, told = FakeCore(), []
    measure(
        core,
        core.bounds,
        3.0,
        progress=lambda share, text: told.append(share),
        clock=core.clock,
        timer=core.clock,
    )
    assert told == sorted(told)
    assert told[0] == 0.0
    assert math.isclose(told[-1], 1.0)

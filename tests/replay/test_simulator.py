"""Replay against what can be known without it. Run: pytest tests/replay/test_simulator.py"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from policies.observation import StepObservation
from policies.vocabulary import AR, Plan, Schedule
from policies.worth import Worth
from replay.batch import Request
from replay.contenders import parse
from replay.counters import INDEX, ROUNDS, STEPS, plan_signals
from replay.governed import Governed
from replay.load import OpenLoop, steps_of_load
from replay.outcome import Outcome
from replay.replica import Replica
from replay.simulator import run
from replay.traffic import CHANCES, Traffic
from replay.world import World, make_world
from replicas.governor import Governor
from tests.replay.builders import MACHINE, alike, constant, setting, varied

PROBED = Plan.parse("self_speculation/8")


def rows(outcome: Outcome) -> list[tuple[int, float, float]]:
    return [(r.number, r.first_at, r.finished_at) for r in outcome.requests]


@pytest.mark.parametrize("label", ["predictive", "threshold", "oracle", "ar", "diffusion/8"])
@pytest.mark.parametrize("replicas", [1, 3])
def test_every_request_finishes_once_with_exactly_its_tokens(label: str, replicas: int) -> None:
    trace = varied(120)
    outcome = run(setting(OpenLoop(trace), replicas=replicas), parse(label))
    assert sorted(r.number for r in outcome.requests) == list(range(len(trace)))
    assert outcome.tokens == int(trace.outputs.sum())
    assert all(r.arrived_at <= r.first_at <= r.finished_at for r in outcome.requests)


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    first, again = (run(setting(OpenLoop(varied(60))), parse("predictive")) for _ in range(2))
    assert rows(first) == rows(again)
    other = run(setting(OpenLoop(varied(60)), seed=1, traffic=Traffic(1)), parse("predictive"))
    assert rows(first) != rows(other)


def test_ar_at_a_constant_load_has_the_throughput_of_the_formula() -> None:
    level = 16
    outcome = run(setting(constant(level, 30.0), prefills=False), parse("ar"))
    expected = level / MACHINE.step_s(AR, level, level * 600)  # 500 prompt tokens, half of 200
    assert outcome.tokens_per_s == pytest.approx(expected, rel=0.02)


def test_self_speculation_at_a_constant_load_has_the_throughput_of_the_formula() -> None:
    # All requests easy, and so long that few rounds are cut by an end: (1 - q^8) / (1 - q) tokens.
    level, plan = 8, Plan.parse("self_speculation/8")
    easy = Traffic(0, ("high",))
    object.__setattr__(easy, "_bounds", ((1.0, 1.0),))
    load = constant(level, 30.0, alike(output=2000))
    outcome = run(setting(load, prefills=False, traffic=easy), parse(str(plan)))
    tokens = (1 - 0.92**8) / (1 - 0.92)
    expected = level * tokens / MACHINE.step_s(plan, level, level * 1500)
    assert outcome.tokens_per_s == pytest.approx(expected, rel=0.02)


def test_the_oracle_has_no_regret_and_no_fixed_plan_beats_it_by_more_than_noise() -> None:
    load = steps_of_load(alike(), [2, 40, 8], 10.0, replicas=1)
    met = setting(load, prefills=False, is_audited=True)
    oracle = run(met, parse("oracle"))
    (audit,) = oracle.audits
    assert max(audit.regrets) == 0.0
    for label in ("ar", "self_speculation/8", "self_speculation/32"):
        # 30 s hold some ten thousand rounds of a few hundred requests: 4 % is four deviations.
        assert run(met, parse(label)).tokens_per_s < 1.04 * oracle.tokens_per_s


def test_the_governor_that_picks_is_the_products_own() -> None:
    load = steps_of_load(alike(), [1, 60, 1], 10.0, replicas=1)
    met = setting(load, prefills=False, world=make_world(MACHINE, 0), is_audited=True)
    outcome = run(met, parse("predictive"))
    (audit,) = outcome.audits
    assert isinstance(audit.chooser, Governed)
    governor = audit.chooser.governor
    assert isinstance(governor, Governor)
    assert governor.switches >= 2
    assert sum(governor.probes.values()) > 0
    assert outcome.switches_per_minute == pytest.approx(governor.switches / 0.5)


def test_a_probe_is_one_step_and_leaves_the_plan_alone() -> None:
    schedule = Schedule.pinned(AR, worth=Worth((AR, PROBED), MACHINE))
    chooser = Governed(schedule)
    replica = Replica("r", World(MACHINE, noise=0.0), chooser, Traffic(0), (0,), prefills=False)
    due = replica.submit(Request(0, 0.0, 100, 3000, 0), 0.0)
    while due is not None and not chooser.governor.probes:
        due = replica.advance(due)
    assert due is not None
    (probed,) = chooser.governor.probes
    assert chooser.plan != probed
    row = replica.counters.table[INDEX[probed]]
    before, switches = row[STEPS], chooser.governor.switches
    replica.advance(due)
    assert row[STEPS] == before + 1
    assert chooser.governor.switches <= switches + 1


class Listener(Governed):
    """Counts the answers that it is told have ended."""

    answers = tokens = 0

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self.ended: list[tuple[float, float]] = []

    def observe(self, step: StepObservation, now: float) -> None:
        self.answers += step.answers
        self.tokens += step.tokens
        self.ended += zip(*step.ended, strict=True)
        super().observe(step, now)


def serve(replica: Replica, answers: Sequence[int]) -> None:
    """Requests for answers of so many tokens, all at once, until the last has ended."""
    due: float | None = None
    for number, tokens in enumerate(answers):
        due = replica.submit(Request(number, 0.0, 100, tokens, 0), 0.0) or due
    while due is not None:
        due = replica.advance(due)


def test_the_governor_is_told_how_the_drafts_of_every_answer_fared() -> None:
    plan = Plan.parse("self_speculation/8")
    chooser = Listener(Schedule.pinned(plan))
    replica = Replica("r", World(MACHINE, noise=0.0), chooser, Traffic(0), (0,), prefills=False)
    serve(replica, [1000] * 40)
    assert len(chooser.ended) == 40
    # Every round keeps a token besides the accepted ones, and one that is wrong ends it.
    rounds = chooser.tokens - sum(accepted for _, accepted in chooser.ended)
    assert rounds == replica.counters.table[:, ROUNDS].sum()
    # Requests are told apart by it: their chances are those of their classes.
    found = sorted({min(CHANCES, key=lambda c: abs(c - a / t)) for t, a in chooser.ended})
    assert all(min(abs(a / t - c) for c in CHANCES) < 0.06 for t, a in chooser.ended)
    assert len(found) > 1


def test_the_governor_is_told_of_every_answer_that_ends() -> None:
    chooser = Listener(Schedule.pinned(PROBED))
    replica = Replica("r", World(MACHINE, noise=0.0), chooser, Traffic(0), (0,), prefills=False)
    serve(replica, [10, 40, 40, 300])
    assert chooser.answers == 4


def test_metrics_call_accepted_what_was_kept_of_a_draft_and_not_what_lies_behind_an_end() -> None:
    plan = Plan.parse("self_speculation/32")
    chooser = Governed(Schedule.pinned(plan))
    replica = Replica("r", World(MACHINE, noise=0.0), chooser, Traffic(0), (0,), prefills=False)
    serve(replica, [8] * 40)
    used = plan_signals(replica.counters.table, 0.0)[plan]
    assert used.tokens_per_forward.value is not None
    kept = 2.0 * used.tokens_per_forward.value
    assert used.accepted_length.value == pytest.approx(kept - 1.0)
    assert sum(used.acceptance[:6]) == pytest.approx(kept - 1.0)  # of the 7 tokens after prefill's


def test_a_queue_forms_where_the_cache_is_full_and_everything_is_served_in_turn() -> None:
    tight = replace(MACHINE, kv_tokens=1500)  # two requests of 700 tokens
    met = setting(OpenLoop(alike(count=20)), profile=tight, world=World(tight, noise=0.0))
    outcome = run(met, parse("ar"))
    assert outcome.mean_batch <= 2.0
    assert len(outcome.requests) == 20
    first = [r.first_at for r in sorted(outcome.requests, key=lambda r: r.number)]
    assert first == sorted(first)


def test_prefill_delays_the_first_token_and_a_cached_prompt_less() -> None:
    trace = alike(count=1, prompt=4000)
    cached = replace(trace, cached=trace.prompts - 100)
    slow, fast = (run(setting(OpenLoop(t)), parse("ar")).ttft_s(0.5) for t in (trace, cached))
    assert slow == pytest.approx(MACHINE.curve.prefill_s(4000), rel=1e-6)
    assert fast is not None
    assert fast < 0.2 * MACHINE.curve.prefill_s(4000)


def test_an_arrival_waits_for_the_step_in_progress_and_not_for_the_chunk() -> None:
    chooser = Governed(Schedule.pinned(AR))
    replica = Replica("r", World(MACHINE), chooser, Traffic(0), (0,), prefills=False)
    due = replica.submit(Request(0, 0.0, 100, 1000, 0), 0.0)
    assert due is not None
    assert due > 0.05  # many steps at once
    sooner = replica.submit(Request(1, 0.02, 100, 1000, 0), 0.02)
    assert sooner is not None
    assert 0.02 <= sooner <= 0.02 + 1.1 * MACHINE.step_s(AR, 1, 101)
    replica.advance(sooner)
    assert len(replica.batch) == 2

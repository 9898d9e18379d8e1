"""The engine's front: what it refuses, how it is left, and what it says of itself."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import count

import pytest

from policies.acceptance import POSITIONS
from policies.step_time import shipped_profile
from policies.vocabulary import AR, Plan, Quality, Schedule, all_plans
from policies.worth import Worth
from replicas.engine import EngineOverloaded, FinishReason, RequestRejected
from replicas.probing import SPLIT_ROWS
from tests.replicas.torch_engine.builders import (
    TINY,
    build_engine,
    build_model,
    random_weights,
)
from tests.replicas.torch_engine.ledger import LedgerForward
from tests.replicas.torch_engine.runs import (
    DIFFUSION,
    EXACT,
    SPECULATION,
    assert_empty,
    drain,
    pin,
    request,
    run_all,
)

LEDGER = LedgerForward(TINY.vocab_size, TINY.mask_token_id)


@pytest.fixture
def engine():
    return build_engine(build_model(TINY, random_weights(TINY)), forward=LEDGER)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (request("r", ()), "prompt is empty"),
        (request("r", (3, 48)), "token id 48 .* 0 .. 47"),
        (request("r", (3, -1)), "token id -1 .* 0 .. 47"),
        (request("r", [3] * 100, 61), "100 tokens plus max_tokens 61 .* limit of 160"),
        (request("r", (3,), 10**9), "1000000000 .* 160"),
        (request("r", (3,), stop=("x",)), "stop strings need a tokenizer"),
        (request("taken", (3,)), "'taken' is already in use"),
    ],
)
def test_a_refusal_names_value_and_limit_and_leaves_nothing_behind(engine, refused, message):
    engine.submit(request("taken", (3, 4), 5))
    with pytest.raises(RequestRejected, match=message):
        engine.submit(refused)
    assert engine.report().waiting == 1
    assert list(drain(engine)) == ["taken"]


def test_the_longest_request_that_fits_is_served_in_every_plan(engine):
    for plan in EXACT:
        prompt = tuple(3 + i % 40 for i in range(100))
        outcome = run_all(engine, [request("r", prompt, 60, plan=plan)])["r"]
        assert outcome.tokens == LEDGER.reference(prompt, 60)


def test_a_full_queue_refuses_for_now():
    model = build_model(TINY, random_weights(TINY))
    engine = build_engine(model, forward=LEDGER, max_waiting=3)
    for i in range(3):
        engine.submit(request(str(i), (3, 4), 5))
    with pytest.raises(EngineOverloaded, match=r"3 requests are waiting .*3"):
        engine.submit(request("late", (3, 4), 5))
    engine.step()
    engine.submit(request("late", (3, 4), 5))
    assert len(drain(engine)["late"].tokens) == 5


def test_a_request_id_can_be_used_again_once_it_is_free(engine):
    for _ in range(2):
        assert len(run_all(engine, [request("same", (3, 4), 5)])["same"].tokens) == 5


@pytest.mark.parametrize("plan", all_plans(), ids=str)
def test_a_cancelled_request_is_gone_before_the_next_step(engine, plan):
    """Waiting, prefilling or decoding: its row is free at once, its neighbours do not notice."""
    pin(engine, plan)
    prompts = {str(i): tuple(3 + (i + j) % 40 for j in range(10 + 30 * i)) for i in range(4)}
    for name, prompt in prompts.items():
        engine.submit(
            request(name, prompt, 40, quality=Quality.ANY, plan=AR if name == "0" else None)
        )
    seen = []
    for step in range(4):
        for delta in engine.step():
            seen.append((step, delta.request_id))
        if step == 1:
            used = engine.report().kv_tokens_used
            delta = engine.cancel("2")
            assert (delta.finish_reason, delta.token_ids) == (FinishReason.CANCELLED, ())
            assert engine.report().kv_tokens_used < used
    assert engine.cancel("2") is None
    assert engine.cancel("never") is None
    assert all(step < 2 for step, name in seen if name == "2")
    drain(engine)
    assert engine.report().finished["cancelled"] == 1
    assert engine.report().finished["length"] == 3
    assert_empty(engine)


def test_a_report_says_what_runs_and_what_waits(engine):
    before = engine.report()
    assert (before.decoding, before.prefilling, before.waiting, before.steps) == (0, 0, 0, 0)
    assert before.kv_tokens_total == 192 * 8
    for i in range(10):
        engine.submit(request(str(i), [3 + i] * 20, 30))
    assert engine.report().waiting == 10
    engine.step()
    report = engine.report()
    assert (report.decoding, report.prefilling, report.waiting) == (8, 0, 2)
    assert report.context_tokens == 8 * 20
    assert report.kv_tokens_used == 8 * 96
    assert (report.prompt_tokens, report.generated_tokens) == (160, 8)
    drain(engine)
    report = engine.report()
    assert (report.prompt_tokens, report.generated_tokens) == (200, 300)
    assert report.finished == {"stop": 0, "length": 10, "cancelled": 0, "error": 0}


def test_prompt_tokens_count_once_however_often_they_are_cached():
    model = build_model(TINY, random_weights(TINY))
    engine = build_engine(model, forward=LEDGER, kv_tokens=192, max_step_tokens=64)
    run_all(engine, [request(str(i), [3 + i] * 50, 40) for i in range(5)])
    report = engine.report()
    assert report.preemptions > 0
    assert (report.prompt_tokens, report.generated_tokens) == (250, 200)


def test_a_schedule_takes_effect_at_the_next_step_and_an_older_one_never():
    now = [0.0]
    model = build_model(TINY, random_weights(TINY))
    engine = build_engine(model, forward=LEDGER, clock=lambda: now[0])
    engine.submit(request("r", (3, 4), 100))
    engine.step()
    pin(engine, SPECULATION[0], 5)
    now[0] = 2.0
    assert engine.report().schedule_age_s == 2.0
    (delta,) = engine.step()
    assert delta.plan == SPECULATION[0]
    pin(engine, SPECULATION[1], 4)
    (delta,) = engine.step()
    assert delta.plan == engine.report().plan == SPECULATION[0]
    assert engine.report().switches == 1
    expiring = Schedule.pinned(SPECULATION[2], ttl_s=1.0, version=6)
    engine.set_schedule(expiring)
    now[0] = 3.5
    (delta,) = engine.step()
    assert delta.plan == AR


def test_the_first_delta_says_how_long_the_request_was_queued():
    now = [10.0]
    model = build_model(TINY, random_weights(TINY))
    engine = build_engine(model, forward=LEDGER, clock=lambda: now[0], max_sequences=1)
    for name in ("first", "second"):
        engine.submit(request(name, (3, 4), 2))
    told = []
    while engine.has_work:
        told += [(delta.request_id, delta.queued_s) for delta in engine.step()]
        now[0] += 0.5
    assert told == [("first", 0.0), ("first", None), ("second", 1.0), ("second", None)]


def test_steps_that_also_read_prompts_are_told_apart_from_decoding_alone():
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    model = build_model(TINY, random_weights(TINY))
    engine = build_engine(model, forward=LEDGER, clock=clock)
    engine.submit(request("first", (3, 4), 5))
    engine.step()  # reads the prompt, which yields the first token
    engine.step()
    alone = engine.report().plans[AR]
    assert (alone.committed, alone.mixed_committed, alone.mixed_seconds) == (1, 0, 0.0)
    engine.submit(request("second", (3, 4), 2))
    engine.step()  # decodes the first, reads the second
    mixed = engine.report().plans[AR]
    assert (mixed.committed, mixed.mixed_committed) == (2, 1)
    assert mixed.mixed_seconds == mixed.seconds - alone.seconds > 0
    engine.step()
    both = engine.report().plans[AR]
    assert (both.committed, both.mixed_committed) == (4, 1)
    assert both.mixed_seconds == mixed.mixed_seconds


def test_counters_of_every_plan_add_up(copying, references):
    engine = build_engine(copying)
    plans = all_plans()
    requests = [
        request(f"{plan}/{i}", prompt, 40, plan=plan, quality=Quality.ANY)
        for plan in plans
        for i, prompt in enumerate(list(references)[:3])
    ]
    run_all(engine, requests)
    report = engine.report()
    assert set(report.plans) == set(plans)
    assert report.generated_tokens == 40 * len(requests)
    committed = sum(c.committed for c in report.plans.values())
    assert committed == report.generated_tokens - len(requests)
    for plan, counters in report.plans.items():
        assert counters.committed == 3 * 39
        assert counters.seconds > 0
        assert len(counters.accepted) == plan.block_length - 1
        if plan in SPECULATION:
            assert counters.forwards == 2 * counters.steps
            assert counters.rounds == counters.sequence_steps
            assert counters.drafted == counters.rounds * (plan.block_length - 1)
            assert counters.accepted[0] <= counters.rounds
            assert list(counters.accepted) == sorted(counters.accepted, reverse=True)
            # What was verified behind the end of an answer is of no use to anybody.
            assert counters.committed == counters.rounds + sum(counters.accepted)
        elif plan in DIFFUSION:
            assert counters.forwards == counters.steps
            assert counters.drafted == sum(counters.accepted) == 0
            assert counters.rounds >= -(-39 // plan.block_length) * 3
            assert counters.denoising_steps < counters.sequence_steps
        else:
            assert counters.forwards == counters.steps
            assert counters.rounds == counters.sequence_steps == counters.committed


def test_every_sequence_remembers_how_its_drafts_fared(copying, references):
    """Those of one plan add up to what the counters say."""
    engine = build_engine(copying)
    for number, prompt in enumerate(list(references)[:3]):
        engine.submit(request(str(number), prompt, 40, plan=SPECULATION[0]))
    for _ in range(6):
        engine.step()
    counters = engine.report().plans[SPECULATION[0]]
    tried, accepted = engine.scheduler.drafted()
    assert len(tried) == engine.report().decoding == 3
    assert sum(accepted) == sum(counters.accepted) > 0
    in_vain = sum(tried) - sum(accepted)
    to_the_end = counters.accepted[-1]
    assert in_vain == counters.rounds - to_the_end


def test_pinned_plans_share_the_engine_and_keep_their_own(copying, references):
    engine = build_engine(copying)
    pin(engine, Plan.parse("self_speculation/16"))
    (prompt, expected), *_ = references.items()
    requests = [request(str(p), prompt, 40, plan=p) for p in EXACT]
    outcomes = run_all(engine, [*requests, request("free", prompt, 40)])
    assert all(o.tokens == expected[:40] for o in outcomes.values())
    assert {n: o.plans for n, o in outcomes.items()} == {
        **{str(p): {p} for p in EXACT},
        "free": {Plan.parse("self_speculation/16")},
    }


def test_sequences_that_probe_another_plan_beside_the_rest_keep_their_tokens(copying, references):
    ticks = count()
    room = {"max_sequences": 12, "kv_tokens": 192 * 12}
    engine = build_engine(copying, clock=lambda: 0.1 * next(ticks), **room)
    speculation = Plan.parse("self_speculation/8")
    hard = (0.01,) * POSITIONS
    worth = Worth((AR, speculation), shipped_profile("h100"), chances=hard, learns=False)
    engine.set_schedule(Schedule.pinned(AR, worth=worth, version=1, ttl_s=1e6))
    (prompt, expected), *_ = references.items()
    for number in range(12):
        engine.submit(request(str(number), prompt, 40))
    tokens, shared = defaultdict(list), []
    while engine.has_work:
        deltas = engine.step()
        for delta in deltas:
            tokens[delta.request_id] += delta.token_ids
        shared.append(Counter(delta.plan for delta in deltas))
    assert [tuple(found) for found in tokens.values()] == [expected[:40]] * 12
    assert Counter({AR: 12 - SPLIT_ROWS, speculation: SPLIT_ROWS}) in shared
    assert engine.report().switches == 0


def test_thresholds_are_counted_under_one_plan(copying, references):
    engine = build_engine(copying)
    plan = Plan.parse("diffusion/8@0.3")
    (prompt, _), *_ = references.items()
    outcome = run_all(engine, [request("r", prompt, 40, plan=plan, quality=Quality.ANY)])["r"]
    assert outcome.plans == {plan}
    assert set(engine.report().plans) == set(all_plans())
    assert engine.report().plans[Plan.parse("diffusion/8")].committed == 39


def test_an_idle_step_is_harmless(engine):
    assert engine.step() == []
    assert not engine.has_work
    assert_empty(engine)

"""Every mode on a real SGLang. Run with: make test-sglang"""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Thread

import pytest

from benchmarks.sglang_server import POOL_TOKENS, SLOTS, Answer, Ask, Served
from policies.vocabulary import AR, Mode, Plan, Quality
from replicas.engine import SamplingParams
from replicas.sglang_engine.protocol import REPORT_INTERVAL_S, PluginReport
from replicas.tiny import CHECKPOINT
from replicas.torch_engine.model_config import read_model_config
from tests.replicas.sglang_engine.plugin.conftest import LIMIT, Tokens, embedded, while_switching

pytestmark = pytest.mark.sglang

SPECULATION = [Plan(Mode.SELF_SPECULATION, length) for length in (4, 8, 16, 32)]
DIFFUSION = [Plan(Mode.DIFFUSION, length) for length in (4, 8, 16, 32)]
EXACT = [AR, *SPECULATION]
MASK = read_model_config(CHECKPOINT / "config.json").mask_token_id
HOT = {"temperature": 0.9, "top_p": 0.95, "top_k": 40}


def switches(served: Served) -> int:
    return sum(change.count for change in served.fresh_report().switches)


def modes_of(answers: list[Answer]) -> set[Mode]:
    return {plan.mode for answer in answers for plan in answer.plans if plan is not None}


def test_a_server_reports_before_its_first_request(served: Served) -> None:
    report = served.fresh_report()
    assert (report.decoding, report.kv_tokens_used, report.kv_tokens_total) == (0, 0, POOL_TOKENS)


def test_stock_sglang_and_the_embedded_engine_agree(
    stock: dict[Tokens, list[int]], ours: dict[Tokens, list[int]]
) -> None:
    assert stock == ours


@pytest.mark.parametrize("plan", EXACT, ids=str)
def test_greedy_output_is_stock_sglangs_in_every_exact_plan(
    served: Served, stock: dict[Tokens, list[int]], plan: Plan
) -> None:
    served.settle(plan)
    answers = served.ask_all([Ask(p, max_tokens=LIMIT) for p in stock])
    assert {p: a.tokens for p, a in zip(stock, answers, strict=True)} == stock
    assert {q for a in answers for q in a.plans} == {None, plan}


def under_switches(
    served: Served, plans: Sequence[Plan], asks: Sequence[Ask], count: int
) -> list[Answer]:
    """Asks again and again until the governor has switched `count` times under way."""
    before, answers = switches(served), []

    def work() -> None:
        while switches(served) < before + count:
            answers.extend(served.ask_all(asks))

    while_switching(served, plans, len(plans), work)
    return answers


def test_live_switches_among_exact_plans_change_no_greedy_token(
    served: Served, stock: dict[Tokens, list[int]]
) -> None:
    answers = under_switches(served, EXACT, [Ask(p, max_tokens=LIMIT) for p in stock], 40)
    assert [a.tokens for a in answers] == [*stock.values()] * (len(answers) // len(stock))
    assert modes_of(answers) == {Mode.AR, Mode.SELF_SPECULATION}


def test_two_hundred_live_switches_among_three_modes_lose_and_add_nothing(
    served: Served, prompts: list[Tokens]
) -> None:
    asks = [
        Ask(p, max_tokens=100 + i, sampling={"ignore_eos": True})
        for i, p in enumerate(prompts[:SLOTS])
    ]
    answers = under_switches(served, [*EXACT, *DIFFUSION], asks, 200)
    lengths = [ask.max_tokens for ask in asks] * (len(answers) // len(asks))
    assert [len(a.tokens) for a in answers] == lengths
    assert {a.finish for a in answers} == {"length"}
    assert not any(MASK in a.tokens for a in answers)
    assert modes_of(answers) == set(Mode)


@pytest.mark.parametrize("plan", SPECULATION, ids=str)
def test_seeded_samples_are_those_of_ar_and_of_the_embedded_engine(
    served: Served, prompts: list[Tokens], plan: Plan
) -> None:
    asks = [Ask(p, seed=i, max_tokens=LIMIT, sampling=HOT) for i, p in enumerate(prompts)]
    params = [SamplingParams(max_tokens=LIMIT, seed=i, **HOT) for i in range(len(prompts))]
    expected = list(embedded(prompts, params).values())
    served.settle(AR)
    assert [a.tokens for a in served.ask_all(asks)] == expected
    served.settle(plan)
    assert [a.tokens for a in served.ask_all(asks)] == expected


def test_seeded_samples_survive_live_switches(served: Served, prompts: list[Tokens]) -> None:
    asks = [Ask(p, seed=7, max_tokens=LIMIT, sampling=HOT) for p in prompts]
    served.settle(AR)
    expected = [a.tokens for a in served.ask_all(asks)]
    switched = while_switching(served, EXACT, 3, lambda: served.ask_all(asks))
    assert [a.tokens for a in switched] == expected
    other = served.ask_all([Ask(p, seed=8, max_tokens=LIMIT, sampling=HOT) for p in prompts])
    assert [a.tokens for a in other] != expected


@pytest.mark.parametrize("plan", DIFFUSION, ids=str)
def test_diffusion_does_not_depend_on_who_else_is_in_the_batch(
    served: Served, prompts: list[Tokens], plan: Plan
) -> None:
    """Rows finish their blocks at different steps and wait for nobody."""
    served.settle(plan)
    together = served.ask_all([Ask(p, max_tokens=LIMIT) for p in prompts])
    alone = [served.ask(Ask(p, max_tokens=LIMIT)) for p in prompts]
    assert [a.tokens for a in together] == [a.tokens for a in alone]
    assert not any(MASK in a.tokens for a in together)


@pytest.mark.parametrize("reader", [AR, SPECULATION[2]], ids=str)
def test_context_written_by_diffusion_is_reused_by_other_modes(
    served: Served, prompts: list[Tokens], reader: Plan
) -> None:
    served.flush_cache()
    prompt = list(prompts[0])
    written = served.ask(
        Ask(prompt, DIFFUSION[1], max_tokens=80, sampling={"ignore_eos": True})
    ).tokens
    longer = [*prompt, *written[:72]]
    warm = served.ask(Ask(longer, reader, max_tokens=32, sampling={"ignore_eos": True}))
    served.flush_cache()
    cold = served.ask(Ask(longer, AR, max_tokens=32, sampling={"ignore_eos": True}))
    assert (warm.cached, cold.cached) == (len(longer) - 1, 0)
    assert warm.tokens == cold.tokens


@pytest.mark.parametrize("plan", DIFFUSION, ids=str)
def test_a_block_that_ends_its_sequence_early_leaves_no_bidirectional_context(
    served: Served, prompts: list[Tokens], ours: dict[Tokens, list[int]], plan: Plan
) -> None:
    """The last block is emitted without its causal pass, so its K/V must not be found again."""
    for prompt in prompts:
        served.flush_cache()
        written = served.ask(Ask(prompt, plan, max_tokens=LIMIT)).tokens
        longer = [*prompt, *written]
        warm = served.ask(Ask(longer, AR, max_tokens=8, sampling={"ignore_eos": True}))
        served.flush_cache()
        cold = served.ask(Ask(longer, AR, max_tokens=8, sampling={"ignore_eos": True}))
        assert warm.tokens == cold.tokens
        assert len(prompt) <= warm.cached < len(longer)


@pytest.mark.parametrize("plan", [AR, SPECULATION[3], DIFFUSION[3]], ids=str)
def test_every_length_is_exact(served: Served, prompts: list[Tokens], plan: Plan) -> None:
    served.settle(plan)
    lengths = [1, 2, 3, 31, 32, 33, 34, 65]
    asks = [Ask(prompts[3], max_tokens=n, sampling={"ignore_eos": True}) for n in lengths]
    assert [len(a.tokens) for a in served.ask_all(asks)] == lengths


@pytest.mark.parametrize("plan", [AR, SPECULATION[3], DIFFUSION[3]], ids=str)
def test_a_stop_token_ends_the_sequence_in_the_middle_of_a_block(
    served: Served, prompts: list[Tokens], plan: Plan
) -> None:
    served.settle(plan)
    whole = served.ask(Ask(prompts[0], max_tokens=LIMIT)).tokens
    stop = whole[7]
    cut = served.ask(Ask(prompts[0], max_tokens=LIMIT, sampling={"stop_token_ids": [stop]}))
    assert cut.tokens == whole[: whole.index(stop) + 1]
    assert cut.finish == "stop"


def test_exact_requests_never_run_in_diffusion(
    served: Served, stock: dict[Tokens, list[int]]
) -> None:
    served.settle(DIFFUSION[1])
    asks = [Ask(p, quality=Quality.EXACT, max_tokens=LIMIT) for p in stock]
    mixed = served.ask_all([*asks, *(Ask(p, max_tokens=LIMIT) for p in stock)])
    exact, other = mixed[: len(asks)], mixed[len(asks) :]
    assert [a.tokens for a in exact] == list(stock.values())
    assert modes_of(exact) == {Mode.SELF_SPECULATION}
    assert modes_of(other) == {Mode.DIFFUSION}


def test_pinned_requests_of_every_plan_share_a_batch(
    served: Served, stock: dict[Tokens, list[int]]
) -> None:
    served.settle(DIFFUSION[0])
    prompt, expected = next(iter(stock.items()))
    asks = [Ask(prompt, plan, max_tokens=LIMIT) for plan in EXACT]
    answers = served.ask_all(asks)
    assert [a.tokens for a in answers] == [expected] * len(EXACT)
    assert [set(a.plans) - {None} for a in answers] == [{plan} for plan in EXACT]


def test_counters_add_up(served: Served, prompts: list[Tokens]) -> None:
    for plan in (AR, SPECULATION[1], DIFFUSION[1]):
        served.settle(plan)
        before = served.fresh_report()
        answers = served.ask_all([Ask(p, max_tokens=LIMIT) for p in prompts])
        after = served.fresh_report()
        old, new = before.plans[plan], after.plans[plan]
        generated = sum(len(a.tokens) for a in answers)
        assert after.generated_tokens - before.generated_tokens == generated
        assert new.committed - old.committed == generated - len(answers)
        assert new.sequence_steps - old.sequence_steps >= new.steps - old.steps > 0
        assert new.seconds > old.seconds
        assert after.prompt_tokens - before.prompt_tokens == sum(map(len, prompts))
        if plan.mode is Mode.SELF_SPECULATION:
            assert new.forwards - old.forwards == 2 * (new.steps - old.steps)
            assert new.drafted - old.drafted == 7 * (new.rounds - old.rounds)
        if plan.mode is Mode.DIFFUSION:
            assert new.denoising_steps > old.denoising_steps
    assert (after.decoding, after.waiting, after.kv_tokens_used) == (0, 0, 0)


def test_an_aborted_request_frees_its_slots(served: Served, prompts: list[Tokens]) -> None:
    served.settle(DIFFUSION[3])
    endless = Ask(prompts[0], max_tokens=1500, sampling={"ignore_eos": True})
    thread = Thread(target=served.ask, args=(endless,))
    thread.start()
    served.until(lambda report: report.decoding == 1)
    served.post("/abort_request", {"abort_all": True})
    thread.join()
    served.until(lambda report: report.decoding == 0 and report.kv_tokens_used == 0)


def test_in_ar_a_request_holds_a_slot_for_each_token_and_none_ahead(
    served: Served, prompts: list[Tokens]
) -> None:
    def ahead(report: PluginReport) -> int:
        return report.kv_tokens_used - report.context_tokens if report.decoding else 0

    served.settle(SPECULATION[3])
    endless = Ask(prompts[0], max_tokens=1500, sampling={"ignore_eos": True})
    thread = Thread(target=served.ask, args=(endless,))
    thread.start()
    served.until(lambda report: ahead(report) > 8)
    served.settle(AR)
    served.until(lambda report: report.decoding == 1 and abs(ahead(report)) <= 1)
    served.post("/abort_request", {"abort_all": True})
    thread.join()
    served.until(lambda report: report.kv_tokens_used == 0)


def test_a_schedule_expires_without_a_refresh_on_an_idle_server_too(served: Served) -> None:
    served.use(SPECULATION[0], ttl_s=0.05)
    # Taken with the next report at the latest; it is wall-clock time that ends it, elsewhere.
    time.sleep(REPORT_INTERVAL_S + 0.1)
    answer = served.ask(Ask([5, 6, 7], max_tokens=8, sampling={"ignore_eos": True}))
    assert set(answer.plans) == {None, AR}

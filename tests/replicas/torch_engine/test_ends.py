"""Where a sequence ends, and that nothing behind its end is ever seen, in any plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.vocabulary import Plan, Quality, all_plans
from replicas.engine import FinishReason
from replicas.torch_engine.sequence import Sequence, drafted
from tests.replicas.torch_engine.builders import TINY, build_engine, build_model, random_weights
from tests.replicas.torch_engine.ledger import Reciter
from tests.replicas.torch_engine.runs import Outcome, assert_empty, request, run_all
from tests.replicas.torch_engine.test_detokenizer import BYTES, ids_of

EOS, OTHER_EOS, MASK = 260, 261, 262
CONFIG = replace(TINY, vocab_size=263, eos_token_ids=(EOS, OTHER_EOS), mask_token_id=MASK)
TEXT = "héllo wörld: 5€ for the 😀, héllo again and again, 1 2 3 4 5 6 7 8 9"
IDS = ids_of(TEXT)
plans = pytest.mark.parametrize("plan", all_plans(), ids=str)


@pytest.fixture(scope="module")
def model():
    return build_model(CONFIG, random_weights(CONFIG))


@pytest.fixture
def recite(model):
    """Runs one request over a forward that recites `ids`; checks what holds at every end."""

    def run(ids: list[int], plan: Plan, max_tokens: int = 100, **sampling) -> Outcome:
        reciter = Reciter([5, *ids], CONFIG.vocab_size, MASK)
        engine = build_engine(model, BYTES, forward=reciter)
        asked = request("r", (5,), max_tokens, plan=plan, quality=Quality.ANY, **sampling)
        outcome = run_all(engine, [asked])["r"]
        assert [d.finish_reason for d in outcome.deltas[:-1]] == [None] * (len(outcome.deltas) - 1)
        report = engine.report()
        assert report.generated_tokens == len(outcome.tokens)
        assert report.plans[plan].committed == len(outcome.tokens) - 1
        assert report.finished[outcome.reason.value] == 1
        assert_empty(engine)
        return outcome

    return run


@plans
def test_max_tokens_is_exact(recite, plan):
    for limit in (1, 2, 3, 4, 5, 8, 9, 16, 17, 31, 32, 33, 34, 50):
        outcome = recite(IDS, plan, limit)
        assert outcome.tokens == tuple(IDS[:limit])
        assert outcome.text == BYTES.decode(IDS[:limit])
        assert outcome.reason is FinishReason.LENGTH


@plans
def test_end_of_sequence_is_exact_and_has_no_text(recite, plan):
    for at in (0, 1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 33, 40):
        ids = [*IDS[:at], EOS, *IDS[at:]]
        outcome = recite(ids, plan, ignore_eos=False)
        assert outcome.tokens == (*IDS[:at], EOS)
        assert outcome.text == BYTES.decode(IDS[:at])
        assert outcome.reason is FinishReason.STOP


@plans
def test_every_way_to_end_by_token(recite, plan):
    ids = [*IDS[:6], OTHER_EOS, *IDS[6:]]
    assert recite(ids, plan, ignore_eos=False).tokens == (*IDS[:6], OTHER_EOS)
    assert len(recite(ids, plan, 20, ignore_eos=True).tokens) == 20
    stopped = recite(IDS, plan, stop_token_ids=(IDS[9], 999))
    first = IDS.index(IDS[9])
    assert stopped.tokens == tuple(IDS[: first + 1])
    assert stopped.text == BYTES.decode(IDS[:first])
    assert stopped.reason is FinishReason.STOP
    # An end on the last token that max_tokens allows is a stop, not a cut.
    assert recite(ids, plan, 7, ignore_eos=False).reason is FinishReason.STOP
    assert recite(ids, plan, 6, ignore_eos=False).reason is FinishReason.LENGTH


@plans
@pytest.mark.parametrize(
    "stop",
    [
        ("o w",),
        ("é",),
        ("h",),
        ("€ f", "for"),
        ("again a",),
        ("😀",),
        ("zzz",),
        ("9",),
        ("héllo a",),
    ],
    ids=str,
)
def test_a_stop_string_is_exact(recite, plan, stop):
    """Kept tokens: up to the one that completes the stop string. Text: up to where it starts."""
    outcome = recite(IDS, plan, len(IDS), stop=stop)
    complete = next(
        (n for n in range(1, len(IDS) + 1) if any(s in BYTES.decode(IDS[:n]) for s in stop)), None
    )
    assert outcome.tokens == tuple(IDS[:complete])
    assert outcome.text == TEXT[: min((TEXT.find(s) for s in stop if s in TEXT), default=None)]
    ended = FinishReason.LENGTH if complete is None else FinishReason.STOP
    assert outcome.reason is ended


@pytest.mark.parametrize(
    ("kept", "tried", "accepted"),
    [(1, 1, 0), (5, 5, 4), (8, 7, 7)],  # the last one is right to its end: nothing failed
)
def test_a_round_tells_how_far_its_draft_was_right(kept, tried, accepted):
    sequence = Sequence(request("r", (5, 6), 40), 0, 0, frozenset())
    sequence.count_round(kept, 8)
    assert drafted([sequence]) == ([tried], [accepted])
    sequence.preempt()  # what is known of its drafts is not lost with its row
    assert drafted([sequence]) == ([tried], [accepted])


def test_what_an_answers_end_cuts_off_did_not_fail():
    sequence = Sequence(request("r", (5, 6), 3), 0, 0, frozenset())
    kept, _ = sequence.commit([7, 8, 9, 10])
    assert sequence.finish_reason is FinishReason.LENGTH
    sequence.count_round(len(kept), 8)
    assert drafted([sequence]) == ([2], [2])


@plans
def test_a_partial_stop_string_at_the_end_is_released(recite, plan):
    for limit in (3, 6, 9, 12):
        shown = BYTES.decode(IDS[:limit])
        outcome = recite(IDS, plan, limit, stop=(shown[-2:] + "!",))
        assert outcome.text == shown
    ids = [*ids_of("abc "), EOS]
    assert recite(ids, plan, ignore_eos=False, stop=("c d",)).text == "abc "


@plans
def test_text_never_runs_ahead_of_tokens_nor_splits_a_character(recite, plan):
    outcome, ids, text = recite(IDS, plan, len(IDS), stop=("again!",)), [], ""
    for delta in outcome.deltas:
        ids += delta.token_ids
        text += delta.text
        assert BYTES.decode(ids).startswith(text)
        assert "\ufffd" not in text
    assert text == TEXT


def test_the_first_token_comes_from_prefill_and_names_no_plan(recite):
    plan = Plan.parse("self_speculation/8")
    first, *others = recite(IDS, plan, 20).deltas
    assert (len(first.token_ids), first.plan) == (1, None)
    assert all(d.plan == plan for d in others)
    (only,) = recite([EOS], plan, ignore_eos=False).deltas
    assert (only.token_ids, only.text, only.plan) == ((EOS,), "", None)
    assert only.finish_reason is FinishReason.STOP

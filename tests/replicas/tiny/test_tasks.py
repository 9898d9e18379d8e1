"""The tasks are checkable, the checkers reject wrong answers, and held-out prompts stay out."""

import json
from itertools import pairwise
from random import Random

import pytest

from replicas.tiny.batches import Documents
from replicas.tiny.tasks import (
    LISTING,
    OPEN_ENDED,
    TASKS,
    Sample,
    correct,
    draw,
    held_out_set,
    is_held_out,
    well_formed,
)
from replicas.tiny.tokenizer import build_tokenizer
from replicas.tiny.words import MAX_NUMBER


def samples(task: str, count: int = 200) -> list[Sample]:
    rng = Random(1)
    return [draw(rng, task) for _ in range(count)]


@pytest.mark.parametrize("task", TASKS)
def test_references_are_well_formed_and_correct(task: str) -> None:
    for sample in samples(task):
        assert well_formed(task, sample.prompt, sample.answer), sample
        assert correct(sample, sample.answer)


@pytest.mark.parametrize("task", TASKS)
def test_checkers_reject_wrong_answers(task: str) -> None:
    for sample in samples(task, 50):
        assert not correct(sample, sample.answer + "x")
        assert not correct(sample, sample.answer[:-1])
        assert not correct(sample, "")


@pytest.mark.parametrize("task", sorted(set(TASKS) - OPEN_ENDED))
def test_a_right_form_with_wrong_values_is_not_correct(task: str) -> None:
    first, *others = samples(task, 20)
    other = next(o for o in others if o.answer != first.answer)
    assert well_formed(task, first.prompt, other.answer)
    assert not correct(first, other.answer)


@pytest.mark.parametrize(
    ("task", "answer"),
    [
        ("json", '{"name": "Omar"'),
        ("sql", "INSERT INTO users (name, age)\nVALUES ('Omar');"),
        ("table", "| name |\n| --- |\n| Omar | 3 |\n| Sara |"),
        ("csv", "name,age\nOmar\nSara,4"),
        ("dataclass", "@dataclass\nclass User\n    name: str"),
        ("count", "1, 2, three"),
        ("days", "Monday, Tuesday, Someday"),
        ("add", "10 + 20 = 30\nThe sum of 10 and 20 is 30."),
        ("mail", "Dear Omar, your lamp is late."),
        ("reverse", "Oslo lamp"),
        ("story", "Once there was a small fox named Omar who lived near the river."),
    ],
)
def test_bad_forms_are_not_well_formed(task: str, answer: str) -> None:
    assert not well_formed(task, "Story about Omar the fox", answer)


def test_a_story_about_someone_else_is_not_correct() -> None:
    story = samples("story", 1)[0]
    assert not correct(Sample("story", "Story about nobody", story.answer), story.answer)


def test_samples_are_deterministic() -> None:
    assert samples("json", 20) == samples("json", 20)
    assert held_out_set("json", 10) == held_out_set("json", 10)


@pytest.mark.parametrize("task", TASKS)
def test_training_draws_and_held_out_prompts_are_disjoint(task: str) -> None:
    held = held_out_set(task, 100)
    assert all(is_held_out(sample) for sample in held)
    assert len(held) >= 20
    trained = {(s.prompt, s.answer) for s in samples(task, 2000)}
    assert trained.isdisjoint({(s.prompt, s.answer) for s in held})
    if task not in OPEN_ENDED | LISTING:
        assert {answer for _, answer in trained}.isdisjoint({s.answer for s in held})


def test_the_training_stream_holds_no_held_out_prompt() -> None:
    documents = Documents(build_tokenizer(), seed=5)
    held = {
        tuple(documents.tokenizer.encode(s.prompt).ids)
        for task in TASKS
        for s in held_out_set(task, 200)
    }
    for _ in range(150):
        for document in documents.row():
            end = 0
            for _, first, eos in document.answers:
                turn = document.tokens[end : first - 1]
                prompt = turn[turn.index(documents.user) + 1 :]
                assert prompt
                assert tuple(prompt) not in held
                end = eos + 1


def test_both_spellings_of_a_record_occur_and_values_survive() -> None:
    prompts = samples("json", 200)
    assert any("=" in s.prompt for s in prompts)
    assert any("=" not in s.prompt for s in prompts)
    for sample in prompts:
        for key, value in json.loads(sample.answer).items():
            assert f"{key}={value}" in sample.prompt or f"{key}: {value}" in sample.prompt


def test_counting_stays_within_the_single_token_numbers() -> None:
    for sample in samples("count", 500):
        numbers = [int(n) for n in sample.answer.replace("->", ",").replace("\n", ",").split(",")]
        assert 5 <= len(numbers) <= 12
        assert max(numbers) <= MAX_NUMBER
        assert len({b - a for a, b in pairwise(numbers)}) == 1

"""One token per value word and number, lossless on any text, and usable by chat clients."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from replicas.tiny import CHECKPOINT
from replicas.tiny.tokenizer import SPECIALS, build_tokenizer
from replicas.tiny.words import MAX_NUMBER, VALUE_WORDS

TOKENIZER: Tokenizer = build_tokenizer()


@pytest.fixture(scope="module")
def released() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(CHECKPOINT)


def test_the_checkpoint_holds_the_tokenizer_the_code_builds(
    released: PreTrainedTokenizerFast,
) -> None:
    assert released.get_vocab() == TOKENIZER.get_vocab()


@pytest.mark.parametrize("frame", ["{}", "a {}", "={}", '"{}"', "get_{}", "{}.", "\n{},", "({})"])
def test_every_value_word_is_the_same_single_token_in_any_place(frame: str) -> None:
    for word in VALUE_WORDS:
        assert TOKENIZER.token_to_id(word) in TOKENIZER.encode(frame.format(word)).ids


def test_a_value_word_inside_a_longer_word_is_left_alone() -> None:
    assert TOKENIZER.token_to_id("Rome") not in TOKENIZER.encode("Romeo and PreRome").ids


@pytest.mark.parametrize("frame", ["{}", "={}", " {} ", "({})", "{},"])
def test_every_small_number_is_one_token(frame: str) -> None:
    for number in range(MAX_NUMBER + 1):
        ids = TOKENIZER.encode(frame.format(number)).ids
        assert TOKENIZER.token_to_id(str(number)) in ids


@pytest.mark.parametrize("text", ["1234", "2026", "200", "007", "12345678901", "0199"])
def test_other_numbers_are_single_digits(text: str) -> None:
    assert TOKENIZER.encode(text).tokens == list(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_survives_encoding_and_decoding(text: str) -> None:
    ids = TOKENIZER.encode(text).ids
    if not any(special in text for special in SPECIALS):
        assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize(
    "text", ["a , b !", "don ' t", " x  y\n\n z ", "na\u00efve caf\u00e9 \u65e5\u672c \U0001f600"]
)
def test_transformers_decodes_without_cleaning_up_spaces(
    released: PreTrainedTokenizerFast, text: str
) -> None:
    assert released.decode(released.encode(text)) == text


def test_the_vocabulary_is_a_multiple_of_16_and_special_tokens_come_first() -> None:
    assert TOKENIZER.get_vocab_size() % 16 == 0
    assert [TOKENIZER.token_to_id(special) for special in SPECIALS] == list(range(6))


def test_the_chat_template_renders_conversations(released: PreTrainedTokenizerFast) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add 12 and 13."},
        {"role": "assistant", "content": "25"},
        {"role": "user", "content": "Reverse: Oslo, Rome"},
    ]
    text = released.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>Be brief.<|user|>Add 12 and 13.<|assistant|>25<|eos|>"
        "<|user|>Reverse: Oslo, Rome<|assistant|>"
    )
    ids = released(text, add_special_tokens=False)["input_ids"]
    assert ids[0] == TOKENIZER.token_to_id("<|system|>")
    assert ids[-1] == TOKENIZER.token_to_id("<|assistant|>")


def test_the_chat_template_refuses_an_unknown_role(released: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="unknown role"):
        released.apply_chat_template([{"role": "robot", "content": "x"}], tokenize=False)

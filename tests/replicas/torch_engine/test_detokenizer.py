"""Token ids to text, piece by piece: never a piece to take back, never a piece lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

import replicas.tiny
from replicas.torch_engine.detokenizer import TextStream


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and id 256 a special token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    return tokenizer


BYTES = byte_tokenizer()
DEMO = Tokenizer.from_file(str(Path(replicas.tiny.__file__).parent / "checkpoint/tokenizer.json"))
END = 256
texts = st.text(st.sampled_from("abc .\n\té€😀🇩e\u0301"), max_size=20)


def ids_of(text: str) -> list[int]:
    return BYTES.encode(text).ids


def stream(ids: list[int], *stop: str, tokenizer: Tokenizer = BYTES) -> list[str]:
    """What each push gave, and the flush; nothing is pushed once a stop string is complete."""
    text, pieces = TextStream(tokenizer, stop), []
    for token in ids:
        pieces.append(text.push(token))
        if text.stopped:
            break
    return [*pieces, text.flush()]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 256), max_size=30))
@example(ids_of("é")[:1])
@example([*ids_of("€")[:2], *ids_of("a"), *ids_of("😀")[:3]])
def test_joined_pieces_are_the_decoded_text(ids):
    """Any bytes at all, valid UTF-8 or not."""
    assert "".join(stream(ids)) == BYTES.decode(ids, skip_special_tokens=True)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, DEMO.get_vocab_size() - 1), max_size=30))
def test_joined_pieces_of_the_demo_tokenizer_are_the_decoded_text(ids):
    pieces = stream(ids, tokenizer=DEMO)
    assert "".join(pieces) == DEMO.decode(ids, skip_special_tokens=True)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(texts, st.lists(texts.filter(bool).map(lambda t: t[:4]), max_size=3))
@example("abab", ["abac"])
@example("aab", ["ab"])
@example("abcabd", ["abd", "bca"])
def test_text_ends_before_the_first_complete_stop_string(text, stop):
    """With a character a token, the stop string that is complete first wins."""
    ends = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    complete = min((end for end, _ in ends), default=None)
    start = min((at for end, at in ends if end == complete), default=len(text))
    assert "".join(stream(ids_of(text), *stop)) == text[:start]


def test_half_a_character_waits_for_its_other_half():
    assert stream(ids_of("é€")) == ["", "é", "", "", "€", ""]


def test_half_a_character_at_the_end_is_not_lost():
    assert stream(ids_of("a€")[:-1])[-1] == "\ufffd"


def test_a_stop_string_may_span_tokens_and_split_one():
    assert stream(ids_of("hello world"), "o w") == ["h", "e", "l", "l", "", "", "", ""]
    ids = DEMO.encode("The answer is").ids
    whole = DEMO.decode(ids)
    assert "".join(stream(ids, whole[1:4], tokenizer=DEMO)) == whole[:1]


def test_a_stop_string_may_end_in_the_middle_of_a_multi_byte_sequence():
    assert "".join(stream(ids_of("ab€c"), "€")) == "ab"


def test_a_partial_stop_string_is_held_back_and_then_released():
    assert stream(ids_of("xabay"), "abac") == ["x", "", "", "", "abay", ""]
    assert stream(ids_of("xaba"), "abac") == ["x", "", "", "", "aba"]


def test_overlapping_partial_stop_strings_release_only_what_is_certain():
    assert stream(ids_of("aaab"), "aab") == ["", "", "a", "", ""]
    assert stream(ids_of("ababx"), "abac", "bx") == ["", "", "", "ab", "a", ""]


def test_a_stop_string_at_the_very_start_leaves_no_text():
    assert stream(ids_of("abc"), "a") == ["", ""]


@pytest.mark.parametrize("ids", [[END], [*ids_of("a"), END, *ids_of("b")]])
def test_special_tokens_have_no_text(ids):
    assert "<end>" not in "".join(stream(ids))
    assert stream([END], "end") == ["", ""]

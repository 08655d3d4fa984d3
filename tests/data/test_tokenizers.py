"""Tokenizers: round trips, the order of the vocabulary, and errors for text and ids that do not fit."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyprune.data import ByteTokenizer, CharacterTokenizer, WordTokenizer, check_ids, tokenizer_from_dict
from tinyprune.errors import UsageError

LINES = "the cat saw the dog\nthe dog ran\n"


def through_json(tokenizer):
    return tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))


@given(st.text() | st.binary())
def test_bytes_round_trip(data):
    ids = ByteTokenizer().encode(data)
    assert ids.dtype == np.int64
    assert bytes(ids.tolist()) == (data.encode("utf-8") if isinstance(data, str) else data)
    if isinstance(data, str):
        assert ByteTokenizer().decode(ids) == data


def test_bytes_that_are_not_utf8_are_shown_as_missing_characters():
    assert ByteTokenizer().decode(np.array([0xC3, 0x41])) == "\ufffdA"


@given(st.lists(st.text(), min_size=1).filter(any))
def test_characters_round_trip(chunks):
    text = "".join(chunks)
    tokenizer = CharacterTokenizer.build(chunks)
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.characters == "".join(sorted(set(text)))
    assert ids.tolist() == [tokenizer.characters.index(c) for c in text]
    assert tokenizer.decode(ids) == text
    assert through_json(tokenizer).to_dict() == tokenizer.to_dict()
    np.testing.assert_array_equal(through_json(tokenizer).encode(text), ids)


@pytest.mark.parametrize(
    ("outside", "shown"),
    [
        ("ä", "'ä'"),
        ("b", "'b'"),
        ("\n", r"'\n'"),
        ("'", '"\'"'),
        ("\U0010ffff", r"'\U0010ffff'"),
        ("\udcff", r"'\udcff'"),
    ],
)
def test_a_character_that_is_not_in_the_vocabulary_is_shown(outside, shown):
    tokenizer = CharacterTokenizer.build(["acy"])
    with pytest.raises(UsageError, match="vocabulary of 3 characters lacks") as raised:
        tokenizer.encode("ac" + outside)
    assert f" lacks {shown}; " in str(raised.value)
    assert "'c'" not in str(raised.value)
    assert 'data.tokenizer = "byte"' in str(raised.value)


def test_no_more_than_ten_strange_characters_are_named():
    with pytest.raises(UsageError, match=r"'b', .*'k' …;"):
        CharacterTokenizer("a").encode("abcdefghijklm")


words = st.text(st.characters(codec="ascii", exclude_categories=["Z", "C"]), min_size=1, max_size=3)


@given(st.lists(st.lists(words)))
def test_words_round_trip(lines):
    text = "".join(" ".join(line) + "\n" for line in lines)
    tokenizer = WordTokenizer.build([text])
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert len(ids) == sum(map(len, lines)) + len(lines)
    assert tokenizer.decode(ids) == text
    assert through_json(tokenizer).to_dict() == tokenizer.to_dict()


@given(st.lists(st.integers(0, 6)))
def test_what_words_decode_to_encodes_to_the_same_ids(ids):
    tokenizer = WordTokenizer.build([LINES])
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([LINES], ["the", "<eos>", "dog", "cat", "ran", "saw", "<unk>"]),
        (["the cat saw ", "the dog\nthe ", "dog ran\n"], ["the", "<eos>", "dog", "cat", "ran", "saw", "<unk>"]),
        (["a <unk> b <unk> a\n\n\n"], ["<eos>", "<unk>", "a", "b"]),
    ],
    ids=["one chunk", "chunks", "unknown and end of line count like words"],
)
def test_words_are_numbered_by_falling_frequency_then_by_the_alphabet(chunks, words):
    assert WordTokenizer.build(chunks).words == words


def test_a_limited_vocabulary_keeps_the_most_frequent_words_and_counts_the_others_as_unknown():
    tokenizer = WordTokenizer.build([LINES], size=4)
    assert tokenizer.V == 4
    # the: 3, dog: 2, <eos>: 2, and cat, ran, saw: 3 together.
    assert tokenizer.words == ["<unk>", "the", "<eos>", "dog"]
    assert tokenizer.decode(tokenizer.encode("the cat saw the dog\n")) == "the <unk> <unk> the dog\n"
    assert WordTokenizer.build([LINES], size=100).V == 7
    # Here <unk> is twice in the text, and stands for two words more.
    assert WordTokenizer.build(["a a a <unk> <unk> b c"], size=3).words == ["<unk>", "a", "<eos>"]


@pytest.mark.parametrize("size", [1, 2])
def test_a_vocabulary_without_room_for_a_word_is_refused(size):
    with pytest.raises(UsageError, match=rf"data\.vocabulary must be 0 .* or at least 3 .* got {size}"):
        WordTokenizer.build([LINES], size=size)


def test_a_prompt_without_an_end_of_line_has_none():
    tokenizer = WordTokenizer.build([LINES])
    assert tokenizer.decode(tokenizer.encode("  the \t cat")) == "the cat"


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharacterTokenizer("abc"), WordTokenizer.build([LINES])])
@pytest.mark.parametrize("outside", [-1, "V"])
def test_ids_out_of_range_are_refused(tokenizer, outside):
    bad = tokenizer.V if outside == "V" else outside
    with pytest.raises(UsageError, match=rf"must lie in 0 … {tokenizer.V - 1} .* got {bad}"):
        tokenizer.decode([0, bad, 1])
    assert tokenizer.decode([]) == ""


def test_ids_that_are_not_integers_are_refused():
    with pytest.raises(UsageError, match="must be integers, got float64"):
        check_ids([0.5], 3)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"kind": "bpe"},
        {"kind": "character"},
        {"kind": "character", "characters": "ba"},
        {"kind": "character", "characters": ""},
        {"kind": "word", "words": ["a", "b"]},
        {"kind": "word", "words": ["a", "a", "<unk>", "<eos>"]},
        {"kind": "word", "words": [1, "<unk>", "<eos>"]},
    ],
)
def test_an_invalid_description_is_refused(values):
    with pytest.raises(UsageError, match="tokenizer"):
        tokenizer_from_dict(values)

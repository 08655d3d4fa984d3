"""Tokenizers: round trips, the order of the vocabulary, and errors for text and ids that do not fit."""

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyprune.data import ByteTokenizer, CharacterTokenizer, WordTokenizer, tokenizer_from_dict
from tinyprune.data.tokenizers import check_ids
from tinyprune.errors import UsageError

LINES = "the cat saw the dog\nthe dog ran\n"


def check_round_trip(tokenizer, text):
    """Also of its description in JSON; returns the ids."""
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int64
    assert tokenizer.decode(ids) == text
    again = tokenizer_from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert again.to_dict() == tokenizer.to_dict()
    np.testing.assert_array_equal(again.encode(text), ids)
    return ids.tolist()


@given(st.text())
def test_text_of_bytes_round_trip(text):
    assert bytes(check_round_trip(ByteTokenizer(), text)) == text.encode("utf-8")


@given(st.binary())
@example(b"\xc3A")
def test_bytes_that_are_not_utf8_are_shown_as_missing_characters(data):
    ids = ByteTokenizer().encode(data)
    assert ids.dtype == np.int64 and bytes(ids.tolist()) == data
    assert ByteTokenizer().decode(ids) == data.decode("utf-8", "replace")


@given(st.lists(st.text(), min_size=1).filter(any))
def test_characters_round_trip(chunks):
    text, tokenizer = "".join(chunks), CharacterTokenizer.build(chunks)
    assert tokenizer.characters == "".join(sorted(set(text)))
    assert check_round_trip(tokenizer, text) == [tokenizer.characters.index(c) for c in text]


OUTSIDE = [("ä", "'ä'"), ("\n", r"'\n'"), ("'", '"\'"'), ("\U0010ffff", r"'\U0010ffff'"), ("\udcff", r"'\udcff'")]


@pytest.mark.parametrize(("outside", "shown"), OUTSIDE)
def test_characters_that_are_not_in_the_vocabulary_are_shown(outside, shown):
    tokenizer = CharacterTokenizer.build(["acy"])
    with pytest.raises(UsageError, match=r"vocabulary of 3 characters lacks .*data\.tokenizer = \"byte\"") as raised:
        tokenizer.encode("ac" + outside)
    assert f" lacks {shown}; " in str(raised.value)
    with pytest.raises(UsageError, match=r"'b', .*'k' …;"):  # no more than ten
        CharacterTokenizer("a").encode("abcdefghijklm")


visible = st.characters(codec="ascii", exclude_categories=["Z", "C"])


@given(st.lists(st.lists(st.text(visible, min_size=1, max_size=3))))
def test_words_round_trip(lines):
    text = "".join(" ".join(line) + "\n" for line in lines)
    ids = check_round_trip(WordTokenizer.build([text]), text)
    assert len(ids) == sum(map(len, lines)) + len(lines)


@given(st.lists(st.integers(0, 6)))
def test_what_words_decode_to_encodes_to_the_same_ids(ids):
    tokenizer = WordTokenizer.build([LINES])
    assert tokenizer.encode(tokenizer.decode(ids)).tolist() == ids
    assert tokenizer.decode(tokenizer.encode("  the \t cat")) == "the cat"  # and no end of line


NUMBERED = ["the", "<eos>", "dog", "cat", "ran", "saw", "<unk>"]


@pytest.mark.parametrize(
    ("chunks", "words"),
    [
        ([LINES], NUMBERED),
        (["the cat saw ", "the dog\nthe ", "dog ran\n"], NUMBERED),
        # The words for unknown and for the end of a line count like others.
        (["a <unk> b <unk> a\n\n\n"], ["<eos>", "<unk>", "a", "b"]),
    ],
)
def test_words_are_numbered_by_falling_frequency_then_by_the_alphabet(chunks, words):
    assert WordTokenizer.build(chunks).words == words


def test_a_limited_vocabulary_keeps_the_most_frequent_words_and_counts_the_others_as_unknown():
    tokenizer = WordTokenizer.build([LINES], size=4)
    # the: 3, dog: 2, <eos>: 2, and cat, ran, saw: 3 together.
    assert (tokenizer.words, tokenizer.V) == (["<unk>", "the", "<eos>", "dog"], 4)
    ids = tokenizer.encode("the cat saw the dog\n")
    assert tokenizer.decode(ids) == "the <unk> <unk> the dog\n"
    assert WordTokenizer.build([LINES], size=100).V == 7
    # Here <unk> is twice in the text, and stands for two words more.
    assert WordTokenizer.build(["a a a <unk> <unk> b c"], size=3).words == ["<unk>", "a", "<eos>"]


@pytest.mark.parametrize("size", [1, 2])
def test_a_vocabulary_without_room_for_a_word_is_refused(size):
    with pytest.raises(UsageError, match=rf"data\.vocabulary must be 0 .* or at least 3 .* got {size}"):
        WordTokenizer.build([LINES], size=size)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), CharacterTokenizer("abc"), WordTokenizer.build([LINES])])
def test_ids_out_of_range_are_refused(tokenizer):
    for bad in (-1, tokenizer.V):
        with pytest.raises(UsageError, match=rf"must lie in 0 … {tokenizer.V - 1} .* got {bad}"):
            tokenizer.decode([0, bad, 1])
    assert tokenizer.decode([]) == ""
    with pytest.raises(UsageError, match="must be integers, got float64"):
        check_ids([0.5], tokenizer.V)


WORDS = ["a", "b"], [1, "<unk>", "<eos>"], ["a", "a", "<unk>", "<eos>"]
INVALID = [{}, {"kind": "bpe"}, {"kind": "character"}]
INVALID += [{"kind": "word", "words": words} for words in WORDS]
INVALID += [{"kind": "character", "characters": x} for x in ("ba", "")]


@pytest.mark.parametrize("values", INVALID)
def test_an_invalid_description_is_refused(values):
    with pytest.raises(UsageError, match="tokenizer"):
        tokenizer_from_dict(values)

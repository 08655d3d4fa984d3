"""Reading a corpus in chunks gives what reading at once gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyprune.data import corpus
from tinyprune.data.corpus import Corpus, whole_words
from tinyprune.errors import UsageError


@pytest.fixture
def tiny_chunks(monkeypatch):
    """Chunks so small that every character of several bytes lies across two of them somewhere."""
    monkeypatch.setattr(corpus, "CHUNK", 3)


def read(unit, *splits):
    named = dict(zip(("train", "valid", "test"), splits, strict=True))
    return list(Corpus("a text", named).read(unit))


def test_bytes_come_split_by_split(tiny_chunks):
    chunks = [("train", b"012"), ("train", b"3"), ("test", b"45")]
    assert read("byte", b"0123", b"", b"45") == chunks


def test_characters_across_chunks_stay_whole(tiny_chunks):
    text = "aé€𝄞" * 5 + "é€𝄞"
    assert "".join(chunk for _, chunk in read("character", text.encode(), b"", b"")) == text


WRONG = [(b"abcd\xffef", "0xff", 4), ("ab€".encode() + b"\xe2\x82", "0xe2", 5), (b"abcdefgh\xe2\x82", "0xe2", 8)]
WRONG += [(b"ab\xe2\x82", "0xe2", 2), (b"abcde\xc3 f", "0xc3", 5)]


@pytest.mark.parametrize(("data", "byte", "offset"), WRONG)
def test_bytes_that_are_not_utf8_are_named_with_their_offset(tiny_chunks, data, byte, offset):
    for before in (b"", b"12345"):
        advice = ".* iconv -f latin1 -t utf-8; --tokenizer byte"
        said = rf"a text is not UTF-8 text: byte {byte} at offset {len(before) + offset};{advice}"
        with pytest.raises(UsageError, match=said):
            read("character", before, data, b"")


@given(st.lists(st.text(st.sampled_from("ab \n"), max_size=6)))
def test_no_word_is_cut(chunks):
    text = "".join(chunks)
    pieces = list(whole_words(chunks))
    assert "".join(pieces) == text
    assert all(piece[-1] in " \n" for piece in pieces[:-1])
    assert [word for piece in pieces for word in piece.split()] == text.split()

"""Spans: reading in chunks gives what reading at once gives."""

import functools
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyprune.data import spans
from tinyprune.data.spans import Span, whole_words
from tinyprune.errors import TinypruneError, UsageError


def span_of(data, start=0, stop=None):
    return Span("a text", functools.partial(io.BytesIO, data), start, len(data) if stop is None else stop)


@pytest.fixture
def tiny_chunks(monkeypatch):
    """Chunks so small that every character of several bytes lies across two of them somewhere."""
    monkeypatch.setattr(spans, "CHUNK", 3)


def test_bytes_are_those_from_start_to_stop(tiny_chunks):
    assert list(span_of(b"0123456789", 2, 9).read_bytes()) == [b"234", b"567", b"8"]
    assert list(span_of(b"0123456789", 4, 4).read_bytes()) == []
    with pytest.raises(TinypruneError, match="a text ended 6 bytes too early"):  # it has become shorter
        list(span_of(b"0123", 0, 10).read_bytes())


def test_characters_across_chunks_stay_whole(tiny_chunks):
    text = "aé€𝄞" * 5 + "é€𝄞"
    assert "".join(span_of(text.encode()).read_text()) == text


@pytest.mark.parametrize(
    ("data", "byte", "offset"),
    [
        (b"abcd\xffef", "0xff", 4),
        ("ab€".encode() + b"\xe2\x82", "0xe2", 5),
        (b"abcdefgh\xe2\x82", "0xe2", 8),
        (b"ab\xe2\x82", "0xe2", 2),
        (b"abcde\xc3 f", "0xc3", 5),
    ],
)
def test_bytes_that_are_not_utf8_are_named_with_their_offset(tiny_chunks, data, byte, offset):
    with pytest.raises(UsageError, match=rf"a text is not UTF-8 text: byte {byte} at offset {offset};.*\"byte\""):
        list(span_of(data).read_text())
    with pytest.raises(UsageError, match=rf"byte {byte} at offset {offset + 5};"):
        list(span_of(b"12345" + data, 5).read_text())


@given(st.lists(st.text(st.sampled_from("ab \n"), max_size=6)))
def test_no_word_is_cut(chunks):
    text = "".join(chunks)
    pieces = list(whole_words(chunks))
    assert "".join(pieces) == text
    assert all(piece[-1] in " \n" for piece in pieces[:-1])
    assert [word for piece in pieces for word in piece.split()] == text.split()

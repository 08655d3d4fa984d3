"""Plain text and spans: reading in chunks gives what reading at once gives."""

import functools
import io
from codecs import BOM_UTF8 as BOM
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyprune.data import spans
from tinyprune.data.spans import Span, plain_text, whole_words
from tinyprune.errors import TinypruneError, UsageError


def span_of(data, start=0, stop=None):
    return Span("a text", functools.partial(io.BytesIO, data), start, len(data) if stop is None else stop)


@given(st.lists(st.sampled_from([b"\r", b"\n", b"a", b"\xff", BOM]), max_size=8).map(b"".join), st.integers(1, 4))
@example(b"ab\r\n\r\r\nc", 1)
@example(b"ab\r\n\r\r\nc", 3)
def test_only_the_mark_at_the_beginning_and_line_ends_change(data, chunk):
    expected = data.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for size_of_chunk in (spans.CHUNK, chunk):
        with mock.patch.object(spans, "CHUNK", size_of_chunk):
            opener, size = plain_text(functools.partial(io.BytesIO, data), len(data))
            assert size == len(expected)
            for start in range(size + 1):
                with opener() as stream:
                    stream.seek(start)
                    assert stream.read(1000) == expected[start:]


def test_a_plain_text_is_read_as_it_is():
    opener = functools.partial(io.BytesIO, b"a\nb\x0b\x85" + BOM)
    assert plain_text(opener, 8) == (opener, 8)


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

"""Plain text: what is changed in a file, and what stays."""

import functools
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyprune.data.newlines import BOM, plain_text


def read(opener, start=0):
    with opener() as stream:
        stream.seek(start)
        return stream.read(1000)


@given(st.lists(st.sampled_from([b"\r", b"\n", b"a", b"\xff", b"\xef\xbb\xbf"]), max_size=8).map(b"".join))
def test_only_the_mark_at_the_beginning_and_line_ends_change(data):
    expected = data.removeprefix(BOM).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    opener, size = plain_text(functools.partial(io.BytesIO, data), len(data))
    assert size == len(expected)
    for start in range(size + 1):
        assert read(opener, start) == expected[start:]


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_line_end_across_two_chunks_is_one(chunk, monkeypatch):
    monkeypatch.setattr("tinyprune.data.newlines.CHUNK", chunk)
    opener, size = plain_text(functools.partial(io.BytesIO, b"ab\r\n\r\r\nc"), 8)
    assert (read(opener), size) == (b"ab\n\n\nc", 6) and read(opener, 4) == b"\nc"


def test_a_plain_text_is_read_as_it_is():
    opener = functools.partial(io.BytesIO, b"a\nb\x0b\x85" + BOM)
    assert plain_text(opener, 8) == (opener, 8)

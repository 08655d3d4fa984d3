"""A file as plain text: without a byte order mark, and with every line end as \\n.

Editors of other systems begin a file with a byte order mark, or end its lines with \\r\\n (old ones with \\r). Neither
is part of the text: they would be characters of the vocabulary, and the same book would be another corpus.
"""

from __future__ import annotations

import codecs
import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, cast

from tinyprune.data.spans import CHUNK, Opener

BOM = codecs.BOM_UTF8


def plain_text(opener: Opener, size: int) -> tuple[Opener, int]:
    """Return an opener of the same text without its byte order mark and with \\n for \\r\\n and for \\r, and its size.

    The text is read once for that. One that is plain already keeps its opener and its `size`, and so all its bytes.
    Only bytes are looked at, in any encoding: what is not UTF-8 text is changed in the same way.
    """
    carriage_returns, pairs, last = 0, 0, b""
    with opener() as stream:
        marked = stream.read(len(BOM)) == BOM
        stream.seek(0)
        while chunk := stream.read(CHUNK):
            carriage_returns += chunk.count(b"\r")
            pairs += chunk.count(b"\r\n") + (last == b"\r" and chunk.startswith(b"\n"))
            last = chunk[-1:]
    if not marked and not carriage_returns:
        return opener, size
    return functools.partial(_open_plain, opener), size - marked * len(BOM) - pairs


class _Plain:
    """A stream of plain text, of which only `read` and, from the start, `seek` are needed."""

    def __init__(self, stream: BinaryIO) -> None:
        if stream.read(len(BOM)) != BOM:
            stream.seek(0)
        # Latin-1 has a character for each byte, so that nothing but the ends of lines is changed.
        self._text = io.TextIOWrapper(stream, "latin-1", newline=None)

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end."""
        return self._text.read(size).encode("latin-1")

    def seek(self, position: int) -> None:
        """Skip the first `position` bytes."""
        while position and (skipped := len(self.read(min(CHUNK, position)))):
            position -= skipped


@contextmanager
def _open_plain(opener: Opener) -> Iterator[BinaryIO]:
    with opener() as stream:
        yield cast(BinaryIO, _Plain(stream))

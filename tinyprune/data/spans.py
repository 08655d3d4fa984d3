"""A corpus as three spans of bytes, in memory, in a file or in a zip archive, read in pieces and never as a whole.

Editors of other systems begin a file with a byte order mark, or end its lines with \\r\\n (old ones with \\r). Neither
is part of the text: they would be characters of the vocabulary, and the same book would be another corpus. `plain_text`
reads such a file without the mark, and with every line end as \\n.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, BinaryIO, cast

from tinyprune.errors import TinypruneError, UsageError
from tinyprune.progress import progress_bar

CHUNK = 1 << 20
SPLITS = ("train", "valid", "test")

# Where a text can be cut so that byte-pair tokenizers give the same tokens: between two characters that are not white
# space, before a single space or after a single line end. GPT-2, SmolLM2 and Llama 3 all begin a new piece there, and
# merge none across. Elsewhere they may not: "\n\n" is one piece at the end of a text, and two before a word.
_LAST_CUT = re.compile(r".*(?:(?<=\S)(?= \S)|(?<=\S\n)(?=\S))", re.DOTALL)

Opener = Callable[[], AbstractContextManager[BinaryIO]]
"""Opens a seekable stream of bytes, anew at each call."""


@dataclass(frozen=True)
class Span:
    """The bytes `start` … `stop - 1` of the stream that `open` opens."""

    label: str  # name of the text in messages
    open: Opener  # called once for each reading
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Return the number of bytes."""
        return self.stop - self.start

    def read(self, unit: str) -> Iterator[Any]:
        """Return chunks that cut no `unit` in two: bytes for "byte", text for "character", "word" and "bpe"."""
        if unit == "byte":
            return self.read_bytes()
        whole = {"word": whole_words, "bpe": whole_pieces}.get(unit, iter)
        return whole(self.read_text())

    def read_bytes(self) -> Iterator[bytes]:
        """Yield the bytes in chunks of at most a megabyte. Raises TinypruneError if the file has become shorter."""
        left = self.size
        with self.open() as stream:
            stream.seek(self.start)
            while left:
                chunk = stream.read(min(CHUNK, left))
                if not chunk:
                    raise TinypruneError(
                        f"{self.label} ended {left:,} bytes too early: did it change while it was read?"
                    )
                left -= len(chunk)
                yield chunk

    def read_text(self) -> Iterator[str]:
        """Yield the characters in chunks, decoded from UTF-8; a character may lie across two chunks of bytes.

        Raises UsageError if the bytes are not UTF-8; the message gives the offset of the first one that is not.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        position = self.start
        # The empty chunk at the end makes the decoder report a character that was begun but not finished.
        for chunk in chain(self.read_bytes(), [b""]):
            held_back = len(decoder.getstate()[0])
            try:
                text = decoder.decode(chunk, final=not chunk)
            except UnicodeDecodeError as error:
                offset = position - held_back + error.start
                raise UsageError(
                    f"{self.label} is not UTF-8 text: byte 0x{error.object[error.start]:02x} at offset {offset:,}; "
                    'data.tokenizer = "byte" takes any file'
                ) from error
            position += len(chunk)
            if text:
                yield text


@dataclass(frozen=True)
class Corpus:
    """A text that has been found but not yet read. `splits` has the keys train, valid and test, in this order."""

    name: str
    splits: dict[str, Span]

    @property
    def size(self) -> int:
        """The number of bytes of all splits together."""
        return sum(span.size for span in self.splits.values())

    def read(self, unit: str, doing: str = "", splits: Sequence[str] = SPLITS) -> Iterator[tuple[str, Any]]:
        """Yield (split, chunk), split by split; see `Span.read`.

        `doing`, such as "reading", is the label of a progress bar on standard error; without one there is no bar.
        """
        spans = {split: self.splits[split] for split in splits}
        chunks = ((split, chunk) for split, span in spans.items() for chunk in span.read(unit))
        if not doing:
            yield from chunks
            return
        total = sum(span.size for span in spans.values())
        with progress_bar(desc=f"{doing} {self.name}", total=total, unit="B", unit_scale=True, mininterval=0.5) as bar:
            for split, chunk in chunks:
                bar.update(len(chunk if unit == "byte" else chunk.encode()))
                yield split, chunk

    def digest(self, doing: str = "") -> str:
        """Return the sha256 of the bytes of train, valid and test, joined, as 64 hexadecimal digits."""
        sha = hashlib.sha256()
        for _, chunk in self.read("byte", doing):
            sha.update(chunk)
        return sha.hexdigest()


def plain_text(opener: Opener, size: int) -> tuple[Opener, int]:
    """Return an opener of the same text without its byte order mark and with \\n for \\r\\n and for \\r, and its size.

    The text is read once for that. One that is plain already keeps its opener and its `size`, and so all its bytes.
    Only bytes are looked at, in any encoding: what is not UTF-8 text is changed in the same way.
    """
    plain = functools.partial(_open_plain, opener)
    with plain() as stream:
        plain_size = sum(map(len, iter(lambda: stream.read(CHUNK), b"")))
        return (plain, plain_size) if cast(_Plain, stream).changed else (opener, size)


class _Plain:
    """A stream of plain text, of which only `read` and, from the start, `seek` are needed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._marked = stream.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
        if not self._marked:
            stream.seek(0)
        # Latin-1 has a character for each byte, so that nothing but the ends of lines is changed.
        self._text = io.TextIOWrapper(stream, "latin-1", newline=None)

    @property
    def changed(self) -> bool:
        """Return whether anything was changed in what has been read."""
        return self._marked or self._text.newlines not in (None, "\n")

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


def whole_words(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the same text in chunks that end at a space or at the end of a line, so that no word is cut in two."""
    return cut_anew(chunks, lambda text: max(text.rfind(" "), text.rfind("\n")) + 1)


def whole_pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the same text in chunks that byte-pair tokenizers encode as they would the whole, see `_LAST_CUT`."""
    return cut_anew(chunks, lambda text: found.end() if (found := _LAST_CUT.match(text)) else 0)


def cut_anew(chunks: Iterable[str], last_cut: Callable[[str], int]) -> Iterator[str]:
    """Yield the same text in chunks that end at its last possible cut; `last_cut` finds that, 0 if there is none."""
    rest = ""
    for chunk in chunks:
        text = rest + chunk
        end = last_cut(text)
        if end:
            yield text[:end]
        rest = text[end:]
    if rest:
        yield rest

"""Spans: runs of bytes in memory, in a file or in a zip archive, read piece by piece and never as a whole."""

from __future__ import annotations

import codecs
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from tinyprune.errors import TinypruneError, UsageError

CHUNK = 1 << 20

Progress = Callable[[int], object]
"""Called with the number of bytes just read, for a progress bar."""


def ignore_progress(_bytes_read: int) -> None:
    """The progress of what is too short to show."""


@dataclass(frozen=True)
class Span:
    """The bytes `start` … `stop - 1` of what `open` opens.

    Attributes:
        label: what messages call the text.
        open: gives a seekable binary stream to be used in a `with` statement; called once for each reading.
    """

    label: str
    open: Callable[[], AbstractContextManager[BinaryIO]]
    start: int
    stop: int

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start

    def read_bytes(self, progress: Progress = ignore_progress) -> Iterator[bytes]:
        """The bytes, in chunks of at most a megabyte.

        Raises:
            TinypruneError: if the file has become shorter than it was.
        """
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
                progress(len(chunk))
                yield chunk

    def read_text(self, progress: Progress = ignore_progress) -> Iterator[str]:
        """The characters, in chunks: UTF-8 decoded, a character that lies across two chunks kept whole.

        Raises:
            UsageError: if the bytes are not UTF-8, with the position of the first one that is not.
        """
        decoder = codecs.getincrementaldecoder("utf-8")()
        position = self.start
        # The empty chunk at the end makes the decoder complain of a character that was begun and never finished.
        for chunk in chain(self.read_bytes(progress), [b""]):
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


def whole_words(chunks: Iterable[str]) -> Iterator[str]:
    """The same text in chunks that end at a space or at the end of a line, so that no word is cut in two."""
    rest = ""
    for chunk in chunks:
        text = rest + chunk
        end = max(text.rfind(" "), text.rfind("\n")) + 1
        if end:
            yield text[:end]
        rest = text[end:]
    if rest:
        yield rest


@contextmanager
def open_member(archive: Path, member: str) -> Iterator[BinaryIO]:
    """Open the file `member` inside a zip archive for reading."""
    with zipfile.ZipFile(archive) as opened, opened.open(member) as stream:
        yield stream

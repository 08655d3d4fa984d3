"""A corpus: the bytes of its three splits, read in chunks of whole characters, words or pieces."""

from __future__ import annotations

import codecs
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tinyprune.errors import UsageError
from tinyprune.io.progress import progress_bar

CHUNK = 1 << 20
SPLITS = ("train", "valid", "test")

# Where a text can be cut so that byte-pair tokenizers give the same tokens: between two characters that are not white
# space, before a single space or after a single line end. GPT-2, SmolLM2 and Llama 3 all begin a new piece there, and
# merge none across. Elsewhere they may not: "\n\n" is one piece at the end of a text, and two before a word.
# Where there is no such place, the empty text at the beginning matches.
_LAST_CUT = re.compile(r"(?:.*(?:(?<=\S)(?= \S)|(?<=\S\n)(?=\S)))?", re.DOTALL)


@dataclass(frozen=True)
class Corpus:
    """A text that has been found but not yet tokenised. `splits` has the keys train, valid and test, in this order."""

    name: str
    splits: dict[str, bytes]

    @property
    def size(self) -> int:
        """The number of bytes of all splits together."""
        return sum(map(len, self.splits.values()))

    def read(self, unit: str, doing: str = "", splits: Sequence[str] = SPLITS) -> Iterator[tuple[str, Any]]:
        """Yield (split, chunk), split by split, in chunks of about a megabyte that cut no `unit` in two.

        They are bytes for "byte", and text for "character", "word" and "bpe". `doing`, such as "reading", is the label
        of a progress bar on standard error; without one there is no bar.

        Raises UsageError if text is wanted and the bytes are not UTF-8; the message names the first that is not.
        """
        total = sum(len(self.splits[split]) for split in splits)
        about = {"desc": f"{doing} {self.name}", "unit": "B", "unit_scale": True}
        with progress_bar(total=total, mininterval=0.5, **about) if doing else nullcontext() as bar:
            for split in splits:
                for chunk in self._chunks(split, unit):
                    if bar is not None:
                        bar.update(len(chunk if unit == "byte" else chunk.encode()))
                    yield split, chunk

    def digest(self, doing: str = "") -> str:
        """Return the sha256 of the bytes of train, valid and test, joined, as 64 hexadecimal digits."""
        sha = hashlib.sha256()
        for _, chunk in self.read("byte", doing):
            sha.update(chunk)
        return sha.hexdigest()

    def _chunks(self, split: str, unit: str) -> Iterator[Any]:
        data = self.splits[split]
        chunks = (data[start : start + CHUNK] for start in range(0, len(data), CHUNK))
        if unit == "byte":
            return chunks
        return {"word": whole_words, "bpe": whole_pieces}.get(unit, iter)(self._text(split, chunks))

    def _text(self, split: str, chunks: Iterable[bytes]) -> Iterator[str]:
        """Decode chunks of a split; a character may lie across two of them."""
        encoding = guessed(self.splits["train"])
        said = f"convert it, say with: iconv -f {encoding} -t utf-8; --tokenizer byte takes any file"
        if b"\0" in self.splits[split][:CHUNK]:
            raise UsageError(f"{self.name} holds zero bytes, which text does not; if it is UTF-16, {said}")
        try:
            yield from codecs.iterdecode(chunks, "utf-8")
        except UnicodeDecodeError:
            before = sum(len(self.splits[other]) for other in SPLITS[: SPLITS.index(split)])
            try:
                self.splits[split].decode("utf-8")
            except UnicodeDecodeError as error:  # which knows the place in the whole
                byte, place = error.object[error.start], before + error.start
                raise UsageError(
                    f"{self.name} is not UTF-8 text: byte 0x{byte:02x} at offset {place:,}; if it is text, {said}"
                ) from error


def guessed(data: bytes) -> str:
    """Return what `iconv` calls the encoding that text which is not UTF-8 probably has."""
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return "utf-16" if marked or b"\0" in data[:CHUNK] else "latin1"


def whole_words(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the same text in chunks that end at a space or at the end of a line, so that no word is cut in two."""
    return cut_anew(chunks, lambda text: max(text.rfind(" "), text.rfind("\n")) + 1)


def whole_pieces(chunks: Iterable[str]) -> Iterator[str]:
    """Yield the same text in chunks that byte-pair tokenizers encode as they would the whole, see `_LAST_CUT`."""
    return cut_anew(chunks, lambda text: _LAST_CUT.match(text).end())


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

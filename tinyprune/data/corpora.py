"""Corpora: from a name or a path to the bytes of three splits, train, valid and test.

Two corpora are embedded in every Python and need no network, five are downloaded (`corpora.toml`), and any file is one.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import sysconfig
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from tinyprune.config import DataConfig
from tinyprune.data.spans import Progress, Span, ignore_progress, open_member
from tinyprune.errors import TinypruneError, UsageError

SPLITS = ("train", "valid", "test")

# What some distributions of Python leave out, what `pydoc` has already, and what depends on how Python was built.
_NOT_IN_STDLIB = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "tkinter", "lib2to3", "distutils"),
    *("ensurepip", "pydoc_data"),
}


@dataclass(frozen=True)
class Entry:
    """What `corpora.toml` says of one corpus; its first lines explain each key."""

    name: str
    licence: str
    note: str
    url: str = ""
    file: str = ""
    size: int | None = None
    sha256: str | None = None
    members: tuple[str, ...] = ()
    split_bytes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Corpus:
    """A text in three splits, not yet read. `splits` has the keys train, valid and test, in this order."""

    name: str
    splits: dict[str, Span]

    @property
    def size(self) -> int:
        """In bytes, all splits together."""
        return sum(span.size for span in self.splits.values())

    def digest(self, progress: Progress = ignore_progress) -> str:
        """sha256 over the bytes of train, valid and test, one after the other, as 64 hexadecimal digits."""
        sha = hashlib.sha256()
        for span in self.splits.values():
            for chunk in span.read_bytes(progress):
                sha.update(chunk)
        return sha.hexdigest()


def catalogue() -> dict[str, Entry]:
    """The corpora that have a name, in the order of `corpora.toml`: first those that need no network."""
    text = (resources.files("tinyprune.data") / "corpora.toml").read_text(encoding="utf-8")
    return {
        name: Entry(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        for name, values in tomllib.loads(text).items()
    }


def data_directory() -> Path:
    """Where downloads and kept tokens lie: $TINYPRUNE_DATA, or data/downloads under the current directory."""
    return Path(os.environ.get("TINYPRUNE_DATA") or Path("data", "downloads"))


def open_corpus(config: DataConfig) -> Corpus:
    """Find the corpus `config.corpus`, downloading it if need be, and say where each of its splits lies.

    A corpus that brings no splits is cut into three runs, train first, then valid, then test, by the two fractions of
    `config`. Sizes are in bytes; a cut inside a character of several bytes moves behind it. A cut may divide a word.

    Raises:
        UsageError: if there is neither a corpus nor a readable file of that name, or if it is empty.
        TinypruneError: if it could not be downloaded.
    """
    entries = catalogue()
    entry = entries.get(config.corpus)
    if entry is None:
        path = _local_file(config.corpus, list(entries))
        return _cut_by_fractions(path.name, functools.partial(path.open, "rb"), path.stat().st_size, config)
    if not entry.url:
        text = {"pydoc": pydoc_text, "stdlib": stdlib_text}[entry.name]().encode("utf-8")
        return _cut_by_fractions(entry.name, functools.partial(io.BytesIO, text), len(text), config)
    return open_entry(entry, config)


def open_entry(entry: Entry, config: DataConfig) -> Corpus:
    """Open a corpus that comes from the network; see `open_corpus`."""
    # Here and not above: urllib and tqdm take longer to import than everything else together.
    from tinyprune.data.download import fetch

    offline = ", ".join(e.name for e in catalogue().values() if not e.url)
    path = fetch(
        entry.url,
        data_directory() / entry.file,
        name=entry.name,
        sha256=entry.sha256,
        size=entry.size,
        otherwise=f"or use a corpus that needs no network: {offline}",
    )
    if not entry.members:
        return _cut_by_fractions(entry.name, functools.partial(path.open, "rb"), path.stat().st_size, config)
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [archive.getinfo(member).file_size for member in entry.members]
    except (zipfile.BadZipFile, KeyError) as error:
        raise TinypruneError(f"{path} is not the archive of {entry.name}: {error}; delete it and run again") from error
    openers = [functools.partial(open_member, path, member) for member in entry.members]
    if len(openers) == 1:
        return _cut(entry.name, openers[0], sizes[0], entry.split_bytes[0], entry.split_bytes[1])
    spans = [Span(f"{entry.name} ({m})", o, 0, n) for m, o, n in zip(entry.members, openers, sizes, strict=True)]
    return Corpus(entry.name, dict(zip(SPLITS, spans, strict=True)))


def pydoc_text() -> str:
    """Python's language reference as `help()` shows it: all topics, sorted by name, joined by a newline."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def stdlib_text() -> str:
    """The sources of Python's standard library: all .py files, sorted by path, joined by a newline.

    Left out are what some distributions leave out (tests, IDLE, tkinter, turtledemo, lib2to3, distutils, ensurepip),
    what was installed afterwards, `pydoc_data`, which is a corpus of its own, and `_sysconfigdata*` and `config-*`,
    which say how this Python was built. So the text is the same for every Python of one version, but for patches of its
    distributor's.

    Raises:
        UsageError: if this Python comes without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    texts = [
        paths[name].read_text(encoding="utf-8")
        for name in sorted(paths)
        if not _NOT_IN_STDLIB.intersection(name.split("/")) and not name.startswith(("_sysconfigdata", "config-"))
    ]
    if not texts:
        raise UsageError(f"corpus stdlib: this Python has no sources in {root}; use pydoc or the path of a text file")
    return "\n".join(texts)


def _local_file(name: str, known: list[str]) -> Path:
    """The file at the path `name`; UsageError when it is not there or cannot be read."""
    path = Path(name).expanduser()
    allowed = f"give one of {', '.join(known)}, or the path of a text file"
    if not path.exists():
        raise UsageError(f"data.corpus: there is no corpus and no file {name!r}; {allowed}")
    if not path.is_file():
        raise UsageError(f"data.corpus: {name!r} is {'a folder' if path.is_dir() else 'not a regular file'}; {allowed}")
    try:
        with path.open("rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        raise UsageError(f"data.corpus: cannot read {name!r}: {error.strerror}; {allowed}") from error
    if empty:
        raise UsageError(f"data.corpus: {name!r} is empty; {allowed}")
    return path


Opener = Callable[[], AbstractContextManager[BinaryIO]]


def _cut_by_fractions(name: str, opener: Opener, size: int, config: DataConfig) -> Corpus:
    """Cut `size` bytes by the two fractions of `config`."""
    valid, test = int(size * config.valid_fraction), int(size * config.test_fraction)
    return _cut(name, opener, size, size - valid - test, valid)


def _cut(name: str, opener: Opener, size: int, train: int, valid: int) -> Corpus:
    """Cut `size` bytes into `train`, then `valid`, then what is left."""
    stops = [_character_start(opener, train), _character_start(opener, train + valid), size]
    spans = [Span(name, opener, start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
    return Corpus(name, dict(zip(SPLITS, spans, strict=True)))


def _character_start(opener: Opener, position: int) -> int:
    """`position`, or the next one where a character starts: UTF-8 continues a character by up to 3 bytes 10xxxxxx."""
    with opener() as stream:
        stream.seek(position)
        for byte in stream.read(3):
            if byte & 0b1100_0000 != 0b1000_0000:
                break
            position += 1
    return position

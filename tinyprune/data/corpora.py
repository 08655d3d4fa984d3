"""Find a corpus: from a name or a path to the bytes of three splits, train, valid and test.

Two corpora come with every Python, five are downloaded (`corpora.toml`), and any file can be one.
"""

from __future__ import annotations

import functools
import io
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from tinyprune.config import DataConfig
from tinyprune.data.spans import SPLITS, Corpus, Opener, Span, plain_text
from tinyprune.errors import TinypruneError, UsageError, nearest
from tinyprune.files import cache_directory

# Folders that some distributions of Python leave out, that were installed later, or that are another corpus.
_NOT_IN_STDLIB = {
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "turtledemo", "tkinter", "lib2to3", "distutils"),
    *("ensurepip", "pydoc_data"),
}


@dataclass(frozen=True)
class Entry:
    """One corpus of `corpora.toml`, whose first lines explain each key."""

    name: str
    licence: str
    note: str
    url: str = ""
    file: str = ""
    size: int | None = None
    sha256: str = ""
    members: tuple[str, ...] = ()
    split_bytes: tuple[int, ...] = ()


def catalogue() -> dict[str, Entry]:
    """Return the corpora with a name, in the order of `corpora.toml`: the ones that need no network first."""
    text = (resources.files("tinyprune.data") / "corpora.toml").read_text(encoding="utf-8")
    return {
        name: Entry(name, **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
        for name, values in tomllib.loads(text).items()
    }


def absolute_corpus(name: str) -> str:
    """Return the absolute path of the file `name`, so that it is found from any folder.

    The name of a corpus of the catalogue, and of what is no file, is returned as it is.
    """
    path = Path(name).expanduser()
    return str(path.absolute()) if name not in catalogue() and path.is_file() else name


def open_corpus(config: DataConfig) -> Corpus:
    """Find the corpus `config.corpus`, downloading it if need be.

    A corpus without splits is cut into train, then valid, then test, by the two fractions of `config`. Sizes
    are in bytes; a cut that would fall inside a character moves to its end. A cut may divide a word. A file is read as
    `spans.plain_text` says, and a corpus of the catalogue byte for byte.

    Raises:
        UsageError: if there is neither a corpus nor a readable file of that name, or if it is empty.
        TinypruneError: if it could not be downloaded.
    """
    entries = catalogue()
    entry = entries.get(config.corpus)
    if entry is None:
        path = _local_file(config.corpus, list(entries))
        return _cut(path.name, *plain_text(functools.partial(path.open, "rb"), path.stat().st_size), config)
    if entry.url:
        return open_entry(entry, config)
    text = {"pydoc": pydoc_text, "stdlib": stdlib_text}[entry.name]().encode("utf-8")
    return _cut(entry.name, functools.partial(io.BytesIO, text), len(text), config)


def open_entry(entry: Entry, config: DataConfig) -> Corpus:
    """Open a corpus that has to be downloaded; see `open_corpus`."""
    # Imported here because urllib and tqdm take longer to import than everything else together.
    from tinyprune.data.download import fetch

    advice = "or use a corpus that needs no network: " + ", ".join(e.name for e in catalogue().values() if not e.url)
    about = {"name": entry.name, "sha256": entry.sha256, "otherwise": advice}
    path = fetch(entry.url, cache_directory() / entry.file, size=entry.size, **about)
    if not entry.members:
        return _cut(entry.name, functools.partial(path.open, "rb"), path.stat().st_size, config)
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = [archive.getinfo(member).file_size for member in entry.members]
    except (zipfile.BadZipFile, KeyError) as error:
        raise TinypruneError(f"{path} is not the archive of {entry.name}: {error}; delete it and run again") from error
    openers = [functools.partial(_open_member, path, member) for member in entry.members]
    if len(openers) == 1:
        return _cut(entry.name, openers[0], sizes[0], config, entry.split_bytes)
    spans = [Span(f"{entry.name} ({m})", o, 0, n) for m, o, n in zip(entry.members, openers, sizes, strict=True)]
    return Corpus(entry.name, dict(zip(SPLITS, spans, strict=True)))


def pydoc_text() -> str:
    """Return Python's language reference as `help()` shows it: all topics, sorted by name, joined by newlines."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def stdlib_text() -> str:
    """Return the sources of Python's standard library: all .py files, sorted by path, joined by newlines.

    It omits what some distributions leave out, what was installed later, the corpus `pydoc`, and `_sysconfigdata*` and
    `config-*`, which describe how this Python was built. So every Python of one version has the same text, except for
    patches by its distributor. Raises UsageError if this Python comes without its sources.
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
    """Return the path of the file `name`. Raises UsageError if it is not there, cannot be read or is empty."""
    path, hint = Path(name).expanduser(), ""
    try:
        with path.open("rb") as stream:
            problem = "" if stream.read(1) else f"{name!r} is empty"
    except FileNotFoundError:
        problem, hint = f"there is no corpus and no file {name!r}", nearest(name, known)
    except OSError as error:
        problem = f"cannot read {name!r}: {error.strerror}"
    if problem:
        raise UsageError(f"data.corpus: {problem}; give one of {', '.join(known)}, or the path of a text file{hint}")
    return path


@contextmanager
def _open_member(archive: Path, member: str) -> Iterator[BinaryIO]:
    """Open the file `member` inside a zip archive for reading."""
    with zipfile.ZipFile(archive) as opened, opened.open(member) as stream:
        yield stream


def _cut(name: str, opener: Opener, size: int, config: DataConfig, split_bytes: Sequence[int] = ()) -> Corpus:
    """Cut `size` bytes into train, valid and test, of `split_bytes` bytes or else by the two fractions of `config`."""
    if split_bytes:
        train, valid, _ = split_bytes
    else:
        valid = int(size * config.valid_fraction)
        train = size - valid - int(size * config.test_fraction)
    stops = [_character_start(opener, train), _character_start(opener, train + valid), size]
    spans = [Span(name, opener, start, stop) for start, stop in zip([0, *stops], stops, strict=False)]
    return Corpus(name, dict(zip(SPLITS, spans, strict=True)))


def _character_start(opener: Opener, position: int) -> int:
    """Return the first byte from `position` on that starts a character: UTF-8 continues one by ≤ 3 bytes 10xxxxxx."""
    with opener() as stream:
        stream.seek(position)
        for byte in stream.read(3):
            if byte & 0b1100_0000 != 0b1000_0000:
                break
            position += 1
    return position

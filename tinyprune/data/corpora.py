"""Find a corpus: from a name or a path to the bytes of three splits, train, valid and test.

Two corpora come with every Python, two with packages (`packages`), five are downloaded (`corpora.toml`), and any file
or folder can be one.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tinyprune.config import DataConfig
from tinyprune.data.corpus import SPLITS, Corpus
from tinyprune.data.download import fetch
from tinyprune.data.packages import factbook, speeches
from tinyprune.errors import TinypruneError, UsageError, nearest
from tinyprune.io.files import cache_directory, checked_path, replace_file

# Folders that some distributions of Python leave out, that were installed later, or that are another corpus.
_NOT_IN_STDLIB = {"site-packages", "dist-packages", "ensurepip", "lib2to3", "distutils", "pydoc_data"}
_NOT_IN_STDLIB |= {"test", "tests", "idlelib", "turtledemo", "tkinter"}
REPEATED = 64  # characters: a shorter passage may stand in several documents


@dataclass(frozen=True)
class Entry:
    """One corpus of `corpora.toml`, whose first lines explain each key."""

    name: str
    licence: str
    note: str
    url: str = ""
    file: str = ""
    sha256: str = ""
    members: Sequence[str] = ()
    split_bytes: Sequence[int] = ()


def catalogue() -> dict[str, Entry]:
    """Return the corpora with a name, in the order of `corpora.toml`: the ones that need no network first."""
    text = (resources.files("tinyprune.data") / "corpora.toml").read_text(encoding="utf-8")
    return {name: Entry(name, **values) for name, values in tomllib.loads(text).items()}


def absolute_corpus(name: str) -> str:
    """Return the absolute path of the file or folder `name`, so that it is found from any folder.

    The name of a corpus of the catalogue, and of what does not exist, is returned as it is. For "-" standard input is
    read, and kept in the cache folder under its sha256, for later stages. Raises UsageError if it is empty or no path.
    """
    path = checked_path("corpus", name).expanduser()
    if name == "-":
        data = sys.stdin.buffer.read()
        path = cache_directory() / "stdin" / f"{hashlib.sha256(data).hexdigest()[:16]}.txt"
        replace_file(path, data, "standard input")
    return str(path.absolute()) if name not in catalogue() and path.exists() else name


def open_corpus(config: DataConfig) -> Corpus:
    """Find the corpus `config.corpus`, downloading it if need be.

    A corpus without splits is cut into train, then valid, then test, by the two fractions of `config`. Sizes
    are in bytes; a cut that would fall inside a character moves to its end. A cut may divide a word. With
    `config.split` "documents" the splits of a folder, and of what needs no network, are whole documents, see
    `interleaved`. A file is read as `plain_text` says, and a corpus of the catalogue byte for byte.

    Raises:
        UsageError: if there is neither a corpus nor a readable file of that name, or if it is empty.
        TinypruneError: if it could not be downloaded.
    """
    entries = catalogue()
    entry = entries.get(config.corpus)
    path = checked_path("data.corpus", config.corpus).expanduser()
    if entry is None and not path.is_dir():
        name, data = _local_file(config.corpus, list(entries))
        return _cut(name, plain_text(data), config)
    if entry is None:
        name, documents = path.name, text_files(path)
    elif entry.url:
        return open_entry(entry, config)
    else:
        name, documents = entry.name, LOCAL[entry.name]()
    if config.split == "documents":
        kept = without_repeats(documents)
        return Corpus(name, interleaved(kept, config.valid_fraction, config.test_fraction))
    return _cut(name, "\n".join(documents.values()).encode("utf-8"), config)


def open_entry(entry: Entry, config: DataConfig) -> Corpus:
    """Open a corpus that has to be downloaded; see `open_corpus`."""
    local = ", ".join(name for name, other in catalogue().items() if not other.url)
    advice = f"or use a corpus that needs no network: {local}"
    place = cache_directory() / entry.file
    path = fetch(entry.url, place, name=entry.name, sha256=entry.sha256, otherwise=advice)
    if not entry.members:
        return _cut(entry.name, path.read_bytes(), config)
    try:
        with zipfile.ZipFile(path) as archive:
            members = [archive.read(member) for member in entry.members]
    except (zipfile.BadZipFile, KeyError) as error:
        said = f"{path} is not the archive of {entry.name}: {error}"
        raise TinypruneError(f"{said}; delete it and run again") from error
    if len(members) == 1:
        return _cut(entry.name, members[0], config, entry.split_bytes)
    return Corpus(entry.name, dict(zip(SPLITS, members, strict=True)))


def text_files(folder: Path) -> dict[str, str]:
    """Return the files of a folder that are UTF-8 text, by their paths, sorted; hidden ones are left out.

    Raises UsageError if there is none.
    """
    texts = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(part.startswith(".") for part in name.split("/")):
            with suppress(UnicodeDecodeError):
                texts[name] = plain_text(_unpacked(path.read_bytes())).decode("utf-8")
    texts = {name: text for name, text in texts.items() if text and "\0" not in text}
    if not texts:
        raise UsageError(f"data.corpus: the folder {folder} holds no file of UTF-8 text")
    return texts


def pydoc_topics() -> dict[str, str]:
    """Return Python's language reference as `help()` shows it: each topic by its name, sorted.

    Raises UsageError if this Python comes without it.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        said = "this Python comes without pydoc_data; use stdlib or a text file"
        raise UsageError(f"corpus pydoc: {said}") from error
    return {name: topics[name] for name in sorted(topics)}


def stdlib_files() -> dict[str, str]:
    """Return the sources of Python's standard library: each .py file by its path, sorted.

    It omits what some distributions leave out, what was installed later, the corpus `pydoc`, and `_sysconfigdata*` and
    `config-*`, which describe how this Python was built. So every Python of one version has the same text, except for
    patches by its distributor. Raises UsageError if this Python comes without its sources.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    texts = {}
    for name, path in sorted(paths.items()):
        of_this_build = name.startswith(("_sysconfigdata", "config-"))
        if not of_this_build and not _NOT_IN_STDLIB.intersection(name.split("/")):
            texts[name] = path.read_text(encoding="utf-8")
    if not texts:
        otherwise = "use pydoc or the path of a text file"
        raise UsageError(f"corpus stdlib: this Python has no sources in {root}; {otherwise}")
    return texts


# The documents of corpora that need no network, by their names.
LOCAL = {"pydoc": pydoc_topics, "stdlib": stdlib_files, "sotu": speeches, "factbook": factbook}


def without_repeats(documents: dict[str, str]) -> list[str]:
    """Return the documents without what a model could have read elsewhere, so that what is held out is new to it.

    A passage (what stands between empty lines) of `REPEATED` characters or more is kept where it comes first: half of
    pydoc's held-out text would otherwise stand in the training text too. The character tables of encodings, generated
    and nearly equal, are left out.
    """
    seen: set[str] = set()
    kept = []
    for name, text in documents.items():
        if not name.startswith("encodings/"):
            new = [x for x in text.split("\n\n") if len(x) < REPEATED or x.strip() not in seen]
            seen.update(passage.strip() for passage in new)
            kept.append("\n\n".join(new))
    return [text for text in kept if text.strip()]


def interleaved(documents: Sequence[str], valid_fraction: float, test_fraction: float) -> dict[str, bytes]:
    """Return train, valid and test of whole documents, joined by newlines: each goes where most is missing.

    So every split has documents from all of the corpus, and about its fraction of all bytes.
    """
    shares = {"valid": valid_fraction, "test": test_fraction}
    shares["train"] = 1 - valid_fraction - test_fraction
    splits: dict[str, list[bytes]] = {split: [] for split in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    for data in (text.encode("utf-8") for text in documents):
        total = sum(sizes.values()) + len(data)
        split = max(SPLITS, key=lambda split: shares[split] * total - sizes[split])
        splits[split].append(data)
        sizes[split] += len(data)
    return {split: b"\n".join(found) for split, found in splits.items()}


def plain_text(data: bytes) -> bytes:
    """Return a file's text without its byte order mark, and with \\n for \\r\\n and for \\r.

    Editors of other systems write these. Neither is part of the text: they would be characters of the vocabulary, and
    the same book would be another corpus. What is not UTF-8 text is changed in the same way.
    """
    return data.removeprefix(codecs.BOM_UTF8).replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _local_file(name: str, known: list[str]) -> tuple[str, bytes]:
    """Return name and content of the file at `name`. Raises UsageError if it is missing, unreadable or empty."""
    path, hint, data = Path(name).expanduser(), "", b""
    try:
        data = _unpacked(path.read_bytes())
        problem = "" if data else f"{name!r} is empty"
    except FileNotFoundError:
        problem, hint = f"there is no corpus and no file {name!r}", nearest(name, known)
    except OSError as error:
        problem = f"cannot read {name!r}: {error.strerror}"
    if problem:
        raise UsageError(
            f"data.corpus: {problem}; give one of {', '.join(known)}, or the path of a text file or a folder{hint}"
        )
    return path.name, data


def _unpacked(data: bytes) -> bytes:
    """Return what a .gz file holds; other data as they are."""
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def _cut(name: str, data: bytes, config: DataConfig, split_bytes: Sequence[int] = ()) -> Corpus:
    """Cut `data` into train, valid and test, of `split_bytes` bytes or else by the two fractions of `config`."""
    if split_bytes:
        train, valid, _ = split_bytes
    else:
        valid = int(len(data) * config.valid_fraction)
        train = len(data) - valid - int(len(data) * config.test_fraction)
    a, b = _character_start(data, train), _character_start(data, train + valid)
    return Corpus(name, dict(zip(SPLITS, (data[:a], data[a:b], data[b:]), strict=True)))


def _character_start(data: bytes, position: int) -> int:
    """Return the first byte from `position` on that starts a character: UTF-8 continues one by ≤ 3 bytes 10xxxxxx."""
    for byte in data[position : position + 3]:
        if byte & 0b1100_0000 != 0b1000_0000:
            break
        position += 1
    return position

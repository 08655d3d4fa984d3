"""From a corpus to arrays of token ids, one for each split.

A small corpus stays in memory. A large one goes through in pieces of a megabyte and is kept, once tokenised, as .npy
files that are memory-mapped: they are read where a batch needs them, and never lie in memory as a whole. Both ways give
the same ids, of the smallest unsigned dtype that holds V.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import DataConfig
from tinyprune.data.corpora import SPLITS, Corpus
from tinyprune.data.spans import CHUNK, Progress, Span, ignore_progress, whole_words
from tinyprune.data.tokenizers import (
    UNKNOWN,
    ByteTokenizer,
    CharacterTokenizer,
    Tokenizer,
    WordTokenizer,
    check_ids,
    tokenizer_from_dict,
)
from tinyprune.errors import SaveError, TinypruneError

# Part of the names of kept files: raise it when the same text and settings no longer give the same tokens.
FORMAT = 1


def build_tokenizer(corpus: Corpus, config: DataConfig, digest: str, keep_in: Path | None) -> Tokenizer:
    """The tokenizer that `config` asks for, its vocabulary taken from the corpus.

    Args:
        keep_in: where the vocabulary of a large corpus is kept, and found again; None: build it, and keep nothing.

    Raises:
        UsageError: if the corpus is not UTF-8 and the tokenizer is not the byte tokenizer.
        SaveError: if the vocabulary cannot be written.
    """
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if keep_in is None:
        return _build_tokenizer(corpus, config, ignore_progress)
    path = keep_in / f"{_kept_name(corpus, digest, config.tokenizer, config.vocabulary)}.vocabulary.json"
    if path.exists():
        try:
            return tokenizer_from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise TinypruneError(f"{path} cannot be read ({error}); delete it, and it will be made again") from error
    read = corpus.splits["train"].size if config.tokenizer == "word" else corpus.size
    with progress_bar(f"vocabulary of {corpus.name}", read) as progress:
        tokenizer = _build_tokenizer(corpus, config, progress)
    try:
        keep_in.mkdir(parents=True, exist_ok=True)
        _write_json(path, tokenizer.to_dict())
    except OSError as error:
        raise _cannot_keep(corpus, path, error) from error
    return tokenizer


def tokenise(
    corpus: Corpus, tokenizer: Tokenizer, digest: str, keep_in: Path | None
) -> tuple[dict[str, NDArray], dict[str, int]]:
    """Encode the three splits.

    Args:
        digest: `corpus.digest()`, part of the name of what is kept.
        keep_in: where the tokens of a large corpus are kept, and found again; None: they stay in memory.

    Returns:
        tokens: of each split, (n,) uint8, uint16 or uint32; read-only memory maps if they are kept.
        characters: of each split's raw text; for the byte tokenizer, bytes; 0 if some of its words became `<unk>`.

    Raises:
        UsageError: if the text is not UTF-8 and the tokenizer not the byte tokenizer, or if a character has no number.
        TinypruneError: if kept tokens are damaged.
        SaveError: if tokens cannot be written.
    """
    if keep_in is None:
        tokens, characters = {}, {}
        for split, span in corpus.splits.items():
            parts = list(_encode(span, tokenizer, ignore_progress))
            tokens[split] = np.concatenate([np.empty(0, _dtype(tokenizer)), *(ids for ids, _ in parts)])
            characters[split] = known(sum(length for _, length in parts))
        return tokens, characters
    folder = keep_in / f"{_kept_name(corpus, digest, tokenizer.to_dict())}.tokens"
    if not folder.exists():
        _write_tokens(folder, corpus, tokenizer)
    return _read_tokens(folder, tokenizer.V)


@contextmanager
def progress_bar(label: str, size: int) -> Iterator[Progress]:
    """A bar on standard error that fills as `size` bytes are read."""
    from tqdm import tqdm

    with tqdm(desc=label, total=size, unit="B", unit_scale=True, mininterval=0.5) as bar:
        yield bar.update


def _build_tokenizer(corpus: Corpus, config: DataConfig, progress: Progress) -> Tokenizer:
    if config.tokenizer == "word":
        return WordTokenizer.build(whole_words(corpus.splits["train"].read_text(progress)), config.vocabulary)
    return CharacterTokenizer.build(chunk for span in corpus.splits.values() for chunk in span.read_text(progress))


def _encode(span: Span, tokenizer: Tokenizer, progress: Progress) -> Iterator[tuple[NDArray, float]]:
    """The ids of each chunk of a text, and how many characters (bytes) they stand for; NaN if words became `<unk>`."""
    if tokenizer.kind == "byte":
        chunks = span.read_bytes(progress)
    elif tokenizer.kind == "word":
        chunks = whole_words(span.read_text(progress))
    else:
        chunks = span.read_text(progress)
    for chunk in chunks:
        ids = tokenizer.encode(chunk)
        lost = tokenizer.kind == "word" and (ids == tokenizer.unknown).sum() > chunk.count(UNKNOWN)
        yield ids.astype(_dtype(tokenizer)), math.nan if lost else len(chunk)


def known(characters: float) -> int:
    """How many characters, or 0 if that is NaN: then the tokens do not stand for the text."""
    return 0 if math.isnan(characters) else int(characters)


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smallest of uint8, uint16 and uint32 that holds every id."""
    return np.min_scalar_type(tokenizer.V - 1)


def _kept_name(corpus: Corpus, digest: str, *settings: Any) -> str:
    """The corpus's name and a hash of all that its tokens depend on."""
    cuts = [span.size for span in corpus.splits.values()]
    depends_on = json.dumps([FORMAT, digest, cuts, settings], sort_keys=True)
    readable = re.sub(r"[^\w.-]", "_", corpus.name)[:40]
    return f"{readable}-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}"


def _write_tokens(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> None:
    """Make the folder of a corpus's tokens: under another name first, so that a folder of this name is always whole."""
    part = folder.with_name(f"{folder.name}.part{os.getpid()}")
    try:
        part.mkdir(parents=True)
        with progress_bar(f"tokenising {corpus.name}", corpus.size) as progress:
            characters = {
                split: _write_split(part / f"{split}.npy", span, tokenizer, progress)
                for split, span in corpus.splits.items()
            }
        about = {"corpus": corpus.name, "tokenizer": tokenizer.kind, "V": tokenizer.V, "characters": characters}
        _write_json(part / "about.json", about)
        part.rename(folder)
    except OSError as error:
        # Another run may have made the same folder meanwhile; then its tokens are as good as ours.
        if not folder.exists():
            raise _cannot_keep(corpus, folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_split(path: Path, span: Span, tokenizer: Tokenizer, progress: Progress) -> int:
    """Write one split's ids as a .npy file; returns how many characters (bytes) its text has."""
    count = characters = 0
    with path.open("wb") as file:
        _write_header(file, tokenizer, 0)
        for ids, length in _encode(span, tokenizer, progress):
            file.write(ids.data)
            count += len(ids)
            characters += length
        # NumPy pads its header so that the length of an array can be written when it is known at last.
        file.seek(0)
        _write_header(file, tokenizer, count)
        file.flush()
        os.fsync(file.fileno())
    return known(characters)


def _write_header(file: BinaryIO, tokenizer: Tokenizer, count: int) -> None:
    header = {"descr": _dtype(tokenizer).str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    """Write a file that is there whole or not at all."""
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        with part.open("wb") as file:
            file.write(json.dumps(values).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_tokens(folder: Path, V: int) -> tuple[dict[str, NDArray], dict[str, int]]:
    try:
        characters = json.loads((folder / "about.json").read_text(encoding="utf-8"))["characters"]
        return {split: _map(folder / f"{split}.npy", V) for split in SPLITS}, characters
    except (OSError, ValueError, KeyError) as error:
        raise TinypruneError(
            f"the tokens kept in {folder} are damaged ({error}); delete that folder, and they will be made again"
        ) from error


def _map(path: Path, V: int) -> NDArray:
    """Memory-map a .npy file, having seen that all its ids are below V."""
    mapped = np.load(path, mmap_mode="r")
    # Read beside the map, not through it: pages of the map that were touched count as this process's memory.
    with path.open("rb") as file:
        file.seek(mapped.offset)
        while (ids := np.fromfile(file, mapped.dtype, CHUNK)).size:
            check_ids(ids, V)
    return mapped


def _cannot_keep(corpus: Corpus, path: Path, error: OSError) -> SaveError:
    return SaveError(
        f"cannot keep the tokens of {corpus.name} at {path}: {error}; set TINYPRUNE_DATA to another folder"
    )

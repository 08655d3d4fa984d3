"""The vocabulary and the tokens of a large corpus, cached on disk: made once and found again by every later run.

Tokens are stored as one .npy file for each split and memory-mapped, so that they never lie in memory as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import DataConfig
from tinyprune.data.spans import CHUNK, SPLITS, Corpus
from tinyprune.data.tokenizers import EncodedChunk, Tokenizer, check_ids, id_dtype, known, tokenizer_from_dict
from tinyprune.errors import SaveError, TinypruneError
from tinyprune.files import replace_file

# Part of the names of cached files: raise it when the same text and settings no longer give the same tokens.
FORMAT = 1


def cached_vocabulary(
    directory: Path, corpus: Corpus, digest: str, config: DataConfig, build: Callable[[], Tokenizer]
) -> Tokenizer:
    """Return the tokenizer cached for `config` in `directory`, or build it and store it there.

    Raises TinypruneError if it cannot be read, SaveError if it cannot be written.
    """
    path = directory / f"{_name(corpus, digest, config.tokenizer, config.vocabulary)}.vocabulary.json"
    if path.exists():
        try:
            return tokenizer_from_dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise TinypruneError(f"{path} cannot be read ({error}); delete it, and it will be made again") from error
    tokenizer = build()
    replace_file(path, json.dumps(tokenizer.to_dict()).encode("utf-8"), "vocabulary")
    return tokenizer


def cached_tokens(
    directory: Path, corpus: Corpus, digest: str, tokenizer: Tokenizer, encoded: Iterable[EncodedChunk]
) -> tuple[dict[str, NDArray], dict[str, int]]:
    """Return the tokens cached in `directory`, as read-only memory maps, or write `encoded` there first.

    They are the ids of each split, (n,) of `id_dtype(tokenizer)`; with them comes `Text.characters`. Raises
    TinypruneError if cached tokens are damaged, SaveError if they cannot be written.
    """
    folder = directory / f"{_name(corpus, digest, tokenizer.to_dict())}.tokens"
    if not folder.exists():
        with _made_whole(folder, corpus) as part:
            _write_tokens(part, corpus, tokenizer, encoded)
    try:
        characters = json.loads((folder / "about.json").read_text(encoding="utf-8"))["characters"]
        return {split: _map(folder / f"{split}.npy", tokenizer.V) for split in SPLITS}, characters
    except (OSError, ValueError, KeyError) as error:
        raise TinypruneError(
            f"the tokens kept in {folder} are damaged ({error}); delete that folder, and they will be made again"
        ) from error


def _name(corpus: Corpus, digest: str, *settings: Any) -> str:
    """Return the corpus's name and a hash of all that its tokens depend on."""
    cuts = [span.size for span in corpus.splits.values()]
    depends_on = json.dumps([FORMAT, digest, cuts, settings], sort_keys=True)
    readable = re.sub(r"[^\w.-]", "_", corpus.name)[:40]
    return f"{readable}-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}"


@contextmanager
def _made_whole(path: Path, corpus: Corpus) -> Iterator[Path]:
    """Give another name for a folder and rename it to `path` at the end, so that what has that name is complete."""
    part = path.with_name(f"{path.name}.part{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        # Another run may have made the same meanwhile; its result is as good as ours.
        if not path.exists():
            raise SaveError(
                f"cannot keep the tokens of {corpus.name} at {path}: {error}; set TINYPRUNE_CACHE to another folder"
            ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write_tokens(folder: Path, corpus: Corpus, tokenizer: Tokenizer, encoded: Iterable[EncodedChunk]) -> None:
    """Write train.npy, valid.npy, test.npy and about.json."""
    folder.mkdir()
    characters = dict.fromkeys(SPLITS, 0.0)
    counts = dict.fromkeys(SPLITS, 0)
    with ExitStack() as stack:
        files = {split: stack.enter_context((folder / f"{split}.npy").open("wb")) for split in SPLITS}
        for file in files.values():
            _write_header(file, tokenizer, 0)
        for split, ids, length in encoded:
            files[split].write(ids.data)
            counts[split] += len(ids)
            characters[split] += length
        for split, file in files.items():
            # NumPy pads its header, so that the length of the array can be filled in once it is known.
            file.seek(0)
            _write_header(file, tokenizer, counts[split])
            file.flush()
            os.fsync(file.fileno())
    about = {"corpus": corpus.name, "tokenizer": tokenizer.kind, "V": tokenizer.V, "characters": known(characters)}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _write_header(file: BinaryIO, tokenizer: Tokenizer, count: int) -> None:
    header = {"descr": id_dtype(tokenizer).str, "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)


def _map(path: Path, V: int) -> NDArray:
    """Memory-map a .npy file after checking that all its ids are below V."""
    mapped = np.load(path, mmap_mode="r")
    # Read the file, not the map: pages of the map that were touched would count as this process's memory.
    with path.open("rb") as file:
        file.seek(mapped.offset)
        while (ids := np.fromfile(file, mapped.dtype, CHUNK)).size:
            check_ids(ids, V)
    return mapped

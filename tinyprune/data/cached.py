"""The vocabulary and the tokens of a large corpus, cached on disk: made once and found again by every later run."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import DataConfig
from tinyprune.data.corpus import SPLITS, Corpus
from tinyprune.data.tokenizers import Tokenizer, tokenizer_from_dict
from tinyprune.errors import TinypruneError
from tinyprune.files import replace_file

# Part of the names of cached files: raise it when the same text and settings no longer give the same tokens.
FORMAT = 2
Tokens = tuple[dict[str, NDArray], dict[str, int]]  # the ids of each split, (n,), and `Text.characters`


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
    directory: Path, corpus: Corpus, digest: str, tokenizer: Tokenizer, encode: Callable[[], Tokens]
) -> Tokens:
    """Return the tokens cached in `directory`, or encode the corpus and store them there.

    Raises TinypruneError if cached tokens are damaged, SaveError if they cannot be written.
    """
    path = directory / f"{_name(corpus, digest, tokenizer.to_dict())}.tokens.npz"
    if not path.exists():
        tokens, characters = encode()
        content = io.BytesIO()
        np.savez(content, characters=[characters[split] for split in SPLITS], **tokens)
        replace_file(path, content.getvalue(), "tokens")
        return tokens, characters
    try:
        with path.open("rb") as file, np.load(file) as arrays:  # the archive has a checksum of each array
            characters = dict(zip(SPLITS, arrays["characters"].tolist(), strict=True))
            return {split: arrays[split] for split in SPLITS}, characters
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TinypruneError(
            f"the tokens in {path} are damaged ({error}); delete that file to make it again"
        ) from error


def _name(corpus: Corpus, digest: str, *settings: Any) -> str:
    """Return the corpus's name and a hash of all that its tokens depend on."""
    cuts = [len(data) for data in corpus.splits.values()]
    depends_on = json.dumps([FORMAT, digest, cuts, settings], sort_keys=True)
    readable = re.sub(r"[^\w.-]", "_", corpus.name)[:40]
    return f"{readable}-{hashlib.sha256(depends_on.encode()).hexdigest()[:16]}"

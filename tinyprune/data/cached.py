"""The tokens of a large corpus, cached on disk: made once and found again by every later run."""

from __future__ import annotations

import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyprune.data.corpus import SPLITS, Corpus
from tinyprune.data.tokenizers import Tokenizer
from tinyprune.errors import TinypruneError
from tinyprune.io.files import replace_file

# Part of the names of cached files: raise it when the same text and settings no longer give the same tokens.
FORMAT = 3
# The ids of each split, (n,), and `Text.characters`.
Tokens = tuple[dict[str, NDArray], dict[str, int]]


def cached_tokens(
    directory: Path, corpus: Corpus, digest: str, tokenizer: Tokenizer, encode: Callable[[], Tokens]
) -> Tokens:
    """Return the tokens cached in `directory`, or encode the corpus and store them there.

    Raises TinypruneError if cached tokens are damaged, SaveError if they cannot be written.
    """
    # all that the tokens depend on
    cuts = [len(data) for data in corpus.splits.values()]
    about = json.dumps([FORMAT, digest, cuts, tokenizer.to_dict()], sort_keys=True).encode()
    readable = re.sub(r"[^\w.-]", "_", corpus.name)[:40]
    path = directory / f"{readable}-{hashlib.sha256(about).hexdigest()[:16]}.tokens.npz"
    if not path.exists():
        tokens, characters = encode()
        content = io.BytesIO()
        np.savez(content, characters=[characters[split] for split in SPLITS], **tokens)
        replace_file(path, content.getvalue(), "tokens")
        return tokens, characters
    try:
        # The archive has a checksum of each array.
        with path.open("rb") as file, np.load(file) as arrays:
            characters = dict(zip(SPLITS, arrays["characters"].tolist(), strict=True))
            return {split: arrays[split] for split in SPLITS}, characters
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise TinypruneError(
            f"the tokens in {path} are damaged ({error}); delete that file to make it again"
        ) from error

"""A text as a model reads it: found, checked, tokenised and split. `load_text` is the whole way.

corpora.open_corpus     from a name or a path to a `Corpus`, downloaded if need be
corpus.Corpus           the bytes of three splits, read in chunks
tokenizers              pieces to token ids
cached                  where the ids of a large corpus are stored
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import DataConfig
from tinyprune.data.cached import Tokens, cached_tokens
from tinyprune.data.corpora import absolute_corpus, open_corpus
from tinyprune.data.corpus import SPLITS, Corpus
from tinyprune.data.tokenizers import UNKNOWN, Tokenizer, WordTokenizer, build_tokenizer
from tinyprune.errors import UsageError, typed
from tinyprune.io.files import cache_directory

# The tokens of a larger corpus are cached on disk.
IN_MEMORY_BYTES = 16_000_000


@dataclass(frozen=True, eq=False)
class Text:
    """A tokenised corpus.

    `train`, `valid` and `test` are token ids, (n,) of an unsigned integer dtype.
    """

    tokenizer: Tokenizer  # which made the ids; its `decode` turns them back into text
    train: NDArray
    valid: NDArray
    test: NDArray
    # The number of characters in the raw text of each split, for bits per character (byte tokenizer: the bytes that
    # begin one in UTF-8); 0 if some of its words became `<unk>`: the tokens then no longer stand for the text.
    characters: dict[str, int]
    data: DataConfig  # where it lies, and how it is split
    digest: str  # sha256 of the whole corpus; a resumed run uses it to notice that the text has changed
    name: str  # of the corpus or of the file

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(getattr(self, split)):,}" for split in SPLITS)
        return f"Text({self.name}: {sizes} tokens, of {self.tokenizer.V} {self.tokenizer.kind}s)"


@typed
def load_text(
    config: DataConfig | str | Path,
    tokenizer: Tokenizer | None = None,
    *,
    digest: str | None = None,
    near: Path | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> Text:
    """Find, download if need be, split and tokenise the corpus of `config`.

    Args:
        config: corpus, tokenizer and splits, or only the corpus's name or path. The fractions are of bytes; a corpus
            with its own splits ignores them.
        tokenizer: from a checkpoint: encode with it instead of building the one that `config` asks for.
        digest: from a checkpoint: refuse a text with another sha256.
        near: a run's directory: if the file is not the one of `digest`, look for one of its name there, in the folders
            above, and in the current one.
        in_memory_bytes: the tokens of a larger corpus are cached in `io.files.cache_directory`.

    Raises:
        UsageError: if there is no such corpus, if it is empty or too short for its splits, if it is not UTF-8
            (character and word tokenizer), or if a given tokenizer lacks one of its characters.
        TinypruneError: if a download fails or cached tokens are damaged.
        SaveError: if a file cannot be written.
    """
    if not isinstance(config, DataConfig):
        config = DataConfig(corpus=absolute_corpus(str(config)))
    corpus, found = found_corpus(config, digest, near, in_memory_bytes)
    large = corpus.size > in_memory_bytes
    if tokenizer is None:
        tokenizer = build_tokenizer(corpus, config, "vocabulary of" if large else "")
    encode = functools.partial(encode_corpus, corpus, tokenizer, "tokenising" if large else "")
    if large:
        encode = functools.partial(cached_tokens, cache_directory(), corpus, found, tokenizer, encode)
    tokens, characters = encode()
    wanted = {"train": 1.0, "valid": config.valid_fraction, "test": config.test_fraction}
    for split, fraction in wanted.items():
        if fraction and len(tokens[split]) < 2:
            remedy = "lower both fractions" if split == "train" else f"raise data.{split}_fraction"
            raise UsageError(
                f"data.corpus: {corpus.name} is too short, {corpus.size:,} bytes in all: its {split} split "
                f"needs at least 2 tokens and has {len(tokens[split])}; give a longer text, or {remedy}"
            )
    return Text(tokenizer, **tokens, characters=characters, data=config, digest=found, name=corpus.name)


def found_corpus(config: DataConfig, digest: str | None, near: Path | None, in_memory_bytes: int) -> tuple[Corpus, str]:
    """Return the corpus and its sha256; the arguments are those of `load_text`."""
    path, folders = Path(config.corpus), []
    if near is not None and path.name != config.corpus:
        folders = [near.absolute(), *near.absolute().parents[:2], Path.cwd()]
    places = [folder / path.name for folder in folders]
    missing: UsageError | None = None
    for place in dict.fromkeys([config.corpus, *(str(place) for place in places if place.exists())]):
        try:
            corpus = open_corpus(dataclasses.replace(config, corpus=place))
        except UsageError as error:
            missing = missing or error
            continue
        found = corpus.digest("reading" if corpus.size > in_memory_bytes else "")
        if digest in (None, found):
            return corpus, found
    if digest is None and missing is not None:
        raise missing
    nor = ", nor near its run" if folders else ""
    raise UsageError(
        f"the text {path.name!r} with which the model was trained (sha256 {digest[:12]}…) is not at {path}{nor}; "
        "put that text back, say where it is with --corpus, or start a new run"
    )


def encode_corpus(corpus: Corpus, tokenizer: Tokenizer, doing: str = "") -> Tokens:
    """Return the ids of each split, (n,) of the smallest unsigned dtype for them, and `Text.characters`.

    `doing` labels a progress bar.
    """
    dtype = np.min_scalar_type(tokenizer.V - 1)
    ids = {split: [np.empty(0, dtype)] for split in SPLITS}
    characters, lossy = dict.fromkeys(SPLITS, 0), set()
    for split, chunk in corpus.read(tokenizer.kind, doing):
        encoded = tokenizer.encode(chunk)
        if isinstance(tokenizer, WordTokenizer):
            unknown = (encoded == tokenizer.unknown).sum()
            if unknown > chunk.count(UNKNOWN):
                lossy.add(split)
        ids[split].append(encoded.astype(dtype))
        if isinstance(chunk, str):
            characters[split] += len(chunk)
        else:  # the bytes that begin a character
            characters[split] += int((encoded & 0xC0 != 0x80).sum())
    characters |= dict.fromkeys(lossy, 0)
    return {split: np.concatenate(chunks) for split, chunks in ids.items()}, characters

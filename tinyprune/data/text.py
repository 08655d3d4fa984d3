"""A text as a model reads it: the one thing that the rest of the program needs of this package."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import NDArray

from tinyprune.config import DataConfig
from tinyprune.data.corpora import data_directory, open_corpus
from tinyprune.data.tokenise import build_tokenizer, progress_bar, tokenise
from tinyprune.data.tokenizers import Tokenizer
from tinyprune.errors import UsageError

# A corpus of more bytes than this is tokenised into memory-mapped files.
IN_MEMORY_BYTES = 16_000_000


@dataclass(frozen=True, eq=False)
class Text:
    """A tokenised corpus.

    Attributes:
        tokenizer: what made the ids, and makes text of them again.
        train, valid, test: token ids, (n,) of an unsigned integer dtype, possibly memory-mapped and read-only.
        characters: how many characters (byte tokenizer: bytes) the raw text of each split has, for bits per character;
            0 if some of its words became `<unk>`, so that the tokens do not stand for the text.
        digest: sha256 of the whole corpus, hexadecimal, by which a resumed run sees that the text has changed.
        name: of the corpus, or of the file.
    """

    tokenizer: Tokenizer
    train: NDArray
    valid: NDArray
    test: NDArray
    characters: dict[str, int]
    digest: str
    name: str


def load_text(
    config: DataConfig,
    tokenizer: Tokenizer | None = None,
    *,
    digest: str | None = None,
    in_memory_bytes: int = IN_MEMORY_BYTES,
) -> Text:
    """Find, download if need be, split and tokenise the corpus of `config`.

    Args:
        config: which text, cut how. Fractions are of bytes, and are not used by a corpus that brings its own splits.
        tokenizer: from a checkpoint: encode with it instead of building the one that `config` asks for.
        digest: from a checkpoint: refuse a text whose sha256 is another.
        in_memory_bytes: a larger corpus goes through in pieces, and its tokens are kept in the download directory.

    Raises:
        UsageError: if there is no such corpus, if it is empty or too short for its splits, if it is not UTF-8
            (character and word tokenizer), or if a character has no number in a given tokenizer.
        TinypruneError: if a download or a write fails.
    """
    corpus = open_corpus(config)
    if corpus.size > in_memory_bytes:
        keep_in = data_directory()
        with progress_bar(f"reading {corpus.name}", corpus.size) as progress:
            found = corpus.digest(progress)
    else:
        keep_in = None
        found = corpus.digest()
    if digest is not None and found != digest:
        raise UsageError(
            f"the text {corpus.name!r} is not the one that the model was trained on (its sha256 is another); put that "
            "text back, or start a new run"
        )
    if tokenizer is None:
        tokenizer = build_tokenizer(corpus, config, found, keep_in)
    tokens, characters = tokenise(corpus, tokenizer, found, keep_in)

    wanted = {"train": 1.0, "valid": config.valid_fraction, "test": config.test_fraction}
    for split, fraction in wanted.items():
        if fraction and len(tokens[split]) < 2:
            remedy = "lower both fractions" if split == "train" else f"raise data.{split}_fraction"
            raise UsageError(
                f"data.corpus: {corpus.name} is too short, {corpus.size:,} bytes in all: its {split} split needs "
                f"at least 2 tokens and has {len(tokens[split])}; give a longer text, or {remedy}"
            )
    return Text(tokenizer, **tokens, characters=characters, digest=found, name=corpus.name)

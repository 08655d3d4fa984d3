"""Minimal pairs: does a model find the right sentence likelier than the wrong one? (BLiMP: Warstadt et al. 2020)

A file has a pair on each line, as JSON with the fields `KEYS`. The log-probability of a sentence is that of all its
tokens, after the token that stands between documents where the model has one; without it the first token counts for
nothing. A pair is right if that of `sentence_good` is the larger. https://doi.org/10.1162/tacl_a_00321
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tinyprune.data.tokenizers import Tokenizer
from tinyprune.errors import UsageError
from tinyprune.io.progress import progress_bar
from tinyprune.io.tables import Record
from tinyprune.model.transformer import Transformer
from tinyprune.training.evaluation import last_tokens

SENTENCES = "sentence_good", "sentence_bad"
KEYS = ("UID", "field", "linguistics_term", *SENTENCES)
NORMAL = 1.959963984540054  # its 97.5 % quantile
B = 16  # sentences read at once


def read_pairs(path: str | Path) -> list[dict[str, str]]:
    """Return the pairs of a file. Raises UsageError, with the line's number, if one lacks a field or a sentence."""
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    pairs = []
    for number, line in enumerate(lines, 1):
        try:
            pair = json.loads(line)
        except ValueError as error:
            raise UsageError(f"line {number} of {path} is no JSON: {error}") from error
        for key in KEYS:
            value = pair.get(key) if isinstance(pair, dict) else None
            if not isinstance(value, str) or not value.strip():
                raise UsageError(f"line {number} of {path} must have {', '.join(KEYS)}, not empty; got {key} {value!r}")
        pairs.append(pair)
    if not pairs:
        raise UsageError(f"{path} has no pairs")
    return pairs


def sentence_log_p(model: Transformer, tokenizer: Tokenizer, sentences: Sequence[str], doing: str = "") -> NDArray:
    """Return the log-probability of each sentence, (n,) float64, in nats. `doing` labels a progress bar.

    Raises UsageError if a sentence has more tokens than the model reads at once.
    """
    beginning = getattr(tokenizer, "beginning", None)
    first = [] if beginning is None else [beginning]
    texts = [np.concatenate([first, tokenizer.encode(sentence)]).astype(np.int64) for sentence in sentences]
    for sentence, text in zip(sentences, texts, strict=True):
        if not 2 <= len(text) <= model.config.T + 1:
            allowed = f"2 to {model.config.T + 1} tokens, with the one between documents"
            raise UsageError(f"a sentence must have {allowed}; got {len(text)}: {sentence[:60]!r}")
    log_p = np.empty(len(texts))
    order = np.argsort([len(text) for text in texts], kind="stable")  # of one length, so that little is filled up
    with progress_bar(total=len(texts), desc=doing, unit="sentence") as bar:
        ordered = [texts[i] for i in order]
        scored = last_tokens(model, ordered, [len(text) - 1 for text in ordered], B)
        for i, (found, _) in zip(order, scored, strict=True):
            log_p[i] = found.sum()
            bar.update()
    return log_p


def accuracies(pairs: Sequence[dict[str, str]], right: NDArray) -> list[Record]:
    """Return how many of the pairs are right (n,): in all, by field, by phenomenon and by paradigm.

    The interval (low, high) of an accuracy is Wilson's, of 95 %, over pairs. (Wilson 1927)
    """
    levels = {"all": [""] * len(pairs)}
    for level, key in (("field", "field"), ("phenomenon", "linguistics_term"), ("paradigm", "UID")):
        levels[level] = [pair[key] for pair in pairs]
    return [
        {"level": level, "name": name} | accuracy(right[np.array(names) == name])
        for level, names in levels.items()
        for name in dict.fromkeys(names)
    ]


def accuracy(right: NDArray) -> Record:
    """Return the share of what is right (n,), with Wilson's interval."""
    n, p = len(right), float(right.mean())
    middle, z = p + NORMAL**2 / (2 * n), NORMAL * math.sqrt(p * (1 - p) / n + NORMAL**2 / (4 * n * n))
    scale = 1 + NORMAL**2 / n
    return {"accuracy": p, "low": (middle - z) / scale, "high": (middle + z) / scale, "pairs": n}


def blimp(model: Transformer, tokenizer: Tokenizer, pairs: Sequence[dict[str, str]]) -> NDArray:
    """Return whether each pair is right, (n,) bool."""
    sentences = [pair[key] for key in SENTENCES for pair in pairs]
    good, bad = np.split(sentence_log_p(model, tokenizer, sentences, "eval: blimp"), 2)
    return good > bad

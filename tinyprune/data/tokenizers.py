"""Tokenizers: from text to the token ids 0 … V − 1 that a model reads, and back.

The four kinds have the same members:

    kind                    "character", "byte", "word" or "bpe"
    V                       size of the vocabulary
    encode(text)            token ids, (n,) int64
    decode(ids)             the text (of words: with white space made regular)
    to_dict()               plain values for JSON, from which `tokenizer_from_dict` builds an equal tokenizer
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tinyprune.config import DataConfig
from tinyprune.data.corpus import Corpus
from tinyprune.errors import UsageError, missing_extra

UNKNOWN = "<unk>"
END_OF_LINE = "<eos>"


def check_ids(ids: ArrayLike, V: int) -> NDArray:
    """Return `ids` as an integer array. Raises UsageError unless all lie in 0 … V − 1: compiled code does not check."""
    ids = np.asarray(ids)
    if not ids.size:
        return ids.astype(np.int64)
    if not np.issubdtype(ids.dtype, np.integer):
        raise UsageError(f"token ids must be integers, got {ids.dtype}")
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= V:
        wrong = low if low < 0 else high
        raise UsageError(f"token ids must lie in 0 … {V - 1} for this vocabulary, got {wrong}")
    return ids


class ByteTokenizer:
    """One token for each byte, V = 256. It reads any file; text is encoded as UTF-8, and no byte is unknown."""

    kind = "byte"
    V = 256

    def encode(self, text: str | bytes) -> NDArray[np.int64]:
        """Return the bytes of `text`, (n,) int64."""
        data = text.encode("utf-8", errors="surrogatepass") if isinstance(text, str) else text
        return np.frombuffer(data, np.uint8).astype(np.int64)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of these bytes; what is not UTF-8, such as half a character, becomes U+FFFD."""
        return check_ids(ids, self.V).astype(np.uint8).tobytes().decode("utf-8", errors="replace")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"kind": self.kind}


class CharacterTokenizer:
    """One token for each character (Unicode code point), numbered in the order of the code points.

    The vocabulary is the set of characters of the *whole* corpus, so that every character of the held-out text has an
    id. That tells the model which characters exist, but not where they stand. Raises UsageError if there are no
    characters, or if they are not in rising order without repetition.
    """

    kind = "character"

    def __init__(self, characters: str) -> None:
        if not characters or list(characters) != sorted(set(characters)):
            allowed = "must rise and not repeat, and there must be some"
            raise UsageError(f"the characters of a character tokenizer {allowed}")
        self.characters = characters
        self.V = len(characters)
        self._codes = _code_points(characters)
        # One entry more than the highest code point, for all characters above it.
        self._ids = np.full(self._codes[-1] + 2, -1, np.int64)
        self._ids[self._codes] = np.arange(self.V)

    @classmethod
    def build(cls, chunks: Iterable[str]) -> CharacterTokenizer:
        """Return the tokenizer of all characters that occur in `chunks`."""
        seen = np.zeros(0x110000, bool)
        for chunk in chunks:
            seen[_code_points(chunk)] = True
        return cls("".join(map(chr, np.flatnonzero(seen))))

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return token ids, (n,) int64. Raises UsageError naming the characters that have no id."""
        ids = self._ids[np.minimum(_code_points(text), len(self._ids) - 1)]
        if ids.size and ids.min() < 0:
            outside = sorted(set(text) - set(self.characters))
            shown = ", ".join(map(repr, outside[:10])) + (" …" if len(outside) > 10 else "")
            raise UsageError(
                f"the vocabulary of {self.V} characters lacks {shown}; leave them out, or train with "
                'data.tokenizer = "byte", which knows all'
            )
        return ids

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of these ids. Raises UsageError for ids outside 0 … V − 1."""
        codes = self._codes[check_ids(ids, self.V)]
        return codes.tobytes().decode("utf-32-le", errors="surrogatepass")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"kind": self.kind, "characters": self.characters}


class WordTokenizer:
    """One token for each run of characters between white space, and `<eos>` for each end of line, as WikiText has it.

    Words are numbered by falling frequency, as an adaptive softmax needs them, and alphabetically where equally
    frequent. Two things are lost: an unknown word becomes `<unk>`, and white space within a line becomes one space.
    Raises UsageError if words repeat, or if `<unk>` or `<eos>` is not among them.
    """

    kind = "word"

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.V = len(self.words)
        self._ids = {word: i for i, word in enumerate(self.words)}
        self.unknown = self._ids.get(UNKNOWN)
        if len(self._ids) != self.V or UNKNOWN not in self._ids or END_OF_LINE not in self._ids:
            allowed = f"must not repeat, and include {UNKNOWN} and {END_OF_LINE}"
            raise UsageError(f"the words of a word tokenizer {allowed}")

    @classmethod
    def build(cls, chunks: Iterable[str], size: int = 0) -> WordTokenizer:
        """Return the tokenizer of the words in `chunks`, none of which may lie across two chunks.

        The vocabulary has the `size` most frequent words, `<unk>` and `<eos>` among them; 0: all. The frequency of
        `<unk>` includes all other words; the frequency of `<eos>` is the number of lines. Raises UsageError if `size`
        leaves no room for a word.
        """
        if size in (1, 2):
            allowed = "0 (all words) or at least 3 (with <unk> and <eos>)"
            raise UsageError(f"data.vocabulary must be {allowed}, got {size}")
        counts = Counter({UNKNOWN: 0, END_OF_LINE: 0})
        for chunk in chunks:
            counts.update(_words(chunk))

        def by_frequency(word: str) -> tuple[int, str]:
            return -counts[word], word

        words = sorted(counts, key=by_frequency)
        if 0 < size < len(words):
            ordinary = [word for word in words if word not in (UNKNOWN, END_OF_LINE)]
            counts[UNKNOWN] += sum(counts[word] for word in ordinary[size - 2 :])
            words = sorted([UNKNOWN, END_OF_LINE, *ordinary[: size - 2]], key=by_frequency)
        return cls(words)

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return token ids, (n,) int64. Only an end of line gives `<eos>`: a prompt without one continues its line."""
        return np.array([self._ids.get(word, self.unknown) for word in _words(text)], np.int64)

    def decode(self, ids: ArrayLike) -> str:
        """Return the words of these ids, separated by spaces, with a new line for each `<eos>`.

        Raises UsageError for ids outside 0 … V − 1.
        """
        words = [self.words[i] for i in check_ids(ids, self.V)]
        text = "".join("\n" if word == END_OF_LINE else word + " " for word in words)
        return text.replace(" \n", "\n").removesuffix(" ")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"kind": self.kind, "words": self.words}


class BytePairTokenizer:
    """The tokenizer of a pretrained model: pieces of words, merged from bytes, which lose nothing. (Sennrich 2016)

    A text is cut into pieces by a regular expression, and in each piece the pair of neighbours that was merged earliest
    in the tokenizer's training is merged, again and again. The package `tokenizers` does this, loaded when needed.

    Args:
        description: the text of a tokenizer.json.
        V: entries of the model's vocabulary, which may have more than there are tokens; 0: as many as tokens.
        chat_template: how a chat becomes one text, in Jinja; an export passes it on.

    Raises UsageError if it describes another kind of tokenizer, or more than V tokens.
    """

    kind = "bpe"

    def __init__(self, description: str, V: int = 0, chat_template: str = "") -> None:
        self.description, self.chat_template = description, chat_template
        try:
            values = json.loads(description)
            model, before = values["model"], values["pre_tokenizer"]
            last = before["pretokenizers"][-1] if before["type"] == "Sequence" else before
            # A space put before a text would come once for each chunk of a corpus, and would be in no decoded text.
            lossless = last["type"] == "ByteLevel" and not last["add_prefix_space"]
            # With Qwen2's normalizer é and e\u0301 become the same.
            lossless = lossless and values.get("normalizer") in (None, {"type": "NFC"})
            known = model.get("type", "BPE") == "BPE" and lossless
            added = [token["id"] for token in values.get("added_tokens", ())]
            tokens = 1 + max([*model["vocab"].values(), *added])
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise UsageError(f"this is no description of a byte-pair tokenizer: {error!r}") from error
        if not known:
            theirs = "GPT-2's, SmolLM2's and Llama 3's"
            raise UsageError(f"this tokenizer is not a byte-level byte-pair one, as {theirs} are")
        if V and tokens > V:
            raise UsageError(f"the tokenizer has {tokens} tokens, more than the V = {V} entries of its model")
        self.V = V or tokens

    @functools.cached_property
    def _tokenizer(self) -> Any:
        try:
            from tokenizers import Tokenizer as Pieces
        except ImportError as error:
            raise missing_extra("the tokenizer of a pretrained model", "pretrained", __name__) from error
        try:
            pieces = Pieces.from_str(self.description)
        except Exception as error:  # the package raises no other
            raise UsageError(f"the package tokenizers cannot use this tokenizer: {error}") from error
        # A description may ask for texts of one length, which are cut or filled up.
        pieces.no_truncation()
        pieces.no_padding()
        return pieces

    @functools.cached_property
    def beginning(self) -> int | None:
        """The first special token, which stands between documents in a model's training; None if there is none."""
        special = json.loads(self.description).get("added_tokens")
        return int(special[0]["id"]) if special else None

    def encode(self, text: str) -> NDArray[np.int64]:
        """Return token ids, (n,) int64, with no special token but the ones in the text."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            wrong = text[error.start]
            raise UsageError(f"the text holds {wrong!r}, which is no character; leave it out") from error
        return np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of these ids; half a character becomes U+FFFD. Raises UsageError outside 0 … V − 1."""
        return self._tokenizer.decode(check_ids(ids, self.V).tolist(), skip_special_tokens=False)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        about = {"chat_template": self.chat_template} if self.chat_template else {}
        return {"kind": self.kind, "V": self.V, "description": self.description} | about


Tokenizer = ByteTokenizer | CharacterTokenizer | WordTokenizer | BytePairTokenizer


def tokenizer_from_dict(values: dict[str, Any]) -> Tokenizer:
    """Return the tokenizer that `to_dict` wrote. Raises UsageError if `values` do not describe one."""
    match values:
        case {"kind": "byte"}:
            return ByteTokenizer()
        case {"kind": "character", "characters": str(characters)}:
            return CharacterTokenizer(characters)
        case {"kind": "word", "words": [*words]} if all(isinstance(word, str) for word in words):
            return WordTokenizer(words)
        case {"kind": "bpe", "V": int(V), "description": str(description)}:
            return BytePairTokenizer(description, V, str(values.get("chat_template", "")))
    raise UsageError(f"not the description of a tokenizer: {json.dumps(values, default=str)[:80]}")


def build_tokenizer(corpus: Corpus, config: DataConfig, doing: str = "") -> Tokenizer:
    """Build the tokenizer that `config` asks for from the corpus; `doing` labels a progress bar.

    Raises UsageError for a byte-pair tokenizer, which only comes with a pretrained model.
    """
    match config.tokenizer:
        case "bpe":
            how = "read one with: tinyprune import PATH"
            raise UsageError(f'data.tokenizer = "bpe" is that of a pretrained model; {how}')
        case "byte":
            return ByteTokenizer()
        case "word":
            chunks = (words for _, words in corpus.read("word", doing, ["train"]))
            return WordTokenizer.build(chunks, config.vocabulary)
    return CharacterTokenizer.build(text for _, text in corpus.read("character", doing))


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), "<u4")


def _words(text: str) -> list[str]:
    return text.replace("\n", f" {END_OF_LINE} ").split()

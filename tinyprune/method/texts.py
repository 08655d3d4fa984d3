"""The texts that the method reads: the run's own, what the whole model writes, random tokens that repeat, and files."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import RunConfig, TrainConfig
from tinyprune.data import BytePairTokenizer, Segments, Text, load_text
from tinyprune.data.corpora import absolute_corpus
from tinyprune.errors import SaveError, UsageError
from tinyprune.io.files import cache_directory, replace_file
from tinyprune.method.repair import FIFTH
from tinyprune.model.generation import write_texts
from tinyprune.model.transformer import Transformer

STREAMS = 40  # texts that a model writes side by side, at most
STRETCH, NEAR = 256, 8  # tokens of `repeats` that have one distance, and the least distance
MADE = "self", "repeats"  # texts that are no files and not the run's
REVISION = 1  # with another number what models have written is written again
LONGEST = 2**20  # tokens of each text that gates and healing read, if there are several


@dataclass
class Texts:
    """Several texts, of which gates, criteria, repair and healing read equally much.

    Attributes:
        text: the run's own, called "run".
        names: which ones are read: "run", "self" for what the whole model writes, "repeats", or as `DataConfig.corpus`.
        own: how many tokens each text has that is made: what the whole model writes, and `repeats`.
        seed: of the generators by which these are made.
        read: B, and after how many steps of B segments the last stage has stopped; None before the first.
        written: what the whole model has written; it writes once.
    """

    text: Text
    names: Sequence[str] = ("run",)
    own: int = 0
    seed: Sequence[int] = (0, 3)
    read: tuple[int, int] | None = None
    written: NDArray | None = None
    files: dict[str, NDArray] = field(default_factory=dict)  # tokens of the files that were read

    @classmethod
    def of(cls, config: RunConfig, text: Text) -> Self:
        """Return the texts that a run's file names; for a pretrained model that is repaired also its own."""
        usual = "run,self" if text.tokenizer.kind == "bpe" and config.repair.tokens else "run"
        names = (config.texts or usual).split(",")
        return cls(text, names, config.repair.tokens // len(names), (config.seed, 3))

    @property
    def alone(self) -> bool:
        """Whether the run's is the only text that people wrote."""
        return not set(self.names) - {"run", *MADE}

    def __str__(self) -> str:
        return ",".join(self.names)

    def tokens(self, whole: Transformer | None = None, split: str = "train") -> list[NDArray]:
        """Return the tokens of each text, (n,): of the run's own those of a split, of files those to train on.

        Without `whole` zeros stand for what it would write.
        """
        return [self._tokens_of(name, whole, split) for name in self.names]

    def _tokens_of(self, name: str, whole: Transformer | None, split: str) -> NDArray:
        if name == "run":
            return getattr(self.text, split)
        if name == "self":
            if self.written is None and whole is not None:
                self.written = self.kept(whole)
            return np.zeros(self.own, int) if self.written is None else self.written
        if name == "repeats":
            return repeats(self.text.tokenizer.V, self.own, np.random.default_rng([*self.seed, 1]))
        if name not in self.files:
            data = dataclasses.replace(self.text.data, corpus=absolute_corpus(name))
            self.files[name] = load_text(data, self.text.tokenizer).train
        return self.files[name]

    def kept(self, whole: Transformer) -> NDArray:
        """Return what the whole model writes, from the cache folder if a stage before has let it write."""
        about = [REVISION, self.own, *self.seed, whole.config.to_dict(), int(self.text.train[0])]
        digest = hashlib.sha256(repr(about).encode())
        for x in whole.host_params().values():
            digest.update(np.ascontiguousarray(x).data)
        path = cache_directory() / "written" / f"{digest.hexdigest()[:32]}.npy"
        with contextlib.suppress(OSError, ValueError, EOFError):  # it may be damaged
            return np.load(path)
        written, file = self.write(whole), io.BytesIO()
        np.save(file, written)
        with contextlib.suppress(SaveError):  # it can be written again
            replace_file(path, file.getvalue())
        return written

    def write(self, whole: Transformer) -> NDArray:
        """Return `own` tokens of texts that the whole model writes, each after the token between documents."""
        n, T, tokenizer = self.own, whole.config.T, self.text.tokenizer
        beginning = int(self.text.train[0])
        if isinstance(tokenizer, BytePairTokenizer) and tokenizer.beginning is not None:
            beginning = tokenizer.beginning
        first = np.full(min(STREAMS, -(-n // T)), beginning)
        rng = np.random.default_rng(self.seed)
        written: list[NDArray] = []
        while sum(map(len, written)) < n:
            written.append(write_texts(whole, first, T, rng).ravel())
        return np.concatenate(written)[:n]

    def to_score(self, tokens: int, whole: Transformer) -> NDArray:
        """Return what a criterion reads: as much of each text, together `tokens` (0: all)."""
        share = -(-tokens // len(self.names)) or None
        read = [own[:share] for own in self.tokens(whole, "valid")]
        return np.concatenate([own[: min(map(len, read))] for own in read])

    def to_repair(self, tokens: int, T: int, whole: Transformer | None = None) -> NDArray:
        """Return what a repair reads, `tokens` at most, in segments of T.

        Raises UsageError if a text is not there, or all together are too short.
        """
        read = [own[: tokens // len(self.names)] for own in self.tokens(whole)]
        n = sum(map(len, read))
        if n < FIFTH * T:
            raise UsageError(
                f"repair.tokens must be at least {FIFTH * T}, {FIFTH} segments of {T}, and so long the texts; "
                f"got {tokens}, of which {self} have {n}"
            )
        return np.concatenate(read)

    def segments(self, stage: str, config: TrainConfig, T: int, whole: Transformer | None = None) -> Segments:
        """Return what a stage with these settings reads after those before it, in segments of T tokens.

        Short texts are read again and again; the rows of a batch are divided among the texts. Raises UsageError if
        there are fewer rows than texts, or a text is too short.
        """
        B = config.B
        before, steps = self.read or (B, 0)
        # another B cuts the text elsewhere, so that the place is not quite the same
        already = steps * before // B
        if list(self.names) == ["run"]:
            return Segments(self.text.train, B, T, already)
        if len(self.names) > B:
            needed = f"at least {len(self.names)}, to read {self}"
            raise UsageError(f"B of stage {stage} must be {needed}; got {B}")
        read = [own[:LONGEST] for own in self.tokens(whole)]
        longest = max(map(len, read))
        return Segments(np.concatenate([np.resize(own, longest) for own in read]), B, T, already)

    def read_on(self, config: TrainConfig) -> None:
        """Note that a stage with these settings has read its steps."""
        before, steps = self.read or (config.B, 0)
        self.read = config.B, steps * before // config.B + config.steps


def repeats(V: int, n: int, rng: np.random.Generator) -> NDArray:
    """Return n random tokens (n,) that come again: in each stretch of `STRETCH` after the same number of others.

    That number is drawn for each stretch, from `NEAR` to half of it. What a model predicts of them, it copies: the work
    of induction heads, which pruning takes away first, and which text asks for too seldom. (Olsson et al. 2022)
    """
    stretches = []
    for _ in range(-(-n // STRETCH)):
        pattern = rng.integers(V, size=rng.integers(NEAR, STRETCH // 2 + 1))
        stretches.append(np.resize(pattern, STRETCH))
    return np.concatenate([*stretches, np.zeros(0, int)])[:n]

"""Segments: how a long text is cut into batches so that a model's memory is always the text just before.

The text is cut into B streams, one for each row of the batch, and every stream into segments of T tokens:

    row 0   | segment 0 | segment 1 | segment 2 | …
    row 1   | segment 0 | segment 1 | segment 2 | …

Step s takes segment s of every row, so what a row reads in step s + 1 follows what it read in step s, and the memory
of step s is the text just before it. (Dai et al. 2019, §3.2)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import UsageError


@dataclass(frozen=True, eq=False)
class Segments:
    """The batches of a text. A step's batch depends only on its number, so a resumed run continues exactly.

    Training in stages reads on where the stage before has stopped: `read` counts the steps until then, over all epochs.

    Every row's stream has (n − 1) // B of the text's n tokens. The remainder of a stream after its last whole segment,
    fewer than T tokens, is not used. Raises UsageError if the text is too short for one segment in each row.
    """

    tokens: NDArray  # the text, (n,) of any integer dtype
    B: int  # rows in a batch
    T: int  # tokens in a segment
    read: int = 0  # steps, with the same B and T, of the stages before

    def __post_init__(self) -> None:
        needed = self.B * self.T + 1
        if len(self.tokens) < needed:
            raise UsageError(
                f"the text has {len(self.tokens):,} tokens, but one step needs B · T + 1 = "
                f"{self.B} · {self.T} + 1 = {needed:,}; lower the stage's B or model.T, or give a longer text"
            )

    @property
    def per_epoch(self) -> int:
        """The number of steps until every row has reached the end of its stream."""
        return self._stream // self.T

    @property
    def _stream(self) -> int:
        """The number of tokens in one row's stream. The last token of the text is only ever a target."""
        return (len(self.tokens) - 1) // self.B

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
        """Return the batch of a step; steps are counted from 0 over all epochs.

        Returns:
            ids: (B, T) int64.
            targets: (B, T) int64; targets[b, t] is the token that follows ids[b, t] in the text.
            fresh: True for the first step, also of an epoch: the rows start again, so memory must be empty.
        """
        segment = (step + self.read) % self.per_epoch
        windows = np.empty((self.B, self.T + 1), np.int64)
        for row in range(self.B):
            start = row * self._stream + segment * self.T
            windows[row] = self.tokens[start : start + self.T + 1]
        return windows[:, :-1].copy(), windows[:, 1:].copy(), step == 0 or segment == 0


def evaluation_segments(tokens: NDArray, T: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield one stream over the whole text, in which every token but the first is a target exactly once.

    Yields:
        (ids, targets), each (1, t) int64 with t ≤ T; memory is empty before the first and then kept.

    Raises:
        UsageError: if there are fewer than 2 tokens and so nothing to predict.
    """
    if len(tokens) < 2:
        raise UsageError(f"evaluation needs a text of at least 2 tokens, got {len(tokens)}")
    for start in range(0, len(tokens) - 1, T):
        window = np.array(tokens[start : start + T + 1], np.int64)[None]
        yield window[:, :-1].copy(), window[:, 1:].copy()

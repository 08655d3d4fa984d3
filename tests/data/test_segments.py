"""Segments: rows are contiguous, targets follow, evaluation covers everything once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyprune.data import Segments, evaluation_segments
from tinyprune.errors import UsageError


def numbered(n):
    """A text in which every token is its own position."""
    return np.arange(n, dtype=np.uint16)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 60))
def test_rows_are_contiguous_and_an_epoch_uses_all_but_a_remainder(B, T, extra):
    n = B * T + extra
    segments = Segments(numbered(n), B, T)
    batches = [segments.batch(step) for step in range(segments.per_epoch)]
    for ids, targets, _ in batches:
        assert ids.shape == targets.shape == (B, T)
        assert ids.dtype == targets.dtype == np.int64
        np.testing.assert_array_equal(targets, ids + 1)
    assert [fresh for *_, fresh in batches] == [True] + [False] * (len(batches) - 1)
    rows = np.concatenate([targets for _, targets, _ in batches], axis=1)
    np.testing.assert_array_equal(np.diff(rows, axis=1), 1)
    assert len(np.unique(rows)) == rows.size and rows.max() < n
    assert n - 1 - rows.size < B * T


def test_a_later_stage_reads_on_however_often_the_text_was_read():
    text = numbered(2 * 3 * 4 + 1)
    whole = Segments(text, B=2, T=3)
    in_turn = [0, 1, 2, 3, 0], [3, 0, 1, 2, 3], [0, 1, 2, 3, 0], [1, 2, 3, 0, 1]
    for read, expected in zip((0, 3, 4, 9), in_turn, strict=True):
        batches = [Segments(text, 2, 3, read).batch(step) for step in range(5)]
        for (ids, *_), segment in zip(batches, expected, strict=True):
            np.testing.assert_array_equal(ids, whole.batch(segment)[0])
        begins = [step == 0 or segment == 0 for step, segment in enumerate(expected)]
        assert [fresh for *_, fresh in batches] == begins


def test_too_short_a_text_is_refused():
    assert Segments(numbered(13), B=3, T=4).per_epoch == 1
    with pytest.raises(UsageError, match=r"12 tokens, .* 3 · 4 \+ 1 = 13; lower the stage's B or model\.T"):
        Segments(numbered(12), B=3, T=4)


@given(st.integers(2, 40), st.integers(1, 50))
def test_evaluation_predicts_every_token_but_the_first_once(n, T):
    pairs = list(evaluation_segments(numbered(n), T))
    ids, targets = (np.concatenate([pair[i][0] for pair in pairs]) for i in (0, 1))
    assert ids.dtype == targets.dtype == np.int64
    np.testing.assert_array_equal(ids, np.arange(n - 1))
    np.testing.assert_array_equal(targets, np.arange(1, n))
    assert all(ids.shape == targets.shape == (1, T) for ids, targets in pairs[:-1])
    assert 1 <= pairs[-1][0].shape[1] <= T

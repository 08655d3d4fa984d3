"""Embedding against the textbook: words that stand once, often, never; word dropout."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device, to_host
from tinyprune.kernels.cuda.embedding import CHUNK, chunks_of, sum_rows, take_rows

from .compare import assert_close, assert_equal_to_textbook, normal

cuda = get_backend("cuda")


def words(shape, V, seed=0):
    """Word 1 in about half of the places."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < 0.5, 1, rng.integers(0, V, shape))


@pytest.mark.parametrize(
    ("shape", "V", "D"), [((2, 75), 97, 3), ((3,), 2, 130), ((1, 1), 2, 1), ((0,), 3, 4), ((2, 0), 1, 3)]
)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_equals_textbook(place, shape, V, D, dropout):
    ids = words(shape, V)
    E, dout = normal((V, D), (*shape, D))
    assert_equal_to_textbook("embedding", (ids, E), dout, dropout=dropout, seed=7)
    assert_equal_to_textbook("embedding", (ids, E), dout, dropout=dropout, rng=None)


def test_each_sum_is_that_of_its_chunks(place):
    """Of one word in all places: bit by bit, so that nothing depends on which block comes first."""
    (rows,) = normal((2 * CHUNK + 5, 2))
    ids = np.full(len(rows), 3)
    chunks = [np.add.accumulate(rows[at : at + CHUNK])[-1] for at in range(0, len(rows), CHUNK)]
    got = to_host(sum_rows(to_device(rows), ids, 5))
    assert np.array_equal(got[3], np.add.accumulate(chunks)[-1])
    assert not got[[0, 1, 2, 4]].any()


def test_no_chunk_is_longer_than_its_limit_or_of_two_words():
    ids = words((500,), 9)
    places, present, chunk_starts, word_starts = chunks_of(ids)
    assert np.array_equal(np.sort(places), np.arange(500)) and chunk_starts[-1] == 500
    lengths = np.diff(chunk_starts)
    assert lengths.min() > 0 and lengths.max() == CHUNK
    for word, first, end in zip(present, word_starts, word_starts[1:], strict=False):
        assert np.array_equal(places[chunk_starts[first] : chunk_starts[end]], np.flatnonzero(ids == word))


def test_rows_for_the_adaptive_embedding(place):
    ids = words((70,), 6)
    table, rows = normal((9, 6), (70, 7))
    assert np.array_equal(to_host(take_rows(to_device(table).T, ids)), table.T[ids])
    got = sum_rows(to_device(rows)[:, 2:], ids, 8)
    assert_close(got, ops.embedding.sum_rows(rows[:, 2:].astype(float), ids, 8))


def test_ids_may_be_filled_anew_after_forward(place):
    ids = words((5,), 3)
    E, dout = map(to_device, normal((3, 2), (5, 2)))
    _, cache = cuda.embedding_forward(ids, E)
    expected = to_host(cuda.embedding_backward(dout, cache))
    ids[:] = 0
    assert np.array_equal(to_host(cuda.embedding_backward(dout, cache)), expected)


def test_bad_arguments(place):
    E, rows = map(to_device, normal((4, 3), (2, 3)))
    with pytest.raises(ValueError, match=r"ids must lie in 0 … 3, got -1 … 2"):
        cuda.embedding_forward(np.array([2, -1]), E)
    with pytest.raises(ValueError, match="ids must be integers, got dtype float64"):
        cuda.embedding_forward(np.ones(2), E)
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1, got 1"):
        cuda.embedding_forward(np.array([2]), E, dropout=1, rng=None)
    with pytest.raises(ValueError, match=r"E must be \(V, D\), got \(3,\)"):
        cuda.embedding_forward(np.array([2]), E[0])
    out, cache = cuda.embedding_forward(np.array([2, 0]), E)
    with pytest.raises(ValueError, match=r"dout must have shape \(2, 3\) like the output, got \(4, 3\)"):
        cuda.embedding_backward(E, cache)
    with pytest.raises(ValueError, match=r"rows must be \(R, D\) and ids \(R,\), one for each row, got"):
        sum_rows(rows, np.array([1]), 4)
    with pytest.raises(ValueError, match=r"ids must lie in 0 … 3, got 4 … 4"):
        take_rows(E, np.array([4]))

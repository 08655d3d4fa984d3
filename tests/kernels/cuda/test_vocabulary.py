"""Both ends of a model: words that stand once, often, never; logits written over, large, infinite."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.cuda.cross_entropy import FOUR, THREADS
from tinyprune.kernels.cuda.device.array import to_device, to_host
from tinyprune.kernels.cuda.embedding import CHUNK, chunks_of, sum_rows

from .compare import assert_close, assert_equal_to_textbook, cuda, normal


def words(shape, V):
    """Word 1 in about half of the places."""
    rng = np.random.default_rng(0)
    return np.where(rng.random(shape) < 0.5, 1, rng.integers(0, V, shape))


def test_each_sum_is_that_of_its_chunks(place):
    """Of one word in all places: bit by bit, so that nothing depends on which block comes first."""
    (rows,) = normal((2 * CHUNK + 5, 2))
    chunks = [np.add.accumulate(rows[at : at + CHUNK])[-1] for at in range(0, len(rows), CHUNK)]
    got = to_host(sum_rows(to_device(rows), np.full(len(rows), 3), 5))
    assert np.array_equal(got[3], np.add.accumulate(chunks)[-1]) and not got[[0, 1, 2, 4]].any()


def test_no_chunk_is_longer_than_its_limit_or_of_two_words():
    ids = words((500,), 9)
    places, present, chunk_starts, word_starts = chunks_of(ids)
    lengths = np.diff(chunk_starts)
    assert lengths.min() > 0 and lengths.max() == CHUNK and chunk_starts[-1] == 500
    for word, first, end in zip(present, word_starts, word_starts[1:], strict=False):
        assert np.array_equal(places[chunk_starts[first] : chunk_starts[end]], np.flatnonzero(ids == word))


def test_each_word_as_target(place):
    """Whichever thread wrote it, with three others or alone."""
    targets = np.arange(0, FOUR + THREADS + 5, 97)
    (logits,) = normal((targets.size, FOUR + THREADS + 5))
    assert_equal_to_textbook("cross_entropy", (logits, targets), 1.0)


def test_logits_that_rise_and_fall_or_are_large_or_impossible(place, both_orders):
    """Rising, every sum is scaled again and again; no overflow; −inf is probability 0."""
    rising, inf = np.linspace(-80, 80, 2 * FOUR, dtype=np.float32), np.inf
    assert_equal_to_textbook("cross_entropy", (np.array([rising, rising[::-1]]), np.array([5, 900])), 1.0)
    logits = np.array([[1e4, 1e4, -1e4, 0], [-inf, -3, -inf, 1], [-1e30, -inf, -1e30, -1e30]], np.float32)
    assert_equal_to_textbook("cross_entropy", (logits, np.array([1, 1, 3])), 1.0)


def test_a_gradient_written_over_logits(place, both_orders):
    """Only if they are contiguous; and backward can be called as often as one likes."""
    logits, targets = 5 * normal((7, 40))[0], words((7,), 40)
    loss, cache = ops.cross_entropy_forward(logits.astype(float), targets)
    for given in (to_device(logits), to_device(np.ascontiguousarray(logits.T)).T):
        got_loss, got_cache = cuda.cross_entropy_forward(given, targets, overwrite=True)
        assert_close(got_loss, loss)
        for dloss in (1.0, 2.0, 1.0):
            gradient = cuda.cross_entropy_backward(dloss, got_cache)
            assert_close(gradient, ops.cross_entropy_backward(dloss, cache))
        assert (gradient.storage is given.storage) == given.contiguous
        assert np.array_equal(to_host(given), logits) != given.contiguous


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, FOUR + 3])
def test_what_is_not_finite_makes_its_row_and_the_loss_nan(place, bad, where):
    logits, targets = 5 * normal((2, FOUR + 9))[0], words((2,), FOUR + 9)
    logits[1, where] = bad
    with np.errstate(invalid="ignore"):
        loss, (dlogits,) = cuda.cross_entropy_forward(to_device(logits), targets)
    assert np.isnan(float(loss))
    assert np.isnan(to_host(dlogits)[1]).all() and np.isfinite(to_host(dlogits)[0]).all()

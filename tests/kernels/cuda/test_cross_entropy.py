"""Softmax cross-entropy against the textbook: rows of one logit and of thousands, written over, infinite."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import empty, to_device, to_host
from tinyprune.kernels.cuda.cross_entropy import FOUR, THREADS, mean_of

from .compare import assert_close, assert_equal_to_textbook, normal

cuda = get_backend("cuda")


SHAPES = [(2, 3, 50), (1, 1), (2, THREADS), (2, 2 * FOUR + THREADS + 1), (3, FOUR - 1), (1, FOUR)]


def draw(shape):
    """Logits with tops at different places, and targets."""
    (logits,) = normal(shape)
    return 5 * logits, np.random.default_rng(3).integers(0, shape[-1], shape[:-1])


@pytest.mark.parametrize("dout", [1.0, -0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_textbook(place, shape, dout):
    assert_equal_to_textbook("cross_entropy", draw(shape), dout)


def test_the_mean_over_more_rows_than_a_block_has_threads(place, both_orders):
    (losses,), mean = normal((2 * THREADS + 1,)), empty(())
    mean_of(1, to_device(losses), losses.size, mean)
    assert_close(mean, losses.mean(dtype=float))


@pytest.mark.parametrize("shape", SHAPES)
def test_log_softmax(place, shape):
    logits, _ = draw(shape)
    assert_close(cuda.log_softmax(to_device(logits)), ops.log_softmax(logits.astype(float)))


def test_each_word_as_target(place):
    """Whichever thread wrote it, with three others or alone."""
    targets = np.arange(0, FOUR + THREADS + 5, 97)
    (logits,) = normal((targets.size, FOUR + THREADS + 5))
    assert_equal_to_textbook("cross_entropy", (logits, targets), 1.0)


def test_the_order_of_the_logits(place, both_orders):
    """Rising, so that every sum is scaled again and again, and falling."""
    rising = np.linspace(-80, 80, 2 * FOUR, dtype=np.float32)
    logits = np.array([rising, rising[::-1]])
    assert_equal_to_textbook("cross_entropy", (logits, np.array([5, 900])), 1.0)


@pytest.mark.parametrize("overwrite", [False, True])
def test_overwrite(place, both_orders, overwrite):
    logits, targets = draw((7, 40))
    for given in (to_device(logits), to_device(np.ascontiguousarray(logits.T)).T):
        loss, cache = cuda.cross_entropy_forward(given, targets, overwrite=overwrite)
        expected, expected_cache = ops.cross_entropy_forward(logits.astype(float), targets)
        assert loss.shape == ()
        assert_close(loss, expected)
        gradient = cuda.cross_entropy_backward(1.0, cache)
        assert_close(gradient, ops.cross_entropy_backward(1.0, expected_cache))
        shared = overwrite and given.contiguous
        assert (gradient.lease is given.lease) == shared
        assert np.array_equal(to_host(given), logits) == (not shared)
        # as often as one likes
        assert_close(cuda.cross_entropy_backward(2.0, cache), ops.cross_entropy_backward(2.0, expected_cache))
        assert_close(cuda.cross_entropy_backward(1.0, cache), ops.cross_entropy_backward(1.0, expected_cache))


def test_a_gradient_of_the_loss_that_is_in_the_gpus_memory(place):
    logits, targets = draw((3, 5))
    _, cache = cuda.cross_entropy_forward(to_device(logits), targets)
    got = cuda.cross_entropy_backward(to_device(np.array(0.5, np.float32)), cache)
    assert np.array_equal(to_host(got), to_host(cuda.cross_entropy_backward(0.5, cache)))


def test_large_and_impossible_logits(place):
    """No overflow; −inf is probability 0."""
    logits = np.array([[1e4, 1e4, -1e4, 0], [-np.inf, -3, -np.inf, 1], [-1e30, -np.inf, -1e30, -1e30]], np.float32)
    assert_equal_to_textbook("cross_entropy", (logits, np.array([1, 1, 3])), 1.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", [0, 5, FOUR + 3])
def test_what_is_not_finite_makes_its_row_and_the_loss_nan(place, bad, where):
    logits, targets = draw((2, FOUR + 9))
    logits[1, where] = bad
    with np.errstate(invalid="ignore"):
        loss, (dlogits,) = cuda.cross_entropy_forward(to_device(logits), targets)
    assert np.isnan(float(loss))
    assert np.isnan(to_host(dlogits)[1]).all() and np.isfinite(to_host(dlogits)[0]).all()


def test_bad_arguments(place):
    logits = to_device(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"targets must have shape \(2,\), one or more, got \(3,\)"):
        cuda.cross_entropy_forward(logits, np.array([0, 1, 2]))
    with pytest.raises(ValueError, match=r"targets must have shape \(0,\), one or more, got \(0,\)"):
        cuda.cross_entropy_forward(logits[:0], np.array([], int))
    with pytest.raises(ValueError, match=r"targets must lie in 0 … 2, got 0 … 3"):
        cuda.cross_entropy_forward(logits, np.array([0, 3]))
    with pytest.raises(ValueError, match="logits must be in the GPU's memory, got ndarray"):
        cuda.cross_entropy_forward(np.zeros((2, 3)), np.array([0, 2]))
    with pytest.raises(ValueError, match=r"logits must have at least one entry in a row, got shape \(2, 0\)"):
        cuda.log_softmax(logits[:, :0])

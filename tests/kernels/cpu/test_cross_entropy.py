"""Cross-entropy compiled: loss and gradient in one, against the textbook; huge logits, NaN and inf, bad targets."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyprune import ops
from tinyprune.kernels.cpu.cross_entropy import cross_entropy_backward, cross_entropy_forward, log_softmax

from .compare import (
    LARGE,
    assert_close,
    assert_same_bits,
    assert_threads_do_not_matter,
    draw,
    each_dtype,
    few,
    in_float64,
    leading,
    seeds,
    widths,
)

some = st.sampled_from([(), (1,), (5,), (2, 3), (1, 31), (97,)])


def there_and_back(forward, backward, logits, targets, dout=1.0):
    loss, cache = forward(logits, targets)
    return loss, backward(dout, cache)


def kernel(*arguments):
    return there_and_back(cross_entropy_forward, cross_entropy_backward, *arguments)


def textbook(*arguments):
    return there_and_back(ops.cross_entropy_forward, ops.cross_entropy_backward, *map(in_float64, arguments))


def inputs(dtype, R=40, V=37):
    (logits,) = draw(1, dtype, (R, V))
    return logits, np.random.default_rng(1).integers(0, V, R)


@each_dtype
@few
@given(first=some, V=widths, size=st.sampled_from([0.01, 3, 30]), dout=st.sampled_from([1.0, -0.3]), seed=seeds)
@example(first=LARGE, V=37, size=3, dout=1.0, seed=0)
def test_like_the_textbook(dtype, first, V, size, dout, seed):
    logits = draw(seed, dtype, (*first, V))[0] * dtype(size)
    targets = np.asarray(np.random.default_rng(seed).integers(0, V, first))
    (loss, dlogits), (expected, dexpected) = kernel(logits, targets, dout), textbook(logits, targets, dout)
    assert_close(loss, expected, dtype)
    # gradients of a mean are as small as there are rows many
    rows = dtype(targets.size)
    assert_close(rows * dlogits, targets.size * dexpected, dtype)


@each_dtype
@pytest.mark.parametrize("order", ["C", "F"])
def test_logits_that_may_be_overwritten(dtype, order):
    logits, targets = inputs(dtype)
    expected = kernel(logits, targets)
    given_up = np.array(logits, order=order)
    loss, cache = cross_entropy_forward(given_up, targets, overwrite=True)
    dlogits = cross_entropy_backward(1.0, cache)
    assert_same_bits((loss, dlogits), expected)
    assert np.shares_memory(dlogits, given_up) == (order == "C")
    read_only = logits.copy()
    read_only.flags.writeable = False
    assert_same_bits(cross_entropy_forward(read_only, targets, overwrite=True)[0], loss)
    assert_same_bits(read_only, logits)


@each_dtype
@few
@given(first=leading, V=widths, size=st.sampled_from([0.01, 3, 30]), seed=seeds)
@example(first=LARGE, V=37, size=3, seed=0)
def test_log_softmax(dtype, first, V, size, seed):
    logits = draw(seed, dtype, (*first, V))[0] * dtype(size)
    copy = logits.copy()
    assert_close(log_softmax(logits), ops.log_softmax(in_float64(logits)), dtype)
    assert_same_bits(logits, copy)


@each_dtype
@pytest.mark.parametrize("V", [5, 64, 71])
def test_logits_far_apart_and_far_from_zero(dtype, V):
    """exp overflows for most of them, and underflows for most of their differences."""
    logits = draw(0, dtype, (50, V))[0] * dtype(1000) + dtype(20000)
    targets = np.argmax(logits, axis=-1)
    targets[::2] = 3
    assert_close(kernel(logits, targets), textbook(logits, targets), dtype)
    assert_close(log_softmax(logits), ops.log_softmax(in_float64(logits)), dtype)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [2, 36])  # in a whole vector, and after the last
@pytest.mark.parametrize("target", [2, 36, 7])
def test_nan_and_inf_as_in_the_textbook(value, place, target):
    logits, targets = inputs(np.float64, R=3)
    logits[1, place], targets[1] = value, target
    with np.errstate(invalid="ignore"):
        expected, dexpected = textbook(logits, targets)
        log_p = ops.log_softmax(logits)
    loss, dlogits = kernel(logits, targets)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    np.testing.assert_allclose(dlogits, dexpected, atol=1e-14)
    np.testing.assert_allclose(log_softmax(logits), log_p, rtol=1e-12)


def test_a_row_of_nothing_but_minus_inf():
    logits, targets = inputs(np.float64, R=3)
    logits[1] = -np.inf
    loss, dlogits = kernel(logits, targets)
    assert np.isnan(loss) and np.isnan(dlogits[1]).all() and np.isfinite(dlogits[[0, 2]]).all()


@each_dtype
def test_threads_do_not_matter(dtype):
    logits, targets = inputs(dtype, R=501)
    assert_threads_do_not_matter(lambda: (*kernel(logits, targets, 2.0), log_softmax(logits)))


@pytest.mark.parametrize("dout", [1.0, 0.5, np.float64(-2)])
def test_backward_twice_and_nothing_is_modified(dout):
    logits, targets = arrays = inputs(np.float64)
    copies = tuple(a.copy() for a in arrays)
    _, cache = cross_entropy_forward(logits, targets)
    first = cross_entropy_backward(dout, cache).copy()
    cross_entropy_backward(3.0, cache)
    assert_same_bits(cross_entropy_backward(dout, cache), first)
    assert_same_bits(arrays, copies)


def test_views_and_targets_of_any_integer_type():
    logits, targets = inputs(np.float64)
    expected = kernel(logits.copy(), targets)
    wide = np.repeat(logits, 2, axis=1)[:, ::2]
    for dtype in (np.uint8, np.int32, np.uint64):
        assert_same_bits(kernel(wide, np.repeat(targets, 2).astype(dtype)[::2]), expected)


def test_loss_is_summed_in_float64():
    """A mean of a hundred thousand equal losses: their float32 sum would be off in the fifth digit."""
    R = 100_000
    loss, _ = cross_entropy_forward(np.zeros((R, 3), np.float32), np.zeros(R, int))
    assert loss == np.float32(np.log(np.float32(3)))


@pytest.mark.parametrize("bad", [-1, 5])
def test_targets_out_of_range(bad):
    with pytest.raises(ValueError, match=r"targets must lie in 0 … 4, got .*" + str(bad)):
        cross_entropy_forward(np.ones((2, 5)), np.array([0, bad]))


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"targets must have shape \(2,\), one or more, got \(3,\)"):
        cross_entropy_forward(np.ones((2, 5)), np.zeros(3, int))
    with pytest.raises(ValueError, match=r"targets must have shape \(0,\), one or more, got \(0,\)"):
        cross_entropy_forward(np.ones((0, 5)), np.zeros(0, int))
    with pytest.raises(ValueError, match="targets must be integers, got dtype float64"):
        cross_entropy_forward(np.ones((2, 5)), np.zeros(2))
    with pytest.raises(ValueError, match="logits must be float32 or float64"):
        cross_entropy_forward(np.ones((2, 5), complex), np.zeros(2, int))
    with pytest.raises(ValueError, match="logits must be float32 or float64"):
        log_softmax(np.ones((2, 5), np.float16))
    with pytest.raises(ValueError, match=r"logits must have at least one entry in a row, got shape \(2, 0\)"):
        log_softmax(np.ones((2, 0)))

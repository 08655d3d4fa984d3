"""Memory and segment one after the other: as the textbook has it, in memory that is recycled."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.cpu.context import context_backward, context_forward

from .compare import assert_same_bits, assert_threads_do_not_matter, draw, each_dtype


@each_dtype
@pytest.mark.parametrize(
    "sizes", [(2, 3, 4, 5), (1, 1, 1, 1), (2, 0, 4, 5), (3, 64, 32, 17), (3, 90, 53, 59), (1, 200, 100, 64)]
)
def test_like_the_textbook(dtype, sizes):
    B, M, T, D = sizes
    m, x, dout = draw(0, dtype, (B, 2 * M, D), (B, T, D), (B, M + T, D))
    m = m[:, M:]  # a view, as the model's memory is one of the last context
    out, cache = context_forward(m, x)
    expected, expected_cache = ops.context_forward(m, x)
    assert_same_bits(out, expected)
    assert out.flags.c_contiguous
    for other in (m.copy(), m[:, ::-1]):
        assert_same_bits(context_forward(other, x)[0], np.concatenate([other, x], axis=1))
    assert_same_bits(context_forward(x, m)[0], np.concatenate([x, m], axis=1))
    assert_same_bits(context_backward(dout, cache), ops.context_backward(dout, expected_cache))


def test_threads_do_not_matter():
    m, x = draw(0, np.float32, (3, 90, 67), (3, 61, 67))
    assert_threads_do_not_matter(lambda: context_forward(m[:, 7:], x)[0])


def test_without_memory_it_is_the_segment_itself():
    x, dout = draw(0, np.float32, (2, 3, 4), (2, 3, 4))
    out, cache = context_forward(None, x)
    assert out is x
    assert_same_bits(context_backward(dout, cache), dout)


def test_bad_arguments():
    x = np.ones((2, 3, 4))
    with pytest.raises(ValueError, match=r"m must be \(2, M', 4\) to match x \(2, 3, 4\), got \(1, 3, 4\)"):
        context_forward(np.ones((1, 3, 4)), x)
    with pytest.raises(ValueError, match=r"m must be \(2, M', 4\) to match x \(2, 3, 4\), got \(2, 4\)"):
        context_forward(np.ones((2, 4)), x)
    with pytest.raises(ValueError, match=r"x must be \(B, T, D\), got \(3, 4\)"):
        context_forward(None, x[0])
    with pytest.raises(ValueError, match="m must have the dtype of x, float64, got float32"):
        context_forward(np.ones((2, 3, 4), np.float32), x)
    with pytest.raises(ValueError, match="x must be float32 or float64"):
        context_forward(None, x.astype(complex))

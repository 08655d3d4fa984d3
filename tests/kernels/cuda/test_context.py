"""Context against the textbook: memories that are views, read where they lie."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device, to_host

from .compare import normal

cuda = get_backend("cuda")


@pytest.mark.parametrize(("B", "M", "T", "D"), [(2, 3, 4, 5), (3, 1, 7, 70), (1, 0, 2, 3), (0, 2, 3, 4), (2, 3, 0, 4)])
def test_equals_textbook(place, B, M, T, D):
    before, x, dcontext = normal((B, M + 2, D), (B, T, D), (B, M + T, D))
    context, cache = cuda.context_forward(to_device(before)[:, 2:], to_device(x))
    assert np.array_equal(to_host(context), ops.context_forward(before[:, 2:], x)[0])
    assert np.array_equal(to_host(cuda.context_backward(to_device(dcontext), cache)), dcontext[:, M:])


def test_views_of_every_kind(place):
    m, x = normal((5, 3, 2), (4, 9, 5))
    for there, here in ((lambda m: m.T, lambda x: x[1:3]), (lambda m: m.T[:, 1:], lambda x: x[:2, 4:])):
        got, _ = cuda.context_forward(there(to_device(m)), here(to_device(x)))
        assert np.array_equal(to_host(got), np.concatenate([there(m), here(x)], axis=1))


def test_no_memory(place):
    (x,) = map(to_device, normal((2, 3, 4)))
    context, cache = cuda.context_forward(None, x)
    assert context is x
    assert np.array_equal(to_host(cuda.context_backward(x, cache)), to_host(x))


def test_bad_arguments(place):
    x, m = map(to_device, normal((2, 4, 5), (2, 2, 4)))
    with pytest.raises(ValueError, match=r"m must be \(2, M', 5\) to match x \(2, 4, 5\), got \(2, 2, 4\)"):
        cuda.context_forward(m, x)
    with pytest.raises(ValueError, match="m must be in the GPU's memory, got ndarray"):
        cuda.context_forward(np.zeros((2, 1, 5)), x)

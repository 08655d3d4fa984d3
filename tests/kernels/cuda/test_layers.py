"""Operations of a layer: which arrays they read or hand on where they lie; NaN that is dropped."""

import numpy as np

from tinyprune import ops
from tinyprune.kernels.cuda.device.array import to_device, to_host

from .compare import cuda, normal


def test_nan_and_inf_are_not_hidden_by_being_dropped(place):
    y = np.array([np.nan, np.inf, -np.inf, 1.0] * 10, np.float32)
    with np.errstate(invalid="ignore"):
        x = np.zeros_like(y)
        out, _ = cuda.residual_forward(to_device(x), to_device(y), 0.5, np.random.default_rng(2))
        expected, _ = ops.residual_forward(x, y, 0.5, np.random.default_rng(2))
    np.testing.assert_array_equal(to_host(out), expected)


def test_memories_are_read_where_they_lie_if_there_are_any(place):
    m, x = normal((5, 3, 2), (4, 9, 5))
    for there, here in ((lambda m: m.T, lambda x: x[1:3]), (lambda m: m.T[:, 1:], lambda x: x[:2, 4:])):
        got, _ = cuda.context_forward(there(to_device(m)), here(to_device(x)))
        assert np.array_equal(to_host(got), np.concatenate([there(m), here(x)], axis=1))
    x = to_device(x)
    context, cache = cuda.context_forward(None, x)
    assert context is x and np.array_equal(to_host(cuda.context_backward(x, cache)), to_host(x))

"""LayerNorm against the textbook."""

import pytest

from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_equal_to_textbook, normal

cuda = get_backend("cuda")


def check(module, shape=(2, 3, 130)):
    """More features than threads, and more rows than a block of `parameter_gradients` has lines."""
    x, dout, scale, bias = normal(shape, shape, shape[-1:], shape[-1:])
    assert_equal_to_textbook("layernorm", (x + 2, scale, bias), dout, module=module)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (2, 3, 130), (70, 33), (0, 5), (2, 0, 4), (5,)])
def test_equals_textbook(place, both_orders, shape):
    check(cuda, shape)


def test_bad_arguments(place):
    x, scale = map(to_device, normal((2, 3), (3,)))
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\) to match x \(2, 3\), got \(2, 3\)"):
        cuda.layernorm_forward(x, scale, x)
    out, cache = cuda.layernorm_forward(x, scale, scale)
    with pytest.raises(ValueError, match=r"dout must have shape \(2, 3\) like the output, got \(3,\)"):
        cuda.layernorm_backward(scale, cache)

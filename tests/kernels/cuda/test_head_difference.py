"""Δ_h against the textbook."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import to_device

from .compare import assert_close, normal

cuda = get_backend("cuda")


@pytest.mark.parametrize(
    "shape", [(2, 3, 3, 5, 7), (1, 1, 1, 1, 1), (1, 33, 2, 9, 34), (2, 3, 0, 5, 4), (0, 3, 2, 2, 3)]
)
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_equals_textbook(place, shape, scale):
    B, T, H, Dh, D = shape
    o, Wo = normal((B, T, H, Dh), (H * Dh, D))
    expected = ops.head_difference(o.astype(float), Wo.astype(float), scale)
    assert_close(cuda.head_difference(to_device(o), to_device(Wo), scale), expected)


def test_bad_arguments(place):
    o, Wo = map(to_device, normal((1, 2, 3, 2), (4, 6)))
    with pytest.raises(ValueError, match=r"Wo must have shape \(6, D\) to match o \(1, 2, 3, 2\), got \(4, 6\)"):
        cuda.head_difference(o, Wo)
    with pytest.raises(ValueError, match="o must be in the GPU's memory, got ndarray"):
        cuda.head_difference(np.zeros((1, 2, 3, 2)), Wo)

"""L0 against the textbook."""

import numpy as np
import pytest

from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import DeviceArray, to_device, to_host
from tinyprune.kernels.cuda.l0 import THREADS

from .compare import assert_equal_to_textbook, normal

cuda = get_backend("cuda")


GATE = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}


@pytest.mark.parametrize("shape", [(6,), (), (2, 3), (2 * THREADS + 1,), (0,)])
def test_equals_textbook(place, both_orders, shape):
    (log_alpha,) = normal(shape)
    assert_equal_to_textbook("l0", (np.asarray(3 * log_alpha, np.float32),), 0.3, **GATE)


def test_stays_in_the_gpus_memory(place):
    log_alpha = to_device(np.array([-1e4, 1e4, 1e4, -90], np.float32))
    L0, cache = cuda.l0_forward(log_alpha[1:], **GATE)
    assert isinstance(L0, DeviceArray) and L0.shape == () and float(L0) == 2
    got = cuda.l0_backward(to_device(np.array(0.5, np.float32)), cache)
    assert np.array_equal(to_host(got), to_host(cuda.l0_backward(0.5, cache)))


def test_bad_arguments(place):
    with pytest.raises(ValueError, match="log_alpha must be in the GPU's memory, got ndarray"):
        cuda.l0_forward(np.zeros(3), **GATE)
    _, cache = cuda.l0_forward(to_device(np.zeros(3, np.float32)), **GATE)
    with pytest.raises(ValueError, match=r"dout must have shape \(\) like the output, got \(1,\)"):
        cuda.l0_backward(to_device(np.ones(1, np.float32)), cache)

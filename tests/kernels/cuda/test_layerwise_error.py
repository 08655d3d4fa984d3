"""Layer-wise error against the textbook."""

import numpy as np
import pytest

from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.array import DeviceArray, empty, to_device, to_host
from tinyprune.kernels.cuda.layerwise_error import THREADS, error_of

from .compare import assert_close, assert_equal_to_textbook, normal

cuda = get_backend("cuda")


def draw(B, T, H, Dh, D):
    """Gates, head outputs, output projection and its bias."""
    return normal((H,), (B, T, H, Dh), (H * Dh, D), (D,))


@pytest.mark.parametrize(
    "shape", [(2, 3, 3, 5, 7), (1, 1, 1, 1, 1), (2, 5, 9, 2, 70), (1, 2, 1, 67, 3), (2, 3, 0, 5, 4), (0, 3, 2, 2, 3)]
)
@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_equals_textbook(place, shape, scale):
    assert_equal_to_textbook("layerwise_error", (*draw(*shape), scale), 0.7)


def test_more_heads_than_a_block_has_threads(place, both_orders):
    """The last kernel alone, since a pair of heads is a block of the one before."""
    H, D, scale, count = THREADS + 3, 5, 1.5, 7
    gate, G, outputs, bo = normal((H,), (H, H), (D,), (D,))
    error, slope = empty(()), empty(H)
    given = [to_device(x) for x in (gate, G + G.T, outputs, bo)]
    error_of(1, given[0], np.float32(scale), *given[1:], np.float32(count), H, D, error, slope)
    gate, G, outputs, bo = (x.astype(float) for x in (gate, G, outputs, bo))
    full = 2 * G.sum() + 2 * outputs @ bo + count * bo @ bo
    e = scale * gate - 1
    assert_close(error, np.array(e @ (G + G.T) @ e / full))
    assert_close(slope, 2 * scale * (G + G.T) @ e / full)


def test_a_layer_that_adds_nothing_makes_no_error(place):
    gate, o, Wo, bo = draw(1, 2, 3, 2, 4)
    given = map(to_device, (gate, o, 0 * Wo, 0 * bo))
    error, cache = cuda.layerwise_error_forward(*given)
    assert float(error) == 0
    assert np.array_equal(to_host(cuda.layerwise_error_backward(1.0, cache)), np.zeros(3))


def test_stays_in_the_gpus_memory_and_reads_views(place):
    gate, o, Wo, bo = draw(2, 3, 3, 4, 5)
    error, cache = cuda.layerwise_error_forward(*map(to_device, (gate, o, Wo, bo)))
    assert isinstance(error, DeviceArray) and error.shape == ()
    views = [
        to_device(np.stack([gate, bo[:3]], 1))[:, 0],
        to_device(o.T.copy()).T,
        to_device(Wo.T.copy()).T,
        to_device(bo),
    ]
    same, _ = cuda.layerwise_error_forward(*views)
    assert_close(same, to_host(error))
    got = cuda.layerwise_error_backward(to_device(np.array(0.5, np.float32)), cache)
    assert np.array_equal(to_host(got), to_host(cuda.layerwise_error_backward(0.5, cache)))


def test_bad_arguments(place):
    gate, o, Wo, bo = map(to_device, draw(1, 2, 3, 2, 4))
    with pytest.raises(ValueError, match=r"gate must have shape \(3,\) to match o \(1, 2, 3, 2\) and Wo \(6, 4\), got"):
        cuda.layerwise_error_forward(gate[1:], o, Wo, bo)
    with pytest.raises(ValueError, match=r"Wo must have shape \(6, D\) to match o \(1, 2, 3, 2\), got \(4, 6\)"):
        cuda.layerwise_error_forward(gate, o, Wo.T, bo)
    with pytest.raises(ValueError, match="o must be in the GPU's memory, got ndarray"):
        cuda.layerwise_error_forward(gate, to_host(o), Wo, bo)

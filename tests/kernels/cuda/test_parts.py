"""Pieces that operations share, against NumPy: sums, copies, rows by number."""

import numpy as np
import pytest

from tinyprune.kernels.cuda.device.array import empty, to_device, to_host
from tinyprune.kernels.cuda.device.jit import KERNELS, cuda, float32, floats, kernel
from tinyprune.kernels.cuda.parts import sums
from tinyprune.kernels.cuda.parts.copies import narrow, scaled, wide
from tinyprune.kernels.cuda.parts.masks import mask_of
from tinyprune.kernels.cuda.vocabulary.rows import taken_rows
from tinyprune.ops.dropout import keep_mask

from .checks import THREADS, column_sums, row_dots
from .compare import assert_close, normal


@pytest.mark.parametrize("shape", [(sums.RUN**2 + 1, 1), (1, 1), (0, 3), (3, 0), (9, 33)])
def test_column_sums(place, shape):
    """One run, runs of runs, no rows, no columns."""
    column_sums(sums, shape)


@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 3, 8), (0, 2, 4), (5, 0, 4)])
def test_row_dots(place, shape):
    row_dots(sums, shape)


def test_nan_is_not_lost(place):
    reduce_max = sums.block_max

    def run(x, out):
        scratch = cuda.shared.array(THREADS, float32)
        out[cuda.threadIdx.x] = reduce_max(x[cuda.threadIdx.x], scratch)

    for where in (0, 5, 64, 127):
        (x,) = normal((THREADS,))
        x[where] = np.nan
        out = empty(THREADS)
        kernel(floats, floats, threads=THREADS)(run)(1, to_device(x), out)
        KERNELS.pop()
        assert np.isnan(to_host(out)).all()


@pytest.mark.parametrize("shape", [(3, 4), (), (257,), (0, 2)])
def test_scaled(place, shape):
    (x,) = map(np.asarray, normal(shape))
    for factor in (0.3, np.float64(2), to_device(np.array(-1.5, np.float32))):
        assert_close(scaled(to_device(x), factor), np.asarray(x * np.float64(to_host(factor))))
    (x,) = normal((3, 4))
    with pytest.raises(ValueError, match=r"scale must have shape \(\) like the output, got \(3,\)"):
        scaled(to_device(x), to_device(x)[:, 0], "scale")


@pytest.mark.parametrize("shape", [(3, 2, 5), (300, 3), (1,), (0, 3), (2, 0, 7), (3, 8)])
def test_wider_with_zeros_and_back(place, shape):
    """There is no copy where nothing is to do."""
    (x,) = normal(shape)
    there = to_device(x)
    wider = wide(there)
    assert shape != (3, 8) or (wider is there and narrow(there, 8) is there and wide(there.T[:, :2]).contiguous)
    assert wider.contiguous and wider.shape == (*shape[:-1], -(-shape[-1] // 4) * 4)
    np.testing.assert_array_equal(to_host(wider)[..., : shape[-1]], x)
    assert not to_host(wider)[..., shape[-1] :].any()
    np.testing.assert_array_equal(to_host(narrow(wider, shape[-1])), x)


@pytest.mark.parametrize(("D", "n"), [(5, 3), (130, 3), (3, 0)])
@pytest.mark.parametrize("keys", [(1, 2), (11, 5)])
def test_rows_of_words_that_are_dropped(place, D, n, keys):
    (x,) = normal((6, D))
    places = np.array([4, 0, 2])[:n]
    factor = (2.5 / 0.6 * keep_mask((10,), 0.4, keys)[places])[:, None].astype(np.float32)
    taken = taken_rows(to_device(x), places, mask_of(0.4, keys, 2.5))
    assert taken.shape == (n, D)
    np.testing.assert_allclose(to_host(taken), x[places] * factor, rtol=1e-6)

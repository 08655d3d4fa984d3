"""Vector instructions where kernels do not show what they do: accuracy, extreme numbers, bounds."""

import numba
import numpy as np
import pytest

from tinyprune.kernels.cpu import simd
from tinyprune.kernels.cpu.jit import BOUNDS_CHECKED
from tinyprune.kernels.cpu.tiles import microkernel
from tinyprune.kernels.formulas import kept
from tinyprune.ops.dropout import keep_mask


@numba.njit
def apply_exp2(x, out):
    for i in range(0, x.size, simd.lanes(x)):
        simd.store(out, i, simd.exp2(simd.load(x, i)))


@numba.njit
def apply_sigmoid(x, out):
    for i in range(0, x.size, simd.lanes(x)):
        simd.store(out, i, simd.sigmoid(simd.load(x, i)))


@numba.njit
def apply_drop(x, first, key0, key1, threshold, out):
    for i in range(0, x.size, simd.lanes(x)):
        simd.store(out, i, simd.drop(simd.load(x, i), first + i, key0, key1, threshold))


@pytest.mark.parametrize(("dtype", "error", "least"), [(np.float32, 3e-7, -126), (np.float64, 5e-16, -1022)])
def test_exp2(dtype, error, least):
    x = np.linspace(least + 0.01, 100, 1024, dtype=dtype)
    out = np.empty_like(x)
    apply_exp2(x, out)
    assert np.max(np.abs(out / np.exp2(x.astype(np.longdouble)) - 1)) < error
    x[:4] = 0, np.nan, -1e30, least - 1
    apply_exp2(x, out)
    assert out[0] == 1 and np.isnan(out[1]) and not out[2:4].any()


@pytest.mark.parametrize(("dtype", "error", "far"), [(np.float32, 1e-6, 80), (np.float64, 1e-13, 700)])
def test_sigmoid(dtype, error, far):
    x = np.linspace(-far, far, 1024, dtype=dtype)
    out = np.empty_like(x)
    apply_sigmoid(x, out)
    assert np.max(np.abs(out * (1 + np.exp(-x.astype(np.longdouble))) - 1)) < far * error
    x[:6] = 0, np.nan, -1e30, 1e30, -np.inf, np.inf
    apply_sigmoid(x, out)
    assert np.array_equal(out[:6], [0.5, np.nan, 0, 1, 0, 1], equal_nan=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("first", [0, 5, 2**32 - 3, 2**33 + 1])
def test_drop_is_the_textbooks_mask(dtype, first):
    x = np.arange(1, 129).astype(dtype)
    out = np.empty_like(x)
    keys, rate = (123456789, 987654321), 0.3
    limit = int(rate * 2**32)
    apply_drop(x, first, *keys, limit, out)
    limits = [np.uint32(x) for x in (*keys, limit)]
    keep = [kept(number % 2**32, *limits) for number in range(first, first + 128)]
    assert np.array_equal(out, x * keep)
    # The other masks begin too far away to be drawn from their start.
    assert first > 5 or np.array_equal(keep, keep_mask((first + 128,), rate, keys)[first:])


tile_of_three_rows = microkernel(3, 2, False)


@numba.njit
def transposed(x, at, stride, out, to, out_stride):
    simd.transpose(x, at, stride, out, to, out_stride, 2.0)


@numba.njit
def tile(a, b, c, width):
    tile_of_three_rows(a, 0, 1, 1, b, 0, width, c, 0, width, 3)


@pytest.mark.skipif(not BOUNDS_CHECKED, reason="only with NUMBA_BOUNDSCHECK=1")
def test_bounds_are_checked():
    L = simd.VECTOR_BYTES // 4
    x, out = np.zeros(L * L - 1, np.float32), np.zeros(L * L, np.float32)
    for kernel, *arguments in (
        (transposed, x, 0, L, out, 0, L),
        (transposed, out, 0, -1, out, 0, L),
        (apply_exp2, x, out),
        (tile, x, out[: 6 * L - 1], out, 2 * L),
        (tile, x, out, out[: 6 * L - 1], 2 * L),
    ):
        with pytest.raises(IndexError, match="beyond its array"):
            kernel(*arguments)

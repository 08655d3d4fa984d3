"""Each vector instruction against what it says it does."""

import numba
import numpy as np
import pytest

from tinyprune.kernels.cpu import simd
from tinyprune.kernels.cpu.jit import BOUNDS_CHECKED
from tinyprune.kernels.formulas import kept, threshold
from tinyprune.ops.dropout import keep_mask

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def width(dtype) -> int:
    return simd.VECTOR_BYTES // np.dtype(dtype).itemsize


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


@numba.njit
def arithmetic(x, y, z, out):
    L = simd.lanes(x)
    a, b, c = simd.load(x, 0), simd.load(y, 0), simd.load(z, 0)
    simd.store(out, 0, simd.add(a, b))
    simd.store(out, L, simd.subtract(a, b))
    simd.store(out, 2 * L, simd.multiply(a, b))
    simd.store(out, 3 * L, simd.maximum(a, b))
    simd.store(out, 4 * L, simd.muladd(a, b, c))
    simd.store(out, 5 * L, simd.broadcast(x, 2.5))
    return simd.lanes(x), simd.total(a), simd.largest(a), simd.any_greater(a, b), simd.any_greater(a, a)


@numba.njit
def keep_lanes(x, low, high, out):
    simd.store(out, 0, simd.only_lanes(simd.load(x, 0), low, high, -7.0))


@numba.njit
def transposed(x, at, stride, out, to, out_stride):
    simd.transpose(x, at, stride, out, to, out_stride, 2.0)


set_tile = simd.microkernel(3, 2, False)
add_tile = simd.microkernel(3, 2, True)


@numba.njit
def tile(a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, K, accumulate):
    if accumulate:
        add_tile(a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, K)
    else:
        set_tile(a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, K)


@each_dtype
def test_arithmetic(rng, dtype):
    L = width(dtype)
    x, y, z = rng.standard_normal((3, L)).astype(dtype)
    out = np.zeros((6, L), dtype)
    lanes, total, largest, greater, never = arithmetic(x, y, z, out.reshape(-1))
    expected = [x + y, x - y, x * y, np.maximum(x, y), x * y + z, np.full(L, 2.5)]
    np.testing.assert_allclose(out, expected, rtol=4 * np.finfo(dtype).eps, atol=np.finfo(dtype).eps)
    assert lanes == L and largest == x.max() and abs(total - x.sum()) < 1e-5
    assert greater == (x > y).any() and not never


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


@each_dtype
@pytest.mark.parametrize("first", [0, 5, 2**32 - 3, 2**33 + 1])
def test_drop_is_the_textbooks_mask(dtype, first):
    x = np.arange(1, 129).astype(dtype)
    out = np.empty_like(x)
    keys, rate = (123456789, 987654321), 0.3
    apply_drop(x, first, *keys, threshold(rate), out)
    limits = [np.uint32(x) for x in (*keys, threshold(rate))]
    keep = [kept(number % 2**32, *limits) for number in range(first, first + 128)]
    assert np.array_equal(out, x * keep)
    assert first > 5 or np.array_equal(keep, keep_mask((first + 128,), rate, keys)[first:])  # others are too far away


@each_dtype
def test_only_lanes(rng, dtype):
    L = width(dtype)
    x = rng.standard_normal(L).astype(dtype)
    for low, high in [(0, L), (1, L - 1), (-5, 1), (L, L + 3), (1, 1)]:
        out = np.empty_like(x)
        keep_lanes(x, low, high, out)
        inside = (np.arange(L) >= low) & (np.arange(L) < high)
        assert np.array_equal(out, np.where(inside, x, dtype(-7)))


@each_dtype
def test_transpose(rng, dtype):
    L = width(dtype)
    x, out = rng.standard_normal((L + 2, L + 3)).astype(dtype), np.zeros((L + 1, L + 5), dtype)
    transposed(x.reshape(-1), L + 3 + 2, L + 3, out.reshape(-1), 1, L + 5)
    expected = np.zeros_like(out)
    expected[:L, 1 : L + 1] = 2 * x[1 : L + 1, 2 : L + 2].T
    assert np.array_equal(out, expected)
    transposed(x.reshape(-1), L * (L + 3), -(L + 3), out.reshape(-1), 0, L + 5)  # rows upwards
    assert np.array_equal(out[:L, :L], 2 * x[L:0:-1, :L].T)


@each_dtype
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("K", [1, 2, 19])
def test_microkernel(rng, dtype, accumulate, K):
    J = 2 * width(dtype)
    a, b = rng.standard_normal((5, K)).astype(dtype), rng.standard_normal((K + 1, J + 3)).astype(dtype)
    c = rng.standard_normal((4, J + 1)).astype(dtype)
    expected = c.copy()
    expected[1:, 1:] = a[1:4] @ b[1:, 2 : J + 2] + (c[1:, 1:] if accumulate else 0)
    tile(a.reshape(-1), K, K, 1, b.reshape(-1), J + 3 + 2, J + 3, c.reshape(-1), J + 2, J + 1, K, accumulate)
    np.testing.assert_allclose(c, expected, rtol=0, atol=40 * np.finfo(dtype).eps)


@pytest.mark.skipif(not BOUNDS_CHECKED, reason="only with NUMBA_BOUNDSCHECK=1")
def test_bounds_are_checked():
    L = width(np.float32)
    x, out = np.zeros(L * L - 1, np.float32), np.zeros(L * L, np.float32)
    for kernel, *arguments in (
        (transposed, x, 0, L, out, 0, L),
        (transposed, out, 0, -1, out, 0, L),
        (apply_exp2, x, out),
        (tile, x, 0, 1, 1, out, 0, 2 * L, out, 0, L * L, 3, False),
    ):
        with pytest.raises(IndexError, match="beyond its array"):
            kernel(*arguments)


@numba.njit(parallel=True)
def take_all(counter, taken):
    for _ in numba.prange(8):
        i = simd.take(counter)
        while i < taken.size:
            taken[i] += 1
            i = simd.take(counter)


def test_every_number_is_taken_once():
    counter, taken = np.zeros(1, np.int64), np.zeros(100_000, np.int64)
    take_all(counter, taken)
    assert np.all(taken == 1) and counter[0] == taken.size + 8

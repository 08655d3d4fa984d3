"""The matrix product: against float64 over shapes, strides, epilogues; threads, one chain over k, bad arguments."""

from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu.dots import MOST_ROWS, SIDE
from tinyprune.kernels.cpu.matmul import matmul
from tinyprune.kernels.cpu.product import BLOCK, DEPTH, FAR, FEW, MANY, PAGE, ROWS, alone
from tinyprune.kernels.cpu.simd import VECTOR_BYTES

from ..compare import TOLERANCE, assert_same_bits

WIDTH = 2 * VECTOR_BYTES // 4  # columns of a float32 tile
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
few = settings(max_examples=25)  # the first example compiles
seeds = st.integers(0, 2**32 - 1)
sizes = st.one_of(
    st.integers(0, 4),
    st.sampled_from([FEW - 1, FEW + 1, ROWS - 1, ROWS, ROWS + 1, WIDTH - 1, WIDTH, WIDTH + 1, 4 * ROWS, 4 * WIDTH + 3]),
    st.sampled_from([7, 31, 61, 89, 127]),
    st.sampled_from([DEPTH, DEPTH + 1, 2 * DEPTH + 3]),
)
layouts = st.sampled_from(["plain", "transposed", "gaps", "transposed gaps", "columns", "reversed", "read-only"])


def draw(dtype, *shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def laid_out(x, layout):
    """The numbers of `x` in another order in memory, where others are NaN."""
    if layout.startswith("transposed"):
        return laid_out(x.T, layout.removeprefix("transposed").strip()).T
    if layout in ("gaps", "read-only"):
        gaps = np.pad(x, ((1, 2), (3, 2)), constant_values=np.nan)[1:-2, 3:-2]
        gaps.flags.writeable = layout == "gaps"
        return gaps
    if layout == "columns":
        spread = np.full((len(x), 3 * x.shape[1]), np.nan, x.dtype)
        spread[:, ::3] = x
        return spread[:, ::3]
    if layout == "reversed":
        return np.ascontiguousarray(x[::-1])[::-1]
    return x.copy()


def check(got, a, b, dtype, *added):
    """Every entry is that of a · b and what is added; rounding is proportional to the sizes of its terms."""
    expected = sum(added, a.astype(np.float64) @ b.astype(np.float64))
    size = sum(map(np.abs, added), np.abs(a) @ np.abs(b))
    assert got.dtype == dtype and got.shape == expected.shape
    assert np.all(np.abs(got - expected) <= TOLERANCE[dtype] * size)


def check_layouts(
    product, dtype, shape, a_layout, b_layout, onto, transpose_a, transpose_b, bias, seed, rounded=np.asarray
):
    """One product of factors that lie in memory in some way, onto a matrix that does, as that of rounded factors."""
    M, K, N = shape
    a, b, c, bias_ = draw(dtype, (M, K), (K, N), (M, N), (N,), seed=seed)
    out = None if onto == "none" else laid_out(c, onto)
    got = product(
        laid_out(a.T if transpose_a else a, a_layout),
        laid_out(b.T, b_layout).T if transpose_b else laid_out(b, b_layout),
        transpose_a=transpose_a,
        bias=bias_ if bias else None,
        onto=out,
    )
    if out is not None:
        assert got is out
        whole = out if out.base is None else out.base
        assert np.isnan(whole).sum() == whole.size - out.size  # nothing else is written
    check(got, rounded(a), rounded(b), dtype, *[bias_] * bias, *[c] * (out is not None))


@each_dtype
@few
@given(
    shape=st.tuples(sizes, sizes, sizes),
    a_layout=layouts,
    b_layout=layouts,
    onto=st.sampled_from(["none", "plain", "transposed", "gaps", "columns"]),
    transpose_a=st.booleans(),
    transpose_b=st.booleans(),
    bias=st.booleans(),
    seed=seeds,
)
def test_like_the_sum(dtype, shape, a_layout, b_layout, onto, transpose_a, transpose_b, bias, seed):
    check_layouts(matmul, dtype, shape, a_layout, b_layout, onto, transpose_a, transpose_b, bias, seed)


@each_dtype
@few
@given(B=st.integers(0, 3), T=sizes, K=sizes, N=sizes, skip=st.integers(0, 2), seed=seeds)
def test_the_last_rows_of_each_batch_entry(dtype, B, T, K, N, skip, seed):
    S = T + skip
    n, W, dn, g, spread = draw(dtype, (B, S, K), (K, N), (B, S, N), (B, T, N), (B, S, N + 1), seed=seed)
    part = n[:, skip:]
    check(matmul(part, W), part, W, dtype)
    # into some rows, the others untouched
    before, last = dn.copy(), dn[:, skip:]
    matmul(part, W, onto=last)
    check(last, part, W, dtype, before[:, skip:])
    assert_same_bits(dn[:, :skip], before[:, :skip])
    # a sum over all rows, those of the other matrix evenly spaced or not
    for other in (g, spread[:, skip:, :N]):
        check(matmul(part, other, transpose_a=True), part.reshape(B * T, K).T, other.reshape(B * T, N), dtype)


@each_dtype
def test_wider_than_a_block(dtype):
    N = BLOCK * WIDTH + 5
    a, b, bias = draw(dtype, (5 * ROWS + 1, 9), (9, N), (N,))
    for x in (b, b.T.copy().T):
        check(matmul(a, x, bias=bias), a, b, dtype, bias)
    # a's own rows so far apart that they are packed
    assert FAR <= 600 and N >= MANY * WIDTH
    far = np.full((9, 600), np.nan, dtype)
    far[:, : len(a)] = a.T
    check(matmul(far[:, : len(a)], b, transpose_a=True, bias=bias), a, b, dtype, bias)
    # … and as rows whole pages apart, which are packed for another reason
    apart = np.full((len(a), PAGE // a.itemsize), np.nan, dtype)
    apart[:, :9] = a
    check(matmul(apart[:, :9], b, bias=bias), a, b, dtype, bias)
    deep, tall = draw(dtype, (ROWS, PAGE // a.itemsize), (PAGE // a.itemsize, MANY * WIDTH))
    check(matmul(deep, tall), deep, tall, dtype)


# The last has 17 tiles of rows: threads share the columns, and each part has to pack columns that no other has packed.
@each_dtype
@pytest.mark.parametrize(
    "sizes", [(1, 700, 1999), (MOST_ROWS, 700, 301), (300, 700, 61), (600, 97, 33), (17 * ROWS, 128, 4 * WIDTH)]
)
def test_threads_do_not_matter(dtype, sizes):
    M, K, N = sizes
    a, b, c = draw(dtype, (M, K), (K, N), (M, N))
    results = []
    for threads in (1, 2):
        with get_backend("numba").threads(threads):
            transposed = matmul(a.T.copy(), b, transpose_a=True, onto=c.copy())
            results.append([matmul(a, b), transposed, matmul(a, b.T.copy().T, bias=c[0])])
    assert_same_bits(*results)
    check(results[1][0], a, b, dtype)


@each_dtype
@pytest.mark.parametrize("K", [1, 3, 21, 64, 70])
@pytest.mark.parametrize("M", [1, 2, MOST_ROWS, MOST_ROWS + 1])
def test_few_rows_times_a_transposed_matrix_of_every_width(dtype, M, K):
    a, b, added = draw(dtype, (M, K), (2 * WIDTH + 1, K), (M, 2 * WIDTH + 1))
    for N in range(1, len(b) + 1):
        # What lies beside a and b must not get into the product.
        x, y = laid_out(a, "gaps"), laid_out(b[:N], "gaps").T
        check(matmul(x, y), a, b[:N].T, dtype)
        for bias in (None, added[0, :N]):
            out = laid_out(added[:, :N], "gaps")
            matmul(x, y, bias=bias, onto=out)
            check(out, a, b[:N].T, dtype, added[:, :N], *[] if bias is None else [bias])


def test_an_entry_does_not_depend_on_its_neighbours():
    a, b = draw(np.float32, (61, 600), (600, 67))
    b_columns = b.T.copy().T
    whole, few = matmul(a, b), matmul(a[:MOST_ROWS], b_columns)
    for i, j in ((0, 0), (60, 66), (59, 3), (7, 64)):
        assert_same_bits(matmul(a[i : i + 1], b[:, j : j + 1]), whole[i : i + 1, j : j + 1])
    # There are two columns, since one alone would not be transposed.
    for i, j in ((0, 0), (MOST_ROWS - 1, 65), (2, SIDE - 1), (1, SIDE)):
        assert_same_bits(matmul(a[i : i + 1], b_columns[:, j : j + 2]), few[i : i + 1, j : j + 2])


f32 = np.float32


BAD = [((2, 4, 3), (8, 5), {"transpose_a": True}, r"got a \(2, 4, 3\), b \(8, 5\), a transposed")]
BAD += [((2, 3), (3, 5), {"bias": np.ones(2, f32)}, r"got a \(2, 3\), b \(3, 5\), bias \(2,\)")]
ONTO = "onto must have the dtype of a, float32, got float64"
BAD += [((2, 3), (3, 5), {"onto": np.ones((2, 5))}, ONTO)]
BAD += [((2, 3), (3, 5), {"onto": np.ones((5, 2), f32)}, r"got a \(2, 3\), b \(3, 5\), onto \(5, 2\)")]


@pytest.mark.parametrize(("a", "b", "options", "message"), BAD)
def test_bad_shapes_and_dtypes(a, b, options, message):
    for _ in range(2):  # the plan of a product is remembered, an error is not
        with pytest.raises(ValueError, match=message):
            matmul(np.ones(a, f32), np.ones(b, f32), **options)


def test_a_kept_plan_does_not_hide_that_an_array_is_another_one():
    x, onto, bias = np.ones((4, 4)), np.zeros((4, 4)), np.arange(4.0)
    matmul(x, x, bias=bias, onto=onto)
    onto.flags.writeable = False
    with pytest.raises(ValueError, match="onto must be writeable"):
        matmul(x, x, bias=bias, onto=onto)
    with pytest.raises(ValueError, match="bias must have the dtype of a"):
        matmul(x, x, bias=bias.astype(f32))
    spaced = np.arange(8.0)[::2]
    assert_array_equal(matmul(x, x, bias=spaced), 4 + spaced[None].repeat(4, 0))
    bias.flags.writeable = x.flags.writeable = False
    kernels = len(alone.signatures)
    assert_array_equal(matmul(x, x, bias=bias), 4 + bias[None].repeat(4, 0))
    assert len(alone.signatures) == kernels  # nothing was compiled for read-only arrays


@pytest.mark.parametrize("read", ["a", "b", "bias"])
def test_onto_the_memory_of_an_argument(read):
    x = np.ones((4, 4))
    arguments = {"a": np.ones((4, 4)), "b": np.ones((4, 4)), read: x[1] if read == "bias" else x[:]}
    for onto in (x, x.T):
        with pytest.raises(ValueError, match=f"onto must not lie in the memory of {read}, which is read"):
            matmul(**arguments, onto=onto)


def test_several_callers_at_once():
    products = [draw(f32, (190, 130), (130, 210), seed=i) for i in range(4)]
    expected = [matmul(a, b) for a, b in products]
    if numba.threading_layer() == "workqueue":
        pytest.skip("Numba's workqueue takes one caller at a time")

    def compute(i):
        a, b = products[i % 4]
        return [matmul(a, b) for _ in range(50)]

    with ThreadPoolExecutor(4) as callers:
        for i, results in enumerate(callers.map(compute, range(8))):
            for result in results:
                assert_same_bits(result, expected[i % 4])

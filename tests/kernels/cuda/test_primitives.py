"""The products against NumPy's in float64: shapes, layouts, views, what is added, sums in slots, tf32."""

from types import SimpleNamespace

import numpy as np
import pytest

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.device.array import to_device, to_host
from tinyprune.kernels.cuda.products import primitives
from tinyprune.kernels.cuda.products.primitives import (
    column_sums,
    division,
    matmul,
    matmuls,
    weight_gradient,
    weight_gradients,
)
from tinyprune.ops import products

from .compare import assert_close, in_float64, normal, on_device, to_tf32

SHAPES = [(9, 17, 6), (12, 16, 8), (1, 1, 1), (1, 70, 37), (8, 5, 33), (3, 40, 1)]
SHAPES += [(0, 3, 4), (3, 0, 4), (9, 0, 4), (3, 4, 0), (9, 4, 0), (0, 0, 0)]  # nothing to add up
# a little more than a tile; and numbers that can be read four at a time
SHAPES += [(65, 37, 67), (131, 19, 130), (132, 16, 4)]
VIEWS = ["plain", "transposed", "gaps", "gaps of four", "transposed gaps"]
TRANSPOSES = [("plain", "plain"), ("plain", "transposed"), ("transposed", "plain"), ("transposed", "transposed")]


def textbook(a, b, **options):
    """The same in NumPy, in float64."""
    return products.matmul(in_float64(a), in_float64(b), **in_float64(options))


def laid_out(x, layout):
    """The numbers of a matrix in the GPU's memory, in another order or with other numbers between them."""
    rows, columns = x.shape
    if layout.startswith("transposed"):
        return laid_out(x.T.copy(), layout.removeprefix("transposed").strip()).T
    if layout in ("gaps", "gaps of four"):
        skip = 4 if layout == "gaps of four" else 1  # with 1, rows lie fours apart, but none begins on one
        wider = np.full((rows + 1, -(-columns // 4) * 4 + 8), np.nan, np.float32)
        wider[1:, skip : skip + columns] = x
        return to_device(wider)[1:, skip : skip + columns]
    return to_device(x.copy())


@pytest.fixture
def settings(monkeypatch):

    def to(**values):
        primitives.plan.cache_clear()
        for name, value in values.items():
            monkeypatch.setattr(primitives, name, value)

    yield to
    primitives.plan.cache_clear()


@pytest.mark.parametrize(("of_a", "of_b"), TRANSPOSES)
@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_shapes_and_transposes(place, settings, M, K, N, of_a, of_b):
    settings(TILES=(128 if M > 128 else 64,))
    a, b, bias = normal((M, K), (K, N), (N,))
    assert_close(matmul(laid_out(a, of_a), laid_out(b, of_b), bias=to_device(bias)), textbook(a, b, bias=bias))
    x = np.ascontiguousarray(a.T)
    assert_close(weight_gradient(laid_out(x, of_a), laid_out(b, of_b)), textbook(a, b))


@pytest.mark.parametrize("layout", VIEWS)
@pytest.mark.parametrize("M", [9, 3])
def test_layouts_and_what_is_added(place, monkeypatch, layout, M):
    """Views of rows, also transposed, are read where they lie."""
    copies, copy = [], primitives.copied
    monkeypatch.setattr(primitives, "copied", lambda x: copies.append(x) or copy(x))
    a, b, bias, r, where = normal((M, 21), (21, 34), (34,), (M, 34), (M, 34))
    x, y, there = laid_out(a, layout), laid_out(b, layout), laid_out(where, layout)
    expected = textbook(a, b, bias=bias, relu=True, where=where)
    assert_close(matmul(x, y, bias=to_device(bias), relu=True, where=there), expected)
    if not layout.startswith("transposed"):
        onto = laid_out(r, layout)
        assert matmul(x, y, bias=to_device(bias), onto=onto) is onto
        assert_close(onto, textbook(a, b, bias=bias, onto=r))
    assert np.array_equal(to_host(there), where) and np.array_equal(to_host(x), a)
    assert len(copies) == layout.startswith("transposed")  # of two transposed factors one is copied


@pytest.mark.parametrize("N", [8, 7])
def test_sums_in_slots(place, both_orders, settings, N):
    """Several slots along k, the last one short; groups of rows; and several products and sums together."""
    settings(SHORTEST=16)
    a, b, c, d = normal((9, 70), (70, N), (33, 70), (20, N))
    assert division(9, N, 70) == (64, 4)  # of at least two strips each, so that there are three
    turned, more, factor = to_device(a.T.copy()), to_device(c.T.copy()), to_device(b)
    assert_close(weight_gradient(turned, factor), textbook(a, b))
    # what comes right after a product takes the whole sum
    assert_close(matmul(turned.T, factor, bias=factor[0], relu=True), textbook(a, b, bias=b[0], relu=True))
    found, sums = weight_gradients([(turned, factor), (more, factor)] * 3, [factor, turned, to_device(d)] * 2)
    for n, got in enumerate(found):
        assert_close(got, textbook((a, c)[n % 2], b))
    for n, got in enumerate(sums):
        assert_close(got, (b, a.T, d)[n % 3].sum(0, dtype=float))
    test_the_last_rows_of_each_batch_entry(place, 4, 10, 5, 3)


def test_products_together(place):
    """More than a launch takes, of few and of many rows, with and without a bias, of other sizes, and of none."""
    shapes = [(9, 20, 30), (2, 20, 30), (70, 130, 66), (200, 3, 5), (9, 4, 0), (66, 0, 8), (130, 20, 129)]
    given = [normal((M, K), (K, N), (N,)) for M, K, N in shapes]
    given = [(a, b, bias if n % 3 else None) for n, (a, b, bias) in enumerate(given)]
    found = matmuls([tuple(None if x is None else to_device(x) for x in each) for each in given])
    for got, (a, b, bias) in zip(found, given, strict=True):
        assert_close(got, textbook(a, b) if bias is None else textbook(a, b, bias=bias))


@pytest.mark.parametrize(
    ("B", "T", "skip", "O"), [(2, 5, 2, 8), (3, 1, 2, 5), (2, 19, 1, 3), (9, 2, 1, 5), (2, 0, 3, 4), (0, 2, 1, 4)]
)
def test_the_last_rows_of_each_batch_entry(place, B, T, skip, O):
    S, K = T + skip, 12
    n, W, dn, g, wider = normal((B, S, K), (K, O), (B, S, O), (B, T, O), (B, S + 1, O + 2))
    last_rows, rows = to_device(n)[:, skip:], n[:, skip:].reshape(B * T, K)
    expected = textbook(n[:, skip:], W)
    assert_close(matmul(last_rows, to_device(W)), expected)
    # onto some rows, the others untouched
    target = to_device(dn)
    last = target[:, skip:]
    assert matmul(last_rows, to_device(W), onto=last) is last
    assert_close(last, expected + dn[:, skip:])
    assert np.array_equal(to_host(target)[:, :skip], dn[:, :skip])
    matmul(to_device(np.ascontiguousarray(n[:, skip:])), to_device(W), onto=last)
    assert_close(last, 2 * expected + dn[:, skip:])
    # a sum over all rows, those of the other matrix in groups or not
    assert_close(weight_gradient(last_rows, to_device(g)), textbook(rows.T, g.reshape(B * T, O)))
    other, here = to_device(wider)[:, skip + 1 :, 1 : O + 1], wider[:, skip + 1 :, 1 : O + 1]
    assert_close(weight_gradient(last_rows, other), textbook(rows.T, here.reshape(B * T, O)))
    assert_close(column_sums(other), here.sum((0, 1), dtype=float))


def test_more_axes_stand_for_their_rows(place):
    x, W, g, onto = normal((2, 3, 4, 5), (5, 6), (2, 6, 4, 6), (2, 3, 5, 6))
    there, factor, target = map(to_device, (x, W, onto))
    for view in ((), np.s_[:, :, 1:3], np.s_[:, 1:3, 1:3]):
        here = x[view]
        assert_close(matmul(there[view], factor), textbook(here, W))
        got = weight_gradient(there[view], there[view])
        assert_close(got, np.einsum("abck,abcn->kn", here, here, dtype=np.float64))
    # groups of rows that do not match
    got = weight_gradient(there[:, 1:], to_device(g)[:, 1:3, :, :4])
    assert_close(got, np.einsum("abck,abcn->kn", x[:, 1:], g[:, 1:3, :, :4], dtype=np.float64))
    with pytest.raises(ValueError, match="onto must consist of rows"):
        matmul(there[:, 1:], factor, onto=target[:, :2, :4])
    for given, into in ((np.s_[1], np.s_[1, :, :4]), (np.s_[1:, :2, 1:3], np.s_[1:, :2, 1:3])):
        target = to_device(onto)
        assert_close(matmul(there[given], factor, onto=target[into]), textbook(x[given], W, onto=onto[into]))


@pytest.mark.parametrize("M", [5, 13])
def test_nothing_else_is_written(place, M):
    for first, N in ((3, 36), (3, 37), (4, 35), (4, 36)):
        a, b = normal((M, 7), (7, N))
        frame = np.full((M + 4, 44), np.nan, np.float32)
        frame[2:-2, first : first + N] = 1
        there = to_device(frame)
        view = there[2:-2, first : first + N]
        assert matmul(to_device(a), to_device(b), onto=view) is view
        assert np.isnan(to_host(there)).sum() == (M + 4) * 44 - M * N
        assert_close(view, 1 + textbook(a, b))


@pytest.mark.parametrize("M", [3, 9])
def test_nan_stays_nan(place, M):
    """After a ReLU, and where another array is not positive."""
    a, b, other = normal((M, 40), (40, 5), (M, 5))
    a[1], other[2, 0] = np.nan, 0
    for options in ({"relu": True}, {"where": other}, {"relu": True, "where": other}):
        got = matmul(to_device(a), to_device(b), **on_device(options))
        assert_close(got, textbook(a, b, **options))


@pytest.mark.parametrize(
    ("M", "N", "K", "whole", "expected"),
    [
        (36_864, 512, 512, False, (128, 1)),  # many rows: one slot
        (512, 512, 36_864, False, (128, 16)),  # a weight's gradient
        (2048, 128, 128, False, (64, 1)),  # small tiles, since there are few
        (128, 128, 2048, False, (64, 8)),
        (1, 1, 10**6, False, (128, 256)),
        (2048, 256, 1024, True, (64, 1)),  # rather small tiles than slots, and one slot in any case
        (384, 512, 512, True, (64, 1)),
    ],
)
def test_how_it_is_divided(M, N, K, whole, expected):
    assert division(M, N, K, whole) == expected


def test_a_kernel_is_given_numbers_of_32_bits():
    """Though a matrix may have more numbers than those can count."""
    a, b, out = (
        primitives.Form(shape, (shape[1], 1), 0) for shape in ((10**5, 40_000), (40_000, 50_000), (10**5, 50_000))
    )
    assert max(primitives.plan(a, False, b, False, 0, out).numbers) < 2**31


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda x: {"a": x, "b": x, "onto": x}, "memory of a, which is read"),
        (lambda x: {"b": x.T, "onto": x}, "memory of b, which is read"),
        (lambda x: {"bias": x[1], "onto": x}, "memory of bias, which is read"),
        (lambda x: {"onto": x.T}, r"onto must consist of rows of numbers side by side, got strides \(1, 4\)"),
    ],
)
def test_onto_in_the_memory_of_an_argument(place, make, said):
    a, b, x = on_device([np.ones((4, 4), np.float32) for _ in range(3)])
    with pytest.raises(ValueError, match=said):
        matmul(**{"a": a, "b": b} | make(x))


@pytest.fixture
def tf32(place, monkeypatch):
    """Skips the test where the GPU has no such tensor cores; otherwise there are no other products by tiles."""
    if place == "gpu" and primitives.driver().capability < primitives.EARLIEST:
        pytest.skip("this GPU has no tf32")
    kernels = {key: kernel for key, kernel in primitives.PRODUCTS.items() if key[0] == "tf32"}
    monkeypatch.setattr(primitives, "PRODUCTS", kernels)


@pytest.mark.parametrize(("of_a", "of_b"), TRANSPOSES)
@pytest.mark.parametrize(("TILE", "M", "K", "N"), [(64, 9, 17, 6), (64, 66, 20, 35), (128, 130, 9, 70)])
def test_the_product_of_rounded_numbers(tf32, settings, TILE, M, K, N, of_a, of_b):
    settings(TILES=(TILE,))
    a, b = normal((M, K), (K, N))
    got = matmul(laid_out(a, of_a), laid_out(b, of_b), precision="tf32")
    assert_close(got, textbook(to_tf32(a), to_tf32(b)))
    again = weight_gradient(laid_out(a.T.copy(), of_a), laid_out(b, of_b), precision="tf32")
    assert_close(again, textbook(to_tf32(a), to_tf32(b)))
    # each factor is off by 2⁻¹¹ of itself at most; half is rounded away from zero
    assert np.array_equal(to_tf32([1 + 2**-11, -1 - 2**-11, 1.0004]), [1 + 2**-10, -1 - 2**-10, 1])
    off = np.abs(to_host(got) - a.astype(np.float64) @ b)
    assert (off <= (2**-10 + 1e-5) * (np.abs(a) @ np.abs(b))).all()


def test_what_is_added(tf32, both_orders):
    a, b, bias, other = map(to_tf32, normal((9, 70), (70, 7), (7,), (9, 7)))
    for K in (70, 20):
        for options in ({"relu": True, "where": other}, {"onto": other}):
            got = matmul(*on_device([a[:, :K], b[:K]]), bias=to_device(bias), **on_device(options), precision="tf32")
            assert_close(got, textbook(a[:, :K], b[:K], bias=bias, **options))


def test_precisions_that_there_are_not(place, monkeypatch):
    x = to_device(np.ones((9, 9), np.float32))
    with pytest.raises(UsageError, match="precision must be one of float32, tf32; got 'float16'"):
        matmul(x, x, precision="float16")
    monkeypatch.setattr(primitives, "driver", lambda: SimpleNamespace(capability=(7, 5)))
    with pytest.raises(UsageError, match=r"capability 8.0 or later, and this one has 7.5: use float32"):
        weight_gradient(x, x, precision="tf32")
    monkeypatch.setattr(primitives, "driver", lambda: SimpleNamespace(capability=(8, 0)))
    assert_close(matmul(x[:3], x, precision="tf32"), np.full((3, 9), 9))

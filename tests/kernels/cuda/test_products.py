"""The matrix product against float64: shapes, layouts, views, what is added, sums in parts, few rows, tf32."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.device.array import to_device, to_host
from tinyprune.kernels.cuda.products import matmul as module
from tinyprune.kernels.cuda.products import product as product_module
from tinyprune.kernels.cuda.products import tensor_cores
from tinyprune.kernels.cuda.products.arithmetic import positive
from tinyprune.kernels.cuda.products.matmul import division, matmul
from tinyprune.kernels.cuda.products.product import LAYOUTS

from ..cpu.test_matmul import BAD_SHAPES, assert_refused
from .checks import product
from .compare import assert_close, cuda, in_float64, normal, on_device, run, slow
from .tensor_core import to_tf32
from .test_operations import feedforward, linear, projections

SHAPES = [(9, 17, 6), (12, 16, 8), (1, 1, 1), (1, 70, 37), (8, 5, 33), (3, 40, 1)]
SHAPES += [(0, 3, 4), (3, 0, 4), (9, 0, 4), (3, 4, 0), (9, 4, 0), (0, 0, 0)]  # nothing to add up
# a little more than a tile; and numbers that can be read four at a time
SHAPES += [slow(65, 37, 67), slow(131, 19, 130), slow(132, 16, 4)]
TRANSPOSES = [(False, False), (False, True), (True, False), (True, True)]


def expected_of(x, W, *added):
    """x · W in float64, and what is added at the end."""
    return sum(added, x.astype(np.float64) @ W.astype(np.float64))


def laid_out(x, layout):
    """The numbers of a matrix in the GPU's memory, in another order or with other numbers between them."""
    rows, columns = x.shape
    if layout.startswith("transposed"):
        return laid_out(x.T.copy(), layout.removeprefix("transposed").strip()).T
    if layout in ("gaps", "gaps of four"):
        skip = 4 if layout == "gaps of four" else 1  # with 1, rows lie fours apart, but none begins on one
        wide = np.full((rows + 1, -(-columns // 4) * 4 + 8), np.nan, np.float32)
        wide[1:, skip : skip + columns] = x
        return to_device(wide)[1:, skip : skip + columns]
    return to_device(x.copy())


def given_as(a, b, transpose_a, transpose_b, layout="plain", **options):
    given = laid_out(a.T if transpose_a else a, layout), laid_out(b.T if transpose_b else b, layout)
    return matmul(*given, transpose_a=transpose_a, transpose_b=transpose_b, **options)


@pytest.fixture
def settings(monkeypatch):

    def to(**values):
        module.plan.cache_clear()
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)

    yield to
    module.plan.cache_clear()


@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
@pytest.mark.parametrize(("M", "K", "N"), SHAPES)
def test_shapes_and_transposes(place, settings, M, K, N, transpose_a, transpose_b):
    settings(TILES=(128 if M > 128 else 64,))
    a, b, bias = normal((M, K), (K, N), (N,))
    assert_close(given_as(a, b, transpose_a, transpose_b, bias=to_device(bias)), expected_of(a, b, bias))


@pytest.mark.parametrize("layout", ["plain", "transposed", "gaps", "gaps of four", "transposed gaps"])
@pytest.mark.parametrize(("M", "added"), [(9, True), (3, True), (9, False)])
def test_layouts_and_what_is_added(place, layout, M, added):
    a, b, c, r = normal((M, 21), (21, 34), (34,), (M, 34))
    options = {"bias": to_device(c), "residual": laid_out(r, layout)} if added else {}
    got = matmul(laid_out(a, layout), laid_out(b, layout), **options, relu=True)
    assert_close(got, np.maximum(expected_of(a, b, *[c, r] * added), 0))


@pytest.mark.slow
@pytest.mark.parametrize("N", [8, 7])
def test_sums_in_parts(place, both_orders, settings, N):
    """Several parts along k, the last one short; groups of rows, and what is added when they are joined."""
    settings(SHORTEST=16)
    a, b, bias, residual = normal((9, 70), (70, N), (N,), (9, N))
    assert division(9, N, 70) == (64, 4)  # of at least two strips each, so that there are three
    device_a, device_b = to_device(a), to_device(b)
    got = matmul(device_a, device_b, bias=to_device(bias), residual=to_device(residual), relu=True)
    assert_close(got, np.maximum(expected_of(a, b, bias, residual), 0))
    got, again = (matmul(to_device(a.T.copy()), device_b, transpose_a=True) for _ in range(2))
    assert_close(got, expected_of(a, b))
    assert np.array_equal(to_host(got), to_host(again))
    test_the_last_rows_of_each_batch_entry(place, 4, 10, 5, 3)


@pytest.mark.parametrize(
    ("B", "T", "skip", "O"), [(2, 5, 2, 8), (3, 1, 2, 5), slow(2, 19, 1, 3), (9, 2, 1, 5), (2, 0, 3, 4), (0, 2, 1, 4)]
)
def test_the_last_rows_of_each_batch_entry(place, B, T, skip, O):
    S, K = T + skip, 12
    n, W, dn, g, wide = normal((B, S, K), (K, O), (B, S, O), (B, T, O), (B, S + 1, O + 2))
    part = to_device(n)[:, skip:]
    rows = n[:, skip:].reshape(B * T, K)
    expected = expected_of(n[:, skip:], W)
    assert_close(matmul(part, to_device(W)), expected)
    # into some rows, the others untouched
    target = to_device(dn)
    last = target[:, skip:]
    assert matmul(part, to_device(W), residual=target[:, skip:], out=last) is last
    assert_close(last, expected + dn[:, skip:])
    assert np.array_equal(to_host(target)[:, :skip], dn[:, :skip])
    matmul(to_device(np.ascontiguousarray(n[:, skip:])), to_device(W), out=last)
    assert_close(last, expected)
    # a sum over all rows, those of the other matrix in groups or not
    assert_close(matmul(part, to_device(g), transpose_a=True), expected_of(rows.T, g.reshape(B * T, O)))
    other = to_device(wide)[:, skip + 1 :, 1 : O + 1]
    expected = expected_of(rows.T, wide[:, skip + 1 :, 1 : O + 1].reshape(B * T, O))
    assert_close(matmul(part, other, transpose_a=True), expected)


@pytest.mark.slow
def test_more_axes_stand_for_their_rows(place):
    x, W, g, out = normal((2, 3, 4, 5), (5, 6), (2, 6, 4, 6), (2, 3, 5, 6))
    there, factor, target = map(to_device, (x, W, out))
    for view in ((), np.s_[:, :, 1:3], np.s_[:, 1:3, 1:3]):
        part = x[view]
        assert_close(matmul(there[view], factor), part.astype(np.float64) @ W)
        got = matmul(there[view], there[view], transpose_a=True)
        assert_close(got, np.einsum("abck,abcn->kn", part, part, dtype=np.float64))
    # groups of rows that do not match
    got = matmul(there[:, 1:], to_device(g)[:, 1:3, :, :4], transpose_a=True)
    assert_close(got, np.einsum("abck,abcn->kn", x[:, 1:], g[:, 1:3, :, :4], dtype=np.float64))
    with pytest.raises(ValueError, match="out must consist of rows"):
        matmul(there[:, 1:], factor, out=target[:, :2, :4])
    for given, into in ((np.s_[1], np.s_[1, :, :4]), (np.s_[1:, :2, 1:3], np.s_[1:, :2, 1:3])):
        assert_close(matmul(there[given], factor, out=target[into]), x[given].astype(np.float64) @ W)


@pytest.mark.parametrize("M", [5, 13])
def test_nothing_else_is_written(place, M):
    for first, N in ((3, 36), (3, 37), (4, 35), (4, 36)):
        a, b = normal((M, 7), (7, N))
        frame = to_device(np.full((M + 4, 44), np.nan, np.float32))
        part = frame[2:-2, first : first + N]
        assert matmul(to_device(a), to_device(b), out=part) is part
        assert_close(part, expected_of(a, b))
        assert np.isnan(to_host(frame)).sum() == (M + 4) * 44 - M * N


@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
@pytest.mark.parametrize("M", [5, slow(61)])
def test_a_bad_number_spoils_its_row_or_column_alone(place, M, transpose_a, transpose_b):
    a, b = normal((M, 37), (37, 35))
    a[M - 1, 3], b[5, 34] = np.nan, np.inf
    with np.errstate(invalid="ignore"):
        got = to_host(given_as(a, b, transpose_a, transpose_b, "gaps"))
    bad = ~np.isfinite(got)
    assert bad[M - 1].all() and bad[:, 34].all() and bad.sum() == M + 35 - 1


@pytest.mark.parametrize("M", [3, 9])
def test_relu_keeps_nan(place, settings, M):
    a, b = normal((M, 40), (40, 5))
    a[1] = np.nan
    for shortest in (256, 16):
        settings(SHORTEST=shortest)
        got = to_host(matmul(to_device(a), to_device(b), relu=True))
        assert np.isnan(got[1]).all() and (np.delete(got, 1, 0) >= 0).all()


@pytest.mark.parametrize("M", [3, 9])
def test_where_another_array_is_positive(place, settings, M):
    """In few rows, in a tile, and where parts are joined; a product that is NaN stays NaN, as with NumPy's · 0."""
    a, b, other = normal((M, 40), (40, 5), (M, 5))
    a[1], other[2, 0] = np.nan, 0
    for shortest in (256, 16):
        settings(SHORTEST=shortest)
        got = to_host(matmul(to_device(a), to_device(b), where=to_device(other)))
        assert np.isnan(got[1]).all()
        expected = a.astype(float) @ b * (other > 0)
        np.testing.assert_allclose(np.delete(got, 1, 0), np.delete(expected, 1, 0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("M", "N", "K", "expected"),
    [
        (36_864, 512, 512, (128, 1)),  # many rows: no parts
        (512, 512, 36_864, (128, 16)),  # a weight's gradient
        (512, 2048, 36_864, (128, 4)),
        (2048, 128, 128, (64, 1)),  # small tiles, since there are few
        (128, 128, 2048, (64, 8)),
        (1, 1, 10**6, (128, 256)),
        (10, 10, 0, (64, 1)),
    ],
)
def test_how_it_is_divided(M, N, K, expected):
    assert division(M, N, K) == expected


@pytest.mark.parametrize(
    ("M", "N", "K", "expected"), [(2048, 256, 1024, (64, 1)), (384, 512, 512, (64, 2)), (2048, 1024, 512, (128, 1))]
)
def test_rather_small_tiles_than_parts(M, N, K, expected):
    assert division(M, N, K, whole=True) == expected


@pytest.mark.parametrize("transposed", ["", "a", "b"])
def test_a_kernel_is_given_numbers_of_32_bits(transposed):
    """Though a matrix may have more numbers than those can count."""
    M, K, N = 100_000, 40_000, 50_000
    a, b = (K, M) if transposed == "a" else (M, K), (N, K) if transposed == "b" else (K, N)
    forms = [module.Form(shape, (shape[1], 1), 0) for shape in (a, b, (M, N))]
    plan = module.plan(forms[0], transposed == "a", forms[1], transposed == "b", 0, forms[2])
    assert max(plan.numbers[0]) < 2**31


def ones(shape=(4, 4)):
    return to_device(np.ones(shape, np.float32))


@pytest.mark.parametrize(("a", "b", "options", "message"), BAD_SHAPES)
def test_bad_shapes(place, a, b, options, message):
    assert_refused(matmul, ones, a, b, options, message)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y: {"a": x, "b": y, "out": x}, "memory of a, which is read"),
        (lambda x, y: {"b": x.T, "out": x}, "memory of b, which is read"),
        (lambda x, y: {"bias": x[1], "out": x}, "memory of bias, which is read"),
        (lambda x, y: {"a": y[1:], "residual": x[:3], "out": x[1:]}, "out must not lie in the memory of residual"),
        (lambda x, y: {"residual": y.T, "out": x}, "residual must be out itself, or lie in memory as it does"),
        (lambda x, y: {"out": x.T}, r"out must consist of rows of numbers side by side, got strides \(1, 4\)"),
    ],
)
def test_out_in_the_memory_of_an_argument(place, make, message):
    with pytest.raises(ValueError, match=message):
        matmul(**{"a": ones(), "b": ones()} | make(ones(), ones()))


@pytest.mark.slow
def test_every_layout(place, both_orders):
    product(product_module, LAYOUTS)


@pytest.mark.parametrize("x", [2.0, -0.0, -2.0, np.inf, -np.inf, np.nan])
def test_positive_part(place, simulated, x):
    assert np.array_equal(positive(np.float32(x)), np.maximum(x, 0), equal_nan=True)


@pytest.fixture
def tf32(place, monkeypatch):
    """Skips the test where the GPU has no such tensor cores; otherwise there are no other products by tiles."""
    if place == "gpu" and tensor_cores.capability() < tensor_cores.EARLIEST:
        pytest.skip(f"a GPU of compute capability {tensor_cores.capability()} has no tf32")
    kernels = {key: kernel for key, kernel in module.PRODUCTS.items() if key[0] == "tf32"}
    monkeypatch.setattr(module, "PRODUCTS", kernels)


@pytest.mark.parametrize(("transpose_a", "transpose_b"), TRANSPOSES)
@pytest.mark.parametrize(("TILE", "M", "K", "N"), [(64, 9, 17, 6), slow(64, 66, 20, 35), slow(128, 130, 9, 70)])
def test_the_product_of_rounded_numbers(tf32, settings, TILE, M, K, N, transpose_a, transpose_b):
    settings(TILES=(TILE,))
    a, b = normal((M, K), (K, N))
    got = given_as(a, b, transpose_a, transpose_b, precision="tf32")
    assert_close(got, to_tf32(a).astype(np.float64) @ to_tf32(b))
    # each factor is off by 2⁻¹¹ of itself at most
    off = np.abs(to_host(got) - a.astype(np.float64) @ b)
    assert (off <= (2**-10 + 1e-5) * (np.abs(a) @ np.abs(b))).all()


def test_what_is_added_and_sums_in_parts(tf32, both_orders, settings):
    settings(SHORTEST=16)
    a, b, bias, residual = map(to_tf32, normal((9, 70), (70, 7), (7,), (9, 7)))
    for K in (70, 20):
        expected = np.maximum(a[:, :K].astype(np.float64) @ b[:K] + bias + residual, 0)
        added = {"bias": to_device(bias), "residual": to_device(residual), "relu": True}
        assert_close(matmul(to_device(a[:, :K]), to_device(b[:K]), **added, precision="tf32"), expected)


@pytest.mark.parametrize(
    ("maker", "case"), [(linear, ((3, 5), 12, 9)), (projections, (3, 5, 4, 12, 9)), (feedforward, ((15,), 12, 9))]
)
def test_operations_in_tf32(tf32, maker, case):
    """Forward and backward: there are no kernels for float32."""
    arguments, douts, _ = maker(*case)
    expected = run(ops, maker.__name__, in_float64([*arguments]), in_float64([*douts]))
    got = run(cuda, maker.__name__, on_device([*arguments]), on_device([*douts]), precision="tf32")
    assert_close(got, expected, tolerance=2e-3)


def test_few_rows_are_multiplied_in_float32(tf32):
    a, b = normal((3, 20), (20, 5))
    assert_close(matmul(to_device(a), to_device(b), precision="tf32"), a.astype(np.float64) @ b)


@pytest.mark.parametrize("x", [0.0, 1.0, 1 + 2**-11, -1 - 2**-11, 1 + 2**-11 - 2**-20, 3e38, np.inf, -np.inf, np.nan])
def test_rounding(place, x):
    """To the nearest of 1, 1 + 2⁻¹⁰, …, and half away from zero."""
    expected = {1 + 2**-11: 1 + 2**-10, -1 - 2**-11: -1 - 2**-10, 1 + 2**-11 - 2**-20: 1}.get(x, x)
    assert to_tf32(x) == pytest.approx(expected, rel=2**-11 if x == 3e38 else 0, abs=0, nan_ok=True)


def test_precisions_that_there_are_not(place, monkeypatch):
    x = to_device(np.ones((9, 9), np.float32))
    with pytest.raises(UsageError, match="precision must be one of float32, tf32; got 'float16'"):
        cuda.linear_forward(x, x, precision="float16")
    monkeypatch.setattr(tensor_cores, "SIMULATED", True)
    monkeypatch.setattr(tensor_cores.EMULATION, "mma", None)
    with pytest.raises(UsageError, match="tf32 takes the tensor cores of a GPU, and Numba's simulator has none"):
        cuda.feedforward_forward(x, x, x[0], x, x[0], precision="tf32")
    monkeypatch.setattr(tensor_cores, "SIMULATED", False)
    monkeypatch.setattr(tensor_cores, "capability", lambda: (7, 5))
    with pytest.raises(UsageError, match=r"capability 8.0 or later, and this one has 7.5: use float32"):
        module.check_precision("tf32")
    monkeypatch.setattr(tensor_cores, "capability", lambda: (8, 0))
    module.check_precision("tf32")

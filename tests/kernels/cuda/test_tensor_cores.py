"""Products in tf32: exactly those of rounded numbers, and no farther from the exact ones than that explains."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.errors import UsageError
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda import matmul as door
from tinyprune.kernels.cuda import tensor_cores
from tinyprune.kernels.cuda.array import to_device, to_host
from tinyprune.kernels.cuda.matmul import matmul
from tinyprune.kernels.cuda.product import LAYOUTS

from .compare import assert_close, in_float64, normal, on_device, run
from .tensor_core import to_tf32
from .test_matmul import settings  # noqa: F401

cuda = get_backend("cuda")


@pytest.fixture
def tf32(place, monkeypatch):
    """Skips the test where the GPU has no such tensor cores; otherwise there are no other products by tiles."""
    if place == "gpu" and tensor_cores.capability() < tensor_cores.EARLIEST:
        pytest.skip(f"a GPU of compute capability {tensor_cores.capability()} has no tf32")
    kernels = {key: kernel for key, kernel in door.PRODUCTS.items() if key[0] == "tf32"}
    monkeypatch.setattr(door, "PRODUCTS", kernels)


def product(a, b, a_along_k, b_along_k, **options):
    """a · b in tf32, from a and b as they are or transposed in memory."""
    a, b = a if a_along_k else a.T.copy(), b.T.copy() if b_along_k else b
    transposes = {"transpose_a": not a_along_k, "transpose_b": b_along_k}
    return matmul(to_device(a), to_device(b), **transposes, precision="tf32", **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("TILE", "M", "K", "N"), [(64, 9, 17, 6), (64, 66, 20, 35), (128, 130, 9, 70)])
def test_the_product_of_rounded_numbers(tf32, settings, TILE, M, K, N, layout):  # noqa: F811
    settings(TILES=(TILE,))
    a, b = normal((M, K), (K, N))
    got = product(a, b, *layout)
    assert_close(got, to_tf32(a).astype(np.float64) @ to_tf32(b))
    # each factor is off by 2⁻¹¹ of itself at most
    off = np.abs(to_host(got) - a.astype(np.float64) @ b)
    assert (off <= (2**-10 + 1e-5) * (np.abs(a) @ np.abs(b))).all()


def test_what_is_added_and_sums_in_parts(tf32, both_orders, settings):  # noqa: F811
    settings(SHORTEST=16)
    a, b, bias, residual = map(to_tf32, normal((9, 70), (70, 7), (7,), (9, 7)))
    for K in (70, 20):
        expected = np.maximum(a[:, :K].astype(np.float64) @ b[:K] + bias + residual, 0)
        got = product(a[:, :K], b[:K], True, False, bias=to_device(bias), residual=to_device(residual), relu=True)
        assert_close(got, expected)


def test_few_rows_are_multiplied_in_float32(tf32):
    a, b = normal((3, 20), (20, 5))
    assert_close(product(a, b, True, False), a.astype(np.float64) @ b)


@pytest.mark.parametrize("name", ["linear", "projections", "feedforward"])
def test_operations(tf32, name):
    """Forward and backward, all in tf32."""
    x, W, V, U, b, c = normal((3, 5, 12), (12, 9), (12, 9), (9, 12), (9,), (12,))
    q, kv = normal((3, 4, 9), (3, 5, 9))
    arguments, douts = {
        "linear": ((x, W, b), (kv,)),
        "projections": ((x, W, V, W + V, 4), (q, kv, kv)),
        "feedforward": ((x, W, b, U, c), (x,)),
    }[name]
    expected = run(ops, name, [in_float64(a) for a in arguments], [in_float64(d) for d in douts])
    given = [on_device(a) for a in arguments], [on_device(d) for d in douts]
    got = run(cuda, name, *given, precision="tf32")
    assert_close(got, expected, tolerance=2e-3)


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
        door.check_precision("tf32")
    monkeypatch.setattr(tensor_cores, "capability", lambda: (8, 0))
    door.check_precision("tf32")

"""Work that waits: whoever reads a result gets it, whatever happened in between, and few launches are needed."""

from unittest import mock

import numpy as np
import pytest

from tinyprune.kernels.cuda.device.array import to_device, to_host
from tinyprune.kernels.cuda.device.memory import POOL
from tinyprune.kernels.cuda.layers.add import add
from tinyprune.kernels.cuda.parts import sums
from tinyprune.kernels.cuda.products import later
from tinyprune.kernels.cuda.products import matmul as products
from tinyprune.kernels.cuda.products.later import sum_later, weight_gradient
from tinyprune.kernels.cuda.products.matmul import linear_maps, matmul
from tinyprune.kernels.cuda.updates.sgd import sgd_update

from .compare import assert_close, normal


@pytest.fixture(autouse=True)
def nothing_waits():
    later.finish()
    yield
    later.finish()


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    """Sums are split already where the simulator gets through them soon."""
    monkeypatch.setattr(products, "SHORTEST", 32)
    products.plan.cache_clear()
    yield
    products.plan.cache_clear()


@pytest.fixture
def launches(monkeypatch):
    """Names and numbers of pieces of the launches for several pieces of work."""
    seen, planned = [], later.launch_all

    def launch_all(some):
        seen.extend((launch.kernel.__name__, launch.count) for launch in some)
        planned(some)

    monkeypatch.setattr(later, "launch_all", launch_all)
    monkeypatch.setattr(products, "launch_all", launch_all)
    return seen


def test_all_are_done_when_one_is_read(place, launches):
    """Products of two sizes, one of them in parts; sums of one run and of runs of runs; all of other numbers."""
    shapes = [(sums.RUN + 1, 35), (0, 3), (3, 1), (3, 0), (sums.RUN**2 + 1, 1)]
    matrices = normal(*shapes)
    added = [sum_later(to_device(x)) for x in matrices]
    pairs = [normal((5, 3, 9), (5, 3, 70)), normal((70, 4), (70, 66)), normal((2, 0), (2, 3))]
    multiplied = [weight_gradient(*map(to_device, pair)) for pair in pairs]
    assert not launches
    for got, x in zip(added, matrices, strict=True):
        assert_close(got, x.sum(0, dtype=float))
    for got, (x, dout) in zip(multiplied, pairs, strict=True):
        axes = list(range(x.ndim - 1))
        assert_close(got, np.tensordot(x.astype(float), dout, (axes, axes)))
    assert launches == [
        ("products_float32_64_atb", 3),
        ("run_sums", 6),  # with the slots of a product
        ("run_sums", 2),
        ("run_sums", 1),
    ]


def test_bits_are_those_of_a_product_at_once(place):
    x, dout = map(to_device, normal((70, 4), (70, 5)))
    assert np.array_equal(to_host(weight_gradient(x, dout)), to_host(matmul(x, dout, transpose_a=True)))


def test_views_and_copies_of_what_waits(place):
    (x,) = normal((4, 6))
    total = x.sum(0, dtype=float)
    for view, expected in ((lambda y: y[2:5], total[2:5]), (lambda y: y.reshape(2, 3).T, total.reshape(2, 3).T)):
        assert_close(view(sum_later(to_device(x))), expected)
    assert float(sum_later(to_device(x[:, :1]))) == pytest.approx(total[0], rel=1e-5)


def test_what_waits_is_read_by_a_kernel_and_by_what_waits(place, launches):
    x, y = normal((4, 6), (6, 2))
    total = sum_later(to_device(x))
    twice = add(total, total)
    assert len(launches) == 1
    chained = weight_gradient(sum_later(to_device(x)).reshape(6, 1), to_device(y))
    assert len(launches) == 2  # what the second reads is there before it waits
    assert_close((twice, chained), (2 * x.sum(0, dtype=float), x.sum(0, dtype=float).reshape(1, 6) @ y))


def test_nobody_reads_it(place):
    used = 0
    for _ in range(2):  # the table of sizes, which the first launch makes, is kept
        later.finish()
        used = POOL.bytes_used
        sum_later(to_device(np.ones((3, 2), np.float32)))
    assert POOL.bytes_used > used
    later.finish()
    assert POOL.bytes_used == used and not (later.PRODUCTS or later.SUMS or later.KEPT)


def test_little_memory_is_kept(place, launches, monkeypatch):
    """An array that two tasks read is counted once."""
    x = to_device(np.ones((64, 8), np.float32))
    monkeypatch.setattr(later, "ROOM", x.lease.size)
    waits = [sum_later(x), sum_later(x), sum_later(to_device(np.full((64, 8), 2, np.float32)))]
    assert not launches
    waits.append(sum_later(x))
    assert launches == [("run_sums", 3)]
    for got, expected in zip(waits, (64, 64, 128, 64), strict=True):
        assert np.array_equal(to_host(got), np.full(8, expected))


def test_a_failure_loses_nothing(place):
    """The GPU has no room for slots, or refuses a launch."""
    x, dout = normal((70, 3), (70, 2))
    for where, error in ((f"{later.__name__}.empty", MemoryError), (f"{later.__name__}.launch_all", RuntimeError)):
        total, product = sum_later(to_device(x)), weight_gradient(to_device(x), to_device(dout))
        for _ in range(2):
            with mock.patch(where, side_effect=error), pytest.raises(error):
                to_host(total)
        assert_close((total, product), (x.sum(0, dtype=float), x.T.astype(float) @ dout))


def test_what_is_about_to_change_is_read_before(place):
    x, y = normal((3, 4), (3, 4))
    expected = x.sum(0, dtype=float)
    param, momentum, read = to_device(x), to_device(np.zeros_like(x)), to_device(x)
    before = [sum_later(param), sum_later(momentum), sum_later(read)]
    sgd_update(param, to_device(y), momentum, lr=0.1, decay=0, beta1=0.9)
    assert_close((before[0], before[1]), (expected, np.zeros(4)))
    before = sum_later(read)
    matmul(to_device(np.eye(3, dtype=np.float32)), to_device(y), out=read)
    assert_close((before, read), (expected, y))


@pytest.mark.parametrize("T", [9, 12])
def test_linear_maps_share_a_launch(place, launches, T):
    """Biases or none, rows in groups, parts of a sum that cannot wait; and so few rows that they do not share."""
    n, W, V, bias = normal((2, 12, 70), (70, 66), (70, 5), (5,))
    given = to_device(n)
    maps = [(given[:, 12 - T :], to_device(W), None), (given, to_device(V), to_device(bias))]
    wide = n.astype(float)
    assert_close(linear_maps(maps), [wide[:, 12 - T :] @ W, wide @ V + bias])
    assert launches == [("products_float32_64_ab", 2)]
    launches.clear()
    assert_close(linear_maps([(given[0, :2], *maps[0][1:]), (given[0, :3], *maps[1][1:])])[1], wide[0, :3] @ V + bias)
    assert not launches

"""The device: launches, arrays with NumPy's views, the pool of memory."""

import gc
from unittest import mock

import numpy as np
import pytest

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.device.array import copied, empty, to_device, to_host
from tinyprune.kernels.cuda.device.instructions import load4, store4
from tinyprune.kernels.cuda.device.jit import KERNELS, blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.device.memory import POOL, DevicePool
from tinyprune.kernels.pool import size_class

from .compare import normal


def made(*arguments, **options):
    """`kernel`, without leaving it among those of the package."""

    def decorate(function):
        result = kernel(*arguments, **options)(function)
        KERNELS.pop()
        return result

    return decorate


def test_launch_and_vectors(place):
    @made(floats, floats, int32, float32, threads=64)
    def scale(x, out, n, factor):
        """out = x · factor, four at a time."""
        i = 4 * cuda.grid(1)
        if i < n:
            a, b, c, d = load4(x, i)
            store4(out, i, a * factor, b * factor, c * factor, d * factor)

    x, out = np.arange(520, dtype=np.float32), empty(520)
    scale(blocks(130, 64), to_device(x), out, 520, np.float32(0.5))
    assert np.array_equal(to_host(out), x / 2)
    for none in (0, (3, 0)):
        scale(none, None, None, 0, np.float32(1))


def test_there_and_back(place):
    for x in (*normal((), (1,), (0,), (3, 0, 2), (2, 3, 5)), np.arange(6, dtype=np.int32).reshape(2, 3)):
        there = to_device(x)
        assert (there.shape, there.ndim, there.size, there.dtype) == (x.shape, x.ndim, x.size, x.dtype)
        assert np.array_equal(to_host(there), x) and to_host(there).shape == x.shape
    assert to_device(there) is there and to_host(x) is x
    assert float(to_device(np.float32([[2.5]]))) == 2.5


INDICES = [1, -1, np.s_[1:], np.s_[2:1], np.s_[:, -2:], np.s_[:, 1, 2:4], np.s_[:, :, 0], (1, 2, 3)]
VIEWS = [lambda x, index=i: x[index] for i in INDICES]
VIEWS += [lambda x: x.T, lambda x: x[0].T[1:3], lambda x: x[1:2].reshape(-1), lambda x: x.reshape((15, 4))]
VIEWS += [lambda x: x.reshape(3, -1, 5)[:, 1:], lambda x: x.real, lambda x: x.T.reshape(-1, 6)]


@pytest.mark.parametrize("view", VIEWS)
def test_views_are_numpys(place, view):
    (x,) = normal((3, 4, 5))
    expected, got = view(x), view(to_device(x))
    assert got.shape == expected.shape and got.contiguous == expected.flags.c_contiguous
    assert np.array_equal(to_host(got), expected)
    assert np.array_equal(to_host(copied(got)), expected) and copied(got).contiguous


@pytest.mark.parametrize(
    ("use", "kind", "said"),
    [
        (lambda x: to_device(np.zeros(2)), ValueError, "computes in float32, got an array of float64"),
        (lambda x: x.reshape(4), ValueError, r"cannot reshape \(2, 3\) into \(4,\)"),
        (lambda x: empty((2**20, 2**11)), UsageError, "2,147,483,648 numbers is more than a kernel can count"),
        *[(lambda x, index=i: x[index], IndexError, None) for i in (2, -3, (0, 3), (0, 0, 0))],
        (lambda x: x[::2], IndexError, "step 1"),
        (np.asarray, TypeError, "to_host copies it"),
        (lambda x: x + x, TypeError, None),
    ],
)
def test_refusals(place, use, kind, said):
    x = to_device(np.zeros((2, 3), np.float32))
    with pytest.raises(kind, match=said):
        use(x)
    assert len(x) == 2 and repr(x) == "DeviceArray(float32, (2, 3))" and empty(3).shape == (3,)


def test_a_block_comes_back_when_its_last_view_is_gone(place):
    POOL.clear()
    used, size = POOL.bytes_used, size_class(4000)
    x = to_device(np.arange(1000, dtype=np.float32))
    block, view = x.storage.address, x[10:]
    del x
    assert empty(1000).storage.address is not block and to_host(view)[0] == 10
    assert POOL.bytes_used == used + size and 4000 <= size <= 4500
    del view
    assert POOL.bytes_used == used and POOL.bytes_free == 2 * size
    assert empty(1000).storage.address is block


def fail(x):
    raise ValueError("a kept error has a traceback, and that the arrays of the functions in it")


def in_cycle(x):
    cycle = [x]
    cycle.append(cycle)


def use_memory(rng):
    """Make arrays and let go of them, in random order: by cycles, kept errors, views, and a pool that is cleared."""
    arrays, errors = [], []
    for number in range(30):
        x = to_device(np.full(rng.integers(1, 3000), number, np.float32))
        match rng.integers(6):
            case 0:
                in_cycle(x)
            case 1:
                with pytest.raises(ValueError, match="kept") as raised:
                    fail(x)
                errors.append(raised.value)
            case 2:
                arrays.append((number, x[len(x) // 2 :]))
            case 3:
                gc.collect()
                POOL.clear()
            case 4:
                errors.clear()
            case 5:
                arrays = [(number, x), *arrays[rng.integers(2) :]]
        assert all((to_host(y) == written).all() for written, y in arrays)


@pytest.mark.parametrize("seed", range(0, 200, 50))
def test_whatever_frees_arrays_each_has_memory_that_no_other_has(place, seed):
    gc.collect()
    gc.freeze()  # so that a collection is quick
    used = POOL.bytes_used
    for rng in map(np.random.default_rng, range(seed, seed + 50)):
        use_memory(rng)
        gc.collect()
        assert POOL.bytes_used == used
    gc.unfreeze()


def test_out_of_memory_is_said_after_idle_blocks_were_given_back(place):
    pool, given_back = DevicePool(), []
    pool.clear = lambda: given_back.append(True)
    pool.take(3 * 2**20)
    pool.allocate = mock.Mock(side_effect=MemoryError)
    with pytest.raises(MemoryError, match="the GPU has no room for 8 MiB more beside the 3 MiB in use here"):
        pool.take(2**23)
    assert given_back == [True]

"""Launching, and what the simulator of these tests finds that Numba's own does not."""

import numpy as np
import pytest

from tinyprune.kernels.cuda.array import empty, to_device, to_host
from tinyprune.kernels.cuda.jit import KERNELS, blocks, cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.vectors import load4, store4

from . import turns


def made(*arguments, **options):
    """`kernel`, without leaving it among those of the package."""

    def decorate(function):
        result = kernel(*arguments, **options)(function)
        KERNELS.pop()
        return result

    return decorate


@made(floats, floats, int32, float32, threads=64)
def scale(x, out, n, factor):
    """out = x · factor, four at a time."""
    i = 4 * cuda.grid(1)
    if i < n:
        a, b, c, d = load4(x, i)
        store4(out, i, a * factor, b * factor, c * factor, d * factor)


def test_launch_and_vectors(place):
    x, out = np.arange(520, dtype=np.float32), empty(520)
    scale(blocks(130, 64), to_device(x), out, 520, np.float32(0.5))
    assert np.array_equal(to_host(out), x / 2)


def test_no_blocks_are_nothing_to_do(place):
    scale(0, None, None, 0, np.float32(1))
    scale((3, 0), None, None, 0, np.float32(1))


@pytest.mark.parametrize("where", [-1, 5])
def test_an_index_outside_is_refused_in_the_simulator(place, where):
    if place == "gpu":
        pytest.skip("a GPU reads foreign memory without a word")

    @made(floats, int32, threads=1)
    def write(x, i):
        x[i] = float32(1)

    @made(floats, floats, int32, threads=1)
    def read(x, out, i):
        out[0] = x[i]

    x, out = to_device(np.zeros(5, np.float32)), empty(1)
    with pytest.raises(IndexError, match=f"write at {where} of 5 entries"):
        write(1, x, where)
    with pytest.raises(IndexError, match=f"read at {where} of 5 entries"):
        read(1, x, out, where)
    with pytest.raises(IndexError, match="of 0 entries"):
        write(1, None, 0)


def test_a_barrier_that_some_miss_is_refused_in_the_simulator(place, both_orders):
    if place == "gpu":
        pytest.skip("a GPU may wait for ever")

    @made(floats, threads=64)
    def some(x):
        if cuda.threadIdx.x < 33:
            cuda.syncthreads()
        x[cuda.threadIdx.x] = float32(1)

    @made(floats, threads=64)
    def different(x):
        if cuda.threadIdx.x < 33:
            cuda.syncthreads()
        else:
            cuda.syncthreads()
        x[cuda.threadIdx.x] = float32(1)

    for launch in (some, different):
        with pytest.raises(AssertionError, match="not all threads of the block come to the barrier"):
            launch(1, empty(64))
    assert turns.current is None


def test_shared_memory_is_fresh_for_each_block(place):
    if place == "gpu":
        pytest.skip("a GPU leaves there what was there")

    @made(floats, threads=2)
    def copy(out):
        tile = cuda.shared.array(2, float32)
        x = cuda.threadIdx.x
        if cuda.blockIdx.x == 0:
            tile[x] = float32(7)
        out[2 * cuda.blockIdx.x + x] = tile[x]

    out = empty(4)
    copy(2, out)
    assert np.array_equal(to_host(out)[:2], [7, 7]) and np.isnan(to_host(out)[2:]).all()


def test_warps_hand_numbers_to_each_other_in_the_simulator(place, both_orders):
    if place == "gpu":
        pytest.skip("a GPU has instructions for it")

    @made(floats, threads=64)
    def hand(out):
        x = cuda.threadIdx.x
        for n, number in enumerate(turns.exchange("here", x)):
            out[32 * x + n] = float32(number)

    @made(floats, threads=64)
    def some(out):
        if cuda.threadIdx.x % 2:
            turns.exchange("here", 0)

    out = empty((64, 32))
    hand(1, out)
    assert np.array_equal(to_host(out), np.repeat(np.arange(64).reshape(2, 32), 32, 0))
    with pytest.raises(AssertionError, match="not all threads of the warp hand in numbers for here"):
        some(1, out)

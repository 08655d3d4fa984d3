"""Recycled memory: never two owners at once, always on a cache line, not hoarded."""

import gc
from unittest import mock

import numpy as np
import pytest

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.workspace import LINE, POOL, ArrayPool, empty, size_class


def address(x: np.ndarray) -> int:
    return x.ctypes.data


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
@pytest.mark.parametrize("shape", [7, (3, 0), (5, 5), 1024, (33, 65), (2, 3, 4, 1000)])
def test_like_numpys(shape, dtype):
    x, like = empty(shape, dtype), np.empty(shape, dtype)
    assert (x.shape, x.dtype, x.strides) == (like.shape, like.dtype, like.strides)
    assert x.flags.carray and (x.nbytes < 4096 or address(x) % LINE == 0)
    x[...] = 1
    assert x.sum() == x.size


def test_recycled_when_the_last_view_is_gone():
    x = empty((50, 100), np.float32)
    place = address(x)
    view = x[3:, ::2].reshape(-1, 1)[1:].T
    del x
    assert address(empty((50, 100), np.float32)) != place
    del view
    assert address(empty((50, 100), np.float32)) == place


def test_living_arrays_never_overlap(rng):
    alive = {}
    for number in range(500):
        x = empty(int(rng.integers(1100, 3000)), np.float32)
        x[...] = number
        alive[number] = x[:: int(rng.integers(1, 4))]
        if len(alive) > 20:
            del alive[int(rng.choice(list(alive)))]
        assert all((values == key).all() for key, values in alive.items())


def test_an_array_outlives_the_pool_it_is_from():
    x = empty(5000, np.float64)
    x[:] = 0
    POOL.clear()
    assert not x.any()


def test_counts_and_gives_back_what_lies_idle():
    gc.collect()
    pool = ArrayPool()
    first = pool.take(8192)
    pool.give(8192, first)
    assert (pool.bytes_used, pool.bytes_free) == (0, 8192)
    assert pool.take(8192) is first
    assert (pool.bytes_used, pool.bytes_free) == (8192, 0)
    second = pool.take(8192)
    pool.give(8192, first)
    pool.take(4096)  # of another size, while less lies idle than is in use
    assert pool.bytes_free == 8192
    pool.give(8192, second)
    pool.take(1024)  # and now more
    assert pool.bytes_free == 0 and not pool.free


def test_idle_blocks_are_given_up_for_one_that_finds_no_room(monkeypatch):
    pool = ArrayPool()
    pool.take(2**20)
    pool.give(8192, pool.take(8192))
    room = []

    def new(size):
        room.append(not pool.free)
        if not room[-1]:
            raise MemoryError
        return size

    monkeypatch.setattr(workspace, "Buffer", new)
    used = pool.bytes_used
    assert pool.take(4096) == 4096
    assert room == [False, True]
    assert (pool.bytes_used, pool.bytes_free) == (used + 4096, 0)
    monkeypatch.setattr(workspace, "Buffer", mock.Mock(side_effect=MemoryError))
    with pytest.raises(MemoryError):
        pool.take(16384)
    assert pool.bytes_used == used + 4096


@pytest.mark.parametrize("nbytes", [1, 64, 65, 4096, 5000, 10**6, 2**30 + 1])
def test_size_class(nbytes):
    size = size_class(nbytes)
    assert nbytes <= size <= max(64, nbytes * 9 / 8 + 64)
    assert size % LINE == 0 and size_class(size) == size


def test_a_block_that_returns_while_the_pool_is_cleared_is_released(monkeypatch):
    """As when Python's collector runs in between."""
    pool, released = ArrayPool(), []

    def release(block):
        if not released:
            pool.give(128, "late")
        released.append(block)

    monkeypatch.setattr(pool, "release", release)
    pool.give(64, "early")
    pool.clear()
    assert released == ["early", "late"] and pool.bytes_free == 0 and not pool.free

"""The pool of the GPU's memory: blocks are recycled, never handed out twice, and given back."""

import numpy as np
import pytest

from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda import memory
from tinyprune.kernels.cuda.array import empty, to_device, to_host
from tinyprune.kernels.cuda.memory import POOL, Pool, size_class


def test_size_classes():
    for entries in (*range(1, 300), 10**4, 10**6 + 1):
        assert (
            entries <= size_class(entries) <= max(entries * 1.126 + 1, entries + 64) and size_class(entries) % 64 == 0
        )


def test_a_block_comes_back_when_its_last_view_is_gone(place):
    x = to_device(np.arange(1000, dtype=np.float32))
    block, view = x.lease.block, x[10:]
    del x
    assert empty(1000).lease.block is not block
    assert to_host(view)[0] == 10
    del view
    assert empty(1000).lease.block is block


def test_fresh_memory_is_garbage_in_the_simulator(place):
    if place == "simulator":
        assert np.isnan(to_host(empty(100))).all()


def test_bytes_are_counted(place):
    POOL.clear()
    used = POOL.entries_used
    x = empty(1000)
    assert POOL.entries_used == used + size_class(1000) and POOL.entries_free == 0
    del x
    assert POOL.entries_used == used and POOL.entries_free == size_class(1000)
    POOL.clear()
    assert POOL.entries_free == 0


def test_out_of_memory_is_said_after_idle_blocks_were_given_back(place, monkeypatch):
    pool, allocate, given_back = Pool(), memory.allocate, []
    pool.clear = lambda: given_back.append(True)
    monkeypatch.setattr(memory, "allocate", lambda size: allocate(size) if size < 1000 else no_room())

    def no_room():
        raise MemoryError

    pool.take(512)
    with pytest.raises(MemoryError, match="the GPU has no room for 8 MiB more beside the 0 MiB in use here"):
        pool.take(2**21)
    assert given_back


@pytest.mark.parametrize(
    ("error", "said", "kind"),
    [
        ("CudaAPIError", "[2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY", MemoryError),
        ("CUDAError", "CUDA_ERROR_OUT_OF_MEMORY: The API call failed", MemoryError),
        ("CUDAError", "CUDA_ERROR_ILLEGAL_ADDRESS: While executing a kernel", TinypruneError),
    ],
)
def test_what_the_driver_says_becomes_one_line(place, monkeypatch, error, said, kind):
    """Its errors are of two libraries, without a common ancestor."""

    def refuse(*_):
        raise type(error, (Exception,), {})(said)

    monkeypatch.setattr(memory, "SIMULATED", False)
    monkeypatch.setattr(memory.cuda, "device_array", refuse)
    with pytest.raises(kind, match="the GPU has no room for 0 MiB" if kind is MemoryError else "the GPU has failed"):
        Pool().take(64)

"""The driver: what is copied and launched, what its errors become; and kernels kept on disk. No GPU is needed."""

import ctypes
import gc
import os
import struct
import threading
from collections import Counter
from enum import IntEnum
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest

from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda import compiled
from tinyprune.kernels.cuda.device import driver, jit, memory
from tinyprune.kernels.cuda.device.jit import float32, float64, floats, int32, types, uint32


class CUresult(IntEnum):
    """Some of the driver's results."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


HANDLES = ("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuEventCreate")


class Machine:
    """Functions of `cuda.bindings.driver` that count their calls and remember what they launch.

    The GPU's memory is main memory.
    """

    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0
    )

    def __init__(self):
        self.calls, self.threads = Counter(), set()
        self.memory, self.pinned, self.launched, self.result = {}, {}, [], CUresult.CUDA_SUCCESS
        self.broken = ""  # the function that returns `result`

    def __getattr__(self, name):
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments):
            if name == "cuCtxSetCurrent":
                self.threads.add(threading.get_ident())
            elif name == "cuCtxSynchronize" and threading.get_ident() not in self.threads:
                return (CUresult.CUDA_ERROR_INVALID_CONTEXT,)
            self.calls[name] += 1
            return (self.result if name == self.broken else CUresult.CUDA_SUCCESS, *self.answer(name, *arguments))

        setattr(self, name, call)
        return call

    def answer(self, name, *arguments):
        """What a function returns beside its status."""
        if name in ("cuMemAlloc", "cuMemAllocHost"):
            block = ctypes.create_string_buffer(arguments[0])
            (self.memory if name == "cuMemAlloc" else self.pinned)[ctypes.addressof(block)] = block
            return (ctypes.addressof(block),)
        if name == "cuMemFree":
            del self.memory[arguments[0]]
        elif name.startswith("cuMemcpy"):
            ctypes.memmove(*arguments[:3])
        elif name == "cuLaunchKernel":
            kernel, *sizes, extra = arguments
            pointer, buffer, size, count, end = (ctypes.c_void_p * 5).from_address(extra)
            assert (pointer, size, end) == (1, 2, None)
            packed = ctypes.string_at(buffer, ctypes.c_size_t.from_address(count).value)
            self.launched.append((kernel, tuple(sizes[:6]), packed))
        elif name == "cuGetErrorString":
            return (b"it is broken",)
        return arguments[:1] if name == "cuDeviceGetAttribute" else (0,) if name in HANDLES else ()


@pytest.fixture
def machine():
    return Machine()


@pytest.fixture
def gpu(machine):
    return driver.Driver(machine)


def test_numbers_come_there_and_back(gpu, machine, monkeypatch):
    """What is small goes over pinned memory, which is waited for only when it is full."""
    monkeypatch.setattr(driver, "STAGING", 1024)
    address = gpu.allocate(4000)
    for n in (1, 60, 200, 1, 100, 128, 64):
        given, found = np.random.default_rng(n).standard_normal(n, np.float32), np.empty(n, np.float32)
        gpu.write(address, given)
        gpu.read(address, found)
        assert np.array_equal(given, found)
    # 256, 256 (200 numbers are too many), 256 → 768, 512 do not fit, 512 + 512, 256 do not fit
    assert machine.calls["cuMemcpyHtoD"] == 1 and machine.calls["cuMemcpyHtoDAsync"] == 6
    assert machine.calls["cuCtxSynchronize"] == 2 and machine.calls["cuMemAllocHost"] == 1
    gpu.free(address)
    assert machine.memory == {}


def test_numbers_are_read_with_one_wait(gpu, machine, monkeypatch):
    """As they were, though they have changed by the time that they are asked for."""
    monkeypatch.setattr(driver, "STAGING", 1024)
    monkeypatch.setattr(driver, "RESULTS", 3)
    address = gpu.allocate(512)
    gpu.write(address, np.array([0.1, np.inf]))
    places = [(address + 8, np.dtype(float)), (address, np.dtype(float)), (address + 4, np.dtype(np.float32))]
    numbers = gpu.begin_read(places)
    for _ in range(4):  # what is brought meanwhile takes other places
        gpu.write(address, np.zeros(64))
    assert machine.calls["cuEventRecord"] == 1 and machine.calls["cuEventSynchronize"] == 0
    assert numbers() == [np.inf, 0.1, np.frombuffer(np.array(0.1), np.float32)[1]]
    assert machine.calls["cuEventSynchronize"] == 1
    assert gpu.begin_read(places[1:2])() == [0.0] and gpu.begin_read([])() == []
    assert machine.calls["cuEventCreate"] == 1 and machine.calls["cuMemcpyDtoH"] == 0
    with pytest.raises(ValueError, match="at most 3 numbers are read at a time, got 6"):
        gpu.begin_read(places * 2)


@pytest.fixture
def pool(gpu, monkeypatch):
    """A pool of memory of that GPU."""
    monkeypatch.setattr(memory, "driver", lambda: gpu)
    monkeypatch.setattr(memory, "POOL", memory.DevicePool())
    return memory.POOL


def test_blocks_are_freed_when_the_pool_is_cleared(pool, machine):
    blocks = [pool.take(64), pool.take(128)]
    pool.give(64, blocks[0])
    pool.clear()
    assert list(machine.memory) == blocks[1:] and pool.bytes_free == 0
    machine.broken, machine.result = "cuMemAlloc", CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(MemoryError):
        pool.take(256)


def test_a_block_of_an_array_in_a_cycle_is_not_freed_under_the_next_one(pool, machine):
    """The collector finalises an array and what it holds, in any order: only the pool may free its block."""
    storage = memory.Storage(16)
    cycle = [storage]
    cycle.append(cycle)
    address = storage.address
    del storage, cycle
    gc.collect()
    assert memory.Storage(16).address == address and address in machine.memory


def test_another_thread_gets_the_context(gpu, machine):
    thread = threading.Thread(target=gpu.synchronize)
    thread.start()
    thread.join()
    assert machine.calls["cuCtxSynchronize"] == 1 and len(machine.threads) == 2


@pytest.mark.parametrize("check", [False, True])
def test_a_kernel_that_fails_is_named(machine, monkeypatch, check):
    monkeypatch.setenv("TINYPRUNE_CUDA_CHECK", str(int(check)))
    gpu, arguments = driver.Driver(machine), driver.Packed(4)
    arguments.buffer[:] = np.arange(4)
    launch = "compiled", (3, 2, 1), (32, 4, 1), arguments, "double"
    gpu.launch(*launch)
    assert machine.launched == [("compiled", (3, 2, 1, 32, 4, 1), bytes(range(4)))]
    assert machine.calls["cuCtxSynchronize"] == check  # whether it has waited
    machine.broken = "cuCtxSynchronize" if check else "cuLaunchKernel"
    machine.result = CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    where = "in the kernel double" if check else "at or before the kernel double; TINYPRUNE_CUDA_CHECK=1 finds it"
    said = rf"^the GPU has failed: it is broken \(CUDA_ERROR_ILLEGAL_ADDRESS\), {where}$"
    with pytest.raises(TinypruneError, match=said):
        gpu.launch(*launch)


def test_arguments_are_packed_as_the_gpu_reads_them():
    """Each number lies on a multiple of its size."""
    kinds = (int32, floats, float32, types.UniTuple(float32, 2), uint32, float64, types.CPointer(floats))
    packing = struct.Struct("@" + "".join(map(jit.format_of, kinds)))
    found = packing.pack(np.int32(-1), 2**40, np.float32(0.5), 1.5, 2.5, 7, 0.1, 0)
    number = np.uint64(2**40).tobytes()
    assert found[:16] == b"\xff\xff\xff\xff\0\0\0\0" + number
    assert np.frombuffer(found[16:28], np.float32).tolist() == [0.5, 1.5, 2.5]
    assert np.frombuffer(found[28:32], np.uint32) == 7 and np.frombuffer(found[32:40], float) == 0.1
    assert len(found) == 48


@pytest.fixture
def kernel():
    def function():
        """Its source is part of what its file is named after."""

    return SimpleNamespace(__name__="function", function=function, signature="()", threads=3, resident=0)


def test_a_kernels_file_depends_on_all_that_it_is_made_of(kernel, monkeypatch):
    first = compiled.path_of(kernel, (9, 0), "ptx")
    assert compiled.path_of(kernel, (9, 0), "ptx") == first and first.name.startswith("function-")
    others = {compiled.path_of(kernel, (8, 0), "ptx"), compiled.path_of(kernel, (9, 0), "cubin")}
    for name, value in (("signature", "(int)"), ("threads", 4), ("resident", 2)):
        others.add(compiled.path_of(SimpleNamespace(**vars(kernel) | {name: value}), (9, 0), "ptx"))
    monkeypatch.setattr(compiled, "sources", lambda: b"other versions")
    others.add(compiled.path_of(kernel, (9, 0), "ptx"))
    assert len(others | {first}) == 7


def test_a_kernel_is_compiled_unless_a_file_has_it(kernel, monkeypatch, tmp_path):
    """Each process writes its own file and renames it."""
    monkeypatch.setenv("TINYPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(compiled, "compiled", lambda *_: compiled.Compiled("symbol", b"the\0kernel", ""))
    told, written, replace_file = [], [], compiled.replace_file
    monkeypatch.setattr(compiled, "replace_file", lambda path, _: written.append(path) or replace_file(path, _))
    with compiled.compilations(told.append, lambda: told.append("end")):
        for _ in range(2):
            assert compiled.code_of(kernel, (9, 0)) == ("symbol", b"the\0kernel")
    assert told == ["function", "end"] and compiled.LISTENERS == []
    (file,) = (tmp_path / "cubins").iterdir()
    assert written == [file.with_name(f"{file.name}.{os.getpid()}")]
    file.unlink()
    monkeypatch.setattr(compiled, "replace_file", mock.Mock(side_effect=OSError("the disk is full")))
    assert compiled.code_of(kernel, (9, 0)) == ("symbol", b"the\0kernel")
    assert not list((tmp_path / "cubins").iterdir())

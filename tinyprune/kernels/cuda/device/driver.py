"""NVIDIA's driver, through `cuda.bindings`: the GPU's memory, copies, compiled kernels and launches.

All work is done in order, on the default stream of the first GPU.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import TinypruneError, UsageError

CHECK = "TINYPRUNE_CUDA_CHECK"  # set to 1: wait after every launch, so that a fault names its kernel
STAGING = 2**22  # bytes of pinned memory: what some hundred steps bring
RESULTS = 1024  # numbers that are read at a time; their places follow
ALIGNED = 256  # bytes
Three = tuple[int, ...]  # along x, y and z


class Driver:
    """The first GPU."""

    def __init__(self, cu: Any = None) -> None:
        """Open it; `cu` has the driver's functions, by default `cuda.bindings.driver`."""
        if cu is None:
            from cuda.bindings import driver as cu

        self.cu = cu
        self.check = os.environ.get(CHECK) == "1"
        self.at = 0  # how much of the pinned memory was used since the last wait
        self.context: Any = None
        self.call(cu.cuInit, 0)
        (device,) = self.call(cu.cuDeviceGet, 0)
        name = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_"
        wanted = (getattr(cu.CUdevice_attribute, name + part) for part in ("MAJOR", "MINOR"))
        major, minor = (self.call(cu.cuDeviceGetAttribute, attribute, device)[0] for attribute in wanted)
        self.capability = major, minor
        (self.context,) = self.call(cu.cuDevicePrimaryCtxRetain, device)
        self.call(cu.cuCtxSetCurrent, self.context)
        self.pinned = int(self.call(cu.cuMemAllocHost, STAGING + 8 * RESULTS)[0])
        (self.event,) = self.call(cu.cuEventCreate, 2)  # that numbers have been read; 2: CU_EVENT_DISABLE_TIMING

    def call(self, function: Any, *arguments: Any) -> tuple[Any, ...]:
        """Call a function of the driver; return what it returns beside its status.

        Raises:
            MemoryError: if the GPU has no room.
            TinypruneError: if anything else fails, perhaps an earlier kernel.
        """
        status, *found = function(*arguments)
        if status and status == self.cu.CUresult.CUDA_ERROR_INVALID_CONTEXT and self.context is not None:
            self.cu.cuCtxSetCurrent(self.context)  # another thread than the first one
            status, *found = function(*arguments)
        if not status:
            return tuple(found)
        if status == self.cu.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise MemoryError(f"the GPU has none left ({status.name})")
        said = self.cu.cuGetErrorString(status)[1]
        raise TinypruneError(f"the GPU has failed: {said.decode()} ({status.name})")

    def allocate(self, size: int) -> int:
        """Return the address of `size` new bytes of the GPU's memory."""
        return int(self.call(self.cu.cuMemAlloc, size)[0])

    def free(self, address: int) -> None:
        """Free them, once no kernel uses them any more."""
        self.cu.cuMemFree(address)

    def begin(self, address: int, size: int) -> None:
        """An array begins to use so many bytes from an address on."""

    def end(self, address: int, size: int) -> None:
        """No array uses them any more."""

    def write(self, address: int, values: NDArray) -> None:
        """Copy an array to the GPU's memory; what is small goes over pinned memory, and is not waited for."""
        size = values.nbytes
        if size > STAGING // 2:
            self.call(self.cu.cuMemcpyHtoD, address, values.ctypes.data, size)
            return
        if self.at + size > STAGING:
            self.synchronize()  # until the earlier copies have been made
            self.at = 0
        place = self.pinned + self.at
        ctypes.memmove(place, values.ctypes.data, size)
        self.at += -(-size // ALIGNED) * ALIGNED
        self.call(self.cu.cuMemcpyHtoDAsync, address, place, size, 0)

    def begin_read(self, numbers: Sequence[tuple[int, np.dtype]]) -> Callable[[], list[float]]:
        """Begin to copy numbers to main memory, of which their addresses and types are given.

        Returns a function that returns them. It waits for the kernels launched before `begin_read`, not for later ones,
        and has to be called before the next `begin_read`, which uses the same places.
        """
        if len(numbers) > RESULTS:
            raise ValueError(f"at most {RESULTS} numbers are read at a time, got {len(numbers)}")
        begin = self.pinned + STAGING
        places = range(begin, begin + 8 * len(numbers), 8)
        for place, (address, dtype) in zip(places, numbers, strict=True):
            self.call(self.cu.cuMemcpyDtoHAsync, place, address, dtype.itemsize, 0)
        self.call(self.cu.cuEventRecord, self.event, 0)

        def found() -> list[float]:
            self.call(self.cu.cuEventSynchronize, self.event)
            given = zip(places, numbers, strict=True)
            return [float(np.frombuffer(ctypes.string_at(place, 8), dtype)[0]) for place, (_, dtype) in given]

        return found

    def read(self, address: int, values: NDArray) -> None:
        """Copy from the GPU's memory, after the kernels launched before have finished."""
        self.call(self.cu.cuMemcpyDtoH, values.ctypes.data, address, values.nbytes)

    def load(self, compiled: Callable[[tuple[int, int]], tuple[str, bytes]]) -> Any:
        """Load the kernel whose symbol and cubin `compiled` returns for the GPU's capability."""
        symbol, cubin = compiled(self.capability)
        (module,) = self.call(self.cu.cuModuleLoadData, cubin)
        return self.call(self.cu.cuModuleGetFunction, module, symbol.encode())[0]

    def launch(self, kernel: Any, grid: Three, threads: Three, arguments: Packed, name: str) -> None:
        """Launch a kernel; return before it is done, unless $TINYPRUNE_CUDA_CHECK is 1.

        Args:
            kernel: as of `load`.
            grid, threads: blocks, and threads of a block.
            arguments: are copied at once.
            name: of the kernel, for messages.
        """
        try:
            self.call(self.cu.cuLaunchKernel, kernel, *grid, *threads, 0, 0, 0, arguments.address)
            if self.check:
                self.synchronize()
        except TinypruneError as error:
            # without a wait, an earlier kernel may be the cause
            where = f"in the kernel {name}" if self.check else f"at or before the kernel {name}; {CHECK}=1 finds it"
            raise TinypruneError(f"{error}, {where}") from error

    def synchronize(self) -> None:
        """Wait until all that was launched has finished."""
        self.call(self.cu.cuCtxSynchronize)


IN_USE: list[Any] = []  # the one driver of this process


def driver() -> Any:
    """Return the driver; unless `use` was called, NVIDIA's is opened at the first call."""
    if not IN_USE:
        IN_USE.append(Driver())
    return IN_USE[0]


def use(other: Any) -> None:
    """Let `other`, with the methods of `Driver`, be the driver. Raises UsageError if another one is in use."""
    if IN_USE and IN_USE[0] is not other:
        raise UsageError("a process computes on a GPU or on the emulator, not on both: start another one")
    IN_USE[:] = [other]


class Packed:
    """The arguments of a kernel in one buffer, and what cuLaunchKernel's `extra` has to say about it."""

    # CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END
    POINTER, SIZE, END = 1, 2, 0

    def __init__(self, size: int) -> None:
        self.buffer = np.zeros(max(size, 1), np.uint8)
        self.size = ctypes.c_size_t(size)
        entries = (self.POINTER, self.buffer.ctypes.data, self.SIZE, ctypes.addressof(self.size), self.END)
        self.extra = (ctypes.c_void_p * len(entries))(*entries)
        self.address = ctypes.addressof(self.extra)

"""What a training step on a GPU costs the processor: `tinyprune bench cuda --host`. No GPU is needed.

Everything runs as it would on a GPU, but the driver's functions are replaced by some that do nothing but count. So the
time is that of Python from the step's begin to its end; what `cuda.bindings` needs to hand over a call, one or two
microseconds each, comes on top.

    launches                 of kernels
    copies, waits            to the GPU; and how often the processor waits for it: a copy back, or a full stop
    host_ms                  of the processor's time
"""

from __future__ import annotations

import ctypes
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tinyprune.bench.shapes import PAPER, model_shape
from tinyprune.ops.engine import Engine
from tinyprune.tables import Record

NO_GPU = f"no GPU: the driver's calls replaced, Python {sys.version.split()[0]}"
ROUNDS = 30
SHAPES = ("small", "relative-d256", PAPER)
WAITS = ("cuMemcpyHtoD", "cuMemcpyDtoH", "cuCtxSynchronize", "cuEventSynchronize")


class CUresult(IntEnum):
    """Some of the driver's results."""

    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_ILLEGAL_ADDRESS = 700


class Counting:
    """Functions of `cuda.bindings.driver` that count their calls. Memory is addresses that nothing is behind."""

    CUresult = CUresult
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0
    )

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.next = 2**20

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls[name] += 1
            return CUresult.CUDA_SUCCESS, *self.answer(name, *arguments)

        setattr(self, name, call)
        return call

    def answer(self, name: str, *arguments: Any) -> Sequence[Any]:
        """Return what a function returns beside its status."""
        if name == "cuDeviceGetAttribute":
            return arguments[:1]
        if name == "cuMemAlloc":
            self.next += -(-arguments[0] // 256) * 256
            return (self.next,)
        if name == "cuMemAllocHost":
            self.pinned = ctypes.create_string_buffer(arguments[0])
            return (ctypes.addressof(self.pinned),)
        if name == "cuMemcpyDtoH":
            ctypes.memset(arguments[0], 0, arguments[2])
        handles = (
            "cuDeviceGet",
            "cuDevicePrimaryCtxRetain",
            "cuModuleLoadData",
            "cuModuleGetFunction",
            "cuEventCreate",
        )
        return (0,) if name in handles else ()


@contextmanager
def without_gpu() -> Iterator[tuple[Engine, Counter[str]]]:
    """Yield the cuda backend on a driver that only counts, with NumPy as our only other package; and the counts."""
    from tinyprune.kernels import backend
    from tinyprune.kernels.cuda.device import driver, jit

    counting = Counting()
    with (
        driver.replaced(driver.Driver(counting)),
        mock.patch.object(jit, "cubin_of", lambda *_: ("", b"")),
        mock.patch.object(backend, "check_usable", lambda: None),
    ):
        yield backend.cuda_backend(), counting.calls


def host_records(shapes: Sequence[str], rounds: int) -> list[Record]:
    """Measure a step at each of these shapes; a record for each."""
    from tinyprune.bench.backend_workloads import step_workload

    records = []
    for name in shapes:
        with without_gpu() as (ops, counts):
            work = step_workload(ops, model_shape(name))
            for _ in range(10):  # plans are made, and arrays find the places where they stay
                work.run()
            counts.clear()
            times = []
            for _ in range(rounds):
                begin = time.process_time()
                work.run()
                times.append(time.process_time() - begin)
            calls = {call: count / rounds for call, count in counts.items()}
            del work
        records.append(
            {
                "benchmark": "cuda",
                "shape": name,
                "launches": calls["cuLaunchKernel"],
                "copies": sum(count for call, count in calls.items() if "HtoD" in call),
                "waits": sum(calls.get(call, 0) for call in WAITS),
                "allocations": calls.get("cuMemAlloc", 0),
                "host_ms": 1e3 * statistics.median(times),
                "machine": NO_GPU,
            }
        )
    return records

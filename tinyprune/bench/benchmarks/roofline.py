"""Roofline: what a training step costs a GPU at least, kernel by kernel, counted where no GPU is.

The emulator executes two steps with `B` texts and counts the second: instructions of warps, sectors of global memory,
and waves of shared memory (see `machine.count_transactions`), beside the fewest that the same requests could take. A
multiprocessor issues four instructions and serves one wave a cycle, and memory has a bandwidth: the largest of three
times is a kernel's bound. Latency and the launches themselves come on top of it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import GPUS
from tinyprune.bench.backend_workloads import training_step
from tinyprune.bench.command import Options
from tinyprune.io.tables import Record
from tinyprune.kernels.cuda.emulator.driver import Kernel, emulator
from tinyprune.kernels.cuda.emulator.program import FLOAT, GROUP, SHARED

B = 2  # texts of a step: counts grow with them, but for parameters' updates
SECTOR = 32  # bytes


def run_roofline(options: Options) -> Iterator[list[Record]]:
    """Count a step of each model; a record for each kernel, the longest first, and one for all."""
    device = emulator()
    device.counted = True
    for shape in options.shapes or ("tiny",):
        step = training_step(options.backend, name=shape, B=B)
        step.run()
        for kernel in device.kernels.values():
            kernel.launches, kernel.counts[:] = 0, 0
        step.run()
        launched = [kernel for kernel in device.kernels.values() if kernel.launches]
        found = {kernel.name: totals(kernel, *GPUS[options.gpu]) for kernel in launched}
        found = {"all": np.sum([*found.values()], 0)} | found
        longest_first = sorted(found.items(), key=lambda item: -item[1][-1])
        yield [record(options.gpu, shape, *item) for item in longest_first]


def totals(kernel: Kernel, processors: int, cycles: float, bandwidth: float) -> NDArray:
    """Return launches, multiply-adds, sectors and the fewest, waves and the fewest, and the bound in nanoseconds."""
    code, counts = kernel.code, kernel.counts
    is_access = code["group"] == GROUP.access
    in_shared = is_access & (code["flags"] & SHARED != 0)
    fma = counts["lanes"][(code["group"] == GROUP.float32) & (code["op"] == FLOAT.fma)].sum()
    # of tensor cores: mma.m16n8k8
    fma += 16 * 8 * 8 * counts["warps"][code["group"] == GROUP.mma].sum()
    sectors, fewest = (counts[name][is_access & ~in_shared].sum() for name in ("transactions", "fewest"))
    waves, fewest_waves = (counts[name][in_shared].sum() for name in ("transactions", "fewest"))
    issued = counts["warps"].sum() / (4 * processors * cycles)
    bound = max(issued, waves / (processors * cycles), SECTOR * sectors / bandwidth)
    return np.array([kernel.launches, fma, sectors, fewest, waves, fewest_waves, bound])


def record(gpu: str, shape: str, kernel: str, n: NDArray) -> Record:
    """Return the record of these totals."""
    launches, fma, sectors, fewest, waves, fewest_waves, bound = n.tolist()
    about = {"benchmark": "roofline", "gpu": gpu, "shape": shape, "kernel": kernel, "launches": int(launches)}
    numbers = {
        "mega_fma": fma / 1e6,
        "global_mb": SECTOR * sectors / 1e6,
        "sectors_by_fewest": sectors / max(fewest, 1),
        "waves_by_fewest": waves / max(fewest_waves, 1),
        "bound_us": bound / 1e3,
    }
    return about | {name: round(value, 2) for name, value in numbers.items()}

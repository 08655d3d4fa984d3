"""What the compiler makes of the kernels in this folder: PTX, registers, shared memory, spills. No GPU is needed.

    python -m tinyprune.kernels.cuda.compiled 8.0 9.0                           all, for these compute capabilities
    python -m tinyprune.kernels.cuda.compiled 8.0 --modules updates.norm        those of some modules only

This is a program of its own because Numba's simulator has to be off, and Numba decides when it is imported. It prints
a line of JSON: how many records follow; then each record, on a line of its own, as soon as it is there.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from tinyprune.errors import TinypruneError, UsageError
from tinyprune.kernels import cuda
from tinyprune.kernels.cuda.device.jit import KERNELS, SIMULATED, Kernel
from tinyprune.kernels.gpu import compile_kernel, what_is_missing

Capability = tuple[int, int]


PACKAGE = f"{cuda.__name__}."


def all_modules() -> list[str]:
    """Names of the modules in the rooms of this folder, such as "updates.norm"."""
    rooms = pkgutil.walk_packages(cuda.__path__, PACKAGE)
    return [module.name.removeprefix(PACKAGE) for module in rooms if module.name.count(".") > PACKAGE.count(".")]


def module_of(kernel: Kernel) -> str:
    """The module in which a kernel is written, by the name that `all_modules` gives it; in full if it is elsewhere."""
    return kernel.function.__module__.removeprefix(PACKAGE)


def kernels_of(modules: Sequence[str]) -> list[Kernel]:
    """The kernels that are written in these modules, sorted by module."""
    for module in modules:
        importlib.import_module(module if module.startswith("tinyprune.") else PACKAGE + module)
    return sorted((kernel for kernel in KERNELS if module_of(kernel) in modules), key=module_of)


def describe(kernel: Kernel, capability: Capability) -> dict[str, Any]:
    """One record: `module`, `kernel`, what its maker says of it, and `gpu.compile_kernel`'s own.

    Raises:
        TinypruneError: if it cannot be compiled.
    """
    try:
        compiled = compile_kernel(kernel.function, kernel.signature, capability)
    except TinypruneError:
        raise
    except Exception as error:  # Numba's errors, of which there are many kinds
        raise TinypruneError(f"Numba cannot compile {module_of(kernel)}.{kernel.__name__}: {error}") from error
    return compiled | {
        "module": module_of(kernel),
        "threads": math.prod(kernel.threads) if isinstance(kernel.threads, tuple) else kernel.threads,
        "hot": kernel.hot,
        "float64": kernel.float64,
    }


def describe_one(task: tuple[tuple[str, ...], int, Capability]) -> dict[str, Any]:
    """The same of a kernel by its number among those of some modules: a number reaches another process, it does not."""
    modules, number, capability = task
    return describe(kernels_of(modules)[number], capability)


def compile_all(modules: Sequence[str], capabilities: Sequence[Capability]) -> tuple[int, Iterator[dict[str, Any]]]:
    """How many records there are of these modules' kernels, and the records, made by all processors.

    Raises:
        UsageError: in Numba's simulator, or if numba-cuda or ptxas is missing; says what to install.
        TinypruneError: if ptxas refuses a kernel.
    """
    if SIMULATED:
        raise UsageError("Numba's simulator compiles nothing: unset NUMBA_ENABLE_CUDASIM")
    missing = what_is_missing()
    if missing:
        raise UsageError(missing)
    tasks = [(tuple(modules), n, c) for n in range(len(kernels_of(modules))) for c in capabilities]

    def records() -> Iterator[dict[str, Any]]:
        jobs = min(os.cpu_count() or 1, len(tasks))
        if jobs > 1:
            with multiprocessing.Pool(jobs) as pool:
                yield from pool.imap(describe_one, tasks)
        else:
            yield from map(describe_one, tasks)

    return len(tasks), records()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(prog=f"python -m {cuda.__name__}.compiled", description=__doc__.split("\n")[0])
    parser.add_argument("capability", nargs="+", help="compute capability of a GPU, such as 8.0")
    parser.add_argument("--modules", nargs="+", default=all_modules(), help="whose kernels (all of this folder)")
    parser.add_argument("--also", nargs="+", default=[], help="modules elsewhere that have kernels, in full")
    options = parser.parse_args(arguments)
    capabilities = [tuple(map(int, capability.split("."))) for capability in options.capability]
    count, records = compile_all([*options.modules, *options.also], capabilities)
    print(json.dumps(count), flush=True)
    for record in records:
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    try:
        main()
    except TinypruneError as error:
        sys.exit(f"error: {error}")

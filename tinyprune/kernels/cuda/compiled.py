"""Compile the kernels in this folder and report PTX, registers, shared memory and spills. No GPU is needed.

    python -m tinyprune.kernels.cuda.compiled 8.0 9.0                           all, for these compute capabilities
    python -m tinyprune.kernels.cuda.compiled 8.0 --modules updates.norm        those of some modules only

This is a separate program because Numba's simulator has to be off, which Numba decides when it is imported. It prints
the number of records and then each record, a line of JSON each, as soon as it is ready.
"""

import argparse
import importlib
import json
import math
import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Sequence
from typing import Any

from tinyprune.errors import TinypruneError, UsageError
from tinyprune.kernels import cuda
from tinyprune.kernels.cuda.device.jit import KERNELS, SIMULATED, Kernel
from tinyprune.kernels.gpu import compile_kernel, what_is_missing

Capability = tuple[int, int]


PACKAGE = f"{cuda.__name__}."


def all_modules() -> list[str]:
    """Return the names of the modules in the folders here, such as "updates.norm"."""
    rooms = pkgutil.walk_packages(cuda.__path__, PACKAGE)
    return [module.name.removeprefix(PACKAGE) for module in rooms if module.name.count(".") > PACKAGE.count(".")]


def module_of(kernel: Kernel) -> str:
    """Return the module of a kernel, by its name in `all_modules`, or in full if it is elsewhere."""
    return kernel.function.__module__.removeprefix(PACKAGE)


def kernels_of(modules: Sequence[str]) -> list[Kernel]:
    """Return the kernels of these modules, sorted by module."""
    for module in modules:
        importlib.import_module(module if module.startswith("tinyprune.") else PACKAGE + module)
    return sorted((kernel for kernel in KERNELS if module_of(kernel) in modules), key=module_of)


def describe(kernel: Kernel, capability: Capability) -> dict[str, Any]:
    """Compile a kernel; return the record of `gpu.compile_kernel`, with `module`, `threads`, `hot` and `float64`.

    Raises TinypruneError if it cannot be compiled.
    """
    try:
        compiled = compile_kernel(kernel.entry, kernel.signature, capability)
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
    """Describe a kernel by its number among those of some modules: unlike a kernel, that can be sent to a process."""
    modules, number, capability = task
    return describe(kernels_of(modules)[number], capability)


def main() -> None:
    """Run the command line above, on all processors.

    Raises:
        UsageError: in Numba's simulator, or if numba-cuda or ptxas is missing; says what to install.
        TinypruneError: if a kernel cannot be compiled.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {cuda.__name__}.compiled", description=__doc__.split("\n")[0])
    parser.add_argument("capability", nargs="+", help="compute capability of a GPU, such as 8.0")
    parser.add_argument("--modules", nargs="+", default=all_modules(), help="whose kernels (all of this folder)")
    parser.add_argument("--also", nargs="+", default=[], help="modules elsewhere that have kernels, in full")
    options = parser.parse_args()
    reason = "Numba's simulator compiles nothing: unset NUMBA_ENABLE_CUDASIM" if SIMULATED else what_is_missing()
    if reason:
        raise UsageError(reason)
    modules = (*options.modules, *options.also)
    capabilities = [tuple(map(int, capability.split("."))) for capability in options.capability]
    tasks = [(modules, n, capability) for n in range(len(kernels_of(modules))) for capability in capabilities]
    print(json.dumps(len(tasks)), flush=True)
    with multiprocessing.Pool(min(os.cpu_count() or 1, max(len(tasks), 1))) as pool:
        for record in pool.imap(describe_one, tasks):
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    try:
        main()
    except TinypruneError as error:
        sys.exit(f"error: {error}")

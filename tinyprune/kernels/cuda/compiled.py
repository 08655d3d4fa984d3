"""Compile the kernels in this folder and report PTX, registers, shared memory and spills. No GPU is needed.

    python -m tinyprune.kernels.cuda.compiled 8.0 9.0                           all, for these compute capabilities
    python -m tinyprune.kernels.cuda.compiled 8.0 --modules updates.norm        those of some modules only
    python -m tinyprune.kernels.cuda.compiled 9.0 --keep                        for later starts, see `device.cubins`

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tinyprune.errors import TinypruneError, UsageError
from tinyprune.kernels import cuda, gpu
from tinyprune.kernels.cuda.device import cubins
from tinyprune.kernels.cuda.device.jit import KERNELS, SIMULATED, Kernel

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


@contextmanager
def explained(kernel: Kernel) -> Iterator[None]:
    """Turn what is raised in the context, while a kernel is compiled, into a TinypruneError."""
    try:
        yield
    except TinypruneError:
        raise
    except Exception as error:  # Numba's errors, of which there are many kinds
        said = f"Numba cannot compile {module_of(kernel)}.{kernel.__name__}: {error}"
        raise gpu.explained(error) or TinypruneError(said) from error


def describe(kernel: Kernel, capability: Capability) -> dict[str, Any]:
    """Compile a kernel; return the record of `gpu.compile_kernel`, with `module`, `threads`, `hot` and `float64`."""
    with explained(kernel):
        record = gpu.compile_kernel(kernel.function, kernel.signature, capability)
    record |= {"module": module_of(kernel), "threads": math.prod(kernel.block)}
    return record | {"hot": kernel.hot, "float64": kernel.float64}


def compile_for(kernel: Kernel, capability: Capability) -> gpu.Compiled:
    """Compile a kernel for a GPU of this compute capability."""
    with explained(kernel):
        return gpu.compiled(kernel.function, kernel.signature, capability)


Task = tuple[tuple[str, ...], int, list[Capability]]  # a kernel's number among those of some modules, and GPUs


def describe_one(task: Task) -> list[dict[str, Any]]:
    """Describe a kernel for some GPUs; unlike a kernel, its number can be sent to a process."""
    modules, number, capabilities = task
    kernel = kernels_of(modules)[number]
    return [describe(kernel, capability) for capability in capabilities]


def keep_one(task: Task) -> list[str]:
    """Compile a kernel for some GPUs and keep what is made; return its name."""
    modules, number, capabilities = task
    kernel = kernels_of(modules)[number]
    for capability in capabilities:
        cubins.keep(cubins.path_of(kernel, capability), compile_for(kernel, capability))
    return [kernel.__name__] * len(capabilities)


def main() -> None:
    """Run the command line above, on all processors.

    Raises:
        UsageError: in Numba's simulator, or if numba-cuda or nvJitLink is missing; says what to install.
        TinypruneError: if a kernel cannot be compiled.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {cuda.__name__}.compiled", description=__doc__.split("\n")[0])
    parser.add_argument("capability", nargs="+", help="compute capability of a GPU, such as 8.0")
    parser.add_argument("--modules", nargs="+", default=all_modules(), help="whose kernels (all of this folder)")
    parser.add_argument("--also", nargs="+", default=[], help="modules elsewhere that have kernels, in full")
    parser.add_argument("--keep", action="store_true", help="keep those that are not kept, and print their names alone")
    options = parser.parse_args()
    reason = "Numba's simulator compiles nothing: unset NUMBA_ENABLE_CUDASIM" if SIMULATED else gpu.what_is_missing()
    if reason:
        raise UsageError(reason)
    modules = (*options.modules, *options.also)
    capabilities = [tuple(map(int, capability.split("."))) for capability in options.capability]
    tasks = [
        (modules, n, wanted)
        for n, kernel in enumerate(kernels_of(modules))
        if (wanted := [c for c in capabilities if not (options.keep and cubins.kept(cubins.path_of(kernel, c)))])
    ]
    print(json.dumps(sum(len(wanted) for *_, wanted in tasks)), flush=True)
    with multiprocessing.Pool(min(os.cpu_count() or 1, max(len(tasks), 1))) as pool:
        for found in pool.imap(keep_one if options.keep else describe_one, tasks):
            for record in found:
                print(json.dumps(record), flush=True)


if __name__ == "__main__":
    try:
        main()
    except TinypruneError as error:
        sys.exit(f"error: {error}")

"""Compile all kernels in this folder and keep them for later starts (`device.cubins`), on all processors.

    python -m tinyprune.kernels.cuda.precompile 9.0

This is a separate program because Numba's simulator has to be off, which Numba decides when it is imported. It prints
how many kernels are missing, and then the name of each, one a line, as soon as it is compiled.
"""

import importlib
import multiprocessing
import os
import pkgutil
import sys
from collections.abc import Sequence

from tinyprune.errors import TinypruneError
from tinyprune.kernels import cuda
from tinyprune.kernels.cuda.compiled import Capability, compile_for
from tinyprune.kernels.cuda.device import cubins
from tinyprune.kernels.cuda.device.jit import KERNELS, Kernel

PACKAGE = f"{cuda.__name__}."


def all_modules() -> list[str]:
    """Return the names of the modules in the folders here, such as "updates.norm"."""
    rooms = pkgutil.walk_packages(cuda.__path__, PACKAGE)
    return [module.name.removeprefix(PACKAGE) for module in rooms if module.name.count(".") > PACKAGE.count(".")]


def kernels_of(modules: Sequence[str]) -> list[Kernel]:
    """Return the kernels of these modules, sorted by module."""
    for module in modules:
        importlib.import_module(PACKAGE + module)
    names = {PACKAGE + module for module in modules}
    found = [kernel for kernel in KERNELS if kernel.function.__module__ in names]
    return sorted(found, key=lambda kernel: kernel.function.__module__)


def keep_one(task: tuple[int, Capability]) -> str:
    """Compile and keep a kernel; return its name. Its number among all kernels, unlike itself, goes to a process."""
    number, capability = task
    kernel = kernels_of(all_modules())[number]
    cubins.keep(cubins.path_of(kernel, capability), compile_for(kernel, capability))
    return kernel.__name__


def main(capability: str) -> None:
    """Compile what is not kept yet for GPUs of a compute capability such as "9.0".

    Raises:
        TinypruneError: if a kernel cannot be compiled.
    """
    major, minor = map(int, capability.split("."))
    wanted = (major, minor)
    kernels = kernels_of(all_modules())
    tasks = [(n, wanted) for n, kernel in enumerate(kernels) if not cubins.kept(cubins.path_of(kernel, wanted))]
    print(len(tasks), flush=True)
    with multiprocessing.Pool(min(os.cpu_count() or 1, max(len(tasks), 1))) as pool:
        for name in pool.imap(keep_one, tasks):
            print(name, flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except TinypruneError as error:
        sys.exit(f"error: {error}")

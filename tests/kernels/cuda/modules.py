"""The modules of the package that may have kernels, and their kernels."""

import importlib
import pkgutil

from tinyprune.kernels import cuda
from tinyprune.kernels.cuda.device.jit import KERNELS

PACKAGE = f"{cuda.__name__}."


def all_modules():
    """Names of all modules of `kernels/cuda`, such as "norms" and "attend.keys"."""
    return [module.name.removeprefix(PACKAGE) for module in pkgutil.walk_packages(cuda.__path__, PACKAGE)]


def kernels_of(modules):
    """The kernels of these modules, sorted by module."""
    for module in modules:
        importlib.import_module(PACKAGE + module)
    names = {PACKAGE + module for module in modules}
    found = [kernel for kernel in KERNELS if kernel.function.__module__ in names]
    return sorted(found, key=lambda kernel: kernel.function.__module__)

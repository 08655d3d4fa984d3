"""Copies of a module from whose kernels one barrier is taken out."""

import inspect
from importlib import import_module
from types import ModuleType

from tinyprune.kernels.cuda.device.jit import KERNELS

BARRIER = "cuda.syncthreads()"


def source_lines(module: ModuleType) -> list[str]:
    """Of a module, with line ends."""
    return inspect.getsource(module).splitlines(keepends=True)


def barriers(name: str) -> list[int]:
    """Lines of this module that are barriers, from 0; its name is relative to `tinyprune.kernels.cuda`."""
    module = import_module(f".{name}", "tinyprune.kernels.cuda")
    return [n for n, line in enumerate(source_lines(module)) if line.strip().startswith(BARRIER)]


def without(name: str, line: int | None) -> ModuleType:
    """The module made anew from a source without the barrier in this line; None leaves all in."""
    module = import_module(f".{name}", "tinyprune.kernels.cuda")
    lines = source_lines(module)
    if line is not None:
        lines[line] = lines[line].replace(BARRIER, "pass")
    copy = ModuleType(module.__name__)
    known = len(KERNELS)
    exec(compile("".join(lines), f"{name} without line {line}", "exec"), copy.__dict__)
    del KERNELS[known:]  # they are not kernels of the package
    return copy

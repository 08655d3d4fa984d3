"""Choose who computes: a backend is a namespace of operations with the names and signatures of `tinyprune.ops`.

A backend module holds what it has compiled; whatever it lacks comes from the textbook in `tinyprune.ops`. The model
takes the namespace as an argument and never asks which one it is.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace

from numpy.typing import NDArray

from tinyprune import ops
from tinyprune.errors import UsageError
from tinyprune.kernels.gpu import check_usable

# name -> module with its operations; imported only when asked for, so that `import tinyprune` stays light.
BACKENDS = {
    "numba": "tinyprune.kernels.cpu",
    "numpy": "tinyprune.ops",
    "cuda": "tinyprune.kernels.cuda",
    "cuda-tf32": "tinyprune.kernels.cuda.tf32",
}


def on_gpu(name: str) -> bool:
    """Whether this backend computes on a GPU."""
    return name.startswith("cuda")


def unchanged(x: NDArray) -> NDArray:
    """`x` itself: the way to and from a device that is main memory."""
    return x


def get_backend(name: str) -> SimpleNamespace:
    """The operations of backend `name`, each from its module or else from `tinyprune.ops`.

    Beside them,

    - `to_device` copies an array of main memory to where the backend computes, `to_host` back; both hand on what is
      there already, and for the CPU's backends that is everything. Token numbers stay in main memory.
    - `compilations` is a context manager that calls a function with the name of each kernel compiled meanwhile, see
      `kernels.cpu.jit.compilations`; `compiling` says to the user what goes on then. Both None for a backend that
      compiles nothing.

    Raises:
        UsageError: if there is no such backend, or what it needs is not here.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    if on_gpu(name):
        check_usable()
    module = importlib.import_module(BACKENDS[name])
    return SimpleNamespace(
        **{operation: getattr(module, operation, getattr(ops, operation)) for operation in ops.__all__},
        compilations=getattr(module, "compilations", None),
        compiling=getattr(module, "COMPILING", None),
        to_device=getattr(module, "to_device", unchanged),
        to_host=getattr(module, "to_host", unchanged),
    )

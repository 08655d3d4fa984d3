"""Choose who computes: a backend is a namespace of operations with the names and signatures of `tinyprune.ops`.

A backend module holds what it has compiled; whatever it lacks comes from the textbook in `tinyprune.ops`. The model
takes the namespace as an argument and never asks which one it is.
"""

from __future__ import annotations

import importlib
from types import SimpleNamespace

from tinyprune import ops
from tinyprune.errors import UsageError

# name -> module with its operations; imported only when asked for, so that `import tinyprune` stays light.
BACKENDS = {"numba": "tinyprune.kernels.cpu", "numpy": "tinyprune.ops"}


def get_backend(name: str) -> SimpleNamespace:
    """The operations of backend `name`, each from its module or else from `tinyprune.ops`.

    Beside them, `compilations` is a context manager that calls a function with the name of each kernel compiled
    meanwhile, see `kernels.cpu.jit.compilations`; None for a backend that compiles nothing.

    Raises:
        UsageError: if there is no such backend.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}")
    module = importlib.import_module(BACKENDS[name])
    return SimpleNamespace(
        **{operation: getattr(module, operation, getattr(ops, operation)) for operation in ops.__all__},
        compilations=getattr(module, "compilations", None),
    )

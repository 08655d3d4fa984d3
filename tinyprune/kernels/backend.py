"""Compute backends: `get_backend(name)` makes the engine that `--backend` names.

Numba is imported only when an engine needs it.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import NamedTuple

from tinyprune.errors import UsageError, nearest
from tinyprune.kernels.gpu import check_usable, why_unusable
from tinyprune.ops.engine import Engine
from tinyprune.progress import say


def why_no_numba() -> str | None:
    """Return one line that says how to get Numba; None if it is installed. Nothing is imported."""
    if find_spec("numba") is not None:
        return None
    return "Numba is not installed: python -m pip install numba, or use --backend numpy"


def numba_engine() -> Engine:
    """Return the engine whose kernels Numba compiles for the CPU.

    Raises:
        UsageError: if Numba is not installed or cannot be imported, for example beside a NumPy that it does not know.
    """
    try:
        import numba  # noqa: F401
    except ImportError as error:
        reason = why_no_numba() or f"{error}; update Numba, or use --backend numpy"
        raise UsageError(f"the numba backend cannot run: {reason}") from error
    from tinyprune.kernels.cpu.engine import Numba

    return Numba()


def cuda_engine(precision: str = "float32") -> Engine:
    """Return the engine whose kernels `numba.cuda` compiles for an NVIDIA GPU.

    Args:
        precision: "tf32" lets tensor cores compute the products of linear layers, see `cuda.products.tensor_cores`.

    Raises:
        UsageError: if kernels cannot run here, neither on a GPU nor in Numba's simulator.
    """
    check_usable()
    from tinyprune.kernels.cuda.engine import ENGINES

    return ENGINES[precision]()


class Choice(NamedTuple):
    """What is known of an engine before it is made.

    Attributes:
        make: makes it, and imports what it needs only then.
        about: what it is, in one line.
        problem: returns why it cannot run here and what to install, in one line; None if it can.
        on_device: see `Machine`.
        precision: of matrix products: "float32", or "tf32" by tensor cores.
        packages: the packages that compute, beside NumPy; a report of a machine lists their versions.
    """

    make: Callable[[], Engine]
    about: str
    problem: Callable[[], str | None] = lambda: None
    on_device: bool = False
    precision: str = "float32"
    packages: tuple[str, ...] = ()


BACKENDS = {
    "numba": Choice(numba_engine, "compiled for the processor by Numba", why_no_numba, packages=("numba",)),
    "numpy": Choice(Engine, "the textbook, in NumPy"),
    "cuda": Choice(cuda_engine, "compiled for an NVIDIA GPU", why_unusable, on_device=True, packages=("numba-cuda",)),
    "cuda-tf32": Choice(
        partial(cuda_engine, "tf32"),
        "the same, with products on tensor cores from numbers rounded to 11 bits",
        why_unusable,
        on_device=True,
        precision="tf32",
        packages=("numba-cuda",),
    ),
}


def default_backend() -> str:
    """Return the backend to use where none is named: "numba", or "numpy" if Numba is not installed."""
    if why_no_numba() is None:
        return "numba"
    say("Numba is not installed: NumPy computes in its place, many times slower")
    return "numpy"


def get_backend(name: str) -> Engine:
    """Return the engine of this name.

    Raises:
        UsageError: if there is none, or what it needs is not here.
    """
    if name not in BACKENDS:
        raise UsageError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}{nearest(name, BACKENDS)}")
    return BACKENDS[name].make()

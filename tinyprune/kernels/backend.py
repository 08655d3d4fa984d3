"""Compute backends: `get_backend(name)` makes the engine that `--backend` names.

Numba is imported only when an engine needs it.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

from tinyprune.errors import UsageError, nearest, typed
from tinyprune.io.progress import say
from tinyprune.kernels.gpu import what_is_missing, why_unusable
from tinyprune.ops.engine import Engine


def why_no_numba() -> str | None:
    """Return one line that says how to get Numba; None if it is installed. Nothing is imported."""
    if find_spec("numba") is not None:
        return None
    return "Numba is not installed: python -m pip install numba, or use --backend numpy"


def numba_engine(name: str) -> Engine:
    """Return the engine whose kernels Numba compiles for the CPU.

    Raises:
        UsageError: if Numba is not installed or cannot be imported, for example beside a NumPy that it does not know.
    """
    try:
        import numba  # noqa: F401
    except ImportError as error:
        reason = why_no_numba() or f"{error}; update Numba, or use --backend numpy"
        raise UsageError(f"the {name} backend cannot run: {reason}") from error
    from tinyprune.kernels.cpu.engine import Numba

    return Numba()


def cuda_engine(name: str) -> Engine:
    """Return an engine whose kernels `numba.cuda` compiles for an NVIDIA GPU.

    Raises:
        UsageError: if kernels cannot run here.
    """
    if reason := BACKENDS[name].problem():
        raise UsageError(f"the {name} backend cannot run: {reason}")
    from tinyprune.kernels.cuda.device import driver
    from tinyprune.kernels.cuda.engine import Cuda, CudaTF32

    engine = CudaTF32() if name == "cuda-tf32" else Cuda()
    if name == "cuda-emulated":
        from tinyprune.kernels.cuda.emulator.driver import emulator

        driver.use(emulator())
        engine.name = name
    return engine


class Choice(NamedTuple):
    """What is known of an engine before it is made.

    Attributes:
        make: makes the engine of a name, and imports what it needs only then.
        about: what it is, in one line.
        problem: returns why it cannot run here and what to install, in one line; None if it can.
        on_device: see `Machine`.
        precision: of matrix products: "float32", or "tf32" by tensor cores.
        packages: the packages that compute, beside NumPy; a report of a machine lists their versions.
    """

    make: Callable[[str], Engine]
    about: str
    problem: Callable[[], str | None] = lambda: None
    on_device: bool = False
    precision: str = "float32"
    packages: tuple[str, ...] = ()


GPU = Choice(cuda_engine, "compiled for an NVIDIA GPU", why_unusable, on_device=True, packages=("numba-cuda",))
BACKENDS = {
    "numba": Choice(numba_engine, "compiled for the processor by Numba", why_no_numba, packages=("numba",)),
    "numpy": Choice(lambda _: Engine(), "the textbook, in NumPy"),
    "cuda": GPU,
    "cuda-tf32": GPU._replace(
        about="the same, with products on tensor cores from numbers rounded to 11 bits",
        precision="tf32",
    ),
    "cuda-emulated": GPU._replace(
        about="the same kernels, checked by an emulator that needs no GPU; thousands of times slower",
        problem=what_is_missing,
    ),
}


def default_backend() -> str:
    """Return the backend to use where none is named: "numba", or "numpy" if Numba is not installed."""
    if why_no_numba() is None:
        return "numba"
    say("Numba is not installed: NumPy computes in its place, many times slower")
    return "numpy"


@typed
def get_backend(name: str) -> Engine:
    """Return the engine of this name.

    Raises:
        UsageError: if there is none, or what it needs is not here.
    """
    if name not in BACKENDS:
        hint = nearest(name, BACKENDS)
        raise UsageError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}{hint}")
    return BACKENDS[name].make(name)

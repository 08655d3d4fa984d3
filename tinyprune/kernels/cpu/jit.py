"""How every kernel here is compiled, and kept.

`cache=True`: compiled once on a machine, then read from disk. `error_model="numpy"`: x / 0 is inf, as in NumPy, without
a test at each division. Rounding is left as written (no fastmath), so that a sum's order is the one the code shows.

With NUMBA_BOUNDSCHECK=1 every index is checked, those of the vector loads and stores in `simd` too; kernels then run in
one thread, since Numba cannot raise from inside a parallel loop.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numba
from numba.core import config, event

from tinyprune.kernels import formulas

COMPILING = "compiling kernels, once on this machine: about half a minute"
BOUNDS_CHECKED = bool(config.BOUNDSCHECK)


def can_cache() -> bool:
    """Whether Numba finds a folder for compiled code; if not, say what to do."""

    def probe() -> None:
        """Never called."""

    try:
        numba.njit(cache=True)(probe)
    except RuntimeError:
        warnings.warn(
            "no folder to keep compiled kernels in, so they are compiled anew at every start; "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )
        return False
    return True


CACHED = can_cache()

# Without entrances that nobody uses compiling takes a fifth less: C code calls none of these, Python no `part`. (One
# called from Python all the same ends the process.)
kernel = numba.njit(cache=CACHED, error_model="numpy", no_cfunc_wrapper=True)
parallel_kernel = numba.njit(cache=CACHED, error_model="numpy", no_cfunc_wrapper=True, parallel=not BOUNDS_CHECKED)
part = numba.njit(cache=CACHED, error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True)


def threads() -> int:
    """How many threads a parallel kernel may use now; no result depends on it."""
    return numba.get_num_threads()


@kernel
def nothing():
    """Never called; where its compiled code would be kept, all kernels of this folder are."""


def forget_outdated() -> None:
    """Delete compiled kernels that were made from other sources than those of now, or with other checks.

    Numba looks at the file of the function alone. A kernel contains what it calls from other files, and would go on
    with the old version of that. Nor does it look at NUMBA_BOUNDSCHECK.
    """
    if not CACHED:
        return
    digest = hashlib.sha256(str(BOUNDS_CHECKED).encode())
    for source in (*sorted(Path(__file__).parent.glob("*.py")), Path(formulas.__file__)):
        digest.update(source.read_bytes())
    folder = Path(nothing.stats.cache_path)
    stamp = folder / "sources.sha256"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for index in folder.glob("*.nbi"):
        index.unlink(missing_ok=True)
    stamp.write_text(digest.hexdigest())


class CompilationListener(event.Listener):
    """Calls `tell(name)` for every function that is about to be compiled; those read from disk are not."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def on_start(self, event: event.Event) -> None:
        """A compilation begins."""
        self.tell(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event: event.Event) -> None:
        """A compilation has ended."""


@contextmanager
def compilations(tell: Callable[[str], None]) -> Iterator[None]:
    """Have `tell(name)` called for every function compiled meanwhile."""
    listener = CompilationListener(tell)
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)

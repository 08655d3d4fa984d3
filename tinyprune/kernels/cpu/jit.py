"""How every kernel here is compiled and cached.

`cache=True`: compiled once per machine, then read from disk. `error_model="numpy"`: x / 0 is inf, as in NumPy, which
saves a test at each division. There is no fastmath, so that sums are computed in the order that the code shows. For
every constant that it is called with a function is compiled once more, but not for `int64(0)`.

With NUMBA_BOUNDSCHECK=1 every index is checked, including those of the vector loads and stores in `simd`; kernels then
run in one thread, since Numba cannot raise from inside a parallel loop.
"""

import hashlib
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from types import FunctionType
from typing import Any

import numba
import numpy as np
from numba.core import config, event

from tinyprune.kernels import formulas
from tinyprune.kernels.waiting import short_block_time, start_watch

BOUNDS_CHECKED = bool(config.BOUNDSCHECK)
SMALL = 16384  # entries; for fewer, a second thread costs more than it saves


def can_cache() -> bool:
    """Return whether Numba finds a folder for compiled code; if not, warn and say what to do."""
    try:
        numba.njit(cache=True)(can_cache)  # which is not compiled
    except RuntimeError:
        warnings.warn(
            "no folder to keep compiled kernels in, so they are compiled anew at every start; "
            "set NUMBA_CACHE_DIR to a folder that can be written",
            stacklevel=2,
        )
        return False
    return True


CACHED = can_cache()

# Omitting unused entry points makes compilation a fifth faster: C code calls none of these functions, and Python no
# `inner` one. (Calling one from Python crashes the process.)
kernel = numba.njit(cache=CACHED, error_model="numpy", no_cfunc_wrapper=True)
parallel_kernel = numba.njit(cache=CACHED, error_model="numpy", no_cfunc_wrapper=True, parallel=not BOUNDS_CHECKED)
# An `inner` function counts no references to its arguments, which outlive it: Numba counts even in loops, and threads
# then wait for one another at the counts (a quarter of attention's forward at small sizes). So it makes no arrays.
inner = numba.njit(cache=CACHED, error_model="numpy", no_cfunc_wrapper=True, no_cpython_wrapper=True, _nrt=False)


def variant(function: Callable, compile: Callable, name: str, **names: Any) -> Callable:
    """Compile another version of a function, with other `names` in place of some of its module's.

    Numba names the file in its cache by __qualname__, which has to differ.
    """
    copy = FunctionType(function.__code__, function.__globals__ | names, function.__name__)
    copy.__module__, copy.__qualname__ = function.__module__, f"{function.__qualname__}_{name}"
    return compile(copy)


def loop_kernel(function: Callable) -> Callable:
    """Compile a function with a parallel loop twice, for one thread and for several.

    The result takes the number of entries, then the function's arguments; it uses one thread if entries are few. No
    two arguments may overlap in memory: Numba lets LLVM assume so of the arrays that a parallel loop reads and writes.
    """
    alone, shared = variant(function, kernel, "alone"), parallel_kernel(function)

    def launch(entries: int, *arguments: Any) -> Any:
        return (alone if entries < SMALL else shared)(*arguments)

    return launch


@parallel_kernel
def fill(x):
    """Run a parallel loop. (Its cache path is that of all kernels of this folder.)"""
    for i in numba.prange(x.size):
        x[i] = 0


def forget_outdated() -> None:
    """Delete cached kernels that were compiled from other sources than today's, or with other bounds checks.

    Numba compares only the file that a function is in. A kernel also contains what it calls from other files, and would
    keep the old version of that. Numba does not compare NUMBA_BOUNDSCHECK either.
    """
    if not CACHED:
        return
    digest = hashlib.sha256(str(BOUNDS_CHECKED).encode())
    for source in (*sorted(Path(__file__).parent.glob("*.py")), Path(formulas.__file__)):
        digest.update(source.read_bytes())
    folder = Path(fill.stats.cache_path)
    stamp = folder / "sources.sha256"
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for index in folder.glob("*.nbi"):
        index.unlink(missing_ok=True)
    stamp.write_text(digest.hexdigest())


COMPILING = "compiling kernels" + ", once on this machine" * CACHED
OF_A_RUN = 80  # functions that a run of `tiny` compiles: 75 on one processor, 80 on two
COMPILED = f"kept in {fill.stats.cache_path}, the next start needs none" if CACHED else "no folder keeps them"


def functions_of_a_run() -> int | None:
    """Return about how many functions a run compiles; None if some are there already."""
    return None if CACHED and any(Path(fill.stats.cache_path).glob("*.nbi")) else OF_A_RUN


class CompilationListener(event.Listener):
    """Calls `begin(name)` before a function is compiled and `end()` after, but not when it is read from disk."""

    def __init__(self, begin: Callable[[str], None], end: Callable[[], None]) -> None:
        self.begin, self.end = begin, end

    def on_start(self, event: event.Event) -> None:
        """Tell that a compilation begins."""
        self.begin(event.data["dispatcher"].py_func.__name__)

    def on_end(self, event: event.Event) -> None:
        """Tell that it has ended."""
        self.end()


def compilations(begin: Callable[[str], None], end: Callable[[], None]) -> AbstractContextManager[Any]:
    """Call `begin(name)` and `end()` around each function's compilation in the `with` block; they may be nested."""
    return event.install_listener("numba:compile", CompilationListener(begin, end))


def has_teams() -> bool:
    """Return whether OpenMP computes parallel loops: then each Python thread that runs one has its own threads."""
    try:
        return numba.threading_layer() == "omp"
    except ValueError:  # none has run so far
        return False


@lru_cache(maxsize=1)
def watch_threads() -> None:
    """Have threads wait as the machine needs it, see `kernels.waiting`; once a process, if it has several threads."""
    if numba.config.NUMBA_NUM_THREADS == 1 or BOUNDS_CHECKED:
        return
    if sys.platform == "darwin":
        with short_block_time():
            fill(np.empty(1000))  # Numba loads the runtime
    else:
        start_watch(has_teams, lambda: fill(np.empty(1000)))

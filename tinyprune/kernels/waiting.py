"""How threads wait for each other: actively on an idle machine, asleep where other programs want its processors.

The threads of an OpenMP runtime wait for each other after every parallel loop, a hundred times in a training step.
Actively, in a loop that reads a number over and over, they go on within a microsecond; asleep, within some 20. But a
thread that waits actively on a busy machine uses up the very time that the thread it waits for would need.

GNU's libgomp, which Numba uses on Linux, decides anew at every wait: it is active for some milliseconds, but for a
microsecond only where there are more OpenMP threads than processors (see GOMP_SPINCOUNT in its manual). So a second
team of threads, which does nothing, is all that it takes to switch. `watch` opens it while threads have to wait for
processors, and closes it afterwards. No result changes, and other libraries, which bring their own libgomp, are not
touched. Nothing is switched if the user has set how threads wait. Beside one busy program on two processors a step of
`tiny` takes 66 to 70 ms with it, and 130 to 174 without (a Xeon with AVX-512; 28 to 36 on the idle machine).

LLVM's libomp, which Numba may find on macOS, waits actively for 200 ms. It reads KMP_BLOCKTIME once, when it is loaded,
and 1 ms costs nothing on an idle machine, where 0 costs a fifth: see `short_block_time`. (On Windows, VCOMP has no such
setting.)
"""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOOK = 0.2  # seconds between two looks
BUSY, IDLE = 0.10, 0.05  # of the time that threads computed: they waited for a processor longer, or less, than this
COMPUTING = 0.1  # share of one processor, below which a look tells nothing
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # with which users decide how threads wait


def waiting_seconds() -> float:
    """How long this process's threads have been ready to run without a processor; 0 where the system does not say."""
    total = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread may have ended meanwhile
            total += int(path.read_text().split()[1])  # nanoseconds
    return total / 1e9


@contextlib.contextmanager
def second_team(open_team: Callable[[], object]) -> Iterator[None]:
    """In this context another Python thread holds a team of OpenMP threads, which sleep; `open_team` runs a loop."""
    done = threading.Event()

    def hold() -> None:
        open_team()
        done.wait()

    thread = threading.Thread(target=hold, name="tinyprune: second team", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()  # a team ends with the thread that opened it
        thread.join()


def is_busy(before: bool, waited: float, computed: float) -> bool:
    """Decide whether other programs want the processors, from what has happened since the last look.

    Args:
        before: the last decision.
        waited: seconds that our threads were ready to run without a processor.
        computed: seconds that they ran.
    """
    if computed < COMPUTING * LOOK:
        return before
    return waited > (IDLE if before else BUSY) * computed


def watch(has_teams: Callable[[], bool], open_team: Callable[[], object]) -> None:
    """Open the second team whenever the machine is busy, until the process ends; see `start_watch`."""
    busy, team = False, contextlib.ExitStack()
    waited, computed = waiting_seconds(), time.process_time()
    while True:
        time.sleep(LOOK)
        waited_before, waited = waited, waiting_seconds()
        computed_before, computed = computed, time.process_time()
        before, busy = busy, has_teams() and is_busy(busy, waited - waited_before, computed - computed_before)
        if busy and not before:
            team.enter_context(second_team(open_team))
        elif before and not busy:
            team.close()


def users_choice() -> bool:
    """Return whether the user has decided how threads wait."""
    return any(name in os.environ for name in VARIABLES)


@contextlib.contextmanager
def short_block_time() -> Iterator[None]:
    """In this context libomp, if it is loaded now, is told to wait actively for 1 ms, unless the user decides."""
    if users_choice():
        yield
        return
    os.environ["KMP_BLOCKTIME"] = "1"
    try:
        yield
    finally:
        del os.environ["KMP_BLOCKTIME"]  # other libraries may bring another libomp


def start_watch(has_teams: Callable[[], bool], open_team: Callable[[], object]) -> None:
    """Start a thread that watches; not if the user decides, or the system does not say who waits.

    Args:
        has_teams: returns whether libgomp is loaded and computes the parallel loops.
        open_team: runs a parallel loop, for which libgomp starts threads that belong to the calling Python thread.
    """
    if not users_choice() and Path("/proc/self/schedstat").exists():
        threading.Thread(target=watch, args=[has_teams, open_team], name="tinyprune: watch", daemon=True).start()

"""Compute cells on any `concurrent.futures.Executor`: this process, processes of this machine, or a Dask cluster.

A cell is submitted when its baseline is done; every result is stored at once (`store`). No more than `Workers.count`
cells are submitted at a time, since each carries its baseline's weights.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

from tinyprune.errors import (
    Interrupted,
    TinypruneError,
    UsageError,
    missing_extra,
)
from tinyprune.experiments.cells import Cell, Outcome, compute
from tinyprune.experiments.store import Store
from tinyprune.io.progress import duration, progress_bar, say
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.machine import processors

BLAS_THREADS = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True)
class Workers:
    """An executor and how to use it."""

    executor: Executor
    count: int  # how many cells are submitted at a time
    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)  # errors of a worker that has died


OpenWorkers = Callable[[], AbstractContextManager[Workers]]
Work = Callable[[Cell, bytes | None], Outcome]


class ThisProcess(Executor):
    """An executor that computes what is submitted at once, in this thread."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Future:
        """Return a future that is done."""
        future: Future = Future()
        try:
            future.set_result(function(*arguments, **options))
        except Exception as error:
            future.set_exception(error)
        return future


@contextmanager
def this_process() -> Iterator[Workers]:
    """Compute one cell after the other in this process."""
    yield Workers(ThisProcess(), 1)


def local_processes(jobs: int | None = None, backend: str = "numba") -> OpenWorkers:
    """Return processes of this machine: `jobs`, or one for each processor, or a single one if a GPU computes.

    Raises UsageError if `jobs` is less than 1, or if there is no such backend.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}")
    count = jobs or (1 if get_backend(backend).on_device else processors())

    @contextmanager
    def opened() -> Iterator[Workers]:
        before = set(multiprocessing.active_children())
        # Not forked: a fork of a process that has used threads may wait for a thread that it does not have.
        executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), look_after_worker)
        try:
            with mock.patch.dict(os.environ, dict.fromkeys(BLAS_THREADS, "1")):
                for _ in range(count):
                    # all start now: one that Ctrl-C meets while it starts would stay behind
                    executor.submit(int)
                yield Workers(executor, 2 * count)
        except BaseException:
            # Not terminated: one that trains would stop after its step, and begin with the next cell.
            for process in set(multiprocessing.active_children()) - before:
                process.kill()
            # One may have been killed while it sent a result. Whoever reads the rest waits for it as long as somebody
            # may still write, and this process holds that end, too, which has no public name.
            executor._result_queue._writer.close()
            raise
        finally:
            executor.shutdown(cancel_futures=True)

    return opened


def look_after_worker() -> None:
    """Set up a worker process: it ignores Ctrl-C, which the parent handles, and exits when its parent dies.

    It says nothing: its bars would run into the parent's, and its errors are the results of its futures.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115 (until the process ends)
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def dask_cluster(address: str, timeout: float = 10) -> OpenWorkers:
    """Return the workers of the Dask scheduler at `address`, such as tcp://host:8786.

    A worker process computes one cell at a time, so start `dask worker ADDRESS --nworkers auto --nthreads 1` to use a
    whole machine. Workers may come and go; while there are none the study waits. Raises MissingExtraError if Dask is
    not installed, and UsageError when opened, if no scheduler answers within `timeout` seconds, it has no workers, or
    they have another version of tinyprune.
    """
    try:
        import distributed
    except ImportError as error:
        raise missing_extra("--scheduler", "dask", __name__) from error

    @contextmanager
    def opened() -> Iterator[Workers]:
        try:
            client = distributed.Client(address, timeout=timeout, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {address}: {error}; start one with: dask scheduler"
            ) from error
        with client:
            if not client.nthreads():
                command = f"dask worker {address} --nworkers auto --nthreads 1"
                found = f"the Dask scheduler at {address} has no workers"
                raise UsageError(f"{found}; start some with: {command}")
            here = version("tinyprune")
            for worker, there in client.run(version, "tinyprune", on_error="return").items():
                if there != here:
                    found = f"the Dask worker {worker} has tinyprune {there}"
                    raise UsageError(f"{found}, needed is {here}; install the same there")
            # pure=False: a cell that failed in an earlier run is a new task, not the error of the old one.
            executor = client.get_executor(pure=False)
            yield Workers(executor, 2 * len(client.nthreads()), (distributed.KilledWorker,))

    return opened


def run_cells(
    cells: Iterable[Cell],
    store: Store,
    workers: OpenWorkers,
    describe: str = "cells",
    work: Work = compute,
) -> None:
    """Compute all cells that are not in the store, and the baselines that they start from.

    Args:
        cells: in this order, if one is computed at a time.
        describe: what the messages call them.
        work: returns the outcome of a cell, given its baseline's weights or None.

    Finished cells are stored, whatever happens to the others.

    Raises:
        UsageError: if another process is at work in the store's directory.
        TinypruneError: if a cell fails, or its worker dies.
        Interrupted: after Ctrl-C.
    """
    with store.locked():
        todo = missing(cells, store)
        total, start = len(todo), time.monotonic()
        if not todo:
            return
        say(f"{describe}: {total} cells to be computed, {len(store.records)} are in {store.directory}")
        try:
            style = {"desc": describe, "unit": "cell", "smoothing": 0}
            with workers() as opened, progress_bar(total=total, **style) as bar:
                for done, cell in enumerate(computed(todo, store, opened, work), 1):
                    bar.update()
                    bar.set_postfix_str(str(cell), refresh=False)
                    if bar.disable:  # a log has no bar
                        left = duration((time.monotonic() - start) / done * (total - done))
                        say(f"{describe}: {done} of {total}: {cell}, about {left} left")
        except KeyboardInterrupt as error:
            raise Interrupted(
                f"stopped; what is finished is kept in {store.directory}; the same command goes on"
            ) from error


def missing(cells: Iterable[Cell], store: Store) -> dict[str, Cell]:
    """Return, by key, the cells that are not done, preceded by the baselines whose weights they need."""
    wanted = [cell for cell in cells if cell.key not in store.records]
    baselines = [cell.baseline for cell in wanted if cell.baseline is not None]
    first = [baseline for baseline in baselines if store.checkpoint(baseline) is None]
    return {cell.key: cell for cell in (*first, *wanted)}


def computed(todo: dict[str, Cell], store: Store, workers: Workers, work: Work) -> Iterator[Cell]:
    """Yield cells as they are done and stored; a cell waits for its baseline."""
    waiting = dict(todo)
    at_work: dict[Future, Cell] = {}
    while waiting or at_work:
        for cell in list(waiting.values()):
            if len(at_work) >= workers.count:
                break
            weights = None if cell.baseline is None else store.checkpoint(cell.baseline)
            if cell.baseline is None or weights is not None:
                at_work[workers.executor.submit(work, cell, weights)] = waiting.pop(cell.key)
        done, _ = wait(at_work, return_when=FIRST_COMPLETED)
        failed: list[tuple[Cell, Future]] = []
        for future in done:
            cell = at_work.pop(future)
            if future.cancelled() or future.exception() is not None:
                failed.append((cell, future))  # what was done at the same moment is stored first
            else:
                store.add(cell, future.result())
                yield cell
        for cell, future in failed:
            try:
                future.result()
            except TinypruneError as error:
                raise type(error)(f"{cell}: {error}") from error
            except (CancelledError, *workers.lost) as error:
                raise TinypruneError(
                    f"a worker died, or was stopped, while {cell} was being computed; if memory ran out, use fewer "
                    "--jobs. The same command goes on"
                ) from error

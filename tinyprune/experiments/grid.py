"""Compute cells on any `concurrent.futures.Executor`: processes of this machine, or a Dask cluster.

A cell is submitted when its baseline is done; every result is stored at once (`store`). At most twice as many cells as
there are workers are submitted, since each carries its baseline's weights. A cell whose worker dies is submitted again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import Counter
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

from tinyprune.errors import MissingExtraError, TinypruneError, UsageError, install_command
from tinyprune.experiments.cells import Cell, compute
from tinyprune.experiments.store import Store
from tinyprune.kernels.backend import get_backend
from tinyprune.machine import processors
from tinyprune.progress import duration, progress_bar, say

ATTEMPTS = 3  # at a cell whose workers die
BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@dataclass(frozen=True)
class Workers:
    """An executor and how to use it."""

    executor: Executor
    count: int  # how many cells it computes at a time
    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)  # a future's error that means that its worker has died


OpenWorkers = Callable[[], AbstractContextManager[Workers]]


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
            with environment(dict.fromkeys(BLAS_THREADS, "1")):
                yield Workers(executor, count)
        except BaseException:
            # Nobody waits for what they are computing.
            for process in set(multiprocessing.active_children()) - before:
                process.terminate()
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


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started in this context."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


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
        raise MissingExtraError(f"--scheduler needs Dask, which is not here: {install_command('dask')}") from error

    @contextmanager
    def opened() -> Iterator[Workers]:
        try:
            client = distributed.Client(address, timeout=timeout, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {address}: {error}; start one with: dask scheduler"
            ) from error
        with client:
            check_workers(client, address)
            # pure=False: a cell that is submitted again is a new task, not the error of the old one.
            executor = client.get_executor(pure=False)
            yield Workers(executor, len(client.nthreads()), (BrokenExecutor, distributed.KilledWorker))

    return opened


def check_workers(client: Any, address: str) -> None:
    """Raise UsageError unless the cluster has workers and all have this version of tinyprune."""
    if not client.nthreads():
        command = f"dask worker {address} --nworkers auto --nthreads 1"
        raise UsageError(f"the Dask scheduler at {address} has no workers; start some with: {command}")
    here = version("tinyprune")
    for worker, there in client.run(version, "tinyprune", on_error="return").items():
        if there != here:
            raise UsageError(
                f"the Dask worker {worker} has tinyprune {there}, needed is {here}; install the same there"
            )


def run_cells(cells: Iterable[Cell], store: Store, workers: OpenWorkers, describe: str = "cells") -> None:
    """Compute all cells that are not in the store, and the baselines that they start from.

    Raises TinypruneError if a cell fails, or its workers died three times. Finished cells are kept.
    """
    todo = missing(cells, store)
    attempts: Counter[str] = Counter()
    total, start = len(todo), time.monotonic()
    with progress_bar(total=total, desc=describe, unit="cell", smoothing=0) as bar:
        while todo:
            with workers() as opened:
                for cell in _computed(todo, store, opened, attempts):
                    del todo[cell.key]
                    bar.update()
                    bar.set_postfix_str(str(cell), refresh=False)
                    if bar.disable:  # a log has no bar
                        done = total - len(todo)
                        left = (time.monotonic() - start) / done * len(todo)
                        say(f"{describe}: {done} of {total}: {cell}, about {duration(left)} left")


def missing(cells: Iterable[Cell], store: Store) -> dict[str, Cell]:
    """Return, by key, the cells that are not done, preceded by the baselines whose weights they need."""
    todo: dict[str, Cell] = {}
    wanted = [cell for cell in cells if store.record(cell) is None]
    for cell in wanted:
        baseline = cell.baseline
        if baseline is not None and store.checkpoint(baseline) is None:
            todo[baseline.key] = baseline
    return todo | {cell.key: cell for cell in wanted}


def _computed(todo: dict[str, Cell], store: Store, workers: Workers, attempts: Counter[str]) -> Iterator[Cell]:
    """Yield cells as they are done and stored; stop early if the executor is broken and has to be replaced."""
    waiting = dict(todo)
    running: dict[Future, Cell] = {}
    while waiting or running:
        for cell in list(waiting.values()):
            if len(running) >= 2 * workers.count:
                break
            weights = None if cell.baseline is None else store.checkpoint(cell.baseline)
            if cell.baseline is None or weights is not None:
                running[workers.executor.submit(compute, cell, weights)] = waiting.pop(cell.key)
        done, _ = wait(running, return_when=FIRST_COMPLETED)
        failures: list[tuple[Cell, BaseException]] = []
        for future in done:
            cell = running.pop(future)
            error = CancelledError("it was cancelled") if future.cancelled() else future.exception()
            if error is None:
                store.add(cell, future.result())
                yield cell
            else:
                failures.append((cell, error))
        for cell, error in failures:
            if isinstance(error, CancelledError):
                raise TinypruneError(f"{cell}: {error}; was the scheduler stopped? The same command goes on") from error
            if not isinstance(error, workers.lost):
                raise error
            attempts[cell.key] += 1
            if attempts[cell.key] >= ATTEMPTS:
                raise TinypruneError(
                    f"workers died {ATTEMPTS} times while {cell} was being computed ({error}); if memory ran out, use "
                    "fewer --jobs"
                ) from error
            waiting[cell.key] = cell
        if any(isinstance(error, BrokenExecutor) for _, error in failures):
            return

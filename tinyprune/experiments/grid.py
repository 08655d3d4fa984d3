"""Computing cells on any `concurrent.futures.Executor`: processes of this machine, or a Dask cluster.

A cell is sent once what it starts from, its baseline, is there; what came back is kept at once (`store`). Only about
twice as many cells as can be computed at a time are on their way, since each takes its baseline's weights along. When
a worker dies its cell is sent again.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from tinyprune.errors import TinypruneError, UsageError
from tinyprune.experiments.cells import Cell, compute
from tinyprune.experiments.store import Store

ATTEMPTS = 3  # that a cell gets when workers die


@dataclass(frozen=True)
class Workers:
    """Where cells are computed.

    Attributes:
        executor: takes `submit`.
        count: how many cells it computes at a time.
        lost: exceptions of a future that say that its worker has died, not that the cell has failed.
    """

    executor: Executor
    count: int
    lost: tuple[type[BaseException], ...] = (BrokenExecutor,)


OpenWorkers = Callable[[], AbstractContextManager[Workers]]


def local_processes(jobs: int | None = None) -> OpenWorkers:
    """Processes of this machine, by default one for each processor. Raises UsageError for less than one."""
    if jobs is not None and jobs < 1:
        raise UsageError(f"jobs must be at least 1, got {jobs}")
    count = jobs or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)

    @contextmanager
    def opened() -> Iterator[Workers]:
        # Not forked: a copy of a process that has used threads may wait for one that it has no copy of.
        context = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(count, context)
        try:
            yield Workers(executor, count)
        finally:
            executor.shutdown(cancel_futures=True)

    return opened


def dask_cluster(address: str, timeout: float = 10) -> OpenWorkers:
    """The workers of the Dask scheduler at `address`, such as tcp://host:8786, which has `timeout` seconds to answer.

    Raises:
        UsageError: if Dask is not installed, or nobody answers there. (When opened.)
    """

    @contextmanager
    def opened() -> Iterator[Workers]:
        try:
            import distributed
        except ImportError as error:
            raise UsageError('--scheduler needs Dask: python -m pip install -e ".[dask]"') from error
        try:
            client = distributed.Client(address, timeout=timeout, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {address}: {error}; start one with: dask scheduler"
            ) from error
        with client:
            count = sum(client.nthreads().values())
            if not count:
                raise UsageError(
                    f"the Dask scheduler at {address} has no workers; start one with: dask worker {address}"
                )
            # Dask itself computes a dead worker's tasks again elsewhere, and gives up after some deaths.
            yield Workers(client.get_executor(), count, (BrokenExecutor, distributed.KilledWorker))

    return opened


def run_cells(cells: Iterable[Cell], store: Store, workers: OpenWorkers, describe: str = "cells") -> None:
    """Compute all cells that the store does not have yet, with the baselines that they start from.

    Raises:
        TinypruneError: if a cell fails, or its workers died three times. What was finished before is kept.
    """
    todo = missing(cells, store)
    attempts: Counter[str] = Counter()
    with tqdm(total=len(todo), desc=describe, unit="cell", disable=None, smoothing=0) as bar:
        while todo:
            with workers() as opened:
                for cell in _computed(todo, store, opened, attempts):
                    del todo[cell.key]
                    bar.update()
                    bar.set_postfix_str(str(cell), refresh=False)


def missing(cells: Iterable[Cell], store: Store) -> dict[str, Cell]:
    """By their keys: the cells that are not done, and before them the baselines whose weights they need."""
    todo: dict[str, Cell] = {}
    wanted = [cell for cell in cells if store.record(cell) is None]
    for cell in wanted:
        baseline = cell.baseline
        if baseline is not None and store.checkpoint(baseline) is None:
            todo[baseline.key] = baseline
    return todo | {cell.key: cell for cell in wanted}


def _computed(todo: dict[str, Cell], store: Store, workers: Workers, attempts: Counter[str]) -> Iterator[Cell]:
    """Yield cells as they are done and kept; ends early when the executor is broken, which takes a new one."""
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
        broken = False
        for future in done:
            cell = running.pop(future)
            try:
                outcome = future.result()
            except workers.lost as error:
                attempts[cell.key] += 1
                if attempts[cell.key] >= ATTEMPTS:
                    raise TinypruneError(
                        f"{cell}: its worker died {ATTEMPTS} times ({error}); if memory ran out, use fewer --jobs"
                    ) from error
                waiting[cell.key] = cell
                broken = broken or isinstance(error, BrokenExecutor)
                continue
            store.add(cell, outcome)
            yield cell
        if broken:
            return

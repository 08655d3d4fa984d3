"""A study on a real Dask cluster, a scheduler and two workers on loopback ports, one of which is killed."""

import subprocess
import sys
import threading
import time

import distributed
import pytest
from toy import assert_as_in_one_thread, toy_cell

from tinyprune.errors import UsageError
from tinyprune.experiments.grid import dask_cluster, run_cells
from tinyprune.experiments.store import Store

# Dask's own affairs on newer Pythons are not ours to fail for.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.fixture
def cluster(tmp_path):
    """The scheduler's address, and the worker processes by name."""
    processes = []

    def dask(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *arguments]
        with (tmp_path / f"dask-{len(processes)}.log").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=tmp_path))
        return processes[-1]

    address_file = tmp_path / "scheduler.json"
    options = ["--host", "127.0.0.1", "--scheduler-file", str(address_file), "--no-dashboard"]
    dask("scheduler", "--port", "0", *options)
    alone = ["--nthreads", "1", "--no-nanny"]
    workers = {name: dask("worker", "--name", name, *alone, *options) for name in ("first", "second")}
    try:
        with distributed.Client(scheduler_file=str(address_file), timeout=60, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=60)
            yield client, workers
    finally:
        for process in processes:
            process.kill()  # asked to end, a worker waits long for a scheduler that has ended first
            process.wait(20)


def test_a_killed_worker_loses_nothing_and_results_are_those_without_dask(tmp_path, cluster):
    (client, workers), store, done_before_the_kill = cluster, Store(tmp_path / "study"), []
    cells = [toy_cell(tmp_path, method, 2, gate_train__steps=250) for method in ("random", "gates", "voita")]

    def kill_one() -> None:
        """A worker that is in the middle of a cell which is not the baseline."""
        names = {a: w["name"] for a, w in client.scheduler_info()["workers"].items()}
        while not store.records or not (busy := [a for a, tasks in client.processing().items() if tasks]):
            time.sleep(0.01)
        done_before_the_kill.extend(store.records)
        workers[names[busy[0]]].kill()

    killer = threading.Thread(target=kill_one)
    killer.start()
    run_cells(cells, store, dask_cluster(client.scheduler.address))
    killer.join()

    assert sum(process.poll() is not None for process in workers.values()) == 1
    assert done_before_the_kill and len(store.records) == 4
    assert len(store.path.read_text().splitlines()) == 4  # nothing finished was computed again
    assert_as_in_one_thread(cells, store)


def test_a_scheduler_without_workers_is_one_clear_error(cluster):
    client, _ = cluster
    client.retire_workers(list(client.scheduler_info()["workers"]))
    said = "has no workers; start some with: dask worker tcp://"
    with pytest.raises(UsageError, match=said), dask_cluster(client.scheduler.address)():
        pass

"""Processes of libraries: what they answer, and that they end."""

import sys
from pathlib import Path

import numpy as np
import pytest
from toy_works import large

from tinyprune.bench.worker import peak_memory, settle, take_turn
from tinyprune.bench.workers import THREADS, Worker, WorkerError, Workers, environment


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Worker processes find `toy_works`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_a_turn(tmp_path):
    with Workers(1) as workers:
        workers.build("ours", "a", "toy_works:quick", {"value": 2.5})
        workers.build("ours", "b", "toy_works:quick", {"value": 3.5}, rehearsal={})
        for key, value in (("a", 2.5), ("b", 3.5)):
            workers.ask("ours", "results", key=key, path=str(tmp_path / "r.npz"))
            assert np.load(tmp_path / "r.npz")["value"] == [value]
        answer = workers.ask("ours", "turn", key="a")
        assert answer.keys() == {"seconds", "elapsed", "waited"}
        assert 0 < answer["seconds"] < answer["elapsed"] and answer["waited"] >= 0
        assert len(workers.workers) == 1  # both of one library


def test_seconds_are_of_one_unit():
    from toy_works import quick

    answer = take_turn(quick(), calls=10)
    assert answer["seconds"] == answer["elapsed"] / (10 * 2)


def test_what_a_library_prints_is_no_answer():
    with Workers(1) as workers:
        workers.build("ours", "a", "toy_works:talkative", {})
        assert workers.ask("ours", "turn", key="a")["seconds"] > 0


def test_errors_are_answered_and_the_process_goes_on():
    with Workers(1) as workers:
        with pytest.raises(WorkerError, match=r"^torch: RuntimeError: no compiler$"):
            workers.build("torch", "a", "toy_works:failing", {})
        workers.build("torch", "a", "toy_works:quick", {})


def test_a_process_that_dies_is_reported_with_its_last_words():
    with Workers(1) as workers, pytest.raises(WorkerError, match="process for torch ended: Segmentation fault, so"):
        workers.build("torch", "a", "toy_works:dying", {})


def test_no_process_outlives_the_with_statement():
    with pytest.raises(ZeroDivisionError), Workers(1) as workers:
        workers.build("ours", "a", "toy_works:quick", {})
        process = workers.workers["ours"].process
        assert process.poll() is None
        1 / 0
    assert process.poll() is not None


def test_a_process_ends_when_its_parent_is_gone():
    worker = Worker("ours", 1)
    worker.process.stdin.close()
    assert worker.process.wait(timeout=30) == 0
    worker.process.stdout.close()
    worker.complaints.close()


def test_environment(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    for library in ("ours", "torch", "numpy", "numpy as set"):
        variables = environment(library, 3)
        assert {variables[name] for name in THREADS} == {"3"}
        held_back = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & variables.keys()
        assert len(held_back) == (0 if library == "numpy" else 2), library


def test_the_environment_reaches_the_process(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    for library, expected in (("numpy", -1), ("ours", 512)):
        with Workers(1) as workers:
            workers.build(library, "a", "toy_works:variable", {"name": "OPENBLAS_L2_SIZE"})
            workers.ask(library, "results", key="a", path=str(tmp_path / "r.npz"))
            assert np.load(tmp_path / "r.npz")["value"] == [expected]


def test_settle_returns_from_a_quiet_process():
    settle(look=0.001, at_most=0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process reset its peak")
def test_peak_memory():
    with Workers(1) as workers:
        for mib in (64, 16):  # the larger first: its peak must not be seen in the second
            workers.build("ours", "a", "toy_works:large", {"mib": mib}, rehearsal={"mib": 1})
            assert workers.ask("ours", "peak", key="a")["peak_mib"] == pytest.approx(mib, abs=2)


def test_peak_memory_in_this_process():
    assert peak_memory(large(4)).keys() == {"peak_mib"}

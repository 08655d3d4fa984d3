"""Cells on executors: the right ones, in the right order, and what is left when a worker dies."""

import multiprocessing
import os
import re
import signal
import struct
import sys
import threading
import time

import pytest
from toy import Here, Lost, assert_as_in_one_thread, toy_cell, toy_study

from tinyprune.errors import NotFiniteError, TinypruneError
from tinyprune.experiments.cells import Cell
from tinyprune.experiments.grid import local_processes, missing, run_cells
from tinyprune.experiments.store import Store
from tinyprune.io.progress import say


def cells_of(directory, **options) -> list[Cell]:
    return toy_study(directory, **options).cells


def test_baselines_come_first_and_only_what_is_missing_is_computed(tmp_path):
    cells = cells_of(tmp_path)
    assert len(cells) == 8  # two seeds of baseline, unpruned, random, gates
    first, rest, again = Here(), Here(), Here()
    run_cells(cells[:3], Store(tmp_path / "study"), first.opened)
    run_cells([*cells, *cells], Store(tmp_path / "study"), rest.opened)
    run_cells(cells, Store(tmp_path / "study"), again.opened)
    computed = first.computed + rest.computed
    assert {cell.key for cell in first.computed} == {cell.key for cell in cells[:3]}
    assert sorted(cell.key for cell in computed) == sorted(cell.key for cell in cells) and again.computed == []
    for cell in computed:
        assert cell.baseline is None or computed.index(cell.baseline) < computed.index(cell)


def test_a_baseline_whose_weights_are_gone_is_trained_again_only_if_needed(tmp_path):
    cells = cells_of(tmp_path, seeds=1)
    store = Store(tmp_path / "study")
    run_cells(cells, store, Here().opened)
    store.checkpoint_path(cells[0]).unlink()
    assert missing(cells, store) == {}
    more = Cell(cells[0].config, "magnitude", 1, backend="numpy")
    assert list(missing([*cells, more], store)) == [cells[0].key, more.key]
    run_cells([*cells, more], store, Here().opened)
    assert more.key in store.records and store.checkpoint(cells[0]) is not None
    assert len(store.path.read_text().splitlines()) == len(cells) + 1  # the baseline has one line


def test_a_dead_worker_ends_the_study_and_what_is_finished_is_kept(tmp_path):
    def before(cell):
        if cell.method == "gates":
            raise Lost("killed")

    store = Store(tmp_path / "study")
    said = r"died.* while all-attention gates 2 heads, seed 0 was .*fewer --jobs"
    with pytest.raises(TinypruneError, match=said):
        run_cells(cells_of(tmp_path, seeds=1), store, Here(before).opened)
    assert len(store.records) == 3


def test_a_cell_that_fails_ends_the_study_and_what_is_finished_beside_it_is_kept(tmp_path):
    """Of two that are done at the same moment."""
    bad = toy_cell(tmp_path, train__lr=1e30, train__clip=0.0)
    good, store = toy_cell(tmp_path, seed=3), Store(tmp_path / "study")
    with pytest.raises(NotFiniteError, match=r"all-attention baseline, seed 0: step .*--set train.lr=5e"):
        run_cells([bad, good], store, Here().opened)
    assert list(store.records) == [good.key]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_log_without_a_bar_has_a_line_for_each_cell(terminal, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    cells = cells_of(tmp_path, seeds=1)[:2]
    run_cells(cells, Store(tmp_path / "study"), Here().opened, "toy")
    first, *lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tinyprune: ")]
    assert first.startswith("tinyprune: toy: 2 cells to be computed, 0 are in ")
    expected = [f"tinyprune: toy: {n} of 2: {cell}, about " for n, cell in enumerate(cells, 1)]
    assert [re.sub(r"about .*", "about ", line) for line in lines] == ([] if terminal else expected)


@pytest.mark.slow
def test_processes_say_nothing(capfd):
    """On a terminal their bars would run into the parent's."""
    with local_processes(1, "numpy")() as workers:
        workers.executor.submit(say, "here").result()
    assert capfd.readouterr() == ("", "")


def half_a_result(path) -> None:
    """In a worker: send the length of a result and its first byte, and no more."""
    frame = sys._getframe()
    while "result_queue" not in frame.f_locals:
        frame = frame.f_back
    os.write(frame.f_locals["result_queue"]._writer.fileno(), struct.pack("!i", 1000) + b"x")
    path.touch()
    time.sleep(60)


def test_processes_end_though_one_is_stopped_while_it_sends_a_result(tmp_path):
    def study() -> None:
        with pytest.raises(KeyboardInterrupt), local_processes(1, "numpy")() as workers:
            workers.executor.submit(half_a_result, tmp_path / "sent")
            while not (tmp_path / "sent").exists():
                time.sleep(0.01)
            raise KeyboardInterrupt

    at_work = threading.Thread(target=study, daemon=True)
    at_work.start()
    at_work.join(timeout=30)
    assert not at_work.is_alive()


@pytest.mark.slow
def test_processes_compute_what_one_thread_computes_and_a_kill_loses_nothing(tmp_path):
    """SIGKILL to a worker while it computes ends the study; the same call goes on, to the same bits."""
    methods, store, killed = ("random", "gates", "voita", "magnitude"), Store(tmp_path / "study"), []
    cells = [toy_cell(tmp_path, method, 2, gate_train__steps=150) for method in methods]

    def kill_one() -> None:
        """Once the baseline is done, so that both processes are busy with what comes after it."""
        while not store.records:
            time.sleep(0.01)
        time.sleep(0.3)
        killed.append(multiprocessing.active_children()[0].pid)
        os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(TinypruneError, match="The same command goes on"):
        run_cells(cells, store, local_processes(2))
    killer.join()
    assert killed and 1 <= len(store.records) < 5
    run_cells(cells, store, local_processes(2))
    assert len(store.records) == len(store.path.read_text().splitlines()) == 5
    assert_as_in_one_thread(cells, store)

"""Libraries' processes: what they answer, and that they end."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyprune.bench import processes
from tinyprune.bench.processes import (
    THREADS,
    Contender,
    ProcessError,
    environment,
    library_process,
    measure_peak,
    prepare,
    take_turn,
)


def contender(library, workload, **arguments):
    return Contender(workload, library, f"toy_workloads:{workload}", arguments, 1.0, tolerance=1.0)


def test_a_turn():
    """What the library prints is no answer. Contenders of one library are kept apart."""
    with library_process("ours", 1) as ask:
        for c, result in (
            (contender("ours", "quick", value=2.5), 2.5),
            (contender("ours", "quick", value=3.5), 3.5),
            (contender("ours", "talkative"), 1.0),
        ):
            assert ask(prepare, c)["value"].tolist() == [result]
            assert ask(take_turn, c) > 0


def test_seconds_are_of_one_run(monkeypatch):
    """A first run, of 0.03 s, tells how many take 0.1 s: four, which take 0.2 s together."""
    asked, seconds = [], {1: 0.03, 4: 0.2}
    monkeypatch.setattr(processes.timeit, "timeit", lambda run, number: asked.append(number) or seconds[number])
    assert take_turn(contender("ours", "quick")) == 0.05 and asked == [1, 4]


def test_results_are_asked_for_only_if_they_are_compared():
    compared = contender("ours", "quick")
    assert prepare(compared).keys() == {"value"}
    assert prepare(Contender("", "ours", compared.target, {}, 1.0, tolerance=None)) == {}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_the_peak_of_memory_is_that_of_a_run():
    with library_process("ours", 1) as ask:
        assert 99 < ask(measure_peak, contender("ours", "large", mib=100)) < 110


def test_errors_are_answered_and_a_death_is_reported():
    with library_process("torch", 1) as ask:
        with pytest.raises(ProcessError, match=r"^torch: RuntimeError: no compiler$"):
            ask(prepare, contender("torch", "failing"))
        with pytest.raises(ProcessError, match=r"^torch: Unpicklable: no backend$"):
            ask(prepare, contender("torch", "failing_strangely"))
        ask(prepare, contender("torch", "quick"))  # the process goes on
        with pytest.raises(ProcessError, match="process for torch ended"):
            ask(prepare, contender("torch", "dying"))


def test_a_process_ends_with_the_statement():
    before = multiprocessing.active_children()
    with contextlib.suppress(ZeroDivisionError), library_process("ours", 1):
        (process,) = (child for child in multiprocessing.active_children() if child not in before)
        1 / 0
    assert not process.is_alive()


def test_ctrl_c_does_not_wait_for_a_run():
    begin, handler = time.monotonic(), signal.signal(signal.SIGALRM, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt), library_process("ours", 1) as ask:
        signal.alarm(1)
        ask(prepare, contender("ours", "endless"))
    signal.signal(signal.SIGALRM, handler)
    assert time.monotonic() - begin < 60


PARENT = """
import os, sys
from tinyprune.bench.processes import library_process
if __name__ == "__main__":
    with library_process("ours", 1):
        import multiprocessing
        (child,) = multiprocessing.active_children()
        print(child.pid, flush=True)
        os._exit(9)
"""


def test_a_process_ends_when_its_parent_is_gone(tmp_path):
    """It is nobody's child then: what it holds, the pipe here, is closed."""
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 9
    end = time.monotonic() + 30
    while Path(f"/proc/{int(done.stdout)}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_environment(monkeypatch):
    """NumPy as a peer is without what holds BLAS back; that reaches its process."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    for library in ("ours", "torch", "numpy"):
        variables = environment(library, 3)
        assert {variables[name] for name in THREADS} == {"3"}
        held_back = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & variables.keys()
        assert len(held_back) == (0 if library == "numpy" else 2), library
    for library, expected in (("numpy", -1), ("ours", 512)):
        with library_process(library, 1) as ask:
            found = ask(prepare, contender(library, "variable", name="OPENBLAS_L2_SIZE"))
            assert found["value"].tolist() == [expected]

"""Libraries' processes: what they answer, and that they end."""

import contextlib

import pytest
import toy_workloads

from tinyprune.bench.processes import THREADS, Contender, ProcessError, Processes, Server, environment


def build(processes, library, workload, key="a", arguments=None, **more):
    contender = Contender("", library, f"toy_workloads:{workload}", arguments or {}, 1.0)
    results = processes.ask(library, "build", key=key, contender=contender, with_results=True, **more)
    return {name: x.tolist() for name, x in results.items()}


def test_a_turn():
    """What the library prints is no answer."""
    with Processes(1) as processes:
        assert build(processes, "ours", "quick", arguments={"value": 2.5}) == {"value": [2.5]}
        assert build(processes, "ours", "quick", "b", {"value": 3.5}, rehearsal={"value": 1.0}) == {"value": [3.5]}
        assert build(processes, "ours", "talkative", "c") == {"value": [1]}
        for key in "ac":
            answer = processes.ask("ours", "turn", key=key)
            assert answer.keys() == {"seconds", "waited"} and answer["seconds"] > 0 and answer["waited"] >= 0
        assert len(processes.running) == 1  # all of one library


def test_seconds_are_of_one_unit(monkeypatch):
    moments = iter([10.0, 16.0])
    monkeypatch.setattr("tinyprune.bench.processes.time.perf_counter", lambda: next(moments))
    waiting = iter([1.0, 2.5])
    monkeypatch.setattr("tinyprune.bench.processes.waiting_seconds", lambda: next(waiting))
    server = Server()
    server.workloads["a"], server.once["a"] = toy_workloads.quick(), 2.0
    assert server.turn("a", seconds=5.0) == {"seconds": 6 / (3 * 2), "waited": 1.5 / 6}  # three calls of two units


def test_errors_are_answered_and_a_death_is_reported():
    with Processes(1) as processes:
        with pytest.raises(ProcessError, match=r"^torch: RuntimeError: no compiler$"):
            build(processes, "torch", "failing")
        build(processes, "torch", "quick")  # the process goes on
        with pytest.raises(ProcessError, match="process for torch ended: exit code 3"):
            build(processes, "torch", "dying")


@pytest.mark.parametrize("how", ["statement", "parent"])
def test_a_process_ends_with_the_statement_or_when_its_parent_is_gone(how):
    with contextlib.suppress(ZeroDivisionError), Processes(1) as processes:
        build(processes, "ours", "quick")
        process, pipe = processes.running["ours"]
        assert process.is_alive()
        if how == "statement":
            1 / 0
        pipe.close()
        process.join(30)
        assert process.exitcode == 0
    assert not process.is_alive()


def test_environment(monkeypatch):
    """NumPy as a peer is without what holds BLAS back; that reaches its process."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OPENBLAS_L2_SIZE", "512")
    for library in ("ours", "torch", "numpy"):
        variables = environment(library, 3)
        assert {variables[name] for name in THREADS} == {"3"}
        held_back = {"OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"} & variables.keys()
        assert len(held_back) == (0 if library == "numpy" else 2), library
    with Processes(1) as processes:
        for library, expected in (("numpy", -1), ("ours", 512)):
            found = build(processes, library, "variable", arguments={"name": "OPENBLAS_L2_SIZE"})
            assert found == {"value": [expected]}

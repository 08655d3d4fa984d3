"""Races: ratios, and what makes them void."""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tqdm import tqdm

from tinyprune.bench.race import ATTEMPTS, PATIENCE, Case, Contender, Race, Turn, disagreement, fastest, race, records
from tinyprune.errors import TinypruneError

KEYS = ["benchmark", "shape", "subject", "median_ms", "ratio_to_subject", "gflops", "alone_ms", "waited_percent"]


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """Libraries' processes find `toy_workloads`."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def contender(subject, library, workload="quick", gflop=2.0, compared=True, optional=False, **arguments) -> Contender:
    return Contender(subject, library, f"toy_workloads:{workload}", arguments, gflop, compared, optional)


def test_a_race():
    cases = [
        Case(shape, (contender("we", "ours", value=v), contender("they", "torch", value=v)))
        for shape, v in (("one", 1.0), ("two", 2.0))
    ]
    rows = race("toy", cases, rounds=2, threads=1)
    assert [(r["benchmark"], r["shape"], r["subject"]) for r in rows] == [
        ("toy", shape, subject) for shape in ("one", "two") for subject in ("we", "they")
    ]
    for ours, theirs in (rows[:2], rows[2:]):
        assert list(ours) == list(theirs) == KEYS
        assert ours["ratio_to_subject"] in (1, None) and ours["alone_ms"] is None and theirs["alone_ms"] > 0
        assert theirs["gflops"] == pytest.approx(2e3 / theirs["median_ms"])
        if theirs["ratio_to_subject"] is not None:
            assert theirs["ratio_to_subject"] == pytest.approx(theirs["median_ms"] / ours["median_ms"])


def test_no_times_without_agreement():
    case = Case("one", (contender("we", "ours"), contender("they", "torch", value=1.001)))
    with pytest.raises(TinypruneError, match=r"we and they disagree at one: value differs by 1\.0e-03 of its norm"):
        race("toy", [case], rounds=1, threads=1)
    one_apart = Case("one", (case.contenders[0], contender("they", "torch", value=9.0, compared=False)))
    assert len(race("toy", [one_apart], rounds=1, threads=1)) == 2


def test_what_cannot_be_built_is_left_out_or_an_error(capsys):
    case = Case("one", (contender("we", "ours"), contender("they", "torch", "failing", optional=True)))
    assert [r["subject"] for r in race("toy", [case], rounds=1, threads=1)] == ["we"]
    assert "they is left out at one: torch: RuntimeError: no compiler" in capsys.readouterr().err
    with pytest.raises(TinypruneError, match="no compiler"):
        race("toy", [Case("one", (case.contenders[0], contender("they", "torch", "failing")))], rounds=1, threads=1)


CASE = Case("one", (contender("we", "ours", gflop=3.0), contender("they", "torch", gflop=6.0)))


def test_ratios():
    ours, theirs = records(CASE, [Turn(0.002, 0.0), Turn(0.005, 0.01)], [None, 0.0045])
    assert ours == {
        "shape": "one", "subject": "we", "median_ms": 2.0, "ratio_to_subject": 1.0, "gflops": 1500.0,
        "alone_ms": None, "waited_percent": 0.0,
    }  # fmt: skip
    assert theirs == {
        "shape": "one", "subject": "they", "median_ms": 5.0, "ratio_to_subject": 2.5, "gflops": 1200.0,
        "alone_ms": 4.5, "waited_percent": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(("alone", "ratio"), [(0.0041, 2.5), (0.0039, None)])
def test_no_ratio_for_a_peer_that_is_slower_in_company(alone, ratio):
    """1.25 times is the border, so 4 ms for 5."""
    assert records(CASE, [Turn(0.002, 0), Turn(0.005, 0)], [None, alone])[1]["ratio_to_subject"] == ratio


@pytest.mark.parametrize("waited", [(0.0, 0.11), (0.11, 0.0)])
def test_no_ratio_on_a_busy_machine(waited):
    turns = [Turn(seconds, share) for seconds, share in zip((0.002, 0.005), waited, strict=True)]
    assert records(CASE, turns, [None, 0.005])[1]["ratio_to_subject"] is None
    calm = [Turn(turn.seconds, 0.09) for turn in turns]
    assert records(CASE, calm, [None, 0.005])[1]["ratio_to_subject"] == 2.5


class Script:
    """In place of the processes: turns of known length. The peer takes `beside` seconds in the alternating run."""

    threads = 2

    def __init__(self, alone: Sequence[float], beside: Sequence[float], waited: Sequence[float] = ()) -> None:
        self.peer = {True: list(beside), False: list(alone)}
        self.waited = list(waited)
        self.asked: list[str] = []

    def ask(self, library: str, do: str, key: str) -> dict[str, float]:
        after_us = self.asked[-1:] == ["ours"]
        self.asked.append(library)
        seconds = 1.0 if library == "ours" else self.peer[after_us].pop(0)
        return {"seconds": seconds, "elapsed": 1.0, "waited": self.waited.pop(0) if self.waited else 0.0}


def run_script(script: Script, tmp_path: Path) -> tuple[Race, list[dict]]:
    running = Race(1, script, tmp_path, tqdm(disable=True))
    running.time_alone(CASE, CASE.contenders[1])
    return running, running.run(CASE)


def test_a_peer_that_was_disturbed_once_gets_its_ratio(tmp_path):
    script = Script(alone=[4.0, 4.1], beside=[9.0, 4.4])
    _, (_, theirs) = run_script(script, tmp_path)
    assert (theirs["ratio_to_subject"], theirs["alone_ms"]) == (4.4, 4100)
    assert script.asked == ["torch", "ours", "torch", "torch", "ours", "torch"]  # alone, both, alone again, both


def test_a_peer_that_stays_disturbed_does_not(tmp_path, capsys):
    script = Script(alone=[4.0] * 4, beside=[9.0] * ATTEMPTS)
    _, (ours, theirs) = run_script(script, tmp_path)
    assert (ours["ratio_to_subject"], theirs["ratio_to_subject"], theirs["median_ms"]) == (1, None, 9000)
    assert "no ratio for they at one: it was slower than alone, or the machine was busy" in capsys.readouterr().err


def test_a_turn_in_which_others_took_processors_is_taken_again(tmp_path, monkeypatch):
    script = Script(alone=[7.0, 4.0], beside=[4.4], waited=[0.5, 0.03])  # of 2 threads: 25%, 1.5%
    monkeypatch.setattr("tinyprune.bench.race.PAUSES", (0.001, 0.001))
    running, (_, theirs) = run_script(script, tmp_path)
    assert theirs["alone_ms"] == 4000 and running.patience < PATIENCE


def test_patience_ends(tmp_path, monkeypatch):
    monkeypatch.setattr("tinyprune.bench.race.PATIENCE", 0.0)
    script = Script(alone=[4.0], beside=[4.4], waited=[0.1] * 3)
    _, (_, theirs) = run_script(script, tmp_path)
    assert (theirs["waited_percent"], theirs["ratio_to_subject"]) == (5, 4.4)


class Ways(contextlib.nullcontext):
    """In place of the processes: two ways whose turns have known lengths; the first is disturbed once."""

    def __init__(self, times: dict[str, list[float]]) -> None:
        super().__init__(self)
        self.times = times

    def ask(self, library: str, do: str, key: str, **arguments: object) -> dict[str, float]:
        return {} if do == "build" else {"seconds": self.times[key].pop()}


def test_fastest_is_who_took_the_least_time_once(monkeypatch):
    ways = Ways({"one/we": [0.3, 9.0, 0.1], "one/they": [0.2, 0.2, 0.2]})
    monkeypatch.setattr("tinyprune.bench.race.Processes", lambda threads: ways)
    assert fastest(CASE, threads=1).subject == "we"
    assert ways.times == {"one/we": [], "one/they": []}


@pytest.mark.parametrize(
    ("theirs", "problem"),
    [
        ({"x": np.array([1.0, 2.0])}, ""),
        ({"x": np.array([1.0, 2.0001], np.float32)}, ""),
        ({"x": np.array([1.0, 2.01])}, "x differs by"),
        ({"x": np.array([1.0, math.nan])}, "x differs by nan"),
        ({"x": np.array([[1.0, 2.0]])}, "x has shapes"),
        ({"y": np.array([1.0, 2.0])}, "one has x, the other y"),
        ({}, "one has x, the other "),
    ],
)
def test_agreement(theirs, problem):
    said = disagreement({"x": np.array([1.0, 2.0])}, theirs, 1e-4)
    assert said.startswith(problem) and bool(said) == bool(problem)
    assert disagreement({"x": np.zeros(3)}, {"x": np.zeros(3)}, 1e-4) == ""

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


def test_no_times_without_agreement_unless_results_are_not_compared():
    we, they = contender("we", "ours"), contender("they", "torch", value=1.001)
    with pytest.raises(TinypruneError, match=r"we and they disagree at one: value differs by 1\.0e-03 of its norm"):
        race("toy", [Case("one", (we, they))], rounds=1, threads=1)
    apart = contender("they", "torch", value=9.0, compared=False)
    assert len(race("toy", [Case("one", (we, apart))], rounds=1, threads=1)) == 2


def test_what_cannot_be_built_is_left_out_or_an_error(capsys):
    we, they = contender("we", "ours"), contender("they", "torch", "failing", optional=True)
    assert [r["subject"] for r in race("toy", [Case("one", (we, they))], rounds=1, threads=1)] == ["we"]
    assert "they is left out at one: torch: RuntimeError: no compiler" in capsys.readouterr().err
    with pytest.raises(TinypruneError, match="no compiler"):
        race("toy", [Case("one", (we, contender("they", "torch", "failing")))], rounds=1, threads=1)


CASE = Case("one", (contender("we", "ours", gflop=3.0), contender("they", "torch", gflop=6.0)))


@pytest.mark.parametrize(
    ("alone", "waited", "ratio"),
    [
        (0.0045, (0.0, 0.01), 2.5),
        (0.0041, (0.0, 0.0), 2.5),  # 1.25 times is the limit, so 4 ms for 5
        (0.0039, (0.0, 0.0), None),
        (0.005, (0.09, 0.09), 2.5),
        (0.005, (0.0, 0.11), None),  # a busy machine
        (0.005, (0.11, 0.0), None),
    ],
)
def test_no_ratio_if_a_peer_was_slower_than_alone_or_the_machine_was_busy(alone, waited, ratio):
    ours, theirs = records(CASE, [Turn(0.002, waited[0]), Turn(0.005, waited[1])], [None, alone])
    assert list(ours.values()) == ["one", "we", 2, None if waited[0] > 0.1 else 1, 1500, None, 100 * waited[0]]
    assert list(theirs.values()) == ["one", "they", 5, ratio, 1200, 1e3 * alone, 100 * waited[1]]
    assert list(ours) == list(theirs) == KEYS[1:]


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

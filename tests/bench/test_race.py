"""Races: ratios, and what makes them void."""

import contextlib
import math

import numpy as np
import pytest
from tqdm import tqdm

from tinyprune.bench.processes import Contender
from tinyprune.bench.race import ATTEMPTS, Case, disagreement, race, records, take_turns
from tinyprune.errors import TinypruneError

KEYS = ["benchmark", "shape", "subject", "median_ms", "ratio_to_subject", "gflops", "waited_percent"]


def contender(subject, library, workload="quick", gflop=2.0, value=1.0, **options) -> Contender:
    arguments = {"value": value} if workload == "quick" else {}
    return Contender(subject, library, f"toy_workloads:{workload}", arguments, gflop, **options)


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
        assert ours["ratio_to_subject"] in (1, None)
        assert theirs["gflops"] == pytest.approx(2e3 / theirs["median_ms"])
        if theirs["ratio_to_subject"] is not None:
            assert theirs["ratio_to_subject"] == pytest.approx(theirs["median_ms"] / ours["median_ms"])


def test_no_times_without_agreement_unless_results_are_not_compared():
    we, they = contender("we", "ours"), contender("they", "torch", value=1.001)
    with pytest.raises(TinypruneError, match=r"we and they disagree at one: value differs by 1\.0e-03 of its norm"):
        race("toy", [Case("one", (we, they))], rounds=1, threads=1)
    for more in ({"compared": False}, {"tolerance": 2e-3}):
        apart = contender("they", "torch", value=1.001, **more)
        assert len(race("toy", [Case("one", (we, apart))], rounds=1, threads=1)) == 2


def test_what_cannot_be_built_is_left_out_or_an_error(capsys):
    we, they = contender("we", "ours"), contender("they", "torch", "failing", optional=True)
    assert [r["subject"] for r in race("toy", [Case("one", (we, they))], rounds=1, threads=1)] == ["we"]
    assert "they is left out at one: torch: RuntimeError: no compiler" in capsys.readouterr().err
    with pytest.raises(TinypruneError, match="no compiler"):
        race("toy", [Case("one", (we, contender("they", "torch", "failing")))], rounds=1, threads=1)


CASE = Case("one", (contender("we", "ours", gflop=3.0), contender("they", "torch", gflop=6.0)))


@pytest.mark.parametrize(("waited", "ratio"), [((0.0, 0.01), 2.5), ((0.18, 0.18), 2.5), ((0.0, 0.22), None)])
def test_no_ratio_on_a_busy_machine(waited, ratio):
    """Threads may wait a tenth of the time, here one of two threads a fifth of it."""
    turns = [{"seconds": 0.002, "waited": waited[0]}, {"seconds": 0.005, "waited": waited[1]}]
    ours, theirs = records(CASE, turns, threads=2)
    assert list(ours.values()) == ["one", "we", 2, 1, 1500, 50 * waited[0]]
    assert list(theirs.values()) == ["one", "they", 5, ratio, 1200, 50 * waited[1]]
    assert list(ours) == list(theirs) == KEYS[1:]


class Script(contextlib.nullcontext):
    """In place of the processes: turns of one second; `waited` is how long the peer waits in each of its turns."""

    def __init__(self, waited: list[float]) -> None:
        super().__init__(self)
        self.threads, self.waited, self.asked = 1, waited, []

    def ask(self, library: str, do: str, key: str) -> dict[str, float]:
        self.asked.append(library)
        return {"seconds": 1.0, "waited": self.waited.pop(0) if library == "torch" else 0.0}


@pytest.mark.parametrize(("waited", "attempts", "ratio"), [([0.3, 0.0], 2, 1), ([0.3] * ATTEMPTS, ATTEMPTS, None)])
def test_a_comparison_that_was_disturbed_is_repeated_and_has_no_ratio_if_it_stays_so(waited, attempts, ratio, capsys):
    script = Script(waited)
    rows = take_turns(CASE, script, 1, tqdm(disable=True))
    assert script.asked == ["ours", "torch"] * attempts and [row["ratio_to_subject"] for row in rows] == [1, ratio]
    said = "no ratio for they at one: other programs had the processors"
    assert (said in capsys.readouterr().err) == (ratio is None)


RESULTS = [({"x": np.array([1.0, 2.0])}, ""), ({"x": np.array([1.0, 2.0001], np.float32)}, "")]
RESULTS += [({"x": np.array([1.0, 2.01])}, "x differs by"), ({"x": np.array([1.0, math.nan])}, "x differs by nan")]
RESULTS += [({"x": np.array([[1.0, 2.0]])}, "x has shapes"), ({"y": np.array([1.0, 2.0])}, "one has x, the other y")]
RESULTS += [({}, "one has x, the other ")]


@pytest.mark.parametrize(("theirs", "problem"), RESULTS)
def test_agreement(theirs, problem):
    said = disagreement({"x": np.array([1.0, 2.0])}, theirs, 1e-4)
    assert said.startswith(problem) and bool(said) == bool(problem)
    assert disagreement({"x": np.zeros(3)}, {"x": np.zeros(3)}, 1e-4) == ""

"""Races: alternating turns, ratios, and what makes them void."""

import math
from contextlib import contextmanager

import numpy as np
import pytest

from tinyprune.bench import race as races
from tinyprune.bench.processes import Contender, prepare
from tinyprune.bench.race import disagreement, race, with_memory
from tinyprune.errors import TinypruneError

KEYS = ["benchmark", "shape", "subject", "median_ms", "ratio_to_subject", "gflops", "spread_percent", "rounds"]


def contender(subject, library, workload="quick", gflop=2.0, value=1.0, tolerance=1e-4, **options) -> Contender:
    arguments = {"value": value} if workload == "quick" else {}
    return Contender(subject, library, f"toy_workloads:{workload}", arguments, gflop, tolerance, **options)


WE, THEY = contender("we", "ours"), contender("they", "torch")


def test_a_race():
    ours, theirs = race("toy", "one", [WE, THEY], rounds=2, threads=1)
    assert [(r["benchmark"], r["shape"], r["subject"]) for r in (ours, theirs)] == [
        ("toy", "one", "we"),
        ("toy", "one", "they"),
    ]
    assert list(ours) == list(theirs) == KEYS
    assert ours["ratio_to_subject"] == 1
    assert theirs["gflops"] == pytest.approx(2e3 / theirs["median_ms"])
    assert theirs["ratio_to_subject"] == pytest.approx(theirs["median_ms"] / ours["median_ms"])


def script(monkeypatch, seconds: dict[str, list[float]], stop_after: int | None = None) -> list[str]:
    """Put numbers in place of the processes: by library, what each turn takes. Return who will have been asked.

    After `stop_after` turns comes Ctrl-C.
    """
    asked = []

    def ask(do, contender):
        if do is prepare:
            return {}
        asked.append(contender.library)
        if stop_after is not None and len(asked) > stop_after:
            raise KeyboardInterrupt
        return seconds[contender.library].pop(0)

    @contextmanager
    def library_process(library, threads):
        yield ask

    monkeypatch.setattr(races, "library_process", library_process)
    return asked


def test_contenders_alternate_and_ratios_are_of_medians(monkeypatch):
    turns = {"ours": [0.002, 0.003, 0.001], "torch": [0.005, 0.005, 0.105]}
    asked = script(monkeypatch, turns)
    ours, theirs = race("toy", "one", [WE, contender("they", "torch", gflop=6.0)], rounds=3, threads=2)
    assert asked == 3 * ["ours", "torch"]
    assert list(ours.values()) == ["toy", "one", "we", 2, 1, 1000, pytest.approx(50), 3]
    assert list(theirs.values()) == ["toy", "one", "they", 5, 2.5, 1200, 0, 3]


@pytest.mark.parametrize("turns", [3, 4, 5])
def test_ctrl_c_keeps_the_rounds_that_are_complete(turns, monkeypatch, capsys):
    """In the second round, at its end, and in the third one."""
    asked = script(monkeypatch, {"ours": [0.002, 0.004, 9.0], "torch": [0.005, 0.007, 9.0]}, stop_after=turns)
    ours, theirs = race("toy", "one", [WE, THEY], rounds=9, threads=2)
    assert len(asked) == turns + 1
    complete = turns // 2
    assert ours["rounds"] == theirs["rounds"] == complete
    assert ours["median_ms"] == [2, 3][complete - 1] and theirs["median_ms"] == [5, 6][complete - 1]
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "tinyprune: toy one: 2 contenders are prepared, some of which compile"
    assert said[1].startswith("tinyprune: toy one: round 1 of 9, the others take ")


def test_ctrl_c_in_the_first_round_leaves_nothing_to_compare(monkeypatch):
    script(monkeypatch, {"ours": [0.002], "torch": []}, stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        race("toy", "one", [WE, THEY], rounds=9, threads=2)


def test_memory_is_that_of_each_contender_over_ours(monkeypatch):
    script(monkeypatch, {"ours": [20.0], "torch": [50.0]})
    rows = with_memory([{"subject": "we"}, {"subject": "they"}, {"subject": "BLAS"}], [WE, THEY], threads=1)
    assert [(row["peak_mib"], row["memory_ratio"]) for row in rows] == [(20, 1), (50, 2.5), (None, None)]
    script(monkeypatch, {"ours": [None]})  # the system does not tell
    assert with_memory([{"subject": "we"}], [WE], 1) == [{"subject": "we", "peak_mib": None, "memory_ratio": None}]


def test_no_times_without_agreement_unless_results_are_not_compared():
    they = contender("they", "torch", value=1.001)
    with pytest.raises(TinypruneError, match=r"we and they disagree at one: value differs by 1\.0e-03 of its norm"):
        race("toy", "one", [WE, they], rounds=1, threads=1)
    for tolerance in (None, 2e-3):
        apart = contender("they", "torch", value=1.001, tolerance=tolerance)
        assert len(race("toy", "one", [WE, apart], rounds=1, threads=1)) == 2


def test_what_cannot_be_built_is_left_out_or_an_error(capsys):
    they = contender("they", "torch", "failing", optional=True)
    assert [r["subject"] for r in race("toy", "one", [WE, they], rounds=1, threads=1)] == ["we"]
    assert "they is left out at one: torch: RuntimeError: no compiler" in capsys.readouterr().err
    with pytest.raises(TinypruneError, match="no compiler"):
        race("toy", "one", [WE, contender("they", "torch", "failing")], rounds=1, threads=1)


RESULTS = [({"x": np.array([1.0, 2.0])}, ""), ({"x": np.array([1.0, 2.0001], np.float32)}, "")]
RESULTS += [({"x": np.array([1.0, 2.01])}, "x differs by"), ({"x": np.array([1.0, math.nan])}, "x differs by nan")]
RESULTS += [({"x": np.array([[1.0, 2.0]])}, "x has shapes"), ({"y": np.array([1.0, 2.0])}, "one has x, the other y")]
RESULTS += [({}, "one has x, the other ")]


@pytest.mark.parametrize(("theirs", "problem"), RESULTS)
def test_agreement(theirs, problem):
    said = disagreement({"x": np.array([1.0, 2.0])}, theirs, 1e-4)
    assert said.startswith(problem) and bool(said) == bool(problem)
    assert disagreement({"x": np.zeros(3)}, {"x": np.zeros(3)}, 1e-4) == ""

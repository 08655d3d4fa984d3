"""Assignments with pytest: for students without Jupyter, and for Gradescope."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyprune

TESTS = """
import numpy as np
import pytest

from tinyprune.course import answer, expect_close

def check(name, x, hint):
    expect_close(answer(name)(x), 2 * x, f"{name} must double", fed={"x": x}, hint=hint)

@pytest.mark.a9_1
@pytest.mark.points(2)
def test_a9_1_double():
    check("double", np.arange(3.0), "twice")

@pytest.mark.a9_2
@pytest.mark.points(3)
def test_a9_2_twice():
    check("twice", np.arange(3.0), "once more")
"""
HIDDEN = """
@pytest.mark.a9_2
@pytest.mark.points(5)
@pytest.mark.hidden
def test_a9_2_twice_hidden():
    check("twice", np.arange(4.0), "once more")
"""
RIGHT = "def double(x):\n    return 2 * x\n\ndef twice(x):\n    return x + x\n"
WRONG = "def double(x):\n    return 2 * x\n\ndef twice(x):\n    return x\n"
SETTINGS = """[pytest]
addopts = -p tinyprune.course.pytest_plugin --strict-markers --tb=no -rN -q
markers =
    a9_1: one
    a9_2: two
"""


@pytest.fixture
def assignment(tmp_path):
    """A folder a9 with tests; call it with answers and options to run them."""
    folder = tmp_path / "a9"
    folder.mkdir()
    (folder / "pytest.ini").write_text(SETTINGS)

    def run(answers, *options, hidden=False):
        (folder / "a9.py").write_text(answers)
        (folder / "test_a9.py").write_text(TESTS + HIDDEN if hidden else TESTS)
        environment = os.environ | {"PYTHONPATH": str(Path(tinyprune.__file__).parents[1])}
        command = [sys.executable, "-m", "pytest", "a9", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)
        return done.returncode, done.stdout + done.stderr

    return run


IN_PROCESS, IN_PYTEST = ["--in-process"], "import sys\nassert 'pytest' in sys.modules\n"
VISIBLE = "the visible tests only. Hidden tests, which run after you hand in"
FAILED = ["2 of 5 points", "twice must double", "input     x = float64 array", "got       2 ", "expected  4"]
NO_TEXT = "def double(x):\n    raise ValueError(chr(0xd800))\ntwice = double\n"
WITH_ERROR = RIGHT.replace("return x + x", "return x + y")
NAME_ERROR = ["NameError: name 'y' is not defined\nin your code:\n", "line 5, in twice\n    return x + y"]
ENDS_EARLY = RIGHT.replace("def twice", "1 / 0\n\ndef twice")
NO_TWICE = "no function twice: keep its name as it was\na9.py ends with an error: ZeroDivisionError"
# Answers, options, what is printed and what is not. Hidden tests run where the options say so.
PRINTED = {
    "all passed": (RIGHT, [], ["5 of 5 points of the tests that ran.", VISIBLE], "Traceback"),
    "failure": (WRONG, [], [*FAILED, "once more"], "expect_close("),
    "one task": (WRONG, ["-m", "a9_1"], ["2 of 2 points"], "twice must double"),
    "hidden": (RIGHT, ["hidden"], ["10 of 10 points"], "visible tests only"),
    "missing file": (RIGHT, ["--submission=hers.py"], ["hers.py cannot be read", "0 of 5 points"], "Traceback"),
    "link": ("", ["--submission=link.py"], ["it is a link", "0 of 5 points"], "Traceback"),
    "surrogate": (NO_TEXT, [], ["0 of 5 points"], "Traceback"),
    "exit": (RIGHT + "raise SystemExit(0)\n", [], ["5 of 5 points", "ends with an error: SystemExit"], "Traceback"),
    "end": (RIGHT + "import os\nos._exit(0)\n", [], ["0 of 5 points", "ended its own process"], "Traceback"),
    "end of pytest": ("import pytest\npytest.exit('done', 0)\n" + RIGHT, [], ["0 of 5 points", "done"], "Traceback"),
    "in process": (IN_PYTEST + RIGHT, IN_PROCESS, ["5 of 5 points"], "ends with an error"),
    "in process, error": (WITH_ERROR, IN_PROCESS, NAME_ERROR, "5 of 5 points"),
    "in process, above an error": (ENDS_EARLY, IN_PROCESS, ["2 of 5 points", NO_TWICE], "5 of 5 points"),
}
QUICK = ("all passed", "failure")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in PRINTED]
)
def test_points_and_messages_are_printed(assignment, tmp_path, case):
    answers, options, said, not_said = PRINTED[case]
    (tmp_path / "solution.py").write_text(RIGHT)
    (tmp_path / "link.py").symlink_to(tmp_path / "solution.py")
    code, printed = assignment(answers, *[o for o in options if o != "hidden"], hidden="hidden" in options)
    for part in said:
        assert part in printed
    assert not_said not in printed
    points, total = re.search(r"(\d+) of (\d+) points", printed).groups()
    assert code == (points != total)


def test_results_are_in_gradescopes_format(assignment, tmp_path):
    assignment(WRONG, "--results=results.json", hidden=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["score"] == 2
    assert results["execution_time"] > 0
    shown, other, hidden = sorted(results["tests"], key=lambda test: test["name"])
    expected = {"name": "a9_1_double", "score": 2, "max_score": 2, "status": "passed", "visibility": "visible"}
    assert shown | {"output": ""} == expected | {"output": ""}
    assert (other["name"], other["score"]) == ("a9_2_twice", 0)
    assert "twice must double" in hidden.pop("output")
    expected = {"name": "a9_2_twice_hidden", "score": 0, "max_score": 5, "status": "failed"}
    assert hidden == expected | {"visibility": "after_published"}


def test_marking_says_where_answers_are_not_isolated(assignment, tmp_path, monkeypatch):
    (tmp_path / "bwrap").write_text("#!/bin/sh\necho 'no namespaces' >&2\nexit 1\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    _, printed = assignment(RIGHT, "--results=results.json")
    assert "Answers were not isolated: bubblewrap does not work here (no namespaces)." in printed
    assert "5 of 5 points" in printed

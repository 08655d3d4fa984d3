"""Assignments with pytest: for students without Jupyter, and for Gradescope."""

import json
import os
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
addopts = -p tinyprune.course.pytest_plugin --strict-markers --tb=no --no-summary -q
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
    (folder / "test_a9.py").write_text(TESTS)

    def run(answers, *options, hidden=False):
        (folder / "a9.py").write_text(answers)
        (folder / "test_a9.py").write_text(TESTS + HIDDEN if hidden else TESTS)
        environment = os.environ | {"PYTHONPATH": str(Path(tinyprune.__file__).parents[1])}
        command = [sys.executable, "-m", "pytest", "a9", "-p", "no:cacheprovider", *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120)
        return done.returncode, done.stdout + done.stderr

    return run


def test_all_passed_says_that_hidden_tests_remain(assignment):
    code, said = assignment(RIGHT)
    assert code == 0
    assert "5 of 5 points of the tests that ran." in said
    assert "These are the visible tests only. Hidden tests, which run after you hand in, remain" in said


def test_failure_says_what_was_fed_what_came_and_what_was_expected(assignment):
    code, said = assignment(WRONG)
    assert code == 1
    assert "2 of 5 points" in said
    for part in (
        "twice must double",
        "fed       x = float64 array",
        "came      2 ",
        "expected  4",
        "hint      once more",
    ):
        assert part in said
    assert "expect_close(" not in said


def test_one_task_alone(assignment):
    code, said = assignment(WRONG, "-m", "a9_1")
    assert code == 0
    assert "2 of 2 points" in said


def test_with_hidden_tests_nothing_remains(assignment):
    _, said = assignment(RIGHT, hidden=True)
    assert "10 of 10 points" in said
    assert "visible tests only" not in said


@pytest.mark.parametrize("options", [(), ("-n", "2")], ids=["here", "workers"])
def test_results_are_in_gradescopes_format(assignment, tmp_path, options):
    assignment(WRONG, "--results=results.json", *options, hidden=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["score"] == 2
    assert results["execution_time"] > 0
    by_name = {test["name"]: test for test in results["tests"]}
    assert set(by_name) == {"a9_1_double", "a9_2_twice", "a9_2_twice_hidden"}
    assert by_name["a9_1_double"] | {"output": ""} == {
        "name": "a9_1_double",
        "score": 2,
        "max_score": 2,
        "status": "passed",
        "output": "",
        "visibility": "visible",
    }
    hidden = by_name["a9_2_twice_hidden"]
    assert (hidden["score"], hidden["max_score"], hidden["status"]) == (0, 5, "failed")
    assert hidden["visibility"] == "after_published"
    assert "twice must double" in hidden["output"]


@pytest.mark.parametrize(
    ("answers", "score", "output"),
    [
        ("", 0, ""),
        ("def double(x:", 0, "SyntaxError"),
        (RIGHT + "\nraise SystemExit(0)\n", 10, "SystemExit"),
        (RIGHT + "\nimport os\nos._exit(0)\n", 0, "ended its own process"),
        ("import tinyprune.ops\n" + RIGHT, 0, "may not import tinyprune.ops"),
        (RIGHT + "\nopen('../results.json', 'w').write('{}')\n", 10, "may write files in its own directory only"),
        ("import pytest\npytest.exit('done', returncode=0)\n" + RIGHT, 0, "done"),
    ],
    ids=["nothing", "syntax", "exit", "end", "solution", "results", "pytest"],
)
def test_marks_are_right_whatever_is_handed_in(assignment, tmp_path, answers, score, output):
    assignment(answers, "--results=results.json", hidden=True)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["score"] == score
    assert len(results["tests"]) == 3
    assert output in results["output"]


def test_missing_file_is_named(assignment, tmp_path):
    _, said = assignment(RIGHT, f"--submission={tmp_path / 'hers.py'}")
    assert "hers.py cannot be read" in said
    assert "0 of 5 points" in said


def test_link_is_refused(assignment, tmp_path):
    (tmp_path / "solution.py").write_text(RIGHT)
    (tmp_path / "link.py").symlink_to(tmp_path / "solution.py")
    _, said = assignment("", f"--submission={tmp_path / 'link.py'}")
    assert "it is a link" in said
    assert "0 of 5 points" in said


def test_half_a_surrogate_in_an_error_can_be_printed(assignment):
    _, said = assignment("def double(x):\n    raise ValueError(chr(0xd800))\ntwice = double\n")
    assert "0 of 5 points" in said
    assert "Traceback" not in said


def test_in_process_answers_run_where_a_debugger_is(assignment):
    process = "import os\nopen('pid', 'w').write(str(os.getpid()))\n"
    code, said = assignment(process + RIGHT, "--in-process")
    assert code == 0, said
    assert "5 of 5 points" in said


def test_in_process_errors_say_where(assignment):
    code, said = assignment(RIGHT.replace("return x + x", "return x + y"), "--in-process")
    assert code == 1
    assert "NameError: name 'y' is not defined\nin your code:\n" in said
    assert "line 5, in twice\n    return x + y" in said


def test_in_process_what_stands_above_an_error_is_there(assignment):
    code, said = assignment(RIGHT.replace("def twice", "1 / 0\n\ndef twice"), "--in-process")
    assert code == 1
    assert "2 of 5 points" in said
    assert "there is no function twice: keep its name as it was\na9.py ends with an error: ZeroDivisionError" in said

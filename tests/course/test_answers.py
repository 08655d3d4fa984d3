"""Tests find the functions of a submission, in a sandbox, a module or a notebook."""

import os
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from tinyprune.course import Sandbox, answer, fetch, hold, prepare, submission
from tinyprune.course.answers import NoAnswer
from tinyprune.ops import linear_forward

SOURCE = """
import numpy as np

def scale_forward(x, s):
    return s * x, x

def short_forward(x):
    return x

def add(x, y):
    return x + y

def clear(x, inside):
    x[...] = inside[0][...] = inside[1]["W"][...] = 0
"""


@pytest.fixture(params=["sandbox", "module"])
def submitted(request):
    if request.param == "sandbox":
        with Sandbox() as sandbox, submission(sandbox):
            sandbox.run(SOURCE)
            yield request.param
    else:
        module = ModuleType("answers")
        exec(SOURCE, module.__dict__)
        with submission(module):
            yield request.param


def test_answers_are_the_same_on_both_sides_of_the_wall(submitted):
    out, _ = answer("scale_forward")(np.arange(3.0), 2.0)
    assert out.tolist() == [0, 2, 4]
    assert answer("add")(1, 2) == 3
    held = hold(np.ones(2))
    assert fetch(answer("add", keep="all")(held, held)).tolist() == [2, 2]


def test_errors_name_the_answer_and_what_it_was_called_with(submitted):
    with pytest.raises(NoAnswer, match="there is no function nothing"):
        answer("nothing")
    with pytest.raises(NoAnswer, match=r"short_forward\(float64 \(2,\)\) must return two things, out and a cache"):
        answer("short_forward")(np.ones(2))
    with pytest.raises(Exception) as error:
        answer("add")(np.ones((2, 3)), np.ones(4))
    assert error.value.__notes__ == ["when called as add(float64 (2, 3), float64 (4,))"]


def test_function_of_this_package_is_no_answer():
    with submission(SimpleNamespace(linear_forward=linear_forward)), pytest.raises(NoAnswer, match="write your own"):
        answer("linear_forward")


def test_prepare_configures_the_sandbox_or_the_notebook(monkeypatch):
    monkeypatch.setenv("NEEDED", "0")
    with Sandbox() as sandbox, submission(sandbox):
        prepare(preload=("numpy", "json"), environment={"NEEDED": "1"}, seconds_per_call=3)
        sandbox.run("import os\ndef needed():\n    return os.environ['NEEDED']")
        assert answer("needed")() == "1"
        assert sandbox.limits.seconds_per_call == 3
    prepare(environment={"NEEDED": "2"})
    assert os.environ["NEEDED"] == "2"


def test_answers_get_copies_unless_they_work_in_place(submitted):
    x, inside = np.ones(2), [np.ones(2), {"W": np.ones(2)}]
    clear = answer("clear")
    clear(x, inside)
    assert x.tolist() == inside[0].tolist() == inside[1]["W"].tolist() == [1, 1]
    clear.in_place(x, inside)
    assert x.tolist() == inside[0].tolist() == inside[1]["W"].tolist() == [0, 0]

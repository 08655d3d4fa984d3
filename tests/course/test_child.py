"""What the process of an answer does not import."""

import pytest

from tinyprune.course import isolation
from tinyprune.course.child import FORBIDDEN
from tinyprune.course.sandbox import AnswerError, Sandbox

SOURCES = ["from tinyprune import ops", "__import__('tinyprune.course.child')"]
SOURCES += [f"import {name}.nn" for name in FORBIDDEN]


@pytest.fixture
def run(isolated):
    with Sandbox() as sandbox:
        sandbox.run("def run(source):\n    space = {}\n    exec(source, space)\n    return repr(space.get('r'))")
        yield sandbox.function("run")


def test_solutions_and_frameworks_are_not_imported(run):
    for source in SOURCES:
        with pytest.raises(AnswerError, match=r"an answer may not import [\w.]+: write what the task asks for"):
            run(source)


@pytest.mark.skipif(bool(isolation.problem()), reason=isolation.problem())
@pytest.mark.parametrize("name", ["tinyprune.ops", "torch.nn"])
def test_they_are_not_there_for_answers_that_remove_the_refusal(name):
    with Sandbox() as sandbox, pytest.raises(AnswerError, match="ModuleNotFoundError"):
        sandbox.run(f"import sys\ndel sys.meta_path[0]\nimport {name}")


def test_what_answers_need_is_there(run):
    assert run("open('mine', 'w').write('x')\nr = open('mine').read()") == "'x'"
    assert run("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\nr = 1") == "1"
    assert run("import decimal, fractions, statistics\nr = statistics.mean([1, 2, 3])") == "2"
    assert run("import numpy as np\nr = float(np.linalg.svd(np.eye(3))[1].sum())") == "3.0"

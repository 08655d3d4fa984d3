"""Lines for Jupyter in a notebook; what else nbgrader's steps do is tested with nbgrader itself."""

import pytest

from tinyprune.errors import install_command

pytest.importorskip("nbgrader", reason=f"needs {install_command('course')}")

from tinyprune.course.marking import without_magics

CELLS = [("%matplotlib inline\nx = 1", "pass\nx = 1")]
CELLS += [("!pip install numpy\nif True:\n    %time x = 1", "pass\nif True:\n    pass")]
CELLS += [("x = (7\n    % 4)", "x = (7\n    % 4)"), ('"""\n%s\n! and ?\n"""', '"""\n%s\n! and ?\n"""')]
CELLS += [("def f(:", "def f(:")]


@pytest.mark.parametrize(("source", "left"), CELLS)
def test_lines_for_jupyter_go_and_python_stays(source, left):
    assert without_magics(source) == left

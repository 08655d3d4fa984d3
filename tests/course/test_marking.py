"""What nbgrader's steps make of a notebook."""

import pytest

from tinyprune.errors import install_command

pytest.importorskip("nbgrader", reason=f"needs {install_command('course')}")

from nbformat.v4 import new_code_cell

from tinyprune.course.marking import restored, without_magics


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("%matplotlib inline\nx = 1", "pass\nx = 1"),
        ("!pip install numpy\nif True:\n    %time x = 1", "pass\nif True:\n    pass"),
        ("x = (7\n    % 4)", "x = (7\n    % 4)"),
        ('"""\n%s\n! and ?\n"""', '"""\n%s\n! and ?\n"""'),
        ("def f(:", "def f(:"),
    ],
    ids=["line", "shell", "remainder", "text", "syntax"],
)
def test_lines_for_jupyter_go_and_python_stays(source, left):
    assert without_magics(source) == left


def cell(source, name=None):
    return new_code_cell(source, metadata={"nbgrader": {"grade_id": name}} if name else {})


def test_all_but_the_answers_is_the_lecturers():
    """Tests were changed, removed or copied; cells that were added stay below the same cell."""
    released = [
        (name, "code", f"{name} as released", name == "test", "checksum") for name in ("answer", "test", "last")
    ]
    handed_in = [cell("first"), cell("mine", "answer"), cell("helper"), cell("pass", "test"), cell("again", "test")]
    cells = restored(handed_in, released, {"test": 3.0}, {"answer", "last"})
    found = [(c.source, c.metadata.get("nbgrader", {}).get("points")) for c in cells]
    assert found == [
        *(("first", None), ("mine", None), ("helper", None)),
        *(("test as released", 3.0), ("again", None), ("last as released", None)),
    ]
    assert [c.metadata.nbgrader.solution for c in cells if c.metadata] == [True, False, True]

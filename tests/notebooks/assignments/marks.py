"""What an answer gets: the same cells, in the same kind of process, as when nbgrader marks it."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

from tinyprune.course.marking import mark
from tinyprune.course.sandbox import Limits, Sandbox

FOLDER = Path(__file__).parents[3] / "notebooks" / "assignments"


class Wrong(NamedTuple):
    """A wrong answer that students give: an edit of the reference solution, and the tests that must notice."""

    what: str  # the mistake, as a lecturer would name it
    right: str  # stands in the reference solution exactly once
    wrong: str  # takes its place
    loses: set[str]  # the tests that fail, all of one task; every other test passes


def builder():
    """notebooks/assignments/build.py as a module."""
    spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build = builder()


def cells_that_test(notebook):
    """The tests' cells by name."""
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.metadata.nbgrader.grade]
    return {cell.metadata.nbgrader.grade_id: cell for cell in cells}


def edited(notebook, wrong):
    """The reference solution with a mistake in it, in a cell of the task that loses points."""
    cells = [c for c in notebook.cells if c.cell_type == "code" and c.metadata.nbgrader.solution]
    places = [c for c in cells for _ in range(c.source.count(wrong.right))]
    assert len(places) == 1, f"“{wrong.right}” must stand in the solution once, found {len(places)} times"
    places[0].source = places[0].source.replace(wrong.right, wrong.wrong)
    own = places[0].metadata.nbgrader.grade_id
    assert {build.task_of(test) for test in wrong.loses} == {build.task_of(own)}, f"planted in {own}"
    return notebook


def only(task, notebook):
    """The notebook with the tests of one task."""
    notebook.cells = [
        cell
        for cell in notebook.cells
        if not cell.metadata.get("nbgrader", {}).get("grade") or build.task_of(cell.metadata.nbgrader.grade_id) == task
    ]
    return notebook


def failures(notebook, limits=None):
    """The tests that fail, each with what it says."""
    with Sandbox(limits or Limits()) as sandbox:
        mark(notebook, sandbox)
    failed = {}
    for name, cell in cells_that_test(notebook).items():
        errors = [output for output in cell.outputs if output.output_type == "error"]
        if errors:
            failed[name] = errors[0].evalue
    return failed

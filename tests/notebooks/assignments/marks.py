"""Mark an answer with the same cells, in the same kind of process, as nbgrader does; and typical wrong answers."""

import copy
import importlib.util
import re
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import pytest

from tinyprune.errors import install_command

pytest.importorskip("nbgrader", reason=f"needs {install_command('course')}")

from tinyprune.course.marking import mark
from tinyprune.course.sandbox import Limits, Sandbox

FOLDER = Path(__file__).parents[3] / "notebooks" / "assignments"
spec = importlib.util.spec_from_file_location("build", FOLDER / "build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

text_of = cache(build.notebook_of)


def assignment(name):
    """Return nbgrader's source notebook, whose text is read once, for the caller to change."""
    return copy.deepcopy(text_of(name))


class Wrong(NamedTuple):
    """A wrong answer that students give: an edit of the reference solution, and the tests that must notice it."""

    what: str  # the mistake, as a lecturer would name it
    # This text occurs once in the solution of its task; a line "…" stands for any lines.
    right: str
    wrong: str  # its replacement; a line "…" stands for the same lines
    loses: set[str]  # the tests that fail, all of one task; every other test passes


def wrong_answers(name):
    """Read wrong/aN.txt, whose first lines explain it."""
    found, task, texts = [], "", {}
    for line in Path(__file__).with_name("wrong").joinpath(f"{name}.txt").read_text("utf-8").splitlines():
        if line.startswith("# "):
            task = line[2:]
        elif line.startswith(("-", "+")):
            texts[line[0]].append(line[2:])
        elif line:
            what, _, tests = line.rpartition(": ")
            loses = {f"{task}_{test.rstrip('*')}" for test in tests.split()}
            loses |= {f"{task}_{test.rstrip('*')}_hidden" for test in tests.split() if test.endswith("*")}
            texts = {"-": [], "+": []}
            found.append((what, texts, loses))
    return [Wrong(what, "\n".join(texts["-"]), "\n".join(texts["+"]), loses) for what, texts, loses in found]


def rounds(name):
    """Return lists of wrong answers, each to another task: they are marked together, as no task needs another."""
    by_task = {}
    for wrong in wrong_answers(name):
        by_task.setdefault(build.task_of(min(wrong.loses)), []).append(wrong)
    return [[wrong for wrong in each if wrong] for each in zip_longest(*by_task.values())]


def cells_that_test(notebook):
    cells = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade")]
    return {cell.metadata.nbgrader.grade_id: cell for cell in cells}


def solutions(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.metadata.nbgrader.solution]


def edited(notebook, *wrongs):
    """Plant mistakes in the reference solution, each in a cell of the task that loses points."""
    for wrong in wrongs:
        (task,) = {build.task_of(test) for test in wrong.loses}
        pattern = re.compile(re.escape(wrong.right).replace("\\\n…\\\n", "\n(.*?)\n"), re.DOTALL)
        cells = [cell for cell in solutions(notebook) if build.task_of(cell.metadata.nbgrader.grade_id) == task]
        places = [(cell, match) for cell in cells for match in pattern.finditer(cell.source)]
        assert len(places) == 1, f"“{wrong.right}” must occur once in {task}, found {len(places)} times"
        ((cell, match),) = places
        replacement = wrong.wrong
        for lines in match.groups():
            replacement = replacement.replace("…", lines, 1)
        cell.source = cell.source[: match.start()] + replacement + cell.source[match.end() :]
    return notebook


def only(tasks, notebook):
    """Return the notebook without the tests of other tasks."""
    others = {id(cell) for test, cell in cells_that_test(notebook).items() if build.task_of(test) not in tasks}
    notebook.cells = [cell for cell in notebook.cells if id(cell) not in others]
    return notebook


def failures(notebook, **limits):
    with Sandbox(Limits(**limits)) as sandbox:
        mark(notebook, sandbox)
    cells = cells_that_test(notebook).items()
    return {name: output.evalue for name, cell in cells for output in cell.outputs if output.output_type == "error"}

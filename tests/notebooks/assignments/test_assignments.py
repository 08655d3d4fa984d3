"""In every assignment the solution gets all points, the stub none, and a wrong answer loses the points it should."""

import os
import re
from collections import Counter

import pytest
from marks import assignment, build, cells_that_test, edited, failures, only, rounds, solutions, wrong_answers
from mischief import MISCHIEF, notebook_of
from nbclient import NotebookClient

from tinyprune.course import isolation

TASKS = sorted({build.task_of(test) for name in build.NAMES for test in cells_that_test(assignment(name))})
# The others start from a model that is trained first, or compile.
QUICK = ("a1", "a2", "a3")
EACH = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in build.NAMES]
CODE = [(m, isolated) for m in MISCHIEF for isolated in (True, False) if not m.edit and isolated >= m.isolated]
COURSE = build.source_of("a1") | {"gradebook.db": "marks"}
ROUNDS = [(name, number) for name in build.NAMES for number in range(len(rounds(name)))]


@pytest.mark.parametrize("name", EACH)
def test_reference_solution_passes_every_test(name):
    assert failures(assignment(name)) == {}


@pytest.mark.parametrize("name", EACH)
def test_untouched_stub_passes_no_test(name):
    notebook = build.released(assignment(name), hidden=True)
    assert failures(notebook).keys() == cells_that_test(notebook).keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", build.NAMES)
def test_reference_solution_passes_in_a_students_notebook(name):
    """Answers and tests run in one kernel, as at home."""
    notebook = assignment(name)
    NotebookClient(notebook, timeout=180, kernel_name="python3").execute()
    printed = [output.text for cell in notebook.cells for output in cell.get("outputs", []) if output.name == "stdout"]
    visible = [test for test in cells_that_test(notebook) if not test.endswith("_hidden")]
    assert re.findall(r"^passed: (\w+)\. Hidden tests of", "\n".join(printed), re.MULTILINE) == visible


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_task_needs_no_answer_to_another(task):
    """A task gets all its points while the others are untouched, so a mistake elsewhere costs none of them."""
    notebook = assignment(task[:2])
    stub = build.released(notebook, hidden=True)
    for cell, untouched in zip(notebook.cells, stub.cells, strict=True):
        if cell.metadata.get("nbgrader", {}).get("solution") and build.task_of(cell.metadata.nbgrader.grade_id) != task:
            cell.source = untouched.source
    only({task}, notebook)
    assert failures(notebook) == {}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), ROUNDS)
def test_wrong_answers_lose_the_right_points_and_no_others(name, number):
    """No other points of their own tasks: the test above shows that other tasks do not depend on them."""
    wrongs = {build.task_of(min(wrong.loses)): wrong for wrong in rounds(name)[number]}
    notebook = only(wrongs.keys(), edited(assignment(name), *wrongs.values()))
    # Whether heads chosen by a slightly wrong gate stage are better than chance depends on the processor's rounding.
    notebook.cells = [cell for cell in notebook.cells if cell is not cells_that_test(notebook).get("a4_4_model")]
    for cell in solutions(notebook):
        # With this option compiling takes three times as long.
        cell.source = cell.source.replace("parallel=True, ", "")
    said = failures(notebook)
    lost = {wrong.what: {test for test in said if build.task_of(test) == task} for task, wrong in wrongs.items()}
    assert lost == {wrong.what: wrong.loses - {"a4_4_model"} for wrong in wrongs.values()}, said


@pytest.mark.slow
@pytest.mark.parametrize(("mischief", "bubblewrap"), CODE, ids=lambda value: getattr(value, "what", value))
def test_mischief_gets_what_its_answers_are_worth(mischief, bubblewrap, monkeypatch, tmp_path):
    """With nbgrader's steps around it in test_nbgrader.py, where what changes the notebook is."""
    if bubblewrap and isolation.problem():
        pytest.skip(isolation.problem())
    if not bubblewrap:
        monkeypatch.setattr(isolation, "problem", lambda: "bubblewrap is not used in this test")
        if "fork bomb" in mischief.what and os.getuid() == 0 and not isolation.other_user():
            pytest.skip("no limit of processes holds for root")
    build.write(COURSE, tmp_path)
    notebook = notebook_of(mischief, tmp_path, hidden=True)
    # copies of the process compute as well, until no more can be made
    seconds = 15 if "fork bomb" in mischief.what else 1.5
    failed = failures(notebook, seconds_per_call=seconds, processes=32, memory_bytes=1 << 30)
    tests = cells_that_test(notebook)
    assert sum(cell.metadata.nbgrader.points for test, cell in tests.items() if test not in failed) == mischief.points
    assert all((tmp_path / path).read_text("utf-8") == content for path, content in COURSE.items())


@pytest.mark.parametrize("name", build.NAMES)
def test_every_task_has_five_wrong_answers_or_more(name):
    counts = Counter(build.task_of(min(wrong.loses)) for wrong in wrong_answers(name))
    assert counts.keys() == {build.task_of(test) for test in cells_that_test(assignment(name))}
    assert min(counts.values()) >= 5, counts

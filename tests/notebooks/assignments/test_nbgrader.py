"""The course with nbgrader itself: release, marks of all kinds of submissions, feedback."""

import re
import shutil
import subprocess
import sys

import pytest
from marks import FOLDER, assignment, build, edited, wrong_answers
from mischief import FULL, MISCHIEF, notebook_of
from nbgrader.api import Gradebook

from tinyprune.course import isolation

pytestmark = pytest.mark.slow

WRONG = wrong_answers("a1")[0]  # test_assignments.py has all of them
# The others are tested in test_assignments.py.
EDITED = [mischief for mischief in MISCHIEF if mischief.edit]
# Enough for an honest answer on a busy machine.
LIMITS = ["--IsolatedExecute.seconds_per_call=3"]


def nbgrader(course, *arguments, fails=False):
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, cwd=course, capture_output=True, text=True, timeout=600)
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stdout + done.stderr


def new_course(directory):
    build.write(build.source_of("a1"), directory)
    shutil.copy(FOLDER / "nbgrader_config.py", directory)
    return directory


def hand_in(course, student, notebook, name="a1"):
    folder = course / "submitted" / student / name
    folder.mkdir(parents=True)
    text = notebook if isinstance(notebook, str) else build.nbformat.writes(notebook)
    (folder / f"{name}.ipynb").write_text(text, "utf-8")
    return folder


def scores(course, student, name="a1"):
    with Gradebook(f"sqlite:///{course}/gradebook.db") as gradebook:
        submission = gradebook.find_submission_notebook(name, name, student)
        assert not any(grade.needs_manual_grade for grade in submission.grades)
        return {grade.name: grade.auto_score for grade in submission.grades}


def label(text):
    return re.sub(r"\W+", "-", text).strip("-")


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """One batch: an honest student, an idle one, a wrong answer, mischief, links, and a file that is no notebook."""
    course = new_course(tmp_path_factory.mktemp("course"))
    nbgrader(course, "generate_assignment", "a1")
    released = build.nbformat.read(course / "release" / "a1" / "a1.ipynb", as_version=4)
    hand_in(course, "good", assignment("a1"))
    hand_in(course, "idle", released)
    hand_in(course, "broken", "this is not a notebook")
    importing = assignment("a1")
    importing.cells.insert(0, build.nbformat.v4.new_code_cell("from tinyprune.ops import *"))
    hand_in(course, "imports", importing)
    hand_in(course, "wrong", edited(assignment("a1"), WRONG))
    for mischief in EDITED:
        hand_in(course, label(mischief.what), notebook_of(mischief, course))
    # links to the lecturer's notebook
    (course / "submitted" / "link" / "a1").mkdir(parents=True)
    (course / "submitted" / "link" / "a1" / "a1.ipynb").symlink_to(course / "source" / "a1" / "a1.ipynb")
    (course / "submitted" / "links").mkdir()
    (course / "submitted" / "links" / "a1").symlink_to(course / "source" / "a1")
    # modules of its own beside the notebook
    folder = hand_in(course, "modules", released)
    for name in ("numpy.py", "tinyprune.py", "sitecustomize.py", "ipykernel_launcher.py"):
        (folder / name).write_text("raise SystemExit('mine')")
    # the unreadable one and the links are reported at the end
    said = nbgrader(course, "autograde", "a1", *LIMITS, fails=True)
    assert ("Answers were not isolated" in said) == bool(isolation.problem())
    return course


def test_honest_and_idle_get_what_they_deserve(course):
    assert sum(scores(course, "good").values()) == FULL
    assert set(scores(course, "idle").values()) == {0}
    assert set(scores(course, "modules").values()) == {0}
    for links in ("link", "links"):
        assert not (course / "autograded" / links).exists()


def test_wrong_answer_loses_its_points_and_no_others(course):
    worth, found = scores(course, "good"), scores(course, "wrong")
    assert found == worth | dict.fromkeys(WRONG.loses, 0)


@pytest.mark.parametrize("mischief", EDITED, ids=lambda mischief: mischief.what)
def test_mischief_gets_what_its_answers_are_worth(course, mischief):
    assert sum(scores(course, label(mischief.what)).values()) == mischief.points


def test_nothing_of_the_course_was_touched(course):
    assert (course / "source" / "a1" / "a1.ipynb").read_text("utf-8") in build.source_of("a1").values()
    assert len(list((course / "submitted").iterdir())) == 8 + len(EDITED)


def test_students_read_what_passed_what_was_refused_and_the_hints(course):
    nbgrader(course, "generate_feedback", "a1", "--student", "wrong")
    hints = ("a row of zeros must come out as the bias", "what is left of x W + b if x is 0?")
    for path, *said in (
        ("release/a1/a1.ipynb", "passed: a1_1_forward"),
        ("autograded/imports/a1/a1.ipynb", "an answer may not import tinyprune"),
        ("feedback/wrong/a1/a1.html", *hints),
    ):
        text = (course / path).read_text("utf-8")
        assert [part for part in said if part not in text] == []

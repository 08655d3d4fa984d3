"""A class of twenty, from a private variant to marks: five wrong answers, a hostile one, late ones, a copy."""

import ast
import csv
import importlib
import math
import re
import sys

import pytest
from marks import FOLDER, build
from mischief import CELLS
from test_nbgrader import FULL, hand_in, nbgrader, scores

sys.path.insert(0, str(FOLDER))
exam, similar = importlib.import_module("exam"), importlib.import_module("similar")

# Rules that are in no public file.
RULES = """
[[a1]]
draw = [{ p = "12", q = "11", word = "twelfth" }]
change = [
    ["fourth", "«word»"], ["c^4", "c^{«p»}"], ["^{1/4}", "^{1/«p»}"], ["c**4", "c**«p»"],
    ["centred**4", "centred**«p»"], ["(1 / 4)", "(1 / «p»)"], ["n**3", "n**«q»"], [") ** 4,", ") ** «p»,"],
]
"""
WRONG = {  # an edit of the solution, and what begins the names of the tests that it loses
    ("+ b, (x, W)", ", (x, W)"): "a1_1_forward",
    ("flat_dout.sum(axis=0)", "flat_dout.mean(axis=0)"): "a1_1_backward",
    ("dc = straight + through_root", "dc = straight"): "a1_2_backward",
    ("through_mean = -dc", "through_mean = dc"): "a1_2_backward",
    ("/ targets.size", ""): "a1_3_backward",
}
HONEST = [f"honest-{i}" for i in range(11)]
OWN = "return np.einsum('...k,ko->...o', x, W) * W.shape[0] ** -0.5 + b, (x, W)"
SOLUTION = "return x @ W / len(W) ** (1 / 2) + b, (x, W)"


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The class, marked."""
    directory = tmp_path_factory.mktemp("class")
    (directory / "mine.toml").write_text(RULES, "utf-8")
    course = build.variant("48151623", directory / "mine.toml", directory)
    nbgrader(course, "db", "assignment", "add", "a1", "--duedate", "2026-10-05 12:00:00 UTC")
    nbgrader(course, "generate_assignment", "a1")
    solved = (course / "source" / "a1" / "a1.ipynb").read_text("utf-8")

    def submit(student, text=solved, time="2026-10-05 11:00:00"):
        folder = hand_in(course, student, text)
        (folder / "timestamp.txt").write_text(f"{time} UTC")

    for student in HONEST:
        submit(student)
    submit("graceful", time="2026-10-05 12:50:00")
    submit("late", time="2026-10-06 18:00:00")
    submit("own", solved.replace(SOLUTION, OWN))
    for i, (right, wrong) in enumerate(WRONG):
        assert solved.count(right) == 1
        submit(f"wrong-{i}", solved.replace(right, wrong))
    hostile = build.nbformat.reads(solved, 4)
    hostile.cells.insert(0, build.nbformat.v4.new_code_cell(CELLS["fork bomb"]))
    submit("hostile", build.nbformat.writes(hostile))
    assert len(list((course / "submitted").iterdir())) == 20
    nbgrader(course, "autograde", "a1")
    nbgrader(course, "generate_feedback", "a1")
    nbgrader(course, "export")
    return course


@pytest.mark.slow
def test_class_of_twenty_gets_its_marks(course):
    worth = scores(course, "own")
    assert sum(worth.values()) == FULL
    with (course / "grades.csv").open(newline="") as file:
        marks = {row["student_id"]: float(row["score"]) for row in csv.DictReader(file)}
    lost = {f"wrong-{i}": {name for name in worth if name.startswith(begin)} for i, begin in enumerate(WRONG.values())}
    full = [*HONEST, "graceful", "own", "hostile"]
    assert marks == {
        **dict.fromkeys(full, FULL),
        "late": 0.8 * FULL,  # on the second day
        **{student: FULL - sum(worth[name] for name in names) for student, names in lost.items()},
    }
    assert all(len(list((course / "feedback" / student / "a1").glob("a1.html"))) == 1 for student in marks)


@pytest.mark.slow
def test_report_of_the_class_lists_what_cannot_be_read_and_ranks_the_copies_first(course):
    broken = hand_in(course, "broken", "this is no notebook") / "a1.ipynb"
    table = similar.report("a1", [*sorted((course / "submitted").glob("*-[0-9]*/a1/a1.ipynb")), broken], most=200)
    assert "- broken: is not a notebook" in table
    rows = [line.split(" | ") for line in table.splitlines() if re.match(r"\| [01]\.\d", line)]
    assert len(rows) == math.comb(len(HONEST) + len(WRONG) + 1, 2)
    copies = rows[: math.comb(len(HONEST), 2)]
    assert {name for row in copies for name in row[1:3]} == set(HONEST)
    assert all(row[0] == "| 1.00" and row[3].startswith("cross_entropy_backward, cross_") for row in copies)


def words(source):
    return similar.functions_of([source])[0]


def test_other_names_comments_and_layout_change_nothing_and_other_steps_do():
    one = words("def f(x, W):\n    'Multiply.'\n    y = x @ W  # here\n    return y * np.sum(x)")
    copy = words("def f(a: int, b) -> int:\n\n    c = (a @ b)\n    return c * np.sum(a)")
    other = words("def f(x, W):\n    return (x @ W).sum() * np.max(x)")
    found = similar.compare({"one": one, "copy": copy, "other": other, "odd": words("def f(x):\n    return 1")})
    assert one == copy and (found[0].first, found[0].second, found[0].same) == ("one", "copy", ["f"])
    assert found[0].similarity == pytest.approx(1) and found[1].similarity < 0.5


@pytest.mark.parametrize("source", ["def f(:", "x = " + "(" * 5000, "x = '\0'"])
def test_cell_that_is_no_python_is_reported_and_the_others_are_read(source):
    found, problems = similar.functions_of([source, "def g(x):\n    return x"])
    assert list(found) == ["g"] and len(problems) == 1


@pytest.mark.parametrize(
    ("rules", "what"),
    [("[[a1]]\ndraw = []", "needs `draw` and `change`"), ("a1 = [", "cannot be read as rules")],
)
def test_rules_that_are_none_are_refused(tmp_path, rules, what):
    (tmp_path / "mine.toml").write_text(rules)
    with pytest.raises(build.TextError, match=what):
        build.varied("a1", "", "7", tmp_path / "mine.toml")


def test_key_holds_the_answers_of_the_seed_and_stores_nothing():
    before = sorted(FOLDER.iterdir())
    key = build.key("7")
    assert key.startswith("# Key of exam 7") and sorted(FOLDER.iterdir()) == before
    for name in build.NAMES:
        (code,) = re.findall(rf"# Answers to {name.upper()} of variant 7\n\n```python\n(.*?)```", key, re.DOTALL)
        ast.parse(code)
    with pytest.raises(build.TextError, match="must be an integer, 0 or more, got x"):
        build.key("x")

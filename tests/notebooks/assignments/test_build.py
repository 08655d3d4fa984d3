"""Files made from the texts are up to date and complete, and students get no solutions."""

import ast
import io
import json
import os
import re
import subprocess
import sys
import tokenize
import zipfile
from operator import itemgetter
from types import SimpleNamespace

import numpy as np
import pytest
from marks import FOLDER, assignment, build, cells_that_test, only, wrong_answers
from mischief import MISCHIEF

from tinyprune import ops
from tinyprune.course.answers import submission
from tinyprune.course.marking import run_test
from tinyprune.model.gates import output_scaling
from tinyprune.ops.attention import softmax
from tinyprune.training.schedules import linear_warmup

REPOSITORY = FOLDER.parents[1]
# `nbgrader generate_assignment` for each in one process, which takes longer to start than they take.
GENERATE = """
import sys
from nbgrader.apps import GenerateAssignmentApp
for name in sys.argv[1:]:
    GenerateAssignmentApp.instance().initialize([name])
    GenerateAssignmentApp.instance().start()
    GenerateAssignmentApp.clear_instance()
"""


def secrets(name):
    """Return the longer lines of solutions and hidden tests that the task itself does not contain."""
    secret, public = set(), []
    for cell in assignment(name).cells:
        about = cell.metadata.get("nbgrader") if cell.cell_type == "code" else {"grade_id": "", "solution": False}
        hidden = [cell.source] if about["grade_id"].endswith("_hidden") else []
        solutions = re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", cell.source, re.DOTALL)
        lines = map(str.strip, "\n".join(hidden or solutions).splitlines())
        secret |= {line for line in lines if len(line) >= 24 and not line.startswith("#")}
        public += [] if hidden or solutions else [cell.source]
    # What the task says is no secret; it may contain single lines of the solution, but not the solution.
    said = found_in("\n".join(public), secret)
    assert len(said) <= len(secret) / 4, said
    return secret - said


def found_in(text, forbidden):
    """Return the forbidden statements that a text contains, as code or anywhere else."""
    squeezed = re.sub(r"\s+", "", text)
    return {secret for secret in forbidden if re.sub(r"\s+", "", secret) in squeezed}


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """All files that students get: nbgrader's release and the folders for pytest."""
    directory = tmp_path_factory.mktemp("course")
    for name in build.NAMES:
        build.write(build.folder_of(name) | build.source_of(name), directory)
    (directory / "nbgrader_config.py").write_text((FOLDER / "nbgrader_config.py").read_text())
    command = [sys.executable, "-c", GENERATE, *build.NAMES]
    subprocess.run(command, cwd=directory, check=True, capture_output=True, timeout=240)
    return {name: [*(directory / "release" / name).rglob("*"), *(directory / name).rglob("*")] for name in build.NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", build.NAMES)
def test_release_holds_no_solution_and_no_hidden_test(release, name):
    forbidden = secrets(name)
    assert forbidden
    files = [path for path in release[name] if path.is_file()]
    assert len(files) == 4
    for path in files:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            assert not any(cell.get("outputs") for cell in cells)
            text += "\n".join("".join(cell["source"]) + json.dumps(cell["metadata"]) for cell in cells)  # unescaped
        assert not found_in(text, forbidden), path
        assert not re.search(r"(BEGIN|END) (SOLUTION|HIDDEN)", text), path


@pytest.mark.parametrize("name", build.NAMES)
def test_solution_would_be_found(name):
    forbidden = secrets(name)
    (source,) = build.source_of(name).values()
    solution = build.answers(assignment(name))
    assert found_in(solution, forbidden)
    assert found_in(source, forbidden)
    # One line of it, in another layout, in a comment.
    line = next(secret for secret in sorted(forbidden) if secret in solution)
    assert found_in(f"# {line.replace(' ', '  ')}", forbidden) == {line} | found_in(line, forbidden)


@pytest.mark.parametrize("name", build.NAMES)
def test_committed_folder_is_in_step_with_the_text(name):
    for path, content in build.folder_of(name).items():
        assert (FOLDER / path).read_text(encoding="utf-8") == content, f"{path}: run build.py folders"


def test_all_six_are_there():
    assert [f"a{i}" for i in range(1, 7)] == build.NAMES
    assert sorted(path.name for path in FOLDER.glob("a[0-9]*")) == build.NAMES


def test_numbers_in_the_pages_are_those_of_the_tests():
    page = (FOLDER / "INSTRUCTORS.md").read_text(encoding="utf-8")
    wrongs = sum(len(wrong_answers(name)) for name in build.NAMES)
    assert f"Each of the {wrongs} typical wrong answers" in page
    assert f"has {len(MISCHIEF)} submissions that try" in page


@pytest.mark.parametrize("name", build.NAMES)
def test_every_task_has_visible_and_hidden_tests_with_points_that_the_words_say(name):
    notebook = assignment(name)
    points = {test: cell.metadata.nbgrader.points for test, cell in cells_that_test(notebook).items()}
    assert min(points.values()) > 0
    kinds = {(build.task_of(test), test.endswith("_hidden")) for test in points}
    assert kinds == {(f"{name}_{i}", hidden) for i in range(1, len(kinds) // 2 + 1) for hidden in (False, True)}
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    hand_in = " ".join(notebook.cells[-1].source.split())
    for task, _ in kinds:
        worth = sum(p for test, p in points.items() if build.task_of(test) == task)
        assert re.search(rf"^\| {task} \|.*\| {worth:g} \|$", words, re.MULTILINE), f"{task}: {worth:g} points"
    hidden = sum(p for test, p in points.items() if test.endswith("_hidden"))
    total = sum(points.values())
    assert f"worth {total - hidden:g} of {total:g} points" in hand_in
    assert f"decide about the other {hidden:g}." in hand_in
    assert 3 * hidden <= total


@pytest.mark.parametrize("name", build.NAMES)
def test_stub_is_python_and_asks_for_what_the_tests_ask(name):
    stub = build.stub(name, assignment(name))
    compile(stub, name, "exec")
    functions = {node.name for node in ast.parse(stub).body if isinstance(node, ast.FunctionDef)}
    asked = set(re.findall(r'answer\(\s*"(\w+)"', build.tests(name, assignment(name), hidden=True)))
    assert asked
    assert asked <= functions
    comments = [t.string for t in tokenize.generate_tokens(io.StringIO(stub).readline) if t.type == tokenize.COMMENT]
    assert sum("YOUR CODE HERE" in comment for comment in comments) >= len(asked)


@pytest.mark.parametrize("name", build.NAMES)
def test_links_of_an_assignment_lead_somewhere(name):
    words = (FOLDER / "text" / f"{name}.py").read_text(encoding="utf-8")
    links = re.findall(r"https://github\.com/tinyprune/tinyprune/blob/main/([\w./]+)", words)
    assert all((REPOSITORY / link).exists() for link in links), links


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("# %%\nx = 1\n", "must be given, tools, solution or test"),
        ('# %% test="a1_1" points=1\nx = """\n"""\n', "no texts of several lines"),
        ('# %% given="a1_x"\nx = 1\n\n# %% test="a1_x" points=1\ny = 2\n', "a1_x is the name of 2 cells"),
    ],
)
def test_mistakes_in_a_text_are_named(tmp_path, text, what):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a1.py").write_text(text)
    with pytest.raises(build.TextError, match=what):
        build.notebook_of("a1", tmp_path)


def gate(log_alpha, u, beta, gamma, zeta, hard=False):
    return ops.hard_concrete_forward(log_alpha, u, beta=beta, gamma=gamma, zeta=zeta, hard=hard)


def scaled(gate):
    c = np.array([[output_scaling(len(row), int((row > 0).sum()))] for row in gate])
    return c * gate, c


CHOSEN = itemgetter(0, 1, 2, 6, 7)  # gradients of q, k, v, pk, pv


def persistent(q, k, v, pk, pv):
    return ops.attention_forward(q, k, v, pk=pk, pv=pv)


# Tasks that every variant changes, and the package's functions for them.
VARIED = {
    "a1_1": {name: getattr(ops, name) for name in ("linear_forward", "linear_backward")},
    "a1_2": {"norm_forward": ops.layernorm_forward, "norm_backward": ops.layernorm_backward},
    "a1_3": {name: getattr(ops, name) for name in ("cross_entropy_forward", "cross_entropy_backward")},
    "a2_1": {
        "softmax_forward": lambda s: 2 * (softmax(s.copy()),),
        "softmax_backward": lambda da, a: a * (da - (a * da).sum(-1, keepdims=True)),
    },
    "a2_2": {"attention_forward": lambda q, k, v, b: ops.attention_forward(q, k, v)},
    "a2_3": {"attention_backward": lambda dout, cache: ops.attention_backward(dout, cache)[:4]},
    "a2_4": {
        "persistent_attention_forward": persistent,
        "persistent_attention_backward": lambda dout, c: CHOSEN(ops.attention_backward(dout, persistent(*c[:5])[1])),
    },
    "a3_1": {"hard_concrete_forward": gate, "hard_concrete_backward": ops.hard_concrete_backward},
    "a3_2": {"hard_gate_forward": lambda *x: gate(*x, hard=True), "hard_gate_backward": ops.hard_concrete_backward},
    "a4_1": {"lam_at": lambda step, lam, warmup: lam * linear_warmup(step, warmup)},
    "a4_3": {"scaled_gates_forward": scaled, "scaled_gates_backward": lambda dout, c: c * dout},
}


def lost(answers, notebook):
    """Return the tasks that lose points if these functions are marked, in this process."""
    unknown = {name: lambda *args, f=f: f(*args) for name, f in answers.items() if callable(f)}  # not as the package's
    cells, tests = (c for c in notebook.cells if c.cell_type == "code" and not c.metadata.nbgrader.solution), {}
    with submission(SimpleNamespace(**unknown)):
        said = {cell.metadata.nbgrader.grade_id: run_test(cell.source, "test", tests) for cell in cells}
    return {build.task_of(test) for test, outputs in said.items() if any(o.output_type == "error" for o in outputs)}


@pytest.mark.parametrize("seed", ["1", "2026"])
@pytest.mark.parametrize("name", ["a1", "a2", "a3", "a4"])
def test_variant_refuses_the_packages_functions_and_last_years_answers(name, seed, tmp_path):
    text = build.varied(name, (FOLDER / "text" / f"{name}.py").read_text("utf-8"), seed)
    build.write({f"text/{name}.py": text}, tmp_path)
    tasks = {task for task in VARIED if task.startswith(name)}
    notebook = only(tasks, build.notebook_of(name, tmp_path))
    exec(build.answers(notebook), its_own := {})
    exec(build.answers(assignment(name)), last_year := {})
    package = {function: f for task in tasks for function, f in VARIED[task].items()}
    assert lost(its_own, notebook) == set()
    assert lost(last_year, notebook) == lost(package, notebook) == lost(package, only(tasks, assignment(name))) == tasks


def test_lecture_has_ten_pictures_or_says_how_many():
    for chapter in sorted(FOLDER.parent.glob("[0-9]*.ipynb")):
        page, found = build.lecture(chapter), len(build.pictures_of(chapter))
        assert (page.count("<img src='data:"), f"has {found} pictures" in page) == (min(found, 10), found < 10)


@pytest.mark.slow
def test_gradescope_archive_marks_as_nbgrader_does(tmp_path):
    build.gradescope("a1", tmp_path / "course.zip")
    with zipfile.ZipFile(tmp_path / "course.zip") as archive:
        archive.extractall(tmp_path)
    (tmp_path / "hers.py").write_text(build.answers(assignment("a1")))
    run = (tmp_path / "run_autograder").read_text()
    options = re.search(r"python -m (pytest .*)", run)[1].replace("/autograder/submission/a1.py", "../hers.py")
    options = options.replace("/autograder/results/results.json", "../results.json").split()
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([sys.executable, "-m", *options], cwd=tmp_path / "a1", check=True, timeout=120, env=environment)
    results = json.loads((tmp_path / "results.json").read_text())
    points = [cell.metadata.nbgrader.points for cell in cells_that_test(assignment("a1")).values()]
    assert results["score"] == sum(t["max_score"] for t in results["tests"]) == sum(points)
    assert {t["visibility"] for t in results["tests"]} == {"visible", "after_published"}

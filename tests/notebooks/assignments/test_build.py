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
from marks import FOLDER, assignment, build, cells_that_test, failures, solutions, wrong_answers
from mischief import MISCHIEF

from tinyprune import ops
from tinyprune.course.answers import submission
from tinyprune.course.marking import run_test
from tinyprune.method.gates import controller_step
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
        text = path.read_text("utf-8")
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
    assert found_in(solution, forbidden) and found_in(source, forbidden)
    # One line of it, in another layout, in a comment.
    line = next(secret for secret in sorted(forbidden) if secret in solution)
    assert found_in(f"# {line.replace(' ', '  ')}", forbidden) == {line} | found_in(line, forbidden)


@pytest.mark.parametrize("name", build.NAMES)
def test_committed_folder_is_in_step_with_the_text(name):
    for path, content in build.folder_of(name).items():
        assert (FOLDER / path).read_text("utf-8") == content, f"{path}: run build.py folders"


def test_all_six_are_there():
    assert sorted(path.name for path in FOLDER.glob("a[0-9]*")) == build.NAMES == [f"a{i}" for i in range(1, 7)]


def test_numbers_in_the_pages_are_those_of_the_tests():
    page = (FOLDER / "INSTRUCTORS.md").read_text("utf-8")
    assert f"Each of the {sum(len(wrong_answers(name)) for name in build.NAMES)} typical wrong answers" in page
    assert f"has {len(MISCHIEF)} submissions that try" in page
    for name, rules in build.tomllib.loads((FOLDER / "variants.toml").read_text("utf-8")).items():
        assert f" {np.prod([len(rule['draw']) for rule in rules])} of {name.upper()}" in page


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
    assert set() < asked <= functions
    comments = [t.string for t in tokenize.generate_tokens(io.StringIO(stub).readline) if t.type == tokenize.COMMENT]
    assert sum("YOUR CODE HERE" in comment for comment in comments) >= len(asked)


@pytest.mark.parametrize("name", build.NAMES)
def test_links_of_an_assignment_lead_somewhere(name):
    words = (FOLDER / "text" / f"{name}.py").read_text("utf-8")
    links = re.findall(r"https://github\.com/tinyprune/tinyprune/blob/main/([\w./-]+)", words)
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
SAME = "linear_forward linear_backward cross_entropy_forward cross_entropy_backward hard_concrete_backward l0_backward"
# The package's functions for the tasks of A1 to A4, all of which every variant changes; it has none for a4_2 and a4_4.
PACKAGE = {name: getattr(ops, name) for name in SAME.split()} | {
    "norm_forward": ops.layernorm_forward,
    "norm_backward": ops.layernorm_backward,
    "softmax_forward": lambda s: 2 * (softmax(s.copy()),),
    "softmax_backward": lambda da, a: a * (da - (a * da).sum(-1, keepdims=True)),
    "attention_forward": lambda q, k, v, b: ops.attention_forward(q, k, v),
    "attention_backward": lambda dout, cache: ops.attention_backward(dout, cache)[:4],
    "persistent_attention_forward": lambda q, k, v, pk, pv: ops.attention_forward(q, k, v, pk=pk, pv=pv),
    "persistent_attention_backward": lambda dout, c: CHOSEN(
        ops.attention_backward(dout, ops.attention_forward(*c[:3], pk=c[3], pv=c[4])[1])
    ),
    "hard_concrete_forward": gate,
    "hard_gate_forward": lambda *x: gate(*x, hard=True),
    "hard_gate_backward": ops.hard_concrete_backward,
    "p_open": lambda log_alpha, b, g, z: ops.p_open(log_alpha, beta=b, gamma=g, zeta=z),
    "l0_forward": lambda log_alpha, size, b, g, z: ops.l0_forward(log_alpha, size, beta=b, gamma=g, zeta=z),
    "gate_differences": lambda o, Wo, gate_of: ops.head_difference(o, Wo),
    "gate_gradients": lambda dy, o, Wo, gate_of: (dy * ops.head_difference(o, Wo)).sum((1, 2, 3)),
    "lam_at": lambda step, lam, warmup: lam * linear_warmup(step, warmup),
    "scaled_gates_forward": scaled,
    "scaled_gates_backward": lambda dout, c: c * dout,
    "controller_step": lambda lam1, lam2, h, target, heads, lr: controller_step(h, target, heads, lam1, lam2, lr),
}


# Tests that train a model, which are left out.
TRAIN = dict.fromkeys(["a4_4_model", "a5_5_heads", "a5_5_point", "a5_5_point_hidden", "a5_5_hard_hidden"], "")


def lost(answers, notebook):
    """Return the tasks that lose points if these functions are marked here, without the tests that train."""
    # They must not be recognised as those of the package.
    unknown = {name: lambda *args, f=f, **by_name: f(*args, **by_name) for name, f in answers.items() if callable(f)}
    cells = [c for c in notebook.cells if c.cell_type == "code" and not c.metadata.nbgrader.solution]
    cells, tests = {c.metadata.nbgrader.grade_id: c.source for c in cells} | TRAIN, {}
    with submission(SimpleNamespace(**unknown)):
        said = {test: run_test(source, "test", tests) for test, source in cells.items()}
    return {build.task_of(test) for test, outputs in said.items() if any(o.output_type == "error" for o in outputs)}


class InTurn:
    """Takes the place of `random`: every rule draws the value of one number, so that each has its turn."""

    def __init__(self, number):
        self.number = number

    def Random(self, seed):
        return self

    def choice(self, draws):
        return draws[self.number % len(draws)]


EACH_DRAW = [pytest.param(InTurn(number), marks=pytest.mark.slow) for number in range(4)]


@pytest.fixture(params=["1", "2026", *EACH_DRAW], ids=["1", "2026", *"abcd"])
def variant_of(request, monkeypatch, tmp_path):
    """A function that returns nbgrader's source notebook of a variant; no rule draws from more than four values."""
    if isinstance(request.param, InTurn):
        monkeypatch.setattr(build, "random", request.param)

    def variant_of(name):
        path = f"text/{name}.py"
        text = build.varied(name, (FOLDER / path).read_text("utf-8"), str(request.param))
        assert not re.search("«|»", text)
        build.write({path: text}, tmp_path)
        return build.notebook_of(name, tmp_path)

    return variant_of


def test_no_rule_draws_from_more_values_than_are_tried():
    rules = build.tomllib.loads((FOLDER / "variants.toml").read_text("utf-8"))
    assert {len(rule["draw"]) for each in rules.values() for rule in each} == {3, 4}


@pytest.mark.parametrize("name", ["a1", "a2", "a3", "a4", "a5"])
def test_variant_refuses_the_packages_functions_and_last_years_answers(name, variant_of):
    notebook = variant_of(name)
    tasks = {build.task_of(test) for test in cells_that_test(notebook)}
    exec(build.answers(notebook), its_own := {})
    exec(build.answers(assignment(name)), last_year := {})
    assert lost(its_own, notebook) == set()
    assert lost(last_year, notebook) == tasks
    if name != "a5":  # the package's functions for A5 have other arguments
        assert lost(PACKAGE, notebook) == lost(PACKAGE, assignment(name)) == tasks


@pytest.mark.slow
def test_variant_of_a6_refuses_last_years_answers(variant_of):
    """They are compiled, so they are marked in a process of their own."""
    notebook = variant_of("a6")
    assert failures(notebook) == {}
    last_year = {cell.metadata.nbgrader.grade_id: cell.source for cell in solutions(assignment("a6"))}
    for cell in solutions(notebook):
        cell.source = last_year[cell.metadata.nbgrader.grade_id]
    failed = failures(notebook)
    assert {test for test in cells_that_test(notebook) if test not in failed} == {"a6_3_shared", "a6_3_shared_hidden"}


def test_lecture_has_ten_slides_of_every_chapter_and_no_raw_formula():
    pytest.importorskip("math_core", reason="needs tinyprune[course]")
    pages = {chapter.stem: build.lecture(chapter) for chapter in FOLDER.parent.glob("[0-9]*.ipynb")}
    fewer = {name: n for name, page in pages.items() if (n := page.count("<summary>Notes</summary>")) != 10}
    assert fewer == {} and len(pages) == 14
    assert "$" not in re.sub(r"<(pre|code)\b.*?</\1>", "", "".join(pages.values()), flags=re.DOTALL)


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

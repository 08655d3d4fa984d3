"""Exercises of chapters: the stub says what to write, the solution passes, wrong solutions do not."""

import builtins
import linecache
import re
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path
from typing import NamedTuple

import jupytext
import pytest
from folder import SOURCES, executor

from tinyprune.errors import install_command
from tinyprune.kernels.gpu import what_is_missing

pytest.importorskip("IPython", reason=f"needs {install_command('notebooks')}")
from tinyprune.notebook import yours

execute = executor()
WRONG = Path(__file__).parent / "wrong"
EMULATED = 'get_backend("cuda-emulated")'


class Exercise(NamedTuple):
    cell: str
    solution: str

    def solved(self, solution):
        """Return the cell with the solution in place of the stubs, as it is executed for the stored page."""
        return execute.solved(self.cell, solution)


def exercises(source):
    """Return the exercises of a chapter's text source."""
    notebook, found = jupytext.read(source), []
    cells = notebook.cells
    for at, solution in execute.answers(notebook).items():
        before, cell, after = cells[at - 1 : at + 2]
        assert "raises-exception" in cell.metadata["tags"]
        assert re.search(rf"### Exercise {len(found) + 1} · .*\n\n\*[●○]{{3}} · \d+ minutes\*", before.source)
        folded = r"<details><summary>Hint</summary>\n\n.*?\n\n</details>\s+" + execute.ANSWER.pattern
        assert re.search(folded + r".*?\n\n</details>", after.source, re.DOTALL)[1].rstrip() == solution
        found.append(Exercise(cell.source, solution))
    return found


def run(code):
    """Run a cell; one with kernels for a GPU in another process, since this one may compute on a GPU."""
    if EMULATED not in code:
        linecache.cache["<exercise>"] = (len(code), None, code.splitlines(keepends=True), "<exercise>")
        exec(compile(code, "<exercise>", "exec"), {"__name__": "__main__"})
        return
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", timeout=120)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1]
        raise getattr(builtins, said.partition(":")[0], RuntimeError)(said)


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    """What passes is kept in a folder that no chapter reads."""
    monkeypatch.setattr(yours, "FOLDER", tmp_path)


FOUND = [(source.stem.split("_")[0], i, e) for source in SOURCES for i, e in enumerate(exercises(source), 1)]
missing = what_is_missing()
# Kernels for a GPU are compiled, which takes seconds.
SLOW = [pytest.mark.slow, pytest.mark.skipif(missing is not None, reason=str(missing))]
MARKS = {e: SLOW for _, _, e in FOUND if EMULATED in e.cell}
MISTAKES = {path.stem: tomllib.loads(path.read_text("utf-8"))["wrong"] for path in sorted(WRONG.glob("*.toml"))}


@pytest.mark.parametrize(
    "exercise", [pytest.param(e, id=f"{name}-{i}", marks=MARKS.get(e, ())) for name, i, e in FOUND]
)
def test_stub_says_what_to_write_and_the_solution_passes(exercise):
    with pytest.raises(NotImplementedError, match=r"\bwrite \w+: ") as error:
        run(exercise.cell)
    (name,) = re.findall(r"\bwrite (\w+): ", str(error.value))
    assert f"def {name}(" in exercise.cell
    run(exercise.solved(exercise.solution))


@pytest.mark.parametrize(
    ("exercise", "wrong"),
    [
        pytest.param(e, wrong, id=f"{name}-{i}", marks=MARKS.get(e, ()))
        for name, i, e in FOUND
        for wrong in MISTAKES.get(name, [])
        if wrong["exercise"] == i
    ],
)
def test_a_wrong_solution_does_not_pass(exercise, wrong):
    old, new = wrong["old"], wrong["new"]
    assert exercise.solution.count(old) == 1, f"{old!r} must occur once in the solution"
    with warnings.catch_warnings(action="ignore"), pytest.raises(Exception) as error:
        run(exercise.solved(exercise.solution.replace(old, new)))
    mistyped = SyntaxError, NameError, ImportError, NotImplementedError
    assert not isinstance(error.value, mistyped), f"{new!r} fails for another reason: {error.value!r}"


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_every_chapter_has_exercises_and_knows_wrong_answers(source):
    headings = re.findall(r"^# ## (.*)", source.read_text("utf-8"), re.MULTILINE)
    assert headings[-1] == "Questions" and "Recap" in headings[-3:]
    prefix = source.stem.split("_")[0]
    numbers = [i for name, i, _ in FOUND if name == prefix]
    assert 1 <= len(numbers) <= 3
    wrong = [mistake["exercise"] for mistake in MISTAKES.get(prefix, [])]
    assert set(wrong) == set(numbers) and all(wrong.count(i) >= 2 for i in numbers)

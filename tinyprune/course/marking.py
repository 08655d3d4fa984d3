"""Two steps for nbgrader, which does everything else: release, collection, points, gradebook, feedback.

- `RestoreCells`: what is marked is the lecturer's notebook with the student's answers in it, whatever became of the
  rest.
- `IsolatedExecute` takes the place of nbgrader's Execute: answers run in a locked process, tests run here, and the two
  never meet. Where nbgrader runs both in one kernel, an answer can change the tests that it is given.

They are put in their places by the course's nbgrader_config.py.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from nbgrader.api import Gradebook
from nbgrader.preprocessors import NbGraderPreprocessor
from traitlets import Float, Integer

from tinyprune.course.answers import submission
from tinyprune.course.sandbox import AnswerError, Limits, Sandbox

TOOLS = "_tools"  # how the name of a cell ends that is for the tests only


class RestoreCells(NbGraderPreprocessor):
    """Put back every cell of the assignment as it was released, but for the answers.

    Tests that were changed, removed, copied, or marked as something else are those of the gradebook again. Cells that
    a student added stay where they are, as cells without marks.
    """

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        """See nbgrader."""
        names = resources["nbgrader"]
        refuse_link(names["student"], names["assignment"], names["notebook"])
        with Gradebook(names["db_url"]) as gradebook:
            notebook = gradebook.find_notebook(names["notebook"], names["assignment"])
            points = {cell.name: cell.max_score for cell in notebook.grade_cells}
            solutions = {cell.name for cell in notebook.solution_cells}
            released = [(c.name, c.cell_type, c.source, c.locked, c.checksum) for c in notebook.source_cells]
        # SQL gives them in any order
        in_order = order_of(Path("source", names["assignment"], f"{names['notebook']}.ipynb"))
        released.sort(key=lambda cell: in_order.get(cell[0], len(in_order)))
        nb.cells = restored(nb.cells, released, points, solutions)
        return nb, resources


def order_of(source: Path) -> dict[str, int]:
    """Where each named cell stands in the lecturer's notebook. (nbgrader works in the course's directory.)"""
    cells = nbformat.read(source, as_version=4).cells
    return {cell.metadata["nbgrader"]["grade_id"]: at for at, cell in enumerate(cells) if "nbgrader" in cell.metadata}


def restored(
    cells: list[NotebookNode], released: list[tuple], points: dict[str, float], solutions: set[str]
) -> list[NotebookNode]:
    """The cells that are marked.

    Args:
        cells: what was handed in.
        released: (name, cell type, source, locked, checksum) of the released cells that have a name, in order.
        points: of the tests, by name.
        solutions: names of the cells that students fill in.
    """
    known = {cell[0]: cell for cell in released}
    names = [cell[0] for cell in released]
    handed_in = [name_of(cell) for cell in cells]
    done: set[str] = set()
    result: list[NotebookNode] = []

    def put(name: str, source: str | None) -> None:
        done.add(name)
        _, _, original, locked, checksum = known[name]
        cell = new_code_cell(original if source is None else source)
        cell.metadata["nbgrader"] = {
            "cell_type": "code",
            "checksum": checksum,
            "grade": name in points,
            "grade_id": name,
            "locked": locked,
            "schema_version": 3,
            "solution": name in solutions,
            "task": False,
            **({"points": points[name]} if name in points else {}),
        }
        result.append(cell)

    for cell, name in zip(cells, handed_in, strict=True):
        if name in known and name not in done:
            for earlier in names[: names.index(name)]:
                if earlier not in done and earlier not in handed_in:
                    put(earlier, None)
            put(name, cell.source if name in solutions and cell.cell_type == "code" else None)
        elif cell.cell_type in ("code", "markdown"):
            cell.metadata = NotebookNode()
            result.append(cell)
    for name in names:
        if name not in done:
            put(name, None)
    return result


def name_of(cell: NotebookNode) -> str | None:
    """What nbgrader's metadata call a cell, if they are metadata: a student can write anything there."""
    about = cell.metadata.get("nbgrader")
    name = about.get("grade_id") if isinstance(about, dict) else None
    return name if isinstance(name, str) else None


def refuse_link(student: str, assignment: str, notebook: str) -> None:
    """Raise ValueError if what was handed in is a link: it could lead to the lecturer's notebook, or a fellow's."""
    own = Path("submitted", student)
    file = own / assignment / f"{notebook}.ipynb"
    if not file.resolve().is_relative_to(own.resolve()):
        raise ValueError(f"{file} is a link to {file.resolve()}: no marks")


class IsolatedExecute(NbGraderPreprocessor):
    """Run the answers in a locked process and the tests here."""

    seconds_per_call = Float(10.0, help="for one call of an answer").tag(config=True)
    seconds_in_all = Float(120.0, help="for all calls of one submission").tag(config=True)
    memory_megabytes = Integer(3072, help="of address space for one submission").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        """See nbgrader."""
        limits = Limits(self.seconds_per_call, self.seconds_in_all, memory_bytes=self.memory_megabytes << 20)
        with Sandbox(limits) as sandbox:
            mark(nb, sandbox)
        return nb, resources


def mark(nb: NotebookNode, sandbox: Sandbox) -> None:
    """Execute a restored notebook: each cell gets the outputs of its side of the wall."""
    namespace: dict[str, Any] = {"__name__": "tests"}
    with submission(sandbox):
        for number, cell in enumerate(nb.cells, 1):
            if cell.cell_type != "code":
                continue
            details = cell.metadata.get("nbgrader") or {}
            name = details.get("grade_id", "")
            cell.execution_count = number
            if details.get("grade") or name.endswith(TOOLS):
                cell.outputs = run_test(cell.source, name, namespace) + printed(sandbox.printed())
            else:
                if details.get("locked"):
                    run_test(cell.source, name, namespace)  # what is given to both, such as imports
                cell.outputs = run_answer(cell.source, name or f"cell {number}", sandbox)


def run_answer(source: str, name: str, sandbox: Sandbox) -> list[NotebookNode]:
    """Outputs of a cell that a student wrote."""
    try:
        return printed(sandbox.run(without_magics(source), name))
    except AnswerError as error:
        return [*printed(sandbox.printed()), failure(error.kind, str(error))]


def run_test(source: str, name: str, namespace: dict[str, Any]) -> list[NotebookNode]:
    """Outputs of a cell that a lecturer wrote."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(compile(source, name, "exec"), namespace)
    except Exception as error:
        kind = error.kind if isinstance(error, AnswerError) else type(error).__name__
        return [failure(kind, "\n".join([str(error), *getattr(error, "__notes__", ())]))]
    return printed(output.getvalue())


def printed(text: str) -> list[NotebookNode]:
    """An output for what was printed, if anything was."""
    return [new_output("stream", name="stdout", text=text)] if text else []


def failure(kind: str, message: str) -> NotebookNode:
    """An output for an error."""
    # half a surrogate, which a text of an answer may have, cannot be written to a file
    message = message.encode(errors="replace").decode()
    # what an AnswerError says begins with its kind
    text = message if re.match(rf"{re.escape(kind)}(: |\n|$)", message) else f"{kind}: {message}"
    return new_output("error", ename=kind, evalue=text.removeprefix(f"{kind}: "), traceback=[text])


def without_magics(source: str) -> str:
    """`source` without lines for Jupyter itself, such as %matplotlib inline, which have no meaning here."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return re.sub(r"^([ \t]*)[%!?][^\n]*$", r"\1pass", source, flags=re.MULTILINE)
    # Python as it is: a line that begins with % goes on with a formula
    return source

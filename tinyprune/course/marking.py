"""Two steps for nbgrader, which does everything else: release, collection, points, gradebook, feedback.

- `RestoreCells` puts the student's answers into the lecturer's notebook, which is what gets marked.
- `IsolatedExecute` replaces nbgrader's Execute, which runs answers and tests in one kernel, where an answer can change
  its tests. Here answers run in a separate process and tests in this one.
- `DailyPenalty` is the course's rule for late work.

The course's nbgrader_config.py installs them.
"""

from __future__ import annotations

import ast
import contextlib
import io
import math
import re
from pathlib import Path
from typing import Any

from tinyprune.course.answers import submission
from tinyprune.course.isolation import warning
from tinyprune.course.sandbox import AnswerError, Limits, Sandbox
from tinyprune.errors import missing_extra

try:
    import nbformat
    from nbformat import NotebookNode
    from nbformat.v4 import new_code_cell, new_output
    from nbgrader.api import Gradebook
    from nbgrader.plugins import LateSubmissionPlugin
    from nbgrader.preprocessors import NbGraderPreprocessor
    from traitlets import Float, Integer
except ImportError:
    raise missing_extra("tinyprune.course.marking", "course", __name__) from None

TOOLS = "_tools"  # ending of the names of cells for the tests only


class DailyPenalty(LateSubmissionPlugin):
    """Takes a share of the score for each day begun, after some hours of grace; after the last day all of it."""

    grace_hours = Float(1, min=0, help="hours after the due date that cost nothing").tag(config=True)
    share_per_day = Float(0.1, min=0, max=1, help="share of the score that each day begun costs").tag(config=True)
    days = Integer(5, min=0, help="days after the due date on which work is still marked").tag(config=True)

    def late_submission_penalty(self, student_id: str, score: float, total_seconds_late: float) -> float:
        """See nbgrader."""
        hours = total_seconds_late / 3600
        if hours <= self.grace_hours:
            return 0.0
        late = math.ceil(hours / 24)
        return score * min(1.0, self.share_per_day * late) if late <= self.days else score


class RestoreCells(NbGraderPreprocessor):
    """Restore every cell of the assignment except the answers.

    Tests that were changed, removed, copied or relabelled are replaced by those of the gradebook. Cells that a student
    added stay below the same cell of the assignment, without marks.
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
        # SQL returns them in any order; that of the lecturer's notebook counts. (nbgrader works in its directory.)
        source = nbformat.read(Path("source", names["assignment"], f"{names['notebook']}.ipynb"), as_version=4)
        order = [c.metadata["nbgrader"]["grade_id"] for c in source.cells if "nbgrader" in c.metadata]
        released.sort(key=lambda cell: order.index(cell[0]) if cell[0] in order else len(order))
        nb.cells = restored(nb.cells, released, points, solutions)
        return nb, resources


def restored(
    cells: list[NotebookNode], released: list[tuple], points: dict[str, float], solutions: set[str]
) -> list[NotebookNode]:
    """Return the cells to be marked, from those that were handed in.

    `released` are (name, cell type, source, locked, checksum) of the released cells with a name, in order, `points`
    those of each test, and `solutions` the names of the cells that students fill in.
    """
    known = {cell[0]: cell for cell in released}
    handed_in: dict[str, NotebookNode] = {}
    added: dict[str | None, list[NotebookNode]] = {name: [] for name in (None, *known)}  # by the cell that they follow
    last = None
    for cell in cells:
        name = name_of(cell)
        if name in known and name not in handed_in:
            handed_in[name], last = cell, name
        elif cell.cell_type in ("code", "markdown"):
            cell.metadata = NotebookNode()
            added[last].append(cell)
    result = added[None]
    for name, _, original, locked, checksum in released:
        cell = new_code_cell(original)
        if name in solutions and name in handed_in and handed_in[name].cell_type == "code":
            cell.source = handed_in[name].source
        kind = {"grade": name in points, "locked": locked, "solution": name in solutions, "task": False}
        about = {"cell_type": "code", "checksum": checksum, "grade_id": name, "schema_version": 3}
        cell.metadata["nbgrader"] = about | kind
        if name in points:
            cell.metadata["nbgrader"]["points"] = points[name]
        result += [cell, *added[name]]
    return result


def name_of(cell: NotebookNode) -> str | None:
    """Return a cell's name in nbgrader's metadata, None if they are malformed: a student can write anything there."""
    about = cell.metadata.get("nbgrader")
    name = about.get("grade_id") if isinstance(about, dict) else None
    return name if isinstance(name, str) else None


def refuse_link(student: str, assignment: str, notebook: str) -> None:
    """Raise ValueError if the submission is a link, which could lead to the solution or to another submission."""
    own = Path("submitted", student)
    file = own / assignment / f"{notebook}.ipynb"
    if not file.resolve().is_relative_to(own.resolve()):
        raise ValueError(f"{file} is a link to {file.resolve()}: no marks")


class IsolatedExecute(NbGraderPreprocessor):
    """Run the answers in a separate process and the tests here."""

    seconds_per_call = Float(10.0, help="for one call of an answer").tag(config=True)
    seconds_in_all = Float(120.0, help="for all calls of one submission").tag(config=True)
    memory_megabytes = Integer(3072, help="of address space for one submission").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        """See nbgrader."""
        if warning():
            self.log.warning(warning())
        limits = Limits(self.seconds_per_call, self.seconds_in_all, memory_bytes=self.memory_megabytes << 20)
        with Sandbox(limits) as sandbox:
            mark(nb, sandbox)
        return nb, resources


def mark(nb: NotebookNode, sandbox: Sandbox) -> None:
    """Execute a restored notebook: tests in this process, answers in the sandbox."""
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
                    run_test(cell.source, name, namespace)  # a cell for both, such as imports
                try:
                    cell.outputs = printed(sandbox.run(without_magics(cell.source), name or f"cell {number}"))
                except AnswerError as error:
                    cell.outputs = [*printed(sandbox.printed()), failure(error.kind, str(error))]


def run_test(source: str, name: str, namespace: dict[str, Any]) -> list[NotebookNode]:
    """Run a lecturer's cell and return its outputs."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            exec(compile(source, name, "exec"), namespace)
    except Exception as error:
        kind = error.kind if isinstance(error, AnswerError) else type(error).__name__
        return [failure(kind, "\n".join([str(error), *getattr(error, "__notes__", ())]))]
    return printed(output.getvalue())


def printed(text: str) -> list[NotebookNode]:
    """Return an output for printed text, none if there is no text."""
    return [new_output("stream", name="stdout", text=text)] if text else []


def failure(kind: str, message: str) -> NotebookNode:
    """Return an output for an error."""
    # An answer's message may contain half a surrogate, which cannot be written to a file.
    message = message.encode(errors="replace").decode()
    # The message of an AnswerError already begins with its kind.
    text = message if re.match(rf"{re.escape(kind)}(: |\n|$)", message) else f"{kind}: {message}"
    return new_output("error", ename=kind, evalue=text.removeprefix(f"{kind}: "), traceback=[text])


def without_magics(source: str) -> str:
    """Replace lines for Jupyter itself, such as %matplotlib inline, by `pass`."""
    try:
        ast.parse(source)
    except (SyntaxError, ValueError):
        return re.sub(r"^([ \t]*)[%!?][^\n]*$", r"\1pass", source, flags=re.MULTILINE)
    # Valid Python: a line that begins with % continues a formula.
    return source

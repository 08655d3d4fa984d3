"""Run notebooks from their text source, and keep them with what they printed and drew.

    python notebooks/execute.py              all
    python notebooks/execute.py 01 04        those whose names begin so
    python notebooks/execute.py --slow 01    also if it took longer than twice what README.md says

NN_name.py (jupytext, py:percent) is what is written and reviewed; NN_name.ipynb is made from it
here, and what one reads on GitHub. Edited in Jupyter, an .ipynb is written back by
`jupytext --to py:percent NN_name.ipynb`.

While a notebook runs, the reference answers that are folded below its exercises take their stubs'
place, and those of earlier chapters are found as in runs/yours, which is left alone. The stubs stay
in what is kept; below the outputs a sentence says whose code made them.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import time
from pathlib import Path
from queue import Empty
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from nbformat.v4 import new_output

FOLDER = Path(__file__).parent
SECONDS = 600  # for one cell: enough for the longest training on a slow and busy machine

STARTING = 15  # of a kernel and its imports

ANSWER = re.compile(
    r"<details><summary>(?:Solution|Compare with ours)</summary>\n\n.*?```python\n(.*?)```",
    re.DOTALL,
)
# said below the outputs of an exercise, and of another cell that computes with a reader's functions
SOLVED = (
    "*This is the output of the reference answer, which is folded below. Run the cell to see that "
    "of your own code.*"
)
COMPUTED = "*On this page, “your functions” are the reference answers to the exercises.*"


class NotebookError(Exception):
    """A cell failed; the message names the notebook and the cell."""


def sources(prefixes: list[str] | None = None) -> list[Path]:
    """The text sources in reading order: all, or those whose names begin with one of `prefixes`."""
    return sorted(
        p
        for p in FOLDER.glob("[0-9][0-9]*_*.py")
        if not prefixes or p.name.startswith(tuple(prefixes))
    )


def heading_of(notebook: NotebookNode, index: int) -> str:
    """The last heading at or above a cell."""
    text = "\n".join(
        cell.source for cell in notebook.cells[: index + 1] if cell.cell_type == "markdown"
    )
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return headings[-1] if headings else "the beginning"


def ask_often(client: NotebookClient) -> None:
    """Have `client` look every second whether a cell has answered.

    With widgets it sometimes sleeps through the answer, and would look again only when the time for
    the cell is over (https://github.com/jupyter/nbclient/issues/312).
    """
    channel = client.kc.shell_channel
    get_message = channel.get_msg

    async def get_msg(timeout: float | None = None) -> dict[str, Any]:
        end = time.monotonic() + (SECONDS if timeout is None else timeout)
        while True:
            left = max(end - time.monotonic(), 0)
            try:
                return await get_message(timeout=min(left, 1))
            except Empty:
                if not left:
                    raise

    channel.get_msg = get_msg


def is_exercise(cell: NotebookNode) -> bool:
    return "exercise" in cell.metadata.get("tags", [])


def answers(notebook: NotebookNode) -> dict[int, str]:
    """The reference answer of each exercise, by its cell's place; the cell after it has it, folded.

    Raises:
        NotebookError: if an exercise has none; says which.
    """
    found = {}
    for at, cell in enumerate(notebook.cells):
        if is_exercise(cell):
            after = notebook.cells[at + 1].source if at + 1 < len(notebook.cells) else ""
            answer = ANSWER.search(after)
            if not answer:
                where = f"under “{heading_of(notebook, at)}”"
                raise NotebookError(f"cell {at}, {where}, is an exercise without a folded answer")
            found[at] = answer[1].rstrip()
    return found


def solved(cell: str, answer: str) -> str:
    """An exercise's cell with `answer` in place of the stubs: functions that raise the error."""
    lines, nodes = cell.splitlines(), ast.parse(cell).body
    stubs = [node for node in nodes if "raise NotImplementedError" in ast.unparse(node)]
    functions = {n.name for n in ast.parse(answer).body if isinstance(n, ast.FunctionDef)}
    if not stubs or not {stub.name for stub in stubs} <= functions:
        raise NotebookError(f"the answer has not every stub's function:\n{cell}\n\n{answer}")
    for stub in reversed(stubs):
        lines[stub.lineno - 1 : stub.end_lineno] = [answer] if stub is stubs[0] else []
    return "\n".join(lines)


def keep_answers(source: Path, folder: Path) -> None:
    """Write the answers of chapters before `source` to `folder`, as these do to runs/yours."""
    for earlier in sources():
        if earlier.name >= source.name:
            break
        notebook = jupytext.read(earlier)
        for at, answer in answers(notebook).items():
            checked = re.search(r"\byours\.check\(\s*(\w+)", notebook.cells[at].source)
            for node in ast.parse(answer).body if checked else []:
                if isinstance(node, ast.FunctionDef) and node.name == checked[1]:
                    text = ast.get_source_segment(answer, node)
                    (folder / f"{node.name}.py").write_text(text, encoding="utf-8")


def run(source: Path) -> NotebookNode:
    """The notebook of a text source, every cell executed in a fresh kernel, with reference answers.

    Raises:
        NotebookError: if a cell fails or takes longer than SECONDS, or an exercise has no answer;
            says which.
    """
    notebook = jupytext.read(source)
    stubs = {}
    for at, answer in answers(notebook).items():
        cell = notebook.cells[at]
        stubs[at] = cell.source, cell.metadata
        cell.source, cell.metadata = solved(cell.source, answer), {}  # no tag that allows an error
    # not random, so that a second run differs only where the outputs do
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
    notebook.metadata.pop("jupytext", None)
    started = [0]
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": FOLDER}},
        on_notebook_start=lambda notebook: ask_often(client),
        on_cell_start=lambda cell, cell_index: started.append(cell_index),
    )
    try:
        with TemporaryDirectory() as folder:
            keep_answers(source, Path(folder))
            client.execute(env=os.environ | {"TINYPRUNE_YOURS": folder})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        cell = notebook.cells[started[-1]]
        place = f"{source.name}, cell {started[-1]}, under “{heading_of(notebook, started[-1])}”"
        raise NotebookError(f"{place}:\n{cell.source}\n\n{error}") from None
    notebook.metadata.pop("widgets", None)
    for at, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            cell.outputs = [as_kept(output) for output in cell.outputs]
            describe(cell)
            said = "".join(output.get("text", "") for output in cell.outputs)
            if at in stubs:
                cell.source, cell.metadata = stubs[at]
                cell.outputs.append(note(SOLVED))
            elif "computed by your functions: " in said:
                cell.outputs.append(note(COMPUTED))
    return notebook


def note(text: str) -> NotebookNode:
    """An output that says something in Markdown; it goes when a reader runs the cell."""
    return new_output("display_data", {"text/markdown": text, "text/plain": text.strip("*")})


def describe(cell: NotebookNode) -> None:
    """Give a cell's pictures its first comment as text alternative, unless they have one."""
    comment = re.search(r"^# (.+)", cell.source, re.MULTILINE)
    for output in cell.outputs:
        if comment and "image/png" in output.get("data", {}):
            output.metadata.setdefault("image/png", {}).setdefault("alt", comment[1])


def as_kept(output: NotebookNode) -> NotebookNode:
    """An output without what is of use to a running kernel only, and different each time."""
    if output.output_type == "stream":
        output.text = as_on_a_screen(output.text)
    elif output.output_type == "display_data":
        output.data.pop("application/vnd.jupyter.widget-view+json", None)
    return output


def as_on_a_screen(text: str) -> str:
    """`text` as a terminal shows it: of a progress bar, which begins its line anew, the end."""
    return "\n".join(line.rstrip("\r").split("\r")[-1] for line in text.split("\n"))


def write(notebook: NotebookNode, source: Path) -> Path:
    """Keep an executed notebook beside its source."""
    target = source.with_suffix(".ipynb")
    nbformat.validate(notebook)
    nbformat.write(notebook, target)
    return target


def announced(source: Path) -> float:
    """The seconds that the table of README.md gives a notebook "to run"; endless if it has none."""
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    row = re.search(rf"^\|[^|]*\({source.stem}\.ipynb\).*", table, re.MULTILINE)
    columns = re.findall(r"\| (\d+) (s|min)\b", row[0]) if row else []  # to read, to do, to run
    return float(columns[2][0]) * {"s": 1, "min": 60}[columns[2][1]] if columns else float("inf")


def main(prefixes: list[str], slow: bool = False) -> None:
    """Run and write the notebooks that begin with `prefixes`, or all.

    Raises:
        NotebookError: for one that took more than twice as long as README.md says, unless `slow`:
            other programs kept the processors busy, and what it measured would puzzle readers.
    """
    for source in sources(prefixes):
        print(source.name, end=" ", flush=True)
        start = time.perf_counter()
        notebook = run(source)
        seconds = time.perf_counter() - start
        if seconds > 2 * announced(source) + STARTING and not slow:
            raise NotebookError(
                f"took {seconds:.0f} s, and README.md says {announced(source):.0f} s; nothing is "
                "kept: wait until the machine is idle, correct the table, or add --slow"
            )
        target = write(notebook, source)
        print(f"{seconds:.0f} s, {target.stat().st_size / 1024:.0f} KiB", flush=True)


if __name__ == "__main__":
    try:
        main([name for name in sys.argv[1:] if name != "--slow"], "--slow" in sys.argv)
    except NotebookError as error:
        sys.exit(str(error))

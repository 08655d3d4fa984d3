"""Run notebooks from their text source, and keep them with what they printed and drew.

    python notebooks/execute.py              all
    python notebooks/execute.py 01 04        those whose names begin so
    python notebooks/execute.py --slow 01    also if it took longer than twice what README.md says

NN_name.py (jupytext, py:percent) is what is written and reviewed; NN_name.ipynb is made from it
here, and what one reads on GitHub. Edited in Jupyter, an .ipynb is written back by
`jupytext --to py:percent NN_name.ipynb`.
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path
from queue import Empty
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat import NotebookNode

FOLDER = Path(__file__).parent
SECONDS = 600  # for one cell: enough for the longest training on a slow and busy machine

STARTING = 15  # of a kernel and its imports


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


def run(source: Path) -> NotebookNode:
    """The notebook of a text source, every cell executed in a fresh kernel.

    Raises:
        NotebookError: if a cell fails or takes longer than SECONDS; says which.
    """
    notebook = jupytext.read(source)
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
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        cell = notebook.cells[started[-1]]
        place = f"{source.name}, cell {started[-1]}, under “{heading_of(notebook, started[-1])}”"
        raise NotebookError(f"{place}:\n{cell.source}\n\n{error}") from None
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [as_kept(o) for o in cell.outputs if not expected_error(o, cell)]
            describe(cell)
    return notebook


def describe(cell: NotebookNode) -> None:
    """Give a cell's pictures its first comment as text alternative, unless they have one."""
    comment = re.search(r"^# (.+)", cell.source, re.MULTILINE)
    for output in cell.outputs:
        if comment and "image/png" in output.get("data", {}):
            output.metadata.setdefault("image/png", {}).setdefault("alt", comment[1])


def expected_error(output: NotebookNode, cell: NotebookNode) -> bool:
    """Whether an output is the error of an exercise that nobody has solved."""
    return output.output_type == "error" and "exercise" in cell.metadata.get("tags", [])


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

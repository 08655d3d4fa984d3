"""A report of submissions that resemble each other, for a lecturer to read.

    python notebooks/assignments/similar.py a1 submitted/*/a1/a1.ipynb
    python notebooks/assignments/similar.py a1 handed-in/*.py --most 40

Each function that a student wrote is parsed, and its syntax tree is normalised: comments,
docstrings, annotations and layout are dropped, and its own names are numbered by their first
use, so that other names change nothing. What is left is compared in pieces of eight nodes. A
piece that few submissions have counts more than one that the task dictates (inverse document
frequency, Spärck Jones 1972). The reference solution of text/aN.py is compared, too. A high
number is a reason to look at two files, and no proof: short tasks have few solutions.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import copy
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import nbformat
import numpy as np

WINDOW = 8  # nodes of a piece
LARGEST = 1 << 20  # bytes of a submission that is read
REFERENCE = "(reference solution)"
UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


class Pair(NamedTuple):
    """Two submissions, from 0 (nothing in common) to 1 (the same but for names and layout)."""

    similarity: float
    first: str
    second: str
    same: list[str]  # functions that are the same


class Renamed(ast.NodeTransformer):
    """Numbers a function's own names by their first use, and drops what does not compute."""

    def __init__(self, bound: set[str]) -> None:
        self.bound, self.numbers = bound, {}

    def number(self, name: str) -> str:
        """Return what stands for a name."""
        return (
            f"_{self.numbers.setdefault(name, len(self.numbers))}" if name in self.bound else name
        )

    def visit_Name(self, node: ast.Name) -> ast.AST:
        """Number a variable."""
        node.id = self.number(node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        """Number an argument, and drop its annotation."""
        node.arg, node.annotation = self.number(node.arg), None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        """Drop name and docstring."""
        node.name, node.returns = "", None
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        return self.generic_visit(node)


def normalised(function: ast.AST) -> list[str]:
    """Return the nodes of a function in order, each as a word."""
    function = copy.deepcopy(function)
    nodes = list(ast.walk(function))
    bound = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    bound |= {n.arg for n in nodes if isinstance(n, ast.arg)}
    return list(words(Renamed(bound - set(dir(builtins))).visit(function)))


def words(node: ast.AST) -> Iterator[str]:
    """Yield a word for each node from this one on: its kind, its names and its numbers."""
    held = [
        str(value) for _, value in ast.iter_fields(node) if isinstance(value, str | int | float)
    ]
    yield " ".join([type(node).__name__, *held])
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr_context):
            yield from words(child)


def cells_of(path: Path) -> list[str]:
    """Return the code of a notebook, cell by cell, or of a Python file.

    Raises ValueError if it is neither.
    """
    if path.stat().st_size > LARGEST:
        raise ValueError(f"has more than {LARGEST:,} bytes")
    text = path.read_text("utf-8")
    if path.suffix != ".ipynb":
        return [text]
    try:
        cells = nbformat.reads(text, 4).cells
    except Exception as error:
        raise ValueError("is not a notebook") from error
    return [cell.source for cell in cells if cell.cell_type == "code"]


def functions_of(cells: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Return the functions of all cells, name → words, and what could not be read."""
    found, problems = {}, []
    for source in cells:
        try:
            for node in ast.parse(source).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef):
                    found[node.name] = normalised(node)
        except UNREADABLE as error:
            problems.append(f"{type(error).__name__}: {str(error).splitlines()[0][:80]}")
    return found, problems


def compare(submissions: dict[str, dict[str, list[str]]]) -> list[Pair]:
    """Return all pairs of submissions (name → functions), the most similar ones first."""
    pieces = [
        Counter(
            tuple(nodes[at : at + WINDOW])
            for nodes in functions.values()
            for at in range(max(1, len(nodes) - WINDOW + 1))
        )
        for functions in submissions.values()
    ]
    places = {piece: at for at, piece in enumerate({p: 0 for counter in pieces for p in counter})}
    counts = np.zeros((len(pieces), len(places)))
    for row, counter in zip(counts, pieces, strict=True):
        for piece, count in counter.items():
            row[places[piece]] = count
    # between 0.7, for what everybody has, and ln(1 + number of submissions)
    rarity = np.log(1 + len(pieces) / np.maximum((counts > 0).sum(0), 1))
    vectors = np.sqrt(counts * rarity)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    cosines, names = vectors @ vectors.T, list(submissions)
    found = []
    for a, b in combinations(range(len(names)), 2):
        mine, theirs = submissions[names[a]], submissions[names[b]]
        same = sorted(name for name, nodes in mine.items() if theirs.get(name) == nodes)
        found.append(Pair(float(cosines[a, b]), names[a], names[b], same))
    return sorted(found, reverse=True)


def report(name: str, paths: list[Path], most: int = 20) -> str:
    """Return the table of the most similar pairs of these files, as Markdown."""
    from build import answers, notebook_of, released

    notebook = notebook_of(name)
    stubs, _ = functions_of([c.source for c in released(notebook).cells if c.cell_type == "code"])
    submissions, problems = {}, []
    for path in paths:
        student = path.parts[-3] if path.suffix == ".ipynb" and len(path.parts) > 2 else path.stem
        try:
            own, unread = functions_of(cells_of(path))
        except (OSError, *UNREADABLE) as error:
            own, unread = {}, [str(error)]
        problems += [f"- {student}: {problem}" for problem in unread]
        # what everybody is given, and what nobody has touched, is no answer
        submissions[student] = {f: nodes for f, nodes in own.items() if stubs.get(f) != nodes}
    given, _ = functions_of([answers(notebook)])
    submissions[REFERENCE] = {f: nodes for f, nodes in given.items() if stubs.get(f) != nodes}
    empty = [
        f"- {student}: no function was changed" for student, own in submissions.items() if not own
    ]
    pairs = compare({student: own for student, own in submissions.items() if own})
    lines = [
        f"# {name}: the {min(most, len(pairs))} most similar of {len(pairs)} pairs",
        "",
        "| similarity | | | the same but for names and layout |",
        "| ---: | --- | --- | --- |",
        *(
            f"| {p.similarity:.2f} | {p.first} | {p.second} | {', '.join(p.same)} |"
            for p in pairs[:most]
        ),
    ]
    return "\n".join(
        [*lines, *(["", "Not compared:", ""] if problems or empty else []), *problems, *empty]
    )


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description="List submissions that resemble each other.")
    parser.add_argument("assignment", help="such as a1")
    parser.add_argument(
        "files", nargs="+", type=Path, help="notebooks STUDENT/a1/a1.ipynb, or STUDENT.py"
    )
    parser.add_argument("--most", type=int, default=20, help="rows of the table (20)")
    arguments = parser.parse_args()
    from build import NAMES

    if arguments.assignment not in NAMES:
        parser.error(
            f"the assignment must be one of {', '.join(NAMES)}, got {arguments.assignment}"
        )
    if arguments.most < 1:
        parser.error(f"--most must be 1 or more, got {arguments.most}")
    print(report(arguments.assignment, arguments.files, arguments.most))


if __name__ == "__main__":
    main()

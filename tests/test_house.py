"""The house has a budget: lines of code for the package and for its tests, and limits for functions.

Docstrings, comments and blank lines are free, so that nobody saves on them. Each limit has some 3 % of air: a feature
needs no other to go. Where there is no air left, delete what nobody would miss, or raise the limit and say why.
"""

import ast
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinyprune"

LINES_OF_CODE = {"tinyprune": 24_200, "tests": 16_900}
LONG_LINES = 0.05  # share of code lines over 100 characters
# Longest functions without their docstrings, and most parameters; kernels have more of both.
LINES, PARAMETERS = 60, 10
LINES_OF_KERNELS, PARAMETERS_OF_KERNELS = 100, 15
OPERATIONS = 170  # entries in all lists of operations
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def code_lines(path: Path) -> list[str]:
    """Return the lines of a file that are code: no docstring, no comment, not blank."""
    lines = path.read_text(encoding="utf-8").splitlines()
    if path.suffix == ".js":
        return [line for line in lines if line.strip() and not line.strip().startswith(("//", "/*", "*"))]
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse("\n".join(lines))):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            docstrings.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return [
        line
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.strip().startswith("#") and number not in docstrings
    ]


def code_of(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.suffix in (".py", ".js"))
    return list(chain.from_iterable(map(code_lines, files)))


@pytest.mark.parametrize("name", LINES_OF_CODE)
def test_the_house_keeps_to_its_budget(name):
    code = code_of(ROOT / name)
    assert len(code) <= LINES_OF_CODE[name], "delete what nobody would miss, in a commit of its own, or say why not"
    if name == "tinyprune":
        assert sum(len(line) > 100 for line in code) <= LONG_LINES * len(code), "lines are not packed to save some"


def test_what_counts_as_code(tmp_path):
    path = tmp_path / "file.py"
    path.write_text(
        '"""A module."""\n\n# a comment\nx = """no docstring"""\n\n\ndef f():\n    """Say.\n\n    More."""\n'
    )
    assert code_lines(path) == ['x = """no docstring"""', "def f():"]
    (tmp_path / "page.js").write_text("// why\nlet x = 1;\n\n")
    assert code_lines(tmp_path / "page.js") == ["let x = 1;"]


def functions() -> list[tuple[str, int, int, bool]]:
    """Name, lines without the docstring, parameters, and whether it is a kernel's, of every function."""
    found = []
    for path in PACKAGE.glob("**/*.py"):
        name, is_kernel = path.relative_to(PACKAGE).as_posix(), "kernels" in path.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                document = node.body[0] if ast.get_docstring(node) is not None else None
                lines = node.end_lineno - node.lineno + 1
                lines -= 0 if document is None else document.end_lineno - document.lineno + 1
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                found.append((f"{name}:{node.name}", lines, len(given), is_kernel))
    return found


def test_functions_are_short():
    limits = {False: (LINES, PARAMETERS), True: (LINES_OF_KERNELS, PARAMETERS_OF_KERNELS)}
    long = {f[0] for f in functions() if f[1] > limits[f[3]][0]}
    wide = {f[0] for f in functions() if f[2] > limits[f[3]][1]} - FORMULAS
    assert not long and not wide


# Signatures that are the operation's formula.
FORMULAS = {f"ops/attention.py:{name}" for name in ("attention_forward", "check_arguments")}


def test_an_operation_is_listed_once_for_each_engine():
    """By an assignment of its module's function, on the page of each engine; what only passes on is no entry."""
    entries = 0
    for path in ("ops/engine.py", "kernels/cpu/engine.py", "kernels/cuda/engine.py"):
        body = ast.parse((PACKAGE / path).read_text(encoding="utf-8")).body
        for engine in (n for n in body if isinstance(n, ast.ClassDef)):
            assigned = [n for n in engine.body if isinstance(n, ast.Assign)]
            listed = [n.targets[0].id for n in assigned if isinstance(n.value, ast.Call | ast.Attribute)]
            assert len(listed) == len(set(listed)), f"{engine.name} lists an operation twice"
            entries += len(listed)
    assert 100 < entries <= OPERATIONS

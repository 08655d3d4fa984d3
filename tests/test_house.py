"""The house has a budget: lines of Python for each room, and for functions. What is added takes its room from something
else."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tinyprune"

# Lines of each room, docstrings and blank lines included.
BUDGET = {
    "bench": 1315,
    "cli": 940,
    "course": 1725,
    "data": 985,
    "experiments": 1935,
    "gradcheck": 915,
    "kernels": 9930,
    "model": 1680,
    "notebook": 640,
    "ops": 3390,
    "presets": 5,
    "pretrained": 1180,
    "pruning": 1320,
    "runs": 820,
    "training": 1140,
    ".": 2105,  # modules at the top
}
IN_ALL, TESTS = 30_000, 18_000
# Longest functions without their docstrings, and most parameters; kernels have more of both.
LINES, PARAMETERS = 60, 10
LINES_OF_KERNELS, PARAMETERS_OF_KERNELS = 100, 15
OPERATIONS = 170  # entries in all lists of operations


def lines_of(folder: Path, pattern: str = "**/*.py") -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.glob(pattern))


def test_every_room_has_a_budget():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and any(path.glob("**/*.py"))}
    assert rooms == BUDGET.keys() - {"."}


@pytest.mark.parametrize("room", BUDGET)
def test_a_room_keeps_to_its_budget(room):
    found = lines_of(PACKAGE, "*.py") if room == "." else lines_of(PACKAGE / room)
    assert found <= BUDGET[room], f"{room} has {found} lines; take out what it replaces"


def test_the_house_keeps_to_its_budget():
    assert lines_of(PACKAGE) <= IN_ALL and lines_of(ROOT / "tests") <= TESTS


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

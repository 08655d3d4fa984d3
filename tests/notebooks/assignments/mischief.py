"""Submissions of A1 that try to get marks, or to stop the batch, by other means than answers."""

from typing import NamedTuple

from marks import build


class Mischief(NamedTuple):
    """What is handed in, and what it gets.

    `cell` is a cell that is added first, `edit` changes the notebook, `solved` says whether the rest is the reference
    solution or the untouched stub, `function` is put at the beginning of linear_forward.
    """

    what: str
    points: float
    solved: bool
    cell: str = ""
    function: str = ""
    edit: object = None


FULL = 30.0
FORWARD = 3.0  # what linear_forward is worth


def without_tests(notebook):
    notebook.cells = [c for c in notebook.cells if not c.metadata.get("nbgrader", {}).get("grade")]


def with_empty_tests(notebook):
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.source = "pass"


def with_other_marks(notebook):
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.source = "1000"
            cell.metadata.nbgrader |= {"points": 1000, "solution": True, "locked": False}


def with_ungraded_tests(notebook):
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.metadata.nbgrader |= {"grade": False, "points": 0}


def with_tests_twice(notebook):
    tests = [c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade")]
    for cell in tests:
        copy = build.nbformat.from_dict(cell)
        copy.id += "-again"
        copy.source = "pass"
        notebook.cells.insert(0, copy)


def with_texts_for_tests(notebook):
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            cell.cell_type = "markdown"
            cell.pop("outputs", None)
            cell.pop("execution_count", None)


def with_tools_of_its_own(notebook):
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade_id", "").endswith("_tools"):
            cell.source = (
                "def nothing(*args, **options):\n    return args\nanswer = expect_close = expect_gradients = nothing"
            )


def without_answers(notebook):
    notebook.cells = [c for c in notebook.cells if not c.metadata.get("nbgrader", {}).get("solution")]


def with_odd_metadata(notebook):
    for odd in ([1], "a1_1", {"grade_id": ["a1_1"]}, {"grade_id": 5}, None):
        notebook.cells.insert(0, build.nbformat.v4.new_code_cell("1", metadata={"nbgrader": odd}))


def with_zeros_for_inputs(notebook):
    answers = {
        "a1_1": "def linear_forward(x, W, b):\n    x[...] = W[...] = b[...] = 0\n"
        "    return np.zeros((*x.shape[:-1], len(b))), None\n"
        "def linear_backward(dout, cache):\n    x, W, _ = cache\n    x[...] = W[...] = 0\n"
        "    return np.zeros(x.shape), np.zeros(W.shape), dout.reshape(-1, dout.shape[-1]).sum(0)",
        "a1_2": "def layernorm_forward(x, scale, bias, eps=0):\n    x[...] = scale[...] = bias[...] = 0\n"
        "    return np.zeros(x.shape), None\n"
        "def layernorm_backward(dout, cache):\n    n, std, scale = cache\n    scale[...] = 0\n"
        "    axes = tuple(range(dout.ndim - 1))\n"
        "    return np.zeros(n.shape), (dout * n).sum(axes), dout.sum(axes)",
    }
    for cell in notebook.cells:
        name = (cell.metadata.get("nbgrader") or {}).get("grade_id")
        cell.source = answers.get(name, cell.source)


MISCHIEF = [
    # it would stop the batch
    Mischief("endless loop in a cell", FULL, True, cell="while True:\n    pass"),
    Mischief("endless loop in a function", FULL - FORWARD, True, function="while True:\n        pass"),
    Mischief("sys.exit in a cell", FULL, True, cell="import sys\nsys.exit()"),
    Mischief("sys.exit in a function", FULL - FORWARD, True, function="import sys; sys.exit(0)"),
    Mischief("os._exit in a cell", FULL, True, cell="import os\nos._exit(0)"),
    Mischief("os._exit in a function", FULL - FORWARD, True, function="import os; os._exit(0)"),
    Mischief("fork bomb", FULL, True, cell="import os\nwhile True:\n    os.fork()"),
    Mischief(
        "fork bomb past Python",
        FULL,
        True,
        cell="import ctypes\nwhile True:\n    if ctypes.pythonapi.fork() < 0:\n        raise OSError('refused')",
    ),
    Mischief("shells", FULL, True, cell="import subprocess\nsubprocess.Popen('sleep 1000', shell=True)"),
    Mischief(
        "threads",
        FULL,
        True,
        cell="import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
    ),
    Mischief("memory", FULL, True, cell="hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 28))"),
    Mischief("prints without end", FULL, True, cell="while True:\n    print('x' * 10_000)"),
    Mischief("crash", FULL - FORWARD, True, function="import ctypes; ctypes.string_at(0)"),
    Mischief("waits for input", FULL, True, cell="name = input('your name? ')"),
    Mischief(
        "signals",
        FULL,
        True,
        cell="import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.killpg(0, signal.SIGKILL)",
    ),
    Mischief("closes the pipes", FULL, True, cell="import os, time\nos.closerange(3, 100)\ntime.sleep(1000)"),
    Mischief(
        "kills by the kernel's hand",
        FULL,
        True,
        cell="import fcntl, os\nr, w = os.pipe()\nfcntl.fcntl(r, 8, os.getppid())\nfcntl.fcntl(r, 10, 9)\n"
        "fcntl.fcntl(r, fcntl.F_SETFL, fcntl.fcntl(r, fcntl.F_GETFL) | 0o20000)\nos.write(w, b'x')",
    ),
    Mischief(
        "directories in directories",
        FULL,
        True,
        cell="import os\nfor _ in range(1500):\n    os.mkdir('a')\n    os.chdir('a')",
    ),
    Mischief(
        "fills the disk", FULL, True, cell="n = 0\nwhile n := n + 1:\n    open(str(n), 'wb').write(bytes(1 << 24))"
    ),
    Mischief("odd metadata", FULL, True, edit=with_odd_metadata),
    Mischief(
        "half a surrogate",
        FULL - FORWARD,
        True,
        function="raise ValueError(chr(0xd800))",
        cell="raise ValueError('\\ud800')",
    ),
    # it would destroy
    Mischief("deletes the gradebook", FULL, True, cell="import os\nos.remove({course!r} + '/gradebook.db')"),
    Mischief("deletes the course", FULL, True, cell="import shutil\nshutil.rmtree({course!r})"),
    Mischief("writes a source", FULL, True, cell="open({course!r} + '/source/a1/a1.ipynb', 'w').write('')"),
    # it would get marks
    Mischief("makes its inputs zero", 0, False, edit=with_zeros_for_inputs),
    Mischief("edits tests", 0, False, edit=with_empty_tests),
    Mischief("edits tests, but has the answers", FULL, True, edit=with_empty_tests),
    Mischief("removes tests", 0, False, edit=without_tests),
    Mischief("removes tests, but has the answers", FULL, True, edit=without_tests),
    Mischief("gives itself points", 0, False, edit=with_other_marks),
    Mischief("marks tests as ungraded", 0, False, edit=with_ungraded_tests),
    Mischief("tests twice", 0, False, edit=with_tests_twice),
    Mischief("tests as texts", 0, False, edit=with_texts_for_tests),
    Mischief("tools of its own", 0, False, edit=with_tools_of_its_own),
    Mischief("removes the answers' cells", 0, True, edit=without_answers),
    Mischief(
        "patches NumPy",
        0,
        False,
        cell="import numpy as np\nnp.allclose = np.array_equal = lambda *a, **k: True\n"
        "np.linalg.norm = lambda *a, **k: 0.0",
    ),
    Mischief(
        "patches the checker",
        0,
        False,
        cell="import sys\nimport tinyprune.gradcheck.checker as checker\nchecker.check_gradients = lambda *a, **k: []",
    ),
    Mischief(
        "patches the wire",
        0,
        False,
        cell="import sys\nframe = sys._getframe()\nwhile 'self' not in frame.f_locals:\n    frame = frame.f_back\n"
        "child = type(frame.f_locals['self'])\nchild.describe = lambda self, error: {{}}\n"
        "child.call = lambda self, head, arrays: self.send({{'done': True}}, True)",
    ),
    Mischief(
        "prints marks",
        0,
        False,
        cell="for name in ('a1_1_forward', 'a1_1_backward'):\n    print('passed:', name)\nprint('{{\"score\": 30}}')",
    ),
    Mischief(
        "swallows errors",
        0,
        False,
        cell="class AssertionError(BaseException): pass\nimport builtins\nbuiltins.AssertionError = AssertionError",
    ),
    Mischief("imports the solution", 0, False, cell="from tinyprune.ops import *"),
    Mischief(
        "executes the solution",
        0,
        False,
        cell="import sys, pathlib\nroot = pathlib.Path(sys.path[-1]) / 'tinyprune'\n"
        "for name in ('linear', 'layernorm', 'cross_entropy'):\n    exec((root / 'ops' / f'{{name}}.py').read_text())",
    ),
    Mischief("reads the lecturer's notebook", 0, False, cell="exec(open({course!r} + '/source/a1/a1.ipynb').read())"),
    Mischief(
        "reads another submission", 0, False, cell="print(open({course!r} + '/submitted/good/a1/a1.ipynb').read())"
    ),
    Mischief(
        "writes into the wire",
        0,
        False,
        cell="import os\nfor descriptor in range(3, 20):\n    try:\n        os.write(descriptor, b'\\0' * 64)\n"
        "    except OSError:\n        pass",
    ),
]


def notebook_of(mischief, course):
    """The submission, for a course in this directory."""
    notebook = build.notebook_of("a1")
    if not mischief.solved:
        notebook = build.released(notebook)
    if mischief.function:
        for cell in notebook.cells:
            head = "def linear_forward(x, W, b):\n"
            if cell.cell_type == "code" and head in cell.source:
                # after the docstring's first quotes would do as well: it runs before anything else
                cell.source = cell.source.replace(head, f"{head}    {mischief.function}\n")
    if mischief.edit:
        mischief.edit(notebook)
    if mischief.cell:
        notebook.cells.insert(0, build.nbformat.v4.new_code_cell(mischief.cell.format(course=str(course))))
    return notebook

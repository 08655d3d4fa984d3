"""Submissions of A1 that try to get marks, or to stop the batch, by other means than answers."""

from typing import Any, NamedTuple

from marks import assignment, build

from tinyprune.course.isolation import PACKAGE

FULL = 30.0
FORWARD = 3.0  # points of linear_forward


class Mischief(NamedTuple):
    what: str
    points: float
    solved: bool  # whether the rest is the reference solution or the untouched stub
    cell: str = ""  # code of an additional first cell
    function: str = ""  # code at the beginning of linear_forward
    edit: Any = None  # a function that changes the notebook
    isolated: bool = False  # whether only bubblewrap stops it


def metadata(cell):
    return cell.metadata.get("nbgrader", {})


def graded(notebook):
    return [cell for cell in notebook.cells if metadata(cell).get("grade")]


def without(kind):
    def edit(notebook):
        notebook.cells = [cell for cell in notebook.cells if not metadata(cell).get(kind)]

    return edit


def with_tests(source=None, **marks):
    def edit(notebook):
        for cell in graded(notebook):
            cell.source = source or cell.source
            cell.metadata.nbgrader |= marks

    return edit


def with_tests_twice(notebook):
    copies = [cell | {"id": f"{cell.id}-again", "source": "pass"} for cell in reversed(graded(notebook))]
    notebook.cells[:0] = map(build.nbformat.from_dict, copies)


def with_texts_for_tests(notebook):
    for cell in graded(notebook):
        cell.cell_type = "markdown"
        del cell["outputs"], cell["execution_count"]


def with_tools_of_its_own(notebook):
    for cell in notebook.cells:
        if metadata(cell).get("grade_id", "").endswith("_tools"):
            cell.source = "answer = expect_close = expect_gradients = lambda *args, **options: args"


def with_odd_metadata(notebook):
    for odd in ([1], "a1_1", {"grade_id": ["a1_1"]}, {"grade_id": 5}, None):
        notebook.cells.insert(0, build.nbformat.v4.new_code_cell("1", metadata={"nbgrader": odd}))


ZEROS = {
    "a1_1": """
def linear_forward(x, W, b):
    x[...] = W[...] = b[...] = 0
    return np.zeros((*x.shape[:-1], len(b))), None
def linear_backward(dout, cache):
    x, W = cache
    x[...] = W[...] = 0
    return np.zeros(x.shape), np.zeros(W.shape), dout.reshape(-1, dout.shape[-1]).sum(0)""",
    "a1_2": """
def norm_forward(x, scale, bias, eps=0):
    x[...] = scale[...] = bias[...] = 0
    return np.zeros(x.shape), None
def norm_backward(dout, cache):
    n, std, scale = cache
    scale[...] = 0
    axes = tuple(range(dout.ndim - 1))
    return np.zeros(n.shape), (dout * n).sum(axes), dout.sum(axes)""",
}


def with_zeros_for_inputs(notebook):
    for cell in notebook.cells:
        cell.source = ZEROS.get(metadata(cell).get("grade_id"), cell.source)


# Cells that would stop the batch or destroy the course; the answers below them keep their points.
CELLS = {
    "endless loop in a cell": "while True:\n    pass",
    "sys.exit in a cell": "import sys\nsys.exit()",
    "os._exit in a cell": "import os\nos._exit(0)",
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "fork bomb past Python": "import ctypes\nwhile ctypes.pythonapi.fork() >= 0:\n    pass",
    "shells": "import subprocess\nsubprocess.Popen('sleep 1000', shell=True)",
    "threads": "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
    "memory": "hoard = []\nwhile True:\n    hoard.append(bytearray(1 << 28))",
    "prints without end": "while True:\n    print('x' * 10_000)",
    "waits for input": "name = input('your name? ')",
    "closes the pipes": "import os, time\nos.closerange(3, 100)\ntime.sleep(1000)",
    "directories in directories": "import os\nfor _ in range(1500):\n    os.mkdir('a')\n    os.chdir('a')",
    "fills the disk": "n = 0\nwhile n := n + 1:\n    open(str(n), 'wb').write(bytes(1 << 24))",
}
# The same, but only bubblewrap stops it.
ISOLATED = {
    "deletes the gradebook": "import os\nos.remove('COURSE/gradebook.db')",
    "deletes the course": "import shutil\nshutil.rmtree('COURSE')",
    "writes a source": "open('COURSE/source/a1/a1.ipynb', 'w').write('')",
    "signals": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nos.killpg(0, signal.SIGKILL)",
    "kills by the kernel's hand": """
import fcntl, os
r, w = os.pipe()
fcntl.fcntl(r, 8, os.getppid())
fcntl.fcntl(r, 10, 9)
fcntl.fcntl(r, fcntl.F_SETFL, fcntl.fcntl(r, fcntl.F_GETFL) | 0o20000)
os.write(w, b'x')""",
    "kills by a descriptor of a process": """
import ctypes, os
syscall = ctypes.pythonapi.syscall
syscall(424, syscall(434, os.getppid(), 0), 9, None, 0)  # pidfd_send_signal, pidfd_open""",
}
# The same inside a function, which loses the points of that function.
FUNCTIONS = {
    "endless loop in a function": "while True: pass",
    "sys.exit in a function": "import sys; sys.exit(0)",
    "os._exit in a function": "import os; os._exit(0)",
    "crash": "import ctypes; ctypes.string_at(0)",
}
# Cells that would get marks without answers.
CHEATS = {
    "patches NumPy": """
import numpy as np
np.allclose = np.array_equal = lambda *a, **k: True
np.linalg.norm = lambda *a, **k: 0.0""",
    "patches the checker": "from tinyprune.gradcheck import checker\nchecker.check_gradients = lambda *a, **k: []",
    "patches the wire": """
import sys
frame = sys._getframe()
while 'self' not in frame.f_locals:
    frame = frame.f_back
child = type(frame.f_locals['self'])
child.lines = lambda self, error: ''
child.call = lambda self, name, keep, args, kwargs: self.wire.send('done', True, {})""",
    "prints marks": "print('passed: a1_1_forward', 'passed: a1_1_backward', '{\"score\": 30}', sep='\\n')",
    "swallows errors": """
class AssertionError(BaseException): pass
import builtins
builtins.AssertionError = AssertionError""",
    "imports the solution": "from tinyprune.ops import *",
    "reads another submission": "print(open('COURSE/submitted/good/a1/a1.ipynb').read())",
    "writes into the wire": """
import os
for descriptor in range(3, 20):
    try:
        os.write(descriptor, b'\\0' * 64)
    except OSError:
        pass""",
}
CHEATS_ISOLATED = {
    "executes the solution": """
import pathlib, sys
for path in [pathlib.Path('PACKAGE'), *(pathlib.Path(p, 'tinyprune') for p in sys.path)]:
    for name in ('linear', 'layernorm', 'cross_entropy'):
        try:
            exec((path / 'ops' / f'{name}.py').read_text())
        except OSError:
            pass""",
    "reads the lecturer's notebook": "exec(open('COURSE/source/a1/a1.ipynb').read())",
}
MISCHIEF = [
    *(Mischief(what, FULL, True, cell=cell) for what, cell in CELLS.items()),
    *(Mischief(what, FULL, True, cell=cell, isolated=True) for what, cell in ISOLATED.items()),
    *(Mischief(what, FULL - FORWARD, True, function=function) for what, function in FUNCTIONS.items()),
    Mischief("half a surrogate", FULL - FORWARD, True, "raise ValueError('\\ud800')", "raise ValueError(chr(0xd800))"),
    Mischief("odd metadata", FULL, True, edit=with_odd_metadata),
    Mischief("edits tests, but has the answers", FULL, True, edit=with_tests("pass")),
    Mischief("removes tests, but has the answers", FULL, True, edit=without("grade")),
    *(Mischief(what, 0, False, cell=cell) for what, cell in CHEATS.items()),
    *(Mischief(what, 0, False, cell=cell, isolated=True) for what, cell in CHEATS_ISOLATED.items()),
    Mischief("makes its inputs zero", 0, False, edit=with_zeros_for_inputs),
    Mischief("edits tests", 0, False, edit=with_tests("pass")),
    Mischief("removes tests", 0, False, edit=without("grade")),
    Mischief("gives itself points", 0, False, edit=with_tests("1000", points=1000, solution=True, locked=False)),
    Mischief("marks tests as ungraded", 0, False, edit=with_tests(grade=False, points=0)),
    Mischief("tests twice", 0, False, edit=with_tests_twice),
    Mischief("tests as texts", 0, False, edit=with_texts_for_tests),
    Mischief("tools of its own", 0, False, edit=with_tools_of_its_own),
    Mischief("removes the answers' cells", 0, True, edit=without("solution")),
]


def notebook_of(mischief, course, hidden=False):
    """Return what is handed in; with all tests if `hidden`, as it is marked."""
    notebook = assignment("a1")
    if not mischief.solved:
        notebook = build.released(notebook, hidden)
    if mischief.function:
        head = "def linear_forward(x, W, b):\n"
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.source = cell.source.replace(head, f"{head}    {mischief.function}\n")
    if mischief.edit:
        mischief.edit(notebook)
    if mischief.cell:
        source = mischief.cell.strip().replace("COURSE", str(course)).replace("PACKAGE", str(PACKAGE))
        notebook.cells.insert(0, build.nbformat.v4.new_code_cell(source))
    return notebook

"""What the process of an answer may not do: refused by Python, by the system's limits and by the kernel."""

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import pytest

import tinyprune
from tinyprune.course.lockdown import FORBIDDEN_IMPORTS
from tinyprune.course.sandbox import AnswerError, Sandbox

PACKAGE = Path(tinyprune.__file__).parent
ELSEWHERE = Path(tempfile.gettempdir())
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's filters are Linux's")


@pytest.fixture(scope="module")
def run():
    with Sandbox() as sandbox:
        sandbox.run("def run(source):\n    space = {}\n    exec(source, space)\n    return repr(space.get('r'))")
        yield sandbox.function("run")


@pytest.mark.parametrize(
    "source",
    ["import tinyprune", "import tinyprune.course.child", "import tinyprune.ops", "from tinyprune import ops"]
    + ["from tinyprune.kernels.cpu import linear", "import importlib\nimportlib.import_module('tinyprune.ops.linear')"]
    + ["__import__('tinyprune.model')", "import sys\nsys.meta_path.pop(0)\nimport tinyprune.ops"]
    + [f"import {name}.nn" for name in FORBIDDEN_IMPORTS if name != "tinyprune"],
)
def test_solutions_and_frameworks_are_not_imported(run, source):
    with pytest.raises(AnswerError, match=r"an answer may not (import [\w.]+: write what the task asks for|read)"):
        run(source)


@pytest.mark.parametrize(
    "source",
    [
        f"open({str(PACKAGE / 'ops' / 'linear.py')!r})",
        f"import pathlib\npathlib.Path({str(PACKAGE)!r}, 'config.py').read_text()",
        f"open({__file__!r})",
        f"open({str(Path.home() / '.profile')!r})",
        "open('elsewhere/../../x', 'w')",
        f"import os\nos.remove({__file__!r})",
        f"import os\nos.rename({__file__!r}, 'mine')",
        f"import os\nos.mkdir({str(ELSEWHERE / 'made')!r})",
        f"import shutil\nshutil.rmtree({str(Path(__file__).parent)!r})",
        f"import os\nos.symlink({__file__!r}, {str(ELSEWHERE / 'link')!r})",
        "import os\nos.fork()",
        "import os\nos.system('true')",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.kill(os.getppid(), 0)",
        "import socket\nsocket.socket()",
        "import ctypes\nctypes.CDLL(None)",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import multiprocessing as m\nm.Process(target=print).start()",
    ],
)
def test_files_processes_and_network_are_refused(run, source):
    with pytest.raises(AnswerError, match=r"(Refused|PermissionError)"):
        run(source)
    assert Path(__file__).exists()


def test_what_answers_need_is_allowed(run):
    assert run("open('mine', 'w').write('x')\nr = open('mine').read()") == "'x'"
    assert run("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\nr = 1") == "1"
    assert run("import decimal, fractions, statistics\nr = statistics.mean([1, 2, 3])") == "2"
    assert run("import numpy as np\nr = float(np.linalg.svd(np.eye(3))[1].sum())") == "3.0"


def in_a_process(source, lock="filters = refuse_in_the_kernel(Path.cwd())"):
    """Run a program under the kernel's filters alone and return what it prints."""
    head = (
        "import ctypes, os, sys\nfrom pathlib import Path\nfrom tinyprune.course.lockdown import refuse_in_the_kernel\n"
    )
    program = f"{head}libc = ctypes.CDLL(None, use_errno=True)\n{lock}\n{source}"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


NATIVE = [
    "fork()",
    "vfork()",
    "kill(os.getppid(), 0)",
    "socket(2, 1, 0)",
    "setsid()",
    "syscall(56, 17, 0, 0, 0, 0) if os.uname().machine == 'x86_64' else -1",
    "unshare(0x10000000)",
    "ptrace(0, 0, 0, 0)",
    "execv(b'/bin/true', None)",
    "fcntl(0, 8, os.getppid())",
    "fcntl(0, 10, 9)",
    "socketpair(1, 1, 0, (ctypes.c_int * 2)())",
    "shmget(0, ctypes.c_size_t(4096), 0o1600)",
    "setpriority(0, os.getppid(), 0)",
    "sched_setaffinity(os.getppid(), 8, ctypes.byref(ctypes.c_long(-1)))",
    "chmod(os.getcwdb(), 0o700)",
    "mknod(b'device', 0o60600, ctypes.c_ulong(os.stat('/').st_dev))",
    "chown(os.getcwdb(), -1, -1)",
]


@LINUX
def test_kernel_refuses_native_calls():
    # A call that makes a process or replaces this one must not go on here.
    calls = "\n".join(
        f"r = libc.{call}\nif r == 0: os._exit(9)\nif r != -1: allowed.append({call!r})" for call in NATIVE
    )
    program = f"allowed = []\nif 'seccomp' in filters:\n{textwrap.indent(calls, '    ')}\nprint(allowed)"
    assert in_a_process(program) == "[]"


@LINUX
def test_kernel_refuses_files_that_native_code_opens(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    opened = "libc.open(b'../secret', 0)"
    made = "libc.open(b'../new', os.O_CREAT | os.O_WRONLY, 0o600)"
    removed = "libc.unlink(b'../secret')"
    own = "libc.open(b'mine', os.O_CREAT | os.O_WRONLY, 0o600)"
    printed = in_a_process(f"print('landlock' in filters, {opened}, {made}, {removed}, {own} > 0)")
    if printed.startswith("True"):
        assert printed == "True -1 -1 -1 True"
        assert (tmp_path / "secret").exists()
    else:
        pytest.skip("this kernel has no Landlock")


@LINUX
def test_kernel_refuses_the_package_where_it_is_installed_among_others(tmp_path, monkeypatch):
    for name in ("numpy", "tinyprune", "own"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.py").write_text("x")
    monkeypatch.chdir(tmp_path / "own")
    program = (
        "from tinyprune.course import lockdown\nroots = lockdown.readable_paths()\n"
        f"lockdown.readable_paths = lambda: [*roots, {str(tmp_path)!r}]\n"
        f"filters = refuse_in_the_kernel(Path.cwd(), [Path({str(tmp_path / 'tinyprune')!r})])\n"
        "print('landlock' in filters, libc.open(b'../numpy/x.py', 0) > 0, len(os.listdir('..')),"
        " libc.open(b'../tinyprune/x.py', 0))"
    )
    printed = in_a_process(program, lock="")
    if not printed.startswith("True"):
        pytest.skip("this kernel has no Landlock")
    assert printed == "True True 3 -1"


@LINUX
def test_threads_are_made_past_the_kernels_filter():
    program = (
        "import threading\nt = threading.Thread(target=lambda: print('ran', 'seccomp' in filters))\nt.start()\nt.join()"
    )
    assert in_a_process(program) == "ran True"


@LINUX
def test_process_ends_when_the_tester_is_killed():
    program = (
        "from tinyprune.course.sandbox import Sandbox\nsandbox = Sandbox()\n"
        "sandbox.run('def f():\\n    while True: pass')\n"
        "print(sandbox._process.pid, sandbox._scratch, flush=True)\nsandbox.function('f')()"
    )
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as tester:
        pid, scratch = tester.stdout.readline().split()
        time.sleep(0.3)
        tester.kill()
    Path(scratch).rmdir()
    for _ in range(50):
        stat = Path("/proc", pid, "stat")
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the answer runs on")

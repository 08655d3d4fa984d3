"""What the process of an answer may not do: refused by Python, by the system's limits and by the kernel."""

import errno
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

import tinyprune
from tinyprune.course.lockdown import ARCHITECTURES, CALLS, FORBIDDEN_IMPORTS, conditions
from tinyprune.course.sandbox import AnswerError, Sandbox

PACKAGE = Path(tinyprune.__file__).parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
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


MODULES = "import ctypes, multiprocessing, os, pathlib, shutil, socket, subprocess\n"
REFUSED = f"""
    open({str(PACKAGE / "ops" / "linear.py")!r}); pathlib.Path({str(PACKAGE)!r}, 'config.py').read_text();
    open({__file__!r}); open({str(Path.home() / ".profile")!r}); open('elsewhere/../../x', 'w');
    os.remove({__file__!r}); os.rename({__file__!r}, 'mine'); shutil.rmtree({str(Path(__file__).parent)!r});
    os.mkdir({str(ELSEWHERE / "made")!r}); os.symlink({__file__!r}, {str(ELSEWHERE / "link")!r});
    os.fork(); os.system('true'); subprocess.run(['true']); os.execv('/bin/true', ['true']);
    os.posix_spawn('/bin/true', ['true'], {{}}); multiprocessing.Process(target=print).start();
    os.kill(os.getppid(), 0); socket.socket(); ctypes.CDLL(None)
"""


@pytest.mark.parametrize("call", [call.strip() for call in REFUSED.split(";")])
def test_files_processes_and_network_are_refused(run, call):
    run(MODULES)
    with pytest.raises(AnswerError, match=r"(Refused|PermissionError)"):
        run(MODULES + call)
    assert Path(__file__).exists()


@LINUX
def test_refusal_by_the_kernel_says_what_an_answer_may_do(run):
    said = r"PermissionError: .*not permitted: '\.' \(an answer may compute, start threads"
    with pytest.raises(AnswerError, match=said):
        run("import os\nos.statvfs('.')")


def test_what_answers_need_is_allowed(run):
    assert run("open('mine', 'w').write('x')\nr = open('mine').read()") == "'x'"
    assert run("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\nr = 1") == "1"
    assert run("import decimal, fractions, statistics\nr = statistics.mean([1, 2, 3])") == "2"
    assert run("import numpy as np\nr = float(np.linalg.svd(np.eye(3))[1].sum())") == "3.0"


def in_a_process(source, lock="filters = refuse_in_the_kernel(Path.cwd())", dies=0):
    """Run a program under the kernel's filters alone and return what it prints; it may end with the status `dies`."""
    head = "import ctypes, os\nfrom pathlib import Path\nfrom tinyprune.course.lockdown import refuse_in_the_kernel\n"
    command = [sys.executable, "-c", f"{head}libc = ctypes.CDLL(None, use_errno=True)\n{lock}\n{source}"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=60)
    assert done.returncode in (0, dies), done.stderr
    if done.stdout.startswith("False "):  # the answer to 'landlock' in filters
        pytest.skip("this kernel has no Landlock")
    return done.stdout.strip()


# As native code calls them, with numbers where the C library has no name for them.
BY_NAME = """
    fork(); vfork(); kill(os.getppid(), 0); tgkill(os.getppid(), os.getppid(), 0); execv(b'/bin/true', None); setsid();
    socket(2, 1, 0); socketpair(1, 1, 0, (ctypes.c_int * 2)()); unshare(0x10000000); ptrace(0, 0, 0, 0);
    fcntl(0, 8, os.getppid()); fcntl(0, 10, 9); ioctl(0, 0x5412, b'x'); prctl(1, 0, 0, 0, 0);
    prlimit(0, 7, bytes(16), None); prlimit(os.getppid(), 7, None, bytes(16)); setpriority(0, os.getppid(), 0);
    shmget(0, ctypes.c_size_t(4096), 0o1600); sched_setaffinity(os.getppid(), 8, ctypes.byref(ctypes.c_long(-1)));
    chmod(os.getcwdb(), 0o700); chown(os.getcwdb(), -1, -1); utimensat(-100, b'/', None, 0);
    mknod(b'device', 0o60600, ctypes.c_ulong(os.stat('/').st_dev))
"""
NATIVE = [call.strip() for call in BY_NAME.split(";")]
# name:x86_64:aarch64; what came after Linux 5.1 has the same number on both.
BY_NUMBER = """
    process_vm_writev:311:271 memfd_create:319:279 execveat:322:281 userfaultfd:323:282 bpf:321:280
    perf_event_open:298:241 add_key:248:217 keyctl:250:219 inotify_init1:294:26 seccomp:317:277 io_uring_setup:425:425
    pidfd_send_signal:424:424 pidfd_open:434:434 pidfd_getfd:438:438 open_tree:428:428 move_mount:429:429 fsopen:430:430
    quotactl_fd:443:443 landlock_create_ruleset:444:444 landlock_restrict_self:446:446 cachestat:451:451
    futex_wait:455:455 mseal:462:462 of-later:600:600 of-x32:0x40000027:0x40000027 negative:-1:-1
"""
AT = int(platform.machine() == "aarch64")
for name, *numbers in (call.split(":") for call in BY_NUMBER.split()):
    NATIVE.append(f"syscall({numbers[AT]}, 0, 0, 0, 0, 0, 0)  # {name}")
NATIVE += [f"syscall({(56, 220)[AT]}, {flags}, 0, 0, 0, 0)" for flags in ("17", "0x103D0F00")]  # a process; a namespace


@pytest.fixture(scope="module")
def answered():
    """What native code gets from each call: the error's number if there is one."""
    program = f"""
import json
own, answered = os.getpid(), {{}}
for call in {NATIVE!r}:
    result = eval("libc." + call)
    if os.getpid() != own:
        os._exit(9)  # a process that it made must not go on here
    answered[call] = ctypes.get_errno() if result == -1 else f"allowed: {{result}}"
print(json.dumps(answered) if "seccomp" in filters else "")
"""
    if not (printed := in_a_process(program)):
        pytest.skip("no filter for this processor or kernel")
    return json.loads(printed)


@LINUX
@pytest.mark.parametrize("call", NATIVE)
def test_kernel_refuses_native_calls(answered, call):
    assert answered[call] == errno.EPERM


@LINUX
def test_kernel_allows_a_process_what_concerns_itself_and_hides_clone3():
    program = (
        "own, name, limits = os.getpid(), ctypes.create_string_buffer(16), (ctypes.c_ulong * 2)()\n"
        "print([libc.kill(own, 0), libc.tgkill(own, own, 0), libc.prctl(15, b'worker'), libc.prctl(16, name),"
        " libc.prlimit(own, 7, None, limits), libc.fcntl(0, 2, 1), libc.ioctl(0, 0x5451)], name.value.decode(),"
        " libc.syscall(435, 0, 0), ctypes.get_errno())"
    )
    assert in_a_process(program) == f"{[0] * 7} worker -1 {errno.ENOSYS}"


@LINUX
def test_kernel_refuses_calls_of_threads_that_were_there_before():
    program = (
        "import threading\ngo = threading.Event()\n"
        "def call():\n    go.wait()\n    print(libc.syscall(600), ctypes.get_errno())\n"
        "thread = threading.Thread(target=call)\nthread.start()\n"
        "refuse_in_the_kernel(Path.cwd())\ngo.set()\nthread.join()"
    )
    assert in_a_process(program, lock="") == f"-1 {errno.EPERM}"


@LINUX
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors have no int 0x80")
def test_kernel_refuses_calls_of_32_bit_programs():
    # mov eax, 20 (getpid); int 0x80; ret
    program = (
        "import mmap\ncode = mmap.mmap(-1, 4096, prot=7)\n"
        "code.write(bytes.fromhex('b814000000cd80c3'))\naddress = ctypes.addressof(ctypes.c_char.from_buffer(code))\n"
        "print(-ctypes.CFUNCTYPE(ctypes.c_int)(address)(), flush=True)\nos._exit(0)"
    )
    assert in_a_process(program, dies=-signal.SIGSEGV) in (str(errno.EPERM), "")  # "": a kernel without this convention


@LINUX
@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_numbers_of_calls_are_those_of_the_kernels_headers(machine):
    header = Path("/usr/include", f"{machine}-linux-gnu", "asm", "unistd_64.h")
    if not header.exists():
        pytest.skip(f"{header} comes with linux-libc-dev")
    numbers = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", header.read_text()))
    at = 1 + list(ARCHITECTURES).index(machine)
    ours = {call.split(":")[0]: call.split(":")[at] for calls in CALLS.values() for call in calls.split()}
    assert ours == {name: numbers.get(name, "") for name in ours}
    assert conditions(1).keys() <= ours.keys()


@LINUX
def test_kernel_refuses_files_that_native_code_opens(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    opened = "libc.open(b'../secret', 0)"
    made = "libc.open(b'../new', os.O_CREAT | os.O_WRONLY, 0o600)"
    removed = "libc.unlink(b'../secret')"
    own = "libc.open(b'mine', os.O_CREAT | os.O_WRONLY, 0o600)"
    calls = f"{opened}, {made}, {removed}, {own} > 0"
    assert in_a_process(f"print('landlock' in filters, {calls})") == "True -1 -1 -1 True"
    assert (tmp_path / "secret").exists()


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
    assert in_a_process(program, lock="") == "True True 3 -1"


@LINUX
def test_process_ends_when_the_tester_is_killed():
    program = (
        "from tinyprune.course.sandbox import Sandbox\nsandbox = Sandbox()\n"
        "sandbox.run('def f():\\n    while True: pass')\n"
        "print(sandbox._process.pid, sandbox._scratch, flush=True)\nsandbox.function('f')()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as tester:
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

"""What an answer cannot do in bubblewrap, native code included; and what is said where bubblewrap does not work."""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tinyprune.course import isolation
from tinyprune.course.sandbox import AnswerError, Limits, Sandbox

ENVIRONMENT = os.environ | {"PYTHONPATH": str(isolation.PACKAGE.parent)}
needs_bubblewrap = pytest.mark.skipif(bool(isolation.problem()), reason=isolation.problem())
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in Linux's /proc")


def processes(scratch):
    """Return the processes whose environment names this directory, as that of an answer does."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [path.parent.name] if scratch.encode() in path.read_bytes() else []
        except OSError:
            continue  # it has ended
    return found


def expect_end(scratch):
    """Fail unless these processes end within 20 s."""
    for _ in range(200):
        if not processes(scratch):
            return
        time.sleep(0.1)
    raise AssertionError("the answer runs on")


@needs_bubblewrap
def test_files_processes_and_network_of_the_tester_are_not_reached(tmp_path):
    (tmp_path / "secret").write_text("x")
    reading = [tmp_path / "secret", Path(__file__), isolation.PACKAGE / "ops" / "linear.py", Path("/etc/passwd")]
    assert all(path.exists() for path in reading)
    writing = ["/", "/usr", "/dev", "/proc/sys/kernel", sys.prefix, isolation.PACKAGE, Path.cwd(), tmp_path]
    with socket.create_server(("127.0.0.1", 0)) as server, Sandbox() as sandbox:
        tried = [f"open({str(path)!r})" for path in reading]
        tried += [f"open({str(Path(folder, 'made'))!r}, 'w')" for folder in writing]
        tried += [f"os.remove({str(tmp_path / 'secret')!r})", f"os.kill({os.getpid()}, 0)"]
        tried += [f"socket.create_connection({server.getsockname()!r})"]
        for source in tried:
            with pytest.raises(AnswerError, match="Error"):
                sandbox.run(f"import os, socket\n{source}")
        sandbox.run("open('mine', 'w').write('x')")
    assert not list(tmp_path.glob("made")) and (tmp_path / "secret").exists()


@needs_bubblewrap
def test_package_is_not_seen_where_it_is_installed_among_others(tmp_path, monkeypatch):
    shutil.copytree(isolation.PACKAGE / "course", tmp_path / "tinyprune" / "course")
    (tmp_path / "other.py").touch()
    tmp_path.chmod(0o755)
    paths = [*isolation.readable(), str(tmp_path)]
    monkeypatch.setattr(isolation, "PACKAGE", tmp_path / "tinyprune")
    monkeypatch.setattr(isolation, "readable", lambda: paths)
    monkeypatch.chdir(tmp_path / "tinyprune" / "course")
    with Sandbox() as sandbox:
        sandbox.run("import os\ndef listed(path):\n    return sorted(os.listdir(path))")
        listed = sandbox.function("listed")
        assert listed(str(tmp_path)) == ["other.py", "tinyprune"]
        assert listed(str(tmp_path / "tinyprune" / "course")) == []


@needs_bubblewrap
@pytest.mark.skipif(getattr(os, "getuid", int)() != 0, reason="the tests do not run as root")
def test_answers_of_root_run_as_another_user():
    with Sandbox() as sandbox:
        sandbox.run("import os\ndef identity():\n    return os.getuid(), os.getgroups()")
        user, groups = sandbox.function("identity")()
    assert user > 60_000 and groups == []


@needs_bubblewrap
def test_process_ends_when_the_tester_is_killed():
    program = (
        "from tinyprune.course.sandbox import Sandbox\nsandbox = Sandbox()\n"
        "sandbox.run('def f():\\n    while True: pass')\nprint(sandbox._scratch, flush=True)\nsandbox.function('f')()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as tester:
        scratch = tester.stdout.readline().strip()
        time.sleep(0.3)
        assert processes(scratch)
        tester.kill()
    Path(scratch).rmdir()
    expect_end(scratch)


FORKS = """
import os, time
def fork(most):
    made = 0
    try:
        while made < most and os.fork():
            made += 1
    except OSError:
        return made
    if made < most:
        time.sleep(600)
    return made
"""


@needs_bubblewrap
def test_files_together_are_limited():
    write = "import time\nwhile True:\n    open(str(time.monotonic_ns()), 'wb').write(bytes(10_000))"
    with Sandbox(Limits(directory_bytes=1 << 20)) as sandbox, pytest.raises(AnswerError, match="No space left"):
        sandbox.run(write)


@needs_proc
def test_processes_that_an_answer_makes_end_with_it(isolated):
    with Sandbox() as sandbox:
        sandbox.run(FORKS)
        scratch = sandbox._scratch
        assert sandbox.function("fork")(3) == 3
        assert len(processes(scratch)) >= 4
        if isolated:
            assert 0 < sandbox.function("fork")(1000) < sandbox.limits.processes
    expect_end(scratch)

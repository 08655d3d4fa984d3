"""Isolate the process of an answer from the machine, with bubblewrap where that works.

`bwrap` (https://github.com/containers/bubblewrap) starts a program in namespaces of the Linux kernel. The program sees
Python, its packages and the system's libraries, all read-only, and one directory for its files. It sees no other files,
no network and no other processes. If the tester ends, so does the program.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tinyprune.course.child import FORBIDDEN

PACKAGE = Path(__file__).parents[1]
SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/opt", "/nix", "/sys/devices/system")
SETTINGS = ("/etc/alternatives", "/etc/fonts", "/etc/ld.so.cache", "/etc/localtime")
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
NAMESPACES = ("--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")


@functools.cache
def problem() -> str:
    """Return why bubblewrap cannot be used here; "" if it can."""
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed"
    trial = [
        "bwrap",
        *NAMESPACES,
        "--ro-bind",
        "/",
        "/",
        "--size",
        "4096",
        "--tmpfs",
        "/tmp",
        "--proc",
        "/proc",
        "true",
    ]
    done = subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    return f"bubblewrap does not work here ({done.stderr.strip()})"


def warning() -> str:
    """Return a warning for the person who marks if answers are not isolated; "" if they are."""
    return problem() and (
        f"Answers were not isolated: {problem()}. Limits of time and memory hold, but answers "
        "could use files, the network and processes of this user; see INSTRUCTORS.md."
    )


def readable() -> list[str]:
    """Return the directories that Python needs to read in order to import and to compute."""
    python = [sys.prefix, sys.base_prefix, *(path for path in sys.path if path.endswith("-packages"))]
    return [*python, *map(os.path.realpath, python), *SYSTEM, *SETTINGS]


def other_user() -> int | None:
    """Return the number of a user who owns nothing, for a tester that is root; otherwise None.

    Such a user can neither signal the tester nor change its files, and has a limit of processes, as root has not. The
    numbers are those that systemd has set aside for users without a name. None, too, if Python is in a directory that
    only root may enter, and bubblewrap cannot show it elsewhere.
    """
    folders = [*Path(sys.prefix).resolve().parents, *Path(sys.base_prefix).resolve().parents]
    if os.getuid() or (problem() and not all(folder.stat().st_mode & 1 for folder in folders)):
        return None
    return 61184 + os.getpid() % 4096


def bubblewrap(scratch: str, size: int) -> list[str]:
    """Return the command to put before a program, which runs in `scratch`, empty and with room for `size` bytes.

    It is empty where bubblewrap does not work.
    """
    if problem():
        return []
    solutions = [Path(folder, name) for folder in readable() for name in FORBIDDEN]
    # The course, or the tests, are in the working directory.
    hidden = [str(path) for path in (Path.cwd(), PACKAGE, *solutions) if path.exists()]
    shown = {path: ["--tmpfs", path] for path in hidden}
    shown |= {path: ["--ro-bind-try", path, path] for path in readable()}
    shown |= {path: ["--dev-bind", path, path] for path in DEVICES}
    shown["/proc"] = ["--proc", "/proc"]
    shown[scratch] = ["--size", str(size), "--perms", "0777", "--tmpfs", scratch]
    # bwrap would give parents the mode of the original, which may keep out another user.
    parents = {str(folder) for path in shown for folder in Path(path).parents}
    shown = {folder: ["--dir", folder] for folder in parents - {"/"}} | shown
    # A directory comes before what is in it.
    words = [word for path in sorted(shown) for word in shown[path]]
    words += [word for path in ("/", *hidden) for word in ("--remount-ro", path)]
    if os.getuid() == 0:  # what a program needs to become another user, who has neither
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return ["bwrap", *NAMESPACES, "--die-with-parent", *words, "--chdir", scratch, "--"]

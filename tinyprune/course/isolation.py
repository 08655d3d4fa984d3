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
# What an answer's process imports of this package; the rest of it is solutions.
FILES = ("__init__.py", "course/__init__.py", "course/child.py", "course/wire.py")
SYSTEM = (
    "/usr /lib /lib64 /bin /opt /nix /sys/devices/system /etc/alternatives /etc/fonts /etc/ld.so.cache /etc/localtime"
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
NAMESPACES = ("--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try")


@functools.cache
def problem() -> str:
    """Return why bubblewrap cannot be used here; "" if it can."""
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed"
    trial = ["bwrap", *NAMESPACES, "--ro-bind", "/", "/", "--proc", "/proc", "true"]
    done = subprocess.run(trial, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return f"bubblewrap does not work here ({done.stderr.strip()})" if done.returncode else ""


def warning() -> str:
    """Return a warning for the person who marks if answers are not isolated; "" if they are."""
    if not problem():
        return ""
    return (
        f"Answers were not isolated: {problem()}. Limits of time and memory hold, but answers could "
        "use files, the network and processes of this user; see INSTRUCTORS.md."
    )


def readable() -> list[str]:
    """Return the directories that Python needs to read in order to import and to compute."""
    python = [sys.prefix, sys.base_prefix, *(path for path in sys.path if path.endswith("-packages"))]
    return [*python, *map(os.path.realpath, python), *SYSTEM.split()]


def throwaway_user(scratch: str) -> int | None:
    """Return the number of a user who owns `scratch` and nothing else, for a tester that is root; otherwise None.

    Such a user can neither signal the tester nor read or change its files. The numbers are those that systemd has
    set aside for users without a name. None, too, if Python is in a directory that only root may enter, and
    bubblewrap cannot show it elsewhere.
    """
    folders = [folder for path in (sys.prefix, sys.base_prefix) for folder in Path(os.path.realpath(path)).parents]
    if os.getuid() or (problem() and not all(folder.stat().st_mode & 1 for folder in folders)):
        return None
    user = 61184 + os.getpid() % 4096
    try:
        os.chown(scratch, user, user)
    except OSError:
        return None  # a container without this number
    return user


def bubblewrap(scratch: str, hidden: str, user: int | None) -> list[str]:
    """Return the command to put before a program, which runs in `scratch` and sees nothing in `hidden`."""
    solutions = [str(path) for folder in readable() for name in FORBIDDEN if (path := Path(folder, name)).exists()]
    empty = ["/", hidden, str(PACKAGE), *solutions]
    shown = {hidden: ["--tmpfs", hidden]}
    shown |= {path: ["--ro-bind-try", path, path] for path in readable()}
    shown |= {path: ["--tmpfs", path] for path in empty[2:]}
    shown |= {path: ["--ro-bind", path, path] for path in (str(PACKAGE / name) for name in FILES)}
    shown |= {path: ["--dev-bind", path, path] for path in DEVICES}
    shown |= {"/proc": ["--proc", "/proc"], scratch: ["--bind", scratch, scratch]}
    command = ["bwrap", *NAMESPACES, "--die-with-parent"]
    if user is not None:
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # to become that user, who has neither
    # bwrap would give parents the mode of the original, which may keep out that user.
    parents = {str(folder) for path in shown for folder in Path(path).parents}
    shown = {folder: ["--dir", folder] for folder in parents - {"/"}} | shown
    # A directory comes before what is in it.
    command += [word for path in sorted(shown) for word in shown[path]]
    command += [word for path in empty for word in ("--remount-ro", path)]
    return [*command, "--chdir", scratch, "--"]

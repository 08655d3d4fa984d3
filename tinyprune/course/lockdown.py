"""What the process of an answer may not do, and how it is kept from it.

Three fences, each inside the other:

- limits of the operating system on memory, processor time, file sizes and open files;
- a hook in Python that refuses imports, files, processes and network with a message that a student understands;
- on Linux, two filters of the kernel that hold whatever Python is made to do, in native code too: Landlock for files,
  seccomp for processes, signals and network.

None of them can be taken off again. Elsewhere than on Linux there are the first two only, which stop accidents and
mischief but not an expert: grade strangers' code on Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# what would be the answer, or would find it by itself
FORBIDDEN_IMPORTS = ("tinyprune", "torch", "jax", "tensorflow", "autograd", "tinygrad", "mlx")
REFUSED_EVENTS = {
    "ctypes.dlopen": "load a library",
    "os.exec": "start another program",
    "os.fork": "start another process",
    "os.forkpty": "start another process",
    "os.kill": "send a signal",
    "os.killpg": "send a signal",
    "os.posix_spawn": "start another process",
    "os.spawn": "start another process",
    "os.startfile": "start another program",
    "os.system": "start another program",
    "pty.spawn": "start another process",
    "socket.__new__": "use the network",
    "subprocess.Popen": "start another program",
}
# event: how many of its first arguments are paths that it changes
CHANGES = {
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
    "shutil.chown": 1,
    "shutil.move": 2,
    "shutil.rmtree": 1,
}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(PermissionError):
    """An answer tried what it may not do."""


def limit_resources(memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    """Ask the operating system to refuse memory, and end the process, beyond these. Nothing on Windows."""
    try:
        import resource
    except ImportError:
        return
    wanted = {
        "RLIMIT_AS": memory_bytes,
        "RLIMIT_CPU": cpu_seconds,
        "RLIMIT_FSIZE": file_bytes,
        "RLIMIT_NOFILE": 128,
        "RLIMIT_CORE": 0,
    }
    for name, value in wanted.items():
        number = getattr(resource, name, None)
        if number is not None:
            _, most = resource.getrlimit(number)
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            # macOS knows RLIMIT_AS and refuses it
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(number, (value, value))


def refuse_in_python(scratch: Path, package: Path) -> None:
    """From now on refuse forbidden imports, processes, network, and files but those of Python and in `scratch`."""
    # the hook alone would do; the finder is there for its message
    sys.meta_path.insert(0, _Refuser())
    readable = [os.path.realpath(path) for path in readable_paths()]
    sys.addaudithook(_hook(str(scratch.resolve()), str(package.resolve()), readable))


def refuse_import(name: str) -> None:
    """Raise ImportError, and say why, if an answer may not import this module."""
    if name.partition(".")[0] in FORBIDDEN_IMPORTS:
        raise ImportError(f"an answer may not import {name}: write what the task asks for with NumPy")


class _Refuser:
    """First in sys.meta_path."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        refuse_import(name)


def _hook(scratch: str, package: str, readable: Sequence[str]) -> Callable[[str, tuple], None]:
    # bound here, so that an answer that changes modules by accident does not change this; the kernel's filters do not
    # depend on it
    realpath, fspath, isinstance_, separator = os.path.realpath, os.fspath, isinstance, os.sep

    def inside(path: Any, directory: str) -> bool:
        if isinstance_(path, int):
            return False
        path = realpath(path.decode(errors="replace") if isinstance_(path, bytes) else fspath(path))
        return path == directory or path.startswith(directory + separator)

    def hook(event: str, arguments: tuple) -> None:
        if event == "import":
            refuse_import(arguments[0])
        elif event == "open":
            path, _, flags = arguments
            if isinstance_(path, int):
                return
            if inside(path, package):
                raise Refused(f"an answer may not read the package's files, {path}")
            if inside(path, scratch) or path == os.devnull:
                return
            if isinstance_(flags, int) and flags & WRITING:
                raise Refused(f"an answer may write files in its own directory only, not {path}")
            if not any(inside(path, directory) for directory in readable):
                raise Refused(f"an answer may not read {path}")
        elif event in REFUSED_EVENTS:
            raise Refused(f"an answer may not {REFUSED_EVENTS[event]}")
        elif event in CHANGES:
            for path in arguments[: CHANGES[event]]:
                if not inside(path, scratch):
                    raise Refused(f"an answer may change files in its own directory only, not {path}")

    return hook


def readable_paths() -> list[str]:
    """What a Python needs to read to go on importing and computing."""
    system = ["/usr", "/lib", "/lib64", "/bin", "/etc", "/opt", "/nix", "/proc/self", "/proc/cpuinfo", "/proc/meminfo"]
    devices = ["/sys/devices/system", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]
    return [sys.prefix, sys.base_prefix, *system, *devices, *(p for p in sys.path if "site-packages" in p)]


def around(path: str, hidden: Sequence[str]) -> list[str]:
    """A path, or, where something hidden lies in it, what lies beside that."""
    if not any(h == path or h.startswith(path + os.sep) for h in hidden):
        return [path]
    if path in hidden or not os.access(path, os.R_OK):
        return []
    with os.scandir(path) as entries:
        beside = [entry.path for entry in entries if not entry.is_symlink()]
    return [found for entry in beside for found in around(entry, hidden)]


def refuse_in_the_kernel(scratch: Path, hidden: Sequence[Path] = ()) -> list[str]:
    """Have the kernel refuse files, processes, signals and network.

    Args:
        scratch: the directory that may be changed.
        hidden: directories that may not be read although they lie in one that may, as an installed package does.

    Returns:
        the names of the filters that are in force: "landlock", "seccomp", both or none.
    """
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    # PR_SET_PDEATHSIG, SIGKILL: an endless loop ends with the marking, however that is ended
    libc.prctl(1, 9, 0, 0, 0)
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        return []
    filters = []
    listed = [os.path.realpath(path) for path in readable_paths()]
    # what Python itself needs is never hidden, wherever somebody works
    secret = [path for path in map(os.path.realpath, hidden) if path not in listed]
    readable = [found for path in listed for found in around(path, secret)]
    if _landlock(libc, listed, readable, [str(scratch), "/dev/null"]):
        filters.append("landlock")
    if _seccomp(libc):
        filters.append("seccomp")
    return filters


def _landlock(libc: ctypes.CDLL, listed: Sequence[str], readable: Sequence[str], writable: Sequence[str]) -> bool:
    """See https://docs.kernel.org/userspace-api/landlock.html. False where the kernel does not have it."""
    create_ruleset, add_rule, restrict_self = 444, 445, 446
    version = libc.syscall(create_ruleset, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    # bits 0 to 12 are there from the first version on, then REFER, TRUNCATE; IOCTL_DEV came with version 5
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    everything = (1 << bits) - 1
    listing, reading = 0b1000, 0b1101  # READ_DIR; EXECUTE, READ_FILE and READ_DIR
    # a right to directories cannot be given to a file
    of_files = 0b111 | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    attributes = ctypes.create_string_buffer(struct.pack("<Q", everything))
    ruleset = libc.syscall(create_ruleset, attributes, ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return False
    try:
        for paths, rights in ((listed, listing), (readable, reading), (writable, everything)):
            for path in paths:
                try:
                    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
                except OSError:
                    continue  # not every machine has all of them
                allowed = rights if Path(path).is_dir() else rights & of_files
                if not allowed:
                    os.close(descriptor)
                    continue
                rule = ctypes.create_string_buffer(struct.pack("<Qi", allowed, descriptor))
                failed = libc.syscall(add_rule, ruleset, 1, rule, 0)
                os.close(descriptor)
                if failed:
                    return False
        return libc.syscall(restrict_self, ruleset, 0) == 0
    finally:
        os.close(ruleset)


# numbers of system calls on x86_64 and on aarch64, which never had some of them
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE, CLONE3, KILL, TGKILL, FCNTL = (56, 220), (435, 435), (62, 129), (234, 131), (72, 25)
# F_SETOWN, F_SETSIG, F_SETOWN_EX have the kernel send any signal to any process; F_SETLEASE keeps others from a file
REFUSED_FCNTL = (8, 10, 15, 1024)
# Processes, signals, other processes' memory, limits and processors, network, what Landlock does not know of files,
# memory that would stay when the process is gone, and what only root could do.
REFUSED_CALLS = {
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "perf_event_open": (298, 241),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "setrlimit": (160, 164),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "ioprio_set": (251, 30),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274),
    "sched_setaffinity": (203, 122),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "add_key": (248, 217),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "mount": (165, 40),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_file_load": (320, 294),
    "iopl": (172, None),
    "ioperm": (173, None),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "open_by_handle_at": (304, 265),
    "sethostname": (170, 161),
    "clock_settime": (227, 112),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
}


def _seccomp(libc: ctypes.CDLL) -> bool:
    """A filter of system calls in the kernel's small language (man 2 seccomp). False on other processors."""
    if platform.machine() not in ARCHITECTURES:
        return False
    at = list(ARCHITECTURES).index(platform.machine())
    load, equal, any_bit, at_least, answer = 0x20, 0x15, 0x45, 0x35, 0x06
    allow, deny, not_there = 0x7FFF0000, 0x00050001, 0x00050026  # EPERM, ENOSYS
    number, arch_at, argument_at, second_at = 0, 4, 16, 24
    program: list[tuple[int, int, int, int]] = [
        (load, 0, 0, arch_at),
        (equal, 1, 0, ARCHITECTURES[platform.machine()]),
        (answer, 0, 0, deny),
        (load, 0, 0, number),
        (at_least, 0, 1, 0x40000000),  # the numbers of another calling convention
        (answer, 0, 0, deny),
        # clone3 hides its flags from filters; told that it does not exist, libraries use clone
        (equal, 0, 1, CLONE3[at]),
        (answer, 0, 0, not_there),
        # clone makes threads (CLONE_THREAD), which are allowed, or processes
        (equal, 0, 4, CLONE[at]),
        (load, 0, 0, argument_at),
        (any_bit, 0, 1, 0x00010000),
        (answer, 0, 0, allow),
        (answer, 0, 0, deny),
    ]
    for call in (KILL, TGKILL):
        program += [
            (equal, 0, 4, call[at]),
            (load, 0, 0, argument_at),
            (equal, 0, 1, os.getpid()),
            (answer, 0, 0, allow),
            (answer, 0, 0, deny),
        ]
    for command in REFUSED_FCNTL:
        # each time the number of the call again
        program += [
            (load, 0, 0, number),
            (equal, 0, 3, FCNTL[at]),
            (load, 0, 0, second_at),
            (equal, 0, 1, command),
            (answer, 0, 0, deny),
        ]
    program.append((load, 0, 0, number))
    for call in REFUSED_CALLS.values():
        if call[at] is not None:
            program += [(equal, 0, 1, call[at]), (answer, 0, 0, deny)]
    program.append((answer, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    head = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    # PR_SET_SECCOMP, SECCOMP_MODE_FILTER; all later threads have it too
    return libc.prctl(22, 2, head, 0, 0) == 0

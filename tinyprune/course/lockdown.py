"""Lock the process of an answer, by three mechanisms:

- the operating system limits memory, processor time, file sizes and open files;
- a hook in Python refuses imports, files, processes and network, with messages that a student understands;
- on Linux, two filters in the kernel also hold for native code: Landlock for files, and seccomp, which allows a list of
  system calls and refuses all others, such as those for processes and network.

None of them can be undone. Other systems have only the first two, which stop accidents and mischief but not an expert:
grade strangers' code on Linux.
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

# Packages that contain the answer or compute gradients by themselves.
FORBIDDEN_IMPORTS = ("tinyprune", "torch", "jax", "tensorflow", "autograd", "tinygrad", "mlx")
_REFUSED = {
    "load a library": "ctypes.dlopen",
    "send a signal": "os.kill os.killpg",
    "start another process": "os.fork os.forkpty os.posix_spawn os.spawn pty.spawn",
    "start another program": "os.exec os.startfile os.system subprocess.Popen",
    "use the network": "socket.__new__",
}
REFUSED_EVENTS = {event: what for what, events in _REFUSED.items() for event in events.split()}
# Events that change the paths that are their first one, or two, arguments.
_ONE_PATH = "os.chmod os.chown os.mkdir os.remove os.rmdir os.truncate os.utime shutil.chown shutil.rmtree"
_TWO_PATHS = "os.link os.rename os.symlink shutil.move"
CHANGES = dict.fromkeys(_ONE_PATH.split(), 1) | dict.fromkeys(_TWO_PATHS.split(), 2)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Refused(PermissionError):
    """An answer tried something that it may not do."""


def limit_resources(memory_bytes: int, cpu_seconds: int, file_bytes: int) -> None:
    """Have the operating system enforce these limits."""
    import resource  # which Windows does not have; answers do not run there

    wanted = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_CORE: 0,
    }
    for number, value in wanted.items():
        _, most = resource.getrlimit(number)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        # macOS has RLIMIT_AS but refuses to set it.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(number, (value, value))


def refuse_in_python(scratch: Path, package: Path) -> None:
    """From now on refuse forbidden imports, processes, network, and files outside of Python and `scratch`."""
    # The hook alone would suffice; the finder gives a clearer message.
    sys.meta_path.insert(0, _Refuser())
    readable = [os.path.realpath(path) for path in readable_paths()]
    sys.addaudithook(_hook(str(scratch.resolve()), str(package.resolve()), readable))


def refuse_import(name: str) -> None:
    """Raise ImportError, with the reason, if an answer may not import this module."""
    if name.partition(".")[0] in FORBIDDEN_IMPORTS:
        raise ImportError(f"an answer may not import {name}: write what the task asks for with NumPy")


class _Refuser:
    """First in sys.meta_path."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        refuse_import(name)


def _hook(scratch: str, package: str, readable: Sequence[str]) -> Callable[[str, tuple], None]:
    # Bound here, so that an answer that patches a module by accident does not change the hook. (The kernel's filters do
    # not depend on it.)
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
    """Return the paths that Python needs to read to import and to compute."""
    system = ["/usr", "/lib", "/lib64", "/bin", "/etc", "/opt", "/nix", "/proc/self", "/proc/cpuinfo", "/proc/meminfo"]
    devices = ["/sys/devices/system", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]
    return [sys.prefix, sys.base_prefix, *system, *devices, *(p for p in sys.path if "site-packages" in p)]


def around(path: str, hidden: Sequence[str]) -> list[str]:
    """Return `path`, or all that it contains except hidden paths if there are any in it."""
    if not any(h == path or h.startswith(path + os.sep) for h in hidden):
        return [path]
    if path in hidden or not os.access(path, os.R_OK):
        return []
    with os.scandir(path) as entries:
        beside = [entry.path for entry in entries if not entry.is_symlink()]
    return [found for entry in beside for found in around(entry, hidden)]


def refuse_in_the_kernel(scratch: Path, hidden: Sequence[Path] = ()) -> list[str]:
    """Have the kernel refuse files, and all system calls that an answer does not need.

    Args:
        scratch: the directory that may be changed.
        hidden: directories that may not be read although a parent may, such as that of an installed package.

    Returns:
        names of the filters in force: "landlock", "seccomp", both or none.
    """
    if sys.platform != "linux":
        return []
    libc = ctypes.CDLL(None, use_errno=True)
    # PR_SET_PDEATHSIG, SIGKILL: an endless loop ends with the marking process, however that ends.
    libc.prctl(1, 9, 0, 0, 0)
    if libc.prctl(38, 1, 0, 0, 0):  # PR_SET_NO_NEW_PRIVS
        return []
    filters = []
    listed = [os.path.realpath(path) for path in readable_paths()]
    # What Python itself needs is never hidden, wherever the course is.
    secret = [path for path in map(os.path.realpath, hidden) if path not in listed]
    readable = [found for path in listed for found in around(path, secret)]
    if _landlock(libc, listed, readable, [str(scratch), "/dev/null"]):
        filters.append("landlock")
    if _seccomp(libc):
        filters.append("seccomp")
    return filters


def _landlock(libc: ctypes.CDLL, listed: Sequence[str], readable: Sequence[str], writable: Sequence[str]) -> bool:
    """Restrict files; see https://docs.kernel.org/userspace-api/landlock.html. False if the kernel lacks Landlock."""
    create_ruleset, add_rule, restrict_self = 444, 445, 446
    version = libc.syscall(create_ruleset, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    # Version 1 has bits 0 to 12; REFER came with version 2, TRUNCATE with 3, IOCTL_DEV with 5.
    bits = 13 + (version >= 2) + (version >= 3) + (version >= 5)
    everything = (1 << bits) - 1
    listing, reading = 0b1000, 0b1101  # READ_DIR; EXECUTE, READ_FILE and READ_DIR
    # Rights to directories cannot be given to a file.
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
                    continue  # not every machine has all of these paths
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


# What the kernel answers: everything that is not listed is refused with EPERM (PermissionError in Python).
ALLOW, REFUSE, NOT_THERE = 0x7FFF0000, 0x00050001, 0x00050026  # NOT_THERE is ENOSYS
# Only the processor's own convention: others, such as int 0x80 on x86-64, number their calls differently.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# The system calls that CPython, NumPy, Numba, glibc and musl make while an answer computes, imports, starts threads or
# uses files, as name:x86_64:aarch64; aarch64 lacks some. What Landlock does not check of files is absent (mode, owner,
# times, attributes), and so is whatever else reaches beyond this process.
CALLS = {
    "files that are open": """
        read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 lseek:8:62 close:3:57
        close_range:436:436 fstat:5:80 ftruncate:77:46 fsync:74:82 fdatasync:75:83 getdents64:217:61 dup:32:23 dup2:33:
        dup3:292:24 pipe:22: pipe2:293:59 fcntl:72:25 ioctl:16:29 poll:7: ppoll:271:73 select:23: pselect6:270:72""",
    "files by name": """
        open:2: openat:257:56 stat:4: lstat:6: newfstatat:262:79 statx:332:291 access:21: faccessat:269:48
        faccessat2:439:439 readlink:89: readlinkat:267:78 getcwd:79:17 chdir:80:49 fchdir:81:50 mkdir:83: mkdirat:258:34
        rmdir:84: unlink:87: unlinkat:263:35 rename:82: renameat:264:38 renameat2:316:276 link:86: linkat:265:37
        symlink:88: symlinkat:266:36 truncate:76:45""",
    # Code too: libraries are loaded when they are imported, and Numba compiles. It is filtered like all other code.
    "memory": """
        mmap:9:222 munmap:11:215 mremap:25:216 mprotect:10:226 madvise:28:233 msync:26:227 brk:12:214
        membarrier:324:283""",
    # clone3 does not exist for an answer: its flags are behind a pointer, out of sight, and libraries then use clone.
    "threads": """
        clone:56:220 clone3:435:435 futex:202:98 set_robust_list:273:99 set_tid_address:218:96 rseq:334:293
        gettid:186:178 sched_yield:24:124 sched_getaffinity:204:123 getcpu:309:168 exit:60:93 exit_group:231:94""",
    "signals": """
        rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 sigaltstack:131:132 restart_syscall:219:128
        kill:62:129 tgkill:234:131 tkill:200:130 alarm:37: setitimer:38:103""",
    "time and information": """
        clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101 gettimeofday:96:169
        time:201: times:100:153 getrusage:98:165 getrlimit:97:163 prlimit64:302:261 getpid:39:172 getppid:110:173
        getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177 umask:95:166 uname:63:160 sysinfo:99:179
        getrandom:318:278 prctl:157:167""",
}


def conditions(process: int) -> dict[str, dict[int, Sequence[int]]]:
    """Return the allowed values of arguments, for the calls that are allowed with these only.

    A key is the number of a 32-bit word: 2 i is the lower half of argument i, which is all that the kernel reads of a
    flag or a process's number, and 2 i + 1 the upper half.
    """
    return {
        # The flags of pthread_create, in glibc and in musl. Others make processes, or threads in other namespaces.
        "clone": {0: (0x3D0F00, 0x7D0F00)},
        # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC; others send signals and lock files.
        "fcntl": {2: (0, 1, 2, 3, 4, 1030)},
        "ioctl": {2: (0x5401, 0x802C542A, 0x5413, 0x5450, 0x5451)},  # TCGETS(2), TIOCGWINSZ: isatty; FIO(N)CLEX
        "kill": {0: (process,)},
        "tgkill": {0: (process,)},
        "tkill": {0: (process,)},  # its first thread
        "prctl": {0: (15, 16)},  # PR_SET_NAME, PR_GET_NAME: of threads
        "prlimit64": {0: (0, process), 4: (0,), 5: (0,)},  # its own limits, none to set
    }


def filter_program(machine: str, process: int) -> list[tuple[int, int, int, int]]:
    """Return the instructions (operation, lines to skip if true, if false, operand) of the filter (man 2 seccomp)."""
    load, equal, answer = 0x20, 0x15, 0x06
    number, architecture, arguments = 0, 4, 16  # where they are
    program = [(load, 0, 0, architecture), (equal, 1, 0, ARCHITECTURES[machine]), (answer, 0, 0, REFUSE)]
    program.append((load, 0, 0, number))
    wanted = conditions(process)
    for name, *numbers in (call.split(":") for calls in CALLS.values() for call in calls.split()):
        if own := numbers[list(ARCHITECTURES).index(machine)]:
            checks = []
            for word, values in wanted.get(name, {}).items():
                checks.append((load, 0, 0, arguments + 4 * word))
                checks += [(equal, len(values) - i, 0, value) for i, value in enumerate(values)]
                checks.append((answer, 0, 0, REFUSE))
            checks.append((answer, 0, 0, NOT_THERE if name == "clone3" else ALLOW))
            program += [(equal, 0, len(checks), int(own)), *checks]
    return [*program, (answer, 0, 0, REFUSE)]


def _seccomp(libc: ctypes.CDLL) -> bool:
    """Have the kernel filter system calls, in all threads. False on other processors."""
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        return False
    program = [struct.pack("<HBBI", *line) for line in filter_program(machine, os.getpid())]
    code = ctypes.create_string_buffer(b"".join(program))
    head = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    seccomp = {"x86_64": 317, "aarch64": 277}[machine]
    # SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC: also in threads that a preloaded library has started.
    return libc.syscall(seccomp, 1, 1, head) == 0

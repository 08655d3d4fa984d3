"""Lock the process of an answer, by three mechanisms:

- the operating system limits memory, processor time, file sizes and open files;
- a hook in Python refuses imports, files, processes and network, with messages that a student understands;
- on Linux, two filters in the kernel also hold for native code: Landlock for files, seccomp for processes, signals and
  network.

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
    """Have the kernel refuse files, processes, signals and network.

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


# Numbers of system calls on x86_64 and on aarch64, which lacks some of them.
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
CLONE, CLONE3, KILL, TGKILL, FCNTL = (56, 220), (435, 435), (62, 129), (234, 131), (72, 25)
# F_SETOWN, F_SETSIG, F_SETOWN_EX make the kernel send any signal to any process; F_SETLEASE locks others out of a file.
REFUSED_FCNTL = (8, 10, 15, 1024)
# Processes, signals, other processes' memory, limits and processors, network, what Landlock does not know of files,
# memory that outlives the process, and what only root could do. Each is name:x86_64:aarch64.
REFUSED_CALLS = """
    fork:57: vfork:58: execve:59:221 execveat:322:281 tkill:200:130 rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240
    pidfd_open:434:434 pidfd_getfd:438:438 pidfd_send_signal:424:424 ptrace:101:117 process_vm_readv:310:270
    process_vm_writev:311:271 perf_event_open:298:241 setsid:112:157 setpgid:109:154 setrlimit:160:164
    prlimit64:302:261 setpriority:141:140 ioprio_set:251:30 sched_setparam:142:118 sched_setscheduler:144:119
    sched_setattr:314:274 sched_setaffinity:203:122 migrate_pages:256:238 move_pages:279:239 process_madvise:440:440
    process_mrelease:448:448 chmod:90: fchmod:91:52 fchmodat:268:53 fchmodat2:452:452 chown:92: fchown:93:55
    lchown:94: fchownat:260:54 setxattr:188:5 lsetxattr:189:6 fsetxattr:190:7 removexattr:197:14 lremovexattr:198:15
    fremovexattr:199:16 shmget:29:194 msgget:68:186 semget:64:190 mq_open:240:180 add_key:248:217 keyctl:250:219
    memfd_create:319:279 socket:41:198 socketpair:53:199 io_uring_setup:425:425 bpf:321:280 unshare:272:97
    setns:308:268 mknod:133: mknodat:259:33 mount:165:40 open_tree:428:428 move_mount:429:429 fsopen:430:430
    umount2:166:39 pivot_root:155:41 chroot:161:51 reboot:169:142 kexec_load:246:104 init_module:175:105
    finit_module:313:273 delete_module:176:106 kexec_file_load:320:294 iopl:172: ioperm:173: swapon:167:224
    swapoff:168:225 acct:163:89 open_by_handle_at:304:265 sethostname:170:161 clock_settime:227:112
    settimeofday:164:170 adjtimex:159:171 clock_adjtime:305:266
"""


def _seccomp(libc: ctypes.CDLL) -> bool:
    """Filter system calls by a program for the kernel (man 2 seccomp). False on other processors."""
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
        (at_least, 0, 1, 0x40000000),  # numbers of another calling convention
        (answer, 0, 0, deny),
        # clone3 hides its flags from filters; if it does not exist, libraries use clone.
        (equal, 0, 1, CLONE3[at]),
        (answer, 0, 0, not_there),
        # clone makes threads (CLONE_THREAD), which are allowed, or processes.
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
        # The comparison needs the number of the call again each time.
        program += [
            (load, 0, 0, number),
            (equal, 0, 3, FCNTL[at]),
            (load, 0, 0, second_at),
            (equal, 0, 1, command),
            (answer, 0, 0, deny),
        ]
    program.append((load, 0, 0, number))
    for call in REFUSED_CALLS.split():
        if there := call.split(":")[1:][at]:
            program += [(equal, 0, 1, int(there)), (answer, 0, 0, deny)]
    program.append((answer, 0, 0, allow))
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *line) for line in program))
    head = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(program), ctypes.addressof(code)))
    # PR_SET_SECCOMP, SECCOMP_MODE_FILTER; it also holds for later threads.
    return libc.prctl(22, 2, head, 0, 0) == 0

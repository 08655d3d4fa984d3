"""Run a student's answer in a separate process; this is the tester's side (`child` is the other, `wire` the messages).

    with Sandbox() as sandbox:
        sandbox.run("def double(x):\n    return 2 * x")
        sandbox.function("double")(np.arange(3))          # array([0, 2, 4]), computed in that process

The answer's process is limited in time, memory and what it may touch (see `isolation`), and contains nothing of the
tester: no tests, no checker, no marks. Whatever it does to itself, it can only send values. If it ends or is killed, a
new process replaces it and loads the same sources again, so that an endless loop costs only the points of its task.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyprune.course import isolation
from tinyprune.course.wire import Far, decode, encode, pack, unpack
from tinyprune.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """The resources of one submission."""

    seconds_per_call: float = 10.0  # without the time in functions that the tests hand to the answer
    seconds_in_all: float = 120.0
    timeouts: int = 2  # after so many, a function is no longer called
    memory_bytes: int = 3 << 30
    file_bytes: int = 16 << 20
    directory_bytes: int = 256 << 20  # of all files together
    processes: int = 256  # and threads
    output_characters: int = 10_000


class AnswerError(Exception):
    """The answer raised an error, took too long or ended its process. `kind` names the class of the error."""

    def __init__(self, kind: str, message: str, trace: str = "") -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind, self.message, self.trace = kind, message, trace

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}\nin your code:\n{self.trace.rstrip()}" if self.trace else text


class AnswerDied(AnswerError):
    """The answer's process ended or had to be killed."""


class Sandbox:
    """A process for one submission. Close it, or use it in a `with`."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        environment: dict[str, str] | None = None,
        preload: tuple[str, ...] = ("numpy",),
    ) -> None:
        """Prepare a process, which starts when it is first needed."""
        self.limits = limits or Limits()
        self.environment = environment or {}  # besides a few variables that it needs; it inherits none
        self.preload = preload  # modules to import before the limits hold
        self.sources: list[tuple[str, str]] = []
        self.seconds_left = self.limits.seconds_in_all
        self.timeouts: dict[str, int] = {}
        self._process: subprocess.Popen | None = None
        self._kept: list[Any] = []  # objects of the tests, such as functions, for which the process has numbers
        self._first = 0  # the process numbers its objects from here on; numbers of a process before it are refused

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, source: str, name: str = "answer.py") -> str:
        """Execute `source`, called `name` in tracebacks, in the answer's namespace; return what it printed, cut.

        Raises AnswerError if it raised an error; `AnswerDied` if its process ended. A new process does not load a
        source that ended its process.
        """
        try:
            self._ask({"run": source, "name": name}, None)
        except AnswerError as error:
            if not isinstance(error, AnswerDied):
                self.sources.append((source, name))  # a new process needs what it defines above the error
            raise
        self.sources.append((source, name))
        return self.printed()

    def has(self, name: str) -> bool:
        """Return whether the answer defines a function of this name."""
        return self._ask({"has": name}, None)

    def function(self, name: str, keep: str = "none") -> Callable[..., Any]:
        """Return a proxy for a function of the answer.

        `keep` says what stays there and is returned as a proxy: "all" of a result, the "cache" of (out, cache), "none".
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.timeouts.get(name, 0) >= self.limits.timeouts:
                raise AnswerDied("TimeoutError", f"{name} gave no result {self.limits.timeouts} times: not tried again")
            try:
                return self._ask({"call": name, "keep": keep}, (args, kwargs))
            except AnswerDied as error:
                if error.kind == "TimeoutError":
                    self.timeouts[name] = self.timeouts.get(name, 0) + 1
                raise

        call.__name__ = call.__qualname__ = name
        return call

    def hold(self, value: Any) -> Far:
        """Send a value once, for many calls; return a proxy to pass in its place."""
        return self._ask({"call": None, "keep": "all"}, ((value,), {}))

    def fetch(self, proxy: Far) -> Any:
        """Return the value of a proxy."""
        return self._ask({"call": None, "keep": "none"}, ((proxy,), {}))

    def printed(self) -> str:
        """Return what the answer has printed since the last call, cut to the limit."""
        if self._process is None:
            return ""
        most = self.limits.output_characters
        self._output.seek(self._output_at)
        text = self._output.read(4 * most).decode(errors="replace")  # a character has at most 4 bytes
        self._output_at = self._output.seek(0, os.SEEK_END)
        return text if len(text) <= most else text[:most] + "\n… (cut)\n"

    def close(self) -> None:
        """Kill the process, whatever it is doing, and remove its directory."""
        process, self._process = self._process, None
        if process is None:
            return
        # Its whole group, in case it has started processes.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        self._socket.close()
        self._output.close()
        # shutil.rmtree would recurse too deeply into nested directories, and fail at unreadable ones.
        remove = ["sh", "-c", 'rm -rf "$1" || { chmod -R u+rwx "$1"; rm -rf "$1"; }', "rm", self._scratch]
        subprocess.run(remove, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _start(self) -> None:
        """Start a process, with an empty directory, and load all sources into it."""
        if os.name == "nt":
            raise UsageError("answers are marked on Linux or macOS; on Windows use WSL, or pytest with --in-process")
        self._scratch = os.path.realpath(tempfile.mkdtemp(prefix="answer-"))
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._output_at = 0
        user = isolation.throwaway_user(self._scratch)
        # The working directory is hidden from it: the course or the tests are there.
        wrapped = [] if isolation.problem() else isolation.bubblewrap(self._scratch, str(Path.cwd()), user)
        environment = dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR"), self._scratch)
        environment |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"), "1")
        environment |= {"MPLBACKEND": "agg", "PATH": os.defpath, "PYTHONHASHSEED": "0"} | self.environment
        # -I: import neither from the working directory nor from the user's own packages.
        first = f"sys.path.insert(0, {str(isolation.PACKAGE.parent)!r})"
        bootstrap = f"import sys; {first}; from tinyprune.course.child import main; del sys.path[0]; main()"
        self._first += 1 << 20
        self._socket, theirs = socket.socketpair()
        with theirs:
            settings = {
                "wire": theirs.fileno(),
                "first": self._first,
                "preload": self.preload,
                "user": user,
                "limits": {
                    "RLIMIT_AS": self.limits.memory_bytes,
                    "RLIMIT_CPU": int(self.limits.seconds_in_all) + 30,
                    "RLIMIT_FSIZE": self.limits.file_bytes,
                    "RLIMIT_NOFILE": 128,
                    # Without bubblewrap or a user made for it, the processes of the present user count as well.
                    "RLIMIT_NPROC": self.limits.processes if wrapped or user is not None else 4096,
                    "RLIMIT_CORE": 0,
                },
            }
            self._process = subprocess.Popen(
                [*wrapped, sys.executable, "-I", "-u", "-c", bootstrap, json.dumps(settings)],
                cwd=self._scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._kept.clear()
        self._count_at = 0.0  # when to measure its directory again
        try:
            self._set_deadlines(60, 60)  # importing is not the answer's time
            unpack(self._read)
        except AnswerDied as error:
            raise RuntimeError(f"the answer's process did not start: {error}\n{self.printed()}") from None
        for source, name in list(self.sources):
            with contextlib.suppress(AnswerError):
                self._exchange({"run": source, "name": name}, None)
        self.printed()

    def _ask(self, head: dict[str, Any], value: Any) -> Any:
        """Send a message, after starting a process if there is none; return the value of the reply."""
        if self.seconds_left <= 0:
            raise AnswerDied("TimeoutError", f"the submission took more than {self.limits.seconds_in_all:g} s in all")
        if self._process is None:
            self._start()
        return self._exchange(head, value)

    def _exchange(self, head: dict[str, Any], value: Any) -> Any:
        """Send a message, call functions of the tests until the reply comes, and return its value."""
        if self._process is None:
            raise AnswerDied("SystemExit", "the answer ended its own process when its code was run again")
        self._set_deadlines(self.limits.seconds_per_call, self.seconds_left)
        try:
            arrays = self._send(head, value)
            while True:
                reply, received = unpack(self._read)
                if "callback" in reply:
                    self._call_back(reply, received)
                    continue
                if "raised" in reply:
                    raised = {k: str(v)[:4000] for k, v in reply["raised"].items()}
                    raise AnswerError(raised["kind"][:100], raised["message"], raised["trace"])
                for index, tree in reply.get("changed", {}).items():  # arguments that the answer modified in place
                    original = arrays[int(index)]
                    if original.flags.writeable:
                        np.copyto(original, self._decode(tree, received))
                return self._decode(reply["value"], received)
        except AnswerError:
            raise
        except Exception as error:
            # The process no longer follows the protocol; what it sends may lead to any exception here.
            self.close()
            raise AnswerDied("RuntimeError", f"the answer broke its own process: {error!s:.200}") from None
        finally:
            self.seconds_left = self._end_of_all - time.monotonic()

    def _send(self, head: dict[str, Any], value: Any) -> list[np.ndarray]:
        arrays: list[np.ndarray] = []
        head = head | {"value": encode(value, arrays, self._keep)}
        data = memoryview(pack(head, arrays))
        while data:
            data = data[self._within_limits(self._socket.send, data[: 1 << 16]) :]
        return arrays

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            part = self._within_limits(self._socket.recv, min(size, 1 << 20))
            if not part:
                self._died()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _within_limits(self, use: Callable[[Any], Any], argument: Any) -> Any:
        """Send or receive; while nothing moves, check the limits every quarter of a second (the socket's timeout)."""
        while True:
            self._check()
            try:
                return use(argument)
            except TimeoutError:
                pass
            except (BrokenPipeError, ConnectionResetError):
                self._died()

    def _set_deadlines(self, seconds: float, seconds_in_all: float) -> None:
        self._end_of_call, self._end_of_all = (time.monotonic() + s for s in (seconds, seconds_in_all))

    def _check(self) -> None:
        """Kill a process that is too slow or fills the disk: the system limits files' sizes, but not their number."""
        limits, now = self.limits, time.monotonic()
        if now >= self._count_at:
            if disk_usage(Path(self._scratch), limits.directory_bytes) > limits.directory_bytes:
                self.close()
                raise AnswerDied("OSError", f"more than {limits.directory_bytes >> 20} MiB of files")
            # Ten times as long as measuring takes, which is long for nested directories.
            self._count_at = now + 0.25 + 10 * (time.monotonic() - now)
        if now >= self._end_of_all:
            self.close()
            raise AnswerDied("TimeoutError", f"the submission took more than {limits.seconds_in_all:g} s in all")
        if now >= self._end_of_call:
            self.close()
            seconds = limits.seconds_per_call
            raise AnswerDied("TimeoutError", f"no result after {seconds:g} s: an endless loop, or far too slow")
        self._socket.settimeout(min(self._end_of_all - now, self._end_of_call - now, 0.25))

    def _died(self) -> None:
        """Raise AnswerDied, which says how the process ended. It may also still run, with its socket closed."""
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.close()
            raise AnswerDied("RuntimeError", "the answer broke its own process: it closed its connection") from None
        last = self.printed().strip().splitlines()[-1:]
        self.close()
        number = -code if code < 0 else code - 128  # bubblewrap ends with 128 + the signal
        is_signal = number in signal.valid_signals()
        how = f"by signal {signal.Signals(number).name}" if is_signal else f"with exit status {code}"
        raise AnswerDied("SystemExit", f"the answer ended its own process {how}" + "".join(f" ({s})" for s in last))

    def _call_back(self, reply: dict[str, Any], received: list[np.ndarray]) -> None:
        """Call a function for the answer. The time in it does not count as the call's; that on the wire does."""
        function, (args, kwargs) = self._kept[reply["callback"]], self._decode(reply["value"], received)
        begun = time.monotonic()
        try:
            head, result = {}, function(*args, **kwargs)
        except Exception as error:
            head, result = {"raised": f"{type(error).__name__}: {error!s:.2000}"}, None
        self._end_of_call += time.monotonic() - begun
        self._send(head, result)

    def _keep(self, thing: Any) -> int:
        self._kept.append(thing)
        return len(self._kept) - 1

    def _decode(self, tree: Any, arrays: list[np.ndarray]) -> Any:
        return decode(tree, arrays, Far, self._kept.__getitem__)


def disk_usage(directory: Path, enough: int) -> int:
    """Return the bytes of disk that a directory takes, plus 4096 for each name; stop counting beyond `enough`."""
    found, left = 0, [directory]
    while left and found <= enough:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    found += 4096 + 512 * getattr(entry.stat(follow_symlinks=False), "st_blocks", 0)
                    if found > enough:
                        break
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
        except FileNotFoundError:
            continue  # removed in the meantime
        except OSError:
            return enough + 1  # nested too deep, or made unreadable
    return found

"""Run a student's answer in a separate process; this is the tester's side, and `child` is the other.

    with Sandbox() as sandbox:
        sandbox.run("def double(x):\n    return 2 * x")
        sandbox.function("double")(np.arange(3))          # array([0, 2, 4]), computed in that process

The answer's process is limited in time, memory and what it may touch (see `isolation`), and contains nothing of the
tester: no tests, no checker, no marks. Whatever it does to itself, it can only send values. If it ends or is killed, a
new process replaces it and loads the same sources again, so that an endless loop costs only the points of its task.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tinyprune.course import child, isolation
from tinyprune.course.child import Far, Wire
from tinyprune.errors import UsageError

ENVIRONMENT = {"PATH": os.defpath, "MPLBACKEND": "agg", "PYTHONHASHSEED": "0"}
ENVIRONMENT |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
ENDED = "the answer ended its own process"
BROKE = "the answer broke its own process"
TOO_SLOW = "no result after {:g} s: an endless loop, or far too slow"
TOO_LONG = "the submission took more than {:g} s in all"


@dataclass(frozen=True)
class Limits:
    """The resources of one submission."""

    seconds_per_call: float = 10.0  # without the time in functions that the tests hand to the answer
    seconds_in_all: float = 120.0
    timeouts: int = 2  # after so many, a function is no longer called
    memory_bytes: int = 3 << 30
    file_bytes: int = 16 << 20
    directory_bytes: int = 256 << 20  # of all files together, with bubblewrap
    processes: int = 256  # and threads, with bubblewrap or if the tester is root
    output_characters: int = 10_000


class AnswerError(Exception):
    """The answer raised an error, took too long or ended its process. `kind` names the class of the error."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind


class AnswerDied(AnswerError):
    """The answer's process ended or had to be killed."""


class Sandbox(contextlib.AbstractContextManager):
    """A process for one submission. Close it, or use it in a `with`."""

    def __init__(
        self,
        limits: Limits | None = None,
        *,
        environment: dict[str, str] | None = None,
        preload: tuple[str, ...] = ("numpy",),
    ) -> None:
        """Prepare a process, which starts when it is first needed.

        `environment` holds variables besides a few that it needs (it inherits none), `preload` the names of modules to
        import before the limits hold.
        """
        self.limits, self.environment, self.preload = limits or Limits(), environment or {}, preload
        self.sources: list[tuple[str, str]] = []
        self.seconds_left = self.limits.seconds_in_all
        self.timeouts: Counter[str] = Counter()
        self._process: subprocess.Popen | None = None

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, source: str, name: str = "answer.py") -> str:
        """Execute `source`, called `name` in tracebacks, in the answer's namespace; return what it printed, cut.

        Raises AnswerError if it raised an error; `AnswerDied` if its process ended. A new process does not load a
        source that ended its process.
        """
        try:
            self._ask("run", source, name)
        finally:
            # Even after an error: what the source defines above it is there.
            if self._process is not None:
                self.sources.append((source, name))
        return self.printed()

    def has(self, name: str) -> bool:
        """Return whether the answer defines a function of this name."""
        return self._ask("has", name)

    def function(self, name: str, keep: str = "none") -> Callable[..., Any]:
        """Return a proxy for a function of the answer.

        `keep` says what stays there and is returned as a proxy: "all" of a result, the "cache" of (out, cache), "none".
        """

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.timeouts[name] >= self.limits.timeouts:
                times = self.limits.timeouts
                raise AnswerDied("TimeoutError", f"{name} gave no result {times} times: not tried again")
            try:
                return self._ask("call", name, keep, args, kwargs)
            except AnswerDied as error:
                if error.kind == "TimeoutError":
                    self.timeouts[name] += 1
                raise

        call.__name__ = call.__qualname__ = name
        return call

    def hold(self, value: Any) -> Far:
        """Send a value once, for many calls; return a proxy to pass in its place."""
        return self._ask("keep", value)

    def fetch(self, proxy: Far) -> Any:
        """Return the value of a proxy."""
        return self._ask("fetch", proxy)

    def printed(self) -> str:
        """Return what the answer has printed since the last call, cut to the limit."""
        if self._process is None:
            return ""
        most, output = self.limits.output_characters, self._output.fileno()
        # A character has at most 4 bytes.
        text = os.pread(output, 4 * most, self._seen).decode(errors="replace")
        self._seen = os.fstat(output).st_size
        if len(text) > most:
            text = text[:most] + "\n… (cut)\n"
        return text

    def close(self) -> None:
        """Kill the process, whatever it is doing, and remove its directory."""
        if self._process is None:
            return
        kill(self._process, self._socket)
        self._process.wait()
        self._process = None
        self._socket.close()
        self._output.close()
        # shutil.rmtree would recurse too deeply into nested directories, and fail at unreadable ones.
        remove = ["sh", "-c", 'chmod -R u+rwx "$1"; rm -rf "$1"', "rm", self._scratch]
        subprocess.run(remove, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _start(self) -> None:
        """Start a process, with an empty directory, and load all sources into it."""
        if os.name == "nt":
            raise UsageError("answers are marked on Linux or macOS; use WSL, or pytest with --in-process")
        limits, user = self.limits, isolation.other_user()
        self._scratch = os.path.realpath(tempfile.mkdtemp(prefix="answer-"))
        wrapped = isolation.bubblewrap(self._scratch, limits.directory_bytes)
        if user is not None:
            os.chown(self._scratch, user, user)
        self._seen, self._output = 0, tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
        self._socket, theirs = socket.socketpair()
        self._wire = Wire(self._socket.makefile("rwb"), "tests")
        rlimits = {"RLIMIT_AS": limits.memory_bytes, "RLIMIT_FSIZE": limits.file_bytes}
        rlimits |= {"RLIMIT_CPU": int(limits.seconds_in_all) + 30, "RLIMIT_NPROC": limits.processes}
        # Without bubblewrap or a user made for it, the processes of the present user count as well.
        if user is None and not wrapped:
            rlimits["RLIMIT_NPROC"] = max(limits.processes, 4096)
        wire = theirs.fileno()
        settings = {"wire": wire, "preload": self.preload, "user": user, "limits": rlimits}
        # -I: import neither from the working directory nor from the user's own packages. -B: write no bytecode.
        python = [sys.executable, "-IBu", "-c", inspect.getsource(child), json.dumps(settings)]
        homes = dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR"), self._scratch)
        with theirs:
            self._process = subprocess.Popen(
                [*wrapped, *python],
                cwd=self._scratch,
                env=ENVIRONMENT | homes | self.environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(wire,),
                start_new_session=True,
            )
        # Importing is not the answer's time.
        self._end_of_call = self._end_of_all = time.monotonic() + 60
        try:
            self._talk()
        except AnswerDied as error:
            raise RuntimeError(f"the answer's process did not start: {error}") from None
        for source, name in self.sources:
            with contextlib.suppress(AnswerError):
                self._exchange("run", source, name)
            if self._process is None:
                raise AnswerDied("SystemExit", f"{ENDED} when its code was run again")
        self.printed()

    def _ask(self, *request: Any) -> Any:
        """Send a request, after starting a process if there is none; return its result."""
        if self.seconds_left <= 0:
            raise AnswerDied("TimeoutError", TOO_LONG.format(self.limits.seconds_in_all))
        if self._process is None:
            self._start()
        return self._exchange(*request)

    def _exchange(self, *request: Any) -> Any:
        """Send a request, call functions of the tests until its result comes, and return that."""
        begun = time.monotonic()
        self._end_of_call = begun + self.limits.seconds_per_call
        self._end_of_all = begun + self.seconds_left
        try:
            (kind, *content), arrays = self._talk(*request)
            while kind == "callback":
                (kind, *content), _ = self._talk(*self._called(*content))
            if kind == "raised":
                error, message = map(str, content)
                raise AnswerError(error[:100], message[:8000])
            result, changed = content
            for number, new in changed.items():  # arguments that the answer modified in place
                if arrays[number].flags.writeable:
                    np.copyto(arrays[number], new)
            return result
        except AnswerError:
            raise
        except Exception as error:
            # The process no longer follows the protocol; what it sends may lead to any exception here.
            self.close()
            raise AnswerDied("RuntimeError", f"{BROKE}: {error!s:.200}") from None
        finally:
            self.seconds_left -= time.monotonic() - begun

    def _called(self, number: int, args: tuple, kwargs: dict[str, Any]) -> tuple[str, Any]:
        """Return the reply to an answer that calls a function. The time in it does not count as the call's."""
        begun = time.monotonic()
        try:
            return "done", self._wire.find(number)(*args, **kwargs)
        except Exception as error:
            return "raised", f"{type(error).__name__}: {error!s:.2000}"
        finally:
            self._end_of_call += time.monotonic() - begun

    def _talk(self, *value: Any) -> tuple[Any, list[np.ndarray]]:
        """Send a value, if there is one; return the next value that arrives, and the arrays that were sent."""
        end = min(self._end_of_call, self._end_of_all)
        timer = threading.Timer(end - time.monotonic(), kill, (self._process, self._socket))
        timer.start()
        try:
            arrays = self._wire.send(*value) if value else []
            reply, _ = self._wire.receive()
        except (EOFError, OSError):
            raise self._death() from None
        finally:
            timer.cancel()
        # It arrived while the timer was ending the process, or ought to have.
        if time.monotonic() >= end:
            raise self._death()
        return reply, arrays

    def _death(self) -> AnswerDied:
        """Close, and return the error that says how the process ended. It may also still run, without its socket."""
        now, limits = time.monotonic(), self.limits
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=1)
        code, last = self._process.returncode, self.printed().strip().splitlines()[-1:]
        self.close()
        if now >= self._end_of_all:
            return AnswerDied("TimeoutError", TOO_LONG.format(limits.seconds_in_all))
        if now >= self._end_of_call:
            return AnswerDied("TimeoutError", TOO_SLOW.format(limits.seconds_per_call))
        if code is None:
            return AnswerDied("RuntimeError", f"{BROKE}: it closed its connection")
        number = max(-code, code - 128)  # bubblewrap ends with 128 + the signal
        how = f"with exit status {code}"
        if number in signal.valid_signals():
            how = f"by signal {signal.Signals(number).name}"
        return AnswerDied("SystemExit", f"{ENDED} {how}" + "".join(f" ({line})" for line in last))


def kill(process: subprocess.Popen, connection: socket.socket) -> None:
    """Kill a process and all of its group, and end the connection, which others may hold."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)

"""The tester's side of the wire: a separate process for an answer.

    with Sandbox() as sandbox:
        sandbox.run("def double(x):\n    return 2 * x")
        sandbox.function("double")(np.arange(3))          # array([0, 2, 4]), computed over there

The answer's process is limited in time, memory and what it may touch (see `lockdown`), and contains nothing of the
tester: no tests, no checker, no marks. Whatever it does to itself, it can only send values. If it ends or is killed, a
new process replaces it and loads the same sources again, so that an endless loop costs its own points only.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tinyprune.course.wire import Kept, WireError, decode, encode, pack, unpack
from tinyprune.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """The resources of one submission. Time in functions that the tests hand to the answer does not count."""

    seconds_per_call: float = 10.0
    seconds_in_all: float = 120.0
    timeouts: int = 2  # of one function, before it is no longer called
    seconds_in_callbacks: float = 300.0  # in such functions, which an answer may call endlessly
    memory_bytes: int = 3 << 30
    file_bytes: int = 16 << 20
    directory_bytes: int = 256 << 20  # of all files together
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
        self.preload = preload  # modules to import before the process is locked
        self.sources: list[tuple[str, str]] = []
        self.seconds_left = self.limits.seconds_in_all
        self.seconds_in_callbacks = 0.0
        self.timeouts: dict[str, int] = {}
        self.filters: list[str] = []
        self._process: subprocess.Popen | None = None
        self._kept: list[Any] = []
        self._generation = 0

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def run(self, source: str, name: str = "answer.py") -> str:
        """Execute `source`, called `name` in tracebacks, in the answer's namespace; return what it printed, cut.

        Raises AnswerError if it raised an error; `AnswerDied` if its process ended. A source that ended its process is
        not loaded again.
        """
        try:
            self._ask({"run": source, "name": name}, None)
        except AnswerError as error:
            if not isinstance(error, AnswerDied):
                self.sources.append((source, name))  # what it defines above the error is there again after a restart
            raise
        self.sources.append((source, name))
        return self.printed()

    def has(self, name: str) -> bool:
        """Return whether the answer defines a function of this name."""
        return self._ask({"has": name}, None)

    def function(self, name: str, keep: str = "none") -> Callable[..., Any]:
        """Return a stand-in for a function of the answer.

        `keep` says what stays in its process: "all" of a result, the "cache" of a result (out, cache), or "none".
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

    def hold(self, value: Any) -> Kept:
        """Send a value once, for many calls."""
        return self._ask({"hold": True}, value)

    def fetch(self, kept: Kept) -> Any:
        """Return a value that stayed there."""
        return self._ask({"fetch": True}, kept)

    def printed(self) -> str:
        """Return what the answer has printed since the last call, cut to the limit."""
        if self._process is None:
            return ""
        self._output.seek(self._output_at)
        data = self._output.read(4 * self.limits.output_characters)
        self._output_at = self._output.seek(0, os.SEEK_END)
        text = data.decode(errors="replace")
        most = self.limits.output_characters
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
        for descriptor in (self._to_child, self._from_child):
            os.close(descriptor)
        self._output.close()
        # shutil.rmtree would recurse too deeply into nested directories, and fail at unreadable ones.
        for command in (["rm", "-rf"], ["chmod", "-R", "u+rwx"], ["rm", "-rf"]):
            if not Path(self._scratch).exists():
                break
            subprocess.run([*command, "--", self._scratch], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _start(self) -> None:
        if os.name == "nt":
            raise UsageError("answers are marked on Linux or macOS; on Windows use WSL, or pytest with --in-process")
        self._scratch = tempfile.mkdtemp(prefix="answer-")
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._output_at = 0
        incoming, self._to_child = os.pipe()
        self._from_child, outgoing = os.pipe()
        # The other side can open both ends of a pipe, and take a byte between `select` and `read`.
        for descriptor in (self._to_child, self._from_child):
            os.set_blocking(descriptor, False)
        settings = {
            "scratch": self._scratch,
            "hidden": str(Path.cwd()),  # the course or the tests
            "incoming": incoming,
            "outgoing": outgoing,
            "memory_bytes": self.limits.memory_bytes,
            "cpu_seconds": int(self.limits.seconds_in_all) + 30,
            "file_bytes": self.limits.file_bytes,
            "preload": self.preload,
        }
        environment = dict.fromkeys(("HOME", "TMPDIR", "MPLCONFIGDIR"), self._scratch)
        environment |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"), "1")
        environment |= {"MPLBACKEND": "agg", "PATH": os.defpath, "PYTHONHASHSEED": "0"} | self.environment
        package = Path(__file__).parents[2]
        # -I: import neither from the working directory nor from the user's own packages.
        bootstrap = f"import sys; sys.path.append({str(package)!r}); from tinyprune.course.child import main; main()"
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-u", "-c", bootstrap, json.dumps(settings)],
                cwd=self._scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(incoming, outgoing),
                start_new_session=True,
            )
        finally:
            os.close(incoming)
            os.close(outgoing)
        self._generation += 1
        self._kept.clear()
        self._deadline = time.monotonic() + 60  # importing is not the answer's time
        try:
            head, _ = unpack(self._read)
        except AnswerDied as error:
            raise RuntimeError(f"the answer's process did not start: {error}\n{self.printed()}") from None
        self.filters = head["ready"]
        for source, name in list(self.sources):
            with contextlib.suppress(AnswerError):
                self._exchange({"run": source, "name": name}, None)
        self.printed()

    def _ask(self, head: dict[str, Any], value: Any) -> Any:
        if self.seconds_left <= 0:
            raise AnswerDied("TimeoutError", f"the submission took more than {self.limits.seconds_in_all:g} s in all")
        if self._process is None:
            self._start()
        self._check_directory()
        return self._exchange(head, value)

    def _exchange(self, head: dict[str, Any], value: Any) -> Any:
        if self._process is None:
            raise AnswerDied("SystemExit", "the answer ended its own process when its code was run again")
        allowed = min(self.limits.seconds_per_call, self.seconds_left)
        self._deadline = time.monotonic() + allowed
        begun = time.monotonic()
        elsewhere = 0.0
        try:
            arrays = self._send(head, value)
            while True:
                reply, received = unpack(self._read)
                if "callback" in reply:
                    elsewhere += self._call_back(reply, received)
                    continue
                if "raised" in reply:
                    raised = {k: str(v)[:4000] for k, v in reply["raised"].items()}
                    raise AnswerError(raised["kind"][:100], raised["message"], raised["trace"])
                for index, tree in reply.get("changed", {}).items():
                    original = arrays[int(index)]
                    if original.flags.writeable:
                        np.copyto(original, self._decode(tree, received))
                return self._decode(reply["value"], received)
        except AnswerError:
            raise
        except Exception as error:
            # The process no longer follows the protocol; what it sends may break anything here.
            self.close()
            raise AnswerDied("RuntimeError", f"the answer broke its own process: {error!s:.200}") from None
        finally:
            self.seconds_left -= time.monotonic() - begun - elsewhere

    def _send(self, head: dict[str, Any], value: Any) -> list[np.ndarray]:
        arrays: list[np.ndarray] = []
        head = head | {"value": encode(value, arrays, self._keep, KeptHere)}
        data = memoryview(pack(head, arrays))
        while data:
            self._wait([], [self._to_child])
            try:
                data = data[os.write(self._to_child, data[:4096]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self._died()
        return arrays

    def _read(self, size: int) -> bytes:
        parts = []
        while size:
            self._wait([self._from_child], [])
            try:
                part = os.read(self._from_child, min(size, 1 << 20))
            except BlockingIOError:
                continue
            if not part:
                self._died()
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _wait(self, reading: list[int], writing: list[int]) -> None:
        """Wait until a pipe is ready, but not beyond the deadline, nor while the disk is being filled."""
        while True:
            # Checked first, because a pipe may always be ready.
            left = self._deadline - time.monotonic()
            if left <= 0:
                self.close()
                seconds = self.limits.seconds_per_call
                raise AnswerDied("TimeoutError", f"no result after {seconds:g} s: an endless loop, or far too slow")
            if any(select.select(reading, writing, [], min(left, 0.25))):
                return
            self._check_directory()

    def _check_directory(self) -> None:
        """Kill a process that fills the disk: the system limits the size of each file, but not their number."""
        if used(Path(self._scratch), self.limits.directory_bytes) > self.limits.directory_bytes:
            self.close()
            raise AnswerDied("OSError", f"more than {self.limits.directory_bytes >> 20} MiB of files")

    def _died(self) -> None:
        # It may have closed the pipes and be running on.
        try:
            code = self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self.close()
            raise AnswerDied("RuntimeError", "the answer broke its own process: it closed the pipes") from None
        last = self.printed().strip().splitlines()[-1:]
        self.close()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit status {code}"
        raise AnswerDied("SystemExit", f"the answer ended its own process {how}" + "".join(f" ({s})" for s in last))

    def _call_back(self, reply: dict[str, Any], received: list[np.ndarray]) -> float:
        """Call a function for the answer and return the seconds in it, without those on the wire."""
        if self.seconds_in_callbacks > self.limits.seconds_in_callbacks:
            self.close()
            most = f"{self.limits.seconds_in_callbacks:g} s"
            raise AnswerDied("TimeoutError", f"more than {most} in functions that were given: called without end?")
        args, kwargs = self._decode(reply["value"], received)
        function = self._kept[reply["callback"]]
        begun = time.monotonic()
        try:
            head, result = {"done": True}, function(*args, **kwargs)
        except Exception as error:
            head, result = {"raised": {"message": f"{type(error).__name__}: {error!s:.2000}"}}, None
        gone = time.monotonic() - begun
        self._deadline += gone
        self.seconds_in_callbacks += gone
        self._send(head, result)
        return gone

    def _keep(self, thing: Any) -> int:
        self._kept.append(thing)
        return len(self._kept) - 1

    def _decode(self, tree: Any, arrays: list[np.ndarray]) -> Any:
        def function(number: int) -> Any:
            raise WireError("an answer cannot hand over functions")

        return decode(tree, arrays, function, self._kept.__getitem__, lambda number: KeptHere(number, self))


class KeptHere(Kept):
    """A stand-in for an object in an answer's process, valid as long as that process lives."""

    def __init__(self, number: int, sandbox: Sandbox) -> None:
        self._number, self._sandbox, self._generation = number, sandbox, sandbox._generation

    @property
    def number(self) -> int:
        """The object's number. Raises AnswerDied if the process that kept it is gone."""
        if self._generation != self._sandbox._generation or self._sandbox._process is None:
            raise AnswerDied("SystemExit", "the answer's process ended, and with it what it kept")
        return self._number


def used(directory: Path, enough: int) -> int:
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

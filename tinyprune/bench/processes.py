"""The parent's side of `server.py`: start a library's process, send it requests, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import IO, Any, Self

from tinyprune.errors import TinypruneError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
HOLD_BLAS_BACK = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class ProcessError(TinypruneError):
    """A library's process reported an error or died."""


def environment(library: str, threads: int) -> dict[str, str]:
    """Environment variables of a library's process.

    "numpy" is NumPy as a peer, its BLAS as fast as it can be; "… with NAME=VALUE" sets one more variable.
    """
    variables = dict(os.environ) | dict.fromkeys(THREADS, str(threads)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if library == "numpy":
        for name in HOLD_BLAS_BACK:
            variables.pop(name, None)
    if " with " in library:
        name, _, value = library.partition(" with ")[2].partition("=")
        variables[name] = value
    return variables


class Processes:
    """The libraries' processes, each started when it is first needed; they end with the `with` statement."""

    def __init__(self, threads: int) -> None:
        self.threads = threads  # of each process
        self.running: dict[str, tuple[subprocess.Popen[str], IO[str]]] = {}  # by library, with its standard error

    def start(self, library: str) -> None:
        """Start a library's process."""
        complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see `__exit__`)
        process = subprocess.Popen(
            [sys.executable, "-m", "tinyprune.bench.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            encoding="utf-8",
            env=environment(library, self.threads),
        )
        self.running[library] = process, complaints

    def ask(self, library: str, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a library's process a request, a method of `server.Server` and its arguments; return the answer.

        Raises ProcessError if the process reports an error, or has died.
        """
        if library not in self.running:
            self.start(library)
        process, complaints = self.running[library]
        try:
            process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            status = process.wait()
            complaints.seek(0)
            said = [line for line in complaints.read().split("\n") if line.strip()]
            last_words = said[-1] if said else f"exit status {status}"
            raise ProcessError(f"the benchmark's process for {library} ended: {last_words}")
        answer = json.loads(line)
        if "error" in answer:
            raise ProcessError(f"{library}: {answer['error']}")
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process, complaints in self.running.values():
            process.kill()  # it has nothing to save
            process.communicate()
            complaints.close()

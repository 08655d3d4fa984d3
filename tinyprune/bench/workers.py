"""The parent's side of `worker.py`: start a library's process, ask it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from typing import Any

from tinyprune.errors import TinypruneError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
HOLD_BLAS_BACK = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")


class WorkerError(TinypruneError):
    """A library could not do its part."""


def environment(library: str, threads: int) -> dict[str, str]:
    """Environment variables of a library's process. "numpy" is NumPy as a peer, its BLAS as fast as it can be."""
    variables = dict(os.environ) | dict.fromkeys(THREADS, str(threads)) | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
    if library == "numpy":
        for name in HOLD_BLAS_BACK:
            variables.pop(name, None)
    return variables


class Worker:
    """A running process."""

    def __init__(self, library: str, threads: int) -> None:
        self.library = library
        self.complaints = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 (see `close`)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tinyprune.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
            encoding="utf-8",
            env=environment(library, threads),
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """One request and its answer.

        Raises:
            WorkerError: if the process reports an error, or has died.
        """
        try:
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the benchmark's process for {self.library} ended: {self.last_words()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.library}: {answer['error']}")
        return answer

    def last_words(self) -> str:
        """The last line that it wrote on standard error, or its exit status."""
        status = self.process.wait()
        self.complaints.seek(0)
        lines = self.complaints.read().split("\n")
        return next((line for line in reversed(lines) if line.strip()), f"exit status {status}")

    def close(self) -> None:
        """End the process."""
        self.process.kill()  # it keeps nothing that would have to be saved
        self.process.communicate()
        self.complaints.close()


class Workers:
    """The libraries' processes, each started when it is first needed; they end with the `with` statement.

    Args:
        threads: of each process.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.workers: dict[str, Worker] = {}

    def ask(self, library: str, do: str, **arguments: Any) -> dict[str, Any]:
        """See `Worker.ask`."""
        if library not in self.workers:
            self.workers[library] = Worker(library, self.threads)
        return self.workers[library].ask(do, **arguments)

    def build(
        self,
        library: str,
        key: str,
        target: str,
        arguments: dict[str, Any],
        rehearsal: dict[str, Any] | None = None,
    ) -> None:
        """Make a work, from then on called `key`; see `worker.Server.build`."""
        self.ask(library, "build", key=key, target=target, arguments=arguments, rehearsal=rehearsal)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers.values():
            worker.close()

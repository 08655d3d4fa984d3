"""`tinyprune` in this process or in one of its own, and a text and settings small enough to run it by the hundred."""

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tinyprune.cli import main

STAGES = ("train", "gate", "prune", "finetune")
CHECKPOINTS = tuple(f"{stage}.safetensors" for stage in STAGES)
# What a run must leave behind to the last bit. (The report holds times that were measured.)
LASTING = (*CHECKPOINTS, "metrics.jsonl", "config.toml")
# Of a report's table; other programs rely on these names and their order.
KEYS = ["stage", "heads_open", "heads_total", "parameters", "multiply_adds_per_token", "bits_per_character"]
KEYS += ["perplexity", "ms_per_1k_tokens"]

MODEL = {"L": 2, "D": 16, "H": 2, "N": 4, "T": 16, "M": 16}
DROPOUT = {"dropout": 0.1, "dropout_attention": 0.1, "dropout_embedding": 0.1}
TRAINING = {"steps": 20, "B": 2, "checkpoint_every": 3, "evaluate_every": 7, "log_every": 1}


class Killed(BaseException):
    """Nothing runs after this, as after SIGKILL."""


def settings(model: dict[str, Any] = MODEL | DROPOUT, **training: Any) -> list[str]:
    """The options of a small run; `training` goes into all three stages that train."""
    tables = {"model": model} | dict.fromkeys(("train", "gate_train", "heal"), TRAINING | training)
    return [f"--set={table}.{key}={value}" for table, values in tables.items() for key, value in values.items()]


def write_text(directory: Path, name: str = "book.txt") -> Path:
    """A corpus of 7,000 characters, 26 of them different."""
    path = directory / name
    path.write_text("".join(f"{i} heads see {i * i % 97} words; they close.\n" for i in range(200)), "utf-8")
    return path


def start(*arguments: str | Path, **options: Any) -> subprocess.Popen:
    """Start `tinyprune` with these arguments; its output is kept apart from what it says on standard error."""
    # One thread, so that sums are added in the same order every time and tests in parallel do not slow each other.
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"} | options.pop("env", {})
    command = [sys.executable, "-m", "tinyprune", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL} | options
    return subprocess.Popen(command, env=environment, text=True, encoding="utf-8", **options)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen) -> None:
    """Wait until the condition holds or the process has ended, no more than three minutes: kernels may be compiled."""
    end = time.monotonic() + 180
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "nothing happened for three minutes"


def tinyprune(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess:
    """Run `tinyprune` to its end."""
    with start(*arguments, **options) as process:
        out, err = process.communicate(timeout=240)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_here(*arguments: str | Path) -> subprocess.CompletedProcess:
    """Run `tinyprune` in this process, without timing models, which takes seconds and is tested elsewhere."""
    untimed = patch("tinyprune.runs.report.milliseconds_per_1k_tokens", lambda models, *_: [1.0] * len(models))
    with untimed, redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            status = main(list(map(str, arguments)))
        except SystemExit as ended:
            status = ended.code
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def die_in_write(module: Any, number: int, *arguments: str | Path) -> None:
    """Run `tinyprune` here until `module` writes its checkpoint of this number, and die in the middle of that."""
    save, left = module.save_checkpoint, iter(range(number - 1, -1, -1))

    def save_or_die(path: Path, *what: Any) -> None:
        if next(left) == 0:
            path.with_name(f"{path.name}.tmp").write_bytes(b"half of a checkpoint")
            raise Killed
        save(path, *what)

    with patch.object(module, "save_checkpoint", save_or_die), pytest.raises(Killed):
        run_here(*arguments)


def succeed(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess:
    """Run `tinyprune`, like `refused`; fail, showing what it says, unless it ends well and without a warning."""
    done = tinyprune(*arguments, **options) if options else run_here(*arguments)
    assert done.returncode == 0, done.stderr
    assert all(line.startswith("tinyprune: ") for line in done.stderr.splitlines()), done.stderr
    return done


def without_compilation(stderr: str) -> list[str]:
    """The lines of what a command said, but not that kernels are compiled: nobody knows which test comes first."""
    return [line for line in stderr.splitlines() if not re.match(r"tinyprune: \w+: (compiling|compiled) ", line)]


def refused(status: int, *arguments: str | Path, **options: Any) -> str:
    """Return the one line that says why `tinyprune` ends with this status, here or in a process with `options`."""
    done = tinyprune(*arguments, **options) if options else run_here(*arguments)
    said, beginning = done.stderr.splitlines(), "tinyprune: error: "
    assert done.returncode == status, done
    assert "Traceback" not in f"{done.stdout}{done.stderr}", done.stderr
    assert all(line.startswith("tinyprune: ") for line in said), done.stderr
    assert [line for line in said if line.startswith(beginning)] == said[-1:], done.stderr
    return said[-1].removeprefix(beginning)


def do_stages(directory: Path, corpus: Path, options: list[str], gate_options: list[str], **started: Any) -> None:
    """All stages of a run one by one, which is quicker than `run`: no report, for which computing time is measured."""
    given = {"train": ["--corpus", corpus, *options], "gate": gate_options}
    for stage in STAGES:
        succeed(stage, directory, *given.get(stage, []), **started)


def contents(directory: Path) -> dict[str, bytes]:
    """All files under a directory but locks, by name."""
    files = (p for p in sorted(directory.rglob("*")) if p.is_file() and not p.name.startswith(".lock"))
    return {str(p.relative_to(directory)): p.read_bytes() for p in files}


def harmless(status: int, directory: Path, *arguments: str | Path) -> str:
    """Return the message of a command that must fail and leave every file in the directory as it is."""
    before = contents(directory)
    said = refused(status, *arguments)
    assert contents(directory) == before
    return said


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let this process write no file longer than `size` bytes, which is as if the disk were full there."""
    import resource  # Windows has none

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

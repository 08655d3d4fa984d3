"""Workloads and a model small enough for tests, to be built in a library's process."""

import os
import time
from pathlib import Path

import numpy as np

from tinyprune.bench import Workload

MIB = 2**20
SIZES = {
    "all-attention": {"N": 5, "M": 4, "mask": '"same-length"'},
    "head networks": {"N": 5, "M": 4, "mask": '"same-length"', "persistent": '"stream"'},
    "transformer-xl": {"N": 0, "F": 7, "M": 6, "mask": '"causal"'},
    "transformer": {"N": 0, "F": 7, "M": 0, "mask": '"causal"'},
}


def write_model(directory: Path, kind: str = "all-attention", B: int = 2, **changes: object) -> str:
    """Write a model whose sizes all differ to a .toml file; return its path."""
    path = directory / f"{kind}.toml"
    model = {"V": 17, "L": 2, "D": 24, "H": 3, "T": 6} | SIZES[kind] | changes
    kind = "all-attention" if "persistent" in model else kind
    lines = ["[model]", f'kind = "{kind}"', *(f"{name} = {value}" for name, value in model.items())]
    path.write_text("\n".join([*lines, "[train]", f"B = {B}\n"]), encoding="utf-8")
    return str(path)


def quick(value: float = 1.0) -> Workload:
    """Hardly any work; its result is `value`."""
    return Workload(lambda: np.full(1000, value).sum(), lambda: {"value": np.array([value])})


def large(mib: int, B: int = 16) -> Workload:
    """A workload that needs so much memory while it runs with 16 texts."""
    return Workload(lambda: np.ones(mib * MIB * B // 16, np.uint8).sum())


def talkative() -> Workload:
    """A workload whose library prints on standard output."""
    os.write(1, b"hello from C\n")
    print("hello from Python")
    return quick()


def failing() -> Workload:
    raise RuntimeError("no compiler\nsecond line")


class Unpicklable(RuntimeError):
    """Cannot be read in another process, like some errors of compilers."""

    def __init__(self, backend: str, error: str) -> None:
        super().__init__(f"no {backend}")


def failing_strangely() -> Workload:
    raise Unpicklable("backend", "error")


def endless() -> Workload:
    time.sleep(3600)
    return quick()


def dying() -> Workload:
    os._exit(3)


def variable(name: str) -> Workload:
    """A workload whose result is an environment variable of its process, as a number; −1 if it is not set."""
    return Workload(lambda: None, lambda: {"value": np.array([float(os.environ.get(name, -1))])})

"""Works small enough for tests, to be built in a worker's process, and a model small enough to be timed there."""

import os
from pathlib import Path

import numpy as np

from tinyprune.bench.work import Work

MIB = 2**20
MODEL = """
[model]
kind = "{kind}"
V = 17
L = 2
D = 24
H = 3
{sizes}
T = 6
[train]
B = 2
"""
SIZES = {
    "all-attention": 'N = 5\nM = 4\nmask = "same-length"',
    "transformer-xl": 'N = 0\nF = 7\nM = 6\nmask = "causal"',
    "transformer": 'N = 0\nF = 7\nM = 0\nmask = "causal"',
}


def write_model(directory: Path, kind: str = "all-attention", more: str = "") -> str:
    """A .toml file of a model of distinct sizes; returns its path."""
    path = directory / f"{kind}.toml"
    path.write_text(MODEL.format(kind=kind, sizes=SIZES[kind] + more), encoding="utf-8")
    return str(path)


def quick(value: float = 1.0) -> Work:
    """Hardly any work; its result is `value`."""
    return Work(lambda: np.full(1000, value).sum(), lambda: {"value": np.array([value])}, units=2)


def large(mib: int) -> Work:
    """Needs so much memory while it runs."""
    return Work(lambda: np.ones(mib * MIB, np.uint8).sum())


def talkative() -> Work:
    """Its library prints on standard output."""
    os.write(1, b"hello from C\n")
    print("hello from Python")
    return quick()


def failing() -> Work:
    """Cannot be built here."""
    raise RuntimeError("no compiler\nsecond line")


def dying() -> Work:
    """Takes the process with it."""
    os.write(2, b"Segmentation fault, so to speak\n")
    os._exit(3)


def variable(name: str) -> Work:
    """Its result is an environment variable of its process, as a number; −1 without."""
    return Work(lambda: None, lambda: {"value": np.array([float(os.environ.get(name, -1))])})

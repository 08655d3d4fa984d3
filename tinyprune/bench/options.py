"""What a benchmark is asked for, checked; and the whole of it: records with the machine they were measured on."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass

from tinyprune.bench import BENCHMARKS, PEERS
from tinyprune.bench.machine import describe_machine, processors
from tinyprune.bench.shapes import model_shape
from tinyprune.errors import UsageError
from tinyprune.kernels.backend import BACKENDS
from tinyprune.tables import Record

DEFAULT_BACKEND = "numba"


@dataclass(frozen=True)
class Options:
    """What to measure.

    Attributes:
        backend: whose operations are ours.
        peers: what they are compared with, from `PEERS`.
        shapes: names of models, see `shapes.py`; empty for the benchmark's own list.
        rounds: turns of each contender; None for the benchmark's own number.
        threads: of each contender.
    """

    backend: str
    peers: tuple[str, ...] = ()
    shapes: tuple[str, ...] = ()
    rounds: int | None = None
    threads: int = 1

    @property
    def subject(self) -> str:
        """What we are called in tables."""
        return f"tinyprune ({self.backend})"


def make_options(
    backend: str | None = None,
    peers: str = "",
    shapes: str = "",
    rounds: int | None = None,
    threads: int | None = None,
) -> Options:
    """Options from what stands on the command line; `peers` and `shapes` are separated by commas.

    Raises:
        UsageError: if something is out of range, unknown or not installed.
    """
    for name, value in (("rounds", rounds), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    for shape in split(shapes):
        model_shape(shape)
    for peer in split(peers):
        if peer not in PEERS:
            raise UsageError(f"--peers must be of {', '.join(PEERS)}; got {peer!r}")
        if importlib.util.find_spec(peer) is None:
            raise UsageError(f'--peers {peer} needs PyTorch, which is not here: python -m pip install "torch>=2.4"')
    if backend is not None and backend not in BACKENDS:
        raise UsageError(f"--backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    return Options(backend or DEFAULT_BACKEND, split(peers), split(shapes), rounds, threads or processors())


def split(names: str) -> tuple[str, ...]:
    """Names that commas separate."""
    return tuple(name.strip() for name in names.split(",") if name.strip())


def run_benchmark(name: str, options: Options) -> list[Record]:
    """All records of a benchmark, each with the machine's description. Raises TinypruneError if something fails."""
    records = importlib.import_module(BENCHMARKS[name]).run(options)
    packages = (*(["numba"] if options.backend == "numba" else []), *options.peers)
    machine = describe_machine(options.threads, packages)
    return [record | {"machine": machine} for record in records]

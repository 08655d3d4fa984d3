"""`tinyprune bench` from its options to its table: check what is asked for, measure it, format the records."""

from __future__ import annotations

import importlib
import importlib.util
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from tinyprune.bench import BENCHMARKS, PEERS
from tinyprune.bench.shapes import model_shape
from tinyprune.errors import MissingExtraError, UsageError, install_command, nearest
from tinyprune.io.tables import Record, text_table
from tinyprune.kernels.backend import BACKENDS, default_backend
from tinyprune.kernels.machine import describe_machine, processors

NO_COLUMNS = ("benchmark", "machine")  # printed above the table


@dataclass(frozen=True)
class Options:
    """The options of a benchmark: what is measured, beside whom, and how often."""

    backend: str  # name of the backend that is measured
    peers: tuple[str, ...] = ()  # what it is compared with, from `PEERS`
    shapes: tuple[str, ...] = ()  # names of models, see `shapes.py`; empty for the benchmark's own list
    rounds: int | None = None  # turns of each contender; None for the benchmark's own number
    threads: int = 1  # of each contender
    gpu: str = "h100"  # of a roofline

    @property
    def on_device(self) -> bool:
        """Whether our backend computes on a GPU."""
        return BACKENDS[self.backend].on_device

    @property
    def device(self) -> str:
        """Where PyTorch computes, and how exactly: "cpu", or as our backend does "cuda" or "cuda-tf32"."""
        return self.backend if self.on_device else "cpu"

    @property
    def modes(self) -> tuple[str, ...]:
        """The ways in which PyTorch's attention is written, if PyTorch is a peer."""
        return ("plain", "sdpa") if "torch" in self.peers else ()

    @property
    def subject(self) -> str:
        """Our name in tables."""
        return f"tinyprune ({self.backend})"


def make_options(
    backend: str | None = None,
    peers: Sequence[str] = (),
    shapes: Sequence[str] = (),
    rounds: int | None = None,
    threads: int | None = None,
    gpu: str = "h100",
) -> Options:
    """Build options from the command line's values.

    Raises UsageError if a value is out of range, unknown or needs a package that is not installed.
    """
    for name, value in (("rounds", rounds), ("threads", threads)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    for shape in shapes:
        model_shape(shape)
    for peer in peers:
        if peer not in PEERS:
            raise UsageError(f"--peers must be of {', '.join(PEERS)}; got {peer!r}{nearest(peer, PEERS)}")
        if importlib.util.find_spec(peer) is None:
            raise MissingExtraError(f"--peers {peer} needs PyTorch, which is not here: {install_command('peers')}")
    if backend is not None and backend not in BACKENDS:
        said = f"--backend must be one of {', '.join(BACKENDS)}; got {backend!r}{nearest(backend, BACKENDS)}"
        raise UsageError(said)
    return Options(backend or default_backend(), tuple(peers), tuple(shapes), rounds, threads or processors(), gpu)


def check_options(options: Options, name: str = "step") -> None:
    """Raise UsageError if a benchmark cannot run with these options on this machine."""
    if (name == "roofline") != (options.backend == "cuda-emulated"):
        raise UsageError(
            "the emulator counts for the benchmark roofline, --backend cuda-emulated; its times say nothing"
        )
    if options.on_device:
        if problem := BACKENDS[options.backend].problem():
            raise UsageError(f"the cuda backend cannot run: {problem}")
        if "torch" in options.peers:
            from tinyprune.bench.torch_operations import torch_device

            torch_device(options.device)


def run_benchmark(name: str, options: Options) -> list[Record]:
    """Run a benchmark; each record also describes the machine.

    Raises TinypruneError if the options do not fit, results disagree or a library fails.
    """
    check_options(options, name)
    module = importlib.import_module(f"tinyprune.bench.benchmarks.{BENCHMARKS[name]}")
    records = getattr(module, f"run_{name}")(options)
    packages = (*BACKENDS[options.backend].packages, *options.peers)
    machine = describe_machine(options.threads, packages, gpu=options.on_device and name != "roofline")
    return [record | {"machine": machine} for record in records]


def text_output(records: Sequence[Record]) -> str:
    """Format records as text: benchmark and machine, then a table with a row for each contender."""
    rows = [{key: value for key, value in record.items() if key not in NO_COLUMNS} for record in records]
    head = textwrap.fill(f"{records[0]['benchmark']} on {records[0]['machine']}", 120, break_on_hyphens=False)
    return f"{head}\n\n{text_table(rows)}"

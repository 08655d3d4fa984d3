"""`tinyprune bench` from its options to what it prints: check them, measure, print the records of each shape."""

from __future__ import annotations

import importlib
import importlib.util
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from tinyprune.bench import BENCHMARKS, PEERS
from tinyprune.bench.shapes import model_shape
from tinyprune.errors import MissingExtraError, UsageError, install_command, nearest
from tinyprune.io.tables import Record, json_table, text_table
from tinyprune.kernels.backend import BACKENDS, default_backend
from tinyprune.kernels.machine import describe_machine, processors


@dataclass(frozen=True)
class Options:
    """The options of a benchmark: what is measured, beside whom, and how often."""

    backend: str = field(default_factory=default_backend)  # name of the backend that is measured
    peers: Sequence[str] = ()  # what it is compared with, from `PEERS`
    shapes: Sequence[str] = ()  # names of models, see `shapes.py`; empty for the benchmark's own list
    rounds: int = 9  # turns of each contender
    threads: int = field(default_factory=processors)  # of each contender
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


def check_names(option: str, given: Sequence[str], allowed: Collection[str]) -> None:
    """Raise UsageError for the first name that is not allowed."""
    for name in given:
        if name not in allowed:
            hint = nearest(name, allowed)
            raise UsageError(f"--{option} must be of {', '.join(allowed)}; got {name!r}{hint}")


def check_options(name: str, options: Options) -> None:
    """Raise UsageError if a value is out of range or unknown, or a benchmark cannot run with it on this machine."""
    for number in ("rounds", "threads"):
        if getattr(options, number) < 1:
            raise UsageError(f"--{number} must be at least 1, got {getattr(options, number)}")
    for shape in options.shapes:
        model_shape(shape)
    check_names("peers", options.peers, PEERS)
    check_names("backend", [options.backend], BACKENDS)
    if "torch" in options.peers and importlib.util.find_spec("torch") is None:
        raise MissingExtraError(f"--peers torch needs PyTorch, which is not here: {install_command('peers')}")
    if (name == "roofline") != (options.backend == "cuda-emulated"):
        said = "the emulator counts for the benchmark roofline, --backend cuda-emulated"
        raise UsageError(f"{said}; its times say nothing")
    if options.on_device:
        if problem := BACKENDS[options.backend].problem():
            raise UsageError(f"the cuda backend cannot run: {problem}")
        if "torch" in options.peers:
            from tinyprune.bench.torch_operations import torch_device

            torch_device(options.device)


def print_benchmark(name: str, options: Options, as_json: bool) -> None:
    """Run a benchmark, and print the records of each shape as soon as they are measured, as text or as a JSON list.

    Raises TinypruneError if the options do not fit, results disagree or a library fails.
    """
    check_options(name, options)
    packages = (*BACKENDS[options.backend].packages, *options.peers)
    machine = describe_machine(options.threads, packages, gpu=options.on_device and name != "roofline")
    module = importlib.import_module(f"tinyprune.bench.benchmarks.{BENCHMARKS[name]}")
    measured = getattr(module, f"run_{name}")(options)
    if as_json:
        print_json([row | {"machine": machine} for row in rows] for rows in measured)
        return
    print(textwrap.fill(f"{name} on {machine}", 120, break_on_hyphens=False))
    for rows in measured:
        for row in rows:
            del row["benchmark"]  # the line above names it
        print(f"\n{text_table(rows)}", flush=True)


def print_json(measured: Iterator[list[Record]]) -> None:
    """Print a JSON list piece by piece. It is closed if an error or Ctrl-C ends the benchmark after some pieces."""
    before = "["
    try:
        for rows in measured:
            brackets_apart = json_table(rows)[1:-2]
            print(before + brackets_apart, end="", flush=True)
            before = ","
    finally:
        if before == ",":
            print("\n]")

"""`tinyprune bench` from its options to what it prints: check them, measure, print the records of each shape."""

from __future__ import annotations

import importlib
import importlib.util
import json
import shlex
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field

from tinyprune.bench import BENCHMARKS, PEERS
from tinyprune.bench.shapes import gguf_file, model_shape
from tinyprune.errors import MissingExtraError, UsageError, install_command, nearest
from tinyprune.io.tables import text_table
from tinyprune.kernels.backend import BACKENDS, default_backend
from tinyprune.kernels.machine import describe_machine, processors


@dataclass(frozen=True)
class Options:
    """The options of a benchmark: what is measured, beside whom, and how often."""

    backend: str = field(default_factory=default_backend)  # name of the backend that is measured
    peers: Sequence[str] = ()  # what it is compared with, from `PEERS`
    # names of models, see `shapes.py`; empty for the benchmark's own list
    shapes: Sequence[str] = ()
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
        if name != "generate" or gguf_file(shape) is None:
            model_shape(shape)
    check_names("peers", options.peers, PEERS)
    check_names("backend", [options.backend], BACKENDS)
    if "llama.cpp" in options.peers and name != "generate":
        raise UsageError(f"--peers llama.cpp is for the benchmark generate, got {name}")
    for peer in options.peers:
        module, _, library = PEERS[peer]
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"--peers {peer} needs {library}, which is not here: {install_command('peers')}")
    if (name == "roofline") != (options.backend == "cuda-emulated"):
        said = "the emulator counts for the benchmark roofline, --backend cuda-emulated"
        raise UsageError(f"{said}; its times say nothing")
    measurable = {"generate": ("numba", "numpy"), "breakdown": ("numba",)}.get(name, tuple(BACKENDS))
    if options.backend not in measurable:
        raise UsageError(f"--backend must be {' or '.join(measurable)} for {name}, got {options.backend}")
    if options.on_device:
        if problem := BACKENDS[options.backend].problem():
            raise UsageError(f"the cuda backend cannot run: {problem}")
        if "torch" in options.peers:
            from tinyprune.bench.torch_operations import torch_device

            torch_device(options.device)


def command_of(name: str, options: Options) -> str:
    """Return the command that measures this, as a user would write it."""
    words, usual = ["tinyprune", "bench", name], asdict(Options())
    for option, value in asdict(options).items():
        if value and value != usual[option]:
            words += [f"--{option}", value if isinstance(value, str | int) else ",".join(value)]
    return shlex.join(map(str, [*words, "--json"]))


def print_benchmark(name: str, options: Options, as_json: bool) -> None:
    """Run a benchmark, and print the records of each shape as soon as they are measured.

    As a table; `as_json` as lines of JSON, one a record, which also name the machine and the command.

    Raises TinypruneError if the options do not fit, results disagree or a library fails.
    """
    check_options(name, options)
    packages = (*BACKENDS[options.backend].packages, *(PEERS[peer][1] for peer in options.peers))
    machine = describe_machine(options.threads, packages, gpu=options.on_device and name != "roofline")
    module = importlib.import_module(f"tinyprune.bench.benchmarks.{BENCHMARKS[name]}")
    measured = getattr(module, f"run_{name}")(options)
    command = command_of(name, options)
    if not as_json:
        print(textwrap.fill(f"{name} on {machine}", 120, break_on_hyphens=False))
    for rows in measured:
        if as_json:
            lines = [json.dumps(row | {"machine": machine, "command": command}) for row in rows]
        else:  # the first line has the benchmark's name
            table = text_table([{key: x for key, x in row.items() if key != "benchmark"} for row in rows])
            lines = ["", *table.splitlines()]
        print(*lines, sep="\n", flush=True)
        if rows[0].get("rounds", options.rounds) < options.rounds:
            raise KeyboardInterrupt  # which ended a race after some rounds

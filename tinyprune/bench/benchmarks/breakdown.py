"""Breakdown: a training step against its own limit, operation by operation.

    limit = max(products, memory) + calls, or the measured time if that is less

- products: the multiply-adds that an operation cannot do without, at the speed of sgemm. Masked scores do not count;
  backward of attention computes the scores again, which counts.
- memory: each array that goes in or out, once, at the speed of a sum of large arrays, which no cache holds.
- calls: what the same operation takes in a step of the smallest model with as many layers: checks, Python, threads.

Beside it stands what the operation takes when half of the heads are closed, or removed. "between" is the time outside
of operations: the model's own Python code and freed memory.
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import Workload
from tinyprune.bench.backend_workloads import start_training
from tinyprune.bench.benchmarks.speed import LARGE, sgemm
from tinyprune.bench.command import Options
from tinyprune.bench.processes import OURS, Contender, library_process, prepare, take_turn
from tinyprune.bench.shapes import ModelShape, model_shape
from tinyprune.io.progress import say
from tinyprune.io.tables import Record
from tinyprune.kernels.backend import get_backend
from tinyprune.ops.attention import visible_keys
from tinyprune.ops.engine import Engine, Machine
from tinyprune.training.step import train_step

STEPS, WARM_UP = 30, 3
LARGE_ARRAY = 2**16, 1024  # float32 numbers, 256 MiB
BETWEEN = "between"
# of these numbers, those that a model has
SMALLEST = {"D": 8, "H": 1, "N": 1, "T": 1, "V": 2, "F": 1}


@dataclass
class Work:
    """Counts what an operation has to do in a step."""

    calls: int = 0
    flop: float = 0.0  # of products
    bytes: float = 0.0


def arrays_in(*values: Any) -> Iterator[NDArray]:
    """Find all arrays in values: tuples, lists, dictionaries and caches of operations."""
    for value in values:
        if isinstance(value, np.ndarray):
            yield value
        elif isinstance(value, dict):
            yield from arrays_in(*value.values())
        elif isinstance(value, (tuple, list)):
            yield from arrays_in(*value)


def moved_bytes(given: Any, result: Any) -> int:
    """Return the size of all arrays, those in the same memory once; 0 if the result is a view of what was given."""
    read, written = list(arrays_in(given)), list(arrays_in(result))
    if written and all(any(np.may_share_memory(x, y) for y in read) for x in written):
        return 0
    return sum({x.__array_interface__["data"][0]: x.nbytes for x in (*read, *written)}.values())


def attention_flop(arguments: tuple, options: dict[str, Any]) -> tuple[float, float]:
    """Return the operations of the products of attention, forward and backward, from a call of `attention_forward`.

    Forward has scores and values, and scores by position. Backward has the scores again and the gradients of weights,
    values, queries and keys; by position the scores again and the gradients of queries and position keys.
    """
    given = inspect.signature(Engine.attention_forward).bind(*arguments, **options).arguments
    q, k, r, pk, span = (given.get(name) for name in ("q", "k", "r", "pk", "span"))
    B, T, H, Dh = q.shape
    context = int(visible_keys(T, k.shape[1], span).sum())
    pairs = context + T * (0 if pk is None else pk.shape[1])
    by_position = 0 if r is None else context
    forward, backward = 2 * pairs + by_position, 5 * pairs + 3 * by_position
    return 2.0 * B * H * Dh * forward, 2.0 * B * H * Dh * backward


class Observer:
    """Counts what the operations of an engine do in the first step, and times each alone in later ones."""

    def __init__(self, engine: Engine) -> None:
        self.work: dict[str, Work] = defaultdict(Work)
        self.seconds: dict[str, float] = defaultdict(float)  # of a step
        self.counting = True
        self.inner = [0.0]  # seconds of the operations that each running operation has called
        found = {name: inspect.getattr_static(engine, name) for name in dir(engine) if name not in dir(Machine)}
        methods: dict[str, Any] = {"in_precision": lambda self, precision: self}
        for name, x in found.items():
            if isinstance(x, staticmethod):
                methods[name] = staticmethod(self.observed(name, x.__func__))
            elif inspect.isfunction(x):
                methods[name] = self.observed(name, x)
        self.engine: Engine = type("Observed", (type(engine),), methods)()

    def observed(self, name: str, operation: Callable) -> Callable:
        """Return the operation, observed."""

        def call(*arguments: Any, **options: Any) -> Any:
            self.inner.append(0.0)
            begin = time.perf_counter()
            result = operation(*arguments, **options)
            seconds = time.perf_counter() - begin
            self.seconds[name] += seconds - self.inner.pop()
            self.inner[-1] += seconds
            if self.counting:
                self.count(name, arguments, options, result)
            return result

        return call

    def count(self, name: str, arguments: tuple, options: dict[str, Any], result: Any) -> None:
        """Add what a call has to do to `work`; what attention's backward multiplies is known from its forward call."""
        self.work[name].calls += 1
        if name in ("matmul", "weight_gradient"):
            a, b = arguments[:2]
            self.work[name].flop += 2.0 * a.size * b.shape[-1]
        if name == "attention_forward":
            forward, backward = attention_flop(arguments, options)
            self.work[name].flop += forward
            self.work["attention_backward"].flop += backward
        if not any(isinstance(x, Engine) for x in arguments):  # a composition: its primitives move the arrays
            self.work[name].bytes += moved_bytes((arguments, options), result)


def step_seconds(backend: str, shape: ModelShape, half: str | None = None) -> tuple[dict[str, Work], dict[str, float]]:
    """Take steps; return what was counted in one, and the median seconds of each operation and of what is between."""
    observer = Observer(get_backend(backend))
    plain, watched = (start_training(ops, shape, half) for ops in (get_backend(backend), observer.engine))
    for training in (plain, watched):
        training.rng = np.random.default_rng(0)
    train_step(watched)
    observer.counting = False
    found: dict[str, list[float]] = defaultdict(list)
    for i in range(STEPS + WARM_UP):
        observer.seconds.clear()
        train_step(watched)
        seconds = dict(observer.seconds)
        begin = time.perf_counter()
        train_step(plain)  # nobody looks at this one
        # a busy machine may slow down only one of the two
        seconds[BETWEEN] = max(time.perf_counter() - begin - sum(seconds.values()), 0.0)
        if i >= WARM_UP:
            for name, value in seconds.items():
                found[name].append(value)
    return observer.work, {name: statistics.median(values) for name, values in found.items()}


def bytes_per_second(ops: Engine) -> float:
    """Measure how fast the engine's sum of an array and itself reads and writes memory."""
    a = np.ones(LARGE_ARRAY, np.float32)
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        ops.add(a, a)
        times.append(time.perf_counter() - begin)
    return 2 * a.nbytes / min(times)


def measure(backend: str, name: str) -> Workload:
    """Measure in this process: for each operation the numbers that `records` reads."""

    def results() -> dict[str, NDArray]:
        shape = model_shape(name)
        config = shape.config
        small = {key: n for key, n in SMALLEST.items() if getattr(config, key)}
        smallest = replace(config, **small, M=min(config.M, 1), heads=(), head_ids=())
        work, seconds = step_seconds(backend, shape)
        halves = [step_seconds(backend, shape, half)[1] for half in ("closed", "removed")]
        _, calls = step_seconds(backend, ModelShape(name, smallest, 1))
        bandwidth = bytes_per_second(get_backend(backend))
        found = {}
        for key in sorted(seconds.keys() | halves[0].keys()):
            done, half_seconds = work.get(key, Work(1)), [half.get(key, 0.0) for half in halves]
            times = (seconds.get(key, 0.0), done.bytes / bandwidth, calls.get(key, 0.0), *half_seconds)
            found[key] = np.array([done.calls, done.flop, *times])
        return found

    return Workload(lambda: None, results)


def run_breakdown(options: Options) -> Iterator[list[Record]]:
    """`tinyprune bench breakdown`: a record for each operation, in ms a step, slowest first, and one for all."""
    with library_process("numpy", options.threads) as ask:
        yardstick = sgemm()
        ask(prepare, yardstick)
        seconds = sorted(ask(take_turn, yardstick) for _ in range(options.rounds))
    speed = 2 * LARGE**3 / statistics.median(seconds)
    for name in options.shapes or ("tiny", "relative-d128"):
        say(f"breakdown {name}: {4 * (STEPS + WARM_UP)} steps")
        arguments = {"backend": options.backend, "name": name}
        ours = Contender(options.subject, OURS, f"{__name__}:measure", arguments, 0.0, 0.0)
        with library_process(OURS, options.threads) as ask:
            yield records(name, ask(prepare, ours), speed)


def records(shape: str, operations: dict[str, NDArray], speed: float) -> list[Record]:
    """Make the records of one shape from the results of `measure` and sgemm's operations a second."""
    rows = []
    for name, (calls, flop, seconds, memory, small, closed, removed) in operations.items():
        limit = min(seconds, max(flop / speed, memory) + small)
        rows.append(
            (name, int(calls), *(1e3 * x for x in (seconds, flop / speed, memory, small, limit, closed, removed)))
        )
    rows.sort(key=lambda row: -row[2])
    rows.insert(0, ("all", *(sum(row[i] for row in rows) for i in range(1, 9))))
    names = ("operation", "calls", "ms", "products_ms", "memory_ms", "calls_ms", "limit_ms", "closed_ms", "removed_ms")
    return [{"benchmark": "breakdown", "shape": shape} | dict(zip(names, row, strict=True)) for row in rows]

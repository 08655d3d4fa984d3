"""A training step against its own limit, operation by operation.

    limit = max(products + exponentials, memory) + calls

- products: the multiply-adds that an operation cannot do without, at the speed of sgemm. Masked scores do not count;
  backward of attention computes the scores again, which counts.
- exponentials: those of softmaxes, at the speed of a loop that computes nothing else.
- memory: each array that goes in or out, once, at the speed of `add` on arrays that together are as large as all that
  the step keeps. Products and exponentials share the processor's vector units; memory can be waited for meanwhile.
- calls: what the same operation takes in a step of the smallest model with as many layers: checks, Python, threads.

All limits but the last are of all threads together, and measured in the same run. "between" is the time outside of
operations: the model's own Python code, and freed memory.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.bench import Workload
from tinyprune.bench.backend_workloads import step_workload
from tinyprune.bench.benchmarks.speed import STEP_ROUNDS, our_step, sgemm, with_share
from tinyprune.bench.command import Options
from tinyprune.bench.processes import Processes
from tinyprune.bench.race import OURS, Case, race
from tinyprune.bench.shapes import STEP_SHAPES, ModelShape, model_shape
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu.workspace import POOL
from tinyprune.model.parameters import parameter_shapes
from tinyprune.ops import __all__ as OPERATIONS
from tinyprune.ops.attention import visible_keys
from tinyprune.ops.engine import Engine
from tinyprune.tables import Record

STEPS, WARM_UP = 30, 3
COLUMNS = ("operation", "calls", "median_ms", "products_ms", "exponentials_ms", "memory_ms", "calls_ms", "limit_ms")
BETWEEN = "between"
IN_PLACE = {"adamw_updates": 7 / 4}  # reads four arrays, and writes three of them again
SMALLEST = {"D": 8, "H": 1, "N": 1, "T": 1, "V": 2, "F": 1}  # of these numbers, those that a model has


@dataclass
class Work:
    """What an operation has to do in a step."""

    calls: int = 0
    operations: float = 0.0  # of products
    exponentials: float = 0.0
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


def attention_work(q: NDArray, k: NDArray, r: NDArray | None, pk: NDArray | None, span: int | None) -> list[tuple]:
    """Return the operations and exponentials of attention's forward and backward."""
    B, T, H, Dh = q.shape
    context = int(visible_keys(T, k.shape[1], span).sum())
    every = context + T * (0 if pk is None else pk.shape[1])
    positions = 0 if r is None else context
    product = 2 * B * H * Dh  # for each pair of a query and a key
    # forward: scores, values; backward: scores, and the gradients of weights, values, queries and keys
    forward, backward = 2 * every + positions, 5 * every + 3 * positions
    return [(product * forward, B * H * every), (product * backward, B * H * every)]


def work_of(name: str, arguments: tuple, options: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return operations and exponentials of a call, and of the backward call that follows a forward one, by name."""
    operation, _, direction = name.rpartition("_")
    if direction != "forward":
        return {}
    both = [(0.0, 0.0)] * 2
    if operation == "attention":
        named = dict(zip(("q", "k", "v", "r", "u", "w", "pk"), arguments, strict=False)) | options
        both = attention_work(*(named.get(key) for key in ("q", "k", "r", "pk", "span")))
    elif operation == "cross_entropy":
        both = [(0.0, arguments[0].size), (0.0, 0.0)]
    elif operation in ("linear", "projections", "feedforward", "head_networks"):
        x, *parameters = arguments
        rows = x.size // x.shape[-1]
        queries = x.shape[0] * arguments[4] if operation == "projections" else rows  # only these have queries
        matrices = 3 if operation == "head_networks" else 2  # axes of what multiplies the rows
        weights = [W.size for W in parameters if isinstance(W, np.ndarray) and W.ndim == matrices]
        product = 2.0 * (queries * weights[0] + rows * sum(weights[1:]))
        both = [(product, 0.0), ((1 if options.get("frozen") else 2) * product, 0.0)]
    return {f"{operation}_forward": both[0], f"{operation}_backward": both[1]}


class Observed:
    """A backend whose operations are counted in the first step, and timed in later ones."""

    def __init__(self, ops: Engine) -> None:
        self.ops = ops
        self.work: dict[str, Work] = defaultdict(Work)
        self.seconds: dict[str, float] = defaultdict(float)  # of a step
        self.counting = True
        self.most_bytes = 0  # that arrays occupied at once, but for the parameters and what belongs to them
        for name in OPERATIONS:
            operation = getattr(ops, name, None)
            if callable(operation) and not isinstance(operation, type):
                setattr(ops, name, self.observe(name, operation))

    def observe(self, name: str, operation: Callable) -> Callable:
        """Return the operation, observed."""

        def call(*arguments: Any, **options: Any) -> Any:
            begin = time.perf_counter()
            result = operation(*arguments, **options)
            self.seconds[name] += time.perf_counter() - begin
            if self.counting:
                self.count(name, arguments, options, result)
            return result

        return call

    def count(self, name: str, arguments: tuple, options: dict[str, Any], result: Any) -> None:
        """Add what a call has to do to `work`."""
        self.most_bytes = max(self.most_bytes, POOL.bytes_used)
        self.work[name].calls += 1
        self.work[name].bytes += moved_bytes((arguments, options), result) * IN_PLACE.get(name, 1)
        for other, (operations, exponentials) in work_of(name, arguments, options).items():
            self.work[other].operations += operations
            self.work[other].exponentials += exponentials


def take_steps(backend: str, shape: ModelShape) -> tuple[Observed, dict[str, float]]:
    """Take steps; return what was counted in one, and the median seconds of each operation and of what is between."""
    plain = step_workload(get_backend(backend), shape)
    observed = Observed(get_backend(backend))
    step = step_workload(observed.ops, shape)
    step.run()
    observed.counting = False
    found: dict[str, list[float]] = defaultdict(list)
    for i in range(STEPS + WARM_UP):
        observed.seconds.clear()
        step.run()
        seconds = dict(observed.seconds)
        begin = time.perf_counter()
        plain.run()  # nobody looks at this one
        seconds[BETWEEN] = time.perf_counter() - begin - sum(seconds.values())
        if i >= WARM_UP:
            for name, value in seconds.items():
                found[name].append(value)
    return observed, {name: statistics.median(values) for name, values in found.items()}


def exponentials_per_second(threads: int) -> float:
    """Measure how many exponentials all threads compute in a loop that reads, computes and sums."""
    from numba import prange

    from tinyprune.kernels.cpu.jit import parallel_kernel
    from tinyprune.kernels.cpu.simd import add, broadcast, exp2, lanes, load, store

    @parallel_kernel
    def loop(x, threads, rounds):
        n = x.size // threads
        for thread in prange(threads):
            total = broadcast(x, 0.0)
            for _ in range(rounds):
                for i in range(thread * n, (thread + 1) * n, lanes(x)):
                    total = add(total, exp2(load(x, i)))
            store(x, thread * n, total)

    rounds, n = 1000, 1024  # 4 KiB a thread
    return rounds * n * threads / seconds_of(lambda: loop(np.full(n * threads, -1, np.float32), threads, rounds))


def bytes_per_second(size: int) -> float:
    """Measure how fast `add` reads and writes three arrays that together have so many bytes."""
    from tinyprune.kernels.cpu.add import add_all

    a, b, out = (np.ones(max(size // 12, 1), np.float32) for _ in range(3))
    return 3 * a.nbytes / seconds_of(lambda: add_all(a, b, out))


def seconds_of(run: Callable[[], Any], times: int = 20) -> float:
    """Return the median seconds of a run."""
    run()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def measure(backend: str, threads: int, **shape: Any) -> Workload:
    """Measure in this process; six numbers for each operation, see `records`."""

    def results() -> dict[str, NDArray]:
        measured = model_shape(**shape)
        config = measured.config
        small = {name: n for name, n in SMALLEST.items() if getattr(config, name)}
        smallest = replace(config, **small, M=min(config.M, 1), heads=(), head_ids=())
        observed, seconds = take_steps(backend, measured)
        _, calls = take_steps(backend, ModelShape(measured.name, smallest, 1))
        kept = 4 * 4 * sum(map(math.prod, parameter_shapes(config).values()))  # parameters, gradients, two moments
        speeds = exponentials_per_second(threads), bytes_per_second(kept + observed.most_bytes)
        return {
            name: np.array([w.calls, s, w.operations, w.exponentials / speeds[0], w.bytes / speeds[1], calls[name]])
            for name, s in seconds.items()
            for w in [observed.work.get(name, Work(1))]
        }

    return Workload(lambda: None, results)


def run_breakdown(options: Options) -> list[Record]:
    """`tinyprune bench breakdown`: a record for each operation, in ms a step, slowest first, and one for all."""
    found = []
    for name in options.shapes or STEP_SHAPES:
        contenders = (our_step(options, name=name), *sgemm(options))
        rows = with_share(
            race("breakdown", [Case(name, contenders)], rounds=options.rounds or STEP_ROUNDS, threads=options.threads)
        )
        ours = rows[0]
        speed = ours["gflops"] / ours["sgemm_share"] * 1e9
        with Processes(options.threads) as processes, tempfile.TemporaryDirectory() as directory:
            path = str(Path(directory) / "results.npz")
            arguments = {"backend": options.backend, "threads": options.threads, "name": name}
            processes.ask(OURS, "build", key="", target=f"{__name__}:measure", arguments=arguments)
            processes.ask(OURS, "results", key="", path=path)
            with np.load(path) as file:
                operations = dict(file)
        found += records(name, operations, speed)
    return found


def records(shape: str, operations: dict[str, NDArray], speed: float) -> list[Record]:
    """Make the records of one shape from the results of `measure` and sgemm's operations a second."""
    rows = []
    for name, (calls, seconds, products, exponentials, moved, small) in operations.items():
        limit = max(products / speed + exponentials, moved) + small
        numbers = (seconds, products / speed, exponentials, moved, small, limit)
        rows.append((name, int(calls), *(1e3 * number for number in numbers)))
    rows.sort(key=lambda row: -row[2])
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 8))))
    return [
        {"benchmark": "breakdown", "shape": shape}
        | dict(zip(COLUMNS, row, strict=True))
        | {"limit_share": row[-1] / row[2]}
        for row in rows
    ]

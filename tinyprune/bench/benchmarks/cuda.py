"""The CUDA kernels: what the compiler makes of them, or how near they come to the GPU's limits.

    tinyprune bench cuda --compile-only      no GPU needed, see `tinyprune.bench.kernel_resources`
    tinyprune bench cuda --host              no GPU needed, see `tinyprune.bench.host`
    tinyprune bench cuda                     on a GPU

On a GPU, every operation that training spends its time in runs over and over at a model's shapes. It is compared with
two limits that are measured beside it, by kernels that do one thing only (`tinyprune.bench.limits`): how many
bytes a second the GPU copies, and how many multiply-adds it computes in registers. `copy_share` and
`multiply_add_share` are the operation's own speed over these. The larger of the two is what limits it; if both are
small, that is the kernel itself, or launches that take longer than the work. Bytes are the least that has to be moved,
with every argument read once and every result written once; for small arrays, which stay in the second-level cache, the
share may exceed 1. Operations are nominal, as in `shapes.py`. (With --backend cuda-tf32 products are computed by tensor
cores, which are faster than any multiply-adds in registers.)

Products are shown beside cuBLAS if a PyTorch for CUDA is installed: its `ratio_to_subject` is our share of its speed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

from tinyprune.bench.benchmarks.speed import attention_contenders, matmul_case, our_contender, products
from tinyprune.bench.command import Options, torch_without_gpu
from tinyprune.bench.host import ROUNDS as HOST_ROUNDS
from tinyprune.bench.host import SHAPES as HOST_SHAPES
from tinyprune.bench.host import host_records
from tinyprune.bench.kernel_resources import compiled_records
from tinyprune.bench.race import Case, race
from tinyprune.bench.shapes import PAPER, attention_arguments, model_shape
from tinyprune.model.parameters import parameter_shapes
from tinyprune.tables import Record

ROUNDS = 9
SHAPES = ("small", PAPER)
COPY, MULTIPLY_ADD = "limit: copy", "limit: multiply-add"
COPIED = 2**26  # entries of 4 bytes: more than a second-level cache holds
BUSY = {"threads": 2**20, "steps": 2**13}


class Measured(NamedTuple):
    """A case, and how many bytes it has to move at least."""

    case: Case
    bytes: float


def operation(options: Options, shape: str, work: str, moved: float, flop: float, /, **arguments: Any) -> Measured:
    """One of the operations in `backend_workloads`, which moves so many entries of 4 bytes."""
    return Measured(Case(shape, (our_contender(options, work, flop / 1e9, **arguments),)), 4 * moved)


def attention(options: Options, name: str) -> Measured:
    """Forward reads its inputs and writes out; backward reads inputs, out and dout, and writes gradients."""
    arrays, out = attention_arguments(model_shape(name))
    entries = 3 * sum(x.size for x in arrays.values()) + 3 * out.size
    return Measured(Case(f"attention {name}", attention_contenders(replace(options, peers=()), name=name)), 4 * entries)


def single_operations(options: Options, name: str) -> list[Measured]:
    """Return the others of a training step, forward and backward, with the operations of their formulas."""
    shape = model_shape(name)
    c, B = shape.config, shape.B
    R, T, D, V = B * (c.M + c.T), B * c.T, c.D, c.V
    P = sum(math.prod(size) for size in parameter_shapes(c).values())

    def one(work: str, size: str, entries: int, flop: int, /, **arguments: Any) -> Measured:
        return operation(options, f"{work} {name}, {size}", work, entries, flop, **arguments)

    return [
        # x → out; dout, x → dx. For each entry 8 operations, then 13 for dx, 5 for dscale and dbias
        one("layernorm", f"{R}×{D}", 5 * R * D, 26 * R * D, rows=R, D=D),
        # logits → log p; log p → dlogits. Maximum, difference, exp, sum, difference; exp, product
        one("cross_entropy", f"{T}×{V}", 4 * T * V, 7 * T * V, rows=T, V=V),
        # rows of the table → out; dout → the table's gradient
        one("embedding", f"{T} of {V}×{D}", 3 * T * D + V * D, 3 * T * D, tokens=T, V=V, D=D),
        # parameter, gradient and both averages → all of these but the gradient
        one("adamw", f"{P} parameters", 7 * P, 16 * P, name=name),
    ]


def with_shares(rows: list[Record], moved: dict[str, float]) -> list[Record]:
    """The records with the speed at which they move bytes, and both speeds over the limits', which are among them."""
    rows = [row | {"gbytes_per_second": 1e-6 * moved[row["shape"]] / row["median_ms"]} for row in rows]
    by_shape = {row["shape"]: row for row in rows}
    bandwidth, rate = by_shape[COPY]["gbytes_per_second"], by_shape[MULTIPLY_ADD]["gflops"]
    return [
        row | {"copy_share": row["gbytes_per_second"] / bandwidth, "multiply_add_share": row["gflops"] / rate}
        for row in rows
    ]


def all_cases(options: Options) -> list[Measured]:
    """Return the GPU's limits; the products of the models' linear layers, beside cuBLAS; their other operations."""
    names = options.shapes or SHAPES
    found = [
        operation(options, COPY, "copy", 2 * COPIED, 0, entries=COPIED),
        operation(options, MULTIPLY_ADD, "multiply_adds", 0, 2 * math.prod(BUSY.values()), **BUSY),
    ]
    for m, k, n, layout in products(names):
        case = matmul_case((m, k, n, layout), options)
        found.append(Measured(replace(case, shape=f"matmul {case.shape}"), 4 * (m * k + k * n + m * n)))
    for name in names:
        found += [attention(options, name), *single_operations(options, name)]
    return found


def run_cuda(options: Options) -> list[Record]:
    """`tinyprune bench cuda`."""
    if options.compile_only:
        return compiled_records()
    if options.host:
        return host_records(options.shapes or HOST_SHAPES, options.rounds or HOST_ROUNDS)
    options = replace(options, peers=() if torch_without_gpu() else ("torch",))
    cases = all_cases(options)
    rounds = options.rounds or ROUNDS
    rows = race("cuda", [one.case for one in cases], rounds=rounds, threads=options.threads)
    return with_shares(rows, {one.case.shape: one.bytes for one in cases})

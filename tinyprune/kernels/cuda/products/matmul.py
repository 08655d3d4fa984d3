"""Matrix product: op(a) · op(b) + bias + residual, where op transposes or not, or the positive part of that.

    for i, j, k: out[i, j] += a[i, k] · b[k, j]

This module checks the arguments, works out where rows lie in memory, and chooses the kernel, from `product` or
`few_rows`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import NamedTuple

from tinyprune.errors import UsageError
from tinyprune.kernels.cuda.device.array import DeviceArray, empty
from tinyprune.kernels.cuda.device.jit import blocks
from tinyprune.kernels.cuda.device.many import Launch, laid_out, launch_all
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import contiguous, copied
from tinyprune.kernels.cuda.products.arithmetic import (
    ALIGNED_A,
    ALIGNED_B,
    ALIGNED_OUT,
    BIAS,
    RELU,
    RESIDUAL,
    STRIP,
    THREADS,
    WHERE,
    Sizes,
    Strides,
)
from tinyprune.kernels.cuda.products.few_rows import FEW, FEW_ROWS, WIDE
from tinyprune.kernels.cuda.products.product import ARITHMETICS, PRODUCTS, TILES, join
from tinyprune.kernels.cuda.products.tensor_cores import check_tensor_cores

BLOCKS = 256  # about as many as run at once on the largest GPUs: two on each of 132 multiprocessors
ENOUGH = 128  # blocks; with so many, smaller tiles are not worthwhile
SHORTEST = 256  # numbers along k that are worth a slot of their own


class Form(NamedTuple):
    """A plan needs to know this much of an array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in entries
    first: int  # where it begins in its block of memory, modulo 4


class Rows(NamedTuple):
    """Where the rows of a matrix lie: row i of group g begins at entry g · group + i · row."""

    groups: int
    group: int
    row: int

    @property
    def strides(self) -> Strides:
        """Return them as a kernel gets them."""
        return Strides(self.group, self.row)

    def regrouped(self, groups: int, rows: int) -> "Rows":
        """Split rows that are all in one group into so many groups."""
        return Rows(groups, rows // groups * self.row, self.row) if self.groups == 1 < groups else self

    def aligned(self, first: int) -> bool:
        """Return whether all begin on a multiple of 4, the first at `first`. (A group is a number of rows long.)"""
        return not (first % 4 or self.row % 4)


class Plan(NamedTuple):
    """How to compute a product of arrays of certain forms."""

    shape: tuple[int, ...]
    kernel: tuple[int, bool, bool] | bool  # key in PRODUCTS, without the precision, or in FEW_ROWS
    grid: tuple[int, ...]  # (blocks along x, y, z)
    numbers: tuple[Sizes | Strides | int, ...]  # for the kernel
    parts: int  # of the sum along k
    join_numbers: tuple[Strides | int, ...]  # for `join`, where there are several


class Ready(NamedTuple):
    """A product whose arguments have been checked."""

    a: DeviceArray
    b: DeviceArray
    bias: DeviceArray | None
    residual: DeviceArray | None
    out: DeviceArray
    plan: Plan


def form(x: DeviceArray) -> Form:
    """Describe an array."""
    return Form(x.shape, x.strides, x.first % 4)


@lru_cache(maxsize=4096)
def rows_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> Rows | None:
    """Return the rows of an array (..., columns), or None if its rows are not contiguous or not evenly spaced."""
    *lead, columns = shape
    if columns > 1 and strides[-1] != 1:
        return None
    axes: list[tuple[int, int]] = []
    for n, stride in zip(lead, strides, strict=False):
        if n > 1:
            # an axis that only continues the one before it is no axis of its own
            before = axes.pop()[0] if axes and axes[-1][1] == n * stride else 1
            axes.append((before * n, stride))
    if len(axes) == 2:
        (groups, group), (_, row) = axes
        return Rows(groups, group, row)
    return Rows(1, 0, axes[0][1] if axes else columns) if len(axes) < 2 else None


def as_it_lies(x: DeviceArray, transpose: bool) -> tuple[DeviceArray, bool]:
    """Return an array whose rows a kernel can read, and whether to transpose it.

    A transposed view becomes its matrix, to be transposed once more. Other views are copied.
    """
    if rows_of(x.shape, x.strides):
        return x, transpose
    if x.ndim == 2 and rows_of(x.shape[::-1], x.strides[::-1]):
        return x.T, not transpose
    return copied(x), transpose


@lru_cache(maxsize=4096)
def fitting(a: tuple[int, ...], transpose_a: bool, b: tuple[int, ...], transpose_b: bool) -> tuple[int, ...]:
    """Return the shape of the product of arrays of these shapes. Raises ValueError if they do not fit."""
    misfit = ValueError(
        f"the columns of a must be as many as the rows of b, got a {a}{', transposed,' * transpose_a} and "
        f"b {b}{', transposed' * transpose_b}"
    )
    if len(a) < 2 or len(b) < 2 or (transpose_b and len(b) > 2):
        raise misfit
    lead, along_k = (a[-1:], a[:-1]) if transpose_a else (a[:-1], a[-1:])
    if along_k != (b[1:] if transpose_b else b[:-1]):
        raise misfit
    return (*lead, b[0] if transpose_b else b[-1])


@lru_cache(maxsize=4096)
def plan(
    a: Form, transpose_a: bool, b: Form, transpose_b: bool, finish: int, out: Form, split: bool = True
) -> Plan | None:
    """Plan a product of checked arguments, once for many calls. Returns None if `a` has to be copied first.

    a, b: with rows that kernels can read, not both to be transposed.   out: with rows as well; the residual is alike.
    """
    N = out.shape[-1]
    M = math.prod(out.shape[:-1])
    K = math.prod(a.shape[:-1]) if transpose_a else a.shape[-1]
    x, y, c = (rows_of(z.shape, z.strides) for z in (a, b, out))
    # Two matrices whose rows are read side by side need the same groups; if one has them, the other is split likewise.
    rows, walked = (K, (x, y)) if transpose_a else (M, (x, c))
    groups = max(z.groups for z in walked)
    walked = [z.regrouped(groups, rows) for z in walked]
    if {z.groups for z in walked} != {groups}:
        return None
    x, (y, c) = walked[0], (walked[1], c) if transpose_a else (y, walked[1])
    per = max(rows // groups, 1)
    if M <= FEW and groups == 1 and not transpose_a:
        return Plan(out.shape, transpose_b, (blocks(N, WIDE), M), (N, K, x.row, y.row, c.row, finish), 1, ())
    tile, parts = division(M, N, K, whole=split and not transpose_a)
    parts = parts if split else 1
    depth = STRIP // tile
    part = max(blocks(K, parts * depth), 1) * depth
    parts = max(blocks(K, part), 1)
    join_numbers = ()
    if parts > 1:
        join_numbers = (parts, M, N, M if transpose_a else per, c.strides, finish)
        c, finish, out = Rows(1, 0, N).regrouped(groups, M), 0, out._replace(first=0)  # of the slots
    aligned = ALIGNED_A * x.aligned(a.first) | ALIGNED_B * y.aligned(b.first) | ALIGNED_OUT * c.aligned(out.first)
    numbers = (Sizes(M, N, K, part, per), x.strides, y.strides, c.strides, finish, aligned)
    grid = (blocks(N, tile), blocks(M, tile), parts)
    return Plan(out.shape, (tile, not transpose_a, transpose_b), grid, numbers, parts, join_numbers)


def division(M: int, N: int, K: int, whole: bool = False) -> tuple[int, int]:
    """Choose the size of tile, and the parts of the sum along k, from the shapes alone: so results are reproducible.

    whole: whether small tiles are better than parts, which take another launch, and memory.
    """
    for tile in TILES:
        if whole and blocks(M, tile) * blocks(N, tile) >= ENOUGH:
            return tile, 1
    for tile in TILES:
        tiles = blocks(M, tile) * blocks(N, tile)
        parts = max(min(BLOCKS // max(tiles, 1), K // SHORTEST), 1)
        if tiles * parts >= ENOUGH:
            break
    return tile, parts


def check_out(out: DeviceArray, residual: DeviceArray | None, **read: DeviceArray) -> None:
    """Raise ValueError unless a product can be written to `out` while these are read."""
    if rows_of(out.shape, out.strides) is None:
        raise ValueError(f"out must consist of rows of numbers side by side, got strides {out.strides}")
    if residual is not None and form(residual) != form(out):
        raise ValueError("where out is given, residual must be out itself, or lie in memory as it does")
    if residual is not None and residual.first != out.first:
        read["residual"] = residual
    for name, x in read.items():
        # whether they overlap
        if x.lease is out.lease and x.first < out.first + out.span and out.first < x.first + x.span:
            raise ValueError(f"out must not lie in the memory of {name}, which is read while out is written")
    if out.lease.read_later:
        out.lease.read_later()


def check_precision(precision: str) -> None:
    """Raise UsageError unless products can be computed in this precision."""
    if precision not in ARITHMETICS:
        raise UsageError(f"precision must be one of {', '.join(ARITHMETICS)}; got {precision!r}")
    if precision == "tf32":
        check_tensor_cores()


def matmul(
    a: DeviceArray,
    b: DeviceArray,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: DeviceArray | None = None,
    residual: DeviceArray | None = None,
    relu: bool = False,
    where: DeviceArray | None = None,
    out: DeviceArray | None = None,
    precision: str = "float32",
) -> DeviceArray:
    """Compute op(a) · op(b) + bias + residual, or the positive part of that.

    Args:
        a: (M, K), or (K, M) with `transpose_a`. More axes, (..., K) or (..., M), mean the matrix of all rows. Rows at
            equal distances, in groups or not, are read in place, and so are those of a transposed view.
        b: (K, N), or (N, K) with `transpose_b`; (..., N), if `a` is (..., M) of more axes and transposed.
        bias: (N,), added to each row.
        residual: shape of `out`; may be `out` itself, to accumulate.
        relu: whether the result is max(…, 0); NaN stays.
        where: shape of `out`, instead of a residual: the result is multiplied by 1 where this is positive, else by 0.
        out: rows for the result, (M, N) or (..., N), that share no memory with another argument, except that
            `residual` may be `out` itself. None for a new array.
        precision: "float32", or "tf32" for tensor cores, see `tensor_cores`; sums are float32 either way. Few rows are
            always multiplied in float32, since there the time goes into reading.

    Returns:
        out.

    Raises:
        ValueError: if shapes do not fit together, an array is not float32, or `out` does not consist of rows or shares
            memory with an argument that is still to be read.
        UsageError: if the precision does not exist, or not on this GPU.
    """
    check_precision(precision)
    a, b, bias, residual, out, p = ready(a, b, transpose_a, transpose_b, bias, residual, relu, where, out)
    if isinstance(p.kernel, bool):
        FEW_ROWS[p.kernel](p.grid, a, b, bias, residual, out, *p.numbers)
    elif p.parts == 1:
        PRODUCTS[precision, *p.kernel][0](p.grid, a, b, bias, residual, out, *p.numbers)
    else:
        slots = empty((p.parts, *out.shape))
        PRODUCTS[precision, *p.kernel][0](p.grid, a, b, None, None, slots, *p.numbers)
        join(blocks(out.size, THREADS), slots, bias, residual, out, *p.join_numbers)
    return out


def ready(
    a: DeviceArray,
    b: DeviceArray,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: DeviceArray | None = None,
    residual: DeviceArray | None = None,
    relu: bool = False,
    where: DeviceArray | None = None,
    out: DeviceArray | None = None,
    split: bool = True,
) -> Ready:
    """Check the arguments of `matmul` and plan the product. split: whether its sums may be."""
    given = ("bias", bias), ("residual", residual), ("where", where), ("out", out)
    others = {name: x for name, x in given if x is not None}
    check_floats(a=a, b=b, **others)
    shape = fitting(a.shape, transpose_a, b.shape, transpose_b)
    for name, x in others.items():
        wanted = shape[-1:] if name == "bias" else shape
        if x.shape != wanted:
            raise ValueError(f"{name} must have shape {wanted} to match the product, got {x.shape}")
    finish = BIAS * (bias is not None) | RESIDUAL * (residual is not None) | WHERE * (where is not None) | RELU * relu
    bias, residual = None if bias is None else contiguous(bias), residual if where is None else where
    if out is not None:
        check_out(out, residual, a=a, b=b, **({} if bias is None else {"bias": bias}))
    else:
        out = empty(shape)
        residual = None if residual is None else contiguous(residual)
    a, transpose_a = as_it_lies(a, transpose_a)
    b, transpose_b = as_it_lies(b, transpose_b)
    if transpose_a and transpose_b:
        a, transpose_a = copied(a.T), False
    options = transpose_a, form(b), transpose_b, finish, form(out), split
    p = plan(form(a), *options)
    if p is None:
        a = copied(a)
        p = plan(form(a), *options)
    return Ready(a, b, bias, residual, out, p)


def linear_maps(
    maps: Sequence[tuple[DeviceArray, DeviceArray, DeviceArray | None]], precision: str = "float32"
) -> list[DeviceArray]:
    """Compute a · b + bias for each triple, like `matmul`: in one launch if the kernel is the same and takes several.

    No sum is split: together they have blocks enough.
    """
    check_precision(precision)
    products = [ready(a, b, bias=bias, split=False) for a, b, bias in maps]
    kernels = {product.plan.kernel for product in products}
    key = kernels.pop()
    if kernels or isinstance(key, bool) or PRODUCTS[precision, *key][1] is None:
        return [matmul(a, b, bias=bias, precision=precision) for a, b, bias in maps]
    launch_all([together((precision, *key), products)])
    return [product.out for product in products]


def together(key: tuple, products: Sequence[Ready]) -> Launch:
    """Plan one launch for several products; key: in PRODUCTS."""
    size, table = table_of_plans(tuple(product.plan for product in products))
    arrays = [x for p in products for x in (p.a, p.b, p.a if p.bias is None else p.bias, p.out)]
    return Launch(PRODUCTS[key][1], table, len(products), size, arrays)


@lru_cache(maxsize=256)
def table_of_plans(plans: tuple[Plan, ...]) -> tuple[int, DeviceArray]:
    """Return how many blocks these products take, and the table for the kernel."""
    numbers = ([n if isinstance(n, tuple) else (n,) for n in p.numbers] for p in plans)
    return laid_out([(math.prod(p.grid), *p.grid[:2], *chain(*some)) for p, some in zip(plans, numbers, strict=True)])

"""Matrix product: op(a) · b + bias, into a new array or added to an existing one; op transposes or not.

    for i, j, k: out[i, j] += a[i, k] · b[k, j]

This is the entry point: `plan` checks arguments and finds where rows lie in memory, once for all arrays of the same
shapes, strides and dtype, and `compute` runs a kernel of `product` on flat views of that memory.
"""

import math
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import get_num_threads
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, contiguous
from tinyprune.kernels.cpu.dots import MOST_ROWS
from tinyprune.kernels.cpu.product import (
    BLOCK,
    DEPTH,
    DOTS,
    MIN_ROWS_TO_PACK,
    MIN_WORK_PER_THREAD,
    PACKED,
    ROWS,
    UNPACKED,
    alone,
    shared,
)
from tinyprune.kernels.cpu.simd import VECTOR_BYTES
from tinyprune.kernels.rows import Rows, in_groups, rows_of

WHOLE, COPY = -1, 0  # values of `Layout.span`: the array has no gaps in memory; it has to be copied first


class Form(NamedTuple):
    """A plan depends on these values of an array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in bytes
    dtype: np.dtype
    behaved: bool  # writeable and aligned


def form(x: NDArray) -> tuple:
    """Return the `Form` of an array as a plain tuple, which is made and hashed in half the time."""
    return x.shape, x.strides, x.dtype, x.flags.behaved


class Layout(NamedTuple):
    """Where the rows of a matrix lie, and how much memory that takes."""

    span: int  # entries from the first to the last, gaps included; or WHOLE or COPY
    rows: Rows


def layout(x: Form) -> Layout:
    """Find the layout of the rows of an array (..., columns)."""
    *lead, columns = x.shape
    item, rows = x.dtype.itemsize, math.prod(lead)
    copied = Layout(COPY, Rows(1, 0, columns))
    # to Numba a read-only or unaligned array has another type, for which it would compile again
    if not x.behaved or any(stride % item or stride < 0 for stride in x.strides):
        return copied
    found = rows_of(x.shape, tuple(stride // item for stride in x.strides))
    # Groups need two axes. Of three or more, different ones could be merged in the matrices of one product.
    if found is None or (found.groups > 1 and len(lead) > 2):
        return copied
    if found == Rows(1, 0, columns):
        return Layout(WHOLE, found)
    return Layout((found.groups - 1) * found.group + (rows // found.groups - 1) * found.row + columns, found)


def transposed(x: Form) -> Form:
    """Return the form of the transposed view of a matrix."""
    return x._replace(shape=x.shape[::-1], strides=x.strides[::-1])


class Plan(NamedTuple):
    """How a product of arrays of certain forms is computed."""

    shape: tuple[int, ...]  # of the result
    spans: tuple[int, int, int, int]  # of a, b, out, bias: see Layout
    steps: tuple[tuple[int, ...], ...]  # distances in a, b, out, residual, and sizes: see `product`
    work: int  # multiply-adds
    scratch: int  # numbers, for each thread
    nothing: NDArray  # passed for a missing array
    kernels: tuple[Callable, Callable]  # for one thread and for several


@lru_cache(maxsize=4096)
def plan(a: tuple, transpose_a: bool, b: tuple, bias: tuple | None, onto: tuple | None, precision: str) -> Plan:
    """Check the arguments of a product by their forms and plan it, once for many calls.

    Raises:
        ValueError: as `matmul`.
    """
    given = {"a": a, "b": b, "bias": bias, "onto": onto}
    forms = {name: Form(*x) for name, x in given.items() if x is not None}
    check_floats(**forms)
    bf16 = precision == "bf16"
    if bf16 and forms["a"].dtype != np.float32:
        raise ValueError(f"arrays must be float32 for products in bfloat16, got {forms['a'].dtype}")
    shapes = ", ".join(f"{name} {x.shape}" for name, x in forms.items())
    misfit = ValueError(f"shapes must fit together, got {shapes}{', a transposed' * transpose_a}")
    a, b, bias, onto = forms["a"], forms["b"], forms.get("bias"), forms.get("onto")
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise misfit
    # A transposed view is read as the matrix under it, transposed once more.
    if layout(a).span == COPY and len(a.shape) == 2 and layout(transposed(a)).span != COPY:
        a, transpose_a = transposed(a), not transpose_a
    transpose_b = layout(b).span == COPY and len(b.shape) == 2 and layout(transposed(b)).span != COPY
    if transpose_b:
        b = transposed(b)
    lead, k_shape = (a.shape[-1:], a.shape[:-1]) if transpose_a else (a.shape[:-1], a.shape[-1:])
    if k_shape != (b.shape[1:] if transpose_b else b.shape[:-1]):
        raise misfit
    M, K, N = math.prod(lead), math.prod(k_shape), b.shape[0] if transpose_b else b.shape[-1]
    shape = (*lead, N)
    if (bias and bias.shape != (N,)) or (onto and onto.shape != shape):
        raise misfit
    if onto and not onto.behaved:
        raise ValueError("onto must be writeable and aligned")
    of_a, of_b, of_c = layout(a), layout(b), layout(onto) if onto else Layout(WHOLE, Rows(1, 0, N))
    in_a, in_b, in_c = of_a.rows, of_b.rows, of_c.rows
    if transpose_a:
        in_a, in_b = (in_a, in_b) if transpose_b else in_groups(K, in_a, in_b)
        a_steps, groups, k_groups = (0, 1, in_a.group, in_a.row), 1, in_a.groups
    else:
        in_a, in_c = in_groups(M, in_a, in_c)
        a_steps, groups, k_groups = (in_a.group, in_a.row, 0, 1), in_a.groups, 1
    b_steps, c_steps = (0, 1, in_b.row) if transpose_b else (in_b.group, in_b.row, 1), (in_c.group, in_c.row)
    if bf16:
        packing = PACKED
    elif transpose_b and M <= MOST_ROWS and a_steps[3] == 1 and k_groups == 1:
        packing = DOTS
    else:
        packing = PACKED if transpose_b or M >= MIN_ROWS_TO_PACK else UNPACKED
    sizes = M // groups, N, K // k_groups, k_groups, groups, packing, int(bool(onto or bias))
    width = 2 * VECTOR_BYTES // a.dtype.itemsize
    panels = min(BLOCK, -(-N // width)) if packing == PACKED else int(N % width > 0)
    numbers, kernels = panels * min(K, DEPTH) * width + ROWS * DEPTH, (alone, shared)
    if bf16:
        from tinyprune.kernels.cpu import bfloat16_product as pairs  # what is float32 needs none of it

        numbers, kernels = pairs.scratch_size(K, N, width // 2), (pairs.alone, pairs.shared)
    return Plan(
        shape,
        spans=(of_a.span, of_b.span, of_c.span, layout(bias).span if bias else WHOLE),
        steps=(a_steps, b_steps, c_steps, c_steps, sizes),
        work=M * N * K,
        # a power of two, so that many products share one scratch
        scratch=1 << numbers.bit_length(),
        nothing=np.empty(0, a.dtype),
        kernels=kernels,
    )


def memory(x: NDArray, span: int) -> NDArray:
    """Return the memory of `x` as a 1-D view, gaps between its rows included."""
    if span == WHOLE:
        return x.ravel("K")
    return contiguous(x).ravel() if span == COPY else as_strided(x, (span,), (x.itemsize,))


@lru_cache(maxsize=8)
def scratch(workers: int, size: int, dtype: np.dtype, caller: int) -> NDArray:
    """Return memory for the panels of `workers` threads. It is cached, for a caller computes one product at a time."""
    return workspace.empty((workers, size), dtype)


def matmul(
    a: NDArray,
    b: NDArray,
    *,
    transpose_a: bool = False,
    bias: NDArray | None = None,
    onto: NDArray | None = None,
    precision: str = "float32",
) -> NDArray:
    """Compute op(a) · b + bias, into a new array or added to an existing one.

    Every entry is one sum, which starts from onto + bias and runs along k, whatever the number of threads. With at most
    four rows and a transposed b it is a dot product of vectors, see `dots`: rounded otherwise, but always alike.

    Args:
        a: (M, K), or (K, M) with `transpose_a`. More axes, (..., K) or (..., M), stand for the matrix of all its rows.
            float32 or float64, like all arguments, with any strides: rows at equal distances, also those of a
            transposed view, are read in place.
        b: (K, N), or (..., N) if `a` is (..., M) of more axes and transposed.
        bias: (N,), added to each row.
        onto: (M, N) or (..., N), to which the product is added in place, or None. It must not overlap other arguments.
        precision: "bf16" if factors are rounded to bfloat16, see `ops.bfloat16`; only float32.

    Returns:
        out: (M, N) or (..., N); `onto` itself if it is given.

    Raises:
        ValueError: if shapes do not fit together, dtypes differ or are not float32 or float64, or `onto` is read-only,
            unaligned or overlaps an argument.
    """
    given = None if bias is None else form(bias), None if onto is None else form(onto)
    p = plan(form(a), transpose_a, form(b), *given, precision)
    if onto is not None:
        for name, x in (("a", a), ("b", b), ("bias", bias)):
            if x is not None and np.may_share_memory(onto, x):
                raise ValueError(f"onto must not lie in the memory of {name}, which is read while it is written")
    out = workspace.empty(p.shape, a.dtype) if onto is None else onto
    if p.work:
        compute(p, a, b, bias, onto, out)
    elif out.size:
        if onto is None:
            out[...] = 0
        if bias is not None:
            out += bias
    return out


def compute(p: Plan, a: NDArray, b: NDArray, bias: NDArray | None, onto: NDArray | None, out: NDArray) -> None:
    """Run the kernel on checked arrays; p.work > 0."""
    a_span, b_span, c_span, bias_span = p.spans
    c = memory(out, c_span)
    # small products are not worth the 5 µs that `get_num_threads` takes
    workers = min(p.work // MIN_WORK_PER_THREAD, get_num_threads()) if p.work >= 2 * MIN_WORK_PER_THREAD else 1
    p.kernels[workers > 1](
        memory(a, a_span),
        memory(b, b_span),
        c,
        p.nothing if onto is None or bias is None else c,  # the residual: sums start from it + bias, or else from c
        p.nothing if bias is None else memory(bias, bias_span),
        p.steps,
        scratch(workers, p.scratch, out.dtype, threading.get_ident()),
    )
    if c_span == COPY:
        out[...] = c.reshape(out.shape)

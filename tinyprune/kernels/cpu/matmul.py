"""Matrix product: op(a) · op(b) + bias + residual, where op transposes or not.

    for i, j, k: out[i, j] += a[i, k] · b[k, j]

The door: arguments are checked here, and it is worked out where rows lie in memory. The kernels are in `product`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, contiguous
from tinyprune.kernels.cpu.jit import threads
from tinyprune.kernels.cpu.product import BLOCK, DEPTH, ROWS, WORTH_A_THREAD, WORTH_PACKING, alone, shared
from tinyprune.kernels.cpu.simd import VECTOR_BYTES


class Layout(NamedTuple):
    """Where the rows of a matrix lie: row i of group g starts at g · group + i · row, in numbers."""

    span: int  # how far the matrix reaches, 0 if it has to be copied first
    groups: int
    group: int
    row: int


def layout(shape: tuple[int, ...], strides: tuple[int, ...] | None, item: int) -> Layout:
    """Layout of all the rows of an array (..., columns) of `strides` in bytes; None: in one piece."""
    *lead, columns = shape
    copied = Layout(0, 1, 0, columns)
    if strides is None or len(strides) != len(shape):
        return copied._replace(span=math.prod(shape))
    axes: list[tuple[int, int]] = []
    for n, stride in zip(lead, strides, strict=False):
        if n > 1:
            # an axis that only continues the one before it is no axis of its own
            before = axes.pop()[0] if axes and axes[-1][1] * item == n * stride else 1
            axes.append((before * n, stride // item))
    irregular = any(stride % item or stride < 0 for stride in strides) or (strides[-1] != item and columns > 1)
    if irregular or len(axes) > (1 if len(lead) > 2 else 2):
        return copied
    (groups, group), (rows, row) = [(1, 0), (1, columns), *axes][-2:]
    return Layout((groups - 1) * group + (rows - 1) * row + columns, groups, group, row)


class Plan(NamedTuple):
    """How a product of certain shapes and strides is computed."""

    shape: tuple[int, ...]
    spans: tuple[int, int, int, int]  # of a, b, out, residual: see Layout
    strides: tuple[tuple[int, ...], ...]  # of the same, and what follows: as `product` wants them
    sizes: tuple[int, ...]
    groups: int
    work: int  # multiply-adds
    scratch: int  # numbers, for each thread


@lru_cache(maxsize=4096)
def plan(
    a_shape: tuple[int, ...],
    a_strides: tuple[int, ...],
    transpose_a: bool,
    b_shape: tuple[int, ...],
    b_strides: tuple[int, ...],
    transpose_b: bool,
    c_strides: tuple[int, ...] | None,
    r_strides: tuple[int, ...] | None,
    item: int,
) -> Plan:
    """Plan a product.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    misfit = ValueError(
        f"the columns of a must be as many as the rows of b, got a {a_shape}{', transposed,' * transpose_a} and "
        f"b {b_shape}{', transposed' * transpose_b}"
    )
    if len(a_shape) < 2 or len(b_shape) < 2:
        raise misfit
    a, b = layout(a_shape, a_strides, item), layout(b_shape, b_strides, item)
    # A transposed view is the matrix that it shows, transposed once more.
    if not a.span and len(a_shape) == 2 and (other := layout(a_shape[::-1], a_strides[::-1], item)).span:
        a, a_shape, transpose_a = other, a_shape[::-1], not transpose_a
    if not b.span and len(b_shape) == 2 and (other := layout(b_shape[::-1], b_strides[::-1], item)).span:
        b, b_shape, transpose_b = other, b_shape[::-1], not transpose_b
    lead, k_shape = (a_shape[-1:], a_shape[:-1]) if transpose_a else (a_shape[:-1], a_shape[-1:])
    if k_shape != (b_shape[1:] if transpose_b else b_shape[:-1]):
        raise misfit
    M, K, N = math.prod(lead), math.prod(k_shape), b_shape[0] if transpose_b else b_shape[-1]
    shape = (*lead, N)
    c, r = layout(shape, c_strides, item), layout(shape, r_strides, item)

    def in_groups(rows: int, *matrices: Layout) -> list[Layout]:
        """The same number of groups for matrices whose rows are read side by side."""
        most = max(m.groups for m in matrices)
        return [m if m.groups == most else m._replace(groups=most, group=rows // most * m.row) for m in matrices]

    if transpose_a:
        a, b = (a, b) if transpose_b else in_groups(K, a, b)
        a_steps, groups, k_groups = (0, 1, a.group, a.row), 1, a.groups
    else:
        a, c, r = in_groups(M, a, c, r)
        a_steps, groups, k_groups = (a.group, a.row, 0, 1), a.groups, 1
    packing = transpose_b or M >= WORTH_PACKING
    width = 2 * VECTOR_BYTES // item
    panels = min(BLOCK, -(-N // width)) if packing else int(N % width > 0)
    return Plan(
        shape,
        (a.span, b.span, c.span, r.span),
        (a_steps, (0, 1, b.row) if transpose_b else (b.group, b.row, 1), (c.group, c.row), (r.group, r.row)),
        (M // groups, N, K // k_groups, k_groups, packing),
        groups,
        M * N * K,
        panels * min(K, DEPTH) * width + (ROWS * DEPTH if transpose_a else 0),
    )


def memory(x: NDArray, span: int) -> NDArray:
    """The numbers of `x` as they lie in memory, 1-D, gaps between its rows included."""
    if not span:
        return contiguous(x).ravel()
    return x.ravel("K") if x.flags.forc else as_strided(x, (span,), (x.itemsize,))


def matmul(
    a: NDArray,
    b: NDArray,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    bias: NDArray | None = None,
    residual: NDArray | None = None,
    out: NDArray | None = None,
) -> NDArray:
    """op(a) · op(b) + bias + residual.

    Every entry is one sum, from bias and residual on along k, and does not depend on the number of threads.

    Args:
        a: (M, K), or (K, M) with `transpose_a`. More axes, (..., K) or (..., M), stand for the matrix of all its rows.
            float32 or float64, like all arguments; any strides: rows at equal distances are read where they lie, and so
            are those of a transposed view.
        b: (K, N), or (N, K) with `transpose_b`; (..., N), if `a` is (..., M) of more axes and transposed.
        bias: (N,), added to each row.
        residual: shape of `out`; may be `out` itself, to accumulate.
        out: where the result goes, (M, N) or (..., N); not in the memory of `a` or `b`. None: a new array.

    Returns:
        out.

    Raises:
        ValueError: if shapes do not fit together, or dtypes differ or are not float32 or float64.
    """
    check_floats(a=a, b=b)
    a, b = as_numba_likes(a), as_numba_likes(b)
    if residual is not None and residual is not out:
        residual = as_numba_likes(residual)
    p = plan(
        a.shape,
        a.strides,
        transpose_a,
        b.shape,
        b.strides,
        transpose_b,
        None if out is None else out.strides,
        None if residual is None else residual.strides,
        a.itemsize,
    )
    if bias is not None:
        check_like(a, p.shape[-1:], bias=bias)
    if residual is not None:
        check_like(a, p.shape, residual=residual)
    if out is None:
        out = workspace.empty(p.shape, a.dtype)
    else:
        check_like(a, p.shape, out=out)
        if not out.flags.behaved:
            raise ValueError("out must be writeable and aligned")
        if np.may_share_memory(out, a) or np.may_share_memory(out, b):
            raise ValueError("out must not lie in the memory of a or b, which are read while it is written")
    if p.work:
        compute(p, a, b, bias, residual, out)
    elif out.size:
        out[...] = 0 if residual is None else residual
        if bias is not None:
            out += bias
    return out


def as_numba_likes(x: NDArray) -> NDArray:
    """`x`, or a copy if it is read-only or not aligned: for Numba that is another type, and it would compile anew."""
    return x if x.flags.behaved else contiguous(x)


def check_like(a: NDArray, shape: tuple[int, ...], **arrays: NDArray) -> None:
    """Raise ValueError unless the array has the dtype of `a` and this shape."""
    check_floats(a=a, **arrays)
    for name, array in arrays.items():
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to match the product, got {array.shape}")


def compute(p: Plan, a: NDArray, b: NDArray, bias: NDArray | None, residual: NDArray | None, out: NDArray) -> None:
    """Run the kernel: p.work > 0, all arrays checked."""
    a_span, b_span, c_span, r_span = p.spans
    c = memory(out, c_span)
    nothing = c[:0]
    accumulate = residual is not None or bias is not None
    if residual is None or (residual is out and bias is None):
        r = nothing  # the sums start from what is in c, if from anything
    else:
        r = c if residual is out else memory(residual, r_span)
    workers = min(p.work // WORTH_A_THREAD, threads()) if p.work >= 2 * WORTH_A_THREAD else 1
    (alone if workers == 1 else shared)(
        memory(a, a_span),
        memory(b, b_span),
        c,
        r,
        nothing if bias is None else contiguous(bias),
        *p.strides,
        p.sizes,
        p.groups,
        accumulate,
        workspace.empty((workers, p.scratch), out.dtype),
    )
    if not c_span:
        out[...] = c.reshape(out.shape)

"""The ragged ends of a matrix: masked loads, masked stores and partial tiles, which touch nothing beyond the end.

AVX-512 and AVX2 have instructions for it; elsewhere LLVM emits a test and a move for each lane.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tinyprune.kernels.cpu.simd import (
    I32,
    I64,
    VECTORS,
    address,
    call_llvm,
    item_bytes,
    lanes_of,
    llvm_vector,
    same_in_all,
    splat,
    sum_over_k,
)


def smaller(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Return the smaller of two integers."""
    return b.select(b.icmp_signed("<", x, y), x, y)


def between(b: ir.IRBuilder, count: ir.Value, most: int) -> ir.Value:
    """Clamp `count` to 0 … `most`."""
    count = smaller(b, count, ir.Constant(I64, most))
    return b.select(b.icmp_signed(">", count, ir.Constant(I64, 0)), count, ir.Constant(I64, 0))


def somewhere(
    context: Any, b: ir.IRBuilder, kind: types.Array, array: ir.Value, offset: ir.Value, count: ir.Value
) -> Any:
    """Return a pointer to `count` elements from `offset` on; if `count` is 0, `offset` may be beyond the array."""
    nothing = b.icmp_signed("==", count, ir.Constant(I64, 0))
    offset = b.select(nothing, ir.Constant(I64, 0), offset)
    return address(context, b, kind, array, offset, [count], 0)


def mask(b: ir.IRBuilder, kind: ir.VectorType, count: ir.Value) -> ir.Value:
    """Return a mask of the first `count` lanes; `count` is at most their number."""
    return b.icmp_signed("<", lanes_of(kind), splat(b, b.trunc(count, I32), kind.count))


def load_masked(b: ir.IRBuilder, pointer: ir.Value, lanes: ir.Value, kind: ir.VectorType) -> ir.Value:
    """Load the masked lanes from memory, and 0 into the others."""
    arguments = b.bitcast(pointer, kind.as_pointer()), ir.Constant(I32, item_bytes(kind)), lanes, same_in_all(kind, 0.0)
    return call_llvm(b, "masked.load", kind, kind, *arguments, suffix=".p0")


def store_masked(b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, lanes: ir.Value) -> None:
    """Store the masked lanes to memory."""
    kind = value.type
    arguments = value, b.bitcast(pointer, kind.as_pointer()), ir.Constant(I32, item_bytes(kind)), lanes
    call_llvm(b, "masked.store", ir.VoidType(), kind, *arguments, suffix=".p0")


@intrinsic
def load_some(typing, array, offset, count):
    """Load array[offset : offset + count], and 0 into the other lanes; all lanes if count is larger."""

    def generate(context, b, signature, arguments):
        kind = llvm_vector(array.dtype)
        count = between(b, arguments[2], kind.count)
        pointer = somewhere(context, b, array, arguments[0], arguments[1], count)
        return load_masked(b, pointer, mask(b, kind, count), kind)

    return VECTORS[array.dtype](array, types.int64, types.int64), generate


@intrinsic
def store_some(typing, array, offset, vector, count):
    """Store the first `count` lanes of vector to array[offset : offset + count]; all lanes if count is larger."""

    def generate(context, b, signature, arguments):
        kind = llvm_vector(array.dtype)
        count = between(b, arguments[3], kind.count)
        pointer = somewhere(context, b, array, arguments[0], arguments[1], count)
        store_masked(b, arguments[2], pointer, mask(b, kind, count))
        return context.get_dummy_value()

    return types.void(array, types.int64, vector, types.int64), generate


def ragged_microkernel(rows: int, vectors: int) -> Callable:
    """Like `simd.microkernel`, for a tile of which only the first rows and columns exist.

    The instruction kernel(a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, K, R, J, accumulate) computes, for
    i < min(rows, R) and j < min(vectors · lanes, J),

        c[c0 + i · c_row + j]  (+)=  Σ_k<K a[a0 + i · a_row + k · a_k] · b[b0 + k · b_k + j]          K, R, J ≥ 1

    and reads whole vectors of b. For rows that are missing the last row is computed and stored again.
    """

    def generate(context, b, signature, arguments):
        a_array, a0, a_row, a_k, b_array, b0, b_k, c_array, c0, c_row, K, R, J, accumulate = arguments
        kinds = signature.args
        kind = llvm_vector(kinds[7].dtype)
        one, whole = ir.Constant(I64, 1), ir.Constant(I64, kind.count)
        width = ir.Constant(I64, vectors * kind.count)
        last_row, last_k = b.sub(smaller(b, R, ir.Constant(I64, rows)), one), b.sub(K, one)
        columns = smaller(b, J, width)

        a_first = address(context, b, kinds[0], a_array, a0, [b.mul(last_row, a_row), b.mul(last_k, a_k)], 1)
        b_first = address(context, b, kinds[4], b_array, b0, [b.mul(last_k, b_k), width], 0)
        c_first = address(context, b, kinds[7], c_array, c0, [b.mul(last_row, c_row), columns], 0)
        row = [smaller(b, ir.Constant(I64, i), last_row) for i in range(rows)]
        shifts = [ir.Constant(I64, v * kind.count) for v in range(vectors)]
        left = [b.sub(columns, shift) for shift in shifts]
        lanes = [mask(b, kind, smaller(b, x, whole)) for x in left]
        old = [b.and_(x, splat(b, accumulate, kind.count)) for x in lanes]
        tile = [[b.gep(c_first, [b.add(b.mul(r, c_row), shift)]) for shift in shifts] for r in row]
        start = [[load_masked(b, p, m, kind) for p, m in zip(ps, old, strict=True)] for ps in tile]

        a_rows = [b.mul(r, a_row) for r in row]
        sums = sum_over_k(b, start, K, a_first, a_rows, a_k, b_first, b_k)
        for sums_of_row, pointers in zip(sums, tile, strict=True):
            for value, pointer, mask_of in zip(sums_of_row, pointers, lanes, strict=True):
                store_masked(b, value, pointer, mask_of)
        return context.get_dummy_value()

    i8 = types.int64

    @intrinsic
    def ragged_tile_product(typing, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, K, R, J, accumulate):
        return types.void(a, i8, i8, i8, b, i8, i8, c, i8, i8, i8, i8, i8, types.boolean), generate

    return ragged_tile_product

"""A tile of a matrix product whose sums stay in registers: the only loop that is generated instruction by instruction.

    for k: for i, j: c[i, j] += a[i, k] · b[k, j]        all c[i, j] of the tile in registers

Plain Python cannot say "keep these sums in registers", and LLVM decides otherwise when it is not sure.

Places and strides are plain arguments, eleven of them and more: as named tuples they made a whole step of `tiny` 3 %
slower, since a stride that a caller writes as 1 was no constant any more.
"""

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tinyprune.kernels.cpu.simd import (
    I64,
    address,
    first_lanes,
    int64,
    llvm_vector,
    load_at,
    multiply_add,
    same_in_all,
    smaller,
    splat,
    store_at,
)


def sum_over_k(
    b: ir.IRBuilder,
    start: list[list[ir.Value]],
    K: ir.Value,
    a_first: ir.Value,
    a_rows: list[ir.Value],
    a_k: ir.Value,
    b_first: ir.Value,
    b_k: ir.Value,
    multiply_add: Callable,
) -> list[list[ir.Value]]:
    """Append the loop of a microkernel: `start[i][v] + Σ_k<K a[a_rows[i] + k · a_k] · (vector v of b at k · b_k)`."""
    kind, vectors = start[0][0].type, len(start[0])
    before, loop, after = b.block, b.append_basic_block("k"), b.append_basic_block("k.end")
    b.branch(loop)
    b.position_at_end(loop)
    k = b.phi(I64)  # a phi has one value in the first round of a loop, and another in later ones
    sums = [[b.phi(kind) for _ in row] for row in start]
    b_at = b.gep(b_first, [b.mul(k, b_k)])
    a_at = b.gep(a_first, [b.mul(k, a_k)])
    bs = [load_at(b, b.gep(b_at, [int64(v * kind.count)]), kind) for v in range(vectors)]
    new = []
    for a_row, row in zip(a_rows, sums, strict=True):
        x = splat(b, b.load(b.gep(a_at, [a_row])), kind.count)
        new.append([multiply_add(b, x, y, z) for y, z in zip(bs, row, strict=True)])
    next_k = b.add(k, int64(1))
    k.add_incoming(int64(0), before)
    k.add_incoming(next_k, loop)
    for row, first, later in zip(sums, start, new, strict=True):
        for value, x, y in zip(row, first, later, strict=True):
            value.add_incoming(x, before)
            value.add_incoming(y, loop)
    b.cbranch(b.icmp_signed("<", next_k, K), loop, after)
    b.position_at_end(after)
    return new


def generate_tile(rows: int, vectors: int, accumulate: bool = True, multiply_add: Callable = multiply_add) -> Callable:
    """Return what generates the code of `microkernel`, or that of `ragged_microkernel`, which has further arguments."""

    def generate(context, b, signature, arguments):
        a_array, a0, a_row, a_k, b_array, b0, b_k, c_array, c0, c_row, K, *ragged = arguments
        a_type, b_type, c_type = (signature.args[i] for i in (0, 4, 7))
        kind = llvm_vector(c_type.dtype)
        shifts = [int64(v * kind.count) for v in range(vectors)]  # columns before vector v
        row_numbers, columns = [int64(i) for i in range(rows)], int64(vectors * kind.count)
        to_store: list[ir.Value | None] = [None] * vectors  # masks of lanes, None for whole vectors
        to_load = to_store
        if ragged:
            R, J, add_up = ragged
            last_row = b.sub(smaller(b, R, int64(rows)), int64(1))
            row_numbers, columns = [smaller(b, i, last_row) for i in row_numbers], smaller(b, J, columns)
            to_store = [first_lanes(b, kind, b.sub(columns, shift)) for shift in shifts]
            to_load = [b.and_(lanes, splat(b, add_up, kind.count)) for lanes in to_store]

        a_rows, c_rows = ([b.mul(i, step) for i in row_numbers] for step in (a_row, c_row))
        last_k = b.sub(K, int64(1))
        a_first = address(context, b, a_type, a_array, a0, [a_rows[-1], b.mul(last_k, a_k)], 1)
        b_first = address(context, b, b_type, b_array, b0, [b.mul(last_k, b_k)], vectors * kind.count)
        c_first = address(context, b, c_type, c_array, c0, [c_rows[-1], columns], 0)
        tile = [[b.gep(c_first, [b.add(c_row, shift)]) for shift in shifts] for c_row in c_rows]
        zero = same_in_all(kind, 0.0)
        start = [
            [load_at(b, at, kind, lanes) if accumulate else zero for at, lanes in zip(row, to_load, strict=True)]
            for row in tile
        ]
        sums = sum_over_k(b, start, K, a_first, a_rows, a_k, b_first, b_k, multiply_add)
        for values, row in zip(sums, tile, strict=True):
            for value, at, lanes in zip(values, row, to_store, strict=True):
                store_at(b, value, at, lanes)
        return context.get_dummy_value()

    return generate


def microkernel(rows: int, vectors: int, accumulate: bool, multiply_add: Callable = multiply_add) -> Callable:
    """Make the instruction for a tile of a matrix product whose sums stay in registers.

    The instruction kernel(a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, K) computes, for i < rows, j < vectors · lanes,

        c[c0 + i · c_row + j]  (+)=  Σ_k<K a[a0 + i · a_row + k · a_k] · b[b0 + k · b_k + j]          K ≥ 1

    with rows × vectors sums in registers (Goto & van de Geijn 2008, §4.2.1): each round loads `vectors` vectors of b
    and `rows` numbers of a, and does rows × vectors multiply-adds with them. The strides are free, so that one kernel
    serves A·B, Aᵀ·B, packed panels and the shifted view of the relative positions. Each sum runs over k in order,
    whatever the tile's size, so that a result does not depend on which tile an entry falls into. `multiply_add` appends
    another instruction than x · y + z, such as one for pairs of numbers.
    """
    generate = generate_tile(rows, vectors, accumulate, multiply_add)

    @intrinsic
    def tile_product(typing, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, K):
        numbers = [types.int64] * 3
        return types.void(a, *numbers, b, *numbers[:2], c, *numbers), generate

    return tile_product


def ragged_microkernel(rows: int, vectors: int) -> Callable:
    """Like `microkernel`, for a tile of which only the first R rows and J columns exist.

    The instruction takes R, J ≥ 1 and `accumulate` after K. It touches nothing of c beyond them, and reads whole
    vectors of b. For rows that are missing the last row is computed and stored again.
    """
    generate = generate_tile(rows, vectors)

    @intrinsic
    def ragged_tile_product(typing, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, K, R, J, accumulate):
        numbers = [types.int64] * 5
        return types.void(a, *numbers[:3], b, *numbers[:2], c, *numbers, types.boolean), generate

    return ragged_tile_product

"""Products of bfloat16 numbers: how they are rounded and packed, and the tile of a product that reads them.

    for k: for i, j: c[i, j] += a[i, 2k] · b[2k, j] + a[i, 2k+1] · b[2k+1, j]

A *pair* is two bfloat16 numbers, neighbours along k, in the 32 bits of a float32: that is how instructions want them.
Pairs are made here from float32 numbers, and never leave scratch memory. What computes with them depends on the
processor (`UNIT`):

    "amx"    Intel's tiles of 16 × 16 sums (`tdpbf16ps`): a tile of the product is 32 × 32, four of them
    "dot"    vectors (`vdpbf16ps`), in the microkernel of float32 products
    ""       the same microkernel with float32's multiply-adds, after shifts: no faster than float32, but equal numbers

LLVM's own types do not reach these instructions from here, so that they are written as assembly. Both instructions take
numbers below 2⁻¹²⁶ as 0.
"""

import ctypes
import sys

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from tinyprune.kernels.cpu.jit import inner
from tinyprune.kernels.cpu.simd import (
    I32,
    I64,
    VECTOR_BYTES,
    address,
    instruction,
    int64,
    lanes,
    load,
    load_some,
    multiply_add,
    never_inline,
    same_in_all,
    store,
    transpose,
)
from tinyprune.kernels.cpu.tiles import microkernel

I16 = ir.IntType(16)
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18  # of Linux on x86-64


def unit() -> str:
    """Return what computes products of pairs here, see above; AMX only if the system lets this process use it."""
    features = set(cpu_target.target_context.codegen().magic_tuple()[2].split(","))
    if VECTOR_BYTES < 64 or "+avx512bf16" not in features:
        return ""
    llvm.initialize_native_asmparser()
    if "+amx-bf16" in features and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if libc.syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0:
            return "amx"
    return "dot"


UNIT = unit()
ABOUT = {
    "amx": "by this processor's AMX",
    "dot": "by this processor's AVX512-BF16",
    "": "which this processor has no instructions for: no faster than float32",
}
ROWS = {"amx": 32, "dot": 12, "": 12 if VECTOR_BYTES == 64 else 6}[UNIT]  # of a tile, which has two vectors of columns
STEP = 16  # pairs that one instruction of AMX takes; others need no such number


# ── pairs ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def rounded(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """Return the bits of a vector rounded to bfloat16, in the upper half of each lane: see `ops.bfloat16`."""
    kind = ir.VectorType(I32, v.type.count)
    bits = b.bitcast(v, kind)
    odd = b.and_(b.lshr(bits, same_in_all(kind, 16)), same_in_all(kind, 1))
    up = b.add(bits, b.add(odd, same_in_all(kind, 0x7FFF)))
    # The sum of a NaN could carry over into the sign; the highest bit of its mantissa keeps it one.
    nan = b.or_(bits, same_in_all(kind, 1 << 22))
    return b.select(b.fcmp_unordered("uno", v, v), nan, up)


def side_by_side(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Round two vectors of n float32 numbers; return their 2n bfloat16 numbers, x's first, as 16-bit integers."""
    n = x.type.count
    both = ir.VectorType(I16, 2 * n)
    if UNIT:
        kind = ir.FunctionType(x.type, [x.type, x.type])
        return b.bitcast(b.asm(kind, "vcvtne2ps2bf16 $1, $2, $0", "=v,v,v", [x, y], False), both)
    shift = same_in_all(ir.VectorType(I32, n), 16)
    halves = [b.trunc(b.lshr(rounded(b, v), shift), ir.VectorType(I16, n)) for v in (x, y)]
    return b.shuffle_vector(*halves, ir.Constant(ir.VectorType(I32, 2 * n), list(range(2 * n))))


def of_neighbours(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Make the pairs (x0, x1), (x2, x3) … (y0, y1) …"""
    return b.bitcast(side_by_side(b, x, y), x.type)


def of_lanes(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Make the pairs (x0, y0), (x1, y1) …"""
    n, both = x.type.count, side_by_side(b, x, y)
    order = [lane // 2 + n * (lane % 2) for lane in range(2 * n)]
    return b.bitcast(b.shuffle_vector(both, both, ir.Constant(ir.VectorType(I32, 2 * n), order)), x.type)


def dot_pairs(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Compute z + x₀ · y₀ + x₁ · y₁ for the pairs in each lane."""
    if UNIT:
        kind = ir.FunctionType(z.type, [z.type] * 3)
        return b.asm(kind, "vdpbf16ps $3, $2, $0", "=v,0,v,v", [z, x, y], False)
    integers = ir.VectorType(I32, z.type.count)
    bits = [b.bitcast(v, integers) for v in (x, y)]
    high = [b.bitcast(b.and_(v, same_in_all(integers, 0xFFFF0000)), z.type) for v in bits]
    low = [b.bitcast(b.shl(v, same_in_all(integers, 16)), z.type) for v in bits]
    return multiply_add(b, *high, multiply_add(b, *low, z))


pairs_of_neighbours = instruction("the pairs (x0, x1), (x2, x3) … (y0, y1) …, rounded to bfloat16", 2, of_neighbours)
pairs_of_lanes = instruction("the pairs (x0, y0), (x1, y1) …, rounded to bfloat16", 2, of_lanes)


@inner
def pack_pairs(x, at, row, step, rows, depth, target, to, target_row, target_pair, pairs, square):
    """Round a matrix, entry (i, k) at x[at + i · row + k · step], to pairs (i, p) at target[to + i · target_row + …].

    One of `row` and `step` is 1, and one of `target_row` and `target_pair`: where a vector of the source does not hold
    what lies side by side in the target, blocks of L × L pairs are transposed by way of target[square:]. Pairs beyond
    the matrix are 0, up to `pairs`, and rows up to a whole vector of them.
    """
    never_inline()
    L = lanes(x)
    along = step == 1  # a vector holds pairs of a row, otherwise one pair of each of L rows
    direct = along == (target_pair == 1)
    other = target_row if target_pair == 1 else target_pair
    for i in range(0, rows, L):
        for p in range(0, pairs, L):
            place = to + i * target_row + p * target_pair
            for n in range(L):
                if along:
                    left = depth - 2 * p if i + n < rows else 0
                    source = at + (i + n) * row + 2 * p
                    if left >= 2 * L:
                        v = pairs_of_neighbours(load(x, source), load(x, source + L))
                    else:
                        v = pairs_of_neighbours(load_some(x, source, left), load_some(x, source + L, left - L))
                else:
                    k = 2 * (p + n)
                    source = at + i + k * step
                    if rows - i >= L and k + 1 < depth:
                        v = pairs_of_lanes(load(x, source), load(x, source + step))
                    else:
                        first, second = rows - i if k < depth else 0, rows - i if k + 1 < depth else 0
                        v = pairs_of_lanes(load_some(x, source, first), load_some(x, source + step, second))
                if direct:
                    store(target, place + n * other, v)
                else:
                    store(target, square + n * L, v)
            if not direct:
                transpose(target, square, L, target, place, other, None)


# ── tiles ────────────────────────────────────────────────────────────────────────────────────────────────────────────

# What `ldtilecfg` reads: palette 1, then bytes in a row (16 of them) and rows, of 8 tiles of 16 rows of 64 bytes.
SHAPES = np.zeros(64, np.uint8)
SHAPES[0], SHAPES[16:32:2], SHAPES[48:56] = 1, 64, 16


def assembly(b: ir.IRBuilder, text: str, *arguments: ir.Value) -> None:
    """Append lines of assembly that read and write memory; $0, $1 … are the arguments, in integer registers."""
    kind = ir.FunctionType(ir.VoidType(), [x.type for x in arguments])
    registers = ["r"] * len(arguments) + ["~{memory}"]
    b.asm(kind, text, ",".join(registers), list(arguments), True)


@intrinsic
def begin_tiles(typing):
    """Give the registers of AMX their shapes, in this thread."""

    def generate(context, b, signature, arguments):
        if UNIT == "amx":
            shapes = ir.GlobalVariable(b.module, kind := ir.ArrayType(I64, 8), b.module.get_unique_name("shapes"))
            shapes.linkage, shapes.global_constant = "internal", True
            shapes.initializer = ir.Constant(kind, SHAPES.view(np.int64).tolist())
            assembly(b, "ldtilecfg ($0)", shapes)
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def end_tiles(typing):
    """Give the registers of AMX back, which the system would otherwise save whenever the thread is interrupted."""

    def generate(context, b, signature, arguments):
        if UNIT == "amx":
            assembly(b, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def amx_tile(accumulate: bool):
    """Make the instruction `microkernel(32, 2, accumulate)` for pairs in AMX: a_k = 1, b_k = 32, K a multiple of 16.

    Tiles 0 to 3 are the sums, 4 and 5 the upper and lower rows of a, 6 and 7 the left and right columns of b.
    """
    first = ["tileloadd ($0,$4), %tmm0", "tileloadd ($1,$4), %tmm1", "tileloadd ($2,$4), %tmm2"]
    first.append("tileloadd ($3,$4), %tmm3")
    if not accumulate:
        first = [f"tilezero %tmm{i}" for i in range(4)]
    products = ["tileloadd ($0,$3), %tmm4", "tileloadd ($2,$4), %tmm6", "tileloadd 64($2,$4), %tmm7"]
    products += ["tdpbf16ps %tmm6, %tmm4, %tmm0", "tileloadd ($1,$3), %tmm5", "tdpbf16ps %tmm7, %tmm4, %tmm1"]
    products += ["tdpbf16ps %tmm6, %tmm5, %tmm2", "tdpbf16ps %tmm7, %tmm5, %tmm3"]
    last = [f"tilestored %tmm{i}, (${i},$4)" for i in range(4)]

    def generate(context, b, signature, arguments):
        a, a0, a_row, _, b_, b0, _, c, c0, c_row, K = arguments
        a_type, b_type, c_type = (signature.args[i] for i in (0, 4, 7))

        def place(kind, array, offset, spans, extent):
            return b.ptrtoint(address(context, b, kind, array, offset, spans, extent), I64)

        def beyond(start, row, more):
            return b.add(start, b.add(b.mul(row, int64(16 * 4)), int64(more)))

        upper = place(a_type, a, a0, [b.mul(a_row, int64(31)), b.sub(K, int64(1))], 1)
        columns = place(b_type, b_, b0, [b.mul(b.sub(K, int64(1)), int64(32))], 32)
        left = place(c_type, c, c0, [b.mul(c_row, int64(31))], 32)
        tile = [left, b.add(left, int64(64)), beyond(left, c_row, 0), beyond(left, c_row, 64)]
        a_bytes, c_bytes = (b.mul(step, int64(4)) for step in (a_row, c_row))
        assembly(b, "\n".join(first), *tile, c_bytes)
        before, loop, after = b.block, b.append_basic_block("k"), b.append_basic_block("k.end")
        b.branch(loop)
        b.position_at_end(loop)
        k = b.phi(I64)
        along, down = b.mul(k, int64(4)), b.mul(k, int64(32 * 4))
        rows = [b.add(upper, along), b.add(beyond(upper, a_row, 0), along)]
        assembly(b, "\n".join(products), *rows, b.add(columns, down), a_bytes, int64(32 * 4))
        next_k = b.add(k, int64(STEP))
        k.add_incoming(int64(0), before)
        k.add_incoming(next_k, loop)
        b.cbranch(b.icmp_signed("<", next_k, K), loop, after)
        b.position_at_end(after)
        assembly(b, "\n".join(last), *tile, c_bytes)
        return context.get_dummy_value()

    @intrinsic
    def tile_product(typing, a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row, K):
        numbers = [types.int64] * 3
        return types.void(a, *numbers, b, *numbers[:2], c, *numbers), generate

    return tile_product


first_tile, next_tile = (
    amx_tile(add) if UNIT == "amx" else microkernel(ROWS, 2, add, dot_pairs) for add in (False, True)
)

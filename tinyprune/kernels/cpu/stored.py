"""Products of a vector with matrices as files of llama.cpp store them, without turning them into float32 first.

    for r: out[r] += Σ_blocks Σ_k (d_b · q_bk + m_b) · x_k          32 numbers k in a block

A token by itself is memory-bound: it reads all weights once, and a file has 4.5 to 8.5 bits for each. Rows of a stored
matrix belong to outputs. A block has a scale d, in some types an offset m (both float16), and 32 integers q:

    q4_0   d, 16 bytes: q − 8 of numbers 0 … 15 in their lower halves, of 16 … 31 in the upper ones    18 bytes
    q4_1   d, m, the same with q                                                                       20
    q5_0   d, a fifth bit of each of the 32 numbers, the same with q − 16                              22
    q5_1   d, m, the fifth bits, the same with q                                                       24
    q8_0   d, 32 signed bytes                                                                          34

What a format leaves away from q is an offset too: d · (q − 8) has m = −8 d.
"""

from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

from tinyprune.kernels.cpu.jit import inner, variant
from tinyprune.kernels.cpu.simd import (
    I32,
    VECTORS,
    add,
    address,
    broadcast,
    int64,
    llvm_vector,
    load_at,
    multiply_add,
    never_inline,
    same_in_all,
    splat,
    total,
)

BLOCK = 32  # numbers
HAS_HALF = "+f16c" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")
I8 = ir.IntType(8)


class Form(NamedTuple):
    """A type of blocks."""

    bits: int  # of an integer
    size: int  # bytes of a block
    offset: bool  # whether it has m; otherwise m = −2^(bits − 1) · d, and 0 for signed bytes


FORMS = {"q4_0": Form(4, 18, False), "q4_1": Form(4, 20, True), "q5_0": Form(5, 22, False)}
FORMS |= {"q5_1": Form(5, 24, True), "q8_0": Form(8, 34, False)}


def integers(b: ir.IRBuilder, block: ir.Value, form: Form, first: int, n: int) -> ir.Value:
    """Load numbers first … first + n − 1 of a block as integers of 32 bits; of 4 bits only the lowest ones count."""
    kind, wide = ir.VectorType(I8, n), ir.VectorType(I32, n)
    at = 4 if form.offset else 2

    def bytes_at(place: int) -> ir.Value:
        value = b.load(b.bitcast(b.gep(block, [int64(place)]), kind.as_pointer()))
        value.align = 1
        return value

    if form.bits == 8:
        return b.sext(bytes_at(at + first), wide)
    q = b.zext(bytes_at(at + 4 * (form.bits == 5) + first % 16), wide)
    if first >= 16:
        q = b.lshr(q, same_in_all(wide, 4))
    if form.bits == 5:
        fifth = b.load(b.bitcast(b.gep(block, [int64(at)]), I32.as_pointer()))
        fifth.align = 1
        places = ir.Constant(wide, list(range(first, first + n)))
        own = b.and_(b.lshr(splat(b, fifth, n), places), same_in_all(wide, 1))
        q = b.or_(b.and_(q, same_in_all(wide, 15)), b.shl(own, same_in_all(wide, 4)))
    return q


def weights(b: ir.IRBuilder, q: ir.Value, form: Form, table: ir.Value, d: ir.Value, m: ir.Value) -> ir.Value:
    """Return the numbers d q + m, of which `table` has the first sixteen."""
    if form.bits == 4 and q.type.count == 16:  # AVX-512 looks up sixteen at once, by the lowest 4 bits
        kind = ir.FunctionType(table.type, [table.type, q.type])
        name = "llvm.x86.avx512.permvar.sf.512"
        return b.call(cgutils.get_or_insert_function(b.module, kind, name), [table, q])
    if form.bits == 4:
        q = b.and_(q, same_in_all(q.type, 15))
    return multiply_add(b, b.sitofp(q, d.type), d, m)


def block_product(form: Form):
    """Make the instruction that multiplies the numbers of a block by 32 others, into a vector of sums."""

    @intrinsic
    def product(typing, blocks, at, x, x_at, d, m):
        def generate(context, b, signature, arguments):
            kind = llvm_vector(x.dtype)
            n = kind.count
            block = address(context, b, blocks, arguments[0], arguments[1], [], form.size)
            numbers = address(context, b, x, arguments[2], arguments[3], [], BLOCK)
            scale, offset = (splat(b, value, n) for value in arguments[4:])
            table = multiply_add(b, ir.Constant(kind, [float(i) for i in range(n)]), scale, offset)
            result = None
            for first in range(0, BLOCK, n):
                w = weights(b, integers(b, block, form, first, n), form, table, scale, offset)
                y = load_at(b, b.gep(numbers, [int64(first)]), kind)
                result = b.fmul(w, y) if result is None else multiply_add(b, w, y, result)
            return result

        f32 = types.float32
        return VECTORS[x.dtype](blocks, types.int64, x, types.int64, f32, f32), generate

    return product


@intrinsic
def half(typing, blocks, at):
    """Return the float16 at this byte as float32.

    Where no instruction does it, its exponent is moved, and corrected by a product with 2¹¹².
    """

    def generate(context, b, signature, arguments):
        place = address(context, b, blocks, *arguments, [], 2)
        if HAS_HALF:
            number = b.load(b.bitcast(place, ir.HalfType().as_pointer()))
            number.align = 1
            return b.fpext(number, ir.FloatType())
        bits = b.load(b.bitcast(place, ir.IntType(16).as_pointer()))
        bits.align = 1
        bits = b.zext(bits, I32)
        size = b.shl(b.and_(bits, ir.Constant(I32, 0x7FFF)), ir.Constant(I32, 13))
        size = b.fmul(b.bitcast(size, ir.FloatType()), ir.Constant(ir.FloatType(), 2.0**112))
        sign = b.shl(b.and_(bits, ir.Constant(I32, 0x8000)), ir.Constant(I32, 16))
        return b.bitcast(b.or_(b.bitcast(size, I32), sign), ir.FloatType())

    return types.float32(blocks, types.int64), generate


product, SIZE, OFFSET, MIDDLE = block_product(FORMS["q4_1"]), 20, True, 0.0  # in each variant others


def rows_product(blocks, at, x, x_at, K, out, out_at, first, last):
    """Add to out[out_at + r] the product of row r, first ≤ r < last, with K numbers of x."""
    never_inline()
    for r in range(first, last):
        block = at + r * (K // BLOCK) * SIZE
        sums = broadcast(x, 0)
        for k in range(x_at, x_at + K, BLOCK):
            d = half(blocks, block)
            m = half(blocks, block + 2) if OFFSET else np.float32(-MIDDLE) * d
            sums = add(sums, product(blocks, block, x, k, d, m))
            block += SIZE
        out[out_at + r] += total(sums)


def of_form(name):
    """Compile `rows_product` for a type of blocks."""
    form = FORMS[name]
    middle = 0.0 if form.bits == 8 else 2.0 ** (form.bits - 1)
    own = {"product": block_product(form), "SIZE": form.size, "OFFSET": form.offset, "MIDDLE": middle}
    return variant(rows_product, inner, name, **own)


q4_0, q4_1, q5_0, q5_1, q8_0 = (of_form(name) for name in FORMS)

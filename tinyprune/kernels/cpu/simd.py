"""Vector instructions (SIMD) for Numba: load, store, add, muladd, exp2 … of a vector register.

LLVM vectorises plain loops only when it can prove that this is safe, and it does not keep a tile of sums in registers.
Here a `Vector` is a value like a float, and each function below is one instruction or a few, on all lanes at once.
Arrays are flat (1-D, C-contiguous) with explicit offsets; their dtype, float32 or float64, determines the vector.

LLVM tells how wide a vector is, and how many registers there are, on the processor that Numba compiles for (which
NUMBA_CPU_NAME and NUMBA_CPU_FEATURES may change):

    AVX-512   64 bytes, 32 registers      16 float32 or 8 float64
    AVX2      32 bytes, 16 registers       8            4
    SSE2      16 bytes, 16 registers       4            2
    NEON      16 bytes, 32 registers       4            2

`load_some` and `store_some` are for the ends of rows: they touch nothing beyond `count` numbers. AVX-512 and AVX2 have
instructions for it; elsewhere LLVM emits a test and a move for each lane. `tiles` has the loop of the matrix product.
"""

import math
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic, models, register_model

from tinyprune.kernels.cpu.jit import BOUNDS_CHECKED

LOG2_E = 1 / math.log(2)  # e^x = 2^(x · log2 e), see exp2
LEAST = -2048.0  # exp2 of it is 0 in any dtype; exp2 of −inf would be NaN
I32, I64 = ir.IntType(32), ir.IntType(64)


def host_vectors() -> tuple[int, int]:
    """Return (bytes in a vector, number of vector registers) of the processor that Numba compiles for.

    LLVM adds two wide vectors, and the assembly shows which registers it uses.
    """
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()[:3]
    module = llvm.parse_assembly(
        "define <16 x float> @f(<16 x float> %a, <16 x float> %b) { %c = fadd <16 x float> %a, %b ret <16 x float> %c }"
    )
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=name, features=features)
    assembly = machine.emit_assembly(module)
    if "zmm" in assembly:
        return 64, 32
    if "ymm" in assembly:
        return 32, 16
    return 16, 16 if "xmm" in assembly else 32


VECTOR_BYTES, REGISTERS = host_vectors()


class Vector(types.Type):
    """As many numbers of one dtype as fit into a register."""

    def __init__(self, dtype: types.Type) -> None:
        self.dtype = dtype
        self.lanes = VECTOR_BYTES * 8 // dtype.bitwidth
        super().__init__(name=f"Vector({dtype}, {self.lanes})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    """A Vector is an LLVM vector."""

    def __init__(self, manager: Any, vector: Vector) -> None:
        super().__init__(manager, vector, llvm_vector(vector.dtype))


VECTORS = {dtype: Vector(dtype) for dtype in (types.float32, types.float64)}


def llvm_vector(dtype: types.Type) -> ir.VectorType:
    """Return LLVM's type for a Vector of `dtype`."""
    element = ir.FloatType() if dtype == types.float32 else ir.DoubleType()
    return ir.VectorType(element, VECTOR_BYTES * 8 // dtype.bitwidth)


# ── pieces of code generation ────────────────────────────────────────────────────────────────────────────────────────
# They run while a kernel is compiled. `b` is LLVM's builder: b.fadd(x, y) appends an addition and names its result.


def int64(n: int) -> ir.Constant:
    """Make a constant integer."""
    return ir.Constant(I64, n)


def same_in_all(kind: ir.VectorType, x: float) -> ir.Constant:
    """Make a constant vector with x in every lane."""
    return ir.Constant(kind, [x] * kind.count)


def lanes_of(kind: ir.VectorType) -> ir.Constant:
    """Make the vector 0, 1, 2 … of 32-bit lane numbers."""
    return ir.Constant(ir.VectorType(I32, kind.count), list(range(kind.count)))


def splat(b: ir.IRBuilder, x: ir.Value, count: int) -> ir.Value:
    """Copy a scalar into every lane."""
    kind = ir.VectorType(x.type, count)
    first = b.insert_element(ir.Constant(kind, ir.Undefined), x, ir.Constant(I32, 0))
    return b.shuffle_vector(first, ir.Constant(kind, ir.Undefined), same_in_all(ir.VectorType(I32, count), 0))


def item_bytes(kind: ir.VectorType) -> int:
    """Return the bytes of one lane, to which vectors in memory are aligned."""
    return 4 if kind.element == ir.FloatType() else 8


def call_llvm(
    b: ir.IRBuilder, name: str, result: ir.Type, kind: ir.VectorType, *arguments: ir.Value, suffix: str = ""
) -> ir.Value:
    """Call LLVM's function `name` for vectors of this kind."""
    name = f"llvm.{name}.v{kind.count}f{8 * item_bytes(kind)}{suffix}"
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return b.call(cgutils.get_or_insert_function(b.module, function, name), arguments)


def load_at(b: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType, mask: ir.Value | None = None) -> ir.Value:
    """Load a vector, aligned as its elements are; with a mask only those lanes, and 0 in the others."""
    pointer = b.bitcast(pointer, kind.as_pointer())
    if mask is not None:
        align = ir.Constant(I32, item_bytes(kind))
        return call_llvm(b, "masked.load", kind, kind, pointer, align, mask, same_in_all(kind, 0.0), suffix=".p0")
    value = b.load(pointer)
    value.align = item_bytes(kind)
    return value


def store_at(b: ir.IRBuilder, value: ir.Value, pointer: ir.Value, mask: ir.Value | None = None) -> None:
    """Store a vector, or the lanes of the mask."""
    kind, pointer = value.type, b.bitcast(pointer, value.type.as_pointer())
    if mask is None:
        b.store(value, pointer).align = item_bytes(kind)
    else:
        align = ir.Constant(I32, item_bytes(kind))
        call_llvm(b, "masked.store", ir.VoidType(), kind, value, pointer, align, mask, suffix=".p0")


def smaller(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Return the smaller of two integers."""
    return b.select(b.icmp_signed("<", x, y), x, y)


def first_lanes(b: ir.IRBuilder, kind: ir.VectorType, count: ir.Value) -> ir.Value:
    """Return the mask of the first `count` lanes, all of them if `count` is larger."""
    count = smaller(b, count, int64(kind.count))
    return b.icmp_signed("<", lanes_of(kind), splat(b, b.trunc(count, I32), kind.count))


def multiply_add(b: ir.IRBuilder, x: ir.Value, y: ir.Value, z: ir.Value) -> ir.Value:
    """Compute x · y + z in one instruction where the processor has it, otherwise in two."""
    kind = x.type
    return call_llvm(b, "fmuladd", kind, kind, x, y, z)


def larger(b: ir.IRBuilder, x: ir.Value, y: ir.Value) -> ir.Value:
    """Take the larger of two, lane by lane."""
    return b.select(b.fcmp_ordered(">", x, y), x, y)


def fold(b: ir.IRBuilder, v: ir.Value, combine: Callable) -> ir.Value:
    """Combine all lanes into one number: the upper half with the lower half, then again, until one lane is left."""
    count = v.type.count
    step = count // 2
    while step:
        order = ir.Constant(ir.VectorType(I32, count), [(lane + step) % count for lane in range(count)])
        v = combine(b, v, b.shuffle_vector(v, ir.Constant(v.type, ir.Undefined), order))
        step //= 2
    return b.extract_element(v, ir.Constant(I32, 0))


def exp2_coefficients(is_float: bool) -> list[float]:
    """Return the coefficients of a polynomial for 2^f, |f| ≤ 1/2, constant first: exact at 0, elsewhere to rounding.

    It interpolates at Chebyshev's points for float32, which needs the fewest terms, and is Taylor's for float64.
    """
    if not is_float:
        return [math.log(2) ** k / math.factorial(k) for k in range(14)]
    fit = np.polynomial.Chebyshev.interpolate(np.exp2, 5, domain=[-0.5, 0.5])
    return [1.0, *fit.convert(kind=np.polynomial.Polynomial).coef[1:].tolist()]


def power_of_two(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """Compute 2^v = 2^round(v) · 2^f.

    Adding 1.5 · 2^(bits of the mantissa) rounds v to an integer and leaves that integer in the lowest bits. A shift
    moves it into the bits of the exponent, where an integer addition to 2^f multiplies by 2^round(v).
    """
    kind, is_float = v.type, v.type.element == ir.FloatType()
    bits, least = (23, -126.0) if is_float else (52, -1022.0)
    integers = ir.VectorType(I32 if is_float else I64, kind.count)
    rounder = same_in_all(kind, 1.5 * 2.0**bits)
    shifted = b.fadd(v, rounder)
    f = b.fsub(v, b.fsub(shifted, rounder))
    *lower, highest = exp2_coefficients(is_float)
    p = same_in_all(kind, highest)
    for c in reversed(lower):
        p = multiply_add(b, p, f, same_in_all(kind, c))
    exponent = b.shl(b.bitcast(shifted, integers), same_in_all(integers, bits))
    power = b.bitcast(b.add(b.bitcast(p, integers), exponent), kind)
    # x · 0 and not 0: a NaN has to stay one
    return b.select(b.fcmp_ordered(">", v, same_in_all(kind, least)), power, b.fmul(v, same_in_all(kind, 0.0)))


def logistic(b: ir.IRBuilder, v: ir.Value) -> ir.Value:
    """Compute 1 / (1 + e^−v) from e^−|v|, which cannot overflow."""
    one, least, log2_e = (same_in_all(v.type, value) for value in (1.0, LEAST, LOG2_E))
    negative = b.fcmp_ordered("<", v, same_in_all(v.type, 0.0))
    below = b.select(negative, v, b.fneg(v))
    e = power_of_two(b, larger(b, least, b.fmul(below, log2_e)))
    return b.fdiv(b.select(negative, e, one), b.fadd(one, e))


def address(
    context: Any, b: ir.IRBuilder, kind: types.Array, array: ir.Value, offset: ir.Value, spans: list, extent: int
) -> ir.Value:
    """Return a pointer to element `offset`.

    With bounds checks, raise IndexError unless all that is read or written exists: `extent` elements from `offset` on,
    and as many at every other corner of the access, which the `spans` (largest index · stride, maybe < 0) lead to.
    """
    view = context.make_array(kind)(context, b, array)
    if BOUNDS_CHECKED:
        zero = int64(0)
        low, high = offset, b.add(offset, int64(extent))
        for span in spans:
            negative = b.icmp_signed("<", span, zero)
            low = b.add(low, b.select(negative, span, zero))
            high = b.add(high, b.select(negative, zero, span))
        bad = b.or_(b.icmp_signed("<", low, zero), b.icmp_signed(">", high, view.nitems))
        with b.if_then(bad, likely=False):
            context.call_conv.return_user_exc(b, IndexError, ("a vector reaches beyond its array",))
    return b.gep(view.data, [offset])


# ── the instructions: Numba hands each the arguments' types; it returns a signature and what generates the code ──────


@intrinsic
def lanes(typing, array):
    """Return how many numbers of the array's dtype a vector holds; a constant to the compiler."""
    count = VECTORS[array.dtype].lanes
    return types.int64(array), lambda context, b, signature, arguments: int64(count)


@intrinsic
def never_inline(typing):
    """Keep the calling function from being inlined, so that it is compiled once and not into each of its callers."""

    def generate(context, b, signature, arguments):
        b.function.attributes.add("noinline")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def fetch_add(typing, counter):
    """Return the int64 counter[0] and add 1 to it, in one step: of many threads, each gets another number."""

    def generate(context, b, signature, arguments):
        pointer = address(context, b, counter, arguments[0], int64(0), [], 1)
        return b.atomic_rmw("add", pointer, int64(1), "monotonic")

    return types.int64(counter), generate


@intrinsic
def load(typing, array, offset):
    """Load the vector array[offset : offset + lanes]."""

    def generate(context, b, signature, arguments):
        kind = llvm_vector(array.dtype)
        pointer = address(context, b, array, arguments[0], arguments[1], [], kind.count)
        return load_at(b, pointer, kind)

    return VECTORS[array.dtype](array, types.int64), generate


@intrinsic
def store(typing, array, offset, vector):
    """Store a vector: array[offset : offset + lanes] = vector."""

    def generate(context, b, signature, arguments):
        pointer = address(context, b, array, arguments[0], arguments[1], [], vector.lanes)
        store_at(b, arguments[2], pointer)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector), generate


def address_of_some(
    context: Any, b: ir.IRBuilder, kind: types.Array, array: ir.Value, offset: ir.Value, count: ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return a pointer to element `offset`, and the mask of `count` lanes; if count ≤ 0, `offset` may be anywhere."""
    vector = llvm_vector(kind.dtype)
    count = smaller(b, count, int64(vector.count))
    nothing = b.icmp_signed("<=", count, int64(0))
    count, offset = (b.select(nothing, int64(0), x) for x in (count, offset))
    return address(context, b, kind, array, offset, [count], 0), first_lanes(b, vector, count)


@intrinsic
def load_some(typing, array, offset, count):
    """Load array[offset : offset + count], and 0 into the other lanes; all lanes if count is larger."""

    def generate(context, b, signature, arguments):
        pointer, mask = address_of_some(context, b, array, *arguments)
        return load_at(b, pointer, llvm_vector(array.dtype), mask)

    return VECTORS[array.dtype](array, types.int64, types.int64), generate


@intrinsic
def store_some(typing, array, offset, vector, count):
    """Store the first `count` lanes of vector to array[offset : offset + count]; all lanes if count is larger."""

    def generate(context, b, signature, arguments):
        x, offset, value, count = arguments
        pointer, mask = address_of_some(context, b, array, x, offset, count)
        store_at(b, value, pointer, mask)
        return context.get_dummy_value()

    return types.void(array, types.int64, vector, types.int64), generate


@intrinsic
def broadcast(typing, array, x):
    """Make a vector of the array's dtype with the number x in every lane."""

    def generate(context, b, signature, arguments):
        return splat(b, context.cast(b, arguments[1], x, array.dtype), VECTORS[array.dtype].lanes)

    return VECTORS[array.dtype](array, x), generate


@intrinsic
def zeros(typing, array):
    """Make a vector of zeros that LLVM does not recognise: it would turn a loop of few stores into a slower memset."""

    def generate(context, b, signature, arguments):
        kind = llvm_vector(array.dtype)
        bits = ir.IntType(8 * item_bytes(kind))
        zero = b.asm(ir.FunctionType(bits, [bits]), "", "=r,0", [ir.Constant(bits, 0)], False)
        return splat(b, b.bitcast(zero, kind.element), kind.count)

    return VECTORS[array.dtype](array), generate


def instruction(doc: str, count: int, generate: Callable, *, scalar: bool = False) -> Callable:
    """Make an instruction on `count` vectors of one kind; its result is such a vector, or a scalar."""

    def typed(x: Vector, *others: Vector) -> tuple:
        result = x.dtype if scalar else x
        return result(x, *others), lambda context, b, signature, arguments: generate(b, *arguments)

    # Numba reads the number of arguments from the signature
    made = {
        1: lambda typing, x: typed(x),
        2: lambda typing, x, y: typed(x, y),
        3: lambda typing, x, y, z: typed(x, y, z),
    }
    made[count].__doc__ = doc
    return intrinsic(made[count])


add = instruction("x + y", 2, lambda b, x, y: b.fadd(x, y))
subtract = instruction("x − y", 2, lambda b, x, y: b.fsub(x, y))
multiply = instruction("x · y", 2, lambda b, x, y: b.fmul(x, y))
muladd = instruction("x · y + z", 3, multiply_add)
maximum = instruction("the larger of x and y", 2, larger)
largest = instruction("the largest lane", 1, lambda b, x: fold(b, x, larger), scalar=True)
total = instruction("the sum of the lanes", 1, lambda b, x: fold(b, x, lambda b, p, q: b.fadd(p, q)), scalar=True)
exp2 = instruction("2^x for x up to about 100, 0 below the dtype's normal numbers; NaN for NaN", 1, power_of_two)
sigmoid = instruction("1 / (1 + e^−x); NaN for NaN", 1, logistic)


@intrinsic
def any_greater(typing, x, y):
    """Return whether x > y in any lane."""

    def generate(context, b, signature, arguments):
        bits = b.bitcast(b.fcmp_ordered(">", *arguments), ir.IntType(x.lanes))
        return b.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(x.lanes), 0))

    return types.boolean(x, y), generate


@intrinsic
def only_lanes(typing, x, low, high, otherwise):
    """Keep x in the lanes low ≤ lane < high and put the number `otherwise` into all others."""

    def generate(context, b, signature, arguments):
        v, low, high, otherwise_ = arguments
        lane = lanes_of(v.type)
        above = b.icmp_signed(">=", lane, splat(b, b.trunc(low, I32), x.lanes))
        below = b.icmp_signed("<", lane, splat(b, b.trunc(high, I32), x.lanes))
        fill = splat(b, context.cast(b, otherwise_, otherwise, x.dtype), x.lanes)
        return b.select(b.and_(above, below), v, fill)

    return x(x, types.int64, types.int64, otherwise), generate


@intrinsic
def drop(typing, x, first, key0, key1, threshold):
    """Keep x where dropout keeps the entry and put 0 elsewhere; lane l is entry number first + l (modulo 2³²).

    The hash is that of `tinyprune.ops.dropout.keep_mask`; an entry stays iff hash ≥ threshold = rate · 2³².
    """

    def generate(context, b, signature, arguments):
        v = arguments[0]
        integers = ir.VectorType(I32, x.lanes)
        first, key0, key1, threshold = (splat(b, b.trunc(value, I32), x.lanes) for value in arguments[1:])

        def mix(h: ir.Value, shift: int) -> ir.Value:
            return b.xor(h, b.lshr(h, same_in_all(integers, shift)))

        h = b.xor(b.add(first, lanes_of(v.type)), key0)
        h = b.mul(mix(h, 17), same_in_all(integers, 0xED5AD4BB))
        h = b.mul(mix(b.xor(h, key1), 11), same_in_all(integers, 0xAC4C1B51))
        h = mix(b.mul(mix(h, 15), same_in_all(integers, 0x31848BAB)), 14)
        return b.select(b.icmp_unsigned(">=", h, threshold), v, same_in_all(v.type, 0.0))

    return x(x, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def transpose(typing, source, at, stride, target, to, target_stride, factor):
    """target[to + i · target_stride + j] = factor · source[at + j · stride + i] for a square block of lanes × lanes.

    log2(lanes) rounds of shuffles in registers: every load and store is a whole vector, none gathers. With None for
    `factor` only bits are moved, which need not be numbers.
    """

    def generate(context, b, signature, arguments):
        source_, at, stride, target_, to, target_stride, factor_ = arguments
        kind = llvm_vector(source.dtype)
        n = kind.count
        spans = [b.mul(s, int64(n - 1)) for s in (stride, target_stride)]
        first = address(context, b, source, source_, at, spans[:1], n)
        out = address(context, b, target, target_, to, spans[1:], n)
        rows = [load_at(b, b.gep(first, [b.mul(int64(i), stride)]), kind) for i in range(n)]
        step = 1
        while step < n:
            # Exchange the off-diagonal halves of every 2·step × 2·step block: the new rows i and i + step take
            # these lanes of the old ones, those of the second numbered from n on.
            low = [lane if not lane & step else n + lane - step for lane in range(n)]
            high = [lane + step if not lane & step else n + lane for lane in range(n)]
            for i in range(n):
                if not i & step:
                    pair = rows[i], rows[i + step]
                    rows[i] = b.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, n), low))
                    rows[i + step] = b.shuffle_vector(*pair, ir.Constant(ir.VectorType(I32, n), high))
            step *= 2
        if factor != types.none:
            times = splat(b, context.cast(b, factor_, factor, source.dtype), n)
            rows = [b.fmul(row, times) for row in rows]
        for i in range(n):
            store_at(b, rows[i], b.gep(out, [b.mul(int64(i), target_stride)]))
        return context.get_dummy_value()

    index = types.int64
    return types.void(source, index, index, target, index, index, factor), generate

"""What each instruction computes, for one lane: functions that Numba compiles for this machine's processor.

Registers are an array (registers, 32) of 64 bits, seen as different types; types of 32 bits use the lower half.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numba.extending import intrinsic

from tinyprune.kernels.cuda.emulator.program import CONVERT as R
from tinyprune.kernels.cuda.emulator.program import FLOAT as F
from tinyprune.kernels.cuda.emulator.program import INTEGER as I
from tinyprune.kernels.cuda.emulator.program import KIND as K

compiled = njit(cache=True, error_model="numpy")


class Warp(NamedTuple):
    """The registers of a warp as different types, (registers, 32), or (registers, 64) where entry 2 · lane is the
    lower half; and its predicates, a bit a lane."""

    s64: np.ndarray
    u64: np.ndarray
    f64: np.ndarray
    u32: np.ndarray
    f32: np.ndarray
    predicates: np.ndarray
    number: int


@compiled
def cut(x, kind):
    """Return x modulo 2 to the number of bits of an integer type, as a number of the type; any other x as it is."""
    above = 64 - (8 << kind % 4) if kind < K.f32 else 0
    x = np.int64(x) << above
    return x >> above if kind >= K.s8 else np.int64(np.uint64(x) >> np.uint64(above))


@compiled
def integer(op, kind, x, y, z, n):
    """Compute an operation on integers; `bfi` has a fourth operand, n."""
    bits = 8 << (kind % 4)
    if op == I.add:
        return x + y
    if op == I.sub:
        return x - y
    if op == I.mul_lo or op == I.mul_wide:
        return x * y
    if op == I.mad_lo or op == I.mad_wide:
        return x * y + z
    if op == I.mov:
        return x
    if op == I.and_:
        return x & y
    if op == I.or_:
        return x | y
    if op == I.xor:
        return x ^ y
    if op == I.not_:
        return ~x
    if op == I.neg:
        return -x
    if op == I.shr and kind != K.u64:
        return x >> min(y, 63)
    if op == I.shl or op == I.shr:
        if y >= bits:
            return np.int64(0)
        return x << y if op == I.shl else np.int64(np.uint64(x) >> np.uint64(y))
    if op == I.min or op == I.max:
        return x if (x < y) == (op == I.min) else y
    if op == I.bfi:
        field = (np.int64(1) << n) - 1
        if n >= 64:
            field = np.int64(-1)
        if z >= bits:
            return y
        field <<= z
        return (y & ~field) | ((x << z) & field)
    if y == 0:  # of a division
        quotient = np.int64(-1)
        return x if op == I.rem else quotient
    quotient = -x
    if y != -1:
        quotient = x // y  # rounded down; towards zero is due
        quotient += quotient * y != x and (x < 0) != (y < 0)
    return x - quotient * y if op == I.rem else quotient


@intrinsic
def fma(typingctx, x, y, z):
    """Return x · y + z, rounded once."""
    return x(x, x, x), lambda context, builder, signature, arguments: builder.fma(*arguments)


@compiled
def fma_down(x, y, z):
    """Return x · y + z in float32, rounded towards −∞. The sum is exact as s + e in float64 (Knuth's TwoSum)."""
    p, z = np.float64(x) * np.float64(y), np.float64(z)
    s = p + z
    t = s - p
    e = (p - (s - t)) + (z - t)
    r = np.float32(s)
    if np.float64(r) - s > e:
        return np.nextafter(r, np.float32(-np.inf))
    return r


@compiled
def floating(op, x, y, z):
    """Compute an operation on floats of one type. What GPUs approximate is rounded correctly here.

    Some results for float32 are of float64, and are rounded once more when they are stored: as if once (Figueroa 1995).
    """
    if op == F.fma:
        return fma(x, y, z)
    if op == F.add:
        return x + y
    if op == F.mul:
        return x * y
    if op == F.sub:
        return x - y
    if op == F.neg:
        return -x
    if op == F.abs:
        return abs(x)
    if op == F.div:
        return x / y
    if op == F.min or op == F.max:  # of a NaN and a number the number; −0 < +0
        if x != x:
            return y
        if y != y:
            return x
        less = x < y or (x == y and math.copysign(1.0, x) < 0)
        return x if less == (op == F.min) else y
    if op == F.fms:
        return fma(x, y, -z)
    if op == F.fnma:
        return fma(-x, y, z)
    if op == F.sqrt:
        return math.sqrt(x)
    if op == F.rcp:
        return 1.0 / x
    if op == F.ex2_ftz:
        power = np.exp2(np.float64(x))
        return 0.0 if power < 2.0**-126 else power
    return fma_down(np.float32(x), np.float32(y), np.float32(z))


@compiled
def relation(x, y):
    """Return how two numbers are related, as `COMPARE` has it: 1 less, 2 equal, 4 greater, 8 one is NaN."""
    if x == y:
        return 2
    if x < y:
        return 1
    return 4 if x > y else 8


@compiled
def store_float(w, d, lane, to, x):
    """Set a register to a number, rounded to a type of floats."""
    if to == K.f32:
        w.f32[d, 2 * lane] = np.float32(x)
    else:
        w.f64[d, lane] = np.float64(x)


@compiled
def convert(w, i, mask):
    """Make numbers of one type those of another, in the lanes of a mask."""
    op, kind, to, a, d = i.op, i.kind, i.to, i.a, i.d
    for lane in range(32):
        if mask >> np.uint32(lane) & np.uint32(1) == 0:
            continue
        if kind < K.f32:
            x = cut(w.s64[a, lane], kind)
            if to < K.f32:
                w.s64[d, lane] = cut(x, to)
            elif kind == K.u64:
                store_float(w, d, lane, to, np.uint64(x))
            else:
                store_float(w, d, lane, to, x)
        elif op == R.tf32:  # 10 bits after the leading one, half away from zero; infinity and NaN remain
            bits = w.u32[a, 2 * lane]
            special = bits & np.uint32(0x7F800000) == np.uint32(0x7F800000)
            w.u32[d, 2 * lane] = bits if special else (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        else:
            y = np.float64(w.f32[a, 2 * lane]) if kind == K.f32 else w.f64[a, lane]
            if op == R.sat:
                y = min(max(y, 0.0), 1.0) if y == y else 0.0
            store_float(w, d, lane, to, y)


@compiled
def mma(w, i):
    """Compute d = a · b + c of 16 × 8, 8 × 8 and 16 × 8 numbers: mma.m16n8k8 of tf32, by the whole warp.

    Products of tf32 are exact in float64. The registers are d0 … d3, a0 … a3, b0, b1, c0 … c3; see `tensor_cores`.
    """
    a, b, sums = np.empty((16, 8)), np.empty((8, 8)), np.empty((4, 32), np.float32)
    for lane in range(32):
        row, column = lane // 4, lane % 4
        for n in range(6):
            bits = np.uint32(w.u32[i.more[4 + n], 2 * lane] & np.uint32(0xFFFFE000))
            x = np.float64(bits.view(np.float32))
            if n < 4:
                a[row + 8 * (n % 2), column + 4 * (n // 2)] = x
            else:
                b[column + 4 * (n - 4), row] = x
    for lane in range(32):
        for n in range(4):
            row, column = lane // 4 + n // 2 * 8, lane % 4 * 2 + n % 2
            total = np.float64(w.f32[i.more[10 + n], 2 * lane])
            for k in range(8):
                total += a[row, k] * b[k, column]
            sums[n, lane] = np.float32(total)
    for lane in range(32):
        for n in range(4):
            w.f32[i.more[n], 2 * lane] = sums[n, lane]

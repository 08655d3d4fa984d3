"""Execute a kernel, warp by warp, and check every access; compiled by Numba for this machine's processor.

A warp's registers are an array (registers, 32) of 64 bits, of which types of 32 bits use the lower half. Lanes that part
at a branch run in groups: the group with the lowest place in the program goes first, and groups that meet are joined.
The warps of a block run one after the other, each from barrier to barrier.

A phase is what a block does between two barriers; phases are numbered through all blocks and launches. Each word of
memory remembers in which phase, and by which thread of a block, it was last written and last read. Two threads race if
they access a word in one phase and one of them writes, or if different blocks of one launch do.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit
from numba.extending import intrinsic

from tinyprune.kernels.cuda.emulator.program import COMPARE as C
from tinyprune.kernels.cuda.emulator.program import CONVERT as R
from tinyprune.kernels.cuda.emulator.program import FLOAT as F
from tinyprune.kernels.cuda.emulator.program import GROUP as G
from tinyprune.kernels.cuda.emulator.program import INTEGER as I
from tinyprune.kernels.cuda.emulator.program import KIND as K
from tinyprune.kernels.cuda.emulator.program import NARROW, SPACE, THROUGH_CACHE, WRITES
from tinyprune.kernels.cuda.emulator.program import PREDICATE as P

compiled = njit(cache=True, error_model="numpy")
LANES = 32
FULL = 0xFFFFFFFF
THREADS, BLOCKS = 0xFFFF, 0xFFFE  # in place of a thread: several threads, or several blocks, have read a word

# What can be wrong, in the words of a message.
WRONG = (
    "reads outside of every array",
    "writes outside of every array",
    "is not aligned",
    "reads what was never written",
    "races with another thread of its block: no barrier between them",
    "races with another block",
    "reads through the read-only cache what this launch writes",
    "is not reached by all threads of the block",
    "needs all lanes of a warp",
    "has been executed too often; the kernel does not end",
)
READS_OUTSIDE, WRITES_OUTSIDE, MISALIGNED, UNWRITTEN, RACE, BLOCK_RACE, STALE, DIVERGENT, LANES_MISSING, ENDLESS = (
    range(len(WRONG))
)
FOUND = np.dtype(
    [("times", np.int64), ("block", np.int32, 3), ("thread", np.int32), ("other", np.int32), ("address", np.int64)]
)
WORD = np.dtype([(name, np.uint32) for name in ("written_in", "read_in")] + [("writer", np.uint16), ("reader", np.uint16)]
                + [("live", np.uint8), ("set", np.uint8)], align=True)  # fmt: skip
COUNT = np.dtype([(name, np.int64) for name in ("warps", "lanes", "requests", "parts", "fewest")])


class Machine(NamedTuple):
    """What a launch works on.

    Attributes:
        memory: all of the GPU's, in bytes; an address is an index.
        words: a `WORD` for each 4 bytes of it.
        found: what was wrong, (len(WRONG), instructions), a `FOUND` each.
        counts: a `COUNT` for each instruction.
        phase: (1,), the number of the last phase.
    """

    memory: np.ndarray
    words: np.ndarray
    found: np.ndarray
    counts: np.ndarray
    phase: np.ndarray


class Block(NamedTuple):
    """A block that is executed.

    Attributes:
        index: along x, y and z.
        first, launch: first phases of the block and of the launch.
        shared, words: its shared memory, in bytes, and a `WORD` for each 4.
        local, local_set: each thread's memory and which of its bytes were written, (threads, bytes).
        parameters: the arguments, in bytes.
    """

    index: np.ndarray
    first: np.ndarray
    launch: np.ndarray
    shared: np.ndarray
    words: np.ndarray
    local: np.ndarray
    local_set: np.ndarray
    parameters: np.ndarray


class Warp(NamedTuple):
    """The registers of a warp, seen as different types, (registers, 32 or 64), and its predicates, a bit a lane."""

    s64: np.ndarray
    u64: np.ndarray
    f64: np.ndarray
    s32: np.ndarray
    u32: np.ndarray
    f32: np.ndarray
    predicates: np.ndarray
    number: int


@intrinsic
def fma(typingctx, x, y, z):
    """Return x · y + z, rounded once."""

    def code(context, builder, signature, arguments):
        return builder.fma(*arguments)

    return x(x, x, x), code


@compiled
def fma_down(x, y, z):
    """Return x · y + z in float32, rounded towards −∞. The sum is exact as s + e in float64 (Knuth's TwoSum)."""
    p, z = np.float64(x) * np.float64(y), np.float64(z)
    s = p + z
    t = s - p
    e = (p - (s - t)) + (z - t)
    r = np.float32(s)
    return np.nextafter(r, np.float32(-np.inf)) if np.float64(r) - s > e else r


@compiled
def wide(w, place, lane, kind):
    """Return a register's integer; one of uint64 modulo 2⁶⁴."""
    if kind == K.s32:
        return np.int64(w.s32[place, 2 * lane])
    if kind == K.u32:
        return np.int64(w.u32[place, 2 * lane])
    x = w.s64[place, lane]
    if kind == K.u16:
        return x & 0xFFFF
    if kind == K.s16:
        return np.int64(np.int16(x))
    if kind == K.u8:
        return x & 0xFF
    if kind == K.s8:
        return np.int64(np.int8(x))
    return x


@compiled
def integer(op, kind, x, y, z, v):
    """Compute an integer operation; x, y, z and v are its operands, as `wide` returns them."""
    bits = 64 if kind in (K.u64, K.s64) else 16 if kind in (K.u16, K.s16) else 32
    big = kind == K.u64
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
    if op == I.shl:
        return x << y if np.uint64(y) < bits else np.int64(0)
    if op == I.shr:
        if np.uint64(y) >= bits:
            return np.int64(-1) if x < 0 and not big else np.int64(0)
        return np.int64(np.uint64(x) >> np.uint64(y)) if big else x >> y
    if op == I.min:
        return (x if np.uint64(x) < np.uint64(y) else y) if big else min(x, y)
    if op == I.max:
        return (x if np.uint64(x) > np.uint64(y) else y) if big else max(x, y)
    if op == I.neg:
        return -x
    if op == I.abs:
        return abs(x)
    if op == I.div or op == I.rem:
        return quotient(op == I.rem, big, x, y)
    if op == I.mul_hi:
        return (x * y) >> 32 if bits == 32 else high_product(x, y)
    if op == I.bfi:
        field = np.int64(-1) if v >= 64 else (np.int64(1) << v) - 1
        field = np.int64(0) if z >= bits else field << z
        return (y & ~field) | ((x << z) & field)
    if op == I.bfe:
        field = np.int64(-1) if z >= 64 else (np.int64(1) << z) - 1
        return np.int64(np.uint64(x) >> np.uint64(y)) & field if y < bits else np.int64(0)
    if op == I.shf_l_wrap or op == I.shf_r_wrap:
        both = (y << 32) | x
        return (both << (z & 31)) >> 32 if op == I.shf_l_wrap else np.int64(np.uint64(both) >> np.uint64(z & 31))
    if op == I.popc:
        return bit_count(x)
    if op == I.clz:
        n = np.int64(bits)
        while x != 0 and n > 0:
            x = np.int64(np.uint64(x) >> np.uint64(1))
            n -= 1
        return n
    return permuted(x, y, z)


@compiled
def quotient(remainder, big, x, y):
    """Divide towards zero; by zero as GPUs do."""
    if y == 0:
        return x if remainder else np.int64(-1)
    if big:
        q = np.int64(np.uint64(x) // np.uint64(y))
        return x - q * y if remainder else q
    if y == -1:
        return np.int64(0) if remainder else -x
    q = x // y  # rounded down
    if q * y != x and (x < 0) != (y < 0):
        q += 1
    return x - q * y if remainder else q


@compiled
def high_product(x, y):
    """Return the upper 64 bits of the product of two unsigned numbers."""
    mask, a, b = np.uint64(FULL), np.uint64(x), np.uint64(y)
    a1, a0, b1, b0 = a >> np.uint64(32), a & mask, b >> np.uint64(32), b & mask
    middle = a1 * b0 + ((a0 * b0) >> np.uint64(32))
    return np.int64(a1 * b1 + (middle >> np.uint64(32)) + ((a0 * b1 + (middle & mask)) >> np.uint64(32)))


@compiled
def bit_count(x):
    """Return how many bits are 1."""
    n = np.int64(0)
    for k in range(64):
        n += (x >> k) & 1
    return n


@compiled
def permuted(x, y, selector):
    """Return four bytes, each chosen from the eight of x and y, or its sign spread over it."""
    both, found = (y << 32) | x, np.int64(0)
    for n in range(4):
        k = (selector >> (4 * n)) & 15
        byte = (both >> (8 * (k & 7))) & 255
        if k & 8:
            byte = np.int64(255) if byte & 128 else np.int64(0)
        found |= byte << (8 * n)
    return found


@compiled
def floating(op, x, y, z):
    """Compute an operation on numbers of one type of float. What GPUs approximate is rounded exactly here."""
    if op == F.fma:
        return fma(x, y, z)
    if op == F.add:
        return x + y
    if op == F.mul:
        return x * y
    if op == F.sub:
        return x - y
    if op == F.mov:
        return x
    if op == F.neg:
        return -x
    if op == F.abs:
        return abs(x)
    if op == F.min or op == F.max:  # of a NaN and a number the number; −0 < +0
        if x != x or y != y:
            return y if x != x else x
        less = x < y or (x == y and math.copysign(1.0, x) < 0)
        return x if less == (op == F.min) else y
    if op == F.div:
        return x / y
    if op == F.fms:
        return fma(x, y, -z)
    if op == F.fnma:
        return fma(-x, y, z)
    if op == F.sqrt:
        return type_of(x, math.sqrt(x))
    if op == F.rcp:
        return type_of(x, 1.0) / x
    if op == F.rsqrt:
        return type_of(x, 1.0 / math.sqrt(np.float64(x)))
    if op == F.ex2:
        return type_of(x, np.exp2(np.float64(x)))
    if op == F.lg2:
        return type_of(x, np.log2(np.float64(x)))
    if op == F.copysign:
        return type_of(x, math.copysign(y, x))
    return type_of(x, fma_down(np.float32(x), np.float32(y), np.float32(z)))


@intrinsic
def type_of(typingctx, x, value):
    """Return `value` in x's type."""

    def code(context, builder, signature, arguments):
        return context.cast(builder, arguments[1], signature.args[1], signature.args[0])

    return x(x, value), code


@compiled
def flushed(x):
    """Return 0 for a number too small to be normal, with its sign."""
    return math.copysign(np.float32(0), x) if abs(x) < np.float32(2.0**-126) else x


@compiled
def less_equal(op, x, y, unordered):
    """Compare two numbers; `unordered`: whether one is NaN, for which equ, neu, ltu, … are true."""
    if op == C.eq:
        return x == y
    if op == C.ne:
        return x != y and not unordered
    if op == C.lt:
        return x < y
    if op == C.le:
        return x <= y
    if op == C.gt:
        return x > y
    if op == C.ge:
        return x >= y
    if op == C.nan or unordered:
        return unordered if op == C.nan else op != C.num
    return (
        op == C.num
        or (op == C.equ and x == y)
        or (op == C.neu and x != y)
        or (op == C.ltu and x < y)
        or (op == C.leu and x <= y)
        or (op == C.gtu and x > y)
        or (op == C.geu and x >= y)
    )


@compiled
def rounded(op, x):
    """Round a float to an integer, still as a float."""
    if op == R.rzi:
        return np.trunc(x)
    if op == R.rmi:
        return np.floor(x)
    if op == R.rpi:
        return np.ceil(x)
    return np.rint(x)


@compiled
def to_integer(x, kind):
    """Return a whole float64 as an integer of a type, at most its largest and at least its smallest number; NaN is 0."""
    signed = kind >= K.s8
    bits = 8 << (kind % 4)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if signed else (0.0, 2.0**bits)
    if x != x:
        return np.int64(0) if bits < 64 else np.int64(-(2**63))
    if x >= high:
        return np.int64(-1) if bits == 64 and not signed else np.int64(high - 1) if bits < 64 else np.int64(2**63 - 1)
    if x <= low:
        return np.int64(low)
    return np.int64(x) if signed or x < 2.0**63 else np.int64(np.uint64(x))


@compiled
def convert(w, i, lane):
    """Make a number of one type one of another."""
    op, kind, to, a, d = i.op, i.kind, i.to, i.a, i.d
    if kind < K.f32:
        x = wide(w, a, lane, kind)
        if to == K.f32:
            w.f32[d, 2 * lane] = np.float32(np.uint64(x)) if kind == K.u64 else np.float32(x)
        elif to == K.f64:
            w.f64[d, lane] = np.float64(np.uint64(x)) if kind == K.u64 else np.float64(x)
        else:
            w.s64[d, lane] = x
            w.s64[d, lane] = wide(w, d, lane, to)
        return
    if op == R.tf32:  # 10 bits after the leading one, half away from zero; infinity and NaN remain
        bits = w.u32[a, 2 * lane]
        special = bits & np.uint32(0x7F800000) == np.uint32(0x7F800000)
        w.u32[d, 2 * lane] = bits if special else (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
        return
    x = np.float64(w.f32[a, 2 * lane]) if kind == K.f32 else w.f64[a, lane]
    if to < K.f32:
        w.s64[d, lane] = to_integer(rounded(op, x), to)
        return
    if op == R.sat:
        x = min(max(x, 0.0), 1.0) if x == x else 0.0
    elif op != R.rn:
        x = rounded(op, x)
    if to == K.f32:
        w.f32[d, 2 * lane] = np.float32(x)
    else:
        w.f64[d, lane] = x


@compiled
def compare(w, i, mask):
    """Set a predicate, or two that are opposites, from a comparison and perhaps another predicate."""
    bits = np.uint32(0)
    for lane in range(LANES):
        if i.kind == K.f32:
            x, y = w.f32[i.a, 2 * lane], w.f32[i.b, 2 * lane]
            true = less_equal(i.op, x, y, x != x or y != y)
        elif i.kind == K.f64:
            p, q = w.f64[i.a, lane], w.f64[i.b, lane]
            true = less_equal(i.op, p, q, p != p or q != q)
        elif i.kind == K.u64:
            true = less_equal(i.op, w.u64[i.a, lane], w.u64[i.b, lane], False)
        else:
            true = less_equal(i.op, wide(w, i.a, lane, i.kind), wide(w, i.b, lane, i.kind), False)
        bits |= np.uint32(true) << np.uint32(lane)
    for place, value in ((i.d, bits), (i.to, ~bits)):
        if place >= 0:
            joined = value
            if i.flags:
                other = ~w.predicates[i.c] if i.size else w.predicates[i.c]
                joined = value & other if i.flags == 1 else value | other if i.flags == 2 else value ^ other
            w.predicates[place] = (w.predicates[place] & ~mask) | (joined & mask)


@compiled
def combine(w, i, mask):
    """Compute an operation on predicates."""
    x, y = w.predicates[i.a], w.predicates[i.b]
    value = x
    if i.op == P.and_:
        value = x & y
    elif i.op == P.or_:
        value = x | y
    elif i.op == P.xor:
        value = x ^ y
    elif i.op == P.not_:
        value = ~x
    elif i.op == P.zero or i.op == P.one:
        value = np.uint32(FULL) if i.op == P.one else np.uint32(0)
    w.predicates[i.d] = (w.predicates[i.d] & ~mask) | (value & mask)


@compiled
def report(m, b, wrong, place, thread, address, other):
    """Note that an instruction does something wrong; the first time with where."""
    found = m.found[wrong, place]
    if found.times == 0:
        found.block[:] = b.index
        found.thread, found.address, found.other = thread, address, other
    found.times += 1


@compiled
def touch(m, b, word, place, thread, address, flags, everywhere):
    """Record that a thread reads or writes a word, and report what it races with. `everywhere`: in global memory."""
    now, first = m.phase[0], b.first[0]
    begin = b.launch[0] if everywhere else first
    writes = flags & WRITES
    if word.written_in >= begin:
        if word.written_in < first:
            report(m, b, BLOCK_RACE, place, thread, address, word.writer)
        elif word.written_in == now and word.writer != thread:
            report(m, b, RACE, place, thread, address, word.writer)
        if flags & THROUGH_CACHE:
            report(m, b, STALE, place, thread, address, word.writer)
    if writes:
        if word.read_in >= begin:
            if word.read_in < first or word.reader == BLOCKS:
                report(m, b, BLOCK_RACE, place, thread, address, word.reader)
            elif word.read_in == now and word.reader != thread:
                report(m, b, RACE, place, thread, address, word.reader)
        word.written_in, word.writer = now, thread
    elif word.read_in >= begin and (word.read_in < first or word.reader == BLOCKS):
        word.read_in, word.reader = now, BLOCKS
    elif word.read_in == now and word.reader != thread:
        word.reader = THREADS
    elif word.read_in != now:
        word.read_in, word.reader = now, thread


@compiled
def load(memory, address, kind, size):
    """Return a number of up to 8 bytes as an integer of its type."""
    x = np.uint64(0)
    for n in range(size):
        x |= np.uint64(memory[address + n]) << np.uint64(8 * n)
    x = np.int64(x)
    if kind == K.s32:
        return np.int64(np.int32(x))
    if kind == K.s16:
        return np.int64(np.int16(x))
    return np.int64(np.int8(x)) if kind == K.s8 else x


@compiled
def access_memory(m, b, w, i, place, mask, counted):
    """Load or store one, two or four numbers for each lane."""
    addresses = np.empty(LANES, np.int64)
    for lane in range(LANES):
        base = np.int64(w.u32[i.a, 2 * lane]) if i.flags & NARROW else w.s64[i.a, lane]
        addresses[lane] = base + i.offset
    in_shared = i.to == SPACE.shared
    memory, words = (b.shared, b.words) if in_shared else (m.memory, m.words)
    bytes_each = i.size * i.count
    if counted and i.to != SPACE.local:
        count_parts(m.counts[place], addresses, mask, bytes_each, in_shared)
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & np.uint32(1):
            continue
        at, thread = addresses[lane], w.number * LANES + lane
        if at % bytes_each:
            report(m, b, MISALIGNED, place, thread, at, -1)
        if i.to == SPACE.local:
            access_local(m, b, w, i, place, lane, at)
            continue
        fine = 0 <= at and at + bytes_each <= memory.size and at % bytes_each == 0
        if fine:
            for n in range(at >> 2, (at + bytes_each + 3) >> 2):
                fine &= words[n].live != 0
        if not fine:
            report(m, b, WRITES_OUTSIDE if i.flags & WRITES else READS_OUTSIDE, place, thread, at, -1)
            continue
        for n in range(at >> 2, (at + bytes_each + 3) >> 2):
            word = words[n]
            if i.flags & WRITES:
                word.set = 1
            elif word.set == 0:
                report(m, b, UNWRITTEN, place, thread, at, -1)
            touch(m, b, word, place, thread, 4 * n, i.flags, not in_shared)
        move(memory, w, i, lane, at)


@compiled
def move(memory, w, i, lane, at):
    """Copy numbers between memory and registers."""
    for n in range(i.count):
        if i.flags & WRITES:
            x = w.u64[i.more[n], lane]
            for k in range(i.size):
                memory[at + k] = np.uint8(x >> np.uint64(8 * k))
        else:
            w.s64[i.more[n], lane] = load(memory, at, i.kind, i.size)
        at += i.size


@compiled
def access_local(m, b, w, i, place, lane, at):
    """Load or store in a thread's own memory."""
    thread = w.number * LANES + lane
    if at < 0 or at + i.size * i.count > b.local.shape[1]:
        report(m, b, WRITES_OUTSIDE if i.flags & WRITES else READS_OUTSIDE, place, thread, at, -1)
        return
    for n in range(at, at + i.size * i.count):
        if i.flags & WRITES:
            b.local_set[thread, n] = 1
        elif not b.local_set[thread, n]:
            report(m, b, UNWRITTEN, place, thread, at, -1)
    move(b.local[thread], w, i, lane, at)


@compiled
def count_parts(count, addresses, mask, size, in_shared):
    """Count in how many parts memory serves a request, and in how few it could.

    Of global memory these are sectors of 32 bytes. Of shared memory they are waves: one serves a word of each of 32
    banks, and requests of 8 or 16 bytes a lane are cut into halves or quarters of the warp.
    """
    seen = np.empty(LANES * 4, np.int64)
    parts = distinct = 0
    count.requests += 1
    if not in_shared:
        for lane in range(LANES):
            if (mask >> np.uint32(lane)) & np.uint32(1):
                sector, new = addresses[lane] >> 5, True
                for n in range(parts):
                    new &= seen[n] != sector
                if new:
                    seen[parts] = sector
                    parts += 1
                distinct += 1
                for other in range(lane):
                    if (mask >> np.uint32(other)) & np.uint32(1) and addresses[other] == addresses[lane]:
                        distinct -= 1
                        break
        count.parts += parts
        count.fewest += (distinct * size + 31) // 32
        return
    group = LANES * 4 // max(size, 4)
    for first in range(0, LANES, group):
        banks = np.zeros(32, np.int64)
        words = 0
        for lane in range(first, first + group):
            if (mask >> np.uint32(lane)) & np.uint32(1):
                for k in range(max(size // 4, 1)):
                    word, new = (addresses[lane] >> 2) + k, True
                    for n in range(words):
                        new &= seen[n] != word
                    if new:
                        seen[words] = word
                        words += 1
                        banks[word & 31] += 1
        count.parts += banks.max()
        distinct += words
    count.fewest += (distinct + 31) // 32


@compiled
def tensor_product(w, i):
    """d = a · b + c of 16 × 8, 8 × 8 and 16 × 8 numbers: mma.m16n8k8 of tf32, whose products are exact in float64."""
    a, b = np.empty((16, 8)), np.empty((8, 8))
    sums = np.empty((4, LANES), np.float32)
    for lane in range(LANES):
        row, column = lane // 4, lane % 4
        for n in range(6):
            bits = np.uint32(w.u32[i.more[4 + n], 2 * lane] & np.uint32(0xFFFFE000))
            x = np.float64(bits.view(np.float32))
            if n < 4:
                a[row + 8 * (n % 2), column + 4 * (n // 2)] = x
            else:
                b[column + 4 * (n - 4), row] = x
    for lane in range(LANES):
        for n in range(4):
            row, column = lane // 4 + n // 2 * 8, lane % 4 * 2 + n % 2
            total = np.float64(w.f32[i.more[10 + n], 2 * lane])
            for k in range(8):
                total += a[row, k] * b[k, column]
            sums[n, lane] = np.float32(total)
    for lane in range(LANES):
        for n in range(4):
            w.f32[i.more[n], 2 * lane] = sums[n, lane]


@compiled
def arithmetic(w, i, mask):
    """Execute an instruction that computes a register of each lane from others."""
    group, op, kind, d, a, b, c = i.group, i.op, i.kind, i.d, i.a, i.b, i.c
    chosen = w.predicates[c] if group == G.select else np.uint32(0)
    for lane in range(LANES):
        if not (mask >> np.uint32(lane)) & np.uint32(1):
            continue
        if group == G.float32:
            x, y, z = w.f32[a, 2 * lane], w.f32[b, 2 * lane], w.f32[c, 2 * lane]
            if i.flags:
                w.f32[d, 2 * lane] = flushed(floating(op, flushed(x), flushed(y), flushed(z)))
            else:
                w.f32[d, 2 * lane] = floating(op, x, y, z)
        elif group == G.integer:
            third = K.s64 if op == I.mad_wide else K.u32 if op == I.bfi else kind
            second = K.u32 if op in (I.shl, I.shr, I.bfe) else kind
            v = wide(w, i.more[0], lane, K.u32) if op == I.bfi else np.int64(0)
            x, y, z = wide(w, a, lane, kind), wide(w, b, lane, second), wide(w, c, lane, third)
            w.s64[d, lane] = integer(op, kind, x, y, z, v)
        elif group == G.select:
            w.s64[d, lane] = w.s64[a if (chosen >> np.uint32(lane)) & np.uint32(1) else b, lane]
        elif group == G.convert:
            convert(w, i, lane)
        elif group == G.float64:
            w.f64[d, lane] = floating(op, w.f64[a, lane], w.f64[b, lane], w.f64[c, lane])
        elif group == G.pack:
            low, high = w.u32[a, 2 * lane], w.u32[b, 2 * lane]
            w.u32[d, 2 * lane], w.u32[d, 2 * lane + 1] = low, high
        else:  # unpack
            low, high = w.u32[a, 2 * lane], w.u32[a, 2 * lane + 1]
            w.u32[d, 2 * lane], w.u32[b, 2 * lane] = low, high


@compiled
def join(masks, places, groups, mask, place):
    """Add lanes to the group at their place in the program, or make one; return how many there are."""
    for n in range(groups):
        if places[n] == place:
            masks[n] |= mask
            return groups
    masks[groups], places[groups] = mask, place
    return groups + 1


@compiled
def run_warp(m, b, w, code, masks, places, alive, counted, budget):
    """Run a warp to its next barrier or its end.

    Args:
        masks, places: the groups of lanes and where they are; in the end those that wait, behind their barrier.
        alive: (1,), lanes that have not ended.
        budget: (1,), how many more branches may be taken.

    Returns the place of the barrier, or −1 at the end.
    """
    groups = np.int64(1)
    parked, at_barrier, barrier = np.uint32(0), np.int64(-1), False
    while groups:
        low = 0
        for n in range(1, groups):
            if places[n] < places[low]:
                low = n
        active, place = masks[low], places[low]
        groups -= 1
        masks[low], places[low] = masks[groups], places[groups]
        nearest = np.int64(len(code))
        for n in range(groups):
            nearest = min(nearest, places[n])
        while True:
            if place >= nearest:
                if place < len(code):
                    groups = join(masks, places, groups, active, place)
                break
            i = code[place]
            mask = active
            if i.guard >= 0:
                guard = w.predicates[i.guard]
                mask &= ~guard if i.negated else guard
            count = m.counts[place]
            count.warps += 1
            if counted:
                count.lanes += bit_count(np.int64(mask))
            group = i.group
            if group == G.branch:
                budget[0] -= 1
                if budget[0] < 0:
                    report(m, b, ENDLESS, place, w.number * LANES, 0, -1)
                    return np.int64(-1)
                if mask == active:
                    place = np.int64(i.to)
                elif mask:
                    groups = join(masks, places, groups, active & ~mask, place + 1)
                    groups = join(masks, places, groups, mask, np.int64(i.to))
                    break
                else:
                    place += 1
                continue
            if group == G.barrier:
                if mask != active or (barrier and at_barrier != place):
                    report(m, b, DIVERGENT, place, w.number * LANES, 0, -1)
                parked |= active
                at_barrier, barrier = place, True
                break
            if group == G.exit:
                alive[0] &= ~mask
                active &= ~mask
                if not active:
                    break
            elif mask:
                if group == G.access:
                    access_memory(m, b, w, i, place, mask, counted)
                elif group == G.compare:
                    compare(w, i, mask)
                elif group == G.predicate:
                    combine(w, i, mask)
                elif group == G.parameter:
                    for n in range(i.count):
                        value = load(b.parameters, i.offset + n * i.size, i.kind, i.size)
                        for lane in range(LANES):
                            w.s64[i.more[n], lane] = value
                elif group == G.mma:
                    if mask != np.uint32(FULL):
                        report(m, b, LANES_MISSING, place, w.number * LANES, 0, -1)
                    tensor_product(w, i)
                elif group != G.nothing:
                    arithmetic(w, i, mask)
            place += 1
    if barrier:
        if parked != alive[0]:
            report(m, b, DIVERGENT, at_barrier, w.number * LANES, 0, -1)
        masks[0], places[0] = parked, at_barrier + 1
    return at_barrier


@compiled
def launch(m, code, constants, values, specials, registers, predicates, shared, arrays, local, parameters, grid, threads,
           backwards, counted, budget):  # fmt: skip
    """Run a kernel: its blocks one after the other.

    Args:
        m: the machine.
        code: (instructions,), see `program.INSTRUCTION`.
        constants, values: registers that hold constants, and which.
        specials: registers of %tid.x and so on, see `program.SPECIALS`.
        registers, predicates: of a thread.
        shared, local: bytes of a block's and of a thread's memory.
        arrays: (n, 2), offset and bytes of each array in shared memory.
        parameters: the arguments, in bytes.
        grid, threads: blocks, and threads of a block, along x, y and z.
        backwards: whether the last blocks and warps come first.
        counted: whether lanes, sectors and waves are counted.
        budget: (1,), how many branches may be taken.
    """
    total = threads[0] * threads[1] * threads[2]
    warps = (total + LANES - 1) // LANES
    s64 = np.empty((warps, max(registers, 1), LANES), np.int64)
    u64, f64, s32 = s64.view(np.uint64), s64.view(np.float64), s64.view(np.int32)
    u32, f32 = s64.view(np.uint32), s64.view(np.float32)
    flags = np.zeros((warps, max(predicates, 1)), np.uint32)
    masks, places = np.zeros((warps, 34), np.uint32), np.zeros((warps, 34), np.int64)
    alive, waits = np.zeros((warps, 1), np.uint32), np.zeros(warps, np.int64)
    memory, words = np.empty(shared, np.uint8), np.zeros((shared + 3) // 4, m.words.dtype)
    own, own_set = (
        np.empty((total if local else 0, local), np.uint8),
        np.zeros((total if local else 0, local), np.uint8),
    )
    index, first, begin = np.zeros(3, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int64)
    b = Block(index, first, begin, memory, words, own, own_set, parameters)
    begin[0] = m.phase[0] + 1
    for number in range(grid[0] * grid[1] * grid[2]):
        n = grid[0] * grid[1] * grid[2] - 1 - number if backwards else number
        index[0], index[1], index[2] = n % grid[0], n // grid[0] % grid[1], n // (grid[0] * grid[1])
        m.phase[0] += 1
        first[0] = m.phase[0]
        memory[:], own_set[:] = 255, 0
        for k in range(len(words)):
            words[k].written_in = words[k].read_in = 0
            words[k].live = words[k].set = 0
        for k in range(len(arrays)):
            for word in range(arrays[k, 0] // 4, (arrays[k, 0] + arrays[k, 1] + 3) // 4):
                words[word].live = 1
        s64[:] = -1
        flags[:] = 0
        for v in range(warps):
            left = total - v * LANES
            alive[v, 0] = np.uint32(FULL) if left >= LANES else (np.uint32(1) << np.uint32(left)) - np.uint32(1)
            masks[v, 0], places[v, 0], waits[v] = alive[v, 0], 0, 0
            for k in range(len(constants)):
                s64[v, constants[k]] = values[k]
            for lane in range(LANES):
                t = v * LANES + lane
                own_index = (t % threads[0], t // threads[0] % threads[1], t // (threads[0] * threads[1]))
                for axis in range(3):
                    row = (own_index[axis], threads[axis], np.int64(index[axis]), grid[axis])
                    for which in range(4):
                        if specials[3 * which + axis] >= 0:
                            s64[v, specials[3 * which + axis], lane] = row[which]
                if specials[12] >= 0:
                    s64[v, specials[12], lane] = lane
                if specials[13] >= 0:
                    s64[v, specials[13], lane] = v
        while True:
            place = np.int64(-1)
            for k in range(warps):
                v = warps - 1 - k if backwards else k
                if waits[v] >= 0:
                    w = Warp(s64[v], u64[v], f64[v], s32[v], u32[v], f32[v], flags[v], v)
                    waits[v] = run_warp(m, b, w, code, masks[v], places[v], alive[v], counted, budget)
                    place = max(place, waits[v])
                    if budget[0] < 0:
                        return
            if place < 0:
                break
            for v in range(warps):
                left = total - v * LANES
                whole = np.uint32(FULL) if left >= LANES else (np.uint32(1) << np.uint32(left)) - np.uint32(1)
                if waits[v] != place or alive[v, 0] != whole:
                    report(m, b, DIVERGENT, place, v * LANES, 0, -1)
            m.phase[0] += 1

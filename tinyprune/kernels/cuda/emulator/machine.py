"""Execute a kernel, warp by warp, and check every access to memory; compiled by Numba.

Lanes of a warp that part at a branch run in groups: the group with the lowest place in the program goes first, and
groups that meet are joined. The warps of a block run one after the other, each from barrier to barrier.

A phase is what a block does between two barriers; phases are numbered through all blocks and launches. Each word of
memory remembers in which phase, and by which thread of a block, it was last written and last read. Two threads race if
they access a word in one phase and one of them writes, or if different blocks of one launch do.
"""

from typing import NamedTuple

import numpy as np

from tinyprune.kernels.cuda.emulator.program import FLOAT as F
from tinyprune.kernels.cuda.emulator.program import GROUP as G
from tinyprune.kernels.cuda.emulator.program import INTEGER as I
from tinyprune.kernels.cuda.emulator.program import KIND as K
from tinyprune.kernels.cuda.emulator.program import NARROW, SHARED, WRITES
from tinyprune.kernels.cuda.emulator.values import Warp, compiled, convert, cut, floating, fma, integer, mma, relation

LANES, FULL = 32, np.uint32(0xFFFFFFFF)
THREADS, BLOCKS = 0xFFFF, 0xFFFE  # in place of a thread: several threads, or several blocks, have read a word
WRONG = (  # in the words of a message
    "reads outside of every array",
    "writes outside of every array",
    "is not aligned: its address is no multiple of its size",
    "reads what was never written",
    "races with another thread of its block: no barrier between them",
    "races with another block",
    "is not reached by all threads together",
    "has been executed too often; the kernel does not end",
)
# NumPy's numbers: Numba compiles a function once more for each of Python's that it is called with
READS_OUTSIDE, WRITES_OUTSIDE, UNALIGNED, UNWRITTEN, RACE, BLOCK_RACE, DIVERGENT, ENDLESS = np.arange(len(WRONG))
FOUND = np.dtype([("times", "i8"), ("address", "i8"), ("block", "i4", 3), ("thread", "i4")], align=True)
WORD = np.dtype([(name, "u4") for name in ("written_in", "read_in")]
                + [(name, "u2") for name in ("writer", "reader")]
                + [(name, "u1") for name in ("live", "set")], align=True)  # fmt: skip
COUNT = np.dtype([(name, "i8") for name in ("warps", "lanes", "requests", "transactions", "fewest")])


class Machine(NamedTuple):
    """What a launch works on.

    Attributes:
        memory, words: all of the GPU's, in bytes, of which an address is the index; and a `WORD` for each 4.
        found, counts: what was wrong, a `FOUND` by kind and instruction; a `COUNT` for each instruction.
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
        first: (2,), the first phases of the block and of the launch.
        shared, words: its shared memory, as in `Machine`.
        parameters: the arguments, in bytes.
    """

    index: np.ndarray
    first: np.ndarray
    shared: np.ndarray
    words: np.ndarray
    parameters: np.ndarray


@compiled
def has(mask, lane):
    """Return whether a lane is in a mask."""
    return (mask >> np.uint32(lane)) & np.uint32(1) != 0


@compiled
def report(m, b, wrong, place, thread, address):
    """Note that an instruction does something wrong; the first time with where."""
    found = m.found[wrong, place]
    if found.times == 0:
        found.thread, found.address = thread, address
        for axis in range(3):  # a slice would bring NumPy's message for a wrong shape, which takes long to compile
            found.block[axis] = b.index[axis]
    found.times += 1


@compiled
def touch(word, thread, writes, now, first, begin):
    """Record that a thread reads or writes a word in the phase `now`; return a bit for each of `WRONG` that is found.

    Phases before `first` are other blocks', and those before `begin` do not count. To report it here would be slow.
    """
    wrong = 0
    if word.written_in >= begin:
        if word.written_in < first:
            wrong = 1 << BLOCK_RACE
        elif word.written_in == now and word.writer != thread:
            wrong = 1 << RACE
    of_blocks = word.read_in >= begin and (word.read_in < first or word.reader == BLOCKS)
    if writes:
        if of_blocks:
            wrong |= 1 << BLOCK_RACE
        elif word.read_in == now and word.reader != thread:
            wrong |= 1 << RACE
        word.written_in, word.writer, word.set = now, thread, 1
        return wrong
    if word.set == 0:
        wrong |= 1 << UNWRITTEN
    if of_blocks:
        word.reader = BLOCKS
    elif word.read_in != now:
        word.reader = thread
    elif word.reader != thread:
        word.reader = THREADS
    word.read_in = now
    return wrong


@compiled
def load(memory, at, kind, size):
    """Return a number of up to 8 bytes as an integer."""
    x = np.uint64(0)
    for n in range(size):
        x |= np.uint64(memory[at + n]) << np.uint64(8 * n)
    return np.int64(np.int32(x)) if kind == K.s32 else np.int64(x)


@compiled
def access(m, b, w, i, place, mask, counted):
    """Load or store one, two or four numbers for each lane."""
    addresses = np.empty(LANES, np.int64)
    for lane in range(LANES):
        base = np.int64(w.u32[i.a, 2 * lane]) if i.flags & NARROW else w.s64[i.a, lane]
        addresses[lane] = base + i.offset
    in_shared, size = i.flags & SHARED != 0, i.size * i.count
    memory, words, begin = m.memory, m.words, b.first[1]
    if in_shared:
        memory, words, begin = b.shared, b.words, b.first[0]
    if counted:
        count_transactions(m.counts[place], addresses, mask, size, in_shared)
    for lane in range(LANES):
        if not has(mask, lane):
            continue
        at, thread = addresses[lane], w.number * LANES + lane
        if at % size:
            report(m, b, UNALIGNED, place, thread, at)
            continue
        fine = at >= 0 and at + size <= memory.size
        if fine:
            for n in range(at >> 2, (at + size + 3) >> 2):
                fine &= words[n].live != 0
        if not fine:
            report(m, b, WRITES_OUTSIDE if i.flags & WRITES else READS_OUTSIDE, place, thread, at)
            continue
        for n in range(at >> 2, (at + size + 3) >> 2):
            found = touch(words[n], thread, i.flags & WRITES, m.phase[0], b.first[0], begin)
            if found:
                for wrong in range(len(WRONG)):
                    if found >> wrong & 1:
                        report(m, b, wrong, place, thread, 4 * n)
        for n in range(i.count):
            if i.flags & WRITES:
                x = w.u64[i.more[n], lane]
                for k in range(i.size):
                    memory[at + k] = np.uint8(x >> np.uint64(8 * k))
            else:
                w.s64[i.more[n], lane] = load(memory, at, i.kind, i.size)
            at += i.size


@compiled
def distinct(addresses, mask, first, last, size, step, banks):
    """Return how many pieces of `step` bytes the lanes first … last − 1 access; set how many are in each bank."""
    pieces, known = np.empty((32, LANES), np.int64), 0
    banks[:] = 0
    for lane in range(first, last):
        if has(mask, lane):
            for piece in range(addresses[lane] // step, (addresses[lane] + size - 1) // step + 1):
                bank, n = piece % 32, 0
                while n < banks[bank] and pieces[bank, n] != piece:
                    n += 1
                if n == banks[bank]:
                    pieces[bank, n] = piece
                    banks[bank] += 1
                    known += 1
    return known


@compiled
def count_transactions(count, addresses, mask, size, in_shared):
    """Count in how many transactions memory serves a request, and in how few it could.

    Of global memory these are sectors of 32 bytes; of shared memory waves, one of which serves a word of each of 32
    banks. Of requests of 8 or 16 bytes, halves or quarters of the warp are served one after the other.
    """
    count.requests += 1
    banks = np.zeros(32, np.int64)
    if not in_shared:
        count.transactions += distinct(addresses, mask, 0, LANES, size, 32, banks)
        count.fewest += (distinct(addresses, mask, 0, LANES, size, size, banks) * size + 31) // 32
        return
    group = LANES * 4 // max(size, 4)
    for first in range(0, LANES, group):
        count.fewest += (distinct(addresses, mask, first, first + group, size, 4, banks) + 31) // 32
        count.transactions += banks.max()


@compiled
def compare(w, i, mask):
    """Set a predicate, or two that are opposites, from a comparison and perhaps another predicate."""
    bits = np.uint32(0)
    for lane in range(LANES):
        if i.kind == K.f32:
            found = relation(w.f32[i.a, 2 * lane], w.f32[i.b, 2 * lane])
        elif i.kind == K.f64:
            found = relation(w.f64[i.a, lane], w.f64[i.b, lane])
        elif i.kind == K.u64:
            found = relation(w.u64[i.a, lane], w.u64[i.b, lane])
        else:
            found = relation(cut(w.s64[i.a, lane], i.kind), cut(w.s64[i.b, lane], i.kind))
        bits |= np.uint32(i.op & found != 0) << np.uint32(lane)
    for place, value in ((i.d, bits), (i.to, ~bits)):
        if place >= 0:
            if i.flags:
                other = w.predicates[i.c]
                if i.size:
                    other = ~other
                value = truth(i.flags, value, other)
            w.predicates[place] = (w.predicates[place] & ~mask) | (value & mask)


@compiled
def truth(table, x, y):
    """Compute an operation on predicates from its truth table, see `PREDICATE`."""
    value = np.uint32(0)
    for bit, lanes in ((8, x & y), (4, x & ~y), (2, ~x & y), (1, ~x & ~y)):
        if table & bit:
            value |= lanes
    return value


@compiled
def compute_float32(w, i, mask):
    """Compute an operation on float32 in each lane; the most frequent ones in loops that LLVM makes vectors of."""
    f, d, a, b, c = w.f32, i.d, i.a, i.b, i.c
    if mask == FULL and i.op == F.fma:
        for lane in range(0, 2 * LANES, 2):
            f[d, lane] = fma(f[a, lane], f[b, lane], f[c, lane])
        return
    for lane in range(LANES):
        if has(mask, lane):
            f[d, 2 * lane] = floating(i.op, f[a, 2 * lane], f[b, 2 * lane], f[c, 2 * lane])


@compiled
def compute_integer(w, i, mask):
    """Compute an operation on integers in each lane; some operands have other types than the result."""
    op, kind = i.op, i.kind
    second = third = kind
    if op == I.shl or op == I.shr:
        second = K.u32
    elif op == I.mad_wide:
        third = K.s64
    elif op == I.bfi:
        third = K.u32
    if mask == FULL and op == I.add:
        for lane in range(LANES):
            w.s64[i.d, lane] = w.s64[i.a, lane] + w.s64[i.b, lane]
        return
    for lane in range(LANES):
        if has(mask, lane):
            n = np.int64(w.u32[i.more[0], 2 * lane]) if op == I.bfi else np.int64(0)
            x, y, z = cut(w.s64[i.a, lane], kind), cut(w.s64[i.b, lane], second), cut(w.s64[i.c, lane], third)
            w.s64[i.d, lane] = integer(op, kind, x, y, z, n)


@compiled
def compute(m, b, w, i, place, mask, counted):
    """Execute an instruction that is no branch, barrier or end."""
    group, d, x, y = i.group, i.d, i.a, i.b
    if group == G.float32:
        compute_float32(w, i, mask)
    elif group == G.integer:
        compute_integer(w, i, mask)
    elif group == G.access:
        access(m, b, w, i, place, mask, counted)
    elif group == G.compare:
        compare(w, i, mask)
    elif group == G.predicate:
        value = truth(i.op, w.predicates[x], w.predicates[y])
        w.predicates[d] = (w.predicates[d] & ~mask) | (value & mask)
    elif group == G.convert:
        convert(w, i, mask)
    elif group == G.mma:
        if mask != FULL:
            report(m, b, DIVERGENT, place, w.number * LANES, 0)
        mma(w, i)
    elif group != G.nothing:
        chosen = w.predicates[i.c] if group == G.select else np.uint32(0)
        for lane in range(LANES):
            if not has(mask, lane):
                continue
            if group == G.select:
                w.s64[d, lane] = w.s64[x if has(chosen, lane) else y, lane]
            elif group == G.float64:
                w.f64[d, lane] = floating(i.op, w.f64[x, lane], w.f64[y, lane], w.f64[i.c, lane])
            elif group == G.parameter:
                for n in range(i.count):
                    w.s64[i.more[n], lane] = load(b.parameters, i.offset + n * i.size, i.kind, i.size)
            elif group == G.pack:
                w.u64[d, lane] = np.uint64(w.u32[x, 2 * lane]) | np.uint64(w.u32[y, 2 * lane]) << np.uint64(32)
            else:  # unpack, to d and y
                both = w.u64[x, lane]
                w.u64[d, lane], w.u64[y, lane] = both & np.uint64(FULL), both >> np.uint64(32)


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
        masks, places: groups of lanes and where they are; first one group, in the end that which is at the barrier.
        alive: (1,), lanes that have not ended.
        budget: (1,), how many more branches may be taken.

    Returns the place of the barrier, or −1 at the end.
    """
    groups, parked, barrier = 1, np.uint32(0), -1
    while groups:
        low = np.argmin(places[:groups])
        active, place = masks[low], places[low]
        groups -= 1
        masks[low], places[low] = masks[groups], places[groups]
        nearest = places[:groups].min() if groups else len(code)
        while active:
            if place >= nearest:
                groups = join(masks, places, groups, active, place)
                break
            i = code[place]
            mask, group = active, i.group
            if i.guard >= 0:
                guard = w.predicates[i.guard]
                mask &= ~guard if i.negated else guard
            m.counts[place].warps += 1
            if counted:
                for lane in range(LANES):
                    m.counts[place].lanes += has(mask, lane)
            if group == G.branch and mask:
                budget[0] -= 1
                if budget[0] < 0:
                    report(m, b, ENDLESS, place, w.number * LANES, 0)
                    return -1
                if mask == active:
                    place = np.int64(i.to)
                    continue
                groups = join(masks, places, groups, active & ~mask, place + 1)
                groups = join(masks, places, groups, mask, np.int64(i.to))
                break
            if group == G.barrier:
                if mask != active or barrier not in (-1, place):
                    report(m, b, DIVERGENT, place, w.number * LANES, 0)
                parked |= active
                barrier = place
                break
            if group == G.exit:
                alive[0] &= ~mask
                active &= ~mask
            elif group != G.branch and mask:
                compute(m, b, w, i, place, mask, counted)
            place += 1
    masks[0], places[0] = parked, barrier + 1
    if barrier >= 0 and parked != alive[0]:
        report(m, b, DIVERGENT, barrier, w.number * LANES, 0)
    return barrier


@compiled
def lanes_of(total, warp):
    """Return the mask of a warp's lanes in a block of `total` threads."""
    left = total - warp * LANES
    return FULL if left >= LANES else (np.uint32(1) << np.uint32(left)) - np.uint32(1)


@compiled
def start_block(b, kernel, s64, grid, threads):
    """Set the registers of a block's warps, (warps, registers, 32), and which of its shared memory arrays have."""
    constants, values, specials, arrays = kernel
    for n in range(len(arrays)):
        for k in range(arrays[n, 0] // 4, (arrays[n, 0] + arrays[n, 1] + 3) // 4):
            b.words[k].live = 1
    s64[:] = -1
    for v in range(len(s64)):
        for n in range(len(constants)):
            s64[v, constants[n]] = values[n]
        for lane in range(LANES):
            t = v * LANES + lane
            own = (t % threads[0], t // threads[0] % threads[1], t // (threads[0] * threads[1]))
            for axis in range(3):
                row = (own[axis], threads[axis], np.int64(b.index[axis]), grid[axis])
                for n in range(4):
                    if specials[3 * n + axis] >= 0:
                        s64[v, specials[3 * n + axis], lane] = row[n]


@compiled
def launch(m, code, kernel, sizes, parameters, grid, threads, backwards, counted, budget):
    """Run a kernel: its blocks one after the other.

    Args:
        m, code, parameters: the machine, the instructions, and the arguments in bytes.
        kernel: registers that hold constants, and which; registers of `program.SPECIALS`; shared arrays' offset, bytes.
        sizes: registers and predicates of a thread, bytes of shared memory.
        grid, threads: blocks, and threads of a block, along x, y and z.
        backwards: whether the last blocks and warps come first.
        counted: whether lanes, sectors and waves are counted.
        budget: (1,), how many branches may be taken.
    """
    total, blocks = threads[0] * threads[1] * threads[2], grid[0] * grid[1] * grid[2]
    warps = -(-total // LANES)
    s64 = np.empty((warps, max(sizes[0], 1), LANES), np.int64)
    u64, f64, u32, f32 = s64.view(np.uint64), s64.view(np.float64), s64.view(np.uint32), s64.view(np.float32)
    predicates, alive = np.zeros((warps, max(sizes[1], 1)), np.uint32), np.zeros((warps, 1), np.uint32)
    masks, places = np.zeros((warps, LANES + 2), np.uint32), np.zeros((warps, LANES + 2), np.int64)
    waits = np.zeros(warps, np.int64)
    start = m.phase[0] + 1
    for number in range(blocks):
        n = blocks - 1 - number if backwards else number
        index = np.array([n % grid[0], n // grid[0] % grid[1], n // (grid[0] * grid[1])], np.int32)
        m.phase[0] += 1
        shared, words = np.full(sizes[2], 255, np.uint8), np.zeros((sizes[2] + 3) // 4, m.words.dtype)
        b = Block(index, np.array([m.phase[0], start]), shared, words, parameters)
        start_block(b, kernel, s64, grid, threads)
        for v in range(warps):
            masks[v, 0] = alive[v, 0] = lanes_of(total, v)
            places[v, 0] = waits[v] = 0
        while True:
            barrier = -1
            for k in range(warps):
                v = warps - 1 - k if backwards else k
                if waits[v] >= 0:
                    w = Warp(s64[v], u64[v], f64[v], u32[v], f32[v], predicates[v], v)
                    waits[v] = run_warp(m, b, w, code, masks[v], places[v], alive[v], counted, budget)
                    barrier = max(barrier, waits[v])
            if barrier < 0 or budget[0] < 0:
                break
            for v in range(warps):
                if waits[v] != barrier or alive[v, 0] != lanes_of(total, v):
                    report(m, b, DIVERGENT, barrier, v * LANES, 0)
            m.phase[0] += 1

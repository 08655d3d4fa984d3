"""Matrix product by tiles: the kernels of `matmul`.

    for i, j: out[i, j] = Σ_k a[i, k] · b[k, j]

A block makes a tile of out, 128 × 128 or 64 × 64. For a few k at a time it brings the strip of a and the strip of b
that the tile needs into shared memory, each number once for 128 (or 64) products. A thread makes 8 × 8 (or 4 × 4) of
the sums and keeps them in registers: for every k it reads 8 + 8 numbers, four with each instruction, for 64
multiply-adds.

Strips lie in shared memory as [k][line], a line being a row of a or a column of b, wherever they come from: what is
read along k is turned on the way. There is room for two strips of each. While one is multiplied, the numbers of the
next are under way from global memory to registers, and go to the other place; so there is one barrier for each strip.

Where a row lies. Rows may come in groups, such as the last positions of each batch entry: row i begins at entry
(i // per) · group + (i % per) · row.

A long sum with few outputs, such as a weight's gradient, is shared out along k: `blockIdx.z` counts its parts, each
goes to a slot of its own, and `join` adds these up in their order. How many there are depends on the shapes alone.
"""

from __future__ import annotations

from tinyprune.kernels.cuda.jit import Kernel, cuda, device, float32, floats, int32, kernel, uint32
from tinyprune.kernels.cuda.ragged import load_some, store_some
from tinyprune.kernels.cuda.vectors import load4, store4

THREADS = 256
TILES = (128, 64)  # rows and columns of out that a block makes
STRIP = 1024  # numbers of a strip: four for each thread
PAD = 4  # numbers between the lines of a strip, so that those four lie in different banks of shared memory
LAYOUTS = {(True, False): "ab", (True, True): "abt", (False, False): "atb"}  # a · b, a · bᵀ, aᵀ · b
BIAS, RESIDUAL, RELU = 1, 2, 4  # what becomes of a sum in the end, in that order, in `finish`
ALIGNED_A, ALIGNED_B, ALIGNED_OUT = 1, 2, 4  # what can be read or written four at a time, in `aligned`


@device
def place(i, per, group, row):
    """Where row i begins."""
    return i // per * group + i % per * row


@device
def positive(x):
    """max(x, 0); NaN stays."""
    return float32(0) if x < float32(0) else x


@device
def finished(x, bias, j, residual, to, finish):
    """What becomes of a sum: + bias[j] + residual[to], and of that the positive part."""
    if finish & BIAS:
        x += bias[j]
    if finish & RESIDUAL:
        x += residual[to]
    return positive(x) if finish & RELU else x


def make_product(TILE: int, A_ALONG_K: bool, B_ALONG_K: bool) -> Kernel:
    """The kernel for a size of tile and a layout: is it k that runs along the rows of a in memory, and of b?"""
    DEPTH = STRIP // TILE  # of a strip, along k
    WIDE = TILE + PAD
    SIZE = DEPTH * WIDE
    BOTH = 2 * SIZE
    SQUARES = TILE // 64  # of 4 × 4 sums, along each side of a thread's part
    EACH = 4 * SQUARES  # rows and columns of a thread
    SUMS = EACH * EACH
    RESIDENT = 2 if TILE == 128 else 3
    ROWS, COLUMNS = 16, 32  # from one square of a thread to its next: 4 × 8 threads of a warp lie between

    @device
    def first_number(thread, along_k):
        """Of the four numbers that a thread brings: line and k."""
        if along_k:
            return thread // (DEPTH // 4), thread % (DEPTH // 4) * 4
        return thread % (TILE // 4) * 4, thread // (TILE // 4)

    @device
    def bring(x, at, lines_left, k_left, along_k, aligned):
        """Four numbers of a matrix, zeros beyond its edges: there are so many more lines and k from the first on."""
        if along_k:
            return load_some(x, at, k_left if lines_left > 0 else 0, aligned)
        return load_some(x, at, lines_left if k_left > 0 else 0, aligned)

    @device
    def settle(strip, at, along_k, x0, x1, x2, x3):
        """Put them into shared memory."""
        if along_k:
            at = uint32(at)
            strip[at], strip[at + WIDE], strip[at + 2 * WIDE], strip[at + 3 * WIDE] = x0, x1, x2, x3
        else:
            store4(strip, at, x0, x1, x2, x3)

    @device
    def add_products(strips_a, a_at, strips_b, b_at, some_a, some_b, sums):
        """sums += the thread's numbers of a for one k times those of b."""
        for s in range(SQUARES):
            at = a_at + s * ROWS
            some_a[4 * s], some_a[4 * s + 1], some_a[4 * s + 2], some_a[4 * s + 3] = load4(strips_a, at)
            at = b_at + s * COLUMNS
            some_b[4 * s], some_b[4 * s + 1], some_b[4 * s + 2], some_b[4 * s + 3] = load4(strips_b, at)
        for y in range(EACH):
            for x in range(EACH):
                sums[y * EACH + x] += some_a[y] * some_b[x]

    def product(
        a, b, bias, residual, out, M, N, K, part, per, a_group, a_row, b_group, b_row, c_group, c_row, finish, aligned
    ):
        """out (slots, M, N): the sums over each `part` of k, a multiple of a strip's depth.

        Rows of a and out are in groups of `per` where k runs along the rows of a, otherwise those of a and b.
        """
        strips_a = cuda.shared.array(BOTH, float32)
        strips_b = cuda.shared.array(BOTH, float32)
        sums = cuda.local.array(SUMS, float32)
        some_a = cuda.local.array(EACH, float32)
        some_b = cuda.local.array(EACH, float32)
        for n in range(SUMS):
            sums[n] = float32(0)
        thread = cuda.threadIdx.x & (THREADS - 1)  # the same; but now the compiler knows that it is not negative
        slot = cuda.blockIdx.z
        top, left = cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
        begin = slot * part
        k_left = min(part, K - begin)

        # the numbers that this thread brings: where they lie, where they go, and how many lines there are from them on
        i, a_k = first_number(thread, A_ALONG_K)
        j, b_k = first_number(thread, B_ALONG_K)
        a_to, b_to = a_k * WIDE + i, b_k * WIDE + j
        i, j = i + top, j + left
        i_left, j_left = M - i, N - j
        within = (begin + a_k) % per
        if A_ALONG_K:
            a_at, a_step = place(i, per, a_group, a_row) + begin + a_k, DEPTH
        else:
            a_at, a_step = place(begin + a_k, per, a_group, a_row) + i, DEPTH * a_row
        if B_ALONG_K:
            b_at, b_step = j * b_row + begin + b_k, DEPTH
        elif A_ALONG_K:
            b_at, b_step = (begin + b_k) * b_row + j, DEPTH * b_row
        else:
            b_at, b_step = place(begin + b_k, per, b_group, b_row) + j, DEPTH * b_row

        # the sums that it makes: of 8 warps, 4 × 2; of the 32 threads of a warp, 4 × 8. Threads that differ in the
        # lowest bit read the same of b, and in the next the same of a: shared memory hands both out in half the time.
        warp, lane = thread // 32, thread % 32
        row = warp // 2 * ROWS * SQUARES + (lane // 16 * 2 + lane % 2) * 4
        column = warp % 2 * COLUMNS * SQUARES + lane // 2 % 8 * 4

        at = 0
        a0, a1, a2, a3 = bring(a, a_at, i_left, k_left - a_k, A_ALONG_K, aligned & ALIGNED_A)
        b0, b1, b2, b3 = bring(b, b_at, j_left, k_left - b_k, B_ALONG_K, aligned & ALIGNED_B)
        while k_left > 0:
            settle(strips_a, at + a_to, A_ALONG_K, a0, a1, a2, a3)
            settle(strips_b, at + b_to, B_ALONG_K, b0, b1, b2, b3)
            cuda.syncthreads()  # both strips are whole, and nobody reads those before any more
            k_left -= DEPTH
            a_at += a_step
            b_at += b_step
            if not A_ALONG_K:
                within += DEPTH
                while within >= per:
                    within -= per
                    a_at += a_group - per * a_row
                    b_at += b_group - per * b_row
            a0, a1, a2, a3 = bring(a, a_at, i_left, k_left - a_k, A_ALONG_K, aligned & ALIGNED_A)
            b0, b1, b2, b3 = bring(b, b_at, j_left, k_left - b_k, B_ALONG_K, aligned & ALIGNED_B)
            a_from, b_from = at + row, at + column
            for _ in range(0, DEPTH, 4):
                # Four to a round, by hand: the compiler leaves so long a loop as it is, and then nobody would load for
                # the next k what this one does not wait for. With all eight there are not registers for two blocks.
                add_products(strips_a, a_from, strips_b, b_from, some_a, some_b, sums)
                add_products(strips_a, a_from + WIDE, strips_b, b_from + WIDE, some_a, some_b, sums)
                add_products(strips_a, a_from + 2 * WIDE, strips_b, b_from + 2 * WIDE, some_a, some_b, sums)
                add_products(strips_a, a_from + 3 * WIDE, strips_b, b_from + 3 * WIDE, some_a, some_b, sums)
                a_from, b_from = a_from + 4 * WIDE, b_from + 4 * WIDE
            at = SIZE - at

        for y in range(EACH):
            i = top + row + y // 4 * ROWS + y % 4
            to = slot * M * N + (place(i, per, c_group, c_row) if A_ALONG_K else i * c_row)
            for s in range(SQUARES):
                j = left + column + s * COLUMNS
                there = N - j if i < M else 0
                x0, x1, x2, x3 = sums[4 * s], sums[4 * s + 1], sums[4 * s + 2], sums[4 * s + 3]
                if finish & BIAS:
                    y0, y1, y2, y3 = load_some(bias, j, there, True)
                    x0, x1, x2, x3 = x0 + y0, x1 + y1, x2 + y2, x3 + y3
                if finish & RESIDUAL:
                    y0, y1, y2, y3 = load_some(residual, to + j, there, aligned & ALIGNED_OUT)
                    x0, x1, x2, x3 = x0 + y0, x1 + y1, x2 + y2, x3 + y3
                if finish & RELU:
                    x0, x1, x2, x3 = positive(x0), positive(x1), positive(x2), positive(x3)
                store_some(out, to + j, there, aligned & ALIGNED_OUT, x0, x1, x2, x3)
            # the next row takes the place of the first: with an index that is not a constant, the sums could not be
            # in registers
            for n in range(SUMS - EACH):
                sums[n] = sums[n + EACH]

    product.__name__ = f"product_{TILE}_{LAYOUTS[A_ALONG_K, B_ALONG_K]}"
    types = (*5 * (floats,), *13 * (int32,))
    return kernel(*types, threads=THREADS, hot=True, resident=RESIDENT)(product)


@kernel(*4 * (floats,), *7 * (int32,), threads=THREADS)
def join(slots, bias, residual, out, S, M, N, per, c_group, c_row, finish):
    """out = Σ_s slots (S, M, N), `finished`: a thread for each number."""
    n = cuda.grid(1)
    if n < M * N:
        i, j = n // N, n % N
        to = place(i, per, c_group, c_row) + j
        total = float32(0)
        for s in range(S):
            total += slots[s * M * N + n]
        out[to] = finished(total, bias, j, residual, to, finish)


PRODUCTS: dict[tuple[int, bool, bool], Kernel] = {
    (tile, *layout): make_product(tile, *layout) for tile in TILES for layout in LAYOUTS
}

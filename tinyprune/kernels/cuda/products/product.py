"""Matrix product by tiles.

    for i, j: out[i, j] = Σ_k a[i, k] · b[k, j]

A block computes a tile of out, 128 × 128 or 64 × 64. For a few k at a time it copies the strips of a and b that the
tile needs to shared memory, each number once for 128 (or 64) products, and adds their product to sums in its threads'
registers: in float32 by `multiply_add`, or in tf32 by `tensor_cores`.

In shared memory strips are stored as `[k][line]`, a line being a row of a or a column of b; strips that are read along
k are transposed. There is room for two strips of each. While one is multiplied, the numbers of the next are loaded into
registers, and are then stored in the other place, so that each strip needs one barrier.

A long sum with few outputs, such as a weight's gradient, is split along k: `blockIdx.z` counts the parts, each has a
slot, and `join` adds the slots in order. Their number depends on the shapes alone.
"""

from tinyprune.kernels.cuda.device.instructions import aligned, load_up_to4, pointer_to, store4
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, floats, int32, kernel, uint32
from tinyprune.kernels.cuda.products.arithmetic import (
    ALIGNED_A,
    ALIGNED_B,
    SIZES,
    STRIDES,
    STRIP,
    THREADS,
    finished,
    place,
)
from tinyprune.kernels.cuda.products.multiply_add import make_multiply_add
from tinyprune.kernels.cuda.products.tensor_cores import make_tensor_cores

TILES = (128, 64)  # rows and columns of a block's tile
LAYOUTS = {(True, False): "ab", (True, True): "abt", (False, False): "atb"}  # a · b, a · bᵀ, aᵀ · b
# Each makes, for one size of tile, device functions that round a number before it is stored in shared memory, add the
# product of two strips to the sums of a thread, and write these; and says how many numbers lie between the rows of a
# strip, so that a warp accesses different banks.
ARITHMETICS = {"float32": make_multiply_add, "tf32": make_tensor_cores}


def make_product(precision: str, TILE: int, A_ALONG_K: bool, B_ALONG_K: bool) -> Kernel:
    """Make the kernel for a size of tile and a layout: whether k runs along the rows of a in memory, and of b."""
    PAD, rounded, add_strips, write = ARITHMETICS[precision](TILE)
    DEPTH = STRIP // TILE  # of a strip, along k
    WIDE = TILE + PAD
    SIZE = DEPTH * WIDE
    BOTH = 2 * SIZE
    SUMS = TILE * TILE // THREADS

    @device
    def first_number(thread, along_k):
        """Return line and k of the first of the four numbers that a thread loads."""
        if along_k:
            return thread // (DEPTH // 4), thread % (DEPTH // 4) * 4
        return thread % (TILE // 4) * 4, thread // (TILE // 4)

    @device
    def bring(x, at, lines_left, k_left, along_k, fours):
        """Load four numbers of a matrix, zeros beyond its edges: so many lines and k are left from the first on."""
        if along_k:
            return load_up_to4(x, at, k_left if lines_left > 0 else 0, fours)
        return load_up_to4(x, at, lines_left if k_left > 0 else 0, fours)

    @device
    def settle(strip, at, along_k, x0, x1, x2, x3):
        """Store them in shared memory."""
        x0, x1, x2, x3 = rounded(x0), rounded(x1), rounded(x2), rounded(x3)
        if along_k:
            at = uint32(at)  # not negative, so that Numba need not test whether it is
            strip[at], strip[at + WIDE], strip[at + 2 * WIDE], strip[at + 3 * WIDE] = x0, x1, x2, x3
        else:
            store4(strip, at, x0, x1, x2, x3)

    @device
    def add_up(a, b, sizes, at_a, at_b, fours, top, left, slot, thread, sums):
        """Set the thread's sums for the tile at row `top` and column `left`, over the slot's part of k.

        at_a, at_b: their `Strides`. Rows of a are in groups where k runs along them, otherwise those of a and b.
        """
        M, N, K, part, per = sizes
        strips_a = aligned(cuda.shared.array(BOTH, float32))
        strips_b = aligned(cuda.shared.array(BOTH, float32))
        for n in range(SUMS):
            sums[n] = float32(0)
        begin = slot * part
        k_left = int32(min(part, K - begin))

        # the numbers that this thread loads: where they are, where they go, and how many lines are left from them on
        i, a_k = first_number(thread, A_ALONG_K)
        j, b_k = first_number(thread, B_ALONG_K)
        a_to, b_to = a_k * WIDE + i, b_k * WIDE + j
        i, j = i + top, j + left
        i_left, j_left = int32(M - i), int32(N - j)
        within = int32(uint32(begin + a_k) % uint32(per))
        if A_ALONG_K:
            a_at, a_step = place(i, per, at_a) + begin + a_k, DEPTH
        else:
            a_at, a_step = place(begin + a_k, per, at_a) + i, DEPTH * at_a.row
        if B_ALONG_K:
            b_at, b_step = j * at_b.row + begin + b_k, DEPTH
        elif A_ALONG_K:
            b_at, b_step = (begin + b_k) * at_b.row + j, DEPTH * at_b.row
        else:
            b_at, b_step = place(begin + b_k, per, at_b) + j, DEPTH * at_b.row

        at, a, b = int32(0), pointer_to(a, a_at), pointer_to(b, b_at)
        a0, a1, a2, a3 = bring(a, 0, i_left, k_left - a_k, A_ALONG_K, fours & ALIGNED_A)
        b0, b1, b2, b3 = bring(b, 0, j_left, k_left - b_k, B_ALONG_K, fours & ALIGNED_B)
        while k_left > 0:
            settle(strips_a, at + a_to, A_ALONG_K, a0, a1, a2, a3)
            settle(strips_b, at + b_to, B_ALONG_K, b0, b1, b2, b3)
            cuda.syncthreads()  # both strips are complete, and no thread reads the previous ones any more
            k_left = int32(k_left - DEPTH)
            a = pointer_to(a, a_step)
            b = pointer_to(b, b_step)
            if not A_ALONG_K:
                within = int32(within + DEPTH)
                while within >= per:
                    within = int32(within - per)
                    a = pointer_to(a, at_a.group - per * at_a.row)
                    b = pointer_to(b, at_b.group - per * at_b.row)
            a0, a1, a2, a3 = bring(a, 0, i_left, k_left - a_k, A_ALONG_K, fours & ALIGNED_A)
            b0, b1, b2, b3 = bring(b, 0, j_left, k_left - b_k, B_ALONG_K, fours & ALIGNED_B)
            add_strips(strips_a, strips_b, at, thread, sums)
            at = int32(SIZE - at)

    def product(a, b, bias, residual, out, sizes, at_a, at_b, at_out, finish, fours):
        """Compute out (slots, M, N): the sums over each part of k. Rows of out are in groups where those of a are."""
        sums = cuda.local.array(SUMS, float32)
        thread = cuda.threadIdx.x & (THREADS - 1)  # tells the compiler that it is not negative
        slot, top, left = cuda.blockIdx.z, cuda.blockIdx.y * TILE, cuda.blockIdx.x * TILE
        add_up(a, b, sizes, at_a, at_b, fours, top, left, slot, thread, sums)
        M, N, _, _, per = sizes
        per = per if A_ALONG_K else M
        write(sums, thread, top, left, out, slot * M * N, M, N, per, at_out, bias, residual, finish, fours)

    layout = LAYOUTS[A_ALONG_K, B_ALONG_K]
    options = {"threads": THREADS, "hot": True, "resident": 2 if TILE == 128 else 3}
    types = (*5 * (floats,), SIZES, STRIDES, STRIDES, STRIDES, int32, int32)
    return kernel(*types, name=f"product_{precision}_{TILE}_{layout}", **options)(product)


@kernel(*4 * (floats,), *4 * (int32,), STRIDES, int32, threads=THREADS)
def join(slots, bias, residual, out, S, M, N, per, at_out, finish):
    """Compute out = Σ_s slots (S, M, N), finished: a thread for each number."""
    n = cuda.grid(1)
    if n < M * N:
        i, j = n // N, n % N
        to = place(i, per, at_out) + j
        total = float32(0)
        for s in range(S):
            total += slots[s * M * N + n]
        out[to] = finished(total, bias, j, residual, to, finish)


PRODUCTS: dict[tuple[str, int, bool, bool], Kernel] = {
    (precision, tile, *layout): make_product(precision, tile, *layout)
    for precision in ARITHMETICS
    for tile in TILES
    for layout in LAYOUTS
}

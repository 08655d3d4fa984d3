"""Matrix product by tiles.

    for i, j: out[i, j] = Σ_k a[i, k] · b[k, j]

A block computes a tile of out, 128 × 128 or 64 × 64. For DEPTH = 8 or 16 k at a time it copies a *strip* of a and of b
to shared memory, each number once for 128 (or 64) products, and adds their product to sums in its threads' registers:
in float32 by `multiply_add`, or in tf32 by `tensor_cores`.

A strip is stored as `[k][line]`, a line being a row of a or a column of b. Where k runs along the rows in memory, it is
transposed on the way. There are two buffers for each strip. While the strips in one are multiplied, each thread loads
its four numbers of the next into registers, and then stores them in the other, so that a strip needs one barrier.

A long sum with few outputs, such as a weight's gradient, is split along k: each slot of out has separate
blocks, and `run_sums` adds the slots in order. Their number depends on the shapes alone.
"""

from collections.abc import Callable

from tinyprune.kernels.cuda.device.instructions import ALIGNMENT, divmod32, load_some, pointer_to, store4
from tinyprune.kernels.cuda.device.jit import Kernel, cuda, device, float32, int32, kernel, uint32
from tinyprune.kernels.cuda.device.together import TOGETHER, of_block
from tinyprune.kernels.cuda.products.arithmetic import ALIGNED_A, ALIGNED_B, STRIP, THREADS, Product, row_begin
from tinyprune.kernels.cuda.products.multiply_add import make_multiply_add
from tinyprune.kernels.cuda.products.tensor_cores import make_tensor_cores

TILES = (128, 64)  # rows and columns of a block's tile
ALONE = 128  # tiles of which a launch computes one product
LAYOUTS = {(True, False): "ab", (True, True): "abt", (False, False): "atb"}  # a · b, a · bᵀ, aᵀ · b
# Each makes, for one size of tile, device functions that round a number before it is stored in shared memory, add the
# product of two strips to the sums of a thread, and write these. PAD numbers after each row of a strip let the threads
# of a warp access different banks.
ARITHMETICS = {"float32": make_multiply_add, "tf32": make_tensor_cores}


@device
def load_numbers(x, at, lines_left, k_left, along_k, alignment):
    """Load four numbers of a matrix, zeros beyond its edges: `lines_left` and `k_left` exist from the first on."""
    if along_k:
        lines_left, k_left = k_left, lines_left
    return load_some(x, at, lines_left if k_left > 0 else 0, alignment)


def make_strips(TILE: int, PAD: int, rounded: Callable) -> tuple[Callable, Callable]:
    """Make `first_number` and `store_numbers` for a size of tile."""
    K_STRIDE = TILE + PAD

    @device
    def first_number(thread, along_k):
        """Return line and k in the strip of the first of a thread's four numbers, which are neighbours in memory.

        Along k, two threads read a sector of 32 bytes, so that a warp writes 16 lines of the strip at once.
        """
        if along_k:
            return thread // 2 % TILE, thread // (2 * TILE) * 8 + thread % 2 * 4
        return thread % (TILE // 4) * 4, thread // (TILE // 4)

    @device
    def store_numbers(strip, at, along_k, thread, x0, x1, x2, x3):
        """Store them in shared memory, the first at strip[at].

        Where rows four apart begin in the same bank, every second thread begins with its third number, 16 banks away.
        """
        x0, x1, x2, x3 = rounded(x0), rounded(x1), rounded(x2), rounded(x3)
        if along_k:
            here, there = uint32(at), uint32(at + 2 * K_STRIDE)  # not negative: Numba need not test whether they are
            if K_STRIDE % 8 == 0 and thread % 2 == 1:
                here, there, x0, x1, x2, x3 = there, here, x2, x3, x0, x1
            strip[here], strip[here + K_STRIDE], strip[there], strip[there + K_STRIDE] = x0, x1, x2, x3
        else:
            store4(strip, at, x0, x1, x2, x3)

    return first_number, store_numbers


def make_product(precision: str, TILE: int, A_ALONG_K: bool, B_ALONG_K: bool) -> Kernel:
    """Make the kernel for a size of tile and a layout: whether rows of a run along k in memory, and rows of b."""
    PAD, rounded, add_strips, write = ARITHMETICS[precision](TILE)
    first_number, store_numbers = make_strips(TILE, PAD, rounded)
    DEPTH = STRIP // TILE  # of a strip, along k
    K_STRIDE = TILE + PAD  # numbers from one k to the next in a strip
    BUFFER, BUFFERS, SUMS = DEPTH * K_STRIDE, 2 * DEPTH * K_STRIDE, TILE * TILE // THREADS

    @device
    def sum_products(p, top, left, slot, thread, sums):
        """Set the thread's sums for the tile at row `top` and column `left`, over the slot's numbers along k.

        Rows of a may be in groups; if k counts them, those of b are in the same groups, otherwise in one.
        """
        M, N, K, slot_depth, group_rows = p.M, p.N, p.K, p.slot_depth, p.group_rows
        strips_a = cuda.shared.array(BUFFERS, float32, ALIGNMENT)
        strips_b = cuda.shared.array(BUFFERS, float32, ALIGNMENT)
        for n in range(SUMS):
            sums[n] = float32(0)
        begin = slot * slot_depth
        k_left = int32(min(slot_depth, K - begin))

        # this thread's numbers: a_to, b_to in a strip; a_at, b_at in memory, and a_step, b_step from strip to strip
        i, a_k = first_number(thread, A_ALONG_K)
        j, b_k = first_number(thread, B_ALONG_K)
        a_to, b_to = a_k * K_STRIDE + i, b_k * K_STRIDE + j
        i, j = i + top, j + left
        i_left, j_left = int32(M - i), int32(N - j)
        row_in_group = int32(uint32(begin + a_k) % uint32(group_rows))
        if A_ALONG_K:
            a_at, a_step = row_begin(i, group_rows, p.a_group, p.a_row) + begin + a_k, DEPTH
        else:
            a_at, a_step = row_begin(begin + a_k, group_rows, p.a_group, p.a_row) + i, DEPTH * p.a_row
        if B_ALONG_K:
            b_at, b_step = j * p.b_row + begin + b_k, DEPTH
        elif A_ALONG_K:
            b_at, b_step = (begin + b_k) * p.b_row + j, DEPTH * p.b_row
        else:
            b_at, b_step = row_begin(begin + b_k, group_rows, p.b_group, p.b_row) + j, DEPTH * p.b_row

        buffer, a, b = int32(0), pointer_to(p.a, a_at), pointer_to(p.b, b_at)
        a0, a1, a2, a3 = load_numbers(a, 0, i_left, k_left - a_k, A_ALONG_K, p.alignment & ALIGNED_A)
        b0, b1, b2, b3 = load_numbers(b, 0, j_left, k_left - b_k, B_ALONG_K, p.alignment & ALIGNED_B)
        while k_left > 0:
            store_numbers(strips_a, buffer + a_to, A_ALONG_K, thread, a0, a1, a2, a3)
            store_numbers(strips_b, buffer + b_to, B_ALONG_K, thread, b0, b1, b2, b3)
            cuda.syncthreads()  # both strips are complete, and no thread reads the previous ones any more
            k_left = int32(k_left - DEPTH)
            a = pointer_to(a, a_step)
            b = pointer_to(b, b_step)
            if not A_ALONG_K:  # skip the gaps between groups of rows
                row_in_group = int32(row_in_group + DEPTH)
                while row_in_group >= group_rows:
                    row_in_group = int32(row_in_group - group_rows)
                    a = pointer_to(a, p.a_group - group_rows * p.a_row)
                    b = pointer_to(b, p.b_group - group_rows * p.b_row)
            a0, a1, a2, a3 = load_numbers(a, 0, i_left, k_left - a_k, A_ALONG_K, p.alignment & ALIGNED_A)
            b0, b1, b2, b3 = load_numbers(b, 0, j_left, k_left - b_k, B_ALONG_K, p.alignment & ALIGNED_B)
            add_strips(strips_a, strips_b, buffer, thread, sums)
            buffer = int32(BUFFER - buffer)

    @device
    def write_tile(p, slot, down, across):
        """Compute a tile of a slot of out: its finished sums along k. Out's rows are grouped as those of a."""
        sums = cuda.local.array(SUMS, float32)
        thread = cuda.threadIdx.x & (THREADS - 1)  # the mask tells the compiler that it is not negative
        top, left = down * TILE, across * TILE
        sum_products(p, top, left, slot, thread, sums)
        write(sums, thread, top, left, slot * p.M * p.N, p.group_rows if A_ALONG_K else p.M, p)

    def product(p):
        """Compute a product."""
        write_tile(p, cuda.blockIdx.z, cuda.blockIdx.y, cuda.blockIdx.x)

    def products(p, p1, p2, p3):
        """Compute several products. With large tiles, what describes them would not fit into a thread's registers."""
        p = of_block(cuda.blockIdx.x, p, p1, p2, p3)
        row, across = divmod32(cuda.blockIdx.x - p.first, p.across)
        slot, down = divmod32(row, p.down)
        write_tile(p, slot, down, across)

    layout = LAYOUTS[A_ALONG_K, B_ALONG_K]
    options = {"name": f"product_{precision}_{TILE}_{layout}", "threads": THREADS}
    if TILE == ALONE:
        return kernel(Product, resident=2, **options)(product)
    return kernel(*TOGETHER * (Product,), resident=3, **options)(products)


PRODUCTS: dict[tuple[str, int, bool, bool], Kernel] = {
    (precision, tile, *layout): make_product(precision, tile, *layout)
    for precision in ARITHMETICS
    for tile in TILES
    for layout in LAYOUTS
}

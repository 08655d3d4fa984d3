"""What a block does with a tile in shared memory: scores, which of them are hidden or dropped, rows times weights.

See `tiles`. n is the kernel's `Layout`. Parameters x, y, z and p are the index in `smem` of the thread's first row or
column of these arrays. In loops, i and j count the thread's own rows, which are `side` apart: 0 … 3 for its queries
(ROWS) and its keys (COLUMNS).

Loops count with 32 bits (`int32`): with 64, the compiler counts with five instructions instead of three.
"""

from numba import int64

from tinyprune.kernels.cuda.attend.tiles import COLUMNS, LOWEST, ROWS, clear, load_rows
from tinyprune.kernels.cuda.device.instructions import load1, load4, store1, store4, thread_index
from tinyprune.kernels.cuda.device.jit import cuda, device, float32, int32, uint32
from tinyprune.kernels.cuda.dropout import kept


@device
def dot4(x, y, total):
    """Return total + Σ x · y of four numbers each."""
    return total + x[0] * y[0] + x[1] * y[1] + x[2] * y[2] + x[3] * y[3]


@device
def dots(n, smem, x, y, s):
    """Add Σ_d x[i, d] · y[j, d] to s[i, j]."""
    apart = n.side * n.x_stride
    for _ in range(int32(n.width // 4)):
        x0, x1 = load4(smem, x), load4(smem, x + apart)
        x2, x3 = load4(smem, x + 2 * apart), load4(smem, x + 3 * apart)
        for j in range(COLUMNS):
            key = load4(smem, y + j * apart)
            s[j] = dot4(x0, key, s[j])
            s[COLUMNS + j] = dot4(x1, key, s[COLUMNS + j])
            s[2 * COLUMNS + j] = dot4(x2, key, s[2 * COLUMNS + j])
            s[3 * COLUMNS + j] = dot4(x3, key, s[3 * COLUMNS + j])
        x, y = x + 4, y + 4


@device
def sliding_dots(n, smem, x, z, z_regs, s):
    """Add Σ_d x[i, d] · z[i − j, d] to s[i, j], over the columns of z in shared memory.

    z: in the row of the thread's first query and key. Row k of z_regs is the one where i − j = k + 1 − COLUMNS.
    """
    for _ in range(int32(n.z_columns // 4)):
        for k in range(ROWS + COLUMNS - 1):
            m, row = 4 * k, z + (k + 1 - COLUMNS) * n.side * n.z_stride
            z_regs[m], z_regs[m + 1], z_regs[m + 2], z_regs[m + 3] = load4(smem, row)
        for i in range(ROWS):
            a, b, c, e = load4(smem, x + i * n.side * n.x_stride)
            for j in range(COLUMNS):
                m, k = i * COLUMNS + j, 4 * (i - j + COLUMNS - 1)
                s[m] = s[m] + a * z_regs[k] + b * z_regs[k + 1] + c * z_regs[k + 2] + e * z_regs[k + 3]
        x, z = x + 4, z + 4


@device
def add_biases(n, smem, y, z, s):
    """Add to s[i, j] the biases after row j of y and after row i − j of z."""
    for i in range(ROWS):
        for j in range(COLUMNS):
            key, slide = y + j * n.side * n.x_stride + n.width, z + (i - j) * n.side * n.z_stride + n.z_columns
            s[i * COLUMNS + j] += load1(smem, key) + load1(smem, slide)


@device
def add_products(n, smem, place, source, first, dotted, sliding, z_regs, s):
    """Add to s[i, j] Σ_d x[i, d] · y[j, d] if `dotted`, and Σ_d x[i, d] · z[i − j, d] if `sliding`.

    z_columns columns of z at a time are copied from `source`, its rows from `first` on; then all threads wait.
    """
    x, y = n.x + place.i * n.x_stride, n.y + place.j * n.x_stride
    for d0 in range(0, n.width if sliding else n.z_columns, n.z_columns):
        if d0 > 0:
            cuda.syncthreads()  # all threads have read the columns before
        if sliding:
            load_rows(n, source, first, d0, smem, n.z, n.z_rows, n.z_columns)
        cuda.syncthreads()  # x, y and the columns are there
        if dotted and d0 == 0:
            dots(n, smem, x, y, s)
        if sliding:
            sliding_dots(n, smem, x + d0, place.z, z_regs, s)


@device
def scores(n, smem, place, source, first, sliding, z_regs, s):
    """Set s[i, j] to Σ_d x[i, d] · y[j, d] and, if `sliding`, add Σ_d x[i, d] · z[i − j, d] and the rows' biases."""
    clear(s, ROWS * COLUMNS)
    add_products(n, smem, place, source, first, True, sliding, z_regs, s)
    if sliding:
        add_biases(n, smem, n.y + place.j * n.x_stride, place.z, s)


@device
def hide(s, last, rise, span, side):
    """Set scores of keys that their queries do not see to LOWEST.

    The thread's query i sees its key j if last + i · rise − span ≤ j · side ≤ last + i · rise, with keys counted from
    the thread's first one. In most tiles it sees all of them; one test on two corners finds this out.
    """
    if last < (COLUMNS - 1) * side or last + (ROWS - 1) * rise > span:
        for i in range(ROWS):
            end = int32(last + i * rise)
            for j in range(COLUMNS):
                if not int32(end - span) <= j * side <= end:
                    s[i * COLUMNS + j] = LOWEST


@device
def add32(number, by):
    """Return number + by modulo 2³², as dropout numbers its entries."""
    return uint32((int64(number) + by) & 0xFFFFFFFF)


@device
def drop(x, entry, row_entries, key_entries, dropout):
    """Set what dropout takes out to zero. Score (i, j) is entry + i · row_entries + j · key_entries of the mask."""
    if dropout.limit > 0:
        for i in range(ROWS):
            for j in range(COLUMNS):
                number = add32(entry, i * row_entries + j * key_entries)
                if not kept(number, dropout.key0, dropout.key1, dropout.limit):
                    x[i * COLUMNS + j] = float32(0)


@device
def store_weights(n, smem, p, s):
    """Store the thread's 16 weights in p, whose columns have a thread's 4 keys side by side."""
    for m in range(ROWS):
        store4(smem, p + m * n.side * n.p_stride, s[4 * m], s[4 * m + 1], s[4 * m + 2], s[4 * m + 3])


@device
def mix(n, smem, p, y, sums):
    """Add Σ_j p[i, j] · y[j, d] to out[i, d], for tiles of 4 · side keys; y: the thread's first column in row 0."""
    apart = n.side * n.x_stride
    for _ in range(int32(n.side)):  # 4 keys at a time, `side` apart: they are side by side in p
        y0, y1 = load4(smem, y), load4(smem, y + apart)
        y2, y3 = load4(smem, y + 2 * apart), load4(smem, y + 3 * apart)
        for i in range(n.out_queries):
            a, b, c, e = load4(smem, p + i * n.side * n.p_stride)
            for d in range(4):
                m = 4 * i + d
                sums[m] = sums[m] + a * y0[d] + b * y1[d] + c * y2[d] + e * y3[d]
        p, y = p + 4, y + n.x_stride


@device
def sliding_mix(n, smem, p, z, z_regs, sums):
    """Add Σ_j p[i, j] · z[i − j, d] to out[i, d]; z: the thread's first column, in the row of its query and key 0.

    Here z has all D columns, and rows as long as those of x. For 4 keys, `side` apart, row k of z_regs is the one where
    i − j = k − 3.
    """
    apart = n.side * n.x_stride
    z -= 3 * apart  # to the row of the last of the 4 keys
    for _ in range(int32(n.side)):
        for k in range(n.out_queries + 3):
            m = 4 * k
            z_regs[m], z_regs[m + 1], z_regs[m + 2], z_regs[m + 3] = load4(smem, z + k * apart)
        for i in range(n.out_queries):
            a, b, c, e = load4(smem, p + i * n.side * n.p_stride)
            for d in range(4):
                m = 4 * i + d
                sums[m] = sums[m] + a * z_regs[m + 12] + b * z_regs[m + 8] + c * z_regs[m + 4] + e * z_regs[m]
        p, z = p + 4, z - n.x_stride


@device
def add_scaled(sums, at, weight, x):
    """Add weight · x, four numbers, to sums[at …]."""
    for d in range(4):
        sums[at + d] += weight * x[d]


@device
def add_outer(n, smem, p, x, sums):
    """Add p[j] · x[d] to out[j, d] for one query, and for the thread's keys and columns."""
    row = load4(smem, x)
    if n.out_keys == 4:
        weights = load4(smem, p)
        for j in range(4):
            add_scaled(sums, 4 * j, weights[j], row)
    else:
        for j in range(n.out_keys):
            add_scaled(sums, 4 * j, load1(smem, p + j), row)


@device
def outer(n, smem, p, x, sums):
    """Add Σ_i p[i, j] · x[i, d] to out[j, d]; p, x: the thread's first columns, in row 0."""
    for _ in range(int32(n.queries // 4)):  # 4 queries at a time
        for i in range(4):
            add_outer(n, smem, p + i * n.p_stride, x + i * n.x_stride, sums)
        p, x = p + 4 * n.p_stride, x + 4 * n.x_stride


@device
def write(out, at, sums, row, factor):
    """Write the 4 columns of one of a thread's rows of out, times a factor, to out[at …]."""
    m = 4 * row
    store4(out, at, sums[m] * factor, sums[m + 1] * factor, sums[m + 2] * factor, sums[m + 3] * factor)


@device
def sum_of(smem, begin, count):
    """Return the sum of `count` numbers in shared memory."""
    total = float32(0)
    for k in range(count):
        total += load1(smem, begin + k)
    return total


# The terms of u, which is added to all queries, come from sums of ds over the queries of a key:
#
#     dk[j] += Σ_i ds[i, j] · u        du += Σ_j (Σ_i ds[i, j]) · k[j]
#
# So also for w, with distances r in place of k. queries / ROWS threads, the peers, have scores of a key; each has a
# partial sum. These lie in shared memory where z was, as (key, peer).


@device
def store_partial_sums(n, smem, place, ds_sums):
    """Store the thread's sum of ds for each of its keys; then all threads have to wait."""
    peers = n.queries // ROWS
    peer = place.i % n.side + place.i // (ROWS * n.side) * n.side
    for c in range(COLUMNS):
        store1(smem, n.z + place.j * peers + peer + c * n.side * peers, ds_sums[c])


@device
def key_sum(n, smem, key):
    """Return Σ_i ds[i, key]."""
    peers = n.queries // ROWS
    return sum_of(smem, n.z + key * peers, peers)


@device
def add_bias(n, smem, key, bias, first, sums, row):
    """Add Σ_i ds[i, key] · bias[first …] to the 4 columns of one of a thread's rows of dk."""
    total = key_sum(n, smem, key)
    for c in range(4):
        sums[4 * row + c] += total * bias[first + c]


@device
def write_bias_gradient(n, smem, sizes, out, factor):
    """Set the block's slot of out, W numbers, to Σ_key (Σ_i ds[i, key]) · k[key] · factor; k lies where y does."""
    slot = cuda.blockIdx.x * cuda.gridDim.z + cuda.blockIdx.z
    first = (slot * sizes.H + cuda.blockIdx.y) * sizes.W
    for d in range(thread_index(n.threads), sizes.W, n.threads):
        total = float32(0)
        for key in range(n.keys):
            total += key_sum(n, smem, key) * load1(smem, n.y + key * n.x_stride + d)
        out[first + d] = total * factor

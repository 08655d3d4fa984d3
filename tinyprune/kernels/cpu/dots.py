"""A few rows times a transposed matrix: dot products with the rows of b, which are read where they lie.

    for i, j: c[i, j] += Σ_l Σ_k a[i, k·L + l] · b[j, k·L + l]        a sum for each of the L lanes, then their total

Packing b into panels, as `product` does, writes all of b and reads it again. That pays when many rows of a meet each
panel; with one row it takes longer than the product. Here eight rows of b are read side by side: their sums do not wait
for each other, and one load of a serves all eight. Further rows of a find them in the cache.
"""

from tinyprune.kernels.cpu.jit import inner
from tinyprune.kernels.cpu.simd import broadcast, lanes, load, load_some, muladd, never_inline, total

MOST_ROWS = 4  # of a: with twice as many, packing is faster
SIDE = 8  # rows of b side by side


@inner
def side_by_side(a, a_at, b, b_at, b_row, c, c_at, K, rows, accumulate):
    """Compute c[c_at + j] (+)= Σ_k<K a[a_at + k] · b[b_at + j · b_row + k] for j < rows ≤ SIDE; K, rows ≥ 1.

    For rows that are missing the last one is computed again, so that all sums run in the same order.
    """
    never_inline()
    L = lanes(a)
    last = b_at + (rows - 1) * b_row
    r0, r1, r2, r3 = b_at, min(b_at + b_row, last), min(b_at + 2 * b_row, last), min(b_at + 3 * b_row, last)
    r4, r5, r6, r7 = r0 + 4 * b_row, r1 + 4 * b_row, r2 + 4 * b_row, r3 + 4 * b_row
    r4, r5, r6, r7 = min(r4, last), min(r5, last), min(r6, last), min(r7, last)
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = broadcast(a, 0)
    whole = K - K % L
    for k in range(0, whole, L):
        x = load(a, a_at + k)
        s0, s1 = muladd(x, load(b, r0 + k), s0), muladd(x, load(b, r1 + k), s1)
        s2, s3 = muladd(x, load(b, r2 + k), s2), muladd(x, load(b, r3 + k), s3)
        s4, s5 = muladd(x, load(b, r4 + k), s4), muladd(x, load(b, r5 + k), s5)
        s6, s7 = muladd(x, load(b, r6 + k), s6), muladd(x, load(b, r7 + k), s7)
    if whole < K:
        k, left = whole, K - whole
        x = load_some(a, a_at + k, left)
        s0, s1 = muladd(x, load_some(b, r0 + k, left), s0), muladd(x, load_some(b, r1 + k, left), s1)
        s2, s3 = muladd(x, load_some(b, r2 + k, left), s2), muladd(x, load_some(b, r3 + k, left), s3)
        s4, s5 = muladd(x, load_some(b, r4 + k, left), s4), muladd(x, load_some(b, r5 + k, left), s5)
        s6, s7 = muladd(x, load_some(b, r6 + k, left), s6), muladd(x, load_some(b, r7 + k, left), s7)
    sums = total(s0), total(s1), total(s2), total(s3), total(s4), total(s5), total(s6), total(s7)
    for j in range(rows):
        c[c_at + j] = c[c_at + j] + sums[j] if accumulate else sums[j]


@inner
def dots(a, a_at, a_row, b, b_at, b_row, c, c_at, c_row, K, rows, columns, accumulate):
    """Compute c[rows, columns] (+)= a · bᵀ, for `columns` rows of b."""
    for j in range(0, columns, SIDE):
        side = min(SIDE, columns - j)
        for i in range(rows):
            side_by_side(a, a_at + i * a_row, b, b_at + j * b_row, b_row, c, c_at + i * c_row + j, K, side, accumulate)

"""A few rows times a transposed matrix, whose rows lie in memory one after the other: nothing is packed.

    for i, j: c[i, j] += Σ_l Σ_k a[i, L·k + l] · b[j, L·k + l]        a sum for each of the L lanes, then their total

With few rows in a, packing b costs several times the product, since it writes all of b and reads it again. A dot product
reads b once, as it lies. Eight rows of b at a time give eight sums that do not wait for each other, and one load of a
serves all eight. If a has several rows, the eight rows of b are in the first-level cache from its second row on.
"""

from tinyprune.kernels.cpu.jit import part
from tinyprune.kernels.cpu.partial import load_some
from tinyprune.kernels.cpu.simd import broadcast, lanes, load, muladd, never_inline, total

SIDE = 8  # rows of b side by side


@part
def side_by_side(a, a_at, b, b_at, b_row, c, c_at, K, rows, accumulate):
    """Compute c[c_at + j] (+)= Σ_k<K a[a_at + k] · b[b_at + j · b_row + k] for j < rows ≤ SIDE.

    For rows that are missing the last one is computed again. All sums run in the same order.
    """
    never_inline()
    L = lanes(a)
    end = rows - 1
    r0, r1, r2, r3 = b_at, b_at + min(1, end) * b_row, b_at + min(2, end) * b_row, b_at + min(3, end) * b_row
    r4, r5, r6, r7 = (
        b_at + min(4, end) * b_row,
        b_at + min(5, end) * b_row,
        b_at + min(6, end) * b_row,
        b_at + min(7, end) * b_row,
    )
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


@part
def dots(a, a_at, a_row, b, b_at, b_row, c, c_at, c_row, K, rows, columns, accumulate):
    """Compute c[rows, columns] (+)= a · bᵀ, for `columns` rows of b."""
    for j in range(0, columns, SIDE):
        for i in range(rows):
            side = min(SIDE, columns - j)
            side_by_side(a, a_at + i * a_row, b, b_at + j * b_row, b_row, c, c_at + i * c_row + j, K, side, accumulate)

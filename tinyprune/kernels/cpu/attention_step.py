"""One layer's attention block for text that is read token by token; inference only. (`ops.attention_step`, compiled)

    n = LayerNorm(x);  y = x + bo;  place = read mod C              # the place of this token in the ring buffers
    for each head:                                                  # with its columns of Wq, Wk, Wv and its rows of Wo
        q, k, v = n @ Wq + bq, n @ Wk + bk, n @ Wv + bv;  keys[place], values[place] = k, v  # q and k may be rotated
        s = [keys @ (q + u) + r @ (q + w) by distance, pk @ q];  y += softmax(s) @ [values, pv] @ Wo

It is memory-bound: each of the weights, 3.4 MB a layer at preset `small`, is used once per token. The tricks:

- Weights lie in the order in which they are read: head by head, each matrix in panels two vectors wide. So memory is
  read in one long run, and not in pieces of 128 bytes, the part of a row of Wq that is one head's.
- With this packing `row_times_matrix` computes all products: of LayerNorm(x), q, the softmax's weights and o in turn.
- There is one parallel loop, over heads: threads wait only once, before their parts of y are added, in order.
- √Dh, √N, log2 e, gates and scale are multiplied into the weights beforehand; closed heads are left out.
- Places that no token has taken yet are not read, except in a panel that they share with a token's place.
- Arguments are checked once and not for every token; a rotation's cosines and sines are computed once for all heads.
"""

import math
from statistics import mode
from typing import NamedTuple

import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune import ops as textbook
from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.arguments import check_floats, contiguous
from tinyprune.kernels.cpu.attention_tiles import LOWEST, round_up
from tinyprune.kernels.cpu.jit import kernel, parallel_kernel, part
from tinyprune.kernels.cpu.simd import (
    LOG2_E,
    VECTOR_BYTES,
    add,
    broadcast,
    exp2,
    lanes,
    largest,
    load,
    load_some,
    maximum,
    muladd,
    multiply,
    never_inline,
    number,
    only_lanes,
    store,
    store_some,
    subtract,
    total,
)
from tinyprune.kernels.cpu.tiles import microkernel
from tinyprune.ops.attention_step import BlockWeights, check_sizes
from tinyprune.ops.shapes import check_shapes

EPS = 1e-5  # of the LayerNorm

row_times_panel = microkernel(1, 2, False)
row_times_narrow_panel = microkernel(1, 1, False)


class Layout(NamedTuple):
    """Where the parts of a head's memory begin, in the order in which they are read. All begin at a whole vector."""

    qkv: int  # (D, 3·Dh): the head's columns of Wq, Wk, Wv side by side; in panels, as all matrices
    biases: int  # 3·Dh numbers, and so bq, bk, bv; or nothing
    u: int  # Dh numbers, and so w
    w: int
    keys: int  # (Dh, C): a column for each place
    r: int  # (Dh, C): column c is distance C − 1 − c; or nothing
    pk: int  # (Dh, N)
    values: int  # (persistent + places, Dh): N and C, rounded up; pv, then a row for each place
    Wo: int  # (Dh, D)
    q: int  # scratch from here on: q, k and v, 3·Dh
    q_u: int  # q + u, Dh
    q_w: int  # q + w, Dh
    positions: int  # position scores by distance, as the columns of r
    s: int  # scores, then weights, as the rows of values
    o: int  # the head's output, Dh
    out: int  # o @ Wo, D
    end: int


@kernel
def layout(D, Dh, C, N, relative, biased, L):
    """Lay out the memory of a head for vectors of L numbers."""
    head, places, persistent = round_up(Dh, L), round_up(C, L), round_up(N, L)
    qkv = 0
    biases = qkv + D * round_up(3 * Dh, L)
    u = biases + (round_up(3 * Dh, L) if biased else 0)
    w = u + head
    keys = w + head
    r = keys + Dh * places
    pk = r + (Dh * places if relative else 0)
    values = pk + Dh * persistent
    Wo = values + (places + persistent) * head
    q = Wo + Dh * round_up(D, L)
    q_u = q + round_up(3 * Dh, L)
    q_w = q_u + head
    positions = q_w + head
    s = positions + places
    o = s + places + persistent
    out = o + head
    end = out + round_up(D, L)
    return Layout(qkv, biases, u, w, keys, r, pk, values, Wo, q, q_u, q_w, positions, s, o, out, end)


@part
def row_times_matrix(x, at, m, b, rows, columns, out, depth):
    """Compute m[out + j] = Σ_k x[at + k] · b[k, j] for k < depth, j < columns; 1 ≤ depth ≤ rows, columns whole vectors.

    Matrix b, of so many rows, lies in m in panels of two vectors, the last perhaps of one: in each panel row after row.
    If b has more columns than `columns`, these are whole panels.
    """
    never_inline()
    L = lanes(m)
    j = 0
    while j + 2 * L <= columns:
        row_times_panel(x, at, 0, 1, m, b + j * rows, 2 * L, m, out + j, 0, depth)
        j += 2 * L
    if j < columns:
        row_times_narrow_panel(x, at, 0, 1, m, b + j * rows, L, m, out + j, 0, depth)


@part
def entry(k, j, rows, columns, L):
    """Return where entry (k, j) of a matrix (rows, columns) in panels lies."""
    first = j // (2 * L) * (2 * L)
    return first * rows + k * min(2 * L, columns - first) + j - first


@part
def softmax(m, s, n):
    """Turn n scores, to base 2, into weights 2^(score − max) and return their sum. n: whole vectors, at least one."""
    L = lanes(m)
    best = load(m, s)
    for i in range(s + L, s + n, L):
        best = maximum(load(m, i), best)
    highest = broadcast(m, largest(best))
    sums = broadcast(m, 0)
    for i in range(s, s + n, L):
        weight = exp2(subtract(load(m, i), highest))
        sums = add(sums, weight)
        store(m, i, weight)
    return total(sums)


@part
def rotate(m, x, rotation):
    """Rotate the pairs (m[x + d], m[x + d + Dh/2]) by angles whose cosines and sines are rows 1 and 2 of `rotation`."""
    half = rotation.shape[1]
    for d in range(half):
        a, b, cos, sin = m[x + d], m[x + half + d], rotation[1, d], rotation[2, d]
        m[x + d] = a * cos - b * sin
        m[x + half + d] = b * cos + a * sin


@part
def head_step(n, m, rotation, place, visible, D, Dh, C, N, relative, biased):
    """Compute one head, whose memory is m: store its key and value, and its part of the block's output in `out`."""
    never_inline()
    L = lanes(m)
    at = layout(D, Dh, C, N, relative, biased, L)
    head, places, persistent = round_up(Dh, L), round_up(C, L), round_up(N, L)
    zero = number(0)
    # q, k, v = n @ Wq + bq, n @ Wk + bk, n @ Wv + bv, side by side
    row_times_matrix(n, zero, m, at.qkv, D, round_up(3 * Dh, L), at.q, D)
    if biased:
        for d in range(0, round_up(3 * Dh, L), L):
            store(m, at.q + d, add(load(m, at.q + d), load(m, at.biases + d)))
    rotate(m, at.q, rotation)
    rotate(m, at.q + Dh, rotation)
    for d in range(Dh):
        m[at.keys + entry(d, place, Dh, places, L)] = m[at.q + Dh + d]
        m[at.values + entry(persistent + place, d, persistent + places, head, L)] = m[at.q + 2 * Dh + d]
        m[at.q_u + d] = m[at.q + d] + m[at.u + d]
        m[at.q_w + d] = m[at.q + d] + m[at.w + d]

    # scores: persistent keys at at.s, places from s on; what pads them is masked
    s = at.s + persistent
    seen = min(round_up(visible, 2 * L), places)  # whole panels
    row_times_matrix(m, at.q_u, m, at.keys, Dh, seen, s, Dh)
    if relative:
        # Places 0 … place are at the distances place … 0, those after them at C − 1 … place + 1.
        row_times_matrix(m, at.q_w, m, at.r, Dh, places, at.positions, Dh)
        for i in range(place + 1):
            m[s + i] += m[at.positions + C - 1 - place + i]
        for i in range(place + 1, visible):
            m[s + i] += m[at.positions + i - place - 1]
    m[s + visible : s + seen] = LOWEST
    row_times_matrix(m, at.q, m, at.pk, Dh, persistent, at.s, Dh)
    m[at.s + N : s] = LOWEST
    share = broadcast(m, 1 / softmax(m, at.s, persistent + seen))
    row_times_matrix(m, at.s, m, at.values, persistent + places, head, at.o, persistent + seen)
    for d in range(at.o, at.o + head, L):
        store(m, d, multiply(load(m, d), share))
    row_times_matrix(m, at.o, m, at.Wo, Dh, round_up(D, L), at.out, Dh)


@part
def normalise(x, scale, bias, n):
    """Compute n = LayerNorm(x). Inside the step it takes a microsecond, called from Python six."""
    D, L = x.size, lanes(x)
    size = x.dtype.type(D)
    sums, squares = broadcast(x, 0), broadcast(x, 0)
    for d in range(0, D, L):
        sums = add(sums, load_some(x, d, D - d))
    mean = broadcast(x, total(sums) / size)
    for d in range(0, D, L):
        centred = only_lanes(subtract(load_some(x, d, D - d), mean), 0, D - d, 0)
        squares = muladd(centred, centred, squares)
    inverse = broadcast(x, 1 / math.sqrt(total(squares) / size + EPS))
    for d in range(0, D, L):
        centred = multiply(subtract(load_some(x, d, D - d), mean), inverse)
        store_some(n, d, muladd(centred, load_some(scale, d, D - d), load_some(bias, d, D - d)), D - d)


@parallel_kernel
def step(x, vectors, memory, rotation, read, Dh, C, N, relative, biased, normalised, n, y):
    """Compute the whole block, y.

    vectors: ln_scale, ln_bias and bo, (3, D).   memory: (heads, …), see `Layout`.   rotation: (3, Dh/2), float64, or
    (3, 0) for no rotary positions; row 0 has the angle from one position to the next, the others are scratch.
    read: how many tokens came before.   n: norm(x), or scratch for LayerNorm(x).
    """
    D = x.size
    H = len(memory)
    out = layout(D, Dh, C, N, relative, biased, lanes(x)).out
    place, visible = read % C, min(read + 1, C)
    if not normalised:
        normalise(x, vectors[0], vectors[1], n)
    for d in range(rotation.shape[1]):  # in float64: the angles of late positions would have few digits in float32
        angle = read * rotation[0, d]
        rotation[1, d], rotation[2, d] = math.cos(angle), math.sin(angle)
    for h in prange(H):
        head_step(n, memory[h], rotation, place, visible, D, Dh, C, N, relative, biased)
    for d in range(D):
        y[d] = x[d] + vectors[2, d]
    for h in range(H):  # always in this order, so that y does not depend on the threads
        for d in range(D):
            y[d] += memory[h, out + d]


class AttentionStep:
    """One layer's attention block, which reads a text token by token: `y = step(x)`.

    It sees the C latest tokens, the newest included. As `tinyprune.ops.AttentionStep`, compiled; float32 or float64.
    The weights are copied: later changes of them have no effect. Heads whose gates are 0 are left out.

    Args:
        C: places in the ring buffers, at least 1.
        Dh: width of a head, at least 1.
        r: position keys, (at least C, H, Dh), row = distance; None for no relative positions.
        weights: of the block, see `ops.attention_step.BlockWeights`; H may be 0.

    Raises:
        ValueError: if the shapes do not fit together, or the dtypes differ or are not float32 or float64; with rotary
            positions, also if Dh is odd or `rope_base` not greater than 0.
    """

    def __init__(self, C: int, Dh: int, r: NDArray | None, weights: BlockWeights) -> None:
        Wq, Wk, Wv, Wo, bo, ln_scale, ln_bias, u, w, pk, pv, gate, scale, bq, bk, bv, rope_base = weights
        check(C, Dh, r, weights)
        D, W = Wq.shape
        N = 0 if pk is None else pk.shape[1]
        factors = np.full(W // Dh, float(scale)) if gate is None else gate * float(scale)
        L = VECTOR_BYTES // Wq.itemsize
        biased = any(bias is not None for bias in (bq, bk, bv))
        self.sizes = (Dh, C, N, r is not None, biased)
        self.at = at = layout(D, *self.sizes, L)
        self.value_rows = round_up(N, L), round_up(N, L) + round_up(C, L)  # the row of place 0, and how many rows
        root = math.sqrt(Dh)
        self.is_open = factors != 0
        self.memory = workspace.empty((int(self.is_open.sum()), at.end), Wq.dtype)
        self.memory[:] = 0
        for m, h in zip(self.memory, np.flatnonzero(self.is_open), strict=True):
            head = slice(h * Dh, (h + 1) * Dh)
            # Scaled so that (q + u)·k is the score to base 2; pk · √Dh makes up for the 1 / √Dh in q.
            write_panels(m, at.qkv, np.hstack([Wq[:, head] * (LOG2_E / root), Wk[:, head], Wv[:, head]]))
            for i, (bias, factor) in enumerate(((bq, LOG2_E / root), (bk, 1), (bv, 1))):
                if bias is not None:
                    m[at.biases + i * Dh : at.biases + (i + 1) * Dh] = bias[head] * factor
            if r is not None:
                m[at.u : at.u + Dh], m[at.w : at.w + Dh] = u[h] * (LOG2_E / root), w[h] * (LOG2_E / root)
                write_panels(m, at.r, r[:C, h][::-1].T)
            if pk is not None:
                write_panels(m, at.pk, pk[h].T * root)
                write_panels(m, at.values, pv[h] * math.sqrt(N), rows=self.value_rows[1])
            write_panels(m, at.Wo, Wo[head] * factors[h])
        self.has_norm = ln_scale is not None and ln_bias is not None
        self.vectors = np.array([np.zeros(D) if x is None else x for x in (ln_scale, ln_bias, bo)], Wq.dtype)
        self.rotation = np.zeros((3, 0 if rope_base is None else Dh // 2))
        if rope_base is not None:
            self.rotation[0] = rope_base ** (-2 * np.arange(Dh // 2) / Dh)
        self.n = np.empty(D, Wq.dtype)
        self.read = 0

    def clear(self) -> None:
        """Forget everything read."""
        if self.read:
            Dh, C, *_ = self.sizes
            for m in self.memory:  # values whose weight is 0 must be finite: 0 · NaN is NaN
                write_panels(m, self.at.values, np.zeros((C, Dh), m.dtype), *self.value_rows)
        self.read = 0

    def fill(self, keys: NDArray, values: NDArray) -> None:
        """Forget everything, and take over a text, as `tinyprune.ops.AttentionStep.fill`."""
        Dh, C, *_ = self.sizes
        H, n = len(self.is_open), len(keys)
        check_shapes(f"keys: n {H} {Dh}, values: n {H} {Dh}", keys, values)
        self.clear()
        for m, h in zip(self.memory, np.flatnonzero(self.is_open), strict=True):
            k, v = (np.roll(x[-C:, h], n % C, 0) for x in (keys, values))  # token i in place i mod C
            write_panels(m, self.at.keys, k.T, columns=C)
            write_panels(m, self.at.values, v, *self.value_rows)
        self.read = n

    def __call__(self, x: NDArray, n: NDArray | None = None) -> NDArray:
        """Read one token.

        Args:
            x: the layer's input for it, (D,).
            n: norm(x), (D,), where the caller normalises; None for LayerNorm.

        Returns:
            y: the block's output, (D,).

        Raises:
            ValueError: unless `x` and `n` have the weights' D and dtype; the token then counts as not read.
        """
        own = self.n
        if (n is None) != self.has_norm:
            raise ValueError("n must be given exactly if ln_scale and ln_bias were not")
        for name, given in (("x", x), ("n", own if n is None else n)):
            if given.shape != own.shape or given.dtype != own.dtype:
                raise ValueError(
                    f"{name} must be {own.dtype} of shape {own.shape}, got {given.dtype} of shape {given.shape}"
                )
        y = np.empty(own.shape, own.dtype)
        n = own if n is None else contiguous(n)
        x, normalised = contiguous(x), not self.has_norm
        step(x, self.vectors, self.memory, self.rotation, self.read, *self.sizes, normalised, n, y)
        self.read += 1
        return y


def write_panels(
    m: NDArray, at: int, matrix: NDArray, first: int = 0, rows: int | None = None, columns: int | None = None
) -> None:
    """Write a matrix into m[at:] in panels, as the part from row `first` on of a matrix (rows, columns)."""
    L = VECTOR_BYTES // m.itemsize
    given = matrix.shape
    rows, columns = rows or given[0], columns or given[1]
    for j in range(0, given[1], 2 * L):
        width = min(2 * L, round_up(columns, L) - j)
        panel = m[at + j * rows : at + (j + width) * rows].reshape(rows, width)
        panel[first : first + given[0], : given[1] - j] = matrix[:, j : j + width]


def check(C: int, Dh: int, r: NDArray | None, weights: BlockWeights) -> None:
    """Raise ValueError, naming the argument, where the textbook does, which reads a token of zeros."""
    check_sizes(C, Dh, weights.rope_base)
    given = weights._asdict() | {"r": r, "scale": None, "rope_base": None}
    check_floats(**{name: x for name, x in given.items() if x is not None})
    Wq, Wk, Wv, Wo, *_ = weights
    D = mode((len(Wq), len(Wk), len(Wv), Wo.shape[-1]))  # so that the error names the one that differs
    x, places = np.zeros(D), np.zeros((C, Wq.shape[1] // Dh, Dh))
    normalised = weights.ln_scale is None and weights.ln_bias is None
    textbook.attention_step(x, places, places.copy(), r, 0, weights, x if normalised else None)

"""All-attention forward, from the textbook to the kernel: relative positions, memory, persistent vectors, both masks.

Arguments of every rung are those of `tinyprune.ops.attention_forward` up to `span`, all given; each returns the heads'
outputs, (B, T, H, Dh). For each query, S keys with

    s_j = ((q + u)·k_j + (q + w)·r_dist) / √Dh        where 0 ≤ dist = i + M − j ≤ span,      M = S − T,

and N persistent ones with s_n = q·pk_n; then softmax over all, and out = Σ a_j v_j + √N Σ a_n pv_n.
"""

import math
from collections.abc import Callable
from functools import wraps

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

from tinyprune import ops
from tinyprune.kernels.cpu.arguments import check_floats
from tinyprune.kernels.cpu.attention import attention_forward
from tinyprune.kernels.cpu.jit import BOUNDS_CHECKED
from tinyprune.ops.attention import check_arguments

CHUNK = 64  # keys worked on at once


def rung(attend: Callable[..., NDArray]) -> Callable[..., NDArray]:
    """Check the arguments of `attend`, which compiled code does not; ValueError if they do not fit together."""

    @wraps(attend)
    def checked(q, k, v, r, u, w, pk, pv, span):
        check_arguments(q, k, v, r, u, w, pk, pv, None, span, 0.0)
        check_floats(q=q, k=k, v=v, r=r, u=u, w=w, pk=pk, pv=pv)
        return attend(*(np.ascontiguousarray(x) for x in (q, k, v, r, u, w, pk, pv)), span)

    return checked


@rung
def textbook(q, k, v, r, u, w, pk, pv, span):
    """Whole arrays in NumPy: products by BLAS, the rest one pass over the T × S matrices for each operation.

    The products are fast. But the matrices of scores go out to memory and back for every mask, maximum, exponential,
    sum and division, and half of the position scores belong to keys that the query does not see.
    """
    return ops.attention_forward(q, k, v, r, u, w, pk, pv, span=span)[0]


@numba.njit
def dot(x: NDArray, y: NDArray) -> float:
    """Sum x y."""
    result = x.dtype.type(0)
    for d in range(x.size):
        result += x[d] * y[d]
    return result


@numba.njit
def softmax(s: NDArray) -> None:
    """Turn scores into weights, in place."""
    highest, total = s[0], s.dtype.type(0)
    for j in range(s.size):
        highest = max(highest, s[j])
    for j in range(s.size):
        s[j] = math.exp(s[j] - highest)
        total += s[j]
    for j in range(s.size):
        s[j] /= total


@rung
@numba.njit
def compiled_loops(q, k, v, r, u, w, pk, pv, span):
    """The definition in loops, compiled: a head's T × (S + N) matrix of scores, of weights, then the sums of values.

    It is one number after the other, in one thread, and `dot` waits for every addition before it makes the next.
    """
    B, T, H, Dh = q.shape
    S, N = k.shape[1], pk.shape[1]
    root, root_N = q.dtype.type(1 / math.sqrt(Dh)), q.dtype.type(math.sqrt(N))
    out = np.zeros((B, T, H, Dh), q.dtype)
    a = np.empty((T, S + N), q.dtype)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                now = i + S - T  # the query's own key
                content, position = q[b, i, h] + u[h], q[b, i, h] + w[h]
                for j in range(S):
                    a[i, j] = -math.inf
                    if 0 <= now - j <= span:
                        a[i, j] = (dot(content, k[b, j, h]) + dot(position, r[now - j, h])) * root
                for n in range(N):
                    a[i, S + n] = dot(q[b, i, h], pk[h, n])
            for i in range(T):
                softmax(a[i])
            for i in range(T):
                for j in range(S):
                    for d in range(Dh):
                        out[b, i, h, d] += a[i, j] * v[b, j, h, d]
                for n in range(N):
                    for d in range(Dh):
                        out[b, i, h, d] += a[i, S + n] * root_N * pv[h, n, d]
    return out


@numba.njit
def take_keys(s: NDArray, values: NDArray, factor: float, highest: float, total: float, o: NDArray) -> tuple:
    """Take more keys into an online softmax (Milakov & Gimelshein 2018): the new (highest, total); o in place.

    At any time o / total is the answer for the keys so far. When a score passes the highest, all before is scaled down.
    """
    best = highest
    for j in range(s.size):
        best = max(best, s[j])
    shrink = math.exp(highest - best)
    total *= shrink
    for d in range(o.size):
        o[d] *= shrink
    for j in range(s.size):
        weight = math.exp(s[j] - best)
        total += weight
        for d in range(o.size):
            o[d] += weight * factor * values[j, d]
    return best, total


@numba.njit
def head_by_keys(q, k, v, r, u, w, pk, pv, span, out):
    """Compute one head key by key: q, out (T, Dh), k, v, r (S, Dh), u, w (Dh,), pk, pv (N, Dh)."""
    real = q.dtype.type
    T, Dh = q.shape
    S, N = len(k), len(pk)
    root = real(1 / math.sqrt(Dh))
    s = np.empty(CHUNK, q.dtype)
    for i in range(T):
        now = i + S - T  # the query's own key
        o = np.zeros(Dh, q.dtype)
        highest, total = real(-math.inf), real(0)
        content, position = (q[i] + u) * root, (q[i] + w) * root
        for first in range(0, N, CHUNK):
            n = min(CHUNK, N - first)
            for j in range(n):
                s[j] = dot(q[i], pk[first + j])
            highest, total = take_keys(s[:n], pv[first:], real(math.sqrt(N)), highest, total, o)
        for first in range(max(0, now - span), now + 1, CHUNK):
            n = min(CHUNK, now + 1 - first)
            for j in range(n):
                s[j] = dot(content, k[first + j]) + dot(position, r[now - first - j])
            highest, total = take_keys(s[:n], v[first:], real(1), highest, total, o)
        for d in range(Dh):
            out[i, d] = o[d] / total


@rung
@numba.njit
def online_softmax(q, k, v, r, u, w, pk, pv, span):
    """One pass over the keys, 64 at a time, in which scores, softmax and sums are one: no matrix at all.

    A weight is used where it is made, in the first cache, and forgotten. Keys out of sight are not even looked at.
    Memory no longer grows with T · S, and every query stands by itself.
    """
    B, T, H, Dh = q.shape
    out = np.empty((B, T, H, Dh), q.dtype)
    for b in range(B):
        for h in range(H):
            head_by_keys(q[b, :, h], k[b, :, h], v[b, :, h], r[:, h], u[h], w[h], pk[h], pv[h], span, out[b, :, h])
    return out


@numba.njit
def add_products(x: NDArray, columns: NDArray, first: int, s: NDArray) -> None:
    """Add Σ_d x[d] · columns[d, first + j] to s[j]."""
    for d in range(x.size):
        row = columns[d, first : first + s.size]
        for j in range(s.size):
            s[j] += x[d] * row[j]


@numba.njit
def head_by_lanes(q, k, v, r, u, w, pk, pv, span, out):
    """Compute one head as `head_by_keys`, with the scores of a chunk of keys side by side."""
    real = q.dtype.type
    T, Dh = q.shape
    S, N = len(k), len(pk)
    root = real(1 / math.sqrt(Dh))
    k, pk, v = np.ascontiguousarray(k.T), np.ascontiguousarray(pk.T), np.ascontiguousarray(v)
    r = np.ascontiguousarray(r[::-1].T)  # column c: distance S − 1 − c
    s = np.empty(CHUNK, q.dtype)
    for i in range(T):
        now = i + S - T
        o = np.zeros(Dh, q.dtype)
        highest, total = real(-math.inf), real(0)
        content, position = (q[i] + u) * root, (q[i] + w) * root
        for first in range(0, N, CHUNK):
            n = min(CHUNK, N - first)
            s[:] = 0
            add_products(q[i], pk, first, s[:n])
            highest, total = take_keys(s[:n], pv[first:], real(math.sqrt(N)), highest, total, o)
        for first in range(max(0, now - span), now + 1, CHUNK):
            n = min(CHUNK, now + 1 - first)
            s[:] = 0
            add_products(content, k, first, s[:n])
            add_products(position, r, first + S - 1 - now, s[:n])
            highest, total = take_keys(s[:n], v[first:], real(1), highest, total, o)
        for d in range(Dh):
            out[i, d] = o[d] / total


@rung
@numba.njit
def keys_in_lanes(q, k, v, r, u, w, pk, pv, span):
    """A head's keys are transposed, so that the innermost loop runs over keys and not over the numbers of one key.

    The sums of neighbouring keys do not depend on one another: the compiler puts 16 of them (float32, AVX-512) into one
    vector, where `dot` had a single sum that every addition had to wait for. Positions are stored backwards, so that
    they run the same way as the keys, and the head's values, which other heads' lay between, side by side.
    """
    B, T, H, Dh = q.shape
    out = np.empty((B, T, H, Dh), q.dtype)
    for b in range(B):
        for h in range(H):
            head_by_lanes(q[b, :, h], k[b, :, h], v[b, :, h], r[:, h], u[h], w[h], pk[h], pv[h], span, out[b, :, h])
    return out


@rung
@numba.njit(parallel=not BOUNDS_CHECKED)  # nothing can be raised from inside a parallel loop
def threads(q, k, v, r, u, w, pk, pv, span):
    """`prange` in place of `range`: the heads of all batch entries on all processors.

    None needs another's result, and each sum has its order, so that no bit of the result depends on how many there are.
    """
    B, T, H, Dh = q.shape
    out = np.empty((B, T, H, Dh), q.dtype)
    for i in prange(B * H):
        b, h = i // H, i % H
        head_by_lanes(q[b, :, h], k[b, :, h], v[b, :, h], r[:, h], u[h], w[h], pk[h], pv[h], span, out[b, :, h])
    return out


@rung
def kernel(q, k, v, r, u, w, pk, pv, span):
    """`tinyprune.kernels.cpu.attention_forward`: 32 queries at a time.

    Keys are loaded once for 32 queries instead of for each. Their scores are a product like those of the matmul ladder,
    with its sums in registers; the position scores are written so that they already lie where they are to be added;
    e^x is a polynomial for a whole vector at once.
    """
    return attention_forward(q, k, v, r, u, w, pk, pv, span=span)[0]


RUNGS = {
    "textbook (NumPy)": textbook,
    "compiled loops": compiled_loops,
    "online softmax": online_softmax,
    "keys in lanes": keys_in_lanes,
    "threads": threads,
    "kernel": kernel,
}

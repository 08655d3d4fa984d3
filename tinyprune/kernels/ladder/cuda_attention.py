"""Causal attention on a GPU, from three kernels to one: q (B, T, H, Dh), k, v (B, S, H, Dh), float32.

Query i sees the keys j ≤ i + M, where M = S − T is what memory there is before the segment:

    s_ij = q_i·k_j / √Dh        a_i = softmax(s_i)        out_i = Σ_j a_ij v_j

Positions and persistent vectors are left out, to keep the use of memory in view. All kernels run on a GPU or, slowly
and with the same result, in Numba's simulator (NUMBA_ENABLE_CUDASIM=1, set before Numba is imported). Only importing
this module needs `numba.cuda`.
"""

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np
from numba import cuda, float32, void
from numpy.typing import NDArray

TILE = 16  # queries of a block, and keys that it works on at once; threads along x and along y
ROW_THREADS = 64  # of a block that works on one row; a power of 2
WIDEST = 64  # the largest Dh of `online_softmax`: each thread sums 64 / 16 columns of out
EACH = WIDEST // TILE
PADDED = WIDEST + 1  # row length of a tile whose columns 16 threads read at once: in 16 banks, not one
ZERO = np.float32(0)
LOWEST = np.float32(-np.inf)

HEADS = float32[:, :, :, ::1]


@cuda.jit
def scores(q: NDArray, k: NDArray, root: float, s: NDArray) -> None:
    """s (B, H, T, S): one thread for each score, −∞ where the query does not see the key. root is 1 / √Dh."""
    j, i = cuda.grid(2)
    b, h = cuda.blockIdx.z // q.shape[2], cuda.blockIdx.z % q.shape[2]
    T, S = q.shape[1], k.shape[1]
    if i < T and j < S:
        total = LOWEST
        if j <= i + S - T:
            total = ZERO
            for d in range(q.shape[3]):
                total += q[b, i, h, d] * k[b, j, h, d]
            total *= root
        s[b, h, i, j] = total


@cuda.jit
def row_softmax(s: NDArray) -> None:
    """Scores (rows, S) become weights, in place: one block for each row.

    Every thread takes each 64th number. Results are combined in shared memory by halves: 32 threads combine theirs with
    those of 32 others, then 16, 8, 4, 2, 1. Each step waits for the previous one.
    """
    found = cuda.shared.array(ROW_THREADS, float32)
    x, row, S = cuda.threadIdx.x, cuda.blockIdx.x, s.shape[1]
    highest = LOWEST
    for j in range(x, S, ROW_THREADS):
        score = s[row, j]
        if score > highest:
            highest = score
    found[x] = highest
    half = ROW_THREADS // 2
    while half > 0:
        cuda.syncthreads()
        if x < half and found[x + half] > found[x]:
            found[x] = found[x + half]
        half //= 2
    cuda.syncthreads()
    highest = found[0]
    cuda.syncthreads()  # everyone has read the maximum before its place is used for sums

    total = ZERO
    for j in range(x, S, ROW_THREADS):
        weight = math.exp(s[row, j] - highest)
        s[row, j] = weight
        total += weight
    found[x] = total
    half = ROW_THREADS // 2
    while half > 0:
        cuda.syncthreads()
        if x < half:
            found[x] += found[x + half]
        half //= 2
    cuda.syncthreads()
    for j in range(x, S, ROW_THREADS):
        s[row, j] /= found[0]


@cuda.jit
def weighted_values(a: NDArray, v: NDArray, out: NDArray) -> None:
    """out (B, T, H, Dh) of weights a (B, H, T, S): one thread for each number."""
    d, i = cuda.grid(2)
    b, h = cuda.blockIdx.z // v.shape[2], cuda.blockIdx.z % v.shape[2]
    T, S = a.shape[2], a.shape[3]
    if i < T and d < v.shape[3]:
        total = ZERO
        for j in range(i + S - T + 1):
            total += a[b, h, i, j] * v[b, j, h, d]
        out[b, i, h, d] = total


@cuda.jit
def online_softmax(q: NDArray, k: NDArray, v: NDArray, root: float, out: NDArray) -> None:
    """All of attention in one kernel, a block for 16 queries of one head: no score ever goes to global memory.

    (Milakov & Gimelshein 2018; Dao et al. 2022.) Keys are copied to shared memory in tiles of 16. Thread (x, y)
    computes the score of query y and key x, then the sums of query y in columns x, x + 16, … of out. At any time
    sums / total is the answer for the keys so far; at a new highest score, everything before is scaled down.
    """
    q_tile = cuda.shared.array((TILE, PADDED), float32)
    k_tile = cuda.shared.array((TILE, PADDED), float32)
    v_tile = cuda.shared.array((TILE, WIDEST), float32)
    s_tile = cuda.shared.array((TILE, TILE), float32)
    sums = cuda.local.array(EACH, float32)
    T, S, H, Dh = q.shape[1], k.shape[1], q.shape[2], q.shape[3]
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    b, h = cuda.blockIdx.y // H, cuda.blockIdx.y % H
    first_query = cuda.blockIdx.x * TILE
    i = first_query + y
    for part in range(EACH):
        d = x + part * TILE
        sums[part] = ZERO
        q_tile[y, d] = q[b, i, h, d] * root if i < T and d < Dh else ZERO
    highest, total = LOWEST, ZERO

    end = first_query + TILE + S - T  # after the last key that a query of this block sees
    if end > S:
        end = S
    for first in range(0, end, TILE):
        for part in range(EACH):
            d = x + part * TILE
            inside = first + y < end and d < Dh
            k_tile[y, d] = k[b, first + y, h, d] if inside else ZERO
            v_tile[y, d] = v[b, first + y, h, d] if inside else ZERO
        cuda.syncthreads()  # the tiles are whole before anyone reads them
        score = LOWEST
        if first + x < S and first + x <= i + S - T:
            score = ZERO
            for d in range(Dh):
                score += q_tile[y, d] * k_tile[x, d]
        s_tile[y, x] = score
        cuda.syncthreads()  # a query's 16 scores are there before its 16 threads look for the highest
        best = highest
        for j in range(TILE):
            if s_tile[y, j] > best:
                best = s_tile[y, j]
        cuda.syncthreads()  # all have looked before scores become weights
        s_tile[y, x] = math.exp(score - best)
        cuda.syncthreads()  # the weights are there before they are used
        shrink = math.exp(highest - best)
        total *= shrink
        for part in range(EACH):
            sums[part] *= shrink
        for j in range(TILE):
            weight = s_tile[y, j]
            total += weight
            for part in range(EACH):
                sums[part] += weight * v_tile[j, x + part * TILE]
        highest = best
        cuda.syncthreads()  # everyone has used tiles and weights before anyone writes the next
    if i < T:
        for part in range(EACH):
            d = x + part * TILE
            if d < Dh:
                out[b, i, h, d] = sums[part] / total


def rung(launch: Callable[..., None]) -> Callable[[NDArray, NDArray, NDArray], NDArray]:
    """Turn `launch`, which works on arrays in the GPU's memory, into a function of NumPy arrays that returns out.

    It checks its arguments, which kernels do not, and raises ValueError. `launch` is its attribute.
    """

    @wraps(launch)
    def attend(q: NDArray, k: NDArray, v: NDArray) -> NDArray:
        if (
            q.ndim != 4
            or k.ndim != 4
            or (q.shape[0], q.shape[2:]) != (k.shape[0], k.shape[2:])
            or q.shape[1] > k.shape[1]
        ):
            raise ValueError(f"q and k must be (B, T, H, Dh) and (B, S, H, Dh) with S ≥ T, got {q.shape} and {k.shape}")
        if v.shape != k.shape:
            raise ValueError(f"v must have the shape of k, {k.shape}, got {v.shape}")
        if any(x.dtype != np.float32 for x in (q, k, v)):
            raise ValueError(f"q, k and v must be float32, got {q.dtype}, {k.dtype} and {v.dtype}")
        if q.shape[-1] > WIDEST:
            raise ValueError(f"Dh must be at most {WIDEST}, got {q.shape[-1]}")
        out = np.zeros(q.shape, np.float32)
        if out.size == 0:  # a grid without blocks cannot be launched
            return out
        on_device = cuda.to_device(out)
        launch(*(cuda.to_device(np.ascontiguousarray(x)) for x in (q, k, v)), on_device)
        return on_device.copy_to_host()

    attend.launch = launch
    return attend


def tiles(size: int) -> int:
    """Return how many tiles cover `size`; the last may be partly empty."""
    return -(-size // TILE)


@rung
def three_kernels(q: Any, k: Any, v: Any, out: Any) -> None:
    """Compute scores, softmax and weighted sums in three kernels that pass results through global memory.

    The T × S matrices are written, read and written again, and read once more, and each score loads its own q and k.
    """
    (B, T, H, Dh), S = q.shape, k.shape[1]
    s = cuda.device_array((B, H, T, S), np.float32)
    scores[(tiles(S), tiles(T), B * H), (TILE, TILE)](q, k, np.float32(1 / math.sqrt(Dh)), s)
    row_softmax[B * H * T, ROW_THREADS](s.reshape(B * H * T, S))
    weighted_values[(tiles(Dh), tiles(T), B * H), (TILE, TILE)](s, v, out)


@rung
def one_kernel(q: Any, k: Any, v: Any, out: Any) -> None:
    """Run `online_softmax`: a block has 16 queries, and uses the weights of 16 keys where it computes them.

    Global memory holds only q, k, v and out; k and v are read once for 16 queries. Keys that no query of the block sees
    are not even loaded.
    """
    B, T, H, Dh = q.shape
    online_softmax[(tiles(T), B * H), (TILE, TILE)](q, k, v, np.float32(1 / math.sqrt(Dh)), out)


KERNELS = {  # with their signatures
    "scores": (scores, void(HEADS, HEADS, float32, HEADS)),
    "row_softmax": (row_softmax, void(float32[:, ::1])),
    "weighted_values": (weighted_values, void(HEADS, HEADS, HEADS)),
    "online_softmax": (online_softmax, void(HEADS, HEADS, HEADS, float32, HEADS)),
}
RUNGS = {"three kernels": three_kernels, "online softmax": one_kernel}

# %% [markdown]
# # A6 · A fused kernel, and a first one for a GPU
#
# You write loops, which NumPy taught you to avoid, and have **Numba** compile them: a softmax, an
# attention that never stores its matrix of scores, and a matrix product for a GPU. About 3½ hours.
# Helpful before: chapters
# [11](https://github.com/tinyprune/tinyprune/blob/main/notebooks/11_hot_loops_in_numba.ipynb) and
# [11c](https://github.com/tinyprune/tinyprune/blob/main/notebooks/11c_on_a_gpu.ipynb).
#
# | task | what | points |
# | --- | --- | ---: |
# | a6_1 | bias and softmax in one compiled loop | 7 |
# | a6_2 | fused attention, against a speed target | 13 |
# | a6_3 | a tiled matrix product for a GPU | 10 |
#
# **Compiled.** `@njit` above a function has Numba compile it when it is first called, for the types
# it is called with. That takes a second or so; the next call with the same types is fast. Compiled
# code knows numbers, arrays, tuples, `math` and a good part of NumPy, but no Python objects, and
# what it does not know is an error (*nopython mode*); a function that it calls has to be compiled,
# too. The older *object mode* (`@jit(forceobj=True)`) accepts everything, since it runs everything in
# Python, as slowly as before. In compiled code loops over single numbers, `x[r, j]`, are what is fast;
# whole-array expressions such as `np.exp(x[r])` work, but make a new array each time.
#
# **float32.** All arrays of this assignment are float32. One float64 among them, `0.0` or
# `np.sqrt(8)`, makes float64 of every result that it touches, which is half as fast. Write
# `np.float32(0)` for a sum that begins with nothing, and give every new array its dtype.
#
# **Speed** is marked as a ratio: NumPy's time by yours, on the same machine, in turns, with one
# thread each. Compiling is not counted. Do not use `cache=True`: there is no place to keep a cache
# where answers are marked, and there is 2 GiB of memory for all.
#
# A test cell that prints `passed` passed. `tinyprune` itself, PyTorch and the like must not be
# imported by answers. Inputs must not be modified. Hidden tests use other shapes and values. Run
# the notebook from its first cell on: it has to set Numba up before Numba is imported.

# %%
import math
import sys
import threading

import numba
import numpy as np
from numba import cuda, float32, njit, prange

# %% [markdown]
# ## a6_1 · Bias and softmax
#
# $$z_{rj} = x_{rj} + b_j \qquad \text{out}_{rj} = \frac{e^{z_{rj}}}{\sum_{j'} e^{z_{rj'}}}$$
#
# for each row r of R by itself. NumPy makes five passes over the whole array, and for each row of
# each pass it has to set up a small loop again. If rows are short, that is what takes the time. A
# compiled loop over rows does everything that a row needs while the row is at hand: the passes are
# **fused**. Like most kernels it makes no array either; it writes to one that it is given. The target,
# on many rows of 3: twice as fast as NumPy.
#
# As always, subtract the largest z of a row first, so that nothing overflows. A mask is made of
# −∞: $e^{-\infty} = 0$, and such entries come out as 0, whether −∞ stands in x or in b. If a whole
# row is −∞, its largest is −∞, too. What is −∞ − (−∞)? And in Numba a division by zero raises an
# error, as in Python.
#
# `fastmath=True` allows the compiler to reorder sums, which makes vectors of them possible. It also
# promises that there is **no infinity and no NaN**, and here there is one. Either leave it out, or
# allow the one thing only: `fastmath={"reassoc"}`.

# %%
@njit
def bias_softmax(x, bias, out):
    """Write the softmax of x + bias over each row to out. Returns nothing.

    x, out (R, V) float32, bias (V,) float32, with R, V ≥ 1. What out holds before is to be forgotten.
    Each row of it shall sum to 1; but where all of x + bias is −∞ in a row, it shall be all zeros.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a6_2 · Fused attention
#
# For query i of T and key j of S, the last T of which stand at the places of the queries,
#
# $$s_{ij} = \frac{q_i \cdot k_j}{\sqrt{D_h}} \qquad \text{where } 0 \le i + S - T - j \le \text{span}
# \qquad\qquad \text{out}_i = \frac{\sum_j e^{s_{ij}}\, v_j}{\sum_j e^{s_{ij}}}$$
#
# for each text and each head by itself. A query sees itself and `span` keys before it, no later
# ones (with span ≥ S − 1: all before it). NumPy makes all T × S scores, writes −∞ over those that
# are out of sight, and goes over the matrix again and again. At T = S = 18,000 that matrix alone is
# 1.3 GB. You never make it, and never look at a key that is out of sight: for query i, which j is
# the first, and which the last?
#
# **Online softmax** (Milakov & Gimelshein 2018) needs one pass. Keep for a query the highest score
# so far, m, the sum $\ell = \sum_j e^{s_j - m}$ and the vector $o = \sum_j e^{s_j - m} v_j$. A new
# score $s$ may be higher than m. Then all that is in $\ell$ and $o$ was measured from the wrong m,
# and one factor puts it right:
#
# $$m' = \max(m, s) \qquad \ell' = e^{m - m'}\,\ell + e^{s - m'} \qquad o' = e^{m - m'}\,o + e^{s - m'}\,v$$
#
# After the last key $\text{out} = o / \ell$. What is a good m to begin with? Scores may all be below
# −1000, and `fastmath=True` must not meet −∞; but the first score is at hand.
#
# **`prange`** in place of `range`, with `parallel=True`, shares the turns of a loop among threads.
# You promise that no turn needs what another one writes: each has its own part of `out`, and scratch
# that is made inside the loop. Queries, heads and texts are such turns; keys are not, as they add to
# one sum. Here you have one thread, so that it neither helps nor costs. At home, with
# `NUMBA_NUM_THREADS` larger, it does. `fastmath=True` may help a scalar product, which is a sum in order.
#
# The target: 4 times as fast as NumPy, where span is much smaller than S. Plain loops reach twice that,
# if they are compiled and touch nothing that is out of sight.

# %%
@njit(parallel=True, fastmath=True)
def fused_attention(q, k, v, span):
    """Causal attention in one pass over the keys that a query sees, without a (T, S) matrix.

    q (B, H, T, Dh) float32, k and v (B, H, S, Dh) float32 with S ≥ T ≥ 1, span ≥ 0 an integer.
    Returns out (B, H, T, Dh) float32. You may change the decorator, and add functions above.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a6_3 · A tile of a matrix product, for a GPU
#
# $$\text{out} = A B \qquad A\,(M, K),\ B\,(K, N),\ \text{out}\,(M, N)$$
#
# On a GPU you write what *one* thread does, a **kernel**, and start it for a whole grid of blocks of
# threads, `kernel[grid, block](A, B, out)`. Here blocks are TILE × TILE threads. `cuda.threadIdx.x`,
# `.y` say which thread of its block this one is, `cuda.blockIdx.x`, `.y` which block, and
# `x, y = cuda.grid(2)` is its place in the whole grid. x is the column and y the row, by custom. The
# grid is made of whole blocks, so that some threads lie beyond the edges of `out`. How many blocks
# are needed along N, if TILE does not divide it?
#
# If each thread reads its row of A and its column of B, the kernel reads 2·M·N·K numbers from global
# memory, which is slow. But the threads of a block need the same rows and columns. So they fetch
# **tiles** together, into memory that a block shares:
#
# 1. `tile_A = cuda.shared.array((TILE, TILE), float32)`, and so for B, each on a line of its own (the
#    simulator tells them apart by their lines); it is one array for all threads of a block;
# 2. for each TILE columns of A, and rows of B: each thread copies *one* number of A and *one* of B
#    into the tiles, or 0 where there is none;
# 3. `cuda.syncthreads()`: a barrier. No thread goes on until all threads of the block have come here;
# 4. each thread adds the TILE products of its row of `tile_A` and its column of `tile_B` to its sum;
# 5. another barrier. What would go wrong without it?
#
# At the end each thread writes its sum to `out`, once. A barrier that only some threads of a block
# reach is an error that a GPU does not tell you: a thread beyond the edge of `out` may have nothing to
# sum, but it still has numbers to fetch, and barriers to reach.
#
# All this runs without a GPU, in Numba's simulator: Python, slow, with the same results. It is too
# kind, though, to a kernel that lacks a barrier, which may come out right by luck. `watched` below
# calls your function on a stricter one: shared memory begins as NaN in each block, and a thread of a
# block runs as far as the next barrier before another one moves, in whatever order. It also counts
# what your kernel reads and writes: call `out, did = watched(A, B)` on small arrays, and print both.
# (Without Jupyter: set the environment variable `NUMBA_ENABLE_CUDASIM=1` before you start Python.)

# %%
TILE = 4


def watched(A, B):
    """tiled_matmul(A, B) on the strict simulator. Returns its result, and what its kernel did.

    "read", "written": numbers of global memory that were read and written, by all threads together.
    "barriers": the fewest and the most barriers that a thread came to.
    """
    if not numba.config.ENABLE_CUDASIM:
        raise RuntimeError(
            "Numba runs without its simulator: restart, and begin with the first cell"
        )
    from numba.cuda.simulator import kernel, kernelapi
    from numba.np.numpy_support import as_dtype

    Thread, Shared = kernel.BlockThread, kernelapi.FakeCUDAShared
    Global = type(cuda.to_device(np.zeros(1)))
    run, wait, get, put, share = (
        Thread.run, Thread.syncthreads, Global.__getitem__, Global.__setitem__, Shared.array,
    )  # fmt: skip
    alone = threading.Lock()  # held by the one thread that moves
    did = {"read": 0, "written": 0}
    barriers, tiles = {}, {}

    def in_kernel():
        return isinstance(threading.current_thread(), Thread)

    def strict_run(thread):
        with alone:
            barriers[thread] = 0
            run(thread)

    def strict_wait(thread):
        barriers[thread] += 1
        alone.release()
        try:
            wait(thread)
        finally:
            alone.acquire()

    def counting_get(array, index):
        found = get(array, index)
        did["read"] += in_kernel() and int(np.size(found))
        return found

    def counting_put(array, index, value):
        did["written"] += in_kernel() and int(np.size(get(array, index)))
        put(array, index, value)

    def strict_share(shared, shape, dtype):
        caller, block = sys._getframe(1), threading.current_thread().blockIdx
        name = caller.f_code, caller.f_lasti, tuple(block)
        if name not in tiles:
            kind = as_dtype(dtype) if isinstance(dtype, numba.types.Type) else np.dtype(dtype)
            tiles[name] = np.full(shape, np.nan if kind.kind == "f" else 0, kind)
        return tiles[name]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # threads that wait for one another a lot
    Thread.run, Thread.syncthreads, Shared.array = strict_run, strict_wait, strict_share
    Global.__getitem__, Global.__setitem__ = counting_get, counting_put
    try:
        out = tiled_matmul(A, B)
    finally:
        sys.setswitchinterval(interval)
        Thread.run, Thread.syncthreads, Shared.array = run, wait, share
        Global.__getitem__, Global.__setitem__ = get, put
    did["barriers"] = [min(barriers.values(), default=0), max(barriers.values(), default=0)]
    return out, did

# %%
@cuda.jit
def tile_kernel(A, B, out):
    """What one thread does: its number of out = A B, from tiles in shared memory."""
    # YOUR CODE HERE
    raise NotImplementedError()


def tiled_matmul(A, B):
    """A B on the GPU: launches tile_kernel on blocks of TILE × TILE threads.

    A (M, K) float32, B (K, N) float32, all sizes ≥ 1. Returns out (M, N) float32, a NumPy array.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## Hand in
#
# Hand in this file, under the name that it has. If every test cell above prints `passed`, or
# `pytest a6` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

# %% [markdown]
# # A6 · A fused kernel, and a first one for a GPU
#
# You write loops, which NumPy taught you to avoid, and have **Numba** compile them: a softmax, an
# attention that never stores its matrix of scores, and a matrix product for a GPU. About 3½ hours.
# Read before: chapters
# [11](https://github.com/tinyprune/tinyprune/blob/main/notebooks/11_hot_loops_in_numba.ipynb),
# [11b](https://github.com/tinyprune/tinyprune/blob/main/notebooks/11b_attention_in_numba.ipynb) and
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
# code supports numbers, arrays, tuples, `math` and a good part of NumPy, but no other Python objects;
# everything else is an error (*nopython mode*). A function that it calls must be compiled,
# too. The older *object mode* (`@jit(forceobj=True)`) accepts everything, since it runs everything in
# Python, as slowly as before. In compiled code, loops over single numbers, `x[r, j]`, are fast;
# whole-array expressions such as `np.exp(x[r])` work, but make a new array each time.
#
# **float32.** All arrays of this assignment are float32. One float64 among them, `0.0` or
# `np.sqrt(8)`, makes every result that depends on it float64, which is about half as fast. Start a sum
# with `np.float32(0)`, and give every new array its dtype.
#
# **Speed** is marked as a ratio: NumPy's time divided by yours, on the same machine, in turns, with one
# thread each. Compiling is not counted. Do not use `cache=True`: answers are marked where no cache
# can be kept. They get 2 GiB of memory in all.
#
# A test cell prints `passed` if its tests pass. Answers must not import `tinyprune`, PyTorch or similar
# packages. Do not modify the inputs. Hidden tests use other shapes and values. Run the notebook from its
# first cell on, which sets Numba up before it is imported.

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
# for each row r of R. NumPy makes five passes over the whole array, and for each row of
# each pass it has to set up a small loop again. If rows are short, this takes most of the time. A
# compiled loop over rows does all steps for one row before it goes to the next: the passes are
# **fused**. Like most kernels it makes no array; it writes to one that it is given. The target,
# on many rows of 3: twice as fast as NumPy.
#
# As always, subtract the largest z of a row first, so that nothing overflows. Masked entries are
# −∞, in x or in b: $e^{-\infty} = 0$, and they must become 0. If a whole
# row is −∞, its largest entry is −∞, too. What is −∞ − (−∞)? And in Numba a division by zero raises an
# error, as in Python.
#
# `fastmath=True` allows the compiler to reorder sums, so that it can use SIMD instructions. It also
# promises that there is **no infinity and no NaN**, which is not true here. Either leave it out, or
# allow reordering only: `fastmath={"reassoc"}`.

# %%
@njit
def bias_softmax(x, bias, out):
    """Write the softmax of x + bias over each row to out. Returns nothing.

    x, out (R, V) float32, bias (V,) float32, with R, V ≥ 1. Ignore what out holds before.
    Each row of out must sum to 1, or be all zeros where all of x + bias is −∞.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a6_2 · Fused attention
#
# Query i of T stands at the position of key i + S − T, so the last T of the S keys are at the queries' positions:
#
# $$s_{ij} = \frac{q_i \cdot k_j}{\sqrt{D_h}} \qquad \text{where } 0 \le i + S - T - j \le \text{span}
# \qquad\qquad \text{out}_i = \frac{\sum_j e^{s_{ij}}\, v_j}{\sum_j e^{s_{ij}}}$$
#
# for each text and each head. A query sees itself and `span` keys before it, no later
# ones (with span ≥ S − 1: all before it). NumPy makes all T × S scores, masks those that a query does not
# see, and goes over the matrix again and again. At T = S = 18,000 that matrix alone is
# 1.3 GB. You never make it, and never read a masked key: for query i, which j is
# the first, and which the last?
#
# The **online softmax** (Milakov & Gimelshein 2018) needs one pass. Keep for a query the highest score
# so far, m, the sum $\ell = \sum_j e^{s_j - m}$ and the vector $o = \sum_j e^{s_j - m} v_j$. A new
# score $s$ may be higher than m. Then $\ell$ and $o$ refer to the old m, and one factor corrects both:
#
# $$m' = \max(m, s) \qquad \ell' = e^{m - m'}\,\ell + e^{s - m'} \qquad o' = e^{m - m'}\,o + e^{s - m'}\,v$$
#
# After the last key $\text{out} = o / \ell$. With which m do you begin? All scores may be below
# −1000, and `fastmath=True` does not allow −∞; but you can begin with the first score.
#
# **`prange`** in place of `range`, with `parallel=True`, divides the iterations of a loop among threads.
# You promise that no iteration needs what another one writes: each has its own part of `out`, and its own
# scratch arrays, made inside the loop. Queries, heads and texts can be divided; keys cannot, since they add
# to one sum. Here you have one thread, so that it makes no difference; at home, with a larger
# `NUMBA_NUM_THREADS`, it helps. `fastmath=True` may speed up a scalar product, whose sum has a fixed order otherwise.
#
# The target: 4 times as fast as NumPy, where span is much smaller than S. Compiled plain loops that read
# no masked key reach about twice that.

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
# For a GPU you write what *one* thread does, a **kernel**, and launch it for a grid of blocks of
# threads, `kernel[grid, block](A, B, out)`. Here blocks have TILE × TILE threads. `cuda.threadIdx.x`,
# `.y` are the thread's place in its block, `cuda.blockIdx.x`, `.y` the block's place in the grid, and
# `x, y = cuda.grid(2)` is the thread's place in the grid. By convention x is the column and y the row. The
# grid consists of whole blocks, so some threads lie beyond the edges of `out`. How many blocks
# are needed along N, if TILE does not divide it?
#
# If each thread reads its row of A and its column of B, the kernel reads 2·M·N·K numbers from global
# memory, which is slow. But the threads of a block need the same rows and columns. So they load
# **tiles** together, into memory that a block shares:
#
# 1. `tile_A = cuda.shared.array((TILE, TILE), float32)`, and likewise for B, each on a separate line (the
#    simulator distinguishes them by their lines); it is one array for all threads of a block;
# 2. for each TILE columns of A, and rows of B: each thread copies *one* number of A and *one* of B
#    into the tiles, or 0 where there is none;
# 3. `cuda.syncthreads()`: a barrier. No thread goes on until all threads of the block have reached it;
# 4. each thread adds the TILE products of its row of `tile_A` and its column of `tile_B` to its sum;
# 5. another barrier. What would go wrong without it?
#
# At the end each thread writes its number to `out`, once. A barrier that only some threads of a block
# reach is an error that a GPU does not report: a thread beyond the edge of `out` may have nothing to
# compute, but it must still load numbers and reach the barriers.
#
# All this runs without a GPU, in Numba's simulator, which is slow. There a kernel that lacks a barrier may
# still give the right result by luck. `watched` below
# calls your function on a stricter one: shared memory begins as NaN in each block, and a thread of a
# block runs up to the next barrier before another one does, in any order. It also counts
# what your kernel reads and writes: call `out, did = watched(A, B)` on small arrays, and print both.
# (Without Jupyter: set the environment variable `NUMBA_ENABLE_CUDASIM=1` before you start Python.)

# %%
TILE = 4


def watched(A, B):
    """tiled_matmul(A, B) on the strict simulator. Returns its result, and what its kernel did.

    "read", "written": numbers of global memory that were read and written, by all threads together.
    "barriers": the fewest and the most barriers that a thread reached.
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
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a6` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

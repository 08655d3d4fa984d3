# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11c · The same on a GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/11c_on_a_gpu.ipynb)
# &nbsp; ← [11b attention in Numba](11b_attention_in_numba.ipynb) · [all chapters](README.md)
#
# *The third session of the workshop **Hot loops**, three sessions beside the course:
# [11](11_hot_loops_in_numba.ipynb), [11b](11b_attention_in_numba.ipynb), 11c. The course needs none of them.*
#
# **After this chapter you can** read and write a GPU kernel in Python, count what a kernel asks of memory, find a missing
# barrier, and read what the compiler made of your kernel. There are two ladders: a matrix product in four rungs, and
# attention in two.
#
# **You need** the tile of chapter 11, the online softmax of chapter 11b and attention from [chapter
# 03](03_attention_by_hand.ipynb). The words are in the [glossary](README.md#glossary).
#
# **You need no GPU**, only NVIDIA's compiler, which pip installs without a driver:
# `python -m pip install -e ".[notebooks,cuda]"`. Your kernels are compiled as for a GPU. An
# [emulator](../tinyprune/kernels/cuda/emulator) executes the compiled code on this machine's processor, and checks every
# access to memory. (Numba has to compile the emulator once, for half a minute.)

# %% jupyter={"source_hidden": true}
# In Colab this fetches the project; where tinyprune is installed it does nothing.
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec("tinyprune"):
    fetch = "git clone -q --depth 1 https://github.com/tinyprune/tinyprune repository"
    install = f"{sys.executable} -m pip install -q -e ./repository ipywidgets"
    compiler = f"{sys.executable} -m pip install -q './repository[cuda]'"
    subprocess.run(f"{fetch} && {compiler} && {install}", shell=True, check=True)
    # -e: the code stays beside the results of the full studies, also after a restart of the runtime;
    # until then Python has to be told where it is
    sys.path.insert(0, "repository")

# %%
from tinyprune.kernels.gpu import what_is_missing

if missing := what_is_missing():
    raise SystemExit(f"this chapter cannot run: {missing}")

from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.emulator.driver import emulator

get_backend("cuda-emulated")  # from now on every kernel is launched on the emulator,
emulator().counted = True  # which counts requests of memory

# %% jupyter={"source_hidden": true}
# Imports.
# %matplotlib inline
import dataclasses
import functools
import inspect
import itertools
import linecache
import math
import re
import textwrap
import time

import matplotlib.pyplot as plt
import numpy as np

from tinyprune import ops
from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda.compiled import compiled
from tinyprune.kernels.cuda.device.array import empty, to_device, to_host
from tinyprune.kernels.cuda.device.driver import driver
from tinyprune.kernels.cuda.device.jit import cuda, float32, floats, int32, ints, kernel
from tinyprune.notebook import use_style, you_are_here
from tinyprune.plots import BLUE, GREY, VERMILION

use_style()
rng = np.random.default_rng(0)

# %%
you_are_here("attention", "projection")

# %% [markdown]
# ## 1 · Grid, block, thread, warp
#
# A GPU runs thousands of threads: while some wait for memory, others compute. You write what **one thread** does, a
# *kernel*, and say how many threads run it:
#
# - A **block** is a group of at most 1,024 threads that run on the same processor of the GPU (a *streaming
#   multiprocessor*, SM), so that they can share memory and wait for each other.
# - The **grid** is all blocks. Blocks are independent: they run in any order, and no block can wait for another.
# - A **warp** is 32 threads of a block with consecutive numbers, its *lanes*. The hardware executes one instruction at a
#   time for all 32. Threads of a block are numbered along x first, then y: `threadIdx.x + blockDim.x · threadIdx.y`.
#
# `cuda.grid(2)` is a thread's position in the whole grid, `blockIdx · blockDim + threadIdx` in x and in y. The grid
# consists of whole blocks, so some threads may lie beyond the edge of an array: the `if` keeps them from writing there.
#
# The decorator `kernel` declares the types of the arguments and the threads of a block. `floats` and `ints` are pointers
# to numbers of 32 bits. A pointer has no shape, so sizes are arguments, too, and the number in row i and column j of a
# matrix with N columns is `[i * N + j]`. A launch names first the grid, then the arguments.
#
# **Before you look:** a warp has 32 consecutive threads. What shape does it have in a block of 32 × 8 threads, and what
# shape in a block of 16 × 16?


# %% jupyter={"source_hidden": true}
# A function that draws which block and which warp computes each element.
def draw_blocks(placed):
    figure, axes = plt.subplots(2, 1, figsize=(8, 5.6))
    for ax, ((x, y), (block, warp)) in zip(axes, placed.items()):
        M, N = block.shape
        rows, columns = -(-M // y) * y, -(-N // x) * x  # of the grid
        idle = {"facecolor": "none", "edgecolor": "#AAAAAA", "hatch": "///", "lw": 0}
        ax.add_patch(plt.Rectangle((-0.5, -0.5), columns, rows, **idle))
        ax.imshow(0.15 + warp % 2 * 0.25, cmap="Greys", vmin=0, vmax=1, zorder=2)
        for edge in np.arange(0, N + x, x):
            ax.axvline(edge - 0.5, color=BLUE, linewidth=2, zorder=3)
        for edge in np.arange(0, M + y, y):
            ax.axhline(edge - 0.5, color=BLUE, linewidth=2, zorder=3)
        for b in range(block.max() + 1):
            i, j = np.argwhere(block == b)[0]
            ax.text(j + 0.3, i + 1.3, f"block {b}", fontsize=8, weight="bold", zorder=4)
        ax.set(xlim=(-1, columns), ylim=(rows, -1), xlabel="column j (x)", ylabel="row i (y)")
        ax.set_title(
            f"blocks of {x} × {y} threads, warps light and dark; hatched: threads with nothing to do"
        )
    plt.show()


# %%
# Two grids over 21 × 70 numbers: in blocks of 32 × 8 a warp is a row of 32 threads, in blocks of 16 × 16 two rows of 16.
def who(block, warp, M, N):
    """Record for each thread its block and its warp."""
    j, i = cuda.grid(2)  # x is the column, y is the row
    if i < M and j < N:
        block[i * N + j] = cuda.blockIdx.x + cuda.gridDim.x * cuda.blockIdx.y
        warp[i * N + j] = (cuda.threadIdx.x + cuda.blockDim.x * cuda.threadIdx.y) // 32


M, N = 21, 70
placed = {}
for x, y in ((32, 8), (16, 16)):
    grid = -(-N // x), -(-M // y)  # rounded up
    block, warp = empty((M, N), np.int32), empty((M, N), np.int32)
    kernel(ints, ints, int32, int32, threads=(x, y))(who)(grid, block, warp, M, N)
    placed[x, y] = to_host(block), to_host(warp)
    assert to_host(warp).max() == 7, "256 threads are eight warps"
draw_blocks(placed)

# %% [markdown]
# In the upper picture a warp is a row of 32, in the lower picture two rows of 16. The shape of a warp determines which
# addresses are read together.
#
# A number can be in one of these memories, from near to far. Sizes and rates are NVIDIA's for two GPUs, A100 and H100:
#
# | memory | who sees it | how much | how it is named in a kernel |
# | --- | --- | --- | --- |
# | registers | one thread | 65,536 of 4 bytes per SM, at most 255 a thread | a variable, a small `cuda.local.array` |
# | shared memory | one block | up to 164 KiB (A100), 228 KiB (H100) per SM | `cuda.shared.array` |
# | global memory | all threads | 80 GB, 2.0 TB/s (A100), 3.35 TB/s (H100) | the pointers |
#
# An H100 can do 67 · 10¹² float32 operations a second, and read 0.84 · 10¹² float32 numbers from its memory: **80
# operations for each number that is read**. So a fast kernel uses each number many times once it has been loaded.
#
# ## 2 · One thread for each number
#
# In a kernel for the product `out = a · b`, with a (M, K) and b (K, N), the grid takes the place of the two outer loops:

# %% tags=["subject"]
ZERO = np.float32(0)  # 0.0 would be a float64, and so would every sum that starts with it
PRODUCT = floats, floats, floats, int32, int32, int32  # types of a, b, out, M, K, N


@kernel(*PRODUCT, threads=(32, 8))
def rows_along_x(a, b, out, M, K, N):
    i, j = cuda.grid(2)
    if i < M and j < N:
        total = ZERO
        for k in range(K):
            total += a[i * K + k] * b[k * N + j]
        out[i * N + j] = total


# %% [markdown]
# A *rung* is a kernel together with the size of what one block computes of out. Every rung is checked on a shape with
# several blocks and *ragged* edges: its sides are no multiples of a block's.


# %% jupyter={"source_hidden": true}
# How a rung is launched and checked.
@dataclasses.dataclass
class Rung:
    """A kernel, and what a block computes of out along the grid's x and y."""

    kernel: object
    x: int
    y: int
    x_is_row: bool = False

    def grid(self, M, N):
        """Return how many blocks along x and y cover an out of M × N; the last ones may be partly empty."""
        along_x, along_y = (M, N) if self.x_is_row else (N, M)
        return -(-along_x // self.x), -(-along_y // self.y)

    def __call__(self, a, b):
        (M, K), N = a.shape, b.shape[1]
        out = empty((M, N))
        self.kernel(self.grid(M, N), to_device(a), to_device(b), out, M, K, N)
        return to_host(out)


def error_of(rung, M, K, N):
    """Return the largest difference between a rung and NumPy in float64."""
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    return np.abs(rung(a, b) - a.astype(float) @ b).max()


def check_rung(name, M=66, K=19, N=37):
    """Compare a rung with NumPy."""
    error, grid = error_of(RUNGS[name], M, K, N), RUNGS[name].grid(M, N)
    print(f"{name:16s} grid {grid}, 8 warps a block: largest error {error:.1e}")
    assert error < 1e-5 and math.prod(grid) > 1


# %%
RUNGS = {"rows along x": Rung(rows_along_x, 32, 8, x_is_row=True)}
check_rung("rows along x")

# %% [markdown]
# In the innermost line, each multiply-add reads one number of a and one number of b from global memory:
#
# $$ \frac{\text{loads}}{\text{multiply-adds}} = \frac{2MNK}{MNK} = 2 $$
#
# The emulator counts them. `kernel.compiled` is the compiled code: `text` has its instructions, in PTX (section 7), and
# `counts` says how many `warps` and `lanes` have executed each. `ld.global` loads from global memory, `fma.rn.f32` is the
# multiply-add of float32.


# %%
def count(kernel, word):
    """Add up the counts of a kernel's instructions whose text has this word."""
    code = kernel.compiled
    chosen = [word in text for text in code.text]
    return {name: int(code.counts[name][chosen].sum()) for name in code.counts.dtype.names}


def launch_and_count(rung, M=64, K=32, N=64):
    """Launch a rung, with all counts from zero; return those of its loads and of its multiply-adds."""
    rung.kernel.compiled.counts[:] = 0
    assert error_of(rung, M, K, N) < 1e-5
    return count(rung.kernel, "ld.global"), count(rung.kernel, "fma.rn.f32")


loads, multiply_adds = launch_and_count(RUNGS["rows along x"])
print("ld.global:", loads)
print(f"{loads['lanes'] / multiply_adds['lanes']:.3f} loads for each multiply-add")
assert loads["lanes"] == 2 * multiply_adds["lanes"] == 2 * 64 * 32 * 64

# %% [markdown]
# ### Which thread reads which address
#
# The next rung has as many loads, but asks memory for much less. The only difference is in its first line:


# %% tags=["subject"]
@kernel(*PRODUCT, threads=(32, 8))
def columns_along_x(a, b, out, M, K, N):
    j, i = cuda.grid(2)
    if i < M and j < N:
        total = ZERO
        for k in range(K):
            total += a[i * K + k] * b[k * N + j]
        out[i * N + j] = total


RUNGS["columns along x"] = Rung(columns_along_x, 32, 8)
check_rung("columns along x")

# %% [markdown]
# A warp executes one load instruction for its 32 lanes together, one *request*, and memory answers in **sectors** of 32
# bytes, eight float32. Adjacent addresses need $32\cdot4/32 = 4$ sectors, each fully used: a *coalesced* load. Equal
# addresses need one sector. Addresses in 32 different rows, each of eight numbers or more, need 32, and seven
# eighths of the data are not used.

# %% [markdown]
# ### Exercise 1 · How many sectors does a warp read?
#
# *●○○ · 10 minutes*
#
# A block has `width` threads along x. Thread t of its first warp has
# x = t mod `width` and y = ⌊t / `width`⌋, and loads the float32 number at the address x · `stride_x` + y · `stride_y`,
# counted in numbers. A sector holds 8 numbers, and the array begins at a sector's edge. Return how many different sectors
# the 32 threads touch together.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect


def warp_sectors(width, stride_x, stride_y):
    """Count the sectors of 8 numbers that the first warp's load touches; all arguments are integers."""
    raise NotImplementedError("write warp_sectors: return the number of different sectors")


wanted = {(32, 1, 512): 4, (32, 512, 1): 32, (32, 0, 512): 1, (16, 1, 512): 4, (16, 0, 512): 2}
wanted |= {(16, 512, 1): 16, (8, 2, 64): 8, (16, 2, 1000): 8}  # width, stride_x, stride_y
for given, sectors_read in wanted.items():
    hint = "first where each of the 32 threads reads, then which sectors these places are in"
    fed = "width = {}, stride_x = {}, stride_y = {}".format(*given)
    found, title = warp_sectors(*given), "warp_sectors: the number of sectors is wrong"
    right = {"came": str(found), "expected": str(sectors_read)}
    expect(found == sectors_read, title, fed=fed, hint=hint, **right)
print(f"passed: warp_sectors is right for {len(wanted)} loads")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Make an array of the 32 thread numbers, compute all addresses at once, and divide by 8 with `//`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def warp_sectors(width, stride_x, stride_y):
#     thread = np.arange(32)
#     address = thread % width * stride_x + thread // width * stride_y
#     return len(np.unique(address // 8))
# ```
#
# </details>
#
# **Before you look:** in blocks of 32 × 8, how many sectors do the two loads of one multiply-add touch for a warp, in
# *rows along x* and in *columns along x*?


# %% jupyter={"source_hidden": true}
# The numbers that a warp reads: one column of 32 rows, one number, or 32 neighbours, in 32, 1 or 4 framed sectors.
def draw_lanes(ax, addresses, rows, width, title, sectors=True):
    """Draw memory as rows of `width` numbers, each with the first lane that reads it, and frame the sectors."""
    lanes = np.full(rows * width, np.nan)
    for lane in reversed(range(32)):
        lanes[addresses[lane]] = lane
    ax.imshow(lanes.reshape(rows, width), cmap="viridis", vmin=0, vmax=40)
    for address in np.unique(addresses):
        row, column = divmod(address, width)
        text = {"fontsize": 8, "color": "white", "ha": "center", "va": "center"}
        if np.ptp(addresses) == 0 or lanes[address] % 4 == 0:  # others would overlap
            ax.text(
                column, row, "all" if np.ptp(addresses) == 0 else f"{lanes[address]:.0f}", **text
            )
    for sector in np.unique(addresses // 8) if sectors else ():
        row, column = divmod(sector * 8, width)
        frame = {"fill": False, "edgecolor": VERMILION, "linewidth": 1.2, "zorder": 3}
        ax.add_patch(plt.Rectangle((column - 0.5, row - 0.5), 8, 1, **frame))
    ax.set(xticks=range(0, width, 8), yticks=range(0, rows, 8))
    ax.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    ax.grid(which="minor", linewidth=0.3, color="#BBBBBB")
    ax.tick_params(which="minor", length=0)
    of_bank = np.bincount(np.unique(addresses) % 32)
    parts = len(np.unique(addresses // 8)) if sectors else of_bank.max()
    ax.set_title(
        f"{title}: {parts} {'sector' if sectors else 'wave'}{'s' * int(parts > 1)}", loc="left"
    )


lane, K, N = np.arange(32), 16, 40
reads = {  # addresses of a[i, k] and b[k, j] for k = 0
    "rows along x": (lane * K, 0 * lane),  # neighbours differ in i
    "columns along x": (0 * lane, lane),  # neighbours differ in j
}
figure, axes = plt.subplot_mosaic("AB;AC;AD", figsize=(9, 4.8), width_ratios=(1, 2.4))
panels = [(name, of) for name in reads for of in (0, 1)]
for ax, (name, of), rows in zip(axes.values(), panels, (32, 3, 3, 3)):
    addresses, array, width = reads[name][of], ("a[i, k]", "b[k, j]")[of], (K, N)[of]
    draw_lanes(ax, addresses, rows, width, f"{name}, {array}")
    ax.set_xlim(-0.5, (K if rows == 32 else N) - 0.5)
figure.suptitle("The numbers that the 32 lanes of a warp read in one step; framed: sectors")
plt.show()

# %% [markdown]
# - In *rows along x* the lanes differ in i: `a[i, k]` is in 32 rows, **32** sectors, and `b[k, j]` is one number, **1**.
# - In *columns along x* they differ in j: `a[i, k]` is one number, **1** sector, and `b[k, j]` is 32 neighbours, **4**.
#
# That makes 33 against 5 sectors for a warp's multiply-add, derived from the two index expressions. For the compiled
# kernels, `counts` has the `requests` of each load and store, the `transactions` in which memory serves them, here
# sectors, and the `fewest` that would do.

# %%
for name in RUNGS:
    loads, multiply_adds = launch_and_count(RUNGS[name])
    sectors = loads["transactions"] / multiply_adds["warps"]
    fewest = loads["fewest"] / multiply_adds["warps"]
    print(f"{name:16s} {sectors:4.0f} sectors for a warp's multiply-add, {fewest:.0f} would do")
    assert sectors == sum(len(np.unique(addresses // 8)) for addresses in reads[name])

# %% [markdown]
# After the exchange of i and j no load touches more sectors than it must.

# %% [markdown]
# ### Exercise 2 · The gates as a kernel
#
# *●●○ · 15 minutes*
#
# Multiply every head's output by its gate: `out[i, j] = o[i, j] · g[h]`, where column j belongs to head
# h = ⌊j / Dh⌋. `o` and `out` are (T, D), `g` is (H,), and Dh = D / H. One thread computes one number. Neighbours in a warp
# should read neighbouring numbers of `o`, so x is the column. The grid has more threads than `o` has numbers. Write a
# function that returns the kernel.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect_close
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.device.array import empty, to_device, to_host
from tinyprune.kernels.cuda.device.jit import cuda, floats, int32, kernel

get_backend("cuda-emulated")


def gate_heads():
    """Return a kernel, decorated with `kernel(floats, floats, floats, int32, int32, int32, threads=(32, 8))`.

    Its arguments are o, g, out, T, D, H; a thread writes one number of out, (T, D), from o, (T, D), and g, (H,).
    """
    raise NotImplementedError(
        "write gate_heads: its kernel stores o[i, j] times the gate of its head in out[i, j]"
    )


T, D, H = 21, 70, 5
o = np.random.default_rng(0).standard_normal((T, D), np.float32)
g, out = np.array([1, 0, 0.5, 2, 1], np.float32), empty((T, D))
gate_heads()((3, 3), to_device(o), to_device(g), out, T, D, H)  # 3 × 3 blocks of 32 × 8 threads
given = {"fed": f"o ({T}, {D}), g {g}", "hint": "which head owns column j, and is x the column?"}
expected = o * np.repeat(g, D // H)
expect_close(to_host(out), expected, "gate_heads: out is wrong", absolute=1e-6, **given)
print(f"passed: the kernel of gate_heads writes all {o.size:,} numbers, and none beyond the edges")

# %% [markdown]
# <details><summary>Hint</summary>
#
# `j, i = cuda.grid(2)` gives column and row. An `if` keeps the threads beyond the edge from reading and writing.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def gate_heads():
#     @kernel(floats, floats, floats, int32, int32, int32, threads=(32, 8))
#     def gates(o, g, out, T, D, H):
#         j, i = cuda.grid(2)
#         if i < T and j < D:
#             Dh = D // H
#             out[i * D + j] = o[i * D + j] * g[j // Dh]
#
#     return gates
# ```
#
# </details>
#
# ## 3 · Tiles in shared memory
#
# The 256 threads of a block of 16 × 16 compute a square of out, from 16 rows of a and 16 columns of b. Sixteen threads need
# each of these numbers. So let the block fetch it *once*, into shared memory, a tile at a time. For a tile of $R$ rows and
# $C$ columns of out and $K$ steps:
#
# $$ \frac{\text{loads}}{\text{multiply-adds}} = \frac{RK + KC}{RCK} = \frac1R+\frac1C \tag{1} $$
#
# With $R=C=16$ that is ⅛ in place of 2. A thread uses numbers that *other* threads have loaded. So each thread has to wait
# until all threads of its block have loaded theirs: `syncthreads` is such a **barrier**. Beyond the edges of a and b the
# tiles are filled with zeros, which add nothing.


# %% tags=["subject"]
TILE = 16  # threads of a block along x and along y; a tile's rows and columns


@kernel(*PRODUCT, threads=(TILE, TILE))
def shared_tiles(a, b, out, M, K, N):
    tile_a = cuda.shared.array((TILE, TILE), float32)
    tile_b = cuda.shared.array((TILE, TILE), float32)
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    j, i = cuda.grid(2)
    total = ZERO
    for first in range(0, K, TILE):
        k = first + column
        tile_a[row, column] = a[i * K + k] if i < M and k < K else ZERO
        k = first + row
        tile_b[row, column] = b[k * N + j] if k < K and j < N else ZERO
        cuda.syncthreads()  # both tiles are whole before any thread reads them
        for k in range(TILE):
            total += tile_a[row, k] * tile_b[k, column]
        cuda.syncthreads()  # all threads have read them before any writes the next
    if i < M and j < N:
        out[i * N + j] = total


RUNGS["shared tiles"] = Rung(shared_tiles, TILE, TILE)
check_rung("shared tiles")


# %% jupyter={"source_hidden": true}
# Matrices a, b and out: a tile moves along a band of rows of a, another along a band of columns of b.
def draw_tiles(ax, corner, shape, label, part, colour, where):
    """Draw a matrix as a box at corner (x, y), with a band of it and a tile in that band."""
    height, width = shape
    x, y = corner
    ax.add_patch(plt.Rectangle((x, y), width, height, facecolor="white", edgecolor=GREY))
    (r, c, h, w), (tr, tc, th, tw) = part
    ax.add_patch(plt.Rectangle((x + c, y + r), w, h, facecolor=colour, alpha=0.2))
    ax.add_patch(
        plt.Rectangle((x + tc, y + tr), tw, th, facecolor=colour, alpha=0.75, edgecolor="black")
    )
    ax.text(x + where[0], y + where[1], label, ha="center", va="center")


figure, ax = plt.subplots(figsize=(6.2, 4.4))
rows, depth, columns = 56, 70, 84
i, j, k, t = 16, 32, 32, 16
of_a, of_b = ((i, 0, t, depth), (i, k, t, t)), ((0, j, depth, t), (k, j, t, t))
draw_tiles(ax, (0, 0), (rows, depth), "a (M, K)", of_a, BLUE, (35, 48))
draw_tiles(ax, (76, -76), (depth, columns), "b (K, N)", of_b, VERMILION, (66, 30))
draw_tiles(ax, (76, 0), (rows, columns), "out (M, N)", ((i, j, t, t), (i, j, t, t)), GREY, (40, 48))
ax.annotate("", (60, i + 8), (50, i + 8), arrowprops={"arrowstyle": "->"})
ax.annotate("", (76 + j + 8, -18), (76 + j + 8, -27), arrowprops={"arrowstyle": "->"})
note = "the dark tiles are in\nshared memory now;\nthey move along the bands"
ax.text(0, -16, note, fontsize=8, color=GREY)
ax.set(xlim=(-3, 165), ylim=(60, -80), aspect="equal")
ax.set(title="What one block needs for its tile of out")
ax.axis("off")
plt.show()

# %% [markdown]
# ### Removing a barrier
#
# Are both `syncthreads` in the loop needed? Take the source of the kernel, remove one barrier, compile the rest and run
# it. The emulator remembers which thread was the last to write and to read each number. It reports a **race**: two threads
# of a block use a number, at least one writes it, and no barrier is in between, so that the result depends on their order.
#
# **Before you look:** which line of the source will it name without the first barrier, and which without the second?


# %% jupyter={"source_hidden": true}
# Functions that make a kernel from the edited source of another, and find the line that an instruction comes from.
def edited(kernel, *edits):
    """Make a kernel from the source of another one, with replacements (old, new) in it."""
    lines, first = inspect.getsourcelines(kernel.function)
    source = "\n" * (first - 1) + "".join(lines)  # so that lines have the same numbers
    for old, new in edits:
        assert source.count(old) == 1, f"{kernel.__name__} has {source.count(old)} times {old}"
        source = source.replace(old, new)
    names = dict(globals())
    exec(compile(source, kernel.function.__code__.co_filename, "exec"), names)
    return names[kernel.__name__]


def python_line(kernel, place):
    """Return a line of a kernel's cell; `place` ends with its number, after a colon."""
    row = int(place.rpartition(":")[2])
    return linecache.getline(kernel.function.__code__.co_filename, row).strip()


def run_and_explain(rung, **sizes):
    """Launch a rung, and print the first place of each kind of fault that the emulator finds."""
    try:
        print(f"nothing is found; largest error {error_of(rung, **sizes):.0e}")
    except TinypruneError as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines()]
        for line in {re.search("`: [^;:]*", line)[0]: line for line in reversed(lines)}.values():
            print(textwrap.fill(line, 100))
            print("    that line is:", python_line(rung.kernel, re.search(r"\.py:\d+", line)[0]))


# %%
barriers = re.findall(r"cuda\.syncthreads\(\)  # .*", inspect.getsource(shared_tiles.function))
without = {}
for name, barrier in zip(("first", "second"), barriers, strict=True):
    without[name] = Rung(edited(shared_tiles, (barrier, "pass")), TILE, TILE)
    print(f"\nWithout the {name} barrier:")
    run_and_explain(without[name], M=18, K=37, N=19)

# %% [markdown]
# (The emulator executes the warps of a block one after the other, each up to its next barrier.)
#
# Without the first barrier a thread reads entries of the tile that other threads have still to write. Without the second
# barrier, a fast warp writes the next tile while a slow warp still reads this one: the result is *plausible* and wrong. A
# real GPU reports neither.
#
# **Before you look:** would the check have found the missing second barrier with K = 16?

# %%
run_and_explain(without["second"], M=18, K=16, N=19)

# %% [markdown]
# With $K \le 16$ there is only one tile, and no next tile that could be written too early. The emulator sees only what is
# executed, so the shape of a test decides what it can find: *more than one tile, more than one warp, more than one block*.
#
# ## 4 · Tiles in registers
#
# In `shared_tiles` each multiply-add still reads two numbers from shared memory. An SM's shared memory delivers 32 numbers
# per clock, but its arithmetic units do 64 multiply-adds (A100) or 128 (H100), so they have to wait. The remedy is (1)
# again, one level nearer: let a *thread* compute a square of $4\times4$. For each k the thread reads 4 + 4 numbers into
# registers and does 16 multiply-adds with them,
#
# $$ \frac{\text{shared loads}}{\text{multiply-adds}} = \frac14+\frac14 = \frac12 \quad\text{in place of } 2, $$
#
# and the tile of a block of 16 × 16 threads grows to 64 × 64, so that global loads shrink to
# $\tfrac1{64}+\tfrac1{64}=\tfrac1{32}$, too. Of this tile the thread in `row` and `column` computes the 16 numbers whose
# rows are `row`, `row` + 16, `row` + 32, `row` + 48 and whose columns are `column`, `column` + 16, and so on. For the loads
# all threads of a block fill the two tiles together, in four parts of 16 rows or columns.


# %% tags=["subject"]
EACH = 4  # rows and columns of out that a thread computes
WIDE = TILE * EACH  # rows and columns of out that its block computes
DEPTH = 16  # of its tiles, along k


@kernel(*PRODUCT, threads=(TILE, TILE))
def register_tile(a, b, out, M, K, N):
    tile_a = cuda.shared.array((WIDE, DEPTH), float32)
    tile_b = cuda.shared.array((DEPTH, WIDE), float32)
    sums = cuda.local.array((EACH, EACH), float32)
    from_a = cuda.local.array(EACH, float32)
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    top, left = cuda.blockIdx.y * WIDE, cuda.blockIdx.x * WIDE
    for y in range(EACH):
        for x in range(EACH):
            sums[y, x] = ZERO
    for first in range(0, K, DEPTH):
        for part in range(EACH):
            i, k = top + row + part * TILE, first + column
            tile_a[row + part * TILE, column] = a[i * K + k] if i < M and k < K else ZERO
            k, j = first + row, left + column + part * TILE
            tile_b[row, column + part * TILE] = b[k * N + j] if k < K and j < N else ZERO
        cuda.syncthreads()
        for k in range(DEPTH):
            for y in range(EACH):
                from_a[y] = tile_a[row + y * TILE, k]
            for x in range(EACH):
                from_b = tile_b[k, column + x * TILE]
                for y in range(EACH):
                    sums[y, x] += from_a[y] * from_b
        cuda.syncthreads()
    for y in range(EACH):
        for x in range(EACH):
            i, j = top + row + y * TILE, left + column + x * TILE
            if i < M and j < N:
                out[i * N + j] = sums[y, x]


RUNGS["register tile"] = Rung(register_tile, WIDE, WIDE)
check_rung("register tile", M=66, N=67)

# %% [markdown]
# A thread's columns of out are 16 apart, not side by side, because of the **banks** of shared memory. There are 32, and a
# number's bank is its address, counted in numbers, modulo 32. Shared memory serves a request in *waves*; a wave delivers
# one number from each bank. If lanes ask for different numbers of the same bank (a *bank conflict*), there are several
# waves.
#
# **Before you look:** suppose that thread `column` had the columns 4 · `column` … 4 · `column` + 3. How many waves would
# the load from `tile_b` then take, and how many sectors would a store to out touch, in place of four?

# %%
side_by_side = edited(
    register_tile,
    ("tile_b[k, column + x * TILE]", "tile_b[k, column * EACH + x]"),
    ("row + y * TILE, left + column + x * TILE", "row + y * TILE, left + column * EACH + x"),
)
for name, of_rung in (("side by side", side_by_side), ("16 apart", register_tile)):
    launch_and_count(Rung(of_rung, WIDE, WIDE))
    loads, stores = count(of_rung, "ld.shared"), count(of_rung, "st.global")
    waves, sectors = (
        loads["transactions"] / loads["requests"],
        stores["transactions"] / stores["requests"],
    )
    print(
        f"{name:12s} {waves:.1f} waves for a load from shared, {sectors:.0f} sectors for a store to global memory"
    )

# %% jupyter={"source_hidden": true}
# Banks of a warp's load from tile_b: columns side by side fill every fourth bank twice, columns 16 apart fill 16 banks once.
column = lane % TILE
figure, axes = plt.subplots(2, 1, figsize=(9, 2.6))
draw_lanes(axes[0], column * EACH, 2, 32, "side by side", sectors=False)
draw_lanes(axes[1], column, 2, 32, "16 apart, as in the kernel", sectors=False)
for ax in axes:
    ax.set(ylabel="memory", yticks=())
axes[1].set_xlabel("bank")
figure.suptitle("The numbers of a row of b's tile that lanes 0 to 15 read (16 to 31: the same)")
plt.show()

# %% [markdown]
# Half of the loads, those from `tile_a`, are the same in both: hence 1.5 waves on average.
#
# ### All four rungs, counted
#
# For shapes that fit the tiles, (1) is exact. For ragged ones, every column of blocks reads all of a, every row of blocks
# all of b:
#
# $$ \text{loads} = \lceil N/C\rceil\, MK + \lceil M/R\rceil\, KN $$

# %% jupyter={"source_hidden": true}
# A table of the four rungs: the counted loads equal the derived ones, and shrink from rung to rung.
sides = dict(zip(RUNGS, (1, 1, TILE, WIDE)))  # R = C
from_shared = dict(zip(RUNGS, (0, 0, 2, 2 / EACH)))  # loads from shared memory per multiply-add
print("for a multiply-add:     loads            sectors of a warp    shared loads       waves")
print("                   derived  counted    touched  fewest     derived  counted    of a warp")
for name, rung in RUNGS.items():
    loads, multiply_adds = launch_and_count(rung)
    shared, warps = count(rung.kernel, "ld.shared"), multiply_adds["warps"]
    derived = 2 / sides[name], from_shared[name]
    found = loads["lanes"] / multiply_adds["lanes"], shared["warps"] / warps
    sectors, fewest, waves = (
        loads["transactions"] / warps,
        loads["fewest"] / warps,
        shared["transactions"] / warps,
    )
    print(f"{name:16s} {derived[0]:9.4f} {found[0]:8.4f} {sectors:10.3f} {fewest:7.3f}", end="")
    print(f" {derived[1]:11.1f} {found[1]:8.1f} {waves:12.1f}")
    assert found == derived

m, k, n = 37, 21, 35  # ragged
for name in ("shared tiles", "register tile"):
    loads, side = launch_and_count(RUNGS[name], m, k, n)[0]["lanes"], sides[name]
    assert loads == -(-n // side) * m * k + -(-m // side) * k * n
    print(f"{name}, ragged: {loads:,} loads, as derived")

# %% [markdown]
# From the first rung to the last, the loads shrink to a sixty-fourth, and the sectors to less than a two-hundredth.
# Counts are not times; section 8 derives bounds on time.
#
# ## 5 · Attention: three kernels
#
# Now attention of [chapter 03](03_attention_by_hand.ipynb), with M positions of memory before the segment, causal, for one
# segment (B = 1), without the position term. The obvious way takes three kernels: scores, softmax of each row, weighted
# sum of values. The first and the last are like `columns_along_x`. The softmax is new: the maximum of a row needs *all* of
# its numbers, and they are spread over 64 threads. Each thread puts the maximum of its own numbers into shared memory, and
# the 64 maxima are **combined by halves**: the first 32 threads compare theirs with those of the other 32, then the first 16
# with those of the next 16, and so on. That takes $\log_2 64 = 6$ steps, with a barrier before each; one thread alone would
# take 63. Sums are found in the same way.

# %% [markdown]
# ### Exercise 3 · Combine by halves
#
# *●●● · 20 minutes*
#
# Compute the mean that RMSNorm needs: `out[row] = mean of x[row, :]²`, for `x`
# (rows, D) and `out` (rows,), with one block of 64 threads for each row. Thread t adds up the squares of the numbers t,
# t + 64, t + 128, … of the row and puts its sum into shared memory; then the sums are combined by halves; and one thread
# stores the result. `cuda.shared.array(64, float32)` makes the shared array,
# `cuda.threadIdx.x` is t, `cuda.blockIdx.x` is the row. The check also counts the requests for `x`: a row of
# 160 numbers takes five.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect, expect_close
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cuda.device.array import empty, to_device, to_host
from tinyprune.kernels.cuda.device.jit import cuda, float32, floats, int32, kernel
from tinyprune.kernels.cuda.emulator.driver import emulator

get_backend("cuda-emulated")
emulator().counted = True


def mean_square():
    """Return a kernel, decorated with `kernel(floats, floats, int32, threads=64)`.

    Its arguments are x, out, D; a block writes one number of out, (rows,), from a row of x, (rows, D).
    """
    raise NotImplementedError(
        "write mean_square: its kernel stores the mean of the squares of x[row] in out[row]"
    )


x = np.random.default_rng(0).standard_normal((3, 160), np.float32)
x *= np.array([[1], [2], [3]], np.float32)
out, made = empty(3), mean_square()
made(3, to_device(x), out, 160)
given = {"fed": f"x {x.shape}", "hint": "does each number count once, and when is the sum whole?"}
expected = (x**2).mean(1)
expect_close(to_host(out), expected, "mean_square: out is wrong", relative=1e-4, **given)
loads = ["ld.global" in text for text in made.compiled.text]
requests = int(made.compiled.counts["requests"][loads].sum())
given["hint"] = "160 numbers of a row take 5 requests of 32 neighbours"
right = {"came": str(requests), "expected": "15"}
expect(requests == 15, "mean_square: the number of requests is wrong", **right, **given)
print("passed: the kernel of mean_square is right, without races, and reads x in 15 requests")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Start with `half = 32`. In each round all threads wait at a barrier, which must not be inside the `if`; the threads below
# `half` add the number that is `half` places further; and `half` is halved.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def mean_square():
#     @kernel(floats, floats, int32, threads=64)
#     def squares(x, out, D):
#         part = cuda.shared.array(64, float32)
#         t, row = cuda.threadIdx.x, cuda.blockIdx.x
#         total = float32(0)
#         for j in range(t, D, 64):
#             total += x[row * D + j] * x[row * D + j]
#         part[t] = total
#         half = 32
#         while half > 0:
#             cuda.syncthreads()
#             if t < half:
#                 part[t] += part[t + half]
#             half //= 2
#         if t == 0:
#             out[row] = part[0] / D
#
#     return squares
# ```
#
# </details>
#
# The softmax combines by halves twice, for the maximum and for the sum of the exponentials.


# %% jupyter={"source_hidden": true}
# The kernel row_softmax: scores of a row become weights, in a block of 64 threads for each row.
ROW_THREADS = 64  # of a block that works on one row; a power of 2
LOWEST = np.float32(-np.inf)


@kernel(floats, int32, threads=ROW_THREADS)
def row_softmax(s, S):
    """Scores (rows, S) become weights, in place: one block for each row."""
    found = cuda.shared.array(ROW_THREADS, float32)
    x, row = cuda.threadIdx.x, cuda.blockIdx.x
    highest = LOWEST
    for j in range(x, S, ROW_THREADS):  # every thread takes each 64th number
        score = s[row * S + j]
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
    cuda.syncthreads()  # all have read the maximum before its place is used for sums

    total = ZERO
    for j in range(x, S, ROW_THREADS):
        weight = math.exp(s[row * S + j] - highest)
        s[row * S + j] = weight
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
        s[row * S + j] /= found[0]


# %%
# a row has more numbers than its block has threads, and not a multiple of them
rows = rng.standard_normal((5, 150), np.float32) * 5
s = to_device(rows)
row_softmax(len(rows), s, 150)
weights = np.exp(ops.log_softmax(rows.astype(float)))
print(f"row softmax: largest error {np.abs(to_host(s) - weights).max():.1e}")
assert np.abs(to_host(s) - weights).max() < 1e-5 and weights.max() > 0.3

# %% [markdown]
# The other two kernels, and the launches of all three:


# %% tags=["subject"]
SIZES = 4 * (int32,)  # T, S, H, Dh


@kernel(floats, floats, float32, floats, *SIZES, threads=(TILE, TILE))
def scores(q, k, root, s, T, S, H, Dh):
    """Scores s (H, T, S), each in a thread; −∞ where the query does not see the key. root is 1 / √Dh."""
    j, i = cuda.grid(2)
    h = cuda.blockIdx.z
    if i < T and j < S:
        total = LOWEST
        if j <= i + S - T:
            total = ZERO
            for d in range(Dh):
                total += q[(i * H + h) * Dh + d] * k[(j * H + h) * Dh + d]
            total *= root
        s[(h * T + i) * S + j] = total


@kernel(floats, floats, floats, *SIZES, threads=(TILE, TILE))
def weighted_values(a, v, out, T, S, H, Dh):
    """Write out (T, H, Dh) from weights a (H, T, S), each number in a thread."""
    d, i = cuda.grid(2)
    h = cuda.blockIdx.z
    if i < T and d < Dh:
        total = ZERO
        for j in range(i + S - T + 1):
            total += a[(h * T + i) * S + j] * v[(j * H + h) * Dh + d]
        out[(i * H + h) * Dh + d] = total


def tiles(size):
    """Return how many tiles cover `size`; the last may be partly empty."""
    return -(-size // TILE)


def three_kernels(q, k, v, out):
    """Attend with arrays in the GPU's memory: q and out (T, H, Dh), k and v (S, H, Dh)."""
    (T, H, Dh), S = q.shape, len(k)
    s = empty((H, T, S))
    scores((tiles(S), tiles(T), H), q, k, 1 / math.sqrt(Dh), s, T, S, H, Dh)
    row_softmax(H * T, s, S)
    weighted_values((tiles(Dh), tiles(T), H), s, v, out, T, S, H, Dh)


# %% [markdown]
# For each head, `scores` loads $2\,\mathtt{Dh}$ numbers for each visible (query, key) pair and stores $TS$; `row_softmax`
# loads $3TS$ and stores $2TS$; `weighted_values` loads $2\,\mathtt{Dh}$ for each pair and stores $T\,\mathtt{Dh}$. And the
# matrix of scores needs memory for $T S$ numbers.
#
# ## 6 · Attention: one kernel
#
# The [online softmax of chapter 11b](11b_attention_in_numba.ipynb#2--online-softmax) makes the matrix unnecessary. Keys
# come in tiles. For the keys seen so far a query keeps `highest`, its highest score, and two sums, which are scaled down at
# each new highest score: `total`, of the weights, and `sums`, of the weighted values. With tiles in shared memory this is
# FlashAttention (Dao and others 2022).
#
# A block of 16 × 16 threads takes 16 queries of a head. Thread (x, y) computes *one* score of each tile, that of query y
# and key x, and stores it in shared memory. Then the 16 threads of a query read all of its scores, and each thread adds up
# the columns x, x + 16, … of `sums` in registers; `highest` and `total` are the same in all 16. (Each query sees key 0, so
# that `highest` is finite after the first tile.)

# %% tags=["subject"]
WIDEST = 64  # the largest Dh: each thread sums 64 / 16 = EACH columns of out
PADDED = WIDEST + 1  # row length of a tile whose columns 16 threads read at once


@kernel(floats, floats, floats, float32, floats, *SIZES, threads=(TILE, TILE))
def online_softmax(q, k, v, root, out, T, S, H, Dh):
    q_tile = cuda.shared.array((TILE, PADDED), float32)
    k_tile = cuda.shared.array((TILE, PADDED), float32)
    v_tile = cuda.shared.array((TILE, WIDEST), float32)
    s_tile = cuda.shared.array((TILE, TILE), float32)
    sums = cuda.local.array(EACH, float32)
    x, y = cuda.threadIdx.x, cuda.threadIdx.y
    first_query, h = cuda.blockIdx.x * TILE, cuda.blockIdx.y
    i = first_query + y
    for part in range(EACH):
        d = x + part * TILE
        sums[part] = ZERO
        q_tile[y, d] = q[(i * H + h) * Dh + d] * root if i < T and d < Dh else ZERO
    highest, total = LOWEST, ZERO

    end = first_query + TILE + S - T  # after the last key that a query of this block sees
    if end > S:
        end = S
    for first in range(0, end, TILE):
        for part in range(EACH):
            d = x + part * TILE
            inside = first + y < end and d < Dh
            at = ((first + y) * H + h) * Dh + d
            k_tile[y, d] = k[at] if inside else ZERO
            v_tile[y, d] = v[at] if inside else ZERO
        cuda.syncthreads()  # the tiles are whole before any thread reads them
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
        cuda.syncthreads()  # all have used tiles and weights before any writes the next
    if i < T:
        for part in range(EACH):
            d = x + part * TILE
            if d < Dh:
                out[(i * H + h) * Dh + d] = sums[part] / total


def one_kernel(q, k, v, out, kernel=online_softmax):
    """Do the same as `three_kernels`; a block has 16 queries of a head."""
    (T, H, Dh), S = q.shape, len(k)
    kernel((tiles(T), H), q, k, v, 1 / math.sqrt(Dh), out, T, S, H, Dh)


# %% [markdown]
# The loop has five barriers; a comment gives the reason for each. Compare both rungs with the textbook in float64, for
# two heads and ragged T, S and Dh:


# %%
def attend_and_check(attend, T, M, H, Dh):
    """Attend with random queries, keys and values; return the largest difference from the textbook."""
    q = rng.standard_normal((T, H, Dh), np.float32)
    k, v = rng.standard_normal((2, M + T, H, Dh), np.float32)
    exact = ops.attention_forward(*(x[None].astype(float) for x in (q, k, v)))[0]  # (1, T, H, Dh)
    out = empty(q.shape)
    attend(*map(to_device, (q, k, v)), out)
    error = np.abs(to_host(out) - exact).max()
    assert error < 1e-5
    return error


for attend in (three_kernels, one_kernel):
    error = attend_and_check(attend, T=18, M=5, H=2, Dh=20)
    print(f"{attend.__name__:16s} largest error {error:.1e}")

# %% [markdown]
# Rows of `k_tile` are 65 long for at most 64 numbers. In the line that computes the score, 16 threads read the same column
# d of 16 rows.
#
# **Before you look:** in how many different banks are these 16 numbers if a row is 64 long, and in how many if it is 65
# long?

# %%
without_padding = edited(
    online_softmax,
    ("k_tile = cuda.shared.array((TILE, PADDED)", "k_tile = cuda.shared.array((TILE, WIDEST)"),
)
for length, attend in ((64, without_padding), (65, online_softmax)):
    attend.compiled.counts[:] = 0
    attend_and_check(functools.partial(one_kernel, kernel=attend), T=16, M=48, H=1, Dh=64)
    loads = count(attend, "ld.shared")
    print(
        f"rows of {length}: {loads['transactions']:,} waves for all loads from shared memory,",
        end=" ",
    )
    print(f"{loads['fewest']:,} would do")
assert loads["transactions"] == loads["fewest"]

# %% jupyter={"source_hidden": true}
# Banks of a warp's load from k_tile: with rows of 64 all 16 numbers are in one bank, with rows of 65 in 16 banks.
figure, axes = plt.subplots(1, 2, figsize=(9, 4.9))
for ax, length in zip(axes, (64, PADDED)):
    addresses = lane % TILE * length + 5
    draw_lanes(ax, addresses, 32, 32, f"rows of {length}", sectors=False)
    ax.set(xlabel="bank", ylabel="memory, 32 numbers in a row")
figure.suptitle("Which numbers of column d = 5 of k_tile the lanes 0 to 15 read")
plt.show()

# %% [markdown]
# The extra column puts the 16 numbers into 16 banks. From global memory `online_softmax` loads q once, $T\,\mathtt{Dh}$;
# each block of 16 queries loads the keys and values up to the last key that its last query sees, $2\,\mathtt{Dh}$ numbers
# for each key; and $T\,\mathtt{Dh}$ numbers are stored.
#
# **Before you look:** for 40 queries, how many times fewer loads will one kernel need than three?

# %%
T, M, Dh = 40, 8, 20
S = M + T
pairs = sum(M + 1 + i for i in range(T))  # query i sees the keys 0 … M + i
keys = sum(min(S, first + TILE + M) for first in range(0, T, TILE))
derived = {
    three_kernels: (4 * Dh * pairs + 3 * T * S, 3 * T * S + T * Dh),
    one_kernel: (T * Dh + 2 * Dh * keys, T * Dh),
}
kernels = {three_kernels: (scores, row_softmax, weighted_values), one_kernel: (online_softmax,)}
for attend, launched in kernels.items():
    for made in launched:
        made.compiled.counts[:] = 0
    attend_and_check(attend, T, M, 1, Dh)
    found = [
        sum(count(made, word)["lanes"] for made in launched) for word in ("ld.global", "st.global")
    ]
    print(
        f"{attend.__name__:14s} {found[0]:7,} loads, {found[1]:6,} stores of global memory, as derived"
    )
    assert tuple(found) == derived[attend]
print(
    f"scores of a head at T = S = 4,096 take {4096**2 * 4 / 2**20:.0f} MiB; one kernel stores none"
)

# %% [markdown]
# ## 7 · What the compiler makes of it
#
# Numba and NVIDIA's linker translate a function into **PTX**, an assembly language for a virtual GPU with unlimited
# registers. The emulator executes the PTX. For a real GPU, the linker translates it into that processor's instructions.
#
# An instruction reads `name.kind target, sources`. `%f1` is a register for a float32, `%rd1` a register for a 64-bit
# address. `ld.shared.f32 %f1, [%rd1]` loads from shared memory, and `fma.rn.f32 %f4, %f1, %f2, %f3` is the multiply-add
# %f4 = %f1 · %f2 + %f3.
#
# The next cell prints a few instructions from the innermost loops of two kernels, as compiled for an H100, below the
# lines of Python that they come from.
#
# **Before you look:** `register_tile` has 16 sums in each thread. How many loads from shared memory do you expect for
# each `fma`?


# %% jupyter={"source_hidden": true}
# Functions that find the innermost instructions of a kernel, and print them.
def heart(kernel):
    """Return the places of the basic block (the instructions between two jumps or their targets) with the most fma."""
    code = kernel.compiled
    jumps = [n for n, text in enumerate(code.text) if re.search(r"\bbra\b", text)]
    edges = sorted({0, len(code.text), *(n + 1 for n in jumps), *code.code["to"][jumps]})
    blocks = [range(first, end) for first, end in itertools.pairwise(edges)]
    return max(blocks, key=lambda block: sum("fma.rn" in code.text[n] for n in block))


def print_code(kernel, places):
    """Print instructions below the lines of Python that they come from."""
    line = ""
    for n in places:
        if kernel.compiled.lines[n] != line:
            line = kernel.compiled.lines[n]
            print("   #", python_line(kernel, line) or "(of several lines)")
        print("       ", " ".join(kernel.compiled.text[n].split()))


# %% jupyter={"source_hidden": true}
# A few instructions from the innermost loops of two kernels.
parts = {shared_tiles: slice(2, 8), register_tile: slice(-24, -19)}
for shown, part in parts.items():
    block = heart(shown)
    print(f"\n{shown.__name__}: {len(block)} instructions, {len(block[part])} of them shown")
    print_code(shown, block[part])

# %% [markdown]
# In `shared_tiles` each `fma` needs two `ld.shared` (`[%rd12+64]` is an address in bytes, a row of 16 float32 further). In
# `register_tile` one `ld.shared` of b's tile serves four `fma`. Its 16 sums are in 16 registers, because the compiler
# could unroll all loops over `cuda.local.array`.

# %% jupyter={"source_hidden": true}
# Instructions that the four products have executed for each multiply-add.
print("for each fma      ld.global  ld.shared  all instructions")
for name, rung in RUNGS.items():
    launch_and_count(rung)
    words = "fma.rn.f32", "ld.global", "ld.shared", ""
    fma, *others = (count(rung.kernel, word)["warps"] for word in words)
    print(f"{name:16s} {others[0] / fma:9.3f} {others[1] / fma:10.1f} {others[2] / fma:14.1f}")

KERNELS = [*(rung.kernel for rung in RUNGS.values()), *itertools.chain(*kernels.values())]
assert not any(".f64" in text for made in KERNELS for text in made.compiled.text)
print("no instruction of any kernel works on float64")

# %% [markdown]
# The last column shows that the first rungs spend far more instructions on addresses and loops than on the product.
#
# **Plant a bug:** `total = 0.0` in place of `total = ZERO`.
#
# **Before you look:** Python's `0.0` has 64 bits. Would a comparison with the exact result find the bug?

# %%
in_float64 = edited(shared_tiles, ("total = ZERO", "total = 0.0"))
error = error_of(Rung(in_float64, TILE, TILE), M=66, K=19, N=37)
found = [n for n, text in enumerate(in_float64.compiled.text) if "f64" in text]
print(f"largest error {error:.1e}; {len(found)} instructions work on float64, such as")
print_code(in_float64, [*found[:5], found[-1]])
assert error < 1e-5 and found

# %% [markdown]
# The sum has become a float64: each product is converted and added in float64, and the result is converted back. The
# results are right, so no comparison finds the bug, but float64 arithmetic runs at half the speed of float32 on an A100
# or H100, and at a small fraction of it on most other GPUs.
#
# ### Registers, and how many threads fit
#
# A number from global memory arrives hundreds of clocks after the request; this time is its *latency*. An SM hides the
# latency by running other warps meanwhile. How many warps fit depends on what each warp needs. **Occupancy** is the number
# of warps that fit, divided by the most that an SM can hold. (The limits are those of NVIDIA's *CUDA C++ Programming
# Guide* and of the occupancy calculator of Nsight Compute.)
#
# **Before you look:** which of the four products will have the lowest occupancy? Does that make it the slowest?

# %% jupyter={"source_hidden": true}
# A function that computes the occupancy of a compiled kernel.
LIMITS = {  # of one SM, by compute capability
    (8, 0): {"warps": 64, "blocks": 32, "registers": 65536, "shared": 164 * 1024},  # A100
    (9, 0): {"warps": 64, "blocks": 32, "registers": 65536, "shared": 228 * 1024},  # H100
}


def occupancy(limit, threads, registers, shared):
    """Return the occupancy of a kernel in blocks of `threads`, and what limits it."""
    warps = -(-threads // 32)  # of a block
    # a warp gets registers in units of 256; an SM has four quarters, each with its own registers
    per_warp = -(-32 * registers // 256) * 256
    per_quarter = limit["registers"] // 4 // per_warp
    # in units of 128 bytes, and 1 KiB of each block is for the system
    fit = {
        "warps": limit["warps"] // warps,
        "registers": 4 * per_quarter // warps,
        "shared memory": limit["shared"] // (-(-shared // 128) * 128 + 1024),
        "blocks": limit["blocks"],
    }
    by = min(fit, key=fit.get)
    return fit[by] * warps / limit["warps"], by


# %% jupyter={"source_hidden": true}
# A table of every kernel, compiled for two GPUs: its registers, shared memory and occupancy.
print("                  GPU  registers  shared memory  threads  occupancy  limited by")
for capability, limit in LIMITS.items():
    for made in KERNELS:
        report = compiled(made, capability).report
        registers, shared = (
            int(found[1]) if (found := re.search(pattern, report)) else 0
            for pattern in (r"Used (\d+) registers", r"(\d+) bytes smem")
        )
        threads = math.prod(made.block)
        share, by = occupancy(limit, threads, registers, shared)
        print(
            f"{made.__name__:16s} {capability[0]}.{capability[1]} {registers:10d} {shared:12,} B",
            end="",
        )
        print(f" {threads:8d} {share:9.0%}   {by}")
        assert set(re.findall(r"(\d+) bytes (?:stack|spill)", report)) == {"0"}

# %% [markdown]
# The `assert` checks that there are no *spills*, registers that did not fit and went to memory.
#
# `register_tile` needs the most registers and has the lowest occupancy of the four products, and yet it should be the
# fastest; without a GPU we cannot measure it. With 16 independent sums a warp has work to do while a load is in flight, so
# it needs fewer other warps to hide the latency (Volkov 2010).
#
# ## 8 · How fast could it be?
#
# Two limits can be derived without a GPU: an SM cannot compute faster than its arithmetic units allow, and numbers cannot
# arrive faster than memory delivers them. With $I$ operations for each byte that is loaded (*arithmetic intensity*),
#
# $$ \text{operations per second} \;\le\; \min(\text{peak},\; I\cdot\text{bandwidth}) $$
#
# the *roofline* of chapter 11. A multiply-add is two operations and a load is four bytes, so from (1):
# $I = 2 / (4\cdot(\tfrac1R+\tfrac1C))$. Peak and bandwidth below are **data-sheet figures** of NVIDIA, not measurements:
# A100 80 GB SXM 19.5 TFLOP/s (float32, without tensor cores) and 2,039 GB/s; H100 SXM 67 TFLOP/s and 3,350 GB/s.

# %% jupyter={"source_hidden": true}
# Rooflines of two GPUs from their data sheets: from rung to rung the marks lie further to the right and higher, and where
# shared memory is slower than the arithmetic, below the roof.
DATA_SHEET = {  # operations and bytes a second, line style, multiply-adds of an SM in a clock
    "A100": (19.5e12, 2039e9, "-", 64),
    "H100": (67e12, 3350e9, "--", 128),
}

figure, ax = plt.subplots(figsize=(7.5, 4.2))
intensity = np.geomspace(0.1, 200, 500)
for (gpu, (peak, bandwidth, style, _)), colour in zip(DATA_SHEET.items(), (BLUE, VERMILION)):
    bound = np.minimum(peak, intensity * bandwidth) / 1e12
    ax.loglog(intensity, bound, style, color=colour, label=f"{gpu}, from its data sheet")
marks = {"one thread, one number": 1, "shared tiles": TILE, "register tile": WIDE}
for (name, side), marker in zip(marks.items(), "os^"):
    at = 2 / (4 * 2 / side)
    ax.axvline(at, color=GREY, linewidth=0.6, linestyle=":")
    for (peak, bandwidth, _, rate), colour in zip(DATA_SHEET.values(), (BLUE, VERMILION)):
        # a warp's load takes a clock, a warp's multiply-add 32 / rate of one
        shared = min(1, 32 / rate / from_shared[name]) if name in from_shared else 1
        ax.plot(at, min(shared * peak, at * bandwidth) / 1e12, marker, color=colour, markersize=7)
    ax.text(at * 1.07, 0.13, f"{name}\nI = {at:g}", fontsize=8, color=GREY)
ax.set(xlabel="operations per byte loaded from global memory", ylabel="TFLOP/s, at most")
ax.set(ylim=(0.1, 130), xlim=(0.1, 200))
ax.set_title(
    "What the loads of each rung allow, from global and shared memory. Nothing is measured"
)
ax.legend(frameon=False, loc="upper left")
plt.show()

# %% jupyter={"source_hidden": true}
# What the data sheets allow.
for gpu, (peak, bandwidth, _, rate) in DATA_SHEET.items():
    print(f"{gpu}: arithmetic keeps up from {peak / bandwidth:.1f} operations per byte on")
    for name in ("shared tiles", "register tile"):
        share = min(1, 32 / rate / from_shared[name])
        print(f"    {name:14s} shared memory alone allows {share:.1%} of the peak")

# %% [markdown]
# Caches can lift the first rungs above their marks. The limit of shared memory (32 numbers a clock against 64 or 128
# multiply-adds) remains. It says that `shared_tiles` cannot exceed a quarter (A100) or an eighth (H100) of the peak, and
# that for an H100 even 4 × 4 sums per thread are too few: 8 × 8 sums need only ¼ load for each multiply-add. The kernels
# of `--backend cuda` begin there ([`product.py`](../tinyprune/kernels/cuda/products/product.py),
# [`tensor_cores.py`](../tinyprune/kernels/cuda/products/tensor_cores.py)).
#
# ## 9 · Where a GPU is present
#
# The emulator says what a kernel does, not how long a GPU takes. **No kernel of this project has run on a GPU yet**:
# [this page](site/pages/gpu.md) says what is known without one, and gives a command that finds out the rest. On a machine
# with a GPU, write `cuda` in place of `cuda-emulated` in the second cell, restart, and run the cells that define rungs and
# the next cell.


# %% jupyter={"source_hidden": true}
# Times of the kernels on this machine's GPU, if they run there.
def milliseconds(launch, rounds=20):
    """Return the shortest time of a launch in three series of them."""
    launch()  # compiles
    found = []
    for _ in range(3):
        driver().synchronize()  # a launch returns before its kernel is done
        start = time.perf_counter()
        for _ in range(rounds):
            launch()
        driver().synchronize()
        found.append(1e3 * (time.perf_counter() - start) / rounds)
    return min(found)


if driver() is emulator():
    print("The kernels run on the emulator. This chapter claims no time on a GPU.")
else:
    size = 1024
    a, b = (to_device(x) for x in rng.standard_normal((2, size, size), np.float32))
    q, k, v = (to_device(x) for x in rng.standard_normal((3, size, 8, 64), np.float32))
    out, attended = empty((size, size)), empty((size, 8, 64))
    cases = {
        name: lambda rung=rung: rung.kernel(rung.grid(size, size), a, b, out, size, size, size)
        for name, rung in RUNGS.items()
    }
    cases |= {f.__name__: lambda f=f: f(q, k, v, attended) for f in (three_kernels, one_kernel)}
    for name, launch in cases.items():
        print(f"{name:16s} {milliseconds(launch):9.3f} ms")

# %% [markdown]
# ## Recap
#
# - A GPU runs thousands of threads, 32 of them (a warp) at a time. You write what one thread does; the grid takes the
#   place of the outer loops.
# - Fetch a number once and use it often: neighbours in a warp read neighbouring addresses, a block shares a tile, a thread
#   keeps its sums in registers. Loads, sectors and waves can be derived beforehand and counted in the compiled code.
# - Threads that share memory need a barrier between writing and reading.

# %% [markdown]
# [Assignment A6](assignments/README.md), task a6_3, is a tile of a matrix product for a GPU, with its barriers checked.
#
# ## Questions
#
# 1. With blocks of 16 × 16 threads in place of 32 × 8, how many sectors would a warp's multiply-add touch in *rows along x*
#    and *columns along x*?
#
# <details><summary>Answer</summary>
#
# A warp is then two y by sixteen x. *Rows along x*: 16 rows of a, 16 sectors; two neighbours of b, one sector: 17.
# *Columns along x*: two rows of a, 2 sectors; sixteen neighbours of b, 2 sectors: 4. This is slightly better than 5,
# since 32 numbers of out in a less elongated rectangle need fewer rows and columns in total.
#
# </details>
#
# 2. `register_tile` puts zeros into its tiles beyond the edges and computes with them. Why not skip them with an `if`?
#
# <details><summary>Answer</summary>
#
# A zero adds nothing, and without a condition and with a fixed length the compiler can unroll the innermost loop. An `if`
# around the loop would be dangerous: if a thread skips a `syncthreads` at which others wait, a real GPU may wait for
# ever.
#
# </details>
#
# 3. Why may threads of different blocks not wait for one another?
#
# <details><summary>Answer</summary>
#
# If the grid has more blocks than fit on the GPU, the rest start when others have *ended*. If a running block waits for
# one of these, it may wait for ever.
#
# </details>
#
# The workshop ends here: back to [all chapters](README.md). The kernels for a whole model on a GPU are in
# [`kernels/cuda/`](../tinyprune/kernels/cuda).

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · The same on a GPU
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/10_on_a_gpu.ipynb)
# &nbsp; ← [09b attention in Numba](09b_attention_in_numba.ipynb) · [all chapters](README.md) · [11 a real language model](11_a_real_language_model.ipynb) →
#
# *Elective: nothing in chapters 00 to 08b depends on it.*
#
# **After this chapter you can** read and write a GPU kernel in Python, predict which of two kernels is faster before
# you run them, find a missing barrier, and read what the compiler made of your kernel: its PTX, its registers, how many
# of its threads fit on a processor. You will climb two ladders: a matrix product in four rungs, and attention in two.
#
# **You need** the idea of a tile from [chapter 09](09_hot_loops_in_numba.ipynb), the online softmax of
# [chapter 09b](09b_attention_in_numba.ipynb) and attention from [chapter 02](02_attention_by_hand.ipynb). You need no
# GPU: all kernels run in a simulator, and are compiled for GPUs that need not be present. Words that are new to you are
# in the [glossary](README.md#glossary).

# %% jupyter={"source_hidden": true}
# In Colab this fetches the project; where tinyprune is installed it does nothing.
import importlib.util
import subprocess
import sys

if not importlib.util.find_spec("tinyprune"):
    fetch = "git clone -q --depth 1 https://github.com/tinyprune/tinyprune repository"
    subprocess.run(
        f"{fetch} && {sys.executable} -m pip install -q -e ./repository ipywidgets",
        shell=True,
        check=True,
    )
    # -e: the code stays beside the results of the full studies, also after a restart of the runtime;
    # until then Python has to be told where it is
    sys.path.insert(0, "repository")

# %% [markdown]
# Numba decides when it is imported whether `numba.cuda` talks to a GPU or to its **simulator**, which runs a kernel in
# plain Python, with every GPU thread as a thread of the operating system. So the environment variable
# `NUMBA_ENABLE_CUDASIM` comes before the imports. In this notebook the simulator is always on, with or without a GPU: a
# simulated array can tell us who read it, which a real one cannot. What needs the real compiler or a real GPU runs in a
# separate process, in sections 7 and 9.

# %% jupyter={"source_hidden": true}
# The imports, and before them the simulator.
# %matplotlib inline
import os

assert "numba" not in sys.modules, (
    "Numba is imported already: restart the kernel, and run this cell first"
)
os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
# the simulator's threads often wait for one another; let them switch sooner
sys.setswitchinterval(1e-4)

import dataclasses
import inspect
import json
import math
import threading
import time
import warnings

import matplotlib.pyplot as plt
import numpy as np
from numba import cuda, float32

from tinyprune import ops
from tinyprune.kernels.gpu import gpu_present, what_is_missing
from tinyprune.notebook import use_style, you_are_here
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION

use_style()
rng = np.random.default_rng(0)

# %%
you_are_here("attention", "projection")

# %% [markdown]
# This chapter is about the two lit parts, attention and a product of matrices. Attention and products (those of the
# networks, too) cost most of the time.
#
# Is there a GPU? Do not ask `cuda.is_available()`, because the simulator always says yes. Ask the driver, as
# [`gpu_present`](../tinyprune/kernels/gpu.py) does: there is a GPU if the driver's library can be loaded, `cuInit`
# returns 0 (no error), and at least one device is counted.

# %%
print("numba.cuda says", cuda.is_available(), "and the driver says", gpu_present())

# %% [markdown]
# ## 1 · Grid, block, thread, warp
#
# A CPU core makes one thread fast. A GPU makes no single thread fast; it has thousands, and while some wait for memory,
# others compute. You write what **one thread** does, a *kernel*, and say how many threads run it:
#
# - A **block** is a group of threads that run on the same processor of the GPU (a *streaming multiprocessor*, SM), so
#   that they can share memory and wait for each other. It has at most 1,024 threads.
# - The **grid** is all blocks. They are independent: they run in any order, some at the same time, and none can wait for
#   another.
# - A **warp** is 32 threads of a block with consecutive numbers, and the unit that the hardware executes: one
#   instruction at a time for all 32. Threads of a block are numbered along x first, then y: `threadIdx.x + blockDim.x ·
#   threadIdx.y`.
#
# `cuda.grid(2)` is a thread's position in the whole grid, `blockIdx · blockDim + threadIdx` in x and in y. The grid
# consists of whole blocks, an array rarely does: hence the `if`, without which the threads beyond the edge would write
# outside the array.
#
# **Before you look:** a warp has 32 consecutive threads. What shape does it have in a block of 32 × 8 threads, and what
# shape in a block of 16 × 16?


# %% jupyter={"source_hidden": true}
# Draw which block and which warp computes each element.
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
@cuda.jit
def who(block, warp):
    """Record for each thread its block and its warp."""
    j, i = cuda.grid(2)  # x is the column, y is the row
    if i < block.shape[0] and j < block.shape[1]:
        block[i, j] = cuda.blockIdx.x + cuda.gridDim.x * cuda.blockIdx.y
        warp[i, j] = (cuda.threadIdx.x + cuda.blockDim.x * cuda.threadIdx.y) // 32


M, N = 21, 70
placed = {}
for block_size in ((32, 8), (16, 16)):
    grid = -(-N // block_size[0]), -(-M // block_size[1])  # rounded up
    block, warp = np.full((2, M, N), -1)
    who[grid, block_size](block, warp)
    assert block.min() >= 0, "someone's element was left out"
    assert warp.max() == 7, "256 threads are eight warps"
    placed[block_size] = block, warp
draw_blocks(placed)

# %% [markdown]
# In the upper picture a warp is a row of 32, in the lower two rows of 16. Keep this in mind; it determines which
# addresses are read together.
#
# A number can be in one of the following memories, from near to far. Sizes and rates are those that NVIDIA publishes
# for two of its GPUs, the A100 and the H100:
#
# | memory | who sees it | how much | how it is named in a kernel |
# | --- | --- | --- | --- |
# | registers | one thread | 65,536 of 4 bytes per SM, at most 255 a thread | a variable, a small `cuda.local.array` |
# | shared memory | one block | up to 164 kB (A100), 228 kB (H100) per SM | `cuda.shared.array` |
# | global memory | everyone | 80 GB, 2.0 TB/s (A100), 3.35 TB/s (H100) | the arguments |
#
# (Between the last two there are caches, L1 and L2, which the code does not mention.) An H100 can make 67 · 10¹²
# float32 operations a second, and read 0.84 · 10¹² float32 numbers from its memory: **80 operations for each number
# that is read**. So a fast kernel uses each number many times once it is near.

# %% [markdown]
# ## 2 · One thread for each number
#
# The product `out = a · b`, with a (M, K) and b (K, N), as a kernel: the two outer loops of the definition have become the
# grid. The kernels in this chapter's cells are yours to edit.


# %% tags=["subject"]
ZERO = np.float32(0)  # 0.0 would be a float64, and so would every sum that starts with it


@cuda.jit
def rows_along_x(a, b, out):
    i, j = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        total = ZERO
        for k in range(a.shape[1]):
            total += a[i, k] * b[k, j]
        out[i, j] = total


# %% [markdown]
# A *rung* is a kernel and how it is launched. Called like a function, it copies its arrays to the GPU, launches its kernel
# there and copies the result back. Every rung is checked on an awkward shape: several blocks, several warps, and *ragged*
# edges, which are no multiples of a block's sides.


# %% jupyter={"source_hidden": true}
# How a rung is launched and checked.
@dataclasses.dataclass
class Rung:
    """A kernel, what a block computes of out along the grid's x and y, and its threads along x and y."""

    kernel: object
    x: int
    y: int
    block: tuple
    x_is_row: bool = False

    def grid(self, M, N):
        """Return how many blocks along x and y cover an out of M × N; the last ones may be partly empty."""
        along_x, along_y = (M, N) if self.x_is_row else (N, M)
        return -(-along_x // self.x), -(-along_y // self.y)

    def launch(self, a, b, out):
        """Write a · b to out, all in the GPU's memory."""
        self.kernel[self.grid(*out.shape), self.block](a, b, out)

    def __call__(self, a, b):
        out = cuda.to_device(np.zeros((len(a), b.shape[1]), np.float32))
        self.launch(cuda.to_device(a), cuda.to_device(b), out)
        return out.copy_to_host()


def check_rung(name, M=66, K=19, N=37):
    """Compare a rung with NumPy in float64."""
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    rung = RUNGS[name]
    error = np.abs(rung(a, b) - a.astype(float) @ b).max()
    grid, warps = rung.grid(M, N), math.prod(rung.block) // 32
    print(f"{name:16s} grid {grid}, {warps} warps a block: largest error {error:.1e}")
    assert error < 1e-5 and math.prod(grid) > 1


# %%
RUNGS = {"rows along x": Rung(rows_along_x, 32, 8, block=(32, 8), x_is_row=True)}
check_rung("rows along x")

# %% [markdown]
# How many loads does it cost? In the innermost line, each multiply-add reads one number of a and one of b from global memory:
#
# $$ \frac{\text{loads}}{\text{multiply-adds}} = \frac{2MNK}{MNK} = 2 $$
#
# That is a claim about the program, and the simulator lets us count. It passes any object on to the kernel, so we pass
# one that records every access: `Traced`, in the folded cell.


# %% jupyter={"source_hidden": true}
# An array that records every access, and a launch of a rung with such arrays.
class Traced:
    """An array that records (block x, block y, block z, thread of the block, address, written) of every access."""

    def __init__(self, array):
        self.array, self.shape, self.log = array, array.shape, []
        self.strides = [s // array.itemsize for s in array.strides]

    def record(self, index, written):
        thread = threading.current_thread()  # knows which GPU thread it simulates
        place = thread.blockIdx
        address = sum(i * s for i, s in zip(index, self.strides))
        self.log.append((place.x, place.y, place.z, thread.thread_id, address, written))

    def __getitem__(self, index):
        self.record(index, False)
        return self.array[index]

    def __setitem__(self, index, value):
        self.record(index, True)
        self.array[index] = value

    def loads(self):
        """Return (loads, 5): block x, y, z, thread, address, in each thread's order."""
        log = np.array(self.log).reshape(-1, 6)
        return log[log[:, 5] == 0, :5]

    def count(self):
        """Return the numbers of loads and stores."""
        written = sum(entry[5] for entry in self.log)
        return len(self.log) - written, written


def trace(rung, M, K, N):
    """Return the traced a and b after one launch of a rung's kernel."""
    a, b = rng.standard_normal((M, K), np.float32), rng.standard_normal((K, N), np.float32)
    out, a, b = np.zeros((M, N), np.float32), Traced(a), Traced(b)
    rung.launch(a, b, out)
    np.testing.assert_allclose(out, a.array @ b.array, atol=1e-5)
    return a, b


# %%
M, K, N = 64, 32, 64
traces = {"rows along x": trace(RUNGS["rows along x"], M, K, N)}
a, b = (len(array.loads()) for array in traces["rows along x"])
print(f"a {a:,} loads, b {b:,}: {(a + b) / (M * N * K):.3f} per multiply-add")
assert a + b == 2 * M * N * K

# %% [markdown]
# ### Which thread reads which address
#
# The next rung has the same number of loads, and yet it is much better. The only difference is in its first line:


# %% tags=["subject"]
@cuda.jit
def columns_along_x(a, b, out):
    j, i = cuda.grid(2)
    if i < out.shape[0] and j < out.shape[1]:
        total = ZERO
        for k in range(a.shape[1]):
            total += a[i, k] * b[k, j]
        out[i, j] = total


RUNGS["columns along x"] = Rung(columns_along_x, 32, 8, block=(32, 8))
check_rung("columns along x")

# %% [markdown]
# A warp executes one load instruction for its 32 threads together, and memory answers in **sectors** of 32 bytes, eight
# float32. If the 32 addresses are adjacent, that is $32\cdot4/32 = 4$ sectors, each fully used. If they are all the
# same, it is one. If they are in different rows of a matrix, it is 32, and seven eighths of the data is thrown away.
# The first case is called a *coalesced* load.
#
# **Before you look:** in blocks of 32 × 8, how many sectors do the two loads of one multiply-add touch for a warp, in
# *rows along x* and in *columns along x*?
#
# - *rows along x*: neighbours in the warp differ in i. `a[i, k]`: 32 rows, **32** sectors. `b[k, j]`: the same number, **1**.
# - *columns along x*: neighbours differ in j. `a[i, k]`: the same number, **1**. `b[k, j]`: 32 neighbours, **4**.
#
# That makes 33 against 5 sectors for a warp's multiply-add. Now count them in the trace: the n-th load of each thread
# of a warp belongs to the same instruction.


# %% jupyter={"source_hidden": true}
# Group the loads of a trace by warp and by instruction.
def requests(array):
    """Return a dictionary (block, warp, n) → addresses of the n-th load of `array`, for each warp."""
    loads = array.loads()
    block = loads[:, 0] + 1000 * loads[:, 1] + 1000000 * loads[:, 2]
    order = np.lexsort((loads[:, 3], block))  # stable: a thread's own order stays
    block, thread, address = block[order], loads[order, 3], loads[order, 4]
    key = block * 1024 + thread
    starts = np.flatnonzero(np.diff(key, prepend=-1))
    nth = np.arange(len(key)) - np.repeat(starts, np.diff(starts, append=len(key)))
    found = {}
    for at in zip(block, thread // 32, nth, address):
        found.setdefault(at[:3], []).append(at[3])
    assert all(len(addresses) == 32 for addresses in found.values()), "whole warps"
    return found


# %%
def sectors(addresses):
    """Count the sectors of 32 bytes that these float32 addresses touch; arrays begin at a sector's edge."""
    return len({int(address) // 8 for address in addresses})


counted = {}  # rung -> loads and sectors per multiply-add


def count_rung(name, M=64, K=32, N=64):
    """Trace a rung, and count its loads and sectors."""
    pair = traces[name] = trace(RUNGS[name], M, K, N)
    touched = [[sectors(load) for load in requests(array).values()] for array in pair]
    loads = sum(len(array.loads()) for array in pair)
    counted[name] = loads / (M * N * K), sum(map(sum, touched)) / (M * N * K / 32)
    of_a, of_b = map(np.mean, touched)
    print(f"{name:16s} sectors for a warp's load: of a {of_a:4.1f}, of b {of_b:4.1f}")


count_rung("rows along x")
count_rung("columns along x")
assert (counted["rows along x"], counted["columns along x"]) == ((2, 33), (2, 5))

# %% jupyter={"source_hidden": true}
# Draw which sectors the first warp reads in its first six steps.
figure, axes = plt.subplots(4, 1, figsize=(9, 5.2), sharex=True)
panels = [(name, i) for name in ("rows along x", "columns along x") for i in (0, 1)]
for ax, (name, i) in zip(axes, panels):
    found = requests(traces[name][i])
    steps = np.zeros((6, M * K // 8))
    for n in range(len(steps)):
        for address in set(found[0, 0, n]):
            steps[n, address // 8] += 1
    for n, sector in np.argwhere(steps):
        shade = plt.cm.Blues(0.1 + 0.8 * steps[n, sector] / 8)
        ax.add_patch(
            plt.Rectangle((sector, n), 1, 1, facecolor=shade, edgecolor=BLUE, linewidth=0.8)
        )
    array = ("a[i, k]", "b[k, j]")[i]
    ax.set(xlim=(0, 128), ylim=(len(steps), 0))
    ax.set(yticks=np.arange(len(steps)) + 0.5, yticklabels=range(len(steps)), ylabel="step k")
    ax.set_title(f"{name}, {array}: sectors for each step: {sectors(found[0, 0, 0])}", loc="left")
axes[-1].set_xlabel("memory, in sectors of 8 numbers (dark: all 8 are used, pale: one is)")
figure.suptitle("What the first warp reads in its first six steps")
plt.show()

# %% [markdown]
# The top picture also shows what saves this rung from the worst: the next steps need the same sectors again, for the
# adjacent number. If the cache still has them, they do not come from memory. The next rung does not depend on the
# cache.
#
# ## 3 · Tiles in shared memory
#
# The 256 threads of a block of 16 × 16 compute a square of out. For that they need 16 rows of a and 16 columns of b, and
# each of these numbers is needed by 16 threads. So let the block fetch it *once*, into shared memory, a tile at a time. In
# general, for a square of $R$ rows and $C$ columns of out and $K$ steps:
#
# $$ \frac{\text{loads}}{\text{multiply-adds}} = \frac{RK + KC}{RCK} = \frac1R+\frac1C \tag{1} $$
#
# With $R=C=16$ that is ⅛ in place of 2. Note one thing in the code: a thread uses numbers that *other* threads have
# loaded. So each has to wait in between until all threads of its block have come as far. That is what `syncthreads`
# does; such a point is called a **barrier**. Beyond the edges of a and b the tiles are filled with zeros, which add nothing.


# %% tags=["subject"]
TILE = 16  # threads of a block along x and along y; a tile's rows and columns


@cuda.jit
def shared_tiles(a, b, out):
    tile_a = cuda.shared.array((TILE, TILE), float32)
    tile_b = cuda.shared.array((TILE, TILE), float32)
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    j, i = cuda.grid(2)
    total = ZERO
    for first in range(0, K, TILE):
        tile_a[row, column] = a[i, first + column] if i < M and first + column < K else ZERO
        tile_b[row, column] = b[first + row, j] if first + row < K and j < N else ZERO
        cuda.syncthreads()  # both tiles are whole before anyone reads them
        for k in range(TILE):
            total += tile_a[row, k] * tile_b[k, column]
        cuda.syncthreads()  # everyone has read them before anyone writes the next
    if i < M and j < N:
        out[i, j] = total


RUNGS["shared tiles"] = Rung(shared_tiles, TILE, TILE, block=(TILE, TILE))
check_rung("shared tiles")


# %% jupyter={"source_hidden": true}
# Draw a, b and out, with the tiles that one block needs.
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
draw_tiles(ax, (0, 0), (rows, depth), "a (M, K)", ((i, 0, t, depth), (i, k, t, t)), BLUE, (35, 48))
draw_tiles(
    ax,
    (76, -76),
    (depth, columns),
    "b (K, N)",
    ((0, j, depth, t), (k, j, t, t)),
    VERMILION,
    (66, 30),
)
draw_tiles(ax, (76, 0), (rows, columns), "out (M, N)", ((i, j, t, t), (i, j, t, t)), GREY, (40, 48))
ax.annotate("", (60, i + 8), (50, i + 8), arrowprops={"arrowstyle": "->"})
ax.annotate("", (76 + j + 8, -18), (76 + j + 8, -27), arrowprops={"arrowstyle": "->"})
ax.text(
    0,
    -16,
    "the dark tiles are in\nshared memory now;\nthey move along the bands",
    fontsize=8,
    color=GREY,
)
ax.set(
    xlim=(-3, 165), ylim=(60, -80), aspect="equal", title="What one block needs for its tile of out"
)
ax.axis("off")
plt.show()

# %% [markdown]
# ### Removing a barrier
#
# There are two `syncthreads` in the loop. Both comments claim that they are needed. A claim that cannot fail is worth
# nothing, so take the source of the kernel, remove one barrier, and run the rest.
#
# **Before you look:** what will be in out without the first barrier, and what without the second?


# %% jupyter={"source_hidden": true}
# Take a barrier out of a kernel, and measure the errors.
def without_barrier(kernel, which):
    """Compile the kernel from the same source without its barrier number `which`."""
    lines = inspect.getsource(kernel.py_func).splitlines(keepends=True)
    at = [n for n, line in enumerate(lines) if "cuda.syncthreads()" in line][which]
    lines[at] = lines[at].replace("cuda.syncthreads()", "pass")
    names = dict(globals())
    exec(compile("".join(lines), f"without barrier {which}", "exec"), names)
    return names[kernel.py_func.__name__]


def errors_without(which, K):
    """Return |out − exact|, (M, N), of `shared_tiles` without one barrier."""
    a, b = rng.standard_normal((18, K), np.float32), rng.standard_normal((K, 19), np.float32)
    kernel = without_barrier(shared_tiles, which)
    rung = dataclasses.replace(RUNGS["shared tiles"], kernel=kernel)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # NumPy's warnings about uninitialised memory
        return np.abs(rung(a, b) - a.astype(float) @ b)


# %%
wrong = {}
for which, name in enumerate(("first", "second")):
    largest = []
    for attempt in range(3):
        wrong[which] = errors_without(which, K=37)
        largest.append(wrong[which].max())
        print(f"without the {name} barrier, attempt {attempt}: largest error {largest[-1]:.1e}")
    assert not np.max(largest) < 1e-5  # so that NaN counts as noticed

# %% [markdown]
# Without the first barrier a thread reads entries of the tile that are not filled yet, and gets arbitrary values, huge
# numbers or NaN. Without the second, a fast thread already writes the next tile while a slow one still reads this one:
# the result is *plausible* and wrong, which is worse.

# %% jupyter={"source_hidden": true}
# Draw where the errors are.
figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.2))
for ax, (which, name) in zip(axes, enumerate(("first", "second"))):
    size = np.log10(np.maximum(wrong[which], 1e-7))
    size[~np.isfinite(size)] = 3
    image = ax.imshow(size, vmin=-7, vmax=3, cmap="Greys")
    ax.set(title=f"without the {name} barrier", xlabel="column j", ylabel="row i")
figure.colorbar(image, ax=axes, label="log₁₀ of the error (black: huge or NaN)", shrink=0.85)
plt.show()

# %% [markdown]
# Does the check always notice?
#
# **Before you look:** would it have found the missing second barrier with K = 16?

# %%
lucky = errors_without(1, K=16).max()
print(f"the same bug with K = 16: largest error {lucky:.1e}")
assert lucky < 1e-5

# %% [markdown]
# With $K \le 16$ there is only one tile, and no next one that could be written too early. So the shape of a test
# decides what it can find: *more than one tile, more than one warp, more than one block*. With only one warp, many wrong
# kernels would even give right results on a real GPU, most of the time. And the simulator has its own blind spots. It runs blocks one after the other, so it does not reveal blocks that wait for each other; it
# allows negative indices, and more shared memory than exists; and it uses Python's numbers, so it does not notice a `0.0`
# that turns a whole kernel into slow float64. Section 7 detects it.
#
# ## 4 · Tiles in registers
#
# In `shared_tiles` each multiply-add still reads two numbers from shared memory. That is near, but not free: an SM's
# shared memory delivers 32 numbers per clock, one load for a warp, while its arithmetic units do 64 multiply-adds
# (A100) or 128 (H100), those of two or four warps. With two loads per multiply-add they have to wait. The remedy is (1)
# again, one level nearer: let a *thread* compute a square of $4\times4$. For each k it reads 4 + 4 numbers into
# registers and does 16 multiply-adds with them,
#
# $$ \frac{\text{shared loads}}{\text{multiply-adds}} = \frac14+\frac14 = \frac12 \quad\text{in place of } 2, $$
#
# and the tile of a block of 16 × 16 threads grows to 64 × 64, so that global loads shrink to
# $\tfrac1{64}+\tfrac1{64}=\tfrac1{32}$, too.


# %% tags=["subject"]
EACH = 4  # rows and columns of out that a thread computes
WIDE = TILE * EACH  # rows and columns of out that its block computes
DEPTH = 16  # of its tiles, along k


@cuda.jit
def register_tile(a, b, out):
    tile_a = cuda.shared.array((WIDE, DEPTH), float32)
    tile_b = cuda.shared.array((DEPTH, WIDE), float32)
    sums = cuda.local.array((EACH, EACH), float32)
    from_a = cuda.local.array(EACH, float32)
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    top, left = cuda.blockIdx.y * WIDE, cuda.blockIdx.x * WIDE
    for y in range(EACH):
        for x in range(EACH):
            sums[y, x] = ZERO
    for first in range(0, K, DEPTH):
        for part in range(EACH):
            i, k = top + row + part * TILE, first + column
            tile_a[row + part * TILE, column] = a[i, k] if i < M and k < K else ZERO
            k, j = first + row, left + column + part * TILE
            tile_b[row, column + part * TILE] = b[k, j] if k < K and j < N else ZERO
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
                out[i, j] = sums[y, x]


RUNGS["register tile"] = Rung(register_tile, WIDE, WIDE, block=(TILE, TILE))
check_rung("register tile", M=66, N=67)

# %% jupyter={"source_hidden": true}
# Draw which numbers three neighbouring threads compute.
figure, axes = plt.subplots(2, 1, figsize=(8.5, 5.8))
for ax, (title, step) in zip(
    axes, {"as in the kernel: 16 apart": TILE, "the other way: side by side": 1}.items()
):
    for n, x in enumerate((3, 4, 5)):  # three neighbours in a warp, all with y = 0
        for part_y in range(EACH):
            for part_x in range(EACH):
                row = part_y * TILE if step == TILE else part_y
                column = x + part_x * TILE if step == TILE else x * EACH + part_x
                ax.add_patch(
                    plt.Rectangle(
                        (column, row), 1, 1, facecolor=HEAD_COLOURS[n], edgecolor="white", lw=0.5
                    )
                )
                if part_y == 0:
                    centred = {"ha": "center", "va": "center", "fontsize": 7, "color": "white"}
                    ax.text(column + 0.5, row + 0.55, x, **centred)
    ax.set(xlim=(0, 64), ylim=(20, 0), aspect="equal", title=title, ylabel="row")
    ax.set(xticks=range(0, 65, 16), yticks=(0, 16))
    ax.grid(linewidth=0.4)
axes[1].set_xlabel("column of the block's tile of out (of its 64 rows the upper 20)")
figure.suptitle("What the threads with x = 3, 4, 5 and y = 0 compute, 4 × 4 numbers each")
plt.show()

# %% [markdown]
# Why 16 apart? When neighbours in a warp write to out (or read a row of b's tile), their addresses are then adjacent.
# In the lower picture they would be four apart: a store would touch four times as many sectors, and their 16 addresses
# in b's tile would share 8 *banks* of shared memory, two to each. (There are 32 banks, and a number's bank is its
# address modulo 32. Different addresses in the same bank are served one after the other.)
#
# ### All four rungs, counted
#
# For shapes that fit the tiles, (1) is exact. For ragged ones, every column of blocks reads all of a, every row of blocks
# all of b:
#
# $$ \text{loads} = \lceil N/C\rceil\, MK + \lceil M/R\rceil\, KN $$

# %% jupyter={"source_hidden": true}
# Compare the counted loads of the four rungs with the derived ones.
count_rung("shared tiles")
count_rung("register tile")
print()
sides = dict(zip(RUNGS, (1, 1, TILE, WIDE)))  # R = C
from_shared = dict(zip(RUNGS, (0, 0, 2, 2 / EACH)))  # loads from shared memory per multiply-add
print("                     global loads        sectors for a warp's   shared loads")
print(
    "                     derived  counted    multiply-add, counted  derived, all per multiply-add"
)
for name, (loads, touched) in counted.items():
    derived = 2 / sides[name]
    print(f"{name:16s} {derived:11.4f} {loads:8.4f} {touched:14.3f} {from_shared[name]:20.2f}")
    assert loads == derived

m, k, n = 37, 21, 35  # ragged
for name in ("shared tiles", "register tile"):
    loads, side = sum(len(array.loads()) for array in trace(RUNGS[name], m, k, n)), sides[name]
    assert loads == -(-n // side) * m * k + -(-m // side) * k * n
    print(f"{name}, ragged: {loads:,} loads, as derived")

# %% jupyter={"source_hidden": true}
# Draw loads and sectors of the four rungs.
figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.9), sharey=True)
names = list(counted)
for ax, values, title in (
    (axes[0], [counted[name][0] for name in names], "global loads per multiply-add"),
    (axes[1], [counted[name][1] for name in names], "sectors of 32 bytes per warp's multiply-add"),
):
    ax.barh(names, values, color=[GREY, GREY, BLUE, BLUE], edgecolor="black", linewidth=0.5)
    for y, value in enumerate(values):
        ax.text(value * 1.15, y, f"{value:.3g}", va="center")
    ax.set(xscale="log", title=title, xlim=(min(values) / 2, max(values) * 5))
axes[0].invert_yaxis()
figure.suptitle("The same multiply-adds, ever fewer numbers fetched (counted in the simulator)")
plt.show()

# %% [markdown]
# From the first rung to the last, the loads for the same work have shrunk to a sixty-fourth, and the sectors to less
# than a two-hundredth. This is not a time yet; section 8 says what can be said about time.
#
# ## 5 · Attention: three kernels
#
# Now attention of [chapter 02](02_attention_by_hand.ipynb), with M positions of memory before the segment, causal,
# without the position term and persistent vectors (they would add lines, not ideas). The obvious way takes three
# kernels: scores, softmax of each row, weighted sum of values. The first and the last are like `columns_along_x`. The
# softmax is new: the maximum of a row needs *all* of its numbers, and they are spread over 64 threads. This is how they
# find it:


# %% tags=["subject"]
ROW_THREADS = 64  # of a block that works on one row; a power of 2
LOWEST = np.float32(-np.inf)


@cuda.jit
def row_softmax(s):
    """Scores (rows, S) become weights, in place: one block for each row."""
    found = cuda.shared.array(ROW_THREADS, float32)
    x, row, S = cuda.threadIdx.x, cuda.blockIdx.x, s.shape[1]
    highest = LOWEST
    for j in range(x, S, ROW_THREADS):  # every thread takes each 64th number
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


# %% [markdown]
# Combining by halves takes $\log_2 64 = 6$ steps, with a barrier before each; one thread alone would take 63. The sum of
# the exponentials is found in the same way, in the same place: hence the barrier with a comment.

# %%
# a row has more numbers than its block has threads, and not a multiple of them
rows = rng.standard_normal((5, 150), np.float32) * 5
s = rows.copy()
row_softmax[len(s), ROW_THREADS](s)
weights = np.exp(ops.log_softmax(rows.astype(float)))
print(f"row softmax: largest error {np.abs(s - weights).max():.1e}")
assert np.abs(s - weights).max() < 1e-5 and weights.max() > 0.3

# %% [markdown]
# The other two kernels, and the launches of all three:


# %% tags=["subject"]
@cuda.jit
def scores(q, k, root, s):
    """Scores s (B, H, T, S), each in a thread; −∞ where the query does not see the key. root is 1 / √Dh."""
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
def weighted_values(a, v, out):
    """Write out (B, T, H, Dh) from weights a (B, H, T, S), each number in a thread."""
    d, i = cuda.grid(2)
    b, h = cuda.blockIdx.z // v.shape[2], cuda.blockIdx.z % v.shape[2]
    T, S = a.shape[2], a.shape[3]
    if i < T and d < v.shape[3]:
        total = ZERO
        for j in range(i + S - T + 1):
            total += a[b, h, i, j] * v[b, j, h, d]
        out[b, i, h, d] = total


def tiles(size):
    """Return how many tiles cover `size`; the last may be partly empty."""
    return -(-size // TILE)


def three_kernels(q, k, v, out):
    """Attend with arrays in the GPU's memory: q and out (B, T, H, Dh), k and v (B, S, H, Dh)."""
    (B, T, H, Dh), S = q.shape, k.shape[1]
    s = cuda.device_array((B, H, T, S), np.float32)
    root = np.float32(1 / math.sqrt(Dh))
    scores[(tiles(S), tiles(T), B * H), (TILE, TILE)](q, k, root, s)
    row_softmax[B * H * T, ROW_THREADS](s.reshape(B * H * T, S))
    weighted_values[(tiles(Dh), tiles(T), B * H), (TILE, TILE)](s, v, out)


# %% [markdown]
# What does it cost? Let $P$ be the number of visible (query, key) pairs. Scores load $2\,\mathtt{Dh}$ numbers a pair
# and store $TS$; softmax loads $3TS$ and stores $2TS$; the weighted sum loads $2\,\mathtt{Dh}$ a pair and stores
# $T\,\mathtt{Dh}$. And for each head, the matrix of scores needs memory for $T S$ numbers.
#
# ## 6 · Attention: one kernel
#
# The matrix is the problem, and the [online softmax of chapter 09b](09b_attention_in_numba.ipynb#2--online-softmax)
# makes it unnecessary. Keys come in tiles. For those seen so far a query keeps `highest`, its highest score, and two
# sums, which equation (2) there scales down at each new highest score: `total`, of the weights, and `sums`, of the
# weighted values. With tiles in shared memory this is FlashAttention (Dao and others 2022).
#
# New on a GPU is who does what. A block of 16 × 16 threads takes 16 queries of a head. Thread (x, y) computes *one* score
# of each tile, that of query y and key x, and stores it in shared memory. Then the 16 threads of a query read all of its
# scores, and each adds up *its own columns* x, x + 16, … of `sums` in registers; `highest` and `total` are the same in
# all of them. Since `highest` starts as $-\infty$, the first factor is $e^{-\infty}=0$, as it should be. (It must not be
# $e^{-\infty-(-\infty)}$: each query sees key 0, so that after the first tile `highest` is finite.)

# %% tags=["subject"]
WIDEST = 64  # the largest Dh: each thread sums 64 / 16 = EACH columns of out
PADDED = WIDEST + 1  # row length of a tile whose columns 16 threads read at once


@cuda.jit
def online_softmax(q, k, v, root, out):
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


def one_kernel(q, k, v, out):
    """Do the same as `three_kernels`; a block has 16 queries of a head."""
    B, T, H, Dh = q.shape
    root = np.float32(1 / math.sqrt(Dh))
    online_softmax[(tiles(T), B * H), (TILE, TILE)](q, k, v, root, out)


# %% [markdown]
# There are five barriers in the loop over tiles of keys, each with its reason, and one extra column: rows of `k_tile` are
# 65 long for at most 64 numbers. In the line that computes the score, 16 threads read the same column d of 16 rows.
#
# **Before you look:** a number's bank is its address modulo 32. In how many different banks are these 16 numbers if a
# row is 64 long, and in how many if it is 65 long?

# %%
for length in (64, PADDED):
    banks = {(x * length + 5) % 32 for x in range(TILE)}  # thread x reads k_tile[x, 5]
    print(f"rows of {length}: 16 threads hit {len(banks)} of 32 banks")
assert len(banks) == TILE

# %% [markdown]
# Compare both rungs with the textbook in float64, for two heads and ragged T, S and Dh:

# %%
B, T, M, H, Dh = 1, 18, 5, 2, 20
S = M + T
q = rng.standard_normal((B, T, H, Dh), np.float32)
k, v = rng.standard_normal((2, B, S, H, Dh), np.float32)
exact = ops.attention_forward(q.astype(float), k.astype(float), v.astype(float))[0]  # (B, T, H, Dh)
for attend in (three_kernels, one_kernel):
    out = cuda.to_device(np.zeros_like(q))
    attend(*map(cuda.to_device, (q, k, v)), out)
    error = np.abs(out.copy_to_host() - exact).max()
    print(f"{attend.__name__:16s} largest error {error:.1e}")
    assert error < 1e-5

# %% [markdown]
# Now count for both, with one head. For `online_softmax`: q is loaded once, $T\,\mathtt{Dh}$; each block of 16 queries
# loads the keys and values up to the last one that its last query sees, $2\,\mathtt{Dh}$ each; and $T\,\mathtt{Dh}$ are
# stored.
#
# **Before you look:** for 40 queries, how many times fewer loads will one kernel need than three?

# %% jupyter={"source_hidden": true}
# Run three kernels and one on traced arrays.
T, M, Dh = 40, 8, 20
S = M + T
q, k, v = (rng.standard_normal((1, rows, 1, Dh), np.float32) for rows in (T, S, S))
exact = ops.attention_forward(q.astype(float), k.astype(float), v.astype(float))[0]
root = np.float32(1 / math.sqrt(Dh))


def traffic(*arrays):
    """Add up the loads and stores of traced arrays."""
    return np.sum([array.count() for array in arrays], axis=0)


traced = [Traced(x) for x in (q, k, v, np.zeros_like(q))]
s = Traced(np.zeros((1, 1, T, S), np.float32))
scores[(tiles(S), tiles(T), 1), (TILE, TILE)](traced[0], traced[1], root, s)
rows = Traced(s.array.reshape(T, S))  # the same memory
row_softmax[T, ROW_THREADS](rows)
weighted_values[(tiles(Dh), tiles(T), 1), (TILE, TILE)](s, traced[2], traced[3])
assert np.abs(traced[3].array - exact).max() < 1e-5
three = traffic(*traced, s, rows)

online = [Traced(x) for x in (q, k, v, np.zeros_like(q))]
online_softmax[(tiles(T), 1), (TILE, TILE)](*online[:3], root, online[3])
assert np.abs(online[3].array - exact).max() < 1e-5
one = traffic(*online)

# %%
pairs = sum(M + 1 + i for i in range(T))  # query i sees the keys 0 … M + i
keys = sum(min(S, first + TILE + M) for first in range(0, T, TILE))
assert list(three) == [4 * Dh * pairs + 3 * T * S, 3 * T * S + T * Dh]
assert list(one) == [T * Dh + 2 * Dh * keys, T * Dh]
for name, (loads, stores) in (("three kernels", three), ("online softmax", one)):
    print(f"{name:16s} {loads:8,} loads, {stores:6,} stores of global memory, as derived")
print(
    f"the scores of a head at T = S = 4,096 take {4096**2 * 4 / 2**20:.0f} MiB; one kernel stores none"
)

# %% jupyter={"source_hidden": true}
# Draw the keys that each block of queries loads, and those that it sees.
figure, ax = plt.subplots(figsize=(6.4, 4.6))
visible = np.arange(S) <= np.arange(T)[:, None] + M  # (T, S)
loaded = np.zeros((T, S))
for x, _, _, _, address in online[1].loads():
    loaded[x * TILE : (x + 1) * TILE, address // Dh] = 1  # k is (1, S, 1, Dh)
assert not (visible & (loaded == 0)).any(), "a key that a query sees was never loaded"
ax.imshow(loaded * 0.25 + visible * 0.35, cmap="Blues", vmin=0, vmax=1)
for first in range(TILE, T, TILE):
    ax.axhline(first - 0.5, color="black", linewidth=1)
for first in range(TILE, S, TILE):
    ax.axvline(first - 0.5, color="black", linewidth=0.6, linestyle=":")
ax.set(xlabel="key j", ylabel="query i")
ax.set_title("Keys that each block of 16 queries loads (pale), and those that it sees (dark)")
plt.show()

# %% [markdown]
# White entries are never touched: the loop ends at the last key that the block sees. The pale triangle is loaded and
# masked; it is at most a tile wide.
#
# ## 7 · What the compiler makes of it
#
# So far everything was Python. Now the same functions go through NVIDIA's compiler, for a GPU that need not be present.
# Numba hands what it has made of a function to NVIDIA's linker, which optimises it, translates it into **PTX**, an assembly
# language for a virtual GPU with unlimited registers, and that into instructions for a real one, with real registers. This
# needs a separate process, since in this one `numba.cuda` is the simulator.

# %% jupyter={"source_hidden": true}
# Make a program of this page's kernels, and compile them in a separate process.
KERNELS = [*(rung.kernel for rung in RUNGS.values()), scores, row_softmax, weighted_values]
KERNELS.append(online_softmax)
NUMBERS = ("TILE", "EACH", "WIDE", "DEPTH", "ROW_THREADS", "WIDEST", "PADDED")


def program(*functions):
    """Return a program that has this page's constants and the source of these functions and kernels."""
    head = "import json, math, time\nimport numpy as np\nfrom numba import cuda, float32, void\n"
    head += "from tinyprune import ops\nfrom tinyprune.kernels.cuda.compiled import compile_kernel\nfrom tinyprune.kernels.gpu import gpu_name\n"
    head += "ZERO, LOWEST = np.float32(0), np.float32(-np.inf)\n"
    head += "".join(f"{name} = {globals()[name]}\n" for name in NUMBERS)
    return head + "\n".join(inspect.getsource(getattr(f, "py_func", f)) for f in functions)


def run_without_simulator(code):
    """Run a program, and return what it has printed and its error's last line."""
    real = {name: value for name, value in os.environ.items() if name != "NUMBA_ENABLE_CUDASIM"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=real, capture_output=True, text=True, encoding="utf-8")
    return done.stdout, "".join(done.stderr.strip().splitlines()[-1:]) if done.returncode else ""


compiling = """
MATRIX, HEADS = float32[:, ::1], float32[:, :, :, ::1]
signatures = {
    "scores": void(HEADS, HEADS, float32, HEADS),
    "row_softmax": void(float32[:, ::1]),
    "weighted_values": void(HEADS, HEADS, HEADS),
    "online_softmax": void(HEADS, HEADS, HEADS, float32, HEADS),
}
product = void(MATRIX, MATRIX, MATRIX)
found = [
    compile_kernel(globals()[name], signatures.get(name, product), capability)
    for capability in ((8, 0), (9, 0))
    for name in NAMES
]
print(json.dumps(found))
"""
missing = what_is_missing()
compiled = {}
if missing:
    print("This section has not run here:", missing)
else:
    names = [kernel.py_func.__name__ for kernel in KERNELS]
    said, error = run_without_simulator(program(*KERNELS) + f"\nNAMES = {names}\n" + compiling)
    assert not error, error
    compiled = {(record["kernel"], record["capability"]): record for record in json.loads(said)}
    print(f"compiled {len(compiled)} kernels for compute capability 8.0 (A100) and 9.0 (H100)")

# %% [markdown]
# An instruction reads `name.kind target, sources`. `%f1` is a register for a float32, `%rd1` one for a 64-bit address,
# `%p1` one for a truth value; `@%p1 bra` jumps if it is true. You need these:
#
# | PTX | what it does |
# | --- | --- |
# | `ld.global.f32 %f1, [%rd1]` | load from global memory |
# | `ld.shared.f32`, `st.shared.f32` | load from and store to shared memory |
# | `fma.rn.f32 %f4, %f1, %f2, %f3` | %f4 = %f1 · %f2 + %f3, rounded once: the multiply-add |
# | `bar.sync 0` | `syncthreads` |
# | `shr.s64 …, 63; and.b64; add.s64` | what Python's negative indices cost: is the sign bit set, then add the length |
#
# The next cells print the core of three kernels, as compiled for an H100: the *basic block* (instructions without a jump
# between them) with the most multiply-adds.
#
# **Before you look:** `register_tile` has 16 sums in each thread. How many loads from shared memory do you expect for
# each `fma`?


# %% jupyter={"source_hidden": true}
# Find the innermost instructions of a kernel, and count their kinds.
def heart(ptx):
    """Return the basic block (the instructions between two labels or jumps) with the most fma."""
    blocks, block = [], []
    for line in ptx.splitlines():
        text = line.strip()
        if text.startswith("$L") or " bra" in text:
            blocks.append([*block, text])
            block = []
        elif text.endswith(";"):
            block.append(text)
    return max(blocks, key=lambda block: sum("fma.rn" in line for line in block))


def kinds(block):
    """Count the instructions of each kind."""
    names = ("ld.global.f32", "ld.shared.f32", "fma.rn.f32", "bar.sync")
    found = {name: sum(name in line for line in block) for name in names}
    return found | {"all": len(block)}


# %% jupyter={"source_hidden": true}
# Print the core of three kernels.
if compiled:
    for name, first, last in (
        ("columns_along_x", 0, 16),
        ("shared_tiles", 0, 14),
        ("register_tile", -36, None),
    ):
        block = heart(compiled[name, "9.0"]["ptx"])
        shown = block[first:last]
        print(f"{name}: {len(block)} instructions, {len(shown)} of them shown\n")
        print("\n".join(f"    {line}" for line in shown), "\n")

# %% [markdown]
# In the first, count how much comes before the `fma`: addresses and signs of indices, computed again for every number.
# In the second, the loop over the 16 numbers of a tile is unrolled 16 times, with two `ld.shared` for each `fma`; the
# numbers in `[%rd11+64]` are bytes, a row of 16 float32. In the third, one `ld.shared` of b's tile serves four `fma`,
# and the 16 sums have their own 16 registers: the compiler could unroll all of its loops, so `cuda.local.array` became
# registers.

# %% jupyter={"source_hidden": true}
# Count the instructions of the four products.
if compiled:
    print("for each fma      ld.global  ld.shared  all instructions")
    for rung_name, rung in RUNGS.items():
        name = rung.kernel.py_func.__name__
        found = kinds(heart(compiled[name, "9.0"]["ptx"]))
        ratios = [found[k] / found["fma.rn.f32"] for k in ("ld.global.f32", "ld.shared.f32", "all")]
        print(f"{name:16s} {ratios[0]:9.2f} {ratios[1]:10.2f} {ratios[2]:14.1f}")
        of_global = 0 if from_shared[rung_name] else 2
        assert ratios[:2] == [of_global, from_shared[rung_name]]
    assert not any(".f64" in record["ptx"] for record in compiled.values())
    print("no instruction of any kernel works on float64")

# %% [markdown]
# The compiler confirms what section 4 derived: 2 shared loads per multiply-add, then ½. The last column shows a gain
# that no count of loads has shown: the first rungs spend far more instructions on addresses than on the product. (These
# are PTX instructions; the last step will still combine or drop some.)
#
# The simulator cannot make the last check of the cell. Plant the bug: `total = 0.0` in place of `total = ZERO`.
#
# **Before you look:** Python's `0.0` has 64 bits. Would a comparison with the exact result find the bug? What will the
# compiler make of the multiply-add?

# %% jupyter={"source_hidden": true}
# Compile shared_tiles with the bug in another process, and print the instructions on float64.
if compiled:
    planted = program(shared_tiles).replace("total = ZERO", "total = 0.0")
    said, error = run_without_simulator(f"{planted}\nNAMES = ['shared_tiles']\n{compiling}")
    assert not error, error
    found = [line for line in json.loads(said)[1]["ptx"].splitlines() if "f64" in line]
    assert found, "the planted bug was not found"
    print("\n".join([*found[:6], "    …", found[-1]]))

# %% [markdown]
# The sum has become a float64: each product is converted to one and added as one, in three instructions in place of a
# multiply-add, and at the end the result is converted back. The results are right, so no comparison finds the bug, but
# float64 arithmetic runs at half the speed of float32 on these two GPUs, and at a small fraction of it on most others.
#
# ### Registers, and how many threads fit
#
# A number from global memory arrives hundreds of clocks after it was asked for; this is its *latency*. An SM hides it by
# running other warps meanwhile. How many warps it can hold depends on what each one needs. **Occupancy** is the number of
# warps that fit, divided by the most that an SM can hold. The limits are from the tables of technical specifications in
# NVIDIA's *CUDA C++ Programming Guide* and, for how registers are handed out, from the occupancy calculator of Nsight
# Compute.
#
# **Before you look:** which of the four products will have the lowest occupancy? Does that make it the slowest?

# %% jupyter={"source_hidden": true}
# Compute the occupancy of a compiled kernel.
LIMITS = {  # of one SM, by compute capability
    "8.0": {"warps": 64, "blocks": 32, "registers": 65536, "shared": 164 * 1024},  # A100
    "9.0": {"warps": 64, "blocks": 32, "registers": 65536, "shared": 228 * 1024},  # H100
}


def occupancy(record, threads):
    """Return the occupancy of a compiled kernel in blocks of `threads`, and what limits it."""
    limit = LIMITS[record["capability"]]
    warps = -(-threads // 32)  # of a block
    # a warp gets registers in units of 256; an SM has four quarters, each with its own registers
    per_warp = -(-32 * record["registers"] // 256) * 256
    per_quarter = limit["registers"] // 4 // per_warp
    # in units of 128 bytes, and 1 KiB of each block is for the system
    shared = -(-record["shared_bytes"] // 128) * 128 + 1024
    fit = {
        "warps": limit["warps"] // warps,
        "registers": 4 * per_quarter // warps,
        "shared memory": limit["shared"] // shared,
        "blocks": limit["blocks"],
    }
    by = min(fit, key=fit.get)
    return fit[by] * warps / limit["warps"], by


# %% jupyter={"source_hidden": true}
# Print registers, shared memory and occupancy of every kernel.
threads = {kernel.py_func.__name__: 256 for kernel in KERNELS} | {"row_softmax": ROW_THREADS}
if compiled:
    print("                  GPU  registers  shared memory  threads  occupancy  limited by")
for (name, capability), record in compiled.items():
    share, by = occupancy(record, threads[name])
    print(
        f"{name:16s} {capability:>4s} {record['registers']:10d} {record['shared_bytes']:12,} B"
        f" {threads[name]:8d} {share:9.0%}   {by}"
    )
    assert record["spill_store_bytes"] == record["spill_load_bytes"] == record["stack_bytes"] == 0

# %% [markdown]
# The compiler reports two more things, and the `assert` checks that there are none: *spills*, registers that did not fit
# and went to memory, and bytes on the stack. Shared memory is what the code requests: two tiles of 16 × 16 × 4 bytes are
# 2,048.
#
# Look at `register_tile`. It needs the most registers and has the lowest occupancy of the four products, and yet it is
# the rung that should be fastest. Occupancy is only a means: with 16 independent sums a warp has work to do while a
# load is in flight, so it needs fewer other warps to hide the latency (Volkov 2010). So do not read the column as a
# grade; ask whether there is enough work to hide the latency.
#
# ## 8 · How fast could it be?
#
# Two limits can be derived without a GPU. First, an SM cannot compute faster than its arithmetic units allow. Second,
# numbers cannot arrive faster than memory delivers them. With $I$ operations for each byte that is loaded (*arithmetic
# intensity*),
#
# $$ \text{operations per second} \;\le\; \min(\text{peak},\; I\cdot\text{bandwidth}) $$
#
# the **roofline** (Williams, Waterman & Patterson 2009). A multiply-add is two operations and a load is four bytes, so from
# (1): $I = 2 / (4\cdot(\tfrac1R+\tfrac1C))$. Peak and bandwidth below are **data-sheet figures** of NVIDIA, not
# measurements: A100 80 GB SXM 19.5 TFLOP/s (float32, without tensor cores) and 2,039 GB/s; H100 SXM 67 TFLOP/s and 3,350
# GB/s.

# %% jupyter={"source_hidden": true}
# Draw the rooflines of the data sheets.
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
    for (peak, bandwidth, _, _), colour in zip(DATA_SHEET.values(), (BLUE, VERMILION)):
        ax.plot(at, min(peak, at * bandwidth) / 1e12, marker, color=colour, markersize=7)
    ax.text(at * 1.07, 0.13, f"{name}\nI = {at:g}", fontsize=8, color=GREY)
ax.set(xlabel="operations per byte loaded from global memory", ylabel="TFLOP/s, at most")
ax.set(ylim=(0.1, 130), xlim=(0.1, 200))
ax.set_title("What the loads of each rung allow, if no cache helped. Nothing here is measured")
ax.legend(frameon=False, loc="upper left")
plt.show()

# %% jupyter={"source_hidden": true}
# Print what the data sheets allow.
for gpu, (peak, bandwidth, _, rate) in DATA_SHEET.items():
    print(f"{gpu}: arithmetic keeps up from {peak / bandwidth:.1f} operations per byte on")
    for name in ("shared tiles", "register tile"):
        # a warp's load takes a clock, a warp's multiply-add 32 / rate of one
        share = min(1, 32 / rate / from_shared[name])
        print(f"    {name:14s} shared memory alone allows {share:.1%} of the peak")

# %% [markdown]
# Caches make the first rungs better than their marks: what a block loads repeatedly is often found in L1 or L2. The
# marks are true limits only if everything comes from *memory itself*. The second limit, that of shared memory (32
# numbers a clock against 64 or 128 multiply-adds), always applies; it says that `shared_tiles` cannot exceed a quarter
# or an eighth of the peak, whatever else is done, and that for an H100 even 4 × 4 sums per thread are too few: 8 × 8
# would need ¼ load a multiply-add, and 64 registers for the sums alone. The next rung would begin there. It would be
# followed by loads of four numbers at once, loads that overlap with the use of the previous tile, and tensor cores. All
# of this is in the kernels of `--backend cuda`,
# [`kernels/cuda/products/product.py`](../tinyprune/kernels/cuda/products/product.py) and
# [`tensor_cores.py`](../tinyprune/kernels/cuda/products/tensor_cores.py).
#
# ## 9 · For real, where a GPU is present
#
# The next cell runs the same kernels on a device, if this machine has one: with arrays already in its memory, twenty
# launches in a row, the best of three.


# %% jupyter={"source_hidden": true}
# Time the kernels on this machine's GPU, if it has one; and in the simulator, whether they are timed rightly.
def time_all(grids, size, rounds, H):
    """Return each rung's name, milliseconds, GFLOP/s and largest error, with arrays in the GPU's memory."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, size, size), np.float32)
    heads = rng.standard_normal((3, 1, size, H, 64), np.float32)
    attended = ops.attention_forward(*heads.astype(float))[0]
    # a causal query sees half of the keys, and each costs Dh multiply-adds in q·k and Dh in a·v
    of_attention = heads, attended, size * (size + 1) // 2 * H * 2 * 64
    cases = [
        (name, globals()[name][how], (a, b), a.astype(float) @ b, size**3) for name, how in grids
    ]
    cases += [(attend.__name__, attend, *of_attention) for attend in (three_kernels, one_kernel)]
    found = []
    for name, launch, inputs, expected, multiply_adds in cases:
        arrays = [cuda.to_device(np.ascontiguousarray(x)) for x in inputs]
        arrays.append(cuda.to_device(np.zeros(expected.shape, np.float32)))
        launch(*arrays)  # compiles
        seconds = []
        for _ in range(3):
            cuda.synchronize()
            start = time.perf_counter()
            for _ in range(rounds):
                launch(*arrays)
            cuda.synchronize()
            seconds.append((time.perf_counter() - start) / rounds)
        error = float(np.abs(arrays[-1].copy_to_host() - expected).max())
        found.append((name, 1e3 * min(seconds), 2e-9 * multiply_adds / min(seconds), error))
    return found


def grids(size):
    """Return each product's kernel, and how it is launched."""
    return [(r.kernel.py_func.__name__, (r.grid(size, size), r.block)) for r in RUNGS.values()]


assert max(error for *_, error in time_all(grids(18), size=18, rounds=1, H=1)) < 1e-4
if not gpu_present():
    print("There is no NVIDIA GPU on this machine: this part has NOT run.")
    print("This chapter claims no time on a GPU.")
else:
    code = program(*KERNELS, tiles, three_kernels, one_kernel, time_all)
    code += f"\nprint(json.dumps([gpu_name(), time_all({grids(1024)}, 1024, rounds=20, H=8)]))"
    said, error = run_without_simulator(code)
    if error:
        print("There is a GPU, but the kernels did not run on it:", error)
    else:
        gpu, measured = json.loads(said)
        print(f"measured on {gpu}: matrices of 1,024 × 1,024; 8 heads of 64 numbers, 1,024 queries")
        for name, ms, gflops, error in measured:
            print(f"{name:16s} {ms:9.3f} ms {gflops:9.0f} GFLOP/s   largest error {error:.1e}")
            assert error < 1e-3

# %% [markdown]
# In Colab, choose a runtime with a GPU and run `pip install 'numba-cuda[cu12]'`, or `[cu13]` if the driver is for CUDA
# 13 (`nvidia-smi` says so in its first line). If the driver is older than the compiler, the launch fails with
# `CUDA_ERROR_UNSUPPORTED_PTX_VERSION`; then install the other of the two. A launch returns before its kernel is done, so
# a kernel that fails is noticed at some later launch; with `TINYPRUNE_CUDA_CHECK=1` `--backend cuda` waits after each one,
# and its message names the kernel that failed.
#
# ## Recap
#
# - A GPU runs thousands of threads, 32 of them (a warp) at a time. You write what one thread does; the grid takes the
#   place of the outer loops.
# - Fetch a number once and use it often: neighbours in a warp read neighbouring addresses, a block shares a tile, a thread
#   keeps its sums in registers. The loads of every rung can be derived beforehand and counted in a simulator.
# - Threads that share memory need a barrier between writing and reading. Whether a test notices a missing one depends on
#   its shape.
#
# ## Now you
#
# Replace the line `raise NotImplementedError(…)` by your code and run the cell. It prints nothing if the check passes.
#
# The kernels run in the simulator, so that no GPU is needed. Each exercise is independent of the rest of the chapter.

# %% [markdown]
# ### Exercise 1 · How many sectors does a warp read?
#
# Predict what a load costs before there is a kernel. A block has `width` threads along x. Thread t of its first warp has
# x = t mod `width` and y = ⌊t / `width`⌋, and loads the float32 number at the address x · `stride_x` + y · `stride_y`,
# counted in numbers. A sector holds 8 numbers, and the array begins at a sector's edge. Return how many different sectors
# the 32 threads touch together.

# %% tags=["exercise", "raises-exception"]
import numpy as np


def warp_sectors(width, stride_x, stride_y):
    """Count the sectors of 8 numbers that the first warp's load touches; all arguments are integers."""
    raise NotImplementedError("write warp_sectors: return the number of different sectors")


wanted = {(32, 1, 512): 4, (32, 512, 1): 32, (32, 0, 512): 1, (16, 1, 512): 4, (16, 0, 512): 2}
wanted |= {(16, 512, 1): 16, (8, 2, 64): 8, (16, 2, 1000): 8}  # width, stride_x, stride_y
for arguments, sectors_read in wanted.items():
    found = warp_sectors(*arguments)
    assert found == sectors_read, f"warp_sectors{arguments} should be {sectors_read}, got {found}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# Make an array of the 32 thread numbers, compute all addresses at once, and divide them by 8 with `//`.
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

# %% [markdown]
# ### Exercise 2 · The gates as a kernel
#
# Multiply every head's output by its gate, on a GPU: `out[i, j] = o[i, j] · g[h]`, where column j belongs to head
# h = ⌊j / Dh⌋. `o` and `out` are (T, D), `g` is (H,), and Dh = D / H. One thread computes one number. Neighbours in a warp
# should read neighbouring numbers of `o`, so x is the column, and the grid has more threads than `o` has numbers.

# %% tags=["exercise", "raises-exception"]
import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # the simulator; before Numba is imported

import numpy as np
from numba import cuda


def gate_heads(o, g, out):
    """Kernel: write one number of out, (T, D), from o, (T, D), and g, (H,)."""
    raise NotImplementedError(
        "write gate_heads: store o[i, j] times the gate of its head in out[i, j]"
    )


o = np.random.default_rng(0).standard_normal((21, 70), np.float32)
g, out = np.array([1, 0, 0.5, 2, 1], np.float32), np.full_like(o, np.nan)
cuda.jit(gate_heads)[(3, 3), (32, 8)](o, g, out)  # 3 × 3 blocks of 32 × 8 threads
expected = o * np.repeat(g, 70 // 5)
wrong_at = np.argwhere(~np.isclose(out, expected))
assert len(wrong_at) == 0, (
    f"{len(wrong_at)} of {out.size} numbers are wrong, first at {wrong_at[0]}"
)

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
# def gate_heads(o, g, out):
#     j, i = cuda.grid(2)
#     if i < o.shape[0] and j < o.shape[1]:
#         Dh = o.shape[1] // g.shape[0]
#         out[i, j] = o[i, j] * g[j // Dh]
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · Combine by halves
#
# RMSNorm divides a row by the root of the mean of its squares. Compute that mean: `out[row] = mean of x[row, :]²`, for `x`
# (rows, D) and `out` (rows,), with one block of 64 threads for each row. Thread t adds up the squares of the numbers t,
# t + 64, t + 128, … of the row and puts its sum into shared memory; then the sums are combined by halves, as in
# section 5; and one thread stores the result. `cuda.shared.array(64, np.float32)` makes the shared array,
# `cuda.threadIdx.x` is t, `cuda.blockIdx.x` is the row. The check also counts how many numbers of `x` each thread reads:
# with 64 threads that is ⌈D / 64⌉ at most.

# %% tags=["exercise", "raises-exception"]
import os
from collections import defaultdict
from threading import current_thread

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"  # the simulator; before Numba is imported

import numpy as np
from numba import cuda


def mean_square(x, out):
    """Kernel: a block of 64 threads writes one number of out, (rows,), from a row of x, (rows, D)."""
    raise NotImplementedError(
        "write mean_square: store the mean of the squares of x[row] in out[row]"
    )


class Recorded:
    """An array that remembers which of its numbers each thread reads."""

    def __init__(self, x):
        self.x, self.shape, self.read = x, x.shape, defaultdict(set)
        self.number = np.arange(x.size).reshape(x.shape)

    def __getitem__(self, at):
        thread = current_thread()  # knows which GPU thread it simulates
        self.read[thread.blockIdx.x, thread.thread_id].update(np.ravel(self.number[at]))
        return self.x[at]


x = np.random.default_rng(0).standard_normal((3, 150), np.float32)
x *= np.array([[1], [2], [3]], np.float32)
out, recorded = np.full(3, np.nan, np.float32), Recorded(x)
cuda.jit(mean_square)[3, 64](recorded, out)
expected = (x**2).mean(1)
assert np.allclose(out, expected, rtol=1e-4), f"expected {expected}, got {out}"
most = max(len(numbers) for numbers in recorded.read.values())
assert most <= 3, f"each of 64 threads may read 3 of a row's 150 numbers, one reads {most}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# Start with `half = 32`. In each round all threads wait at a barrier, the threads below `half` add the number that is
# `half` places further, and `half` is halved. The barrier must not be inside the `if`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def mean_square(x, out):
#     part = cuda.shared.array(64, np.float32)
#     t, row, D = cuda.threadIdx.x, cuda.blockIdx.x, x.shape[1]
#     total = np.float32(0)
#     for j in range(t, D, 64):
#         total += x[row, j] * x[row, j]
#     part[t] = total
#     half = 32
#     while half > 0:
#         cuda.syncthreads()
#         if t < half:
#             part[t] += part[t + half]
#         half //= 2
#     if t == 0:
#         out[row] = part[0] / D
# ```
#
# </details>

# %% [markdown]
# [Assignment A6](assignments/README.md) goes further: its task a6_3 is a tile of a matrix product for a GPU, with its
# barriers checked.
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
# since 32 numbers of out in a less elongated rectangle need fewer rows and columns in total. So the shape of a block
# deserves some thought.
#
# </details>
#
# 2. `register_tile` puts zeros into its tiles beyond the edges and computes with them. Why not skip them with an `if`?
#
# <details><summary>Answer</summary>
#
# A zero adds nothing, so the result is right, and the innermost loop has no condition and a fixed length, so the
# compiler could unroll it. And an `if` around the loop would be dangerous: if a thread skips a `syncthreads` at which
# others wait, a real GPU often waits for ever. The simulator does not notice that, either.
#
# </details>
#
# 3. Why may threads of different blocks not wait for one another?
#
# <details><summary>Answer</summary>
#
# Because not all blocks may be running. If the grid has more blocks than fit on the GPU, the rest start when others
# have *ended*; a block that waits for one that has not started waits for ever. This freedom is also the reason why the
# same kernel runs on a small and on a large GPU.
#
# </details>
#
# 4. In `online_softmax` each of the 16 threads of a query computes the same `highest`, `total` and `shrink`. Is that
#    wasteful?
#
# <details><summary>Answer</summary>
#
# Only slightly: it costs 16 comparisons, 16 additions and one exponential per tile. If one thread did it and the others
# read the result, that would take another barrier and more shared memory. The costly part, the 16 exponentials of a
# query's weights, *is* shared: one for each thread.
#
# </details>
#
# 5. The occupancy table says that `register_tile` could have more warps if it used fewer registers. Name a way, and what it
#    costs.
#
# <details><summary>Answer</summary>
#
# Use fewer sums per thread: 4 × 2 instead of 4 × 4 frees eight registers and those for their addresses. By (1), shared
# loads per multiply-add rise from ½ to ¾, and global loads rise with the smaller tile. Or tell the compiler to limit
# the registers (`cuda.jit(max_registers=…)`): then it may spill, and the `assert` after the table would fail.
#
# </details>
#
# **Next:** [11](11_a_real_language_model.ipynb) takes a real language model apart. The kernels for a whole model on a GPU
# are in [`kernels/cuda/`](../tinyprune/kernels/cuda).

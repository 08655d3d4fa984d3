# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · The hot loops in Numba
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/09_hot_loops_in_numba.ipynb)
# &nbsp; ← [08 fine-tuning and trade-off](08_fine_tuning_and_trade_off.ipynb) · [all chapters](README.md) · [10 on a GPU](10_on_a_gpu.ipynb) →
#
# **After this chapter you can** say how fast a loop could run on your machine before you write it, climb from three
# nested loops to close to that number, and show at every rung that the result is still right. You will do it twice: for
# the matrix product, and for the attention of [chapter 02](02_attention_by_hand.ipynb), whose kernel ends up several
# times as fast as PyTorch.
#
# **You need** the formula of attention, and an idea of what a processor's cache and registers are for. It takes an hour
# to read and less than a minute to run.

# %%
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

# %%
import os

for name in (
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
):  # NumPy's BLAS at its best, whatever the environment says
    os.environ.pop(name, None)

# %matplotlib inline
import json
import math
import re
import textwrap
import time
import tracemalloc
from functools import partial

import matplotlib.pyplot as plt
import numba
import numpy as np
from IPython.display import display
from numba import prange
from numpy.lib.stride_tricks import as_strided

from tinyprune import ops
from tinyprune.bench.figures import plot_benchmark
from tinyprune.bench.machine import describe_machine
from tinyprune.bench.shapes import attention_arguments, attention_gflop, matrices, model_shape
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu import attention as attention_kernel
from tinyprune.kernels.cpu import attention_tiles, jit, product, workspace
from tinyprune.kernels.cpu import matmul as matmul_kernel
from tinyprune.kernels.cpu.simd import REGISTERS, VECTOR_BYTES, microkernel
from tinyprune.kernels.ladder import attention, matmul
from tinyprune.notebook import results, show_source, sliders, use_style
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION

use_style()
rng = np.random.default_rng(0)
cpu = get_backend("numba")
THREADS, LANES = numba.get_num_threads(), VECTOR_BYTES // 4  # float32 in a vector
print(textwrap.fill(describe_machine(THREADS, ("numba",)), 78))
print(f"vectors of {VECTOR_BYTES} bytes, that is {LANES} float32; {REGISTERS} registers for them")

# %% [markdown]
# All speeds below were measured when this page was made, on the machine named above. On yours they will differ, and so
# may the order of two neighbours. This chapter asserts no times, but every result.
#
# ## 1 · What the machine can do
#
# A loop needs two things from a processor: operations and bytes. If it does $W$ operations and moves $Q$ bytes, and the
# machine does at most $P$ operations and moves at most $b$ bytes per second, then it takes at least
#
# $$ t \;\ge\; \max\!\Big(\frac WP, \frac Qb\Big) \qquad\Longrightarrow\qquad \frac Wt \;\le\; \min\big(P,\; b\, I\big),
# \qquad I = \frac WQ \tag{1} $$
#
# The number $I$, operations per byte, is the **arithmetic intensity** of the loop. Equation (1) is called the
# *roofline* (Williams, Waterman & Patterson 2009): plotted over $I$ on logarithmic axes, the bound rises with slope one
# and then is flat. The position of a loop under that roof tells what to work on.
#
# **The flat part.** A *fused multiply-add*, $x\cdot y+z$ on a whole vector of numbers, is one instruction and two
# operations per number. To measure how many of them a core can start, the data has to be in the nearest cache. The
# package has a function that multiplies small tiles with arbitrary strides (see section 2). With all strides zero it
# reads the same few bytes again and again:


# %%
def best(work, *arguments, turns=30):
    """Return the shortest of many calls in seconds, to find limits of the machine."""
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        work(*arguments)
        times.append(time.perf_counter() - start)
    return min(times)


@numba.njit
def same_bytes(a, b, c, a_row, a_k, b_k, K):
    """Run K rounds of a register tile, with strides that the compiler does not know."""
    matmul.set_tile(a, 0, a_row, a_k, b, 0, b_k, c, 0, 2 * LANES, K)


K = 100_000
a, b, c = (
    np.ones(1, np.float32),
    np.ones(2 * LANES, np.float32),
    np.empty(matmul.ROWS * 2 * LANES, np.float32),
)
same_bytes(a, b, c, 0, 0, 0, K)
assert (c == K).all()  # it did count them all
PEAK = 2 * c.size * K / best(same_bytes, a, b, c, 0, 0, 0, K) / 1e9
print(f"multiply-adds of one core end at {PEAK:.0f} GFLOP/s")

# %% [markdown]
# Divided by $2\cdot$`LANES`, this is the number of vector instructions that start per nanosecond. On most x86
# processors since 2013 it is two in every clock cycle, on some with AVX-512 one.
#
# **The slope.** There is not one memory but a hierarchy: registers, a first cache of some 32 to 48 KiB, a second, a
# third, and main memory, each larger and slower. `y += x` moves 12 bytes (two numbers in, one out) for one addition.
# Its speed against the size of the arrays shows where each level ends. NumPy's copy of a large array is a second
# measure of the last step; counted as one number in and one out it looks slower, since the target's cache lines are
# usually also read before they are written.


# %%
@numba.njit
def add_to(y, x, times):
    for _ in range(times):
        for i in range(x.size):
            y[i] += x[i]


sizes = 2 ** np.arange(9, 24)  # float32 in each of the two arrays
bandwidth = []
for n in sizes:
    x, y = np.ones(n, np.float32), np.zeros(n, np.float32)
    times = max(1, 2**18 // n)
    add_to(y, x, times)
    assert (y == times).all()
    bandwidth.append(12 * n * times / best(add_to, y, x, times, turns=12 if n < 2**20 else 5) / 1e9)
source, target = np.ones(2**24, np.float32), np.zeros(2**24, np.float32)
copied = 2 * source.nbytes / best(np.copyto, target, source, turns=5) / 1e9
FIRST_CACHE, MEMORY = max(bandwidth), bandwidth[-1]

figure, ax = plt.subplots(figsize=(7, 2.9))
ax.loglog(8 * sizes / 1024, bandwidth, color=BLUE, marker="o", markersize=4)
ax.set(
    xlabel="both arrays together, KiB",
    ylabel="GB/s, one thread",
    title="y += x: every step down is the end of a cache",
)
ax.xaxis.set_major_formatter("{x:g}")
speeds = [
    s for s in (5, 10, 20, 50, 100, 200, 500, 1000) if min(bandwidth) / 2 < s < max(bandwidth) * 2
]
ax.set_yticks(speeds, speeds)
ax.minorticks_off()
plt.show()
print(
    f"first cache {FIRST_CACHE:.0f} GB/s, memory {MEMORY:.0f} GB/s; NumPy's copy of 64 MiB {copied:.0f} GB/s"
)

# %% [markdown]
# **What is possible for a matrix product.** `out = a · b` with `a` (M, K) and `b` (K, N) takes $W = 2MNK$ operations. Each
# number has to be read or written at least once: $Q \ge 4\,(MK+KN+MN)$ bytes of float32. For $n\times n$ matrices
#
# $$ I = \frac{2n^3}{12 n^2} = \frac n6 \tag{2} $$
#
# At $n=1024$ that is 171 operations per byte. Multiply by the bandwidth of *memory* just measured: far more than the
# multiply-adds can do. So a matrix product could run at the flat roof. Three nested loops miss it by a factor of a
# hundred. Why?

# %%
n = 1024
print(
    f"memory would allow {MEMORY * n / 6:.0f} GFLOP/s, the multiply-adds allow {PEAK:.0f} on one core"
)

# %% [markdown]
# ## 2 · The matrix product, rung by rung
#
# The rungs are in [`kernels/ladder/matmul.py`](../tinyprune/kernels/ladder/matmul.py): all take `a` and `b`, all do the
# same operations. First, how do we know that a rung is right? A float32 rounds by at most $\varepsilon = 2^{-24}$ of
# its value. An entry is a sum of $K$ products; a product is rounded once itself and again with every addition that
# follows, at most $K$ times in all. So, whatever the order of the sum, and up to terms in $\varepsilon^2$,
#
# $$ \big|\mathtt{out}_{ij} - \textstyle\sum_k a_{ik} b_{kj}\big| \;\le\; K\varepsilon \sum_k |a_{ik}|\,|b_{kj}| \tag{3} $$
#
# This is a bound for every entry, without an arbitrary tolerance. The reference is NumPy in float64.


# %%
def check_product(multiply, m, k, n):
    """Check that every entry of multiply(a, b) is within the bound (3)."""
    a, b = matrices(m, k, n, "A·B")  # (m, k)  (k, n)
    out = multiply(a, b)  # (m, n)
    assert out.shape == (m, n) and out.dtype == np.float32
    a, b = a.astype(np.float64), b.astype(np.float64)
    bound = k * 2.0**-24 * (np.abs(a) @ np.abs(b)) * (1 + 1e-4)  # (m, n)
    np.testing.assert_array_less(np.abs(out - a @ b), bound)


first_call = {}
for name, rung in matmul.RUNGS.items():
    start = time.perf_counter()
    rung(*matrices(8, 8, 8, "A·B"))
    first_call[name] = time.perf_counter() - start
    check_product(rung, 37, 53, 91)  # nothing divides anything
    check_product(rung, 1, 1, 1)
print(f"all of {', '.join(matmul.RUNGS)}: right to the last bits that rounding allows")

# %% [markdown]
# The shape 37 × 53 × 91 is chosen on purpose. The fast rungs work in tiles, and separate code handles the remainder.
# **Plant a bug**: a product that forgets the remainder.


# %%
def forgets_the_rest(a, b):
    """Multiply whole tiles only."""
    m, n = len(a) // matmul.ROWS * matmul.ROWS, b.shape[1] // (2 * LANES) * 2 * LANES
    out = np.zeros((len(a), b.shape[1]), a.dtype)
    out[:m, :n] = matmul.register_tile(a[:m], b[:, :n])
    return out


check_product(forgets_the_rest, 48, 64, 96)  # round numbers: nothing is noticed
try:
    check_product(forgets_the_rest, 37, 53, 91)
except AssertionError as error:
    print(next(line for line in str(error).splitlines() if "Mismatch" in line))
else:
    raise AssertionError("the planted bug was not found")

# %% [markdown]
# ### Rungs 1 and 2: the definition, in Python and compiled

# %%
show_source(matmul.compiled_loops)

# %% [markdown]
# `python_loops` has the same lines without `@numba.njit`. Compiling removes the objects, the type look-ups and the
# reference counts: a factor of some hundreds for one decorator. Two problems remain, both in the way the loops are
# *nested*.
#
# **A cache line is 64 bytes** (on x86 and most ARM processors; 128 on Apple's). Memory travels in lines of 16 float32,
# never in single numbers. Matrices are stored row by row, so the innermost loop, which walks down a column of `b`,
# needs another line at every step and uses 4 of its 64 bytes. The picture shows this, and so does an experiment: add 1
# to every `step`-th number of a large array. As long as `step` ≤ 16, every line is touched anyway: from step 2 to step
# 16 each doubling halves the work but hardly changes the time.


# %%
@numba.njit
def add_one(x, step):
    for i in range(0, x.size, step):
        x[i] += 1


def draw_walk(ax, title, cells, colour):
    """Draw a corner of b, (4, 32), with its cache lines as boxes and the numbers in the order of reading."""
    for row in range(4):
        for line in range(2):
            used = any(r == row and c // 16 == line for r, c in cells)
            ax.add_patch(
                plt.Rectangle(
                    (16 * line + 0.1, row + 0.12),
                    15.8,
                    0.76,
                    facecolor="#E8E8E8" if used else "white",
                    edgecolor=GREY,
                )
            )
    for row, column in cells:
        ax.add_patch(plt.Rectangle((column + 0.1, row + 0.12), 0.8, 0.76, color=colour))
    ax.set(
        xlim=(-0.3, 32.3),
        ylim=(4.2, -0.2),
        title=title,
        xticks=[],
        yticks=np.arange(4) + 0.5,
        yticklabels=range(4),
        ylabel="k",
    )
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


large = np.zeros(2**24, np.float32)
steps = 2 ** np.arange(8)
for step in steps:
    add_one(large, step)
assert large[0] == 8 and large[1] == 1  # the compiled loop does what it says
walked = [best(add_one, large, step, turns=5) for step in steps]

figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.3), width_ratios=(1, 1, 1.3))
draw_walk(axes[0], "down a column: 4 numbers, 4 lines", [(k, 3) for k in range(4)], VERMILION)
draw_walk(axes[1], "along a row: 4 numbers, 1 line", [(0, j) for j in range(3, 7)], BLUE)
axes[2].plot(steps, np.array(walked) * 1e3, color=BLUE, marker="o")
axes[2].axvline(16, color=GREY, linestyle=":", linewidth=1)
axes[2].set(
    xscale="log",
    ylim=(0, None),
    xlabel="step (dotted: 16 numbers, one line)",
    ylabel="ms",
    title="x[::step] += 1, 64 MiB",
)
axes[2].set_xticks(steps, steps)
axes[2].minorticks_off()
plt.show()

# %% [markdown]
# (At step 1 there are so many numbers that the additions themselves count. Beyond 16 each doubling skips every other
# line, and the time falls.)
#
# **A sum has to wait for itself.** `out[i, j] += …` adds to the result of the previous addition. An addition takes
# about three clock cycles until its result is available, however many adders are idle. Two operations in three cycles
# of a processor at 4 GHz are 2.7 GFLOP/s. The compiler must not help: adding in another order, in several parallel
# sums, would round differently, and it may not change results.
#
# ### Rung 3: another order of the loops

# %%
show_source(matmul.loop_order)

# %% [markdown]
# Only `j` and `k` are exchanged. Now neighbours `out[i, j]` and `out[i, j + 1]` are independent: the compiler computes
# 8 or 16 of them in one **SIMD** instruction, and none waits. Each entry still adds its products in the order of `k`,
# so the bits of the result are the same as before, which can be asserted:

# %%
a, b = matrices(96, 80, 112, "A·B")
np.testing.assert_array_equal(matmul.loop_order(a, b), matmul.compiled_loops(a, b))
np.testing.assert_array_equal(matmul.loop_order(a, b), matmul.python_loops(a, b))

# %% [markdown]
# But consider the bytes. For one multiply-add the innermost loop loads `b[k, j]` and `out[i, j]` and stores `out[i,
# j]`: 12 bytes between registers and first cache for 2 operations, $I = \tfrac16$. By (1) even the first cache then
# allows no more than a sixth of its bandwidth:

# %%
print(
    f"{FIRST_CACHE:.0f} GB/s / 6 = {FIRST_CACHE / 6:.0f} GFLOP/s, where the multiply-adds could do {PEAK:.0f}"
)

# %% [markdown]
# ### Rung 4: a tile in the registers
#
# To do more per byte, use every number that is in a register more than once. Take a **tile** of `out`, $R$ rows by $C$
# columns, and keep its $R\cdot C$ sums in registers for all of `k`. One round of `k` loads $C$ numbers of `b` and $R$ of `a`
# and multiplies each with each:
#
# $$ \frac{\text{loads}}{\text{multiply-add}} = \frac{R + C}{R\,C} = \frac1C+\frac1R, \qquad I = \frac{2RC}{4(R+C)} \tag{4} $$
#
# `out` is stored once at the end. The larger the tile the better, until the registers are full. With columns in $V$ vectors
# it needs $RV$ registers for the sums, $V$ for `b` and one for the number of `a`:
#
# $$ RV + V + 1 \;\le\; \mathtt{REGISTERS} \tag{5} $$
#
# There is also a lower limit: a multiply-add takes about four cycles, and two can start in each, so at least eight sums
# must be in flight or the processor waits.

# %%
show_source(matmul.register_tile, microkernel)

# %% [markdown]
# `microkernel` writes the loop in LLVM's own language, to be certain that the sums are in registers. In that language,
# `phi` means that *a variable comes from before the loop the first time, and from the loop's last round afterwards*. It
# is the only loop in the package that is written this way; attention uses it, too.
#
# Both limits can be measured. The factory makes tiles of any height, so try them on data that fits into the first
# cache. The grey line is the prediction of the two arguments: `min(1, sums / 8)` of the peak, and a drop where (5) is
# violated.


# %%
def tile_runner(rows):
    """Compile a function that runs a tile of `rows` × 2 vectors `times` times; a_k is the stride along k."""
    tile = microkernel(rows, 2, True)

    @numba.njit
    def run(a, b, c, a_k, K, times):
        for _ in range(times):
            tile(a, 0, K, a_k, b, 0, 2 * LANES, c, 0, 2 * LANES, K)

    return run


def tile_arguments(rows, K=128):
    """Return a (rows, K), b (K, 2 · LANES) and zeros c (rows, 2 · LANES), all flat."""
    a, b = matrices(rows, K, 2 * LANES, "A·B")
    return a.ravel(), b.ravel(), np.zeros(rows * 2 * LANES, np.float32), 1, K


heights = [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20, 24]
reached = []
for rows in heights:
    run, arguments = tile_runner(rows), tile_arguments(rows)
    run(*arguments, 1)
    a, b, c, _, K = arguments
    np.testing.assert_allclose(
        c.reshape(rows, -1), a.reshape(rows, K) @ b.reshape(K, -1), rtol=0, atol=K * 1e-5
    )
    reached.append(2 * c.size * K * 200 / best(run, *arguments, 200) / 1e9)

fits = (REGISTERS - 3) // 2
figure, ax = plt.subplots(figsize=(7, 3))
ax.plot(
    heights,
    [PEAK * min(1, 2 * rows / 8) for rows in heights],
    color=GREY,
    linestyle="--",
    label="predicted from waiting",
)
ax.plot(heights, reached, color=BLUE, marker="o", label="measured")
ax.axvline(fits + 0.5, color=VERMILION, linestyle=":", label=f"registers full: at most {fits} rows")
ax.axvline(matmul.ROWS, color=GREY, linewidth=0.8, zorder=0)
ax.annotate(
    f"the package: {matmul.ROWS}",
    (matmul.ROWS, PEAK / 2),
    (-4, 0),
    textcoords="offset points",
    color=GREY,
    ha="right",
)
ax.set(
    xlabel="rows of the tile, two vectors wide",
    ylabel="GFLOP/s, one core",
    ylim=(0, None),
    title="Too few sums wait, too many do not fit",
)
ax.legend(frameon=False, loc="lower right")
plt.show()

# %%
for rows in (1, 4, matmul.ROWS):
    columns = 2 * LANES
    print(
        f"{rows:2} rows: {(rows + columns) / (rows * columns):.3f} loads for a multiply-add, "
        f"{2 * rows * columns / (4 * (rows + columns)):.2f} operations per byte"
    )

# %% [markdown]
# ### Rung 5: packing
#
# A tile reads `C` columns of `b`: a short piece of one row, then a short piece of the next, a whole row of `b` further
# on. If that distance is 4096 bytes, a page, two things go wrong. Each piece is on another page, whose address the
# processor has to look up. And a cache cannot put a line anywhere: the first one, on most processors, has 64 *sets*,
# and line number $\ell = \lfloor\mathrm{address}/64\rfloor$ belongs to set $\ell \bmod 64$, with room for 8 or 12
# lines. Lines 4096 bytes apart all belong to the *same* set. The next cell counts them:


# %%
def lines_in_sets(depth, width, row_bytes):
    """Count the cache lines of `depth` pieces of `width` float32 in each of 64 sets."""
    lines = {(k * row_bytes + 4 * j) // 64 for k in range(depth) for j in range(width)}
    return np.bincount([line % 64 for line in lines], minlength=64)


depth, width = 128, 32  # a panel of two AVX-512 vectors: 16 KiB
apart, packed = lines_in_sets(depth, width, 4096), lines_in_sets(depth, width, 4 * width)
assert apart.sum() == packed.sum() == depth * width // 16  # the same number of lines
assert packed.max() == packed.min() and apart.max() == depth
figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.4), sharey=True)
for ax, counts, title in zip(
    axes, (apart, packed), ("as it lies in b: rows of 4096 bytes", "packed: one piece")
):
    ax.bar(range(64), counts, color=BLUE, width=1)
    ax.axhline(8, color=VERMILION, linestyle="--", linewidth=1)
    ax.set(xlabel="set of the first cache", title=title, yscale="log", ylim=(0.8, 200))
axes[0].set_ylabel("lines that want to be there")
axes[1].annotate(
    "room for 8 (or 12)", (63, 8), (0, 3), textcoords="offset points", ha="right", color=VERMILION
)
plt.show()

# %% [markdown]
# On the left the panel's 256 lines crowd into two sets and evict each other before the next tile reads them again; 62
# sets stay empty. Copied once into contiguous memory, a *packed panel* fills all sets evenly, and is used for all rows
# of `a` (Goto & van de Geijn 2008).

# %%
show_source(matmul.pack, matmul.packed_blocks)

# %% [markdown]
# Packing multiplies nothing. A block of `b` with $K N$ numbers is copied once and used for $M$ rows: the copy moves one
# number for every $M$ multiply-adds. Moving a number costs as much as many of those, so packing pays only if `b` is too
# large for the caches. Measure it against the size of `b`, from now on in the following way: **all contenders take
# turns in one process, and the median counts**, because a machine is never quiet.


# %%
def alternate(works, rounds=5):
    """Return the median time of each work in seconds; all take turns."""
    repeats, times = {}, {name: [] for name in works}
    for name, work in works.items():
        work()  # compile now
        start = time.perf_counter()
        work()
        repeats[name] = max(
            1, round(0.004 / (time.perf_counter() - start))
        )  # a turn of some milliseconds
    for _ in range(rounds):
        for name, work in works.items():
            time.sleep(
                0.02
            )  # threads of the previous one, above all BLAS's, keep spinning for a while
            start = time.perf_counter()
            for _ in range(repeats[name]):
                work()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: float(np.median(t)) for name, t in times.items()}


sizes = [128, 256, 512, 1024, 2048]
compared = {"register tile": [], "packed blocks": []}
for n in sizes:
    a, b = matrices(480, n, n, "A·B")
    seconds = alternate({name: partial(matmul.RUNGS[name], a, b) for name in compared})
    for name, speeds in compared.items():
        speeds.append(2 * 480 * n * n / seconds[name] / 1e9)

figure, ax = plt.subplots(figsize=(7, 2.8))
for (name, speeds), colour, style in zip(compared.items(), (GREY, BLUE), ("o--", "s-")):
    ax.plot(sizes, speeds, style, color=colour, label=name)
ax.set(
    xscale="log",
    xlabel="rows and columns of b",
    ylabel="GFLOP/s, one core",
    ylim=(0, None),
    title="Packing pays where b is large",
)
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# ### Rung 6: all processors
#
# The package's kernel splits `out` into as many parts as there are threads and gives each thread one part. There is one
# parallel region without a barrier: each thread packs what it reads. Packing twice is cheaper than waiting once.

# %%
show_source(product.grid, product.shared)

# %% [markdown]
# `prange` says that the iterations of a loop may run at the same time. Its author promises that this is safe. Here it
# is: no two threads write the same entry. The kernel also keeps a second promise, which matters more than speed: **the
# same bits for any number of threads**. Every entry is one sum, along `k`, in one thread. A sum that is divided among
# threads breaks this promise, since additions are rounded, so their order matters:


# %%
@numba.njit(parallel=True)
def divided_sum(x):
    result = np.float32(0)
    for i in prange(
        x.size
    ):  # Numba recognises a sum, gives each thread a part of it, and adds up the parts
        result += x[i]
    return result


a, b = matrices(500, 300, 700, "A·B")
x = rng.standard_normal(2**20, np.float32)
products = []
for threads in (1, min(2, THREADS)):
    numba.set_num_threads(threads)
    products.append(matmul_kernel.matmul(a, b))
    print(
        f"{threads} thread{'s' * (threads > 1)}: divided sum {divided_sum(x):.5f}, entry of the product {products[-1][1, 2]:.5f}"
    )
numba.set_num_threads(THREADS)
np.testing.assert_array_equal(*products)  # every bit

# %% [markdown]
# So a run that was stopped continues to the same bits with one core or with eight, and a difference between two results
# always has a cause.
#
# ### The whole ladder
#
# The two lowest rungs multiply smaller matrices, or you would wait for minutes. NumPy's product is shown as the target.

# %%
size_of = {"Python loops": 48, "compiled": 256}  # else 1024
inputs = {n: matrices(n, n, n, "A·B") for n in (48, 256, 1024)}
works = {
    name: partial(rung, *inputs[size_of.get(name, 1024)]) for name, rung in matmul.RUNGS.items()
}
works["NumPy's BLAS"] = partial(np.matmul, *inputs[1024])
seconds = alternate(works)
matmul_speeds = {name: 2 * size_of.get(name, 1024) ** 3 / t / 1e9 for name, t in seconds.items()}
committed = {
    (r["ladder"], r["subject"]): r["gflops"]
    for r in json.loads(results("speed", "ladder.json").read_text())
}


def draw_ladder(speeds, ladder, title):
    """Draw a bar for each rung, the lowest at the bottom, labelled with its speed-up over the one below."""
    figure, ax = plt.subplots(figsize=(8, 0.9 + 0.3 * len(speeds)))
    names, values = list(speeds), list(speeds.values())
    ax.barh(
        names, values, height=0.7, color=[GREY if "NumPy's" in name else BLUE for name in names]
    )
    theirs = [committed[ladder, name] for name in names]
    ax.plot(theirs, range(len(names)), "D", color="white", markeredgecolor="black", markersize=5)
    for i, value in enumerate(values):
        ax.text(1.02, i, f"{value:.3g}", transform=ax.get_yaxis_transform(), va="center")
        if i and "NumPy's" not in names[i]:
            ax.text(
                1.1,
                i,
                f"{value / values[i - 1]:.3g}×",
                transform=ax.get_yaxis_transform(),
                va="center",
                color=GREY,
            )
    ax.set(
        xscale="log",
        xlim=(min(values) / 2, 1000),
        xlabel="GFLOP/s (diamonds: the full measurement); n×: n times the rung below",
    )
    ax.set_title(title)
    ax.xaxis.set_major_formatter("{x:g}")
    plt.show()


draw_ladder(matmul_speeds, "matmul", "The matrix product, n = 1024 (Python 48, compiled 256)")
print(
    f"compiling: {matmul_speeds['compiled'] / matmul_speeds['Python loops']:.0f}×, everything after it: "
    f"{matmul_speeds['kernel, threads'] / matmul_speeds['compiled']:.0f}×"
)

# %% [markdown]
# The diamonds are the committed results of the full measurement, `tinyprune bench ladder`, on a machine that section 8
# names. If the bars are far from them, this page was made on a busy machine, or on another one.
#
# ## 3 · Looking at the machine code
#
# What did the compiler make of it? `inspect_llvm()` shows a compiled function in LLVM's language, `inspect_asm()` its
# instructions. Here is how to read x86 assembly, in which the *last* operand is the one that is written:
#
# | | |
# | --- | --- |
# | `%xmm3` `%ymm3` `%zmm3` | the same register number 3: its first 16, 32, or all 64 bytes |
# | `(%rax,%rbp,4)` | the memory at address rax + 4·rbp: brackets are a load, or a store if they stand last |
# | `vmulss`, `vaddss` | one multiplication, one addition: *s*calar, *s*ingle precision |
# | `vmulps`, `vaddps` | the same on a whole register: *p*acked, *s*ingle precision |
# | `vfmadd231ps %zmm1, %zmm2, %zmm3` | zmm3 += zmm1 · zmm2, sixteen multiply-adds |
# | `vbroadcastss` | one number from memory into all lanes |
# | `jne .LBB0_15` | back to the label, unless the last comparison was equal: the end of a loop |
#
# Two helpers follow: one counts arithmetic by width, the other finds the basic block (from a label to a jump) with most
# of it.

# %%
ARITHMETIC = re.compile(
    r"^\s+v?(?:fn?m(?:add|sub)\w*|mul|add|sub)[ps][sd]\b.*%(xmm|ymm|zmm)", re.MULTILINE
)
ARM_VECTOR = re.compile(r"^\s+(?:fmla|fmul|fadd)\b.*(?:\.4s|\.2d)", re.MULTILINE)


def assembly(compiled):
    """Return the machine code of a function that Numba has compiled, for all signatures."""
    if not hasattr(compiled, "inspect_asm"):
        compiled = compiled.__wrapped__  # a rung checks its arguments first
    return "\n".join(compiled.inspect_asm().values())


def count(text):
    """Count arithmetic instructions: scalar ones, vector ones by register, and fused multiply-adds."""
    lines = [match.group() for match in ARITHMETIC.finditer(text)]
    packed = [line for line in lines if re.search(r"p[sd]\s", line)]
    counts = {"of one number": len(lines) - len(packed)}
    counts |= {
        f"vectors of {size}": sum(f"%{size}" in line for line in packed)
        for size in ("xmm", "ymm", "zmm")
    }
    counts["vectors of ARM"] = len(ARM_VECTOR.findall(text))
    counts["fused"] = sum("fmadd" in line for line in lines) + text.count("fmla")
    return {name: number for name, number in counts.items() if number}


def hot_block(text, only=""):
    """Return the basic block with the most arithmetic, counting lines that contain `only`."""
    blocks, block = [], []
    for line in text.splitlines():
        if re.match(r"^\S+:", line):
            blocks, block = [*blocks, block], [line]
        elif line.startswith("\t") and not line.startswith("\t."):
            block.append(line)
    hot = max(
        [*blocks, block],
        key=lambda lines: sum(only in line for line in lines if ARITHMETIC.match(line)),
    )
    return [line.expandtabs(4) for line in hot]


def show_block(text, only="", limit=14):
    """Print the first lines of `hot_block`."""
    lines = hot_block(text, only)
    print("\n".join(lines[:limit]) + ("\n    …\n" if len(lines) > limit else "\n"))


for name in ("compiled", "loop order", "register tile"):
    print(
        f"{name:14}", count(assembly(matmul.RUNGS[name])) or "no x86 or ARM instructions known here"
    )

# %% [markdown]
# The compiled definition has only scalar instructions. In `loop order` LLVM has vectorised by itself (the scalar
# instructions beside are for the ends of rows), but with separate multiplications and additions: fusing them rounds
# once instead of twice, which would change the result, and Numba does not allow it unless asked (`fastmath`; this
# package does not ask). The tile requests multiply-adds explicitly, and all of its vectors are fused (the scalar
# instructions beside are for the remainder). Now the loops themselves:

# %%
if "zmm" in assembly(matmul.loop_order) or "ymm" in assembly(matmul.loop_order):
    print(
        "compiled: load, multiply, add to a sum, store it; the next lines add to the same sum again\n"
    )
    show_block(assembly(matmul.compiled_loops), limit=11)
    print("loop order: whole vectors\n")
    show_block(assembly(matmul.loop_order), only="ps", limit=13)
else:
    print("This machine has no AVX; its code looks different, and the idea is the same:\n")
    show_block(assembly(matmul.loop_order))

# %% [markdown]
# This is the sum that waits for itself: every `vaddss` reads the `%xmm0` that the previous one has written. (There is a
# store between them because the compiler cannot know that `out` does not overlap `a`.)
#
# ### A constant that costs
#
# Reading machine code pays. Rungs 4 and 5 read the distance between neighbours along `k` from the array, `step =
# a.strides[1] // a.itemsize`, although it is always 1. It would be natural to write the constant 1 instead. Here are
# both, counted and measured:

# %%
fixed_tile = microkernel(matmul.ROWS, 2, True)


@numba.njit
def constant_step(a, b, c, a_k, K, times):
    """Do the same as `tile_runner`, but with a constant a_k = 1."""
    for _ in range(times):
        fixed_tile(a, 0, K, 1, b, 0, 2 * LANES, c, 0, 2 * LANES, K)


variable_step = tile_runner(matmul.ROWS)
runners = {"constant": constant_step, "variable": variable_step}
for name, run in runners.items():
    arguments = tile_arguments(matmul.ROWS)
    run(*arguments, 1)
    a, b, c, _, K = arguments
    np.testing.assert_allclose(
        c.reshape(matmul.ROWS, -1), a.reshape(-1, K) @ b.reshape(K, -1), rtol=0, atol=K * 1e-5
    )
    speed = 2 * c.size * K * 200 / best(run, *arguments, 200) / 1e9
    loop = hot_block(assembly(run))
    spilled = sum(bool(re.search(r"movu?a?ps\s+%.mm\d+, -?\d*\(%rsp\)", line)) for line in loop)
    print(
        f"{name}: {speed:.0f} GFLOP/s; in its loop {count(chr(10).join(loop))}, and {spilled} vectors stored on the stack"
    )

# %% [markdown]
# Knowing that neighbours along `k` are adjacent in memory, LLVM loads the numbers of `a` for several iterations of `k`
# in advance. It has no registers left for them, so it stores vectors to memory (`%rsp` is the stack) and loads them
# back: the registers *spill*. The optimiser meant well, and was wrong. Hence the variable that happens to be 1, in the
# ladder and in the kernel. No profile of the Python code would have shown this.
#
# ## 4 · The roof
#
# Here is equation (1) as a picture, for one thread. The bytes are those between registers and first cache:
#
# - `compiled` and `loop order` both move 12 bytes for 2 operations. (By luck of the compiler `compiled` keeps its sum in a
#   register; it still loads two numbers and stores one.)
# - the tile has (4); `packed blocks` and the kernel have the same tile.


# %%
def draw_roof(ax):
    """Draw the two slopes and the flat part for one core, and BLAS on all threads as a dotted line."""
    x = np.geomspace(0.05, 400, 200)
    for bytes_per_second, name, style in (
        (FIRST_CACHE, "first cache", "-"),
        (MEMORY, "memory", "--"),
    ):
        ax.plot(
            x, np.minimum(PEAK, bytes_per_second * x), color=GREY, linestyle=style, linewidth=1.2
        )
        ax.annotate(
            name,
            (0.12, bytes_per_second * 0.12),
            (-8, 0),
            textcoords="offset points",
            color=GREY,
            fontsize=8,
            ha="right",
        )
    blas = matmul_speeds["NumPy's BLAS"]
    ax.axhline(blas, color=GREY, linestyle=":", linewidth=1)
    flat = sorted([(PEAK, "multiply-adds of one core"), (blas, "BLAS, all threads")])
    for (speed, label), side in zip(
        flat, (-11, 3)
    ):  # the lower line has its name below it, the upper one above
        ax.annotate(
            label,
            (400, speed),
            (0, side),
            textcoords="offset points",
            color=GREY,
            fontsize=8,
            ha="right",
        )
    ax.set(xscale="log", yscale="log", ylabel="GFLOP/s", xlim=(0.02, 600))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_major_formatter("{x:g}")


tile_intensity = 2 * matmul.ROWS * 2 * LANES / (4 * (matmul.ROWS + 2 * LANES))
matmul_intensity = {"compiled": 2 / 12, "loop order": 2 / 12} | dict.fromkeys(
    ("register tile", "packed blocks", "kernel, threads"), tile_intensity
)
figure, ax = plt.subplots(figsize=(7.5, 3.8))
draw_roof(ax)
for (name, intensity), colour, marker in zip(matmul_intensity.items(), HEAD_COLOURS, "osD^v"):
    ax.plot(intensity, matmul_speeds[name], marker, color=colour, markersize=8, label=name)
ax.set(
    xlabel="operations per byte between registers and first cache",
    title="Under the roof: the matrix product",
    ylim=(0.5, None),
)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Read it from the left. `compiled` is below `loop order` at the same intensity: it is limited by waiting, not by bytes.
# `loop order` is within a small factor of the slope of the first cache (at this size its `b` does not even fit there),
# and no loop of that intensity gets above the slope. The only way up is *to the right*, which is what the tile does.
# The rest of the climb is vertical: a clean inner loop, packing where `b` is large, and the other cores.
#
# ## 5 · Attention
#
# The formula from [chapter 02](02_attention_by_hand.ipynb) and [03](03_all_attention.ipynb), with N persistent vectors as
# in All-attention as published, for one head and query $i$, with `now` $= i+M$ its own position:
#
# $$ s_j = \frac{(q_i+u)\cdot k_j + (q_i+w)\cdot r_{\mathtt{now}-j}}{\sqrt{\mathtt{Dh}}}\quad (j \le \mathtt{now},\; \mathtt{now}-j\le\mathtt{span}), $$
#
# $$ s_n = q_i\cdot pk_n, \qquad o_i = \sum_j a_j v_j + \sqrt{N} \sum_n a_n pv_n $$
#
# with $a$ the softmax over all $s_j$ and $s_n$. **How many operations?** By the formula $2\,\mathtt{Dh}$ for each of
# the three dot products and sums of a context key, and two of a persistent one: $W = 2\,T\,\mathtt{Dh}\,(3S + 2N)$ per
# head. **How many bytes?** That depends on the matrix of scores. The textbook writes or reads the $T\times S$ context
# scores about 16 times (ten operations: fill, write, add, mask, maximum, subtract, exponential, sum, divide, use; most
# of them both read it and write it; persistent scores about 10 times):
#
# $$ I_\text{textbook} \approx \frac{2\,\mathtt{Dh}\,(3S+2N)}{4\,(16 S+10N)} $$
#
# $$ I_\text{one pass} = \frac{2\,B\,T\,\mathtt{Dh}\,(3S+2N)}{4\,\mathtt{Dh}\,\big(B\,(2T+2S)+S+2N\big)} $$
#
# The second has no matrix: it reads `q`, `k`, `v` of each of B texts once, as well as the shared `r`, `pk`, `pv`, and
# writes `out`. It has a factor $T$ that the first lacks. So the plan is to have *no matrix*. Softmax seems to forbid
# it: every weight needs the sum over all keys.

# %%
shape = model_shape("relative-d128", B=4)
config = shape.config
B, T, S, H, Dh, N = shape.B, config.T, config.M + config.T, config.H, config.Dh, config.N
context_bytes, one_pass_bytes = (
    4 * B * H * T * (16 * S + 10 * N),
    4 * H * Dh * (B * (2 * T + 2 * S) + S + 2 * N),
)
operations = 2 * B * H * T * Dh * (3 * S + 2 * N)
assert math.isclose(
    operations, attention_gflop(config, B) / 3 * 1e9
)  # the package counts backward too, as twice forward
attention_intensity = {
    "textbook (NumPy)": operations / context_bytes,
    "one pass": operations / one_pass_bytes,
}
attention_intensity["compiled loops"] = operations / (
    4 * B * H * T * 7 * (S + N) + one_pass_bytes
)  # see its source
print(f"B {B}, H {H}, Dh {Dh}, T {T}, S {S}, N {N}: {operations / 1e6:.0f} million operations")
for name, intensity in attention_intensity.items():
    print(f"{name}: {intensity:.1f} operations per byte")

# %% [markdown]
# ### Online softmax
#
# Take the keys in pieces. For those seen so far keep three things: the highest score $m$, the sum $\ell=\sum_j
# e^{s_j-m}$, and the unfinished output $o=\sum_j e^{s_j-m} v_j$. The answer for the keys so far is $o/\ell$, whatever
# $m$ is, since $e^{-m}$ cancels. Now more keys come, with a new highest score $m'$. All sums so far used the wrong
# maximum. But
#
# $$ e^{s_j-m'} = e^{s_j-m}\; e^{m-m'} $$
#
# and the last factor is the same for all old keys: it can be pulled out of the sums.
#
# $$ \ell' = e^{m-m'}\,\ell + \sum_{\text{new}} e^{s_j-m'} \qquad\qquad o' = e^{m-m'}\,o + \sum_{\text{new}} e^{s_j-m'}\,v_j \tag{6} $$
#
# (Milakov & Gimelshein 2018.) No exponent is ever above zero, so nothing overflows, and each weight is used as soon as
# it is computed, and then discarded.

# %%
show_source(attention.take_keys)

# %%
keys = 200
s = rng.standard_normal(keys) * 3 + np.linspace(0, 4, keys)  # (keys,)
values = rng.standard_normal((keys, Dh))  # (keys, Dh)


def in_pieces(s, values, piece, take=attention.take_keys):
    """Sum values with softmax weights, some keys at a time; return the output and the state after each piece."""
    o, highest, total, kept = np.zeros(values.shape[1]), -math.inf, 0.0, []
    for first in range(0, len(s), piece):
        highest, total = take(s[first : first + piece], values[first:], 1.0, highest, total, o)
        kept.append((highest, total, o / total))
    return o / total, kept


whole = np.exp(s - s.max()) / np.exp(s - s.max()).sum() @ values  # (Dh,)
for piece in (1, 7, 64, keys):
    np.testing.assert_allclose(in_pieces(s, values, piece)[0], whole, rtol=0, atol=1e-14)
print("the same output for any size of the pieces")

# %% [markdown]
# **Plant a bug**: forget to rescale `o`. Whether that is noticed depends on the scores. If the highest comes first,
# nothing is ever rescaled, and the wrong program gives the right result.


# %%
def forgets_to_shrink(s, values, factor, highest, total, o):
    """Do the same as take_keys, but without rescaling o."""
    before = o.copy()
    best, total = attention.take_keys(s, values, factor, highest, total, o)
    o += before * (1 - math.exp(highest - best))
    return best, total


falling = np.argsort(-s)
np.testing.assert_allclose(
    in_pieces(s[falling], values[falling], 7, forgets_to_shrink)[0], whole, atol=1e-14
)
try:
    np.testing.assert_allclose(
        in_pieces(s, values, 7, forgets_to_shrink)[0], whole, rtol=0, atol=1e-14
    )
except AssertionError as error:
    print(next(line for line in str(error).splitlines() if "Mismatch" in line))
else:
    raise AssertionError("the planted bug was not found")

# %%
_, kept = in_pieces(s, values, 1)
highest, total, output = (np.array(x) for x in zip(*kept))  # (keys,)  (keys,)  (keys, Dh)


def draw_online(axes, seen):
    """Draw the state after `seen` keys."""
    for ax in axes:
        ax.axvline(seen, color=GREY, linewidth=0.8, linestyle=":")
    axes[0].plot(s, ".", color=GREY, markersize=3, label="scores")
    axes[0].step(range(seen), highest[:seen], where="post", color=VERMILION, label="highest so far")
    axes[0].set(
        title=f"{seen} keys seen", xlim=(0, keys), ylim=(s.min() - 1, s.max() + 7), xlabel="key"
    )
    axes[1].plot(total[:seen], color=BLUE)
    axes[1].set(
        title=f"sum = {total[seen - 1]:.2f}",
        xlim=(0, keys),
        ylim=(0, total.max() * 1.1),
        xlabel="key",
    )
    for d, colour in zip(range(4), HEAD_COLOURS):
        axes[2].plot(output[:seen, d], color=colour, linewidth=1.2)
        axes[2].plot(keys, whole[d], "o", color=colour, markersize=5, clip_on=False)
    axes[2].set(
        title="o / sum, four of its numbers",
        xlim=(0, keys),
        ylim=(output[:, :4].min(), output[:, :4].max()),
        xlabel="key",
    )
    axes[0].legend(frameon=False, loc="upper left", ncols=2)


figure, axes = plt.subplots(2, 3, figsize=(9, 4))
draw_online(axes[0], 40)
draw_online(axes[1], keys)
plt.show()


# %%
def slide_online(seen):
    figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.3))
    draw_online(axes, seen)
    plt.show()


sliders(slide_online, seen=(1, keys, 1))

# %% [markdown]
# At every rise of the red line all sums are rescaled: where the rise is large, the sum drops. In the end the four
# numbers arrive at the dots, the results of the whole softmax.
#
# ### No matrix in memory
#
# Does the kernel really need no matrix? `tracemalloc` records the peak of all arrays that NumPy allocates, here for one
# batch entry, 8 heads, growing T and M = T:


# %%
def peak_bytes(attend, arguments, span):
    """Return the peak memory of a call in addition to its arguments."""
    attend(**arguments, span=span)
    workspace.POOL.clear()
    tracemalloc.start()
    attend(**arguments, span=span)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


lengths = [64, 128, 256, 512, 1024]
peaks = {"textbook": [], "kernel": []}
for length in lengths:
    arguments, _ = attention_arguments(model_shape("relative-d128", B=1, T=length, M=length))
    for name, attend in (("textbook", ops.attention_forward), ("kernel", cpu.attention_forward)):
        peaks[name].append(peak_bytes(attend, arguments, length))
output_bytes = [4 * length * H * Dh for length in lengths]
assert peaks["textbook"][-1] > 3 * peaks["textbook"][-2]  # T · S: about 4 times for every doubling
assert peaks["kernel"][-1] < 2.5 * peaks["kernel"][-2]  # T: about 2 times

figure, ax = plt.subplots(figsize=(7, 3))
for (name, peak), colour, style in zip(peaks.items(), (VERMILION, BLUE), ("s--", "o-")):
    ax.plot(lengths, np.array(peak) / 2**20, style, color=colour, label=name)
ax.plot(lengths, np.array(output_bytes) / 2**20, ":", color=GREY, label="the output itself")
ax.set(
    xscale="log",
    yscale="log",
    xlabel="T (and M)",
    ylabel="peak MiB",
    title="Memory: one grows with T², the other with T",
)
ax.set_xticks(lengths, lengths)
ax.minorticks_off()
ax.yaxis.set_major_formatter("{x:g}")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The kernel does store its output, one number per query for the backward pass (*lse*, the logarithm of the softmax's
# denominator, from which the weights are recomputed), and scratch memory for each thread: a tile of 32 queries, and
# panels of keys.
#
# ### The rungs
#
# All six are in [`kernels/ladder/attention.py`](../tinyprune/kernels/ladder/attention.py). First, compare each with the
# textbook in float64, at lengths that no tile size divides:

# %%
ragged, _ = attention_arguments(model_shape("relative-d128", B=2, T=67, M=41, N=37))
exact = ops.attention_forward(
    **{name: x.astype(np.float64) for name, x in ragged.items()}, span=41
)[0]
for name, attend in attention.RUNGS.items():
    start = time.perf_counter()
    out = attend(**ragged, span=41)
    first_call[f"attention, {name}"] = time.perf_counter() - start
    first_call.pop("attention, kernel", None)  # it has been called before
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, exact, rtol=0, atol=3e-5)
    print(f"{name}: largest difference {np.abs(out - exact).max():.1e}")

# %% [markdown]
# `online softmax` is (6) in loops. Its dot products are sums that wait for themselves, as in rung 2 of the matrix
# product, and the remedy is the same: let the innermost loop run over something whose iterations are independent.
# There, it was columns; here, it is **keys**. A head's keys are transposed once, so that entries `d` of neighbouring
# keys are adjacent, and a vector holds the scores of 16 keys:

# %%
show_source(attention.add_products, attention.head_by_lanes, docstring=False)

# %%
for name in ("online softmax", "keys in lanes"):
    print(
        f"{name:14}",
        count(assembly(attention.RUNGS[name])) or "no x86 or ARM instructions known here",
    )

# %% [markdown]
# `take_keys` is the same in both. (A function that several others call is compiled into each of them, so its instructions
# are counted, too.)
#
# ### The shift for free
#
# The kernel works on a tile of $R$ = 32 queries at a time. Content scores of a tile are a product as in section 2: 32
# rows times a panel of keys. The *position* scores are not: query $t$ of the tile needs $(q_t+w)\cdot r$ for distance
# $t + M - j$ at key $j$, each row shifted against the one above. A product gives them sorted by distance, the largest
# first. Column $c$ holds distance $M+R-1-c$, so
#
# $$ \text{score }(t, j)\text{ needs column}\quad c = j + R-1-t \tag{7} $$
#
# The obvious way is to compute them and then shift each row by copying. Instead, choose where the product *writes*.
# Scores are stored in a scratch array with rows `LS` numbers apart, beginning at number $R$: $(t,j)$ is at $R + t\cdot
# \mathtt{LS} + j$. Let the position scores begin at number 1, with rows $\mathtt{LS}+1$ apart. By (7) then entry $(t,
# c)$ of that product is number
#
# $$ 1 + t\,(\mathtt{LS}+1) + c \;=\; 1 + t\,\mathtt{LS} + t + j + R - 1 - t \;=\; R + t\,\mathtt{LS} + j $$
#
# The $t$ cancels: **each position score is already at the place of its key's score**. Nothing is moved; $q\cdot k$ is
# added on top. Since `microkernel` accepts arbitrary strides, the longer rows cost nothing. Here is a small example
# with four queries and eight keys:

# %%
R, LS, n_keys, M_small = 4, 12, 8, 4  # row R − 1 sees the key n_keys − 1: M + R keys
columns = n_keys + R - 1
scratch = np.full(1 + R * (LS + 1), np.nan)
P = as_strided(scratch[1:], (R, columns), (8 * (LS + 1), 8))  # (R, columns), rows LS + 1 apart
s_view = as_strided(scratch[R:], (R, n_keys), (8 * LS, 8))  # (R, n_keys), rows LS apart
P[:] = M_small + R - 1 - np.arange(columns)  # as if every score were its distance
t, j = np.arange(R)[:, None], np.arange(n_keys)
np.testing.assert_array_equal(
    s_view, t + M_small - j
)  # (R, n_keys): the distance that each score needs


def draw_memory(ax, stride, rows, boxes, title):
    """Draw `scratch` as rows of `stride` numbers; `boxes` is (first number of a row's box, its width)."""
    for i, distance in enumerate(scratch):
        row, column = divmod(i, stride)
        if row < rows and not np.isnan(distance):
            ahead = distance < 0
            ax.text(
                column + 0.5,
                row + 0.5,
                f"{distance:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color=GREY if ahead else "black",
            )
            if not ahead:
                shade = 0.15 + 0.7 * distance / (M_small + R)
                ax.add_patch(
                    plt.Rectangle(
                        (column, row), 1, 1, facecolor=BLUE, alpha=shade * 0.6, edgecolor="none"
                    )
                )
    first, width = boxes
    for row in range(R):
        ax.add_patch(
            plt.Rectangle((first, row), width, 1, fill=False, edgecolor=VERMILION, linewidth=1.2)
        )
    ax.set(
        xlim=(0, stride),
        ylim=(rows, 0),
        title=title,
        yticks=np.arange(R) + 0.5,
        yticklabels=[f"t = {t}" for t in range(R)],
    )
    ax.set_xticks(range(stride + 1), labels=[])
    ax.grid(axis="x", color="#DDDDDD", linewidth=0.5)
    ax.set_axisbelow(True)
    ax.tick_params(length=0)


figure, axes = plt.subplots(1, 2, figsize=(9.5, 2.0))
draw_memory(
    axes[0], LS + 1, R, (1, columns), f"written in rows of LS + 1 = {LS + 1}: column = distance"
)
draw_memory(axes[1], LS, R, (R, n_keys), f"the same memory in rows of LS = {LS}: column = key")
plt.show()

# %% [markdown]
# Each number is the distance whose score is stored there; grey ones are negative, for keys that this query does not see
# and the mask removes. On the left all rows are alike, as a plain product writes them. On the right are the same bytes,
# with equal distances along the diagonals. Now with the real products:

# %%
Dh_small = 16
q, u, w = (
    rng.standard_normal((R, Dh_small)),
    rng.standard_normal(Dh_small),
    rng.standard_normal(Dh_small),
)
k, r = (
    rng.standard_normal((n_keys, Dh_small)),
    rng.standard_normal((columns, Dh_small)),
)  # r: row = distance
by_column = np.zeros(
    (columns, Dh_small)
)  # row c: distance M + R − 1 − c, zeros for those that do not exist
exists = M_small + R - 1 - np.arange(columns) >= 0
by_column[exists] = r[M_small + R - 1 - np.arange(columns)[exists]]
P[:] = (q + w) @ by_column.T  # (R, columns): a product, rows LS + 1 apart
s_view += (q + u) @ k.T  # (R, n_keys): a product, rows LS apart, on top
for t in range(R):
    for j in range(t + M_small + 1):  # keys that query t sees
        np.testing.assert_allclose(
            s_view[t, j], (q[t] + u) @ k[j] + (q[t] + w) @ r[t + M_small - j], rtol=0, atol=1e-12
        )

# %% [markdown]
# [Chapter 02](02_attention_by_hand.ipynb) met the same identity as a view of a whole matrix, `by_key`. The backward pass
# reads the gradient of the scores through the longer rows, and gets it sorted by distance, which is what $dr$ and the
# positions' share of $dq$ need.
#
# ### The kernel
#
# All parts are in place: tiles in registers (scores, weighted sums and all gradients use one `microkernel` with
# different strides), keys in lanes, no matrix, no shift. What is left is the exponential, 16 at a time: $e^x =
# 2^{x\log_2 e}$ with $\log_2 e$ multiplied into the queries, and $2^x = 2^{\mathrm{round}(x)}\,2^f$ is an integer put
# into the exponent's bits times a polynomial of degree five ([`simd.py`](../tinyprune/kernels/cpu/simd.py), `exp2`).

# %%
show_source(
    attention_tiles.scores_add,
    attention_tiles.softmax_rows,
    attention_kernel.context_scores,
    attention_kernel.head_forward,
    docstring=False,
)

# %% [markdown]
# In `context_scores`, `1 + ready` with `row + 1` is where position scores go, `TILE + a` with `row` where content
# scores are added: equation (7) in two lines. The maximum changes only when a vector of scores exceeds it
# (`any_greater`), which is rare after the first keys.

# %%
arguments, _ = attention_arguments(shape)
span = config.span
seconds = alternate(
    {name: partial(attend, **arguments, span=span) for name, attend in attention.RUNGS.items()}
)
attention_speeds = {name: operations / t / 1e9 for name, t in seconds.items()}
draw_ladder(
    attention_speeds, "attention", f"Attention, forward: B {B}, H {H}, Dh {Dh}, T {T}, S {S}, N {N}"
)
print(
    f"kernel: {seconds['textbook (NumPy)'] / seconds['kernel']:.1f} times as fast as the textbook"
)

# %% [markdown]
# A sobering second rung: plain compiled loops are *slower* than NumPy, whose products come from BLAS. In the full
# measurement, on two cores, only the last rung passes the first. (Operations are counted by the formula: masked keys
# count, although all rungs from `online softmax` on skip them. The textbook's BLAS has to share this process with
# Numba's threads; in the full measurement it has its own.)
#
# Here are the rungs under the roof, with bytes from beyond the caches:

# %%
figure, ax = plt.subplots(figsize=(7.5, 3.6))
draw_roof(ax)
for (name, speed), colour, marker in zip(attention_speeds.items(), HEAD_COLOURS, "osD^vP"):
    intensity = attention_intensity.get(name, attention_intensity["one pass"])
    ax.plot(intensity, speed, marker, color=colour, markersize=8, label=name)
ax.set(
    xlabel="operations per byte to and from memory, as counted above",
    title="Under the roof: attention",
    ylim=(1, None),
)
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
print(
    f"by its bytes the textbook could reach {MEMORY * attention_intensity['textbook (NumPy)']:.0f} GFLOP/s from memory"
)

# %% [markdown]
# The textbook gets its products from BLAS and is still far below BLAS's line: with so few operations per byte, memory
# alone limits it to a few times its speed, and better products could not help much. From `online softmax` on, bytes are
# no longer a limit. That alone makes hardly anything faster; higher intensity only makes room for the other rungs.
#
# ## 6 · Closed heads are skipped
#
# A gate at exactly 0 multiplies its head's output by 0. Then nothing in the head has a gradient *except the gate
# itself*: $\mathtt{dgate}_h = \sum \mathtt{dout}\cdot o^h$ ([chapter 05](05_l0_and_the_difference.ipynb)), which
# depends on the head's output. So in training the forward pass also computes the closed heads whose gates may still
# move (`gates_forward`, [chapter 06](06_training_with_gates.ipynb)); the backward pass skips what it can:

# %%
show_source(attention_kernel.backward_closed_heads)

# %%
small = {name: x.astype(np.float64) for name, x in ragged.items()}
gate = np.array([1, 0, 0.7, 0, 1, 1, 0, 0.2])
_, textbook_cache = ops.attention_forward(**small, gate=gate, span=41)
_, kernel_cache = cpu.attention_forward(**small, gate=gate, span=41)
dout = rng.standard_normal(ragged["q"].shape)
expected, got = (
    ops.attention_backward(dout, textbook_cache),
    cpu.attention_backward(dout, kernel_cache),
)
for name, x, y in zip(("dq", "dk", "dv", "dr", "du", "dw", "dpk", "dpv", "dgate"), expected, got):
    np.testing.assert_allclose(y, x, rtol=0, atol=1e-12 * np.abs(x).max(), err_msg=name)
closed = gate == 0
assert (got[0][:, :, closed] == 0).all() and (got[8][closed] != 0).all()  # dq is zero, dgate is not
print(
    "nine gradients as the textbook's; closed heads have a gradient for their gate and for nothing else"
)


# %%
def only(arguments, heads):
    """Return the arguments with the first `heads` heads."""
    return {
        name: np.ascontiguousarray(
            x[:heads] if name in ("u", "w", "pk", "pv") else x[..., :heads, :]
        )
        for name, x in arguments.items()
    }


def forward_and_backward(arguments, gate=None):
    out, cache = cpu.attention_forward(**arguments, gate=gate, span=span)
    cpu.attention_backward(out, cache)


open_heads = [8, 6, 4, 2, 1]
works = {}
for heads in open_heads:
    gate, kept_arguments = (np.arange(H) < heads).astype(np.float32), only(arguments, heads)
    works["closed", heads] = partial(forward_and_backward, arguments, gate)
    works["removed", heads] = partial(forward_and_backward, kept_arguments)
    works["forward", heads] = partial(cpu.attention_forward, **arguments, gate=gate, span=span)
seconds = alternate(works, 7)

figure, ax = plt.subplots(figsize=(7, 3.2))
for kind, label, colour, style in (
    ("closed", "forward + backward, the others closed by their gates", BLUE, "o-"),
    ("removed", "forward + backward, the others removed", VERMILION, "s--"),
    ("forward", "forward alone, the others closed", GREY, "^:"),
):
    ax.plot(
        open_heads,
        [seconds[kind, heads] / seconds["closed", 8] for heads in open_heads],
        style,
        color=colour,
        label=label,
    )
ax.plot([0, 8], [0, 1], color=GREY, linewidth=0.6)
ax.set(
    xlabel="heads open, of 8",
    ylabel="time / all heads open",
    xlim=(0, 8.3),
    ylim=(0, 1.4),
    title="Closing a head saves its backward pass, removing it both",
)
ax.legend(frameon=False, loc="upper left", fontsize=8)
plt.show()

# %% [markdown]
# Removed heads cost nothing, so that line goes to zero; closed ones cost their forward pass, which is the grey line. In
# a model that has been pruned for good ([chapter 07](07_removing_heads.ipynb)) nothing of them remains to be computed.
#
# ## 7 · Traps
#
# **`0.0` is a float64.** Numba gives every variable one type, wide enough for all values assigned to it. With one
# careless literal, a float32 loop converts each number to float64 and back and has half as many lanes. Nothing fails;
# the result is even slightly better. The package's own `dot` begins with `x.dtype.type(0)`:


# %%
@numba.njit
def careless_dot(x, y):
    result = 0.0
    for d in range(x.size):
        result += x[d] * y[d]
    return result


@numba.njit
def careless_scale(x, out):
    for i in range(x.size):
        out[i] = x[i] * 0.1


@numba.njit
def careful_scale(x, out):
    for i in range(x.size):
        out[i] = x[i] * np.float32(0.1)


x, y = rng.standard_normal((2, 4096), np.float32)
attention.dot(x, y), careless_dot(x, y)
returned = {
    f.__name__: f.overloads[f.signatures[-1]].signature.return_type
    for f in (attention.dot, careless_dot)
}
print(returned)
assert returned["dot"] == numba.float32 and returned["careless_dot"] == numba.float64
seconds = alternate({f.__name__: partial(f, x, y) for f in (careless_scale, careful_scale)})
converted = {
    f.__name__: len(re.findall(r"cvtps2pd|cvtss2sd|fcvt", assembly(f)))
    for f in (careless_scale, careful_scale)
}
print(
    f"conversions in the code {converted}, time {seconds['careless_scale'] / seconds['careful_scale']:.1f} to 1"
)

# %% [markdown]
# The same happens with an `int64` (`float32 * int64` is float64 in Numba) and with `math.sqrt(Dh)` of an integer. Check with
# `f.signatures`, or look for `cvt` in the assembly.
#
# **Indices are not checked.** In Numba `x[i]` with `i` beyond the end reads, or *writes*, whatever is there: it may
# corrupt another array or crash the process. (That is why this page does not show it.) So arguments are checked on
# entry, in Python, once per call, and during development one compiles with checks:


# %%
def element(x, i):
    return x[i]


for attempt, refused in (
    (lambda: numba.njit(boundscheck=True)(element)(x, 4096), IndexError),
    (
        lambda: matmul.register_tile(np.ones((4, 5), np.float32), np.ones((6, 4), np.float32)),
        ValueError,
    ),
    (
        lambda: matmul_kernel.matmul(np.ones((4, 5), np.float32), np.ones((5, 4), np.float64)),
        ValueError,
    ),
):
    try:
        attempt()
    except refused as error:
        print(f"{refused.__name__}: {error}")
    else:
        raise AssertionError("that should have been refused")

# %% [markdown]
# The environment variable `NUMBA_BOUNDSCHECK=1` does so for a whole program, and the package's vector loads obey it,
# too.
#
# **Compiling takes time.** The first call of a function with new types compiles it. The rungs of this page are compiled in
# every process; the kernels of the package are kept on disk (`cache=True`) and read from there:

# %%
for name, t in first_call.items():
    print(f"{name:28} first call {t:6.2f} s")
print(
    f"the product's kernel: {sum(product.alone.stats.cache_hits.values())} signature(s) read from disk in this process"
)

# %% [markdown]
# `cache=True` has a trap of its own. Numba recompiles when the *file of the function* changes. But a kernel also
# contains compiled code that it calls from other files, and would keep the old version of that. Hence:

# %%
show_source(jit.forget_outdated)

# %% [markdown]
# And functions made inside functions, such as that of `tile_runner` above, mostly miss the cache, since each call makes
# a new one. Kernels belong at the top level of a module.
#
# ## 8 · Against PyTorch
#
# Two compiled libraries in one process compete for the cores. Numba's threads and PyTorch's may share one threading
# library, and the settings of one can slow the other down by up to a hundred times; such a comparison is worthless.
# `tinyprune bench` gives each library its own process, lets them take turns, checks that both computed the same, and
# first times the peer alone, to make sure that the comparison does not slow it down. Here is a short run, if PyTorch is
# installed:

# %%
start = time.perf_counter()
command = "-m tinyprune bench attention --peers torch --shapes tiny --rounds 3 --json"
if importlib.util.find_spec("torch"):
    try:
        done = subprocess.run(
            [sys.executable, *command.split()], capture_output=True, text=True, timeout=90
        )
        for row in json.loads(done.stdout) if done.returncode == 0 else ():
            ratio = row["ratio_to_subject"]
            ratio = "no ratio: the machine was busy" if ratio is None else f"{ratio:.1f}× the time"
            print(f"{row['subject']:20} {row['median_ms']:8.2f} ms   {ratio}")
        print(
            done.stderr[-400:]
            if done.returncode
            else f"({time.perf_counter() - start:.0f} s for the comparison)"
        )
    except subprocess.TimeoutExpired:
        print(
            "the machine is too busy for a fair comparison; what follows are the committed results"
        )
else:
    print("PyTorch is not installed here; what follows are the committed results")

# %% [markdown]
# **The full measurement** is committed in [`data/results/speed/`](../data/results/speed). Attention, forward and backward,
# all shapes:


# %%
def committed_records(name):
    return json.loads(results("speed", f"{name}.json").read_text())


def show(figure):
    figure.set_dpi(90)
    display(figure)


records = committed_records("attention")
machine = records[0]["machine"].split(" (as a peer")[0]
print(textwrap.fill(f"measured on {machine}", 78, break_on_hyphens=False))
show(plot_benchmark(records))

# %% [markdown]
# With relative positions PyTorch has no fused kernel: it goes through the matrix of scores, like our textbook, and pays
# the same price. The last two rows, `plain`, have no relative positions; there SDPA is PyTorch's own fused kernel,
# compiled C++, and the margin is smaller. Time and memory of attention alone as T grows:

# %%
records = [r for r in committed_records("memory") if r["sweep"] == "T"]
figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.8))
for ax, key, title in zip(
    axes,
    ("median_ms", "peak_mib"),
    ("ms against T: PyTorch grows with T²", "peak MiB against T: so does its memory"),
):
    for subject, colour, style in zip(
        ("tinyprune (numba)", "torch plain", "torch sdpa"), HEAD_COLOURS, ("o-", "s--", "^:")
    ):
        points = [(r["value"], r[key]) for r in records if r["subject"] == subject]
        ax.plot(*zip(*points), style, color=colour, label=subject, markersize=4)
    ax.set(xscale="log", yscale="log", title=title, xlabel="T")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.set_xticks([x for x, _ in points], [x for x, _ in points])
    ax.minorticks_off()
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# ### What is not reached
#
# What share of a training step's time would remain if it only computed products at the speed of BLAS? That share is the
# honest measure of everything above; the rest is softmax, LayerNorm, the optimizer, memory, and Python.

# %%
steps = committed_records("step")
names = list(dict.fromkeys(r["shape"] for r in steps))


def share(name, subject):
    """Return the speed of a step as a share of BLAS's speed in a large product on the same machine."""
    records = {r["subject"]: r for r in steps if r["shape"] == name}
    ours = records["tinyprune (numba)"]
    return records[subject]["gflops"] / (ours["gflops"] / ours["sgemm_share"])


figure, ax = plt.subplots(figsize=(7.5, 3.2))
place = np.arange(len(names))
for offset, subject, label, look in (
    (-0.27, "tinyprune (numba)", "tinyprune", {"color": BLUE}),
    (
        0,
        "torch plain",
        "PyTorch, plain",
        {"facecolor": "white", "edgecolor": GREY, "hatch": "////"},
    ),
    (0.27, "torch.compile (sdpa)", "PyTorch, torch.compile (SDPA)", {"color": GREY}),
):
    bars = ax.bar(
        place + offset,
        [100 * share(name, subject) for name in names],
        width=0.25,
        label=label,
        **look,
    )
    if subject.startswith("tinyprune"):
        ax.bar_label(bars, fmt="{:.0f}", padding=2)
ax.set(ylabel="% of BLAS's speed", ylim=(0, 115), title="A training step, committed results")
ax.set_xticks(place, [name.replace("relative", "rel.") for name in names])
ax.axhline(100, color=GREY, linewidth=0.8, linestyle=":")
ax.legend(frameon=False, ncols=3, fontsize=8, loc="upper left")
plt.show()
for name in names:
    print(f"{name:15} tinyprune {share(name, 'tinyprune (numba)'):.0%} of BLAS's speed")

# %% [markdown]
# At `tiny` it is about half. Its heads have 16 numbers, one vector: the tile of a weighted sum is then one vector wide,
# and the share of softmax in each key is four times that of a head of 64. Its products are small, and hundreds of calls
# from Python cost some microseconds each, which shows in a step of 23 ms. The [page on speed](../data/results/speed/README.md) has the
# table, and names the one shape of 54 for which our product is clearly slower than BLAS. On a processor whose BLAS is
# slower the shares are higher and the ratios to PyTorch smaller: the higher the share, the less is left to win.
#
# ## Questions
#
# 1. `loop order` and `compiled` move the same bytes between registers and first cache. Why is one some twenty times as fast?
#
# <details><summary>Answer</summary>
#
# Equation (1) is a bound, not a prediction. `compiled` waits: each addition needs the result of the one before, so
# about three cycles pass for two operations, and no vector can be used. In `loop order` neighbouring sums are
# independent: 16 in a vector, several vectors in flight. It is limited by bytes; `compiled` never gets that far.
#
# </details>
#
# 2. A processor has vectors of 8 float32 and 16 registers. What is the tallest tile two vectors wide, and does it have
#    enough sums?
#
# <details><summary>Answer</summary>
#
# By (5) $2R + 3 \le 16$: six rows, 12 sums. Eight have to be in flight, so yes. Loads per multiply-add:
# $\tfrac1{16}+\tfrac16 = 0.23$, against $\tfrac1{32}+\tfrac1{12}=0.11$ with AVX-512. `matmul.ROWS` has this value
# there.
#
# </details>
#
# 3. Online softmax rescales `o` whenever the maximum rises. With scores in random order, how often does that happen
#    among $n$ keys, taken one at a time?
#
# <details><summary>Answer</summary>
#
# Key number $j$ is the highest so far with probability $1/j$: $\sum_j 1/j \approx \ln n + 0.58$ times, about 6 among 256.
# That is why the test for it is worth its cost, and the rescaling hardly matters.
#
# </details>
#
# 4. Why do the position scores of a tile need scratch *before* the first key's score (they begin at number 1, scores at
#    number $R$)?
#
# <details><summary>Answer</summary>
#
# Row $t$ of the product begins at column $c=0$, which by (7) is key $j = t+1-R$: up to $R-1$ keys before the first. No
# query of the tile sees those, but the product is a full rectangle and writes them. From the second row on they fall
# after the last key of the row above, which is why rows are slightly longer than the number of keys.
#
# </details>
#
# 5. Somebody replaces `prange(workers)` over heads by `prange` over keys, to use more cores. What breaks?
#
# <details><summary>Answer</summary>
#
# All keys of a query add to the same sum and the same `o`: threads would write the same numbers at the same time. With
# a copy for each thread, added up at the end, the result would be right, but its bits would depend on the number of
# threads.
#
# </details>
#
# **Next:** [10 on a GPU](10_on_a_gpu.ipynb): the same two ladders on a machine with thousands of lanes, where the tile moves
# into shared memory. The rungs of this chapter are in [`kernels/ladder/`](../tinyprune/kernels/ladder), the kernels in
# [`kernels/cpu/`](../tinyprune/kernels/cpu), above all [`product.py`](../tinyprune/kernels/cpu/product.py),
# [`simd.py`](../tinyprune/kernels/cpu/simd.py) and [`attention_tiles.py`](../tinyprune/kernels/cpu/attention_tiles.py).
# `tinyprune bench ladder` measures both ladders again.

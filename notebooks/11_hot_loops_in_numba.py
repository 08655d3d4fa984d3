# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Hot loops in Numba
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/11_hot_loops_in_numba.ipynb)
# &nbsp; ← [10 does it work](10_does_it_work.ipynb) · [all chapters](README.md) · [11b attention in Numba](11b_attention_in_numba.ipynb) →
#
# *The first session of the workshop **Hot loops**, three sessions beside the course: 11,
# [11b](11b_attention_in_numba.ipynb), [11c](11c_on_a_gpu.ipynb). The course needs none of them. They show what makes its
# models train fast without a framework. 11b and 11c need attention ([chapter 03](03_attention_by_hand.ipynb)).*
#
# **After this chapter you can** say how fast a loop could run on your machine before you write it, climb from three
# nested loops to close to that speed, and show at every rung that the result is right.
#
# **You need** NumPy and loops, but no knowledge of processors. The words are in the [glossary](README.md#glossary).

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

# %% jupyter={"source_hidden": true}
# Imports.
import os

for name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(name, None)  # NumPy's BLAS at its best, whatever the environment says

# %matplotlib inline
import math
import re
import textwrap
from functools import partial
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numba
import numpy as np
from numba import prange

from tinyprune.kernels.machine import describe_machine
from tinyprune.kernels.cpu.matmul import matmul
from tinyprune.kernels.cpu.simd import REGISTERS, VECTOR_BYTES, lanes, load, store
from tinyprune.kernels.cpu.tiles import microkernel
from tinyprune.notebook import best, best_of_each, sliders, use_style, you_are_here
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION

use_style()
THREADS, LANES = numba.get_num_threads(), VECTOR_BYTES // 4  # float32 in a vector
print(textwrap.fill(describe_machine(THREADS, ("numba",)), 78))
print(
    f"a vector is {VECTOR_BYTES} bytes, that is {LANES} float32; a core has {REGISTERS} registers for vectors"
)

# %%
you_are_here("attention", "networks", "projection", "train")

# %% [markdown]
# A training step spends most of its time in matrix products. So this chapter makes one small program fast,
# `out = a · b`. (All speeds on this page are of the machine named above; yours will show others. Each speed is that of
# the fastest of several calls. A core of a shared machine is not always equally fast, so what is compared takes turns. No
# `assert` depends on a time.)
#
# ## 1 · What one core can do
#
# A core does two things: it *computes* with numbers that are in its registers, and it *moves* numbers between registers
# and memory. Either can limit a loop.
#
# ### Computing: registers, lanes, and waiting
#
# A **register** is a place for numbers inside the core, and arithmetic happens only there. A register holds a **vector**
# of numbers, and one instruction works on all of them at once (*SIMD*: single instruction, multiple data). The places in
# a vector are called **lanes**. The most useful instruction is the *fused multiply-add*, `z = x · y + z`, two operations
# in each lane:


# %% jupyter={"source_hidden": true}
# Three vectors x, y and z in rows of lanes: one multiply-add instruction works in all lanes.
figure, ax = plt.subplots(figsize=(6.5, 1.5))
for row, (label, colour) in enumerate((("x", GREY), ("y", BLUE), ("z", VERMILION))):
    for lane in range(LANES):
        box = plt.Rectangle((lane + 0.04, row + 0.1), 0.92, 0.8, color=colour, alpha=0.3, lw=0)
        ax.add_patch(box)
    ax.text(-0.2, row + 0.5, label, ha="right", va="center", family="monospace")
for lane in range(LANES):
    ax.text(lane + 0.5, -0.35, lane, ha="center", fontsize=8, color=GREY)
    ax.annotate(
        "", (lane + 0.5, 2.2), (lane + 0.5, 0.7), arrowprops={"arrowstyle": "->", "color": GREY}
    )
ax.set(xlim=(-1, LANES), ylim=(3, -0.8), title=f"one instruction: z = x · y + z in {LANES} lanes")
ax.axis("off")
plt.show()

# %% [markdown]
# A multiply-add takes about four clock cycles until its result can be used; this time is its *latency*. But a core does
# not wait for one instruction before it starts the next: most processors start two multiply-adds in every cycle. So a
# core is busy only if **eight independent multiply-adds** are under way at any time.
#
# With enough independent work, the speed is two operations × `LANES` × two instructions × clock rate. We measure it
# with multiply-adds on numbers that never leave the core:


# %% jupyter={"source_hidden": true}
# Measures the multiply-adds of one core: a tile (see rung 4) with all strides 0 reads the same bytes again and again.
ROWS = 12 if REGISTERS == 32 else 6  # of a tile that is two vectors wide
set_tile = microkernel(ROWS, 2, False)


@numba.njit
def same_bytes(a, b, c, a_row, a_k, b_k, K):
    set_tile(a, 0, a_row, a_k, b, 0, b_k, c, 0, 2 * LANES, K)


K = 100_000
a, b = np.ones(1, np.float32), np.ones(2 * LANES, np.float32)
c = np.empty(ROWS * 2 * LANES, np.float32)
multiply_adds = partial(same_bytes, a, b, c, 0, 0, 0, K)
multiply_adds()
assert (c == K).all()  # it did count them all
OPERATIONS = 2 * c.size * K  # of multiply_adds
PEAK = OPERATIONS / best(multiply_adds, turns=300) / 1e9
print(f"one core does {PEAK:.0f} GFLOP/s: 10⁹ operations on floating-point numbers per second")

# %% [markdown]
# ### Moving: caches and lines
#
# The registers hold as much as a page of text. Everything else is in memory, and one access to memory takes a few hundred
# cycles. Between them are **caches**, smaller and faster memories that keep what was used last:
#
# | | holds about |
# | --- | --- |
# | registers | 0.5 to 2 KiB |
# | first cache (L1) | 32 to 48 KiB for each core |
# | second cache (L2) | 0.5 to 2 MiB for each core |
# | third cache (L3) | some MiB to hundreds of MiB, shared by the cores |
# | memory | many GiB |
#
# The loop `y += x` does one addition and moves 12 bytes: two numbers in, one out. So its speed shows how fast bytes
# arrive, the *bandwidth*.
#
# **Before you look:** the two arrays grow from 4 KiB to 64 MiB in total. At which sizes will the speed change?


# %%
@numba.njit
def add_to(y, x, times):
    for _ in range(times):
        for i in range(x.size):
            y[i] += x[i]


# %% jupyter={"source_hidden": true}
# The speed of y += x against the size of the arrays: it falls where they outgrow a cache.
sizes = 2 ** np.arange(9, 24)  # float32 in each of the two arrays
bandwidth = []
for n in sizes:
    x, y = np.ones(n, np.float32), np.zeros(n, np.float32)
    times = max(1, 2**18 // n)
    add_to(y, x, times)
    assert (y == times).all()
    bandwidth.append(12 * n * times / best(add_to, y, x, times, turns=40 if n < 2**20 else 5) / 1e9)
FIRST_CACHE, MEMORY = max(bandwidth), bandwidth[-1]

figure, ax = plt.subplots(figsize=(7, 2.7))
ax.loglog(8 * sizes / 1024, bandwidth, color=BLUE, marker="o", markersize=4)
ax.set(
    xlabel="both arrays together, KiB (dotted: this machine's caches)",
    ylabel="GB/s, one thread",
    title="y += x: large arrays are slower",
)
ax.xaxis.set_major_formatter("{x:g}")
for size in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")):  # Linux says
    if (size.parent / "type").read_text().strip() != "Instruction":
        ax.axvline(int(size.read_text().strip()[:-1]), color=GREY, linestyle=":", linewidth=1)
speeds = [s for s in (5, 10, 20, 50, 100, 200, 500) if min(bandwidth) / 2 < s < max(bandwidth) * 2]
ax.set_yticks(speeds, speeds)
ax.minorticks_off()
plt.show()
print(f"first cache {FIRST_CACHE:.0f} GB/s, memory {MEMORY:.0f} GB/s")

# %% [markdown]
# The curve falls where the arrays outgrow a cache. The steps are not sharp, because the processor loads in advance what a
# regular loop will need next (*prefetching*).
#
# Numbers travel between the caches in **cache lines** of 64 bytes (128 on Apple's processors), that is 16 float32.
# Reading one number fetches its whole line.
#
# ### The roof
#
# If a loop does $W$ operations and moves $Q$ bytes, and the machine does at most $P$ operations and moves at most $b$
# bytes per second, then it takes at least
#
# $$ t \;\ge\; \max\!\Big(\frac WP, \frac Qb\Big) \qquad\Longrightarrow\qquad \frac Wt \;\le\; \min\big(P,\; b\, I\big),
# \qquad I = \frac WQ \tag{1} $$
#
# The number $I$, operations per byte, is the **arithmetic intensity** of the loop, and (1) is called the *roofline*
# (Williams, Waterman & Patterson 2009). A loop with small $I$ is limited by bytes, one with large $I$ by operations.
#
# The product of `a` (M, K) and `b` (K, N) takes $W = 2MNK$ operations. Each number has to be read or written at least
# once, so $Q \ge 4\,(MK+KN+MN)$ bytes of float32. For $n\times n$ matrices
#
# $$ I = \frac{2n^3}{12 n^2} = \frac n6 \tag{2} $$
#
# At $n=1024$ that is 171 operations per byte.
#
# **Before you look:** is a large matrix product limited by memory or by the multiply-adds?

# %%
n = 1024
print(f"memory allows {MEMORY * n / 6:.0f} GFLOP/s, the multiply-adds of one core allow {PEAK:.0f}")

# %% [markdown]
# Memory need not limit a large product: it *could* run at the speed of the multiply-adds. Three nested loops are far
# slower. Why?
#
# ## 2 · Six rungs
#
# We climb in six steps from the definition to a product that keeps all cores busy. All rungs take `a` (M, K) and `b`
# (K, N) and do the same $2MNK$ operations; what changes is how often each number travels from memory to a register.
#
# ### First: is a rung right?
#
# A float32 operation rounds by at most $\varepsilon = 2^{-24}$ of its result. An entry of `out` is a sum of $K$
# products. Each product is rounded once itself and again by every addition after it, at most $K$ times in all. So
# whatever the order of the sum, and up to terms in $\varepsilon^2$,
#
# $$ \big|\mathtt{out}_{ij} - \textstyle\sum_k a_{ik} b_{kj}\big| \;\le\; K\varepsilon \sum_k |a_{ik}|\,|b_{kj}| \tag{3} $$
#
# The reference is NumPy's product in float64.


# %%
def matrices(m, k, n):
    """Draw a, (m, k), and b, (k, n), float32."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((m, k), np.float32), rng.standard_normal((k, n), np.float32)


def check_product(multiply, m, k, n):
    """Check that every entry of multiply(a, b) is within the bound (3)."""
    a, b = matrices(m, k, n)  # (m, k)  (k, n)
    out = multiply(a, b)  # (m, n)
    assert out.shape == (m, n) and out.dtype == np.float32
    a, b = a.astype(np.float64), b.astype(np.float64)
    bound = k * 2.0**-24 * (np.abs(a) @ np.abs(b)) * (1 + 1e-4)  # (m, n)
    np.testing.assert_array_less(np.abs(out - a @ b), bound)


# %% [markdown]
# Each rung has to pass this check for 37 × 53 × 91, because fast rungs compute what whole tiles leave over separately.
# **Plant a bug:** this product forgets the rest, and multiples of the tile do not show it.


# %%
def forgets_the_rest(a, b):
    """Multiply whole tiles only."""
    m, n = len(a) // ROWS * ROWS, b.shape[1] // (2 * LANES) * 2 * LANES
    out = np.zeros((len(a), b.shape[1]), a.dtype)
    out[:m, :n] = a[:m] @ b[:, :n]
    return out


check_product(forgets_the_rest, 48, 64, 96)
try:
    check_product(forgets_the_rest, 37, 53, 91)
except AssertionError as error:
    print(next(line for line in str(error).splitlines() if "Mismatch" in line))
else:
    raise AssertionError("the planted bug was not found")


# %% jupyter={"source_hidden": true}
# Functions that check a rung, and measure it in turns with the multiply-adds of section 1.
def in_turns(works, turns=7):
    """Time works, name -> (function, operations), in turns with multiply_adds; return GFLOP/s.

    A speed is a share of the speed that multiply_adds has in these turns, times PEAK.
    """
    calls = {name: call for name, (call, _) in works.items()}
    seconds = best_of_each({"limit": multiply_adds} | calls, turns)
    limit = OPERATIONS / seconds["limit"]
    return {name: PEAK * work / seconds[name] / limit for name, (_, work) in works.items()}


def digits(x):
    """Write a number without decimals from ten on, below ten with two digits."""
    return f"{x:.0f}" if x >= 10 else f"{x:.2g}"


speed_of = {}  # rung -> GFLOP/s


def climb(name, multiply, shape, beside=None):
    """Check a rung, measure it, and print its speed; the products `beside` it, if any, take turns with it."""
    before, works = list(speed_of.values()), {}
    for product, function in ({name: multiply} | (beside or {})).items():
        check_product(function, 37, 53, 91)  # no tile size divides any of these
        check_product(function, 1, 1, 1)
        works[product] = partial(function, *matrices(*shape)), 2 * math.prod(shape)
    speed_of.update(in_turns(works))
    speed = speed_of[name]
    print(
        f"{name}: right, {digits(100 * speed / PEAK)} % of one core's limit, that is {digits(speed)} GFLOP/s"
        + (f", {digits(speed / before[-1])} times the rung before" if before else "")
    )


# %% [markdown]
# ### Rungs 1 and 2: the definition, in Python and compiled


# %% tags=["subject"]
def python_loops(a, b):
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    out = np.zeros((M, N), a.dtype)
    for i in range(M):
        for j in range(N):
            for k in range(K):
                out[i, j] += a[i, k] * b[k, j]
    return out


compiled_loops = numba.njit(python_loops)

# %% [markdown]
# Python makes an object of every number and looks up what `*` means for it: one round of the innermost loop takes some
# hundred nanoseconds. Compiled code knows the types. (`climb` times a rung in turns with the multiply-adds of section 1, so
# that a slow moment hits both. Their ratio is the rung's share of the limit. Each rung is measured once, and all pictures
# below show this number.)

# %%
climb("Python loops", python_loops, (48, 48, 48))
climb("compiled", compiled_loops, (256, 256, 256))

# %% [markdown]
# The compiled loop is still far from the limit. The order of the loops slows it down in two ways:
#
# - **The loop wastes cache lines.** Matrices are stored row by row. The innermost loop, over `k`, walks down a column of
#   `b`. Every step needs another line, and uses 4 of its 64 bytes.
# - **The loop waits for its own sum.** `out[i, j] += …` needs the result of the previous addition. Only one lane of the
#   register is used, and only one addition is under way at any time. (The compiler must not reorder the sum, because
#   another order would round differently.)
#
# An experiment shows the wasted lines: add 1 to each number of a large array, first to the numbers 0, `step`,
# 2 · `step`, …, then to 1, `step` + 1, and so on. Whatever the step, the additions are the same.
#
# **Before you look:** a line has 16 numbers. How often is it fetched at step 1, at step 2, at step 16, at step 64?


# %%
@numba.njit
def add_one(x, step):
    for first in range(step):
        for i in range(first, x.size, step):
            x[i] += 1


# %% jupyter={"source_hidden": true}
# Cache lines that a walk touches, four down a column and one along a row; the time of add_one rises with the step.
def draw_walk(ax, title, cells, colour):
    """Draw a corner of b, (4, 32), with its cache lines as boxes and the numbers that are read."""
    for row in range(4):
        for line in range(2):
            used = any(r == row and c // 16 == line for r, c in cells)
            colour_of_line = "#E8E8E8" if used else "white"
            box = (16 * line + 0.1, row + 0.12), 15.8, 0.76
            ax.add_patch(plt.Rectangle(*box, facecolor=colour_of_line, edgecolor=GREY))
    for row, column in cells:
        ax.add_patch(plt.Rectangle((column + 0.1, row + 0.12), 0.8, 0.76, color=colour))
    ax.set(xlim=(-0.3, 32.3), ylim=(4.2, -0.2), title=title, xticks=[], ylabel="k")
    ax.set_yticks(np.arange(4) + 0.5, range(4))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


large = np.zeros(2**24, np.float32)
steps = 2 ** np.arange(8)
for step in steps:
    add_one(large, step)
assert (large == len(steps)).all()  # each step has added 1 to every number
walked = [best(add_one, large, step, turns=5) for step in steps]

figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.3), width_ratios=(1, 1, 1.3))
draw_walk(axes[0], "down a column: 4 numbers, 4 lines", [(k, 3) for k in range(4)], VERMILION)
draw_walk(axes[1], "along a row: 4 numbers, 1 line", [(0, j) for j in range(3, 7)], BLUE)
axes[2].plot(steps, np.array(walked) * 1e3, color=BLUE, marker="o")
axes[2].axvline(16, color=GREY, linestyle=":", linewidth=1)
axes[2].set(xscale="log", ylim=(0, None), ylabel="ms", title="x += 1 in steps, 64 MiB")
axes[2].set_xlabel("step (dotted: 16 numbers, one line)")
axes[2].set_xticks(steps, steps)
axes[2].minorticks_off()
plt.show()

# %% [markdown]
# At step 1 each line is fetched once, at step 2 twice, and at step 16 sixteen times, once for each of its numbers, since the
# array does not stay in a cache between two passes. While few lines are fetched, the time is that of the additions; then it
# follows the lines, to many times as long for the same additions. Beyond step 16 no line is fetched more often. Where
# the time still rises there, loading in advance is one possible reason, since it fetches lines that a larger step does not use;
# this experiment does not tell.
#
# ### Rung 3: another order of the loops


# %% tags=["subject"]
@numba.njit
def loop_order(a, b):
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    out = np.zeros((M, N), a.dtype)
    for i in range(M):
        for k in range(K):
            x = a[i, k]
            for j in range(N):
                out[i, j] += x * b[k, j]
    return out


# %% [markdown]
# Only the loops over `j` and `k` are exchanged. Now the innermost loop walks along rows, so whole lines are used. And
# its iterations are independent: `out[i, j]` and `out[i, j + 1]` are different sums, so the compiler may put `LANES` of
# them into one vector, and no sum waits. Each entry still adds its products in the order of `k`, so even the rounding
# is the same:

# %%
a, b = matrices(100, 100, 100)
np.testing.assert_array_equal(loop_order(a, b), compiled_loops(a, b))  # every bit
M = 1020  # rows of a in the rungs from here on: a multiple of ROWS
climb("loop order", loop_order, (M, 1024, 1024))

# %% [markdown]
# What limits it now? For each multiply-add the loop loads `b[k, j]` and `out[i, j]` and stores `out[i, j]`: 12 bytes
# for 2 operations, $I = \tfrac16$. By (1), even the first cache allows only one operation for every six bytes:

# %%
print(
    f"{FIRST_CACHE:.0f} GB/s / 6 = {FIRST_CACHE / 6:.0f} GFLOP/s; the multiply-adds could do {PEAK:.0f}"
)

# %% [markdown]
# ### Rung 4: a tile that stays in registers
#
# The remedy is to use every loaded number more than once.

# %% [markdown]
# ### Exercise 1 · Four rows at a time
#
# *●●○ · 15 minutes*
#
# Multiply `a` (M, K) by `b` (K, N) as rung 3 does, but for **four rows of `out` at a time**: load `b[k, j]` once and
# use it for all four rows. When M is not a multiple of four, compute the rows left over one by one. Return `out` (M, N),
# of the dtype of `a`. Use loops over single numbers, as in the rungs. The check counts how often you read a number of
# `b`, and has Numba compile your function.

# %% tags=["exercise", "raises-exception"]
import timeit

import numba
import numpy as np

from tinyprune.course.expectations import expect, expect_close


def four_rows(a, b):
    """Multiply a (M, K) by b (K, N), four rows at a time; returns (M, N) of a's dtype."""
    raise NotImplementedError("write four_rows: return out = a · b, with four rows in each round")


class Recorded:
    """A matrix that counts how many of its numbers are read."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.reads = x, x.shape, x.dtype, 0

    def __getitem__(self, at):
        self.reads += np.size(self.x[at])
        return self.x[at]


compiled_rows = numba.njit(four_rows)
for rows, depth, columns in ((8, 3, 5), (37, 53, 91), (3, 2, 1)):
    drawn = np.random.default_rng(0)
    x, y = drawn.standard_normal((rows, depth), "f"), drawn.standard_normal((depth, columns), "f")
    hint = "first the rows in fours, then those that are left over"
    given = {"fed": f"a {x.shape}, b {y.shape}, float32", "hint": hint}
    out = compiled_rows(x, y)
    expect_close(out, x @ y, "four_rows: out is wrong", absolute=1e-4, **given)
    given["hint"] = "np.zeros makes float64 unless it is told a dtype"
    is_float32 = out.dtype == np.float32
    expect(
        is_float32,
        "four_rows: the dtype is wrong",
        came=str(out.dtype),
        expected="float32",
        **given,
    )
y = Recorded(np.ones((3, 5), np.float32))
four_rows(np.ones((8, 3), np.float32), y)
given = {"fed": "a (8, 3), b (3, 5)", "hint": "which loop is b[k, j] read in?"}
read, wanted = f"each number of b {y.reads / 15:g} times", "twice, once for four rows"
expect(y.reads <= 2 * 15, "four_rows reads b too often", came=read, expected=wanted, **given)
x = np.ones((512, 512), np.float32)
reached = 2 * 512**3 / min(timeit.repeat(lambda: compiled_rows(x, x), number=1)) / 1e9
print(f"passed: right for three shapes, b is read once in four rows; {reached:.0f} GFLOP/s")

# %% [markdown]
# <details><summary>Hint</summary>
#
# The loop over `i` has steps of four and ends at `M // 4 * 4`. A second loop over `i` begins there. Load the four numbers
# of `a` before the loop over `j`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def four_rows(a, b):
#     M, K, N = a.shape[0], a.shape[1], b.shape[1]
#     out = np.zeros((M, N), a.dtype)
#     for i in range(0, M // 4 * 4, 4):
#         for k in range(K):
#             w, x, y, z = a[i, k], a[i + 1, k], a[i + 2, k], a[i + 3, k]
#             for j in range(N):
#                 value = b[k, j]
#                 out[i, j] += w * value
#                 out[i + 1, j] += x * value
#                 out[i + 2, j] += y * value
#                 out[i + 3, j] += z * value
#     for i in range(M // 4 * 4, M):
#         for k in range(K):
#             for j in range(N):
#                 out[i, j] += a[i, k] * b[k, j]
#     return out
# ```
#
# </details>
#
# Now each number of `b` is used four times, but the sums still move to the cache and back. So take a small **tile** of
# `out`, $R$ rows by $V$ vectors of columns, and keep all of its sums in registers until they are finished. In NumPy, the
# loop of one tile is


# %%
def tile_product(a, b):
    """Multiply a (R, K) by b (K, C), where C is V · LANES, one k at a time."""
    sums = np.zeros((len(a), b.shape[1]), a.dtype)  # R · V vectors: these are to stay in registers
    for k in range(a.shape[1]):
        row_of_b = b[k]  # load V vectors
        for i in range(len(a)):
            sums[i] += a[i, k] * row_of_b  # load one number; V multiply-adds
    return sums  # the only time that out is written


check_product(tile_product, 12, 53, 2 * LANES)

# %% [markdown]
# In one round of `k` the tile loads $R$ numbers of `a` and $C = V\cdot\mathtt{LANES}$ of `b`, and multiplies every number
# of `a` with every number of `b`:
#
# $$ I = \frac{2\,R\,C}{4\,(R+C)} \tag{4} $$
#
# A larger tile does more per byte, until the registers are full. The sums take $RV$ registers, the row of `b` takes $V$,
# and the number of `a` takes one:
#
# $$ RV + V + 1 \;\le\; \mathtt{REGISTERS} \tag{5} $$
#
# There is a lower limit, too: section 1 asked for eight independent multiply-adds, so $RV \ge 8$.
#
# **Before you look:** which tile two vectors wide is the tallest that fits into this machine's registers?


# %% jupyter={"source_hidden": true}
# One round of k of rung 4's tile: a column of a and a row of b are loaded, and all sums between them stay in registers.
def draw_tile(rows, vectors):
    """Show the sums of a tile, and in grey what it loads for one k; sums that find no register are red."""
    figure, ax = plt.subplots(figsize=(6, 2.6))
    columns = vectors * LANES
    place = [(i, v) for i in range(rows) for v in range(vectors)]
    room = REGISTERS - vectors - 1
    for number, (i, v) in enumerate(place):
        colour = BLUE if number < room else VERMILION
        ax.add_patch(plt.Rectangle((1.5 + 2 * v, i), 1.9, 0.85, color=colour, alpha=0.45, lw=0))
    for v in range(vectors):
        ax.add_patch(plt.Rectangle((1.5 + 2 * v, -1.4), 1.9, 0.85, color=GREY, alpha=0.6, lw=0))
    for i in range(rows):
        ax.add_patch(
            plt.Rectangle((0.4, i), 0.5, 0.85, color=GREY, alpha=0.6 if i == 0 else 0.25, lw=0)
        )
    ax.text(1.3, -0.95, "row k of b", ha="right", va="center", fontsize=8)
    ax.text(0.2, rows / 2, "column k of a", ha="right", va="center", fontsize=8)
    used, intensity = len(place) + vectors + 1, 2 * rows * columns / (4 * (rows + columns))
    lines = (
        f"{rows} × {vectors} sums",
        f"{used} of {REGISTERS} registers" + (" do not fit" if used > REGISTERS else ""),
        f"{intensity:.1f} operations per byte",
        f"waiting allows {min(1, len(place) / 8):.0%} of the peak",
    )
    ax.text(10.2, 0, "\n".join(lines), va="top", fontsize=9, linespacing=1.6)
    ax.set(xlim=(-2.5, 16), ylim=(max(16, rows) + 0.5, -2))
    ax.set_title("A larger tile does more per byte, until the registers are full")
    ax.axis("off")
    plt.show()


draw_tile(ROWS, 2)

# %%
# The same for other tiles: a taller or wider one does more per byte, and has to fit into the registers.
sliders(draw_tile, rows=[1, 2, 4, 6, 12, 16], vectors=[1, 2, 3])

# %% [markdown]
# Python cannot say "keep these sums in registers", and Numba's compiler (LLVM) often decides otherwise. So the package
# generates the loop of `tile_product` for a given $R$ and $V$ ([`tiles.py`](../tinyprune/kernels/cpu/tiles.py)).
# `microkernel(rows, vectors, accumulate)` returns a compiled function `tile(a, a0, a_row, a_k, b, b0, b_k, c, c0, c_row,
# K)`. The arrays are flat; the other arguments say where the tile begins in each array (`a0`, `b0`, `c0`) and how far
# apart consecutive rows (`a_row`, `c_row`) and consecutive `k` (`a_k`, `b_k`) are. With `accumulate` the sums begin with
# what is in `c`, otherwise with 0.
# Rung 4 uses `tile` like this; `add_rest` computes what whole tiles leave over, with rung 3's loops:


# %% tags=["subject"]
@numba.njit
def add_rest(a, b, out, first_row, first_column):
    """Compute out[i, j] from `first_row` on, and above it to the right of `first_column`."""
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    for i in range(M):
        begin = first_column if i < first_row else 0
        out[i, begin:] = 0
        for k in range(K):
            x = a[i, k]
            for j in range(begin, N):
                out[i, j] += x * b[k, j]


set_tile = microkernel(ROWS, 2, False)


@numba.njit
def register_tile(a, b):
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    width = 2 * lanes(b)
    out = np.empty((M, N), a.dtype)
    whole_rows, whole_columns = M // ROWS * ROWS, N // width * width
    # 1; were it a constant, the compiler would read ahead in a, and leave no registers for the sums
    step = a.strides[1] // a.itemsize
    for i in range(0, whole_rows, ROWS):
        for j in range(0, whole_columns, width):
            set_tile(a, i * K, K, step, b, j, N, out, i * N + j, N, K)
    add_rest(a, b, out, whole_rows, whole_columns)
    return out


# %% [markdown]
# In `a` the tile begins at `i * K` and its rows are `K` apart; in `b` it begins at column `j`, and the row for the next
# `k` is `N` further on; in `out` it begins at `i * N + j`, with rows `N` apart.

# %%
climb("register tile", register_tile, (M, 1024, 1024))

# %% [markdown]
# The next cell measures both limits, on data that fits into the first cache. The dashed line is the prediction from
# waiting, `min(1, sums / 8)` of the peak.


# %% jupyter={"source_hidden": true}
# Speed of tiles against their height: it rises until eight sums are under way, and falls once registers are full.
def tile_runner(rows):
    """Compile a function that runs a tile of `rows` × 2 vectors `times` times; a_k is the stride along k."""
    tile = microkernel(rows, 2, True)

    @numba.njit
    def run(a, b, c, a_k, K, times):
        for _ in range(times):
            tile(a, 0, K, a_k, b, 0, 2 * LANES, c, 0, 2 * LANES, K)

    return run


heights = [1, 2, 3, 4, 6, 8, 10, 12, 14, 16, 20]
runs, K = {}, 128
for rows in heights:
    run = tile_runner(rows)
    a, b = matrices(rows, K, 2 * LANES)
    c = np.zeros((rows, 2 * LANES), np.float32)
    run(a.ravel(), b.ravel(), c.ravel(), 1, K, 1)
    np.testing.assert_allclose(c, a @ b, rtol=0, atol=K * 1e-5)
    runs[rows] = partial(run, a.ravel(), b.ravel(), c.ravel(), 1, K, 200), 2 * c.size * K * 200
reached = list(in_turns(runs, turns=30).values())

fits = (REGISTERS - 3) // 2
predicted = [PEAK * min(1, 2 * rows / 8) for rows in heights]
figure, ax = plt.subplots(figsize=(7, 2.8))
ax.set_xticks(heights)
ax.plot(heights, predicted, color=GREY, linestyle="--", label="predicted from waiting")
ax.plot(heights, reached, color=BLUE, marker="o", label="measured")
ax.axvline(fits + 0.5, color=VERMILION, linestyle=":", label=f"registers full: at most {fits} rows")
ax.axvline(ROWS, color=GREY, linewidth=0.8, zorder=0, label=f"rows of rung 4: {ROWS}")
ax.set(xlabel="rows of the tile, two vectors wide", ylabel="GFLOP/s, one core", ylim=(0, None))
ax.set_title("Too few sums wait, too many do not fit")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Beyond the dotted line (5) is violated: some sums move to memory and back in every round (the registers *spill*). The
# twelve rows of rung 4 are about as fast as the fourteen that fit.
#
# ### Rung 5: packing
#
# The tile loop of rung 4 reads `C` numbers of one row of `b`, then `C` numbers of the next row, which lies a whole row
# further on. For large matrices this walk is slow, for two reasons. Each piece is on another *page* of memory (4096
# bytes), and translating a page's address takes time. And a cache has only a few places for any one line. A typical first
# cache has 64 *sets* with room for 8 to 12 lines each, and line $\ell=\lfloor\mathrm{address}/64\rfloor$ belongs to set
# $\ell \bmod 64$:


# %% jupyter={"source_hidden": true}
# Counts how many cache lines of a tile's panel belong to each set of the first cache.
def lines_in_sets(depth, width, row_bytes):
    """Count the cache lines of `depth` pieces of `width` float32 in each of 64 sets."""
    lines = {(k * row_bytes + 4 * j) // 64 for k in range(depth) for j in range(width)}
    return np.bincount([line % 64 for line in lines], minlength=64)


for name, row_bytes in (("rows 4096 bytes apart", 4096), ("side by side", 4 * 32)):
    lines = lines_in_sets(128, 32, row_bytes)
    print(
        f"{name}: {lines.sum()} lines in {np.count_nonzero(lines)} sets, {lines.max()} in the fullest"
    )

# %% [markdown]
# So a block of `b` is first **packed**: copied into contiguous *panels*, each as wide as a tile, in the order in which
# the tile reads it, `[panel][k][column]` (Goto & van de Geijn 2008). Then the block is used for all rows of `a`. A block
# has 256 × 256 numbers, so that it stays in the second cache.

# %% [markdown]
# ### Exercise 2 · Panels
#
# *●●○ · 10 minutes*
#
# Pack `b` (K, N) into panels of `width` columns: return an array of shape (number of panels, K, width), of the dtype of
# `b`, in which panel `p` holds the columns `p · width`, `p · width + 1`, … . If `width` does not divide N, fill the
# last panel up with zeros. NumPy or loops, as you like.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect, expect_close


def pack_panels(b, width):
    """Return the panels of b (K, N): (⌈N / width⌉, K, width), the last one filled up with zeros."""
    raise NotImplementedError("write pack_panels: return an array of (panels, K, width)")


for depth, columns, width in ((3, 8, 4), (53, 91, 32), (2, 5, 8)):
    x = np.random.default_rng(0).standard_normal((depth, columns), np.float32)
    panels, number = pack_panels(x, width), -(-columns // width)
    given = {
        "fed": f"b {x.shape}, float32, width {width}",
        "hint": "a panel that is not full counts",
    }
    shape, wanted = np.shape(panels), (number, depth, width)
    expect(shape == wanted, "pack_panels: the shape is wrong", came=shape, expected=wanted, **given)
    wanted = np.zeros((depth, number * width), np.float32)
    wanted[:, :columns] = x
    given["hint"] = "panel p begins at column p · width"
    title = "pack_panels: side by side, the panels must be b and then zeros"
    expect_close(np.concatenate(panels, 1), wanted, title, **given)
    given["hint"] = "np.zeros makes float64 unless it is told a dtype"
    dtype = str(panels.dtype)
    expect(
        dtype == "float32",
        "pack_panels: the dtype is wrong",
        came=dtype,
        expected="float32",
        **given,
    )
print("passed: pack_panels packs three shapes, and fills up the last panel with zeros")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Make an array of zeros of the whole shape, and copy the columns `b[:, first : first + width]` of each panel. The last
# piece may be narrower than `width`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def pack_panels(b, width):
#     K, N = b.shape
#     panels = np.zeros((-(-N // width), K, width), b.dtype)
#     for p in range(len(panels)):
#         piece = b[:, p * width : (p + 1) * width]
#         panels[p, :, : piece.shape[1]] = piece
#     return panels
# ```
#
# </details>
#
# The rung's own `pack` works on whole vectors: `load` and `store` move one, and `lanes(b)` is `LANES`.


# %% jupyter={"source_hidden": true}
# The loops of rung 5's `pack`, which copies a block of b into panels, a vector at a time.
@numba.njit
def pack(b, k, depth, j, columns, panels):
    """Copy b[k : k + depth, j : j + columns] into panels."""
    L, N = lanes(b), b.shape[1]
    for panel in range(0, columns, 2 * L):
        for row in range(depth):
            for half in range(0, 2 * L, L):
                vector = load(b, (k + row) * N + j + panel + half)
                store(panels, panel * depth + row * 2 * L + half, vector)


# %% tags=["subject"]
DEPTH, COLUMNS = 256, 256  # of a block
add_tile = microkernel(ROWS, 2, True)


@numba.njit
def packed_blocks(a, b):
    M, K, N = a.shape[0], a.shape[1], b.shape[1]
    width = 2 * lanes(b)
    out = np.empty((M, N), a.dtype)
    panels = np.empty(DEPTH * COLUMNS, a.dtype)
    whole_rows, whole_columns = M // ROWS * ROWS, N // width * width
    step = a.strides[1] // a.itemsize
    for j in range(0, whole_columns, COLUMNS):
        columns = min(COLUMNS, whole_columns - j)
        for k in range(0, K, DEPTH):
            depth = min(DEPTH, K - k)
            pack(b, k, depth, j, columns, panels)
            for i in range(0, whole_rows, ROWS):
                for c in range(0, columns, width):
                    to = i * N + j + c
                    if k == 0:
                        set_tile(a, i * K, K, step, panels, c * depth, width, out, to, N, depth)
                    else:
                        add_tile(a, i * K + k, K, step, panels, c * depth, width, out, to, N, depth)
    add_rest(a, b, out, whole_rows, whole_columns)
    return out


check_product(packed_blocks, 37, 600, 300)  # more than one block

# %% [markdown]
# Copying computes nothing. It costs one move for every $M$ multiply-adds, and must save more than that.

# %%
climb("packed blocks", packed_blocks, (M, 1024, 1024))

# %% [markdown]
# **Before you look:** does packing help more for a small `b` or for a large `b`?

# %% jupyter={"source_hidden": true}
# Speed of rungs 4 and 5 against the size of b: without packing it falls for a large b.
sizes = [128, 256, 512, 1024, 2048]
compared = {"register tile": [], "packed blocks": []}
for n in sizes:
    works = {
        name: (partial(rung, *matrices(M, n, n)), 2 * M * n * n)
        for name, rung in zip(compared, (register_tile, packed_blocks))
    }
    speeds = speed_of if n == 1024 else in_turns(works)  # 1024 is the climb's
    for name, reached in compared.items():
        reached.append(speeds[name])

figure, ax = plt.subplots(figsize=(7, 2.6))
for (name, speeds), colour, style in zip(compared.items(), (GREY, BLUE), ("o--", "s-")):
    ax.plot(sizes, speeds, style, color=colour, label=name)
ax.set(xscale="log", xlabel="rows and columns of b", ylabel="GFLOP/s, one core", ylim=(0, None))
ax.set_title(f"Packing keeps a large b fast ({M} rows of a)")
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# A small `b` stays in the near caches anyway, so its copy saves nothing, and costs its time. A large `b` does not: rung 4
# reads all of it from further away for every `ROWS` rows, and rung 5 reads a packed block from the core's second cache. How
# much of the gain is due to the third cache, to pages, and to sets, this picture does not tell.
#
# Why 1020 rows, and not 1024? `ROWS` divides 1020. Of 1024 rows four remain, and `add_rest` reads all of `b` for each.
#
# **Before you look:** four rows of 1024 are 0.4 % of the operations. Which share of the time do they take?

# %%
a, b = matrices(1024, 1024, 1024)
out = np.empty((1024, 1024), np.float32)
rest, whole = best_of_each(
    {"rest": partial(add_rest, a, b, out, M, 1024), "all": partial(packed_blocks, a, b)}
).values()
print(f"the last four rows take {rest / whole:.1%} of the time of rung 5")

# %% [markdown]
# So compare rungs with the same shape, because a remainder takes a larger share of a faster rung's time.

# %% [markdown]
# ### Rung 6: all cores
#
# `prange` says that the iterations of a loop may run at the same time, on several cores. The author of the loop has to
# make sure that this is safe. Here it is safe: each thread computes rows of `out` that no other thread writes. Each
# thread packs all of `b`, because packing twice is cheaper than waiting for another thread.


# %% tags=["subject"]
@numba.njit(parallel=True)
def all_cores(a, b):
    """Share the rows of out among the threads, whole tiles each."""
    tiles, parts = (len(a) + ROWS - 1) // ROWS, numba.get_num_threads()
    out = np.empty((len(a), b.shape[1]), a.dtype)
    for part in prange(parts):
        first, end = tiles * part // parts * ROWS, tiles * (part + 1) // parts * ROWS
        out[first:end] = packed_blocks(a[first:end], b)
    return out


# %% [markdown]
# Two other products take turns with it. The target is NumPy's, which calls a *BLAS*, a library of hand-tuned matrix
# routines. The package's kernel ([`product.py`](../tinyprune/kernels/cpu/product.py)) treats the edges in vectors, too.

# %%
beside = {"kernel of tinyprune": matmul, "BLAS of NumPy": np.matmul}
climb("all cores", all_cores, (M, 1024, 1024), beside)

# %% [markdown]
# How much can a second thread gain? That is measured as well: the multiply-adds of section 1, in one thread and in all of them
# at once.


# %%
@numba.njit(parallel=True)
def everywhere(sums, ones, K):
    """Let each thread do the multiply-adds of one core, into a row of sums of its own."""
    for thread in prange(len(sums)):
        same_bytes(ones, ones, sums[thread], 0, 0, 0, K)


ones, sums = np.ones(2 * LANES, np.float32), np.empty((THREADS, ROWS * 2 * LANES), np.float32)
seconds = [best(partial(everywhere, sums[:n], ones, 100_000), turns=100) for n in (1, THREADS)]
gain = THREADS * seconds[0] / seconds[1]
print(f"{THREADS} threads do {gain:.1f} times the multiply-adds of one")

# %% [markdown]
# If this number is near the number of threads, each has a core to itself. Rung 6 still gains less: each thread packs all of
# `b` and copies its rows into `out`, and all threads share the memory. (What each of these costs is not measured here.) If it is near 1, the threads share the multiply units of
# one core (two *hyperthreads*, which many rented machines count as two processors), or other programs keep the second core
# busy. Then rung 6 gains nothing.
#
# The kernels keep a promise: **the same bits for any number of threads**. Every entry is one sum, along `k`, in one
# thread.
#
# **Before you look:** the next cell adds a million random numbers with one thread and with two. Why could the results
# differ?


# %%
@numba.njit(parallel=True)
def divided_sum(x):
    result = np.float32(0)
    for i in prange(x.size):  # Numba gives each thread a part of the sum, and adds up the parts
        result += x[i]
    return result


a, b = matrices(500, 300, 700)
x = np.random.default_rng(0).standard_normal(2**20, np.float32)
products = []
for threads in (1, min(2, THREADS)):
    numba.set_num_threads(threads)
    products.append(all_cores(a, b))
    print(
        f"{threads} thread(s): sum {divided_sum(x):.5f}, an entry of the product {products[-1][1, 2]:.5f}"
    )
numba.set_num_threads(THREADS)
np.testing.assert_array_equal(*products)  # every bit

# %% [markdown]
# Additions are rounded, so their order matters. The kernels keep the order.
#
# ### The whole ladder
#
# These are the speeds of the climb. The two lowest rungs have multiplied smaller matrices (48³ and 256³).


# %% jupyter={"source_hidden": true}
# A bar for the speed of each rung, the lowest at the bottom, and how many times as fast it is as the rung below.
def plot_rungs(speeds, title, beside):
    """Draw the speeds of rungs; the last `beside` are none, and their bars stay open."""
    heights, rungs = list(speeds.values()), len(speeds) - beside
    figure, ax = plt.subplots(figsize=(7, 0.9 + 0.3 * len(heights)))
    bars = ax.barh(list(speeds), heights, height=0.7, color=BLUE)
    for bar in bars[rungs:]:
        bar.set(facecolor="white", edgecolor=GREY, hatch="////")
    faster = [f"{digits(high / low)}×" for low, high in pairwise(heights[:rungs])]
    ax.bar_label(bars, ["", *faster, *[""] * beside], padding=3)
    ax.set(xscale="log", xlim=(min(heights) / 2, max(heights) * 3), title=title)
    ax.set_xlabel("GFLOP per second; n×: n times as fast as the rung below")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.minorticks_off()
    plt.show()


highest = max(list(speed_of)[: -len(beside)], key=speed_of.get)
share = speed_of[highest] / speed_of["BLAS of NumPy"]
title = f"The fastest rung, {highest}, has {share:.0%} of the speed of BLAS ({M} × 1024 × 1024)"
plot_rungs(speed_of, title, len(beside))
for name in ("all cores", "kernel of tinyprune"):
    print(f"{name}: {speed_of[name] / speed_of['BLAS of NumPy']:.2f} times the speed of BLAS")

# %% [markdown]
# ## 3 · Under the roof
#
# The picture shows equation (1) for one core. The bytes are those between registers and first cache: 12 for 2 operations
# in the first loops, and for the tile those of (4).


# %% jupyter={"source_hidden": true}
# Four rungs under the roofs of one core: the two with tiles lie to the right, where the roof is higher.
figure, ax = plt.subplots(figsize=(7.5, 3.4))
x = np.geomspace(0.05, 40, 200)
for speed, name, style in ((FIRST_CACHE, "first cache", "-"), (MEMORY, "memory", "--")):
    ax.plot(x, np.minimum(PEAK, speed * x), color=GREY, linestyle=style, linewidth=1.2)
    ax.annotate(
        name,
        (0.1, speed * 0.1),
        (-6, 0),
        textcoords="offset points",
        color=GREY,
        fontsize=8,
        ha="right",
    )
ax.annotate(
    "multiply-adds of one core",
    (40, PEAK),
    (0, 4),
    textcoords="offset points",
    color=GREY,
    fontsize=8,
    ha="right",
)
tile_intensity = 2 * ROWS * 2 * LANES / (4 * (ROWS + 2 * LANES))
intensities = {
    "compiled": 1 / 6,
    "loop order": 1 / 6,
    "register tile": tile_intensity,
    "packed blocks": tile_intensity,
}
for (name, intensity), colour, marker in zip(intensities.items(), HEAD_COLOURS, "osD^"):
    ax.plot(intensity, speed_of[name], marker, color=colour, markersize=8, label=name)
ax.set(
    xscale="log", yscale="log", xlim=(0.02, 60), ylim=(0.5, 4 * PEAK), ylabel="GFLOP/s, one core"
)
ax.set(
    xlabel="operations per byte between registers and first cache",
    title="The tile moves to the right, where the roof is higher",
)
for axis in (ax.xaxis, ax.yaxis):
    axis.set_major_formatter("{x:g}")
ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# `compiled` and `loop order` have the same intensity. But `compiled` is limited by waiting and stays far below the slope.
# `loop order` is nearer to it, and no loop of its intensity gets above it. To go higher, a loop has to move *to the
# right*, to more operations per byte, as the tile does. `packed blocks` stands straight above `register tile`: it saves bytes
# between the caches behind the first one, which this axis does not count.
#
# ## 4 · Reading the machine code
#
# `inspect_asm()` shows what the compiler made of a loop. In x86 assembly the *last* operand is written:
#
# | | |
# | --- | --- |
# | `%xmm3` `%ymm3` `%zmm3` | register 3: its first 16, its first 32, or all 64 bytes |
# | `(%rax,%rbp,4)` | the memory at address rax + 4 · rbp |
# | `vmulss`, `vaddss` | one multiplication, one addition; with `ps` in place of `ss`, in all lanes |
# | `vfmadd231ps %zmm1, %zmm2, %zmm3` | zmm3 += zmm1 · zmm2, in all lanes |


# %% jupyter={"source_hidden": true}
# Reads machine code: counts arithmetic instructions, and finds the block with most of them.
ARITHMETIC = re.compile(
    r"^\s+v?(?:fn?m(?:add|sub)\w*|mul|add|sub)[ps][sd]\b.*%(xmm|ymm|zmm)", re.MULTILINE
)
ARM_VECTOR = re.compile(r"^\s+(?:fmla|fmul|fadd)\b.*(?:\.4s|\.2d)", re.MULTILINE)


def assembly(compiled):
    """Return the machine code of a function that Numba has compiled, for all signatures."""
    return "\n".join(compiled.inspect_asm().values())


def count(text):
    """Count arithmetic instructions: scalar ones, those on whole vectors, and fused multiply-adds."""
    lines = [match.group() for match in ARITHMETIC.finditer(text)]
    packed = [line for line in lines if re.search(r"p[sd]\s", line)]
    return {
        "scalar": len(lines) - len(packed),
        "vector": len(packed) + len(ARM_VECTOR.findall(text)),
        "fused": sum("fmadd" in line for line in lines) + text.count("fmla"),
    }


def show_block(name, text, only, limit):
    """Print the first lines of the block (from a label to a jump) with most arithmetic that contains `only`."""
    blocks = re.split(r"^(?=\S+:)", text, flags=re.MULTILINE)
    hot = max(blocks, key=lambda block: sum(only in m.group() for m in ARITHMETIC.finditer(block)))
    lines = [line.expandtabs(4) for line in hot.splitlines() if re.match(r"\t[^.]", line)]
    print(
        f"\n{name}: the loop with most of its arithmetic begins\n"
        + "\n".join(lines[:limit])
        + "\n    …"
    )


low = {"compiled": compiled_loops, "loop order": loop_order, "register tile": register_tile}
for name, rung in low.items():
    print(f"{name:14}", count(assembly(rung)))
if "ymm" in assembly(register_tile):
    show_block("compiled", assembly(compiled_loops), "", 8)
    show_block("register tile", assembly(register_tile), "ps", 8)

# %% [markdown]
# `compiled` has scalar instructions only, and every `vaddss` reads the register that the previous `vaddss` has written:
# the sum that waits for itself. `loop order` has vectors, but separate multiplications and additions: fusing them would
# change the rounding. The tile asks for fused multiply-adds explicitly.
#
# ## 5 · Two traps
#
# **`0.0` is a float64.** Numba gives every variable one type, wide enough for everything that is assigned to it. A
# literal `0.0` makes a float32 loop convert each number to float64, with half as many lanes. No error says so:


# %%
def dot(x, y, zero):
    result = zero
    for d in range(x.size):
        result += x[d] * y[d]
    return result


x, compiled_dot = np.ones(100, np.float32), numba.njit(dot)
for zero in (0.0, np.float32(0)):
    compiled_dot(x, x, zero)
returned = [o.signature.return_type for o in compiled_dot.overloads.values()]
print(returned)
assert returned == [numba.float64, numba.float32]

# %% [markdown]
# **Indices are not checked.** In Numba `x[i]` with `i` beyond the end reads, or *writes*, whatever is there. It may
# corrupt another array or crash the process. Compile with checks while you develop (`NUMBA_BOUNDSCHECK=1` does so for a
# whole program):


# %%
def element(x, i):
    return x[i]


try:
    numba.njit(boundscheck=True)(element)(x, x.size)
except IndexError as error:
    print(f"IndexError: {error}")
else:
    raise AssertionError("that should have been refused")

# %% [markdown]
# ## Recap
#
# - A loop is limited by operations, by bytes, or by waiting for its own results. The roofline (1) tells which of the
#   first two, and machine code shows the third.
# - All rungs have one idea, **use what you have loaded**: whole cache lines (order of the loops), a tile of sums in
#   registers, packed panels in the second cache.
# - Checks come first: a bound on rounding, odd shapes for forgotten remainders, the same bits for any number of threads.
# - Two speeds are comparable if both were measured with the same shape and in turns: with each other, or each with the
#   same loop, as here with the multiply-adds.

# %% [markdown]
# Assignment [A6](assignments/README.md), task a6_1, has you write a softmax in one compiled loop, against a speed
# target.
#
# ## Questions
#
# 1. `compiled` and `loop order` move the same bytes between registers and first cache. Why is `loop order` faster?
#
# <details><summary>Answer</summary>
#
# Equation (1) is a bound, not a prediction. `compiled` waits: each addition needs the result of the previous addition, and
# no vector can be used. It also fetches a cache line for every number of `b`. In `loop order` neighbouring sums are
# independent: `LANES` sums are in a vector, and several vectors are under way.
#
# </details>
#
# 2. A processor has vectors of 8 float32 and 16 registers. What is the tallest tile two vectors wide, and does it have
#    enough sums?
#
# <details><summary>Answer</summary>
#
# By (5) $2R + 3 \le 16$, so $R = 6$, which makes 12 sums, more than the eight that have to be under way. By (4) the tile
# does $2\cdot6\cdot16 / (4\cdot22) = 2.2$ operations per byte.
#
# </details>
#
# 3. Somebody gives each thread a part of the sum over `k` instead of rows of `out`. What breaks?
#
# <details><summary>Answer</summary>
#
# All threads add to the same entries, so they overwrite each other's sums. With a copy of `out` for each thread, the
# result is right up to rounding, but its bits depend on the number of threads.
#
# </details>
#
# **Next:** [11b attention in Numba](11b_attention_in_numba.ipynb) uses this tile for attention without its matrix of
# scores.

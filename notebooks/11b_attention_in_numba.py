# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11b · Attention in Numba
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/11b_attention_in_numba.ipynb)
# &nbsp; ← [11 hot loops in Numba](11_hot_loops_in_numba.ipynb) · [all chapters](README.md) · [11c on a GPU](11c_on_a_gpu.ipynb) →
#
# *The second session of the workshop **Hot loops**, three sessions beside the course:
# [11](11_hot_loops_in_numba.ipynb), 11b, [11c](11c_on_a_gpu.ipynb). The course needs none of them.*
#
# **After this chapter you can** compute attention forwards and backwards without ever storing its matrix of scores, one
# piece at a time, and say what makes the computation fast: online softmax, tiles, keys in lanes, threads.
#
# **You need** attention ([chapter 03](03_attention_by_hand.ipynb)), and from [chapter 11](11_hot_loops_in_numba.ipynb)
# what lanes, caches and a tile in registers are. The words are in the [glossary](README.md#glossary).

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
import textwrap
import tracemalloc
from functools import partial

import matplotlib.pyplot as plt
import numba
import numpy as np
from numba import prange
from numpy.lib.stride_tricks import as_strided

from tinyprune import ops
from tinyprune.kernels.machine import describe_machine
from tinyprune.bench.shapes import attention_arguments, attention_gflop, model_shape
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu import workspace
from tinyprune.kernels.cpu.simd import exp2_coefficients
from tinyprune.notebook import (
    best,
    best_of_each,
    show_source,
    sliders,
    use_style,
    you_are_here,
)
from tinyprune.plots import BLUE, GREY, VERMILION

use_style()
rng = np.random.default_rng(0)
cpu = get_backend("numba")
THREADS = numba.get_num_threads()

print(textwrap.fill(describe_machine(THREADS, ("numba",)), 78))

# %%
you_are_here("attention", "positions", "persistent", "train")

# %% [markdown]
# (All speeds on this page are of the machine named above; yours will show others. Each speed is that of the fastest of
# several calls. No `assert` depends on a time.)
#
# ## 1 · What the matrix of scores costs
#
# This is attention for one head and query $i$, with the relative positions of [chapter
# 04](04_positions_and_memory.ipynb), and with N persistent vectors inside the softmax, as in [the
# paper's heads](site/pages/the-papers-heads.md). The query's own key is number `now` $= i+M$:
#
# $$ s_j = \frac{(q_i+u)\cdot k_j + (q_i+w)\cdot r_{\mathtt{now}-j}}{\sqrt{\mathtt{Dh}}}\quad (j \le \mathtt{now},\; \mathtt{now}-j\le\mathtt{span}), $$
#
# $$ s_n = q_i\cdot pk_n, \qquad o_i = \sum_j a_j v_j + \sqrt{N} \sum_n a_n pv_n $$
#
# where $a$ is the softmax over all $s_j$ and $s_n$. (For heads that own hidden units, $N = 0$ in these formulas.) The
# textbook version, in NumPy, stores all scores of a head as a matrix, (T, S + N). Three products make the matrix, two
# use it, and between them at least eight operations pass over it: scale, add, mask, maximum, subtract, exponential, sum,
# divide.
#
# **Before you look:** NumPy's products are fast. Which part of the textbook's time do you expect them to take?

# %%
shape = model_shape("relative-d128", B=4)
config = shape.config
B, T, S, H, Dh, N = shape.B, config.T, config.M + config.T, config.H, config.Dh, config.N
arguments, _ = attention_arguments(shape)
span = config.span
operations = 2 * B * H * T * Dh * (3 * S + 2 * N)
assert math.isclose(operations, attention_gflop(config, B) / 3 * 1e9)  # the package adds backward


# %% jupyter={"source_hidden": true}
# Times the textbook, and NumPy's products of the same shapes alone.
def products_alone():
    """Compute what has the shapes of q·k, q·r, q·pk, a·v and a·pv, and nothing else."""
    for columns in (S, S, N):
        queries @ keys[..., :columns]
    for columns in (S, N):
        weights[..., :columns] @ keys[..., :columns].swapaxes(-1, -2)


queries = np.ones((B, H, T, Dh), np.float32)
keys = np.ones((B, H, Dh, max(S, N)), np.float32)
weights = np.ones((B, H, T, max(S, N)), np.float32)
textbook = best(partial(ops.attention_forward, **arguments, span=span))
print(f"B {B}, H {H}, Dh {Dh}, T {T}, S {S}, N {N}: {operations / 1e6:.0f} million operations")
print(f"textbook {1e3 * textbook:.1f} ms, its products alone {1e3 * best(products_alone):.1f} ms")

# %% [markdown]
# Most of the other time is spent on passes over the matrix, which do little with each number that they move. For one head
# of all $B$ texts, the operations per byte (the intensity of chapter 11) are
#
# $$ I_\text{textbook} \approx \frac{2\,\mathtt{Dh}\,(3S+2N)}{4\,(16 S+10N)} \qquad\qquad
# I_\text{one pass} = \frac{2\,B\,T\,\mathtt{Dh}\,(3S+2N)}{4\,\mathtt{Dh}\,\big(B\,(2T+2S)+S+2N\big)} \tag{1} $$
#
# The numerators are the products. On the left, the textbook reads or writes each context score about 16 times: two products
# write the two kinds of scores, their sum costs three, the mask two, maximum and sum one each, subtraction, exponential and
# division two each, and the last product reads the weights. For persistent scores sum and mask fall away, and the second
# product: about 10. On the right, there is no matrix: `q`, `k`, `v`, `r`, `pk` and `pv` are read once and
# `out` is written once.

# %%
matrix_bytes = 4 * (16 * S + 10 * N)  # for each query
one_pass_bytes = 4 * Dh * (B * (2 * T + 2 * S) + S + 2 * N)
print(f"textbook: {2 * Dh * (3 * S + 2 * N) / matrix_bytes:.1f} operations per byte")
print(f"one pass: {operations / H / one_pass_bytes:.1f} operations per byte")

# %% [markdown]
# The matrix also has to be kept. `tracemalloc` records the peak memory of NumPy's arrays, and the kernel's pool how much
# it took from the system.
#
# **Before you look:** T and M double together. How does the peak grow, for the textbook and for a kernel without the
# matrix?


# %% jupyter={"source_hidden": true}
# Peak memory against T, of textbook and kernel: the textbook's grows with T², the kernel's with T.
def peak_bytes(attend, arguments, span):
    """Return the peak memory of a call in addition to its arguments."""
    attend(**arguments, span=span)
    pool = workspace.POOL
    pool.clear()
    before = pool.bytes_used
    tracemalloc.start()
    out, _ = attend(**arguments, span=span)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # blocks that the pool maps by itself are not traced
    peak = max(peak, pool.bytes_used + pool.bytes_free - before)
    assert peak >= out.nbytes
    return peak


lengths = [64, 128, 256, 512, 1024]
peaks = {"textbook": [], "kernel": []}
for length in lengths:
    longer, _ = attention_arguments(model_shape("relative-d128", B=1, T=length, M=length))
    for name, attend in (("textbook", ops.attention_forward), ("kernel", cpu.attention_forward)):
        peaks[name].append(peak_bytes(attend, longer, length))
assert peaks["textbook"][-1] > 3 * peaks["textbook"][-2]  # T · S: about 4 times for every doubling
assert peaks["kernel"][-1] < 2.5 * peaks["kernel"][-2]  # T: about 2 times

figure, ax = plt.subplots(figsize=(6.5, 2.6))
for (name, peak), colour, style in zip(peaks.items(), (VERMILION, BLUE), ("s--", "o-")):
    ax.plot(lengths, np.array(peak) / 2**20, style, color=colour, label=name)
ax.set(xscale="log", yscale="log", xlabel="T (and M)", ylabel="peak MiB")
ax.set_title("Without the matrix, memory grows with T, not with T² (one text, 8 heads)")
ax.set_xticks(lengths, lengths)
ax.minorticks_off()
ax.yaxis.set_major_formatter("{x:g}")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The textbook's memory grows with T², the kernel's with T. (The *time* of both grows with T · S: every query still needs
# every key that it sees.) So we want to do without the matrix. Softmax seems to forbid it, since every weight needs the
# sum over all keys.
#
# ## 2 · Online softmax
#
# Take the keys in pieces. For those seen so far keep three things: the highest score $m$, the sum $\ell=\sum_j
# e^{s_j-m}$, and the unfinished output $o=\sum_j e^{s_j-m} v_j$. The output for these keys is $o/\ell$, whatever
# $m$ is, since $e^{-m}$ cancels. Then more keys come, and the highest score becomes $m'$. All sums so far used the old
# maximum. But
#
# $$ e^{s_j-m'} = e^{s_j-m}\; e^{m-m'} $$
#
# and the last factor is the same for all old keys, so it can be pulled out of the sums:
#
# $$ \ell' = e^{m-m'}\,\ell + \sum_{\text{new}} e^{s_j-m'} \qquad\qquad o' = e^{m-m'}\,o + \sum_{\text{new}} e^{s_j-m'}\,v_j \tag{2} $$
#
# (Milakov & Gimelshein 2018.) No exponent is ever above zero, so nothing overflows. Each weight is used as soon as it
# is computed, and then forgotten.

# %% [markdown]
# ### Exercise 1 · A step of the online softmax
#
# *●○○ · 10 minutes*
#
# For one query, take a chunk of n more keys into the state (m, total, o) by equation (2), and return the new state. The
# first call gets m = −∞, total = 0 and o = 0. After all chunks, the answer is o / total.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect_close


def take_chunk(s, values, m, total, o):
    """Take scores s (n,) and values (n, Dh) into m, total and o (Dh,); returns the new (m, total, o)."""
    raise NotImplementedError("write take_chunk: return the new m, total and o")


drawn = np.random.default_rng(0)
values = drawn.standard_normal((50, 4))
scores = drawn.standard_normal(50) * 3
for name, s in (
    ("falling", -np.sort(-scores)),
    ("rising", np.sort(scores)),
    ("huge", 500 * scores),
):
    m, total, o = -np.inf, 0.0, np.zeros(4)
    for j in range(0, 50, 8):
        m, total, o = take_chunk(s[j : j + 8], values[j : j + 8], m, total, o)
    whole = np.exp(s - s.max()) @ values / np.exp(s - s.max()).sum()
    given = {"fed": f"50 {name} scores, eight at a time", "hint": "the highest of m and s"}
    expect_close(m, s.max(), "take_chunk: m must be the highest score", **given)
    given["hint"] = "which maximum does each term of (2) use, and what is rescaled?"
    expect_close(o / total, whole, "take_chunk: o / total is wrong", absolute=1e-12, **given)
print("passed: take_chunk equals the whole softmax, for falling, rising and huge scores")

# %% [markdown]
# <details><summary>Hint</summary>
#
# First the new maximum, of m and of the new scores. Then `np.exp(m - new)`, which rescales both total and o; it is 0 at
# the first call.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def take_chunk(s, values, m, total, o):
#     new = max(m, s.max())
#     shrink = np.exp(m - new)
#     weights = np.exp(s - new)
#     return new, shrink * total + weights.sum(), shrink * o + weights @ values
# ```
#
# </details>
#
# The chapter computes with `take_keys`, the same step in loops: `highest` is $m$, `total` is $\ell$, and `factor` is 1 for
# context keys and $\sqrt N$ for persistent vectors.


# %% jupyter={"source_hidden": true}
# The loops of take_keys: a step of the online softmax, compiled.
@numba.njit
def take_keys(s, values, factor, highest, total, o):
    """Take more keys into an online softmax; return the new (highest, total), and change o in place."""
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


# %% [markdown]
# Pieces of any size give the same output as the whole softmax:

# %%
keys = 200
s = rng.standard_normal(keys) * 3 + np.linspace(0, 4, keys)  # (keys,)
values = rng.standard_normal((keys, Dh))  # (keys, Dh)


def in_pieces(s, values, piece, take=take_keys):
    """Take some keys at a time; return the output, and the state after each piece."""
    o, highest, total, kept = np.zeros(values.shape[1]), -math.inf, 0.0, []
    for first in range(0, len(s), piece):
        highest, total = take(s[first : first + piece], values[first:], 1.0, highest, total, o)
        kept.append((highest, total, o / total))
    return o / total, kept


whole = np.exp(s - s.max()) / np.exp(s - s.max()).sum() @ values  # (Dh,)
for piece in (1, 7, 64, keys):
    np.testing.assert_allclose(in_pieces(s, values, piece)[0], whole, rtol=0, atol=1e-14)

# %% [markdown]
# **Plant a bug:** forget to rescale `o`.
#
# **Before you look:** for which scores would this mistake go unnoticed?


# %%
def forgets_to_shrink(s, values, factor, highest, total, o):
    """Do the same as take_keys, but without rescaling o."""
    before = o.copy()
    new, total = take_keys(s, values, factor, highest, total, o)
    o += before * (1 - math.exp(highest - new))
    return new, total


falling = np.argsort(-s)  # the highest score first: nothing ever needs rescaling
unnoticed = in_pieces(s[falling], values[falling], 7, forgets_to_shrink)[0]
np.testing.assert_allclose(unnoticed, whole, rtol=0, atol=1e-14)
try:
    found = in_pieces(s, values, 7, forgets_to_shrink)[0]
    np.testing.assert_allclose(found, whole, rtol=0, atol=1e-14)
except AssertionError as error:
    print(next(line for line in str(error).splitlines() if "Mismatch" in line))
else:
    raise AssertionError("the planted bug was not found")

# %% [markdown]
# Here `take_keys` takes eight keys, one at a time, with one value each. Their scores are 1, 0.2, 0.6, 2, 1.2, 3, 0.5, 2.4.
#
# **Before you look:** at which keys are the sums rescaled?

# %% jupyter={"source_hidden": true}
# Eight scores, and the sums ℓ and o before and after key 4: its score is the highest so far, so the old parts shrink.
few = np.array([1.0, 0.2, 0.6, 2.0, 1.2, 3.0, 0.5, 2.4])  # scores
few_values = np.array([0.5, 1.5, 1.0, 0.4, 1.2, 0.6, 1.0, 0.8])
states = in_pieces(few, few_values[:, None], 1)[1]  # (highest, total, o / total) after each key


def draw_online(seen):
    """Show the scores, and the sums ℓ and o in parts, one for each key: before the last key, rescaled, and with it."""
    highest, total, output = states[seen - 1]
    before = states[seen - 2][0] if seen > 1 else few[0]
    figure, axes = plt.subplots(1, 3, figsize=(8.5, 2.5), width_ratios=(1.2, 1, 1))
    colours = [GREY if j >= seen else VERMILION if j == seen - 1 else BLUE for j in range(8)]
    for j, (score, colour) in enumerate(zip(few, colours), 1):
        axes[0].plot(j, score, "o", color=colour, markerfacecolor="white" if j > seen else colour)
    axes[0].step(range(1, seen + 1), [m for m, _, _ in states[:seen]], where="post", color=BLUE)
    said = "is its score" if seen == 1 else "rises" if highest > before else "stays"
    axes[0].set_title(f"key {seen}: m {said}")
    axes[0].set(xlabel="key", ylabel="score (line: m)", xticks=range(1, 9), ylim=(0, 3.4))
    shrink = math.exp(before - highest)
    for ax, name, factors, top in zip(axes[1:], "ℓo", (np.ones(8), few_values), (2.7, 2.1)):
        old, new = np.exp(few - before) * factors, np.exp(few - highest) * factors
        for x, parts in enumerate((old[: seen - 1], new[: seen - 1], new[:seen])):
            for j, (low, part) in enumerate(zip(np.cumsum(parts) - parts, parts), 1):
                style = {
                    "color": VERMILION if j == seen else BLUE,
                    "edgecolor": "white",
                    "alpha": 0.8,
                }
                ax.bar(x, part, bottom=low, width=0.8, **style)
        assert math.isclose(new[:seen].sum(), total * (output[0] if name == "o" else 1))
        ax.set_title(f"{name}: old parts × {shrink:.2f}" if seen > 1 else f"{name}: its first part")
        ax.set(xlim=(-0.6, 2.6), ylim=(0, top))
        ax.set_xticks(range(3), ["before", "rescaled", f"+ key {seen}"], fontsize=8)
    plt.show()


draw_online(4)

# %%
# The same for other keys: the sums shrink at keys 4 and 6, and at all others a part is added and nothing else happens.
sliders(draw_online, seen=(1, 8))

# %% [markdown]
# At keys 4 and 6 the line rises. There all parts of both sums shrink by the same factor before the new part is added. At all
# other keys the factor is 1. The output o / ℓ is not changed by the rescaling.
#
# Here is a whole head, one query after another, with chunks of 64 keys. Keys that a query does not see are skipped.


# %% tags=["subject"]
CHUNK = 64  # keys worked on at once


@numba.njit
def dot(x, y):
    result = x.dtype.type(0)
    for d in range(x.size):
        result += x[d] * y[d]
    return result


@numba.njit
def head_by_keys(q, k, v, r, u, w, pk, pv, span, out):
    """Compute one head: q and out (T, Dh), k, v and r (S, Dh), u and w (Dh,), pk and pv (N, Dh)."""
    real = q.dtype.type  # a bare 1.0 would be a float64
    (T, Dh), S, N = q.shape, len(k), len(pk)
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


def for_all_heads(one_head, parallel):
    """Compile a function that computes the heads of all texts; without `parallel`, `prange` is `range`."""

    @numba.njit(parallel=parallel)
    def attend(q, k, v, r, u, w, pk, pv, span):
        B, T, H, Dh = q.shape
        out = np.empty((B, T, H, Dh), q.dtype)
        for i in prange(B * H):
            b, h = i // H, i % H
            of_head = q[b, :, h], k[b, :, h], v[b, :, h], r[:, h], u[h], w[h], pk[h], pv[h]
            one_head(*of_head, span, out[b, :, h])
        return out

    return attend


online_softmax = for_all_heads(head_by_keys, parallel=False)

# %% [markdown]
# Compare it with the textbook in float64, at lengths that no tile or chunk divides. Every rung has to pass this check.

# %%
ragged, _ = attention_arguments(model_shape("relative-d128", B=2, T=67, M=41, N=37))
small = {name: x.astype(np.float64) for name, x in ragged.items()}
exact = ops.attention_forward(**small, span=41)[0]


def check(attend):
    """Compare a rung with the textbook, in both precisions."""
    for x, tolerance in ((small, 1e-12), (ragged, 3e-5)):
        np.testing.assert_allclose(attend(**x, span=41), exact, rtol=0, atol=tolerance)


check(online_softmax)

# %% [markdown]
# ## 3 · Tiles
#
# These loops load every key again for each query. So take a **tile** of queries and a chunk of keys at a time: their
# scores are a small matrix product, and so is the sum of values (FlashAttention, Dao et al. 2022). Here it is in NumPy,
# for one causal head without positions; the function also returns $\mathtt{lse} = m + \log \ell$ for the backward pass:


# %% tags=["subject"]
def tiled_head(q, k, v, tile=32, chunk=64):
    """Attend tile by tile: q (T, Dh), k and v (S, Dh); returns out (T, Dh) and lse (T,)."""
    T, S = len(q), len(k)
    out, lse = np.empty_like(q), np.empty(T)
    for t0 in range(0, T, tile):
        rows = q[t0 : t0 + tile] / math.sqrt(q.shape[1])
        now = np.arange(t0, t0 + len(rows))[:, None] + S - T  # (tile, 1), the queries' own keys
        m, total, o = np.full(now.shape, -np.inf), np.zeros(now.shape), np.zeros_like(rows)
        for j0 in range(0, now.max() + 1, chunk):  # no query of the tile sees a later key
            s = rows @ k[j0 : j0 + chunk].T  # (tile, chunk)
            s[j0 + np.arange(s.shape[1]) > now] = -np.inf
            highest = np.maximum(m, s.max(-1, keepdims=True))
            weights, shrink = np.exp(s - highest), np.exp(m - highest)
            total = shrink * total + weights.sum(-1, keepdims=True)
            o = shrink * o + weights @ v[j0 : j0 + chunk]
            m = highest
        out[t0 : t0 + tile] = o / total
        lse[t0 : t0 + tile] = (m + np.log(total))[:, 0]
    return out, lse


q = rng.standard_normal((67, Dh))
k, v = rng.standard_normal((2, 108, Dh))
answer = ops.attention_forward(q[None, :, None], k[None, :, None], v[None, :, None])[0][0, :, 0]
for tile, chunk in ((32, 64), (1, 1), (67, 108), (5, 9)):
    np.testing.assert_allclose(tiled_head(q, k, v, tile, chunk)[0], answer, rtol=0, atol=1e-14)

# %% [markdown]
# Only a (tile, chunk) piece of the matrix exists at any time, and it is small enough for the first cache. Pieces of which
# no query of the tile sees a key are never computed. But a piece that some query sees is computed whole, and for the
# other queries that is wasted work.
#
# **Before you look:** do large tiles or small tiles waste more?


# %% jupyter={"source_hidden": true}
# The matrix of scores with a band in blue, which queries see, and in orange what tiles of 32 queries compute in vain.
def draw_tiles(tile, span):
    """Show the scores that a query sees in blue, and in orange those that a tile computes in vain."""
    T, M, width = 128, 128, 32
    distance = np.arange(T)[:, None] + M - np.arange(T + M)
    seen = (distance >= 0) & (distance <= span)
    pieces = seen.reshape(T // tile, tile, -1, width).any((1, 3))
    computed = np.kron(pieces, np.ones((tile, width)))
    figure, ax = plt.subplots(figsize=(5.5, 2.5))
    ax.imshow(np.where(seen, 2, computed), cmap=COLOURS, vmin=0, vmax=2, interpolation="nearest")
    ax.set(xlabel="key", ylabel="query", yticks=[0, 64, 127], xticks=[0, 64, 128, 192, 255])
    ax.set_title(f"{computed.sum() / seen.sum():.2f} scores computed for each one seen")
    plt.show()


COLOURS = plt.matplotlib.colors.ListedColormap(["white", "#F2C9A8", BLUE])
draw_tiles(32, 128)

# %%
# The same for other tiles and spans: large tiles and short spans waste more.
sliders(draw_tiles, tile=[8, 16, 32, 64], span=[16, 64, 128])

# %% [markdown]
# Large tiles waste more, small tiles load every key more often. The kernel's tiles have 32 queries.
#
# ## 4 · Two tricks of the kernel
#
# ### Keys in lanes
#
# `dot(q, k_j)` is a sum that waits for itself, as in rung 2 of chapter 11, and the remedy is the same: let the
# innermost loop run over something whose iterations are independent, here **keys**. A head's keys are transposed once,
# so that number `d` of neighbouring keys is side by side in memory, and a vector holds the scores of as many keys as it
# has lanes. Positions are stored backwards, so that they run the same way as the keys:


# %% tags=["subject"]
@numba.njit
def add_products(x, columns, first, s):
    """Add Σ_d x[d] · columns[d, first + j] to s[j]."""
    for d in range(x.size):
        row = columns[d, first : first + s.size]
        for j in range(s.size):
            s[j] += x[d] * row[j]


@numba.njit
def head_by_lanes(q, k, v, r, u, w, pk, pv, span, out):
    """Compute one head as `head_by_keys` does, with the scores of a chunk of keys side by side."""
    real = q.dtype.type
    (T, Dh), S, N = q.shape, len(k), len(pk)
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


keys_in_lanes = for_all_heads(head_by_lanes, parallel=False)
check(keys_in_lanes)

# %% [markdown]
# So the scores of a tile of queries are the packed product of chapter 11: the rows are queries, and the panels hold keys.
# The kernel uses `microkernel` for the scores, for the weighted sums, and for all gradients.
#
# ### The relative shift for free
#
# Content scores $(q+u)\cdot k$ of a tile are a product. *Position* scores are not quite: query $t$ of the tile needs
# $(q_t+w)\cdot r$ for distance $t + M - j$ at key $j$, so each row is shifted against the one above. A product with the
# rows of $r$ in falling order gives them sorted by distance. With $R$ queries in the tile, its column $c$ belongs to
# distance $M+R-1-c$, so
#
# $$ \text{the score of }(t, j)\text{ is in column}\quad c = j + R-1-t \tag{3} $$
#
# No row has to be copied to its place if we choose well where the product *writes*. Scores are stored in an array that
# begins at number $R$ and has its rows `LS` numbers apart, so $(t,j)$ is at $R + t\cdot \mathtt{LS} + j$. Write the
# position scores from number 1 on, with rows $\mathtt{LS}+1$ apart. By (3) entry $(t, c)$ of that product is at number
#
# $$ 1 + t\,(\mathtt{LS}+1) + c \;=\; 1 + t\,\mathtt{LS} + t + j + R - 1 - t \;=\; R + t\,\mathtt{LS} + j $$
#
# The $t$ cancels: **each position score already lies where its key's score belongs**, and $(q+u)\cdot k$ is added on top.
# Here are four queries and eight keys. To make the shift visible we write each score's distance in its place, with the
# longer rows, and read it back with the shorter ones:

# %%
R, LS, n_keys, M_small = 4, 12, 8, 4
columns = n_keys + R - 1
scratch = np.full(1 + R * (LS + 1), np.nan)
written = as_strided(scratch[1:], (R, columns), (8 * (LS + 1), 8))  # rows LS + 1 apart
read = as_strided(scratch[R:], (R, n_keys), (8 * LS, 8))  # rows LS apart, the same memory
written[:] = M_small + R - 1 - np.arange(columns)  # the same in every row
t, j = np.arange(R)[:, None], np.arange(n_keys)
np.testing.assert_array_equal(read, t + M_small - j)  # the distance that each score needs


# %% jupyter={"source_hidden": true}
# The same memory twice: in longer rows all rows are alike, in shorter rows equal distances lie along diagonals.
def draw_memory(ax, stride, first, width, title):
    """Draw `scratch` as rows of `stride` numbers, with a box of `width` numbers from `first` on in each."""
    for i, distance in enumerate(scratch):
        row, column = divmod(i, stride)
        if row < R and not np.isnan(distance):
            at, seen = (column + 0.5, row + 0.5), distance >= 0
            text = {
                "ha": "center",
                "va": "center",
                "fontsize": 8,
                "color": "black" if seen else GREY,
            }
            ax.text(*at, f"{distance:.0f}", **text)
            shade = 0.1 + 0.4 * distance / (M_small + R) if seen else 0
            ax.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=BLUE, alpha=shade, lw=0))
    for row in range(R):
        ax.add_patch(plt.Rectangle((first, row), width, 1, fill=False, edgecolor=VERMILION))
    ax.set(xlim=(0, stride), ylim=(R, 0), title=title, xticks=[])
    ax.set_yticks(np.arange(R) + 0.5, [f"t = {t}" for t in range(R)])
    ax.tick_params(length=0)


figure, axes = plt.subplots(1, 2, figsize=(9.5, 1.9))
draw_memory(axes[0], LS + 1, 1, columns, f"written in rows of LS + 1 = {LS + 1}: column = distance")
draw_memory(axes[1], LS, R, n_keys, f"the same memory in rows of LS = {LS}: column = key")
plt.show()

# %% [markdown]
# On the left all rows are alike, as a plain product writes them. On the right are the same bytes, with equal distances
# along the diagonals. Grey numbers are negative: keys that this query does not see, which the mask removes.
# `microkernel` takes the distance between rows as an argument, so the longer rows cost nothing. (`by_key` in [chapter
# 04](04_positions_and_memory.ipynb) is the same identity, as a view of a whole matrix.) The backward pass reads the
# gradient of the scores through the longer rows, and gets it sorted by distance, as $dr$ needs it.
#
# ### The exponential
#
# The kernel computes the exponential of a whole vector at a time: $e^x = 2^{x\log_2 e}$, with $\log_2 e$ multiplied into
# the queries beforehand, and $2^x = 2^{n}\,2^f$, where the integer $n$ goes into the exponent's bits and $2^f$ is a
# polynomial:

# %%
show_source(exp2_coefficients)

# %% [markdown]
# ## 5 · Backward without the matrix
#
# Chapter 03's backward pass reads the weights $a$ again. Here no matrix is stored, so they are **computed again**, from
# the scores and one stored number per query:
#
# $$ a_j = e^{s_j - \mathtt{lse}}, \qquad \mathtt{lse} = \log \sum_j e^{s_j} $$
#
# The softmax's gradient $ds_j = a_j\,(da_j - \sum_{j'} a_{j'}\, da_{j'})$ with $da_j = \mathtt{dout}\cdot v_j$ contains
# a sum over all keys. It needs no extra pass over the keys:
#
# $$ \sum_{j} a_{j}\, da_{j} = \sum_{j} a_{j}\; \mathtt{dout}\cdot v_{j} = \mathtt{dout}\cdot\sum_{j} a_{j} v_{j}
# = \mathtt{dout}\cdot o \;=:\; \delta \tag{4} $$
#
# With `lse` and $\delta$ for each query, every piece of the matrix can be treated alone:
#
# $$ ds_j = a_j\,(\mathtt{dout}\cdot v_j - \delta), \qquad dq = \sum_j \frac{ds_j\, k_j}{\sqrt{\mathtt{Dh}}}, \qquad
# dk_j = \sum_i \frac{ds_{ij}\, q_i}{\sqrt{\mathtt{Dh}}}, \qquad dv_j = \sum_i a_{ij}\,\mathtt{dout}_i \tag{5} $$
#
# The scores are computed twice. That costs their products once more, and saves the memory and the passes.

# %% [markdown]
# ### Exercise 2 · Backward for one chunk of keys
#
# *●●● · 20 minutes*
#
# For T queries and a chunk of n keys, compute this chunk's weights again from `lse`, and then, by equation (5), its
# part of `dq` and its `dk` and `dv`. The check adds up `dq` over the chunks, joins `dk` and `dv`, and compares with
# measured derivatives. There is no mask, and the scores are $q\cdot k / \sqrt{\mathtt{Dh}}$.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect
from tinyprune.testing import check_gradients


def chunk_backward(q, k, v, dout, lse, delta):
    """q, dout (T, Dh), k, v (n, Dh), lse, delta (T,); returns dq (T, Dh), dk (n, Dh), dv (n, Dh)."""
    raise NotImplementedError("write chunk_backward: return this chunk's dq, dk and dv")


def forward(q, k, v):
    s = q @ k.T / np.sqrt(q.shape[1])
    lse = np.log(np.exp(s).sum(-1))
    out = np.exp(s - lse[:, None]) @ v
    return out, (q, k, v, out, lse)


def backward(dout, cache):
    q, k, v, out, lse = cache
    delta = (dout * out).sum(-1)  # (T,)
    chunks = [slice(j, j + 4) for j in range(0, len(k), 4)]
    dq, dk, dv = zip(*(chunk_backward(q, k[c], v[c], dout, lse, delta) for c in chunks))
    return sum(dq), np.concatenate(dk), np.concatenate(dv)


drawn = np.random.default_rng(0)
q, k, v = (drawn.standard_normal((n, 3)) for n in (5, 10, 10))
names = {"argument_names": ["q", "k", "v"]}
for r in check_gradients(forward, backward, q, k, v, **names):
    hint = "dv and dk sum over queries, dq over keys; the scores have a factor 1 / √Dh"
    given = {"fed": "q (5, 3), k and v (10, 3), in chunks of 4 keys", "hint": hint}
    got, measured = (f"{x:.8g} at {r.index}" for x in (r.got, r.expected))
    expect(
        r.passed, f"chunk_backward: d{r.argument} is wrong", came=got, expected=measured, **given
    )
print("passed: dq, dk and dv of chunk_backward equal measured derivatives")

# %% [markdown]
# <details><summary>Hint</summary>
#
# The weights are (T, n): `np.exp(scores - lse[:, None])`. The chunk's `dout · v` is a matrix of the same shape, and so
# is `ds`. The factor $1/\sqrt{\mathtt{Dh}}$ stands in the scores, in `dq` and in `dk`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def chunk_backward(q, k, v, dout, lse, delta):
#     root = 1 / np.sqrt(q.shape[1])
#     a = np.exp(q @ k.T * root - lse[:, None])
#     ds = a * (dout @ v.T - delta[:, None])
#     return ds @ k * root, ds.T @ q * root, a.T @ dout
# ```
#
# </details>
#
# The kernel does the same for whole tiles, with positions, persistent vectors and gates. Is it right? The next cell compares
# all nine gradients with the textbook's, in float64, at lengths that no tile divides, with some gates at 0:

# %%
gate = np.array([1, 0, 0.7, 0, 1, 1, 0, 0.2])
dout = rng.standard_normal(small["q"].shape)
_, textbook_cache = ops.attention_forward(**small, gate=gate, span=41)
_, kernel_cache = cpu.attention_forward(**small, gate=gate, span=41)
expected, got = (
    ops.attention_backward(dout, textbook_cache),
    cpu.attention_backward(dout, kernel_cache),
)
names = ("dq", "dk", "dv", "dr", "du", "dw", "dpk", "dpv", "dgate")
for name, x, y in zip(names, expected, got):
    np.testing.assert_allclose(y, x, rtol=0, atol=1e-12 * np.abs(x).max(), err_msg=name)

# %% [markdown]
# ## 6 · Threads, and heads that are skipped
#
# Heads and texts do not need each other's results, so the `prange` over both in `for_all_heads` may use all cores. Each
# sum is computed by one thread, in the same order as before, so not a bit changes:

# %%
threads = for_all_heads(head_by_lanes, parallel=True)
check(threads)
np.testing.assert_array_equal(threads(**ragged, span=41), keys_in_lanes(**ragged, span=41))

# %% [markdown]
# In the backward pass all texts share `r`, `u`, `w`, `pk` and `pv`, whose gradients are sums over texts. If threads added
# to the same array, they would overwrite each other's sums; with one array per *thread*, the bits would depend on the
# number of threads. So the kernel makes one array for each *group of texts*, and adds the groups in order at the end.
# The number of groups depends on B and H alone:

# %%
gradients = []
for number in (1, min(2, THREADS)):
    numba.set_num_threads(number)
    _, kernel_cache = cpu.attention_forward(**small, gate=gate, span=41)
    gradients.append(cpu.attention_backward(dout, kernel_cache))
numba.set_num_threads(THREADS)
for one, two in zip(*gradients):
    np.testing.assert_array_equal(one, two)  # every bit

# %% [markdown]
# **Closed heads.** A gate at exactly 0 multiplies its head's output by 0. Then everything inside the head has gradient 0;
# *only the gate* has another one: $\mathtt{dgate}_h = \sum \mathtt{dout}\cdot o^h$ ([chapter
# 03](03_attention_by_hand.ipynb)). This sum needs the head's output, so the forward pass computes closed heads too while
# their gates may still move ([chapter 06](06_training_with_gates.ipynb)). The backward pass computes only this sum:

# %%
closed = gate == 0
assert (got[0][:, :, closed] == 0).all(), "dq of closed heads"
assert (got[8][closed] != 0).all(), "dgate of closed heads"

# %% [markdown]
# **Before you look:** backward does about twice the work of forward. With 1 of 8 heads open, which share of the time
# remains if gates close the other seven, and which share if the seven are removed from the model?


# %% jupyter={"source_hidden": true}
# Time against open heads: closing the others saves their backward pass, removing them saves both passes.
def only(arguments, heads):
    """Return the arguments with the first `heads` heads."""
    first = ("u", "w", "pk", "pv")  # the head is their first axis
    kept = {
        name: x[:heads] if name in first else x[..., :heads, :] for name, x in arguments.items()
    }
    return {name: np.ascontiguousarray(x) for name, x in kept.items()}


def forward_and_backward(arguments, gate=None):
    out, cache = cpu.attention_forward(**arguments, gate=gate, span=span)
    cpu.attention_backward(out, cache)


whole = only(arguments, H)  # copied as the fewer heads are, so that both lie in memory alike
open_heads, times = [8, 6, 4, 2, 1], {"closed": [], "removed": [], "forward": []}
for heads in open_heads:
    gate = (np.arange(H) < heads).astype(np.float32)
    times["closed"].append(best(partial(forward_and_backward, whole, gate), turns=15))
    fewer = partial(forward_and_backward, only(arguments, heads), gate[:heads])
    times["removed"].append(best(fewer, turns=15))
    times["forward"].append(
        best(partial(cpu.attention_forward, **whole, gate=gate, span=span), turns=15)
    )

figure, ax = plt.subplots(figsize=(6.5, 2.8))
for kind, label, colour, style in (
    ("closed", "forward + backward, the others closed", BLUE, "o-"),
    ("removed", "forward + backward, the others removed", VERMILION, "s--"),
    ("forward", "forward alone, the others closed", GREY, "^:"),
):
    share = [seconds / times["closed"][0] for seconds in times[kind]]
    ax.plot(open_heads, share, style, color=colour, label=label)
ax.set(xlabel="heads open, of 8", ylabel="time / all heads open", xlim=(0, 8.3), ylim=(0, 1.5))
ax.set_title("A closed head saves its backward pass, a removed head saves both")
ax.legend(frameon=False, loc="upper left", fontsize=8)
plt.show()
closed_share, removed_share = (
    times[kind][-1] / times["closed"][0] for kind in ("closed", "removed")
)
print(f"1 of 8 heads: {closed_share:.2f} if the others are closed, {removed_share:.2f} if removed")

# %% [markdown]
# A closed head saves its backward pass, a removed head ([chapter 07](07_removing_heads.ipynb)) saves both. If forward is a
# third of the work, one open head of eight costs $\frac13 + \frac23\cdot\frac18 = 0.42$ of all with the others closed, and
# $\frac18$ with the others removed.
#
# ## 7 · The ladder
#
# One rung is still missing: the formula in plain loops, *with* the matrix.


# %% tags=["subject"]
@numba.njit
def compiled_loops(q, k, v, r, u, w, pk, pv, span):
    B, T, H, Dh = q.shape
    S, N = k.shape[1], pk.shape[1]
    root, root_N = q.dtype.type(1 / math.sqrt(Dh)), q.dtype.type(math.sqrt(N))
    out = np.zeros((B, T, H, Dh), q.dtype)
    a = np.empty((T, S + N), q.dtype)
    for b in range(B):
        for h in range(H):
            for i in range(T):
                now = i + S - T
                content, position = q[b, i, h] + u[h], q[b, i, h] + w[h]
                for j in range(S):
                    a[i, j] = -math.inf
                    if 0 <= now - j <= span:
                        a[i, j] = (dot(content, k[b, j, h]) + dot(position, r[now - j, h])) * root
                for n in range(N):
                    a[i, S + n] = dot(q[b, i, h], pk[h, n])
            for i in range(T):
                a[i] = np.exp(a[i] - a[i].max())
                a[i] /= a[i].sum()
            for i in range(T):
                for j in range(S):
                    for d in range(Dh):
                        out[b, i, h, d] += a[i, j] * v[b, j, h, d]
                for n in range(N):
                    for d in range(Dh):
                        out[b, i, h, d] += a[i, S + n] * root_N * pv[h, n, d]
    return out


check(compiled_loops)

# %% [markdown]
# **Before you look:** is `compiled_loops` faster or slower than the textbook in NumPy?

# %% jupyter={"source_hidden": true}
# A bar for the speed of each rung, the slowest at the bottom, all timed in turns: the kernel's is the longest.
rungs = {
    "textbook (NumPy)": ops.attention_forward,
    "compiled loops": compiled_loops,
    "online softmax": online_softmax,
    "keys in lanes": keys_in_lanes,
    "threads": threads,
    "kernel of tinyprune": cpu.attention_forward,
}
check(lambda **x: cpu.attention_forward(**x)[0])
works = {name: partial(attend, **arguments, span=span) for name, attend in rungs.items()}
speeds = {name: operations / s / 1e9 for name, s in best_of_each(works, 5).items()}
speeds = dict(sorted(speeds.items(), key=lambda item: item[1]))  # the slowest first
figure, ax = plt.subplots(figsize=(6, 2.2))
bars = ax.barh(list(speeds), list(speeds.values()), color=BLUE)
ax.bar_label(bars, [f"{speed:.3g}" for speed in speeds.values()], padding=3)
ax.set(xlim=(0, 1.1 * max(speeds.values())), xlabel="GFLOP per second, forward")
textbook, kernel = speeds["textbook (NumPy)"], speeds["kernel of tinyprune"]
loops = max(speeds[name] for name in ("compiled loops", "online softmax", "keys in lanes"))
title = "Neither compiling nor lanes beat NumPy; the kernel's tiles do"
ax.set_title(title if loops < textbook < kernel else "The speed of each rung on this machine")
plt.show()
print(f"kernel: {kernel / textbook:.1f} times as fast as the textbook")

# %% [markdown]
# Plain compiled loops do not beat NumPy, whose products come from BLAS. And `online softmax` alone makes nothing
# faster: it needs no matrix, but its loops still wait for their own sums. It makes the rungs above it possible. Lanes
# make the loops about twice as fast, and threads bring them near NumPy's speed. Only the kernel is several times as fast. It
# adds the tiles of section 3, and multiplies them with the register tiles of chapter 11; no rung shows these two apart.
# (Operations are counted by the formula, with those of masked keys, although all rungs
# from `online softmax` on skip these.)
#
# `tinyprune bench` compares with PyTorch, in processes of their own: see the [page on
# speed](../data/results/speed/README.md). Where each query sees its M nearest keys, our kernel computes hardly more than
# that band, and PyTorch computes all T · (T + M) scores. So our time grows only in proportion to T there, because of the
# mask and not because of online softmax.
#
# ## Recap
#
# - Attention is slow because of its matrix of scores: many passes over T × S numbers, with little work for each.
# - Online softmax (2) avoids the matrix in the forward pass. `lse` and $\delta$ (4) avoid it in the backward pass, at the
#   price of computing the scores twice.
# - Without the matrix, the methods of the matrix product apply: tiles, lanes, registers, threads with a fixed order of
#   every sum.

# %% [markdown]
# Assignment [A6](assignments/README.md), task a6_2, has you write fused attention in Numba, against a speed target.
#
# ## Questions
#
# 1. Online softmax rescales `o` whenever the maximum rises. With scores in random order, how often does that happen
#    among $n$ keys, taken one at a time?
#
# <details><summary>Answer</summary>
#
# Key number $j$ is the highest so far with probability $1/j$: $\sum_j 1/j \approx \ln n + 0.58$ times, about 6 among
# 256. So the rescaling hardly costs time.
#
# </details>
#
# 2. Somebody replaces the `prange` over heads and texts by one over keys, to use more cores. What breaks, and how could
#    it be mended?
#
# <details><summary>Answer</summary>
#
# All keys of a query add to the same `total` and `o`, so threads would overwrite each other's sums. Instead each thread
# can keep a state $(m, \ell, o)$ of its own. Two states are joined by (2): rescale both to the larger $m$ and add them.
# The result is right up to rounding, but its bits depend on how the keys are divided.
#
# </details>
#
# 3. Why does the forward pass keep `lse` for each query, and not $m$ and $\ell$?
#
# <details><summary>Answer</summary>
#
# The weights are $a_j = e^{s_j-m}/\ell = e^{s_j - (m+\log\ell)}$. One number is enough, and backward needs no
# division.
#
# </details>
#
# **Next:** [11c on a GPU](11c_on_a_gpu.ipynb) climbs the same two ladders on a machine with thousands of lanes. The
# kernel of this chapter is in [`attention.py`](../tinyprune/kernels/cpu/attention.py).

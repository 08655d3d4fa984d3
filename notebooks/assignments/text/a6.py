# %% tools="a6_tools"
import time

from tinyprune.course import (
    AnswerError,
    answer,
    expect,
    expect_close,
    fetch,
    hold,
    prepare,
)

# One thread for Numba, as for NumPy. The simulator has to be switched on before Numba is imported;
# it has a thread for each of a GPU's, and 64 MB for each are set aside unless they share one arena.
prepare(
    preload=("numpy", "numba", "numba.cuda"),
    environment={"NUMBA_ENABLE_CUDASIM": "1", "NUMBA_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    seconds_per_call=30,
    seconds_in_all=240,
    memory_bytes=2 << 30,
)

WEIGHT = 1  # of a6_1's bias
EVERY = 1  # of a6_2: a query sees keys whose distance is a multiple of this
POWER = 1 / 2  # of Dh, which divides a6_2's scores


def numpy_softmax(x, bias, out):
    """NumPy's bias_softmax: fast code, but one pass over the array for each step."""
    np.add(x, np.float32(WEIGHT) * bias, out=out)
    out -= out.max(-1, keepdims=True)
    np.exp(out, out=out)
    out /= out.sum(-1, keepdims=True)


def out_of_sight(T, S, span):
    """Which keys a query does not see, (T, S)."""
    distance = np.arange(T)[:, None] + (S - T) - np.arange(S)
    return (distance < 0) | (distance > span) | (distance % EVERY > 0)


def numpy_attention(q, k, v, unseen):
    """NumPy's attention: the whole matrix of scores, one pass over it for each step. T must be a multiple of 16."""
    B, H, T, Dh = q.shape
    S = k.shape[2]
    # in pieces of 16 queries: products too small for BLAS to start threads, of which you have one
    rows = (q * np.float32(1 / Dh**POWER)).reshape(B, H, T // 16, 16, Dh)
    s = np.empty((B, H, T, S), np.float32)
    pieces = s.reshape(B, H, T // 16, 16, S)
    np.matmul(rows, k.swapaxes(-1, -2)[:, :, None], out=pieces)
    np.copyto(s, -np.inf, where=unseen)
    s -= s.max(-1, keepdims=True)
    np.exp(s, out=s)
    s /= s.sum(-1, keepdims=True)
    return np.matmul(pieces, v[:, :, None]).reshape(q.shape)


def exact_attention(q, k, v, span):
    """The formula of the task in float64."""
    s = q.astype(float) @ k.astype(float).swapaxes(-1, -2) / q.shape[-1] ** POWER
    s[..., out_of_sight(q.shape[2], k.shape[2], span)] = -np.inf
    weights = np.exp(s - s.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v.astype(float)


def product(A, B):
    """What the kernel of a6_3 computes."""
    return A @ B


def normal(rng, *shape):
    return rng.standard_normal(shape, np.float32)


def shapes(**arrays):
    return ", ".join(
        f"{n} {x.shape}" if hasattr(x, "shape") else f"{n} {x}" for n, x in arrays.items()
    )


def expect_float32(came, fed):
    expect(
        getattr(came, "dtype", None) == np.float32,
        "float32 in, float32 out",
        fed=fed,
        came=str(getattr(came, "dtype", type(came).__name__)),
        expected="float32",
        hint="np.empty and np.zeros make float64 unless they are told a dtype",
    )


def timed(function, args):
    """Seconds, and the result."""
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


def scaled(x, factor):
    """An array of numbers times a factor; anything else as it is."""
    return x * np.float32(factor) if getattr(x, "dtype", None) == np.float32 else x


def expect_faster(name, args, numpy_version, numpy_args, target, fed, hint):
    """Fail unless the answer is right here, and `target` times as fast as NumPy.

    Both return their result, or write it to their last argument. They take turns, and their shortest
    times are compared: on a busy machine most calls wait for a processor, but not all. If it is close,
    the best of three attempts counts.
    """
    yours = answer(name, keep="all").in_place
    in_place = numpy_version(*numpy_args) is None
    yours(*map(hold, args))  # compiles, which is not timed
    rng, best = np.random.default_rng(), 0
    for _attempt in range(3):
        numpy_times, your_times = [], []
        for turn in range(21):
            # other numbers each time: a result that was kept is wrong
            factor = rng.uniform(0.5, 1)
            held = [hold(scaled(x, factor)) for x in args]
            numpy_inputs = [scaled(x, factor) for x in numpy_args]
            numpy_time, expected = timed(numpy_version, numpy_inputs)
            your_time, result = timed(yours, held)
            expect_close(
                fetch(held[-1] if in_place else result),
                numpy_inputs[-1] if in_place else expected,
                "what is timed must be right, too",
                fed=fed,
                hint="look at the tests of the values first",
                relative=1e-4,
                absolute=2e-5,
            )
            numpy_times.append(numpy_time)
            your_times.append(your_time)
            numpy_time, your_time = min(numpy_times), min(your_times)
            ratio = numpy_time / your_time
            if ratio < target / (4 if turn > 1 else 40):
                break  # more turns would not help
        if ratio > best:
            best = ratio
            came = f"yours {your_time * 1e3:.2f} ms, NumPy {numpy_time * 1e3:.2f} ms: {best:.2f} times as fast"
        if best >= target or ratio < target / 2:
            break
    expect(
        best >= target,
        f"{name} must be {target} times as fast as NumPy, both with one thread",
        fed=fed,
        came=came,
        expected=f"{target} times as fast, or faster",
        hint=hint,
    )


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

# %% given="a6_imports"
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


# %% solution="a6_1"
@njit
def bias_softmax(x, bias, out):
    """Write the softmax of x + bias over each row to out. Returns nothing.

    x, out (R, V) float32, bias (V,) float32, with R, V ≥ 1. Ignore what out holds before.
    Each row of out must sum to 1, or be all zeros where all of x + bias is −∞.
    """
    ### BEGIN SOLUTION
    R, V = x.shape
    for r in range(R):
        highest = np.float32(-np.inf)
        for j in range(V):
            highest = max(highest, x[r, j] + bias[j])
        if highest == -np.inf:
            out[r] = 0
            continue
        total = np.float32(0)
        for j in range(V):
            out[r, j] = math.exp(x[r, j] + bias[j] - highest)
            total += out[r, j]
        for j in range(V):
            out[r, j] /= total
    ### END SOLUTION


# %% test="a6_1_values" points=2
rng = np.random.default_rng(0)
softmax = answer("bias_softmax").in_place
out = np.full((2, 4), 7, np.float32)
softmax(np.full((2, 4), 3, np.float32), np.zeros(4, np.float32), out)
expect_close(
    out,
    np.full((2, 4), 0.25),
    "with equal z each of 4 entries must be 1/4",
    fed="x = 3 everywhere (2, 4), bias zeros (4,), out 7 everywhere (2, 4)",
    hint="is the result in out; does the sum run over one row, and begin anew for each?",
    relative=1e-6,
)
p = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
bias, out = normal(rng, 3), np.zeros((2, 3), np.float32)
softmax((np.log(p) - WEIGHT * bias).astype(np.float32), bias, out)
expect_close(
    out,
    p,
    "if x + bias is log p, the result must be p",
    fed={"x": np.log(p) - WEIGHT * bias, "p": p, "bias": bias},
    hint="is bias added, one number for each column?",
    relative=1e-5,
)

# %% test="a6_1_values_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
softmax = answer("bias_softmax").in_place
for R, V in ((1, 1), (7, 1), (1, 9), (5, 3), (3, 130), (67, 18)):
    x, bias = 3 * normal(rng, R, V), normal(rng, V)
    fed = shapes(x=x, bias=bias)
    before = x.copy(), bias.copy()
    z = x.astype(float) + WEIGHT * bias
    expected = np.exp(z - z.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    out = np.full((R, V), np.nan, np.float32)
    softmax(x, bias, out)
    expect_close(
        out,
        expected,
        "entries must be e^z of a row divided by their sum, for any number of rows and columns",
        fed=f"{fed}, out NaN everywhere",
        hint="which of R and V does each loop run over, and what starts anew with each row?",
        relative=1e-5,
        absolute=1e-7,
    )
    expect(
        np.array_equal(x, before[0]) and np.array_equal(bias, before[1]),
        "x and bias must not be modified",
        fed=fed,
        came="x or bias is not what it was",
        expected="both as they were",
        hint="the only array to write to is out",
    )
    for more_x, more_bias in ((300, 0), (-300, 0), (0, 300), (0, -300)):
        softmax(x + np.float32(more_x), bias + np.float32(more_bias), out)
        expect_close(
            out,
            expected,
            "adding the same number to all of x, or of bias, must change nothing",
            fed=f"{fed}, x + ({more_x}), bias + ({more_bias})",
            hint="what is subtracted before exp? It is the largest z of the row, even if all are negative",
            relative=1e-3,
            absolute=1e-5,
        )
ninf = -np.inf
x = np.array([[0, ninf, 0, 1], [ninf] * 4, [2, 2, 2, 2], [ninf, ninf, ninf, 5]], np.float32)
bias = np.array([0, 0, ninf, 0], np.float32)
third, e = 1 / 3, 1 / (1 + math.e)
out = np.full((4, 4), 7, np.float32)
softmax(x, bias, out)
expect_close(
    out,
    np.array([[e, 0, 0, 1 - e], [0, 0, 0, 0], [third, third, 0, third], [0, 0, 0, 1]]),
    "entries of −∞, in x or in bias, must become 0, and a row of −∞ alone zeros",
    fed={"x": x, "bias": bias},
    hint="−∞ − (−∞) is NaN; and does your fastmath promise that there is no infinity?",
    relative=1e-5,
    absolute=1e-7,
)
### END HIDDEN TESTS

# %% test="a6_1_speed" points=3
rng = np.random.default_rng(2)
x, bias = normal(rng, 200_000, 3), normal(rng, 3)
expect_faster(
    "bias_softmax",
    (x, bias, np.zeros_like(x)),
    numpy_softmax,
    (x, bias, np.zeros_like(x)),
    target=2,
    fed=shapes(x=x, bias=bias),
    hint="is it compiled, with loops over single numbers? A new array for each row, or a slice, costs more than the row",
)

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


# %% solution="a6_2"
@njit(parallel=True, fastmath=True)
def fused_attention(q, k, v, span):
    """Causal attention in one pass over the keys that a query sees, without a (T, S) matrix.

    q (B, H, T, Dh) float32, k and v (B, H, S, Dh) float32 with S ≥ T ≥ 1, span ≥ 0 an integer.
    Returns out (B, H, T, Dh) float32. You may change the decorator, and add functions above.
    """
    ### BEGIN SOLUTION
    B, H, T, Dh = q.shape
    S = k.shape[2]
    root = np.float32(1 / math.sqrt(Dh))
    out = np.empty((B, H, T, Dh), np.float32)
    for turn in prange(B * H * T):
        b, h, i = turn // (H * T), turn // T % H, turn % T
        last = i + S - T
        first = max(0, last - span)
        highest = np.float32(-1e30)
        total = np.float32(0)
        o = np.zeros(Dh, np.float32)
        for j in range(first, last + 1):
            s = np.float32(0)
            for d in range(Dh):
                s += q[b, h, i, d] * k[b, h, j, d]
            s *= root
            if s > highest:
                shrink = math.exp(highest - s)
                total *= shrink
                for d in range(Dh):
                    o[d] *= shrink
                highest = s
            weight = math.exp(s - highest)
            total += weight
            for d in range(Dh):
                o[d] += weight * v[b, h, j, d]
        for d in range(Dh):
            out[b, h, i, d] = o[d] / total
    return out
    ### END SOLUTION


# %% test="a6_2_values" points=3
rng = np.random.default_rng(3)
attention = answer("fused_attention")
q, k, v = normal(rng, 1, 2, 9, 3), normal(rng, 1, 2, 9, 3), normal(rng, 1, 2, 9, 3)
fed = shapes(q=q, k=k, v=v)
out = attention(q, k, v, 0)
expect_close(
    out,
    v,
    "a query that sees only itself must return its own v",
    fed=f"{fed}, span 0",
    hint="with span 0 there is one key, of weight 1: which j is it?",
    relative=1e-6,
)
expect_float32(out, fed)
seen = ~out_of_sight(9, 9, 100)
expect_close(
    attention(np.zeros_like(q), k, v, 100),
    seen / seen.sum(1, keepdims=True) @ v,
    "with q = 0 all keys have the same weight, and query i must return the mean of v over the keys it sees",
    fed=f"q zeros, {fed}, span 100",
    hint="no later keys, all earlier ones, and a span may be larger than S",
    relative=1e-5,
    absolute=1e-6,
)
expect_close(
    attention(q, k, v, 5),
    exact_attention(q, k, v, 5),
    "out must equal the formula",
    fed=f"{fed}, span 5",
    hint="s is divided by √Dh; a higher m shrinks both sums, ℓ and o, before the new key is added",
    relative=1e-5,
    absolute=2e-5,
)

# %% test="a6_2_values_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(4)
attention = answer("fused_attention").in_place
for B, H, T, S, Dh, span in (
    (2, 3, 5, 9, 4, 3),
    (3, 2, 4, 7, 1, 100),
    (1, 1, 1, 6, 5, 2),
    (2, 1, 1, 1, 2, 0),
    (1, 2, 70, 150, 6, 66),
    (2, 2, 33, 33, 17, 32),
):
    q, k, v = normal(rng, B, H, T, Dh), normal(rng, B, H, S, Dh), normal(rng, B, H, S, Dh)
    fed = f"{shapes(q=q, k=k, v=v)}, span {span}"
    before = q.copy(), k.copy(), v.copy()
    out = attention(q, k, v, span)
    expect_close(
        out,
        exact_attention(q, k, v, span),
        "out must equal the formula",
        fed=fed,
        hint="S may be larger than T: at which j does query i stand, and how far back does it see?",
        relative=1e-5,
        absolute=2e-5,
    )
    expect_float32(out, fed)
    expect(
        all(np.array_equal(x, old) for x, old in zip((q, k, v), before, strict=True)),
        "inputs must not be modified",
        fed=fed,
        came="q, k or v is not what it was",
        expected="all as they were",
        hint="write results to a new array",
    )
# quarters, and divided by a power of 2: scores are exact in float32 too
quarters = np.round(4 * normal(rng, 2, 2, 1, 40, 16)) / 4
v, root = normal(rng, 2, 1, 40, 16), 16**POWER
k = quarters[0].copy()
for title, q in (
    ("scores of some hundreds must not overflow", 128 * quarters[1]),
    ("scores that are all below −1000 must not vanish", np.full((2, 1, 40, 16), -128.0)),
):
    if (q < 0).all():
        k = np.abs(k) + 5
    q, k = q.astype(np.float32), k.astype(np.float32)
    expect_close(
        attention(q, k, v, 20),
        exact_attention(q, k, v, 20),
        title,
        fed=f"{shapes(q=q, k=k, v=v)}, span 20, scores from "
        f"{(q @ k.swapaxes(-1, -2)).min() / root:.0f} to {(q @ k.swapaxes(-1, -2)).max() / root:.0f}",
        hint="every exponent is a score minus the highest so far; with which m do you begin?",
        relative=1e-5,
        absolute=2e-5,
    )
### END HIDDEN TESTS

# %% test="a6_2_memory" points=2
rng = np.random.default_rng(5)
T, span = 26_000, 15
q, k, v = normal(rng, 1, 1, T, 4), normal(rng, 1, 1, T, 4), normal(rng, 1, 1, T, 4)
fed = f"{shapes(q=q, k=k, v=v)}, span {span}; 2 GiB of memory for all"
try:
    came, out = "", answer("fused_attention")(q, k, v, span)
except AnswerError as error:
    came, out = str(error), None
expect(
    out is not None,
    "memory must not grow with T · S",
    fed=fed,
    came=came,
    expected="a result: q, k, v and out together are about 1 MB",
    hint="where is an array of all scores, of all weights, or of what is in sight?",
)
expect_close(
    out[:, :, -100:],
    exact_attention(q[:, :, -100:], k[:, :, -200:], v[:, :, -200:], span),
    "the last 100 queries must be right in a long text",
    fed=fed,
    hint="does anything of one query remain in the next?",
    relative=1e-5,
    absolute=2e-5,
)

# %% test="a6_2_speed" points=4
rng = np.random.default_rng(6)
T, S, span = 3072, 3072, 63
q, k, v = normal(rng, 1, 1, T, 8), normal(rng, 1, 1, S, 8), normal(rng, 1, 1, S, 8)
expect_faster(
    "fused_attention",
    (q, k, v, span),
    numpy_attention,
    (q, k, v, out_of_sight(T, S, span)),
    target=4,
    fed=f"{shapes(q=q, k=k, v=v)}, span {span}",
    hint="is it compiled; does it make a matrix, arrays for each query, or look at keys that no query sees?",
)

# %% test="a6_2_speed_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(7)
T, S, span = 1024, 2048, 50
q, k, v = normal(rng, 2, 2, T, 8), normal(rng, 2, 2, S, 8), normal(rng, 2, 2, S, 8)
expect_faster(
    "fused_attention",
    (q, k, v, span),
    numpy_attention,
    (q, k, v, out_of_sight(T, S, span)),
    target=4,
    fed=f"{shapes(q=q, k=k, v=v)}, span {span}",
    hint="the same with more texts and heads, and with keys before the first query: where does the loop over keys begin?",
)
### END HIDDEN TESTS

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

# %% given="a6_simulator"
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


# %% solution="a6_3"
@cuda.jit
def tile_kernel(A, B, out):
    """What one thread does: its number of out = A B, from tiles in shared memory."""
    ### BEGIN SOLUTION
    tile_A = cuda.shared.array((TILE, TILE), float32)
    tile_B = cuda.shared.array((TILE, TILE), float32)
    M, K, N = A.shape[0], A.shape[1], B.shape[1]
    column, row = cuda.threadIdx.x, cuda.threadIdx.y
    j, i = cuda.grid(2)
    total = float32(0)
    for first in range(0, K, TILE):
        tile_A[row, column] = A[i, first + column] if i < M and first + column < K else 0
        tile_B[row, column] = B[first + row, j] if first + row < K and j < N else 0
        cuda.syncthreads()
        for k in range(TILE):
            total += tile_A[row, k] * tile_B[k, column]
        cuda.syncthreads()
    if i < M and j < N:
        out[i, j] = total
    ### END SOLUTION


def tiled_matmul(A, B):
    """A B on the GPU: launches tile_kernel on blocks of TILE × TILE threads.

    A (M, K) float32, B (K, N) float32, all sizes ≥ 1. Returns out (M, N) float32, a NumPy array.
    """
    ### BEGIN SOLUTION
    M, N = A.shape[0], B.shape[1]
    out = np.zeros((M, N), np.float32)
    grid = -(-N // TILE), -(-M // TILE)
    tile_kernel[grid, (TILE, TILE)](A, B, out)
    return out
    ### END SOLUTION


# %% test="a6_3_product" points=3
rng = np.random.default_rng(8)
multiply = answer("watched")
for M, K, N in ((4, 4, 4), (4, 8, 4), (8, 12, 8)):
    A, B = normal(rng, M, K), normal(rng, K, N)
    out, _ = multiply(A, B)
    expect_close(
        out,
        product(A, B),
        "out must be A B; here TILE divides all sizes",
        fed=shapes(A=A, B=B, TILE=4),
        hint="NaN: a thread read a tile before it was complete. Wrong with K > TILE only: is a tile "
        "overwritten while others still read it, does a thread's number go on from tile to tile?",
        relative=1e-5,
        absolute=1e-5,
    )
expect_float32(out, shapes(A=A, B=B))

# %% test="a6_3_product_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(9)
multiply = answer("watched").in_place
for M, K, N in ((1, 1, 1), (5, 3, 2), (4, 9, 13), (10, 5, 3), (3, 17, 6)):
    A, B = normal(rng, M, K), normal(rng, K, N)
    before = A.copy(), B.copy()
    out, _ = multiply(A, B)
    expect_close(
        out,
        product(A, B),
        "out must be A B for any sizes, also if TILE does not divide them",
        fed=shapes(A=A, B=B, TILE=4),
        hint="blocks along x: N / TILE rounded up, along y: M / TILE; what is in a tile where A or B has ended?",
        relative=1e-5,
        absolute=1e-5,
    )
    expect_float32(out, shapes(A=A, B=B))
    expect(
        np.array_equal(A, before[0]) and np.array_equal(B, before[1]),
        "inputs must not be modified",
        fed=shapes(A=A, B=B),
        came="A or B is not what it was",
        expected="both as they were",
        hint="write results to a new array",
    )
### END HIDDEN TESTS

# %% test="a6_3_shared" points=3
rng = np.random.default_rng(10)
A, B = normal(rng, 8, 8), normal(rng, 8, 12)
did = answer("watched")(A, B)[1]
fed = shapes(A=A, B=B, TILE=4)
# six blocks, two tiles each along K, 16 numbers of A and 16 of B for each
expect(
    8 * 8 + 8 * 12 <= did["read"] <= 6 * 2 * 32,
    "a kernel must read each number once for a block, not once for a thread",
    fed=fed,
    came=f"{did['read']} numbers read from global memory",
    expected="at most 6 blocks · 2 tiles along K · 2 · 16 = 384 (without tiles it would be 2·M·N·K = 1536)",
    hint="0: no kernel was launched. Too many: step 4 reads tiles in shared memory, and not A, B or out",
)

# %% test="a6_3_shared_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(11)
for M, K, N in ((6, 11, 9), (9, 6, 2)):
    A, B = normal(rng, M, K), normal(rng, K, N)
    did = answer("watched")(A, B)[1]
    fed = shapes(A=A, B=B, TILE=4)
    blocks, steps = -(-M // 4) * -(-N // 4), -(-K // 4)
    expect(
        M * K + K * N <= did["read"] <= blocks * steps * 32,
        "a kernel must read each number once for a block, not once for a thread",
        fed=fed,
        came=f"{did['read']} numbers read from global memory",
        expected=f"at most {blocks} blocks · {steps} tiles along K · 2 · 16 = {blocks * steps * 32}",
        hint="0: no kernel was launched. Too many: step 4 reads tiles in shared memory, and not A, B or out",
    )
    expect(
        did["written"] == M * N,
        "each number of out must be written once, by the kernel",
        fed=fed,
        came=f"{did['written']} numbers written to global memory",
        expected=f"M · N = {M * N}",
        hint="a thread keeps its number in a variable; does a thread beyond the edges of out write?",
    )
    expect(
        did["barriers"][0] == did["barriers"][1] > 0,
        "all threads must reach the same barriers",
        fed=fed,
        came="one thread reached {} barriers, another one {}".format(*did["barriers"]),
        expected="the same number for all, and not 0",
        hint="is there a syncthreads inside an if, or a return before it? Threads beyond the edges must reach it, too",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Hand in
#
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a6` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

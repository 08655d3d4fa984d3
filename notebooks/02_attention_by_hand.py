# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · Attention by hand, relative positions and memory
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/02_attention_by_hand.ipynb)
# &nbsp; ← [01 backprop by hand](01_backprop_by_hand.ipynb) · [all chapters](README.md) · [03 all-attention](03_all_attention.ipynb) →
#
# **After this chapter you can** write attention and its backward pass by hand, in two ways that agree; explain what a
# memory and relative positions add to it, and why they need each other; and build a test of it that really fails when
# it should. At the end you look inside the heads of a trained model.
#
# **You need** [chapter 01](01_backprop_by_hand.ipynb): the contract of `forward` and `backward`, and
# `assert_gradients`. It takes an hour to read and half a minute to run (a small model is trained on the way; if an
# earlier chapter has done that, a few seconds).

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
# %matplotlib inline
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from tinyprune import Transformer, assert_gradients, check_gradients, get_backend, ops
from tinyprune.data import Segments
from tinyprune.notebook import baseline_run, show_source, sliders, use_style
from tinyprune.ops.attention import by_key, visible_keys
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION

use_style()
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1 · One head: scores, weights, a weighted sum
#
# The model of chapter 01 read eight characters, and each of the eight positions had weights of its own. Whatever it
# learned about a quotation mark at position 3 it had to learn again for position 4. **Attention** lets the text itself
# decide what is worth reading. Every position asks a question, its **query**; every position has a label by which it
# can be found, its **key**, and something to say, its **value**. All three are linear maps of the position's features.
# For T queries, S keys and a head of width Dh:
#
# $$ s_{ij} = \frac{q_i\cdot k_j}{\sqrt{\mathtt{Dh}}} \qquad a_{ij} = \frac{e^{s_{ij}}}{\sum_{j'} e^{s_{ij'}}} \qquad
# o_i = \sum_j a_{ij}\,v_j $$
#
# with q (T, Dh), k and v (S, Dh), s and a (T, S), o (T, Dh).
#
# These are scores, a softmax over the keys, and an average of the values. (Vaswani et al. 2017.) Two remarks.
#
# *Why the root.* If the entries of $q_i$ and $k_j$ are independent with mean 0 and variance 1, every product has
# variance 1, and the sum of Dh of them has variance Dh. Scores of size $\sqrt{\mathtt{Dh}}$ would make the softmax
# almost a maximum, and, as section 2 will show, a saturated softmax passes hardly any gradient. Dividing brings the
# variance back to 1 for any Dh.
#
# *Why the maximum is subtracted.* Adding one number to all scores of a row multiplies numerator and denominator by the
# same factor: nothing changes. So the code subtracts the row's largest score first, and $e^s$ cannot overflow. Keep
# this invariance in mind; it will come back twice.

# %%
for Dh in (16, 64, 256):
    dots = (rng.standard_normal((20_000, Dh)) * rng.standard_normal((20_000, Dh))).sum(
        1
    )  # q·k, (20 000,)
    print(
        f"Dh {Dh:3}:  q·k has standard deviation {dots.std():5.2f}, divided by √Dh {dots.std() / np.sqrt(Dh):.3f}"
    )
    assert abs(dots.std() / np.sqrt(Dh) - 1) < 0.05

# %% [markdown]
# ## 2 · Its backward pass, twice
#
# **First way: step by step.** Write the softmax as an exponential, a sum and a division, and reverse every line by the
# two rules of chapter 01 (*what was summed is copied; what was used more than once is summed over*):
#
# | forward | backward, from the bottom up |
# | --- | --- |
# | $s = q\,k^\top/\sqrt{\mathtt{Dh}}$ | $\mathtt{dq} = \mathtt{ds}\;k/\sqrt{\mathtt{Dh}} \qquad \mathtt{dk} = \mathtt{ds}^\top q/\sqrt{\mathtt{Dh}}$ |
# | $e_{ij} = \exp s_{ij}$ | $\mathtt{ds}_{ij} = \mathtt{de}_{ij}\,e_{ij}$ |
# | $z_i = \sum_j e_{ij}$ | $\mathtt{de}_{ij} \mathrel{+}= \mathtt{dz}_i$ (*e* was used twice: here, and in the next line) |
# | $a_{ij} = e_{ij}/z_i$ | $\mathtt{de}_{ij} = \mathtt{da}_{ij}/z_i \qquad \mathtt{dz}_i = -\sum_j \mathtt{da}_{ij}\,e_{ij}/z_i^2$ |
# | $o = a\,v$ | $\mathtt{da} = \mathtt{do}\;v^\top \qquad \mathtt{dv} = a^\top\,\mathtt{do}$ |
#
# The first and the last line are products of matrices, as in *linear*. This is what an automatic differentiator would
# record, operation by operation, and it takes no cleverness. Below it is written out for one head that sees only its
# past. `bug` plants errors for section 7; ignore it for now.


# %%
def head_forward(q, k, v):
    """Compute one causal head, step by step. q (T, Dh), k and v (S, Dh) → o (T, Dh)."""
    visible = visible_keys(len(q), len(k), None)  # (T, S), see section 3
    s = q @ k.T / np.sqrt(q.shape[1])  # (T, S)
    e = np.exp(s - s.real.max(1, keepdims=True)) * visible  # (T, S)
    z = e.sum(1, keepdims=True)  # (T, 1)
    a = e / z  # (T, S)
    return a @ v, (q, k, v, e, z, a)


def head_backward(do, cache, bug=None):
    """Reverse the lines of `head_forward` from the last to the first."""
    q, k, v, e, z, a = cache
    root = 1 / np.sqrt(q.shape[1])
    # o = a v
    da = do @ v.T  # (T, S)
    dv = (a if bug == "dv: a not transposed" else a.T) @ do  # (S, Dh)
    # a = e / z
    de = da / z  # (T, S)
    dz = -(da * e).sum(0 if bug == "dz: summed over queries" else 1, keepdims=True) / z**2  # (T, 1)
    # z = sum of e
    de = de + dz
    # e = exp(s)
    ds = de * e  # (T, S)
    # s = q kᵀ / √Dh
    dq = ds @ k * (1 if bug == "dq: √Dh forgotten" else root)  # (T, Dh)
    dk = (ds if bug == "dk: ds not transposed" else ds.T) @ q * root  # (S, Dh)
    if bug == "dk: wrong sign":
        dk = -dk
    return dq, dk, dv


T, S, Dh = 3, 5, 4
q, k, v = rng.standard_normal((T, Dh)), rng.standard_normal((S, Dh)), rng.standard_normal((S, Dh))
assert_gradients(head_forward, head_backward, q, k, v, argument_names=["q", "k", "v"])
print("one head, step by step: all gradients agree with the complex step")

# %% [markdown]
# **Second way: one formula for the whole softmax.** Ask how one score $s_{im}$ changes one weight $a_{ij}$ of its row.
# In the numerator it changes $a_{im}$ alone, by the factor $a_{im}$; in the denominator it makes all of them smaller:
#
# $$ \frac{\partial a_{ij}}{\partial s_{im}} = a_{ij}\,\big(\mathbf 1[j=m] - a_{im}\big) $$
#
# By equation (1) of chapter 01, sum over everything that $s_{im}$ reaches:
#
# $$ \mathtt{ds}_{im} = \sum_j \mathtt{da}_{ij}\,a_{ij}\big(\mathbf 1[j=m]-a_{im}\big)
# \;=\; a_{im}\Big(\mathtt{da}_{im} - \sum_j a_{ij}\,\mathtt{da}_{ij}\Big) \tag{2} $$
#
# Read it aloud. $\mathtt{da}_{im}$ says how much the loss would gain or lose from more weight on key $m$. The sum is
# the average of this over all keys, weighted as the query weights them now. *Only what is better or worse than the
# average counts*, and it counts in proportion to the weight that the key already has. What one key gains the others
# lose, so every row of `ds` adds up to zero. And a saturated softmax, with all weights 0 but one, has `ds` = 0
# everywhere: it can no longer learn.

# %%
o, cache = head_forward(q, k, v)
do = rng.standard_normal(o.shape)  # (T, Dh), from whatever comes after
dq, dk, dv = head_backward(do, cache)
a = cache[-1]  # (T, S)
da = do @ v.T  # (T, S)
ds = a * (da - (da * a).sum(1, keepdims=True))  # (T, S), equation (2)

# the step-by-step graph and the closed form are the same
np.testing.assert_allclose(ds @ k / np.sqrt(Dh), dq, rtol=1e-12)
np.testing.assert_allclose(ds.T @ q / np.sqrt(Dh), dk, rtol=1e-12)
assert np.abs(ds.sum(1)).max() < 1e-15  # every row of ds adds up to zero

# and both are what the package computes: it takes (B, T, H, Dh), here one text and one head
out, package_cache = ops.attention_forward(q[None, :, None], k[None, :, None], v[None, :, None])
package = ops.attention_backward(do[None, :, None], package_cache)[:3]
np.testing.assert_allclose(out[0, :, 0], o, rtol=1e-12)
for theirs, ours in zip(package, (dq, dk, dv)):
    np.testing.assert_allclose(theirs[0, :, 0], ours, rtol=1e-12, atol=1e-15)

# the average in (2) needs no da at all: Σ_j a_ij (do_i · v_j) = do_i · Σ_j a_ij v_j = do_i · o_i
np.testing.assert_allclose((da * a).sum(1), (do * o).sum(1), rtol=1e-12)

# %% [markdown]
# The last line of that cell will be useful later: the average, which the kernels call *delta*, follows from two vectors
# of Dh numbers, before the row is read. The compiled kernels never store a whole row of weights, and still have it
# ([chapter 09](09_hot_loops_in_numba.ipynb)).
#
# The next cell draws the matrix $\partial a/\partial s$ of one query, as chapter 01 did for LayerNorm. Beside it is
# `ds` for the same `da` with two softmaxes: one that is undecided and one that is nearly certain.

# %%
scores = np.array([0.3, -0.8, 1.2, 0.1, -0.4, 0.6])
wanted = np.array([1.0, -0.5, -0.4, 0.6, 0.2, -0.9])  # da
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.7), gridspec_kw={"width_ratios": (1, 1.15, 1.15)})
for ax, sharpness, name in zip(axes[1:], (1, 6), ("undecided", "nearly certain")):
    row = np.exp(sharpness * scores)
    row /= row.sum()
    jacobian = np.diag(row) - np.outer(row, row)
    gradient = row * (wanted - (wanted * row).sum())
    np.testing.assert_allclose(jacobian @ wanted, gradient, atol=1e-15)
    assert np.abs(jacobian.sum(0)).max() < 1e-15
    if sharpness == 1:
        image = axes[0].imshow(jacobian, cmap="RdBu_r", vmin=-0.25, vmax=0.25)
    j = np.arange(len(scores))
    ax.bar(j - 0.2, row, width=0.4, color=BLUE, label="a")
    ax.bar(
        j + 0.2, gradient, width=0.4, color=VERMILION, hatch="///", edgecolor="white", label="ds"
    )
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set(title=f"{name}: Σ|ds| = {np.abs(gradient).sum():.2f}", xlabel="key j", ylim=(-0.4, 1.05))
axes[1].legend(frameon=False)
axes[0].set(title="∂a / ∂s of the undecided one", xlabel="score $s_m$", ylabel="weight $a_j$")
figure.colorbar(image, ax=axes[0], shrink=0.8)
plt.show()

# %% [markdown]
# ## 3 · Who may look where
#
# A language model guesses the next character, so a query must not see what comes after it. With M positions of memory before
# the T of the segment (section 4), key $j$ lies
#
# $$ \mathtt{dist}(i,j) = i + M - j $$
#
# positions before query $i$. **Causal** means $\mathtt{dist}\ge 0$. The **same-length** mask also requires
# $\mathtt{dist}\le M$: once the memory is full, every query sees exactly the M + 1 latest positions, itself included,
# wherever in its segment it is. A score that is not visible becomes $-\infty$, its weight $e^{-\infty}=0$, and by (2)
# its `ds` is 0 as well: no gradient leaks through a mask.

# %%
show_source(visible_keys, docstring=False)


# %%
def draw_mask(ax, T, M, mask):
    """Draw which keys each query sees."""
    visible = visible_keys(T, M + T, M if mask == "same-length" else None)  # (T, S)
    ax.imshow(
        visible,
        cmap="Blues",
        vmin=0,
        vmax=1.5,
        aspect="equal",
        extent=(-M - 0.5, T - 0.5, T - 0.5, -0.5),
    )
    for edge in range(-M, T):
        ax.axvline(edge - 0.5, color="white", linewidth=0.8)
    for edge in range(T):
        ax.axhline(edge - 0.5, color="white", linewidth=0.8)
    if M:
        ax.axvline(-0.5, color=VERMILION, linewidth=1.5, linestyle="--")
    counts = visible.sum(1)
    ax.set(
        title=f"{mask}, M = {M}\nkeys seen: {counts.min()} to {counts.max()}",
        xlabel="key (below 0: memory)",
    )
    return counts


figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), gridspec_kw={"width_ratios": (1, 1.9, 1.9)})
draw_mask(axes[0], 7, 0, "causal")
draw_mask(axes[1], 7, 7, "causal")
assert (draw_mask(axes[2], 7, 7, "same-length") == 7 + 1).all()
axes[0].set_ylabel("query")
plt.show()

# nobody sees the future: change the last key and value, and only the last query notices
q4, k4, v4 = (rng.standard_normal((1, 6, 2, 4)) for _ in range(3))  # (B, T, H, Dh), no memory
out, _ = ops.attention_forward(q4, k4, v4)
k4[:, -1], v4[:, -1] = 7, -7
assert np.array_equal(out[:, :-1], ops.attention_forward(q4, k4, v4)[0][:, :-1])


# %%
def draw(T, M, mask):
    _, ax = plt.subplots(figsize=(5.5, 2.8))
    draw_mask(ax, T, M, mask)
    ax.set_ylabel("query")
    plt.show()


sliders(draw, T=(1, 12), M=(0, 16), mask=["same-length", "causal"])

# %% [markdown]
# ## 4 · Memory
#
# A text of half a million characters does not fit into one step, so it is cut into **segments** of T. Then the first
# query of a segment sees only one character, itself, and the model has to predict from that. On average a query sees
# half a segment, and never beyond its beginning.
#
# Dai et al. (2019, *Transformer-XL*) keep the layer's inputs of the previous segment, `m`, as a **memory**. Queries
# come from the segment alone; keys and values come from memory and segment, $S = M + T$ of them:
#
# $$ q = \hat x\,W_q \qquad k = [\hat m;\hat x]\,W_k \qquad v = [\hat m;\hat x]\,W_v \qquad\qquad \hat x = \mathrm{LayerNorm}(x) $$
#
# What is kept is the layer's *input*; keys and values are computed from it with the current weights.
#
# And the backward pass? The memory was computed one step ago, and the caches of that step are gone. A gradient into `m`
# would have to continue into that step, and from there into the one before: to be exact, one would have to keep
# everything since the beginning of the text. So it is cut: `m` is treated as a constant. The weights do get their
# gradient from it, because *they* were used in this step, with `m` as the other factor of the product. It is the first
# of a few places where this project leaves out a gradient on purpose.

# %%
show_source(ops.context_forward, ops.context_backward, docstring=False)

# %% [markdown]
# With the same-length mask, memory makes the cut *invisible*. Whether a text is read in one piece or in small ones,
# each query finds the same M + 1 latest positions, itself included, in every layer, and computes the same. That can be
# checked to the last digits, on a trained model. (If there is none yet, the next cell trains one on the language
# reference of Python: 4 layers of 8 heads, D = 128, T = M = 64. It is the baseline of many later chapters. The very
# first call also compiles the kernels, for half a minute.)
#
# The attention of this model is exactly the one of this chapter. After attention, every layer has a feed-forward block,
# whose hidden units are divided among the heads. Section 10 of [chapter 03](03_all_attention.ipynb) explains these *head
# networks*; here you need only know that they work on each position by itself and look at no other.

# %%
run = baseline_run()
trained, text = run.load("train").model, run.text
T, M, L, H, Dh = (getattr(trained.config, name) for name in ("T", "M", "L", "H", "Dh"))

# the same weights in float64, with the operations of ops/ in place of the compiled ones
exact = Transformer(
    trained.config, {name: p.astype(np.float64) for name, p in trained.params.items()}
)
passage = text.test[None, :192].astype(np.int64)  # (1, 192)


def read_in_pieces(size, keep_memory=True):
    """Return the hidden states of the passage, (1, 192, D), read `size` characters at a time."""
    memory, states = None, []
    for start in range(0, passage.shape[1], size):
        h, new_memory, _ = exact.forward(passage[:, start : start + size], memory)
        memory = new_memory if keep_memory else None
        states.append(h)
    return np.concatenate(states, 1)


in_64s = read_in_pieces(64)
for size in (32, 19, 5):
    apart = np.abs(read_in_pieces(size) - in_64s).max()
    without = np.abs(read_in_pieces(size, keep_memory=False) - in_64s).max()
    print(
        f"pieces of {size:2}: with memory {apart:.0e} apart from pieces of 64, without {without:.1f}"
    )
    assert apart < 1e-10 < 1e-2 < without

# %% [markdown]
# What is it worth? Let the trained model read held-out text with its memory, and again with the memory removed at the
# beginning of every segment, and compare the loss position by position.


# %%
def bits_by_position(keep_memory, splits=("valid", "test"), B=16):
    """Return bits per character at each position of the segments, (T,), and the number of segments averaged."""
    total, count = np.zeros(T), 0
    for split in splits:
        segments, memory = Segments(getattr(text, split), B, T), None
        for step in range(segments.per_epoch):
            ids, targets, _ = segments.batch(step)  # (B, T) each
            h, new_memory, _ = trained.forward(ids, memory)
            if step:  # the first segment has no memory yet
                p = np.take_along_axis(trained.log_probabilities(h), targets[..., None], -1)[
                    ..., 0
                ]  # (B, T)
                total -= p.sum(0) / np.log(2)
                count += B
            memory = new_memory if keep_memory else None
    return total / count, count


with_memory, count = bits_by_position(True)
without_memory, _ = bits_by_position(False)

# for comparison: a table of which character follows which, counted in the training text
V = text.tokenizer.V
pairs = np.full((V, V), 0.1)  # a little of everything, so that nothing is impossible
np.add.at(pairs, (text.train[:-1], text.train[1:]), 1)
held_out = text.test
table = -np.log2(pairs[held_out[:-1], held_out[1:]] / pairs.sum(1)[held_out[:-1]]).mean()

figure, ax = plt.subplots(figsize=(8, 3.2))
ax.plot(with_memory, color=BLUE, label=f"with memory, mean {with_memory.mean():.2f}")
ax.plot(
    without_memory,
    color=VERMILION,
    linestyle="--",
    label=f"memory taken away, mean {without_memory.mean():.2f}",
)
for level, name in (
    (np.log2(V), "guessing among V characters"),
    (table, "table of character pairs"),
):
    ax.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
    ax.text(T - 1, level, name, ha="right", va="bottom", color=GREY)
ax.set(
    xlabel="position t in the segment",
    ylabel="bits per character",
    title="With memory a segment has no beginning",
)
ax.legend(frameon=False, loc="center", bbox_to_anchor=(0.5, 0.62))
plt.show()

early, late = (without_memory - with_memory)[:8].mean(), (without_memory - with_memory)[-8:].mean()
print(
    f"mean of {count} segments; memory is worth {early:.2f} bits in the first 8 positions, {late:.2f} in the last 8"
)
assert early > 0.5 and late < early / 2

# %% [markdown]
# With memory the curve has no slope: its ups and downs come from the characters that happen to be there, and both
# curves share them. Without memory the first characters of each segment are expensive, and the model needs dozens of
# positions to recover.
#
# To be fair, this model was *trained* with memory and hardly ever met a beginning; at t = 0, with a single character,
# it is far worse than a mere table of pairs. A model trained without memory would have learned to begin, and would lose
# less. But no training can supply the missing context.
#
# Memory also reaches further than M. M positions back, a layer reads what the layer below computed from the M before
# those: L layers reach up to L · M characters, here 4 · 64.

# %% [markdown]
# ## 5 · Relative positions
#
# So far a query cannot tell the adjacent key from one fifty characters away: shuffle the keys that it sees together
# with their values, and $o$ is the same. The first Transformer added a vector $p_i$ for each position to the
# embeddings. Expanded, the score has four terms,
#
# $$ (x_i + p_i)W_q\cdot(x_j+p_j)W_k = \underbrace{x_iW_q\cdot x_jW_k}_{\text{what meets what}} + \underbrace{x_iW_q\cdot p_jW_k}_{\text{what looks where}} +
# \underbrace{p_iW_q\cdot x_jW_k}_{\text{where looks for what}} + \underbrace{p_iW_q\cdot p_jW_k}_{\text{where looks where}} $$
#
# and with a memory they go wrong. Position 3 of the segment and position 3 of the memory would carry the same $p_3$,
# and the model could not know which of the two came first. What means the same everywhere is the **distance**. So Dai
# et al. (2019,  3.3) rewrite the four terms:
#
# - where $p_j$ stood in a key, put $r_\mathtt{dist} = R_\mathtt{dist}\,W_r$: a key that belongs to the distance. `R` has a
#   row for each distance; all layers share it, and here it is learned. $W_r$ is the layer's own.
# - where $p_i$ stood in a query, put a plain learned vector for each head, since every query has distance 0 from
#   itself: **u** in the content term, **w** in the position term.
#
# $$ s_{ij} = \frac{q_i\cdot k_j + q_i\cdot r_\mathtt{dist} + u\cdot k_j + w\cdot r_\mathtt{dist}}{\sqrt{\mathtt{Dh}}}
# = \frac{(q_i+u)\cdot k_j + (q_i+w)\cdot r_{\mathtt{dist}(i,j)}}{\sqrt{\mathtt{Dh}}} \tag{3} $$
#
# So $u\cdot k_j$ says which contents this head prefers for any query, and $w\cdot r_\mathtt{dist}$ which distances.
# Section 8 shows all four terms in a trained head.
#
# ### The shift
#
# The second product of (3) has a catch: $r$ is indexed by distance, the score by key, and the mapping between them
# differs for each query. Computed as a matrix product, $(q_i + w)\cdot r$ has one column for each *distance*. To be
# added to $q_i\cdot k_j$, it must have one for each *key*. Each row has to be shifted one place further to the right
# than the row above it.
#
# No number needs to be moved for that. Let column $c$ hold distance $S-1-c$, and give the matrix one extra column, so
# that its rows are $S+1$ long. Entry $(i, c)$ then lies at offset $i(S+1)+c$ in memory. The key is $j = i + M -
# \mathtt{dist} = c + i - (T-1)$, so the same offset is
#
# $$ i(S+1) + c \;=\; i\,S + (i + c) \;=\; i\,S + j + (T-1) : $$
#
# row $i$ and column $j$ of a matrix whose rows have $S$ entries and which begins $T-1$ entries later. It is another
# view of the same numbers; nothing is copied.

# %%
show_source(by_key, docstring=False)

# %%
T5, M5 = 4, 3
S5 = M5 + T5
P = np.full((1, 1, T5, S5 + 1), np.nan)
P[..., :S5] = np.arange(S5)[::-1]  # entry = its distance; the extra column stays empty
shifted = by_key(P)[0, 0]  # (T, S)
assert np.shares_memory(shifted, P)
visible = visible_keys(T5, S5, None)  # (T, S)
distance = np.arange(T5)[:, None] + M5 - np.arange(S5)  # (T, S), straight from the definition
assert np.array_equal(shifted[visible], distance[visible])

figure, axes = plt.subplots(1, 2, figsize=(9, 2.7))
for ax, matrix, seen in (
    (axes[0], P[0, 0], np.ones((T5, S5 + 1), bool)),
    (axes[1], shifted, visible),
):
    for (i, c), value in np.ndenumerate(matrix):
        known = seen[i, c] and not np.isnan(value)
        colour = plt.cm.viridis_r(0.05 + 0.6 * value / S5) if known else "white"
        style = {"facecolor": colour, "edgecolor": "#BBBBBB", "hatch": None if known else "////"}
        ax.add_patch(plt.Rectangle((c - 0.5, i - 0.5), 1, 1, **style))
        if known:
            ax.text(
                c,
                i,
                f"{value:.0f}",
                ha="center",
                va="center",
                color="white" if value > 3 else "black",
            )
    ax.set(
        xlim=(-0.5, matrix.shape[1] - 0.5), ylim=(T5 - 0.5, -0.5), yticks=range(T5), aspect="equal"
    )
axes[0].set(
    title="P: a column for each distance, and one too many", xlabel="column c", ylabel="query i"
)
axes[1].set(title="the same memory, rows of S: by key", xlabel="key j", xticks=range(S5))
axes[1].set_xticklabels([*(f"m{j}" for j in range(M5)), *(f"x{j}" for j in range(T5))])
plt.show()

# %% [markdown]
# The numbers are distances. On the right they count down to 0 towards the query's own position, one place further along
# in each row, as they should. The hatched corner holds entries from neighbouring rows: exactly the keys that lie in the
# future and are masked anyway. Backward uses the same view in reverse: `ds`, which is indexed by key, is *written*
# through it into a matrix of zeros, which is then indexed by distance.
#
# ## 6 · The whole operation
#
# **Several heads.** One head asks one question. H of them, each with its own Dh columns of $W_q, W_k, W_v, W_r$ and its
# own u and w, ask different ones. Their outputs, concatenated, are H · Dh numbers, and $W_o$ maps them back to D. A
# matrix product over a concatenation is a sum of products:
#
# $$ y = [o^0;\dots;o^{H-1}]\,W_o + b_o = \sum_h o^h\,W_o^{(h)} + b_o \tag{4} $$
#
# with $W_o^{(h)}$ for the rows $h\,\mathtt{Dh}\dots(h+1)\,\mathtt{Dh}-1$ of $W_o$.
#
# **A head is a summand.** The whole project rests on this: a summand can be weighted
# ([chapter 04](04_hard_concrete_gate.ipynb)), and left out ([chapter 07](07_removing_heads.ipynb)).

# %%
o = rng.standard_normal((2, 3, 4, 5))  # (B, T, H, Dh)
Wo = rng.standard_normal((4 * 5, 6))  # (H·Dh, D)
y, _ = ops.linear_forward(o.reshape(2, 3, 20), Wo)  # (B, T, D)
np.testing.assert_allclose(
    y, sum(o[:, :, h] @ Wo[5 * h : 5 * (h + 1)] for h in range(4)), atol=1e-13
)

# %% [markdown]
# Here is the package's forward pass: section 1 and equation (3), for all heads and texts of a batch at once. It
# contains three things for later: persistent vectors `pk`, `pv` ([chapter 03](03_all_attention.ipynb)), `gate`
# ([chapter 04](04_hard_concrete_gate.ipynb)) with its `scale` ([chapter 06](06_training_with_gates.ipynb)), and
# dropout, which sets a random fraction of the weights to zero in training.

# %%
show_source(ops.attention_forward, docstring=False)

# %% [markdown]
# The matrices are shifted, transposed and added in place. To see that this is (3) and nothing else, compute (3) again
# in the slowest and plainest way.


# %%
def slow_attention(q, k, v, r, u, w, span):
    """Compute equation (3), one score at a time."""
    B, T, H, Dh = q.shape
    S = k.shape[1]
    M = S - T
    out = np.zeros_like(q)
    for b, h, i in np.ndindex(B, H, T):
        s = {}
        for j in range(S):
            dist = i + M - j
            if dist >= 0 and (span is None or dist <= span):
                content = (q[b, i, h] + u[h]) @ k[b, j, h]
                position = (q[b, i, h] + w[h]) @ r[dist, h]
                s[j] = (content + position) / np.sqrt(Dh)
        total = sum(np.exp(score) for score in s.values())
        out[b, i, h] = sum(np.exp(score) / total * v[b, j, h] for j, score in s.items())
    return out


B6, T6, S6, H6, Dh6 = (
    2,
    3,
    7,
    4,
    5,
)  # all different, so that no two can be mistaken for each other; M = 4
shapes = {
    "q": (B6, T6, H6, Dh6),
    "k": (B6, S6, H6, Dh6),
    "v": (B6, S6, H6, Dh6),
    "r": (S6, H6, Dh6),
    "u": (H6, Dh6),
    "w": (H6, Dh6),
}
inputs = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
for span in (None, S6 - T6, 2):
    out, _ = ops.attention_forward(*inputs.values(), span=span)
    np.testing.assert_allclose(out, slow_attention(*inputs.values(), span), rtol=1e-12)
print("equation (3), score by score, gives the same for causal, same-length and a shorter span")

# %% [markdown]
# **Backward.** Everything up to `ds` is section 2. From there, reverse (3). $q_i$ occurs in it twice, with $k_j$ and
# with $r$, so `dq` has two parts. $u$ is added to every query of every text: it was *used more than once*, so its
# gradient is summed over batch and positions; the same holds for $w$, and for $r$, which all texts share:
#
# $$ \mathtt{dq}_i = \tfrac{1}{\sqrt{\mathtt{Dh}}}\Big(\underbrace{\textstyle\sum_j \mathtt{ds}_{ij}\,k_j}_{\text{content}} +
# \underbrace{\textstyle\sum_j \mathtt{ds}_{ij}\,r_\mathtt{dist}}_{\text{position}}\Big) \qquad
# $$
#
# $$ \mathtt{du} = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_{b,i}\text{content} \qquad
# \mathtt{dw} = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_{b,i}\text{position} $$
#
# $$ \mathtt{dk}_j = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_i \mathtt{ds}_{ij}\,(q_i+u) \qquad
# \mathtt{dr}_d = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_b\;\sum_{i,j\,:\,\mathtt{dist}(i,j)=d}\mathtt{ds}_{ij}\,(q_i+w) $$
#
# In the code, `dP` is `ds` indexed by distance, so that the last sum is a matrix product, too.

# %%
show_source(ops.attention_backward, docstring=False)

# %%
for span in (None, S6 - T6, 2):
    assert_gradients(
        partial(ops.attention_forward, span=span),
        ops.attention_backward,
        *inputs.values(),
        *(None, None, None),  # no pk, pv and gate yet: their gradients must be None, too
        name="attention_forward",
        argument_names=[*inputs, "pk", "pv", "gate"],
    )
for record in check_gradients(
    partial(ops.attention_forward, span=S6 - T6),
    ops.attention_backward,
    *inputs.values(),
    *(None, None, None),
    argument_names=[*inputs, "pk", "pv", "gate"],
):
    print(f"d{record.argument}: relative error {record.relative_error:.1e}")

# %% [markdown]
# ## 7 · Two traps in testing attention
#
# **One query, one key.** It is tempting to test on the smallest example, T = S = 1. Then the query sees a single key, and its
# weight is 1 *whatever the score*: the softmax of one number is 1. The true `dq` and `dk` are zero, and a backward that
# multiplies `ds` = 0 by something wrong gets the right result. Here are the five bugs that `head_backward` was built with, at
# T = S = 1 and at T = S = 3.

# %%
bugs = [
    "dq: √Dh forgotten",
    "dk: ds not transposed",
    "dk: wrong sign",
    "dz: summed over queries",
    "dv: a not transposed",
]


def passes(bug, T, S):
    """Whether the checker accepts the backward with a planted bug."""
    rng = np.random.default_rng(T)
    q, k, v = rng.standard_normal((T, 4)), rng.standard_normal((S, 4)), rng.standard_normal((S, 4))
    return all(
        record.passed
        for record in check_gradients(head_forward, partial(head_backward, bug=bug), q, k, v)
    )


print(f"{'planted bug':26}  T = 1    T = 3")
for bug in bugs:
    at_1, at_3 = passes(bug, 1, 1), passes(bug, 3, 3)
    print(f"{bug:26}  {'passes' if at_1 else 'FOUND':7}  {'passes' if at_3 else 'FOUND'}")
    assert at_1 and not at_3
assert passes(None, 1, 1) and passes(None, 3, 3)

# %% [markdown]
# All of them pass at T = 1; four of the five concern the softmax and its scores, the fifth a transpose that makes no
# difference for one row. At T = 3 all are found. The list also teaches a second rule: with T = S the matrix that was
# not transposed has the right *shape*. Choose all sizes different, as in section 6, and NumPy itself rejects it. (When
# persistent vectors join the softmax in the next chapter, T = 1 is no longer blind; a test without them still is.)
#
# **A gradient that is exactly zero.** Why do the package's keys have no bias? Say $k_j = n_j W_k + b_k$. Then every
# score of row $i$ gets the same $(q_i + u)\cdot b_k/\sqrt{\mathtt{Dh}}$, and, by the invariance of section 1, nothing
# changes at all. In terms of `ds`:
#
# $$ \mathtt{db}_k = \sum_j \mathtt{dk}_j = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_i (q_i+u)\underbrace{\textstyle\sum_j\mathtt{ds}_{ij}}_{=\,0} = 0 $$
#
# The parameter has no effect. But it makes a fine trap for a gradient checker, the one of question 4 of chapter 01.


# %%
def biased_forward(q, n, Wk, bk, v):
    """Compute attention whose keys have a bias. q (T, Dh), n (S, D), Wk (D, Dh), bk (Dh,), v (S, Dh)."""
    k, k_cache = ops.linear_forward(n, Wk, bk)  # (S, Dh)
    o, o_cache = head_forward(q, k, v)  # (T, Dh)
    return o, (k_cache, o_cache)


def biased_backward(do, cache):
    """Compute the backward pass of `biased_forward`."""
    k_cache, o_cache = cache
    dq, dk, dv = head_backward(do, o_cache)
    dn, dWk, dbk = ops.linear_backward(dk, k_cache)
    return dq, dn, dWk, dbk, dv


T7, S7, D7, Dh7 = 3, 5, 6, 4
values = [
    rng.standard_normal(shape) for shape in ((T7, Dh7), (S7, D7), (D7, Dh7), (Dh7,), (S7, Dh7))
]
names = ["q", "n", "Wk", "bk", "v"]
assert_gradients(biased_forward, biased_backward, *values, argument_names=names)

o, cache = biased_forward(*values)
do = rng.standard_normal(o.shape)
dbk = biased_backward(do, cache)[3]  # (Dh,)
measured = np.zeros(Dh7)
for d in range(Dh7):
    moved = [value.astype(complex) for value in values]
    moved[3][d] += 1e-20j
    measured[d] = (do * biased_forward(*moved)[0]).imag.sum() / 1e-20
entrywise = np.abs(dbk - measured) / np.maximum(np.abs(dbk) + np.abs(measured), 1e-300)
print("backward says   ", dbk)
print("complex step    ", measured)
print("relative error, entry by entry:", entrywise.round(2))
assert np.abs(dbk).max() < 1e-14 and np.abs(measured).max() < 1e-14 and entrywise.max() > 1e-3

# %% [markdown]
# Both rows are rounding noise around zero, and relative to each other they are far apart. A checker that looks at
# relative errors of single entries rejects this correct program; `assert_gradients` just accepted it, since both
# tensors are negligible next to its floor.
#
# ## 8 · Inside a trained model
#
# The textbook's operations keep all attention weights, so we can look inside the trained model. Let it read some
# held-out text and average the weight that each of its heads gives to distance 0, 1, 2, … The picture shows the ten
# nearest keys. The rest of a head's weight, up to one, goes to keys further away.

# %%
model = Transformer(trained.config, trained.params, ops=get_backend("numpy"))
segments, memory, before = Segments(text.test, 8, T), None, None
collected, tokens = [], []
for step in range(5):
    ids, _, _ = segments.batch(step)  # (B, T)
    _, new_memory, cache = model.forward(ids, memory)
    if memory:
        collected.append(
            np.stack([block["attention"].a for block in cache["layers"]])
        )  # (L, B, H, T, S)
        tokens.append(np.concatenate([before, ids], 1))  # (B, S)
    memory, before = new_memory, ids
weights, tokens = np.concatenate(collected, 1), np.concatenate(tokens)  # (L, B, H, T, S), (B, S)

i, dist = np.arange(T)[:, None], np.arange(M + 1)
by_distance = weights[..., i, i + M - dist].mean((1, 3))  # (L, H, M + 1)
np.testing.assert_allclose(by_distance.sum(-1), 1, rtol=1e-4)  # same-length: no other keys

shown = 10
figure, axes = plt.subplots(1, L, figsize=(9.5, 2.9), sharey=True)
for layer, ax in enumerate(axes):
    image = ax.imshow(by_distance[layer, :, :shown], cmap="Greys", vmin=0, vmax=0.8, aspect="auto")
    for h, d in zip(*np.where(by_distance[layer, :, :shown] > 0.15)):
        value = by_distance[layer, h, d]
        ax.text(
            d,
            h,
            f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=7,
            color="white" if value > 0.4 else "black",
        )
    ax.set(title=f"layer {layer}", xlabel="distance", xticks=range(0, shown, 3), yticks=range(H))
axes[0].set_ylabel("head")
figure.colorbar(image, ax=axes, label="mean weight")
plt.show()

previous = np.unravel_index(by_distance[..., 1].argmax(), (L, H))
share = by_distance[..., 1].max()
print(
    f"layer {previous[0]}, head {previous[1]} gives {share:.0%} of its weight to the character just before"
)
near = by_distance[..., 1:3].sum(-1).mean()
print(
    f"all heads together give {near:.0%} of their weight to the last two characters before the query"
)
assert share > 0.5 and near > 0.4  # evenly spread over M + 1 keys it would be under 2 %

# %% [markdown]
# The dark columns are distances 1 and 2. Nobody asked for them: many heads have specialised in *the previous character*
# or the one before it. (To predict the next character, the current one and those just before it are the best start; the
# current one is already in $x$, through the residual connection. This may explain why distance 0 gets so little weight.)
#
# Now take the strongest of these heads apart into the four terms of (3), each averaged over queries, as a function of
# distance.

# %%
layer, head = previous
c = cache["layers"][layer]["attention"]  # of the last segment that was read
r = c.r[head, ::-1]  # (S, Dh), row = distance
q, k, u, w = (
    c.q[:, head],
    c.k[:, head],
    c.u[head],
    c.w[head],
)  # (B, T, Dh)  (B, S, Dh)  (Dh,)  (Dh,)
dist = np.arange(16)
root = 1 / np.sqrt(Dh)
terms = {
    "q·k  content": (q @ k.swapaxes(1, 2) * root)[:, i, i + M - dist],  # (B, T, 16)
    "u·k  content, whoever asks": (k @ u * root)[:, i + M - dist],
    "q·r  position": (q @ r.T * root)[..., dist],
    "w·r  position, whoever asks": np.broadcast_to((r @ w * root)[dist], (len(q), T, len(dist))),
}
total = sum(terms.values())  # (B, T, 16)
a = c.a[:, head][:, i, i + M - dist]  # (B, T, 16)
# log a is the score minus one number for each row, the logarithm of its sum: the four terms explain everything else
rest = (total - np.log(np.maximum(a, 1e-30)))[(a > 1e-20).all(-1)]  # (rows, 16)
assert np.ptp(rest, axis=-1).max() < 1e-3

figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2))
for (name, term), colour, marker in zip(
    terms.items(), (HEAD_COLOURS[2], HEAD_COLOURS[3], BLUE, VERMILION), "s^ox"
):
    axes[0].plot(dist, term.mean((0, 1)), color=colour, marker=marker, markersize=4, label=name)
axes[0].axhline(0, color=GREY, linewidth=0.8)
axes[0].set(
    title=f"layer {layer}, head {head}: its score in four terms",
    xlabel="distance",
    ylabel="mean over queries",
)
axes[0].legend(frameon=False, fontsize=8)
axes[1].bar(dist, a.mean((0, 1)), color=BLUE)
axes[1].set(title="and the weight that comes of it", xlabel="distance", ylabel="mean weight")
plt.show()
best = max(terms, key=lambda name: np.ptp(terms[name].mean((0, 1))))
print(f"the term whose mean changes most with the distance: {best}")

# %% [markdown]
# In the run printed here the content terms matter little in the *average*: they differ from key to key, but not from
# distance to distance, and decide only the exceptions. The peak comes from the position terms, and most of it from
# $q\cdot r$: the queries of this head have learned to *ask for* the previous character. $w\cdot r$, which prefers a
# distance for every query, helps a little. $u\cdot k$ is small.
#
# Not all heads look at distances. Choose two more by what they look at: the one with the largest share of its weight on
# blanks and line ends, and the one with the largest mean distance (which need not exceed that of uniform weights, M /
# 2: the others look nearer).

# %%
blank = np.isin(tokens, text.tokenizer.encode(" \n"))[:, None, :] & visible_keys(
    T, M + T, M
)  # (B, T, S)
on_blanks = (weights * blank[None, :, None]).sum(-1).mean((1, 3))  # (L, H)
reach = (by_distance * np.arange(M + 1)).sum(-1)  # (L, H), mean distance
chosen = {
    "the character before": previous,
    "blanks": np.unravel_index(on_blanks.argmax(), (L, H)),
    "far": np.unravel_index(reach.argmax(), (L, H)),
}
print(
    f"{blank.sum() / blank[..., 0].size / (M + 1):.0%} of the characters are blanks; "
    f"“blanks” gives them {on_blanks.max():.0%} of its weight"
)
print(f"the mean distance of “far” is {reach.max():.0f}; spread evenly it would be {M / 2:.0f}")

sample = 9  # one of the segments that were read
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.5), sharey=True)
for ax, (name, (layer, head)) in zip(axes, chosen.items()):
    a = weights[layer, sample, head]  # (T, S)
    ax.imshow(
        a,
        cmap="Greys",
        vmin=0,
        vmax=np.quantile(a, 0.995),
        aspect="auto",
        extent=(-M - 0.5, T - 0.5, T - 0.5, -0.5),
    )
    ax.axvline(-0.5, color=VERMILION, linewidth=1, linestyle="--")
    ax.set(title=f"{name}: layer {layer}, head {head}", xlabel="key (below 0: memory)")
axes[0].set_ylabel("query")
plt.show()

# %% [markdown]
# Here are the same three heads, with two queries each, on the text itself. The query is the framed character at the
# end; an earlier character is darker the more weight it gets, compared with the largest weight of its row. (↵ is the end
# of a line.) The heads are named after their averages, so some rows may surprise you.

# %%
length = M + 1
figure, axes = plt.subplots(2, 1, figsize=(9.5, 2.9))
for ax, query in zip(axes, (40, 58)):
    for row, (layer, head) in enumerate(chosen.values()):
        a = weights[
            layer, sample, head, query, query : query + length
        ]  # (M + 1,), the last is the query itself
        letters = text.tokenizer.decode(tokens[sample, query : query + length]).replace("\n", "↵")
        for x, (letter, share) in enumerate(zip(letters, a / a.max())):
            ax.add_patch(
                plt.Rectangle((x - 0.5, row - 0.42), 1, 0.84, color=plt.cm.Blues(0.8 * share))
            )
            ax.text(
                x,
                row,
                letter,
                ha="center",
                va="center",
                family="monospace",
                color="white" if share > 0.7 else "black",
            )
    ax.add_patch(
        plt.Rectangle((M - 0.5, -0.5), 1, 3, fill=False, edgecolor=VERMILION, linewidth=1.2)
    )
    ax.set(xlim=(-0.6, M + 0.7), ylim=(2.6, -0.6), yticks=range(3), xticks=[])
    ax.set_yticklabels(chosen)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
plt.show()

# %% [markdown]
# In the run printed here, the head of the previous character does what its name says for the query `a`, and nothing of the
# kind for `k`: there its weight lies thinly over the whole text. The next cell looks at this head for many queries, by their character.

# %%
layer, head = previous
on_previous = weights[layer, :, head][:, i, i + M - 1][..., 0]  # (B, T)
asking = tokens[:, M:]  # (B, T), the queries' characters
common = np.argsort(-np.bincount(asking.ravel()))[:20]
by_letter = {text.tokenizer.decode(np.array([c])): on_previous[asking == c].mean() for c in common}
print("  ".join(f"{letter!r} {value:.0%}" for letter, value in by_letter.items()))
assert min(by_letter.values()) < max(by_letter.values()) / 2

# %% [markdown]
# Most characters make this head look back by one, and a few, such as `o` and `h`, do not. It is in layer 0, where a query
# is computed from its character alone, so the head can only have learned it letter by letter. The mean over queries hides
# that.
#
# A head is a small specialist: one looks at a position, others at what is written. Whether the model could do without
# one of them is a different question, which no picture answers. It is the subject of the remaining chapters.
#
# ## Questions
#
# 1. In `attention_backward`, `du` is the sum over batch and positions of `dq`, taken *before* the position part is added. Why
#    not after?
#
# <details><summary>Answer</summary>
#
# `u` is added to `q` in the content product only, $(q_i+u)\cdot k_j$, so it receives what $q_i$ receives there and no
# more. What comes through $(q_i+w)\cdot r$ belongs to w. Taken after, the sum would be du + dw: of the right shape, but
# found by the checker.
#
# </details>
#
# 2. Add the same vector to *all rows* of $r$. What happens to the attention weights?
#
# <details><summary>Answer</summary>
#
# Nothing, as with the key bias: every visible score of row $i$ gets the same $(q_i+w)\cdot b/\sqrt{\mathtt{Dh}}$. Only
# differences between distances count. (Both cease to hold once persistent keys, which have no distance, share the
# softmax: such a bias then shifts weight between the text and the persistent vectors.)
#
# </details>
#
# 3. Could the memory hold keys and values instead of layer inputs? They would not have to be recomputed.
#
# <details><summary>Answer</summary>
#
# In generation, yes, and that is commonly done: the weights are fixed, so keys and values of earlier characters stay
# valid. In training the weights have changed by one step since, and no gradient could reach $W_k$ and $W_v$ through the
# memory's contribution: they would be trained by the segment's own positions only.
#
# </details>
#
# 4. The softmax of one score is always 1, so attention over one key has no gradient for q and k. Does the same happen in a
#    *trained* model with T = M = 64?
#
# <details><summary>Answer</summary>
#
# Approximately, whenever a query puts nearly all of its weight on one key: then `ds` ≈ 0 in that row, see the right
# panel of section 2. This is why scores start small, thanks to the root and small initial weights.
#
# </details>
#
# 5. What would the loss by position look like with memory, but under the plain causal mask?
#
# <details><summary>Answer</summary>
#
# Queries would see M + 1 to M + T positions, later ones more: the curve could fall a little along the segment. And
# reading in pieces would no longer agree to the last digits, since what a query sees would depend on where its segment
# begins.
#
# </details>
#
# **Next:** [03 all-attention](03_all_attention.ipynb): the softmax gets N more keys that belong to no position in the
# text, and the feed-forward block is dropped. The operation of this chapter is
# [`ops/attention.py`](../tinyprune/ops/attention.py), memory is in [`ops/context.py`](../tinyprune/ops/context.py) and
# [`data/segments.py`](../tinyprune/data/segments.py), the layer around it in
# [`model/layers.py`](../tinyprune/model/layers.py).

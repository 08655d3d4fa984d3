# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · Relative positions and memory
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/04_positions_and_memory.ipynb)
# &nbsp; ← [03 attention by hand](03_attention_by_hand.ipynb) · [all chapters](README.md) · [05 the L0 loss and the difference](05_l0_and_the_difference.ipynb) →
#
# **After this chapter you can** give attention a memory of the text before its segment, and say which gradient this
# leaves out; tell a query how far away each key is; and read the heads of a trained model without being misled by a mean.
#
# **You need** [chapter 03](03_attention_by_hand.ipynb): equations (1) and (3), and the causal mask.

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
# Imports, and the style of the pictures.
# %matplotlib inline
from functools import partial

import matplotlib.pyplot as plt
import numpy as np

from tinyprune import Transformer, assert_gradients, get_backend, new_model, ops, train
from tinyprune.data import Segments
from tinyprune.notebook import (
    baseline_run,
    show_lines,
    show_source,
    sliders,
    use_style,
    you_are_here,
    yours,
)
from tinyprune.ops import attention
from tinyprune.ops.attention import visible_keys
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION

use_style()
rng = np.random.default_rng(0)

# %% jupyter={"source_hidden": true}
# Where this chapter is in the model.
you_are_here("attention", "positions")

# %% [markdown]
# ## 1 · Memory
#
# A text of half a million characters does not fit into one training step, so it is cut into **segments** of T
# characters. Then the first query of a segment sees only one character.
#
# Dai et al. (2019, *Transformer-XL*) keep the inputs of the layer in the previous segment, `m`, as a **memory** of M
# positions. Queries come from the segment alone; keys and values come from memory and segment, $S = M + T$ of them:
#
# $$ q = \hat x\,W_q \qquad k = [\hat m;\hat x]\,W_k \qquad v = [\hat m;\hat x]\,W_v \qquad\qquad \hat x = \mathrm{LayerNorm}(x) \quad \hat m = \mathrm{LayerNorm}(m) $$
#
# **Before you look:** the gradients of $W_k$ and $W_v$ need `m`. Should the backward pass also return a gradient for
# `m`, as it does for x?

# %%
show_lines(ops.context_forward, "T = x.shape", "return")
show_source(ops.context_backward, docstring=False)

# %% [markdown]
# It returns none. The memory was computed one step ago, and the caches of that step are gone. To be exact, one would have
# to keep everything since the beginning of the text. So `m` is treated as a constant. The weights do get their
# gradient from `m`, because *they* were used in this step.
#
# ### Which keys a query sees
#
# With M positions before the segment, key $j$ lies
#
# $$ \mathtt{dist}(i,j) = i + M - j $$
#
# positions before query $i$. The causal mask requires $\mathtt{dist}\ge 0$. The **same-length mask** also requires
# $\mathtt{dist}\le M$: once the memory is full, every query sees exactly the M + 1 latest positions, itself included.


# %% jupyter={"source_hidden": true}
# With the same-length mask the keys that each query sees form a band; with the causal mask they are all keys up to its own.
def draw(T=4, M=8, mask="same-length"):
    """Keys that each query sees (blue), in memory (left of the dashed line) and segment."""
    _, ax = plt.subplots(figsize=(6.5, 3))
    visible = visible_keys(T, M + T, M if mask == "same-length" else None)  # (T, S)
    extent = (-M - 0.5, T - 0.5, T - 0.5, -0.5)
    ax.imshow(visible, cmap="Blues", vmin=0, vmax=1.5, extent=extent)
    for edge in range(-M, T):
        ax.axvline(edge - 0.5, color="white", linewidth=0.8)
        ax.axhline(edge - 0.5, color="white", linewidth=0.8)
    ax.axvline(-0.5, color=VERMILION, linewidth=1.5, linestyle="--")
    counts = visible.sum(1)
    ax.set_title(f"fewest keys that a query sees: {counts.min()}, most: {counts.max()}")
    ax.set(xlabel="key (below 0: memory)", ylabel="query", aspect="equal")
    ax.set(xlim=(-12.6, 7.6), ylim=(7.6, -0.6), xticks=range(-12, 8, 2), yticks=range(0, 8, 2))
    plt.show()


# %%
sliders(draw, T=[4, 8], M=[0, 4, 8, 12], mask=["same-length", "causal"])
assert (visible_keys(7, 14, 7).sum(1) == 7 + 1).all()

# %% [markdown]
# ### Reading in pieces
#
# With the same-length mask and a memory, the cut into segments leaves no trace: each query sees the same M + 1 latest
# positions in every layer, whether a text is read in long pieces or in short ones. We check this on the
# [tour's](00_tour.ipynb) model, which has T = M = 64. (The next cell trains it if needed.)
#
# **Before you look:** the model reads 192 characters in pieces of 64, then in pieces of 5. How far apart are the
# results with memory, and how far without?

# %%
run = baseline_run()
trained, text = run.load("train").model, run.text
T, M, L, H, Dh = (getattr(trained.config, name) for name in ("T", "M", "L", "H", "Dh"))

# the same weights in float64, with the operations of ops/ in place of the compiled ones
params = {name: p.astype(np.float64) for name, p in trained.params.items()}
exact = Transformer(trained.config, params)
passage = text.test[None, :192].astype(np.int64)  # (1, 192)


# %%
def read_in_pieces(size, keep_memory=True):
    """Return the hidden states of the passage, (1, 192, D), read `size` characters at a time."""
    memory, states = None, []
    for start in range(0, passage.shape[1], size):
        h, new_memory, _ = exact.forward(passage[:, start : start + size], memory)
        memory = new_memory if keep_memory else None
        states.append(h)
    return np.concatenate(states, 1)


in_64s = read_in_pieces(64)
print(f"the numbers themselves have a standard deviation of {in_64s.std():.1f}")
for size in (32, 19, 5):
    apart = np.abs(read_in_pieces(size) - in_64s).max()
    without = np.abs(read_in_pieces(size, keep_memory=False) - in_64s).max()
    print(f"pieces of {size:2}: with memory {apart:.0e} apart, without {without:.1f}")
    assert apart < 1e-10 < 1e-2 < without

# %% [markdown]
# What is the memory worth? Let the model read held-out text with its memory, and again with the memory removed at the
# beginning of every segment. **Before you look:** after how many positions will the model without memory have caught up?


# %% jupyter={"source_hidden": true}
# Measures bits per character at each position of the segments, (T,), and draws them with and without memory.
def bits_by_position(keep_memory, splits=("valid", "test"), B=16):
    total, count = np.zeros(T), 0
    for split in splits:
        segments, memory = Segments(getattr(text, split), B, T), None
        for step in range(segments.per_epoch):
            ids, targets, _ = segments.batch(step)  # (B, T) each
            h, new_memory, _ = trained.forward(ids, memory)
            if step:  # the first segment has no memory yet
                p = trained.log_probabilities(h)  # (B, T, V)
                total -= np.take_along_axis(p, targets[..., None], -1)[..., 0].sum(0) / np.log(2)
                count += B
            memory = new_memory if keep_memory else None
    return total / count


def bits_of_a_table():
    """Bits per character of a table that says which character follows which, counted in the training text."""
    pairs = np.full((text.tokenizer.V,) * 2, 0.1)  # a little of everything
    np.add.at(pairs, (text.train[:-1], text.train[1:]), 1)
    now, following = text.test[:-1], text.test[1:]
    return -np.log2(pairs[now, following] / pairs.sum(1)[now]).mean()


def draw_bits(with_memory, without_memory):
    _, ax = plt.subplots(figsize=(8, 3.2))
    name = f"memory taken away, mean {without_memory.mean():.2f}"
    ax.plot(with_memory, color=BLUE, label=f"with memory, mean {with_memory.mean():.2f}")
    ax.plot(without_memory, color=VERMILION, linestyle="--", label=name)
    guess = np.log2(text.tokenizer.V)
    levels = (
        (guess, "guessing among V characters"),
        (bits_of_a_table(), "table of character pairs"),
    )
    for level, name in levels:
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
        ax.text(T - 1, level, name, ha="right", va="bottom", color=GREY)
    ax.set(xlabel="position t in the segment", ylabel="bits per character", ylim=(0, None))
    ax.set_title("With memory a segment has no beginning")
    ax.legend(frameon=False, loc="center", bbox_to_anchor=(0.5, 0.62))
    plt.show()


# %%
# With memory the bits per character are level over a segment; without memory they begin high and fall for dozens of positions.
with_memory, without_memory = bits_by_position(True), bits_by_position(False)
draw_bits(with_memory, without_memory)
gain = without_memory - with_memory
early, late = gain[:8].mean(), gain[-8:].mean()
print(f"memory is worth {early:.2f} bits in the first 8 positions, {late:.2f} in the last 8")
assert early > 0.5 and late < early / 2

# %% [markdown]
# With memory the curve has no slope. Without memory the first characters of each segment are expensive, and the model
# needs dozens of positions to recover. (A model that was *trained* without memory would lose less.)
#
# ## 2 · Relative positions
#
# Formula (1) of chapter 03 says nothing about where a key stands: beside the query or fifty characters away, the same key
# has the same score. The first Transformer added a vector $p_i$ for each position to the embeddings $x_i$. Expanded, the
# score has four terms,
#
# $$ (x_i + p_i)W_q\cdot(x_j+p_j)W_k = \underbrace{x_iW_q\cdot x_jW_k}_{\text{content–content}} + \underbrace{x_iW_q\cdot p_jW_k}_{\text{content–position}} +
# \underbrace{p_iW_q\cdot x_jW_k}_{\text{position–content}} + \underbrace{p_iW_q\cdot p_jW_k}_{\text{position–position}} $$
#
# and with a memory the terms with $p$ go wrong: position 3 of the segment and position 3 of the memory would carry the
# same $p_3$. Only a **distance** means the same everywhere. So Dai et al. (2019, § 3.3) rewrite the four terms:
#
# - Wherever the key's position $p_j$ stands, in terms two and four, the query wants to know how far away the key is. So
#   $p_jW_k$ is replaced by $r_\mathtt{dist} = R_\mathtt{dist}\,W_r$, a key that belongs to the distance. The table `R` has a row
#   for each distance, and all layers share it. (Here its rows are learned; in Transformer-XL they are sines and cosines.) It
#   has a matrix of its own, $W_r$, because what makes a good key for a content need not make one for a distance. Each head
#   owns Dh columns of $W_r$.
# - The query's own position $p_i$ stands in terms three and four. If only distances count, it must not matter, so $p_iW_q$
#   becomes a learned vector of the head, the same for every query. Term three compares this vector with contents, term four
#   with distances. These preferences may differ, so each term gets its own vector: **u** for the contents $k_j$, **w** for
#   the distances $r_\mathtt{dist}$.
#
# The four terms stay, and only the first is unchanged:
#
# $$ s_{ij} = \frac{\overbrace{q_i\cdot k_j}^{\text{content–content}} + \overbrace{q_i\cdot r_\mathtt{dist}}^{\text{content–position}} + \overbrace{u\cdot k_j}^{\text{position–content}} + \overbrace{w\cdot r_\mathtt{dist}}^{\text{position–position}}}{\sqrt{\mathtt{Dh}}}
# = \frac{(q_i+u)\cdot k_j + (q_i+w)\cdot r_{\mathtt{dist}(i,j)}}{\sqrt{\mathtt{Dh}}} \tag{1} $$
#
# So $u\cdot k_j$ says which contents a head prefers for any query, and $w\cdot r_\mathtt{dist}$ which distances.
#
# ### The shift
#
# The second product of (1) has a catch. Computed as a matrix product, $(q_i + w)\cdot r$ has one column for each
# *distance*. To be added to $q_i\cdot k_j$, it must have one column for each *key*. Each row has to be shifted one place
# further to the right than the row above it.
#
# No number has to move. First a small case, two queries and three keys: in each row stand the numbers for the distances 2, 1
# and 0, and an empty fourth column, `a b c _` and `d e f _`. The eight places in the computer's memory are one line,
# `a b c _ d e f _`. Begin one place later and cut rows of *three*: `b c _`, `d e f`. Now each column belongs to a key: the
# second query sees the keys at distances 2, 1 and 0, the first one, which comes earlier, only those at 1 and 0. It works
# because each row that is read is one place shorter than a row in memory: it begins one stored column further left than the row
# above it, so that every number appears one column further right.
#
# Now let column $c$ of a matrix P hold distance $S-1-c$, and give P one extra column, so that its rows are $S+1$ long.
# Entry $(i, c)$ then lies at place $i(S+1)+c$ of the line. The key of this entry is
# $j = i + M - \mathtt{dist} = c + i - (T-1)$, so the same place is
#
# $$ i(S+1) + c \;=\; i\,S + (i + c) \;=\; i\,S + j + (T-1) : $$
#
# row $i$ and column $j$ of a matrix whose rows have $S$ entries and which begins $T-1$ places later. (With T = 4 and S = 7
# entry (1, 2) lies at place 10. Its key is $j = 0$, and $1\cdot 7 + 0 + 3$ is 10 as well.) This matrix is another **view** of
# the same numbers. **Before you look:** the last key of a segment lies after every query
# but the last. What will stand in the view's upper right corner? Step through the rows:

# %% jupyter={"source_hidden": true}
# The memory of P is one line of numbers; below it are P itself, and the rows that the shifted view cuts out of the line.
T5, M5 = 4, 3
S5 = M5 + T5
P = np.full((1, 1, T5, S5 + 1), np.nan)
P[..., :S5] = np.arange(S5)[::-1]  # entry = its distance; the extra column stays empty
shifted = attention.by_key(P)[0, 0]  # (T, S)
visible = visible_keys(T5, S5, None)  # (T, S)
distance = np.arange(T5)[:, None] + M5 - np.arange(S5)  # (T, S), straight from the definition
assert np.shares_memory(shifted, P) and np.array_equal(shifted[visible], distance[visible])
TINTS = ("#CFE3F3", "#F7D9C4", "#CDE8DD", "#EEDCEB")


def draw_cell(ax, x, y, value, colour, hidden=False):
    style = {"facecolor": colour, "edgecolor": "#888888", "hatch": "////" if hidden else None}
    ax.add_patch(plt.Rectangle((x - 0.5, y - 0.5), 1, 1, **style))
    if not hidden:
        text_of = "" if np.isnan(value) else f"{value:.0f}"
        ax.text(x, y, text_of, ha="center", va="center", size=9)


def step(rows):
    """The line of numbers in memory, P by distance, and the first rows of the view by key."""
    figure, axes = plt.subplot_mosaic([["line", "line"], ["P", "key"]], figsize=(9, 4))
    line, W = P.ravel(), S5 + 1
    for place, value in enumerate(line):
        draw_cell(axes["line"], place, 0, value, TINTS[place // W])
    for i in range(rows):
        start = T5 - 1 + i * S5
        box = {"fill": False, "edgecolor": VERMILION, "linewidth": 2.5 if i == rows - 1 else 1}
        axes["line"].add_patch(plt.Rectangle((start - 0.5, -0.65), S5, 1.3, **box))
        for j in range(S5):
            colour = TINTS[(start + j) // W]
            draw_cell(axes["key"], j, i, shifted[i, j], colour, hidden=not visible[i, j])
    for i, c in np.ndindex(T5, W):
        draw_cell(axes["P"], c, i, P[0, 0, i, c], TINTS[i])
    axes["line"].set(xlim=(-1, T5 * W), ylim=(-1, 1), xlabel="place in memory", yticks=[])
    axes["line"].set_title("in memory: a row of P has 8 places, a row of the view (framed) 7")
    axes["P"].set(title="P: a column for each distance", xlabel="column c")
    axes["key"].set(title="the view: a column for each key", xlabel="key j (from 3: the segment)")
    for ax in (axes["P"], axes["key"]):
        ax.set(xlim=(-0.6, W - 0.4), ylim=(T5 - 0.4, -0.6), aspect="equal", ylabel="query i")
        ax.set(xticks=range(W if ax is axes["P"] else S5), yticks=range(T5))
    plt.show()


# %%
sliders(step, rows=(0, 4))

# %% [markdown]
# On the right the distances count down to 0 at the query's own position. The hatched corner holds entries of neighbouring
# rows: exactly the keys that lie in the future and are masked anyway. The backward pass uses the view in reverse: `ds`,
# which has a column for each key, is *written* through the view into a matrix of zeros, which then holds `ds` by distance.
#
# ### Exercise 1 · The shift
#
# *●●○ · 10 minutes*
#
# Write `by_key`, for all texts and heads: from P (B, H, T, S + 1) to (B, H, T, S). It must return a **view**, so that
# what is written into the result arrives in P. A slice is a view, and so is `reshape` of an array without gaps;
# `np.concatenate` makes a copy.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect
from tinyprune.notebook import yours
from tinyprune.ops import attention


def by_key(P):
    """Return a view (B, H, T, S), a column for each key, of P (B, H, T, S + 1), a column for each distance."""
    raise NotImplementedError("write by_key: return a view of P, of shape (B, H, T, S)")


rng = np.random.default_rng(0)
P = np.zeros((2, 3, 4, 8))
by_key(P)[...] = 1  # as the backward pass does
title = "what is written into the result does not arrive in P"
hint = "one of your steps makes a copy; slices, and reshape of an array without gaps, do not"
fed, came = "P of zeros, and then by_key(P)[...] = 1", "P is still zero"
expect(P.any(), title, fed=fed, came=came, expected="ones in P", hint=hint)
cases = [(rng.standard_normal((2, 3, T, S + 1)),) for T, S in ((4, 7), (3, 3), (1, 4))]
hint = "lay the T rows in one line, cut off the first T - 1 places, and make rows of S"
yours.check(by_key, attention.by_key, *cases, hint=hint)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `P.reshape(B, H, T * (S + 1))` is the line. Take a slice of T · S places, which begins at place T − 1; `reshape` it to
# rows of S.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def by_key(P):
#     B, H, T, S = P.shape[0], P.shape[1], P.shape[2], P.shape[3] - 1
#     line = P.reshape(B, H, T * (S + 1))
#     return line[..., T - 1 : T - 1 + T * S].reshape(B, H, T, S)
# ```
#
# </details>
#
# In chapter 03 the best head of the small model had some 17 % of its weight on the character before. The next cell trains
# this model for as long, but with distances and a memory. **Before you look:** what share will the best head have now?

# %%
sizes = {"L": 2, "D": 64, "H": 4, "N": 32, "T": 40, "M": 40}
with yours.engine() as your_ops:
    small = new_model(text, backend="numpy", **sizes)
    small.ops = your_ops
    train(small, text, steps=300, B=8, lr=5e-3)
    ids = np.array(text.tokenizer.encode("Items in the sequence are not copied"))[None]
    _, _, cache = small.forward(ids)
before = [block.attention.a.diagonal(-1, 2, 3).mean((0, 2)) for block in cache.attention_blocks]
share = np.max(before)
print(f"weight on the character before: {share:.0%} in the best head")
assert share > 0.3

# %% [markdown]
# ## 3 · The whole operation
#
# These lines of the package compute the scores of (1). (`qh`,
# `kh` and `rh` are q, k and r with the heads first; `rh` runs from the largest distance down.)

# %%
show_lines(ops.attention_forward, "np.matmul((qh + u", "context += by_key(P)")

# %% [markdown]
# Compute (1) again, one score at a time. `span` is the largest visible distance, M for the same-length mask, `None`
# for no limit.


# %% tags=["subject"]
def slow_attention(q, k, v, r, u, w, span):
    """Compute attention with the scores (1), one score at a time."""
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


B6, T6, S6, H6, Dh6 = 2, 3, 7, 4, 5  # all different, so that none can be mistaken for another
names = ["q", "k", "v", "r", "u", "w"]
keys, biases = (B6, S6, H6, Dh6), (H6, Dh6)
shapes = [(B6, T6, H6, Dh6), keys, keys, (S6, H6, Dh6), biases, biases]
inputs = [rng.standard_normal(shape) for shape in shapes]
for span in (None, S6 - T6, 2):
    out, _ = ops.attention_forward(*inputs, span=span)
    np.testing.assert_allclose(out, slow_attention(*inputs, span), rtol=1e-12)
print("score by score it is the same, for causal, same-length and a shorter span")

# %% [markdown]
# **Backward.** Everything up to `ds` is chapter 03. From there, reverse (1). $q_i$ occurs twice, so `dq` has two parts.
# $u$ is added to every query of every text, so its gradient is summed over batch and positions. The same holds for $w$,
# and for $r$, which all texts share:
#
# $$ \mathtt{dq}_i = \tfrac{1}{\sqrt{\mathtt{Dh}}}\Big(\underbrace{\textstyle\sum_j \mathtt{ds}_{ij}\,k_j}_{\text{content}} +
# \underbrace{\textstyle\sum_j \mathtt{ds}_{ij}\,r_\mathtt{dist}}_{\text{position}}\Big) \qquad
# \mathtt{du} = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_{b,i}\text{content} \qquad
# \mathtt{dw} = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_{b,i}\text{position} $$
#
# $$ \mathtt{dk}_j = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_i \mathtt{ds}_{ij}\,(q_i+u) \qquad
# \mathtt{dr}_d = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_b\;\sum_{i,j\,:\,\mathtt{dist}(i,j)=d}\mathtt{ds}_{ij}\,(q_i+w) $$

# %%
arguments, names = (
    [*inputs, None, None, None],
    [*names, "pk", "pv", "gate"],
)  # three that are absent here
for span in (None, S6 - T6, 2):
    forward = partial(ops.attention_forward, span=span)
    assert_gradients(forward, ops.attention_backward, *arguments, argument_names=names)
print("all gradients agree with the complex step")

# %% [markdown]
# ## 4 · Inside a trained model
#
# Let the tour's model read held-out text, and average the weight that each of its heads gives to distance 0, 1, 2, … (The
# rest goes to keys further away.) **Before you look:** which distance deserves the most weight? Is it 0, the current
# character?


# %% jupyter={"source_hidden": true}
# Lets the model read five segments of eight texts; keeps weights (L, B, H, T, S), characters and the last cache.
def read_with_weights():
    model = Transformer(trained.config, trained.params, ops=get_backend("numpy"))
    segments, memory, before = Segments(text.test, 8, T), None, None
    weights, tokens = [], []
    for step in range(5):
        ids, _, _ = segments.batch(step)  # (B, T)
        _, new_memory, cache = model.forward(ids, memory)
        if memory:
            weights.append(np.stack([block.attention.a for block in cache.attention_blocks]))
            tokens.append(np.concatenate([before, ids], 1))  # (B, S)
        memory, before = new_memory, ids
    return np.concatenate(weights, 1), np.concatenate(tokens), cache


def draw_distances(by_distance, shown=10):
    figure, axes = plt.subplots(1, L, figsize=(9.5, 2.9), sharey=True)
    for layer, ax in enumerate(axes):
        part = by_distance[layer, :, :shown]  # (H, shown)
        image = ax.imshow(part, cmap="Greys", vmin=0, vmax=0.8, aspect="auto")
        for h, d in zip(*np.where(part > 0.15)):
            ink = "white" if part[h, d] > 0.4 else "black"
            ax.text(d, h, f"{part[h, d]:.1f}", ha="center", va="center", fontsize=8, color=ink)
        ax.set(title=f"layer {layer}", xlabel="distance", xticks=range(0, shown, 3))
        ax.set_yticks(range(H))
    axes[0].set_ylabel("head")
    figure.suptitle("Many heads look at the last two characters", fontsize=10)
    figure.colorbar(image, ax=axes, label="mean weight")
    plt.show()


# %%
# Each row is a head, each column a distance: many heads have much of their weight at distances 1 and 2.
weights, tokens, cache = read_with_weights()  # (L, B, H, T, S)  (B, S)
i, dist = np.arange(T)[:, None], np.arange(M + 1)
at_distance = weights[..., i, i + M - dist]  # (L, B, H, T, M + 1)
by_distance = at_distance.mean((1, 3))  # (L, H, M + 1)
np.testing.assert_allclose(by_distance.sum(-1), 1, rtol=1e-4)  # same-length: no other keys
draw_distances(by_distance)

previous = tuple(map(int, np.unravel_index(by_distance[..., 1].argmax(), (L, H))))
share, near = by_distance[..., 1].max(), by_distance[..., 1:3].sum(-1).mean()
print(f"layer {previous[0]}, head {previous[1]}: {share:.0%} on the character just before")
print(f"all heads together: {near:.0%} on the last two characters before the query")
assert share > 0.3 and near > 0.2  # evenly spread over M + 1 keys it would be 2 % and 3 %
assert by_distance[..., 0].mean() < near / 2

# %% [markdown]
# Many heads have specialised in the last two characters before the query, although no line of the program asks for it.
# Distance 0 gets little, perhaps because the residual stream has the current character already.
#
# Now split the scores of the strongest of these heads into the four terms of (1), each averaged over queries:


# %% jupyter={"source_hidden": true}
# Computes the four terms of one head's scores for the nearest 16 distances, checks them, and draws their means.
def draw_terms(layer, head, near=16):
    c, d = (
        cache.attention_blocks[layer].attention,
        np.arange(near),
    )  # of the last segment that was read
    q, k, r = c.q[:, head], c.k[:, head], c.r[head, ::-1]  # (B, T, Dh)  (B, S, Dh)  (S, Dh)
    at, root = i + M - d, 1 / np.sqrt(Dh)  # at: (T, near), the key at each distance
    terms = {
        "q·k  content–content": (q @ k.swapaxes(1, 2) * root)[:, i, at],  # (B, T, near)
        "u·k  position–content": (k @ c.u[head] * root)[:, at],
        "q·r  content–position": (q @ r.T * root)[..., d],
        "w·r  position–position": np.broadcast_to((r @ c.w[head] * root)[d], (len(q), T, near)),
    }
    a = c.a[:, head][:, i, at]  # (B, T, near)
    # log a is the score minus one number for each row: the four terms explain everything else
    rest = (sum(terms.values()) - np.log(np.maximum(a, 1e-30)))[(a > 1e-20).all(-1)]
    assert np.ptp(rest, axis=-1).max() < 1e-3

    _, axes = plt.subplots(1, 2, figsize=(9.5, 3.2))
    colours = (HEAD_COLOURS[2], HEAD_COLOURS[3], BLUE, VERMILION)
    means = {name: term.mean((0, 1)) for name, term in terms.items()}
    for (name, mean), colour, marker in zip(means.items(), colours, "s^ox"):
        axes[0].plot(d, mean, color=colour, marker=marker, markersize=4, label=name)
    axes[0].axhline(0, color=GREY, linewidth=0.8)
    axes[0].set(title=f"layer {layer}, head {head}: the terms with r make the peak")
    axes[0].set_xlabel("distance")
    axes[0].set_ylabel("mean over queries")
    axes[0].legend(frameon=False, fontsize=8)
    axes[1].bar(d, a.mean((0, 1)), color=BLUE)
    axes[1].set(title="so distance 1 gets the weight", xlabel="distance", ylabel="mean weight")
    plt.show()
    return {name: np.ptp(mean) for name, mean in means.items()}


# %%
# The two terms with r have a peak at distance 1, where nearly all weight is; the two terms with k are level.
range_of = draw_terms(*previous)
print("mean over queries, largest minus smallest:")
for name, value in range_of.items():
    print(f"{name:28} {value:5.1f}")
assert max(range_of, key=range_of.get).endswith("–position")

# %% [markdown]
# The peak comes from the two terms with $r$: with $q\cdot r$ the queries *ask for* a distance, with $w\cdot r$
# the head prefers one for every query. The terms with $k$ matter little in the *average*: they differ from key to key,
# but not from distance to distance.
#
# Not all heads look at distances. Choose two more: the head with the largest share of its weight on
# blanks and line ends, and the head with the largest mean distance.

# %%
seen = visible_keys(T, M + T, M)  # (T, S)
blank = np.isin(tokens, text.tokenizer.encode(" \n"))[:, None] & seen  # (B, T, S)
on_blanks = (weights * blank[:, None]).sum(-1)  # (L, B, H, T)
reach = (at_distance * dist).sum(-1)  # (L, B, H, T), mean distance of each query's weight


def head_with_most(values):
    """Return the layer and head with the largest mean of values (L, B, H, T)."""
    return tuple(map(int, np.unravel_index(values.mean((1, 3)).argmax(), (L, H))))


measured = {"the character before": at_distance[..., 1], "blanks": on_blanks, "farthest": reach}
chosen = {name: head_with_most(values) for name, values in measured.items()}
assert chosen["the character before"] == previous
uniform = {
    "the character before": 1 / (M + 1),
    "blanks": blank.sum() / seen.sum() / len(tokens),
    "farthest": M / 2,
}
for name, (layer, head) in chosen.items():
    mean, form = measured[name][layer, :, head].mean(), ".0f" if name == "farthest" else ".0%"
    even = format(uniform[name], form)
    print(f"{name:20} layer {layer}, head {head}: {mean:{form}}   (uniform weights: {even})")

# %% [markdown]
# Here are the three heads on the text, with two queries each. The query is the framed character at the end; a
# character is darker the more weight it gets, compared with the largest weight of its row (↵ is the end of a
# line). **Before you look:** in layer 0 a query is computed from its character alone. What can decide there whether a head
# looks back by one?

# %% jupyter={"source_hidden": true}
# The text before two queries, shaded by the weights of the chosen heads: at the second query the first head does not look back by one, and the second not at blanks.
sample = 9  # one of the segments that were read
shares = [
    measured[name][layer, sample, head] for name, (layer, head) in chosen.items()
]  # (T,) each
typical = int(np.minimum(np.minimum(shares[0], shares[1]), shares[2] / M).argmax())
asking = tokens[:, M:]  # (B, T), the queries' characters
common = np.argsort(-np.bincount(asking.ravel()))[:20]  # the most frequent ones
exception = int(np.where(np.isin(asking[sample], common), shares[0], 1).argmin())
figure, axes = plt.subplots(2, 1, figsize=(10.5, 2.9))
for ax, query in zip(axes, (typical, exception)):
    letters = text.tokenizer.decode(tokens[sample, query : query + M + 1]).replace("\n", "↵")
    names = []
    for row, (name, (layer, head)) in enumerate(chosen.items()):
        a = weights[
            layer, sample, head, query, query : query + M + 1
        ]  # the last is the query itself
        for column, (letter, share) in enumerate(zip(letters, a / a.max())):
            box = (column - 0.5, row - 0.42), 1, 0.84
            ax.add_patch(plt.Rectangle(*box, color=plt.cm.Blues(0.8 * share)))
            style = {"family": "monospace", "color": "white" if share > 0.7 else "black"}
            ax.text(column, row, letter, ha="center", va="center", **style)
        value = shares[row][query]
        names.append(f"{name}: {f'distance {value:.0f}' if name == 'farthest' else f'{value:.0%}'}")
    frame = plt.Rectangle((M - 0.5, -0.5), 1, 3, fill=False, edgecolor=VERMILION, linewidth=1.2)
    ax.add_patch(frame)
    ax.set(xlim=(-0.6, M + 0.7), ylim=(2.6, -0.6), yticks=range(3), xticks=[])
    ax.set_yticklabels(names)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
axes[0].set_title("a query at which the heads do what their names say")
others = "first two heads do" if shares[1][exception] < 0.1 else "first head does"
axes[1].set_title(f"a query at which the {others} something else")
plt.show()

# %% [markdown]
# In the run printed here the second query is the letter *o*, and the first head looks at every earlier *e*, near or
# far. (You can see it in the row of *o* in chapter 03's first picture.) Look at the weight of this head on the
# character before, averaged over all queries with the same character, for the twenty most frequent characters.

# %%
on_previous = at_distance[previous[0], :, previous[1], :, 1]  # (B, T)
by_letter = {text.tokenizer.decode(np.array([c])): on_previous[asking == c].mean() for c in common}
print("  ".join(f"{letter!r} {value:.0%}" for letter, value in by_letter.items()))

# %% [markdown]
# The character decides: with most characters this head looks back by one nearly always, with a few less often or
# hardly ever. A head of layer 0 can learn this only letter by letter. The mean over queries hides it.
#
# Whether the model could do without this head, no picture says. The next chapters measure it.
#
# ### Exercise 2 · A memory that leaves no trace
#
# *●●○ · 10 minutes*
#
# Write `read(x, T)`, which reads the inputs x (n, D) of one layer T positions at a time, the last piece possibly shorter.
# `layer(piece, m)` returns the outputs for one piece, (T, D); m (at most M, D) holds the inputs just before the piece and
# is empty, (0, D), at the beginning. Return all outputs, (n, D). The outputs must not depend on T, even where T is less
# than M.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.course.expectations import expect, expect_close

M, D = 6, 4
rng = np.random.default_rng(0)
r, u, w = rng.standard_normal((40, 1, D)), rng.standard_normal((1, D)), rng.standard_normal((1, D))


def layer(piece, m):
    fed, wanted, hint = f"M = {M}", f"at most {M} rows", "the latest M inputs are enough"
    title, came = "the memory is too long", f"{len(m)} rows"
    expect(len(m) <= M, title, fed=fed, came=came, expected=wanted, hint=hint)
    q, k = piece[None, :, None], np.concatenate([m, piece])[None, :, None]
    return ops.attention_forward(q, k, k, r[: k.shape[1]], u, w, span=M)[0][0, :, 0]


def read(x, T):
    """x (n, D), read T positions at a time → (n, D)."""
    raise NotImplementedError("write read: return the outputs of all pieces, joined")


x = rng.standard_normal((20, D))
whole = layer(x, x[:0])
for T in (20, 8, 6, 3, 1):
    outputs, fed = read(x, T), f"x {x.shape}, T = {T}"
    title, hint = "not as the whole text at once", "which M inputs are just before the next piece?"
    expect_close(outputs, whole, title, fed=fed, hint=hint)
    print(f"passed: read in pieces of {T}, {np.abs(outputs - whole).max():.0e} apart")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Loop over the beginnings 0, T, 2T, … After each piece the new memory is the *latest* M inputs of the old memory and the
# piece together.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def read(x, T):
#     m, outputs = x[:0], []
#     for start in range(0, len(x), T):
#         piece = x[start : start + T]
#         outputs.append(layer(piece, m))
#         m = np.concatenate([m, piece])[-M:]
#     return np.concatenate(outputs)
# ```
#
# </details>
#
# ## Recap
#
# - A memory is the layer's inputs before the segment. They serve as keys and values, and get no gradient.
# - Positions are distances: each distance has a key $r_\mathtt{dist}$, which is compared with $q_i + w$. A shifted view
#   turns columns of distances into columns of keys.
# - With memory, distances and the same-length mask, a text may be cut anywhere, and the model computes the same.
#
# Tasks a2_2 and a2_3 of assignment [A2](assignments/README.md) continue from here.
#
# ## Questions
#
# 1. The package takes `du` as the sum of `dq` over batch and positions, *before* the position part is added to
#    `dq`. Why not after?
#
# <details><summary>Answer</summary>
#
# `u` is added to `q` in the content product only, $(q_i+u)\cdot k_j$, so it receives what $q_i$ receives there and no
# more. Taken after, the sum would be du + dw.
#
# </details>
#
# 2. Add the same vector to *all rows* of $r$. What happens to the attention weights?
#
# <details><summary>Answer</summary>
#
# Nothing, as with the key bias of chapter 03: every visible score of row $i$ gets the same $(q_i+w)\cdot
# b/\sqrt{\mathtt{Dh}}$. Only differences between distances count.
#
# </details>
#
# 3. Could the memory hold keys and values instead of layer inputs? They would not have to be recomputed.
#
# <details><summary>Answer</summary>
#
# In generation, yes: the weights are fixed, so keys and values of earlier characters stay
# valid. In training the weights have changed by one step since, and no gradient could reach $W_k$ and $W_v$ through the
# memory.
#
# </details>
#
# **Next:** [05 the L0 loss and the difference](05_l0_and_the_difference.ipynb), which asks what a head is worth. The code
# is in [`ops/attention.py`](../tinyprune/ops/attention.py) and [`ops/context.py`](../tinyprune/ops/context.py).

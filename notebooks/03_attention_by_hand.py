# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Attention by hand
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/03_attention_by_hand.ipynb)
# &nbsp; ← [02 the Hard-Concrete gate](02_hard_concrete_gate.ipynb) · [all chapters](README.md) · [04 positions and memory](04_positions_and_memory.ipynb) →
#
# **After this chapter you can** read a picture of attention; write its backward pass, which trains a model
# at the end; say why the heads of a layer are a sum; and count what a head owns.
#
# **You need** [chapter 01](01_backprop_by_hand.ipynb), and the gate of
# [chapter 02](02_hard_concrete_gate.ipynb) as a number that multiplies a head.

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
import dataclasses
import inspect

import matplotlib.pyplot as plt
import numpy as np

from tinyprune import (
    Transformer,
    assert_gradients,
    check_gradients,
    count_parts,
    evaluate,
    load_preset,
    new_model,
    ops,
    train,
)
from tinyprune.notebook import (
    baseline_run,
    open_head,
    show_lines,
    show_source,
    use_style,
    you_are_here,
    yours,
)
from tinyprune.ops.attention import softmax, visible_keys
from tinyprune.plots import BLUE, GREY, VERMILION

use_style()
rng = np.random.default_rng(0)

# %% jupyter={"source_hidden": true}
# Where this chapter is in the model.
you_are_here("attention", "projection", "residual", "networks")

# %% [markdown]
# ## 1 · One head: scores, weights, a weighted sum
#
# The model of chapter 01 read eight characters, and had to learn everything anew for each of the eight positions.
# **Attention** lets the text decide what is worth reading. At every position the model holds D numbers, its *features*.
# Three linear maps make three vectors of them: a **query**, which says what this position is looking for; a **key**, by
# which other positions find it; and a **value**, which is what they get from it. For T queries, S keys and values, and
# vectors of width Dh:
#
# $$ s_{ij} = \frac{q_i\cdot k_j}{\sqrt{\mathtt{Dh}}} \qquad a_{ij} = \frac{e^{s_{ij}}}{\sum_{j'} e^{s_{ij'}}} \qquad
# o_i = \sum_j a_{ij}\,v_j \tag{1} $$
#
# with q (T, Dh), k and v (S, Dh), s and a (T, S), o (T, Dh). The **scores** $s$ compare each query with each key. The
# **softmax** turns the scores of a row into **weights** $a$, which are positive and add up to 1. The output $o$
# averages the values with these weights. This is one **head** (Vaswani et al. 2017).
#
# The picture shows two heads of the [tour's](00_tour.ipynb) model on a sentence that the model was
# not trained on. Each row is a query: the model has read up to this character, and guesses the next one. Dark keys have
# large weights. **Before you look:** what would you read to guess the character after *sequenc*?

# %% jupyter={"source_hidden": true}
# The weights of two trained heads on a sentence: one head looks back by one character, the other far back.
run = baseline_run()
text, trained = run.text, run.load("train").model
sentence = "Items in the sequence are not copied"


def attention_on(model):
    """Return the weights of all heads on the sentence, (L, H, T, T)."""
    ids = np.array(text.tokenizer.encode(sentence))[None]
    plain = Transformer(model.config, model.params)  # its operations keep the weights
    _, _, cache = plain.forward(ids)
    return np.concatenate([block.attention.a for block in cache.attention_blocks])


def draw_heads(weights, chosen):
    _, axes = plt.subplots(1, len(chosen), figsize=(5 * len(chosen), 4.9), squeeze=False)
    for ax, (layer, head, what) in zip(axes[0], chosen):
        ax.imshow(weights[layer, head], cmap="Blues", vmin=0, vmax=0.8)
        ax.set(title=f"layer {layer}, head {head}: {what}", xlabel="key", ylabel="query")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks(range(len(sentence)), sentence, size=8, family="monospace")
            axis.set_tick_params(length=0, pad=1)
    plt.show()


def head_with_most(values):
    """Return layer and head of the largest of values (L, H)."""
    return tuple(map(int, np.unravel_index(values.argmax(), values.shape)))


def share_before(weights):
    """Return the mean weight on the character before, (L, H)."""
    return weights.diagonal(-1, 2, 3).mean(-1)


weights = attention_on(trained)
distance = np.arange(len(sentence))[:, None] - np.arange(len(sentence))  # (T, T)
mean_distance = (weights * distance).sum(-1).mean(-1)  # (L, H)
near, far = head_with_most(share_before(weights)), head_with_most(mean_distance)
share = share_before(weights)[near]
titles = (
    f"{share:.0%} on the character before",
    f"{mean_distance[far]:.0f} characters back, on average",
)
draw_heads(weights, [(*near, titles[0]), (*far, titles[1])])
at = sentence.index("sequenc") + 6  # its c
for (layer, head), side in ((near, "left"), (far, "right")):
    read = weights[layer, head, at]
    most = int(read.argmax())
    print(f"at the c of “sequenc” the head on the {side} puts {read[most]:.0%} on the", end=" ")
    print(f"{sentence[most]!r} {at - most} back")
assert share > 0.5 and np.allclose(weights.sum(-1), 1, atol=1e-5)

# %% [markdown]
# The head on the left looks at the character before. The head on the right reads single letters farther back.
#
# Why the root? If the entries of q and k are independent with variance 1, each product of two entries has variance 1, and
# the sum of Dh products has variance Dh. Undivided, the scores of a wide head would put almost all weight on one key;
# section 3 shows that such a softmax passes hardly any gradient.
#
# The package's softmax subtracts the largest score of each row. Numerator and denominator shrink by the same factor, and
# $e^s$ cannot overflow.

# %%
show_source(softmax, docstring=False)

# %% [markdown]
# ## 2 · No query sees the future
#
# A language model guesses the next character at every position, so a query must not see what comes after it. There may
# be more keys than queries (chapter 04 adds those of the text before): the first S − T of them come before the first query. So
# key $j$ lies
# $\mathtt{dist}(i,j) = i + S - T - j$ positions before query $i$. The **causal mask** keeps distances of at least 0:
#
# $$ a_{ij} = \frac{e^{s_{ij}}}{\sum_{j'\,:\,\mathtt{dist}(i,j')\,\ge\,0} e^{s_{ij'}}} \;\text{ if } \mathtt{dist}(i,j) \ge 0,
# \;\text{ else } 0 \tag{2} $$
#
# A masked score becomes $-\infty$ before the softmax, and its weight $e^{-\infty}=0$. (`visible_keys(T, S, None)` is
# the mask.) **Before you look:** the scores below are random. One
# row of the weights is known in advance. Which one, and what is in it?

# %% jupyter={"source_hidden": true}
# Random scores fill the square; the causal mask puts −∞ above the diagonal, and there the weights are 0.
s = rng.standard_normal((6, 6))
visible = visible_keys(6, 6, None)
masked = np.where(visible, s, -np.inf)
a = softmax(masked.copy())
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3))
panels = (
    ("random scores s, the future included", s, "RdBu_r"),
    ("masked: −∞ in the future", masked, "RdBu_r"),
    ("weights a: rows add up to 1", a, "Blues"),
)
for ax, (name, matrix, colours) in zip(axes, panels):
    low, high = (0, 1) if colours == "Blues" else (-2.5, 2.5)
    ax.imshow(np.where(np.isinf(matrix), np.nan, matrix), cmap=colours, vmin=low, vmax=high)
    for (i, j), value in np.ndenumerate(matrix):
        shown = "−∞" if np.isinf(value) else f"{value:.1f}"
        dark = value > 0.6 if colours == "Blues" else abs(value) > 1.5 and np.isfinite(value)
        ax.text(j, i, shown, ha="center", va="center", size=8, color="white" if dark else "black")
    ax.set(title=name, xlabel="key j", xticks=range(6), yticks=range(6))
axes[0].set_ylabel("query i")
plt.show()
assert a[0, 0] == 1 and np.allclose(a.sum(1), 1) and (a[~visible] == 0).all()

# %% [markdown]
# The first row: query 0 sees only key 0, which gets the weight 1.
#
# **By hand.** Three characters *a*, *b* and *c*, and Dh = 4, so that the root is 2. All three ask with
# $q = 2\ln 2\cdot(1, 1, 0, 1)$; their keys and values are the rows below. For *c* the scores are $\ln 2\cdot(0, 1, 2)$, and
# $e^s$ is 1, 2 and 4. The weights are 1/7, 2/7 and 4/7, and the output is $(v_a + 2\,v_b + 4\,v_c)/7$.
# **Before you look:** compute the row of *b* on paper.

# %%
q = 2 * np.log(2) * np.array([[1, 1, 0, 1]] * 3)
k = np.array([[0, 1, 2, -1], [1, 0, 1, 0], [1, 1, 0, 0]])
v = np.array([[0, 3, 0, 1], [0, 0, 3, 1], [7, -6, 2, 1]])
s = q @ k.T / 2
a = softmax(np.where(visible_keys(3, 3, None), s, -np.inf))
o = a @ v
for name, weights, output in zip("abc", a * [[1], [3], [7]], o):
    total = round(weights.sum())
    print(f"{name}: weights {weights.round(12) + 0} / {total}, output {output.round(12) + 0}")

# %% [markdown]
# ## 3 · The backward pass, twice
#
# **First way: step by step.** Write the softmax as an exponential, a sum and a division, and reverse every line by the
# two rules of chapter 01 (*what was summed is copied; what was used more than once is summed over*):
#
# | forward | backward, from the bottom up |
# | --- | --- |
# | $s=q\,k^\top/\sqrt{\mathtt{Dh}}$ | $\mathtt{dq}=\mathtt{ds}\;k/\sqrt{\mathtt{Dh}}\qquad{}\mathtt{dk}=\mathtt{ds}^\top{q}/\sqrt{\mathtt{Dh}}$ |
# | $e_{ij}=\exp{s}_{ij}$ | $\mathtt{ds}_{ij}=\mathtt{de}_{ij}\,e_{ij}$ |
# | $z_i=\sum_j{e}_{ij}$ | $\mathtt{de}_{ij}\mathrel{+}=\mathtt{dz}_i$ (*e* is used twice) |
# | $a_{ij}=e_{ij}/z_i$ | $\mathtt{de}_{ij}=\mathtt{da}_{ij}/z_i\qquad{}\mathtt{dz}_i=-\sum_j\mathtt{da}_{ij}\,e_{ij}/z_i^2$ |
# | $o=a\,v$ | $\mathtt{da}=\mathtt{do}\;v^\top\qquad{}\mathtt{dv}=a^\top\,\mathtt{do}$ |
#
# This is what automatic differentiation would record. `do` is the gradient of $o$. For one head:


# %% tags=["subject"]
def head_forward(q, k, v):
    """Compute one causal head, step by step. q (T, Dh), k and v (S, Dh) → o (T, Dh)."""
    visible = visible_keys(len(q), len(k), None)  # (T, S)
    s = q @ k.T / np.sqrt(q.shape[1])  # (T, S)
    e = np.exp(s - s.real.max(1, keepdims=True)) * visible  # (T, S)
    z = e.sum(1, keepdims=True)  # (T, 1)
    a = e / z  # (T, S)
    return a @ v, (q, k, v, e, z, a)


def head_backward(do, cache):
    """Reverse the lines of `head_forward` from the last to the first."""
    q, k, v, e, z, a = cache
    root = 1 / np.sqrt(q.shape[1])
    da, dv = do @ v.T, a.T @ do  # o = a v: (T, S) and (S, Dh)
    de = da / z  # a = e / z: (T, S)
    dz = -(da * e).sum(1, keepdims=True) / z**2  # and (T, 1)
    de = de + dz  # z = sum of e
    ds = de * e  # e = exp(s): (T, S)
    dq = ds @ k * root  # s = q kᵀ / √Dh: (T, Dh)
    dk = ds.T @ q * root  # and (S, Dh)
    return dq, dk, dv


T, S, Dh = 3, 5, 4
q, k, v = rng.standard_normal((T, Dh)), rng.standard_normal((S, Dh)), rng.standard_normal((S, Dh))
assert_gradients(head_forward, head_backward, q, k, v, argument_names=["q", "k", "v"])
print("one head, step by step: all gradients agree with the complex step")

# %% [markdown]
# **Second way: one formula for the whole softmax.** Ask how one score $s_{im}$ changes one weight $a_{ij}$ of its row.
# The numerator changes $a_{im}$ alone; the denominator makes all weights smaller:
#
# $$ \frac{\partial a_{ij}}{\partial s_{im}} = a_{ij}\,\big(\mathbf 1[j=m] - a_{im}\big) $$
#
# Sum over everything that $s_{im}$ reaches, as in chapter 01:
#
# $$ \mathtt{ds}_{im} = \sum_j \mathtt{da}_{ij}\,a_{ij}\big(\mathbf 1[j=m]-a_{im}\big)
# \;=\; a_{im}\Big(\mathtt{da}_{im} - \sum_j a_{ij}\,\mathtt{da}_{ij}\Big) \tag{3} $$
#
# $\mathtt{da}_{im}$ is how much the loss changes with the weight on key $m$. The sum is
# the average of `da` over all keys, with the weights $a$. *Only the difference from this average
# counts*, in proportion to the weight that the key already has. What one key gains, the others
# lose, so every row of `ds` adds up to zero. Where a mask has made a weight 0, `ds` is 0.
#
# The picture shows `da` of one query, and its `a` and `ds` twice: with a softmax that is undecided,
# and with all scores six times as large, so that key 2 has nearly all the weight. **Before you look:** which of the two
# has the larger `ds`?

# %% jupyter={"source_hidden": true}
# One query: da, and its weights a and gradients ds, which are large with an undecided softmax and nearly zero with a nearly certain one.
scores = np.array([0.3, -0.8, 1.2, 0.1, -0.4, 0.6])
wanted = np.array([1.0, -0.5, -0.4, 0.6, 0.2, -0.9])  # da
j, sizes = np.arange(len(scores)), []
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.8), sharey=True)
axes[0].bar(j, wanted, width=0.6, color=GREY)
axes[0].set(title="da: the loss wants less of key 0,\nmore of key 5", ylim=(-1.05, 1.05))
for ax, sharpness, name in zip(axes[1:], (1, 6), ("undecided", "nearly certain")):
    row = softmax(sharpness * scores)
    gradient = row * (wanted - (wanted * row).sum())
    sizes.append(np.abs(gradient).sum())
    ax.bar(j - 0.2, row, width=0.4, color=BLUE, label="a")
    style = {"color": VERMILION, "hatch": "///", "edgecolor": "white"}
    ax.bar(j + 0.2, gradient, width=0.4, label="ds", **style)
    ax.set_title(f"{name} softmax:\nΣ|ds| = {sizes[-1]:.2f}")
for ax in axes:
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set(xlabel="key j", xticks=j)
axes[1].legend(frameon=False)
plt.show()
assert sizes[1] < sizes[0] / 10

# %% [markdown]
# The undecided softmax: 0.58 against 0.03 in sum. The terms of `ds` have the factors $a_{im}(1-a_{im})$ and $a_{ij}a_{im}$,
# which vanish when one weight is 1. A head that is certain hardly learns any more, although key 5 would be better.
#
# ### Broadcasting and `einsum`
#
# The package keeps all texts and heads in one array, such as q (B, H, T, Dh), and computes without a loop.
#
# - **`@`** multiplies the matrices in the last two axes: (B, H, T, Dh) @ (B, H, Dh, S) is (B, H, T, S). `swapaxes`
#   exchanges two axes.
# - **Broadcasting** compares shapes from the right, and repeats an axis that has length 1 or is missing. (B, T, H, Dh) *
#   (H, 1) multiplies each head by one number. `gate[:, None]` makes (H, 1) of (H,); `keepdims=True` leaves
#   the sum of a row where it can be subtracted from the row.
# - **`einsum`** names the axes: in `np.einsum("bhtd,bhsd->bhts", q, k)` entries with equal letters are multiplied, and a
#   letter that is missing after the arrow is summed over. For a gradient, exchange the letters of output and input:
#   `np.einsum("bhts,bhsd->bhtd", ds, k)` is `dq` without the root.

# %%
q, k = (
    rng.standard_normal((2, 4, 3, 6)),
    rng.standard_normal((2, 4, 5, 6)),
)  # (B, H, T, Dh) and (B, H, S, Dh)
s = np.einsum("bhtd,bhsd->bhts", q, k)
np.testing.assert_allclose(s, q @ k.swapaxes(2, 3))
np.testing.assert_allclose(s[1, 2, 0, 4], sum(q[1, 2, 0, d] * k[1, 2, 4, d] for d in range(6)))
print("q", q.shape, " k", k.shape, " scores", s.shape)

# %% [markdown]
# ### Exercise 1 · Attention, backwards
#
# *●●○ · 20 minutes*
#
# Write the second way for all texts and heads at once. `cache` has `q` (B, H, T, Dh), `k` and `v` (B, H, S, Dh) and the
# weights `a` (B, H, T, S), *heads first*. The output is `out = gate · scale · o`, *positions first*, (B, T, H, Dh):
# `cache.o` is o in this order, `cache.gate` holds the gates, (H,), or is `None`, and `cache.scale` is a number without a
# gradient (chapter 06).
#
# From `dout` (B, T, H, Dh) return dq, dk and dv, positions first, and the gradient of the gates, (H,) or `None`: four things.
# (The package's attention has five more arguments, which chapter 04 and the paper's heads need. The last line of the stub puts
# a `None` in the place of each.)

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.notebook import yours


def attention_backward(dout, cache):
    """Return dq (B, T, H, Dh), dk and dv (B, S, H, Dh), five Nones, dgate (H,) or None."""
    dq = dk = dv = dgate = None
    raise NotImplementedError("write attention_backward: compute dq, dk, dv and dgate")
    return dq, dk, dv, None, None, None, None, None, dgate


rng = np.random.default_rng(0)
B, T, S, H, Dh = 2, 3, 5, 4, 6  # all different
shapes = (B, T, H, Dh), (B, T, H, Dh), (B, S, H, Dh), (B, S, H, Dh)
dout, q, k, v = (rng.standard_normal(shape) for shape in shapes)
_, plain = ops.attention_forward(q, k, v)
_, gated = ops.attention_forward(q, k, v, gate=rng.random(H), scale=1.5)
yours.check(
    attention_backward,
    ops.attention_backward,
    (dout, plain),
    (dout, gated),
    hint={
        "": "go from out to q: gate and scale, then o = a v, equation (3), and the scores with their root",
        "dq": "a score is q · k times the root, so dq is ds times k, with the same root",
        "dk": "a score is q · k times the root, so dk sums ds times q over the queries, with the same root",
        "dtype": "write Dh**-0.5 in place of np.sqrt(Dh)",
        "dv": "o = a v alone decides it: aᵀ times do, which has the gate and the scale in it",
        "dgate": "dout times scale times o, summed over all axes but the heads; None without gates",
    },
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `do` is `dout` times scale and gate; `dgate` is `dout` times scale times o, summed over all axes but the heads.
# Swap `do` to heads first. Then $o = a\,v$ gives `da` and `dv`, equation (3) gives
# `ds`, and the scores give `dq` and `dk`. The mask needs no line. Write `Dh**-0.5` for the root: `np.sqrt(Dh)` makes
# 64-bit arrays of 32-bit ones.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def attention_backward(dout, cache):
#     q, k, v, a = cache.q, cache.k, cache.v, cache.a
#     gate, scale, o = cache.gate, cache.scale, cache.o
#     root = q.shape[-1] ** -0.5
#     # out = gate · scale · o
#     do, dgate = dout * scale, None
#     if gate is not None:
#         dgate = np.einsum("bthd,bthd->h", do, o)
#         do = do * gate[:, None]
#     do = do.swapaxes(1, 2)  # (B, H, T, Dh)
#     # o = a v
#     da = np.einsum("bhtd,bhsd->bhts", do, v)
#     dv = np.einsum("bhts,bhtd->bhsd", a, do)
#     # a = softmax(s)
#     ds = a * (da - (a * da).sum(-1, keepdims=True))
#     # s = q kᵀ / √Dh
#     dq = np.einsum("bhts,bhsd->bhtd", ds, k) * root
#     dk = np.einsum("bhts,bhtd->bhsd", ds, q) * root
#     dq, dk, dv = (x.swapaxes(1, 2) for x in (dq, dk, dv))
#     return dq, dk, dv, None, None, None, None, None, dgate
# ```
#
# </details>
#
# Both ways give the same gradients. The average in (3) needs no `da`, because $\sum_j a_{ij}\,(\mathtt{do}_i\cdot v_j) =
# \mathtt{do}_i\cdot o_i$. The compiled code calls this number *delta*.

# %%
T, S, Dh = 3, 5, 4
q, k, v = (rng.standard_normal((n, Dh)) for n in (T, S, S))
o, cache = head_forward(q, k, v)
do = rng.standard_normal(o.shape)  # (T, Dh), from the operations after it

# the package takes (B, T, H, Dh); here one text and one head
_, package_cache = ops.attention_forward(q[None, :, None], k[None, :, None], v[None, :, None])
package = ops.attention_backward(do[None, :, None], package_cache)[:3]
for second, first in zip(package, head_backward(do, cache)):
    np.testing.assert_allclose(second[0, :, 0], first, rtol=1e-12, atol=1e-15)

a, da = cache[-1], do @ v.T  # (T, S) each
np.testing.assert_allclose((da * a).sum(1), (do * o).sum(1), rtol=1e-12)

# %% [markdown]
# ## 4 · Several heads: a sum
#
# H heads, with Dh columns of $W_q$, $W_k$ and $W_v$ each, look for different
# things. Their outputs, concatenated, are H · Dh numbers, and a matrix $W_o$ maps them back to D. A
# matrix product with a concatenation is a sum of products:
#
# $$ y = [o_0;\dots;o_{H-1}]\,W_o + b_o = \sum_h o_h\,W_o^{(h)} + b_o \tag{4} $$
#
# with $o_h$ (T, Dh) for the output of head h, and $W_o^{(h)}$ for the rows $h\,\mathtt{Dh}\dots(h+1)\,\mathtt{Dh}-1$ of
# $W_o$.
#
# **A head is a summand.** The whole project rests on this: a summand can be multiplied by a gate, and left out.

# %%
T, D, H, Dh = 5, 10, 3, 4
x = rng.standard_normal((T, D))
Wq, Wk, Wv = rng.standard_normal((3, D, H * Dh))
Wo = rng.standard_normal((H * Dh, D))

y = np.zeros((T, D))
for h in range(H):
    own = slice(h * Dh, (h + 1) * Dh)  # the columns, or rows, of head h
    o, _ = head_forward(x @ Wq[:, own], x @ Wk[:, own], x @ Wv[:, own])  # (T, Dh)
    y += o @ Wo[own]  # (T, D)

# the package computes all heads at once
q, k, v = ((x @ W).reshape(1, T, H, Dh) for W in (Wq, Wk, Wv))  # (B, T, H, Dh)
o, _ = ops.attention_forward(q, k, v)
np.testing.assert_allclose(o.reshape(T, H * Dh) @ Wo, y, rtol=1e-10)
print("a loop over heads and one product with all of Wo give the same")

# %% [markdown]
# **The residual connection.** A layer does not replace the features $x$ by $y$. It adds $y$ to them (He et al. 2016):
#
# $$ \mathtt{out} = x + y \qquad\qquad \mathtt{dx} = \mathtt{dout} + \text{what comes back through } y $$
#
# So every head of every layer adds something to the same D numbers of its position, the **residual
# stream**. Without heads a layer passes $x$ on, plus $b_o$. (What reads the stream reads it through a LayerNorm, as in
# chapter 01: q, k and v are maps of $\mathrm{LN}(x)$, and so are the hidden units of section 6. The formulas leave it out.)
#
# **One head, opened.** The head on the left of section 1, number by number: scores and softmax, (1), the sum of values, and
# the summand in (4) that it adds to the stream. Its scores have a second part, by distance, which the next chapter explains.
# Choose another character that reads. **Before you switch its gate off:** which of the numbers will change?

# %% jupyter={"source_hidden": true}
# The numbers of one trained head, with its gate as a switch; a picture of them where no page can run.
open_head(run.load("train"), sentence, *near)

# %% [markdown]
# None of the head's own numbers. It still computes $o\,W_o$, now times 0, and the stream lacks exactly this vector, *Δ*.
# Chapter 05 trains gates by it. What the head's hidden units add, which section 6 explains, goes too.
#
# ## 5 · A trap in testing attention
#
# The next cell plants five bugs in `head_backward`, one at a time, and lets the gradient checker look at each bug at
# T = S = 1, the smallest example, and at T = S = 3. **Before you look:** which of the five does the checker find with one
# query and one key?

# %%
bugs = {
    "dq: √Dh forgotten": ("ds @ k * root", "ds @ k"),
    "dk: ds not transposed": ("ds.T @ q", "ds @ q"),
    "dk: wrong sign": ("dk = ds", "dk = -ds"),
    "dz: summed over queries": (".sum(1,", ".sum(0,"),
    "dv: a not transposed": ("a.T @ do", "a @ do"),
}
source, names = inspect.getsource(head_backward), {"np": np}
print(f"{'planted bug':26}  T = 1    T = 3")
for bug, (right, wrong) in bugs.items():
    assert source.count(right) == 1
    exec(source.replace(right, wrong), names)
    passed = []
    for n in (1, 3):
        q, k, v = rng.standard_normal((3, n, 4))
        records = check_gradients(head_forward, names["head_backward"], q, k, v)
        passed.append(all(record.passed for record in records))
    print(f"{bug:26}  {'passes' if passed[0] else 'FOUND':7}  {'passes' if passed[1] else 'FOUND'}")
    assert passed == [True, False]

# %% [markdown]
# None. A single key has the weight 1 *whatever the score*. The true `dq` and `dk` are zero, which hides three of the
# bugs. The other two, a sum over the wrong axis and a missing transpose, make no difference to a 1 × 1 matrix. And with
# T = S a matrix that was not transposed still has the right *shape*. Choose all sizes different.
#
# ## 6 · A head that owns hidden units
#
# Attention moves numbers from one position to another, but it computes little with them: for given weights its output
# is a weighted sum of values, which are linear in the stream. "After *t* and *h* expect *e*, but after neither alone"
# needs a step that is not linear. That is the second half of a Transformer's layer, which works on each position by
# itself. A **feed-forward block** has F hidden units, usually F = 4 D:
#
# $$ r = \max(x W_1 + b_1,\, 0), \qquad \text{out} = r\,W_2 + b_2 $$
#
# Column $f$ of $W_1$ is a pattern, and $x W_1$ says how well the stream of this position matches it. The maximum with zero (a
# *ReLU*) makes the unit a switch: below the threshold $-b_1$ it says nothing, above it the more, the better the match. Row
# $f$ of $W_2$ is what the unit then adds to the stream. Without the ReLU both matrices would be one, $W_1W_2$, and the block
# could do nothing that a single matrix cannot.
#
# Count the weights of both halves:
#
# $$ \text{attention: } 4\,D^2 \qquad\qquad \text{feed-forward: } 2\,D\,F = 8\,D^2 $$
#
# We want to remove heads, but two thirds of the layer belong to no head. So cut the block into H parts, with
# $N = F/H$ units for each head. With $\mathtt{pk}_h$ (N, D) for the weights into the units of head h, $\mathtt{pb}_h$
# (N,) for their biases, and $\mathtt{pv}_h$ (N, D) for the weights out of them,
#
# $$ \max(x W_1 + b_1,\,0)\,W_2 + b_2 \;=\; \sum_h \max(x\,\mathtt{pk}_h^\top + \mathtt{pb}_h,\,0)\;\mathtt{pv}_h + b_2 \tag{5} $$
#
# With all heads this *is* the feed-forward block. But now each part belongs to a head, and the gate $g_h$ of the
# head multiplies both of its summands, in (4) and in (5). A closed head takes its units along. We call the parts **head
# networks**:

# %%
show_lines(ops.head_networks_forward, "r = ops.matmul", "out = ops.matmul")

R, D, H, N = 5, 6, 3, 4
x, pk, pb, pv, bo = (rng.standard_normal(n) for n in ((R, D), (H, N, D), (H, N), (H, N, D), D))
of_heads, _ = ops.head_networks_forward(x, pk, pb, pv, bo)
W1, W2 = pk.reshape(H * N, D).T, pv.reshape(H * N, D)
np.testing.assert_allclose(of_heads, ops.feedforward_forward(x, W1, pb.ravel(), W2, bo)[0])

# %% [markdown]
# (`weights` are the gates times the scale.) One thing is given up: a head's units are not fed by that head alone. They read
# the stream, the sum of what *all* heads have added, and belong to their head only because one gate closes both.
#
# This is the architecture of the course. The paper's own heads have [a page of their own](site/pages/the-papers-heads.md).

# %% jupyter={"source_hidden": true}
# Of the parameters of a usual layer the heads own a third; with head networks they own nearly all.
tiny, D, H = load_preset("tiny").model, 128, 8
sizes = {"D": D, "H": H, "heads": (), "head_ids": (), "positions": "learned", "M": 0}
sizes |= {"mask": "causal", "V": 100}
ours = dataclasses.replace(tiny, N=4 * D // H, **sizes)
usual = dataclasses.replace(ours, kind="transformer", persistent="softmax", N=0, F=4 * D)
_, ax = plt.subplots(figsize=(9.5, 2.3))
shares = {}
for row, (name, config) in enumerate({"usual layer": usual, "head networks": ours}.items()):
    counts = {part.part: part.parameters for part in count_parts(config) if "layer 0" in part.part}
    of_heads = counts.pop(f"layer 0: {H} heads")
    rest = sum(counts.values())
    for h in range(H):
        shade = BLUE if h % 2 else "#8FC1E3"
        ax.barh(row, of_heads / H, left=h * of_heads / H, color=shade, edgecolor="white")
    ax.barh(row, rest, left=of_heads, color="#DDDDDD", hatch="////", edgecolor=GREY)
    shares[name] = of_heads / (of_heads + rest)
    ax.text(of_heads + rest + 2000, row, f"{shares[name]:.1%} in heads", va="center")
ax.set(yticks=(0, 1), yticklabels=shares, xlim=(0, 250_000), xlabel="parameters of a layer")
ax.set_title(f"What goes with {H} heads (blue), and what stays without them (hatched)")
ax.invert_yaxis()
plt.show()
assert shares["usual layer"] < 0.34 and shares["head networks"] > 0.99

# %% [markdown]
# ### Exercise 2 · What one head owns
#
# *●○○ · 5 minutes*
#
# Count the parameters that disappear with one head: its parts of $W_q$, $W_k$, $W_v$ and $W_o$, and its units in (5).

# %% tags=["exercise", "raises-exception"]
from dataclasses import replace

from tinyprune import load_preset
from tinyprune.course.expectations import expect
from tinyprune.model.counting import head_part


def owned(D, Dh, N):
    """Return how many parameters one head owns."""
    raise NotImplementedError("write owned: return the number of parameters that go with one head")


tiny = replace(load_preset("tiny").model, positions="learned", M=0)
for D, H, N in ((128, 8, 32), (96, 4, 50)):
    config = replace(tiny, D=D, H=H, N=N, heads=(), head_ids=())
    got, expected = owned(D, D // H, N), head_part(config).parameters
    fed, hint = f"D = {D}, Dh = {D // H}, N = {N}", "four matrices, and three things for each unit"
    title = "the number is wrong"
    expect(got == expected, title, fed=fed, came=got, expected=expected, hint=hint)
    print(f"passed: a head with D = {D}, Dh = {D // H}, N = {N} owns {got:,} parameters")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Each matrix has Dh columns, or rows, of D numbers for the head. Each unit has D weights in, D weights out, and
# a bias.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def owned(D, Dh, N):
#     return 4 * D * Dh + 2 * N * D + N
# ```
#
# </details>
#
# ## 7 · Your attention trains
#
# The next cell trains a small model with two layers of four heads, which reads 40 characters. `yours.engine()` takes each
# function of yours that has passed; the package computes the rest. Your `attention_backward` is called once for each
# layer and step.

# %%
sizes = {"L": 2, "D": 64, "H": 4, "N": 32, "T": 40, "M": 0, "mask": "causal"}
with yours.engine() as your_ops:
    small = new_model(text, backend="numpy", positions="learned", **sizes)
    small.ops = your_ops
    before = evaluate(small, text, "valid")
    train(small, text, steps=300, B=8, lr=5e-3)
    after = evaluate(small, text, "valid")
print(f"{before:.2f} bits per character before training, {after:.2f} after it")
assert after < before - 2

# %% [markdown]
# **Before you look:** has one of the eight heads already learned to look at the character before?

# %% jupyter={"source_hidden": true}
# The weights of the two heads of the small model that look most at the character before: most of their weight is elsewhere.
weights = attention_on(small)
shares = share_before(weights)
best = np.argsort(-shares, axis=None)[:2]
draw_heads(
    weights, [(*divmod(int(n), 4), f"{shares.flat[n]:.0%} on the character before") for n in best]
)
assert shares.max() < share

# %% [markdown]
# Not yet. In the run printed here the heads read certain letters, which they find by *content*. To look back by one is
# hard for this model: it has a learned vector for each of its 40 positions, and must learn for each position which
# position comes before. The next chapter gives heads distances.
#
# ## Recap
#
# - $\mathtt{ds} = a\,(\mathtt{da} - \sum a\,\mathtt{da})$: the gradient of a score is the key's weight times how far its `da`
#   lies from the weighted mean of the row.
# - The heads of a layer are summands. Each head also owns N hidden units, so that
#   nearly all of a layer goes with its heads.
#
# Task a2_1 of assignment [A2](assignments/README.md) continues from here.
#
# ## Questions
#
# 1. The rows of $W_o$ that belong to head 2 are all zero. Which of the head's parameters in (4) have a gradient that is
#    not zero?
#
# <details><summary>Answer</summary>
#
# Only these rows, $\mathtt{dW}_o^{(2)} = o_2^\top\mathtt{dout}$. The gradient of $o_2$, $\mathtt{dout}\,W_o^{(2)\top}$, is
# zero, so $W_q$, $W_k$ and $W_v$ of this head get none. After one step the rows are no longer zero, and all of the head
# learns.
#
# </details>
#
# 2. The model's keys have no bias. What would a bias $b_k$, added to every key, change, and what would be its gradient?
#
# <details><summary>Answer</summary>
#
# Nothing, and zero. Every score of row $i$ gets the same $q_i\cdot b_k/\sqrt{\mathtt{Dh}}$, which the softmax ignores. In
# terms of `ds`: $\mathtt{db}_k = \sum_j\mathtt{dk}_j$ contains the sums of the rows of `ds`, which are zero.
#
# </details>
#
# 3. Take a query that sees all keys. Shuffle the keys, and the values in the same way. What happens to its output?
#
# <details><summary>Answer</summary>
#
# Nothing: the sum over keys has the same terms in another order. A head as it is here cannot know which of two
# characters came first.
#
# </details>
#
# **Next:** [04 positions and memory](04_positions_and_memory.ipynb). The code of this chapter is
# [`ops/attention.py`](../tinyprune/ops/attention.py) and
# [`ops/head_networks.py`](../tinyprune/ops/head_networks.py).

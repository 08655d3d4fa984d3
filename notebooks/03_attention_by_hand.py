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
# &nbsp; ← [01 backprop by hand](01_backprop_by_hand.ipynb) · [all chapters](README.md) · [04 positions and memory](04_positions_and_memory.ipynb) →
#
# **After this chapter you can** write an attention head and its backward pass by hand, in two ways that agree; say why
# a layer's heads are a sum, from which one can be taken out; and build a test of attention that really fails when it
# should.
#
# **You need** [chapter 01](01_backprop_by_hand.ipynb): the contract of `forward` and `backward`, and
# `assert_gradients`.

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
import inspect

import matplotlib.pyplot as plt
import numpy as np

from tinyprune import assert_gradients, check_gradients, ops
from tinyprune.notebook import show_source, use_style, you_are_here
from tinyprune.ops.attention import softmax, visible_keys
from tinyprune.plots import BLUE, GREY, VERMILION

use_style()
rng = np.random.default_rng(0)

# %% jupyter={"source_hidden": true}
# Where this chapter is in the model.
you_are_here("attention", "projection", "residual")

# %% [markdown]
# ## 1 · One head: scores, weights, a weighted sum
#
# The model of chapter 01 read eight characters, and each of the eight positions had weights of its own. Whatever it
# learned about a quotation mark at position 3 it had to learn again for position 4. **Attention** lets the text itself
# decide what is worth reading. At every position the model holds D numbers, the position's *features*. Three linear
# maps make three vectors of them: a **query**, which says what this position is looking for; a **key**, by which other
# positions find it; and a **value**, which is what they get from it. For T queries, S keys and values, and vectors of
# width Dh:
#
# $$ s_{ij} = \frac{q_i\cdot k_j}{\sqrt{\mathtt{Dh}}} \qquad a_{ij} = \frac{e^{s_{ij}}}{\sum_{j'} e^{s_{ij'}}} \qquad
# o_i = \sum_j a_{ij}\,v_j $$
#
# with q (T, Dh), k and v (S, Dh), s and a (T, S), o (T, Dh). The **scores** $s$ compare each query with each key. The
# **softmax** turns the scores of a row into **weights** $a$, which are positive and add up to 1. The output $o$
# averages the values with these weights. One such unit is a **head** (Vaswani et al. 2017). These and all other terms
# are in the [glossary](README.md#glossary).
#
# Why are the scores divided by $\sqrt{\mathtt{Dh}}$? **Before you look:** the entries of q and k below are independent,
# with mean 0 and variance 1. By which factor does the spread of $q\cdot k$ grow when Dh grows from 16 to 64?

# %%
for Dh in (16, 64, 256):
    q, k = rng.standard_normal((2, 20_000, Dh))
    spread = (q * k).sum(1).std()
    print(f"Dh {Dh:3}:  q·k {spread:5.2f}, divided by √Dh {spread / np.sqrt(Dh):.3f}")
    assert abs(spread / np.sqrt(Dh) - 1) < 0.05

# %% [markdown]
# Every product of two entries has variance 1, so the sum of Dh of them has variance Dh. Undivided, the scores would
# grow with the width of the head, and the softmax would put almost all weight on the largest of them. Section 2 shows
# that such a softmax passes hardly any gradient. Dividing by the root keeps the variance at 1 for any Dh.
#
# Here is the package's softmax. It first subtracts the largest score of each row. This changes nothing, because adding
# one number to all scores of a row multiplies numerator and denominator by the same factor; but now $e^s$ cannot
# overflow. Keep this invariance in mind: it comes back in section 5.

# %%
show_source(softmax, docstring=False)

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
# The first and the last line are products of matrices, as in *linear*. This is what automatic differentiation would
# record, one operation after the other. Here it is for one head. (`visible` says which keys a query may see; section 3
# explains it.)


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
# In the numerator it changes $a_{im}$ alone, by the factor $a_{im}$; in the denominator it makes all of them smaller:
#
# $$ \frac{\partial a_{ij}}{\partial s_{im}} = a_{ij}\,\big(\mathbf 1[j=m] - a_{im}\big) $$
#
# By equation (1) of chapter 01, sum over everything that $s_{im}$ reaches:
#
# $$ \mathtt{ds}_{im} = \sum_j \mathtt{da}_{ij}\,a_{ij}\big(\mathbf 1[j=m]-a_{im}\big)
# \;=\; a_{im}\Big(\mathtt{da}_{im} - \sum_j a_{ij}\,\mathtt{da}_{ij}\Big) \tag{2} $$
#
# In words: $\mathtt{da}_{im}$ is how much the loss changes with the weight on key $m$. The sum is
# the average of this over all keys, weighted as the query weights them now. *Only the difference from this average
# counts*, and it counts in proportion to the weight that the key already has. What one key gains the others
# lose, so every row of `ds` adds up to zero.

# %%
o, cache = head_forward(q, k, v)
do = rng.standard_normal(o.shape)  # (T, Dh), from the operations after it
dq, dk, dv = head_backward(do, cache)
a = cache[-1]  # (T, S)
da = do @ v.T  # (T, S)
ds = a * (da - (da * a).sum(1, keepdims=True))  # (T, S), equation (2)

# both ways give the same
np.testing.assert_allclose(ds @ k / np.sqrt(Dh), dq, rtol=1e-12)
np.testing.assert_allclose(ds.T @ q / np.sqrt(Dh), dk, rtol=1e-12)
assert np.abs(ds.sum(1)).max() < 1e-15  # every row of ds adds up to zero

# the package takes (B, T, H, Dh); here one text and one head
out, package_cache = ops.attention_forward(q[None, :, None], k[None, :, None], v[None, :, None])
package = ops.attention_backward(do[None, :, None], package_cache)[:3]
for theirs, ours in zip((out, *package), (o, dq, dk, dv)):
    np.testing.assert_allclose(theirs[0, :, 0], ours, rtol=1e-12, atol=1e-15)

# the average in (2) needs no da at all: Σ_j a_ij (do_i · v_j) = do_i · Σ_j a_ij v_j = do_i · o_i
np.testing.assert_allclose((da * a).sum(1), (do * o).sum(1), rtol=1e-12)

# %% [markdown]
# The last line will be useful later. The average, which the compiled code calls *delta*, follows from two vectors
# of Dh numbers, before any weight of the row is read. That is why compiled code need not store a whole row of weights
# ([chapter 11b](11b_attention_in_numba.ipynb)).
#
# The next picture shows `a` and `ds` for one query, with the same `da` twice: once with a softmax that is undecided,
# and once with all scores six times as large, so that key 2 has nearly all the weight. The loss would fall if weight
# moved from key 2 to key 5, and from key 0 to key 5 even more. **Before you look:** which of the two softmaxes has the
# larger `ds`?

# %% jupyter={"source_hidden": true}
# Draws ∂a/∂s of one query, and its weights and ds with an undecided and a nearly certain softmax.
scores = np.array([0.3, -0.8, 1.2, 0.1, -0.4, 0.6])
wanted = np.array([1.0, -0.5, -0.4, 0.6, 0.2, -0.9])  # da
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.7), gridspec_kw={"width_ratios": (1, 1.15, 1.15)})
sizes = []
for ax, sharpness, name in zip(axes[1:], (1, 6), ("undecided", "nearly certain")):
    row = softmax(sharpness * scores)
    jacobian = np.diag(row) - np.outer(row, row)
    gradient = row * (wanted - (wanted * row).sum())
    np.testing.assert_allclose(jacobian @ wanted, gradient, atol=1e-15)
    sizes.append(np.abs(gradient).sum())
    if sharpness == 1:
        image = axes[0].imshow(jacobian, cmap="RdBu_r", vmin=-0.25, vmax=0.25)
    j = np.arange(len(scores))
    ax.bar(j - 0.2, row, width=0.4, color=BLUE, label="a")
    style = {"color": VERMILION, "hatch": "///", "edgecolor": "white"}
    ax.bar(j + 0.2, gradient, width=0.4, label="ds", **style)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.set(title=f"{name}: Σ|ds| = {sizes[-1]:.2f}", xlabel="key j", ylim=(-0.4, 1.05))
axes[1].legend(frameon=False)
axes[0].set(title="∂a / ∂s of the undecided one", xlabel="score $s_m$", ylabel="weight $a_j$")
figure.colorbar(image, ax=axes[0], shrink=0.8)
plt.show()
assert sizes[1] < sizes[0] / 10

# %% [markdown]
# The undecided one, more than ten times. The other has almost no gradient, although key 5 would be better: `ds` is a
# sum of terms with the factors $a_{im}(1-a_{im})$ and $a_{ij}\,a_{im}$, which all vanish when one weight is 1. A head
# that is certain hardly learns any more. (On the left is the matrix $\partial a/\partial s$. Its columns add up to
# zero: what one weight gains the others lose.)
#
# ## 3 · Nobody sees the future
#
# A language model guesses the next character at every position, so a query must not see what comes after it. In a
# segment of T positions, key $j$ lies $\mathtt{dist}(i,j) = i - j$ positions before query $i$. The **causal mask**
# keeps only distances of at least 0:
#
# $$ o_i = \sum_{j\,:\,\mathtt{dist}(i,j)\,\ge\,0} a_{ij}\,v_j \tag{3} $$
#
# A score that is masked becomes $-\infty$ before the softmax, and its weight $e^{-\infty}=0$. By (2)
# its `ds` is 0 as well: no gradient passes through a mask.

# %%
show_source(visible_keys, docstring=False)

# %% [markdown]
# (If there are more keys than queries, S > T, the first S − T keys precede the segment. They and `span` belong to
# [chapter 04](04_positions_and_memory.ipynb).) **Before you look:** the scores below are random. One row of the
# weights is nevertheless known in advance. Which one, and what is in it?

# %% jupyter={"source_hidden": true}
# Draws random scores, the same with the mask, and the weights.
s = rng.standard_normal((6, 6))
visible = visible_keys(6, 6, None)
masked = np.where(visible, s, -np.inf)
a = softmax(masked.copy())
figure, axes = plt.subplots(1, 3, figsize=(9, 2.6))
panels = (("scores s", s, "RdBu_r"), ("with the mask", masked, "RdBu_r"), ("weights a", a, "Blues"))
for ax, (name, matrix, colours) in zip(axes, panels):
    low, high = (0, 1) if colours == "Blues" else (-2.5, 2.5)
    ax.imshow(np.where(np.isinf(matrix), np.nan, matrix), cmap=colours, vmin=low, vmax=high)
    for (i, j), value in np.ndenumerate(matrix):
        shown = "−∞" if np.isinf(value) else f"{value:.1f}"
        dark = value > 0.6 if colours == "Blues" else abs(value) > 1.5 and np.isfinite(value)
        ax.text(j, i, shown, ha="center", va="center", size=7, color="white" if dark else "black")
    ax.set(title=name, xlabel="key j", xticks=range(6), yticks=range(6))
axes[0].set_ylabel("query i")
plt.show()
assert a[0, 0] == 1 and np.allclose(a.sum(1), 1) and (a[~visible] == 0).all()

# %% [markdown]
# The first query sees one key, its own, so this key gets all the weight. Section 5 shows what that means for tests. And
# the future is indeed invisible: change the last key and the last value, and only the last query notices.

# %%
q4, k4, v4 = (rng.standard_normal((1, 6, 2, 4)) for _ in range(3))  # (B, T, H, Dh)
before, _ = ops.attention_forward(q4, k4, v4)
k4[:, -1], v4[:, -1] = 7, -7
after, _ = ops.attention_forward(q4, k4, v4)
assert np.array_equal(after[:, :-1], before[:, :-1])
assert not np.allclose(after[:, -1], before[:, -1])

# %% [markdown]
# ## 4 · Several heads: a sum
#
# One head looks for one thing. H heads, each with its own Dh columns of $W_q$, $W_k$ and $W_v$, look for different
# things. Their outputs, concatenated, are H · Dh numbers, and a last matrix $W_o$ maps them back to D. A
# matrix product with a concatenation is a sum of products:
#
# $$ y = [o_0;\dots;o_{H-1}]\,W_o + b_o = \sum_h o_h\,W_o^{(h)} + b_o \tag{4} $$
#
# with $o_h$ (T, Dh) for the output of head h, and $W_o^{(h)}$ for the rows $h\,\mathtt{Dh}\dots(h+1)\,\mathtt{Dh}-1$ of $W_o$.
#
# **A head is a summand.** The whole project rests on this: a summand can be weighted
# ([chapter 02](02_hard_concrete_gate.ipynb)), and left out ([chapter 07](07_removing_heads.ipynb)).

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
# So every head of every layer adds something to the same D numbers of its position, which are called the **residual
# stream**. A layer only has to learn what to change. Without any of its heads it passes $x$ on (plus $b_o$). And on the
# way back `dout` reaches every layer below unchanged, together with what comes back through the heads.
#
# ## 5 · Two traps in testing attention
#
# **One query, one key.** It is tempting to test on the smallest example, T = S = 1. The next cell plants five bugs in
# `head_backward`, one at a time, and lets the gradient checker look at each at T = S = 1 and at T = S = 3. **Before
# you look:** which of the five does it find with one query and one key?

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
# None. A query that sees a single key gives it the weight 1 *whatever the score*. The true `dq` and `dk` are zero, and a
# backward pass that multiplies `ds` = 0 by something wrong returns the right result. That hides three of the five. The
# other two, a sum over the wrong axis and a missing transpose, make no difference to a 1 × 1 matrix. At T = 3 all are
# found. The list teaches a second rule: with T = S a matrix that was not transposed still has the right *shape*. Choose all
# sizes different, as in section 2, and NumPy itself rejects it. (In [chapter 10b](10b_all_attention.ipynb) more keys join the
# softmax; then T = 1 is no longer blind.)
#
# **A gradient that is exactly zero.** The model's keys have no bias. Why? Say $k_j = n_j W_k + b_k$, with $n_j$ for the
# input of the key. Then every score of row $i$ gets the same $q_i\cdot b_k/\sqrt{\mathtt{Dh}}$, and, by the invariance
# of section 1, nothing changes at all. In terms of `ds`:
#
# $$ \mathtt{db}_k = \sum_j \mathtt{dk}_j = \tfrac{1}{\sqrt{\mathtt{Dh}}}\sum_i q_i\underbrace{\textstyle\sum_j\mathtt{ds}_{ij}}_{=\,0} = 0 $$
#
# The parameter has no effect, and it is the trap of question 4 of chapter 01: the backward pass returns rounding noise
# for it, and so does any measurement.


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


values = [rng.standard_normal(shape) for shape in ((3, 4), (5, 6), (6, 4), (4,), (5, 4))]
names = ["q", "n", "Wk", "bk", "v"]
assert_gradients(biased_forward, biased_backward, *values, argument_names=names)

o, cache = biased_forward(*values)
dbk = biased_backward(rng.standard_normal(o.shape), cache)[3]  # (Dh,)
print("db_k:", dbk)
assert np.abs(dbk).max() < 1e-14

# %% [markdown]
# A checker that looks at relative errors of single entries would compare this noise with the noise of its measurement,
# find them far apart, and reject a correct program. `assert_gradients` accepts it, because it relates the error to the
# norm of the whole tensor, and both tensors are negligible next to its floor.
#
# ## Recap
#
# - A head compares its queries with its keys, turns the scores into weights, and averages the values. The scores are
#   divided by $\sqrt{\mathtt{Dh}}$, because a softmax of large scores has hardly any gradient.
# - $\mathtt{ds} = a\,(\mathtt{da} - \sum a\,\mathtt{da})$: the score of a key changes by how far the key is from the
#   row's average.
# - The heads of a layer are summands, added to the residual stream. Test them with several queries, and with all sizes
#   different.
#
# ## Now you
#
# Replace the line `raise NotImplementedError(…)` by your code and run the cell. It prints nothing if the check passes.

# %% [markdown]
# ### Exercise 1 · One head, backwards in five lines
#
# Write the backward pass of a causal head by the second way, equation (2). The cache holds q (T, Dh), k and v (S, Dh)
# and the weights a (T, S), whose masked entries are 0. Return dq, dk and dv, in the shapes of q, k and v.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.ops.attention import softmax, visible_keys
from tinyprune.testing import assert_gradients


def head_forward(q, k, v):
    s = q @ k.T / np.sqrt(q.shape[1])
    s[~visible_keys(len(q), len(k), None)] = -np.inf
    a = softmax(s)
    return a @ v, (q, k, v, a)


def head_backward(do, cache):
    """do (T, Dh), cache (q, k, v, a) → dq (T, Dh), dk (S, Dh), dv (S, Dh)."""
    raise NotImplementedError("write head_backward: return the gradients dq, dk and dv")


q, k, v = (np.random.default_rng(i).standard_normal((n, 4)) for i, n in enumerate((3, 5, 5)))
assert_gradients(head_forward, head_backward, q, k, v, argument_names=["q", "k", "v"])

# %% [markdown]
# <details><summary>Hint</summary>
#
# Go from the last line to the first: $o = a\,v$ gives `da` and `dv`; equation (2) gives `ds`, with the average over the
# keys of a row; $s = q\,k^\top/\sqrt{\mathtt{Dh}}$ gives `dq` and `dk`. The mask needs no line of its own.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def head_backward(do, cache):
#     q, k, v, a = cache
#     da, dv = do @ v.T, a.T @ do
#     ds = a * (da - (a * da).sum(1, keepdims=True))
#     dq = ds @ k / np.sqrt(q.shape[1])
#     dk = ds.T @ q / np.sqrt(q.shape[1])
#     return dq, dk, dv
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · A whole layer, backwards
#
# The layer is `out = x + y`, with y from H heads as in section 4, without biases. Its input x (T, D) is used four
# times. Write the backward pass: it receives dout (T, D) and returns the gradients of x, Wq, Wk, Wv (D, H · Dh) and Wo
# (H · Dh, D), in this order and in their shapes. `ops.attention_backward(do, cache)` returns dq, dk and dv, each (1, T,
# H, Dh), and then Nones.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.testing import assert_gradients

H, Dh = 3, 4


def layer_forward(x, Wq, Wk, Wv, Wo):
    q, k, v = ((x @ W).reshape(1, -1, H, Dh) for W in (Wq, Wk, Wv))
    o, attention = ops.attention_forward(q, k, v)  # (1, T, H, Dh)
    o = o.reshape(-1, H * Dh)
    return x + o @ Wo, (x, Wq, Wk, Wv, Wo, o, attention)


def layer_backward(dout, cache):
    """dout (T, D), cache of layer_forward → dx, dWq, dWk, dWv, dWo."""
    raise NotImplementedError("write layer_backward: return dx, dWq, dWk, dWv and dWo")


rng = np.random.default_rng(0)
values = [rng.standard_normal(shape) for shape in ((5, 6), (6, 12), (6, 12), (6, 12), (12, 6))]
assert_gradients(
    layer_forward, layer_backward, *values, argument_names=["x", "Wq", "Wk", "Wv", "Wo"]
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Reverse the three lines. $o\,W_o$ gives dWo and do, which has to be reshaped to (1, T, H, Dh) for
# `ops.attention_backward`. Each of q, k and v is a linear layer: chapter 01 has its two gradients. What is used four
# times receives the sum of four gradients, and the first of them is dout itself.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def layer_backward(dout, cache):
#     x, Wq, Wk, Wv, Wo, o, attention = cache
#     dWo = o.T @ dout
#     do = (dout @ Wo.T).reshape(1, -1, H, Dh)
#     dq, dk, dv = (d.reshape(-1, H * Dh) for d in ops.attention_backward(do, attention)[:3])
#     dx = dout + dq @ Wq.T + dk @ Wk.T + dv @ Wv.T
#     return dx, x.T @ dq, x.T @ dk, x.T @ dv, dWo
# ```
#
# </details>

# %% [markdown]
# Assignment [A2](assignments/README.md) continues from here: tasks a2_1 (the softmax), a2_2 and a2_3 (attention,
# forwards and backwards).
#
# ## Questions
#
# 1. The softmax of one score is always 1, so attention over one key has no gradient for q and k. Does the same happen
#    in a trained model, whose queries see dozens of keys?
#
# <details><summary>Answer</summary>
#
# Approximately, whenever a query puts nearly all of its weight on one key: then `ds` ≈ 0 in that row, see the right
# panel of section 2. This is one reason to begin with small scores, which the root and small initial weights ensure.
#
# </details>
#
# 2. The rows of $W_o$ that belong to head 2 are all zero. The head adds nothing to the output. Which of its parameters
#    have a gradient that is not zero?
#
# <details><summary>Answer</summary>
#
# Only these rows, $\mathtt{dW}_o^{(2)} = o_2^\top\mathtt{dout}$: the head's output is there, even if nothing reads it.
# The gradient of that output, $\mathtt{dout}\,W_o^{(2)\top}$, is zero, so $W_q$, $W_k$ and $W_v$ of this head get
# none. After one step the rows are no longer zero, and all of the head learns.
#
# </details>
#
# 3. Take a query that sees all keys. Shuffle the keys, and the values in the same way. What happens to its output?
#
# <details><summary>Answer</summary>
#
# Nothing: the sum over keys has the same terms in another order. A head as it is here cannot know which of two
# characters came first. The next chapter tells it.
#
# </details>
#
# **Next:** [04 positions and memory](04_positions_and_memory.ipynb), which lets a query know how far away a key is,
# and read beyond the beginning of its segment. The operation of this chapter is
# [`ops/attention.py`](../tinyprune/ops/attention.py), the layer around it
# [`model/blocks.py`](../tinyprune/model/blocks.py).

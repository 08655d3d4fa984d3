# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · All-attention: where the feed-forward went, and what one head owns
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/03_all_attention.ipynb)
# &nbsp; ← [02 attention by hand](02_attention_by_hand.ipynb) · [all chapters](README.md) · [04 the Hard-Concrete gate](04_hard_concrete_gate.ipynb) →
#
# **After this chapter you can** read a feed-forward block as attention over fixed keys, build persistent vectors into
# the softmax of chapter 02 and derive their gradients, and say exactly which parameters disappear with a head, and
# which do not. You will also see what persistent vectors do in a small trained model, which is only partly what one
# would expect, and heads that do better; the other chapters use these.
#
# **You need** [chapter 02](02_attention_by_hand.ipynb). It takes forty minutes to read and two minutes to run, because
# it trains a small model with the paper's heads (afterwards ten seconds).

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
import dataclasses
import inspect
import math
import re
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.ticker import EngFormatter

from tinyprune import (
    Transformer,
    assert_gradients,
    check_gradients,
    count_parts,
    init_parameters,
    load_preset,
    ops,
)
from tinyprune.config import of_kind
from tinyprune.data import Segments
from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies.architecture import plot_architecture
from tinyprune.model.counting import count_parameters, head_part
from tinyprune.model.layers import attention_block_forward
from tinyprune.model.parameters import (
    HEAD_AXIS,
    WIDE,
    layer_parameters,
    parameter_shapes,
    take_heads,
)
from tinyprune.notebook import (
    baseline_run,
    results,
    show_source,
    sliders,
    use_style,
    without_docstrings,
)
from tinyprune.plots import BLUE, GREY, VERMILION
from tinyprune.tables import text_table
from tinyprune.training.evaluation import evaluate

use_style()
rng = np.random.default_rng(0)

# %% [markdown]
# ## 1 · The block that pruning cannot reach
#
# The layer of an ordinary Transformer has two halves. Attention, with its heads, brings information from other
# positions. Then a **feed-forward block** works on each position by itself: it maps D numbers to F, usually F = 4 D,
# sets negative ones to zero, and maps F back to D. Count the weights: attention has $W_q, W_k, W_v, W_o$ with $D^2$
# each, and relative positions add $W_r$; the feed-forward block has two matrices of $D\cdot F = 4D^2$.
#
# $$ \text{attention: } 5\,D^2 \qquad\qquad \text{feed-forward: } 2\,D\,F = 8\,D^2 $$
#
# Heads are what we want to remove. But the larger half of the layer belongs to no head: remove all heads, and more than
# half of the model is still there. The paper that this project rebuilds (Shim et al. 2021) therefore starts from a
# Transformer without that half.
#
# ## 2 · A feed-forward block is attention to things that never change
#
# Write the block down and look at one of its F hidden units at a time. Column $f$ of $W_1$ and row $f$ of $W_2$ belong to it:
#
# $$ \mathtt{out} = \max(x W_1 + b_1,\,0)\,W_2 + b_2 = \sum_{f} \underbrace{\max(x\cdot k_f + b_f,\,0)}_{\text{weight}}\;\underbrace{v_f}_{\text{value}} + b_2
# $$
#
# with $k_f$ for column $f$ of $W_1$ and $v_f$ for row $f$ of $W_2$.
#
# This looks familiar. $x$ is a query, it is compared with F **keys**, and the result is a weighted sum of F **values**.
# Two things differ from attention: the weights come from a ReLU instead of a softmax; and keys and values do not depend
# on the text. They are parameters: not what was said a few lines above, but what is always true.

# %%
show_source(ops.feedforward_forward, docstring=False)


# %%
def feedforward_as_attention(x, W1, b1, W2, b2):
    """Compute the same block as a query's scores, weights, and weighted sum."""
    keys, values = W1.T, W2  # (F, D) both
    score = x @ keys.T + b1  # (R, F)
    weight = np.maximum(score, 0)  # (R, F): this stands where attention has its softmax
    return sum(weight[:, f : f + 1] * values[f] for f in range(len(keys))) + b2  # (R, D)


R, D, F = 3, 4, 9
block = [rng.standard_normal(shape) for shape in ((R, D), (D, F), (F,), (F, D), (D,))]
np.testing.assert_allclose(
    ops.feedforward_forward(*block)[0], feedforward_as_attention(*block), rtol=1e-12
)

# %% [markdown]
# ## 3 · Persistent vectors
#
# Sukhbaatar et al. (2019, *Augmenting Self-attention with Persistent Memory*) take this literally. If a feed-forward
# block is attention over fixed keys, let attention do it: give every head N learned keys and values, `pk` and `pv`, and
# put them in the **same softmax** as the context. The block itself, its ReLU and its biases are dropped.
#
# $$ s^p_{in} = \frac{q_i\cdot\sqrt{\mathtt{Dh}}\,\mathtt{pk}_n}{\sqrt{\mathtt{Dh}}} = q_i\cdot\mathtt{pk}_n \qquad\quad
# (a_i, a^p_i) = \mathrm{softmax}\big(\underbrace{s_{i1}\dots s_{iS}}_{\text{context}},\underbrace{s^p_{i1}\dots s^p_{iN}}_{\text{persistent}}\big) $$
#
# $$ o_i = \sum_j a_{ij}\,v_j + \sum_n a^p_{in}\sqrt{N}\,\mathtt{pv}_n $$
#
# Together, the persistent vectors of all heads have 2 · H · N · Dh = 2 · N · D numbers, the matrices of a feed-forward
# block 2 · D · F. With N = F the two layers have the same size.
#
# Persistent keys have no position, so u, w and r do not apply to them, and no mask hides them. One can think of them as
# a memory that never scrolls away, and the next cell takes that literally: for attention without relative positions,
# `pk` and `pv` are *the same as* N more keys $\sqrt{\mathtt{Dh}}\,\mathtt{pk}$ and values $\sqrt N\,\mathtt{pv}$ in
# front of the text.

# %%
B, T, S, H, Dh, N = 2, 3, 5, 4, 6, 7  # all different
q = rng.standard_normal((B, T, H, Dh))
k, v = rng.standard_normal((B, S, H, Dh)), rng.standard_normal((B, S, H, Dh))
pk, pv = rng.standard_normal((H, N, Dh)), rng.standard_normal((H, N, Dh))


def in_front(persistent, factor, context):
    """Put (H, N, Dh) in front of the S positions of every text of the batch: return (B, N + S, H, Dh)."""
    rows = np.broadcast_to(factor * persistent.swapaxes(0, 1), (B, N, H, Dh))
    return np.concatenate([rows, context], axis=1)


together, cache = ops.attention_forward(q, k, v, pk=pk, pv=pv)
as_text, _ = ops.attention_forward(q, in_front(pk, math.sqrt(Dh), k), in_front(pv, math.sqrt(N), v))
np.testing.assert_allclose(together, as_text, rtol=1e-11)
np.testing.assert_allclose(cache.a.sum(-1), 1)  # one softmax over all S + N

# %% [markdown]
# There is one thing that a feed-forward block does not have: *competition*. With a ReLU every hidden unit decides for
# itself. In the softmax all of them share one unit of weight with each other and with the text. Here are ten scores,
# turned into weights by a ReLU and by a softmax, and then the same ten beside a text that has one very attractive key.

# %%
score = np.sort(rng.standard_normal(10))[::-1]  # of one query with ten fixed keys
texts = {
    "softmax, dull text": np.array([0.1, -0.3, 0.2]),
    "softmax, one strong key": np.array([0.1, 5.0, 0.2]),
}
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.5))
axes[0].bar(range(10), np.maximum(score, 0), color=VERMILION)
axes[0].set(
    title="ReLU, whatever the text", ylabel="weight", xlabel="fixed key", xticks=range(0, 10, 3)
)
shares = []
for ax, (name, context) in zip(axes[1:], texts.items()):
    a = np.exp(np.concatenate([score, context]))
    a /= a.sum()
    shares.append(a[:10].sum())
    ax.bar(range(10), a[:10], color=VERMILION)
    ax.bar(range(11, 14), a[10:], color=BLUE, hatch="///", edgecolor="white")
    ax.set(
        title=f"{name}: {shares[-1]:.0%} fixed",
        ylim=(0, 1),
        xlabel="fixed keys, then text (hatched)",
        xticks=[],
    )
plt.show()
assert shares[1] < 0.3 < shares[0]

# %% [markdown]
# ### Why the two roots
#
# `pk` and `pv` are *parameters*: they start small, like weights, and an optimizer such as AdamW moves each entry by
# about its learning rate per step. But they are used beside $k$ and $v$, which are *activations*, sums over D inputs
# and much larger. The factors compensate for that.
#
# - $\sqrt{\mathtt{Dh}}$ on the keys cancels against the $1/\sqrt{\mathtt{Dh}}$ of the score, so that what is stored is
#   compared with the query directly.
# - $\sqrt N$ on the values is for the average. As long as the weights are nearly uniform, $a^p_{in}\approx 1/N$, the
#   head outputs the mean of N independent vectors, which is $\sqrt N$ times smaller than each of them: with entries of
#   variance $\sigma^2$,
#
# $$ \mathrm{Var}\Big(\sum_n \tfrac1N\sqrt N\,\mathtt{pv}_{nd}\Big) = N\cdot\tfrac1{N^2}\cdot N\cdot\sigma^2 = \sigma^2 \qquad\text{for any } N. $$

# %%
small = dataclasses.replace(load_preset("tiny").model, persistent="softmax", V=100)
for N_new in (16, 256, 4096):
    fresh = init_parameters(dataclasses.replace(small, N=N_new), rng)["layers.0.pv"]  # (H, N, Dh)
    mean = fresh.mean(1)  # (H, Dh): the output for uniform weights
    print(
        f"N {N_new:4}: entries of pv have size {fresh.std():.4f}, their mean {mean.std():.4f}, "
        f"times √N {math.sqrt(N_new) * mean.std():.4f}"
    )
    assert abs(math.sqrt(N_new) * mean.std() / fresh.std() - 1) < 0.3

# %% [markdown]
# ## 4 · Their gradients
#
# There is nothing new: they are keys and values. Equation (2) of chapter 02 holds for the whole row of S + N weights,
# with *one* average over both kinds. (Through that average the two compete: a text position that is better than
# expected takes weight from the persistent vectors, too.)
#
# $$ \mathtt{da}^p_{in} = \mathtt{do}_i\cdot\sqrt N\,\mathtt{pv}_n \qquad\quad
# \mathtt{ds}^p_{in} = a^p_{in}\Big(\mathtt{da}^p_{in} - \sum_j a_{ij}\,\mathtt{da}_{ij} - \sum_{n'} a^p_{in'}\,\mathtt{da}^p_{in'}\Big) $$
#
# $\mathtt{pv}_n$ enters $o_i$ with the factor $a^p_{in}\sqrt N$; $\mathtt{pk}_n$ enters the score with the factor
# $q_i$. Both serve every query of every text, so their gradients are sums over all of them. The query also gets a
# gradient from the persistent keys, this time without a root:
#
# $$ \mathtt{dpv}_n = \sqrt N\sum_{b,i} a^p_{in}\,\mathtt{do}_i \qquad\quad \mathtt{dpk}_n = \sum_{b,i}\mathtt{ds}^p_{in}\,q_i \qquad\quad
# \mathtt{dq}_i \mathrel{+}= \sum_n \mathtt{ds}^p_{in}\,\mathtt{pk}_n $$
#
# You have seen the two complete functions in [chapter 02](02_attention_by_hand.ipynb), section 6. These are their lines
# about persistent vectors.


# %%
def lines_about(function, pattern):
    """Print the lines of a function that match, with dots where others are left out."""
    skipped = False
    for line in without_docstrings(inspect.getsource(function)).splitlines():
        if re.search(pattern, line) and not re.search(
            "def |NDArray|check_arguments|return|= cache", line
        ):
            print(("    ⋮\n" if skipped else "") + line)
            skipped = False
        else:
            skipped = True


persistent_lines = r"\bN\b|d?pk\b|dpv\b|persistent\b"
lines_about(ops.attention_forward, persistent_lines)
print("\n" + "─" * 60 + "\n")
lines_about(ops.attention_backward, persistent_lines)

# %% [markdown]
# Now check all arguments except the gate at once, with all sizes different:

# %%
relative = [rng.standard_normal(shape) for shape in ((S, H, Dh), (H, Dh), (H, Dh))]  # r, u, w
arguments = [q, k, v, *relative, pk, pv, None]
argument_names = ["q", "k", "v", "r", "u", "w", "pk", "pv", "gate"]
check = partial(check_gradients, argument_names=argument_names)
same_length = partial(ops.attention_forward, span=S - T)
assert_gradients(
    same_length, ops.attention_backward, *arguments, name="attention", argument_names=argument_names
)
for record in check(same_length, ops.attention_backward, *arguments):
    print(f"d{record.argument:2}: relative error {record.relative_error:.1e}")

# %% [markdown]
# Two plausible mistakes show that the check would notice: $\sqrt N$ forgotten in `dpv`, and two averages instead of
# one, as if context and persistent vectors had a softmax each.


# %%
def without_root_N(dout, cache):
    """Compute attention_backward without √N in dpv."""
    *others, dpv, dgate = ops.attention_backward(dout, cache)
    return *others, dpv / math.sqrt(N), dgate


def two_averages(dout, cache):
    """Compute attention_backward with dpk from a softmax over the persistent keys alone."""
    *others, dpk, dpv, dgate = ops.attention_backward(dout, cache)
    a = cache.a[..., S:]  # (B, H, T, N)
    da = dout.swapaxes(1, 2) @ (math.sqrt(N) * pv).swapaxes(1, 2)  # (B, H, T, N)
    ds = a * (da - (da * a).sum(-1, keepdims=True))  # (B, H, T, N)
    return *others, (ds.swapaxes(-1, -2) @ cache.q).sum(0), dpv, dgate


for backward in (without_root_N, two_averages):
    failed = [
        record.argument for record in check(same_length, backward, *arguments) if not record.passed
    ]
    print(f"{backward.__name__}: wrong gradient found for {', '.join(failed)}")
    assert failed == (["pv"] if backward is without_root_N else ["pk"])

# %% [markdown]
# ## 5 · The whole layer
#
# This is the only block that an all-attention model of the paper has: context, LayerNorm, projections, attention, $W_o$,
# residual connection. There is no second half.

# %%
show_source(attention_block_forward, docstring=False)

# %% [markdown]
# ## 6 · Where a trained model's weight goes
#
# The next cell trains a small model with such heads, or loads it if you have run this chapter before. In each layer it
# has H = 8 heads with N = 256 persistent vectors each; with M = 64 a query sees 65 positions of text. If it weighted all
# keys equally, 256 of 321 parts, 80 % of its weight, would be persistent. In an untrained model it is about 70 %: the
# scores of the text vary more than those of the persistent keys, and the exponential favours the largest.
#
# (The options are those that did best for these heads in the study that section 9 describes. The model of chapter 02 has
# heads of another kind, head networks, whose softmax is over the text alone; section 10 compares the two.)

# %%
published = {"model.persistent": "softmax", "model.N": 256, "model.init_gain": 4.0}
published |= {"train.lr": 4e-3, "train.lr_min": 4e-4, "train.weight_decay": 0.01}
run = baseline_run(published, name="published")
trained, text = run.load("train").model, run.text
config = trained.config
T, M, N, L, H, Dh = (getattr(config, name) for name in ("T", "M", "N", "L", "H", "Dh"))


def read(params, segments=4, B=8):
    """Return all attention weights, (L, B, H, T, S + N), and the last cache, for a few segments of held-out text."""
    model = Transformer(config, params)  # on the operations of ops/, which keep all weights
    stream, memory, weights = Segments(text.test, B, T), None, []
    for step in range(segments):
        ids, _, _ = stream.batch(step)  # (B, T)
        _, memory, cache = model.forward(ids, memory)
        if step:  # the memory is full
            weights.append(np.stack([layer["attention"].a for layer in cache["layers"]]))
    return np.concatenate(weights, 1), cache, ids


weights, cache, ids = read(trained.params)
fresh, _, _ = read(init_parameters(config, np.random.default_rng(0)), segments=2)
share = weights[..., -N:].sum(-1).mean((1, 3))  # (L, H)
share_fresh = fresh[..., -N:].sum(-1).mean((1, 3))  # (L, H)

figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True)
for ax, values, name in ((axes[0], share_fresh, "before training"), (axes[1], share, "trained")):
    image = ax.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (layer, head), value in np.ndenumerate(values):
        colour = "white" if value > 0.6 else "black"
        ax.text(head, layer, f"{value:.0%}", ha="center", va="center", fontsize=8, color=colour)
    ax.set(
        title=f"weight on persistent vectors, {name}",
        xlabel="head",
        xticks=range(H),
        yticks=range(L),
    )
axes[0].set_ylabel("layer")
figure.colorbar(image, ax=axes, label="share of the weight", shrink=0.9)
plt.show()
print(
    "mean by layer:", "  ".join(f"layer {i}: {value:.0%}" for i, value in enumerate(share.mean(1)))
)
assert 0.6 < share_fresh.mean() < N / (N + M + 1) and np.ptp(share) > 2 * np.ptp(share_fresh)

# %% [markdown]
# The heads have specialised. Those of the first layer read more text, while further up most heads give the larger part
# of their weight to persistent vectors. It is tempting to conclude that the upper layers "compute" more and "look"
# less. Before you do, look at single queries.

# %%
gap = 16
most, least = (np.unravel_index(f(share), (L, H)) for f in (np.argmax, np.argmin))


def draw_query(ax, layer, head, row, query):
    """Plot one query's weights over text and persistent vectors."""
    a = cache["layers"][layer]["attention"].a[row, head, query]  # (S + N,)
    distance = query + M - np.arange(M + T)
    seen = (distance >= 0) & (distance <= M)
    ax.bar(-distance[seen], a[: M + T][seen], color=BLUE, width=1)
    ax.bar(np.arange(N) / 2 + gap, a[-N:], color=VERMILION, width=0.5)  # N are many: half as wide
    ax.axvline(gap / 2, color=GREY, linewidth=0.8, linestyle=":")
    ax.set_ylim(0, max(0.1, a.max() * 1.1))
    ax.set_xticks([-M, 0, gap, gap + (N - 1) / 2])
    ax.set_xticklabels([f"{M} before", "0", "n = 0", f"{N - 1}"])
    letter = text.tokenizer.decode(ids[row, query : query + 1])
    ax.set_title(f"layer {layer}, head {head}, query {letter!r}: {a[-N:].sum():.0%} persistent")


figure, axes = plt.subplots(2, 2, figsize=(9.5, 4.2))
for row, (layer, head) in zip(axes, (least, most)):
    for ax, query in zip(row, (20, 45)):
        draw_query(ax, layer, head, 3, query)
for ax in axes[:, 0]:
    ax.set_ylabel("weight")
for ax in axes[1]:
    ax.set_xlabel("left, blue: text, by distance      right, red: persistent vectors")
plt.show()


def spread_over(part):
    """Return the mean exp(entropy) of weights (…, keys), scaled to add up to 1: k for uniform weights over k keys."""
    p = part / part.sum(-1, keepdims=True)
    return np.exp(-(p * np.log(np.maximum(p, 1e-30))).sum(-1)).mean()


on_text, on_persistent = spread_over(weights[..., :-N]), spread_over(weights[..., -N:])
by_query = weights[..., -N:].sum(
    -1
)  # (L, B, H, T), the persistent share of each query of each head
mostly, hardly = (by_query > 0.9).mean(), (by_query < 0.1).mean()
print(f"more than 90 % persistent: {mostly:.0%} of all queries; less than 10 %: {hardly:.0%}")
print(
    f"on average a query spreads its weight as if evenly over {on_text:.0f} of {M + 1} positions of text, "
    f"and over {on_persistent:.0f} of {N} persistent vectors"
)
assert on_text / (M + 1) < on_persistent / N and mostly + hardly > 0.6


# %%
def draw(layer, head, query):
    _, ax = plt.subplots(figsize=(7, 2.4))
    draw_query(ax, layer, head, 3, query)
    plt.show()


sliders(draw, layer=(0, L - 1), head=(0, H - 1), query=(0, T - 1))

# %% [markdown]
# A head decides for each query: it mostly reads either the text or its persistent vectors, and the shares above are
# averages of both cases. Text weights are tall and few. Persistent weights are low and many: although some of them stand
# out, a head spreads them as if over half of its N vectors. A block that "looks something up" would choose more sharply.
# So what is the persistent part good for? Modify the trained model in three ways, in all its layers and without any
# retraining:
#
# - **averaged**: in each head, every `pv` is replaced by the mean of all N. The head still gives the same weight to
#   persistent vectors, but *which* of them it looks at no longer makes a difference;
# - **silenced**: every `pv` is zero. The weight is spent for nothing;
# - **removed**: there are no persistent vectors. The weight that they took must go to the text.


# %%
def with_pv(change, layers=range(L)):
    """Return the trained parameters with pv changed in some layers."""
    changed = {
        f"layers.{i}.pv": change(trained.params[f"layers.{i}.pv"]).astype(np.float32)
        for i in layers
    }
    return trained.params | changed


def bits(params, config=config):
    """Return bits per character on the test split."""
    model = Transformer(config, params, ops=trained.ops)
    return evaluate(model, text.test, text.characters["test"]).bits_per_character


def averaged(pv):
    return np.repeat(pv.mean(1, keepdims=True), N, axis=1)  # (H, N, Dh)


whole = bits(trained.params)
removed = {name: p for name, p in trained.params.items() if not name.endswith((".pk", ".pv"))}
cost = {
    "averaged": bits(with_pv(averaged)) - whole,
    "silenced": bits(with_pv(np.zeros_like)) - whole,
    "removed": bits(removed, dataclasses.replace(config, N=0)) - whole,
}
by_layer = {
    name: [bits(with_pv(change, [i])) - whole for i in range(L)]
    for name, change in (("averaged", averaged), ("silenced", np.zeros_like))
}

figure, axes = plt.subplots(1, 2, figsize=(9.5, 2.7))
bars = axes[0].barh(list(cost), list(cost.values()), color=[GREY, BLUE, VERMILION])
axes[0].bar_label(bars, fmt="%.2f", padding=3)
axes[0].invert_yaxis()
axes[0].set(
    xlabel="bits per character lost", title="in all layers", xlim=(0, 1.15 * max(cost.values()))
)
for offset, hatch, (name, values) in zip((-0.2, 0.2), (None, "///"), by_layer.items()):
    colour = GREY if name == "averaged" else BLUE
    bars = axes[1].bar(
        np.arange(L) + offset,
        values,
        width=0.4,
        color=colour,
        hatch=hatch,
        edgecolor="white",
        label=name,
    )
    axes[1].bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
axes[1].set(xlabel="layer", ylabel="bits per character lost", title="in one layer", xticks=range(L))
axes[1].margins(y=0.15)
axes[1].legend(frameon=False)
plt.show()
print(f"the model as it is: {whole:.2f} bits per character")
assert (
    0 < cost["averaged"] < cost["silenced"] < cost["removed"] / 2
    and cost["averaged"] > cost["silenced"] / 2
)
assert by_layer["silenced"][-1] < by_layer["silenced"][0] and share[-1].mean() > share[0].mean()

# %% [markdown]
# The order is the finding. Choosing among persistent vectors is worth something, above all in the first layer; so is a
# head's mean persistent value, which does not depend on the choice, but less; and by far the most is lost when the vectors
# themselves are removed. A softmax must spend all of its weight. A head that finds nothing of interest in the text
# needs somewhere to put it, and persistent vectors serve as that place, even when they are zero. (Xiao et al. 2023
# found that large language models use the first tokens of a text in this way, and called it an *attention sink*.) And
# the last layer, which gives them much more of its weight than the first, loses much less when they are silenced: weight
# is not importance. In all three cases, a model *trained* without persistent vectors would have found another way.
#
# In a model of this size, trained for 900 steps, persistent vectors are thus only partly the feed-forward block that
# section 2 promised. Section 9 shows the consequence.
#
# ## 7 · What one head owns
#
# Now for the reason why this project uses the architecture. Take a layer's parameters and colour those that serve only
# one head. Equation (4) of chapter 02 says which these are: Dh columns of $W_q, W_k, W_v, W_r$, Dh rows of $W_o$, and a
# row, or a slab, of u, w, pk and pv. The package says the same in two lines: the axis that runs over heads, and the
# parameters in which a head takes Dh entries along it instead of one (`WIDE`). All code about single heads uses them.
# (`log_alpha` belongs to the gates of [chapter 04](04_hard_concrete_gate.ipynb), and `net.pk`, `net.pb` and `net.pv` to
# the heads of section 10, and the biases `bq`, `bk` and `bv` to the GPT-2 of
# [chapter 11](11_a_real_language_model.ipynb), where several heads may share keys and values: `groups`.)

# %%
print(f"HEAD_AXIS = {HEAD_AXIS}\nWIDE = {WIDE}")
show_source(take_heads)


# %%
def owners(config, layer=0):
    """Return, for every parameter of a layer, an array with the head that each entry belongs to, or −1."""
    found = {}
    for name, shape in parameter_shapes(config).items():
        if not name.startswith(f"layers.{layer}."):
            continue
        short = name.removeprefix(f"layers.{layer}.")
        found[short] = np.full(shape, -1)
        if short in HEAD_AXIS:
            by_head = np.repeat(
                np.arange(config.heads[layer]), config.Dh if short in WIDE else 1
            )  # H or H·Dh
            axis = HEAD_AXIS[short]
            found[short][:] = by_head.reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return found


def flat(owner):
    """Reshape for a picture: heads' slabs (H, N, Dh) side by side, (N, H·Dh); a vector as one row."""
    if owner.ndim == 3:
        return owner.swapaxes(0, 1).reshape(owner.shape[1], -1)
    return owner.reshape(1, -1) if owner.ndim == 1 or owner.shape[0] == H else owner


map_of = owners(config)
shown = 3
figure = plt.figure(figsize=(9.5, 4.6))
figure.suptitle(
    f"All parameters of a layer: what goes with head {shown}, and what stays", fontsize=10
)
grid = figure.add_gridspec(3, 5, height_ratios=(1, 0.55, 0.16))
places = {name: grid[0, i] for i, name in enumerate(("Wq", "Wk", "Wv", "Wr", "Wo"))}
places |= {"pk": grid[1, 0:2], "pv": grid[1, 2:4]}
places |= {name: grid[2, i] for i, name in enumerate(("u", "w", "bo", "ln.scale", "ln.bias"))}
assert set(places) == set(map_of)  # the picture shows every parameter of the layer
colours = np.array(
    [[0.85, 0.85, 0.85], [0.92, 0.95, 0.98], [0.80, 0.88, 0.95], [0.0, 0.447, 0.698]]
)
for name, place in places.items():
    owner = flat(map_of[name])
    kind = np.where(owner < 0, 0, np.where(owner == shown, 3, 1 + owner % 2))
    ax = figure.add_subplot(place)
    ax.imshow(colours[kind], aspect="auto", interpolation="nearest")
    shape = " × ".join(map(str, map_of[name].shape))
    ax.set_title(f"{name}  ({shape})", fontsize=8)
    ax.set(xticks=[], yticks=[])
key = figure.add_subplot(grid[1, 4])
for y, (colour, word) in enumerate(
    ((3, f"head {shown}"), (2, "other heads, in turn"), (0, "shared"))
):
    key.add_patch(plt.Rectangle((0, y), 0.8, 0.7, color=colours[colour]))
    key.text(1.0, y + 0.35, word, va="center")
key.set(xlim=(0, 5), ylim=(3, -0.3))
key.axis("off")
plt.show()

# %% [markdown]
# (The vectors in the last row are drawn much too tall; they are a single row of numbers.) Grey parameters belong to no
# head: a LayerNorm and a bias. The rest splits into H equal pieces. `head_part` counts one of them by a formula. A
# formula about code should be tested against the code, here in three ways: by the dark blue entries in the picture, by
# the difference between two models' shapes, and by the arrays that `take_heads` leaves.

# %%
show_source(head_part, docstring=False)

# %%
part = head_part(config)

blue = sum(int((owner == shown).sum()) for owner in map_of.values())

kept = tuple(h for h in range(H) if h != shown)
smaller = dataclasses.replace(
    config, heads=(H - 1, *config.heads[1:]), head_ids=(kept, *config.head_ids[1:])
)
difference = count_parameters(config) - count_parameters(smaller)

layer = layer_parameters(trained.params, 0)
left = take_heads(layer, kept, Dh)
gone = sum(p.size for p in layer.values()) - sum(p.size for p in left.values())

print(
    f"one head: by the formula {part.parameters:,}, in the picture {blue:,}, by shapes {difference:,}, removed {gone:,}"
)
assert part.parameters == blue == difference == gone
for name, array in left.items():
    assert array.shape == parameter_shapes(smaller)[f"layers.0.{name}"]

without_heads = dataclasses.replace(config, heads=(0,) * L, head_ids=((),) * L)
print(
    f"{L * H} heads: {L * H * part.parameters:,} of the model's {count_parameters(config):,} parameters"
)
assert count_parameters(config) == count_parameters(without_heads) + L * H * part.parameters

# %% [markdown]
# ## 8 · In proportion, or not
#
# Here is the same count at the paper's size. Nothing is trained or even allocated: a configuration is enough. Beside it
# is a Transformer-XL of the same size, F = N, as `of_kind` makes it. (`tinyprune describe --preset paper-wt103` prints
# the whole table. Embeddings are left out of both, as is usual: they are the same for both.)

# %%
paper = load_preset("paper-wt103").model
xl = dataclasses.replace(paper, kind="transformer-xl", **of_kind(paper, "transformer-xl"))


def parts(config, heads_left):
    """Return parameters without embeddings, by kind, with `heads_left` heads in every layer."""
    ids = (tuple(range(heads_left)),) * config.L
    sums = {"shared": 0, "feed-forward": 0, "heads": 0}
    for part in count_parts(
        dataclasses.replace(config, heads=(heads_left,) * config.L, head_ids=ids)
    ):
        if part.part != "embedding and softmax":
            kind = next(
                (word for word in ("feed-forward", "heads") if part.part.endswith(word)), "shared"
            )
            sums[kind] += part.parameters
    return sums


heads_left = range(paper.H, -1, -1)
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.1), gridspec_kw={"width_ratios": (1, 1, 0.9)})
sizes = {}
for ax, (name, kind) in zip(axes, (("All-attention", paper), ("Transformer-XL", xl))):
    counted = [parts(kind, h) for h in heads_left]
    stack = {word: np.array([c[word] for c in counted]) for word in counted[0]}
    sizes[name] = sum(stack.values())
    areas = ax.stackplot(
        heads_left, stack.values(), labels=stack, colors=(GREY, "#F0B48C", "#8FC1E3")
    )
    for area, hatch in zip(areas, ("", "////", "")):
        area.set(hatch=hatch, edgecolor="white")
    ax.set(
        title=f"{name}, paper's size",
        xlabel="heads left in each layer",
        xlim=(paper.H, 0),
        ylim=(0, 6e7),
    )
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
axes[0].set_ylabel("parameters without embeddings")
axes[1].legend(loc="lower left", fontsize=8)
for (name, size), colour, marker in zip(sizes.items(), (BLUE, VERMILION), "os"):
    axes[2].plot(
        np.array(heads_left) / paper.H,
        size / size[0],
        color=colour,
        marker=marker,
        markersize=4,
        label=name,
    )
axes[2].plot([1, 0], [1, 0], color=GREY, linestyle=":")
axes[2].set(title="share that is left", xlabel="share of heads left", xlim=(1, 0), ylim=(0, 1.05))
axes[2].legend(frameon=False, fontsize=8, loc="lower left")
plt.show()

for name, kind in (("All-attention", paper), ("Transformer-XL", xl)):
    counted = parts(kind, kind.H)
    size = sum(counted.values())
    shares = {word: f"{count / size:.1%}" for word, count in counted.items()}
    print(f"{name:15} {size / 1e6:.1f} M, one head {head_part(kind).parameters:,}; shares {shares}")
for name, kind, gone in (("All-attention", paper, 0.43), ("Transformer-XL", xl, 0.25)):
    heads = round(gone * kind.heads_total)
    size = sum(parts(kind, kind.H).values()) - heads * head_part(kind).parameters
    print(
        f"{name:15} without {gone:.0%} of its heads ({heads} of {kind.heads_total}): {size / 1e6:.1f} M"
    )
assert sizes["All-attention"][-1] < 0.01 * sizes["All-attention"][0]
assert sizes["Transformer-XL"][-1] > 0.5 * sizes["Transformer-XL"][0]

# %% [markdown]
# All-attention falls along the diagonal, almost to nothing. Transformer-XL stops at its feed-forward blocks: without any head,
# and so without any connection between positions, more than 60 % of it would still be there.
#
# The last two lines are the pair that the paper compares. It reports 53.8 M parameters for both whole models, 30.7 M
# for All-attention without 43 % of its heads and 47.9 M for Transformer-XL without 25 %, and says that these two are
# about equally good. Our counts are 0.6 to 1.7 million higher; we do not know what the paper's counts leave out.
#
# ## 9 · But is it any good?
#
# A small model is worth having if it is better than *other* models of that size. The architecture study trained
# All-attention and Transformer-XL at 0.88 M parameters, N = F = 512, and head networks, the other kind of heads, which
# section 10 explains; it pruned all of them with the same gates, and gave all the same number of steps, with three seeds. Each kind
# has the learning rate, the range of initial weights and the weight decay that were best for it among 15 trials. (A number
# after ± and the word spread both mean the standard deviation over seeds.) These results come with the project
# ([`data/results/architecture-pydoc`](../data/results/architecture-pydoc/README.md), made by
# `tinyprune experiment architecture`); this notebook has not computed them.

# %%
rows = read_csv(results("architecture-pydoc", "results.csv").read_text())
summary = read_csv(results("architecture-pydoc", "summary.csv").read_text())
columns = ("method", "heads_open", "parameters", "bits_per_character", "spread", "seeds")
print(text_table([{name: row[name] for name in columns} for row in summary]))

figure = plot_architecture(rows)
figure.set_dpi(100)
display(figure)

# %%
comparison = read_csv(results("architecture-pydoc", "comparison.csv").read_text())
for row in comparison:
    print(
        f"at {row['parameters']:,} parameters Transformer-XL needs {row['difference']:+.3f} ± {row['spread']:.3f} bits "
        f"compared with {row['reference']} (same seeds)"
    )
differences = {
    name: [r for r in comparison if r["reference"] == name]
    for name in ("all-attention", "head-networks")
}
assert all(r["difference"] < -r["spread"] for r in differences["all-attention"])
assert all(r["difference"] > 0 for r in differences["head-networks"])

# %% [markdown]
# **All-attention as published does not keep the paper's promise at this scale.** Transformer-XL is better from the start
# and stays better at equal size until only a quarter of its heads is left: the lines cross near 0.63 M parameters. The
# *counting* of section 8 holds exactly; the quality that should go with it does not. (The paper's release draws its initial
# weights from a range that is four times too small for this model. With it the distance would be 0.33 bits in place of 0.09
# after 1,500 steps, see [`data/results/parity-pydoc`](../data/results/parity-pydoc/README.md).)
#
# ## 10 · Heads that keep the promise
#
# What is it that a feed-forward block has and persistent vectors lack? Section 6 suggests an answer: a persistent vector
# has to win weight from the text in a shared softmax before it can do anything, and in a small, briefly trained model
# much of that weight is merely parked. Two other heads are options of `model.persistent`.
#
# **A squared ReLU** (`"relu2"`). The persistent vectors stay as they are, N of width Dh, but they leave the softmax.
# Attention reads the context alone; then the head reads its persistent vectors with what it asked for and what it found:
#
# $$ z = \frac{q + o}{\mathrm{rms}(q + o)}, \qquad y = o + \max(z\,p_k^\top, 0)^2\; p_v $$

# %%
show_source(ops.persistent_memory_forward, docstring=False)

# %% [markdown]
# **A network of its own** (`"stream"`). Cut the feed-forward block into H parts, N hidden units each, and give every head
# one of them. Its persistent vectors are then as wide as the stream, D, and read the whole stream after attention has
# added to it; but what they add is multiplied by the same gate as the rest of their head:
#
# $$ \mathtt{out} = c \sum_h g_h\, \max(x\,p_{k,h}^\top + b_h, 0)\; p_{v,h} + b_o $$
#
# With all gates open this *is* a feed-forward block with F = H·N, so there is no reason why such a model should be worse
# than a Transformer-XL; but a head that is closed takes its share of the block along. (b_o, like the bias of Wo, belongs to
# no head.)

# %%
show_source(ops.head_networks_forward, docstring=False)

# %% [markdown]
# The trained model of chapter 02 has such heads, with N = 32 units each. Its networks together are a feed-forward block of
# F = 8 · 32 = 256, and one head owns as much as one of section 6, plus 32 biases: there are an eighth as many vectors, and
# they are eight times as wide. The next cell checks both, and compares the two models.

# %%
networks = baseline_run().load("train").model
layer = layer_parameters(networks.params, 0)
D, F = networks.config.D, networks.config.H * networks.config.N
x = rng.standard_normal((5, D)).astype(np.float32)
of_heads, _ = ops.head_networks_forward(x, *(layer[f"net.{p}"] for p in ("pk", "pb", "pv", "bo")))
keys, values = (layer[f"net.{p}"].reshape(F, D) for p in ("pk", "pv"))
block, _ = ops.feedforward_forward(x, keys.T, layer["net.pb"].ravel(), values, layer["net.bo"])
np.testing.assert_allclose(of_heads, block, atol=1e-5)

left = take_heads(layer, kept, networks.config.Dh)  # without head 3, as in section 7
gone = sum(p.size for p in layer.values()) - sum(p.size for p in left.values())
assert gone == head_part(networks.config).parameters == part.parameters + networks.config.N

as_it_is = bits(networks.params, networks.config)
zero = {name: np.zeros_like(p) for name, p in networks.params.items() if name.endswith("net.pv")}
silenced = bits(networks.params | zero, networks.config) - as_it_is
for name, model, value, loss in (
    ("persistent vectors", trained, whole, cost["silenced"]),
    ("head networks", networks, as_it_is, silenced),
):
    print(
        f"{name:18}  {count_parameters(model.config):,} parameters, one head {head_part(model.config).parameters:,}; "
        f"{value:.2f} bits per character, silenced {loss:.2f} more"
    )
assert as_it_is < whole - 0.05
assert as_it_is + silenced > np.log2(networks.config.V) > whole + cost["silenced"]  # guessing

# %% [markdown]
# At equal size the head networks are better by a tenth of a bit. The networks also do far more of their model's work than
# the persistent vectors: with their values silenced, as in section 6, this model is worse than guessing, whereas the other
# loses half a bit.
#
# That is one seed and 900 steps. In section 9, with three seeds and longer training, head networks with all their heads are
# as good as Transformer-XL; without 43 % of them they still are, at 0.51 M parameters, where there is no Transformer-XL of
# that size: without all of its heads it has more. That is the paper's promise: the quality of a Transformer-XL, in a model
# that shrinks in proportion to its heads.
#
# One property is given up. In All-attention all that a head does depends on what it attended to itself; the units of a
# head network read what *all* heads have found. They belong to their head only because we say so, and because one gate
# closes both.
#
# For the sake of that quality the model of the other chapters has head networks. How heads get gates, are judged and are
# removed is the same for both kinds. The paper's own settings, the presets `paper-…`, have the published heads.
#
# ## Questions
#
# 1. Chapter 02 showed that a test of attention at T = S = 1 is blind. Is it still, with N = 3 persistent vectors?
#
# <details><summary>Answer</summary>
#
# No. The softmax then runs over 1 + 3 scores, and its weights depend on all of them: `dq`, `dk` and `dpk` are no longer
# zero, and a wrong sign or a missing root shows. An error that concerns only the context, such as a wrong mask, can
# still hide.
#
# </details>
#
# 2. A bias $b_k$ on the keys of the context had a gradient of exactly zero. With persistent vectors that is no longer
#    so. What could the model use it for?
#
# <details><summary>Answer</summary>
#
# The bias adds $(q_i+u)\cdot b_k/\sqrt{\mathtt{Dh}}$ to all *context* scores of a query and nothing to its persistent ones:
# it shifts weight between text and persistent vectors. `u` can do something similar, where keys have a component in common.
#
# </details>
#
# 3. Why does a persistent score have neither u nor w?
#
# <details><summary>Answer</summary>
#
# w belongs to a distance, and a persistent vector has none. u·pk would be one more number per persistent vector that
# depends on nothing else, a bias $b_n$ on its score, like $b_1$ of the feed-forward block. It is possible; this layer
# does without.
#
# </details>
#
# 4. A layer loses all of its heads. What does it compute?
#
# <details><summary>Answer</summary>
#
# $W_o$ has no rows left, attention contributes nothing, and $y = x + b_o$: the residual connection and a constant. The
# layer is nearly free, and the model still works; the package tests that case. ([Chapter 07](07_removing_heads.ipynb))
# With head networks two constants are left, the second one being their own $b_o$.
#
# </details>
#
# 5. N doubles. What happens to the share of the model that falls with the heads, for All-attention, and for Transformer-XL if
#    F doubles as well?
#
# <details><summary>Answer</summary>
#
# For All-attention it rises towards 1: everything added belongs to heads. For Transformer-XL it falls: nothing added
# does.
#
# </details>
#
# **Next:** [04 the Hard-Concrete gate](04_hard_concrete_gate.ipynb): a trainable switch on every head. The layer is in
# [`model/layers.py`](../tinyprune/model/layers.py), who owns what in
# [`model/parameters.py`](../tinyprune/model/parameters.py), the counting in
# [`model/counting.py`](../tinyprune/model/counting.py), head networks in
# [`ops/head_networks.py`](../tinyprune/ops/head_networks.py), and the feed-forward block, which Transformer-XL still has,
# in [`ops/feedforward.py`](../tinyprune/ops/feedforward.py).

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 07 · Removing heads for good: equal logits, fewer parameters, less time
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/07_removing_heads.ipynb)
# &nbsp; ← [06 training with gates](06_training_with_gates.ipynb) · [all chapters](README.md) · [08 fine-tuning and trade-off](08_fine_tuning_and_trade_off.ipynb) →
#
# **After this chapter you can** remove closed heads from a Transformer without changing a single logit, fold gates and
# output scaling into the weights, count exactly how many parameters that saves and measure how much time, and handle a
# layer that has lost all of its heads.
#
# **You need** the heads of [chapter 03](03_attention_by_hand.ipynb) and the gates and output scaling $c$ of
# [chapter 06](06_training_with_gates.ipynb).

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
# Imports, and the trained baseline.
# %matplotlib inline
import tempfile
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import EngFormatter

from tinyprune.data import Segments
from tinyprune.kernels.backend import get_backend
from tinyprune.model.counting import count_multiply_adds, count_parameters, count_parts, head_part
from tinyprune.model.generation import generate
from tinyprune.model.parameters import WIDE, init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.notebook import (
    baseline_run,
    show_lines,
    show_source,
    sliders,
    use_style,
    you_are_here,
    yours,
)
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION
from tinyprune.method import remove
from tinyprune.method.masks import with_parts
from tinyprune.method.remove import remove_closed_heads
from tinyprune.runs.report import milliseconds_per_1k_tokens, open_config
from tinyprune.runs.directory import RunDirectory
from tinyprune.runs.run import Run
from tinyprune.io.tables import text_table
from tinyprune.training.evaluation import evaluate

use_style()
run = baseline_run()

# %%
you_are_here("attention", "positions", "gate", "projection", "networks", "prune")

# %% [markdown]
# ## 1 · A model with closed heads
#
# Take the trained baseline and give it a short gate stage: 130 steps, and a controller that holds 16 of its 32 heads
# ([chapter 06](06_training_with_gates.ipynb) explains both).

# %% jupyter={"source_hidden": true}
# Train gates, and print which heads they have closed.
folder = tempfile.TemporaryDirectory()
settings = replace(
    run.config,
    choose=replace(run.config.choose, target_heads=16),
    gate=replace(run.config.gate, controller_lr=0.02, lr_multiplier=200.0),
    gate_train=replace(run.config.gate_train, steps=130, evaluate_every=0, checkpoint_every=1000),
)
own = Run(RunDirectory(folder.name), settings, run.ops, "run the cell once more")
own.adopt(run.directory.checkpoint("train"))
own.prepare(["gate"])
own.gate()

text = own.text
baseline, gated = (own.load(stage).model for stage in ("train", "gate"))
config = gated.config
L, H, Dh, D, T, V = config.L, config.H, config.Dh, config.D, config.T, config.V
gates = gated.gates()
for i, layer in enumerate(gates):
    marks = " ".join(str(h) if value else "·" for h, value in enumerate(layer.values))
    print(f"layer {i}: open heads {marks}   c = {layer.scale:.2f}")

# %% [markdown]
# One gate closes a head in the attention block, and the head's N = 32 hidden units in the block after it. The gated model
# still has all of its parameters. It skips closed heads where it can, but stores them, loads them and slices around them
# in every pass.
#
# ## 2 · Why slicing equals gating
#
# A layer joins the outputs of its heads and multiplies by `Wo`. Split `Wo` into blocks of $Dh$ rows, one for each head:
#
# $$ \big[\,g_0c\,o_0 \;\big|\; g_1c\,o_1 \;\big|\; \dots \;\big|\; g_{H-1}c\,o_{H-1}\,\big]
# \begin{bmatrix} W_o^{(0)} \\ W_o^{(1)} \\ \vdots \\ W_o^{(H-1)} \end{bmatrix} = \sum_h g_h\,c\;o_h\,W_o^{(h)} \tag{1} $$
#
# Three things follow.
#
# 1. **A closed head's rows of `Wo` have no effect.** With $g_h = 0$ its $Dh$ columns on the left are zero, so
#    $W_o^{(h)}$ is multiplied by zero.
# 2. **Nothing needs a closed head's columns of `Wq`, `Wk`, `Wv`, `Wr`.** Head $h$ computes $o_h$ from these columns and
#    from its `u` and `w`. No other head reads them, and nothing needs $o_h$.
# 3. **An open head is multiplied by a number, and the number can be moved.** $(g_h c\, o_h)\,W_o^{(h)} = o_h\,(g_h
#    c\,W_o^{(h)})$: fold $g_h c$ into the rows of `Wo` once, and neither gate nor scaling is needed any more.
#
# The block of hidden units is a sum over heads from the start. With $x$ for the block's input and
# $r_h = \max(x\,\mathtt{pk}_h^\top + \mathtt{pb}_h, 0)$ for the N units of head $h$,
#
# $$ \mathtt{out} = \sum_h g_h\,c\;r_h\,\mathtt{pv}_h + b_{net} \tag{2} $$
#
# This is (1) with $r_h$ in place of $o_h$ and $\mathtt{pv}_h$ in place of $W_o^{(h)}$, and the same three things follow. The
# picture shows (1) on real text; the cell checks both equations.

# %% jupyter={"source_hidden": true}
# The gated outputs of all heads, and Wo: the shaded rows of closed heads meet only columns of zeros.
in_float64 = {name: x.astype(np.float64) for name, x in gated.params.items()}
float64 = Transformer(config, in_float64, gated.gate, get_backend("numpy"))
segments = Segments(text.valid, 2, T)
first, _, _ = segments.batch(0)  # (B, T), B = 2
ids, targets, _ = segments.batch(1)
memory = float64.forward(first)[1]  # for each layer (B, M, D)
_, _, cache = float64.forward(ids, memory, all_heads=True)  # computes closed heads, too

i = int(np.argmin([abs((g.values != 0).sum() - 4) for g in gates]))  # about half of its heads left
g, c = float64.gates()[i].values, gates[i].scale  # (H,)
kept = np.flatnonzero(g)
o = cache.attention_blocks[i].attention.o[0]  # (T, H, Dh), the first row of the batch
Wo = float64.params[f"layers.{i}.Wo"]  # (H·Dh, D)
concat = (g[:, None] * c * o).reshape(T, H * Dh)  # (T, H·Dh), zero columns where gates are closed
folded = (g[:, None, None] * c * Wo.reshape(H, Dh, D))[kept].reshape(-1, D)  # (kept·Dh, D)
np.testing.assert_allclose(concat @ Wo, o[:, kept].reshape(T, -1) @ folded, atol=1e-12)

pv = float64.params[f"layers.{i}.net.pv"]  # (H, N, D)
units = cache.second_blocks[i].inside.r.reshape(-1, T, H, config.N)[0]  # (T, H, N)
whole = np.einsum("h,thn,hnd->td", g * c, units, pv)
sliced = np.einsum("thn,hnd->td", units[:, kept], (g * c)[kept, None, None] * pv[kept])
np.testing.assert_allclose(whole, sliced, atol=1e-12)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.1))
axes[0].imshow(np.abs(concat), cmap="Greys", vmax=np.quantile(np.abs(concat), 0.98), aspect="auto")
axes[0].set(xlabel="column: head by head", ylabel="position in the text")
axes[0].set_title(f"layer {i}: closed heads' columns are zero (dark: large)")
axes[0].set_xticks(np.arange(H) * Dh + Dh / 2, [str(h) for h in range(H)])
cells = np.abs(Wo).reshape(H * Dh // 4, 4, D // 4, 4).mean((1, 3))  # a cell for 4 × 4 numbers
axes[1].imshow(
    cells, cmap="Greys", vmin=0, vmax=2 * cells.mean(), aspect="auto", extent=(0, D, H * Dh, 0)
)
axes[1].set(xlabel="column: feature of the layer's output", title="Wo: shaded rows meet only zeros")
axes[1].set_yticks(np.arange(H) * Dh + Dh / 2, [f"head {h}" for h in range(H)])
shade = {
    "facecolor": VERMILION,
    "alpha": 0.45,
    "hatch": "///",
    "edgecolor": VERMILION,
    "linewidth": 0,
}
for h in set(range(H)) - {*kept}:
    axes[1].axhspan(h * Dh, (h + 1) * Dh, **shade)
plt.show()

# %% [markdown]
# ## 3 · What a head owns
#
# So removing a head means slicing, along the axis that runs over heads:
#
# | of head $h$ | in |
# | --- | --- |
# | columns $h\cdot Dh$ to $(h+1)\cdot Dh - 1$ | `Wq`, `Wk`, `Wv`, `Wr` |
# | the same rows | `Wo` |
# | entry $h$ of the first axis | `u`, `w`, `net.pk`, `net.pb`, `net.pv`, and `log_alpha` |
#
# The biases `bo` and `net.bo` and the LayerNorms run over the $D$ features of the stream and belong to no head.
#
# ### Exercise 1 · Take heads out of a layer
#
# *●●○ · 20 minutes*
#
# `layer` holds all arrays of a layer by name; `log_alpha` may be missing. Return a new dictionary in which only the heads
# with the numbers `heads` are left. `heads` may be empty.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ModelConfig, init_parameters
from tinyprune.model import parameters
from tinyprune.notebook import yours


def take_heads(layer, heads, Dh):
    """Return the arrays of a layer with only the given heads, numbers that rise; layer is not changed."""
    raise NotImplementedError("write take_heads: return a dictionary with the same names")


rng = np.random.default_rng(0)
sizes = {"V": 11, "L": 1, "D": 12, "H": 4, "N": 5, "T": 6, "M": 6}
config4 = ModelConfig("all-attention", **sizes, persistent="stream")
shapes = parameters.layer_parameters(init_parameters(config4, rng), 0)
layer = {name: rng.normal(size=x.shape) for name, x in shapes.items()}
yours.check(
    take_heads,
    parameters.take_heads,
    (layer, np.array([1, 3]), 3),
    (layer | {"log_alpha": rng.normal(size=4)}, [0, 2, 3], 3),
    (layer, [], 3),
    hint="compare the shape that is wrong with the table: which axis runs over heads, and how wide is a head there?",
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# First make the numbers of all kept columns: `heads[:, None] * Dh + np.arange(Dh)` has a row for each head. With no heads,
# `np.asarray(heads, int)` is still an array of integers.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def take_heads(layer, heads, Dh):
#     heads = np.asarray(heads, int)
#     own = (heads[:, None] * Dh + np.arange(Dh)).ravel()  # the heads' columns, or rows of Wo
#     taken = dict(layer)
#     for name in ("Wq", "Wk", "Wv", "Wr"):
#         taken[name] = layer[name][:, own]
#     taken["Wo"] = layer["Wo"][own]
#     for name in ("u", "w", "net.pk", "net.pb", "net.pv", "log_alpha"):
#         if name in layer:
#             taken[name] = layer[name][heads]
#     return taken
# ```
#
# The package's [`take_heads`](../tinyprune/model/parameters.py) also knows layers of other kinds.
#
# </details>

# %% [markdown]
# ## 4 · Fold, remove, and check
#
# ### Exercise 2 · Fold gates and scaling into the weights
#
# *●○○ · 10 minutes*
#
# `W` has `width` rows for each of k open heads: `Wo` is (k·Dh, D) with `width` = Dh, `net.pv` (k, N, D) with `width` = 1.
# `factors` (k,) holds $g_h c$ of each head; gates may be soft, so the factors differ. Return an array of the shape of `W`
# that needs neither gates nor $c$.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.notebook import yours
from tinyprune.method import remove


def times(W, factors, width):
    """Return W with each `width` rows in turn multiplied by the next factor; W is not changed."""
    raise NotImplementedError("write times: return an array of the shape of W")


rng = np.random.default_rng(0)
Wo, pv, factors = rng.normal(size=(6, 4)), rng.normal(size=(2, 5, 4)), np.array([0.4, 2.0])
yours.check(
    times,
    remove.times,
    (Wo, factors, 3),
    (pv, factors, 1),
    (Wo[:0], factors[:0], 3),  # no head is open
    hint="the first `width` rows belong to the first head and take its factor, the next ones to the second",
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.repeat(factors, width)` has a number for each row. `reshape` gives it an axis of length 1 for each further axis of `W`.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def times(W, factors, width):
#     rows = np.repeat(factors, width)  # a factor for each row
#     return W * rows.reshape(-1, *[1] * (W.ndim - 1))
# ```
#
# </details>

# %% [markdown]
# [`remove_closed_heads`](../tinyprune/method/remove.py) drops the gates, and calls both functions in every layer: yours, if
# you have written them. (`OUTPUTS` are `Wo` and `net.pv`, `WIDE` the matrices with Dh columns or rows for each head; `groups`
# is for chapter 09.)

# %%
show_source(remove.stays, docstring=False)
show_lines(remove.remove_closed_heads, "kept, factor", "times(")

# %% [markdown]
# Both models should have *equal logits*, for every text.
#
# **Before you look:** the logits are a few units in size. How far apart may they be in float32, with seven decimal digits,
# and in float64, with sixteen?


# %%
def logits(model):
    """Return logits (B, T, V) for the second segment, after reading the first."""
    memory = model.forward(first)[1]
    h = model.forward(ids, memory)[0]  # (B, T, D)
    return h @ model.params["embedding"].T + model.params["out_bias"]


def assert_same_logits(model, reference, tolerance):
    """Raise AssertionError unless both models predict the same; return the largest difference."""
    difference = np.abs(logits(model) - logits(reference)).max()
    assert difference <= tolerance, f"logits differ by up to {difference:.2g}"
    return difference


with yours.engine():
    small, small64 = remove_closed_heads(gated), remove_closed_heads(float64)
print(f"float32, compiled kernels: {assert_same_logits(small, gated, 1e-4):.1e}")
print(f"float64, textbook:         {assert_same_logits(small64, float64, 1e-11):.1e}")

# %% [markdown]
# Only rounding is left. In the next picture the rest of `Wo` is darker than before: gate and $c$ are folded in. (A grey
# cell is the mean of 4 × 4 sizes.)

# %% jupyter={"source_hidden": true}
# The matrices of attention in one layer: before, with the closed heads' slices shaded, and after, narrower.
matrices = [name for name in WIDE if f"layers.0.{name}" in gated.params]


def draw_slices(layer):
    """Draw a layer's matrices of attention with closed heads' slices shaded, and below what is left of them."""
    figure, axes = plt.subplots(2, len(matrices), figsize=(7, 3.8), dpi=110)
    closed = np.flatnonzero(gates[layer].values == 0)
    for column, name in enumerate(matrices):
        before, after = (np.abs(m.params[f"layers.{layer}.{name}"]) for m in (gated, small))
        for ax, matrix in zip(axes[:, column], (before, after)):
            rows, columns = matrix.shape
            cells = matrix.reshape(rows // 4, 4, columns // 4, 4).mean((1, 3))
            if cells.size:
                look = {"cmap": "Greys", "vmin": 0, "vmax": 3 * before.mean()}
                ax.imshow(cells, extent=(0, columns, rows, 0), **look)
            # drawn into the same square, so that sizes can be compared
            ax.set(xlim=(0, D), ylim=(D, 0), xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.set_title(f"{name}\n{rows} × {columns}", fontsize=8)
        for h in closed:
            span = axes[0, column].axhspan if name == "Wo" else axes[0, column].axvspan
            span(h * Dh, (h + 1) * Dh, **shade)
    axes[0, 0].set_ylabel("before\n(closed: shaded)", fontsize=8)
    axes[1, 0].set_ylabel("after", fontsize=8)
    figure.suptitle(f"layer {layer}: {H - len(closed)} of {H} heads stay", fontsize=9)
    plt.show()


sliders(draw_slices, layer=(0, L - 1))

# %% [markdown]
# Does the check find mistakes? **Plant two bugs.** The first folds $c$ into `Wo` but forgets `pv`. The second takes the
# *first* rows of `Wo` instead of the open heads' rows. In both the shapes are right and nothing crashes.
#
# **Before you look:** which of the two bugs would you notice if you looked at the loss alone?


# %%
def forgets_c(model):
    """Remove closed heads without the output scaling of the heads' hidden units."""
    wrong = remove_closed_heads(model)
    for layer, gates in enumerate(model.gates()):
        wrong.params[f"layers.{layer}.net.pv"] /= gates.scale
    return wrong


def wrong_rows(model):
    """Remove closed heads, but keep the first rows of Wo instead of the open heads' rows."""
    wrong = remove_closed_heads(model)
    for layer, gates in enumerate(model.gates()):
        Wo = wrong.params[f"layers.{layer}.Wo"]
        Wo[:] = gates.scale * model.params[f"layers.{layer}.Wo"][: len(Wo)]
    return wrong


# %% jupyter={"source_hidden": true}
# What the check and the loss say about the two planted bugs
for bug in (forgets_c, wrong_rows):
    try:
        assert_same_logits(bug(float64), float64, 1e-11)
    except AssertionError as error:
        print(f"{bug.__name__}: {error}")
    else:
        raise AssertionError(f"the planted bug {bug.__name__} was not found")

part, bits = text.valid[:2000], {}
for name, model in {
    "gated, heads closed": float64,
    "removed": small64,
    "removed, c forgotten": forgets_c(float64),
    "removed, wrong rows": wrong_rows(float64),
}.items():
    bits[name] = evaluate(model, part, len(part)).bits_per_character
    print(f"{name:22s} {bits[name]:.6f} bits per character on 2,000 characters")
assert abs(bits["removed"] - bits["gated, heads closed"]) < 1e-10
assert bits["removed, wrong rows"] > bits["removed, c forgotten"] > bits["removed"] + 0.05

# %% [markdown]
# The wrong rows show in any loss. The forgotten $c$ is more dangerous: it costs some tenths of a bit, and one expects a
# pruned model to be worse. Only the comparison of logits shows that this is not the model that was trained.
#
# ## 5 · What it saves: parameters and multiply-adds
#
# One head owns $D\cdot Dh$ numbers in each of `Wq`, `Wk`, `Wv`, `Wr`, `Wo`, $Dh$ in each of `u` and `w`, and $N$ hidden
# units, each with $D$ weights in, $D$ weights out and a bias:
#
# $$ \text{parameters of a head} = 5\,D\,Dh + 2\,Dh + 2\,N\,D + N $$
#
# For one token a head needs $D\cdot Dh$ multiply-adds for each of $q$, $k$, $v$ and its part of `Wo`. (`Wr` is applied to
# distances, once for a whole segment, and is not counted.) For each of the $K=M+1$ visible keys it needs $Dh$
# multiply-adds for the content score, the position score and the value. Each unit takes $2\,D$:
#
# $$ \text{multiply-adds of a head} = 4\,D\,Dh + 3\,K\,Dh + 2\,N\,D $$
#
# **Before you look:** half of the heads are gone. Will the model have more or less than half of its parameters, and why
# not exactly half?

# %%
head, N, K = head_part(config), config.N, config.M + 1
assert head.parameters == 5 * D * Dh + 2 * Dh + 2 * N * D + N
assert head.multiply_adds_per_token == 4 * D * Dh + 3 * K * Dh + 2 * N * D
removed = sum(config.heads) - sum(small.config.heads)
before, after = (sum(x.size for x in m.params.values()) for m in (baseline, small))
print(f"stored before and after: {before:,} − {after:,} = {removed} heads · {head.parameters:,}")
assert before - after == removed * head.parameters  # to the last number

# %% jupyter={"source_hidden": true}
# What parameters and multiply-adds consist of, before and after: layers shrink with their heads, the rest stays
figure, axes = plt.subplots(1, 2, figsize=(9, 3.1))
for ax, key, label in zip(
    axes, ("parameters", "multiply_adds_per_token"), ("parameters", "multiply-adds a token")
):
    for x, cfg in zip((0, 1.5), (baseline.config, small.config)):
        bottom = 0
        for part in reversed(count_parts(cfg)):
            value = getattr(part, key)
            is_heads = part.part.endswith("heads")
            look = {"color": "#BBBBBB"}
            if is_heads:
                number = int(part.part.split()[1][0])
                look = {"color": HEAD_COLOURS[number], "hatch": ("", "//", "xx", "..")[number % 4]}
            ax.bar(x, value, bottom=bottom, width=0.6, edgecolor="white", linewidth=0.5, **look)
            if is_heads and value > 0.04 * getattr(count_parts(baseline.config)[2], key):
                ax.text(x + 0.33, bottom + value / 2, part.part, va="center", fontsize=8)
            bottom += value
    names = ["all 32 heads", f"{sum(small.config.heads)} heads"]
    ax.set(xticks=[0, 1.5], xticklabels=names, xlim=(-0.5, 2.6), title=label)
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
title = (
    "Layers shrink in proportion to their heads; the grey rest (embedding, positions, norms) stays"
)
figure.suptitle(title, fontsize=10)
plt.show()

# %% jupyter={"source_hidden": true}
# The result of the three stages so far, on the validation split
rows = []
for name, model in (("baseline", baseline), ("gated", gated), ("removed", small)):
    value = evaluate(model, text.valid, text.characters["valid"]).bits_per_character
    rows.append(
        {
            "model": name,
            "heads": sum(open_config(model).heads),
            "parameters": count_parameters(model.config),
            "multiply-adds a token": count_multiply_adds(open_config(model)),
            "validation, bits": value,
        }
    )
print(text_table(rows))
assert abs(rows[1]["validation, bits"] - rows[2]["validation, bits"]) < 1e-4

# %% [markdown]
# More than half of the parameters stay, since embedding, positions and norms belong to no head. Removal itself costs
# nothing. The loss rose when the gates closed, and [the next chapter](08_fine_tuning_and_trade_off.ipynb) recovers part of
# the rise. In an ordinary Transformer the feed-forward block would keep its size.
#
# ## 6 · What it saves: time
#
# A gated model skips closed heads as well: before each pass it copies the open heads' slices out of the whole matrices.
#
# **Before you look:** will the model with closed gates be as slow as the whole model, as fast as the small one, or in
# between?

# %%
ms = milliseconds_per_1k_tokens([baseline, gated, small], text.valid, at_least=0.4)
for name, value in zip(("all heads", "closed by gates", "removed"), ms):
    print(f"{name:16s} {value:6.2f} ms per 1,000 tokens ({value / ms[0]:.0%})")
left = count_multiply_adds(small.config) / count_multiply_adds(baseline.config)
print(f"(removed: {left:.0%} of the multiply-adds)")

# %% [markdown]
# Skipping saves most of the closed heads' arithmetic, but the copies cost time in every pass. After the removal nothing is
# left to copy. (On a busy machine all three numbers vary; run the cell again.) The next picture shows the time from 8 heads
# in each layer down to none, with random weights.

# %% jupyter={"source_hidden": true}
# Parameters fall with the heads exactly, time less closely: models with 8, 7, … 0 heads in every layer
rng = np.random.default_rng(0)
sizes = [replace(config, heads=(h,) * L, head_ids=()) for h in range(H, -1, -1)]
models = [Transformer(size, init_parameters(size, rng), ops=run.ops) for size in sizes]
measured = np.array(milliseconds_per_1k_tokens(models, text.valid, at_least=0.25))  # (9,)
stored = np.array([count_parameters(size) for size in sizes])
left = [size.heads[0] for size in sizes]
figure, ax = plt.subplots(figsize=(6, 3.2))
ax.plot([0, H], [0, 1], color=GREY, linestyle=":", linewidth=1)
ax.plot(left, stored / stored[0], "s--", color=VERMILION, markersize=5, label="parameters")
ax.plot(left, measured / measured[0], "o-", color=BLUE, markersize=5, label="time for 1,000 tokens")
ax.set(xlabel="heads left in every layer", ylabel="share of the whole model's", xlim=(0, H + 0.2))
ax.set_ylim(0, 1.05 * max(1.0, (measured / measured[0]).max()))
ax.set_title("Parameters follow the heads exactly, time less closely")
ax.legend(frameon=False, loc="upper left")
plt.show()

# %% [markdown]
# The line of times depends on your machine and its load. It may be jagged: each of two threads takes whole heads, so seven
# heads take nearly as long as eight. A model of this size also spends time on many small calls from Python, whose number
# does not fall with the heads.
#
# ## 7 · A layer that loses all of its heads
#
# Nothing prevents a controller from closing a whole layer. The sums in (1) and (2) become empty, and $x + b_o + b_{net}$ is
# left: the layer passes on its input plus a constant. Shapes now contain a zero, and untested programs crash at a mean over
# no heads or a division by zero in $c$. Close the last layer's heads and remove them.

# %%
last, shut = L - 1, {name: x.copy() for name, x in gated.params.items()}
shut[f"layers.{last}.log_alpha"][:] = -5.0
emptied = replace(gated, params=shut)
with yours.engine():
    without_layer = remove_closed_heads(emptied)
for name in ("Wq", "Wo", "u", "net.pk", "bo"):
    print(f"{name}: {without_layer.params[f'layers.{last}.{name}'].shape}", end="   ")
print(f"\nfloat32, logits differ by {assert_same_logits(without_layer, emptied, 1e-4):.1e}")

prompt = text.tokenizer.encode("The value of the expression ")
tokens = list(generate(without_layer, prompt, 60, np.random.default_rng(1), temperature=0.7))
print(text.tokenizer.decode(np.array([*prompt, *tokens])))

# %% [markdown]
# Go all the way: close *all* heads of *all* layers.
#
# **Before you look:** what can such a model still know about the next character?

# %% jupyter={"source_hidden": true}
# Remove all heads: without them, position does not matter.
no_heads = remove_closed_heads(with_parts(baseline, [np.zeros(H, bool)] * L))
h = no_heads.forward(ids)[0]  # (B, T, D)
row, column = np.nonzero(ids == np.bincount(ids.ravel()).argmax())  # the most frequent token
apart = np.abs(h[row, column] - h[row[0], column[0]]).max()
print(f"{sum(no_heads.config.heads)} heads, {count_parameters(no_heads.config):,} parameters")
print(f"the same token at {len(row)} positions: what the model computes differs by {apart:.0e}")
assert len(row) > 5 and apart < 1e-5
h = small.forward(ids)[0]
assert np.abs(h[row, column] - h[row[0], column[0]]).max() > 0.1  # with heads its position matters

# %% [markdown]
# The same token gets the same prediction at every position, since no position sees another one. The model has become a
# table of pairs of characters, a *bigram model*.
#
# ## Recap
#
# - A layer's output is a sum over heads, so removing a closed head means slicing: columns of `Wq`, `Wk`, `Wv`, `Wr`, rows
#   of `Wo`, and the head's entry in `u`, `w` and the arrays of hidden units.
# - The factor of an open head, its gate times $c$, moves into `Wo` and `pv`. Logits stay equal, and float64 tells a bug
#   from rounding.
# - Parameters, multiply-adds and time fall with the heads, because nearly all of a layer belongs to some head.
#
# [Assignment A5](assignments/README.md) continues from here. On [the method's page](../tinyprune/method/prune.py) this is
# step 2; its code is in [`method/remove.py`](../tinyprune/method/remove.py),
# [`model/parameters.py`](../tinyprune/model/parameters.py) and [`model/counting.py`](../tinyprune/model/counting.py).
#
# ## Questions
#
# 1. One could fold $g_h c$ into `Wv` instead of `Wo`, and into `pk` and `pb` instead of `pv`. Would that be right?
#
# <details><summary>Answer</summary>
#
# Yes. $o_h$ is a weighted sum of $v_j$, so it grows in proportion to `Wv`; and since $g_h c > 0$, the factor passes
# through the ReLU, $g_h c\max(a, 0) = \max(g_h c\,a, 0)$. (`pb` needs the factor, too, because $a$ contains `pb`.)
#
# </details>
#
# 2. After removal the model is fine-tuned. Does output scaling still apply?
#
# <details><summary>Answer</summary>
#
# No. $c$ is now a part of `Wo` and `pv`, which training may change like any other parameter.
#
# </details>
#
# 3. Your check in float32 reports a difference of $3\cdot10^{-3}$ between the logits. Rounding, or a bug?
#
# <details><summary>Answer</summary>
#
# Repeat the check in float64. A difference by rounding falls by eight or nine orders of magnitude; a difference by a bug
# stays.
#
# </details>
#
# **Next:** [08 fine-tuning and trade-off](08_fine_tuning_and_trade_off.ipynb): the small model is trained a little
# more, and ways of choosing heads are compared.

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
# output scaling into the weights, count exactly how many parameters that saves and measure how much time, and keep a
# layer working that has lost all of its heads.
#
# **You need** the gates of [chapter 02](02_hard_concrete_gate.ipynb) and the output scaling $c$ of
# [chapter 06](06_training_with_gates.ipynb). The words are in the [glossary](README.md#glossary). The chapter trains: the
# baseline, if no other chapter has done so, and a short gate stage.

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
from IPython.display import display
from matplotlib.ticker import EngFormatter

from tinyprune import plots
from tinyprune.data import Segments
from tinyprune.experiments.results import read_csv
from tinyprune.kernels.backend import get_backend
from tinyprune.model.counting import count_multiply_adds, count_parameters, count_parts, head_part
from tinyprune.model.generation import CachedDecoder, generate
from tinyprune.model.parameters import HEAD_AXIS, WIDE, init_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.notebook import (
    baseline_run,
    results,
    show_source,
    sliders,
    use_style,
    you_are_here,
)
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION
from tinyprune.pruning.gates import open_heads
from tinyprune.pruning.importance.masks import with_heads
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.report import milliseconds_per_1k_tokens, open_config
from tinyprune.runs.directory import RunDirectory
from tinyprune.runs.run import Run
from tinyprune.tables import text_table
from tinyprune.training.evaluation import evaluate
from tinyprune.training.step import LanguageModelling
from tinyprune.training.optimizers import make_optimizer, parameter_groups

use_style()
run = baseline_run()

# %%
you_are_here("attention", "positions", "gate", "projection", "networks", "prune")

# %% [markdown]
# Closed heads are in every layer's attention block and in the block of the heads' networks. Everything else in the
# drawing stays as it is when they are cut out.
#
# ## 1 · A model with closed heads
#
# Take the trained baseline and give it a short gate stage: 130 steps, and a controller that holds 16 of its 32 heads
# ([chapter 06](06_training_with_gates.ipynb) explains both). It is a separate run in a temporary directory, with the
# stages of the command line: `gate` trains, `prune` removes.

# %% jupyter={"source_hidden": true}
# Train gates, and remove what they have closed.
folder = tempfile.TemporaryDirectory()
settings = replace(
    run.config,
    gate=replace(run.config.gate, target_heads=16, controller_lr=0.02, lr_multiplier=200.0),
    gate_train=replace(run.config.gate_train, steps=130, evaluate_every=0, checkpoint_every=1000),
)
own = Run(RunDirectory(folder.name), settings, run.ops, "run the cell once more")
own.adopt(run.directory.checkpoint("train"))
own.prepare(["gate", "prune"])
own.gate()
own.prune()

text = own.text
baseline, gated, small = (own.load(stage).model for stage in ("train", "gate", "prune"))
config = gated.config
L, H, Dh, D, T, V = config.L, config.H, config.Dh, config.D, config.T, config.V
gates = gated.gates()
for i, layer in enumerate(gates):
    marks = " ".join(str(h) if value else "·" for h, value in enumerate(layer.values))
    print(f"layer {i}: open heads {marks}   c = {layer.scale:.2f}")

# %% [markdown]
# The heads of this model are those with networks from the end of [chapter 10b](10b_all_attention.ipynb): in its layer's
# attention block a head attends to the text, and in the block after it the head owns a small network, N = 32 hidden
# units that read the stream. One gate closes both. The gated model still has all of its parameters. It skips closed
# heads where it can, but stores them, loads them and slices around them in every pass. We want a model that never
# contained them.

# %% [markdown]
# ## 2 · Why slicing equals gating
#
# A layer concatenates the outputs of its heads and multiplies by `Wo`. Split `Wo` into blocks of $Dh$ rows, one for
# each head; a product of blocks is a sum over blocks:
#
# $$ \big[\,g_0c\,o_0 \;\big|\; g_1c\,o_1 \;\big|\; \dots \;\big|\; g_{H-1}c\,o_{H-1}\,\big]
# \begin{bmatrix} W_o^{(0)} \\ W_o^{(1)} \\ \vdots \\ W_o^{(H-1)} \end{bmatrix} = \sum_h g_h\,c\;o_h\,W_o^{(h)} \tag{1} $$
#
# Three things follow.
#
# 1. **A closed head's rows of `Wo` have no effect.** With $g_h = 0$ its $Dh$ columns on the left are zero, so
#    $W_o^{(h)}$ is multiplied by zero.
# 2. **Nothing needs its columns of `Wq`, `Wk`, `Wv`, `Wr`.** Head $h$ computes $o_h$ from $q_h = n\,W_q^{(h)}$ and so
#    on, from its own columns, its own `u` and `w`, and a softmax of its own. No other head reads them. If $o_h$ is not
#    needed, neither are they.
# 3. **An open head is multiplied by a number, and the number can be moved.** $(g_h c\, o_h)\,W_o^{(h)} = o_h\,(g_h
#    c\,W_o^{(h)})$: fold $g_h c$ into the rows of `Wo` once, and neither gate nor scaling is needed any more.
#
# The networks are a sum over heads from the start. With $r_h = \max(x\,pk_h^\top + pb_h, 0)$, the N units of head $h$,
#
# $$ \mathtt{out} = \sum_h g_h\,c\;r_h\,pv_h + b_{net} \tag{2} $$
#
# This is (1) with $r_h$ in place of $o_h$ and $pv_h$ in place of $W_o^{(h)}$, and the same three things follow: a
# closed head's `pv` has no effect, nothing else reads its `pk` and `pb`, and $g_h c$ moves into the `pv` of an open one.
#
# Here are (1) and (2) for one layer, on real text. The textbook backend keeps `o`, the heads' outputs before their
# gates, and `r`, the units. `all_heads=True` computes closed heads, too, which a model with gates otherwise skips.

# %%
float64 = Transformer(
    config,
    {name: x.astype(np.float64) for name, x in gated.params.items()},
    gated.gate,
    get_backend("numpy"),
)
segments = Segments(text.valid, 2, T)
first, _, _ = segments.batch(0)  # (B, T), B = 2
ids, targets, _ = segments.batch(1)
memory = float64.forward(first)[1]  # for each layer (B, M, D)
_, _, cache = float64.forward(ids, memory, all_heads=True)

# %%
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
np.testing.assert_allclose(
    whole,
    np.einsum("thn,hnd->td", units[:, kept], (g * c)[kept, None, None] * pv[kept]),
    atol=1e-12,
)

# %% jupyter={"source_hidden": true}
# Draw the gated outputs of all heads, and Wo with the closed heads' rows shaded.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.1))
axes[0].imshow(np.abs(concat), cmap="Greys", vmax=np.quantile(np.abs(concat), 0.98), aspect="auto")
axes[0].set(
    xlabel="column: head by head",
    ylabel="position in the text",
    title=f"layer {i}: closed heads' columns are zero",
)
axes[0].set_xticks(np.arange(H) * Dh + Dh / 2, [str(h) for h in range(H)])
cells = np.abs(Wo).reshape(H * Dh // 4, 4, D // 4, 4).mean((1, 3))  # a cell for 4 × 4 numbers
axes[1].imshow(
    cells, cmap="Greys", vmin=0, vmax=2 * cells.mean(), aspect="auto", extent=(0, D, H * Dh, 0)
)
axes[1].set(xlabel="column: feature of the layer's output", title="Wo: shaded rows meet only zeros")
axes[1].set_yticks(np.arange(H) * Dh + Dh / 2, [f"head {h}" for h in range(H)])
for h in range(H):
    if h not in kept:
        axes[1].axhspan(
            h * Dh, (h + 1) * Dh, facecolor=VERMILION, alpha=0.45, hatch="///", edgecolor=VERMILION
        )
plt.show()

# %% [markdown]
# ## 3 · What a head owns
#
# So removing a head means slicing: columns of four matrices, rows of a fifth, and its entry in every tensor whose first
# axis runs over heads, among them the networks' (in the code their names begin with `net.`). `take_heads` does it, along
# the axes in `HEAD_AXIS` ([chapter 10b](10b_all_attention.ipynb), section 7).
#
# The matrices of the attention block, before and after. What is left of `Wo` is darker than before: gate and $c$ have
# been folded in. (A grey cell is the mean size of 4 × 4 numbers.) The table below also has the networks. Both blocks have
# a LayerNorm and a bias, `bo` and `net.bo`, which belong to no head and are unchanged.


# %% jupyter={"source_hidden": true}
# Draw the matrices of attention in one layer, before and after.
matrices = [name for name in WIDE if f"layers.0.{name}" in gated.params]


def draw_slices(layer):
    """Draw a layer's matrices of attention with closed heads' slices marked, below it what is left."""
    figure, axes = plt.subplots(2, len(matrices), figsize=(6, 3), dpi=130)
    closed = np.flatnonzero(gates[layer].values == 0)
    for column, name in enumerate(matrices):
        before, after = (np.abs(m.params[f"layers.{layer}.{name}"]) for m in (gated, small))
        for ax, matrix in zip(axes[:, column], (before, after)):
            rows, columns = matrix.shape
            cells = matrix.reshape(rows // 4, 4, columns // 4, 4).mean(
                (1, 3)
            )  # a cell for 4 × 4 numbers
            if cells.size:
                ax.imshow(
                    cells,
                    cmap="Greys",
                    vmin=0,
                    vmax=3 * before.mean(),
                    extent=(0, columns, rows, 0),
                )
            # drawn into the same square, so that sizes can be compared
            ax.set(xlim=(0, D), ylim=(D, 0), xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
            ax.set_title(f"{name} {rows} × {columns}", fontsize=7)
        for h in closed:
            span = axes[0, column].axhspan if name == "Wo" else axes[0, column].axvspan
            span(
                h * Dh,
                (h + 1) * Dh,
                facecolor=VERMILION,
                alpha=0.45,
                hatch="///",
                edgecolor=VERMILION,
                linewidth=0,
            )
    axes[0, 0].set_ylabel("before\n(closed: shaded)", fontsize=7)
    axes[1, 0].set_ylabel("after", fontsize=7)
    figure.suptitle(f"layer {layer}: {H - len(closed)} of {H} heads stay", fontsize=8)
    plt.show()


sliders(draw_slices, layer=(0, L - 1))

# %% jupyter={"source_hidden": true}
# List the shapes before and after.
shapes = []
networks = ("net.pk", "net.pb", "net.pv", "net.bo", "net.ln.scale")
for name in (*matrices, "u", "w", "bo", "ln.scale", *networks):
    before, after = (m.params[f"layers.{i}.{name}"].shape for m in (gated, small))
    shapes.append({"parameter": name, "before": str(before), "after": str(after)})
    assert (before == after) == (name not in HEAD_AXIS)
print(text_table(shapes))

# %% [markdown]
# ## 4 · The removal, and the check that it must pass

# %%
show_source(remove_closed_heads, docstring=False)

# %% [markdown]
# The claim is strong: *equal logits* for every text. So it can be tested strictly.
#
# **Before you look:** the logits are a few units in size. How far apart may those of the two models be in float32, with
# its seven decimal digits, and in float64, with its sixteen?
#
# Two segments are read, so that memory is included.


# %%
def logits(model):
    """Return logits (B, T, V) for the second segment, after reading the first."""
    memory = model.forward(first)[1]
    h = model.forward(ids, memory)[0]  # (B, T, D)
    return h @ model.params["embedding"].T + model.params["out_bias"]


def assert_same_logits(model, reference, tolerance):
    """Raise AssertionError unless both models predict the same; return the largest difference."""
    difference = np.abs(logits(model) - logits(reference)).max()
    assert difference <= tolerance, (
        f"logits differ by up to {difference:.2g}, allowed are {tolerance:.0e}"
    )
    return difference


small64 = remove_closed_heads(float64)
print(f"float32, compiled kernels: {assert_same_logits(small, gated, 1e-4):.1e}")
print(f"float64, textbook:         {assert_same_logits(small64, float64, 1e-11):.1e}")

# %% [markdown]
# In both formats only rounding is left. These gates are hard: an open one is exactly 1, and only $c$ had to be folded.
# The same function serves soft gates, whose values lie anywhere between 0 and 1. Interpret the same `log_alpha` as soft
# gates and remove again:

# %%
soft = replace(float64, gate=replace(float64.gate, hard=False))
values = np.concatenate([layer.values for layer in soft.gates()])  # (L·H,)
between = int(((values > 0) & (values < 1)).sum())
print("soft gates:", *(f"{x:.2f}" for x in values[:8]), f"… {between} are between 0 and 1")
print(
    f"float64, soft gates:       {assert_same_logits(remove_closed_heads(soft), soft, 1e-11):.1e}"
)

# %% [markdown]
# A check is worth only what it finds. **Plant two bugs.** The first folds $c$ into `Wo` but forgets the heads' networks,
# where it belongs into `pv`. The second takes the wrong rows of `Wo`: the right number, with the right factor, but the
# *first* ones instead of the open heads'. In both the shapes are right, nothing crashes, and fine-tuning would continue
# from the wrong model.
#
# **Before you look:** which of the two bugs would you notice if you looked at the loss alone?


# %%
def forgets_c(model):
    """Remove closed heads without the output scaling of the heads' networks."""
    wrong = remove_closed_heads(model)
    for layer, gates in enumerate(model.gates()):
        wrong.params[f"layers.{layer}.net.pv"] /= gates.scale
    return wrong


def wrong_rows(model):
    """Remove closed heads, but keep the first rows of Wo instead of the open heads' rows."""
    wrong = remove_closed_heads(model)
    for layer, gates in enumerate(model.gates()):
        whole = model.params[f"layers.{layer}.Wo"]
        wrong.params[f"layers.{layer}.Wo"][:] = (
            gates.scale * whole[: len(wrong.params[f"layers.{layer}.Wo"])]
        )
    return wrong


# %%
for bug in (forgets_c, wrong_rows):
    try:
        assert_same_logits(bug(float64), float64, 1e-11)
    except AssertionError as error:
        print(f"{bug.__name__}: {error}")
    else:
        raise AssertionError(f"the planted bug {bug.__name__} was not found")

bits = {}
for name, model in {
    "gated, heads closed": float64,
    "removed": small64,
    "removed, c forgotten": forgets_c(float64),
    "removed, wrong rows": wrong_rows(float64),
}.items():
    part = text.valid[:2000]
    bits[name] = evaluate(model, part, len(part)).bits_per_character
    print(f"{name:22s} {bits[name]:.6f} bits per character on 2,000 characters")
assert abs(bits["removed"] - bits["gated, heads closed"]) < 1e-10
assert bits["removed, wrong rows"] > bits["removed"] + 0.1

# %% [markdown]
# The wrong rows show in any loss. The forgotten $c$ is the more dangerous bug: its model is somewhat worse, and everybody
# expects a pruned model to be somewhat worse. Only the comparison of logits shows that it is not the model that was
# trained.
#
# ## 5 · What it saves: parameters, multiply-adds, bytes
#
# One head owns $D\cdot Dh$ numbers in each of `Wq`, `Wk`, `Wv`, `Wr`, `Wo`, two biases of $Dh$, and a network of $N$
# units, each with a key and a value of $D$ numbers and a bias:
#
# $$ \text{parameters of a head} = 5\,D\,Dh + 2\,Dh + 2\,N\,D + N $$
#
# For one token it needs $D\cdot Dh$ multiply-adds for each of $q$, $k$, $v$ and its part of `Wo`. (`Wr` is applied to
# distances, once for a whole segment, and is not counted.) For each of the $K=M+1$ visible context keys it needs $Dh$
# multiply-adds for the content score, the position score and the value, and each unit takes $D$ for its key and $D$ for
# its value:
#
# $$ \text{multiply-adds of a head} = 4\,D\,Dh + 3\,K\,Dh + 2\,N\,D $$
#
# A head of All-attention as published has $N$ persistent keys and values of $Dh$ numbers in place of the network, so
# that both last terms are $2\,N\,Dh$, and the units' biases fall away.
#
# **Before you look:** half of the heads are gone. Will the model have more or less than half of its parameters, and why
# not exactly half?

# %%
show_source(head_part, docstring=False)
head, N, K = head_part(config), config.N, config.M + 1
assert head.parameters == 5 * D * Dh + 2 * Dh + 2 * N * D + N
assert head.multiply_adds_per_token == 4 * D * Dh + 3 * K * Dh + 2 * N * D
published = head_part(replace(config, persistent="softmax"))
assert published.parameters == 5 * D * Dh + 2 * Dh + 2 * N * Dh
print(
    f"a head owns {head.parameters:,}; as published, with N persistent vectors, {published.parameters:,}"
)

# %% jupyter={"source_hidden": true}
# Count what is stored before and after, and compare with the formula.
removed = sum(config.heads) - sum(small.config.heads)
stored = {
    name: sum(x.size for x in m.params.values())
    for name, m in (("before", baseline), ("after", small))
}
assert (
    stored["before"] - stored["after"] == removed * head.parameters  # to the last number
)
assert stored["after"] == count_parameters(small.config)
size = {s: own.directory.checkpoint(s).stat().st_size for s in ("train", "prune")}
table = [
    {
        "model": name,
        "heads": sum(m.config.heads),
        "parameters": count_parameters(m.config),
        "multiply-adds a token": count_multiply_adds(m.config),
        "checkpoint, KiB": round(size[stage] / 1024),
    }
    for name, m, stage in (("before", baseline, "train"), ("after", small, "prune"))
]
print(text_table(table))

# %% jupyter={"source_hidden": true}
# Draw what parameters and multiply-adds consist of, before and after.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.1))
models = (("before", baseline.config), ("after", small.config))
for ax, key, label in zip(
    axes, ("parameters", "multiply_adds_per_token"), ("parameters", "multiply-adds a token")
):
    for x, (_, cfg) in zip((0, 1.5), models):
        bottom = 0
        for part in reversed(count_parts(cfg)):
            value = getattr(part, key)
            is_heads = part.part.endswith("heads")
            number = int(part.part.split()[1][0]) if is_heads else None
            look = (
                {"color": HEAD_COLOURS[number], "hatch": ("", "//", "xx", "..")[number % 4]}
                if is_heads
                else {"color": "#BBBBBB"}
            )
            ax.bar(x, value, bottom=bottom, width=0.6, edgecolor="white", linewidth=0.5, **look)
            if is_heads and value > 0.04 * getattr(count_parts(baseline.config)[2], key):
                ax.text(x + 0.33, bottom + value / 2, part.part, va="center", fontsize=8)
            bottom += value
    ax.set(
        xticks=[0, 1.5],
        xticklabels=["all 32 heads", f"{sum(small.config.heads)} heads"],
        xlim=(-0.5, 2.6),
        title=label,
    )
    ax.yaxis.set_major_formatter(EngFormatter(sep=""))
figure.suptitle(
    "Layers shrink in proportion to their heads; the grey rest (embedding, positions, norms) stays",
    fontsize=10,
)
plt.show()

# %% [markdown]
# All of a layer except LayerNorms and the biases `bo` and `net.bo` belongs to its heads: that is the purpose of
# All-attention, and of the head networks of [chapter 10b](10b_all_attention.ipynb). In an ordinary Transformer the
# feed-forward block, the two matrices of F hidden units in each layer, would keep its size.

# %% [markdown]
# ## 6 · What it saves: time
#
# A gated model skips closed heads as well: before each pass it copies the open heads' slices out of the whole matrices,
# and computes with those.
#
# **Before you look:** will the model with closed gates be as slow as the whole one, as fast as the small one, or in
# between?
#
# The three models take turns reading the same text; the cell prints medians.

# %%
ms = milliseconds_per_1k_tokens([baseline, gated, small], text.valid, at_least=0.4)
for name, value in zip(("all heads", "closed by gates", "removed"), ms):
    print(f"{name:16s} {value:6.2f} ms per 1,000 tokens ({value / ms[0]:.0%})")

# %% [markdown]
# Skipping saves most of the closed heads' arithmetic, but the copies cost time in every pass. After the removal nothing is
# left to copy, and nothing to store. (On a busy machine all three numbers vary; run the cell again before you believe
# them.)
#
# The next picture shows the time against the number of heads, from 8 in each layer down to none. Time does not depend on
# the weights, so random ones suffice. Beside it are the **committed results of the full study**
# ([`data/results/architecture-pydoc`](../data/results/architecture-pydoc/README.md)) for three larger models of the same
# size: heads with networks of 64 units, where this notebook's have 32; All-attention as published, with 512 persistent
# vectors per head; and a Transformer-XL.

# %% jupyter={"source_hidden": true}
# Time the model with 8, 7, … 0 heads in every layer.
rng = np.random.default_rng(0)
sizes = [replace(config, heads=(h,) * L, head_ids=()) for h in range(H, -1, -1)]
models = [Transformer(size, init_parameters(size, rng), ops=run.ops) for size in sizes]
measured = np.array(milliseconds_per_1k_tokens(models, text.valid, at_least=0.25))  # (9,)
shares = np.array([sum(size.heads) for size in sizes]) / (L * H)
study = read_csv(results("architecture-pydoc", "inference.csv").read_text("utf-8"))

# %% jupyter={"source_hidden": true}
# Draw parameters and time against heads: this notebook's model, and those of the study.
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
lines = (
    ("this notebook, just now", None, BLUE, "o-"),
    ("study: head networks", "head-networks", HEAD_COLOURS[4], "D-"),
    ("study: All-attention", "all-attention", "#009E73", "s--"),
    ("study: Transformer-XL", "transformer-xl", VERMILION, "^-."),
)
for ax, key in zip(axes, ("parameters", "ms_per_1k_tokens")):
    ax.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
    for label, method, colour, style in lines:
        if method is None:
            own_numbers = (
                np.array([count_parameters(size) for size in sizes])
                if key == "parameters"
                else measured
            )
            x, y = shares, own_numbers / own_numbers[0]
        else:
            rows = [row for row in study if row["method"] == method]
            x, y = (
                [row["heads_open"] / row["heads_total"] for row in rows],
                [row[f"{key}_share"] for row in rows],
            )
        ax.plot(x, y, style, color=colour, markersize=4, label=label)
    ax.set(xlabel="share of the heads that is left", xlim=(0, 1.02))
axes[0].set(ylabel="share of the whole model's", title="Parameters")
axes[1].set_title("Time for 1,000 tokens")
axes[0].set_ylim(0, 1.05 * max(1.0, (measured / measured[0]).max()))
axes[0].legend(frameon=False, fontsize=8, loc="lower right")
plt.show()

# %% [markdown]
# Parameters follow the heads exactly, down to what no head owns. Time follows less closely. In the study it falls in
# steps of two heads per layer: each of two threads takes whole heads, so seven take nearly as long as eight. Your own
# line depends on your machine and its load, and it may be jagged, with odd numbers of heads costing more than the next
# even number; a model of this size also spends time on many small calls from Python, whose number does not fall with
# the heads. Look at the even numbers: there time falls with the heads. In Transformer-XL the feed-forward blocks
# remain, in both pictures.

# %% [markdown]
# ## 7 · A layer that loses all of its heads
#
# Nothing prevents a controller from closing a whole layer. Formulas (1) and (2) become empty sums, and
#
# $$ y = x + b_o + b_{net} $$
#
# is left: the layer passes on its input plus a constant. Shapes now contain a zero, `Wq` is $(D, 0)$ and `Wo` is $(0,
# D)$, and programs that were not tested with them crash: a mean over no heads, a division by $n=0$ in $c$, an empty
# softmax. Try it: close the last layer's heads and remove them.

# %%
last = L - 1
emptied = Transformer(
    config, {name: x.copy() for name, x in gated.params.items()}, gated.gate, run.ops
)
emptied.params[f"layers.{last}.log_alpha"][:] = -5.0
without_layer = remove_closed_heads(emptied)
for name in ("Wq", "Wo", "u", "net.pk", "bo"):
    print(f"{name}: {without_layer.params[f'layers.{last}.{name}'].shape}", end="   ")
print(f"c = {emptied.gates()[last].scale:.0f}")
print(f"float32, logits differ by {assert_same_logits(without_layer, emptied, 1e-4):.1e}")

# %% jupyter={"source_hidden": true}
# what is left of it is x + bo + net.bo
on_textbook = replace(without_layer, ops=get_backend("numpy"))
_, memory, cache = on_textbook.forward(ids)
x = memory[last]  # (B, T, D): the layer's input, kept for the next segment
after, _ = on_textbook.ops.layernorm_forward(
    x + sum(without_layer.params[f"layers.{last}.{name}"] for name in ("bo", "net.bo")),
    without_layer.params["ln.scale"],
    without_layer.params["ln.bias"],
)  # (B, T, D)
np.testing.assert_allclose(on_textbook.forward(ids)[0], after, atol=1e-5)

# %% [markdown]
# It has to train as well. In one step of the ordinary objective every parameter gets a gradient of its own shape: the
# empty ones an empty one, `bo` and `net.bo` a real one. A few more steps reduce the loss.

# %% jupyter={"source_hidden": true}
# Train the model without that layer for 40 steps.
training = replace(run.config.finetune, steps=40)
objective = LanguageModelling()
optimizer = make_optimizer(
    training, parameter_groups(without_layer.params, training.weight_decay), run.ops
)
train_segments = Segments(text.train, training.B, T)
memory, losses = None, []
for step in range(training.steps):
    batch, batch_targets, _ = train_segments.batch(step)  # (B, T), B = 16
    loss, memory, grads = objective(without_layer, batch, batch_targets, memory, rng, step)
    if step == 0:
        assert all(grads[name].shape == value.shape for name, value in without_layer.params.items())
        assert np.isfinite(np.concatenate([g.ravel() for g in grads.values()])).all()
        assert np.linalg.norm(grads[f"layers.{last}.bo"]) > 0
    optimizer.step(without_layer.params, grads, training.lr)
    losses.append(loss["loss"] / np.log(2))
first_five, last_five = np.mean(losses[:5]), np.mean(losses[-5:])
print(f"bits per character: first 5 steps {first_five:.2f}, last 5 steps {last_five:.2f}")
assert last_five < first_five

# %% [markdown]
# And it generates text:

# %%
prompt = text.tokenizer.encode("The value of the expression ")
tokens = list(generate(without_layer, prompt, 120, np.random.default_rng(0), temperature=0.7))
print(text.tokenizer.decode(np.array([*prompt, *tokens])))

# %% [markdown]
# Go all the way: close *all* heads of *all* layers.
#
# **Before you look:** what can such a model still know about the next character?

# %% jupyter={"source_hidden": true}
# Remove all heads: without them, position does not matter.
no_heads = remove_closed_heads(with_heads(baseline, [np.zeros(H, bool)] * L))
h = no_heads.forward(ids)[0]  # (B, T, D)
row, column = np.nonzero(ids == np.bincount(ids.ravel()).argmax())  # the most frequent token
assert len(row) > 5 and np.abs(h[row, column] - h[row[0], column[0]]).max() < 1e-5
h = small.forward(ids)[0]
assert np.abs(h[row, column] - h[row[0], column[0]]).max() > 0.1  # with heads its position matters
print(f"{sum(no_heads.config.heads)} heads, {count_parameters(no_heads.config):,} parameters")

# %% [markdown]
# The same token gets the same prediction at every position: no position ever sees another one, so the last token alone
# decides what comes next. The model has become a table of pairs of characters, a *bigram model*.
#
# ## 8 · Heads keep their numbers
#
# In the small model the heads of a layer are numbered 0, 1, 2 … without gaps; the slices do not say which heads they
# were. The configuration does: `head_ids` holds the original number of each head, so that pictures of a pruned model
# name the same heads as pictures of the whole one.

# %% jupyter={"source_hidden": true}
# Draw which heads are left, check their numbers, and remove once more.
figure = plots.plot_heads(small.config)
figure.set_dpi(100)
display(figure)
for ids_kept, opened in zip(small.config.head_ids, open_heads(gated)):
    assert list(ids_kept) == np.flatnonzero(opened).tolist()
assert small.config == open_config(gated)

# remove again, from the small model: the first head of every layer that has one
mask = [np.arange(count) > 0 for count in small.config.heads]
smaller = remove_closed_heads(with_heads(small, mask))
assert smaller.config.head_ids == tuple(kept[1:] for kept in small.config.head_ids)
print("after a second removal, by layer:", *[list(kept) for kept in smaller.config.head_ids])

# %% [markdown]
# ## 9 · The same text
#
# Generation goes token by token through `CachedDecoder`, which keeps the keys and values of earlier tokens and computes
# the layers for the newest one alone. So it needs a check: with the same random numbers, the gated and the small model
# must write the same text, letter by letter. It runs in float64, so that rounding cannot decide a close draw.

# %% jupyter={"source_hidden": true}
# Write a text with both models, and compare all probabilities.
written = {}
for name, model in (("gated", float64), ("small", small64)):
    tokens = list(generate(model, prompt, 150, np.random.default_rng(1), temperature=0.7))
    written[name] = text.tokenizer.decode(np.array(tokens))
assert written["gated"] == written["small"]
print(written["small"])

# the decoder agrees with the pass over a whole segment
decoder = CachedDecoder(small64)
step_by_step = np.array([decoder.step(int(token)) for token in ids[0]])  # (T, V)
at_once = small64.log_probabilities(small64.forward(ids[:1])[0])[0]  # (T, V)
print(f"log p, token by token against all at once: {np.abs(step_by_step - at_once).max():.1e}")
assert np.abs(step_by_step - at_once).max() < 1e-10

# %% [markdown]
# This is the result of the three stages so far:

# %% jupyter={"source_hidden": true}
# Measure all three models on the validation split.
rows = []
for name, model in (("baseline", baseline), ("gated", gated), ("removed", small)):
    value = evaluate(model, text.valid, text.characters["valid"]).bits_per_character
    rows.append(
        {
            "model": name,
            "heads": sum(open_config(model).heads),
            "parameters": count_parameters(model.config),
            "validation, bits": value,
        }
    )
print(text_table(rows))
assert abs(rows[1]["validation, bits"] - rows[2]["validation, bits"]) < 1e-4

# %% [markdown]
# Removal itself has cost nothing. The loss rose when the gates closed, and training the smaller model a little more
# recovers part of it: the next chapter.
#
# ## Recap
#
# - A layer's output is a sum over heads, so removing a closed head means slicing: columns of `Wq`, `Wk`, `Wv`, `Wr`, rows
#   of `Wo`, and the head's entry in its biases and its network.
# - What an open head was multiplied by, its gate times $c$, moves into `Wo` and `pv`. Logits stay equal, and float64 tells
#   a bug from rounding.
# - Parameters, multiply-adds and time fall with the heads, because all but the norms and two biases of a layer belongs to
#   some head.
#
# ## Now you
#
# Replace the line `raise NotImplementedError(…)` by your code and run the cell. It prints nothing if the check passes.

# %% [markdown]
# ### Exercise 1 · Cut and fold one projection
#
# A layer's heads have the outputs `o`, of shape (T, H, Dh), and its output is the sum of $g_h\,c\,o_h\,W_o^{(h)}$. Return
# the numbers of the heads that are open, and a matrix for those alone that needs neither gates nor $c$. Gates may be soft:
# an open one is any number above 0.

# %% tags=["exercise", "raises-exception"]
import numpy as np


def cut_projection(Wo, gates, c, Dh):
    """Return kept (k,), the open heads' numbers, and a matrix (k·Dh, D), from Wo (H·Dh, D) and gates (H,)."""
    raise NotImplementedError(
        "write cut_projection: return kept, and the open heads' rows times gate and c"
    )


rng = np.random.default_rng(0)
o, Wo, gates = rng.normal(size=(5, 4, 3)), rng.normal(size=(12, 6)), np.array([0, 0.5, 0, 1.0])
kept, small = cut_projection(Wo, gates, 2.0, 3)
assert np.array_equal(kept, [1, 3]), f"heads 1 and 3 are open, got {kept}"
assert small.shape == (6, 6), f"two heads own 2·3 rows of 6 numbers, got {small.shape}"
gated = (2.0 * gates[:, None] * o).reshape(5, 12) @ Wo  # (T, D)
difference = np.abs(o[:, kept].reshape(5, 6) @ small - gated).max()
assert difference < 1e-12, (
    f"the layer's output must stay the same, got a difference of {difference:.2g}"
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `Wo.reshape(H, Dh, D)` has a head on its first axis. Which axes must the factor have to meet it?
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def cut_projection(Wo, gates, c, Dh):
#     kept = np.flatnonzero(gates)
#     heads = Wo.reshape(len(gates), Dh, -1)  # (H, Dh, D)
#     factor = c * gates[kept]  # (k,)
#     return kept, (factor[:, None, None] * heads[kept]).reshape(len(kept) * Dh, -1)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · Remove heads from a whole layer
#
# `layer` holds a layer's arrays by name: `Wq`, `Wk`, `Wv`, `Wr` of shape (D, H·Dh), `Wo` (H·Dh, D), `u` and `w` (H, Dh),
# the networks' `net.pk` and `net.pv` (H, N, D) and `net.pb` (H, N), and arrays that belong to no head, such as `bo`. Return
# a new dictionary in which only the heads `kept` are left, with their factors $g_h c$, which differ, folded in. The check
# builds a model from them and compares it with the gated one.

# %% tags=["exercise", "raises-exception"]
from dataclasses import replace

import numpy as np

from tinyprune import ModelConfig, Transformer, init_parameters
from tinyprune.pruning.importance import with_heads


def cut_layer(layer, kept, factor, Dh):
    """Return the arrays of a layer with the heads kept (k,) alone, and factor (k,) folded in."""
    raise NotImplementedError(
        "write cut_layer: return a dictionary with the same names and smaller arrays"
    )


rng = np.random.default_rng(0)
sizes = {"V": 11, "L": 1, "D": 12, "H": 4, "N": 5, "T": 6, "M": 0}
config = ModelConfig("all-attention", **sizes, mask="causal", persistent="stream")
shapes = {name: x.shape for name, x in init_parameters(config, rng).items()}
params = {name: rng.normal(size=shape) for name, shape in shapes.items()}
gated = with_heads(Transformer(config, params))
gated = replace(gated, gate=replace(gated.gate, hard=False, output_scaling=True))
gated.params["layers.0.log_alpha"][:] = -9.0, 0.5, -9.0, -1.0  # two shut, two between 0 and 1
(gates,) = gated.gates()
kept = np.flatnonzero(gates.values)  # heads 1 and 3, c = 4 / 2
layer = {n.removeprefix("layers.0."): x for n, x in params.items() if n.startswith("layers.0.")}
cut = cut_layer(layer, kept, gates.values[kept] * gates.scale, config.Dh)
small = params | {f"layers.0.{name}": x for name, x in cut.items()}
smaller = Transformer(replace(config, heads=(2,), head_ids=((1, 3),)), small)
ids = np.arange(6)[None]
difference = np.abs(smaller.forward(ids)[0] - gated.forward(ids)[0]).max()
assert difference < 1e-9, f"both models must compute the same, got a difference of {difference:.2g}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# The columns of head $h$ are $h\cdot Dh$ to $(h+1)\cdot Dh - 1$. Two arrays take the factor, one in each block; all others
# are only sliced, and those without heads are only copied.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def cut_layer(layer, kept, factor, Dh):
#     own = (kept[:, None] * Dh + np.arange(Dh)).ravel()  # the heads' columns, or rows of Wo
#     cut = dict(layer)
#     for name in ("Wq", "Wk", "Wv", "Wr"):
#         cut[name] = layer[name][:, own]
#     cut["Wo"] = layer["Wo"][own] * np.repeat(factor, Dh)[:, None]
#     for name in ("u", "w", "net.pk", "net.pb"):
#         cut[name] = layer[name][kept]
#     cut["net.pv"] = layer["net.pv"][kept] * factor[:, None, None]
#     return cut
# ```
#
# </details>
#
# [Assignment A5](assignments/README.md) continues from here: removal and folding with all of their corner cases.

# %% [markdown]
# ## Questions
#
# 1. Why must `bo`, `net.bo` and the LayerNorms not be sliced, although a closed head no longer uses them?
#
# <details><summary>Answer</summary>
#
# They run over the $D$ features of the residual stream, not over heads. Every open head reads the normalised input and adds
# to all $D$ features; each bias is added once for its block, whichever heads are open.
#
# </details>
#
# 2. One could fold $g_h c$ into `Wv` instead of `Wo`, and into `pk` and `pb` of the network instead of `pv`. Would that
#    be right here? And in All-attention as published?
#
# <details><summary>Answer</summary>
#
# Here it would. $o_h$ is a weighted sum of $v_j$, so it grows in proportion to `Wv`; and since $g_h c > 0$, the factor
# passes through the ReLU, $g_h c\max(a, 0) = \max(g_h c\,a, 0)$. (It must be folded into `pb`, too, because $a$ contains
# that.) As published, $o_h$ is a weighted sum of $v_j$ *and* of persistent values, $\sqrt N\,pv_n$; folding into `Wv`
# alone would be wrong. `Wo` comes after both.
#
# </details>
#
# 3. After removal the model is fine-tuned. Does output scaling still apply?
#
# <details><summary>Answer</summary>
#
# No. It is now a part of `Wo`, which training may change like any other parameter. $c$ was a correction for heads that
# are closed but counted in $H$; the small model has no closed heads.
#
# </details>
#
# 4. Your check in float32 reports a difference of $3\cdot10^{-3}$ between the logits. Rounding, or a bug?
#
# <details><summary>Answer</summary>
#
# Repeat it in float64. If it is rounding, the difference falls by eight or nine orders of magnitude with the precision; if
# it is a bug, it stays.
#
# </details>
#
# 5. Both models compute the same. Is there any reason to keep the gated one?
#
# <details><summary>Answer</summary>
#
# Yes, to continue training gates: a closed gate may still open, while a removed head is gone. And to ask what a head
# contributes, which requires the head. For everything else the small one is smaller and not slower.
#
# </details>
#
# **Next:** [08 fine-tuning and trade-off](08_fine_tuning_and_trade_off.ipynb): the small model is trained a little
# more, and all ways of choosing heads are compared. The code of this chapter is in
# [`pruning/surgery.py`](../tinyprune/pruning/surgery.py), [`model/parameters.py`](../tinyprune/model/parameters.py),
# [`model/counting.py`](../tinyprune/model/counting.py) and [`model/generation.py`](../tinyprune/model/generation.py).

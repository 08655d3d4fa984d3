# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · The tour: the whole method in five minutes, on real text
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/00_tour.ipynb)
# &nbsp; [all chapters](README.md) · [01 backprop by hand](01_backprop_by_hand.ipynb) →
#
# A language model has dozens of *heads*: small, independent readers that look back over the text and report what they
# find. Some matter a great deal, others hardly at all. This project trains a model, lets it **learn which of its heads
# it can do without**, removes those for good, and trains the rest a little more. There is no autograd and no framework:
# every gradient was derived by hand, and the later chapters derive them with you. This chapter only looks.
#
# **After this chapter you can** say what the four stages are, what they do to a model's size, speed and quality, and which
# chapter to open for the part that you want to understand.
#
# **You need** nothing but curiosity. It takes five minutes to read and half a minute to run (the very first run
# compiles for half a minute more).

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
import tempfile
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

from tinyprune import Transformer, count_parts, generate
from tinyprune.notebook import baseline_run, sliders, use_style
from tinyprune.plots import (
    BLUE,
    GREY,
    KEPT,
    REMOVED,
    VERMILION,
    plot_gates,
    plot_heads,
    plot_losses,
)
from tinyprune.pruning.gates import settle
from tinyprune.report import summarise
from tinyprune.runs.directory import RunDirectory
from tinyprune.runs.run import Run
from tinyprune.tables import markdown_table, text_table
from tinyprune.training.evaluation import evaluate
from tinyprune.training.metrics import read_metrics

use_style()


def show(*figures, dpi=90):
    """Display pictures that the package has drawn, at the size of a page."""
    for figure in figures:
        figure.set_dpi(dpi)
        display(figure)


# %% [markdown]
# ## 1 · A model and its text
#
# The text is the language reference that comes with Python, so nothing is downloaded. The model reads it character by
# character, 64 at a time, and always predicts the next one. The cell trains it for 900 steps, which takes less than a
# minute on a laptop; later chapters reuse the trained model. A token is a character here.

# %%
first_run = baseline_run()
text = first_run.text
baseline = first_run.load("train").model
config = baseline.config

print(
    f"{len(text.train):,} characters to learn from, {len(text.test):,} held out; {text.tokenizer.V} different ones.\n"
)
sample = text.train[5000:5360]  # (360,) numbers, one for each character
print(textwrap.indent(text.tokenizer.decode(sample), "    "))
print("\nthe same, as the model gets it:", *sample[:24], "…")

# %% [markdown]
# The model has four layers of eight heads and little else. In an ordinary Transformer more than half of the parameters
# sit in feed-forward blocks, which do not shrink when a head is removed. The paper's **All-attention Transformer** has
# none: its heads own *persistent vectors*, learned keys and values that they attend to beside the text. The heads of our
# model own something that learns more at this size, namely a part of the feed-forward block: 32 of its hidden units
# each. Both kinds are the subject of [chapter 03](03_all_attention.ipynb), and both do what matters here: remove a head,
# and everything it owns goes with it.

# %%
print(text_table([dataclasses.asdict(part) for part in count_parts(config)]))

# %% [markdown]
# It learned from nothing but gradients, the subject of chapters [01](01_backprop_by_hand.ipynb) and
# [02](02_attention_by_hand.ipynb). What has it learned in 900 steps? Give it the beginning of a sentence and let it
# continue.


# %%
prompt = "The following statement returns the "


def write(model, characters=320):
    """Let a model continue the prompt."""
    new = generate(
        model, text.tokenizer.encode(prompt), characters, np.random.default_rng(0), temperature=0.7
    )
    return prompt + text.tokenizer.decode(np.array(list(new)))


print(textwrap.indent(write(baseline), "    "))

# %% [markdown]
# It is no author. But from single characters it has learned words, spaces and the layout of a page.
#
# ## 2 · A gate on every head
#
# Each head now gets a **gate**, a random switch that lets its report through or not, and with it the output of its
# hidden units ([chapter 04](04_hard_concrete_gate.ipynb)). The probability that a gate is open is learned. Training
# continues with a loss that has two parts:
#
# $$ \mathtt{loss} = \text{how wrong the guesses are} + \mathtt{lam}\cdot\text{how many gates are open} $$
#
# A head that does not pay for itself by better predictions closes ([chapter 05](05_l0_and_the_difference.ipynb),
# [chapter 06](06_training_with_gates.ipynb)). The following stages run in a temporary directory, so that the baseline
# is not changed.

# %%
folder = tempfile.TemporaryDirectory(prefix="tinyprune-tour-")  # gone when the notebook ends
directory = RunDirectory(folder.name)
run = Run(directory, first_run.config, first_run.ops, "run the cell once more")
run.adopt(first_run.directory.checkpoint("train"))
run.prepare(["gate", "prune", "finetune"])
run.gate()
gated = run.load("gate").model
show(plot_gates(read_metrics(directory.metrics), run.config.gate))

# %% [markdown]
# Each line is a head; its height is the probability that the head is open. Dashed lines end closed; below the dotted
# line evaluation counts a head as closed; the numbers on the right name the heads. All start nearly open. The price
# `lam` rises over the first 100 steps, and then the heads separate: some stay open, some close. Nobody told the model
# how many to close, or in which layer.
#
# ## 3 · Cut out what is closed
#
# A closed head adds exactly nothing. So its columns and rows can be removed from every matrix: the model becomes
# smaller and faster and still computes **the same**. This is meant literally: the cell compares every prediction with
# that of the gated model ([chapter 07](07_removing_heads.ipynb)).

# %%
run.prune()
small = run.load("prune").model

ids = text.test[: config.T][None].astype(np.int64)  # (1, T)
log_p_gated = gated.log_probabilities(gated.forward(ids)[0])  # (1, T, V)
log_p_small = small.log_probabilities(small.forward(ids)[0])
print(f"largest difference of any log-probability: {np.abs(log_p_small - log_p_gated).max():.1e}")
np.testing.assert_allclose(log_p_small, log_p_gated, rtol=0, atol=1e-4)  # float32
assert sum(small.config.heads) < config.heads_total

show(plot_heads(config), plot_heads(small.config))

# %% [markdown]
# ## 4 · Heal
#
# The remaining heads are trained a little more, as an ordinary model
# ([chapter 08](08_fine_tuning_and_trade_off.ipynb)). Here is the loss over all stages. The dots are the loss on a
# second held-out text, the validation text; the table further down is about the test text, so its numbers differ. The
# loss jumps up when the gates arrive, because they flicker: in every step some heads are missing, and hardly ever the
# same ones.

# %%
run.finetune()
final = run.load("finetune").model
show(plot_losses(read_metrics(first_run.directory.metrics) + read_metrics(directory.metrics)))

# %% [markdown]
# Here is the whole run in one table, measured on held-out text. Bits per character are the number of yes-or-no
# questions that the model would still have to ask, on average, to know the next character: the fewer, the better.

# %%
table = summarise(run)
display(Markdown(markdown_table(table)))

before, gate_row, pruned, after = table
assert pruned["heads_open"] == gate_row["heads_open"] < before["heads_open"]
assert (
    abs(pruned["bits_per_character"] - gate_row["bits_per_character"]) < 1e-3
)  # removal changes nothing
assert pruned["parameters"] < before["parameters"]
assert after["bits_per_character"] < pruned["bits_per_character"]  # fine-tuning heals

fig, axes = plt.subplots(1, 3, figsize=(9, 2.4))
measures = {
    "parameters": "parameters",
    "ms_per_1k_tokens": "ms per 1,000 characters",
    "bits_per_character": "bits per character",
}
for ax, (key, label) in zip(axes, measures.items()):
    values = [before[key], after[key]]
    ax.bar(["baseline", "pruned,\nfine-tuned"], values, color=[GREY, BLUE], width=0.55)
    for x, value in enumerate(values):
        ax.text(
            x, value, f"{value:,.0f}" if value > 100 else f"{value:.2f}", ha="center", va="bottom"
        )
    ax.set(title=label, ylim=(0, 1.15 * max(values)), yticks=[])
    ax.spines["left"].set_visible(False)
plt.show()

# %% [markdown]
# Read the table with some suspicion, as this project always does. The final model is smaller and faster than the
# baseline and only slightly worse. But it has also been trained longer, and how good is a model that was small from the
# start? What the table shows is that so many heads could be removed. Whether learned gates choose heads better than
# simpler methods do, *at equal cost*, is the question of [chapter 08](08_fine_tuning_and_trade_off.ipynb), and the
# answer is mixed.
#
# Here are both models' continuations of the same prompt:

# %%
for name, model in (
    ("baseline, 32 heads", baseline),
    (f"pruned and fine-tuned, {sum(final.config.heads)} heads", final),
):
    print(f"{name}:\n{textwrap.indent(write(model), '    ')}\n")

# %% [markdown]
# ## 5 · Close them yourself
#
# The gates rank all heads: the larger the learned parameter of a head's gate (`log_alpha`, chapter 04), the more the
# head is worth. Instead of the number of heads that training arrived at, choose your own. The cell takes the model from
# the end of stage 2, opens the gates of that many heads, the best ones, closes the others, and reads some held-out
# text; it does so for every number from 0 to 32 in advance, so that the slider responds at once.

# %%
held_out = text.test[:6000]
curve, opened = [], []  # by the number of open heads
for heads in range(config.heads_total + 1):
    params = gated.params | {
        n: x.copy() for n, x in gated.params.items() if n.endswith("log_alpha")
    }
    model = Transformer(config, params, gated.gate, gated.ops)
    settle(
        model, heads
    )  # moves log_alpha so that exactly this many are open: those with the largest
    curve.append(evaluate(model, held_out, len(held_out)).bits_per_character)
    opened.append([gates.values > 0 for gates in model.gates()])  # for each layer (H,)
assert all(sum(layer.sum() for layer in layers) == heads for heads, layers in enumerate(opened))
learned = gate_row["heads_open"]


def draw_map(ax, heads):
    """Draw open heads filled and closed heads hatched."""
    for layer, is_open in enumerate(opened[heads]):
        for h in range(config.H):
            look = KEPT if is_open[h] else REMOVED
            ax.add_patch(plt.Rectangle((h - 0.44, layer - 0.44), 0.88, 0.88, **look))
    ax.set(xlim=(-0.5, config.H - 0.5), ylim=(config.L - 0.5, -0.5), aspect="equal")
    ax.set(xticks=range(config.H), yticks=range(config.L), title=f"{heads} open")
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)


def draw_curve(ax):
    """Plot quality against the number of open heads."""
    ax.plot(range(len(curve)), curve, color=BLUE, marker=".", linewidth=1.2)
    ax.axvline(learned, color=GREY, linestyle=":", linewidth=1)
    ax.annotate(
        "chosen in training",
        (learned, 1),
        (3, -9),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        color=GREY,
    )
    ax.set(
        xlabel="open heads",
        ylabel="bits per character",
        title="held-out text, without any healing",
        yscale="log",
    )
    ticks = [2, 2.5, 3, 4, 6, 10]
    ax.set_yticks(ticks, map(str, ticks))
    ax.set_yticks([], minor=True)


def close_heads(heads):
    """Draw the slider's picture: the map of heads, and the current point on the curve."""
    print(f"{heads} of {config.heads_total} heads open: {curve[heads]:.2f} bits per character")
    fig, (left, right) = plt.subplots(1, 2, figsize=(9, 2.9), width_ratios=(1, 1.3))
    draw_map(left, heads)
    left.set(xlabel="head", ylabel="layer")
    draw_curve(right)
    right.plot(heads, curve[heads], "o", color=VERMILION, markersize=10)
    plt.show()


sliders(close_heads, heads=(0, config.heads_total, 1))

# %% [markdown]
# Here is the same without a slider, for four numbers of heads:

# %%
fig, axes = plt.subplot_mosaic(
    [["a", "b", "curve"], ["c", "d", "curve"]], figsize=(9.5, 3), width_ratios=(1, 1, 1.7)
)
for name, heads in zip("abcd", (24, 16, 8, 2)):
    draw_map(axes[name], heads)
    axes[name].set(xticks=[])
    axes[name].set_title(f"{heads} open: {curve[heads]:.2f} bits")
draw_curve(axes["curve"])
for heads in (24, 16, 8, 2):
    axes["curve"].plot(heads, curve[heads], "o", color=VERMILION)
plt.show()
assert curve[2] > min(curve) + 0.5  # the last heads are expensive to lose

# %% [markdown]
# The curve is flat on the right and steep on the left: the first heads to go are cheap, the last ones are
# indispensable. Left of the flat part lies the number that training chose: the last few heads that it closed did help,
# but by less than their price. Where few are open the curve is uneven, and one more head can do nothing, or even harm,
# since nothing has been fine-tuned here.
#
# ## The chapters
#
# | | chapter | what you do there |
# | --- | --- | --- |
# | **learn to differentiate** | [01 backprop by hand](01_backprop_by_hand.ipynb) | derive three layers, and build a checker that trusts nobody |
# | | [02 attention by hand](02_attention_by_hand.ipynb) | the operation that heads are made of, forward and backward |
# | | [03 all-attention](03_all_attention.ipynb) | the paper's heads with persistent vectors, this model's with hidden units, and what one owns |
# | **learn to prune** | [04 the Hard-Concrete gate](04_hard_concrete_gate.ipynb) | a random switch with a gradient |
# | | [05 the L0 loss and the difference](05_l0_and_the_difference.ipynb) | a loss that counts, and what a layer says with and without a head |
# | | [06 training with gates](06_training_with_gates.ipynb) | stage 2, and what keeps it stable |
# | | [07 removing heads](07_removing_heads.ipynb) | stage 3: smaller, and provably the same |
# | | [08 fine-tuning and the trade-off](08_fine_tuning_and_trade_off.ipynb) | stage 4, and an honest race against conventional pruning |
# | **make it fast** | [09 hot loops in Numba](09_hot_loops_in_numba.ipynb) | from a plain loop to the kernels that trained this model |
# | | [10 on a GPU](10_on_a_gpu.ipynb) | the same ideas on another machine |
#
# ## Questions
#
# 1. Why not put a gate on every single *weight* instead?
#
# <details><summary>Answer</summary>
#
# One could, and many methods do that. But a matrix with zeros sprinkled over it is multiplied as slowly as a full one. A head
# is a whole block of columns and rows; without it, the matrices are smaller, and every machine is faster with smaller
# matrices.
#
# </details>
#
# 2. In the table, the number of parameters does not change between *train* and *gate*, but multiply-adds do. Why?
#
# <details><summary>Answer</summary>
#
# Closed heads are still stored in the gated model, but it skips them when it computes. Removal deletes them from
# storage as well.
#
# </details>
#
# 3. Suppose half of the heads were gone. Why would the model be neither half as large nor twice as fast?
#
# <details><summary>Answer</summary>
# Embedding, positions, normalisations and output biases (`bo`) belong to no head and stay: they are the lines of the
# first table that are not called *heads*. And in a model this small, much of the time is spent between operations and
# not in them.
#
# </details>
#
# **Next:** [01 backprop by hand](01_backprop_by_hand.ipynb). The four stages are methods of `Run` in
# [`runs/run.py`](../tinyprune/runs/run.py); on the command line the whole tour is `tinyprune run`.

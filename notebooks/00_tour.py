# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · The tour: the whole method, on real text
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/00_tour.ipynb)
# &nbsp; [all chapters](README.md) · [01 backprop by hand](01_backprop_by_hand.ipynb) →
#
# A language model reads a text and predicts how it continues. A Transformer does this with dozens of *attention heads*:
# small readers that look back over the text and report what they find. This course rebuilds *Layer-wise Pruning of
# Transformer Attention Heads for Efficient Language Modeling* (Shim, Choi, Sung & Choi 2021,
# [arXiv 2110.03252](https://arxiv.org/abs/2110.03252)): a model **learns which of its heads it can do without**, these
# heads are removed for good, and the rest is trained a little more. All of it is NumPy, every gradient derived by hand. This
# chapter derives nothing.
#
# **After this chapter you can** say what the four stages do to a model's size, speed and quality, and which chapter
# explains which part.
#
# **You need** some NumPy for two exercises, and the [glossary](README.md#glossary). The cells train several small models.

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
# Imports, and how pictures are shown.
# %matplotlib inline
import dataclasses
import tempfile
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown, display

from tinyprune import Transformer, count_parts
from tinyprune.ops.engine import Engine
from tinyprune.model.generation import generate
from tinyprune.notebook import baseline_run, sliders, use_style, you_are_here
from tinyprune.plots import BLUE, GREY, KEPT, REMOVED, VERMILION, plot_gates, plot_heads
from tinyprune.method.gates import open_parts, settle
from tinyprune.method.prune import heal
from tinyprune.method.roles import head_roles
from tinyprune.runs.report import summarise
from tinyprune.runs.directory import RunDirectory
from tinyprune.runs.run import Checkpoints, Run
from tinyprune.io.tables import markdown_table, text_table
from tinyprune.training.evaluation import evaluate
from tinyprune.training.metrics import read_metrics

use_style()


def show(*figures, dpi=90):
    """Display pictures that the package has drawn, at the size of a page."""
    for figure in figures:
        figure.set_dpi(dpi)
        display(figure)


# %%
you_are_here("train", "gates", "prune", "finetune")

# %% [markdown]
# The map shows the whole model and the four stages; blue is what a chapter is about. It shows the heads of this course,
# which own hidden units. The paper's heads have persistent vectors instead ([a page of their own](site/pages/the-papers-heads.md)).
#
# ## 1 · Why remove heads?
#
# - **Memory and time.** Each head takes both, useful or not.
# - **Many heads seem to be replaceable.** Michel, Levy & Neubig
#   ([2019](https://arxiv.org/abs/1905.10650)) removed many heads from trained models and lost little.
# - **One learns what a model does.** Voita et al. ([2019](https://arxiv.org/abs/1905.09418)) closed 38 of the 48 heads in
#   the encoder of a translation model and lost almost nothing. The heads that closed last had recognisable jobs.
#
# This chapter tries it on a small model, and [chapter 09](09_a_real_language_model.ipynb) on a pretrained model.
#
# ## 2 · A model and its text
#
# The text is the language reference that comes with Python. The model reads 64 characters at a
# time and predicts the next one at every position. The cell trains this *baseline* for
# 900 steps, unless an earlier run did so.

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
# The model has four layers of eight heads and little else. Besides its attention, each head owns 32 *hidden units*, a small
# network. If a head is removed, everything that it owns goes with it. (A *token* is what a
# model reads as a unit, here one character. A *multiply-add*, a multiplication and an addition, is the usual unit of
# computation.)

# %%
print(text_table([dataclasses.asdict(part) for part in count_parts(config)]))

# %% [markdown]
# How did the model learn? A *gradient* says for each of these parameters how the loss, the error of the predictions,
# changes with it ([chapter 01](01_backprop_by_hand.ipynb)). Each step moves all parameters a little, in the direction in
# which the loss falls ([chapter 06](06_training_with_gates.ipynb)).
#
# > **Sampling.** The model gives each possible next character a probability $p$. To write, draw a character by these
# > probabilities, append it, and repeat. The *temperature* $t$ changes how bold the draw is: $p$
# > becomes $p^{1/t}$, divided by the sum of all. Near $t=0$ the most probable character is nearly always drawn, and
# > the text repeats itself. At large $t$ all become equally likely.


# %%
prompt = "The following statement returns the "


def write(model, characters=320, temperature=0.7):
    """Let a model continue the prompt."""
    rng = np.random.default_rng(0)
    new = generate(model, text.tokenizer.encode(prompt), characters, rng, temperature=temperature)
    return textwrap.indent(prompt + text.tokenizer.decode(np.array(list(new))), "    ")


for temperature in (0.1, 0.7, 2.0):
    print(f"temperature {temperature}:\n{write(baseline, 200, temperature)}\n")

# %% [markdown]
# The text makes no sense. But the model has learned words, spaces and the layout of a page. (At a low temperature it can get
# stuck, here in blanks: after many of them one more is the most probable.)
#
# ## 3 · Three heads read one sentence
#
# At every position, a head gives a *weight* to the current character and to each of the 64 before it. The weights add up to
# 1, and the head reports the weighted mean of what those characters pass on ([chapter 03](03_attention_by_hand.ipynb)).
# Here are three extreme heads.

# %% jupyter={"source_hidden": true}
# Reads 2·T characters of held-out text and returns the weights of all heads for the last T, (L, H, T, 2·T).
textbook = dataclasses.replace(baseline, ops=Engine())  # the NumPy operations keep the weights
T = config.T


def attention_weights(start):
    """Return the weights (L, H, T, 2·T) for the characters from start + T on."""
    ids = text.test[None, start : start + 2 * T].astype(np.int64)  # (1, 2·T)
    _, memory, _ = textbook.forward(ids[:, :T])
    _, _, cache = textbook.forward(ids[:, T:], memory)
    return np.concatenate([layer.attention.a for layer in cache.attention_blocks])


def share_of_line_ends(starts):
    """Return the mean share of each head's attention that is on ends of lines, (L, H)."""
    shares = [
        attention_weights(start)[..., text.test[start : start + 2 * T] == newline].sum(-1)
        for start in starts
    ]
    return np.mean(shares, axis=(0, 3))


# %%
newline = text.tokenizer.encode("\n")[0]
roles = head_roles(baseline, text.test[2000:4000])
line_ends = share_of_line_ends(range(2000, 4000, T))  # (L, H)
frequency = (text.test[2000:4000] == newline).mean()

three_heads = {}
for share, what in (
    (roles.previous, "{:.0%} of its attention is on the character before"),
    (roles.effective_keys, "spread as widely as over {:.0f} characters with equal weights"),
    (line_ends, f"{{:.0%}} is on ends of lines (↵), {frequency:.0%} of the text"),
):
    layer, head = np.unravel_index(share.argmax(), share.shape)  # the most extreme head
    three_heads[int(layer), int(head)] = what.format(share[layer, head])

# %% jupyter={"source_hidden": true}
# The attention of the three heads on a piece of text: the darker a character, the larger its weight.
passage = 2070
weights = attention_weights(passage)


def read(position):
    """What the three heads look at from the framed character, the last one that they see."""
    figure, axes = plt.subplots(3, 1, figsize=(7.5, 2))
    seen = slice(position, position + T + 1)
    letters = text.tokenizer.decode(text.test[passage : passage + 2 * T][seen]).replace("\n", "↵")
    following = text.tokenizer.decode(text.test[passage + T + position + 1][None])
    print(f"it has read …{letters[-20:]!r} and is to predict {following!r}")
    for ax, ((layer, head), what) in zip(axes, three_heads.items()):
        a = weights[layer, head, position, seen]  # (T + 1,)
        ax.imshow(a[None], cmap="Blues", vmin=0, vmax=0.6, aspect="auto")
        for x, letter in enumerate(letters):
            colour = "white" if a[x] > 0.35 else "black"
            ax.text(x, 0, letter, family="monospace", ha="center", va="center", color=colour)
        frame = {"fill": False, "edgecolor": VERMILION, "linewidth": 1.5, "clip_on": False}
        ax.add_patch(plt.Rectangle((T - 0.5, -0.5), 1, 1, **frame))
        ax.set_title(f"layer {layer}, head {head}: {what}", fontsize=9)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    plt.show()


# %% [markdown]
# The heads see nothing after the framed character. Move along the text:

# %%
sliders(read, position=(0, T - 4, 5))

# %% [markdown]
# The first head passes on the previous character, which helps to spell a word. The second spreads
# its attention widely. The third puts more attention on ends of lines than any other head on this text, but at many
# positions it looks elsewhere.
#
# **Before you look:** which of the three would you remove first?
#
# ## 4 · A gate on every head
#
# Each head now gets a **gate**, a random switch for all that the head contributes
# ([chapter 02](02_hard_concrete_gate.ipynb)). The probability that the gate is open is learned. Weights and gates are now
# trained together, with a loss of two parts:
#
# $$ \mathtt{loss} = \text{error of the predictions} + \mathtt{lam}\cdot\text{number of open gates} $$
#
# So an open head costs the price `lam`, here 0.1 nats or 0.14 bits for each character (section 6 explains the units). Closing
# its gate pays if the error grows by less than `lam`
# ([chapter 05](05_l0_and_the_difference.ipynb)).

# %%
folder = tempfile.TemporaryDirectory(prefix="tinyprune-tour-")  # gone when the notebook ends


def new_run(name):
    """Return a run that starts from the trained baseline."""
    directory = RunDirectory(f"{folder.name}/{name}")
    run = Run(directory, first_run.config, first_run.ops, "run the cell once more")
    run.adopt(first_run.directory.checkpoint("train"))
    run.prepare(["gate", "prune", "finetune"])
    return run


run = new_run("pruned")
run.gate()
gated = run.load("gate").model

# Each line is the probability that a head is open: all begin near 1, and some fall below the dotted line and close.
figure = plot_gates(read_metrics(run.directory.metrics), run.config.gate)
opened = [int(layer.sum()) for layer in open_parts(gated)]
closed = config.heads_total - sum(opened)
figure.axes[0].set_title(f"{closed} of {config.heads_total} heads close, one after the other")
for layer, ax in enumerate(figure.axes[1:]):
    ax.set_title(f"layer {layer}: {opened[layer]} of {config.H} heads stay open")
show(figure)

# %% [markdown]
# Each line is a head; its height is the probability that the head is open, and the digit at its end is the head's number.
# Dashed lines end below the dotted line, where evaluation counts a head as closed. (That is at 0.69 and not at ½;
# [chapter 02](02_hard_concrete_gate.ipynb) says why.) *Expected* is the sum of the probabilities. All heads start nearly open. The price rises
# over the first 100 steps, and then the lines separate. We did not choose which heads close. *How
# many* close depends on three numbers that we did choose: the price, the number of steps, and how fast gates learn. Many
# lines are still falling at the end.
#
# **Before you look:** what has become of the three heads of section 3?

# %%
is_open = open_parts(gated)  # for each layer (H,)
for (layer, head), what in three_heads.items():
    print(f"{'open' if is_open[layer][head] else 'closed':6}  layer {layer}, head {head}: {what}")

# %% [markdown]
# What a head looks at and what it is worth are two questions.
#
# ## 5 · Cut out what is closed
#
# A closed head adds exactly nothing. So its columns and rows can be removed from every matrix
# ([chapter 07](07_removing_heads.ipynb)). The smaller model computes **the same**:

# %%
run.prune()
small = run.load("prune").model

ids = text.test[:T][None].astype(np.int64)  # (1, T)
log_p_gated = gated.log_probabilities(gated.forward(ids)[0])  # (1, T, V)
log_p_small = small.log_probabilities(small.forward(ids)[0])
print(f"largest difference of any log-probability: {np.abs(log_p_small - log_p_gated).max():.1e}")
np.testing.assert_allclose(log_p_small, log_p_gated, rtol=0, atol=1e-4)  # float32
assert sum(small.config.heads) < config.heads_total

# Each row is a layer: filled cells are heads that stay, hatched cells are heads that have been cut out.
figure = plot_heads(small.config)
most, heads = np.argmin(small.config.heads), sum(small.config.heads)
figure.axes[0].set_title(f"{heads} of {config.heads_total} heads stay; layer {most} loses most")
show(figure)

# %% [markdown]
# ### Exercise 1 · Cut out closed heads
#
# *●○○ · 10 minutes*
#
# Take T characters and H heads. Each head reports Dh numbers for each character, and the reports of all heads stand in one
# row: (T, H·Dh). A layer multiplies each report by the gate of its head, and the result by a matrix `Wo`, (H·Dh, D). Row
# $h\cdot\mathtt{Dh} + e$ of `Wo` belongs to number $e$ of head $h$. Return the smaller matrix: the rows of the open heads. Replace the line `raise …` by
# your code and run the cell.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect, expect_close


def cut(Wo, gate):
    """Return the rows of Wo (H·Dh, D) that belong to open heads; gate (H,) holds 0s and 1s."""
    raise NotImplementedError("write cut: return the rows of Wo whose head has gate 1")


def check_cut(gate, Dh, D):
    """Compare the output of a layer with gates and of the layer without the closed heads."""
    numbers, H, opened = np.random.default_rng(0), len(gate), int(gate.sum())
    reports, Wo = numbers.standard_normal((7, H, Dh)), numbers.standard_normal((H * Dh, D))
    expected = (gate[:, None] * reports).reshape(7, -1) @ Wo
    smaller, shape, fed = cut(Wo, gate), (opened * Dh, D), {"gate": gate, "Wo": Wo}
    title, hint = "the smaller matrix has another shape", "each open head keeps its Dh rows"
    came = np.shape(smaller)
    expect(came == shape, title, fed=fed, came=came, expected=shape, hint=hint)
    found = reports[:, gate == 1].reshape(7, -1) @ smaller
    hint = "the first Dh rows belong to head 0, the next Dh rows to head 1, and so on"
    expect_close(found, expected, "the output of the layer changes", fed=fed, hint=hint)


check_cut(np.array([1.0, 0.0, 0.0, 1.0, 1.0]), Dh=3, D=4)
check_cut(np.array([0.0, 1.0]), Dh=2, D=5)
print("passed: the output is the same. Chapter 07 removes heads from all matrices of a layer.")

# %% [markdown]
# <details><summary>Hint</summary>
#
# `Wo.reshape(H, Dh, D)` has one block for each head.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def cut(Wo, gate):
#     H, D = len(gate), Wo.shape[1]
#     blocks = Wo.reshape(H, -1, D)
#     return blocks[gate == 1].reshape(-1, D)
# ```
#
# </details>

# %% [markdown]
# ## 6 · Heal, and compare
#
# The remaining heads are trained a little more. The pruned model has then been trained for longer than the baseline.
# A fair comparison needs a third model: **all heads, trained as long**.


# %% jupyter={"source_hidden": true}
# Defines how the whole model is trained on.
def trained_on(run, steps):
    """Return the model of a run after so many more steps, with the settings of fine-tuning."""
    before = run.load("train")  # says where to read on
    texts, watch = run.texts_for("train", before), Checkpoints(run, before, resume=False)
    settings = dataclasses.replace(run.config.heal, steps=steps)
    heal(before.model, None, "train", settings, texts, run.generator, watch)
    return before.model


# %%
run.finetune()
final = run.load("finetune").model

longer = new_run("longer")
steps = run.config.gate_train.steps + run.config.heal.steps
whole = trained_on(longer, steps)

# %% [markdown]
# How good is a model? A character that really came, and had probability $p$, *costs*
# $-\log_2 p$ bits. The mean over a text, in *bits per character*, is the number of yes-or-no questions that the model would
# still have to ask to know the next character. (Progress bars show *nats*; a nat is 1.44 bits.) *Perplexity* is the
# same in another unit: the model is as uncertain as in a guess among $2^{\text{bits}}$ equally likely characters.

# %% [markdown]
# ### Exercise 2 · How good is a model?
#
# *●○○ · 5 minutes*
#
# `p` (n,) holds the probabilities of the characters that really came. Return the mean number of bits, and the perplexity.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect_close


def judge(p):
    """Return bits per character and perplexity of a model that gave the truth probabilities p (n,)."""
    raise NotImplementedError("write judge: return the mean of -log2 p, and 2 to that power")


for p, expected in (([1 / 8] * 10, (3.0, 8.0)), ([1, 1 / 16], (2.0, 4.0))):
    hints = "logarithms to base 2, and then their mean", "2 to the power of the mean number of bits"
    for name, came, right, hint in zip(("bits", "perplexity"), judge(np.array(p)), expected, hints):
        expect_close(came, right, f"{name} are wrong", fed={"p": np.array(p)}, hint=hint)
print("passed: 3 bits are a guess among 8. This is the unit of all tables in this course.")

# %% [markdown]
# <details><summary>Hint</summary>
#
# First the logarithm (to base 2) of every entry of `p`, then the mean, with a minus sign.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def judge(p):
#     bits = -np.log2(p).mean()
#     return bits, 2**bits
# ```
#
# </details>
#
# Here are all stages, measured on the held-out text.
#
# **Before you look:** rank the baseline, the fine-tuned model, and the model with all heads trained as long.

# %%
table = summarise(run)
display(Markdown(markdown_table(table)))
whole_bits = evaluate(whole, text.test, text.characters["test"]).bits_per_character
before, gate_row, pruned, after = table
more = [after["bits_per_character"] - bits for bits in (before["bits_per_character"], whole_bits)]
print(f"all heads, trained as long: {whole_bits:.3f} bits per character")
print(
    f"pruned and fine-tuned: {more[0]:.2f} bits more than the baseline, "
    f"{more[1]:.2f} more than all heads, trained as long"
)

removed = pruned["bits_per_character"] - gate_row["bits_per_character"]
assert abs(removed) < 1e-3  # removal changes nothing
assert pruned["parameters"] < before["parameters"]
assert after["bits_per_character"] < pruned["bits_per_character"]  # fine-tuning heals
assert whole_bits < min(before["bits_per_character"], after["bits_per_character"])

# %% jupyter={"source_hidden": true}
# Bits per character rise with pruning and fall with fine-tuning; all heads, trained as long, need fewer. The pruned model is smaller and faster.
trained = first_run.config.train.steps
places = [trained, trained + run.config.gate_train.steps, trained + steps]
figure, axes = plt.subplots(1, 3, figsize=(10, 3), width_ratios=(2.2, 1, 1))
ax = axes[0]
bits = [row["bits_per_character"] for row in (before, gate_row, after)]
back = (bits[1] - bits[2]) / (bits[1] - whole_bits)
ax.plot(places, bits, "o-", color=BLUE)
ax.plot(places[::2], [bits[0], whole_bits], "s--", color=VERMILION)
labels = (
    (places[0], bits[0], "baseline", GREY, "right", -8),
    (
        places[1],
        bits[1],
        f"gates: {gate_row['heads_open']} of {config.heads_total} heads",
        BLUE,
        "center",
        10,
    ),
    (places[2], bits[2], "fine-tuned", BLUE, "left", 8),
    (places[2], whole_bits, "all heads,\ntrained as long", VERMILION, "left", 8),
)
for x, y, name, colour, side, shift in labels:
    offset = (0, shift) if side == "center" else (shift, 0)
    look = {"textcoords": "offset points", "va": "center", "ha": side, "color": colour}
    ax.annotate(
        f"{name} {y:.2f}" if side == "center" else f"{name}\n{y:.2f}", (x, y), offset, **look
    )
ax.set(
    xlabel="steps of training",
    title=f"Bits per character: fine-tuning brings back {back:.0%}\nof the gap to all heads, trained as long",
)
ax.set(
    xlim=(places[0] - 260, places[2] + 330), ylim=(min(bits[0], whole_bits) - 0.1, bits[1] + 0.1)
)
for ax, key, label in (
    (axes[1], "parameters", "{:.0%} fewer parameters"),
    (axes[2], "ms_per_1k_tokens", "{:.0%} less time\n(ms per 1,000 characters)"),
):
    values = [before[key], after[key]]
    ax.bar(["all heads", "pruned"], values, color=[GREY, BLUE], width=0.6)
    for x, value in enumerate(values):
        ax.text(
            x, value, f"{value:,.0f}" if value > 100 else f"{value:.1f}", ha="center", va="bottom"
        )
    ax.set(title=label.format(1 - values[1] / values[0]))
    ax.set(ylim=(0, 1.15 * max(values)), yticks=[])
    ax.spines["left"].set_visible(False)
plt.show()

# %% [markdown]
# The pruned model is smaller and faster than the baseline. But
# it is worse, although it was trained for longer, and worse than the model that kept all heads. Is a model that was
# small from the start as good? Do gates choose heads better than simpler methods? See
# [chapter 08](08_fine_tuning_and_trade_off.ipynb) and [chapter 10](10_does_it_work.ipynb). The pruned model writes:

# %%
print(write(final))

# %% [markdown]
# This is one sample, not a measurement.
#
# ## 7 · Close them yourself
#
# The gates rank all heads by a learned value, `log_alpha` (chapter 02): the larger it is, the later the head closes.
# Now choose the number of open heads yourself. The cell takes the model from
# the end of the gate stage and opens that many gates. It also computes what training
# minimised: bits plus the price.

# %%
price = run.config.gate.lam / np.log(2)  # in bits, for one head
curve, opened = {}, {}  # by the number of open heads
for heads in range(0, config.heads_total + 1, 2):
    params = gated.params | {
        name: x.copy() for name, x in gated.params.items() if name.endswith("log_alpha")
    }
    model = Transformer(config, params, gated.gate, gated.ops)
    settle(model, heads)  # moves log_alpha so that exactly this many are open, the largest
    curve[heads] = evaluate(model, text.test, text.characters["test"]).bits_per_character
    opened[heads] = open_parts(model)  # for each layer (H,)
    assert sum(layer.sum() for layer in opened[heads]) == heads
paid = {heads: bits + price * heads for heads, bits in curve.items()}
cheapest = min(paid, key=paid.get)
assert curve[2] > min(curve.values()) + 0.5  # the last heads are expensive to lose
assert cheapest < gate_row["heads_open"]

# %% jupyter={"source_hidden": true}
# On the left is the map of all heads, open or closed; on the right is the place on the curve of bits, and of bits plus price.


def close_heads(heads):
    """Which heads are open if there are so many, and how good the model is then."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.7), width_ratios=(1, 1.3))
    for layer, h in np.ndindex(config.L, config.H):
        look = KEPT if opened[heads][layer][h] else REMOVED
        left.add_patch(plt.Rectangle((h - 0.44, layer - 0.44), 0.88, 0.88, **look))
    left.set(xlim=(-0.5, config.H - 0.5), ylim=(config.L - 0.5, -0.5), aspect="equal")
    left.set(xticks=range(config.H), yticks=range(config.L), xlabel="head", ylabel="layer")
    left.set_title(f"{heads} of {config.heads_total} heads: {curve[heads]:.2f} bits")
    left.spines[:].set_visible(False)
    left.tick_params(length=0)
    for line, colour, style, name in (
        (curve, BLUE, ".-", "bits"),
        (paid, VERMILION, ".--", "bits + price"),
    ):
        right.plot(line.keys(), line.values(), style, color=colour, linewidth=1.2, label=name)
        right.plot(heads, line[heads], "o", color=colour, markersize=8)
    right.axvline(gate_row["heads_open"], color=GREY, linestyle=":", linewidth=1)
    right.set(xlabel="open heads (dotted: after training)", ylabel="bits per character")
    right.set(yscale="log", title=f"Bits + price are smallest at {cheapest} heads")
    right.legend(frameon=False)
    ticks = [2, 3, 4, 6, 10]
    right.set_yticks(ticks, map(str, ticks))
    right.set_yticks([], minor=True)
    plt.show()


# %% [markdown]
# **Before you look:** what will the curve of bits look like from 32 heads down to none?

# %%
sliders(close_heads, heads=(0, config.heads_total, 2))
print(
    f"bits + price are smallest at {cheapest} heads; training stopped at {gate_row['heads_open']}"
)

# %% [markdown]
# The curve of bits is flat on the right and steep on the left: the first heads to go are cheap, the last heads
# indispensable. The curve with the price has its smallest value far left of the dotted line: closing more heads would have
# saved more in prices than it costs in bits. (This is rough, since the weights are held fixed here.) So why are they open?
# **One reason: training ended after 500 steps, while many gates were still closing.**
# [Chapter 05](05_l0_and_the_difference.ipynb) finds a second. More steps, faster gates or a higher price leave fewer heads:
# [chapter 06](06_training_with_gates.ipynb).
#
# ## The chapters
#
# |chapter|what you do there|
# |---|---|
# |[01 backprop by hand](01_backprop_by_hand.ipynb)|derive layers, measure gradients|
# |[02 the Hard-Concrete gate](02_hard_concrete_gate.ipynb)|give a random switch a gradient|
# |[03 attention by hand](03_attention_by_hand.ipynb)|write a head, forward and backward|
# |[04 positions and memory](04_positions_and_memory.ipynb)|let heads know distances|
# |[05 the L0 loss and the difference](05_l0_and_the_difference.ipynb)|ask what a head is worth|
# |[06 training with gates](06_training_with_gates.ipynb)|hold a number of heads|
# |[07 removing heads](07_removing_heads.ipynb)|compute the same with less|
# |[08 fine-tuning and the trade-off](08_fine_tuning_and_trade_off.ipynb)|run a fair race|
# |[09 a real language model](09_a_real_language_model.ipynb)|prune it with your functions|
# |**research** [10 Does it work? How to test a claim](10_does_it_work.ipynb)|test its claims|
# |**workshop** hot loops: [11 Numba](11_hot_loops_in_numba.ipynb), [11b attention](11b_attention_in_numba.ipynb), [11c GPU](11c_on_a_gpu.ipynb)|write fast kernels|
#
# From chapter 01 on, most functions of yours replace the package's once they pass: your own code trains
# the model.
#
# ## Recap
#
# - Pruning has four stages: train a model, train gates with a price, remove closed heads, fine-tune the rest.
# - Removing a closed head changes no prediction.
# - Price, steps and the gates' learning rate decide how many heads stay.
#
# ## Questions
#
# 1. Why not put a gate on every single *weight* instead?
#
# <details><summary>Answer</summary>
#
# A matrix with zeros sprinkled over it is multiplied as slowly as a full one. A head is a whole block of columns and rows;
# without the block the matrices are smaller.
#
# </details>
#
# 2. In the table, the number of parameters does not change between *train* and *gate*, but multiply-adds do. Why?
#
# <details><summary>Answer</summary>
#
# The gated model still stores its closed heads, but skips them when it computes. Removal deletes them.
#
# </details>
#
# 3. Suppose half of the heads were gone. How large would the model be, and why would it not be twice as fast?
#
# <details><summary>Answer</summary>
#
# 53 % of its parameters stay: half of those of the heads, and all of the others (first table). And a model this small spends
# much of its time on overhead.
#
# </details>

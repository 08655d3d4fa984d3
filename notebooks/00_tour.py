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
# small, independent readers, each of which looks back over the text and reports what it finds. Some matter a great
# deal, others hardly at all. The paper that this project rebuilds, *Layer-wise Pruning of Transformer Attention Heads
# for Efficient Language Modeling* (Shim, Choi, Sung & Choi 2021,
# [arXiv 2110.03252](https://arxiv.org/abs/2110.03252)), lets a model **learn which of its heads it can do without**,
# removes those for good, and trains the rest a little more. Here all of it is NumPy: there is no framework and no
# automatic differentiation. Every gradient was derived by hand, and the later chapters derive them with you. This
# chapter only looks.
#
# **After this chapter you can** say what the four stages are, what they do to a model's size, speed and quality, and which
# chapter to open for the part that you want to understand.
#
# **You need** nothing but curiosity. The text explains technical words where they first occur, and the
# [glossary](README.md#glossary) collects them. The cells train several small models.

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
from tinyprune.pruning.gates import open_heads, settle
from tinyprune.pruning.roles import head_roles
from tinyprune.report import summarise
from tinyprune.runs.directory import RunDirectory
from tinyprune.runs.run import Run
from tinyprune.tables import markdown_table, text_table
from tinyprune.training.evaluation import evaluate
from tinyprune.training.metrics import read_metrics
from tinyprune.training.step import LanguageModelling

use_style()


def show(*figures, dpi=90):
    """Display pictures that the package has drawn, at the size of a page."""
    for figure in figures:
        figure.set_dpi(dpi)
        display(figure)


# %%
you_are_here("train", "gates", "prune", "finetune")

# %% [markdown]
# The map shows the whole model, and below it the four stages; blue is what a chapter is about. A head has persistent vectors,
# as in the paper, or units of its own, as in most of our models.
#
# ## 1 · Why remove heads?
#
# There are three reasons.
#
# - **Memory and time.** A head occupies memory and takes time for every token that the model reads, whether it is useful
#   or not. (A *token* is the unit that a model reads; in most of these chapters it is one character.)
# - **Most heads seem to be replaceable.** Michel, Levy & Neubig (2019, *Are Sixteen Heads Really Better than One?*,
#   [arXiv 1905.10650](https://arxiv.org/abs/1905.10650)) removed heads from trained models without training them
#   further; a large share could go with little loss, and some layers got by with a single head.
# - **One learns what a model does.** Voita et al. (2019, [arXiv 1905.09418](https://arxiv.org/abs/1905.09418)) closed 38 of
#   the 48 heads in the encoder of a translation model and lost only 0.15 BLEU (a score of translations, from 0 to 100).
#   Heads with a job that one can name, such as to read a neighbouring word, were the last to close.
#
# It is a surprising claim that a trained model does not need a good part of itself. This chapter tries it on a small
# model, and [chapter 09](09_a_real_language_model.ipynb) on a pretrained one.
#
# ## 2 · A model and its text
#
# The text is the language reference that comes with Python, so nothing is downloaded. The model reads it character by
# character, in segments of 64, and predicts the next character at every place. The cell trains it for 900 steps, unless an
# earlier run has done so; later chapters reuse the trained model.

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
# each. Both kinds are the subject of [chapter 10b](10b_all_attention.ipynb), and both do what matters here: remove a head,
# and everything it owns goes with it. (A *multiply-add*, one multiplication and one addition, is the usual unit of
# computation.)

# %%
print(text_table([dataclasses.asdict(part) for part in count_parts(config)]))

# %% [markdown]
# How did it learn? A *gradient* says for each of these parameters how the loss changes with it
# ([chapter 01](01_backprop_by_hand.ipynb) and [chapter 03](03_attention_by_hand.ipynb) derive all of them). Each step
# moves every parameter a little in the direction in which the loss falls, by the rule called *AdamW*: it averages the
# gradients of recent steps, divides by their usual size, so that all parameters move at a similar pace, and shrinks the
# weights slightly
# ([`ops/adamw.py`](../tinyprune/ops/adamw.py)).
#
# What has the model learned in 900 steps? Give it the beginning of a sentence and let it continue.


# %%
prompt = "The following statement returns the "


def write(model, characters=320):
    """Let a model continue the prompt."""
    rng = np.random.default_rng(0)
    new = generate(model, text.tokenizer.encode(prompt), characters, rng, temperature=0.7)
    return textwrap.indent(prompt + text.tokenizer.decode(np.array(list(new))), "    ")


print(write(baseline))

# %% [markdown]
# It is no author. But from single characters it has learned words, spaces and the layout of a page.
#
# ## 3 · Three heads read one sentence
#
# At every place in the text, a head gives each of the last 65 characters a *weight*. Its weights add up to 1, and
# what it reports is the weighted mean of what those characters have to say ([chapter 03](03_attention_by_hand.ipynb)).
# So one can look at what a head looks at.

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
# Draws the attention of the three heads: the darker a character, the larger its weight.
passage = 2070
weights = attention_weights(passage)


def read(position):
    """Draw what the three heads look at from the framed character, the last one that they see."""
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
# The framed character is the present one, the last that the heads see. Move along the text, which is held out:

# %%
sliders(read, position=(0, T - 4, 5))

# %% [markdown]
# The first head supplies the character before, without which no word can be spelt. The second spreads its attention
# widely, though not everywhere. The third has found the ends of lines, which are of use to a model that has to
# indent lines and to break them.
#
# **Before you look:** suppose that one of the three had to go. Which would you remove, and which on no account? How
# could one find out, for all 32 heads at once, without trying every combination?
#
# ## 4 · A gate on every head
#
# Each head now gets a **gate**, a random switch that lets its report through or not, and with it the output of its
# hidden units ([chapter 02](02_hard_concrete_gate.ipynb)). The probability that a gate is open is learned. Training
# continues with a loss that has two parts:
#
# $$ \mathtt{loss} = \text{how wrong the guesses are} + \mathtt{lam}\cdot\text{how many gates are open} $$
#
# A head that does not pay for itself by better predictions closes ([chapter 05](05_l0_and_the_difference.ipynb),
# [chapter 06](06_training_with_gates.ipynb)). All that follows is kept in a temporary directory, so that the baseline
# is not changed.

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
show(plot_gates(read_metrics(run.directory.metrics), run.config.gate))

# %% [markdown]
# Each line is a head; its height is the probability that the head is open. Dashed lines end closed; below the dotted
# line evaluation counts a head as closed ([chapter 02](02_hard_concrete_gate.ipynb), section 4, says why it is not at
# ½); the numbers on the right name the heads. All start nearly open. The price `lam` rises over the first 100 steps, and
# then the heads separate: some stay open, some close. Nobody told the model how many to close, or in which layer.
#
# **Before you look:** what do you think has become of the three heads of section 3?

# %%
is_open = open_heads(gated)  # for each layer (H,)
for (layer, head), what in three_heads.items():
    print(f"{'open' if is_open[layer][head] else 'closed':6}  layer {layer}, head {head}: {what}")

# %% [markdown]
# What a head looks at and what it is worth are two questions. Three heads prove nothing; *which kinds of heads close*
# is answered with all of them in [chapter 10](10_does_it_work.ipynb).
#
# ## 5 · Cut out what is closed
#
# A closed head adds exactly nothing. So its columns and rows can be removed from every matrix: the model becomes
# smaller and faster and still computes **the same**. This is meant literally: the cell compares every prediction with
# that of the gated model ([chapter 07](07_removing_heads.ipynb)).

# %%
run.prune()
small = run.load("prune").model

ids = text.test[:T][None].astype(np.int64)  # (1, T)
log_p_gated = gated.log_probabilities(gated.forward(ids)[0])  # (1, T, V)
log_p_small = small.log_probabilities(small.forward(ids)[0])
print(f"largest difference of any log-probability: {np.abs(log_p_small - log_p_gated).max():.1e}")
np.testing.assert_allclose(log_p_small, log_p_gated, rtol=0, atol=1e-4)  # float32
assert sum(small.config.heads) < config.heads_total

show(plot_heads(small.config))

# %% [markdown]
# ## 6 · Heal
#
# The remaining heads are trained a little more, as an ordinary model
# ([chapter 08](08_fine_tuning_and_trade_off.ipynb)). Here is the loss over all stages, in bits. (Progress bars show
# *nats*; one nat is 1.44 bits.) The line goes up and down because each step reads the next piece of the text, and each
# stage reads on where the one before has stopped; some pieces are harder than others, and one pass takes about 400 steps.
# So compare the dots, which are always measured on the same text: a second held-out text, the *validation* text. (The table further
# down is about the *test* text, so its numbers differ.) The loss jumps up when the gates arrive, because
# they flicker: in every step some heads are missing, and hardly ever the same ones.

# %%
run.finetune()
final = run.load("finetune").model
records = read_metrics(first_run.directory.metrics) + read_metrics(run.directory.metrics)
show(plot_losses(records))

# the last of each stage
valid = {r["stage"]: r["loss"] / np.log(2) for r in records if r["split"] == "valid"}
print("validation:", ", ".join(f"{bits:.2f} bits after {stage}" for stage, bits in valid.items()))
assert valid["finetune"] < valid["gate"]

# %% [markdown]
# Fine-tuning heals: on the validation text the loss falls, even if the training loss happens to rise at the end.
#
# The pruned model has now been trained for longer than the baseline. A fair comparison needs a third model: **all heads,
# trained as long**. It starts from the baseline as well and takes as many steps as gating and fine-tuning together.

# %%
longer = new_run("longer")
whole = longer.load("train").model
steps = run.config.gate_train.steps + run.config.finetune.steps
settings = dataclasses.replace(run.config.finetune, steps=steps)
before = longer.load("train")  # says where to read on
longer.fit("train", whole, settings, LanguageModelling(), resume=False, before=before)

# %% [markdown]
# Here is the whole run in one table, measured on held-out text. *Bits per character* are the number of yes-or-no
# questions that the model would still have to ask, on average, to know the next character: the fewer, the better.
# *Perplexity* says the same in another unit: the model is as uncertain as if it had to guess among so many equally
# likely characters, $2^{\text{bits}}$.
#
# **Before you look:** which of the three models will be best, and which will be the worst?

# %%
table = summarise(run)
display(Markdown(markdown_table(table)))
whole_bits = evaluate(whole, text.test, text.characters["test"]).bits_per_character
before, gate_row, pruned, after = table
more = [after["bits_per_character"] - bits for bits in (before["bits_per_character"], whole_bits)]
print(f"all heads, trained as long: {whole_bits:.3f} bits per character")
print(f"pruned and fine-tuned: {more[0]:+.2f} bits beside the baseline, {more[1]:+.2f} beside that")

removed = pruned["bits_per_character"] - gate_row["bits_per_character"]
assert abs(removed) < 1e-3  # removal changes nothing
assert pruned["parameters"] < before["parameters"]
assert after["bits_per_character"] < pruned["bits_per_character"]  # fine-tuning heals
assert whole_bits < min(before["bits_per_character"], after["bits_per_character"])

# %% jupyter={"source_hidden": true}
# Draws size, time and quality of three models: the baseline, the same trained as long, and the pruned one.
assert 0 < more[0] < more[1]
names = ["baseline", "all heads,\ntrained as long", "pruned,\nfine-tuned"]
same, columns = dict(before), {"parameters": "parameters"}
same["bits_per_character"] = whole_bits  # it has the baseline's size and speed
columns |= {
    "ms_per_1k_tokens": "ms per 1,000 characters",
    "bits_per_character": "bits per character",
}
figure, axes = plt.subplots(1, 3, figsize=(10, 2.5))
for ax, (key, label) in zip(axes, columns.items()):
    values = [record[key] for record in (before, same, after)]
    ax.bar(names, values, color=[GREY, VERMILION, BLUE], width=0.55)
    for x, value in enumerate(values):
        number = f"{value:,.0f}" if value > 100 else f"{value:.2f}"
        ax.text(x, value, number, ha="center", va="bottom")
    ax.set(title=label, ylim=(0, 1.15 * max(values)), yticks=[])
    ax.tick_params(axis="x", labelsize=8)
    ax.spines["left"].set_visible(False)
plt.show()

# %% [markdown]
# Read this with some suspicion, as this project always does. The pruned model is smaller and faster than the baseline. But
# although it was trained for longer, it is worse; and it is clearly worse than the model that kept all heads and
# was trained as long (the line below the table says by how much). That is the price of the removed heads. [Chapter
# 08](08_fine_tuning_and_trade_off.ipynb) asks two more questions. Is a model that was small from the start as good? (On
# this text it is better.) And do learned gates choose heads better than simpler methods, *at equal cost*? (On a finished
# model they end behind the best of these; on one that still learns we cannot tell them apart.)
#
# The pruned model continues the prompt of section 2 like this:

# %%
print(write(final))

# %% [markdown]
# This is a single draw, and it may look worse than the numbers suggest, or better. A sample is no measurement.
#
# ## 7 · Close them yourself
#
# The gates rank all heads: the larger the learned parameter of a head's gate (`log_alpha`, chapter 02), the more the
# head is worth. Instead of the number of heads that training arrived at, choose your own. The cell takes the model from
# the end of the gate stage, opens the gates of that many heads, the best ones, closes the others, and reads some
# held-out text.

# %%
held_out = text.test[:6000]
curve, opened = {}, {}  # by the number of open heads
for heads in range(0, config.heads_total + 1, 2):
    params = gated.params | {
        name: x.copy() for name, x in gated.params.items() if name.endswith("log_alpha")
    }
    model = Transformer(config, params, gated.gate, gated.ops)
    settle(model, heads)  # moves log_alpha so that exactly this many are open, the largest
    curve[heads] = evaluate(model, held_out, len(held_out)).bits_per_character
    opened[heads] = open_heads(model)  # for each layer (H,)
    assert sum(layer.sum() for layer in opened[heads]) == heads
assert curve[2] > min(curve.values()) + 0.5  # the last heads are expensive to lose

# %% jupyter={"source_hidden": true}
# Draws a number of open heads: the map of all heads on the left, the place on the curve on the right.


def close_heads(heads):
    """Draw which heads are open if there are so many, and how good the model is then."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.5), width_ratios=(1, 1.3))
    for layer, h in np.ndindex(config.L, config.H):
        look = KEPT if opened[heads][layer][h] else REMOVED
        left.add_patch(plt.Rectangle((h - 0.44, layer - 0.44), 0.88, 0.88, **look))
    left.set(xlim=(-0.5, config.H - 0.5), ylim=(config.L - 0.5, -0.5), aspect="equal")
    left.set(xticks=range(config.H), yticks=range(config.L), xlabel="head", ylabel="layer")
    left.set_title(f"{heads} of {config.heads_total} heads: {curve[heads]:.2f} bits")
    left.spines[:].set_visible(False)
    left.tick_params(length=0)
    right.plot(curve.keys(), curve.values(), color=BLUE, marker=".", linewidth=1.2)
    right.plot(heads, curve[heads], "o", color=VERMILION, markersize=9)
    right.axvline(gate_row["heads_open"], color=GREY, linestyle=":", linewidth=1)
    right.set(xlabel="open heads (dotted: after training)", ylabel="bits per character")
    right.set(yscale="log", title="held-out text, without fine-tuning")
    ticks = [2, 2.5, 3, 4, 6, 10]
    right.set_yticks(ticks, map(str, ticks))
    right.set_yticks([], minor=True)
    plt.show()


# %% [markdown]
# **Before you look:** what will the curve look like from 32 heads down to none: a straight line, or does it bend, and
# where?

# %%
sliders(close_heads, heads=(0, config.heads_total, 2))

# %% [markdown]
# The curve is flat on the right and steep on the left: the first heads to go are cheap, the last ones are indispensable.
# Left of the flat part lies the number that training chose: the last few heads that it closed did help, but by less than
# their price. Here and there the curve is uneven, and more heads can do nothing, or even harm, since nothing has been
# fine-tuned here.
#
# ## 8 · The whole model in one cell
#
# For those who want to see everything at once: this is the model that you have just pruned, from the numbers of the
# characters to the probabilities of the next one, in plain NumPy with 64-bit numbers. Do not expect to understand each
# line now; come back after chapter 10b.

# %% tags=["subject"]
p = {name: x.astype(np.float64) for name, x in baseline.host_params().items()}
D, H, Dh, L, M = config.D, config.H, config.Dh, config.L, config.M
ids = text.test[: 2 * T].astype(np.int64)  # two segments; the first is the second one's memory
g = np.ones((L, H))  # the gates, all open


def layernorm(x, name):
    centred = x - x.mean(-1, keepdims=True)
    std = np.sqrt((centred**2).mean(-1, keepdims=True) + config.norm_eps)
    return centred / std * p[f"{name}.scale"] + p[f"{name}.bias"]


def softmax(s):
    e = np.exp(s - s.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


memory = [np.zeros((0, D))] * L
for segment in ids.reshape(-1, T):
    x = np.sqrt(D) * p["embedding"][segment]  # (T, D)
    for i in range(L):
        at = f"layers.{i}."
        context = np.concatenate([memory[i], x])  # (S, D)
        memory[i], S = context[-M:], len(context)
        n = layernorm(context, at + "ln")
        q, k, v = ((n @ p[at + W]).reshape(S, H, Dh) for W in ("Wq", "Wk", "Wv"))
        r = (p["R"][:S] @ p[at + "Wr"]).reshape(S, H, Dh)  # row = distance
        distance = np.arange(T)[:, None] + S - T - np.arange(S)  # (T, S)
        o = np.empty((T, H, Dh))
        for h in range(H):
            content = (q[-T:, h] + p[at + "u"][h]) @ k[:, h].T
            position = (q[-T:, h] + p[at + "w"][h]) @ r[:, h].T
            s = (content + np.take_along_axis(position, distance, 1)) / np.sqrt(Dh)
            s[(distance < 0) | (distance > M)] = -np.inf  # neither the future nor too far back
            o[:, h] = g[i, h] * softmax(s) @ v[:, h]
        x = x + o.reshape(T, D) @ p[at + "Wo"] + p[at + "bo"]
        n = layernorm(x, at + "net.ln")
        x = x + p[at + "net.bo"]
        for h in range(H):
            units = np.maximum(n @ p[at + "net.pk"][h].T + p[at + "net.pb"][h], 0)  # (T, N)
            x = x + g[i, h] * units @ p[at + "net.pv"][h]
    probabilities = softmax(layernorm(x, "ln") @ p["embedding"].T + p["out_bias"])  # (T, V)

# %% [markdown]
# - `embedding` holds a vector of $D$ numbers for each character ([chapter 01](01_backprop_by_hand.ipynb)). It is used
#   twice: on the way in, and on the way out, where each vector is compared with the result. Such embeddings are called
#   *tied*. Vectors that suit the output are too small for the input, hence the factor $\sqrt D$: they are *scaled*.
# - `layernorm`, `softmax` and every product `@` are the layers of [chapter 01](01_backprop_by_hand.ipynb).
# - `q`, `k`, `v` and the softmax over `s` are attention ([chapter 03](03_attention_by_hand.ipynb)); `memory`, `r`, `u`, `w`
#   and `distance` are its memory and positions ([chapter 04](04_positions_and_memory.ipynb)).
# - `x = x + …` is a *residual connection*: each block adds its result to its input and does not replace it. That is
#   why a closed head, with `g[i, h] = 0`, leaves the rest alone.
# - `units` are the 32 hidden units that a head owns ([chapter 10b](10b_all_attention.ipynb)), `g` its gate
#   ([chapter 02](02_hard_concrete_gate.ipynb)).
#
# Is it the same model? The package computes the same probabilities:

# %%
model = Transformer(config, p)  # NumPy operations, with the parameters in float64
_, memory, _ = model.forward(ids[None, :T])
hidden, _, _ = model.forward(ids[None, T:], memory)  # (1, T, D)
package = np.exp(model.log_probabilities(hidden))[0]
print(f"largest difference of any probability: {np.abs(package - probabilities).max():.0e}")
np.testing.assert_allclose(probabilities, package, rtol=0, atol=1e-12)

# %% [markdown]
# ## The chapters
#
# | | chapter | what you do there |
# | --- | --- | --- |
# | **core: learn to differentiate** | [01 backprop by hand](01_backprop_by_hand.ipynb) | derive three layers, and build a checker that measures every gradient |
# | | [03 attention by hand](03_attention_by_hand.ipynb) | the operation that heads are made of, forward and backward |
# | | [04 relative positions and memory](04_positions_and_memory.ipynb) | let heads know distances, and see the text before the segment |
# | | [10b all-attention](10b_all_attention.ipynb) | the paper's heads with persistent vectors, this model's with hidden units, and what one owns |
# | **core: learn to prune** | [02 the Hard-Concrete gate](02_hard_concrete_gate.ipynb) | a random switch with a gradient |
# | | [05 the L0 loss and the difference](05_l0_and_the_difference.ipynb) | a loss that counts, and what a layer computes with and without a head |
# | | [06 training with gates](06_training_with_gates.ipynb) | train gates, and what keeps that stable |
# | | [07 removing heads](07_removing_heads.ipynb) | a smaller model that computes the same, which you check |
# | | [08 fine-tuning and the trade-off](08_fine_tuning_and_trade_off.ipynb) | heal, and a fair race against conventional pruning |
# | | [10 which heads died?](10_does_it_work.ipynb) | what the removed heads did, and the paper's claims beside our results |
# | **elective** | [11 hot loops in Numba](11_hot_loops_in_numba.ipynb) | from a plain loop to a fast matrix product |
# | | [11b attention in Numba](11b_attention_in_numba.ipynb) | the kernels that trained this model |
# | | [11c on a GPU](11c_on_a_gpu.ipynb) | the same ideas on another machine |
# | | [09 a real language model](09_a_real_language_model.ipynb) | remove heads from a pretrained Llama |
#
# The short way through the core is 00 → 01 → 02 → 03 (section 10) → 04 → 05 → 06 → 07 → 08.
#
# ## Recap
#
# - Pruning has four stages: train a model, train gates on its heads with a price on each open one, remove the closed
#   heads, and fine-tune the rest.
# - Removing a closed head changes no prediction, and everything that the head owns goes with it.
# - The first heads to go are cheap and the last ones indispensable. A fair judge compares with a model that was trained
#   as long.
#
# ## Now you
#
# Replace the line `raise NotImplementedError(…)` by your code and run the cell. It prints nothing if the check passes.

# %% [markdown]
# ### Exercise 1 · Cut out closed heads
#
# Write removal, the third stage, for one matrix. A layer writes the reports of its $H$ heads side by side into an array `o` of shape
# (T, H·Dh), head after head, multiplies each by its gate, and multiplies the result by `Wo`, (H·Dh, D): row
# $h\cdot\mathtt{Dh} + e$ of `Wo` belongs to number $e$ of head $h$. Return the smaller matrix, which holds the rows of the open heads
# only. The check computes the layer's output with gates, and again without the closed heads.

# %% tags=["exercise", "raises-exception"]
import numpy as np


def cut(Wo, gate):
    """Return the rows of Wo (H·Dh, D) that belong to open heads; gate (H,) holds 0s and 1s."""
    raise NotImplementedError("write cut: return the rows of Wo whose head has gate 1")


rng = np.random.default_rng(0)
gate = np.array([1.0, 0.0, 0.0, 1.0, 1.0])  # H = 5
reports, Wo = rng.standard_normal((7, 5, 3)), rng.standard_normal((15, 4))  # T = 7, Dh = 3, D = 4
gated = (gate[:, None] * reports).reshape(7, 15) @ Wo
smaller = cut(Wo, gate)
assert smaller.shape == (9, 4), f"3 heads of 3 rows are open: expected (9, 4), got {smaller.shape}"
difference = np.abs(reports[:, gate == 1].reshape(7, 9) @ smaller - gated).max()
assert difference < 1e-12, f"the output must stay the same, it differs by {difference:.2g}"

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
# ### Exercise 2 · How good is a model?
#
# Write the measure by which the whole project judges. At every place of a text the model gave the character that really
# came a probability; `p` holds these, (n,). A character of probability $p$ costs $-\log_2 p$ bits. Return the mean
# number of bits, and the perplexity.

# %% tags=["exercise", "raises-exception"]
import numpy as np


def judge(p):
    """Return bits per character and perplexity of a model that gave the truth probabilities p (n,)."""
    raise NotImplementedError("write judge: return the mean of -log2 p, and 2 to that power")


bits, perplexity = judge(np.full(10, 1 / 8))
assert np.isclose(bits, 3), f"probabilities of 1/8 cost 3 bits each, got {bits}"
assert np.isclose(perplexity, 8), f"1/8 is a guess among 8, got {perplexity}"
bits, perplexity = judge(np.array([1, 1 / 16]))
assert np.isclose(bits, 2), f"costs of 0 and 4 bits are 2 on average, got {bits}"
assert np.isclose(perplexity, 4), f"2 bits are a guess among 4, got {perplexity}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# Take the logarithm (to base 2) of every entry of `p` first, then the mean, with a minus sign; the perplexity is 2 to
# that power.
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
# The [assignments](assignments/README.md) go further: six of them rebuild the method from a linear layer to a pruned
# model. Start with A1 after chapter 01.

# %% [markdown]
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
#
# Embedding, positions, normalisations and output biases (`bo`) belong to no head and stay: they are the lines of the
# first table that are not called *heads*. And in a model this small, much of the time is spent between operations and
# not in them.
#
# </details>
#
# **Next:** [01 backprop by hand](01_backprop_by_hand.ipynb). The four stages are methods of `Run` in
# [`runs/run.py`](../tinyprune/runs/run.py); on the command line the whole tour is `tinyprune run`.

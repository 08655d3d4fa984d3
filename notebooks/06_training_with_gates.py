# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Training with gates
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/06_training_with_gates.ipynb)
# &nbsp; ← [05 the L0 loss and the difference](05_l0_and_the_difference.ipynb) · [all chapters](README.md) · [07 removing heads](07_removing_heads.ipynb) →
#
# **After this chapter you can** train a language model together with its gates, write a step of Adam, say why a price leaves
# about 20 heads after 500 steps and 10 after 2,000, say what each of three stabilisers protects, and hold a number of heads
# with a controller.
#
# **You need** the gate of [chapter 02](02_hard_concrete_gate.ipynb), and L0 and the difference that a head makes from
# [chapter 05](05_l0_and_the_difference.ipynb). The chapter trains models.

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
# Imports, the trained baseline, and gate_stage, which does what the command `tinyprune gate` does
# %matplotlib inline
import tempfile
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

from tinyprune import ops
from tinyprune.data import Segments
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer
from tinyprune.notebook import baseline_run, show_source, sliders, use_style, you_are_here, yours
from tinyprune.ops.adamw import AdamConstants, adam_direction
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION
from tinyprune.method.gates import Controller, GateObjective, add_gates, open_parts
from tinyprune.runs.directory import RunDirectory
from tinyprune.runs.run import Run
from tinyprune.training.evaluation import evaluate
from tinyprune.training.metrics import read_metrics
from tinyprune.training.schedules import linear_warmup

use_style()
run = baseline_run()
baseline, text = run.load("train").model, run.text
config = baseline.config
L, H, T = config.L, config.H, config.T
B = run.config.gate_train.B
folder = tempfile.TemporaryDirectory(prefix="tinyprune-gates-")  # gone when the notebook ends


def gate_stage(name, options, engine=run.ops):
    """Train the baseline with gates; return the model, its steps (n,), and the records of these steps."""
    directory = RunDirectory(f"{folder.name}/{name}")
    options = {"gate_train.evaluate_every": 0} | options
    stage = Run(directory, run.config.with_options(options), engine, "run the cell once more")
    stage.adopt(run.directory.checkpoint("train"))
    stage.prepare(["gate"])
    stage.gate()
    records = [r for r in read_metrics(directory.metrics) if r["split"] == "train"]
    return stage.load("gate").model, np.array([r["step"] for r in records]), records


def with_gates(gate):
    """Return the baseline with gates on all heads; its weights are copies."""
    params = {name: value.copy() for name, value in baseline.params.items()}
    return Transformer(config, add_gates(params, config, gate), gate, run.ops)


# %%
you_are_here("gate", "gates")

# %% [markdown]
# ## 1 · Two forces on every gate
#
# The model is trained. Now every head gets a gate, and weights and gates are trained together on
#
# $$ \mathtt{loss} = \text{cross-entropy} + \mathtt{lam}\cdot \mathtt{L0} \qquad\qquad
# \mathtt{L0} = \sum_{\text{layers}}\sum_h P(g_h > 0) $$
#
# By the chain rule the gradient of a gate's $\mathtt{log\_alpha}_h$ is
#
# $$ \frac{\partial\,\mathtt{loss}}{\partial\,\mathtt{log\_alpha}_h} =
# \underbrace{\Big(\sum \mathtt{dout}\cdot\Delta_h\Big)\cdot
# \frac{\partial g_h}{\partial\,\mathtt{log\_alpha}_h}}_{\text{the task}}
# \;+\; \underbrace{\mathtt{lam}\cdot p_h(1-p_h)}_{\text{the price}} \tag{1} $$
#
# with $p_h = P(g_h>0)$. The brackets hold the gate's gradient of chapter 05: $\Delta_h$ is the difference that head $h$
# makes, and the sum runs over both blocks. The second term is always positive, so descent lowers `log_alpha`: the price
# closes gates. For a head that lowers the loss the first term is negative: the task holds this gate open. The cell
# checks (1) on real text; `lam` rises over the first 50 steps (section 4).

# %%
gate = replace(run.config.gate, lam=0.1, lam_warmup=50)
shape = {"beta": gate.beta, "gamma": gate.gamma, "zeta": gate.zeta}
model, objective = with_gates(gate), GateObjective(gate, gate.lam_warmup, sum(config.heads))
parts = Parts(config)
ids, targets, _ = Segments(text.train, B, T).batch(0)  # (B, T)
_, _, cache = model.loss(ids, targets, None, np.random.default_rng(7))
task = parts.log_alpha(model.backward(1.0, cache), model.ops)  # (L·H,)
p = ops.p_open(parts.log_alpha(model.params, model.ops), **shape)  # (L·H,)
for step, share in ((0, 0.0), (25, 0.5), (50, 1.0), (400, 1.0)):
    _, _, grads = objective(model, ids, targets, None, np.random.default_rng(7), step)
    both = parts.log_alpha(grads, model.ops)  # (L·H,)
    np.testing.assert_allclose(both, task + share * gate.lam * p * (1 - p), rtol=0, atol=1e-7)
print(f"at log_alpha = 2 the price is {gate.lam * p[0] * (1 - p[0]):.4f}")
print(f"and the task, mostly noise in a single step, {task.min():.4f} to {task.max():.4f}")
tasks = []  # of 50 batches with 50 draws of all gates
for k in range(50):
    ids_k, targets_k, _ = Segments(text.train, B, T).batch(k)
    _, _, cache = model.loss(ids_k, targets_k, None, np.random.default_rng(k))
    tasks.append(parts.log_alpha(model.backward(1.0, cache), model.ops))
mean = np.mean(tasks, 0)
print(
    f"mean of 50 batches: {mean.min():.4f} to {mean.max():.4f}; it holds {(mean < 0).sum()} gates open"
)

# %% [markdown]
# ## 2 · Adam: steps of about one length
#
# These gradients are tiny. With a learning rate of 0.01, plain gradient descent under the price alone would need about
# 20,000 steps to move a gate from 2 to 0. The optimizer of this course is **Adam**
# ([Kingma & Ba 2015](https://arxiv.org/abs/1412.6980)). For each parameter $\theta$ with gradient $g$ (here not a gate)
# Adam keeps two running means, of the gradient and of its square:
#
# $$ m \leftarrow \beta_1 m + (1-\beta_1)\,g \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,g^2 \tag{2} $$
#
# Both start at 0. After $t$ steps with the same $g$ the first is $m = (1-\beta_1^t)\,g$, too small. So divide:
#
# $$ \hat m = \frac{m}{1-\beta_1^t} \qquad \hat v = \frac{v}{1-\beta_2^t} \qquad
# \theta \leftarrow \theta - \mathtt{lr}\,\frac{\hat m}{\sqrt{\hat v}+\mathtt{eps}} \tag{3} $$
#
# $\hat m$ is the direction; the noise of single batches averages out in it. $\sqrt{\hat v}$ is the usual size of $g$. If $g$
# always has the same sign, the quotient is about ±1 *however small $g$ is*, and each step has about the length `lr` (more
# while $g$ grows, less while $g$ shrinks). If $g$ is mostly noise, the quotient is near 0. (The package uses *AdamW*, which
# also shrinks weights, but no gates, a little in every step.)

# %% [markdown]
# ### Exercise 1 · A step of Adam
#
# *●●○ · 10 minutes*
#
# Write (2) and (3) with $\beta_1 = 0.9$, $\beta_2 = 0.999$, $\mathtt{eps} = 10^{-8}$. Arrays are (n,), and `t` is the number
# of the step, from 1.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect_close
from tinyprune.ops.adamw import AdamConstants, adam_direction


def adam_step(theta, g, m, v, t, lr):
    """Return the new theta, m and v, (n,) each."""
    raise NotImplementedError("write adam_step: return the new theta, m and v")


slopes = np.random.default_rng(0).normal(size=(5, 3)) * [1.0, 1e-4, 1e4]
theirs, m1, v1 = np.zeros(3), np.zeros(3), np.zeros(3)
yourself, m2, v2 = np.zeros(3), np.zeros(3), np.zeros(3)
for t, g in enumerate(slopes, 1):
    theirs -= 0.01 * adam_direction(g, m1, v1, AdamConstants(0.9, 0.999, 1e-8, t))
    found = adam_step(yourself.copy(), g.copy(), m2.copy(), v2.copy(), t, 0.01)
    given, hint = {"theta": yourself, "g": g, "m": m2, "v": v2, "t": t}, "see (2), then (3)"
    for name, got, expected in zip(("theta", "m", "v"), found, (theirs, m1, v1), strict=True):
        expect_close(got, expected, f"{name} is wrong", fed=given, hint=hint, absolute=1e-14)
    yourself, m2, v2 = found
print("passed: five steps as the package's, for slopes of 0.0001, 1 and 10,000")

# %% [markdown]
# <details><summary>Hint</summary>
#
# First the new `m` and `v`. The step uses the new ones, divided by `1 - beta**t`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def adam_step(theta, g, m, v, t, lr):
#     beta1, beta2, eps = 0.9, 0.999, 1e-8
#     m = beta1 * m + (1 - beta1) * g
#     v = beta2 * v + (1 - beta2) * g**2
#     m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
#     return theta - lr * m_hat / (np.sqrt(v_hat) + eps), m, v
# ```
#
# </details>
#
# Gates learn at a rate of 0.01, ten times the rate of the weights. Here is a gate on which only the price acts.
#
# **Before you look:** after how many steps does Adam reach 0, where the head closes?

# %% jupyter={"source_hidden": true}
# Adam takes a gate that only the price moves straight down to 0; plain descent leaves it near 2.
paths = {"plain descent": [2.0], "Adam": [2.0]}
m, v = np.zeros(1), np.zeros(1)
for t in range(1, 501):
    slopes = {
        name: gate.lam * q * (1 - q)
        for name, path in paths.items()
        for q in ops.p_open(np.array(path[-1:]), **shape)
    }
    paths["plain descent"].append(paths["plain descent"][-1] - 0.01 * slopes["plain descent"])
    direction = adam_direction(np.array([slopes["Adam"]]), m, v, AdamConstants(0.9, 0.999, 1e-8, t))
    paths["Adam"].append(paths["Adam"][-1] - 0.01 * float(direction[0]))
figure, ax = plt.subplots(figsize=(7, 2.6))
for (name, path), colour, style in zip(paths.items(), (GREY, BLUE), ("--", "-")):
    ax.plot(path, style, color=colour, label=name)
closed = next(t for t, value in enumerate(paths["Adam"]) if value <= 0)
ax.plot(closed, 0, "o", color=BLUE)
ax.annotate(f"closed after {closed} steps", (closed, 0), (8, 6), textcoords="offset points")
ax.axhline(0, color=GREY, linestyle=":", linewidth=1)
ax.set(xlabel="step", ylabel="log_alpha", title="Adam walks; plain descent stands still")
ax.legend(frameon=False)
plt.show()
assert 100 < closed < 200 and paths["plain descent"][-1] > 1.9

# %% [markdown]
# ## 3 · How many heads stay?
#
# A head that nothing holds needs some 160 steps to close, whatever the price is. A head that the task holds needs longer.
# Train gates on the real model for 2,000 steps, at the tour's price `lam` = 0.1 and the tour's rate. Then change one thing
# at a time: let the gates learn four times as fast, then also halve the price.
#
# **Before you look:** the tour stopped at 500 steps. What will the number of heads do afterwards?

# %%
STEPS, RATE = 2000, 10.0
long = {"gate_train.steps": STEPS, "gate.lr_multiplier": RATE, "gate.lam_warmup": STEPS // 20}
fast = long | {"gate_train.steps": STEPS // 5, "gate.lr_multiplier": 4 * RATE}
stages = {"lam 0.1, the tour's rate": gate_stage("long", long)}

# %%
stages["lam 0.1, gates 4 times as fast"] = gate_stage("fast", fast)
stages["lam 0.05, gates 4 times as fast"] = gate_stage("cheap", fast | {"gate.lam": 0.05})

# %% jupyter={"source_hidden": true}
# The number of open heads falls in all three settings, and still falls long after step 500.
figure, ax = plt.subplots(figsize=(7.5, 3.4))
looks = ((BLUE, "-"), (VERMILION, "--"), (HEAD_COLOURS[2], "-."))
ends = {}
for (name, (_, steps, records)), (colour, style) in zip(stages.items(), looks):
    heads = np.array([r["heads_open"] for r in records])
    ax.plot(steps, heads, style, color=colour, label=name)
    marks = [STEPS // 4, STEPS // 2, STEPS] if steps[-1] == STEPS else [int(steps[-1])]
    ends[name] = [int(heads[steps.searchsorted(mark)]) for mark in marks]
    ax.plot(marks, ends[name], "o", color=colour)
    for x, y in zip(marks, ends[name]):
        ax.annotate(str(y), (x, y), (0, 6), textcoords="offset points", color=colour, ha="left")
    print(f"{name}: {ends[name]} heads after {marks} steps")
ax.set(xlabel="step of the gate stage", ylabel="open heads", ylim=(0, 33), xlim=(0, 1.03 * STEPS))
ax.set_title("How many heads stay depends on when the stage stops")
ax.legend(frameon=False)
plt.show()
at, (of_fast,), (of_cheap,) = ends.values()
assert at[0] > at[-1] and of_fast < at[0] and of_fast < of_cheap

# %% [markdown]
# At 500 steps about 20 heads are open, as in the tour. Further training closes more than half of these, more and more
# slowly, and passes the number at which the tour's bits plus price were smallest, 12. Gates that are four times as fast need
# less than half of the steps for the same number. Half the price leaves more heads. So **price, steps and rate together**
# decide how many heads stay. To compare two ways of training gates, compare them at the same number of heads.

# %% [markdown]
# ## 4 · Three stabilisers
#
# The paper protects the trained model in three ways while gates move.
#
# **Start nearly open.** A forward pass with hard gates uses a head with probability
# $\operatorname{sigmoid}(\mathtt{log\_alpha})$ (chapter 02). From 0, which looks neutral, a coin is tossed for every head,
# and half of the trained model is gone in the first step. From 2, as in the paper, 12 % of the heads are missing.
#
# **Output scaling.** A block adds the sum of what its heads contribute. When heads close, the sum loses terms, and later
# layers get less than they were trained on. Dropout sets random numbers to 0 and divides by the share that stays; do the
# same with $n$ open heads of $H$. Of all subsets of $n$ heads, a share $n/H$ contains a given head, so
#
# $$ y = x + c\sum_h g_h\,\Delta_h + b_o, \quad c = \frac Hn: \qquad
# \operatorname{mean}_{|S|=n}\; c\sum_{h\in S} \Delta_h = \sum_h \Delta_h. $$
#
# The average is right, not the length of a single sum.
#
# $n$ is taken as at least 1, so that an empty layer does not divide by 0. In the backward pass $c$ is a constant. Let
# $d_h=\sum\mathtt{dout}\cdot\Delta_h$. Then the gradient of $g_h$ is $c\,d_h$. If gradients also went through
# $c = H/\sum_k g_k$, it would be $c\,(d_h - \frac1n\sum_k g_k d_k)$. Over the open heads of a layer these gradients add up to
# zero: the loss could move gates within a layer, but never defend the layer as a whole, and the price would empty it.

# %% [markdown]
# ### Exercise 2 · A scale without a gradient
#
# *●●○ · 15 minutes*
#
# Write $\mathtt{out} = c\sum_h g_h\,\Delta_h$. The $\Delta_h$ are the rows of `added` (H, D); `n`, the number of open heads,
# may be 0. Then write the backward pass, for closed heads, too. You choose what the cache holds.

# %% tags=["exercise", "raises-exception"]
import itertools

import numpy as np

from tinyprune import assert_gradients
from tinyprune.course.expectations import expect_close


def scaled_sum_forward(gate, added, n):
    """Return out (D,), the scaled sum over heads, and a cache; gate (H,), added (H, D), n open heads."""
    raise NotImplementedError("write scaled_sum_forward: return out and a cache")


def scaled_sum_backward(dout, cache):
    """Return dgate (H,) and dadded (H, D); dout is (D,)."""
    raise NotImplementedError("write scaled_sum_backward: return dgate and dadded")


contributions = np.random.default_rng(0).standard_normal((4, 3))
pairs = [np.isin(range(4), pair).astype(float) for pair in itertools.combinations(range(4), 2)]
average = np.mean([scaled_sum_forward(pair, contributions, 2)[0] for pair in pairs], 0)
title, hint = "the mean over all pairs of heads must be the whole sum", "c = H / n"
expect_close(average, contributions.sum(0), title, fed="H = 4, n = 2", hint=hint)
none = scaled_sum_forward(np.zeros(4), contributions, 0)[0]
expect_close(none, np.zeros(3), "no head is open", fed="n = 0", hint="n is at least 1")
inputs = np.array([1.0, 0.0, 0.4, 1.0]), contributions, 3
names = ["gate", "added", "n"]
assert_gradients(scaled_sum_forward, scaled_sum_backward, *inputs, argument_names=names)
print("passed: right on average, and both gradients agree with complex steps")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Every contribution is multiplied by $c\,g_h$, so the gradient of $g_h$ is $c$ times the inner product of `dout` with
# $\Delta_h$, also where the gate is 0.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def scaled_sum_forward(gate, added, n):
#     c = len(gate) / max(n, 1)
#     return c * (gate @ added), (gate, added, c)
#
#
# def scaled_sum_backward(dout, cache):
#     gate, added, c = cache
#     return c * (added @ dout), c * np.outer(gate, dout)
# ```
#
# </details>
#
# **`lam` warms up.** In a single step the task's force is mostly noise of the batch and of the gates. Which heads are worth
# their price, only its mean over many steps tells, and a full price would not wait for it. So `lam` rises linearly from 0.

# %%
show_source(linear_warmup, docstring=False)

# %% [markdown]
# The next picture shows the first two before any training: on the left the loss of the first step, for several starts of
# every `log_alpha`, on the right the loss with heads closed at random.

# %%
starts, counts = [-1.0, 0.0, 1.0, 2.0, 3.0, 5.0], [32, 28, 24, 20, 16, 12, 8, 4]


def bits_with(log_alpha, scaled, draw=None):
    """Return the loss in bits with log_alpha (L·H,); gates drawn from seed `draw`, or without noise."""
    probe = with_gates(replace(gate, output_scaling=scaled))
    for i, values in enumerate(log_alpha.reshape(L, H)):
        probe.params[f"layers.{i}.log_alpha"][:] = values
    noise = None if draw is None else np.random.default_rng(draw)
    return float(probe.loss(ids, targets, None, noise)[0]) / np.log(2)


first, closing = {}, {}  # (6 starts, 8 draws) and (8 counts, 8 draws)
orders = [np.random.default_rng(draw).permutation(L * H) for draw in range(8)]
for scaled in (True, False):
    first[scaled] = [[bits_with(np.full(L * H, s), scaled, d) for d in range(8)] for s in starts]
    closing[scaled] = [
        [bits_with(np.where(order < count, 20.0, -20.0), scaled) for order in orders]
        for count in counts
    ]
assert np.mean(first[True][1]) > 1.5 * np.mean(first[True][3])  # a start at 0, at 2
assert np.mean(closing[True][-1]) < np.mean(closing[False][-1])

# %% jupyter={"source_hidden": true}
# The loss of the untrained gated model is high for starts at 0 or below, and lower with output scaling if few heads are open.
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3), sharey=True)
for scaled, colour, style in ((True, BLUE, "o-"), (False, VERMILION, "s--")):
    name = "with output scaling" if scaled else "without"
    for ax, x, bits in ((axes[0], starts, first[scaled]), (axes[1], counts, closing[scaled])):
        look = {"fmt": style, "color": colour, "capsize": 2, "markersize": 4, "label": name}
        ax.errorbar(x, np.mean(bits, 1), np.std(bits, 1), **look)
whole = float(baseline.loss(ids, targets)[0]) / np.log(2)
for ax in axes:
    ax.axhline(whole, color=GREY, linestyle=":", linewidth=1)
axes[0].set(xlabel="start of every log_alpha", ylabel="bits per character")
axes[0].set_title("First step: half the heads are missing at 0")
axes[1].set(xlabel="open heads, chosen at random", xlim=(33.5, 2.5))
axes[1].set_title("Closed heads: scaling helps when few are left")
axes[1].legend(frameon=False)
plt.show()

# %% [markdown]
# (Dotted: the model without gates. Bars: standard deviation over 8 draws.) All three stabilisers also change *how many*
# heads stay. [The studies](../data/results/README.md) compare them at the same number of heads: with a fixed `lam` only the
# start helps; with the controller of the next section no help was found.
#
# ## 5 · A controller holds a number
#
# A fixed `lam` does not let you choose the number of heads. Let $n$ be the number of open heads and $n^\ast$ the target.
# In place of `lam · L0` add to the loss
#
# $$ \mathtt{lam1}\cdot(n-n^\ast) + \mathtt{lam2}\cdot\frac{(n-n^\ast)^2}{\mathtt{heads}} \tag{4} $$
#
# where `heads` counts all heads. Weights and gates *descend* the loss. The multipliers `lam1` and `lam2` *ascend* it: as
# long as too many heads are open, the multipliers grow, until heads close (Platt & Barr 1988). With
# $d = (n-n^\ast)/\mathtt{heads}$ the slope of (4) over $n$ is the pressure that replaces `lam`. A negative pressure opens
# gates. The multipliers move by `lr` times their own slope, divided by the number of heads:
#
# $$ \mathtt{pressure} = \mathtt{lam1} + 2\,\mathtt{lam2}\,d \qquad \mathtt{lam1} \leftarrow \mathtt{lam1} + \mathtt{lr}\,d
# \qquad \mathtt{lam2} \leftarrow \mathtt{lam2} + \mathtt{lr}\,d^2 \tag{5} $$

# %% [markdown]
# ### Exercise 3 · The controller
#
# *●○○ · 10 minutes*
#
# Write (5). Compute the pressure before the multipliers change.

# %% tags=["exercise", "raises-exception"]
from tinyprune.notebook import yours
from tinyprune.method import gates as package


def controller_step(n, target, heads, lam1, lam2, lr):
    """Return the pressure, the new lam1 and the new lam2, for n open heads of `heads`."""
    raise NotImplementedError("write controller_step: return the pressure, lam1 and lam2")


yours.check(
    controller_step,
    package.controller_step,
    (28.2, 16.0, 32, 0.1, 0.5, 0.02),
    (9.5, 16.0, 32, -0.2, 0.7, 0.1),
    hint={
        "": "d is a share of all heads, positive where too many are open",
        "pressure": "the slope of (4), with the multipliers as they come in",
        "lam2": "it adds lr d², so that it grows in both directions",
    },
    results=("pressure", "lam1", "lam2"),
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# `d` is positive while too many heads are open. `lam1` then grows; `lam2` grows in any case.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def controller_step(n, target, heads, lam1, lam2, lr):
#     distance = (n - target) / heads
#     return lam1 + 2 * lam2 * distance, lam1 + lr * distance, lam2 + lr * distance**2
# ```
#
# </details>
#
# Gates answer late: Adam needs many steps from 2 to 0, and the pressure goes on growing until then. Try the controller on
# 32 invented heads of different worth. The target falls to 16 over `warmup` steps.
#
# **Before you look:** what happens without a warm-up? And if the multipliers grow fast?


# %% jupyter={"source_hidden": true}
# A controller steers 32 invented heads to 16: open heads on the left, pressure on the right.
def draw_controller(warmup, controller_lr):
    """Draw how open heads follow the target, and the pressure that this takes."""
    worth = np.random.default_rng(3).lognormal(-3.5, 1, 32)  # nats
    controller = Controller(16, 32, controller_lr)
    log_alpha, m, v = np.full(32, 2.0), np.zeros(32), np.zeros(32)
    heads, aims, pressures, start = [], [], [], ops.sigmoid(log_alpha).sum()
    for step in range(150):
        used = ops.sigmoid(log_alpha)
        aims.append(start + linear_warmup(step, warmup) * (16 - start))
        pressures.append(controller.pressure(used.sum(), aims[-1]))
        gradient = (pressures[-1] - worth) * used * (1 - used)
        constants = AdamConstants(0.9, 0.999, 1e-8, step + 1)
        log_alpha = log_alpha - 0.08 * adam_direction(gradient, m, v, constants)
        heads.append((log_alpha > 0).sum())
    figure, axes = plt.subplots(1, 2, figsize=(6.5, 2.3))
    axes[0].plot(heads, color=BLUE)
    axes[0].plot(aims, color=GREY, linestyle="--", linewidth=1)
    axes[0].set(ylabel="heads (target dashed)", xlabel="step", ylim=(-1, 33))
    axes[0].set_title(f"{heads[-1]} heads at the end, {min(heads)} at the least")
    axes[1].plot(pressures, color=VERMILION)
    axes[1].axhline(0, color=GREY, linewidth=0.8)
    axes[1].set(ylabel="pressure", xlabel="step", ylim=(-0.6, 0.75))
    axes[1].set_title(f"pressure from {min(pressures):.2f} to {max(pressures):.2f}")
    plt.show()


sliders(draw_controller, warmup=[0, 50, 100], controller_lr=[0.005, 0.02, 0.1])

# %% [markdown]
# Without a warm-up nearly all heads close before the pressure falls again. With fast multipliers the number swings. A
# slow controller with a warm-up comes close to 16. Now hold 16 heads in the real model, with your functions:

# %%
# gates learn eight times as fast as in section 3, so that 120 steps suffice
hold = {"choose.target_heads": 16, "gate.controller_lr": 0.02, "gate.lr_multiplier": 80.0}
with yours.engine(run.ops.name) as your_ops:
    held, steps, records = gate_stage("held", hold | {"gate_train.steps": 120}, your_ops)
by_layer = [int(opened.sum()) for opened in open_parts(held)]
bits = evaluate(held, text.test, text.characters["test"]).bits_per_character
print(f"open heads by layer {by_layer}; {bits:.2f} bits per character before fine-tuning")
assert sum(by_layer) == 16

# %% jupyter={"source_hidden": true}
# The open heads of the real model follow the target to 16; the pressure rises first, then falls.
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6))
axes[0].plot(steps, [r["heads_open"] for r in records], color=BLUE, label="open heads")
start = L * H * float(ops.sigmoid(np.array([2.0]))[0])
target = [start, 16, 16]
axes[0].plot(
    [0, steps[-1] // 2, steps[-1]],
    target,
    "--",
    color=GREY,
    linewidth=1,
    label="target of the mean",
)
axes[0].set(xlabel="step", ylabel="heads", ylim=(0, 33), title="Open heads reach the target, 16")
axes[0].legend(frameon=False)
axes[1].plot(steps, [r["lam"] for r in records], color=VERMILION)
axes[1].axhline(0, color=GREY, linewidth=0.8)
axes[1].set(xlabel="step", ylabel="pressure", title="The pressure finds the price by itself")
plt.show()

# %% [markdown]
# Three details. $n$ is $\sum\operatorname{sigmoid}(\mathtt{log\_alpha})$, how many heads are *used* on average: a count would
# have no gradient. The target takes half of the stage to fall. And when the stage ends, the heads with the 16 largest
# `log_alpha` stay; a gate on the wrong side of 0 is moved just across it.
#
# **For a model of your own** choose the number of heads, not `lam`. A gate needs about 2 / rate steps to close; give the
# stage many times as many. While the curve of open heads is falling, its end says when you stopped, and not what the heads
# are worth.
#
# ## Recap
#
# - Each `log_alpha` feels the task and the price. Adam turns both into steps of about one length.
# - Price, steps and rate decide how many heads stay; a controller holds the number that you choose.
# - Start nearly open, keep a block's output right on average ($c=H/n$, without a gradient), and let the price rise slowly.
#
# The whole stage is `choose` on [the method's page](../tinyprune/method/prune.py). The assignment
# [A4](assignments/README.md) goes with this chapter.
#
# ## Questions
#
# 1. At `log_alpha` = 2, P(open) is 0.943, but a hard gate uses its head with probability 0.881 only. Where are the
# other 6 %?
#
# <details><summary>Answer</summary>
#
# There $0 < \bar s < \tfrac12$: the soft gate is above zero, and L0 counts it as open, but the hard gate rounds it down
# to zero. The gradient still flows, so such a head learns without being used.
#
# </details>
#
# 2. A layer has lost all heads but one. What is $c$, and what happens to $c$ when the last head closes?
#
# <details><summary>Answer</summary>
#
# $c = 8$, and it stays 8, because $n$ is taken as at least 1. It then multiplies an empty sum: the layer adds only
# $b_o$.
#
# </details>
#
# 3. "Without the start at 2 the loss after pruning is 0.6 bits higher." What do you ask first?
#
# <details><summary>Answer</summary>
#
# How many heads each of the two models has kept. Then, how large the difference is between two seeds of the same variant.
#
# </details>
#
# **Next:** [07 removing heads](07_removing_heads.ipynb): the closed heads are still in the model.

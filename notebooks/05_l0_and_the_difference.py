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
# # 05 · The L0 loss, and the difference that a head makes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/05_l0_and_the_difference.ipynb)
# &nbsp; ← [02 the Hard-Concrete gate](02_hard_concrete_gate.ipynb) · [all chapters](README.md) · [06 training with gates](06_training_with_gates.ipynb) →
#
# **After this chapter you can** say what closes a gate and what holds it open, in the same unit; prove that a gate's
# gradient is exactly the output with its head minus the output without it, weighted by the loss's gradient and summed;
# and explain why that exact number is still a bad estimate of the cost of removing the head.
#
# **You need** chapters [03](03_attention_by_hand.ipynb) and [02](02_hard_concrete_gate.ipynb), and, if you skipped
# chapter 10b, [its section 10](10b_all_attention.ipynb#10--heads-that-keep-the-promise). If no earlier chapter has
# trained the baseline, this one does. Unfamiliar words are in the [glossary](README.md#glossary).

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
# Imports, and the constants of the paper's gates
# %matplotlib inline
import dataclasses

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from tinyprune import GateConfig, Transformer, add_gates, assert_gradients, get_backend, ops
from tinyprune.data import Segments
from tinyprune.experiments.results import read_csv
from tinyprune.model.blocks import (
    Layer,
    attention_block_backward,
    attention_block_forward,
    norm_backward,
    second_block_backward,
    second_block_forward,
)
from tinyprune.model.gates import output_scaling
from tinyprune.model.parameters import layer_parameters
from tinyprune.model.vocabulary import predict_backward
from tinyprune.notebook import (
    baseline_run,
    results,
    show_lines,
    show_source,
    sliders,
    use_style,
    you_are_here,
)
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION
from tinyprune.pruning.gates import GateObjective, gated_outputs
from tinyprune.pruning.importance import leave_one_out, output_difference, with_heads
from tinyprune.training.evaluation import read_segments
from tinyprune.tables import text_table

use_style()
rng = np.random.default_rng(0)
PAPER = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}

# %%
you_are_here("gate", "gates")

# %% [markdown]
# [Chapter 02](02_hard_concrete_gate.ipynb) gave each head a switch. What pushes it shut, and how does it know what its head
# is worth? In a trained model the loss's slope at an open gate says little about that, and this chapter finds out what says
# more.
#
# ## 1 · What closes a gate: L0
#
# Left to itself, a model keeps all of its heads, since each helps a little. Something must push them shut. What we
# would like to penalise is the number of open heads, $\sum_h \mathbf 1[g_h>0]$, the "L0 norm" of the gates. A count has
# no gradient, but gates are random, and its expectation has one:
#
# $$ \mathtt{L0} = E\Big[\sum_h \mathbf 1[g_h>0]\Big] = \sum_h P(g_h>0) = \sum_h \mathtt{p\_open}_h,
# $$
#
# $$ \mathtt{p\_open}_h = \mathrm{sigmoid}\Big(\mathtt{log\_alpha}-\mathtt{beta}\log\frac{-\mathtt{gamma}}{\mathtt{zeta}}\Big). $$
#
# The expectation of a sum is the sum of the expectations, and the expectation of an indicator is a probability, given
# by the formula of [chapter 02](02_hard_concrete_gate.ipynb), section 3. **It is a sum over all heads of all layers.**
# With $\mathrm{sigmoid}'=\mathrm{sigmoid}\,(1-\mathrm{sigmoid})$,
#
# $$ \frac{\partial\,\mathtt{L0}}{\partial\,\mathtt{log\_alpha}_h} = \mathtt{p\_open}_h\,(1-\mathtt{p\_open}_h). $$
#
# Unlike the gradient through the gates, this one needs no noise: it is exact in every step, and never zero.

# %%
show_source(ops.p_open, ops.l0_forward, ops.l0_backward, docstring=False)

# %%
log_alpha = rng.normal(0, 2, (4, 8))  # (L, H)
assert_gradients(lambda x: ops.l0_forward(x, **PAPER), ops.l0_backward, log_alpha)

# check the count: draw all 32 gates 20,000 times and count those above 0
u = ops.draw_noise((20_000, 4, 8), rng, np.float64)
gates, _ = ops.hard_concrete_forward(np.broadcast_to(log_alpha, u.shape), u, **PAPER, hard=False)
counts = (gates > 0).sum((1, 2))  # (20000,)
l0, _ = ops.l0_forward(log_alpha, **PAPER)
error = counts.std() / np.sqrt(len(counts))
print(f"L0 = {l0:.3f} heads of 32; counted {counts.mean():.3f} ± {error:.3f}")
assert abs(counts.mean() - l0) < 5 * error

# %% [markdown]
# ### lam does not carry over
#
# The loss of gate training is `cross-entropy + lam · L0`. What is `lam`? Cross-entropy is a mean over tokens, in nats.
# So `lam` is a **price: the nats per token that one open head has to be worth.** The same number means something else
# if L0 is not the sum:

# %%
H, L, lam = 8, 4, 0.1
print(f"{'L0 is the':42}  nats that lam = {lam} asks  lam for {lam} nats")
for convention, divisor in (
    ("sum over all heads (paper, package)", 1),
    ("mean of layer sums (Voita et al.'s release)", L),
    ("mean over all heads", L * H),
):
    print(f"{convention:43} {lam / divisor:21.4f}  {lam * divisor:16.1f}")

# %% [markdown]
# Even with the same convention the value of a head changes: with 128 heads each is worth less than with 32, and a nat
# per word is not a nat per character. The paper's `lam` is between 0.01 and 0.02 for 128 heads and words. Our 32 heads,
# which read characters, get 0.1; in [the tour](00_tour.ipynb) that closed about a third of them. So always report how
# many heads stayed open.
#
# ## 2 · Where the forces push
#
# Suppose a head is worth a number of nats, `worth`: without it the loss is that much higher. Two forces act on its
# `log_alpha`. L0 pushes down by $\mathtt{lam}\cdot p(1-p)$ with $p=\mathtt{p\_open}$. The task, that is the
# cross-entropy, pushes up by the mean gradient through the straight-through gate
# ([chapter 02](02_hard_concrete_gate.ipynb), section 6). For the task we try two shapes of loss, a straight line
# $-\mathtt{worth}\cdot g$ and a parabola $\mathtt{worth}\cdot(1-g)^2$ with its minimum at the open gate; in both,
# closing costs `worth`. Section 4 shows which of the two resembles a real model.

# %%
log_alpha = np.linspace(-7, 7, 141)
spacing = 0.1 / 32
noise = np.arange(-15, 15, spacing)  # a fine grid in place of draws
u = ops.sigmoid(noise)
weights = u * (1 - u) * spacing  # of each point: the logistic density times the spacing


def push_up(slope):
    """Return the mean of −∂loss/∂log_alpha, straight-through; slope(g) is ∂loss/∂g."""
    a, uu = np.broadcast_arrays(log_alpha[:, None], u)  # (141, 9600)
    gate, cache = ops.hard_concrete_forward(a, uu, **PAPER, hard=True)
    return -ops.hard_concrete_backward(slope(gate), cache) @ weights  # (141,)


up = {
    "straight": push_up(lambda g: -np.ones_like(g)),  # d/dg of −g
    "parabola": push_up(lambda g: -2 * (1 - g)),  # d/dg of (1 − g)²
}  # of a head worth 1 nat
p = ops.p_open(log_alpha, **PAPER)
down = ops.l0_backward(1.0, ops.l0_forward(log_alpha, **PAPER)[1])  # of lam = 1
np.testing.assert_allclose(down, p * (1 - p), rtol=1e-14)

# %% [markdown]
# **Before you look:** a head is worth 0.9 `lam`, a little less than its price. Does its gate close, wherever its
# `log_alpha` starts?

# %% jupyter={"source_hidden": true}
# Draw both forces, the worth at which they balance, and where gates go
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.1))
axes[0].plot(log_alpha, down, color=VERMILION, linewidth=2, label="L0: p(1 − p)")
axes[0].plot(log_alpha, up["straight"], color=BLUE, linestyle="--", label="task, straight loss")
axes[0].plot(
    log_alpha, up["parabola"], color="black", linestyle=":", linewidth=2, label="task, parabola"
)
axes[0].set(
    title="Two forces, for lam = worth = 1",
    xlabel="log_alpha",
    ylabel="size of the gradient",
    ylim=(0, 0.37),
)
axes[0].legend(frameon=False, fontsize=8, loc="upper left")

axes[1].semilogy(log_alpha, down / up["straight"], color=BLUE, linestyle="--", label="straight")
axes[1].semilogy(
    log_alpha, down / up["parabola"], color="black", linestyle=":", linewidth=2, label="parabola"
)
axes[1].axhline(1, color=GREY, linewidth=0.8)
axes[1].set(
    title="worth / lam at which they balance",
    xlabel="log_alpha",
    ylim=(0.3, 3.5),
    yticks=[0.5, 1, 2],
)
axes[1].set_yticklabels(["0.5", "1", "2"])
axes[1].minorticks_off()
axes[1].text(-3.5, 0.40, "closes", color=VERMILION, ha="center")
axes[1].text(3.5, 2.6, "opens", color=BLUE, ha="center")
axes[1].legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.8))

for worth, colour, style in ((0.3, VERMILION, "-"), (0.9, GREY, "--"), (2.5, BLUE, "-.")):
    for start in (-2.0, -0.5, 0.5, 2.0):
        path = [start]
        for _ in range(160):
            net = np.interp(path[-1], log_alpha, worth * up["parabola"] - down)
            path.append(path[-1] + 0.5 * net)
        label = f"worth = {worth} lam" if start == 2 else None
        axes[2].plot(path, color=colour, linestyle=style, linewidth=1.2, label=label)
axes[2].axhline(0, color="black", linewidth=0.6)
axes[2].set(title="Where gates go (parabola)", xlabel="step", ylabel="log_alpha", ylim=(-5.5, 10))
axes[2].legend(frameon=False, fontsize=8, loc="upper left")
plt.show()

for name in up:
    balance = down / up[name]
    assert (np.diff(balance) < 0).all()  # falls everywhere, see the text
    at = ", ".join(f"at {a:2}: {np.interp(a, log_alpha, balance):.2f} lam" for a in (-7, 0, 2, 7))
    print(f"{name:9} worth at the balance, by log_alpha: {at}")

# %% [markdown]
# Read the middle panel. A head that is worth more than the line's height at its `log_alpha` opens further, one that is
# worth less closes further. The line *falls*: the more open a gate is, the less its head needs to be worth to stay. So
# the balance is not stable: it is a **watershed**. A gate on either side moves away from it, and ends clearly open or
# clearly shut; the grey paths on the right start from four places and divide. Three things follow.
#
# - `lam` sorts heads, roughly: heads worth much less than `lam` nats close, heads worth much more stay.
# - In between, the initial value decides. From `log_alpha` = 2 a head has to be worth half to two thirds of `lam` to
#   stay; from 0, half open, nearly all of it. This is one reason for the paper's initialisation.
# - Both forces vanish at both ends. A gate that is far open or far shut hardly moves any more. (Adam, which divides a
#   gradient by its usual size, hides much of that; the signs stay.)
#
# Set the price and the worth yourself. The picture shows the difference of the two forces, for the parabola: a gate in
# the blue part opens, one in the orange part closes. When does a gate close that starts at 2?


# %% jupyter={"source_hidden": true}
# Draw the sum of both forces for one price and one worth
def draw_forces(lam, worth):
    net = worth * up["parabola"] - lam * down
    figure, ax = plt.subplots(figsize=(5.5, 2.2))
    ax.fill_between(log_alpha, net, where=net >= 0, color=BLUE, linewidth=0)
    ax.fill_between(log_alpha, net, where=net <= 0, color=VERMILION, linewidth=0)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.axvline(2, color="black", linewidth=0.8, linestyle=":")
    goes = "opens" if np.interp(2, log_alpha, net) > 0 else "closes"
    ax.set_title(f"worth = {worth / lam:.2f} lam: a gate that starts at 2 {goes}")
    ax.set(xlabel="log_alpha", ylabel="task − price")
    plt.show()


sliders(draw_forces, lam=[0.05, 0.1, 0.15, 0.2], worth=[0.03, 0.06, 0.09, 0.12, 0.15])

# %% [markdown]
# ## 3 · The difference, exactly
#
# The method is sometimes summarised in one sentence: *the loss is based on the difference between the layer's output
# with and without a head.* Yet no such difference appears in the formula `cross-entropy + lam · L0`. It is there all
# the same, in the gradient. In the output of the attention block
#
# $$ y = x + b_o + \sum_h g_h\, c\; o_h\, W_o^{(h)} $$
#
# with $y$ (B, T, D), $o_h$ (B, T, Dh) and the head's rows $W_o^{(h)}$ (Dh, D) of $W_o$,
# the gate multiplies the head's output $o_h$, which depends on queries, keys and values, but on no gate of this block.
# ($c$ is the output scaling of [chapter 06](06_training_with_gates.ipynb), a plain number, 1 for now.) So $y$ is
# **affine** in every gate: a constant plus $g_h$ times something. That something is the change of $y$ when $g_h$ goes
# from 0 to 1,
#
# $$ \Delta^y_h = y(g_h{=}1) - y(g_h{=}0) = c\;o_h\,W_o^{(h)}, \qquad y(g_h) = y(g_h{=}0) + g_h\,\Delta^y_h . \tag{1} $$
#
# In the model of these notebooks the layer goes on. Each head also owns a part of a feed-forward block
# ([chapter 10b](10b_all_attention.ipynb), section 10), which reads $y$. With its N hidden units $r_h$ (B, T, N) and their
# values $\mathtt{pv}_h$ (N, D), the layer's output is
#
# $$ z = y + \mathtt{net.bo} + \sum_h g_h\, c\; r_h\,\mathtt{pv}_h, \qquad \Delta^z_h = c\; r_h\,\mathtt{pv}_h . $$
#
# The same gate multiplies both. If $y$ is held fixed, $z$ is affine in $g_h$ as well. Without holding it, $z$ is not,
# because $g_h$ changes $y$, and $y$ changes the units. But the chain rule, equation (1) of
# [chapter 01](01_backprop_by_hand.ipynb), simply adds up all places where a number is used, and sums over all outputs:
#
# $$ \boxed{\;\frac{\partial\,\mathtt{loss}}{\partial g_h} = \sum_{b,t,d}\frac{\partial\,\mathtt{loss}}{\partial y_{btd}}\,\Delta^y_{h,btd}
# + \sum_{b,t,d}\frac{\partial\,\mathtt{loss}}{\partial z_{btd}}\,\Delta^z_{h,btd}\;} \tag{2} $$
#
# This is exact: **the gradient of a gate is the block's output with the head minus the output without it, weighted by
# the loss's gradient with respect to each number of that output, and summed over the blocks in which the gate acts.**
# In the paper's All-attention a layer is one block, and the first sum is all there is.

# %%
show_source(ops.head_difference, docstring=False)

# %% [markdown]
# The backward pass does not compute it like that. `attention_backward` already has `do`, the gradient with respect to
# the head outputs, and sums `do * o`, see [chapter 03](03_attention_by_hand.ipynb). That is the first sum of (2) with
# the product regrouped. With $\langle a, b\rangle$ for the inner product, the sum of $a \cdot b$ over all entries,
# $\langle \mathtt{dy},\,o_h W_o^{(h)}\rangle = \langle \mathtt{dy}\,W_o^{(h)\top},\,o_h\rangle = \langle\mathtt{do}_h,\,o_h\rangle$.
# (`head_networks_backward` regroups the second: $\langle\mathtt{dz},\,r_h\,\mathtt{pv}_h\rangle = \langle r_h^\top\mathtt{dz},\,\mathtt{pv}_h\rangle$.)
# So there are two independent ways to compute this number, and a third way is to measure it.
#
# The next cell loads a trained model, in float64, and real text. The checks use five functions of the package:
# `with_heads(model)` gives the model gates, all open or as in a mask; `gated_outputs(model, cache, layer)` returns, for
# both blocks of a layer, what the gates multiply, and the matrix and bias that come after it; `predict_backward` and
# `norm_backward` are the backward passes of the output layer and of the last LayerNorm; and `read` runs a model over a
# text, segment by segment.

# %% jupyter={"source_hidden": true}
# Load the trained model, and define loss_and_outputs(gates): the loss and each layer's y and z
run = baseline_run()
model, text = run.load("train").model, run.text
config = model.config
L, H = config.L, config.H
exact = Transformer(
    config,
    {name: value.astype(np.float64) for name, value in model.params.items()},
    ops=get_backend("numpy"),
)
parameters = sum(x.size for x in model.params.values())
print(
    f"{L} layers of {H} heads, {parameters:,} parameters; {len(text.valid):,} characters held out"
)

segments = Segments(text.valid, B=4, T=config.T)
_, memory, _ = exact.loss(*segments.batch(0)[:2])  # one segment to fill the memory
ids, targets, _ = segments.batch(1)  # (B, T) each


def with_gate(gate, i, model=exact, c=1.0):
    """Return what layer i of a model computes with if its gates are `gate` (H,) and its output scaling is c."""
    own = {"R": model.params["R"], "gate": gate}
    return Layer(layer_parameters(model.params, i) | own, c)


def loss_and_outputs(gates, model=exact, ids=ids, targets=targets, memory=memory):
    """Run the model's own blocks with given gates (L, H); return the loss and every layer's y and z (B, T, D)."""
    ops, p = model.ops, model.params
    x = model.embed(ids)[0].astype(np.result_type(p["R"], gates.dtype))  # (B, T, D)
    outputs = []
    for i in range(model.config.L):
        layer = with_gate(gates[i], i, model)
        y, _, _ = attention_block_forward(x, memory[i], layer, model.config, ops)
        x, _ = second_block_forward(y, layer, model.config, ops)
        outputs.append((y, x))  # x is now this layer's z
    h, _ = ops.layernorm_forward(x, p["ln.scale"], p["ln.bias"])
    logits, _ = ops.linear_forward(h, p["embedding"].T, p["out_bias"])
    return ops.cross_entropy_forward(logits, targets)[0], outputs


def all_open(dtype=float):
    """Return gates (L, H) that are all 1."""
    return np.ones((L, H), dtype)


gated = with_heads(exact)  # all gates at 1
loss, _, cache = gated.loss(ids, targets, memory)
assert np.isclose(loss, loss_and_outputs(all_open())[0], rtol=1e-13)

# %% [markdown]
# First check (1) in both blocks: vary one gate from −0.5 to 1.5 and compare the whole output with the straight line. For
# the second block, y is held as it is with all heads. The last printed line does not hold it: there the gate acts in
# both blocks, and the layer's output leaves the line.

# %%
layer, head = 1, 3
y_full = loss_and_outputs(all_open())[1][layer][0]  # (B, T, D)
turned = np.linspace(-0.5, 1.5, 9)
ys, zs, zs_both = np.empty((3, 9, *y_full.shape))
for k, g in enumerate(turned):
    gates = all_open()
    gates[layer, head] = g
    ys[k], zs_both[k] = loss_and_outputs(gates)[1][layer]
    zs[k], _ = second_block_forward(y_full, with_gate(gates[layer], layer), config, ops)

Delta_y, Delta_z = (
    ops.head_difference(outputs, matrix)[head]  # (B, T, D)
    for outputs, matrix, _ in gated_outputs(gated, cache, layer)
)
for name, values, Delta in (
    ("attention block", ys, Delta_y),
    ("networks, y held", zs, Delta_z),
    ("both blocks together", zs_both, Delta_y + Delta_z),
):
    line = values[2] + np.multiply.outer(turned, Delta)  # turned[2] is 0
    off = np.abs(values - line).max() / np.abs(values).max()
    print(f"{name:20} largest distance from the line, relative: {off:.1e}")
    assert off > 1e-3 if name.startswith("both") else off < 1e-12

# %% [markdown]
# Then check (2), for all layers and heads, in three ways. The first is (2) itself. To get the loss's gradient with
# respect to every y and z, it runs the model's backward pass by hand, block by block.


# %%
def sums_of_differences(model, cache):
    """Return both sums of (2) for every gate, (L, H, 2): of the attention block and of the networks."""
    found = np.zeros((L, H, 2))
    dh, _ = predict_backward(1.0, cache.softmax, config, ops)  # (B, T, D)
    dz, _ = norm_backward(dh, cache.norm, "ln", config, ops)  # (B, T, D), of the last layer
    for i in reversed(range(L)):
        dy, _ = second_block_backward(dz, cache.second_blocks[i], config, ops)  # through z to y
        blocks = zip((dy, dz), gated_outputs(model, cache, i), strict=True)
        for k, (d, (outputs, matrix, _)) in enumerate(blocks):
            Delta = ops.head_difference(outputs, matrix, cache.gates[i].scale)  # (H, B, T, D)
            found[i, :, k] = (d * Delta).sum((1, 2, 3))
        dz, _ = attention_block_backward(
            dy, cache.attention_blocks[i], config, ops
        )  # of the layer below
    return found


of_blocks = sums_of_differences(gated, cache)

# %% [markdown]
# The second is the backward pass of the package. The third is the complex step of
# [chapter 01](01_backprop_by_hand.ipynb), one forward pass per gate.

# %%
grads, by_backward = gated.backward_with_gates(1.0, cache)
by_backward = np.array(by_backward)  # (L, H)

by_complex_step = np.zeros((L, H))
for i, h in np.ndindex(L, H):
    gates = all_open(complex)
    gates[i, h] += 1e-20j
    by_complex_step[i, h] = loss_and_outputs(gates)[0].imag / 1e-20

for name, sums, other in (
    ("two sums, backward pass", of_blocks.sum(-1), by_backward),
    ("two sums, complex step", of_blocks.sum(-1), by_complex_step),
    ("first sum alone", of_blocks[..., 0], by_backward),
):
    error = np.abs(sums - other).max() / np.abs(other).max()
    print(f"{name:23} largest error {error:.1e} of the largest gradient")
    assert error > 0.01 if name.startswith("first") else error < 1e-12

# %% [markdown]
# All three agree up to rounding, in every layer and head, and one of the two sums alone does not. In training, gates are
# noisy and $c$ is not 1; (2) holds there as well, with $c$ in $\Delta_h$. The next cell checks this in one noisy pass.
# What a gradient does *not* see is that $c$ itself changes when one more head closes: no gradient goes through $c$, just
# as none goes through a dropout mask.

# %%
gate_config = GateConfig()
with_noise = add_gates(exact.params, config.heads, gate_config)
noisy = Transformer(config, with_noise, gate_config, exact.ops)
_, _, noisy_cache = noisy.loss(ids, targets, memory, np.random.default_rng(5), all_heads=True)
_, dgates = noisy.backward_with_gates(1.0, noisy_cache)
sums = sums_of_differences(noisy, noisy_cache).sum(-1)  # (L, H)
np.testing.assert_allclose(sums, dgates, rtol=1e-9, atol=1e-14)
scales = ", ".join(f"{own.scale:.2f}" for own in noisy_cache.gates)
print(f"c by layer in this pass: {scales}; the identity holds")

# %% [markdown]
# ## 4 · What an exact slope does not tell you
#
# The output of a block is a straight line in $g_h$. The *loss* is not: between a block and the loss are further blocks,
# LayerNorms and a softmax. So (2) is the exact slope at the gate's current value, and a slope is not the difference in
# loss between $g_h=1$ and $g_h=0$. To see how far apart they are, measure both for every head of the trained model: what
# its removal costs on held-out text, and the mean slope at the open gate.

# %% jupyter={"source_hidden": true}
# Held-out text in pieces; the mean loss and the mean slopes over it
held_out = text.valid[: 16 * config.T * 5 + 1]  # 5 segments of 16 streams
pieces, carried = [], [None] * L
for step in range(5):
    ids16, targets16, _ = Segments(held_out, 16, config.T).batch(step)
    pieces.append((ids16, targets16, carried))
    _, carried, _ = model.loss(ids16, targets16, None if step == 0 else carried)


def mean_loss_at(gates):
    """Return the mean loss over the held-out pieces, with the compiled kernels and the whole model's memory."""
    gates = gates.astype(np.float32)
    return float(np.mean([loss_and_outputs(gates, model, *piece)[0] for piece in pieces]))


def mean_slopes(mask):
    """Return the mean of ∂loss/∂g over the same text, (L, H), with the heads of `mask` open."""
    masked = with_heads(model, mask)
    passes = read_segments(masked, held_out, all_heads=True)  # closed heads have slopes, too
    return np.mean([masked.backward_with_gates(1.0, cache)[1] for _, cache in passes], 0)


# %%
removal = np.array(leave_one_out(model, held_out, rng))  # (L, H), nats: without the head − with all
slope_open = mean_slopes(all_open(bool))  # (L, H), at g_h = 1
order = np.argsort(removal, axis=None)
ranks = {"most valuable": -1, "7th most valuable": -7, "median": 15}
chosen = {name: divmod(int(order[k]), H) for name, k in ranks.items()}
for name, (i, h) in chosen.items():
    print(f"{name:17} layer {i} head {h}: removal costs {removal[i, h]:.4f} nats")

# %% [markdown]
# **Before you look:** training has made the loss small with every gate at 1. What does that say about the slope of the
# loss there, and about the cost of removing a head?

# %% jupyter={"source_hidden": true}
# Draw one block's output and three losses, each against one gate
turned = np.linspace(-0.25, 1.25, 13)
full = mean_loss_at(all_open())
figure, axes = plt.subplots(1, 4, figsize=(9.5, 3.0))
spans = np.abs(ys[-1] - ys[0])  # (B, T, D)
for d, colour, style in zip(
    np.argsort(-spans.max((0, 1)))[[0, 5, 30]], (BLUE, VERMILION, "black"), ("-o", "-s", "-x")
):
    b, t = np.unravel_index(spans[..., d].argmax(), spans.shape[:2])
    axes[0].plot(np.linspace(-0.5, 1.5, 9), ys[:, b, t, d], style, color=colour, markersize=4)
axes[0].set(
    title=f"three features of y,\nlayer {layer} head {head}",
    xlabel="gate g",
    ylabel="y at one position",
)
for ax, (name, (i, h)) in zip(axes[1:], chosen.items()):
    losses = []
    for g in turned:
        gates = all_open()
        gates[i, h] = g
        losses.append(mean_loss_at(gates))
    ax.plot(turned, losses, color=BLUE, marker="o", markersize=4, label="loss")
    line = full + slope_open[i, h] * (turned - 1)
    ax.plot(turned, line, color=VERMILION, linestyle="--", label="slope at g = 1")
    ax.plot(1, full, "s", color="black", markersize=6)
    ax.set(
        title=f"loss, {name}:\nlayer {i} head {h}",
        xlabel="gate g",
        ylabel="nats per token" if ax is axes[1] else "",
    )
    ax.title.set_fontsize(9)
    assert -slope_open[i, h] < (losses[2] - full) / 2  # losses[2] is at g = 0
axes[1].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The orange line, the slope at the open gate, promises less than half of what the removal costs, because the blue curve
# bends upwards to the left. Section 2's parabola was a good guess.
#
# ### Why the loss is level at g = 1
#
# This is not a peculiarity of these heads. There is a second way to read the same gradient. Multiplying a head's rows of
# $W_o$ and its values `pv` by $g$ has the same effect as the gate, so moving the gate from 1 scales both:
#
# $$ \frac{\partial\,\mathtt{loss}}{\partial g_h}\Big|_{g_h=1} = \big\langle \mathtt{d}W_o^{(h)},\; W_o^{(h)}\big\rangle
# + \big\langle \mathtt{dpv}_h,\; \mathtt{pv}_h\big\rangle . $$
#
# Training has spent hundreds of steps on making $\mathtt{d}W_o$ and $\mathtt{dpv}$ zero, on average. In a model at its
# minimum **every gate's mean slope at $g=1$ is zero**, however much the head matters (on its training text; on held-out
# text it is small). The cost of a removal lies entirely in the curvature. The next cell checks the formula, and then
# makes three estimates of the cost for all 32 heads.

# %% jupyter={"source_hidden": true}
# Check the formula for every layer, and compute the three estimates.
for i in range(L):
    scaled = sum(
        (gated.params[f"layers.{i}.{name}"] * grads[f"layers.{i}.{name}"]).reshape(H, -1).sum(1)
        for name in ("Wo", "net.pv")
    )  # (H,)
    np.testing.assert_allclose(scaled, by_backward[i], rtol=1e-9, atol=1e-14)

slope_closed = np.zeros((L, H))  # at g_h = 0, all other heads open
for i, h in np.ndindex(L, H):
    mask = all_open(bool)
    mask[i, h] = False
    slope_closed[i, h] = mean_slopes(mask)[i, h]
trapezoid = -(slope_open + slope_closed) / 2
lengths = np.array(output_difference(model, held_out, rng))  # (L, H), mean ‖Δ_h‖

u = (np.arange(100_000) + 0.5) / 100_000  # an even grid in place of draws
for start, expected in ((0.0, 0.50), (2.0, 0.62)):  # which share takes the slope at 1?
    g, draw_cache = ops.hard_concrete_forward(np.full_like(u, start), u, **PAPER, hard=True)
    weight = ops.hard_concrete_backward(np.ones_like(u), draw_cache)  # ∂g/∂log_alpha of each draw
    assert abs(weight[g == 1].sum() / weight.sum() - expected) < 0.005

# %% jupyter={"source_hidden": true}
# Draw the three estimates against the true difference in loss
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.3))
panels = (
    ("first order: −slope at g = 1", -slope_open, "nats per token"),
    ("mean of the slopes at 0 and 1", trapezoid, ""),
    ("length of the difference ‖Δ‖", lengths, "mean over positions"),
)
diagonal = np.geomspace(removal[removal > 0].min(), removal.max(), 100)
for ax, (title, values, label) in zip(axes, panels):
    for i, marker in enumerate("osD^"):
        style = {"color": HEAD_COLOURS[i], "markersize": 5, "markerfacecolor": "none"}
        ax.plot(removal[i], values[i], marker, label=f"layer {i}", **style)
    ax.set(xscale="log", xlabel="true difference in loss, nats", ylabel=label)
    correlation = spearmanr(values.ravel(), removal.ravel()).statistic
    ax.set_title(f"{title}\nrank correlation {correlation:.2f}", fontsize=9)
    if values is not lengths:
        ax.plot(diagonal, diagonal, color=GREY, linewidth=0.8, linestyle="--")
axes[1].set_yscale("log")
axes[0].legend(frameon=False, fontsize=8, loc="upper left")
plt.show()

means = removal.mean(), np.abs(slope_open).mean(), trapezoid.mean()
for name, value in zip(("removal costs", "|slope at 1|", "trapezoid"), means):
    print(f"mean over heads: {name:13} {value:.3f} nats")
within = [spearmanr(lengths[i], removal[i]).statistic for i in range(L)]
print(f"‖Δ‖: rank correlation within each layer {', '.join(f'{value:+.2f}' for value in within)}")
assert np.abs(slope_open).mean() < removal.mean() / 2
assert spearmanr(trapezoid.ravel(), removal.ravel()).statistic > 0.8

# %% [markdown]
# The rank correlation is 1 where an estimate puts the heads into the true order, and 0 where it says nothing about it.
#
# - **Left.** The first-order estimate $-\partial\,\mathtt{loss}/\partial g$ at the open gate lies near zero for every
#   head, even below it for many, and for the heads that matter far below the dashed line of correct estimates. It is a
#   poor estimate even for ranking, compared with the one in the middle. This is why Michel et al. (2019) take the
#   absolute value of each example *before* the mean: the sizes survive, though the signs would cancel
#   ([chapter 08](08_fine_tuning_and_trade_off.ipynb) compares such scores).
# - **Middle.** The mean of the two slopes, at the open and at the shut gate, is close to the truth. This is the
#   trapezoid rule of [chapter 02](02_hard_concrete_gate.ipynb), section 6, and therefore, up to the effect of the
#   temperature, what **straight-through gates** measure. Some of their draws take the slope at 1, the others at 0:
#   weighted by their gradient, 50 and 50 % at `log_alpha` = 0, and 62 and 38 % at 2, where gates start. They learn what
#   a head is worth although the slope of the trained model does not show it. Most estimates are slightly too large,
#   because the curves are somewhat steeper at the shut gate than parabolas.
# - **Right.** The length of $\Delta_h$ (here of both blocks' differences together) needs no gradient at all, and it is no
#   substitute for one. It ranks the heads of the first layer well, but not those of the others; and the heads of the
#   last layer, which add as much as those of the first, cost much less. What a head adds is one question; what becomes
#   of it in the layers above and in the softmax is another.
#
# ## 5 · Two objectives
#
# **`task`** is the paper's: `cross-entropy + lam · L0`. The difference appears only in the gradient, weighted by the
# loss's gradient.
#
# **`layerwise`** takes the sentence of section 3 literally. For each block the output with gated heads is compared with the
# output with all heads, on the same input. The layer's gates also minimise the relative squared error of this block. For
# the attention block it is
#
# $$ \mathtt{error} = \frac{\|y_\mathrm{gated}-y_\mathrm{full}\|^2}{\|y_\mathrm{full}-x\|^2}. $$
#
# For the networks it is the same with $z$ in place of $y$ and $y$ in place of $x$. Both errors of a layer are added.
#
# Let $a_h$ be what head $h$ adds to a block without $c$, $o_h W_o^{(h)}$ or $r_h\,\mathtt{pv}_h$, so that
# $\Delta_h = c\,a_h$. By (1) both differences are sums of these: $y_\mathrm{gated}-y_\mathrm{full} = \sum_h e_h\,a_h$ with
# $e_h = c\,g_h-1$, and $y_\mathrm{full}-x=\sum_h a_h+b_o$. Expand the square. All that is needed from the large arrays is
# the matrix of inner products $G_{hh'} = \langle a_h,a_{h'}\rangle$, and the number
# $\mathtt{full}=\|y_\mathrm{full}-x\|^2$:
#
# $$ \mathtt{error} = \frac{e^\top G\,e}{\mathtt{full}}, \qquad \frac{\partial\,\mathtt{error}}{\partial e} = \frac{2\,G\,e}{\mathtt{full}}, \qquad
# \frac{\partial\,\mathtt{error}}{\partial g} = c\cdot\frac{2\,G\,e}{\mathtt{full}}, $$
#
# the last two because $G$ is symmetric and $e=c\,g-1$. The diagonal of $G$ holds $\|a_h\|^2$; the entries off the
# diagonal say whether heads point in the same direction. No backward pass through the model is needed.

# %%
show_lines(ops.layerwise_error_forward, "rows = ", "return (e @ G @ e)")
show_source(ops.layerwise_error_backward, docstring=False)

# %% jupyter={"source_hidden": true}
# Compute the error of a layer by G, and directly from both outputs
i = 2
(o, Wo, bo), networks = gated_outputs(gated, cache, i)  # of the two blocks; o (B, T, H, Dh)
gate, c = np.array([1, 1, 0, 1, 0.4, 1, 0, 1.0]), 8 / 6  # (H,)
error, _ = ops.layerwise_error_forward(gate, o, Wo, bo, c)
assert_gradients(
    lambda gate: ops.layerwise_error_forward(gate, o, Wo, bo, c), ops.layerwise_error_backward, gate
)

# directly: the attention block's output with these gates and with all heads, on its own input
x = loss_and_outputs(all_open())[1][i - 1][1]


def block(gate, c):
    """Return the attention block's output, (B, T, D)."""
    return attention_block_forward(x, memory[i], with_gate(gate, i, c=c), config, ops)[0]


y_gated, y_full = block(gate, c), block(np.ones(H), 1.0)
direct = ((y_gated - y_full) ** 2).sum() / ((y_full - x) ** 2).sum()
print(f"by G {error:.12f}, directly {direct:.12f}")
assert np.isclose(error, direct, rtol=1e-11)

# %% [markdown]
# **Before you look:** all heads are open. How large is the layer-wise error then, and what is its gradient?

# %%
nothing, whole_cache = ops.layerwise_error_forward(np.ones(H), o, Wo, bo)
dgate = ops.layerwise_error_backward(1.0, whole_cache)
print(f"all heads open: error {nothing:g}, gradient {dgate}")
assert nothing == 0 and not dgate.any()

# %% [markdown]
# At the full model the layer-wise error is at its minimum, zero, and so is its gradient. It takes effect only in passes
# in which noise has shut a head. The task's gradient is weak there, too (section 4).
#
# ### One step of each
#
# The training loop of [the next chapter](06_training_with_gates.ipynb) calls `GateObjective` in every step. It returns
# losses, memory and gradients, for either objective. If the objective is `layerwise`, this part adds its gradient:

# %%
show_source(GateObjective.add_layerwise_gradients, docstring=False)

# %% jupyter={"source_hidden": true}
# Train gates by both objectives.
found = {}
for objective in ("task", "layerwise"):
    gate_config = dataclasses.replace(run.config.gate, objective=objective)
    start = add_gates(exact.params, config.heads, gate_config)
    trained = Transformer(config, start, gate_config, exact.ops)
    take_step = GateObjective(gate_config, warmup=100, heads_total=L * H)
    noise_rng = np.random.default_rng(5)  # the same noise for both
    losses, _, found[objective] = take_step(trained, ids, targets, memory, noise_rng, step=50)
    print(f"{objective:10}", ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))

# only the gates learn from the layer-wise error: all other gradients are the same
other = {
    name
    for name, gradient in found["task"].items()
    if not np.allclose(found["layerwise"][name], gradient, rtol=1e-7, atol=1e-12)
}
assert other and all(name.endswith("log_alpha") for name in other)

# %% [markdown]
# ### Which heads each would close first
#
# All gates are at `log_alpha` = 2, so L0 pushes all of them down equally. Which of them close first depends on the
# force that holds them open: the mean of $-\partial\,\mathtt{loss}/\partial\,\mathtt{log\_alpha}$ over many noisy
# passes, of the task or of the layer-wise error. For the task, the passes cannot be avoided. For the layer-wise error,
# $G$ of the trained model's heads is enough, and thousands of draws cost nothing.

# %% jupyter={"source_hidden": true}
# The mean force of the task on every gate, over 250 noisy steps
start = add_gates(model.params, config.heads, run.config.gate)
start = Transformer(config, start, run.config.gate, model.ops)
few, noise_rng = Segments(text.train, 4, config.T), np.random.default_rng(7)
samples, carried = [], None
for step in range(250):
    ids4, targets4, fresh = few.batch(step)
    _, carried, step_cache = start.loss(ids4, targets4, None if fresh else carried, noise_rng)
    step_grads = start.backward(1.0, step_cache)
    samples.append([-step_grads[f"layers.{i}.log_alpha"] for i in range(L)])
samples = np.array(samples)  # (250, L, H)
hold_task = samples.mean(0)  # (L, H)

# %% [markdown]
# **Before you look:** the layer-wise error of a block is divided by the block's own output. Removing heads of the first
# layer costs the most. Does the layer-wise error know that?

# %% jupyter={"source_hidden": true}
# The force of the layer-wise error, over 3,000 draws of the gates of each layer
THROWS = 3000
hold_layer = np.zeros((L, H))
for i in range(L):
    products = []  # G and full of both blocks
    for block in gated_outputs(gated, cache, i):
        _, (_, G, full, _) = ops.layerwise_error_forward(np.ones(H), *block)
        products.append((G, full))
    for _ in range(THROWS):
        u = ops.draw_noise(H, noise_rng, np.float64)
        gate, gate_cache = ops.hard_concrete_forward(np.full(H, 2.0), u, **PAPER, hard=True)
        c = output_scaling(H, int(gate.sum()))
        errors = [(c * gate - 1, G, full, c) for G, full in products]  # as forward keeps them
        dgate = sum(ops.layerwise_error_backward(1.0, error) for error in errors)  # (H,)
        hold_layer[i] -= ops.hard_concrete_backward(dgate, gate_cache) / THROWS

# %% jupyter={"source_hidden": true}
# Draw the order in which heads would close, and each layer's share of the force
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.6), width_ratios=[1, 1, 1, 0.8])
for ax, (title, values) in zip(
    axes, {"true difference in loss": removal, "task": hold_task, "layer-wise": hold_layer}.items()
):
    rank = values.ravel().argsort().argsort().reshape(L, H) + 1  # 1 closes first
    ax.imshow(rank, cmap="Blues", vmin=-4, vmax=48, aspect="auto")
    for i, h in np.ndindex(L, H):
        first = rank[i, h] <= 8
        style = {"color": VERMILION, "weight": "bold"} if first else {"color": "black"}
        ax.text(h, i, rank[i, h], ha="center", va="center", fontsize=8, **style)
        if first:
            box = {"fill": False, "edgecolor": VERMILION, "linewidth": 1.2}
            ax.add_patch(plt.Rectangle((h - 0.46, i - 0.46), 0.92, 0.92, **box))
    ax.set(title=title, xlabel="head", xticks=range(H), yticks=range(L))
    ax.spines[:].set_visible(False)
axes[0].set_ylabel("layer")
bars = (
    ("true", removal, GREY, ""),
    ("task", hold_task, BLUE, "//"),
    ("layer-wise", hold_layer, VERMILION, ".."),
)
for k, (name, values, colour, hatch) in enumerate(bars):
    style = {"color": colour, "hatch": hatch, "edgecolor": "white", "label": name}
    axes[3].barh(np.arange(L) + 0.27 * (k - 1), values.sum(1) / values.sum(), 0.25, **style)
axes[3].invert_yaxis()
axes[3].set(title="share of each layer", xlabel="share of the sum", yticks=range(L), ylabel="layer")
axes[3].set_xlim(0, 0.9)
axes[3].legend(frameon=False, fontsize=8, loc="lower right")
figure.suptitle("In which order heads would close: 1 first; framed, the first eight", fontsize=9)
plt.show()

for name, values, *_ in bars[1:]:
    correlation = spearmanr(values.ravel(), removal.ravel()).statistic
    print(f"{name:10} rank correlation with the true difference {correlation:.2f}")
within = [spearmanr(hold_layer[i], removal[i]).statistic for i in range(L)]
print(f"layer-wise, within each layer: {', '.join(f'{value:+.2f}' for value in within)}")
clear = (hold_task > 2 * samples.std(0) / np.sqrt(len(samples))).sum()
print(f"of the task's 32 forces, {clear} exceed twice their standard error")
assert hold_task[0].sum() / hold_task.sum() > hold_layer[0].sum() / hold_layer.sum()

# %% [markdown]
# The task's forces follow the true difference, as far as the noise allows: in the run printed here the first layer
# stays open, and the heads that would close first are in the upper layers. (A single step sees one draw, from which
# most gates get no gradient; it takes hundreds of steps to learn the order.) The layer-wise error follows it hardly at
# all. First, it is *relative*: each block's error is divided by that block's own output, so every layer has much the
# same force to distribute, and it cannot know that the first layer's heads are more valuable than the last's. Second,
# it sees what a head adds and not what later layers need, so within the upper layers its order says little, like that
# of the lengths above. Only the task knows both, and the `layerwise` objective adds the task's gradient.
#
# ## 6 · Does the layer-wise objective pay?
#
# The two were compared in full, on three seeds, with the same numbers of heads and of steps, fine-tuning included. The
# results of these [studies](../data/results/README.md) come with the project. The last column is the mean of the
# differences, seed by seed, and their standard deviation, the *spread*.
#
# **Before you look:** the layer-wise objective contains the whole task objective, and adds a term that knows more about
# each block. Can it end with a worse model?

# %% jupyter={"source_hidden": true}
# Show the table of both studies
compared = {}
for study in ("tradeoff-pydoc", "tradeoff-stdlib"):
    summary = read_csv(results(study, "summary.csv").read_text("utf-8"))
    bits = {
        (r["method"], r["heads_open"]): f"{r['bits_per_character']:.3f} ± {r['spread']:.3f}"
        for r in summary
    }
    compared[study] = [
        r
        for r in read_csv(results(study, "comparison.csv").read_text("utf-8"))
        if r["method"] == "gates-layerwise" and r["reference"] == "gates"
    ]
    rows = [
        (r["heads_open"], f"{r['difference']:+.3f} ± {r['spread']:.3f}") for r in compared[study]
    ]
    print(f"{study}: bits per character on the test split")
    print(text_table([{"heads": n, "task": bits["gates", n], "layer-wise": bits["gates-layerwise", n], "more than task": more} for n, more in rows]), "\n")  # fmt: skip

# %% jupyter={"source_hidden": true}
# Draw the study: bits against heads, and how many heads each layer keeps
summary = read_csv(results("tradeoff-pydoc", "summary.csv").read_text("utf-8"))
kept, first_layer = read_csv(results("tradeoff-pydoc", "results.csv").read_text("utf-8")), {}
figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.9))
for method, name, colour, line, marker, offset in (
    ("gates", "task", BLUE, "-", "o", -0.2),
    ("gates-layerwise", "layer-wise", VERMILION, "--", "s", 0.2),
):
    own = [r for r in summary if r["method"] == method]
    axes[0].errorbar(
        [r["heads_open"] for r in own],
        [r["bits_per_character"] for r in own],
        [r["spread"] for r in own],
        color=colour, linestyle=line, marker=marker, markersize=4, capsize=3, label=name,
    )  # fmt: skip
    half = [
        r for r in kept if r["method"] == method and r["heads_open"] == 16 and r["split"] == "test"
    ]
    by_layer = np.array([[int(n) for n in r["heads_by_layer"].split()] for r in half])  # (seeds, L)
    hatch = "//" if method != "gates" else ""
    axes[1].bar(np.arange(L) + offset, by_layer.mean(0), 0.36, color=colour, alpha=0.4, hatch=hatch)
    for k, seed in enumerate(by_layer):
        places = np.arange(L) + offset + 0.08 * (k - 1)
        axes[1].plot(places, seed, marker, color=colour, markersize=4)
    first_layer[name] = by_layer[:, 0].mean()
    means = " ".join(f"{n:.1f}" for n in by_layer.mean(0))
    print(f"{name:10} keeps, of 8 in each layer, at 16 of 32: {means}")
axes[0].set(
    title="Three seeds, mean and standard deviation",
    xlabel="heads open, of 32",
    ylabel="bits per character",
)
axes[0].legend(frameon=False)
axes[1].set(
    title="Heads kept at 16 of 32: mean, and each seed",
    xlabel="layer",
    ylabel="heads, of 8",
    xticks=range(L),
    ylim=(0, 8.3),
)
plt.show()

for rows in compared.values():  # nowhere better by more than the spread
    assert all(r["difference"] > -r["spread"] for r in rows)
    assert any(r["difference"] > r["spread"] for r in rows)
assert all(r["difference"] > 0 for r in compared["tradeoff-stdlib"])
assert first_layer["layer-wise"] < first_layer["task"]

# %% [markdown]
# **It does not.** At no number of heads, on neither text, does the layer-wise objective save bits beyond the spread of
# three seeds; at some numbers it needs more bits beyond it. On the second text, the source of Python's library, it needs
# more at both numbers of heads, by more than the spread. At 16 of 32 heads it takes more of them from the first
# layer than the task does: being relative, its error cannot know that this layer matters most. As a criterion by itself
# the length of $\Delta_h$ is cheap (the *output difference* of [chapter 08](08_fine_tuning_and_trade_off.ipynb)). As an
# addition to the task it does not help. We found no published system that trains gates this way; this is the result of
# trying.
#
# ## Recap
#
# - L0, the expected number of open gates, pushes every `log_alpha` down by $\mathtt{lam}\cdot p(1-p)$; the task pushes up.
#   `lam` is a price in nats per token, and near the price the initial value decides which force wins.
# - A gate's gradient is exactly the difference that its head makes in each block's output, weighted by the loss's
#   gradient and summed over both blocks.
# - That slope is small at the open gates of a trained model, and a poor guide to what a head is worth. Noise that shuts
#   heads shows the worth; a comparison of layer outputs does not.
#
# ## Now you
#
# Replace the line `raise NotImplementedError(…)` by your code and run the cell. It prints nothing if the check passes.

# %% [markdown]
# ### Exercise 1 · A price for parameters
#
# L0 counts heads. If heads have different sizes, one may want to count parameters instead: head $h$ has
# $\mathtt{cost}_h$ of them. Write the expected cost of all open heads, and its gradient with respect to `log_alpha` (H,).
# The costs (H,) are integers and need no gradient. `ops.sigmoid` is given.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import assert_gradients, ops

SHIFT = 0.333 * np.log(0.1 / 1.1)  # beta · log(−gamma / zeta), about −0.8


def price_forward(log_alpha, cost):
    """Return the expected cost of all open heads, a scalar, and a cache; log_alpha (H,), cost (H,)."""
    raise NotImplementedError("write price_forward: return the expected cost and a cache")


def price_backward(dout, cache):
    """Return the gradient with respect to log_alpha, (H,); dout is a scalar."""
    raise NotImplementedError("write price_backward: return dout times the price's gradient")


cost = np.array([3, 1, 2])
found, _ = price_forward(np.full(3, SHIFT), cost)
assert np.isclose(found, 3), f"each gate is open half of the time: expected 3, got {found}"
log_alpha, names = np.array([-1.0, 0.5, 2.0]), ["log_alpha", "cost"]
assert_gradients(price_forward, price_backward, log_alpha, cost, argument_names=names)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The expectation of a sum is the sum of the expectations, and a head costs $\mathtt{cost}_h$ with probability
# $\mathtt{p\_open}_h$ (section 1). The derivative of the sigmoid is sigmoid · (1 − sigmoid).
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def price_forward(log_alpha, cost):
#     p = ops.sigmoid(log_alpha - SHIFT)  # (H,)
#     return (cost * p).sum(), (p, cost)
#
#
# def price_backward(dout, cache):
#     p, cost = cache
#     return dout * cost * p * (1 - p)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · The gradient of a gate
#
# Write identity (2) for all gates of one layer, from the gradients with respect to the outputs of its two blocks,
# `dy` and `dz` (B, T, D). The heads' outputs are `o` (B, T, H, Dh) and their projection is `Wo` (H·Dh, D). The units of
# the networks are `r` (B, T, H, N) and their values `pv` (H, N, D). `c` is the output scaling. Return dgate (H,). (Can
# you do it without an array of shape (H, B, T, D)?)

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import assert_gradients


def gate_gradients(dy, dz, o, Wo, r, pv, c):
    """Return the gradient of the loss with respect to each gate of the layer, (H,)."""
    raise NotImplementedError("write gate_gradients: return both sums of (2) for each head, (H,)")


B, T, H, Dh, N, D, c = 2, 3, 4, 5, 6, 7, 1.6
shapes = (B, T, D), (B, T, D), (B, T, H, Dh), (H * Dh, D), (B, T, H, N), (H, N, D)
dy, dz, o, Wo, r, pv = map(np.random.default_rng(0).standard_normal, shapes)
added = c * np.einsum("bthk,hkd->hbtd", o, Wo.reshape(H, Dh, D))  # by each head to y
added_by_networks = c * np.einsum("bthn,hnd->hbtd", r, pv)  # … to z
assert_gradients(
    lambda g: (
        (dy * np.tensordot(g, added, 1) + dz * np.tensordot(g, added_by_networks, 1)).sum(),
        0,
    ),
    lambda dout, cache: dout * gate_gradients(dy, dz, o, Wo, r, pv, c),
    np.array([1.0, 0.0, 0.3, 1.0]),
    name="gate_gradients",
    argument_names=["gate"],
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Move the matrix to the other factor, as the backward pass does: multiply `dy` by $W_o^{(h)\top}$ to get something of
# the shape of `o`, then multiply by `o` and sum over batch, positions and features of the head.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def gate_gradients(dy, dz, o, Wo, r, pv, c):
#     do = (dy @ Wo.T).reshape(o.shape)  # (B, T, H, Dh)
#     dr = np.einsum("btd,hnd->bthn", dz, pv)  # (B, T, H, N)
#     return c * ((do * o).sum((0, 1, 3)) + (dr * r).sum((0, 1, 3)))
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · Which side of the watershed
#
# A hard gate uses its head with probability sigmoid(`log_alpha`), so the expected loss of one gate is
# $-\mathtt{worth}\cdot\mathrm{sigmoid}(\mathtt{log\_alpha}) + \mathtt{lam}\cdot\mathtt{p\_open}$. (A straight line in the
# gate; the constants are the paper's.) Write gradient descent on it for many gates at once, `log_alpha` (n,) and `worth`
# (n,), for a number of steps with step size `rate`. Return the last `log_alpha` (n,).

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops

SHIFT = 0.333 * np.log(0.1 / 1.1)  # p_open = sigmoid(log_alpha − SHIFT)


def descend(log_alpha, worth, lam, steps, rate):
    """Return log_alpha (n,) after gradient descent on −worth · sigmoid(log_alpha) + lam · p_open."""
    raise NotImplementedError("write descend: return log_alpha after all steps, (n,)")


one, zero = np.ones(1), np.zeros(1)
up, down = descend(zero, 2 * one, 0.0, 1, 1.0), descend(SHIFT * one, zero, 2.0, 1, 1.0) - SHIFT
assert np.isclose(up, 0.5), f"one step for the task alone: expected +0.5, got {up}"
assert np.isclose(down, -0.5), f"one step for the price alone: expected −0.5, got {down}"
end = descend(np.array([0.0, 2.0, 2.0]), np.array([0.7, 0.7, 0.3]), 1.0, 2000, 0.1)
opened = list(map(bool, end > 0))
assert opened == [False, True, False], f"expected closed, open, closed; got log_alpha {end}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# Both terms are sigmoids, so their derivatives are $p(1-p)$, each with its own $p$. Descent subtracts the gradient: the
# first term moves `log_alpha` up, the second down. Two heads of the same worth end on different sides.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def descend(log_alpha, worth, lam, steps, rate):
#     for _ in range(steps):
#         used, p = ops.sigmoid(log_alpha), ops.sigmoid(log_alpha - SHIFT)  # (n,) each
#         log_alpha = log_alpha + rate * (worth * used * (1 - used) - lam * p * (1 - p))
#     return log_alpha
# ```
#
# </details>

# %% [markdown]
# The assignment [A3](assignments/README.md) goes with this chapter: its tasks a3_3 and a3_4 are L0 and the difference
# that a head makes.
#
# ## Questions
#
# 1. Is a gate's gradient also exact if the layer has dropout on its output?
#
# <details><summary>Answer</summary>
#
# Yes, for the given pass. With the mask fixed, a block is still affine in $g_h$; $\Delta_h$ is then the masked
# difference. The same holds for noise on other gates and for $c$: whatever is constant in the pass is constant in the
# identity.
#
# </details>
#
# 2. Gates $g_1$ and $g_2$ sit in the same layer. Is $y$ affine in both together? And if they sit in different layers?
#
# <details><summary>Answer</summary>
#
# In the same layer, yes: $y = y(0,0)+g_1\Delta_1+g_2\Delta_2$, without a term $g_1g_2$. (But $z$ is not: the units of one
# head read what the other has added to $y$.) In different layers, no: $g_1$ changes the input of the upper layer and
# with it $o_2$, so $\Delta_2$ depends on $g_1$, through a softmax. This is one reason why leave-one-out says little
# about removing two heads.
#
# </details>
#
# 3. You double the batch size and the segment length. Must `lam` change?
#
# <details><summary>Answer</summary>
#
# No. Cross-entropy is a mean over tokens, and L0 does not depend on the batch. It would have to change if the loss were
# a sum over tokens.
#
# </details>
#
# 4. Somebody reports "sparsity 0.4 at lam = 0.02". What do you ask?
#
# <details><summary>Answer</summary>
#
# Whether 0.4 of the heads are open or shut, of how many; whether L0 is a sum or a mean; nats or bits, per word or per
# character; and how many heads were open *in evaluation*, since L0 counts half-open gates in part.
#
# </details>
#
# **Next:** [06 training with gates](06_training_with_gates.ipynb), where the two forces act for hundreds of steps, with
# three stabilisers that keep the model from breaking. The code of this chapter is in
# [`ops/l0.py`](../tinyprune/ops/l0.py), [`ops/head_difference.py`](../tinyprune/ops/head_difference.py),
# [`ops/layerwise_error.py`](../tinyprune/ops/layerwise_error.py) and
# [`pruning/gates.py`](../tinyprune/pruning/gates.py); the scores that need no gates are in
# [`pruning/importance/`](../tinyprune/pruning/importance).

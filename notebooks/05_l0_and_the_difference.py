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
# &nbsp; ← [04 positions and memory](04_positions_and_memory.ipynb) · [all chapters](README.md) · [06 training with gates](06_training_with_gates.ipynb) →
#
# **After this chapter you can** say what closes a gate and what holds it open, in the same unit; prove that a gate's
# gradient is exactly the output with its head minus the output without it, weighted by the loss's gradient and summed;
# and explain why this exact gradient is still a bad estimate of what removing the head costs.
#
# **You need** the gates of [chapter 02](02_hard_concrete_gate.ipynb) and the heads of
# [chapter 03](03_attention_by_hand.ipynb).

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
# Imports, the constants of the paper's gates, and the trained baseline
# %matplotlib inline
import dataclasses

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

from tinyprune import Transformer, add_gates, get_backend, ops
from tinyprune.data import Segments
from tinyprune.model.blocks import (
    Layer,
    attention_block_backward,
    attention_block_forward,
    norm_backward,
    second_block_backward,
    second_block_forward,
)
from tinyprune.model.parameters import layer_parameters
from tinyprune.model.transformer import gated_outputs
from tinyprune.model.vocabulary import predict_backward
from tinyprune.notebook import baseline_run, show_source, sliders, use_style, you_are_here, yours
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION
from tinyprune.method.gates import GateObjective
from tinyprune.method.masks import with_parts
from tinyprune.training.evaluation import read_segments

use_style()
PAPER = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}
run = baseline_run()
model, text = run.load("train").model, run.text
config = model.config
L, H = config.L, config.H

# %%
you_are_here("gate", "gates")

# %% [markdown]
# [Chapter 02](02_hard_concrete_gate.ipynb) built a gate, and now each head gets one. What pushes a gate shut? And what is
# its head worth? In a trained model the slope of the loss at the open gate hardly tells you. This chapter shows why.
#
# ## 1 · What closes a gate: L0
#
# We would like to penalise the number of open heads, $\sum_h\mathbf 1[g_h>0]$, the "L0 norm" of the gates. A count has no
# gradient. But gates are random, and the expected count has one:
#
# $$ \mathtt{L0} = E\Big[\sum_h \mathbf 1[g_h>0]\Big] = \sum_h P(g_h>0) = \sum_h \mathtt{p\_open}_h,
# \qquad \mathtt{p\_open}_h =
# \mathrm{sigmoid}\Big(\mathtt{log\_alpha}_h-\mathtt{beta}\log\frac{-\mathtt{gamma}}{\mathtt{zeta}}\Big). $$
#
# The expectation of an indicator is a probability; [chapter 02](02_hard_concrete_gate.ipynb) derives its formula. **L0 is
# a sum over all heads of all layers.** The package also accepts a weight for each head, for heads of different sizes;
# `None` means that each head counts 1.

# %%
show_source(ops.p_open, ops.l0_forward, docstring=False)

# %% [markdown]
# ### Exercise 1 · The gradient of L0
#
# *●○○ · 10 minutes*
#
# Write the backward pass of `l0_forward`. The cache holds `p`, the probabilities `p_open` in any shape, and `weights`, of
# the same shape or `None`. `dout` is a number. Return the gradient with respect to `log_alpha`. And on paper: at which
# `log_alpha` does the price push most?

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.notebook import yours


def l0_backward(dout, cache):
    """Return the gradient with respect to log_alpha, in the shape of p; dout is a number."""
    p, weights = cache  # weights are None or have the shape of p
    raise NotImplementedError("write l0_backward: return dout times the derivative of L0")


rng = np.random.default_rng(0)
p, weights = rng.uniform(size=(4, 8)), rng.uniform(1, 3, (4, 8))
yours.check(
    l0_backward,
    ops.l0_backward,
    (1.0, (p, None)),
    (0.1, (p, None)),
    (0.1, (p, weights)),
    hint="each log_alpha occurs in one term of the sum, weight · sigmoid(log_alpha − a constant)",
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The derivative of sigmoid is sigmoid · (1 − sigmoid), and `p` already is the sigmoid.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def l0_backward(dout, cache):
#     p, weights = cache
#     dp = dout if weights is None else dout * weights
#     return dp * p * (1 - p)
# ```
#
# </details>

# %% [markdown]
# Unlike the gradient through the gates, this gradient, $p\,(1-p)$, needs no noise: it is exact in every step, and never
# zero. The price pushes most where $p=\frac12$, at
# $\mathtt{log\_alpha}=\mathtt{beta}\log\frac{-\mathtt{gamma}}{\mathtt{zeta}}=-0.80$ with the paper's constants. Check L0: draw 32 gates 20,000 times and count the open ones.

# %%
rng = np.random.default_rng(0)
log_alpha = rng.normal(0, 2, (L, H))
u = ops.draw_noise((20_000, L, H), rng, np.float64)
gates, _ = ops.hard_concrete_forward(np.broadcast_to(log_alpha, u.shape), u, **PAPER, hard=False)
counts = (gates > 0).sum((1, 2))  # (20000,)
l0, _ = ops.l0_forward(log_alpha, **PAPER)
print(f"L0 = {l0:.2f} heads of 32; counted {counts.mean():.2f}")
assert abs(counts.mean() - l0) < 5 * counts.std() / np.sqrt(len(counts))

# %% [markdown]
# The loss of gate training is `cross-entropy + lam · L0`. Cross-entropy is a mean over tokens, in nats, so `lam` is a
# **price: the nats per token that one open head costs.** With the same `lam` a program that divides L0 by the 32
# heads asks 32 times less of each head. So a `lam` says little without the definition of L0; report how many heads stayed open. The paper takes 0.01 to 0.02 for 128
# heads and text in words; we take 0.1 for 32 heads and text in characters.
#
# Now train gates on the tour's model for 30 steps, without a price and with a high price. Only `log_alpha` moves. If you
# have solved exercise 1, your function computes the gradient of the price.


# %%
def train_gates(lam, engine, steps=30, rate=5.0):
    """Return L0 before each step of plain gradient descent on log_alpha alone."""
    gate = dataclasses.replace(run.config.gate, lam=lam)
    gated = Transformer(config, add_gates(model.params, config, gate), gate, engine)
    # the loss with its price, and the gradients; chapter 06 explains it
    objective, noise = GateObjective(gate, warmup=1, heads_total=L * H), np.random.default_rng(0)
    segments, memory, l0 = Segments(text.train, 2, config.T), None, []
    for step in range(steps):
        ids, targets, _ = segments.batch(step)  # (B, T), B = 2
        told, memory, grads = objective(gated, ids, targets, memory, noise, step)
        l0.append(float(told["l0"]))
        for name in [name for name in grads if name.endswith("log_alpha")]:
            gated.params[name] -= np.float32(rate) * grads[name]
    return l0


with yours.engine() as engine:
    for lam in (0.0, 0.3):
        l0 = train_gates(lam, engine)
        print(f"lam = {lam}: L0 is {l0[0]:.1f} at first and {l0[-1]:.1f} at the end")

# %% [markdown]
# Both begin at $30.2 = 32\cdot0.943$, since every `log_alpha` starts at 2. Without a price the task alone opens the gates a
# little further. At 0.3 nats, twice what the most valuable head is worth (section 4), L0 falls by two thirds.
#
# ## 2 · Where the forces push
#
# Suppose that without a head the loss is `worth` nats higher. Two forces act on the head's `log_alpha`. The price pushes
# down by $\mathtt{lam}\cdot p(1-p)$ with $p=\mathtt{p\_open}$. The task, that is the cross-entropy, pushes up by the mean
# gradient through the straight-through gate ([chapter 02](02_hard_concrete_gate.ipynb)). For the task we try two shapes of
# loss: a straight line $-\mathtt{worth}\cdot g$, and a parabola $\mathtt{worth}\cdot(1-g)^2$ with its minimum at the open
# gate. In both, closing the gate costs `worth`. Section 4 shows which shape is more like a real model.

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
assert abs(log_alpha[down.argmax()] + 0.8) < 0.01

# %% [markdown]
# **Before you look:** a head is worth 0.9 `lam`. Does its gate close, wherever its `log_alpha` starts?

# %% jupyter={"source_hidden": true}
# Both forces are largest near log_alpha = 0; a gate moves away from the place where they balance, open or shut.
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.1))
axes[0].plot(log_alpha, down, color=VERMILION, linewidth=2, label="L0: p(1 − p)")
axes[0].plot(log_alpha, up["straight"], color=BLUE, linestyle="--", label="task, straight loss")
axes[0].plot(
    log_alpha, up["parabola"], color="black", linestyle=":", linewidth=2, label="task, parabola"
)
axes[0].set(
    title="Both forces are largest near 0\n(lam = worth = 1)",
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
    title="The more open a gate is, the less\nits head has to be worth",
    xlabel="log_alpha",
    ylabel="worth / lam at the balance",
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
axes[2].set(xlabel="step", ylabel="log_alpha", ylim=(-5.5, 10))
axes[2].set_title("At 0.9 lam the start decides\nwhere a gate goes (parabola)")
axes[2].legend(frameon=False, fontsize=8, loc="upper left")
plt.show()

for name in up:
    balance = down / up[name]
    assert (np.diff(balance) < 0).all()  # falls everywhere, see the text
    at = ", ".join(f"at {a:2}: {np.interp(a, log_alpha, balance):.2f} lam" for a in (-7, 0, 2, 7))
    print(f"{name:9} worth at the balance, by log_alpha: {at}")

# %% [markdown]
# Read the middle panel. If a head is worth more than the line's height at its `log_alpha`, its gate opens further; if the
# head is worth less, its gate closes further. The line *falls*: the more open a gate is, the less its head needs to be
# worth to stay. So no gate rests on the line. Above it the gate opens, below it the gate closes, and near it the start decides.
# Three things follow.
#
# - `lam` sorts heads, roughly: heads worth much less than `lam` nats close, heads worth much more stay.
# - In between, the initial value decides: at 0.9 `lam` the gate opens from 0.5 and closes from −0.5 (right panel). From 2
#   a head has to be worth only half to two thirds of `lam` to stay. So a start at 2, as in the paper, favours open gates. This is
#   the second reason why the tour kept 21 heads, and not the 12 at which bits plus price are smallest.
# - Both forces vanish at both ends: a gate that is far open or far shut hardly moves.
#
# Set the price and the worth yourself (the task is the parabola). A gate opens in the blue part and closes in the orange
# part. When does a gate close that starts at 2?


# %% jupyter={"source_hidden": true}
# Both forces added: where a gate opens (blue, above 0) and where it closes (orange, below 0)
def draw_forces(lam=0.1, worth=0.09):
    """Draw the push of the task minus the push of the price against log_alpha; the start, 2, is a dotted line."""
    net = worth * up["parabola"] - lam * down
    figure, ax = plt.subplots(figsize=(5.5, 2.4))
    ax.fill_between(log_alpha, net, where=net >= 0, color=BLUE, linewidth=0)
    ax.fill_between(log_alpha, net, where=net <= 0, color=VERMILION, linewidth=0)
    ax.axhline(0, color="black", linewidth=0.6)
    ax.axvline(2, color="black", linewidth=0.8, linestyle=":")
    goes = "opens" if np.interp(2, log_alpha, net) > 0 else "closes"
    ax.set_title(f"worth = {worth / lam:.2f} lam: a gate that starts at 2 {goes}")
    ax.set(xlabel="log_alpha", ylabel="task − price", xlim=(-7, 7), ylim=(-0.045, 0.03))
    plt.show()


sliders(draw_forces, lam=[0.05, 0.1, 0.15, 0.2], worth=[0.03, 0.06, 0.09, 0.12, 0.15])

# %% [markdown]
# ## 3 · The difference, exactly
#
# The method is sometimes summarised so: *the loss is based on the difference between the layer's output with and without
# a head.* No such difference appears in `cross-entropy + lam · L0`. The difference appears in the gradient. The attention
# block adds up its heads, then a second block adds up the heads' hidden units (the head networks of chapter 03):
#
# $$ y = x + b_o + \sum_h g_h\,c\;o_h\,W_o^{(h)}, \qquad z = y + b_{net} + \sum_h g_h\,c\;r_h\,\mathtt{pv}_h . $$
#
# Here $o_h$ (B, T, Dh) is the head's output and $W_o^{(h)}$ (Dh, D) its rows of $W_o$; $r_h$ (B, T, N) are its hidden
# units and $\mathtt{pv}_h$ (N, D) the weights out of them. $c$ is the output scaling of
# [chapter 06](06_training_with_gates.ipynb), 1 for now.
#
# Look at what a gate can reach. A head computes $o_h$ from $x$, the layer's input, and all heads of the layer read the same $x$:
# none of them sees what another one adds. So no gate of this layer changes any $o_h$, and $g_h$ only decides how much of $o_h$
# is added. As $g_h$ goes from 0 to 1, $y$ moves along a straight line ($y$ is **affine** in the gate), and what it moves by is
# what the head adds. The hidden units do read $y$, and with it all heads; but if $y$ is held fixed, $z$ moves along a straight
# line as well:
#
# $$ \Delta^y_h = y(g_h{=}1) - y(g_h{=}0) = c\;o_h\,W_o^{(h)}, \qquad \Delta^z_h = c\;r_h\,\mathtt{pv}_h . \tag{1} $$
#
# The gate is used in two places, and the chain rule adds up all places where a number is used:
#
# $$ \boxed{\;\frac{\partial\,\mathtt{loss}}{\partial g_h} = \sum_{b,t,d}\mathtt{dy}_{btd}\,\Delta^y_{h,btd}
# + \sum_{b,t,d}\mathtt{dz}_{btd}\,\Delta^z_{h,btd}\;} \tag{2} $$
#
# with `dy` and `dz` (B, T, D) the gradients of the loss with respect to $y$ (through $z$, too) and $z$. This is exact:
# **the gradient of a gate is the block's output with the head minus the output without it, weighted by the loss's
# gradient with respect to that output, and summed over both blocks.** A gate changes the loss by two routes. It changes $y$, and
# all that comes after $y$ reacts to that, the units included: this is `dy`. And it scales the units directly: this is `dz`. So
# in the second route $y$ is held fixed.
#
# A case with two features and one position: the head adds $\Delta^y = (1, -2)$ and $\Delta^z = (0, 1)$, and the gradients are
# $\mathtt{dy} = (0.3, 0.1)$ and $\mathtt{dz} = (0.2, 0.4)$. Then its gate has the gradient
# $0.3\cdot1 - 0.1\cdot2 + 0.4\cdot1 = 0.5$.

# %% [markdown]
# ### Exercise 2 · The gradient of a gate
#
# *●●○ · 15 minutes*
#
# Write (2) for all gates of one layer, from `dy`, `dz`, `o` (B, T, H, Dh), `Wo` (H·Dh, D), `r` (B, T, H, N), `pv`
# (H, N, D) and the number `c`; `o` and `r` are not yet multiplied by gates or `c`. Return dgate (H,). Can you do it
# without an array of shape (H, B, T, D)?

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect_close


def gate_gradients(dy, dz, o, Wo, r, pv, c):
    """Return the gradient of the loss with respect to each gate of the layer, (H,)."""
    raise NotImplementedError("write gate_gradients: return both sums of (2) for each head, (H,)")


B, T, H, Dh, N, D, c = 2, 3, 4, 5, 6, 7, 1.6
shapes = (B, T, D), (B, T, D), (B, T, H, Dh), (H * Dh, D), (B, T, H, N), (H, N, D)
dy, dz, o, Wo, r, pv = map(np.random.default_rng(0).standard_normal, shapes)


def loss(gate):
    """Return a loss whose gradient with respect to y is dy, and with respect to z is dz."""
    y = c * (gate[:, None] * o).reshape(B, T, H * Dh) @ Wo
    z = c * (gate[:, None] * r).reshape(B, T, H * N) @ pv.reshape(H * N, D)
    return (dy * y).sum() + (dz * z).sum()


expected = np.array([loss(np.eye(H)[h]) - loss(np.zeros(H)) for h in range(H)])  # with − without
found = gate_gradients(dy, dz, o, Wo, r, pv, c)
given = f"dy, dz {dy.shape}, o {o.shape}, Wo {Wo.shape}, r {r.shape}, pv {pv.shape}, c {c}"
hint = "one number for each head: both blocks have a sum over B, T and D, and c stands in both"
expect_close(found, expected, "dgate is wrong", fed=given, hint=hint)
print(f"passed: dgate to {np.abs(found / expected - 1).max():.0e}")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Move the matrix to the other factor, as the backward pass does: `dy @ Wo.T` has the size of `o`. Multiply both and sum
# over batch, positions and features of the head.
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
# Does a real model agree? The cell varies one gate of the trained model from −0.5 to 1.5 and compares each block's
# output with the straight line of (1). In the last printed row $y$ is not held fixed, and the output leaves the line.

# %% jupyter={"source_hidden": true}
# The model's blocks with given gates, and the distance of their outputs from a straight line
L, H = config.L, config.H
in_float64 = {name: value.astype(np.float64) for name, value in model.params.items()}
exact = Transformer(config, in_float64, ops=get_backend("numpy"))
segments = Segments(text.valid, B=4, T=config.T)
_, memory, _ = exact.loss(*segments.batch(0)[:2])  # one segment to fill the memory
ids, targets, _ = segments.batch(1)  # (B, T) each


def with_gate(gate, i, model=exact):
    """Return what layer i of a model computes with if its gates are `gate` (H,)."""
    return Layer(layer_parameters(model.params, i) | {"R": model.params["R"], "gate": gate}, 1.0)


def loss_and_outputs(gates, model=exact, ids=ids, targets=targets, memory=memory):
    """Run the model's own blocks with given gates (L, H); return the loss and every layer's y and z (B, T, D)."""
    ops, p = model.ops, model.params
    x = model.embed(ids)[0].astype(np.result_type(p["R"], gates.dtype))  # (B, T, D)
    outputs = []
    for i in range(L):
        layer = with_gate(gates[i], i, model)
        y, _, _ = attention_block_forward(x, memory[i], layer, config, ops)
        x, _ = second_block_forward(y, layer, config, ops)
        outputs.append((y, x))  # x is now this layer's z
    h, _ = ops.layernorm_forward(x, p["ln.scale"], p["ln.bias"])
    logits, _ = ops.linear_forward(h, p["embedding"].T, p["out_bias"])
    return ops.cross_entropy_forward(logits, targets)[0], outputs


def all_open(dtype=float):
    """Return gates (L, H) that are all 1."""
    return np.ones((L, H), dtype)


def all_but(i, h):
    """Return which heads are open, (L, H), if head h of layer i is closed."""
    mask = all_open(bool)
    mask[i, h] = False
    return mask


gated = with_parts(exact)  # the model of the package with gates, all at 1
loss, _, cache = gated.loss(ids, targets, memory)
assert np.isclose(loss, loss_and_outputs(all_open())[0], rtol=1e-13)

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
    ("hidden units, y held", zs, Delta_z),
    ("both blocks together", zs_both, Delta_y + Delta_z),
):
    line = values[2] + np.multiply.outer(turned, Delta)  # turned[2] is 0
    off = np.abs(values - line).max() / np.abs(values).max()
    print(f"{name:20} largest distance from the line, relative: {off:.1e}")
    assert off > 1e-3 if name.startswith("both") else off < 1e-12

# %% [markdown]
# Compute the gradient of every gate in three ways: by (2), with `head_difference` for $\Delta$; by the package's
# backward pass, which regroups the product as the hint above does; and by the complex step of
# [chapter 01](01_backprop_by_hand.ipynb).

# %%
show_source(ops.head_difference, docstring=False)

# %% jupyter={"source_hidden": true}
# The gradient of all 32 gates in three ways
of_blocks = np.zeros((L, H, 2))  # both sums of (2)
dh, _ = predict_backward(1.0, cache.softmax, config, ops)  # (B, T, D)
dz, _ = norm_backward(dh, cache.norm, "ln", config, ops)  # (B, T, D), of the last layer
for i in reversed(range(L)):
    dy, _ = second_block_backward(dz, cache.second_blocks[i], config, ops)  # through z to y
    for k, (d, (outputs, matrix, _)) in enumerate(zip((dy, dz), gated_outputs(gated, cache, i))):
        of_blocks[i, :, k] = (d * ops.head_difference(outputs, matrix)).sum((1, 2, 3))
    dz, _ = attention_block_backward(
        dy, cache.attention_blocks[i], config, ops
    )  # of the layer below

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
# All three agree up to rounding; the first sum alone does not. (2) also holds with noisy gates, and with $c \neq 1$.
#
# ## 4 · What an exact slope does not tell you
#
# The output of a block is a straight line in $g_h$. The *loss* is not: between a block and the loss are further blocks,
# LayerNorms and a softmax. So (2) is the exact slope at the gate's current value, not the difference in loss between
# $g_h=1$ and $g_h=0$. Measure both for every head, on held-out text.

# %%
held_out = text.valid[: 16 * config.T * 5 + 1]  # 5 segments of 16 streams


def loss_with(mask):
    """Return the mean loss on held-out text, in nats per token, with the heads of mask (L, H) open."""
    return float(np.mean([value for value, _ in read_segments(with_parts(model, mask), held_out)]))


def mean_slopes(mask):
    """Return the mean of ∂loss/∂g over the same text, (L, H), with the heads of mask (L, H) open."""
    masked = with_parts(model, mask)
    passes = read_segments(masked, held_out, all_heads=True)  # closed heads have slopes, too
    return np.mean([masked.backward_with_gates(1.0, cache)[1] for _, cache in passes], 0)


whole = loss_with(all_open(bool))
removal = np.zeros((L, H))  # nats: without the head − with all
for i, h in np.ndindex(L, H):
    removal[i, h] = loss_with(all_but(i, h)) - whole
slope_open = mean_slopes(all_open(bool))  # (L, H), at g = 1

# %% [markdown]
# **Before you look:** training has made the loss small with every gate at 1. What does that say about the slope there, and
# about the cost of removing a head?

# %% jupyter={"source_hidden": true}
# The loss against the gate of three heads, and the slope at the open gate, which promises too little
order = np.argsort(removal, axis=None)
turned = np.linspace(-0.25, 1.25, 7)


def loss_of(gates):
    """Return the mean loss on the held-out text with gates (L, H), which also make the memory, as after pruning."""
    losses, carried = [], [None] * L
    for step in range(5):
        ids, targets, _ = Segments(held_out, 16, config.T).batch(step)  # (B, T)
        value, outputs = loss_and_outputs(gates, model, ids, targets, carried)
        carried = [model.embed(ids)[0], *(z for _, z in outputs[:-1])]  # each layer's input; M is T
        losses.append(value)
    return np.mean(losses)


figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.9), constrained_layout=True, sharey=True)
for ax, (name, k) in zip(
    axes, {"most valuable": -1, "7th most valuable": -7, "median": 15}.items()
):
    i, h = divmod(int(order[k]), H)
    losses = []
    for g in turned:
        gates = all_open(np.float32)
        gates[i, h] = g
        losses.append(loss_of(gates))
    full = losses[5]  # at g = 1
    more = np.array(losses) - full
    ax.plot(turned, more, color=BLUE, marker="o", markersize=4, label="loss")
    line = slope_open[i, h] * (turned - 1)
    ax.plot(turned, line, color=VERMILION, linestyle="--", label="slope at g = 1")
    ax.plot(1, 0, "s", color="black", markersize=6)
    ax.set_title(f"{name}, layer {i} head {h}:\nremoval costs {removal[i, h]:.3f} nats", fontsize=9)
    ax.set(xlabel="gate g", ylabel="nats more than at g = 1" if ax is axes[0] else "")
    assert np.isclose(losses[1] - full, removal[i, h], atol=1e-4)  # losses[1] is at g = 0
    assert -slope_open[i, h] < removal[i, h] / 2
axes[0].legend(frameon=False, fontsize=8)
figure.suptitle("The slope at the open gate promises less than half of the cost")
plt.show()

# %% [markdown]
# The orange line, drawn with the slope at the open gate, predicts less than half of what the removal costs, because the
# blue curve bends upwards to the left. The parabola of section 2 was a good guess.
#
# Multiplying a head's rows of $W_o$ and its `pv` by $g$ has the same effect as the gate. So the
# slope can also be read from the gradients of the weights:
#
# $$ \frac{\partial\,\mathtt{loss}}{\partial g_h}\Big|_{g_h=1} = \big\langle \mathtt{d}W_o^{(h)},\; W_o^{(h)}\big\rangle
# + \big\langle \mathtt{dpv}_h,\; \mathtt{pv}_h\big\rangle , $$
#
# where $\langle a, b\rangle$ is the sum of $a\cdot b$ over all entries. Training makes $\mathtt{d}W_o$ and $\mathtt{dpv}$
# zero, on average. In a model at its minimum **every gate's mean slope at $g=1$ is zero**, however much the head matters.
# The cost of a removal lies entirely in the curvature.
#
# Compare two estimates of the cost with the truth: the slope at the open gate, and the mean of the slopes at the open and
# at the shut gate.

# %% jupyter={"source_hidden": true}
# Two estimates against the true cost of each head: the slope at 1 is near zero, the mean of both slopes is close
for i in range(L):  # first the formula above, for every layer
    names = f"layers.{i}.Wo", f"layers.{i}.net.pv"
    scaled = sum((gated.params[n] * grads[n]).reshape(H, -1).sum(1) for n in names)  # (H,)
    np.testing.assert_allclose(scaled, by_backward[i], rtol=1e-9, atol=1e-14)

slope_closed = np.array([mean_slopes(all_but(i, h))[i, h] for i, h in np.ndindex(L, H)])
trapezoid = -(slope_open + slope_closed.reshape(L, H)) / 2
figure, axes = plt.subplots(1, 2, figsize=(9, 3.3))
diagonal = np.geomspace(removal[removal > 0].min(), removal.max(), 100)
for ax, title, values in (
    (axes[0], "the slope at g = 1 promises next to nothing", -slope_open),
    (axes[1], "the mean of both slopes is close to the truth", trapezoid),
):
    for i, marker in enumerate("osD^"):
        style = {"color": HEAD_COLOURS[i], "markersize": 5, "markerfacecolor": "none"}
        ax.plot(removal[i], values[i], marker, label=f"layer {i}", **style)
    ax.plot(diagonal, diagonal, color=GREY, linewidth=0.8, linestyle="--")
    ax.set(xlabel="true cost of removal, nats", ylabel="estimate, nats")
    correlation = spearmanr(values.ravel(), removal.ravel()).statistic
    ax.set_title(f"{title}\nrank correlation {correlation:.2f}", fontsize=10)
axes[1].set(xscale="log", yscale="log")
axes[0].legend(frameon=False, fontsize=8, loc="upper left")
plt.show()
assert np.abs(slope_open).mean() < removal.mean() / 2
assert spearmanr(trapezoid.ravel(), removal.ravel()).statistic > 0.8

# %% [markdown]
# The rank correlation is 1 where an estimate puts the heads into the true order, and 0 where the estimate says nothing
# about the order. On the left, the estimates lie between −0.03 and 0.02 nats, more than half of them below zero, although
# every removal costs something (the dashed line). Their order is only partly right (0.51). They are not exactly zero, since
# the text is held out and training is not at its minimum.
# On the right, the mean of both slopes is the trapezoid rule. **Straight-through gates measure a mean that leans to the open
# end**: in some passes noise shuts the gate, and the slope is taken at 0. (At this course's start, `log_alpha` 2 and `beta` ⅓,
# 38 % of the mean of $\partial g/\partial\,\mathtt{log\_alpha}$ comes from draws with $g<\frac12$, at the shut end; with a
# smaller `beta` it is nearer to one half.) So gates learn what a head is worth
# although the slope of the trained model does not show it.
#
# ### Costs do not add up
#
# **Before you look:** close the heads one after the other, the cheapest first. Will each cost what it cost alone?

# %% jupyter={"source_hidden": true}
# The cost of closing the next head, against its cost alone: the more heads are closed, the more the next one costs
mask, losses = all_open(bool), [whole]
for k in order:
    mask.ravel()[k] = False
    losses.append(loss_with(mask))
figure, ax = plt.subplots(figsize=(7, 3))
closed = np.arange(1, L * H + 1)
ax.semilogy(
    closed, np.diff(losses), "o-", color=BLUE, markersize=4, label="closed after all cheaper heads"
)
ax.semilogy(
    closed, removal.ravel()[order], "s--", color=VERMILION, markersize=4, label="closed alone"
)
ax.axhline(0.1, color="black", linewidth=0.8, linestyle=":")
ax.text(0.2, 0.11, "lam = 0.1", fontsize=9)
ax.set(xlabel="number of the head, cheapest first", ylabel="cost, nats per token", ylim=(0.002, 2))
ax.set_title("The more heads are closed, the more the next one costs")
ax.legend(frameon=False, loc="upper left")
plt.show()

print(
    f"median cost of one head {np.median(removal):.3f} nats; alone, {(removal > 0.1).sum()} of 32 cost more than 0.1"
)
print(
    f"the 32 single costs add up to {removal.sum():.1f} nats; closing all heads costs {losses[-1] - whole:.1f} nats"
)
assert losses[-1] - whole > 4 * removal.sum()

# %% [markdown]
# The heads that stay are worth more as others close. Closed alone, hardly any head costs 0.1 nats. With half of the heads
# closed, nearly every further head costs more than 0.1. So costs that were measured once do not say how many heads will
# stay. Price, steps and step size decide together, as [chapter 06](06_training_with_gates.ipynb) measures.
#
# ## Recap
#
# - L0, the expected number of open gates, pushes every `log_alpha` down by $\mathtt{lam}\cdot p(1-p)$; the task pushes up.
#   `lam` is a price in nats per token, and near the price the initial value decides which force wins.
# - A gate's gradient has two factors: what the head changes in a block's output, exactly, and how much the loss minds that
#   change. It is their product, summed over both blocks.
# - This gradient is small at the open gates of a trained model, and a poor guide to what a head is worth. Gates that noise
#   shuts in some passes show the worth, which rises as other heads close.
#
# [Assignment A3](assignments/README.md) goes with this chapter. Code: [`ops/l0.py`](../tinyprune/ops/l0.py),
# [`ops/head_difference.py`](../tinyprune/ops/head_difference.py),
# [`method/gates.py`](../tinyprune/method/gates.py).
#
# ## Questions
#
# 1. Gates $g_1$ and $g_2$ sit in the same layer. Is $y$ affine in both together? And if they sit in different layers?
#
# <details><summary>Answer</summary>
#
# In the same layer, yes: $y = y(0,0)+g_1\Delta_1+g_2\Delta_2$. In different layers, no: $g_1$ changes the input of the
# upper layer and with it $o_2$, so $\Delta_2$ depends on $g_1$.
#
# </details>
#
# 2. You double the batch size and the segment length. Must `lam` change?
#
# <details><summary>Answer</summary>
#
# No. Cross-entropy is a mean over tokens, and L0 does not depend on the batch.
#
# </details>
#
# 3. Somebody reports "sparsity 0.4 at lam = 0.02". What do you ask?
#
# <details><summary>Answer</summary>
#
# Whether 0.4 of the heads are open or shut, and of how many; whether L0 is a sum or a mean; whether the loss is in nats or
# bits, per word or per character; how many steps; and how many heads were open in evaluation.
#
# </details>
#
# **Next:** [06 training with gates](06_training_with_gates.ipynb), where the two forces act for hundreds of steps.

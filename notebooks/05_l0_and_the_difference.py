# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · The L0 loss, and the difference that a head makes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/05_l0_and_the_difference.ipynb)
# &nbsp; ← [04 the Hard-Concrete gate](04_hard_concrete_gate.ipynb) · [all chapters](README.md) · [06 training with gates](06_training_with_gates.ipynb) →
#
# **After this chapter you can** say what closes a gate and what holds it open, in the same unit; prove that a gate's
# gradient is exactly the output with its head minus the output without it, weighted by the loss's gradient and summed;
# and explain why that exact number is still a bad estimate of the cost of removing the head.
#
# **You need** chapters [02](02_attention_by_hand.ipynb) and [04](04_hard_concrete_gate.ipynb). It takes forty minutes
# to read and less than a minute to run, a little more if no earlier chapter has trained the baseline.

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

import matplotlib.pyplot as plt
import numpy as np

from tinyprune import GateConfig, Transformer, add_gates, assert_gradients, get_backend, ops
from tinyprune.data import Segments
from tinyprune.experiments.results import read_csv
from tinyprune.experiments.studies.tradeoff import rank_correlation
from tinyprune.model.feedforward import feedforward_block_backward, feedforward_block_forward
from tinyprune.model.gating import output_scaling
from tinyprune.model.layers import attention_block_backward, attention_block_forward
from tinyprune.model.norms import norm_backward
from tinyprune.model.parameters import layer_parameters
from tinyprune.model.vocabulary import predict_backward
from tinyprune.notebook import baseline_run, results, show_source, use_style
from tinyprune.ops.layerwise_error import error_of
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, VERMILION
from tinyprune.pruning.gates import GateObjective, gated_outputs
from tinyprune.pruning.importance import leave_one_out, output_difference, with_heads
from tinyprune.pruning.importance.reading import read

use_style()
rng = np.random.default_rng(0)
PAPER = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}

# %% [markdown]
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
# by the formula of [chapter 04](04_hard_concrete_gate.ipynb), section 3. **It is a sum over all heads of all layers.**
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


def mean_backward(dout, cache):
    """Compute a planted error: the gradient of the mean over heads."""
    return ops.l0_backward(dout, cache) / cache[0].size


try:
    assert_gradients(lambda x: ops.l0_forward(x, **PAPER), mean_backward, log_alpha, name="l0")
except AssertionError as error:
    print(error)
else:
    raise AssertionError("the planted bug was not found")

# %% [markdown]
# ### lam does not carry over
#
# The loss of gate training is `cross-entropy + lam · L0`. What is `lam`? Cross-entropy is a mean over tokens, in nats.
# So `lam` is a **price: the nats per token that one open head has to be worth.** The same number means something else
# if L0 is not the sum:

# %%
H, L, lam = 8, 4, 0.1
print(f"{'L0 is the':36}  nats that lam = {lam} asks  lam for {lam} nats")
for convention, divisor in (
    ("sum over all heads (paper, package)", 1),
    ("mean over layers of sums (Voita 2019)", L),
    ("mean over all heads", L * H),
):
    print(f"{convention:37} {lam / divisor:21.4f}  {lam * divisor:16.1f}")

# %% [markdown]
# Even with the same convention the value of a head changes: with 128 heads each is worth less than with 32, and a nat
# per word is not a nat per character. The paper's `lam` is between 0.01 and 0.02 for 128 heads and words. Our 32 heads,
# which read characters, get 0.1; in the tour that closed about a third of them. So always report how many heads stayed
# open.
#
# ## 2 · Where the forces push
#
# Suppose a head is worth $w$ nats: without it the loss is $w$ higher. Two forces act on its `log_alpha`. L0 pushes down
# by $\mathtt{lam}\cdot p(1-p)$ with $p=\mathtt{p\_open}$. The task pushes up by the mean gradient through the
# straight-through gate. For the task we try two shapes of loss, a straight line $-w\,g$ and a parabola $w\,(1-g)^2$
# with its minimum at the open gate; in both, closing costs $w$. Section 4 shows which of the two resembles a real
# model.

# %%
log_alpha = np.linspace(-7, 7, 141)
noise = np.arange(
    -15, 15, 0.1 / 32
)  # a fine grid in place of draws, each point with its probability:
u = ops.sigmoid(noise)
weights = (
    u * (1 - u) * (0.1 / 32)
)  # the density of the logistic distribution, times the grid's spacing


def push_up(log_alpha, slope):
    """Return the mean gradient of -loss with respect to each log_alpha, through straight-through gates."""
    a, uu = np.broadcast_arrays(log_alpha[:, None], u)  # (n, 9600)
    gate, cache = ops.hard_concrete_forward(a, uu, **PAPER, hard=True)
    return -ops.hard_concrete_backward(slope(gate), cache) @ weights  # (n,)


SHAPES = {
    "straight": lambda g: -np.ones_like(g),  # d/dg of −g
    "parabola": lambda g: -2 * (1 - g),  # d/dg of (1 − g)²
}
up = {name: push_up(log_alpha, slope) for name, slope in SHAPES.items()}  # of a head worth 1 nat
p = ops.p_open(log_alpha, **PAPER)
down = ops.l0_backward(1.0, (p,))  # of lam = 1
np.testing.assert_allclose(down, p * (1 - p), rtol=1e-14)

figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.1))
axes[0].plot(log_alpha, down, color=VERMILION, linewidth=2, label="L0: p(1 − p)")
axes[0].plot(log_alpha, up["straight"], color=BLUE, linestyle="--", label="task, straight loss")
axes[0].plot(
    log_alpha, up["parabola"], color="black", linestyle=":", linewidth=2, label="task, parabola"
)
axes[0].set(
    title="Two forces, for lam = w = 1",
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
    title="Worth w / lam at which they balance",
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
        a, path = start, [start]
        for _ in range(160):
            net = np.interp(a, log_alpha, worth * up["parabola"] - down)
            a += 0.5 * net
            path.append(a)
        axes[2].plot(
            path,
            color=colour,
            linestyle=style,
            linewidth=1.2,
            label=f"{worth} lam" if start == 2 else None,
        )
axes[2].axhline(0, color="black", linewidth=0.6)
axes[2].set(title="Where gates go (parabola)", xlabel="step", ylabel="log_alpha", ylim=(-6.5, 6.5))
axes[2].legend(
    title="w =",
    frameon=False,
    fontsize=8,
    loc="upper left",
    ncols=3,
    columnspacing=0.8,
    handlelength=1.4,
)
plt.show()

for name in SHAPES:
    balance = down / up[name]
    assert (np.diff(balance) < 0).all()  # falls everywhere, see the text
    print(
        f"{name:9} balance at log_alpha 7: w = {balance[-1]:.2f} lam, at 2: {np.interp(2, log_alpha, balance):.2f} lam, at −7: {balance[0]:.2f} lam"
    )

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
# ## 3 · The difference, exactly
#
# The method is sometimes summarised in one sentence: *the loss is based on the difference between the layer's output
# with and without a head.* Yet no such difference appears in the formula `cross-entropy + lam · L0`. It is there all
# the same, in the gradient. In the output of the attention block
#
# $$ y = x + \mathtt{bo} + \sum_h g_h\, c\; o^h\, \mathtt{Wo}_h $$
#
# with $y$ (B, T, D), $o^h$ (B, T, Dh) and $\mathtt{Wo}_h$ (Dh, D),
#
# the gate multiplies the head's output $o^h$, which depends on queries, keys and values, but on no gate of this block.
# ($c$ is the output scaling of [chapter 06](06_training_with_gates.ipynb), a plain number, 1 for now.) So $y$ is
# **affine** in every gate: a constant plus $g_h$ times something. That something is the change of $y$ when $g_h$ goes
# from 0 to 1,
#
# $$ \Delta^y_h = y(g_h{=}1) - y(g_h{=}0) = c\;o^h\,\mathtt{Wo}_h, \qquad y(g_h) = y(g_h{=}0) + g_h\,\Delta^y_h . \tag{1} $$
#
# In the model of these notebooks the layer goes on. Each head also owns a part of a feed-forward block
# ([chapter 03](03_all_attention.ipynb), section 10), which reads $y$. With its N hidden units $r^h$ (B, T, N) and their
# values $\mathtt{pv}_h$ (N, D), the layer's output is
#
# $$ z = y + \mathtt{net.bo} + \sum_h g_h\, c\; r^h\,\mathtt{pv}_h, \qquad \Delta^z_h = c\; r^h\,\mathtt{pv}_h . $$
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
show_source(ops.head_difference)

# %% [markdown]
# The backward pass does not compute it like that. `attention_backward` already has `do`, the gradient with respect to
# the head outputs, and sums `do * o`, see [chapter 02](02_attention_by_hand.ipynb). That is the first sum of (2) with
# the product regrouped: $\langle \mathtt{dy},\,o\,\mathtt{Wo}_h\rangle = \langle \mathtt{dy}\,\mathtt{Wo}_h^\top,\,o\rangle
# = \langle\mathtt{do},\,o\rangle$. (`head_networks_backward` regroups the second: $\langle\mathtt{dz},\,r\,\mathtt{pv}_h\rangle
# = \langle r^\top\mathtt{dz},\,\mathtt{pv}_h\rangle$.) So there are two independent ways to compute this number, and a
# third way is to measure it. We take a trained model, in float64, and real text.

# %%
run = baseline_run()
model, text = run.load("train").model, run.text
config = model.config
L, H = config.L, config.H
exact = Transformer(
    config,
    {name: value.astype(np.float64) for name, value in model.params.items()},
    ops=get_backend("numpy"),
)
print(
    f"{L} layers of {H} heads, {sum(x.size for x in model.params.values()):,} parameters, {text.name}: {len(text.valid):,} characters held out"
)

segments = Segments(text.valid, B=4, T=config.T)
_, memory, _ = exact.loss(*segments.batch(0)[:2])  # one segment to fill the memory
ids, targets, _ = segments.batch(1)  # (B, T) each


def loss_and_outputs(model, gates, ids, targets, memory):
    """Run the model's own blocks with given gates (L, H); return the loss and every layer's y and z (B, T, D)."""
    ops, p = model.ops, model.params
    x = model.embed(ids)[0].astype(np.result_type(p["R"], gates.dtype))  # (B, T, D)
    outputs = []
    for i in range(model.config.L):
        layer = layer_parameters(p, i)
        y, _, _ = attention_block_forward(
            x, memory[i], layer, p["R"], gates[i], 1.0, model.config, ops, None
        )
        x, _ = feedforward_block_forward(y, layer, gates[i], 1.0, model.config, ops, None)
        outputs.append((y, x))  # x is now this layer's z
    h, _ = ops.layernorm_forward(x, p["ln.scale"], p["ln.bias"])
    logits, _ = ops.linear_forward(h, p["embedding"].T, p["out_bias"])
    return ops.cross_entropy_forward(logits, targets)[0], outputs


gated = with_heads(exact)  # all gates at 1
loss, _, cache = gated.loss(ids, targets, memory)
assert np.isclose(
    loss, loss_and_outputs(exact, np.ones((L, H)), ids, targets, memory)[0], rtol=1e-13
)

# %% [markdown]
# First check (1) in both blocks: vary one gate from −0.5 to 1.5 and compare the whole output with the straight line. For
# the second block, y is held as it is with all heads. The last printed line does not hold it: there the gate acts in
# both blocks, and the layer's output leaves the line.

# %%
layer, head = 1, 3
own = layer_parameters(exact.params, layer)
turned = np.linspace(-0.5, 1.5, 9)
y_full = loss_and_outputs(exact, np.ones((L, H)), ids, targets, memory)[1][layer][0]
ys, zs, zs_both = [], [], []
for g in turned:
    gates = np.ones((L, H))
    gates[layer, head] = g
    y, z = loss_and_outputs(exact, gates, ids, targets, memory)[1][layer]
    ys.append(y)
    zs.append(feedforward_block_forward(y_full, own, gates[layer], 1.0, config, exact.ops, None)[0])
    zs_both.append(z)
ys, zs, zs_both = np.array(ys), np.array(zs), np.array(zs_both)  # (9, B, T, D) each
Delta_y, Delta_z = (
    ops.head_difference(outputs, matrix)  # (H, B, T, D)
    for outputs, matrix, _ in gated_outputs(gated, cache, layer)
)


def deviation(values, Delta):
    """Return the largest distance from the straight line through the values at g = 0, relative to their size."""
    line = values[2] + turned[:, None, None, None] * Delta[head]  # turned[2] is 0
    return np.abs(values - line).max() / np.abs(values).max()


print(f"attention block {deviation(ys, Delta_y):.1e}, networks {deviation(zs, Delta_z):.1e}")
print(f"both blocks together {deviation(zs_both, Delta_y + Delta_z):.1e}")
assert max(deviation(ys, Delta_y), deviation(zs, Delta_z)) < 1e-12
assert deviation(zs_both, Delta_y + Delta_z) > 1e-3

# %% [markdown]
# Then check (2), for all layers and heads, in three ways. To get the loss's gradient with respect to every y and z, the
# cell runs the model's backward pass by hand, block by block. The third way is the complex step of
# [chapter 01](01_backprop_by_hand.ipynb), one forward pass per gate.

# %%
p = gated.params


def sums_of_differences(model, cache):
    """Return identity (2) for every gate, (L, H, 2): the sum of the attention block and that of the networks."""
    found = np.zeros((L, H, 2))
    dh, _ = predict_backward(1.0, cache["softmax"], config, ops)  # (B, T, D)
    dz, _ = norm_backward(dh, cache["ln"], "ln", ops)  # (B, T, D), of the last layer
    for i in reversed(range(L)):
        dy, _, _ = feedforward_block_backward(dz, cache["ffn"][i], ops)  # through z to y
        blocks = zip((dy, dz), gated_outputs(model, cache, i), strict=True)
        for k, (d, (outputs, matrix, _)) in enumerate(blocks):
            Delta = ops.head_difference(outputs, matrix, cache["gates"][i].scale)  # (H, B, T, D)
            found[i, :, k] = (d * Delta).sum((1, 2, 3))
        dz = attention_block_backward(dy, cache["layers"][i], ops)[0]  # of the layer below
    return found


of_blocks = sums_of_differences(gated, cache)
by_difference = of_blocks.sum(-1)  # (L, H)

grads, by_backward = gated.backward_with_gates(1.0, cache)
by_backward = np.array(by_backward)  # (L, H)

by_complex_step = np.zeros((L, H))
for i, h in np.ndindex(L, H):
    gates = np.ones((L, H), complex)
    gates[i, h] += 1e-20j
    by_complex_step[i, h] = loss_and_outputs(exact, gates, ids, targets, memory)[0].imag / 1e-20

for name, other in (("the backward pass", by_backward), ("complex step", by_complex_step)):
    error = np.abs(by_difference - other).max() / np.abs(other).max()
    print(f"the two sums against {name:18}: largest error {error:.1e} of the largest gradient")
    assert error < 1e-12
error = np.abs(of_blocks[..., 0] - by_backward).max() / np.abs(by_backward).max()
print(f"the sum of the attention block alone: largest error {error:.1e}")
assert error > 0.01

# %% [markdown]
# All three agree up to rounding, in every layer and head, and one of the two sums alone does not. In training, gates are
# noisy and $c$ is not 1; (2) holds there as well, with $c$ in $\Delta_h$. The next cell checks this in one noisy pass.
# What a gradient does *not* see is that $c$ itself changes when one more head closes: no gradient goes through $c$, just
# as none goes through a dropout mask.

# %%
noisy = Transformer(
    config, add_gates(exact.params, config.heads, GateConfig()), GateConfig(), exact.ops
)
_, _, noisy_cache = noisy.loss(ids, targets, memory, np.random.default_rng(5), all_heads=True)
_, dgates = noisy.backward_with_gates(1.0, noisy_cache)
np.testing.assert_allclose(
    sums_of_differences(noisy, noisy_cache).sum(-1), dgates, rtol=1e-9, atol=1e-14
)
for i, own in enumerate(noisy_cache["gates"]):
    print(
        f"layer {i}: {int((own.values != 0).sum())} of {H} heads open in this pass, c = {own.scale:.3f}, identity holds"
    )

# %% [markdown]
# ## 4 · What an exact slope does not tell you
#
# The output of a block is a straight line in $g_h$. The *loss* is not: between a block and the loss are further blocks,
# LayerNorms and a softmax. So (2) is the exact slope at the gate's current value, and a slope is not the difference in
# loss between $g_h=1$ and $g_h=0$. Here is the whole curve for three heads of the trained model:

# %%
held_out = text.valid[: 16 * config.T * 5 + 1]  # 5 segments of 16 streams
removal = np.array(
    leave_one_out(model, held_out, rng)
)  # (L, H): loss without the head − loss with all, nats
order = np.argsort(removal, axis=None)
chosen = {
    name: divmod(int(order[k]), H)
    for name, k in (("dearest", -1), ("7th dearest", -7), ("median", 15))
}


pieces, carried = [], [None] * L
for step in range(5):
    ids16, targets16, _ = Segments(held_out, 16, config.T).batch(step)
    pieces.append((ids16, targets16, carried))
    _, carried, _ = model.loss(ids16, targets16, None if step == 0 else carried)


def mean_loss_at(gates):
    """Return the mean loss over the held-out pieces, with the compiled kernels and the whole model's memory."""
    return float(
        np.mean([loss_and_outputs(model, gates.astype(np.float32), *piece)[0] for piece in pieces])
    )


def mean_slopes(mask):
    """Return the mean of ∂loss/∂g over the same text, (L, H), with the heads of `mask` open."""
    found = []
    for _, cache in read(
        with_heads(model, mask), held_out, all_heads=True
    ):  # closed heads have slopes, too
        found.append(with_heads(model, mask).backward_with_gates(1.0, cache)[1])
    return np.mean(found, 0)


slope_open = mean_slopes(np.ones((L, H), bool))  # (L, H), at g_h = 1
turned = np.linspace(-0.25, 1.25, 13)
figure, axes = plt.subplots(1, 4, figsize=(9.5, 3.0))
spans = np.abs(ys[-1] - ys[0])  # (B, T, D)
for d, colour, style in zip(
    np.argsort(-spans.max((0, 1)))[[0, 5, 30]], (BLUE, VERMILION, "black"), ("-o", "-s", "-x")
):
    b, t = np.unravel_index(spans[..., d].argmax(), spans.shape[:2])
    axes[0].plot(
        np.linspace(-0.5, 1.5, 9),
        ys[:, b, t, d],
        style,
        color=colour,
        label=f"feature {d}",
        markersize=4,
    )
axes[0].set(
    title=f"y, layer {layer} head {head}:\nstraight lines",
    xlabel="gate g",
    ylabel="y at one position",
)
axes[0].legend(frameon=False, fontsize=7)
for ax, (name, (i, h)) in zip(axes[1:], chosen.items()):
    losses = []
    for g in turned:
        gates = np.ones((L, H))
        gates[i, h] = g
        losses.append(mean_loss_at(gates))
    full = mean_loss_at(np.ones((L, H)))
    ax.plot(turned, losses, color=BLUE, marker="o", markersize=4, label="loss")
    ax.plot(
        turned,
        full + slope_open[i, h] * (turned - 1),
        color=VERMILION,
        linestyle="--",
        label="slope at g = 1",
    )
    ax.plot(1, full, "s", color="black", markersize=6)
    ax.set(
        title=f"loss, {name}:\nlayer {i} head {h}",
        xlabel="gate g",
        ylabel="nats per token" if ax is axes[1] else "",
    )
    closed = losses[2]  # g = 0
    print(
        f"{name:12} layer {i} head {h}: removal costs {closed - full:+.4f} nats; the slope at 1 promises {-slope_open[i, h]:+.4f}"
    )
axes[1].legend(frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The red line, the slope at the open gate, promises less than a third of what the removal costs, because the blue curve
# bends upwards to the left. Section 2's parabola was a good guess. This is not a peculiarity of these heads. There is a
# second way to read the same gradient. Multiplying a head's rows of `Wo` and its values `pv` by $g$ has the same effect
# as the gate, so moving the gate from 1 scales both:
#
# $$ \frac{\partial\,\mathtt{loss}}{\partial g_h}\Big|_{g_h=1} = \big\langle \mathtt{dWo}_h,\; \mathtt{Wo}_h\big\rangle
# + \big\langle \mathtt{dpv}_h,\; \mathtt{pv}_h\big\rangle . $$
#
# Training has spent hundreds of steps on making $\mathtt{dWo}$ zero, on average. In a model at its minimum **every
# gate's mean slope at $g=1$ is zero**, however much the head matters (on its training text; on held-out text it is
# small). The cost of a removal lies entirely in the curvature. The next cell checks the formula, and then compares
# three estimates with the truth for all 32 heads.

# %%
for i in range(L):
    scaled = sum(
        (p[f"layers.{i}.{name}"] * grads[f"layers.{i}.{name}"]).reshape(H, -1).sum(1)
        for name in ("Wo", "net.pv")
    )  # (H,)
    np.testing.assert_allclose(scaled, by_backward[i], rtol=1e-9, atol=1e-14)


slope_closed = np.zeros((L, H))  # at g_h = 0, all other heads open
for i, h in np.ndindex(L, H):
    mask = np.ones((L, H), bool)
    mask[i, h] = False
    slope_closed[i, h] = mean_slopes(mask)[i, h]
trapezoid = -(slope_open + slope_closed) / 2
lengths = np.array(output_difference(model, held_out, rng))  # (L, H), mean ‖Δ_h‖

figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.3))
panels = (
    ("first order: −slope at g = 1", -slope_open, "nats per token"),
    ("mean of the slopes at 0 and 1", trapezoid, ""),
    ("length of the difference ‖Δ‖", lengths, "mean over positions"),
)
for ax, (title, values, label) in zip(axes, panels):
    for i, marker in enumerate("osD^"):
        ax.plot(
            removal[i],
            values[i],
            marker,
            color=HEAD_COLOURS[i],
            markersize=5,
            label=f"layer {i}",
            markerfacecolor="none",
        )
    ax.set(xscale="log", xlabel="true difference in loss, nats", ylabel=label)
    ax.set_title(
        f"{title}\nrank correlation {rank_correlation(values.ravel(), removal.ravel()):.2f}",
        fontsize=9,
    )
    if values is not lengths:
        ends = np.array([removal[removal > 0].min(), removal.max()])
        ends = np.geomspace(*ends, 100)
        ax.plot(ends, ends, color=GREY, linewidth=0.8, linestyle="--")
axes[1].set_yscale("log")
axes[0].legend(frameon=False, fontsize=8, loc="upper left")
plt.show()

print(
    f"mean over heads: removal costs {removal.mean():.3f} nats, |slope at 1| {np.abs(slope_open).mean():.3f}, trapezoid {trapezoid.mean():.3f}"
)
within = [rank_correlation(lengths[i], removal[i]) for i in range(L)]
print(f"‖Δ‖: rank correlation within each layer {', '.join(f'{value:+.2f}' for value in within)}")
assert np.abs(slope_open).mean() < removal.mean() / 2
assert rank_correlation(trapezoid.ravel(), removal.ravel()) > 0.8

# %% [markdown]
# - **Left.** The first-order estimate $-\partial\,\mathtt{loss}/\partial g$ at the open gate lies near zero for every
#   head, even below it for many, and for the heads that matter far below the dashed line of correct estimates. It is a
#   poor estimate even for ranking, compared with the one in the middle. This is why Michel et al. (2019) take the
#   absolute value of each example *before* the mean: the sizes survive, though the signs would cancel
#   ([chapter 08](08_fine_tuning_and_trade_off.ipynb) compares such scores).
# - **Middle.** The mean of the two slopes, at the open and at the shut gate, is close to the truth. This is the
#   trapezoid rule of [chapter 04](04_hard_concrete_gate.ipynb), section 6, and therefore, up to the effect of the
#   temperature, what **straight-through gates** measure: about half of their informative draws take the slope at 1, the
#   others at 0. They learn what a head is worth although the slope of the trained model does not show it. Most
#   estimates are slightly too large, because the curves are somewhat steeper at the shut gate than parabolas.
# - **Right.** The length of $\Delta_h$ (here of both blocks' differences together) needs no gradient at all, and it is no
#   substitute for one. It ranks the heads of the first layer well, but not those of the others; and the heads of the
#   last layer, which add as much as those of the first, cost much less. What a head adds is one question, and what the
#   layers above do with it is another.
#
# ## 5 · Two objectives
#
# **`task`** is the paper's: `cross-entropy + lam · L0`. The difference appears only in the gradient, weighted by the
# loss's gradient.
#
# **`layerwise`** takes the sentence of section 3 literally. Each block compares its output with gated heads with its
# output with all heads, on the same input, and the layer's gates also minimise the relative squared error, here of the
# attention block,
#
# $$ \mathtt{error} = \frac{\|y_\mathrm{gated}-y_\mathrm{full}\|^2}{\|y_\mathrm{full}-x\|^2}. $$
#
# added to that of the networks, which is the same with $z$ for $y$ and $y$ for $x$.
#
# By (1) both differences are sums of $\Delta$s (now without $c$, which is written out):
# $y_\mathrm{gated}-y_\mathrm{full} = \sum_h e_h\Delta_h$ with $e_h = c\,g_h-1$, and
# $y_\mathrm{full}-x=\sum_h\Delta_h+\mathtt{bo}$. Expand the square. All that is needed from the large arrays is the
# matrix of inner products $G_{hh'} = \langle\Delta_h,\Delta_{h'}\rangle$, and the number
# $\mathtt{full}=\|y_\mathrm{full}-x\|^2$:
#
# $$ \mathtt{error} = \frac{e^\top G\,e}{\mathtt{full}}, \qquad \frac{\partial\,\mathtt{error}}{\partial e} = \frac{2\,G\,e}{\mathtt{full}}, \qquad
# \frac{\partial\,\mathtt{error}}{\partial g} = c\cdot\frac{2\,G\,e}{\mathtt{full}}, $$
#
# the last two because $G$ is symmetric and $e=c\,g-1$. The diagonal of $G$ holds $\|\Delta_h\|^2$; the entries off the
# diagonal say whether heads point in the same direction. No backward pass through the model is needed.

# %%
show_source(error_of, ops.layerwise_error_backward, docstring=False)

# %%
i = 2
(cached, Wo, bo), networks = gated_outputs(gated, cache, i)  # of the two blocks; (B, T, H, Dh) …
gate = np.array([1, 1, 0, 1, 0.4, 1, 0, 1.0])  # (H,)
c = 8 / 6
error, error_cache = ops.layerwise_error_forward(gate, cached, Wo, bo, c)
error_networks, _ = ops.layerwise_error_forward(gate, *networks, c)

# directly: each block's output with these gates and with all heads, on the block's own input
_, outputs = loss_and_outputs(exact, np.ones((L, H)), ids, targets, memory)
x, y = outputs[i - 1][1], outputs[i][0]  # (B, T, D), z of the layer below and y of this one
own = layer_parameters(exact.params, i)
for name, block, found, before in (
    ("attention", lambda g, c: attention_block_forward(x, memory[i], own, p["R"], g, c, config, ops, None), error, x),
    ("networks", lambda g, c: feedforward_block_forward(y, own, g, c, config, ops, None), error_networks, y),
):  # fmt: skip
    with_gates, with_all = block(gate, c)[0], block(np.ones(H), 1.0)[0]
    direct = ((with_gates - with_all) ** 2).sum() / ((with_all - before) ** 2).sum()
    print(f"{name:9}  by G {found:.12f}, directly {direct:.12f}")
    assert np.isclose(found, direct, rtol=1e-11)


def forward(gate):
    """Compute the layer-wise error as a function of the gates."""
    return ops.layerwise_error_forward(gate, cached, Wo, bo, c)


def scaleless_backward(dout, cache):
    """Compute a planted error that forgets that e contains c · g."""
    return ops.layerwise_error_backward(dout, cache) / cache[3]


assert_gradients(forward, ops.layerwise_error_backward, gate)
try:
    assert_gradients(
        forward, scaleless_backward, gate, name="layerwise_error", argument_names=["gate"]
    )
except AssertionError as found:
    print(found)
else:
    raise AssertionError("the planted bug was not found")

nothing, whole_cache = ops.layerwise_error_forward(np.ones(H), cached, Wo, bo)
print(
    f"all heads open: error {nothing:g}, gradient {ops.layerwise_error_backward(1.0, whole_cache)}"
)
assert nothing == 0 and not ops.layerwise_error_backward(1.0, whole_cache).any()

# %% [markdown]
# Note the last line. At the full model the layer-wise error is at its minimum, zero, and so is its gradient. It takes
# effect once noise has shut a head, just like the task's gradient.
#
# ### One step of each
#
# The training loop of [the next chapter](06_training_with_gates.ipynb) calls `GateObjective` in every step. It returns
# losses, memory and gradients. (Two branches are for later: the controller of chapter 06, and top-k gates, which
# chapter 08 compares.)

# %%
show_source(GateObjective.__call__, GateObjective.add_layerwise_gradients, docstring=False)

# %%
lam = run.config.gate.lam
found = {}
for objective in ("task", "layerwise"):
    gate_config = dataclasses.replace(run.config.gate, objective=objective)
    with_gates = Transformer(
        config, add_gates(exact.params, config.heads, gate_config), gate_config, exact.ops
    )
    step = GateObjective(gate_config, warmup=100, heads_total=L * H)
    losses, _, step_grads = step(
        with_gates, ids, targets, memory, np.random.default_rng(5), step=50
    )  # half of the warm-up
    found[objective] = (
        losses,
        np.array([step_grads[f"layers.{i}.log_alpha"] for i in range(L)]),
        step_grads,
    )
    print(f"{objective:10}", ", ".join(f"{name} {value:.4f}" for name, value in losses.items()))

# task = what comes back through the gates + lam · p(1 − p); the same noise gives the same pass
_, _, pass_cache = with_gates.loss(ids, targets, memory, np.random.default_rng(5), all_heads=True)
through = with_gates.backward(1.0, pass_cache)
through = np.array([through[f"layers.{i}.log_alpha"] for i in range(L)])  # (L, H)
open_now = ops.p_open(np.full((L, H), 2.0), **PAPER)
losses, task_gradient, task_grads = found["task"]
np.testing.assert_allclose(
    task_gradient, through + losses["lam"] * open_now * (1 - open_now), rtol=1e-9, atol=1e-15
)
assert np.isclose(losses["l0"], open_now.sum())

# only the gates learn from the layer-wise error: all other gradients are the same
_, layer_gradient, layer_grads = found["layerwise"]
assert (layer_gradient != task_gradient).any()
for name in model.params:
    np.testing.assert_allclose(layer_grads[name], task_grads[name], rtol=1e-7, atol=1e-12)
print(
    f"of 32 gates, {(through != 0).sum()} got a gradient through this throw; L0 pushes all of them by {losses['lam'] * open_now[0, 0] * (1 - open_now[0, 0]):.5f}"
)


# and the whole task objective, embedding to L0, against the complex step, through the straight-through gates
def objective_forward(*log_alpha):
    """Compute the loss of the task objective as a function of every layer's log_alpha, for fixed noise."""
    params = exact.params | {f"layers.{i}.log_alpha": a for i, a in enumerate(log_alpha)}
    params["embedding"] = params["embedding"].astype(
        np.result_type(*log_alpha)
    )  # all that follows is complex, too
    trial = Transformer(config, params, run.config.gate, exact.ops)
    loss, _, cache = trial.loss(
        ids[:1], targets[:1], [m[:1] for m in memory], np.random.default_rng(5)
    )
    l0, l0_cache = ops.l0_forward(np.concatenate(log_alpha), **PAPER)
    return loss + lam * l0, (trial, cache, l0_cache)


def objective_backward(dout, caches):
    """Compute its gradients, through the model and of L0."""
    trial, cache, l0_cache = caches
    grads = trial.backward(dout, cache)
    from_l0 = np.split(ops.l0_backward(dout * lam, l0_cache), L)
    return tuple(grads[f"layers.{i}.log_alpha"] + from_l0[i] for i in range(L))


assert_gradients(
    objective_forward, objective_backward, *np.random.default_rng(3).normal(0, 0.5, (L, H))
)
print("cross-entropy + lam · L0: the gradient of every log_alpha agrees with the complex step")

# %% [markdown]
# ### Which heads each would close first
#
# All gates are at `log_alpha` = 2, so L0 pushes all of them down equally. Which of them close first depends on the
# force that holds them open: the mean of $-\partial\,\mathtt{loss}/\partial\,\mathtt{log\_alpha}$ over many noisy
# passes, of the task or of the layer-wise error. For the task, the passes cannot be avoided. For the layer-wise error,
# $G$ of the trained model's heads is enough, and thousands of draws cost nothing.

# %%
start = Transformer(
    config, add_gates(model.params, config.heads, run.config.gate), run.config.gate, model.ops
)
few = Segments(text.train, 4, config.T)
noise_rng = np.random.default_rng(7)
samples, carried = [], None
for step in range(250):
    ids4, targets4, fresh = few.batch(step)
    _, carried, step_cache = start.loss(ids4, targets4, None if fresh else carried, noise_rng)
    step_grads = start.backward(1.0, step_cache)
    samples.append([-step_grads[f"layers.{i}.log_alpha"] for i in range(L)])
samples = np.array(samples)  # (250, L, H)
hold_task = samples.mean(0)  # (L, H)

hold_layer = np.zeros((L, H))
THROWS = 3000
for i in range(L):
    products = []  # of both blocks
    for outputs, matrix, bias in gated_outputs(gated, cache, i):
        rows = outputs.reshape(-1, len(matrix))  # (B·T, H·Dh) or (B·T, H·N)
        products.append((rows.T @ rows, matrix @ matrix.T, rows.sum(0) @ matrix, bias, len(rows)))
    for _ in range(THROWS):
        u = ops.draw_noise(H, noise_rng, np.float64)
        gate, gate_cache = ops.hard_concrete_forward(np.full(H, 2.0), u, **PAPER, hard=True)
        c = output_scaling(H, int(gate.sum()))
        dgate = sum(
            ops.layerwise_error_backward(1.0, error_of(gate, c, *block)[1]) for block in products
        )  # (H,)
        hold_layer[i] -= ops.hard_concrete_backward(dgate, gate_cache) / THROWS

figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.6), width_ratios=[1, 1, 1, 0.8])
for ax, (title, values) in zip(
    axes, {"true difference in loss": removal, "task": hold_task, "layer-wise": hold_layer}.items()
):
    rank = values.ravel().argsort().argsort().reshape(L, H) + 1  # 1 closes first
    ax.imshow(rank, cmap="Blues", vmin=-4, vmax=48, aspect="auto")
    for i, h in np.ndindex(L, H):
        first = rank[i, h] <= 8
        ax.text(
            h,
            i,
            rank[i, h],
            ha="center",
            va="center",
            fontsize=8,
            color=VERMILION if first else "black",
            weight="bold" if first else "normal",
        )
        if first:
            ax.add_patch(
                plt.Rectangle(
                    (h - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor=VERMILION, linewidth=1.2
                )
            )
    ax.set(title=title, xlabel="head", xticks=range(H), yticks=range(L))
    ax.spines[:].set_visible(False)
axes[0].set_ylabel("layer")
for k, (name, values, colour, hatch) in enumerate(
    (
        ("true", removal, GREY, ""),
        ("task", hold_task, BLUE, "//"),
        ("layer-wise", hold_layer, VERMILION, ".."),
    )
):
    share = values.sum(1) / values.sum()
    axes[3].barh(
        np.arange(L) + 0.27 * (k - 1),
        share,
        0.25,
        color=colour,
        hatch=hatch,
        edgecolor="white",
        label=name,
    )
axes[3].invert_yaxis()
axes[3].set(title="share of each layer", xlabel="share of the sum", yticks=range(L), ylabel="layer")
axes[3].set_xlim(0, 0.9)
axes[3].legend(frameon=False, fontsize=8, loc="lower right")
figure.suptitle("In which order heads would close: 1 first; framed, the first eight", fontsize=9)
plt.show()
for name, values in (("task", hold_task), ("layer-wise", hold_layer)):
    print(
        f"{name:10} rank correlation with the true difference {rank_correlation(values.ravel(), removal.ravel()):.2f}, share of layer 0: {values[0].sum() / values.sum():.2f}"
    )
within = [rank_correlation(hold_layer[i], removal[i]) for i in range(L)]
print(
    f"layer-wise rank correlation within each layer {', '.join(f'{value:+.2f}' for value in within)}"
)
print(f"true       share of layer 0: {removal[0].sum() / removal.sum():.2f}")
print(
    f"of the task's forces, {(hold_task > 2 * samples.std(0) / np.sqrt(len(samples))).sum()} of 32 exceed twice their standard error after {len(samples)} steps of 4 × {config.T} characters"
)
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
# The two were compared in full on three seeds, with the same number of heads and of steps. The results of that
# [study](../data/results/README.md) come with the project.

# %%
summary = read_csv(results("tradeoff-pydoc", "summary.csv").read_text())
comparison = read_csv(results("tradeoff-pydoc", "comparison.csv").read_text())
rows = {(r["method"], r["heads_open"]): r for r in summary}
print(
    "bits per character, test split, mean ± standard deviation over seeds\n"
    "heads   task             layer-wise       more than task, seed by seed"
)
for record in comparison:
    if record["method"] == "gates-layerwise":
        n = record["heads_open"]
        a, b = rows["gates", n], rows["gates-layerwise", n]
        print(
            f"{n:5}   {a['bits_per_character']:.3f} ± {a['spread']:.3f}    {b['bits_per_character']:.3f} ± {b['spread']:.3f}    {record['difference']:+.3f} ± {record['spread']:.3f}"
        )


for record in read_csv(results("tradeoff-stdlib", "comparison.csv").read_text()):
    if record["method"] == "gates-layerwise":
        print(
            f"second text, {record['heads_open']} heads: {record['difference']:+.3f} ± {record['spread']:.3f} more than task"
        )

# %%
kept = read_csv(results("tradeoff-pydoc", "results.csv").read_text())
shown = (("gates", "task", BLUE, "-", "o"), ("gates-layerwise", "layer-wise", VERMILION, "--", "s"))
figure, axes = plt.subplots(1, 2, figsize=(8.5, 2.9))
for method, name, colour, style, marker in shown:
    own = [r for r in summary if r["method"] == method]
    axes[0].errorbar(
        [r["heads_open"] for r in own],
        [r["bits_per_character"] for r in own],
        [r["spread"] for r in own],
        color=colour, linestyle=style, marker=marker, markersize=4, capsize=3, label=name,
    )  # fmt: skip
    half = [
        r for r in kept if r["method"] == method and r["heads_open"] == 16 and r["split"] == "test"
    ]
    by_layer = np.array([[int(n) for n in r["heads_by_layer"].split()] for r in half])  # (seeds, L)
    offset = -0.2 if method == "gates" else 0.2
    axes[1].bar(
        np.arange(L) + offset,
        by_layer.mean(0),
        0.36,
        color=colour,
        alpha=0.4,
        hatch="" if offset < 0 else "//",
    )
    for k, seed in enumerate(by_layer):
        axes[1].plot(
            np.arange(L) + offset + 0.08 * (k - 1), seed, marker, color=colour, markersize=4
        )
    print(
        f"{name:10} keeps, of 8 in each layer, at 16 of 32:",
        " ".join(f"{n:.1f}" for n in by_layer.mean(0)),
    )
axes[0].set(
    title="Full study: three seeds, mean and standard deviation",
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

# %% [markdown]
# **It does not.** The layer-wise objective needs more bits than the task's at every number of heads but the smallest,
# by up to 0.035 bits; only at 22 and 16 heads is that more than the spread of three seeds, and at 3 heads, where it is
# ahead, the spread is far larger than the difference. On a second text, the source of Python's library, it is behind by
# more than the spread, as the last two lines of the table say. It keeps nearly the same heads, since it includes the
# task's gradient; the first layer keeps slightly fewer. As a criterion by itself the length of $\Delta_h$ is cheap and
# not bad (the *output difference* of [chapter 08](08_fine_tuning_and_trade_off.ipynb)). As an addition to the task it
# does not help. We found no published system that trains gates this way; this is the result of trying.
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
# with it $o^{h_2}$, so $\Delta_2$ depends on $g_1$, through a softmax. This is one reason why leave-one-out says little
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

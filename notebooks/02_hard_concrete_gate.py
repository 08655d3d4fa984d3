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
# # 02 · The Hard-Concrete gate
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/02_hard_concrete_gate.ipynb)
# &nbsp; ← [01 backprop by hand](01_backprop_by_hand.ipynb) · [all chapters](README.md) · [03 attention by hand](03_attention_by_hand.ipynb) →
#
# **After this chapter you can** build an on-off switch that gradient descent can learn, derive its distribution from one
# formula, and say which of its gradients are exact. At the end your switches decide how far back a small language
# model looks.
#
# **You need** [chapter 01](01_backprop_by_hand.ipynb), probabilities and expectations, and the derivative of the
# sigmoid, $\mathrm{sigmoid}' = \mathrm{sigmoid}\,(1-\mathrm{sigmoid})$. Unfamiliar words are in the
# [glossary](README.md#glossary).

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
# Imports.
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np

from tinyprune import load_text, ops
from tinyprune.config import DataConfig
from tinyprune.notebook import show_source, sliders, use_style, you_are_here, yours
from tinyprune.plots import BLUE, GREY, VERMILION

use_style()
rng = np.random.default_rng(0)
PAPER = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}  # also the package's defaults

# %%
you_are_here("gate", "gates")

# %% [markdown]
# ## 1 · A switch has no gradient
#
# Which parts of a model can go? Give every part a factor, its **gate** $g$, and multiply all that the part adds by $g$. A
# gate of 1 changes nothing. A gate of 0 silences the part, which can then be removed for good
# ([chapter 07](07_removing_heads.ipynb)). A gate of 0.03 saves nothing, since the part is still computed. (The parts of
# later chapters are *attention heads*; those of this chapter are inputs.)
#
# So we want a number that is 0 or 1 and that gradient descent can train. Let `log_alpha` be its parameter. The obvious
# switch $g = \mathbf 1[\mathtt{log\_alpha} \ge 0]$ has the derivative 0 wherever it exists, so gradient descent never
# moves it.
#
# Randomness is half of the solution. Let the switch be a coin with $P(g=1)=p$. The *expected* loss
#
# $$ E[\mathtt{loss}] = p\cdot\mathtt{loss}(1) + (1-p)\cdot\mathtt{loss}(0), \qquad
# \frac{\mathrm d\,E[\mathtt{loss}]}{\mathrm d p} = \mathtt{loss}(1) - \mathtt{loss}(0) $$
#
# is smooth in $p$, and its derivative is what we want to know: the loss with the part minus the loss without it. But two
# gates need four losses, and 32 gates need $2^{32}$. We can afford a single toss of all coins per step.
#
# Does a single toss carry a gradient? Yes: with $p=\mathrm{sigmoid}(\mathtt{log\_alpha})$, the mean of
# $\mathtt{loss}\cdot(g-p)$ is $p\cdot\mathtt{loss}(1)\,(1-p) - (1-p)\,\mathtt{loss}(0)\,p =
# p\,(1-p)\,(\mathtt{loss}(1)-\mathtt{loss}(0))$, the exact derivative with respect to `log_alpha`. (This is the *score-function* estimator, or REINFORCE.) But each gate is credited with the whole loss, although 31 other coins have moved
# it, too. That is noise, and with many gates the signal drowns in it. Backpropagation knows more: how the loss changes with
# each gate. To use that, the gate must be a smooth function of `log_alpha`.
#
# ## 2 · The noise outside
#
# A toss is a computation, too: draw $u$ uniformly from (0, 1), and compare. Take
#
# $$ \mathtt{noise} = \log\frac{u}{1-u}, \qquad g = \mathbf 1[\mathtt{noise} + \mathtt{log\_alpha} \ge 0]. $$
#
# The sigmoid is the inverse of $\log\frac{u}{1-u}$, so
#
# $$ P(\mathtt{noise} \le t) = P\big(u \le \mathrm{sigmoid}(t)\big) = \mathrm{sigmoid}(t), \tag{1} $$
#
# and $P(g=1) = P(\mathtt{noise}\ge-\mathtt{log\_alpha}) = \mathrm{sigmoid}(\mathtt{log\_alpha})$: `log_alpha` is the log
# odds of the coin. Now the randomness is *outside*: for fixed $u$, $g$ is an ordinary function of `log_alpha`. If that
# function is continuous and has a bounded slope, derivative and expectation may be exchanged:
#
# $$ \frac{\mathrm d}{\mathrm d\,\mathtt{log\_alpha}} E_u\big[\mathtt{loss}(g)\big]
# = E_u\Big[\mathtt{loss}'(g)\,\frac{\partial g}{\partial\,\mathtt{log\_alpha}}\Big]. \tag{2} $$
#
# The right side is an average over single tosses, each of which backpropagation can differentiate. This is the
# **reparameterisation trick** (Kingma & Welling 2014). A step is not continuous, but three changes make it so:
#
# 1. **Smooth.** $s = \mathrm{sigmoid}\big((\mathtt{noise}+\mathtt{log\_alpha})/\mathtt{beta}\big)$. The smaller the
#    temperature `beta`, the closer $s$ is to the step. But $s$ is never exactly 0 or 1.
# 2. **Stretch.** $\bar s = s\,(\mathtt{zeta}-\mathtt{gamma})+\mathtt{gamma}$ runs from `gamma` < 0 to `zeta` > 1.
# 3. **Clip.** $g = \min(1, \max(0, \bar s))$. Everything outside becomes exactly 0 or exactly 1.
#
# That is the **Hard-Concrete gate** (Louizos, Welling & Kingma 2018). In *evaluation*, `u` is
# `None`: there is no noise and no temperature, $s=\mathrm{sigmoid}(\mathtt{log\_alpha})$. A *soft* gate is this $g$. A *hard*
# gate rounds $g$ at the end, to 1 if $g\ge\frac12$ and otherwise to 0.

# %% [markdown]
# ### Exercise 1 · The gate
#
# *●●○ · 10 minutes*
#
# Write `hard_concrete_forward`. Return the gates, as floats also when they are hard, and as cache what backward will need: $s$, the booleans `inside`
# ($0<\bar s<1$), the temperature used, and $\mathtt{zeta}-\mathtt{gamma}$.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.notebook import yours


def hard_concrete_forward(log_alpha, u, *, beta, gamma, zeta, hard):
    """Return the gates (n,) of log_alpha (n,) and u (n,) or None, and (s, inside, temperature, zeta - gamma)."""
    # Your function is kept alone, so import inside of it what it uses: from tinyprune.ops import sigmoid
    raise NotImplementedError("write hard_concrete_forward: return gate and cache")


rng = np.random.default_rng(0)
log_alpha, noise = rng.normal(0, 2, 12), rng.uniform(0.01, 0.99, 12)
cases = [
    (log_alpha, u, {"beta": beta, "gamma": gamma, "zeta": zeta, "hard": hard})
    for beta, gamma, zeta in ((0.333, -0.1, 1.1), (1.5, -0.3, 1.5))
    for u in (noise, None)
    for hard in (False, True)
]
hint = {
    "": "smooth, stretch, clip, and round if hard; without u the noise is 0 and the temperature 1",
    "dtype": "a hard gate is a float of the dtype of log_alpha: (gate >= 0.5).astype(gate.dtype)",
    "inside": "the cache: true where 0 < s̄ < 1, before anything is rounded",
    "temperature": "the cache: beta with noise, 1 without",
    "zeta − gamma": "the cache: the width of the stretch",
}
results = ("gate", "s", "inside", "temperature", "zeta − gamma")
yours.check(hard_concrete_forward, ops.hard_concrete_forward, *cases, hint=hint, results=results)

# %% [markdown]
# <details><summary>Hint</summary>
#
# The temperature divides the sum of noise and `log_alpha`. `np.clip` clips. A hard gate is a float:
# `(gate >= 0.5).astype(gate.dtype)`.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def hard_concrete_forward(log_alpha, u, *, beta, gamma, zeta, hard):
#     from tinyprune.ops import sigmoid
#
#     noise, temperature = (0.0, 1.0) if u is None else (np.log(u) - np.log1p(-u), beta)
#     s = sigmoid((noise + log_alpha) / temperature)
#     stretched = s * (zeta - gamma) + gamma
#     inside = (stretched > 0) & (stretched < 1)
#     gate = np.clip(stretched, 0, 1)
#     if hard:
#         gate = (gate >= 0.5).astype(gate.dtype)
#     return gate, (s, inside, temperature, zeta - gamma)
# ```
#
# </details>

# %% [markdown]
# **Before you look:** after which of the three changes does the gate reach exactly 0? For which noise does it, with
# `log_alpha` = 0, `beta` = 0.333, `gamma` = −0.1 and `zeta` = 1.1?

# %% jupyter={"source_hidden": true}
# Against the noise, the step jumps from 0 to 1; the sigmoid makes it smooth, the stretch goes beyond 0 and 1, and the clip cuts it off there.
noise = np.linspace(-6, 6, 601)
u = ops.sigmoid(noise)  # the u that gives this noise, by (1)
beta, gamma, zeta = PAPER.values()
s = ops.sigmoid(noise / beta)  # with log_alpha = 0
stretched = s * (zeta - gamma) + gamma
gate, _ = ops.hard_concrete_forward(np.zeros_like(u), u, **PAPER, hard=False)
np.testing.assert_allclose(gate, np.clip(stretched, 0, 1), atol=1e-12)
curves = {
    "the step has no slope": noise >= 0,
    "1 smooth: 0 < s < 1": s,
    f"2 stretch: {gamma} < s̄ < {zeta}".replace("-", "−"): stretched,
    "3 clip: g reaches 0 and 1": gate,
}
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.5), sharey=True)
for ax, (title, y) in zip(axes, curves.items()):
    ax.axhspan(0, 1, color=GREY, alpha=0.12, linewidth=0)
    ax.plot(noise, y, color=BLUE, linewidth=1.8)
    ax.set(title=title, xlabel="noise + log_alpha", ylim=(-0.2, 1.2), xlim=(-3, 3))
for value in (0, 1):
    at = gate == value
    axes[3].plot(noise[at], gate[at], color=VERMILION, linewidth=3.5)
axes[3].text(-2.9, 0.08, "exactly 0", color=VERMILION)
axes[3].text(2.9, 0.92, "exactly 1", color=VERMILION, ha="right", va="top")
axes[0].set_ylabel("value")
plt.show()

# %% [markdown]
# Only the clip reaches exactly 0, where the noise is below $0.333\,\log\frac{0.1}{1.1}=-0.80$.
#
# ## 3 · The whole distribution from one formula
#
# How likely is the gate to be larger than some $x$ between 0 and 1? Go back from $g$ to the noise, one change at a time:
#
# $$ \begin{aligned}
# g > x &\iff s\,(\mathtt{zeta}-\mathtt{gamma})+\mathtt{gamma} > x &&\text{undo the clip}\\
# &\iff s > \frac{x-\mathtt{gamma}}{\mathtt{zeta}-\mathtt{gamma}} =: q &&\text{undo the stretch}\\
# &\iff \frac{\mathtt{noise}+\mathtt{log\_alpha}}{\mathtt{beta}} > \log\frac{q}{1-q} = \log\frac{x-\mathtt{gamma}}{\mathtt{zeta}-x} &&\text{undo the sigmoid}\\
# &\iff \mathtt{noise} > \mathtt{beta}\,\log\frac{x-\mathtt{gamma}}{\mathtt{zeta}-x} - \mathtt{log\_alpha}
# \end{aligned} $$
#
# By (1) the noise exceeds $t$ with probability $1-\mathrm{sigmoid}(t)=\mathrm{sigmoid}(-t)$. Therefore
#
# $$ \boxed{\;P(g > x) = \mathrm{sigmoid}\Big(\mathtt{log\_alpha} - \mathtt{beta}\,\log\frac{x-\mathtt{gamma}}{\mathtt{zeta}-x}\Big),\qquad 0\le x<1\;} \tag{3} $$
#
# Everything else follows. $x=0$ gives the probability that the gate is open,
#
# $$ P(\mathrm{open}) = P(g>0) = \mathrm{sigmoid}\Big(\mathtt{log\_alpha}-\mathtt{beta}\log\frac{-\mathtt{gamma}}{\mathtt{zeta}}\Big), $$
#
# which is `ops.p_open`; $x\to1$ gives $P(g=1)$; and in between there is a density, with $P$ for $P(g>x)$:
#
# $$ \mathrm{density}(x) = -\frac{\mathrm d P}{\mathrm d x}
# = P\,(1-P)\,\frac{\mathtt{beta}\,(\mathtt{zeta}-\mathtt{gamma})}{(x-\mathtt{gamma})(\mathtt{zeta}-x)}. $$


# %%
def P_above(x, log_alpha, beta, gamma, zeta):
    """Return P(g > x) by formula (3)."""
    return ops.sigmoid(log_alpha - beta * np.log((x - gamma) / (zeta - x)))


def density(x, log_alpha, beta, gamma, zeta):
    """Return the density of the gate at 0 < x < 1."""
    P = P_above(x, log_alpha, beta, gamma, zeta)
    return P * (1 - P) * beta * (zeta - gamma) / ((x - gamma) * (zeta - x))


show_source(ops.p_open, docstring=False)
assert P_above(0.0, 2.0, **PAPER) == ops.p_open(np.array(2.0), **PAPER)

# %% [markdown]
# The package draws gates without using (3), so its draws are an independent test. Among $n$ draws, an event of probability $p$ has the frequency
# $p$ with a standard error of $\sqrt{p(1-p)/n}$. We count exact zeros, exact ones, and 40 bins in between. If (3) holds,
# none of the 168 deviations should exceed 5 standard errors. The last line tries a planted mistake: a P(open) without
# `beta`.
#
# **Before you look:** for `log_alpha` = 0, how much of the probability do you expect at exactly 0, at exactly 1, and
# in between?

# %% jupyter={"source_hidden": true}
# Histograms of 200,000 gates agree with the formulas for four values of log_alpha: most of the probability lies at exactly 0 and exactly 1.


def draws(log_alpha, n):
    """Draw n soft gates with the package's operation."""
    u = ops.draw_noise(n, rng, np.float64)
    return ops.hard_concrete_forward(np.full(n, log_alpha), u, **PAPER, hard=False)[0]


def standard_errors(found, p, n):
    return np.abs(found - p) / np.sqrt(p * (1 - p) / n)


def draw_distribution(ax, log_alpha, found, expected, edges):
    inside = np.linspace(edges[0], edges[-1], 401)
    ax.stairs(found[1:-1] / np.diff(edges), edges, fill=True, color=BLUE, alpha=0.35)
    ax.plot(inside, density(inside, log_alpha, **PAPER), color=BLUE, linewidth=1.8)
    for x, share, p in ((-0.2, found[0], expected[0]), (1.2, found[-1], expected[-1])):
        ax.bar(x, share, 0.09, color=VERMILION, alpha=0.45)
        ax.plot(x, p, "D", color=VERMILION, markersize=5)
        ax.text(x, p + 0.03, f"{p:.3f}", ha="center", va="bottom", fontsize=8, color=VERMILION)
    title = f"log_alpha = {log_alpha:g}".replace("-", "−")
    ax.set(title=title, xlabel="g", xticks=[0, 0.5, 1])
    ax.set(ylim=(0, 1.08), xlim=(-0.45, 1.45))


n, edges = 200_000, np.linspace(0, 1, 41)
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.9), sharey=True)
worst = 0.0
for ax, log_alpha in zip(axes, (-2.0, 0.0, 2.0, 4.0)):
    g = draws(log_alpha, n)  # (n,)
    counts = np.histogram(g[(g > 0) & (g < 1)], edges)[0]
    found = np.array([(g == 0).sum(), *counts, (g == 1).sum()]) / n  # (42,)
    above = P_above(edges, log_alpha, **PAPER)  # (41,)
    expected = -np.diff([1, *above, 0])  # (42,)
    worst = max(worst, standard_errors(found, expected, n).max())
    draw_distribution(ax, log_alpha, found, expected, edges)
axes[0].set_ylabel("orange: probability of exactly 0 or 1\nblue: density between", fontsize=8)
figure.suptitle("Most of the probability lies at exactly 0 and exactly 1")
plt.show()
print(f"largest of 168 deviations: {worst:.1f} standard errors")

open_share = (draws(2.0, n) > 0).mean()
planted = ops.sigmoid(np.array(2.0 - np.log(0.1 / 1.1)))  # P(open) without beta
error = standard_errors(open_share, planted, n)
print(f"planted: P(open) {planted:.3f}, but {open_share:.3f} are open: {error:.0f} standard errors")
assert worst < 5 and error > 50

# %% [markdown]
# Most of the time the gate is a coin. The part in between makes it trainable.
#
# "Open" can mean several things:
#
# - $g>0$ in training, with probability P(open);
# - $g\ge\frac12$ in training: a *hard* gate uses its part. At $x=\frac12$, since `gamma + zeta` is 1, the logarithm in
#   (3) is 0, and the probability is $\mathrm{sigmoid}(\mathtt{log\_alpha})$, whatever `beta`;
# - a hard gate in evaluation: open **if and only if `log_alpha` ≥ 0**, by the same symmetry.

# %% jupyter={"source_hidden": true}
# Five curves rise with log_alpha from 0 to 1: three probabilities in training, and the value of soft and hard gates in evaluation.
log_alpha = np.linspace(-6, 6, 241)
soft_evaluation, _ = ops.hard_concrete_forward(log_alpha, None, **PAPER, hard=False)
hard_evaluation, _ = ops.hard_concrete_forward(log_alpha, None, **PAPER, hard=True)
np.testing.assert_array_equal(hard_evaluation, log_alpha >= 0)
opened, used, one = (P_above(x, log_alpha, **PAPER) for x in (0.0, 0.5, 1.0))
np.testing.assert_allclose(used, ops.sigmoid(log_alpha), rtol=1e-12)
figure, ax = plt.subplots(figsize=(7.5, 3.4))
ax.plot(log_alpha, opened, color=BLUE, linewidth=2, label="P(open) = P(g > 0)")
ax.plot(log_alpha, used, color=BLUE, linestyle="--", label="P(g ≥ ½): a hard gate uses its part")
ax.plot(log_alpha, one, color=BLUE, linestyle=":", linewidth=2, label="P(g = 1)")
label = "evaluation, soft: value of g"
ax.plot(log_alpha, soft_evaluation, color=VERMILION, linestyle="--", label=label)
label = "evaluation, hard: value of g"
ax.step(log_alpha, hard_evaluation, where="post", color=VERMILION, linewidth=1.5, label=label)
ax.axvline(2, color=GREY, linewidth=0.8, linestyle=":")
ax.text(2.1, 0.02, "start of\ntraining", color=GREY, va="bottom")
ax.set(xlabel="log_alpha", ylabel="probability, or value of g")
ax.set_title("Three probabilities, and the two gates of evaluation")
ax.legend(frameon=False, fontsize=8, loc="upper left")
plt.show()
assert round(float(P_above(0.0, 2.0, **PAPER)), 3) == 0.943

# %% [markdown]
# The paper starts every `log_alpha` at 2, where P(open) is 0.943. At `log_alpha` = 0, P(open) is 0.69, a hard gate uses its
# part half of the time, and evaluation uses the part always.
#
# ## 4 · Backward
#
# $g$ is a chain of four functions, and the chain rule multiplies their derivatives. The clip passes the gradient where
# $0<\bar s<1$ and stops it elsewhere, since a clipped gate does not move when $\bar s$ does. Before the clip came the
# stretch, the sigmoid and the temperature.

# %% [markdown]
# ### Exercise 2 · The gradient
#
# *●○○ · 10 minutes*
#
# Write $\partial g/\partial\,\mathtt{log\_alpha}$ as a product of four factors, and multiply by `dout`. A hard gate gets the
# same gradient, as section 5 explains.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.notebook import yours


def hard_concrete_backward(dout, cache):
    """Return dlog_alpha (n,) from dout (n,)."""
    s, inside, temperature, stretch = cache  # (n,), (n,), a number, zeta - gamma
    raise NotImplementedError("write hard_concrete_backward: return dlog_alpha")


rng = np.random.default_rng(0)
log_alpha, noise = rng.normal(0, 2, 12), rng.uniform(0.01, 0.99, 12)
cases = [
    (
        rng.standard_normal(12),
        ops.hard_concrete_forward(log_alpha, u, beta=0.333, gamma=-0.1, zeta=1.1, hard=hard)[1],
    )
    for u in (noise, None)
    for hard in (False, True)
]
hint = "clip, stretch, sigmoid, temperature: one factor each"
yours.check(hard_concrete_backward, ops.hard_concrete_backward, *cases, hint=hint)

# %% [markdown]
# <details><summary>Hint</summary>
#
# From the end of the chain to its start: `inside`, `stretch`, the derivative of the sigmoid in terms of $s$, and one over the
# temperature.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def hard_concrete_backward(dout, cache):
#     s, inside, temperature, stretch = cache
#     ds = dout * inside * stretch
#     return ds * s * (1 - s) / temperature
# ```
#
# </details>

# %% [markdown]
# On the left is the distribution, derived and sampled. On the right is the gradient of every draw against its noise: the
# *area* under the hump is the mean gradient. The slider `stretch` moves both ends (exercise 2 called their distance
# `stretch`): `gamma` = −`stretch`, `zeta` = 1 + `stretch`.
#
# **Before you look:** what does a small `beta` do to the width of the hump, to its height, and to the area?

# %% jupyter={"source_hidden": true}
# On the left is the distribution of a gate, and on the right the gradient of every draw against its noise, zero except for a hump.


def gradients_of_draws(u, log_alpha, **options):
    """Return ∂g/∂log_alpha of every draw u (n,)."""
    _, cache = ops.hard_concrete_forward(np.full_like(u, log_alpha), u, **options, hard=False)
    return ops.hard_concrete_backward(np.ones_like(u), cache)


def turn(log_alpha=2, beta=0.333, stretch=0.1):
    """Distribution of the gate beside the gradient of every draw against its noise."""
    options = {"beta": beta, "gamma": -stretch, "zeta": 1 + stretch}
    u = ops.draw_noise(20_000, np.random.default_rng(0), np.float64)
    g, _ = ops.hard_concrete_forward(np.full_like(u, log_alpha), u, **options, hard=False)
    figure, (left, right) = plt.subplots(1, 2, figsize=(6.4, 2.5))
    bins, x = np.linspace(0, 1, 31), np.linspace(0, 1, 201)
    counts = np.histogram(g[(g > 0) & (g < 1)], bins)[0]
    left.stairs(counts / len(u) * 30, bins, fill=True, color=BLUE, alpha=0.35)
    left.plot(x, density(x, log_alpha, **options), color=BLUE, linewidth=1.6)
    opened, one = (P_above(end, log_alpha, **options) for end in (0.0, 1.0))
    for end, p, share in ((-0.06, 1 - opened, (g == 0).mean()), (1.06, one, (g == 1).mean())):
        left.bar(end, share, 0.09, color=VERMILION, alpha=0.45)
        left.plot(end, p, "D", color=VERMILION, markersize=4)
    left.set(xlim=(-0.2, 1.2), ylim=(0, 2.5), xticks=[0, 0.5, 1], xlabel="g")
    left.set_title(f"P(open) = {opened:.3f}", fontsize=9)
    even = np.linspace(0.0005, 0.9995, 2000)
    gradient = gradients_of_draws(even, log_alpha, **options)
    right.fill_between(even, gradient, color=GREY, alpha=0.25)
    right.plot(even, gradient, color="black", linewidth=1.4)
    right.set(xlim=(0, 1), ylim=(0, 2.6), xlabel="noise u")
    title = f"∂g/∂log_alpha: zero for {(gradient == 0).mean():.0%}, mean {gradient.mean():.2f}"
    right.set_title(title, fontsize=9)
    plt.show()


# %%
sliders(turn, log_alpha=[-2, 0, 2], beta=[0.2, 0.333, 0.667, 1.5], stretch=[0.1, 0.5])

# %% [markdown]
# Up to `beta` = 0.67 the area changes little, by a tenth or so at `log_alpha` 0; at 1.5 it has lost 40 % there. A small `beta` makes the gradient rare and large: most draws are
# clipped and teach the gate nothing, and the other draws move it far. A large `beta` gives almost every draw a gradient,
# but from gates that are almost never 0 or 1. Usual values lie between 0.33 and 0.67.
#
# ## 5 · Straight-through is the trapezoid rule
#
# The paper's gates are hard, or **straight-through** (Bengio, Léonard & Courville 2013):
#
# - forward uses $\hat g = \mathbf 1[g\ge\frac12]$, so that a training step sees the model as it will be after pruning;
# - backward uses the gradient of $g$, as if $\hat g$ were $g$.
#
# With a soft gate the mean gradient is exact, by (2). What is the mean with a hard gate? The derivative that we want is
# that of $E[\mathtt{loss}(\hat g)] = \mathtt{loss}(0) + p\,\big(\mathtt{loss}(1)-\mathtt{loss}(0)\big)$ with
# $p = P(g\ge\frac12) = \mathrm{sigmoid}(\mathtt{log\_alpha})$:
#
# $$ p\,(1-p)\,\big(\mathtt{loss}(1)-\mathtt{loss}(0)\big) = p\,(1-p)\int_0^1\mathtt{loss}'(x)\,\mathrm dx. \tag{4} $$
#
# What we get is the mean of $\mathtt{loss}'(\hat g)\,\partial g/\partial\,\mathtt{log\_alpha}$. Let `beta` be small.
#
# 1. The gradient of $g$ is nonzero only for tosses whose noise lies close to $-\mathtt{log\_alpha}$. For half of these $g$ is just
#    below ½: $\hat g$ is 0, and the slope of the loss is read there. For the other half $g$ is just above ½, and the slope is
#    read at 1.
# 2. The mean of $\partial g/\partial\,\mathtt{log\_alpha}$ alone is the derivative of $E[g]$, by (2). As `beta` falls to 0, $E[g]$
#    tends to $p$, and the mean to the derivative of $p$, which is $p\,(1-p)$. The range from `gamma` to `zeta` is symmetric
#    about ½, so each half has half of it.
#
# Hence
#
# $$ \text{straight-through} \;\longrightarrow\; p\,(1-p)\cdot\tfrac12\big(\mathtt{loss}'(0)+\mathtt{loss}'(1)\big). $$
#
# This is the **trapezoid rule**: the mean of the two ends replaces the area under $\mathtt{loss}'$. The rule is exact when
# $\mathtt{loss}'$ is a straight line.

# %% jupyter={"source_hidden": true}
# The trapezoid equals the area under the slope of a line and of a parabola, and is larger for a cubic.
LOSSES = {  # loss(g) and its derivative
    "line: −g": (lambda g: -g, lambda g: -np.ones_like(g)),
    "parabola: (g − 0.3)²": (lambda g: (g - 0.3) ** 2, lambda g: 2 * (g - 0.3)),
    "cubic: g³": (lambda g: g**3, lambda g: 3 * g**2),
}
at, ends = np.linspace(0, 1, 101), np.array([0.0, 1.0])
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.6), sharey=True)
for ax, (name, (loss, slope)) in zip(axes, LOSSES.items()):
    ax.fill_between(at, slope(at), color=BLUE, alpha=0.3, label="area: loss(1) − loss(0)")
    ax.plot(at, slope(at), color=BLUE)
    ax.plot(ends, slope(ends), "--o", color=VERMILION, label="trapezoid: its two ends")
    ax.axhline(0, color=GREY, linewidth=0.6)
    area, trapezoid = loss(1.0) - loss(0.0), slope(ends).mean()
    title = f"{name}\narea {area:.1f}, trapezoid {trapezoid:.1f}".replace("-", "−")
    ax.set(title=title, xlabel="g")
axes[0].set_ylabel("slope of the loss")
lines = axes[0].get_legend_handles_labels()
figure.legend(*lines, loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% [markdown]
# ### Exercise 3 · Measure the bias
#
# *●●○ · 15 minutes*
#
# For a loss of one gate, return what straight-through computes on average minus the exact derivative (4). Given are the
# functions `loss` and `slope` (its derivative), $p$ of (4), and for n tosses the soft gates `g` (n,) and their gradients
# `dg` = ∂g/∂log_alpha (n,).

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.course.expectations import expect_close


def bias(loss, slope, p, g, dg):
    """Return the mean straight-through gradient minus the exact one, a number."""
    raise NotImplementedError("write bias: return the mean of all tosses minus (4)")


u, p = (np.arange(100_000) + 0.5) / 100_000, 1 / (1 + np.exp(-1))  # log_alpha = 1
losses = {  # the loss, its slope, and trapezoid minus area
    "3g": (lambda g: 3 * g, lambda g: 3 + 0 * g, 0),
    "(g − 0.3)²": (lambda g: (g - 0.3) ** 2, lambda g: 2 * (g - 0.3), 0),
    "g³": (lambda g: g**3, lambda g: 3 * g**2, 1 / 2),
    "(g − 1)³": (lambda g: (g - 1) ** 3, lambda g: 3 * (g - 1) ** 2, 1 / 2),
}
for beta in (0.02, 0.333):
    options = {"beta": beta, "gamma": -0.1, "zeta": 1.1}
    g, cache = ops.hard_concrete_forward(np.ones_like(u), u, **options, hard=False)
    dg = ops.hard_concrete_backward(np.ones_like(u), cache)
    for name, (loss, slope, factor) in losses.items():
        found, expected = bias(loss, slope, p, g, dg), factor * p * (1 - p)
        if beta == 0.02:
            title, fed = "the bias is wrong", f"loss {name}, log_alpha 1, beta {beta}"
            hint = "the loss has its slope at the hard gate; the gradient is that of the soft gate"
            expect_close(found, expected, title, fed=fed, hint=hint, absolute=0.005)
        print(f"beta {beta:5}  loss {name:10}  bias {found:6.3f}  trapezoid rule {expected:.3f}")
print("passed: with a small beta, your measured bias is the trapezoid rule's")

# %% [markdown]
# <details><summary>Hint</summary>
#
# The forward pass uses $\hat g$, which is 0 or 1, and so the slope is taken there; the gradient is that of $g$.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def bias(loss, slope, p, g, dg):
#     used = (g >= 0.5).astype(float)
#     through = (slope(used) * dg).mean()
#     exact = p * (1 - p) * (loss(1.0) - loss(0.0))
#     return through - exact
# ```
#
# </details>

# %% [markdown]
# At `beta` = 0.333 the bias of the parabola is 0.027 instead of 0, a third of the exact gradient, 0.079: the temperature adds
# a bias, which vanishes with `beta`. The bias of the trapezoid rule stays.
#
# How curved is the loss of a real model in one gate? [Chapter 05](05_l0_and_the_difference.ipynb) measures that the
# trapezoid rule comes close for nearly all heads. This helps to explain why straight-through works. It is no proof.
#
# ## 6 · Your gates decide
#
# How many of the last 8 characters does a model need to predict the next one? Give the character $c$ places back
# a table $E_c$, (V, V), a row of logits for each character, and a gate:
#
# $$ \mathtt{logits} = \sum_{c=1}^{8} g_c\cdot E_c[\mathtt{id}_c] + b $$
#
# A gate closes only if being open costs something. So the loss gets a second part, a price `lam` times the expected number of
# open gates, $\mathtt{lam}\cdot\sum_c P(\mathrm{open}_c)$, in nats.
#
# **Before you look:** which characters should stay at a price of 0.05 nats each?

# %% jupyter={"source_hidden": true}
# Loads the text and cuts batches.
text = load_text(DataConfig(corpus="pydoc"))
V, C, lam = text.tokenizer.V, 8, 0.05
tokens, held_out = text.train.astype(np.int64), text.valid.astype(np.int64)


def batch(tokens, at):
    """Return the C characters before each position, the last one first, as rows of all tables; and the character there."""
    return tokens[at[:, None] - 1 - np.arange(C)] + V * np.arange(C), tokens[at]


# %% tags=["subject"]
def step(p, ids, targets, u):
    """Return the loss in nats and the gradients of E (C·V, V), b (V,), log_alpha (C,). ids (B, C), targets (B,)."""
    g, g_cache = ops.hard_concrete_forward(p["log_alpha"], u, **PAPER, hard=True)  # (C,)
    e, e_cache = ops.embedding_forward(ids, p["E"], scale=1.0)  # (B, C, V)
    logits = (g[:, None] * e).sum(1) + p["b"]  # (B, V)
    loss, l_cache = ops.cross_entropy_forward(logits, targets)

    dlogits = ops.cross_entropy_backward(1.0, l_cache)[:, None]  # (B, 1, V), copied to all C
    dg = (dlogits * e).sum((0, 2))  # (C,): used in every row, for every logit
    return loss, {
        "E": ops.embedding_backward(g[:, None] * dlogits, e_cache),
        "b": dlogits.sum((0, 1)),
        "log_alpha": ops.hard_concrete_backward(dg, g_cache),
    }


def train(lam, steps=900, B=128):
    """Return the bits per character on held-out text, and P(open) after every step (steps, C)."""
    rng = np.random.default_rng(1)
    p = {"E": np.zeros((C * V, V)), "b": np.zeros(V), "log_alpha": np.full(C, 2.0)}
    opened = []
    for _ in range(steps):
        ids, targets = batch(tokens, rng.integers(C, len(tokens), B))
        _, d = step(p, ids, targets, ops.draw_noise(C, rng, float))
        P = ops.p_open(p["log_alpha"], **PAPER)
        _, l0_cache = ops.l0_forward(p["log_alpha"], **PAPER)
        d["log_alpha"] += ops.l0_backward(lam, l0_cache)  # of the price: chapter 05 derives it
        # plain descent; rates found by trial
        for name, lr in (("E", 6.0), ("b", 6.0), ("log_alpha", 3.0)):
            p[name] -= lr * d[name]
        opened.append(P)
    loss, _ = step(p, *batch(held_out, np.arange(C, len(held_out), 3)), None)
    return loss / np.log(2), np.array(opened)


# %%
with yours.engine():
    bits, opened = train(lam)
free_bits, free = train(0.0)
counts = float(
    ops.p_open(np.zeros(1), **PAPER)[0]
)  # P(open) at log_alpha 0: above it evaluation opens
kept = opened[-1] >= counts
print(f"price {lam}: {kept.sum()} characters, {bits:.2f} bits per character on held-out text")
print(f"no price:   {(free[-1] >= counts).sum()} characters, {free_bits:.2f} bits per character")
assert kept[:4].all() and not kept[4:].any() and bits - free_bits < 0.1

# %% jupyter={"source_hidden": true}
# P(open) of the gates of the last eight characters over the steps: without a price all stay open, and with a price those of the distant characters close.
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), sharey=True)
for ax, curves, title in (
    (axes[0], free, "Without a price all gates stay open"),
    (axes[1], opened, f"At {lam} nats the distant characters close"),
):
    for c in range(C):
        colour, style = (BLUE, "-") if curves[-1, c] >= counts else (VERMILION, "--")
        ax.plot(curves[:, c], color=colour, linestyle=style, alpha=1 - 0.09 * c)
    ax.axhline(counts, color=GREY, linewidth=0.8, linestyle=":")
    ax.set(title=title, xlabel="step", ylim=(-0.03, 1.03))
    for stays, y, colour in ((True, 0.84, BLUE), (False, 0.1, VERMILION)):
        back = [str(c + 1) for c in range(C) if (curves[-1, c] >= counts) == stays]
        if back:
            ax.text(890, y, f"{', '.join(back)} back", color=colour, ha="right", va="center")
axes[0].set_ylabel("P(open)")
plt.show()

# %% [markdown]
# (Dotted: above it evaluation opens a gate.) The nearest four stay, and the model needs only 0.03 bits more than with all eight. The number four depends on the
# price, the learning rates and the number of steps, as [chapter 06](06_training_with_gates.ipynb) shows.
#
# ## Recap
#
# - A gate is logistic noise plus `log_alpha`, through a sigmoid with temperature `beta`, stretched to (`gamma`, `zeta`) and
#   clipped: exactly 0, exactly 1 or in between. One formula, $P(g>x)$, gives the whole distribution.
# - The gradient of a draw is a product of four factors. It is zero where the clip acts, and its mean is exact for soft
#   gates.
# - A hard gate uses 0 or 1 forward and the soft gate's gradient backward. For a small `beta` the mean is the trapezoid rule,
#   exact for linear and quadratic losses; at 0.333 a bias remains.
#
# **Next:** [03 attention by hand](03_attention_by_hand.ipynb), the part that the gates of all later chapters open and
# close. In the [assignments](assignments/README.md), a3_1 and a3_2 belong to this chapter.

# %% [markdown]
# ## Questions
#
# 1. A gate has drifted to `log_alpha` = −6. What are its chances of coming back?
#
# <details><summary>Answer</summary>
#
# Small, but not zero. P(open) is sigmoid(−6 + 0.8), about half a per cent: in one step of about two hundred the gate is
# above 0, and only then can the loss reach it.
#
# </details>
#
# 2. Give a loss for which straight-through pushes the gate the *wrong way* on average.
#
# <details><summary>Answer</summary>
#
# One where the mean of the end slopes and the difference of the end values have different signs, for instance
# $\mathtt{loss}(g) = g - 3g^2+1.9g^3$: its slopes at 0 and 1 are 1 and 0.7, and yet $\mathtt{loss}(1)-\mathtt{loss}(0) =
# -0.1$. The part is worth keeping, and straight-through (with a small `beta`) closes it.
#
# </details>
#
# 3. In evaluation the hard gate opens at `log_alpha` = 0. Is that still so with `gamma` = −0.1 and `zeta` = 1.5?
#
# <details><summary>Answer</summary>
#
# No. It opens where $\mathrm{sigmoid}(\mathtt{log\_alpha})\cdot1.6-0.1=\frac12$, at $\log\frac{0.5+0.1}{1.5-0.5}=\log
# 0.6\approx-0.51$.
#
# </details>

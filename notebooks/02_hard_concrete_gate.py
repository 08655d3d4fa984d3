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
# &nbsp; ← [10b all-attention](10b_all_attention.ipynb) · [all chapters](README.md) · [05 the L0 loss and the difference](05_l0_and_the_difference.ipynb) →
#
# **After this chapter you can** explain how an on-off switch can be learned by gradient descent, derive its whole
# distribution from one formula, write its backward pass, and say which of its gradients are exact and which are not.
#
# **You need** [chapter 01](01_backprop_by_hand.ipynb), probabilities and expectations, and the derivative of the
# sigmoid. Unfamiliar words are in the [glossary](README.md#glossary).

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

from tinyprune import GateConfig, assert_gradients, check_gradients, ops
from tinyprune.experiments.results import read_csv
from tinyprune.notebook import results, show_source, sliders, use_style, you_are_here
from tinyprune.plots import BLUE, GREY, VERMILION
from tinyprune.pruning.gates import opening_log_alpha

use_style()
rng = np.random.default_rng(0)
PAPER = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}  # also the package's defaults

# %%
you_are_here("gate", "gates")

# %% [markdown]
# ## 1 · A switch has no gradient
#
# To find out which attention heads a model can do without, give every head a factor, its **gate** $g_h$, and multiply
# all that the head adds by it. A gate of 1 leaves the head unchanged. A gate of 0 removes its effect, and then the head
# can be removed from the model for good ([chapter 07](07_removing_heads.ipynb)). A value in between saves nothing: a
# head with a gate of 0.03 costs as much time as a whole one.
#
# So we want a number that is 0 or 1 and that gradient descent can train. Let `log_alpha` be its parameter. The obvious
# switch $g = \mathbf 1[\mathtt{log\_alpha} \ge 0]$ is flat to the left of 0 and flat to the right of it. Its derivative
# is 0 wherever it exists, so gradient descent never moves it.
#
# Randomness is half of the solution. Let the switch be a coin with $P(g=1)=p$. The *expected* loss
#
# $$ E[\mathtt{loss}] = p\cdot\mathtt{loss}(1) + (1-p)\cdot\mathtt{loss}(0), \qquad
# \frac{\mathrm d\,E[\mathtt{loss}]}{\mathrm d p} = \mathtt{loss}(1) - \mathtt{loss}(0) $$
#
# is perfectly smooth in $p$, and its derivative is exactly what we want to know: the loss with the head minus the loss
# without it. But one gate needs two losses, two gates need four, and the 32 gates of our model need $2^{32}$. We can
# afford one forward and one backward pass per step, with one toss of all coins. Is there a gradient in a single toss?
#
# ## 2 · The noise outside
#
# A toss is a computation, too: draw $u$ uniformly from (0, 1), and compare. What we compare is up to us. Take
#
# $$ \mathtt{noise} = \log\frac{u}{1-u}, \qquad g = \mathbf 1[\mathtt{noise} + \mathtt{log\_alpha} \ge 0]. $$
#
# This noise follows the **logistic distribution**. Its distribution function is the sigmoid, because the sigmoid is the
# inverse of $\log\frac{u}{1-u}$:
#
# $$ P(\mathtt{noise} \le t) = P\Big(\log\frac{u}{1-u} \le t\Big) = P\big(u \le \mathrm{sigmoid}(t)\big) = \mathrm{sigmoid}(t). \tag{1} $$
#
# Hence
#
# $$ \begin{aligned} P(g=1) = P(\mathtt{noise}\ge-\mathtt{log\_alpha}) &= 1-\mathrm{sigmoid}(-\mathtt{log\_alpha}) \\
# &= \mathrm{sigmoid}(\mathtt{log\_alpha}): \end{aligned} $$
#
# `log_alpha` is the log odds of the coin. And now the randomness, $u$, is *outside*: it does not depend on the
# parameter, and for fixed $u$, $g$ is an ordinary function of `log_alpha`. If that function is continuous and piecewise
# smooth, derivative and expectation may be exchanged,
#
# $$ \frac{\mathrm d}{\mathrm d\,\mathtt{log\_alpha}} E_u\big[\mathtt{loss}(g)\big]
# = E_u\Big[\mathtt{loss}'(g)\,\frac{\partial g}{\partial\,\mathtt{log\_alpha}}\Big], \tag{2} $$
#
# and the right side is an average over single tosses, each of which backpropagation can differentiate. This is the
# **reparameterisation trick** (Kingma & Welling 2014). For the step function, which is not continuous, (2) fails: the
# right side would be 0. Three changes make it continuous and keep its advantages.
#
# 1. **Smooth.** $s = \mathrm{sigmoid}\big((\mathtt{noise}+\mathtt{log\_alpha})/\mathtt{beta}\big)$. The smaller the
#    temperature `beta`, the closer it is to the step. This is the *concrete* or *Gumbel-sigmoid* distribution
#    (Maddison, Mnih & Teh 2017; Jang, Gu & Poole 2017). It has a gradient everywhere, but is never exactly 0 or 1.
# 2. **Stretch.** $\bar s = s\,(\mathtt{zeta}-\mathtt{gamma})+\mathtt{gamma}$ runs from `gamma` < 0 to `zeta` > 1.
# 3. **Clip.** $g = \min(1, \max(0, \bar s))$. Everything outside becomes exactly 0 or exactly 1.
#
# That is the **Hard-Concrete gate** (Louizos, Welling & Kingma 2018).

# %%
show_source(ops.draw_noise, ops.hard_concrete_forward, docstring=False)

# %% [markdown]
# Three things need an explanation. `u=None` means evaluation, with no noise and no temperature. `hard` follows in
# section 6. And the odd expression `gate - gate.real` is zero; section 5 says what it is for.
#
# The picture shows the value for the same noise after each of the three changes.
#
# **Before you look:** after which of the three changes does the gate reach exactly 0? For which noise does it, with
# `log_alpha` = 0, `beta` = 0.333, `gamma` = −0.1 and `zeta` = 1.1?

# %% jupyter={"source_hidden": true}
# Draws the gate after each of the three changes, against the noise.


def draw_changes(noise, curves):
    figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.5), sharey=True)
    for ax, (title, y) in zip(axes, curves.items()):
        ax.axhspan(0, 1, color=GREY, alpha=0.12, linewidth=0)
        ax.plot(noise, y, color=BLUE, linewidth=1.8)
        ax.set(title=title, xlabel="noise + log_alpha", ylim=(-0.2, 1.2), xlim=(-3, 3))
    for value in (0, 1):
        at = y == value  # of the last curve
        axes[3].plot(noise[at], y[at], color=VERMILION, linewidth=3.5)
    axes[3].text(-2.9, 0.08, "exactly 0", color=VERMILION)
    axes[3].text(2.9, 0.92, "exactly 1", color=VERMILION, ha="right", va="top")
    axes[0].set_ylabel("value")
    plt.show()


# %%
noise = np.linspace(-6, 6, 601)
u = ops.sigmoid(noise)  # the u that gives this noise, by (1)
beta, gamma, zeta = PAPER.values()
s = ops.sigmoid(noise / beta)  # with log_alpha = 0
stretched = s * (zeta - gamma) + gamma
gate, _ = ops.hard_concrete_forward(np.zeros_like(u), u, **PAPER, hard=False)
np.testing.assert_allclose(gate, np.clip(stretched, 0, 1), atol=1e-12)
draw_changes(
    noise, {"the step": noise >= 0, "1 smooth: s": s, "2 stretch: s̄": stretched, "3 clip: g": gate}
)

# %% [markdown]
# ## 3 · The whole distribution from one formula
#
# How likely is the gate to be larger than some $x$ between 0 and 1? Clipping does not matter for that question, so go
# back from $g$ to the noise, one step at a time, and apply (1) at the end:
#
# $$ \begin{aligned}
# g > x &\iff s\,(\mathtt{zeta}-\mathtt{gamma})+\mathtt{gamma} > x &&\text{undo the clip}\\
# &\iff s > \frac{x-\mathtt{gamma}}{\mathtt{zeta}-\mathtt{gamma}} =: q &&\text{undo the stretch}\\
# &\iff \frac{\mathtt{noise}+\mathtt{log\_alpha}}{\mathtt{beta}} > \log\frac{q}{1-q} = \log\frac{x-\mathtt{gamma}}{\mathtt{zeta}-x} &&\text{undo the sigmoid}\\
# &\iff \mathtt{noise} > \mathtt{beta}\,\log\frac{x-\mathtt{gamma}}{\mathtt{zeta}-x} - \mathtt{log\_alpha}
# \end{aligned} $$
#
# (In the third line $1-q = (\mathtt{zeta}-x)/(\mathtt{zeta}-\mathtt{gamma})$, and the common denominator cancels.) The
# probability that the noise exceeds $t$ is $1-\mathrm{sigmoid}(t)=\mathrm{sigmoid}(-t)$. Therefore
#
# $$ \boxed{\;P(g > x) = \mathrm{sigmoid}\Big(\mathtt{log\_alpha} - \mathtt{beta}\,\log\frac{x-\mathtt{gamma}}{\mathtt{zeta}-x}\Big),\qquad 0\le x<1\;} \tag{3} $$
#
# Everything else follows. At $x=0$:
#
# $$ P(\mathrm{open}) = P(g>0) = \mathrm{sigmoid}\Big(\mathtt{log\_alpha}-\mathtt{beta}\log\frac{-\mathtt{gamma}}{\mathtt{zeta}}\Big). $$
#
# With it $P(g=0) = 1-P(\mathrm{open})$; and just below $x=1$:
#
# $$ P(g=1) = \mathrm{sigmoid}\Big(\mathtt{log\_alpha}-\mathtt{beta}\log\frac{1-\mathtt{gamma}}{\mathtt{zeta}-1}\Big). $$
#
# In between there is a density, the derivative of $P(g\le x) = 1-P(g>x)$. With $P$ for $P(g>x)$ and
# $\mathrm{sigmoid}'=P(1-P)$,
#
# $$ \begin{aligned} \mathrm{density}(x) = -\frac{\mathrm d P}{\mathrm d x}
# &= P\,(1-P)\cdot\mathtt{beta}\,\Big(\frac{1}{x-\mathtt{gamma}}+\frac{1}{\mathtt{zeta}-x}\Big) \\
# &= P\,(1-P)\,\frac{\mathtt{beta}\,(\mathtt{zeta}-\mathtt{gamma})}{(x-\mathtt{gamma})(\mathtt{zeta}-x)}. \end{aligned} $$


# %%
def P_above(x, log_alpha, beta, gamma, zeta):
    """Return P(g > x) by formula (3)."""
    return ops.sigmoid(log_alpha - beta * np.log((x - gamma) / (zeta - x)))


def density(x, log_alpha, beta, gamma, zeta):
    """Return the density of the gate at 0 < x < 1."""
    P = P_above(x, log_alpha, beta, gamma, zeta)
    return P * (1 - P) * beta * (zeta - gamma) / ((x - gamma) * (zeta - x))


show_source(ops.p_open, docstring=False)

# the density and the two point masses add up to 1: Gauss-Legendre integration over (0, 1)
nodes, weights = np.polynomial.legendre.leggauss(60)
nodes, weights = (nodes + 1) / 2, weights / 2
for log_alpha in (-2.0, 0.0, 2.0):
    zero, one = 1 - P_above(0.0, log_alpha, **PAPER), P_above(1.0, log_alpha, **PAPER)
    assert np.isclose(1 - zero, ops.p_open(np.array(log_alpha), **PAPER), rtol=1e-14)
    assert abs(zero + (weights * density(nodes, log_alpha, **PAPER)).sum() + one - 1) < 1e-12

# %% [markdown]
# Two formulas can share a mistake. The draws of the package do not use (3), so let them decide. Among $n$ draws, an
# event of probability $p$ has the frequency $p$ with a standard error of $\sqrt{p(1-p)/n}$. We count exact zeros, exact
# ones, and 40 bins in between, for four values of `log_alpha`, and express every deviation in standard errors. If the
# formulas hold, none of the 168 numbers should exceed 5. Could this check fail at all? The last printed line tries a
# planted mistake, a P(open) that forgets `beta`.
#
# **Before you look:** for `log_alpha` = 0, how much of the probability do you expect at exactly 0, at exactly 1, and
# in between?

# %% jupyter={"source_hidden": true}
# Draws gates, and plots their distribution: bars for the draws, lines and diamonds for the formulas.


def draws(log_alpha, n):
    """Draw n soft gates with the package's operation."""
    u = ops.draw_noise(n, rng, np.float64)
    return ops.hard_concrete_forward(np.full(n, log_alpha), u, **PAPER, hard=False)[0]


def standard_errors(found, p, n):
    return np.abs(found - p) / np.sqrt(p * (1 - p) / n)


def draw_distribution(ax, log_alpha, found, expected, edges):
    inside = np.linspace(edges[0], edges[-1], 401)
    ax.bar(
        edges[:-1],
        found[1:-1] / np.diff(edges),
        np.diff(edges),
        align="edge",
        color=BLUE,
        alpha=0.35,
    )
    ax.plot(inside, density(inside, log_alpha, **PAPER), color=BLUE, linewidth=1.8)
    for x, share, p in ((-0.13, found[0], expected[0]), (1.13, found[-1], expected[-1])):
        ax.bar(x, share, 0.09, color=VERMILION, alpha=0.45)
        ax.plot(x, p, "D", color=VERMILION, markersize=5)
        ax.text(x, p + 0.03, f"{p:.3f}", ha="center", va="bottom", fontsize=8, color=VERMILION)
    ax.set(title=f"log_alpha = {log_alpha:g}", xlabel="g", xticks=[0, 0.5, 1])
    ax.set(ylim=(0, 1.08), xlim=(-0.36, 1.36))


# %% jupyter={"source_hidden": true}
# Compare 200,000 draws with formula (3), and draw their histograms.
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
plt.show()
print(f"largest of 168 deviations: {worst:.1f} standard errors")

open_share = (draws(2.0, n) > 0).mean()
planted = ops.sigmoid(np.array(2.0 - np.log(0.1 / 1.1)))  # P(open) without beta
error = standard_errors(open_share, planted, n)
print(f"planted: P(open) {planted:.3f}, but {open_share:.3f} are open: {error:.0f} standard errors")
assert worst < 5 and error > 50

# %% [markdown]
# Most of the probability is at exactly 0 and exactly 1: the gate is nearly a coin. The part in between makes it
# trainable.
#
# ## 4 · Which probability?
#
# "The gate is open" can mean several things, and they differ:
#
# - $g>0$ in training: `p_open`. This is what the L0 loss of [chapter 05](05_l0_and_the_difference.ipynb) counts.
# - $g\ge\frac12$ in training: the share of forward passes in which a *hard* gate (section 6) uses its head. By (3) at
#   $x=\frac12$, and since the paper's `gamma + zeta` is 1, the logarithm is $\log 1=0$: it is
#   $\mathrm{sigmoid}(\mathtt{log\_alpha})$, whatever `beta`.
# - in evaluation there is neither noise nor temperature:
#   $g=\mathrm{clip}(\mathrm{sigmoid}(\mathtt{log\_alpha})(\mathtt{zeta}-\mathtt{gamma})+\mathtt{gamma})$, and a hard gate
#   is open when that is at least ½. Solve for `log_alpha`:
#   $\mathrm{sigmoid}(\mathtt{log\_alpha})\ge\frac{1/2-\mathtt{gamma}}{\mathtt{zeta}-\mathtt{gamma}}$, which is
#   $\mathtt{log\_alpha}\ge\log\frac{1/2-\mathtt{gamma}}{\mathtt{zeta}-1/2}$. With `gamma + zeta = 1` this is $\log 1$
#   again: **open if and only if `log_alpha` ≥ 0**.
#
# **Before you look:** at `log_alpha` = 0, what are P(open), P(g ≥ ½), and the value of a hard gate in evaluation?

# %% jupyter={"source_hidden": true}
# Draws the five curves.


def draw_five_curves(log_alpha, opened, used, one, soft_evaluation, hard_evaluation):
    figure, ax = plt.subplots(figsize=(7.5, 3.4))
    ax.plot(log_alpha, opened, color=BLUE, linewidth=2, label="P(open) = P(g > 0)")
    ax.plot(
        log_alpha, used, color=BLUE, linestyle="--", label="P(g ≥ ½): a hard gate uses its head"
    )
    ax.plot(log_alpha, one, color=BLUE, linestyle=":", linewidth=2, label="P(g = 1)")
    label = "evaluation, soft: value of g"
    ax.plot(log_alpha, soft_evaluation, color=VERMILION, linestyle="--", label=label)
    label = "evaluation, hard: value of g"
    ax.step(log_alpha, hard_evaluation, where="post", color=VERMILION, linewidth=1.5, label=label)
    ax.axvline(2, color=GREY, linewidth=0.8, linestyle=":")
    ax.text(2.1, 0.02, "start of\ntraining", color=GREY, va="bottom")
    ax.set(xlabel="log_alpha", ylabel="probability, or value of g")
    ax.set_title("Five curves that are all called “open”")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    plt.show()


# %%
log_alpha = np.linspace(-6, 6, 241)
soft_evaluation, _ = ops.hard_concrete_forward(log_alpha, None, **PAPER, hard=False)
hard_evaluation, _ = ops.hard_concrete_forward(log_alpha, None, **PAPER, hard=True)
np.testing.assert_array_equal(hard_evaluation, log_alpha >= 0)
assert abs(opening_log_alpha(GateConfig())) < 1e-15
np.testing.assert_allclose(P_above(0.5, log_alpha, **PAPER), ops.sigmoid(log_alpha), rtol=1e-12)

opened, one = ops.p_open(log_alpha, **PAPER), P_above(1.0, log_alpha, **PAPER)
draw_five_curves(log_alpha, opened, ops.sigmoid(log_alpha), one, soft_evaluation, hard_evaluation)
start = np.array(GateConfig().log_alpha_init)
opened, used, one = (P_above(x, start, **PAPER) for x in (0.0, 0.5, 1.0))
print(f"log_alpha = {start}: P(open) {opened:.3f}, P(g ≥ ½) {used:.3f}, P(g = 1) {one:.3f}")
assert round(float(opened), 3) == 0.943

# %% [markdown]
# The paper starts every `log_alpha` at 2, so that a head is open with probability 0.943 and training begins near the
# model that was trained. At 0, the usual initial value, hard gates would shut half of all heads in every step. Note
# also what the lines say about a half-open gate: L0 counts a head at `log_alpha = 0` as 0.69 of a head, hard forward
# passes use it half of the time, and evaluation uses it always.
#
# ## 5 · Backward
#
# $g$ is a chain of four functions, and the chain rule multiplies their derivatives. Clipping passes the gradient where
# $0<\bar s<1$ and stops it elsewhere, since a clipped gate does not move when $\bar s$ does. Then stretch, sigmoid,
# temperature:
#
# $$ \frac{\partial g}{\partial\,\mathtt{log\_alpha}} = \underbrace{\mathbf 1[0<\bar s<1]}_{\text{clip}}\cdot\underbrace{(\mathtt{zeta}-\mathtt{gamma})}_{\text{stretch}}\cdot
# \underbrace{s\,(1-s)}_{\text{sigmoid}}\cdot\underbrace{\frac{1}{\mathtt{beta}}}_{\text{temperature}} $$
#
# In evaluation the temperature is 1, and so is its factor.

# %%
show_source(ops.hard_concrete_backward, docstring=False)

# %% [markdown]
# The check needs gates below the clip range, inside it and above it, and none so close to a kink that a step of
# $10^{-5}$ crosses it. The tensor may have any shape.

# %%
log_alpha = np.array([[-3.0, -0.4, 0.1, 2.5], [0.3, -0.2, 1.0, -1.0]])  # (2, 4)
u = np.array([[0.3, 0.5, 0.55, 0.7], [0.4, 0.6, 0.2, 0.9]])  # (2, 4)
gate, _ = ops.hard_concrete_forward(log_alpha, u, **PAPER, hard=False)
print(np.array2string(gate, precision=3))
assert (gate == 0).any() and (gate == 1).any() and ((gate > 0) & (gate < 1)).sum() >= 4


def soft(log_alpha, u=u):
    """Compute the package's soft gate with this chapter's constants."""
    return ops.hard_concrete_forward(log_alpha, u, **PAPER, hard=False)


assert_gradients(soft, ops.hard_concrete_backward, log_alpha)  # complex step, to 1e-12
assert_gradients(soft, ops.hard_concrete_backward, log_alpha, mode="central")  # to 1e-7
assert_gradients(lambda x: soft(x, None), ops.hard_concrete_backward, log_alpha)  # evaluation

# %% [markdown]
# Two planted errors: the gradient passes the clip, or the temperature is forgotten.


# %%
def unclipped_backward(dout, cache):
    s, _, temperature, stretch = cache
    return dout * stretch * s * (1 - s) / temperature


def lukewarm_backward(dout, cache):
    s, inside, _, stretch = cache
    return dout * inside * stretch * s * (1 - s)


for planted in (unclipped_backward, lukewarm_backward):
    (record,) = check_gradients(soft, planted, log_alpha)
    print(f"{planted.__name__}: relative error {record.relative_error:.2f}, passed {record.passed}")
    assert not record.passed

# %% [markdown]
# The first is worse than its small error suggests: beyond the clip the forward pass is flat, and a gate would be pushed
# by a slope that does not exist. The second would go unnoticed for long without a check, because the gates still move in
# the right direction. But only the gradient of the *task* passes through this function; it would be three times too
# weak. The price of an open gate, the L0 loss of [chapter 05](05_l0_and_the_difference.ipynb), has a gradient of its
# own, which stays as it is. The balance between the two would shift, and more heads would close than they should.
#
# Now the same question about the hard gate, which comes next: is `hard_concrete_backward` the derivative of the *hard*
# forward?


# %%
def hard(log_alpha):
    """Compute the same gate with hard=True."""
    return ops.hard_concrete_forward(log_alpha, u, **PAPER, hard=True)


for mode in ("complex", "central"):
    (record,) = check_gradients(
        hard, ops.hard_concrete_backward, log_alpha, mode=mode, name="hard gate"
    )
    print(f"{mode:8} relative error {record.relative_error:.1e}, passed {record.passed}")
    assert record.passed == (mode == "complex")

# %% [markdown]
# Both answers are right. Ordinary differences see a function that jumps between 0 and 1 and is flat elsewhere: its
# derivative is zero, and backward claims something else. The complex step passes because the forward was written so
# that it does: `gate - gate.real` is zero for real numbers, and for complex ones it carries the derivative of the
# *soft* gate in the imaginary part. So the complex step checks that the code does what was intended. Whether the
# intention makes sense is a different question, which needs a measurement.
#
# ## 6 · Straight-through: what is exact and what is biased
#
# A soft gate of 0.7 neither keeps nor removes its head. The paper uses hard gates, also called **straight-through**
# (Bengio, Léonard & Courville 2013):
#
# - forward uses $\hat g = \mathbf 1[g\ge\frac12]$, so that a training step sees the model as it will be after pruning;
# - backward uses the gradient of $g$, as if $\hat g$ were $g$.
#
# What is the result on average? For a loss that depends on one gate we can compute everything exactly. First, the two
# quantities that one may want:
#
# - **Soft**: for one toss, $\mathtt{loss}(g)=\mathtt{loss}(0)+\int_0^1\mathtt{loss}'(x)\,\mathbf 1[g>x]\,\mathrm dx$. Take
#   the expectation, with $E\,\mathbf 1[g>x]=P(g>x)$:
#   $$ E[\mathtt{loss}(g)] = \mathtt{loss}(0)+\int_0^1\mathtt{loss}'(x)\,P(g>x)\,\mathrm dx. $$
#   Only $P$ depends on `log_alpha`, and by (3) its derivative is $P(1-P)$:
#   $$ \frac{\mathrm d}{\mathrm d\,\mathtt{log\_alpha}}E[\mathtt{loss}(g)] = \int_0^1 \mathtt{loss}'(x)\;P(g>x)\,\big(1-P(g>x)\big)\,\mathrm dx. \tag{4} $$
# - **Hard**: $E[\mathtt{loss}(\hat g)] = \mathtt{loss}(0) + P(g\ge\tfrac12)\,\big(\mathtt{loss}(1)-\mathtt{loss}(0)\big)$,
#   and hence the derivative $p\,(1-p)\,\big(\mathtt{loss}(1)-\mathtt{loss}(0)\big)$ with $p = P(g\ge\frac12)$.
#
# Second, what backpropagation computes from single tosses:
#
# - with soft gates, the mean of $\mathtt{loss}'(g)\,\partial g/\partial\,\mathtt{log\_alpha}$. By (2) it is (4):
#   **exact**;
# - with hard gates, the mean of $\mathtt{loss}'(\hat g)\,\partial g/\partial\,\mathtt{log\_alpha}$: the slope at 0 or 1
#   times the gradient at $g$. There is no guarantee that this is the derivative of anything.
#
# Measure it for a loss that is linear in $g$ (a *straight* line), one that is a parabola, and one with more curvature.
#
# **Before you look:** straight-through takes the loss's slope only at 0 and at 1, never in between. For which of the
# three losses do you expect it to come close to the exact derivative for hard gates?

# %%
LOSSES = {  # loss(g) and its derivative
    "straight: −g": (lambda g: -g, lambda g: -np.ones_like(g)),
    "parabola: (g − 0.3)²": (lambda g: (g - 0.3) ** 2, lambda g: 2 * (g - 0.3)),
    "cubic: g³": (lambda g: g**3, lambda g: 3 * g**2),
}


def exact_soft(slope, log_alpha):
    """Integrate formula (4) by Gauss-Legendre quadrature."""
    P = P_above(nodes, log_alpha, **PAPER)
    return (weights * slope(nodes) * P * (1 - P)).sum()


def exact_hard(loss, log_alpha):
    """Return the derivative of the expected loss of a hard gate; p does not depend on beta."""
    p = P_above(0.5, log_alpha, **PAPER)
    return p * (1 - p) * (loss(1.0) - loss(0.0))


def measured(slope, log_alpha, hard, n, beta=0.333):
    """Return the mean of n single-toss gradients by the package's forward and backward, and its standard error."""
    u, options = ops.draw_noise(n, rng, np.float64), PAPER | {"beta": beta, "hard": hard}
    gate, cache = ops.hard_concrete_forward(np.full(n, log_alpha), u, **options)  # (n,)
    dlog_alpha = ops.hard_concrete_backward(slope(gate), cache)  # (n,), dout = loss'(gate)
    return dlog_alpha.mean(), dlog_alpha.std() / np.sqrt(n)


# %%
titles = ("soft, exact", "soft, mean", "hard, exact", "straight-through")
print(f"{'log_alpha = 1':22}" + "".join(f"{title:>20}" for title in titles))
for name, (loss, slope) in LOSSES.items():
    of_soft, of_hard = exact_soft(slope, 1.0), exact_hard(loss, 1.0)
    mean, error = measured(slope, 1.0, hard=False, n=400_000)
    through, through_error = measured(slope, 1.0, hard=True, n=400_000)
    print(
        f"{name:22}{of_soft:20.4f}{mean:12.4f} ±{error:.4f}{of_hard:20.4f}{through:12.4f} ±{through_error:.4f}"
    )
    assert abs(mean - of_soft) < 5 * error  # exact: they differ only by noise
assert abs(through - of_hard) > 50 * through_error  # biased for the cubic: this is not noise

# %% [markdown]
# The soft gate's column agrees with its exact value up to noise, for every loss. Straight-through has the right sign in
# all three rows. It is right to one or two per cent for the linear loss, a third too large for the parabola and more
# than two thirds too large for the cubic.
#
# The reason shows when `beta` is small. Then $\partial g/\partial\,\mathtt{log\_alpha}$ is nonzero only for tosses
# close to the edge, half of them just below ½, where the slope is taken at 0, and half just above, where it is
# taken at 1. Hence
#
# $$ \text{straight-through} \;\longrightarrow\; p\,(1-p)\cdot\tfrac12\big(\mathtt{loss}'(0)+\mathtt{loss}'(1)\big) $$
#
# $$ \text{in place of}\qquad p\,(1-p)\,\big(\mathtt{loss}(1)-\mathtt{loss}(0)\big) = p\,(1-p)\int_0^1\mathtt{loss}'(x)\,\mathrm dx. $$
#
# It is the **trapezoid rule**: the area under $\mathtt{loss}'$ is replaced by the mean of its two ends. That rule is
# exact when $\mathtt{loss}'$ is a straight line, that is, for linear and parabolic losses; for $g^3$ it gives 1.5
# instead of 1. For the linear loss and the parabola, the bias that was measured at `beta` = 0.333 comes from `beta` not
# being small. With a small `beta` it is gone, while the cubic's stays:

# %%
for name, (loss, slope) in LOSSES.items():
    through, error = measured(slope, 1.0, hard=True, n=400_000, beta=0.02)
    p = ops.sigmoid(np.array(1.0))
    trapezoid = p * (1 - p) * slope(np.array([0.0, 1.0])).mean()
    print(
        f"beta = 0.02  {name:22} straight-through {through:.4f} ±{error:.4f}"
        f"   trapezoid {trapezoid:.4f}   exact {exact_hard(loss, 1.0):.4f}"
    )
    assert abs(through - trapezoid) < 5 * error + 0.005 * abs(trapezoid)

# %% jupyter={"source_hidden": true}
# Draws all four gradients against log_alpha, with beta = 0.333 again.
at = np.linspace(-4, 4, 17)
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.0), sharex=True)
for ax, (name, (loss, slope)) in zip(axes, LOSSES.items()):
    exact = [exact_hard(loss, a) for a in at]
    ax.plot(at, exact, color=VERMILION, linewidth=2, label="hard, exact")
    ax.plot(at, [exact_soft(slope, a) for a in at], color=BLUE, linestyle="--", label="soft, exact")
    for is_hard, marker, colour, label in (
        (False, "o", BLUE, "soft gates, mean of 20,000 tosses"),
        (True, "x", "black", "straight-through, mean of 20,000"),
    ):
        means = [measured(slope, a, is_hard, 20_000)[0] for a in at]
        ax.plot(at, means, marker, color=colour, markersize=5, markerfacecolor="none", label=label)
    ax.axhline(0, color=GREY, linewidth=0.6)
    ax.set(title=f"loss {name}", xlabel="log_alpha")
axes[0].set_ylabel("gradient of the expected loss")
lines = axes[0].get_legend_handles_labels()
figure.legend(*lines, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
plt.show()

# %% [markdown]
# The circles lie on the dashed line, as they must. For the linear loss all four nearly agree. For the parabola both the
# dashed line and the crosses lie to the right of the solid line: a gate that is mostly shut (left) learns more slowly than it
# should, one that is mostly open (right) faster. This is the effect of the temperature, and it vanishes with `beta`.
# For the cubic the crosses are far above both lines: this is the effect of the trapezoid rule, which stays.
#
# How curved is the loss of a real model as a function of one gate? [Chapter 05](05_l0_and_the_difference.ipynb) plots it
# for three heads, and checks for all of them that the trapezoid rule, which is exact for a parabola, comes close. That is
# why straight-through works in practice. It does not prove that it must.
#
# ## 7 · Temperature: rare and large, or frequent and small
#
# A draw that is clipped has no gradient. By section 3 the share of such draws is $1 - P(g>0) + P(g=1)$. Since $u$ is
# uniform, a plot of the gradient against $u$ shows everything: the width of the hump is the share of draws with a
# gradient, and the *area* under it is the mean gradient.
#
# **Before you look:** `beta` falls from 1.5 to 0.1. What happens to the width of the hump, to its height, and to the
# area?

# %% jupyter={"source_hidden": true}
# Draws the gradient of a draw against its noise, for several temperatures.


def draw_humps(u, betas, gradients):
    """Plot gradients[log_alpha][beta] (n,) against u (n,)."""
    figure, axes = plt.subplots(1, len(betas), figsize=(9.5, 2.7), sharey=True)
    looks = ((BLUE, "-"), (VERMILION, "--"))
    for row, ((log_alpha, found), (colour, style)) in enumerate(zip(gradients.items(), looks)):
        for ax, beta in zip(axes, betas):
            gradient = found[beta]
            ax.fill_between(u, gradient, color=colour, alpha=0.15)
            ax.plot(u, gradient, color=colour, linestyle=style, label=f"log_alpha {log_alpha:g}")
            words = f"{(gradient == 0).mean():.0%} zero, mean {gradient.mean():.2f}, spread {gradient.std():.2f}"
            ax.text(
                0.98,
                0.95 - 0.1 * row,
                words,
                transform=ax.transAxes,
                ha="right",
                color=colour,
                fontsize=7.5,
            )
            ax.set(title=f"beta = {beta:.3g}", xlabel="noise u", ylim=(0, 4.3))
    axes[0].set_ylabel("∂g / ∂log_alpha of one draw")
    axes[1].legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.6))
    plt.show()


# %%
def gradients_of_draws(u, log_alpha, **options):
    """Return ∂g/∂log_alpha of every draw u (n,)."""
    _, cache = ops.hard_concrete_forward(np.full_like(u, log_alpha), u, **options, hard=False)
    return ops.hard_concrete_backward(np.ones_like(u), cache)


u, betas = np.linspace(0.0005, 0.9995, 2000), (0.1, 0.333, 2 / 3, 1.5)
gradients = {
    a: {beta: gradients_of_draws(u, a, **PAPER | {"beta": beta}) for beta in betas}
    for a in (0.0, 2.0)
}
draw_humps(u, betas, gradients)
for log_alpha, found in gradients.items():
    zero = 1 - P_above(0.0, log_alpha, **PAPER) + P_above(1.0, log_alpha, **PAPER)
    assert abs((found[0.333] == 0).mean() - zero) < 3 / len(u)  # the grid is not finer
    small, usual = found[0.1], found[0.333]
    assert 0.8 < small.mean() / usual.mean() < 1.25 and small.std() > 1.5 * usual.std()

# %% [markdown]
# Up to the temperatures in use, `beta` hardly changes the area: the mean gradient is nearly that of the coin, $p(1-p)$.
# What changes is its distribution, and with it the spread of a single draw's gradient. With a small `beta`, gates are
# almost always exactly 0 or 1: about nine steps of ten teach a gate nothing, and the tenth moves it far. A large `beta`
# gives a gradient in almost every draw, but from gates that are almost never what they will be in evaluation. Commonly
# used values lie between 0.33 and 0.67.
#
# The package also uses the clip for speed. A hard gate that is shut *and* clipped neither affects the forward pass nor
# has a gradient, so its head is not computed at all in that step ([`model/gates.py`](../tinyprune/model/gates.py)).
#
# ## 8 · Turn the knobs
#
# The left picture shows the distribution, derived and sampled; the right one shows the gradient of every draw against
# its noise. `stretch` is how far both ends are moved: `gamma` = −`stretch`, `zeta` = 1 + `stretch`.
#
# **Before you look:** set `log_alpha` to 0 and `beta` to 1. What is $s$ then, and what is the density of the gate
# between 0 and 1? And what does a wide stretch do to the share of draws with a gradient?

# %% jupyter={"source_hidden": true}
# Draws distribution and gradients for the sliders' values.


def turn(log_alpha=2, beta=0.333, stretch=0.1):
    options = {"beta": beta, "gamma": -stretch, "zeta": 1 + stretch}
    u = ops.draw_noise(20_000, np.random.default_rng(0), np.float64)
    g, _ = ops.hard_concrete_forward(np.full_like(u, log_alpha), u, **options, hard=False)
    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 2.4))
    bins, x = np.linspace(0, 1, 31), np.linspace(0, 1, 201)
    counts = np.histogram(g[(g > 0) & (g < 1)], bins)[0]
    left.stairs(counts / len(u) * 30, bins, fill=True, color=BLUE, alpha=0.35)
    curve = density(x, log_alpha, **options)
    left.plot(x, curve, color=BLUE, linewidth=1.6)
    opened, one = (P_above(end, log_alpha, **options) for end in (0.0, 1.0))
    for end, p, share in ((-0.06, 1 - opened, (g == 0).mean()), (1.06, one, (g == 1).mean())):
        left.bar(end, share, 0.09, color=VERMILION, alpha=0.45)
        left.plot(end, p, "D", color=VERMILION, markersize=4)
    left.set(
        xlim=(-0.2, 1.2), ylim=(0, max(1.2, 1.05 * curve.max())), xticks=[0, 0.5, 1], xlabel="g"
    )
    left.set_title(f"P(open) = {opened:.3f}", fontsize=9)
    even = np.linspace(0.0005, 0.9995, 2000)
    gradient = gradients_of_draws(even, log_alpha, **options)
    right.fill_between(even, gradient, color=GREY, alpha=0.25)
    right.plot(even, gradient, color="black", linewidth=1.4)
    right.set(xlim=(0, 1), ylim=(0, max(2.4, 1.05 * gradient.max())), xlabel="noise u")
    right.set_title(f"∂g/∂log_alpha: {(gradient == 0).mean():.0%} zero", fontsize=9)
    plt.show()


# %%
sliders(turn, log_alpha=(-2, 4, 2), beta=[0.1, 0.333, 1.0], stretch=[0.1, 1.0])
np.testing.assert_allclose(density(nodes, 0.0, 1.0, -0.1, 1.1), 1 / 1.2)

# %% [markdown]
# `log_alpha` moves weight from 0 to 1, and the hump with it. `beta` determines how much lies in between, and how high
# and narrow the hump is; with `beta` = 1 and `log_alpha` = 0 the density is flat, since $s$ is then $u$ itself. A wider
# stretch leaves hardly anything between 0 and 1: the clip cuts off the hump's shoulders, and most draws have no
# gradient.
#
# ## 9 · Who uses which values
#
# The same gate appears in three well-known papers with different constants. Numbers such as "how open is `log_alpha` =
# 2" do not carry over from one to another.

# %% jupyter={"source_hidden": true}
# Prints three papers' constants and what they mean.
USERS = {
    "Louizos et al. 2018": (2 / 3, "soft"),
    "Voita et al. 2019": (0.33, "soft"),
    "Shim et al. 2021": (0.333, "hard"),
}
print(f"{'':22} beta  forward   at log_alpha 2: P(open)  P(g = 1)  between   at 0: between")
for name, (beta, forward) in USERS.items():
    (opened, one), (half, half_one) = (
        [P_above(x, log_alpha, beta, -0.1, 1.1) for x in (0.0, 1.0)] for log_alpha in (2.0, 0.0)
    )
    print(
        f"{name:22}{beta:5.3f}{forward:>9}{opened:26.3f}{one:10.3f}{opened - one:9.3f}{half - half_one:16.3f}"
    )

# %% [markdown]
# Louizos et al. pruned weights and neurons. With their temperature about twice as many gates lie between 0 and 1.
# Voita et al. pruned the heads of translation models with the smaller temperature and soft gates. A soft gate that
# stays open may end between 0 and 1; its value is then multiplied into the head's output matrix. Shim et al., the paper
# of this project, use that temperature and a hard forward pass. The package has all three as settings: `gate.beta`,
# `gate.gamma`, `gate.zeta` and `gate.hard`.
#
# Does it matter? The full study, whose [results](../data/results/README.md) come with the project, has both: the
# paper's gates, and soft ones as Voita's (without the output scaling that the paper adds, see
# [chapter 06](06_training_with_gates.ipynb)), with three seeds, removed and fine-tuned in the same way. The printed
# numbers are mean and standard deviation over the seeds.
#
# **Before you look:** soft gates have an exact gradient, hard gates train the model as it will be. Which do you expect
# to be better?

# %% jupyter={"source_hidden": true}
# Read what the study says of soft gates.
overlap = []
for record in read_csv(results("tradeoff-pydoc", "comparison.csv").read_text("utf-8")):
    if record["method"] == "voita" and record["reference"] == "gates":
        overlap.append(abs(record["difference"]) < record["spread"])
        print(
            f"{record['heads_open']:2} of 32 heads: soft gates need {record['difference']:+.3f} ± {record['spread']:.3f} "
            "bits per character more than hard ones"
        )
assert overlap == [True, False, True, True, True]

# %% [markdown]
# At four of the five sizes the difference is smaller than its spread. With 22 heads soft gates are worse by little more
# than the spread. Three seeds do not show that either arm is better. The arms differ in two things, so the study does not
# say what each of them does by itself: in it, with its short training, hard gates with output scaling and soft gates
# without it come out about equal.
#
# ## Recap
#
# - A gate is 0, 1 or in between: logistic noise plus `log_alpha`, through a sigmoid with temperature `beta`, stretched
#   to (`gamma`, `zeta`) and clipped. One formula, $P(g>x)$, gives its whole distribution.
# - The gradient of a draw is a product of four factors. It is zero where the clip acts, and its mean is exact for soft
#   gates.
# - A hard gate uses 0 or 1 in the forward pass and the soft gate's gradient in the backward pass. This gradient has two
#   biases: one from the temperature, which vanishes with `beta`, and one from the trapezoid rule, which does not, but is
#   zero for a loss that is linear or a parabola.
#
# ## Now you
#
# Replace the line `raise NotImplementedError(…)` by your code and run the cell. It prints nothing if the check passes.

# %% [markdown]
# ### Exercise 1 · The gate
#
# Write the soft gate of section 2 for `log_alpha` (n,) and noise `u` (n,) in (0, 1): smooth, stretch, clip.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops


def gate(log_alpha, u, beta, gamma, zeta):
    """Return the gates g (n,), each from 0 to 1, of log_alpha (n,) and noise u (n,)."""
    raise NotImplementedError("write gate: return g, (n,)")


rng = np.random.default_rng(0)
log_alpha, u = rng.normal(0, 2, 12), rng.uniform(0.01, 0.99, 12)
for options in (
    {"beta": 0.333, "gamma": -0.1, "zeta": 1.1},
    {"beta": 2.0, "gamma": -0.3, "zeta": 1.5},
):
    found = gate(log_alpha, u, **options)
    expected, _ = ops.hard_concrete_forward(log_alpha, u, **options, hard=False)
    assert np.allclose(found, expected), f"{options}: expected {expected}, got {found}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# The noise is $\log\frac{u}{1-u}$. The temperature divides the sum of noise and `log_alpha`.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def gate(log_alpha, u, beta, gamma, zeta):
#     noise = np.log(u) - np.log(1 - u)
#     s = 1 / (1 + np.exp(-(noise + log_alpha) / beta))
#     return np.clip(s * (zeta - gamma) + gamma, 0, 1)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · Its gradient
#
# The forward pass is given; its cache holds $s$ and whether the clip lets the value pass, both (n,). Write the gradient
# with respect to `log_alpha` (n,) from `dout` (n,).

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.testing import assert_gradients

beta, gamma, zeta = 0.333, -0.1, 1.1
log_alpha = np.array([-3.0, -0.4, 0.1, 2.5, 0.3, -0.2, 1.0, -1.0])
u = np.array([0.3, 0.5, 0.55, 0.7, 0.4, 0.6, 0.2, 0.9])


def gate_forward(log_alpha):
    s = 1 / (1 + np.exp(-(np.log(u / (1 - u)) + log_alpha) / beta))
    stretched = s * (zeta - gamma) + gamma
    inside = (stretched.real > 0) & (stretched.real < 1)
    return np.where(inside, stretched, stretched.real >= 1), (s, inside)


def gate_backward(dout, cache):
    """Return dlog_alpha (n,) from dout (n,) and the cache of gate_forward."""
    s, inside = cache
    raise NotImplementedError("write gate_backward: return dlog_alpha, (n,)")


assert_gradients(gate_forward, gate_backward, log_alpha, argument_names=["log_alpha"])

# %% [markdown]
# <details><summary>Hint</summary>
#
# Four factors, from the end of the chain to its start: clip, stretch, sigmoid, temperature.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def gate_backward(dout, cache):
#     s, inside = cache
#     dstretched = dout * inside
#     ds = dstretched * (zeta - gamma)
#     return ds * s * (1 - s) / beta
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · The bias of straight-through
#
# For a loss of one gate, return what straight-through computes on average minus the exact derivative for hard gates.
# Given are the functions `loss` and `slope` (its derivative), the probability `p` = P(g ≥ ½), and for n tosses the soft
# gates `g` (n,) and their gradients `dg` = ∂g/∂log_alpha (n,).

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops


def bias(loss, slope, p, g, dg):
    """Return the mean straight-through gradient minus the exact one, a number."""
    raise NotImplementedError(
        "write bias: return the mean over all tosses minus the exact derivative"
    )


options = {"beta": 0.1, "gamma": -0.1, "zeta": 1.1}
u = (np.arange(100_000) + 0.5) / 100_000
g, cache = ops.hard_concrete_forward(np.ones_like(u), u, **options, hard=False)
dg, p = ops.hard_concrete_backward(np.ones_like(u), cache), 1 / (1 + np.exp(-1))  # log_alpha = 1
for name, loss, slope, factor in (
    ("3g", lambda g: 3 * g, lambda g: 3 + 0 * g, 0),
    ("g³", lambda g: g**3, lambda g: 3 * g**2, 1 / 2),  # the trapezoid rule gives 3/2 in place of 1
    ("(g − 1)³", lambda g: (g - 1) ** 3, lambda g: 3 * (g - 1) ** 2, 1 / 2),
):
    found, expected = bias(loss, slope, p, g, dg), factor * p * (1 - p)
    assert abs(found - expected) < 0.02, f"loss {name}: expected {expected:.2f}, got {found:.2f}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# The forward pass uses $\hat g$, which is 0 or 1, and so the slope is taken there; the gradient is that of $g$. The
# exact derivative is in section 6, under **Hard**.
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
#
# In the [assignments](assignments/README.md), tasks a3_1 to a3_3 are the soft gate, the hard gate and its probability of
# being open.

# %% [markdown]
# ## Questions
#
# 1. A gate has drifted to `log_alpha` = −6. What are its chances of coming back?
#
# <details><summary>Answer</summary>
#
# Small, but not zero. P(open) is sigmoid(−6 + 0.8), about half a per cent: in one step of about two hundred the gate is
# above 0, and only then can the task's gradient reach it. (The L0 loss pushes it in every step, but downwards.) In
# evaluation it has been shut for a long time.
#
# </details>
#
# 2. Why is the noise clipped to $10^{-6}\le u\le 1-10^{-6}$ in `draw_noise`?
#
# <details><summary>Answer</summary>
#
# At exactly $u=0$ or $u=1$ the noise would be infinite. In float32 numbers just below 1 round to 1, so this would
# happen. This affects only draws beyond ±13.8, and those are clipped anyway for every `log_alpha` between −13 and 13.
#
# </details>
#
# 3. Give a loss for which straight-through pushes the gate the *wrong way* on average.
#
# <details><summary>Answer</summary>
#
# One where the mean of the end slopes and the difference of the end values have different signs, for instance
# $\mathtt{loss}(g) = g - 3g^2+1.9g^3$: its slopes at 0 and 1 are 1 and 0.7, and yet $\mathtt{loss}(1)-\mathtt{loss}(0) =
# -0.1$. The head is worth keeping, and straight-through (with a small `beta`) closes it.
#
# </details>
#
# 4. In evaluation the hard gate opens at `log_alpha` = 0. Is that still so with `gamma` = −0.1 and `zeta` = 1.5?
#
# <details><summary>Answer</summary>
#
# No: $\log\frac{0.5+0.1}{1.5-0.5}=\log 0.6\approx-0.51$. `opening_log_alpha` computes it, and all code that needs the
# border calls it.
#
# </details>
#
# **Next:** [05 the L0 loss and the difference](05_l0_and_the_difference.ipynb): what closes a gate, what holds it open,
# and why the gradient of a gate is exactly the difference that its head makes to the layer's output, weighted by the
# loss's gradient. The operations of this chapter are in [`ops/hard_concrete.py`](../tinyprune/ops/hard_concrete.py) and
# [`ops/l0.py`](../tinyprune/ops/l0.py); how all layers' gates go through them in one call is in
# [`model/gates.py`](../tinyprune/model/gates.py).

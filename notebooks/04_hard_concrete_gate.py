# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 04 · The Hard-Concrete gate
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/04_hard_concrete_gate.ipynb)
# &nbsp; ← [03 all-attention](03_all_attention.ipynb) · [all chapters](README.md) · [05 the L0 loss and the difference](05_l0_and_the_difference.ipynb) →
#
# **After this chapter you can** explain how an on-off switch can be learned by gradient descent, derive its whole
# distribution from one formula, write its backward pass, and say which of its gradients are exact and which are not.
#
# **You need** [chapter 01](01_backprop_by_hand.ipynb), probabilities and expectations, and the derivative of the
# sigmoid. It takes half an hour to read and a few seconds to run.

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
import matplotlib.pyplot as plt
import numpy as np

from tinyprune import GateConfig, assert_gradients, check_gradients, ops
from tinyprune.experiments.results import read_csv
from tinyprune.notebook import results, show_source, sliders, use_style
from tinyprune.plots import BLUE, GREY, VERMILION
from tinyprune.pruning.gates import opening_log_alpha

use_style()
rng = np.random.default_rng(0)
PAPER = {
    "beta": 0.333,
    "gamma": -0.1,
    "zeta": 1.1,
}  # the values of the paper, and the package's defaults

# %% [markdown]
# ## 1 · A switch has no gradient
#
# To find out which attention heads a model can do without, give every head a factor, its **gate** $g_h$, and multiply
# all that the head adds by it. A gate of 1 leaves the head unchanged. A gate of 0 removes its effect, and then the head can
# be removed from the model for good ([chapter 07](07_removing_heads.ipynb)). Nothing in between helps: a head with a
# gate of 0.03 costs as much time as a whole one.
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
# section
# 6. And the odd expression `gate - gate.real` is zero; section 5 says what it is for.
#
# The picture shows the same noise after each of the three changes.

# %%
noise = np.linspace(-6, 6, 601)
u = ops.sigmoid(noise)  # the u that gives this noise, by (1)
beta, gamma, zeta = PAPER.values()
s = ops.sigmoid(noise / beta)  # with log_alpha = 0
stretched = s * (zeta - gamma) + gamma
gate, _ = ops.hard_concrete_forward(np.zeros_like(u), u, **PAPER, hard=False)
np.testing.assert_allclose(gate, np.clip(stretched, 0, 1), atol=1e-12)

figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.5), sharey=True)
for ax, (title, y) in zip(
    axes,
    {"the step": noise >= 0, "1 smear: s": s, "2 stretch: s̄": stretched, "3 clip: g": gate}.items(),
):
    ax.axhspan(0, 1, color=GREY, alpha=0.12, linewidth=0)
    ax.plot(noise, y, color=BLUE, linewidth=1.8)
    ax.set(title=title, xlabel="noise + log_alpha", ylim=(-0.2, 1.2), xlim=(-3, 3))
clipped = (gate == 0) | (gate == 1)
for part in (noise < 0, noise > 0):
    axes[3].plot(noise[clipped & part], gate[clipped & part], color=VERMILION, linewidth=3.5)
axes[3].text(-2.9, 0.08, "exactly 0", color=VERMILION)
axes[3].text(2.9, 0.92, "exactly 1", color=VERMILION, ha="right", va="top")
axes[0].set_ylabel("value")
plt.show()

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


def draws(log_alpha, beta, gamma, zeta, n, rng):
    """Draw n soft gates with the package's operation."""
    u = ops.draw_noise(n, rng, np.float64)
    return ops.hard_concrete_forward(
        np.full(n, log_alpha), u, beta=beta, gamma=gamma, zeta=zeta, hard=False
    )[0]


show_source(ops.p_open, docstring=False)
for log_alpha in (-2.0, 0.0, 2.0):
    assert np.isclose(
        P_above(0.0, log_alpha, **PAPER), ops.p_open(np.array(log_alpha), **PAPER), rtol=1e-14
    )

# the density and the two point masses add up to 1: Gauss-Legendre integration over (0, 1)
nodes, weights = np.polynomial.legendre.leggauss(60)
nodes, weights = (nodes + 1) / 2, weights / 2
for log_alpha in (-2.0, 0.0, 2.0):
    inside = (weights * density(nodes, log_alpha, **PAPER)).sum()
    whole = (1 - P_above(0.0, log_alpha, **PAPER)) + inside + P_above(1.0, log_alpha, **PAPER)
    assert abs(whole - 1) < 1e-12

# %% [markdown]
# Two formulas can share a mistake. The draws of the package do not use (3), so let them decide. Among $n$ draws, an
# event of probability $p$ has the frequency $p$ with a standard error of $\sqrt{p(1-p)/n}$. We count exact zeros, exact
# ones, and 40 bins in between, and express every deviation in standard errors. If the formulas hold, none of the 168
# numbers should exceed 5. Could this check fail at all? The last printed line tries a planted mistake, a P(open) that
# forgets `beta`.

# %%
n, edges = 200_000, np.linspace(0, 1, 41)
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.9), sharey=True)
grid = np.linspace(0, 1, 401)
worst = 0.0
for ax, log_alpha in zip(axes, (-2.0, 0.0, 2.0, 4.0)):
    g = draws(log_alpha, **PAPER, n=n, rng=rng)  # (n,)
    counts = np.histogram(g[(g > 0) & (g < 1)], edges)[0]
    found = np.concatenate([[(g == 0).mean()], counts / n, [(g == 1).mean()]])  # (42,)
    above = P_above(edges, log_alpha, **PAPER)  # (41,)
    expected = np.concatenate([[1 - above[0]], above[:-1] - above[1:], [above[-1]]])  # (42,)
    deviations = (found - expected) / np.sqrt(expected * (1 - expected) / n)
    worst = max(worst, np.abs(deviations).max())

    ax.bar(
        edges[:-1],
        counts / n / np.diff(edges),
        np.diff(edges),
        align="edge",
        color=BLUE,
        alpha=0.35,
    )
    ax.plot(grid, density(grid, log_alpha, **PAPER), color=BLUE, linewidth=1.8)
    for x, share, p in ((0, found[0], expected[0]), (1, found[-1], expected[-1])):
        ax.bar(x + 0.13 * (2 * x - 1), share, 0.09, color=VERMILION, alpha=0.45)
        ax.plot(x + 0.13 * (2 * x - 1), p, "D", color=VERMILION, markersize=5)
        ax.text(
            x + 0.13 * (2 * x - 1),
            p + 0.03,
            f"{p:.3f}",
            ha="center",
            va="bottom",
            fontsize=8,
            color=VERMILION,
        )
    ax.set(
        title=f"log_alpha = {log_alpha:g}",
        xlabel="g",
        ylim=(0, 1.08),
        xlim=(-0.36, 1.36),
        xticks=[0, 0.5, 1],
    )
axes[0].set_ylabel("red: probability of exactly 0 or 1\nblue: density between", fontsize=8)
figure.suptitle("Bars: 200,000 draws of the package. Lines and diamonds: the formulas", fontsize=10)
plt.show()
print(f"largest of 168 deviations: {worst:.1f} standard errors")
assert worst < 5

g = draws(2.0, **PAPER, n=n, rng=rng)
planted = ops.sigmoid(np.array(2.0 - np.log(0.1 / 1.1)))  # P(open) without beta
deviation = ((g > 0).mean() - planted) / np.sqrt(planted * (1 - planted) / n)
print(
    f"planted: P(open) = {planted:.3f}, but {(g > 0).mean():.3f} of the draws are open: {abs(deviation):.0f} standard errors"
)
assert abs(deviation) > 50

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

# %%
show_source(opening_log_alpha)
log_alpha = np.linspace(-6, 6, 241)
soft_evaluation, _ = ops.hard_concrete_forward(log_alpha, None, **PAPER, hard=False)
hard_evaluation, _ = ops.hard_concrete_forward(log_alpha, None, **PAPER, hard=True)
np.testing.assert_array_equal(hard_evaluation, log_alpha >= 0)
assert abs(opening_log_alpha(GateConfig())) < 1e-15
np.testing.assert_allclose(P_above(0.5, log_alpha, **PAPER), ops.sigmoid(log_alpha), rtol=1e-12)

figure, ax = plt.subplots(figsize=(7.5, 3.4))
ax.plot(
    log_alpha, ops.p_open(log_alpha, **PAPER), color=BLUE, linewidth=2, label="P(open) = P(g > 0)"
)
ax.plot(
    log_alpha,
    ops.sigmoid(log_alpha),
    color=BLUE,
    linestyle="--",
    label="P(g ≥ ½): a hard gate uses its head",
)
ax.plot(
    log_alpha,
    P_above(1.0, log_alpha, **PAPER),
    color=BLUE,
    linestyle=":",
    linewidth=2,
    label="P(g = 1)",
)
ax.plot(
    log_alpha,
    soft_evaluation,
    color=VERMILION,
    linestyle="--",
    label="evaluation, soft: value of g",
)
ax.step(
    log_alpha,
    hard_evaluation,
    where="post",
    color=VERMILION,
    linewidth=1.5,
    label="evaluation, hard: value of g",
)
ax.axvline(2, color=GREY, linewidth=0.8, linestyle=":")
ax.text(2.1, 0.02, "start of\ntraining", color=GREY, va="bottom")
ax.set(
    xlabel="log_alpha",
    ylabel="probability, or value of g",
    title="Five curves that are all called “open”",
)
ax.legend(frameon=False, fontsize=8, loc="upper left")
plt.show()

start = np.array(GateConfig().log_alpha_init)
print(f"at the start, log_alpha = {start}:")
print(f"    P(open)   = {ops.p_open(start, **PAPER):.3f}")
print(f"    P(g ≥ ½)  = {ops.sigmoid(start):.3f}")
print(f"    P(g = 1)  = {P_above(1.0, start, **PAPER):.3f}")
assert round(float(ops.p_open(start, **PAPER)), 3) == 0.943

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


def hard(log_alpha):
    """Compute the same gate with hard=True."""
    return ops.hard_concrete_forward(log_alpha, u, **PAPER, hard=True)


assert_gradients(soft, ops.hard_concrete_backward, log_alpha)  # complex step, to 1e-12
assert_gradients(
    soft, ops.hard_concrete_backward, log_alpha, mode="central"
)  # ordinary differences, to 1e-7
assert_gradients(lambda x: soft(x, None), ops.hard_concrete_backward, log_alpha)  # evaluation


def unclipped_backward(dout, cache):
    """Compute a planted error: the gradient passes the clip."""
    s, _, temperature, stretch = cache
    return dout * stretch * s * (1 - s) / temperature


def lukewarm_backward(dout, cache):
    """Compute a planted error: the temperature is forgotten."""
    s, inside, _, stretch = cache
    return dout * inside * stretch * s * (1 - s)


for planted in (unclipped_backward, lukewarm_backward):
    try:
        assert_gradients(soft, planted, log_alpha, argument_names=["log_alpha"])
    except AssertionError as error:
        print(f"{planted.__name__}:\n{error}")
    else:
        raise AssertionError("the planted bug was not found")

# %% [markdown]
# The second of these would go unnoticed for long: the gates would still move in the right direction, three times too
# slowly, and only a check reveals it. The first is worse than it looks, because beyond the clip the forward pass is
# flat, and a gate would be pushed by a slope that does not exist.
#
# Now the same question about the hard gate, which comes next: is `hard_concrete_backward` the derivative of the *hard*
# forward?

# %%
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
# - **Soft**: $E[\mathtt{loss}(g)] = \mathtt{loss}(0)+\int_0^1\mathtt{loss}'(x)\,P(g>x)\,\mathrm dx$ (integrate by parts).
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

# %%
LOSSES = {  # loss(g) and its derivative
    "straight: −g": (lambda g: -g, lambda g: -np.ones_like(g)),
    "parabola: (g − 0.3)²": (lambda g: (g - 0.3) ** 2, lambda g: 2 * (g - 0.3)),
    "cubic: g³": (lambda g: g**3, lambda g: 3 * g**2),
}


def exact_soft(slope, log_alpha, beta=0.333, gamma=-0.1, zeta=1.1):
    """Integrate formula (4) by Gauss-Legendre quadrature."""
    P = P_above(nodes, log_alpha, beta, gamma, zeta)
    return (weights * slope(nodes) * P * (1 - P)).sum()


def exact_hard(loss, log_alpha, beta=0.333, gamma=-0.1, zeta=1.1):
    """Return the derivative of the expected loss of a hard gate."""
    p = P_above(0.5, log_alpha, beta, gamma, zeta)
    return p * (1 - p) * (loss(1.0) - loss(0.0))


def measured(slope, log_alpha, hard, n, rng, beta=0.333, gamma=-0.1, zeta=1.1):
    """Return the mean of n single-toss gradients by the package's forward and backward, and its standard error."""
    u = ops.draw_noise(n, rng, np.float64)
    gate, cache = ops.hard_concrete_forward(
        np.full(n, log_alpha), u, beta=beta, gamma=gamma, zeta=zeta, hard=hard
    )  # (n,)
    dlog_alpha = ops.hard_concrete_backward(slope(gate), cache)  # (n,), dout = loss'(gate)
    return dlog_alpha.mean(), dlog_alpha.std() / np.sqrt(n)


print(
    f"{'log_alpha = 1':22}{'soft, exact':>13}{'soft, mean':>20}{'hard, exact':>13}{'straight-through':>20}"
)
biases = {}
for name, (loss, slope) in LOSSES.items():
    of_soft, of_hard = exact_soft(slope, 1.0), exact_hard(loss, 1.0)
    mean, error = measured(slope, 1.0, hard=False, n=400_000, rng=rng)
    through, through_error = measured(slope, 1.0, hard=True, n=400_000, rng=rng)
    print(
        f"{name:22}{of_soft:13.4f}{mean:12.4f} ±{error:.4f}{of_hard:13.4f}{through:12.4f} ±{through_error:.4f}"
    )
    assert abs(mean - of_soft) < 5 * error  # exact: they differ only by noise
    biases[name] = (through - of_hard) / through_error
print(
    "straight-through against hard, in standard errors:",
    ", ".join(f"{b:+.0f}" for b in biases.values()),
)
assert abs(biases["cubic: g³"]) > 50  # biased: this is not noise

# %% [markdown]
# The soft gate's column agrees with its exact value up to noise, for every loss. Straight-through has the right sign in
# all three rows. It is right to about one per cent for the linear loss, a third too large for the parabola and more
# than two thirds too large for the cubic.
#
# The reason is worth knowing. Let `beta` be small. Then $\partial g/\partial\,\mathtt{log\_alpha}$ is nonzero only for
# tosses close to the edge, half of them just below ½, where the slope is taken at 0, and half just above, where it is
# taken at 1. So
#
# $$ \text{straight-through} \;\longrightarrow\; p\,(1-p)\cdot\tfrac12\big(\mathtt{loss}'(0)+\mathtt{loss}'(1)\big) $$
#
# $$ \text{in place of}\qquad p\,(1-p)\,\big(\mathtt{loss}(1)-\mathtt{loss}(0)\big) = p\,(1-p)\int_0^1\mathtt{loss}'(x)\,\mathrm dx. $$
#
# It is the **trapezoid rule**: the area under $\mathtt{loss}'$ is replaced by the mean of its two ends. That rule is
# exact when $\mathtt{loss}'$ is a straight line, that is, for linear and parabolic losses; for $g^3$ it gives 1.5
# instead of 1. For those two, the remaining bias at `beta` = 0.333 comes from `beta` not being small.

# %%
for name, (loss, slope) in LOSSES.items():
    through, error = measured(slope, 1.0, hard=True, n=400_000, rng=rng, beta=0.02)
    p = ops.sigmoid(np.array(1.0))
    ends = np.array([0.0, 1.0])
    trapezoid = p * (1 - p) * slope(ends).mean()
    exact = exact_hard(loss, 1.0, beta=0.02)
    print(
        f"beta = 0.02  {name:22} straight-through {through:.4f} ±{error:.4f}   trapezoid {trapezoid:.4f}   exact {exact:.4f}"
    )
    assert abs(through - trapezoid) < 5 * error + 0.005 * abs(trapezoid)

at = np.linspace(-4, 4, 17)
figure, axes = plt.subplots(1, 3, figsize=(9.5, 3.0), sharex=True)
for ax, (name, (loss, slope)) in zip(axes, LOSSES.items()):
    ax.plot(
        at, [exact_hard(loss, a) for a in at], color=VERMILION, linewidth=2, label="hard, exact"
    )
    ax.plot(at, [exact_soft(slope, a) for a in at], color=BLUE, linestyle="--", label="soft, exact")
    for is_hard, marker, colour, label in (
        (False, "o", BLUE, "soft gates, mean of 20,000 throws"),
        (True, "x", "black", "straight-through, mean of 20,000"),
    ):
        means = [measured(slope, a, is_hard, 20_000, rng)[0] for a in at]
        ax.plot(at, means, marker, color=colour, markersize=5, markerfacecolor="none", label=label)
    ax.axhline(0, color=GREY, linewidth=0.6)
    ax.set(title=f"loss {name}", xlabel="log_alpha")
axes[0].set_ylabel("gradient of the expected loss")
figure.legend(
    *axes[0].get_legend_handles_labels(),
    loc="outside lower center",
    ncols=4,
    frameon=False,
    fontsize=8,
)
plt.show()

# %% [markdown]
# Circles lie on the dashed line, as they must. For the linear loss all four nearly agree. For the parabola both dashed
# line and crosses lie to the right of the solid line: a gate that is mostly shut (left) learns more slowly than it
# should, one that is mostly open (right) faster. This is the effect of the temperature, and it vanishes with `beta`.
# For the cubic the crosses are far above both lines: this is the effect of the trapezoid rule, which stays.
#
# How curved is the loss of a real model as a function of one gate? [Chapter 05](05_l0_and_the_difference.ipynb) plots
# it: for most heads it is close to a parabola, and for a parabola the trapezoid rule is exact. That is why
# straight-through works in practice. It does not prove that it must.
#
# ## 7 · Temperature: rare and large, or frequent and small
#
# A draw that is clipped has no gradient. By section 3 the share of such draws is $1 - P(g>0) + P(g=1)$. Since $u$ is
# uniform, a plot of the gradient against $u$ shows everything: the width of the hump is the share of draws with a
# gradient, and the *area* under it is the mean gradient.

# %%
u = np.linspace(0.0005, 0.9995, 2000)
betas = (0.1, 0.333, 2 / 3, 1.5)
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.7), sharey=True)
for ax, beta in zip(axes, betas):
    for log_alpha, colour, style in ((0.0, BLUE, "-"), (2.0, VERMILION, "--")):
        options = PAPER | {"beta": beta}
        _, cache = ops.hard_concrete_forward(np.full_like(u, log_alpha), u, **options, hard=False)
        gradient = ops.hard_concrete_backward(np.ones_like(u), cache)  # ∂g/∂log_alpha of each draw
        ax.fill_between(u, gradient, color=colour, alpha=0.15)
        ax.plot(u, gradient, color=colour, linestyle=style, label=f"log_alpha {log_alpha:g}")
        zero = 1 - P_above(0.0, log_alpha, **options) + P_above(1.0, log_alpha, **options)
        assert abs((gradient == 0).mean() - zero) < 3 / len(
            u
        )  # a share of a grid: accurate to its spacing
        ax.text(
            0.97,
            0.95 if log_alpha == 0 else 0.85,
            f"{zero:.0%} zero, area {gradient.mean():.2f}",
            transform=ax.transAxes,
            ha="right",
            color=colour,
            fontsize=8,
        )
    ax.set(title=f"beta = {beta:.3g}", xlabel="noise u", ylim=(0, 4.1))
axes[0].set_ylabel("∂g / ∂log_alpha of one draw")
axes[1].legend(frameon=False, fontsize=8, loc="center right", bbox_to_anchor=(1.0, 0.6))
plt.show()

# %% [markdown]
# Up to the temperatures in use, `beta` hardly changes the area: the mean gradient is nearly that of the coin, $p(1-p)$.
# What changes is its distribution. With a small `beta`, gates are almost always exactly 0 or 1: nine steps of ten teach
# a gate nothing, and the tenth moves it far. A large `beta` gives a gradient in almost every draw, but from gates that
# are almost never what they will be in evaluation. The next cell measures it.

# %%
all_betas = np.array([0.03, 0.06, 0.1, 0.2, 0.333, 0.5, 2 / 3, 1.0, 1.5])
figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.0))
for log_alpha, colour, style in ((0.0, BLUE, "-"), (2.0, VERMILION, "--")):
    zeros, means, deviations = [], [], []
    for beta in all_betas:
        u = ops.draw_noise(100_000, rng, np.float64)
        _, cache = ops.hard_concrete_forward(
            np.full_like(u, log_alpha), u, beta=beta, gamma=-0.1, zeta=1.1, hard=False
        )
        gradient = ops.hard_concrete_backward(np.ones_like(u), cache)  # (n,)
        zeros.append((gradient == 0).mean())
        means.append(gradient.mean())
        deviations.append(gradient.std())
    axes[0].plot(
        all_betas,
        zeros,
        marker="o",
        color=colour,
        linestyle=style,
        label=f"log_alpha = {log_alpha:g}",
    )
    axes[1].loglog(all_betas, deviations, marker="o", color=colour, linestyle=style)
    axes[1].loglog(
        all_betas, means, marker="s", markerfacecolor="none", color=colour, linestyle=style
    )
    assert deviations[0] > 2.5 * deviations[4] and 0.8 < means[0] / means[4] < 1.25
axes[0].axvline(0.333, color=GREY, linewidth=0.8, linestyle=":")
axes[1].axvline(0.333, color=GREY, linewidth=0.8, linestyle=":")
axes[0].set(
    title="Share of draws without a gradient", xlabel="beta (dotted: the paper's)", ylim=(0, 1)
)
axes[0].legend(frameon=False)
axes[1].set(
    title="Gradient of one draw: ● its spread, □ its mean", xlabel="beta", ylabel="∂g / ∂log_alpha"
)
plt.show()

# %% [markdown]
# The mean hardly changes, and the spread falls about as 1/√`beta`, later faster. Towards the right, gates are no longer
# switches; towards the left, a single step is mostly noise. Commonly used values lie between 0.33 and 0.67.
#
# The package also uses the clip for speed. A hard gate that is shut *and* clipped neither affects the forward pass nor
# has a gradient, so its head is not computed at all in that step ([`model/gating.py`](../tinyprune/model/gating.py)).
#
# ## 8 · Turn the knobs
#
# The left pictures show the distribution, derived and sampled; the right ones show the gradient of every draw against
# its noise. Here are six settings, which change one knob at a time; sliders follow below.


# %%
def picture(axes, log_alpha, beta, gamma, zeta, n=20_000):
    """Plot distribution and gradient of a gate on two Axes; return P(open)."""
    left, right = axes
    options = {"beta": beta, "gamma": gamma, "zeta": zeta}
    u = ops.draw_noise(n, np.random.default_rng(0), np.float64)
    g, _ = ops.hard_concrete_forward(np.full(n, log_alpha), u, **options, hard=False)
    bins = np.linspace(0, 1, 31)
    left.hist(
        g[(g > 0) & (g < 1)],
        bins,
        weights=np.full(((g > 0) & (g < 1)).sum(), 1 / n / np.diff(bins)[0]),
        color=BLUE,
        alpha=0.35,
    )
    curve = density(grid, log_alpha, **options)
    left.plot(grid, curve, color=BLUE, linewidth=1.6)
    opened = float(ops.p_open(np.array(log_alpha), **options))
    for x, p, share in (
        (-0.06, 1 - opened, (g == 0).mean()),
        (1.06, P_above(1.0, log_alpha, **options), (g == 1).mean()),
    ):
        left.bar(x, share, 0.09, color=VERMILION, alpha=0.45)
        left.plot(x, p, "D", color=VERMILION, markersize=4)
    left.set(xlim=(-0.2, 1.2), ylim=(0, max(1.2, 1.05 * curve.max())), xticks=[0, 0.5, 1])

    even = np.linspace(0.0005, 0.9995, 2000)
    _, cache = ops.hard_concrete_forward(np.full_like(even, log_alpha), even, **options, hard=False)
    gradient = ops.hard_concrete_backward(np.ones_like(even), cache)
    right.fill_between(even, gradient, color=GREY, alpha=0.25)
    right.plot(even, gradient, color="black", linewidth=1.4)
    right.set(xlim=(0, 1), ylim=(0, max(2.4, 1.05 * gradient.max())), xticks=[0, 0.5, 1])
    return opened


settings = {
    "the start: log_alpha 2": {"log_alpha": 2.0, **PAPER},
    "log_alpha 0": {"log_alpha": 0.0, **PAPER},
    "log_alpha −2": {"log_alpha": -2.0, **PAPER},
    "log_alpha 0, beta 0.15": {"log_alpha": 0.0, **PAPER, "beta": 0.15},
    "log_alpha 0, beta 1": {"log_alpha": 0.0, **PAPER, "beta": 1.0},
    "log_alpha 0, gamma −1, zeta 2": {"log_alpha": 0.0, **PAPER, "gamma": -1.0, "zeta": 2.0},
}
figure, axes = plt.subplots(3, 4, figsize=(9.5, 6.4))
for i, (title, values) in enumerate(settings.items()):
    pair = axes[i % 3, 2 * (i // 3) : 2 * (i // 3) + 2]
    opened = picture(pair, **values)
    pair[0].set_title(title, fontsize=9)
    pair[1].set_title(f"P(open) = {opened:.3f}", fontsize=9, loc="right")
for ax in axes[2, ::2]:
    ax.set_xlabel("g")
for ax in axes[2, 1::2]:
    ax.set_xlabel("noise u")
figure.supylabel("left: density and point masses;   right: ∂g / ∂log_alpha", fontsize=8)
plt.show()

# %% [markdown]
# Note that `log_alpha` moves weight from 0 to 1, and the hump with it. `beta` determines how much lies in between, and
# how high and narrow the hump is; with `beta` = 1 and `log_alpha` = 0 the density is flat, since $s$ is then $u$
# itself. A wider stretch leaves hardly anything between 0 and 1: the clip cuts off the hump's shoulders, and most draws
# have no gradient.


# %%
def turn(log_alpha=2.0, beta=0.333, gamma=-0.1, zeta=1.1):
    """Draw the same picture for the sliders' values."""
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.2))
    opened = picture(axes, log_alpha, beta, gamma, zeta)
    axes[0].set(
        title="distribution of g", xlabel="g", ylabel="density; red: probability of 0 and of 1"
    )
    axes[1].set(title="gradient of every draw", xlabel="noise u", ylabel="∂g / ∂log_alpha")
    print(f"P(open) = {opened:.3f}")
    plt.show()


sliders(
    turn,
    log_alpha=(-6.0, 6.0, 0.1),
    beta=(0.033, 1.533, 0.05),
    gamma=(-1.0, -0.05, 0.05),
    zeta=(1.05, 2.0, 0.05),
)

# %% [markdown]
# ## 9 · Who uses which values
#
# The same gate appears in three well-known papers with different constants. Numbers such as "how open is `log_alpha` =
# 2" do not carry over from one to another.

# %%
USERS = {
    "Louizos et al. 2018": {"beta": 2 / 3, "gamma": -0.1, "zeta": 1.1},
    "Voita et al. 2019": {"beta": 0.33, "gamma": -0.1, "zeta": 1.1},
    "Shim et al. 2021": PAPER,
}
FORWARD = {"Louizos et al. 2018": "soft", "Voita et al. 2019": "soft", "Shim et al. 2021": "hard"}
print(
    f"{'':22}{'beta':>7}{'forward':>9}   at log_alpha 2: P(open)  P(g = 1)  between   at 0: between"
)
for name, values in USERS.items():
    opened, one = P_above(0.0, 2.0, **values), P_above(1.0, 2.0, **values)
    half = P_above(0.0, 0.0, **values) - P_above(1.0, 0.0, **values)
    print(
        f"{name:22}{values['beta']:7.3f}{FORWARD[name]:>9}{opened:26.3f}{one:10.3f}{opened - one:9.3f}{half:16.3f}"
    )

# %% [markdown]
# Louizos et al. pruned weights and neurons; with their temperature twice as many gates lie between 0 and 1. Voita et
# al. pruned the heads of translation models with the smaller temperature and soft gates. A soft gate that stays open
# may end between 0 and 1; its value is then folded into the head's output matrix. Shim et al., the paper of this
# project, use that temperature and a hard forward pass. The package has all three as settings: `gate.beta`,
# `gate.gamma`, `gate.zeta` and `gate.hard`.
#
# Does it matter? The full study, whose [results](../data/results/README.md) come with the project, has both: the
# paper's gates and Voita's soft ones (without the paper's output scaling), with three seeds, removed and fine-tuned in
# the same way.

# %%
for record in read_csv(results("tradeoff-pydoc", "comparison.csv").read_text()):
    if record["method"] == "voita":
        print(
            f"{record['heads_open']:2} of 32 heads: soft gates need {record['difference']:+.3f} ± {record['spread']:.3f} "
            "bits per character more than hard ones"
        )

# %% [markdown]
# The two are almost equal, except with 3 heads left, where soft gates are worse. In that study, with its short
# training, it makes little difference whether the forward pass is hard or soft.
#
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
# [`model/gating.py`](../tinyprune/model/gating.py).

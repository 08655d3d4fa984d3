# %% [markdown]
# # A3 · Hard-Concrete gates and the L0 loss
#
# You write what decides whether a head stays: a **gate** that can be exactly 0 and still learns, the price
# of an open head, and the difference that a gate makes. Here gates end with a power, and a head is open
# only if its hard gate is 1. The chapters have neither: derive what changes. About 2½ hours. Read before:
# [chapter 02](https://github.com/tinyprune/tinyprune/blob/main/notebooks/02_hard_concrete_gate.ipynb)
# for tasks 1 to 3,
# [chapter 05](https://github.com/tinyprune/tinyprune/blob/main/notebooks/05_l0_and_the_difference.ipynb)
# for tasks 3 and 4.
#
# | task | what | points |
# | --- | --- | ---: |
# | a3_1 | the soft gate | 9 |
# | a3_2 | the hard gate, straight-through | 6 |
# | a3_3 | probability of being open, and L0 as a share | 8 |
# | a3_4 | the difference that a gate of several heads makes | 7 |
#
# No task needs the answer to another one. You may add helper functions to any answer cell.
#
# As in A1, a `cache` holds what the backward pass needs. You may put into it what you like; if your
# forward pass does not work yet, your backward pass is tested with the cache that the task describes.
# Do not modify the inputs, `dout` or the cache. Use NumPy alone. Hidden tests use other shapes, other
# values, and other constants than the paper's, which are
#
# $$ \mathtt{beta} = 0.333 \qquad \mathtt{gamma} = -0.1 \qquad \mathtt{zeta} = 1.1 . $$
#
# All three are arguments of your functions, with beta > 0, gamma < 0 and zeta > 1.

# %%
import numpy as np

# %% [markdown]
# ## a3_1 · The soft gate
#
# A gate has one parameter, `log_alpha`, and draws new noise $u$, uniform between 0 and 1, in every training
# step. It is computed in four steps: smooth, stretch, clip and, unlike the paper's, the power of 2.
# The power removes the kink at 0.
#
# $$ s = \operatorname{sigmoid}\Big(\frac{\log u - \log(1-u) + \mathtt{log\_alpha}}{\mathtt{beta}}\Big) \qquad
# \bar s = s\,(\mathtt{zeta}-\mathtt{gamma}) + \mathtt{gamma} \qquad
# g = \min(1, \max(0, \bar s))^2 $$
#
# with $\operatorname{sigmoid}(z) = 1/(1+e^{-z})$. In **evaluation** `u` is `None`: there is neither
# noise nor temperature, and $s = \operatorname{sigmoid}(\mathtt{log\_alpha})$. `log_alpha`, `u` and
# the gate have the same shape, which may be any; gates are independent.
#
# Differentiate at constant noise. What is $\partial g/\partial\bar s$ below 0, between 0 and 1, and above 1?
# Which factor does each step contribute, and which one differs in evaluation? (No test stands exactly on
# the kink at $\bar s = 1$.)

# %%
def hard_concrete_forward(log_alpha, u, beta, gamma, zeta):
    """The gates of log_alpha with the noise u, or without noise where u is None.

    log_alpha (...), u (...) or None; beta, gamma, zeta numbers. Returns gate (...) and the cache
    (s, s_bar, temperature, stretch), with s (...) and s_bar (...) as in the formula, s_bar before the
    clip; temperature beta, or 1 in evaluation; and stretch = zeta − gamma.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def hard_concrete_backward(dout, cache):
    """Gradient of hard_concrete_forward: dout (...) → dlog_alpha (...), and no others."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a3_2 · The hard gate, straight-through
#
# With a soft gate of 0.7 a head is neither kept nor removed. A **hard** gate is 0 or 1 in the forward pass:
#
# $$ \hat g = \begin{cases} 1 & \text{if } \bar s \ge \tfrac12 \\ 0 & \text{otherwise} \end{cases} \qquad
# g = \min(1, \max(0, \bar s))^2, \quad \bar s = s\,(\mathtt{zeta}-\mathtt{gamma}) + \mathtt{gamma} $$
#
# $$ s = \operatorname{sigmoid}\Big(\frac{\log u - \log(1-u) + \mathtt{log\_alpha}}{\mathtt{beta}}\Big)
# \quad\text{or, where } u \text{ is None,}\quad s = \operatorname{sigmoid}(\mathtt{log\_alpha}). $$
#
# As a function of `log_alpha` it is a step: its derivative is 0 wherever it has one, and nothing
# would be learned. **Straight-through** means: in the backward pass return the gradient of the *soft* gate,
# $\partial g / \partial\,\mathtt{log\_alpha}$, whether $\hat g$ was 0 or 1.
#
# You may call your functions of a3_1, or write new helper functions if those do not work yet. Which
# hard gates get a gradient: those that are 1, those that are 0, or some of both? And is
# "$\bar s \ge \frac12$" the same as "$s \ge \frac12$", or as "$g \ge \frac12$"?

# %%
def hard_gate_forward(log_alpha, u, beta, gamma, zeta):
    """Gates of 0 or 1: 1 where s_bar is at least ½.

    log_alpha (...), u (...) or None; beta, gamma, zeta numbers. Returns gate (...) and the cache
    (s, s_bar, temperature, stretch) of the soft gate: s (...) and s_bar (...), before the clip;
    temperature beta, or 1 in evaluation; and stretch = zeta − gamma.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def hard_gate_backward(dout, cache):
    """The soft gate's gradient: dout (...) → dlog_alpha (...)."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a3_3 · Probability of being open, and L0 as a share
#
# Without a price a model keeps all of its heads. Here each open head has a price: that of head h is $n_h$, the
# number of its parameters. L0 is the share of the price of all heads that is paid; gates are random, so it is an
# expected share. The chapter counts a head as open if $g > 0$. Hard gates let less through: here a head is open
# if $\hat g = 1$ (a3_2).
#
# $$ \mathtt{p\_open} = P\big(\bar s \ge \tfrac12\big) = \operatorname{sigmoid}\Big(\mathtt{log\_alpha} -
# \mathtt{beta}\,\log\frac{\frac12-\mathtt{gamma}}{\mathtt{zeta}-\frac12}\Big) \qquad
# \mathtt{L0} = \frac{\sum_h n_h\,\mathtt{p\_open}_h}{\sum_h n_h} $$
#
# `log_alpha` may have any shape, such as (L, H), layers by heads, and
# the sums run over **all** heads of all layers. Derive the formula before you use it:
# solve $\bar s \ge \frac12$ for the noise $\log\frac{u}{1-u}$, by undoing stretch, sigmoid and
# temperature. The probability that the noise is larger than $t$ is $\operatorname{sigmoid}(-t)$.
#
# The loss of gate training is cross-entropy + lam · L0, so the `dout` of `l0_backward` is a number, lam,
# which all heads together cost. The sizes are constants: they have no gradient.
#
# For `log_alpha` of ±1000, p_open must be 1 and 0, and the gradient 0. Which ways of writing the
# sigmoid and its derivative end in ∞/∞? (A warning about an overflow costs no points, a `nan`
# does.)

# %%
def p_open(log_alpha, beta, gamma, zeta):
    """Probability that a hard gate is 1.

    log_alpha (...); beta, gamma, zeta numbers. Returns p_open (...), and no cache.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def l0_forward(log_alpha, size, beta, gamma, zeta):
    """Expected share of the price of all heads.

    log_alpha (...); size (...), the parameters of each head. Returns L0, a number between
    0 and 1, and the cache (p_open, size), two arrays (...).
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def l0_backward(dout, cache):
    """Gradient of l0_forward: dout, a number → dlog_alpha (...); the sizes have no gradient."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a3_4 · The difference that a gate of several heads makes
#
# Several heads may share one gate, for example heads that share keys and values in large models. There
# are G gates; head $h$ is multiplied by gate $n = \mathtt{gate\_of}[h]$, a number from 0 to G − 1:
#
# $$ y = \sum_h g_{\mathtt{gate\_of}[h]}\; o_h\, \mathtt{Wo}_h \qquad o_h\,(B, T, Dh),\ \mathtt{Wo}_h\,(Dh, D),\ y\,(B, T, D) $$
#
# The outputs of all heads are one array `o` (B, T, H, Dh), in which $o_h$ is `o[:, :, h]`, and all
# projections are one matrix `Wo` (H·Dh, D): the first Dh rows belong to head 0, the next Dh to head 1,
# and so on. (Whatever else the layer adds to $y$ does not depend on gates.)
#
# The difference that a gate makes is the output with it minus the output without it,
#
# $$ \Delta_n = y(g_n = 1) - y(g_n = 0), $$
#
# and the gradient of the gate is, with $\mathtt{dy} = \partial\,\mathtt{loss}/\partial y$,
#
# $$ \frac{\partial\,\mathtt{loss}}{\partial g_n} = \sum_{b,t,d} \mathtt{dy}_{btd}\; \Delta_{n,btd} $$
#
# exactly, for every loss, because $y$ is a straight line as a function of $g_n$. Write $\Delta_n$ out: what
# remains? How do you compute the gradients without storing all Δ, which are G times as large as $y$?
# Every gate has at least one head, but the heads of a gate need not be neighbours.

# %%
def gate_differences(o, Wo, gate_of):
    """What each gate adds to the output of its layer.

    o (B, T, H, Dh), head outputs; Wo (H·Dh, D); gate_of (H,), integers from 0 to G − 1.
    Returns Δ (G, B, T, D).
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def gate_gradients(dy, o, Wo, gate_of):
    """Gradient of the loss with respect to every gate of a layer.

    dy (B, T, D), gradient with respect to y; o (B, T, H, Dh); Wo (H·Dh, D); gate_of (H,).
    Returns dgate (G,).
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## Hand in
#
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a3` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

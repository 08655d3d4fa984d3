# %% [markdown]
# # A3 · Hard-Concrete gates and the L0 loss
#
# You write what decides about a head: a **gate** that can be exactly 0 and still learns, the price of
# an open gate, and the difference that a gate makes. This gate ends with a power, and the price is in
# parameters: the chapters have neither, so derive what changes. About 2½ hours. Helpful before:
# [chapter 02](https://github.com/tinyprune/tinyprune/blob/main/notebooks/02_hard_concrete_gate.ipynb)
# for tasks 1 to 3,
# [chapter 05](https://github.com/tinyprune/tinyprune/blob/main/notebooks/05_l0_and_the_difference.ipynb)
# for tasks 3 and 4.
#
# | task | what | points |
# | --- | --- | ---: |
# | a3_1 | the soft gate | 9 |
# | a3_2 | the hard gate, straight-through | 6 |
# | a3_3 | probability of being open, and L0 in parameters | 8 |
# | a3_4 | the difference that a gate of several heads makes | 7 |
#
# No task needs the answer to another one. Helper functions of your own are welcome, in any of the
# cells for answers.
#
# As in A1, a `cache` carries what a backward needs. You may put into it what you like; where a task
# names its contents, a backward is marked with these even if your forward does not work yet.
# Neither inputs, nor `dout`, nor the cache may be modified. Answers use NumPy alone. Hidden tests
# use other shapes, other values, and other constants than the paper's, which are
#
# $$ \mathtt{beta} = 0.333 \qquad \mathtt{gamma} = -0.1 \qquad \mathtt{zeta} = 1.1 . $$
#
# Always beta > 0, gamma < 0 and zeta > 1, and all three arrive as arguments.

# %%
import numpy as np

# %% [markdown]
# ## a3_1 · The soft gate
#
# A gate has one parameter, `log_alpha`, and in every training step new noise $u$, uniform between 0
# and 1. The gate is made in four steps: smooth, stretch, clip and, which the paper does not do, the power of 2.
# So a gate leaves 0 without a kink.
#
# $$ s = \operatorname{sigmoid}\Big(\frac{\log u - \log(1-u) + \mathtt{log\_alpha}}{\mathtt{beta}}\Big) \qquad
# \bar s = s\,(\mathtt{zeta}-\mathtt{gamma}) + \mathtt{gamma} \qquad
# g = \min(1, \max(0, \bar s))^2 $$
#
# with $\operatorname{sigmoid}(z) = 1/(1+e^{-z})$. In **evaluation** `u` is `None`: there is neither
# noise nor temperature, and $s = \operatorname{sigmoid}(\mathtt{log\_alpha})$. `log_alpha`, `u` and
# the gate have one shape, whatever it is; every gate is by itself.
#
# The noise is given and stands still while you differentiate. How much does $g$ move with $\bar s$,
# on either side of 0 and of 1? Which factor does each of the steps bring, and which of them
# is different in evaluation? (The tests do not ask for the kink at exactly $\bar s = 1$.)

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
    """Gradient of hard_concrete_forward: dout (...) → dlog_alpha (...), nothing for the rest."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a3_2 · The hard gate, straight-through
#
# A soft gate of 0.7 is neither a head nor none. A **hard** gate is 0 or 1 in the forward pass:
#
# $$ \hat g = \begin{cases} 1 & \text{if } \bar s \ge \tfrac12 \\ 0 & \text{otherwise} \end{cases} \qquad
# g = \min(1, \max(0, \bar s))^2, \quad \bar s = s\,(\mathtt{zeta}-\mathtt{gamma}) + \mathtt{gamma} $$
#
# $$ s = \operatorname{sigmoid}\Big(\frac{\log u - \log(1-u) + \mathtt{log\_alpha}}{\mathtt{beta}}\Big)
# \quad\text{or, where } u \text{ is None,}\quad s = \operatorname{sigmoid}(\mathtt{log\_alpha}). $$
#
# As a function of `log_alpha` it is a step: its derivative is 0 wherever it has one, and nothing
# would be learned. **Straight-through** means: backwards, act as if $\hat g$ were $g$, and pass the
# gradient of the *soft* gate, $\partial g / \partial\,\mathtt{log\_alpha}$, whatever $\hat g$ was.
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
# ## a3_3 · Probability of being open, and L0 in parameters
#
# Left to itself a model keeps all of its heads. The L0 loss puts a price on what open gates keep. Heads
# need not be of one size here: head h owns $n_h$ parameters, and L0 is the expected number of parameters
# that stay, as gates are random:
#
# $$ \mathtt{p\_open} = P(g > 0) = \operatorname{sigmoid}\Big(\mathtt{log\_alpha} -
# \mathtt{beta}\,\log\frac{-\mathtt{gamma}}{\mathtt{zeta}}\Big) \qquad \mathtt{L0} = \sum_h n_h\,\mathtt{p\_open}_h $$
#
# $g$ is the soft gate of a3_1. `log_alpha` may have any shape, such as (L, H), layers by heads, and
# the sum goes over **all** heads of all layers. The power has no part in it: why? Try to find the formula yourself before you use it:
# set $\bar s > 0$, and undo stretch, sigmoid and temperature until the noise $\log\frac{u}{1-u}$
# stands alone. The probability that it is larger than $t$ is $\operatorname{sigmoid}(-t)$.
#
# The loss of gate training is cross-entropy + lam · L0. So the gradient that comes into `l0_backward`
# is a number, lam, the price of a parameter. The sizes are fixed: they have no gradient.
#
# `log_alpha` of ±1000 must give 1 and 0, forwards, and a gradient of 0. Which ways of writing the
# sigmoid and its derivative end in ∞/∞? (A warning about an overflow costs no points, a `nan`
# does.)

# %%
def p_open(log_alpha, beta, gamma, zeta):
    """Probability that a gate is above 0.

    log_alpha (...); beta, gamma, zeta numbers. Returns p_open (...), and no cache.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def l0_forward(log_alpha, size, beta, gamma, zeta):
    """Expected number of parameters that stay.

    log_alpha (...); size (...), the parameters of each head. Returns L0, a number, and the cache
    (p_open, size), two arrays (...).
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def l0_backward(dout, cache):
    """Gradient of l0_forward: dout, a number → dlog_alpha (...), nothing for the sizes."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a3_4 · The difference that a gate of several heads makes
#
# In the output of a layer, heads may share a gate, as heads do that share keys and values in large models. There
# are G gates; head $h$ is multiplied by gate $n = \mathtt{gate\_of}[h]$, a number from 0 to G − 1:
#
# $$ y = \sum_h g_{\mathtt{gate\_of}[h]}\; o_h\, \mathtt{Wo}_h \qquad o_h\,(B, T, Dh),\ \mathtt{Wo}_h\,(Dh, D),\ y\,(B, T, D) $$
#
# All heads' outputs come as one array `o` (B, T, H, Dh), in which $o_h$ is `o[:, :, h]`, and all
# projections as one matrix `Wo` (H·Dh, D), of which the first Dh rows belong to head 0, the next Dh
# to head 1, and so on. (What the layer adds to $y$ beside its heads does not depend on gates.)
#
# The difference that a gate makes is the output with it minus the output without it,
#
# $$ \Delta_n = y(g_n = 1) - y(g_n = 0), $$
#
# and the gradient of the gate is, with $\mathtt{dy} = \partial\,\mathtt{loss}/\partial y$,
#
# $$ \frac{\partial\,\mathtt{loss}}{\partial g_n} = \sum_{b,t,d} \mathtt{dy}_{btd}\; \Delta_{n,btd} $$
#
# exactly, whatever the loss is: $y$ is a straight line in $g_n$. What is left of $\Delta_n$ if you
# write it out? The gradients can be had without storing any Δ, which is G times as large as $y$:
# how? Every gate has at least one head, but the heads of a gate need not follow one another.

# %%
def gate_differences(o, Wo, gate_of):
    """What each gate lets into the output of its layer.

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
# Hand in this file, under the name that it has. If every test cell above prints `passed`, or
# `pytest a3` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

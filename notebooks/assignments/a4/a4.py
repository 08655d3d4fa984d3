# %% [markdown]
# # A4 · Training with gates, and the three stabilisers
#
# The heads of a trained model have gates, and a price closes them. You write the training of these gates:
# variations of the paper's **three stabilisers**, the **training loop**, and the **controller** that keeps a
# chosen number of heads open. About 2 hours. Read before:
# [chapter 05](https://github.com/tinyprune/tinyprune/blob/main/notebooks/05_l0_and_the_difference.ipynb) and
# [chapter 06](https://github.com/tinyprune/tinyprune/blob/main/notebooks/06_training_with_gates.ipynb).
#
# | task | what | points |
# | --- | --- | ---: |
# | a4_1 | lam warm-up | 3 |
# | a4_2 | proper initialisation | 5 |
# | a4_3 | output scaling | 7 |
# | a4_4 | training the gates | 10 |
# | a4_5 | a controller for the number of heads | 5 |
#
# Each head has a parameter `log_alpha`; those of L layers of H heads are an array (L, H).
# Its gate `g` follows from `log_alpha` and noise `u` between 0 and 1:
#
# $$ s = \operatorname{sigmoid}\Big(\frac{\log u - \log(1-u) + \mathtt{log\_alpha}}{\mathtt{beta}}\Big)
# \qquad \bar s = s\,(\mathtt{zeta}-\mathtt{gamma}) + \mathtt{gamma}
# \qquad g = \min(1, \max(0, \bar s)) $$
#
# The paper has `beta` 0.333, `gamma` −0.1, `zeta` 1.1. `L0`, the expected number of open heads, is
# summed over all layers and heads:
#
# $$ \mathtt{p\_open} = P(g>0) = \operatorname{sigmoid}\big(\mathtt{log\_alpha} -
# \mathtt{beta}\,\log(-\mathtt{gamma}/\mathtt{zeta})\big) \qquad
# \mathtt{L0} = \sum_{l,h} \mathtt{p\_open}_{lh} $$
#
# Gates are trained on `loss + lam · L0`: `lam` is the price of an open head. No task needs the answer to
# another one. Do not modify the arrays that a function is given. Answers must not import `tinyprune`,
# PyTorch or similar packages. Hidden tests use other shapes and values.
#
# The paper uses all three stabilisers. Our studies do not confirm two of them
# ([the page of results](https://github.com/tinyprune/tinyprune/blob/main/data/results/README.md) has the numbers):
# with a fixed price the initialisation is worth 0.04 to 0.07 bits at equal numbers of heads, but no effect of
# warm-up and output scaling was found, and with a controller (a4_5) of none of the three.
# You write them nevertheless: to test such a claim, one must be able to switch a part on and off.

# %%
import numpy as np

# %% [markdown]
# ## a4_1 · lam warms up
#
# In a single step the gradient of the loss is mostly noise of the batch. A full price from the first step
# would close gates before enough batches have shown which heads matter. So `lam` rises, here slowly at
# first and faster later, with a power of 2:
#
# $$ \mathtt{lam\_at}(\mathtt{step}) = \mathtt{lam}\cdot(\mathtt{step} / \mathtt{warmup\_steps})^{2}
# \quad\text{up to step } \mathtt{warmup\_steps}, \text{ and lam from there on.} $$
#
# Steps count from 0. Which step is the first with the full price, if `warmup_steps` is 1? And if it is 0, so that there is
# no warm-up at all?

# %%
def lam_at(step, lam, warmup_steps):
    """The price of an open head in a step.

    step 0, 1, 2, …; lam the full price; warmup_steps ≥ 0, where 0 stands for the full price at once.
    Returns a number.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a4_2 · Proper initialisation
#
# Gate training should start from the whole trained model, not from half of it. So every gate starts
# *likely open*: the paper sets all `log_alpha` to 2. Which probability is that? You go the other way:
# from the probability $P(g > 0)$ that a gate is above 0 to its `log_alpha`. For every $x$ from 0 to 1,
#
# $$ P(g > x) = \operatorname{sigmoid}\Big(\mathtt{log\_alpha} -
# \mathtt{beta}\,\log\frac{x-\mathtt{gamma}}{\mathtt{zeta}-x}\Big). $$
#
# Solve this for `log_alpha` at $x = 0$. What is the inverse of the sigmoid?

# %%
def starting_log_alpha(p, beta, gamma, zeta):
    """The log_alpha at which a gate is above 0 with probability p.

    p an array of any shape or a number, between 0 and 1; beta > 0, gamma < 0, zeta > 1.
    Returns log_alpha of the shape of p.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a4_3 · Output scaling
#
# A layer adds up the contributions of its heads. If heads close, the sum shrinks, and the layers after it
# receive less than they were trained on. So open heads are scaled up. The paper's factor, H / open heads,
# preserves a sum of equal contributions. A sum of independent contributions grows with the root of their
# number, which suggests the root of that factor. Which power is best has to be tried. Yours is 1/2:
#
# $$ \mathtt{scaled}_{lh} = c_l\, g_{lh} \qquad\qquad
# c_l = \Big(\frac{H}{\text{heads open in layer } l}\Big)^{1/2} $$
#
# A head is *open* if its gate is above 0, however small. In a layer without an open head `c` is that of one
# open head, so that nothing is divided by zero.
#
# **No gradient goes through `c`**: in the backward pass it is a constant, like dropout's factor.
# A closed head gets a gradient, too: how would the loss change if its gate opened a little?

# %%
def scaled_gates_forward(gate):
    """Scale every layer's gates by c.

    gate (L, H), each from 0 to 1. Returns scaled (L, H) and the cache c (L, 1).
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %%
def scaled_gates_backward(dout, cache):
    """Gradient of scaled_gates_forward, c being constant: dout (L, H) → dgate (L, H)."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a4_4 · Training the gates
#
# Now put the pieces together. The weights of the model stay fixed; only its gates learn. Each step
#
# 1. draws noise `u = rng.uniform(1e-6, 1 - 1e-6, shape)` for all gates, anew, with `shape` (L, H),
# 2. samples the gates, scales them, and runs the model on the next batch with the scaled gates,
# 3. moves `log_alpha` one step of plain gradient descent, with step size `lr`, on
#
# $$ \mathtt{loss}\big(c\cdot g(\mathtt{log\_alpha}, u)\big) + \mathtt{lam}\cdot\mathtt{L0}(\mathtt{log\_alpha})
# \qquad c \text{ constant.} $$
#
# You need not have solved the other tasks: your function gets all parts as arguments.
#
# | call | gives |
# | --- | --- |
# | `lam_of(step)` | `lam` in this step, steps counted from 0 |
# | `sample_gates(log_alpha, u)` | `gate` (L, H), and `dgate` (L, H), its derivative with respect to `log_alpha` |
# | `output_scaling(gate)` | `c` (L, 1), the paper's |
# | `loss_and_gradient(scaled)` | the loss on the next batch, and its gradient with respect to `scaled` (L, H) |
# | `l0_gradient(log_alpha)` | the gradient of `L0` (L, H) |
#
# Gates are *hard*: `gate` is 0 or 1, and `dgate` is the derivative of the soft gate that it was
# rounded from ("straight-through"). Call `loss_and_gradient` exactly once in each step, since
# each call reads the next batch. Write down the chain rule first: what lies between `log_alpha` and
# the loss?

# %%
def train_gates(
    log_alpha,
    rng,
    steps,
    lr,
    lam_of,
    sample_gates,
    output_scaling,
    loss_and_gradient,
    l0_gradient,
):
    """Train the gates by gradient descent and return the new log_alpha (L, H).

    log_alpha (L, H) at the start, not modified; rng a NumPy generator, which draws the noise; steps
    how many; lr the step size; the five functions as in the table.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a4_5 · A controller for the number of heads
#
# A fixed `lam` does not determine how many heads stay. A controller does, by a target `t`.
# With $h$ heads open of `heads_total`, let $d = (h - t)/\mathtt{heads\_total}$ be the distance, and add to
# the loss
#
# $$ \mathtt{penalty} = \mathtt{heads\_total}\cdot\big(\mathtt{lam1}\cdot d + \mathtt{lam2}\cdot (e^d - 1 - d)\big). $$
#
# The chapter has $d^2$ in place of $e^d - 1 - d$. Both are 0 at the target and grow on either side, but this
# one grows faster with too many heads than with too few.
#
# The slope of the penalty, $\mathtt{pressure} = \partial\,\mathtt{penalty}/\partial h$, replaces `lam`. Gates
# *descend* on the penalty, the multipliers `lam1` and `lam2` *ascend*: each moves by `lr` times the derivative
# of $\mathtt{penalty}/\mathtt{heads\_total}$ with respect to it. So the pressure grows while too many heads are
# open.
#
# One step returns the pressure, computed with the multipliers from *before* the step, and the new
# multipliers. What should happen at $h = t$? Can the pressure be negative, and what does it do then?

# %%
def controller_step(lam1, lam2, h, target, heads_total, lr):
    """One step of the controller: (pressure, new lam1, new lam2), three numbers.

    lam1, lam2 the multipliers; h how many heads are open, any number; target how many should be;
    heads_total how many there are; lr the step size of the multipliers.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## Hand in
#
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a4` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

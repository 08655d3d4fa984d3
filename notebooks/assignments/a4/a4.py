# %% [markdown]
# # A4 · Training with gates, and the three stabilisers
#
# A trained model has gates on its heads, and a loss that wants them shut. You write how the gates are
# trained: relatives of the **three stabilisers** of the paper, the **training loop**, and the **controller**
# that holds a chosen number of heads. About 2 hours. Helpful before:
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
# Every head has one number, `log_alpha`; of a model with L layers of H heads they are an array (L, H).
# From `log_alpha` and noise `u` between 0 and 1, each head gets its gate `g`:
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
# Gates are trained on `loss + lam · L0`: `lam` is the price of an open head. No task needs another
# one's answer, nor anything that you wrote before. No function may modify the arrays that it is given.
# `tinyprune` itself, PyTorch and the like must not be imported by answers. Hidden tests use other
# shapes and values.
#
# The paper uses all three stabilisers. Our studies do not confirm two of them
# ([chapter 10](https://github.com/tinyprune/tinyprune/blob/main/notebooks/10_does_it_work.ipynb) has the numbers):
# with a fixed price the initialisation is worth 0.04 to 0.07 bits at equal numbers of heads, but warm-up and
# output scaling change nothing; with a controller (a4_5) none of the three makes a difference.
# You write them nevertheless: to test such a claim, one has to be able to switch a part on and off.

# %%
import numpy as np

# %% [markdown]
# ## a4_1 · lam warms up
#
# The first steps cannot tell which heads matter: what a single batch says is mostly noise. A
# price that is there at once would close gates before the batches have been heard. So `lam` rises, here
# slowly at first and faster later, with a power of 2:
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
# Training has to start from the model that was trained, and not from half of it. So every gate starts
# *likely open*. The paper sets all `log_alpha` to 2. Which probability is that? You go the other way:
# say with which probability a gate shall be open, that is $P(g > 0)$, and find its `log_alpha`.
#
# Solve the formula for `p_open` at the top for `log_alpha`. What is the inverse of the sigmoid?

# %%
def starting_log_alpha(p_open, beta, gamma, zeta):
    """The log_alpha at which a gate is open, g > 0, with probability p_open.

    p_open an array of any shape or a number, between 0 and 1; beta > 0, gamma < 0, zeta > 1.
    Returns log_alpha of the shape of p_open.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a4_3 · Output scaling
#
# A layer adds up what its heads contribute. If heads close, the sum shrinks, and the layers after it
# receive less than they were trained on. So the heads that are open are made larger. The paper's factor is
# H / open heads, which keeps a sum of equal contributions. Contributions that have nothing to do with
# each other add up like the root of their number, which would ask for the root of it. So the power is a
# matter to be tried out. Yours is 1/2:
#
# $$ \mathtt{scaled}_{lh} = c_l\, g_{lh} \qquad\qquad
# c_l = \Big(\frac{H}{\text{heads open in layer } l}\Big)^{1/2} $$
#
# A head is *open* if its gate is above 0, however little. In a layer with no open head `c` is what it is
# with one, and nothing is divided by zero.
#
# **No gradient goes through `c`**: it is a constant for the backward, as the factor of dropout is.
# A head that is shut gets a gradient, too. What would the loss gain if its gate opened a little?

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
# Now put the pieces together. The model stays as it is here; only its gates learn. Each step
#
# 1. draws noise `u = rng.uniform(1e-6, 1 - 1e-6, shape)` for all gates, anew, with `shape` (L, H),
# 2. samples the gates, scales them, and runs the model on the next batch with the scaled gates,
# 3. moves `log_alpha` one step of plain gradient descent, with step size `lr`, on
#
# $$ \mathtt{loss}\big(c\cdot g(\mathtt{log\_alpha}, u)\big) + \mathtt{lam}\cdot\mathtt{L0}(\mathtt{log\_alpha})
# \qquad c \text{ constant.} $$
#
# You need not have solved the other tasks, since all parts are given to your function as functions:
#
# | call | gives |
# | --- | --- |
# | `lam_of(step)` | `lam` in this step, steps counted from 0 |
# | `sample_gates(log_alpha, u)` | `gate` (L, H) and `dgate` (L, H), how much each gate moves with its `log_alpha` |
# | `output_scaling(gate)` | `c` (L, 1), the paper's |
# | `loss_and_gradient(scaled)` | the loss on the next batch, and its gradient with respect to `scaled` (L, H) |
# | `l0_gradient(log_alpha)` | the gradient of `L0` (L, H) |
#
# Gates are *hard*: `gate` is 0 or 1, and `dgate` is the derivative of the soft gate that it was
# rounded from ("straight-through"). Call `loss_and_gradient` exactly once in each step, since
# each call reads on in the text. Write down the chain rule first: what lies between `log_alpha` and
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
# A fixed `lam` does not say how many heads will stay. Say instead how many are wanted: the target `t`.
# With $h$ heads open of `heads_total`, let $d = (h - t)/\mathtt{heads\_total}$ be the distance, and add to
# the loss
#
# $$ \mathtt{penalty} = \mathtt{heads\_total}\cdot\big(\mathtt{lam1}\cdot d + \mathtt{lam2}\cdot (e^d - 1 - d)\big). $$
#
# The chapter has $d^2$ in the place of $e^d - 1 - d$. Both are 0 at the target and grow on either side, but this one
# grows faster with too many heads than with too few.
#
# Gates feel its slope, $\mathtt{pressure} = \partial\,\mathtt{penalty}/\partial h$, which takes the place
# of `lam`. The two multipliers play against the gates. Where these descend, `lam1` and `lam2` *ascend*: each
# moves by `lr` times the derivative of $\mathtt{penalty}/\mathtt{heads\_total}$ with respect to it. So the
# pressure grows as long as too many heads are open.
#
# One step gives the pressure, with the multipliers *as they are before* the step, and the new
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
# Hand in this file, under the name that it has. If every test cell above prints `passed`, or
# `pytest a4` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

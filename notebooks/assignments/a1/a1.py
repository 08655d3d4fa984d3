# %% [markdown]
# # A1 · Three layers by hand
#
# You write three layers of a language model, forwards and backwards, with NumPy alone: **linear**, a
# **norm** and **cross-entropy with smoothed labels**. The norm and the loss are relatives of those in
# [chapter 01](https://github.com/tinyprune/tinyprune/blob/main/notebooks/01_backprop_by_hand.ipynb), which
# is helpful before, but they are not the same: derive their gradients anew. About 2½ hours.
#
# | task | what | points |
# | --- | --- | ---: |
# | a1_1 | linear layer | 8 |
# | a1_2 | a norm of fourth powers | 12 |
# | a1_3 | cross-entropy with smoothed labels | 10 |
#
# Every layer has one form, and so does its test:
#
# ```python
# out, cache = x_forward(*inputs)
# dX, dW, ...  = x_backward(dout, cache)     # one gradient for each input, in their order
# ```
#
# `dout` is the gradient of the loss with respect to `out`, and so of its shape; `dX` is that with
# respect to `X`, and of the shape of `X`. A `cache` carries what the backward needs. You may put
# into it what you like; where a task names its contents, a backward is marked with these even if
# your forward does not work yet. Neither inputs, nor `dout`, nor the cache may be modified.
#
# A test cell that prints `passed` passed. Your gradients are compared with measured derivatives,
# not with a stored solution: write it as you like. `tinyprune` itself, PyTorch and the like must not
# be imported by answers. Hidden tests use other shapes and values.

# %%
import numpy as np

# %% [markdown]
# ## a1_1 · Linear
#
# $$\text{out} = x W + b \qquad x\,(\dots, K),\ W\,(K, O),\ b\,(O),\ \text{out}\,(\dots, O)$$
#
# `x` may have any number of leading axes: rows of it are independent of each other. What does the
# loss gain if one entry of `W` grows a little? Which entries of `out` does it touch?

# %%
def linear_forward(x, W, b):
    """Multiply the last axis of x by W and add b.

    x (..., K), W (K, O), b (O,). Returns out (..., O) and the cache (x, W, True), where True says
    that there is a b.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def linear_backward(dout, cache):
    """Gradients of linear_forward: dout (..., O) → dx (..., K), dW (K, O), db (O,)."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a1_2 · A norm of fourth powers
#
# LayerNorm divides the centred features of a position by the root of the mean of their squares. This norm
# takes fourth powers instead, so that one very large feature counts more:
#
# $$c = x - \operatorname{mean}(x) \qquad
# r = \big(\operatorname{mean}(c^4) + \varepsilon\big)^{1/4} \qquad
# n = \frac{c}{r} \qquad \text{out} = n \cdot \text{scale} + \text{bias}$$
#
# Means run over the last axis, of D features, for every position by itself. The gradient with respect
# to `x` has three paths: straight, through the root r, and through the mean. Write them down one by
# one before you put them together. The mean is in c, and c is in r too: which gradient goes into the
# mean? (In LayerNorm a part of it happens to be 0.)

# %%
def norm_forward(x, scale, bias, eps=1e-5):
    """Normalise the last axis of x, then scale and shift it.

    x (..., D), scale (D,), bias (D,). Returns out (..., D) and the cache (n, r, scale), with n
    (..., D) and r (..., 1), the root in the formula.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def norm_backward(dout, cache):
    """Gradients of norm_forward: dout (..., D) → dx (..., D), dscale (D,), dbias (D,)."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a1_3 · Cross-entropy with smoothed labels
#
# A model that must give all probability to the word of the text becomes too sure of itself. So this loss
# asks for 0.9 of the word of the text and spreads 0.1 evenly over all V words:
#
# $$p_{rv} = \frac{e^{z_{rv}}}{\sum_{v'} e^{z_{rv'}}} \qquad
# \text{loss} = \frac{1}{R}\sum_r \Big(-0.9\,\log p_{r,\,t_r} - \frac{0.1}{V}\sum_v \log p_{rv}\Big)$$
#
# `z` are the logits of R rows (all leading axes together) for V words, `t` is the target, the number of
# the word of the text, from 0 to V − 1. A logit of 1000 must not overflow: what may be subtracted
# from a row of logits without changing p?

# %%
def cross_entropy_forward(logits, targets):
    """Cross-entropy with smoothed labels, a mean over all positions, in nats.

    logits (..., V), targets (...) integers in 0 … V−1.
    Returns the loss, a number, and the cache (log_p, targets), with log_p (..., V).
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def cross_entropy_backward(dout, cache):
    """Gradient of cross_entropy_forward: dout, a number → dlogits (..., V)."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## Hand in
#
# Hand in this file, under the name that it has. If every test cell above prints `passed`, or
# `pytest a1` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

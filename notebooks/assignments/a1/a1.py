# %% [markdown]
# # A1 · Three layers by hand
#
# You write three layers of a language model, forwards and backwards, with NumPy alone: **linear**,
# **LayerNorm** and **softmax cross-entropy**. About 2 hours. Helpful before:
# [chapter 01](https://github.com/tinyprune/tinyprune/blob/main/notebooks/01_backprop_by_hand.ipynb).
#
# | task | what | points |
# | --- | --- | ---: |
# | a1_1 | linear layer | 8 |
# | a1_2 | LayerNorm | 12 |
# | a1_3 | softmax cross-entropy | 10 |
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
# not with somebody's code: write it as you like. `tinyprune` itself, PyTorch and the like must not
# be imported by answers. Hidden tests feed other shapes and values.

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
# ## a1_2 · LayerNorm
#
# $$n = \frac{x - \operatorname{mean}(x)}{\sqrt{\operatorname{mean}((x - \operatorname{mean}(x))^2) + \varepsilon}}
# \qquad \text{out} = n \cdot \text{scale} + \text{bias}$$
#
# Means run over the last axis, of D features, for every position by itself. The gradient with respect
# to `x` has three roads: straight, through the mean, and through the variance. Write them down one by
# one before you put them together.

# %%
def layernorm_forward(x, scale, bias, eps=1e-5):
    """Normalise the last axis of x, then scale and shift it.

    x (..., D), scale (D,), bias (D,). Returns out (..., D) and the cache (n, std, scale), with n
    (..., D) and std (..., 1), the root in the formula.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def layernorm_backward(dout, cache):
    """Gradients of layernorm_forward: dout (..., D) → dx (..., D), dscale (D,), dbias (D,)."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a1_3 · Softmax cross-entropy
#
# $$p_{rv} = \frac{e^{z_{rv}}}{\sum_{v'} e^{z_{rv'}}} \qquad
# \text{loss} = \frac{1}{R}\sum_r -\log p_{r,\,t_r}$$
#
# `z` are the logits of R rows (all leading axes together) for V words, `t` says which
# word came, as a number from 0 to V − 1. A logit of 1000 must not overflow: what may be subtracted
# from a row of logits without changing p?

# %%
def cross_entropy_forward(logits, targets):
    """Mean of −log p of the targets, in nats.

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
# `pytest a1` shows no failure, all *visible* tests pass. They are worth 12 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 18.

# %% [markdown]
# # A1 · Three layers by hand
#
# You write three layers of a language model, forwards and backwards, with NumPy alone: a **scaled linear
# layer**, a **norm** and **cross-entropy with smoothed labels**. All three resemble layers of
# [chapter 01](https://github.com/tinyprune/tinyprune/blob/main/notebooks/01_backprop_by_hand.ipynb), which
# you should read first, but none is the same: derive the gradients anew. About 2½ hours.
#
# | task | what | points |
# | --- | --- | ---: |
# | a1_1 | a scaled linear layer | 8 |
# | a1_2 | a norm of fourth powers | 12 |
# | a1_3 | cross-entropy with smoothed labels | 10 |
#
# All layers have the same form:
#
# ```python
# out, cache = x_forward(*inputs)
# dX, dW, ...  = x_backward(dout, cache)     # one gradient for each input, in their order
# ```
#
# `dout` is the gradient of the loss with respect to `out` and has its shape; `dX` is the gradient with
# respect to `X` and has the shape of `X`. The `cache` holds what the backward pass needs. You may put
# into it what you like; if your forward pass does not work yet, your backward pass is tested with the
# cache that the task describes. Do not modify the inputs, `dout` or the cache.
#
# A test cell prints `passed` if its tests pass. Your gradients are compared with measured derivatives,
# not with a stored solution, so write them in any way. Answers must not import `tinyprune`, PyTorch or
# similar packages. Hidden tests use other shapes and values.

# %%
import numpy as np

# %% [markdown]
# ## a1_1 · A scaled linear layer
#
# $$\text{out} = \frac{x W}{K^{1/2}} + b \qquad x\,(\dots, K),\ W\,(K, O),\ b\,(O),\ \text{out}\,(\dots, O)$$
#
# The power of K keeps `out` from growing with the number of inputs. `x` may have any number of leading
# axes; its rows are independent of each other. If one entry of `W` grows a little, which entries of `out`
# change, and by how much?

# %%
def linear_forward(x, W, b):
    """Multiply the last axis of x by W, scale, and add b.

    x (..., K), W (K, O), b (O,). Returns out (..., O) and the cache (x, W).
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
# Means run over the last axis, the D features of a position. The gradient with respect
# to `x` has three paths: straight, through the root r, and through the mean. Derive them one by one before
# you add them up. The mean acts through c, and c is also in r: which gradient reaches the mean? (In
# LayerNorm one part of it is 0.)

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
# A model trained to give all probability to one token becomes overconfident. With *label smoothing* the
# loss asks for 0.9 of the probability on the token of the text and spreads 0.1 evenly over all V tokens:
#
# $$p_{rv} = \frac{e^{z_{rv}}}{\sum_{v'} e^{z_{rv'}}} \qquad
# \text{loss} = \frac{1}{R}\sum_r \Big(-0.9\,\log p_{r,\,t_r} - \frac{0.1}{V}\sum_v \log p_{rv}\Big)$$
#
# Here `z` are the logits of R rows (all leading axes together) for V tokens, and the target `t`, from 0 to
# V − 1, is the number of the token that the text has there. A logit of 1000 must not overflow: what may be subtracted
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
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a1` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

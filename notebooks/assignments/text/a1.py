# %% tools="a1_tools"
from tinyprune import ops
from tinyprune.course import answer, expect_close, expect_gradients, expect_unmodified


def formula_of_linear(x, W, b):
    """What a1_1 asks for, in complex numbers too."""
    return ops.linear_forward(x / len(W) ** (1 / 2), W, b)[0], (x, W)


def formula_of_norm(x, scale, bias, eps=1e-5):
    """What a1_2 asks for, row by row, in complex numbers too."""

    def of_row(row):
        c = row - row.sum() / row.size
        root = ((c**4).sum() / row.size + eps) ** (1 / 4)
        return np.append(c / root, root)

    rows = np.apply_along_axis(of_row, -1, x)
    return rows[..., :-1] * scale + bias, (rows[..., :-1], rows[..., -1:], scale)


def formula_of_cross_entropy(logits, targets):
    """What a1_3 asks for, in complex numbers too."""
    log_p = ops.log_softmax(logits)
    rows = log_p.reshape(targets.size, -1)
    own = rows[np.arange(targets.size), targets.ravel()]
    return -(0.9 * own + 0.1 * rows.mean(1)).mean(), (log_p, targets)


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

# %% given="a1_imports"
import numpy as np

# %% [markdown]
# ## a1_1 · A scaled linear layer
#
# $$\text{out} = \frac{x W}{K^{1/2}} + b \qquad x\,(\dots, K),\ W\,(K, O),\ b\,(O),\ \text{out}\,(\dots, O)$$
#
# The power of K keeps `out` from growing with the number of inputs. `x` may have any number of leading
# axes; its rows are independent of each other. If one entry of `W` grows a little, which entries of `out`
# change, and by how much?


# %% solution="a1_1"
def linear_forward(x, W, b):
    """Multiply the last axis of x by W, scale, and add b.

    x (..., K), W (K, O), b (O,). Returns out (..., O) and the cache (x, W).
    """
    ### BEGIN SOLUTION
    return x @ W / len(W) ** (1 / 2) + b, (x, W)
    ### END SOLUTION


def linear_backward(dout, cache):
    """Gradients of linear_forward: dout (..., O) → dx (..., K), dW (K, O), db (O,)."""
    ### BEGIN SOLUTION
    x, W = cache
    root = len(W) ** (1 / 2)
    flat_x = x.reshape(-1, x.shape[-1])
    flat_dout = dout.reshape(-1, dout.shape[-1])
    return dout @ W.T / root, flat_x.T @ flat_dout / root, flat_dout.sum(axis=0)
    ### END SOLUTION


# %% test="a1_1_forward" points=2
rng = np.random.default_rng(0)
forward = answer("linear_forward")
W, b = rng.standard_normal((4, 5)), rng.standard_normal(5)
out, _ = forward(np.zeros((2, 3, 4)), W, b)
expect_close(
    out,
    np.tile(b, (2, 3, 1)),
    "a row of zeros must come out as the bias",
    fed="x zeros (2, 3, 4), W (4, 5), b (5,)",
    hint="what is left of x W + b if x is 0?",
)
out, _ = forward(4 ** (1 / 2) * np.eye(4), W, np.zeros(5))
expect_close(
    out,
    W,
    "the identity, times the power of K, must come out as W",
    fed="x = np.eye(4) times the power of K, W (4, 5), b zeros",
    hint="row k of the identity picks one row of W, and the power of K cancels",
)

# %% test="a1_1_forward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(1)
forward = answer("linear_forward")
for shape in ((3,), (6, 3), (2, 1, 4, 3)):
    W, b = rng.standard_normal((3, 2)), rng.standard_normal(2)
    x, y = rng.standard_normal(shape), rng.standard_normal(shape)
    fed = {"x": x, "W": W, "b": b}
    out_x, out_y = forward(x, W, b)[0], forward(y, W, b)[0]
    together = forward(2 * x + y, W, b)[0]
    expect_close(
        together + 2 * b,
        2 * np.asarray(out_x) + np.asarray(out_y),
        "without its bias the layer must be linear: f(2x + y) = 2 f(x) + f(y)",
        fed=fed,
        hint="is b added once to every row?",
    )
    k = int(rng.integers(3))
    unit = np.zeros(shape)
    unit[..., k] = 3 ** (1 / 2)
    expect_close(
        forward(unit, W, b)[0],
        np.broadcast_to(W[k] + b, (*shape[:-1], 2)),
        "a unit vector, times the power of K, must pick a row of W, for any number of leading axes",
        fed={"x": unit, "W": W, "b": b},
        hint="which axis of x is summed over, and is K its length?",
    )
    expect_unmodified(forward, x, W, b)
### END HIDDEN TESTS

# %% test="a1_1_backward" points=3
rng = np.random.default_rng(2)
for shape in ((6, 4), (2, 3, 4)):
    expect_gradients(
        "linear_backward",
        formula_of_linear,
        {
            "x": rng.standard_normal(shape),
            "W": rng.standard_normal((4, 5)),
            "b": rng.standard_normal(5),
        },
        hint={
            "x": "each x is multiplied by a whole row of W: which axis of W does dout have? And the power of K?",
            "W": "each entry of W is used by all rows of x, over all leading axes: what is summed?",
            "b": "b is added to every row, over all leading axes",
            "": "one gradient for each input, in the order of the inputs, each with the shape of its input",
        },
    )

# %% test="a1_1_backward_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(3)
for shape, O in (((3, 2, 3), 3), ((2, 1, 3, 4), 2), ((1, 5), 1)):
    expect_gradients(
        "linear_backward",
        formula_of_linear,
        {
            "x": rng.standard_normal(shape),
            "W": rng.standard_normal((shape[-1], O)),
            "b": rng.standard_normal(O),
        },
        hint={
            "x": "if W is square, the shape of dx does not show a missing transpose; is the power of K there?",
            "W": "x has more than one leading axis: are all of them summed over?",
            "b": "x has more than one leading axis: are all of them summed over?",
            "": "x has more than two axes: does each gradient have the shape of its input?",
        },
        rng=rng,
    )
### END HIDDEN TESTS

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


# %% solution="a1_2"
def norm_forward(x, scale, bias, eps=1e-5):
    """Normalise the last axis of x, then scale and shift it.

    x (..., D), scale (D,), bias (D,). Returns out (..., D) and the cache (n, r, scale), with n
    (..., D) and r (..., 1), the root in the formula.
    """
    ### BEGIN SOLUTION
    centred = x - x.mean(axis=-1, keepdims=True)
    r = ((centred**4).mean(axis=-1, keepdims=True) + eps) ** (1 / 4)
    n = centred / r
    return n * scale + bias, (n, r, scale)
    ### END SOLUTION


def norm_backward(dout, cache):
    """Gradients of norm_forward: dout (..., D) → dx (..., D), dscale (D,), dbias (D,)."""
    ### BEGIN SOLUTION
    n, r, scale = cache
    axes = tuple(range(dout.ndim - 1))
    dn = dout * scale
    straight = dn / r
    through_root = -(n**3) * (dn * n).mean(axis=-1, keepdims=True) / r
    dc = straight + through_root
    through_mean = -dc.mean(axis=-1, keepdims=True)
    return dc + through_mean, (dout * n).sum(axis=axes), dout.sum(axis=axes)
    ### END SOLUTION


# %% test="a1_2_forward" points=3
rng = np.random.default_rng(4)
forward = answer("norm_forward")
x = 3 + 10 * rng.standard_normal((2, 3, 8))
out, _ = forward(x, np.ones(8), np.zeros(8))
fed = {"x": x, "scale": "ones (8,)", "bias": "zeros (8,)"}
expect_close(
    np.mean(out, -1),
    np.zeros((2, 3)),
    "every position must have mean 0",
    fed=fed,
    hint="over which axis is the mean taken, and is it kept as an axis?",
)
expect_close(
    np.mean(np.asarray(out) ** 4, -1),
    np.ones((2, 3)),
    "the fourth powers of every position must have mean 1, up to eps",
    fed=fed,
    hint="divide by the fourth root of the mean of the fourth powers",
    relative=1e-5,
)

# %% test="a1_2_forward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(5)
forward = answer("norm_forward")
x, scale, bias = rng.standard_normal((4, 5)), rng.standard_normal(5), rng.standard_normal(5)
fed = {"x": x, "scale": scale, "bias": bias}
plain = np.asarray(forward(x, np.ones(5), np.zeros(5))[0])
expect_close(
    forward(x, scale, bias)[0],
    plain * scale + bias,
    "scale and bias must act after the normalisation, feature by feature",
    fed=fed,
    hint="first n, then n · scale + bias",
)
expect_close(
    forward(x + 7, scale, bias)[0],
    plain * scale + bias,
    "adding a constant to x must change nothing",
    fed=fed,
    hint="is the mean subtracted, also inside the root?",
)
constant = forward(np.full((2, 5), 3.0), np.ones(5), bias)[0]
expect_close(
    constant,
    np.tile(bias, (2, 1)),
    "a position whose features are all equal must come out as the bias",
    fed="x = 3 everywhere (2, 5)",
    hint="0 / 0 is what eps is there for",
)
eps = 0.5
powers = np.mean(np.asarray(forward(x, np.ones(5), np.zeros(5), eps)[0]) ** 4, -1)
moment = np.mean((x - x.mean(-1, keepdims=True)) ** 4, -1)
expect_close(
    powers,
    moment / (moment + eps),
    "eps must be added to the mean of the fourth powers, under the root",
    fed={"x": x, "eps": eps},
    hint="the root of (mean + eps) is not the root of the mean plus eps, and a mean divides by D",
)
expect_unmodified(forward, 1 + rng.standard_normal((4, 5)), scale, bias)
### END HIDDEN TESTS

# %% test="a1_2_backward" points=6
rng = np.random.default_rng(6)
for shape in ((3, 5), (2, 3, 5)):
    expect_gradients(
        "norm_backward",
        formula_of_norm,
        {
            "x": rng.standard_normal(shape),
            "scale": rng.standard_normal(5),
            "bias": rng.standard_normal(5),
        },
        hint={
            "x": "three paths: straight, through the root, through the mean. Which one is missing?",
            "scale": "scale multiplies n, at every position, over all leading axes",
            "bias": "bias is added at every position, over all leading axes",
            "": "one gradient for each input, in the order of the inputs, each with the shape of its input",
        },
    )

# %% test="a1_2_backward_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(7)
for shape in ((2, 3, 4), (1, 6), (2, 2, 2, 3)):
    expect_gradients(
        "norm_backward",
        formula_of_norm,
        {
            "x": 5 * rng.standard_normal(shape),
            "scale": rng.standard_normal(shape[-1]),
            "bias": rng.standard_normal(shape[-1]),
        },
        hint={
            "x": "is everything divided by r, and is scale in dn before the means are taken?",
            "scale": "sum over all axes but the last, however many there are",
            "bias": "sum over all axes but the last, however many there are",
            "": "x has more than two axes: does each gradient have the shape of its input?",
        },
        rng=rng,
    )
### END HIDDEN TESTS

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


# %% solution="a1_3"
def cross_entropy_forward(logits, targets):
    """Cross-entropy with smoothed labels, a mean over all positions, in nats.

    logits (..., V), targets (...) integers in 0 … V−1.
    Returns the loss, a number, and the cache (log_p, targets), with log_p (..., V).
    """
    ### BEGIN SOLUTION
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, targets[..., None], axis=-1)
    return -(0.9 * picked.mean() + 0.1 * log_p.mean()), (log_p, targets)
    ### END SOLUTION


def cross_entropy_backward(dout, cache):
    """Gradient of cross_entropy_forward: dout, a number → dlogits (..., V)."""
    ### BEGIN SOLUTION
    log_p, targets = cache
    V = log_p.shape[-1]
    wanted = 0.9 * np.eye(V)[targets] + 0.1 / V
    return dout * (np.exp(log_p) - wanted) / targets.size
    ### END SOLUTION


# %% test="a1_3_forward" points=3
forward = answer("cross_entropy_forward")
targets = np.array([[0, 2, 1], [4, 3, 0]])
loss, _ = forward(np.zeros((2, 3, 5)), targets)
expect_close(
    loss,
    np.log(5),
    "with equal logits each of 5 tokens has p = 1/5, and the loss must be log 5",
    fed={"logits": "zeros (2, 3, 5)", "targets": targets},
    hint="natural logarithm; a mean over all six positions",
)
logits = np.log(np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
loss, _ = forward(logits, np.array([0, 2]))
target, others = np.log([0.7, 0.5]), logits.mean(1)
expect_close(
    loss,
    -(0.9 * target + 0.1 * others).mean(),
    "logits that are logarithms of probabilities must give these probabilities back",
    fed={"logits": logits, "targets": "[0 2]"},
    hint="0.9 of −log p of the target, and 0.1 of the mean of −log p over all tokens, the target included",
)

# %% test="a1_3_forward_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(9)
forward = answer("cross_entropy_forward")
logits, targets = rng.standard_normal((2, 4, 6)), rng.integers(0, 6, (2, 4))
fed = {"logits": logits, "targets": targets}
loss = forward(logits, targets)[0]
expect_close(
    forward(logits + 1000, targets)[0],
    loss,
    "adding 1000 to all logits must change nothing",
    fed=fed,
    hint="exp(1000) is infinite in float64; subtract something from each row first",
)
expect_close(
    forward(logits + np.arange(8).reshape(2, 4, 1) * 300, targets)[0],
    loss,
    "adding a different number to each row must change nothing",
    fed=fed,
    hint="the largest logit of each row, not of all rows: the others may underflow to log 0",
)
all_tokens = np.broadcast_to(np.arange(6), (3, 6))
wide = np.repeat(rng.standard_normal((3, 1, 6)), 6, axis=1)
each = np.array([[forward(wide[r, v], np.array(v))[0] for v in range(6)] for r in range(3)])
# loss = 0.9 · (−log p of the token) + 0.1 · (mean of −log p), so the mean over all tokens is the mean of −log p
surprise = (each - 0.1 * each.mean(1, keepdims=True)) / 0.9
expect_close(
    np.exp(-surprise).sum(1),
    np.ones(3),
    "the probabilities of all tokens must sum to 1",
    fed={"logits": wide[:, 0], "targets": "each of the 6 tokens in turn, one row at a time"},
    hint="logits may be a single row, (V,), and targets a single number, ()",
)
expect_close(
    forward(wide, all_tokens)[0],
    each.mean(),
    "the loss of many rows must be the mean of their losses",
    fed={"logits": wide, "targets": all_tokens},
    hint="a mean over all leading axes, not over the first alone",
)
expect_unmodified(forward, logits, targets)
### END HIDDEN TESTS

# %% test="a1_3_backward" points=3
rng = np.random.default_rng(10)
expect_gradients(
    "cross_entropy_backward",
    formula_of_cross_entropy,
    {"logits": rng.standard_normal((4, 5)), "targets": np.array([1, 0, 4, 1])},
    hint={
        "logits": "each logit changes every −log p of its row; are the mean and dout there?",
        "": "return one gradient, dlogits, with the shape of the logits; do not modify the cache",
    },
)

# %% test="a1_3_backward_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(11)
for shape in ((2, 3, 4), (1, 3), (2, 2, 2, 3)):
    expect_gradients(
        "cross_entropy_backward",
        formula_of_cross_entropy,
        {
            "logits": 3 * rng.standard_normal(shape),
            "targets": rng.integers(0, shape[-1], shape[:-1]),
        },
        hint="the mean is over all positions, of all leading axes",
        rng=rng,
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Hand in
#
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a1` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

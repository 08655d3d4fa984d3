# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Backprop by hand, and how to trust it
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/01_backprop_by_hand.ipynb)
# &nbsp; ← [00 the tour](00_tour.ipynb) · [all chapters](README.md) · [03 attention by hand](03_attention_by_hand.ipynb) →
#
# **After this chapter you can** derive the backward pass of a layer with pencil and paper, write it in NumPy, and show that
# it is right to fifteen digits. You will do it for three layers, *linear*, *LayerNorm* and *cross-entropy*, and then train
# a small language model built from these and a table of embeddings.
#
# **You need** Python, NumPy's broadcasting, and the chain rule of school calculus. Unfamiliar words are in the
# [glossary](README.md#glossary).

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
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np

from tinyprune import assert_gradients, check_gradients, load_text, ops
from tinyprune.config import DataConfig
from tinyprune.notebook import show_source, use_style, you_are_here
from tinyprune.plots import BLUE, GREY, VERMILION

use_style()
rng = np.random.default_rng(0)

# %%
you_are_here("embedding", "norm", "softmax")

# %% [markdown]
# ## 1 · What a backward pass computes
#
# A network computes a single number, the `loss`, through a chain of operations. To make the loss smaller, we want to know for
# *every* number in the chain how the loss would change if that number were a little larger. That is its **gradient**. For an
# array `x` it is an array of the same shape, and the code calls it `dx`:
#
# $$ \mathtt{dx}_i = \frac{\partial\,\mathtt{loss}}{\partial x_i} $$
#
# Along the gradient the loss grows, so training takes small steps *against* it: a parameter $W$ becomes
# $W-\mathtt{lr}\cdot\mathtt{dW}$, where `lr` is called the **learning rate**.
#
# Thanks to the chain rule, each operation needs to know only itself. Say it computes `out` from `x`. From the
# operations after it, it receives `dout`, the gradient with respect to its output, and to the operation before it, it
# returns
#
# $$ \mathtt{dx}_i = \sum_j \mathtt{dout}_j \, \frac{\partial\, \mathtt{out}_j}{\partial x_i} \tag{1} $$
#
# a sum over all outputs, since $x_i$ may affect the loss through any of them. That is all of backpropagation. Every
# operation in this package is a pair of functions with this contract:
#
#     out, cache = layer_forward(x, W, …)        cache: whatever backward needs
#     dx, dW, …  = layer_backward(dout, cache)   gradients, in the order of the arguments
#
# What remains is to work out (1) for one operation at a time, in closed form, without ever building the matrix
# $\partial\,\mathtt{out}/\partial x$.

# %% [markdown]
# ## 2 · Linear
#
# With rows $r$, inputs $k$ and outputs $o$:
#
# $$ \mathtt{out}_{ro} = \sum_k x_{rk} W_{ko} + b_o \qquad\qquad x\;(R, K)\quad W\;(K, O)\quad b\;(O)\quad \mathtt{out}\;(R, O) $$
#
# Apply (1) to one $x_{rk}$. It appears in the outputs of *its own row* only, in $\mathtt{out}_{ro}$ with the factor
# $W_{ko}$:
#
# $$ \mathtt{dx}_{rk} = \sum_o \mathtt{dout}_{ro} W_{ko} \quad\Longrightarrow\quad \mathtt{dx} = \mathtt{dout}\, W^\top $$
#
# One $W_{ko}$ appears in *every row*, in column $o$ only, with the factor $x_{rk}$; one $b_o$ in every row with the factor 1:
#
# $$ \mathtt{dW}_{ko} = \sum_r x_{rk}\,\mathtt{dout}_{ro} \quad\Longrightarrow\quad \mathtt{dW} = x^\top \mathtt{dout},
# \qquad\qquad \mathtt{db}_o = \sum_r \mathtt{dout}_{ro} $$
#
# Two rules of thumb follow, and they hold for every layer: **what was summed over forward is copied backward**, and
# **what was used more than once forward is summed over backward**. Now the code. It is not a copy: the cell prints the
# function that the package itself runs. (`rows` joins all axes but the last into one, so that a batch of sequences counts
# as so many rows; with `frozen` the weights get no gradient, which [chapter 09](09_a_real_language_model.ipynb) needs.)

# %%
show_source(ops.linear_forward, ops.linear_backward, docstring=False)

# %% [markdown]
# Check shapes first. A gradient of the wrong shape is wrong, and often the shapes allow only one way to multiply.

# %%
R, K, O = 4, 3, 2
x, W, b = rng.standard_normal((R, K)), rng.standard_normal((K, O)), rng.standard_normal(O)
out, cache = ops.linear_forward(x, W, b)  # (R, O)
dout = rng.standard_normal(out.shape)  # (R, O), from whatever comes after
dx, dW, db = ops.linear_backward(dout, cache)  # (R, K)  (K, O)  (O,)
assert (dx.shape, dW.shape, db.shape) == (x.shape, W.shape, b.shape)

# one entry, straight from (1): nudge W[1, 0] and see how much Σ dout · out changes
nudged = W.copy()
nudged[1, 0] += 1e-6
moved = (dout * (ops.linear_forward(x, nudged, b)[0] - out)).sum()
print(f"measured {moved / 1e-6:.6f}   backward says {dW[1, 0]:.6f}")
assert np.isclose(moved / 1e-6, dW[1, 0], rtol=1e-6)

# %% [markdown]
# Here are the same three products as a picture. The outer dimensions of a product index the result; the inner ones,
# which meet in the middle, are summed over and disappear.

# %% jupyter={"source_hidden": true}
# Draws the three products of a linear layer as boxes that are labelled with their dimensions.


def draw_product(axes, name, left, right, result):
    """Draw three boxes labelled with their dimensions: left · right = result."""
    at = 0.0
    sizes = {"R": 1.6, "K": 1.1, "O": 0.6}
    for symbol, (label, rows, columns), colour in zip(
        ("", "·", "="), (left, right, result), (GREY, GREY, BLUE)
    ):
        if symbol:
            axes.text(at + 0.3, 0, symbol, ha="center", va="center", fontsize=13)
            at += 0.75
        height, width = sizes[rows], sizes[columns]
        axes.add_patch(
            plt.Rectangle(
                (at, -height / 2), width, height, facecolor=colour, alpha=0.25, edgecolor=colour
            )
        )
        axes.text(at + width / 2, 0, label, ha="center", va="center")
        axes.text(at - 0.08, 0, rows, ha="right", va="center", color=colour, fontsize=8)
        axes.text(
            at + width / 2,
            height / 2 + 0.05,
            columns,
            ha="center",
            va="bottom",
            color=colour,
            fontsize=8,
        )
        at += width + 0.1
    axes.set(xlim=(-0.3, 5), ylim=(-1.05, 1.15), aspect="equal", title=name)
    axes.axis("off")


figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.1))
draw_product(axes[0], "forward", ("x", "R", "K"), ("W", "K", "O"), ("out", "R", "O"))
draw_product(axes[1], "to the input", ("dout", "R", "O"), ("Wᵀ", "O", "K"), ("dx", "R", "K"))
draw_product(axes[2], "to the weights", ("xᵀ", "K", "R"), ("dout", "R", "O"), ("dW", "K", "O"))
plt.show()

# %% [markdown]
# ## 3 · LayerNorm: three paths
#
# LayerNorm takes each feature vector $x$ of $D$ numbers, subtracts their mean and divides by their standard deviation:
#
# $$ \mathtt{mean} = \tfrac1D\sum_d x_d \qquad \mathtt{std} = \sqrt{\tfrac1D\sum_d (x_d-\mathtt{mean})^2+\mathtt{eps}} $$
#
# $$ n_d = \frac{x_d - \mathtt{mean}}{\mathtt{std}} \qquad \mathtt{out}_d = n_d \cdot \mathtt{scale}_d + \mathtt{bias}_d $$
#
# (`eps`, $10^{-5}$, keeps `std` away from zero.)
#
# The last line is easy: $\mathtt{dn}_d = \mathtt{dout}_d\cdot\mathtt{scale}_d$. The rest is not, because one $x_{d}$
# changes *all* $n_{d'}$, along three different paths:
#
# 1. **straight**, into its own $n_d$, with the factor $1/\mathtt{std}$;
# 2. **through the mean**: $\partial\,\mathtt{mean}/\partial x_d = 1/D$, and the mean enters every $n_{d'}$ with the factor
#    $-1/\mathtt{std}$;
# 3. **through the standard deviation**:
#    $\partial\,\mathtt{std}/\partial x_d = (x_d-\mathtt{mean})/(D\cdot\mathtt{std}) = n_d/D$, and it enters every $n_{d'}$
#    with the factor $-n_{d'}/\mathtt{std}$.
#
# (In path 3 the mean inside the square changes, too. That contributes $\sum_{d'}(x_{d'}-\mathtt{mean}) = 0$ and can be left
# out.) Add the three, each multiplied by the $\mathtt{dn}_{d'}$ that it reaches:
#
# $$ \mathtt{dx}_d = \frac{1}{\mathtt{std}}\Big(\;
# \underbrace{\mathtt{dn}_d}_{\text{straight}} \;-\;
# \underbrace{\tfrac1D\textstyle\sum_{d'}\mathtt{dn}_{d'}}_{\text{mean}} \;-\;
# \underbrace{n_d\,\tfrac1D\textstyle\sum_{d'}\mathtt{dn}_{d'}\,n_{d'}}_{\text{std}}\;\Big) $$

# %%
show_source(ops.layernorm_forward, ops.layernorm_backward, docstring=False)

# %% [markdown]
# The formula claims to cover *all* paths together. So build them one at a time as $D\times D$ matrices $\partial
# n_{d'}/\partial x_d$ and see whether their sum gives the same `dx`.
#
# **Before you look:** which of the three matrices is diagonal, and which has the same number everywhere? What do the
# rows of their sum add up to?

# %%
D = 12
x, scale, bias = rng.standard_normal(D), rng.uniform(0.5, 1.5, D), rng.standard_normal(D)
out, cache = ops.layernorm_forward(x, scale, bias)
n, std, _ = cache
paths = {
    "straight": np.eye(D) / std,
    "through the mean": -np.ones((D, D)) / (D * std),
    "through std": -np.outer(n, n) / (D * std),
}
dout = rng.standard_normal(D)
dx, _, _ = ops.layernorm_backward(dout, cache)
np.testing.assert_allclose(dx, (dout * scale) @ sum(paths.values()), rtol=1e-12)

# %% jupyter={"source_hidden": true}
# Draws the matrix of each path, and their sum; checks that its rows and its product with n are 0.
whole = sum(paths.values())
assert np.abs(whole.sum(1)).max() < 1e-14
assert np.abs(whole @ n).max() < 1e-4  # not exactly: eps is added to the variance
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.7), sharey=True)
for ax, (name, matrix) in zip(axes, {**paths, "all three": whole}.items()):
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1)
    ax.set(title=name, xlabel="$x_d$", xticks=[0, D - 1], yticks=[0, D - 1])
axes[0].set_ylabel("$n_{d'}$")
figure.colorbar(image, ax=axes, shrink=0.75, label="∂n / ∂x")
plt.show()

# %% [markdown]
# The diagonal is the obvious part. The two faint patterns beside it are easily forgotten, and a network with a
# forgetful LayerNorm *still trains*, as you will see at the end. That is why section 5 is about trust.
#
# The matrix shows two more things. Its rows add up to zero: shifting all of $x$ changes nothing, since the mean shifts
# with it. And it gives zero when multiplied by $n$ itself (up to `eps`): scaling $x$ around its mean changes nothing
# either, since `std` scales with it.
#
# ## 4 · Cross-entropy: probability minus truth
#
# The model's last layer gives one number per possible next token, its `logits`. Softmax turns them into probabilities,
# and the loss is how surprised the model is by the token that came, in nats (one nat is $1/\ln 2\approx1.44$ bits):
#
# $$ p_v = \frac{e^{\mathtt{logits}_v}}{\sum_{v'} e^{\mathtt{logits}_{v'}}} \qquad \mathtt{loss} = -\log p_{\mathtt{target}}
# = \log\sum_{v'} e^{\mathtt{logits}_{v'}} - \mathtt{logits}_\mathtt{target} $$
#
# The derivative of the first term with respect to $\mathtt{logits}_v$ is $e^{\mathtt{logits}_v}/\sum = p_v$, that of the
# second is 1 for the target and 0 for all others. Averaged over $R$ rows:
#
# $$ \mathtt{dlogits}_{rv} = \frac{\mathtt{dout}}{R}\,\big(p_{rv} - \mathbf 1[v = \mathtt{target}_r]\big) $$
#
# ($\mathbf 1[\dots]$ is 1 where the statement in brackets holds, and 0 elsewhere.)
#
# The exponentials and logarithms have cancelled. A step against this gradient lowers the logit of every token that did
# not come and raises that of the one that came, each in proportion to the error of its probability.

# %%
show_source(ops.log_softmax, ops.cross_entropy_forward, ops.cross_entropy_backward, docstring=False)

# %%
V = 8
logits, targets = rng.standard_normal((1, V)) * 1.5, np.array([2])
loss, cache = ops.cross_entropy_forward(logits, targets)
dlogits = ops.cross_entropy_backward(1.0, cache)  # (1, V)
p = np.exp(ops.log_softmax(logits))
np.testing.assert_allclose(dlogits, p - np.eye(V)[targets], rtol=1e-12)
assert abs(dlogits.sum()) < 1e-15  # what some lose, others gain

# %% jupyter={"source_hidden": true}
# Draws probabilities and gradient, the target in orange.
colours = [VERMILION if v == targets[0] else BLUE for v in range(V)]
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), sharex=True)
axes[0].bar(range(V), p[0], color=colours)
axes[0].set(
    title=f"p; the target, token 2, has {p[0, targets[0]]:.2f}: loss {loss:.2f} nats",
    xlabel="token v",
)
axes[1].bar(range(V), dlogits[0], color=colours)
axes[1].axhline(0, color=GREY, linewidth=0.8)
axes[1].set(title="dlogits", xlabel="token v")
plt.show()

# %% [markdown]
# ## 5 · How to trust it
#
# You have a formula and a program. Both may be wrong, and a wrong gradient rarely crashes. So *measure* the derivative
# and compare. The obvious way is to take a small step $h$:
#
# $$ f'(x) \approx \frac{f(x+h)-f(x)}{h} \qquad\text{or, better,}\qquad f'(x) \approx \frac{f(x+h)-f(x-h)}{2h} $$
#
# By Taylor's formula the first is wrong by about $\tfrac12 h\,f''$, the second by about $\tfrac16 h^2 f'''$.
#
# There is a third way, without a subtraction. If $f$ is built from functions that also accept complex numbers, step
# *sideways*:
#
# $$ f(x + ih) = f(x) + ih\,f'(x) - \tfrac12h^2 f''(x) - \dots \qquad\Longrightarrow\qquad f'(x) \approx \frac{\operatorname{Im} f(x+ih)}{h} $$
#
# The derivative is alone in the imaginary part.
#
# **Before you look:** the next cell measures one derivative of LayerNorm in all three ways, with steps from $10^{-1}$ down
# to $10^{-20}$. A float64 holds 16 digits. For which of the three does the error become smaller and smaller as $h$ does?


# %%
def f(value):
    """Return one number computed from LayerNorm, as a function of one input entry."""
    moved = x.astype(type(value))  # x (D,)
    moved[3] = value
    return (dout * ops.layernorm_forward(moved, scale, bias)[0]).sum()


steps = 10.0 ** np.arange(-20, 0)
exact = dx[3]
errors = {
    "forward difference": [abs((f(x[3] + h) - f(x[3])) / h - exact) for h in steps],
    "central difference": [abs((f(x[3] + h) - f(x[3] - h)) / (2 * h) - exact) for h in steps],
    "complex step": [abs(f(x[3] + 1j * h).imag / h - exact) for h in steps],
}

# %% jupyter={"source_hidden": true}
# Draws the errors of the three derivatives.
figure, ax = plt.subplots(figsize=(7, 3.2))
for (name, error), colour, marker in zip(errors.items(), (GREY, VERMILION, BLUE), "sox"):
    ax.loglog(
        steps,
        np.maximum(error, 1e-17) / abs(exact),
        marker=marker,
        color=colour,
        label=name,
        markersize=4,
    )
ax.set(xlabel="step h", ylabel="relative error", title="Three ways to measure the same derivative")
ax.legend(frameon=False)
plt.show()
best_central, best_complex = min(errors["central difference"]), errors["complex step"][0]
print(
    f"central at its best {best_central / abs(exact):.0e}, complex step {best_complex / abs(exact):.0e}"
)
assert best_complex / abs(exact) < 1e-14 and errors["central difference"][0] > 1e-3 * abs(exact)

# %% [markdown]
# $f(x+h)$ and $f(x-h)$ agree in most of their 16 digits, and the subtraction cancels those; the difference has an
# error of about $10^{-16}\,|f|$, which is then *divided* by $h$. Small $h$, large error. The central difference is at its
# best at the bottom of a valley, at $h\approx 10^{-5}$, with some ten correct digits. The complex step subtracts nothing:
# with $h = 10^{-20}$, $h^2 = 10^{-40}$ vanishes and the result is right to the last digit (Squire & Trapp 1998). This is
# why the operations of this package accept complex arrays, and why `LayerNorm` squares with `centred * centred` and not
# with `abs`, which has no complex derivative.
#
# ### From one entry to a test
#
# `assert_gradients` does this for every entry of every argument: it draws a random `dout`, so that the output becomes the
# single number $f=\sum \mathtt{dout}\cdot\mathtt{out}$, measures all derivatives, and compares tensor by tensor, with $g$
# for the gradient that `backward` gives and $m$ for the measured one,
#
# $$ \|g-m\| \;\le\; \mathtt{tolerance}\cdot\big(\|g\|+\|m\|+\mathtt{floor}\big). $$
#
# It compares norms of whole tensors and not single entries: an entry whose true gradient is zero comes out as
# $10^{-17}$ on one side and $-3\cdot10^{-18}$ on the other, so its relative error means nothing. And it does not use an
# absolute bound: 0.01 is far too much for a gradient of 0.001.

# %%
x2, W2, b2 = rng.standard_normal((3, 5)), rng.standard_normal((5, 4)), rng.standard_normal(4)
assert_gradients(ops.linear_forward, ops.linear_backward, x2, W2, b2)

layernorm = ops.layernorm_forward, ops.layernorm_backward, x2, np.ones(5), np.zeros(5)
assert_gradients(*layernorm)
names = ["x", "scale", "bias"]
for record in check_gradients(*layernorm, argument_names=names):  # the same, as records
    print(f"{record.operation}  {record.argument}: relative error {record.relative_error:.1e}")

# %% [markdown]
# A check that has never failed proves nothing. **Plant a bug** and see: here is a LayerNorm that forgets the second
# path.


# %% tags=["subject"]
def forgetful_backward(dout, cache):
    """Compute layernorm_backward without the path through the mean."""
    n, std, scale = cache
    dn = dout * scale
    dx = (dn - n * (dn * n).mean(-1, keepdims=True)) / std
    return dx, (dout * n).reshape(-1, n.shape[-1]).sum(0), dout.reshape(-1, n.shape[-1]).sum(0)


try:
    assert_gradients(layernorm[0], forgetful_backward, *layernorm[2:], argument_names=names)
except AssertionError as error:
    print(error)
else:
    raise AssertionError("the planted bug was not found")

# %% [markdown]
# ## 6 · All of it together, on real text
#
# These three and a table are enough for a language model. It reads the last $C=8$ characters, each as an embedding of $E$
# numbers, concatenated, and predicts the next:
#
#     ids (B, C) → embedding (B, C·E) → linear (B, D) → LayerNorm (B, D) → linear (B, V) → cross-entropy
#
# LayerNorm is the only nonlinearity. An *embedding* is a table with one row for each token; the layer looks up the rows of
# its tokens, and its backward *adds* into the rows that were read, by the second rule of thumb. (The models of the other
# chapters use that table a second time, transposed, as the last `W2`: their embeddings are *tied*.) The text is the language
# reference that comes with Python.

# %% jupyter={"source_hidden": true}
# Loads the text, draws initial parameters, and cuts batches.
text = load_text(DataConfig(corpus="pydoc"))
C, E, D, V, B = 8, 16, 128, text.tokenizer.V, 256
tokens = text.train.astype(np.int64)


def batch(tokens, at):
    """Return C characters from each position, and the one after them."""
    return tokens[at[:, None] + np.arange(C)], tokens[at + C]


def new_parameters(rng):
    """Return the initial parameters by name."""
    return {
        "embedding": rng.standard_normal((V, E)) * 0.1,
        "W1": rng.standard_normal((C * E, D)) / np.sqrt(C * E),
        "b1": np.zeros(D),
        "scale": np.ones(D),
        "bias": np.zeros(D),
        "W2": rng.standard_normal((D, V)) / np.sqrt(D),
        "b2": np.zeros(V),
    }


# %% [markdown]
# Read `step` from top to bottom, and then the second half from bottom to top: every backward line matches one forward
# line.


# %% tags=["subject"]
def step(p, ids, targets, layernorm_backward=ops.layernorm_backward):
    """Return the loss and all gradients. ids (B, C), targets (B,)."""
    e, e_cache = ops.embedding_forward(ids, p["embedding"])  # (B, C, E)
    x = e.reshape(len(ids), -1)  # (B, C·E)
    h, h_cache = ops.linear_forward(x, p["W1"], p["b1"])  # (B, D)
    n, n_cache = ops.layernorm_forward(h, p["scale"], p["bias"])  # (B, D)
    logits, o_cache = ops.linear_forward(n, p["W2"], p["b2"])  # (B, V)
    loss, l_cache = ops.cross_entropy_forward(logits, targets)

    g = {}
    dlogits = ops.cross_entropy_backward(1.0, l_cache)  # (B, V)
    dn, g["W2"], g["b2"] = ops.linear_backward(dlogits, o_cache)  # (B, D)
    dh, g["scale"], g["bias"] = layernorm_backward(dn, n_cache)  # (B, D)
    dx, g["W1"], g["b1"] = ops.linear_backward(dh, h_cache)  # (B, C·E)
    g["embedding"] = ops.embedding_backward(dx.reshape(e.shape), e_cache)  # (V, E)
    return loss, g


# %% [markdown]
# The checker takes the whole model as it takes a layer: with parameters as inputs and the loss as output.

# %%
p = new_parameters(rng)
ids, targets = batch(tokens, rng.integers(0, len(tokens) - C, 5))


def model_forward(*values):
    p_now = dict(zip(p, values))
    return step(p_now, ids, targets)[0], p_now


def model_backward(dloss, p_now):
    g = step(p_now, ids, targets)[1]
    return tuple(dloss * g[name] for name in p)


# directions=1: one random direction through each array, not every entry
assert_gradients(model_forward, model_backward, *p.values(), argument_names=list(p), directions=1)
print("the whole model's gradients agree with the complex step")

# %% [markdown]
# Now train it by plain gradient descent, once with the right LayerNorm and once with the forgetful one. The learning rate
# falls to zero along the way, so that the last steps are small. (Other chapters use *AdamW*, which the
# [tour](00_tour.ipynb) describes.)
#
# **Before you look:** how different will the two training curves be?


# %%
def train(layernorm_backward, steps=1200, lr=0.3):
    """Run gradient descent. Return the loss of every step, and the loss on held-out text at the end, in bits."""
    rng = np.random.default_rng(1)
    p = new_parameters(rng)
    losses = []
    for i in range(steps):
        ids, targets = batch(tokens, rng.integers(0, len(tokens) - C, B))
        loss, g = step(p, ids, targets, layernorm_backward)
        losses.append(loss / np.log(2))
        for name in p:
            p[name] -= lr * (1 - i / steps) * g[name]
    valid = text.valid.astype(np.int64)
    at = np.arange(len(valid) - C)
    return np.array(losses), step(p, *batch(valid, at))[0] / np.log(2)


losses, valid = train(ops.layernorm_backward)
forgetful, valid_forgetful = train(forgetful_backward)
assert valid < 3.6

# %% jupyter={"source_hidden": true}
# Draws both training curves.
figure, ax = plt.subplots(figsize=(7, 3.2))
smooth = np.ones(40) / 40
for name, values, colour, style in (
    ("correct LayerNorm", losses, BLUE, "-"),
    ("forgetful LayerNorm", forgetful, VERMILION, "--"),
):
    ax.plot(np.convolve(values, smooth, "valid"), color=colour, linestyle=style, label=name)
ax.axhline(np.log2(V), color=GREY, linewidth=0.8, linestyle=":")
ax.text(len(losses), np.log2(V), "guessing", ha="right", va="bottom", color=GREY)
ax.set(xlabel="step", ylabel="bits per character", title="Training loss, mean of 40 steps")
ax.legend(frameon=False)
plt.show()
print(f"held-out text: correct {valid:.3f} bits per character, forgetful {valid_forgetful:.3f}")

# %% [markdown]
# It learns, with no automatic differentiation anywhere. And the planted bug? Its curve coincides with the correct one.
# What it forgets in `dh` is the same number for all features of a row. In $W_1$ and $b_1$ that only shifts all features
# together, and LayerNorm ignores such a shift (section 3); only the embeddings learn from a wrong gradient. Nobody would
# find the bug by looking at losses; the checker found it in milliseconds.
#
# ## Recap
#
# - A backward pass turns `dout` into the gradients of a layer's inputs, by the chain rule, one layer at a time.
# - What was summed over forward is copied backward; what was used more than once forward is summed over backward.
# - A wrong gradient can train as well as a right one, so measure every gradient: the complex step is exact to fifteen
#   digits.
#
# ## Now you
#
# Replace the line `raise NotImplementedError(…)` by your code and run the cell. It prints nothing if the check passes.

# %% [markdown]
# ### Exercise 1 · RMSNorm
#
# Many recent models, and the one in [chapter 09](09_a_real_language_model.ipynb), leave the mean out of LayerNorm:
#
# $$ \mathtt{rms} = \sqrt{\tfrac1D\sum_d x_d^2+\mathtt{eps}} \qquad n_d = \frac{x_d}{\mathtt{rms}} \qquad
# \mathtt{out}_d = n_d\cdot\mathtt{scale}_d $$
#
# Derive its backward pass on paper as in section 3 (how many paths lead from $x_d$ to the output?) and write it. `x` and
# `dout` are (R, D), `scale` is (D,); `rms` is (R, 1).

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import assert_gradients


def rmsnorm_forward(x, scale):
    rms = np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    n = x / rms
    return n * scale, (n, rms, scale)


def rmsnorm_backward(dout, cache):
    """Return dx (R, D) and dscale (D,) from dout (R, D); the cache holds n (R, D), rms (R, 1), scale (D,)."""
    raise NotImplementedError("write rmsnorm_backward: return dx and dscale")


rng = np.random.default_rng(0)
x, scale = rng.standard_normal((4, 6)), rng.uniform(0.5, 1.5, 6)
assert_gradients(rmsnorm_forward, rmsnorm_backward, x, scale, argument_names=["x", "scale"])

# %% [markdown]
# <details><summary>Hint</summary>
#
# Two paths: straight into the own $n_d$, and through `rms`, where $\partial\,\mathtt{rms}/\partial x_d = n_d/D$. The
# scale is used in every row.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def rmsnorm_backward(dout, cache):
#     n, rms, scale = cache
#     dn = dout * scale
#     dx = (dn - n * (dn * n).mean(-1, keepdims=True)) / rms
#     return dx, (dout * n).sum(0)
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · Embedding
#
# An embedding looks up rows of a table: `out[i] = E[ids[i]]`. Write its backward pass: `ids` is (R,), `E` is (V, D),
# `dout` is (R, D). The same token may occur several times in `ids`.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import assert_gradients


def embedding_forward(ids, E):
    return E[ids], (ids, E.shape)


def embedding_backward(dout, cache):
    """Return dE (V, D) from dout (R, D); the cache holds ids (R,) and the shape of E."""
    raise NotImplementedError("write embedding_backward: return dE, the sum of dout for each token")


ids, E = np.array([2, 0, 2, 3, 2]), np.random.default_rng(0).standard_normal((5, 3))
assert_gradients(embedding_forward, embedding_backward, ids, E, argument_names=["ids", "E"])

# %% [markdown]
# <details><summary>Hint</summary>
#
# `dE[ids] += dout` adds only once for a row that occurs several times. `np.add.at` adds each time; so does a loop.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def embedding_backward(dout, cache):
#     ids, shape = cache
#     dE = np.zeros(shape)
#     np.add.at(dE, ids, dout)
#     return dE
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3 · Your own gradient checker
#
# Write the measurement that all checks rest on. `f` takes an array and returns one number; return the array of its
# derivatives with respect to every entry of `x`, by the complex step.

# %% tags=["exercise", "raises-exception"]
import numpy as np


def measured_gradient(f, x, h=1e-20):
    """Return the derivative of f, which is one number, with respect to each entry of x, in the shape of x."""
    raise NotImplementedError(
        "write measured_gradient: return Im f(x + ih) / h for one entry at a time"
    )


def f(x):
    return (x**3).sum() + np.exp(x[0, 0]) * x[1, 2]


x = np.random.default_rng(0).standard_normal((2, 3))
expected = 3 * x**2
expected[0, 0] += np.exp(x[0, 0]) * x[1, 2]
expected[1, 2] += np.exp(x[0, 0])
measured = measured_gradient(f, x)
assert measured.shape == x.shape, f"expected shape {x.shape}, got {measured.shape}"
error = np.abs(measured - expected).max()
assert error < 1e-13, f"expected {expected} to 13 digits, got {measured}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# `np.ndindex(x.shape)` yields the index of each entry. Move one entry of a fresh complex copy of `x` at a time.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def measured_gradient(f, x, h=1e-20):
#     gradient = np.empty(x.shape)
#     for at in np.ndindex(x.shape):
#         moved = x.astype(complex)
#         moved[at] += 1j * h
#         gradient[at] = f(moved).imag / h
#     return gradient
# ```
#
# </details>
#
# Assignment A1 (a1_1 to a1_3, see [the assignments](assignments/README.md)) asks for all three layers of this chapter,
# forwards and backwards.

# %% [markdown]
# ## Questions
#
# 1. `linear_backward` computes `dW` as `xᵀ dout`. What would be wrong with the mean over rows in place of the sum?
#
# <details><summary>Answer</summary>
#
# With only this layer, the direction of a step would still be right, but it would no longer be the derivative of the
# loss. `cross_entropy` has already put the $1/R$ of its mean into `dlogits`; a second one would make this layer's
# gradient R times too small, and so dependent on the batch size. The checker would reject it.
#
# </details>
#
# 2. A layer computes `out = x + f(x)` (a residual connection). What is `dx`?
#
# <details><summary>Answer</summary>
#
# `dx = dout + f_backward(dout)`: `x` was used twice, so its two gradients are summed. The same happens wherever a value
# or a parameter is used twice. It is also why no `backward` may write into its `dout`: the other path still needs it.
#
# </details>
#
# 3. Where does the complex step fail?
#
# <details><summary>Answer</summary>
#
# Where the program leaves the functions that have a complex derivative: `abs`, `max` and comparisons (unless they look
# at `.real`, as `log_softmax` does here), a conversion to float, compiled code that accepts only float64. For those the
# checker has `mode="central"`, with its ten digits.
#
# </details>
#
# 4. If all keys of an attention share a bias, its gradient is exactly zero (you will see why in the
#    [next chapter](03_attention_by_hand.ipynb)). What does a check by *relative error of each entry* say to that?
#
# <details><summary>Answer</summary>
#
# It compares two rounding errors, finds them 100 % apart, and rejects a correct program. Hence the norm of the whole
# tensor and the small `floor`.
#
# </details>
#
# **Next:** [03 attention by hand](03_attention_by_hand.ipynb), where the same three steps (derive, write, measure) meet
# their first real opponent. The operations of this chapter are in [`ops/linear.py`](../tinyprune/ops/linear.py),
# [`ops/layernorm.py`](../tinyprune/ops/layernorm.py) and [`ops/cross_entropy.py`](../tinyprune/ops/cross_entropy.py), the
# checker in [`gradcheck/checker.py`](../tinyprune/gradcheck/checker.py).

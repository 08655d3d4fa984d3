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
# &nbsp; ← [00 the tour](00_tour.ipynb) · [all chapters](README.md) · [02 the Hard-Concrete gate](02_hard_concrete_gate.ipynb) →
#
# **After this chapter you can** derive the backward pass of a layer with pencil and paper, write it in NumPy, and show that
# it is right to fifteen digits. You see it for *linear* and *cross-entropy*, and do it for *LayerNorm* and *RMSNorm*. Then a
# small language model trains with your LayerNorm.
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
# Imports, and the style of the pictures.
# %matplotlib inline
import matplotlib.pyplot as plt
import numpy as np

from tinyprune import assert_gradients, check_gradients, load_text, ops
from tinyprune.config import DataConfig
from tinyprune.notebook import show_lines, show_source, use_style, you_are_here, yours
from tinyprune.plots import BLUE, GREY, VERMILION

use_style()
rng = np.random.default_rng(0)

# %%
you_are_here("embedding", "norm", "softmax")

# %% [markdown]
# ## 1 · What a backward pass computes
#
# A network computes a single number, the `loss`, through a chain of operations. How does the loss change if a number in the
# chain grows a little? That is the number's **gradient**. For an array `x` the gradient is an array of the same shape, and
# the code calls it `dx`:
#
# $$ \mathtt{dx}_i = \frac{\partial\,\mathtt{loss}}{\partial x_i} $$
#
# Training takes small steps *against* the gradient: a parameter $W$ becomes $W-\mathtt{lr}\cdot\mathtt{dW}$, where `lr` is
# the **learning rate**.
#
# By the chain rule, each operation can be treated alone. It computes `out` from `x`. Backward, it receives
# `dout`, the gradient of its output, and returns `dx`:
#
# $$ \mathtt{dx}_i = \sum_j \mathtt{dout}_j \, \frac{\partial\, \mathtt{out}_j}{\partial x_i} \tag{1} $$
#
# The sum runs over all outputs, since $x_i$ may affect the loss through any of them. That is all of backpropagation. Every
# operation of this package is a pair of functions:
#
#     out, cache = layer_forward(x, W, …)        cache: whatever backward needs
#     dx, dW, …  = layer_backward(dout, cache)   gradients, in the order of the arguments
#
# What remains is to work out (1) for each operation, without building the matrix
# $\partial\,\mathtt{out}/\partial x$. Libraries do this for you. By hand, you see what a gradient says: in
# [chapter 05](05_l0_and_the_difference.ipynb) a gate's gradient shows what its head adds.

# %% [markdown]
# ## 2 · Linear
#
# With rows $r$, inputs $k$ and outputs $o$:
#
# $$ \mathtt{out}_{ro} = \sum_k x_{rk} W_{ko} + b_o \qquad\qquad x\;(R, K)\quad W\;(K, O)\quad b\;(O)\quad \mathtt{out}\;(R, O) $$
#
# One $x_{rk}$ appears in the outputs of *its own row* only, in $\mathtt{out}_{ro}$ with the factor $W_{ko}$. So (1) says
#
# $$ \mathtt{dx}_{rk} = \sum_o \mathtt{dout}_{ro} W_{ko} \quad\Longrightarrow\quad \mathtt{dx} = \mathtt{dout}\, W^\top $$
#
# One $W_{ko}$ appears in *every row*, in column $o$ only, with the factor $x_{rk}$; one $b_o$ appears in every row with the
# factor 1:
#
# $$ \mathtt{dW}_{ko} = \sum_r x_{rk}\,\mathtt{dout}_{ro} \quad\Longrightarrow\quad \mathtt{dW} = x^\top \mathtt{dout},
# \qquad\qquad \mathtt{db}_o = \sum_r \mathtt{dout}_{ro} $$
#
# Two rules of thumb hold for every layer: **what was summed over forward is copied backward**, and
# **what was used more than once forward is summed over backward**. Both are (1): the derivative of a sum by each summand
# is 1, so each gets `dout` itself; and a number that enters several outputs has a term for each.
#
# With numbers: let a unit more of `out[0, 0]` raise the loss by 1, and a unit more of `out[1, 1]` lower the loss by 1.

# %%
x = np.array([[1.0, 2.0], [3.0, 4.0]])
W = np.array([[10.0, 20.0], [30.0, 40.0]])
b = np.array([100.0, 200.0])
out, cache = ops.linear_forward(x, W, b)
dout = np.array([[1.0, 0.0], [0.0, -1.0]])
dx, dW, db = dout @ W.T, x.T @ dout, dout.sum(0)
print(f"out =\n{out}\n\ndx =\n{dx}\n\ndW =\n{dW}\n\ndb = {db}")
for mine, package in zip((dx, dW, db), ops.linear_backward(dout, cache)):
    np.testing.assert_array_equal(mine, package)

# %% [markdown]
# - `dx[0]` = (10, 30): the gradient of `out[0, 0]` is copied to both inputs, times column 0 of `W`.
# - `dW[0, 1]` = 1 · 0 + 3 · (−1) = −3: `W[0, 1]` meets `x[0, 0]` = 1 in row 0, where `dout` is 0, and `x[1, 0]` = 3 in
#   row 1, where `dout` is −1.
#
# In the picture, the inner dimensions of a product, which meet in the middle, are summed over and disappear. Check shapes
# first: often they allow only one way to multiply.

# %% jupyter={"source_hidden": true}
# The three products of a linear layer are boxes labelled with their dimensions; the inner dimension of each is summed over.


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
for ax, name, *boxes in (
    (axes[0], "forward: K", ("x", "R", "K"), ("W", "K", "O"), ("out", "R", "O")),
    (axes[1], "to the input: O", ("dout", "R", "O"), ("Wᵀ", "O", "K"), ("dx", "R", "K")),
    (axes[2], "to the weights: R", ("xᵀ", "K", "R"), ("dout", "R", "O"), ("dW", "K", "O")),
):
    draw_product(ax, f"{name} is summed over", *boxes)
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
# (`eps`, $10^{-5}$, keeps `std` away from zero.) These are the lines of the package:

# %%
show_lines(ops.layernorm_forward, "centred = ", "return")

# %% [markdown]
# `keepdims=True` keeps the averaged axis with length 1: the mean of an `x` of (R, D) is (R, 1), and broadcasting uses that
# mean for every entry of the row.
#
# Backward, the last formula is easy: $\mathtt{dn}_d = \mathtt{dout}_d\cdot\mathtt{scale}_d$. The rest is not, because one
# $x_{d}$ changes *all* $n_{d'}$, along three different paths:
#
# 1. **straight**, into its own $n_d$, with the factor $1/\mathtt{std}$;
# 2. **through the mean**: $\partial\,\mathtt{mean}/\partial x_d = 1/D$, and the mean enters every $n_{d'}$ with the factor
#    $-1/\mathtt{std}$;
# 3. **through the standard deviation**:
#    $\partial\,\mathtt{std}/\partial x_d = (x_d-\mathtt{mean})/(D\cdot\mathtt{std}) = n_d/D$, and `std` enters every $n_{d'}$
#    with the factor $-n_{d'}/\mathtt{std}$.
#
# (In path 3 the mean inside the square changes, too. That contributes $\sum_{d'}(x_{d'}-\mathtt{mean})$, which is
# $D\,\mathtt{mean} - D\,\mathtt{mean} = 0$.) Add the three, each multiplied by the $\mathtt{dn}_{d'}$ that it reaches:
#
# $$ \mathtt{dx}_d = \frac{1}{\mathtt{std}}\Big(\;
# \underbrace{\mathtt{dn}_d}_{\text{straight}} \;-\;
# \underbrace{\tfrac1D\textstyle\sum_{d'}\mathtt{dn}_{d'}}_{\text{mean}} \;-\;
# \underbrace{n_d\,\tfrac1D\textstyle\sum_{d'}\mathtt{dn}_{d'}\,n_{d'}}_{\text{std}}\;\Big) $$

# %% [markdown]
# ### Exercise 1 · LayerNorm
#
# *●●○ · 10 minutes*
#
# Write `layernorm_backward`. `dout` is (…, D), with any number of leading axes. `scale` and `bias` are used in every row, so
# the second rule of thumb gives their gradients.
#
# Replace the line `raise NotImplementedError(…)` and run the cell. If the check passes, your function computes in place of
# the package's from here on, in later chapters too.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.notebook import yours


def layernorm_backward(dout, cache):
    """Return dx (..., D), dscale (D,), dbias (D,) from dout (..., D)."""
    n, std, scale = cache  # (..., D), (..., 1), (D,)
    raise NotImplementedError("write layernorm_backward: return dx, dscale and dbias")


rng = np.random.default_rng(0)
cases = []
for shape in ((4, 6), (2, 3, 5)):
    D = shape[-1]
    x, scale, bias = rng.standard_normal(shape), rng.uniform(0.5, 1.5, D), rng.standard_normal(D)
    cases.append((rng.standard_normal(shape), ops.layernorm_forward(x, scale, bias)[1]))
hint = {
    "dx": "x reaches the loss by three paths: straight, through the mean, and through std",
    "dscale": "each number of scale is used at every position: a sum over all axes but the last",
    "dbias": "each number of bias is used at every position: a sum over all axes but the last",
}
yours.check(layernorm_backward, ops.layernorm_backward, *cases, hint=hint)

# %% [markdown]
# <details><summary>Hint</summary>
#
# $\tfrac1D\sum_{d'}$ is `.mean(-1, keepdims=True)`. `dout.reshape(-1, D)` joins all axes but the last into rows, which can
# then be summed with `.sum(0)`.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def layernorm_backward(dout, cache):
#     n, std, scale = cache
#     D = n.shape[-1]
#     dscale = (dout * n).reshape(-1, D).sum(0)
#     dbias = dout.reshape(-1, D).sum(0)
#     dn = dout * scale
#     dx = (dn - dn.mean(-1, keepdims=True) - n * (dn * n).mean(-1, keepdims=True)) / std
#     return dx, dscale, dbias
# ```
#
# </details>

# %% [markdown]
# ### The three paths as matrices
#
# The formula claims to cover *all* paths. So build each path as a $D\times D$ matrix $\partial n_{d'}/\partial x_d$, and
# see whether their sum gives the same `dx`.
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
# The straight path is a diagonal, the path through the mean is even, and the path through std is a pattern, both on a finer scale of colours; last comes their sum.
whole = sum(paths.values())
assert np.abs(whole.sum(1)).max() < 1e-14
assert np.abs(whole @ n).max() < 1e-4  # not exactly: eps is added to the variance
figure, axes = plt.subplots(1, 4, figsize=(9.5, 2.9))
for ax, (name, matrix), top in zip(
    axes, {**paths, "sum of all three": whole}.items(), (1, 0.3, 0.3, 1)
):
    image = ax.imshow(matrix, cmap="RdBu_r", vmin=-top, vmax=top)
    ax.set(title=name, xlabel="$x_d$", xticks=[0, D - 1], yticks=[0, D - 1])
    bar = figure.colorbar(image, ax=ax, location="bottom", ticks=[-top, 0, top])
axes[0].set_ylabel("$n_{d'}$")
figure.suptitle("∂n / ∂x: the diagonal is obvious, the other two paths are easily forgotten")
plt.show()

# %% [markdown]
# The rows of the sum add up to zero: adding the same number to all of $x$ changes nothing, since the mean shifts with it.
# And the sum times $n$ is zero (up to `eps`): scaling $x$ around its mean changes nothing either, since `std` scales with
# it.

# %% [markdown]
# ### Exercise 2 · RMSNorm
#
# *●●○ · 10 minutes*
#
# Many recent models leave out the mean and the bias. So does the pretrained model of
# [chapter 09](09_a_real_language_model.ipynb), which will use your function.
#
# $$ \mathtt{rms} = \sqrt{\tfrac1D\sum_d x_d^2+\mathtt{eps}} \qquad n_d = \frac{x_d}{\mathtt{rms}} \qquad
# \mathtt{out}_d = n_d\cdot\mathtt{scale}_d $$
#
# Derive the backward pass on paper (how many paths lead from $x_d$ to the output?) and write `rmsnorm_backward`.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.notebook import yours


def rmsnorm_backward(dout, cache):
    """Return dx (..., D) and dscale (D,) from dout (..., D)."""
    n, rms, scale = cache  # (..., D), (..., 1), (D,)
    raise NotImplementedError("write rmsnorm_backward: return dx and dscale")


rng = np.random.default_rng(0)
cases = []
for shape in ((4, 6), (2, 3, 5)):
    x, scale = rng.standard_normal(shape), rng.uniform(0.5, 1.5, shape[-1])
    cases.append((rng.standard_normal(shape), ops.rmsnorm_forward(x, scale)[1]))
hint = "two paths: straight, and through rms, whose derivative by x_d is n_d / D"
yours.check(rmsnorm_backward, ops.rmsnorm_backward, *cases, hint=hint)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Two paths: straight into $n_d$, and through `rms`, where $\partial\,\mathtt{rms}/\partial x_d = n_d/D$.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def rmsnorm_backward(dout, cache):
#     n, rms, scale = cache
#     dscale = (dout * n).reshape(-1, n.shape[-1]).sum(0)
#     dn = dout * scale
#     dx = (dn - n * (dn * n).mean(-1, keepdims=True)) / rms
#     return dx, dscale
# ```
#
# </details>

# %% [markdown]
# ## 4 · Cross-entropy: probability minus truth
#
# The model's last layer gives one number for each possible next token, its `logits`. Softmax turns them into probabilities,
# and the loss measures the surprise at the token that came, in nats (one nat is $1/\ln 2\approx1.44$ bits):
#
# $$ p_v = \frac{e^{\mathtt{logits}_v}}{\sum_{v'} e^{\mathtt{logits}_{v'}}} \qquad \mathtt{loss} = -\log p_{\mathtt{target}}
# = \log\sum_{v'} e^{\mathtt{logits}_{v'}} - \mathtt{logits}_\mathtt{target} $$
#
# The derivative of the first term with respect to $\mathtt{logits}_v$ is $e^{\mathtt{logits}_v}/\sum_{v'}e^{\mathtt{logits}_{v'}} = p_v$; that of the
# second is 1 for the target and 0 for all others. Averaged over $R$ rows (in training `dout` is 1):
#
# $$ \mathtt{dlogits}_{rv} = \frac{\mathtt{dout}}{R}\,\big(p_{rv} - \mathbf 1[v = \mathtt{target}_r]\big) $$
#
# ($\mathbf 1[\dots]$ is 1 where the statement in brackets holds, and 0 elsewhere.) The exponentials and logarithms have
# cancelled: what is left is the error of each probability. The package subtracts the
# largest logit, against overflow:

# %%
show_source(ops.log_softmax, docstring=False)

# %%
V = 8
logits, targets = rng.standard_normal((1, V)) * 1.5, np.array([4])
loss, cache = ops.cross_entropy_forward(logits, targets)
dlogits = ops.cross_entropy_backward(1.0, cache)  # (1, V)
p = np.exp(ops.log_softmax(logits))
np.testing.assert_allclose(dlogits, p - np.eye(V)[targets], rtol=1e-12)
assert abs(dlogits.sum()) < 1e-15  # what some lose, others gain

# %% jupyter={"source_hidden": true}
# The gradient of the logits equals the probabilities of the eight tokens, but is negative for the target, in orange.
colours = [VERMILION if v == targets[0] else BLUE for v in range(V)]
figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), sharex=True)
axes[0].bar(range(V), p[0], color=colours)
axes[0].set(title=f"p: token {targets[0]} came; loss {loss:.2f} nats", xlabel="token v")
axes[1].bar(range(V), dlogits[0], color=colours)
axes[1].axhline(0, color=GREY, linewidth=0.8)
axes[1].set(title="dlogits: p, minus 1 for the token that came", xlabel="token v")
plt.show()

# %% [markdown]
# ## 5 · How to trust it
#
# Formula and program may be wrong, and a wrong gradient rarely crashes. So *measure* the derivative and compare. The obvious
# way is a small step $h$:
#
# $$ f'(x) \approx \frac{f(x+h)-f(x)}{h} \qquad\text{or, better,}\qquad f'(x) \approx \frac{f(x+h)-f(x-h)}{2h} $$
#
# By Taylor's formula the first is wrong by about $\tfrac12 h\,f''$, the second by about $\tfrac16 h^2 f'''$.
#
# A third way needs no subtraction. If $f$ also accepts complex numbers, step *sideways*:
#
# $$ f(x + ih) = f(x) + ih\,f'(x) - \tfrac12h^2 f''(x) - \dots \qquad\Longrightarrow\qquad f'(x) \approx \frac{\operatorname{Im} f(x+ih)}{h} $$
#
# The imaginary part holds the derivative, up to an error of order $h^2$.
#
# **Before you look:** the next cell measures one derivative of LayerNorm in all three ways, with steps down to $10^{-20}$. A
# float64 holds 16 digits. For which of the three does the error keep shrinking with $h$?


# %%
def f(value):
    """Return one number computed from LayerNorm, as a function of one input entry."""
    moved = x.astype(type(value))  # x (D,)
    moved[3] = value
    return (dout * ops.layernorm_forward(moved, scale, bias)[0]).sum()


x, scale, bias = np.random.default_rng(0).standard_normal((3, D))
_, cache = ops.layernorm_forward(x, scale, bias)
exact = ops.layernorm_backward(dout, cache)[0][3]
steps = 10.0 ** np.arange(-20, 0)
errors = {
    "forward difference": [abs((f(x[3] + h) - f(x[3])) / h - exact) for h in steps],
    "central difference": [abs((f(x[3] + h) - f(x[3] - h)) / (2 * h) - exact) for h in steps],
    "complex step": [abs(f(x[3] + 1j * h).imag / h - exact) for h in steps],
}

# %% jupyter={"source_hidden": true}
# The errors of both differences have a smallest value at some step h and grow again below it; that of the complex step stays near 1e-16 at every small h.
figure, ax = plt.subplots(figsize=(7, 3.2))
for (name, error), colour, marker in zip(errors.items(), (GREY, VERMILION, BLUE), "sox"):
    relative = np.maximum(error, 1e-17) / abs(exact)
    ax.loglog(steps, relative, marker=marker, color=colour, label=name, markersize=4)
title = "A difference has a best step; the complex step needs none (no error is drawn at 1e-17)"
ax.set(xlabel="step h", ylabel="relative error", title=title)
ax.legend(frameon=False)
plt.show()
best_central, best_complex = min(errors["central difference"]), errors["complex step"][0]
print(
    f"central at its best {best_central / abs(exact):.0e}, complex step {best_complex / abs(exact):.0e}"
)
assert best_complex / abs(exact) < 1e-14 and errors["central difference"][0] > 1e-3 * abs(exact)

# %% [markdown]
# $f(x+h)$ and $f(x-h)$ agree in most of their 16 digits, and the subtraction cancels those. What is left has an error of
# about $10^{-16}\,|f|$, which is then *divided* by $h$. The smaller $h$, the larger the error. The central difference is
# at its best at the bottom of a valley, with ten correct digits. The complex step subtracts nothing: with $h = 10^{-20}$,
# $h^2$ vanishes and the result is right to the last digit (Squire & Trapp 1998).

# %% [markdown]
# ### Exercise 3 · Your gradient checker
#
# *●○○ · 10 minutes*
#
# `f` takes an array and returns one number. Return the array of the derivatives with respect to every entry of `x`, by the
# complex step. The package's own gradients are tested by this measurement; the cell then measures your LayerNorm.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.course.expectations import expect_close
from tinyprune.notebook import yours


def measured_gradient(f, x, h=1e-20):
    """Return the derivative of f, which is one number, with respect to each entry of x, in the shape of x."""
    raise NotImplementedError("write measured_gradient: return Im f(x + ih) / h of every entry")


rng = np.random.default_rng(0)
x, dout = rng.standard_normal((2, 3)), rng.standard_normal((2, 3))
expected = 3 * x**2
expected[0, 0] += np.exp(x[0, 0]) * x[1, 2]
expected[1, 2] += np.exp(x[0, 0])
measured = measured_gradient(lambda x: (x**3).sum() + np.exp(x[0, 0]) * x[1, 2], x)
fed = {"x": x, "f": "the sum of x**3, plus exp(x[0, 0]) * x[1, 2]"}
hint = "move one entry at a time, sideways; what is measured is the imaginary part over h"
title, near = "a derivative is wrong", {"relative": 1e-13, "absolute": 1e-13}
expect_close(measured, expected, title, fed=fed, hint=hint, **near)
print(f"passed: right to {np.abs(measured - expected).max():.0e}")
with yours.engine() as your_ops:
    out, cache = your_ops.layernorm_forward(x, np.ones(3), np.zeros(3))
    dx, _, _ = your_ops.layernorm_backward(dout, cache)
    through = measured_gradient(
        lambda x: (dout * your_ops.layernorm_forward(x, np.ones(3), np.zeros(3))[0]).sum(), x
    )
print(f"LayerNorm's dx, computed and measured: {np.abs(dx - through).max():.0e} apart")

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

# %% [markdown]
# ### A test for every layer
#
# `assert_gradients` measures the gradients of all arguments. It draws a random `dout`, so that the output becomes the
# single number $f=\sum \mathtt{dout}\cdot\mathtt{out}$, and compares norms of whole tensors.
# (Where the true gradient is zero, both sides are rounding errors, so relative errors of single entries mean nothing.)
#
# A check that has never failed proves nothing. **Plant a bug**: here is a LayerNorm that forgets the second path.


# %% tags=["subject"]
def forgetful_backward(dout, cache):
    """Compute layernorm_backward without the path through the mean."""
    n, std, scale = cache
    dn = dout * scale
    dx = (dn - n * (dn * n).mean(-1, keepdims=True)) / std
    return dx, (dout * n).reshape(-1, n.shape[-1]).sum(0), dout.reshape(-1, n.shape[-1]).sum(0)


names = ["x", "scale", "bias"]
arguments = rng.standard_normal((3, 5)), np.ones(5), np.zeros(5)
assert_gradients(ops.layernorm_forward, ops.layernorm_backward, *arguments)
for record in check_gradients(
    ops.layernorm_forward, forgetful_backward, *arguments, argument_names=names
):
    print(f"forgetful: d{record.argument:6} relative error {record.relative_error:.0e}")
    assert record.passed == (record.argument != "x")

# %% [markdown]
# ## 6 · A language model, on real text
#
# These layers are enough for a language model that reads the last $C=8$ characters, each as an embedding of $E$
# numbers, and predicts the next:
#
#     ids (B, C) → embedding (B, C·E) → linear (B, D) → LayerNorm (B, D) → linear (B, V) → cross-entropy
#
# An *embedding* is a table with one row for each token. The layer looks up rows (and multiplies them by $\sqrt E$, a custom
# of Transformers). Its backward *adds* into the rows that were read: of a token that occurs twice, both gradients add up, by
# the second rule of thumb. The text is Python's language reference.

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
# Every backward line of `step` matches one line of `forward`, in the opposite order.


# %% tags=["subject"]
def forward(p, ids):
    """Return the logits (B, V) of ids (B, C), and the caches."""
    e, e_cache = ops.embedding_forward(ids, p["embedding"])  # (B, C, E)
    h, h_cache = ops.linear_forward(e.reshape(len(ids), -1), p["W1"], p["b1"])  # (B, D)
    n, n_cache = ops.layernorm_forward(h, p["scale"], p["bias"])  # (B, D)
    logits, o_cache = ops.linear_forward(n, p["W2"], p["b2"])  # (B, V)
    return logits, (e_cache, h_cache, n_cache, o_cache)


def step(p, ids, targets, layernorm_backward=ops.layernorm_backward):
    """Return the loss and all gradients. ids (B, C), targets (B,)."""
    logits, (e_cache, h_cache, n_cache, o_cache) = forward(p, ids)
    loss, l_cache = ops.cross_entropy_forward(logits, targets)

    g = {}
    dlogits = ops.cross_entropy_backward(1.0, l_cache)  # (B, V)
    dn, g["W2"], g["b2"] = ops.linear_backward(dlogits, o_cache)  # (B, D)
    dh, g["scale"], g["bias"] = layernorm_backward(dn, n_cache)  # (B, D)
    dx, g["W1"], g["b1"] = ops.linear_backward(dh, h_cache)  # (B, C·E)
    g["embedding"] = ops.embedding_backward(dx.reshape(*ids.shape, -1), e_cache)  # (V, E)
    return loss, g


# %% [markdown]
# The checker treats the whole model as one layer, with parameters as inputs and the loss as output. Then the model trains
# by plain gradient descent, once with **your** LayerNorm (the package's, until you solve exercise 1) and once with the
# forgetful LayerNorm.
#
# **Before you look:** how different will the two training curves be?

# %% jupyter={"source_hidden": true}
# Checks the whole model's gradients, and defines the training loop.
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


def train(layernorm_backward, steps=1200, lr=0.3):
    """Train; return the parameters, the loss of every step, and the loss on held-out text, in bits."""
    rng = np.random.default_rng(1)
    p = new_parameters(rng)
    losses = []
    for i in range(steps):
        ids, targets = batch(tokens, rng.integers(0, len(tokens) - C, B))
        loss, g = step(p, ids, targets, layernorm_backward)
        losses.append(loss / np.log(2))
        for name in p:
            p[name] -= lr * (1 - i / steps) * g[name]  # the rate falls to zero
    valid = text.valid.astype(np.int64)
    at = np.arange(len(valid) - C)
    return p, np.array(losses), step(p, *batch(valid, at))[0] / np.log(2)


# %%
with yours.engine() as your_ops:
    p, losses, valid = train(your_ops.layernorm_backward)
_, forgetful, valid_forgetful = train(forgetful_backward)
assert valid < 3.6

# %% jupyter={"source_hidden": true}
# The training losses with the correct and with the forgetful LayerNorm lie on each other.
figure, ax = plt.subplots(figsize=(7, 3.2))
smooth = np.ones(40) / 40
for name, values, colour, style in (
    ("correct LayerNorm", losses, BLUE, "-"),
    ("forgetful LayerNorm", forgetful, VERMILION, "--"),
):
    ax.plot(np.convolve(values, smooth, "valid"), color=colour, linestyle=style, label=name)
ax.axhline(np.log2(V), color=GREY, linewidth=0.8, linestyle=":")
ax.text(len(losses), np.log2(V), "guessing", ha="right", va="bottom", color=GREY)
ax.set(xlabel="step", ylabel="bits per character (mean of 40 steps)")
ax.set_title("This wrong gradient trains as well as the right one")
ax.legend(frameon=False)
plt.show()
print(f"held-out text: correct {valid:.3f} bits per character, forgetful {valid_forgetful:.3f}")

# %% [markdown]
# The model learns, with no automatic differentiation anywhere. And the curve of the planted bug coincides with the correct
# curve. What the bug forgets in `dh` is the same number for all features of a row. So in $W_1$ it forgets a matrix whose
# columns are all equal, and in $b_1$ a constant: without them all features of $xW_1+b_1$ move by the same number, and LayerNorm
# ignores such a shift. Only the embeddings learn from a wrong gradient. The
# losses do not show the bug; the checker found it in milliseconds.
#
# ### Box: sampling
#
# The model writes as in the tour. Dividing the logits by the temperature $t$ gives the tour's $p^{1/t}$.

# %%
for temperature in (0.5, 1.0, 1.5):
    written = list(text.tokenizer.encode("The value of"))
    for _ in range(60):
        logits, _ = forward(p, np.array([written[-C:]]))
        chances = np.exp(ops.log_softmax(logits[0] / temperature))  # (V,)
        written.append(rng.choice(V, p=chances))
    print(f"{temperature}  {text.tokenizer.decode(np.array(written))!r}")

# %% [markdown]
# Eight characters are little context. [Chapter 03](03_attention_by_hand.ipynb) reads further back.
#
# ## Recap
#
# - A backward pass turns `dout` into the gradients of a layer's inputs, by the chain rule, one layer at a time.
# - What was summed over forward is copied backward; what was used more than once forward is summed over backward.
# - A wrong gradient can train as well as a right one, so measure every gradient: the complex step is exact to fifteen
#   digits.
#
# **Next:** [02 the Hard-Concrete gate](02_hard_concrete_gate.ipynb), a switch that has a gradient. Assignment A1
# ([assignments](assignments/README.md)) asks for the layers of this chapter.

# %% [markdown]
# ## Questions
#
# 1. `linear_backward` computes `dW` as `xᵀ dout`. What would be wrong with the mean over rows in place of the sum?
#
# <details><summary>Answer</summary>
#
# `cross_entropy` has already put the $1/R$ of its mean into `dlogits`; a second $1/R$ would make this layer's
# gradient R times too small. The checker would reject it.
#
# </details>
#
# 2. A layer computes `out = x + f(x)` (a residual connection). What is `dx`?
#
# <details><summary>Answer</summary>
#
# `dx = dout + f_backward(dout)`: `x` was used twice, so its two gradients are summed.
#
# </details>
#
# 3. Where does the complex step fail?
#
# <details><summary>Answer</summary>
#
# Where the program leaves the functions that have a complex derivative: `abs`, `max` and comparisons (unless they look
# at `.real`, as `log_softmax` does), or a conversion to float. That is why `layernorm_forward` squares with
# `centred * centred` and not with `abs`. For such programs the checker has `mode="central"`.
#
# </details>

# %% tools="a3_tools"
from tinyprune import ops
from tinyprune.course import answer, expect, expect_close, expect_gradients, expect_unmodified

# beta, gamma, zeta
PAPERS = (0.333, -0.1, 1.1)
OTHERS = (0.7, -0.3, 1.1)
# a hard gate is 1 where s̄ is at least this
EDGE = 0.5
FORM = (
    "return one gradient, dlog_alpha, with the shape of log_alpha; do not modify dout and the cache"
)


def powered(clipped):
    # the last step of the soft gate
    return clipped**2


def formula_of_gate(log_alpha, u, beta, gamma, zeta, hard=False):
    # the gate of the text, and the cache as the text describes it; the package knows it without the power
    clipped, (s, _, temperature, stretch) = ops.hard_concrete_forward(
        log_alpha, u, beta=beta, gamma=gamma, zeta=zeta, hard=False
    )
    soft = powered(clipped)
    # a hard gate in complex numbers has the soft gate's derivative
    gate = (clipped.real >= EDGE) + 1j * soft.imag if hard else soft
    gate = gate if np.iscomplexobj(log_alpha) else gate.real
    return gate, (s, s * stretch + gamma, temperature, stretch)


def formula_of_hard_gate(log_alpha, u, beta, gamma, zeta):
    return formula_of_gate(log_alpha, u, beta, gamma, zeta, hard=True)


def half_open(beta, gamma, zeta):
    # the log_alpha of a hard gate that is open half of the time
    return beta * np.log((EDGE - gamma) / (zeta - EDGE))


def price_of(size):
    # what an open head of this size costs
    return size


def formula_of_l0(log_alpha, size, *constants):
    p = ops.sigmoid(log_alpha - half_open(*constants))
    return (price_of(size) * p).sum() / price_of(size).sum(), (p, size)


def log_alpha_of(stretched, u, beta, gamma, zeta):
    # the way back: which log_alpha gives this value before the clip?
    logit = np.log((stretched - gamma) / (zeta - stretched))
    return logit if u is None else beta * logit - np.log(u / (1 - u))


def expect_gate_gradients(name, formula, stretched, u, constants, hint, rng=None):
    # gates that stand at known places before the clip, none of them on its kinks, 0 and 1
    inputs = {"log_alpha": log_alpha_of(stretched, u, *constants), "u": u}
    inputs |= dict(zip(("beta", "gamma", "zeta"), constants, strict=True))
    fixed = ("u", "beta", "gamma", "zeta")
    places = np.array2string(stretched, precision=3, floatmode="maxprec")
    hints = {"log_alpha": f"{hint}\nbefore the clip these gates stand at\n{places}", "": FORM}
    expect_gradients(name, formula, inputs, hint=hints, rng=rng, fixed=fixed)


def share_of_open(log_alpha, beta, gamma, zeta):
    # u is uniform, so P(ĝ = 1) is 1 − the noise at which the hard gate opens: halve the interval
    low, high = np.zeros(log_alpha.shape), np.ones(log_alpha.shape)
    for _ in range(60):
        u = (low + high) / 2
        is_open = formula_of_hard_gate(log_alpha, u, beta, gamma, zeta)[0] > 0
        low, high = np.where(is_open, low, u), np.where(is_open, u, high)
    return 1 - high


def layer_output(gates, gate_of, o, Wo):
    # gate the heads, lay them side by side, project
    B, T, H, Dh = o.shape
    factor = gates[gate_of]
    return (factor[:, None] * o).reshape(B, T, H * Dh) @ Wo


def without_gate(n, G):
    gates = np.ones(G)
    gates[n] = 0
    return gates


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

# %% given="a3_imports"
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


# %% solution="a3_1"
def hard_concrete_forward(log_alpha, u, beta, gamma, zeta):
    """The gates of log_alpha with the noise u, or without noise where u is None.

    log_alpha (...), u (...) or None; beta, gamma, zeta numbers. Returns gate (...) and the cache
    (s, s_bar, temperature, stretch), with s (...) and s_bar (...) as in the formula, s_bar before the
    clip; temperature beta, or 1 in evaluation; and stretch = zeta − gamma.
    """
    ### BEGIN SOLUTION
    if u is None:
        temperature = 1.0
        noise = 0.0
    else:
        temperature = beta
        noise = np.log(u) - np.log1p(-u)
    # sigmoid(z) = (1 + tanh(z / 2)) / 2
    s = (1 + np.tanh((noise + log_alpha) / temperature / 2)) / 2
    s_bar = s * (zeta - gamma) + gamma
    return np.clip(s_bar, 0, 1) ** 2, (s, s_bar, temperature, zeta - gamma)
    ### END SOLUTION


def hard_concrete_backward(dout, cache):
    """Gradient of hard_concrete_forward: dout (...) → dlog_alpha (...), and no others."""
    ### BEGIN SOLUTION
    s, s_bar, temperature, stretch = cache
    inside = (s_bar > 0) & (s_bar < 1)
    slope = 2 * np.where(inside, s_bar, 0)
    return dout * slope * stretch * s * (1 - s) / temperature
    ### END SOLUTION


# %% test="a3_1_forward" points=3
forward = answer("hard_concrete_forward")
gate, _ = forward(np.zeros(2), np.full(2, 0.5), *OTHERS)
expect_close(
    gate,
    powered(np.full(2, 0.4)),
    "with log_alpha = 0 and u = 0.5 the clipped gate must lie halfway between gamma and zeta, at 0.4",
    fed="log_alpha zeros (2,), u = 0.5, beta 0.7, gamma −0.3, zeta 1.1",
    hint="log u − log(1 − u) is 0 here: what is s? Is it stretched, and by what? What is the last step?",
)
gate, _ = forward(np.zeros(2), None, *OTHERS)
expect_close(
    gate,
    powered(np.full(2, 0.4)),
    "in evaluation, with u = None, a log_alpha of 0 must give the same",
    fed="log_alpha zeros (2,), u None, beta 0.7, gamma −0.3, zeta 1.1",
    hint="s = sigmoid(log_alpha), and then the same stretch as with noise",
)
wanted = np.array([[0.05, 0.3, 0.5], [0.6, 0.8, 0.95]])
u = np.array([[0.3, 0.5, 0.7], [0.01, 0.9, 0.4]])
log_alpha = log_alpha_of(wanted, u, *PAPERS)
gate, _ = forward(log_alpha, u, *PAPERS)
expect_close(
    gate,
    powered(wanted),
    "log_alpha was computed from these clipped gates, so their powers must come out",
    fed={"log_alpha": log_alpha, "u": u, "beta, gamma, zeta": PAPERS, "clipped": wanted},
    hint="check the sign of the noise; beta divides the whole sum",
)
log_alpha = np.array([-4.0, -1.0, 1.0, 4.0])
gate, _ = forward(log_alpha, np.full(4, 0.5), *PAPERS)
expect(
    np.array_equal(gate, [0, 0, 1, 1]),
    "far from the middle a gate must be exactly 0 or exactly 1",
    fed={"log_alpha": log_alpha, "u": "0.5 everywhere", "beta, gamma, zeta": PAPERS},
    came=gate,
    expected="[0, 0, 1, 1], not nearly but exactly",
    hint="first stretch, then clip: in the other order 0 and 1 are hardly ever reached",
)
stretched = np.array([-0.1, 0.3, 0.6, 1.05])
gate, _ = forward(log_alpha_of(stretched, None, *OTHERS), None, *OTHERS)
expect_close(
    gate,
    powered(stretched.clip(0, 1)),
    "in evaluation there must be neither noise nor temperature",
    fed={"s̄": stretched, "u": None, "beta, gamma, zeta": OTHERS},
    hint="s = sigmoid(log_alpha): no beta; and beta, gamma and zeta are those of the call",
)

# %% test="a3_1_forward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(30)
forward = answer("hard_concrete_forward")
expect_unmodified(forward, rng.standard_normal((2, 3)), rng.uniform(0.1, 0.9, (2, 3)), *OTHERS)
for shape, constants in (
    ((7,), OTHERS),
    ((3, 5), (0.4, -0.6, 1.2)),
    ((2, 3, 4), (2.0, -0.05, 1.5)),
):
    _, gamma, zeta = constants
    # gates that are 0, 1, and all between; noise up to the ends of what training draws
    stretched = rng.uniform(gamma + 0.01, zeta - 0.01, shape)
    u = rng.uniform(1e-6, 1 - 1e-6, shape)
    u.flat[:2] = 1e-6, 1 - 1e-6
    for noise in (u, None):
        log_alpha = log_alpha_of(stretched, noise, *constants)
        fed = {"log_alpha": log_alpha, "u": noise, "beta, gamma, zeta": constants}
        expect_close(
            forward(log_alpha, noise, *constants)[0],
            powered(stretched.clip(0, 1)),
            "log_alpha was computed from these clipped gates, so their powers must come out",
            fed=fed,
            hint=(
                "evaluation: is there neither noise nor temperature?"
                if noise is None
                else "are shapes kept, and are beta, gamma and zeta those of the call?"
            ),
        )
log_alpha = np.array([-30.0, 30.0])
for noise in (np.array([1 - 1e-6, 1e-6]), None):
    expect_close(
        forward(log_alpha, noise, *PAPERS)[0],
        np.array([0.0, 1]),
        "a large log_alpha must outweigh any noise",
        fed={"log_alpha": log_alpha, "u": noise, "beta, gamma, zeta": PAPERS},
        hint="is the result a number, and clipped at both ends?",
    )
### END HIDDEN TESTS

# %% test="a3_1_backward" points=3
expect_gate_gradients(
    "hard_concrete_backward",
    formula_of_gate,
    np.array([[0.02, 0.3, 0.45], [0.6, 0.8, 0.98]]),
    np.array([[0.3, 0.5, 0.7], [0.2, 0.9, 0.4]]),
    PAPERS,
    hint="no gate is clipped here: which factor comes from which of the four steps, and is dout there?",
)
expect_gate_gradients(
    "hard_concrete_backward",
    formula_of_gate,
    np.array([-0.07, -0.02, 0.4, 1.02, 1.07]),
    np.array([0.3, 0.5, 0.7, 0.2, 0.9]),
    PAPERS,
    hint="some gates are clipped to 0 or to 1: do they change with log_alpha?",
)

# %% test="a3_1_backward_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(31)
for shape, constants in (((6,), OTHERS), ((3, 4), (0.4, -0.6, 1.2)), ((2, 3, 2), (2.0, -0.3, 1.5))):
    _, gamma, zeta = constants
    places = [gamma / 2, gamma / 9, 0.03, 0.4, 0.97, (1 + zeta) / 2]
    stretched = rng.permutation(np.resize(places, int(np.prod(shape)))).reshape(shape)
    for noise in (rng.uniform(0.05, 0.95, shape), None):
        expect_gate_gradients(
            "hard_concrete_backward",
            formula_of_gate,
            stretched,
            noise,
            constants,
            hint=(
                "this is evaluation (u is None), where s does not depend on beta"
                if noise is None
                else "gates below, inside and above the clip: are zeta − gamma and beta those of the call?"
            ),
            rng=rng,
        )
### END HIDDEN TESTS

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


# %% solution="a3_2"
def hard_gate_forward(log_alpha, u, beta, gamma, zeta):
    """Gates of 0 or 1: 1 where s_bar is at least ½.

    log_alpha (...), u (...) or None; beta, gamma, zeta numbers. Returns gate (...) and the cache
    (s, s_bar, temperature, stretch) of the soft gate: s (...) and s_bar (...), before the clip;
    temperature beta, or 1 in evaluation; and stretch = zeta − gamma.
    """
    ### BEGIN SOLUTION
    noisy, heat = (log_alpha, 1.0) if u is None else (np.log(u / (1 - u)) + log_alpha, beta)
    s = 0.5 + 0.5 * np.tanh(0.5 * noisy / heat)
    s_bar = gamma + (zeta - gamma) * s
    gate = np.where(s_bar >= 0.5, 1.0, 0.0)
    return gate, (s, s_bar, heat, zeta - gamma)
    ### END SOLUTION


def hard_gate_backward(dout, cache):
    """The soft gate's gradient: dout (...) → dlog_alpha (...)."""
    ### BEGIN SOLUTION
    s, s_bar, heat, stretch = cache
    slope = 2 * s_bar * stretch * s * (1 - s) / heat
    return dout * np.where((s_bar > 0) & (s_bar < 1), slope, 0)
    ### END SOLUTION


# %% test="a3_2_forward" points=2
forward = answer("hard_gate_forward")
stretched = np.array([[-0.05, 0.05, EDGE - 0.02], [EDGE + 0.02, 0.9, 1.05]])
u = np.array([[0.3, 0.5, 0.7], [0.2, 0.9, 0.4]])
log_alpha = log_alpha_of(stretched, u, *PAPERS)
gate, _ = forward(log_alpha, u, *PAPERS)
expect_close(
    gate,
    np.array([[0.0, 0, 0], [1, 1, 1]]),
    "a hard gate must be 1 where s̄ is at least ½, and 0 elsewhere",
    fed={"log_alpha": log_alpha, "u": u, "s̄": stretched},
    hint="0 or 1 and nothing between; compare s̄, noise included, with ½, not its power",
)
gate, _ = forward(log_alpha_of(stretched, u, *OTHERS), u, *OTHERS)
expect_close(
    gate,
    np.array([[0.0, 0, 0], [1, 1, 1]]),
    "the same must hold with other constants than the paper's",
    fed={"s̄": stretched, "u": u, "beta, gamma, zeta": OTHERS},
    hint="s is not yet stretched: with these constants s = ½ does not mean s̄ = ½",
)
log_alpha = half_open(1, *PAPERS[1:]) + np.array([-0.5, 0.5])
gate, _ = forward(log_alpha, None, *PAPERS)
expect_close(
    gate,
    np.array([0.0, 1]),
    "in evaluation a gate must be shut below the log_alpha of s̄ = ½, and open above it",
    fed={"log_alpha": log_alpha, "u": None, "beta, gamma, zeta": PAPERS},
    hint="without noise s = sigmoid(log_alpha); the threshold is the same",
)

# %% test="a3_2_forward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(32)
forward = answer("hard_gate_forward")
expect_unmodified(forward, rng.standard_normal((2, 3)), rng.uniform(0.1, 0.9, (2, 3)), *OTHERS)
for shape, constants in (
    ((8,), OTHERS),
    ((3, 5), (0.4, -0.6, 1.2)),
    ((2, 3, 4), (2.0, -0.05, 1.9)),
):
    _, gamma, zeta = constants
    stretched = rng.uniform(gamma + 0.01, zeta - 0.01, shape)
    stretched.flat[:3] = EDGE - 1e-6, EDGE + 1e-6, EDGE + 1e-3
    for noise in (rng.uniform(1e-6, 1 - 1e-6, shape), None):
        log_alpha = log_alpha_of(stretched, noise, *constants)
        expect_close(
            forward(log_alpha, noise, *constants)[0],
            (stretched > EDGE).astype(float),
            "a hard gate must be 1 where s̄ is at least ½, and 0 elsewhere",
            fed={
                "log_alpha": log_alpha,
                "u": noise,
                "beta, gamma, zeta": constants,
                "s̄": stretched,
            },
            hint=(
                "evaluation: is there neither noise nor temperature?"
                if noise is None
                else "s is not yet stretched: with these constants s = ½ does not mean s̄ = ½"
            ),
        )
# the middle between gamma and zeta
constants = (0.5, EDGE - 1, EDGE + 1)
for noise in (np.full(3, 0.5), None):
    expect_close(
        forward(np.array([-1e-3, 0.0, 1e-3]), noise, *constants)[0],
        np.array([0.0, 1, 1]),
        "with s̄ of exactly ½ a gate must be open",
        fed={"log_alpha": "[-0.001, 0, 0.001]", "u": noise, "beta, gamma, zeta": constants},
        hint="“at least ½”, not “above”; and np.round(0.5) is 0",
    )
### END HIDDEN TESTS

# %% test="a3_2_backward" points=2
expect_gate_gradients(
    "hard_gate_backward",
    formula_of_hard_gate,
    np.array([[0.02, 0.3, 0.45], [0.6, 0.8, 0.98]]),
    np.array([[0.3, 0.5, 0.7], [0.2, 0.9, 0.4]]),
    PAPERS,
    hint="expected is the derivative of the soft gate, whether the hard gate is 1 or 0",
)
expect_gate_gradients(
    "hard_gate_backward",
    formula_of_hard_gate,
    np.array([-0.07, -0.02, 0.4, 1.02, 1.07]),
    np.array([0.3, 0.5, 0.7, 0.2, 0.9]),
    PAPERS,
    hint="some soft gates are clipped to 0 or to 1: do these change with log_alpha?",
)

# %% test="a3_2_backward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(33)
for shape, constants in (((6,), OTHERS), ((3, 4), (0.4, -0.6, 1.2)), ((2, 3, 2), (2.0, -0.3, 1.5))):
    _, gamma, zeta = constants
    places = [gamma / 2, gamma / 9, 0.03, 0.4, 0.97, (1 + zeta) / 2]
    stretched = rng.permutation(np.resize(places, int(np.prod(shape)))).reshape(shape)
    for noise in (rng.uniform(0.05, 0.95, shape), None):
        expect_gate_gradients(
            "hard_gate_backward",
            formula_of_hard_gate,
            stretched,
            noise,
            constants,
            hint=(
                "this is evaluation (u is None), where s does not depend on beta"
                if noise is None
                else "soft gates below, inside and above the clip: are the constants those of the call?"
            ),
            rng=rng,
        )
### END HIDDEN TESTS

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


# %% solution="a3_3"
def p_open(log_alpha, beta, gamma, zeta):
    """Probability that a hard gate is 1.

    log_alpha (...); beta, gamma, zeta numbers. Returns p_open (...), and no cache.
    """
    ### BEGIN SOLUTION
    z = log_alpha - beta * np.log((0.5 - gamma) / (zeta - 0.5))
    # e^−|z| is at most 1
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, small) / (1 + small)
    ### END SOLUTION


def l0_forward(log_alpha, size, beta, gamma, zeta):
    """Expected share of the price of all heads.

    log_alpha (...); size (...), the parameters of each head. Returns L0, a number between
    0 and 1, and the cache (p_open, size), two arrays (...).
    """
    ### BEGIN SOLUTION
    p = p_open(log_alpha, beta, gamma, zeta)
    return (size * p).sum() / size.sum(), (p, size)
    ### END SOLUTION


def l0_backward(dout, cache):
    """Gradient of l0_forward: dout, a number → dlog_alpha (...); the sizes have no gradient."""
    ### BEGIN SOLUTION
    p, size = cache
    return dout * size / size.sum() * p * (1 - p)
    ### END SOLUTION


# %% test="a3_3_probability" points=3
rng = np.random.default_rng(34)
probability = answer("p_open")
for constants in (PAPERS, OTHERS):
    edge = np.array([half_open(*constants)])
    expect_close(
        probability(edge, *constants),
        np.array([0.5]),
        "at log_alpha = beta · log((½ − gamma) / (zeta − ½)) a gate must be open half of the time",
        fed={"log_alpha": edge, "beta, gamma, zeta": constants},
        hint="here the two terms must cancel: check the second term's sign, its factor and its fraction",
    )
log_alpha, n = np.array([-2.0, -0.5, 1.0, 2.0]), 40_000
u = rng.uniform(1e-6, 1 - 1e-6, (n, 4))
gates, _ = formula_of_hard_gate(np.broadcast_to(log_alpha, u.shape), u, *OTHERS)
share = gates.mean(axis=0)
# the share of n draws comes out as p, give or take sqrt(p (1 − p) / n), which is at most 0.5 / sqrt(n)
expect_close(
    probability(log_alpha, *OTHERS),
    share,
    "p_open must be the share of hard gates that are 1, of 40,000 that were drawn",
    fed={"log_alpha": log_alpha, "beta, gamma, zeta": OTHERS},
    hint="open means s̄ ≥ ½, not g > 0. The share is right to 0.015, six standard errors",
    relative=0,
    absolute=6 * 0.5 / np.sqrt(n),
)

# %% test="a3_3_probability_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(35)
probability = answer("p_open")
expect_unmodified(probability, rng.standard_normal((2, 3)), *OTHERS)
for shape, constants in (
    ((5,), PAPERS),
    ((3, 2), (0.4, -0.6, 1.2)),
    ((2, 3, 2), (2.0, -0.05, 1.5)),
):
    log_alpha = 2 * rng.standard_normal(shape)
    expect_close(
        probability(log_alpha, *constants),
        share_of_open(log_alpha, *constants),
        "noise above 1 − p_open must open the gate, and noise below it must not",
        fed={"log_alpha": log_alpha, "beta, gamma, zeta": constants},
        hint="the expected values were found by bisection of u. Undo stretch, sigmoid, temperature once more",
    )
log_alpha = np.array([[-1000.0, -40.0], [40.0, 1000.0]])
expect_close(
    probability(log_alpha, *PAPERS),
    np.array([[0.0, 0], [1, 1]]),
    "a very large or very small log_alpha must give 1 or 0",
    fed={"log_alpha": log_alpha, "beta, gamma, zeta": PAPERS},
    hint="exp(1000) is infinite, and ∞/∞ is nan: which sign may an exponent have?",
)
### END HIDDEN TESTS

# %% test="a3_3_forward" points=1
forward = answer("l0_forward")
for shape in ((6,), (4, 8)):
    log_alpha = np.full(shape, half_open(*OTHERS))
    size = 100 + 10.0 * np.arange(log_alpha.size).reshape(shape)
    L0, _ = forward(log_alpha, size, *OTHERS)
    expect_close(
        L0,
        0.5,
        "if all gates are open half of the time, half of the price must be paid on average",
        fed={"log_alpha": log_alpha, "size": size, "beta, gamma, zeta": OTHERS},
        hint="one number for all heads of all layers: prices times probabilities, added up, by all prices. Is p_open right?",
    )
log_alpha, size = np.array([-30.0, half_open(*OTHERS)]), np.array([100.0, 300.0])
expect_close(
    forward(log_alpha, size, *OTHERS)[0],
    price_of(size)[1] / price_of(size).sum() / 2,
    "L0 must be half of the share of the second head, which is open half of the time, if the first is shut",
    fed={"log_alpha": log_alpha, "size": size, "beta, gamma, zeta": OTHERS},
    hint="is each probability multiplied by the price of its head?",
)

# %% test="a3_3_forward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(36)
forward = answer("l0_forward")
expect_unmodified(forward, rng.standard_normal((2, 3)), np.ones((2, 3)), *OTHERS)
for shape, constants in (((1,), PAPERS), ((3, 5), OTHERS), ((2, 3, 4), (0.4, -0.6, 1.2))):
    log_alpha, size = 2 * rng.standard_normal(shape), rng.uniform(1, 9, shape)
    fed = {"log_alpha": log_alpha, "size": size, "beta, gamma, zeta": constants}
    expect_close(
        forward(log_alpha, size, *constants)[0],
        (price_of(size) * share_of_open(log_alpha, *constants)).sum() / price_of(size).sum(),
        "L0 must be the expected share of the price of all heads",
        fed=fed,
        hint="the sum of all prices times probabilities by the sum of all prices, over every axis. Is p_open right?",
        absolute=1e-7,
    )
    expect_close(
        forward(np.stack([log_alpha, log_alpha]), np.stack([size, size]), *constants)[0],
        np.asarray(forward(log_alpha, size, *constants)[0]),
        "the same heads twice must have the same share",
        fed=fed,
        hint="both sums, above and below the line, run over every axis",
    )
log_alpha = np.array([[-1000.0, 1000.0, 1000.0], [1000.0, -1000.0, -1000.0]])
size = np.array([[1.0, 2, 4], [8, 16, 32]])
expect_close(
    forward(log_alpha, size, *PAPERS)[0],
    price_of(size)[log_alpha > 0].sum() / price_of(size).sum(),
    "L0 must be the open heads' share of the price if all heads are surely open or surely shut",
    fed={"log_alpha": log_alpha, "size": size, "beta, gamma, zeta": PAPERS},
    hint="exp(1000) is infinite, and ∞/∞ is nan",
)
### END HIDDEN TESTS

# %% test="a3_3_backward" points=1
expect_gradients(
    "l0_backward",
    formula_of_l0,
    {
        "log_alpha": np.array([-2.0, -0.5, 1.0, 2.0]),
        "size": np.array([3.0, 1, 2, 5]),
        "beta": 0.333,
        "gamma": -0.1,
        "zeta": 1.1,
    },
    hint="a head's share of the price, times the derivative of the sigmoid, times the incoming gradient, a number",
    fixed=("size", "beta", "gamma", "zeta"),
)

# %% test="a3_3_backward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(37)
for shape, constants in (((1,), PAPERS), ((3, 2), OTHERS), ((2, 3, 2), (2.0, -0.05, 1.5))):
    beta, gamma, zeta = constants
    expect_gradients(
        "l0_backward",
        formula_of_l0,
        {
            "log_alpha": 2 * rng.standard_normal(shape),
            "size": rng.uniform(1, 9, shape),
            "beta": beta,
            "gamma": gamma,
            "zeta": zeta,
        },
        hint="each head has its own gradient, and all prices stand below the line, whatever the number of axes",
        rng=rng,
        fixed=("size", "beta", "gamma", "zeta"),
    )
expect_gradients(
    "l0_backward",
    formula_of_l0,
    {
        "log_alpha": np.array([-1000.0, 0.0, 1000.0]),
        "size": np.ones(3),
        "beta": 0.333,
        "gamma": -0.1,
        "zeta": 1.1,
    },
    hint="log_alpha of ±1000 must have gradient 0: ∞/∞ and 0 · ∞ are nan",
    rng=rng,
    fixed=("size", "beta", "gamma", "zeta"),
)
### END HIDDEN TESTS

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


# %% solution="a3_4"
def gate_differences(o, Wo, gate_of):
    """What each gate adds to the output of its layer.

    o (B, T, H, Dh), head outputs; Wo (H·Dh, D); gate_of (H,), integers from 0 to G − 1.
    Returns Δ (G, B, T, D).
    """
    ### BEGIN SOLUTION
    B, T, H, Dh = o.shape
    per_head = Wo.reshape(H, Dh, -1)
    each = np.stack([o[:, :, h] @ per_head[h] for h in range(H)])
    return np.stack([each[gate_of == n].sum(axis=0) for n in range(gate_of.max() + 1)])
    ### END SOLUTION


def gate_gradients(dy, o, Wo, gate_of):
    """Gradient of the loss with respect to every gate of a layer.

    dy (B, T, D), gradient with respect to y; o (B, T, H, Dh); Wo (H·Dh, D); gate_of (H,).
    Returns dgate (G,).
    """
    ### BEGIN SOLUTION
    # Σ dy · (o_h Wo_h) = Σ (dy Wo_hᵀ) · o_h
    do = (dy @ Wo.T).reshape(o.shape)
    per_head = (do * o).sum(axis=(0, 1, 3))
    return np.bincount(gate_of, weights=per_head)
    ### END SOLUTION


# %% test="a3_4_differences" points=3
rng = np.random.default_rng(38)
differences = answer("gate_differences")
o, Wo = rng.standard_normal((2, 3, 4, 2)), rng.standard_normal((8, 8))
for gate_of in (np.arange(4), np.array([0, 2, 1, 0])):
    G = gate_of.max() + 1
    with_all = layer_output(np.ones(G), gate_of, o, Wo)
    came = differences(o, Wo, gate_of)
    expect(
        np.shape(came) == (G, 2, 3, 8),
        "there must be one difference for each gate, and each must have the shape of y",
        fed=f"o (B, T, H, Dh) = (2, 3, 4, 2), Wo (H·Dh, D) = (8, 8), gate_of {gate_of}",
        came=f"shape {np.shape(came)}",
        expected=f"shape (G, B, T, D) = ({G}, 2, 3, 8)",
        hint="gates are the first axis of Δ, heads the third of o",
    )
    for n in range(G):
        expect_close(
            np.asarray(came)[n],
            with_all - layer_output(without_gate(n, G), gate_of, o, Wo),
            f"Δ[{n}] must be the output with all heads minus the output without the heads of gate {n}",
            fed=f"o {o.shape}, Wo {Wo.shape}, random, gate_of {gate_of}",
            hint="which rows of Wo belong to a head, and which heads belong to a gate?",
        )

# %% test="a3_4_differences_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(39)
differences = answer("gate_differences")
shapes = (2, 3, 4, 2), (8, 8)
expect_unmodified(differences, *map(rng.standard_normal, shapes), np.array([0, 1, 1, 0]))
for B, T, H, Dh, D, G in (
    (2, 3, 4, 5, 7, 2),
    (3, 4, 2, 3, 5, 2),
    (1, 5, 3, 1, 2, 2),
    (2, 3, 1, 4, 6, 1),
):
    o, Wo = rng.standard_normal((B, T, H, Dh)), rng.standard_normal((H * Dh, D))
    # whatever the other gates are
    gates, gate_of = rng.uniform(0, 1, G), np.arange(H) % G
    expected = [
        layer_output(np.where(np.arange(G) == n, 1, gates), gate_of, o, Wo)
        - layer_output(np.where(np.arange(G) == n, 0, gates), gate_of, o, Wo)
        for n in range(G)
    ]
    expect_close(
        differences(o, Wo, gate_of),
        np.array(expected),
        "Δ of a gate must be y with the gate at 1 minus y with the gate at 0",
        fed=f"o (B, T, H, Dh) = {o.shape}, Wo (H·Dh, D) = {Wo.shape}, random, gate_of {gate_of}",
        hint="D need not be H·Dh; is every size taken from the right axis?",
    )
### END HIDDEN TESTS

# %% test="a3_4_gradients" points=2
rng = np.random.default_rng(40)
gradients = answer("gate_gradients")
o, Wo, dy = (
    rng.standard_normal((2, 3, 4, 2)),
    rng.standard_normal((8, 8)),
    rng.standard_normal((2, 3, 8)),
)
# with loss = Σ dy · y the loss is a straight line too: its slope is a difference
for gate_of in (np.arange(4), np.array([0, 2, 1, 0])):
    G = gate_of.max() + 1
    with_all = (dy * layer_output(np.ones(G), gate_of, o, Wo)).sum()
    without = [(dy * layer_output(without_gate(n, G), gate_of, o, Wo)).sum() for n in range(G)]
    expect_close(
        gradients(dy, o, Wo, gate_of),
        with_all - np.array(without),
        "for loss = Σ dy · y a gate's gradient must be the loss with its heads minus the loss without them",
        fed=f"dy {dy.shape}, o {o.shape}, Wo {Wo.shape}, random, gate_of {gate_of}",
        hint="one number for each gate: a sum over its heads, batch, positions and features, with its sign",
    )

# %% test="a3_4_gradients_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(41)
gradients = answer("gate_gradients")
shapes = (2, 3, 8), (2, 3, 4, 2), (8, 8)
expect_unmodified(gradients, *map(rng.standard_normal, shapes), np.array([0, 1, 1, 0]))
for B, T, H, Dh, D, G in (
    (2, 3, 4, 5, 7, 2),
    (3, 4, 2, 3, 5, 2),
    (1, 5, 3, 1, 2, 2),
    (2, 3, 1, 4, 6, 1),
):
    o, Wo = rng.standard_normal((B, T, H, Dh)), rng.standard_normal((H * Dh, D))
    gate_of = np.arange(H) % G
    gates, target = rng.uniform(0, 1, G), rng.standard_normal((B, T, D))
    # a loss that is curved: Σ (y − target)³ / 3, whose gradient with respect to y is (y − target)²,
    # and its derivative with respect to each gate, measured with a complex step
    dy = (layer_output(gates, gate_of, o, Wo) - target) ** 2
    step = 1e-20
    measured = [
        ((layer_output(gates + 1j * step * row, gate_of, o, Wo) - target) ** 3).sum().imag
        / 3
        / step
        for row in np.eye(G)
    ]
    expect_close(
        gradients(dy, o, Wo, gate_of),
        np.array(measured),
        "the gradient of a gate must be the derivative of the loss, whatever the loss is",
        fed=f"dy {dy.shape}, o {o.shape}, Wo {Wo.shape}, random, gate_of {gate_of}; loss = Σ (y − target)³ / 3",
        hint="D need not be H·Dh, and B may be more than 1: what is summed, and what is not?",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Hand in
#
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a3` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

# %% tools="a4_tools"
from tinyprune import ops
from tinyprune.course import answer, expect, expect_close, expect_gradients, given
from tinyprune.model import gates

PAPER = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}
ABOVE = 0.0  # of a4_2: the probability is that of a gate above this
MOMENTUM = 0.0  # of a4_4: none


def scaling(gate):
    """c (L, 1) of gates (L, H)."""
    opened = (gate.real > 0).sum(axis=1)
    return np.array([[gates.output_scaling(gate.shape[1], int(n))] for n in opened])


def scaled_by_formula(gate):
    """As a4_3 wants it, in complex numbers too: a power of the paper's c."""
    c = scaling(gate) ** (1 / 2)
    return c * gate, c


def sampled(log_alpha, u):
    """Hard gates of the paper, and how they move with log_alpha: (L, H) each."""
    check_shapes("sample_gates", log_alpha, u)
    gate, cache = ops.hard_concrete_forward(log_alpha, u, hard=True, **PAPER)
    return gate, ops.hard_concrete_backward(np.ones_like(gate), cache)


def l0_gradient_of(log_alpha):
    """∂L0/∂log_alpha (L, H)."""
    return ops.l0_backward(1.0, ops.l0_forward(log_alpha, **PAPER)[1])


def check_shapes(name, *arrays):
    """Say so if a function of the task gets something else than arrays of one shape (L, H)."""
    shapes = [np.shape(a) for a in arrays]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        raise ValueError(f"{name} must get arrays (L, H), got {', '.join(map(str, shapes))}")


def p_above(log_alpha, beta, gamma, zeta):
    """P(g > ABOVE)."""
    return ops.sigmoid(log_alpha - beta * np.log((ABOVE - gamma) / (zeta - ABOVE)))


def falls(gradients, lr):
    """How far log_alpha falls in each step, from the gradients of the steps."""
    velocity, found = 0.0, []
    for gradient in gradients:
        velocity = MOMENTUM * velocity + gradient
        found.append(lr * velocity)
    return found


class Watch:
    """Functions for train_gates that note, step by step, what they get.

    losses: step → function of the scaled gates → (loss, gradient).
    places, noise, fed: log_alpha, u and scaled gates of each step.
    """

    def __init__(self, losses, sample=sampled, l0_gradient=l0_gradient_of, lam=lambda step: 0.0):
        self.losses, self.sample, self.slope, self.lam = losses, sample, l0_gradient, lam
        self.sampled, self.places, self.noise, self.fed = None, [], [], []

    def sample_gates(self, log_alpha, u):
        check_shapes("sample_gates", log_alpha, u)
        self.sampled = np.array(log_alpha), np.array(u)
        return self.sample(*self.sampled)

    def loss_and_gradient(self, scaled):
        check_shapes("loss_and_gradient", scaled)
        if self.sampled is None:
            raise ValueError("loss_and_gradient must get gates that were sampled")
        self.places.append(self.sampled[0])
        self.noise.append(self.sampled[1])
        self.fed.append(np.array(scaled))
        return self.losses(len(self.fed) - 1)(self.fed[-1])

    def l0_gradient(self, log_alpha):
        check_shapes("l0_gradient", log_alpha)
        return self.slope(np.array(log_alpha))

    def train(self, log_alpha, rng, steps, lr):
        """log_alpha after the answer's training."""
        came = answer("train_gates").in_place(
            log_alpha,
            rng,
            steps,
            lr,
            self.lam,
            self.sample_gates,
            scaling,
            self.loss_and_gradient,
            self.l0_gradient,
        )
        expect(
            np.shape(came) == np.shape(log_alpha),
            "train_gates must return log_alpha, of the shape that was given",
            fed={"log_alpha": f"shape {np.shape(log_alpha)}", "steps": steps, "lr": lr},
            came=f"{type(came).__name__}, shape {np.shape(came)}",
            expected=f"an array, shape {np.shape(log_alpha)}",
            hint="is the new log_alpha returned? c is (L, 1), everything else (L, H)",
        )
        return np.asarray(came)


def flat(scaled):
    """A loss that no gate changes."""
    return 0.0, np.zeros_like(scaled)


def straight(worth):
    """A loss that an open head lowers by what it is worth, (L, H)."""
    return lambda scaled: (-float((worth * scaled).sum()), -worth)


def penalty(lam1, lam2, h, target, heads_total):
    """What the controller adds to the loss."""
    d = (h - target) / heads_total
    return heads_total * (lam1 * d + lam2 * (np.exp(d) - 1 - d))


def slope_of_penalty(lam1, lam2, h, target, heads_total):
    """Its derivative with respect to h, measured by the complex step."""
    return penalty(lam1, lam2, h + 1e-20j, target, heads_total).imag / 1e-20


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

# %% given="a4_imports"
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


# %% solution="a4_1"
def lam_at(step, lam, warmup_steps):
    """The price of an open head in a step.

    step 0, 1, 2, …; lam the full price; warmup_steps ≥ 0, where 0 stands for the full price at once.
    Returns a number.
    """
    ### BEGIN SOLUTION
    if warmup_steps == 0:
        return lam
    return lam * min(step / warmup_steps, 1.0) ** 2
    ### END SOLUTION


# %% test="a4_1_warmup" points=2
price = answer("lam_at")
for at, expected, hint in (
    (0, 0.0, "in the first step the price is 0; steps count from 0"),
    (5, 0.1 * (5 / 10) ** 2, "half of the way: what is the power of ½ in the formula?"),
    (8, 0.1 * (8 / 10) ** 2, "8 of 10 steps: what is the power of 0.8 in the formula?"),
    (10, 0.2 / 2, "the end of the warm-up has the full price"),
    (25, 0.1, "after the warm-up the price is lam"),
):
    expect_close(
        price(at, 0.1, 10),
        expected,
        f"the price of step {at} of a warm-up over 10 steps is not right",
        fed={"step": at, "lam": 0.1, "warmup_steps": 10},
        hint=hint,
    )
expect_close(
    price(0, 0.1, 0),
    0.1,
    "without a warm-up, the price must be lam from the first step on",
    fed={"step": 0, "lam": 0.1, "warmup_steps": 0},
    hint="what does your formula do if warmup_steps is 0?",
)

# %% test="a4_1_warmup_hidden" points=1
### BEGIN HIDDEN TESTS
price = answer("lam_at")
for warmup in (1, 7, 30):
    prices = [price(at, 0.02, warmup) for at in range(2 * warmup + 3)]
    fed = {
        "step": f"0 … {2 * warmup + 2}, one after the other",
        "lam": 0.02,
        "warmup_steps": warmup,
    }
    expect_close(
        np.array(prices[: warmup + 1]) ** (1 / 2),
        0.02 ** (1 / 2) * np.arange(warmup + 1) / warmup,
        "up to step warmup_steps, the price to the power of 1 / 2 must grow by the same in each step",
        fed=fed,
        hint="put steps into the formula one by one; no rounding",
        absolute=1e-9,
    )
    expect_close(
        prices[warmup:],
        np.full(warmup + 3, 0.02),
        "from step warmup_steps on, the price must be lam",
        fed=fed,
        hint="the price must neither rise further nor come later than that",
        absolute=1e-12,
    )
    expect_close(
        prices[0],
        0.0,
        "in step 0 the price must be 0",
        fed=fed,
        hint="steps count from 0",
        absolute=1e-12,
    )
for at in (0, 1, 50):
    expect_close(
        price(at, 0.3, 0),
        0.3,
        "without a warm-up, the price must be lam from the first step on",
        fed={"step": at, "lam": 0.3, "warmup_steps": 0},
        hint="what does your formula do if warmup_steps is 0, at step 0 and later?",
    )
### END HIDDEN TESTS

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


# %% solution="a4_2"
def starting_log_alpha(p, beta, gamma, zeta):
    """The log_alpha at which a gate is above 0 with probability p.

    p an array of any shape or a number, between 0 and 1; beta > 0, gamma < 0, zeta > 1.
    Returns log_alpha of the shape of p.
    """
    ### BEGIN SOLUTION
    logit = np.log(p) - np.log(1 - p)
    return logit + beta * np.log(-gamma / zeta)
    ### END SOLUTION


# %% test="a4_2_start" points=4
start = answer("starting_log_alpha")
wanted = np.array([0.05, 0.5, 0.9, 0.943])
log_alpha = start(wanted, 0.333, -0.1, 1.1)
fed = {"p": wanted, **PAPER}
expect_close(
    np.shape(log_alpha),
    wanted.shape,
    "log_alpha must have the shape of p",
    fed=fed,
    hint="one log_alpha for each probability; NumPy's functions work entry by entry",
)
expect_close(
    p_above(np.asarray(log_alpha, float), **PAPER),
    wanted,
    f"a gate with your log_alpha must be above {ABOVE:g} with probability p (got: this probability)",
    fed=fed,
    hint="put your log_alpha into the formula for P(g > x): what do you get, and at which term does it differ?",
)
papers = float(p_above(2.0, **PAPER))
expect_close(
    start(papers, 0.333, -0.1, 1.1),
    2.0,
    f"a gate that is above {ABOVE:g} with probability {papers:.3f} must start at 2, as in the paper",
    fed={"p": papers, **PAPER},
    hint="p may be a number as well",
)

# %% test="a4_2_start_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(20)
start = answer("starting_log_alpha")
for shape, beta, gamma, zeta in (
    ((2, 1, 3), 2 / 3, -0.1, 1.1),
    ((5,), 0.25, -0.3, 1.05),
    ((), 1.5, -0.02, 1.6),
):
    wanted = rng.uniform(0.02, 0.98, shape)
    log_alpha = np.asarray(start(wanted, beta, gamma, zeta), float)
    fed = {"p": wanted, "beta": beta, "gamma": gamma, "zeta": zeta}
    expect_close(
        log_alpha.shape,
        shape,
        "log_alpha must have the shape of p",
        fed=fed,
        hint="p may have any number of axes, or none",
    )
    # a gate grows with u, so it must pass ABOVE exactly where u passes 1 − p
    for side, above in ((1e-6, 1.0), (-1e-6, 0.0)):
        u = 1 - wanted + side
        gate, _ = ops.hard_concrete_forward(
            log_alpha, np.asarray(u), beta=beta, gamma=gamma, zeta=zeta, hard=False
        )
        expect_close(
            np.asarray(gate > ABOVE, float),
            np.full(shape, above),
            f"gates drawn with your log_alpha must be above {ABOVE:g} with probability p: got 1 for those "
            f"that are and 0 for others, with the noise u {'just above' if above else 'just below'} 1 − p",
            fed={**fed, "u": u},
            hint="are beta, gamma and zeta of the call used, each in its place?",
        )
plain = start(0.5, 0.333, -0.1, 1.1)
for p in (0.01, 0.3, 0.999):
    expect_close(
        start(p, 0.333, -0.1, 1.1) + start(1 - p, 0.333, -0.1, 1.1),
        2 * plain,
        "log_alpha of p and of 1 − p must lie as far above that of p = ½ as below it",
        fed={"p": f"{p} and {1 - p}; got: the sum of the two log_alpha", **PAPER},
        hint="the sigmoid is symmetric about its middle, and so is its inverse",
        relative=1e-6,
    )
### END HIDDEN TESTS

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


# %% solution="a4_3"
def scaled_gates_forward(gate):
    """Scale every layer's gates by c.

    gate (L, H), each from 0 to 1. Returns scaled (L, H) and the cache c (L, 1).
    """
    ### BEGIN SOLUTION
    H = gate.shape[1]
    opened = (gate > 0).sum(axis=1, keepdims=True)
    c = (H / np.maximum(opened, 1)) ** (1 / 2)
    return c * gate, c
    ### END SOLUTION


# %% solution="a4_3_way_back"
def scaled_gates_backward(dout, cache):
    """Gradient of scaled_gates_forward, c being constant: dout (L, H) → dgate (L, H)."""
    ### BEGIN SOLUTION
    c = cache
    return c * dout
    ### END SOLUTION


# %% test="a4_3_forward" points=3
forward = answer("scaled_gates_forward")
gate = np.ones((2, 3))
expect_close(
    forward(gate)[0],
    np.ones((2, 3)),
    "with all heads open, nothing must change",
    fed={"gate": gate},
    hint="c is 1 then",
)
gate = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
before = gate.copy()
scaled, _ = forward.in_place(gate)
expect_close(
    gate,
    before,
    "the gates that were given must not be modified",
    fed={"gate": before},
    hint="*= and /= change the array itself",
)
expect_close(
    np.max(scaled, 1),
    (4 / np.array([3.0, 1, 2])) ** (1 / 2),
    "open gates of 1 must become the c of their layer (got: the largest gate of each layer)",
    fed={"gate": gate},
    hint="count the open heads of each layer separately; H is the number of heads in a layer",
)
expect_close(
    np.asarray(scaled) / np.maximum(np.max(scaled, 1, keepdims=True), 1e-300),
    gate,
    "all heads of a layer must be multiplied by the same number (got: each layer divided by its largest)",
    fed={"gate": gate},
    hint="one c for each layer; a gate that is 0 stays 0",
)
gate = np.array([[0.0, 0.0, 0.0, 0.0], [0.3, 0.0, 0.9, 0.1]])
expect_close(
    forward(gate)[0],
    (4 / 3) ** (1 / 2) * gate,
    "c must count the soft gates above 0, and a layer without an open head must stay 0",
    fed={"gate": gate},
    hint="a gate of 0.1 is open: count gates, do not add them up; is anything divided by zero?",
)

# %% test="a4_3_forward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(30)
forward = answer("scaled_gates_forward")
for shape in ((3, 5), (4, 2), (1, 7), (2, 1)):
    L, H = shape
    gate = rng.uniform(0.05, 1, shape)
    gate[0, 0] = 1e-5
    expect_close(
        forward(gate.copy())[0],
        gate,
        "with all gates above 0, nothing must change, even if they are small",
        fed={"gate": gate},
        hint="c counts heads that are open, and a gate of 0.3, or of 0.00001, is open",
        absolute=1e-15,
    )
    for n in range(1, H + 1):
        some = np.where(np.arange(H) < n, gate[:, ::-1], 0.0)
        expect_close(
            np.asarray(forward(some.copy())[0])[:, :n] / some[:, :n],
            np.full((L, n), (H / n) ** (1 / 2)),
            f"with {n} of {H} heads open, each open gate must grow by the same factor (got: scaled / gate)",
            fed={"gate": some},
            hint="H is the number of heads of a layer; count gates above 0, do not add them up",
        )
gate = np.tri(5, 6) * rng.uniform(0.05, 0.95, (5, 6))
expect_close(
    np.asarray(forward(gate.copy())[0])[:, 0] / gate[:, 0],
    (6 / np.arange(1, 6)) ** (1 / 2),
    "each layer must have its own c (got: scaled / gate of the first head of each layer)",
    fed={"gate": gate},
    hint="count the open heads of each layer separately",
)
gate = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
expect_close(
    forward(gate.copy())[0],
    3 ** (1 / 2) * gate,
    "a layer without an open head must come out as zeros, and leave the others alone",
    fed={"gate": gate},
    hint="what is c there? what is divided by what?",
)
before = gate.copy()
forward.in_place(gate)
expect_close(
    gate,
    before,
    "the gates that were given must not be modified",
    fed={"gate": before},
    hint="*= and /= change the array itself",
)
### END HIDDEN TESTS

# %% test="a4_3_backward" points=2
expect_gradients(
    "scaled_gates_backward",
    scaled_by_formula,
    {"gate": np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])},
    hint={
        "gate": "scaled = c · gate with c a constant: then what is ∂scaled/∂gate, also where gate is 0?",
        "": "one gradient, of the shape of gate",
    },
)

# %% test="a4_3_backward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(31)
for shape in ((3, 5), (4, 2), (1, 7)):
    gate = rng.uniform(0.1, 1, shape) * (rng.uniform(size=shape) < 0.6)
    gate[-1, :2] = 0.3, 0.0
    expect_gradients(
        "scaled_gates_backward",
        scaled_by_formula,
        {"gate": gate},
        hint={
            "gate": "soft gates; c is a constant, the same for all heads of a layer, open or closed",
            "": "one gradient, of the shape of gate",
        },
        rng=rng,
    )
expect_gradients(
    "scaled_gates_backward",
    scaled_by_formula,
    {"gate": np.array([[0.0, 0.0, 0.0], [0.0, 0.7, 0.2]])},
    hint="a layer without an open head: its c is that of one open head, and each of its gates has a gradient",
)
### END HIDDEN TESTS

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


# %% solution="a4_4"
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
    ### BEGIN SOLUTION
    log_alpha = log_alpha.copy()
    for step in range(steps):
        u = rng.uniform(1e-6, 1 - 1e-6, log_alpha.shape)
        gate, dgate = sample_gates(log_alpha, u)
        c = output_scaling(gate)
        loss, dscaled = loss_and_gradient(c * gate)
        task = dscaled * c * dgate
        price = lam_of(step) * l0_gradient(log_alpha)
        log_alpha -= lr * (task + price)
    return log_alpha
    ### END SOLUTION


# %% test="a4_4_price" points=1
# heads that are worth nothing: only the price acts, and its gradient is made to be 1 everywhere
watch = Watch(lambda step: flat, l0_gradient=np.ones_like, lam=lambda step: 0.5)
start = np.array([[2.0, 1.0, 0.0], [-1.0, 3.0, 2.0]])
came = watch.train(start.copy(), np.random.default_rng(0), 4, 0.1)
fed = {"log_alpha": start, "steps": 4, "lr": 0.1, "lam": "0.5 in every step", "l0_gradient": "ones"}
expect_close(
    came,
    start - sum(falls([0.5] * 4, 0.1)),
    "log_alpha of worthless heads must fall as the price alone moves it, where the gradient of L0 is 1",
    fed=fed | {"loss": "0, whatever the gates"},
    hint="descent goes against the gradient; the price acts on open and closed gates",
)
expect(
    len(watch.fed) == 4,
    "the model must be run once in each step",
    fed=fed,
    came=f"{len(watch.fed)} calls of loss_and_gradient",
    expected="4 calls",
    hint="one call gives the loss and the gradient",
)

# %% test="a4_4_task" points=2
# two layers of four heads, of which some are worth much and others nothing; the price presses on all
worth = np.array([[3.0, 0.0, 0.0, 3.0], [0.0, 3.0, 0.0, 0.0]])
fed = {"worth": worth, "loss": "−Σ worth · scaled gates", "log_alpha": "2 everywhere", "lr": 2}
watch = Watch(lambda step: straight(worth), lam=lambda step: 0.0)
free = watch.train(np.full((2, 4), 2.0), np.random.default_rng(1), 40, 2.0)
expect_close(
    free[worth == 0],
    np.full(5, 2.0),
    "without a price, log_alpha of a worthless head must not change",
    fed=fed | {"steps": 40, "lam": 0},
    hint="its gradient is 0: what else moves it?",
)
expect(
    bool((free[worth > 0] > 2.05).all()),
    "without a price, log_alpha of a head that lowers the loss must rise (got: log_alpha of those heads)",
    fed=fed | {"steps": 40, "lam": 0},
    came=free[worth > 0],
    expected="all above 2",
    hint="which sign does the gradient of such a head have, and where does descent move log_alpha?",
)
watch = Watch(lambda step: straight(worth), lam=lambda step: 0.3)
priced = watch.train(np.full((2, 4), 2.0), np.random.default_rng(2), 300, 2.0)
expect(
    bool((priced[worth == 0] > -20).all()),
    "log_alpha of a closed head must settle (got: log_alpha of the worthless heads)",
    fed=fed | {"steps": 300, "lam": 0.3},
    came=priced[worth == 0],
    expected="all above −20",
    hint="the gradient of L0 fades while a gate closes; what does lam multiply?",
)
expect(
    bool((priced[worth == 0] < -1).all() and (priced[worth > 0] > 2).all()),
    "with a price, worthless heads must close, and the others must stay open",
    fed=fed | {"steps": 300, "lam": 0.3},
    came=priced,
    expected="below −1 where worth is 0, above 2 where it is 3",
    hint="two forces on each log_alpha: that of the loss, through the gate, and that of the price",
)

# %% test="a4_4_model" points=2
# a trained language model of 3 layers with 4 heads, on real text
train = answer("train_gates")
model = given.trained()
batches = model.batches(steps=100)
came = train(
    np.full((model.L, model.H), 2.0),
    np.random.default_rng(3),
    100,
    5.0,
    lambda step: 0.4 * min(step / 20, 1.0),
    sampled,
    scaling,
    batches.loss_and_gate_gradients,
    l0_gradient_of,
)
fed = "a trained model of 3 layers with 4 heads, all log_alpha at 2; 100 steps, lr 5, lam up to 0.4"
expect(
    batches.used == 100 and np.shape(came) == (3, 4),
    "all steps must be made, and log_alpha must keep its shape",
    fed=fed,
    came=f"{batches.used} steps, log_alpha of shape {np.shape(came)}",
    expected="100 steps, shape (3, 4)",
    hint="one call of loss_and_gradient in each step; is the new log_alpha returned?",
)
mask = (np.asarray(came) >= 0).astype(float)
opened = int(mask.sum())
expect(
    3 <= opened <= 11,
    "some heads must have closed, and some must still be open",
    fed=fed,
    came=f"{opened} of 12 open; log_alpha\n{np.round(came, 2)}",
    expected="from 3 to 11 open",
    hint="too many open: does the price act? too few: does the gradient of the loss act?",
)
bits = model.bits(model.gated(scaling(mask) * mask))
rng = np.random.default_rng(4)
chosen_at_random = [rng.permutation(mask.ravel()).reshape(mask.shape) for _ in range(10)]
by_chance = [model.bits(model.gated(scaling(m) * m)) for m in chosen_at_random]
expect(
    bits < np.mean(by_chance),
    "the heads that stay must be better than heads chosen at random",
    fed=fed,
    came=f"{bits:.3f} bits per character with {opened} heads open",
    expected=f"less than {np.mean(by_chance):.3f}, the mean of ten random choices of {opened} heads",
    hint="does each gate get the gradient of its own head, with the right sign?",
)

# %% test="a4_4_price_hidden" points=1
### BEGIN HIDDEN TESTS
steps, lr = 6, 0.25
prices = [0.0, 0.3, 0.1, 0.7, 0.2, 0.5, 0.9]
start = np.linspace(-2, 3, 15).reshape(3, 5)
watch = Watch(lambda step: flat, l0_gradient=lambda x: 1 + x, lam=lambda step: prices[step])
given_start = start.copy()
came = watch.train(given_start, np.random.default_rng(40), steps, lr)
fed = {
    "log_alpha": start,
    "steps": steps,
    "lr": lr,
    "lam_of(step)": f"{prices[:steps]} for steps 0 to 5",
    "loss": "0, whatever the gates",
    "l0_gradient(log_alpha)": "1 + log_alpha",
}
place, gradients = start, []
for price in prices[:steps]:
    gradients.append(price * (1 + place))
    place = start - sum(falls(gradients, lr))
expect_close(
    came,
    place,
    "each step must use its own price, and the log_alpha of this step",
    fed=fed,
    hint="steps count from 0; call l0_gradient in each step",
)
expect_close(
    given_start,
    start,
    "the log_alpha that was given must not be modified",
    fed=fed,
    hint="-= changes the array itself; work on a copy",
)
expect(
    len(watch.fed) == steps,
    "the model must be run once in each step",
    fed=fed,
    came=f"{len(watch.fed)} calls of loss_and_gradient",
    expected=f"{steps} calls",
    hint="one call gives the loss and the gradient",
)
### END HIDDEN TESTS

# %% test="a4_4_noise" points=1
for seed, shape in ((41, (2, 3)), (42, (3, 1))):
    watch = Watch(lambda step: flat)
    watch.train(np.zeros(shape), np.random.default_rng(seed), 5, 1.0)
    rng = np.random.default_rng(seed)
    drawn = np.array([rng.uniform(1e-6, 1 - 1e-6, shape) for _ in range(5)])
    fed = {"log_alpha": f"zeros {shape}", "rng": f"np.random.default_rng({seed})", "steps": 5}
    # a model that is run twice in a step is another mistake
    noise = [u for i, u in enumerate(watch.noise) if not i or (u != watch.noise[i - 1]).any()]
    expect(
        len(noise) == 5,
        "each step must draw its noise anew",
        fed=fed,
        came=f"{len(noise)} different arrays u",
        expected="5, one in each step",
        hint="is the noise drawn inside the loop?",
    )
    expect_close(
        np.array(noise),
        drawn,
        "the noise must be what the given rng draws, between 1e-6 and 1 − 1e-6 (got: the u of all steps)",
        fed=fed,
        hint="use the rng that is given, once a step, with the limits and the shape in the task",
        relative=1e-12,
        absolute=0,
    )

# %% test="a4_4_gradient_hidden" points=3
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(43)
L, H, lr, steps, prices = 2, 5, 0.6, 4, [0.0, 0.9, 0.2, 1.3, 0.7]
start = rng.normal(0, 0.6, (L, H))
a, b = rng.uniform(0.5, 2, (steps, L, H)), rng.normal(0, 1, (steps, L, H))


def curved(k, x):
    return (a[k] * (x - b[k]) ** 2).sum()


def curved_with_gradient(k):
    k = min(k, steps - 1)
    return lambda x: (float(curved(k, x)), 2 * a[k] * (x - b[k]))


watch = Watch(curved_with_gradient, lam=lambda step: prices[step])
came = watch.train(start.copy(), np.random.default_rng(44), steps, lr)
expect(
    len(watch.fed) == steps,
    "the model must be run once in each step",
    fed={"log_alpha": start, "steps": steps},
    came=f"{len(watch.fed)} calls of loss_and_gradient",
    expected=f"{steps} calls",
    hint="one call gives the loss and the gradient",
)
places = [*watch.places, came]
expect_close(
    places[0],
    start,
    "step 0 must sample the gates of the log_alpha that was given",
    fed={"log_alpha": start},
    hint="got: the log_alpha that sample_gates had before the model was run for the first time",
)
slopes = []
for k in range(steps):
    before, after, u = places[k], places[k + 1], watch.noise[k]
    gate, _ = ops.hard_concrete_forward(before, u, hard=True, **PAPER)
    c = scaling(gate)
    fed = {"step": k, "log_alpha": before, "gate": gate, "c": c.ravel(), "lam": prices[k], "lr": lr}
    expect_close(
        watch.fed[k],
        c * gate,
        "the model must be run with the scaled gates (got: the input of loss_and_gradient)",
        fed=fed,
        hint="multiply the gates by the c of their layer before the model gets them",
    )
    # the gradient, measured with a complex step; c is held
    slope = np.zeros((L, H))
    for at in np.ndindex(L, H):
        moved = before.astype(complex)
        moved[at] += 1e-20j
        soft, _ = ops.hard_concrete_forward(moved, u, hard=True, **PAPER)
        l0, _ = ops.l0_forward(moved, **PAPER)
        slope[at] = (curved(k, c * soft) + prices[k] * l0).imag / 1e-20
    slopes.append(slope)
    expect_close(
        (before - after) / lr,
        falls(slopes, 1)[k],
        f"step {k} did not move log_alpha by what the gradient of loss(c · g) + lam · L0 asks for, which was "
        "measured (got: how far log_alpha fell, divided by lr)",
        fed=fed,
        hint="from log_alpha to the loss: which factors does the chain rule have? does the price have them? "
        "(in step 0 lam is 0 here, so that only the loss acts)",
        relative=1e-6,
    )
### END HIDDEN TESTS

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


# %% solution="a4_5"
def controller_step(lam1, lam2, h, target, heads_total, lr):
    """One step of the controller: (pressure, new lam1, new lam2), three numbers.

    lam1, lam2 the multipliers; h how many heads are open, any number; target how many should be;
    heads_total how many there are; lr the step size of the multipliers.
    """
    ### BEGIN SOLUTION
    d = (h - target) / heads_total
    pressure = lam1 + lam2 * (np.exp(d) - 1)
    return pressure, lam1 + lr * d, lam2 + lr * (np.exp(d) - 1 - d)
    ### END SOLUTION


# %% test="a4_5_pressure" points=1
step = answer("controller_step")
fed = {"lam1": 0.25, "lam2": 1.0, "h": 16.0, "target": 16, "heads_total": 32, "lr": 0.1}
expect_close(
    step(*fed.values()),
    np.array([0.25, 0.25, 1.0]),
    "at the target the pressure must be lam1, and the multipliers must not change",
    fed=fed,
    hint="d is 0; three numbers in the order pressure, lam1, lam2",
)
for h in (24.0, 4.0):
    fed["h"] = h
    slope = slope_of_penalty(0.25, 1.0, h, 16, 32)
    expect_close(
        step(*fed.values())[0],
        slope,
        "the pressure must be the derivative of the penalty with respect to h, which was measured",
        fed=fed,
        hint="the derivative with respect to h, with its sign; d depends on h, and so does what lam2 is multiplied by; "
        "lam1 and lam2 are those before the step",
    )

# %% test="a4_5_multipliers" points=1
step = answer("controller_step")
for h, way in ((24.0, 1), (4.0, -1)):
    fed = {"lam1": 0.25, "lam2": 0.5, "h": h, "target": 16, "heads_total": 32, "lr": 0.1}
    _, lam1, lam2 = step(*fed.values())
    expect(
        (lam1 - 0.25) * way > 0,
        f"with too {'many' if way > 0 else 'few'} heads open lam1 must {'grow' if way > 0 else 'fall'}",
        fed=fed,
        came=f"lam1 = {lam1:.6g}",
        expected=f"lam1 {'above' if way > 0 else 'below'} 0.25",
        hint="the multipliers ascend",
    )
    expect(
        lam2 > 0.5,
        "away from the target, on either side, lam2 must grow",
        fed=fed,
        came=f"lam2 = {lam2:.6g}",
        expected="lam2 above 0.5",
        hint="what is the derivative of the penalty with respect to lam2?",
    )

# %% test="a4_5_pressure_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(50)
step = answer("controller_step")
for heads in (12, 128):
    for lam1, lam2, share in rng.uniform((-1, 0.1, 0), (1, 2, 1), (5, 3)):
        h, target = float(share * heads), heads // 3
        slope = slope_of_penalty(lam1, lam2, h, target, heads)
        for lr in (0.0, 0.5):
            expect_close(
                step(lam1, lam2, h, target, heads, lr)[0],
                slope,
                "the pressure must be the derivative of the penalty with respect to h, which was measured",
                fed={
                    "lam1": lam1,
                    "lam2": lam2,
                    "h": h,
                    "target": target,
                    "heads_total": heads,
                    "lr": lr,
                },
                hint="with the multipliers before their step, and with its sign: it may be negative",
                relative=1e-6,
            )
### END HIDDEN TESTS

# %% test="a4_5_multipliers_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(51)
step = answer("controller_step")
for heads in (12, 128):
    for lam1, lam2, share in rng.uniform((-1, 0.1, 0), (1, 2, 1), (5, 3)):
        h, target, lr = float(share * heads), heads // 3, 0.3
        fed = {
            "lam1": lam1,
            "lam2": lam2,
            "h": h,
            "target": target,
            "heads_total": heads,
            "lr": lr,
        }
        came = step(*fed.values())
        # the penalty is linear in each multiplier, so that differences are exact
        for name, new, old, slope in (
            (
                "lam1",
                came[1],
                lam1,
                penalty(lam1 + 1, lam2, h, target, heads) - penalty(lam1, lam2, h, target, heads),
            ),
            (
                "lam2",
                came[2],
                lam2,
                penalty(lam1, lam2 + 1, h, target, heads) - penalty(lam1, lam2, h, target, heads),
            ),
        ):
            expect_close(
                new - old,
                lr * slope / heads,
                f"{name} must move by lr times the derivative of penalty / heads_total (got: how far it moved)",
                fed=fed,
                hint="the multipliers ascend; take the derivative with respect to the multiplier, not to h",
            )
### END HIDDEN TESTS

# %% test="a4_5_loop" points=1
step = answer("controller_step")
# heads close where the pressure is above what a head is worth
lam1, lam2, h, heads, target, worth = 0.0, 0.5, 32.0, 32, 12, 0.17
for _ in range(300):
    pressure, lam1, lam2 = step(lam1, lam2, h, target, heads, 0.1)
    h -= 0.5 * heads * (pressure - worth)
    if not abs(h) < 1e6:
        break
expect_close(
    np.array([h, lam1]),
    np.array([target, worth]),
    "in a loop of 300 steps the controller must bring h to the target, and lam1 to what a head is worth",
    fed={
        "h": "32, then h − 16 · (pressure − 0.17)",
        "target": target,
        "heads_total": heads,
        "lr": 0.1,
    },
    hint="each step starts with the multipliers that the last one returned, in the order lam1, lam2",
    relative=1e-6,
)

# %% [markdown]
# ## Hand in
#
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a4` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

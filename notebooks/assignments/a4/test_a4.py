"""Tests of a4: pytest a4, or one task: pytest a4 -m a4_1"""

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

import numpy as np

import pytest


@pytest.mark.a4_1
@pytest.mark.points(2)
def test_a4_1_warmup():
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


@pytest.mark.a4_2
@pytest.mark.points(4)
def test_a4_2_start():
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


@pytest.mark.a4_3
@pytest.mark.points(3)
def test_a4_3_forward():
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


@pytest.mark.a4_3
@pytest.mark.points(2)
def test_a4_3_backward():
    expect_gradients(
        "scaled_gates_backward",
        scaled_by_formula,
        {"gate": np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])},
        hint={
            "gate": "scaled = c · gate with c a constant: then what is ∂scaled/∂gate, also where gate is 0?",
            "": "one gradient, of the shape of gate",
        },
    )


@pytest.mark.a4_4
@pytest.mark.points(1)
def test_a4_4_price():
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


@pytest.mark.a4_4
@pytest.mark.points(2)
def test_a4_4_task():
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


@pytest.mark.a4_4
@pytest.mark.points(2)
def test_a4_4_model():
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


@pytest.mark.a4_4
@pytest.mark.points(1)
def test_a4_4_noise():
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


@pytest.mark.a4_5
@pytest.mark.points(1)
def test_a4_5_pressure():
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


@pytest.mark.a4_5
@pytest.mark.points(1)
def test_a4_5_multipliers():
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


@pytest.mark.a4_5
@pytest.mark.points(1)
def test_a4_5_loop():
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

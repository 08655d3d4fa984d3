"""Tests of a3: pytest a3, or one task: pytest a3 -m a3_1"""

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

import numpy as np

import pytest


@pytest.mark.a3_1
@pytest.mark.points(3)
def test_a3_1_forward():
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


@pytest.mark.a3_1
@pytest.mark.points(3)
def test_a3_1_backward():
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


@pytest.mark.a3_2
@pytest.mark.points(2)
def test_a3_2_forward():
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


@pytest.mark.a3_2
@pytest.mark.points(2)
def test_a3_2_backward():
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


@pytest.mark.a3_3
@pytest.mark.points(3)
def test_a3_3_probability():
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


@pytest.mark.a3_3
@pytest.mark.points(1)
def test_a3_3_forward():
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


@pytest.mark.a3_3
@pytest.mark.points(1)
def test_a3_3_backward():
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


@pytest.mark.a3_4
@pytest.mark.points(3)
def test_a3_4_differences():
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


@pytest.mark.a3_4
@pytest.mark.points(2)
def test_a3_4_gradients():
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

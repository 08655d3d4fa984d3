"""Twenty exam questions whose numbers are drawn from a seed, with answers computed by the package.

    python notebooks/assignments/exam.py --seed 7            the questions, as Markdown
    python notebooks/assignments/exam.py --seed 7 --only 2,5,11,17
    python notebooks/assignments/build.py key --seed 7       the same with answers, for a lecturer

A student needs paper and a calculator. Another seed asks for the same steps with other numbers, so
that each room, or each student, can have its own sheet. Each function below is one question: it
returns the text and the answers, name → value.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from tinyprune import ops
from tinyprune.config import ModelConfig
from tinyprune.experiments.intervals import holm, mean_of_samples, scipy_stats
from tinyprune.model.counting import count_parameters, head_part
from tinyprune.model.gates import output_scaling
from tinyprune.ops.adamw import AdamConstants, adam_direction
from tinyprune.ops.attention import visible_keys
from tinyprune.training.evaluation import Evaluation
from tinyprune.training.schedules import linear_warmup

Rng = np.random.Generator
Drawn = tuple[str, dict[str, Any]]
PAPER = {"beta": 0.333, "gamma": -0.1, "zeta": 1.1}
GATE = "beta = 0.333, gamma = −0.1, zeta = 1.1"


class Question(NamedTuple):
    """A question of one sheet."""

    number: int  # 1 to 20
    chapter: str  # after which it can be asked
    text: str  # Markdown
    answers: Mapping[str, Any]


def shown(value: Any) -> str:
    """Return a number with four digits, or an array as nested lists of such numbers."""
    if isinstance(value, str):
        return value
    if np.ndim(value):
        return "(" + ", ".join(shown(x) for x in value) + ")"
    return f"{value + 0.0:.4g}".replace("-", "−")


def integers(rng: Rng, *shape: int, most: int = 4) -> np.ndarray:
    """Draw integers from −most to most, none of them 0, as floating-point numbers."""
    return rng.choice([-1.0, 1.0], shape) * rng.integers(1, most + 1, shape)


def linear(rng: Rng) -> Drawn:
    """Chapter 01: the gradients of a linear layer."""
    x, W, dout = integers(rng, 2, 2), integers(rng, 2, 2), integers(rng, 2, 2)
    dx, dW, db = ops.linear_backward(dout, ops.linear_forward(x, W, np.zeros(2))[1])
    text = (
        f"out = x W + b, with x = {shown(x)} and W = {shown(W)}, given row by row. The gradient "
        f"of the loss with respect to out is {shown(dout)}. Compute dx, dW and db."
    )
    return text, {"dx": dx, "dW": dW, "db": db}


def cross_entropy(rng: Rng) -> Drawn:
    """Chapter 01: loss and gradient of one prediction."""
    sizes = rng.choice(np.arange(1, 10), 3, replace=False)
    target = int(rng.integers(3))
    loss, cache = ops.cross_entropy_forward(np.log(sizes)[None], np.array([target]))
    names = ", ".join(f"ln {n}" for n in sizes)
    text = (
        f"A model gives three letters the logits ({names}). The next letter is number "
        f"{target + 1} of them. Compute the loss in nats, and its gradient with respect to the "
        "logits."
    )
    return text, {"loss": loss, "gradient": ops.cross_entropy_backward(1.0, cache)[0]}


def layernorm(rng: Rng) -> Drawn:
    """Chapter 01: a norm forwards and backwards."""
    mean, half = int(rng.integers(-5, 6)), int(rng.integers(1, 5))
    x = mean + half * rng.permutation([-1.0, -1, 1, 1])
    dout = np.zeros(4)
    dout[rng.integers(4)] = size = int(rng.integers(2, 7))
    one, zero = np.ones(4), np.zeros(4)
    n, cache = ops.layernorm_forward(x[None], one, zero, 1e-300)
    dx, _, _ = ops.layernorm_backward(dout[None], cache)
    place = int(dout.argmax()) + 1
    text = (
        f"LayerNorm, with scale 1, bias 0 and eps 0, of x = {shown(x)}. The gradient of the loss "
        f"with respect to entry {place} of the output is {size}, and 0 for the others. Compute "
        "the output, dx, and the sum of dx. Why must this sum be what it is?"
    )
    return text, {
        "output": n[0],
        "dx": dx[0],
        "sum of dx": "0: adding a number to x changes nothing",
    }


def probabilities(rng: Rng) -> Drawn:
    """Chapter 02: how likely a gate is shut, between, open."""
    log_alpha = float(integers(rng, 1, most=30)[0] / 10)
    above = float(ops.p_open(np.array(log_alpha), **PAPER))
    below_one = float(ops.p_open(np.array(-log_alpha), **PAPER))  # since gamma + zeta = 1
    text = (
        f"A Hard-Concrete gate has log_alpha = {shown(log_alpha)}, {GATE}. With which probability "
        "is it exactly 0, exactly 1, and strictly between?"
    )
    return text, {
        "P(g = 0)": 1 - above,
        "P(g = 1)": 1 - below_one,
        "between": above + below_one - 1,
    }


def gate(rng: Rng) -> Drawn:
    """Chapter 02: one draw of a gate, and its gradient."""
    log_alpha = float(integers(rng, 1, most=8)[0] / 10)
    u = float(rng.integers(25, 76) / 100)
    alpha, noise = np.array([log_alpha]), np.array([u])
    soft, cache = ops.hard_concrete_forward(alpha, noise, **PAPER, hard=False)
    hard, _ = ops.hard_concrete_forward(alpha, noise, **PAPER, hard=True)
    text = (
        f"The noise of a gate with log_alpha = {shown(log_alpha)}, {GATE} is u = {u}. Compute the "
        "soft gate g, the hard gate, and ∂g/∂log_alpha."
    )
    slope = ops.hard_concrete_backward(np.ones(1), cache)
    return text, {"g": soft[0], "hard gate": hard[0], "∂g/∂log_alpha": slope[0]}


def l0(rng: Rng) -> Drawn:
    """Chapter 05: the L0 loss of a layer."""
    log_alpha = rng.choice([-2.0, -1, 0, 1, 2, 3], 3, replace=False)
    lam = float(rng.choice([0.01, 0.02, 0.05]))
    value, cache = ops.l0_forward(log_alpha, **PAPER)
    text = (
        f"Three gates have log_alpha = {shown(log_alpha)}, {GATE}. The loss has the term lam · "
        f"L0, lam = {lam}. Compute L0, and the gradient of lam · L0 with respect to each "
        "log_alpha."
    )
    return text, {"L0": value, "gradient": ops.l0_backward(lam, cache)}


def attention(rng: Rng) -> Drawn:
    """Chapter 03: one query that reads three keys."""
    sizes, v = rng.choice(np.arange(1, 10), 3, replace=False), integers(rng, 3, most=9)
    by_time = (1, 3, 1, 1)
    q, k = np.ones(by_time), np.log(sizes).reshape(by_time)
    out, _ = ops.attention_forward(q, k, v.reshape(by_time))
    names = ", ".join(f"ln {n}" for n in sizes)
    text = (
        f"A head of width 1 reads three letters: all queries are 1, the keys are ({names}), the "
        f"values {shown(v)}. Attention is causal. What does the head return at each of the three "
        "places?"
    )
    return text, {"output": out[0, :, 0, 0]}


def softmax_backward(rng: Rng) -> Drawn:
    """Chapter 03: from the gradient of the weights to that of the scores."""
    parts = rng.choice(np.arange(1, 8), 3, replace=False)
    v, dout = integers(rng, 3, most=5), float(integers(rng, 1)[0])
    by_time = (1, 3, 1, 1)
    k = np.log(parts).reshape(by_time)
    _, cache = ops.attention_forward(np.ones((1, 1, 1, 1)), k, v.reshape(by_time))
    _, dk, dv, *_ = ops.attention_backward(np.full((1, 1, 1, 1), dout), cache)
    weights = ", ".join(f"{n}/{parts.sum()}" for n in parts)
    text = (
        f"A query has the weights ({weights}) on three keys, whose values are {shown(v)}; the "
        f"head has width 1. The gradient with respect to its output is {shown(dout)}. Compute the "
        "gradient with respect to the three values, and to the three scores before the softmax. "
        "What do the latter add up to?"
    )
    return text, {"values": dv[0, :, 0, 0], "scores": dk[0, :, 0, 0], "sum of the latter": "0"}


def owned(rng: Rng) -> Drawn:
    """Chapter 03: what a head owns."""
    H, Dh, N, L = (int(rng.choice(x)) for x in ([4, 6, 8], [8, 16, 32], [8, 16, 32], [2, 4, 6]))
    config = ModelConfig(V=60, L=L, D=H * Dh, H=H, N=N, T=16, M=16, persistent="stream")
    text = (
        f"Each of the {L} layers of the course's model has {H} heads of width {Dh} (so D = "
        f"{H * Dh}), and each head a network of N = {N} units. How many parameters does a head "
        f"own, and which share of the model's {count_parameters(config):,} parameters goes with "
        "half of all heads?"
    )
    own = head_part(config).parameters
    return text, {"one head": f"{own}", "share": own * H * L / 2 / count_parameters(config)}


def sight(rng: Rng) -> Drawn:
    """Chapter 04: how much of a text a layer sees."""
    T, M = int(rng.integers(4, 9)), int(rng.integers(3, 9))
    span = int(rng.integers(2, M))
    causal, limited = visible_keys(T, T + M, None), visible_keys(T, T + M, span)
    text = (
        f"A segment has T = {T} letters, the memory M = {M}. How many of the {T * (T + M)} scores "
        f"of a head are not masked, and how many if a query sees itself and at most {span} letters "
        "before it?"
    )
    return text, {"causal": f"{causal.sum()}", "limited": f"{limited.sum()}"}


def difference(rng: Rng) -> Drawn:
    """Chapter 05: the gradient of a gate is a difference."""
    o, Wo, dy = integers(rng, 2), integers(rng, 2, 3), integers(rng, 3)
    g = float(rng.choice([0.2, 0.4, 0.6, 0.8]))
    delta = ops.head_difference(o.reshape(1, 1, 1, 2), Wo)[0, 0, 0]
    text = (
        f"At one place a head puts out o = {shown(o)}; its rows of Wo are {shown(Wo)}. Its gate "
        f"is {g}, the output scaling 1, and ∂loss/∂y = {shown(dy)}. By what does y change if the "
        f"gate goes from {g} to 0, and what is ∂loss/∂gate?"
    )
    return text, {"change of y": -g * delta, "∂loss/∂gate": float(dy @ delta)}


def stabilisers(rng: Rng) -> Drawn:
    """Chapter 06: warm-up, initialisation, output scaling."""
    H, steps = int(rng.choice([6, 8, 12])), int(rng.choice([100, 200, 400]))
    opened, at = int(rng.integers(2, H)), int(rng.integers(1, 10)) * steps // 10
    lam, p = float(rng.choice([0.02, 0.03, 0.05])), float(rng.choice([0.8, 0.9, 0.95]))
    grid = np.linspace(-10, 10, 20_001)
    start = float(np.interp(p, ops.p_open(grid, **PAPER), grid))
    text = (
        f"lam rises linearly to {lam} over {steps} steps; what is it in step {at}, counted from "
        f"0? Which log_alpha makes a gate be above 0 with probability {p} ({GATE})? What does the "
        f"paper's output scaling multiply the heads of a layer by, of which {opened} of {H} are "
        "open?"
    )
    scaling = output_scaling(H, opened)
    return text, {
        "lam": lam * linear_warmup(at, steps),
        "log_alpha": start,
        "output scaling": scaling,
    }


def adam(rng: Rng) -> Drawn:
    """Chapter 06: two steps of Adam."""
    first, second = (float(x) for x in integers(rng, 2, most=5))
    beta1, beta2, lr = (
        float(rng.choice([0.5, 0.8, 0.9])),
        float(rng.choice([0.75, 0.9, 0.99])),
        0.01,
    )
    m, v, steps = np.zeros(1), np.zeros(1), []
    for step, grad in enumerate((first, second), 1):
        constants = AdamConstants(beta1, beta2, 1e-300, step)
        steps.append(-lr * adam_direction(np.array([grad]), m, v, constants)[0])
    text = (
        f"Adam with lr = {lr}, beta1 = {beta1}, beta2 = {beta2}, eps = 0 gets the gradients "
        f"{shown(first)} and {shown(second)} for one parameter. By how much does it move in each "
        "of the two steps?"
    )
    return text, {"moves": np.array(steps)}


def removal(rng: Rng) -> Drawn:
    """Chapter 07: what stays after a removal."""
    H, Dh, N = (int(rng.choice(x)) for x in ([4, 8], [8, 16], [4, 8]))
    left = [int(n) for n in rng.integers(0, H, 2)]
    ids = tuple(tuple(range(n)) for n in left)
    sizes = {"V": 50, "L": 2, "D": H * Dh, "H": H, "N": N, "T": 8, "M": 8, "persistent": "stream"}
    whole, smaller = (
        ModelConfig(**sizes),
        ModelConfig(**sizes, heads=tuple(left), head_ids=ids),
    )
    text = (
        f"Two layers have {H} heads of width {Dh} each (D = {H * Dh}), each head with N = {N} "
        f"units of its own; {left[0]} and {left[1]} heads stay. Give the shapes of Wq, Wo and "
        "net.pk in both layers, and the number of parameters that are gone."
    )
    shapes = [f"Wq {H * Dh, n * Dh}, Wo {n * Dh, H * Dh}, net.pk {n, N, H * Dh}" for n in left]
    gone = count_parameters(whole) - count_parameters(smaller)
    return text, {"layer 0": shapes[0], "layer 1": shapes[1], "gone": f"{gone}"}


def folding(rng: Rng) -> Drawn:
    """Chapter 07: gates go into the weights."""
    gates = rng.choice([0.25, 0.5, 0.75, 1.0], 4) * rng.permutation([0, 1, 1, 1])
    o, rows = integers(rng, 4), integers(rng, 4)
    scale = output_scaling(4, int((gates > 0).sum()))
    folded = ops.multiply_rows(rows[:, None], gates * scale)[:, 0]
    text = (
        f"Four heads of width 1 have the outputs {shown(o)}, the gates {shown(gates)}, and Wo = "
        f"{shown(rows)}, one row for each; the output scaling is the paper's. Fold gates and "
        "scaling into Wo. What does the layer add to the stream, before and after?"
    )
    return text, {"Wo": folded, "added": float(o @ folded)}


def pairs(rng: Rng) -> Drawn:
    """Chapter 08: a paired interval."""
    theirs = np.round(rng.uniform(2.0, 2.6, 5), 2)
    mine = np.round(theirs + rng.normal(-0.03, 0.03, 5), 2)
    mean, _, half = mean_of_samples(mine - theirs)
    t = scipy_stats().t.ppf(0.975, 4)
    text = (
        f"In five pairs a method needs {shown(mine)} bits per character and random heads "
        f"{shown(theirs)}. Give the mean difference, method minus random, with its 95 % interval "
        f"(t = {t:.3f}). What is shown?"
    )
    low, high = mean - half, mean + half
    said = (
        "random heads are worse"
        if high < 0
        else "random heads are better"
        if low > 0
        else "neither"
    )
    return text, {"mean": mean, "interval": np.array([low, high]), "shown": said}


def perplexity(rng: Rng) -> Drawn:
    """Chapter 09: perplexity, and bits that do not depend on tokens."""
    tokens = int(rng.integers(20, 60)) * 100
    characters = int(tokens * rng.choice([3.5, 4.0, 4.4]))
    nats = float(rng.choice([2.4, 2.7, 3.0, 3.3]))
    result = Evaluation(nats, tokens, characters)
    text = (
        f"A text of {characters:,} characters has {tokens:,} tokens, and a model needs {nats} "
        "nats per token. Compute its perplexity and its bits per character. Which of the two may "
        "be compared with that of a model with other tokens?"
    )
    bits = result.bits_per_character
    return text, {"perplexity": result.perplexity, "bits": bits, "which": "bits per character"}


def several_tests(rng: Rng) -> Drawn:
    """Chapter 10: Holm's correction."""
    p = rng.permutation(np.array([0.004, 0.012, 0.02, 0.03]) + rng.integers(0, 9, 4) / 1000)
    corrected = holm(list(p))
    listed = ", ".join(f"{x:.3f}" for x in p)
    text = (
        f"Four comparisons of one page have p = {listed}. Correct them by Holm. Which are below "
        "0.05 afterwards?"
    )
    below = [str(i + 1) for i, x in enumerate(corrected) if x < 0.05]
    return text, {"corrected": np.array(corrected), "below": ", ".join(below) or "none"}


def roofline(rng: Rng) -> Drawn:
    """Chapter 11: what limits a loop."""
    flops, bandwidth = int(rng.choice([60, 100, 180])), int(rng.choice([12, 20, 40]))
    M, D = (int(rng.choice(x)) for x in ([1, 2, 4, 4096], [512, 1024, 2048]))
    work, moved = 2 * M * D * D, 4 * (2 * M * D + D * D)
    computing, moving = work / flops / 1e3, moved / bandwidth / 1e3
    text = (
        f"A processor makes {flops} GFLOP/s and reads {bandwidth} GB/s. It multiplies a ({M}, "
        f"{D}) matrix with a ({D}, {D}) one, in float32, each number moved once. How long does "
        "the arithmetic take, how long does memory? Which of the two limits it?"
    )
    limit = "arithmetic" if computing > moving else "memory"
    return text, {"arithmetic, µs": computing, "memory, µs": moving, "limit": limit}


def online_softmax(rng: Rng) -> Drawn:
    """Chapter 11b: a softmax in one pass."""
    powers = rng.permutation(4)[:3]
    scores, v = np.log(2.0) * powers, integers(rng, 3)
    highest = np.maximum.accumulate(scores)
    sums = [float(np.exp(scores[: i + 1] - highest[i]).sum()) for i in range(3)]
    by_time = (1, 3, 1, 1)
    out, _ = ops.attention_forward(
        np.ones((1, 1, 1, 1)), scores.reshape(by_time), v.reshape(by_time)
    )
    names = ", ".join(f"{n} ln 2" for n in powers)
    text = (
        f"The online softmax reads the scores ({names}) with the values {shown(v)}. Give the "
        "highest score and the sum ℓ after each of the three, by which factor ℓ is corrected "
        "each time, and the result."
    )
    factors = [float(np.exp(a - b)) for a, b in pairwise(highest)]
    answers = {
        "highest / ln 2": highest / np.log(2),
        "ℓ": np.array(sums),
        "factors": np.array(factors),
    }
    return text, answers | {"result": float(out[0, 0, 0, 0])}


QUESTIONS: list[Callable[[Rng], Drawn]] = [
    *(
        linear,
        cross_entropy,
        layernorm,
        probabilities,
        gate,
        attention,
        softmax_backward,
        owned,
        sight,
    ),
    *(l0, difference, stabilisers, adam, removal, folding, pairs, perplexity, several_tests),
    *(roofline, online_softmax),
]


def sheet(seed: int) -> list[Question]:
    """Return the twenty questions of a seed, with their answers."""
    found = []
    for number, question in enumerate(QUESTIONS, 1):
        text, answers = question(np.random.default_rng([seed, number]))
        chapter, _, _ = (question.__doc__ or "").partition(":")
        found.append(Question(number, chapter.removeprefix("Chapter "), text, answers))
    return found


def as_markdown(questions: list[Question], seed: int, key: bool = False) -> str:
    """Return a sheet; with its answers if it is a `key`."""
    lines = [f"# {'Key of exam' if key else 'Exam'} {seed}", ""]
    for q in questions:
        lines += [f"**{q.number}.** (chapter {q.chapter}) {q.text}", ""]
        if key:
            lines += [*(f"- {name}: {shown(value)}" for name, value in q.answers.items()), ""]
    return "\n".join(lines)


def main() -> None:
    """Print the questions of a seed."""
    parser = argparse.ArgumentParser(description="Print exam questions whose numbers a seed draws.")
    parser.add_argument("--seed", type=int, required=True, help="an integer, 0 or more")
    parser.add_argument("--only", default="", help="numbers of questions, such as 2,5,11,17")
    arguments = parser.parse_args()
    if arguments.seed < 0:
        parser.error(f"--seed must be 0 or more, got {arguments.seed}")
    wanted = (
        arguments.only.split(",") if arguments.only else [str(n + 1) for n in range(len(QUESTIONS))]
    )
    known = {str(q.number): q for q in sheet(arguments.seed)}
    if unknown := [n for n in wanted if n not in known]:
        parser.error(f"--only takes numbers from 1 to {len(known)}, got {', '.join(unknown)}")
    print(as_markdown([known[n] for n in wanted], arguments.seed))


if __name__ == "__main__":
    main()

"""Tests of a5: pytest a5, or one task: pytest a5 -m a5_1"""

from functools import cache

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.course import answer, expect, expect_close, given
from tinyprune.model.parameters import parameter_shapes
from tinyprune.model.transformer import Transformer

WIDE = ("Wq", "Wk", "Wv", "Wr", "Wo")  # Dh entries for each head
OWNED = (*WIDE, "u", "w", "net.pk", "net.pb", "net.pv")  # parameters that belong to heads
C_POWER = 1  # of a5_2: c is this power of heads / open heads
MEAN_POWER = 1  # of a5_3: the mean of this power of absolute gradients, and its root
GRADIENT_POWER = 2  # of a5_4: v is the mean of this power of absolute gradients
LR_POWER = 0  # of fine_tune: lr falls with this power of the steps that are left, here not at all
AXES = "along which axis does it run over heads, and how many entries has a head there?"


def small_config(heads):
    """Layers with so many heads; D = 12 and Dh = 3, so that it takes four to fill a layer."""
    ids = tuple(tuple(range(n)) for n in heads)
    sizes = {"V": 9, "L": len(heads), "D": 12, "H": 4, "N": 5, "T": 5, "M": 4}
    return ModelConfig(**sizes, persistent="stream", heads=tuple(heads), head_ids=ids)


def small_model(heads, seed):
    """Parameters in float64, all of them random, biases too, so that each counts."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(small_config(heads))
    return {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}


def logits_of(parameters, heads, gate=None):
    """(B, T, V) of two texts of random letters, of their second halves: memory takes part."""
    rng = np.random.default_rng(0)
    model = Transformer(small_config(heads), parameters, gate)
    _, memory, _ = model.forward(rng.integers(0, 9, (2, 5)))
    h, _, _ = model.forward(rng.integers(0, 9, (2, 5)), memory)
    return h @ parameters["embedding"].T + parameters["out_bias"]


def closed_instead(parameters, kept):
    """The same parameters, but zeros in Wo and net.pv for heads that are not kept."""
    gated = dict(parameters)
    for layer, heads in enumerate(kept):
        Wo, pv = f"layers.{layer}.Wo", f"layers.{layer}.net.pv"
        opened = np.isin(np.arange(len(parameters[pv])), heads)
        gated[Wo] = parameters[Wo] * np.repeat(opened, 3)[:, None]
        gated[pv] = parameters[pv] * opened[:, None, None]
    return gated


def told(kept, heads):
    """How remove_heads is told which heads stay, in layers of so many heads."""
    return kept


def with_power(parameters, ratio):
    """The parameters with which a model of the paper's c computes as one with the power of c."""
    changed = dict(parameters)
    for layer, paper in enumerate(ratio):
        for name in (f"layers.{layer}.Wo", f"layers.{layer}.net.pv"):
            changed[name] = parameters[name] * paper ** (C_POWER - 1)
    return changed


def expect_parameters(came, shapes, fed, hint):
    """Fail unless these are arrays with these names and shapes."""
    expect(
        isinstance(came, dict) and came.keys() == shapes.keys(),
        "all parameters must be there, under their names, and no others",
        fed=fed,
        came=f"missing {sorted(shapes.keys() - came.keys())}, unknown {sorted(came.keys() - shapes.keys())}"
        if isinstance(came, dict)
        else f"a {type(came).__name__}",
        expected=f"a dict with {len(shapes)} arrays: {', '.join(list(shapes)[:3])}, …",
        hint="start from dict(parameters) and replace what changes: embedding, R, bo and others stay",
    )
    for name, shape in shapes.items():
        expect(
            np.shape(came[name]) == shape,
            f"{name} has the wrong shape",
            fed=fed,
            came=np.shape(came[name]),
            expected=shape,
            hint=hint,
        )


def expect_untouched(now, before, what, fed):
    """Fail if an answer changed the arrays that it was given."""
    for name, value in before.items():
        expect(
            np.array_equal(now[name], value),
            f"{what} must not be modified, {name} was",
            fed=fed,
            came=now[name],
            expected=value,
            hint="+=, -=, *= and x[...] = … change the caller's array; make a new one",
        )


def expect_same_model(heads, kept, hint, seed):
    """Remove heads from a small model, and compare its logits with those of the model with closed heads."""
    parameters = small_model(heads, seed)
    before = {name: value.copy() for name, value in parameters.items()}
    asked = told(kept, heads)
    fed = f"layers of {list(heads)} heads, D = 12, Dh = 3, N = 5\nkept = {asked}"
    smaller = answer("remove_heads").in_place(parameters, asked, 3)
    left = [len(h) for h in kept]
    expect_parameters(smaller, parameter_shapes(small_config(left)), fed, AXES)
    expect_untouched(parameters, before, "the parameters", fed)
    expect_close(
        logits_of(smaller, left),
        logits_of(closed_instead(parameters, kept), heads),
        "the smaller model must compute the logits of the model in which the other heads are closed",
        fed=fed,
        hint=hint,
    )


def heads_of(kept, scores, keep):
    """The lists of a choice, after a look at its form."""
    L, H = scores.shape
    fed = {"scores": scores, "keep": keep}
    form = isinstance(kept, list | tuple) and len(kept) == L
    expect(
        form,
        "a choice must have a list of heads for each layer",
        fed=fed,
        came=kept,
        expected=f"{L} lists",
        hint="one list for each row of the scores, an empty one too",
    )
    lists = [np.ravel(heads).tolist() for heads in kept]
    expect(
        all(len(set(heads)) == len(heads) and set(heads) <= set(range(H)) for heads in lists),
        "the numbers of heads must lie in 0 … H − 1 and be different within a layer",
        fed=fed,
        came=lists,
        expected=f"numbers 0 … {H - 1}: each layer counts its heads from 0",
        hint="how do you get layer and head from a place in the flattened scores?",
    )
    expect(
        sum(map(len, lists)) == keep,
        "the number of heads in all layers together must be exactly `keep`",
        fed=fed,
        came=f"{sum(map(len, lists))} heads: {lists}",
        expected=f"{keep} heads",
        hint="keep counts the heads of the whole model; what happens if scores are equal?",
    )
    return [[int(h) for h in heads] for heads in lists]


def compared(scores):
    """What choose_heads has to compare."""
    return scores


def expect_best(scores, keep):
    """Fail unless no head that goes has a higher score than one that stays, up to rounding."""
    lists = heads_of(answer("choose_heads")(scores, keep), scores, keep)
    stays = np.zeros(scores.shape, bool)
    for layer, heads in enumerate(lists):
        stays[layer, heads] = True
    worth = compared(scores)
    expect(
        stays.all() or not stays.any() or worth[stays].min() >= worth[~stays].max() - 1e-9,
        "no removed head may have a higher score than a kept one",
        fed={"scores": scores, "keep": keep},
        came=lists,
        expected="the heads with the highest scores, whatever layer they are in",
        hint="does your sorting begin with the highest score, and does it include all layers?",
    )


class Scripted:
    """loss_and_gate_gradients of a play: one gradient after the other, the last one again and again."""

    def __init__(self, gradients):
        self.gradients, self.gates = gradients, []

    def __call__(self, gate):
        self.gates.append(np.array(gate, float))
        return 2.0, self.gradients[min(len(self.gates), len(self.gradients)) - 1]


def importance_of(gradients, hint):
    """What head_importance makes of these gradients (batches, L, H)."""
    play = Scripted(gradients)
    batches, L, H = gradients.shape
    came = answer("head_importance")(play, L, H, batches)
    fed = {"∂loss/∂gate of the batches": gradients}
    expect(
        len(play.gates) == batches,
        "each batch must be read once",
        fed=fed,
        came=f"{len(play.gates)} calls",
        expected=f"{batches} calls",
        hint="every call reads the next batch: keep what it returns",
    )
    for gate in play.gates:
        expect_close(gate, np.ones((L, H)), "gates must be open, (L, H)", fed=fed, hint=hint)
    return came


def walk(start, gradients, lr, **settings):
    """Parameters before and after each step of adam_step with these gradients."""
    step, state, path = answer("adam_step", keep="cache").in_place, None, [start]
    for grads in gradients:
        before = {name: value.copy() for name, value in path[-1].items()}
        grads_before = {name: value.copy() for name, value in grads.items()}
        fed = {"parameters": before, "grads": grads_before, "lr": lr, **settings}
        result = step(path[-1], grads, state, lr, **settings)
        expect(
            isinstance(result, tuple) and len(result) == 2,
            "adam_step must return two things",
            fed=fed,
            came=result,
            expected="new parameters, and the state for the next step",
            hint="return parameters, state",
        )
        expect_parameters(
            result[0],
            {name: value.shape for name, value in start.items()},
            fed,
            "a parameter keeps its shape",
        )
        expect_untouched(path[-1], before, "the parameters", fed)
        expect_untouched(grads, grads_before, "the gradients", fed)
        path.append(result[0])
        state = result[1]
    return path


class Valley:
    """loss = ½ Σ curvature · (x − lowest)², and its gradient; keeps where it was asked."""

    def __init__(self, curvature, lowest):
        self.curvature, self.lowest, self.seen = curvature, lowest, []

    def __call__(self, parameters):
        self.seen.append({name: np.array(value) for name, value in parameters.items()})
        away = {name: parameters[name] - self.lowest[name] for name in self.lowest}
        loss = sum(float((self.curvature[name] * x**2).sum()) / 2 for name, x in away.items())
        return loss, {name: self.curvature[name] * x for name, x in away.items()}


def rates(steps, lr):
    """The learning rate of each step of fine_tune."""
    return lr * (1 - np.arange(steps) / max(steps, 1)) ** LR_POWER


def tuned(loss_and_gradients, start, steps, lr):
    """What fine_tune makes of these parameters, after a look at its form."""
    before = {name: value.copy() for name, value in start.items()}
    came = answer("fine_tune").in_place(loss_and_gradients, start, steps, lr, given.adam_step)
    fed = {"parameters": before, "steps": steps, "lr": lr}
    shapes = {name: value.shape for name, value in before.items()}
    expect_parameters(came, shapes, fed, "return the parameters after the last step")
    expect_untouched(start, before, "the parameters", fed)
    expect(
        len(loss_and_gradients.seen) == steps,
        "every step must compute gradients once",
        fed=fed,
        came=f"{len(loss_and_gradients.seen)} calls",
        expected=f"{steps} calls",
        hint="a call costs a batch of text: make none just to see the loss, and none after the last step",
    )
    return came


trained = cache(given.trained)
SEEDS = range(8)  # of the pairs: each has batches and random heads of its own
FACTOR = 2.365  # Student's, for the 95 % interval of so many pairs
RESULTS = {}  # (keep, steps): bits per character of each pair


def difference_of(mine, theirs):
    """What paired_difference compares, of each pair."""
    return mine - theirs


def pruned_bits(keep, steps):
    """Bits per character of what prune_and_fine_tune makes in each pair."""
    if (keep, steps) not in RESULTS:
        RESULTS[keep, steps] = [bits_of_one(keep, steps, seed) for seed in SEEDS]
    return RESULTS[keep, steps]


def bits_of_one(keep, steps, seed):
    """Bits per character of what prune_and_fine_tune makes, after a look at what it is."""
    model = trained()
    batches = model.batches(steps, seed)
    came = answer("prune_and_fine_tune")(
        model.parameters,
        keep,
        steps,
        model.L,
        model.H,
        model.Dh,
        batches.loss_and_gradients,
        batches.loss_and_gate_gradients,
        given.remove_heads,
        given.adam_step,
    )
    fed = f"the trained model, {model.L} layers of {model.H} heads; keep = {keep}, steps = {steps}"
    try:
        heads = sum(model.with_parameters(came).config.heads)
        bits = model.bits(came)
    except Exception as error:
        expect(
            False,
            "prune_and_fine_tune must return a model that works",
            fed=fed,
            came=f"{type(error).__name__}: {error}",
            expected="a dict of parameters, as remove_heads and adam_step return it, all finite",
            hint="return the parameters alone; does the loss decrease during training?",
        )
    expect(
        heads == keep,
        "the model must have exactly `keep` heads",
        fed=fed,
        came=f"{heads} heads",
        expected=f"{keep} heads",
        hint="keep counts the heads of all layers; closed heads are still there, removed ones are not",
    )
    return bits


def expect_fewer_bits(keep, steps, training, what, hint, shown=False):
    """Fail if the pairs show that random heads are better or, with `shown`, unless the mean difference is below 0."""
    bits, model = np.array(pruned_bits(keep, steps)), trained()
    difference = bits - np.array([model.random_heads(keep, training, seed) for seed in SEEDS])
    pairs, mean = len(SEEDS), difference.mean()
    half = FACTOR * difference.std(ddof=1) / np.sqrt(pairs)
    said = f"{mean:+.3f} ± {half:.3f} bits, of {pairs} pairs {np.round(difference, 3)}"
    expect(
        bool(mean < 0 if shown else mean - half < 0),
        f"your models must need fewer bits per character than {what}"
        if shown
        else f"your models must not be shown to be worse than {what}",
        fed=f"keep = {keep}, steps = {steps}, {pairs} pairs",
        came=f"yours minus random: {said}",
        expected="a mean difference below 0" if shown else "an interval that reaches below 0",
        hint=hint,
    )
    print(f"keep = {keep}, steps = {steps}: yours minus {what}: {said}")

import numpy as np

import pytest


@pytest.mark.a5_1
@pytest.mark.points(1)
def test_a5_1_owned():
    marked = small_model((4, 4), 0)
    for layer in range(2):
        # every parameter of a head is 10 · layer + head, which shows where it comes from
        whose = 10.0 * layer + np.arange(4)
        for name in OWNED:
            full = f"layers.{layer}.{name}"
            across = name in ("Wq", "Wk", "Wv", "Wr")
            entries = np.repeat(whose, 3) if name in WIDE else whose
            shape = (1, -1) if across else (-1, *[1] * (marked[full].ndim - 1))
            marked[full] = np.ones(marked[full].shape) * entries.reshape(shape)
    kept = [[0, 2], [1, 2, 3]]
    asked = told(kept, (4, 4))
    fed = f"2 layers of 4 heads, D = 12, Dh = 3, N = 5; kept = {asked}\nall parameters of head h of layer l are 10·l + h"
    smaller = answer("remove_heads")(marked, asked, 3)
    expect_parameters(smaller, parameter_shapes(small_config((2, 3))), fed, AXES)
    for layer, heads in enumerate(kept):
        for name in OWNED:
            found = np.unique(smaller[f"layers.{layer}.{name}"])
            expect(
                np.array_equal(found, [10 * layer + h for h in heads]),
                f"layers.{layer}.{name} must hold the parameters of the kept heads",
                fed=fed,
                came=found,
                expected=f"{[10 * layer + h for h in heads]} and no others",
                hint="head h of a layer owns entries h·Dh … (h+1)·Dh − 1 of a wide axis",
            )


@pytest.mark.a5_1
@pytest.mark.points(3)
def test_a5_1_logits():
    expect_same_model(
        (4, 4),
        [[0, 1, 2, 3], [0, 1, 2, 3]],
        "nothing is removed here: nothing may change",
        seed=1,
    )
    expect_same_model(
        (4, 4, 4),
        [[1, 3], [0], [0, 1, 2]],
        "do all parameters keep the same heads, and does the order within a head stay?",
        seed=2,
    )


@pytest.mark.a5_1
@pytest.mark.points(1)
def test_a5_1_empty():
    for kept in ([[], [1, 2]], [[0, 3], []], [[], []]):
        expect_same_model(
            (4, 4),
            kept,
            "a layer that has lost all heads adds bo and net.bo, and nothing else",
            seed=4,
        )


@pytest.mark.a5_2
@pytest.mark.points(3)
def test_a5_2_fold():
    # hard gates: head h is open where log_alpha is 0 or more, and scale = heads / open heads
    parameters, settings = small_model((4, 4, 4), 7), GateConfig()
    log_alpha = np.array([[1, -1, 1, -1], [-1, -1, -1, 1], [1, 1, 1, 1.0]])
    own = {f"layers.{i}.log_alpha": row for i, row in enumerate(log_alpha)}
    gates = Transformer(small_config((4, 4, 4)), parameters | own, settings).gates()
    gate, scale = np.array([g.values for g in gates]), np.array([g.scale for g in gates])
    fed = {"gate": gate, "scale": scale, "Dh": 3}
    before = {name: value.copy() for name, value in parameters.items()}
    folded = answer("fold").in_place(parameters, gate.copy(), scale.copy(), 3)
    expect_untouched(parameters, before, "the parameters", fed)
    expect_parameters(
        folded, parameter_shapes(small_config((4, 4, 4))), fed, "folding keeps every shape"
    )
    expect_close(
        logits_of(folded, (4, 4, 4)),
        logits_of(with_power(parameters, scale) | own, (4, 4, 4), settings),
        "the folded model must compute the logits of the model with gates",
        fed=fed,
        hint="which rows of Wo and which part of net.pv belong to head h, and what are they multiplied by?",
    )


@pytest.mark.a5_3
@pytest.mark.points(2)
def test_a5_3_importance():
    rng = np.random.default_rng(10)
    size = rng.uniform(1, 2, (2, 4))
    signs = np.array([1, -1, -1, 1])[:, None, None]
    hint = "∂loss/∂g at g = 1, every gate open; absolute values, then their mean over the batches"
    expect_close(
        importance_of(size * signs, hint),
        size,
        "gradients that change their sign from batch to batch must not cancel",
        fed={"∂loss/∂gate": "the same four times, times +1, −1, −1, +1", "the same": size},
        hint=hint,
    )
    gradients = np.array([[[1.0, -2, 0, 4]], [[3.0, 2, -2, -4]]])
    expect_close(
        importance_of(gradients, hint),
        (np.abs(gradients) ** MEAN_POWER).mean(0) ** (1 / MEAN_POWER),
        "scores must be those of the formula, of two batches",
        fed={"∂loss/∂gate": gradients},
        hint=hint,
    )


@pytest.mark.a5_3
@pytest.mark.points(2)
def test_a5_3_choose():
    rng = np.random.default_rng(12)
    expect_best(np.array([[0.9, 0.1, 0.5, 0.3], [0.2, 0.4, 0.8, 0.7]]), 3)
    expect_best(rng.random((3, 4)), 6)
    # a layer whose gradients are all larger
    expect_best(np.array([[2.0, 1, 3, 4], [8, 6, 7, 5]]), 4)


@pytest.mark.a5_4
@pytest.mark.points(2)
def test_a5_4_step():
    rng = np.random.default_rng(14)
    start = {"W": rng.standard_normal((2, 3)), "b": rng.standard_normal(3)}
    # sizes from a thousandth to a thousand
    grads = {
        name: rng.choice([-1, 1], x.shape) * 10 ** rng.uniform(-3, 3, x.shape)
        for name, x in start.items()
    }
    path = walk(start, [grads], 0.01)
    for name in start:
        expect_close(
            path[1][name] - start[name],
            -0.01 * np.sign(grads[name]),
            f"the first step must move each number of {name} by lr, against its gradient's sign",
            fed={"grads": grads, "lr": 0.01},
            hint="m̂ and √v̂ are the gradient and its size at the first step: are both divided by 1 − beta?",
            relative=1e-4,
        )
    path = walk(start, [grads] * 6, 0.01)
    for t in range(6):
        expect_close(
            path[t + 1]["W"] - path[t]["W"],
            -0.01 * np.sign(grads["W"]),
            f"if the gradient is always the same, every step must move by lr, step {t + 1} too",
            fed={"grads, six times": grads, "lr": 0.01},
            hint="does the state carry m, v and the number of steps from one call to the next?",
            relative=1e-4,
        )
    start, grads = {"x": np.array([2.0, -3.0])}, {"x": np.array([4.0, -4.0])}
    larger = {"x": 3 * grads["x"]}
    path = walk(start, [grads, larger], 0.1, beta1=0.7, beta2=0.9)
    mean = (0.7 + 3) / (1 + 0.7)
    size = ((0.9 + 3**GRADIENT_POWER) / (1 + 0.9)) ** (1 / GRADIENT_POWER)
    expect_close(
        path[2]["x"] - path[1]["x"],
        -0.1 * mean / size * np.array([1, -1]),
        "after gradients γ and 3 γ: m̂ = γ (β₁ + 3)/(1 + β₁), v̂ = γ² (β₂ + 3²)/(1 + β₂)",
        fed={"grads": [grads, larger], "lr": 0.1, "beta1": 0.7, "beta2": 0.9},
        hint="which power of the gradient does v hold, and which root is taken of v̂?",
        relative=1e-6,
    )


@pytest.mark.a5_4
@pytest.mark.points(2)
def test_a5_4_tune():
    lowest = {"W": np.array([[1.0, -2], [0, 3]]), "b": np.array([4.0])}
    curvature = {"W": np.array([[0.01, 1], [10, 100]]), "b": np.array([3.0])}
    start = {name: x + 1.025 for name, x in lowest.items()}
    came = tuned(Valley(curvature, lowest), start, 200, 0.05)
    for name in start:
        expect(
            bool(np.abs(came[name] - lowest[name]).max() < 0.02),
            "200 steps with lr = 0.05 must reach a minimum that is about 1 away, in flat and in steep directions",
            fed="loss = ½ Σ curvature · (x − lowest)², curvatures from 0.01 to 100; lr = 0.05",
            came={"away from the lowest point": came[name] - lowest[name]},
            expected="less than 0.02 away",
            hint="does every step use Adam, with the parameters and the state of the step before?",
        )
    # so far away the gradient is the same at every step
    lowest, curvature = {"W": np.array([1e6, -1e6])}, {"W": np.ones(2)}
    came = tuned(Valley(curvature, lowest), {"W": np.zeros(2)}, 4, 0.25)
    expect_close(
        came["W"],
        rates(4, 0.25).sum() * np.array([1, -1]),
        "with constant gradients, Adam must move each parameter in each step by its learning rate",
        fed={"sign of the gradient": np.array([-1, 1]), "start": np.zeros(2), "steps": 4, "lr": 0.25},
        hint="which learning rate does each step have?",
        relative=1e-4,
    )


@pytest.mark.a5_5
@pytest.mark.points(1)
def test_a5_5_report():
    for n, t in ((3, 4.303), (8, 2.365), (12, 2.201)):
        rng = np.random.default_rng(n)
        apart, shift = rng.uniform(1.7, 2.9, n), rng.uniform(-0.3, 0.1, n)
        d = difference_of(apart + shift, apart)
        expect_close(
            answer("paired_difference")(apart + shift, apart, t),
            np.array([d.mean(), t * np.sqrt(((d - d.mean()) ** 2).sum() / (n - 1) / n)]),
            "the report must be the mean of the differences, and t s / √n",
            fed={"mine": apart + shift, "theirs": apart, "t": t},
            hint="first the difference of each pair: how far the pairs are from each other does not matter",
            relative=1e-6,
        )


@pytest.mark.a5_5
@pytest.mark.points(1)
def test_a5_5_heads():
    expect_fewer_bits(
        6,
        20,
        0,
        "random heads without training",
        "does the loss decrease during training? Go against the gradient, with a small lr",
        shown=True,
    )


@pytest.mark.a5_5
@pytest.mark.points(2)
def test_a5_5_point():
    expect_fewer_bits(
        6,
        40,
        40,
        "random heads, fine-tuned as long",
        "which heads stay? Are most batches spent on training, after the removal?",
    )

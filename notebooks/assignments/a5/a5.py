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

# %%
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

# %%
def remove_heads(parameters, kept, Dh):
    """Remove all heads from a model except those that are kept.

    parameters: name → array, not modified. kept: for each layer a list of head numbers, which may be
    empty. Dh: head width. Returns the smaller model's parameters, name → array, with all names.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

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

# %%
def fold(parameters, gate, scale, Dh):
    """Multiply gates and output scaling into Wo and net.pv.

    parameters: name → array, not modified. gate: (L, H), any numbers. scale: (L,), c of each layer.
    Dh: head width. Returns parameters, name → array, with the dtypes that they had.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

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

# %%
def head_importance(loss_and_gate_gradients, L, H, batches):
    """Mean absolute gradient of every head's gate.

    loss_and_gate_gradients: gate (L, H) → loss, gradient (L, H). Call it `batches` times, with open
    gates. Returns scores (L, H).
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %%
def choose_heads(scores, keep):
    """The `keep` heads with the highest scores.

    scores (L, H), keep 0 … L·H. Returns for each layer a list of the numbers of its heads that stay.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

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

# %%
def adam_step(parameters, grads, state, lr, decay=0.0, beta1=0.9, beta2=0.999, eps=1e-8):
    """One step of Adam with decoupled weight decay.

    parameters, grads: name → array, not modified. state: None at the first step, later what the step
    before returned. Returns the new parameters, name → array, and the new state.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# Now the loop. `loss_and_gradients(parameters)` reads the next batch and returns its loss, a number, and
# gradients, name → array. Every call costs a batch of text, so call it once in each step. The learning rate
# is `lr` in every step. `adam_step` is an argument: plain Adam, called as above but without `decay`, and
# correct even if your own is not.

# %%
def fine_tune(loss_and_gradients, parameters, steps, lr, adam_step):
    """Train with Adam for `steps` steps at a constant lr.

    parameters: name → array, not modified.
    loss_and_gradients(parameters) → loss, grads
    adam_step(parameters, grads, state, lr) → new parameters, new state; the first state is None
    Returns the parameters after the last step.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

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

# %%
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
    # YOUR CODE HERE
    raise NotImplementedError()

# %%
def paired_difference(mine, theirs, t):
    """Paired difference of n pairs: (mean, half-width of its 95 % interval), two numbers.

    mine, theirs (n,): bits per character, entry i of both from pair i. The difference is mine − theirs.
    t: Student's factor for n pairs.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## Hand in
#
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a5` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

# %% [markdown]
# # A5 · Removing heads for good, fine-tuning, and beating a point of the trade-off
#
# You cut heads out of a Transformer so that not one logit changes, choose the heads that can go,
# write Adam, and put all of it together: a trained model loses **half of its heads** and has to need
# fewer bits per character than one that lost random heads. About 4 hours. Helpful before: chapters
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
# A model is its `parameters` here: a flat dict from names to arrays. In it are the embedding, the
# positions `R`, the biases of the output, and for each layer 0 … L−1
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
# ([chapter 03](https://github.com/tinyprune/tinyprune/blob/main/notebooks/03_attention_by_hand.ipynb)): `net.pk` holds the weights from the layer's activations to these units, `net.pb` their biases, and
# `net.pv` the weights from the units to what the network adds. A layer takes two steps. Each reads
# its input through a LayerNorm of its own, `ln` or `net.ln`, and adds to it:
#
# $$ y = x + b_o + \sum_h g_h\,c\;o_h\,W_o^{(h)} \qquad\quad
# z = y + \mathtt{net.bo} + \sum_h g_h\,c\;r_h\,p_v^{(h)} \qquad r_h = \max\big(n\,p_k^{(h)\top} + p_b^{(h)},\, 0\big) $$
#
# $o_h$ is what head h attended to, n is y after its LayerNorm, and $r_h$ holds the N units of head h. One
# gate $g_h$ multiplies both parts of a head. (c is the output scaling of chapter 06; before a5_2 all gates and
# all c are 1.) A layer that has lost all heads adds `bo` and `net.bo`.
#
# Parameters, gradients, gates that a function is given must not be modified. `tinyprune` itself, PyTorch
# and the like must not be imported by answers. Hidden tests use other shapes and values. No task needs
# your answer to another.

# %%
import numpy as np

# %% [markdown]
# ## a5_1 · Removing heads
#
# A head whose gate is 0 adds nothing. So everything that it owns can go, and the smaller model
# computes *the same logits*, from fewer parameters:
#
# $$ \underbrace{5\,D\,Dh}_{W_q, W_k, W_v, W_r, W_o} + \underbrace{2\,Dh}_{u, w} + \underbrace{2\,N\,D + N}_{p_k, p_v, p_b}
# \quad\text{fewer for each head} $$
#
# How many heads a layer has *now*, its matrices say: it may have lost some before. `kept[0]` are the
# heads of layer 0 that stay, in any order. Their order in the smaller model is yours to choose. What must
# it not be? And what does an index of *no* heads look like to NumPy: of what type is `np.array([])`?

# %%
def remove_heads(parameters, kept, Dh):
    """Take all heads out of a model but those that are kept.

    parameters: name → array, not modified. kept: for each layer a list of head numbers, which may be
    empty. Dh: head width. Returns the smaller model's parameters, name → array, with all names.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a5_2 · Folding
#
# Both parts of an open head are multiplied by its gate g, which need not be 1, and all heads of a layer by
# the output scaling c. Both factors can be multiplied into `Wo` and `net.pv` once, and are needed no more:
#
# $$ \sum_h (g_h\,c\;o_h)\,W_o^{(h)} = \sum_h o_h\,\big(g_h\,c\,W_o^{(h)}\big) \qquad\quad
# \sum_h (g_h\,c\;r_h)\,p_v^{(h)} = \sum_h r_h\,\big(g_h\,c\,p_v^{(h)}\big) $$
#
# $W_o^{(h)}$ are the rows of head h. A folded array has to keep its type: half of a model in float64 and
# half in float32 is slow everywhere. What is `float32 array * float64 array`?

# %%
def fold(parameters, gate, scale, Dh):
    """Multiply gates and output scaling into Wo and net.pv.

    parameters: name → array, not modified. gate: (L, H), any numbers. scale: (L,), c of each layer.
    Dh: head width. Returns parameters, name → array, of the types that they had.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a5_3 · Which heads?
#
# Michel, Levy and Neubig (2019) ask how much the loss would move if a head's gate moved:
#
# $$ I_{lh} = \frac{1}{n}\sum_{b=1}^{n} \left| \frac{\partial\,\text{loss}_b}{\partial g_{lh}} \right|
# \qquad \text{at } g = 1 \text{ for all heads} $$
#
# You are given a function: `loss_and_gate_gradients(gate)`, with `gate` (L, H), reads the next batch b of
# a text and returns its loss, a number, and ∂loss/∂gate, (L, H). Why the absolute value before the mean?
# Think of a head that helps in every other batch and hurts in the rest.
#
# Then choose: exactly `keep` heads of the whole model, those with the highest scores, whichever layers
# they are in. Michel and chapter 08 divide each layer's importances by their norm first, because gradients of
# different layers differ in size for reasons that have nothing to do with heads. Here the scores stay as they
# are, so that your function can be compared with them; in a5_5 you may divide. Where would it matter? Equal
# scores may go either way, but the number of heads must be right.

# %%
def head_importance(loss_and_gate_gradients, L, H, batches):
    """Mean absolute gradient of every head's gate.

    loss_and_gate_gradients: gate (L, H) → loss, gradient (L, H). Call it `batches` times, with open
    gates. Returns importances (L, H).
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
# [Chapter 06](https://github.com/tinyprune/tinyprune/blob/main/notebooks/06_training_with_gates.ipynb) introduces Adam.
# What is left has never been without the heads that went, and can be trained to be. Adam with decoupled
# weight decay gives each number a step of its own size. With gradient γ, at step t = 1, 2, …:
#
# $$ m \leftarrow \beta_1 m + (1-\beta_1)\,\gamma \qquad v \leftarrow \beta_2 v + (1-\beta_2)\,\gamma^2
# \qquad \hat m = \frac{m}{1-\beta_1^t} \qquad \hat v = \frac{v}{1-\beta_2^t} $$
#
# $$ \theta \leftarrow \theta - \text{lr}\left(\frac{\hat m}{\sqrt{\hat v} + \varepsilon} + \text{decay}\cdot\theta\right) $$
#
# m and v start at 0; the two divisions undo that. How long is the very first step, whatever the
# gradient? The decay is no part of the gradient: what would m and v make of it? Keep in `state` what the
# next step has to know, in any form: None comes in at the first step, and what you return comes in at
# the next.

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
# gradients, name → array. Every call costs a batch of text, so there is one for each step. `adam_step` comes as
# an argument, in the form above, without decay; it is right for sure, so that the loop does not depend
# on your own.

# %%
def fine_tune(loss_and_gradients, parameters, steps, lr, adam_step):
    """Train with Adam for so many steps, all with the same lr.

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
# character. Make of it a model with exactly `keep` heads, and let it need as few **bits per
# character** as you can, on text that it has not been trained on. You have `steps` batches of its training
# text, for everything: each call of `loss_and_gradients` or `loss_and_gate_gradients` costs one, and
# one more than `steps` is an error. Spend them wisely: how many on looking, how many on training?
#
# One run decides nothing: a single draw of random heads may happen to be a good one. So yours is compared
# with random heads in **three pairs**. In each pair both get the same batches, and the random heads are
# another draw. (The draws are the same for all students.) What counts is the mean of the three differences,
# yours minus random, in bits per character:
#
# | random heads | their bits at `keep` = 6 | the mean difference must be | points |
# | --- | --- | --- | ---: |
# | cut, no training, 20 steps for you | 4.9, 4.6 and 4.1 | below 0 | 1 |
# | cut, 40 steps of Adam at lr = 0.003, 40 steps for you | 2.43, 2.46 and 2.41 | below 0 | 2 |
# | the same with another number of heads | hidden | below 0 | 1 |
# | the same with 6 heads | | an eighth of the way to the whole model below 0 (hidden) | 1 |
#
# (The whole model, all of whose heads are open, needs about 1.9 bits.) The first call of the tests trains the
# model and computes the random heads: that takes half a minute, once.
#
# The sixth point is for your report, `paired_difference`: the mean $\bar d$ of the three differences and the
# half-width of its 95 % interval, $\bar d \pm 4.303\, s/\sqrt 3$. Here $s$ is the standard deviation of the three
# differences (their squared distances from the mean are divided by 2), and 4.303 is Student's factor for
# three pairs. If the interval contains 0, three pairs have not shown a difference. The tests print it for your
# answer (with pytest, add `-s`): report it, also if it contains 0.
#
# `remove_heads` and `adam_step` come as arguments again, in the forms of a5_1 and a5_4. Does the learning rate
# have to stay the same all the way? Which would you rather waste, batches on looking or on training?

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
    """A smaller model, as good as can be.

    parameters: of the trained model, L layers of H heads of width Dh.
    keep: how many heads are left in all. steps: how many calls of these two are allowed, together:
        loss_and_gradients(parameters) → loss, grads, of any model
        loss_and_gate_gradients(gate) → loss, ∂loss/∂gate (L, H), of the trained model
    remove_heads(parameters, kept, Dh) → smaller parameters
    adam_step(parameters, grads, state, lr) → new parameters, state
    Returns the parameters of the smaller model.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %%
def paired_difference(mine, theirs):
    """What three pairs say: (mean, half-width of its 95 % interval), two numbers.

    mine, theirs (3,): bits per character, entry n of both from pair n. The difference is mine − theirs.
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## Hand in
#
# Hand in this file, under the name that it has. If every test cell above prints `passed`, or
# `pytest a5` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

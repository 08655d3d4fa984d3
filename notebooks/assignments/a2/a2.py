# %% [markdown]
# # A2 · Attention forwards and backwards, with a bias and with persistent vectors
#
# You write the operation that everything else in this course revolves around: causal **attention** with
# a memory and a learned **bias** for each distance, its gradients, and the paper's **persistent vectors**,
# which take the place of the feed-forward block. NumPy alone. About 3½ hours. Helpful before:
# [chapter 03](https://github.com/tinyprune/tinyprune/blob/main/notebooks/03_attention_by_hand.ipynb) and
# [chapter 04](https://github.com/tinyprune/tinyprune/blob/main/notebooks/04_positions_and_memory.ipynb) (memory),
# and for a2_4 the page on the paper's own heads in
# [chapter 10](https://github.com/tinyprune/tinyprune/blob/main/notebooks/10_does_it_work.ipynb).
#
# | task | what | points |
# | --- | --- | ---: |
# | a2_1 | softmax | 6 |
# | a2_2 | attention with a bias for each distance, forwards | 6 |
# | a2_3 | the same, backwards | 9 |
# | a2_4 | persistent vectors, forwards and backwards | 9 |
#
# The letters are those of the whole course:
#
# | letter | what |
# | --- | --- |
# | B | texts in a batch |
# | T | queries: the positions of the segment that is read now |
# | M | positions of memory before it |
# | S = M + T | keys and values: memory first, then the segment |
# | H, Dh | heads, and the width of one |
# | N | persistent vectors of a head |
# | C | groups of distances that share a bias |
#
# As in A1, a layer is `out, cache = x_forward(*inputs)` and `x_backward(dout, cache)`, which returns
# one gradient for each input, in their order and of their shapes. A `cache` may hold what you like;
# a backward is marked with the cache that the task names if your forward does not work yet. Neither
# inputs, nor `dout`, nor the cache may be modified.
#
# A test cell that prints `passed` passed. Gradients are compared with measured derivatives, outputs
# with what must be true of any attention: write it as you like, with `einsum`, with `@` or with
# loops. `tinyprune` itself, PyTorch and the like must not be imported by answers. Hidden tests use
# other shapes and values.

# %%
import numpy as np

# %% [markdown]
# ## a2_1 · Softmax
#
# $$a_j = \frac{e^{s_j}}{\sum_{j'} e^{s_{j'}}} \qquad s,\ a\ (\dots, S)$$
#
# over the last axis; every row of S scores by itself. Three things the formula does not say:
#
# - a score of 1000 must not overflow. What may be added to all scores of a row without changing `a`?
# - a key that is not seen has the score $-\infty$, `-np.inf`. Its weight is 0. (In every row at least
#   one score is finite.)
# - a row may have tens of thousands of keys: neither time nor memory may grow with S².
#
# For the backward, ask first how one score moves *one* weight, $\partial a_{j'}/\partial s_j$: its own
# weight ($j' = j$), and that of another key. Then sum over all weights that it moves. There is a form
# that needs no matrix of S × S. What must a row of `ds` sum to, if adding a number to a whole row
# changes nothing?

# %%
def softmax_forward(s):
    """Weights from scores, over the last axis.

    s (..., S), with -inf for keys that are not seen. Returns a (..., S) and the cache a: the weights
    are all that the backward needs.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def softmax_backward(da, cache):
    """Gradient of softmax_forward: da (..., S) → ds (..., S), which is 0 for keys that are not seen."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a2_2 · Attention with a bias for each distance, forwards
#
# For every text of the batch and every head by itself:
#
# $$s_{ij} = \frac{q_i\cdot k_j}{\mathtt{Dh}^{1/2}} + b_{g(d)} \ \text{ if query } i \text{ sees key } j
# \text{, else } -\infty
# \qquad a_i = \operatorname{softmax}(s_i) \qquad \text{out}_i = \sum_j a_{ij}\,v_j$$
#
# The last T of the S keys belong to the queries' own positions, the M = S − T before them are
# memory. A query sees its own position and everything before it: key $j$ if $j \le i + S - T$. With
# T = 3 and S = 5:
#
# ```text
#            memory  segment
#     key     0  1   2  3  4
# query 0     ×  ×   ×
# query 1     ×  ×   ×  ×
# query 2     ×  ×   ×  ×  ×
# ```
#
# Attention does not know how far away a key is. Here each head learns a bias for that: $d = i + S - T - j$ is the
# **distance** from query $i$ back to key $j$, 0 for its own position. Distances are counted in groups of
# 2, and all far ones share the last group: $g(d) = \min(\lfloor d / 2 \rfloor,\ C - 1)$. Each head has a
# number for each group, `b` (H, C), which is added to the score. Which array of (T, S) numbers of groups
# do you need, and what does `b[:, groups]` give?
#
# Axes come as (batch, position, head, width), and weights go as (batch, head, query, key). Which
# axis is summed over in each of the two products? `reshape` does not swap axes: what does?
#
# **Given** are a softmax and its gradient, so that you can go on whatever became of a2_1. Both
# are right, but not to be imitated: one overflows, the other makes the whole matrix
# $\partial a/\partial s$. If yours passed, call yours.

# %%
def given_softmax(s):
    """s (..., S) → a (..., S), for scores that are not large; -inf for keys that are not seen."""
    e = np.exp(s)
    return e / e.sum(axis=-1, keepdims=True)


def given_softmax_backward(da, a):
    """da (..., S) and the weights a (..., S) → ds (..., S), for few keys."""
    own = np.eye(a.shape[-1]) * a[..., None]
    others = a[..., :, None] * a[..., None, :]
    return ((own - others) @ da[..., None])[..., 0]

# %%
def attention_forward(q, k, v, b):
    """Causal attention with memory and a bias for each distance.

    q (B, T, H, Dh), k and v (B, S, H, Dh), S ≥ T, b (H, C), C ≥ 1. Returns out (B, T, H, Dh) and the
    cache (q, k, v, b, a), with the weights a (B, H, T, S).
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a2_3 · Attention, backwards
#
# Go through the three lines of a2_2 from the last to the first: from `dout` to the gradients of the
# weights and of `v`; from those of the weights to those of the scores; from there to `q`, `k` and `b`.
#
# Each line uses one thing in many places: a value is read by many queries, a query meets many keys, a
# bias is added to all scores of its group, in every text. What was used in many places gets the sum of
# what comes back from all of them. Which of the four gradients needs no softmax? And what does the mask
# do on the way back: is there anything left for it to do?
#
# Each gradient has tests and points of its own. Whatever is not written yet may be `None`:
# `return None, None, dv, None`.

# %%
def attention_backward(dout, cache):
    """Gradients of attention_forward, from its cache (q, k, v, b, a).

    dout (B, T, H, Dh) → dq (B, T, H, Dh), dk (B, S, H, Dh), dv (B, S, H, Dh), db (H, C).
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a2_4 · Persistent vectors
#
# Every head gets N learned keys `pk` and values `pv`. They stand for no place in the text, every
# query of every text sees them, and they share **one softmax** with the context:
#
# $$s_{ij} = \frac{q_i\cdot k_j}{\sqrt{\mathtt{Dh}}} \ \text{ or } -\infty
# \qquad s_{in} = \frac{q_i\cdot\sqrt{\mathtt{Dh}}\,\mathtt{pk}_n}{\sqrt{\mathtt{Dh}}} = q_i\cdot\mathtt{pk}_n
# \qquad a_i = \operatorname{softmax}(s_{i1} \dots s_{iS},\ s_{i1} \dots s_{iN})$$
#
# $$\text{out}_i = \sum_j a_{ij}\,v_j + \sum_n a_{in}\,\sqrt{N}\,\mathtt{pv}_n$$
#
# with $j$ over the S keys of the context and $n$ over the N persistent ones. The factors √Dh and √N
# keep learned vectors small; mind that the one cancels and the other does not.
#
# There are two ways to write this: as it stands, or by making more keys and values of `pk` and `pv`
# and going the way of a2_2, without its bias. With the second, what has to be done to the mask, and on the way back
# with the gradients of what was copied for every text? N may be 0, and then nothing is added.
#
# The given softmax and its gradient serve here too, or yours.

# %%
def persistent_attention_forward(q, k, v, pk, pv):
    """Causal attention with memory and persistent vectors.

    q (B, T, H, Dh), k and v (B, S, H, Dh), S ≥ T, pk and pv (H, N, Dh), N ≥ 0.
    Returns out (B, T, H, Dh) and the cache (q, k, v, pk, pv, a), with the weights a (B, H, T, S + N):
    first those of the context, then those of the persistent vectors.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def persistent_attention_backward(dout, cache):
    """Gradients of persistent_attention_forward, from its cache (q, k, v, pk, pv, a).

    dout (B, T, H, Dh) → dq (B, T, H, Dh), dk and dv (B, S, H, Dh), dpk and dpv (H, N, Dh).
    """
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## Hand in
#
# Hand in this file, under the name that it has. If every test cell above prints `passed`, or
# `pytest a2` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

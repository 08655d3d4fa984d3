# %% [markdown]
# # A2 · Attention forwards and backwards, with a bias and with persistent vectors
#
# You write the central operation of this course: causal **attention** with a memory and a learned **bias**
# for each distance, its gradients, and the paper's **persistent vectors**, which replace the feed-forward
# block. Its softmax has another norm than the chapters'. NumPy alone. About 3½ hours. Read before:
# [chapter 03](https://github.com/tinyprune/tinyprune/blob/main/notebooks/03_attention_by_hand.ipynb) and
# [chapter 04](https://github.com/tinyprune/tinyprune/blob/main/notebooks/04_positions_and_memory.ipynb) (memory),
# and for a2_4 the page on
# [the paper's own heads](https://github.com/tinyprune/tinyprune/blob/main/notebooks/site/pages/the-papers-heads.md).
#
# | task | what | points |
# | --- | --- | ---: |
# | a2_1 | a softmax with another norm | 6 |
# | a2_2 | attention with a bias for each distance, forwards | 6 |
# | a2_3 | the same, backwards | 9 |
# | a2_4 | persistent vectors, forwards and backwards | 9 |
#
# The letters are the same in the whole course:
#
# | letter | what |
# | --- | --- |
# | B | texts in a batch |
# | T | queries: positions of the segment |
# | M | positions of memory before it |
# | S = M + T | keys and values: memory first, then the segment |
# | H, Dh | heads, and the width of one |
# | N | persistent vectors of a head |
# | C | groups of distances that share a bias |
#
# As in A1, a layer is `out, cache = x_forward(*inputs)` and `x_backward(dout, cache)`, which returns
# one gradient for each input, in their order and of their shapes. A `cache` may hold what you like; if
# your forward pass does not work yet, your backward pass is tested with the cache that the task
# describes. Do not modify the inputs, `dout` or the cache.
#
# A test cell prints `passed` if its tests pass. Gradients are compared with measured derivatives, outputs
# with properties that follow from the formulas: write it in any way, with `einsum`, `@` or loops.
# Answers must not import `tinyprune`, PyTorch or similar packages. Hidden tests use other shapes and values.

# %%
import numpy as np

# %% [markdown]
# ## a2_1 · A softmax with another norm
#
# The chapter's softmax divides exponentials by their sum, so that the weights of a row add up to 1. Here
# it is the squares of the weights that add up to 1:
#
# $$a_j = \frac{e^{s_j}}{\big(\sum_{j'} (e^{s_{j'}})^2\big)^{1/2}} \qquad s,\ a\ (\dots, S)$$
#
# The sum runs over the last axis; every row of S scores is independent. The formula leaves out three things:
#
# - A score of 1000 must not overflow. What may be added to all scores of a row without changing `a`?
# - A masked key has the score $-\infty$, `-np.inf`. Its weight is 0. (In every row at least one score is
#   finite.)
# - A row may have tens of thousands of keys: neither time nor memory may grow with S².
#
# For the backward pass, find first how one score changes *one* weight, $\partial a_{j'}/\partial s_j$: its own
# ($j' = j$), and that of another key. Then sum over all weights of the row. The result needs no S × S
# matrix. What must a row of `ds` add up to, if adding a number to a whole row changes nothing?

# %%
def softmax_forward(s):
    """Weights from scores, over the last axis.

    s (..., S), with -inf for masked keys. Returns a (..., S) and the cache a: the backward pass needs
    only the weights.
    """
    # YOUR CODE HERE
    raise NotImplementedError()


def softmax_backward(da, cache):
    """Gradient of softmax_forward: da (..., S) → ds (..., S), which is 0 for masked keys."""
    # YOUR CODE HERE
    raise NotImplementedError()

# %% [markdown]
# ## a2_2 · Attention with a bias for each distance, forwards
#
# For each text of the batch and each head:
#
# $$s_{ij} = \frac{q_i\cdot k_j}{\mathtt{Dh}^{1/2}} + b_{g(d)} \ \text{ if query } i \text{ sees key } j
# \text{, else } -\infty
# \qquad a_i = \operatorname{softmax}(s_i) \text{ of a2\_1} \qquad \text{out}_i = \sum_j a_{ij}\,v_j$$
#
# The last T of the S keys belong to the queries' own positions; the M = S − T before them are the
# memory. A query sees its own position and all earlier ones: key $j$ if $j \le i + S - T$. With
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
# Attention alone does not depend on how far away a key is. Here each head learns a bias for the
# **distance** $d = i + S - T - j$ from query $i$ back to key $j$, which is 0 for the query's own position.
# Distances form groups of 2, and all large ones share the last group:
# $g(d) = \min(\lfloor d / 2 \rfloor,\ C - 1)$. Each head has one number for each group, `b` (H, C), which is
# added to the score. If `groups` (T, S) holds the group of each query and key, what is `b[:, groups]`?
#
# Inputs have the axes (batch, position, head, width), weights (batch, head, query, key). Which
# axis is summed over in each of the two products? `reshape` does not swap axes: what does?
#
# A softmax and its gradient are **given**, so that you can go on without a2_1. Both are right, but do not
# imitate them: one overflows, the other makes the whole matrix $\partial a/\partial s$. If yours passed,
# call yours.

# %%
def given_softmax(s):
    """s (..., S) → a (..., S), for scores that are not large; -inf for keys that are not seen."""
    e = np.exp(s)
    return e / (e**2).sum(axis=-1, keepdims=True) ** 0.5


def given_softmax_backward(da, a):
    """da (..., S) and the weights a (..., S) → ds (..., S), for few keys."""
    own = np.eye(a.shape[-1]) * a[..., None]
    others = a[..., :, None] ** 2 * a[..., None, :]
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
# Go through the three formulas of a2_2 from the last to the first: from `dout` to the gradients of the
# weights and of `v`; from the weights to the scores; from the scores to `q`, `k` and `b`.
#
# Each formula uses its inputs several times: many queries read a value, a query is multiplied by many
# keys, a bias is added to all scores of its group, in every text. What was used several times gets the
# sum of the gradients of all its uses. Which of the four gradients needs no softmax? Does the mask need a
# line in the backward pass?
#
# `dq` and `dv` are marked together, `dk` and `db` each by itself. Return `None` for what is not written yet:
# `return dq, None, dv, None`.

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
# Every head gets N learned keys `pk` and values `pv`. They belong to no position of the text, every
# query of every text sees them, and they share **one softmax**, that of a2_1, with the context:
#
# $$s_{ij} = \frac{q_i\cdot k_j}{\sqrt{\mathtt{Dh}}} \ \text{ or } -\infty
# \qquad s_{in} = \frac{q_i\cdot\sqrt{\mathtt{Dh}}\,\mathtt{pk}_n}{\sqrt{\mathtt{Dh}}} = q_i\cdot\mathtt{pk}_n
# \qquad a_i = \operatorname{softmax}(s_{i1} \dots s_{iS},\ s_{i1} \dots s_{iN})$$
#
# $$\text{out}_i = \sum_j a_{ij}\,v_j + \sum_n a_{in}\,\sqrt{N}\,\mathtt{pv}_n$$
#
# with $j$ over the S keys of the context and $n$ over the N persistent ones. The factors √Dh and √N
# keep the learned vectors small; the first cancels, the second does not.
#
# There are two ways to write this: as it stands, or by appending `pk` and `pv` to the keys and values
# and using the formulas of a2_2 without the bias. If you append them, how must the mask change, and what
# happens in the backward pass to the gradients of the copies made for every text? N may be 0; then nothing
# is added.
#
# Use the given softmax and its gradient, or yours, here, too.

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
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a2` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

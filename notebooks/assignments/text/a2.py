# %% tools="a2_tools"
from tinyprune import ops
from tinyprune.course import answer, expect, expect_close, expect_gradients


def normed(e):
    """Positive numbers divided by one number for each row, as the weights of a2_1 are."""
    return e / (e**2).sum(-1, keepdims=True) ** 0.5


def formula_of_softmax(s):
    """What a2_1 asks for, in complex numbers too."""
    a = normed(np.exp(ops.log_softmax(s)))
    return a, a


def formula_of_attention(q, k, v, b):
    """What a2_2 asks for: the package's weights, times e to the power of the bias, normed."""
    Dh, T, S, C = q.shape[3], q.shape[1], k.shape[1], b.shape[1]
    _, cache = ops.attention_forward(q * (np.sqrt(Dh) / Dh ** (1 / 2)), k, v)
    distance = np.arange(T)[:, None] + S - T - np.arange(S)
    a = normed(cache.a * np.exp(b[:, np.clip(distance // 2, 0, C - 1)]))
    return np.einsum("bhij,bjhd->bihd", a, v), (q, k, v, b, a)


def formula_of_persistent(q, k, v, pk, pv):
    """What a2_4 asks for."""
    some = {"pk": pk, "pv": pv} if pk.shape[1] else {}
    a, S = normed(ops.attention_forward(q, k, v, **some)[1].a), k.shape[1]
    out = np.einsum("bhij,bjhd->bihd", a[..., :S], v)
    out += np.sqrt(pk.shape[1]) * np.einsum("bhin,hnd->bihd", a[..., S:], pv)
    return out, (q, k, v, pk, pv, a)


def out_of(name, **inputs):
    """The output of a forward. It is of the first input's shape, and the inputs are as they were."""
    before = {x: value.copy() for x, value in inputs.items()}
    out, _ = answer(name).in_place(*inputs.values())
    for x, value in inputs.items():
        expect(
            np.array_equal(value, before[x]),
            f"{name} must not modify its inputs",
            fed=", ".join(f"{y} {value.shape}" for y, value in inputs.items()),
            came=f"{x} holds other numbers after the call",
            expected=f"{x} as it was",
            hint="x -= … and x[…] = … write into the array of whoever called; x - … makes a new one",
        )
    first, value = next(iter(inputs.items()))
    expect(
        np.shape(out) == value.shape,
        f"the output of {name} must have the shape of {first}",
        fed=", ".join(f"{y} {value.shape}" for y, value in inputs.items()),
        came=f"shape {np.shape(out)}" if hasattr(out, "shape") else repr(out),
        expected=f"shape {value.shape}",
        hint="write the shape of every intermediate result beside its line",
    )
    return np.asarray(out)


def softmax_gradient(s, da):
    """What softmax_backward gives for any scores, with the cache of the answer's own forward if that is right here."""
    a, cache = formula_of_softmax(s)
    try:
        copied = s.copy()
        mine, kept = answer("softmax_forward").in_place(copied)
        if (
            np.array_equal(copied, s)
            and np.shape(mine) == s.shape
            and np.allclose(mine, a, 1e-12, 1e-13)
        ):
            cache = kept
    except Exception:
        # marked by the forward's own tests
        pass
    try:
        return answer("softmax_backward")(da, cache)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def measured(f, x, dout):
    """The derivative of Σ dout · f(x), entry by entry, by the complex step."""
    dx = np.zeros(x.shape)
    for index in np.ndindex(x.shape):
        moved = x.astype(complex)
        moved[index] += 1e-20j
        dx[index] = (dout * f(moved)).sum().imag / 1e-20
    return dx


def one_hot(S, H, Dh):
    """Values (1, S, H, Dh) with value j the unit vector j: the output of a head is its weights."""
    return np.broadcast_to(np.eye(S, Dh)[None, :, None], (1, S, H, Dh)).copy()


def random_qkv(rng, B, T, S, H, Dh):
    """Queries, keys and values of these sizes, by name."""
    shapes = {"q": (B, T, H, Dh), "k": (B, S, H, Dh), "v": (B, S, H, Dh)}
    return {x: rng.standard_normal(shape) for x, shape in shapes.items()}


def random_biased(rng, B, T, S, H, Dh, C):
    """The same, with a bias for each of C groups of distances."""
    return {**random_qkv(rng, B, T, S, H, Dh), "b": rng.standard_normal((H, C))}


def random_persistent(rng, B, T, S, H, Dh, N):
    """Queries, keys and values, with N persistent vectors for each head."""
    pk, pv = 0.5 * rng.standard_normal((H, N, Dh)), rng.standard_normal((H, N, Dh))
    return {**random_qkv(rng, B, T, S, H, Dh), "pk": pk, "pv": pv}


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

# %% given="a2_imports"
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


# %% solution="a2_1"
def softmax_forward(s):
    """Weights from scores, over the last axis.

    s (..., S), with -inf for masked keys. Returns a (..., S) and the cache a: the backward pass needs
    only the weights.
    """
    ### BEGIN SOLUTION
    e = np.exp(s - s.max(axis=-1, keepdims=True))
    a = e / (e**2).sum(axis=-1, keepdims=True) ** 0.5
    return a, a
    ### END SOLUTION


def softmax_backward(da, cache):
    """Gradient of softmax_forward: da (..., S) → ds (..., S), which is 0 for masked keys."""
    ### BEGIN SOLUTION
    a = cache
    total = (a * da).sum(axis=-1, keepdims=True)
    return a * da - a**2 * total
    ### END SOLUTION


# %% test="a2_1_forward" points=2
expect_close(
    out_of("softmax_forward", s=np.zeros((2, 3, 5))),
    np.full((2, 3, 5), 1 / 5**0.5),
    "5 equal scores must give 5 equal weights, whose squares add up to 1",
    fed="s zeros (2, 3, 5)",
    hint="which axis is summed over, and is it kept as an axis?",
)
a = normed(np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
expect_close(
    out_of("softmax_forward", s=np.log(a)),
    a,
    "scores that are logarithms of weights must give these weights back",
    fed={"s": np.log(a)},
    hint="e to the power of each score, divided by one number for each row, that in the formula",
)
s = np.array([[0.0, 1000, 1000, 0], [-np.inf, 1000, 1000, -np.inf]])
expect_close(
    out_of("softmax_forward", s=s),
    np.array([[0, 1, 1, 0], [0, 1, 1, 0]]) / 2**0.5,
    "scores of 1000 and of -inf must give weights",
    fed={"s": s},
    hint="exp(1000) is infinite in float64; subtract something from the row first. exp(-inf) is 0",
)

# %% test="a2_1_forward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(20)
for shape in ((7,), (3, 4), (2, 3, 4, 6)):
    s = 3 * rng.standard_normal(shape)
    a = out_of("softmax_forward", s=s)
    fed = {"s": s if s.ndim < 3 else f"random {shape}"}
    expect_close(
        (a**2).sum(-1),
        np.ones(shape[:-1]),
        "the squares of the weights of a row must add up to 1",
        fed=fed,
        hint="the last axis, however many stand before it, and nothing added to it",
        relative=1e-12,
        absolute=1e-14,
    )
    with np.errstate(all="ignore"):
        logarithm = np.log(a)
    expect_close(
        logarithm - logarithm[..., :1],
        s - s[..., :1],
        "the ratio of two weights must be e to the power of the difference of their scores",
        fed=fed,
        hint="is every score of a row treated alike, and are scores of other rows left out?",
    )
    rows = rng.choice([-2000.0, -1000, 0, 1000, 2000], (*shape[:-1], 1))
    expect_close(
        out_of("softmax_forward", s=s + rows),
        a,
        "a number added to all scores of a row, another one for each row, must change nothing",
        fed=fed
        | {"added": rows if s.ndim < 3 else "one of -2000, -1000, 0, 1000, 2000 to each row"},
        hint="the largest score of each row, not of all rows: the others may underflow to 0 / 0",
        relative=1e-9,
    )
s = rng.standard_normal((2, 3, 5))
seen = rng.random(s.shape) < 0.5
seen[..., 3] = True
seen[0, 0] = [False, False, False, True, False]
seen[1, 2] = [False, True, True, True, True]
masked = np.where(seen, s, -np.inf)
e = np.exp(s) * seen
expect_close(
    out_of("softmax_forward", s=masked),
    normed(e),
    "masked keys must have weight 0, and the others the weights that they have without them",
    fed={"s": masked},
    hint="-inf minus a finite number is -inf; -inf minus -inf is not a number",
)
### END HIDDEN TESTS

# %% test="a2_1_backward" points=2
expect_gradients(
    "softmax_backward",
    formula_of_softmax,
    {"s": np.random.default_rng(21).standard_normal((3, 4))},
    hint="a score changes its own weight, and through the sum all weights of its row",
)

# %% test="a2_1_backward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(22)
for shape in ((2, 3, 4, 5), (6,), (3, 3, 3)):
    expect_gradients(
        "softmax_backward",
        formula_of_softmax,
        {"s": 2 * rng.standard_normal(shape)},
        hint="rows are independent: every sum is over the last axis",
        rng=rng,
    )
s, da = rng.standard_normal((2, 3, 5)), rng.standard_normal((2, 3, 5))
seen = rng.random(s.shape) < 0.5
seen[..., 3] = True
seen[0, 0] = [False, False, False, True, False]
masked = np.where(seen, s, -np.inf)
expect_close(
    softmax_gradient(masked, da),
    measured(lambda x: formula_of_softmax(np.where(seen, x, -np.inf))[0], s, da),
    "softmax_backward must be the derivative with masked keys, too, and 0 for these",
    fed={"s": masked, "da": da},
    hint="0 · inf and 0 / 0 are not numbers: can you do without the scores, and without dividing by a?",
)
da = rng.standard_normal((2, 24_000))
expect_close(
    softmax_gradient(np.zeros(da.shape), da),
    (da - da.mean(-1, keepdims=True)) / 24_000**0.5,
    "with equal scores, ds must be a · (da − mean of da), for rows of 24 000 keys too",
    fed="s zeros (2, 24000), da random",
    hint="a matrix of S × S numbers is too large: what is its product with da, without making it?",
    absolute=1e-14,
)
### END HIDDEN TESTS

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


# %% given="a2_given"
def given_softmax(s):
    """s (..., S) → a (..., S), for scores that are not large; -inf for keys that are not seen."""
    e = np.exp(s)
    return e / (e**2).sum(axis=-1, keepdims=True) ** 0.5


def given_softmax_backward(da, a):
    """da (..., S) and the weights a (..., S) → ds (..., S), for few keys."""
    own = np.eye(a.shape[-1]) * a[..., None]
    others = a[..., :, None] ** 2 * a[..., None, :]
    return ((own - others) @ da[..., None])[..., 0]


# %% solution="a2_2"
def attention_forward(q, k, v, b):
    """Causal attention with memory and a bias for each distance.

    q (B, T, H, Dh), k and v (B, S, H, Dh), S ≥ T, b (H, C), C ≥ 1. Returns out (B, T, H, Dh) and the
    cache (q, k, v, b, a), with the weights a (B, H, T, S).
    """
    ### BEGIN SOLUTION
    T, Dh = q.shape[1], q.shape[3]
    S = k.shape[1]
    s = np.einsum("bihd,bjhd->bhij", q, k) / Dh ** (1 / 2)
    # what query i sees: keys up to its own position
    distance = np.arange(T)[:, None] + S - T - np.arange(S)
    seen = distance >= 0
    group = np.minimum(np.maximum(distance, 0) // 2, b.shape[1] - 1)
    a = given_softmax(np.where(seen, s + b[:, group], -np.inf))
    return np.einsum("bhij,bjhd->bihd", a, v), (q, k, v, b, a)
    ### END SOLUTION


# %% test="a2_2_forward" points=5
q, k, v = np.zeros((1, 1, 1, 4)), np.zeros((1, 2, 1, 4)), np.zeros((1, 2, 1, 4))
q[0, 0, 0, 0], k[0, 0, 0, 0] = 2 * np.log(3), 1
v[0, 0, 0], v[0, 1, 0] = [4, 0, 0, 0], [0, 4, 0, 0]
q *= 4 ** (1 / 2) / 2
expect_close(
    out_of("attention_forward", q=q, k=k, v=v, b=np.zeros((1, 1)))[0, 0, 0],
    4 * normed(np.array([3.0, 1, 0, 0])),
    "scores log 3 and 0 must give weights in the ratio 3 to 1",
    fed={"q[0, 0, 0]": q[0, 0, 0], "keys": "(1, 0, 0, 0) and zeros", "b": "zeros (1, 1)"},
    hint="here q·k divided by the power of Dh in the formula is log 3",
)
rng = np.random.default_rng(23)
for T, S in ((4, 4), (3, 5)):
    inputs = random_biased(rng, 1, T, S, 2, 3, 2)
    inputs["q"][:] = inputs["b"][:] = 0
    expect_close(
        out_of("attention_forward", **inputs),
        np.stack([inputs["v"][:, :n].sum(1) / n**0.5 for n in range(S - T + 1, S + 1)], axis=1),
        "with equal scores, a query must give the same weight to all values that it sees",
        fed=f"q zeros {inputs['q'].shape}, k and v random {inputs['k'].shape}, b zeros (2, 2)",
        hint="query 0 sees S − T + 1 keys, the last one all S; is the mask there before the softmax, and do heads stay apart?",
    )
# with queries of 0 only the biases count; value j is the unit vector j, so that out is the weights
T, S = 2, 9
b = np.log(np.array([[1.0, 2, 3], [5, 1, 4]]))
a = out_of(
    "attention_forward", q=np.zeros((1, T, 2, S)), k=np.zeros((1, S, 2, S)), v=one_hot(S, 2, S), b=b
)
for i in range(T):
    back = [i + S - T - j for j in range(i + S - T + 1)]
    wanted = np.exp(b)[:, [min(d // 2, 2) for d in back]]
    expect_close(
        a[0, i, :, : len(back)],
        normed(wanted),
        f"with queries of 0, the weights of query {i} must be e to the power of the bias of each key's group, normed",
        fed={"q and k": "zeros", "e to the power of b": np.exp(b), "distances of keys": back},
        hint="how far is key j from query i, which group is that, and what is the last group?",
    )

# %% test="a2_2_forward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(24)
name = "attention_forward"
B, T, S, H, Dh, C = 2, 4, 6, 3, 7, 2
inputs = random_biased(rng, B, T, S, H, Dh, C)
out = out_of(name, **inputs)
for n in range(B):
    for h in range(H):
        alone = {x: inputs[x][n : n + 1, :, h : h + 1] for x in ("q", "k", "v")}
        expect_close(
            out_of(name, **alone, b=inputs["b"][h : h + 1]),
            out[n : n + 1, :, h : h + 1],
            "a head of a text alone must give what it gives among others",
            fed=f"q ({B}, {T}, {H}, {Dh}), k and v ({B}, {S}, {H}, {Dh}), b ({H}, {C}), and of these text {n}, head {h} alone",
            hint="texts and heads are independent: a reshape may have mixed their axes",
        )
single = random_biased(rng, 1, T, S, H, Dh, C)
single["v"] = one_hot(S, H, Dh)
a = out_of(name, **single)
for i in range(T):
    for h in range(H):
        last = i + S - T
        fed = {
            f"q[0, {i}, {h}]": single["q"][0, i, h],
            f"k[0, :, {h}]": single["k"][0, :, h],
            f"b[{h}]": single["b"][h],
            "v": f"value j is the unit vector j, so that out[0, {i}, {h}] is a[0, {h}, {i}]",
        }
        came = f"weights {np.round(a[0, i, h], 6)}"
        expect(
            np.all(a[0, i, h, : last + 1] > 0) and not np.any(a[0, i, h, last + 1 :]),
            f"query {i} of {T} must see keys 0 to {last} of {S}, and no others",
            fed=fed,
            came=came,
            expected=f"positive weights for keys 0 to {last}, and 0 for the rest",
            hint="the last T keys belong to the queries' own positions",
        )
        expect_close(
            (a[0, i, h] ** 2).sum(),
            1.0,
            f"the squares of the weights of query {i}, head {h}, must add up to 1",
            fed=fed,
            hint="over which axis is the softmax?",
        )
        scores = single["k"][0, : last + 1, h] @ single["q"][0, i, h] / Dh ** (1 / 2)
        scores += single["b"][h, [min((last - j) // 2, C - 1) for j in range(last + 1)]]
        expect_close(
            np.log(a[0, i, h, : last + 1] / a[0, i, h, 0]),
            scores - scores[0],
            "the ratio of two weights must be e to the power of the difference of their scores",
            fed=fed,
            hint="does a query use only the keys and biases of its own head, and is Dh the width of one head?",
        )
for t in range(1, T):
    later = {x: value.copy() for x, value in inputs.items()}
    for x in ("q", "k", "v"):
        later[x][:, t - T :] = rng.standard_normal(later[x][:, t - T :].shape)
    expect_close(
        out_of(name, **later)[:, :t],
        out[:, :t],
        "later positions must change nothing",
        fed=f"T = {T}, S = {S}; q, k and v changed from position {t} of the segment on",
        hint="does a query see a key of a later position?",
    )
    expect_close(
        out_of(name, **inputs | {"q": inputs["q"][:, t:]}),
        out[:, t:],
        "the last queries alone, with the earlier positions as memory, must give the same as before",
        fed=f"the last {T - t} of {T} queries, and all {S} keys and values",
        hint="how far back the memory goes follows from S − T",
    )
order = np.arange(S)
order[: S - T + 1] = order[S - T :: -1]
unbiased = inputs | {"b": np.zeros((H, C))}
expect_close(
    out_of(name, **unbiased | {x: inputs[x][:, order] for x in ("k", "v")}),
    out_of(name, **unbiased),
    "without biases, the order of keys that every query sees must not matter, as long as values follow keys",
    fed=f"T = {T}, S = {S}, b zeros, with the first {S - T + 1} keys and values reversed",
    hint="a weight and its value belong to the same key",
)
expect_close(
    out_of(name, **inputs | {"k": inputs["k"] + rng.standard_normal(Dh)}),
    out,
    "one vector added to all keys must change nothing: it adds the same to all scores of a query",
    fed=f"T = {T}, S = {S}",
    hint="are scores that are not seen -inf, or only a number?",
)
### END HIDDEN TESTS

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


# %% solution="a2_3"
def attention_backward(dout, cache):
    """Gradients of attention_forward, from its cache (q, k, v, b, a).

    dout (B, T, H, Dh) → dq (B, T, H, Dh), dk (B, S, H, Dh), dv (B, S, H, Dh), db (H, C).
    """
    ### BEGIN SOLUTION
    q, k, v, b, a = cache
    T, S = a.shape[2:]
    root = q.shape[3] ** (1 / 2)
    # out = a v
    dv = np.einsum("bhij,bihd->bjhd", a, dout)
    da = np.einsum("bihd,bjhd->bhij", dout, v)
    # a = softmax(s); where a key is masked, a is 0, and so is ds
    ds = a * da - a**2 * (a * da).sum(axis=-1, keepdims=True)
    # s = q k / root + b
    dq = np.einsum("bhij,bjhd->bihd", ds, k) / root
    dk = np.einsum("bhij,bihd->bjhd", ds, q) / root
    distance = np.arange(T)[:, None] + S - T - np.arange(S)
    group = np.minimum(np.maximum(distance, 0) // 2, b.shape[1] - 1)
    db = np.zeros(b.shape)
    for n in range(b.shape[1]):
        db[:, n] = (ds * (group == n)).sum(axis=(0, 2, 3))
    return dq, dk, dv, db
    ### END SOLUTION


# %% test="a2_3_dq_dv" points=2
expect_gradients(
    "attention_backward",
    formula_of_attention,
    random_biased(np.random.default_rng(26), 1, 3, 4, 2, 2, 2),
    only=["q", "v"],
    hint="dv: v_j is read by every query, with the weight that the query gives to it. dq: first the gradient of the "
    "weights, then through the softmax, then through the scaled q·k",
)

# %% test="a2_3_dk" points=1
expect_gradients(
    "attention_backward",
    formula_of_attention,
    random_biased(np.random.default_rng(27), 1, 3, 4, 2, 2, 2),
    only=["k"],
    hint="the same path as to q; every query is multiplied by k_j: which axis of ds is summed over?",
)

# %% test="a2_3_db" points=2
for n, sizes in enumerate(((1, 3, 4, 2, 2, 3), (2, 3, 8, 2, 3, 2))):
    expect_gradients(
        "attention_backward",
        formula_of_attention,
        random_biased(np.random.default_rng(37 + n), *sizes),
        only=["b"],
        hint="a bias is added to every score of its group, of all queries and texts: where do these stand in ds?",
    )

# %% test="a2_3_dq_dv_hidden" points=2
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(29)
for sizes in ((2, 3, 5, 4, 6, 2), (3, 4, 4, 1, 2, 1), (2, 1, 3, 3, 1, 4)):
    expect_gradients(
        "attention_backward",
        formula_of_attention,
        random_biased(rng, *sizes),
        only=["q", "v"],
        hint="is the root that of Dh, is every sum within one text and one head, and dv summed over queries?",
        rng=rng,
    )
### END HIDDEN TESTS

# %% test="a2_3_dk_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(30)
for sizes in ((2, 3, 5, 4, 6, 2), (3, 4, 4, 1, 2, 1), (2, 1, 3, 3, 1, 4)):
    expect_gradients(
        "attention_backward",
        formula_of_attention,
        random_biased(rng, *sizes),
        only=["k"],
        hint="is the root that of Dh, and do keys of the memory get their gradient too?",
        rng=rng,
    )
### END HIDDEN TESTS

# %% test="a2_3_db_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(39)
for sizes in ((2, 3, 9, 4, 3, 3), (3, 4, 4, 1, 2, 1), (2, 1, 3, 3, 1, 4)):
    expect_gradients(
        "attention_backward",
        formula_of_attention,
        random_biased(rng, *sizes),
        only=["b"],
        hint="far distances share the last group; a group that no query sees has the gradient 0",
        rng=rng,
    )
### END HIDDEN TESTS

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


# %% solution="a2_4"
def persistent_attention_forward(q, k, v, pk, pv):
    """Causal attention with memory and persistent vectors.

    q (B, T, H, Dh), k and v (B, S, H, Dh), S ≥ T, pk and pv (H, N, Dh), N ≥ 0.
    Returns out (B, T, H, Dh) and the cache (q, k, v, pk, pv, a), with the weights a (B, H, T, S + N):
    first those of the context, then those of the persistent vectors.
    """
    ### BEGIN SOLUTION
    T, Dh = q.shape[1], q.shape[3]
    S, N = k.shape[1], pk.shape[1]
    context = np.einsum("bihd,bjhd->bhij", q, k) / np.sqrt(Dh)
    seen = np.arange(S) <= np.arange(T)[:, None] + S - T
    persistent = np.einsum("bihd,hnd->bhin", q, pk)
    s = np.concatenate([np.where(seen, context, -np.inf), persistent], axis=-1)
    a = given_softmax(s)
    out = np.einsum("bhij,bjhd->bihd", a[..., :S], v)
    out += np.sqrt(N) * np.einsum("bhin,hnd->bihd", a[..., S:], pv)
    return out, (q, k, v, pk, pv, a)
    ### END SOLUTION


def persistent_attention_backward(dout, cache):
    """Gradients of persistent_attention_forward, from its cache (q, k, v, pk, pv, a).

    dout (B, T, H, Dh) → dq (B, T, H, Dh), dk and dv (B, S, H, Dh), dpk and dpv (H, N, Dh).
    """
    ### BEGIN SOLUTION
    q, k, v, pk, pv, a = cache
    S, N = k.shape[1], pk.shape[1]
    root = np.sqrt(q.shape[3])
    # out = a[:S] v + a[S:] √N pv
    dv = np.einsum("bhij,bihd->bjhd", a[..., :S], dout)
    dpv = np.sqrt(N) * np.einsum("bhin,bihd->hnd", a[..., S:], dout)
    da_context = np.einsum("bihd,bjhd->bhij", dout, v)
    da_persistent = np.sqrt(N) * np.einsum("bihd,hnd->bhin", dout, pv)
    # a = softmax(s), over context and persistent scores together
    da = np.concatenate([da_context, da_persistent], axis=-1)
    ds = a * da - a**2 * (a * da).sum(axis=-1, keepdims=True)
    ds_context, ds_persistent = ds[..., :S], ds[..., S:]
    # s[:S] = q k / √Dh and s[S:] = q pk
    from_context = np.einsum("bhij,bjhd->bihd", ds_context, k) / root
    from_persistent = np.einsum("bhin,hnd->bihd", ds_persistent, pk)
    dk = np.einsum("bhij,bihd->bjhd", ds_context, q) / root
    dpk = np.einsum("bhin,bihd->hnd", ds_persistent, q)
    return from_context + from_persistent, dk, dv, dpk, dpv
    ### END SOLUTION


# %% test="a2_4_forward" points=2
rng = np.random.default_rng(31)
B, T, S, H, Dh, N = 1, 3, 4, 2, 5, 2
inputs = random_persistent(rng, B, T, S, H, Dh, N)
inputs["q"][:] = 0
visible = np.array([S - T + 1 + i for i in range(T)])[None, :, None, None]
context = np.stack([inputs["v"][:, : i + S - T + 1].sum(1) for i in range(T)], axis=1)
expect_close(
    out_of("persistent_attention_forward", **inputs),
    (context + np.sqrt(N) * inputs["pv"].sum(1)) / (visible + N) ** 0.5,
    "with equal scores, a query must give the same weight to the values that it sees and to all √N · pv",
    fed=f"q zeros ({B}, {T}, {H}, {Dh}), k and v random ({B}, {S}, {H}, {Dh}), pk and pv random ({H}, {N}, {Dh})",
    hint=f"one softmax: query 0 sees {S - T + 1} + {N} keys, the last query {S} + {N}",
)

# %% test="a2_4_forward_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(32)
name = "persistent_attention_forward"
B, T, S, H, N = 2, 3, 5, 4, 6
Dh = S + N + 1
inputs = random_persistent(rng, B, T, S, H, 5, N)
out = out_of(name, **inputs)
for b in range(B):
    for h in range(H):
        alone = {x: inputs[x][b : b + 1, :, h : h + 1] for x in ("q", "k", "v")}
        alone |= {x: inputs[x][h : h + 1] for x in ("pk", "pv")}
        expect_close(
            out_of(name, **alone),
            out[b : b + 1, :, h : h + 1],
            "a head of a text alone must give what it gives among others",
            fed=f"B = {B}, T = {T}, S = {S}, H = {H}, Dh = 5, N = {N}, and of these text {b}, head {h} alone",
            hint="all texts see the same persistent vectors, every head has its own",
        )
single = random_persistent(rng, 1, T, S, H, Dh, N)
unit = one_hot(S + N, H, Dh)
single["v"], single["pv"] = unit[:, :S], unit[0, S:].swapaxes(0, 1) / np.sqrt(N)
a = out_of(name, **single)
for i in range(T):
    for h in range(H):
        last = i + S - T
        w = a[0, i, h, : S + N]
        some = np.r_[: last + 1, S : S + N]
        fed = {
            f"q[0, {i}, {h}]": single["q"][0, i, h],
            f"k[0, :, {h}]": single["k"][0, :, h],
            f"pk[{h}]": single["pk"][h],
            "v, √N pv": f"unit vectors, so that out[0, {i}, {h}] is a[0, {h}, {i}]",
        }
        expect(
            np.all(w[some] > 0) and not np.any(w[last + 1 : S]),
            f"query {i} of {T} must see keys 0 to {last} of {S}, and all {N} persistent ones",
            fed=fed,
            came=f"weights {np.round(w[:S], 6)} of the context and {np.round(w[S:], 6)} of persistent vectors",
            expected=f"0 for keys {last + 1} to {S - 1}, positive weights for the rest",
            hint="the mask is for the context alone",
        )
        expect_close(
            (w**2).sum(),
            1.0,
            f"the squares of all weights of query {i}, head {h}, must add up to 1 together",
            fed=fed,
            hint="one softmax over context and persistent scores, and values √N · pv",
        )
        scores = np.r_[
            single["k"][0, :, h] @ single["q"][0, i, h] / np.sqrt(Dh),
            single["pk"][h] @ single["q"][0, i, h],
        ]
        expect_close(
            np.log(w[some] / w[0]),
            scores[some] - scores[0],
            "the ratio of two weights must be e to the power of the difference of their scores",
            fed=fed,
            hint="context scores are divided by √Dh, and no root is left in persistent scores; every head has its own pk",
        )
for t in range(1, T):
    later = {x: value.copy() for x, value in inputs.items()}
    for x in ("q", "k", "v"):
        later[x][:, t - T :] = rng.standard_normal(later[x][:, t - T :].shape)
    expect_close(
        out_of(name, **later)[:, :t],
        out[:, :t],
        "later positions must change nothing",
        fed=f"T = {T}, S = {S}, N = {N}; q, k and v changed from position {t} of the segment on",
        hint="does a query see a key of a later position?",
    )
front = {
    "q": inputs["q"],
    "k": np.concatenate([np.stack([np.sqrt(5) * inputs["pk"].swapaxes(0, 1)] * B), inputs["k"]], 1),
    "v": np.concatenate([np.stack([np.sqrt(N) * inputs["pv"].swapaxes(0, 1)] * B), inputs["v"]], 1),
    "pk": np.zeros((H, 0, 5)),
    "pv": np.zeros((H, 0, 5)),
}
expect_close(
    out_of(name, **front),
    out,
    "keys √Dh · pk and values √N · pv in front of the memory must do what persistent vectors do",
    fed=f"B = {B}, T = {T}, S = {S} + {N}, H = {H}, Dh = 5, and N = 0 in place of N = {N}",
    hint="is nothing added for N = 0, and is the mask right with more memory?",
)
order = rng.permutation(N)
expect_close(
    out_of(name, **inputs | {"pk": inputs["pk"][:, order], "pv": inputs["pv"][:, order]}),
    out,
    "the order of the persistent vectors must not matter",
    fed=f"S = {S}, N = {N}, with pk and pv in another order",
    hint="does every query see all of them?",
)
### END HIDDEN TESTS

# %% test="a2_4_context" points=2
expect_gradients(
    "persistent_attention_backward",
    formula_of_persistent,
    random_persistent(np.random.default_rng(33), 1, 3, 4, 2, 3, 2),
    only=["q", "k", "v"],
    hint={
        "q": "a query is used twice: with the keys of the context, and with the persistent ones",
        "k": "is the sum in the softmax over context and persistent weights together?",
        "v": "v_j is read by every query, with its context weight",
        "": "five gradients in the order of the inputs, each with the shape of its input",
    },
)

# %% test="a2_4_persistent" points=2
expect_gradients(
    "persistent_attention_backward",
    formula_of_persistent,
    random_persistent(np.random.default_rng(34), 1, 3, 4, 2, 3, 2),
    only=["pk", "pv"],
    hint={
        "pk": "persistent scores have no root; is √N in the gradient of the persistent weights?",
        "pv": "√N · pv_n is read by every query of every text",
        "": "five gradients in the order of the inputs, each with the shape of its input",
    },
)

# %% test="a2_4_context_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(35)
for sizes in ((2, 3, 5, 4, 7, 6), (3, 4, 4, 1, 3, 2), (2, 3, 4, 3, 2, 0)):
    expect_gradients(
        "persistent_attention_backward",
        formula_of_persistent,
        random_persistent(rng, *sizes),
        only=["q", "k", "v"],
        hint="every text and every head by itself; one softmax; roots of Dh and of N where they belong",
        rng=rng,
    )
### END HIDDEN TESTS

# %% test="a2_4_persistent_hidden" points=1
### BEGIN HIDDEN TESTS
rng = np.random.default_rng(36)
for sizes in ((2, 3, 5, 4, 7, 6), (3, 4, 4, 1, 3, 2), (4, 1, 2, 3, 5, 4)):
    expect_gradients(
        "persistent_attention_backward",
        formula_of_persistent,
        random_persistent(rng, *sizes),
        only=["pk", "pv"],
        hint="all texts and all queries use the same persistent vectors: what is summed?",
        rng=rng,
    )
### END HIDDEN TESTS

# %% [markdown]
# ## Hand in
#
# Hand in this file, and do not rename it. If every test cell above prints `passed`, or
# `pytest a2` shows no failure, all *visible* tests pass. They are worth 20 of 30 points; the hidden
# tests, which run after you hand in, decide about the other 10.

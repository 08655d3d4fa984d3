"""Tests of a2: pytest a2, or one task: pytest a2 -m a2_1"""

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

import numpy as np

def given_softmax(s):
    """s (..., S) → a (..., S), for scores that are not large; -inf for keys that are not seen."""
    e = np.exp(s)
    return e / (e**2).sum(axis=-1, keepdims=True) ** 0.5


def given_softmax_backward(da, a):
    """da (..., S) and the weights a (..., S) → ds (..., S), for few keys."""
    own = np.eye(a.shape[-1]) * a[..., None]
    others = a[..., :, None] ** 2 * a[..., None, :]
    return ((own - others) @ da[..., None])[..., 0]

import pytest


@pytest.mark.a2_1
@pytest.mark.points(2)
def test_a2_1_forward():
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


@pytest.mark.a2_1
@pytest.mark.points(2)
def test_a2_1_backward():
    expect_gradients(
        "softmax_backward",
        formula_of_softmax,
        {"s": np.random.default_rng(21).standard_normal((3, 4))},
        hint="a score changes its own weight, and through the sum all weights of its row",
    )


@pytest.mark.a2_2
@pytest.mark.points(5)
def test_a2_2_forward():
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


@pytest.mark.a2_3
@pytest.mark.points(2)
def test_a2_3_dq_dv():
    expect_gradients(
        "attention_backward",
        formula_of_attention,
        random_biased(np.random.default_rng(26), 1, 3, 4, 2, 2, 2),
        only=["q", "v"],
        hint="dv: v_j is read by every query, with the weight that the query gives to it. dq: first the gradient of the "
        "weights, then through the softmax, then through the scaled q·k",
    )


@pytest.mark.a2_3
@pytest.mark.points(1)
def test_a2_3_dk():
    expect_gradients(
        "attention_backward",
        formula_of_attention,
        random_biased(np.random.default_rng(27), 1, 3, 4, 2, 2, 2),
        only=["k"],
        hint="the same path as to q; every query is multiplied by k_j: which axis of ds is summed over?",
    )


@pytest.mark.a2_3
@pytest.mark.points(2)
def test_a2_3_db():
    for n, sizes in enumerate(((1, 3, 4, 2, 2, 3), (2, 3, 8, 2, 3, 2))):
        expect_gradients(
            "attention_backward",
            formula_of_attention,
            random_biased(np.random.default_rng(37 + n), *sizes),
            only=["b"],
            hint="a bias is added to every score of its group, of all queries and texts: where do these stand in ds?",
        )


@pytest.mark.a2_4
@pytest.mark.points(2)
def test_a2_4_forward():
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


@pytest.mark.a2_4
@pytest.mark.points(2)
def test_a2_4_context():
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


@pytest.mark.a2_4
@pytest.mark.points(2)
def test_a2_4_persistent():
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

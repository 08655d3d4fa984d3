"""The forward pass of every operation against its formula, computed another way: in loops, or with the numbers spread
out. A short operation has its formula as a doctest in its own file instead."""

import cmath
import doctest
import math
from importlib import import_module
from itertools import pairwise
from pkgutil import iter_modules

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.gradcheck.catalogue import SIZES, Dimensions, operation_cases, other_cases

HASH = 0xED5AD4BB, 0xAC4C1B51, 0x31848BAB


def kept(shape: tuple[int, ...], rate: float, rng: int | None) -> np.ndarray:
    """What dropout multiplies by: the recipe of `ops.dropout` in plain integers, an entry at a time."""
    if rng is None or rate == 0:
        return np.ones(shape)
    keys = [int(key) for key in np.random.default_rng(rng).integers(0, 2**32, size=2, dtype=np.uint32)]
    factors = []
    for number in range(math.prod(shape)):
        h = number ^ keys[0]
        h = ((h ^ (h >> 17)) * HASH[0]) % 2**32 ^ keys[1]
        h = ((h ^ (h >> 11)) * HASH[1]) % 2**32
        h = ((h ^ (h >> 15)) * HASH[2]) % 2**32
        factors.append((h ^ (h >> 14)) >= rate * 2**32)
    return np.reshape(factors, shape) / (1 - rate)


def logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def linear(x, W, b, frozen=False):
    return np.einsum("...k,ko->...o", x, W) + (0 if b is None else b)


def matmul(a, b, bias=0.0, relu=False, where=None, onto=None):
    out = np.einsum("...k,kn->...n", a, b) + bias
    if onto is not None:
        return (out + onto,) * 2  # what is returned, and what `onto` has become
    return np.where((where if where is not None else out if relu else np.ones(1)) > 0, out, 0)


def add_rows(x, index, rows):
    return (x + sum_rows(rows, index, len(x)),) * 2


def sum_rows(rows, index, n):
    return np.einsum("rn,rd->nd", (index[:, None] == np.arange(n)) * 1.0, rows)


def embedding(ids, E, dropout, rng, scale=None):
    factors, scale = kept((len(E),), dropout, rng), scale or math.sqrt(E.shape[1])
    return np.array([scale * E[i] * factors[i] for i in ids.flat]).reshape(*ids.shape, -1)


def layernorm(x, scale, bias, eps):
    rows = [(row - sum(row) / len(row)) for row in x.reshape(-1, x.shape[-1])]
    stds = [math.sqrt(math.fsum(row * row) / len(row) + eps) for row in rows]
    return np.reshape([row / std * scale + bias for row, std in zip(rows, stds, strict=True)], x.shape)


def dropout(x, rate, rng):
    return x * kept(x.shape, rate, rng)


def residual(x, y, dropout, rng):
    return x + y * kept(y.shape, dropout, rng)


def context(x, m):
    return x if m is None else np.array([[*memory, *rows] for memory, rows in zip(m, x, strict=True)])


def positions(x, P):
    return x if P is None else np.array([[row + P[t] for t, row in enumerate(text)] for text in x])


def projections(n, R, Wq, Wk, Wv, Wr, T, bq, bk, bv, frozen=False):
    qkv = linear(n[:, n.shape[1] - T :], Wq, bq), linear(n, Wk, bk), linear(n, Wv, bv)
    return qkv if R is None else (*qkv, linear(R, Wr, None))


def rotary(x, base=10000.0, first=0, back=False):
    """A pair of features is a complex number, which is turned."""
    if base is None:
        return x
    half = x.shape[-1] // 2
    out = np.empty_like(x)
    *scaling, base = base if isinstance(base, tuple) else (base,)
    for t, d in np.ndindex(x.shape[1], half):
        angle = base ** (-d / half)
        if scaling:  # as transformers has it: by wavelength
            factor, low, high, positions = scaling
            wavelength = 2 * math.pi / angle
            smooth = (positions / wavelength - low) / (high - low)
            between = (1 - smooth) * angle / factor + smooth * angle
            slow, fast = wavelength > positions / low, wavelength < positions / high
            angle = angle / factor if slow else angle if fast else between
        turn = cmath.exp((-1j if back else 1j) * (first + t) * angle)
        turned = (x[:, t, :, d] + 1j * x[:, t, :, half + d]) * turn
        out[:, t, :, d], out[:, t, :, half + d] = turned.real, turned.imag
    return out


def attention(q, k, v, r, u, w, pk, pv, gate, span=None, scale=1.0, dropout=0.0, rng=None):
    """A query at a time."""
    B, T, H, Dh = q.shape
    S, N = k.shape[1], 0 if pk is None else pk.shape[1]
    factors = kept((B, H, T, S + N), dropout, rng)
    out = np.zeros_like(q)
    for b, h, i in np.ndindex(B, H, T):
        scores, values = np.full(S + N, -np.inf), np.zeros((S + N, Dh))
        for j in range(S):
            distance = i + (S - T) - j
            if 0 <= distance <= (S if span is None else span):
                content = q[b, i, h] @ k[b, j, h] if r is None else (q[b, i, h] + u[h]) @ k[b, j, h]
                position = 0 if r is None else (q[b, i, h] + w[h]) @ r[distance, h]
                scores[j], values[j] = (content + position) / math.sqrt(Dh), v[b, j, h]
        for n in range(N):
            scores[S + n] = q[b, i, h] @ (math.sqrt(Dh) * pk[h, n]) / math.sqrt(Dh)
            values[S + n] = math.sqrt(N) * pv[h, n]
        weights = np.exp(scores - scores.max())
        out[b, i, h] = scale * (weights / weights.sum() * factors[b, h, i]) @ values * (1 if gate is None else gate[h])
    return out


def blocks(h, W, b, gate, scale=1.0, frozen=False):
    """Unit by unit: each lies in one block."""
    factors = [1 if gate is None else scale * gate[unit * len(gate) // len(W)] for unit in range(len(W))]
    return linear(h * factors, W, b)


def feedforward(x, W1, b1, W2, b2, gate=None, scale=1.0, frozen=False):
    return blocks(np.maximum(linear(x, W1, b1), 0), W2, b2, gate, scale)


def gelu(a):
    return np.vectorize(lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))(a)


def swiglu(a, b):
    return np.vectorize(lambda x, y: x * logistic(x) * y)(a, b)


def repeat_heads(x, index):
    return x if index is None else np.stack([x[:, :, k] for k in index], axis=2)


def sum_heads(x, index, K):
    return np.einsum("bshd,hk->bskd", x, np.arange(K) == np.array(index)[:, None])


def units_gradient(products, r, weights, scale, relu=True):
    """The derivatives of Σ products_h · c g_h · r_h, r_h = max(a_h, 0) with a ReLU, with respect to a and g."""
    H = len(weights)
    da = np.where((r > 0) | (not relu), products * np.repeat(weights, r.shape[-1] // H), 0)
    return da, np.array([scale * x.sum() for x in np.split(r * products, H, -1)])


def head_networks(x, pk, pb, pv, bo, gate=None, scale=1.0, frozen=False):
    """Head by head."""
    gate = np.ones(len(pk)) if gate is None else gate
    return sum(scale * gate[h] * np.maximum(x @ pk[h].T + pb[h], 0) @ pv[h] for h in range(len(pk))) + bo


def log_softmax(logits):
    return np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))


def cross_entropy(logits, targets):
    rows = zip(logits.reshape(-1, logits.shape[-1]), targets.flat, strict=True)
    return np.mean([math.log(sum(map(math.exp, row))) - row[target] for row, target in rows])


def distillation(logits, targets, teacher, share):
    divergence = (np.exp(teacher) * (teacher - log_softmax(logits))).sum(-1).mean()
    return (1 - share) * cross_entropy(logits, targets) + share * divergence


def full_table(tables, projections):
    """Every word's vector at full width, (V, D)."""
    return np.concatenate([tables[0], *(t @ p for t, p in zip(tables[1:], projections, strict=True))])


def adaptive_embedding(ids, tables, projections, rng, dropout=0.0):
    return embedding(ids, full_table(tables, projections), dropout, rng)


def adaptive_log_probabilities(x, tables, projections, cluster_weight, cluster_bias, biases):
    """The head's probabilities of frequent words, and of each cluster times its words'."""
    ends = np.cumsum([len(table) for table in tables])
    logits = x @ full_table(tables, projections).T + np.concatenate(biases)
    clusters = x @ cluster_weight.T + cluster_bias
    head = np.exp(log_softmax(np.concatenate([logits[..., : ends[0]], clusters], -1)))
    p = [head[..., : ends[0]]]
    for c, (first, end) in enumerate(pairwise(ends)):
        p.append(head[..., ends[0] + c, None] * np.exp(log_softmax(logits[..., first:end])))
    return np.log(np.concatenate(p, -1))


def adaptive_softmax(x, targets, *weights, **named):
    log_p = adaptive_log_probabilities(x, *weights, **named)
    return -np.take_along_axis(log_p, targets[..., None], -1).mean()


def hard_concrete(log_alpha, u, beta, gamma, zeta, hard):
    noise = np.zeros_like(log_alpha) if u is None else np.log(u / (1 - u))
    s = np.vectorize(logistic)((noise + log_alpha) / (1 if u is None else beta))
    gate = np.clip(s * (zeta - gamma) + gamma, 0, 1)
    return (gate >= 0.5) * 1.0 if hard else gate


def p_open(log_alpha, beta, gamma, zeta):
    return np.vectorize(logistic)(log_alpha - beta * math.log(-gamma / zeta))


def head_difference(o, Wo, scale):
    B, T, H, Dh = o.shape
    only = np.eye(H)[:, None, None, :, None] * o
    return scale * only.reshape(H, B, T, H * Dh) @ Wo


def adam(grad, m, v, beta1, beta2, eps, step, grad_scale):
    g = grad_scale * grad
    m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
    return m, v, m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + eps)


def adamw_updates(params, grads, ms, vs, lr, multipliers, decays, constants):
    moved = [adam(*each, *constants) for each in zip(grads, ms, vs, strict=True)]
    ms, vs, rs = map(list, zip(*moved, strict=True))
    updates = zip(params, rs, multipliers, decays, strict=True)
    return [param - lr * multiplier * (r + decay * param) for param, r, multiplier, decay in updates], ms, vs


def lamb_update(param, grad, m, v, lr, decay, constants):
    m, v, r = adam(grad, m, v, *constants)
    d = r + decay * param
    return param - lr * np.linalg.norm(param) / np.linalg.norm(d) * d, m, v


def scales_update(param, grad, m, v, lr, decay, constants):
    new = param - lr * decay * param
    for g, o in np.ndindex(len(param) // 32, param.shape[1]):
        at = slice(32 * g, 32 * g + 32), o
        offset = param[at].mean() if len(m) == 2 else 0
        scale = np.sqrt(((param[at] - offset) ** 2).mean())
        pattern = (param[at] - offset) / scale
        ds = np.array([pattern @ grad[at], grad[at].sum()])[: len(m)]
        m[:, g, o], v[:, g, o], r = adam(ds, m[:, g, o], v[:, g, o], *constants)
        new[at] -= lr * (r[0] * pattern + r[1:].sum())
    return new, m, v


def put_slices(part, index, axis, n, width):
    x = np.zeros((part.shape[0], n * width, part.shape[2]))
    for i, h in enumerate(index):
        for d in range(width):
            x[:, h * width + d] = part[:, i * width + d]
    return x


FORMULAS = {name: f for name, f in globals().items() if getattr(f, "__module__", "") == __name__}
FORMULAS |= {
    "rotate": rotary,
    "weight_gradient": lambda x, dout: np.tensordot(x, dout, (range(x.ndim - 1),) * 2),
    "column_sums": lambda x: np.array([math.fsum(column.flat) for column in np.moveaxis(x, -1, 0)]),
    "take_rows": lambda x, index: np.array([x[i] for i in index]),
    "multiply_rows": lambda x, factors: np.einsum("r,r...->r...", factors, x),
    "row_dots": lambda x, y, factor: factor * np.einsum("rij,rij->r", x, y),
    "concatenate": lambda arrays, axis=0: np.swapaxes(
        [x for array in arrays for x in array.swapaxes(0, axis)], 0, axis
    ),
    "set_rows": lambda x, rows: (rows,),
    "add": lambda a, b, more=(): np.reshape(
        [sum(xs) for xs in zip(*(x.flat for x in (a, b, *more)), strict=True)], a.shape
    ),
    "squared_norm": lambda x: math.fsum(value * value for value in x.flat),
    "squared_norms": lambda arrays: [math.fsum(value * value for value in x.flat) for x in arrays],
    "sigmoid": np.vectorize(logistic),
    "l0": lambda log_alpha, weights=1, **gate: (weights * p_open(log_alpha, **gate)).sum(),
    "take_slices": lambda x, index, axis, width: np.concatenate(
        [x[:, :0], *(x[:, h * width : (h + 1) * width] for h in index)], axis
    ),
}
CASES = {case.operation: case for case in [*operation_cases(), *other_cases()]}
OTHER = Dimensions(B=1, T=6, M=5, H=2, Dh=4, N=3, D=9, F=5, V=12, lead=(5,))


@pytest.mark.parametrize("sizes", [SIZES, OTHER], ids=["small", "other"])
@pytest.mark.parametrize("name", CASES)
def test_like_its_formula(name, sizes):
    cases = [*operation_cases(None, sizes), *other_cases(None, sizes)]
    case = next(case for case in cases if case.operation == name)
    operation = name.split(" (")[0]
    if operation not in FORMULAS:
        function = getattr(ops, f"{operation}_forward", None) or getattr(ops, operation)
        tests = doctest.DocTestFinder().find(import_module(function.__module__))
        assert any(test.examples for test in tests), f"{operation} has neither a formula here nor a doctest"
        return
    out, _ = case.forward(*case.inputs.values())
    expected = FORMULAS[operation](**case.inputs | case.constants)
    for got, wanted in zip(flat(out), flat(expected), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-11, atol=1e-12)


def flat(out) -> list:
    """The arrays of an output."""
    return [x for item in out for x in flat(item)] if isinstance(out, list | tuple) else [out]


def test_examples_in_docstrings():
    names = [f"tinyprune.ops.{module.name}" for module in iter_modules(ops.__path__)]
    results = [doctest.testmod(import_module(name)) for name in names]
    assert sum(result.attempted for result in results) > 0
    assert not any(result.failed for result in results)

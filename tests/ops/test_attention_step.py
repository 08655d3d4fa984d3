"""One token at a time: what `attention_forward` shows the last query, and what is kept where."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.ops import attention_forward, layernorm_forward
from tinyprune.ops.attention_step import BlockWeights

D, H, Dh, N, C = 6, 3, 2, 5, 4
TOKENS = 11


def example(rng, heads: int = H, relative: bool = True, persistent: bool = True, dtype: type = np.float64) -> dict:
    """A layer's parameters as `attention_step` takes them, and r."""
    shapes = {
        "ln_scale": (D,),
        "ln_bias": (D,),
        "Wq": (D, heads * Dh),
        "Wk": (D, heads * Dh),
        "Wv": (D, heads * Dh),
        "Wo": (heads * Dh, D),
        "bo": (D,),
    }
    shapes |= {"r": (C + 2, heads, Dh), "u": (heads, Dh), "w": (heads, Dh)} if relative else {}
    shapes |= {"pk": (heads, N, Dh), "pv": (heads, N, Dh), "gate": (heads,)} if persistent else {}
    return {"r": None} | {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def attention_step(x, keys, values, read, r, **weights):
    return ops.attention_step(x, keys, values, r, read, BlockWeights(**weights))


def buffers(heads: int = H, dtype: type = np.float64) -> tuple[np.ndarray, np.ndarray]:
    """Empty ones; what is in them must not matter."""
    return np.full((C, heads, Dh), np.nan, dtype), np.full((C, heads, Dh), np.nan, dtype)


def expected(text: np.ndarray, p: dict, scale: float) -> np.ndarray:
    """y of the last token of a text (n, D), n ≤ C, read at once."""
    n, S = layernorm_forward(text, p["ln_scale"], p["ln_bias"])[0], len(text)
    q, k, v = ((n @ p[W]).reshape(1, S, -1, Dh) for W in ("Wq", "Wk", "Wv"))
    others = [p.get(name) for name in ("u", "w", "pk", "pv", "gate")]
    r = None if p["r"] is None else p["r"][:S]
    o, _ = attention_forward(q[:, -1:], k, v, r, *others, scale=scale)
    return text[-1] + o.reshape(-1) @ p["Wo"] + p["bo"]


@pytest.mark.parametrize("persistent", [True, False])
@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("heads", [H, 1, 0])
def test_each_token_sees_the_latest_c_itself_included(heads, relative, persistent, rng):
    p = example(rng, heads, relative, persistent)
    text = rng.standard_normal((TOKENS, D))
    keys, values = buffers(heads)
    for read, x in enumerate(text):
        y = attention_step(x, keys, values, read, scale=1.5, **p)
        window = text[max(0, read + 1 - C) : read + 1]
        np.testing.assert_allclose(y, expected(window, p, 1.5), rtol=1e-12, atol=1e-12)


def test_a_token_takes_the_place_of_the_one_that_is_forgotten(rng):
    p = example(rng)
    text = rng.standard_normal((TOKENS, D))
    n, _ = layernorm_forward(text, p["ln_scale"], p["ln_bias"])
    keys, values = buffers()
    for read, x in enumerate(text):
        before = keys.copy(), values.copy()
        attention_step(x, keys, values, read, **p)
        for buffer, earlier, W in ((keys, before[0], "Wk"), (values, before[1], "Wv")):
            np.testing.assert_allclose(buffer[read % C], (n[read] @ p[W]).reshape(H, Dh), rtol=1e-12)
            others = np.arange(C) != read % C
            np.testing.assert_array_equal(buffer[others], earlier[others])


def test_without_heads_the_layer_adds_its_bias(rng):
    p = example(rng, heads=0)
    x = rng.standard_normal(D)
    np.testing.assert_array_equal(attention_step(x, *buffers(0), 7, **p), x + p["bo"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.ones((C + 1, H, Dh))}, r"values must have shape \(4, 3, 2\) .*, got \(5, 3, 2\)"),
        ({"read": -1}, "read must be at least 0, got -1"),
        ({"ln_bias": np.ones(D + 1)}, r"bias must have shape \(6,\)"),
        ({"pv": None}, "pk and pv must be given together"),
        ({"gate": np.ones(H + 1)}, "gate must have shape"),
    ],
)
def test_after_an_error_nothing_is_written(change, message, rng):
    keys, values = buffers()
    arguments = {"x": np.ones(D), "keys": keys, "values": values, "read": 0} | example(rng) | change
    with pytest.raises(ValueError, match=message):
        attention_step(**arguments)
    assert np.isnan(keys).all() and np.isnan(values).all()

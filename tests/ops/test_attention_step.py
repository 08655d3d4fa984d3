"""One token at a time: what is kept where, and that nothing is kept after an error."""

import numpy as np
import pytest

from tinyprune import ops
from tinyprune.ops import layernorm_forward
from tinyprune.ops.attention_step import BlockWeights

D, H, Dh, N, C = 6, 3, 2, 5, 4
TOKENS = 11


def example(rng) -> dict:
    """A layer's parameters as `attention_step` takes them, and r."""
    W = (D, H * Dh)
    shapes = {"ln_scale": (D,), "ln_bias": (D,), "Wq": W, "Wk": W, "Wv": W, "Wo": W[::-1], "bo": (D,)}
    shapes |= {"r": (C + 2, H, Dh), "u": (H, Dh), "w": (H, Dh), "pk": (H, N, Dh), "pv": (H, N, Dh), "gate": (H,)}
    return {name: rng.standard_normal(shape) for name, shape in shapes.items()}


def attention_step(x, keys, values, read, r, **weights):
    return ops.attention_step(x, keys, values, r, read, BlockWeights(**weights))


def buffers() -> tuple[np.ndarray, np.ndarray]:
    """Empty ones; what is in them must not matter."""
    return np.full((C, H, Dh), np.nan), np.full((C, H, Dh), np.nan)


def test_a_token_takes_the_place_of_the_one_that_is_forgotten(rng):
    p = example(rng)
    text = rng.standard_normal((TOKENS, D))
    n, _ = layernorm_forward(text, p["ln_scale"], p["ln_bias"])
    keys, values = buffers()
    for read, x in enumerate(text):
        before = keys.copy(), values.copy()
        attention_step(x, keys, values, read=read, **p)
        for buffer, earlier, W in ((keys, before[0], "Wk"), (values, before[1], "Wv")):
            np.testing.assert_allclose(buffer[read % C], (n[read] @ p[W]).reshape(H, Dh), rtol=1e-12)
            others = np.arange(C) != read % C
            np.testing.assert_array_equal(buffer[others], earlier[others])


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

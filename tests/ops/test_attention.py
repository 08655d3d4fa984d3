"""Attention over ragged shapes against its formula in plain loops, huge scores, and what must come together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_forward import attention as attention_in_loops

from tinyprune.gradcheck import assert_gradients
from tinyprune.ops import attention_backward, attention_forward

NAMES = ["q", "k", "v", "r", "u", "w", "pk", "pv", "gate"]


def draw(rng, B=2, T=4, M=3, H=3, Dh=5, N=4, relative=True, gated=True, dtype=np.float64) -> dict:
    """Arguments of attention by name; None for what these sizes leave out."""
    S = M + T
    shapes = {"q": (B, T, H, Dh), "k": (B, S, H, Dh), "v": (B, S, H, Dh)}
    shapes |= {"r": (S, H, Dh), "u": (H, Dh), "w": (H, Dh)} if relative else {}
    shapes |= {"pk": (H, N, Dh), "pv": (H, N, Dh)} if N else {}
    shapes |= {"gate": (H,)} if gated else {}
    drawn = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    return dict.fromkeys(NAMES) | drawn


# H 0: a layer that has lost all of its heads.
ranges = {"B": (1, 2), "T": (1, 5), "M": (0, 4), "H": (0, 3), "Dh": (1, 4), "N": (0, 3)}
numbers = {name: st.integers(*ends) for name, ends in ranges.items()}
sizes = st.fixed_dictionaries(numbers | {"relative": st.booleans(), "gated": st.booleans()})
spans = st.none() | st.integers(0, 6)


def shapes(arrays):
    return [None if array is None else array.shape for array in arrays]


@settings(max_examples=100)
@given(sizes, spans)
def test_ragged_shapes_have_right_outputs_and_gradients(sizes, span):
    arguments = draw(np.random.default_rng(4), **sizes)
    expected = attention_in_loops(*arguments.values(), span=span, scale=1.7, dropout=0.2, rng=3)

    def forward(*values):
        rng = np.random.default_rng(3)
        return attention_forward(*values, span=span, scale=1.7, dropout=0.2, rng=rng)

    out, cache = forward(*arguments.values())
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    if not sizes["H"]:  # nothing to check, but the shapes of the gradients
        assert shapes(attention_backward(out, cache)) == shapes(arguments.values())
        return
    options = {"argument_names": NAMES, "directions": 2, "name": f"{sizes} {span}"}
    assert_gradients(forward, attention_backward, *arguments.values(), **options)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_scores_do_not_overflow(dtype, rng):
    arguments = draw(rng, dtype=dtype)
    arguments["q"] *= 1e4
    out, cache = attention_forward(*arguments.values(), span=3)
    assert np.isfinite(out).all()
    assert all(np.isfinite(gradient).all() for gradient in attention_backward(out, cache))


@pytest.mark.parametrize("name", ["r", "u", "w", "pk", "pv"])
def test_what_belongs_together_must_come_together(name, rng):
    together = "r, u and w" if name in "ruw" else "pk and pv"
    with pytest.raises(ValueError, match=f"{together} must be given together or not at all"):
        attention_forward(*(draw(rng) | {name: None}).values())

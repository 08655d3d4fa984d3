"""Projections: three products, each against its definition; a layer without heads."""

import numpy as np
import pytest

from tinyprune.ops import projections_backward, projections_forward

B, S, D, O = 2, 7, 5, 6


def example(rng, heads: int = O) -> list[np.ndarray]:
    return [rng.standard_normal((B, S, D)), *rng.standard_normal((3, D, heads))]


@pytest.mark.parametrize("T", [1, 4, S])
def test_queries_for_the_last_positions_keys_and_values_for_all(T, rng):
    n, Wq, Wk, Wv = example(rng)
    (q, k, v), cache = projections_forward(n, Wq, Wk, Wv, T)
    for out, rows, W in ((q, n[:, S - T :], Wq), (k, n, Wk), (v, n, Wv)):
        np.testing.assert_allclose(out, np.einsum("bsd,do->bso", rows, W), rtol=1e-12, atol=1e-12)
    dq, dk, dv = (rng.standard_normal(out.shape) for out in (q, k, v))
    dn, dWq, dWk, dWv = projections_backward(dq, dk, dv, cache)
    expected = np.einsum("bso,do->bsd", dk, Wk) + np.einsum("bso,do->bsd", dv, Wv)
    expected[:, S - T :] += np.einsum("bto,do->btd", dq, Wq)
    np.testing.assert_allclose(dn, expected, rtol=1e-12, atol=1e-12)
    for dW, rows, g in ((dWq, n[:, S - T :], dq), (dWk, n, dk), (dWv, n, dv)):
        np.testing.assert_allclose(dW, np.einsum("bsd,bso->do", rows, g), rtol=1e-12, atol=1e-12)


def test_a_layer_without_heads(rng):
    outs, cache = projections_forward(*example(rng, heads=0), 3)
    assert [out.shape for out in outs] == [(B, 3, 0), (B, S, 0), (B, S, 0)]
    dn, *dW = projections_backward(*outs, cache)
    np.testing.assert_array_equal(dn, np.zeros((B, S, D)))
    assert [g.shape for g in dW] == [(D, 0)] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": np.ones((S, D))}, r"n must be \(B, S, D\), got \(7, 5\)"),
        ({"Wq": np.ones((4, O))}, r"Wq must have shape \(5, H·Dh\) to match n \(2, 7, 5\), got \(4, 6\)"),
        ({"Wk": np.ones((D, 5))}, r"Wk must have the shape of Wq, \(5, 6\), got \(5, 5\)"),
        ({"Wv": np.ones((4, O))}, r"Wv must have the shape of Wq, \(5, 6\), got \(4, 6\)"),
        ({"T": 8}, "T must be at least 0 and at most 7 to match n .*, got 8"),
        ({"T": -1}, "got -1"),
    ],
)
def test_shapes_that_do_not_fit(change, message, rng):
    arguments = dict(zip(("n", "Wq", "Wk", "Wv"), example(rng), strict=True)) | {"T": 3}
    with pytest.raises(ValueError, match=message):
        projections_forward(**arguments | change)

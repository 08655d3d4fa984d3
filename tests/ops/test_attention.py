"""Attention over ragged shapes against its formula in plain loops, and what must hold whatever the numbers are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_forward import attention as attention_in_loops

from tinyprune.gradcheck import check_gradients
from tinyprune.ops import attention_backward, attention_forward
from tinyprune.ops.attention import by_key

NAMES = ["q", "k", "v", "r", "u", "w", "pk", "pv", "gate"]


def draw(rng, B=2, T=4, M=3, H=3, Dh=5, N=4, relative=True, gated=True, dtype=np.float64) -> dict:
    """Arguments of attention by name; None for what these sizes leave out."""
    S = M + T
    shapes = {"q": (B, T, H, Dh), "k": (B, S, H, Dh), "v": (B, S, H, Dh)}
    shapes |= {"r": (S, H, Dh), "u": (H, Dh), "w": (H, Dh)} if relative else {}
    shapes |= {"pk": (H, N, Dh), "pv": (H, N, Dh)} if N else {}
    shapes |= {"gate": (H,)} if gated else {}
    return dict.fromkeys(NAMES) | {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


@st.composite
def sizes(draw_from):
    M = draw_from(st.integers(0, 4))
    return {
        "B": draw_from(st.integers(1, 2)),
        "T": draw_from(st.integers(1, 5)),
        "M": M,
        "H": draw_from(st.integers(1, 3)),
        "Dh": draw_from(st.integers(1, 4)),
        "N": draw_from(st.integers(0, 3)),
        "relative": draw_from(st.booleans()),
        "gated": draw_from(st.booleans()),
    }, draw_from(st.none() | st.integers(0, M + 2))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(sizes())
def test_ragged_shapes_agree_with_the_formula_in_loops(example):
    arguments, span = draw(np.random.default_rng(4), **example[0]), example[1]
    out, cache = attention_forward(*arguments.values(), span=span, scale=1.7)
    expected = attention_in_loops(*arguments.values(), span=span, scale=1.7)
    np.testing.assert_allclose(out, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(cache.a.sum(-1), 1, rtol=1e-13)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(sizes())
def test_ragged_shapes_have_right_gradients(example):
    arguments, span = draw(np.random.default_rng(4), **example[0]), example[1]

    def forward(*values):
        return attention_forward(*values, span=span, scale=1.7, dropout=0.2, rng=np.random.default_rng(3))

    for record in check_gradients(forward, attention_backward, *arguments.values(), argument_names=NAMES, directions=2):
        assert record.passed, f"{example}\n{record.message()}"


# Who sees what.


@pytest.mark.parametrize("T", [1, 3, 6])
def test_same_length_each_query_sees_the_latest_positions_only(T, rng):
    M = 4
    _, cache = attention_forward(*draw(rng, T=T, M=M, N=2).values(), span=M)
    seen = cache.a[..., : M + T] > 0
    assert (seen.sum(-1) == M + 1).all()
    for i in range(T):
        assert seen[:, :, i, i : i + M + 1].all()
    assert (cache.a[..., M + T :] > 0).all()


@pytest.mark.parametrize("span", [None, 3])
def test_nothing_of_the_future_reaches_a_query(span, rng):
    T, M = 5, 3
    arguments = draw(rng, T=T, M=M)
    out, _ = attention_forward(*arguments.values(), span=span)
    for j in range(T):
        changed = {name: x.copy() for name, x in arguments.items()}
        for name in ("k", "v"):
            changed[name][:, M + j] += 10.0
        new, _ = attention_forward(*changed.values(), span=span)
        np.testing.assert_array_equal(new[:, :j], out[:, :j])
        assert (new[:, j] != out[:, j]).any()


def test_what_lies_beyond_the_span_does_not_reach_a_query(rng):
    T, M, span = 5, 6, 3
    arguments = draw(rng, T=T, M=M)
    out, _ = attention_forward(*arguments.values(), span=span)
    arguments["k"][:, : M - span] += 10.0
    arguments["v"][:, : M - span] += 10.0
    np.testing.assert_array_equal(attention_forward(*arguments.values(), span=span)[0], out)


def test_by_key_is_a_view_and_a_gather(rng):
    B, H, T, M = 2, 3, 4, 3
    S = M + T
    P = rng.standard_normal((B, H, T, S + 1))
    seen = by_key(P)
    assert seen.shape == (B, H, T, S) and np.shares_memory(seen, P)
    for i in range(T):
        for j in range(i + M + 1):
            distance = i + M - j
            np.testing.assert_array_equal(seen[:, :, i, j], P[:, :, i, S - 1 - distance])
    seen[1, 2, 3, 4] = 99.0
    assert P[1, 2, 3, S - 1 - (3 + M - 4)] == 99.0


# Gates, scaling, dropout.


def test_gate_and_scale_multiply_the_output_of_their_head(rng):
    arguments = draw(rng, gated=False)
    plain, _ = attention_forward(*arguments.values())
    gate = np.array([0.0, 1.0, 0.3])
    out, cache = attention_forward(*(arguments | {"gate": gate}).values(), scale=1.5)
    assert not out[:, :, 0].any()
    np.testing.assert_allclose(out, 1.5 * gate[:, None] * plain, rtol=1e-14)
    np.testing.assert_array_equal(cache.o, plain)


def test_a_closed_head_gives_its_vectors_no_gradient_but_its_gate_has_one(rng):
    arguments = draw(rng) | {"gate": np.array([0.0, 1.0, 0.3])}
    out, cache = attention_forward(*arguments.values())
    dq, dk, dv, dr, du, dw, dpk, dpv, dgate = attention_backward(rng.standard_normal(out.shape), cache)
    assert not any(x[..., 0, :].any() for x in (dq, dk, dv, dr)) and not any(x[0].any() for x in (du, dw, dpk, dpv))
    assert dgate.all()


# The edges.


def test_a_layer_that_has_lost_all_of_its_heads(rng):
    arguments = draw(rng, H=0)
    out, cache = attention_forward(*arguments.values(), span=3, dropout=0.1, rng=rng)
    assert out.shape == (2, 4, 0, 5)
    for x, gradient in zip(arguments.values(), attention_backward(out, cache), strict=True):
        assert gradient.shape == x.shape


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_scores_do_not_overflow(dtype, rng):
    arguments = draw(rng, dtype=dtype)
    arguments["q"] *= 1e4
    out, cache = attention_forward(*arguments.values(), span=3)
    assert np.isfinite(out).all()
    assert all(np.isfinite(gradient).all() for gradient in attention_backward(out, cache))


def test_a_text_in_two_segments_with_memory_is_the_text_in_one_piece(rng):
    """Same-length: what a query sees does not depend on where the segment begins."""
    T, M, cut = 7, 3, 4
    whole = draw(rng, T=T, M=M)
    out, _ = attention_forward(*whole.values(), span=M)
    first = whole | {"q": whole["q"][:, :cut], "k": whole["k"][:, : M + cut], "v": whole["v"][:, : M + cut]}
    second = whole | {"q": whole["q"][:, cut:], "k": whole["k"][:, cut:], "v": whole["v"][:, cut:]}
    for part in (first, second):
        part["r"] = whole["r"][: part["k"].shape[1]]
    outs = [attention_forward(*part.values(), span=M)[0] for part in (first, second)]
    np.testing.assert_allclose(np.concatenate(outs, 1), out, rtol=1e-12, atol=1e-14)


# Bad arguments.


@pytest.mark.parametrize("name", ["r", "u", "w", "pk", "pv"])
def test_what_belongs_together_must_come_together(name, rng):
    together = "r, u and w" if name in "ruw" else "pk and pv"
    with pytest.raises(ValueError, match=f"{together} must be given together or not at all"):
        attention_forward(*(draw(rng) | {name: None}).values())

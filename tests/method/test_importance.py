"""Criteria of importance compared with computations by hand or brute force; masks with exact counts."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small import MODELS, small_config, small_model

from tinyprune.config import KINDS, ChooseConfig, GateConfig
from tinyprune.errors import UsageError
from tinyprune.kernels.backend import get_backend
from tinyprune.method.choose import open_best
from tinyprune.method.criteria import CRITERIA, michel_global
from tinyprune.method.gates import open_parts
from tinyprune.method.masks import keep_best, layer_shares, with_parts
from tinyprune.method.recipe import Recipe
from tinyprune.method.remove import remove_closed_heads
from tinyprune.model.transformer import Transformer

LONG = np.random.default_rng(4).integers(0, 11, 16 * 5 * 3 + 1)  # 16 streams of three segments
SHORT = LONG[:61]
ZEROS = [np.zeros(3), np.zeros(3)]  # scores


def model(kind: str = "all-attention", **options) -> Transformer:
    return small_model(small_config(kind, **options))


def score(name: str, model: Transformer, tokens: np.ndarray = LONG) -> list[np.ndarray]:
    return CRITERIA[name](model, tokens, np.random.default_rng(0))


def streams(tokens: np.ndarray, count: int, T: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut inputs and targets, (segments, count, T) each, by hand."""
    length = (len(tokens) - 1) // count
    rows = (tokens[first:][: count * length].reshape(count, length) for first in (0, 1))
    ids, targets = (x[:, : length // T * T].reshape(count, -1, T).swapaxes(0, 1) for x in rows)
    return ids, targets


def loss_of(model: Transformer) -> float:
    """Compute the mean loss on 16 streams, memory carried by hand."""
    memory, losses = None, []
    for ids, targets in zip(*streams(LONG, 16, model.config.T), strict=True):
        loss, memory, _ = model.loss(ids, targets, memory)
        losses.append(loss)
    return np.mean(losses)


def without(whole: Transformer, layer: int, head: int) -> Transformer:
    """Cut a head out of the model, by surgery."""
    mask = [np.ones(H, bool) for H in whole.config.heads]
    mask[layer][head] = False
    return remove_closed_heads(with_parts(whole, mask))


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("kind", MODELS)
def test_a_score_for_every_head_and_nothing_changed(kind, name):
    layers = name == "whole-layers"
    blocks = {"F": 6, "U": 2} if layers and kind in KINDS[1:] else {}
    whole = model(kind, **blocks)
    before = {name: x.copy() for name, x in whole.params.items()}
    scores = score(name, whole)
    assert [s.shape for s in scores] == [(3,), (3,)] * (2 if blocks else 1)
    assert all(np.isfinite(s).all() and len(set(s)) == (1 if layers else 3) for s in scores)
    assert list(whole.params) == list(before) and whole.gate is None
    assert all(np.array_equal(x, before[name]) for name, x in whole.params.items())
    again = score(name, whole)
    assert all(np.array_equal(a, b) for a, b in zip(scores, again, strict=True))


@pytest.mark.parametrize("kind", MODELS)
def test_leave_one_out_is_the_loss_of_the_model_without_the_head(kind):
    whole = model(kind)
    scores = score("leave-one-out", whole)
    for layer, head in itertools.product(range(2), range(3)):
        expected = loss_of(without(whole, layer, head)) - loss_of(whole)
        assert scores[layer][head] == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_leave_one_out_counts_from_the_heads_that_are_there():
    whole = model()
    mask = [np.array([True, False, True]), np.array([True, True, True])]
    pruned = with_parts(whole, mask)
    scores = score("leave-one-out", pruned)
    assert scores[0][1] == 0
    expected = loss_of(without(remove_closed_heads(pruned), 0, 1)) - loss_of(pruned)
    assert scores[0][2] == pytest.approx(expected, rel=1e-9)


def length(W: np.ndarray) -> float:
    return math.sqrt(sum(x * x for x in W.flat))


@pytest.mark.parametrize("kind", ["all-attention", "head networks"])
def test_magnitude_of_a_head_is_that_of_its_own_slices(kind):
    whole = model(kind)
    Wv, Wo = whole.params["layers.1.Wv"], whole.params["layers.1.Wo"]
    for head, own in enumerate((slice(0, 4), slice(4, 8), slice(8, 12))):
        by_hand = length(Wv[:, own]) * length(Wo[own])
        if kind == "head networks":
            pk, pv = whole.params["layers.1.net.pk"], whole.params["layers.1.net.pv"]
            by_hand += length(pk[head]) * length(pv[head])
        assert score("magnitude", whole)[1][head] == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize(("name", "value"), [("persistent", "routed"), ("feedforward", "experts")])
def test_magnitude_refuses_kinds_whose_matrices_it_does_not_know(name, value):
    """A kind that is added to the configuration must not be scored by a part of its matrices."""
    whole = model("transformer-xl")
    object.__setattr__(whole.config, name, value)
    with pytest.raises(UsageError, match=f"magnitude must be told which matrices belong to .* '{value}'"):
        score("magnitude", whole)


@pytest.mark.parametrize("kind", MODELS)
def test_confidence_is_the_mean_of_the_largest_weights(kind):
    whole = model(kind)
    memory, largest = None, [[], []]
    for ids, targets in zip(*streams(LONG, 16, 5), strict=True):
        _, memory, cache = whole.loss(ids, targets, memory)
        for layer in range(2):
            a = cache.attention_blocks[layer].attention.a  # (B, H, T, S + N)
            largest[layer].append([[max(row) for row in a[:, h].reshape(-1, a.shape[-1])] for h in range(3)])
    for found, expected in zip(score("confidence", whole), largest, strict=True):
        assert_allclose(found, np.mean(expected, (0, 2)), rtol=1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_michel_is_the_mean_size_of_the_gates_slopes(kind):
    """Differences of each segment's loss, for a gate just below 1 and at 1 − h; at 1 it would sit on the clip."""
    whole, h = model(kind), 2e-5
    gate = GateConfig(hard=False, output_scaling=False, gamma=-0.5, zeta=1.5)

    def with_gate(layer: int, head: int, value: float) -> Transformer:
        log_alpha = np.full((2, 3), 20.0)
        # This solves 2 · sigmoid(log_alpha) − ½ = value.
        log_alpha[layer, head] = math.log((value + 0.5) / (1.5 - value))
        params = whole.params | {f"layers.{i}.log_alpha": log_alpha[i] for i in range(2)}
        return Transformer(whole.config, params, gate)

    ids, targets = streams(SHORT, 1, 5)
    slopes = np.zeros((2, 3))
    for layer, head in itertools.product(range(2), range(3)):
        low, high = with_gate(layer, head, 1 - h), with_gate(layer, head, 1 - 1e-12)
        memory, differences = None, []
        for x, y in zip(ids, targets, strict=True):
            # both read the memory of the model with all its heads
            below, _, _ = low.loss(x, y, memory)
            loss, memory, _ = high.loss(x, y, memory)
            differences.append(abs((loss - below) / h))
        slopes[layer, head] = np.mean(differences)
    expected = slopes / np.sqrt((slopes**2).sum(1, keepdims=True))
    assert_allclose(np.array(score("michel", whole, SHORT)), expected, rtol=2e-3)
    unnormalised = michel_global(whole, SHORT, np.random.default_rng(0))
    assert_allclose(np.array(unnormalised), slopes, rtol=2e-3)


@pytest.mark.parametrize("kind", MODELS)
def test_output_difference_is_the_layers_output_with_and_without_the_head(kind):
    """The first layer's input does not depend on the heads, so both outputs come from the model itself.

    A network is asked for both on the input that it has with all heads.
    """
    whole = model(kind)
    ids = streams(LONG, 16, 5)[0]
    norms = np.zeros((3, len(ids)))
    for head in range(3):
        both = (whole, without(whole, 0, head))
        memories = [None, None]
        for s, x in enumerate(ids):
            outputs = []
            for j, m in enumerate(both):
                _, memories[j], cache = m.forward(x, memories[j])
                o, Wo = cache.attention_blocks[0].attention.o, m.params["layers.0.Wo"]
                outputs.append(o.reshape(*o.shape[:2], -1) @ Wo)
                if kind == "head networks" and j == 0:
                    units = cache.second_blocks[0].inside.r.reshape(*x.shape, 3, 6)[..., head, :]
                    outputs[0] += units @ whole.params["layers.0.net.pv"][head]
            norms[head, s] = np.sqrt(((outputs[0] - outputs[1]) ** 2).sum(-1)).mean()
    assert_allclose(score("output-difference", whole)[0], norms.mean(1), rtol=1e-9)


THREE = {"L": 3, "M": 0, "mask": "causal", "F": 8, "U": 2}  # layers of three heads and four blocks of two units


def plain_llama(whole: Transformer, ids: np.ndarray, without: tuple[int, ...] = ()) -> tuple[list, list, list]:
    """Compute a Llama by its formulas for a text (T,): streams between layers (T, D), each o (T, H, Dh) and h (T, F).

    Layers of `without` are left out.
    """
    c, p, T = whole.config, whole.params, len(ids)
    streams, outputs, units = [p["embedding"][ids]], [], []
    angles = np.outer(np.arange(T), c.rope_base ** (-np.arange(0, c.Dh, 2) / c.Dh))[:, None]

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + c.norm_eps) * scale

    def turned(x: np.ndarray) -> np.ndarray:
        a, b = np.split(x, 2, -1)
        return np.concatenate([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)], -1)

    for i in (i for i in range(c.L) if i not in without):
        own = {name[9:]: x for name, x in p.items() if name.startswith(f"layers.{i}.")}
        n = norm(streams[-1], own["ln.scale"])
        q, k, v = ((n @ own[W]).reshape(T, -1, c.Dh) for W in ("Wq", "Wk", "Wv"))
        q, k = turned(q), turned(k)
        o = np.zeros_like(q)
        for h, t in itertools.product(range(c.H), range(T)):
            a = np.exp(k[: t + 1, 0] @ q[t, h] / math.sqrt(c.Dh))  # all heads read one key-value head
            o[t, h] = a @ v[: t + 1, 0] / a.sum()
        y = streams[-1] + o.reshape(T, -1) @ own["Wo"]
        n = norm(y, own["ffn.ln.scale"])
        g = n @ own["ffn.Wg"]
        units.append(g / (1 + np.exp(-g)) * (n @ own["ffn.W1"]))
        outputs.append(o)
        streams.append(y + units[-1] @ own["ffn.W2"])
    return streams, outputs, units


def test_activations_are_lengths_of_outputs_and_sums_of_sizes_of_units():
    whole = model("llama", **THREE)
    rows = [plain_llama(whole, ids) for ids in streams(LONG, 16, 5)[0].reshape(-1, 5)]
    o, h = (np.array([row[j] for row in rows]) for j in (1, 2))  # (rows, L, T, …)
    lengths, sizes = np.sqrt((o**2).sum(-1)), np.abs(h).reshape(-1, 3, 5, 4, 2).sum(-1)
    found = score("activations", whole)
    assert_allclose(found[:3], lengths.mean((0, 2)), rtol=1e-9)
    assert_allclose(found[3:], sizes.mean((0, 2)), rtol=1e-9)


@pytest.mark.parametrize("kind", ["all-attention", "head networks", "transformer-xl"])
def test_activations_of_a_head_count_its_network(kind):
    whole, memory, found = model(kind), None, []
    for ids in streams(LONG, 16, 5)[0]:
        _, memory, cache = whole.forward(ids, memory)
        squares = (cache.attention_blocks[1].attention.o ** 2).sum(-1)  # (B, T, H)
        if kind == "head networks":
            squares += (cache.second_blocks[1].inside.r.reshape(16, 5, 3, 6) ** 2).sum(-1)
        found.append(np.sqrt(squares).mean((0, 1)))
    assert_allclose(score("activations", whole)[1], np.mean(found, 0), rtol=1e-12)


def test_a_whole_layer_is_scored_by_how_far_it_turns_the_stream():
    whole, angles = model("llama", **THREE), []
    for ids in streams(LONG, 16, 5)[0].reshape(-1, 5):
        x = plain_llama(whole, ids)[0]
        angles += [[[a @ b / length(a) / length(b) for a, b in zip(*x[i : i + 2], strict=True)] for i in range(3)]]
    influence = 1 - np.mean(angles, (0, 2))
    expected = np.repeat([*influence, *influence], [3, 3, 3, 4, 4, 4])
    assert_allclose(np.concatenate(score("whole-layers", whole)), expected, rtol=1e-9)
    with pytest.raises(UsageError, match=r"choose\.units \(--units\) must be given for whole-layers"):
        score("whole-layers", model("llama"))


def test_layers_are_read_with_the_memory_of_the_segments_before():
    whole, memory, cosines = model(), None, []
    for ids in streams(LONG, 16, 5)[0]:
        _, memory, cache = whole.forward(ids, memory, recompute=True)
        x, y = (cache.inputs[i][0] for i in (0, 1))
        cosines.append((x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1)))
    assert_allclose(score("whole-layers", whole)[0], 1 - np.mean(cosines), rtol=1e-9)


def test_layers_that_turn_the_stream_least_go_whole_until_the_target_is_met():
    whole, ids = model("llama", **THREE), LONG[:5]
    scores = score("whole-layers", whole)
    order = np.argsort([own[0] for own in scores[:3]])
    for stay, less in itertools.product((1, 2, 3), (0, 1)):  # what suffices for these layers, and hardly less
        how = ChooseConfig(by="whole-layers", units=2, target_share=stay / 3 - 1e-4 * less, price="parameters")
        smaller = remove_closed_heads(open_best(whole, Recipe(how), scores))
        gone = order[: 3 - stay + less].tolist()
        left = [(0, 0) if i in gone else (3, 4) for i in range(3)]
        assert list(zip(smaller.config.heads, smaller.config.blocks, strict=True)) == left
        x = plain_llama(whole, ids, gone)[0][-1]
        h = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * whole.params["ln.scale"]
        assert_allclose(smaller.forward(ids[None])[0][0], h, rtol=1e-9, atol=1e-12)
    fewer = dataclasses.replace(how, target_share=None, target_heads=8)
    two = remove_closed_heads(open_best(whole, Recipe(fewer), scores))
    assert two.config.heads == tuple(3 * (i != order[0]) for i in range(3))
    again = score("whole-layers", two)  # a layer that is gone has no parts
    assert [own.size for own in again] == [*two.config.heads, *two.config.blocks]
    with pytest.raises(UsageError, match=r"choose\.heads must be true for whole-layers"):
        dataclasses.replace(how, heads=False)


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_the_compiled_core_scores_alike(name):
    whole = model()
    compiled = dataclasses.replace(whole, ops=get_backend("numba"))
    for a, b in zip(score(name, whole), score(name, compiled), strict=True):
        assert_allclose(b, a, rtol=1e-9, atol=1e-12)


SCORES = [np.array([3.0, 1.0, 2.0]), np.array([5.0, 0.0, 4.0])]


@pytest.mark.parametrize(
    ("scores", "scope", "expected"),
    [
        (SCORES, "global", "000 000, 000 100, 000 101, 100 101, 101 101, 111 101, 111 111"),
        (SCORES, "layer", "000 000, 100 000, 100 100, 101 100, 101 101, 111 101, 111 111"),
        # among equal scores the earlier layer and the lower head stay
        (ZEROS, "global", "000 000, 100 000, 110 000, 111 000, 111 100, 111 110, 111 111"),
    ],
)
def test_exactly_so_many_heads_stay_and_they_are_the_best(scores, scope, expected):
    for heads, mask in enumerate(expected.split(", ")):
        kept = keep_best(scores, heads, scope)
        assert " ".join("".join(str(int(stays)) for stays in layer) for layer in kept) == mask


@pytest.mark.parametrize(
    ("sizes", "heads", "expected"), [([8, 4], 6, [4, 2]), ([8, 0, 1], 3, [3, 0, 0]), ([3, 3, 3], 4, [2, 1, 1])]
)
def test_shares_of_layers_of_different_sizes(sizes, heads, expected):
    assert layer_shares(sizes, heads) == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: keep_best(ZEROS, 7), UsageError, "between 0 and the 6 there are, got 7"),
        (lambda: keep_best(ZEROS, -1), UsageError, "got -1"),
        (lambda: keep_best(ZEROS, 3, "both"), UsageError, "global, layer; got 'both'"),
        (lambda: keep_best([np.array([1.0, np.nan])], 1), ValueError, "got NaN"),
        (lambda: with_parts(model(), [ZEROS[0] == 0, np.ones(2, bool)]), ValueError, r"mask must have \(3, 3\) heads"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_what_a_mask_leaves_computes_what_it_did():
    """There is no output scaling: the layer's output is the sum of the heads that stay, unchanged."""
    whole = model()
    mask = [np.array([True, False, True]), np.array([False, False, True])]
    pruned = with_parts(whole, mask)
    _, _, cache = pruned.forward(streams(LONG, 16, 5)[0][0])
    assert [g.scale for g in cache.gates] == [1.0, 1.0]
    assert [open_layer.tolist() for open_layer in open_parts(pruned)] == [m.tolist() for m in mask]
    smaller = remove_closed_heads(pruned)
    assert_array_equal(smaller.params["layers.1.Wo"], whole.params["layers.1.Wo"][8:])

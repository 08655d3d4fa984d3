"""The model: memory, heads that are left out, gates, probabilities, and bad arguments."""

import math
import weakref

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from small import ADAPTIVE, MODELS, small_config, small_model

from tinyprune.config import GateConfig
from tinyprune.model.transformer import Released, Transformer, remember

V, D, H, T, M = 11, 12, 3, 5, 4  # of `small_config`


def build(kind="all-attention", gate=None, log_alpha=None, dtype=np.float64, **options) -> Transformer:
    """Make a small model; `log_alpha` has a row for each layer."""
    model = small_model(small_config(kind, **options), gate, dtype=dtype)
    for i, row in enumerate(log_alpha or []):
        model.params[f"layers.{i}.log_alpha"][...] = row
    return model


def hidden_states(model: Transformer, ids: np.ndarray, lengths: list[int]) -> np.ndarray:
    """Read a text in segments of these lengths, memory carried along."""
    parts, memory = [], None
    for segment in np.split(ids, np.cumsum(lengths)[:-1], axis=1):
        h, memory, _ = model.forward(segment, memory)
        parts.append(h)
    return np.concatenate(parts, 1)


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("kind", ["all-attention", "transformer-xl", "llama"])
def test_where_a_text_is_cut_into_segments_does_not_matter(kind, gated, rng):
    """Every query sees the M + 1 latest positions, whichever segment they came in."""
    gate = {"gate": GateConfig(hard=False), "log_alpha": [[0.4, -9, 1], [0.1, 0.2, -0.3]]} if gated else {}
    model = build(kind, **gate)
    ids = rng.integers(0, V, (2, 13))
    expected = hidden_states(model, ids, [5, 5, 3])
    for lengths in ([1, 4, 3, 5], [3, 1, 1, 1, 5, 2], [1] * 13):
        assert_allclose(hidden_states(model, ids, lengths), expected, rtol=1e-12, atol=1e-12)


def test_memory_holds_the_latest_layer_inputs_and_nobody_modifies_it(rng):
    model = build()
    ids = rng.integers(0, V, (2, 7))
    embedded = model.params["embedding"][ids] * math.sqrt(D)
    memory = None
    for start, end, kept in ((0, 2, 2), (2, 3, 3), (3, 6, M), (6, 7, M)):
        _, memory, _ = model.forward(ids[:, start:end], memory)
        assert len(memory) == model.config.L and all(m.shape == (2, kept, D) for m in memory)
        assert_allclose(memory[0], embedded[:, end - kept : end], rtol=1e-14)
    before = [m.copy() for m in memory]
    _, new, cache = model.loss(ids[:, :T], ids[:, :T], memory)
    new_before = [m.copy() for m in new]
    grads, kept = model.backward(1.0, cache), weakref.ref(cache.softmax[1][0])
    again = model.backward(1.0, cache, once=True)
    assert all(np.array_equal(again[name], grad) for name, grad in grads.items())
    assert kept() is None  # the gradient of the logits
    now = [*memory, *new]
    assert all(np.array_equal(m, b) for m, b in zip(now, before + new_before, strict=True))


def test_memory_that_is_released_is_freed_before_backward_and_no_number_changes(rng):
    model = small_model(small_config(T=4, M=3))
    ids = rng.integers(0, model.config.V, (2, 4))
    _, memory, _ = model.forward(ids)
    memory = [m.copy() for m in memory]
    expected, new, cache = model.loss(ids, ids, list(memory))
    grads = model.backward(1.0, cache)
    freed = [weakref.ref(m) for m in memory]
    given, memory, cache = Released(memory), None, None
    loss, after, cache = model.loss(ids, ids, given)
    assert loss == expected and given == [] and not any(m() is not None for m in freed)
    found = *after, *model.backward(1.0, cache).values()
    for got, want in zip(found, [*new, *grads.values()], strict=True):
        assert_array_equal(got, want)


@pytest.mark.parametrize("length", [2, 4, 6])
def test_remember_returns_a_view_of_plain_numbers(length):
    """It is a view of the segment alone if that is long enough, so that nothing else is kept alive."""
    x = np.arange(length * 2.0).reshape(1, length, 2) + 1e-20j
    context = np.concatenate([-1 - np.arange(6.0).reshape(1, 3, 2), x], 1)
    kept = remember(x, context, 4)
    assert kept.dtype == np.float64 and np.shares_memory(kept, x if length >= 4 else context)
    assert_array_equal(kept, context[:, -4:].real)


@pytest.mark.parametrize("kind", MODELS)
def test_what_a_model_without_memory_returns_can_be_given_back(kind, rng):
    model = build(kind, M=0)
    ids = rng.integers(0, V, (2, T))
    h, memory, _ = model.forward(ids)
    assert memory == []
    assert_array_equal(model.forward(ids, memory)[0], h)


@pytest.mark.parametrize("scaling", [True, False])
@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_evaluation_leaves_closed_heads_out_and_nothing_changes(kind, hard, scaling, rng):
    """One layer has two closed heads, one has only closed ones, one has none."""
    closed = [[-9, 3, -9], [-9, -9, -9], [3, 0.2, 3]]
    model = build(kind, GateConfig(hard=hard, output_scaling=scaling), closed, L=3)
    ids = rng.integers(0, V, (2, T))
    h, _, cache = model.forward(ids)
    assert [gates.active.tolist() for gates in cache.gates] == [[1], [], [0, 1, 2]]
    assert [block.attention.o.shape[2] for block in cache.attention_blocks] == [1, 0, 3]
    assert [gates.scale for gates in cache.gates] == ([3.0, 3.0, 1.0] if scaling else [1.0, 1.0, 1.0])
    expected, _, cache = model.forward(ids, all_heads=True)
    assert [block.attention.o.shape[2] for block in cache.attention_blocks] == [3, 3, 3]
    assert_allclose(h, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", MODELS)
def test_layers_that_backward_computes_again_give_the_same_bits(kind, rng, monkeypatch):
    model, found = build(kind, GateConfig(hard=False)), []
    ids, *both = rng.integers(0, V, (3, 2, T))
    for much in (1 << 24, 0):
        monkeypatch.setattr("tinyprune.model.transformer.MUCH", much)
        loss, _, cache = model.loss(*both, model.forward(ids)[1], np.random.default_rng(4))
        assert (len(cache.inputs), len(cache.attention_blocks)) == ((0, 2) if much else (2, 0))
        found.append([loss, *model.backward(1.0, cache).values()])
    model = build(kind, dropout=0.1)
    assert all(map(np.array_equal, *found)) and not model.loss(*both)[2].inputs
    # In evaluation nothing is dropped, so that layers may be recomputed.
    assert len(model.forward(ids, recompute=True)[2].inputs) == 2
    with pytest.raises(ValueError, match="recompute must be False in training with dropout"):
        model.forward(ids, rng=np.random.default_rng(4), recompute=True)


def test_after_each_layer_its_caller_is_told_so(rng):
    model, calls = build(), []
    model.forward(rng.integers(0, V, (2, T)), after_layer=lambda: calls.append("layer"))
    assert calls == ["layer"] * model.config.L


@pytest.mark.parametrize("hard", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_training_leaves_clipped_heads_out_and_no_gradient_changes(kind, hard, rng):
    """Attention's own dropout is off: its mask would cover other weights when heads are missing."""
    log_alpha = [[-9, 0.3, -9], [-9, -9, -9], [3, 0, 0]]
    model = build(kind, GateConfig(hard=hard), log_alpha, L=3, dropout=0.1, dropout_embedding=0.1)
    ids, targets = rng.integers(0, V, (2, 2, T))
    results = []
    for all_heads in (False, True):
        loss, _, cache = model.loss(ids, targets, rng=np.random.default_rng(4), all_heads=all_heads)
        results.append((loss, model.backward(1.0, cache), [gates.active.size for gates in cache.gates]))
    (loss, grads, active), (all_loss, all_grads, all_active) = results
    assert active[:2] == [1, 0] and all_active == [3, 3, 3]
    assert loss == pytest.approx(all_loss, rel=1e-13) and list(grads) == list(all_grads)
    for name, expected in all_grads.items():  # of a closed head it may be zero
        assert np.linalg.norm(grads[name] - expected) < 1e-12 * (np.linalg.norm(expected) or 1), name


def test_a_gate_that_is_shut_in_this_pass_still_learns():
    """A straight-through gate between the clip and ½ shuts its head, but has a gradient."""
    model = build(gate=GateConfig(hard=True), log_alpha=[[-0.3] * H] * 2)
    ids = np.arange(T)[None]
    learning = 0
    for seed in range(20):
        _, _, cache = model.loss(ids, ids, rng=np.random.default_rng(seed))
        grads = model.backward(1.0, cache)
        insides = np.split(cache.gate[1], [H])
        for i, (gates, inside) in enumerate(zip(cache.gates, insides, strict=True)):
            shut = gates.values == 0
            assert_array_equal(grads[f"layers.{i}.log_alpha"] != 0, inside)
            assert_array_equal(np.isin(np.arange(H), gates.active), ~shut | inside)
            learning += (shut & inside).sum()
    assert learning > 0


def test_gates_are_noisy_in_training_and_fixed_in_evaluation():
    model = build(gate=GateConfig(hard=False), log_alpha=[[0.3] * H] * 2)
    one, two, other = (model.gates(np.random.default_rng(seed))[0].values for seed in (1, 1, 2))
    assert_array_equal(one, two)
    assert (one != other).any()
    for gates in model.gates():
        assert_allclose(gates.values, 1.2 / (1 + math.exp(-0.3)) - 0.1)
    assert build().gates() == [None, None]


@pytest.mark.parametrize(
    ("kind", "cutoffs"),
    [(kind, cutoffs) for kind in MODELS for cutoffs in ((), (4, 7)) if kind in ADAPTIVE or not cutoffs],
)
def test_probabilities_sum_to_1_and_agree_with_the_loss(kind, cutoffs, rng):
    model = build(kind, cutoffs=cutoffs, div_value=2)
    ids, targets = rng.integers(0, V, (2, 2, T))
    log_p = model.log_probabilities(model.forward(ids)[0])
    assert log_p.shape == (2, T, V)
    assert_allclose(np.exp(log_p).sum(-1), 1, rtol=1e-12)
    loss, _, _ = model.loss(ids, targets)
    assert loss == pytest.approx(-np.take_along_axis(log_p, targets[..., None], -1).mean(), rel=1e-13)


@pytest.mark.parametrize("kind", MODELS)
def test_the_past_matters_and_its_order_and_the_future_does_not(kind, rng):
    model = build(kind)
    ids = rng.integers(0, V, (2, T))
    h, _, _ = model.forward(ids)
    for t in range(T):
        changed = ids.copy()
        changed[:, t] = (changed[:, t] + 1) % V
        new, _, _ = model.forward(changed)
        assert_array_equal(new[:, :t], h[:, :t])
        assert (new[:, t:] != h[:, t:]).any(-1).all()
    one, other = model.forward(np.array([[2, 3, 7], [3, 2, 7]]))[0][:, -1]
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("kind", MODELS)
def test_work_is_done_in_the_type_of_the_parameters(kind, rng):
    ids, targets = rng.integers(0, V, (2, 2, T))
    log_alpha = [[0.2, -9, 1], [0.1, -0.1, 0.3]]
    dropout = {"dropout": 0.1, "dropout_attention": 0.1}
    results = {}
    for dtype in (np.float32, np.float64):
        model = build(kind, GateConfig(), log_alpha, dtype, **dropout)
        loss, memory, cache = model.loss(ids, targets, rng=np.random.default_rng(3))
        grads = model.backward(1.0, cache)
        assert loss.dtype == dtype and all(m.dtype == dtype for m in memory)
        assert list(grads) == list(model.params)
        for name, x in model.params.items():
            assert grads[name].dtype == dtype and grads[name].shape == x.shape, name
        results[dtype] = loss
    assert results[np.float32] == pytest.approx(results[np.float64], rel=1e-5)


@pytest.mark.parametrize("cutoffs", [(), (4, 7)], ids=["plain", "adaptive"])
@pytest.mark.parametrize("place", ["dropout", "dropout_attention", "dropout_embedding"])
def test_each_dropout_needs_a_generator_and_repeats_with_it(place, cutoffs, rng):
    model = build(cutoffs=cutoffs, div_value=2, **{place: 0.4})
    ids = rng.integers(0, V, (2, T))
    evaluated = model.forward(ids)[0]
    assert_array_equal(evaluated, build(cutoffs=cutoffs, div_value=2).forward(ids)[0])
    one, two, other = (model.forward(ids, rng=np.random.default_rng(seed))[0] for seed in (1, 1, 2))
    assert_array_equal(one, two)
    assert (one != other).any() and (one != evaluated).any()


def test_parameters_that_are_not_those_of_the_configuration():
    model = build()
    without = {name: x for name, x in model.params.items() if name != "R"}
    for params, name in (
        (without, "R"),
        (model.params | {"extra": np.zeros(2)}, "extra"),
        (model.params | {"layers.1.u": np.zeros((2, 4))}, "layers.1.u"),
        (model.params | {"layers.0.log_alpha": np.zeros(H)}, "layers.0.log_alpha"),
    ):
        with pytest.raises(ValueError, match=rf"params\['{name}'\] (must have shape|is not a parameter)"):
            Transformer(model.config, params)
    with pytest.raises(ValueError, match="log_alpha"):
        Transformer(model.config, model.params, GateConfig())


@pytest.mark.parametrize("shapes", [[(2, 3, D)], [(1, 3, D)] * 2, [(2, M + 1, D)] * 2, [(2, 3, D + 1)] * 2])
def test_memory_that_is_not_of_this_model_and_batch(shapes):
    with pytest.raises(ValueError, match=rf"memory must be 2 arrays of \(2, up to {M}, {D}\)"):
        build().forward(np.zeros((2, T), int), [np.zeros(shape) for shape in shapes])


def test_ids_that_are_too_long_or_out_of_range():
    model = build()
    with pytest.raises(ValueError, match=rf"ids must have at most T = 5 positions, got \(2, {T + 1}\)"):
        model.forward(np.zeros((2, T + 1), int))
    for bad in (-1, V):
        with pytest.raises(ValueError, match="ids must lie in 0 … 10"):
            model.forward(np.full((1, 2), bad))
    with pytest.raises(ValueError, match="must lie in 0 … 10"):
        model.loss(np.zeros((1, 2), int), np.full((1, 2), V))


def test_without_persistent_vectors_it_is_one_how_they_would_be_read():
    ids = np.arange(10).reshape(2, 5)
    models = (small_model(small_config(N=0, persistent=way)) for way in ("softmax", "stream"))
    one, other = (model.loss(ids, ids)[0] for model in models)
    assert one == other

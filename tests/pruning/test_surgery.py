"""Removal: the small model is the gated model, in every logit; what goes is what the counting says."""

import itertools

import numpy as np
import pytest
from small import read, small_config, small_model

from tinyprune.config import KINDS, GateConfig
from tinyprune.model.counting import count_multiply_adds, count_parameters, head_part
from tinyprune.model.parameters import layer_parameters, parameter_shapes
from tinyprune.model.transformer import Transformer
from tinyprune.pruning.gates import add_gates
from tinyprune.pruning.surgery import remove_closed_heads

# All 64 ways to close heads of 2 layers of 3: whole layers and all layers are among them.
MASKS = [np.reshape(mask, (2, 3)) for mask in itertools.product([True, False], repeat=6)]
# (float type, largest allowed difference in units of the largest logit)
FLOATS = [(np.float32, 1e-5), (np.float64, 1e-12)]


def logits(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """(B, n, V); log p, which are as good, for the adaptive softmax."""
    h = read(model, ids)
    if model.config.cutoffs:
        return model.log_probabilities(h)
    return h @ model.params["embedding"].T + model.params["out_bias"]


def largest_change(model: Transformer, smaller: Transformer, ids: np.ndarray) -> float:
    """Of a logit, in units of the largest."""
    before, after = logits(model, ids), logits(smaller, ids)
    return np.abs(after - before).max() / np.abs(before).max()


def text(model: Transformer) -> np.ndarray:
    """Several segments, the last a short one; for the kind without memory all the same."""
    return np.random.default_rng(5).integers(0, model.config.V, (2, 3 * model.config.T + 2))


# The same logits.


@pytest.mark.parametrize(("dtype", "allowed"), FLOATS, ids=["float32", "float64"])
@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_logit_changes_whichever_heads_are_closed(kind, hard, dtype, allowed):
    for number, opened in enumerate(MASKS):
        model = small_model(small_config(kind), GateConfig(hard=hard), opened, dtype, seed=number)
        smaller = remove_closed_heads(model)
        assert smaller.gate is None and all(x.dtype == dtype for x in smaller.params.values())
        assert smaller.config.head_ids == tuple(tuple(np.flatnonzero(layer).tolist()) for layer in opened)
        assert largest_change(model, smaller, text(model)) <= allowed, opened


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize(
    "options",
    [{"output_scaling": False}, {"mask": "causal", "M": 8}, {"M": 0}, {"cutoffs": (4, 7), "div_value": 2}],
    ids=["no output scaling", "causal with memory", "no memory", "adaptive softmax"],
)
def test_no_logit_changes_with_other_settings(options, hard):
    gate = GateConfig(hard=hard, output_scaling=options.get("output_scaling", True))
    config = small_config(**{name: value for name, value in options.items() if name != "output_scaling"})
    for number in range(0, 64, 7):
        model = small_model(config, gate, MASKS[number], seed=number)
        assert largest_change(model, remove_closed_heads(model), text(model)) <= 1e-12


def test_soft_gates_are_really_in_between():
    values = np.concatenate([gates.values for gates in small_model(small_config(), GateConfig(hard=False)).gates()])
    assert (values > 0).all() and (values < 1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_head_removed_does_change_the_logits(kind):
    """What the test above would see if the wrong head went."""
    model = small_model(small_config(kind), GateConfig(), MASKS[1])
    wrong = small_model(small_config(kind), GateConfig(), MASKS[2])
    assert largest_change(model, remove_closed_heads(wrong), text(model)) > 1e-2


@pytest.mark.parametrize(
    ("hard", "without"), [(True, "scale"), (False, "scale"), (False, "gate")], ids=["hard c", "soft c", "soft gate"]
)
def test_without_folding_the_logits_do_change(hard, without):
    opened = np.array([[True, True, False], [True, False, False]])
    model = small_model(small_config(), GateConfig(hard=hard), opened)
    smaller = remove_closed_heads(model)
    gates = model.gates()[0]
    forgotten = gates.scale if without == "scale" else np.repeat(gates.values[:2], model.config.Dh)[:, None]
    smaller.params["layers.0.Wo"] /= forgotten
    assert largest_change(model, smaller, text(model)) > 1e-2


# Layers without heads.


def test_a_model_without_any_heads_is_embeddings_and_biases(rng):
    """What is left of a layer is x + bo."""
    model = small_model(small_config(), GateConfig(), np.zeros((2, 3), bool))
    smaller = remove_closed_heads(model)
    assert smaller.config.heads == (0, 0) and smaller.config.head_ids == ((), ())
    ids = rng.integers(0, 11, (2, 4))
    p = smaller.params
    x = p["embedding"][ids] * np.sqrt(12) + p["layers.0.bo"] + p["layers.1.bo"]
    expected, _ = smaller.ops.layernorm_forward(x, p["ln.scale"], p["ln.bias"])
    np.testing.assert_allclose(smaller.forward(ids)[0], expected, rtol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_left_goes_on_learning(kind, rng):
    """A layer without heads, then one with two."""
    opened = np.array([[False, False, False], [True, False, True]])
    smaller = remove_closed_heads(small_model(small_config(kind), GateConfig(), opened))
    ids, targets = rng.integers(0, 11, (2, 2, 5))
    loss, _, cache = smaller.loss(ids, targets, rng=rng)
    grads = smaller.backward(1.0, cache)
    assert {name: g.shape for name, g in grads.items()} == parameter_shapes(smaller.config)
    for name, g in grads.items():
        smaller.params[name] -= 1e-3 * g
    assert smaller.loss(ids, targets)[0] < loss


# What is removed, and what is not.


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_and_multiply_adds_fall_by_exactly_what_the_heads_own(kind):
    config = small_config(kind)
    head = head_part(config)
    for opened in MASKS:
        smaller = remove_closed_heads(small_model(config, GateConfig(), opened))
        removed = int((~opened).sum())
        assert count_parameters(smaller.config) == count_parameters(config) - removed * head.parameters
        assert count_parameters(smaller.config) == sum(x.size for x in smaller.params.values())
        assert count_multiply_adds(smaller.config) == (
            count_multiply_adds(config) - removed * head.multiply_adds_per_token
        )


@pytest.mark.parametrize("kind", KINDS)
def test_what_stays_is_what_was_there(kind):
    """Hard gates without output scaling multiply nothing, so every number can be found again."""
    opened = np.array([[True, False, True], [False, True, False]])
    model = small_model(small_config(kind), GateConfig(output_scaling=False), opened)
    smaller = remove_closed_heads(model)
    assert list(smaller.params) == [name for name in model.params if not name.endswith("log_alpha")]
    before, after = layer_parameters(model.params, 0), layer_parameters(smaller.params, 0)
    for name in ("Wq", "Wk", "Wv", "Wr"):
        if name in before:
            np.testing.assert_array_equal(after[name], before[name][:, [0, 1, 2, 3, 8, 9, 10, 11]])
    np.testing.assert_array_equal(after["Wo"], before["Wo"][[0, 1, 2, 3, 8, 9, 10, 11]])
    for name in ("u", "w", "pk", "pv"):
        if name in before:
            np.testing.assert_array_equal(after[name], before[name][[0, 2]])
    untouched = [name for name in after if name.startswith(("ln.", "ffn.", "bo"))]
    untouched += [f"{name}" for name in smaller.params if not name.startswith("layers.")]
    for name in untouched:
        full = name if name in smaller.params else f"layers.0.{name}"
        np.testing.assert_array_equal(smaller.params[full], model.params[full])


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("opened", [MASKS[0], MASKS[21]], ids=["all open", "some closed"])
def test_the_original_stays_as_it_is(opened, hard):
    model = small_model(small_config(), GateConfig(hard=hard), opened)
    before = {name: x.copy() for name, x in model.params.items()}
    config = model.config
    smaller = remove_closed_heads(model)
    for name, x in smaller.params.items():
        assert not any(np.shares_memory(x, other) for other in model.params.values()), name
        x[...] = np.nan
    assert model.config == config and model.gate is not None
    assert list(model.params) == list(before)
    assert all(np.array_equal(model.params[name], x) for name, x in before.items())


def test_head_numbers_are_kept_over_two_rounds():
    """Removed in two rounds or in one: the same heads with their original numbers, and the same logits."""
    first = np.array([[True, False, True], [True, True, True]])
    both = np.array([[False, False, True], [True, False, True]])
    gate = GateConfig()
    model = small_model(small_config(), gate, first)
    once = remove_closed_heads(model)
    assert once.config.heads == (2, 3) and once.config.head_ids == ((0, 2), (0, 1, 2))

    again = Transformer(once.config, add_gates(once.params, once.config.heads, gate), gate)
    again.params["layers.0.log_alpha"][0] = -1
    again.params["layers.1.log_alpha"][1] = -1
    twice = remove_closed_heads(again)
    assert twice.config.heads == (1, 2) and twice.config.head_ids == ((2,), (0, 2))
    assert largest_change(again, twice, text(model)) <= 1e-12
    # 3/2 in the first round and 2/1 in the second are the 3/1 of both together.
    assert largest_change(twice, remove_closed_heads(small_model(small_config(), gate, both)), text(model)) <= 1e-12


def test_a_model_without_gates_cannot_say_which_heads_are_closed():
    with pytest.raises(ValueError, match="model must have gates"):
        remove_closed_heads(small_model(small_config()))

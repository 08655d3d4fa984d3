"""Removal: the smaller model has every logit of the gated one, and loses just what the counting says."""

import itertools

import numpy as np
import pytest
from small import MODELS, read, small_config, small_model

from tinyprune.config import GateConfig
from tinyprune.method.gates import add_gates
from tinyprune.method.remove import remove_closed_heads
from tinyprune.model.counting import count_multiply_adds, count_parameters, head_part
from tinyprune.model.parameters import parameter_shapes
from tinyprune.model.transformer import Transformer

# All 64 ways to close heads of 2 layers of 3: whole layers and all layers are among them.
MASKS = [np.reshape(mask, (2, 3)) for mask in itertools.product([True, False], repeat=6)]


def logits(model: Transformer, ids: np.ndarray) -> np.ndarray:
    """Compute logits (B, n, V), or log p for the adaptive softmax."""
    h = read(model, ids)
    if model.config.cutoffs:
        return model.log_probabilities(h)
    return h @ model.params["embedding"].T + model.params.get("out_bias", 0)


def largest_change(model: Transformer, smaller: Transformer) -> float:
    """Return the largest change of a logit, in units of the largest logit, over segments of which the last is short."""
    ids = np.random.default_rng(5).integers(0, model.config.V, (2, 2 * model.config.T + 2))
    before, after = logits(model, ids), logits(smaller, ids)
    return np.abs(after - before).max() / np.abs(before).max()


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize("kind", MODELS)
def test_no_logit_changes_and_the_counts_fall_by_what_the_heads_own(kind, hard):
    config = small_config(kind)
    head = head_part(config)
    for number, opened in enumerate(MASKS):
        model = small_model(config, GateConfig(hard=hard), opened, seed=number)
        values = np.concatenate([gates.values for gates in model.gates()])[opened.ravel()]
        assert hard or ((values > 0) & (values < 1)).all()
        smaller = remove_closed_heads(model)
        assert largest_change(model, smaller) <= 1e-12, opened
        assert smaller.gate is None
        assert list(smaller.params) == [name for name in model.params if not name.endswith("log_alpha")]
        assert smaller.config.head_ids == tuple(tuple(np.flatnonzero(layer).tolist()) for layer in opened)
        left, removed = smaller.config, int((~opened).sum())
        # the one key-value head of a layer goes with its last head
        shared = 2 * 12 * 4 * int((~opened).all(1).sum()) if kind == "llama" else 0
        assert count_parameters(left) == count_parameters(config) - removed * head.parameters - shared
        fewer = removed * head.multiply_adds_per_token + shared
        assert count_multiply_adds(left) == count_multiply_adds(config) - fewer


OTHERS = [({}, {"output_scaling": False}, np.float64), ({"mask": "causal", "M": 8}, {}, np.float64)]
OTHERS += [({"M": 0}, {}, np.float64), ({"cutoffs": (4, 7), "div_value": 2}, {}, np.float64)]
OTHERS += [({"kind": "transformer"}, {}, np.float32), ({"kind": "transformer-xl"}, {}, np.float32)]
OTHERS += [({"kind": "all-attention"}, {}, np.float32)]
OTHERS += [({"kind": "llama", "kv_heads": 0, "bias": "layers", "tied": False}, {}, np.float64)]


@pytest.mark.parametrize("hard", [True, False], ids=["hard", "soft"])
@pytest.mark.parametrize(("options", "gate", "dtype"), OTHERS, ids=str)
def test_no_logit_changes_with_other_settings(options, gate, dtype, hard):
    for number in range(0, 64, 7):
        config = small_config(**options)
        model = small_model(config, GateConfig(**gate, hard=hard), MASKS[number], dtype, seed=number)
        smaller = remove_closed_heads(model)
        assert all(x.dtype == dtype for x in smaller.params.values())
        assert largest_change(model, smaller) <= (1e-5 if dtype is np.float32 else 1e-12)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_left_goes_on_learning(kind, rng):
    """Its first layer has no heads, its second has two."""
    opened = np.array([[False, False, False], [True, False, True]])
    smaller = remove_closed_heads(small_model(small_config(kind), GateConfig(), opened))
    ids, targets = rng.integers(0, 11, (2, 2, 5))
    loss, _, cache = smaller.loss(ids, targets, rng=rng)
    grads = smaller.backward(1.0, cache)
    assert {name: g.shape for name, g in grads.items()} == parameter_shapes(smaller.config)
    for name, g in grads.items():
        smaller.params[name] -= 1e-3 * g
    assert smaller.loss(ids, targets)[0] < loss


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
    """Removing heads in two rounds or in one leaves the same numbers and the same logits."""
    first = np.array([[True, False, True], [True, True, True]])
    both = np.array([[False, False, True], [True, False, True]])
    gate = GateConfig()
    model = small_model(small_config(), gate, first)
    once = remove_closed_heads(model)
    assert once.config.heads == (2, 3) and once.config.head_ids == ((0, 2), (0, 1, 2))

    again = Transformer(once.config, add_gates(once.params, once.config, gate), gate)
    again.params["layers.0.log_alpha"][0] = -1
    again.params["layers.1.log_alpha"][1] = -1
    twice = remove_closed_heads(again)
    assert twice.config.heads == (1, 2) and twice.config.head_ids == ((2,), (0, 2))
    assert largest_change(again, twice) <= 1e-12
    # 3/2 in the first round and 2/1 in the second are the 3/1 of both together.
    assert largest_change(twice, remove_closed_heads(small_model(small_config(), gate, both))) <= 1e-12


def test_a_model_without_gates_is_refused():
    with pytest.raises(ValueError, match="model must have gates"):
        remove_closed_heads(small_model(small_config()))

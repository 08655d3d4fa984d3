"""Positions are an option of their own: learned or relative, each with the kinds that usually have the other."""

import numpy as np
import pytest
from small import small_config, small_model

from tinyprune.config import KINDS, USUAL, GateConfig, ModelConfig, RunConfig, read_config, to_toml
from tinyprune.errors import UsageError
from tinyprune.gradcheck import assert_gradients
from tinyprune.model.parameters import parameter_shapes
from tinyprune.model.transformer import Transformer

LEARNED, RELATIVE = ({"positions": positions, "M": 0, "mask": "causal"} for positions in ("learned", "relative"))
UNUSUAL = {"all-attention": LEARNED, "transformer-xl": LEARNED, "transformer": RELATIVE}
UNUSUAL |= {"gpt2": {"positions": "rotary"}, "llama": RELATIVE | {"bias": "layers", "tied": False}}


def unusual_config(kind: str, **options) -> ModelConfig:
    return small_config(kind, **UNUSUAL[kind] | options)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_complex_step(kind, rng):
    config, gate = unusual_config(kind, dropout=0.1, dropout_attention=0.2), GateConfig(hard=False)
    params = small_model(config, gate).params
    ids, targets = rng.integers(0, 11, (2, 2, 5))

    def forward(*arrays):
        model = Transformer(config, dict(zip(params, arrays, strict=True)), gate)
        loss, _, cache = model.loss(ids, targets, rng=np.random.default_rng(4))
        return loss, (model, cache)

    def backward(dout, cache):
        return tuple(cache[0].backward(dout, cache[1]).values())

    assert_gradients(forward, backward, *params.values(), argument_names=list(params), directions=2)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_matter_and_are_what_they_are_called(kind):
    """A model with learned positions has one vector a place; one with relative positions has R, Wr, u and w."""
    model = small_model(unusual_config(kind))
    relative = {"R"} | {f"layers.{i}.{name}" for i in range(2) for name in ("Wr", "u", "w")}
    expected = {"relative": relative, "learned": {"positions"}, "rotary": set()}[model.config.positions]
    assert (relative | {"positions"}) & model.params.keys() == expected
    for name in expected & {"R", "positions"}:
        assert parameter_shapes(model.config)[name] == (5, 12)
    one, other = model.forward(np.array([[2, 3, 7], [3, 2, 7]]))[0][:, -1]
    assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("kind", ["all-attention", "transformer-xl"])
def test_learned_positions_with_memory_are_refused(kind):
    with pytest.raises(UsageError, match=r'model\.M must be 0 for model\.positions = "learned".*got 3'):
        small_config(kind, positions="learned", M=3)


@pytest.mark.parametrize("kind", KINDS)
def test_files_mention_only_what_is_unusual(kind):
    """So files from before these options keep their bytes."""
    plain, named, other = (
        RunConfig(model=config)
        for config in (small_config(kind), small_config(kind, **USUAL[kind]), unusual_config(kind))
    )
    assert plain == named and not USUAL[kind].keys() & plain.to_dict()["model"].keys()
    written = other.to_dict()["model"]
    assert written.items() >= {name: UNUSUAL[kind][name] for name in ("positions", *UNUSUAL[kind])}.items()
    assert "norm" not in written
    for config in (plain, other):
        assert read_config(to_toml(config.to_dict()), "test") == config

"""Counting: compared with the arrays, with the keys that queries meet, and with the paper's model by hand."""

import dataclasses

import numpy as np
import pytest
from small import ADAPTIVE, MODELS, small_config
from test_positions import UNUSUAL

from tinyprune.config import load_preset
from tinyprune.model.counting import context_keys, count_multiply_adds, count_parameters, count_parts, head_part
from tinyprune.model.parameters import init_parameters
from tinyprune.model.transformer import Transformer


def size(config) -> int:
    return sum(x.size for x in init_parameters(config, np.random.default_rng(0)).values())


def fewer_heads(config, *head_ids):
    return dataclasses.replace(config, heads=tuple(map(len, head_ids)), head_ids=head_ids)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(kind, {}) for kind in MODELS]
    + [(kind, {"cutoffs": (4, 7), "div_value": 2}) for kind in ADAPTIVE]
    + [*UNUSUAL.items(), ("llama", {"kv_heads": 3, "bias": "layers"})],
)
def test_parameters_are_those_of_the_arrays(kind, options):
    config = small_config(kind, **options)
    assert count_parameters(config) == size(config)
    for head_ids in (((0, 1, 2), (1,)), ((), (0, 2)), ((), ())):
        pruned = fewer_heads(config, *head_ids)
        assert count_parameters(pruned) == size(pruned)


@pytest.mark.parametrize("kind", MODELS)
def test_the_parts_are_the_whole(kind):
    config = fewer_heads(small_config(kind), (0, 2), (1,))
    parts = count_parts(config)
    names = ["embedding and softmax", "positions"]
    for layer, heads in enumerate(config.heads):
        names += [f"layer {layer}: {heads} heads"]
        names += [f"layer {layer}: 1 key-value heads"] if kind == "llama" else []
        names += [f"layer {layer}: shared (norm, bo)"]
        names += [f"layer {layer}: feed-forward"] if config.F else []
    assert [part.part for part in parts] == [*names, "last norm"]
    assert count_multiply_adds(config) == sum(part.multiply_adds_per_token for part in parts)
    numbers = [(part.parameters, part.multiply_adds_per_token) for part in parts]
    assert all(type(n) is int for both in numbers for n in both)
    head, D, Dh, F = head_part(config), 12, 4, 7
    products = {"feed-forward": (3 if kind == "llama" else 2) * D * F, "1 key-value heads": 2 * D * Dh}
    products |= {f"{n} heads": n * head.multiply_adds_per_token for n in (1, 2)}
    for part in parts[1:]:
        assert part.multiply_adds_per_token == products.get(part.part.partition(": ")[2], 0)


@pytest.mark.parametrize("kind", MODELS)
def test_the_products_of_one_head(kind):
    """Those of its slices of the matrices; K keys cost scores, position scores and values."""
    D, Dh, N, T, M = 12, 4, 6, 5, 4
    relative = 3 * (M + 1) * Dh
    own = {
        "all-attention": relative + 2 * N * Dh,
        "head networks": relative + 2 * N * D,
        "transformer-xl": relative,
        "transformer": 2 * (T + 1) // 2 * Dh,
        "gpt2": 2 * (T + 1) // 2 * Dh,
        "llama": 2 * (M + 1) * Dh - 2 * D * Dh,  # Wk and Wv are shared
    }
    assert head_part(small_config(kind)).multiply_adds_per_token == 4 * D * Dh + own[kind]


@pytest.mark.parametrize(("mask", "T", "M"), [("same-length", 5, 4), ("same-length", 3, 7), ("causal", 6, 4)])
def test_context_keys_are_those_that_get_attention_once_memory_is_full(mask, T, M, rng):
    config = small_config(mask=mask, T=T, M=M)
    model = Transformer(config, init_parameters(config, rng))
    memory = None
    for _ in range(4):
        _, memory, cache = model.forward(rng.integers(0, 11, (1, T)), memory)
    weights = cache.attention_blocks[0].attention.a[..., : M + T]
    assert (weights > 0).sum(-1).mean() == context_keys(config)


def test_softmax_and_adaptive_softmax():
    """For most words the adaptive one computes only its head: the frequent words and a logit for each cluster."""
    assert count_parts(small_config())[0].multiply_adds_per_token == 11 * 12
    assert count_parts(small_config(cutoffs=(4, 7), div_value=2))[0].multiply_adds_per_token == (4 + 2) * 12


def test_the_paper_s_model_by_hand():
    """WikiText-103: L 16, D 512, H 8, Dh 64, N 2048, T = M = 192."""
    config = load_preset("paper-wt103").model
    head = head_part(config)
    assert head.parameters == 5 * 512 * 64 + 2 * 64 + 2 * 2048 * 64 == 426_112
    assert head.multiply_adds_per_token == 4 * 512 * 64 + 3 * 193 * 64 + 2 * 2048 * 64 == 430_272
    embedding, *rest = count_parts(config)
    tables = 20_000 * 512 + 20_000 * 128 + 160_000 * 32 + 67_735 * 8
    projections = (128 + 32 + 8) * 512
    assert embedding.parameters == tables + projections + 3 * 512 + 3 + 267_735
    layers = 16 * (8 * 426_112 + 2 * 512 + 512)
    assert sum(part.parameters for part in rest) == (192 + 192) * 512 + layers + 2 * 512


def test_the_vocabulary_must_be_known():
    with pytest.raises(ValueError, match=r"config\.V must be set to count a model, got 0"):
        count_parts(small_config(V=0))

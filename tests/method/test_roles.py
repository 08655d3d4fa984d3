"""What heads attend to: shares against a loop over queries and keys, names of hand-made patterns, and the command."""

import json

import numpy as np
import pytest
from command import refused, settings, succeed
from numpy.testing import assert_allclose
from small import MODELS, small_config, small_model

from tinyprune.config import GateConfig
from tinyprune.errors import NotFiniteError, UsageError
from tinyprune.method import roles as module
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.roles import KINDS, head_roles, repeated_tokens

TEXT = np.random.default_rng(3).integers(0, 11, 8 * 4 + 5)


def roomy(kind: str = "all-attention", **options):
    """A small configuration where most queries see three keys or more."""
    return small_config(kind, **{"T": 8} | ({} if kind in ("transformer", "gpt2") else {"M": 6}) | options)


def by_loop(model, segments: list, carry: bool) -> dict[str, np.ndarray]:
    """Follow the definitions for each query. Key j of a context is token `start + j` of all that was read."""
    span = model.config.M if model.config.mask == "same-length" else 10**9
    read, memory = [], None
    found = {kind: [] for kind in (*KINDS, "effective_keys")}
    for ids in segments:
        _, memory, cache = model.forward(ids[None], memory if carry else None)
        read += ids.tolist()
        # The shape is (L, H, T, S + N).
        layers = np.array([block.attention.a[0] for block in cache.attention_blocks])
        S = layers.shape[-1] - model.config.N * (model.config.persistent == "softmax")
        start = len(read) - S
        for query, a in enumerate(np.moveaxis(layers, 2, 0), len(read) - len(ids)):
            keys = [j for j in range(start, query + 1) if query - j <= span]
            if len(keys) < 3:
                continue
            weights = {j: a[..., j - start] for j in keys}
            found["previous"].append(weights[query - 1])
            found["first"].append(weights[min(keys)])
            found["itself"].append(weights[query])
            copied = [weights[j] for j in keys if j > start and read[j - 1] == read[query]]
            if copied:
                found["induction"].append(sum(copied))
            found["persistent"].append(a[..., S:].sum(-1))
            read_here = [*weights.values(), *np.moveaxis(a[..., S:], -1, 0)]
            found["effective_keys"].append(np.exp(sum(-w * np.log(w) for w in read_here)))
    return {kind: np.mean(values, 0) for kind, values in found.items()}


@pytest.mark.parametrize("options", [*({"kind": kind} for kind in MODELS), {"mask": "causal"}], ids=str)
def test_shares_are_those_of_a_loop_over_queries_and_keys(options):
    config = roomy(**options)
    model, segments = small_model(config), [TEXT[i : i + 8] for i in range(0, len(TEXT), 8)]
    roles, expected = head_roles(model, TEXT), by_loop(model, segments, carry=True)
    expected["induction"] = by_loop(model, repeated_tokens(TEXT, config), carry=False)["induction"]
    if not config.attended:
        assert not expected.pop("persistent").any() and np.isnan(roles.persistent).all()
    for kind, values in expected.items():
        assert_allclose(getattr(roles, kind), values, rtol=1e-9, atol=1e-15, err_msg=kind)
    assert (roles.effective_keys <= roles.keys).all()


def test_repeated_tokens_have_one_copy_as_far_away_as_can_be():
    for options, P in (({"T": 16}, 4), ({"T": 16, "mask": "causal"}, 8), ({"T": 64, "M": 64}, 11)):
        segments = repeated_tokens(TEXT, small_config(**options))
        assert all(len(set(ids)) == P and ids.tolist() == 2 * ids[:P].tolist() for ids in segments)
        assert len(np.concatenate(segments)) >= len(TEXT)
        assert len({tuple(ids) for ids in segments}) > 1


def test_hand_made_patterns_get_their_names(monkeypatch):
    """Of seven heads the first five read one kind of key each; the others everything, and three keys."""
    config = small_config(D=21, H=7, L=1, T=32, M=0, mask="causal")

    def made(model, segments, carry):
        for ids in segments:
            t = len(ids)
            a = np.zeros((7, t, t + config.N))
            for i in range(t):
                copied = [j for j in range(1, i + 1) if ids[j - 1] == ids[i]]
                targets = [[max(i - 1, 0)], [0], [i], copied or [*range(i + 1)], [*range(t, t + config.N)]]
                targets += [[*range(i + 1), *range(t, t + config.N)], sorted({max(i - 1, 0), 0, i})]
                for head, keys in enumerate(targets):
                    a[head, i, keys] = 1 / len(keys)
            yield ids, [(np.arange(7), a)]

    monkeypatch.setattr(module, "_attention_weights", made)
    text = np.random.default_rng(0).permutation(11)[np.arange(300) % 11]
    roles = head_roles(small_model(config), text)
    assert roles.names().tolist() == [[*KINDS.values(), "broad", "mixed"]]
    shares = np.array([getattr(roles, kind)[0] for kind in KINDS])
    assert_allclose(np.diag(shares), 1)
    assert_allclose(shares[:3, 6], 1 / 3)
    sink = roles._replace(first=np.full((1, 7), 0.9), induction=np.full((1, 7), 0.5))
    assert (sink.names() == "induction").all()
    assert roles._replace(first=sink.first).names()[0, 6] == "first token"
    assert_allclose(roles.effective_keys[0, [0, 1, 2, 4, 5, 6]], [1, 1, 1, 6, roles.keys, 3])


@pytest.mark.parametrize("kind", MODELS)
def test_closed_and_removed_heads_are_left_out_and_the_others_keep_their_numbers(kind):
    opened = np.array([[False, True, False], [True, False, True]])
    gated = small_model(roomy(kind), GateConfig(), opened)
    closed, removed = head_roles(gated, TEXT), head_roles(remove_closed_heads(gated), TEXT)
    assert ((closed.names() != "") == opened).all()
    for a, b in zip(closed, removed, strict=True):
        assert_allclose(a, b, rtol=1e-9)
    assert [(r["layer"], r["head"]) for r in removed.records()] == [(0, 1), (1, 0), (1, 2)]
    closed = small_model(gated.config, GateConfig(), opened & False)
    nothing = head_roles(remove_closed_heads(closed), TEXT)
    assert nothing.records() == [] and np.isnan(nothing.previous).all()


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(UsageError, match="no token sees three keys: take a longer text"):
        head_roles(small_model(roomy()), TEXT[:2])
    broken = small_model(roomy())
    broken.params["layers.1.Wq"][0, 0] = np.nan
    with pytest.raises(NotFiniteError, match="attention weights"):
        head_roles(broken, TEXT)


def test_the_command(finished, tmp_path):
    records = json.loads(succeed("heads", finished, "--json", "--plot", tmp_path / "heads.svg").stdout)
    drawn = (tmp_path / "heads.svg").read_text("utf-8")
    assert len(records) == 3 and "<!-- finished, stage finetune, on book.txt -->" in drawn
    assert list(records[0]) == ["layer", "head", *KINDS, "effective_keys", "mostly"]
    table = succeed("heads", finished, "--stage=train", "--split=test").stdout.splitlines()
    assert table[0].split() == ["layer", "head", *KINDS, "effective", "keys", "mostly"]
    assert len(table) == 2 + 4
    assert "--tokens must be at least 3, got 2" in refused(2, "heads", finished, "--tokens=2")
    succeed("gate", tmp_path / "run", "--from", finished / "train.safetensors", *settings(), "--target-heads=0")
    assert "has no open heads" in refused(2, "heads", tmp_path / "run")

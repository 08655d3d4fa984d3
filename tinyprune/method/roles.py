"""The roles of heads: what each head attends to. (Voita et al. 2019, §5; Clark et al. 2019, §3)

Query i has weights a_ij, which sum to 1 over its context keys j and, where a softmax reads them, persistent vectors. A
head's *share* of a kind of key is the mean over queries of the weights on

    previous     the token just before:         j = i − 1
    first        the first token that it sees:  j = 0; with the same-length mask the j at the largest distance
    itself       the present token:             j = i
    induction    what came after an earlier copy of the present token:  all j ≤ i with id[j − 1] = id[i]
    persistent   the persistent vectors together

and its spread is the effective number of keys, the mean of exp(−Σ_j a_ij ln a_ij): 1 for a single key, n for n alike.
Queries that see fewer than three keys are left out, because there the first key is the previous or the present one.

All of these are measured on a text, but induction on random tokens that come twice (Olsson et al. 2022): most tokens
of a text have copies nearby, so that a head that reads all keys alike already has a share of 0.1. Each random token has
one copy, far away.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.errors import NotFiniteError, UsageError
from tinyprune.io.progress import progress_bar
from tinyprune.model.transformer import Memory, Transformer
from tinyprune.ops.attention import attention_backward, attention_forward, visible_keys
from tinyprune.ops.engine import Engine

# A head is named after the largest share if that is half of its attention or more, as Clark et al. name BERT's heads;
# otherwise it is broad if its effective keys are at least half of the keys that it sees.
HALF = 0.5
# The kinds of keys, as attributes of `HeadRoles`, and what a head is called that mostly reads them.
KINDS = {
    "previous": "previous token",
    "first": "first token",
    "itself": "itself",
    "induction": "induction",
    "persistent": "persistent",
}


class HeadRoles(NamedTuple):
    """What heads attend to. All arrays are (L, H), by original number; NaN where a head was removed or is closed."""

    previous: NDArray[np.float64]  # shares, 0 … 1, see above
    first: NDArray[np.float64]
    itself: NDArray[np.float64]
    induction: NDArray[np.float64]
    persistent: NDArray[np.float64]  # NaN throughout if no softmax reads persistent vectors
    effective_keys: NDArray[np.float64]  # 1 … keys
    keys: float  # how many keys a query sees on average, persistent ones included

    def names(self) -> NDArray[np.str_]:
        """Return what each head mostly does, (L, H); "" for heads that are not there.

        It is "induction" if that share is at least 1/2, since such heads may well rest on other keys while a text has
        nothing to copy; else the kind with the largest share if that is at least 1/2; else "broad" if its effective
        keys are at least 1/2 of the keys that it sees; else "mixed".
        """
        shares = np.nan_to_num([getattr(self, kind) for kind in KINDS])
        largest = np.array(list(KINDS.values()))[shares.argmax(0)]
        gone, broad = np.isnan(self.effective_keys), self.effective_keys >= HALF * self.keys
        rules = [gone, self.induction >= HALF, shares.max(0) >= HALF, broad]
        return np.select(rules, ["", "induction", largest, "broad"], "mixed")

    def records(self) -> list[dict[str, Any]]:
        """Return a record for each head that is there: its layer, number, shares, effective keys and name."""
        names = self.names()
        records = []
        for layer, head in np.argwhere(names != "").tolist():
            shares = {kind: float(getattr(self, kind)[layer, head]) for kind in KINDS}
            record: dict[str, Any] = {"layer": layer, "head": head}
            for kind, share in shares.items():
                record[kind] = None if np.isnan(share) else round(share, 3)
            record |= {"effective_keys": round(float(self.effective_keys[layer, head]), 2)}
            records.append(record | {"mostly": str(names[layer, head])})
        return records


def head_roles(model: Transformer, tokens: NDArray) -> HeadRoles:
    """Measure what the heads of a model attend to.

    The text is read once, segment after segment with memory, by the textbook's attention, since compiled kernels never
    store the attention weights; only one segment's, L·H·T·(S + N) numbers, are in memory at a time.

    Args:
        model: of any kind, evaluated without noise; closed heads are left out.
        tokens: the text, (n,) integers; with 8,000 instead of 2,000 the shares of `tiny` change by 0.03 at most.

    Raises:
        UsageError: if no token sees three keys, because the text, T or the memory is too short.
        NotFiniteError: if attention weights are not finite.
    """
    config, tokens = model.config, np.asarray(tokens, np.int64)
    textbook = storing_weights(model)
    segments = [tokens[start : start + config.T] for start in range(0, len(tokens), config.T)]
    with np.errstate(over="ignore", invalid="ignore"):  # `_measure` checks what comes out
        measured, keys = _measure(config, _attention_weights(textbook, segments, carry=True))
        twice = repeated_tokens(tokens, config)
        repeated, _ = _measure(config, _attention_weights(textbook, twice, carry=False))
    measured["induction"] = repeated["induction"]
    if not config.attended:
        measured["persistent"][...] = np.nan
    return HeadRoles(**measured, keys=keys)


def storing_weights(model: Transformer) -> Transformer:
    """Return a model whose cache has the attention weights: with the textbook's attention, and its own products."""
    if model.ops.on_device:
        return dataclasses.replace(model, params=model.host_params(), ops=Engine())
    own = {
        "attention_forward": staticmethod(attention_forward),
        "attention_backward": staticmethod(attention_backward),
    }
    return dataclasses.replace(model, ops=type("StoringWeights", (type(model.ops),), own)())


def repeated_tokens(tokens: NDArray, config: ModelConfig) -> list[NDArray]:
    """Return the segments by which induction is measured: P different tokens in random order, and the same again.

    The tokens are those of the text, so that the model knows them. In the second half the key after the copy is at
    distance P − 1, as far away as T and the same-length mask allow.
    """
    different, rng = np.unique(tokens), np.random.default_rng(0)
    P = min(config.T // 2, config.T if config.span is None else config.span, len(different))
    return [np.tile(rng.permutation(different)[:P], 2) for _ in range(len(tokens) // max(2 * P, 1) + 1)]


def _attention_weights(
    model: Transformer, segments: list[NDArray], carry: bool
) -> Iterator[tuple[NDArray, list[tuple[NDArray, NDArray]]]]:
    """Read segments, with memory of those before if `carry`.

    Yields:
        ids: of the segment, (t,).
        layers: for each the original numbers of the heads that it computes, (h,), and their weights (h, t, S + N).
    """
    memory: Memory | None = None
    for ids in progress_bar(segments, desc="heads", unit="segment", leave=False):
        _, memory, cache = model.forward(ids[None], memory if carry else None)
        weights = [block.attention.a[0] for block in cache.attention_blocks]
        layers = []
        for numbers, gates, a in zip(model.config.head_ids, cache.gates, weights, strict=False):
            computed = np.array(numbers, int)
            if gates is not None:
                computed = computed[gates.active]
            layers.append((computed, a))
        yield ids, layers
        del cache, weights, layers, a  # before the next segment needs as much; so does `_measure`


def _measure(config: ModelConfig, reading: Iterator) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Return shares and effective keys, (L, H) each, and the mean number of keys that a query sees.

    The share of induction is the mean over the queries that see the key after a copy in their segment; 0 if none does.
    """
    sums = {name: np.zeros((config.L, config.H)) for name in (*KINDS, "effective_keys")}
    there = np.zeros((config.L, config.H), bool)
    queries = copies = keys = 0
    for ids, layers in reading:
        t, S = len(ids), layers[0][1].shape[-1] - config.attended
        visible = visible_keys(t, S, config.span)
        seen = visible.sum(1)  # a query sees the tokens at distances 0 … seen − 1
        counted = seen >= 3
        distance = np.arange(t)[:, None] + (S - t) - np.arange(S)
        after_copy = np.zeros_like(visible)
        after_copy[:, S - t + 1 :] = ids[:, None] == ids[:-1]  # induction is measured without memory: S = t
        chosen = {
            "previous": distance == 1,
            "first": distance == seen[:, None] - 1,
            "itself": distance == 0,
            "induction": after_copy & visible,
        }
        chosen = {kind: keys_of & counted[:, None] for kind, keys_of in chosen.items()}
        queries += int(counted.sum())
        copies += chosen["induction"].any(1).sum()
        keys += int((seen[counted] + config.attended).sum())
        for i, (numbers, a) in enumerate(layers):
            there[i, numbers] = True
            for kind, keys_of in chosen.items():
                sums[kind][i, numbers] += a[..., :S][:, keys_of].sum(1, dtype=np.float64)
            a = a[:, counted]
            sums["persistent"][i, numbers] += a[..., S:].sum((1, 2), dtype=np.float64)
            entropy = -(a * np.log(np.where(a > 0, a, 1))).sum(-1, dtype=np.float64)
            sums["effective_keys"][i, numbers] += np.exp(entropy).sum(1)
        del layers, a
    if not queries:
        raise UsageError(
            f"no token sees three keys: take a longer text, and a model with T (here {config.T}) of 4 or more and no "
            f"same-length mask of less than 2 (here {config.span})"
        )
    if not all(np.isfinite(total).all() for total in sums.values()):
        raise NotFiniteError("attention weights of this model are not finite")
    counted_by = dict.fromkeys(sums, queries) | {"induction": max(copies, 1)}
    means = {name: np.where(there, total / counted_by[name], np.nan) for name, total in sums.items()}
    return means, float(keys / queries)

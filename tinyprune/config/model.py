"""What a Transformer is: the table [model], and the defaults of each kind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from tinyprune.config.base import LARGEST, Config, newer, newer_number, number, option, size

# The defaults of each kind, for options that are not given.
PAPER = {
    "positions": "relative",
    "norm": "layernorm",
    "feedforward": "relu",
    "bias": "output",
    "embedding": "scaled",
}
GPT2 = PAPER | {"positions": "learned", "feedforward": "gelu", "bias": "layers", "embedding": "plain"}
LLAMA = GPT2 | {"positions": "rotary", "norm": "rmsnorm", "feedforward": "swiglu", "bias": "none"}
USUAL: dict[str, dict[str, str]] = {
    "all-attention": PAPER,
    "transformer-xl": PAPER,
    "transformer": PAPER | {"positions": "learned"},
    "gpt2": GPT2,
    "llama": LLAMA,
}
KINDS = tuple(USUAL)
# The values that an adaptive softmax, with `model.cutoffs`, needs.
CLUSTERED = {"bias": "output", "tied": True, "embedding": "scaled"}


@dataclass(frozen=True)
class ModelConfig(Config):
    """The sizes and the kind that define a Transformer language model.

    `heads` holds how many heads each layer has *now*, `head_ids` which of the original 0 … H−1 they
    are. Both default to all H heads in each layer; removal shrinks them and leaves H, and hence
    Dh = D / H, unchanged (`head_width` is another Dh). So do `blocks` and `block_ids` for the F / U
    blocks of units of a feed-forward block, where U is set.
    """

    TABLE: ClassVar[str] = "model"

    kind: str = option("all-attention", "which architecture", choices=KINDS)
    V: int = number(0, "vocabulary size; 0: taken from the tokenizer", high=LARGEST)
    L: int = option(4, "layers", low=1, high=1000)
    D: int = size(128, "model width")
    H: int = size(8, "heads in each layer before any removal")
    head_width: int = newer_number(0, "width of a head; 0: D / H")
    kv_heads: int = newer_number(0, "key-value heads, each shared by H / kv_heads queries; 0: all H")
    N: int = number(256, "persistent vectors of each head (all-attention)", high=LARGEST)
    persistent: str = newer(
        "softmax",
        "how a head reads them: in one softmax with its context, or from the stream",
        choices=("softmax", "stream"),
    )
    init_gain: float = newer(1.0, "factor on the range of the layers' initial matrices", low=1e-3, high=1e3)
    F: int = number(0, "width of the feed-forward block (the other kinds)", high=LARGEST)
    U: int = newer_number(0, "units in a block of the feed-forward block that can be removed; 0: none")
    T: int = size(128, "queries in a segment")
    M: int = number(128, "memory length: layer inputs kept from before the segment", high=LARGEST)
    positions: str | None = option(
        None,
        "position encoding; not given: what is usual for the kind",
        choices=("relative", "learned", "rotary"),
    )
    rope_base: float = newer(10000.0, "rotary positions: base of their wavelengths", low=1.0)
    rope_scaling: tuple[float, ...] = newer(
        (),
        "rotary positions of Llama 3.1: factor, low and high frequency factor, original positions",
        low=1e-6,
    )
    norm: str | None = newer(None, "normalisation before blocks; not given: as usual", choices=("layernorm", "rmsnorm"))
    head_norms: bool = newer(False, "whether the queries and keys of each head are normalised, too (Qwen3)")
    norm_eps: float = newer(1e-5, "added to the variance or the mean square", low=1e-12, high=1.0)
    feedforward: str | None = newer(
        None,
        "function of the feed-forward block; not given: as usual",
        choices=("relu", "gelu", "swiglu"),
    )
    bias: str | None = newer(
        None,
        "which products have a bias: those that end a block or the model, all those of the layers, "
        "those of queries, keys and values, or none; not given: as usual",
        choices=("output", "layers", "qkv", "none"),
    )
    embedding: str | None = newer(
        None,
        "how token vectors enter, times √D or as they are; not given: as usual",
        choices=("scaled", "plain"),
    )
    tied: bool = newer(True, "whether the softmax shares the embedding's table")
    mask: str = option("same-length", "which context is seen", choices=("same-length", "causal"))
    heads: tuple[int, ...] = number((), "heads in each layer now")
    head_ids: tuple[tuple[int, ...], ...] = option((), "original numbers of these heads, by layer")
    blocks: tuple[int, ...] = newer((), "blocks of U units in each layer now")
    block_ids: tuple[tuple[int, ...], ...] = newer((), "original numbers of these blocks, by layer")
    cutoffs: tuple[int, ...] = option((), "adaptive softmax: where clusters of rarer words begin", low=1)
    div_value: int = option(4, "adaptive softmax: how much narrower than the last a cluster is", low=1)
    dropout: float = number(0.0, "on the outputs of attention and feed-forward", high=0.95)
    dropout_attention: float = number(0.0, "on the attention weights", high=0.95)
    dropout_embedding: float = number(0.0, "on whole words of the vocabulary", high=0.95)

    def _complete(self) -> None:
        usual: dict[str, Any] = dict(USUAL[self.kind])
        usual["heads"] = (self.H,) * self.L
        usual["head_ids"] = tuple(tuple(range(count)) for count in self.heads or usual["heads"])
        if self.U:
            usual["blocks"] = (self.F // self.U,) * self.L
            usual["block_ids"] = tuple(tuple(range(b)) for b in self.blocks or usual["blocks"])
        for name, value in usual.items():
            if getattr(self, name) in (None, ()):
                object.__setattr__(self, name, value)

    def _check(self) -> None:
        if not self.head_width and self.D % self.H:
            raise self._error(f"D must be a multiple of model.H = {self.H}, got {self.D}")
        self._check_parts("heads", "head_ids", self.H, f"H = {self.H}")
        self._check_blocks()
        for name, needed, where in self._needed():
            if getattr(self, name) != needed:
                given = json.dumps(getattr(self, name))
                raise self._error(f"{name} must be {json.dumps(needed)} {where}; got {given}")
        if self.kind != "all-attention" and not self.F:
            raise self._error(f"F must be at least 1 for {self.kind}, got 0")
        if self.kv_heads and self.H % self.kv_heads:
            raise self._error(f"kv_heads must divide model.H = {self.H}, got {self.kv_heads}")
        if not self.biased_outputs and self.F and self.feedforward == "relu":
            where = 'for model.feedforward = "relu", whose block has biases'
            raise self._error(f'bias must not be "{self.bias}" {where}')
        self._check_rotary()
        self._check_cutoffs()

    def _check_blocks(self) -> None:
        if not self.U:
            if self.blocks or self.block_ids:
                raise self._error(f"blocks must be empty without model.U, got {self.blocks}")
            return
        if self.F % self.U:
            raise self._error(f"U must divide model.F = {self.F}, got {self.U}")
        total = self.F // self.U
        self._check_parts("blocks", "block_ids", total, f"F / U = {total}")

    def _check_parts(self, name: str, ids_name: str, total: int, limit: str) -> None:
        """Check counts and original numbers, which lie below `total`, of heads or of blocks."""
        counts, lists, L = getattr(self, name), getattr(self, ids_name), self.L
        if (len(counts), len(lists)) != (L, L):
            got = f"{len(counts)} and {len(lists)}"
            raise self._error(f"{name} and model.{ids_name} must have L = {L} entries, got {got}")
        for i, (count, ids) in enumerate(zip(counts, lists, strict=True)):
            rising = list(ids) == sorted(set(ids) & set(range(total)))
            if len(ids) != count or not rising:
                needed = f"{count} rising numbers below {limit}"
                raise self._error(f"{ids_name}[{i}] must be {needed}, got {list(ids)}")

    def _needed(self) -> Iterator[tuple[str, Any, str]]:
        """Yield the options that allow one value only: the name, the value, and where that is so."""
        kind = self.kind
        if kind == "all-attention":
            yield "F", 0, f"for {kind}, which has no feed-forward block"
            yield "feedforward", "relu", "where there is no feed-forward block"
        else:
            yield "N", 0, f"for {kind}, which has no persistent vectors"
            yield "persistent", "softmax", f"for {kind}, which has no persistent vectors"
        if kind == "transformer":
            yield "M", 0, f"for {kind}, which has no memory"
        if self.positions == "learned":
            yield "M", 0, 'for model.positions = "learned", which allow no memory'
        if kind in ("transformer", "gpt2"):
            yield "mask", "causal", f"for {kind}"
        if self.cutoffs:
            for name, value in CLUSTERED.items():
                yield name, value, "with model.cutoffs"

    def _check_rotary(self) -> None:
        if len(self.rope_scaling) not in (0, 4):
            got = len(self.rope_scaling)
            raise self._error(f"rope_scaling must have four numbers or none, got {got}")
        if self.positions != "rotary":
            return
        if self.Dh % 2:
            raise self._error(f'positions = "rotary" needs an even head width, got {self.Dh}')
        if self.attended:
            raise self._error(
                'positions = "rotary" turns queries, which persistent vectors would read: '
                'model.persistent must be "stream" or model.N 0; '
                f'got "{self.persistent}" and {self.N}'
            )

    def _check_cutoffs(self) -> None:
        V, D, cutoffs = self.V, self.D, list(self.cutoffs)
        if cutoffs != sorted(set(cutoffs)):
            raise self._error(f"cutoffs must rise, got {cutoffs}")
        if cutoffs and V and cutoffs[-1] >= V:
            raise self._error(f"cutoffs must lie below V = {V}, got {cutoffs}")
        # widths are D, D / div_value, D / div_value² …
        if cutoffs and self.div_value ** len(cutoffs) > D:
            cluster = f"cluster {len(cutoffs)} at D = {D}"
            raise self._error(f"div_value = {self.div_value} leaves no width for {cluster}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; those of heads and blocks only after a removal, as sizes determine them."""
        values = super().to_dict()
        for name, usual in USUAL[self.kind].items():
            if values[name] == usual:
                del values[name]
        if self.head_ids == (tuple(range(self.H)),) * self.L:
            del values["heads"], values["head_ids"]
        if self.block_ids == (tuple(range(self.F // max(self.U, 1))),) * self.L:
            del values["blocks"], values["block_ids"]
        return values

    @property
    def Dh(self) -> int:
        """Return the width of one head."""
        return self.head_width or self.D // self.H

    @property
    def relative(self) -> bool:
        """Return whether heads have scores for distances (R, Wr, u, w)."""
        return self.positions == "relative"

    def kv_ids(self, layer: int) -> tuple[int, ...]:
        """Return the original numbers of the key-value heads that a layer still reads, rising."""
        K = self.kv_heads or self.H
        return tuple(sorted({h * K // self.H for h in self.head_ids[layer]}))

    def groups(self, layer: int) -> tuple[int, ...] | None:
        """Return the place in `kv_ids` of the key-value head of each head of a layer.

        It is None if each head has its own.
        """
        if not self.kv_heads or self.kv_heads == self.H:
            return None
        present = self.kv_ids(layer)
        return tuple(present.index(h * self.kv_heads // self.H) for h in self.head_ids[layer])

    @property
    def networks(self) -> bool:
        """Return whether each head has a feed-forward network (`ops.head_networks`)."""
        return self.persistent == "stream" and self.N > 0

    @property
    def second(self) -> str | None:
        """Return what a layer's second block is, a key of `model.blocks.FEEDFORWARD`, or None."""
        if self.networks:
            return "networks"
        return self.feedforward if self.F else None

    @property
    def biased_projections(self) -> bool:
        """Return whether queries, keys and values have biases."""
        return self.bias in ("layers", "qkv")

    @property
    def biased_outputs(self) -> bool:
        """Return whether the last products of blocks, and all of feed-forward blocks, have biases."""
        return self.bias in ("output", "layers")

    @property
    def rotary(self) -> float | tuple[float, ...] | None:
        """Return the base of the rotary positions, after their scaling if any; None without them."""
        if self.positions != "rotary":
            return None
        return (*self.rope_scaling, self.rope_base) if self.rope_scaling else self.rope_base

    def width(self, layer: int) -> int:
        """Return the width of a layer's feed-forward block now."""
        return self.blocks[layer] * self.U if self.U else self.F

    @property
    def attended(self) -> int:
        """Return how many persistent vectors a head attends to, beside its context."""
        return self.N if self.persistent == "softmax" else 0

    @property
    def span(self) -> int | None:
        """Return the largest distance that a query sees; None (no limit) with the causal mask."""
        return self.M if self.mask == "same-length" else None

    @property
    def heads_total(self) -> int:
        """Return the number of heads in all layers before any removal."""
        return self.L * self.H


def of_kind(model: ModelConfig, kind: str) -> dict[str, Any]:
    """Return the options that another kind changes.

    A feed-forward block gets as many parameters as what it replaces: N persistent keys and values of
    all heads have 2·N·D, the nets of H heads with N units 2·H·N·D, and a feed-forward block of width F
    has 2·D·F, with SwiGLU 3·D·F.
    """
    width = model.H * model.N if model.networks else model.N or model.F
    if model.F and model.feedforward == "swiglu":
        width = width * 3 // 2
    changes: dict[str, Any] = {"N": 0, "F": width}
    if kind == "all-attention":
        changes = {"N": width, "F": 0}
    if kind == "llama":
        changes["F"] = max(1, width * 2 // 3)
    causal = {"M": 0, "mask": "causal"} if kind in ("transformer", "gpt2", "llama") else {}
    return changes | {"persistent": "softmax"} | causal

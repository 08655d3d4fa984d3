"""Configuration: the settings of a run as validated dataclasses, read from and written to TOML.

A run's file has one table for each dataclass:

    [model]       ModelConfig     sizes and kind of the Transformer
    [data]        DataConfig      the text and how it is split
    [train]       TrainConfig     stage 1: the baseline
    [choose]      ChooseConfig    stage 2: which parts stay
    [gate]        GateConfig      stage 2: the gates and their loss, if gates choose
    [gate_train]  TrainConfig     stage 2: the training of gates, and of weights with them
    [repair]      RepairConfig    stage 3: what is fitted when the other parts are removed
    [heal]        TrainConfig     stage 4: the training of what stays

and two lines before them: `seed`, and `texts`, which stages 2 to 4 read.

Sizes are named by the letters of the papers: V vocabulary, L layers, D model width, H heads, Dh = D/H head width,
N persistent vectors a head, F feed-forward width, T queries in a segment, M memory length, B batch.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Self

from tinyprune.errors import UsageError, nearest

# The limit of every size: far above what fits into memory, far below NumPy's largest integer.
LARGEST = 10_000_000
# The defaults of each kind, for options that are not given.
PAPER = {"positions": "relative", "norm": "layernorm", "feedforward": "relu", "bias": "output", "embedding": "scaled"}
GPT2 = {"positions": "learned", "norm": "layernorm", "feedforward": "gelu", "bias": "layers", "embedding": "plain"}
LLAMA = {"positions": "rotary", "norm": "rmsnorm", "feedforward": "swiglu", "bias": "none", "embedding": "plain"}
USUAL: dict[str, dict[str, str]] = {
    "all-attention": PAPER,
    "transformer-xl": PAPER,
    "transformer": PAPER | {"positions": "learned"},
    "gpt2": GPT2,
    "llama": LLAMA,
}
KINDS = tuple(USUAL)
# The criteria that score heads and blocks of units, and those of heads alone, see `method.criteria`.
CRITERIA = "random", "magnitude", "michel", "michel-global", "leave-one-out", "output-difference", "fluctuation"
OF_HEADS = ("confidence",)
# The table of each stage that trains.
STAGE_TABLES = {"train": "train", "gate": "gate_train", "finetune": "heal"}
BLOCK_TYPES = "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"  # of llama.cpp: 32 weights with a scale, _1: and an offset
OPTIMIZERS = "adamw", "lamb", "scales", "scales-offsets"
# What version 0.2 had and this one has not, by table: options with their defaults, which the keys of stored cells still
# hold, and choices of options that stay. Files that ask for no more than these defaults are read.
RETIRED: dict[str, dict[str, Any]] = {"gate": {"objective": "task", "layerwise_weight": 1.0, "tau": 0.5}}
RETIRED_CHOICES = (("gate", "distribution", "top-k"),)
# What it called otherwise. Its table [finetune] is [heal].
RENAMED = {
    "gate.criterion": "choose.by",
    "gate.criterion_tokens": "choose.tokens",
    "gate.target_heads": "choose.target_heads",
    "gate.target_share": "choose.target_share",
    "gate.price": "choose.price",
    "gate.units": "choose.units",
    "gate.heads": "choose.heads",
    "gate.repair_tokens": "repair.tokens",
    "gate.repair_type": "repair.type",
    "gate.repair_corpus": "texts",
}
# The values that an adaptive softmax, with `model.cutoffs`, needs.
CLUSTERED = {"bias": "output", "tied": True, "embedding": "scaled"}


def option(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple = (),
    later: bool = False,
) -> Any:
    """Define a field with its meaning and its allowed values: `low <= value <= high`, or one of `choices`."""
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices, "later": later})


# An option that is newer than the first checkpoints. Files leave it out where it has its default, as old ones do.
newer = functools.partial(option, later=True)


def _check_type(key: str, value: Any, hint: Any) -> Any:
    """Return `value`, converted where TOML is looser than Python (3 for 3.0, list for tuple), or raise UsageError."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _check_type(key, value, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UsageError(f"{key} must be a list, got {value!r}")
        return tuple(_check_type(f"{key}[{i}]", item, arguments[0]) for i, item in enumerate(value))
    if hint is float and type(value) is int:
        return float(value)
    if hint is str and isinstance(value, Path):
        return str(value)
    if type(value) is not hint:
        raise UsageError(f"{key} must be of type {hint.__name__}, got {value!r}")
    return value


class Config:
    """The base of all tables: it checks types and ranges on construction and refuses unknown keys."""

    TABLE: typing.ClassVar[str] = ""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for f in dataclasses.fields(self):
            key = f"{self.TABLE}.{f.name}"
            value = _check_type(key, getattr(self, f.name), hints[f.name])
            object.__setattr__(self, f.name, value)
            low, high, choices = (f.metadata.get(k) for k in ("low", "high", "choices"))
            if choices and value is not None and value not in choices:
                hint = nearest(str(value), choices)
                raise UsageError(f"{key} must be one of {', '.join(choices)}; got {value!r}{hint}")
            for number in value if isinstance(value, tuple) else (value,):
                if not isinstance(number, int | float):
                    continue
                if not math.isfinite(number):
                    raise UsageError(f"{key} must be a finite number, got {number}")
                if low is not None and number < low:
                    raise UsageError(f"{key} must be at least {low}, got {number}")
                if high is not None and number > high:
                    raise UsageError(f"{key} must be at most {high}, got {number}")
        self._complete()
        for broken, message in self._rules():
            if broken:
                raise UsageError(f"{self.TABLE}.{message}")

    def _complete(self) -> None:
        """Set what is not given and follows from other values."""

    def _rules(self) -> Iterable[tuple[object, str]]:
        """Yield each rule between several values: whether it is broken, and the message, which follows "TABLE."."""
        return ()

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Build from a parsed TOML table. Raises UsageError for an unknown key, naming the allowed ones.

        What is `RETIRED` is left out, or refused where that would change what is done.
        """
        known, retired = [f.name for f in dataclasses.fields(cls)], RETIRED.get(cls.TABLE, {})
        for key, value in values.items():
            # numbers that are retired had no effect but beside the strings that are refused
            other = key in retired and isinstance(value, str) and value != retired[key]
            if other or (cls.TABLE, key, value) in RETIRED_CHOICES:
                raise UsageError(
                    f"{cls.TABLE}.{key} = {json.dumps(value)} is gone; the last version that has it is 0.2"
                )
            if key not in known and key not in retired:
                hint = f"; allowed are {', '.join(known)}{nearest(key, known)}"
                raise UsageError(f"unknown key {cls.TABLE}.{key}{hint}")
        return cls(**{key: value for key, value in values.items() if key not in retired})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values without None, and without newer options that have their default."""
        newer = {f.name: f.default for f in dataclasses.fields(self) if f.metadata["later"]}
        given = dataclasses.asdict(self).items()
        return {k: v for k, v in given if v is not None and (k not in newer or v != newer[k])}


@dataclass(frozen=True)
class ModelConfig(Config):
    """The sizes and the kind that define a Transformer language model.

    `heads` holds how many heads each layer has *now*, `head_ids` which of the original 0 … H−1 they are. Both default
    to all H heads in each layer; removal shrinks them and leaves H, and hence Dh = D / H, unchanged (`head_width` is
    another Dh). So do `blocks` and `block_ids` for the F / U blocks of units of a feed-forward block, where U is set.
    """

    TABLE: typing.ClassVar[str] = "model"

    kind: str = option("all-attention", "which architecture", choices=KINDS)
    V: int = option(0, "vocabulary size; 0: taken from the tokenizer", low=0, high=LARGEST)
    L: int = option(4, "layers", low=1, high=1000)
    D: int = option(128, "model width", low=1, high=LARGEST)
    H: int = option(8, "heads in each layer before any removal", low=1, high=LARGEST)
    head_width: int = newer(0, "width of a head; 0: D / H", low=0)
    kv_heads: int = newer(0, "key-value heads, each of which H / kv_heads queries share; 0: all H", low=0)
    N: int = option(256, "persistent vectors of each head (all-attention)", low=0, high=LARGEST)
    persistent: str = newer(
        "softmax",
        "how a head reads them: in one softmax with its context, or from the stream",
        choices=("softmax", "stream"),
    )
    init_gain: float = newer(1.0, "factor on the range from which the layers' matrices are drawn", low=1e-3, high=1e3)
    F: int = option(0, "width of the feed-forward block (the other kinds)", low=0, high=LARGEST)
    U: int = newer(0, "units in a part of the feed-forward block that is removed as heads are; 0: it has none", low=0)
    T: int = option(128, "queries in a segment", low=1, high=LARGEST)
    M: int = option(128, "memory length: layer inputs kept from before the segment", low=0, high=LARGEST)
    positions: str | None = option(
        None, "position encoding; not given: what is usual for the kind", choices=("relative", "learned", "rotary")
    )
    rope_base: float = newer(10000.0, "rotary positions: base of their wavelengths", low=1.0)
    rope_scaling: tuple[float, ...] = newer(
        (), "rotary positions, as Llama 3.1: factor, low and high frequency factor, original positions", low=1e-6
    )
    norm: str | None = newer(
        None, "normalisation before each block; not given: as usual", choices=("layernorm", "rmsnorm")
    )
    norm_eps: float = newer(1e-5, "added to the variance or the mean square", low=1e-12, high=1.0)
    feedforward: str | None = newer(
        None, "function of the feed-forward block; not given: as usual", choices=("relu", "gelu", "swiglu")
    )
    bias: str | None = newer(
        None,
        "which products have a bias: those that end a block or the model, all those of the layers, those of queries, "
        "keys and values, or none; not given: as usual",
        choices=("output", "layers", "qkv", "none"),
    )
    embedding: str | None = newer(
        None, "how token vectors enter, times √D or as they are; not given: as usual", choices=("scaled", "plain")
    )
    tied: bool = newer(True, "whether the softmax shares the embedding's table; otherwise it has another")
    mask: str = option("same-length", "which context a query sees", choices=("same-length", "causal"))
    heads: tuple[int, ...] = option((), "heads in each layer now", low=0)
    head_ids: tuple[tuple[int, ...], ...] = option((), "original numbers of these heads, a list for each layer")
    blocks: tuple[int, ...] = newer((), "blocks of U units in each layer now", low=0)
    block_ids: tuple[tuple[int, ...], ...] = newer((), "original numbers of these blocks, a list for each layer")
    cutoffs: tuple[int, ...] = option((), "adaptive softmax: where the clusters of rarer words begin", low=1)
    div_value: int = option(4, "adaptive softmax: each cluster is this many times narrower than the last", low=1)
    dropout: float = option(0.0, "on the outputs of attention and feed-forward", low=0.0, high=0.95)
    dropout_attention: float = option(0.0, "on the attention weights", low=0.0, high=0.95)
    dropout_embedding: float = option(0.0, "on whole words of the vocabulary", low=0.0, high=0.95)

    def _complete(self) -> None:
        for name, usual in USUAL[self.kind].items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, usual)
        if not self.heads:
            object.__setattr__(self, "heads", (self.H,) * self.L)
        if not self.head_ids:
            object.__setattr__(self, "head_ids", tuple(tuple(range(h)) for h in self.heads))
        if self.U and not self.blocks:
            object.__setattr__(self, "blocks", (self.F // self.U,) * self.L)
        if self.U and not self.block_ids:
            object.__setattr__(self, "block_ids", tuple(tuple(range(b)) for b in self.blocks))

    def _rules(self) -> Iterator[tuple[object, str]]:
        D, H, V, cutoffs = self.D, self.H, self.V, self.cutoffs
        yield not self.head_width and D % H, f"D must be a multiple of model.H = {H}, got {D}"
        yield self.U and self.F % self.U, f"U must divide model.F = {self.F}, got {self.U}"
        yield from self._parts("heads", "head_ids", f"H = {H}", H)
        yield not self.U and (self.blocks or self.block_ids), f"blocks must be empty without model.U, got {self.blocks}"
        if self.U:
            yield from self._parts("blocks", "block_ids", f"F / U = {self.F // self.U}", self.F // self.U)
        for applies, name, needed, where in self._needed():
            given = getattr(self, name)
            yield applies and given != needed, f"{name} must be {json.dumps(needed)} {where}; got {json.dumps(given)}"
        yield self.kind != "all-attention" and not self.F, f"F must be at least 1 for {self.kind}, got 0"
        yield self.kv_heads and H % self.kv_heads, f"kv_heads must divide model.H = {H}, got {self.kv_heads}"
        rotary = self.positions == "rotary"
        yield rotary and self.Dh % 2, f'positions = "rotary" needs an even head width, got {self.Dh}'
        broken = len(self.rope_scaling) not in (0, 4)
        yield broken, f"rope_scaling must have four numbers or none, got {len(self.rope_scaling)}"
        message = 'positions = "rotary" turns queries, which persistent vectors would read: model.persistent must be'
        yield rotary and self.attended, f'{message} "stream" or model.N 0; got "{self.persistent}" and {self.N}'
        broken = not self.biased_outputs and self.F and self.feedforward == "relu"
        yield broken, f'bias must not be "{self.bias}" for model.feedforward = "relu", whose block has biases'
        yield list(cutoffs) != sorted(set(cutoffs)), f"cutoffs must rise, got {list(cutoffs)}"
        yield cutoffs and V and cutoffs[-1] >= V, f"cutoffs must lie below V = {V}, got {list(cutoffs)}"
        broken = cutoffs and self.div_value ** len(cutoffs) > D  # widths are D, D / div_value, D / div_value² …
        yield broken, f"div_value = {self.div_value} leaves no width for cluster {len(cutoffs)} at D = {D}"

    def _parts(self, name: str, ids_name: str, limit: str, total: int) -> Iterator[tuple[object, str]]:
        """Yield the rules of the counts and original numbers, which lie below `total`, of heads or of blocks."""
        counts, lists, L = getattr(self, name), getattr(self, ids_name), self.L
        given = len(counts), len(lists)
        message = f"{name} and model.{ids_name} must have L = {L} entries, got {given[0]} and {given[1]}"
        yield given != (L, L), message
        for i, (count, ids) in enumerate(zip(counts, lists, strict=True)):
            broken = len(ids) != count or list(ids) != sorted(set(ids)) or any(not 0 <= part < total for part in ids)
            yield broken, f"{ids_name}[{i}] must be {count} rising numbers below {limit}, got {list(ids)}"

    def _needed(self) -> Iterator[tuple[bool, str, Any, str]]:
        """Yield, for each option that allows one value only: whether this applies, its name, the value, and where."""
        kind, attention = self.kind, self.kind == "all-attention"
        yield attention, "F", 0, f"for {kind}, which has no feed-forward block"
        yield not attention, "N", 0, f"for {kind}, which has no persistent vectors"
        yield not attention, "persistent", "softmax", f"for {kind}, which has no persistent vectors"
        yield kind == "transformer", "M", 0, f"for {kind}, which has no memory"
        yield self.positions == "learned", "M", 0, 'for model.positions = "learned", which allow no memory'
        yield kind in ("transformer", "gpt2"), "mask", "causal", f"for {kind}"
        yield attention, "feedforward", "relu", "where there is no feed-forward block"
        for name, value in CLUSTERED.items():
            yield bool(self.cutoffs), name, value, "with model.cutoffs"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; counts and numbers of heads and blocks only after a removal, as sizes determine them."""
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
        """Return the original numbers of the key-value heads that a layer's heads still read, rising."""
        K = self.kv_heads or self.H
        return tuple(sorted({h * K // self.H for h in self.head_ids[layer]}))

    def groups(self, layer: int) -> tuple[int, ...] | None:
        """Return for each head of a layer the place of its key-value head in `kv_ids`; None if each has its own."""
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
        """Return what a layer's second block is, a key of `model.blocks.FEEDFORWARD`; None if it has none."""
        return "networks" if self.networks else self.feedforward if self.F else None

    @property
    def biased_projections(self) -> bool:
        """Return whether queries, keys and values have biases."""
        return self.bias in ("layers", "qkv")

    @property
    def biased_outputs(self) -> bool:
        """Return whether the last products of blocks, and those of a feed-forward block, have biases."""
        return self.bias in ("output", "layers")

    @property
    def rotary(self) -> float | tuple[float, ...] | None:
        """Return the base of the rotary positions, with a scaling before it, or None if they are of another kind."""
        base = (*self.rope_scaling, self.rope_base) if self.rope_scaling else self.rope_base
        return base if self.positions == "rotary" else None

    def width(self, layer: int) -> int:
        """Return the width of a layer's feed-forward block now."""
        return self.blocks[layer] * self.U if self.U else self.F

    @property
    def attended(self) -> int:
        """Return how many persistent vectors a head attends to, beside its context."""
        return self.N if self.persistent == "softmax" else 0

    @property
    def span(self) -> int | None:
        """Return the largest distance that a query sees: M for the same-length mask, None (no limit) for causal."""
        return self.M if self.mask == "same-length" else None

    @property
    def heads_total(self) -> int:
        """Return the number of heads in all layers before any removal."""
        return self.L * self.H


@dataclass(frozen=True)
class DataConfig(Config):
    """The text that a model learns, and how it is tokenised and split."""

    TABLE: typing.ClassVar[str] = "data"

    corpus: str = option("pydoc", "name of a corpus, or the path of a text file")
    tokenizer: str = option("character", "a token (bpe: imported models)", choices=("character", "byte", "word", "bpe"))
    vocabulary: int = option(0, "word tokenizer: keep this many of the most frequent words; 0: all", low=0)
    valid_fraction: float = option(0.05, "share for validation, if the corpus has no split", low=0.0, high=0.5)
    test_fraction: float = option(0.05, "share held out for testing, if the corpus has no split", low=0.0, high=0.5)
    split: str = option("end", "cut off at its end, or whole documents from all of it", choices=("end", "documents"))


@dataclass(frozen=True)
class TrainConfig(Config):
    """The settings by which one stage trains the weights."""

    TABLE: typing.ClassVar[str] = "train"

    steps: int = option(1000, "updates", low=0)
    B: int = option(16, "segments in a batch: parallel streams of text", low=1, high=LARGEST)
    optimizer: str = option("adamw", "update rule; scales: of each 32 weights, as in files", choices=OPTIMIZERS)
    lr: float = option(2e-3, "learning rate after warm-up", low=0.0)
    lr_min: float = option(0.0, "learning rate at the end of the cosine", low=0.0)
    schedule: str = option("cosine", "learning rate after warm-up", choices=("cosine", "constant"))
    warmup: int = option(0, "steps over which the learning rate rises linearly from 0", low=0)
    weight_decay: float = option(0.01, "for matrices; norms, biases and gates have none", low=0.0)
    beta1: float = option(0.9, "decay of the gradient's mean", low=0.0, high=0.999999)
    beta2: float = option(0.999, "decay of the squared gradient's mean", low=0.0, high=0.999999)
    eps: float = option(1e-8, "added to the root of that mean", low=1e-30)
    clip: float = option(1.0, "largest norm of all gradients together; 0: no clipping", low=0.0)
    distill: float = newer(0.0, "heal: share of the divergence from the unpruned model in the loss", low=0.0, high=1.0)
    evaluate_every: int = option(200, "steps between two evaluations on the validation split; 0: never", low=0)
    evaluate_tokens: int = newer(1_000_000, "tokens that an evaluation or a report reads, the first; 0: all", low=0)
    checkpoint_every: int = option(100, "steps between two checkpoints; the last step always has one", low=1)
    log_every: int = option(10, "steps between two lines in metrics.jsonl", low=1)


@dataclass(frozen=True)
class GateConfig(Config):
    """The settings of the gates and of the loss that closes them. L0 is a *sum* over all heads of all layers."""

    TABLE: typing.ClassVar[str] = "gate"

    lam: float = option(0.02, "weight of the L0 loss, a sum over all heads", low=0.0)
    lam_warmup: int | None = option(None, "steps over which lam rises from 0; not given: the first epoch", low=0)
    groups: bool = newer(False, "heads that share keys and values have one gate together, and go with these")
    controller_lr: float = option(0.004, "target: step size of the controller's two multipliers", low=0.0)
    distribution: str = option(
        "hard-concrete",
        "how gates are drawn: independently, or without noise",
        choices=("hard-concrete", "deterministic"),
    )
    beta: float = option(0.333, "temperature of the concrete distribution", low=1e-3, high=10.0)
    gamma: float = option(-0.1, "lower end of the stretched gate", high=-1e-6)
    zeta: float = option(1.1, "upper end of the stretched gate", low=1.000001)
    hard: bool = option(True, "straight-through: the forward pass uses 0 or 1")
    log_alpha_init: float = option(2.0, "initial log_alpha of every gate; 2.0 opens it with probability 0.94")
    output_scaling: bool = option(True, "multiply attention's output by heads / open heads of the layer")
    lr_multiplier: float = option(10.0, "gates' learning rate, as a multiple of the weights'", low=0.0)
    frozen: bool = newer(False, "train the gates alone: weights stay as they are and get no gradients")


@dataclass(frozen=True)
class ChooseConfig(Config):
    """Which parts stay, heads and blocks of feed-forward units: who chooses, how many, and among which."""

    TABLE: typing.ClassVar[str] = "choose"

    by: str = option(
        "gates",
        "gates, which are trained; or, without training, the parts that a criterion scores highest for their price, "
        "those that the others can make up for by least squares, or as large a share of each layer",
        choices=("gates", *CRITERIA, *OF_HEADS, "least-squares", "layers"),
    )
    tokens: int = option(8192, "that a criterion reads, of the run's text from the validation split; 0: all", low=0)
    target_heads: int | None = option(
        None, "heads that stay; gates are held at it by a controller, instead of lam, and reach it half-way", low=0
    )
    target_share: float | None = option(
        None, "share of choose.price, of all that is no embedding, that stays, instead", low=0, high=1
    )
    price: str = option(
        "gates",
        "what a part counts in L0 and in the target: 1, or what its removal saves",
        choices=("gates", "parameters", "multiply-adds", "cache"),
    )
    units: int = option(0, "blocks of so many units of the feed-forward block are parts, too; 0: only heads", low=0)
    heads: bool = option(True, "heads may go; if not, only blocks of choose.units")
    scope: str = option(
        "global", "a criterion compares parts of all layers, or of each layer alone", choices=("global", "layer")
    )
    rewind: bool = option(False, "what gates choose gets the weights from before they were trained")

    @property
    def has_target(self) -> bool:
        """Return whether it is said how much stays, in place of lam."""
        return self.target_heads is not None or self.target_share is not None

    def _rules(self) -> Iterator[tuple[object, str]]:
        heads, share = self.target_heads, self.target_share
        both = heads is not None and share is not None
        yield both, f"target_share must not be given with choose.target_heads, got {share} and {heads}"
        yield not self.heads and not self.units, "heads must be true where there are no blocks of choose.units"
        broken = self.by != "gates" and not self.has_target
        yield broken, "by needs choose.target_heads or choose.target_share, unless gates choose"
        broken = self.units and self.by in OF_HEADS
        yield broken, f"by must not be {self.by} for blocks of choose.units, which have none"


@dataclass(frozen=True)
class RepairConfig(Config):
    """What is fitted to the whole model's computation when the other parts are removed."""

    TABLE: typing.ClassVar[str] = "repair"

    tokens: int = option(0, "that are read to fit what stays, so that it computes what all did; 0: no repair", low=0)
    type: str = option("", "a file's type, to which fitted matrices are rounded", choices=("", *BLOCK_TYPES))
    mode: str = option(
        "sequential",
        "each block makes up for those before it, or all are fitted to the whole model's own streams",
        choices=("sequential", "at-once"),
    )


@dataclass(frozen=True)
class RunConfig:
    """The settings of a whole run; each attribute is a table of its file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    choose: ChooseConfig = field(default_factory=ChooseConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    gate_train: TrainConfig = field(default_factory=TrainConfig)
    repair: RepairConfig = field(default_factory=RepairConfig)
    heal: TrainConfig = field(default_factory=TrainConfig)
    seed: int = option(0, "random seed of initialisation, dropout and gates")
    texts: str = option(
        "",
        "texts for gates, criteria, repair and healing, with commas between: run for its own, self for what the whole "
        "model writes, or as data.corpus; not given: run, with self for a pretrained model that is repaired",
    )

    @classmethod
    def from_dict(cls, tables: dict[str, Any]) -> Self:
        """Build from parsed TOML. Raises UsageError for unknown tables and keys and for values out of range."""
        hints = typing.get_type_hints(cls)
        built: dict[str, Any] = {}
        for name, value in from_version_02(tables).items():
            if name not in hints:
                hint = nearest(name, hints, names_by_key())
                raise UsageError(f"unknown table or key {name!r}; allowed are {', '.join(hints)}{hint}")
            if not issubclass(hints[name], Config):
                built[name] = _check_type(name, value, hints[name])
            elif not isinstance(value, dict):
                raise UsageError(f"{name} must be a table, got {value!r}")
            else:
                try:
                    built[name] = hints[name].from_dict(value)
                except UsageError as error:
                    # gate_train and heal are TrainConfigs too, whose messages say "train".
                    raise UsageError(str(error).replace(f"{hints[name].TABLE}.", f"{name}.", 1)) from error
        config = cls(**built)
        config._check()
        return config

    def _check(self) -> None:
        """Raise UsageError for values that are out of range, or contradict those of another table."""
        if self.seed < 0:
            raise UsageError(f"seed must be at least 0, got {self.seed}")
        names = self.texts.split(",")
        if self.texts and "" in names:
            raise UsageError(f"texts must be such as run,self; got {self.texts!r}")
        if "self" in names and not self.repair.tokens:
            raise UsageError("repair.tokens must be more than 0 where the model writes a text")
        for name in ("train", "gate_train"):
            share = getattr(self, name).distill
            if share:
                raise UsageError(f"{name}.distill must be 0, since only heal has a larger model; got {share}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values; `RunConfig.from_dict` reads them back to an equal object."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lines = {name: value for name, value in values.items() if not isinstance(value, Config) and value != ""}
        return lines | {name: table.to_dict() for name, table in values.items() if isinstance(table, Config)}

    def with_options(self, options: dict[str, Any]) -> Self:
        """Return a copy with `{"table.key": value}` replaced, validated like a file."""
        tables = self.to_dict()
        if "model.kind" in options:
            tables["model"] |= of_kind(self.model, options["model.kind"])
        for name, value in options.items():
            table, _, key = name.partition(".")
            now = f"heal.{key}" if table == "finetune" else RENAMED.get(name)
            if now:
                raise UsageError(f"{name} is called {now} since version 0.3")
            if not key:
                tables[name] = value
            elif table in tables and isinstance(tables[table], dict):
                tables[table][key] = value
            else:
                hint = nearest(table, tables)
                raise UsageError(f"unknown table {table!r} in {name!r}; allowed are {', '.join(tables)}{hint}")
        return self.from_dict(tables)


def from_version_02(tables: dict[str, Any]) -> dict[str, Any]:
    """Return a run's tables with the options of version 0.2 under their names of today."""
    found = {name: dict(value) if isinstance(value, dict) else value for name, value in tables.items()}
    if "finetune" in found:
        found["heal"] = found.pop("finetune")
    if not isinstance(found.get("gate"), dict):
        return found
    for old, name in RENAMED.items():
        key = old.removeprefix("gate.")
        if key in found["gate"]:
            value = found["gate"].pop(key)
            table, _, new = name.partition(".")
            if new:
                found.setdefault(table, {})[new] = value or "gates" if name == "choose.by" else value
            else:
                found[table] = value
    return found


def as_version_02(config: RunConfig) -> dict[str, Any]:
    """Return a run's tables as version 0.2 had them, for the keys of stored cells."""
    found = config.to_dict()
    found["finetune"] = found.pop("heal")
    for table in ("choose", "repair"):
        values, usual = found.pop(table), type(getattr(config, table))().to_dict()
        found |= {f"{table}.{key}": value for key, value in values.items() if value != usual.get(key)}
    for old, name in RENAMED.items():
        if name in found:
            found["gate"][old.removeprefix("gate.")] = found.pop(name)
    found["gate"] |= RETIRED["gate"]
    return found


def of_kind(model: ModelConfig, kind: str) -> dict[str, Any]:
    """Return the options that another kind changes: a feed-forward block gets as many parameters as what it replaces.

    N persistent keys and values of all heads have 2·N·D parameters, the nets of H heads with N units 2·H·N·D, and a
    feed-forward block of width F has 2·D·F, with SwiGLU 3·D·F.
    """
    width = model.H * model.N if model.networks else model.N or model.F
    if model.F and model.feedforward == "swiglu":
        width = width * 3 // 2
    changes: dict[str, Any] = {"N": width, "F": 0} if kind == "all-attention" else {"N": 0, "F": width}
    if kind == "llama":
        changes["F"] = max(1, width * 2 // 3)
    causal = {"M": 0, "mask": "causal"} if kind in ("transformer", "gpt2", "llama") else {}
    return changes | {"persistent": "softmax"} | causal


def names_by_key(first: str = "train") -> dict[str, str]:
    """Return the full name of a setting by its key, such as "train.steps" for "steps", to suggest it.

    Where several tables have the key, it is the one of the table `first`, else of the first that has it.
    """
    tables = {name: hint for name, hint in typing.get_type_hints(RunConfig).items() if issubclass(hint, Config)}
    order = [name for name in (*reversed(tables), first) if name in tables]  # the last one wins
    return {f.name: f"{name}.{f.name}" for name in order for f in dataclasses.fields(tables[name])}


def to_toml(tables: dict[str, Any]) -> str:
    """Format a run's plain values as TOML, each with its meaning as a comment.

    Numbers, strings, booleans and lists look the same in JSON and in TOML.
    """
    hints = typing.get_type_hints(RunConfig)

    def line(table: str, key: str, value: Any) -> str:
        # TOML allows neither JSON's surrogate pairs nor a bare delete character.
        text = f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
        fields = {f.name: f for f in dataclasses.fields(hints.get(table, RunConfig))}
        return f"{text:<26}  # {fields[key].metadata['doc']}" if key in fields else text

    lines = [line("", k, v) for k, v in tables.items() if not isinstance(v, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(line(name, k, v) for k, v in table.items())]
    return "\n".join(lines) + "\n"


def read_config(text: str, source: str) -> RunConfig:
    """Parse a run's TOML. Raises UsageError naming `source` if it is not TOML or not valid."""
    try:
        return RunConfig.from_dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, UsageError) as error:
        raise UsageError(f"{source}: {error}") from error


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    return sorted(
        p.name.removesuffix(".toml") for p in resources.files("tinyprune.presets").iterdir() if p.name.endswith(".toml")
    )


def preset_text(name: str) -> str:
    """Return the file of a preset that comes with the package."""
    return (resources.files("tinyprune.presets") / f"{name}.toml").read_text(encoding="utf-8")


def load_preset(name: str) -> RunConfig:
    """Load the preset `name`, or the TOML file at that path. Raises UsageError if there is neither.

    A relative `data.corpus` in that file is relative to the current directory, like one on the command line.
    """
    path = Path(name)
    if name in preset_names():
        return read_config(preset_text(name), f"preset {name}")
    if path.suffix == ".toml" and path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {path}: {error}; give a preset or a TOML file in UTF-8") from error
        return read_config(text, str(path))
    hint = nearest(name, preset_names())
    raise UsageError(f"no preset or .toml file {name!r}; presets are {', '.join(preset_names())}{hint}")

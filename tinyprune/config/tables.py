"""The tables of a run's file besides [model]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tinyprune.config.base import Config, newer, newer_number, number, option, size

# The criteria that score heads and blocks of units, those of heads alone, and those of whole layers, whose heads and
# blocks go together, see `method.criteria`.
CRITERIA = (
    "random",
    "magnitude",
    "michel",
    "michel-global",
    "leave-one-out",
    "output-difference",
    "fluctuation",
    "activations",
)
OF_HEADS = ("confidence",)
OF_LAYERS = ("whole-layers",)
WITHIN_LAYERS = ("activations",)  # whose scores compare the parts of one layer, as if choose.scope were "layer"
# Types of llama.cpp: 32 weights with a scale, those that end in 1 also with an offset.
BLOCK_TYPES = "q4_0", "q4_1", "q5_0", "q5_1", "q8_0"
OPTIMIZERS = "adamw", "lamb", "scales", "scales-offsets"
PRECISIONS = "float32", "bf16"
TOKENIZERS = "character", "byte", "word", "bpe"


@dataclass(frozen=True)
class DataConfig(Config):
    """The text that a model learns, and how it is tokenised and split."""

    TABLE: ClassVar[str] = "data"

    corpus: str = option("pydoc", "name of a corpus, or the path of a text file")
    tokenizer: str = option("character", "a token (bpe: imported models)", choices=TOKENIZERS)
    vocabulary: int = number(0, "word tokenizer: how many of the most frequent words are kept; 0: all")
    valid_fraction: float = number(0.05, "share for validation, if the corpus has no split", high=0.5)
    test_fraction: float = number(0.05, "share held out for testing, if there is no split", high=0.5)
    split: str = option("end", "cut off at its end, or whole documents from all of it", choices=("end", "documents"))


@dataclass(frozen=True)
class TrainConfig(Config):
    """The settings by which one stage trains the weights."""

    TABLE: ClassVar[str] = "train"

    steps: int = number(1000, "updates")
    B: int = size(16, "segments in a batch: parallel streams of text")
    optimizer: str = option("adamw", "update rule; scales: of 32 weights, as in files", choices=OPTIMIZERS)
    precision: str = newer("float32", "what factors of matrix products are rounded to", choices=PRECISIONS)
    lr: float = number(2e-3, "learning rate after warm-up")
    lr_min: float = number(0.0, "learning rate at the end of the cosine")
    schedule: str = option("cosine", "learning rate after warm-up", choices=("cosine", "constant"))
    warmup: int = number(0, "steps over which the learning rate rises linearly from 0")
    weight_decay: float = number(0.01, "for matrices; norms, biases and gates have none")
    beta1: float = number(0.9, "decay of the gradient's mean", high=0.999999)
    beta2: float = number(0.999, "decay of the squared gradient's mean", high=0.999999)
    eps: float = option(1e-8, "added to the root of that mean", low=1e-30)
    clip: float = number(1.0, "largest norm of all gradients together; 0: no clipping")
    distill: float = newer_number(0.0, "heal: share of the divergence from the whole model", high=1.0)
    evaluate_every: int = number(200, "steps between two evaluations on validation data; 0: never")
    evaluate_tokens: int = newer_number(1_000_000, "first tokens that an evaluation reads; 0: all")
    checkpoint_every: int = option(100, "steps between two checkpoints; the last has one", low=1)
    log_every: int = option(10, "steps between two lines in metrics.jsonl", low=1)


@dataclass(frozen=True)
class GateConfig(Config):
    """The settings of the gates and of the loss that closes them.

    L0 is a *sum* over all heads of all layers.
    """

    TABLE: ClassVar[str] = "gate"

    lam: float = number(0.02, "weight of the L0 loss, a sum over all heads")
    lam_warmup: int | None = number(None, "steps over which lam rises; not given: the first epoch")
    groups: bool = newer(False, "heads that share keys and values have one gate, and go with these")
    controller_lr: float = number(0.004, "target: step size of the controller's two multipliers")
    distribution: str = option(
        "hard-concrete",
        "how gates are drawn: independently, or without noise",
        choices=("hard-concrete", "deterministic"),
    )
    beta: float = option(0.333, "temperature of the concrete distribution", low=1e-3, high=10.0)
    gamma: float = option(-0.1, "lower end of the stretched gate", high=-1e-6)
    zeta: float = option(1.1, "upper end of the stretched gate", low=1.000001)
    hard: bool = option(True, "straight-through: the forward pass uses 0 or 1")
    log_alpha_init: float = option(2.0, "initial log_alpha of every gate; 2.0: open with P = 0.94")
    output_scaling: bool = option(True, "multiply attention's output by heads / open heads of a layer")
    lr_multiplier: float = number(10.0, "gates' learning rate, as a multiple of the weights'")
    frozen: bool = newer(False, "train the gates alone: weights stay and get no gradients")


@dataclass(frozen=True)
class ChooseConfig(Config):
    """Which parts stay, heads and blocks of feed-forward units: who chooses, how many, of which."""

    TABLE: ClassVar[str] = "choose"

    by: str = option(
        "gates",
        "gates, which are trained; or, without training, the parts that a criterion scores highest for "
        "their price, those that the others can make up for by least squares, as large a share of "
        "each layer, or the layers that change the stream most",
        choices=("gates", *CRITERIA, *OF_HEADS, "least-squares", "layers", *OF_LAYERS),
    )
    tokens: int = number(8192, "that a criterion reads, of the text's validation split; 0: all")
    target_heads: int | None = number(
        None, "heads that stay; a controller holds gates at it, in place of lam, from half-way on"
    )
    target_share: float | None = number(
        None, "share of choose.price, of all that is no embedding, that stays, instead", high=1
    )
    price: str = option(
        "gates",
        "what a part counts in L0 and in the target: 1, or what its removal saves",
        choices=("gates", "parameters", "multiply-adds", "cache"),
    )
    units: int = number(0, "blocks of so many feed-forward units are parts, too; 0: only heads")
    heads: bool = option(True, "heads may go; if not, only blocks of choose.units")
    scope: str = option("global", "a criterion compares parts of all layers, or of each", choices=("global", "layer"))
    rewind: bool = option(False, "what gates choose gets the weights from before they were trained")

    @property
    def has_target(self) -> bool:
        """Return whether it is said how much stays, in place of lam."""
        return self.target_heads is not None or self.target_share is not None

    def _check(self) -> None:
        heads, share = self.target_heads, self.target_share
        if heads is not None and share is not None:
            both = f"{share} and {heads}"
            raise self._error(f"target_share must not be given with choose.target_heads, got {both}")
        if not self.heads and not self.units:
            raise self._error("heads must be true where there are no blocks of choose.units")
        if self.by != "gates" and not self.has_target:
            raise self._error("by needs choose.target_heads or choose.target_share, unless gates choose")
        if self.units and self.by in OF_HEADS:
            raise self._error(f"by must not be {self.by} for blocks of choose.units, which have none")
        if self.by in OF_LAYERS and not self.heads:
            raise self._error(f"heads must be true for {self.by}, which go with their heads")


@dataclass(frozen=True)
class RepairConfig(Config):
    """What is fitted to the whole model's computation when the other parts are removed."""

    TABLE: ClassVar[str] = "repair"

    tokens: int = number(0, "that are read to fit what stays to what all computed; 0: no repair")
    type: str = option("", "a file's type, to which matrices are rounded", choices=("", *BLOCK_TYPES))
    precision: str = newer("float32", "what factors of matrix products are rounded to", choices=PRECISIONS)
    mode: str = option(
        "sequential",
        "each block makes up for those before it, or all are fitted to the whole model's streams",
        choices=("sequential", "at-once"),
    )

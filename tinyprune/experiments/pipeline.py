"""The steps in which every model becomes smaller: choose heads, repair what stays, remove the others, heal, measure.

`cells` makes the models of a study in these steps, and `compare` those of one checkpoint. How heads are chosen and what
is measured is said there; what both have in common is here.
"""

from __future__ import annotations

from collections.abc import Sequence

from tinyprune.model.transformer import Transformer
from tinyprune.pruning.importance import Mask, with_heads
from tinyprune.pruning.importance.fits import BlockFit
from tinyprune.pruning.repair import repaired_from
from tinyprune.pruning.surgery import remove_closed_heads
from tinyprune.training.distillation import Distillation
from tinyprune.training.step import LanguageModelling, Objective


def repair_and_remove(whole: Transformer, mask: Mask, fits: Sequence[Sequence[BlockFit]] | None = None) -> Transformer:
    """Return a model with the heads of `mask` only, in new arrays.

    Args:
        whole: the model with all its heads; it is not modified.
        mask: which heads of each layer stay.
        fits: what stays is fitted to these, see `pruning.repair`; None leaves it as it is.
    """
    return remove_closed_heads(with_heads(whole, mask) if fits is None else repaired_from(whole, mask, fits))


def healing_objective(whole: Transformer, distill: float) -> Objective:
    """Return what healing minimises: the cross-entropy, of which a share may be the divergence from the whole model."""
    return Distillation(whole, distill) if distill else LanguageModelling()

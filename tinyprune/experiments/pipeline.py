"""What the models of a study (`cells`) and those of one checkpoint (`compare`) have in common: how they are healed."""

from __future__ import annotations

from tinyprune.model.transformer import Transformer
from tinyprune.training.distillation import Distillation
from tinyprune.training.step import LanguageModelling, Objective


def healing_objective(whole: Transformer, distill: float) -> Objective:
    """Return what healing minimises: the cross-entropy, of which a share may be the divergence from the whole model."""
    return Distillation(whole, distill) if distill else LanguageModelling()

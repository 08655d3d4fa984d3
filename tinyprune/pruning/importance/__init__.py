"""Conventional criteria of importance: a score for each head, larger for heads that are more worth keeping.

    random             a random number
    magnitude          ‖Wv^h‖ · ‖Wo^h‖, and ‖pk^h‖ · ‖pv^h‖ of the head's network
    confidence         mean over positions of the largest attention weight
    michel             E|∂loss/∂g_h|, normalised in each layer
    leave-one-out      loss without the head − loss with it
    output-difference  E‖Δ_h‖, what the head adds to its layer's output
    fluctuation        how much that varies, beyond its mean (FLAP)

`scores[name](model, tokens, rng)` gives a score for every head of every layer, `keep_best` turns scores into a mask
with an exact number of heads, over all layers together or the same share in each, and `score_in_rounds` rescores after
each round, without the heads removed so far. `least_squares.search` finds a set of heads that the others can make up
for, and `pruning.repair` does that. `with_heads` makes the model that a mask describes, which
`pruning.surgery` then makes smaller. Learned gates (Hard-Concrete, soft top-k) are in `pruning.gates`.
"""

from tinyprune.pruning.importance.confidence import confidence
from tinyprune.pruning.importance.fluctuation import fluctuation
from tinyprune.pruning.importance.leave_one_out import leave_one_out
from tinyprune.pruning.importance.magnitude import magnitude
from tinyprune.pruning.importance.masks import Mask, Scores, keep_best, score_in_rounds, with_heads
from tinyprune.pruning.importance.michel import michel
from tinyprune.pruning.importance.output_difference import output_difference
from tinyprune.pruning.importance.random_scores import random_scores

CRITERIA = {
    "random": random_scores,
    "magnitude": magnitude,
    "confidence": confidence,
    "michel": michel,
    "leave-one-out": leave_one_out,
    "output-difference": output_difference,
    "fluctuation": fluctuation,
}

__all__ = [
    "CRITERIA",
    "Mask",
    "Scores",
    "confidence",
    "fluctuation",
    "keep_best",
    "leave_one_out",
    "magnitude",
    "michel",
    "output_difference",
    "random_scores",
    "score_in_rounds",
    "with_heads",
]

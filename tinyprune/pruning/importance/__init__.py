"""Conventional criteria of importance: a score for each head, larger for heads that are more worth keeping.

`CRITERIA[name](model, tokens, rng)` gives a score for every head of every layer, `keep_best` turns scores into a mask
with an exact number of heads, over all layers together or the same share in each. `least_squares.search` finds a set of
heads that the others can make up for, and `pruning.repair` does that. `with_heads` makes the model that a mask
describes, which `pruning.surgery` then makes smaller. Learned gates (Hard-Concrete) are in `pruning.gates`.
"""

from tinyprune.pruning.importance.criteria import ALL_CRITERIA as ALL_CRITERIA
from tinyprune.pruning.importance.criteria import CRITERIA as CRITERIA
from tinyprune.pruning.importance.criteria import leave_one_out as leave_one_out
from tinyprune.pruning.importance.criteria import michel as michel
from tinyprune.pruning.importance.criteria import michel_global as michel_global
from tinyprune.pruning.importance.criteria import output_difference as output_difference
from tinyprune.pruning.importance.masks import Mask as Mask
from tinyprune.pruning.importance.masks import Scores as Scores
from tinyprune.pruning.importance.masks import keep_best as keep_best
from tinyprune.pruning.importance.masks import keep_within as keep_within
from tinyprune.pruning.importance.masks import with_heads as with_heads
from tinyprune.pruning.importance.masks import with_scored_gates as with_scored_gates

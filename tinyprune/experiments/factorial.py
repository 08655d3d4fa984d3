"""The factorial of the recipe: what the choice of heads, the repair and the distillation each gain.

A study that has all sixteen arms of `methods.ARMS` (four choices, each with and without the two others) tells the
parts of the recipe from each other. Every effect is a contrast: numbers by which the arms' bits per character are
multiplied and summed up, such as +1 for one arm and −1 for another. Its interval comes from its value on each
baseline, as that of a pair does (`intervals.estimate`). Beside it stands that of a mixed model of all arms together,
by statsmodels:

    bits = mean of the arm + effect of the seed + rest        effect ~ N(0, τ²), rest ~ N(0, σ² of the arm)

A share of the way from random heads alone to the whole recipe depends on what is added first. So it is averaged over
the orders in which choice, repair and distillation can be added, and the three shares are 1 together (Shapley 1953).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import missing_extra
from tinyprune.experiments.intervals import estimate
from tinyprune.experiments.methods import ARMS, CHOICES, FACTORIAL, arm_name
from tinyprune.experiments.results import grouped
from tinyprune.io.tables import Record

FACTORS = ("choice", "repair", "distillation")
WITHOUT, WITH = "without the others", "with the others"
MEANS = "on average"  # over all that the two other factors can be


def arm_of(choice: str, repair: bool, distill: bool) -> NDArray:
    """Return the contrast that is the mean of one arm, (16,)."""
    return np.array([float(given == (choice, repair, distill)) for given in ARMS])


def contrasts() -> list[tuple[str, str, str, NDArray]]:
    """Return (factor, by, given, contrast) of every effect; contrasts are (16,), in the order of `ARMS`.

    Of the choice: `by` it, more than random heads. Of repair and distillation: where the heads are chosen `by` it.
    """
    made = []
    for by in CHOICES:
        arms = {ways: arm_of(by, *ways) for ways in itertools.product((False, True), repeat=2)}
        random = {ways: arm_of("random", *ways) for ways in arms}
        of = {"choice": [arms[ways] - random[ways] for ways in arms]} if by != "random" else {}
        of["repair"] = [arms[True, d] - arms[False, d] for d in (False, True)]
        of["distillation"] = [arms[r, True] - arms[r, False] for r in (False, True)]
        for factor, effects in of.items():
            made.append((factor, by, WITHOUT, effects[0]))
            made.append((factor, by, WITH, effects[-1]))
            made.append((factor, by, MEANS, np.mean(effects, 0)))
    return made


def shares(by: str) -> dict[str, NDArray]:
    """Return what each factor adds on the way from random heads alone to heads chosen `by`, repaired and distilled.

    They are contrasts (16,), means over the six orders in which the factors can be added.
    """
    added: dict[str, list[NDArray]] = {factor: [] for factor in FACTORS}
    for order in itertools.permutations(FACTORS):
        have = dict.fromkeys(FACTORS, False)
        for factor in order:
            before = reached(by, have)
            have[factor] = True
            added[factor].append(reached(by, have) - before)
    return {factor: np.mean(steps, 0) for factor, steps in added.items()}


def reached(by: str, have: dict[str, bool]) -> NDArray:
    """Return the arm (16,) that has these factors of the recipe."""
    return arm_of(by if have["choice"] else "random", have["repair"], have["distillation"])


def bits_of_arms(rows: Sequence[Record]) -> NDArray:
    """Return bits per character (seeds, 16), means of both splits, from rows of results.csv of one number of heads."""
    names = [arm_name(*given) for given in ARMS]
    bits = {
        key: np.mean([r["bits_per_character"] for r in own]) for key, own in grouped(rows, "seed", "method").items()
    }
    seeds = sorted({seed for seed, _ in bits})
    return np.array([[bits[seed, name] for name in names] for seed in seeds])


def effects(rows: Sequence[Record]) -> list[Record]:
    """Return a record for each effect at each number of heads, and for each factor's share of the way.

    Args:
        rows: of results.csv, of a study that has all arms with two seeds at least.

    Its numbers are those of `intervals.estimate`; mixed_low and mixed_high are the interval of the mixed model. Of
    what a factor adds on the way (`given` is "share"), `share` is its part of the way, else None.

    Raises MissingExtraError if SciPy or statsmodels are not installed.
    """
    records = []
    for (heads,), here in grouped([r for r in rows if r["method"] in FACTORIAL], "heads_open").items():
        bits = bits_of_arms(here)
        model = mixed_model(bits)
        made = [(*names, effect, None) for *names, effect in contrasts()]
        for by in (choice for choice in CHOICES if choice != "random"):
            parts = shares(by)
            way = float(bits.mean(0) @ sum(parts.values()))
            made += [(f, by, "share", part, float(bits.mean(0) @ part) / way) for f, part in parts.items()]
        for factor, by, given, effect, share in made:
            low, high = model.t_test(effect[None]).conf_int()[0]
            names = {"heads_open": heads, "factor": factor, "by": by, "given": given}
            found = names | estimate(bits @ effect) | {"mixed_low": float(low), "mixed_high": float(high)}
            records.append(found | {"share": share})
    return records


def mixed_model(bits: NDArray) -> Any:
    """Fit the mixed model to bits (seeds, 16), by restricted maximum likelihood; return statsmodels' result.

    Its fixed effects are the means of the arms. Raises MissingExtraError if statsmodels is not installed.
    """
    try:
        import pandas
        from statsmodels.formula.api import mixedlm
        from statsmodels.tools.sm_exceptions import ConvergenceWarning
    except ImportError as error:
        raise missing_extra("the mixed model", "studies", __name__) from error
    seeds, arms = bits.shape
    table = {"bits": bits.ravel(), "arm": np.tile(range(arms), seeds), "seed": np.repeat(range(seeds), arms)}
    # an arm's variance is what all have in common and something of its own, which is 0 where arms vary least
    own = {f"arm {i}": f"0 + I(1.0 * (arm == {i}))" for i in range(arms)}
    model = mixedlm("bits ~ 0 + C(arm)", pandas.DataFrame(table), groups="seed", vc_formula=own, re_formula="1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the zeros
        return model.fit(method="powell")  # methods that follow a gradient stop at the zeros, at a lower likelihood

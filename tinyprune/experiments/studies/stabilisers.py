"""Stabilisers as the paper has them: lam is fixed and swept, and what is compared are curves of bits against heads.

In the ablation a controller holds the number of heads; here lam alone decides how many close, and a run that closes far
more than the others with the same lam has collapsed. Each variant is swept over the same values of lam.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from tinyprune.experiments.cells import FIXED_LAM
from tinyprune.experiments.drawing import look, name_seeds
from tinyprune.experiments.plan import Entry, Finished, Plan, Study
from tinyprune.experiments.results import rows_of, spread
from tinyprune.experiments.studies.ablation import WITHOUT
from tinyprune.plots import DPI, STYLE
from tinyprune.tables import Record

LAMS = (0.03, 0.05, 0.08, 0.13, 0.2)  # with 0.01 no head closes, with 0.3 hardly one stays
ALL_THREE = "all three"
VARIANTS = {ALL_THREE: {}} | WITHOUT
COLLAPSED = 0.1  # of the heads: a run that leaves fewer has collapsed
# The gate stage is as long as the paper's in proportion: as long as the training before it, lam rising over a tenth. So
# gates can be as slow as the paper's: ten times the weights' learning rate, not the preset's 300, at which they forget
# where they began within ten steps.
CHANGES = {"train.steps": 1000, "gate_train.steps": 1000, "finetune.steps": 300}
CHANGES |= {"gate.lam_warmup": 100, "gate.lr_multiplier": 10.0}


def entries(plan: Plan) -> list[Entry]:
    """Every variant with every lam."""
    made = []
    for name, changes in VARIANTS.items():
        for lam in LAMS:
            gate = dataclasses.replace(plan.config.gate, **changes | {"lam": lam})
            configs = plan.configs(dataclasses.replace(plan.config, gate=gate))
            made += [plan.entry(title(name, lam), config, FIXED_LAM) for config in configs]
    return made


def title(variant: str, lam: float) -> str:
    """Return the name of a variant with this lam in the tables."""
    return f"{variant}, lam {lam:g}"


def tables(done: Finished) -> dict[str, list[Record]]:
    """Return for each variant and lam: heads left, bits, layers that lost all heads, and runs that collapsed.

    `difference` is how many bits more each seed needs than its own curve of all three has at as many heads, and
    `within` how many seeds have as many heads somewhere on that curve.
    """
    rows, curves = done.tables["results"], []
    complete = {row["seed"]: [] for row in rows}
    for lam in LAMS:
        for row in rows_of(rows, title(ALL_THREE, lam), "test"):
            complete[row["seed"]].append((row["heads_open"], row["bits_per_character"]))
    for variant in VARIANTS:
        for lam in LAMS:
            own = rows_of(rows, title(variant, lam), "test")
            heads, bits = ([r[name] for r in own] for name in ("heads_open", "bits_per_character"))
            curve = [at(complete[r["seed"]], r["heads_open"]) for r in own]
            more = [r["bits_per_character"] - y for r, y in zip(own, curve, strict=True) if y is not None]
            curves.append(
                {"variant": variant, "lam": lam, "heads": statistics.fmean(heads), "heads_spread": spread(heads)}
                | {"bits_per_character": statistics.fmean(bits), "spread": spread(bits)}
                | {"difference": statistics.fmean(more) if more else None}
                | {"difference_spread": spread(more) if more else None, "within": len(more)}
                | {"empty_layers": statistics.fmean(r["heads_by_layer"].split().count("0") for r in own)}
                | {"collapsed": sum(h < COLLAPSED * own[0]["heads_total"] for h in heads), "seeds": len(own)}
            )
    return {"comparison": [], "curves": curves}


def at(points: list[tuple[int, float]], heads: int) -> float | None:
    """Return the bits of a curve (heads, bits) at a number of heads, between its points; None outside."""
    x, y = np.array(sorted(points)).T
    return float(np.interp(heads, x, y)) if x[0] <= heads <= x[-1] else None


@matplotlib.style.context(STYLE)
def plot_stabilisers(rows: Sequence[Record], split: str = "test") -> Figure:
    """Draw bits against heads that stay: a dot for each run, for each variant a line through the means of its lams."""
    figure = Figure(figsize=(7, 4.2), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for variant in VARIANTS:
        style = look(list(VARIANTS), variant)
        points = []
        for lam in LAMS:
            own = rows_of(rows, title(variant, lam), split)
            x, y = [r["heads_open"] for r in own], [r["bits_per_character"] for r in own]
            axes.plot(x, y, style["marker"], color=style["color"], alpha=0.35, markersize=4)
            points.append((statistics.fmean(x), statistics.fmean(y)))
        axes.plot(*zip(*sorted(points), strict=True), label=variant, **style)
    axes.set(xlabel="heads that stay", ylabel=f"bits per character ({split})")
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.legend(frameon=False)
    name_seeds(figure, rows)
    return figure


def pictures(done: Finished) -> Iterator[tuple[str, str, Figure]]:
    """Draw the curves."""
    caption = "Bits per character against heads at a fixed lam, with and without each stabiliser"
    yield "stabilisers", caption, plot_stabilisers(done.tables["results"])


STUDY = Study(entries, tables, pictures, changes=CHANGES, seeds=5)

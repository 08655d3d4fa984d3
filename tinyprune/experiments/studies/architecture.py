"""Architecture: All-attention and Transformer-XL with as many parameters, both pruned by gates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import matplotlib.style
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from tinyprune.config import ModelConfig, of_kind
from tinyprune.experiments.drawing import MEASURES, look, means, name_seeds
from tinyprune.experiments.plan import Entry, Finished, Plan, Study
from tinyprune.experiments.results import compare_sizes
from tinyprune.experiments.timing import measure_times, with_head_counts
from tinyprune.model.counting import count_multiply_adds, count_parameters
from tinyprune.plots import DPI, GREY, STYLE
from tinyprune.tables import Record

KINDS = ("all-attention", "transformer-xl")
# Persistent vectors, and the feed-forward block in their place, are four times as many as D, the paper's proportion:
# they are then 6 of 10 parameters of a layer.
CHANGES = {"model.N": 512}


def entries(plan: Plan) -> list[Entry]:
    """Models of both kinds, with all their heads and pruned."""
    made = []
    for kind in KINDS:
        model = dataclasses.replace(plan.config.model, kind=kind, **of_kind(plan.config.model, kind))
        for config in plan.configs(dataclasses.replace(plan.config, model=model)):
            made.append(plan.entry(kind, config, "unpruned"))
            made += [plan.entry(kind, config, "gates", share) for share in plan.shares]
    return made


def inference(configs: dict[str, ModelConfig], backend: str = "numba") -> list[Record]:
    """Measure how size, computation and time fall as heads are removed, the same number from each layer.

    Args:
        configs: models with all their heads and V, by the names that the records give them.
        backend: name of the backend that computes.

    Returns:
        A record for each model and number of heads, from all heads down to none, with shares of the whole model's
        numbers.
    """
    records = []
    for name, whole in configs.items():
        smaller = [with_head_counts(whole, [h] * whole.L) for h in range(whole.H, -1, -1)]
        ms = measure_times(smaller, backend, at_least=1.0)
        measured = [
            {
                "parameters": count_parameters(config),
                "multiply_adds_per_token": count_multiply_adds(config),
                "ms_per_1k_tokens": ms[config],
            }
            for config in smaller
        ]
        for config, numbers in zip(smaller, measured, strict=True):
            record = {"method": name, "heads_open": sum(config.heads), "heads_total": whole.heads_total} | numbers
            records.append(record | {f"{key}_share": numbers[key] / measured[0][key] for key in numbers})
    return records


@matplotlib.style.context(STYLE)
def plot_architecture(rows: Sequence[Record], split: str = "test") -> Figure:
    """Draw quality of both architectures against parameters, multiply-adds and time, with error bars over seeds."""
    own = [r for r in rows if r["split"] == split]
    kinds = list(dict.fromkeys(r["method"] for r in own))
    figure = Figure(figsize=(9, 3.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for kind in kinds:
            x, y, error = means([r for r in own if r["method"] == kind], measure)
            axes.errorbar(x, y, error, label=kind, capsize=2, elinewidth=0.8, **look(kinds, kind))
        axes.set(xlabel=label, xlim=(0, None))
        axes.xaxis.set(major_locator=MaxNLocator(4), major_formatter=EngFormatter(sep=""))
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel("bits per character (test)")
    name_seeds(figure, rows)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


@matplotlib.style.context(STYLE)
def plot_inference(records: Sequence[Record]) -> Figure:
    """Draw what is left of parameters, multiply-adds and time as heads are removed, with the line of proportion."""
    kinds = list(dict.fromkeys(r["method"] for r in records))
    figure = Figure(figsize=(9, 3.4), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    for axes, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        axes.annotate("in proportion", (0.62, 0.56), rotation=38, color=GREY, fontsize=8)
        for kind in kinds:
            own = [r for r in records if r["method"] == kind]
            x = [r["heads_open"] / r["heads_total"] for r in own]
            axes.plot(x, [r[f"{measure}_share"] for r in own], label=kind, **look(kinds, kind))
        axes.set(title=label, xlabel="share of the heads that is left", xlim=(0, 1.02), ylim=(0, 1.05))
        axes.grid(alpha=0.3, linewidth=0.5)
    panels[0].set_ylabel("share of the whole model's")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare the kinds at equal sizes, and measure what each gains by losing heads."""
    whole = {e.method: dataclasses.replace(e.cell.config.model, V=done.V) for e in done.entries}
    return {
        "comparison": compare_sizes(done.tables["results"], KINDS[1], KINDS[0]),
        "inference": inference(whole, done.entries[0].cell.backend),
    }


def pictures(done: Finished) -> dict[str, tuple[str, Figure]]:
    """Draw the pictures, with their captions."""
    return {
        "architecture": (
            "Quality against parameters, multiply-adds and time of both architectures",
            plot_architecture(done.tables["results"]),
        ),
        "inference": (
            "Parameters, multiply-adds and time against heads, with the ideal line",
            plot_inference(done.tables["inference"]),
        ),
    }


STUDY = Study(entries, tables, pictures, changes=CHANGES, equal="parameters")

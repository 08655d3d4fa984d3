"""Architecture: All-attention, heads with networks and Transformer-XL with as many parameters, all pruned alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from tinyprune.config import ModelConfig
from tinyprune.errors import UsageError
from tinyprune.experiments.drawing import MEASURES, look, means, name_seeds
from tinyprune.experiments.kinds import ATTENTION, CHANGES, NETWORKS, XL, runs
from tinyprune.experiments.plan import Entry, Finished, Plan, Study
from tinyprune.experiments.results import compare_sizes, rows_of
from tinyprune.experiments.timing import measure_times, with_head_counts
from tinyprune.model.counting import count_multiply_adds, count_parameters
from tinyprune.plots import DPI, GREY, STYLE
from tinyprune.tables import Record

KINDS = (ATTENTION, NETWORKS, XL)
# With them the paper's pair: All-attention without 43 % of its heads, Transformer-XL without 25 %.
SHARES = (0.9, 0.75, 0.5625, 0.3, 0.1)


def entries(plan: Plan) -> list[Entry]:
    """Models of every kind, with all their heads and pruned. Raises UsageError for more than one method."""
    if len(plan.methods) > 1:
        raise UsageError(f"architecture prunes by one method, got {', '.join(plan.methods)}")
    made = []
    for name in KINDS:
        for config in plan.configs(runs(plan.config)[name]):
            made.append(plan.entry(name, config, "unpruned"))
            made += [plan.entry(name, config, plan.methods[0], share) for share in plan.shares]
    return made


def inference(configs: dict[str, ModelConfig], backend: str = "numba") -> list[Record]:
    """Measure how size, computation and time fall as heads are removed, the same number from each layer.

    Returns:
        A record for each model of `configs` (name → with all heads and V) and number of heads, from all heads down to
        none, with shares of the whole model's numbers.
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


def _panels(records: Sequence[Record], height: float) -> tuple[Figure, dict[str, Axes], dict[str, dict[str, Any]]]:
    """Return a figure with one Axes for each measure, these by measure, and the looks of the kinds of models."""
    kinds = list(dict.fromkeys(r["method"] for r in records))
    looks = {kind: {"label": kind} | look(kinds, kind) for kind in kinds}
    figure = Figure(figsize=(9, height), dpi=DPI, layout="constrained")
    panels = dict(zip(MEASURES, figure.subplots(1, len(MEASURES), sharey=True), strict=True))
    for axes in panels.values():
        axes.grid(alpha=0.3, linewidth=0.5)
    return figure, panels, looks


def _legend(figure: Figure) -> None:
    """Write the kinds' names below the panels."""
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)


@matplotlib.style.context(STYLE)
def plot_architecture(rows: Sequence[Record], split: str = "test") -> Figure:
    """Draw the architectures' quality against parameters, multiply-adds and time, with error bars over seeds."""
    figure, panels, looks = _panels(rows, 3.6)
    for measure, axes in panels.items():
        for kind, style in looks.items():
            x, y, error = means(rows_of(rows, kind, split), measure)
            axes.errorbar(x, y, error, capsize=2, elinewidth=0.8, **style)
        axes.set(xlabel=MEASURES[measure], xlim=(0, None))
        axes.xaxis.set(major_locator=MaxNLocator(4), major_formatter=EngFormatter(sep=""))
    figure.axes[0].set_ylabel("bits per character (test)")
    name_seeds(figure, rows)
    _legend(figure)
    return figure


@matplotlib.style.context(STYLE)
def plot_inference(records: Sequence[Record]) -> Figure:
    """Draw what is left of parameters, multiply-adds and time as heads are removed, with the line of proportion."""
    figure, panels, looks = _panels(records, 3.4)
    for measure, axes in panels.items():
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        axes.annotate("in proportion", (0.62, 0.56), rotation=38, color=GREY, fontsize=8)
        for kind, style in looks.items():
            own = [r for r in records if r["method"] == kind]
            x = [r["heads_open"] / r["heads_total"] for r in own]
            axes.plot(x, [r[f"{measure}_share"] for r in own], **style)
        axes.set(title=MEASURES[measure], xlabel="share of the heads that is left", xlim=(0, 1.02), ylim=(0, 1.05))
    figure.axes[0].set_ylabel("share of the whole model's")
    _legend(figure)
    return figure


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare the kinds at equal sizes, and measure what each gains by losing heads."""
    whole = {e.method: dataclasses.replace(e.cell.config.model, V=done.V) for e in done.entries}
    results = done.tables["results"]
    return {
        "comparison": [r for reference in (ATTENTION, NETWORKS) for r in compare_sizes(results, XL, reference)],
        "inference": inference(whole, done.entries[0].cell.backend),
    }


def pictures(done: Finished) -> Iterator[tuple[str, str, Figure]]:
    """Draw quality against size and time, and size and time against heads."""
    caption = "Quality of the architectures against parameters, multiply-adds and time"
    yield "architecture", caption, plot_architecture(done.tables["results"])
    caption = "Parameters, multiply-adds and time against heads, with the ideal line"
    yield "inference", caption, plot_inference(done.tables["inference"])


STUDY = Study(entries, tables, pictures, changes=CHANGES, shares=SHARES, methods=("gates",), equal="parameters")

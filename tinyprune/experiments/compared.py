"""What `comparing` leaves beside cells.jsonl: study.json, tables (*.csv), plots/, README.md."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator
from numpy.typing import NDArray

from tinyprune.experiments.comparing import REPAIRS, Comparison
from tinyprune.experiments.drawing import look
from tinyprune.experiments.results import spread, to_csv
from tinyprune.experiments.running import machine_of
from tinyprune.experiments.store import Store
from tinyprune.files import replace_file
from tinyprune.plots import DPI, GREY, HEAD_COLOURS, STYLE, save_figure
from tinyprune.progress import say
from tinyprune.tables import Record, markdown_table


def rows_of(comparison: Comparison, store: Store) -> list[Record]:
    """Return a row for each model that is done, the baseline's first; `steps` are those of healing, 0 before it.

    `repair` says how what stays was fitted to a text, without a step of training; see `pruning.repair`.
    `heads_shifted` is how many gates had to be closed at the end to meet the number (opened if negative).
    """
    return [
        {"method": step.method, "seed": step.seed, "steps": step.steps}
        | {"repair": "least-squares" if step.what == "repaired" else REPAIRS.get(step.method, "none")}
        | {name: value for name, value in record.items() if name != "kept"}
        for step in comparison.steps
        if step.what not in ("roles", "scores") and (record := store.record(step)) is not None
    ]


def summarise(rows: list[Record]) -> list[Record]:
    """Return means over seeds and the perplexity's standard deviation, by method, number of heads, healing, repair."""
    names = ("method", "heads_removed", "steps", "repair")
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)

    def mean(group: list[Record], name: str) -> float | None:
        values = [row[name] for row in group]
        return None if None in values else statistics.fmean(values)  # no bits where words became <unk>

    return [
        {name: group[0][name] for name in names}
        | {"perplexity": mean(group, "perplexity"), "spread": spread([row["perplexity"] for row in group])}
        | {name: mean(group, name) for name in ("bits_per_character", "megabytes")}
        | {"seeds": len(group)}
        for group in groups.values()
    ]


def kinds_of(comparison: Comparison, store: Store) -> list[Record]:
    """Return which share of the heads of each kind is removed, by method and number of heads, means over seeds.

    The first row, of method "whole", says how many heads of each kind there are; see `roles.HeadRoles.names`.
    """
    roles, *_ = (store.record(step) for step in comparison.steps if step.what == "roles")
    if roles is None:
        return []
    names = np.array(roles["names"])
    kinds = [kind for kind, _ in Counter(names.ravel().tolist()).most_common()]
    rows: list[Record] = [
        {"method": "whole", "heads_removed": 0} | {kind: int((names == kind).sum()) for kind in kinds}
    ]
    removed: dict[tuple[str, int], list[NDArray[np.bool_]]] = {}
    for step in comparison.steps:
        if step.what == "pruned" and (record := store.record(step)) is not None:
            gone = [np.isin(range(names.shape[1]), kept, invert=True) for kept in record["kept"]]
            removed.setdefault((step.method, record["heads_removed"]), []).append(np.array(gone))
    for (method, number), gone in removed.items():
        shares = {kind: float(np.mean(gone, 0)[names == kind].mean()) for kind in kinds}
        rows.append({"method": method, "heads_removed": number} | shares)
    return rows


@matplotlib.style.context(STYLE)
def plot_kinds(kinds: list[Record]) -> Figure:
    """Draw the share of removed heads of each kind, an Axes for each number of heads, a row for each method.

    Args:
        kinds: as of `kinds_of`.
    """
    whole, *rows = kinds
    names = [name for name in whole if name not in ("method", "heads_removed")]
    numbers = sorted({row["heads_removed"] for row in rows})
    methods = list(dict.fromkeys(row["method"] for row in rows))
    size = 1.6 + len(numbers) * (0.2 + 0.3 * len(names)), 1.8 + 0.26 * len(methods)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    for axes, number in zip(figure.subplots(1, len(numbers), squeeze=False, sharey=True)[0], numbers, strict=True):
        found = {row["method"]: [row[name] for name in names] for row in rows if row["heads_removed"] == number}
        shares = [found.get(method, [np.nan] * len(names)) for method in methods]
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axes.set_title(f"{number} removed")
        axes.set_xticks(range(len(names)), [f"{name} ({whole[name]})" for name in names], rotation=90)
        axes.set_yticks(range(len(methods)), methods)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=figure.axes, label="share removed", shrink=0.8)
    return figure


@matplotlib.style.context(STYLE)
def plot_comparison(summary: list[Record]) -> Figure:
    """Draw perplexity against heads removed, a line for each method; dashed is the baseline after as many steps.

    Returns:
        Figure with an Axes for pruned models, one for repaired ones if there are any, and one for each number of steps
        of healing, with a common logarithmic scale.
    """
    whole = {row["steps"]: row["perplexity"] for row in summary if row["method"] == "whole"}
    rows = [row for row in summary if row["method"] != "whole"]
    methods = list(dict.fromkeys(row["method"] for row in rows))

    def panel_of(row: Record) -> tuple[int, bool]:
        return row["steps"], row["repair"] != "none" and not row["steps"]

    panels = sorted({panel_of(row) for row in rows})
    figure = Figure(figsize=(1.4 + 3.6 * len(panels), 4.8), dpi=DPI, layout="constrained")
    lines: dict[str, Any] = {}
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        steps, repaired = panel
        title = "repaired, without a step" if repaired else "pruned, and nothing else"
        axes.set(title=f"after {steps} steps of healing" if steps else title, xlabel="heads removed")
        if steps in whole:
            axes.axhline(whole[steps], color=GREY, linestyle="--", linewidth=1)
            place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
            axes.annotate("all heads", (1, whole[steps]), (-3, -9), ha="right", color=GREY, **place)
        for method in methods:
            own = [row for row in rows if row["method"] == method and panel_of(row) == panel]
            if own:
                x, y = ([row[name] for row in own] for name in ("heads_removed", "perplexity"))
                error = [row["spread"] or 0.0 for row in own]
                style = look(methods, method)
                if len(methods) <= len(HEAD_COLOURS):  # then each has a colour of its own
                    colour = HEAD_COLOURS[methods.index(method)]
                    face = colour if style["markerfacecolor"] == style["color"] else "white"
                    style |= {"color": colour, "markerfacecolor": face}
                lines[method] = axes.errorbar(x, y, error, capsize=2, elinewidth=0.8, **style)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.yaxis.minorticks_off()
        axes.set_xticks(sorted({r["heads_removed"] for r in rows}))
        axes.grid(alpha=0.3, linewidth=0.5)
    figure.axes[0].set_ylabel("perplexity (test)")
    named = [method for method in methods if method in lines]
    figure.legend(
        [lines[method] for method in named],
        named,
        loc="outside lower center",
        ncols=min(5, len(methods)),
        frameon=False,
        fontsize=8,
    )
    return figure


def write_results(comparison: Comparison, store: Store) -> list[Record]:
    """Write tables, picture and README.md of what is done so far; returns the rows of results.csv."""
    rows = rows_of(comparison, store)
    summary, kinds, inference = summarise(rows), kinds_of(comparison, store), comparison.inference(store)
    config, text = comparison.config.to_dict(), comparison.text
    about: dict[str, Any] = {
        "study": "compare",
        "model": comparison.name,
        "model_sha256": comparison.digest,
        "config": {table: config[table] for table in ("seed", "model", "gate", "gate_train", "finetune")},
        "text": Path(text.name).name,
        "text_sha256": text.digest,
        "tokens": {name: getattr(comparison, name) for name in ("tokens", "score_tokens", "repair_tokens", "sample")},
        "machine": machine_of(comparison.backend),
    }
    files = {"study.json": json.dumps(about, indent=1) + "\n", "README.md": report(about, summary, inference)}
    files |= {"results.csv": to_csv(rows), "summary.csv": to_csv(summary), "kinds.csv": to_csv(kinds)}
    files["inference.csv"] = to_csv(inference)
    if len(summary) > 1:
        save_figure(plot_comparison(summary), store.directory / "plots" / "compare.png")
    if len(kinds) > 1:
        save_figure(plot_kinds(kinds), store.directory / "plots" / "kinds.png")
    for name, content in files.items():
        replace_file(store.directory / name, content.encode())
    say(f"compare: {store.directory / 'README.md'}, *.csv and plots/ are written")
    return rows


def report(about: dict[str, Any], summary: list[Record], inference: list[Record]) -> str:
    """Return README.md; `about` is study.json."""
    config, tokens = about["config"], about["tokens"]
    gates, finetune, T = config["gate_train"], config["finetune"], config["model"]["T"]
    share = finetune.get("distill", 0)
    divergence = f", in which {share:.0%} of the loss is the divergence from the whole model" if share else ""
    paragraphs = [
        f"# compare, {about['model']} on {about['text']}",
        f"Perplexity on the first {tokens['tokens']:,} tokens of the held-out test split after heads were removed from "
        "one trained model, mean over seeds and standard deviation (spread): just pruned (no repair, 0 steps), with "
        f"what stays fitted to {tokens['repair_tokens']:,} tokens by least squares (repair), and healed by steps of "
        f"{finetune['B']} × {T} tokens{divergence} (`whole`: the model with all heads, before and after as many). "
        f"Criteria read {tokens['score_tokens']:,} tokens of the validation split, leave-one-out {tokens['sample']:,}; "
        f"gates on frozen weights had {gates['steps']} steps of {gates['B']} × {T}. Written by "
        "`tinyprune compare`; settings are in `study.json`, a row for each model in `results.csv`.",
        markdown_table(summary),
    ]
    if len(summary) > 1:
        paragraphs.append("![Perplexity against heads removed: pruned, repaired, healed](plots/compare.png)")
        paragraphs.append("![Which kinds of heads each method removes](plots/kinds.png)")
        paragraphs.append("Reading one text, in turns with the whole model:")
        paragraphs.append(markdown_table(inference))
    return "\n\n".join([*paragraphs, f"Machine: {about['machine']}."]) + "\n"

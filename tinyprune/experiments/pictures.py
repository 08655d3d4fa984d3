"""Pictures of studies. As in `tinyprune.plots`: what a colour says, a marker or a word says too."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from tinyprune.config import GateConfig
from tinyprune.data import Segments
from tinyprune.experiments.agreement import nearest_share
from tinyprune.experiments.cells import GATES, METHODS, load_checkpoint_bytes, read_text
from tinyprune.experiments.results import rows_of, spread
from tinyprune.experiments.store import Store
from tinyprune.experiments.studies import Entry
from tinyprune.kernels.backend import get_backend
from tinyprune.model.transformer import Transformer
from tinyprune.plots import DPI, GREY, HEAD_COLOURS, STYLE, plot_gates, save_figure
from tinyprune.progress import say
from tinyprune.tables import Record

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h")
LINES = ("-", "--", "-.", ":")
ORDER = ("gates", *(method for method in METHODS if method != "gates"))
MEASURES = {
    "parameters": "parameters",
    "multiply_adds_per_token": "multiply-adds a token",
    "ms_per_1k_tokens": "ms per 1,000 tokens",
}


def draw(name: str, store: Store, entries: Sequence[Entry], tables: dict[str, list[Record]]) -> list[str]:
    """All pictures of a study, into its directory's plots/; those of an earlier run go. Returns their names."""
    figures: dict[str, Figure] = {}
    if name == "tradeoff":
        figures["tradeoff"] = plot_tradeoff(tables["results"])
        figures["kept"] = plot_kept(tables["results"])
        figures["agreement"] = plot_agreement(tables["agreement"])
        shown = example(entries, store, "gates")
        if shown is not None:
            entry, record = shown
            figures["gate_paths"] = plot_paths(entry, record)
            baseline = baseline_model(entry, store)
            if baseline is None:
                say("the picture of attention is left out: the baseline's weights are not in baselines/")
            else:
                figures["attention"] = plot_attention(*baseline, record["head_ids"])
    elif name == "ablation":
        figures["ablation"] = plot_ablation(tables["results"])
    else:
        figures["architecture"] = plot_architecture(tables["results"])
        figures["inference"] = plot_inference(tables["inference"])
    folder = store.directory / "plots"
    for picture, figure in figures.items():
        save_figure(figure, folder / f"{picture}.png")
    for path in folder.glob("*.png"):
        if path.stem not in figures:
            path.unlink()
    return list(figures)


def look(names: Sequence[str], name: str) -> dict[str, Any]:
    """Colour, marker and line of one of several methods.

    A method of `METHODS` looks the same in all pictures. No two of them have marker, line and filling in common.
    """
    i = (ORDER if name in ORDER else list(names)).index(name)
    turn = i // len(HEAD_COLOURS)  # of the colours
    colour = HEAD_COLOURS[i % len(HEAD_COLOURS)]
    return {
        "color": colour,
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": LINES[(i + turn) % len(LINES)],
        "markerfacecolor": "white" if (i + turn) % 2 else colour,
        "markersize": 5,
        "linewidth": 2.0 if name == "gates" else 1.2,
    }


def means(rows: Sequence[Record], x: str) -> tuple[NDArray, NDArray, NDArray]:
    """For each number of heads: mean of `x`, mean of bits per character and their spread over seeds, by rising x."""
    groups: dict[int, list[Record]] = {}
    for row in rows:
        groups.setdefault(row["heads_open"], []).append(row)
    points = sorted(
        (
            statistics.fmean(r[x] for r in group),
            statistics.fmean(r["bits_per_character"] for r in group),
            spread([r["bits_per_character"] for r in group]) or 0.0,
        )
        for group in groups.values()
    )
    return tuple(np.array(points).T)


@matplotlib.style.context(STYLE)
def plot_tradeoff(rows: Sequence[Record], split: str = "test") -> Figure:
    """Quality against heads that stay, parameters and time.

    Args:
        rows: of results.csv.

    Returns:
        Figure with three Axes. Bits per character of each method, mean and standard deviation over seeds as error bars,
        against heads that stay (above: parameters) and against measured time; the dotted line is the model that kept
        all heads and was trained as long. Then the difference from random pruning to as many heads, by seeds.
    """
    methods = [m for m in dict.fromkeys(r["method"] for r in rows) if m not in ("baseline", "unpruned")]
    total = rows[0]["heads_total"]
    figure = Figure(figsize=(12, 4.6), dpi=DPI, layout="constrained")
    by_heads, by_time, difference = figure.subplots(1, 3)
    by_heads.set(xlabel="heads that stay", ylabel=f"bits per character ({split})", xlim=(0, total + 1))
    by_time.set(xlabel=MEASURES["ms_per_1k_tokens"], ylabel=f"bits per character ({split})")
    difference.set(xlabel="heads that stay", ylabel="difference from random pruning (below 0: better)")
    difference.set_xlim(0, total + 1)
    unpruned = rows_of(rows, "unpruned", split)
    if unpruned:
        level = statistics.fmean(r["bits_per_character"] for r in unpruned)
        for axes in (by_heads, by_time):
            axes.axhline(level, color=GREY, linestyle=":", linewidth=1)
            place = ("axes fraction", "data")
            axes.annotate("all heads", (0, level), (3, -9), xycoords=place, textcoords="offset points")
    random_bits = {(r["heads_open"], r["seed"]): r["bits_per_character"] for r in rows_of(rows, "random", split)}
    # a little apart, so that error bars do not hide each other
    offsets = np.linspace(-0.35, 0.35, len(methods)) if len(methods) > 1 else np.zeros(1)
    for method, offset in zip(methods, offsets, strict=True):
        own = rows_of(rows, method, split)
        style = {"capsize": 2, "elinewidth": 0.8} | look(methods, method)
        x, y, error = means(own, "heads_open")
        by_heads.errorbar(x + offset, y, error, label=method, **style)
        by_time.errorbar(*means(own, "ms_per_1k_tokens"), **style)
        paired = [
            r | {"bits_per_character": r["bits_per_character"] - random_bits[r["heads_open"], r["seed"]]}
            for r in own
            if (r["heads_open"], r["seed"]) in random_bits
        ]
        if method != "random" and paired:
            x, y, error = means(paired, "heads_open")
            difference.errorbar(x + offset, y, error, **style)
    difference.axhline(0, color=look(methods, "random")["color"], linewidth=1)
    _parameters_above(by_heads, rows)
    for axes in (by_heads, difference):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in figure.axes:
        axes.grid(alpha=0.3, linewidth=0.5)
    figure.legend(loc="outside lower center", ncols=min(6, len(methods)), frameon=False, fontsize=8)
    figure.suptitle(f"mean and standard deviation over {seeds_of(rows)} seeds", fontsize=9)
    return figure


def seeds_of(rows: Sequence[Record]) -> int:
    """How many seeds there are."""
    return len({r["seed"] for r in rows})


def _parameters_above(axes: Axes, rows: Sequence[Record]) -> None:
    """A second x axis with parameters, which are a straight line over heads: each head owns as many."""
    points = {(r["heads_open"], r["parameters"]) for r in rows}
    if len({heads for heads, _ in points}) < 2:
        return
    (h0, p0), (h1, p1) = min(points), max(points)
    slope = (p1 - p0) / (h1 - h0)
    above = axes.secondary_xaxis("top", functions=(lambda h: p0 + slope * (h - h0), lambda p: h0 + (p - p0) / slope))
    above.set_xlabel("parameters")
    above.xaxis.set(major_locator=MaxNLocator(5), major_formatter=EngFormatter(sep=""))


@matplotlib.style.context(STYLE)
def plot_kept(rows: Sequence[Record]) -> Figure:
    """How many heads of each layer stay, for each method.

    Returns:
        Figure with one Axes for each number of heads: a row for each method, a column for each layer, the mean over
        seeds written in the cell, darker for more.
    """
    own = [r for r in rows if r["split"] == "test" and r["method"] not in ("baseline", "unpruned")]
    methods = list(dict.fromkeys(r["method"] for r in own))
    counts = sorted({r["heads_open"] for r in own}, reverse=True)
    L = len(str(own[0]["heads_by_layer"]).split())
    H = own[0]["heads_total"] // L
    width = max(7.0, 1.6 + len(counts) * (0.34 * L + 0.35))
    figure = Figure(figsize=(width, 1.1 + 0.27 * len(methods)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axes, count in zip(panels, counts, strict=True):
        table = np.full((len(methods), L), np.nan)
        for i, method in enumerate(methods):
            layers = [
                [int(h) for h in str(r["heads_by_layer"]).split()]
                for r in own
                if r["method"] == method and r["heads_open"] == count
            ]
            if layers:
                table[i] = np.mean(layers, 0)
        axes.imshow(table, cmap="Blues", vmin=0, vmax=H, aspect="auto")
        for (i, layer), value in np.ndenumerate(table):
            if not np.isnan(value):
                text = f"{value:.1f}".removesuffix(".0")
                axes.text(
                    layer, i, text, ha="center", va="center", color="white" if value > 0.6 * H else "black", size=7
                )
        axes.set(title=f"{count} of {own[0]['heads_total']}", xticks=range(L), yticks=range(len(methods)))
        axes.set_yticklabels(methods)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.supxlabel(f"layer (heads kept in it, of {H}, mean over seeds)")
    return figure


@matplotlib.style.context(STYLE)
def plot_agreement(records: Sequence[Record]) -> Figure:
    """Rank correlation of every two methods' scores: a square table, numbers written in it."""
    methods = list(dict.fromkeys(r["method"] for r in records))
    table = np.array(
        [
            [next(r["rank_correlation"] for r in records if (r["method"], r["other"]) == (a, b)) for b in methods]
            for a in methods
        ]
    )
    size = 2.2 + 0.42 * len(methods)
    figure = Figure(figsize=(size + 0.6, size), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(title="rank correlation of what methods think of the heads")
    axes.imshow(table, cmap="RdBu", vmin=-1, vmax=1)
    for (i, j), value in np.ndenumerate(table):
        axes.text(
            j,
            i,
            f"{value:.2f}".replace("0.", ".").replace("1.00", "1"),
            ha="center",
            va="center",
            size=7,
            color="white" if abs(value) > 0.65 else "black",
        )
    axes.set(xticks=range(len(methods)), yticks=range(len(methods)))
    axes.set_xticklabels(methods, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticklabels(methods)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def example(entries: Sequence[Entry], store: Store, method: str) -> tuple[Entry, dict[str, Any]] | None:
    """The first seed's cell of a method, at the share of heads nearest to one half."""
    half = nearest_share(entries)
    for entry in entries:
        record = store.record(entry.cell)
        if entry.method == method and entry.target_share == half and record is not None:
            return entry, record
    return None


def plot_paths(entry: Entry, record: dict[str, Any]) -> Figure:
    """The gates of one cell over the gate stage; see `plots.plot_gates`."""
    gate: GateConfig = dataclasses.replace(
        entry.cell.config.gate, target_heads=entry.cell.heads, **GATES[entry.cell.method]
    )
    path = [
        line | {"heads_open": sum(x >= 0 for layer in line["log_alpha"] for x in layer)} for line in record["gate_path"]
    ]
    return plot_gates(path, gate)


def baseline_model(entry: Entry, store: Store) -> tuple[Transformer, NDArray] | None:
    """The baseline of a cell, on the textbook's operations, and the validation split; None without its weights."""
    config = entry.cell.config
    text = read_text(config.data)
    content = store.checkpoint(entry.cell.baseline)
    if content is None:
        return None
    model = dataclasses.replace(config.model, V=text.tokenizer.V)
    return Transformer(model, load_checkpoint_bytes(content), ops=get_backend("numpy")), text.valid


@matplotlib.style.context(STYLE)
def plot_attention(model: Transformer, tokens: NDArray, head_ids: Sequence[Sequence[int]], each: int = 3) -> Figure:
    """Where heads look that were kept, and heads that were removed.

    Args:
        model: the baseline, all heads open, on operations that keep attention weights.
        tokens: of a text; its second segment is read, so that memory is full.
        head_ids: which heads of each layer were kept.
        each: so many of both kinds are shown, spread over the layers.

    Returns:
        Figure: above kept heads, below removed ones; x the key, counted from the first query, y the query, darker for
        more weight, each map on its own scale; the share that goes to persistent vectors is in the title.
    """
    T, N = model.config.T, model.config.N
    ids, _, _ = Segments(tokens, 1, T).batch(0)
    following, _, _ = Segments(tokens, 1, T).batch(1)
    _, memory, _ = model.forward(ids)
    _, _, cache = model.forward(following, memory)
    kept = [(layer, h) for layer, heads in enumerate(head_ids) for h in heads]
    everyone = [(layer, h) for layer, count in enumerate(model.config.heads) for h in range(count)]
    removed = [head for head in everyone if head not in kept]
    figure = Figure(figsize=(2.4 * each + 0.6, 5.2), dpi=DPI, layout="constrained")
    panels = figure.subplots(2, each, squeeze=False, sharex=True, sharey=True)
    for row, (word, heads) in zip(panels, (("kept", kept), ("removed", removed)), strict=True):
        places = np.linspace(0, len(heads) - 1, min(each, len(heads))).round().astype(int)
        for axes in row[len(places) :]:
            axes.set_visible(False)
        for axes, place in zip(row, places, strict=False):
            layer, h = heads[place]
            a = cache["layers"][layer]["attention"].a[0, h]
            context = a[:, : a.shape[1] - N]
            axes.imshow(
                context,
                cmap="Greys",
                vmin=0,
                vmax=max(np.quantile(context, 0.995), 1e-6),
                aspect="auto",
                extent=(-0.5 - (context.shape[1] - T), T - 0.5, T - 0.5, -0.5),
                interpolation="nearest",
            )
            share = f", {a[:, -N:].sum(1).mean():.0%} persistent" if N else ""
            axes.set_title(f"{word}: layer {layer}, head {h}{share}", fontsize=8)
            axes.axvline(-0.5, color=GREY, linewidth=0.8, linestyle=":")
    figure.supxlabel("key (left of the dotted line: memory); darker: more weight, each map on its own scale")
    figure.supylabel("query")
    return figure


@matplotlib.style.context(STYLE)
def plot_ablation(rows: Sequence[Record], split: str = "test") -> Figure:
    """Bits per character of each variant.

    Returns:
        Figure with one Axes for each number of heads: a row for each variant, a dot for each seed, a bar for the mean.
    """
    own = [r for r in rows if r["split"] == split]
    variants = list(dict.fromkeys(r["method"] for r in own))
    counts = sorted({r["heads_open"] for r in own}, reverse=True)
    figure = Figure(figsize=(2 + 2.6 * len(counts), 1.2 + 0.32 * len(variants)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axes, count in zip(panels, counts, strict=True):
        for place, variant in enumerate(variants):
            bits = [r["bits_per_character"] for r in own if r["method"] == variant and r["heads_open"] == count]
            axes.plot(bits, [place] * len(bits), "o", color=HEAD_COLOURS[0], alpha=0.6, markersize=4)
            axes.plot([statistics.fmean(bits)] * 2, [place - 0.3, place + 0.3], color="black", linewidth=2)
        axes.set(title=f"{count} of {own[0]['heads_total']} heads", yticks=range(len(variants)))
        axes.set_yticklabels(variants)
        axes.set_ylim(len(variants) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    figure.supxlabel("bits per character (test); dots: seeds, bar: mean; left is better")
    return figure


@matplotlib.style.context(STYLE)
def plot_architecture(rows: Sequence[Record], split: str = "test") -> Figure:
    """Quality of both architectures against parameters, multiply-adds and time, with error bars over seeds."""
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
    figure.suptitle(f"mean and standard deviation over {seeds_of(rows)} seeds", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure


@matplotlib.style.context(STYLE)
def plot_inference(records: Sequence[Record]) -> Figure:
    """What is left of parameters, multiply-adds and time as heads go, with the line of proportion."""
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

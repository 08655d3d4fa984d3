"""Trade-off: quality against the number of heads kept, for every method, and whether methods agree on the heads."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.style
import numpy as np
import safetensors.numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import ArrayLike, NDArray

from tinyprune.data import Segments
from tinyprune.experiments.cells import GATES, read_text
from tinyprune.experiments.drawing import MEASURES, draw_seeds, look, means, name_seeds
from tinyprune.experiments.plan import Entry, Finished, Plan, Study
from tinyprune.experiments.results import compare, rows_of
from tinyprune.experiments.store import Store
from tinyprune.kernels.backend import get_backend
from tinyprune.model.transformer import Transformer
from tinyprune.plots import DPI, GREY, STYLE, plot_gates
from tinyprune.progress import say
from tinyprune.tables import Record


def entries(plan: Plan) -> list[Entry]:
    """Every method at every share of the heads, and a model that keeps all heads."""
    made = []
    for config in plan.configs():
        made += [plan.entry(name, config, name) for name in ("baseline", "unpruned")]
        made += [plan.entry(method, config, method, share) for method in plan.methods for share in plan.shares]
    return made


# Do the methods agree on which heads matter?


def ranks(values: ArrayLike) -> NDArray:
    """Return the rank of each value, from 0; equal values share the mean of theirs. (n,) -> (n,) float64."""
    values = np.asarray(values, float)
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts + 1) / 2)[place]


def rank_correlation(a: ArrayLike, b: ArrayLike) -> float:
    """Return Spearman's rank correlation of (n,) and (n,): −1 … 1, or 0 if all values of one of them are equal."""
    x, y = (r - r.mean() for r in (ranks(a), ranks(b)))
    size = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / size) if size else 0.0


def nearest_share(entries: Sequence[Entry], share: float = 0.5) -> float | None:
    """Return the share of heads in a study that is nearest to `share`; None if nothing is pruned."""
    shares = {entry.target_share for entry in entries if entry.target_share is not None}
    return min(shares, key=lambda s: (abs(s - share), s), default=None)


def agreement(entries: Sequence[Entry], store: Store) -> list[Record]:
    """Correlate the scores that every two methods give to the heads, at the share nearest to one half.

    A learned method's score of a head is its log_alpha at the end of the gate stage. The mean is over the seeds.
    """
    half = nearest_share(entries)
    scores: dict[str, dict[int, NDArray]] = {}
    for entry in entries:
        record = store.record(entry.cell)
        if entry.target_share == half and record and "scores" in record:
            scores.setdefault(entry.method, {})[entry.seed] = np.concatenate(record["scores"])
    return [
        {
            "method": a,
            "other": b,
            "rank_correlation": statistics.fmean(rank_correlation(own[seed], scores[b][seed]) for seed in own),
            "seeds": len(own),
        }
        for a, own in scores.items()
        for b in scores
    ]


# Pictures.


@matplotlib.style.context(STYLE)
def plot_tradeoff(rows: Sequence[Record], split: str = "test") -> Figure:
    """Draw quality against heads that stay, parameters and time, from the rows of results.csv.

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
    from_random = compare(rows, "random", split)
    # a little apart, so that error bars do not hide each other
    offsets = np.linspace(-0.35, 0.35, len(methods)) if len(methods) > 1 else np.zeros(1)
    for method, offset in zip(methods, offsets, strict=True):
        own = rows_of(rows, method, split)
        style = {"capsize": 2, "elinewidth": 0.8} | look(methods, method)
        x, y, error = means(own, "heads_open")
        by_heads.errorbar(x + offset, y, error, label=method, **style)
        by_time.errorbar(*means(own, "ms_per_1k_tokens"), **style)
        paired = [r for r in from_random if r["method"] == method]
        if paired:
            points = sorted((r["heads_open"], r["difference"], r["spread"] or 0.0) for r in paired)
            x, y, error = np.array(points).T
            difference.errorbar(x + offset, y, error, **style)
    difference.axhline(0, color=look(methods, "random")["color"], linewidth=1)
    _parameters_above(by_heads, rows)
    for axes in (by_heads, difference):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in figure.axes:
        axes.grid(alpha=0.3, linewidth=0.5)
    figure.legend(loc="outside lower center", ncols=min(6, len(methods)), frameon=False, fontsize=8)
    name_seeds(figure, rows)
    return figure


@matplotlib.style.context(STYLE)
def plot_beyond(rows: Sequence[Record], split: str = "test", reference: str = "michel") -> Figure | None:
    """Draw how many bits more than the reference each method needs, seed by seed; None if the reference is missing.

    There is an Axes for each number of heads; methods are in the order of their means at the number nearest to half.
    """
    own = [r for r in rows if r["split"] == split and r["method"] not in ("baseline", "unpruned")]
    level = {(r["heads_open"], r["seed"]): r["bits_per_character"] for r in own if r["method"] == reference}
    counts = sorted({heads for heads, _ in level}, reverse=True)
    if not counts:
        return None
    total = own[0]["heads_total"]
    found: dict[int, dict[str, list[float]]] = {count: {} for count in counts}
    for row in own:
        pair = (row["heads_open"], row["seed"])
        if pair in level:
            values = found[row["heads_open"]].setdefault(row["method"], [])
            values.append(row["bits_per_character"] - level[pair])
    half = found[min(counts, key=lambda count: abs(count - total / 2))]
    order = sorted(half, key=lambda method: statistics.fmean(half[method]))
    figure = Figure(figsize=(2 + 1.9 * len(counts), 1.2 + 0.24 * len(order)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(counts), squeeze=False, sharey=True)[0]
    for axes, count in zip(panels, counts, strict=True):
        axes.axvline(0, color=GREY, linewidth=1)
        draw_seeds(axes, {method: found[count].get(method, []) for method in order})
        axes.set_title(f"{count} of {total} heads")
    figure.supxlabel(f"bits per character more than {reference} ({split}); dots: seeds, bar: mean; left is better")
    return figure


def _parameters_above(axes: Axes, rows: Sequence[Record]) -> None:
    """Draw a second x axis with parameters, which are linear in the number of heads: each head owns equally many."""
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
    """Draw how many heads of each layer stay: an Axes for each number of heads in all layers together.

    It has a row for each method and a column for each layer; the mean over seeds is written in the cell.
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
        axes.set(title=f"{count} of {own[0]['heads_total']}", xticks=range(L))
        texts = {value: f"{value:.1f}".removesuffix(".0") for value in table.flat}
        _draw_table(axes, table, methods, texts, 0.6 * H, cmap="Blues", vmin=0, vmax=H, aspect="auto")
    figure.supxlabel(f"layer (heads kept in it, of {H}, mean over seeds)")
    return figure


def _draw_table(
    axes: Axes, table: NDArray, names: Sequence[str], texts: dict[float, str], dark: float, **options: Any
) -> None:
    """Draw a table (rows, columns) as an image (`options` of `imshow`) with the rows' names; NaN is left empty.

    `texts` are written for the values, in white where a value's magnitude is above `dark`.
    """
    axes.imshow(table, **options)
    for (i, j), value in np.ndenumerate(table):
        if not np.isnan(value):
            color = "white" if abs(value) > dark else "black"
            axes.text(j, i, texts[value], ha="center", va="center", color=color, size=7)
    axes.set(yticks=range(len(names)))
    axes.set_yticklabels(names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


@matplotlib.style.context(STYLE)
def plot_agreement(records: Sequence[Record]) -> Figure:
    """Draw the rank correlation of every two methods' scores: a square table, with the numbers written in it."""
    methods = list(dict.fromkeys(r["method"] for r in records))
    found = {(r["method"], r["other"]): r["rank_correlation"] for r in records}
    table = np.array([[found[a, b] for b in methods] for a in methods])
    size = 2.2 + 0.42 * len(methods)
    figure = Figure(figsize=(size + 0.6, size), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(title="rank correlation of what methods think of the heads")
    texts = {value: f"{value:.2f}".replace("0.", ".").replace("1.00", "1") for value in table.flat}
    _draw_table(axes, table, methods, texts, 0.65, cmap="RdBu", vmin=-1, vmax=1)
    axes.set_xticks(range(len(methods)), methods, rotation=45, ha="right", rotation_mode="anchor")
    return figure


@matplotlib.style.context(STYLE)
def plot_attention(model: Transformer, tokens: NDArray, head_ids: Sequence[Sequence[int]], each: int = 3) -> Figure:
    """Draw where heads look that were kept (above: `each` of them, spread over the layers), and that were removed.

    x is the key, counted from the first query, y the query, darker for more weight, each map on its own scale; the
    share that goes to persistent vectors is in the title.

    Args:
        model: the baseline, all heads open, on a backend that keeps attention weights (NumPy).
        tokens: a text, (n,) int; attention in its second segment is drawn, so that memory is full.
        head_ids: which heads of each layer were kept.
    """
    T, N = model.config.T, model.config.attended
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
            a = cache.attention_blocks[layer].attention.a[0, h]
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


def tables(done: Finished) -> dict[str, list[Record]]:
    """Compare every method with gates and with Michel's criterion, and the methods' scores with each other."""
    return {
        "comparison": [r for method in ("gates", "michel") for r in compare(done.tables["results"], method)],
        "agreement": agreement(done.entries, done.store),
    }


def pictures(done: Finished) -> Iterator[tuple[str, str, Figure]]:
    """Draw the pictures; attention only if the baseline's weights are there."""
    rows, half = done.tables["results"], nearest_share(done.entries)
    caption = "Bits per character against heads that stay, for each method, with error bars"
    yield "tradeoff", caption, plot_tradeoff(rows)
    beyond = plot_beyond(rows)
    if beyond:
        yield "beyond", "Bits per character more than Michel's criterion needs, for each method", beyond
    yield "kept", "Heads kept in each layer, for each method", plot_kept(rows)
    agreed = plot_agreement(done.tables["agreement"])
    yield "agreement", "Rank correlation between what the methods think of the heads", agreed
    shown = next((e for e in done.entries if (e.method, e.target_share) == ("gates", half)), None)
    if shown is None:
        return
    cell, record = shown.cell, done.store.record(shown.cell)
    gate = dataclasses.replace(cell.config.gate, target_heads=cell.heads, **GATES[cell.method])
    path = [
        point | {"heads_open": int((np.concatenate(point["log_alpha"]) >= 0).sum())} for point in record["gate_path"]
    ]
    caption = "Probability of being open of every head, layer by layer, over the gate stage"
    yield "gate_paths", caption, plot_gates(path, gate)
    weights = done.store.checkpoint(cell.baseline)
    if weights is None:
        say("the picture of attention is left out: the baseline's weights are not in baselines/")
        return
    text = read_text(cell.config.data)
    config = dataclasses.replace(cell.config.model, V=text.tokenizer.V)
    baseline = Transformer(config, safetensors.numpy.load(weights), ops=get_backend("numpy"))
    caption = "Where heads that were kept and heads that were removed look"
    yield "attention", caption, plot_attention(baseline, text.valid, record["head_ids"])


STUDY = Study(entries, tables, pictures)

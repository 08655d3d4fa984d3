"""Figures of a run: its losses, its gates over time, the heads that were kept, and what heads attend to.

They are readable on a screen, in black-and-white print and for the colour-blind: line styles, weights or words repeat
what colours say, and lines carry their names instead of a legend. matplotlib's global settings stay unchanged, and a
user's matplotlibrc does not change a figure.

The records are those of metrics.jsonl, see `tinyprune.training.metrics.read_metrics`.
"""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.io.files import PICTURES, checked_path, replace_file
from tinyprune.io.tables import Record
from tinyprune.method.gates import opening_log_alpha
from tinyprune.method.roles import KINDS, HeadRoles
from tinyprune.ops import p_open

DPI = 150
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#666666"
# Okabe & Ito 2008, "Color Universal Design", with grey instead of yellow, which is hard to see on white.
HEAD_COLOURS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#E69F00", "#000000", "#56B4E9", GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8", "H", ".")
LINES = ("-", "--", "-.", ":")
Ids = Sequence[Sequence[int]]  # numbers of heads or blocks, by layer
KEPT, REMOVED = {"facecolor": BLUE}, {"facecolor": "white", "edgecolor": "#AAAAAA", "hatch": "////"}
# "default" comes first, so that matplotlib's own settings replace the user's.
STYLE = [
    "default",
    {
        "font.size": 9,
        "axes.titlesize": 10,
        "figure.labelsize": 9,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "hatch.linewidth": 0.6,
        "svg.hashsalt": "tinyprune",  # names of parts are random numbers otherwise
    },
]


@matplotlib.style.context(STYLE)
def plot_losses(records: Sequence[Record]) -> Figure:
    """Plot the loss over the whole run, one stage after the other; raises UsageError if the records have none.

    The training loss is shown as logged (faint) and as a running mean. The numbers are the validation losses at the end
    of each stage.

    Returns:
        Figure with one Axes: x in steps since the run began, y in bits per token (nats / ln 2) on a log scale, which
        shows small differences at the end beside the steep beginning.
    """
    records = [r for r in records if r["split"] in ("train", "valid")]
    if not records:
        raise UsageError("these metrics hold no loss to plot; train for a few steps first")
    figure = Figure(figsize=(7, 3.5), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xlabel="step, the stages one after the other", ylabel="bits per token")
    # A text of a single character has losses of 0, which a log scale cannot show.
    axes.set_yscale("log" if min(r["loss"] for r in records) > 0 else "linear")
    start, middles, ends = 0, {}, {}
    for stage in dict.fromkeys(r["stage"] for r in records):
        own = [r for r in records if r["stage"] == stage]
        if start:
            axes.axvline(start, color=GREY, linewidth=0.8, linestyle=":")
            if "validation" in ends:
                bits, colour = ends["validation"]
                box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
                look = {"ha": "right", "color": colour, "bbox": box, "zorder": 4}
                _write(axes, f"{bits:.2f}", (start, bits), (-4, 7), **look)
        ends |= _draw_losses(axes, own, start)
        end = start + max(r["step"] for r in own)
        middles[stage] = (start + end) / 2
        start = end
    total = max(start, 1)
    axes.set_xlim(_limits(total))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10]))
    axes.yaxis.set(major_formatter="{x:g}", minor_locator=NullLocator())
    places = spread([middle / total for middle in middles.values()], gap=0.12)
    for stage, x in zip(middles, places, strict=True):
        _write(axes, stage, (x, 1), (0, 6), "axes fraction", ha="center")
    _name_lines(axes, {f"{name} {y:.2f}": (y, colour) for name, (y, colour) in ends.items()})
    return figure


def _draw_losses(axes: Axes, records: list[Record], start: int) -> dict[str, tuple[float, str]]:
    """Draw the curves of a stage that begins after step `start`; return the last value and the colour of each."""
    ends = {}
    steps, bits = _losses(records, "train")
    if steps.size:
        mean = running_mean(bits)
        axes.plot(start + steps, bits, color=BLUE, alpha=0.3, linewidth=0.8)
        axes.plot(start + steps, mean, color=BLUE, linewidth=1.8, marker=_marker(steps))
        ends["training"] = mean[-1], BLUE
    steps, bits = _losses(records, "valid")
    if steps.size:
        look = {"linestyle": "--", "linewidth": 1, "marker": "o", "markersize": 5}
        axes.plot(start + steps, bits, color=VERMILION, **look)
        ends["validation"] = bits[-1], VERMILION
    return ends


def _losses(records: list[Record], split: str) -> tuple[NDArray, NDArray]:
    """Return the steps and the losses of a split, in bits."""
    own = [r for r in records if r["split"] == split]
    return np.array([r["step"] for r in own]), np.array([r["loss"] for r in own]) / math.log(2)


@matplotlib.style.context(STYLE)
def plot_gates(
    records: Sequence[Record], gate: GateConfig, head_ids: Ids | None = None, target_heads: int | None = None
) -> Figure:
    """Plot each head's probability of being open over the gate stage, and the number of open heads.

    `head_ids` are the original numbers of the parts with gates, `Parts.ids`; by default 0, 1, 2 … `target_heads` is
    drawn as a line.
    Raises UsageError if no record has "log_alpha".

    Returns:
        Figure: the first Axes shows the number of open heads, each other one a layer with a line for each head: x in
        steps of the gate stage, y the probability P(open). Heads that are open in evaluation at the end are solid and
        thick, the others dashed and thin.
    """
    records = [r for r in records if "log_alpha" in r]
    if not records:
        raise UsageError("these metrics hold no gates to plot; run the gate stage first")
    steps = np.array([r["step"] for r in records])
    layers = len(records[0]["log_alpha"])
    columns = min(4, math.ceil(math.sqrt(layers)))
    rows = math.ceil(layers / columns)
    figure = Figure(figsize=(max(7, 2.4 * columns), 2 + 1.6 * rows), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(1 + rows, columns)
    _draw_open_heads(figure.add_subplot(grid[0, :]), steps, records, gate, target_heads)
    openness, opened, boundary = _openness(records, gate)
    names = [f"layer {i}" for i in range(layers)]
    if "blocks_open" in records[0]:  # the blocks of units of all layers come after the heads
        names[layers // 2 :] = [f"{name}, units" for name in names[: layers // 2]]
    if head_ids is None:
        head_ids = [range(gates.shape[1]) for gates in openness]
    for layer, (name, heads) in enumerate(zip(names, head_ids, strict=True)):
        axes = figure.add_subplot(grid[1 + layer // columns, layer % columns])
        axes.set_title(name if heads else f"{name}: none left")
        _draw_gates(axes, steps, openness[layer], opened[layer], boundary, heads)
        outer_left, outer_bottom = layer % columns == 0, layer + columns >= layers
        axes.tick_params(labelleft=outer_left, labelbottom=outer_bottom)
        if outer_left:
            axes.set_ylabel("P(open)")
    dotted = "above the dotted line a head is open in evaluation"
    figure.supxlabel(f"step of the gate stage\n{dotted}; thick: open at the end")
    return figure


def _draw_open_heads(axes: Axes, steps: NDArray, records: list[Record], gate: GateConfig, target: int | None) -> None:
    """Draw the number of open heads: in evaluation, expected (which is L0), and wanted."""
    total = sum(len(layer) for layer in records[0]["log_alpha"])
    opened = [r["heads_open"] + r.get("blocks_open", 0) for r in records]
    expected = sum(layer.sum(1) for layer in _openness(records, gate)[0])
    parts = "heads and blocks" if "blocks_open" in records[0] else "heads"
    axes.set(title=f"open {parts} (of {total})", xlim=_limits(steps[-1]), ylim=(0, 1.04 * max(total, 1)))
    marker = _marker(steps)
    axes.plot(steps, opened, color="black", linewidth=1.8, drawstyle="steps-post", marker=marker)
    axes.plot(steps, expected, color=BLUE, linewidth=1.2, linestyle="--", marker=marker)
    ends = {f"{opened[-1]} in evaluation": (opened[-1], "black")}
    ends[f"{expected[-1]:.1f} expected"] = expected[-1], BLUE
    if target is not None:
        axes.axhline(target, color=GREY, linewidth=0.8, linestyle=":")
        ends[f"{target} wanted"] = target, GREY
    axes.locator_params(integer=True)
    _name_lines(axes, ends)


def _openness(records: list[Record], gate: GateConfig) -> tuple[list[NDArray], list[NDArray], float]:
    """Measure how open the gates are: for each layer openness (records, heads), and who is open at the end (heads,).

    Openness, 0 … 1, is the probability that a gate is open. Last comes the openness above which one is in evaluation.
    """
    joined = np.array([np.concatenate(r["log_alpha"]) for r in records])
    heads = [len(layer) for layer in records[0]["log_alpha"]]
    options = {"beta": gate.beta, "gamma": gate.gamma, "zeta": gate.zeta}
    openness, opened = p_open(joined, **options), joined[-1] >= opening_log_alpha(gate)
    boundary = float(p_open(np.array(opening_log_alpha(gate)), **options))
    cuts = np.cumsum(heads)[:-1]
    return np.split(openness, cuts, axis=1), np.split(opened, cuts), boundary


def _draw_gates(
    axes: Axes, steps: NDArray, openness: NDArray, opened: NDArray, boundary: float, heads: Sequence[int]
) -> None:
    """Draw one layer's gates, from their openness (records, heads)."""
    axes.axhline(boundary, color=GREY, linewidth=0.8, linestyle=":")
    axes.set(xlim=_limits(steps[-1]), ylim=(-0.03, 1.03), yticks=[0, 0.5, 1])
    axes.locator_params(axis="x", nbins=4, integer=True)
    for i, head in enumerate(heads):
        look = {"linewidth": 1.8} if opened[i] else {"linewidth": 0.9, "linestyle": "--"}
        look |= {"color": HEAD_COLOURS[head % len(HEAD_COLOURS)], "marker": _marker(steps)}
        axes.plot(steps, openness[:, i], label=f"head {head}", **look)
    _number_heads(axes, heads, openness[-1], opened)


def _number_heads(axes: Axes, heads: Sequence[int], ends: NDArray, opened: NDArray) -> None:
    """Write each head's number at the right, in a row of numbers as near to the end of its line as there is room."""
    heights = np.linspace(0, 1, 8)
    filled = np.zeros(8, int)
    room = max(4, math.ceil(len(heads) / 8))
    width = 3 + 6 * len(str(max(heads, default=0)))
    for head, end, is_open in zip(heads, ends, opened, strict=True):
        row = np.where(filled < room, abs(heights - end), np.inf).argmin()
        place, offset = (1, heights[row]), (5 + width * filled[row], 0)
        filled[row] += 1
        # Lines may be of a light colour, but numbers in it would be hard to read.
        colour = [0.7 * x for x in to_rgb(HEAD_COLOURS[head % len(HEAD_COLOURS)])]
        look = {"va": "center", "color": colour, "weight": "bold" if is_open else "normal"}
        _write(axes, str(head), place, offset, ("axes fraction", "data"), **look)


@matplotlib.style.context(STYLE)
def plot_heads(config: ModelConfig) -> Figure:
    """Plot which heads, and which blocks of units, a model still has.

    Returns:
        Figure with one Axes, or two if there are blocks: a row for each layer, the first at the top, and a column for
        each original head. A filled cell with a number is a head that was kept, an empty hatched cell one that was
        removed.
    """
    panels = [("head", config.H, config.head_ids)]
    if config.U:
        panels.append(("block", config.F // config.U, config.block_ids))
    cells = sum(count + 3 for _, count, _ in panels)
    size = max(3.5, 0.1 + 0.34 * cells), 0.85 + 0.34 * config.L
    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    grid = figure.add_gridspec(1, len(panels), width_ratios=[count for _, count, _ in panels])
    for column, (name, count, ids) in enumerate(panels):
        axes = figure.add_subplot(grid[column], xlabel=name, ylabel="layer", aspect="equal")
        axes.set(xlim=(-0.5, count - 0.5), ylim=(config.L - 0.5, -0.5))
        axes.set(xticks=range(count), yticks=range(config.L))
        axes.set_title(f"{sum(map(len, ids))} of {config.L * count} {name}s kept")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        for layer, kept in enumerate(ids):
            for head in range(count):
                _draw_cell(axes, layer, head, KEPT if head in kept else REMOVED)
            for head in kept:
                look = {"color": "white", "fontweight": "bold"}
                axes.text(head, layer, str(head), ha="center", va="center", **look)
            _write(axes, f"{len(kept)}/{count}", (count - 0.5, layer), (6, 0), va="center")
    return figure


def _draw_cell(axes: Axes, layer: int, head: int, look: dict[str, str]) -> None:
    """Draw the cell of a head, which is one unit wide with the gaps around it."""
    axes.add_patch(Rectangle((head - 0.44, layer - 0.44), 0.88, 0.88, **look))


class Panel(NamedTuple):
    """What an Axes of `plot_roles` shows."""

    kind: str  # a field of HeadRoles
    name: str  # of the heads that are named after it
    title: str
    largest: float
    scale: str  # the label of the colours' scale


@matplotlib.style.context(STYLE)
def plot_roles(roles: HeadRoles, title: str = "") -> Figure:
    """Plot what the heads of a model attend to, as `tinyprune.method.roles.head_roles` has measured it.

    `title` stands above all.

    Returns:
        Figure with an Axes for each kind of key and one for the effective number of keys: a row for each layer, the
        first at the top, and a column for each original head. The darker, the larger; a dot marks a head that is named
        after what the Axes shows, an empty hatched cell one that was removed or is closed. Two more Axes are scales.
    """
    names = roles.names()
    (L, H), there = names.shape, names != ""
    share, keys = "share of attention", f"effective keys, of {roles.keys:.0f} that are seen"
    panels = [Panel(kind, name, name, 1.0, share) for kind, name in KINDS.items()]
    panels.append(Panel("effective_keys", "broad", "effective keys", roles.keys, keys))
    if np.isnan(roles.persistent).all():
        panels = [panel for panel in panels if panel.kind != "persistent"]
    columns = 3
    if L > 2 * H:
        columns = len(panels)
    rows = math.ceil(len(panels) / columns)
    cell = max(0.13, min(0.25, 1.5 / H), 1.2 / H)  # inches; a title needs 1.2
    size = 0.7 + columns * (0.2 + cell * H), 2.2 + rows * (0.4 + cell * L)
    figure = Figure(figsize=size, dpi=DPI, layout="compressed")
    grid = figure.add_gridspec(rows + 2, columns, height_ratios=[cell * L] * rows + [0.12, 0.12])
    scales = {}
    for i, panel in enumerate(panels):
        outer_left, outer_bottom = i % columns == 0, i + columns >= len(panels)
        axes = figure.add_subplot(grid[i // columns, i % columns], title=panel.title)
        measured = getattr(roles, panel.kind)
        scales[panel.scale] = axes.imshow(measured, cmap="Blues", vmin=0, vmax=panel.largest)
        axes.set(xlabel="head" if outer_bottom else "", ylabel="layer" if outer_left else "")
        axes.set(xticks=range(0, H, math.ceil(H / 8)), yticks=range(0, L, math.ceil(L / 10)))
        axes.tick_params(length=0, labelleft=outer_left, labelbottom=outer_bottom)
        axes.spines[:].set_visible(False)
        for layer, head in np.argwhere(~there):
            _draw_cell(axes, layer, head, REMOVED)
        y, x = np.argwhere(names == panel.name).T
        axes.scatter(x, y, s=12, color="white", edgecolors="black", linewidths=0.8)
    for row, (label, image) in enumerate(scales.items(), rows):
        place = figure.add_subplot(grid[row, :])
        figure.colorbar(image, cax=place, label=label, orientation="horizontal")
    return titled(figure, title)


@matplotlib.style.context(STYLE)
def plot_ratios(ratios: dict[str, dict[str, float]], title: str) -> Figure:
    """Draw a group of bars for each model, a bar for each contender, on a log scale that begins at what they divide by.

    Args:
        ratios: model -> contender -> ratio; every model has the same contenders.
        title: of the figure.
    """
    contenders = list(next(iter(ratios.values())))
    figure = Figure(figsize=(7, 0.8 + 1.1 * len(ratios)), dpi=DPI, layout="constrained")
    axes = figure.add_subplot(xscale="log", yticks=range(len(ratios)), yticklabels=ratios)
    axes.invert_yaxis()
    height = 0.84 / len(contenders)
    places = np.arange(len(ratios)) - 0.42 + height / 2
    for i, contender in enumerate(contenders):
        values = [of_model[contender] for of_model in ratios.values()]
        bars = axes.barh(places + i * height, np.subtract(values, 1), height, left=1, color=HEAD_COLOURS[i])
        for bar, value in zip(bars, values, strict=True):
            side = "left" if value > 1 else "right"
            place = (value, bar.get_y() + height / 2)
            axes.annotate(f" {value:.2g}× {contender} ", place, ha=side, va="center", fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    least, most = (pick(x for each in ratios.values() for x in each.values()) for pick in (min, max))
    axes.set(xlim=(min(least, 1) / 3.2, most * 2.8), title=title)
    axes.xaxis.set(ticks=[x for x in (0.5, 1, 2, 4, 8, 16) if x < most * 2], minor_locator=NullLocator())
    axes.xaxis.set_major_formatter("{x:g}×")
    return figure


def titled(figure: Figure, title: str) -> Figure:
    """Write a title, such as the names of a run and its text, above a figure and what stands there; return it."""
    width = int(11 * figure.get_figwidth())  # letters of 10 points
    lines = textwrap.wrap(textwrap.shorten(title, 80, placeholder=" …"), width)
    lines += figure.get_suptitle().splitlines()
    figure.suptitle("\n".join(lines), fontsize=10, parse_math=False)  # a name may have dollars in it
    return figure


@matplotlib.style.context(STYLE)
def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as its name ends; equal figures make equal files. `replace_file` says what happens if that fails.

    Raises UsageError if the name does not end in one of `PICTURES`.
    """
    path = checked_path("a picture", path, PICTURES)
    # Laying out anew before each drawing would move everything a little every time.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    image, kind = io.BytesIO(), path.suffix[1:]
    about = {"png": {"Software": "tinyprune"}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(image, format=kind, metadata=about[kind])
    replace_file(path, image.getvalue())


def running_mean(values: ArrayLike) -> NDArray:
    """Average each value with its neighbours, half of √n on either side. (n,) -> (n,).

    Near the beginning it uses as many on the right as there are on the left, so a steep start stays steep.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    i = np.arange(len(sums) - 1)
    left = np.minimum(math.isqrt(len(i)) // 2, i)
    right = np.minimum(left, i[::-1])
    return (sums[i + right + 1] - sums[i - left]) / (left + 1 + right)


def spread(places: Sequence[float], gap: float) -> NDArray:
    """Move the places of labels apart, in their order, until neighbours are `gap` apart. (n,) -> (n,)."""
    order = np.argsort(places, kind="stable")
    up, down = np.array(places, float), np.array(places, float)
    for low, high in itertools.pairwise(order):
        up[high] = max(up[high], up[low] + gap)
    for high, low in itertools.pairwise(order[::-1]):
        down[low] = min(down[low], down[high] - gap)
    return (up + down) / 2


def _name_lines(axes: Axes, ends: dict[str, tuple[float, str]]) -> None:
    """Write the names of lines, given with their y and colour, at the right of the Axes."""
    axes.autoscale_view()  # matplotlib would do so only when it draws
    to_axes = axes.transData + axes.transAxes.inverted()
    gap = 12 / 72 / (axes.figure.get_figheight() * axes.get_position().height)
    places = spread([to_axes.transform((1, y))[1] for y, _ in ends.values()], gap)
    places -= min(places.min(), 0)  # above the numbers below the x axis
    for (name, (_, colour)), place in zip(ends.items(), places, strict=True):
        _write(axes, name, (1, place), (6, 0), "axes fraction", va="center", color=colour)


def _write(axes: Axes, text: str, place: tuple, offset: tuple, xycoords: Any = "data", **look: Any) -> None:
    """Write at `place`, given in matplotlib's coordinates `xycoords`, moved by `offset` points."""
    axes.annotate(text, place, offset, xycoords=xycoords, textcoords="offset points", **look)


def _limits(last_step: int) -> tuple[float, float]:
    """Return limits of x with room for the marker at the last step, which is 0 in a stage without steps."""
    return 0, 1.01 * max(last_step, 1)


def _marker(steps: NDArray) -> str:
    """Return a marker for points at a single step, which are invisible as a line."""
    return "o" if steps[0] == steps[-1] else ""

"""A drawing of the model and of the way to a pruned one, with the parts that a chapter is about lit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.style
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from PIL import Image as Pillow

from tinyprune.errors import UsageError
from tinyprune.plots import BLUE, STYLE

WIDTH, HEIGHT = 8, 2.3  # inches; everything below is in inches, too
GREY, LINE, PALE = "#707070", "#BBBBBB", "#F6F6F6"
CENTRED = {"ha": "center", "va": "center"}


class Look(NamedTuple):
    """Colours of a box."""

    fill: str
    edge: str
    text: str = GREY


LIT, PLAIN, BEHIND = Look(BLUE, BLUE, "white"), Look("white", LINE), Look(PALE, LINE)
# A label, and left, bottom, width, height; each part once or, in both blocks of a layer, twice.
BOXES = {
    "embedding": ("embedding", (0.06, 1.20, 0.74, 0.34)),
    "norm": ("norm", (1.12, 1.20, 0.44, 0.34), (5.03, 1.20, 0.44, 0.34)),
    "attention": ("attention: q, k, v", (1.75, 1.385, 1.22, 0.30)),
    "positions": ("relative positions", (1.75, 1.055, 1.22, 0.30)),
    "gate": ("gate", (3.25, 1.20, 0.40, 0.34), (6.42, 1.20, 0.40, 0.34)),
    "projection": ("projection\n$W_o$", (3.77, 1.155, 0.74, 0.43)),
    "networks": ("own\nunits", (5.66, 1.155, 0.48, 0.43)),
    "softmax": ("softmax", (7.32, 1.20, 0.62, 0.34)),
}
# Starts and ends of the arrows along the row.
ARROWS = [(0.80, 1.12), (1.56, 1.69), (3.13, 3.25), (3.65, 3.77), (4.51, 4.63), (4.81, 5.03)]
ARROWS += [(5.47, 5.60), (6.30, 6.42), (6.82, 6.94), (7.12, 7.32)]
WAY = {
    "train": "train the model",
    "gates": "train its gates",
    "prune": "remove closed heads",
    "finetune": "fine-tune the rest",
}
# Heights of the row, of the residual connections, of the line between the gates.
ROW, TOP, LOW = 1.37, 2.06, 0.88
FORKS, PLUSES = (0.98, 4.90), (4.72, 7.03)  # where the residual connections leave and end


def you_are_here(*parts: str) -> None:
    """Display the model and the way to a pruned one, with some parts lit.

    Args:
        parts: of the model "embedding", "norm", "attention", "positions", "gate", "projection", "networks",
            "residual", "softmax"; of the way "train", "gates", "prune", "finetune". Persistent vectors, which only the
            published model has, are a part of attention: "persistent" lights that.

    Raises:
        UsageError: if there is no such part.
    """
    allowed = [*BOXES, "persistent", "residual", *WAY]
    for part in parts:
        if part not in allowed:
            raise UsageError(f"parts must be among {', '.join(allowed)}; got {part!r}")
    lit = {"attention" if part == "persistent" else part for part in parts}
    file = io.BytesIO()
    with matplotlib.style.context(STYLE):
        drawing(lit).savefig(file, dpi=150)
    picture = with_palette(Pillow.open(file), 32)
    display(Image(picture, width=100 * WIDTH, alt=f"lit: {', '.join(parts)}"))


def with_palette(picture: Pillow.Image, colours: int) -> bytes:
    """Return a picture as a PNG with a palette, a third of the size of one without; rare colours stay as they are."""
    file = io.BytesIO()
    few = picture.convert("RGB").quantize(colours, Pillow.Quantize.MAXCOVERAGE)
    few.save(file, "png", optimize=True)
    return file.getvalue()


def drawing(lit: set[str]) -> Figure:
    """Draw the model above the way, and light some of their parts."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    box(axes, (0.90, 0.50, 6.29, 1.72), "", BEHIND)
    axes.text(0.98, 0.58, "L layers", color=GREY, fontsize=8)
    for left, bottom, width, height in ((1.69, 0.985, 1.34, 0.77), (5.60, 1.095, 0.60, 0.55)):
        for behind in (0.10, 0.05, 0):
            box(axes, (left + behind, bottom - behind, width, height), "", PLAIN)
    axes.text(1.81, 0.58, "H heads: attention", color=GREY, fontsize=8)
    axes.text(7.11, 0.58, "the same H heads: networks", color=GREY, ha="right", fontsize=8)
    axes.text(0.43, 0.82, "“the ca”", color=GREY, fontsize=8.5, **CENTRED)
    axes.text(7.63, 0.82, "next: “t”", color=GREY, fontsize=8.5, **CENTRED)
    arrow(axes, [(0.43, 0.93), (0.43, 1.20)], GREY)
    arrow(axes, [(7.63, 1.20), (7.63, 0.93)], GREY)
    for start, end in ARROWS:
        arrow(axes, [(start, ROW), (end, ROW)], GREY)
    draw_residual(axes, "residual" in lit)
    blue = BLUE if "gate" in lit else GREY
    left, right = (x + width / 2 for x, _, width, _ in BOXES["gate"][1:])
    axes.plot((left, left, right, right), (1.20, LOW, LOW, 1.20), color=blue, lw=0.9, linestyle=":")
    axes.text(4.94, LOW + 0.02, "one gate for each head", color=blue, ha="center", va="bottom", fontsize=8)
    for name, (label, *places) in BOXES.items():
        for place in places:
            box(axes, place, label, LIT if name in lit else PLAIN)
    for i, (name, label) in enumerate(WAY.items()):
        left, width, tip = 0.1 + 1.96 * i, 1.92, 0.12
        notch = tip if i else 0
        corners = [(0, 0), (width - tip, 0), (width, 0.15), (width - tip, 0.3), (0, 0.3), (notch, 0.15)]
        corners = [(left + x, 0.07 + y) for x, y in corners]
        look = LIT if name in lit else BEHIND
        axes.add_patch(Polygon(corners, fc=look.fill, ec=look.edge, lw=0.8))
        axes.text(left + width / 2, 0.21, label, color=look.text, fontsize=8.5, **CENTRED)
    return figure


def draw_residual(axes: Axes, lit: bool) -> None:
    """Draw the residual connections around both blocks of a layer."""
    blue, fill, width = (BLUE, BLUE, 1.8) if lit else (GREY, "white", 0.9)
    for fork, plus in zip(FORKS, PLUSES, strict=True):
        arrow(axes, [(fork, ROW), (fork, TOP), (plus, TOP), (plus, ROW + 0.09)], blue, width)
        axes.text(plus - 0.08, TOP - 0.04, "residual", color=blue, ha="right", va="top", fontsize=8)
        axes.add_patch(Circle((plus, ROW), 0.09, fc=fill, ec=blue))
        axes.text(plus, ROW - 0.005, "+", color="white" if lit else GREY, fontsize=9, **CENTRED)


def box(axes: Axes, place: Sequence[float], label: str, look: Look) -> None:
    """Draw a rounded box at left, bottom, width, height, with a label."""
    x, y, width, height = place
    style = "round,pad=0,rounding_size=0.06"
    axes.add_patch(FancyBboxPatch((x, y), width, height, style, fc=look.fill, ec=look.edge, lw=0.8))
    axes.text(x + width / 2, y + height / 2 - 0.01, label, color=look.text, fontsize=8.5, **CENTRED)


def arrow(axes: Axes, points: list[tuple[float, float]], colour: str, width: float = 0.9) -> None:
    """Draw an arrow along points."""
    x, y = zip(*points, strict=True)
    axes.plot(x[:-1], y[:-1], color=colour, lw=width, solid_joinstyle="round")
    head = {"arrowstyle": "-|>,head_length=3,head_width=1.6", "mutation_scale": 1, "shrinkA": 0, "shrinkB": 0}
    axes.add_patch(FancyArrowPatch(points[-2], points[-1], color=colour, lw=width, **head))

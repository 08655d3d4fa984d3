"""A drawing of the model and of the way to a pruned one, with the parts that a chapter is about lit."""

from __future__ import annotations

import io

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
# left, bottom, width, height, label
BOXES = {
    "embedding": (0.72, 1.20, 0.80, 0.34, "embedding"),
    "norm": (1.98, 1.20, 0.48, 0.34, "norm"),
    "attention": (2.73, 1.55, 1.48, 0.30, "attention: q, k, v"),
    "positions": (2.73, 1.22, 1.48, 0.30, "relative positions"),
    "persistent": (2.73, 0.76, 1.48, 0.43, "persistent vectors, or\nown feed-forward units"),
    "gate": (4.54, 1.20, 0.44, 0.34, "gate"),
    "projection": (5.14, 1.155, 0.76, 0.43, "projection\n$W_o$"),
    "softmax": (6.58, 1.20, 0.66, 0.34, "softmax"),
}
WAY = {
    "train": "train the model",
    "gates": "train its gates",
    "prune": "remove closed heads",
    "finetune": "fine-tune the rest",
}
ROW, FORK, PLUS, TOP = 1.37, 1.77, 6.16, 2.06  # the row's height; where the residual connection leaves, ends, runs


def you_are_here(*parts: str) -> None:
    """Display the model and the way to a pruned one, with some parts lit.

    Args:
        parts: of the model "embedding", "norm", "attention", "positions", "persistent", "gate", "projection",
            "residual", "softmax"; of the way "train", "gates", "prune", "finetune".

    Raises:
        UsageError: if there is no such part.
    """
    allowed = [*BOXES, "residual", *WAY]
    for part in parts:
        if part not in allowed:
            raise UsageError(f"parts must be among {', '.join(allowed)}; got {part!r}")
    file = io.BytesIO()
    with matplotlib.style.context(STYLE):
        drawing(parts).savefig(file, dpi=150)
    display(Image(with_palette(Pillow.open(file), 32), width=100 * WIDTH, alt=f"lit: {', '.join(parts)}"))


def with_palette(picture: Pillow.Image, colours: int) -> bytes:
    """Return a picture as a PNG with a palette, a third of the size of one without; rare colours stay as they are."""
    file = io.BytesIO()
    picture.convert("RGB").quantize(colours, Pillow.Quantize.MAXCOVERAGE).save(file, "png", optimize=True)
    return file.getvalue()


def drawing(lit: tuple[str, ...]) -> Figure:
    """Draw the model above the way, and light some of their parts."""
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axes.axis("off")
    box(axes, 1.64, 0.50, 4.70, 1.72, "", LINE, PALE)
    axes.text(6.26, 0.58, "L layers", color=GREY, ha="right", fontsize=8)
    for behind in (0.10, 0.05, 0):
        box(axes, 2.65 + behind, 0.68 - behind, 1.64, 1.25, "", LINE, "white")
    axes.text(4.44, 0.58, "H heads", color=GREY, fontsize=8)
    axes.text(0.28, ROW, "“the ca”", color=GREY, ha="center", va="center", fontsize=8.5)
    axes.text(7.70, ROW, "next:\n“t”", color=GREY, ha="center", va="center", fontsize=8.5)
    ends = [(0.58, 0.72), (1.52, 1.98), (2.46, 2.65), (4.39, 4.54), (4.98, 5.14), (5.90, PLUS - 0.09)]
    for start, end in [*ends, (PLUS + 0.09, 6.58), (7.24, 7.42)]:
        arrow(axes, [(start, ROW), (end, ROW)], GREY)
    blue = BLUE if "residual" in lit else GREY
    arrow(axes, [(FORK, ROW), (FORK, TOP), (PLUS, TOP), (PLUS, ROW + 0.09)], blue, 1.8 if "residual" in lit else 0.9)
    axes.text(5.52, TOP - 0.04, "residual", color=blue, ha="center", va="top", fontsize=8)
    axes.add_patch(Circle((PLUS, ROW), 0.09, fc=blue if "residual" in lit else "white", ec=blue))
    axes.text(
        PLUS, ROW - 0.005, "+", color="white" if "residual" in lit else GREY, ha="center", va="center", fontsize=9
    )
    for name, place in BOXES.items():
        box(axes, *place, *(BLUE, BLUE, "white") if name in lit else (LINE, "white", GREY))
    for i, (name, label) in enumerate(WAY.items()):
        left, width, tip = 0.1 + 1.96 * i, 1.92, 0.12
        corners = [(0, 0), (width - tip, 0), (width, 0.15), (width - tip, 0.3), (0, 0.3), (tip if i else 0, 0.15)]
        fill, edge, text = (BLUE, BLUE, "white") if name in lit else (PALE, LINE, GREY)
        axes.add_patch(Polygon([(left + x, 0.07 + y) for x, y in corners], fc=fill, ec=edge, lw=0.8))
        axes.text(left + width / 2, 0.21, label, color=text, ha="center", va="center", fontsize=8.5)
    return figure


def box(
    axes: Axes, x: float, y: float, width: float, height: float, label: str, edge: str, fill: str, text: str = GREY
) -> None:
    """Draw a rounded box with a label."""
    axes.add_patch(FancyBboxPatch((x, y), width, height, "round,pad=0,rounding_size=0.06", fc=fill, ec=edge, lw=0.8))
    axes.text(x + width / 2, y + height / 2 - 0.01, label, color=text, ha="center", va="center", fontsize=8.5)


def arrow(axes: Axes, points: list[tuple[float, float]], colour: str, width: float = 0.9) -> None:
    """Draw an arrow along points."""
    x, y = zip(*points, strict=True)
    axes.plot(x[:-1], y[:-1], color=colour, lw=width, solid_joinstyle="round")
    axes.add_patch(
        FancyArrowPatch(
            points[-2],
            points[-1],
            arrowstyle="-|>,head_length=3,head_width=1.6",
            shrinkA=0,
            shrinkB=0,
            color=colour,
            lw=width,
            mutation_scale=1,
        )
    )

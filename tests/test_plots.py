"""Figures show what the records say, are readable for one head or many, and are saved completely or not at all."""

import math
import textwrap

import matplotlib
import numpy as np
import pytest
from matplotlib.text import Text
from numpy.testing import assert_allclose, assert_array_equal

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.method.roles import KINDS, HeadRoles
from tinyprune.plots import plot_gates, plot_heads, plot_losses, plot_roles, running_mean, save_figure, titled


def loss_records(stage: str, train: dict[int, float], valid: dict[int, float]) -> list[dict]:
    splits = {"train": train, "valid": valid}.items()
    return [{"stage": stage, "step": s, "split": split, "loss": x} for split, xs in splits for s, x in xs.items()]


RUN = {
    "train": ({10: 4.5, 20: 3.0, 30: 2.0, 40: 1.75}, {20: 3.25, 40: 1.9}),
    "gate": ({10: 1.8, 20: 1.85, 25: 1.95}, {25: 2.1}),
    "finetune": ({5: 1.9}, {5: 1.8}),
}
RECORDS = [record for stage, losses in RUN.items() for record in loss_records(stage, *losses)]


def gate_records(log_alpha: np.ndarray, every: int = 10) -> list[dict]:
    """Records of a gate stage, from log_alpha (records, layers, heads), after those of training."""
    gates = loss_records("gate", {every * (i + 1): 2.0 for i in range(len(log_alpha))}, {})
    for record, layers in zip(gates, log_alpha, strict=True):
        record |= {"log_alpha": layers.tolist(), "heads_open": int((layers >= 0).sum())}
    return loss_records("train", {10: 3.0}, {10: 3.5}) + gates


def random_gates(records: int, layers: int, heads: int) -> np.ndarray:
    """log_alpha, (records, layers, heads), some of which end open and some closed."""
    return np.random.default_rng(layers).normal(0, 3, (records, layers, heads)).round(3)


def lines(axes) -> list[tuple[list, list]]:
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def readable(figure):
    """Return a figure whose texts have 9 points or more, lie in it, and overlap neither each other nor x's numbers."""
    figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 9
    box = figure.get_tightbbox()  # inches
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight(), box
    for axes in figure.axes:
        low, high = axes.get_xlim()
        numbers = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
        boxes = [text.get_window_extent() for text in (*axes.texts, *numbers) if text.get_text()]
        for i, box in enumerate(boxes):
            assert not box.count_overlaps(boxes[:i]), (axes.get_title(loc="left"), i)
    return figure


def test_losses_are_plotted_in_bits_over_the_whole_run_and_named():
    # This split is not plotted.
    other = {"stage": "finetune", "step": 999, "split": "test", "loss": 50.0}
    (axes,) = readable(plot_losses([*RECORDS, other])).axes
    start, drawn = 0, lines(axes)
    for losses in RUN.values():
        for split in losses:
            x, y = [start + step for step in split], [loss / math.log(2) for loss in split.values()]
            assert [shown for shown in drawn if shown[0] == x and np.allclose(shown[1], y)], (x, y)
        start += max(losses[0])
    # Validation in bits at the end of each stage; that of the last stage stands beside its name.
    said = {f"{1.9 / math.log(2):.2f}", f"{2.1 / math.log(2):.2f}"}
    said |= {f"validation {1.8 / math.log(2):.2f}", f"training {1.9 / math.log(2):.2f}", *RUN}
    assert said <= set(texts(axes))


@pytest.mark.parametrize("n", [1, 2, 3, 20, 100, 1000])
def test_running_mean_is_a_mean_of_neighbours(n):
    values = np.random.default_rng(n).normal(size=n)
    half = int(math.sqrt(n) / 2)
    expected = [np.mean(values[i - (left := min(half, i)) : i + left + 1]) for i in range(n)]
    assert_allclose(running_mean(values), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("records", "layers", "heads", "hard"),
    [(1, 1, 1, True), (1, 4, 8, False), (7, 1, 8, True), (7, 3, 5, False), (7, 4, 16, True), (7, 16, 8, False)],
)
def test_gates_show_how_open_each_head_is_and_which_end_open(records, layers, heads, hard):
    gate = GateConfig(beta=0.5, gamma=-0.2, zeta=1.2, hard=hard)
    log_alpha, steps = random_gates(records, layers, heads), [10 * (i + 1) for i in range(records)]
    opening, shift = 0.0 if hard else math.log(0.2 / 1.2), 0.5 * math.log(0.2 / 1.2)
    # Around the boundary, and closed before or open before: only the last record counts.
    log_alpha[-1, 0, :4] = opening + np.array([-0.01, 0.01, -0.5, 0.5][:heads])
    log_alpha[-2:-1, 0, :4] = opening + np.array([3, -3, 3, -3][:heads])
    probability = 1 / (1 + np.exp(shift - log_alpha))
    figure = readable(plot_gates(gate_records(log_alpha), gate))
    assert len(figure.axes) == 1 + layers
    for layer, axes in enumerate(figure.axes[1:]):
        assert axes.get_title(loc="left") == f"layer {layer}"
        opened = set(np.flatnonzero(log_alpha[-1, layer] > opening))
        by_head = {int(line.get_label()[5:]): line for line in axes.lines if line.get_label().startswith("head ")}
        assert sorted(by_head) == list(range(heads)) == sorted(map(int, texts(axes)))
        for head, line in by_head.items():
            assert list(line.get_xdata()) == steps
            assert_allclose(line.get_ydata(), probability[:, layer, head], rtol=1e-12)
            assert records > 1 or line.get_marker() == "o"
            assert (line.get_linestyle() == "-") == (head in opened)
        assert [y for _, y in lines(axes) if np.allclose(y, 1 / (1 + math.exp(shift - opening)))]


LONG = {step: 9 - step / 2000 for step in range(100, 10001, 100)}
SHORT = loss_records("gate", {10: 4.0}, {}) + loss_records("finetune", {10: 4.0}, {})
CROWDED = {
    "short stages of a long run": lambda: plot_losses(loss_records("train", LONG, {}) + SHORT),
    "heads that end together": lambda: plot_gates(
        gate_records(np.full((3, 4, 40), 2.0)), GateConfig(), target_heads=160
    ),
    "lines at zero": lambda: plot_gates(gate_records(np.full((3, 1, 1), -9.0), 10000), GateConfig(), target_heads=0),
    "no heads": lambda: plot_gates(gate_records(np.zeros((2, 1, 0))), GateConfig(), target_heads=0),
}


@pytest.mark.parametrize("draw", CROWDED.values(), ids=CROWDED)
def test_crowded_figures_can_be_read(draw):
    readable(draw())


def test_records_without_what_is_plotted_are_refused():
    with pytest.raises(UsageError, match=r"^these metrics hold no loss to plot; train[^\n]*$"):
        plot_losses([])
    with pytest.raises(UsageError, match=r"^these metrics hold no gates to plot; run the gate stage[^\n]*$"):
        plot_gates(RECORDS, GateConfig())


HEADS = [(1, ((0,),)), (4, ((),)), (8, ((0, 3, 7), (), (1,), tuple(range(8))))]


@pytest.mark.parametrize(("H", "head_ids"), [*HEADS, (16, tuple(tuple(range(layer)) for layer in range(16)))])
def test_heads_that_stayed_are_filled_and_numbered(H, head_ids):
    config = ModelConfig(D=H * 4, H=H, L=len(head_ids), heads=tuple(map(len, head_ids)), head_ids=head_ids)
    (axes,) = readable(plot_heads(config)).axes
    kept, removed = set(), set()
    for cell in axes.patches:
        x, y = cell.get_center()
        empty = cell.get_hatch() and cell.get_facecolor() == (1, 1, 1, 1)
        (removed if empty else kept).add((round(y), round(x)))
    assert kept == {(layer, head) for layer, ids in enumerate(head_ids) for head in ids}
    assert removed == {(layer, head) for layer in range(len(head_ids)) for head in range(H)} - kept
    written = {text.get_position(): text.get_text() for text in axes.texts if text.get_text().isdigit()}
    assert written == {(head, layer): str(head) for layer, head in kept}
    assert axes.get_title(loc="left") == f"{len(kept)} of {H * len(head_ids)} heads kept"
    assert axes.yaxis.get_inverted()


def random_roles(L: int, H: int, persistent: bool = True) -> HeadRoles:
    """What heads attend to; of all layers but the first some heads were removed."""
    shares = np.random.default_rng(L).dirichlet([0.2] * 6, (L, H))
    shares[1:, ::4] = np.nan
    shares[..., 4] *= 1 if persistent else np.nan
    return HeadRoles(*np.moveaxis(shares, -1, 0)[:5], 1 + 63 * shares[..., 5], 64.0)


@pytest.mark.parametrize(("L", "H", "persistent"), [(1, 1, True), (1, 16, False), (4, 8, True), (30, 9, False)])
def test_roles_are_shown_and_the_heads_named_after_each_have_dots(L, H, persistent):
    roles = random_roles(L, H, persistent)
    figure, names = readable(plot_roles(roles)), roles.names()
    *shown, _, _ = figure.axes  # without the scales
    panels = [kind for kind in KINDS if persistent or kind != "persistent"] + ["effective_keys"]
    for axes, kind in zip(shown, panels, strict=True):
        name = KINDS.get(kind, "effective keys")
        assert axes.get_title(loc="left") == name and axes.yaxis.get_inverted()
        assert_array_equal(axes.images[0].get_array().filled(np.nan), getattr(roles, kind))
        dots = {(y, x) for x, y in axes.collections[0].get_offsets().tolist()}
        assert dots == set(zip(*np.nonzero(names == KINDS.get(kind, "broad")), strict=True))
        gone = {tuple(np.round(cell.get_center()[::-1])) for cell in axes.patches if cell.get_hatch()}
        assert gone == set(zip(*np.nonzero(names == ""), strict=True))


FIGURES = {
    "losses": lambda: plot_losses(RECORDS),
    "gates": lambda: plot_gates(gate_records(random_gates(4, 2, 8)), GateConfig()),
    "heads": lambda: plot_heads(ModelConfig(L=6)),
    "roles": lambda: plot_roles(random_roles(4, 8)),
}


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_title_has_room_and_keeps_dollars(draw):
    title = "a$run$ with a long name, " + 8 * "and longer "
    figure = readable(titled(draw(), title))
    assert figure.get_suptitle().replace("\n", " ") == textwrap.shorten(title, 80, placeholder=" …")
    assert plot_roles(random_roles(1, 1), "run").get_suptitle() == "run"
    with pytest.raises(UsageError, match=r"a picture must be a file that ends in .png, .svg, .pdf; got 'a.jpgg'"):
        save_figure(figure, "a.jpgg")


BEGINS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
FILES = [*((name, "png") for name in FIGURES), ("heads", "svg"), ("heads", "pdf")]


@pytest.mark.parametrize(("name", "ending"), FILES)
def test_equal_figures_make_equal_files_whatever_the_users_settings(tmp_path, name, ending):
    draw = FIGURES[name]
    before, figure, path = dict(matplotlib.rcParams), draw(), tmp_path / "plots" / f"a.{ending}"
    save_figure(figure, path)
    content = path.read_bytes()
    assert content.startswith(BEGINS[ending])
    save_figure(figure, path)
    assert path.read_bytes() == content
    with matplotlib.style.context(["dark_background", {"font.size": 20, "savefig.dpi": 50, "lines.linewidth": 7}]):
        save_figure(draw(), path)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path] and dict(matplotlib.rcParams) == before

"""Pictures of benchmarks show every record, and everybody can tell the contenders apart."""

import itertools

import numpy as np
from matplotlib.text import Text

from tinyprune.bench.figures import plot_benchmark

SUBJECTS = ["tinyprune (numba)", "torch plain", "torch sdpa", "torch.compile (sdpa)"]


def speed_records(benchmark: str = "step", shapes: int = 3) -> list[dict]:
    records = []
    for s, i in itertools.product(range(shapes), range(len(SUBJECTS))):
        ms = 10.0 * (s + 1) * (i + 1)
        record = {"benchmark": benchmark, "shape": f"shape {s}", "subject": SUBJECTS[i], "median_ms": ms}
        record |= {"ratio_to_subject": None if (s, i) == (1, 1) else i + 1.0, "gflops": 1e3 / ms}
        records.append(record | ({"tokens_per_second": 1e3 / ms} if benchmark == "generate" else {}))
    return records


def sweep_records() -> list[dict]:
    records = []
    for sweep, values in {"T": [64, 128, 256, 512, 1024, 2048], "heads": [1, 2, 4, 6, 8], "threads": [1, 2]}.items():
        for value, i in itertools.product(values, range(3)):
            record = {"benchmark": "memory", "shape": f"{sweep} {value}", "subject": SUBJECTS[i]}
            record |= {"median_ms": float(value * (i + 1)), "peak_mib": float(10 * value * (i + 1))}
            records.append(record | {"sweep": sweep, "value": value})
    return records


def assert_inside(figure) -> None:
    """Nothing is cut off, no text is smaller than 9 points, contenders differ in more than colour."""
    for axes in figure.axes:
        markers = [line.get_marker() for line in axes.lines if line.get_label() in SUBJECTS]
        assert len(set(markers)) == len(markers)
    figure.draw_without_rendering()
    assert min(text.get_fontsize() for text in figure.findobj(Text)) >= 9
    box = figure.get_tightbbox()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.get_figwidth() and box.y1 <= figure.get_figheight(), box


def test_speeds():
    figure = plot_benchmark(speed_records())
    (axes,) = figure.axes
    assert axes.get_xlabel() == "GFLOP per second (nominal)" and axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["shape 0", "shape 1", "shape 2"]
    assert [line.get_label() for line in axes.lines] == SUBJECTS
    for i, line in enumerate(axes.lines):
        np.testing.assert_allclose(line.get_xdata(), [100 / ((s + 1) * (i + 1)) for s in range(3)])
        assert list(line.get_ydata()) == [0, 1, 2]
    # The ratio that was void is not written.
    assert sorted(t.get_text() for t in axes.texts) == sorted(["2×"] * 2 + ["3×"] * 3 + ["4×"] * 3)
    for shapes in (3, 1, 54):
        assert_inside(plot_benchmark(speed_records(shapes=shapes)))
    (axes,) = plot_benchmark(speed_records("generate")).axes
    assert axes.get_xlabel() == "tokens per second"


def test_sweeps():
    figure = plot_benchmark(sweep_records())
    assert len(figure.axes) == 6
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == [f"{what} against {x}" for what in ("ms", "peak MiB") for x in ("T", "heads", "threads")]
    for axes, factor in zip(figure.axes, [1] * 3 + [10] * 3, strict=True):
        own = [line for line in axes.lines if line.get_label() in SUBJECTS]
        assert len(own) == 3
        for i, line in enumerate(own):
            np.testing.assert_allclose(line.get_ydata(), factor * (i + 1) * np.array(line.get_xdata()))
    assert figure.axes[0].get_xscale() == "log" and figure.axes[1].get_xscale() == "linear"
    assert figure.axes[1].get_ylim()[0] == 0
    assert_inside(figure)

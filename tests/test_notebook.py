"""What the notebooks share."""

import html
import inspect
import json
import re
import textwrap

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tinyprune.errors import install_command

pytest.importorskip("IPython", reason=f"needs {install_command('notebooks')}")

from tinyprune import notebook, ops
from tinyprune.errors import UsageError
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu.updates import block_squares
from tinyprune.notebook import drawing, frames, heads
from tinyprune.ops.linear import rows
from tinyprune.runs.directory import load_model


@pytest.fixture
def displayed(monkeypatch):
    things = []
    monkeypatch.setattr(notebook, "display", lambda thing, **options: things.append(thing))
    return things


def test_source_is_the_packages_own(displayed):
    notebook.show_source(ops.linear_forward)
    text = displayed[0].data
    first = inspect.getsourcelines(ops.linear_forward)[1]
    assert text.startswith(f"`tinyprune/ops/linear.py`, line {first}\n\n```python\ndef linear_forward(")
    assert inspect.getsource(ops.linear_forward).strip() in text


def test_some_lines_of_a_function(displayed):
    notebook.show_lines(ops.linear_backward, "dx =", "db =")
    lines, first = inspect.getsourcelines(ops.linear_backward)
    start, end = (next(n for n, line in enumerate(lines) if part in line) for part in ("dx =", "db ="))
    head, _, code = displayed[0].data.partition("```python\n")
    assert head == f"`linear_backward`, line {first + start}\n\n"
    assert code == textwrap.dedent("".join(lines[start : end + 1])) + "```"
    with pytest.raises(UsageError, match="linear_backward has no lines from 'dx =' to 'nowhere'"):
        notebook.show_lines(ops.linear_backward, "dx =", "nowhere")


def test_source_without_docstring_is_all_the_rest(displayed):
    notebook.show_source(ops.linear_forward, rows, block_squares, docstring=False)
    text, decorated, compiled = (output.data for output in displayed)
    whole = inspect.getsource(ops.linear_forward)
    before, _, after = whole.split('    """')[0], *whole.split('"""')[1:]
    assert text.endswith(f"```python\n{before}{after.strip(chr(10))}\n```")
    assert decorated.count("def rows") == 1 and "All leading axes" not in decorated
    assert "def block_squares(x):" in compiled


@pytest.mark.parametrize("thing", [len, 3, "text"])
def test_what_has_no_source_is_refused(thing):
    with pytest.raises(UsageError, match="things must be functions or classes written in Python, got"):
        notebook.show_source(thing)


PARTS = (
    "embedding norm attention positions persistent gate projection networks residual softmax train gates prune finetune"
)


def test_the_drawing_lights_each_part(monkeypatch):
    seen = []
    monkeypatch.setattr(drawing, "display", seen.append)
    for part in (None, *PARTS.split()):
        notebook.you_are_here(*[part] if part else [])
    pictures = [picture.data for picture in seen]
    assert len(pictures) == 15 and len(set(pictures)) == 14
    assert pictures[1 + PARTS.split().index("persistent")] == pictures[1 + PARTS.split().index("attention")]
    assert max(map(len, pictures)) < 25_000
    with pytest.raises(UsageError, match=r"must be among embedding, norm, .*, finetune; got 'gate, norm'"):
        notebook.you_are_here("gate, norm")


def test_functions_take_turns_and_the_shortest_call_counts(monkeypatch):
    clock, called = [0.0], []
    monkeypatch.setattr(notebook.time, "perf_counter", lambda: clock[0])

    def work(name, *seconds):
        left = list(seconds)
        return lambda: (called.append(name), clock.__setitem__(0, clock[0] + left.pop(0)))

    # The first call of b is short, and not timed.
    works = {"a": work("a", 9, 3, 2, 4), "b": work("b", 1, 5, 6, 7)}
    assert notebook.best_of_each(works, turns=3) == {"a": 2, "b": 5}
    assert called == ["a", "b"] * 4
    assert notebook.best(work("c", 9, 3, 2), turns=2) == 2


def test_results_are_found_or_it_is_said_what_to_do():
    assert notebook.results("tradeoff-pydoc", "summary.csv").read_text().startswith("method,heads_open,")
    with pytest.raises(UsageError, match=r"no-such-study does not exist: .* clone it"):
        notebook.results("no-such-study")


@pytest.fixture
def slid(monkeypatch):
    """Displays sliders; returns all representations, and what the page's script reads."""
    pytest.importorskip("ipywidgets")
    bundles = []
    monkeypatch.setattr(frames, "display", lambda bundle, raw: bundles.append(bundle))

    def slide(draw, **ranges):
        notebook.sliders(draw, **ranges)
        (data,) = re.findall('data-frames="([^"]*)"', bundles[-1]["text/html"])
        return bundles[-1], json.loads(html.unescape(data))

    return slide


def test_sliders_are_a_widget_and_all_frames_in_advance(slid):
    bundle, data = slid(lambda mask, n=3: print(f"{mask} <{n // 2}>"), n=(0, 4), mask=["a", "b"])
    assert "application/vnd.jupyter.widget-view+json" in bundle
    said = "Sliders for mask, n: they move on the project's site, "
    assert bundle["text/plain"].startswith(f"[{said}")
    assert data["names"] == ["mask", "n"]
    assert data["labels"] == [["a", "b"], ["0", "1", "2", "3", "4"]]
    assert data["start"] == [0, 3]  # where the widget starts
    printed = [re.sub("<[^>]*>", "", frame) for frame in data["frames"]]
    assert [printed[i] for i in data["index"]] == [f"{m} &lt;{n // 2}&gt;" for m in "ab" for n in range(5)]
    assert len(printed) == 6 and data["caption"] == ""  # equal ones are kept once
    # Without script and attribute, as on GitHub: the sentence and the frame at the start.
    seen = re.sub("<script>.*</script>", "", bundle["text/html"], flags=re.DOTALL).replace("&#x27;", "'")
    seen = re.sub("<[^>]*>", "", seen)
    assert seen.startswith(said) and seen.endswith("runs.a &lt;1&gt;")


def test_a_button_goes_to_the_next_value_and_from_the_last_to_the_first(slid, monkeypatch):
    import ipywidgets

    made, drawn = [], []
    monkeypatch.setattr(ipywidgets, "Button", lambda new=ipywidgets.Button, **of: made.append(new(**of)) or made[-1])
    slid(lambda mask, n: drawn.append(f"{mask}{n}"), n=(0, 2), mask=["a", "b"])
    for button in made * 2:
        button.click()
    assert drawn[-4:] == ["b1", "b2", "a2", "a0"]


def test_of_many_frames_fewer_are_drawn_and_it_is_said(slid):
    drawn = set()
    draw = lambda alpha=0.33, n=7: drawn.add((alpha, n))  # noqa: E731
    _, data = slid(draw, alpha=(0.0, 1.0, 0.05), n=(0, 100))
    assert len(drawn) == len(data["index"]) == 36
    assert data["caption"].startswith("36 of 2,121 pictures")
    alphas, ns = data["labels"]
    assert alphas[0] == "0" and alphas[-1] == "1" and alphas[data["start"][0]] == "0.33"
    assert len(alphas) == 6
    assert ns == ["0", "7", "40", "60", "80", "100"] and data["start"][1] == 1
    _, data = slid(lambda **_: print("x" * 50_000), a=(0, 9), b=(0, 9))
    assert len(data["index"]) == 4  # some 270 kB


@pytest.mark.slow
def test_baseline_is_trained_once_and_a_variant_is_kept_beside_it(tmp_path, monkeypatch):
    config = notebook.load_preset("tiny").with_options({"train.steps": 3, "train.evaluate_every": 0})
    monkeypatch.setattr(notebook, "REPOSITORY", tmp_path)
    monkeypatch.setattr(notebook, "load_preset", lambda name: config)
    first = notebook.baseline_run()
    path = first.directory.checkpoint("train")
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert notebook.baseline_run().load("train").model.config.V == first.text.tokenizer.V
    variant = notebook.baseline_run({"model.persistent": "softmax", "train.steps": 2}, name="published")
    assert variant.directory.path.name == f"{first.directory.path.name}-published"
    assert variant.load("train").metadata["step"] == 2
    assert not variant.load("train").model.config.networks
    assert first.load("train").model.config.networks
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    # other settings than those it was trained with: anew
    config = config.with_options({"train.steps": 4})
    assert notebook.baseline_run().load("train").metadata["step"] == 4
    with pytest.raises(UsageError, match="give a variant both options and a name"):
        notebook.baseline_run(name="published")


@pytest.fixture
def saved(finished):
    return load_model(finished / "train.safetensors", get_backend("numpy"))


def test_a_head_opened_leaves_a_picture_where_scripts_are_taken_away(saved, monkeypatch):
    drawn = []
    monkeypatch.setattr(heads, "frame", lambda draw, values, dpi: (draw(), drawn.append(plt.gcf()), "<img>")[-1])
    sentence = saved.tokenizer.decode(np.arange(9))
    bundle = heads.opened(saved, sentence, 0, 1)
    assert bundle["text/plain"] == "[Head 1 of layer 0, opened]" and len(bundle["text/html"]) < 2e6
    seen = re.sub('<script>.*</script>|data-page="[^"]*"', "", bundle["text/html"], flags=re.DOTALL)
    assert "<img>" in seen and "switch the gate, on https://" in seen
    weights = [bar.get_height() for bar in drawn[0].axes[1].patches]
    assert len(weights) == 9 and sum(weights) == pytest.approx(1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("0", 0, 9), r"layer and head must be among .*, got 0, 9"),
        (("0", -1, 0), "layer and head must be among .*, got -1, 0"),
        (("", 0, 0), "sentence must have 1 to [0-9]+ characters, got 0"),
        (("0" * 999, 0, 0), "sentence must have 1 to [0-9]+ characters, got 999"),
    ],
)
def test_a_head_that_cannot_be_opened_is_refused(saved, given, message):
    with pytest.raises(UsageError, match=message):
        notebook.open_head(saved, *given)

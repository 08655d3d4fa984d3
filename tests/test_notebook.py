"""What the notebooks share."""

import inspect

import pytest

from tinyprune.errors import install_command

pytest.importorskip("IPython", reason=f"needs {install_command('notebooks')}")

from tinyprune import notebook, ops
from tinyprune.errors import UsageError
from tinyprune.kernels.cpu.norm import block_squares
from tinyprune.notebook import drawing
from tinyprune.ops.linear import rows


@pytest.fixture
def displayed(monkeypatch):
    things = []
    monkeypatch.setattr(notebook, "display", lambda thing, **options: things.append(thing))
    return things


@pytest.fixture
def shown(displayed):
    def show(*things, **options):
        notebook.show_source(*things, **options)
        return [output.data for output in displayed]

    return show


def test_source_is_the_packages_own(shown):
    (text,) = shown(ops.linear_forward)
    first = inspect.getsourcelines(ops.linear_forward)[1]
    assert text.startswith(f"`tinyprune/ops/linear.py`, line {first}\n\n```python\ndef linear_forward(")
    assert inspect.getsource(ops.linear_forward).strip() in text


def test_source_without_docstring_is_all_the_rest(shown):
    text, decorated = shown(ops.linear_forward, rows, docstring=False)
    whole = inspect.getsource(ops.linear_forward)
    before, doc, after = whole.split('    """')[0], *whole.split('"""')[1:]
    assert "Args:" in doc
    assert text.endswith(f"```python\n{before}{after.strip(chr(10))}\n```")
    assert decorated.count("def rows") == 1 and "All leading axes" not in decorated


def test_source_of_several_and_of_compiled_functions(shown):
    texts = shown(ops.linear_forward, ops.linear_backward, block_squares)
    assert len(texts) == 3 and "def block_squares(x):" in texts[2]


def test_a_body_of_nothing_but_a_docstring_stays():
    code = 'class A:\n    """Only this."""\n\n    def f(self):\n        """Gone."""\n\n        return 1\n'
    only = 'def f():\n    """Only this."""'
    assert notebook.without_docstrings(only) == only
    assert notebook.without_docstrings(code) == "class A:\n    def f(self):\n        return 1"


@pytest.mark.parametrize("thing", [len, 3, "text"])
def test_what_has_no_source_is_refused(thing):
    with pytest.raises(UsageError, match="things must be functions or classes written in Python, got"):
        notebook.show_source(thing)


PARTS = "embedding norm attention positions persistent gate projection residual softmax train gates prune finetune"


def test_the_drawing_lights_each_part(monkeypatch):
    seen = []
    monkeypatch.setattr(drawing, "display", seen.append)
    for part in (None, *PARTS.split()):
        notebook.you_are_here(*[part] if part else [])
    pictures = [picture.data for picture in seen]
    assert len(set(pictures)) == len(pictures) == 14
    assert max(map(len, pictures)) < 25_000
    with pytest.raises(UsageError, match=r"must be among embedding, norm, .*, finetune; got 'gate, norm'"):
        notebook.you_are_here("gate, norm")


def test_results_are_found_or_it_is_said_what_to_do():
    assert notebook.results("tradeoff-pydoc", "summary.csv").read_text().startswith("method,heads_open,")
    with pytest.raises(UsageError, match=r"no-such-study does not exist: .* clone it"):
        notebook.results("no-such-study")


def test_sliders_leave_a_sentence_where_nothing_moves(displayed):
    pytest.importorskip("ipywidgets")
    notebook.sliders(lambda beta: None, beta=(0.1, 1.0, 0.1))
    (bundle,) = displayed
    assert bundle["text/plain"] == "[Sliders for beta: they move when this notebook runs, in Jupyter or Colab.]"
    assert "application/vnd.jupyter.widget-view+json" in bundle


@pytest.fixture
def few_steps(tmp_path, monkeypatch):
    config = notebook.load_preset("tiny").with_options({"train.steps": 3, "train.evaluate_every": 0})
    monkeypatch.setattr(notebook, "REPOSITORY", tmp_path)
    monkeypatch.setattr(notebook, "load_preset", lambda name: config)
    return config


@pytest.mark.slow
def test_baseline_is_trained_once(few_steps, monkeypatch):
    first = notebook.baseline_run()
    path = first.directory.checkpoint("train")
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert notebook.baseline_run().load("train").model.config.V == first.text.tokenizer.V
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    # other settings than those it was trained with: anew
    config = few_steps.with_options({"train.steps": 4})
    monkeypatch.setattr(notebook, "load_preset", lambda name: config)
    assert notebook.baseline_run().load("train").metadata["step"] == 4


@pytest.mark.slow
def test_a_variant_of_the_baseline_is_kept_beside_it(few_steps):
    baseline = notebook.baseline_run()
    before = baseline.directory.checkpoint("train").read_bytes()
    variant = notebook.baseline_run({"model.persistent": "softmax", "train.steps": 2}, name="published")
    assert variant.directory.path.name == f"{baseline.directory.path.name}-published"
    assert variant.load("train").metadata["step"] == 2
    assert not variant.load("train").model.config.networks and baseline.load("train").model.config.networks
    assert baseline.directory.checkpoint("train").read_bytes() == before


@pytest.mark.parametrize("arguments", [{"options": {"model.N": 8}}, {"name": "published"}])
def test_a_variant_has_options_and_a_name(few_steps, tmp_path, arguments):
    with pytest.raises(UsageError, match="give a variant both options and a name"):
        notebook.baseline_run(**arguments)
    assert not (tmp_path / "runs").exists()

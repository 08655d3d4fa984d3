"""`tinyprune play`: one page that computes what NumPy computes, loads nothing and can be used with a keyboard."""

import base64
import dataclasses
import json
import re

import numpy as np
import pytest
from command import files_up_to, harmless, refused, succeed, write_text
from numpy.testing import assert_allclose

import tinyprune as tp
from tinyprune.config import DataConfig
from tinyprune.errors import UsageError
from tinyprune.method.criteria import michel
from tinyprune.method.masks import keep_best, with_parts
from tinyprune.ops.engine import Engine
from tinyprune.play.page import check_model
from tinyprune.runs.directory import SavedModel

SIZES = {"L": 2, "D": 16, "H": 4, "T": 12, "M": 12}
MODELS = {
    "networks": {"N": 5},
    "persistent": {"N": 5, "persistent": "softmax", "mask": "causal"},
    "plain": {"kind": "transformer", "N": 0, "persistent": "softmax", "F": 24, "M": 0, "mask": "causal"},
}
READ = """const [segments, open] = arguments;
let memory = null;
return segments.map((ids) => {
  const found = forward(model, ids, open, memory);
  memory = found.memory;
  const weights = found.heads.map((layer) => layer.filter(Boolean).map((head) => [...head.a]));
  return [[...found.logits], weights];
});"""


@pytest.mark.browser
@pytest.mark.parametrize("kind", MODELS)
def test_javascript_computes_what_numpy_computes(driver, book, tmp_path, rng, kind):
    model = tp.new_model(tp.load_text(book), 3, "numpy", **(SIZES | MODELS[kind]))
    params = {name: np.float16(x + rng.normal(0, 0.2, x.shape)) for name, x in model.params.items()}
    single = {name: np.float32(x) for name, x in params.items()}
    tp.save(dataclasses.replace(model, params=single), tmp_path)
    succeed("play", tmp_path)
    driver.get((tmp_path / "play.html").as_uri())
    segments = np.split(rng.integers(0, model.config.V, 31), [12, 24])
    mask = [[True, False, True, True], [False, True, True, False]]
    found = driver.execute_script(READ, [x.tolist() for x in segments], mask)
    double = {name: np.float64(x) for name, x in params.items()}
    double = tp.Transformer(model.config, double, None, Engine())
    double, memory = with_parts(double, list(np.array(mask))), None
    for segment, (logits, weights) in zip(segments, found, strict=True):
        h, memory, cache = double.forward(segment[None], memory)
        expected = h[0] @ double.params["embedding"].T + double.params["out_bias"]
        assert_allclose(np.reshape(logits, expected.shape), expected, atol=1e-9)
        for layer, block in zip(weights, cache.attention_blocks, strict=True):
            a = block.attention.a[0]
            assert_allclose(np.reshape(layer, a.shape), a, atol=1e-9)


@pytest.mark.browser
def test_the_page_needs_a_keyboard_and_no_network(driver, finished, tmp_path):
    Keys = pytest.importorskip("selenium.webdriver").Keys
    succeed("play", finished, page := tmp_path / "play.html")
    driver.get(page.as_uri())
    assert not driver.get_log("browser") + driver.execute_script("return performance.getEntriesByType('resource')")

    def press(key, until="*"):
        driver.switch_to.active_element.send_keys(key)
        there = driver.execute_script("return document.activeElement.matches(arguments[0])", until)
        return driver.switch_to.active_element if there else press(key, until)

    opened = "return state.open.flat()"
    head = press(Keys.TAB, "#grid button")
    assert head != press(Keys.ARROW_RIGHT if "0 of" in head.get_attribute("aria-label") else Keys.ARROW_LEFT)
    for key, pressed in ((Keys.SPACE, "false"), (Keys.ENTER, "true")):
        assert press(key).get_attribute("aria-pressed") == pressed
        assert driver.execute_script(opened).count(True) == (4 if pressed == "true" else 3)
    assert press(Keys.TAB, "#strip") and press(Keys.TAB, "#stay") and press(Keys.ARROW_RIGHT)
    gates = [gates.values != 0 for gates in tp.load(finished, "gate").gates()]
    text = tp.load_text(finished.parent / "book.txt")
    scores = michel(tp.load(finished, "train"), text.valid, None)
    for method, mask in (("gates", gates), ("michel", keep_best(scores, 3))):
        press(Keys.TAB, f".method[value={method}]").send_keys(Keys.ENTER)
        assert driver.execute_script(opened) == np.concatenate(mask).tolist()


def test_the_file_is_small_whole_and_of_known_models_only(book, finished, tmp_path):
    text, page = write_text(tmp_path), tmp_path / "page.html"
    run = tp.save(model := tp.new_model(tp.load_text(text), 0, "numpy"), tmp_path / "run").parent
    text.unlink()
    assert "no scores" in succeed("play", run, page).stderr and page.stat().st_size < 2e6
    assert not re.search(r"https?:|\bsrc=|@import|url\(", page.read_text("utf-8"))
    data = json.loads(re.search(r'id="data">(.*)</script>', page.read_text("utf-8"))[1])
    params = b"".join(model.params[name].astype("<f2").tobytes() for name, _ in data["shapes"])
    assert list(data["choices"]) == ["random"] and base64.b64decode(data["weights"]) == params
    with files_up_to(100_000):
        assert "untouched" in harmless(1, tmp_path, "play", run, page)
    # The page has never heard of this kind of positions.
    object.__setattr__(model.config, "positions", "slopes")
    with pytest.raises(UsageError, match=r'would need model\.positions = "relative" or "learned"$'):
        check_model(SavedModel(model, model.origin.tokenizer, DataConfig(), "", {}))
    assert "without gates" in refused(2, "play", finished, "--stage=gate")
    of_bytes = tp.load_text(DataConfig(corpus=str(book), tokenizer="byte"))
    tp.save(tp.new_model(of_bytes, 0, "numpy", **SIZES), tmp_path / "bytes")
    assert "a tokenizer of characters" in refused(2, "play", tmp_path / "bytes")

"""`tinyprune play`: one page that computes what NumPy computes, loads nothing and can be used with a keyboard."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import files_up_to, harmless, refused, succeed

import tinyprune as tp
from tinyprune.config import DataConfig
from tinyprune.ops.engine import Engine
from tinyprune.pruning.importance import keep_best, michel, with_heads

SIZES = {"L": 2, "D": 16, "H": 4, "T": 12, "M": 12}
MODELS = {
    "networks": {"N": 5},
    "persistent": {"N": 5, "persistent": "softmax", "mask": "causal"},
    "plain": {"kind": "transformer", "N": 0, "persistent": "softmax", "F": 24, "M": 0, "mask": "causal"},
}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["headless=new", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "no-sandbox", "window-size=390,900"]
READ = """const [segments, open] = arguments; let memory = null;
return segments.map((ids) => { const found = forward(model, ids, open, memory); memory = found.memory;
  return [[...found.logits], found.heads.map((layer) => layer.filter(Boolean).map((head) => [...head.a]))]; });"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver")
    if BROWSER is None:
        pytest.skip("needs chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as driver:
        yield driver


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"))[1])


@pytest.mark.browser
@pytest.mark.parametrize("kind", MODELS)
def test_javascript_computes_what_numpy_computes(driver, book, tmp_path, rng, kind):
    model = tp.Transformer.new(tp.load_text(book), 3, "numpy", **(SIZES | MODELS[kind]))
    params = {name: np.float16(x + rng.normal(0, 0.2, x.shape)) for name, x in model.params.items()}
    tp.save(dataclasses.replace(model, params={name: np.float32(x) for name, x in params.items()}), tmp_path)
    succeed("play", tmp_path)
    driver.get((tmp_path / "play.html").as_uri())
    ids, mask = rng.integers(0, model.config.V, 31), [[True, False, True, True], [False, True, True, False]]
    segments = [ids[:12], ids[12:24], ids[24:]]
    found = driver.execute_script(READ, [x.tolist() for x in segments], mask)
    double = tp.Transformer(model.config, {name: np.float64(x) for name, x in params.items()}, None, Engine())
    double, memory = with_heads(double, [np.array(layer) for layer in mask]), None
    for segment, (logits, weights) in zip(segments, found, strict=True):
        h, memory, cache = double.forward(segment[None], memory)
        expected = h[0] @ double.params["embedding"].T + double.params["out_bias"]
        np.testing.assert_allclose(np.reshape(logits, expected.shape), expected, atol=1e-9)
        for layer, block in zip(weights, cache.attention_blocks, strict=True):
            np.testing.assert_allclose(np.reshape(layer, block.attention.a[0].shape), block.attention.a[0], atol=1e-9)


@pytest.mark.browser
def test_the_page_needs_a_keyboard_and_no_network(driver, finished, tmp_path):
    """Tab to the heads, arrows, Space and Enter; the methods' buttons take the heads that Python says."""
    from selenium.webdriver.common.keys import Keys

    page = tmp_path / "play.html"
    succeed("play", finished, page)
    driver.get(page.as_uri())
    assert driver.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert not driver.get_log("browser") and driver.execute_script("return document.body.scrollWidth <= innerWidth")

    def press(key: str, until: str = ""):
        for _ in range(20):
            driver.switch_to.active_element.send_keys(key)
            if driver.execute_script(f"return document.activeElement.matches({until or '*'!r})"):
                return driver.switch_to.active_element
        raise AssertionError(f"{key!r} does not lead to {until}")

    opened = "return state.open.flat()"
    assert press(Keys.TAB, "#grid button").get_attribute("aria-label")
    head = press(Keys.ARROW_RIGHT if driver.execute_script("return state.chosen[1] == 0") else Keys.ARROW_LEFT)
    place = driver.execute_script("return [...grid.querySelectorAll('button')].indexOf(document.activeElement)")
    for key, pressed in ((Keys.SPACE, "false"), (Keys.ENTER, "true")):
        press(key)
        assert head.get_attribute("aria-pressed") == pressed
        assert driver.execute_script(opened)[place] == (pressed == "true")
    assert press(Keys.TAB, "#strip") and press(Keys.TAB, "#stay") and press(Keys.ARROW_RIGHT)
    model, text = tp.load(finished, "train"), tp.load_text(finished.parent / "book.txt")
    expected = {"gates": [gates.values != 0 for gates in tp.load(finished, "gate").gates()]}
    expected["michel"] = keep_best(michel(model, text.valid, None), 3)
    for method, mask in expected.items():
        press(Keys.TAB, f".method[value={method}]").send_keys(Keys.ENTER)
        assert driver.execute_script(opened) == np.concatenate(mask).tolist()


def test_the_file_is_small_whole_and_of_known_models_only(book, finished, tmp_path):
    text = shutil.copy(book, tmp_path)
    tp.save(tp.Transformer.new(tp.load_text(text), 0, "numpy"), tmp_path / "run")
    Path(text).unlink()
    said = succeed("play", tmp_path / "run", page := tmp_path / "page.html").stderr
    assert "no scores" in said and page.stat().st_size < 2e6 and list(data_of(page)["choices"]) == ["random"]
    assert not re.search(r"https?:|\bsrc=|@import|url\(", page.read_text("utf-8"))
    shapes, weights = (data_of(page)[name] for name in ("shapes", "weights"))
    assert len(weights) * 6 // 8 // 2 >= sum(np.prod(shape) for _, shape in shapes) > 500_000
    with files_up_to(100_000):
        assert "untouched" in harmless(1, tmp_path, "play", tmp_path / "run", page)
    assert "without gates" in refused(2, "play", finished, "--stage=gate")
    tp.save(tp.Transformer.new(tp.load_text(DataConfig(corpus=str(book), tokenizer="byte")), 0, "numpy", **SIZES), tmp_path / "bytes")
    assert "a tokenizer of characters" in refused(2, "play", tmp_path / "bytes")

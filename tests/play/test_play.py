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
from tinyprune.method.remove import remove_closed_heads
from tinyprune.method.repair import refitted_at_once
from tinyprune.model.transformer import gated_outputs
from tinyprune.ops import attention, head_difference
from tinyprune.ops.engine import Engine
from tinyprune.play.page import check_model, html_page, passage_of
from tinyprune.runs.directory import SavedModel
from tinyprune.training.evaluation import evaluate, mean_loss

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


INSIDE = """const [ids, open, i, h, t] = arguments, read = readText(model, ids, open);
const found = inside(i, h, t, read), seen = [...found.s.keys()].filter((j) => found.s[j] > -Infinity);
const rows = ["content", "position"].map((name) => (
  found[name] && seen.filter((j) => j < found.S).map((j) => found[name][j])));
const after = [true, false].map((gate) => {
  open[i][h] = gate;
  return [...inside(i, h, t, readText(model, ids, open)).after];
});
return [...rows, seen.map((j) => found.s[j]), seen.map((j) => found.a[j]), [...found.o], [...found.added],
  found.network && [...found.network], after, found.first + seen[0]];"""
MASK = [[True, False, True, True], [False, True, True, False]]


def half_precision(driver, book, tmp_path, rng, kind) -> tp.Transformer:
    """Open the page of a model, and return the model in float64 with the float16 weights of the page."""
    model = tp.new_model(tp.load_text(book), 3, "numpy", **(SIZES | MODELS[kind]))
    params = {name: np.float16(x + rng.normal(0, 0.2, x.shape)) for name, x in model.params.items()}
    single = {name: np.float32(x) for name, x in params.items()}
    tp.save(dataclasses.replace(model, params=single), tmp_path)
    succeed("play", tmp_path)
    driver.get((tmp_path / "play.html").as_uri())
    double = {name: np.float64(x) for name, x in params.items()}
    return tp.Transformer(model.config, double, None, Engine())


@pytest.mark.browser
@pytest.mark.parametrize("kind", MODELS)
def test_javascript_computes_what_numpy_computes(driver, book, tmp_path, rng, kind):
    whole = half_precision(driver, book, tmp_path, rng, kind)
    segments = np.split(rng.integers(0, whole.config.V, 31), [12, 24])
    found = driver.execute_script(READ, [x.tolist() for x in segments], MASK)
    double, memory = with_parts(whole, list(np.array(MASK))), None
    for segment, (logits, weights) in zip(segments, found, strict=True):
        h, memory, cache = double.forward(segment[None], memory)
        expected = h[0] @ double.params["embedding"].T + double.params["out_bias"]
        assert_allclose(np.reshape(logits, expected.shape), expected, atol=1e-9)
        for layer, block in zip(weights, cache.attention_blocks, strict=True):
            a = block.attention.a[0]
            assert_allclose(np.reshape(layer, a.shape), a, atol=1e-9)


@pytest.mark.browser
@pytest.mark.parametrize("kind", MODELS)
def test_a_head_opened_shows_the_textbooks_numbers(driver, book, tmp_path, rng, kind):
    whole = half_precision(driver, book, tmp_path, rng, kind)
    ids, config = rng.integers(0, whole.config.V, 31), whole.config
    double, memory, caches = with_parts(whole, list(np.array(MASK))), None, []
    for segment in np.split(ids, [12, 24]):
        _, memory, cache = double.forward(segment[None], memory, all_heads=True)
        caches.append(cache)
    for i, h, t in ((0, 0, 3), (0, 1, 14), (1, 1, 23), (1, 3, 30)):
        found = driver.execute_script(INSIDE, ids.tolist(), MASK, i, h, t)
        *rows, (opened, shut), first = found
        at, cache = t % config.T, caches[t // config.T]
        own = cache.attention_blocks[i].attention
        q, S, T = own.q[0, h, at], own.k.shape[2], own.q.shape[2]
        distance = at + S - T - np.arange(S)
        seen = (distance >= 0) & (distance <= (S if config.span is None else config.span))
        content, position = own.k[0, h] @ (q if own.u is None else q + own.u[h]), None
        if config.relative:
            position = (own.r[h] @ (q + own.w[h]))[(S - 1 - distance) % S][seen]
        scores = (content[seen] + (0 if position is None else position)) / np.sqrt(config.Dh)
        if config.attended:
            scores = np.append(scores, own.pk[h] @ q)
        a = own.a[0, h, at][np.append(seen, np.full(config.attended, True))]
        assert_allclose(attention.softmax(scores.copy()), a, rtol=1e-9)
        deltas = [head_difference(o, W)[h, 0, at] for o, W, _ in gated_outputs(double, cache, i)]
        network = deltas[1] if config.networks else None
        expected = content[seen], position, scores, a, own.o[0, at, h], deltas[0], network
        assert first == t - distance[seen][0] and len(rows) == len(expected)
        for row, numbers in zip(rows, expected, strict=True):
            assert (numbers is None) == (not row)
            if row:
                assert_allclose(row, numbers, rtol=1e-6, atol=1e-12)
        assert_allclose(np.subtract(opened, shut), deltas[0], rtol=1e-6, atol=1e-12)


OPENED = """const found = inside(...state.chosen, ids.length - 1, now);
return ["s", "a", "o", "added", "before", "after"].map((name) => [...found[name]]);"""


@pytest.mark.browser
@pytest.mark.parametrize("layer", [0, 1])
def test_a_head_in_a_notebook_shows_numpys_numbers_and_its_gate_is_a_switch(driver, book, tmp_path, rng, layer):
    Keys = pytest.importorskip("selenium.webdriver").Keys
    heads = pytest.importorskip("tinyprune.notebook.heads")
    model = tp.new_model(text := tp.load_text(book), 3, "numpy", **(SIZES | MODELS["networks"]))
    params = {name: np.float16(x + rng.normal(0, 0.2, x.shape)) for name, x in model.params.items()}
    single = dataclasses.replace(model, params={name: np.float32(x) for name, x in params.items()})
    saved = SavedModel(single, text.tokenizer, DataConfig(), "", {"stage": "train"})
    ids = text.tokenizer.encode(sentence := text.tokenizer.decode(text.valid[:10]))
    bundle = heads.opened(saved, sentence, layer, 2)
    (tmp_path / "cell.html").write_text(f"<!DOCTYPE html><meta charset=utf-8>{bundle['text/html']}", "utf-8")
    driver.set_window_size(390, 800)
    driver.get((tmp_path / "cell.html").as_uri())
    frame = driver.find_element("css selector", "iframe")
    assert not driver.get_log("browser")
    driver.switch_to.frame(frame)
    assert driver.execute_script("return model.heads.length") == layer + 1  # no layer that nobody sees
    double = tp.Transformer(model.config, {name: np.float64(x) for name, x in params.items()}, None, Engine())
    expected = heads.last_character(double, np.array(ids), layer, 2)
    for gate, after in (("true", "after"), ("false", "without")):
        gate_button = driver.find_element("id", "gate")
        assert gate_button.get_attribute("aria-checked") == gate
        for row, name in zip(driver.execute_script(OPENED), ["s", "a", "o", "added", "before", after], strict=True):
            assert_allclose(row, expected[name], rtol=1e-6, atol=1e-12)
        gate_button.send_keys(Keys.SPACE)
    shown = [
        one.get_attribute("aria-labelledby")
        for one in driver.find_elements("css selector", "section")
        if one.is_displayed()
    ]
    assert shown == ["t3", "t8"]
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    assert not driver.get_log("browser")


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
    press(Keys.TAB, "summary").send_keys(Keys.ENTER)
    by_hand = driver.find_element("id", "hand").text.splitlines()
    assert by_hand[2:] == ["b ln 1, ln 2 1/3, 2/3 (0, 1, 2, 1)", "c ln 1, ln 2, ln 4 1/7, 2/7, 4/7 (4, −3, 2, 1)"]
    before, gate = driver.execute_script(opened), press(Keys.TAB, "#gate")
    gate.send_keys(Keys.SPACE)
    changed = [a != b for a, b in zip(before, driver.execute_script(opened), strict=True)]
    assert changed.count(True) == 1 and gate.get_attribute("aria-checked") in ("true", "false")


@pytest.mark.browser
def test_a_link_a_goal_and_the_former_favourite(driver, finished, tmp_path):
    succeed("play", finished, page := tmp_path / "play.html")
    driver.get(page.as_uri() + "#heads=6&text=heads+see+%2B")
    assert driver.execute_script("return state.open.flat()") == [False, True, True, False]
    assert driver.execute_script("return $('text').value") == "heads see +"
    driver.execute_script("click([0, 1]); link();")
    assert driver.current_url.endswith("#heads=2&text=heads+see+%2B")
    for wrong in ("heads=66", "heads=zz", "text="):
        driver.get(f"{page.as_uri()}#{wrong}")
        driver.refresh()
        assert driver.execute_script("return state.open.flat()") == [True] * 4
    succeed("play", finished, three := tmp_path / "three.html", "--stage=finetune")
    driver.get(three.as_uri() + "#heads=a")
    assert driver.execute_script("link(); return state.open.flat()") == [True, False, True]
    assert "#heads=a" in driver.current_url
    driver.get(page.as_uri())
    # the likeliest character with all heads is in the list, though all others are likelier now
    former = """const t = ids.length - 1, best = whole.log2p[t].indexOf(Math.max(...whole.log2p[t]));
    now = { ...now, log2p: now.log2p.map((p) => p.map((x, id) => (id === best ? -99 : x))) };
    drawNext();
    return [shown(characters[best]), $("next").querySelector(".former").textContent, characters.length];"""
    best, row, V = driver.execute_script(former)
    assert best == row and f"rank {V}" in driver.find_element("id", "next").text
    # the page measures on its passage what `tinyprune play` has measured there
    driver.execute_script("localStorage.clear();")
    for at in (1, 2):
        driver.execute_script(f"$('stay').value = {at}; apply('michel'); drawGoal();")
        needed, expected = driver.execute_script(f"return [$('reached').textContent, model.bits.michel[{at}][2]]")
        assert float(needed.split()[0]) == pytest.approx(expected, abs=0.01)
    table = "drawGoal(); return $('records').textContent"
    assert "Younone yet" in driver.execute_script(table)
    driver.execute_script("$('reset').click(); clearTimeout(update.timer);")
    assert "You4" in driver.execute_script(table)
    driver.refresh()  # kept in the browser
    assert "You4" in driver.execute_script(table)
    phone = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", phone)
    driver.execute_script("document.querySelector('details').open = true;")
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    # a page from data of before
    data = json.loads(data_of(page))
    old = {name: x for name, x in data.items() if name not in ("bits", "held_out", "passage")}
    page.write_text(html_page(json.dumps(old), "old"), "utf-8")
    driver.get(page.as_uri())
    driver.execute_script("apply('michel'); drawGoal();")
    assert not driver.find_element("id", "goal").is_displayed() and not driver.get_log("browser")


def test_choices_are_measured_on_held_out_text_also_repaired(finished, tmp_path):
    said = succeed("play", finished, page := tmp_path / "page.json").stderr
    parts = "for least squares", "Michel's scores", "least squares choose", "5 choices of michel on"
    assert [part for part in parts if part not in said] == []
    data = json.loads(page.read_text("utf-8"))
    model, text = tp.load(finished, "train"), tp.load_text(finished.parent / "book.txt")
    passage = text.tokenizer.encode(data["passage"])
    assert data["passage"] in text.tokenizer.decode(text.valid) and len(data["passage"]) == 321
    assert data["held_out"] == len(text.valid)
    for method in ("michel", "least-squares"):
        digits = np.array(list(data["choices"][method][2])) == "1"
        small = remove_closed_heads(with_parts(model, np.split(digits, 2)))
        fitted = refitted_at_once(model, small, text.train)
        nats = [mean_loss(one, text.valid) for one in (small, fitted)]
        nats += [evaluate(one, passage, len(passage)).nats_per_token for one in (small, fitted)]
        assert_allclose(data["bits"][method][2], np.divide(nats, np.log(2)), atol=2e-3)


def test_the_passage_is_as_hard_as_the_text(finished):
    model, text = tp.load(finished, "train"), tp.load_text(finished.parent / "book.txt")
    harder = np.random.default_rng(0).integers(0, model.config.V, 1_000)
    mixed = np.concatenate([harder, text.train[:2_000]])
    needed = {name: evaluate(model, x, 0).nats_per_token for name, x in (("all", mixed), ("first", mixed[:321]))}
    passage = passage_of(model, mixed)
    assert len(passage) == 321
    assert abs(evaluate(model, passage, 0).nats_per_token - needed["all"]) < abs(needed["first"] - needed["all"]) / 5


def data_of(page) -> str:
    return re.search(r'id="data">(.*)</script>', page.read_text("utf-8"))[1]


def test_the_file_is_small_whole_and_of_known_models_only(book, finished, tmp_path):
    text, page = write_text(tmp_path), tmp_path / "page.html"
    run = tp.save(model := tp.new_model(tp.load_text(text), 0, "numpy"), tmp_path / "run").parent
    text.unlink()
    assert "no scores" in succeed("play", run, page).stderr and page.stat().st_size < 2e6
    assert not re.search(r"https?:|\bsrc=|@import|url\(", page.read_text("utf-8"))
    data = json.loads(data_of(page))
    params = b"".join(model.params[name].astype("<f2").tobytes() for name, _ in data["shapes"])
    assert list(data["choices"]) == ["random"] and "bits" not in data and base64.b64decode(data["weights"]) == params
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

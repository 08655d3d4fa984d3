"""One head opened: the page of `tinyprune play` that computes it step by step, and a picture where no page can be."""

from __future__ import annotations

import html
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from numpy.typing import NDArray

from tinyprune.model.transformer import Transformer, gated_outputs
from tinyprune.notebook.frames import SITE, frame
from tinyprune.ops import head_difference
from tinyprune.play.page import opened_page
from tinyprune.plots import BLUE, GREY, VERMILION
from tinyprune.runs.directory import SavedModel

# The frame is as high as its page, also after the text has changed.
SCRIPT = """
(root => {
  const frame = document.createElement("iframe"), page = root.dataset.page;
  Object.assign(frame, {title: root.dataset.title, srcdoc: page, style: "width: 100%; border: 0; height: 60em"});
  frame.onload = () => {
    const {body} = frame.contentDocument, fit = () => frame.style.height = `${body.scrollHeight + 8}px`;
    new ResizeObserver(fit).observe(body);
  };
  root.replaceChildren(frame);
})(document.currentScript.parentElement);
"""


def open_head(saved: SavedModel, sentence: str, layer: int, head: int) -> None:
    """Display what one head computes, step by step, for a character of a sentence that the reader chooses.

    In a notebook and on a website this is a page that computes in the browser, with the head's gate as a switch.
    GitHub shows no such pages; there a picture for the last character stays. Both use weights that are rounded to
    float16, and at most 2 MB.

    Raises:
        UsageError: if the page cannot compute this model, there is no such head, or the sentence is empty or longer
            than a segment.
    """
    display(opened(saved, sentence, layer, head), raw=True)


def opened(saved: SavedModel, sentence: str, layer: int, head: int) -> dict[str, str]:
    """Return what `open_head` displays, by its media type."""
    params = {name: np.float32(np.float16(x)) for name, x in saved.model.host_params().items()}
    model = Transformer(saved.model.config, params)
    page = opened_page(replace(saved, model=model), sentence, layer, head)
    numbers = last_character(model, np.asarray(saved.tokenizer.encode(sentence)), layer, head)

    def static() -> None:
        """A head for the last character: scores, weights, output, what it adds, and the stream before and after."""
        draw(numbers, sentence)

    picture = frame(static, {}, dpi=80)
    title = f"Head {saved.model.config.head_ids[layer][head]} of layer {layer}, opened"
    said = f"Choose the character that reads, and switch the gate, on {SITE} or where this notebook runs."
    attributes = f'class="opened" data-title="{title}" data-page="{html.escape(page)}"'
    shown = f"<p><em>{said}</em></p>{picture}<script>{SCRIPT}</script>"
    return {"text/plain": f"[{title}]", "text/html": f"<div {attributes}>{shown}</div>"}


def last_character(model: Transformer, ids: NDArray, layer: int, head: int) -> dict[str, NDArray]:
    """Return the numbers of a head for the last of the characters `ids`, (S,), which are a text's first.

    These are scores `s` (S,), weights `a` (S,), output `o` (Dh,), `added`, its Δ (D,), and the stream (D,) `before` the
    heads of its layer and `after` them, or `without` this one.
    """
    _, _, cache = model.forward(ids[None], all_heads=True)
    _, _, kept = model.forward(ids[None], all_heads=True, recompute=True)
    own, S = cache.attention_blocks[layer].attention, len(ids)
    q, k = own.q[0, head, -1], own.k[0, head]
    s = k @ (q if own.u is None else q + own.u[head])
    if own.r is not None:
        s = s + own.r[head] @ (q + own.w[head])  # row c of r is distance S − 1 − c, as key c is from the last query
    outputs, Wo, bo = gated_outputs(model, cache, layer)[0]
    added = head_difference(outputs, Wo)[:, 0, -1]  # (H, D)
    before = kept.inputs[layer][0][0, -1]
    after = before + bo + added.sum(0)
    found = {"s": s / np.sqrt(len(q)), "a": own.a[0, head, -1, :S], "o": outputs[0, -1, head], "added": added[head]}
    return found | {"before": before, "after": after, "without": after - added[head]}


def draw(numbers: dict[str, NDArray], sentence: str) -> None:
    """Draw the numbers of `last_character`."""
    figure, axes = plt.subplots(2, 3, figsize=(9.5, 4.6))
    size = {name: f"{np.linalg.norm(x):.2f}" for name, x in numbers.items()}
    reader, places = repr(sentence[-1]), np.arange(len(sentence))
    letters: dict[str, Any] = {"xticks": places, "xticklabels": list(sentence)}
    rows = (
        ("s", f"1. scores, when {reader} reads", BLUE, letters),
        ("a", "2. softmax: weights a", BLUE, letters),
        ("o", f"3. mix: o = Σ a v, ‖o‖ = {size['o']}", BLUE, {}),
        ("before", f"the stream x, ‖x‖ = {size['before']}", GREY, {}),
        ("added", f"4. g = 1 adds Δ = o Wo, ‖Δ‖ = {size['added']}", VERMILION, {}),
        ("after", f"after all heads: {size['after']}; with g = 0 {size['without']}", GREY, {}),
    )
    most = max(np.abs(numbers[name]).max() for name in ("before", "added", "after"))
    for ax, (name, title, colour, ticks) in zip(axes.flat, rows, strict=True):
        ax.bar(np.arange(len(numbers[name])), numbers[name], color=colour, width=0.8 if ticks else 1)
        ax.set_title(title, size=9)
        ax.set(**ticks)
        ax.tick_params(labelsize=7, length=0 if ticks else 2)
    for ax in axes[1]:
        ax.set_ylim(-1.05 * most, 1.05 * most)
    figure.align_ylabels()

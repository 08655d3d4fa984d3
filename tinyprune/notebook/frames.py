"""Sliders above a picture: a widget where a kernel runs, and pictures drawn in advance where none does.

A page without a kernel gets one piece of HTML: the first picture and a sentence, and a script that puts sliders in the
sentence's place and the other pictures in the picture's. GitHub takes away the script and the attribute that holds the
pictures; what is left is the first picture and the sentence.
"""

from __future__ import annotations

import base64
import html
import inspect
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import display
from IPython.utils.capture import capture_output
from PIL import Image

from tinyprune.errors import MissingExtraError, install_command
from tinyprune.notebook.drawing import with_palette

# At most so many pictures and bytes, in so many colours; the site's text is about so wide, in pixels.
FRAMES, BYTES, COLOURS, WIDTH = 40, 270_000, 48, 690
SITE = "https://tinyprune.github.io/tinyprune/"
# No ids: several on a page do not know of each other.
SCRIPT = """
(root => {
  const {names, labels, start, index, frames, caption} = JSON.parse(root.dataset.frames);
  const make = (tag, parent, style = "") => parent.appendChild(Object.assign(document.createElement(tag), {style}));
  const at = [...start], controls = make("div", root), pages = make("div", root);
  for (const frame of frames) make("div", pages).innerHTML = frame;
  const show = () => {
    const shown = index[at.reduce((n, i, j) => n * labels[j].length + i, 0)];
    [...pages.children].forEach((page, i) => page.hidden = i != shown);
  };
  names.forEach((name, j) => {
    const label = make("label", controls, "display: flex; align-items: center; gap: 0.8em; max-width: 36em");
    make("code", label, "min-width: 6em").textContent = name;
    const input = make("input", label, "flex: 1"), value = make("output", label, "min-width: 6em");
    Object.assign(input, {type: "range", min: 0, max: labels[j].length - 1, value: start[j]});
    input.oninput = () => {
      at[j] = +input.value;
      value.textContent = labels[j][at[j]];
      input.setAttribute("aria-valuetext", value.textContent);
      show();
    };
    input.oninput();
    const step = make("button", label), next = () => {input.value = (at[j] + 1) % labels[j].length; input.oninput();};
    Object.assign(step, {type: "button", textContent: "step", ariaLabel: `next ${name}`, onclick: next});
  });
  make("small", root).textContent = caption;
  root.replaceChildren(...[...root.children].slice(-3));
})(document.currentScript.parentElement);
"""


def sliders(draw: Callable[..., Any], **ranges: Any) -> None:
    """Display sliders above what `draw` prints and draws; they move on a page without a kernel, too.

    For such pages `draw` is called for all combinations of values in advance, or, where these are more than about 40
    or large, for fewer values, chosen evenly; the page says so. The output then has some 300 kB at most.

    Args:
        draw: `draw(**values)` prints, and draws figures. The faster it is, and the smaller they are, the better.
        ranges: for each argument of `draw` (low, high), (low, high, step) or a list, as for `ipywidgets.interactive`.

    Raises:
        MissingExtraError: if ipywidgets is not installed.
    """
    try:
        from ipywidgets import Button, HBox, interactive
    except ImportError as error:
        raise MissingExtraError(f"sliders need ipywidgets: {install_command('notebooks')}") from error
    widget = interactive(draw, **ranges)
    *own, output = widget.children
    controls = {control._kwarg: control for control in own}  # in draw's order
    rows = []
    for name, control in controls.items():
        button = Button(description="step", tooltip=f"next {name}", layout={"width": "4em"})
        button.on_click(partial(step, control))
        rows.append(HBox((control, button)))
    widget.children = (*rows, output)
    where = f"on the project's site, {SITE}, and where this notebook runs"
    sentence = f"Sliders for {', '.join(controls)}: they move {where}."
    bundle = widget._repr_mimebundle_()
    bundle["text/plain"] = f"[{sentence}]"
    bundle["text/html"] = page(draw, controls, sentence)
    display(bundle, raw=True)


def page(draw: Callable[..., Any], controls: dict[str, Any], sentence: str) -> str:
    """Return the HTML for a page without a kernel; `controls` are the widgets, which know values and the first one."""
    values = {name: values_of(control) for name, control in controls.items()}
    start = {name: control.value for name, control in controls.items()}
    first = frame(draw, start, dpi=100)
    widest = max(map(int, re.findall('<img width="([0-9]+)"', first)), default=WIDTH)
    dpi = min(100, 100 * WIDTH / widest)
    first = frame(draw, start, dpi)
    total = math.prod(map(len, values.values()))
    thin(values, start, min(FRAMES, BYTES // len(first)))
    combinations = itertools.product(*values.values())
    frames = [frame(draw, dict(zip(values, chosen, strict=True)), dpi) for chosen in combinations]
    once = list(dict.fromkeys(frames))
    few = f"{len(frames)} of {total:,} pictures; a running notebook draws all of them."
    data = {
        "names": list(values),
        "labels": [[label(value) for value in some] for some in values.values()],
        "start": [some.index(start[name]) for name, some in values.items()],
        "index": [once.index(one) for one in frames],
        "frames": once,
        "caption": few if len(frames) < total else "",
    }
    text = sentence.replace(SITE, f'<a href="{SITE}">{SITE}</a>')
    return (
        f'<div class="sliders" data-frames="{html.escape(json.dumps(data))}"><p><em>{text}</em></p>'
        f"{first}<script>{SCRIPT}</script></div>"
    )


def label(value: Any) -> str:
    """Return a value as it is shown beside its slider."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def values_of(control: Any) -> list[Any]:
    """Return the values that a widget offers."""
    if hasattr(control, "options"):
        return list(control.options)
    count = int((control.max - control.min) / control.step + 1e-9)
    return [round(control.min + i * control.step, 10) for i in range(count + 1)]


def step(control: Any, _: Any = None) -> None:
    """Give a widget its next value; after the last one the first."""
    if hasattr(control, "options"):
        control.index = (control.index + 1) % len(control.options)
    else:
        value = control.value + control.step
        control.value = value if value < control.max + 1e-9 else control.min


def thin(values: dict[str, list[Any]], start: dict[str, Any], limit: int) -> None:
    """Leave at most `limit` combinations, with values chosen evenly; those of `start` are among them."""
    counts = {name: len(some) for name, some in values.items()}
    while math.prod(counts.values()) > max(limit, 1):
        counts[max(counts, key=counts.__getitem__)] -= 1
    for name, some in values.items():
        if start[name] not in some:  # a default between two steps
            nearest = min(range(len(some)), key=lambda i: abs(some[i] - start[name]))
            some[nearest] = start[name]
        values[name] = evenly(some, counts[name], some.index(start[name]))


def evenly(values: Sequence[Any], count: int, kept: int) -> list[Any]:
    """Return `count` values from the first to the last; the one at `kept` takes the place of one between them."""
    places = [round(i * (len(values) - 1) / max(count - 1, 1)) for i in range(count)]
    if kept not in places:
        between = range(1, count - 1) or range(count)
        places[min(between, key=lambda i: abs(places[i] - kept))] = kept
    return [values[i] for i in places]


def frame(draw: Callable[..., Any], values: dict[str, Any], dpi: float) -> str:
    """Return what `draw` prints and draws, as HTML; its docstring and the values are the pictures' text alternative."""
    about = (inspect.getdoc(draw) or "A picture.").splitlines()[0]
    alt = html.escape(f"{about} {', '.join(f'{name} = {value}' for name, value in values.items())}")
    with plt.rc_context({"figure.dpi": dpi}), capture_output(stderr=False) as captured:
        draw(**values)
        plt.show()
    printed = html.escape(captured.stdout.rstrip())
    parts = [f'<pre style="font-family: monospace">{printed}</pre>'] if printed else []
    for output in captured.outputs:
        if "image/png" in output.data:
            picture = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
            data = base64.b64encode(with_palette(picture, COLOURS)).decode()
            size = f'width="{picture.width}" height="{picture.height}"'
            style = 'style="max-width: 100%; height: auto"'
            parts.append(f'<img {size} {style} alt="{alt}" src="data:image/png;base64,{data}">')
    return f"<div>{''.join(parts)}</div>"

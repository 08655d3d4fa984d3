"""One HTML file in which a browser runs a model, whose weights are inside as float16: see its heads, take them away.

Its sources lie beside this file: model.js is the forward pass, which tests hold against NumPy's.
"""

from __future__ import annotations

import base64
import html
import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.data import Text
from tinyprune.errors import TinypruneError, UsageError
from tinyprune.io.files import replace_file
from tinyprune.io.progress import progress_bar, say
from tinyprune.method.criteria import michel, random_scores
from tinyprune.method.fits import BlockFit, read_fits
from tinyprune.method.least_squares import search
from tinyprune.method.masks import keep_best, with_parts
from tinyprune.method.repair import repaired
from tinyprune.model.parts import Mask, Parts
from tinyprune.model.transformer import Transformer
from tinyprune.runs.directory import SavedModel, load_model, text_of
from tinyprune.training.evaluation import evaluate, mean_loss
from tinyprune.training.warmup import announced

# Tokens that are read for scores, and for least squares, as `compare` does.
SCORED, FITTED = 10_240, 20_480
# Held-out tokens at the end of the validation split that choices are measured on, and about how many of them the page
# has, to measure the reader's.
MEASURED, PASSAGE = 10_240, 320
STEPS = 16  # from no head to all
# Numbers of the configuration that the page needs.
NAMES = ("D", "Dh", "N", "F", "T", "M", "V", "span", "attended", "networks", "relative")


def write_page(saved: SavedModel, path: Path, target: Path, corpus: str | None = None) -> None:
    """Write the page of a model to `target`, or if that is a .json file only what `html_page` puts into the page.

    `path`: the folder of its run, where gates, and the text if `corpus` names none, are looked for. Raises UsageError
    if the page cannot compute this model, and SaveError if the file cannot be written.
    """
    check_model(saved)
    try:
        text = text_of(saved, path, corpus)
    except TinypruneError as error:
        say(f"play: no scores and no examples without the text: {error}")
        text = None
    with announced(saved.model.ops, "play"):
        content = json.dumps(page_data(saved, path, text))
    if target.suffix != ".json":
        content = html_page(content, path.resolve().name)
    replace_file(target, content.encode(), "page")


def page_data(saved: SavedModel, path: Path, text: Text | None) -> dict[str, Any]:
    """Return what the page knows of a model, its text and its heads."""
    budgets = sorted({round(sum(saved.model.config.heads) * i / STEPS) for i in range(STEPS + 1)})
    fits = []
    if text is not None:
        say(f"play: reading {len(text.train[:FITTED]):,} tokens for least squares")
        fits = read_fits(saved.model, text.train[:FITTED])
    found = choices(saved, path, text, budgets, fits)
    data = model_data(saved) | {
        "text": getattr(text, "name", ""),
        "budgets": budgets,
        "choices": {name: [digits(mask) for mask in masks] for name, masks in found.items()},
        "examples": examples(saved, text),
    }
    return data if text is None else data | measured(saved, text, found, fits)


def model_data(saved: SavedModel) -> dict[str, Any]:
    """Return what the page needs to compute a model."""
    config, params = saved.model.config, saved.model.host_params()
    about = {name: getattr(config, name) for name in NAMES}
    about |= {"eps": config.norm_eps, "scaled": config.embedding == "scaled"}
    weights = b"".join(x.astype("<f2").tobytes() for x in params.values())
    return {
        "config": about,
        "heads": config.heads,
        "head_ids": config.head_ids,
        "stage": saved.metadata["stage"],
        "characters": saved.tokenizer.characters,
        "shapes": [[name, x.shape] for name, x in params.items()],
        "weights": base64.b64encode(weights).decode(),
    }


def opened_page(saved: SavedModel, sentence: str, layer: int, head: int) -> str:
    """Return a page that shows one head at work on a sentence, and has the layers up to the head's own.

    Raises UsageError if the page cannot compute this model, there is no such head, or the sentence is empty or longer
    than a segment.
    """
    check_model(saved)
    config, end = saved.model.config, layer + 1
    if not 0 <= layer < config.L or not 0 <= head < config.heads[layer]:
        raise UsageError(f"layer and head must be among {config.heads} heads of {config.L} layers, got {layer}, {head}")
    if not 1 <= len(sentence) <= config.T:
        raise UsageError(f"sentence must have 1 to {config.T} characters, got {len(sentence)}")
    first = replace(config, L=end, heads=config.heads[:end], head_ids=config.head_ids[:end])
    later = [f"layers.{i}." for i in range(end, config.L)]
    params = {name: x for name, x in saved.model.params.items() if not name.startswith(tuple(later))}
    data = model_data(replace(saved, model=Transformer(first, params, None, saved.model.ops)))
    data |= {"text": "", "budgets": [], "choices": {}, "examples": [sentence], "opened": [layer, head]}
    return html_page(json.dumps(data), f"layer {layer}, head {head}")


def html_page(data: str, name: str) -> str:
    """Return the page of a model called `name`."""
    page = resources.files("tinyprune.play")
    content = (page / "page.html").read_text("utf-8").replace("{{name}}", html.escape(name))
    for script in re.findall(r"\{\{(\w+\.js)\}\}", content):
        content = content.replace(f"{{{{{script}}}}}", (page / script).read_text("utf-8"))
    return content.replace("{{data}}", data.replace("<", "\\u003c"))  # which ends no script


def check_model(saved: SavedModel) -> None:
    """Raise UsageError unless the page can compute this model; the message says what is allowed."""
    config, params = saved.model.config, saved.model.host_params()
    allowed = {
        "a tokenizer of characters": saved.tokenizer.kind == "character",
        "a model without gates (--stage train, prune or finetune)": saved.model.gate is None,
        'model.positions = "relative" or "learned"': config.positions in ("relative", "learned"),
        'model.norm = "layernorm", and no norms of heads': config.norm == "layernorm" and not config.head_norms,
        'model.feedforward = "relu", or networks of heads': config.second in (None, "relu", "networks"),
        "a key-value head for each head": not config.kv_heads or config.kv_heads == config.H,
        "no model.cutoffs, and no blocks of units (model.U)": not config.cutoffs and not config.U,
        "weights that float16 can hold": all((abs(x) < 65_000).all() for x in params.values()),
    }
    missing = [what for what, holds in allowed.items() if not holds]
    if missing:
        needed = "; ".join(missing)
        raise UsageError(f"the page computes small models of characters; this one would need {needed}")


def choices(
    saved: SavedModel, path: Path, text: Text | None, budgets: list[int], fits: Sequence[Sequence[BlockFit]]
) -> dict[str, list[Mask]]:
    """Return which heads stay, for each method that the run has data for and each number of heads."""
    model, parts = saved.model, Parts(saved.model.config)
    scores, found, gate_stage = {}, {}, path / "gate.safetensors"
    if saved.metadata["stage"] == "train" and gate_stage.exists():
        stage = load_model(gate_stage, model.ops)
        gated = stage.model
        if "training" in stage.metadata and Parts(gated.config).counts == parts.counts:
            scores["gates"] = parts.split(parts.log_alpha(gated.params, gated.ops))
    if text is not None:
        say(f"play: Michel's scores, on {len(text.valid[:SCORED]):,} held-out tokens")
        scores["michel"] = michel(model, text.valid[:SCORED], np.random.default_rng(0))
        say(f"play: least squares choose which heads to keep, {len(budgets)} times")
        bar = progress_bar(budgets, desc="least squares", unit="search")
        found["least-squares"] = [search(fits, k) for k in bar]
    scores["random"] = random_scores(model, np.empty(0), np.random.default_rng(0))
    return {name: [keep_best(score, k) for k in budgets] for name, score in scores.items()} | found


def measured(
    saved: SavedModel, text: Text, found: dict[str, list[Mask]], fits: Sequence[Sequence[BlockFit]]
) -> dict[str, Any]:
    """Return how many bits per character each choice needs on held-out text, and the passage that the page has of it.

    For each choice of a method four numbers: on the held-out text, and there with what stays fitted to the whole model
    (see `method.repair`); the same on the passage.
    """
    model, held_out = saved.model, text.valid[-MEASURED:]
    passage = passage_of(model, held_out)

    def bits(mask: Mask) -> list[float]:
        models = with_parts(model, mask), repaired(model, mask, fits)
        nats = [mean_loss(one, held_out) for one in models]
        nats += [evaluate(one, passage, len(passage)).nats_per_token for one in models]
        return [round(x / math.log(2), 3) for x in nats]

    rows = {}
    for name, masks in found.items():
        say(f"play: {len(masks)} choices of {name} on {len(held_out):,} held-out tokens, also repaired")
        rows[name] = [bits(mask) for mask in progress_bar(masks, desc=name, unit="choice")]
    return {"bits": rows, "held_out": len(held_out), "passage": saved.tokenizer.decode(passage)}


def passage_of(model: Transformer, held_out: NDArray) -> NDArray:
    """Return about `PASSAGE` tokens, whole segments, that are about as hard for the model as all of the text."""
    T = model.config.T
    nats = np.array(evaluate(model, held_out, len(held_out)).segments)
    count = min(max(PASSAGE // T, 1), len(nats))
    means = np.convolve(nats, np.full(count, 1 / count), "valid")
    start = T * int(np.argmin(abs(means - nats.mean())))
    return held_out[start : start + count * T + 1]


def digits(mask: list[NDArray]) -> str:
    """Return a digit for each head of all layers, 1 where it stays."""
    return "".join(map(str, np.concatenate(mask).astype(int)))


def examples(saved: SavedModel, text: Text | None) -> list[str]:
    """Return sentences to begin with: beginnings of lines of the held-out text, which stop within a word."""
    T, characters = saved.model.config.T, saved.tokenizer.characters
    held_out = characters[:T] if text is None else saved.tokenizer.decode(text.valid[:100_000])
    shortest = T // 2
    length = f"{{{shortest},{max(shortest, T - 12)}}}"
    lines = re.findall(rf"(?m)^([A-Z][^\n]{length}\w\w)\w\w+", held_out)
    return lines[:: max(len(lines) // 6, 1)][:6] or [held_out[:T]]

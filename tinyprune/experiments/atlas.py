"""Which grammar needs which heads: a model judges minimal pairs without one of its parts. `tinyprune atlas RUN`.

Every head alone, and the feed-forward units of every layer together, are left out of a run's baseline, which then says
of each of BLiMP's pairs which sentence is likelier (see `pretrained.blimp`). Each model is a cell, whose record is one
bit for each pair.

Two models are compared on the same pairs by McNemar's exact test: of the pairs that only one of them gets right, as
many should fall to either if the part did nothing (McNemar 1947). With so many tests of heads and paradigms p is
corrected by Holm's method. A prediction can be tested on a pruned run: what the removed parts lose alone, added up,
against what the pruned model loses, by Spearman's rank correlation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.data.tokenizers import Tokenizer
from tinyprune.errors import UsageError
from tinyprune.experiments.cells import Outcome, PlainCell, key_of, timed
from tinyprune.experiments.grid import run_cells, this_process
from tinyprune.experiments.intervals import holm, scipy_stats
from tinyprune.experiments.pictures import plot_atlas
from tinyprune.experiments.results import machine_of, write_files
from tinyprune.experiments.store import Store
from tinyprune.io.tables import Record, markdown_table
from tinyprune.method.masks import with_parts
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.pretrained.blimp import accuracies, blimp, read_pairs
from tinyprune.runs.directory import RunDirectory, load_model, sha256_of
from tinyprune.training.warmup import announced

REVISION = 1  # with another number everything is computed again
LEVELS = ("all", "field", "phenomenon", "paradigm")
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class AblationCell(PlainCell):
    """The baseline without one part. `grid` and `store` use its key, to_dict, baseline and name."""

    part: int | None  # its place among `Parts`; None: nothing is left out
    name: str
    depends: dict[str, Any]  # what else the result depends on, plain values

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Atlas:
    """A baseline and the pairs that it judges; it lists its cells, computes one, and makes tables of all."""

    name: str  # of the run
    model: Transformer  # the baseline; if its layers have feed-forward blocks, with all units of one as one part
    tokenizer: Tokenizer
    digest: str  # sha256 of its checkpoint
    pairs: Sequence[dict[str, str]]

    @cached_property
    def parts(self) -> list[tuple[int, int | None]]:
        """Layer and head of each part; None in place of a head stands for the layer's feed-forward units."""
        config = self.model.config
        heads = [(layer, head) for layer, ids in enumerate(config.head_ids) for head in ids]
        return heads + [(layer, None) for layer, count in enumerate(config.blocks) if count]

    @cached_property
    def cells(self) -> list[AblationCell]:
        """The whole model, then one cell for each part."""
        depends = {"revision": REVISION, "model": self.digest, "blimp": key_of(list(self.pairs))}
        depends["backend"] = self.model.ops.name
        cells = [AblationCell(None, "whole", depends)]
        for i, (layer, head) in enumerate(self.parts):
            what = "units" if head is None else f"head {head}"
            cells.append(AblationCell(i, f"without {what} of layer {layer}", depends))
        return cells

    def compute(self, cell: AblationCell) -> dict[str, Any]:
        """Return a cell's record: a bit for each pair, 1 where the model is right, as hexadecimal digits."""
        parts = Parts(self.model.config)
        stays = np.arange(parts.total) != (-1 if cell.part is None else cell.part)
        right = blimp(with_parts(self.model, parts.split(stays)), self.tokenizer, self.pairs)
        return {"blimp": np.packbits(right).tobytes().hex()}

    def judged(self, store: Store) -> NDArray[np.bool_]:
        """Return which pairs each cell's model gets right, (cells, pairs)."""
        packed = [bytes.fromhex(store.records[cell.key]["blimp"]) for cell in self.cells]
        return np.array([np.unpackbits(np.frombuffer(own, np.uint8))[: len(self.pairs)] for own in packed], bool)

    def rows(self, right: NDArray[np.bool_]) -> list[Record]:
        """Return a row for each part and each group of pairs, by the levels of `blimp.accuracies`.

        `change` is the accuracy without the part minus the whole model's, and `lost` and `won` are pairs that only the
        whole model, or only the other, gets right. `p` is McNemar's; of heads and paradigms `p_holm` is corrected.
        """
        keys = dict(zip(LEVELS[1:], ("field", "linguistics_term", "UID"), strict=True))
        names = {level: np.array([pair[key] for pair in self.pairs]) for level, key in keys.items()}
        groups = [("all", "", np.full(len(self.pairs), True))]
        groups += [(level, str(name), own == name) for level, own in names.items() for name in dict.fromkeys(own)]
        rows = []
        for (layer, head), own in zip(self.parts, right[1:], strict=True):
            for level, name, group in groups:
                lost, won = int((right[0] & ~own)[group].sum()), int((own & ~right[0])[group].sum())
                row = {"layer": layer, "head": "units" if head is None else head, "level": level, "name": name}
                row |= {"accuracy": float(own[group].mean()), "change": (won - lost) / int(group.sum())}
                rows.append(row | {"lost": lost, "won": won, "p": mcnemar(lost, won)})
        tested = [row for row in rows if row["level"] == "paradigm" and row["head"] != "units"]
        for row, p in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = p
        return rows


def mcnemar(lost: int, won: int) -> float:
    """Return the two-sided p of McNemar's exact test, from the pairs that only one of two models gets right."""
    return float(scipy_stats().binomtest(lost, lost + won).pvalue) if lost + won else 1.0


def open_atlas(path: str | Path, ops: Engine, task: str) -> Atlas:
    """Read the baseline of a run and a file of minimal pairs.

    Raises:
        UsageError: if the file has no pairs, or a line lacks a field.
        CheckpointError: if there is no baseline, or it cannot be read.
        MissingExtraError: if SciPy is not installed.
    """
    scipy_stats()  # what is missing is said now, not when everything is computed
    pairs, place = read_pairs(task), RunDirectory(path)
    saved = load_model(checkpoint := place.checkpoint("train"), ops, mapped=True)
    return Atlas(place.path.name, in_layers(saved.model), saved.tokenizer, sha256_of(checkpoint), pairs)


def in_layers(model: Transformer) -> Transformer:
    """Return the model with all units of a feed-forward block as one part, if it has such blocks."""
    config = model.config
    if not config.F or config.U:
        return model
    return dataclasses.replace(model, config=dataclasses.replace(config, U=config.F))


def run_atlas(atlas: Atlas, directory: str | Path, pruned: str | Path | None = None) -> list[Record]:
    """Compute the cells that a directory lacks, then write its tables and picture; returns the rows of parts.csv.

    `pruned`: a run whose latest stage has fewer parts than the baseline, on which the sum of single parts is tested.
    Raises what `grid.run_cells` raises, and UsageError if `pruned` comes from another model.
    """
    ops = atlas.model.ops
    small = None if pruned is None else removed(atlas, pruned)
    store = Store(directory)

    def work(cell: AblationCell, _: None) -> Outcome:
        with timed() as times:
            record = atlas.compute(cell)
        return Outcome(record | times)

    with announced(ops, "atlas"):
        run_cells(atlas.cells, store, this_process, "atlas", work)
    right = atlas.judged(store)
    rows = atlas.rows(right)
    found = [row for row in rows if row.get("p_holm", 1) < SIGNIFICANT]
    tables = {"parts": [row for row in rows if row["level"] != "paradigm"], "significant": found}
    paragraphs = page(atlas, right[0], found)
    if small is not None:
        tables["pruned"], said = predicted(atlas, rows, right[0], *small)
        paragraphs.append(said)
    about = {"study": "atlas", "model_sha256": atlas.digest, "pairs": len(atlas.pairs), "machine": machine_of(ops.name)}
    caption = "What a model loses without one head, or without a layer's units, by phenomenon"
    write_files(store.directory, about, tables, [("atlas", caption, plot_atlas(tables["parts"]))], paragraphs)
    return tables["parts"]


def removed(atlas: Atlas, path: str | Path) -> tuple[Transformer, Tokenizer, NDArray]:
    """Return a pruned run's latest model, and how much of each part is gone, (parts,) in 0 … 1."""
    place = RunDirectory(path)
    saved = load_model(place.checkpoint(place.latest_stage()), atlas.model.ops, mapped=True)
    config, whole = saved.model.config, atlas.model.config
    if (config.L, config.D, config.H, config.F) != (whole.L, whole.D, whole.H, whole.F):
        sizes = f"L, D, H, F = {whole.L}, {whole.D}, {whole.H}, {whole.F}"
        raise UsageError(f"pruned must be a run of the same baseline, with {sizes}; {path} has other sizes")
    gone = [float(i not in config.head_ids[layer]) for layer, ids in enumerate(whole.head_ids) for i in ids]
    units = [1 - count * config.U / config.F for count in config.blocks] if config.U else [0.0] * len(whole.blocks)
    return saved.model, saved.tokenizer, np.array(gone + units)


def predicted(
    atlas: Atlas, rows: Sequence[Record], whole: NDArray, model: Transformer, tokenizer: Tokenizer, gone: NDArray
) -> tuple[list[Record], str]:
    """Return rows of what a pruned model loses and what its removed parts lose alone, and a sentence on both."""
    right, stats, places = blimp(model, tokenizer, atlas.pairs), scipy_stats(), {}
    for i, (layer, head) in enumerate(atlas.parts):
        places[layer, "units" if head is None else head] = i
    expected: dict[tuple[str, str], float] = {}
    single = np.zeros(len(gone))
    for row in rows:
        place = places[row["layer"], row["head"]]
        key = row["level"], row["name"]
        expected[key] = expected.get(key, 0.0) + gone[place] * row["change"]
        if row["level"] == "all":
            single[place] = row["change"]
    before, after = (accuracies(atlas.pairs, own) for own in (whole, right))
    table = [
        {"level": b["level"], "name": b["name"], "predicted": expected[b["level"], b["name"]]}
        | {"change": a["accuracy"] - b["accuracy"], "accuracy": a["accuracy"]}
        for b, a in zip(before, after, strict=True)
    ]
    said = []
    for level, several in (("phenomenon", "phenomena"), ("paradigm", "paradigms")):
        both = np.transpose([(row["predicted"], row["change"]) for row in table if row["level"] == level])
        both = both.round(9)  # sums of equal changes in another order are ties
        if np.ptp(both, axis=1).min() == 0:  # without a difference there are no ranks
            said.append(f"undefined over {both.shape[1]} {several}")
            continue
        rank = stats.spearmanr(*both)
        said.append(f"{rank.statistic:.2f} over {both.shape[1]} {several} (p = {rank.pvalue:.2g})")
    heads = sum(atlas.model.config.heads)
    out, stay = single[:heads][gone[:heads] > 0], single[:heads][gone[:heads] == 0]
    sentence = f"The pruned model loses {100 * (before[0]['accuracy'] - after[0]['accuracy']):.1f} points. What its "
    sentence += f"removed parts lose alone, added up, ranks this with a Spearman correlation of {' and '.join(said)}."
    if len(out) and len(stay):
        p = stats.mannwhitneyu(out, stay).pvalue
        sentence += f" A removed head changes the accuracy by {100 * out.mean():.2f} points alone, one that stays by "
        sentence += f"{100 * stay.mean():.2f} (Mann-Whitney p = {p:.2g})."
    return table, sentence


def page(atlas: Atlas, whole: NDArray, found: Sequence[Record]) -> list[str]:
    """Return the paragraphs of README.md."""
    heads, paradigms = sum(atlas.model.config.heads), len({pair["UID"] for pair in atlas.pairs})
    right = accuracies(atlas.pairs, whole)[0]
    names = ("layer", "head", "name", "change", "lost", "won", "p_holm")
    shown = [{name: row[name] for name in names} for row in sorted(found, key=lambda row: row["p_holm"])[:40]]
    said = (
        f"{len(found)} of {heads * paradigms:,} tests of a head and a paradigm are significant after Holm's correction"
    )
    return [
        f"# atlas, {atlas.name}",
        f"The whole model is right on {right['accuracy']:.1%} of {right['pairs']:,} pairs ({right['low']:.1%} to "
        f"{right['high']:.1%}). Each head alone, and the units of each layer together, are left out. "
        "By `tinyprune atlas`.",
        f"{said} (p < {SIGNIFICANT}, McNemar's exact test)" + (":" if shown else "."),
        *([markdown_table(shown)] if shown else []),
    ]

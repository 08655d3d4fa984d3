"""The directory of a run and the models in it.

config.toml            the settings
metrics.jsonl          the log, one JSON object per line
train.safetensors      a checkpoint for each stage: train, gate, prune, finetune
plots/*.png, report.md the results
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyprune.config import (
    DataConfig,
    GateConfig,
    ModelConfig,
    RunConfig,
    from_version_02,
    read_config,
)
from tinyprune.data import Text, Tokenizer, load_text, tokenizer_from_dict
from tinyprune.data.corpora import absolute_corpus
from tinyprune.errors import CheckpointError, UsageError
from tinyprune.io.files import checked_path, locked, replace_file, save_error
from tinyprune.io.progress import say
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.training.checkpoints import load_checkpoint, sha256_of

STAGES = ("train", "gate", "prune", "finetune")


@dataclass(frozen=True)
class SavedModel:
    """A model loaded from a checkpoint, with what is needed to use it."""

    model: Transformer
    tokenizer: Tokenizer
    data: DataConfig  # the text that it was trained on
    digest: str  # sha256 of that text
    metadata: dict[str, Any]  # all metadata of the checkpoint


def model_metadata(model: Transformer, tokenizer: Tokenizer, data: DataConfig, digest: str) -> dict[str, Any]:
    """Return the metadata that a checkpoint needs, so that `load_model` reads no other file."""
    metadata: dict[str, Any] = {"model": model.config.to_dict(), "gate": None}
    if model.gate is not None:
        metadata["gate"] = model.gate.to_dict()
    return metadata | {"tokenizer": tokenizer.to_dict(), "data": data.to_dict(), "digest": digest}


def load_model(path: Path, ops: Engine, mapped: bool = False) -> SavedModel:
    """Read a stage's checkpoint. Raises CheckpointError if that fails, or its tensors do not fit its metadata."""
    tensors, metadata = load_checkpoint(path, mapped)
    named = {name: x for name, x in tensors.items() if name.startswith("params.")}
    params = {name.removeprefix("params."): x for name, x in named.items()}
    try:
        config = ModelConfig.from_dict(metadata["model"])
        gate = None
        if metadata["gate"] is not None:  # in version 0.2 with the settings of today's [choose]
            gate = GateConfig.from_dict(from_version_02({"gate": metadata["gate"]})["gate"])
        model = Transformer(config, params, gate, ops)
        tokenizer = tokenizer_from_dict(metadata["tokenizer"])
        if tokenizer.V != config.V:
            raise ValueError(f"its tokenizer has {tokenizer.V} entries, its model {config.V}")
        data = DataConfig.from_dict(metadata["data"])
        return SavedModel(model, tokenizer, data, metadata["digest"], metadata)
    except (KeyError, TypeError, ValueError) as error:
        said = f"{path} is no checkpoint of a model of this version ({error}); train again"
        raise CheckpointError(said) from error


def text_of(saved: SavedModel, path: Path, corpus: str | None = None) -> Text:
    """Return the text that a model was trained on, wherever it lies now, or the one that `corpus` names.

    Args:
        saved: the model, whose tokenizer is used.
        path: of the run or the checkpoint, near which the text may lie.
        corpus: a name, a file or a folder; the user is told if it is another text.

    Raises what `load_text` raises.
    """
    if corpus is None:
        folder = path if path.is_dir() else path.parent
        return load_text(saved.data, saved.tokenizer, digest=saved.digest, near=folder)
    data = dataclasses.replace(saved.data, corpus=absolute_corpus(corpus))
    text = load_text(data, saved.tokenizer)
    if text.digest != saved.digest:
        say(f"{text.name} is another text than the model was trained on")
    return text


class RunDirectory:
    """The directory where a run keeps its files; it need not exist yet."""

    def __init__(self, path: str | Path) -> None:
        self.path = checked_path("the directory of a run", path)
        # a command that is to be typed would take it for an option
        if str(self.path).startswith("-"):
            self.path = self.path.absolute()
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path} is a file; give the directory of a run")

    @contextmanager
    def locked(self, wait: bool = False) -> Iterator[None]:
        """Hold the run, so that no other process writes it; the directory is made if need be, and kept if it is used.

        Raises:
            UsageError: if another process holds it and `wait` is false; the message says which.
            SaveError: if the directory cannot be written.
        """
        new = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise save_error(f"run {self.path}", error) from error
        if len(new) > 1:
            say(f"new folder {new[-1].resolve()}, and in it the run {self.path}")
        lock = self.path / ".lock"
        try:
            with locked(lock, wait=wait):
                yield
        finally:
            with suppress(OSError):  # it is not empty
                if {path.name for path in self.path.iterdir()} == {lock.name}:
                    lock.unlink()
                    for folder in new or [self.path]:
                        folder.rmdir()

    def checkpoint(self, stage: str) -> Path:
        """Return the path of the stage's checkpoint, whether it exists or not."""
        return self.path / f"{stage}.safetensors"

    @property
    def metrics(self) -> Path:
        """Return the path of metrics.jsonl."""
        return self.path / "metrics.jsonl"

    @property
    def started(self) -> bool:
        """Return whether a run has been started here."""
        return (self.path / "config.toml").exists()

    def latest_stage(self) -> str:
        """Return the last stage that has a checkpoint. Raises UsageError if none has."""
        done = [stage for stage in STAGES if self.checkpoint(stage).exists()]
        if not done:
            raise UsageError(f"{self.path} holds no checkpoint; start with: tinyprune train {self.path}")
        return done[-1]

    def origin(self, stage: str) -> dict[str, str]:
        """Return the metadata that says which checkpoint a stage begins with: its sha256."""
        if stage == STAGES[0]:
            return {}
        before = STAGES[STAGES.index(stage) - 1]
        return {"from": sha256_of(self.checkpoint(before))}

    def check_origins(self, last: str) -> bool:
        """Raise UsageError if a stage, up to the `last`, did not begin with the stage before it that is here.

        They must have the same seed and text, and the later one knows the sha256 of the earlier one's checkpoint.
        Returns whether all do; checkpoints of older versions do not.
        """
        known = True
        for stage, later in itertools.pairwise(STAGES[: STAGES.index(last) + 1]):
            path, after = self.checkpoint(stage), self.checkpoint(later)
            if not (path.exists() and after.exists()):
                continue
            one, other = load_checkpoint(path)[1], load_checkpoint(after)[1]
            found = {
                "seed": [x.get("seed") for x in (one, other)],
                "text": [x.get("digest") for x in (one, other)],
                "checkpoint": [sha256_of(path), other.get("from")],
            }
            known &= "from" in other
            # a pretrained baseline has no seed
            wrong = [what for what, (a, b) in found.items() if None not in (a, b) and a != b]
            if wrong:
                raise UsageError(
                    f"stage {later} of {self.path} does not follow from its stage {stage}: it began with another "
                    f"{wrong[0]}; do stage {later} anew with --overwrite, or put {stage}.safetensors back"
                )
        return known

    def read_config(self) -> RunConfig:
        """Read the run's configuration. Raises UsageError if it is missing or not valid."""
        path = self.path / "config.toml"
        try:
            return read_config(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {path}: {error}; put it back, or start a new run") from error

    def write(self, name: str, text: str) -> None:
        """Write a text file of the run, whole or not at all. Raises SaveError if that fails."""
        path = self.path / name
        try:
            content = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"{path} cannot hold {text[error.start - 20 : error.end]!r}: not UTF-8") from error
        replace_file(path, content)

    def remove(self, stages: Sequence[str]) -> None:
        """Delete these stages' checkpoints and the report, which is out of date then.

        The last stage goes first, so that what an interruption leaves is consistent.
        """
        for result in (self.path / "report.md", *self.path.glob("plots/*.png")):
            result.unlink(missing_ok=True)
        for stage in reversed(stages):
            self.checkpoint(stage).unlink(missing_ok=True)

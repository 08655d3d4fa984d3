"""All tables of a run together, their file, and the presets."""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Self

from tinyprune.config.base import Config, checked_type, option
from tinyprune.config.model import ModelConfig, of_kind
from tinyprune.config.tables import (
    ChooseConfig,
    DataConfig,
    GateConfig,
    RepairConfig,
    TrainConfig,
)
from tinyprune.config.version_02 import RENAMED, from_version_02
from tinyprune.errors import UsageError, nearest, typed

# The table of each stage that trains.
STAGE_TABLES = {"train": "train", "gate": "gate_train", "finetune": "heal"}


@dataclass(frozen=True)
class RunConfig:
    """The settings of a whole run; each attribute is a table of its file."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    choose: ChooseConfig = field(default_factory=ChooseConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    gate_train: TrainConfig = field(default_factory=TrainConfig)
    repair: RepairConfig = field(default_factory=RepairConfig)
    heal: TrainConfig = field(default_factory=TrainConfig)
    seed: int = option(0, "random seed of initialisation, dropout and gates")
    texts: str = option(
        "",
        "texts for gates, criteria, repair and healing, with commas between: run for its own, self for "
        "what the whole model writes, repeats for random tokens that come again, or as data.corpus; not "
        "given: run, with self for a pretrained model that is repaired",
    )

    @classmethod
    def from_dict(cls, tables: dict[str, Any]) -> Self:
        """Build from parsed TOML.

        Raises UsageError for unknown tables and keys, and for values that are not allowed.
        """
        hints = typing.get_type_hints(cls)
        built: dict[str, Any] = {}
        for name, value in from_version_02(tables).items():
            if name not in hints:
                hint = nearest(name, hints, names_by_key())
                known = ", ".join(hints)
                raise UsageError(f"unknown table or key {name!r}; allowed are {known}{hint}")
            if not issubclass(hints[name], Config):
                built[name] = checked_type(name, value, hints[name])
            elif not isinstance(value, dict):
                raise UsageError(f"{name} must be a table, got {value!r}")
            else:
                built[name] = table_of(name, hints[name], value)
        config = cls(**built)
        config._check()
        return config

    def _check(self) -> None:
        """Raise UsageError for values that are not allowed, or contradict those of another table."""
        if self.seed < 0:
            raise UsageError(f"seed must be at least 0, got {self.seed}")
        names = self.texts.split(",")
        if self.texts and "" in names:
            raise UsageError(f"texts must be such as run,self; got {self.texts!r}")
        if {"self", "repeats"} & set(names) and not self.repair.tokens:
            raise UsageError("repair.tokens must be more than 0 where a text is made: self or repeats")
        for name in ("train", "gate_train"):
            share = getattr(self, name).distill
            if share:
                why = "since only heal has a larger model"
                raise UsageError(f"{name}.distill must be 0, {why}; got {share}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain nested values; `RunConfig.from_dict` reads them back to an equal object."""
        lines: dict[str, Any] = {}
        tables: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Config):
                tables[name] = value.to_dict()
            elif value != "":
                lines[name] = value
        return lines | tables

    def with_options(self, options: dict[str, Any]) -> Self:
        """Return a copy with `{"table.key": value}` replaced, validated like a file."""
        tables = self.to_dict()
        if "model.kind" in options:
            tables["model"] |= of_kind(self.model, options["model.kind"])
        for name, value in options.items():
            table, _, key = name.partition(".")
            now = f"heal.{key}" if table == "finetune" else RENAMED.get(name)
            if now:
                raise UsageError(f"{name} is called {now} since version 0.3")
            if not key:
                tables[name] = value
            elif table in tables and isinstance(tables[table], dict):
                tables[table][key] = value
            else:
                known = f"{', '.join(tables)}{nearest(table, tables)}"
                raise UsageError(f"unknown table {table!r} in {name!r}; allowed are {known}")
        return self.from_dict(tables)


def table_of(name: str, kind: type[Config], values: dict[str, Any]) -> Config:
    """Return the table `name`: [gate_train] and [heal] are of the same kind as [train]."""
    try:
        return kind.from_dict(values)
    except UsageError as error:
        raise UsageError(str(error).replace(f"{kind.TABLE}.", f"{name}.", 1)) from error


def names_by_key(first: str = "train") -> dict[str, str]:
    """Return the full name of a setting by its key, such as "train.steps" for "steps", to suggest it.

    Where several tables have the key, it is that of the table `first`, else of the first that has it.
    """
    hints = typing.get_type_hints(RunConfig)
    names: dict[str, str] = {}
    for table in (first, *hints):
        if issubclass(hints.get(table, str), Config):
            for f in dataclasses.fields(hints[table]):
                names.setdefault(f.name, f"{table}.{f.name}")
    return names


def to_toml(tables: dict[str, Any]) -> str:
    """Format a run's plain values as TOML, each with its meaning as a comment.

    Numbers, strings, booleans and lists look the same in JSON and in TOML.
    """
    hints = typing.get_type_hints(RunConfig)

    def line(table: str, key: str, value: Any) -> str:
        # TOML allows neither JSON's surrogate pairs nor a bare delete character.
        text = f"{key} = {json.dumps(value, ensure_ascii=False)}".replace("\x7f", "\\u007f")
        fields = {f.name: f for f in dataclasses.fields(hints.get(table, RunConfig))}
        return f"{text:<26}  # {fields[key].metadata['doc']}" if key in fields else text

    lines = [line("", k, v) for k, v in tables.items() if not isinstance(v, dict)]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(line(name, k, v) for k, v in table.items())]
    return "\n".join(lines) + "\n"


def read_config(text: str, source: str) -> RunConfig:
    """Parse a run's TOML. Raises UsageError naming `source` if it is not TOML or not valid."""
    try:
        return RunConfig.from_dict(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, UsageError) as error:
        raise UsageError(f"{source}: {error}") from error


def preset_names() -> list[str]:
    """Return the names of the presets that come with the package."""
    files = [path.name for path in resources.files("tinyprune.presets").iterdir()]
    return sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml"))


def preset_text(name: str) -> str:
    """Return the file of a preset that comes with the package."""
    return (resources.files("tinyprune.presets") / f"{name}.toml").read_text(encoding="utf-8")


@typed
def load_preset(name: str | Path) -> RunConfig:
    """Load the preset `name`, or the TOML file at that path. Raises UsageError if there is neither.

    A relative `data.corpus` in that file is relative to the current directory, as on the command line.
    """
    path, known = Path(name), preset_names()
    if name in known:
        return read_config(preset_text(name), f"preset {name}")
    if path.suffix == ".toml" and path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            needed = "give a preset or a TOML file in UTF-8"
            raise UsageError(f"cannot read {path}: {error}; {needed}") from error
        return read_config(text, str(path))
    presets = f"{', '.join(known)}{nearest(str(name), known)}"
    raise UsageError(f"no preset or .toml file {str(name)!r}; presets are {presets}")

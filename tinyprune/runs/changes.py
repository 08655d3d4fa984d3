"""Which settings may be changed when a run is resumed, and what that means for it.

    a stage that has not begun    all settings that it alone depends on
    an unfinished stage           steps, not below the step reached, and how often it evaluates, saves and logs
    a finished stage              more steps, as long as no later stage has started from it

A learning rate that follows a cosine depends on the number of steps, and so does the way to a target of heads: if the
number is changed on the way, the result is not that of a run which had it from the start. The user is told. With a
constant learning rate, or within its warm-up, the result is the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyprune.config import RunConfig
from tinyprune.errors import UsageError
from tinyprune.runs.directory import STAGES, RunDirectory
from tinyprune.training.checkpoints import load_checkpoint

# The tables of the configuration that a stage depends on; the last one says how it trains. "repair" is a part of gate.
SETTINGS = {"train": ("model", "data", "train"), "gate": ("gate", "gate_train"), "prune": ("repair",)}
SETTINGS |= {"finetune": ("finetune",)}
WHILE_UNFINISHED = ("steps", "evaluate_every", "evaluate_tokens", "checkpoint_every", "log_every")
ALLOWED = (
    f"{', '.join(WHILE_UNFINISHED)} of an unfinished stage, more steps of a finished one from which no later stage has "
    "started, and all settings of a stage that has not begun"
)
AS_IF = (
    "a cosine of the learning rate and a target of heads depend on this number: with one of them the result differs "
    "from a run that had it from the start"
)


def is_finished(metadata: dict[str, Any], stage: str, config: RunConfig) -> bool:
    """Return whether a stage's checkpoint has this metadata after its last step: more may have been asked for since."""
    trained = "training" in metadata  # not removed from another model, nor adopted from another run
    return bool(metadata.get("finished")) and not (
        trained and metadata["step"] < getattr(config, SETTINGS[stage][-1]).steps
    )


def check_changes(directory: RunDirectory, written: RunConfig, config: RunConfig, stages: Sequence[str]) -> list[str]:
    """Check how `config` differs from the settings `written` for a run before its `stages` are resumed.

    Returns a line for the user for each stage whose number of steps changes.

    Raises:
        UsageError: if a setting has to stay as it is.
        CheckpointError: if the checkpoint of a stage whose settings change cannot be read.
    """
    begun = [stage for stage in STAGES if directory.checkpoint(stage).exists()]
    names = {"seed": begun[0]} if begun and config.seed != written.seed else {}
    for stage in begun:
        tables = (*SETTINGS[stage], *["repair"] * (stage == begun[-1] == "gate" and stage in stages))
        names |= {name: stage for table in tables for name in _differences(table, written, config)}
    news = []
    for name, stage in names.items():
        metadata = load_checkpoint(directory.checkpoint(stage))[1]
        later = [other for other in begun if STAGES.index(other) > STAGES.index(stage)]
        if reason := _reason_to_stay(name, stage, metadata, config, later, stage in stages):
            raise UsageError(
                f"--resume goes on with the settings in {directory.path / 'config.toml'}; {name} must stay, {reason}; "
                f"what may change is {ALLOWED}"
            )
        if name.endswith(".steps"):
            before, after = (getattr(settings, SETTINGS[stage][-1]).steps for settings in (written, config))
            news.append(f"{stage}: {after} steps instead of {before}; {AS_IF}")
    return news


def _differences(table: str, written: RunConfig, config: RunConfig) -> list[str]:
    before, after = without_place(written, table), without_place(config, table)
    return [f"{'gate' if table == 'repair' else table}.{key}" for key in after if before[key] != after[key]]


def without_place(config: RunConfig, table: str) -> dict[str, Any]:
    """Return the settings of a table, but not where the text lies: it may move, and is known by its sha256.

    Those of gate that may still change for removal are the table "repair".
    """
    own = vars(config.gate if table == "repair" else getattr(config, table)).items()
    repair = {key: value for key, value in own if key.startswith("repair_")}
    rest = {key: value for key, value in own if key not in repair and (table, key) != ("data", "corpus")}
    return repair if table == "repair" else rest


def _reason_to_stay(
    name: str, stage: str, metadata: dict[str, Any], config: RunConfig, later: Sequence[str], resumed: bool
) -> str | None:
    """Return why the setting `name`, on which the begun `stage` depends, cannot be changed; None if it can."""
    table, _, key = name.rpartition(".")
    if table != SETTINGS[stage][-1] or key not in WHILE_UNFINISHED or not resumed:
        return f"since stage {stage} has begun"
    if metadata.get("finished"):
        if later:
            return f"since stage {later[0]} has started from stage {stage}"
        if key != "steps":
            return f"since stage {stage} is finished"
        if "training" not in metadata:
            return "since the baseline comes from another run"
    steps = getattr(config, table).steps
    if steps < metadata["step"]:
        return f"or be at least {metadata['step']}, the step that stage {stage} has reached; got {steps}"
    return None

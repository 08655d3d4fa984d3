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

from tinyprune.config import STAGE_TABLES, RunConfig
from tinyprune.errors import UsageError
from tinyprune.runs.directory import STAGES, RunDirectory
from tinyprune.training.checkpoints import load_checkpoint

# The entries of a run's file that a stage depends on: tables, and the line `texts`.
SETTINGS = {
    "train": ("model", "data", "train"),
    "gate": ("gate", "choose", "gate_train"),
    "prune": ("repair", "texts"),
    "finetune": ("heal",),
}
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
    if not metadata.get("finished"):
        return False
    trained = "training" in metadata  # not removed from another model, nor adopted from another run
    if trained and stage == "gate" and config.choose.rewind:
        return False  # the weights from before have yet to be put back
    return not trained or metadata["step"] >= steps_of(stage, config)


def steps_of(stage: str, config: RunConfig) -> int:
    """Return how many steps a stage that trains is to make."""
    return getattr(config, STAGE_TABLES[stage]).steps


def check_settings(directory: RunDirectory, written: RunConfig, config: RunConfig, stages: Sequence[str]) -> None:
    """Raise UsageError if `config` contradicts the settings that were `written` for checkpoints of these stages."""
    for stage in stages:
        for entry in SETTINGS[stage]:
            same = settings_of(config, entry) == settings_of(written, entry)
            if directory.checkpoint(stage).exists() and not same:
                raise UsageError(
                    f"stage {stage} was done with other settings [{entry}], see {directory.path / 'config.toml'}; "
                    f"leave those out, or do stage {stage} anew, in another directory or with --overwrite"
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
        entries = SETTINGS[stage]
        if stage == begun[-1] == "gate" and stage in stages:
            entries += SETTINGS["prune"]  # gates read the texts that a repair reads
        for entry in entries:
            before, after = settings_of(written, entry), settings_of(config, entry)
            names |= {name: stage for name in after if before[name] != after[name]}
    news = []
    for name, stage in names.items():
        metadata = load_checkpoint(directory.checkpoint(stage))[1]
        later = [other for other in begun if STAGES.index(other) > STAGES.index(stage)]
        reason = _reason_to_stay(name, stage, metadata, config, later, stage in stages)
        if reason:
            raise UsageError(
                f"--resume goes on with the settings in {directory.path / 'config.toml'}; {name} must stay, {reason}; "
                f"what may change is {ALLOWED}"
            )
        if name.endswith(".steps"):
            before_steps, after_steps = steps_of(stage, written), steps_of(stage, config)
            news.append(f"{stage}: {after_steps} steps instead of {before_steps}; {AS_IF}")
    return news


def settings_of(config: RunConfig, entry: str) -> dict[str, Any]:
    """Return the settings of a table, or of a line, by their whole names.

    Where the text lies is left out: it may move, and is known by its sha256.
    """
    value = getattr(config, entry)
    if isinstance(value, str):
        return {entry: value}
    named = {f"{entry}.{key}": setting for key, setting in vars(value).items()}
    named.pop("data.corpus", None)
    return named


def _reason_to_stay(
    name: str, stage: str, metadata: dict[str, Any], config: RunConfig, later: Sequence[str], resumed: bool
) -> str | None:
    """Return why the setting `name`, on which the begun `stage` depends, cannot be changed; None if it can."""
    table, _, key = name.rpartition(".")
    if table != STAGE_TABLES.get(stage) or key not in WHILE_UNFINISHED or not resumed:
        return f"since stage {stage} has begun"
    if metadata.get("finished"):
        if later:
            return f"since stage {later[0]} has started from stage {stage}"
        if key != "steps":
            return f"since stage {stage} is finished"
        if "training" not in metadata:
            return "since the baseline comes from another run"
    steps = steps_of(stage, config)
    if steps < metadata["step"]:
        return f"or be at least {metadata['step']}, the step that stage {stage} has reached; got {steps}"
    return None

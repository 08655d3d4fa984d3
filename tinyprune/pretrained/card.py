"""The card of an exported model: what it was, what was removed, how to use it and how to make it again.

It is the README.md that the Hugging Face Hub shows beside a model. (Mitchell et al. 2019, arXiv 1810.03993)
"""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from tinyprune.config import ModelConfig, RunConfig, to_toml
from tinyprune.io.tables import markdown_table
from tinyprune.model.counting import count_parameters
from tinyprune.pretrained.gguf import package

PROMPT = "The capital of France is the city of"
UNKNOWN = "not known"  # a licence that the imported files do not say


@dataclass(frozen=True)
class Original:
    """The model that a run was made of."""

    name: str
    file: str  # as `tinyprune import` was given it: a path, or the name of a package
    licence: str = UNKNOWN

    @classmethod
    def of(cls, metadata: dict[str, Any], source: Path | None) -> Original:
        """Return what an imported baseline's `metadata` and its files say; `source` is its GGUF file, if it has one."""
        file = str(metadata.get("file") or "")
        name = str(metadata.get("source") or PurePath(file).name or "a model that was trained here")
        licence, card = "", Path(file, "README.md")
        if source is not None:
            field = package("its licence").GGUFReader(source).fields.get("general.license")
            licence = str(field.contents()) if field is not None else ""
        elif file and card.is_file():
            found = [line for line in card.read_text("utf-8").splitlines() if line.startswith("license:")]
            licence = found[0].removeprefix("license:").strip() if found else ""
        return cls(name, file, licence or UNKNOWN)


def card(original: Original, before: ModelConfig, model: ModelConfig, config: RunConfig | None, target: Path) -> str:
    """Return the card of a model that was exported to `target`, a GGUF file or a folder.

    `before` is the whole model, `config` the run's settings; None if they are not there. Of files it says the name, not
    the folder.
    """
    rows = [{"": "attention heads", "whole": sum(before.heads), "here": sum(model.heads)}]
    if model.L < before.L:
        rows.insert(0, {"": "layers", "whole": before.L, "here": model.L})
    if model.U:
        rows.append(
            {"": f"blocks of {model.U} units", "whole": before.F // model.U * before.L, "here": sum(model.blocks)}
        )
    rows.append({"": "parameters", "whole": count_parameters(before), "here": count_parameters(model)})
    by_layer = [f"Heads by layer: {', '.join(map(str, model.heads))}."]
    if model.U:
        by_layer.append(f"Blocks by layer: {', '.join(map(str, model.blocks))}.")
    licence = "other" if original.licence == UNKNOWN else original.licence
    parts = [
        f"---\nlicense: {licence}\ntags: [pruned, tinyprune]\n---",
        f"# {target.stem}: {original.name}, pruned",
        f"Made of **{original.name}** by [tinyprune](https://github.com/tinyprune/tinyprune), which has removed "
        "attention heads and blocks of feed-forward units, and fitted what stays. The licence is that of the original: "
        f"{original.licence}.",
        markdown_table(rows),
        " ".join(by_layer),
        f"## Use it\n\n{usage(target)}",
        "No task was measured when this was written. `tinyprune import` reads the model, and `tinyprune eval RUN` with "
        "`--task blimp FILE`, `--words` or `--stride` says what it has kept.",
    ]
    if config is not None:
        file = shlex.quote(original.file if not PurePath(original.file).is_absolute() else PurePath(original.file).name)
        again = f"tinyprune import {file} RUN\ntinyprune gate RUN && tinyprune prune RUN && tinyprune finetune RUN"
        said = "The run's `config.toml`, which goes into RUN after the import:"
        parts.append(f"## Make it again\n\n```bash\n{again}\n```\n\n{said}\n\n```toml\n{settings(config)}```")
    return "\n\n".join(parts) + "\n"


def usage(target: Path) -> str:
    """Return how to try the model."""
    if target.suffix == ".gguf":
        return f"```bash\nllama-completion -m {target.name} -no-cnv -n 20 -p {json.dumps(PROMPT)}   # llama.cpp\n```"
    lines = [
        "from transformers import pipeline",
        f'print(pipeline("text-generation", "{target.name}")({json.dumps(PROMPT)}, max_new_tokens=20))',
    ]
    return "```python\n{}\n```".format("\n".join(lines))


def settings(config: RunConfig) -> str:
    """Return a run's settings as TOML, of files their names alone."""
    tables = config.to_dict()
    tables["data"]["corpus"] = PurePath(config.data.corpus).name
    tables["texts"] = ",".join(PurePath(name).name for name in config.texts.split(","))
    return to_toml(tables)

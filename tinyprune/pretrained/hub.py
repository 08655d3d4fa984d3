"""A folder as the Hugging Face Hub has it: config.json, model.safetensors (or its shards) and tokenizer.json."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.data.tokenizers import BytePairTokenizer
from tinyprune.errors import CheckpointError, UsageError
from tinyprune.io.files import read_error, replace_file
from tinyprune.model.parameters import parameter_shapes
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained.export import check_writable, end_token, layers_with_parts, without_empty_layers
from tinyprune.pretrained.layout import sources
from tinyprune.pretrained.safetensors_file import read_header
from tinyprune.pretrained.settings import read_settings, write_settings
from tinyprune.pretrained.stored import check_tensors, damaged, read_parameters

NEEDED = "give a folder with config.json, model.safetensors and tokenizer.json"
# What comes before the names of `layout.sources` in a file; a file of a model without its output side goes without.
PREFIX = {"gpt2": "transformer.", "llama": "model."}
# Constants that older files hold: the causal mask, the value of what it hides, and the rotary frequencies.
CONSTANTS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def read_hub(folder: Path) -> tuple[ModelConfig, dict[str, NDArray[np.float32]], BytePairTokenizer]:
    """Return configuration, parameters and tokenizer of a folder; see `read_pretrained`."""
    config = read_settings(_read_json(folder / "config.json"), folder / "config.json")
    prefix = PREFIX[config.kind]
    stored = {
        name.removeprefix(prefix): tensor
        for path in _weight_files(folder)
        for name, tensor in read_header(path).items()
        if not CONSTANTS.fullmatch(name.removeprefix(prefix))
    }
    # A tied model has no matrix for the output, but some files repeat the embedding under that name.
    repeated = stored.pop("lm_head.weight", None) if config.tied else None
    where, shapes = sources(config.kind, config), parameter_shapes(config)
    check_tensors(folder, stored, where, shapes)
    embedding = stored[where["embedding"].tensor].load
    if repeated and not (repeated.load and embedding and np.array_equal(repeated.load(), embedding())):
        said = "tie_word_embeddings is true, but lm_head.weight is not the embedding"
        raise CheckpointError(f"{folder}: {said}")
    description = _read_text(folder / "tokenizer.json")
    try:
        tokenizer = BytePairTokenizer(description, config.V, _chat_template(folder))
    except UsageError as error:
        raise UsageError(f"{folder / 'tokenizer.json'}: {error}") from error
    return config, read_parameters(stored, where, shapes), tokenizer


def write_hub(folder: str | Path, model: Transformer, tokenizer: Any, positions: int | None = None) -> None:
    """Write a model as a folder that transformers loads, also one with fewer heads if the format can say it.

    Llama's can say one number of heads for all layers, in whole groups that share a key and a value; with GPT-2's, a
    layer has all heads. A Llama's layer that has lost all of its parts is not in the folder.

    Args:
        folder: a new or empty one.
        model: of kind gpt2 or llama, without gates.
        tokenizer: its BytePairTokenizer.
        positions: how many a Llama was trained with, if these are more than its segments have here.

    Raises:
        UsageError: if the format cannot say the model, or the folder is not empty; nothing is written then.
        SaveError: if a file cannot be written.
    """
    folder, kind = Path(folder), model.config.kind
    check_writable(model, tokenizer, PREFIX, "the Hub's files", bias="qkv")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; give a new one")
    heads, model = _heads_in_each_layer(model.config), without_empty_layers(model)
    config, params = model.config, model.host_params()
    parts: dict[str, list[NDArray]] = {}
    for name, source in sources(kind, config).items():
        tensor = source.tensor if name == "unembedding" else PREFIX[kind] + source.tensor
        # The thirds of one tensor come one after the other.
        parts.setdefault(tensor, []).append(params[name].T if source.transposed else params[name])
    whole = {tensor: np.concatenate(arrays, -1) for tensor, arrays in parts.items()}
    tensors = {tensor: np.asarray(x, np.float32, order="C") for tensor, x in whole.items()}
    content = safetensors.numpy.save(tensors, {"format": "pt"})
    replace_file(folder / "model.safetensors", content, "model")
    # GPT-2's table of positions has T rows.
    longest = config.T if kind == "gpt2" else positions or config.T
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": longest}
    if tokenizer.chat_template:
        about["chat_template"] = tokenizer.chat_template
    about["clean_up_tokenization_spaces"] = False
    settings = write_settings(config, heads, longest) | {"eos_token_id": end_token(tokenizer)}
    replace_file(folder / "tokenizer.json", tokenizer.description.encode("utf-8"))
    # config.json comes last: without it the folder of an export that was stopped is no model.
    for name, values in (("tokenizer_config.json", about), ("config.json", settings)):
        replace_file(folder / name, (json.dumps(values, indent=2) + "\n").encode("utf-8"))


def _heads_in_each_layer(config: ModelConfig) -> int:
    """Return the number of heads that every layer has. Raises UsageError naming the first layer that does not fit.

    Layers without any part are left out of the folder.
    """
    numbers = layers_with_parts(config)
    H, heads, units = config.H, config.heads[numbers[0]], config.width(numbers[0])
    theirs = f"the Hub's {config.kind} has"
    for i in numbers:
        if config.width(i) != units or not units:
            had = f"as many units in each layer, {units or 'at least 1'}, but layer {i} has {config.width(i)}"
            raise UsageError(f"{theirs} {had}; a folder with --padded has them all, a .gguf file can do")
    together = H // (config.kv_heads or H)
    for i in numbers:
        ids = config.head_ids[i]
        if config.kind == "gpt2" and len(ids) < H:
            raise UsageError(f"{theirs} all {H} heads in each layer, but layer {i} has {len(ids)}")
        if not ids or len(ids) != heads:
            had = f"as many heads in each layer, {heads or 'at least 1'}, but layer {i} has {len(ids)}"
            raise UsageError(f"{theirs} {had}")
        if len(ids) != together * len(config.kv_ids(i)):
            had = f"whole groups of {together} heads that share a key and a value"
            raise UsageError(f"{theirs} {had}, but layer {i} has the heads {', '.join(map(str, ids))}")
    if config.D % heads:
        allowed = f"only numbers of heads that divide D = {config.D}"
        raise UsageError(f"transformers allows {allowed}, but layer {numbers[0]} has {heads}")
    return heads


def _chat_template(folder: Path) -> str:
    """Return how a chat becomes one text, in Jinja; of several the default. "" if the folder does not say it."""
    alone, path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if alone.exists():
        return _read_text(alone)
    found: Any = ""
    if path.exists():
        found = _read_json(path).get("chat_template")
    for one in found if isinstance(found, list) else ():
        if isinstance(one, dict) and one.get("name") == "default":
            found = one.get("template")
            break
    return found if isinstance(found, str) else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}; {NEEDED}") from error
    except OSError as error:
        raise read_error(path, error) from error
    except UnicodeDecodeError as error:
        raise damaged(f"{path} is not UTF-8 text") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise damaged(f"{path} is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise damaged(f"{path} is not a table of settings")
    return values


def _weight_files(folder: Path) -> list[Path]:
    """Return model.safetensors or its shards. Raises UsageError if there are none, also if weights are pickled."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        files = _read_json(index).get("weight_map")
        names = [*files.values()] if isinstance(files, dict) else []
        # A name that leads out of the folder would make us read any file.
        ours = [name for name in names if isinstance(name, str) and Path(name).name == name]
        if not names or ours != names:
            raise damaged(f"{index} does not name files of this folder")
        for name in names:
            if not (folder / name).exists():
                said = f"a part of the model that {index.name} names; get it, too"
                raise UsageError(f"{folder} lacks {name}, {said}")
        return [folder / name for name in sorted(set(names))]
    pickles = [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")]
    if pickles:
        raise UsageError(
            f"{min(pickles)} is a pickle, which can run any program when it is read; where you trust it, "
            "let transformers read it and write model.safetensors: model.save_pretrained(folder)"
        )
    raise UsageError(f"there is no {whole}; {NEEDED}")

"""A folder as the Hugging Face Hub has it: config.json, model.safetensors (or its shards) and tokenizer.json."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.data.tokenizers import BytePairTokenizer
from tinyprune.errors import CheckpointError, UsageError
from tinyprune.files import replace_file
from tinyprune.pretrained.layout import HUB, check_layers, parameter_shapes, sources
from tinyprune.pretrained.safetensors_file import WIDEN, read_header
from tinyprune.pretrained.settings import IMPLIED, read_settings, write_settings
from tinyprune.pretrained.stored import OTHERWISE, StoredTensor, blocks, check_tensors, read_parameters
from tinyprune.training.checkpoints import safetensors_pieces

NEEDED = "give a folder with config.json, model.safetensors and tokenizer.json"
# What comes before the names of `layout.HUB` in a file; a file of a model without its output side goes without.
PREFIX = {"gpt2": "transformer.", "llama": "model."}
# Constants that older files hold: the causal mask, the value of what it hides, and the rotary frequencies.
CONSTANTS = re.compile(r"h\.\d+\.attn\.(masked_)?bias|layers\.\d+\.self_attn\.rotary_emb\.inv_freq")


def read_hub(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]], BytePairTokenizer]:
    """Return settings, parameters and tokenizer of a folder; see `read_pretrained`."""
    settings = read_settings(_read_json(folder / "config.json"), folder / "config.json")
    kind = settings["kind"]
    stored = {
        name.removeprefix(PREFIX[kind]): tensor
        for path in _weight_files(folder)
        for name, tensor in read_header(path).items()
        if not CONSTANTS.fullmatch(name.removeprefix(PREFIX[kind]))
    }
    check_layers(folder, settings["L"], len(stored))
    where, shapes = sources(HUB[kind], settings), parameter_shapes(settings)
    # A tied model has no matrix of its own for the output, but some files repeat the embedding under that name.
    repeated = stored.pop(HUB[kind][0]["unembedding"].tensor, None) if settings["tied"] else None
    check_tensors(folder, {name: tensor.shape for name, tensor in stored.items()}, where, shapes)
    for name, tensor in stored.items():
        if tensor.widen is None:
            raise UsageError(f"{folder}: {name} is stored as {tensor.dtype}; only {', '.join(WIDEN)} can be read")
    if repeated is not None and not _equal(repeated, stored[where["embedding"].tensor]):
        raise CheckpointError(f"{folder}: tie_word_embeddings is true, but lm_head.weight is not the embedding")
    tokenizer = _read_tokenizer(folder / "tokenizer.json", settings["V"])
    return settings, read_parameters(stored, where, shapes), tokenizer


def write_hub(folder: str | Path, settings: dict[str, Any], params: dict[str, NDArray], tokenizer: Any) -> None:
    """Write a model as a folder that transformers loads, also one with fewer heads if the format can say it.

    Llama's can say one number of heads for all layers, in whole groups that share a key and a value; with GPT-2's, a
    layer has all heads.

    Args:
        folder: a new or empty one.
        settings: with all keys of a `Pretrained`'s (`dataclasses.asdict` of a ModelConfig has them, and its `to_dict`
            leaves some out); `head_ids` are the original numbers of each layer's heads, if some were removed.
        params: float32, under our names; Wk and Wv of a layer have the groups of its heads or, as before, all.
        tokenizer: the model's BytePairTokenizer.

    Raises:
        UsageError: if the format cannot say the model, or the folder is not empty; nothing is written then.
        SaveError: if a file cannot be written.
    """
    folder = Path(folder)
    kind = settings["kind"]
    if kind not in IMPLIED:
        raise UsageError(f"the Hub's files can say models of kind gpt2 and llama, got {kind}")
    for key, usual in IMPLIED[kind].items():
        if settings.get(key, usual) not in (usual, None):
            raise UsageError(f"the Hub's files can say a {kind} only where {key} is {usual}, got {settings[key]}")
    if not isinstance(tokenizer, BytePairTokenizer):
        raise UsageError(f"the Hub's files need the byte-pair tokenizer of a pretrained model, got one of {tokenizer}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder; give a new one")
    heads = _heads_in_each_layer(settings)
    params = _without_unused_groups(settings, params)
    shapes = parameter_shapes(settings, heads)
    for name in chain(shapes, params):
        found, wanted = getattr(params.get(name), "shape", "none"), shapes.get(name, "none")
        if found != wanted:
            raise UsageError(f"the Hub's files need, for {kind}, a parameter {name} of shape {wanted}, got {found}")

    layout, parts = {}, {}
    for name, source in sources(HUB[kind], settings).items():
        tensor = source.tensor if name == "unembedding" else PREFIX[kind] + source.tensor
        layout[tensor] = ("float32", source.stored_shape(params[name].shape))
        # The thirds of one tensor come one after the other.
        parts.setdefault(tensor, []).append(params[name].T if source.transposed else params[name])

    def make(tensor: str) -> NDArray:
        return np.concatenate(parts[tensor], -1) if parts[tensor][1:] else parts[tensor][0]

    replace_file(folder / "model.safetensors", safetensors_pieces(layout, make, {"format": "pt"}), "model")
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": settings["T"]}
    for name, text in (
        ("tokenizer.json", tokenizer.description),
        ("tokenizer_config.json", json.dumps(about | {"clean_up_tokenization_spaces": False}, indent=2) + "\n"),
        # Last, since without it the folder of an export that was stopped is no model.
        ("config.json", json.dumps(write_settings(settings, heads), indent=2) + "\n"),
    ):
        replace_file(folder / name, text.encode("utf-8"))


def _heads_in_each_layer(settings: dict[str, Any]) -> int:
    """Return the number of heads that every layer has. Raises UsageError naming the first layer that does not fit."""
    kind, D, H = settings["kind"], settings["D"], settings["H"]
    together = H // (settings["kv_heads"] or H)
    head_ids = settings.get("head_ids") or [range(H)] * settings["L"]
    heads = len(head_ids[0])
    for i, ids in enumerate(head_ids):
        if kind == "gpt2" and len(ids) < H:
            raise UsageError(f"the Hub's gpt2 has all {H} heads in each layer, but layer {i} has {len(ids)}")
        if not ids or len(ids) != heads:
            wanted = heads or "at least 1"
            raise UsageError(f"the Hub's llama has as many heads in each layer, {wanted}, but layer {i} has {len(ids)}")
        if any({together * (h // together) + j for j in range(together)} - set(ids) for h in ids):
            raise UsageError(
                f"the Hub's llama has whole groups of {together} heads that share a key and a value, but layer {i} has "
                f"the heads {', '.join(map(str, ids))}"
            )
    if D % heads:
        raise UsageError(f"transformers allows only numbers of heads that divide D = {D}, but layer 0 has {heads}")
    return heads


def _without_unused_groups(settings: dict[str, Any], params: dict[str, NDArray]) -> dict[str, NDArray]:
    """Return the parameters with only those keys and values that the heads of each layer use."""
    H, Dh = settings["H"], settings["D"] // settings["H"]
    K = settings["kv_heads"] or H
    kept = dict(params)
    for i, ids in enumerate(settings.get("head_ids") or ()):
        groups = sorted({h * K // H for h in ids})
        for name in (f"layers.{i}.Wk", f"layers.{i}.Wv"):
            if len(groups) < K and name in kept and kept[name].shape[1:] == (K * Dh,):
                kept[name] = kept[name].reshape(-1, K, Dh)[:, groups].reshape(-1, len(groups) * Dh)
    return kept


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}; {NEEDED}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); {OTHERWISE}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a table of settings; {OTHERWISE}")
    return values


def _weight_files(folder: Path) -> list[Path]:
    """Return model.safetensors or its shards. Raises UsageError if there are none, also if weights are pickled."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        return [whole]
    if index.exists():
        files = _read_json(index).get("weight_map")
        names = list(files.values()) if isinstance(files, dict) else []
        # A name that leads out of the folder would make us read any file.
        if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise CheckpointError(f"{index} does not name files of this folder; {OTHERWISE}")
        return [folder / name for name in sorted(set(names))]
    for pickled in sorted(path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pth")):
        raise UsageError(
            f"{pickled} is a pickle, which can run any program when it is read; where you trust it, let transformers "
            "read it and write model.safetensors: model.save_pretrained(folder)"
        )
    raise UsageError(f"there is no {whole}; {NEEDED}")


def _read_tokenizer(path: Path, V: int) -> BytePairTokenizer:
    """Read tokenizer.json for a model with V entries. Raises UsageError or CheckpointError if that is not possible."""
    try:
        return BytePairTokenizer(path.read_text(encoding="utf-8"), V)
    except FileNotFoundError as error:
        raise UsageError(f"there is no {path}; {NEEDED}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8 text; {OTHERWISE}") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Return whether two tensors hold the same numbers, which takes no more memory than two blocks."""
    return a.shape == b.shape and all(np.array_equal(x, y) for (_, x), (_, y) in zip(blocks(a), blocks(b), strict=True))

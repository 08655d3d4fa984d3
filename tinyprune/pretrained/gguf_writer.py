"""Write a Llama as one file of llama.cpp, also one that has lost heads and blocks of units in some layers only.

Where all layers are alike the file says `llama`, or `qwen2` if queries, keys and values have biases and are as wide as
the stream; otherwise `deci`: in that architecture each layer has numbers of heads, of key-value heads and of units, may
have biases and may have no attention.

llama.cpp gives each key-value head of a layer as many queries, one after the other. Where heads that stay do not
divide so, queries of zeros are added, whose rows of Wo are zeros, too, or a key-value head is stored twice; each layer
has the cheaper of both (`arrangement`).

Matrices come from the quantised file that the model was imported from, if they have not changed since: their blocks of
bytes are sliced, and nothing is quantised again. A row of a matrix is cut into blocks of 32 numbers or of 256; a head
is 64 wide and a block of units 32, so that blocks of 256 cannot be sliced along them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.errors import UsageError, missing_extra
from tinyprune.files import save_error
from tinyprune.model.transformer import Transformer
from tinyprune.ops.rotary import frequencies
from tinyprune.pretrained.export import check_writable, end_token, padded
from tinyprune.pretrained.gguf import CONTROL, LLAMA3, NORMAL, PRE, TURNED, UNUSED, USER_DEFINED, same
from tinyprune.pretrained.layout import sources
from tinyprune.pretrained.settings import NUMBERS

KINDS = ("sliced", "source", "f32")


def arrangement(groups: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return in which order a layer's heads are stored, −1 for one of zeros, and the place of each key-value head.

    Args:
        groups: for each key-value head the heads that read it, at least one.

    Each stored key-value head gets r of them in a row, for the r with the fewest heads and key-value heads together:
    all of them have as many numbers.
    """
    best: tuple[int, list[int], list[int]] | None = None
    for r in range(max(map(len, groups), default=0), 0, -1):
        queries, keys = [], []
        for k, heads in enumerate(groups):
            for first in range(0, len(heads), r):
                own = list(heads[first : first + r])
                queries += own + [-1] * (r - len(own))
                keys.append(k)
        if best is None or len(queries) + len(keys) < best[0]:
            best = len(queries) + len(keys), queries, keys
    return ([], []) if best is None else best[1:]


def write_gguf(
    path: str | Path,
    model: Transformer,
    tokenizer: Any,
    source: Path | None = None,
    kind: str = "sliced",
    positions: int | None = None,
) -> None:
    """Write a model as a GGUF file.

    Args:
        path: of the file, which must not exist.
        model: of kind llama, without gates.
        tokenizer: its BytePairTokenizer.
        source: the GGUF file that it was imported from; entries such as the chat template are kept.
        kind: "sliced": matrices that changed since have the source's type of blocks if they lose nothing, else Q8_0;
            "source": they have it anyway, or Q8_0 where gguf cannot write it; "f32": all matrices are float32.
        positions: how many it was trained with, if these are more than its segments have here.

    Raises:
        UsageError: if the format cannot say the model, or the file exists; nothing is written then.
        SaveError: if it cannot be written.
        MissingExtraError: if the package gguf is missing.
    """
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("a GGUF file", "pretrained", __name__) from error
    path, config = Path(path), model.config
    check_writable(model, tokenizer, ["llama"], "GGUF files", bias="qkv")
    if kind not in KINDS:
        raise UsageError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if path.exists():
        raise UsageError(f"{path} exists; give a new file")
    reader = None if source is None else gguf.GGUFReader(source)
    stored = {} if reader is None else {tensor.name: tensor for tensor in reader.tensors}
    params, layers = padded(model).host_params(), [stored_parts(config, i) for i in range(config.L)]
    sizes = [tuple(len(x) for x in parts) for parts in layers]
    architecture = "llama" if len(set(sizes)) == 1 and 0 not in sizes[0] else "deci"
    if config.biased_projections:  # its qwen2 has queries as wide as the stream, and no slower angles
        usual = architecture == "llama" and sizes[0][0] * config.Dh == config.D and not config.rope_scaling
        architecture = "qwen2" if usual else "deci"
    halved = reader is not None and reader.fields["general.architecture"].contents() == "qwen2"
    partial = path.with_name(f"{path.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    for name, value, of, entry in kept_entries(reader) if reader else tokenizer_entries(tokenizer, gguf):
        writer.add_key_value(name, value, of, entry)
    heads, keys, units = (list(x) if architecture == "deci" else x[0] for x in zip(*sizes, strict=True))
    about = {"T": positions or config.T, "H": heads, "kv_heads": keys, "F": units}
    add_numbers(writer, config, architecture, about)
    slower = frequencies(config.Dh, config.rope_base) / frequencies(config.Dh, config.rotary or 1.0)
    if slower.max() > 1:
        writer.add_tensor("rope_freqs.weight", slower.astype(np.float32))
    for name, (tensor, transposed, _) in sources("gguf", config).items():
        x, rows, columns = params.pop(name), None, None
        if name.startswith("layers."):
            _, i, short = name.split(".", 2)
            part, axis, width = PARTS.get(short, (0, None, 1))
            places = wide(layers[int(i)][part], width or config.Dh)
            if not places.size:
                continue
            rows, columns = (places if axis == here else None for here in (0, 1))
        paired = architecture != "qwen2" and name.endswith(TURNED)
        turned = neighbours(rows, config.Dh) if paired and rows is not None else rows
        x = picked(x.T if transposed else x, turned, columns)
        data, form = stored_as(x, stored.get(tensor), turned if halved else rows, columns, kind, gguf)
        writer.add_tensor(tensor, data, raw_dtype=form)
    try:
        for what in ("header", "kv_data", "tensors"):
            getattr(writer, f"write_{what}_to_file")()
        writer.close()
        partial.replace(path)
    except OSError as error:
        raise save_error(f"model {path}", error) from error
    finally:
        partial.unlink(missing_ok=True)


def stored_parts(config: ModelConfig, i: int) -> tuple[NDArray, NDArray, NDArray]:
    """Return which original heads, key-value heads and units layer i stores, −1 for one of zeros."""
    together, shared = config.H // (config.kv_heads or config.H), config.kv_ids(i)
    heads, keys = arrangement([[h for h in config.head_ids[i] if h // together == k] for k in shared])
    units = wide(np.array(config.block_ids[i], int), config.U) if config.U else np.arange(config.F)
    if heads and not units.size:  # a layer without units would be left out by llama.cpp, with its attention
        units = np.full(config.U, -1)
    return np.array(heads, int), np.array([shared[k] for k in keys], int), units


# Which of `stored_parts` decides of a parameter, which axis of its tensor, (out, in), and how wide each is; 0 for Dh.
# A norm is there if anything of its block is.
PARTS: dict[str, tuple[int, int | None, int]] = {
    "ln.scale": (0, None, 1),
    "Wq": (0, 0, 0),
    "Wk": (1, 0, 0),
    "Wv": (1, 0, 0),
    "Wo": (0, 1, 0),
    "ffn.ln.scale": (2, None, 1),
    "ffn.W1": (2, 0, 1),
    "ffn.Wg": (2, 0, 1),
    "ffn.W2": (2, 1, 1),
}
PARTS |= {f"b{x}": PARTS[f"W{x}"] for x in "qkv"}


def wide(parts: NDArray, width: int) -> NDArray:
    """Return the places of all numbers of these parts, each `width` wide; −1 stays −1."""
    return np.where(parts[:, None] < 0, -1, parts[:, None] * width + np.arange(width)).ravel()


def neighbours(places: NDArray, Dh: int) -> NDArray:
    """Reverse `gguf.halves`: return the places of columns with the two of each rotated pair beside each other."""
    return places.reshape(-1, 2, Dh // 2).swapaxes(1, 2).ravel()


def picked(x: NDArray, rows: NDArray | None, columns: NDArray | None) -> NDArray:
    """Return these rows and columns of an array, all for None; a place of −1 holds zeros."""
    for axis, index in enumerate((rows, columns)):
        if index is not None:
            there = (index >= 0).reshape(-1, *(1,) * (x.ndim - 1 - axis))
            x = np.where(there, np.take(x, np.maximum(index, 0), axis), x.dtype.type(0))
    return np.ascontiguousarray(x)


def stored_as(
    x: NDArray, tensor: Any, rows: NDArray | None, columns: NDArray | None, kind: str, gguf: Any
) -> tuple[NDArray, Any]:
    """Return the bytes of a tensor (out, in) and their type: blocks of the source's tensor if it is the same there."""
    types, sizes = gguf.GGMLQuantizationType, gguf.GGML_QUANT_SIZES
    if x.ndim == 1 or kind == "f32":
        return x, types.F32
    if tensor is not None:
        count, size = sizes[tensor.tensor_type]
        blocks = tensor.data.view(np.uint8).reshape(len(tensor.data), -1, size)
        by_block = None if columns is None else columns[::count] // count  # −1 stays −1
        whole = columns is None or (by_block is not None and np.array_equal(wide(by_block, count), columns))
        # a layer of a `deci` file may have fewer rows than the heads' numbers say
        ends = (-1 if index is None else index.max(initial=-1) for index in (rows, by_block))
        if whole and all(end < n for end, n in zip(ends, blocks.shape, strict=False)):
            data = picked(blocks, rows, by_block).reshape(len(x), -1)
            if np.array_equal(gguf.dequantize(data, tensor.tensor_type), x):
                return data, tensor.tensor_type
    for form in [*([] if tensor is None else [tensor.tensor_type]), types.Q8_0]:
        with contextlib.suppress(NotImplementedError):  # the package reads K-quants and others, and cannot write them
            if x.shape[1] % sizes[form][0] == 0:
                data, blocks = gguf.quantize(x, form), sizes[form][0] > 1
                if form == types.Q8_0 or kind == "source" or (blocks and same(x, gguf.dequantize(data, form))):
                    return data, form
    return x, types.F32


def kept_entries(reader: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield what the source says beside the sizes of the model, such as its tokenizer: key, value and their types."""
    ours = ("general.architecture", "general.file_type", "general.alignment")
    for name, field in reader.fields.items():
        if name.startswith(("general.", "tokenizer.")) and name not in ours:
            yield name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None


def tokenizer_entries(tokenizer: Any, gguf: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield the same for a tokenizer that comes from a tokenizer.json. Raises UsageError if llama.cpp's has no name."""
    about, kinds = json.loads(tokenizer.description), gguf.GGUFValueType
    cut = about.get("pre_tokenizer") or {}
    # Offsets tell nothing of the tokens.
    cuts = [x | {"trim_offsets": True} if "trim_offsets" in x else x for x in cut.get("pretokenizers", [cut])]
    names = [x for x in PRE if PRE[x] == cuts and (x == LLAMA3) == bool(about["model"].get("ignore_merges"))]
    if not names:
        raise UsageError(f"a GGUF file can say how a text is cut for {', '.join(PRE)}; this tokenizer cuts otherwise")
    tokens, types = [f"[unused {i}]" for i in range(tokenizer.V)], [UNUSED] * tokenizer.V
    for token, i in about["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for added in about.get("added_tokens", ()):
        tokens[added["id"]], types[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    merges = [x if isinstance(x, str) else " ".join(x) for x in about["model"]["merges"]]
    yield "tokenizer.ggml.model", "gpt2", kinds.STRING, None
    yield "tokenizer.ggml.pre", names[0], kinds.STRING, None
    yield "tokenizer.ggml.add_bos_token", False, kinds.BOOL, None
    yield "tokenizer.ggml.tokens", tokens, kinds.ARRAY, kinds.STRING
    yield "tokenizer.ggml.token_type", types, kinds.ARRAY, kinds.INT32
    yield "tokenizer.ggml.merges", merges, kinds.ARRAY, kinds.STRING
    if tokenizer.chat_template:
        yield "tokenizer.chat_template", tokenizer.chat_template, kinds.STRING, None
    if (end := end_token(tokenizer)) is not None:  # llama.cpp would take token 11, GPT-2's
        for name in ("bos", "eos"):
            yield f"tokenizer.ggml.{name}_token_id", end, kinds.UINT32, None


def add_numbers(writer: Any, config: ModelConfig, architecture: str, about: dict[str, Any]) -> None:
    """Write the sizes of the model; `about` has those that the file's layers differ in, by our names."""
    about |= {name: getattr(config, name) for name in ("V", "L", "D", "norm_eps", "rope_base")}
    for name, key in NUMBERS["gguf"].items():
        add_number(writer, key.replace("llama", architecture, 1), about[name])
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        add_number(writer, f"{architecture}.{key}", config.Dh)


def add_number(writer: Any, key: str, value: Any) -> None:
    """Write a number, or one for each layer."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)

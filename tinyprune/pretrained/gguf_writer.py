"""Write a Llama as one file of llama.cpp, also one that has lost heads and blocks of units in some layers only.

Where all layers are alike the file says `llama`; `qwen3` if the queries and keys of each head are normalised; or
`qwen2` if queries, keys and values have biases and are as wide as the stream. Otherwise it says `deci`: in that
architecture each layer has numbers of heads, of key-value heads and of units, and may have biases, or no attention. A
layer that has lost all of its parts is not in the file.

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
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import BLOCK_TYPES, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.io.files import save_error
from tinyprune.model.transformer import Transformer
from tinyprune.ops.rotary import frequencies
from tinyprune.pretrained.export import (
    check_writable,
    end_token,
    layers_with_parts,
    padded,
    with_number,
    without_empty_layers,
)
from tinyprune.pretrained.gguf import (
    CONTROL,
    LLAMA3,
    NORMAL,
    PRE,
    TURNED,
    UNTURNED,
    UNUSED,
    USER_DEFINED,
    package,
    same,
)
from tinyprune.pretrained.layout import sources
from tinyprune.pretrained.settings import number_names

KINDS = ("sliced", "source", "f32")


def arrangement(groups: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return in which order a layer's heads are stored, −1 for one of zeros, and the place of each key-value head.

    Args:
        groups: for each key-value head the heads that read it, at least one.

    Each stored key-value head gets r of them in a row, for the r with the fewest heads and key-value heads together:
    all of them have as many numbers.
    """

    def cost(r: int) -> int:
        return (r + 1) * sum(math.ceil(len(heads) / r) for heads in groups)

    most = max(map(len, groups), default=1)
    r = min(range(most, 0, -1), key=cost)
    queries: list[int] = []
    keys: list[int] = []
    for k, heads in enumerate(groups):
        for first in range(0, len(heads), r):
            own = list(heads[first : first + r])
            queries += own + [-1] * (r - len(own))
            keys.append(k)
    return queries, keys


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
    gguf = package("a GGUF file")
    path, numbers = Path(path), layers_with_parts(model.config)
    check_writable(model, tokenizer, ["llama"], "GGUF files", bias="qkv")
    model = without_empty_layers(model)
    config = model.config
    if kind not in KINDS:
        raise UsageError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    if path.exists():
        raise UsageError(f"{path} exists; give a new file")
    entries, stored, source_family = tokenizer_entries(tokenizer, gguf), {}, ""
    if source is not None:
        reader = gguf.GGUFReader(source)
        entries, stored = kept_entries(reader), {tensor.name: tensor for tensor in reader.tensors}
        source_family = reader.fields["general.architecture"].contents()
    layers = [stored_parts(config, i) for i in range(config.L)]
    family = architecture(config, layers)
    partial = path.with_name(f"{path.name}.partial")
    writer = gguf.GGUFWriter(partial, family)
    for entry in entries:
        writer.add_key_value(*entry)
    add_numbers(writer, config, family, layers, positions or config.T)
    slower = frequencies(config.Dh, config.rope_base) / frequencies(config.Dh, config.rotary or 1.0)
    if slower.max() > 1:
        writer.add_tensor("rope_freqs.weight", slower.astype(np.float32))
    params = padded(model).host_params()
    for cut in cuts(config, layers, family, source_family):
        x = params.pop(cut.name)
        x = picked(x.T if cut.transposed else x, cut.rows, cut.columns)
        data, form = stored_as(x, cut, stored.get(with_number(cut.tensor, numbers)), kind, gguf)
        writer.add_tensor(cut.tensor, data, raw_dtype=form)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        partial.replace(path)
    except OSError as error:
        raise save_error(f"model {path}", error) from error
    finally:
        partial.unlink(missing_ok=True)


def stored_matrices(model: Transformer, source: Path) -> dict[str, tuple[NDArray, str]]:
    """Return matrices of a model as the GGUF file has them that it was imported from.

    Args:
        model: of kind llama, without gates.
        source: the file.

    Returns:
        by name, rows of bytes, (outputs, bytes), and their type, of `config.BLOCK_TYPES`; without those that have
        changed, or are stored in another way.

    Raises:
        MissingExtraError: if the package gguf is missing.
    """
    gguf, config = package("a GGUF file"), model.config
    reader = gguf.GGUFReader(source)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    family = reader.fields["general.architecture"].contents()
    layers = []
    for i in range(config.L):
        units = wide(np.array(config.block_ids[i], int), config.U) if config.U else np.arange(config.F)
        layers.append(Stored(np.array(config.head_ids[i], int), np.array(config.kv_ids(i), int), units))
    params, found = model.host_params(), {}
    for cut in cuts(config, layers, "llama", family):
        tensor, x = tensors.get(cut.tensor), params[cut.name]
        if x.ndim == 1 or tensor is None or (kind := tensor.tensor_type.name.lower()) not in BLOCK_TYPES:
            continue
        order = None
        if cut.name.endswith(TURNED):  # rows of the file have the two of each rotated pair side by side
            order = neighbours(np.arange(x.shape[1]), config.Dh)
        data = sliced(tensor, cut, gguf)
        own = picked(x.T if cut.transposed else x, order, None)
        if data is not None and np.array_equal(gguf.dequantize(data, tensor.tensor_type), own):
            if order is not None:
                data = data[np.argsort(order)]
            found[cut.name] = data, kind
    return found


class Stored(NamedTuple):
    """Which original heads, key-value heads and units a layer stores, −1 for one of zeros."""

    heads: NDArray
    keys: NDArray
    units: NDArray


def stored_parts(config: ModelConfig, i: int) -> Stored:
    """Return what layer i stores."""
    together, shared = config.H // (config.kv_heads or config.H), config.kv_ids(i)
    heads, keys = arrangement([[h for h in config.head_ids[i] if h // together == k] for k in shared])
    units = np.arange(config.F)
    if config.U:
        units = wide(np.array(config.block_ids[i], int), config.U)
    if heads and not units.size:  # llama.cpp would leave out a layer without units, with its attention
        units = np.full(config.U, -1)
    return Stored(np.array(heads, int), np.array([shared[k] for k in keys], int), units)


def heads_of_zeros(config: ModelConfig) -> int:
    """Return how many heads of zeros a file has, so that the key-value heads of a layer have as many queries each."""
    return sum(int((stored_parts(config, i).heads < 0).sum()) for i in range(config.L))


def wide(ids: NDArray, width: int) -> NDArray:
    """Return the places of all numbers of these heads or blocks, each `width` wide; −1 stays −1."""
    return np.where(ids[:, None] < 0, -1, ids[:, None] * width + np.arange(width)).ravel()


def architecture(config: ModelConfig, layers: Sequence[Stored]) -> str:
    """Return the simplest architecture of llama.cpp that can say these layers."""
    sizes = {tuple(map(len, stored)) for stored in layers}
    if len(sizes) > 1 or 0 in min(sizes):
        if config.head_norms:
            raise UsageError(
                f"llama.cpp reads a Qwen3 with the same parts in every layer, got {sorted(sizes)}; use --padded"
            )
        return "deci"
    if config.head_norms:
        if config.rope_scaling:
            raise UsageError(
                "llama.cpp reads a Qwen3 only without model.rope_scaling; write a folder of the Hub instead"
            )
        return "qwen3"
    if not config.biased_projections:
        return "llama"
    # llama.cpp's qwen2 has queries as wide as the stream, and no slower angles.
    as_wide = len(layers[0].heads) * config.Dh == config.D
    return "qwen2" if as_wide and not config.rope_scaling else "deci"


@dataclass(frozen=True)
class Cut:
    """What the file has of a parameter: rows and columns of its matrix (out, in), all for None; −1 is one of zeros."""

    name: str  # of the parameter
    tensor: str  # its name in the file
    transposed: bool  # whether the parameter is (in, out)
    rows: NDArray | None
    source_rows: NDArray | None  # the same rows in the file that the model was imported from
    columns: NDArray | None


# What of a layer decides of a parameter, and which axis of its tensor is cut. A norm is never cut: it is in the file if
# anything of its block is.
CUT: dict[str, tuple[str, int | None]] = {
    "ln.scale": ("heads", None),
    "q_norm.scale": ("heads", None),
    "k_norm.scale": ("heads", None),
    "Wq": ("heads", 0),
    "Wk": ("keys", 0),
    "Wv": ("keys", 0),
    "Wo": ("heads", 1),
    "ffn.ln.scale": ("units", None),
    "ffn.W1": ("units", 0),
    "ffn.Wg": ("units", 0),
    "ffn.W2": ("units", 1),
}
CUT |= {f"b{x}": CUT[f"W{x}"] for x in "qkv"}


def cuts(config: ModelConfig, layers: Sequence[Stored], family: str, source_family: str) -> Iterator[Cut]:
    """Yield what a file of the architecture `family` has of each parameter, in the order of the forward pass."""
    for name, (tensor, transposed, _) in sources("gguf", config).items():
        rows = source_rows = columns = None
        if name.startswith("layers."):
            _, i, short = name.split(".", 2)
            of, axis = CUT[short]
            places = getattr(layers[int(i)], of)
            if not places.size:
                continue
            if of != "units":
                places = wide(places, config.Dh)
            if axis == 1:
                columns = places
            elif axis == 0:
                rows = source_rows = places
            if name.endswith(TURNED) and family not in UNTURNED:
                rows = neighbours(places, config.Dh)
                if source_family in UNTURNED:
                    source_rows = rows
        yield Cut(name, tensor, transposed, rows, source_rows, columns)


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


def stored_as(x: NDArray, cut: Cut, tensor: Any, kind: str, gguf: Any) -> tuple[NDArray, Any]:
    """Return the bytes of what is cut, and their type: blocks of the source's tensor if it is the same there."""
    types = gguf.GGMLQuantizationType
    if x.ndim == 1 or kind == "f32":
        return x, types.F32
    forms = [types.Q8_0]
    if tensor is not None:
        forms.insert(0, tensor.tensor_type)
        data = sliced(tensor, cut, gguf)
        if data is not None and np.array_equal(gguf.dequantize(data, tensor.tensor_type), x):
            return data, tensor.tensor_type
    for form in forms:
        width = gguf.GGML_QUANT_SIZES[form][0]
        if x.shape[1] % width:
            continue
        with contextlib.suppress(NotImplementedError):  # the package cannot write all types that it reads
            data = gguf.quantize(x, form)
            if form == types.Q8_0 or kind == "source" or (width > 1 and same(x, gguf.dequantize(data, form))):
                return data, form
    return x, types.F32


def sliced(tensor: Any, cut: Cut, gguf: Any) -> NDArray | None:
    """Return the bytes that the source's tensor has of a cut, None if it lacks rows, or cuts through blocks."""
    width, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    blocks = tensor.data.view(np.uint8).reshape(len(tensor.data), -1, size)
    columns = cut.columns
    if columns is not None:
        by_block = columns[::width] // width  # −1 stays −1
        if not np.array_equal(wide(by_block, width), columns):
            return None
        columns = by_block
    # A layer of a `deci` file may have fewer rows than the heads' numbers say.
    for index, n in zip((cut.source_rows, columns), blocks.shape, strict=False):
        if index is not None and index.max(initial=-1) >= n:
            return None
    found = picked(blocks, cut.source_rows, columns)
    return found.reshape(len(found), -1)


def kept_entries(reader: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield what the source says beside the sizes of the model, such as its tokenizer: key, value and their types."""
    ours = ("general.architecture", "general.file_type", "general.alignment")
    for name, field in reader.fields.items():
        if name.startswith(("general.", "tokenizer.")) and name not in ours:
            kind, *of = field.types
            yield name, field.contents(), kind, of[-1] if of else None


def tokenizer_entries(tokenizer: Any, gguf: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield the same for a tokenizer that comes from a tokenizer.json. Raises UsageError if llama.cpp's has no name."""
    about, kinds = json.loads(tokenizer.description), gguf.GGUFValueType
    cut = about.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", [cut])
    for step in steps:
        if "trim_offsets" in step:  # offsets tell nothing of the tokens
            step["trim_offsets"] = True
    whole = bool(about["model"].get("ignore_merges"))
    names = [name for name, known in PRE.items() if known == steps and (name == LLAMA3) == whole]
    if not names:
        said = f"how a text is cut for {', '.join(PRE)}; this tokenizer cuts otherwise"
        raise UsageError(f"a GGUF file can say {said}")
    tokens = [f"[unused {i}]" for i in range(tokenizer.V)]
    types = [UNUSED] * tokenizer.V
    for token, i in about["model"]["vocab"].items():
        tokens[i], types[i] = token, NORMAL
    for added in about.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
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


def add_numbers(writer: Any, config: ModelConfig, family: str, layers: Sequence[Stored], T: int) -> None:
    """Write the sizes of the model, in a `deci` file those of each layer."""
    sizes: list[Any] = [[len(ids) for ids in of] for of in zip(*layers, strict=True)]
    if family != "deci":
        sizes = [each[0] for each in sizes]
    about = {"T": T} | dict(zip(("H", "kv_heads", "F"), sizes, strict=True))
    numbers = {}
    for name, theirs in number_names("gguf").items():
        numbers[theirs] = about.get(name, getattr(config, name))
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        numbers[f"llama.{key}"] = config.Dh
    add = {list: writer.add_array, float: writer.add_float32, int: writer.add_uint32}
    for key, number in numbers.items():
        add[type(number)](key.replace("llama", family, 1), number)

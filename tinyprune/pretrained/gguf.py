"""A GGUF file of llama.cpp: a Llama or a Qwen2 with its tokenizer in one file, its matrices often quantised.

The package `gguf` reads the header, which takes seconds for the hundred thousand strings of a tokenizer, and turns
quantised blocks into float32.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import BLOCK_TYPES, ModelConfig
from tinyprune.data.tokenizers import BytePairTokenizer
from tinyprune.errors import CheckpointError, UsageError, missing_extra
from tinyprune.model.parameters import parameter_shapes
from tinyprune.ops.rotary import frequencies
from tinyprune.ops.scales import BLOCK
from tinyprune.pretrained.layout import sources
from tinyprune.pretrained.settings import model_config, only, read_numbers
from tinyprune.pretrained.stored import OTHERWISE, StoredTensor, check_memory, check_tensors, read_parameters

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
ARCHITECTURES = ("llama", "deci", "qwen2")  # deci: a Llama whose layers differ
TURNED = (".Wq", ".Wk", ".bq", ".bk")  # what rotary positions turn
# How a text is cut before it is merged, by the name in "tokenizer.ggml.pre": each digit is one token in SmolLM2.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE: dict[str, list[Any]] = {"smollm": [{"type": "Digits", "individual_digits": True}, _BYTES], "gpt-2": [_BYTES]}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
_WORDS += r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLIT = {"type": "Split", "pattern": {"Regex": _WORDS}, "behavior": "Isolated", "invert": False}
PRE["qwen2"] = [_SPLIT, _BYTES | {"use_regex": False}]
LLAMA3 = "llama-bpe"  # up to three digits are one token, and a piece that is a token is not merged
PRE[LLAMA3] = [_SPLIT | {"pattern": {"Regex": _WORDS.replace(r"N}|", r"N}{1,3}|")}}, PRE["qwen2"][-1]]


def read_gguf(path: Path) -> tuple[ModelConfig, dict[str, NDArray[np.float32]], BytePairTokenizer]:
    """Return configuration, parameters and tokenizer of a file; see `read_pretrained`."""
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("a GGUF file", "pretrained", __name__) from error
    entries, stored = read_header(path, gguf)
    config = read_settings(entries, stored, path)
    where, shapes = sources("gguf", config), parameter_shapes(config)
    for name, (tensor, transposed, _) in where.items():
        if tensor not in stored and (0 in shapes[name] or empty_block(name, config)):
            fill, shape = float(name.endswith("scale")), shapes[name][:: -1 if transposed else 1]
            stored[tensor] = StoredTensor(shape, "F32", functools.partial(np.full, shape, fill, np.float32))
    check_tensors(path, stored, where, shapes)
    tokenizer = read_tokenizer(entries, config.V, path)
    params = read_parameters(stored, where, shapes)
    for name in params:
        if name.endswith(TURNED) and entries["general.architecture"] != "qwen2":
            params[name] = halves(params[name], config.Dh)
    return config, params, tokenizer


def rounded(W: NDArray, kind: str) -> NDArray:
    """Return a matrix (in, out) as a file has it in a type of `config.BLOCK_TYPES`; itself if "" or no whole blocks."""
    if not kind or len(W) % BLOCK:
        return W
    try:
        import gguf
    except ImportError as error:
        raise missing_extra(f"repair.type = {kind!r}", "pretrained", __name__) from error
    form = gguf.GGMLQuantizationType[kind.upper()]
    return np.ascontiguousarray(gguf.dequantize(gguf.quantize(np.ascontiguousarray(W.T), form), form).T)


def same(x: NDArray, y: NDArray) -> bool:
    """Return whether arrays differ by the rounding of scales alone, which have 11 bits; weights have 4 to 8."""
    return bool(np.linalg.norm(x - y) <= 3e-3 * np.linalg.norm(x))


def block_type(params: dict[str, NDArray]) -> str:
    """Return the type of blocks of 32 that the first Wo has the numbers of, "" if there is none."""
    Wo = next((x for name, x in params.items() if name.endswith(".Wo") and x.size), np.ones((1, 1)))
    return next((kind for kind in BLOCK_TYPES if len(Wo) % BLOCK == 0 and same(Wo, rounded(Wo, kind))), "")


def halves(W: NDArray, Dh: int) -> NDArray:
    """Return Wq or Wk, (D, H·Dh), bq or bk, (H·Dh,), with the columns of each head in our order.

    Rotary positions turn pairs of columns. In GGUF the two of a pair are neighbours (0, 1), (2, 3), …; here, as on the
    Hub and in the architecture `qwen2`, they are half a head apart: (0, Dh/2), (1, Dh/2 + 1), …
    """
    return W.reshape(*W.shape[:-1], -1, Dh // 2, 2).swapaxes(-1, -2).reshape(W.shape)


def read_settings(entries: dict[str, Any], stored: dict[str, StoredTensor], path: Path) -> ModelConfig:
    """Return the configuration for the entries of a file. Raises UsageError for a model that we do not have."""
    family = entries.get("general.architecture")
    if family not in ARCHITECTURES:
        raise UsageError(f"{path}: general.architecture must be one of {', '.join(ARCHITECTURES)}, got {family}")
    entries = {re.sub(f"^{family}", "llama", key): value for key, value in entries.items()}
    tokens = entries.get("tokenizer.ggml.tokens")
    entries, layers = of_layers(entries, path)
    numbers = read_numbers(entries, "gguf", path, V=len(tokens) if isinstance(tokens, list) else None) | layers
    for name in ("norm_eps", "rope_base"):
        # Such a number is the float32 next to the one that was meant: 9.999999747e-06 is 1e-05.
        numbers[name] = float(str(np.float32(numbers[name])))
    width = entries.get("llama.attention.key_length", 0)
    numbers |= {"head_width": width} if width != numbers["D"] / numbers["H"] else {}
    numbers |= {"bias": "qkv"} if any(name.endswith("attn_q.bias") for name in stored) else {}
    config = model_config(path, "llama", **numbers, tied="output.weight" not in stored)
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        only(entries, f"llama.{key}", path, config.Dh)
    only(entries, "llama.rope.scaling.type", path, "none")
    only(entries, "llama.expert_count", path, 0)
    factors = stored.pop("rope_freqs.weight", None)
    return dataclasses.replace(config, rope_scaling=scaling(factors, config, path)) if factors else config


def scaling(tensor: StoredTensor, config: ModelConfig, path: Path) -> tuple[float, ...]:
    """Return `ModelConfig.rope_scaling` for the factors (Dh/2,) that divide the frequencies p, as Llama 3 has them.

    The share of p that stays is a · p + b between 0 and 1, see `ops.rotary.frequencies`. Its two numbers say what the
    original positions and the high frequency factor are if the low one is 1. Raises UsageError for other factors.
    """
    p = frequencies(config.Dh, config.rope_base)
    if tensor.shape == p.shape and tensor.load:
        with np.errstate(all="ignore"):  # what comes out is compared
            factors = np.array(tensor.load(), float)
            share = (1 / factors - 1 / factors.max()) / (1 - 1 / factors.max())
            i, j = np.argmax(share < 0.9999), len(p) - 1 - np.argmax(share[::-1] > 1e-4)
            a = 1000 / p[i] if i == j else (share[j] - share[i]) / (p[j] - p[i])  # any steep line if one p lies on it
            b = share[i] - a * p[i]
            for digits in (0, 3, 15):
                found = tuple(round(float(x), digits) for x in (max(factors), 1, 1 - 1 / b, -2 * np.pi * a / b))
                if np.allclose(p / frequencies(config.Dh, (*found, config.rope_base)), factors, 1e-5, 0):
                    return found
    raise UsageError(f"{path}: rope_freqs.weight slows positions in another way than Llama 3; take another model")


def empty_block(name: str, config: ModelConfig) -> bool:
    """Return whether it is the norm of a block that has lost everything, which the file does not have."""
    _, i, short = name.split(".", 2) if name.startswith("layers.") else ("", "0", name)
    return (short, config.heads[int(i)]) == ("ln.scale", 0) or (short, config.width(int(i))) == ("ffn.ln.scale", 0)


def of_layers(entries: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the entries with one number where a file has one for each layer, and what our settings say of the layers.

    A layer of n heads on k key-value heads is one that has lost some: of each key-value head the first n / k stay.
    Raises CheckpointError unless there is a number for each layer, and k divides n.
    """
    keys = [f"llama.{x}" for x in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")]
    L = int(entries.get("llama.block_count") or 0)
    if not any(isinstance(entries.get(key), list) for key in keys):
        return entries, {}
    rows: list[Any] = [x if isinstance(x, list) else [x] * L for x in (entries.get(key) for key in keys)]
    if any(len(x) != L or not all(isinstance(n, int) and 0 <= n < 1e6 for n in x) for x in rows):
        raise CheckpointError(f"{path}: the layers' numbers of heads and units do not fit {L} layers; {OTHERWISE}")
    pairs = list(zip(*rows[:2], strict=True))
    if any((n % k if k else n) for n, k in pairs):
        raise CheckpointError(f"{path}: a layer's key-value heads must divide its heads, got {pairs}; {OTHERWISE}")
    together, U = max(n // k if k else 1 for n, k in pairs), math.gcd(*rows[2])
    K, F = (max(1, *x) for x in rows[1:])
    ids = [tuple(j * together + h for j in range(k) for h in range(n // k)) for n, k in pairs]
    layers: dict[str, Any] = {"heads": tuple(rows[0]), "head_ids": tuple(ids)}
    if len(set(rows[2])) > 1:
        layers |= {"U": U, "blocks": tuple(n // U for n in rows[2])}
    return entries | dict(zip(keys, (K * together, K, F), strict=True)), layers


def read_tokenizer(entries: dict[str, Any], V: int, path: Path) -> BytePairTokenizer:
    """Return the tokenizer of a file. Raises UsageError for one that we do not have, CheckpointError for half a one."""
    only(entries, "tokenizer.ggml.model", path, "gpt2")
    pre = str(entries.get("tokenizer.ggml.pre"))
    if pre not in PRE:
        raise UsageError(f"{path}: tokenizer.ggml.pre must be one of {', '.join(PRE)}, got {pre}")
    tokens, types, merges = (entries.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges"))
    if not (isinstance(tokens, list) and isinstance(types, list) and isinstance(merges, list)):
        raise CheckpointError(f"{path} has no tokens, their types or merges; {OTHERWISE}")
    if len(types) != len(tokens) or not all(isinstance(text, str) for text in (*tokens, *merges)):
        raise CheckpointError(f"{path}: {len(tokens)} tokens have {len(types)} types, or are no texts; {OTHERWISE}")
    try:
        chat = str(entries.get("tokenizer.chat_template", ""))
        return BytePairTokenizer(description(tokens, types, merges, pre), V, chat)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def description(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], pre: str) -> str:
    """Return the text of a tokenizer.json.

    Args:
        tokens: each in the alphabet of GPT-2, which has a visible character for each byte.
        types: of each token; special ones (`CONTROL`) and `USER_DEFINED` ones are found before a text is cut.
        merges: pairs of tokens with a space between, in the order in which they were learned.
        pre: a name of `PRE`.
    """
    added = [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": kind == CONTROL}
        for i, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    vocab, whole = {token: i for i, token in enumerate(tokens)}, {"ignore_merges": True} if pre == LLAMA3 else {}
    model = {"type": "BPE", "vocab": vocab, "merges": list(merges)} | whole
    values = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE[pre]}}
    return json.dumps(values | {"decoder": _BYTES, "model": model}, ensure_ascii=False)


def read_header(path: Path, gguf: Any) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Return entries and tensors of a file. Raises CheckpointError unless it is whole. `gguf` is the package."""
    try:
        check_memory(path, path.stat().st_size)
        reader = gguf.GGUFReader(path)
        if reader.byte_order != "I":
            raise UsageError(f"{path} is not in this machine's byte order; get another file of the model")
        entries = {key: field.contents() for key, field in reader.fields.items()}
        return entries, {tensor.name: _stored(tensor, gguf) for tensor in reader.tensors}
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    except UsageError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError) as error:  # the package checks nothing itself
        raise CheckpointError(f"{path} is truncated, altered or no GGUF file ({error}); {OTHERWISE}") from error


def _stored(tensor: Any, gguf: Any) -> StoredTensor:
    """Return a tensor of the package's reader, which it maps into memory."""
    kind = tensor.tensor_type
    try:
        gguf.quants.dequantize(np.atleast_2d(tensor.data)[:1], kind)
    except NotImplementedError:
        load = None
    else:
        load = functools.partial(gguf.quants.dequantize, tensor.data, kind)
    return StoredTensor(tuple(tensor.shape.tolist())[::-1], kind.name, load)

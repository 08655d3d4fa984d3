"""A GGUF file of llama.cpp: a Llama, a Qwen2 or a Qwen3 with its tokenizer in one file, its matrices often quantised.

The package `gguf` reads the header, which takes seconds for the hundred thousand strings of a tokenizer, and turns
quantised blocks into float32.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import BLOCK_TYPES, ModelConfig
from tinyprune.data.tokenizers import BytePairTokenizer
from tinyprune.errors import UsageError, missing_extra
from tinyprune.model.parameters import parameter_shapes
from tinyprune.ops.rotary import frequencies
from tinyprune.ops.scales import BLOCK
from tinyprune.pretrained.layout import sources
from tinyprune.pretrained.settings import NUMBERS, Settings, model_config, only, read_numbers
from tinyprune.pretrained.stored import StoredTensor, check_tensors, damaged, read_parameters, reading

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
ARCHITECTURES = ("llama", "deci", "qwen2", "qwen3")  # deci: a Llama whose layers differ
UNTURNED = ("qwen2", "qwen3")  # whose rotated pairs are half a head apart, as ours, see `halves`
TURNED = (".Wq", ".Wk", ".bq", ".bk")  # what rotary positions turn
LLAMA3 = "llama-bpe"  # up to three digits are one token, and a piece that is a token is not merged

_DIGITS = {"type": "Digits", "individual_digits": True}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_RAW_BYTES = _BYTES | {"use_regex": False}


def _words(digits: str) -> dict[str, Any]:
    """Return what cuts a text into words and numbers, which are one digit or, with {1,3}, up to three."""
    pattern = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}|"
    pattern += r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


# How a text is cut before it is merged, by the name in "tokenizer.ggml.pre": each digit is one token in SmolLM2.
PRE = {
    "smollm": [_DIGITS, _BYTES],
    "gpt-2": [_BYTES],
    "qwen2": [_words(""), _RAW_BYTES],
    LLAMA3: [_words("{1,3}"), _RAW_BYTES],
}


def package(what: str) -> Any:
    """Return the package gguf, which takes time to import. Raises MissingExtraError: `what` needs it."""
    try:
        import gguf
    except ImportError as error:
        raise missing_extra(what, "pretrained", __name__) from error
    return gguf


def read_gguf(path: Path) -> tuple[ModelConfig, dict[str, NDArray[np.float32]], BytePairTokenizer]:
    """Return configuration, parameters and tokenizer of a file; see `read_pretrained`."""
    entries, stored = read_header(path)
    config = read_settings(entries, stored, path)
    where, shapes = sources("gguf", config), parameter_shapes(config)
    for name, source in where.items():
        if source.tensor not in stored and (0 in shapes[name] or empty_block(name, config)):
            shape = source.stored_shape(shapes[name])
            load = functools.partial(np.full, shape, float(name.endswith("scale")), np.float32)
            stored[source.tensor] = StoredTensor(shape, "F32", load)
    check_tensors(path, stored, where, shapes)
    tokenizer = read_tokenizer(entries, config.V, path)
    params = read_parameters(stored, where, shapes)
    for name in params:
        if name.endswith(TURNED) and entries["general.architecture"] not in UNTURNED:
            params[name] = halves(params[name], config.Dh)
    return config, params, tokenizer


def rounded(W: NDArray, kind: str) -> NDArray:
    """Return a matrix (in, out) as a file has it in a type of `config.BLOCK_TYPES`; itself if "" or no whole blocks."""
    if not kind or len(W) % BLOCK:
        return W
    gguf = package(f"repair.type = {kind!r}")
    form = gguf.GGMLQuantizationType[kind.upper()]
    return np.ascontiguousarray(gguf.dequantize(gguf.quantize(np.ascontiguousarray(W.T), form), form).T)


def same(x: NDArray, y: NDArray) -> bool:
    """Return whether arrays differ by the rounding of scales alone, which have 11 bits; weights have 4 to 8."""
    return bool(np.linalg.norm(x - y) <= 3e-3 * np.linalg.norm(x))


def block_type(params: dict[str, NDArray]) -> str:
    """Return the type of blocks of 32 that the first Wo has the numbers of, "" if there is none."""
    Wo = next((x for name, x in params.items() if name.endswith(".Wo") and x.size), np.ones((1, 1)))
    whole = len(Wo) % BLOCK == 0
    return next((kind for kind in BLOCK_TYPES if whole and same(Wo, rounded(Wo, kind))), "")


def halves(W: NDArray, Dh: int) -> NDArray:
    """Return Wq or Wk, (D, H·Dh), bq or bk, (H·Dh,), with the columns of each head in our order.

    Rotary positions turn pairs of columns. In GGUF the two of a pair are neighbours (0, 1), (2, 3), …; here, as on the
    Hub and in the architectures `UNTURNED`, they are half a head apart: (0, Dh/2), (1, Dh/2 + 1), …
    """
    return W.reshape(*W.shape[:-1], -1, Dh // 2, 2).swapaxes(-1, -2).reshape(W.shape)


def read_settings(entries: Settings, stored: dict[str, StoredTensor], path: Path) -> ModelConfig:
    """Return the configuration for the entries of a file. Raises UsageError for a model that we do not have."""
    family = entries.get("general.architecture")
    if family not in ARCHITECTURES:
        allowed = f"must be one of {', '.join(ARCHITECTURES)}"
        raise UsageError(f"{path}: general.architecture {allowed}, got {family}")
    entries = {re.sub(f"^{family}", "llama", key): value for key, value in entries.items()}
    tokens = entries.get("tokenizer.ggml.tokens")
    V = len(tokens) if isinstance(tokens, list) else None
    entries, layers = of_layers(entries, path)
    numbers = read_numbers(entries, "gguf", path, V=V) | layers
    for name in ("norm_eps", "rope_base"):
        # Such a number is the float32 next to the one that was meant: 9.999999747e-06 is 1e-05.
        numbers[name] = float(str(np.float32(numbers[name])))
    width = entries.get("llama.attention.key_length", 0)
    if width != numbers["D"] / numbers["H"]:
        numbers["head_width"] = width
    if any(name.endswith("attn_q.bias") for name in stored):
        numbers["bias"] = "qkv"
    numbers["head_norms"] = family == "qwen3"
    config = model_config(path, "llama", **numbers, tied="output.weight" not in stored)
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        only(entries, f"llama.{key}", path, config.Dh)
    only(entries, "llama.rope.scaling.type", path, "none")
    only(entries, "llama.expert_count", path, 0)
    factors = stored.pop("rope_freqs.weight", None)
    return dataclasses.replace(config, rope_scaling=scaling(factors, config, path)) if factors else config


def scaling(tensor: StoredTensor, config: ModelConfig, path: Path) -> tuple[float, ...]:
    """Return `ModelConfig.rope_scaling` for the factors (Dh/2,) that divide the frequencies, as Llama 3 has them.

    Raises UsageError for other factors.
    """
    plain = frequencies(config.Dh, config.rope_base)
    if tensor.shape == plain.shape and tensor.load:
        factors = np.array(tensor.load(), float)
        with np.errstate(all="ignore"):  # what comes out is compared with the factors
            exact = fitted_scaling(plain, factors)
            for digits in (0, 3, 15):
                found = tuple(round(number, digits) for number in exact)
                slower = frequencies(config.Dh, (*found, config.rope_base))
                if np.allclose(plain / slower, factors, rtol=1e-5, atol=0):
                    return found
    said = "slows positions in another way than Llama 3; take another model"
    raise UsageError(f"{path}: rope_freqs.weight {said}")


def fitted_scaling(plain: NDArray, factors: NDArray) -> list[float]:
    """Return factor, low and high frequency factor, and original positions for the factors of plain frequencies.

    The share of a frequency that stays is slope · frequency + offset, clipped to 0 … 1 (see `ops.rotary.frequencies`).
    This line says what the original positions and the high frequency factor are if the low one is 1.
    """
    slowest = factors.max()
    share = (1 / factors - 1 / slowest) / (1 - 1 / slowest)
    # Frequencies fall, and so do their shares; the ones from `first` to `last` are not clipped.
    first, last = int(np.argmax(share < 0.9999)), len(share) - 1 - int(np.argmax(share[::-1] > 1e-4))
    slope = (share[last] - share[first]) / (plain[last] - plain[first])
    if first == last:
        slope = 1000 / plain[first]  # any steep line through the only point
    offset = share[first] - slope * plain[first]
    return [float(slowest), 1.0, float(1 - 1 / offset), float(-2 * np.pi * slope / offset)]


def empty_block(name: str, config: ModelConfig) -> bool:
    """Return whether it is the norm of a block that has lost everything, which the file does not have."""
    if not name.startswith("layers."):
        return False
    _, i, short = name.split(".", 2)
    left = {"ln.scale": config.heads[int(i)], "ffn.ln.scale": config.width(int(i))}
    return left.get(short) == 0


def of_layers(entries: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the entries with one number where a file has one for each layer, and what our settings say of the layers.

    A layer of n heads on k key-value heads is one that has lost some: of each key-value head the first n / k stay.
    Raises CheckpointError unless there is a number for each layer, and k divides n.
    """
    keys = [NUMBERS[name].gguf for name in ("H", "kv_heads", "F")]
    L = int(entries.get("llama.block_count") or 0)
    given: list[Any] = [entries.get(key) for key in keys]
    if not any(isinstance(x, list) for x in given):
        return entries, {}
    rows = [x if isinstance(x, list) else [x] * L for x in given]
    if any(len(x) != L or not all(isinstance(n, int) and 0 <= n < 1e6 for n in x) for x in rows):
        raise damaged(f"{path}: the layers' numbers of heads and units do not fit {L} layers")
    heads, kv_heads, units = rows
    pairs = list(zip(heads, kv_heads, strict=True))
    shares = [n // k if k else 1 for n, k in pairs]  # how many heads share a key-value head
    if any(share * k != n for share, (n, k) in zip(shares, pairs, strict=True)):
        raise damaged(f"{path}: a layer's key-value heads must divide its heads, got {pairs}")
    K, F, together = max(1, *kv_heads), max(1, *units), max(shares)
    ids = []
    for share, k in zip(shares, kv_heads, strict=True):
        ids.append(tuple(j * together + h for j in range(k) for h in range(share)))
    layers: dict[str, Any] = {"heads": tuple(heads), "head_ids": tuple(ids)}
    if set(units) != {F}:
        U = math.gcd(*units) or F
        layers |= {"U": U, "blocks": tuple(n // U for n in units)}
    return entries | dict(zip(keys, (K * together, K, F), strict=True)), layers


def read_tokenizer(entries: dict[str, Any], V: int, path: Path) -> BytePairTokenizer:
    """Return the tokenizer of a file. Raises UsageError for one that we do not have, CheckpointError for half a one."""
    only(entries, "tokenizer.ggml.model", path, "gpt2")
    pre = str(entries.get("tokenizer.ggml.pre"))
    if pre not in PRE:
        raise UsageError(f"{path}: tokenizer.ggml.pre must be one of {', '.join(PRE)}, got {pre}")
    lists: list[Any] = [entries.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges")]
    if not all(isinstance(given, list) for given in lists):
        raise damaged(f"{path} has no tokens, their types or merges")
    tokens, types, merges = lists
    if len(types) != len(tokens) or not all(isinstance(text, str) for text in (*tokens, *merges)):
        raise damaged(f"{path}: {len(tokens)} tokens have {len(types)} types, or are no texts")
    try:
        chat = str(entries.get("tokenizer.chat_template", ""))
        return BytePairTokenizer(description(tokens, types, merges, pre), V, chat)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def description(tokens: list[str], types: list[int], merges: list[str], pre: str) -> str:
    """Return the text of a tokenizer.json.

    Args:
        tokens: each in the alphabet of GPT-2, which has a visible character for each byte.
        types: of each token; special ones (`CONTROL`) and `USER_DEFINED` ones are found before a text is cut.
        merges: pairs of tokens with a space between, in the order in which they were learned.
        pre: a name of `PRE`.
    """
    options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": i, "content": tokens[i]} | options | {"special": kind == CONTROL}
        for i, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    vocab = {token: i for i, token in enumerate(tokens)}
    model: dict[str, Any] = {"type": "BPE", "vocab": vocab, "merges": merges}
    if pre == LLAMA3:
        model["ignore_merges"] = True
    cut = {"type": "Sequence", "pretokenizers": PRE[pre]}
    values = {"version": "1.0", "added_tokens": added, "pre_tokenizer": cut}
    return json.dumps(values | {"decoder": _BYTES, "model": model}, ensure_ascii=False)


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Return entries and tensors of a file. Raises CheckpointError unless it is whole."""
    gguf = package("a GGUF file")

    class Reader(gguf.GGUFReader):  # type: ignore[name-defined]
        """The package's reader, which checks nothing itself: beyond the end it would go on with empty arrays."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> NDArray:
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < count:
                raise ValueError("the file ends early")
            return found

    # offsets can overflow, arrays be nested without end
    errors = ValueError, LookupError, TypeError, OverflowError, RecursionError
    with reading(path, "GGUF", *errors), np.errstate(over="ignore"):
        reader = Reader(path)
        if reader.byte_order != "I":
            raise UsageError(f"{path} is not in this machine's byte order; get another file of the model")
        entries = {key: field.contents() for key, field in reader.fields.items()}
        return entries, {tensor.name: _stored(tensor, gguf) for tensor in reader.tensors}


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

"""A GGUF file of llama.cpp: a Llama with its tokenizer in one file, its matrices often quantised.

    "GGUF", version, number of tensors, number of entries
    entries     key, type of the value, value: settings and the tokenizer
    tensors     name, dimensions (the last one first), type of the numbers, offset
    data        from the next multiple of general.alignment on

The package `gguf` turns quantised blocks into float32. The header is read here: its reader takes seconds and hundreds
of megabytes for the hundred thousand strings of a tokenizer, and can read beyond the end of a truncated file.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.data.tokenizers import BytePairTokenizer
from tinyprune.errors import CheckpointError, UsageError, missing_extra
from tinyprune.model.parameters import parameter_shapes
from tinyprune.pretrained.layout import sources
from tinyprune.pretrained.settings import MANY, model_config, only, positive
from tinyprune.pretrained.stored import OTHERWISE, StoredTensor, check_memory, check_tensors, read_parameters

# Types of an entry's value: those of one number, as `struct` writes them, a string, and an array.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
CONTROL, USER_DEFINED = 3, 4  # llama.cpp's types of tokens
# How a text is cut before it is merged, by the name in "tokenizer.ggml.pre": a digit is a token of its own in SmolLM2.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE: dict[str, list[dict[str, Any]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES],
    "gpt-2": [_BYTES],
}


def read_gguf(path: Path) -> tuple[ModelConfig, dict[str, NDArray[np.float32]], BytePairTokenizer]:
    """Return configuration, parameters and tokenizer of a file; see `read_pretrained`."""
    try:
        import gguf
    except ImportError as error:
        raise missing_extra("a GGUF file", "pretrained", __name__) from error
    entries, stored = read_header(path, gguf)
    config = read_settings(entries, stored, path)
    where, shapes = sources("gguf", config), parameter_shapes(config)
    check_tensors(path, stored, where, shapes)
    tokenizer = read_tokenizer(entries, config.V, path)
    params = read_parameters(stored, where, shapes)
    for name in params:
        if name.endswith((".Wq", ".Wk")):
            params[name] = halves(params[name], config.Dh)
    return config, params, tokenizer


def halves(W: NDArray, Dh: int) -> NDArray:
    """Return Wq or Wk, (D, H·Dh), with the columns of each head in our order.

    Rotary positions turn pairs of columns. In GGUF the two of a pair are neighbours (0, 1), (2, 3), …; here, as on the
    Hub, they are half a head apart: (0, Dh/2), (1, Dh/2 + 1), …
    """
    D = len(W)
    return W.reshape(D, -1, Dh // 2, 2).swapaxes(2, 3).reshape(D, -1)


def read_settings(entries: dict[str, Any], stored: dict[str, StoredTensor], path: Path) -> ModelConfig:
    """Return the configuration for the entries of a file. Raises UsageError for a model that we do not have."""
    only(entries, "general.architecture", path, "llama")

    def number(key: str, usual: Any = None, kind: type = int, below: float = 1e9) -> Any:
        found = positive(entries, f"llama.{key}", path, usual, kind, below)
        # Such a number is the float32 next to the one that was meant: 9.999999747e-06 is 1e-05.
        return float(str(np.float32(found))) if kind is float else found

    H, tokens = number("attention.head_count", below=MANY), entries.get("tokenizer.ggml.tokens")
    config = model_config(
        path,
        "llama",
        V=number("vocab_size", len(tokens) if isinstance(tokens, list) else None),
        L=number("block_count", below=MANY),
        D=number("embedding_length"),
        H=H,
        kv_heads=number("attention.head_count_kv", H),
        F=number("feed_forward_length"),
        T=number("context_length"),
        norm_eps=number("attention.layer_norm_rms_epsilon", None, float),
        rope_base=number("rope.freq_base", 10_000.0, float),
        tied="output.weight" not in stored,
    )
    for key in ("rope.dimension_count", "attention.key_length", "attention.value_length"):
        only(entries, f"llama.{key}", path, config.Dh)
    only(entries, "llama.rope.scaling.type", path, "none")
    only(entries, "llama.expert_count", path, 0)
    return config


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
        return BytePairTokenizer(description(tokens, types, merges, pre), V)
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
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": list(merges)}
    values = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE[pre]}}
    return json.dumps(values | {"decoder": _BYTES, "model": model}, ensure_ascii=False)


def read_header(path: Path, gguf: Any) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Return entries and tensors of a file. Raises CheckpointError unless it is whole. `gguf` is the package."""
    try:
        check_memory(path, path.stat().st_size)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Header(path, content).read(gguf)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}; check its permissions") from error
    except UsageError:
        raise
    except (struct.error, ValueError) as error:  # an empty file cannot be mapped
        raise CheckpointError(f"{path} is truncated, altered or no GGUF file ({error}); {OTHERWISE}") from error


class _Header:
    """A position in the header, which moves on with all that is read."""

    def __init__(self, path: Path, content: mmap.mmap) -> None:
        self.path, self.content, self.size, self.position = path, content, len(content), 0

    def read(self, gguf: Any) -> tuple[dict[str, Any], dict[str, StoredTensor]]:
        if self.next_bytes(4) != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        version = self.number("I")
        if version not in (2, 3):
            allowed = "in this machine's byte order; 2 and 3 are read"
            raise UsageError(f"{self.path} has version {version} of GGUF, {allowed}")
        tensors, count = self.number("Q"), self.number("Q")
        entries: dict[str, Any] = {}
        for _ in range(count):
            key = self.string()
            entries[key] = self.value(self.number("I"))
        about = [self.tensor() for _ in range(tensors)]
        alignment = entries.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment}")
        start = -(-self.position // alignment) * alignment
        return entries, {entry[0]: self.stored(gguf, start, *entry) for entry in about}

    def next_bytes(self, count: int) -> bytes:
        if count > self.size - self.position:
            raise ValueError("it ends within its header")
        self.position += count
        return self.content[self.position - count : self.position]

    def number(self, code: str) -> Any:
        (value,) = struct.unpack(f"<{code}", self.next_bytes(struct.calcsize(f"<{code}")))
        return value

    def string(self) -> str:
        return self.next_bytes(self.number("Q")).decode("utf-8")

    def value(self, kind: int) -> Any:
        """Read the value of an entry; arrays are not nested."""
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise ValueError(f"an entry has a value of type {kind}")
        of, count = self.number("I"), self.number("Q")
        if of in NUMBERS:
            item = struct.calcsize(f"<{NUMBERS[of]}")
            return np.frombuffer(self.next_bytes(count * item), f"<{NUMBERS[of]}").tolist()
        if of != STRING:
            raise ValueError(f"an entry has an array of type {of}")
        return [self.string() for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Read name, shape, type of the numbers and offset of a tensor."""
        name, axes = self.string(), self.number("I")
        if axes > 4:
            raise ValueError(f"tensor {name} has {axes} axes")
        shape = tuple(self.number("Q") for _ in range(axes))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def stored(self, gguf: Any, start: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
        try:
            of = gguf.GGMLQuantizationType(kind)
        except ValueError:
            return StoredTensor(self.path, start + offset, shape, f"type {kind}", 0, None)
        numbers, size = gguf.GGML_QUANT_SIZES[of]  # in a block
        if not shape or shape[-1] % numbers:
            raise ValueError(f"tensor {name} has shape {shape}, in blocks of {numbers}")
        row = shape[-1] // numbers * size
        end = start + offset + row * math.prod(shape[:-1])
        if end > self.size:
            where = f"its tensor {name} ends at byte {end:,}, the file at {self.size:,}"
            raise CheckpointError(f"{self.path} is truncated: {where}; {OTHERWISE}")
        return StoredTensor(self.path, start + offset, shape, of.name, row, _widen(gguf, of, size))


def _widen(gguf: Any, kind: Any, block_bytes: int) -> Any:
    """Return the function from the bytes of rows to float32, None if the package has none for these numbers."""

    def widen(data: NDArray[np.uint8]) -> NDArray[np.float32]:
        # As one row, since the package works on 16 rows at a time, which are small here.
        return gguf.quants.dequantize(data.reshape(1, -1), kind).reshape(len(data), -1)

    try:
        widen(np.zeros((1, block_bytes), np.uint8))
    except NotImplementedError:
        return None
    return widen

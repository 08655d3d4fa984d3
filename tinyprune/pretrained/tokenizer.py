"""The tokenizer of a GGUF file as the text of a tokenizer.json, from which a `BytePairTokenizer` is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tinyprune.data.tokenizers import BytePairTokenizer as BytePairTokenizer

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # llama.cpp's types of tokens
# How a text is cut before it is merged, by the name in "tokenizer.ggml.pre": a digit is a token of its own in SmolLM2.
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PRE: dict[str, list[dict[str, Any]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTES],
    "gpt-2": [_BYTES],
}


def description(tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], pre: str) -> str:
    """Return the text of a tokenizer.json.

    Args:
        tokens: each in the alphabet of GPT-2, which has a visible character for each byte.
        types: of each token; special ones (`CONTROL`) and `USER_DEFINED` ones are found before a text is cut.
        merges: pairs of tokens with a space between, in the order in which they were learned.
        pre: a name of `PRE`.
    """
    added: list[dict[str, Any]] = [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": kind == CONTROL}
        for i, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    model: dict[str, Any] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    model |= {"vocab": {token: i for i, token in enumerate(tokens)}, "merges": list(merges)}
    values: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
    }
    values |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE[pre]}}
    values |= {"post_processor": None, "decoder": _BYTES, "model": model}
    return json.dumps(values, ensure_ascii=False)

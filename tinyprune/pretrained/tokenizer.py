"""The tokenizer of a GGUF file as the text of a tokenizer.json, from which a `BytePairTokenizer` is made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

CONTROL, USER_DEFINED = 3, 4  # llama.cpp's types of tokens
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
    added = [
        {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        | {"special": kind == CONTROL}
        for i, kind in enumerate(types)
        if kind in (CONTROL, USER_DEFINED)
    ]
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": list(merges)}
    values = {"version": "1.0", "added_tokens": added, "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE[pre]}}
    return json.dumps(values | {"decoder": _BYTES, "model": model}, ensure_ascii=False)

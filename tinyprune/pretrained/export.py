"""What all exports share: which models they can say, and models without empty layers, or with zeros in empty places."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection, Sequence
from typing import Any

from tinyprune.config import USUAL, ModelConfig
from tinyprune.errors import UsageError
from tinyprune.model.parameters import layer_parameters, parameter_shapes, put_blocks, put_heads
from tinyprune.model.transformer import Transformer


def check_writable(model: Transformer, tokenizer: Any, kinds: Collection[str], files: str, **more: Any) -> None:
    """Raise UsageError unless `files` can say the model: of these kinds, with usual settings, without gates.

    `more` are unusual settings that the files can say, too.
    """
    config, kind = model.config, model.config.kind
    if kind not in kinds:
        raise UsageError(f"{files} can say models of kind {' and '.join(kinds)}, got {kind}")
    if model.gate is not None:
        raise UsageError(f"this model has gates, which {files} do not know; remove closed heads first")
    usual = USUAL[kind] | {"mask": "causal", "M": 0, "N": 0}
    if kind == "gpt2":
        usual |= {"kv_heads": 0}
    for key, value in usual.items():
        given = getattr(config, key)
        if given not in (value, more.get(key)):
            raise UsageError(f"{files} can say a {kind} only where {key} is {value}, got {given}")
    if config.head_norms and (kind, config.bias) != ("llama", "none"):
        raise UsageError(
            f"{files} can say norms of heads only of a llama without biases, got {kind} with {config.bias}"
        )
    if tokenizer.kind != "bpe":
        raise UsageError(f"{files} need a pretrained model's tokenizer, got a {tokenizer.kind} one")


# Names of the token that ends what a model says, the likelier first: chats end with the first two.
END = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "</s>")


def end_token(tokenizer: Any) -> int | None:
    """Return the number of the token that ends a text, one of `END` or the first special one; None if there is none.

    A description of a tokenizer does not say which one it is. Without it other programs take one of another vocabulary.
    """
    added = json.loads(tokenizer.description).get("added_tokens", ())
    special = {token["content"]: token["id"] for token in added if token["special"]}
    for name in END:
        if name in special:
            return special[name]
    return min(special.values(), default=None)


def padded(model: Transformer) -> Transformer:
    """Return the model with all heads and blocks again: those that were removed are zeros, and add nothing.

    So it has the shapes that other programs expect. Raises ValueError if it has gates.
    """
    if model.gate is not None:
        raise ValueError("model must have no gates; remove closed heads first")
    config, before = model.config, model.host_params()
    params = dict(before)
    whole = dataclasses.replace(config, heads=(), head_ids=(), blocks=(), block_ids=())
    for i in range(config.L):
        layer = layer_parameters(before, i)
        layer = put_heads(layer, config.head_ids[i], config.H, config.Dh, groups=whole.groups(i))
        if config.U:
            layer = put_blocks(layer, config.block_ids[i], config.F // config.U, config.U)
        params |= {f"layers.{i}.{name}": x for name, x in layer.items()}
    return dataclasses.replace(model, config=whole, params=params)


def layers_with_parts(config: ModelConfig) -> list[int]:
    """Return the numbers of the layers that add something to the stream, at least one number.

    A layer without heads and units returns what it reads, unless its last products have biases.
    """
    if config.biased_outputs:
        return list(range(config.L))
    return [i for i in range(config.L) if config.heads[i] or config.width(i)] or [0]


def without_empty_layers(model: Transformer) -> Transformer:
    """Return the model with only the layers of `layers_with_parts`, which computes the same; its arrays are shared."""
    config, numbers = model.config, layers_with_parts(model.config)
    kept: dict[str, Any] = {"L": len(numbers)}
    for name in ("heads", "head_ids", "blocks", "block_ids"):
        if own := getattr(config, name):
            kept[name] = tuple(own[i] for i in numbers)
    smaller = dataclasses.replace(config, **kept)
    params = {name: model.params[with_number(name, numbers)] for name in parameter_shapes(smaller)}
    return dataclasses.replace(model, config=smaller, params=params)


def with_number(name: str, numbers: Sequence[int]) -> str:
    """Return a name such as "layers.2.Wq", or a file's "blk.2.attn_q.weight", with numbers[2] in place of 2."""
    return re.sub(r"^(layers|blk)\.(\d+)", lambda found: f"{found[1]}.{numbers[int(found[2])]}", name)

"""The settings of a GPT-2 or a Llama: from the Hub's config.json to those of our ModelConfig, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyprune.errors import UsageError

# What a kind stands for, beside what is read from a file.
_BOTH = {"mask": "causal", "M": 0, "N": 0}
IMPLIED: dict[str, dict[str, Any]] = {
    "gpt2": _BOTH | {"positions": "learned", "norm": "layernorm", "feedforward": "gelu", "bias": "layers"},
    "llama": _BOTH | {"positions": "rotary", "norm": "rmsnorm", "feedforward": "swiglu", "bias": "none"},
}
# The only value that our models have of a setting of the Hub's. A file that lacks the setting means this value too.
ONLY: dict[str, dict[str, Any]] = {
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
}
ARCHITECTURES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}


def read_settings(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """Return our settings for those of the config.json at `where`. Raises UsageError for a model that we do not have.

    Where a setting is absent, it has the value that transformers gives it.
    """
    architectures = config.get("architectures")
    llama = isinstance(architectures, list) and ARCHITECTURES["llama"] in architectures
    kind = "llama" if llama else str(config.get("model_type"))
    if kind not in IMPLIED:
        raise UsageError(f"{where}: model_type must be gpt2 or llama, got {kind!r}")

    def number(key: str, usual: Any = None, kind: type = int) -> Any:
        return positive(config, key, where, usual, kind)

    for key, value in (ONLY[kind] | {"quantization_config": None}).items():
        only(config, key, where, value)
    tied = config.get("tie_word_embeddings")
    if tied not in (None, False, True):
        raise UsageError(f"{where}: tie_word_embeddings must be true or false, got {shown(tied)}")
    about = {"kind": kind, "V": number("vocab_size"), "tied": kind == "gpt2" if tied is None else bool(tied)}
    if kind == "gpt2":
        about |= {"L": number("n_layer"), "D": number("n_embd"), "H": number("n_head"), "T": number("n_positions")}
        about |= {"F": number("n_inner", 4 * about["D"]), "norm_eps": number("layer_norm_epsilon", 1e-5, float)}
        return model_settings(where, **about)
    about |= {"L": number("num_hidden_layers"), "D": number("hidden_size"), "H": number("num_attention_heads")}
    about |= {"kv_heads": number("num_key_value_heads", about["H"]), "F": number("intermediate_size")}
    about |= {"T": number("max_position_embeddings", 2048), "norm_eps": number("rms_norm_eps", 1e-6, float)}
    # transformers 5 has one table; before it, rope_theta stood alone and rope_scaling was a table or null.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UsageError(f"{where}: rope_parameters must be a table, got {rope!r}")
    only({"rope_scaling": rope.get("rope_type", rope.get("type"))}, "rope_scaling", where, "default")
    only(config | rope, "partial_rotary_factor", where, 1.0)
    settings = model_settings(where, **about, rope_base=positive(config | rope, "rope_theta", where, 10_000.0, float))
    only(config, "head_dim", where, settings["D"] // settings["H"])
    return settings


def write_settings(settings: dict[str, Any], heads: int) -> dict[str, Any]:
    """Return the config.json of a model with `heads` heads in each layer."""
    kind, D, H = settings["kind"], settings["D"], settings["H"]
    config: dict[str, Any] = {"model_type": kind, "architectures": [ARCHITECTURES[kind]], "vocab_size": settings["V"]}
    if kind == "gpt2":
        config |= {"n_embd": D, "n_head": heads, "n_layer": settings["L"], "n_inner": settings["F"]}
        config |= {"n_positions": settings["T"], "layer_norm_epsilon": settings["norm_eps"]}
    else:
        config |= {"hidden_size": D, "num_hidden_layers": settings["L"], "intermediate_size": settings["F"]}
        config |= {"num_attention_heads": heads, "num_key_value_heads": heads * (settings["kv_heads"] or H) // H}
        config |= {"head_dim": D // H, "max_position_embeddings": settings["T"], "rms_norm_eps": settings["norm_eps"]}
        config |= {"rope_theta": settings["rope_base"]}
    # Null, since transformers would take ids of GPT-2's or Llama 2's vocabulary where none are given.
    config |= {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": settings["tied"]}
    return config | ONLY[kind] | {"torch_dtype": "float32"}


def model_settings(
    where: Path,
    *,
    kind: str,
    V: int,
    L: int,
    D: int,
    H: int,
    F: int,
    T: int,
    norm_eps: float,
    tied: bool,
    kv_heads: int = 0,
    rope_base: float = 10_000.0,
) -> dict[str, Any]:
    """Return the settings of a `Pretrained`. Raises UsageError if widths and heads do not fit."""
    if D % H:
        raise UsageError(f"{where}: the width must be a multiple of the {H} heads, got {D}")
    if kv_heads and H % kv_heads:
        raise UsageError(f"{where}: the heads must be a multiple of the {kv_heads} key-value heads, got {H}")
    if kind == "llama" and D // H % 2:
        raise UsageError(f"{where}: the width of a head must be even for rotary positions, got {D // H}")
    sizes = {"V": V, "L": L, "D": D, "H": H, "kv_heads": 0 if kv_heads == H else kv_heads, "F": F, "T": T}
    others = {"M": 0, "N": 0, "mask": "causal", "norm_eps": norm_eps, "rope_base": rope_base, "tied": tied}
    return {"kind": kind} | sizes | others


def positive(values: dict[str, Any], key: str, where: Path, usual: Any = None, kind: type = int) -> Any:
    """Return the number `key`, `usual` where it is absent or null. Raises UsageError unless it lies above 0."""
    value = usual if values.get(key) is None else values[key]
    if value is None:
        raise UsageError(f"{where} lacks {key}, which the model needs")
    if type(value) not in (kind, int) or not 0 < value < 1e9:
        raise UsageError(f"{where}: {key} must be a number of type {kind.__name__} above 0, got {shown(value)}")
    return kind(value)


def only(values: dict[str, Any], key: str, where: Path, wanted: Any) -> None:
    """Raise UsageError if the setting `key` is given and has another value than the one that our models have."""
    if values.get(key) not in (None, wanted):
        raise UsageError(
            f"{where}: {key} is {shown(values[key])}, and tinyprune can compute only models "
            f"{'without it' if wanted is None else f'where it is {wanted!r}'}; take another model"
        )


def shown(value: Any) -> str:
    """Return a value of a file as a message shows it, in one line of limited length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"

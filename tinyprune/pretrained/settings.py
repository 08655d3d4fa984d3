"""The settings of a GPT-2 or a Llama: from the Hub's config.json to our ModelConfig, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinyprune.config import ModelConfig
from tinyprune.errors import UsageError

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
# Models have fewer layers and heads; our names for all that a file claims would fill the memory.
MANY = 1000


def read_settings(config: dict[str, Any], where: Path) -> ModelConfig:
    """Return our settings for those of the config.json at `where`. Raises UsageError for a model that we do not have.

    Where a setting is absent, it has the value that transformers gives it.
    """
    architectures = config.get("architectures")
    llama = isinstance(architectures, list) and ARCHITECTURES["llama"] in architectures
    kind = "llama" if llama else str(config.get("model_type"))
    if kind not in ONLY:
        raise UsageError(f"{where}: model_type must be gpt2 or llama, got {kind!r}")

    def number(key: str, usual: Any = None, kind: type = int, below: float = 1e9) -> Any:
        return positive(config, key, where, usual, kind, below)

    for key, value in (ONLY[kind] | {"quantization_config": None}).items():
        only(config, key, where, value)
    tied = config.get("tie_word_embeddings")
    if tied not in (None, False, True):
        raise UsageError(f"{where}: tie_word_embeddings must be true or false, got {shown(tied)}")
    about = {"V": number("vocab_size"), "tied": kind == "gpt2" if tied is None else bool(tied)}
    if kind == "gpt2":
        about |= {"L": number("n_layer", below=MANY), "D": number("n_embd"), "H": number("n_head", below=MANY)}
        about |= {"T": number("n_positions"), "F": number("n_inner", 4 * about["D"])}
        return model_config(where, kind, **about, norm_eps=number("layer_norm_epsilon", 1e-5, float))
    about |= {"L": number("num_hidden_layers", below=MANY), "D": number("hidden_size")}
    about |= {"H": number("num_attention_heads", below=MANY), "F": number("intermediate_size")}
    about |= {"kv_heads": number("num_key_value_heads", about["H"]), "T": number("max_position_embeddings", 2048)}
    # transformers 5 has one table; before it, rope_theta stood alone and rope_scaling was a table or null.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UsageError(f"{where}: rope_parameters must be a table, got {shown(rope)}")
    only({"rope_scaling": rope.get("rope_type", rope.get("type"))}, "rope_scaling", where, "default")
    only(config | rope, "partial_rotary_factor", where, 1.0)
    about |= {"rope_base": positive(config | rope, "rope_theta", where, 10_000.0, float)}
    model = model_config(where, kind, **about, norm_eps=number("rms_norm_eps", 1e-6, float))
    only(config, "head_dim", where, model.Dh)
    return model


def write_settings(model: ModelConfig, heads: int, positions: int) -> dict[str, Any]:
    """Return the config.json of a model for so many positions, with `heads` heads in each layer."""
    kind = model.kind
    config: dict[str, Any] = {"model_type": kind, "architectures": [ARCHITECTURES[kind]], "vocab_size": model.V}
    if kind == "gpt2":
        config |= {"n_embd": model.D, "n_head": heads, "n_layer": model.L, "n_inner": model.F}
        config |= {"n_positions": positions, "layer_norm_epsilon": model.norm_eps}
    else:
        config |= {"hidden_size": model.D, "num_hidden_layers": model.L, "intermediate_size": model.F}
        config |= {"num_attention_heads": heads, "num_key_value_heads": len(model.kv_ids(0)), "head_dim": model.Dh}
        config |= {"max_position_embeddings": positions, "rms_norm_eps": model.norm_eps, "rope_theta": model.rope_base}
    # Null, since transformers would take ids of GPT-2's or Llama 2's vocabulary where none are given.
    config |= {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": model.tied}
    return config | ONLY[kind] | {"torch_dtype": "float32"}


def model_config(where: Path, kind: str, **settings: Any) -> ModelConfig:
    """Return the configuration of a model that stands in `where`. Raises UsageError if its settings do not fit."""
    if settings.get("kv_heads") == settings["H"]:
        settings["kv_heads"] = 0
    try:
        return ModelConfig(kind=kind, N=0, M=0, mask="causal", **settings)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def positive(
    values: dict[str, Any], key: str, where: Path, usual: Any = None, kind: type = int, below: float = 1e9
) -> Any:
    """Return the number `key`, `usual` where it is absent or null. Raises UsageError unless 0 < number < `below`."""
    value = usual if values.get(key) is None else values[key]
    if value is None:
        raise UsageError(f"{where} lacks {key}, which the model needs")
    if type(value) not in (kind, int) or not 0 < value < below:
        allowed = f"a number of type {kind.__name__} above 0 and below {below:,.0f}"
        raise UsageError(f"{where}: {key} must be {allowed}, got {shown(value)}")
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

"""The settings of a GPT-2 or a Llama: from the Hub's config.json to our ModelConfig, and back.

Qwen2 is a Llama whose queries, keys and values have biases, Qwen3 one that normalises each head's queries and keys, and
Mistral one whose queries may see a window of the latest positions: segments no longer than it are the same with it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tinyprune.config import ModelConfig
from tinyprune.errors import UsageError

Settings = dict[str, Any]  # as a file has them
# The only value that our models have of a setting of the Hub's. A file that lacks the setting means this value too.
ONLY: dict[str, Settings] = {
    "gpt2": {
        "activation_function": "gelu_new",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    "llama": {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    "qwen2": {"hidden_act": "silu"},
    "qwen3": {"hidden_act": "silu", "attention_bias": False},
    "mistral": {"hidden_act": "silu"},
}
# The numbers of the "llama3" scaling of positions, in the order of `ModelConfig.rope_scaling`.
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Models have fewer layers and heads; our names for all that a file claims would fill the memory.
MANY = 1000


class Number(NamedTuple):
    """A number of a model: its name in each format, None where there is none, and what values it may have."""

    gpt2: str | None
    llama: str
    gguf: str
    kind: type = int
    below: float = 1e9


# By our names, in the order in which they are read.
NUMBERS = {
    "V": Number("vocab_size", "vocab_size", "llama.vocab_size"),
    "L": Number("n_layer", "num_hidden_layers", "llama.block_count", below=MANY),
    "D": Number("n_embd", "hidden_size", "llama.embedding_length"),
    "H": Number("n_head", "num_attention_heads", "llama.attention.head_count", below=MANY),
    "kv_heads": Number(None, "num_key_value_heads", "llama.attention.head_count_kv"),
    "F": Number("n_inner", "intermediate_size", "llama.feed_forward_length"),
    "T": Number("n_positions", "max_position_embeddings", "llama.context_length"),
    "norm_eps": Number("layer_norm_epsilon", "rms_norm_eps", "llama.attention.layer_norm_rms_epsilon", float),
    "rope_base": Number(None, "rope_theta", "llama.rope.freq_base", float),
}
# What absent numbers are.
ABSENT: dict[str, Settings] = {
    "gpt2": {"norm_eps": 1e-5},
    "llama": {"T": 2048, "norm_eps": 1e-6, "rope_base": 10_000.0},
    "gguf": {"rope_base": 10_000.0},
}
# The classes of the families in transformers.
LLAMAS = {family: f"{family.capitalize()}ForCausalLM" for family in ("llama", "qwen2", "qwen3", "mistral")}
ARCHITECTURES = {"gpt2": "GPT2LMHeadModel"} | LLAMAS


def read_settings(config: Settings, where: Path) -> ModelConfig:
    """Return our settings for the config.json at `where`. Raises UsageError for a model that we do not have.

    Where a setting is absent, it has the value that transformers gives it.
    """
    family = str(config.get("model_type"))
    architectures = config.get("architectures")
    if isinstance(architectures, list):
        family = next((name for name, it in LLAMAS.items() if it in architectures), family)
    if family not in ONLY:
        raise UsageError(f"{where}: model_type must be one of {', '.join(ONLY)}, got {family!r}")
    kind = "gpt2" if family == "gpt2" else "llama"
    for key, value in (ONLY[family] | {"quantization_config": None}).items():
        only(config, key, where, value)
    tied = config.get("tie_word_embeddings")
    if tied not in (None, False, True):
        raise UsageError(f"{where}: tie_word_embeddings must be true or false, got {shown(tied)}")
    # transformers 5 has one table; before it, rope_theta stood alone and rope_scaling was a table or null.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UsageError(f"{where}: rope_parameters must be a table, got {shown(rope)}")
    numbers = read_numbers(config | rope, kind, where)
    if kind == "llama":
        scaling = rope.get("rope_type", rope.get("type"))
        if scaling == "llama3":
            found = [positive(rope, key, where, kind=float) for key in SCALING]
            numbers["rope_scaling"] = tuple(found)
        else:
            only({"rope_scaling": scaling}, "rope_scaling", where, "default")
        only(config | rope, "partial_rotary_factor", where, 1.0)
        width = positive(config, "head_dim", where, numbers["D"] // numbers["H"])
        if width * numbers["H"] != numbers["D"]:
            numbers["head_width"] = width
        if family == "qwen2":
            numbers["bias"] = "qkv"
        numbers["head_norms"] = family == "qwen3"
        if config.get("use_sliding_window", family == "mistral"):
            window = positive(config, "sliding_window", where, numbers["T"])
            numbers["T"] = min(numbers["T"], window)
    return model_config(where, kind, **numbers, tied=kind == "gpt2" if tied is None else bool(tied))


def write_settings(model: ModelConfig, heads: int, positions: int) -> Settings:
    """Return the config.json of a model for so many positions, with `heads` heads in each layer."""
    kind = model.kind
    family = "qwen2" if model.bias == "qkv" else "qwen3" if model.head_norms else kind
    config: Settings = {"model_type": family, "architectures": [ARCHITECTURES[family]]}
    ours = {"H": heads, "F": model.width(0), "T": positions, "kv_heads": len(model.kv_ids(0))}
    for name, theirs in number_names(kind).items():
        config[theirs] = ours.get(name, getattr(model, name))
    if kind == "llama":
        config["head_dim"] = model.Dh
    if model.rope_scaling:
        scaling = dict(zip(SCALING, model.rope_scaling, strict=True))
        config["rope_scaling"] = {"rope_type": "llama3"} | scaling
    # Null, since transformers would take ids of GPT-2's or Llama 2's vocabulary where none are given.
    config |= {"bos_token_id": None, "eos_token_id": None, "tie_word_embeddings": model.tied}
    return config | ONLY[family] | {"torch_dtype": "float32"}


def model_config(where: Path, kind: str, **settings: Any) -> ModelConfig:
    """Return the configuration of a model that stands in `where`. Raises UsageError if its settings do not fit."""
    if settings.get("kv_heads") == settings["H"]:
        settings["kv_heads"] = 0
    try:
        return ModelConfig(kind=kind, N=0, M=0, mask="causal", **settings)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def number_names(form: str) -> dict[str, str]:
    """Return the names of the numbers in a format, "gpt2", "llama" or "gguf", by ours."""
    names = {name: getattr(number, form) for name, number in NUMBERS.items()}
    return {name: theirs for name, theirs in names.items() if theirs is not None}


def read_numbers(values: Settings, form: str, where: Path, **absent: Any) -> Settings:
    """Return the numbers of a format by our names; `absent` has values of absent ones, beside `ABSENT`."""
    found: Settings = {}
    for name, theirs in number_names(form).items():
        usual = ABSENT[form] | {"kv_heads": found.get("H")} | absent
        if form == "gpt2" and name == "F":
            usual["F"] = 4 * found["D"]
        number = NUMBERS[name]
        found[name] = positive(values, theirs, where, usual.get(name), number.kind, number.below)
    return found


def positive(values: Settings, key: str, where: Path, usual: Any = None, kind: type = int, below: float = 1e9) -> Any:
    """Return the number `key`, `usual` where it is absent or null. Raises UsageError unless 0 < number < `below`."""
    value = usual if values.get(key) is None else values[key]
    if value is None:
        raise UsageError(f"{where} lacks {key}, which the model needs")
    if type(value) not in (kind, int) or not 0 < value < below:
        allowed = f"a number of type {kind.__name__} above 0 and below {below:,.0f}"
        raise UsageError(f"{where}: {key} must be {allowed}, got {shown(value)}")
    return kind(value)


def only(values: Settings, key: str, where: Path, wanted: Any) -> None:
    """Raise UsageError if the setting `key` is given and has another value than the one that our models have."""
    if values.get(key) not in (None, wanted):
        ours = "without it" if wanted is None else f"where it is {wanted!r}"
        said = f"{key} is {shown(values[key])}, and tinyprune can compute only models {ours}"
        raise UsageError(f"{where}: {said}; take another model")


def shown(value: Any) -> str:
    """Return a value of a file as a message shows it, in one line of limited length."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]} …"

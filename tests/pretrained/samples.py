"""Small random models, byte-pair tokenizers trained on a few lines, and both models computed by their definition."""

import json
import math

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tinyprune.data import BytePairTokenizer
from tinyprune.pretrained.layout import parameter_shapes

# Sizes that all differ.
COMMON = {"V": 300, "L": 2, "D": 24, "H": 6, "kv_heads": 0, "F": 20, "T": 18, "M": 0, "N": 0, "mask": "causal"}
GPT2 = {"kind": "gpt2"} | COMMON | {"norm_eps": 1e-4, "rope_base": 10_000.0, "tied": True}
LLAMA = {"kind": "llama"} | COMMON | {"kv_heads": 3, "norm_eps": 1e-4, "rope_base": 500.0, "tied": False}
MODELS = {"gpt2": GPT2, "llama": LLAMA, "llama without groups, tied": LLAMA | {"kv_heads": 0, "tied": True}}

LINES = [
    "the cat saw the dog",
    "the dogs ran, and ran:  then they're gone",
    "for i in range(1234):\n        total += i\n\n",
]
LINES += ["naïve cafés — 猫は犬を見た 😀👍🏽", "Ω β\t\tγ \r\n don't\n", "   and    spaces   "]
HARD = [
    "",
    " ",
    "\n",
    "\n\n",
    "  x",
    "a\n\n b\n \nc",
    "1234567890 3.14 ½ ²",
    "don't they'RE",
    "def f(x):\n\treturn x**2  # 99\r\n",
]
HARD += [
    "😀👍🏽 👩‍👩‍👧 é e\u0301",
    "Русский текст, ελληνικά; עברית العربية हिन्दी 猫は犬を見た。",
    "\x00\x1f\u00a0\u3000\u200b",
    *LINES,
]

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTS = {
    "gpt2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "llama3": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def train_tokenizer(cut="gpt2", V=300):
    """Train a tokenizer that cuts texts as a model's does; returns the text of its tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = CUTS[cut], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "special_tokens": ["<|end|>"], "show_progress": False}
    tokenizer.train_from_iterator(LINES * 3, trainers.BpeTrainer(vocab_size=V, **options))
    assert tokenizer.get_vocab_size() == V
    return tokenizer.to_str()


def changed(description, **values):
    """Return a tokenizer.json with some of its entries replaced."""
    return json.dumps(json.loads(description) | values)


def random_model(settings, seed=3):
    """Return parameters, none of them 0 or 1, and a tokenizer."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(settings)
    params = {name: (0.3 * rng.standard_normal(shape) + 0.05).astype(np.float32) for name, shape in shapes.items()}
    return params, BytePairTokenizer(train_tokenizer(), settings["V"])


def logits(settings, params, ids):
    """Compute the logits (n, V) of token ids (n,), a head at a time."""
    llama, n, D, H = settings["kind"] == "llama", len(ids), settings["D"], settings["H"]
    Dh, K = D // H, settings["kv_heads"] or H
    p = {name: x.astype(np.float64) for name, x in params.items()}
    angles = np.arange(n)[:, None] * settings["rope_base"] ** (-np.arange(0, Dh, 2) / Dh)

    def norm(x, name):
        if llama:
            return x / np.sqrt((x**2).mean(1, keepdims=True) + settings["norm_eps"]) * p[f"{name}.scale"]
        x = x - x.mean(1, keepdims=True)
        x = x / np.sqrt((x**2).mean(1, keepdims=True) + settings["norm_eps"])
        return x * p[f"{name}.scale"] + p[f"{name}.bias"]

    def head(x, layer, name, h):
        x = x @ p[f"{layer}.W{name}"][:, h * Dh : (h + 1) * Dh] + p.get(f"{layer}.b{name}", np.zeros(D))[h * Dh :][:Dh]
        if not llama or name == "v":
            return x
        a, b = np.split(x, 2, 1)
        return np.hstack([a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)])

    x = p["embedding"][ids] + (0 if llama else p["positions"][:n])
    for layer in (f"layers.{i}" for i in range(settings["L"])):
        m = norm(x, f"{layer}.ln")
        for h in range(H):
            q, k, v = head(m, layer, "q", h), head(m, layer, "k", h * K // H), head(m, layer, "v", h * K // H)
            weights = np.exp(q @ k.T / math.sqrt(Dh)) * np.tri(n)
            x = x + weights / weights.sum(1, keepdims=True) @ v @ p[f"{layer}.Wo"][h * Dh : (h + 1) * Dh]
        x = x + p.get(f"{layer}.bo", 0)
        m = norm(x, f"{layer}.ffn.ln")
        a = m @ p[f"{layer}.ffn.W1"] + p.get(f"{layer}.ffn.b1", 0)
        if llama:
            g = m @ p[f"{layer}.ffn.Wg"]
            a = g / (1 + np.exp(-g)) * a
        else:
            a = a / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a**3)))
        x = x + a @ p[f"{layer}.ffn.W2"] + p.get(f"{layer}.ffn.b2", 0)
    return norm(x, "ln") @ p.get("unembedding", p["embedding"]).T


def theirs(kind, **options):
    """Make a random model of transformers; none of its parameters is 0 or 1."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(4)
    sizes = {"vocab_size": 300, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.3}
    if kind == "gpt2":
        sizes |= {"n_embd": 24, "n_head": 6, "n_layer": 2, "n_positions": 18, "layer_norm_epsilon": 1e-4, "n_inner": 20}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | options))
    else:
        sizes |= {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 6}
        sizes |= {"num_key_value_heads": 3, "max_position_embeddings": 18, "rms_norm_eps": 1e-4}
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | options))
    with torch.no_grad():
        for x in model.parameters():  # norms and biases too
            x += 0.1 * torch.randn_like(x)
    return model.eval()


def their_logits(model, ids):
    """Compute the logits (n, V) of token ids (n,)."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids[None])).logits[0].numpy()


def check_equal(params, expected):
    """Check names, values, dtype and memory order."""
    assert params.keys() == expected.keys()
    for name, x in params.items():
        assert x.dtype == np.float32 and x.flags.c_contiguous and x.flags.writeable, name
        np.testing.assert_array_equal(x, expected[name], err_msg=name)

"""Small random models, here and in transformers, and byte-pair tokenizers trained on a few lines."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tinyprune.config import ModelConfig
from tinyprune.data import BytePairTokenizer
from tinyprune.model.parameters import parameter_shapes
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained import gguf, hub, read_pretrained

# Sizes that all differ.
SIZES = {"V": 300, "L": 2, "D": 24, "H": 6, "F": 20, "T": 18, "M": 0, "N": 0, "mask": "causal", "norm_eps": 1e-4}
GPT2 = ModelConfig("gpt2", **SIZES)
LLAMA = ModelConfig("llama", **SIZES, kv_heads=3, rope_base=500.0, tied=False)
MODELS = {"gpt2": GPT2, "llama": LLAMA, "larger vocabulary": replace(LLAMA, kv_heads=0, tied=True, V=320)}

LINES = ["the cat saw the dog", "the dogs ran, and ran:  then they're gone", "   and    spaces   "]
LINES += ["for i in range(1234):\n        total += i\n\n", "naïve cafés — 猫は犬を見た 😀👍🏽", "Ω β\t\tγ \r\n don't\n"]
HARD = ["", " ", "\n", "\n\n", "  x", "a\n\n b\n \nc", "1234567890 3.14 ½ ²", "don't they'RE", *LINES]
HARD += ["def f(x):\n\treturn x**2  # 99\r\n", "😀👍🏽 👩‍👩‍👧 é e\u0301", "\x00\x1f\u00a0\u3000\u200b"]
HARD += ["Русский текст, ελληνικά; עברית العربية हिन्दी 猫は犬を見た。"]

LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
LLAMA3 += r"|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
RAW_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
CUTS = {
    "gpt2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "llama3": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3), "isolated"), RAW_BYTES]),
    "qwen2": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA3.replace("{1,3}", "")), "isolated"), RAW_BYTES]),
}


def train_tokenizer(cut="gpt2", V=300):
    """Train a tokenizer that cuts texts as a model's does; returns the text of its tokenizer.json."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=cut == "llama3"))  # as Llama 3's
    tokenizer.pre_tokenizer, tokenizer.decoder = CUTS[cut], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    options = {"initial_alphabet": alphabet, "special_tokens": ["<|end|>"], "show_progress": False}
    tokenizer.train_from_iterator(LINES * 3, trainers.BpeTrainer(vocab_size=V, **options))
    assert tokenizer.get_vocab_size() == V
    return tokenizer.to_str()


def changed(description, **values):
    """Return a tokenizer.json with some of its entries replaced."""
    return json.dumps(json.loads(description) | values)


def random_model(config, seed=3):
    """Return a model, none of whose parameters is 0 or 1, and a tokenizer."""
    rng = np.random.default_rng(seed)
    shapes = parameter_shapes(config)
    params = {name: (0.3 * rng.standard_normal(shape) + 0.05).astype(np.float32) for name, shape in shapes.items()}
    return Transformer(config, params), BytePairTokenizer(train_tokenizer(), config.V)


def theirs(folder, kind, **options):
    """Write a random model of transformers with a tokenizer; return it. None of its parameters is 0 or 1."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    torch.manual_seed(4)
    sizes = {"vocab_size": 300, "bos_token_id": None, "eos_token_id": None, "initializer_range": 0.3}
    if kind == "gpt2":
        sizes |= {"n_embd": 24, "n_head": 6, "n_layer": 2, "n_positions": 18, "layer_norm_epsilon": 1e-4, "n_inner": 20}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | options))
    else:
        sizes |= {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 6}
        sizes |= {"num_key_value_heads": 3, "max_position_embeddings": 18, "rms_norm_eps": 1e-4}
        name = kind.capitalize()
        config = getattr(transformers, f"{name}Config")(**sizes | options)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for x in model.parameters():  # norms and biases too
            x += 0.1 * torch.randn_like(x)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(train_tokenizer(), "utf-8")
    return model.eval()


def their_logits(model, ids):
    """Compute the logits (n, V) of token ids (n,)."""
    import torch

    with torch.no_grad():
        return model(torch.tensor(ids[None])).logits[0].numpy()


def refused(path, error, match):
    """Check that a model is refused in one line, before any tensor is read."""
    with pytest.MonkeyPatch.context() as patched, pytest.raises(error, match=match) as raised:
        for reader in (hub, gguf):
            patched.setattr(reader, "read_parameters", lambda *arguments: pytest.fail("tensors were read"))
        read_pretrained(path)
    assert type(raised.value) is error and "\n" not in str(raised.value)


def check_equal(params, expected):
    """Check names, values, dtype and memory order."""
    assert params.keys() == expected.keys()
    for name, x in params.items():
        assert x.dtype == np.float32 and x.flags.c_contiguous and x.flags.writeable, name
        np.testing.assert_array_equal(x, expected[name], err_msg=name)

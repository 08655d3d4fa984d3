"""GGUF files: what llama.cpp's converter writes is read, quantised or not; damaged and other files are refused."""

import json
import struct

import gguf
import numpy as np
import pytest
import samples
from gguf import GGMLQuantizationType as Type
from gguf import GGUFWriter
from numpy.testing import assert_allclose, assert_array_equal
from samples import refused

from tinyprune.config import ModelConfig
from tinyprune.errors import CheckpointError, UsageError
from tinyprune.ops.rotary import frequencies
from tinyprune.pretrained import read_pretrained
from tinyprune.pretrained.layout import sources

# Rows as long as a block of quantised numbers, or two.
SIZES = samples.SIZES | {"D": 32, "H": 4, "F": 64, "norm_eps": 1e-5}
LLAMA = ModelConfig("llama", **SIZES, kv_heads=2, rope_base=500.0, tied=False)
QWEN3 = ModelConfig("llama", **SIZES, kv_heads=2, head_norms=True)
DESCRIPTIONS = {"none": samples.train_tokenizer("smollm"), "qkv": samples.train_tokenizer("qwen2")}


def permuted(W, heads):
    """Reorder the rows of a stored query or key matrix as llama.cpp's convert_hf_to_gguf.py does."""
    return W.reshape(heads, 2, len(W) // heads // 2, *W.shape[1:]).swapaxes(1, 2).reshape(W.shape)


def write(path, config, params, kind=Type.F32, *, entries=None, without=(), more=None):
    """Write a file; `entries` replace or follow its own, `without` some keys or tensors, and with `more` tensors."""
    family, pre = ("qwen2", "qwen2") if config.bias == "qkv" else ("llama", "smollm")
    family = "qwen3" if config.head_norms else family
    described = json.loads(DESCRIPTIONS[config.bias])
    tokens = list(described["model"]["vocab"])
    special = {token["id"] for token in described["added_tokens"]}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["model"]["merges"]]
    about = {"block_count": config.L, "context_length": config.T, "embedding_length": config.D}
    about |= {"feed_forward_length": config.F, "attention.head_count": config.H, "rope.freq_base": config.rope_base}
    about |= {"attention.head_count_kv": config.kv_heads or config.H, "rope.dimension_count": config.Dh}
    about |= {"attention.layer_norm_rms_epsilon": config.norm_eps}
    about = {f"{family}.{key}": value for key, value in about.items()}
    types = [3 if i in special else 1 for i in range(len(tokens))]
    ours = {"model": "gpt2", "pre": pre, "tokens": tokens, "token_type": types, "merges": merges}
    about |= {f"tokenizer.ggml.{key}": value for key, value in ours.items()}
    about |= entries or {}
    writer = GGUFWriter(path, about.pop("general.architecture", family))
    for key, value in about.items():
        if key not in without:
            add = {str: writer.add_string, float: writer.add_float32, list: writer.add_array}
            add.get(type(value), writer.add_uint32)(key, value)
    for name, source in sources("gguf", config).items():
        x = params[name].T if source.transposed else params[name]
        if name.endswith((".Wq", ".Wk")) and family == "llama":
            x = permuted(x, config.H if name.endswith(".Wq") else config.kv_heads or config.H)
        if source.tensor not in without:
            used = kind if x.ndim == 2 else Type.F32
            x = np.ascontiguousarray(x)
            writer.add_tensor(source.tensor, gguf.quants.quantize(x, used), raw_dtype=used)
    if config.rope_scaling:
        factors = frequencies(config.Dh, config.rope_base) / frequencies(config.Dh, config.rotary)
        more = {"rope_freqs.weight": np.float32(factors)}
    for name, x in (more or {}).items():
        writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def params():
    return samples.random_model(LLAMA)[0].params


def test_the_file_of_an_installed_package_is_found_by_its_name(tmp_path, params, monkeypatch):
    (about := tmp_path / "a_model-1.0.dist-info").mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: a-model\nVersion: 1.0\n")
    (about / "RECORD").write_text("a_model/__init__.py,,\na_model/small.gguf,,\n")
    (tmp_path / "a_model").mkdir()
    write(tmp_path / "a_model" / "small.gguf", LLAMA, params)
    monkeypatch.syspath_prepend(tmp_path)
    assert read_pretrained("a-model").name == "small"
    with pytest.raises(UsageError, match="no installed package with a model pytest"):
        read_pretrained("pytest")


@pytest.mark.parametrize(
    "config", [LLAMA, ModelConfig("llama", **SIZES), ModelConfig("llama", **SIZES, bias="qkv"), QWEN3]
)
def test_what_the_converter_writes_is_read(tmp_path, config):
    params = samples.random_model(config)[0].params
    usual = () if config.kv_heads else ("llama.rope.freq_base", "llama.attention.head_count_kv")
    model = read_pretrained(write(tmp_path / "a.Q.gguf", config, params, without=usual))
    assert (model.config, model.name) == (config, "a.Q")
    samples.check_equal(model.params, params)
    for text in samples.HARD:
        ids = model.tokenizer.encode(text)
        assert ids.tolist() == samples.Tokenizer.from_str(DESCRIPTIONS[config.bias]).encode(text).ids
        assert model.tokenizer.decode(ids) == text
    assert model.tokenizer.encode("<|end|>1").tolist()[0] == 0


@pytest.mark.parametrize(
    ("kind", "error"), [(Type.F16, 1e-3), (Type.BF16, 1e-2), (Type.Q8_0, 1e-2), (Type.Q4_1, 0.1)], ids=str
)
def test_narrow_and_quantised_numbers_become_float32(tmp_path, params, kind, error):
    model = read_pretrained(write(tmp_path / "m.gguf", LLAMA, params, kind))
    quantised = gguf.quants.dequantize(gguf.quants.quantize(params["embedding"], kind), kind)
    assert_array_equal(model.params["embedding"], quantised)
    for name, x in model.params.items():
        assert x.dtype == np.float32 and x.flags.c_contiguous
        assert_allclose(x, params[name], rtol=0, atol=error * np.abs(params[name]).max(), err_msg=name)


NOT_OURS = [
    ("general.architecture", "mamba", "general.architecture must be one of llama, deci, qwen2, qwen3, got mamba"),
    ("llama.rope.scaling.type", "linear", "rope.scaling.type is 'linear'"),
    ("llama.attention.head_count_kv", "2", "head_count_kv must be a number of type int .*, got '2'"),
    ("llama.block_count", 100_000_000, "block_count must be .* below 1,000, got 100000000"),
    ("tokenizer.ggml.model", "llama", "tokenizer.ggml.model is 'llama', .* where it is 'gpt2'"),
    ("tokenizer.ggml.pre", "bloom", "tokenizer.ggml.pre must be one of smollm, gpt-2, .*, got bloom"),
]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        *(({"entries": {key: value}}, UsageError, match) for key, value, match in NOT_OURS),
        ({"without": ["llama.block_count"]}, UsageError, "lacks llama.block_count"),
        ({"without": ["tokenizer.ggml.merges"]}, CheckpointError, "has no tokens, their types or merges"),
        ({"entries": {"tokenizer.ggml.token_type": [1]}}, CheckpointError, "300 tokens have 1 types"),
        ({"more": {"rope_freqs.weight": np.arange(1, 5, dtype="f4")}}, UsageError, "in another way than Llama 3"),
        ({"entries": {"llama.vocab_size": 299}}, CheckpointError, r"shape \(300, 32\), .* need \(299, 32\)"),
    ],
    ids=str,
)
def test_settings_that_we_do_not_have_and_what_does_not_fit_are_refused(tmp_path, params, changes, error, match):
    refused(write(tmp_path / "m.gguf", LLAMA, params, **changes), error, match)


def test_numbers_that_the_package_does_not_know_are_refused(tmp_path, params):
    path = write(tmp_path / "m.gguf", LLAMA, params)
    name = b"blk.1.ffn_up.weight"
    content = path.read_bytes()
    # The type stands behind the name, the number of axes, and two of them.
    place = content.index(name) + len(name) + 4 + 2 * 8
    for kind, error, said in (
        (int(Type.I8), UsageError, "blk.1.ffn_up.weight is stored as I8, which cannot be read"),
        (999, CheckpointError, "altered .* or newer than the package that reads it"),
    ):
        path.write_bytes(content[:place] + struct.pack("<I", kind) + content[place + 4 :])
        refused(path, error, said)


def test_a_damaged_file_is_refused(tmp_path, params):
    path = write(tmp_path / "m.gguf", LLAMA, params)
    whole = path.read_bytes()
    cuts = [*range(0, 30), *range(30, len(whole), 2503), len(whole) - 40]
    for length in cuts:
        path.write_bytes(whole[:length])
        refused(path, CheckpointError, r"m.gguf is truncated")
    huge = struct.pack("<Q", 1 << 60)
    for start, bad in ((0, b"GGML"), (8, huge), (16, huge), (24, huge), (32, b"\xff")):
        path.write_bytes(whole[:start] + bad + whole[start + len(bad) :])
        refused(path, CheckpointError, "is truncated, altered or no GGUF file")
    for version in (b"\x01\0\0\0", b"\0\0\0\x03"):
        path.write_bytes(whole[:4] + version + whole[8:])
        refused(path, CheckpointError, "is truncated, altered or no GGUF file")

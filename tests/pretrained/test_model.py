"""GPT-2 and Llama computed here are those of transformers: logits, all gradients, and what they write."""

import numpy as np
import pytest
import samples

from tinyprune.config import ModelConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.model.generation import generate
from tinyprune.model.transformer import Transformer
from tinyprune.pretrained import read_pretrained
from tinyprune.pretrained.hub import PREFIX
from tinyprune.pretrained.layout import HUB, sources

T = 128
MODELS = {
    "gpt2": ("gpt2", {"n_embd": 48, "n_head": 12, "n_positions": T}),
    "llama": ("llama", {"num_key_value_heads": 2, "max_position_embeddings": T, "rope_theta": 500.0}),
    "llama, tied": ("llama", {"max_position_embeddings": T, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """A model of transformers and what is read from the folder that it writes."""
    kind, options = MODELS[request.param]
    theirs, folder = samples.theirs(kind, **options), tmp_path_factory.mktemp("m")
    theirs.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(samples.train_tokenizer(), "utf-8")
    return theirs, read_pretrained(folder)


@pytest.fixture(params=["numpy", "numba"])
def ours(request, pair):
    return Transformer(ModelConfig.from_dict(pair[1].settings), dict(pair[1].params), ops=get_backend(request.param))


def their_gradients(theirs, settings):
    """Return the gradients that torch has found, by our names and in our shapes."""
    grads = {name: x.grad.numpy() for name, x in theirs.named_parameters()}
    found = {}
    for name, (tensor, transposed, third) in sources(HUB[settings["kind"]], settings).items():
        g = grads.pop(tensor, None) if name == "unembedding" else grads[PREFIX[settings["kind"]] + tensor]
        g = g if third is None else np.split(g, 3, -1)[third]
        found[name] = g.T if transposed else g
    return found


@pytest.mark.parametrize("n", [1, 7, T])
def test_logits_and_all_gradients_are_those_of_transformers(pair, ours, n):
    import torch

    theirs, settings = pair[0], pair[1].settings
    ids, targets = np.random.default_rng(n).integers(0, 300, (2, 2, n))
    theirs.zero_grad()
    logits = theirs(torch.tensor(ids)).logits
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten()).backward()
    logits = logits.detach().numpy()
    h, _, _ = ours.forward(ids)
    found = h @ ours.params.get("unembedding", ours.params["embedding"]).T
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-4 * np.abs(logits).max())
    _, _, cache = ours.loss(ids, targets)
    grads, expected = ours.backward(1.0, cache), their_gradients(theirs, settings)
    assert grads.keys() == expected.keys()
    # Some are 0 but for rounding: that of bk, which adds the same to all scores, and of Wq and Wk where n is 1.
    rounding = 1e-6 * np.linalg.norm([np.linalg.norm(g) for g in expected.values()])
    for name, g in expected.items():
        assert np.linalg.norm(grads[name] - g) <= 1e-4 * np.linalg.norm(g) + rounding, name


def test_the_likeliest_continuation_is_that_of_transformers(pair, ours):
    """Rounding can not decide: the likeliest token leads by far more than float32's errors."""
    import torch

    prompt = np.random.default_rng(0).integers(0, 300, 5)
    expected = pair[0].generate(torch.tensor(prompt[None]), do_sample=False, max_new_tokens=100, pad_token_id=0)
    ids = expected[0].numpy()
    first, second = np.sort(samples.their_logits(pair[0], ids)[4:-1], 1)[:, :-3:-1].T
    assert (first - second).min() > 1e-3
    assert list(generate(ours, prompt, 100, np.random.default_rng(0), temperature=0)) == ids[5:].tolist()

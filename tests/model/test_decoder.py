"""The compiled decoder and the products with stored blocks, against NumPy's."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from small import MODELS, small_config, small_model
from test_positions import UNUSUAL

from tinyprune.config import GateConfig
from tinyprune.kernels.backend import get_backend
from tinyprune.kernels.cpu import stored
from tinyprune.kernels.cpu.decoder import knows
from tinyprune.kernels.cpu.jit import kernel
from tinyprune.model.generation import CachedDecoder, generate

OPENED = np.array([[True, False, True], [False, False, False], [True, True, False]])


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("kind", "options"), [(kind, {}) for kind in MODELS] + [*UNUSUAL.items()])
def test_it_reads_as_numpy_does(kind, options, gated):
    """So long that keys fall out of sight, token by token, and with a prompt that is read at once."""
    config = small_config(kind, L=3, **options)
    model = small_model(config, *((GateConfig(), OPENED) if gated else ()), dtype=np.float32)
    text = np.random.default_rng(6).integers(0, config.V, 2 * config.T + 5)
    readers = [CachedDecoder(dataclasses.replace(model, ops=get_backend(name))) for name in ("numpy", "numba")]
    assert readers[0].compiled is None and readers[1].compiled is not None
    for n in (0, config.T - 1):
        found = []
        for reader in readers:
            reader.clear()
            log_p = [reader.predict(reader.read_text(text[:n]))] if n else []
            found.append(log_p + [reader.predict(reader.read_token(int(token))) for token in text[n:]])
        np.testing.assert_allclose(found[1], found[0], rtol=0, atol=1e-4)
    tokens = [list(generate(r.reader, text[:3], 20, np.random.default_rng(0), temperature=0)) for r in readers]
    assert tokens[0] == tokens[1]


def test_what_is_new_is_left_to_numpy():
    """A norm, say, that the kernel would take for another, and norms of heads."""
    config = small_model(small_config("llama"), dtype=np.float32).config
    known = {"positions": "rotary", "norm": "rmsnorm", "second": "swiglu", "head_norms": False}
    assert knows(config) and knows(SimpleNamespace(**known))
    for name in ("positions", "norm", "second", "head_norms"):
        assert not knows(SimpleNamespace(**known | {name: "new"}))


def test_norms_of_heads_are_applied_token_by_token():
    model = small_model(small_config("llama", L=2, head_norms=True), dtype=np.float32)
    text = np.random.default_rng(6).integers(0, model.config.V, model.config.T)
    for name in ("numpy", "numba"):
        reader = CachedDecoder(dataclasses.replace(model, ops=get_backend(name)))
        assert reader.compiled is None
        log_p = [reader.predict(reader.read_token(int(token))) for token in text]
        np.testing.assert_allclose(log_p, model.log_p(text[None])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", stored.FORMS)
def test_rows_of_stored_blocks(name):
    gguf = pytest.importorskip("gguf")
    product = getattr(stored, name)

    @kernel
    def compute(blocks, x, out, first, last):
        product(blocks, 0, x, 0, 96, out, 0, first, last)

    rng = np.random.default_rng(0)
    W, x = rng.standard_normal((7, 96), np.float32), rng.standard_normal(96, np.float32)
    form = gguf.GGMLQuantizationType[name.upper()]
    data = gguf.quantize(W, form)
    out = np.ones(7, np.float32)
    compute(data.ravel(), x, out, 1, 6)
    expected = np.ones(7) + np.where((np.arange(7) % 6) > 0, gguf.dequantize(data, form).astype(float) @ x, 0)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-4)

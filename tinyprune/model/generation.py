"""Generate text one token at a time, keeping every layer's keys and values.

A new token needs only its own query; the keys and values of earlier tokens do not change and are kept. Those of the
prompt are computed together: that reads all weights once, as one token by itself does.

Models with relative positions drop the oldest ones beyond their context: M for the same-length mask, so that every
token sees what it would see in training; M + T − 1 for the causal one, the largest distance in R; so do those with
rotary positions. Learned positions are absolute: when all T are full, the latest half of the text is read again from
position 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import NotFiniteError
from tinyprune.model.blocks import Layer, by_head, norm_forward, second_block_forward
from tinyprune.model.parameters import HEAD_AXIS, SHARED
from tinyprune.model.transformer import Transformer
from tinyprune.ops.attention_step import BlockWeights

# The parameters of a layer that its attention block reads, except the position projection.
ATTENTION = ("ln.scale", "ln.bias", "Wq", "Wk", "Wv", "bq", "bk", "bv", "Wo", "bo", "u", "w", "pk", "pv", "gate")


class CachedDecoder:
    """A decoder that reads tokens one by one and predicts the next one.

    Args:
        model: used in evaluation; heads whose gates are closed are left out, others scaled by their gate.
    """

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self.model = model
        context = config.M if config.mask == "same-length" else config.M + config.T - 1
        gates = model.gates()
        self.layers = [model.layer(i, gates) for i in range(config.L)]
        self.attention = []  # each layer's block, with room for all that the newest token sees
        # a compiled step normalises itself, see `ops.attention_step`
        self.normed_inside = config.norm == "layernorm" and config.norm_eps == 1e-5
        for layer in self.layers:
            weights = {name.replace(".", "_"): layer.p[name] for name in ATTENTION if name in layer.p}
            if not self.normed_inside:
                weights = {name: value for name, value in weights.items() if not name.startswith("ln_")}
            if layer.groups is not None:  # keys and values for each head, as if none were shared
                for name in weights.keys() & set(SHARED):
                    weights[name] = model.ops.take_slices(weights[name], layer.groups, HEAD_AXIS[name], config.Dh)
            block = BlockWeights(**weights, scale=layer.scale, rope_base=config.rotary)
            r = position_keys(model, layer) if config.relative else None
            self.attention.append(model.ops.AttentionStep(context + 1, config.Dh, r, block))
        self.clear()

    def clear(self) -> None:
        """Forget all tokens read so far."""
        self.read = 0
        for step in self.attention:
            step.clear()
        self.latest: list[int] = []  # tokens to read again, for the plain Transformer

    def step(self, token: int) -> NDArray:
        """Read one token; return log p of every next one, (V,), in main memory.

        Raises ValueError unless it is in 0 … V−1.
        """
        return self.predict(self.read_token(token))

    def predict(self, h: NDArray) -> NDArray:
        """Return log p of every next token, (V,), in main memory, from the hidden state of the newest, (D,)."""
        return self.model.ops.to_host(self.model.log_probabilities(h))

    def read_text(self, tokens: NDArray) -> NDArray:
        """Read tokens (n,), at least one; return the hidden state of the last, (D,).

        The first T of a text are read together, as in training: a sentence takes hardly longer than a token. Those
        after them are read one by one. Raises ValueError unless all are in 0 … V−1.
        """
        T = self.model.config.T
        together, others = (tokens[:T], tokens[T:]) if self.read == 0 else (tokens[:0], tokens)
        if len(together):
            h, _, _ = self.model.forward(together[None], frozen=True, keep=self.keep)
            h = h[0, len(together) - 1]
            self.read = len(together)
            self.latest = together.tolist() if self.model.config.positions == "learned" else []
        for token in others:
            h = self.read_token(int(token))
        return h

    def keep(self, i: int, keys: NDArray, values: NDArray) -> None:
        """Take over layer i's keys and values of a text, (1, n, H, Dh)."""
        self.attention[i].fill(keys[0], values[0])

    def read_token(self, token: int) -> NDArray:
        """Read one token; return its hidden state, (D,). Raises ValueError unless it is in 0 … V−1."""
        config = self.model.config
        learned = config.positions == "learned"
        if learned and self.read == config.T:
            latest = self.latest[-(config.T // 2) :] if config.T > 1 else []
            self.clear()
            if latest:
                self.read_text(np.array(latest))
        h = self.hidden_state(token)
        self.read += 1
        if learned:
            self.latest.append(token)
        return h

    def hidden_state(self, token: int) -> NDArray:
        """Return h of the newest token, (D,), and keep its keys and values."""
        model, ops = self.model, self.model.ops
        x = model.embed(np.array([token]))[0][0]  # (D,)
        if model.config.positions == "learned":
            x = ops.add(x, model.params["positions"][self.read])
        for layer, step in zip(self.layers, self.attention, strict=True):
            x = step(x) if self.normed_inside else step(x, norm_forward(x, layer.p, "ln", model.config, ops)[0])
            x, _ = second_block_forward(x, layer, model.config, ops)
        return norm_forward(x, model.params, "ln", model.config, ops)[0]


def position_keys(model: Transformer, layer: Layer) -> NDArray:
    """Return r of a layer for all distances, (M + T, its heads, Dh). It does not depend on the text."""
    r, _ = model.ops.linear_forward(layer.p["R"], layer.p["Wr"])
    return by_head(r, model.config.Dh)


def generate(
    model: Transformer,
    prompt: NDArray,
    tokens: int,
    rng: np.random.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Iterator[int]:
    """Continue `prompt` by `tokens` tokens, one at a time.

    Args:
        model: the language model.
        prompt: token numbers, (n,), at least one.
        tokens: how many to add.
        rng: source of the draws.
        temperature: 1 draws from the model's distribution, less prefers likely tokens, 0 always takes the likeliest.
        top_k: draw from the k likeliest tokens only; None for all.

    Returns:
        an iterator over the new token numbers.

    Raises:
        ValueError: if the prompt is empty, `temperature` negative, or `top_k` below 1.
    """
    if len(prompt) == 0:
        raise ValueError("prompt must hold at least one token, got none")
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k must be at least 1, got {top_k}")
    return continuation(model, prompt, tokens, rng, temperature, top_k)


def continuation(
    model: Transformer, prompt: NDArray, tokens: int, rng: np.random.Generator, temperature: float, top_k: int | None
) -> Iterator[int]:
    """Do the work of `generate`, which checks the arguments before the first token is requested."""
    decoder = CachedDecoder(model)
    token = None
    for _ in range(tokens):
        h = decoder.read_text(prompt) if token is None else decoder.read_token(token)
        token = sample(decoder.predict(h), rng, temperature, top_k)
        yield token


def sample(log_p: NDArray, rng: np.random.Generator, temperature: float, top_k: int | None) -> int:
    """Draw a token from log p (V,), as `generate` describes."""
    if np.isnan(log_p).any():
        raise NotFiniteError("the model predicts nan: it has diverged; train it with a lower lr")
    if temperature == 0:
        return int(np.argmax(log_p))
    order = np.argsort(-log_p, kind="stable")[:top_k]  # likeliest first; all of them when top_k is None
    scores = log_p[order].astype(np.float64)
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the likeliest to exp(−inf) = 0
        p = np.exp((scores - scores.max()) / temperature)
    return int(rng.choice(order, p=p / p.sum()))

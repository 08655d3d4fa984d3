"""Generate text one token at a time, keeping every layer's keys and values.

A new token needs only its own query; the keys and values of earlier tokens do not change and are kept. Those of the
prompt are computed together: that reads all weights once, as one token by itself does.

Models with relative positions drop the oldest ones beyond their context: M for the same-length mask, so that every
token sees what it would see in training; M + T − 1 for the causal one, the largest distance in R; so do those with
rotary positions. Learned positions are absolute: when all T are full, the latest half of the text is read again from
position 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.config import ModelConfig
from tinyprune.config.base import check_range
from tinyprune.errors import NotFiniteError, UsageError
from tinyprune.io.progress import progress_bar
from tinyprune.model.blocks import (
    Layer,
    by_head,
    heads_forward,
    merged,
    norm_forward,
    second_block_forward,
)
from tinyprune.model.transformer import Transformer
from tinyprune.ops.engine import Engine


class Context:
    """Keys and values of one layer for the tokens that the newest sees, in the order of the text.

    They are moved only when the buffer is full, after every `places` tokens, so that what is seen is always a view.

    Args:
        places: how many tokens are seen, the newest included, at least 1.

    A batch of texts is for main memory only.
    """

    def __init__(self, places: int, ops: Engine) -> None:
        self.places, self.ops = places, ops
        # keys and values, (2 · places, H, Dh) each, made for the first token
        self.buffers: list[NDArray] = []
        self.end = 0

    def add(self, *new: NDArray) -> list[NDArray]:
        """Add keys and values (B, n, H, Dh); return those that the last token sees, (B, seen, H, Dh)."""
        new = tuple(by_token(x)[-self.places :] for x in new)
        n, C, set_rows = len(new[0]), self.places, self.ops.set_rows
        if not self.buffers:
            shape = (2 * C, *new[0].shape[1:])  # of which the system gives only what is written to
            self.buffers = [self.ops.to_device(np.zeros(shape, x.dtype)) for x in new]
        if self.end + n > 2 * C:
            for buffer in self.buffers:
                set_rows(buffer[: C - 1], buffer[self.end - C + 1 : self.end])
            self.end = C - 1
        for buffer, x in zip(self.buffers, new, strict=True):
            set_rows(buffer[self.end : self.end + n], x)
        self.end += n
        return [by_text(buffer[max(0, self.end - C) : self.end]) for buffer in self.buffers]


def by_token(x: NDArray) -> NDArray:
    """Return (B, n, H, Dh) with the tokens first: (n, H, Dh) of one text, (n, B, H, Dh) of several."""
    if len(x) == 1:
        return x[0]
    return x.swapaxes(0, 1)


def by_text(x: NDArray) -> NDArray:
    """Reverse `by_token`."""
    if x.ndim == 3:
        return x.reshape(1, *x.shape)
    return x.swapaxes(0, 1)


class CachedDecoder:
    """A decoder that reads tokens one by one and predicts the next one.

    A token alone is memory-bound: all weights are read for a product with one row. A compiled engine takes it through
    all layers in one call, in float32. Otherwise its operations are those of this page, by NumPy or on a GPU.

    Args:
        model: used in evaluation; heads whose gates are closed are left out, others scaled by their gate.
        matrices: by name, blocks of bytes as a file has them, and their type: what a compiled engine multiplies by in
            place of the parameters. See `pretrained.gguf_writer.stored_matrices`.
    """

    def __init__(self, model: Transformer, matrices: Mapping[str, tuple[NDArray, str]] | None = None) -> None:
        config = model.config
        self.reader = model  # of a prompt
        self.model = model
        if not model.ops.on_device:
            self.model = dataclasses.replace(model, ops=Engine())
        self.places = 1 + config.M
        if config.mask == "causal":
            self.places += config.T - 1
        gates = self.model.gates()
        self.layers = [self.model.layer(i, gates) for i in range(config.L)]
        self.r = [position_keys(layer, config, self.model.ops) for layer in self.layers]
        self.compiled = None
        if model.params["ln.scale"].dtype == np.float32:
            self.compiled = model.ops.decoder(config, self.layers, self.r, model.params, self.places, matrices or {})
        self.clear()

    def clear(self) -> None:
        """Forget all tokens read so far."""
        self.read = 0
        self.contexts = [Context(self.places, self.model.ops) for _ in self.layers]
        if self.compiled is not None:
            self.compiled.clear()
        self.logits: NDArray | None = None  # of the newest token, if a compiled engine has read it
        self.latest: list[int] = []  # tokens to read again, for the plain Transformer

    def predict(self, h: NDArray) -> NDArray:
        """Return log p of every next token, (V,), in main memory; h (D,) is what reading the newest one returned."""
        if self.logits is None:
            return self.model.ops.to_host(self.model.log_probabilities(h))
        shifted = self.logits - self.logits.max()
        return shifted - np.log(np.exp(shifted).sum())

    def read_text(self, tokens: NDArray) -> NDArray:
        """Read tokens (n,), at least one; return the hidden state of the last, (D,).

        The first T of a text are read together, as in training: a sentence takes hardly longer than a token. Those
        after them are read one by one. Raises ValueError unless all are in 0 … V−1.
        """
        config, others = self.model.config, tokens
        if self.read == 0:
            together, others = tokens[: config.T], tokens[config.T :]
            # nothing is kept for a backward pass
            options: dict[str, Any] = {"frozen": True, "recompute": True, "store_kv": self.store_kv}
            h, _, _ = self.reader.forward(together[None], **options)
            h = h[0, len(together) - 1]
            self.read = len(together)
            if config.positions == "learned":
                self.latest = together.tolist()
        for token in others:
            h = self.read_token(int(token))
        return h

    def store_kv(self, i: int, keys: NDArray, values: NDArray) -> None:
        """Take over layer i's keys and values of a text, (1, n, H, Dh)."""
        if self.compiled is not None:
            self.compiled.fill(i, keys[0], values[0])
        else:
            self.contexts[i].add(keys, values)

    def read_token(self, token: int) -> NDArray:
        """Read one token; return its hidden state, (D,). Raises ValueError unless it is in 0 … V−1."""
        config = self.model.config
        learned = config.positions == "learned"
        if learned and self.read == config.T:
            latest = self.latest[config.T - config.T // 2 :]  # none of them if T = 1
            self.clear()
            if latest:
                self.read_text(np.array(latest))
        ids = np.array([[token]])
        if self.compiled is None:
            h = self.hidden_states(ids)[0, 0]
        else:
            h, logits = self.compiled.step(self.enter(ids)[0, 0], self.read)
            self.logits = logits if len(logits) else None
        self.read += 1
        if learned:
            self.latest.append(token)
        return h

    def hidden_states(self, tokens: NDArray) -> NDArray:
        """Return h of the newest token of each text, (B, 1) → (B, 1, D), and keep their keys and values."""
        model, ops, x = self.model, self.model.ops, self.enter(tokens)
        for i, layer in enumerate(self.layers):
            x, _ = second_block_forward(self.attention_block(x, i), layer, model.config, ops)
        return norm_forward(x, model.params, "ln", model.config, ops)[0]

    def enter(self, tokens: NDArray) -> NDArray:
        """Return what enters the first layer for the newest token of each text, (B, 1) → (B, 1, D)."""
        x, _ = self.model.embed(tokens)
        if self.model.config.positions == "learned":
            x = self.model.ops.positions_forward(x, self.model.params["positions"][self.read : self.read + 1])[0]
        return x

    def attention_block(self, x: NDArray, i: int) -> NDArray:
        """Compute layer i's `attention_block_forward` for one token, which sees the tokens before it: (B, 1, D)."""
        layer, r, config, ops = self.layers[i], self.r[i], self.model.config, self.model.ops
        p = layer.p
        n, _ = norm_forward(x, p, "ln", config, ops)
        q, k, v, _, _ = heads_forward(n, 1, layer, config, ops)
        q, k = (ops.rotary_forward(x, config.rotary, self.read)[0] for x in (q, k))
        k, v = self.contexts[i].add(*(ops.repeat_heads_forward(x, layer.groups)[0] for x in (k, v)))
        others = (p.get(name) for name in ("u", "w", "pk", "pv", "gate"))
        if r is not None:
            r = r[: k.shape[1]]
        o, _ = ops.attention_forward(q, k, v, r, *others, scale=layer.scale)
        a, _ = ops.linear_forward(merged(o), p["Wo"], p.get("bo"))
        return ops.add(x, a)


def position_keys(layer: Layer, config: ModelConfig, ops: Engine) -> NDArray | None:
    """Take R and Wr out of a layer's parameters; return r for all distances, (M + T, its heads, Dh)."""
    if not config.relative:
        return None
    r, _ = ops.linear_forward(layer.p.pop("R"), layer.p.pop("Wr"))
    return by_head(r, config.Dh)


def generate(
    model: Transformer,
    prompt: NDArray,
    tokens: int,
    rng: np.random.Generator,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    matrices: Mapping[str, tuple[NDArray, str]] | None = None,
) -> Iterator[int]:
    """Continue `prompt` by `tokens` tokens, one at a time.

    Args:
        model: the language model.
        prompt: token numbers, (n,), at least one.
        tokens: how many to add.
        rng: source of the draws.
        temperature: 1 draws from the model's distribution, less prefers likely tokens, 0 always takes the likeliest.
        top_k: draw from the k likeliest tokens only; None for all.
        matrices: see `CachedDecoder`.

    Returns:
        an iterator over the new token numbers.

    Raises:
        UsageError: if the prompt is empty, `tokens` or `temperature` negative or not finite, or `top_k` below 1.
    """
    if len(prompt) == 0:
        raise UsageError("prompt must hold at least one token, got none")
    check_range("tokens", tokens, 0, None)
    check_range("temperature", temperature, 0, None)
    check_range("top_k", 1 if top_k is None else top_k, 1, None)
    return continuation(CachedDecoder(model, matrices), prompt, tokens, rng, temperature, top_k)


def continuation(
    decoder: CachedDecoder,
    prompt: NDArray,
    tokens: int,
    rng: np.random.Generator,
    temperature: float,
    top_k: int | None,
) -> Iterator[int]:
    """Do the work of `generate`, which checks the arguments before the first token is requested."""
    newest = prompt
    for _ in range(tokens):
        log_p = decoder.predict(decoder.read_text(newest))
        token = sample(log_p, rng, temperature, top_k)
        yield token
        newest = np.array([token])


def sample(log_p: NDArray, rng: np.random.Generator, temperature: float, top_k: int | None) -> int:
    """Draw a token from log p (V,), as `generate` describes."""
    if np.isnan(log_p).any():
        raise NotFiniteError("the model predicts nan: it has diverged; train it with a lower lr")
    if temperature == 0:
        return int(np.argmax(log_p))
    scores = log_p.astype(np.float64)
    if top_k is not None and top_k < len(scores):
        # of tokens as likely as the k-th the first ones stay
        order = np.argsort(-scores, kind="stable")
        scores[order[top_k:]] = -np.inf
    # a temperature near 0 sends all but the likeliest to exp(−inf) = 0
    with np.errstate(over="ignore"):
        below = np.exp((scores - np.max(scores)) / temperature).cumsum()
    return int(np.searchsorted(below[:-1], rng.random() * below[-1], side="right"))


def write_texts(model: Transformer, first: NDArray, tokens: int, rng: np.random.Generator) -> NDArray:
    """Let the model write several texts side by side, each token drawn from its distribution.

    What a model writes is of all kinds that it was trained on, and so a text to fit a smaller one to. (Williams,
    Chrysostomou & Aletras 2024, arXiv 2410.17170)

    Args:
        model: the language model; NumPy computes, in main memory.
        first: the first token of each text, (B,).
        tokens: how many to write, at most T.

    Returns:
        ids: (B, tokens), without the first.
    """
    decoder = CachedDecoder(dataclasses.replace(model, ops=Engine(), params=model.host_params()))
    ids, newest = [], first[:, None]
    for _ in progress_bar(range(tokens), desc="the model writes", unit="token"):
        log_p = decoder.model.log_probabilities(decoder.hidden_states(newest))[:, 0]
        decoder.read += 1
        newest = (log_p + rng.gumbel(size=log_p.shape)).argmax(-1)[:, None]  # a draw from the softmax
        ids.append(newest[:, 0])
    return np.stack(ids, 1)

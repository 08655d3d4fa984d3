"""Generate text one token at a time, keeping every layer's keys and values.

A new token needs its own query only; the keys and values of earlier tokens do not change and are kept. Models with
relative positions forget the oldest ones when more than their context is kept: M for the same-length mask, so that
every token sees just what it would see in training, M + T − 1 for the causal one, the largest distance that R knows.
The plain Transformer's positions are absolute: when its T places are full, the latest half is read again from place 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import NotFiniteError
from tinyprune.model.parameters import Parameters, layer_parameters, take_heads
from tinyprune.model.transformer import Transformer


class CachedDecoder:
    """Reads tokens one by one and says what it expects next.

    Args:
        model: in evaluation; heads whose gates are closed are left out, others scaled as their gate says.
    """

    def __init__(self, model: Transformer) -> None:
        config = model.config
        self.model = model
        self.context = config.M if config.mask == "same-length" else config.M + config.T - 1
        self.gates = model.gates()
        self.layers: list[Parameters] = []
        self.positions: list[NDArray | None] = []
        for i in range(config.L):
            p = layer_parameters(model.params, i)
            if self.gates[i] is not None:
                p = take_heads(p, self.gates[i].active, config.Dh)
            self.layers.append(p)
            # r depends on no text, so it is worked out once for all distances.
            r = model.ops.linear_forward(model.params["R"], p["Wr"])[0] if config.relative else None
            self.positions.append(None if r is None else r.reshape(len(r), -1, config.Dh))
        self.clear()

    def clear(self) -> None:
        """Forget everything read."""
        config = self.model.config
        dtype = self.model.params["ln.scale"].dtype
        empty = [np.zeros((1, 0, p["Wq"].shape[1] // config.Dh, config.Dh), dtype) for p in self.layers]
        self.keys, self.values = list(empty), list(empty)
        self.read: list[int] = []

    def step(self, token: int) -> NDArray:
        """Read one token; returns log p of every next one, (V,). Raises ValueError unless it is in 0 … V−1."""
        return self.model.log_probabilities(self.read_token(token))[0, 0]

    def read_token(self, token: int) -> NDArray:
        """Read one token; returns its hidden state, (1, 1, D). Raises ValueError unless it is in 0 … V−1."""
        config = self.model.config
        if not config.relative and len(self.read) == config.T:
            latest = self.read[-(config.T // 2) :] if config.T > 1 else []
            self.clear()
            for earlier in latest:
                self.read_token(earlier)
        h = self.hidden_state(token)
        self.read = [*self.read, token][-config.T :] if not config.relative else []
        return h

    def kept(self, x: NDArray) -> NDArray:
        """The latest keys or values (1, up to `context`, H, Dh) that the next token still sees."""
        return x[:, max(0, x.shape[1] - self.context) :]

    def hidden_state(self, token: int) -> NDArray:
        """h of the newest token, (1, 1, D), and its keys and values kept."""
        model, config, ops = self.model, self.model.config, self.model.ops
        x, _ = model.embed(np.array([[token]]))  # (1, 1, D)
        if not config.relative:
            x = x + model.params["positions"][len(self.read)]
        for i, p in enumerate(self.layers):
            H, Dh = p["Wq"].shape[1] // config.Dh, config.Dh
            n, _ = ops.layernorm_forward(x, p["ln.scale"], p["ln.bias"])
            q, k, v = (ops.linear_forward(n, p[W])[0].reshape(1, 1, H, Dh) for W in ("Wq", "Wk", "Wv"))
            self.keys[i] = np.concatenate([self.kept(self.keys[i]), k], axis=1)  # (1, S, H, Dh)
            self.values[i] = np.concatenate([self.kept(self.values[i]), v], axis=1)
            S = self.keys[i].shape[1]
            r = self.positions[i]
            gates = self.gates[i]
            o, _ = ops.attention_forward(
                q,
                self.keys[i],
                self.values[i],
                None if r is None else r[:S],
                p.get("u"),
                p.get("w"),
                p.get("pk"),
                p.get("pv"),
                None if gates is None else gates.values[gates.active],
                scale=1.0 if gates is None else gates.scale,
            )
            x = x + ops.linear_forward(o.reshape(1, 1, H * Dh), p["Wo"], p["bo"])[0]
            if config.F:
                n, _ = ops.layernorm_forward(x, p["ffn.ln.scale"], p["ffn.ln.bias"])
                x = x + ops.feedforward_forward(n, p["ffn.W1"], p["ffn.b1"], p["ffn.W2"], p["ffn.b2"])[0]
        return ops.layernorm_forward(x, model.params["ln.scale"], model.params["ln.bias"])[0]


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
        rng: draws them.
        temperature: 1 draws as the model says, less prefers the likely ones, 0 always takes the likeliest.
        top_k: draw among the k likeliest only; None for all.

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
    """The work of `generate`, which has looked at the arguments before the first token is asked for."""
    decoder = CachedDecoder(model)
    for token in prompt[:-1]:
        decoder.read_token(int(token))
    token = int(prompt[-1])
    for _ in range(tokens):
        token = sample(decoder.step(token), rng, temperature, top_k)
        yield token


def sample(log_p: NDArray, rng: np.random.Generator, temperature: float, top_k: int | None) -> int:
    """Draw a token from log p (V,)."""
    if np.isnan(log_p).any():
        raise NotFiniteError("the model predicts nan: it has diverged; train it with a lower lr")
    if temperature == 0:
        return int(np.argmax(log_p))
    order = np.argsort(-log_p, kind="stable")[:top_k]  # likeliest first; all of them when top_k is None
    scores = log_p[order].astype(np.float64)
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the likeliest to exp(−inf) = 0
        p = np.exp((scores - scores.max()) / temperature)
    return int(rng.choice(order, p=p / p.sum()))

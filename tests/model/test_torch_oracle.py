"""Whole models against PyTorch's autograd: an independent derivation of every gradient.

The model is written a second time in plain torch operations, a head at a time, from the papers' formulas. Relative
positions are gathered by an explicit matrix of distances, masks are explicit, and the adaptive softmax is computed as
one full distribution. Both sides share parameters, tokens and the gates' noise; there is no dropout.
"""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from small import small_config, small_model

from tinyprune.config import GateConfig
from tinyprune.model.parameters import layer_parameters
from tinyprune.model.transformer import Transformer
from tinyprune.ops import draw_noise

torch = pytest.importorskip("torch")
F = torch.nn.functional


def torch_head(n, n_query, p, h, config):
    """Compute the output of head h, (B, T, Dh), from normalised context (B, S, D) and queries (B, T, D)."""
    Dh, own = config.Dh, slice(h * config.Dh, (h + 1) * config.Dh)
    T, S = n_query.shape[1], n.shape[1]
    q, k, v = n_query @ p["Wq"][:, own], n @ p["Wk"][:, own], n @ p["Wv"][:, own]
    distance = (torch.arange(T)[:, None] + S - T) - torch.arange(S)[None, :]
    visible = (distance >= 0) & (distance <= (config.M if config.mask == "same-length" else S))
    if "R" not in p:
        scores = q @ k.transpose(1, 2)
    else:
        r = p["R"][:S] @ p["Wr"][:, own]
        by_distance = (q + p["w"][h]) @ r.T
        index = distance.clamp(min=0).expand(len(q), T, S)
        scores = (q + p["u"][h]) @ k.transpose(1, 2) + torch.gather(by_distance, 2, index)
    scores = scores.masked_fill(~visible, -math.inf)
    values = v
    if "pk" in p:
        N = p["pk"].shape[1]
        scores = torch.cat([scores, q @ (math.sqrt(Dh) * p["pk"][h]).T], 2)
        values = torch.cat([v, (math.sqrt(N) * p["pv"][h]).expand(len(q), N, Dh)], 1)
    return torch.softmax(scores / math.sqrt(Dh), -1) @ values


def torch_layer(x, memory, p, gates, scale, config):
    D, T = config.D, x.shape[1]
    context = x if memory is None else torch.cat([memory, x], 1)
    n = F.layer_norm(context, (D,), p["ln.scale"], p["ln.bias"])
    heads = [torch_head(n, n[:, -T:], p, h, config) for h in range(config.H)]
    if gates is not None:
        heads = [gates[h] * scale * o for h, o in enumerate(heads)]
    x = x + torch.cat(heads, 2) @ p["Wo"] + p["bo"]
    if config.persistent == "stream":
        n = F.layer_norm(x, (D,), p["net.ln.scale"], p["net.ln.bias"])
        for h in range(config.H):
            weight = 1.0 if gates is None else gates[h] * scale
            x = x + weight * F.relu(n @ p["net.pk"][h].T + p["net.pb"][h]) @ p["net.pv"][h]
        x = x + p["net.bo"]
    if config.kind != "all-attention":
        n = F.layer_norm(x, (D,), p["ffn.ln.scale"], p["ffn.ln.bias"])
        x = x + F.linear(F.relu(F.linear(n, p["ffn.W1"].T, p["ffn.b1"])), p["ffn.W2"].T, p["ffn.b2"])
    return x


def torch_gates(log_alpha, u, gate):
    """Compute a layer's gates and its output scaling; u is None in evaluation."""
    s = torch.sigmoid(log_alpha if u is None else (u.log() - (1 - u).log() + log_alpha) / gate.beta)
    g = (s * (gate.zeta - gate.gamma) + gate.gamma).clamp(0, 1)
    if gate.hard:
        g = g + ((g >= 0.5).double() - g).detach()
    opened = int((g.detach() != 0).sum())
    return g, len(log_alpha) / max(opened, 1) if gate.output_scaling else 1.0


def torch_vectors(p, config):
    """Return every word's embedding at full width, (V, D)."""
    if not config.cutoffs:
        return p["embedding"]
    narrow = [p[f"embedding.{c}"] for c in range(len(config.cutoffs) + 1)]
    return torch.cat([narrow[0], *(t @ p[f"projection.{c}"] for c, t in enumerate(narrow[1:], 1))])


def torch_log_probabilities(h, p, config):
    if not config.cutoffs:
        return torch.log_softmax(h @ p["embedding"].T + p["out_bias"], -1)
    C = len(config.cutoffs)
    words = h @ p["embedding.0"].T + p["out_bias.0"]
    head = torch.log_softmax(torch.cat([words, h @ p["cluster.weight"].T + p["cluster.bias"]], -1), -1)
    parts = [head[..., : config.cutoffs[0]]]
    for c in range(1, C + 1):
        tail = (h @ p[f"projection.{c}"].T) @ p[f"embedding.{c}"].T + p[f"out_bias.{c}"]
        parts.append(head[..., config.cutoffs[0] + c - 1].unsqueeze(-1) + torch.log_softmax(tail, -1))
    return torch.cat(parts, -1)


def torch_model(ids, p, memory, noise, config, gate):
    """Compute log p (B, T, V) and the layers' inputs; `noise` has a vector for each layer, or is None."""
    x = math.sqrt(config.D) * torch_vectors(p, config)[ids]
    if "positions" in p:
        x = x + p["positions"][: ids.shape[1]]
    inputs = []
    for i in range(config.L):
        layer = layer_parameters(p, i)
        gates, scale = None, 1.0
        if gate is not None:
            gates, scale = torch_gates(layer["log_alpha"], None if noise is None else noise[i], gate)
        layer |= {"R": p["R"]} if "R" in p else {}
        inputs.append(x)
        x = torch_layer(x, None if memory is None else memory[i], layer, gates, scale, config)
    h = F.layer_norm(x, (config.D,), p["ln.scale"], p["ln.bias"])
    return torch_log_probabilities(h, p, config), inputs


def build(kind, mask, options):
    """Make a configuration, large parameters, and `log_alpha`."""
    config = small_config(kind, V=13, L=3, mask=mask, div_value=2, **options)
    params = small_model(config, seed=11).params
    log_alpha = {f"layers.{i}.log_alpha": np.array(row) for i, row in enumerate(LOG_ALPHA)}
    return config, params, log_alpha


# With the noise of NOISE_SEED every layer has an open head, and gates are in all states: see the last test.
LOG_ALPHA = [[0.2, 0.5, -0.2], [0.1, -0.4, 0.6], [0.3, 0.6, -0.1]]
NOISE_SEED = 8
ADAPTIVE = {"cutoffs": (5, 9)}
MODELS = [(kind, "same-length", {}) for kind in ("all-attention", "transformer-xl")]
MODELS += [("all-attention", "same-length", options) for options in (ADAPTIVE, {"persistent": "stream"})]
MODELS += [("all-attention", "causal", options) for options in ({}, {"positions": "learned", "M": 0})]
MODELS += [("transformer-xl", "causal", ADAPTIVE), ("transformer", "causal", {})]
MODELS += [("transformer", "causal", {"positions": "relative"})]
GATES = {
    "no gates": None,
    "soft": GateConfig(hard=False, output_scaling=False),
    "soft, scaled": GateConfig(hard=False, output_scaling=True),
    "straight-through": GateConfig(hard=True, output_scaling=False),
    "straight-through, scaled": GateConfig(hard=True, output_scaling=True),
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
@pytest.mark.parametrize(("kind", "mask", "options"), MODELS)
def test_loss_memory_and_all_gradients_agree_with_autograd(kind, mask, options, gate):
    """The first of two segments has neither memory nor noise, the second has both."""
    config, params, log_alpha = build(kind, mask, options)
    params |= log_alpha if gate is not None else {}
    rng = np.random.default_rng(5)
    first_ids = rng.integers(0, config.V, (2, config.T))
    ids, targets = rng.integers(0, config.V, (2, 2, config.T))

    model = Transformer(config, params, gate)
    first_h, memory, _ = model.forward(first_ids)
    if not config.M:
        memory = None
    loss, _, cache = model.loss(ids, targets, memory, np.random.default_rng(NOISE_SEED))
    grads = model.backward(1.0, cache)

    p = {name: torch.tensor(x, dtype=torch.float64, requires_grad=True) for name, x in params.items()}
    with torch.no_grad():
        first_log_p, inputs = torch_model(torch.tensor(first_ids), p, None, None, config, gate)
    assert_allclose(model.log_probabilities(first_h), first_log_p.numpy(), rtol=1e-11, atol=1e-11)
    torch_memory = [x[:, -config.M :] for x in inputs] if config.M else None
    for ours, theirs in zip(memory or (), torch_memory or (), strict=True):
        assert_allclose(ours, theirs.numpy(), rtol=1e-11, atol=1e-11)
    # Without dropout the gates' noise is all that a forward pass draws.
    draws = np.random.default_rng(NOISE_SEED)
    noise = [torch.tensor(draw_noise(config.H, draws, np.float64)) for _ in range(config.L)]
    log_p, _ = torch_model(torch.tensor(ids), p, torch_memory, noise, config, gate)
    expected = F.nll_loss(log_p.reshape(-1, config.V), torch.tensor(targets).reshape(-1))
    expected.backward()

    assert loss == pytest.approx(expected.item(), rel=1e-12)
    for name, x in p.items():
        size = x.grad.norm().item()
        assert size > 0, f"{name}: no gradient, nothing tested"
        assert np.linalg.norm(grads[name] - x.grad.numpy()) <= 1e-10 * size, name


def test_the_noise_puts_gates_in_every_state():
    """Gates are closed, below ½, above ½ and fully open; every layer has an open head, and some are scaled up."""
    config, params, log_alpha = build("all-attention", "same-length", {})
    gates = Transformer(config, params | log_alpha, GATES["soft, scaled"]).gates(np.random.default_rng(NOISE_SEED))
    values = np.concatenate([g.values for g in gates])
    inside = values[(values > 0) & (values < 1)]
    assert (values == 0).any() and (values == 1).any() and (inside < 0.5).any()
    assert (inside > 0.5).any()
    assert all((g.values > 0.5).any() for g in gates) and max(g.scale for g in gates) > 1

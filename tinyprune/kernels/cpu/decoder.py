"""One token of generated text, through all layers, in one call: see `tinyprune.model.generation`, the same in NumPy.

    for each layer:   1  q, k, v = norm(x) Wq, Wk, Wv            2  o = attention of one query
                      3  x += o Wo                               4  h = f(norm(x) W1, norm(x) Wg)       5  x += h W2
    then              6  logits = norm(x) Eᵀ

Each numbered phase is shared by all threads, by outputs or heads, and ends when all have ended; a model that the first
caches hold is computed by one. What lies in memory is read in its order:

- All float32 weights lie one after the other, those of a matrix as in training, (in, out): an output is a lane of a
  vector, as in the tile of a single row of `product`. Rows of a stored matrix, and of the embedding, are outputs: each
  is a dot product (`stored`, `dots`).
- Keys lie with their positions in the lanes, the newest first, so that r, by distance, lies beside them. Position 0 of
  the window moves down by one with each token; every key and value is written twice, C places apart, so that the window
  is never cut, however far it has moved, and nothing is copied.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import get_num_threads, prange
from numpy.typing import NDArray

from tinyprune.kernels.cpu import stored
from tinyprune.kernels.cpu.dots import dots
from tinyprune.kernels.cpu.jit import inner, kernel, parallel_kernel, variant
from tinyprune.kernels.cpu.product import LONG, long_tile
from tinyprune.kernels.cpu.simd import (
    LOG2_E,
    add,
    broadcast,
    exp2,
    lanes,
    largest,
    load_some,
    maximum,
    muladd,
    multiply,
    only_lanes,
    sigmoid,
    store_some,
    subtract,
    total,
)
from tinyprune.kernels.cpu.tiles import ragged_microkernel
from tinyprune.ops.gelu import CUBIC, LINEAR
from tinyprune.ops.rotary import cos_and_sin

narrow_tile = ragged_microkernel(1, 1)
PAD = 8 * 16  # numbers behind an array: tiles read whole vectors
SHARED_BYTES = 1 << 22  # read for a token: less than that is one thread's work
EDGE = 32  # outputs of which a thread takes a multiple
TOP = -1e30  # below every score

# What a row of `plan` says of a layer; the last row is the softmax's. A matrix has MATRIX entries.
MATRIX = 5  # its kind, where it begins, its inputs and outputs, where its bias begins or −1
Q, K, V, O, UP, GATE, DOWN, NORM_1, NORM_2, HEADS, UNITS, RELATIVE, PERSISTENT, CACHE = (
    *range(0, 7 * MATRIX, MATRIX),
    *range(7 * MATRIX, 7 * MATRIX + 2 * 7, 2),
)
# Of NORM_1 … CACHE two numbers: scale, bias or −1; number of heads, their factors; number of units, their factors;
# u (w follows) or −1, r; number of persistent vectors, pk (pv follows); keys, values.
FIELDS = CACHE + 2
# Kinds of matrices: none; of float32, with a column or with a row for each output; of stored blocks.
ABSENT, COLUMNS, ROWS, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 = range(8)
KINDS = dict(zip(stored.FORMS, (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0), strict=True))
RELU, GELU, SWIGLU = 0, 1, 2


class Sizes(NamedTuple):
    """Numbers that are the same for every layer."""

    L: int
    D: int
    Dh: int
    C: int  # places that a token sees, its own included
    R: int  # rows of r
    rms: bool  # whether norms are RMSNorm
    eps: float
    activation: int


class Memory(NamedTuple):
    """What the phases read and write, flat; all float32 but blocks, plan and groups."""

    floats: NDArray
    blocks: NDArray  # bytes
    plan: NDArray  # int64, a row for each layer
    groups: NDArray  # int64, for each layer and head the key-value head that it reads
    keys: NDArray  # of a layer (K, Dh, 2C)
    values: NDArray  # of a layer (2C, K, Dh)
    x: NDArray  # (D,)
    q: NDArray  # queries, keys and values of the token; afterwards what heads have made of them
    h: NDArray  # units
    logits: NDArray
    scratch: NDArray  # (threads, …)


@inner
def share(n, i, threads, unit):
    """Return where the share of thread i of n outputs begins and ends, in whole `unit`s."""
    units = (n + unit - 1) // unit
    return min(n, units * i // threads * unit), min(n, units * (i + 1) // threads * unit)


@inner
def normalise(x, floats, scale, bias, D, rms, eps, out):
    """Compute LayerNorm, or RMSNorm, of x into `out`."""
    L = lanes(x)
    mean = broadcast(x, 0)
    if not rms:
        for d in range(0, D, L):
            mean = add(mean, load_some(x, d, D - d))
        mean = broadcast(x, total(mean) / x.dtype.type(D))
    squares = broadcast(x, 0)
    for d in range(0, D, L):
        centred = only_lanes(subtract(load_some(x, d, D - d), mean), 0, D - d, 0.0)
        squares = muladd(centred, centred, squares)
    factor = broadcast(x, 1 / math.sqrt(total(squares) / x.dtype.type(D) + x.dtype.type(eps)))
    for d in range(0, D, L):
        n = multiply(subtract(load_some(x, d, D - d), mean), factor)
        n = multiply(n, load_some(floats, scale + d, D - d))
        if bias >= 0:
            n = add(n, load_some(floats, bias + d, D - d))
        store_some(out, d, n, D - d)


@inner
def linear(memory, layer, matrix, x, out, to, i, threads, onto):
    """Compute thread i's share of the outputs of a matrix: out = x W + bias, or out += that."""
    floats, blocks, plan = memory.floats, memory.blocks, memory.plan
    at = layer * FIELDS + matrix
    kind, first, inputs, outputs, bias = plan[at], plan[at + 1], plan[at + 2], plan[at + 3], plan[at + 4]
    if kind == ABSENT:
        return
    low, high = share(outputs, i, threads, EDGE)
    L = lanes(x)
    for j in range(low, high, L):
        y = load_some(out, to + j, high - j) if onto else broadcast(x, 0)
        if bias >= 0:
            y = add(y, load_some(floats, bias + j, high - j))
        store_some(out, to + j, y, high - j)
    if inputs == 0:
        return
    if kind == COLUMNS:
        for j in range(low, high, 2 * LONG * L):
            columns = min(high - j, 2 * LONG * L)
            long_tile(x, 0, 0, 1, floats, first + j, outputs, out, to + j, 0, inputs, 1, columns, True)
    elif kind == ROWS:
        if low < high:
            dots(x, 0, 0, floats, first + low * inputs, inputs, out, to + low, 0, inputs, 1, high - low, True)
    elif kind == Q4_0:
        stored.q4_0(blocks, first, x, 0, inputs, out, to, low, high)
    elif kind == Q4_1:
        stored.q4_1(blocks, first, x, 0, inputs, out, to, low, high)
    elif kind == Q5_0:
        stored.q5_0(blocks, first, x, 0, inputs, out, to, low, high)
    elif kind == Q5_1:
        stored.q5_1(blocks, first, x, 0, inputs, out, to, low, high)
    else:
        stored.q8_0(blocks, first, x, 0, inputs, out, to, low, high)


@inner
def activate(h, gates, low, high, floats, factors, kind):
    """Compute h = factor · f(h), or factor · silu(gate) · h, for some units."""
    L = lanes(h)
    linear, cubic = broadcast(h, 2 * LINEAR), broadcast(h, 2 * LINEAR * CUBIC)
    for j in range(low, high, L):
        a = load_some(h, j, high - j)
        if kind == RELU:
            a = maximum(broadcast(h, 0), a)
        elif kind == GELU:
            a = multiply(a, sigmoid(multiply(a, muladd(multiply(a, a), cubic, linear))))
        else:
            g = load_some(h, gates + j, high - j)
            a = multiply(a, multiply(g, sigmoid(g)))
        store_some(h, j, multiply(a, load_some(floats, factors + j, high - j)), high - j)


@inner
def scaled_query(q, at, floats, bias, Dh, factor, out):
    """Set out = (q + bias) · factor; no bias if it is negative."""
    L = lanes(q)
    for d in range(0, Dh, L):
        y = load_some(q, at + d, Dh - d)
        if bias >= 0:
            y = add(y, load_some(floats, bias + d, Dh - d))
        store_some(out, d, multiply(y, broadcast(q, factor)), Dh - d)


@inner
def scores(query, keys, at, row, n, Dh, s, to, onto):
    """Set s[to + j] = query · keys[:, j] for n keys in lanes, whose features are `row` apart; or add it."""
    wide = 2 * LONG * lanes(query)
    for j in range(0, n, wide):
        long_tile(query, 0, 0, 1, keys, at + j, row, s, to + j, 0, Dh, 1, min(wide, n - j), onto)


@inner
def mix(s, at, n, values, first, row, Dh, out, to, onto):
    """Set out[to + d] = Σ_j s[at + j] · values[first + j · row + d], or add it."""
    L = lanes(s)
    if Dh <= L:
        narrow_tile(s, at, 0, 1, values, first, row, out, to, 0, n, 1, Dh, onto)
    else:
        for d in range(0, Dh, 2 * LONG * L):
            long_tile(s, at, 0, 1, values, first + d, row, out, to + d, 0, n, 1, min(2 * LONG * L, Dh - d), onto)


@inner
def softmax(s, n):
    """Turn n base-2 scores into 2^(s − max); returns their sum."""
    L = lanes(s)
    top = broadcast(s, TOP)
    for j in range(0, n, L):
        top = maximum(only_lanes(load_some(s, j, n - j), 0, n - j, TOP), top)
    top, sums = broadcast(s, largest(top)), broadcast(s, 0)
    for j in range(0, n, L):
        p = only_lanes(exp2(subtract(load_some(s, j, n - j), top)), 0, n - j, 0.0)
        store_some(s, j, p, n - j)
        sums = add(sums, p)
    return total(sums)


@inner
def attend(memory, layer, head, base, seen, sizes, scratch):
    """Replace head's query in memory.q by its output, times its factor."""
    floats, keys, values, plan, q = memory.floats, memory.keys, memory.values, memory.plan, memory.q
    Dh, C = sizes.Dh, sizes.C
    row = layer * FIELDS
    H, factors = plan[row + HEADS], plan[row + HEADS + 1]
    biases, r = plan[row + RELATIVE], plan[row + RELATIVE + 1]
    N, pk = plan[row + PERSISTENT], plan[row + PERSISTENT + 1]
    k_at, v_at = plan[row + CACHE], plan[row + CACHE + 1]
    kv, width = memory.groups[layer * len(memory.groups) // sizes.L + head], plan[row + K + 3]
    query, s = scratch[: Dh + PAD], scratch[Dh + PAD :]
    at, log2_e, root = head * Dh, LOG2_E, LOG2_E / math.sqrt(Dh)
    u = biases + head * Dh if biases >= 0 else biases
    scaled_query(q, at, floats, u, Dh, root, query)
    scores(query, keys, k_at + kv * Dh * 2 * C + base, 2 * C, seen, Dh, s, N, False)
    if biases >= 0:
        scaled_query(q, at, floats, u + H * Dh, Dh, root, query)
        scores(query, floats, r + head * Dh * sizes.R, sizes.R, seen, Dh, s, N, True)
    if N:
        scaled_query(q, at, floats, -1, Dh, log2_e, query)
        scores(query, floats, pk + head * Dh * N, N, N, Dh, s, 0, False)
    weights = softmax(s, N + seen)
    mix(s, N, seen, values, v_at + base * width + kv * Dh, width, Dh, q, at, False)
    if N:
        mix(s, 0, N, floats, pk + (H + head) * Dh * N, Dh, Dh, q, at, True)
    scaled_query(q, at, floats, -1, Dh, floats[factors + head] / weights, query)
    for d in range(Dh):
        q[at + d] = query[d]


@inner
def part(phase, layer, base, seen, sizes, memory, i, threads):
    """Compute thread i's part of a phase of a layer."""
    plan, x, row = memory.plan, memory.x, layer * FIELDS
    n = memory.scratch[i]
    if phase in (1, 4, 6):
        norm = row + (NORM_2 if phase == 4 else NORM_1)
        normalise(x, memory.floats, plan[norm], plan[norm + 1], sizes.D, sizes.rms, sizes.eps, n)
    if phase == 1:
        queries, keys = plan[row + Q + 3], plan[row + K + 3]
        linear(memory, layer, Q, n, memory.q, 0, i, threads, False)
        linear(memory, layer, K, n, memory.q, queries, i, threads, False)
        linear(memory, layer, V, n, memory.q, queries + keys, i, threads, False)
    elif phase == 2:
        heads = plan[row + HEADS]
        for head in range(heads * i // threads, heads * (i + 1) // threads):
            attend(memory, layer, head, base, seen, sizes, memory.scratch[i])
    elif phase == 3:
        linear(memory, layer, O, memory.q, x, 0, i, threads, True)
    elif phase == 4:
        units = plan[row + UP + 3]
        linear(memory, layer, UP, n, memory.h, 0, i, threads, False)
        linear(memory, layer, GATE, n, memory.h, units, i, threads, False)
        low, high = share(units, i, threads, EDGE)
        activate(memory.h, units, low, high, memory.floats, plan[row + UNITS + 1], sizes.activation)
    elif phase == 5:
        linear(memory, layer, DOWN, memory.h, x, 0, i, threads, True)
    else:
        linear(memory, layer, Q, n, memory.logits, 0, i, threads, False)


@inner
def run(phase, layer, base, seen, sizes, memory, threads):
    """Compute a phase in one thread. Sizes and memory are plain tuples, all that a parallel loop takes."""
    part(phase, layer, base, seen, Sizes(*sizes), Memory(*memory), 0, 1)


@parallel_kernel
def run_shared(phase, layer, base, seen, sizes, memory, threads):
    """Compute a phase in several threads."""
    for i in prange(threads):
        part(phase, layer, base, seen, Sizes(*sizes), Memory(*memory), i, threads)


@inner
def turn(x, at, heads, Dh, cos, sin):
    """Turn the features of heads by the angles of a position, see `ops.rotary`."""
    half = Dh // 2
    for head in range(heads):
        for d in range(half):
            first, second = at + head * Dh + d, at + head * Dh + d + half
            x1, x2 = x[first], x[second]
            x[first], x[second] = x1 * cos[d] - x2 * sin[d], x2 * cos[d] + x1 * sin[d]


@inner
def store_kv(memory, layer, base, sizes):
    """Copy the token's keys and values to the first place of the window, and C places further."""
    plan, q, C = memory.plan, memory.q, sizes.C
    row = layer * FIELDS
    first, width = plan[row + Q + 3], plan[row + K + 3]
    for place in (base, base + C):
        for d in range(width):
            memory.keys[plan[row + CACHE] + d * 2 * C + place] = q[first + d]
            memory.values[plan[row + CACHE + 1] + place * width + d] = q[first + width + d]


def all_layers(base, seen, cos, sin, plain_sizes, plain_memory, threads):
    """Take memory.x through all layers; the hidden state is left in memory.h, the logits in memory.logits."""
    sizes, memory = Sizes(*plain_sizes), Memory(*plain_memory)
    plan, Dh = memory.plan, sizes.Dh
    for layer in range(sizes.L):
        row = layer * FIELDS
        queries, keys = plan[row + Q + 3], plan[row + K + 3]
        run(1, layer, base, seen, plain_sizes, plain_memory, threads)
        if queries > 0:
            if len(cos):
                turn(memory.q, 0, queries // Dh, Dh, cos, sin)
                turn(memory.q, queries, keys // Dh, Dh, cos, sin)
            store_kv(memory, layer, base, sizes)
            run(2, layer, base, seen, plain_sizes, plain_memory, threads)
        run(3, layer, base, seen, plain_sizes, plain_memory, threads)
        if plan[row + DOWN] != ABSENT:
            run(4, layer, base, seen, plain_sizes, plain_memory, threads)
            run(5, layer, base, seen, plain_sizes, plain_memory, threads)
    run(6, sizes.L, base, seen, plain_sizes, plain_memory, threads)
    norm = sizes.L * FIELDS + NORM_1
    normalise(memory.x, memory.floats, plan[norm], plan[norm + 1], sizes.D, sizes.rms, sizes.eps, memory.h)


alone = variant(all_layers, kernel, "alone")
shared = variant(all_layers, kernel, "shared", run=run_shared)


class Floats:
    """Arrays of float32 that are laid one after the other."""

    def __init__(self) -> None:
        self.parts: list[NDArray] = []
        self.end = 0

    def add(self, x: NDArray | None) -> int:
        """Return where a copy of x begins; −1 for None."""
        if x is None:
            return -1
        self.parts.append(np.ravel(x))
        self.end += x.size
        return self.end - x.size

    def joined(self) -> NDArray:
        """Return all of them, and what tiles read behind the last."""
        return np.concatenate([*self.parts, np.zeros(PAD, np.float32)], dtype=np.float32)


# The matrices of each kind of second block: that of its units, that of their gates, and the one that follows.
SECOND = {"networks": ("net.pk", "", "net.pv"), "relu": ("ffn.W1", "", "ffn.W2"), "gelu": ("ffn.W1", "", "ffn.W2")}
SECOND |= {"swiglu": ("ffn.W1", "ffn.Wg", "ffn.W2")}
BIASES = {"net.pk": "net.pb", "net.pv": "net.bo"}


def knows(config: Any) -> bool:
    """Return whether this page computes all that a model has; what is new is computed by NumPy until it does."""
    positions, norms = ("relative", "learned", "rotary"), ("layernorm", "rmsnorm")
    known = config.positions in positions and config.norm in norms and config.second in (None, *SECOND)
    return known and not config.head_norms


class Decoder:
    """Reads a text token by token.

    Args:
        config: of the model.
        layers: its layers, for evaluation, see `model.blocks.Layer`.
        r: of each layer, the position keys of all distances, (R, H, Dh); None without relative positions.
        params: of the model.
        places: how many tokens are seen, the newest included.
        matrices: by name, blocks of bytes, (outputs, bytes), and their type, of matrices that a file has so.
    """

    def __init__(
        self,
        config: Any,
        layers: Sequence[Any],
        r: Sequence[NDArray | None],
        params: Mapping[str, NDArray],
        places: int,
        matrices: Mapping[str, tuple[NDArray, str]],
    ) -> None:
        self.config, self.places, self.matrices = config, places, matrices
        self.floats, self.blocks, self.bytes = Floats(), [np.zeros(0, np.uint8)], 0
        self.groups = np.zeros((config.L, max(1, *config.heads)), np.int64)
        keys = values = 0
        plan = np.zeros((config.L + 1, FIELDS), np.int64)
        for i, (layer, own) in enumerate(zip(layers, r, strict=True)):
            self.add_layer(plan[i], i, layer, own)
            width = plan[i, K + 3]
            plan[i, CACHE : CACHE + 2] = keys, values
            keys, values = keys + 2 * places * width, values + 2 * places * width
        last = plan[config.L]
        last[NORM_1 : NORM_1 + 2] = self.norm(params, "ln")
        if not config.cutoffs:
            name = "embedding" if config.tied else "unembedding"
            last[Q : Q + MATRIX] = self.matrix(name, params[name], params.get("out_bias"), rows=True)
        persistent, threads = plan[:, PERSISTENT].max(), get_num_threads()
        size = max(config.D, config.Dh + persistent + places) + 2 * PAD
        floats = self.floats.joined()
        f32, R = np.float32, max([len(own) for own in r if own is not None], default=0)
        self.memory = Memory(
            floats,
            np.concatenate(self.blocks),
            plan.ravel(),
            self.groups.ravel(),
            keys=np.zeros(keys + PAD, f32),
            values=np.zeros(values + PAD, f32),
            x=np.zeros(config.D + PAD, f32),
            q=np.zeros((plan[:, Q + 3] + 2 * plan[:, K + 3]).max() + PAD, f32),
            h=np.zeros(max(config.D, 2 * plan[:, UP + 3].max()) + PAD, f32),
            logits=np.zeros(last[Q + 3] + PAD, f32),
            scratch=np.zeros((threads, size), f32),
        )
        activation = {"gelu": GELU, "swiglu": SWIGLU}.get(config.second, RELU)
        rms = config.norm == "rmsnorm"
        numbers = config.L, config.D, config.Dh, places, R, rms, config.norm_eps, activation
        self.sizes = Sizes(*numbers)
        self.threads = threads if floats.nbytes + self.bytes >= SHARED_BYTES else 1
        self.clear()

    def add_layer(self, plan: NDArray, i: int, layer: Any, r: NDArray | None) -> None:
        """Write a layer into its row of the plan."""
        p, config, add = layer.p, self.config, self.floats.add
        Dh, H, prefix = config.Dh, config.heads[i], f"layers.{i}."
        for at, name in ((Q, "Wq"), (K, "Wk"), (V, "Wv"), (O, "Wo")):
            plan[at : at + MATRIX] = self.matrix(prefix + name, p[name], p.get(f"b{name[1]}"))
        H = len(p["Wo"]) // Dh
        self.groups[i, :H] = range(H) if layer.groups is None else layer.groups
        plan[NORM_1 : NORM_1 + 2] = self.norm(p, "ln")
        plan[HEADS : HEADS + 2] = H, add(layer.scale * p.get("gate", np.ones(H)))
        plan[RELATIVE : RELATIVE + 2] = -1
        if r is not None:
            plan[RELATIVE] = add(p["u"])
            add(p["w"])
            plan[RELATIVE + 1] = add(r.transpose(1, 2, 0))
        if "pk" in p:
            N = p["pk"].shape[1]
            plan[PERSISTENT : PERSISTENT + 2] = N, add(p["pk"].swapaxes(1, 2))
            add(p["pv"] * math.sqrt(N))
        if config.second is None:
            return
        up, gate, down = SECOND[config.second]
        plan[NORM_2 : NORM_2 + 2] = self.norm(p, up.partition(".")[0] + ".ln")
        for at, name in ((UP, up), (GATE, gate), (DOWN, down)):
            if name:
                W, bias = p[name], p.get(BIASES.get(name, f"ffn.b{name[-1]}"))
                if name.startswith("net"):
                    W = W.reshape(-1, config.D)
                W = W.T if name == "net.pk" else W
                plan[at : at + MATRIX] = self.matrix(prefix + name, W, bias)
        units = int(plan[UP + 3])
        own, scale = (p.get("gate"), layer.scale) if up == "net.pk" else (p.get("ffn.gate"), layer.unit_scale)
        factors = scale * np.ones(units) if own is None else np.repeat(scale * own, units // max(1, len(own)))
        plan[UNITS : UNITS + 2] = units, add(factors)

    def norm(self, p: Mapping[str, NDArray], prefix: str) -> tuple[int, int]:
        """Return where scale and bias of a norm begin, −1 for none."""
        return self.floats.add(p[f"{prefix}.scale"]), self.floats.add(p.get(f"{prefix}.bias"))

    def matrix(self, name: str, W: NDArray, bias: NDArray | None, rows: bool = False) -> tuple[int, ...]:
        """Return what the plan says of a matrix (in, out), or (out, in) with `rows`."""
        inputs, outputs = W.shape[::-1] if rows else W.shape
        at = self.floats.add(bias)
        if name in self.matrices:
            data, kind = self.matrices[name]
            self.blocks.append(data.ravel())
            first, self.bytes = self.bytes, self.bytes + data.size
            return KINDS[kind], first, inputs, outputs, at
        return ROWS if rows else COLUMNS, self.floats.add(W), inputs, outputs, at

    def clear(self) -> None:
        """Forget all tokens read so far."""
        self.base, self.seen = 0, 0

    def fill(self, i: int, keys: NDArray, values: NDArray) -> None:
        """Take over layer i's keys and values of a text, (n, H, Dh), in place of what was read before."""
        C, (at_keys, at_values) = self.places, self.memory.plan.reshape(-1, FIELDS)[i, CACHE : CACHE + 2]
        keys, values = (x[-C:][::-1] for x in (keys, values))  # the newest first
        self.base, self.seen = 0, len(keys)
        heads = np.unique(self.groups[i, : keys.shape[1]], return_index=True)[1]  # the first of each group
        keys, values = keys[:, heads], values[:, heads]
        n, Kh, Dh = keys.shape
        k = self.memory.keys[at_keys : at_keys + 2 * C * Kh * Dh].reshape(Kh, Dh, 2, C)
        v = self.memory.values[at_values : at_values + 2 * C * Kh * Dh].reshape(2, C, Kh, Dh)
        k[..., :n], v[:, :n] = keys.transpose(1, 2, 0)[:, :, None], values

    def step(self, x: NDArray, position: int) -> tuple[NDArray, NDArray]:
        """Read the embedding x (D,) of the token at a position; return h (D,) and the logits (V,), both overwritten."""
        config, memory = self.config, self.memory
        self.base = (self.base or self.places) - 1
        self.seen = min(self.seen + 1, self.places)
        memory.x[: config.D] = x
        cos = sin = memory.x[:0]
        if config.rotary is not None:
            cos, sin = (y.ravel() for y in cos_and_sin(1, config.Dh, config.rotary, position, np.float32))
        compute = alone if self.threads == 1 else shared
        compute(self.base, self.seen, cos, sin, tuple(self.sizes), tuple(memory), self.threads)
        return memory.h[: config.D], memory.logits[: config.V if not config.cutoffs else 0]

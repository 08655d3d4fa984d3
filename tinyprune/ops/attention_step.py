"""One layer's attention block for one token of a text that is being generated: inference only, no backward.

    y = x + Wo · attention(LayerNorm(x)) + bo        x, y (D,)

Keys and values of earlier tokens are kept in two ring buffers of C places. A token read after `read` others takes place
`read` mod C and so overwrites the token C before it, which is forgotten:

    place s      holds the token at distance (read − s) mod C
    visible      min(read + 1, C) places, the token itself at distance 0

What the token sees is what `attention_forward` shows the last query of a segment. With rotary positions its query and
its key are rotated by the position `read`, and keys are kept rotated: a score depends on the distance alone, so that
nothing has to be rotated again when the buffers begin anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tinyprune.ops.shapes import check_shapes

if TYPE_CHECKING:
    from tinyprune.ops.engine import Engine


class BlockWeights(NamedTuple):
    """The weights of an attention block, except its position keys.

    Attributes:
        Wq, Wk, Wv: weights, (D, H·Dh).   Wo: (H·Dh, D).
        bo: bias of the output, (D,); None for none.
        ln_scale, ln_bias: of the LayerNorm, (D,); None where the caller normalises.
        u, w: biases of content and position score, (H, Dh); given exactly if there are position keys.
        pk, pv: persistent keys and values, (H, N, Dh); None for none.
        gate: one factor per head, (H,); None for all open.
        scale: output scaling c.
        bq, bk, bv: biases of queries, keys and values, (H·Dh,); each may be None for none.
        rope_base: base of the rotary positions (`ops.rotary`), for an even Dh; None for no rotary positions.
    """

    Wq: NDArray
    Wk: NDArray
    Wv: NDArray
    Wo: NDArray
    bo: NDArray | None = None
    ln_scale: NDArray | None = None
    ln_bias: NDArray | None = None
    u: NDArray | None = None
    w: NDArray | None = None
    pk: NDArray | None = None
    pv: NDArray | None = None
    gate: NDArray | None = None
    scale: float = 1.0
    bq: NDArray | None = None
    bk: NDArray | None = None
    bv: NDArray | None = None
    rope_base: float | None = None


class AttentionStep:
    """A layer's attention block and its buffers, which read a text token by token: `y = step(x)`.

    A backend may copy the weights into another order: later changes of them need not have an effect.

    Args:
        ops: the engine; `ops.AttentionStep` passes itself.
        C: places in the buffers: how many tokens are seen, the newest included.
        Dh: width of a head.
        r: position keys or None, see `attention_step`.
        weights: of the block.

    Raises:
        ValueError: if C, Dh or `rope_base` is out of range; if shapes do not fit together, in the textbook only as soon
            as the first token is read.
    """

    def __init__(self, ops: Engine, C: int, Dh: int, r: NDArray | None, weights: BlockWeights) -> None:
        check_sizes(C, Dh, weights.rope_base)
        self.ops, self.r, self.weights = ops, r, weights
        shape = C, weights.Wq.shape[1] // Dh, Dh
        self.keys, self.values = (ops.to_device(np.zeros(shape, weights.Wq.dtype)) for _ in range(2))
        self.clear()

    def clear(self) -> None:
        """Forget everything read."""
        self.read = 0

    def fill(self, keys: NDArray, values: NDArray) -> None:
        """Forget everything, and copy the keys, rotated if the block rotates them, and values of a text: (n, H, Dh).

        Raises ValueError unless they are of this shape.
        """
        C, H, Dh = self.keys.shape
        check_shapes(f"keys: n {H} {Dh}, values: n {H} {Dh}", keys, values)
        n = len(keys)
        turn = n - n % C  # the latest token in place 0; the tokens before it fill the places after the last one's
        for ring, text in ((self.keys, keys), (self.values, values)):
            self.ops.set_rows(ring[: n - turn], text[turn:])
            self.ops.set_rows(ring[n - turn : min(n, C)], text[max(0, n - C) : turn])
        self.read = n

    def __call__(self, x: NDArray, n: NDArray | None = None) -> NDArray:
        """Read one token: y from x, both (D,). n: norm(x), see `attention_step`."""
        y = self.ops.attention_step(x, self.keys, self.values, self.r, self.read, self.weights, n)
        self.read += 1
        return y


def make_step(ops: Engine, C: int, Dh: int, r: NDArray | None, weights: BlockWeights) -> AttentionStep:
    """Make an `AttentionStep` of the engine."""
    return AttentionStep(ops, C, Dh, r, weights)


def attention_step(
    ops: Engine,
    x: NDArray,
    keys: NDArray,
    values: NDArray,
    r: NDArray | None,
    read: int,
    weights: BlockWeights,
    n: NDArray | None = None,
) -> NDArray:
    """Compute the block's output for the newest token, and store its key and value.

    Args:
        ops: the engine; `ops.attention_step` passes itself.
        x: the layer's input for the token, (D,), float32 or float64.
        keys, values: ring buffers, (C, H, Dh), C ≥ 1, dtype of `x`; H may be 0. *Written in place*: place `read` mod C.
            Places that no token has taken yet are not read and may hold anything.
        r: position keys, (at least C, H, Dh), row = distance; None for no relative positions.
        read: how many tokens were read before this one.
        weights: of the block.
        n: norm(x), (D,), for a norm that the caller computes. None for LayerNorm, which is computed here because a
            call of it beside a compiled step would take a fifth of the step's time.

    Returns:
        y: (D,), dtype of `x`.

    Raises:
        ValueError: if the shapes do not fit together or `read` is negative; with rotary positions, also if Dh is odd or
            `rope_base` not greater than 0. The buffers then stay as they are.
    """
    Wq, Wk, Wv, Wo, bo, ln_scale, ln_bias, u, w, pk, pv, gate, scale, bq, bk, bv, rope_base = weights
    check_step(x, keys, values, r, read, weights, n)
    C, H, Dh = keys.shape
    if n is None:
        if ln_scale is None or ln_bias is None:
            raise ValueError("n must be given, or ln_scale and ln_bias")
        n, _ = ops.layernorm_forward(x, ln_scale, ln_bias)
    pairs = (Wq, bq), (Wk, bk), (Wv, bv)
    q, k, v = (ops.linear_forward(n, W, b)[0].reshape(1, 1, H, Dh) for W, b in pairs)
    if rope_base is not None:
        q, k = ops.rotate(q, rope_base, read), ops.rotate(k, rope_base, read)
    seen = in_order(ops, keys, k, read), in_order(ops, values, v, read), None if r is None else r[: min(read + 1, C)]
    o, _ = ops.attention_forward(q, *seen, u, w, pk, pv, gate, scale=scale)  # (1, 1, H, Dh)
    y, _ = ops.linear_forward(o.reshape(H * Dh), Wo, bo)
    for ring, newest in ((keys, k), (values, v)):  # written last, when nothing can fail any more
        ops.set_rows(ring[read % C], newest.reshape(H, Dh))
    return ops.add(x, y)


def in_order(ops: Engine, ring: NDArray, newest: NDArray, read: int) -> NDArray:
    """Return what the newest token sees of the ring (C, H, Dh), the oldest first, itself last: (1, visible, H, Dh)."""
    C, H, Dh = ring.shape
    older = min(read, C - 1)
    first = (read - older) % C
    parts = [ring[first : min(first + older, C)], ring[: max(0, first + older - C)], newest.reshape(1, H, Dh)]
    return ops.concatenate(parts).reshape(1, older + 1, H, Dh)


def check_sizes(C: int, Dh: int, rope_base: float | None) -> None:
    """Raise ValueError unless there can be buffers of C places for heads of width Dh, rotated with `rope_base`."""
    for name, value in (("C", C), ("Dh", Dh)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if rope_base is not None and Dh % 2:
        raise ValueError(f"Dh must be even for rotary positions, got {Dh}")
    if rope_base is not None and not rope_base > 0:
        raise ValueError(f"rope_base must be greater than 0, got {rope_base}")


def check_step(
    x: NDArray, keys: NDArray, values: NDArray, r: NDArray | None, read: int, weights: BlockWeights, n: NDArray | None
) -> None:
    """Raise ValueError, naming the argument, unless these fit together; operations check the other arguments."""
    Wq, Wk, Wv, Wo, bo, *_, bq, bk, bv, rope_base = weights
    check_shapes(
        "x: D, keys: C≥1 H Dh, values: C H Dh, r?: ≥C H Dh, n?: D, Wq: D H·Dh, Wk: D H·Dh, Wv: D H·Dh, Wo: H·Dh D, "
        "bo?: D, bq?: H·Dh, bk?: H·Dh, bv?: H·Dh",
        *(x, keys, values, r, n, Wq, Wk, Wv, Wo, bo, bq, bk, bv),
    )
    if read < 0:
        raise ValueError(f"read must be at least 0, got {read}")
    check_sizes(len(keys), keys.shape[2], rope_base)

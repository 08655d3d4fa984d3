"""One layer's attention block for one token of a text that is being generated. See `tinyprune.ops.attention_step`.

    y = x + Wo · attention(LayerNorm(x)) + bo        x, y (D,)

These are the operations of training, with one query. The keys and values that it sees are copied from the ring buffers
in the order of the text, the newest last: few bytes compared with the weights, which are all read for every token.
"""

import numpy as np

from tinyprune import ops
from tinyprune.kernels.cuda.device.array import DeviceArray, copied, empty
from tinyprune.kernels.cuda.device.jit import blocks, cuda, floats, int32, kernel
from tinyprune.kernels.cuda.operations.attention import attention_forward
from tinyprune.kernels.cuda.operations.maps import add, rotate
from tinyprune.kernels.cuda.operations.norms import layernorm_forward
from tinyprune.kernels.cuda.parts.arguments import check_floats, check_in_place, zeros
from tinyprune.kernels.cuda.products.primitives import matmul
from tinyprune.ops.attention_step import BlockWeights, check_step

THREADS = 128


@kernel(floats, floats, int32, int32, int32, int32, int32, floats, threads=THREADS)
def unroll(ring, newest, first, C, visible, width, size, out):
    """Compute out (visible, width): rows from `first` of ring (C, width), modulo C, and the newest as the last one."""
    i = cuda.grid(1)
    if i < size:
        row, column = i // width, i % width
        out[i] = newest[column] if row == visible - 1 else ring[(first + row) % C * width + column]


def in_order(ring: DeviceArray, newest: DeviceArray, read: int) -> DeviceArray:
    """Return what the newest token sees of the ring (C, H, Dh), itself included: (1, visible, H, Dh)."""
    C, H, Dh = ring.shape
    visible, width = min(read + 1, C), H * Dh
    out = empty((1, visible, H, Dh))
    first = (read + 1 - visible) % C
    unroll(blocks(out.size, THREADS), ring, newest, first, C, visible, width, out.size, out)
    return out


def attention_step(
    x: DeviceArray,
    keys: DeviceArray,
    values: DeviceArray,
    r: DeviceArray | None,
    read: int,
    weights: BlockWeights,
    n: DeviceArray | None = None,
) -> DeviceArray:
    """Compute the block's output for the newest token, and keep its key and value: `ops.attention_step` for float32."""
    Wq, Wk, Wv, Wo, bo, ln_scale, ln_bias, u, w, pk, pv, gate, scale, bq, bk, bv, rope_base = weights
    check_step(x, keys, values, r, read, weights, n)
    check_floats(x=x, keys=keys, values=values)
    check_in_place(keys=keys, values=values)
    C, H, Dh = keys.shape
    if n is None:
        n, _ = layernorm_forward(x, ln_scale, ln_bias)
    pairs = (Wq, bq), (Wk, bk), (Wv, bv)
    q, k, v = (matmul(n, W, bias=b).reshape(1, 1, H, Dh) for W, b in pairs)
    if rope_base is not None:
        q, k = rotate(q, rope_base, read), rotate(k, rope_base, read)
    seen = in_order(keys, k, read), in_order(values, v, read), None if r is None else r[: min(read + 1, C)]
    o, _ = attention_forward(q, *seen, u, w, pk, pv, gate, scale=scale)  # (1, 1, H, Dh)
    y = matmul(o.reshape(H * Dh), Wo, bias=bo)
    for newest, ring in ((k, keys), (v, values)):  # write the buffers last, when nothing can fail any more
        copied(newest[0, 0], ring[read % C])
    return add(x, y)


class AttentionStep(ops.AttentionStep):
    """A layer's attention block with its buffers in the GPU's memory. Arguments as in `ops.AttentionStep`."""

    def buffer(self, shape: tuple[int, ...], dtype: np.dtype) -> DeviceArray:
        """Return zeros, float32 whatever the dtype."""
        return zeros(shape)

    def write(self, rows: DeviceArray, places: DeviceArray) -> None:
        """Copy rows to as many places."""
        copied(rows, places)

    def __call__(self, x: DeviceArray, n: DeviceArray | None = None) -> DeviceArray:
        """Process one token: return y for x, both (D,). n: norm(x), see `ops.attention_step`."""
        y = attention_step(x, self.keys, self.values, self.r, self.read, self.weights, n)
        self.read += 1
        return y

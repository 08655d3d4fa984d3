"""The memory of a training step on a GPU: `tinyprune bench memory --host`. No GPU is needed.

    gib           of all our arrays at the peak of a step, in GiB: counted. Everything runs as it would on a GPU with
                  the driver's functions replaced, see `host`, so the pool hands out what it would hand out there
    eager_gib     what eager PyTorch would need at least, with attention written plainly: computed from the shapes

The second is a sum of tensors of 4 bytes an entry, those that autograd keeps from forward to backward:

    of each layer   [m; x] and its LayerNorm (B, S, D); q, (q + u) / √Dh, (q + w) / √Dh and the heads' outputs
                    (B, T, W); k (B, S, W); values with the persistent ones (B, S + N, W); the softmax's weights, those
                    that dropout leaves, and its mask of bytes (B, H, T, S + N); the mask of the block's dropout
                    (B, T, D); of a feed-forward block its LayerNorm (B, T, D), units (B, T, F) and mask
    of the model    input and LayerNorm at its end (B, T, D); the loss's log-softmax and the gradient of the logits
                    (B, T, V); memory of this segment and of the one before (B, M, D) a layer
    parameters      with gradients and AdamW's two averages

Backward makes more of the size of the weights, which is left out. (`torch_model` and `torch_operations` are that
implementation.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tinyprune.bench.host import NO_GPU, without_gpu
from tinyprune.bench.shapes import PAPER, ModelShape, model_shape
from tinyprune.model.parameters import parameter_shapes
from tinyprune.tables import Record

GIB = 2**30
SHAPES = (("small", None), (PAPER, None), (PAPER, 192))  # with the batch of the shape, or the paper's


def counted_bytes(shape: ModelShape) -> int:
    """Return the most bytes that our arrays occupy in a step."""
    from tinyprune.bench.backend_workloads import step_workload

    with without_gpu() as (ops, _):
        work = step_workload(ops, shape)
        assert work.gauge is not None
        for _ in range(2):
            work.gauge.begin()
            work.run()
        return work.gauge.peak()


def eager_bytes(shape: ModelShape) -> int:
    """Return the bytes of the tensors above."""
    c, B = shape.config, shape.B
    T, S, D, N = c.T, c.M + c.T, c.D, c.attended
    parameters = sum(math.prod(size) for size in parameter_shapes(c).values())
    entries = 4 * parameters + B * (2 * T * D + 2 * T * c.V + 2 * c.L * c.M * D)
    masks = 0
    for heads in c.heads:
        W, weights = heads * c.Dh, B * heads * T * (S + N)
        entries += B * (2 * S * D + (4 if c.relative else 2) * T * W + S * W + (S + N) * W) + 2 * weights
        masks += weights + B * T * D
        if c.two_blocks:
            entries += B * T * (2 * D + (heads * c.N if c.networks else c.F))
            masks += B * T * D
    return 4 * entries + masks


def memory_records(names: Sequence[str]) -> list[Record]:
    """Return a record for each of these shapes."""
    records = []
    for name, B in [(name, None) for name in names] or SHAPES:
        shape = model_shape(name, B=B)
        found = {"gib": counted_bytes(shape) / GIB, "eager_gib": eager_bytes(shape) / GIB}
        records.append({"benchmark": "memory", "shape": f"step of {name}, B {shape.B}", **found, "machine": NO_GPU})
    return records

"""Δ_h: what one head adds to its layer's output. See `tinyprune.ops.head_difference`.

    for h: delta[h] = o[:, :, h] · (c · Wo[h·Dh : (h + 1)·Dh])

One product for each head, which reads its part of o in place.
"""

from tinyprune.kernels.cuda.device.array import DeviceArray
from tinyprune.kernels.cuda.parts.arguments import check_floats
from tinyprune.kernels.cuda.parts.copies import scaled, zeros
from tinyprune.kernels.cuda.products.primitives import matmul
from tinyprune.ops.head_difference import check_output_projection


def head_difference(o: DeviceArray, Wo: DeviceArray, scale: float = 1.0) -> DeviceArray:
    """Compute Δ_h of every head of a layer, (H, B, T, D): `ops.head_difference` for float32."""
    check_floats(o=o, Wo=Wo)
    check_output_projection(o, Wo)
    B, T, H, Dh = o.shape
    delta = zeros((H, B, T, Wo.shape[1]))
    if scale != 1:
        Wo = scaled(Wo, scale, "scale")
    for h in range(H):
        matmul(o[:, :, h], Wo[h * Dh : (h + 1) * Dh], onto=delta[h])
    return delta

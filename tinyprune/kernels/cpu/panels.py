"""Panels `[panel][d][lane]`: rows transposed, so that a tile of a product reads along memory.

A panel has two vectors of lanes. With four, the rows abc def ghi jkl mno (D = 3) become adgj behk cfil m000 n000 o000.
"""

from tinyprune.kernels.cpu.jit import inner
from tinyprune.kernels.cpu.simd import lanes, never_inline, transpose


@inner
def pack_rows(source, at, stride, n, target, to, front, panels, D, factor):
    """Transpose n rows of `source` times `factor` into panels: `front` rows of zeros, the n rows, zeros to the end.

    Row j of D numbers starts at source[at + j · stride]; the first panel at target[to].
    """
    never_inline()
    W = lanes(source)
    width = 2 * W
    for panel in range(panels):
        x = to + panel * width * D
        first = panel * width - front
        if first >= 0 and first + width <= n and D >= W:
            for block in range(0, D, W):
                d = min(block, D - W)  # the last W of them, some for the second time
                transpose(source, at + first * stride + d, stride, target, x + d * width, width, factor)
                transpose(source, at + (first + W) * stride + d, stride, target, x + d * width + W, width, factor)
        else:
            for lane in range(width):
                j = first + lane
                if 0 <= j < n:
                    for d in range(D):
                        target[x + d * width + lane] = source[at + j * stride + d] * factor
                else:
                    for d in range(D):
                        target[x + d * width + lane] = 0


@inner
def unpack_rows(source, at, front, n, target, to, stride, D, factor):
    """Reverse `pack_rows`: write n rows of D numbers, D a multiple of the lanes, at target[to + j · stride]."""
    never_inline()
    W = lanes(source)
    width = 2 * W
    for panel in range((front + n + width - 1) // width):
        x = at + panel * width * D
        first = panel * width - front
        if first >= 0 and first + width <= n:
            for d in range(0, D, W):
                transpose(source, x + d * width, width, target, to + first * stride + d, stride, factor)
                transpose(source, x + d * width + W, width, target, to + (first + W) * stride + d, stride, factor)
        else:
            for lane in range(width):
                j = first + lane
                if 0 <= j < n:
                    for d in range(D):
                        target[to + j * stride + d] = source[x + d * width + lane] * factor

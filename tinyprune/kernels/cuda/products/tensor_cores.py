"""Tf32 arithmetic for the tiles of a matrix product: tensor cores of GPUs of compute capability 8.0 and later.

Numbers are rounded to 10 bits after the leading one, to the nearest and half away from zero; products are exact, and
sums are float32. Rounding changes a number by at most 2⁻¹¹ of itself, so a sum of products is off by at most about 2⁻¹⁰
of Σ |a| · |b|, besides the rounding of any float32 sum. For normal random numbers and K from 64 to 36,864, emulated in
NumPy, the error is 3 · 10⁻⁴ of the product's norm; with float32 alone it is 1 to 4 · 10⁻⁷.

One instruction, executed by the 32 threads of a warp together, adds the product of 16 × 8 numbers of a and 8 × 8 of b
to 16 × 8 sums. A thread holds these (NVIDIA's PTX ISA, "Matrix Fragments for mma.m16n8k8"), with g = lane // 4 and
t = lane % 4:

    a        k = t       k = t + 4          b       j = g            sum      j = 2t      j = 2t + 1
    i = g        a0      a2                 k = t       b0           i = g        c0      c1
    i = g + 8    a1      a3                 k = t + 4   b1           i = g + 8    c2      c3

The 8 warps are 4 × 2; a warp has 32 × 64 sums, 2 × 8 such pieces (16 × 32 and 1 × 4 with small tiles).
"""

from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic

from tinyprune.kernels.cuda.device.jit import cuda, device, float32, uint32
from tinyprune.kernels.cuda.products.arithmetic import STRIP, finished, row_begin

EARLIEST = (8, 0)  # compute capability with tf32
FLOAT, BITS = ir.FloatType(), ir.IntType(32)
ADD_PRODUCT = (
    "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
)


@intrinsic
def rounded(typingctx, x):
    """Return x, rounded to tf32."""

    def codegen(context, builder, signature, arguments):
        convert = ir.InlineAsm(ir.FunctionType(BITS, [FLOAT]), "cvt.rna.tf32.f32 $0, $1;", "=r,f")
        return builder.bitcast(builder.call(convert, arguments), FLOAT)

    return float32(float32), codegen


@intrinsic
def mma(typingctx, a0, a1, a2, a3, b0, b1, c0, c1, c2, c3):
    """Return the four sums of the thread, to which the product of the warp's numbers is added."""

    def codegen(context, builder, signature, arguments):
        factors = [builder.bitcast(x, BITS) for x in arguments[:6]]
        function = ir.FunctionType(ir.LiteralStructType(4 * [FLOAT]), 6 * [BITS] + 4 * [FLOAT])
        add = ir.InlineAsm(function, ADD_PRODUCT, "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f", side_effect=True)
        made = builder.call(add, [*factors, *arguments[6:]], attrs=("convergent",))
        sums = [builder.extract_value(made, n) for n in range(4)]
        return context.make_tuple(builder, signature.return_type, sums)

    return types.UniTuple(float32, 4)(*10 * (float32,)), codegen


def make_tensor_cores(TILE: int) -> tuple[int, Callable, Callable, Callable]:
    """Make the functions for tiles of this size, see `product`."""
    PAD = 8
    K_STRIDE = TILE + PAD
    DEPTH = STRIP // TILE
    DOWN, ACROSS = TILE // 64, TILE // 16  # pieces of a warp along rows and columns
    EACH = 2 * ACROSS  # sums of a thread in a row
    SUMS = 2 * DOWN * EACH
    FACTORS = 4 * DOWN  # numbers of a that a thread holds, for eight k

    @device
    def corner(thread):
        """Return row and column in the tile where the sums of the thread's warp begin."""
        warp = thread // 32
        return warp // 2 * 16 * DOWN, warp % 2 * 8 * ACROSS

    @device
    def add_strips(strips_a, strips_b, buffer, thread, sums):
        """Add to sums the product of the strips that begin at index `buffer`."""
        a_regs = cuda.local.array(FACTORS, float32)
        row, column = corner(thread)
        g, t = thread % 32 // 4, thread % 4
        for k in range(0, DEPTH, 8):
            a_at = uint32(buffer + (k + t) * K_STRIDE + row + g)
            b_at = uint32(buffer + (k + t) * K_STRIDE + column + g)
            for y in range(DOWN):
                for n in range(4):
                    a_regs[4 * y + n] = strips_a[a_at + n // 2 * 4 * K_STRIDE + 16 * y + n % 2 * 8]
            for x in range(ACROSS):
                b0, b1 = strips_b[b_at + 8 * x], strips_b[b_at + 8 * x + 4 * K_STRIDE]
                for y in range(DOWN):
                    up, down = 2 * y * EACH + 2 * x, (2 * y + 1) * EACH + 2 * x
                    a0, a1, a2, a3 = a_regs[4 * y], a_regs[4 * y + 1], a_regs[4 * y + 2], a_regs[4 * y + 3]
                    c0, c1, c2, c3 = sums[up], sums[up + 1], sums[down], sums[down + 1]
                    sums[up], sums[up + 1], sums[down], sums[down + 1] = mma(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3)

    @device
    def write(sums, thread, top, left, first, group_rows, p):
        """Write the finished sums to the product's out, from entry `first` on; the tile begins at `top` and `left`."""
        y_0, x_0 = corner(thread)
        for y in range(2 * DOWN):
            i = top + y_0 + 8 * y + thread % 32 // 4
            to = first + row_begin(i, group_rows, p.out_group, p.out_row)
            for x in range(EACH):
                j = left + x_0 + x // 2 * 8 + thread % 4 * 2 + x % 2
                if i < p.M and j < p.N:
                    p.out[to + j] = finished(sums[x], p, to, j)
            # the next row moves to the first one's registers, see `multiply_add`
            for n in range(SUMS - EACH):
                sums[n] = sums[n + EACH]

    return PAD, rounded, add_strips, write

"""Functions that take fewer instructions than Numba's: `math.exp2` is four, a comparison with a choice two."""

from tinyprune.kernels.cuda.device.jit import SIMULATED, cuda, device, float32, int32, uint32

if SIMULATED:
    import math

    def exp2(x):
        """Return 2^x, or 0 if that is below 2^−126, float32's smallest normal number."""
        return float32(0) if x < -126 else float32(math.exp2(x))

    def larger(x, y):
        """Return the larger of two numbers; if one is NaN, the other."""
        return y if y > x or x != x else x

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic
    from numba.cuda.libdevice import fmaxf as larger  # noqa: F401

    @intrinsic
    def exp2(typingctx, x):
        """Return 2^x, or 0 if that is below 2^−126, float32's smallest normal number."""

        def codegen(context, builder, signature, arguments):
            kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
            return builder.call(builder.module.declare_intrinsic("llvm.nvvm.ex2.approx.ftz.f", fnty=kind), arguments)

        return float32(float32), codegen


@device
def own_thread(threads):
    """Return the number of this thread in its block of 2^n threads.

    The compiler learns that it is not negative: what is divided by it is shifted, and 64 bits are not needed.
    """
    return cuda.threadIdx.x & (threads - 1)


@device
def divided(i, n):
    """Return i // n and i % n of numbers that are not negative: in 32 bits, where Numba would divide in 64."""
    return int32(uint32(i) // uint32(n)), int32(uint32(i) % uint32(n))

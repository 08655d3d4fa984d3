"""Instructions that Numba does not use by itself, as functions for kernels.

`load4` and `store4` read and write four neighbours at once: a quarter of the instructions, and a warp reads whole
sectors of memory. Numba would load one number at a time, since it does not know that they are aligned to 16 bytes. Here
they are: arrays in the GPU's memory begin on a multiple of 16 bytes, and so do shared arrays that are made with
`ALIGNMENT`. `load_some` and `store_some` are for the edges of an array.

For a shared array Numba tests whether an index is negative; `load1` and `store1` do without that test. `math.exp2` is
four instructions, and a comparison with a choice two; `exp2` and `larger` are one.

A product that is added to something may become part of a multiply-add, which does not round it. `rounded_product` is
always rounded: for what is subtracted from a number that another place has computed from the same, rounded product.
"""

from llvmlite import ir
from numba import types
from numba.cuda.extending import intrinsic
from numba.cuda.libdevice import fmaxf as larger  # noqa: F401
from numba.cuda.libdevice import fmul_rn as rounded_product  # noqa: F401

from tinyprune.kernels.cuda.device.jit import cuda, device, float32, int32, uint32

ALIGNMENT = 16
GLOBAL = 1  # LLVM's number of this address space

VECTOR = ir.VectorType(ir.FloatType(), 4)


@intrinsic
def exp2(typingctx, x):
    """Return 2^x, or 0 if that is below 2^−126, float32's smallest normal number."""

    def codegen(context, builder, signature, arguments):
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType()])
        return builder.call(builder.module.declare_intrinsic("llvm.nvvm.ex2.approx.ftz.f", fnty=kind), arguments)

    return float32(float32), codegen


def address(context, builder, type_of_x, x, i):
    """Return a pointer to x[i], where x is a pointer to global memory, or a shared array."""
    if isinstance(type_of_x, types.Array):
        x = context.make_array(type_of_x)(context, builder, x).data
    else:  # the compiler does not know where a pointer points to that was chosen among several
        x = builder.addrspacecast(x, x.type.pointee.as_pointer(GLOBAL))
    return builder.gep(x, [i])


@intrinsic
def pointer_to(typingctx, x, i):
    """Return a pointer to x[i] from a pointer."""
    return x(x, types.int64), lambda context, builder, signature, given: builder.gep(given[0], [given[1]])


@intrinsic
def load4(typingctx, x, i):
    """Return x[i] … x[i + 3]; i is a multiple of 4, x a pointer or a flat shared array."""

    def codegen(context, builder, signature, arguments):
        first = address(context, builder, signature.args[0], *arguments)
        vector = builder.load(builder.bitcast(first, VECTOR.as_pointer(first.type.addrspace)))
        vector.align = ALIGNMENT
        entries = [builder.extract_element(vector, ir.Constant(ir.IntType(32), n)) for n in range(4)]
        return context.make_tuple(builder, signature.return_type, entries)

    return types.UniTuple(float32, 4)(x, types.int64), codegen


@intrinsic
def store4(typingctx, x, i, a, b, c, d):
    """Set x[i] … x[i + 3] to a … d; i is a multiple of 4."""

    def codegen(context, builder, signature, arguments):
        x, i, *entries = arguments
        vector = ir.Constant(VECTOR, ir.Undefined)
        for n, entry in enumerate(entries):
            vector = builder.insert_element(vector, entry, ir.Constant(ir.IntType(32), n))
        first = address(context, builder, signature.args[0], x, i)
        builder.store(vector, builder.bitcast(first, VECTOR.as_pointer(first.type.addrspace))).align = ALIGNMENT
        return context.get_dummy_value()

    return types.void(x, types.int64, *4 * (float32,)), codegen


@device
def load1(x, i):
    """Return x[i] of a flat shared array; i is not negative."""
    return x[uint32(i)]


@device
def store1(x, i, a):
    """Set x[i] = a in a flat shared array; i is not negative."""
    x[uint32(i)] = a


@device
def load_some(x, i, left, aligned):
    """Return x[i] … x[i + 3], with zeros for those that do not exist; `left` numbers exist from x[i] on.

    aligned: whether i is a multiple of 4 wherever `left` is 4 or more.
    """
    if aligned and left >= 4:
        return load4(x, i)
    zero = float32(0)
    return (
        x[i] if left > 0 else zero,
        x[i + 1] if left > 1 else zero,
        x[i + 2] if left > 2 else zero,
        x[i + 3] if left > 3 else zero,
    )


@device
def store_some(x, i, left, aligned, a, b, c, d):
    """Set those of x[i] … x[i + 3] that exist to a … d; see `load_some`."""
    if aligned and left >= 4:
        store4(x, i, a, b, c, d)
    else:
        if left > 0:
            x[i] = a
        if left > 1:
            x[i + 1] = b
        if left > 2:
            x[i + 2] = c
        if left > 3:
            x[i + 3] = d


@device
def thread_index(threads):
    """Return the number of this thread in its block of `threads`, a power of 2.

    The mask tells the compiler that it is not negative: a division by a power of 2 is then a shift, in 32 bits.
    """
    return cuda.threadIdx.x & (threads - 1)


@device
def divmod32(i, n):
    """Return i // n and i % n for i ≥ 0 and n > 0: in 32 bits, where Numba would divide in 64."""
    return int32(uint32(i) // uint32(n)), int32(uint32(i) % uint32(n))

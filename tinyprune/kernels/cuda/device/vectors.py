"""Load and store four neighbours with one instruction (`load4`), as far as they exist (`load_some`), or one (`load1`).

Reading 16 bytes at once takes a quarter of the instructions, and a warp reads whole sectors of memory. Numba would load
one number at a time, since it does not know that they are aligned to 16 bytes. Here they are: the GPU's memory and
shared memory that is read in this way both begin on a multiple of 16 bytes.

For a shared array Numba tests whether an index is negative; `load1` and `store1` do without that test.
"""

from numba import types

from tinyprune.kernels.cuda.device.jit import SIMULATED, Window, device, float32, uint32

BYTES = 16
SHARED = 3  # number of an address space

if SIMULATED:

    def check(x, i):
        """Fail where a GPU would stop the program, or read beyond the array."""
        assert i >= 0, i
        assert (i + getattr(x, "first", 0)) % 4 == 0, f"four numbers at {i}, which is no multiple of 16 bytes"

    def aligned(x):
        """Return a shared array, aligned for functions that read four entries at a time."""
        return x

    def beyond(x, i):
        """Return a pointer to x[i] from a pointer."""
        return Window(x.memory, x.first + i, x.at + i)

    def load4(x, i):
        """Return x[i] … x[i + 3]; i is a multiple of 4, x a pointer or a flat shared array."""
        check(x, i)
        return x[i], x[i + 1], x[i + 2], x[i + 3]

    def store4(x, i, a, b, c, d):
        """Set x[i] … x[i + 3] to a … d; i is a multiple of 4."""
        check(x, i)
        x[i], x[i + 1], x[i + 2], x[i + 3] = a, b, c, d

else:
    from llvmlite import ir
    from numba.cuda.extending import intrinsic

    VECTOR = ir.VectorType(ir.FloatType(), 4)

    def align(module):
        """Align the shared arrays of a kernel, or of a function that it calls, so that vectors can be read."""
        for variable in module.global_values:
            if isinstance(variable, ir.GlobalVariable) and variable.addrspace == SHARED:
                variable.align = BYTES

    @intrinsic
    def aligned(typingctx, x):
        """Return a shared array, aligned for functions that read four entries at a time but do not see it made."""

        def codegen(context, builder, signature, arguments):
            align(builder.module)
            return arguments[0]

        return x(x), codegen

    def place(context, builder, type_of_x, x, i):
        """Return a pointer to x[i]; a shared array is aligned."""
        if isinstance(type_of_x, types.Array):
            align(builder.module)
            x = context.make_array(type_of_x)(context, builder, x).data
        return builder.gep(x, [i])

    @intrinsic
    def beyond(typingctx, x, i):
        """Return a pointer to x[i] from a pointer."""

        def codegen(context, builder, signature, arguments):
            return builder.gep(arguments[0], [arguments[1]])

        return x(x, types.int64), codegen

    @intrinsic
    def load4(typingctx, x, i):
        """Return x[i] … x[i + 3]; i is a multiple of 4, x a pointer or a flat shared array."""

        def codegen(context, builder, signature, arguments):
            first = place(context, builder, signature.args[0], *arguments)
            vector = builder.load(builder.bitcast(first, VECTOR.as_pointer()))
            vector.align = BYTES
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
            first = place(context, builder, signature.args[0], x, i)
            builder.store(vector, builder.bitcast(first, VECTOR.as_pointer())).align = BYTES
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
    """Return x[i] … x[i + 3], of which `left` exist, with zeros for the others.

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

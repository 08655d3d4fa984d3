"""Every instruction that the kernels have, against Python's integers and fractions."""

import math
import operator
import re
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest

from tinyprune.errors import TinypruneError
from tinyprune.kernels.cuda.emulator.driver import Emulator

N = 64  # numbers of each operand: two warps
NUMPY = {"s16": np.int16, "u16": np.uint16, "s32": np.int32, "u32": np.uint32, "b32": np.uint32, "f32": np.float32}
NUMPY |= {"s64": np.int64, "u64": np.uint64, "b64": np.uint64, "f64": np.float64, "pred": np.uint32}
LETTER = {1: "%p", 16: "%rs", 32: "%r", 64: "%rd"}


def bits_of(kind):
    return 1 if kind == "pred" else int(kind[1:])


def ptx(body, arrays, shared=""):
    """A kernel with pointers to `arrays` arrays, and thread t in %r0; %rd100 + n is the address of array n."""
    parameters = ",".join(f".param .u64 p{n}" for n in range(arrays))
    pointers = "".join(f"ld.param.u64 %rd{100 + n}, [p{n}];\n" for n in range(arrays))
    registers = ".reg .pred %p<9>;\n.reg .b16 %rs<99>;\n.reg .b32 %r<99>;\n.reg .f32 %f<99>;\n.reg .b64 %rd<199>;\n"
    return (
        f".visible .entry k({parameters})\n{{\n{registers}{shared}\nmov.u32 %r0, %tid.x;\n{pointers}{body}\nret;\n}}\n"
    )


def launched(text, *arrays):
    """Run a kernel on arrays, which it may change."""
    emulator = Emulator(size=2**20)
    places = [emulator.allocate(x.nbytes) for x in arrays]
    for place, x in zip(places, arrays, strict=True):
        emulator.begin(place, x.nbytes)
        emulator.write(place, x)
    packed = SimpleNamespace(buffer=np.array(places, np.uint64).view(np.uint8))
    kernel = emulator.load(lambda capability, ptx: ("k", text.encode()))
    emulator.launch(kernel, (1, 1, 1), (N, 1, 1), packed, "k")
    for place, x in zip(places, arrays, strict=True):
        emulator.read(place, x)


def address(n, size):
    """Code that leaves the address of a thread's number of array n in %rd{10 + n}."""
    return f"mul.wide.u32 %rd{10 + n}, %r0, {size};\nadd.s64 %rd{10 + n}, %rd{100 + n}, %rd{10 + n};\n"


def computed(instruction, to, operands):
    """The result of an instruction for every thread; `operands`: pairs of a type and numbers."""
    code, names, arrays = "", [], [np.zeros(N, NUMPY[to])]
    for n, (kind, numbers) in enumerate(operands, 1):
        arrays.append(np.array(numbers, NUMPY[kind]))
        width = 32 if kind == "pred" else bits_of(kind)
        names.append(f"{LETTER[width]}{n + 30}")
        code += address(n, arrays[-1].itemsize) + f"ld.global.b{width} {names[-1]}, [%rd{10 + n}];\n"
        if kind == "pred":
            code += f"setp.ne.u32 %p{n}, {names[-1]}, 0;\n"
            names[-1] = f"%p{n}"
    d = f"{LETTER[bits_of(to)]}{'8' if to == 'pred' else 50}"
    code += address(0, arrays[0].itemsize) + f"{instruction} {', '.join([d, *names])};\n"
    if to == "pred":
        code += f"selp.u32 %r50, 1, 0, {d};\n"
        d = "%r50"
    code += f"st.global.b{max(bits_of(to), 16) if to != 'pred' else 32} [%rd10], {d};"
    launched(ptx(code, len(arrays)), *arrays)
    return arrays[0]


def integers(kind, rng):
    """Random numbers of every magnitude, and the ends of the type's range."""
    bits, signed = bits_of(kind), kind[0] == "s"
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    found = [low, high, 0, 1, high // 2]
    while len(found) < N:
        x = int(rng.integers(0, 2**63)) >> int(rng.integers(0, 63))
        found.append((x & high) * (-1 if signed and rng.random() < 0.5 else 1))
    return [found[i] for i in rng.permutation(N)]


def wrapped(x, kind):
    bits = bits_of(kind)
    x &= 2**bits - 1
    return x - 2**bits if kind[0] == "s" and x >> (bits - 1) else x


INTEGERS = {
    "add": operator.add,
    "sub": operator.sub,
    "mul.lo": operator.mul,
    "min": min,
    "max": max,
    "div": lambda x, y: int(Fraction(x, y)) if y else -1,
    "rem": lambda x, y: x - int(Fraction(x, y)) * y if y else x,
}


def assert_integers(instruction, to, function, *operands):
    """An instruction computes `function` of every thread's operands, modulo 2 to the number of bits."""
    rows = zip(*(numbers for _, numbers in operands), strict=True)
    expected = [wrapped(int(function(*row)), to) for row in rows]
    assert computed(instruction, to, operands).tolist() == expected, instruction


@pytest.mark.parametrize("kind", ["s32", "u32", "s64"])
@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name, kind, rng):
    assert_integers(f"{name}.{kind}", kind, INTEGERS[name], *[(kind, integers(kind, rng)) for _ in range(2)])


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_products_of_twice_the_width(kind, rng):
    wide = f"{kind[0]}64"
    factors, z = [(kind, integers(kind, rng)) for _ in range(2)], integers(wide, rng)
    assert_integers(f"mul.wide.{kind}", wide, operator.mul, *factors)
    assert_integers(f"mad.wide.{kind}", wide, lambda a, b, c: a * b + c, *factors, (wide, z))
    low = (kind, [wrapped(c, kind) for c in z])
    assert_integers(f"mad.lo.{kind}", kind, lambda a, b, c: a * b + c, *factors, low)


@pytest.mark.parametrize("bits", [32, 64])
def test_bits(bits, rng):
    kind, signed = f"b{bits}", f"s{bits}"
    x, y = ((kind, integers(f"u{bits}", rng)) for _ in range(2))
    by, length = (("u32", [int(n) for n in rng.integers(0, bits + 9, N)]) for _ in range(2))
    for name, function in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        assert_integers(f"{name}.{kind}", kind, function, x, y)
    assert_integers(f"not.{kind}", kind, operator.invert, x)
    assert_integers(f"neg.{signed}", kind, operator.neg, x)
    assert_integers(f"shl.{kind}", kind, operator.lshift, x, by)
    assert_integers(f"shr.u{bits}", kind, operator.rshift, x, by)
    assert_integers(f"shr.{signed}", signed, operator.rshift, (signed, integers(signed, rng)), by)

    def inserted(a, b, at, n):
        mask = ((1 << n) - 1 << at) % 2**bits
        return b & ~mask | (a << at) & mask

    assert_integers(f"bfi.{kind}", kind, inserted, x, y, by, length)


def test_words_are_taken_apart_and_joined(rng):
    x, y = integers("u32", rng), integers("u32", rng)
    both = [b << 32 | a for a, b in zip(x, y, strict=True)]
    code = address(0, 8) + "ld.global.b64 %rd1, [%rd10];\nmov.b64 {%r1, %r2}, %rd1;\nmov.b64 %rd2, {%r2, %r1};\n"
    swapped = np.array(both, np.uint64)
    launched(ptx(code + "st.global.b64 [%rd10], %rd2;", 1), swapped)
    assert swapped.tolist() == [a << 32 | b for a, b in zip(x, y, strict=True)]


def floats(kind, rng):
    """Numbers of every magnitude, those too small to be normal, zeros, infinities and NaN."""
    dtype = NUMPY[kind]
    about = np.finfo(dtype)
    x = rng.standard_normal(N) * 2.0 ** rng.integers(-30, 30, N)
    x[:9] = [0.0, -0.0, np.inf, -np.inf, np.nan, about.tiny / 4, -about.tiny / 8, about.max, 1.0]
    return rng.permutation(x.astype(dtype))


def nearest(q, kind, down=False):
    """A fraction, rounded to the nearest number of a type, to even in between; or downwards."""
    if not q:
        return 0.0
    digits, least = (24, -149) if kind == "f32" else (53, -1074)
    size = abs(q).numerator.bit_length() - abs(q).denominator.bit_length()
    size += abs(q) >= Fraction(2) ** (size + 1)
    size -= abs(q) < Fraction(2) ** size
    unit = Fraction(2) ** max(size - digits + 1, least)
    whole = math.floor(q / unit) if down else round(q / unit)
    if not whole:
        return math.copysign(0.0, -1 if q < 0 else 1)
    limit = (2**digits - 1) * Fraction(2) ** (127 - 23 if kind == "f32" else 1023 - 52)
    return math.inf * (1 if whole > 0 else -1) if abs(whole * unit) > limit else float(whole * unit)


def same(got, expected):
    """Whether numbers are equal, zeros in their sign, too."""
    got, expected = np.asarray(got, float), np.asarray(expected, float)
    fine = (got == expected) & (np.signbit(got) == np.signbit(expected))
    return bool((fine | (np.isnan(got) & np.isnan(expected))).all())


def exactly(function, kind, *operands):
    """`function` of fractions, rounded once; Python's own where something is not finite, or the result is 0."""
    found = []
    for values in (tuple(map(float, row)) for row in zip(*operands, strict=True)):
        try:
            q = function(*map(Fraction, values))
            found.append(nearest(q, kind) if q else function(*values))
        except (OverflowError, ValueError, ZeroDivisionError):  # infinity, NaN, a division by 0
            with np.errstate(all="ignore"):
                found.append(float(function(*map(np.float64, values))))
    return found


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_floats_are_rounded_once(kind, rng):
    x, y, z = (floats(kind, rng) for _ in range(3))
    for name in ("add", "sub", "mul", "div.rn"):
        function = getattr(operator, name.replace("div.rn", "truediv"))
        assert same(computed(f"{name}.{kind}", kind, [(kind, x), (kind, y)]), exactly(function, kind, x, y)), name
    sums = exactly(lambda a, b, c: a * b + c, kind, x, y, z)
    assert same(computed(f"fma.rn.{kind}", kind, [(kind, x), (kind, y), (kind, z)]), sums)
    with np.errstate(all="ignore"):
        near = (-x * y + x * NUMPY[kind](2.0**-20)).astype(NUMPY[kind])  # where a second rounding would be seen
    near[~np.isfinite(near)] = 0
    close = exactly(lambda a, b, c: a * b + c, kind, x, y, near)
    assert same(computed(f"fma.rn.{kind}", kind, [(kind, x), (kind, y), (kind, near)]), close)
    with np.errstate(all="ignore"):
        for name, expected in {"sqrt.rn": np.sqrt(x), "rcp.rn": 1 / x, "neg": -x, "abs": abs(x)}.items():
            assert same(computed(f"{name}.{kind}", kind, [(kind, x)]), expected), name


def test_rounding_down(rng):
    x, y, z = (rng.standard_normal(N).astype(np.float32) for _ in range(3))
    z[::2] = (-x * y)[::2]
    exact = [Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c)) for a, b, c in zip(x, y, z, strict=True)]
    got = computed("fma.rm.f32", "f32", [("f32", x), ("f32", y), ("f32", z)])
    assert same(got, [nearest(q, "f32", down=True) for q in exact])


def test_smaller_and_larger(rng):
    x, y = floats("f32", rng), floats("f32", rng)
    for name, function in (("min", np.fmin), ("max", np.fmax)):
        expected = function(x, y)
        zeros = (x == 0) & (y == 0)
        either = np.signbit(x) | np.signbit(y) if name == "min" else np.signbit(x) & np.signbit(y)
        expected[zeros] = np.where(either, -0.0, 0.0)[zeros]
        assert same(computed(f"{name}.f32", "f32", [("f32", x), ("f32", y)]), expected)


def test_approximations(rng):
    x = floats("f32", rng)
    with np.errstate(all="ignore"):
        exact = np.exp2(np.where(abs(x) < np.finfo(np.float32).tiny, 0, x).astype(float)).astype(np.float32)
        exact[abs(exact) < np.finfo(np.float32).tiny] = 0
    assert same(computed("ex2.approx.ftz.f32", "f32", [("f32", x)]), exact)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64", "s16", "f32", "f64"])
def test_comparisons(kind, rng):
    numbers = floats if kind[0] == "f" else integers
    x, y = numbers(kind, rng), numbers(kind, rng)
    y[::3] = x[::3]
    operands, other = [(kind, x), (kind, y)], ("pred", [int(n) for n in rng.integers(0, 2, N)])

    def is_nan(a, b):
        return a != a or b != b

    for name in ("eq", "ne", "lt", "le", "gt", "ge"):

        def is_true(a, b, *more, function=getattr(operator, name)):  # noqa: B008
            return function(a, b) and not is_nan(a, b) and all(more)

        assert_integers(f"setp.{name}.{kind}", "pred", is_true, *operands)
        assert_integers(f"setp.{name}.and.{kind}", "pred", is_true, *operands, other)
        if kind[0] == "f":
            assert_integers(f"setp.{name}u.{kind}", "pred", lambda a, b, f=is_true: f(a, b) or is_nan(a, b), *operands)
    if kind[0] == "f":
        assert_integers(f"setp.nan.{kind}", "pred", is_nan, *operands)


def test_predicates_and_selection(rng):
    p, q = (("pred", [int(n) for n in rng.integers(0, 2, N)]) for _ in range(2))
    for name, function in {"and": operator.and_, "or": operator.or_, "xor": operator.xor}.items():
        assert_integers(f"{name}.pred", "pred", function, p, q)
    assert_integers("not.pred", "pred", operator.not_, p)
    x, y = (("b64", integers("u64", rng)) for _ in range(2))
    assert_integers("selp.b64", "b64", lambda a, b, c: a if c else b, x, y, p)


@pytest.mark.parametrize("to", ["s32", "u32", "s64", "u64"])
def test_conversions(to, rng):
    for kind in ("s16", "u16", "s32", "u32", "s64", "u64"):
        assert_integers(f"cvt.{to}.{kind}", to, int, (kind, integers(kind, rng)))
    for kind in ("f32", "f64"):
        whole = integers(to, rng)
        got = computed(f"cvt.rn.{kind}.{to}", kind, [(to, whole)])
        assert same(got, [nearest(Fraction(n), kind) for n in whole])


def test_floats_become_other_floats(rng):
    x, y = floats("f32", rng), floats("f64", rng)
    with np.errstate(over="ignore"):
        assert same(computed("cvt.f64.f32", "f64", [("f32", x)]), x.astype(float))
        assert same(computed("cvt.rn.f32.f64", "f32", [("f64", y)]), y.astype(np.float32))
    expected = np.where(np.isnan(x), 0, np.clip(x, 0, 1))
    assert np.array_equal(computed("cvt.sat.f32.f32", "f32", [("f32", x)]), expected)


@pytest.mark.parametrize(
    "code", ["atom.global.add.f32 %f1, [%rd100], %f2", "cvt.rzi.s32.f32 %r1, %f1", "div.u64 %rd1, %rd2, %rd3"]
)
def test_what_is_not_known_is_refused(code):
    with pytest.raises(TinypruneError, match=f"k: the emulator does not know `{re.escape(code)}"):
        launched(ptx(f"{code};", 1), np.zeros(1, np.float32))

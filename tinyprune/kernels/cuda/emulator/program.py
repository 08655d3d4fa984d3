"""PTX, NVIDIA's assembly, as arrays that `machine` executes.

A kernel's text becomes one record an instruction. Registers have numbers; so have the constants that instructions name,
each in a register that nothing writes. (PTX ISA 9.0)
"""

from __future__ import annotations

import keyword
import re
import struct
from collections import Counter, namedtuple
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyprune.errors import TinypruneError



def field_of(name: str) -> str:
    """Return a name as Python allows it: "mul.lo" is mul_lo, "and" is and_."""
    return name.replace(".", "_") + "_" * keyword.iskeyword(name)


def numbered(names: str) -> Any:
    """Return a NamedTuple with the number of each name, which compiled functions know as constants."""
    fields = [field_of(name) for name in names.split()]
    return namedtuple("Numbers", fields)(*range(len(fields)))


def number(numbers: Any, name: str) -> int:
    """Return the number of a name. Raises AttributeError if there is none."""
    return int(getattr(numbers, field_of(name)))


# What an instruction does with its operands: `machine` has one branch for each.
GROUP = numbered(
    "integer float32 float64 convert compare select predicate access parameter pack unpack mma branch exit barrier "
    "nothing"
)
# How the bits of an operand are read, and where memory is.
KIND = numbered("u8 u16 u32 u64 s8 s16 s32 s64 f32 f64 pred")
SPACE = numbered("generic global shared local")
# Operations on integers, on floats of one type, and on predicates; comparisons; ways to round in a conversion.
INTEGER = numbered(
    "add sub mul.lo mul.hi mad.lo mul.wide mad.wide div rem min max neg abs and or xor not mov shl shr popc clz bfi bfe "
    "shf.l.wrap shf.r.wrap prmt"
)
FLOAT = numbered("add sub mul fma div neg abs min max mov sqrt rcp ex2 lg2 rsqrt copysign fms fnma fma.rm")
PREDICATE = numbered("and or xor not mov zero one")
COMPARE = numbered("eq ne lt le gt ge equ neu ltu leu gtu geu num nan")
CONVERT = numbered("rn rni rzi rmi rpi sat tf32")
SPECIALS = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"] + ["%laneid", "%warpid"]

INSTRUCTION = np.dtype(
    [
        (name, np.int32)
        for name in ("group", "op", "kind", "to", "d", "a", "b", "c", "guard", "negated", "flags", "size")
    ]
    + [("count", np.int32), ("line", np.int32), ("offset", np.int64), ("more", np.int32, 14)],
    align=True,
)
WRITES, THROUGH_CACHE, NARROW = 1, 2, 4  # flags of an access: it is a store, ld.nc, and its address has 32 bits
GAP = 128  # bytes between shared arrays, which nothing may touch; a multiple of all banks


class PTXError(TinypruneError):
    """An instruction that the emulator does not know."""


@dataclass
class Program:
    """A kernel's PTX, parsed.

    Attributes:
        name: the kernel's.
        code: an `INSTRUCTION` each.
        text: the same, as PTX has it.
        lines: of each the line in Python, such as "norms.py:56", or "" where PTX does not say it.
        constants: registers that hold a constant, and their 64 bits.
        registers, predicates: how many there are.
        specials: registers that hold %tid.x and so on, by their place in SPECIALS; −1 where none does.
        parameters: bytes of all arguments.
        shared: offset and bytes of each array in shared memory.
        local: bytes of local memory of a thread.
    """

    name: str
    code: NDArray = field(default_factory=lambda: np.zeros(0, INSTRUCTION))
    text: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    constants: dict[int, int] = field(default_factory=dict)
    registers: int = 0
    predicates: int = 0
    specials: list[int] = field(default_factory=lambda: [-1] * len(SPECIALS))
    parameters: int = 0
    shared: list[tuple[int, int]] = field(default_factory=list)
    local: int = 0


def kind_of(name: str) -> int:
    """Return the number of a type; b32 is read as u32."""
    return number(KIND, name.replace("b", "u") if name[0] == "b" else name)


def bits_of(kind: str) -> int:
    """Return the width of a type such as f32."""
    return 1 if kind == "pred" else int(kind[1:])


class Parser:
    """Reads the text of one kernel; `program` is the result.

    Args:
        text: PTX with one entry function.
        name: what the kernel is called in messages.
        fused: whether products whose only use is a sum become one multiply-add with it, as ptxas may do.

    Raises:
        PTXError: if an instruction is not known.
    """

    def __init__(self, text: str, name: str, fused: bool = False) -> None:
        self.program = Program(name)
        self.numbers: dict[str, int] = {}  # of registers and predicates
        self.constants: dict[tuple[str, int], int] = {}
        self.symbols: dict[str, int] = {}  # offsets of arrays in shared and local memory
        self.arguments: dict[str, int] = {}  # offsets
        self.labels: dict[str, int] = {}
        self.jumps: dict[int, str] = {}
        self.found: list[dict[str, Any]] = []
        self.files: dict[str, str] = {}
        self.place = ""  # number of the file, and line, of the instructions that follow
        header, _, body = text.partition("\n{")
        self.read_header(header)
        for line in body.splitlines():
            self.read_line(line.split("//")[0].strip())
        if fused:
            self.fuse()
        self.finish()

    def read_header(self, text: str) -> None:
        """Find the arguments' offsets, as C lays them out, and source files."""
        at = 0
        for array_align, kind, name, count in re.findall(
            r"\.param (?:\.align (\d+) )?\.(\w+)(?: \.ptr[^,\n]*?)? (\w+)(?:\[(\d+)\])?", text
        ):
            size = bits_of(kind) // 8
            align = int(array_align or size)
            at = -(-at // align) * align
            self.arguments[name] = at
            at += size * int(count or 1)
        self.program.parameters = at

    def read_line(self, line: str) -> None:
        """Read a statement."""
        if label := re.match(r"(\$?\w+):(.*)", line):
            self.labels[label[1]] = len(self.found)
            line = label[2].strip()
        if line.startswith(".loc"):
            self.place = " ".join(line.split()[1:3])
        elif line.startswith(".file"):
            _, number, path, *_ = line.split()
            self.files[number] = path.strip('"').rpartition("/")[2]
        elif line.startswith((".shared", ".local")):
            self.read_array(line)
        elif line and line[0] not in ".{})(":
            self.read_instruction(line.rstrip(";").strip())

    def read_array(self, line: str) -> None:
        """Give an array its place in shared or in local memory."""
        space, align, kind, name, count = re.match(
            r"\.(\w+) \.align (\d+) \.(\w+)\s+(\w+)(?:\[(\d+)\])?", line
        ).groups()  # type: ignore[union-attr]
        size = bits_of(kind) // 8 * int(count or 1)
        if space == "shared":
            end = sum(self.program.shared[-1]) + GAP if self.program.shared else 0
            self.symbols[name] = -(-end // GAP) * GAP
            self.program.shared.append((self.symbols[name], size))
        else:
            self.symbols[name] = -(-self.program.local // int(align)) * int(align)
            self.program.local = self.symbols[name] + size

    def read_instruction(self, line: str) -> None:
        """Translate an instruction, and note its predicate."""
        guard, negated, operation, rest = re.match(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", line).group(2, 1, 3, 4)  # type: ignore[union-attr]
        operands = [text.strip() for text in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest)]
        base, *words = operation.split(".")
        try:
            made = self.translate(base, words, operands)
        except (AttributeError, KeyError, ValueError, IndexError) as error:
            raise PTXError(f"{self.program.name}: the emulator does not know `{line}` ({error!r})") from error
        made["guard"] = self.register(guard) if guard else -1
        made["negated"] = int(negated == "!")
        self.found.append(made)
        self.program.text.append(line)
        self.program.lines.append(self.place)

    # Operands.

    def register(self, name: str) -> int:
        """Return the number of a register or predicate; they are counted apart."""
        if name not in self.numbers:
            if name.startswith("%p"):
                self.numbers[name] = self.program.predicates
                self.program.predicates += 1
            else:
                self.numbers[name] = self.program.registers
                self.program.registers += 1
        if name in SPECIALS:
            self.program.specials[SPECIALS.index(name)] = self.numbers[name]
        return self.numbers[name]

    def operand(self, text: str, kind: str) -> int:
        """Return the register of an operand, which may be a constant."""
        if text.startswith("%"):
            return self.register(text)
        if text in self.symbols:
            value = self.symbols[text]
        elif text.startswith(("0f", "0d")):
            value = int(text[2:], 16)
        elif kind in ("f32", "f64"):
            value = int.from_bytes(struct.pack("<f" if kind == "f32" else "<d", float(text)), "little")
        else:
            value = int(text.rstrip("U"), 0)
        value &= 2**64 - 1
        if ("", value) not in self.constants:
            self.constants["", value] = self.program.registers
            self.program.constants[self.program.registers] = value
            self.program.registers += 1
        return self.constants["", value]

    def operands(self, group: str, op: int, kind: str, texts: list[str], **more: Any) -> dict[str, Any]:
        """Return an instruction: the destination, and up to four operands of one type."""
        places = [self.operand(text, kind) for text in texts]
        names = dict(zip("dabc", places, strict=False))
        return {"group": number(GROUP, group), "op": op, "kind": kind_of(kind), "more": places[4:]} | names | more

    # Instructions.

    def translate(self, base: str, words: list[str], o: list[str]) -> dict[str, Any]:
        """Return the record of an instruction as a dict."""
        kind = words[-1] if words else ""
        if base in ("ld", "ldu", "st"):
            return self.access(base, words[:-1], kind, o)
        if base == "bra":
            self.jumps[len(self.found)] = o[0]
            return {"group": GROUP.branch}
        if base in ("ret", "exit"):
            return {"group": GROUP.exit}
        if base in ("bar", "barrier") and "sync" in words and "warp" not in words:
            return {"group": GROUP.barrier, "offset": int(o[0], 0) if o == ["0"] else int("numbered barrier")}
        if base in ("membar", "fence") or base == "bar":
            return {"group": GROUP.nothing}
        if base == "setp":
            return self.compare(words, kind, o)
        if base == "selp":
            return self.operands("select", 0, kind, o[:3], c=self.register(o[3]))
        if kind == "pred":
            if o[1][0] != "%":
                base, o = "one" if int(o[1], 0) else "zero", o[:1] * 2
            places = dict(zip("dab", map(self.register, [*o, o[-1]]), strict=False))
            return places | {"group": GROUP.predicate, "op": number(PREDICATE, base)}
        if base == "mov" and "{" in "".join(o):
            return self.halves(o)
        if base == "cvta":
            return self.operands("integer", number(INTEGER, "mov"), "u64", o)  # one address space for all
        if base == "cvt":
            return self.convert(words[:-2], words[-2], kind, o)
        if base == "mma":
            parts = [re.findall(r"%\w+", part) for part in o]
            return {"group": GROUP.mma, "more": [self.register(x) for part in parts for x in part]}
        if kind in ("f32", "f64"):
            modes = [word for word in words[:-1] if word not in ("rn", "ftz", "approx", "full")]
            name = ".".join([base, *modes])
            flags = int("ftz" in words)
            return self.operands(
                "float32" if kind == "f32" else "float64", number(FLOAT, name), kind, o, flags=flags
            )
        modes = [word for word in words[:-1] if word in ("lo", "hi", "wide", "l", "r", "wrap")]
        return self.operands("integer", number(INTEGER, ".".join([base, *modes])), kind, o)

    def compare(self, words: list[str], kind: str, o: list[str]) -> dict[str, Any]:
        """Translate setp: d[|q] = (a ? b) [and, or, xor c]."""
        name = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(words[0], words[0])
        first, _, second = o[0].partition("|")
        made = self.operands("compare", number(COMPARE, name), kind, ["0", o[1], o[2]])
        made |= {"d": self.register(first), "to": self.register(second) if second and second != "_" else -1}
        if len(o) > 3:
            made |= {"flags": 1 + "and or xor".split().index(words[1]), "c": self.register(o[3].lstrip("!"))}
            made["size"] = int(o[3].startswith("!"))
        return made

    def halves(self, o: list[str]) -> dict[str, Any]:
        """Translate mov between a register of 64 bits and two of 32."""
        unpack = "{" in o[0]
        low, high = (text.strip() for text in o[0 if unpack else 1].strip("{}").split(","))
        if unpack:
            places = {"d": self.register(low), "b": self.register(high), "a": self.operand(o[1], "u64")}
        else:
            places = {"d": self.register(o[0]), "a": self.operand(low, "u32"), "b": self.operand(high, "u32")}
        return {"group": GROUP.unpack if unpack else GROUP.pack} | places

    def convert(self, modes: list[str], to: str, kind: str, o: list[str]) -> dict[str, Any]:
        """Translate cvt: an integer or a float of one type becomes one of another."""
        mode = "tf32" if to == "tf32" else next((m for m in modes if m in CONVERT._fields), "rn")
        op = number(CONVERT, mode)
        target = kind_of("u32" if to == "tf32" else to)
        return self.operands("convert", op, kind, [o[1]], d=self.register(o[0]), a=self.operand(o[1], kind), to=target)

    def access(self, base: str, words: list[str], kind: str, o: list[str]) -> dict[str, Any]:
        """Translate a load or a store of one, two or four numbers."""
        values, where = (o[1], o[0]) if base == "st" else (o[0], o[1])
        numbers = [self.operand(text.strip(), kind) for text in values.strip("{}").split(",")]
        name, _, offset = (text.strip() for text in where.strip("[]").partition("+"))
        made = {"kind": kind_of(kind), "size": bits_of(kind) // 8, "count": len(numbers), "more": numbers}
        if "param" in words:
            return made | {"group": GROUP.parameter, "offset": self.arguments[name] + int(offset or 0)}
        flags = WRITES * (base == "st") | THROUGH_CACHE * ("nc" in words)
        if not name.startswith("%"):
            offset, name = self.symbols[name] + int(offset or 0), "0"
        elif not name.startswith("%rd"):
            flags |= NARROW
        space = next((number(SPACE, word) for word in words if word in SPACE._fields), 0)
        more = {"group": GROUP.access, "a": self.operand(name, "u64"), "offset": int(offset or 0)}
        return made | more | {"to": space, "flags": flags}

    def fuse(self) -> None:
        """Make multiply-adds of products whose only use is the sum that follows in the same straight piece of code."""
        float32 = GROUP.float32
        uses = Counter(
            made[x] for made in self.found for x in "abc" if x in made and made["group"] in (float32, GROUP.select)
        )
        uses += Counter(x for made in self.found for x in made.get("more", ()))
        uses += Counter(
            made[x]
            for made in self.found
            for x in "ab"
            if made["group"] in (GROUP.compare, GROUP.convert, GROUP.integer) and x in made
        )
        products: dict[int, tuple[int, int]] = {}
        starts = {*self.labels.values()}
        for n, made in enumerate(self.found):
            if n in starts or made["group"] == GROUP.branch:
                products.clear()
            is_sum = made["group"] == float32 and made["op"] in (FLOAT.add, FLOAT.sub) and made["guard"] < 0
            if is_sum and self.program.text[n].split()[0] in ("add.f32", "sub.f32"):
                minus = made["op"] == FLOAT.sub
                for x, other, name in (("a", "b", "fms" if minus else "fma"), ("b", "a", "fnma" if minus else "fma")):
                    if made[x] in products and uses[made[x]] == 1:
                        a, b = products[made[x]]
                        made |= {"op": number(FLOAT, name), "a": a, "b": b, "c": made[other]}
                        break
            written = {made["d"]} if "d" in made else {*made.get("more", ())}
            products = {d: ab for d, ab in products.items() if not written & {d, *ab}}
            if made["group"] == float32 and self.program.text[n].split()[0] == "mul.f32" and made["guard"] < 0:
                if made["d"] not in (made["a"], made["b"]):
                    products[made["d"]] = made["a"], made["b"]

    def finish(self) -> None:
        """Write the records."""
        code = np.zeros(len(self.found), INSTRUCTION)
        for n, made in enumerate(self.found):
            for name, value in made.items():
                if name == "more":
                    code[n]["more"][: len(value)] = value
                else:
                    code[n][name] = value
            if n in self.jumps:
                code[n]["to"] = self.labels[self.jumps[n]]
        self.program.code = code
        places = (place.partition(" ") for place in self.program.lines)
        self.program.lines = [f"{self.files[file]}:{row}" if file in self.files else "" for file, _, row in places]

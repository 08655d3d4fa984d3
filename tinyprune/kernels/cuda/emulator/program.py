"""PTX, NVIDIA's assembly, as an array that `machine` executes (PTX ISA 9.0).

An instruction becomes a record. Registers have numbers; so have the constants that instructions name, each in a
register that nothing writes.
"""

from __future__ import annotations

import keyword
import re
from collections import Counter, namedtuple
from typing import Any

import numpy as np

from tinyprune.errors import TinypruneError


def field_of(name: str) -> str:
    """Return a name as Python allows it: "mul.lo" is mul_lo, "and" is and_."""
    return name.replace(".", "_") + "_" * keyword.iskeyword(name)


def numbered(names: str) -> Any:
    """Return a NamedTuple with the number of each name, which compiled functions know as constants."""
    fields = [field_of(name) for name in names.split()]
    return namedtuple("Numbers", fields)(*range(len(fields)))


# What an instruction does with its operands: `machine` has one branch for each.
GROUP = numbered(
    "integer float32 float64 convert compare select predicate access parameter pack unpack mma branch exit barrier "
    "nothing"
)
FLOATS = {"f32": GROUP.float32, "f64": GROUP.float64}
# How the bits of an operand are read: 4 types without a sign, 4 with one.
KIND = numbered("u8 u16 u32 u64 s8 s16 s32 s64 f32 f64")
# Operations on integers and on floats of one type, and how a conversion rounds.
INTEGER = numbered("add sub mul.lo mad.lo mul.wide mad.wide div rem min max neg and or xor not mov shl shr bfi")
FLOAT = numbered("add sub mul fma div neg abs min max sqrt rcp ex2.ftz fms fnma fma.rm")
CONVERT = numbered("rn sat tf32")
# What a sum becomes if its first, or its second operand is a product.
FUSED = {"add.f32": ("fma", "fma"), "sub.f32": ("fms", "fnma")}
# Relations for which a comparison is true: 1 less, 2 equal, 4 greater, 8 one is NaN.
COMPARE = {"lt": 1, "eq": 2, "le": 3, "gt": 4, "ne": 5, "ge": 6, "num": 7, "nan": 8}
COMPARE |= {f"{name}u": 8 | COMPARE[name] for name in ("lt", "eq", "le", "gt", "ne", "ge")} | {"lo": 1, "ls": 3}
COMPARE |= {"hi": 4, "hs": 6}
# Truth tables of two predicates: 8 both, 4 only the first, 2 only the second, 1 none.
PREDICATE = {"and": 8, "or": 14, "xor": 6, "not": 3, "mov": 12, "0": 0, "1": 15}
SPECIALS = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]

INSTRUCTION = np.dtype(
    [(name, np.int32) for name in ("group", "op", "kind", "to", "d", "a", "b", "c", "guard", "negated", "flags")]
    + [("size", np.int32), ("count", np.int32), ("offset", np.int64), ("more", np.int32, 14)],
    align=True,
)
WRITES, NARROW, SHARED = 1, 2, 4  # flags of an access: a store, an address of 32 bits, shared memory
GAP = 128  # bytes between shared arrays, which nothing may touch; a multiple of all banks


def number(numbers: Any, name: str) -> int:
    """Return the number of a name. Raises AttributeError if there is none."""
    return int(getattr(numbers, field_of(name)))


def kind_of(name: str) -> int:
    """Return the number of a type; b32 is read as u32."""
    return number(KIND, name.replace("b", "u"))


def bytes_of(name: str) -> int:
    """Return the size of a type."""
    return int(name[1:]) // 8


class Program:
    """A kernel, parsed.

    Args:
        text: PTX with one entry function.
        name: what the kernel is called in messages.
        fused: whether products whose only use is a sum become one multiply-add with it, as ptxas may do.

    Attributes:
        code: (instructions,), an `INSTRUCTION` each.
        text, lines: of each instruction, the PTX, and the line in Python such as "norms.py:56", or "".
        constants, specials: registers that hold a constant, and its 64 bits; registers of SPECIALS, −1 where none is.
        registers, predicates, shared: how many a thread has, and bytes of shared memory.
        arrays: offset and bytes of each array in shared memory.

    Raises:
        TinypruneError: if an instruction is not known.
    """

    def __init__(self, text: str, name: str, fused: bool = False) -> None:
        self.name = name
        self.text: list[str] = []
        self.lines: list[str] = []
        self.constants: dict[int, int] = {}
        self.specials = [-1] * len(SPECIALS)
        self.registers = self.predicates = self.shared = at = 0
        self.arrays: list[tuple[int, int]] = []
        self._places: dict[str | int, int] = {}  # of registers, predicates and constants
        self._offsets: dict[str, int] = {}  # of arguments, and of arrays in shared memory
        self._labels: dict[str, int] = {}
        self._records: list[dict[str, Any]] = []
        self._files: dict[str, str] = {}
        self._line = ""
        header, _, body = text.partition("\n{")
        for kind, argument in re.findall(r"\.param \.(\w+)(?: \.ptr[^,\n]*?)? (\w+)", header):
            self._offsets[argument] = -(-at // bytes_of(kind)) * bytes_of(kind)
            at = self._offsets[argument] + bytes_of(kind)
        for line in body.splitlines():
            self._read(line.split("//")[0].strip())
        if fused:
            self._fuse()
        self.code = np.zeros(len(self._records), INSTRUCTION)
        for record, made in zip(self.code, self._records, strict=True):
            for field, value in made.items():
                if field == "more":
                    record["more"][: len(value)] = value
                else:
                    record[field] = self._labels[value] if isinstance(value, str) else value
        places = (line.partition(" ") for line in self.lines)
        self.lines = [f"{self._files[file]}:{row}" if file in self._files else "" for file, _, row in places]

    def _read(self, line: str) -> None:
        """Read a statement."""
        if label := re.match(r"(\$?\w+):(.*)", line):
            self._labels[label[1]] = len(self._records)
            line = label[2].strip()
        if line.startswith(".loc"):
            self._line = " ".join(line.split()[1:3])
        elif line.startswith(".file"):
            _, file, path, *_ = line.split()
            self._files[file] = path.strip('"').rpartition("/")[2]
        elif array := re.match(r"\.shared \.align \d+ \.(\w+)\s+(\w+)(?:\[(\d+)\])?", line):
            self._offsets[array[2]] = at = -(-self.shared // GAP) * GAP
            self.arrays.append((at, bytes_of(array[1]) * int(array[3] or 1)))
            self.shared = sum(self.arrays[-1]) + GAP
        elif found := re.match(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)$", line.rstrip("; ")):
            negated, guard, name, rest = found.groups()
            operands = [text.strip() for text in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest)]
            try:
                made = self._translate(*name.split("."), operands=operands)
            except (AttributeError, KeyError, ValueError, IndexError) as error:
                raise TinypruneError(f"{self.name}: the emulator does not know `{line}`") from error
            self._records.append({"guard": -1, "negated": negated == "!"} | made)
            if guard:
                self._records[-1]["guard"] = self._register(guard)
            self.text.append(line)
            self.lines.append(self._line)
        elif line and line[0] not in ".{})(":
            raise TinypruneError(f"{self.name}: the emulator does not know `{line}`")

    def _register(self, name: str) -> int:
        """Return the number of a register, or of a predicate; they are counted apart."""
        if name not in self._places:
            kind = "predicates" if name.startswith("%p") else "registers"
            self._places[name] = getattr(self, kind)
            setattr(self, kind, self._places[name] + 1)
        if name in SPECIALS:
            self.specials[SPECIALS.index(name)] = self._places[name]
        return self._places[name]

    def _operand(self, text: str) -> int:
        """Return the register of an operand, which may be a constant."""
        if text.startswith("%"):
            return self._register(text)
        if text in self._offsets:
            value = self._offsets[text]
        else:
            value = int(text[2:], 16) if text[:2] in ("0f", "0d") else int(text.rstrip("U"), 0)
        value &= 2**64 - 1
        if value not in self._places:
            self._places[value] = self.registers
            self.constants[self.registers] = value
            self.registers += 1
        return self._places[value]

    def _computation(self, group: int, op: int, kind: str, texts: list[str]) -> dict[str, Any]:
        """Return an instruction with a destination and up to four operands of one type."""
        places = [self._operand(text) for text in texts]
        named = dict(zip("dabc", places, strict=False))
        return named | {"group": group, "op": op, "kind": kind_of(kind), "more": places[4:]}

    def _translate(self, base: str, *words: str, operands: list[str]) -> dict[str, Any]:
        """Return the fields of an instruction."""
        o, kind = operands, words[-1] if words else ""
        if base in ("ld", "st"):
            return self._access(base, words[:-1], kind, o)
        if base == "bra":
            return {"group": GROUP.branch, "to": o[0]}
        if base in ("ret", "exit"):
            return {"group": GROUP.exit}
        if base in ("bar", "barrier") and "sync" in words and o == ["0"]:
            return {"group": GROUP.barrier}
        if base in ("membar", "fence"):
            return {"group": GROUP.nothing}
        if base == "setp":
            first, _, second = o[0].partition("|")
            made = self._computation(GROUP.compare, COMPARE[words[0]], kind, ["0", *o[1:3]])
            made |= {"d": self._register(first), "to": -1}
            if second not in ("", "_"):
                made["to"] = self._register(second)
            if len(o) > 3:
                made |= {"flags": PREDICATE[words[1]], "c": self._register(o[3].lstrip("!")), "size": "!" in o[3]}
            return made
        if base == "selp":
            return self._computation(GROUP.select, 0, kind, o[:3]) | {"c": self._register(o[3])}
        if kind == "pred":
            op = base if o[1][0] == "%" else str(abs(int(o[1])))
            places = [self._register(text) for text in o if text[0] == "%"]
            named = dict(zip("dab", [*places, *2 * places[-1:]], strict=False))
            return named | {"group": GROUP.predicate, "op": PREDICATE[op]}
        if base == "mov" and "{" in o[0] + o[1]:
            low, high = (self._operand(text.strip()) for text in o["{" in o[1]].strip("{}").split(","))
            if "{" in o[0]:
                return {"group": GROUP.unpack, "d": low, "b": high, "a": self._operand(o[1])}
            return {"group": GROUP.pack, "d": self._register(o[0]), "a": low, "b": high}
        if base == "cvta":  # all memory has one range of addresses, as far as kernels take them
            return self._computation(GROUP.integer, INTEGER.mov, "u64", o)
        if base == "cvt":
            to, how = words[-2], ".".join(words[:-2]) or "rn"
            if to == "tf32":
                to, how = "u32", "tf32"
            return self._computation(GROUP.convert, number(CONVERT, how), kind, o) | {"to": kind_of(to)}
        if base == "mma":
            registers = [self._register(name) for part in o for name in re.findall(r"%\w+", part)]
            return {"group": GROUP.mma, "more": registers}
        if kind in FLOATS and base != "mov":
            name = ".".join([base, *(word for word in words[:-1] if word not in ("rn", "approx", "full"))])
            return self._computation(FLOATS[kind], number(FLOAT, name), kind, o)
        if kind == "u64" and base in ("div", "rem", "min", "max"):
            raise ValueError("numbers of 64 bits without a sign")
        return self._computation(GROUP.integer, number(INTEGER, ".".join([base, *words[:-1]])), kind, o)

    def _access(self, base: str, words: tuple[str, ...], kind: str, o: list[str]) -> dict[str, Any]:
        """Translate a load or a store of one, two or four numbers."""
        values, where = (o[1], o[0]) if base == "st" else (o[0], o[1])
        numbers = [self._operand(text.strip()) for text in values.strip("{}").split(",")]
        name, _, offset = (text.strip() for text in where.strip("[]").partition("+"))
        made = {"kind": kind_of(kind), "size": bytes_of(kind), "count": len(numbers), "more": numbers}
        if "param" in words:
            return made | {"group": GROUP.parameter, "offset": self._offsets[name] + int(offset or 0)}
        flags = WRITES * (base == "st") | SHARED * ("shared" in words)
        flags |= NARROW * (name.startswith("%r") and name[2] != "d")
        if name[0] != "%":
            name, offset = "0", str(self._offsets[name] + int(offset or 0))
        return made | {"group": GROUP.access, "a": self._operand(name), "offset": int(offset or 0), "flags": flags}

    def _fuse(self) -> None:
        """Make multiply-adds of products whose only use is a sum that follows in the same straight piece of code."""
        uses = Counter(made[x] for made in self._records for x in "abc" if x in made and made["group"] <= GROUP.select)
        uses += Counter(x for made in self._records for x in made.get("more", ()))
        products: dict[int, tuple[int, int]] = {}
        for n, made in enumerate(self._records):
            if n in self._labels.values() or made["group"] == GROUP.branch:
                products.clear()
            name, d = self.text[n].split()[0], made.get("d", -1)  # mul.rn and add.rn are not fused
            for x, other, op in zip("ab", "ba", FUSED.get(name, ()), strict=False):
                if made[x] in products and uses[made[x]] == 1:
                    a, b = products[made[x]]
                    made |= {"op": number(FLOAT, op), "a": a, "b": b, "c": made[other]}
                    break
            written = {d, *made.get("more", ())}
            products = {at: ab for at, ab in products.items() if not written & {at, *ab}}
            if name == "mul.f32" and d not in (made["a"], made["b"]):
                products[d] = made["a"], made["b"]

# SPDX-License-Identifier: Apache-2.0
"""A small Xtensa assembler and ELF writer for the tests of lx7sim.

It encodes from the opcode maps of the Instruction Set Architecture Reference Manual (chapter 7), not from the
simulator's decoder, and needs no cross toolchain. Operands come in the manual's order; branch and call targets are
labels.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

VECTORS = 0x3C00  #: literals lie before vectors and code: L32R only reaches back
CODE = 0x4000

B4CONST = (-1, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64, 128, 256)
B4CONSTU = (32768, 65536, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 32, 64, 128, 256)

SPECIAL = {
    "lbeg": 0,
    "lend": 1,
    "lcount": 2,
    "sar": 3,
    "br": 4,
    "scompare1": 12,
    "windowbase": 72,
    "windowstart": 73,
    "memctl": 97,
    "atomctl": 99,
    "cpenable": 224,
    "interrupt": 226,
    "intset": 226,
    "intclear": 227,
    "intenable": 228,
    "ps": 230,
    "vecbase": 231,
    "exccause": 232,
    "ccount": 234,
    "prid": 235,
    "excvaddr": 238,
    "depc": 192,
    **{f"epc{n}": 176 + n for n in range(1, 8)},
    **{f"eps{n}": 192 + n for n in range(2, 8)},
    **{f"excsave{n}": 208 + n for n in range(1, 8)},
    **{f"ccompare{n}": 240 + n for n in range(3)},
    **{f"misc{n}": 244 + n for n in range(2)},
}

# three registers: name: (op1, op2), operands r, s, t
RRR = {
    "and": (0, 1),
    "or": (0, 2),
    "xor": (0, 3),
    "add": (0, 8),
    "addx2": (0, 9),
    "addx4": (0, 10),
    "addx8": (0, 11),
    "sub": (0, 12),
    "subx2": (0, 13),
    "subx4": (0, 14),
    "subx8": (0, 15),
    "src": (1, 8),
    "mul16u": (1, 12),
    "mul16s": (1, 13),
    "mull": (2, 8),
    "muluh": (2, 10),
    "mulsh": (2, 11),
    "quou": (2, 12),
    "quos": (2, 13),
    "remu": (2, 14),
    "rems": (2, 15),
    "min": (3, 4),
    "max": (3, 5),
    "minu": (3, 6),
    "maxu": (3, 7),
    "moveqz": (3, 8),
    "movnez": (3, 9),
    "movltz": (3, 10),
    "movgez": (3, 11),
    "movf": (3, 12),
    "movt": (3, 13),
    "andb": (2, 0),
    "andbc": (2, 1),
    "orb": (2, 2),
    "orbc": (2, 3),
    "xorb": (2, 4),
    "add.s": (10, 0),
    "sub.s": (10, 1),
    "mul.s": (10, 2),
    "madd.s": (10, 4),
    "msub.s": (10, 5),
    "maddn.s": (10, 6),
    "divn.s": (10, 7),
    "round.s": (10, 8),
    "trunc.s": (10, 9),
    "floor.s": (10, 10),
    "ceil.s": (10, 11),
    "float.s": (10, 12),
    "ufloat.s": (10, 13),
    "utrunc.s": (10, 14),
    "un.s": (11, 1),
    "oeq.s": (11, 2),
    "ueq.s": (11, 3),
    "olt.s": (11, 4),
    "ult.s": (11, 5),
    "ole.s": (11, 6),
    "ule.s": (11, 7),
    "moveqz.s": (11, 8),
    "movnez.s": (11, 9),
    "movltz.s": (11, 10),
    "movgez.s": (11, 11),
    "movf.s": (11, 12),
    "movt.s": (11, 13),
    "lsx": (8, 0),
    "lsxp": (8, 1),
    "ssx": (8, 4),
    "ssxp": (8, 5),
}
# FP1OP: two registers r, s; name: t
FP1 = {
    "mov.s": 0,
    "abs.s": 1,
    "const.s": 3,
    "rfr": 4,
    "wfr": 5,
    "neg.s": 6,
    "div0.s": 7,
    "recip0.s": 8,
    "sqrt0.s": 9,
    "rsqrt0.s": 10,
    "nexp01.s": 11,
    "mksadj.s": 12,
    "mkdadj.s": 13,
    "addexp.s": 14,
    "addexpm.s": 15,
}
# op0 = 2: operands t, s, offset; name: (r, scale)
LSAI = {
    "l8ui": (0, 1),
    "l16ui": (1, 2),
    "l32i": (2, 4),
    "s8i": (4, 1),
    "s16i": (5, 2),
    "s32i": (6, 4),
    "l16si": (9, 2),
    "l32ai": (11, 4),
    "addi": (12, 1),
    "addmi": (13, 256),
    "s32c1i": (14, 4),
    "s32ri": (15, 4),
}
LSCI = {"lsi": 0, "ssi": 4, "lsip": 8, "ssip": 12}
# no operands: the whole word
PLAIN = {
    "ill": 0x000000,
    "ret": 0x000080,
    "retw": 0x000090,
    "isync": 0x002000,
    "rsync": 0x002010,
    "esync": 0x002020,
    "dsync": 0x002030,
    "excw": 0x002080,
    "memw": 0x0020C0,
    "extw": 0x0020D0,
    "nop": 0x0020F0,
    "rfe": 0x003000,
    "rfde": 0x003200,
    "rfwo": 0x003400,
    "rfwu": 0x003500,
    "syscall": 0x005000,
}
NARROW = {"ret.n": 0xF00D, "retw.n": 0xF01D, "nop.n": 0xF03D, "ill.n": 0xF06D}
BRANCH = {
    "bnone": 0,
    "beq": 1,
    "blt": 2,
    "bltu": 3,
    "ball": 4,
    "bbc": 5,
    "bany": 8,
    "bne": 9,
    "bge": 10,
    "bgeu": 11,
    "bnall": 12,
    "bbs": 13,
}
BRANCH_ZERO = {"beqz": 0, "bnez": 1, "bltz": 2, "bgez": 3}
BRANCH_IMMEDIATE = {"beqi": (2, 0), "bnei": (2, 1), "blti": (2, 2), "bgei": (2, 3), "bltui": (3, 2), "bgeui": (3, 3)}
BRANCH_ONE = {"bf": 0, "bt": 1, "loop": 8, "loopnez": 9, "loopgtz": 10}
CALLX = {"callx0": 0xC0, "callx4": 0xD0, "callx8": 0xE0, "callx12": 0xF0, "jx": 0xA0}
CALL = {"call0": 0, "call4": 1, "call8": 2, "call12": 3}
SHIFT_SETUP = {"ssr": 0, "ssl": 1, "ssa8l": 2, "ssa8b": 3}


def _bits(value: int, bits: int, signed: bool = True) -> int:
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if not low <= value <= high:
        raise ValueError(f"{value} does not fit into {bits} bits")
    return value & ((1 << bits) - 1)


def rrr(op0: int, op1: int, op2: int, r: int, s: int, t: int) -> int:
    return op0 | t << 4 | s << 8 | r << 12 | op1 << 16 | op2 << 20


class Assembler:
    """Collects code at a base address; `elf()` resolves the labels."""

    def __init__(self, base: int) -> None:
        self.base = base
        self.image = bytearray(CODE)
        self.labels: dict[str, int] = {}
        self._fixups: list[tuple[int, int, Callable[[int, int], int], str]] = []
        self._pool: dict[int | str, int] = {}
        self._unique = 0

    @property
    def here(self) -> int:
        return self.base + len(self.image)

    def label(self, name: str = "") -> str:
        """Marks this address; makes a name up when none is given."""
        name = name or self.new_label()
        if name in self.labels:
            raise ValueError(f"label {name} twice")
        self.labels[name] = self.here
        return name

    def new_label(self) -> str:
        self._unique += 1
        return f".{self._unique}"

    def align(self, n: int) -> None:
        """Fills with zero bytes, which must not be executed."""
        self.image += bytes(-len(self.image) % n)

    def align_code(self, phase: int = 0) -> None:
        """Fills with no-operations up to an address that is phase modulo four."""
        padding = {0: (), 1: ("nop.n", "nop"), 2: ("nop.n",), 3: ("nop",)}
        for name in padding[(phase - len(self.image)) % 4]:
            self(name)

    def vector(self, offset: int, code: Callable[[], None]) -> None:
        """Puts code into the vector page."""
        offset += VECTORS
        after, self.image = self.image, self.image[:offset]
        code()
        end = len(self.image)
        if end > offset + 0x40:
            raise ValueError("vector too long")
        self.image = self.image + after[end:]

    def word(self, value: int) -> None:
        self.image += struct.pack("<I", value & 0xFFFFFFFF)

    def raw(self, code: bytes) -> None:
        self.image += code

    def _put(self, value: int, length: int = 3) -> None:
        self.image += value.to_bytes(length, "little")

    def _put_relative(self, word: int, length: int, target: str, field: Callable[[int, int], int]) -> None:
        """field(pc, target) gives the bits to or in."""
        self._fixups.append((len(self.image), length, field, target))
        self._put(word, length)

    def li(self, register: int, value: int | str) -> None:
        """Loads a constant, or the address of a label, with L32R."""
        if isinstance(value, int):
            value &= 0xFFFFFFFF
        if value not in self._pool:
            at = 4 * len(self._pool)
            if at >= VECTORS:
                raise ValueError("literal pool full")
            self._pool[value] = at
            if isinstance(value, int):
                self.image[at : at + 4] = struct.pack("<I", value)
        pc = self.here
        offset = (self.base + self._pool[value] - ((pc + 3) & ~3)) >> 2
        self._put(1 | register << 4 | (offset & 0xFFFF) << 8)

    def __call__(self, name: str, *operands: int | str) -> None:
        """Emits one instruction."""
        o = [operand for operand in operands if isinstance(operand, int)]
        target = operands[-1] if operands and isinstance(operands[-1], str) else ""
        if name in RRR:
            op1, op2 = RRR[name]
            self._put(rrr(0, op1, op2, *o))
        elif name in FP1:
            self._put(rrr(0, 10, 15, o[0], o[1], FP1[name]))
        elif name in LSAI:
            r, scale = LSAI[name]
            if o[2] % scale:
                raise ValueError(f"{name}: offset {o[2]} is not a multiple of {scale}")
            self._put(rrr(2, 0, 0, r, o[1], o[0]) | _bits(o[2] // scale, 8, signed=name in ("addi", "addmi")) << 16)
        elif name in LSCI:
            self._put(rrr(3, 0, 0, LSCI[name], o[1], o[0]) | _bits(o[2] // 4, 8, signed=False) << 16)
        elif name in PLAIN:
            self._put(PLAIN[name])
        elif name in NARROW:
            self._put(NARROW[name], 2)
        elif name in BRANCH:
            self._put_relative(
                rrr(7, 0, 0, BRANCH[name], o[0], o[1]), 3, target, lambda pc, to: _bits(to - pc - 4, 8) << 16
            )
        elif name in ("bbci", "bbsi"):
            r = (6 if name == "bbci" else 14) | o[1] >> 4
            self._put_relative(rrr(7, 0, 0, r, o[0], o[1] & 15), 3, target, lambda pc, to: _bits(to - pc - 4, 8) << 16)
        elif name in BRANCH_ZERO:
            word = 6 | (1 | BRANCH_ZERO[name] << 2) << 4 | o[0] << 8
            self._put_relative(word, 3, target, lambda pc, to: _bits(to - pc - 4, 12) << 12)
        elif name in BRANCH_IMMEDIATE:
            n, m = BRANCH_IMMEDIATE[name]
            table = B4CONSTU if name.endswith("ui") else B4CONST
            word = 6 | (n | m << 2) << 4 | o[0] << 8 | table.index(o[1]) << 12
            self._put_relative(word, 3, target, lambda pc, to: _bits(to - pc - 4, 8) << 16)
        elif name in BRANCH_ONE:
            signed = BRANCH_ONE[name] < 8
            word = 6 | 7 << 4 | o[0] << 8 | BRANCH_ONE[name] << 12
            self._put_relative(word, 3, target, lambda pc, to: _bits(to - pc - 4, 8, signed) << 16)
        elif name == "j":
            self._put_relative(6, 3, target, lambda pc, to: _bits(to - pc - 4, 18) << 6)
        elif name in CALL:
            self._put_relative(5 | CALL[name] << 4, 3, target, lambda pc, to: _bits((to - (pc & ~3) - 4) >> 2, 18) << 6)
        elif name in CALLX:
            self._put(CALLX[name] | o[0] << 8)
        elif name == "entry":
            self._put(0x36 | o[0] << 8 | _bits(o[1] >> 3, 12, signed=False) << 12)
        elif name == "movsp":
            self._put(rrr(0, 0, 0, 1, o[1], o[0]))
        elif name == "rotw":
            self._put(rrr(0, 0, 4, 8, 0, o[0] & 15))
        elif name in ("l32e", "s32e"):
            self._put(rrr(0, 9, 0 if name == "l32e" else 4, (o[2] >> 2) & 15, o[1], o[0]))
        elif name == "movi":
            imm = _bits(o[1], 12)
            self._put(rrr(2, 0, 0, 10, imm >> 8, o[0]) | (imm & 0xFF) << 16)
        elif name == "mov":
            self._put(rrr(0, 0, 2, o[0], o[1], o[1]))
        elif name in ("neg", "abs"):
            self._put(rrr(0, 0, 6, o[0], name == "abs", o[1]))
        elif name in ("sext", "clamps"):
            self._put(rrr(0, 3, 2 if name == "sext" else 3, o[0], o[1], o[2] - 7))
        elif name in ("nsa", "nsau"):
            self._put(rrr(0, 0, 4, 14 if name == "nsa" else 15, o[1], o[0]))
        elif name == "extui":
            self._put(rrr(0, 4 | o[2] >> 4, o[3] - 1, o[0], o[2] & 15, o[1]))
        elif name == "slli":
            amount = 32 - o[2]
            self._put(rrr(0, 1, amount >> 4, o[0], o[1], amount & 15))
        elif name == "srli":
            self._put(rrr(0, 1, 4, o[0], o[2], o[1]))
        elif name == "srai":
            self._put(rrr(0, 1, 2 | o[2] >> 4, o[0], o[2] & 15, o[1]))
        elif name == "sll":
            self._put(rrr(0, 1, 10, o[0], o[1], 0))
        elif name in ("srl", "sra"):
            self._put(rrr(0, 1, 9 if name == "srl" else 11, o[0], 0, o[1]))
        elif name in SHIFT_SETUP:
            self._put(rrr(0, 0, 4, SHIFT_SETUP[name], o[0], 0))
        elif name == "ssai":
            self._put(rrr(0, 0, 4, 4, o[0] & 15, o[0] >> 4))
        elif name in ("rsr", "wsr", "xsr"):
            op1, op2 = {"rsr": (3, 0), "wsr": (3, 1), "xsr": (1, 6)}[name]
            self._put(op1 << 16 | op2 << 20 | SPECIAL[target] << 8 | o[0] << 4)
        elif name == "rur":
            self._put(rrr(0, 3, 14, o[0], o[1] >> 4, o[1] & 15))
        elif name == "wur":
            self._put(3 << 16 | 15 << 20 | o[1] << 8 | o[0] << 4)
        elif name in ("rer", "wer"):
            self._put(rrr(0, 0, 4, 6 if name == "rer" else 7, o[1], o[0]))
        elif name in ("any4", "all4", "any8", "all8"):
            self._put(rrr(0, 0, 0, 8 + ("any4", "all4", "any8", "all8").index(name), o[1], o[0]))
        elif name == "rsil":
            self._put(rrr(0, 0, 0, 6, o[1], o[0]))
        elif name == "waiti":
            self._put(rrr(0, 0, 0, 7, o[0], 0))
        elif name == "rfi":
            self._put(rrr(0, 0, 0, 3, o[0], 1))
        elif name == "break":
            self._put(rrr(0, 0, 0, 4, o[0], o[1]))
        elif name in ("l32i.n", "s32i.n"):
            self._put((8 if name[0] == "l" else 9) | o[0] << 4 | o[1] << 8 | (o[2] >> 2) << 12, 2)
        elif name == "add.n":
            self._put(10 | o[2] << 4 | o[1] << 8 | o[0] << 12, 2)
        elif name == "addi.n":
            self._put(11 | (0 if o[2] == -1 else o[2]) << 4 | o[1] << 8 | o[0] << 12, 2)
        elif name == "mov.n":
            self._put(13 | o[0] << 4 | o[1] << 8, 2)
        elif name == "movi.n":
            imm = o[1] & 0x7F
            self._put(12 | imm >> 4 << 4 | o[0] << 8 | (imm & 15) << 12, 2)
        elif name in ("beqz.n", "bnez.n"):
            word = 12 | (8 if name == "beqz.n" else 12) << 4 | o[0] << 8
            self._put_relative(
                word, 2, target, lambda pc, to: (_bits(to - pc - 4, 6, False) & 15) << 12 | (to - pc - 4) >> 4 << 4
            )
        else:
            raise ValueError(f"unknown instruction {name}")

    def elf(self, entry: str) -> bytes:
        """An executable with one segment."""
        for at, length, field, target in self._fixups:
            word = int.from_bytes(self.image[at : at + length], "little") | field(self.base + at, self.labels[target])
            self.image[at : at + length] = word.to_bytes(length, "little")
        for value, at in self._pool.items():
            if isinstance(value, str):
                self.image[at : at + 4] = struct.pack("<I", self.labels[value])
        size, start = len(self.image), 84
        ident = b"\x7fELF\x01\x01\x01" + bytes(9)
        header = ident + struct.pack("<HHIIIIIHHHHHH", 2, 94, 1, self.labels[entry], 52, 0, 0, 52, 32, 1, 0, 0, 0)
        return header + struct.pack("<IIIIIIII", 1, start, self.base, self.base, size, size, 7, 4) + bytes(self.image)

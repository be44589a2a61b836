# SPDX-License-Identifier: Apache-2.0
"""Self-recording programs: every case stores what an instruction did; the end prints the record on the UART.

The same cases run on lx7sim and on the distribution's QEMU. Addresses are recorded relative to the load address, so
that one group of cases can run on machines with different memory maps.

Registers of every case: a12 scratch, a13 load address, a15 end of the record; a2..a11 belong to the case.
"""

from __future__ import annotations

import random
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from lx7sim_assembler import VECTORS, Assembler

from tvhil.lx7sim import Simulator

RECORD = 0x100000  #: offset of the record from the load address
SCRATCH = 0x180000  #: memory for loads and stores
STACK = 0x1F0000

# where the operations are not linear: zero, signs, carries, lane borders
VALUES = (
    *(0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 33, 63, 64, 127, 128, 255, 256, 32767, 32768, 65535, 65536),
    *(0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFF8000, 0xFFFF7FFF, 0xFFFFFF80, 0xFFFFFF7F),
    *(0x12345678, 0x9ABCDEF0, 0x55555555, 0xAAAAAAAA, 0x00FF00FF, 0xDEADBEEF, 0x0F0F0F0F, 0x40000000, 0xC0000000),
)


@dataclass(frozen=True)
class Machine:
    """Where a program runs."""

    name: str
    base: int
    uart: int
    reset: int
    qemu: tuple[str, ...] = ()


LX7SIM = Machine("lx7sim", 0x60000000, 0x9D050020, 0x9D020010)
DE212 = Machine("de212", 0x60000000, 0x9D050020, 0x9D020010, ("-M", "kc705-nommu", "-cpu", "de212"))
DE233 = Machine("de233_fpu", 0x00400000, 0xFD050020, 0xFD020010, ("-M", "kc705", "-cpu", "de233_fpu"))


class Program(Assembler):
    """A program of cases for one machine."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.base)
        self.machine = machine
        self.notes: list[str] = []
        self.random = random.Random(212)
        self.label("start")
        self.li(13, self.base + VECTORS)
        self("wsr", 13, "vecbase")
        self.li(13, self.base)
        self.li(15, self.base + RECORD)
        self.li(2, 0)
        self("wsr", 2, "ps")
        self("rsync")

    def record(self, register: int, note: str) -> None:
        """Stores a register as the next word of the record."""
        self.notes.append(note)
        self("s32i", register, 15, 0)
        self("addi", 15, 15, 4)

    def record_relative(self, register: int, note: str) -> None:
        """The same for an address: the offset from the load address."""
        self("sub", 12, register, 13)
        self.record(12, note)

    def record_special(self, name: str, note: str) -> None:
        self("rsr", 12, name)
        self.record(12, note)

    def value(self) -> int:
        return self.random.choice(VALUES) if self.random.random() < 0.7 else self.random.getrandbits(32)

    def finish(self) -> bytes:
        """Prints the record as hexadecimal words and resets the board; the ELF file."""
        self.li(2, self.base + RECORD)
        self.li(3, self.machine.uart)
        word, nibble, wait, digit, end = (self.new_label() for _ in range(5))
        self.label(word)
        self("bgeu", 2, 15, end)
        self("l32i", 4, 2, 0)
        self("movi", 5, 8)
        self.label(nibble)
        self("extui", 6, 4, 28, 4)
        self("slli", 4, 4, 4)
        self("addi", 6, 6, 48)
        self("movi", 7, 58)
        self("blt", 6, 7, digit)
        self("addi", 6, 6, 39)
        self.label(digit)
        self.label(wait)
        self("l32i", 7, 3, 20)
        self("bbci", 7, 5, wait)
        self("s32i", 6, 3, 0)
        self("addi", 5, 5, -1)
        self("bnez", 5, nibble)
        self("addi", 2, 2, 4)
        self("j", word)
        self.label(end)
        self.li(2, self.machine.reset)
        self.li(3, 0xDEAD)
        self("s32i", 3, 2, 0)
        forever = self.label()
        self("j", forever)
        return self.elf("start")


def words(text: str) -> list[int]:
    return [int(text[i : i + 8], 16) for i in range(0, len(text) // 8 * 8, 8)]


def run_lx7sim(elf: Path, **options: object) -> list[int]:
    with Simulator(max_cycles=200_000_000, trap=True, **options) as simulator:  # type: ignore[arg-type]
        simulator.load(elf)
        return words(simulator.run_to_exit().decode())


def need_qemu() -> None:
    if not shutil.which("qemu-system-xtensa"):
        pytest.skip("qemu-system-xtensa is not installed (apt-get install qemu-system-misc)")


def run_qemu(elf: Path, machine: Machine, *options: str) -> str:
    """What the program prints."""
    need_qemu()
    command = [
        "qemu-system-xtensa",
        *machine.qemu,
        "-display",
        "none",
        "-monitor",
        "none",
        "-serial",
        "stdio",
        "-no-reboot",
    ]
    result = subprocess.run(
        [*command, *options, "-kernel", str(elf)],
        capture_output=True,
        timeout=10,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    return result.stdout.decode()


# --- groups of cases: each gets an empty program --------------------------------------------------------------


def arithmetic(p: Program) -> None:
    names = [
        *("and", "or", "xor", "add", "addx2", "addx4", "addx8", "sub", "subx2", "subx4", "subx8", "mul16u", "mul16s"),
        *("mull", "min", "max", "minu", "maxu", "moveqz", "movnez", "movltz", "movgez", "add.n"),
    ]
    pairs = [
        (a, b) for a in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF) for b in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
    ]
    for name in names:
        for a, b in [*pairs[::3], *((p.value(), p.value()) for _ in range(8))]:
            r, s, t = (p.random.randrange(2, 12) for _ in range(3))
            p.li(r, 0x13579BDF)
            p.li(s, a)
            p.li(t, b)
            p(name, r, s, t)
            p.record(r, f"{name} a{r}, a{s}, a{t} with {a:x}, {b:x}")
    for name in ("neg", "abs", "nsa", "nsau", "mov", "mov.n"):
        for a in VALUES:
            p.li(3, a)
            p(name, 4, 3)
            p.record(4, f"{name} {a:x}")
    for name in ("sext", "clamps"):
        for bits in range(7, 23):
            for a in (0x80000000, 0x7FFFFFFF, 1 << bits, (1 << bits) - 1, -(1 << bits), -(1 << bits) - 1, p.value()):
                p.li(3, a)
                p(name, 4, 3, bits)
                p.record(4, f"{name} {a & 0xFFFFFFFF:x}, {bits}")
    for imm in (-2048, -1, 0, 1, 2047):
        p("movi", 4, imm)
        p.record(4, f"movi {imm}")
    for imm in (-32, -1, 0, 1, 31, 32, 63, 64, 95):
        p("movi.n", 4, imm)
        p.record(4, f"movi.n {imm}")
    for name, imms in (("addi", (-128, -1, 0, 127)), ("addmi", (-32768, -256, 0, 32512)), ("addi.n", (-1, 1, 8, 15))):
        for imm in imms:
            for a in (0, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF):
                p.li(3, a)
                p(name, 4, 3, imm)
                p.record(4, f"{name} {a:x}, {imm}")


def division(p: Program) -> None:
    for name in ("quou", "quos", "remu", "rems"):
        for a in (0, 1, 7, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFF9, p.value()):
            for b in (1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFD):
                p.li(3, a)
                p.li(4, b)
                p(name, 5, 3, 4)
                p.record(5, f"{name} {a:x} / {b:x}")


def new_block(p: Program) -> None:
    """Ends QEMU's translation block.

    Within one, its SRL and SRA after an SSL by 0 shift by nothing instead of 32, and WSR.BR, RSR.BR do not see what
    instructions with boolean operands see.
    """
    target = p.new_label()
    p("j", target)
    p.label(target)


def shifts(p: Program) -> None:
    for name in ("ssr", "ssl", "ssa8l", "ssa8b"):
        for a in (0, 1, 5, 31, 32, 33, 255, 0xFFFFFFFF):
            for b in (0x87654321, 0x7FFFFFFF):
                p.li(3, a)
                p.li(4, b)
                p.li(5, 0x13579BDF)
                p(name, 3)
                p.record_special("sar", f"{name} {a:x}: sar")
                new_block(p)
                for shift in ("sll", "srl", "sra"):
                    p(shift, 6, 4)
                    p.record(6, f"{name} {a:x}; {shift} {b:x}")
                p("src", 6, 4, 5)
                p.record(6, f"{name} {a:x}; src {b:x}")
    for amount in (*range(32),):
        p("ssai", amount)
        p.li(4, 0x87654321)
        p("srl", 5, 4)
        p.record(5, f"ssai {amount}; srl")
        p("srai", 5, 4, amount)
        p.record(5, f"srai {amount}")
        if amount:
            p("slli", 5, 4, amount)
            p.record(5, f"slli {amount}")
        if amount < 16:
            p("srli", 5, 4, amount)
            p.record(5, f"srli {amount}")
        for width in (1, 7, 16):
            p("extui", 5, 4, amount, width)
            p.record(5, f"extui {amount}, {width}")
    for sar in (*range(0, 64, 3), 32, 63):
        p.li(3, sar)
        p.li(4, 0x87654321)
        p.li(5, 0x13579BDF)
        p("wsr", 3, "sar")
        for shift in ("sll", "srl", "sra"):
            if shift == "sll" and sar > 32:
                continue  # undefined
            p(shift, 6, 4)
            p.record(6, f"sar {sar}; {shift}")
        p("src", 6, 4, 5)
        p.record(6, f"sar {sar}; src")


def memory(p: Program) -> None:
    p.li(2, p.base + SCRATCH)
    for i in range(64):
        p.li(3, p.random.getrandbits(32))
        p("s32i", 3, 2, 4 * i)
    for name, size, offsets in (
        ("l8ui", 1, (0, 1, 2, 3, 7, 255)),
        ("l16ui", 2, (0, 2, 6, 254)),
        ("l16si", 2, (0, 2, 6, 254)),
    ):
        for offset in offsets:
            p(name, 4, 2, offset)
            p.record(4, f"{name} {offset} of {size}")
    for name in ("l32i", "l32ai"):
        for offset in (0, 4, 60, 252):
            p(name, 4, 2, offset)
            p.record(4, f"{name} {offset}")
    for offset in (0, 4, 60):
        p("l32i.n", 4, 2, offset)
        p.record(4, f"l32i.n {offset}")
    for name, offsets in (
        ("s8i", (0, 1, 2, 3, 9)),
        ("s16i", (12, 14, 18)),
        ("s32i", (20, 24)),
        ("s32ri", (28,)),
        ("s32i.n", (32, 60)),
    ):
        for offset in offsets:
            p.li(3, p.value())
            p(name, 3, 2, offset)
            p("l32i", 4, 2, offset & ~3)
            p.record(4, f"{name} {offset}")
    for memory_value, compare in ((5, 5), (5, 6), (0xFFFFFFFF, 0xFFFFFFFF), (0, 0x80000000)):
        p.li(3, 0x15)
        p("wsr", 3, "atomctl")
        p.li(3, memory_value)
        p("s32i", 3, 2, 64)
        p.li(3, compare)
        p("wsr", 3, "scompare1")
        p.li(5, 0x600DF00D)
        p("s32c1i", 5, 2, 64)
        p.record(5, f"s32c1i memory {memory_value:x} compare {compare:x}: old value")
        p("l32i", 5, 2, 64)
        p.record(5, f"s32c1i memory {memory_value:x} compare {compare:x}: memory")


def branches(p: Program) -> None:
    def outcome(note: str, emit: object) -> None:
        target, done = p.new_label(), p.new_label()
        p("movi", 5, 0)
        emit(target)  # type: ignore[operator]
        p("addi", 5, 5, 1)
        p("j", done)
        p.label(target)
        p("addi", 5, 5, 2)
        p.label(done)
        p.record(5, note)

    edge = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x12345678)
    for name in ("bnone", "beq", "blt", "bltu", "ball", "bbc", "bany", "bne", "bge", "bgeu", "bnall", "bbs"):
        for a in edge:
            for b in (*edge[::2], a, p.value()):
                p.li(3, a)
                p.li(4, b)
                outcome(f"{name} {a:x}, {b:x}", lambda to, name=name: p(name, 3, 4, to))
    for name in ("beqz", "bnez", "bltz", "bgez"):
        for a in edge:
            p.li(3, a)
            outcome(f"{name} {a:x}", lambda to, name=name: p(name, 3, to))
    for name in ("beqz.n", "bnez.n"):
        for a in edge:
            p.li(3, a)
            outcome(f"{name} {a:x}", lambda to, name=name: p(name, 3, to))
    for name in ("beqi", "bnei", "blti", "bgei"):
        for constant in (-1, 1, 8, 10, 256):
            for a in (constant, constant - 1, 0x80000000, 0x7FFFFFFF):
                p.li(3, a)
                outcome(f"{name} {a:x}, {constant}", lambda to, name=name, c=constant: p(name, 3, c, to))
    for name in ("bltui", "bgeui"):
        for constant in (32768, 65536, 2, 256):
            for a in (constant, constant - 1, 0xFFFFFFFF, 0):
                p.li(3, a)
                outcome(f"{name} {a:x}, {constant}", lambda to, name=name, c=constant: p(name, 3, c, to))
    for name in ("bbci", "bbsi"):
        for bit in (0, 1, 15, 16, 31):
            for a in (1 << bit, ~(1 << bit) & 0xFFFFFFFF):
                p.li(3, a)
                outcome(f"{name} {a:x}, {bit}", lambda to, name=name, b=bit: p(name, 3, b, to))
    for name in ("jx", "callx0"):
        after = p.new_label()
        p.li(3, after)
        p("movi", 5, 1)
        p(name, 3)
        p("movi", 5, 2)
        p.align(4)
        p.label(after)
        p.record(5, name)
        if name == "callx0":
            p.record_relative(0, "callx0: a0")
    for ret in ("ret", "ret.n"):
        function, after = p.new_label(), p.new_label()
        p("call0", function)
        p.record(5, f"call0, {ret}")
        p.record_relative(0, "call0: a0")
        p("j", after)
        p.align(4)
        p.label(function)
        p("movi", 5, 77)
        p(ret)
        p.label(after)


def loops(p: Program) -> None:
    for name in ("loop", "loopnez", "loopgtz"):
        for count in (1, 2, 5, 0, 0xFFFFFFFF):
            if count in (0, 0xFFFFFFFF) and name != "loopgtz" and (name, count) != ("loopnez", 0):
                continue
            end = p.new_label()
            p.li(3, count)
            p("movi", 4, 0)
            p(name, 3, end)
            p("addi", 4, 4, 1)
            p("nop.n")
            p.label(end)
            p.record(4, f"{name} {count:x}: turns")
            p.record_special("lcount", f"{name} {count:x}: lcount")
            for register in ("lbeg", "lend"):
                p("rsr", 5, register)
                p.record_relative(5, f"{name} {count:x}: {register}")
    # a branch out, a branch back over the end, and a body whose last instruction is a branch not taken
    end, out = p.new_label(), p.new_label()
    p("movi", 3, 10)
    p("movi", 4, 0)
    p("loop", 3, end)
    p("addi", 4, 4, 1)
    p("beqi", 4, 4, out)
    p("nop")
    p.label(end)
    p.label(out)
    p.record(4, "branch out of a loop")
    p.record_special("lcount", "branch out of a loop: lcount")
    end, skip = p.new_label(), p.new_label()
    p("movi", 3, 6)
    p("movi", 4, 0)
    p("movi", 5, 0)
    p("loop", 3, end)
    p("addi", 4, 4, 1)
    p("bbsi", 4, 0, skip)
    p("addi", 5, 5, 1)
    p.label(skip)
    p("bnez", 4, end)  # jumping to LEND does not loop back
    p("nop")
    p.label(end)
    p.record(4, "branch to the loop's end")
    p.record(5, "branch inside a loop")
    p("movi", 2, 0)
    p("wsr", 2, "lcount")
    end = p.new_label()
    p("movi", 3, 7)
    p("movi", 4, 0)
    p("loop", 3, end)
    p("addi", 4, 4, 1)
    p("beqz", 4, end)
    p.label(end)
    p.record(4, "a branch not taken ends the body")
    # registers written by hand
    begin, end = p.new_label(), p.new_label()
    p("movi", 4, 0)
    p.li(3, begin)
    p("wsr", 3, "lbeg")
    p.li(3, end)
    p("wsr", 3, "lend")
    p("movi", 3, 3)
    p("wsr", 3, "lcount")
    p("isync")
    p("j", begin)
    p.label(begin)
    p("addi", 4, 4, 1)
    p.label(end)
    p.record(4, "loop registers set by WSR")


def special_registers(p: Program) -> None:
    for name in (
        "sar",
        "lcount",
        "scompare1",
        "excsave1",
        "excsave2",
        "excsave7",
        "misc0",
        "misc1",
        "epc1",
        "epc2",
        "eps2",
        "depc",
        "excvaddr",
    ):
        for value in (0, 0x12345678, 0xFFFFFFFF):
            p.li(3, value)
            p("wsr", 3, name)
            p("rsr", 4, name)
            p.record(4, f"wsr {name} {value:x}")
        p.li(3, 0x0BADCAFE)
        p("xsr", 3, name)
        p.record(3, f"xsr {name}: old")
        p.record_special(name, f"xsr {name}: new")
    p("movi", 3, 0)
    p("wsr", 3, "lcount")
    for value in (0, 0x12345678, 0xFFFFFFFF & ~0xFFDF):
        p.li(3, value)
        p("wsr", 3, "ps")
        p("rsync")
        p.record_special("ps", f"wsr ps {value:x}")
    p("movi", 3, 0)
    p("wsr", 3, "ps")
    for level in (0, 1, 5, 15):
        p("rsil", 3, level)
        p.record(3, f"rsil {level}: old ps")
    p("rsil", 3, 0)
    p.record(3, "rsil 0: old ps")
    p.record_special("prid", "prid")
    for name in ("isync", "rsync", "esync", "dsync", "excw", "memw", "extw", "nop", "nop.n"):
        p(name)


def vectors(p: Program, body: object, *offsets: int) -> None:
    """The same short handler at vectors: jumps to `handler`, which must keep everything but a10, a11."""
    for offset in offsets:

        def code() -> None:
            p("wsr", 11, "excsave1")
            p.li(11, "handler")
            p("jx", 11)

        p.vector(offset, code)
    after = p.new_label()
    p("j", after)
    p.align(4)
    p.label("handler")
    body()  # type: ignore[operator]
    p.label(after)


def exceptions(p: Program) -> None:
    """Each case ends in the kernel or user vector; the handler records cause, place and PS, then skips three bytes."""

    def handler() -> None:
        p("rsr", 10, "exccause")
        p.record(10, "exccause")
        p("rsr", 10, "epc1")
        p.record_relative(10, "epc1")
        p("rsr", 11, "ps")
        p.record(11, "ps in the handler")
        p("rsr", 11, "excvaddr")
        p.record(11, "excvaddr")
        p("addi", 10, 10, 3)
        p("wsr", 10, "epc1")
        p("rsr", 11, "excsave1")
        p("rfe")

    vectors(p, handler, 0x300, 0x340)
    recorded = len(p.notes)
    pattern = p.notes[recorded - 4 : recorded]
    del p.notes[recorded - 4 :]

    def expect(note: str) -> None:
        p.notes.extend(f"{note}: {what}" for what in pattern)

    for ps in (0, 0x20):
        p.li(3, ps)
        p("wsr", 3, "ps")
        p("rsync")
        p("movi", 5, 0)
        p("wsr", 5, "excvaddr")
        expect(f"syscall, ps {ps:x}")
        p("syscall")
        expect(f"ill, ps {ps:x}")
        p("ill")
        p("movi", 4, 0)
        for name in ("quou", "quos", "remu", "rems"):
            p.li(5, 0xABCD)
            expect(f"{name} by zero, ps {ps:x}")
            p(name, 5, 3, 4)
            p.record(5, f"{name} by zero leaves its result alone")
    p("movi", 4, 1)
    p("wsr", 4, "windowstart")
    p("rsync")
    expect("movsp of a spilled caller")
    p("movsp", 4, 3)
    p.record(4, "movsp of a spilled caller leaves the register alone")
    p.li(3, 0x10000000)  # nothing is there
    p("movi", 5, 77)
    for name in ("l32i", "s32i"):
        expect(f"{name} outside the map")
        p(name, 5, 3, 4)
        p.record(5, f"{name} outside the map leaves the register alone")


def double_exception(p: Program) -> None:
    def handler() -> None:
        p.record_special("exccause", "double exception: exccause")
        p("rsr", 10, "depc")
        p.record_relative(10, "double exception: depc")
        p.record_special("ps", "double exception: ps")
        p("addi", 10, 10, 3)
        p("wsr", 10, "depc")
        p("rsr", 11, "excsave1")
        p("rfde")

    vectors(p, handler, 0x3C0)
    p("movi", 3, 0x10)
    p("wsr", 3, "ps")
    p("rsync")
    p("syscall")
    p.record_special("ps", "after rfde")
    p("movi", 3, 0)
    p("wsr", 3, "ps")


def interrupts(p: Program) -> None:
    """Software interrupts at level 1 (number 7) and 3 (number 11), masked and not, nested, and WAITI."""

    def level1() -> None:
        p("rsr", 10, "exccause")
        p.record(10, "level 1: exccause")
        p.record_special("ps", "level 1: ps")
        p.record_special("interrupt", "level 1: interrupt")
        p.li(10, 0x80)
        p("wsr", 10, "intclear")
        p("rsr", 10, "ccount")
        p("addi", 10, 10, -1)
        p("wsr", 10, "ccompare0")  # takes the timer interrupt back
        p("rsr", 11, "excsave1")
        p("rfe")

    def level3_vector() -> None:
        p("wsr", 11, "excsave3")
        p.li(11, "handler3")
        p("jx", 11)

    vectors(p, level1, 0x300, 0x340)
    p.vector(0x1C0, level3_vector)
    after = p.new_label()
    p("j", after)
    p.align(4)
    p.label("handler3")
    p.record_special("eps3", "level 3: eps3")
    p.record_special("ps", "level 3: ps")
    p.li(10, 0x800)
    p("wsr", 10, "intclear")
    p("rsr", 11, "excsave3")
    p("rfi", 3)
    p.label(after)
    handlers, p.notes = p.notes, []
    one, three = handlers[:3], handlers[3:]

    def trigger(mask: int, *expected: list[str]) -> None:
        p.li(3, mask)
        p("wsr", 3, "intset")
        p("rsync")
        for notes in expected:
            p.notes.extend(notes)
        p("nop")

    p("movi", 3, 0)
    p("wsr", 3, "intenable")
    trigger(0x880)
    p.record_special("interrupt", "pending, not enabled")
    p.li(3, 0x880)
    p.notes.extend(three)
    p.notes.extend(one)
    p("wsr", 3, "intenable")
    p("rsync")
    p("nop")
    p.record_special("interrupt", "after both")
    trigger(0x80, one)
    trigger(0x800, three)
    p("rsil", 4, 1)
    trigger(0x80)
    p.record_special("interrupt", "level 1 masked")
    trigger(0x800, three)
    p("rsil", 4, 3)
    trigger(0x800)
    p.record_special("interrupt", "level 3 masked")
    p("movi", 4, 0)
    p.notes.extend(three)
    p.notes.extend(one)
    p("wsr", 4, "ps")
    p("rsync")
    p("nop")
    # WAITI with a timer: interrupt 6 of level 1
    p.li(3, 0x40)
    p("wsr", 3, "intenable")
    p("rsr", 4, "ccount")
    p.li(5, 20000)
    p("add", 4, 4, 5)
    p("wsr", 4, "ccompare0")
    p.notes.extend(one)
    p.label("waits")
    p("waiti", 0)


def windows(p: Program) -> None:
    """Deep windowed recursion of all three call sizes through the overflow and underflow vectors."""
    save_restore = {4: (0x00, 0x40), 8: (0x80, 0xC0), 12: (0x100, 0x140)}

    def overflow(size: int) -> None:
        if size == 4:
            for i in range(4):
                p("s32e", i, 5, -16 + 4 * i)
        else:
            p("s32e", 0, size + 1, -16)
            p("l32e", 0, 1, -12)
            for i in range(1, 4):
                p("s32e", i, size + 1, -16 + 4 * i)
            for i in range(4, size):
                p("s32e", i, 0, -32 - (size - 8) * 4 + 4 * (i - 4))
        p("rfwo")

    def underflow(size: int) -> None:
        if size == 4:
            for i in range(4):
                p("l32e", i, 5, -16 + 4 * i)
        else:
            p("l32e", 0, size + 1, -16)
            p("l32e", 1, size + 1, -12)
            p("l32e", 2, size + 1, -8)
            p("l32e", size - 1, 1, -12)
            p("l32e", 3, size + 1, -4)
            for i in range(4, size - 1):
                p("l32e", i, size - 1, -32 - (size - 8) * 4 + 4 * (i - 4))
            p("l32e", size - 1, size - 1, -32 - (size - 8) * 4 + 4 * (size - 1 - 4))
        p("rfwu")

    for size, (over, under) in save_restore.items():
        p.vector(over, lambda size=size: overflow(size))
        p.vector(under, lambda size=size: underflow(size))
    p.li(1, p.base + STACK)
    p("movi", 3, 0)
    p("wsr", 3, "windowbase")
    p("rsync")
    p.li(13, p.base)
    p.li(15, p.base + RECORD)
    p.li(1, p.base + STACK)
    p("movi", 3, 1)
    p("wsr", 3, "windowstart")
    p.li(3, 0x40000)
    p("wsr", 3, "ps")
    p("rsync")
    after = p.new_label()
    p("j", after)
    for size in (4, 8, 12):
        # f(n) = n == 0 ? 1 : 2 * f(n - 1) + n, keeping n in a local register across the call
        name, deeper, done = f"f{size}", p.new_label(), p.new_label()
        p.align(4)
        p.label(name)
        p("entry", 1, 64)
        p("bnez", 2, deeper)
        p("movi", 2, 1)
        p("retw")
        p.label(deeper)
        p("mov", 3, 2)
        p("addi", size + 2, 2, -1)
        if size == 8:
            p.li(9, name)
            p("callx8", 9)
        else:
            p(f"call{size}", name)
        p("addx2", 2, size + 2, 3)
        p.label(done)
        p("retw.n")
    # calls of mixed sizes: mixed(n) = n == 0 ? 0 : n + 2 * mixed12(n - 1), mixed12(n) = n + mixed4(n),
    # mixed4(n) = mixed(n) + 3
    p.align(4)
    p.label("mixed")
    p("entry", 1, 64)
    p("mov", 6, 2)
    p("movi", 4, 0)
    finished = p.new_label()
    p("beqz", 2, finished)
    p("addi", 10, 2, -1)
    p("call8", "mixed12")
    p("add", 4, 4, 10)
    p.label(finished)
    p("addx2", 2, 4, 6)
    p("retw")
    p.align(4)
    p.label("mixed12")
    p("entry", 1, 48)
    p("mov", 7, 2)
    p("addi", 14, 2, 0)
    p("call12", "mixed4")
    p("add", 2, 14, 7)
    p("retw")
    p.align(4)
    p.label("mixed4")
    p("entry", 1, 48)
    p("addi", 6, 2, 0)
    p("call4", "mixed")
    p("addi", 2, 6, 3)
    p("retw")
    p.align(4)
    p.label("moves_stack")
    p("entry", 1, 48)
    p("addi", 3, 1, -32)
    p("movsp", 1, 3)
    p("sub", 2, 1, 2)
    p("retw")
    p.label(after)
    p.li(3, p.base + STACK - 12)  # the outermost frame's caller: where a4..a11 are spilled to
    p.li(4, p.base + STACK + 0x400)
    p("s32i", 4, 3, 0)
    p.li(3, p.base + SCRATCH)
    p("s32i", 15, 3, 0)

    def record_result(register: int, note: str) -> None:
        """The callee had a4 and up: the end of the record is kept in memory."""
        p("mov", 2, register)
        p.li(3, p.base + SCRATCH)
        p("l32i", 15, 3, 0)
        p.li(13, p.base)
        p.record(2, note)
        p("s32i", 15, 3, 0)

    for size in (4, 8, 12):
        for depth in (1, 5, 15, 30):
            p("movi", size + 2, depth)
            if depth == 5:
                p.li(4, f"f{size}")
                p(f"callx{size}", 4)
            else:
                p(f"call{size}", f"f{size}")
            record_result(size + 2, f"call{size} recursion of depth {depth}")
    for depth in (1, 6, 20):
        p("movi", 10, depth)
        p("call8", "mixed")
        record_result(10, f"mixed calls of depth {depth}")
    p("mov", 10, 1)
    p("call8", "moves_stack")
    record_result(10, "movsp")
    p("movi", 3, 0)
    p("wsr", 3, "ps")
    p("rsync")
    # ROTW walks over the register file and back
    p.li(4, 0x600DF00D)
    p("rotw", 1)
    p("mov", 4, 0)
    p("rotw", -1)
    p.record(8, "rotw")


def floating_point(p: Program) -> None:
    """Coprocessor 0 with all rounding modes; the flags after each operation."""
    numbers = (
        *(0x00000000, 0x80000000, 0x3F800000, 0xBF800000, 0x40490FDB, 0x00000001, 0x80000001, 0x007FFFFF, 0x00800000),
        *(0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x7F812345, 0x3EAAAAAB, 0x4B7FFFFF),
        *(0xCF000000, 0x4EFFFFFF, 0x4F800000, 0x3F000000, 0x3FC00000, 0x40200000, 0x5A000000, 0x0B000000),
    )
    fcr, fsr, threadptr = 232, 233, 231

    def clear_flags() -> None:
        p("movi", 12, 0)
        p("wur", 12, fsr)

    def flags(note: str) -> None:
        p("rur", 12, fsr)
        p.record(12, f"{note}: fsr")

    p("movi", 3, 1)
    p("wsr", 3, "cpenable")
    p("rsync")
    for mode in range(4):
        p("movi", 3, mode)
        p("wur", 3, fcr)
        for name in ("add.s", "sub.s", "mul.s", "madd.s", "msub.s"):
            for _ in range(40):
                a, b, c = (p.random.choice(numbers) for _ in range(3))
                if name == "msub.s" and (a & 0x7FFFFFFF > 0x7F800000 or b & 0x7FFFFFFF > 0x7F800000):
                    continue  # which operand loses its sign first is not defined for NaNs
                p.li(3, a)
                p.li(4, b)
                p.li(5, c)
                clear_flags()
                p("wfr", 1, 3)
                p("wfr", 2, 4)
                p("wfr", 3, 5)
                p(name, 3, 1, 2)
                p("rfr", 6, 3)
                note = f"{name} {c:08x}, {a:08x}, {b:08x} mode {mode}"
                p.record(6, note)
                flags(note)
        for name in ("float.s", "ufloat.s"):
            for a in (0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x01000001, 0x01000003, p.value()):
                for scale in (0, 1, 15):
                    p.li(3, a)
                    clear_flags()
                    p(name, 1, 3, scale)
                    p("rfr", 6, 1)
                    p.record(6, f"{name} {a:x}, {scale} mode {mode}")
                    flags(f"{name} {a:x}, {scale} mode {mode}")
    p("movi", 3, 0)
    p("wur", 3, fcr)
    for name in ("round.s", "trunc.s", "floor.s", "ceil.s", "utrunc.s"):
        for a in (*numbers, 0x3F7FFFFF, 0xBF000000, 0xBF400000, 0xC0200000):
            for scale in (0, 4, 15):
                p.li(3, a)
                clear_flags()
                p("wfr", 1, 3)
                p(name, 6, 1, scale)
                p.record(6, f"{name} {a:08x}, {scale}")
                if scale and a & 0x7FFFFFFF == 0x7F7FFFFF:
                    continue  # QEMU scales in single precision first and adds that overflow to the flags
                flags(f"{name} {a:08x}, {scale}")
    for name in ("un.s", "oeq.s", "ueq.s", "olt.s", "ult.s", "ole.s", "ule.s"):
        for _ in range(40):
            a, b = p.random.choice(numbers), p.random.choice(numbers)
            p.li(3, a)
            p.li(4, b)
            clear_flags()
            p("wfr", 1, 3)
            p("wfr", 2, 4)
            p("movi", 3, -1 if p.random.random() < 0.5 else 0)
            p("wsr", 3, "br")
            new_block(p)
            p(name, 5, 1, 2)
            new_block(p)
            p.record_special("br", f"{name} {a:08x}, {b:08x}")
            flags(f"{name} {a:08x}, {b:08x}")
    for name in ("mov.s", "abs.s", "neg.s"):
        for a in numbers:
            p.li(3, a)
            p("wfr", 1, 3)
            p(name, 2, 1)
            p("rfr", 6, 2)
            p.record(6, f"{name} {a:08x}")
    for constant in range(4):
        p("const.s", 1, constant)
        p("rfr", 6, 1)
        p.record(6, f"const.s {constant}")
    for name in ("moveqz.s", "movnez.s", "movltz.s", "movgez.s", "movf.s", "movt.s"):
        for a in (0, 1, 0x80000000):
            p.li(3, a)
            p("wsr", 3, "br")
            new_block(p)
            p("const.s", 1, 1)
            p("const.s", 2, 2)
            p(name, 2, 1, 3 if name[4:-2] not in "ft" else 0)
            p("rfr", 6, 2)
            p.record(6, f"{name} {a:x}")
    # loads and stores
    p.li(2, p.base + SCRATCH)
    p("movi", 5, 8)
    for name in ("ssi", "ssip", "ssx", "ssxp", "lsi", "lsip", "lsx", "lsxp"):
        p("const.s", 1, 1 + p.random.randrange(3))
        p(name, 1, 2, 5 if name[2] == "x" else 12)
        p("rfr", 6, 1)
        p.record(6, f"{name}: register")
        p.record_relative(2, f"{name}: address")
        p.li(2, p.base + SCRATCH)
        for offset in (0, 8, 12):
            p("l32i", 6, 2, offset)
            p.record(6, f"{name}: memory {offset}")
    for a in (0, 0x12345678, 0xFFFFFFFF):
        p.li(3, a)
        p("wur", 3, threadptr)
        p("rur", 4, threadptr)
        p.record(4, "threadptr")
        p.li(3, a & 0xFFF)
        p("wur", 3, fsr)
        p("rur", 4, fsr)
        p.record(4, "fsr")
        p.li(3, a & 0x7F)
        p("wur", 3, fcr)
        p("rur", 4, fcr)
        p.record(4, "fcr")
    p("movi", 3, 0)
    p("wur", 3, fcr)
    # quotients and roots, by the sequences of the ISA manual's chapter on division and square root
    for a in numbers:
        for b in (0x3F800000, 0x40400000, 0x00000001, 0x7F800000, 0x80000000, 0xC2F6E979, 0x7FC00000):
            clear_flags()
            p.li(3, a)
            p.li(4, b)
            p("wfr", 1, 3)
            p("wfr", 2, 4)
            divide(p)
            p("rfr", 6, 0)
            p.record(6, f"{a:08x} / {b:08x}")
            flags(f"{a:08x} / {b:08x}")
        clear_flags()
        p.li(3, a)
        p("wfr", 1, 3)
        square_root(p)
        p("rfr", 6, 0)
        p.record(6, f"root of {a:08x}")
        flags(f"root of {a:08x}")

    # disabled coprocessor
    def handler() -> None:
        p.record_special("exccause", "coprocessor disabled")
        p("movi", 10, 1)
        p("wsr", 10, "cpenable")
        p("rsr", 11, "excsave1")
        p("rfe")

    vectors(p, handler, 0x300, 0x340)
    p("movi", 3, 0)
    p("wsr", 3, "cpenable")
    p("rsync")
    p("const.s", 1, 2)
    p("rfr", 6, 1)
    p.record(6, "after the coprocessor was enabled")


def divide(p: Program) -> None:
    """f0 = f1 / f2, using f0, f3..f9."""
    p("div0.s", 3, 2)
    p("nexp01.s", 4, 2)
    p("const.s", 5, 1)
    p("maddn.s", 5, 4, 3)
    p("mov.s", 6, 3)
    p("mov.s", 7, 2)
    p("nexp01.s", 9, 1)
    p("maddn.s", 6, 5, 6)
    p("const.s", 5, 1)
    p("const.s", 0, 0)
    p("neg.s", 8, 9)
    p("maddn.s", 5, 4, 6)
    p("maddn.s", 0, 8, 3)
    p("mkdadj.s", 7, 1)
    p("maddn.s", 6, 5, 6)
    p("maddn.s", 8, 4, 0)
    p("const.s", 3, 1)
    p("maddn.s", 3, 4, 6)
    p("maddn.s", 0, 8, 6)
    p("neg.s", 9, 9)
    p("maddn.s", 6, 3, 6)
    p("maddn.s", 9, 4, 0)
    p("addexpm.s", 0, 7)
    p("addexp.s", 6, 7)
    p("divn.s", 0, 9, 6)


def square_root(p: Program) -> None:
    """f0 = sqrt(f1), using f2..f9."""
    p("sqrt0.s", 2, 1)
    p("const.s", 3, 0)
    p("maddn.s", 3, 2, 2)
    p("nexp01.s", 4, 1)
    p("const.s", 0, 3)
    p("addexp.s", 4, 0)
    p("maddn.s", 0, 3, 4)
    p("nexp01.s", 3, 1)
    p("neg.s", 5, 3)
    p("maddn.s", 2, 0, 2)
    p("mksadj.s", 7, 1)
    p("maddn.s", 3, 0, 0)
    p("addexpm.s", 0, 7)
    p("addexp.s", 5, 7)
    p("divn.s", 0, 3, 5)


def booleans(p: Program) -> None:
    for name in ("andb", "andbc", "orb", "orbc", "xorb"):
        for br in (0x0000, 0xFFFF, 0x1234, 0xA5A5, 0x8001):
            r, s, t = (p.random.randrange(16) for _ in range(3))
            p.li(3, br)
            p("wsr", 3, "br")
            new_block(p)
            p(name, r, s, t)
            new_block(p)
            p.record_special("br", f"{name} b{r}, b{s}, b{t} of {br:x}")
    for name, step in (("any4", 4), ("all4", 4), ("any8", 8), ("all8", 8)):
        for br in (0x0000, 0xFFFF, 0x00F0, 0x0FF0, 0xFF00, 0x1248):
            for s in range(0, 16, step):
                p.li(3, br)
                p("wsr", 3, "br")
                new_block(p)
                p(name, 3, s)
                new_block(p)
                p.record_special("br", f"{name} b3, b{s} of {br:x}")
    for name in ("bf", "bt"):
        for br in (0, 0xFFFF, 0x20):
            target = p.new_label()
            p.li(3, br)
            p("wsr", 3, "br")
            new_block(p)
            p("movi", 4, 1)
            p(name, 5, target)
            p("movi", 4, 2)
            p.label(target)
            p.record(4, f"{name} b5 of {br:x}")
    for name in ("movf", "movt"):
        for br in (0, 0x20):
            p.li(3, br)
            p("wsr", 3, "br")
            new_block(p)
            p("movi", 4, 1)
            p("movi", 6, 2)
            p(name, 4, 6, 5)
            p.record(4, f"{name} b5 of {br:x}")


DE212_GROUPS = {
    group.__name__: group
    for group in (
        *(arithmetic, division, shifts, memory, branches, loops, special_registers, exceptions, double_exception),
        *(interrupts, windows),
    )
}
DE233_GROUPS = {group.__name__: group for group in (booleans, floating_point)}

# SPDX-License-Identifier: Apache-2.0
"""Generate the C tables of the PIE model from device/pie_model/pie_opcodes.txt.

Writes pie_opcodes.h (opcode ids) and pie_tables.c (operand formats, facts, decoding tree) beside it.
``--check`` writes nothing and fails when a file is not what would be written.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent.parent / "device" / "pie_model"
SOURCE = DIRECTORY / "pie_opcodes.txt"

VECTOR_MEMBERS = ("qz", "qz1", "qx", "qy", "qm", "qu", "qu1", "qs0", "qs1")
ADDRESS_MEMBERS = ("as", "ad", "at", "ax", "ay")
FLOAT_MEMBERS = ("f0", "f1", "f2", "f3")
NUMBER_MEMBERS = ("sel", "lane", "upd", "sar")
IMMEDIATES = {"imm1": (1, False), "imm2": (2, False), "imm4": (4, True), "imm8": (8, True), "imm16": (16, True)}
REGISTERS = VECTOR_MEMBERS + ADDRESS_MEMBERS + FLOAT_MEMBERS
STATES = ("ACCX", "QACC_L", "QACC_H", "SAR", "SAR_BYTE", "UA_STATE", "FFT_BIT_WIDTH", "GPIO_OUT", "GPIO_IN")
CLASSES = (  # as pie_class_t
    *("memory", "move", "logic", "add", "mul", "mac_accx", "mac_qacc"),
    *("reduce", "shift", "zip", "fft", "gpio", "user"),
)
FLAGS = {"unverified": "PIE_UNVERIFIED", "unaligned": "PIE_UNALIGNED_OK"}
FIELD = re.compile(r"([a-z][a-z0-9]*)\[(\d+)(?::(\d+))?\]")

#: One run of an operand's bits: operand name, lowest bit in the word, number of bits, lowest bit in the operand.
Piece = tuple[str, int, int, int]


class TableError(ValueError):
    """A line of the table does not make sense."""


@dataclass(frozen=True)
class Opcode:
    """One line of the table."""

    mnemonic: str
    operands: tuple[str, ...]
    length: int  #: bytes
    match: int
    mask: int
    pieces: tuple[Piece, ...]
    kind: str
    load_bytes: int
    store_bytes: int
    reads: tuple[tuple[str, int], ...]  #: register or state, pipeline stage
    writes: tuple[tuple[str, int], ...]
    flags: tuple[str, ...]

    @property
    def identifier(self) -> str:
        """The mnemonic as a part of C names."""
        return self.mnemonic.replace(".", "_")


def parse_word(text: str) -> tuple[int, int, int, tuple[Piece, ...]]:
    """Length in bytes, match, mask and operand pieces of an instruction word, most significant bit first."""
    match = mask = bits = 0
    placed: list[tuple[str, int, int, int]] = []  # name, bits above the piece's end, width, low bit of the operand
    for token in text.split():
        field = FIELD.fullmatch(token)
        if field:
            high = int(field[2])
            low = high if field[3] is None else int(field[3])
            width = high - low + 1
            match, mask = match << width, mask << width
            placed.append((field[1], bits + width, width, low))
        elif re.fullmatch("[01]+", token):
            width = len(token)
            match, mask = match << width | int(token, 2), mask << width | (1 << width) - 1
        else:
            raise TableError(f"{token!r} is neither bits nor a field")
        bits += width
    four = match & 0xE == 0xE and mask & 0xE == 0xE
    if bits != (32 if four else 24):
        raise TableError(f"{bits} bits in a word of {32 if four else 24}")
    return bits // 8, match, mask, tuple(sorted((name, bits - end, width, low) for name, end, width, low in placed))


def parse_stages(text: str) -> tuple[tuple[str, int], ...]:
    """Registers and states with their pipeline stage."""
    result = []
    for item in text.split() if text != "-" else ():
        name, stage = item.split(":")
        if name not in REGISTERS + STATES or stage not in ("1", "2"):
            raise TableError(f"{item!r}: unknown register or stage")
        result.append((name, int(stage)))
    return tuple(result)


def parse_line(line: str) -> Opcode:
    """One line of the table; raises TableError or ValueError."""
    mnemonic, operands, word, kind, memory, reads, writes, flags = (column.strip() for column in line.split("|"))
    length, match, mask, pieces = parse_word(word)
    names = () if operands == "-" else tuple(operands.split(", "))
    covered: dict[str, int] = {}
    for name, _, width, low in pieces:
        run = (1 << width) - 1 << low
        if covered.get(name, 0) & run:
            raise TableError(f"{name} has a bit twice")
        covered[name] = covered.get(name, 0) | run
    if set(covered) != set(names):
        raise TableError(f"operands {sorted(names)} but fields {sorted(covered)}")
    for name, value in covered.items():
        wanted = 3 if name in VECTOR_MEMBERS else 4 if name in ADDRESS_MEMBERS + FLOAT_MEMBERS else value.bit_length()
        if value != (1 << wanted) - 1 or wanted > 8:
            raise TableError(f"{name} has the bits {value:#x}")
        if name not in REGISTERS + NUMBER_MEMBERS and name not in IMMEDIATES:
            raise TableError(f"unknown operand {name}")
    if kind not in CLASSES:
        raise TableError(f"unknown class {kind}")
    access = re.fullmatch(r"-|([ls])(1|2|4|8|16)", memory)
    if not access:
        raise TableError(f"memory access {memory!r}")
    size = int(access[2] or 0)
    return Opcode(
        mnemonic=mnemonic,
        operands=names,
        length=length,
        match=match,
        mask=mask,
        pieces=pieces,
        kind=kind,
        load_bytes=size if access[1] == "l" else 0,
        store_bytes=size if access[1] == "s" else 0,
        reads=parse_stages(reads),
        writes=parse_stages(writes),
        flags=() if flags == "-" else tuple(FLAGS[flag] for flag in flags.split()),
    )


def read_opcodes(path: Path = SOURCE) -> list[Opcode]:
    """The table; raises TableError with the line number when a line is wrong or two encodings overlap."""
    opcodes: list[Opcode] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            opcodes.append(parse_line(line))
        except (TableError, KeyError, ValueError) as error:
            raise TableError(f"{path.name}:{number}: {error}") from error
    for i, a in enumerate(opcodes):
        for b in opcodes[:i]:
            if a.length == b.length and not (a.match ^ b.match) & a.mask & b.mask:
                raise TableError(f"{a.mnemonic} and {b.mnemonic} have encodings in common")
    return opcodes


def encode(opcode: Opcode, operands: dict[str, int]) -> bytes:
    """The instruction in memory order. Immediates are bytes, not units; raises ValueError for what has no encoding."""
    word = opcode.match
    for name in opcode.operands:
        value, bits = operands[name], max(low + width for piece, _, width, low in opcode.pieces if piece == name)
        unit, signed = IMMEDIATES.get(name, (1, False))
        raw, rest = divmod(value, unit)
        if rest or not (-1 << bits - 1 if signed else 0) <= raw < 1 << (bits - 1 if signed else bits):
            raise ValueError(f"{opcode.mnemonic}: {name} cannot be {value}")
        for piece, position, width, low in opcode.pieces:
            if piece == name:
                word |= (raw >> low & (1 << width) - 1) << position
    return word.to_bytes(opcode.length, "little")


# ---- decoding tree ------------------------------------------------------------------------------------------


def build_tree(opcodes: list[Opcode]) -> list[int]:
    """A decision tree over bit fields of the word, as one array of 16-bit numbers.

    A node is ``width << 8 | shift`` followed by ``2**width`` entries for the values of that field: 0 for no
    instruction, ``0x8000 | opcode`` for a candidate whose mask still has to be compared, else the index of a node.
    The root is at index 1, so that no node has index 0.
    """
    tree = [0]

    def children(candidates: list[int], shift: int, width: int) -> list[list[int]]:
        result: list[list[int]] = [[] for _ in range(1 << width)]
        field = (1 << width) - 1
        for index in candidates:
            mask, match = opcodes[index].mask >> shift & field, opcodes[index].match >> shift & field
            for value in range(1 << width):
                if value & mask == match:
                    result[value].append(index)
        return result

    def cost(parts: list[list[int]]) -> float:
        return sum(len(part) ** 1.5 for part in parts) + 0.5 * len(parts)

    def add(candidates: list[int], shift: int, width: int) -> int:
        node = len(tree)
        tree.append(width << 8 | shift)
        parts = children(candidates, shift, width)
        tree.extend([0] * len(parts))
        for value, part in enumerate(parts):
            tree[node + 1 + value] = link(part)
        return node

    def link(candidates: list[int]) -> int:
        if not candidates:
            return 0
        if len(candidates) == 1:
            return 0x8000 | candidates[0]
        fields = [
            (cost(parts), shift, width)
            for shift in range(32)
            for width in range(1, min(7, 33 - shift))
            if max(map(len, parts := children(candidates, shift, width))) < len(candidates)
        ]
        _, shift, width = min(fields)
        return add(candidates, shift, width)

    add(list(range(len(opcodes))), 0, 4)  # the low nibble first: it tells three bytes from four
    return tree


# ---- C text -------------------------------------------------------------------------------------------------

BANNER = """/* SPDX-License-Identifier: Apache-2.0 */
/* Generated by tools/pie_tables.py from pie_opcodes.txt: edit that file and run the script. */
/* clang-format off */
"""


def header_text(opcodes: list[Opcode]) -> str:
    """pie_opcodes.h."""
    lines = [BANNER + "#ifndef PIE_OPCODES_H\n#define PIE_OPCODES_H\n"]
    lines.append("/* X(id, function): every opcode in the order of its id. */\n#define PIE_OPCODES(X) \\")
    lines += [f"    X({op.identifier.upper()}, {op.identifier}) \\" for op in opcodes]
    lines[-1] = lines[-1].removesuffix(" \\")
    lines.append("""
typedef enum pie_opcode {
#define PIE_OPCODE_ID(id, function) PIE_##id,
    PIE_OPCODES(PIE_OPCODE_ID)
#undef PIE_OPCODE_ID
    PIE_OPCODE_COUNT
} pie_opcode_t;

#endif
""")
    return "\n".join(lines)


def rows(values: list[str], per_row: int) -> str:
    """An initializer's values in indented lines."""
    lines = [values[i : i + per_row] for i in range(0, len(values), per_row)]
    return "\n".join("    " + ", ".join(line) + "," for line in lines)


def tables_text(opcodes: list[Opcode]) -> str:
    """pie_tables.c."""
    formats: dict[tuple[Piece, ...], int] = {}
    for op in opcodes:
        formats.setdefault(op.pieces, len(formats))
    tree = build_tree(opcodes)
    lines = [BANNER, '#include "pie_internal.h"\n']

    lines.append("/* Operand formats: {member, lowest bit in the word, bits, lowest bit in the operand}. */")
    lines.append("static const pie_piece_t pieces[] = {")
    start: list[tuple[int, int]] = []
    total = 0
    for pieces in formats:
        cells = [f"{{{member(name)}, {word}, {width}, {low}}}" for name, word, width, low in pieces]
        start.append((total, len(cells)))
        total += len(cells)
        lines.append(f"    /* {len(start) - 1} */")
        lines += [f"    {cell}," for cell in cells]
    lines.append("    {0, 0, 0, 0},\n};\n")

    lines.append("/* {first piece, pieces, bits of the immediate, its unit as a shift, signed}, by opcode. */")
    lines.append("static const pie_format_t formats[PIE_OPCODE_COUNT] = {")
    for op in opcodes:
        first, count = start[formats[op.pieces]]
        unit, signed, bits = 1, False, 0
        for name, _, width, low in op.pieces:
            if name in IMMEDIATES:
                unit, signed = IMMEDIATES[name]
                bits = max(bits, low + width)
        lines.append(f"    {{{first}, {count}, {bits}, {unit.bit_length() - 1}, {int(signed)}}}, /* {op.mnemonic} */")
    lines.append("};\n")

    lines.append("static const pie_opcode_info_t infos[PIE_OPCODE_COUNT] = {")
    for op in opcodes:
        kind = f"PIE_CLASS_{op.kind.upper()}"
        lines.append(
            f'    {{"{op.mnemonic}", "{", ".join(op.operands)}", 0x{op.match:08x}, 0x{op.mask:08x}, '
            f"{op.length}, {kind}, {op.load_bytes}, {op.store_bytes}, {' | '.join(op.flags) or '0'}}},"
        )
    lines.append("};\n")

    lines.append("/* Registers and state read and written, by opcode: runs of (what, stage), reads first. */")
    items: list[str] = []
    spans: list[str] = []
    for op in opcodes:
        spans.append(f"{{{len(items)}, {len(op.reads)}, {len(op.writes)}}}")
        items += [f"{{{usage(name)}, {stage}}}" for name, stage in op.reads + op.writes]
    lines.append(f"static const pie_usage_item_t usage_items[] = {{\n{rows(items, 4)}\n}};\n")
    lines.append(f"static const pie_usage_span_t usage_spans[PIE_OPCODE_COUNT] = {{\n{rows(spans, 7)}\n}};\n")

    lines.append("/* Decision tree over bit fields, see build_tree() in tools/pie_tables.py. */")
    lines.append(f"static const uint16_t tree[] = {{\n{rows([f'0x{n:x}' for n in tree], 14)}\n}};\n")
    lines.append("""const pie_tables_t pie_tables = {pieces, formats, infos, usage_items, usage_spans, tree};

const pie_execute_fn pie_execute_table[PIE_OPCODE_COUNT] = {
#define PIE_FUNCTION(id, function) pie_##function,
    PIE_OPCODES(PIE_FUNCTION)
#undef PIE_FUNCTION
};
""")
    return "\n".join(lines)


def member(name: str) -> str:
    """The C expression for an operand's place in pie_insn_t."""
    if name in IMMEDIATES:
        return "PIE_IMMEDIATE"
    if name in FLOAT_MEMBERS:
        return f"offsetof(pie_insn_t, f) + {name[1]}"
    return f"offsetof(pie_insn_t, {name})"


def usage(name: str) -> str:
    """The C expression for a register or state in a usage list."""
    return f"PIE_USES_STATE + {STATES.index(name)}" if name in STATES else member(name)


def main() -> int:
    """Write or check the files; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 when a file is out of date")
    arguments = parser.parse_args()
    try:
        opcodes = read_opcodes()
    except (OSError, TableError) as error:
        print(f"pie_tables: {error}", file=sys.stderr)
        return 1
    stale = 0
    for name, text in (("pie_opcodes.h", header_text(opcodes)), ("pie_tables.c", tables_text(opcodes))):
        path = DIRECTORY / name
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale += 1
        if arguments.check:
            print(f"pie_tables: {path.name} is out of date: run {Path(__file__).name}", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return 1 if arguments.check and stale else 0


if __name__ == "__main__":
    raise SystemExit(main())

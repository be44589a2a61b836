# SPDX-License-Identifier: Apache-2.0
"""An ELF file of a firmware: which function and source line an address belongs to, how to unwind the stack there."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.callframe import FDE
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DWARFInfo
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from tvhil.errors import InputError

_EXECUTABLE = 0x4  # SHF_EXECINSTR
_OP_ADDR = 0x03  # DW_OP_addr
UNKNOWN = "(unknown)"


class Function(NamedTuple):
    """A function: name and address range `start <= pc < end`."""

    name: str
    start: int
    end: int


class Line(NamedTuple):
    """A source line; `file` as the compiler was told it."""

    file: str
    line: int

    @property
    def text(self) -> str:
        """The line itself, stripped; empty when the file is not there (any more)."""
        return source_line(self.file, self.line)


class Unwind(NamedTuple):
    """How to get to the caller's frame at an address (DWARF 5, section 6.4).

    Attributes:
        register: that the canonical frame address is relative to.
        offset: its distance from that register.
        saved: offset from the canonical frame address at which a register was saved, by number.
    """

    register: int
    offset: int
    saved: dict[int, int]


@dataclass(frozen=True)
class _LineRow:
    start: int
    end: int
    line: Line | None


class Program:
    """Symbols and debug information of an Xtensa program.

    Args:
        path: the ELF file.

    Raises:
        InputError: no ELF file, one for another machine, or one without symbols.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                elf = ELFFile(file)
                if elf["e_machine"] != "EM_XTENSA":
                    raise InputError(f"{path}: a program for {elf['e_machine']}, not for Xtensa")
                self._code = [
                    (int(s["sh_addr"]), int(s["sh_addr"] + s["sh_size"]))
                    for s in elf.iter_sections()
                    if s["sh_flags"] & _EXECUTABLE and s["sh_size"]
                ]
                self.symbols, functions = self._read_symbols(elf)
                dwarf = elf.get_dwarf_info() if elf.has_dwarf_info() else None
                self._lines = self._read_lines(dwarf) if dwarf else []
                self._unwind = self._read_unwind(dwarf) if dwarf else []
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        except (ELFError, DWARFError) as error:
            raise InputError(f"{path}: no ELF file that can be read ({error})") from None
        if not functions:
            raise InputError(f"{path}: has no symbols; do not strip the program")
        self.functions = functions
        self._starts = [f.start for f in functions]
        self._variables = sorted(self._variable_bytes)
        self._line_starts = [row.start for row in self._lines]
        self._unwind_starts = [start for start, _, _ in self._unwind]

    @property
    def has_lines(self) -> bool:
        """Whether the program was built with debug information (gcc -g)."""
        return bool(self._lines)

    @property
    def has_unwind(self) -> bool:
        """Whether stacks can be unwound."""
        return bool(self._unwind)

    def function_at(self, pc: int) -> Function | None:
        """The function that an address belongs to."""
        i = bisect_right(self._starts, pc) - 1
        return self.functions[i] if i >= 0 and pc < self.functions[i].end else None

    def name_at(self, pc: int) -> str:
        """The name of the function that an address belongs to, or of the variable that code was written to; `(unknown)`
        for none."""
        function = self.function_at(pc)
        if function is not None:
            return function.name
        i = bisect_right(self._variables, (pc, "\uffff")) - 1
        if i >= 0 and pc < self._variables[i][0] + self._variable_bytes[self._variables[i]]:
            return f"{self._variables[i][1]} (generated code)"
        return UNKNOWN

    def line_at(self, pc: int) -> Line | None:
        """The source line that an address was made from."""
        i = bisect_right(self._line_starts, pc) - 1
        return self._lines[i].line if i >= 0 and pc < self._lines[i].end else None

    def unwind_at(self, pc: int) -> Unwind | None:
        """How to unwind the frame of an address."""
        i = bisect_right(self._unwind_starts, pc) - 1
        return self._unwind[i][2] if i >= 0 and pc < self._unwind[i][1] else None

    def member_address(self, variable: str, member: str) -> int | None:
        """Where a member of a global structure lies, as the debug information tells; None where it does not."""
        with self.path.open("rb") as file:
            elf = ELFFile(file)
            if not elf.has_dwarf_info():
                return None
            for unit in elf.get_dwarf_info().iter_CUs():
                for die in unit.get_top_DIE().iter_children():
                    if die.tag == "DW_TAG_variable" and _name(die) == variable and "DW_AT_location" in die.attributes:
                        place, offset = die.attributes["DW_AT_location"].value, _member_offset(die, member)
                        if isinstance(place, list) and len(place) == 5 and place[0] == _OP_ADDR and offset is not None:
                            return int.from_bytes(bytes(place[1:]), "little") + offset
        return None

    def _in_code(self, address: int) -> bool:
        return any(start <= address < end for start, end in self._code)

    def _read_symbols(self, elf: ELFFile) -> tuple[dict[str, int], list[Function]]:
        values: dict[str, int] = {}
        self._variable_bytes: dict[tuple[int, str], int] = {}
        # Functions as the compiler marks them; labels of assembler files only fill what those leave.
        sized: dict[int, tuple[str, int]] = {}
        labels: dict[int, str] = {}
        for section in elf.iter_sections():
            if not isinstance(section, SymbolTableSection):
                continue
            for symbol in section.iter_symbols():
                kind, binding = symbol["st_info"]["type"], symbol["st_info"]["bind"]
                address, size, name = int(symbol["st_value"]), int(symbol["st_size"]), symbol.name
                if not name or symbol["st_shndx"] == "SHN_UNDEF":
                    continue
                values.setdefault(name, address)
                if kind == "STT_OBJECT" and size:
                    self._variable_bytes[address, name] = size
                if not self._in_code(address):
                    continue
                if kind == "STT_FUNC" and (address not in sized or size > sized[address][1]):
                    sized[address] = (name, size)
                elif kind == "STT_NOTYPE" and (binding == "STB_GLOBAL" or not name.startswith((".", "$"))):
                    labels.setdefault(address, name)
        covered = sorted((a, a + size) for a, (_, size) in sized.items() if size)
        marks = {a: name for a, (name, _) in sized.items()}
        for address, name in labels.items():
            if address not in marks and not any(start <= address < end for start, end in covered):
                marks[address] = name
        starts = sorted(marks)
        functions = []
        for i, start in enumerate(starts):
            section_end = next(end for low, end in self._code if low <= start < end)
            limit = min(starts[i + 1] if i + 1 < len(starts) else section_end, section_end)
            size = sized[start][1] if start in sized else 0
            functions.append(Function(marks[start], start, start + size if size else limit))
        return values, functions

    def _read_lines(self, dwarf: DWARFInfo) -> list[_LineRow]:
        rows: list[_LineRow] = []
        for unit in dwarf.iter_CUs():
            program = dwarf.line_program_for_CU(unit)
            if program is None:
                continue
            directory = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
            base = Path(directory.value.decode()) if directory else Path()
            files = _file_names(program.header, base)
            previous: Any = None
            for entry in program.get_entries():
                state = entry.state
                if state is None:
                    continue
                if previous is not None and state.address > previous.address and self._in_code(previous.address):
                    # Line 0: code of the compiler that belongs to no line.
                    name = files.get(previous.file)
                    line = Line(name, previous.line) if name and previous.line else None
                    rows.append(_LineRow(previous.address, state.address, line))
                previous = None if state.end_sequence else state
        rows.sort(key=lambda row: row.start)
        return rows

    def _read_unwind(self, dwarf: DWARFInfo) -> list[tuple[int, int, Unwind]]:
        if not dwarf.has_CFI():
            return []
        found = []
        for entry in dwarf.CFI_entries():
            if not isinstance(entry, FDE):
                continue
            start, size = int(entry["initial_location"]), int(entry["address_range"])
            if not size or not self._in_code(start):
                continue
            table = entry.get_decoded().table
            ends = [row["pc"] for row in table[1:]] + [start + size]
            for row, end in zip(table, ends, strict=True):
                cfa = row["cfa"]
                if cfa.reg is None or end <= row["pc"]:
                    continue
                saved = {r: rule.arg for r, rule in row.items() if isinstance(r, int) and rule.type == "OFFSET"}
                found.append((int(row["pc"]), int(end), Unwind(cfa.reg, cfa.offset, saved)))
        return sorted(found, key=lambda row: row[0])


def _name(die: DIE) -> str:
    attribute = die.attributes.get("DW_AT_name")
    return attribute.value.decode() if attribute else ""


def _member_offset(die: DIE, member: str) -> int | None:
    """Offset of a member in the structure that a variable is of, through typedefs and qualifiers."""
    while "DW_AT_type" in die.attributes:
        die = die.get_DIE_from_attribute("DW_AT_type")
    for child in die.iter_children() if die.tag == "DW_TAG_structure_type" else ():
        if child.tag == "DW_TAG_member" and _name(child) == member:
            return int(child.attributes["DW_AT_data_member_location"].value)
    return None


def _file_names(header: Any, base: Path) -> dict[int, str]:
    """File numbers of a line program as paths; numbering starts at 0 in DWARF 5, at 1 before."""
    first = 0 if header["version"] >= 5 else 1

    def text(value: bytes | str) -> str:
        return value.decode() if isinstance(value, bytes) else value

    directories = [text(d) for d in header["include_directory"]]
    names = {}
    for i, entry in enumerate(header["file_entry"]):
        index = entry.dir_index - first
        directory = base / directories[index] if 0 <= index < len(directories) else base
        names[i + first] = str((directory / text(entry.name)).resolve())
    return names


_SOURCES: dict[str, list[str]] = {}


def source_line(file: str, line: int) -> str:
    """One line of a source file, stripped; empty when there is none."""
    if file not in _SOURCES:
        try:
            _SOURCES[file] = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            _SOURCES[file] = []
    text = _SOURCES[file]
    return text[line - 1].strip() if 0 < line <= len(text) else ""

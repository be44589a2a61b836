# SPDX-License-Identifier: Apache-2.0
"""What the firmware of an ESP32-S3 can still call of the code that its first model overwrites.

`device/ports/esp_idf/components/tvit/arena.ld` places code that only starts the system up in the arena. After
memory_find() nothing may call it any more. Here that is checked of a build, by the linker's map and the relocations of
the objects that it lists: a section that refers to another one, by a call, a literal or a table, may call it. What
runs after the start is the firmware itself, the handlers of interrupts and faults, and the idle tasks.

It finds too many ways rather than too few, with one exception: a pointer that code of the start has stored in RAM.
The handlers that ESP-IDF installs in this way are among the roots for that reason.

Source: ar(5), for archives; objects are read by pyelftools.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from tvhil.errors import InputError

OVERWRITTEN = re.compile(r"\.arena\.startup")  # output sections of arena.ld
FIRMWARE = re.compile(r"\blib(?:main|tvit)\.a\(")  # the objects that are roots
START = re.compile(r"\blibmain\.a\(memory\.c\.o")  # but this one: it is the end of the start
END_OF_START = "memory_find"  # called by the firmware, once
HANDLERS = (
    "_xt_lowint1", "_xt_medint2", "_xt_medint3", "xt_highint4", "xt_highint5", "xt_nmi", "_xt_user_exc", "_xt_panic",
    "panicHandler", "xt_unhandled_exception", "esp_panic_handler", "__wrap_esp_panic_handler", "abort",
    "esp_restart", "esp_restart_noos", "esp_crosscore_isr", "SysTickIsrHandler", "task_wdt_isr",
    "task_wdt_timeout_handling", "prvIdleTask", "esp_vApplicationIdleHook", "esp_vApplicationTickHook",
    "vApplicationStackOverflowHook",
)  # fmt: skip

_NOT_CODE = re.compile(r"\.(debug|xt\.|xtensa|eh_frame|comment)")
_Section = tuple[str, int]  # an object of the map, and the number of the section in it


@dataclass
class _Object:
    """What one object file says, or all files of an archive that have one name: the map does not tell them apart.

    Attributes:
        sections: their names, by number; those of one file after those of another.
        defined: symbols, and the sections that they are in.
        exported: those of them that other objects see.
        refers: sections by number, or symbols by name, that each section refers to.
    """

    sections: list[str] = field(default_factory=list)
    defined: dict[str, int] = field(default_factory=dict)
    exported: dict[str, int] = field(default_factory=dict)
    refers: dict[int, set[int | str]] = field(default_factory=lambda: defaultdict(set))


def startup_calls(map_file: Path, extra_roots: Iterable[str] = ()) -> list[str]:
    """The ways from what runs after the start into code that is overwritten, as 'caller < … < overwritten' backwards.

    Args:
        map_file: of the linker, in the folder that it ran in.
        extra_roots: functions that run after the start, besides the firmware and the handlers.

    Raises:
        InputError: the map or an object of it cannot be read, or the map has no such code.
    """
    placed = _placed(map_file)
    overwritten = {(name, section) for name, section, output in placed if OVERWRITTEN.match(output)}
    if not overwritten:
        raise InputError(f"{map_file}: nothing lies in .arena.startup: is it the map of this firmware?")
    objects = {name: _read(map_file.parent, name) for name in dict.fromkeys(name for name, _, _ in placed)}
    kept = {(name, section) for name, section, _ in placed}
    exported: dict[str, list[_Section]] = defaultdict(list)  # a weak symbol may be defined more than once
    for name, one in objects.items():
        for symbol, number in one.exported.items():
            if (name, one.sections[number]) in kept:
                exported[symbol].append((name, number))
    roots = [
        (name, number)
        for name, one in objects.items()
        if FIRMWARE.search(name) and not START.search(name)
        for number, section in enumerate(one.sections)
        if (name, section) in kept
    ]
    for symbol in (*HANDLERS, *extra_roots):
        roots += [(name, one.defined[symbol]) for name, one in objects.items() if symbol in one.defined]
    came_from: dict[_Section, _Section | None] = dict.fromkeys(roots)
    open_ends = deque(came_from)
    while open_ends:  # the shortest ways first
        at = open_ends.popleft()
        for target in sorted(objects[at[0]].refers[at[1]], key=str):
            if isinstance(target, str):
                targets = [] if target == END_OF_START else exported.get(target, [])
            else:
                targets = [(at[0], target)]
            for found in targets:
                if found not in came_from:
                    came_from[found] = at
                    open_ends.append(found)
    reached = [at for at in came_from if (at[0], objects[at[0]].sections[at[1]]) in overwritten]
    return sorted(_way(at, came_from, objects) for at in reached)


def _way(at: _Section, came_from: dict[_Section, _Section | None], objects: dict[str, _Object]) -> str:
    names: list[str] = []
    step: _Section | None = at
    while step is not None:
        function = re.sub(r"^\.(literal|text|iram1|rodata|data|bss)\.?", "", objects[step[0]].sections[step[1]])
        file = re.sub(r"(\.c|\.S)?\.o(bj)?\)?$", "", re.split(r"[/(]", step[0])[-1])
        name = f"{file}:{function}" if function else file
        if not names or names[-1] != name:
            names.append(name)
        step = came_from[step]
    return " < ".join(names)


def _placed(map_file: Path) -> list[tuple[str, str, str]]:
    """Object, section of it, output section: of all that has been linked."""
    try:
        text = map_file.read_text(errors="replace")
    except OSError as error:
        raise InputError(f"{map_file}: {error.strerror}") from None
    _, _, text = text.partition("Linker script and memory map")
    text = re.sub(r"^( ?\.\S+)\n +(0x)", r"\1 \2", text, flags=re.MULTILINE)  # a long name has a line of its own
    found, output = [], ""
    for line in text.splitlines():
        if match := re.match(r"(\.\S+)", line):
            output = match[1]
        elif (match := re.match(r" (\.\S+) +0x[0-9a-f]+ +(0x[0-9a-f]+) (\S.*)$", line)) and int(match[2], 16):
            found.append((match[3], match[1], output))
    return found


def _read(folder: Path, name: str) -> _Object:
    """An object of the map: `a.o`, or `lib.a(a.o)`."""
    archive, member = (match[1], match[2]) if (match := re.fullmatch(r"(.*\.a)\((.*)\)", name)) else (name, "")
    try:
        content = (folder / archive).read_bytes()
        files = [data for found, data in _members(content) if found == member] if member else [content]
        if not files:
            raise ValueError
        one = _Object([])
        for file in files:
            _parse(file, one)
        return one
    except OSError as error:
        raise InputError(f"{folder / archive}: {error.strerror}") from None
    except (ELFError, ValueError, IndexError):
        raise InputError(f"{folder / name}: this is no object of the linked firmware") from None


def _members(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Those of an archive, by ar(5) with GNU's table of long names."""
    long_names, at = b"", 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16].rstrip(), int(content[at + 48 : at + 58])
        data = content[at + 60 : at + 60 + size]
        if name == b"//":
            long_names = data
        elif name != b"/":
            if name.startswith(b"/"):
                name = long_names[int(name[1:]) :].partition(b"\n")[0]
            yield name.rstrip(b"/").decode(), data
        at += 60 + size + size % 2


def _parse(content: bytes, one: _Object) -> None:
    """Add a relocatable ELF file."""
    elf = ELFFile(io.BytesIO(content))
    first, count = len(one.sections), elf.num_sections()
    one.sections += [section.name for section in elf.iter_sections()]
    symbols: list[int | str | None] = []  # the section of one, or the name of one that is elsewhere
    for table in elf.iter_sections():
        for symbol in table.iter_symbols() if isinstance(table, SymbolTableSection) else ():
            section = symbol["st_shndx"]
            inside = isinstance(section, int) and 0 < section < count
            symbols.append(first + section if inside else symbol.name if section == "SHN_UNDEF" else None)
            if inside and symbol.name:
                one.defined[symbol.name] = first + section
                if symbol["st_info"]["bind"] != "STB_LOCAL":
                    one.exported[symbol.name] = first + section
    for relocations in elf.iter_sections():
        if not isinstance(relocations, RelocationSection):
            continue
        owner = first + relocations["sh_info"]
        if _NOT_CODE.match(one.sections[owner]):
            continue
        for relocation in relocations.iter_relocations():
            target = symbols[relocation["r_info_sym"]]
            if target not in (None, "", owner):
                one.refers[owner].add(target)

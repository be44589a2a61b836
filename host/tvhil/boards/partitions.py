# SPDX-License-Identifier: Apache-2.0
"""Partition tables of ESP-IDF: the CSV in device/ports/esp_idf/partitions is the source, the image is what the boot
loader reads at 0x8000.

Source: ESP-IDF Programming Guide, "Partition Tables". An entry has 32 bytes, little-endian: magic AA 50, type u8,
subtype u8, offset u32, size u32, name char[16], flags u32. After the last one comes EB EB, fourteen FF and the MD5 of
all entries; the rest of 0xC00 bytes is FF. Of the CSV's liberties none is taken: each line has an offset and a size.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tvhil.errors import InputError

TABLE_BYTES = 0xC00
SECTOR = 0x1000
MAPPED_PAGE = 0x1_0000  # what the cache maps at a time; an app must begin on one
_ENTRY = struct.Struct("<2sBBII16sI")
_MAGIC = b"\xaa\x50"
_MD5_MARK = b"\xeb\xeb" + b"\xff" * 14
_TYPES = {"app": 0, "data": 1}
_SUBTYPES = {
    0: {"factory": 0x00, "test": 0x20, **{f"ota_{slot}": 0x10 + slot for slot in range(16)}},
    1: {"ota": 0x00, "phy": 0x01, "nvs": 0x02, "coredump": 0x03, "nvs_keys": 0x04, "efuse": 0x05, "undefined": 0x06},
}  # fmt: skip
_FLAGS = {"encrypted": 1, "readonly": 2}


@dataclass(frozen=True)
class Partition:
    """One area of the flash.

    Attributes:
        name: at most 16 bytes.
        type: 0 app, 1 data.
        subtype: of that type; 0x40 is the model's.
        offset, size: in bytes.
        flags: 1 encrypted, 2 read-only.
    """

    name: str
    type: int
    subtype: int
    offset: int
    size: int
    flags: int = 0

    @property
    def end(self) -> int:
        """The offset behind it."""
        return self.offset + self.size


def read_partitions(path: Path) -> list[Partition]:
    """The partitions of a CSV file, in its order.

    Raises:
        InputError: a line that is malformed, or partitions that overlap; file and line are named.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the partition table cannot be read: {error}") from None
    partitions: list[Partition] = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        place = f"{path}, line {number}"
        one = _parse(place, line)
        if any(one.name == other.name for other in partitions):
            raise InputError(f"{place}: there are two partitions {one.name!r}")
        if partitions and one.offset < partitions[-1].end:
            raise InputError(f"{place}: {one.name} begins at {one.offset:#x}, inside {partitions[-1].name}")
        partitions.append(one)
    return partitions


def partition_image(partitions: Iterable[Partition]) -> bytes:
    """The table as it lies in flash, 0xC00 bytes.

    Raises:
        InputError: more partitions than fit.
    """
    entries = b"".join(
        _ENTRY.pack(_MAGIC, one.type, one.subtype, one.offset, one.size, one.name.encode(), one.flags)
        for one in partitions
    )
    image = entries + _MD5_MARK + hashlib.md5(entries, usedforsecurity=False).digest()
    if len(image) >= TABLE_BYTES:
        raise InputError(f"the partition table has {len(image)} bytes, there is room for {TABLE_BYTES}")
    return image.ljust(TABLE_BYTES, b"\xff")


def parse_partition_image(image: bytes) -> list[Partition]:
    """The partitions of a table as it lies in flash.

    Raises:
        InputError: it is none, or its MD5 is wrong.
    """
    partitions: list[Partition] = []
    for at in range(0, min(len(image), TABLE_BYTES) - _ENTRY.size + 1, _ENTRY.size):
        entry = image[at : at + _ENTRY.size]
        if entry[:2] == _MD5_MARK[:2]:
            if entry[16:] != hashlib.md5(image[:at], usedforsecurity=False).digest():
                raise InputError("the partition table is damaged: its MD5 is wrong")
            return partitions
        magic, kind, subtype, offset, size, name, flags = _ENTRY.unpack(entry)
        if magic != _MAGIC:
            break
        text = name.split(b"\0", 1)[0].decode("utf-8", "replace")
        partitions.append(Partition(text, kind, subtype, offset, size, flags))
    raise InputError("this is no partition table: it has no end")


def _parse(place: str, line: str) -> Partition:
    fields = [field.strip() for field in line.split(",")]
    fields += [""] * (6 - len(fields))
    name, kind, subtype, offset, size, flags = fields[:6]
    if not name or not name.isprintable() or len(name.encode()) > 16 or any(fields[6:]):
        raise InputError(f"{place}: expected a printable name of at most 16 bytes, type, subtype, offset, size, flags")
    if kind not in _TYPES:
        raise InputError(f"{place}: the type {kind!r} is none of {', '.join(_TYPES)}")
    number = _TYPES[kind]
    known = _SUBTYPES[number]
    unknown = [flag for flag in flags.split(":") if flag and flag not in _FLAGS]
    if unknown:
        raise InputError(f"{place}: the flag {unknown[0]!r} is none of {', '.join(_FLAGS)}")
    one = Partition(
        name,
        number,
        known[subtype] if subtype in known else _number(place, "subtype", subtype),
        _number(place, "offset", offset),
        _number(place, "size", size),
        sum(_FLAGS[flag] for flag in flags.split(":") if flag),
    )
    align = MAPPED_PAGE if kind == "app" else SECTOR
    if one.subtype > 0xFF or one.offset % align or one.size == 0 or (kind == "app" and one.size % SECTOR):
        raise InputError(
            f"{place}: {name} must begin at a multiple of {align:#x} and have a size and a subtype of a byte"
        )
    return one


def _number(place: str, what: str, text: str) -> int:
    """0x40, 4096, 64K, 1M."""
    match = re.fullmatch(r"(0[xX][0-9a-fA-F]+|[0-9]+)([kKmM]?)", text)
    if not match:
        raise InputError(f"{place}: the {what} {text!r} is not a number")
    value = (
        int(match[1], 16 if match[1][:2].lower() == "0x" else 10)
        * {"": 1, "k": 1 << 10, "m": 1 << 20}[match[2].lower()]
    )
    if value > 0xFFFF_FFFF:
        raise InputError(f"{place}: the {what} {text} has more than 32 bits")
    return value

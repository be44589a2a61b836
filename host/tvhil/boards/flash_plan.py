# SPDX-License-Identifier: Apache-2.0
"""What lies where in the flash of a board: boot loader, partition table, firmware, model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tvhil.boards.board import Board, BoardFileError
from tvhil.boards.idf_build import IdfFirmware, project_dir
from tvhil.boards.partitions import Partition, parse_partition_image, partition_image, read_partitions
from tvhil.errors import InputError
from tvhil.files import write_whole
from tvhil.packing.reader import TvitModel

SECTOR = 0x1000


@dataclass(frozen=True)
class FlashPart:
    """One thing in the flash.

    Attributes:
        name: 'boot loader', 'partition table', 'firmware' or 'model'.
        offset: where it begins; a multiple of a sector.
        room: bytes up to the next one.
        path: the file; None where it has not been built here.
        content: of the file.
    """

    name: str
    offset: int
    room: int
    path: Path | None = None
    content: bytes = field(default=b"", repr=False)

    @property
    def sha256(self) -> str:
        """Of the content."""
        return hashlib.sha256(self.content).hexdigest()


def board_partitions(board: Board) -> list[Partition]:
    """The partition table of a board.

    Raises:
        BoardFileError: it names partitions that the table lacks, or the table is larger than its flash.
    """
    chip = board.flash
    assert chip is not None
    path = project_dir(board) / chip.partitions
    partitions = read_partitions(path)
    missing = {chip.app, chip.model} - {one.name for one in partitions}
    if missing:
        raise BoardFileError(f"{board.path}: [flash]: {path} has no partition {min(missing)!r}")
    if partitions[-1].end > chip.size:
        raise BoardFileError(
            f"{board.path}: [flash] the partitions of {path} end at {partitions[-1].end:,}, size is {chip.size:,}"
        )
    return partitions


def plan_flash(
    board: Board, model: TvitModel | None, firmware: IdfFirmware | None, model_only: bool = False
) -> list[FlashPart]:
    """What has to be in the flash, in the order of its offsets.

    Args:
        board: with a flash chip.
        model: None to leave the board's as it is.
        firmware: None where it has not been built here.
        model_only: leave everything else as it is.

    Raises:
        InputError: something is larger than its partition, or the firmware was built with another partition table.
    """
    chip = board.flash
    assert chip is not None
    by_name = {one.name: one for one in board_partitions(board)}
    app, home = by_name[chip.app], by_name[chip.model]
    table = partition_image(by_name.values())
    parts = []
    if not model_only:
        if firmware is not None and parse_partition_image(firmware.table.read_bytes()) != list(by_name.values()):
            raise InputError(
                f"{firmware.table}: the firmware was built with another partition table than {chip.partitions}: "
                "build it again"
            )
        parts = [
            _part(
                "boot loader", chip.bootloader, chip.table - chip.bootloader, firmware.bootloader if firmware else None
            ),
            _part("partition table", chip.table, SECTOR, _kept(board, f"partition-table-{_digest(table)}.bin", table)),
            _part("firmware", app.offset, app.size, firmware.app if firmware else None),
        ]
    if model is not None:
        parts.append(
            _part("model", home.offset, home.size, _kept(board, f"model-{model.sha256[:32]}.tvit", model.file))
        )
    for part in parts:
        if len(part.content) > part.room:
            raise InputError(
                f"{part.path}: the {part.name} has {len(part.content):,} bytes, {board.name} has {part.room:,} for it"
            )
    return parts


def flash_image(board: Board, parts: Sequence[FlashPart]) -> bytes:
    """The whole flash of a board with these parts, erased (0xFF) in between."""
    assert board.flash is not None
    image = bytearray(b"\xff") * board.flash.size
    for part in parts:
        image[part.offset : part.offset + len(part.content)] = part.content
    return bytes(image)


def _part(name: str, offset: int, room: int, path: Path | None) -> FlashPart:
    return FlashPart(name, offset, room, path, path.read_bytes() if path is not None else b"")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _kept(board: Board, name: str, content: bytes) -> Path:
    """A file in the board's build folder with that content; esptool takes files."""
    path = board.build_dir / name
    if not path.is_file() or path.read_bytes() != content:
        write_whole(path, content)
    return path
